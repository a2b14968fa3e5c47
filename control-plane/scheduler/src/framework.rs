//! The scheduling framework: extension points with upstream's names, and the plugins that fill them.
//!
//! ```text
//! PreFilter -> Filter (per node) -> [PostFilter, if no node is left] -> PreScore -> Score (per node) -> Normalize
//!     -> Reserve -> Permit -> PreBind -> Bind
//! ```
//!
//! Everything up to Permit is pure on a [`Snapshot`]. What a plugin computes in PreFilter or PreScore is the value it
//! returns, which then answers for single nodes: there is no shared state between plugins. Reserve is the assumption of
//! the pod in the snapshot, Bind the write to the API; both are in `run`.

use crate::pod::PodInfo;
use crate::snapshot::{NodeIndex, Snapshot};

/// Why a node does not suit a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    /// What the user reads, in upstream's words; several where several things are missing.
    pub reasons: Vec<String>,
    /// Whether removing pods from the node could help.
    pub resolvable: bool,
}

impl Rejection {
    /// A rejection that the removal of pods may resolve.
    pub fn resolvable(reason: impl Into<String>) -> Self {
        Self { reasons: vec![reason.into()], resolvable: true }
    }

    /// A rejection that only a change of node or pod can resolve.
    pub fn unresolvable(reason: impl Into<String>) -> Self {
        Self { reasons: vec![reason.into()], resolvable: false }
    }
}

/// What a plugin found out before it looks at single nodes.
pub enum PreFilter<'a> {
    /// The pod does not concern the plugin.
    Skip,
    /// No node can suit the pod.
    Unschedulable(String),
    /// Ask per node.
    Filter(Box<dyn Filter + 'a>),
}

/// Answers whether single nodes suit one pod.
pub trait Filter {
    /// Whether `node` suits the pod.
    fn filter(&self, node: NodeIndex) -> Result<(), Rejection>;
}

/// The best score of a node.
pub const SCORE_MAX: i64 = 100;

/// Compares nodes for one pod.
pub trait Score {
    /// How well `node` suits, on the plugin's own scale.
    fn score(&self, node: NodeIndex) -> i64;

    /// Brings the scores of all nodes to 0..=[`SCORE_MAX`].
    fn normalize(&self, _scores: &mut [i64]) {}
}

/// One file of `plugins`.
pub trait Plugin: Send + Sync {
    /// Upstream's name.
    fn name(&self) -> &'static str;

    /// PreFilter.
    fn pre_filter<'a>(&'a self, _snapshot: &'a Snapshot, _pod: &'a PodInfo) -> PreFilter<'a> {
        PreFilter::Skip
    }

    /// PreScore; `None` if all nodes are the same to the plugin.
    fn pre_score<'a>(
        &'a self,
        _snapshot: &'a Snapshot,
        _pod: &'a PodInfo,
        _nodes: &[NodeIndex],
    ) -> Option<Box<dyn Score + 'a>> {
        None
    }

    /// How much the plugin's scores count.
    fn weight(&self) -> i64 {
        1
    }
}

/// Scales scores so that the highest becomes [`SCORE_MAX`]; with `reverse`, the highest becomes the lowest.
pub fn normalize(scores: &mut [i64], reverse: bool) {
    let max = scores.iter().copied().max().unwrap_or(0);
    for score in scores {
        let scaled = if max == 0 { 0 } else { *score * SCORE_MAX / max };
        *score = if reverse { SCORE_MAX - scaled } else { scaled };
    }
}
