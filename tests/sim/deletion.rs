//! Deletion: what goes with its owner, what stays, and how a namespace empties.

use k8s_openapi::api::{
    apps::v1::{Deployment, ReplicaSet},
    core::v1::{ConfigMap, Namespace, Pod, Secret, Service, ServiceAccount},
};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams},
};
use serde_json::json;

use futures::StreamExt;

use crate::{
    cluster::Cluster,
    hollow::object,
    observe::{create, deployment, eventually, eventually_is, pods, replica_sets, rolled_out},
};

async fn web(client: &Client) -> Api<Deployment> {
    let deployments = Api::<Deployment>::namespaced(client.clone(), "default");
    create(&deployments, deployment("web", 3, "v1")).await;
    rolled_out(client, "web", 3).await;
    deployments
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn foreground_deletion_takes_the_owner_last() {
    let cluster = Cluster::start(2, 11).await;
    let client = cluster.client();
    let deployments = web(&client).await;
    let listed = deployments.list(&ListParams::default()).await.expect("the server answers");
    let from = listed.metadata.resource_version.expect("a list has a version");
    let answer = deployments.delete("web", &DeleteParams::foreground()).await.expect("it is accepted");
    let deleting = answer.left().expect("the object stays for now");
    assert_eq!(deleting.finalizers(), ["foregroundDeletion"]);
    assert!(deleting.metadata.deletion_timestamp.is_some());

    let mut events =
        deployments.watch(&WatchParams::default(), &from).await.expect("the watch begins").boxed();
    eventually("the Deployment to go", async || match events.next().await {
        Some(Ok(WatchEvent::Deleted(_))) => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    assert_eq!(pods(&client, "web").await.len(), 0, "pods went before their owner's owner");
    assert_eq!(replica_sets(&client, "web").await.len(), 0, "the ReplicaSet went before its owner");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn background_deletion_takes_the_owner_first_and_the_rest_after_it() {
    let cluster = Cluster::start(2, 12).await;
    let client = cluster.client();
    let deployments = web(&client).await;
    deployments.delete("web", &DeleteParams::background()).await.expect("it is accepted");
    assert!(deployments.get_opt("web").await.expect("the server answers").is_none());
    eventually_is("nothing to be left", (0, 0), async || {
        (replica_sets(&client, "web").await.len(), pods(&client, "web").await.len())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn orphans_stay_and_are_adopted_by_the_next_owner() {
    let cluster = Cluster::start(2, 13).await;
    let client = cluster.client();
    let deployments = web(&client).await;
    let uids = async || {
        let mut uids: Vec<_> = pods(&client, "web").await.iter().filter_map(ResourceExt::uid).collect();
        uids.sort();
        uids
    };
    let before = uids().await;
    deployments.delete("web", &DeleteParams::orphan()).await.expect("it is accepted");
    eventually("the Deployment to go without its ReplicaSet", async || {
        let gone = deployments.get_opt("web").await.map_err(|error| error.to_string())?.is_none();
        let sets = replica_sets(&client, "web").await;
        match sets.as_slice() {
            [set] if gone && set.owner_references().is_empty() => Ok(()),
            _ => Err(format!(
                "gone: {gone}, ReplicaSets: {:?}",
                sets.iter().map(|set| &set.metadata).collect::<Vec<_>>()
            )),
        }
    })
    .await;
    assert_eq!(uids().await, before, "the pods did not notice");

    let next = create(&deployments, deployment("web", 3, "v1")).await;
    rolled_out(&client, "web", 3).await;
    let sets = Api::<ReplicaSet>::namespaced(client.clone(), "default");
    let sets = sets.list(&ListParams::default()).await.expect("the server answers").items;
    assert_eq!(sets.len(), 1);
    assert_eq!(sets[0].owner_references()[0].uid, next.uid().expect("it is stored"));
    assert_eq!(uids().await, before, "adoption restarts nothing");
}

/// Makes namespace team with three running pods, other objects, and one that a finalizer holds.
async fn fill_namespace(client: &Client) {
    create(&Api::<Namespace>::all(client.clone()), object(json!({ "metadata": { "name": "team" } }))).await;
    eventually("the ServiceAccount that pods need", async || {
        let api = Api::<ServiceAccount>::namespaced(client.clone(), "team");
        api.get_opt("default").await.ok().flatten().ok_or_else(|| "not there".to_owned())
    })
    .await;
    create(&Api::<Deployment>::namespaced(client.clone(), "team"), deployment("web", 3, "v1")).await;
    let secret = json!({ "metadata": { "name": "s" } });
    create(&Api::<Secret>::namespaced(client.clone(), "team"), object(secret)).await;
    let service = json!({ "metadata": { "name": "web" }, "spec": { "selector": { "app": "web" }, "ports": [{ "port": 80 }] } });
    create(&Api::<Service>::namespaced(client.clone(), "team"), object(service)).await;
    let held = json!({ "metadata": { "name": "held", "finalizers": ["example.com/hold"] } });
    create(&Api::<ConfigMap>::namespaced(client.clone(), "team"), object(held)).await;
    eventually("three pods that run", async || {
        let pods = Api::<Pod>::namespaced(client.clone(), "team").list(&ListParams::default()).await;
        let pods = pods.map_err(|error| error.to_string())?;
        let ready = pods.iter().filter(|pod| crate::observe::is_ready(pod)).count();
        if ready == 3 { Ok(()) } else { Err(format!("{ready} ready")) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_namespace_is_emptied_and_goes() {
    let cluster = Cluster::start(2, 14).await;
    let client = cluster.client();
    let namespaces = Api::<Namespace>::all(client.clone());
    let within = |client: &Client| Api::<Pod>::namespaced(client.clone(), "team");
    let maps = Api::<ConfigMap>::namespaced(client.clone(), "team");
    fill_namespace(&client).await;

    namespaces.delete("team", &DeleteParams::default()).await.expect("it is accepted");
    let refused =
        maps.create(&PostParams::default(), &object(json!({ "metadata": { "name": "late" } }))).await;
    let refusal = refused.expect_err("a terminating namespace takes nothing in").to_string();
    assert!(refusal.contains("because it is being terminated"), "{refusal}");
    eventually("all but what a finalizer holds to go", async || {
        let namespace = namespaces.get("team").await.map_err(|error| error.to_string())?;
        let pods = within(&client)
            .list(&ListParams::default())
            .await
            .map_err(|error| error.to_string())?
            .items
            .len();
        let maps = maps.list(&ListParams::default()).await.map_err(|error| error.to_string())?;
        let maps: Vec<_> = maps.iter().map(ResourceExt::name_any).collect();
        let status = namespace.status.unwrap_or_default();
        let says = status.conditions.iter().flatten().any(|condition| {
            let message = condition.message.as_deref().unwrap_or_default();
            condition.type_ == "NamespaceFinalizersRemaining"
                && condition.status == "True"
                && message.contains("example.com/hold in 1 resource instances")
        });
        match status.phase.as_deref() == Some("Terminating") && pods == 0 && maps == ["held"] && says {
            true => Ok(()),
            false => {
                Err(format!("{pods} pods, ConfigMaps {maps:?}, {:?} {:?}", status.phase, status.conditions))
            }
        }
    })
    .await;

    let release = Patch::Merge(json!({ "metadata": { "finalizers": null } }));
    maps.patch("held", &PatchParams::default(), &release).await.expect("the patch is accepted");
    eventually("the namespace to go", async || {
        match namespaces.get_opt("team").await.map_err(|error| error.to_string())? {
            None => Ok(()),
            Some(namespace) => Err(format!("{:?}", namespace.status)),
        }
    })
    .await;
}
