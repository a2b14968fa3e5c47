//! ResourceQuota: admission and controller together, against a real server.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use futures::future::join_all;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, ResourceQuota, Service};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::Api;
use kube::api::{ApiResource, DeleteParams, DynamicObject, GroupVersionKind, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use support::{Cluster, create, eventually, pod, refused};

async fn quota(api: &Api<ResourceQuota>, name: &str, spec: Value) {
    create(api, json!({ "metadata": { "name": name }, "spec": spec })).await;
    eventually("the quota's first count", async || {
        let status = api.get(name).await.unwrap().status.unwrap_or_default();
        let counted = |used: &BTreeMap<_, _>| Some(used.len()) == status.hard.as_ref().map(BTreeMap::len);
        status.used.as_ref().filter(|used| counted(used)).map(drop).ok_or(status.clone())
    })
    .await;
}

async fn used(api: &Api<ResourceQuota>, name: &str, wanted: &[(&str, &str)]) {
    eventually("the quota's usage", async || {
        let used = api.get(name).await.unwrap().status.unwrap_or_default().used.unwrap_or_default();
        let right = |(name, amount): &(&str, &str)| used.get(*name).is_some_and(|used| used.0 == *amount);
        if wanted.iter().all(right) { Ok(()) } else { Err(used.clone()) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_quota_follows_the_life_of_pods_and_services() {
    let cluster = Cluster::start().await;
    cluster.namespace("team").await;
    let (quotas, pods) = (cluster.api::<ResourceQuota>("team"), cluster.api::<Pod>("team"));
    let hard = json!({ "pods": "2", "requests.cpu": "1", "services.nodeports": "1", "services": "5", "secrets": "9",
        "resourcequotas": "3", "count/configmaps": "9" });
    quota(&quotas, "q", json!({ "hard": hard })).await;
    used(&quotas, "q", &[("pods", "0"), ("resourcequotas", "1"), ("count/configmaps", "1")]).await;

    create(&pods, pod("a", "600m")).await;
    used(&quotas, "q", &[("pods", "1"), ("requests.cpu", "600m")]).await;
    assert_eq!(
        refused(&pods, pod("b", "500m")).await,
        "pods \"b\" is forbidden: exceeded quota: q, requested: requests.cpu=500m, used: requests.cpu=600m, limited: \
         requests.cpu=1"
    );
    let silent =
        json!({ "metadata": { "name": "s" }, "spec": { "containers": [{ "name": "c", "image": "i" }] } });
    assert_eq!(
        refused(&pods, silent).await,
        "pods \"s\" is forbidden: failed quota: q: must specify requests.cpu for: c"
    );
    let dry: Pod = serde_json::from_value(pod("d", "100m")).unwrap();
    pods.create(&PostParams { dry_run: true, ..PostParams::default() }, &dry).await.unwrap();
    create(&pods, pod("b", "400m")).await;
    used(&quotas, "q", &[("pods", "2"), ("requests.cpu", "1")]).await;

    let done = Patch::Merge(json!({ "status": { "phase": "Succeeded" } }));
    pods.patch_status("b", &PatchParams::default(), &done).await.unwrap();
    used(&quotas, "q", &[("pods", "1"), ("requests.cpu", "600m")]).await;
    pods.delete("a", &DeleteParams::default().grace_period(0)).await.unwrap();
    used(&quotas, "q", &[("pods", "0"), ("requests.cpu", "0")]).await;

    let services = cluster.api::<Service>("team");
    let service = |name: &str| json!({ "metadata": { "name": name }, "spec": { "type": "NodePort", "ports": [{ "port": 80 }] } });
    create(&services, service("a")).await;
    used(&quotas, "q", &[("services", "1"), ("services.nodeports", "1")]).await;
    assert!(refused(&services, service("b")).await.contains("services.nodeports=1"));
    let internal = Patch::Merge(json!({ "spec": { "type": "ClusterIP" } }));
    services.patch("a", &PatchParams::default(), &internal).await.unwrap();
    used(&quotas, "q", &[("services", "1"), ("services.nodeports", "0")]).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn custom_resources_are_counted_from_before_their_definition_to_their_deletion() {
    let cluster = Cluster::start().await;
    cluster.namespace("team").await;
    let quotas = cluster.api::<ResourceQuota>("team");
    let hard = json!({ "count/widgets.example.com": "2" });
    create(&quotas, json!({ "metadata": { "name": "q" }, "spec": { "hard": hard } })).await;
    let schema =
        json!({ "openAPIV3Schema": { "type": "object", "x-kubernetes-preserve-unknown-fields": true } });
    let version = |name: &str, storage: bool| json!({ "name": name, "served": true, "storage": storage, "schema": schema });
    let definition = json!({
        "metadata": { "name": "widgets.example.com" },
        "spec": {
            "group": "example.com", "scope": "Namespaced", "names": { "plural": "widgets", "kind": "Widget" },
            "versions": [version("v1", true), version("v2", false)],
        },
    });
    let definitions = Api::<CustomResourceDefinition>::all(cluster.client());
    create(&definitions, definition).await;
    used(&quotas, "q", &[("count/widgets.example.com", "0")]).await;

    let widgets = |version: &str| {
        let resource = ApiResource::from_gvk_with_plural(
            &GroupVersionKind::gvk("example.com", version, "Widget"),
            "widgets",
        );
        Api::<DynamicObject>::namespaced_with(cluster.client(), "team", &resource)
    };
    let (v1, v2) = (widgets("v1"), widgets("v2"));
    let widget = |version: &str, name: &str| -> DynamicObject {
        let object = json!({ "apiVersion": format!("example.com/{version}"), "kind": "Widget", "metadata": { "name": name } });
        serde_json::from_value(object).unwrap()
    };
    v1.create(&PostParams::default(), &widget("v1", "a")).await.unwrap();
    let apply = PatchParams::apply("test");
    v2.patch("b", &apply, &Patch::Apply(widget("v2", "b"))).await.unwrap();
    used(&quotas, "q", &[("count/widgets.example.com", "2")]).await;
    let refused = v2.create(&PostParams::default(), &widget("v2", "c")).await.unwrap_err().to_string();
    let wanted = "widgets.example.com \"c\" is forbidden: exceeded quota: q, requested: count/widgets.example.com=1, used: \
                  count/widgets.example.com=2, limited: count/widgets.example.com=2";
    assert!(refused.contains(wanted), "{refused}");
    // What is there may change.
    v2.patch("b", &apply, &Patch::Apply(widget("v2", "b"))).await.unwrap();
    v1.delete("a", &DeleteParams::default()).await.unwrap();
    used(&quotas, "q", &[("count/widgets.example.com", "1")]).await;
    v2.create(&PostParams::default(), &widget("v2", "c")).await.unwrap();
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_at_the_same_moment_cannot_exceed_a_quota_together() {
    let cluster = Cluster::start().await;
    cluster.namespace("team").await;
    let (quotas, maps) = (cluster.api::<ResourceQuota>("team"), cluster.api::<ConfigMap>("team"));
    quota(&quotas, "q", json!({ "hard": { "configmaps": "6" } })).await;
    used(&quotas, "q", &[("configmaps", "1")]).await;
    let attempts = (0..20).map(|number| {
        let maps = maps.clone();
        async move {
            let map = json!({ "metadata": { "name": format!("m{number}") } });
            let map: ConfigMap = serde_json::from_value(map).unwrap();
            maps.create(&PostParams::default(), &map).await.is_ok()
        }
    });
    let made = join_all(attempts).await.into_iter().filter(|made| *made).count();
    assert_eq!(made, 5, "kube-root-ca.crt is the sixth");
    used(&quotas, "q", &[("configmaps", "6")]).await;
    assert!(refused(&maps, json!({ "metadata": { "name": "late" } })).await.contains("exceeded quota: q"));

    // A delete frees its place at once.
    let began = Instant::now();
    let mine = maps.list(&Default::default()).await.unwrap().items;
    let mine = mine.iter().filter_map(|map| map.metadata.name.clone()).find(|name| name.starts_with('m'));
    maps.delete(&mine.unwrap(), &DeleteParams::default()).await.unwrap();
    used(&quotas, "q", &[("configmaps", "5")]).await;
    assert!(began.elapsed() < Duration::from_secs(2), "recounted after {:?}", began.elapsed());

    let taken = maps.list(&Default::default()).await.unwrap().items[0].metadata.name.clone().unwrap();
    assert!(refused(&maps, json!({ "metadata": { "name": taken } })).await.contains("already exists"));
    used(&quotas, "q", &[("configmaps", "5")]).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scopes_decide_which_quota_counts_a_pod_and_a_foreign_status_is_put_right() {
    let cluster = Cluster::start().await;
    cluster.namespace("team").await;
    let (quotas, pods) = (cluster.api::<ResourceQuota>("team"), cluster.api::<Pod>("team"));
    quota(&quotas, "best", json!({ "hard": { "pods": "1" }, "scopes": ["BestEffort"] })).await;
    quota(&quotas, "other", json!({ "hard": { "pods": "1" }, "scopes": ["NotBestEffort"] })).await;
    create(&pods, pod("a", "100m")).await;
    used(&quotas, "other", &[("pods", "1")]).await;
    used(&quotas, "best", &[("pods", "0")]).await;
    assert!(refused(&pods, pod("b", "100m")).await.contains("exceeded quota: other, requested: pods=1"));

    let wrong = Patch::Merge(json!({ "status": { "hard": { "pods": "9" }, "used": { "pods": "7" } } }));
    quotas.patch_status("best", &PatchParams::default(), &wrong).await.unwrap();
    used(&quotas, "best", &[("pods", "0")]).await;
    let status = quotas.get("best").await.unwrap().status.unwrap();
    assert_eq!(status.hard.unwrap()["pods"].0, "1");
    cluster.stop().await;
}
