//! Pods: what they ask for as a whole, and the scopes that only pods have.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::{Amounts, add, amounts, items, one, selects, text};
use crate::{meta, time};

const COMPUTE: [&str; 3] = ["cpu", "memory", "ephemeral-storage"];
/// A quota on one of these makes every container say what it needs. That coupling is a mistake which upstream keeps for
/// these names only.
const MUST_BE_SPECIFIED: [(&str, &str, &str); 6] = [
    ("cpu", "requests", "cpu"),
    ("limits.cpu", "limits", "cpu"),
    ("limits.memory", "limits", "memory"),
    ("memory", "requests", "memory"),
    ("requests.cpu", "requests", "cpu"),
    ("requests.memory", "requests", "memory"),
];

pub(super) fn uses(resource: &str) -> bool {
    let plain = resource.strip_prefix("requests.").or_else(|| resource.strip_prefix("limits."));
    if resource == "pods" || COMPUTE.contains(&plain.unwrap_or(resource)) {
        return true;
    }
    let asked = resource.strip_prefix("requests.");
    asked.unwrap_or(resource).starts_with("hugepages-") || asked.is_some_and(is_extended)
}

/// Not one of Kubernetes' own names, or one that stands for a device class.
fn is_extended(resource: &str) -> bool {
    let foreign = resource.contains('/') && !resource.contains("kubernetes.io/");
    foreign || resource.starts_with("deviceclass.resource.kubernetes.io/")
}

pub(super) fn add_usage(usage: &mut Amounts, pod: &Value, now: i64) {
    if !is_charged(pod, now) {
        return;
    }
    usage.insert("pods".to_owned(), one());
    for (resource, amount) in total(pod, "requests") {
        let is_pages = resource.starts_with("hugepages-");
        let is_compute = COMPUTE.contains(&resource.as_str());
        if is_compute || is_pages || is_extended(&resource) {
            usage.insert(format!("requests.{resource}"), amount);
        }
        if is_compute || is_pages {
            usage.insert(resource, amount);
        }
    }
    for (resource, amount) in total(pod, "limits") {
        if COMPUTE.contains(&resource.as_str()) {
            usage.insert(format!("limits.{resource}"), amount);
        }
    }
}

/// Neither finished nor past the time by which it should have been gone (its node may be lost).
fn is_charged(pod: &Value, now: i64) -> bool {
    if matches!(text(pod, "/status/phase"), "Failed" | "Succeeded") {
        return false;
    }
    let due = meta::deletion_timestamp(pod).and_then(|at| time::parse(at).ok());
    match (due, meta::deletion_grace_period_seconds(pod)) {
        (Some(due), Some(grace)) => now <= due.as_second().saturating_add(grace),
        _ => true,
    }
}

/// What a pod needs at once: its containers and sidecars together, or the largest moment of its initialisation if that
/// is more; the pod's own numbers go before those sums; its overhead comes on top.
pub fn total(pod: &Value, key: &str) -> Amounts {
    let spec = pod.pointer("/spec").unwrap_or(&Value::Null);
    let mut running = Amounts::new();
    for container in items(spec, "/containers") {
        add(&mut running, &of_container(pod, container, key));
    }
    let (mut sidecars, mut initialising) = (Amounts::new(), Amounts::new());
    for container in items(spec, "/initContainers") {
        let own = of_container(pod, container, key);
        let mut moment = sidecars.clone();
        add(&mut moment, &own);
        raise(&mut initialising, &moment);
        if text(container, "/restartPolicy") == "Always" {
            add(&mut running, &own);
            sidecars = moment;
        }
    }
    raise(&mut running, &initialising);
    running.extend(amounts(spec, &format!("/resources/{key}")));
    for (resource, overhead) in amounts(spec, "/overhead") {
        match running.get(&resource) {
            None if key == "limits" => {}
            Some(sum) => _ = running.insert(resource, sum.add(&overhead)),
            None => _ = running.insert(resource, overhead),
        }
    }
    running
}

/// What a container asks for, and what it holds already where it is being resized downwards.
fn of_container(pod: &Value, container: &Value, key: &str) -> Amounts {
    let mut own = amounts(container, &format!("/resources/{key}"));
    let name = text(container, "/name");
    let statuses = ["/status/containerStatuses", "/status/initContainerStatuses"];
    let status = statuses.iter().flat_map(|list| items(pod, list)).find(|s| text(s, "/name") == name);
    if let Some(status) = status {
        raise_known(&mut own, &amounts(status, &format!("/resources/{key}")));
        if key == "requests" {
            raise_known(&mut own, &amounts(status, "/allocatedResources"));
        }
    }
    own
}

fn raise(max: &mut Amounts, other: &Amounts) {
    for (name, amount) in other {
        if max.get(name).is_none_or(|max| max < amount) {
            max.insert(name.clone(), *amount);
        }
    }
}

fn raise_known(max: &mut Amounts, other: &Amounts) {
    for (name, max) in max {
        if let Some(amount) = other.get(name).filter(|amount| *amount > max) {
            *max = *amount;
        }
    }
}

pub(super) fn unspecified<'a>(pod: &Value, tracked: impl IntoIterator<Item = &'a str>) -> Option<String> {
    let for_the_pod = ["requests", "limits"].iter().any(|key| {
        amounts(pod, &format!("/spec/resources/{key}"))
            .keys()
            .any(|name| name == "cpu" || name == "memory" || name.starts_with("hugepages-"))
    });
    if for_the_pod {
        return None;
    }
    let mut missing: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    let tracked: BTreeSet<&str> = tracked.into_iter().collect();
    for (name, key, resource) in MUST_BE_SPECIFIED.iter().filter(|(name, ..)| tracked.contains(name)) {
        for container in items(pod, "/spec/containers").iter().chain(items(pod, "/spec/initContainers")) {
            if container.pointer(&format!("/resources/{key}/{resource}")).is_none() {
                missing.entry(name).or_default().insert(text(container, "/name"));
            }
        }
    }
    let parts = missing.iter().map(|(resource, containers)| {
        let containers: Vec<&str> = containers.iter().copied().collect();
        format!("{resource} for: {}", containers.join(","))
    });
    let parts: Vec<String> = parts.collect();
    (!parts.is_empty()).then(|| format!("must specify {}", parts.join("; ")))
}

pub(super) fn in_scope(scope: &str, operator: &str, values: &[Value], pod: &Value) -> bool {
    let deadline = pod.pointer("/spec/activeDeadlineSeconds").and_then(Value::as_i64);
    let terminating = deadline.is_some_and(|seconds| seconds >= 0);
    match scope {
        "Terminating" => terminating,
        "NotTerminating" => !terminating,
        "BestEffort" => is_best_effort(pod),
        "NotBestEffort" => !is_best_effort(pod),
        "PriorityClass" => {
            let class = text(pod, "/spec/priorityClassName");
            selects(operator, values, Some(class).filter(|class| !class.is_empty()))
        }
        "CrossNamespacePodAffinity" => crosses_namespaces(pod),
        _ => false,
    }
}

/// Nothing asked of CPU or memory anywhere.
fn is_best_effort(pod: &Value) -> bool {
    let asks = |resources: &Value| {
        ["/requests", "/limits"].iter().any(|list| {
            let amounts = amounts(resources, list);
            ["cpu", "memory"].iter().any(|name| amounts.get(*name).is_some_and(|amount| amount.sign() > 0))
        })
    };
    if let Some(resources) = pod.pointer("/spec/resources").filter(|resources| resources.is_object()) {
        return !asks(resources);
    }
    let containers = items(pod, "/spec/containers").iter().chain(items(pod, "/spec/initContainers"));
    !containers.filter_map(|container| container.get("resources")).any(asks)
}

fn crosses_namespaces(pod: &Value) -> bool {
    ["podAffinity", "podAntiAffinity"].iter().any(|kind| {
        let required =
            items(pod, &format!("/spec/affinity/{kind}/requiredDuringSchedulingIgnoredDuringExecution"));
        let preferred =
            items(pod, &format!("/spec/affinity/{kind}/preferredDuringSchedulingIgnoredDuringExecution"));
        let weighted = preferred.iter().filter_map(|term| term.get("podAffinityTerm"));
        required.iter().chain(weighted).any(|term| {
            !items(term, "/namespaces").is_empty()
                || term.get("namespaceSelector").is_some_and(|selector| !selector.is_null())
        })
    })
}
