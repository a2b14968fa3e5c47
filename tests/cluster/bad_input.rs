//! Bad input: a clear error that names what is wrong and where, and nothing lost.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use harness::{Cluster, Namespace, Run, eventually, run};

#[track_caller]
fn refused(cluster: &Cluster, namespace: &Namespace<'_>, arguments: &[&str], input: &str, words: &[&str]) {
    let mut all = vec!["-n", namespace.name.as_str()];
    all.extend(arguments);
    let said = cluster.kubectl_with(&all, input).fails();
    for word in words {
        assert!(said.contains(word), "`{word}` is missing in what was said about\n{input}\n:\n{said}");
    }
}

#[test]
fn wrong_objects_are_refused_with_the_field_and_the_reason() {
    let cluster = Cluster::running();
    let namespace = cluster.namespace("refused");
    let create = ["create", "-f", "-"];
    refused(&cluster, &namespace, &create, "apiVersion: v1\nkind: ConfigMap\n metadata: [", &["yaml"]);
    refused(&cluster, &namespace, &create, "{\"apiVersion\": \"v1\", \"kind\": ", &["error"]);
    refused(
        &cluster,
        &namespace,
        &["create", "--validate=strict", "-f", "-"],
        "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {prots: [], ports: [{port: 80}]}\n",
        &["unknown field", "spec.prots"],
    );
    refused(
        &cluster,
        &namespace,
        &["create", "--validate=ignore", "-f", "-"],
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a}\nspec: {replicas: many}\n",
        &["replicas"],
    );
    refused(
        &cluster,
        &namespace,
        &["create", "--validate=ignore", "-f", "-"],
        "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {}\n",
        &["spec.containers", "Required value"],
    );
    refused(
        &cluster,
        &namespace,
        &create,
        "apiVersion: v1\nkind: Service\nmetadata: {name: Not_A_Label}\nspec: {ports: [{port: 80}]}\n",
        &["metadata.name", "Not_A_Label", "Invalid value"],
    );
    let large = format!(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: large}}\ndata: {{a: {}}}\n",
        "x".repeat(4 << 20)
    );
    let mut said = cluster.kubectl_with(&["-n", "refused", "create", "-f", "-"], &large).fails();
    said.truncate(2000);
    assert!(said.contains("too large") || said.contains("Too long") || said.contains("limit"), "{said}");
    assert_eq!(namespace.kubectl("get services,deployments,pods -o name").ok(), "");
}

#[test]
fn conflicts_and_forbidden_verbs_are_told_apart() {
    let cluster = Cluster::running();
    let namespace = cluster.namespace("conflicts");
    namespace.kubectl("create configmap one --from-literal=a=b").ok();
    let old = namespace.kubectl("get configmap one -o yaml").ok();
    namespace.kubectl("label configmap one changed=yes").ok();
    refused(
        &cluster,
        &namespace,
        &["replace", "-f", "-"],
        &old,
        &["the object has been modified", "Conflict"],
    );
    assert_eq!(namespace.kubectl("get configmap one -o jsonpath={.metadata.labels.changed}").ok(), "yes");
    namespace.kubectl("create serviceaccount nobody").ok();
    let token = namespace.kubectl("create token nobody").ok();
    let server = cluster.kubectl("config view --minify -o jsonpath={.clusters[0].cluster.server}").ok();
    let mut command = Command::new("kubectl");
    command.args([
        "--kubeconfig=/dev/null",
        "--server",
        &server,
        "--insecure-skip-tls-verify",
        "--token",
        token.trim(),
    ]);
    let said = run(command.args(["-n", "conflicts", "delete", "configmap", "one"]), "").fails();
    let wanted = "User \"system:serviceaccount:conflicts:nobody\" cannot delete resource \"configmaps\" in API group \"\" in the namespace \"conflicts\"";
    assert!(said.contains(wanted), "{said}");
}

#[test]
fn a_certificate_of_another_authority_is_refused() {
    let cluster = Cluster::running();
    let folder = cluster.host("stranger");
    std::fs::create_dir_all(&folder).expect("a folder");
    let key = folder.join("key.pem").display().to_string();
    let certificate = folder.join("certificate.pem").display().to_string();
    run(
        Command::new("openssl").args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-days",
            "1",
            "-subj",
            "/O=system:masters/CN=kubernetes-admin",
            "-keyout",
            &key,
            "-out",
            &certificate,
        ]),
        "",
    )
    .ok();
    let server = cluster.kubectl("config view --minify -o jsonpath={.clusters[0].cluster.server}").ok();
    let mut command = Command::new("kubectl");
    command.args(["--kubeconfig=/dev/null", "--server", &server, "--insecure-skip-tls-verify"]);
    let said = run(
        command.args(["--client-certificate", &certificate, "--client-key", &key, "get", "secrets", "-A"]),
        "",
    );
    let said = said.fails();
    assert!(
        said.contains("nauthorized") || said.contains("logged in") || said.contains("certificate"),
        "{said}"
    );
}

#[test]
fn an_image_that_does_not_exist_is_told_and_backed_off() {
    let cluster = Cluster::running();
    let namespace = cluster.namespace("images");
    namespace.kubectl("run absent --image=localhost:9/absent:1").ok();
    eventually(90, "ImagePullBackOff", || {
        let path = "jsonpath={.status.containerStatuses[0].state.waiting}";
        let waiting = namespace.kubectl(&format!("get pod absent -o {path}")).ok();
        if waiting.contains("ImagePullBackOff") && waiting.contains("localhost:9/absent:1") {
            Ok(())
        } else {
            Err(waiting)
        }
    });
    let events = namespace.kubectl("get events").ok();
    assert!(events.contains("Failed to pull image"), "{events}");
}

#[test]
fn a_cni_configuration_of_garbage_is_refused_by_the_plugin() {
    let cluster = Cluster::running();
    let plugin = cluster.host("sw-node1").join("cni/bin/seaway-cni");
    let call = |command: &str, input: &str| {
        let mut plugin = Command::new(&plugin);
        plugin.envs([("CNI_COMMAND", command), ("CNI_CONTAINERID", "x"), ("CNI_NETNS", "/proc/self/ns/net")]);
        plugin.envs([("CNI_IFNAME", "eth0"), ("CNI_PATH", "/nowhere")]);
        run(&mut plugin, input)
    };
    for garbage in ["not json at all", "{\"cniVersion\": 7}", "{\"cniVersion\": \"1.0.0\", \"name\": \"\"}"] {
        let run = call("ADD", garbage);
        assert_ne!(run.code, 0, "{run:?}");
        let error: serde_json::Value =
            serde_json::from_str(&run.stdout).unwrap_or_else(|_| panic!("no JSON: {run:?}"));
        assert!(error["code"].as_u64().is_some_and(|code| code > 0), "{error}");
        assert!(error["msg"].as_str().is_some_and(|text| !text.is_empty()), "{error}");
    }
}

#[test]
fn random_bytes_at_the_bgp_port_cost_one_connection() {
    let cluster = Cluster::running();
    let before = cluster.pid("sw-node1", "agent");
    let routes = || cluster.on("sw-node2", &["ip", "route", "show", "proto", "180"]).ok();
    let known = routes();
    for _ in 0..5 {
        // bash connects, or fails and says so; that the agent closes while we still write is its right.
        let send =
            "exec 3<>/dev/tcp/10.89.0.11/179 || exit 9; head -c 4096 /dev/urandom >&3 2>/dev/null; exit 0";
        cluster.on("sw-server", &["bash", "-c", send]).ok();
    }
    assert_eq!(cluster.pid("sw-node1", "agent"), before, "the agent lives");
    assert_eq!(routes(), known, "routes stay");
}

/// A server of its own on loopback, over the embedded store.
struct Alone {
    program: PathBuf,
    data: PathBuf,
    child: Child,
}

impl Alone {
    fn command(program: &Path, data: &Path) -> Command {
        let mut command = Command::new(program);
        command
            .args(["apiserver", "--store", "embedded", "--bind", "127.0.0.1:0"])
            .args(["--compaction-interval", "1", "--data-dir"])
            .arg(data);
        command
    }

    /// Starts, and returns when the server says that it is ready, and where.
    fn start(program: PathBuf, data: PathBuf) -> (Self, String) {
        let mut child = Self::command(&program, &data)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("the server");
        let said = BufReader::new(child.stdout.take().expect("piped"));
        let ready = said
            .lines()
            .map_while(Result::ok)
            .find_map(|line| line.strip_prefix("ready: ").map(str::to_owned));
        (Self { program, data, child }, ready.expect("a ready line"))
    }

    fn kubectl(&self, server: &str, arguments: &[&str]) -> Run {
        let mut command = Command::new("kubectl");
        command.arg("--kubeconfig").arg(self.data.join("admin.kubeconfig"));
        command.args(["--server", server]).args(arguments);
        run(&mut command, "")
    }

    /// kill -9; the data stays.
    fn kill(mut self) -> (PathBuf, PathBuf) {
        self.end();
        (self.program.clone(), self.data.clone())
    }

    fn end(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        self.end();
    }
}

/// A folder without what an earlier run left.
fn fresh(cluster: &Cluster, name: &str) -> PathBuf {
    let folder = cluster.host(name);
    if folder.exists() {
        std::fs::remove_dir_all(&folder).expect("removed");
    }
    folder
}

fn server_program(cluster: &Cluster) -> PathBuf {
    let path =
        std::fs::read_link(format!("/proc/{}/exe", cluster.pid("sw-server", "server"))).expect("the server");
    PathBuf::from(path.to_string_lossy().trim_end_matches(" (deleted)"))
}

#[test]
fn a_watch_from_before_the_compacted_history_is_told_to_list_again() {
    let cluster = Cluster::running();
    let (server, url) = Alone::start(server_program(&cluster), fresh(&cluster, "expired"));
    server.kubectl(&url, &["create", "configmap", "one", "--from-literal=a=1"]).ok();
    for value in ["2", "3", "4"] {
        let patch = format!("{{\"data\":{{\"a\":\"{value}\"}}}}");
        server.kubectl(&url, &["patch", "configmap", "one", "-p", &patch]).ok();
    }
    // A server compacts in its first seconds, and resumes watches from memory as long as it lives: the next one, which
    // begins with what the store has kept, must refuse.
    let path = "/api/v1/namespaces/default/configmaps?watch=1&resourceVersion=1&timeoutSeconds=3";
    let (mut server, mut url) = (server, url);
    let mut said = String::new();
    for _ in 0..5 {
        let run = server.kubectl(&url, &["get", "--raw", path]);
        said = format!("{}{}", run.stdout, run.stderr);
        if said.contains("too old resource version") {
            break;
        }
        let (program, data) = server.kill();
        (server, url) = Alone::start(program, data);
    }
    assert!(said.contains("too old resource version"), "{said}");
    assert!(server.kubectl(&url, &["get", "configmap", "one", "-o", "jsonpath={.data.a}"]).ok() == "4");
}

#[test]
fn a_truncated_store_is_named_and_left_as_it_is() {
    let cluster = Cluster::running();
    let (server, url) = Alone::start(server_program(&cluster), fresh(&cluster, "truncated"));
    server.kubectl(&url, &["create", "configmap", "one"]).ok();
    let (program, data) = server.kill();
    let store = std::fs::read_dir(&data)
        .expect("the server's data")
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|extension| extension == "redb"))
        .expect("a redb file");
    let bytes = std::fs::read(&store).expect("the store");
    std::fs::write(&store, &bytes[..bytes.len() / 3]).expect("a truncated store");
    let kept = std::fs::read(&store).expect("the store");
    let said = run(&mut Alone::command(&program, &data), "").fails();
    let name = store.file_name().expect("a name").to_string_lossy().into_owned();
    assert!(said.contains(&name) && said.contains("damaged"), "{said}");
    assert_eq!(std::fs::read(&store).expect("the store"), kept, "the damaged file is left as it is");
}
