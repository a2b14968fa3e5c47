//! ResourceQuotas: what a namespace holds already, plus what the request adds, stays within the quota's hard limits.
//!
//! Usage is counted from the stored objects themselves, not from `status.used`: it cannot lag behind a controller. Two
//! requests at the same moment may both see the same usage; the quota is then exceeded by what one of them adds.

use std::collections::BTreeMap;

use api::{
    quantity::{Format, Quantity},
    status::Status,
};
use serde_json::Value;

use super::{Lookup, Operation, Plugin, Request, limit_ranger::pod_amounts};
use crate::registry::{
    fields::*,
    pod_spec::{init_and_app_containers, qos_class},
};

pub(super) struct ResourceQuota;

type Usage = BTreeMap<String, Quantity>;

impl Plugin for ResourceQuota {
    fn validate(&self, request: &Request<'_>, object: &Value, lookup: &dyn Lookup) -> Result<(), Status> {
        let writes = matches!(request.operation, Operation::Create | Operation::Update);
        let part = matches!(request.subresource, "" | "resize");
        if request.namespace.is_empty()
            || !writes
            || !part
            || request.is("", "resourcequotas") && request.old.is_some()
        {
            return Ok(());
        }
        for quota in lookup.list("", "resourcequotas", request.namespace) {
            check(request, object, &quota, lookup)?;
        }
        Ok(())
    }
}

fn check(request: &Request<'_>, object: &Value, quota: &Value, lookup: &dyn Lookup) -> Result<(), Status> {
    let (group, plural) = (request.target.resource.group.as_str(), request.target.resource.plural.as_str());
    if !in_scope(quota, plural, object) {
        return Ok(());
    }
    let hard: Usage = entries(quota, "/spec/hard")
        .iter()
        .filter_map(|(name, amount)| Some((name.clone(), quantity(amount)?)))
        .collect();
    let name = text(quota, "/metadata/name");
    if plural == "pods" && group.is_empty() {
        specified(request, object, &hard, name)?;
    }
    let adds = usage(group, plural, object);
    let before = request.old.map(|old| usage(group, plural, old)).unwrap_or_default();
    let grows = |resource: &String, amount: &Quantity| {
        let was = before.get(resource).map_or(0, |amount| amount.milli());
        hard.contains_key(resource) && amount.milli() > was
    };
    let added: Usage = adds.into_iter().filter(|(resource, amount)| grows(resource, amount)).collect();
    if added.is_empty() {
        return Ok(());
    }
    let mut used: Usage = Usage::new();
    for stored in lookup.list(group, plural, request.namespace) {
        let is_self = text(&stored, "/metadata/name") == request.name;
        if !is_self && in_scope(quota, plural, &stored) {
            add_all(&mut used, usage(group, plural, &stored));
        }
    }
    let exceeded: Vec<_> = added
        .iter()
        .filter(|(resource, amount)| {
            let used = used.get(*resource).map_or(0, |amount| amount.milli());
            used + amount.milli() > hard[*resource].milli()
        })
        .map(|(resource, _)| resource)
        .collect();
    if exceeded.is_empty() {
        return Ok(());
    }
    let show = |usage: &Usage| {
        let zero = Quantity::ZERO;
        let parts = exceeded.iter().map(|name| format!("{name}={}", usage.get(*name).unwrap_or(&zero)));
        parts.collect::<Vec<_>>().join(",")
    };
    add_all(&mut used, before);
    Err(request.forbidden(format!(
        "exceeded quota: {name}, requested: {}, used: {}, limited: {}",
        show(&added),
        show(&used),
        show(&hard)
    )))
}

/// With a quota on cpu or memory, every container must say what it needs.
fn specified(request: &Request<'_>, pod: &Value, hard: &Usage, quota: &str) -> Result<(), Status> {
    if request.operation != Operation::Create {
        return Ok(());
    }
    let mut missing: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for constrained in hard.keys() {
        let (list, resource) = match constrained.as_str() {
            "cpu" | "requests.cpu" => ("requests", "cpu"),
            "memory" | "requests.memory" => ("requests", "memory"),
            "limits.cpu" => ("limits", "cpu"),
            "limits.memory" => ("limits", "memory"),
            _ => continue,
        };
        if present(pod, &format!("/spec/resources/{list}/{resource}")) {
            continue;
        }
        for container in init_and_app_containers(at(pod, "/spec")) {
            if !present(container, &format!("/resources/{list}/{resource}")) {
                missing.entry(constrained).or_default().push(text(container, "/name"));
            }
        }
    }
    if missing.is_empty() {
        return Ok(());
    }
    let parts =
        missing.iter().map(|(resource, containers)| format!("{resource} for: {}", containers.join(",")));
    let parts: Vec<_> = parts.collect();
    Err(request.forbidden(format!("failed quota: {quota}: must specify {}", parts.join("; "))))
}

fn add_all(sum: &mut Usage, more: Usage) {
    for (resource, amount) in more {
        let total = sum.get(&resource).map_or(amount, |sum| sum.add(&amount));
        sum.insert(resource, total);
    }
}

/// What one object counts for, by quota resource.
fn usage(group: &str, plural: &str, object: &Value) -> Usage {
    let one = |count: usize| Quantity::from_value(count as i64, Format::DecimalSi);
    let mut usage = Usage::new();
    if plural == "pods" && matches!(text(object, "/status/phase"), "Failed" | "Succeeded") {
        return usage;
    }
    let counted = if group.is_empty() { plural.to_owned() } else { format!("{plural}.{group}") };
    usage.insert(format!("count/{counted}"), one(1));
    match (group, plural) {
        ("", "pods") => {
            usage.insert("pods".to_owned(), one(1));
            compute(&mut usage, at(object, "/spec"));
        }
        ("", "services") => {
            usage.insert("services".to_owned(), one(1));
            let (kind, ports) = (text(object, "/spec/type"), items(object, "/spec/ports").len());
            let node_ports = match kind {
                "NodePort" => ports,
                "LoadBalancer" if at(object, "/spec/allocateLoadBalancerNodePorts") != false => ports,
                _ => 0,
            };
            usage.insert("services.nodeports".to_owned(), one(node_ports));
            usage.insert("services.loadbalancers".to_owned(), one(usize::from(kind == "LoadBalancer")));
        }
        ("", "persistentvolumeclaims") => {
            usage.insert("persistentvolumeclaims".to_owned(), one(1));
            let storage = quantity(at(object, "/spec/resources/requests/storage"));
            let class = text(object, "/spec/storageClassName");
            if !class.is_empty() {
                let prefix = format!("{class}.storageclass.storage.k8s.io");
                usage.insert(format!("{prefix}/persistentvolumeclaims"), one(1));
                if let Some(storage) = storage {
                    usage.insert(format!("{prefix}/requests.storage"), storage);
                }
            }
            if let Some(storage) = storage {
                usage.insert("requests.storage".to_owned(), storage);
            }
        }
        ("", "configmaps" | "secrets" | "replicationcontrollers" | "resourcequotas") => {
            usage.insert(plural.to_owned(), one(1));
        }
        _ => {}
    }
    usage
}

fn compute(usage: &mut Usage, spec: &Value) {
    for (resource, amount) in pod_amounts(spec, "requests") {
        if matches!(resource.as_str(), "cpu" | "memory" | "ephemeral-storage") {
            usage.insert(resource.clone(), amount);
        }
        usage.insert(format!("requests.{resource}"), amount);
    }
    for (resource, amount) in pod_amounts(spec, "limits") {
        usage.insert(format!("limits.{resource}"), amount);
    }
}

/// Whether a quota's scopes take this object in. A quota without scopes takes all.
fn in_scope(quota: &Value, plural: &str, object: &Value) -> bool {
    let scopes = items(quota, "/spec/scopes").iter().filter_map(Value::as_str);
    let selectors = items(quota, "/spec/scopeSelector/matchExpressions");
    scopes
        .map(|scope| (scope, "Exists", &[][..]))
        .chain(selectors.iter().map(|selector| {
            (text(selector, "/scopeName"), text(selector, "/operator"), items(selector, "/values"))
        }))
        .all(|(scope, operator, values)| {
            plural == "pods" && matches_scope(scope, operator, values, at(object, "/spec"))
        })
}

fn matches_scope(scope: &str, operator: &str, values: &[Value], spec: &Value) -> bool {
    let terminating = at(spec, "/activeDeadlineSeconds").as_i64().is_some_and(|seconds| seconds >= 0);
    let best_effort = qos_class(spec) == "BestEffort";
    match scope {
        "Terminating" => terminating,
        "NotTerminating" => !terminating,
        "BestEffort" => best_effort,
        "NotBestEffort" => !best_effort,
        "PriorityClass" => {
            let class = text(spec, "/priorityClassName");
            match operator {
                "In" => values.iter().any(|value| value == class),
                "NotIn" => !values.iter().any(|value| value == class),
                "DoesNotExist" => class.is_empty(),
                _ => !class.is_empty(),
            }
        }
        "CrossNamespacePodAffinity" => ["podAffinity", "podAntiAffinity"].iter().any(|kind| {
            let terms = at(spec, &format!("/affinity/{kind}"));
            let lists = [
                "requiredDuringSchedulingIgnoredDuringExecution",
                "preferredDuringSchedulingIgnoredDuringExecution",
            ];
            lists.iter().flat_map(|list| items(terms, &format!("/{list}"))).any(|term| {
                let term =
                    if present(term, "/podAffinityTerm") { at(term, "/podAffinityTerm") } else { term };
                present(term, "/namespaceSelector") || !items(term, "/namespaces").is_empty()
            })
        }),
        _ => false,
    }
}
