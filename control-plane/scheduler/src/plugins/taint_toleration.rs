//! TaintToleration: untolerated NoSchedule and NoExecute taints exclude a node, PreferNoSchedule ones count against it.

use k8s_openapi::api::core::v1::Toleration;

use crate::framework::{Filter, Plugin, PreFilter, Rejection, Score, normalize};
use crate::pod::PodInfo;
use crate::predicates::{tolerates, untolerated};
use crate::snapshot::{NodeIndex, Snapshot};

/// The plugin.
pub struct TaintToleration;

struct State<'a> {
    snapshot: &'a Snapshot,
    tolerations: &'a [Toleration],
}

impl<'a> State<'a> {
    fn new(snapshot: &'a Snapshot, pod: &'a PodInfo) -> Self {
        Self { snapshot, tolerations: pod.spec().tolerations.as_deref().unwrap_or_default() }
    }
}

impl Plugin for TaintToleration {
    fn name(&self) -> &'static str {
        "TaintToleration"
    }

    fn weight(&self) -> i64 {
        3
    }

    fn pre_filter<'a>(&'a self, snapshot: &'a Snapshot, pod: &'a PodInfo) -> PreFilter<'a> {
        PreFilter::Filter(Box::new(State::new(snapshot, pod)))
    }

    fn pre_score<'a>(
        &'a self,
        snapshot: &'a Snapshot,
        pod: &'a PodInfo,
        nodes: &[NodeIndex],
    ) -> Option<Box<dyn Score + 'a>> {
        let soft = |node: &NodeIndex| {
            snapshot.node(*node).taints.iter().any(|taint| taint.effect == "PreferNoSchedule")
        };
        nodes.iter().any(soft).then(|| Box::new(State::new(snapshot, pod)) as Box<dyn Score>)
    }
}

impl Filter for State<'_> {
    fn filter(&self, node: NodeIndex) -> Result<(), Rejection> {
        let taints = &self.snapshot.node(node).taints;
        match untolerated(taints, self.tolerations, &["NoSchedule", "NoExecute"]) {
            None => Ok(()),
            Some(taint) => {
                let value = taint.value.as_deref().unwrap_or_default();
                Err(Rejection::unresolvable(format!(
                    "node(s) had untolerated taint {{{}: {value}}}",
                    taint.key
                )))
            }
        }
    }
}

impl Score for State<'_> {
    fn score(&self, node: NodeIndex) -> i64 {
        let taints =
            self.snapshot.node(node).taints.iter().filter(|taint| taint.effect == "PreferNoSchedule");
        let untolerated =
            taints.filter(|taint| !self.tolerations.iter().any(|toleration| tolerates(toleration, taint)));
        i64::try_from(untolerated.count()).unwrap_or(i64::MAX)
    }

    fn normalize(&self, scores: &mut [i64]) {
        normalize(scores, true);
    }
}
