//! What `seaway` shows of a node whose API server cannot be reached.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Child, Stdio};

use serde_json::Value;

use super::{agent::Agent, peers::wire};
use crate::netns::eventually;

#[test]
fn maps_and_flows_are_shown_while_the_api_server_is_away() {
    let (host, _other) = wire();
    let agent = Agent::start(&host, &[]);
    let listed = agent.seaway("map list").expect("the maps");
    let frontends = listed.lines().find(|line| line.starts_with("FRONTENDS_2 ")).expect("the frontends");
    assert!(
        frontends.contains("hash") && frontends.contains("0.0%") && frontends.contains("131072"),
        "{listed}"
    );
    let json: Value =
        serde_json::from_str(&agent.seaway("map list -o json").expect("the maps")).expect("JSON");
    assert!(json.as_array().is_some_and(|maps| maps.len() >= 16), "{json}");

    let addresses = agent.seaway("map dump node_addrs --address 192.0.2.1").expect("the node's address");
    assert_eq!(addresses, "ADDRESS\n192.0.2.1\n");
    let counters = agent.seaway("map dump counters -o json --limit 2").expect("counters");
    let lines: Vec<Value> =
        counters.lines().map(|line| serde_json::from_str(line).expect("an object per line")).collect();
    assert_eq!((lines.len(), &lines[0]["name"]), (2, &Value::from("socket_connect")));
    assert_eq!(agent.seaway("map dump FRONTENDS_2").expect("no frontends"), "No such elements.\n");

    let refusal = |arguments| agent.seaway(arguments).expect_err("a refusal");
    let unknown = refusal("map dump frontend");
    assert!(unknown.contains("there is no map \"frontend\"; there is ADDRESSES_1, AFFINITY_1,"), "{unknown}");
    let unknown = refusal("flow list --pod web-1");
    assert!(unknown.contains("no pod \"default/web-1\" has an address on this node"), "{unknown}");
    let unknown = refusal("flow show --service default/web");
    assert!(unknown.contains("no Service \"default/web\" is balanced here"), "{unknown}");
    assert!(refusal("flow show").contains("there is no such flow"), "{}", refusal("flow show"));
    assert!(agent.seaway("flow list").expect("no flows").starts_with("No flows"));
}

#[test]
fn metrics_are_told_over_the_socket_and_a_port() {
    let (host, _other) = wire();
    let mut agent = Agent::start(&host, &["--metrics-bind-address", "127.0.0.1:10249"]);
    let over_tcp = |page: &str| {
        host.run(|| {
            let mut stream = TcpStream::connect("127.0.0.1:10249").ok()?;
            let request = format!("GET {page} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n");
            stream.write_all(request.as_bytes()).ok()?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).ok()?;
            Some(answer)
        })
    };
    let answer = eventually("the sweep has counted the maps", || {
        over_tcp("/metrics").filter(|answer| answer.contains("seaway_map_entries{map=\"AFFINITY\""))
    });
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    assert!(answer.contains("content-type: text/plain; version=0.0.4; charset=utf-8\r\n"), "{answer}");
    for line in [
        "# TYPE seaway_datapath_events_total counter",
        "seaway_datapath_events_total{event=\"flow_new\"} 0",
        "seaway_datapath_drops_total{reason=\"no_backend\"} 0",
        "seaway_service_connections_total{namespace=\"_other\",service=\"_other\",port=\"\"} 0",
        "seaway_map_entries{map=\"FRONTENDS\",type=\"hash\"} 0",
        "seaway_map_entries{map=\"SVC_COUNTS\",type=\"percpu_hash\"} 1",
        "seaway_map_entries{map=\"AFFINITY\",type=\"lru_hash\"} 0",
        "seaway_map_max_entries{map=\"CONNTRACK\",type=\"hash\"} 524288",
        "seaway_flows{protocol=\"UDP\",state=\"answered\"} 0",
        "seaway_service_syncs_total 0",
        "# TYPE seaway_bgp_converged gauge",
    ] {
        assert!(answer.lines().any(|found| found == line), "{line} is not in {answer}");
    }
    let mode = over_tcp("/proxyMode").expect("the page that kube-proxy has");
    assert!(mode.starts_with("HTTP/1.1 200 OK\r\n") && mode.ends_with("\r\n\r\nebpf"), "{mode}");
    let agents = agent.get("/metrics").expect("the page");
    let families = |text: &str| text.lines().filter(|line| line.starts_with("# TYPE ")).count();
    assert_eq!(families(&agents), families(&answer));
    let other = over_tcp("/v1/pods").expect("an answer");
    assert!(other.starts_with("HTTP/1.1 404 Not Found\r\n"), "the port tells nothing else: {other}");
    assert!(agent.is_running());
}

/// Ended when dropped.
struct Follower(Child);

impl Drop for Follower {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn drops_are_told_for_as_long_as_anybody_follows() {
    let (host, _other) = wire();
    let agent = Agent::start(&host, &[]);
    let follow = || {
        let mut seaway = agent.asking("drop -f -o json");
        Follower(seaway.stdout(Stdio::null()).spawn().expect("running seaway"))
    };
    let is_followed = |wanted: bool| {
        let text = agent.seaway("map dump drop_follow -o json").expect("the map");
        let line: Value = serde_json::from_str(text.trim()).expect("an object");
        (line["followedSeconds"].as_u64().expect("a number") > 0) == wanted
    };
    assert!(is_followed(false));
    let (first, second) = (follow(), follow());
    eventually("the datapath tells drops", || is_followed(true).then_some(()));
    drop(first);
    assert!(is_followed(true), "one is left");
    drop(second);
    eventually("the datapath tells no drops", || is_followed(false).then_some(()));
    let _third = follow();
    eventually("the datapath tells drops again", || is_followed(true).then_some(()));

    let counted = agent.seaway("drop").expect("the counters");
    assert!(counted.contains("drop_no_backend") && !counted.contains("flow_new"), "{counted}");
    let refused = agent.seaway("map dump drops").expect_err("no elements");
    assert!(refused.contains("the map DROPS_1 is a ring buffer"), "{refused}");
}
