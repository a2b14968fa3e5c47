//! A pod on a node is not resized beyond what the node has at all, and only on Linux.

use api::{field::quote, status::Status};
use serde_json::Value;

use super::{Lookup, Operation, Plugin, Request, limit_ranger::pod_amounts};
use crate::registry::fields::*;

pub(super) struct PodResizeValidator;

impl Plugin for PodResizeValidator {
    fn validate(&self, request: &Request<'_>, object: &Value, lookup: &dyn Lookup) -> Result<(), Status> {
        let is_resize = request.operation == Operation::Update
            && request.is_any_part_of("", "pods")
            && request.subresource == "resize";
        let node_name = text(object, "/spec/nodeName");
        let is_changed = request
            .old
            .is_some_and(|old| int(old, "/metadata/generation") != int(object, "/metadata/generation"));
        if !is_resize || node_name.is_empty() || !is_changed {
            return Ok(());
        }
        let Some(node) = lookup.get("", "nodes", "", node_name) else {
            return Err(request.forbidden(format!("node {} not found", quote(node_name))));
        };
        let system = entries(&node, "/metadata/labels").get("kubernetes.io/os").and_then(Value::as_str);
        if let Some(system) = system.filter(|system| *system != "linux") {
            let why = format!(
                "pod resize is only supported on linux nodes, node {} is {}",
                quote(node_name),
                quote(system)
            );
            return Err(request.forbidden(why).with_cause("UnsupportedPlatform", "", ""));
        }
        let requests = pod_amounts(at(object, "/spec"), "requests");
        let mut over = Vec::new();
        for (name, in_units) in [("cpu", 1), ("memory", 1000)] {
            let allocatable = quantity(at(&node, &format!("/status/allocatable/{name}")))
                .map_or(0, |amount| amount.milli());
            let requested = requests.get(name).map_or(0, |amount| amount.milli());
            if requested > allocatable {
                let (requested, allocatable) = (requested / in_units, allocatable / in_units);
                over.push(format!("{name}, requested: {requested}, allocatable: {allocatable}"));
            }
        }
        if over.is_empty() {
            return Ok(());
        }
        let why = format!("node didn't have enough allocatable resources: {}", over.join("; "));
        Err(request.forbidden(why).with_cause("NodeCapacity", "", ""))
    }
}
