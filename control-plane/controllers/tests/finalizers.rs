//! What holds an object back, and what lets it go: protection of volumes, tokens in Secrets, owners in other namespaces.

mod support;

use k8s_openapi::api::authentication::v1::TokenReview;
use k8s_openapi::api::core::v1::{
    ConfigMap, Event, PersistentVolume, PersistentVolumeClaim, Pod, Secret, ServiceAccount,
};
use k8s_openapi::api::storage::v1::VolumeAttributesClass;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use kube::{Api, ResourceExt};
use serde_json::json;
use support::{Cluster, create, eventually, gone};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_goes_after_the_pod_that_uses_it_and_a_volume_after_its_binding() {
    let cluster = Cluster::start().await;
    cluster.namespace("team").await;
    let (claims, pods) = (cluster.api::<PersistentVolumeClaim>("team"), cluster.api::<Pod>("team"));
    let spec = json!({ "accessModes": ["ReadWriteOnce"], "resources": { "requests": { "storage": "1Gi" } } });
    let claim = create(&claims, json!({ "metadata": { "name": "data" }, "spec": spec })).await;
    assert_eq!(claim.finalizers(), ["kubernetes.io/pvc-protection"]);
    let spec = json!({
        "nodeName": "n1",
        "containers": [{ "name": "c", "image": "i" }],
        "volumes": [{ "name": "v", "persistentVolumeClaim": { "claimName": "data" } }],
    });
    create(&pods, json!({ "metadata": { "name": "user" }, "spec": spec })).await;
    claims.delete("data", &DeleteParams::default()).await.unwrap();
    create(
        &claims,
        json!({ "metadata": { "name": "free" }, "spec": {
        "accessModes": ["ReadWriteOnce"], "resources": { "requests": { "storage": "1Gi" } } } }),
    )
    .await;
    claims.delete("free", &DeleteParams::default()).await.unwrap();
    gone(&claims, "free").await;
    assert!(claims.get_opt("data").await.unwrap().is_some(), "a pod uses it");
    pods.delete("user", &DeleteParams::default().grace_period(0)).await.unwrap();
    gone(&claims, "data").await;

    let volumes = Api::<PersistentVolume>::all(cluster.client());
    let spec = json!({ "capacity": { "storage": "1Gi" }, "accessModes": ["ReadWriteOnce"], "hostPath": { "path": "/x" } });
    create(&volumes, json!({ "metadata": { "name": "v" }, "spec": spec })).await;
    let phase = |phase: &str| Patch::Merge(json!({ "status": { "phase": phase } }));
    volumes.patch_status("v", &PatchParams::default(), &phase("Bound")).await.unwrap();
    volumes.delete("v", &DeleteParams::default()).await.unwrap();
    assert!(volumes.get_opt("v").await.unwrap().is_some());
    volumes.patch_status("v", &PatchParams::default(), &phase("Released")).await.unwrap();
    gone(&volumes, "v").await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_class_of_volumes_goes_once_no_claim_names_it() {
    let cluster = Cluster::start().await;
    cluster.namespace("team").await;
    let classes = Api::<VolumeAttributesClass>::all(cluster.client());
    for name in ["gold", "free"] {
        let class = json!({ "metadata": { "name": name }, "driverName": "disks.example.com",
            "parameters": { "iops": "100" } });
        assert_eq!(create(&classes, class).await.finalizers(), ["kubernetes.io/vac-protection"]);
    }
    let claims = cluster.api::<PersistentVolumeClaim>("team");
    let spec = json!({ "accessModes": ["ReadWriteOnce"], "volumeAttributesClassName": "gold",
        "resources": { "requests": { "storage": "1Gi" } } });
    create(&claims, json!({ "metadata": { "name": "data" }, "spec": spec })).await;
    classes.delete("gold", &DeleteParams::default()).await.unwrap();
    classes.delete("free", &DeleteParams::default()).await.unwrap();
    gone(&classes, "free").await;
    assert!(classes.get_opt("gold").await.unwrap().is_some(), "a claim names it");
    claims.delete("data", &DeleteParams::default()).await.unwrap();
    gone(&classes, "gold").await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_secret_is_filled_and_goes_with_its_account() {
    let cluster = Cluster::start().await;
    cluster.namespace("team").await;
    let (accounts, secrets) = (cluster.api::<ServiceAccount>("team"), cluster.api::<Secret>("team"));
    let account = create(&accounts, json!({ "metadata": { "name": "robot" } })).await;
    let annotations = json!({ "kubernetes.io/service-account.name": "robot" });
    let secret = json!({
        "metadata": { "name": "robot-token", "annotations": annotations },
        "type": "kubernetes.io/service-account-token",
    });
    create(&secrets, secret).await;
    let filled = eventually("the Secret to be filled", async || {
        let secret = secrets.get("robot-token").await.unwrap();
        let uid = secret.annotations().get("kubernetes.io/service-account.uid") == account.uid().as_ref();
        if uid { Ok(secret) } else { Err(secret.metadata.annotations) }
    })
    .await;
    let data = filled.data.unwrap();
    assert_eq!(data["namespace"].0, b"team");
    assert!(data["ca.crt"].0.starts_with(b"-----BEGIN CERTIFICATE-----"));
    let token = String::from_utf8(data["token"].0.clone()).unwrap();
    let reviews = Api::<TokenReview>::all(cluster.client());
    let review =
        create(&reviews, json!({ "metadata": {}, "spec": { "token": token } })).await.status.unwrap();
    assert_eq!(review.authenticated, Some(true), "{review:?}");
    assert_eq!(review.user.unwrap().username.as_deref(), Some("system:serviceaccount:team:robot"));
    eventually("the Secret to say when it was used", async || {
        let secret = secrets.get("robot-token").await.unwrap();
        let used = secret.labels().get("kubernetes.io/legacy-token-last-used").cloned();
        used.filter(|day| day.len() == "2026-01-31".len()).ok_or(secret.metadata.labels)
    })
    .await;
    let tracking = "kube-apiserver-legacy-service-account-token-tracking";
    let since = eventually("the start of tracking", async || {
        let config = cluster.api::<ConfigMap>("kube-system").get_opt(tracking).await.unwrap();
        config.and_then(|config| config.data).ok_or("no ConfigMap")
    })
    .await;
    assert_eq!(since["since"].len(), "2026-01-31".len());
    accounts.delete("robot", &DeleteParams::default()).await.unwrap();
    gone(&secrets, "robot-token").await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_owner_in_another_namespace_is_none_and_is_reported() {
    let cluster = Cluster::start().await;
    cluster.namespace("a").await;
    cluster.namespace("b").await;
    let owner = create(&cluster.api::<ConfigMap>("a"), json!({ "metadata": { "name": "owner" } })).await;
    let reference = json!({ "apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": owner.uid() });
    let maps = cluster.api::<ConfigMap>("b");
    create(&maps, json!({ "metadata": { "name": "child", "ownerReferences": [reference] } })).await;
    gone(&maps, "child").await;
    let events = cluster.api::<Event>("b");
    let uid = owner.uid().unwrap();
    let told = eventually("the Event", async || {
        let events = events.list(&ListParams::default()).await.unwrap().items;
        let about = |event: &&Event| event.reason.as_deref() == Some("OwnerRefInvalidNamespace");
        events.iter().find(about).cloned().ok_or("no Event")
    })
    .await;
    let expected = format!(
        "ownerRef [v1/ConfigMap, namespace: b, name: owner, uid: {uid}] does not exist in namespace \"b\""
    );
    assert_eq!(told.message, Some(expected));
    cluster.stop().await;
}
