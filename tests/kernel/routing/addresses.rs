//! Addresses from pools and by name, borrowed ones, and a node whose agent dies while pods come and go.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::json;

use super::agent::Agent;
use super::peers::{Bird, wire};
use super::plugin::{Call, address_of, call_at};
use crate::netns::{NetNs, eventually};

/// An agent that owns a block of its default pool and one of a pool for who asks for it, and borrows an address.
fn agent_with_pools(host: &NetNs, extra: &[&str]) -> Agent {
    let folder = Agent::folder();
    let mut allocator = ipam::Allocator::new(1);
    for (pool, block, length) in [
        ("10.244.0.0/16", "10.244.0.64/26", 26),
        ("10.60.0.0/24", "10.60.0.0/28", 28),
        ("10.61.0.0/24", "10.61.0.9/32", 32),
    ] {
        let pool = ipam::Pool::new(pool.parse().expect("a pool"), length).expect("a pool");
        allocator.add_block(block.parse().expect("a block"), &pool);
    }
    let mut saved = serde_json::to_value(&allocator).expect("JSON");
    saved["blocks"][2]["is_borrowed"] = json!(true);
    let pools = json!({
        "is_heard": true,
        "pools": {
            "manual": { "cidr": "10.60.0.0/24", "blockSize": 28, "assignmentMode": "Manual", "disableBGPExport": true },
            "small": { "cidr": "10.61.0.0/24", "assignmentMode": "Manual" },
            "off": { "cidr": "10.62.0.0/24", "assignmentMode": "Manual", "disabled": true },
        },
        "reservations": { "kept": { "reservedCIDRs": ["10.244.0.64/30"] } },
    });
    let wants = |name: &str, value: &str| json!({ "annotations": { format!("cni.projectcalico.org/{name}"): value } });
    let wishes = json!({ "pods": {
        "default/named": wants("ipAddrs", "[\"10.60.0.9\"]"),
        "default/pooled": wants("ipv4pools", "[\"manual\"]"),
        "default/small": wants("ipv4pools", "[\"10.61.0.0/24\"]"),
        "default/off": wants("ipv4pools", "[\"off\"]"),
        "default/floating": wants("floatingIPs", "[\"10.60.0.9\"]"),
    } });
    Agent::over(host, folder, &[("ipam.json", saved), ("pools.json", pools), ("wishes.json", wishes)], extra)
}

fn add(agent: &Agent, pod: &str, netns: &NetNs) -> Result<String, String> {
    add_at(&agent.socket(), pod, netns)
}

pub fn add_at(socket: &Path, pod: &str, netns: &NetNs) -> Result<String, String> {
    let add = Call { command: "ADD", container: pod, pod, netns: Some(netns), config: json!({}) };
    let (success, result) = call_at(socket, &add);
    if success { Ok(address_of(&result)) } else { Err(result.to_string()) }
}

pub fn delete_at(socket: &Path, pod: &str) -> bool {
    call_at(socket, &Call { command: "DEL", container: pod, pod, netns: None, config: json!({}) }).0
}

#[test]
fn pods_get_what_they_ask_for_while_the_api_server_is_away() {
    let (host, _other) = wire();
    let agent = agent_with_pools(&host, &[]);
    let pods: Vec<NetNs> = (0..4).map(|_| NetNs::new()).collect();
    assert_eq!(add(&agent, "named", &pods[0]), Ok("10.60.0.9".to_owned()));
    let pooled = add(&agent, "pooled", &pods[1]).expect("an address");
    assert!(pooled.starts_with("10.60.0.") && pooled != "10.60.0.9", "{pooled}");
    pods[0].output("ping", &["-c", "1", "-W", "2", &pooled]);
    assert_eq!(add(&agent, "plain", &pods[2]), Ok("10.244.0.68".to_owned()), "the four before are reserved");
    for (pod, words) in
        [("off", "IPPool off is disabled"), ("floating", "floatingIPs of the pod: it is not supported")]
    {
        let error = add(&agent, pod, &pods[3]).expect_err(words);
        assert!(error.contains(words), "{error}");
    }
    let listed = agent.seaway("block list").expect("the blocks");
    let words: Vec<Vec<&str>> = listed.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(words[0], ["BLOCK", "POOL", "OWNER", "USED", "FREE", "LENT", "BORROWED"]);
    assert!(words.contains(&vec!["10.60.0.0/28", "manual", "-", "2", "13", "0", "no"]), "{listed}");
    assert!(words.contains(&vec!["10.61.0.9/32", "small", "-", "0", "1", "0", "yes"]), "{listed}");
}

#[test]
fn a_borrowed_address_is_told_by_itself_and_leads_nowhere_until_a_pod_has_it() {
    let (host, other) = wire();
    let agent = agent_with_pools(&host, &["--bgp-peer", "192.0.2.2"]);
    let bird = Bird::start(&other, agent.folder.path());
    eventually("BIRD has the address", || {
        bird.ask("show route 10.61.0.9/32").contains("192.0.2.1").then_some(())
    });
    assert!(bird.ask("show route 10.244.0.64/26").contains("192.0.2.1"));
    assert!(!bird.ask("show route 10.60.0.0/28").contains("192.0.2.1"), "disableBGPExport");
    let route = || host.output("ip", &["route", "show", "10.61.0.9"]);
    assert!(route().contains("blackhole 10.61.0.9"), "{}", route());
    let pod = NetNs::new();
    assert_eq!(add(&agent, "small", &pod), Ok("10.61.0.9".to_owned()));
    assert!(route().contains("10.61.0.9 dev swp"), "{}", route());
    other.output("ping", &["-c", "1", "-W", "2", "10.61.0.9"]);
    assert!(delete_at(&agent.socket(), "small"));
    assert!(route().contains("blackhole 10.61.0.9"), "{}", route());
}

/// Adds and deletes pods until it is told to end; those that it leaves are in `in_use`.
fn churn(
    socket: &Path,
    worker: usize,
    in_use: &Mutex<BTreeMap<String, String>>,
    is_over: &AtomicBool,
) -> usize {
    let (mut added, mut kept) = (0, Vec::new());
    for round in 0..200 {
        if is_over.load(Ordering::Relaxed) {
            break;
        }
        let (pod, netns) = (format!("p{worker}-{round}"), NetNs::new());
        if let Ok(address) = add_at(socket, &pod, &netns) {
            added += 1;
            let before = in_use.lock().expect("it is whole").insert(address.clone(), pod.clone());
            assert_eq!(before, None, "{address} is {pod}'s too");
            // A few stay.
            if round % 5 == 4 {
                kept.push(netns);
                continue;
            }
            in_use.lock().expect("it is whole").remove(&address);
        }
        // As a runtime does, also after an ADD of which nothing is known.
        eventually("DEL succeeds", || delete_at(socket, &pod).then_some(()));
    }
    added
}

#[test]
fn pods_that_come_and_go_while_the_agent_is_killed_share_no_address_and_leave_none_behind() {
    let (host, _other) = wire();
    let mut agent = Agent::start(&host, &[]);
    let socket = agent.socket();
    let (in_use, is_over) = (Mutex::default(), AtomicBool::new(false));
    let added: usize = std::thread::scope(|scope| {
        let (socket, in_use, is_over) = (&socket, &in_use, &is_over);
        let workers: Vec<_> =
            (0..3).map(|n| scope.spawn(move || churn(socket, n, in_use, is_over))).collect();
        for life in 1..=3 {
            let pods = |agent: &Agent| agent.json("/v1/pods").as_array().map_or(0, Vec::len);
            eventually("pods are added", || (pods(&agent) > 2 * life).then_some(()));
            agent.kill();
            agent.run(&host, &[]);
        }
        is_over.store(true, Ordering::Relaxed);
        workers.into_iter().map(|worker| worker.join().expect("a worker")).sum()
    });
    let known: BTreeMap<String, String> = agent
        .json("/v1/pods")
        .as_array()
        .expect("a list")
        .iter()
        .map(|pod| [&pod["address"], &pod["containerId"]].map(|it| it.as_str().expect("text").to_owned()))
        .map(|[address, container]| (address, container))
        .collect();
    assert_eq!(known, *in_use.lock().expect("it is whole"), "after {added} pods");
    for pod in known.values() {
        assert!(delete_at(&socket, pod));
    }
    let block = &agent.json("/v1/blocks")[0];
    assert_eq!((&block["used"], &block["free"]), (&json!(0), &json!(64)), "after {added} pods");
}
