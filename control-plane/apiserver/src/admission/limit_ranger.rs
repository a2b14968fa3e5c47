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
        if request.creates("", "pods") {
            for range in lookup.list("", "limitranges", request.namespace) {
                fill(object, &range);
            }
        }
        Ok(())
    }

    fn validate(&self, request: &Request<'_>, object: &Value, lookup: &dyn Lookup) -> Result<(), Status> {
        let resize = request.is_any_part_of("", "pods") && request.subresource == "resize";
        let writes = matches!(request.operation, Operation::Create | Operation::Update);
        let claim = writes && request.is("", "persistentvolumeclaims");
        if !claim && !resize && !request.creates("", "pods") {
            return Ok(());
        }
        for range in lookup.list("", "limitranges", request.namespace) {
            let mut broken = Vec::new();
            for limit in items(&range, "/spec/limits") {
                if claim {
                    check_claim(limit, object, &mut broken);
                } else {
                    check_pod(limit, object, &mut broken);
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
        "Pod" => bounds(limit, "Pod", &pod_amounts(spec, "requests"), &pod_amounts(spec, "limits"), broken),
        _ => {}
    }
}

/// What a pod needs at once: app containers and sidecars together, or one init container if that needs more.
pub(super) fn pod_amounts(spec: &Value, key: &str) -> Amounts {
    let mut total = Amounts::new();
    let running = items(spec, "/initContainers").iter().filter(|c| is_restartable_init(c));
    for container in running.chain(items(spec, "/containers")) {
        for (name, amount) in amounts(at(container, "/resources"), key) {
            let sum = total.get(&name).map_or(amount, |sum| sum.add(&amount));
            total.insert(name, sum);
        }
    }
    for container in items(spec, "/initContainers").iter().filter(|c| !is_restartable_init(c)) {
        for (name, amount) in amounts(at(container, "/resources"), key) {
            if total.get(&name).is_none_or(|sum| sum.milli() < amount.milli()) {
                total.insert(name, amount);
            }
        }
    }
    total.extend(amounts(at(spec, "/resources"), key));
    if key == "requests" {
        for (name, overhead) in amounts(spec, "overhead") {
            let sum = total.get(&name).map_or(overhead, |sum| sum.add(&overhead));
            total.insert(name, sum);
        }
    }
    total
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
