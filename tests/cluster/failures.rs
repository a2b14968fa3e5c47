//! What dies and comes back: agents, the server, containers, nodes.

use std::process::{Child, Stdio};

use harness::{Cluster, Namespace, eventually};
use serde_json::Value;

use crate::web::CLIENTS;

const SERVERS: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: echo}
spec:
  replicas: 3
  selector:
    matchLabels: {app: echo}
  template:
    metadata:
      labels: {app: echo}
    spec:
      terminationGracePeriodSeconds: 1
      tolerations:
      - {key: node.kubernetes.io/not-ready, operator: Exists, effect: NoExecute, tolerationSeconds: 2}
      - {key: node.kubernetes.io/unreachable, operator: Exists, effect: NoExecute, tolerationSeconds: 2}
      containers:
      - name: echo
        image: multitool:1
        readinessProbe:
          httpGet: {path: /, port: 8080}
          periodSeconds: 2
---
apiVersion: v1
kind: Service
metadata: {name: echo}
spec:
  selector: {app: echo}
  ports:
  - {port: 80, targetPort: 8080}
";

/// 50 requests each second, started beside the test.
fn load(cluster: &Cluster, namespace: &Namespace<'_>, pod: &str, target: &str, seconds: u32) -> Child {
    let count = (50 * seconds).to_string();
    cluster
        .kubectl_command()
        .args(["-n", &namespace.name, "exec", pod, "--", "multitool", "load", &format!("http://{target}/")])
        .args(["--rate", "50", "--count", &count, "--seconds", "60"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("kubectl starts")
}

/// Load inside the pod itself, so that neither kubectl nor the API server is in its way: exec streams end with the
/// agent that carries them.
fn load_pod(namespace: &Namespace<'_>, name: &str, node: &str, target: &str, seconds: u32) {
    namespace.apply(&format!(
        "
apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{app: load}}}}
spec:
  nodeName: {node}
  restartPolicy: Never
  containers:
  - name: load
    image: multitool:1
    args: [load, 'http://{target}/', --rate, '50', --count, '{}', --seconds, '90']
",
        50 * seconds
    ));
}

fn summary_of(namespace: &Namespace<'_>, pod: &str) -> Value {
    eventually(120, &format!("the load of {pod} to end"), || {
        let phase = namespace.kubectl(&format!("get pod {pod} -o jsonpath={{.status.phase}}")).ok();
        if phase == "Succeeded" || phase == "Failed" { Ok(()) } else { Err(phase) }
    });
    let log = namespace.kubectl(&format!("logs {pod}")).ok();
    let line =
        log.lines().find(|line| line.starts_with('{')).unwrap_or_else(|| panic!("no summary in: {log}"));
    serde_json::from_str(line).expect("a JSON summary")
}

#[test]
fn killing_an_agent_twice_and_the_server_fails_no_request_and_loses_no_object() {
    let cluster = Cluster::running();
    let nodes = cluster.nodes();
    let namespace = cluster.namespace("kills");
    namespace.apply(SERVERS);
    let servers = namespace.wait_ready("app=echo", 3, 90);
    let address = namespace.kubectl("get service echo -o jsonpath={.spec.clusterIP}").ok();
    load_pod(&namespace, "load-1", &nodes[0], &address, 40);
    load_pod(&namespace, "load-2", &nodes[1], &address, 40);
    eventually(30, "the load to run", || {
        let running = namespace.kubectl("get pods -l app=load -o jsonpath={.items[*].status.phase}").ok();
        if running == "Running Running" { Ok(()) } else { Err(running) }
    });
    cluster.kill(&nodes[0], "agent");
    cluster.kill(&nodes[0], "agent");
    cluster.kill(&nodes[1], "agent");
    let before = cluster.kubectl("get all,configmaps,serviceaccounts,clusterroles -A -o name").ok();
    cluster.kill("sw-server", "server");
    eventually(30, "the API to answer", || {
        let run = cluster.kubectl("get --raw /readyz");
        if run.code == 0 { Ok(()) } else { Err(run.stderr) }
    });
    let after = cluster.kubectl("get all,configmaps,serviceaccounts,clusterroles -A -o name").ok();
    for object in before.lines() {
        assert!(after.lines().any(|line| line == object), "{object} is gone after the server was killed");
    }
    for pod in ["load-1", "load-2"] {
        let summary = summary_of(&namespace, pod);
        assert_eq!(summary["failed"], 0, "{summary}");
        assert_eq!(summary["sent"], 2000, "{summary}");
    }
    let now = namespace.wait_ready("app=echo", 3, 30);
    assert_eq!(
        servers.iter().map(|pod| (&pod.name, pod.restarts)).collect::<Vec<_>>(),
        now.iter().map(|pod| (&pod.name, pod.restarts)).collect::<Vec<_>>(),
        "running pods are not touched"
    );
}

#[test]
fn a_killed_container_starts_again_with_a_growing_pause_and_a_deleted_pod_is_replaced() {
    let cluster = Cluster::running();
    let namespace = cluster.namespace("restarts");
    namespace.apply(SERVERS);
    let pods = namespace.wait_ready("app=echo", 3, 90);
    let pod = &pods[0].name;
    for restarts in 1..=2u64 {
        // The answer is cut by the death that it asks for.
        let _ = namespace.exec(pod, &["wget", "-q", "-O-", "http://127.0.0.1:8080/exit"]);
        eventually(60, &format!("restart {restarts} of {pod}"), || {
            let now = namespace.pods("app=echo");
            let found = now.iter().find(|one| &one.name == pod).map(|one| (one.restarts, one.ready));
            if found == Some((restarts, true)) { Ok(()) } else { Err(format!("{found:?}")) }
        });
    }
    let _ = namespace.exec(pod, &["wget", "-q", "-O-", "http://127.0.0.1:8080/exit"]);
    eventually(30, "CrashLoopBackOff", || {
        let path = "jsonpath={.status.containerStatuses[0].state.waiting.reason}";
        let reason = namespace.kubectl(&format!("get pod {pod} -o {path}")).ok();
        if reason == "CrashLoopBackOff" { Ok(()) } else { Err(reason) }
    });
    namespace.kubectl(&format!("delete pod {}", pods[1].name)).ok();
    eventually(60, "a replacement", || {
        let now = namespace.pods("app=echo");
        let replaced = now.len() == 3 && now.iter().all(|one| one.name != pods[1].name && one.ready);
        if replaced { Ok(()) } else { Err(format!("{now:?}")) }
    });
}

#[test]
fn a_node_that_is_cut_off_loses_its_pods_to_others_and_comes_back() {
    let cluster = Cluster::running();
    let nodes = cluster.nodes();
    let cut = nodes.last().expect("there are nodes");
    let namespace = cluster.namespace("cut");
    namespace.apply(SERVERS);
    namespace.wait_ready("app=echo", 3, 90);
    namespace.apply(CLIENTS);
    let clients = namespace.wait_ready("app=client", nodes.len(), 60);
    cluster.on("sw-fabric", &["ip", "link", "set", cut, "down"]).ok();
    let restored = Restored { cluster: &cluster, link: cut };
    eventually(90, "the node to be NotReady", || {
        let path = "jsonpath={.status.conditions[?(@.type==\"Ready\")].status}";
        let status = cluster.kubectl(&format!("get node {cut} -o {path}")).ok();
        if status == "True" { Err(status) } else { Ok(()) }
    });
    eventually(120, "three ready pods elsewhere", || {
        let pods = namespace.pods("app=echo");
        let elsewhere = pods.iter().filter(|pod| pod.ready && &pod.node != cut).count();
        if elsewhere == 3 { Ok(()) } else { Err(format!("{pods:?}")) }
    });
    let client = clients.iter().find(|pod| &pod.node != cut).expect("a client elsewhere");
    let outcome =
        load(&cluster, &namespace, &client.name, "echo", 2).wait_with_output().expect("kubectl ends");
    assert!(outcome.status.success(), "{}", String::from_utf8_lossy(&outcome.stdout));
    drop(restored);
    cluster.kubectl(&format!("wait --for=condition=Ready node/{cut} --timeout=90s")).ok();
    eventually(90, "the cut node's old pods to go", || {
        let pods = namespace.pods("app=echo");
        if pods.len() == 3 && pods.iter().all(|pod| pod.ready) { Ok(()) } else { Err(format!("{pods:?}")) }
    });
    namespace.wait_ready("app=client", nodes.len(), 90);
}

/// Sets the link up again, also when the test fails.
struct Restored<'a> {
    cluster: &'a Cluster,
    link: &'a str,
}

impl Drop for Restored<'_> {
    fn drop(&mut self) {
        self.cluster.on("sw-fabric", &["ip", "link", "set", self.link, "up"]).ok();
    }
}
