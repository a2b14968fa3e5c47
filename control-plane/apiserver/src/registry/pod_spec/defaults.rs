//! Defaults of pods and pod templates: what upstream fills in code, beside the `+default=` markers of the schema.

use std::collections::BTreeMap;

use api::quantity::Quantity;
use serde_json::{Value, json};

use super::{super::fields::*, CONTAINER_LISTS, is_restartable_init};

const CONFIG_MODE: i32 = 0o644;
const TERMINATION_GRACE_PERIOD_SECONDS: i64 = 30;
const TOKEN_EXPIRATION_SECONDS: i64 = 3600;

/// Defaults of the spec under `template`, where there is a template.
pub(crate) fn default_template(owner_spec: &mut Value) {
    if let Some(template) = existing(owner_spec, "template") {
        default_pod_spec(child(template, "spec"));
    }
}

/// What both pods and templates get.
pub(crate) fn default_pod_spec(spec: &mut Value) {
    set_if_zero(spec, "dnsPolicy", "ClusterFirst");
    set_if_zero(spec, "restartPolicy", "Always");
    child(spec, "securityContext");
    set_default(spec, "terminationGracePeriodSeconds", TERMINATION_GRACE_PERIOD_SECONDS);
    set_if_zero(spec, "schedulerName", "default-scheduler");
    for (from, to) in [("serviceAccountName", "serviceAccount"), ("serviceAccount", "serviceAccountName")] {
        if let Some(name) = spec.get(from).filter(|v| !is_zero(v)).cloned() {
            set_if_zero(spec, to, name);
        }
    }
    for volume in each(spec, "volumes") {
        default_volume(volume);
    }
    for list in CONTAINER_LISTS {
        for container in each(spec, list) {
            default_container(container);
        }
    }
}

/// What pods get and templates do not.
pub(crate) fn default_pod(pod: &mut Value) {
    let spec = child(pod, "spec");
    default_pod_spec(spec);
    for list in ["containers", "initContainers"] {
        for container in each(spec, list) {
            requests_from_limits(container);
        }
    }
    pod_level_requests(spec);
    set_default(spec, "enableServiceLinks", true);
    if flag(spec, "/hostNetwork") {
        for list in ["containers", "initContainers"] {
            for port in each(spec, list).flat_map(|container| each(container, "ports")) {
                let container_port = int(port, "/containerPort");
                set_if_zero(port, "hostPort", container_port);
            }
        }
    }
}

fn default_container(container: &mut Value) {
    let policy = pull_policy(text(container, "/image"));
    set_if_zero(container, "imagePullPolicy", policy);
    set_if_zero(container, "terminationMessagePath", "/dev/termination-log");
    set_if_zero(container, "terminationMessagePolicy", "File");
    child(container, "resources");
    for port in each(container, "ports") {
        set_if_zero(port, "protocol", "TCP");
    }
    for variable in each(container, "env") {
        if let Some(source) = existing(variable, "valueFrom") {
            default_field_ref(source);
        }
    }
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(probe) = existing(container, probe) {
            default_probe(probe);
        }
    }
    if let Some(lifecycle) = existing(container, "lifecycle") {
        for hook in ["postStart", "preStop"] {
            if let Some(hook) = existing(lifecycle, hook) {
                default_http_get(hook);
            }
        }
    }
}

/// `Always` for images that the registry may move under us (`latest`, or neither tag nor digest).
fn pull_policy(image: &str) -> &'static str {
    let (name, digest) = image.split_once('@').map_or((image, None), |(name, digest)| (name, Some(digest)));
    let last = name.rsplit('/').next().unwrap_or(name);
    let tag = last.split_once(':').map(|(_, tag)| tag);
    match (tag, digest) {
        (Some("latest"), _) | (None, None) => "Always",
        _ => "IfNotPresent",
    }
}

fn default_probe(probe: &mut Value) {
    set_if_zero(probe, "timeoutSeconds", 1);
    set_if_zero(probe, "periodSeconds", 10);
    set_if_zero(probe, "successThreshold", 1);
    set_if_zero(probe, "failureThreshold", 3);
    default_http_get(probe);
    if let Some(grpc) = existing(probe, "grpc") {
        set_default(grpc, "service", "");
    }
}

fn default_http_get(handler: &mut Value) {
    if let Some(http_get) = existing(handler, "httpGet") {
        set_if_zero(http_get, "path", "/");
        set_if_zero(http_get, "scheme", "HTTP");
    }
}

fn default_field_ref(holder: &mut Value) {
    if let Some(reference) = existing(holder, "fieldRef") {
        set_if_zero(reference, "apiVersion", "v1");
    }
}

fn default_volume(volume: &mut Value) {
    if volume
        .as_object()
        .is_some_and(|fields| fields.iter().all(|(key, value)| key == "name" || value.is_null()))
    {
        set(volume, "emptyDir", json!({}));
    }
    for source in ["secret", "configMap", "downwardAPI", "projected"] {
        if let Some(source) = existing(volume, source) {
            set_default(source, "defaultMode", CONFIG_MODE);
        }
    }
    if let Some(host_path) = existing(volume, "hostPath") {
        set_default(host_path, "type", "");
    }
    if let Some(image) = existing(volume, "image") {
        let policy = pull_policy(text(image, "/reference"));
        set_if_zero(image, "pullPolicy", policy);
    }
    if let Some(template) =
        existing(volume, "ephemeral").and_then(|source| existing(source, "volumeClaimTemplate"))
    {
        set_default(child(template, "spec"), "volumeMode", "Filesystem");
    }
    if let Some(downward) = existing(volume, "downwardAPI") {
        each(downward, "items").for_each(default_field_ref);
    }
    if let Some(projected) = existing(volume, "projected") {
        for source in each(projected, "sources") {
            if let Some(token) = existing(source, "serviceAccountToken") {
                set_default(token, "expirationSeconds", TOKEN_EXPIRATION_SECONDS);
            }
            if let Some(downward) = existing(source, "downwardAPI") {
                each(downward, "items").for_each(default_field_ref);
            }
        }
    }
}

fn requests_from_limits(container: &mut Value) {
    let limits = entries(container, "/resources/limits").clone();
    if limits.is_empty() {
        return;
    }
    let requests = child(child(container, "resources"), "requests");
    for (resource, amount) in limits {
        set_default(requests, &resource, amount);
    }
}

/// Requests of the pod as a whole, where only limits are given: the sum of its containers', else the limit.
fn pod_level_requests(spec: &mut Value) {
    let limits = entries(spec, "/resources/limits").clone();
    if limits.is_empty() {
        return;
    }
    let sums = container_requests(spec);
    let requests = child(child(spec, "resources"), "requests");
    for (resource, sum) in sums {
        set_default(requests, &resource, sum.to_string());
    }
    for (resource, amount) in limits {
        if is_pod_level(&resource) {
            set_default(requests, &resource, amount);
        }
    }
}

fn is_pod_level(resource: &str) -> bool {
    matches!(resource, "cpu" | "memory") || resource.starts_with("hugepages-")
}

/// What all containers request together: app containers and sidecars add up, other init containers run alone.
fn container_requests(spec: &Value) -> BTreeMap<String, Quantity> {
    let mut sums: BTreeMap<String, Quantity> = BTreeMap::new();
    let requests = |container: &Value| -> Vec<(String, Quantity)> {
        let requests = entries(container, "/resources/requests");
        let amounts = requests.iter().filter(|(resource, _)| matches!(resource.as_str(), "cpu" | "memory"));
        amounts.filter_map(|(resource, amount)| Some((resource.clone(), quantity(amount)?))).collect()
    };
    let running = items(spec, "/containers").iter();
    let sidecars = items(spec, "/initContainers").iter().filter(|c| is_restartable_init(c));
    for (resource, amount) in running.chain(sidecars).flat_map(requests) {
        let sum = sums.get(&resource).map_or(amount, |sum| sum.add(&amount));
        sums.insert(resource, sum);
    }
    let alone = items(spec, "/initContainers").iter().filter(|c| !is_restartable_init(c));
    for (resource, amount) in alone.flat_map(requests) {
        if sums.get(&resource).is_none_or(|sum| sum.milli() < amount.milli()) {
            sums.insert(resource, amount);
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::pull_policy;

    #[test]
    fn pull_policy_follows_the_tag() {
        for (image, policy) in [
            ("nginx", "Always"),
            ("nginx:latest", "Always"),
            ("nginx:1.25", "IfNotPresent"),
            ("registry:5000/nginx", "Always"),
            ("registry:5000/nginx:1", "IfNotPresent"),
            ("nginx@sha256:0123", "IfNotPresent"),
            ("nginx:latest@sha256:0123", "Always"),
        ] {
            assert_eq!(pull_policy(image), policy, "{image}");
        }
    }
}
