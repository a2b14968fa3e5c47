//! Nodes.

use std::collections::BTreeSet;

use api::field::FieldError;
use serde_json::Value;

use super::{
    Column, Context, Strategy,
    fields::*,
    rules::Errors,
    table::{AGE, NAME, NONE, or},
};

pub(super) struct Nodes;

const UNKNOWN: &str = "<unknown>";
const ROLE_PREFIX: &str = "node-role.kubernetes.io/";

const COLUMNS: &[Column] = &[
    NAME,
    Column::new("Status", "string", |o, _| status(o).into()),
    Column::new("Roles", "string", |o, _| roles(o).into()),
    AGE,
    Column::new("Version", "string", |o, _| text(o, "/status/nodeInfo/kubeletVersion").into()),
    Column::new("Internal-IP", "string", |o, _| address(o, "InternalIP").into()).wide(),
    Column::new("External-IP", "string", |o, _| address(o, "ExternalIP").into()).wide(),
    Column::new("OS-Image", "string", |o, _| or(text(o, "/status/nodeInfo/osImage"), UNKNOWN).into()).wide(),
    Column::new("Kernel-Version", "string", |o, _| kernel(o).into()).wide(),
    Column::new("Container-Runtime", "string", |o, _| {
        or(text(o, "/status/nodeInfo/containerRuntimeVersion"), UNKNOWN).into()
    })
    .wide(),
];

impl Strategy for Nodes {
    fn default(&self, object: &mut Value) {
        if let Some(status) = existing(object, "status") {
            let capacity = at(status, "/capacity").clone();
            if !capacity.is_null() {
                set_default(status, "allocatable", capacity);
            }
        }
    }

    /// Nodes register with their status: it stays.
    fn prepare_create(&self, _context: &Context<'_>, object: &mut Value) {
        child(object, "spec");
        child(object, "status");
        normalize_pod_cidrs(object);
    }

    fn prepare_update(&self, context: &Context<'_>, new: &mut Value, old: &Value) {
        if context.subresource == "status" {
            copy(new, old, "spec");
        } else {
            super::keep_status(new, old);
            normalize_pod_cidrs(new);
        }
    }

    fn validate(&self, _context: &Context<'_>, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::default();
        taints(&mut errors, items(object, "/spec/taints"));
        for (i, cidr) in items(object, "/spec/podCIDRs").iter().enumerate() {
            errors.cidr(format!("spec.podCIDRs[{i}]"), cidr);
        }
        for list in ["capacity", "allocatable"] {
            for (resource, amount) in entries(object, &format!("/status/{list}")) {
                errors.resource_amount(&format!("status.{list}.{resource}"), resource, amount);
            }
        }
        errors.into_vec()
    }

    fn validate_update(&self, context: &Context<'_>, new: &Value, old: &Value) -> Vec<FieldError> {
        let mut errors = Errors::default();
        errors.extend(self.validate(context, new));
        let mut seen: Vec<(&str, &str)> = Vec::new();
        for (i, address) in items(new, "/status/addresses").iter().enumerate() {
            let pair = (text(address, "/type"), text(address, "/address"));
            if seen.contains(&pair) {
                errors.duplicate(format!("status.addresses[{i}]"), address);
            }
            seen.push(pair);
        }
        let (cidrs, before) = (at(new, "/spec/podCIDRs"), at(old, "/spec/podCIDRs"));
        if !is_zero(before) && !same(cidrs, before) {
            errors
                .forbidden("spec.podCIDRs", "node updates may not change podCIDR except from \"\" to valid");
        }
        let (provider, before) = (at(new, "/spec/providerID"), at(old, "/spec/providerID"));
        if !is_zero(before) && provider != before {
            errors.forbidden(
                "spec.providerID",
                "node updates may not change providerID except from \"\" to valid",
            );
        }
        errors.into_vec()
    }

    fn selectable_fields(&self, object: &Value) -> Vec<(&'static str, String)> {
        vec![("spec.unschedulable", flag(object, "/spec/unschedulable").to_string())]
    }

    fn selectable_field_names(&self) -> &'static [&'static str] {
        &["spec.unschedulable"]
    }

    fn columns(&self) -> &'static [Column] {
        COLUMNS
    }
}

/// `podCIDR` is the first of `podCIDRs`; who knows only one of them sets both.
fn normalize_pod_cidrs(node: &mut Value) {
    let (one, first) = (text(node, "/spec/podCIDR").to_owned(), text(node, "/spec/podCIDRs/0").to_owned());
    let spec = child(node, "spec");
    if !one.is_empty() && first.is_empty() {
        set(spec, "podCIDRs", vec![one]);
    } else if one.is_empty() && !first.is_empty() {
        set(spec, "podCIDR", first);
    }
}

fn taints(errors: &mut Errors, taints: &[Value]) {
    let mut seen: BTreeSet<(&str, &str)> = BTreeSet::new();
    for (i, taint) in taints.iter().enumerate() {
        let path = format!("spec.taints[{i}]");
        errors.label_name(&format!("{path}.key"), text(taint, "/key"));
        let wrong = api::names::label_value(text(taint, "/value"));
        if !wrong.is_empty() {
            errors.invalid(format!("{path}.value"), at(taint, "/value"), wrong.join(";"));
        }
        let effects = ["NoSchedule", "PreferNoSchedule", "NoExecute"];
        errors.one_of(format!("{path}.effect"), at(taint, "/effect"), &effects);
        let pair = (text(taint, "/key"), text(taint, "/effect"));
        if !seen.insert(pair) {
            errors.duplicate(&path, taint);
        }
    }
}

fn status(node: &Value) -> String {
    let ready = items(node, "/status/conditions").iter().find(|c| text(c, "/type") == "Ready");
    let word = match ready.map(|condition| text(condition, "/status")) {
        Some("True") => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    };
    if flag(node, "/spec/unschedulable") { format!("{word},SchedulingDisabled") } else { word.to_owned() }
}

fn roles(node: &Value) -> String {
    let labels = entries(node, "/metadata/labels").iter();
    let roles: BTreeSet<&str> = labels
        .filter_map(|(key, value)| match key.strip_prefix(ROLE_PREFIX) {
            Some(role) => Some(role),
            None if key == "kubernetes.io/role" => value.as_str(),
            None => None,
        })
        .filter(|role| !role.is_empty())
        .collect();
    or(&roles.into_iter().collect::<Vec<_>>().join(","), NONE).to_owned()
}

fn address<'a>(node: &'a Value, kind: &str) -> &'a str {
    let addresses = items(node, "/status/addresses");
    addresses.iter().find(|a| text(a, "/type") == kind).map_or(NONE, |a| text(a, "/address"))
}

fn kernel(node: &Value) -> String {
    let version = or(text(node, "/status/nodeInfo/kernelVersion"), UNKNOWN);
    match text(node, "/status/nodeInfo/architecture") {
        "" => version.to_owned(),
        architecture => format!("{version} ({architecture})"),
    }
}
