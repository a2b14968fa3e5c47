//! A node without containers: what a kubelet says to the API, said about pods that do not run.
//!
//! It registers, renews its Lease, reports pods bound to it as running and ready with an address that it makes up, and lets
//! deleted ones go within their grace period. A pod annotated `hollow/ready: "false"` runs and is not ready; one annotated
//! `hollow/ends: Succeeded` or `Failed` does so.

use std::{
    collections::{BTreeSet, HashMap},
    pin::pin,
    time::Duration,
};

use futures::StreamExt;
use k8s_openapi::{
    api::{
        coordination::v1::Lease,
        core::v1::{Node, Pod},
    },
    apimachinery::pkg::apis::meta::v1::{MicroTime, Time},
    jiff::Timestamp,
};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions},
    runtime::{WatchStreamExt, watcher},
};
use rand::{Rng, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};
use tokio::{task::JoinHandle, time::Instant};

use crate::observe::condition;

/// On a pod: what its readiness shall be.
pub const READY_ANNOTATION: &str = "hollow/ready";
/// On a pod: the phase in which it ends soon after it began to run.
pub const ENDS_ANNOTATION: &str = "hollow/ends";
const BEAT: Duration = Duration::from_millis(300);
const RETRY: Duration = Duration::from_millis(100);

/// What the node offers.
#[derive(Clone, Debug)]
pub struct Shape {
    pub cpu: &'static str,
    pub labels: Value,
}

impl Default for Shape {
    fn default() -> Self {
        Self { cpu: "4", labels: json!({}) }
    }
}

/// Runs until it is silenced or dropped.
pub struct HollowNode {
    task: JoinHandle<()>,
}

impl HollowNode {
    pub fn start(client: Client, index: usize, shape: Shape, seed: u64) -> Self {
        let kubelet = Kubelet {
            client,
            name: format!("n{index}"),
            index,
            shape,
            random: StdRng::seed_from_u64(seed),
            addresses: 0,
            pods: HashMap::new(),
            due: BTreeSet::new(),
        };
        Self { task: tokio::spawn(kubelet.run()) }
    }

    /// From now on nothing is heard of it.
    pub fn silence(&self) {
        self.task.abort();
    }
}

impl Drop for HollowNode {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Kubelet {
    client: Client,
    name: String,
    index: usize,
    shape: Shape,
    random: StdRng,
    /// How many addresses were given out.
    addresses: u8,
    pods: HashMap<String, Pod>,
    /// Which pods want something done, and when.
    due: BTreeSet<(Instant, String)>,
}

impl Kubelet {
    async fn run(mut self) {
        while let Err(error) = self.register().await {
            tracing::debug!(node = self.name, %error, "cannot register");
            tokio::time::sleep(RETRY).await;
        }
        let bound = watcher::Config::default().fields(&format!("spec.nodeName={}", self.name));
        let pods = Api::<Pod>::all(self.client.clone());
        let mut events = pin!(watcher::watcher(pods, bound).default_backoff());
        let mut beat = tokio::time::interval(BEAT);
        loop {
            let next = self.due.first().map(|(at, _)| *at);
            tokio::select! {
                _ = beat.tick() => if let Err(error) = self.beat().await {
                    tracing::debug!(node = self.name, %error, "a heartbeat is lost");
                },
                Some(event) = events.next() => match event {
                    Ok(event) => self.take_in(event),
                    Err(error) => tracing::debug!(node = self.name, %error, "watch interrupted"),
                },
                () = tokio::time::sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => self.act().await,
            }
        }
    }

    async fn register(&self) -> kube::Result<()> {
        let mut labels = json!({ "kubernetes.io/hostname": self.name, "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64" });
        for (name, value) in self.shape.labels.as_object().into_iter().flatten() {
            labels[name] = value.clone();
        }
        let node = object::<Node>(json!({ "metadata": { "name": self.name, "labels": labels } }));
        existing(self.nodes().create(&PostParams::default(), &node).await)?;
        let lease = object::<Lease>(json!({
            "metadata": { "name": self.name },
            "spec": { "holderIdentity": self.name, "leaseDurationSeconds": 40, "renewTime": MicroTime(Timestamp::now()) },
        }));
        existing(self.leases().create(&PostParams::default(), &lease).await)
    }

    fn nodes(&self) -> Api<Node> {
        Api::all(self.client.clone())
    }

    fn leases(&self) -> Api<Lease> {
        Api::namespaced(self.client.clone(), "kube-node-lease")
    }

    /// Renews the Lease, and posts the status where the API's idea of it is another.
    async fn beat(&self) -> kube::Result<()> {
        let renewed = json!({ "spec": { "renewTime": MicroTime(Timestamp::now()) } });
        self.leases().patch(&self.name, &PatchParams::default(), &Patch::Merge(renewed)).await?;
        let node = self.nodes().get(&self.name).await?;
        let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
        if conditions.into_iter().flatten().any(|found| found.type_ == "Ready" && found.status == "True") {
            return Ok(());
        }
        let status = Patch::Strategic(json!({ "status": self.status() }));
        self.nodes().patch_status(&self.name, &PatchParams::default(), &status).await?;
        Ok(())
    }

    fn status(&self) -> Value {
        let now = Time(Timestamp::now());
        let said = [
            ("Ready", "True", "KubeletReady"),
            ("MemoryPressure", "False", "KubeletHasSufficientMemory"),
            ("DiskPressure", "False", "KubeletHasNoDiskPressure"),
            ("PIDPressure", "False", "KubeletHasSufficientPID"),
        ];
        let conditions: Vec<Value> = said
            .iter()
            .map(|(kind, status, reason)| {
                json!({ "type": kind, "status": status, "reason": reason, "message": "hollow",
                    "lastHeartbeatTime": now, "lastTransitionTime": now })
            })
            .collect();
        let resources =
            json!({ "cpu": self.shape.cpu, "memory": "8Gi", "pods": "110", "ephemeral-storage": "10Gi" });
        json!({
            "conditions": conditions,
            "capacity": resources,
            "allocatable": resources,
            "addresses": [
                { "type": "InternalIP", "address": self.address() },
                { "type": "Hostname", "address": self.name },
            ],
        })
    }

    fn address(&self) -> String {
        format!("10.89.0.{}", 10 + self.index)
    }

    fn take_in(&mut self, event: watcher::Event<Pod>) {
        match event {
            watcher::Event::Apply(pod) | watcher::Event::InitApply(pod) => {
                let delay = Duration::from_millis(self.random.random_range(5..80));
                let grace = pod.metadata.deletion_grace_period_seconds.filter(|_| is_terminating(&pod));
                let delay = grace
                    .and_then(|seconds| u64::try_from(seconds).ok())
                    .map_or(delay, |seconds| delay.min(Duration::from_secs(seconds)));
                let uid = pod.uid().unwrap_or_default();
                self.due.insert((Instant::now() + delay, uid.clone()));
                self.pods.insert(uid, pod);
            }
            watcher::Event::Delete(pod) => _ = self.pods.remove(&pod.uid().unwrap_or_default()),
            watcher::Event::Init | watcher::Event::InitDone => {}
        }
    }

    /// Does what the pod that waits longest wants.
    async fn act(&mut self) {
        let Some((_, uid)) = self.due.pop_first() else { return };
        let Some(pod) = self.pods.get(&uid).cloned() else { return };
        let result = if is_terminating(&pod) { self.finish(&pod).await } else { self.report(&pod).await };
        match result {
            Ok(()) => {}
            Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => {
                self.pods.remove(&uid);
            }
            Err(error) => {
                tracing::debug!(node = self.name, pod = pod.name_any(), %error, "will retry");
                self.due.insert((Instant::now() + RETRY, uid));
            }
        }
    }

    async fn finish(&mut self, pod: &Pod) -> kube::Result<()> {
        let preconditions = Some(Preconditions { uid: pod.uid(), resource_version: None });
        let params = DeleteParams { preconditions, ..DeleteParams::default().grace_period(0) };
        self.pods_of(pod).delete(&pod.name_any(), &params).await?;
        Ok(())
    }

    async fn report(&mut self, pod: &Pod) -> kube::Result<()> {
        let said = |annotation: &str| pod.annotations().get(annotation).map(String::as_str);
        let status = pod.status.clone().unwrap_or_default();
        let before = status.phase.as_deref().unwrap_or_default();
        let phase = if before == "Running" { said(ENDS_ANNOTATION).unwrap_or("Running") } else { "Running" };
        let ready = phase == "Running" && said(READY_ANNOTATION) != Some("false");
        let ready = if ready { "True" } else { "False" };
        let ended = matches!(before, "Succeeded" | "Failed");
        if ended || (before == phase && condition(pod, "Ready").is_some_and(|found| found.status == ready)) {
            return Ok(());
        }
        let ip = status.pod_ip.unwrap_or_else(|| {
            self.addresses += 1;
            format!("10.244.{}.{}", self.index, self.addresses)
        });
        let now = Time(Timestamp::now());
        let conditions: Vec<Value> =
            [("PodScheduled", "True"), ("Initialized", "True"), ("ContainersReady", ready), ("Ready", ready)]
                .map(|(kind, status)| json!({ "type": kind, "status": status, "lastTransitionTime": now }))
                .into();
        let state = match phase {
            "Running" => json!({ "running": { "startedAt": now } }),
            ended => json!({ "running": null, "terminated": {
                "exitCode": i32::from(ended == "Failed"), "startedAt": now, "finishedAt": now } }),
        };
        let containers = pod.spec.iter().flat_map(|spec| &spec.containers).map(|container| {
            json!({
                "name": container.name, "image": container.image, "imageID": "", "containerID": "hollow://1",
                "ready": ready == "True", "started": phase == "Running", "restartCount": 0, "state": state,
            })
        });
        let patch = json!({ "metadata": { "uid": pod.uid() }, "status": {
            "phase": phase, "podIP": ip, "podIPs": [{ "ip": ip }],
            "hostIP": self.address(), "hostIPs": [{ "ip": self.address() }],
            "startTime": status.start_time.unwrap_or(now), "conditions": conditions,
            "containerStatuses": containers.collect::<Vec<_>>(),
        } });
        let patch = Patch::Strategic(patch);
        let written =
            self.pods_of(pod).patch_status(&pod.name_any(), &PatchParams::default(), &patch).await?;
        // The watch may have told of something newer meanwhile; then its event is due too.
        self.pods.entry(written.uid().unwrap_or_default()).and_modify(|known| {
            if known.resource_version() == pod.resource_version() {
                *known = written;
            }
        });
        Ok(())
    }

    fn pods_of(&self, pod: &Pod) -> Api<Pod> {
        Api::namespaced(self.client.clone(), &pod.namespace().unwrap_or_default())
    }
}

fn is_terminating(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

fn existing<T>(result: kube::Result<T>) -> kube::Result<()> {
    match result {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(()),
        Err(error) => Err(error),
    }
}

/// A typed object from its JSON.
pub fn object<K: serde::de::DeserializeOwned>(value: Value) -> K {
    serde_json::from_value(value).expect("the test wrote a valid object")
}
