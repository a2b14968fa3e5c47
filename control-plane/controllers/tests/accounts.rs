//! Every controller does its work with no more than the role of its own ServiceAccount.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, StatefulSet};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{
    Endpoints, Namespace, Node, PersistentVolumeClaim, Pod, ReplicationController, Service,
};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use support::{Cluster, create, eventually};

fn workload(name: &str, more: Value) -> Value {
    let container = json!({ "name": "c", "image": "i" });
    let mut spec = json!({
        "selector": { "matchLabels": { "app": name } },
        "template": { "metadata": { "labels": { "app": name } }, "spec": { "containers": [container] } },
    });
    for (key, value) in more.as_object().unwrap() {
        spec[key] = value.clone();
    }
    json!({ "metadata": { "name": name }, "spec": spec })
}

async fn pods(pods: &Api<Pod>, name: &str, count: usize) -> Vec<Pod> {
    eventually(name, async || {
        let listed = pods.list(&ListParams::default().labels(&format!("app={name}"))).await.unwrap().items;
        let living: Vec<_> =
            listed.into_iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()).collect();
        if living.len() == count { Ok(living) } else { Err(living.len()) }
    })
    .await
}

async fn a_service_has_slices(cluster: &Cluster) {
    let spec = json!({ "selector": { "app": "web" }, "ports": [{ "port": 80 }] });
    create(&cluster.api::<Service>("team"), json!({ "metadata": { "name": "web" }, "spec": spec })).await;
    eventually("Endpoints and EndpointSlice", async || {
        let endpoints = cluster.api::<Endpoints>("team").get_opt("web").await.unwrap().is_some();
        let slices = cluster.api::<EndpointSlice>("team").list(&ListParams::default()).await.unwrap().items;
        if endpoints && slices.len() == 1 { Ok(()) } else { Err((endpoints, slices.len())) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workloads_are_made_scaled_and_taken_down() {
    let cluster = Cluster::start().await;
    cluster.namespace("team").await;
    let all = cluster.api::<Pod>("team");
    let node = json!({ "metadata": { "name": "n1" }, "status": { "allocatable": { "pods": "10" }, "conditions": [
        { "type": "Ready", "status": "True" }] } });
    create(&Api::<Node>::all(cluster.client()), node).await;

    let deployments = cluster.api::<Deployment>("team");
    create(&deployments, workload("web", json!({ "replicas": 2 }))).await;
    pods(&all, "web", 2).await;
    let scaled = Patch::Merge(json!({ "spec": { "replicas": 1 } }));
    deployments.patch("web", &PatchParams::default(), &scaled).await.unwrap();
    pods(&all, "web", 1).await;

    let controllers = cluster.api::<ReplicationController>("team");
    create(&controllers, workload("rc", json!({ "replicas": 1, "selector": { "app": "rc" } }))).await;
    pods(&all, "rc", 1).await;
    let claim = json!({ "metadata": { "name": "data" }, "spec": { "accessModes": ["ReadWriteOnce"],
        "resources": { "requests": { "storage": "1Gi" } } } });
    let more = json!({ "serviceName": "db", "replicas": 1, "volumeClaimTemplates": [claim] });
    create(&cluster.api::<StatefulSet>("team"), workload("db", more)).await;
    pods(&all, "db", 1).await;
    assert!(cluster.api::<PersistentVolumeClaim>("team").get_opt("data-db-0").await.unwrap().is_some());
    create(&cluster.api::<DaemonSet>("team"), workload("agent", json!({}))).await;
    pods(&all, "agent", 1).await;

    let jobs = cluster.api::<Job>("team");
    let template = json!({ "metadata": { "labels": { "app": "job" } }, "spec": { "restartPolicy": "Never",
        "containers": [{ "name": "c", "image": "i" }] } });
    create(&jobs, json!({ "metadata": { "name": "job" }, "spec": { "template": template } })).await;
    let made = pods(&all, "job", 1).await;
    let done = Patch::Merge(json!({ "status": { "phase": "Succeeded" } }));
    all.patch_status(&made[0].name_any(), &PatchParams::default(), &done).await.unwrap();
    eventually("the Job to be complete", async || {
        let status = jobs.get("job").await.unwrap().status.unwrap_or_default();
        let complete =
            status.conditions.iter().flatten().any(|it| it.type_ == "Complete" && it.status == "True");
        if complete { Ok(()) } else { Err(status) }
    })
    .await;

    let budgets = cluster.api::<PodDisruptionBudget>("team");
    let spec = json!({ "minAvailable": 1, "selector": { "matchLabels": { "app": "web" } } });
    create(&budgets, json!({ "metadata": { "name": "web" }, "spec": spec })).await;
    eventually("the budget's status", async || {
        let status = budgets.get("web").await.unwrap().status.unwrap_or_default();
        if status.desired_healthy == Some(1) { Ok(()) } else { Err(status) }
    })
    .await;
    a_service_has_slices(&cluster).await;

    let namespaces = Api::<Namespace>::all(cluster.client());
    namespaces.delete("team", &DeleteParams::default()).await.unwrap();
    eventually("the pods' nodes to let them go and the namespace to be empty", async || {
        let kill = DeleteParams::default().grace_period(0);
        for pod in all.list(&ListParams::default()).await.unwrap().items {
            // There is no kubelet that would end it.
            let _ = all.delete(&pod.name_any(), &kill).await;
        }
        namespaces.get_opt("team").await.unwrap().map_or(Ok(()), |left| Err(left.status))
    })
    .await;
    cluster.stop().await;
}
