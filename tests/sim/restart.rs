//! Parts of the control plane that are killed and started again.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use futures::StreamExt;
use k8s_openapi::api::{
    apps::v1::{Deployment, ReplicaSet},
    core::v1::{ConfigMap, Service},
    discovery::v1::EndpointSlice,
};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams},
    core::{ApiResource, GroupVersionKind},
};
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};

use crate::{
    cluster::Cluster,
    hollow::object,
    observe::{create, deployment, eventually, image_patch, pods, rolled_out},
};

/// Every object of these kinds, byte by byte but for what the control plane may write meanwhile.
async fn everything(client: &Client) -> BTreeMap<String, Value> {
    let kinds = [
        ("", "v1", "ConfigMap", "configmaps"),
        ("", "v1", "Namespace", "namespaces"),
        ("", "v1", "Pod", "pods"),
        ("", "v1", "Service", "services"),
        ("", "v1", "ServiceAccount", "serviceaccounts"),
        ("apps", "v1", "Deployment", "deployments"),
        ("apps", "v1", "ReplicaSet", "replicasets"),
        ("discovery.k8s.io", "v1", "EndpointSlice", "endpointslices"),
        ("rbac.authorization.k8s.io", "v1", "ClusterRole", "clusterroles"),
        ("rbac.authorization.k8s.io", "v1", "ClusterRoleBinding", "clusterrolebindings"),
    ];
    let mut found = BTreeMap::new();
    for (group, version, kind, plural) in kinds {
        let kind = ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, kind), plural);
        let api = Api::<DynamicObject>::all_with(client.clone(), &kind);
        for object in api.list(&ListParams::default()).await.expect("the server answers") {
            let name = format!("{plural} {}/{}", object.namespace().unwrap_or_default(), object.name_any());
            found.insert(name, serde_json::to_value(object).expect("it came as JSON"));
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_server_keeps_every_object_and_watches_resume() {
    let mut cluster = Cluster::start(2, 31).await;
    let client = cluster.client();
    let deployments = Api::<Deployment>::namespaced(client.clone(), "default");
    create(&deployments, deployment("web", 4, "v1")).await;
    rolled_out(&client, "web", 4).await;
    let maps = Api::<ConfigMap>::namespaced(client.clone(), "default");
    let listed = maps.list(&ListParams::default()).await.expect("the server answers");
    let from = listed.metadata.resource_version.expect("a list has a version");
    let name = |index: usize| format!("map-{index:02}");
    for index in 0..20 {
        create(&maps, object(json!({ "metadata": { "name": name(index) }, "data": { "at": "first" } })))
            .await;
    }
    for index in 0..10 {
        let change = Patch::Merge(json!({ "data": { "at": "second" } }));
        maps.patch(&name(index), &PatchParams::default(), &change).await.expect("the patch is accepted");
    }
    for index in 5..15 {
        maps.delete(&name(index), &DeleteParams::default()).await.expect("it is accepted");
    }
    let before = eventually("all to be quiet", async || {
        let found = everything(&client).await;
        if found == everything(&client).await { Ok(found) } else { Err("somebody writes".to_owned()) }
    })
    .await;
    assert!(before.len() > 100, "the bootstrap objects are among them");

    cluster.kill_server().await;
    maps.get("map-00").await.expect_err("nobody is there");
    cluster.start_server().await;

    assert_eq!(everything(&client).await, before);
    let events =
        maps.watch(&WatchParams::default(), &from).await.expect("the watch resumes from before the kill");
    let (sender, mut seen) = tokio::sync::mpsc::unbounded_channel();
    let task = tokio::spawn(events.for_each(move |event| {
        let _ = sender.send(match event {
            Ok(WatchEvent::Added(map)) => format!("added {}", map.name_any()),
            Ok(WatchEvent::Modified(map)) => format!("modified {}", map.name_any()),
            Ok(WatchEvent::Deleted(map)) => format!("deleted {}", map.name_any()),
            other => format!("{other:?}"),
        });
        std::future::ready(())
    }));
    create(&maps, object(json!({ "metadata": { "name": "late" } }))).await;
    let mut expected: Vec<String> = (0..20).map(|index| format!("added {}", name(index))).collect();
    expected.extend((0..10).map(|index| format!("modified {}", name(index))));
    expected.extend((5..15).map(|index| format!("deleted {}", name(index))));
    expected.push("added late".to_owned());
    let mut got = Vec::new();
    let enough = async {
        while got.len() < expected.len() {
            got.extend(seen.recv().await);
        }
    };
    let in_time = tokio::time::timeout(Duration::from_secs(5), enough).await.is_ok();
    assert!(in_time, "events are missing: {got:?}");
    assert_eq!(got, expected, "without gap, in order");
    task.abort();

    // Scheduler, controllers and nodes found the new server by themselves.
    deployments
        .patch("web", &PatchParams::default(), &image_patch("v2"))
        .await
        .expect("the patch is accepted");
    rolled_out(&client, "web", 4).await;
}

/// What the work of the controllers has come to, without what is random in it: uids, names and addresses of pods, times.
async fn outcome(client: &Client) -> BTreeMap<String, Value> {
    let mut found = BTreeMap::new();
    let all = ListParams::default();
    for deployment in
        Api::<Deployment>::namespaced(client.clone(), "default").list(&all).await.expect("an answer")
    {
        let status = deployment.status.clone().unwrap_or_default();
        let conditions: BTreeMap<_, _> = status
            .conditions
            .iter()
            .flatten()
            .map(|said| (said.type_.clone(), (&said.status, &said.reason)))
            .collect();
        let value = json!({
            "annotations": deployment.annotations(),
            "settled": status.observed_generation == deployment.metadata.generation,
            "counts": [status.replicas, status.updated_replicas, status.ready_replicas, status.available_replicas],
            "conditions": conditions,
        });
        found.insert(format!("deployment {}", deployment.name_any()), value);
        let pods = pods(client, &deployment.name_any()).await;
        let states: Vec<_> =
            pods.iter().map(|pod| (crate::observe::image_of(pod), crate::observe::is_ready(pod))).collect();
        found.insert(format!("pods {}", deployment.name_any()), json!(states));
    }
    for set in Api::<ReplicaSet>::namespaced(client.clone(), "default").list(&all).await.expect("an answer") {
        let status = set.status.clone().unwrap_or_default();
        let value = json!({
            "annotations": set.annotations(),
            "owner": set.owner_references().iter().map(|owner| &owner.name).collect::<Vec<_>>(),
            "asked": set.spec.as_ref().and_then(|spec| spec.replicas),
            "counts": [Some(status.replicas), status.ready_replicas, status.available_replicas],
        });
        found.insert(format!("replicaset {}", set.name_any()), value);
    }
    for slice in
        Api::<EndpointSlice>::namespaced(client.clone(), "default").list(&all).await.expect("an answer")
    {
        let service = slice.labels().get("kubernetes.io/service-name").cloned().unwrap_or_default();
        let ready = slice
            .endpoints
            .iter()
            .flatten()
            .map(|endpoint| endpoint.conditions.as_ref().and_then(|c| c.ready));
        found.insert(format!("slice {service}"), json!(ready.collect::<Vec<_>>()));
    }
    found
}

/// Asks until the server took it in; one that died may have done so already.
async fn insist<T>(what: &str, mut ask: impl AsyncFnMut() -> kube::Result<T>) {
    eventually(what, async || match ask().await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.is_already_exists() || status.is_not_found() => Ok(()),
        Err(error) => Err(error.to_string()),
    })
    .await;
}

/// The same day of operators' work every time; each step waits until the Deployment controller has seen it.
async fn operate(client: &Client) {
    let deployments = Api::<Deployment>::namespaced(client.clone(), "default");
    let services = Api::<Service>::namespaced(client.clone(), "default");
    let seen = async |name: &str| {
        eventually(&format!("{name} to be seen"), async || {
            let deployment = deployments.get(name).await.map_err(|error| error.to_string())?;
            let generation = deployment.status.as_ref().and_then(|status| status.observed_generation);
            if generation == deployment.metadata.generation {
                Ok(())
            } else {
                Err(format!("at {generation:?}"))
            }
        })
        .await;
    };
    let post = PostParams::default();
    for name in ["a", "b", "c"] {
        let service = object(json!({ "metadata": { "name": name },
            "spec": { "selector": { "app": name }, "ports": [{ "port": 80 }] } }));
        insist("a Service", async || services.create(&post, &service).await).await;
        let deployment = deployment(name, 3, "v1");
        insist("a Deployment", async || deployments.create(&post, &deployment).await).await;
    }
    for name in ["a", "b", "c"] {
        seen(name).await;
    }
    let patch = async |name: &str, patch: Patch<Value>| {
        insist("a patch", async || deployments.patch(name, &PatchParams::default(), &patch).await).await;
        seen(name).await;
    };
    patch("a", image_patch("v2")).await;
    patch("b", Patch::Merge(json!({ "spec": { "replicas": 5 } }))).await;
    patch("a", image_patch("v3")).await;
    patch("b", image_patch("v2")).await;
    insist("a deletion", async || deployments.delete("c", &DeleteParams::background()).await).await;
    insist("a deletion", async || services.delete("c", &DeleteParams::default()).await).await;
    // A ReplicaSet says what was asked for when it was last scaled: the older ones are empty before the next number.
    eventually("a's newest pods alone", async || {
        let status =
            deployments.get("a").await.map_err(|error| error.to_string())?.status.unwrap_or_default();
        let counts = [status.replicas, status.updated_replicas];
        if counts == [Some(3), Some(3)] { Ok(()) } else { Err(format!("{counts:?}")) }
    })
    .await;
    patch("a", Patch::Merge(json!({ "spec": { "replicas": 2 } }))).await;
    patch("b", image_patch("v1")).await;
}

/// Waits until the outcome is final: as asked for, and of one mind.
async fn settled(client: &Client) -> BTreeMap<String, Value> {
    rolled_out(client, "a", 2).await;
    rolled_out(client, "b", 5).await;
    eventually("the outcome to be final", async || {
        let found = outcome(client).await;
        let ready = |service: &str, count: usize| {
            found.get(&format!("slice {service}")) == Some(&json!(vec![true; count]))
        };
        let progress = |name: &str| {
            found[&format!("deployment {name}")]["conditions"]["Progressing"][1] == "NewReplicaSetAvailable"
        };
        let gone = !found.keys().any(|key| key.contains(" c"));
        match gone
            && pods(client, "c").await.is_empty()
            && ready("a", 2)
            && ready("b", 5)
            && progress("a")
            && progress("b")
        {
            true => Ok(found),
            false => Err(format!("{found:#?}")),
        }
    })
    .await
}

/// The outcome where parts are killed and restarted at random moments.
async fn disturbed(seed: u64) -> BTreeMap<String, Value> {
    let mut cluster = Cluster::start(2, seed).await;
    let client = cluster.client();
    let done = AtomicBool::new(false);
    let work = async {
        operate(&client).await;
        done.store(true, Ordering::Relaxed);
    };
    let chaos = async {
        let mut random = StdRng::seed_from_u64(seed);
        let mut kills = 0;
        while kills < KILLS_MIN || !done.load(Ordering::Relaxed) {
            tokio::time::sleep(Duration::from_millis(random.random_range(10..400))).await;
            match random.random_range(0..10) {
                0 => {
                    cluster.kill_server().await;
                    cluster.start_server().await;
                }
                1..=3 => {
                    cluster.kill_scheduler().await;
                    cluster.start_scheduler();
                }
                _ => {
                    cluster.kill_controllers().await;
                    cluster.start_controllers();
                }
            }
            kills += 1;
        }
    };
    tokio::join!(work, chaos);
    settled(&client).await
}

const KILLS_MIN: usize = 10;
const SEEDS: [u64; 2] = [33, 34];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn parts_killed_at_any_moment_come_to_the_same_state() {
    let undisturbed = {
        let cluster = Cluster::start(2, 32).await;
        operate(&cluster.client()).await;
        settled(&cluster.client()).await
    };
    for seed in SEEDS {
        assert_eq!(disturbed(seed).await, undisturbed, "seed {seed}");
    }
}
