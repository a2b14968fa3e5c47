//! A new node takes no pods before it is known to be ready.

use api::status::Status;
use serde_json::{Value, json};

use super::{Lookup, Plugin, Request};
use crate::registry::fields::*;

pub(super) struct TaintNodesByCondition;

const NOT_READY: &str = "node.kubernetes.io/not-ready";

impl Plugin for TaintNodesByCondition {
    fn admit(&self, request: &Request<'_>, object: &mut Value, _lookup: &dyn Lookup) -> Result<(), Status> {
        if request.creates("", "nodes") {
            let taints = list(child(object, "spec"), "taints");
            let is_same =
                |taint: &Value| text(taint, "/key") == NOT_READY && text(taint, "/effect") == "NoSchedule";
            if !taints.iter().any(is_same) {
                taints.push(json!({ "key": NOT_READY, "effect": "NoSchedule" }));
            }
        }
        Ok(())
    }
}
