//! The pods that every subject is filled with: 2 kB as a client sends them, spread over namespaces, apps and nodes.

use serde_json::{Value, json};

const NAMESPACES: u32 = 50;
/// An app has this part of all pods.
pub(crate) const APPS: u32 = 100;
pub(crate) const NODES: u32 = 100;

pub(crate) fn namespaces() -> impl Iterator<Item = String> {
    (0..NAMESPACES).map(namespace)
}

fn namespace(index: u32) -> String {
    format!("bench-{index:02}")
}

/// In every hundred pods each app once, in namespaces that change.
fn app(index: u32) -> u32 {
    (index + index / APPS) % APPS
}

/// Where a pod is: namespace and name.
pub(crate) fn place(index: u32) -> (String, String) {
    let app = app(index);
    (namespace(index % NAMESPACES), format!("app-{app:02}-7c6d9f8b5d-{index:06}"))
}

/// The path of a pod.
pub(crate) fn path(index: u32) -> String {
    let (namespace, name) = place(index);
    format!("/api/v1/namespaces/{namespace}/pods/{name}")
}

pub(crate) fn pod(index: u32) -> Value {
    let (namespace, name) = place(index);
    let app = format!("app-{:02}", app(index));
    let environment: Vec<Value> = (0..14)
        .map(|at| json!({"name": format!("SETTING_{at}"), "value": format!("value-{at}-of-{app}-in-{namespace}")}))
        .collect();
    let probe = |path: &str| json!({"httpGet": {"path": path, "port": 8080}, "initialDelaySeconds": 5, "periodSeconds": 10});
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": {
                "app": app,
                "app.kubernetes.io/name": app,
                "app.kubernetes.io/part-of": "shop",
                "pod-template-hash": "7c6d9f8b5d",
                "tier": if index.is_multiple_of(2) { "front" } else { "back" },
            },
            "annotations": {
                "prometheus.io/scrape": "true",
                "prometheus.io/port": "9090",
                "example.com/description": "A pod as a Deployment makes it, with settings, probes, limits and a volume.",
            },
        },
        "spec": {
            "nodeName": format!("node-{:03}", index % NODES),
            "containers": [{
                "name": "server",
                "image": format!("registry.example.com/shop/{app}:v1.{}.0", index % 20),
                "args": ["--listen=:8080", "--metrics=:9090", "--log-format=json", "--config=/etc/shop/config.yaml"],
                "ports": [{"containerPort": 8080, "name": "http"}, {"containerPort": 9090, "name": "metrics"}],
                "env": environment,
                "resources": {
                    "requests": {"cpu": "100m", "memory": "128Mi"},
                    "limits": {"cpu": "500m", "memory": "256Mi"},
                },
                "livenessProbe": probe("/healthz"),
                "readinessProbe": probe("/readyz"),
                "volumeMounts": [{"name": "config", "mountPath": "/etc/shop", "readOnly": true}],
            }],
            "volumes": [{"name": "config", "configMap": {"name": format!("{app}-config")}}],
            "terminationGracePeriodSeconds": 30,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_have_two_kilobytes_and_places_of_their_own() {
        let mut places = std::collections::BTreeSet::new();
        for index in 0..5000 {
            assert!(places.insert(place(index)), "{index}");
        }
        let size = pod(4711).to_string().len();
        assert!((1900..2200).contains(&size), "{size}");
    }

    #[test]
    fn an_app_has_one_percent_of_the_pods() {
        let of_app = (0..5000).filter(|index| pod(*index)["metadata"]["labels"]["app"] == "app-07").count();
        assert_eq!(of_app, 50);
        let of_node = (0..5000).filter(|index| pod(*index)["spec"]["nodeName"] == "node-007").count();
        assert_eq!(of_node, 50);
    }
}
