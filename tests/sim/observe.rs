//! What tests ask of a cluster, and how they wait for the answer.

use std::{
    collections::BTreeMap,
    fmt::Debug,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use futures::StreamExt;
use k8s_openapi::api::{
    apps::v1::{Deployment, ReplicaSet},
    core::v1::{Node, Pod, PodCondition},
};
use kube::{
    Api, Client, ResourceExt,
    api::{ListParams, PostParams},
    runtime::watcher,
};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::hollow::object;

const DEADLINE: Duration = Duration::from_secs(15);
const PAUSE: Duration = Duration::from_millis(40);

/// Looks until there is nothing to complain about; at the deadline the test fails with the last complaint.
pub async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Result<T, String>) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        match look().await {
            Ok(value) => return value,
            Err(complaint) => {
                assert!(Instant::now() < deadline, "waited {DEADLINE:?} for {what}: {complaint}");
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Looks until `look` returns `wanted`.
pub async fn eventually_is<T: PartialEq + Debug>(what: &str, wanted: T, mut look: impl AsyncFnMut() -> T) {
    eventually(what, async || {
        let found = look().await;
        if found == wanted { Ok(()) } else { Err(format!("{found:?} is not {wanted:?}")) }
    })
    .await;
}

/// A Deployment whose pods are labelled `app: <name>`; its image is `example/<version>`.
pub fn deployment(name: &str, replicas: i32, version: &str) -> Deployment {
    object(deployment_value(name, replicas, version))
}

pub fn deployment_value(name: &str, replicas: i32, version: &str) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": { "name": name, "labels": { "app": name } },
        "spec": {
            "replicas": replicas,
            "selector": { "matchLabels": { "app": name } },
            "template": {
                "metadata": { "labels": { "app": name } },
                "spec": { "containers": [{ "name": "main", "image": format!("example/{version}"),
                    "ports": [{ "name": "http", "containerPort": 8080 }] }] },
            },
        },
    })
}

/// The strategic merge patch that `kubectl set image` sends.
pub fn image_patch(version: &str) -> kube::api::Patch<Value> {
    kube::api::Patch::Strategic(json!({ "spec": { "template": { "spec": {
        "containers": [{ "name": "main", "image": format!("example/{version}") }] } } } }))
}

pub async fn create<K>(api: &Api<K>, value: K) -> K
where
    K: Clone + Debug + serde::Serialize + serde::de::DeserializeOwned,
{
    api.create(&PostParams::default(), &value).await.expect("the object is accepted")
}

pub fn condition<'a>(pod: &'a Pod, kind: &str) -> Option<&'a PodCondition> {
    pod.status.as_ref()?.conditions.as_ref()?.iter().find(|condition| condition.type_ == kind)
}

pub fn is_ready(pod: &Pod) -> bool {
    condition(pod, "Ready").is_some_and(|ready| ready.status == "True")
}

pub fn is_terminating(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

pub fn node_of(pod: &Pod) -> String {
    pod.spec.as_ref().and_then(|spec| spec.node_name.clone()).unwrap_or_default()
}

pub fn image_of(pod: &Pod) -> String {
    pod.spec.as_ref().and_then(|spec| spec.containers[0].image.clone()).unwrap_or_default()
}

/// The pods of namespace default labelled `app: <app>`.
pub async fn pods(client: &Client, app: &str) -> Vec<Pod> {
    list(&Api::<Pod>::namespaced(client.clone(), "default"), app).await
}

pub async fn replica_sets(client: &Client, app: &str) -> Vec<ReplicaSet> {
    list(&Api::<ReplicaSet>::namespaced(client.clone(), "default"), app).await
}

async fn list<K>(api: &Api<K>, app: &str) -> Vec<K>
where
    K: Clone + Debug + serde::de::DeserializeOwned,
{
    api.list(&ListParams::default().labels(&format!("app={app}"))).await.expect("the server answers").items
}

/// How many pods of `app` are ready and stay, by node.
pub async fn ready_by_node(client: &Client, app: &str) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for pod in pods(client, app).await.iter().filter(|pod| is_ready(pod) && !is_terminating(pod)) {
        *counts.entry(node_of(pod)).or_default() += 1;
    }
    counts
}

/// Names of the nodes that are Ready and carry no taint.
pub async fn ready_nodes(client: &Client) -> Vec<String> {
    let nodes =
        Api::<Node>::all(client.clone()).list(&ListParams::default()).await.expect("the server answers");
    let ready = nodes.items.iter().filter(|node| {
        let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_ref());
        node_readiness(node) == "True" && taints.is_none_or(Vec::is_empty)
    });
    ready.map(ResourceExt::name_any).collect()
}

pub fn node_readiness(node: &Node) -> &str {
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    conditions
        .iter()
        .find(|condition| condition.type_ == "Ready")
        .map_or("", |condition| condition.status.as_str())
}

/// Waits until the Deployment is rolled out as `kubectl rollout status` understands it, and no pod of it is left over.
pub async fn rolled_out(client: &Client, name: &str, replicas: i32) {
    let deployments = Api::<Deployment>::namespaced(client.clone(), "default");
    eventually(&format!("deployment {name} to be rolled out"), async || {
        let deployment = deployments.get(name).await.map_err(|error| error.to_string())?;
        let status = deployment.status.clone().unwrap_or_default();
        let seen = status.observed_generation == deployment.metadata.generation;
        let counts =
            [status.replicas, status.updated_replicas, status.ready_replicas, status.available_replicas];
        let pods = pods(client, name).await.len();
        let complete = counts.iter().all(|count| count.unwrap_or(0) == replicas);
        match seen && complete && i32::try_from(pods) == Ok(replicas) {
            true => Ok(()),
            false => Err(format!("{pods} pods, status {status:?}")),
        }
    })
    .await;
}

/// What was true of the pods of an app at one revision of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sample {
    /// Not asked to go.
    pub active: usize,
    /// Ready among the active.
    pub ready: usize,
}

/// Counts the pods of an app after every single change.
pub struct Sampler {
    samples: Arc<Mutex<Vec<Sample>>>,
    task: JoinHandle<()>,
}

impl Sampler {
    /// Returns once the watch has begun.
    pub async fn start(client: &Client, app: &str) -> Self {
        let samples = Arc::new(Mutex::new(Vec::new()));
        let api = Api::<Pod>::namespaced(client.clone(), "default");
        let config = watcher::Config::default().labels(&format!("app={app}"));
        let task = tokio::spawn(sample(api, config, samples.clone()));
        eventually("the first sample", async || {
            let begun = !samples.lock().expect("no code panics while it holds this lock").is_empty();
            begun.then_some(()).ok_or_else(|| "none yet".to_owned())
        })
        .await;
        Self { samples, task }
    }

    pub fn samples(&self) -> Vec<Sample> {
        self.samples.lock().expect("no code panics while it holds this lock").clone()
    }
}

impl Drop for Sampler {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn sample(api: Api<Pod>, config: watcher::Config, samples: Arc<Mutex<Vec<Sample>>>) {
    let mut events = std::pin::pin!(watcher::watcher(api, config));
    let mut pods = BTreeMap::new();
    while let Some(event) = events.next().await {
        match event.expect("the watch is not interrupted in this test") {
            watcher::Event::Init => {
                pods.clear();
                continue;
            }
            watcher::Event::InitApply(pod) => {
                pods.insert(pod.uid(), pod);
                continue;
            }
            watcher::Event::InitDone => {}
            watcher::Event::Apply(pod) => _ = pods.insert(pod.uid(), pod),
            watcher::Event::Delete(pod) => _ = pods.remove(&pod.uid()),
        }
        let active: Vec<_> = pods.values().filter(|pod| !is_terminating(pod)).collect();
        let sample =
            Sample { active: active.len(), ready: active.iter().filter(|pod| is_ready(pod)).count() };
        samples.lock().expect("no code panics while it holds this lock").push(sample);
    }
}
