//! Pods outlast five minutes of their node's absence, unless they say otherwise.

use api::status::Status;
use serde_json::{Value, json};

use super::{Lookup, Operation, Plugin, Request};
use crate::registry::fields::*;

pub(super) struct DefaultTolerationSeconds;

const TAINTS: [&str; 2] = ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"];
const SECONDS: i64 = 300;

impl Plugin for DefaultTolerationSeconds {
    fn admit(&self, request: &Request<'_>, object: &mut Value, _lookup: &dyn Lookup) -> Result<(), Status> {
        let writes = matches!(request.operation, Operation::Create | Operation::Update);
        if !writes || !request.is("", "pods") {
            return Ok(());
        }
        let tolerations = items(object, "/spec/tolerations");
        let missing: Vec<_> =
            TAINTS.into_iter().filter(|key| !tolerations.iter().any(|t| tolerates(t, key))).collect();
        if !missing.is_empty() {
            let tolerations = list(child(object, "spec"), "tolerations");
            tolerations.extend(missing.into_iter().map(|key| {
                json!({ "key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": SECONDS })
            }));
        }
        Ok(())
    }
}

fn tolerates(toleration: &Value, key: &str) -> bool {
    let own = text(toleration, "/key");
    (own.is_empty() || own == key) && matches!(text(toleration, "/effect"), "" | "NoExecute")
}
