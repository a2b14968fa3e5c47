//! Both IP families at once: addresses of pods and Services, routes, datapath and DNS.

use std::{collections::BTreeSet, net::Ipv6Addr};

use harness::{Cluster, Namespace, eventually};
use serde_json::Value;

use crate::web::CLIENTS;

const SERVERS: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: server}
spec:
  replicas: 3
  selector:
    matchLabels: {app: server}
  template:
    metadata:
      labels: {app: server}
    spec:
      terminationGracePeriodSeconds: 0
      topologySpreadConstraints:
      - maxSkew: 1
        topologyKey: kubernetes.io/hostname
        whenUnsatisfiable: DoNotSchedule
        labelSelector:
          matchLabels: {app: server}
      containers:
      - {name: server, image: 'multitool:1'}
---
apiVersion: v1
kind: Service
metadata: {name: both}
spec:
  ipFamilyPolicy: RequireDualStack
  selector: {app: server}
  ports:
  - {name: http, port: 80, targetPort: 8080}
  - {name: udp, port: 82, targetPort: 8082, protocol: UDP}
---
apiVersion: v1
kind: Service
metadata: {name: six}
spec:
  ipFamilies: [IPv6]
  selector: {app: server}
  ports:
  - {name: http, port: 80, targetPort: 8080}
";

/// The addresses of each pod, from its status.
fn pod_ips(namespace: &Namespace<'_>, selector: &str) -> Vec<(String, String, Vec<String>)> {
    let text = namespace.kubectl(&format!("get pods -l {selector} -o json")).ok();
    let pods: Value = serde_json::from_str(&text).expect("JSON");
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    pods["items"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|pod| {
            let ips = pod["status"]["podIPs"].as_array().into_iter().flatten();
            let ips = ips.map(|ip| text(&ip["ip"])).collect();
            (text(&pod["metadata"]["name"]), text(&pod["spec"]["nodeName"]), ips)
        })
        .collect()
}

#[test]
fn services_answer_in_both_families_from_every_node() {
    let cluster = Cluster::running();
    let nodes = cluster.nodes();
    let namespace = cluster.namespace("dual");
    namespace.apply(SERVERS);
    namespace.apply(CLIENTS);
    namespace.wait_ready("app=server", 3, 60);
    let clients = namespace.wait_ready("app=client", nodes.len(), 60);
    for (pod, _, ips) in pod_ips(&namespace, "app=server") {
        let families: Vec<bool> = ips.iter().map(|ip| ip.contains(':')).collect();
        assert_eq!(families, [false, true], "{pod} has {ips:?}");
    }
    let both: Value =
        serde_json::from_str(&namespace.kubectl("get service both -o json").ok()).expect("JSON");
    assert_eq!(both["spec"]["ipFamilies"], serde_json::json!(["IPv4", "IPv6"]));
    let six = namespace.kubectl("get service six -o jsonpath={.spec.clusterIP}").ok();
    let text = |value: &Value| value.as_str().expect("an address").to_owned();
    let (four, second) = (text(&both["spec"]["clusterIPs"][0]), text(&both["spec"]["clusterIPs"][1]));
    for address in [&second, &six] {
        assert!(address.parse::<Ipv6Addr>().is_ok() && address.starts_with("fd00:10:96::"), "{address}");
    }
    let targets = [format!("http://{four}/"), format!("http://[{second}]/"), format!("http://[{six}]/")];
    for client in &clients {
        for target in targets.iter().map(String::as_str).chain(["http://six/"]) {
            every_server_answers(&namespace, &client.name, target);
        }
        let udp =
            namespace.exec(&client.name, &["multitool", "udp", &format!("[{second}]:82"), "hello"]).ok();
        assert!(udp.contains(&format!("from [{second}]:82")) && udp.contains(": hello"), "{udp}");
    }
    names(&namespace, &clients[0].name, &four, &second, &six);
}

/// As soon as the node's maps have all three, 60 requests reach each of them.
fn every_server_answers(namespace: &Namespace<'_>, client: &str, target: &str) {
    eventually(20, "all servers to answer", || {
        let mut seen = BTreeSet::new();
        for _ in 0..60 {
            let answer = namespace.exec(client, &["multitool", "get", target]);
            if answer.code != 0 {
                return Err(format!("{target} from {client}: {answer:?}"));
            }
            let answer: Value = serde_json::from_str(&answer.stdout).map_err(|error| error.to_string())?;
            seen.insert(answer["pod"].as_str().unwrap_or_default().to_owned());
            if seen.len() == 3 {
                return Ok(());
            }
        }
        Err(format!("{target} from {client}: {seen:?}"))
    });
}

fn names(namespace: &Namespace<'_>, client: &str, four: &str, second: &str, six: &str) {
    let ask =
        |name: &str, kind: &str| namespace.exec(client, &["multitool", "dns", name, "--type", kind]).stdout;
    let (a, aaaa) = (ask("both", "A"), ask("both", "AAAA"));
    assert!(a.contains(four) && !a.contains(second), "{a}");
    assert!(aaaa.contains(second) && !aaaa.contains(four), "{aaaa}");
    assert!(ask("six", "AAAA").contains(six));
    let nibbles: Vec<String> = second
        .parse::<Ipv6Addr>()
        .expect("an address")
        .octets()
        .iter()
        .flat_map(|octet| [octet >> 4, octet & 15])
        .map(|nibble| format!("{nibble:x}"))
        .rev()
        .collect();
    let reverse = ask(&format!("{}.ip6.arpa.", nibbles.join(".")), "PTR");
    assert!(reverse.contains("both.dual.svc.cluster.local."), "{reverse}");
}

#[test]
fn pods_reach_each_other_over_ipv6_on_routes_that_bgp_announced() {
    let cluster = Cluster::running();
    let nodes = cluster.nodes();
    let namespace = cluster.namespace("six");
    namespace.apply(SERVERS);
    namespace.apply(CLIENTS);
    namespace.wait_ready("app=server", 3, 60);
    let clients = namespace.wait_ready("app=client", nodes.len(), 60);
    let servers = pod_ips(&namespace, "app=server");
    for client in &clients {
        let routes = cluster.on(&client.node, &["ip", "-6", "-N", "route"]).ok();
        for (name, node, ips) in &servers {
            let target = format!("http://[{}]:8080/", ips[1]);
            let answer = namespace.exec(&client.name, &["multitool", "get", &target]).ok();
            assert!(answer.contains(name.as_str()), "{answer}");
            if node == &client.node {
                continue;
            }
            let bits = u128::from(ips[1].parse::<Ipv6Addr>().expect("an address"));
            let block = format!("{}/122", Ipv6Addr::from(bits & !0x3f));
            let learned = |route: &str| {
                route.starts_with(&block)
                    && route.contains("proto 180")
                    && (route.contains("via fd00:89::") || route.contains("nhid"))
            };
            assert!(
                routes.lines().any(learned),
                "{} has no route of ours to {block}:\n{routes}",
                client.node
            );
        }
    }
}
