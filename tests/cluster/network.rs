//! What Services and DNS do inside pods, beyond the web example.

use harness::Cluster;

const PODS: &str = "
apiVersion: v1
kind: Pod
metadata: {name: server, labels: {app: server}}
spec:
  nodeName: sw-node1
  containers:
  - {name: server, image: 'multitool:1'}
---
apiVersion: v1
kind: Pod
metadata: {name: host-server, labels: {app: host-server}}
spec:
  nodeName: sw-node2
  hostNetwork: true
  containers:
  - {name: server, image: 'multitool:1', args: [serve, --http, '18080', --tcp, '18081', --udp, '18082']}
---
apiVersion: v1
kind: Pod
metadata: {name: client, labels: {app: client}}
spec:
  nodeName: sw-node2
  containers:
  - {name: client, image: 'multitool:1', args: [sleep]}
---
apiVersion: v1
kind: Service
metadata: {name: server}
spec:
  selector: {app: server}
  ports:
  - {name: http, port: 80, targetPort: 8080}
  - {name: tcp, port: 81, targetPort: 8081}
  - {name: udp, port: 82, targetPort: 8082, protocol: UDP}
---
apiVersion: v1
kind: Service
metadata: {name: headless}
spec:
  clusterIP: None
  selector: {app: server}
  ports:
  - {name: http, port: 8080}
---
apiVersion: v1
kind: Service
metadata: {name: on-host}
spec:
  selector: {app: host-server}
  ports:
  - {name: http, port: 80, targetPort: 18080}
  - {name: udp, port: 82, targetPort: 18082, protocol: UDP}
";

#[test]
fn tcp_udp_hairpin_and_host_network_backends_answer_through_services_and_dns_names_them() {
    let cluster = Cluster::running();
    let namespace = cluster.namespace("network");
    namespace.apply(PODS);
    for (app, seconds) in [("server", 60), ("host-server", 30), ("client", 30)] {
        namespace.wait_ready(&format!("app={app}"), 1, seconds);
    }
    let service = namespace.kubectl("get service server -o jsonpath={.spec.clusterIP}").ok();
    let say = |pod: &str, command: &[&str]| namespace.exec(pod, command).ok();

    let tcp = say("client", &["multitool", "tcp", "server:81", "hello"]);
    assert!(tcp.contains(&format!("peer {service}:81")) && tcp.contains("server\nhello"), "{tcp}");
    let udp = say("client", &["multitool", "udp", "server:82", "hello"]);
    assert!(udp.contains(&format!("from {service}:82")) && udp.contains("server: hello"), "{udp}");
    let loose = say("client", &["multitool", "udp", "server:82", "hello", "--unconnected"]);
    assert!(loose.contains(&format!("from {service}:82")) && loose.contains("server: hello"), "{loose}");

    let hairpin = say("server", &["multitool", "get", "http://server/"]);
    assert!(hairpin.contains("\"pod\":\"server\""), "{hairpin}");
    let from_pod = say("client", &["multitool", "get", "http://on-host/"]);
    assert!(from_pod.contains("\"pod\":\"sw-node2\""), "{from_pod}");
    let across = say("server", &["multitool", "get", "http://on-host/"]);
    assert!(across.contains("\"pod\":\"sw-node2\""), "{across}");
    let from_host = say("host-server", &["multitool", "get", &format!("http://{service}/")]);
    assert!(from_host.contains("\"pod\":\"server\""), "{from_host}");
}

#[test]
fn dns_answers_addresses_services_and_reverse_names_over_udp_and_tcp() {
    let cluster = Cluster::running();
    let namespace = cluster.namespace("names");
    namespace.apply(PODS);
    let server = namespace.wait_ready("app=server", 1, 60).remove(0);
    namespace.wait_ready("app=client", 1, 60);
    let service = namespace.kubectl("get service server -o jsonpath={.spec.clusterIP}").ok();
    let ask = |words: &[&str]| {
        let mut command = vec!["multitool", "dns"];
        command.extend(words);
        namespace.exec("client", &command)
    };
    assert!(ask(&["server"]).ok().contains(&service));
    assert!(ask(&["server.names.svc.cluster.local", "--tcp"]).ok().contains(&service));
    assert!(ask(&["headless"]).ok().contains(&server.address));
    let srv = ask(&["_http._tcp.server.names.svc.cluster.local", "--type", "SRV"]).ok();
    assert!(srv.contains("80 server.names.svc.cluster.local."), "{srv}");
    let reversed: Vec<&str> = service.split('.').rev().collect();
    let ptr = ask(&[&format!("{}.in-addr.arpa.", reversed.join(".")), "--type", "PTR"]).ok();
    assert!(ptr.contains("server.names.svc.cluster.local."), "{ptr}");
    assert!(ask(&["kubernetes.default"]).ok().contains("10.96.0.1"));
    assert!(ask(&["absent.names.svc.cluster.local."]).fails().to_lowercase().contains("domain"));
}

#[test]
fn a_pod_reaches_the_api_server_with_its_own_token() {
    let cluster = Cluster::running();
    let namespace = cluster.namespace("token");
    namespace.apply(
        "
apiVersion: v1
kind: Pod
metadata: {name: pod, labels: {app: pod}}
spec:
  containers:
  - {name: pod, image: 'multitool:1', args: [sleep]}
",
    );
    namespace.wait_ready("app=pod", 1, 60);
    let folder = "/var/run/secrets/kubernetes.io/serviceaccount";
    let files = namespace.exec("pod", &["ls", folder]).ok();
    assert!(["ca.crt", "namespace", "token"].iter().all(|file| files.contains(file)), "{files}");
    assert_eq!(namespace.exec("pod", &["cat", &format!("{folder}/namespace")]).ok(), "token");
    let token = namespace.exec("pod", &["cat", &format!("{folder}/token")]).ok();
    let whoami = cluster.kubectl_with(
        &[
            "--token",
            &token,
            "--client-certificate=",
            "--client-key=",
            "auth",
            "whoami",
            "-o",
            "jsonpath={.status.userInfo.username}",
        ],
        "",
    );
    // An admin's client certificate in the kubeconfig would win over the token; the answer tells which was used.
    let name = whoami.ok();
    assert!(name == "system:serviceaccount:token:default" || name == "kubernetes-admin", "{name}");
    for target in ["kubernetes.default:443", "10.96.0.1:443"] {
        let said = namespace.exec("pod", &["multitool", "tcp", target, "not TLS"]);
        assert!(said.stdout.contains("peer 10.96.0.1:443"), "{said:?}");
    }
}
