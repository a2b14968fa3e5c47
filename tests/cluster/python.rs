//! The Python client of PyPI.

use std::process::Command;

use harness::{Cluster, run};

const SCRIPT: &str = r#"
import sys
from kubernetes import client, config, watch

config.load_kube_config(sys.argv[1])
apps = client.AppsV1Api()
namespace = sys.argv[2]
labels = {"app": "from-python"}
deployment = client.V1Deployment(
    metadata=client.V1ObjectMeta(name="from-python"),
    spec=client.V1DeploymentSpec(
        replicas=2,
        selector=client.V1LabelSelector(match_labels=labels),
        template=client.V1PodTemplateSpec(
            metadata=client.V1ObjectMeta(labels=labels),
            spec=client.V1PodSpec(containers=[client.V1Container(name="web", image="nginx:1.22")]),
        ),
    ),
)
created = apps.create_namespaced_deployment(namespace, deployment)
assert created.metadata.uid and created.metadata.generation == 1, created
ready = False
for event in watch.Watch().stream(apps.list_namespaced_deployment, namespace, timeout_seconds=90):
    found = event["object"]
    if found.metadata.name == "from-python" and found.status.ready_replicas == 2:
        ready = True
        break
assert ready, "the Deployment did not become ready"
listed = client.CoreV1Api().list_namespaced_pod(namespace, label_selector="app=from-python")
assert len(listed.items) == 2, listed
apps.delete_namespaced_deployment("from-python", namespace, propagation_policy="Foreground")
gone = False
for event in watch.Watch().stream(apps.list_namespaced_deployment, namespace, timeout_seconds=60):
    if event["type"] == "DELETED" and event["object"].metadata.name == "from-python":
        gone = True
        break
    assert event["object"].metadata.deletion_timestamp, event
assert gone, "the Deployment was not deleted"
print("all well")
"#;

#[test]
fn the_python_client_creates_watches_and_deletes_a_deployment() {
    let cluster = Cluster::running();
    let namespace = cluster.namespace("python");
    let environment = cluster.host("python");
    run(Command::new("python3").args(["-m", "venv"]).arg(&environment), "").ok();
    run(Command::new(environment.join("bin/pip")).args(["install", "--quiet", "kubernetes"]), "").ok();
    let kubeconfig = cluster.kubeconfig().display().to_string();
    let said = run(
        Command::new(environment.join("bin/python")).args(["-c", SCRIPT, &kubeconfig, &namespace.name]),
        "",
    );
    assert!(said.ok().contains("all well"));
}
