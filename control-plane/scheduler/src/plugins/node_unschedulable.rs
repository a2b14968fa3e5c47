//! NodeUnschedulable: cordoned nodes take no new pods, except those that tolerate it.

use k8s_openapi::api::core::v1::Taint;

use crate::framework::{Filter, Plugin, PreFilter, Rejection};
use crate::pod::PodInfo;
use crate::predicates::tolerates;
use crate::snapshot::{NodeIndex, Snapshot};

/// The plugin.
pub struct NodeUnschedulable;

struct State<'a>(&'a Snapshot);

impl Plugin for NodeUnschedulable {
    fn name(&self) -> &'static str {
        "NodeUnschedulable"
    }

    fn pre_filter<'a>(&'a self, snapshot: &'a Snapshot, pod: &'a PodInfo) -> PreFilter<'a> {
        let taint = Taint {
            key: "node.kubernetes.io/unschedulable".into(),
            effect: "NoSchedule".into(),
            ..Taint::default()
        };
        let mut tolerations = pod.spec().tolerations.iter().flatten();
        if tolerations.any(|toleration| tolerates(toleration, &taint)) {
            return PreFilter::Skip;
        }
        PreFilter::Filter(Box::new(State(snapshot)))
    }
}

impl Filter for State<'_> {
    fn filter(&self, node: NodeIndex) -> Result<(), Rejection> {
        match self.0.node(node).unschedulable {
            true => Err(Rejection::unresolvable("node(s) were unschedulable")),
            false => Ok(()),
        }
    }
}
