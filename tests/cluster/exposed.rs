//! Services beyond their cluster IPs: node ports, load balancer addresses and externalIPs, from pods, from processes of the
//! nodes, and from a machine that is no node.

use harness::{Cluster, Namespace, eventually};
use serde_json::Value;

const OUTSIDE: &str = "sw-fabric";
const OUTSIDE_ADDRESS: &str = "10.89.0.1";

const MANIFEST: &str = "
apiVersion: v1
kind: Pod
metadata: {name: server, labels: {app: server}}
spec:
  nodeName: sw-node1
  terminationGracePeriodSeconds: 0
  containers:
  - {name: server, image: 'multitool:1'}
---
apiVersion: v1
kind: Pod
metadata: {name: client, labels: {app: client}}
spec:
  nodeName: sw-node2
  terminationGracePeriodSeconds: 0
  containers:
  - {name: client, image: 'multitool:1', args: [sleep]}
---
apiVersion: v1
kind: Service
metadata: {name: everywhere}
spec:
  type: LoadBalancer
  externalIPs: [192.0.2.80]
  selector: {app: server}
  ports:
  - {name: http, port: 80, targetPort: 8080}
  - {name: udp, port: 82, targetPort: 8082, protocol: UDP}
---
apiVersion: v1
kind: Service
metadata: {name: local}
spec:
  type: NodePort
  externalTrafficPolicy: Local
  selector: {app: server}
  ports:
  - {name: http, port: 80, targetPort: 8080}
";

fn node_port(namespace: &Namespace<'_>, service: &str, port: &str) -> String {
    let path = format!("{{.spec.ports[?(@.name==\"{port}\")].nodePort}}");
    namespace.kubectl(&format!("get service {service} -o jsonpath={path}")).ok()
}

/// What the server says of a request that a process of a host makes.
fn asked_on(cluster: &Cluster, host: &str, url: &str) -> Result<Value, String> {
    let run = cluster.on(host, &["curl", "-sS", "--max-time", "5", url]);
    if run.code != 0 {
        return Err(format!("{host}: {url}: {}", run.stderr));
    }
    serde_json::from_str(&run.stdout).map_err(|error| format!("{host}: {url}: {error}: {}", run.stdout))
}

const HOST_PORTS: &str = "
apiVersion: v1
kind: Pod
metadata: {name: server, labels: {app: server}}
spec:
  nodeName: sw-node1
  terminationGracePeriodSeconds: 0
  containers:
  - name: server
    image: 'multitool:1'
    ports:
    - {containerPort: 8080, hostPort: 18080}
    - {containerPort: 8080, hostPort: 18081, hostIP: 127.0.0.1}
    - {containerPort: 8082, hostPort: 18080, protocol: UDP}
---
apiVersion: v1
kind: Pod
metadata: {name: client, labels: {app: client}}
spec:
  nodeName: sw-node2
  terminationGracePeriodSeconds: 0
  containers:
  - {name: client, image: 'multitool:1', args: [sleep]}
";

#[test]
fn host_ports_lead_to_their_pod_for_as_long_as_it_lives_and_over_a_restart_of_the_agent() {
    let cluster = Cluster::running();
    let namespace = cluster.namespace("host-ports");
    namespace.apply(HOST_PORTS);
    namespace.wait_ready("app=server", 1, 60);
    namespace.wait_ready("app=client", 1, 60);
    let url = "http://10.89.0.11:18080/";
    let check = || {
        for host in ["sw-node1", "sw-node2", OUTSIDE] {
            eventually(20, &format!("{url} from {host}"), || asked_on(&cluster, host, url).map(drop));
        }
        for port in [18080, 18081] {
            let own = format!("http://127.0.0.1:{port}/");
            eventually(20, &own, || asked_on(&cluster, "sw-node1", &own).map(drop));
        }
        let inside = namespace.exec("client", &["multitool", "get", url]).ok();
        assert!(inside.contains("\"pod\":\"server\""), "{inside}");
        let datagram = namespace.exec("client", &["multitool", "udp", "10.89.0.11:18080", "hello"]).ok();
        assert!(datagram.contains("server: hello"), "{datagram}");
        asked_on(&cluster, "sw-node1", "http://10.89.0.11:18081/").expect_err("open at loopback only");
    };
    check();
    cluster.kill("sw-node1", "agent");
    check();
    namespace.kubectl("delete pod server --wait=true").ok();
    eventually(20, "the port closes", || match asked_on(&cluster, "sw-node2", url) {
        Ok(answer) => Err(answer.to_string()),
        Err(_) => Ok(()),
    });
}

#[test]
fn a_service_answers_at_its_node_port_and_external_addresses_from_pods_hosts_and_outside() {
    let cluster = Cluster::running();
    let nodes = cluster.nodes();
    let namespace = cluster.namespace("exposed");
    namespace.apply(MANIFEST);
    namespace.wait_ready("app=server", 1, 60);
    namespace.wait_ready("app=client", 1, 60);
    let status = r#"{"status":{"loadBalancer":{"ingress":[{"ip":"192.0.2.81"}]}}}"#;
    let patch = [
        "-n",
        "exposed",
        "patch",
        "service",
        "everywhere",
        "--subresource=status",
        "--type=merge",
        "-p",
        status,
    ];
    cluster.kubectl_with(&patch, "").ok();
    let (port, udp) =
        (node_port(&namespace, "everywhere", "http"), node_port(&namespace, "everywhere", "udp"));

    let address = |node: &String| {
        let path = "{.status.addresses[?(@.type==\"InternalIP\")].address}";
        let text = cluster.kubectl(&format!("get node {node} -o jsonpath={path}")).ok();
        text.split(' ').next().unwrap_or_default().to_owned()
    };
    let addresses: Vec<String> = nodes.iter().map(address).collect();
    let mut targets: Vec<String> =
        addresses.iter().map(|address| format!("http://{address}:{port}/")).collect();
    targets.extend(["http://192.0.2.80/".to_owned(), "http://192.0.2.81/".to_owned()]);
    for target in &targets {
        eventually(20, &format!("{target} from a pod"), || {
            let run = namespace.exec("client", &["multitool", "get", target]);
            if run.stdout.contains("\"pod\":\"server\"") { Ok(()) } else { Err(format!("{run:?}")) }
        });
        for node in &nodes {
            eventually(20, &format!("{target} from {node}"), || asked_on(&cluster, node, target).map(drop));
        }
    }
    for node in &nodes {
        asked_on(&cluster, node, &format!("http://127.0.0.1:{port}/")).expect("a node port of loopback");
    }
    for node in &addresses {
        // The server is on the first node: the others send on.
        let target = format!("http://{node}:{port}/");
        eventually(20, &target, || asked_on(&cluster, OUTSIDE, &target).map(drop));
        let datagram =
            namespace.exec("client", &["multitool", "udp", &format!("{node}:{udp}"), "hello"]).ok();
        assert!(datagram.contains("server: hello"), "{datagram}");
    }
}

#[test]
fn with_a_local_policy_only_the_servers_node_answers_outside_and_it_shows_who_asks() {
    let cluster = Cluster::running();
    let namespace = cluster.namespace("exposed-local");
    namespace.apply(MANIFEST);
    namespace.wait_ready("app=server", 1, 60);
    namespace.wait_ready("app=client", 1, 60);
    let port = node_port(&namespace, "local", "http");
    let at = |last: u8| format!("http://10.89.0.{last}:{port}/");
    eventually(20, "the server's node", || {
        let answer = asked_on(&cluster, OUTSIDE, &at(11))?;
        let client = answer["client"].as_str().unwrap_or_default();
        if client == OUTSIDE_ADDRESS { Ok(()) } else { Err(answer.to_string()) }
    });
    let elsewhere =
        asked_on(&cluster, OUTSIDE, &at(12)).expect_err("a node without the server answers nobody outside");
    assert!(elsewhere.contains("tim") || elsewhere.contains("refused"), "{elsewhere}");
    // Clients within the cluster get every endpoint, as with kube-proxy.
    let inside = namespace.exec("client", &["multitool", "get", &at(12)]).ok();
    assert!(inside.contains("\"pod\":\"server\""), "{inside}");
}

#[test]
fn a_pod_reaches_a_machine_that_knows_no_way_to_pods_and_is_seen_there_as_its_node() {
    let cluster = Cluster::running();
    let namespace = cluster.namespace("outside");
    namespace.apply(MANIFEST);
    namespace.wait_ready("app=client", 1, 60);
    let routes = cluster.on(OUTSIDE, &["ip", "route"]).ok();
    assert!(!routes.contains("10.244."), "the machine outside knows the way to pods: {routes}");
    // A registry listens there.
    let (url, registry) = (format!("http://{OUTSIDE_ADDRESS}:5000/v2/"), format!("{OUTSIDE_ADDRESS}:5000"));
    eventually(20, &format!("{url} from a pod"), || {
        let run = namespace.exec("client", &["multitool", "get", &url]);
        if run.code == 0 { Ok(()) } else { Err(format!("{run:?}")) }
    });
    let query = format!("http://agent/v1/flows?pod=outside/client&frontend={registry}");
    let shown =
        cluster.on("sw-node2", &["curl", "-sS", "--unix-socket", "/run/seaway/agent.sock", &query]).ok();
    let flow: Value = serde_json::from_str(shown.lines().next().unwrap_or_default())
        .unwrap_or_else(|error| panic!("{error}: {shown}"));
    assert_eq!(flow["way"], "masqueraded", "{flow}");
    assert_eq!(flow["clientName"], "pod outside/client", "{flow}");
    let seen_as = flow["seenAs"].as_str().unwrap_or_default();
    assert!(seen_as.starts_with("10.89.0.12:"), "{flow}");
}
