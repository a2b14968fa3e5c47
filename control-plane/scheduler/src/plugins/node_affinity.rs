//! NodeAffinity: the node selector and the required node affinity exclude nodes, preferred terms add to the score.

use crate::framework::{Filter, Plugin, PreFilter, Rejection, Score, normalize};
use crate::pod::PodInfo;
use crate::predicates::{accepts_node, term_matches};
use crate::snapshot::{NodeIndex, Snapshot};

/// The plugin.
pub struct NodeAffinity;

struct State<'a> {
    snapshot: &'a Snapshot,
    pod: &'a PodInfo,
}

impl Plugin for NodeAffinity {
    fn name(&self) -> &'static str {
        "NodeAffinity"
    }

    fn weight(&self) -> i64 {
        2
    }

    fn pre_filter<'a>(&'a self, snapshot: &'a Snapshot, pod: &'a PodInfo) -> PreFilter<'a> {
        let affinity = pod.spec().affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref());
        let required = affinity
            .is_some_and(|affinity| affinity.required_during_scheduling_ignored_during_execution.is_some());
        if !required && pod.spec().node_selector.as_ref().is_none_or(|selector| selector.is_empty()) {
            return PreFilter::Skip;
        }
        PreFilter::Filter(Box::new(State { snapshot, pod }))
    }

    fn pre_score<'a>(
        &'a self,
        snapshot: &'a Snapshot,
        pod: &'a PodInfo,
        _: &[NodeIndex],
    ) -> Option<Box<dyn Score + 'a>> {
        let affinity = pod.spec().affinity.as_ref()?.node_affinity.as_ref()?;
        let preferred = affinity.preferred_during_scheduling_ignored_during_execution.as_ref()?;
        (!preferred.is_empty()).then(|| Box::new(State { snapshot, pod }) as Box<dyn Score>)
    }
}

impl Filter for State<'_> {
    fn filter(&self, node: NodeIndex) -> Result<(), Rejection> {
        let row = self.snapshot.node(node);
        if accepts_node(self.pod.spec(), &row.name, &row.labels) {
            return Ok(());
        }
        Err(Rejection::unresolvable("node(s) didn't match Pod's node affinity/selector"))
    }
}

impl Score for State<'_> {
    fn score(&self, node: NodeIndex) -> i64 {
        let row = self.snapshot.node(node);
        let affinity = self.pod.spec().affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref());
        let terms = affinity
            .and_then(|affinity| affinity.preferred_during_scheduling_ignored_during_execution.as_ref());
        let matching =
            terms.into_iter().flatten().filter(|term| term_matches(&term.preference, &row.name, &row.labels));
        matching.map(|term| i64::from(term.weight)).sum()
    }

    fn normalize(&self, scores: &mut [i64]) {
        normalize(scores, false);
    }
}
