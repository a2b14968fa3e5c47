//! What is ahead of a node, as its object says it. Pure.

use k8s_openapi::api::core::v1::Node;
use serde::{Deserialize, Serialize};

/// Says that a node is shut down (KEP-2268): its pods are deleted by force, and run elsewhere.
const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";
/// Says that a node is about to be removed (KEP-3836).
const TO_BE_DELETED: &str = "ToBeDeletedByClusterAutoscaler";

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Standing {
    #[default]
    InService,
    /// Cordoned, or about to be removed. Its pods run still.
    Leaving,
    OutOfService,
}

impl Standing {
    pub fn of(node: &Node) -> Standing {
        let has = |key: &str| {
            let mut taints = node.spec.iter().flat_map(|spec| spec.taints.iter().flatten());
            taints.any(|taint| taint.key == key)
        };
        let is_cordoned = node.spec.as_ref().and_then(|spec| spec.unschedulable) == Some(true);
        if has(OUT_OF_SERVICE) {
            Standing::OutOfService
        } else if is_cordoned || has(TO_BE_DELETED) || node.metadata.deletion_timestamp.is_some() {
            Standing::Leaving
        } else {
            Standing::InService
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    #[test]
    fn a_cordon_and_taints_say_what_is_ahead_of_a_node() {
        let standing =
            |spec: Value| Standing::of(&serde_json::from_value(json!({ "spec": spec })).expect("a Node"));
        let taint = |key: &str| json!({ "taints": [{ "key": key, "effect": "NoExecute" }] });
        assert_eq!(Standing::of(&Node::default()), Standing::InService);
        assert_eq!(standing(json!({ "unschedulable": false })), Standing::InService);
        assert_eq!(standing(taint("node.kubernetes.io/unreachable")), Standing::InService);
        assert_eq!(standing(json!({ "unschedulable": true })), Standing::Leaving);
        assert_eq!(standing(taint(TO_BE_DELETED)), Standing::Leaving);
        assert_eq!(standing(taint(OUT_OF_SERVICE)), Standing::OutOfService);
        let mut both = taint(OUT_OF_SERVICE);
        both["unschedulable"] = json!(true);
        assert_eq!(standing(both), Standing::OutOfService);
    }
}
