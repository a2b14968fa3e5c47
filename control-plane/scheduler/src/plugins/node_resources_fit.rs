//! NodeResourcesFit: a node must have room for what the pod asks; the emptier it then is, the better it scores.

use crate::framework::{Filter, Plugin, PreFilter, Rejection, SCORE_MAX, Score};
use crate::pod::PodInfo;
use crate::resources::{CPU, MEMORY, PODS};
use crate::snapshot::{Column, NodeIndex, Snapshot};

/// The plugin.
pub struct NodeResourcesFit;

struct State<'a> {
    snapshot: &'a Snapshot,
    pod: &'a PodInfo,
    pods: Option<&'a Column>,
    /// What is asked, and the column to compare it with.
    wanted: Vec<(&'a str, i64, Option<&'a Column>)>,
}

impl Plugin for NodeResourcesFit {
    fn name(&self) -> &'static str {
        "NodeResourcesFit"
    }

    fn pre_filter<'a>(&'a self, snapshot: &'a Snapshot, pod: &'a PodInfo) -> PreFilter<'a> {
        let asked = pod.requests.asked.iter().filter(|(_, amount)| **amount > 0);
        let wanted = asked.map(|(name, amount)| (name.as_str(), *amount, snapshot.column(name))).collect();
        PreFilter::Filter(Box::new(State { snapshot, pod, pods: snapshot.column(PODS), wanted }))
    }

    fn pre_score<'a>(
        &'a self,
        snapshot: &'a Snapshot,
        pod: &'a PodInfo,
        _: &[NodeIndex],
    ) -> Option<Box<dyn Score + 'a>> {
        Some(Box::new(State { snapshot, pod, pods: None, wanted: Vec::new() }))
    }
}

impl Filter for State<'_> {
    fn filter(&self, node: NodeIndex) -> Result<(), Rejection> {
        let NodeIndex(at) = node;
        let nominated: Vec<_> =
            self.snapshot.nominated_on(&self.snapshot.node(node).name, self.pod).collect();
        let mut rejection = Rejection { reasons: Vec::new(), resolvable: true };
        if let Some(pods) = self.pods {
            let promised = i64::try_from(nominated.len()).unwrap_or(i64::MAX);
            if pods.requested[at] + promised + 1 > pods.allocatable[at] {
                rejection.reasons.push("Too many pods".to_owned());
            }
        }
        for (name, amount, column) in &self.wanted {
            let (allocatable, requested) =
                column.map_or((0, 0), |column| (column.allocatable[at], column.requested[at]));
            let promised: i64 = nominated.iter().filter_map(|pod| pod.requests.asked.get(*name)).sum();
            if *amount > allocatable - requested - promised {
                rejection.reasons.push(format!("Insufficient {name}"));
                rejection.resolvable &= *amount <= allocatable;
            }
        }
        if rejection.reasons.is_empty() { Ok(()) } else { Err(rejection) }
    }
}

impl Score for State<'_> {
    fn score(&self, node: NodeIndex) -> i64 {
        let (cpu, memory) = self.snapshot.assumed(node);
        let free = |resource: &str, requested: i64| {
            let capacity = self.snapshot.column(resource).map_or(0, |column| column.allocatable[node.0]);
            if capacity == 0 || requested > capacity {
                0
            } else {
                (capacity - requested) * SCORE_MAX / capacity
            }
        };
        (free(CPU, cpu + self.pod.requests.cpu_assumed)
            + free(MEMORY, memory + self.pod.requests.memory_assumed))
            / 2
    }
}
