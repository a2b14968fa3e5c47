//! Pod garbage collection: pods that nobody else will ever finish.
//!
//! Those bound to a node that no longer exists (after a quarantine and a live look), those deleted before they were ever
//! scheduled, those stuck on a node that its operator declared out of service, and the oldest finished pods where there
//! are very many.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Pod};
use kube::{Api, ResourceExt};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::cluster::Cluster;
use crate::node_lifecycle::readiness;
use crate::pods;
use crate::reconcile::Result;
use crate::store::Key;
use crate::taint_eviction::evict;
use crate::taints;

/// What the collector tolerates.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Finished pods that may stay.
    pub finished_max: usize,
    /// How long a node must be missing before its pods go.
    pub quarantine: Duration,
}

/// Why a pod is collected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// Its node does not exist.
    Orphaned,
    /// It was deleted before it was scheduled.
    Unscheduled,
    /// Its node is out of service and it is terminating.
    OutOfService,
    /// There are too many finished pods.
    Finished,
}

/// The pods to collect, each with its reason. `missing` tells whether a node has been missing for long enough.
pub fn collectable(
    pods: &[Arc<Pod>],
    node: impl Fn(&str) -> Option<Arc<Node>>,
    missing: impl Fn(&str) -> bool,
    finished_max: usize,
) -> Vec<(Arc<Pod>, Reason)> {
    let mut finished: Vec<&Arc<Pod>> = pods.iter().filter(|pod| pods::is_finished(pod)).collect();
    finished.sort_by(|a, b| {
        (&a.metadata.creation_timestamp, a.name_any()).cmp(&(&b.metadata.creation_timestamp, b.name_any()))
    });
    finished.truncate(finished.len().saturating_sub(finished_max));
    let mut collected: Vec<(Arc<Pod>, Reason)> =
        finished.into_iter().map(|pod| (pod.clone(), Reason::Finished)).collect();
    for pod in pods {
        let reason = match pods::node_name(pod) {
            None if pods::is_terminating(pod) => Some(Reason::Unscheduled),
            None => None,
            Some(name) => match node(name) {
                None => missing(name).then_some(Reason::Orphaned),
                Some(node) => {
                    (pods::is_terminating(pod) && is_out_of_service(&node)).then_some(Reason::OutOfService)
                }
            },
        };
        if let Some(reason) = reason
            && !collected.iter().any(|(known, _)| known.metadata.uid == pod.metadata.uid)
        {
            collected.push((pod.clone(), reason));
        }
    }
    collected
}

fn is_out_of_service(node: &Node) -> bool {
    readiness(node) != "True" && taints::of(node).iter().any(|taint| taint.key == taints::OUT_OF_SERVICE)
}

/// Collects until `cancel` is cancelled.
pub async fn run(cluster: Arc<Cluster>, limits: Limits, cancel: CancellationToken) {
    tokio::select! {
        () = cancel.cancelled() => return,
        () = cluster.wait_synced() => {}
    }
    let mut missing_since: HashMap<String, Instant> = HashMap::new();
    let mut tick = tokio::time::interval(
        limits.quarantine.div_f64(2.0).clamp(Duration::from_secs(1), Duration::from_secs(20)),
    );
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = cancel.cancelled() => return,
            _ = tick.tick() => {}
        }
        let pods = cluster.pods.all();
        let node = |name: &str| cluster.nodes.get(&Key::cluster(name));
        missing_since.retain(|name, _| node(name).is_none());
        for name in pods.iter().filter_map(|pod| pods::node_name(pod)).filter(|name| node(name).is_none()) {
            missing_since.entry(name.to_owned()).or_insert_with(Instant::now);
        }
        let missing =
            |name: &str| missing_since.get(name).is_some_and(|since| since.elapsed() >= limits.quarantine);
        for (pod, reason) in collectable(&pods, node, missing, limits.finished_max) {
            if let Err(error) = collect(&cluster, &pod, reason).await {
                tracing::warn!(pod = %Key::of(&*pod), %error, "cannot collect a pod");
            }
        }
    }
}

async fn collect(cluster: &Cluster, pod: &Pod, reason: Reason) -> Result<()> {
    if reason == Reason::Orphaned {
        let nodes = Api::<Node>::all(cluster.client.clone());
        if nodes.get_opt(pods::node_name(pod).unwrap_or_default()).await?.is_some() {
            return Ok(());
        }
    }
    tracing::info!(pod = %Key::of(pod), ?reason, "collecting a pod");
    let message = match reason {
        Reason::Orphaned => "PodGC: node no longer exists",
        Reason::OutOfService => "PodGC: node is out of service",
        Reason::Unscheduled | Reason::Finished => {
            let api = Api::<Pod>::namespaced(cluster.client.clone(), &pod.namespace().unwrap_or_default());
            let preconditions = kube::api::Preconditions { uid: pod.uid(), resource_version: None };
            let params = kube::api::DeleteParams {
                preconditions: Some(preconditions),
                ..kube::api::DeleteParams::default().grace_period(0)
            };
            crate::reconcile::found(api.delete(&pod.name_any(), &params).await)?;
            return Ok(());
        }
    };
    evict(cluster, pod, "DeletionByPodGC", message, Some(0)).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::{PodSpec, PodStatus};

    fn pod(name: &str, node: Option<&str>, phase: &str, terminating: bool) -> Arc<Pod> {
        let mut pod = Pod::default();
        pod.metadata.name = Some(name.into());
        pod.metadata.uid = Some(name.into());
        pod.metadata.deletion_timestamp = terminating.then(crate::reconcile::now);
        pod.spec = Some(PodSpec { node_name: node.map(Into::into), ..PodSpec::default() });
        pod.status = Some(PodStatus { phase: Some(phase.into()), ..PodStatus::default() });
        Arc::new(pod)
    }

    fn reasons(pods: &[Arc<Pod>], node: Option<Node>, missing: bool, max: usize) -> Vec<(String, Reason)> {
        let found = node.map(Arc::new);
        collectable(pods, |_| found.clone(), |_| missing, max)
            .iter()
            .map(|(pod, reason)| (pod.name_any(), *reason))
            .collect()
    }

    #[test]
    fn pods_of_a_missing_node_wait_for_the_quarantine() {
        let pods = [pod("a", Some("gone"), "Running", false)];
        assert_eq!(reasons(&pods, None, false, 9), []);
        assert_eq!(reasons(&pods, None, true, 9), [("a".to_owned(), Reason::Orphaned)]);
    }

    #[test]
    fn terminating_pods_go_where_nobody_else_can_finish_them() {
        let mut dead = Node::default();
        dead.spec.get_or_insert_default().taints =
            Some(vec![taints::taint(taints::OUT_OF_SERVICE, "NoExecute")]);
        let pods = [
            pod("a", None, "Pending", true),
            pod("b", Some("n"), "Running", true),
            pod("c", Some("n"), "Running", false),
        ];
        let expected = [("a".to_owned(), Reason::Unscheduled), ("b".to_owned(), Reason::OutOfService)];
        assert_eq!(reasons(&pods, Some(dead), false, 9), expected);
        assert_eq!(reasons(&pods[1..], Some(Node::default()), false, 9), []);
    }

    #[test]
    fn only_finished_pods_above_the_limit_go() {
        let pods = [
            pod("a", Some("n"), "Succeeded", false),
            pod("b", Some("n"), "Failed", false),
            pod("c", Some("n"), "Running", false),
        ];
        assert_eq!(reasons(&pods, Some(Node::default()), false, 1), [("a".to_owned(), Reason::Finished)]);
    }
}
