//! What `seaway` shows of a node whose API server cannot be reached.

use serde_json::Value;

use super::{agent::Agent, peers::wire};

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
