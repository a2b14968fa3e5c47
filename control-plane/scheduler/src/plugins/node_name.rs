//! NodeName: a pod that names its node fits no other.

use crate::framework::{Filter, Plugin, PreFilter, Rejection};
use crate::pod::PodInfo;
use crate::snapshot::{NodeIndex, Snapshot};

/// The plugin.
pub struct NodeName;

struct State<'a> {
    snapshot: &'a Snapshot,
    name: &'a str,
}

impl Plugin for NodeName {
    fn name(&self) -> &'static str {
        "NodeName"
    }

    fn pre_filter<'a>(&'a self, snapshot: &'a Snapshot, pod: &'a PodInfo) -> PreFilter<'a> {
        match pod.spec().node_name.as_deref().filter(|name| !name.is_empty()) {
            Some(name) => PreFilter::Filter(Box::new(State { snapshot, name })),
            None => PreFilter::Skip,
        }
    }
}

impl Filter for State<'_> {
    fn filter(&self, node: NodeIndex) -> Result<(), Rejection> {
        if self.snapshot.node(node).name == self.name {
            return Ok(());
        }
        Err(Rejection::unresolvable("node(s) didn't match the requested node name"))
    }
}
