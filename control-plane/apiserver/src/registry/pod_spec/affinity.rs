//! Validation of node and pod affinity.

use serde_json::Value;

use super::super::{fields::*, rules::Errors};

const REQUIRED: &str = "requiredDuringSchedulingIgnoredDuringExecution";
const PREFERRED: &str = "preferredDuringSchedulingIgnoredDuringExecution";

pub(super) fn validate(errors: &mut Errors, affinity: &Value, path: &str) {
    node_affinity(errors, at(affinity, "/nodeAffinity"), &format!("{path}.nodeAffinity"));
    for kind in ["podAffinity", "podAntiAffinity"] {
        let terms = at(affinity, &format!("/{kind}"));
        for (i, term) in items(terms, &format!("/{REQUIRED}")).iter().enumerate() {
            pod_term(errors, term, &format!("{path}.{kind}.{REQUIRED}[{i}]"));
        }
        for (i, weighted) in items(terms, &format!("/{PREFERRED}")).iter().enumerate() {
            let path = format!("{path}.{kind}.{PREFERRED}[{i}]");
            weight(errors, weighted, &path);
            pod_term(errors, at(weighted, "/podAffinityTerm"), &format!("{path}.podAffinityTerm"));
        }
    }
}

fn node_affinity(errors: &mut Errors, affinity: &Value, path: &str) {
    let required = at(affinity, &format!("/{REQUIRED}"));
    if !required.is_null() {
        let path = format!("{path}.{REQUIRED}.nodeSelectorTerms");
        let terms = items(required, "/nodeSelectorTerms");
        if terms.is_empty() {
            errors.required(&path, "must have at least one node selector term");
        }
        for (i, term) in terms.iter().enumerate() {
            node_term(errors, term, &format!("{path}[{i}]"));
        }
    }
    for (i, weighted) in items(affinity, &format!("/{PREFERRED}")).iter().enumerate() {
        let path = format!("{path}.{PREFERRED}[{i}]");
        weight(errors, weighted, &path);
        node_term(errors, at(weighted, "/preference"), &format!("{path}.preference"));
    }
}

fn weight(errors: &mut Errors, weighted: &Value, path: &str) {
    if !(1..=100).contains(&int(weighted, "/weight")) {
        errors.invalid(format!("{path}.weight"), at(weighted, "/weight"), "must be in the range 1-100");
    }
}

fn node_term(errors: &mut Errors, term: &Value, path: &str) {
    for (i, requirement) in items(term, "/matchExpressions").iter().enumerate() {
        let path = format!("{path}.matchExpressions[{i}]");
        node_requirement(errors, requirement, &path);
        errors.label_name(&format!("{path}.key"), text(requirement, "/key"));
    }
    for (i, requirement) in items(term, "/matchFields").iter().enumerate() {
        let path = format!("{path}.matchFields[{i}]");
        if items(requirement, "/values").len() != 1 {
            let detail = "must be only one value when `operator` is 'In' or 'NotIn' for node field selector";
            errors.required(format!("{path}.values"), detail);
        }
        if text(requirement, "/key") != "metadata.name" {
            errors.invalid(format!("{path}.key"), at(requirement, "/key"), "not a valid field selector key");
        }
    }
}

fn node_requirement(errors: &mut Errors, requirement: &Value, path: &str) {
    let values = items(requirement, "/values").len();
    let at_values = format!("{path}.values");
    match text(requirement, "/operator") {
        "In" | "NotIn" if values == 0 => {
            errors.required(at_values, "must be specified when `operator` is 'In' or 'NotIn'");
        }
        "Exists" | "DoesNotExist" if values > 0 => {
            errors.forbidden(at_values, "may not be specified when `operator` is 'Exists' or 'DoesNotExist'");
        }
        "Gt" | "Lt" if values != 1 => {
            errors.required(at_values, "must be specified single value when `operator` is 'Lt' or 'Gt'");
        }
        "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => {}
        _ => {
            errors.invalid(
                format!("{path}.operator"),
                at(requirement, "/operator"),
                "not a valid selector operator",
            );
        }
    }
}

fn pod_term(errors: &mut Errors, term: &Value, path: &str) {
    errors.label_selector(&format!("{path}.labelSelector"), at(term, "/labelSelector"));
    errors.label_selector(&format!("{path}.namespaceSelector"), at(term, "/namespaceSelector"));
    for namespace in items(term, "/namespaces") {
        errors.dns1123_label(&format!("{path}.namespace"), namespace);
    }
    let topology_key = text(term, "/topologyKey");
    if topology_key.is_empty() {
        errors.required(format!("{path}.topologyKey"), "can not be empty");
    }
    errors.label_name(&format!("{path}.topologyKey"), topology_key);
}
