//! The usual web example: a Deployment of nginx and a Service, reached from every node.

use std::collections::{BTreeMap, BTreeSet};

use harness::{Cluster, Namespace, eventually, eventually_some};
use serde_json::Value;

pub(crate) const WEB: &str = "
apiVersion: apps/v1
kind: Deployment
metadata:
  name: nginx-deployment
  labels:
    app: nginx
spec:
  replicas: 6
  selector:
    matchLabels:
      app: nginx
  template:
    metadata:
      labels:
        app: nginx
    spec:
      containers:
      - name: nginx
        image: nginx:1.14.2
        ports:
        - containerPort: 80
---
apiVersion: v1
kind: Service
metadata:
  name: my-service
spec:
  selector:
    app: nginx
  ports:
  - protocol: TCP
    port: 80
    targetPort: 80
";

/// A client pod on each node.
pub(crate) const CLIENTS: &str = "
apiVersion: apps/v1
kind: DaemonSet
metadata:
  name: client
spec:
  selector:
    matchLabels: {app: client}
  template:
    metadata:
      labels: {app: client}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - name: client
        image: multitool:1
        args: [sleep]
";

/// Lines of the access log, by pod.
fn served(namespace: &Namespace<'_>) -> BTreeMap<String, usize> {
    namespace
        .pods("app=nginx")
        .into_iter()
        .map(|pod| {
            let log = namespace.kubectl(&format!("logs {}", pod.name)).ok();
            let lines = log.lines().filter(|line| line.contains("GET /")).count();
            (pod.name, lines)
        })
        .collect()
}

#[test]
fn the_web_example_spreads_and_every_node_reaches_every_pod_by_address_and_by_name() {
    let cluster = Cluster::running();
    let nodes = cluster.nodes();
    let namespace = cluster.namespace("web");
    namespace.apply(WEB);
    namespace.kubectl("rollout status deployment/nginx-deployment --timeout=120s").ok();
    let pods = namespace.wait_ready("app=nginx", 6, 60);
    let used: BTreeSet<&str> = pods.iter().map(|pod| pod.node.as_str()).collect();
    assert_eq!(used.len(), nodes.len(), "pods are spread over the nodes: {pods:?}");
    namespace.apply(CLIENTS);
    let clients = namespace.wait_ready("app=client", nodes.len(), 60);
    let address = namespace.kubectl("get service my-service -o jsonpath={.spec.clusterIP}").ok();
    for client in &clients {
        for target in [address.as_str(), "my-service", "my-service.web.svc.cluster.local"] {
            let before = served(&namespace);
            let summary = namespace
                .exec(&client.name, &["multitool", "load", &format!("http://{target}/"), "--count", "300"])
                .ok();
            let summary: Value = serde_json::from_str(&summary).expect("a JSON summary");
            assert_eq!((&summary["sent"], &summary["failed"]), (&300.into(), &0.into()), "{summary}");
            eventually(10, "the logs to show the requests", || {
                let after = served(&namespace);
                let gained: BTreeMap<&String, usize> =
                    after.iter().map(|(pod, lines)| (pod, lines - before.get(pod).unwrap_or(&0))).collect();
                let reached = gained.values().filter(|count| **count > 0).count();
                let all: usize = gained.values().sum();
                if reached == 6 && all == 300 {
                    Ok(())
                } else {
                    Err(format!("{} from {}: {gained:?}", target, client.node))
                }
            });
        }
    }
}

#[test]
fn no_node_has_a_netfilter_rule_and_each_knows_the_others_blocks_by_bgp() {
    let cluster = Cluster::running();
    let nodes = cluster.nodes();
    let namespace = cluster.namespace("routes");
    namespace.apply(CLIENTS);
    let pods = namespace.wait_ready("app=client", nodes.len(), 60);
    for node in &nodes {
        let rules = cluster.on(node, &["nft", "list", "ruleset"]).ok();
        assert!(rules.trim().is_empty(), "{node} has netfilter rules:\n{rules}");
        let saved = cluster.on(node, &["iptables-save"]).ok();
        assert!(!saved.lines().any(|line| line.starts_with("-A")), "{node} has iptables rules:\n{saved}");
        let routes = cluster.on(node, &["ip", "-N", "route"]).ok();
        for other in pods.iter().filter(|pod| &pod.node != node) {
            let host = cluster.kubectl(&format!(
                "get node {} -o jsonpath={{.status.addresses[?(@.type==\"InternalIP\")].address}}",
                other.node
            ));
            let host = host.ok().split(' ').next().unwrap_or_default().to_owned();
            let block = block_of(&other.address);
            let learned = routes.lines().any(|route| {
                route.starts_with(&block) && route.contains(&host) && route.contains("proto 180")
            });
            let through_nexthop = routes.lines().any(|route| {
                route.starts_with(&block) && route.contains("nhid") && route.contains("proto 180")
            });
            assert!(
                learned || through_nexthop,
                "{node} has no route of ours to {block} through {host}:\n{routes}"
            );
        }
    }
}

#[test]
fn on_every_node_the_api_the_routes_the_kernel_and_the_maps_agree() {
    let cluster = Cluster::running();
    // Other tests change Services meanwhile, so that one list may be a change behind the other.
    let answers = eventually_some(60, "the layers of all nodes to agree", || {
        let run = cluster.seaway("diff --all-nodes -o json");
        let answers: Value =
            serde_json::from_str(&run.stdout).map_err(|error| format!("{error}: {run:?}"))?;
        if run.code == 0 { Ok(Some(answers)) } else { Err(answers.to_string()) }
    });
    for node in cluster.nodes() {
        let compared = |kind: &str| answers[&node]["compared"][kind].as_u64().unwrap_or_default();
        // The API server's own Service and that of DNS, on two protocols.
        assert!(compared("objects") >= 3 && compared("services") >= 3, "{node}: {answers}");
        assert!(compared("learned") >= 2, "the other nodes' blocks, {node}: {answers}");
    }
}

#[test]
fn the_agent_of_any_node_is_asked_from_anywhere_and_what_is_on_the_way_says_why_not() {
    let cluster = Cluster::running();
    for node in cluster.nodes() {
        let status: Value =
            serde_json::from_str(&cluster.seaway(&format!("status --node {node} -o json")).ok())
                .expect("JSON");
        assert_eq!((status["node"].as_str(), status["ready"].as_bool()), (Some(&*node), Some(true)));
        let peers = cluster.seaway(&format!("peer list --node {node}")).ok();
        assert!(peers.contains("Established"), "{peers}");
        let maps = cluster.seaway(&format!("map dump FRONTENDS --limit 2 -o json --node {node}")).ok();
        assert_eq!(maps.lines().count(), 2, "{maps}");
    }
    let unknown = cluster.seaway("status --node nobody").fails();
    assert!(unknown.contains("nodes \"nobody\" not found"), "{unknown}");
    let page = cluster
        .seaway(&format!("why-not 10.0.0.0/8 --peer 192.0.2.250 --node {}", cluster.nodes()[0]))
        .fails();
    assert!(page.contains("192.0.2.250"), "{page}");
}

/// The /26 that an address belongs to.
fn block_of(address: &str) -> String {
    let bits = u32::from(address.parse::<std::net::Ipv4Addr>().expect("an IPv4 address"));
    format!("{}/26", std::net::Ipv4Addr::from(bits & !0x3f))
}
