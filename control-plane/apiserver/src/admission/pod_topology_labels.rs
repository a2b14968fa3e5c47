//! A pod that is bound to a node learns where that node is: zone and region become its labels, by way of the binding.

use api::status::Status;
use serde_json::Value;

use super::{Lookup, Plugin, Request};
use crate::registry::fields::*;

pub(super) struct PodTopologyLabels;

const LABELS: [&str; 2] = ["topology.kubernetes.io/zone", "topology.kubernetes.io/region"];

impl Plugin for PodTopologyLabels {
    fn admit(&self, request: &Request<'_>, object: &mut Value, lookup: &dyn Lookup) -> Result<(), Status> {
        let binds = request.is_any_part_of("", "pods") && request.subresource == "binding";
        let node_name = text(object, if binds { "/target/name" } else { "/spec/nodeName" });
        if !(binds || request.creates("", "pods")) || node_name.is_empty() {
            return Ok(());
        }
        let Some(node) = lookup.get("", "nodes", "", node_name) else { return Ok(()) };
        let of_node = entries(&node, "/metadata/labels");
        for label in LABELS {
            if let Some(value) = of_node.get(label) {
                set(child(child(object, "metadata"), "labels"), label, value.clone());
            }
        }
        Ok(())
    }
}
