//! Pod Security Standards: pods that break the level that their namespace's labels name are refused, audited or warned
//! of; workloads are warned of their templates; a namespace whose level becomes stricter is told of its pods that break
//! it. Nothing is exempt, and a namespace without labels is privileged.

mod checks;
mod policy;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashSet};

use api::status::Status;
use serde_json::Value;

use self::{
    checks::Pod,
    policy::{Level, LevelVersion, Policy},
};
use super::{Lookup, Operation, Plugin, Remarks, Request};
use crate::registry::fields::*;

pub(super) struct PodSecurity;

/// Existing pods that are looked at when a namespace's level changes.
const PODS_MAX: usize = 3000;
const ANNOTATION_PREFIX: &str = "pod-security.kubernetes.io/";
/// Subresources of pods whose objects are no pods, or whose writes change no spec.
const IGNORED_SUBRESOURCES: [&str; 8] =
    ["exec", "attach", "binding", "eviction", "log", "portforward", "proxy", "status"];

impl Plugin for PodSecurity {
    fn judge(
        &self,
        request: &Request<'_>,
        object: &Value,
        lookup: &dyn Lookup,
        remarks: &mut Remarks,
    ) -> Result<(), Status> {
        judge(request, object, lookup, remarks)
    }
}

impl Remarks {
    fn annotate(&mut self, key: &str, value: String) {
        self.annotations.push((format!("{ANNOTATION_PREFIX}{key}"), value));
    }
}

fn judge(
    request: &Request<'_>,
    object: &Value,
    lookup: &dyn Lookup,
    remarks: &mut Remarks,
) -> Result<(), Status> {
    if !matches!(request.operation, Operation::Create | Operation::Update) {
        return Ok(());
    }
    if request.is("", "namespaces") {
        return namespace(request, object, lookup, remarks);
    }
    if request.is_any_part_of("", "pods") {
        return pod(request, object, lookup, remarks);
    }
    if let Some(template) = template_pointer(request).filter(|_| request.subresource.is_empty()) {
        workload(request, at(object, template), lookup, remarks);
    }
    Ok(())
}

/// Where a workload keeps its template.
fn template_pointer(request: &Request<'_>) -> Option<&'static str> {
    match (request.target.resource.group.as_str(), request.target.resource.plural.as_str()) {
        ("", "podtemplates") => Some("/template"),
        ("", "replicationcontrollers")
        | ("apps", "replicasets" | "deployments" | "statefulsets" | "daemonsets")
        | ("batch", "jobs") => Some("/spec/template"),
        ("batch", "cronjobs") => Some("/spec/jobTemplate/spec/template"),
        _ => None,
    }
}

fn namespace(
    request: &Request<'_>,
    object: &Value,
    lookup: &dyn Lookup,
    remarks: &mut Remarks,
) -> Result<(), Status> {
    let parse = |namespace| Policy::parse(entries(namespace, "/metadata/labels"));
    let (new, errors) = parse(object);
    let old = request.old.map(parse);
    if !errors.is_empty() && old.as_ref().is_none_or(|(_, old)| *old != errors) {
        return Err(Status::invalid("", "Namespace", request.name, errors));
    }
    let Some((old, _)) = old else { return Ok(()) };
    let relaxed = new.enforce.version == old.enforce.version && new.enforce.level <= old.enforce.level;
    if new.enforce != old.enforce && new.enforce.level != Level::Privileged && !relaxed {
        let pods = lookup.list("", "pods", request.name);
        remarks.warnings.extend(existing_pods(request.name, &pods, new.enforce));
    }
    Ok(())
}

/// Warnings of pods that break a new level; pods of one controller are looked at last but for one of them.
fn existing_pods(namespace: &str, pods: &[Value], enforce: LevelVersion) -> Vec<String> {
    let mut controllers = HashSet::new();
    let (mut first, mut others) = (Vec::new(), Vec::new());
    for pod in pods {
        let owners = items(pod, "/metadata/ownerReferences");
        let controller =
            owners.iter().find(|owner| flag(owner, "/controller")).map(|owner| text(owner, "/uid"));
        let is_new = controller.is_none_or(|uid| controllers.insert(uid));
        if is_new { first.push(pod) } else { others.push(pod) }
    }
    first.extend(others);
    let mut pods_by_reasons: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for pod in first.into_iter().take(PODS_MAX) {
        let found = enforce.evaluate(Pod { metadata: at(pod, "/metadata"), spec: at(pod, "/spec") });
        if !found.is_empty() {
            pods_by_reasons.entry(found.reasons()).or_default().push(text(pod, "/metadata/name"));
        }
    }
    let mut warnings = Vec::new();
    if pods.len() > PODS_MAX {
        warnings.push(format!(
            "new PodSecurity enforce level only checked against the first {PODS_MAX} of {} existing pods",
            pods.len()
        ));
    }
    if !pods_by_reasons.is_empty() {
        warnings.push(format!(
            "existing pods in namespace \"{namespace}\" violate the new PodSecurity enforce level \"{enforce}\""
        ));
    }
    let mut of_pods: Vec<_> = pods_by_reasons
        .into_iter()
        .map(|(reasons, names)| {
            let name = names.iter().min().expect("a reason is only there with the pod that gave it");
            match names.len() - 1 {
                0 => format!("{name}: {reasons}"),
                1 => format!("{name} (and 1 other pod): {reasons}"),
                more => format!("{name} (and {more} other pods): {reasons}"),
            }
        })
        .collect();
    of_pods.sort();
    warnings.extend(of_pods);
    warnings
}

fn policy_of(request: &Request<'_>, lookup: &dyn Lookup, remarks: &mut Remarks) -> Option<Policy> {
    let labels = lookup.namespace_labels(request.namespace)?;
    let (policy, errors) = Policy::parse(entries(&labels, ""));
    let texts: Vec<_> = errors.iter().map(ToString::to_string).collect();
    match texts.as_slice() {
        [] => {}
        [one] => remarks.annotate("error", format!("Failed to parse policy: {one}")),
        many => remarks.annotate("error", format!("Failed to parse policy: [{}]", many.join(", "))),
    }
    Some(policy)
}

fn pod(
    request: &Request<'_>,
    object: &Value,
    lookup: &dyn Lookup,
    remarks: &mut Remarks,
) -> Result<(), Status> {
    if IGNORED_SUBRESOURCES.contains(&request.subresource) {
        return Ok(());
    }
    let Some(policy) = policy_of(request, lookup, remarks) else {
        return Err(Status::internal(format!("failed to lookup namespace \"{}\"", request.namespace)));
    };
    if policy.is_privileged() {
        remarks.annotate("enforce-policy", policy.enforce.to_string());
        return Ok(());
    }
    if request.old.is_some_and(|old| !is_significant(object, old)) {
        return Ok(());
    }
    let pod = Pod { metadata: at(object, "/metadata"), spec: at(object, "/spec") };
    remarks.annotate("enforce-policy", policy.enforce.to_string());
    let enforced = policy.enforce.evaluate(pod);
    audit(policy.audit, pod, remarks);
    if enforced.is_empty() {
        warn(policy.warn, pod, remarks);
        return Ok(());
    }
    Err(request.forbidden(format!("violates PodSecurity \"{}\": {}", policy.enforce, enforced.details())))
}

fn workload(request: &Request<'_>, template: &Value, lookup: &dyn Lookup, remarks: &mut Remarks) {
    if template.is_null() {
        return;
    }
    let Some(policy) = policy_of(request, lookup, remarks) else { return };
    let pod = Pod { metadata: at(template, "/metadata"), spec: at(template, "/spec") };
    audit(policy.audit, pod, remarks);
    warn(policy.warn, pod, remarks);
}

fn would_violate(mode: LevelVersion, pod: Pod<'_>) -> Option<String> {
    let found = mode.evaluate(pod);
    (!found.is_empty()).then(|| format!("would violate PodSecurity \"{mode}\": {}", found.details()))
}

fn audit(mode: LevelVersion, pod: Pod<'_>, remarks: &mut Remarks) {
    if let Some(text) = would_violate(mode, pod) {
        remarks.annotate("audit-violations", text);
    }
}

fn warn(mode: LevelVersion, pod: Pod<'_>, remarks: &mut Remarks) {
    remarks.warnings.extend(would_violate(mode, pod));
}

/// Whether an update of a pod can change how it stands to a policy: other images, more containers.
fn is_significant(new: &Value, old: &Value) -> bool {
    let images = |pod: &Value, list: &str| -> Vec<String> {
        items(pod, list).iter().map(|container| text(container, "/image").to_owned()).collect()
    };
    let differs = |list| images(new, list) != images(old, list);
    if differs("/spec/containers") || differs("/spec/initContainers") {
        return true;
    }
    let before = items(old, "/spec/ephemeralContainers");
    items(new, "/spec/ephemeralContainers").iter().any(|container| {
        let same_name = before.iter().find(|old| text(old, "/name") == text(container, "/name"));
        same_name.is_none_or(|old| text(old, "/image") != text(container, "/image"))
    })
}
