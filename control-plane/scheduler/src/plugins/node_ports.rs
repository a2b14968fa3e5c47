//! NodePorts: two pods cannot take the same port of one node.

use crate::framework::{Filter, Plugin, PreFilter, Rejection};
use crate::pod::PodInfo;
use crate::snapshot::{NodeIndex, Snapshot};

/// The plugin.
pub struct NodePorts;

struct State<'a> {
    snapshot: &'a Snapshot,
    pod: &'a PodInfo,
}

impl Plugin for NodePorts {
    fn name(&self) -> &'static str {
        "NodePorts"
    }

    fn pre_filter<'a>(&'a self, snapshot: &'a Snapshot, pod: &'a PodInfo) -> PreFilter<'a> {
        if pod.host_ports.is_empty() {
            return PreFilter::Skip;
        }
        PreFilter::Filter(Box::new(State { snapshot, pod }))
    }
}

impl Filter for State<'_> {
    fn filter(&self, node: NodeIndex) -> Result<(), Rejection> {
        let taken = &self.snapshot.node(node).ports;
        if self.pod.host_ports.iter().any(|wanted| taken.iter().any(|taken| taken.conflicts(wanted))) {
            return Err(Rejection::resolvable("node(s) didn't have free ports for the requested pod ports"));
        }
        Ok(())
    }
}
