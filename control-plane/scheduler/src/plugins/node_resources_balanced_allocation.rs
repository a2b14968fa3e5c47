//! NodeResourcesBalancedAllocation: prefers nodes whose CPU and memory would be used to about the same part.

use crate::framework::{Plugin, SCORE_MAX, Score};
use crate::pod::PodInfo;
use crate::resources::{CPU, MEMORY};
use crate::snapshot::{NodeIndex, Snapshot};

/// The plugin.
pub struct NodeResourcesBalancedAllocation;

struct State<'a> {
    snapshot: &'a Snapshot,
    pod: &'a PodInfo,
}

impl Plugin for NodeResourcesBalancedAllocation {
    fn name(&self) -> &'static str {
        "NodeResourcesBalancedAllocation"
    }

    fn pre_score<'a>(
        &'a self,
        snapshot: &'a Snapshot,
        pod: &'a PodInfo,
        _: &[NodeIndex],
    ) -> Option<Box<dyn Score + 'a>> {
        // A pod that asks for nothing cannot unbalance a node.
        let asks = pod.requests.asked.values().any(|amount| *amount > 0);
        asks.then(|| Box::new(State { snapshot, pod }) as Box<dyn Score>)
    }
}

impl Score for State<'_> {
    fn score(&self, node: NodeIndex) -> i64 {
        let part = |resource: &str| {
            let column = self.snapshot.column(resource)?;
            let (allocatable, requested) = (column.allocatable[node.0], column.requested[node.0]);
            let wanted = requested + self.pod.requests.asked.get(resource).copied().unwrap_or(0);
            #[expect(clippy::cast_precision_loss, reason = "a part of a node needs no more than 52 bits")]
            let part = (allocatable > 0).then(|| (wanted as f64 / allocatable as f64).min(1.0));
            part
        };
        let (Some(cpu), Some(memory)) = (part(CPU), part(MEMORY)) else { return SCORE_MAX };
        // Of two values, the standard deviation is half their distance.
        #[expect(clippy::cast_possible_truncation, reason = "between 0 and 100")]
        let score = ((1.0 - (cpu - memory).abs() / 2.0) * 100.0) as i64;
        score
    }
}
