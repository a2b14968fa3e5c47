//! Nodes that know the way to each other by two reflectors alone, and all that may die beside them.

use std::time::Duration;

use k8s_openapi::api::core::v1::Node as ApiNode;
use kube::Api;
use serde_json::{Value, json};

use super::fabric::{Node, Switch, await_ways, pass, routing};
use super::flows::{End, Flows};
use crate::netns::eventually;
use crate::routing::server::Server;

const NODES: [u8; 3] = [11, 12, 13];
const REFLECTORS: [u8; 2] = [21, 22];
/// What is asked of peers to wait for a restart, in seconds: routes outlive it here.
const RESTART_SECONDS: u64 = 1;
/// How long all reflectors are away.
const SILENCE: Duration = Duration::from_secs(3);
/// Between a failure and its end, where nothing has to be waited for.
const MOMENT: Duration = Duration::from_millis(500);

struct Cluster {
    switch: Switch,
    server: Server,
    nodes: Vec<Node>,
    reflectors: Vec<Node>,
    pods: Vec<End>,
}

fn start() -> Cluster {
    let switch = Switch::new("192.0.2");
    let server = Server::start(&switch.host(2));
    let alone = json!({ "nodeToNodeMeshEnabled": false });
    routing(&server, "BGPConfiguration", "default", alone, json!({}));
    let peers = json!({
        "nodeSelector": "!has(reflector)",
        "peerSelector": "has(reflector)",
        "maxRestartTime": format!("{RESTART_SECONDS}s"),
    });
    routing(&server, "BGPPeer", "reflectors", peers, json!({ "seaway.dev/bfd": "true" }));
    let annotations = json!({ "projectcalico.org/RouteReflectorClusterID": "244.0.0.1" });
    let reflector = json!({ "metadata": { "labels": { "reflector": "" }, "annotations": annotations } });
    let join = |number: u8, arguments: &[&str], object: &Value| {
        Node::join(&server, &switch, number, arguments, object)
    };
    let plain = json!({ "metadata": {} });
    let nodes: Vec<Node> = NODES.iter().map(|number| join(*number, &[], &plain)).collect();
    let only = &["--router-only", "--no-kernel-routes"];
    let reflectors: Vec<Node> = REFLECTORS.iter().map(|number| join(*number, only, &reflector)).collect();
    let pods = nodes.iter().map(|node| node.pod(&format!("pod-{}", node.name))).collect();
    let cluster = Cluster { switch, server, nodes, reflectors, pods };
    cluster.await_sessions();
    await_ways(&cluster.pods);
    cluster
}

impl Cluster {
    /// Every node has both reflectors, and BFD watches them.
    fn await_sessions(&self) {
        for node in &self.nodes {
            for reflector in &self.reflectors {
                eventually(&format!("{} has {}", node.name, reflector.name), || {
                    let peers = node.agent.json("/v1/peers");
                    let peer = peers.as_array()?.iter().find(|peer| peer["address"] == reflector.address)?;
                    let is_well = peer["state"] == "Established"
                        && peer["bfd"]["state"] == "Up"
                        && peer["routesStale"] == 0
                        && peer["routes"].as_u64() >= Some(self.nodes.len() as u64 - 1);
                    is_well.then_some(())
                });
            }
        }
    }

    fn flows(&self) -> Flows {
        Flows::between(&self.pods)
    }
}

#[test]
fn no_datagram_between_pods_is_lost_by_what_dies_beside_the_datapath() {
    let mut cluster = start();
    nothing_fails(&cluster);
    an_agent_is_killed_twice(&mut cluster);
    one_reflector_is_lost(&mut cluster);
    all_reflectors_are_lost(&mut cluster);
    the_api_server_is_away(&mut cluster);
    a_node_is_added_and_another_drained(&mut cluster);
}

fn nothing_fails(cluster: &Cluster) {
    let flows = cluster.flows();
    pass(Duration::from_secs(1));
    flows.finish().must_be_whole("nothing fails");
}

fn an_agent_is_killed_twice(cluster: &mut Cluster) {
    let flows = cluster.flows();
    for _ in 0..2 {
        let node = &mut cluster.nodes[0];
        node.agent.kill();
        // Beyond what was asked of peers: they keep what they heard all the same.
        pass(Duration::from_secs(RESTART_SECONDS) + MOMENT);
        node.run();
    }
    cluster.await_sessions();
    pass(MOMENT);
    flows.finish().must_be_whole("an agent is killed with SIGKILL, twice");
}

fn one_reflector_is_lost(cluster: &mut Cluster) {
    let flows = cluster.flows();
    cluster.reflectors[0].agent.kill();
    pass(Duration::from_secs(RESTART_SECONDS) + MOMENT);
    cluster.switch.cut(REFLECTORS[0]);
    pass(MOMENT);
    cluster.switch.mend(REFLECTORS[0]);
    cluster.reflectors[0].run();
    cluster.await_sessions();
    flows.finish().must_be_whole("one reflector of two is lost, and comes back");
}

fn all_reflectors_are_lost(cluster: &mut Cluster) {
    let flows = cluster.flows();
    // One dies, and tells by its closed connections; the other is silent, and BFD tells.
    cluster.reflectors[0].agent.kill();
    cluster.switch.cut(REFLECTORS[1]);
    for node in &cluster.nodes {
        for reflector in &cluster.reflectors {
            eventually("the sessions are gone", || {
                (node.session(&reflector.address)? != "Established").then_some(())
            });
        }
    }
    pass(SILENCE);
    let routes = cluster.nodes[0].agent.json("/v1/routes");
    let is_stale = |route: &&Value| {
        let mut paths = route["paths"].as_array().into_iter().flatten();
        route["kernel"]["installed"] == true
            && paths.any(|path| {
                // LLGR_STALE, beyond the restart time.
                path["stale"] == true && path["communities"].to_string().contains("65535:6")
            })
    };
    let stale = routes.as_array().into_iter().flatten().filter(is_stale).count();
    assert!(stale >= cluster.nodes.len() - 1, "the last known routes are kept: {routes}");
    cluster.switch.mend(REFLECTORS[1]);
    cluster.reflectors[0].run();
    cluster.await_sessions();
    pass(MOMENT);
    flows.finish().must_be_whole("all reflectors are lost, and come back");
}

fn the_api_server_is_away(cluster: &mut Cluster) {
    let seconds = std::env::var("SEAWAY_FAILURE_SECONDS").map_or(3, |text| text.parse().expect("seconds"));
    let flows = cluster.flows();
    cluster.server.kill();
    pass(Duration::from_secs(seconds));
    // Agents that begin meanwhile go on with what they heard last.
    cluster.nodes[1].agent.kill();
    cluster.nodes[1].run();
    cluster.await_sessions();
    cluster.server.run();
    pass(MOMENT);
    flows.finish().must_be_whole(&format!("the API server is away for {seconds} s"));
}

fn a_node_is_added_and_another_drained(cluster: &mut Cluster) {
    let mut flows = cluster.flows();
    let node = Node::join(&cluster.server, &cluster.switch, 14, &[], &json!({ "metadata": {} }));
    cluster.nodes.push(node);
    cluster.pods.push(cluster.nodes[3].pod("pod-node-14"));
    cluster.await_sessions();
    await_ways(&cluster.pods);
    flows.add(&cluster.pods[3]);
    pass(MOMENT);
    flows.finish().must_be_whole("a node is added");

    let mut flows = cluster.flows();
    let name = cluster.nodes[2].name.clone();
    cluster.server.patch(Api::<ApiNode>::all, &name, json!({ "spec": { "unschedulable": true } }));
    pass(MOMENT);
    // Its pod ends: who asked it has gone elsewhere before.
    flows.remove(&cluster.pods[2].name);
    cluster.nodes[2].delete(&cluster.pods[2]);
    pass(MOMENT);
    cluster.nodes[2].agent.terminate();
    pass(MOMENT);
    flows.finish().must_be_whole("a node is cordoned, drained and stopped");
}
