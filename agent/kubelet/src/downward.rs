//! The downward API: fields of the pod and resources of its containers as text, for env and for volumes.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, ObjectFieldSelector, Pod, ResourceFieldSelector};

use crate::pod::{self, Bound};
use crate::quantity;

/// What a pod can learn about itself that is not in its object yet.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    pub node_name: String,
    /// Primary first.
    pub pod_ips: Vec<String>,
    pub host_ips: Vec<String>,
    /// Thousandths of each resource that pods of this node may use: the limit of a container that has none.
    pub allocatable: BTreeMap<String, i128>,
}

/// The value of `fieldRef`, or why there is none.
pub fn field(pod: &Pod, facts: &Facts, selector: &ObjectFieldSelector) -> Result<String, String> {
    let path = selector.field_path.as_str();
    let empty = BTreeMap::new();
    let labels = pod.metadata.labels.as_ref().unwrap_or(&empty);
    let annotations = pod.metadata.annotations.as_ref().unwrap_or(&empty);
    if let Some(key) = subscript(path, "metadata.labels") {
        return Ok(labels.get(key).cloned().unwrap_or_default());
    }
    if let Some(key) = subscript(path, "metadata.annotations") {
        return Ok(annotations.get(key).cloned().unwrap_or_default());
    }
    let spec = pod.spec.as_ref();
    let value = match path {
        "metadata.name" => pod::name(pod).to_owned(),
        "metadata.namespace" => pod::namespace(pod).to_owned(),
        "metadata.uid" => pod::uid(pod).to_owned(),
        "metadata.labels" => lines(labels),
        "metadata.annotations" => lines(annotations),
        "spec.nodeName" => facts.node_name.clone(),
        "spec.serviceAccountName" => spec.and_then(|s| s.service_account_name.clone()).unwrap_or_default(),
        "status.hostIP" => facts.host_ips.first().cloned().unwrap_or_default(),
        "status.hostIPs" => facts.host_ips.join(","),
        "status.podIP" => facts.pod_ips.first().cloned().unwrap_or_default(),
        "status.podIPs" => facts.pod_ips.join(","),
        _ => return Err(format!("unsupported fieldPath: {path}")),
    };
    Ok(value)
}

/// The value of `resourceFieldRef` for `container`, rounded up to whole divisors.
pub fn resource(
    container: &Container,
    facts: &Facts,
    selector: &ResourceFieldSelector,
) -> Result<String, String> {
    let (bound, name) = match selector.resource.split_once('.') {
        Some(("limits", name)) => (Bound::Limit, name),
        Some(("requests", name)) => (Bound::Request, name),
        _ => return Err(format!("unsupported container resource: {}", selector.resource)),
    };
    let own = pod::container_resource(container, bound, name);
    let value = match (own, bound) {
        (Some(value), _) => value,
        (None, Bound::Limit) => facts.allocatable.get(name).copied().unwrap_or(0),
        (None, Bound::Request) => 0,
    };
    let divisor = selector.divisor.as_ref().map_or(0, quantity::milli);
    Ok(quantity::ceil_div(value, if divisor > 0 { divisor } else { 1000 }).to_string())
}

/// `prefix['key']` -> `key`.
fn subscript<'a>(path: &'a str, prefix: &str) -> Option<&'a str> {
    path.strip_prefix(prefix)?.strip_prefix("['")?.strip_suffix("']")
}

/// One `key="value"` per line, sorted, the value quoted as Go quotes it.
fn lines(map: &BTreeMap<String, String>) -> String {
    let lines: Vec<String> = map.iter().map(|(key, value)| format!("{key}={}", quoted(value))).collect();
    lines.join("\n")
}

fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            c if u32::from(c) < 0x20 || c == '\u{7f}' => out.push_str(&format!("\\x{:02x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod() -> Pod {
        serde_json::from_value(serde_json::json!({
            "metadata": {"name": "p", "namespace": "n", "labels": {"b": "2", "a": "say \"1\"\n"}},
            "spec": {"containers": [], "serviceAccountName": "sa"},
        }))
        .unwrap()
    }

    #[test]
    fn fields_are_found_by_path_and_subscript() {
        let facts = Facts { pod_ips: vec!["10.0.0.1".into(), "fd00::1".into()], ..Facts::default() };
        for (path, expected) in [
            ("metadata.name", "p"),
            ("metadata.labels['b']", "2"),
            ("metadata.labels['none']", ""),
            ("metadata.labels", "a=\"say \\\"1\\\"\\n\"\nb=\"2\""),
            ("spec.serviceAccountName", "sa"),
            ("status.podIPs", "10.0.0.1,fd00::1"),
        ] {
            let selector = ObjectFieldSelector { field_path: path.into(), api_version: None };
            assert_eq!(field(&pod(), &facts, &selector).as_deref(), Ok(expected));
        }
        let selector = ObjectFieldSelector { field_path: "spec.nope".into(), api_version: None };
        assert!(field(&pod(), &facts, &selector).is_err());
    }

    #[test]
    fn resources_are_divided_and_rounded_up_and_limits_default_to_the_node() {
        let container: Container = serde_json::from_value(serde_json::json!({
            "name": "c", "resources": {"requests": {"cpu": "1500m"}, "limits": {"memory": "64Mi"}},
        }))
        .unwrap();
        let facts = Facts { allocatable: BTreeMap::from([("cpu".to_owned(), 2000)]), ..Facts::default() };
        for (name, divisor, expected) in [
            ("requests.cpu", "", "2"),
            ("requests.cpu", "1m", "1500"),
            ("limits.cpu", "1", "2"),
            ("limits.memory", "1Mi", "64"),
            ("requests.memory", "", "67108864"),
        ] {
            let selector: ResourceFieldSelector = serde_json::from_value(serde_json::json!({
                "resource": name, "divisor": divisor,
            }))
            .unwrap();
            assert_eq!(resource(&container, &facts, &selector).as_deref(), Ok(expected), "{name}");
        }
    }
}
