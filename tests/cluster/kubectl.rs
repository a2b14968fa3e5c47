//! kubectl's commands, as a user types them.

use std::process::Stdio;
use std::time::Duration;

use harness::{Cluster, Namespace, eventually, run};

const WEB: &str = include_str!("web.yaml");

fn ready(namespace: &Namespace<'_>) {
    namespace.kubectl("rollout status deployment/web --timeout=120s").ok();
}

#[track_caller]
fn holds(text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "`{word}` is missing in:\n{text}");
    }
}

#[test]
fn reading_commands_print_what_they_print_against_kubernetes() {
    let cluster = Cluster::running();
    let namespace = cluster.namespace("reading");
    holds(&namespace.apply(WEB), &["deployment.apps/web created"]);
    ready(&namespace);
    holds(
        &namespace.kubectl("get pods").ok(),
        &["NAME", "READY", "STATUS", "RESTARTS", "AGE", "1/1", "Running"],
    );
    holds(
        &namespace.kubectl("get pods -o wide").ok(),
        &["IP", "NODE", "NOMINATED NODE", "READINESS GATES", "10.244."],
    );
    holds(&namespace.kubectl("get deployment web").ok(), &["UP-TO-DATE", "AVAILABLE", "2/2"]);
    holds(
        &namespace.kubectl("get deployment web -o yaml").ok(),
        &["kind: Deployment", "observedGeneration:"],
    );
    holds(&namespace.kubectl("get deploy web -o jsonpath={.spec.replicas}").ok(), &["2"]);
    holds(&namespace.kubectl("get pods -l app=web -o name").ok(), &["pod/web-"]);
    assert_eq!(namespace.kubectl("get pods -l app!=web -o name").ok(), "");
    let running = namespace.kubectl("get pods --field-selector status.phase=Running -o name").ok();
    assert_eq!(running.lines().count(), 2, "{running}");
    holds(&cluster.kubectl("get pods -A").ok(), &["NAMESPACE", "reading"]);
    holds(
        &cluster.kubectl("get nodes -o wide").ok(),
        &["Ready", "INTERNAL-IP", "10.89.0.11", "containerd://"],
    );
    holds(
        &namespace.kubectl("describe pod -l app=web").ok(),
        &["Node:", "Containers:", "Conditions:", "Events:", "Started"],
    );
    holds(
        &namespace.kubectl("describe deployment web").ok(),
        &["RollingUpdate", "2 desired", "ScalingReplicaSet"],
    );
    holds(
        &cluster.kubectl("describe node sw-node1").ok(),
        &["Capacity:", "Allocatable:", "Non-terminated Pods", "Lease:"],
    );
    holds(&cluster.kubectl("describe service kubernetes").ok(), &["Endpoints:", "10.89.0.10:6443"]);
    holds(&cluster.kubectl("explain deployment.spec.strategy").ok(), &["RollingUpdate", "Deployment"]);
    holds(
        &cluster.kubectl("explain pods.spec.containers.livenessProbe").ok(),
        &["Probe", "failureThreshold"],
    );
    let resources = cluster.kubectl("api-resources").ok();
    holds(&resources, &["deployments", "deploy", "apps/v1", "svc", "networkpolicies", "cronjobs"]);
    holds(&cluster.kubectl("api-versions").ok(), &["apps/v1", "batch/v1", "v1"]);
    holds(&cluster.kubectl("version").ok(), &["Server Version: v1.36"]);
    holds(&cluster.kubectl("cluster-info").ok(), &["control plane", "is running at", "https://127.0.0.1"]);
    holds(&cluster.kubectl("auth can-i create pods").ok(), &["yes"]);
    cluster.kubectl("auth can-i create pods --as system:anonymous").fails();
    holds(&cluster.kubectl("auth whoami").ok(), &["kubernetes-admin", "system:masters"]);
    holds(&namespace.kubectl("events").ok(), &["SuccessfulCreate", "Scheduled"]);
    holds(&namespace.kubectl("get events").ok(), &["REASON"]);
    watched(&cluster, &namespace);
}

/// `get -w` prints rows as they change.
fn watched(cluster: &Cluster, namespace: &Namespace<'_>) {
    let mut watch = cluster
        .kubectl_command()
        .args(["-n", &namespace.name, "get", "configmaps", "-w", "--request-timeout=8s"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("kubectl starts");
    eventually(20, "the ConfigMap", || {
        let made = namespace.kubectl("create configmap watched --from-literal=a=b");
        if made.code == 0 || made.stderr.contains("exists") { Ok(()) } else { Err(made.stderr) }
    });
    // The watch ends by its own time limit.
    let deadline = std::time::Instant::now() + Duration::from_secs(20);
    while watch.try_wait().expect("a child").is_none() && std::time::Instant::now() < deadline {
        std::thread::yield_now();
        std::thread::park_timeout(Duration::from_millis(50));
    }
    let _ = watch.kill();
    let output = watch.wait_with_output().expect("kubectl ends");
    holds(&String::from_utf8_lossy(&output.stdout), &["NAME", "watched"]);
}

#[test]
fn writing_commands_change_what_they_say() {
    let cluster = Cluster::running();
    let namespace = cluster.namespace("writing");
    namespace.apply(WEB);
    holds(&namespace.apply(WEB), &["deployment.apps/web unchanged"]);
    // A field that the manifest no longer has is pruned, and one that changed is changed.
    let pruned = WEB
        .replace("        env:\n        - {name: COLOUR, value: blue}\n", "")
        .replace("tier: front", "tier: back");
    holds(&namespace.apply(&pruned), &["deployment.apps/web configured"]);
    assert_eq!(
        namespace.kubectl("get deploy web -o jsonpath={.spec.template.spec.containers[0].env}").ok(),
        ""
    );
    holds(&namespace.kubectl("get deploy web -o jsonpath={.metadata.labels.tier}").ok(), &["back"]);
    let diff = cluster
        .kubectl_with(&["diff", "-n", "writing", "-f", "-"], &pruned.replace("replicas: 2", "replicas: 4"));
    assert_eq!(diff.code, 1, "{diff:?}");
    holds(&diff.stdout, &["-  replicas: 2", "+  replicas: 4"]);
    ready(&namespace);
    holds(&namespace.kubectl("scale deployment web --replicas=3").ok(), &["scaled"]);
    ready(&namespace);
    namespace.wait_ready("app=web", 3, 60);
    rollouts(&namespace);
    holds(&namespace.kubectl("label deployment web colour=red").ok(), &["labeled"]);
    holds(&namespace.kubectl("annotate deployment web note=kept").ok(), &["annotated"]);
    let edit = run(
        cluster
            .kubectl_command()
            .args(["-n", "writing", "edit", "deployment", "web"])
            .env("EDITOR", "sed -i s/note:.kept/note:\\ edited/"),
        "",
    );
    holds(&edit.ok(), &["edited"]);
    holds(&namespace.kubectl("get deploy web -o jsonpath={.metadata.annotations.note}").ok(), &["edited"]);
    patches(&cluster, &namespace);
    // The status moves on for a while, and an old resourceVersion is refused, rightly.
    eventually(30, "an undisturbed replace", || {
        let exported = namespace.kubectl("get deploy web -o yaml").ok();
        let replaced =
            cluster.kubectl_with(&["replace", "-f", "-"], &exported.replace("replicas: 3", "replicas: 1"));
        if replaced.code == 0 { Ok(()) } else { Err(replaced.stderr) }
    });
    namespace.wait_ready("app=web", 1, 60);
    holds(&namespace.kubectl("expose deployment web --port=80").ok(), &["service/web exposed"]);
    holds(&namespace.kubectl("get service web").ok(), &["ClusterIP", "80/TCP"]);
    eventually(20, "the endpoints", || {
        let slices = namespace.kubectl("get endpointslices -l kubernetes.io/service-name=web").ok();
        if slices.contains("10.244.") { Ok(()) } else { Err(slices) }
    });
    deletes(&cluster, &namespace, &pruned);
}

fn rollouts(namespace: &Namespace<'_>) {
    holds(&namespace.kubectl("set image deployment/web nginx=nginx:1.22.1").ok(), &["image updated"]);
    ready(namespace);
    let image = "get deploy web -o jsonpath={.spec.template.spec.containers[0].image}";
    holds(&namespace.kubectl(image).ok(), &["nginx:1.22.1"]);
    let history = namespace.kubectl("rollout history deployment/web").ok();
    assert!(
        history.lines().filter(|line| line.starts_with(|c: char| c.is_ascii_digit())).count() >= 2,
        "{history}"
    );
    holds(&namespace.kubectl("rollout undo deployment/web").ok(), &["rolled back"]);
    ready(namespace);
    assert_eq!(namespace.kubectl(image).ok(), "nginx:1.22");
    holds(&namespace.kubectl("rollout restart deployment/web").ok(), &["restarted"]);
    ready(namespace);
    holds(
        &namespace.kubectl("wait --for=condition=Available deployment/web --timeout=60s").ok(),
        &["condition met"],
    );
}

fn patches(cluster: &Cluster, namespace: &Namespace<'_>) {
    let patch = |kind: &str, text: &str| {
        cluster
            .kubectl_with(
                &["-n", &namespace.name, "patch", "deployment", "web", "--type", kind, "-p", text],
                "",
            )
            .ok()
    };
    patch(
        "strategic",
        r#"{"spec":{"template":{"spec":{"containers":[{"name":"nginx","env":[{"name":"A","value":"1"}]}]}}}}"#,
    );
    patch("merge", r#"{"metadata":{"labels":{"merged":"yes"}}}"#);
    patch("json", r#"[{"op":"add","path":"/metadata/labels/jsoned","value":"yes"}]"#);
    let labels = namespace.kubectl("get deploy web -o jsonpath={.metadata.labels}").ok();
    holds(&labels, &["\"merged\":\"yes\"", "\"jsoned\":\"yes\"", "\"colour\":\"red\""]);
    let containers = namespace.kubectl("get deploy web -o jsonpath={.spec.template.spec.containers}").ok();
    holds(&containers, &["nginx:1.22", "\"name\":\"A\""]);
}

fn deletes(cluster: &Cluster, namespace: &Namespace<'_>, manifest: &str) {
    holds(
        &namespace.kubectl("run alone --image=busybox:1.36 --labels=kind=alone -- sleep 3600").ok(),
        &["pod/alone created"],
    );
    namespace.wait_ready("kind=alone", 1, 60);
    holds(&namespace.kubectl("delete pod -l kind=alone --grace-period=1").ok(), &["\"alone\" deleted"]);
    holds(&namespace.kubectl("create configmap one --from-literal=a=b").ok(), &["created"]);
    holds(
        &cluster
            .kubectl_with(
                &["-n", &namespace.name, "create", "-f", "-"],
                "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: two}\n",
            )
            .ok(),
        &["created"],
    );
    let deleted = cluster.kubectl_with(&["-n", &namespace.name, "delete", "-f", "-"], manifest).ok();
    holds(&deleted, &["\"web\" deleted"]);
    eventually(60, "the pods of the Deployment to go", || {
        let pods = namespace.pods("app=web");
        if pods.is_empty() { Ok(()) } else { Err(format!("{pods:?}")) }
    });
}

#[test]
fn logs_exec_copy_and_forwarding_reach_into_a_pod() {
    let cluster = Cluster::running();
    let namespace = cluster.namespace("streams");
    namespace.apply(
        "
apiVersion: v1
kind: Pod
metadata: {name: talker, labels: {app: talker}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
  - name: talker
    image: multitool:1
    command: [sh, -c, 'for i in 1 2 3 4 5; do echo line $i; done; if [ ! -e /data/again ]; then touch /data/again; sleep 2; exit 3; fi; exec multitool serve']
    volumeMounts: [{name: data, mountPath: /data}]
  volumes: [{name: data, emptyDir: {}}]
",
    );
    eventually(60, "a restarted, ready pod", || {
        let pods = namespace.pods("app=talker");
        let restarted = pods.first().is_some_and(|pod| pod.ready && pod.restarts == 1);
        if restarted { Ok(()) } else { Err(format!("{pods:?}")) }
    });
    eventually(30, "the restarted container to serve", || {
        let log = namespace.kubectl("logs talker").ok();
        if log.contains("serving as talker") { Ok(()) } else { Err(log) }
    });
    let log = namespace.kubectl("logs talker").ok();
    holds(&log, &["line 1", "line 5", "serving as talker"]);
    assert_eq!(namespace.kubectl("logs talker --tail=1").ok().trim(), "serving as talker");
    let previous = namespace.kubectl("logs talker -p").ok();
    assert!(previous.contains("line 5") && !previous.contains("serving"), "{previous}");
    let follow = run(
        std::process::Command::new("timeout")
            .arg("3")
            .arg("kubectl")
            .arg("--kubeconfig")
            .arg(cluster.kubeconfig())
            .args(["-n", "streams", "logs", "-f", "talker"]),
        "",
    );
    holds(&follow.stdout, &["serving as talker"]);
    assert_eq!(namespace.exec("talker", &["sh", "-c", "echo out; echo err >&2; exit 7"]).code, 7);
    let piped =
        cluster.kubectl_with(&["-n", "streams", "exec", "-i", "talker", "--", "wc", "-c"], "twelve bytes");
    assert_eq!(piped.ok().trim(), "12");
    let tty = run(
        std::process::Command::new("script")
            .args(["-qec"])
            .arg(format!(
                "kubectl --kubeconfig {} -n streams exec -it talker -- sh -c 'test -t 0 && echo terminal'",
                cluster.kubeconfig().display()
            ))
            .arg("/dev/null"),
        "",
    );
    holds(&tty.stdout, &["terminal"]);
    copies(&cluster, &namespace);
    forwards(&cluster, &namespace);
}

fn copies(cluster: &Cluster, namespace: &Namespace<'_>) {
    let folder = cluster.host("copied");
    std::fs::create_dir_all(&folder).expect("a folder");
    let text = "kept as it is\n".repeat(20_000);
    std::fs::write(folder.join("sent"), &text).expect("a file");
    namespace.kubectl(&format!("cp {} talker:/tmp/there", folder.join("sent").display())).ok();
    namespace.kubectl(&format!("cp talker:/tmp/there {}", folder.join("back").display())).ok();
    assert_eq!(std::fs::read_to_string(folder.join("back")).expect("a file"), text);
}

fn forwards(cluster: &Cluster, namespace: &Namespace<'_>) {
    use std::io::{BufRead, BufReader, Read, Write};
    let mut forward = cluster
        .kubectl_command()
        .args(["-n", &namespace.name, "port-forward", "pod/talker", ":8080"])
        .stdout(Stdio::piped())
        .spawn()
        .expect("kubectl starts");
    let mut line = String::new();
    // Kept to the end: kubectl says each connection there, and ends when nobody listens.
    let mut said = BufReader::new(forward.stdout.take().expect("piped"));
    said.read_line(&mut line).expect("a line");
    let port: u16 = line
        .strip_prefix("Forwarding from 127.0.0.1:")
        .and_then(|rest| rest.split(' ').next())
        .and_then(|port| port.parse().ok())
        .unwrap_or_else(|| panic!("no port in {line}"));
    let mut answer = String::new();
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", port)).expect("connected");
    stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
    stream.write_all(b"GET / HTTP/1.1\r\nHost: pod\r\nConnection: close\r\n\r\n").expect("sent");
    stream.read_to_string(&mut answer).expect("an answer");
    forward.kill().expect("ended");
    forward.wait().expect("ended");
    holds(&answer, &["200 OK", "\"pod\":\"talker\""]);
}

/// The script's own checks are the test; what it printed stays beside the cluster's logs for people to read.
#[test]
fn a_session_at_the_keyboard_goes_as_against_kubernetes() {
    let cluster = Cluster::running();
    let script = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("cluster/kubectl.sh");
    let session = run(std::process::Command::new(script).env("KUBECONFIG", cluster.kubeconfig()), "");
    let transcript = cluster.host("kubectl.txt");
    std::fs::write(&transcript, &session.stdout).expect("a transcript");
    // The last commands tell it; the whole is in the file.
    let lines: Vec<&str> = session.stdout.lines().collect();
    let last = lines[lines.len().saturating_sub(30)..].join("\n");
    assert_eq!(session.code, 0, "{}\n{last}\nall of it: {}", session.stderr, transcript.display());
    assert_eq!(lines.last(), Some(&"All commands behaved."), "{last}");
}

#[test]
fn a_drained_node_is_empty_and_takes_pods_again_after_uncordon() {
    let cluster = Cluster::running();
    let namespace = cluster.namespace("drain");
    namespace.apply(WEB);
    ready(&namespace);
    let node = namespace.pods("app=web")[0].node.clone();
    holds(&cluster.kubectl(&format!("cordon {node}")).ok(), &["cordoned"]);
    holds(&cluster.kubectl(&format!("get node {node}")).ok(), &["SchedulingDisabled"]);
    let drained = cluster
        .kubectl(&format!("drain {node} --ignore-daemonsets --delete-emptydir-data --force --timeout=90s"));
    holds(&drained.ok(), &["drained"]);
    let pods = namespace.wait_ready("app=web", 2, 60);
    assert!(pods.iter().all(|pod| pod.node != node), "{pods:?}");
    holds(&cluster.kubectl(&format!("uncordon {node}")).ok(), &["uncordoned"]);
    namespace.kubectl("scale deployment web --replicas=9").ok();
    let pods = namespace.wait_ready("app=web", 9, 90);
    assert!(pods.iter().any(|pod| pod.node == node), "{pods:?}");
}
