//! What `seaway` shows of a node whose API server cannot be reached.

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
