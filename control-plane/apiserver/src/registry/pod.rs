//! Pods: defaults, the immutable spec, graceful deletion, quality of service.

use api::field::FieldError;
use serde_json::{Value, json};

use super::{
    Column, Context, Strategy,
    fields::*,
    keep_status, pod_columns,
    pod_spec::{self, containers::validate_resources, default_pod, qos_class, validate_pod_spec},
    rules::Errors,
};

pub(super) struct Pods;

const MAY_CHANGE: &str = "pod updates may not change fields other than `spec.containers[*].image`,\
                          `spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,\
                          `spec.tolerations` (only additions to existing tolerations),\
                          `spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

impl Strategy for Pods {
    fn default(&self, object: &mut Value) {
        default_pod(object);
    }

    fn prepare_create(&self, _context: &Context<'_>, object: &mut Value) {
        let qos = qos_class(at(object, "/spec"));
        set(object, "status", json!({ "phase": "Pending", "qosClass": qos }));
        if !items(object, "/spec/schedulingGates").is_empty() {
            let condition = json!({
                "type": "PodScheduled",
                "status": "False",
                "reason": "SchedulingGated",
                "message": "Scheduling is blocked due to non-empty scheduling gates",
                "lastProbeTime": null,
            });
            list(child(object, "status"), "conditions").push(condition);
        }
        merge_match_label_keys(object);
    }

    fn prepare_update(&self, context: &Context<'_>, new: &mut Value, old: &Value) {
        match context.subresource {
            "status" => prepare_status(new, old),
            "ephemeralcontainers" => {
                let ephemeral = at(new, "/spec/ephemeralContainers").clone();
                copy(new, old, "spec");
                copy(new, old, "status");
                if ephemeral.is_null() {
                    remove(child(new, "spec"), "ephemeralContainers");
                } else {
                    set(child(new, "spec"), "ephemeralContainers", ephemeral);
                }
            }
            "resize" => prepare_resize(new, old),
            _ => keep_status(new, old),
        }
    }

    fn validate(&self, _context: &Context<'_>, object: &Value) -> Vec<FieldError> {
        let mut errors = Errors::default();
        let spec = at(object, "/spec");
        errors.extend(validate_pod_spec(spec, "spec"));
        if !items(spec, "/ephemeralContainers").is_empty() {
            errors.forbidden("spec.ephemeralContainers", "cannot be set on create");
        }
        if !text(spec, "/nodeName").is_empty() && !items(spec, "/schedulingGates").is_empty() {
            errors.forbidden("spec.nodeName", "cannot be set until all schedulingGates have been cleared");
        }
        errors.into_vec()
    }

    fn validate_update(&self, context: &Context<'_>, new: &Value, old: &Value) -> Vec<FieldError> {
        match context.subresource {
            "status" => status_update(new, old),
            "ephemeralcontainers" => ephemeral_update(new, old),
            "resize" => resize_update(new, old),
            _ => spec_update(new, old),
        }
    }

    fn warnings(&self, object: &Value) -> Vec<String> {
        let name = text(object, "/metadata/name");
        let wrong = api::names::dns1123_label(name, false);
        if name.is_empty() || wrong.is_empty() {
            return Vec::new();
        }
        vec![format!(
            "metadata.name: this is used in the Pod's hostname, which can result in surprising behavior; a DNS label \
             is recommended: [{}]",
            wrong.join(" ")
        )]
    }

    fn has_generation(&self) -> bool {
        true
    }

    fn selectable_fields(&self, object: &Value) -> Vec<(&'static str, String)> {
        let ips: Vec<_> = items(object, "/status/podIPs").iter().map(|ip| text(ip, "/ip")).collect();
        vec![
            ("spec.nodeName", text(object, "/spec/nodeName").to_owned()),
            ("spec.restartPolicy", text(object, "/spec/restartPolicy").to_owned()),
            ("spec.schedulerName", text(object, "/spec/schedulerName").to_owned()),
            ("spec.serviceAccountName", text(object, "/spec/serviceAccountName").to_owned()),
            ("spec.hostNetwork", flag(object, "/spec/hostNetwork").to_string()),
            ("status.phase", text(object, "/status/phase").to_owned()),
            ("status.podIP", ips.first().copied().unwrap_or("").to_owned()),
            ("status.nominatedNodeName", text(object, "/status/nominatedNodeName").to_owned()),
        ]
    }

    fn selectable_field_names(&self) -> &'static [&'static str] {
        &[
            "spec.nodeName",
            "spec.restartPolicy",
            "spec.schedulerName",
            "spec.serviceAccountName",
            "spec.hostNetwork",
            "status.phase",
            "status.podIP",
            "status.podIPs",
            "status.nominatedNodeName",
        ]
    }

    fn grace_period_seconds(&self, object: &Value, requested: Option<i64>) -> Option<i64> {
        let unscheduled = text(object, "/spec/nodeName").is_empty();
        if unscheduled || matches!(text(object, "/status/phase"), "Failed" | "Succeeded") {
            return Some(0);
        }
        let period = requested.unwrap_or_else(|| int(object, "/spec/terminationGracePeriodSeconds"));
        Some(if period < 0 { 1 } else { period })
    }

    fn columns(&self) -> &'static [Column] {
        pod_columns::COLUMNS
    }
}

/// `matchLabelKeys` and `mismatchLabelKeys` become requirements of the selector beside them, from the pod's own labels.
fn merge_match_label_keys(pod: &mut Value) {
    let labels = entries(pod, "/metadata/labels").clone();
    let spec = child(pod, "spec");
    let mut merge = |term: &mut Value| {
        for (keys, operator) in [("matchLabelKeys", "In"), ("mismatchLabelKeys", "NotIn")] {
            for key in items(term, &format!("/{keys}")).to_vec() {
                let value = key.as_str().and_then(|key| labels.get(key));
                if let (Some(value), true) = (value, term.get("labelSelector").is_some_and(Value::is_object))
                {
                    let requirement = json!({ "key": key, "operator": operator, "values": [value] });
                    list(child(term, "labelSelector"), "matchExpressions").push(requirement);
                }
            }
        }
    };
    each(spec, "topologySpreadConstraints").for_each(&mut merge);
    let Some(affinity) = existing(spec, "affinity") else { return };
    for kind in ["podAffinity", "podAntiAffinity"] {
        let Some(affinity) = existing(affinity, kind) else { continue };
        each(affinity, "requiredDuringSchedulingIgnoredDuringExecution").for_each(&mut merge);
        each(affinity, "preferredDuringSchedulingIgnoredDuringExecution")
            .filter_map(|weighted| existing(weighted, "podAffinityTerm"))
            .for_each(&mut merge);
    }
}

fn prepare_status(new: &mut Value, old: &Value) {
    copy(new, old, "spec");
    remove(child(new, "metadata"), "deletionTimestamp");
    for key in ["deletionTimestamp", "ownerReferences"] {
        copy(child(new, "metadata"), at(old, "/metadata"), key);
    }
    if text(new, "/status/qosClass").is_empty() {
        copy(child(new, "status"), at(old, "/status"), "qosClass");
    }
    if int(new, "/status/observedGeneration") == 0 {
        copy(child(new, "status"), at(old, "/status"), "observedGeneration");
    }
}

/// Keeps all but the resources and resize policies of containers that are there before and after, in order.
fn prepare_resize(new: &mut Value, old: &Value) {
    let mut spec = at(old, "/spec").clone();
    for list in ["containers", "initContainers"] {
        let resized = items(new, &format!("/spec/{list}"));
        let before = items(old, &format!("/spec/{list}"));
        let same_names = resized.iter().map(|c| text(c, "/name")).eq(before.iter().map(|c| text(c, "/name")));
        if !same_names {
            return;
        }
        for (container, resized) in each(&mut spec, list).zip(resized) {
            copy(container, resized, "resources");
            copy(container, resized, "resizePolicy");
        }
    }
    set(new, "spec", spec);
    copy(new, old, "status");
}

fn spec_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    let (spec, before) = (at(new, "/spec"), at(old, "/spec"));
    errors.extend(validate_pod_spec(spec, "spec"));
    for list in ["containers", "initContainers"] {
        let pointer = format!("/{list}");
        if items(spec, &pointer).len() != items(before, &pointer).len() {
            errors.forbidden(format!("spec.{list}"), "pod updates may not add or remove containers");
            return errors.into_vec();
        }
    }
    let (deadline, deadline_before) =
        (at(spec, "/activeDeadlineSeconds"), at(before, "/activeDeadlineSeconds"));
    match (deadline.as_i64(), deadline_before.as_i64()) {
        (Some(now), Some(then)) if then < now => {
            let detail = "must be less than or equal to previous value";
            errors.invalid("spec.activeDeadlineSeconds", deadline, detail);
            return errors.into_vec();
        }
        (None, Some(_)) => {
            let detail = "must not update from a positive integer to nil value";
            errors.invalid("spec.activeDeadlineSeconds", deadline, detail);
        }
        _ => {}
    }
    only_added_tolerations(&mut errors, spec, before);
    only_removed_gates(&mut errors, spec, before);
    let unchanged = with_changeable_fields_of(spec, before);
    if !same(&unchanged, before) {
        errors.forbidden("spec", format!("{MAY_CHANGE}\n{}", changed_fields(&unchanged, before)));
    }
    errors.into_vec()
}

fn only_added_tolerations(errors: &mut Errors, spec: &Value, before: &Value) {
    let without_seconds = |toleration: &Value| {
        let mut toleration = toleration.clone();
        remove(&mut toleration, "tolerationSeconds");
        toleration
    };
    let now: Vec<_> = items(spec, "/tolerations").iter().map(without_seconds).collect();
    for toleration in items(before, "/tolerations").iter().map(without_seconds) {
        if !now.iter().any(|other| same(other, &toleration)) {
            let detail = "existing toleration can not be modified except its tolerationSeconds";
            return errors.forbidden("spec.tolerations", detail);
        }
    }
}

fn only_removed_gates(errors: &mut Errors, spec: &Value, before: &Value) {
    let known: Vec<_> = items(before, "/schedulingGates").iter().map(|gate| text(gate, "/name")).collect();
    for (i, gate) in items(spec, "/schedulingGates").iter().enumerate() {
        let name = text(gate, "/name");
        if !known.contains(&name) {
            let detail = format!("only deletion is allowed, but found new scheduling gate '{name}'");
            errors.forbidden(format!("spec.schedulingGates[{i}].name"), detail);
        }
    }
}

/// The new spec with every field that an update may change set back: what differs then is forbidden.
fn with_changeable_fields_of(spec: &Value, before: &Value) -> Value {
    let mut spec = spec.clone();
    for list in ["containers", "initContainers"] {
        for (container, before) in each(&mut spec, list).zip(items(before, &format!("/{list}"))) {
            copy(container, before, "image");
        }
    }
    for key in ["activeDeadlineSeconds", "schedulingGates", "tolerations"] {
        copy(&mut spec, before, key);
    }
    let grace = "terminationGracePeriodSeconds";
    if before.get(grace).and_then(Value::as_i64).is_some_and(|s| s < 0)
        && int(&spec, &format!("/{grace}")) == 1
    {
        copy(&mut spec, before, grace);
    }
    if !items(before, "/schedulingGates").is_empty() {
        let selector = entries(&spec, "/nodeSelector");
        let kept =
            entries(before, "/nodeSelector").iter().all(|(key, value)| selector.get(key) == Some(value));
        if kept {
            copy(&mut spec, before, "nodeSelector");
        }
    }
    spec
}

/// One line for each top-level field of the spec that differs.
fn changed_fields(new: &Value, old: &Value) -> String {
    let mut keys: Vec<_> = entries(new, "").keys().chain(entries(old, "").keys()).collect();
    keys.sort();
    keys.dedup();
    let changed = keys.into_iter().map(|key| (key, at(old, &format!("/{key}")), at(new, &format!("/{key}"))));
    let lines = changed.filter(|(_, old, new)| !same(old, new));
    lines.map(|(key, old, new)| format!("- {key}: {old}\n+ {key}: {new}")).collect::<Vec<_>>().join("\n")
}

fn status_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    errors.immutable("status.qosClass", at(new, "/status/qosClass"), at(old, "/status/qosClass"));
    let nominated = text(new, "/status/nominatedNodeName");
    if !nominated.is_empty() && nominated != text(old, "/status/nominatedNodeName") {
        errors.dns1123_subdomain("status.nominatedNodeName", &nominated.into());
        if !text(old, "/spec/nodeName").is_empty() {
            let detail = "may not be set on pods that are already bound to a node";
            errors.forbidden("status.nominatedNodeName", detail);
        }
    }
    let spec = at(old, "/spec");
    for list in ["containerStatuses", "initContainerStatuses", "ephemeralContainerStatuses"] {
        terminated_stays(&mut errors, new, old, spec, list);
    }
    for (list, single) in [("podIPs", "podIP"), ("hostIPs", "hostIP")] {
        for (i, ip) in items(new, &format!("/status/{list}")).iter().enumerate() {
            errors.ip(format!("status.{list}[{i}].ip"), at(ip, "/ip"));
        }
        let first = text(new, &format!("/status/{list}/0/ip"));
        let value = text(new, &format!("/status/{single}"));
        if !first.is_empty() && !value.is_empty() && first != value {
            let detail = format!("must match status.{single}");
            errors.invalid(format!("status.{list}[0].ip"), &first.into(), detail);
        }
    }
    errors.into_vec()
}

fn terminated_stays(errors: &mut Errors, new: &Value, old: &Value, spec: &Value, list: &str) {
    let pointer = format!("/status/{list}");
    let policy = text(spec, "/restartPolicy");
    for (i, before) in items(old, &pointer).iter().enumerate() {
        let Some(ended) = before.pointer("/state/terminated").filter(|ended| !ended.is_null()) else {
            continue;
        };
        let name = text(before, "/name");
        let same_name = |c: &&Value| text(c, "/name") == name;
        let container = pod_spec::init_and_app_containers(spec).find(same_name);
        let own_policy = container.map_or("", |c| text(c, "/restartPolicy"));
        let rules = container.is_some_and(|c| !items(c, "/restartPolicyRules").is_empty());
        let policy = if own_policy.is_empty() { policy } else { own_policy };
        let may_restart =
            policy == "Always" || rules || (policy == "OnFailure" && int(ended, "/exitCode") != 0);
        let runs =
            items(new, &pointer).iter().find(same_name).is_some_and(|c| !present(c, "/state/terminated"));
        if runs && !may_restart {
            let detail = "may not be transitioned to non-terminated state";
            errors.forbidden(format!("status.{list}[{i}].state"), detail);
        }
    }
}

fn ephemeral_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    errors.extend(validate_pod_spec(at(new, "/spec"), "spec"));
    let added = items(new, "/spec/ephemeralContainers");
    for before in items(old, "/spec/ephemeralContainers") {
        let name = text(before, "/name");
        match added.iter().find(|c| text(c, "/name") == name) {
            None => errors.forbidden(
                "spec.ephemeralContainers",
                format!("existing ephemeral containers \"{name}\" may not be removed\n"),
            ),
            Some(now) if !same(now, before) => errors.forbidden(
                "spec.ephemeralContainers",
                format!("existing ephemeral containers \"{name}\" may not be changed\n"),
            ),
            Some(_) => {}
        }
    }
    errors.into_vec()
}

fn resize_update(new: &Value, old: &Value) -> Vec<FieldError> {
    let mut errors = Errors::default();
    errors.extend(validate_resources(at(new, "/spec"), "spec"));
    if qos_class(at(new, "/spec")) != text(old, "/status/qosClass") {
        let detail = "Pod QOS Class may not change as a result of resizing";
        errors.invalid("spec", &text(old, "/status/qosClass").into(), detail);
    }
    errors.into_vec()
}
