//! An agent and the server that it asks, each in a namespace of its own: pools and blocks as objects.

use std::collections::BTreeSet;

use calico::{BlockAffinity, IpPool};
use k8s_openapi::api::core::v1::{ConfigMap, Node, Pod};
use kube::api::{Patch, PatchParams};
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

fn blocks(client: Client) -> Api<ConfigMap> {
    Api::namespaced(client, "kube-system")
}

fn pod(name: &str, annotations: Value) -> Value {
    json!({
        "metadata": { "name": name, "annotations": annotations },
        "spec": { "nodeName": "node-a", "containers": [{ "name": "c", "image": "i" }] },
    })
}

/// The blocks of the agent, by pool.
fn held(agent: &Agent) -> BTreeSet<(String, String)> {
    let blocks = agent.json("/v1/blocks");
    let of = |block: &Value, field: &str| block[field].as_str().unwrap_or_default().to_owned();
    blocks.as_array().into_iter().flatten().map(|block| (of(block, "pool"), of(block, "block"))).collect()
}

#[test]
fn a_node_takes_blocks_of_its_pools_and_gives_pods_what_they_ask_for() {
    let (host, other) = wire();
    let server = Server::start(&other);
    let pool = |name: &str, spec: Value| json!({ "metadata": { "name": name }, "spec": spec });
    for (name, spec) in [
        ("rack-1", json!({ "cidr": "10.50.0.0/24", "blockSize": 28, "nodeSelector": "rack == 'r1'" })),
        ("rack-2", json!({ "cidr": "10.51.0.0/24", "nodeSelector": "rack == 'r2'" })),
        ("named", json!({ "cidr": "10.60.0.0/28", "blockSize": 28, "assignmentMode": "Manual" })),
    ] {
        server.create(Api::<IpPool>::all, pool(name, spec));
    }
    server.create(Api::<Node>::all, json!({ "metadata": { "name": "node-a", "labels": { "rack": "r1" } } }));
    let folder = Agent::folder();
    server.kubeconfig("node-a", &folder.path().join("kubeconfig"));
    let mut agent = Agent::over(&host, folder, &[], &[]);
    let first = eventually("it has a block", || held(&agent).pop_first());
    assert!(first.0 == "rack-1" && first.1.ends_with("/28"), "{first:?}");

    let socket = agent.socket();
    let netns: Vec<NetNs> = (0..3).map(|_| NetNs::new()).collect();
    server.create(pods, pod("plain", json!({})));
    server.create(pods, pod("static", json!({ "cni.projectcalico.org/ipAddrs": "[\"10.60.0.5\"]" })));
    server.create(pods, pod("wrong", json!({ "cni.projectcalico.org/ipv4pools": "[\"rack-2\"]" })));
    let plain = add_at(&socket, "plain", &netns[0]).expect("an address");
    assert!(plain.starts_with("10.50.0."), "{plain}");
    assert_eq!(
        add_at(&socket, "static", &netns[1]),
        Ok("10.60.0.5".to_owned()),
        "its block is claimed meanwhile"
    );
    let error = add_at(&socket, "wrong", &netns[2]).expect_err("it is of another rack");
    assert!(error.contains("IPPool rack-2 does not select this node"), "{error}");
    let shown = eventually("the blocks are shown", || {
        let shown = server.names(Api::<BlockAffinity>::all, "");
        (shown.len() == 2).then_some(shown)
    });
    assert!(shown.contains("node-a-10-60-0-0-28"), "{shown:?}");

    // The next agent has what this one had.
    let before = held(&agent);
    agent.kill();
    agent.run(&host, &[]);
    assert_eq!(held(&agent), before);
    assert_eq!(agent.json("/v1/pods").as_array().map(Vec::len), Some(2));

    // What is disabled gives no more, and keeps what it gave.
    let disable = Patch::Merge(json!({ "spec": { "disabled": true } }));
    server.ask(async |client| {
        let api = Api::<IpPool>::all(client);
        for name in ["rack-1", "named"] {
            api.patch(name, &PatchParams::default(), &disable).await.expect("it is disabled");
        }
    });
    eventually("it gives no more", || {
        let error = add_at(&socket, "late", &netns[2]).err()?;
        assert!(delete_at(&socket, "late"));
        error.contains("no IPPool gives addresses of IPv4").then_some(())
    });
    assert_eq!(server.names(blocks, "seaway.dev/ipam-block").len(), 2, "pods have addresses of them");
}
