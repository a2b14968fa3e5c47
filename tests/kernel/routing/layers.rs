//! `seaway diff`: do the layers of a node agree?

use std::net::IpAddr;

use dataplane::maps::PinnedMap;
use ebpf_common::{Address, LocalPod, maps};
use serde_json::{Value, json};

use super::agent::Agent;
use super::peers::{Bird, wire};
use super::plugin::{Call, address_of, call};
use crate::netns::{NetNs, eventually};

/// Between whom, what, what was wanted and what found, of each difference; how often the agent could not ask somebody.
fn differences(agent: &Agent) -> (Vec<[String; 4]>, usize) {
    let output = agent.asking("diff -o json").output().expect("running seaway");
    assert_eq!(output.status.code(), Some(1), "the API server is never there: {output:?}");
    let answer: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let text = |value: &Value| value.as_str().expect("a text").to_owned();
    let all = answer["differences"].as_array().expect("differences").iter().map(|one| {
        let between = format!("{} and {}", text(&one["between"][0]), text(&one["between"][1]));
        [between, text(&one["what"]), text(&one["wanted"]), text(&one["found"])]
    });
    (all.collect(), answer["unasked"].as_array().expect("a list").len())
}

/// What has happened so far, and a route that somebody else takes away.
fn journal_tells(agent: &Agent, host: &NetNs, pod: IpAddr) {
    let told = |arguments: &str| -> Vec<[String; 3]> {
        let text = agent.seaway(&format!("journal -o json {arguments}")).expect("the journal");
        let entries: Vec<Value> = serde_json::from_str(&text).expect("JSON");
        let text = |entry: &Value, field: &str| entry[field].as_str().expect("a text").to_owned();
        entries.iter().map(|entry| ["what", "change", "why"].map(|field| text(entry, field))).collect()
    };
    let peer = told("--kind peer --about Established");
    assert_eq!(peer, [["192.0.2.2", "Established", "session established"].map(str::to_owned)]);
    let pods = told("--kind pod");
    assert_eq!((pods.len(), pods[0][0].as_str()), (1, "default/web"));
    assert!(pods[0][1].starts_with(&format!("attached at [{pod}] by ")), "{pods:?}");
    let learned = ["10.77.0.0/16", "via 192.0.2.2", "chosen of what peers announce"].map(str::to_owned);
    assert_eq!(told("--kind route --about 10.77"), std::slice::from_ref(&learned));
    host.ip("route delete 10.77.0.0/16");
    let repaired = ["10.77.0.0/16", "via 192.0.2.2", "somebody else had made it nothing"].map(str::to_owned);
    eventually("the route is there again", || {
        (told("--kind route --about 10.77") == [learned.clone(), repaired.clone()]).then_some(())
    });
    let table = agent.seaway("journal --about 10.77 --limit 1").expect("the journal");
    assert!(table.starts_with("TIME ") && table.contains("somebody else had made it nothing"), "{table}");
    let refused = agent.seaway("journal --about a&b").expect_err("no word");
    assert!(refused.contains("letters, digits and"), "{refused}");
}

#[test]
fn layers_agree_until_somebody_changes_one_of_them() {
    let (host, other) = wire();
    let mut agent = Agent::start(&host, &["--bgp-peer", "192.0.2.2"]);
    let mut bird = Bird::start(&other, agent.folder.path());
    bird.await_established();
    agent.await_peer("192.0.2.2", "Established");
    let pod = NetNs::new();
    let add = Call { command: "ADD", container: "c1", pod: "web", netns: Some(&pod), config: json!({}) };
    let (success, result) = call(&agent, &add);
    assert!(success, "{result}");
    let address: IpAddr = address_of(&result).parse().expect("an address");
    eventually("the route is learned", || {
        let found = host.output("ip", &["route", "show", "10.77.0.0/16"]);
        (!found.is_empty()).then_some(())
    });
    assert_eq!(differences(&agent), (vec![], 1));
    let refused = agent.asking("diff").output().expect("running seaway");
    let text = String::from_utf8_lossy(&refused.stdout).into_owned();
    assert!(text.contains(" 1 learned routes, ") && text.contains(" 1 pods: no difference."), "{text}");
    assert!(text.contains("Not compared: API: listing Services"), "{text}");

    journal_tells(&agent, &host, address);

    // The datapath hands the pod's packets to nobody.
    let pods: PinnedMap<Address, LocalPod> = PinnedMap::open(&agent.maps(), maps::PODS).expect("the map");
    let handed = pods.get(&address.into()).expect("the map").expect("the pod");
    pods.remove(&address.into()).expect("the map");
    let interface = format!("interface {}", handed.interface_index);
    let of_map = ["agent and BPF".to_owned(), address.to_string(), interface, String::new()];
    assert_eq!(differences(&agent), (vec![of_map.clone()], 1));

    // The pod's link is gone, and with it the routes to it: those the agent makes again in vain.
    let link = agent.json("/v1/pods")[0]["hostInterface"].as_str().expect("a name").to_owned();
    host.ip(&format!("link delete {link}"));
    let (found, _) = differences(&agent);
    let of = |between: &str| found.iter().filter(|one| one[0] == between).collect::<Vec<_>>();
    assert_eq!(of("agent and BPF"), [&of_map]);
    let [_, what, wanted, nothing] = of("agent and links")[0];
    assert_eq!(
        (what.clone(), wanted.clone(), nothing.as_str()),
        (format!("{address} of default/web"), format!("the link {link}"), "")
    );
    let [_, what, _, nothing] = of("agent and FIB")[0];
    assert_eq!((what.clone(), nothing.as_str()), (format!("{address}/32"), ""));

    agent.kill();
    let silent = agent.asking("diff").output().expect("running seaway");
    assert_eq!(silent.status.code(), Some(2), "nobody answers");
}
