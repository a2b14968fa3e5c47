//! The CustomResourceDefinitions of the kinds.
//!
//! Fields, ranges and defaults are Calico's (its API of 2026, `api/pkg/apis/projectcalico/v3`). What Seaway cannot do is refused
//! where it is asked for, by a rule whose message says what and what to do instead; a value that asks for nothing more than
//! what happens anyway passes.

mod bgp;
mod ipam;
mod schema;
mod status;

use serde_json::{Value, json};

use crate::GROUP;

/// All of them, in an order that does not change.
pub fn all() -> Vec<Value> {
    vec![
        bgp::configuration(),
        bgp::peer(),
        bgp::filter(),
        ipam::pool(),
        ipam::reservation(),
        ipam::affinity(),
        status::node_status(),
    ]
}

struct Names {
    kind: &'static str,
    plural: &'static str,
    short: &'static [&'static str],
}

/// A column of tables: title, type, JSON path.
type Column = (&'static str, &'static str, &'static str);

/// A definition whose root has these properties and rules.
fn definition(
    names: &Names,
    columns: &[Column],
    spec: Value,
    status: Option<Value>,
    rules: Vec<Value>,
) -> Value {
    let mut properties = json!({
        "apiVersion": { "type": "string" },
        "kind": { "type": "string" },
        "metadata": { "type": "object" },
        "spec": spec,
    });
    let mut subresources = json!({});
    if let Some(status) = status {
        properties["status"] = status;
        subresources["status"] = json!({});
    }
    let mut root = json!({ "type": "object", "required": ["metadata", "spec"], "properties": properties });
    if !rules.is_empty() {
        root["x-kubernetes-validations"] = rules.into();
    }
    let age: Column = ("Age", "date", ".metadata.creationTimestamp");
    let columns: Vec<Value> = columns
        .iter()
        .chain([&age])
        .map(|(name, of, path)| json!({ "name": name, "type": of, "jsonPath": path }))
        .collect();
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": { "name": format!("{}.{GROUP}", names.plural) },
        "spec": {
            "group": GROUP,
            "names": {
                "kind": names.kind,
                "listKind": format!("{}List", names.kind),
                "plural": names.plural,
                "singular": names.kind.to_lowercase(),
                "shortNames": names.short,
            },
            "scope": "Cluster",
            "versions": [{
                "name": "v3",
                "served": true,
                "storage": true,
                "schema": { "openAPIV3Schema": root },
                "subresources": subresources,
                "additionalPrinterColumns": columns,
            }],
        },
    })
}
