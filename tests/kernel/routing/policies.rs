//! NetworkPolicies from the API server to the maps, as `seaway policy` and `seaway map list` tell of them.

use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::api::DeleteParams;
use kube::{Api, Client};
use serde_json::{Value, json};

use super::addresses::{add_at, delete_at};
use super::agent::Agent;
use super::peers::wire;
use super::server::Server;
use crate::netns::{NetNs, eventually};

fn pods(client: Client) -> Api<Pod> {
    Api::namespaced(client, "default")
}

fn policies(client: Client) -> Api<NetworkPolicy> {
    Api::namespaced(client, "default")
}

fn pod(name: &str, app: &str, node: &str) -> Value {
    let ports = json!([{ "name": "http", "containerPort": 8080 }]);
    json!({
        "metadata": { "name": name, "labels": { "app": app } },
        "spec": { "nodeName": node, "containers": [{ "name": "c", "image": "i", "ports": ports }] },
    })
}

/// How many elements the maps have whose names begin so.
fn elements(agent: &Agent, of: &[&str]) -> Vec<u64> {
    let maps = agent.json("/v1/maps");
    let maps = maps.as_array().expect("all maps");
    let count = |name: &&str| {
        let is_meant = |map: &&Value| map["name"].as_str().is_some_and(|known| known.starts_with(name));
        let map = maps.iter().find(is_meant).unwrap_or_else(|| panic!("there is no map {name}"));
        map["entries"].as_u64().unwrap_or_else(|| panic!("{map}"))
    };
    of.iter().map(count).collect()
}

fn shown(agent: &Agent, pod: &str) -> Value {
    let text = agent.seaway(&format!("policy show {pod} -o json")).expect("the pod's policies");
    serde_json::from_str(&text).expect("JSON")
}

#[test]
fn policies_come_from_the_api_server_to_the_maps_and_stay_while_it_is_away() {
    const MAPS: [&str; 3] = ["POLICED", "PEERS", "RULES"];
    let (host, other) = wire();
    let mut server = Server::start(&other);
    server.create(Api::<Node>::all, json!({ "metadata": { "name": "node-a" } }));
    let folder = Agent::folder();
    server.kubeconfig("node-a", &folder.path().join("kubeconfig"));
    let mut agent = Agent::over(&host, folder, &[], &[]);
    let netns: Vec<NetNs> = (0..2).map(|_| NetNs::new()).collect();
    server.create(pods, pod("web", "web", "node-a"));
    let socket = agent.socket();
    let web = eventually("the pod is added", || add_at(&socket, "web", &netns[0]).ok());
    let listed = agent.seaway("policy list").expect("the policies");
    assert_eq!(listed, "No NetworkPolicy selects a pod of this node.\n");
    assert_eq!(elements(&agent, &MAPS), [0, 0, 0]);

    server.create(pods, pod("client", "client", "node-b"));
    let status = json!({ "phase": "Running", "podIP": "10.99.0.7", "podIPs": [{ "ip": "10.99.0.7" }] });
    server.patch(pods, "client", json!({ "status": status }));
    let from = json!([{ "podSelector": { "matchLabels": { "app": "client" } } }]);
    let spec = json!({ "podSelector": { "matchLabels": { "app": "web" } },
        "ingress": [{ "from": from, "ports": [{ "port": "http" }] }] });
    server.create(policies, json!({ "metadata": { "name": "clients" }, "spec": spec }));
    eventually("the pod is isolated in the maps", || (elements(&agent, &MAPS) == [1, 1, 1]).then_some(()));
    let told = shown(&agent, "web");
    assert_eq!(told["addresses"], json!([web]));
    let (ingress, rule) = (&told["ingress"], &told["ingress"]["allowed"][0]);
    assert_eq!((&ingress["isolated"], &ingress["entries"]), (&json!(true), &json!(1)));
    assert_eq!((&ingress["policies"], &rule["ports"]), (&json!(["clients"]), &json!(["TCP http (8080)"])));
    let client = json!([{ "pod": "default/client", "addresses": ["10.99.0.7"] }]);
    assert_eq!(rule["peers"][0]["pods"], client);
    assert_eq!(told["egress"]["isolated"], false);
    let listed = agent.seaway("policy list").expect("the policies");
    assert!(listed.contains("clients") && listed.contains("1 rule"), "{listed}");

    // A pod is added when its labels are known, and is isolated then.
    std::thread::scope(|scope| {
        let added = scope.spawn(|| add_at(&socket, "late", &netns[1]));
        server.create(pods, pod("late", "web", "node-a"));
        added.join().expect("no panic").expect("an address");
    });
    assert_eq!(elements(&agent, &MAPS), [2, 1, 1], "the rules are shared");
    assert_eq!(shown(&agent, "late")["ingress"]["list"], shown(&agent, "web")["ingress"]["list"]);
    assert!(delete_at(&socket, "late"));
    assert_eq!(elements(&agent, &MAPS), [1, 1, 1]);

    // An agent that comes back while nobody tells it anything leaves the maps alone.
    server.kill();
    agent.kill();
    agent.run(&host, &[]);
    assert_eq!(elements(&agent, &MAPS), [1, 1, 1]);
    let untold = agent.seaway("policy list").expect_err("nothing is known");
    assert!(untold.contains("NetworkPolicies are not in the datapath yet"), "{untold}");
    server.run();
    eventually("the policies are known again", || agent.seaway("policy show web").ok());
    assert_eq!(elements(&agent, &MAPS), [1, 1, 1]);

    server.ask(async |client| {
        let gone = policies(client).delete("clients", &DeleteParams::default()).await;
        gone.expect("the policy is deleted");
    });
    eventually("nothing is left", || (elements(&agent, &MAPS) == [0, 0, 0]).then_some(()));
    assert_eq!(shown(&agent, "web")["ingress"]["isolated"], false);
}
