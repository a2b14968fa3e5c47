//! Whatever the JSON, no strategy panics: clients and old stores send anything.

use api::schema::builtin;
use serde_json::{Value, json};

use super::{NOW_SECONDS, context, metadata};
use crate::registry::{prepare_create, prepare_update, strategy, validate_create, validate_update};

/// One object with every field that some strategy reads, whatever its kind.
fn everything() -> Value {
    let container = json!({
        "name": "c", "image": "i", "ports": [{ "containerPort": 80, "hostPort": 80, "name": "http" }],
        "env": [{ "name": "A", "valueFrom": { "fieldRef": { "fieldPath": "metadata.name" } } }],
        "envFrom": [{ "secretRef": { "name": "s" } }],
        "resources": { "limits": { "cpu": "1" }, "requests": { "memory": "1Gi" } },
        "livenessProbe": { "httpGet": { "port": "http" } }, "lifecycle": { "preStop": { "sleep": { "seconds": 1 } } },
        "volumeMounts": [{ "name": "v", "mountPath": "/v", "subPath": "a" }],
    });
    let pod_spec = json!({
        "containers": [container], "initContainers": [container], "ephemeralContainers": [container],
        "volumes": [{ "name": "v", "projected": { "sources": [{ "serviceAccountToken": { "path": "t" } }] } }],
        "affinity": { "podAffinity": { "requiredDuringSchedulingIgnoredDuringExecution": [{ "matchLabelKeys": ["a"], "labelSelector": {} }] } },
        "tolerations": [{ "key": "a" }], "topologySpreadConstraints": [{ "maxSkew": 1, "matchLabelKeys": ["a"] }],
        "hostNetwork": true, "dnsConfig": { "searches": ["a"] }, "schedulingGates": [{ "name": "g" }],
    });
    let mut object = json!({
        "metadata": metadata("one"),
        "spec": {
            "selector": { "matchLabels": { "a": "b" } }, "template": { "metadata": { "labels": { "a": "b" } }, "spec": pod_spec },
            "jobTemplate": { "spec": { "template": { "spec": pod_spec } } }, "schedule": "*/5 1-2 * jan mon", "completions": 1,
            "type": "LoadBalancer", "clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1"], "externalIPs": ["192.0.2.1"],
            "ingress": [{ "from": [{ "ipBlock": { "cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"] } }], "ports": [{ "port": 1, "endPort": 2 }] }],
            "rules": [{ "host": "a", "http": { "paths": [{ "path": "/", "backend": {} }] } }],
            "hard": { "pods": "1" }, "limits": [{ "type": "Container", "max": { "cpu": "1" }, "min": { "cpu": "2" } }],
            "metrics": [{ "type": "Resource", "resource": { "name": "cpu", "target": { "averageValue": "1" } } }], "behavior": {},
            "updateStrategy": { "type": "RollingUpdate", "rollingUpdate": { "maxUnavailable": "1%" } },
            "strategy": { "rollingUpdate": { "maxSurge": "1%" } }, "volumeClaimTemplates": [{ "metadata": { "name": "v" } }],
            "taints": [{ "key": "a" }], "podCIDR": "10.0.0.0/8", "capacity": { "storage": "1Gi" }, "hostPath": {},
        },
        "status": {
            "conditions": [{ "type": "Ready", "status": "True" }], "loadBalancer": { "ingress": [{ "ip": "192.0.2.1" }] },
            "containerStatuses": [{ "name": "c", "state": { "terminated": { "exitCode": 1 } } }], "podIPs": [{ "ip": "10.0.0.1" }],
            "initContainerStatuses": [{ "name": "c", "state": { "waiting": { "reason": "r" } } }],
            "hard": { "pods": "1" }, "used": { "pods": "1" }, "capacity": { "cpu": "1" }, "addresses": [{ "type": "InternalIP" }],
        },
        "data": { "a": "b" }, "stringData": { "a": "b" }, "subsets": [{ "addresses": [{ "ip": "10.0.0.1" }], "ports": [{ "port": 1 }] }],
        "endpoints": [{ "addresses": ["10.0.0.1"] }], "ports": [{ "port": 1 }], "addressType": "IPv4",
        "webhooks": [{ "rules": [{}], "clientConfig": { "service": {} } }], "roleRef": { "kind": "Role" }, "subjects": [{ "kind": "User" }],
        "involvedObject": { "kind": "Pod" }, "series": { "count": 1 }, "template": { "spec": pod_spec },
    });
    for (key, value) in pod_spec.as_object().expect("an object").clone() {
        object["spec"][&key] = value;
    }
    object
}

/// Every pointer into a value, parents first.
fn pointers(value: &Value, path: &str, found: &mut Vec<String>) {
    found.push(path.to_owned());
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                pointers(value, &format!("{path}/{}", key.replace('~', "~0").replace('/', "~1")), found);
            }
        }
        Value::Array(items) => {
            for (i, value) in items.iter().enumerate() {
                pointers(value, &format!("{path}/{i}"), found);
            }
        }
        _ => {}
    }
}

#[test]
fn no_strategy_panics_whatever_stands_in_a_field() {
    let base = everything();
    let mut paths = Vec::new();
    pointers(&base, "", &mut paths);
    let wrong = [
        Value::Null,
        json!(true),
        json!(-1),
        json!(1.5),
        json!("x"),
        json!(""),
        json!([]),
        json!([[]]),
        json!({}),
        json!({ "": null }),
    ];
    let mut ways = paths.iter().flat_map(|path| wrong.iter().map(move |wrong| (path, wrong))).cycle();
    for resource in builtin().resources() {
        let strategy = strategy(&resource.group, &resource.plural);
        for (path, wrong) in ways.by_ref().take(60) {
            let mut object = base.clone();
            *object.pointer_mut(path).expect("a pointer into it") = wrong.clone();
            strategy.default(&mut object);
            strategy.warnings(&object);
            strategy.grace_period_seconds(&object, None);
            strategy.selectable_fields(&object);
            for column in strategy.columns() {
                (column.cell)(&object, NOW_SECONDS);
            }
            let mut created = object.clone();
            prepare_create(strategy, &context(resource, ""), &mut created);
            validate_create(strategy, &context(resource, ""), &created);
            for subresource in ["", "status", "finalize", "resize", "ephemeralcontainers", "approval"] {
                let mut updated = object.clone();
                prepare_update(strategy, &context(resource, subresource), &mut updated, &base);
                validate_update(strategy, &context(resource, subresource), &updated, &base);
                validate_update(strategy, &context(resource, subresource), &base, &object);
            }
        }
    }
}

#[test]
fn every_kind_has_a_first_column_and_titles_of_its_own() {
    for resource in builtin().resources() {
        let columns = strategy(&resource.group, &resource.plural).columns();
        let mut titles: Vec<_> = columns.iter().map(|column| column.name).collect();
        assert!(columns[0].priority == 0, "{}", resource.plural);
        titles.sort_unstable();
        let count = titles.len();
        titles.dedup();
        assert_eq!(titles.len(), count, "{}", resource.plural);
    }
}
