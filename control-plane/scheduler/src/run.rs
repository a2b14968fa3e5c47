//! The loop around the cycle: watches feed the snapshot and the queue, decisions become bindings, conditions and Events.
//!
//! One task owns all state. A pod that was given a node is assumed there at once and bound in the background, so the next
//! cycle does not wait for the API.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use futures::stream::{BoxStream, SelectAll, StreamExt};
use k8s_openapi::api::core::v1::{Binding, Namespace, Node, ObjectReference, Pod, Service};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::core::Selector;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::cycle::{FitError, Scheduler};
use crate::events::{Recorder, now};
use crate::plugins::default_preemption::{Budget, Preemption, preempt};
use crate::plugins::default_profile;
use crate::pod::PodInfo;
use crate::queue::{Change, Queue};
use crate::snapshot::Snapshot;

/// The name that pods ask for in `spec.schedulerName`.
pub const SCHEDULER_NAME: &str = "default-scheduler";
/// Bindings and status writes under way at once.
const WRITES_MAX: usize = 128;

enum Input {
    Pod(Box<watcher::Event<Pod>>),
    Node(Box<watcher::Event<Node>>),
    Service(Box<watcher::Event<Service>>),
    Namespace(Box<watcher::Event<Namespace>>),
    Budget(Box<watcher::Event<PodDisruptionBudget>>),
}

/// How a binding ended.
struct Bound {
    pod: Arc<PodInfo>,
    error: Option<kube::Error>,
}

/// Runs the scheduler until `cancel` is cancelled.
pub async fn run(client: Client, cancel: CancellationToken) -> anyhow::Result<()> {
    let mut inputs = watches(&client);
    let mut run = Run {
        scheduler: Scheduler::new(default_profile()),
        snapshot: Snapshot::default(),
        queue: Queue::default(),
        budgets: BTreeMap::new(),
        assumed: HashSet::new(),
        listed: HashMap::new(),
        unlisted: ["Pod", "Node", "Service", "Namespace", "PodDisruptionBudget"].into(),
        writes: Writes {
            events: Recorder::new(client.clone(), SCHEDULER_NAME),
            client,
            permits: Arc::new(Semaphore::new(WRITES_MAX)),
        },
        bindings: JoinSet::new(),
        background: JoinSet::new(),
    };
    loop {
        let ready = run.unlisted.is_empty();
        let deadline = run.queue.next_deadline().filter(|_| ready);
        let pod = if ready { run.queue.pop(Instant::now()) } else { None };
        let idle = pod.is_none();
        if let Some(pod) = pod {
            run.schedule(pod);
        }
        tokio::select! {
            biased;
            () = cancel.cancelled() => return Ok(()),
            Some(input) = inputs.next() => run.take_in(input),
            Some(bound) = run.bindings.join_next() => if let Ok(bound) = bound { run.settle(bound) },
            Some(_) = run.background.join_next() => {}
            () = tokio::task::yield_now(), if !idle => {}
            () = tokio::time::sleep_until(deadline.unwrap_or_else(Instant::now)), if idle && deadline.is_some() => {}
        }
    }
}

fn watches(client: &Client) -> SelectAll<BoxStream<'static, Input>> {
    let mut inputs = SelectAll::new();
    // Finished pods hold nothing that the scheduler counts.
    let live = watcher::Config::default().fields("status.phase!=Succeeded,status.phase!=Failed");
    inputs.push(watch(client, live, Input::Pod));
    inputs.push(watch(client, watcher::Config::default(), Input::Node));
    inputs.push(watch(client, watcher::Config::default(), Input::Service));
    inputs.push(watch(client, watcher::Config::default(), Input::Namespace));
    inputs.push(watch(client, watcher::Config::default(), Input::Budget));
    inputs
}

fn watch<K>(
    client: &Client,
    config: watcher::Config,
    wrap: fn(Box<watcher::Event<K>>) -> Input,
) -> BoxStream<'static, Input>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug + Send + Sync + 'static,
{
    let events = watcher::watcher(Api::<K>::all(client.clone()), config).default_backoff();
    let kind = K::kind(&()).into_owned();
    let inputs = events.filter_map(move |event| {
        let input = match event {
            Ok(event) => Some(wrap(Box::new(event.modify(|object| object.managed_fields_mut().clear())))),
            Err(error) => {
                tracing::debug!(kind, %error, "watch interrupted");
                None
            }
        };
        std::future::ready(input)
    });
    inputs.boxed()
}

struct Run {
    scheduler: Scheduler,
    snapshot: Snapshot,
    queue: Queue,
    budgets: BTreeMap<(String, String), Budget>,
    /// Pods that were given a node which the watch has not confirmed.
    assumed: HashSet<String>,
    /// What a list under way has named so far, by kind.
    listed: HashMap<&'static str, HashSet<String>>,
    /// Kinds whose first list is not complete.
    unlisted: HashSet<&'static str>,
    writes: Writes,
    bindings: JoinSet<Bound>,
    background: JoinSet<()>,
}

impl Run {
    fn take_in(&mut self, input: Input) {
        match input {
            Input::Pod(event) => self.take_in_event(
                "Pod",
                *event,
                |pod| pod.uid().unwrap_or_default(),
                Self::set_pod,
                Self::remove_pod,
                |run| {
                    let placed = run
                        .snapshot
                        .nodes()
                        .flat_map(|node| run.snapshot.node(node).pods.iter().map(|pod| pod.uid.clone()));
                    placed.chain(run.queue.uids()).collect()
                },
            ),
            Input::Node(event) => self.take_in_event(
                "Node",
                *event,
                |node| node.name_any(),
                Self::set_node,
                Self::remove_node,
                |run| run.snapshot.nodes().map(|node| run.snapshot.node(node).name.clone()).collect(),
            ),
            // Those that vanished during a relist only make spreading count too much; the next change corrects it.
            Input::Service(event) => {
                self.take_in_event("Service", *event, full_name, Self::set_service, |_, _| {}, |_| Vec::new())
            }
            Input::Namespace(event) => self.take_in_event(
                "Namespace",
                *event,
                |n| n.name_any(),
                Self::set_namespace,
                |_, _| {},
                |_| Vec::new(),
            ),
            Input::Budget(event) => self.take_in_event(
                "PodDisruptionBudget",
                *event,
                full_name,
                Self::set_budget,
                Self::remove_budget,
                |run| run.budgets.keys().map(|(namespace, name)| format!("{namespace}/{name}")).collect(),
            ),
        }
    }

    /// One path for the events of all kinds: `set` and `remove` change the state, `known` names what a relist may find gone.
    fn take_in_event<K>(
        &mut self,
        kind: &'static str,
        event: watcher::Event<K>,
        name: impl Fn(&K) -> String,
        set: impl Fn(&mut Self, K, bool),
        remove: impl Fn(&mut Self, &str),
        known: impl Fn(&Self) -> Vec<String>,
    ) {
        match event {
            watcher::Event::Init => _ = self.listed.insert(kind, HashSet::new()),
            watcher::Event::InitApply(object) => {
                self.listed.entry(kind).or_default().insert(name(&object));
                set(self, object, true);
            }
            watcher::Event::InitDone => {
                let listed = self.listed.insert(kind, HashSet::new()).unwrap_or_default();
                let assumed = self.assumed.clone();
                for gone in
                    known(self).into_iter().filter(|name| !listed.contains(name) && !assumed.contains(name))
                {
                    remove(self, &gone);
                }
                self.unlisted.remove(kind);
            }
            watcher::Event::Apply(object) => set(self, object, true),
            watcher::Event::Delete(object) => {
                let gone = name(&object);
                set(self, object, false);
                remove(self, &gone);
            }
        }
    }

    fn set_pod(&mut self, pod: Pod, exists: bool) {
        if !exists {
            return;
        }
        let info = Arc::new(PodInfo::new(Arc::new(pod)));
        let node = info.spec().node_name.clone().filter(|node| !node.is_empty());
        if let Some(node) = node {
            let confirmed = self.assumed.remove(&info.uid);
            let moved = self.snapshot.node_of(&info.uid) != Some(&node);
            self.queue.remove(&info.uid);
            self.snapshot.set_pod(info, &node);
            if moved || confirmed {
                self.queue.changed(Change::PodPlaced, Instant::now());
            }
            return;
        }
        if self.assumed.contains(&info.uid) {
            return;
        }
        if !is_ours(&info) {
            self.queue.remove(&info.uid);
            return self.snapshot.forget_nomination(&info.uid);
        }
        let nominated = info
            .pod
            .status
            .as_ref()
            .and_then(|status| status.nominated_node_name.clone())
            .filter(|node| !node.is_empty());
        self.snapshot.nominate(info.clone(), nominated.as_deref());
        self.queue.add(info, Instant::now());
    }

    fn remove_pod(&mut self, uid: &str) {
        self.assumed.remove(uid);
        self.queue.remove(uid);
        self.snapshot.forget_nomination(uid);
        if self.snapshot.remove_pod(uid) {
            self.queue.changed(Change::PodRemoved, Instant::now());
        }
    }

    fn set_node(&mut self, node: Node, exists: bool) {
        if !exists {
            return;
        }
        let before = self.snapshot.find(&node.name_any()).map(|at| picture(&self.snapshot, at));
        self.snapshot.set_node(&node);
        let after = self.snapshot.find(&node.name_any()).map(|at| picture(&self.snapshot, at));
        if before != after {
            self.queue.changed(Change::Node, Instant::now());
        }
    }

    fn remove_node(&mut self, name: &str) {
        self.snapshot.remove_node(name);
        self.queue.changed(Change::Node, Instant::now());
    }

    fn set_service(&mut self, service: Service, exists: bool) {
        let selector = service.spec.as_ref().and_then(|spec| spec.selector.clone()).filter(|_| exists);
        self.snapshot.set_service(service.namespace().unwrap_or_default(), service.name_any(), selector);
    }

    fn set_namespace(&mut self, namespace: Namespace, exists: bool) {
        let labels = exists.then(|| namespace.labels().clone());
        self.snapshot.set_namespace(namespace.name_any(), labels);
    }

    fn set_budget(&mut self, budget: PodDisruptionBudget, exists: bool) {
        let key = (budget.namespace().unwrap_or_default(), budget.name_any());
        let selector = budget.spec.as_ref().and_then(|spec| spec.selector.clone());
        let Some(selector) =
            selector.and_then(|selector| Selector::try_from(selector).ok()).filter(|_| exists)
        else {
            self.budgets.remove(&key);
            return;
        };
        let allowed = budget.status.as_ref().and_then(|status| status.disruptions_allowed).unwrap_or(0);
        self.budgets.insert(key.clone(), Budget { namespace: key.0, selector, allowed });
    }

    fn remove_budget(&mut self, name: &str) {
        if let Some((namespace, name)) = name.split_once('/') {
            self.budgets.remove(&(namespace.to_owned(), name.to_owned()));
        }
    }

    fn schedule(&mut self, pod: Arc<PodInfo>) {
        match self.scheduler.schedule(&self.snapshot, &pod) {
            Ok(node) => {
                let node = self.snapshot.node(node).name.clone();
                tracing::debug!(pod = pod.full_name(), node, "placing a pod");
                // Reserve: from here on the next cycle sees the pod on its node.
                self.snapshot.set_pod(pod.clone(), &node);
                self.assumed.insert(pod.uid.clone());
                let writes = self.writes.clone();
                self.bindings.spawn(async move {
                    let error = writes.bind(&pod, &node).await.err();
                    Bound { pod, error }
                });
            }
            Err(error) => self.reject(pod, error),
        }
    }

    fn reject(&mut self, pod: Arc<PodInfo>, mut error: Box<FitError>) {
        let mut preemption = None;
        if !self.is_being_made_room_for(&pod) && error.nodes > 0 {
            let budgets: Vec<Budget> = self.budgets.values().cloned().collect();
            match preempt(&self.scheduler, &self.snapshot, &pod, &error, &budgets) {
                Ok(found) => {
                    self.snapshot.nominate(pod.clone(), Some(&found.node));
                    preemption = Some(found);
                }
                Err(reason) => error.preemption = Some(reason),
            }
        }
        let message = error.to_string();
        tracing::debug!(pod = pod.full_name(), message, "no node for a pod");
        self.queue.reject(&pod.uid, error.plugins, Instant::now());
        let writes = self.writes.clone();
        self.background.spawn(async move { writes.unschedulable(&pod, message, preemption).await });
    }

    /// Whether victims of an earlier preemption are still on their way out.
    fn is_being_made_room_for(&self, pod: &PodInfo) -> bool {
        let nominated = pod.pod.status.as_ref().and_then(|status| status.nominated_node_name.as_deref());
        let Some(node) = nominated.and_then(|node| self.snapshot.find(node)) else { return false };
        let pods = &self.snapshot.node(node).pods;
        pods.iter()
            .any(|other| other.priority < pod.priority && other.pod.metadata.deletion_timestamp.is_some())
    }

    fn settle(&mut self, bound: Bound) {
        let Some(error) = bound.error else {
            self.queue.remove(&bound.pod.uid);
            return;
        };
        if !self.assumed.remove(&bound.pod.uid) {
            return;
        }
        self.snapshot.remove_pod(&bound.pod.uid);
        match &error {
            kube::Error::Api(status) if status.is_not_found() => self.queue.remove(&bound.pod.uid),
            error => {
                tracing::warn!(pod = bound.pod.full_name(), %error, "cannot bind a pod");
                self.queue.retry(&bound.pod.uid, Instant::now());
                let (writes, message) = (self.writes.clone(), format!("binding rejected: {error}"));
                let pod = bound.pod;
                self.background.spawn(async move {
                    writes.events.report(&pod, "Warning", "FailedScheduling", message).await
                });
            }
        }
    }
}

fn full_name<K: Resource>(object: &K) -> String {
    format!("{}/{}", object.namespace().unwrap_or_default(), object.name_any())
}

fn is_ours(pod: &PodInfo) -> bool {
    let spec = pod.spec();
    let named = spec.scheduler_name.as_deref().filter(|name| !name.is_empty()).unwrap_or(SCHEDULER_NAME);
    named == SCHEDULER_NAME
        && spec.scheduling_gates.as_ref().is_none_or(|gates| gates.is_empty())
        && pod.pod.metadata.deletion_timestamp.is_none()
}

/// What of a node decides about pods; heartbeats change nothing of it.
type Picture = (BTreeMap<String, String>, String, bool, Vec<(String, i64)>);

fn picture(snapshot: &Snapshot, node: crate::snapshot::NodeIndex) -> Picture {
    let row = snapshot.node(node);
    let taints =
        row.taints.iter().map(|taint| format!("{}={:?}:{}", taint.key, taint.value, taint.effect)).collect();
    (row.labels.clone(), taints, row.unschedulable, snapshot.allocatable(node))
}

/// Everything that is written to the API.
#[derive(Clone)]
struct Writes {
    client: Client,
    events: Recorder,
    permits: Arc<Semaphore>,
}

impl Writes {
    async fn bind(&self, pod: &PodInfo, node: &str) -> kube::Result<()> {
        let _permit = self.permits.acquire().await;
        let name = pod.pod.name_any();
        let binding = Binding {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                namespace: Some(pod.namespace.clone()),
                uid: Some(pod.uid.clone()),
                ..ObjectMeta::default()
            },
            target: ObjectReference {
                kind: Some("Node".into()),
                name: Some(node.to_owned()),
                ..ObjectReference::default()
            },
        };
        let answer: serde_json::Value =
            self.pods(pod).create_subresource("binding", &name, &PostParams::default(), &binding).await?;
        tracing::trace!(pod = pod.full_name(), %answer, "bound");
        let message = format!("Successfully assigned {} to {node}", pod.full_name());
        self.events.report(pod, "Normal", "Scheduled", message).await;
        Ok(())
    }

    async fn unschedulable(&self, pod: &PodInfo, message: String, preemption: Option<Preemption>) {
        let _permit = self.permits.acquire().await;
        self.events.report(pod, "Warning", "FailedScheduling", message.clone()).await;
        let known = pod.pod.status.as_ref().and_then(|status| status.conditions.as_ref());
        let known = known
            .and_then(|conditions| conditions.iter().find(|condition| condition.type_ == "PodScheduled"));
        let said =
            known.is_some_and(|known| known.status == "False" && known.message.as_deref() == Some(&message));
        let mut status = serde_json::Map::new();
        if !said {
            let since = known
                .filter(|known| known.status == "False")
                .and_then(|known| known.last_transition_time.clone());
            let condition = serde_json::json!([{
                "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message,
                "lastTransitionTime": since.unwrap_or_else(now), "observedGeneration": pod.pod.metadata.generation,
            }]);
            status.insert("conditions".into(), condition);
        }
        if let Some(preemption) = &preemption {
            status.insert("nominatedNodeName".into(), preemption.node.clone().into());
        }
        if !status.is_empty() {
            let patch = serde_json::json!({ "metadata": { "uid": pod.uid }, "status": status });
            self.patch_status(pod, patch).await;
        }
        for victim in preemption.iter().flat_map(|preemption| &preemption.victims) {
            self.evict(
                victim,
                pod,
                &preemption.as_ref().map(|preemption| preemption.node.clone()).unwrap_or_default(),
            )
            .await;
        }
    }

    async fn evict(&self, victim: &PodInfo, preemptor: &PodInfo, node: &str) {
        let condition = serde_json::json!([{
            "type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler",
            "message": format!("{SCHEDULER_NAME}: preempting to accommodate a higher priority pod"),
            "lastTransitionTime": now(), "observedGeneration": victim.pod.metadata.generation,
        }]);
        self.patch_status(
            victim,
            serde_json::json!({ "metadata": { "uid": victim.uid }, "status": { "conditions": condition } }),
        )
        .await;
        let preconditions = Preconditions { uid: Some(victim.uid.clone()), resource_version: None };
        let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
        match self.pods(victim).delete(&victim.pod.name_any(), &params).await {
            Ok(_) => {
                let message = format!("Preempted by pod {} on node {node}", preemptor.uid);
                self.events.report(victim, "Normal", "Preempted", message).await;
            }
            Err(kube::Error::Api(status)) if status.is_not_found() => {}
            Err(error) => tracing::warn!(pod = victim.full_name(), %error, "cannot preempt a pod"),
        }
    }

    async fn patch_status(&self, pod: &PodInfo, patch: serde_json::Value) {
        let result = self
            .pods(pod)
            .patch_status(&pod.pod.name_any(), &PatchParams::default(), &Patch::Strategic(patch))
            .await;
        match result {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.is_not_found() => {}
            Err(error) => tracing::warn!(pod = pod.full_name(), %error, "cannot write a pod's status"),
        }
    }

    fn pods(&self, pod: &PodInfo) -> Api<Pod> {
        Api::namespaced(self.client.clone(), &pod.namespace)
    }
}
