//! Taints and tolerations. No IO.

use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, Taint, Toleration};
use scheduler::predicates::tolerates;

/// The node does not answer: its Ready condition is Unknown.
pub const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
/// The node says that it is not ready.
pub const NOT_READY: &str = "node.kubernetes.io/not-ready";
/// An operator says that the node is gone for good.
pub const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";
/// The node is cordoned.
pub const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

/// The node's taints.
pub fn of(node: &Node) -> &[Taint] {
    node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default()
}

/// How long a pod may stay on a node with these NoExecute taints.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stay {
    /// As long as it likes.
    Forever,
    /// This long after the taint was added.
    For(Duration),
    /// Not at all.
    No,
}

/// What `tolerations` grant against the NoExecute taints among `taints`.
pub fn stay(taints: &[Taint], tolerations: &[Toleration]) -> Stay {
    let mut seconds_min: Option<i64> = None;
    for taint in taints.iter().filter(|taint| taint.effect == "NoExecute") {
        let mut tolerated = tolerations.iter().filter(|toleration| tolerates(toleration, taint)).peekable();
        if tolerated.peek().is_none() {
            return Stay::No;
        }
        for seconds in tolerated.filter_map(|toleration| toleration.toleration_seconds) {
            seconds_min = Some(seconds_min.map_or(seconds, |min| min.min(seconds)));
        }
    }
    match seconds_min {
        None => Stay::Forever,
        Some(seconds) => u64::try_from(seconds)
            .ok()
            .filter(|seconds| *seconds > 0)
            .map_or(Stay::No, |s| Stay::For(Duration::from_secs(s))),
    }
}

/// A taint by key and effect.
pub fn taint(key: &str, effect: &str) -> Taint {
    Taint { key: key.to_owned(), effect: effect.to_owned(), ..Taint::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn toleration(key: &str, operator: &str, seconds: Option<i64>) -> Toleration {
        Toleration {
            key: Some(key.into()),
            operator: Some(operator.into()),
            toleration_seconds: seconds,
            ..Toleration::default()
        }
    }

    #[test]
    fn the_shortest_toleration_counts_and_an_untolerated_taint_ends_it() {
        let taints = [taint(UNREACHABLE, "NoExecute"), taint(NOT_READY, "NoExecute")];
        let both = [toleration(UNREACHABLE, "Exists", Some(300)), toleration(NOT_READY, "Exists", Some(30))];
        assert_eq!(stay(&taints, &both), Stay::For(Duration::from_secs(30)));
        assert_eq!(stay(&taints, &both[..1]), Stay::No);
        assert_eq!(stay(&taints, &[toleration("", "Exists", None)]), Stay::Forever);
        assert_eq!(stay(&[taint(NOT_READY, "NoSchedule")], &[]), Stay::Forever);
        assert_eq!(stay(&taints[..1], &[toleration(UNREACHABLE, "Exists", Some(0))]), Stay::No);
    }
}
