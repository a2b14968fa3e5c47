//! Deployments and what follows from their pods.

use std::collections::BTreeMap;

use k8s_openapi::api::{
    apps::v1::{Deployment, ReplicaSet},
    core::v1::{Endpoints, Pod, Service},
    discovery::v1::EndpointSlice,
};
use kube::{
    Api, Client, ResourceExt,
    api::{ListParams, Patch, PatchParams},
};
use serde_json::json;

use crate::{
    cluster::Cluster,
    hollow::{READY_ANNOTATION, object},
    observe::{
        Sampler, create, deployment, eventually, eventually_is, image_of, image_patch, pods, ready_by_node,
        replica_sets, rolled_out,
    },
};

const REVISION: &str = "deployment.kubernetes.io/revision";

fn deployments(client: &Client) -> Api<Deployment> {
    Api::namespaced(client.clone(), "default")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deployment_of_six_replicas_is_spread_evenly_over_three_nodes() {
    let cluster = Cluster::start(3, 1).await;
    let client = cluster.client();
    create(&deployments(&client), deployment("web", 6, "v1")).await;
    rolled_out(&client, "web", 6).await;
    let spread = ready_by_node(&client, "web").await;
    assert_eq!(spread, BTreeMap::from(["n1", "n2", "n3"].map(|node| (node.to_owned(), 2))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_update_never_leaves_its_bounds() {
    let cluster = Cluster::start(3, 2).await;
    let client = cluster.client();
    let mut web = deployment("web", 6, "v1");
    let strategy =
        json!({ "type": "RollingUpdate", "rollingUpdate": { "maxUnavailable": 1, "maxSurge": 2 } });
    web.spec.as_mut().expect("a Deployment has a spec").strategy = Some(object(strategy));
    create(&deployments(&client), web).await;
    rolled_out(&client, "web", 6).await;

    let sampler = Sampler::start(&client, "web").await;
    for version in ["v2", "v3"] {
        deployments(&client)
            .patch("web", &PatchParams::default(), &image_patch(version))
            .await
            .expect("the patch is accepted");
        rolled_out(&client, "web", 6).await;
        let images: Vec<_> = pods(&client, "web").await.iter().map(image_of).collect();
        assert_eq!(images, vec![format!("example/{version}"); 6]);
    }
    let samples = sampler.samples();
    assert!(samples.len() > 24, "each of 12 pods was made, became ready and went: {samples:?}");
    for sample in &samples {
        assert!(sample.ready >= 5, "more than maxUnavailable are missing: {sample:?} in {samples:?}");
        assert!(sample.active <= 8, "more than maxSurge are too many: {sample:?} in {samples:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_undone_rollout_brings_the_old_replica_set_back() {
    let cluster = Cluster::start(3, 3).await;
    let client = cluster.client();
    create(&deployments(&client), deployment("web", 4, "v1")).await;
    rolled_out(&client, "web", 4).await;
    let first = replica_sets(&client, "web").await.remove(0);
    deployments(&client)
        .patch("web", &PatchParams::default(), &image_patch("v2"))
        .await
        .expect("the patch is accepted");
    rolled_out(&client, "web", 4).await;

    // What `kubectl rollout undo` does: the template of the old ReplicaSet, without the hash, becomes the template again.
    let mut template =
        first.spec.clone().and_then(|spec| spec.template).expect("a ReplicaSet has a template");
    template
        .metadata
        .as_mut()
        .and_then(|meta| meta.labels.as_mut())
        .expect("the template is labelled")
        .remove("pod-template-hash");
    let undo = object(json!([{ "op": "replace", "path": "/spec/template", "value": template }]));
    deployments(&client)
        .patch("web", &PatchParams::default(), &Patch::Json::<()>(undo))
        .await
        .expect("the patch is accepted");
    rolled_out(&client, "web", 4).await;

    assert!(pods(&client, "web").await.iter().all(|pod| image_of(pod) == "example/v1"));
    let by_revision: BTreeMap<String, ReplicaSet> = replica_sets(&client, "web")
        .await
        .into_iter()
        .map(|set| (set.annotations()[REVISION].clone(), set))
        .collect();
    assert_eq!(by_revision.keys().collect::<Vec<_>>(), ["2", "3"], "no third ReplicaSet was made");
    assert_eq!(by_revision["3"].uid(), first.uid());
    assert_eq!(by_revision["2"].spec.as_ref().and_then(|spec| spec.replicas), Some(0));
    let web = deployments(&client).get("web").await.expect("it exists");
    assert_eq!(web.annotations()[REVISION], "3");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scaled_deployment_ends_with_the_pods_it_asks_for() {
    let cluster = Cluster::start(3, 4).await;
    let client = cluster.client();
    create(&deployments(&client), deployment("web", 2, "v1")).await;
    rolled_out(&client, "web", 2).await;
    for replicas in [9, 3, 0, 5] {
        let scale = Patch::Merge(json!({ "spec": { "replicas": replicas } }));
        let scaled = deployments(&client)
            .patch_scale("web", &PatchParams::default(), &scale)
            .await
            .expect("the patch is accepted");
        assert_eq!(scaled.spec.and_then(|spec| spec.replicas), Some(replicas));
        rolled_out(&client, "web", replicas).await;
    }
    assert_eq!(replica_sets(&client, "web").await.len(), 1, "scaling is no rollout");
}

/// Address and readiness of every endpoint of a Service.
async fn endpoints(client: &Client, service: &str) -> BTreeMap<String, bool> {
    let slices = Api::<EndpointSlice>::namespaced(client.clone(), "default");
    let params = ListParams::default().labels(&format!("kubernetes.io/service-name={service}"));
    let mut found = BTreeMap::new();
    for slice in slices.list(&params).await.expect("the server answers") {
        for endpoint in slice.endpoints.into_iter().flatten() {
            let ready = endpoint.conditions.and_then(|conditions| conditions.ready) == Some(true);
            found.insert(endpoint.addresses[0].clone(), ready);
        }
    }
    found
}

/// The addresses of an Endpoints object: ready ones, and the others.
async fn classic_endpoints(client: &Client, service: &str) -> (Vec<String>, Vec<String>) {
    let api = Api::<Endpoints>::namespaced(client.clone(), "default");
    let found = api.get_opt(service).await.expect("the server answers");
    let subsets = found.and_then(|endpoints| endpoints.subsets).unwrap_or_default();
    let ips = |not_ready: bool| {
        let addresses = subsets.iter().flat_map(|subset| {
            if not_ready { &subset.not_ready_addresses } else { &subset.addresses }.iter().flatten()
        });
        let mut ips: Vec<_> = addresses.map(|address| address.ip.clone()).collect();
        ips.sort();
        ips
    };
    (ips(false), ips(true))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn endpoint_slices_follow_the_readiness_of_pods() {
    let cluster = Cluster::start(2, 5).await;
    let client = cluster.client();
    let services = Api::<Service>::namespaced(client.clone(), "default");
    let service = json!({ "metadata": { "name": "web" }, "spec": { "selector": { "app": "web" },
        "ports": [{ "port": 80, "targetPort": "http" }] } });
    create(&services, object(service)).await;
    create(&deployments(&client), deployment("web", 3, "v1")).await;
    rolled_out(&client, "web", 3).await;
    let ip = |pod: &Pod| pod.status.as_ref().and_then(|status| status.pod_ip.clone()).expect("it runs");
    let all = pods(&client, "web").await;
    let expected = |unready: Option<&str>| -> BTreeMap<String, bool> {
        all.iter().map(|pod| (ip(pod), Some(pod.name_any().as_str()) != unready)).collect()
    };
    eventually_is("three ready endpoints", expected(None), async || endpoints(&client, "web").await).await;

    let (pods_api, name) = (Api::<Pod>::namespaced(client.clone(), "default"), all[0].name_any());
    let annotate =
        |value: &str| Patch::Merge(json!({ "metadata": { "annotations": { READY_ANNOTATION: value } } }));
    pods_api.patch(&name, &PatchParams::default(), &annotate("false")).await.expect("the patch is accepted");
    eventually_is("one endpoint not ready", expected(Some(&name)), async || endpoints(&client, "web").await)
        .await;
    eventually("Endpoints that say the same", async || match classic_endpoints(&client, "web").await {
        (ready, unready) if ready.len() == 2 && unready == [ip(&all[0])] => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
    pods_api.patch(&name, &PatchParams::default(), &annotate("true")).await.expect("the patch is accepted");
    eventually_is("three again", expected(None), async || endpoints(&client, "web").await).await;

    let none = Patch::Merge(json!({ "spec": { "replicas": 0 } }));
    deployments(&client).patch_scale("web", &PatchParams::default(), &none).await.expect("it is accepted");
    eventually_is("no endpoint", BTreeMap::new(), async || endpoints(&client, "web").await).await;
}
