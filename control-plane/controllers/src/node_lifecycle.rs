//! Node lifecycle: notices nodes that stopped answering, and says so in conditions, taints and the readiness of their pods.
//!
//! A node is alive as long as its Lease or the heartbeat of its Ready condition moves. The time of a move is our own
//! clock's, so clocks of nodes need not agree with ours, and a restarted controller gives every node a fresh grace period.
//! Where a whole zone seems dead, the fault is more likely between it and us: nobody is evicted then.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, NodeCondition, Pod, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::cluster::{Cluster, NODE_LEASES};
use crate::events::Severity;
use crate::pods;
use crate::reconcile::{Error, Result, elapsed, found, now};
use crate::store::Key;
use crate::taint_eviction::conditions_with;
use crate::taints;

const NAME: &str = "node-controller";
/// Conditions that turn Unknown with the node, besides Ready.
const PRESSURES: [&str; 3] = ["MemoryPressure", "DiskPressure", "PIDPressure"];

/// How patient the controller is.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// How long a node may be silent before it counts as unreachable.
    pub grace: Duration,
    /// The same for a node that has not spoken yet.
    pub startup_grace: Duration,
}

/// When each node was last seen to move.
#[derive(Debug, Default)]
pub struct Pulses {
    by_node: HashMap<String, Pulse>,
}

#[derive(Debug)]
struct Pulse {
    renewed: Option<String>,
    heartbeat: Option<Time>,
    status: Option<String>,
    seen: Instant,
}

impl Pulses {
    /// Takes in what a node and its Lease say; returns how long ago either last moved.
    pub fn observe(&mut self, node: &Node, lease: Option<&Lease>, now: Instant) -> Duration {
        let ready = condition(node, "Ready");
        let renewed =
            lease.and_then(|lease| lease.spec.as_ref()?.renew_time.as_ref().map(|time| time.0.to_string()));
        let heartbeat = ready.and_then(|ready| ready.last_heartbeat_time.clone());
        // Our own verdict is no sign of life.
        let status = ready.map(|ready| ready.status.clone()).filter(|status| status != "Unknown");
        let fresh = Pulse { renewed, heartbeat, status, seen: now };
        match self.by_node.get_mut(&node.name_any()) {
            None => {
                self.by_node.insert(node.name_any(), fresh);
                Duration::ZERO
            }
            Some(pulse) => {
                let said = fresh.status.is_some() && fresh.status != pulse.status;
                if fresh.renewed != pulse.renewed || fresh.heartbeat != pulse.heartbeat || said {
                    *pulse = fresh;
                }
                now.duration_since(pulse.seen)
            }
        }
    }

    /// Forgets nodes that are gone.
    pub fn retain(&mut self, exists: impl Fn(&str) -> bool) {
        self.by_node.retain(|name, _| exists(name));
    }
}

fn condition<'a>(node: &'a Node, kind: &str) -> Option<&'a NodeCondition> {
    node.status.as_ref()?.conditions.as_ref()?.iter().find(|condition| condition.type_ == kind)
}

/// The value of the node's Ready condition; Unknown where it has none.
pub fn readiness(node: &Node) -> &str {
    condition(node, "Ready").map_or("Unknown", |ready| ready.status.as_str())
}

/// The conditions of a node that fell silent; `None` where they say so already.
pub fn silenced(node: &Node, now: &Time) -> Option<Vec<NodeCondition>> {
    let old = node.status.as_ref().and_then(|status| status.conditions.clone()).unwrap_or_default();
    let mut conditions = old.clone();
    for kind in std::iter::once("Ready").chain(PRESSURES) {
        match conditions.iter_mut().find(|condition| condition.type_ == kind) {
            None => conditions.push(NodeCondition {
                type_: kind.into(),
                status: "Unknown".into(),
                reason: Some("NodeStatusNeverUpdated".into()),
                message: Some("Kubelet never posted node status.".into()),
                last_heartbeat_time: node.metadata.creation_timestamp.clone(),
                last_transition_time: Some(now.clone()),
            }),
            Some(condition) if condition.status != "Unknown" => {
                condition.status = "Unknown".into();
                condition.reason = Some("NodeStatusUnknown".into());
                condition.message = Some("Kubelet stopped posting node status.".into());
                condition.last_transition_time = Some(now.clone());
            }
            Some(_) => {}
        }
    }
    (conditions != old).then_some(conditions)
}

/// The taints that the node's conditions ask for, other taints kept; `None` where they are right already.
///
/// NoSchedule taints follow each condition. NoExecute taints are added where `evict` allows it, and always removed.
pub fn tainted(node: &Node, evict: bool, now: &Time) -> Option<Vec<Taint>> {
    const BY_CONDITION: [(&str, &str, &str); 6] = [
        ("Ready", "False", taints::NOT_READY),
        ("Ready", "Unknown", taints::UNREACHABLE),
        ("MemoryPressure", "True", "node.kubernetes.io/memory-pressure"),
        ("DiskPressure", "True", "node.kubernetes.io/disk-pressure"),
        ("PIDPressure", "True", "node.kubernetes.io/pid-pressure"),
        ("NetworkUnavailable", "True", "node.kubernetes.io/network-unavailable"),
    ];
    let holds =
        |kind: &str, status: &str| condition(node, kind).is_some_and(|condition| condition.status == status);
    let cordoned = node.spec.as_ref().and_then(|spec| spec.unschedulable) == Some(true);
    let mut wanted = vec![(taints::UNSCHEDULABLE, "NoSchedule", cordoned)];
    for (kind, status, key) in BY_CONDITION {
        wanted.push((key, "NoSchedule", holds(kind, status)));
    }
    for (status, key) in [("False", taints::NOT_READY), ("Unknown", taints::UNREACHABLE)] {
        let there = taints::of(node).iter().any(|taint| taint.key == key && taint.effect == "NoExecute");
        wanted.push((key, "NoExecute", holds("Ready", status) && (evict || there)));
    }
    let mut result = taints::of(node).to_vec();
    for (key, effect, wanted) in wanted {
        let there = result.iter().position(|taint| taint.key == key && taint.effect == effect);
        match (wanted, there) {
            (true, None) => {
                result.push(Taint { time_added: Some(now.clone()), ..taints::taint(key, effect) })
            }
            (false, Some(at)) => {
                result.remove(at);
            }
            _ => {}
        }
    }
    (result != taints::of(node)).then_some(result)
}

/// Whether a zone with this many nodes looks alive enough to believe that its silent nodes are really gone.
pub fn is_trustworthy(ready: usize, silent: usize) -> bool {
    ready > 0 && (silent <= 2 || silent * 100 < (ready + silent) * 55)
}

/// Watches the nodes until `cancel` is cancelled.
pub async fn run(cluster: Arc<Cluster>, timing: Timing, cancel: CancellationToken) {
    let mut monitor = Monitor { cluster, timing, pulses: Pulses::default() };
    tokio::select! {
        () = cancel.cancelled() => return,
        () = monitor.cluster.wait_synced() => {}
    }
    let changed = Arc::new(tokio::sync::Notify::new());
    let wake = changed.clone();
    monitor.cluster.nodes.subscribe(move |old, new| {
        // Heartbeats are read on the next tick; conditions and cordons are acted upon at once.
        let relevant = |node: &Node| (readiness(node).to_owned(), node.spec.clone());
        if old.map(|node| relevant(node)) != new.map(|node| relevant(node)) {
            wake.notify_one();
        }
    });
    let mut tick = tokio::time::interval(
        timing.grace.div_f64(8.0).clamp(Duration::from_millis(500), Duration::from_secs(5)),
    );
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = cancel.cancelled() => return,
            _ = tick.tick() => {}
            () = changed.notified() => {}
        }
        monitor.look().await;
    }
}

struct Monitor {
    cluster: Arc<Cluster>,
    timing: Timing,
    pulses: Pulses,
}

impl Monitor {
    async fn look(&mut self) {
        let nodes = self.cluster.nodes.all();
        self.pulses.retain(|name| self.cluster.nodes.get(&Key::cluster(name)).is_some());
        for node in &nodes {
            if let Err(error) = self.check(node).await {
                report(&node.name_any(), &error);
            }
        }
        let mut zones: BTreeMap<String, (usize, usize)> = BTreeMap::new();
        let zone =
            |node: &Node| node.labels().get("topology.kubernetes.io/zone").cloned().unwrap_or_default();
        let nodes = self.cluster.nodes.all();
        for node in &nodes {
            let (ready, silent) = zones.entry(zone(node)).or_default();
            if readiness(node) == "True" { *ready += 1 } else { *silent += 1 }
        }
        for node in &nodes {
            let evict = zones.get(&zone(node)).is_some_and(|(ready, silent)| is_trustworthy(*ready, *silent));
            if let Err(error) = self.settle(node, evict).await {
                report(&node.name_any(), &error);
            }
        }
    }

    /// Turns the conditions of a silent node Unknown.
    async fn check(&mut self, node: &Node) -> Result<()> {
        let lease = self.cluster.leases.get(&Key::new(NODE_LEASES, node.name_any()));
        let silence = self.pulses.observe(node, lease.as_deref(), Instant::now());
        let spoke = condition(node, "Ready").is_some();
        let patience = if spoke { self.timing.grace } else { self.timing.startup_grace };
        let age =
            node.metadata.creation_timestamp.as_ref().map_or(Duration::MAX, |time| elapsed(time.0, now().0));
        if silence <= patience || age <= patience {
            return Ok(());
        }
        let Some(conditions) = silenced(node, &now()) else { return Ok(()) };
        tracing::info!(node = node.name_any(), silent_seconds = silence.as_secs(), "node is unreachable");
        let mut node = node.clone();
        node.status.get_or_insert_default().conditions = Some(conditions);
        let api = Api::<Node>::all(self.cluster.client.clone());
        let written = api.replace_status(&node.name_any(), &PostParams::default(), &node).await?;
        self.cluster.nodes.observe(&written);
        self.cluster.events.report(
            NAME,
            &written,
            Severity::Normal,
            "NodeNotReady",
            format!("Node {} status is now: NodeNotReady", node.name_any()),
        );
        Ok(())
    }

    /// Makes the taints and the readiness of the pods follow the conditions.
    async fn settle(&self, node: &Node, evict: bool) -> Result<()> {
        if let Some(taints) = tainted(node, evict, &now()) {
            let patch = serde_json::json!({
                "metadata": { "resourceVersion": node.resource_version() },
                "spec": { "taints": taints },
            });
            let api = Api::<Node>::all(self.cluster.client.clone());
            if let Some(written) =
                found(api.patch(&node.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await)?
            {
                self.cluster.nodes.observe(&written);
            }
        }
        if readiness(node) == "True" || condition(node, "Ready").is_none() {
            return Ok(());
        }
        let name = node.name_any();
        for pod in self
            .cluster
            .pods
            .all()
            .iter()
            .filter(|pod| pods::node_name(pod) == Some(&name) && pods::is_ready(pod))
        {
            self.mark_not_ready(pod).await?;
        }
        Ok(())
    }

    async fn mark_not_ready(&self, pod: &Pod) -> Result<()> {
        let api = Api::<Pod>::namespaced(self.cluster.client.clone(), &pod.namespace().unwrap_or_default());
        let message = "the node that runs the pod is not ready";
        let conditions = conditions_with(pod, "Ready", "False", "NodeNotReady", message);
        let patch =
            serde_json::json!({ "metadata": { "uid": pod.uid() }, "status": { "conditions": conditions } });
        if let Some(written) =
            found(api.patch_status(&pod.name_any(), &PatchParams::default(), &Patch::Strategic(patch)).await)?
        {
            self.cluster.pods.observe(&written);
            self.cluster.events.report(
                NAME,
                &written,
                Severity::Warning,
                "NodeNotReady",
                "Node is not ready",
            );
        }
        Ok(())
    }
}

fn report(node: &str, error: &Error) {
    match error {
        Error::Api(kube::Error::Api(status)) if status.is_conflict() => {
            tracing::debug!(node, %error, "will retry")
        }
        error => tracing::warn!(node, %error, "cannot settle a node"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::NodeStatus;

    fn node(ready: &str, heartbeat: i64) -> Node {
        let ready = NodeCondition {
            type_: "Ready".into(),
            status: ready.into(),
            last_heartbeat_time: Some(Time(
                k8s_openapi::jiff::Timestamp::from_second(heartbeat).expect("a valid time"),
            )),
            ..NodeCondition::default()
        };
        let mut node = Node {
            status: Some(NodeStatus { conditions: Some(vec![ready]), ..NodeStatus::default() }),
            ..Node::default()
        };
        node.metadata.name = Some("n1".into());
        node
    }

    fn keys(taints: &[Taint]) -> Vec<(String, String)> {
        taints.iter().map(|taint| (taint.key.clone(), taint.effect.clone())).collect()
    }

    #[test]
    fn a_heartbeat_is_life_and_our_own_verdict_is_not() {
        let (mut pulses, start) = (Pulses::default(), Instant::now());
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(pulses.observe(&node("True", 1), None, at(0)), Duration::ZERO);
        assert_eq!(pulses.observe(&node("True", 2), None, at(10)), Duration::ZERO);
        assert_eq!(pulses.observe(&node("True", 2), None, at(60)), Duration::from_secs(50));
        assert_eq!(pulses.observe(&node("Unknown", 2), None, at(70)), Duration::from_secs(60));
        assert_eq!(pulses.observe(&node("True", 3), None, at(80)), Duration::ZERO);
    }

    #[test]
    fn a_silent_node_turns_unknown_once() {
        let silent = node("True", 1);
        let conditions = silenced(&silent, &now()).expect("the first verdict changes the conditions");
        assert!(conditions.iter().all(|condition| condition.status == "Unknown"));
        assert_eq!(conditions.len(), 4);
        let mut said = silent;
        said.status.get_or_insert_default().conditions = Some(conditions);
        assert!(silenced(&said, &now()).is_none());
    }

    #[test]
    fn taints_follow_conditions_and_foreign_ones_stay() {
        let mut lost = node("Unknown", 1);
        let foreign = taints::taint("dedicated", "NoSchedule");
        lost.spec.get_or_insert_default().taints = Some(vec![foreign]);
        let taints = tainted(&lost, true, &now()).expect("two taints are added");
        assert_eq!(
            keys(&taints)[1..],
            [
                (taints::UNREACHABLE.into(), "NoSchedule".into()),
                (taints::UNREACHABLE.into(), "NoExecute".into()),
            ]
        );
        lost.spec.get_or_insert_default().taints = Some(taints.clone());
        assert!(
            tainted(&lost, false, &now()).is_none(),
            "an eviction that has begun is not taken back by distrust"
        );
        let mut back = node("True", 2);
        back.spec.get_or_insert_default().taints = Some(taints);
        assert_eq!(
            keys(&tainted(&back, true, &now()).expect("they go")),
            [("dedicated".to_owned(), "NoSchedule".to_owned())]
        );
    }

    #[test]
    fn without_trust_nobody_is_evicted() {
        let taints = tainted(&node("Unknown", 1), false, &now()).expect("one taint is added");
        assert_eq!(keys(&taints), [(taints::UNREACHABLE.into(), "NoSchedule".into())]);
        assert!(is_trustworthy(2, 1));
        assert!(is_trustworthy(1, 2));
        assert!(!is_trustworthy(0, 1));
        assert!(!is_trustworthy(3, 4));
        assert!(is_trustworthy(97, 3));
    }

    #[test]
    fn a_cordoned_node_is_tainted_for_scheduling_only() {
        let mut cordoned = node("True", 1);
        cordoned.spec.get_or_insert_default().unschedulable = Some(true);
        assert_eq!(
            keys(&tainted(&cordoned, true, &now()).expect("one")),
            [(taints::UNSCHEDULABLE.into(), "NoSchedule".into())]
        );
    }
}
