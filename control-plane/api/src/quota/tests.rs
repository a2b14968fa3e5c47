use serde_json::json;

use super::*;

fn shown(group: &str, plural: &str, object: &Value) -> Vec<(String, String)> {
    usage(group, plural, object, 0).iter().map(|(name, amount)| (name.clone(), amount.to_string())).collect()
}

fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(name, amount)| ((*name).to_owned(), (*amount).to_owned())).collect()
}

#[test]
fn a_pod_is_counted_by_its_containers_sidecars_and_largest_initialisation() {
    let needs = |cpu: &str| json!({ "requests": { "cpu": cpu, "example.com/gpu": "1" } });
    let pod = json!({ "spec": {
        "overhead": { "cpu": "10m" },
        "initContainers": [
            { "name": "i", "resources": needs("900m") },
            { "name": "s", "restartPolicy": "Always", "resources": needs("200m") },
            { "name": "j", "resources": needs("100m") },
        ],
        "containers": [{ "name": "c", "resources": needs("300m") }],
    }});
    let expected = [
        ("count/pods", "1"),
        ("cpu", "910m"),
        ("pods", "1"),
        ("requests.cpu", "910m"),
        ("requests.example.com/gpu", "2"),
    ];
    assert_eq!(shown("", "pods", &pod), pairs(&expected));
}

#[test]
fn a_finished_or_overdue_pod_is_only_an_object() {
    let finished = json!({ "spec": { "containers": [] }, "status": { "phase": "Succeeded" } });
    assert_eq!(shown("", "pods", &finished), pairs(&[("count/pods", "1")]));
    let metadata = json!({ "deletionTimestamp": "1970-01-01T00:01:00Z", "deletionGracePeriodSeconds": 30 });
    let overdue = json!({ "metadata": metadata, "spec": { "containers": [] } });
    assert!(usage("", "pods", &overdue, 90).contains_key("pods"));
    assert!(!usage("", "pods", &overdue, 91).contains_key("pods"));
}

#[test]
fn a_resize_downwards_counts_what_is_still_held() {
    let pod = json!({
        "spec": { "containers": [{ "name": "c", "resources": { "requests": { "cpu": "1" } } }] },
        "status": { "containerStatuses": [{ "name": "c", "allocatedResources": { "cpu": "2" } }] },
    });
    assert_eq!(usage("", "pods", &pod, 0)["requests.cpu"].to_string(), "2");
}

#[test]
fn services_count_the_node_ports_that_they_mean_to_have() {
    let service = |kind: &str, allocate: bool| {
        json!({ "spec": { "type": kind, "allocateLoadBalancerNodePorts": allocate,
            "ports": [{ "port": 80 }, { "port": 81, "nodePort": 30001 }] } })
    };
    let node_ports = |service: &Value| usage("", "services", service, 0)["services.nodeports"].to_string();
    assert_eq!(node_ports(&service("ClusterIP", true)), "0");
    assert_eq!(node_ports(&service("NodePort", true)), "2");
    assert_eq!(node_ports(&service("LoadBalancer", false)), "1");
    assert_eq!(node_ports(&service("LoadBalancer", true)), "2");
}

#[test]
fn claims_count_for_their_storage_class_too() {
    let claim =
        json!({ "spec": { "storageClassName": "gold", "resources": { "requests": { "storage": "1Gi" } } } });
    let expected = [
        ("count/persistentvolumeclaims", "1"),
        ("gold.storageclass.storage.k8s.io/persistentvolumeclaims", "1"),
        ("gold.storageclass.storage.k8s.io/requests.storage", "1Gi"),
        ("persistentvolumeclaims", "1"),
        ("requests.storage", "1Gi"),
    ];
    assert_eq!(shown("", "persistentvolumeclaims", &claim), pairs(&expected));
}

#[test]
fn every_resource_name_leads_to_the_kind_that_uses_it() {
    for (name, kind) in [
        ("count/widgets.example.com", Some(("example.com", "widgets"))),
        ("count/pods", Some(("", "pods"))),
        ("secrets", Some(("", "secrets"))),
        ("services.nodeports", Some(("", "services"))),
        ("gold.storageclass.storage.k8s.io/requests.storage", Some(("", "persistentvolumeclaims"))),
        ("requests.storage", Some(("", "persistentvolumeclaims"))),
        ("limits.ephemeral-storage", Some(("", "pods"))),
        ("hugepages-2Mi", Some(("", "pods"))),
        ("requests.example.com/gpu", Some(("", "pods"))),
        ("example.com/gpu", None),
        ("limits.example.com/gpu", None),
    ] {
        assert_eq!(source(name), kind, "{name}");
    }
}

#[test]
fn scopes_select_pods_by_what_they_are() {
    let quota = |scope: Value| json!({ "spec": { "scopeSelector": { "matchExpressions": [scope] } } });
    let expression = |scope: &str, operator: &str, values: &[&str]| {
        quota(json!({ "scopeName": scope, "operator": operator, "values": values }))
    };
    let high = json!({ "spec": { "priorityClassName": "high", "containers": [{ "name": "c" }] } });
    let none = json!({ "spec": { "activeDeadlineSeconds": 5, "containers": [
        { "name": "c", "resources": { "limits": { "cpu": "1" } } }] } });
    let takes = |quota: &Value, pod: &Value| in_scope(quota, "", "pods", pod);
    for (quota, of_high, of_none) in [
        (expression("PriorityClass", "In", &["high"]), true, false),
        (expression("PriorityClass", "NotIn", &["high"]), false, true),
        (expression("PriorityClass", "Exists", &[]), true, false),
        (expression("PriorityClass", "DoesNotExist", &[]), false, true),
        (expression("Terminating", "Exists", &[]), false, true),
        (expression("NotBestEffort", "Exists", &[]), false, true),
        (json!({ "spec": { "scopes": ["BestEffort", "NotTerminating"] } }), true, false),
        (json!({ "spec": {} }), true, true),
    ] {
        assert_eq!((takes(&quota, &high), takes(&quota, &none)), (of_high, of_none), "{quota}");
    }
    assert!(!in_scope(&json!({ "spec": { "scopes": ["BestEffort"] } }), "", "services", &json!({})));
}

#[test]
fn containers_without_numbers_are_named_by_resource() {
    let pod = json!({ "spec": { "containers": [
        { "name": "b", "resources": { "requests": { "cpu": "1" } } }, { "name": "a" }] } });
    assert_eq!(
        unspecified(&pod, ["cpu", "limits.memory", "pods"]).as_deref(),
        Some("must specify cpu for: a; limits.memory for: a,b")
    );
    assert_eq!(unspecified(&pod, ["pods", "requests.ephemeral-storage"]), None);
}
