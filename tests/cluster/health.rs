//! What load balancers and the clients of datagram Services see of a node: health checks, source ranges, and the end of a
//! socket whose backend is gone.

use harness::{Cluster, Namespace, eventually};
use serde_json::Value;

const OUTSIDE: &str = "sw-fabric";
const BALANCER: &str = "192.0.2.91";

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
metadata: {name: local}
spec:
  type: LoadBalancer
  externalTrafficPolicy: Local
  loadBalancerSourceRanges: [198.51.100.0/24]
  selector: {app: server}
  ports:
  - {name: http, port: 80, targetPort: 8080}
  - {name: udp, port: 82, targetPort: 8082, protocol: UDP}
";

const HOLDER: &str = "
apiVersion: v1
kind: Pod
metadata: {name: holder, labels: {app: holder}}
spec:
  nodeName: sw-node2
  restartPolicy: Never
  terminationGracePeriodSeconds: 0
  containers:
  - {name: holder, image: 'multitool:1', args: [hold, 'local:82']}
";

/// Status and body of a page, asked from outside the cluster.
fn page(cluster: &Cluster, url: &str) -> Result<(String, Value), String> {
    let run = cluster.on(OUTSIDE, &["curl", "-sS", "--max-time", "5", "-w", "\n%{http_code}", url]);
    let (body, status) = run.stdout.trim_end().rsplit_once('\n').ok_or(format!("{url}: {run:?}"))?;
    Ok((status.to_owned(), serde_json::from_str(body).map_err(|error| format!("{url}: {error}: {body}"))?))
}

fn field(namespace: &Namespace<'_>, path: &str) -> String {
    namespace.kubectl(&format!("get service local -o jsonpath={path}")).ok()
}

#[test]
fn a_balancer_finds_the_nodes_that_have_endpoints_and_a_node_that_goes_says_so() {
    let cluster = Cluster::running();
    let namespace = cluster.namespace("health");
    namespace.apply(MANIFEST);
    namespace.wait_ready("app=server", 1, 60);
    let port = field(&namespace, "{.spec.healthCheckNodePort}");
    for (last, status, count) in [(11, "200", 1), (12, "503", 0)] {
        eventually(20, &format!("the check of node 10.89.0.{last}"), || {
            let (found, body) = page(&cluster, &format!("http://10.89.0.{last}:{port}/"))?;
            let right =
                found == status && body["localEndpoints"] == count && body["service"]["name"] == "local";
            if right { Ok(()) } else { Err(format!("{found} {body}")) }
        });
    }

    let asked = |name: &str| page(&cluster, &format!("http://10.89.0.13:10256/{name}"));
    let expect = |name: &str, status: &str| {
        eventually(20, name, || {
            let (found, body) = asked(name)?;
            if found == status { Ok(()) } else { Err(format!("{found} {body}")) }
        });
    };
    expect("healthz", "200");
    cluster.kubectl("taint node sw-node3 ToBeDeletedByClusterAutoscaler=1:PreferNoSchedule").ok();
    expect("healthz", "503");
    expect("livez", "200");
    cluster.kubectl("taint node sw-node3 ToBeDeletedByClusterAutoscaler-").ok();
    expect("healthz", "200");
}

#[test]
fn only_clients_in_a_source_range_reach_a_balancers_address() {
    let cluster = Cluster::running();
    let namespace = cluster.namespace("ranges");
    namespace.apply(MANIFEST);
    namespace.wait_ready("app=server", 1, 60);
    namespace.wait_ready("app=client", 1, 60);
    let status = format!(r#"{{"status":{{"loadBalancer":{{"ingress":[{{"ip":"{BALANCER}"}}]}}}}}}"#);
    let patch = |subresource: &str, patch: &str| {
        let mut arguments = vec!["-n", "ranges", "patch", "service", "local", "--type=merge", "-p", patch];
        if !subresource.is_empty() {
            arguments.push(subresource);
        }
        cluster.kubectl_with(&arguments, "").ok();
    };
    patch("--subresource=status", &status);
    let url = format!("http://{BALANCER}/");
    let from_pod = || namespace.exec("client", &["multitool", "get", &url]);
    let from_node = || cluster.on("sw-node2", &["curl", "-sS", "--max-time", "5", &url]);
    eventually(20, "a node in no range is refused at once", || {
        let run = from_node();
        if run.code == 7 { Ok(()) } else { Err(format!("{run:?}")) }
    });
    assert_ne!(from_pod().code, 0);
    // By the cluster IP nothing is asked.
    namespace.exec("client", &["multitool", "get", "http://local/"]).ok();

    patch("", r#"{"spec":{"loadBalancerSourceRanges":["10.244.0.0/16","10.89.0.12/32"]}}"#);
    eventually(20, "a pod in a range", || {
        let run = from_pod();
        if run.stdout.contains("\"pod\":\"server\"") { Ok(()) } else { Err(format!("{run:?}")) }
    });
    eventually(20, "a node in a range", || {
        let run = from_node();
        if run.stdout.contains("\"pod\":\"server\"") { Ok(()) } else { Err(format!("{run:?}")) }
    });
}

#[test]
fn a_pods_datagram_socket_is_ended_with_the_pod_that_its_service_gave_it() {
    let cluster = Cluster::running();
    let namespace = cluster.namespace("stale");
    namespace.apply(MANIFEST);
    namespace.wait_ready("app=server", 1, 60);
    namespace.apply(HOLDER);
    let log = || namespace.kubectl("logs holder").stdout;
    eventually(60, "the socket is connected", || {
        let log = log();
        if log.contains("holding server: hold") { Ok(()) } else { Err(log) }
    });
    namespace.kubectl("delete pod server --wait=false").ok();
    eventually(60, "the socket is ended", || {
        let log = log();
        if log.contains("ended: ConnectionAborted") { Ok(()) } else { Err(log) }
    });
}
