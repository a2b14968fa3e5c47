//! Nodes that fall silent, and pods that fit nowhere.

use std::collections::BTreeMap;

use k8s_openapi::api::{
    apps::v1::Deployment,
    core::v1::{Event, Node, Pod},
};
use kube::{Api, Client, ResourceExt, api::ListParams};
use serde_json::json;

use crate::{
    cluster::Cluster,
    hollow::{Shape, object},
    observe::{
        condition, create, deployment_value, eventually, eventually_is, node_of, node_readiness, pods,
        ready_by_node, rolled_out,
    },
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_pods_of_a_silent_node_move_and_it_comes_back_empty() {
    let mut cluster = Cluster::start(3, 21).await;
    let client = cluster.client();
    let mut web = deployment_value("web", 6, "v1");
    let patience = |key: &str| json!({ "key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 1 });
    web["spec"]["template"]["spec"]["tolerations"] =
        json!([patience("node.kubernetes.io/unreachable"), patience("node.kubernetes.io/not-ready")]);
    create(&Api::<Deployment>::namespaced(client.clone(), "default"), object(web)).await;
    rolled_out(&client, "web", 6).await;

    cluster.nodes["n2"].silence();
    eventually("the node to be unreachable", async || {
        let node = Api::<Node>::all(client.clone()).get("n2").await.map_err(|error| error.to_string())?;
        let taints = node.spec.as_ref().and_then(|spec| spec.taints.clone()).unwrap_or_default();
        let mut taints: Vec<_> =
            taints.iter().map(|taint| format!("{}:{}", taint.key, taint.effect)).collect();
        taints.sort();
        let unreachable =
            ["NoExecute", "NoSchedule"].map(|effect| format!("node.kubernetes.io/unreachable:{effect}"));
        match node_readiness(&node) == "Unknown" && taints == unreachable {
            true => Ok(()),
            false => Err(format!("Ready is {:?}, taints {taints:?}", node_readiness(&node))),
        }
    })
    .await;
    eventually_is("six ready pods elsewhere", 6, async || {
        let spread = ready_by_node(&client, "web").await;
        if spread.contains_key("n2") { 0 } else { spread.values().sum() }
    })
    .await;
    let left: Vec<Pod> = pods(&client, "web").await.into_iter().filter(|pod| node_of(pod) == "n2").collect();
    assert_eq!(left.len(), 2, "nobody can know that the pods of a silent node have ended");
    for pod in &left {
        assert!(pod.metadata.deletion_timestamp.is_some());
        let reason = condition(pod, "DisruptionTarget").and_then(|condition| condition.reason.clone());
        assert_eq!(reason.as_deref(), Some("DeletionByTaintManager"));
    }

    cluster.add_node(2, Shape::default());
    eventually_is("three nodes without taints", 3, async || cluster.ready_nodes().await.len()).await;
    rolled_out(&client, "web", 6).await;
    let spread = ready_by_node(&client, "web").await;
    assert_eq!(
        spread,
        BTreeMap::from([("n1".to_owned(), 3), ("n3".to_owned(), 3)]),
        "nothing moves back by itself"
    );
}

/// The message of the pod's newest Event with this reason.
async fn event_text(client: &Client, pod: &str, reason: &str) -> Option<String> {
    let events = Api::<Event>::namespaced(client.clone(), "default");
    let about = format!("involvedObject.name={pod},reason={reason}");
    let found = events.list(&ListParams::default().fields(&about)).await.expect("the server answers");
    found.items.into_iter().max_by_key(|event| event.last_timestamp.clone()).and_then(|event| event.message)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_fits_nowhere_says_why_and_goes_where_it_fits_later() {
    let mut cluster = Cluster::start(2, 22).await;
    let client = cluster.client();
    cluster.add_node(3, Shape { labels: json!({ "disk": "ssd" }), ..Shape::default() });
    eventually_is("three nodes", 3, async || cluster.ready_nodes().await.len()).await;
    let api = Api::<Pod>::namespaced(client.clone(), "default");
    let big = json!({ "metadata": { "name": "big" }, "spec": {
        "nodeSelector": { "disk": "ssd" },
        "containers": [{ "name": "main", "image": "example/v1", "resources": { "requests": { "cpu": "6" } } }] } });
    create(&api, object(big)).await;

    let why =
        "0/3 nodes are available: 1 Insufficient cpu, 2 node(s) didn't match Pod's node affinity/selector.";
    eventually("the pod to say why it waits", async || {
        let pod = api.get("big").await.map_err(|error| error.to_string())?;
        let said = condition(&pod, "PodScheduled").ok_or("it has no condition")?;
        let message = said.message.clone().unwrap_or_default();
        let event = event_text(&client, "big", "FailedScheduling").await.unwrap_or_default();
        let plain = said.status == "False" && said.reason.as_deref() == Some("Unschedulable");
        match plain && message.starts_with(why) && event == message {
            true => Ok(()),
            false => Err(format!("condition {said:?}, event {event:?}")),
        }
    })
    .await;

    cluster.add_node(4, Shape { cpu: "8", labels: json!({ "disk": "ssd" }) });
    eventually_is("the pod to run on the node that came", ("n4".to_owned(), true), async || {
        let pod = api.get("big").await.expect("it exists");
        (node_of(&pod), crate::observe::is_ready(&pod))
    })
    .await;
    let pod = api.get("big").await.expect("it exists");
    assert_eq!(condition(&pod, "PodScheduled").map(|said| said.status.as_str()), Some("True"));
    let event = event_text(&client, "big", "Scheduled").await;
    assert_eq!(
        event.as_deref(),
        Some(format!("Successfully assigned default/{} to n4", pod.name_any()).as_str())
    );
}
