//! The roles and bindings that every cluster begins with: upstream's, and those of our agents.
//!
//! Roles are tables of lines, one rule a line: `verbs | groups | resources | names`, or `verbs | /path, /other*`. `core` is
//! the core group; `read`, `write` and `event` stand for the usual sets of verbs. The server creates what is missing and
//! restores rules that were taken away, but leaves alone what carries `rbac.authorization.kubernetes.io/autoupdate:
//! "false"`.

mod cluster;
mod controllers;

use serde_json::{Value, json};

use super::rbac::{GROUP, Rule};

const AUTOUPDATE: &str = "rbac.authorization.kubernetes.io/autoupdate";
const SYSTEM: &str = "kube-system";
const PUBLIC: &str = "kube-public";
const CONTROLLER_PREFIX: &str = "system:controller:";

/// A role of the tables: its name and its rules.
pub(super) struct Role {
    name: &'static str,
    rules: &'static [&'static str],
}

/// All objects, roles before the bindings that name them.
pub fn bootstrap_roles() -> Vec<Value> {
    let mut objects: Vec<Value> = cluster::ROLES.iter().map(|role| cluster_role(role, role.name)).collect();
    objects.extend(cluster::AGGREGATES.iter().map(|(name, label, into)| aggregate(name, label, into)));
    objects.extend(controllers::ROLES.iter().map(|role| cluster_role(role, &controller(role.name))));
    objects.extend(cluster::NAMESPACED.iter().map(|(namespace, role)| {
        let metadata = json!({ "name": role.name, "namespace": namespace });
        object("Role", metadata, json!({ "rules": rules(role) }))
    }));
    objects.extend(cluster::BINDINGS.iter().map(|(role, subjects)| cluster_binding(role, subjects)));
    objects.extend(controllers::ROLES.iter().map(|role| {
        let account = format!("account {SYSTEM}/{}", role.name);
        cluster_binding(&controller(role.name), &[&account])
    }));
    objects.extend(cluster::NAMESPACED_BINDINGS.iter().map(|(namespace, name, role, subjects)| {
        let metadata = json!({ "name": name, "namespace": namespace });
        object("RoleBinding", metadata, binding("Role", role, subjects))
    }));
    objects
}

/// The rules of `system:node`: what nodes may that needs no look at an object.
pub(super) fn node_rules() -> Vec<Rule> {
    let role = cluster::ROLES.iter().find(|role| role.name == "system:node");
    role.into_iter().flat_map(|role| role.rules).map(|line| parse_rule(line)).collect()
}

fn controller(name: &str) -> String {
    format!("{CONTROLLER_PREFIX}{name}")
}

fn object(kind: &str, mut metadata: Value, rest: Value) -> Value {
    metadata["annotations"] = json!({ AUTOUPDATE: "true" });
    if metadata["labels"].is_null() {
        metadata["labels"] = json!({});
    }
    metadata["labels"]["kubernetes.io/bootstrapping"] = json!("rbac-defaults");
    let mut object = rest;
    object["apiVersion"] = json!(format!("{GROUP}/v1"));
    object["kind"] = json!(kind);
    object["metadata"] = metadata;
    object
}

fn cluster_role(role: &Role, name: &str) -> Value {
    let mut metadata = json!({ "name": name });
    if let Some(into) = name.strip_prefix("system:aggregate-to-") {
        metadata["labels"] = json!({ format!("{GROUP}/aggregate-to-{into}"): "true" });
    }
    object("ClusterRole", metadata, json!({ "rules": rules(role) }))
}

/// A role made of others: `from` is the label that they carry, `into` the label that this one carries. Its rules are filled
/// in, so that a reader sees what the evaluator finds through the selector.
fn aggregate(name: &str, from: &str, into: &str) -> Value {
    let label = |suffix: &str| format!("{GROUP}/aggregate-to-{suffix}");
    let mut metadata = json!({ "name": name });
    if !into.is_empty() {
        metadata["labels"] = json!({ label(into): "true" });
    }
    let parts: &[&str] = match from {
        "admin" => &["admin", "edit", "view"],
        "edit" => &["edit", "view"],
        _ => &["view"],
    };
    let named = |part: &str| {
        cluster::ROLES.iter().find(move |role| role.name.strip_prefix("system:aggregate-to-") == Some(part))
    };
    let rules: Vec<Value> = parts.iter().filter_map(|part| named(part)).flat_map(rules).collect();
    let selector = json!({ "clusterRoleSelectors": [{ "matchLabels": { label(from): "true" } }] });
    object("ClusterRole", metadata, json!({ "aggregationRule": selector, "rules": rules }))
}

fn cluster_binding(role: &str, subjects: &[&str]) -> Value {
    object("ClusterRoleBinding", json!({ "name": role }), binding("ClusterRole", role, subjects))
}

/// Subjects are written `user NAME`, `group NAME` or `account NAMESPACE/NAME`.
fn binding(kind: &str, role: &str, subjects: &[&str]) -> Value {
    let subjects: Vec<Value> = subjects.iter().map(|subject| parse_subject(subject)).collect();
    let mut binding = json!({ "roleRef": { "apiGroup": GROUP, "kind": kind, "name": role } });
    if !subjects.is_empty() {
        binding["subjects"] = subjects.into();
    }
    binding
}

fn parse_subject(subject: &str) -> Value {
    let (kind, name) = subject.split_once(' ').expect("a subject of the tables has a kind and a name");
    match kind {
        "user" => json!({ "apiGroup": GROUP, "kind": "User", "name": name }),
        "group" => json!({ "apiGroup": GROUP, "kind": "Group", "name": name }),
        _ => {
            let (namespace, name) = name.split_once('/').expect("an account of the tables has a namespace");
            json!({ "kind": "ServiceAccount", "name": name, "namespace": namespace })
        }
    }
}

fn rules(role: &Role) -> Vec<Value> {
    role.rules.iter().map(|line| parse_rule(line).to_value()).collect()
}

fn parse_rule(line: &str) -> Rule {
    let mut parts =
        line.split('|').map(|part| part.split(',').map(str::trim).filter(|item| !item.is_empty()));
    let mut next =
        || parts.next().map(|items| items.map(str::to_owned).collect::<Vec<_>>()).unwrap_or_default();
    let verbs: Vec<String> = next().into_iter().flat_map(|verb| expand(&verb)).collect();
    let second = next();
    let resources = next();
    if resources.is_empty() {
        return Rule { verbs, non_resource_urls: second, ..Rule::default() };
    }
    let api_groups =
        second.into_iter().map(|group| if group == "core" { String::new() } else { group }).collect();
    Rule { verbs, api_groups, resources, resource_names: next(), ..Rule::default() }
}

fn expand(verb: &str) -> Vec<String> {
    let verbs: &[&str] = match verb {
        "read" => &["get", "list", "watch"],
        "write" => &["create", "delete", "deletecollection", "patch", "update"],
        "event" => &["create", "patch", "update"],
        verb => return vec![verb.to_owned()],
    };
    verbs.iter().map(|verb| (*verb).to_owned()).collect()
}

#[cfg(test)]
mod tests;
