//! The other controllers of pods, and what protects pods from being disturbed.

use std::collections::BTreeSet;

use k8s_openapi::api::{
    apps::v1::{DaemonSet, Deployment, StatefulSet},
    batch::v1::Job,
    core::v1::Pod,
    policy::v1::PodDisruptionBudget,
};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, EvictParams, Patch, PatchParams},
};
use serde_json::{Value, json};

use crate::{
    cluster::Cluster,
    hollow::{ENDS_ANNOTATION, READY_ANNOTATION, Shape, object},
    observe::{create, deployment, eventually, eventually_is, is_ready, node_of, pods, rolled_out},
};

fn template(app: &str, annotations: Value) -> Value {
    json!({
        "metadata": { "labels": { "app": app }, "annotations": annotations },
        "spec": { "containers": [{ "name": "main", "image": "example/v1" }] },
    })
}

async fn ready_nodes_of(client: &Client, app: &str) -> BTreeSet<String> {
    pods(client, app).await.iter().filter(|pod| is_ready(pod)).map(node_of).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_set_runs_on_every_node_and_on_each_that_comes() {
    let mut cluster = Cluster::start(2, 41).await;
    let client = cluster.client();
    let sets = Api::<DaemonSet>::namespaced(client.clone(), "default");
    let set = json!({ "metadata": { "name": "log" }, "spec": { "selector": { "matchLabels": { "app": "log" } },
        "template": template("log", json!({})) } });
    create(&sets, object(set)).await;
    let on = |nodes: &[&str]| nodes.iter().map(|node| (*node).to_owned()).collect::<BTreeSet<_>>();
    eventually_is("a pod on both nodes", on(&["n1", "n2"]), async || ready_nodes_of(&client, "log").await)
        .await;
    cluster.add_node(3, Shape::default());
    let all = on(&["n1", "n2", "n3"]);
    eventually_is("a pod on the new node", all.clone(), async || ready_nodes_of(&client, "log").await).await;
    assert_eq!(pods(&client, "log").await.len(), 3);
    let victim = pods(&client, "log").await.remove(0).name_any();
    let api = Api::<Pod>::namespaced(client.clone(), "default");
    api.delete(&victim, &DeleteParams::default()).await.expect("it is accepted");
    eventually("another pod in the place of the deleted one", async || {
        let names: Vec<_> = pods(&client, "log").await.iter().map(ResourceExt::name_any).collect();
        let nodes = ready_nodes_of(&client, "log").await;
        match !names.contains(&victim) && names.len() == 3 && nodes == all {
            true => Ok(()),
            false => Err(format!("{names:?} on {nodes:?}")),
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stateful_set_goes_up_and_down_in_order_and_keeps_its_names() {
    let cluster = Cluster::start(2, 42).await;
    let client = cluster.client();
    let sets = Api::<StatefulSet>::namespaced(client.clone(), "default");
    let set = |replicas: i32, ready: &str| {
        json!({ "metadata": { "name": "db" }, "spec": { "serviceName": "db", "replicas": replicas,
            "selector": { "matchLabels": { "app": "db" } },
            "template": template("db", json!({ READY_ANNOTATION: ready })) } })
    };
    create(&sets, object(set(3, "false"))).await;
    let names =
        async || -> Vec<String> { pods(&client, "db").await.iter().map(ResourceExt::name_any).collect() };
    let api = Api::<Pod>::namespaced(client.clone(), "default");
    let is_running =
        |pod: &Pod| pod.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Running");
    for index in 0..3 {
        // Each is let become ready by hand; the next must not exist before.
        let name = format!("db-{index}");
        eventually(&format!("{name} to run"), async || {
            let pod = api.get_opt(&name).await.map_err(|error| error.to_string())?;
            pod.filter(is_running).map(drop).ok_or_else(|| "not yet".to_owned())
        })
        .await;
        assert_eq!(names().await.len(), index + 1, "the next waits for {name}");
        let ready = Patch::Merge(json!({ "metadata": { "annotations": { READY_ANNOTATION: "true" } } }));
        api.patch(&name, &PatchParams::default(), &ready).await.expect("the patch is accepted");
    }
    eventually_is("three ready pods", Some(3), async || {
        sets.get("db").await.expect("it exists").status.and_then(|status| status.ready_replicas)
    })
    .await;

    let before = api.get("db-1").await.expect("it exists").uid();
    api.delete("db-1", &DeleteParams::default()).await.expect("it is accepted");
    eventually("another pod of the same name", async || {
        let pod = api.get_opt("db-1").await.map_err(|error| error.to_string())?;
        pod.filter(|pod| pod.uid() != before).map(drop).ok_or_else(|| "not yet".to_owned())
    })
    .await;
    let ready = Patch::Merge(json!({ "metadata": { "annotations": { READY_ANNOTATION: "true" } } }));
    api.patch("db-1", &PatchParams::default(), &ready).await.expect("the patch is accepted");
    let fewer = Patch::Merge(json!({ "spec": { "replicas": 1 } }));
    sets.patch_scale("db", &PatchParams::default(), &fewer).await.expect("the patch is accepted");
    eventually_is("only the first to be left", vec!["db-0".to_owned()], names).await;
}

fn job(name: &str, spec: Value) -> Job {
    object(json!({ "metadata": { "name": name }, "spec": spec }))
}

/// Type and reason of the conditions that hold.
fn verdict(job: &Job) -> Vec<(String, String)> {
    let conditions = job.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let holds = conditions.filter(|condition| condition.status == "True");
    holds.map(|condition| (condition.type_.clone(), condition.reason.clone().unwrap_or_default())).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_ends_when_enough_pods_succeeded_or_too_many_failed() {
    let cluster = Cluster::start(2, 43).await;
    let client = cluster.client();
    let jobs = Api::<Job>::namespaced(client.clone(), "default");
    let pod = |app: &str, ends: &str| {
        let mut template = template(app, json!({ ENDS_ANNOTATION: ends }));
        template["spec"]["restartPolicy"] = "Never".into();
        template
    };
    create(
        &jobs,
        job("good", json!({ "completions": 5, "parallelism": 2, "template": pod("good", "Succeeded") })),
    )
    .await;
    create(&jobs, job("bad", json!({ "backoffLimit": 0, "template": pod("bad", "Failed") }))).await;
    eventually("the good Job to be complete", async || {
        let job = jobs.get("good").await.map_err(|error| error.to_string())?;
        let succeeded = job.status.as_ref().and_then(|status| status.succeeded);
        match succeeded == Some(5) && verdict(&job).iter().any(|(kind, _)| kind == "Complete") {
            true => Ok(()),
            false => Err(format!("{:?}", job.status)),
        }
    })
    .await;
    assert_eq!(pods(&client, "good").await.len(), 5, "as many pods as completions, none of them twice");
    eventually("the bad Job to have failed", async || {
        let job = jobs.get("bad").await.map_err(|error| error.to_string())?;
        match verdict(&job).contains(&("Failed".to_owned(), "BackoffLimitExceeded".to_owned())) {
            true => Ok(()),
            false => Err(format!("{:?}", job.status)),
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disruption_budget_holds_evictions_back_until_the_replacement_is_ready() {
    let cluster = Cluster::start(2, 44).await;
    let client = cluster.client();
    create(&Api::<Deployment>::namespaced(client.clone(), "default"), deployment("web", 3, "v1")).await;
    rolled_out(&client, "web", 3).await;
    let budgets = Api::<PodDisruptionBudget>::namespaced(client.clone(), "default");
    let budget = json!({ "metadata": { "name": "web" }, "spec": { "minAvailable": 3, "selector": { "matchLabels": { "app": "web" } } } });
    create(&budgets, object(budget)).await;
    let allowed = async |wanted: i32| {
        eventually_is("the budget to count", Some(wanted), async || {
            budgets.get("web").await.expect("it exists").status.and_then(|status| status.disruptions_allowed)
        })
        .await;
    };
    allowed(0).await;
    let api = Api::<Pod>::namespaced(client.clone(), "default");
    let victim = pods(&client, "web").await.remove(0).name_any();
    let refusal = api.evict(&victim, &EvictParams::default()).await.expect_err("no disruption is allowed");
    let kube::Error::Api(status) = &refusal else { panic!("{refusal}") };
    assert_eq!((status.code, status.reason.as_str()), (429, "TooManyRequests"));
    assert!(status.message.contains("would violate the pod's disruption budget"), "{}", status.message);

    let more = Patch::Merge(json!({ "spec": { "replicas": 4 } }));
    let deployments = Api::<Deployment>::namespaced(client.clone(), "default");
    deployments.patch_scale("web", &PatchParams::default(), &more).await.expect("the patch is accepted");
    allowed(1).await;
    let other = pods(&client, "web").await.iter().map(ResourceExt::name_any).find(|name| *name != victim);
    let other = other.expect("there are four");
    // At the same moment: simulated nodes have a replacement ready in no time.
    let params = EvictParams::default();
    let (first, second) = futures::join!(api.evict(&victim, &params), api.evict(&other, &params));
    assert_eq!(
        [first.is_ok(), second.is_ok()].iter().filter(|evicted| **evicted).count(),
        1,
        "one disruption is allowed, a second one not before the replacement is ready: {first:?}, {second:?}"
    );
    rolled_out(&client, "web", 4).await;
    allowed(1).await;
}
