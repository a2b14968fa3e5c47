//! Bad input: a clear error that names what is wrong and where, and nothing lost.

use std::process::Command;

use harness::{Cluster, Namespace, eventually, run};

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
fn conflicts_expired_watches_and_forbidden_verbs_are_told_apart() {
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
    let path = "/api/v1/namespaces/conflicts/configmaps?watch=1&resourceVersion=1&timeoutSeconds=5";
    let expired = cluster.kubectl_with(&["get", "--raw", path], "");
    let said = format!("{}{}", expired.stdout, expired.stderr);
    assert!(said.contains("too old resource version") || said.contains("Expired"), "{said}");
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
        cluster
            .on(
                "sw-server",
                &[
                    "sh",
                    "-c",
                    "head -c 4096 /dev/urandom | timeout 3 nc -w 2 10.89.0.11 179 >/dev/null; true",
                ],
            )
            .ok();
    }
    assert_eq!(cluster.pid("sw-node1", "agent"), before, "the agent lives");
    assert_eq!(routes(), known, "routes stay");
}

#[test]
fn a_truncated_store_is_named_and_left_as_it_is() {
    let cluster = Cluster::running();
    if std::env::var("SEAWAY_STORE").is_ok_and(|store| store == "etcd") {
        // Nothing of ours to truncate: the file is etcd's.
        return;
    }
    let data = cluster.host("sw-server").join("data");
    let copy = cluster.host("truncated");
    std::fs::create_dir_all(&copy).expect("a folder");
    let store = std::fs::read_dir(&data)
        .expect("the server's data")
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|extension| extension == "redb"))
        .expect("a redb file");
    let name = store.file_name().expect("a name");
    let bytes = std::fs::read(&store).expect("the store");
    std::fs::write(copy.join(name), &bytes[..bytes.len() / 3]).expect("a copy");
    let kept = std::fs::read(copy.join(name)).expect("the copy");
    let server =
        std::fs::read_link(format!("/proc/{}/exe", cluster.pid("sw-server", "server"))).expect("the server");
    let run = run(
        Command::new("timeout")
            .arg("20")
            .arg(server)
            .args(["apiserver", "--bind", "127.0.0.1:0", "--data-dir"])
            .arg(&copy),
        "",
    );
    assert!(run.code != 0 && run.code != 124, "{run:?}");
    let said = run.fails();
    assert!(said.contains(&*name.to_string_lossy()) && said.contains("damaged"), "{said}");
    assert_eq!(std::fs::read(copy.join(name)).expect("the copy"), kept, "the damaged file is left as it is");
}
