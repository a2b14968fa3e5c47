//! Taint eviction: deletes pods that do not, or no longer, tolerate the NoExecute taints of their node.
//!
//! The clock of a toleration starts when the taint was added, as the taint itself says, so a restart of the controllers
//! gives nobody more time.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod, Taint};
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, Patch, PatchParams};
use kube::{Api, ResourceExt};

use crate::cluster::Cluster;
use crate::events::Severity;
use crate::pods;
use crate::queue::Queue;
use crate::reconcile::{Next, Reconcile, Result, elapsed, found, now};
use crate::store::Key;
use crate::taints::{self, Stay};

/// The taint eviction controller.
pub struct Controller {
    cluster: Arc<Cluster>,
}

/// Makes the controller and the queue that feeds it.
pub fn new(cluster: &Arc<Cluster>) -> (Arc<Controller>, Arc<Queue>) {
    let queue = Arc::new(Queue::default());
    let (dirty, nodes) = (queue.clone(), cluster.nodes.clone());
    cluster.pods.subscribe(move |_, new| {
        let Some((pod, node)) =
            new.and_then(|pod| Some((pod, nodes.get(&Key::cluster(pods::node_name(pod)?))?)))
        else {
            return;
        };
        if no_execute(&node).next().is_some() {
            dirty.add(Key::of(&**pod));
        }
    });
    let (dirty, all) = (queue.clone(), cluster.pods.clone());
    cluster.nodes.subscribe(move |old, new| {
        let Some(node) = new else { return };
        if !no_execute(node).eq(old.into_iter().flat_map(|old| no_execute(old))) {
            let name = node.name_any();
            all.all()
                .iter()
                .filter(|pod| pods::node_name(pod) == Some(&name))
                .for_each(|pod| dirty.add(Key::of(&**pod)));
        }
    });
    (Arc::new(Controller { cluster: cluster.clone() }), queue)
}

fn no_execute(node: &Node) -> impl Iterator<Item = &Taint> {
    taints::of(node).iter().filter(|taint| taint.effect == "NoExecute")
}

/// When the pod must leave: `None` never, zero now.
pub fn leaves_in(pod: &Pod, node: &Node, now: Timestamp) -> Option<std::time::Duration> {
    let tolerations = pod.spec.as_ref().and_then(|spec| spec.tolerations.as_deref()).unwrap_or_default();
    match taints::stay(taints::of(node), tolerations) {
        Stay::Forever => None,
        Stay::No => Some(std::time::Duration::ZERO),
        Stay::For(granted) => {
            // The youngest taint: each must have been there for as long as it is tolerated.
            let added =
                no_execute(node).filter_map(|taint| taint.time_added.as_ref().map(|time| time.0)).max();
            Some(granted.saturating_sub(elapsed(added.unwrap_or(now), now)))
        }
    }
}

impl Reconcile for Controller {
    const NAME: &'static str = "taint-eviction-controller";

    async fn reconcile(&self, key: &Key) -> Result {
        let Some(pod) = self.cluster.pods.get(key).filter(|pod| !pods::is_terminating(pod)) else {
            return Ok(Next::Change);
        };
        let node = pods::node_name(&pod).and_then(|name| self.cluster.nodes.get(&Key::cluster(name)));
        let Some(node) = node else { return Ok(Next::Change) };
        match leaves_in(&pod, &node, now().0) {
            None => Ok(Next::Change),
            Some(wait) if !wait.is_zero() => Ok(Next::After(wait)),
            Some(_) => {
                let message = format!("Marking for deletion Pod {key}");
                self.cluster.events.report(
                    Self::NAME,
                    &*pod,
                    Severity::Normal,
                    "TaintManagerEviction",
                    message,
                );
                evict(
                    &self.cluster,
                    &pod,
                    "DeletionByTaintManager",
                    "Taint manager: deleting due to NoExecute taint",
                    None,
                )
                .await?;
                Ok(Next::Change)
            }
        }
    }
}

/// Deletes a pod that did not ask for it, saying why in its DisruptionTarget condition. `grace` of `None` is the pod's own.
pub async fn evict(
    cluster: &Cluster,
    pod: &Pod,
    reason: &str,
    message: &str,
    grace: Option<u32>,
) -> Result<()> {
    let api = Api::<Pod>::namespaced(cluster.client.clone(), &pod.namespace().unwrap_or_default());
    let name = pod.name_any();
    let mut status = serde_json::json!({ "conditions": conditions_with(pod, "DisruptionTarget", "True", reason, message) });
    if grace == Some(0) && !pods::is_finished(pod) {
        // Nobody is left who could report how the pod ended.
        status["phase"] = "Failed".into();
    }
    let patch = serde_json::json!({ "metadata": { "uid": pod.uid() }, "status": status });
    if found(api.patch_status(&name, &PatchParams::default(), &Patch::Strategic(patch)).await)?.is_none() {
        return Ok(());
    }
    let preconditions = kube::api::Preconditions { uid: pod.uid(), resource_version: None };
    let params = DeleteParams {
        grace_period_seconds: grace,
        preconditions: Some(preconditions),
        ..DeleteParams::default()
    };
    found(api.delete(&name, &params).await)?;
    Ok(())
}

/// The strategic-merge form of one condition, its transition time kept where the status stays.
pub fn conditions_with(
    pod: &Pod,
    kind: &str,
    status: &str,
    reason: &str,
    message: &str,
) -> serde_json::Value {
    let known = pods::condition(pod, kind).filter(|condition| condition.status == status);
    let since = known.and_then(|condition| condition.last_transition_time.clone()).unwrap_or_else(now);
    serde_json::json!([{
        "type": kind, "status": status, "reason": reason, "message": message,
        "lastTransitionTime": since, "observedGeneration": pod.metadata.generation,
    }])
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::{NodeSpec, PodSpec, Toleration};
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
    use std::time::Duration;

    #[test]
    fn the_clock_starts_when_the_taint_was_added() {
        let added = Timestamp::from_second(1_700_000_000).expect("a valid time");
        let mut unreachable = taints::taint(taints::UNREACHABLE, "NoExecute");
        unreachable.time_added = Some(Time(added));
        let node = Node {
            spec: Some(NodeSpec { taints: Some(vec![unreachable]), ..NodeSpec::default() }),
            ..Node::default()
        };
        let toleration = Toleration {
            operator: Some("Exists".into()),
            toleration_seconds: Some(300),
            ..Toleration::default()
        };
        let pod = Pod {
            spec: Some(PodSpec { tolerations: Some(vec![toleration]), ..PodSpec::default() }),
            ..Pod::default()
        };
        let at = |seconds: u64| added + Duration::from_secs(seconds);
        assert_eq!(leaves_in(&pod, &node, at(100)), Some(Duration::from_secs(200)));
        assert_eq!(leaves_in(&pod, &node, at(301)), Some(Duration::ZERO));
        assert_eq!(leaves_in(&Pod::default(), &node, at(0)), Some(Duration::ZERO));
        assert_eq!(leaves_in(&Pod::default(), &Node::default(), at(0)), None);
    }
}
