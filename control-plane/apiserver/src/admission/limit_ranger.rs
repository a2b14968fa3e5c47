//! LimitRanges of the namespace: defaults for containers that say nothing, and bounds for those that do.

use std::collections::BTreeMap;

use api::{quantity::Quantity, status::Status};
use serde_json::{Map, Value};

use super::{Lookup, Operation, Plugin, Request};
use crate::registry::{
    fields::*,
    pod_spec::{init_and_app_containers, is_restartable_init},
};

pub(super) struct LimitRanger;

const ANNOTATION: &str = "kubernetes.io/limit-ranger";

impl Plugin for LimitRanger {
    fn admit(&self, request: &Request<'_>, object: &mut Value, lookup: &dyn Lookup) -> Result<(), Status> {
        if subject(request) == Some(Subject::Pod) {
            for range in lookup.list("", "limitranges", request.namespace) {
                fill(object, &range);
            }
        }
        Ok(())
    }

    fn validate(&self, request: &Request<'_>, object: &Value, lookup: &dyn Lookup) -> Result<(), Status> {
        let Some(subject) = subject(request) else { return Ok(()) };
        for range in lookup.list("", "limitranges", request.namespace) {
            let mut broken = Vec::new();
            for limit in items(&range, "/spec/limits") {
                match subject {
                    Subject::Claim => check_claim(limit, object, &mut broken),
                    Subject::Pod => check_pod(limit, object, &mut broken),
                }
            }
            match broken.as_slice() {
                [] => {}
                [one] => return Err(request.forbidden(one)),
                many => return Err(request.forbidden(format!("[{}]", many.join(", ")))),
            }
        }
        Ok(())
    }
}

/// What limits are for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Subject {
    Pod,
    Claim,
}

/// What the request is to be judged as: a pod that is made or resized, a claim that is written; nothing that is on its way
/// out.
fn subject(request: &Request<'_>) -> Option<Subject> {
    if request.old.is_some_and(|old| present(old, "/metadata/deletionTimestamp")) {
        return None;
    }
    let writes = matches!(request.operation, Operation::Create | Operation::Update);
    let resizes = request.operation == Operation::Update
        && request.is_any_part_of("", "pods")
        && request.subresource == "resize";
    if resizes || request.creates("", "pods") {
        Some(Subject::Pod)
    } else if writes && request.is("", "persistentvolumeclaims") {
        Some(Subject::Claim)
    } else {
        None
    }
}

fn fill(pod: &mut Value, range: &Value) {
    let (mut limits, mut requests) = (Map::new(), Map::new());
    for limit in items(range, "/spec/limits").iter().filter(|limit| text(limit, "/type") == "Container") {
        limits.extend(entries(limit, "/default").clone());
        requests.extend(entries(limit, "/defaultRequest").clone());
    }
    let mut filled = Vec::new();
    let spec = child(pod, "spec");
    for (list, word) in [("containers", "container"), ("initContainers", "init container")] {
        for container in each(spec, list) {
            let name = text(container, "/name").to_owned();
            let resources = child(container, "resources");
            for (kind, key, defaults) in [("request", "requests", &requests), ("limit", "limits", &limits)] {
                let set_now = fill_missing(resources, key, defaults);
                if !set_now.is_empty() {
                    filled.push(format!("{} {kind} for {word} {name}", set_now.join(", ")));
                }
            }
        }
    }
    if !filled.is_empty() {
        let text = format!("LimitRanger plugin set: {}", filled.join("; "));
        set(child(child(pod, "metadata"), "annotations"), ANNOTATION, text);
    }
}

fn fill_missing(resources: &mut Value, key: &str, defaults: &Map<String, Value>) -> Vec<String> {
    let missing: Vec<_> = defaults
        .iter()
        .filter(|(name, _)| !entries(resources, &format!("/{key}")).contains_key(*name))
        .collect();
    for (name, amount) in &missing {
        set(child(resources, key), name, (*amount).clone());
    }
    missing.into_iter().map(|(name, _)| name.clone()).collect()
}

type Amounts = BTreeMap<String, Quantity>;

fn amounts(resources: &Value, key: &str) -> Amounts {
    let all = entries(resources, &format!("/{key}")).iter();
    all.filter_map(|(name, amount)| Some((name.clone(), quantity(amount)?))).collect()
}

fn check_pod(limit: &Value, pod: &Value, broken: &mut Vec<String>) {
    let spec = at(pod, "/spec");
    match text(limit, "/type") {
        "Container" => {
            for container in init_and_app_containers(spec) {
                let resources = at(container, "/resources");
                bounds(
                    limit,
                    "Container",
                    &amounts(resources, "requests"),
                    &amounts(resources, "limits"),
                    broken,
                );
            }
        }
        "Pod" => {
            let (requests, limits) =
                (amounts_without_overhead(spec, "requests"), amounts_without_overhead(spec, "limits"));
            bounds(limit, "Pod", &requests, &limits, broken);
        }
        _ => {}
    }
}

/// What a pod needs at once, with the overhead of its runtime.
pub(super) fn pod_amounts(spec: &Value, key: &str) -> Amounts {
    let mut total = amounts_without_overhead(spec, key);
    if key == "requests" {
        add(&mut total, amounts(spec, "overhead"));
    }
    total
}

fn add(total: &mut Amounts, more: Amounts) {
    for (name, amount) in more {
        let sum = total.get(&name).map_or(amount, |sum| sum.add(&amount));
        total.insert(name, sum);
    }
}

/// What a pod's containers need at once: app containers and sidecars together, or an init container with the sidecars that
/// were started before it if that is more. What the pod as a whole says counts instead.
fn amounts_without_overhead(spec: &Value, key: &str) -> Amounts {
    let of = |container: &Value| amounts(at(container, "/resources"), key);
    let mut total = Amounts::new();
    for container in items(spec, "/containers") {
        add(&mut total, of(container));
    }
    let (mut sidecars, mut most) = (Amounts::new(), Amounts::new());
    for container in items(spec, "/initContainers") {
        let mut needed = of(container);
        if is_restartable_init(container) {
            add(&mut total, needed.clone());
            add(&mut sidecars, needed);
            needed = sidecars.clone();
        } else {
            add(&mut needed, sidecars.clone());
        }
        raise(&mut most, needed);
    }
    raise(&mut total, most);
    let of_pod = amounts(at(spec, "/resources"), key).into_iter();
    total.extend(
        of_pod
            .filter(|(name, _)| matches!(name.as_str(), "cpu" | "memory") || name.starts_with("hugepages-")),
    );
    total
}

fn raise(total: &mut Amounts, to: Amounts) {
    for (name, amount) in to {
        if total.get(&name).is_none_or(|sum| sum.milli() < amount.milli()) {
            total.insert(name, amount);
        }
    }
}

fn bounds(limit: &Value, kind: &str, requests: &Amounts, limits: &Amounts, broken: &mut Vec<String>) {
    for (name, enforced) in amounts(limit, "min") {
        let start = format!("minimum {name} usage per {kind} is {enforced}");
        match (requests.get(&name), limits.get(&name)) {
            (None, _) => broken.push(format!("{start}.  No request is specified")),
            (Some(request), _) if request.milli() < enforced.milli() => {
                broken.push(format!("{start}, but request is {request}"));
            }
            (_, Some(limit)) if limit.milli() < enforced.milli() => {
                broken.push(format!("{start}, but limit is {limit}"));
            }
            _ => {}
        }
    }
    for (name, enforced) in amounts(limit, "max") {
        let start = format!("maximum {name} usage per {kind} is {enforced}");
        match (requests.get(&name), limits.get(&name)) {
            (_, None) => broken.push(format!("{start}.  No limit is specified")),
            (_, Some(limit)) if limit.milli() > enforced.milli() => {
                broken.push(format!("{start}, but limit is {limit}"));
            }
            (Some(request), _) if request.milli() > enforced.milli() => {
                broken.push(format!("{start}, but request is {request}"));
            }
            _ => {}
        }
    }
    for (name, enforced) in amounts(limit, "maxLimitRequestRatio") {
        let start = format!("{name} max limit to request ratio per {kind} is {enforced}");
        let amount = |amounts: &Amounts| amounts.get(&name).map_or(0, |amount| amount.milli());
        let (request, limit) = (amount(requests), amount(limits));
        if request == 0 {
            broken.push(format!("{start}, but no request is specified or request is 0"));
        } else if limit == 0 {
            broken.push(format!("{start}, but no limit is specified or limit is 0"));
        } else if limit * 1000 > enforced.milli() * request {
            let ratio = limit as f64 / request as f64;
            broken.push(format!("{start}, but provided ratio is {ratio:.6}"));
        }
    }
}

fn check_claim(limit: &Value, claim: &Value, broken: &mut Vec<String>) {
    if text(limit, "/type") != "PersistentVolumeClaim" {
        return;
    }
    let requests = amounts(at(claim, "/spec/resources"), "requests");
    for (bound, word) in [("min", "minimum"), ("max", "maximum")] {
        for (name, enforced) in amounts(limit, bound) {
            let start = format!("{word} {name} usage per PersistentVolumeClaim is {enforced}");
            match requests.get(&name) {
                None => broken.push(format!("{start}.  No request is specified")),
                Some(request) => {
                    let over = if bound == "min" {
                        request.milli() < enforced.milli()
                    } else {
                        request.milli() > enforced.milli()
                    };
                    if over {
                        broken.push(format!("{start}, but request is {request}"));
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn cpu(amount: &str) -> Value {
        json!({"resources": {"requests": {"cpu": amount}}})
    }

    #[test]
    fn sidecars_count_beside_the_init_containers_that_follow_them() {
        let mut sidecar = cpu("300m");
        sidecar["restartPolicy"] = json!("Always");
        let spec = json!({"initContainers": [cpu("900m"), sidecar, cpu("800m")], "containers": [cpu("200m")],
            "overhead": {"cpu": "50m"}});
        let milli = |amounts: Amounts| amounts["cpu"].milli();
        assert_eq!(milli(amounts_without_overhead(&spec, "requests")), 1100);
        assert_eq!(milli(pod_amounts(&spec, "requests")), 1150);
        let mut of_pod = spec.clone();
        of_pod["resources"] = json!({"requests": {"cpu": "2", "example.com/x": "1"}});
        let amounts = amounts_without_overhead(&of_pod, "requests");
        assert_eq!((amounts["cpu"].milli(), amounts.len()), (2000, 1));
    }
}
