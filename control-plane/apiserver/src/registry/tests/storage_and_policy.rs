use serde_json::{Value, json};

use super::{super::Propagation, Kind, metadata, with};

fn object(api_version: &str, kind: &str, rest: Value) -> Value {
    with(&json!({ "apiVersion": api_version, "kind": kind, "metadata": metadata("one") }), rest)
}

/// The same without a namespace.
fn cluster_object(api_version: &str, kind: &str, rest: Value) -> Value {
    with(&object(api_version, kind, json!({ "metadata": { "namespace": null } })), rest)
}

#[test]
fn a_namespace_has_its_name_as_label_and_the_finalizer() {
    let kind = Kind::new("", "namespaces");
    let old = kind.accepted(cluster_object("v1", "Namespace", json!({})));
    assert_eq!(old["metadata"]["labels"], json!({ "kubernetes.io/metadata.name": "one" }));
    assert_eq!(old["spec"], json!({ "finalizers": ["kubernetes"] }));
    assert_eq!(old["status"], json!({ "phase": "Active" }));
    let emptied = with(&old, json!({ "spec": { "finalizers": [] } }));
    assert_eq!(kind.updated("", emptied.clone(), &old)["spec"], old["spec"], "only /finalize removes it");
    assert_eq!(kind.updated("finalize", emptied, &old)["spec"]["finalizers"], json!([]));
    let terminating = with(&old, json!({ "status": { "phase": "Terminating" } }));
    assert_eq!(
        kind.update_errors("status", terminating, &old),
        [
            "status.Phase: Invalid value: \"Terminating\": may only be 'Active' if `deletionTimestamp` is empty"
        ]
    );
    let dotted = cluster_object("v1", "Namespace", json!({ "metadata": { "name": "a.b" } }));
    assert_eq!(kind.create_errors(dotted), ["metadata.name: Invalid value: \"a.b\": must not contain dots"]);
}

#[test]
fn a_sealed_config_map_stays_as_it_is() {
    let kind = Kind::new("", "configmaps");
    let old = kind.accepted(object("v1", "ConfigMap", json!({ "data": { "a": "1" }, "immutable": true })));
    assert_eq!(
        kind.update_errors("", with(&old, json!({ "data": { "a": "2" } })), &old),
        ["data: Forbidden: field is immutable when `immutable` is set"]
    );
    assert_eq!(
        kind.update_errors("", with(&old, json!({ "immutable": null })), &old),
        ["immutable: Forbidden: field is immutable when `immutable` is set"]
    );
    assert!(
        kind.update_errors("", with(&old, json!({ "metadata": { "labels": { "a": "b" } } })), &old)
            .is_empty()
    );
}

#[test]
fn keys_of_config_maps_and_secrets_are_file_names() {
    let errors =
        Kind::new("", "configmaps").create_errors(object("v1", "ConfigMap", json!({ "data": { "": "x" } })));
    assert!(errors[0].starts_with("data[]: Invalid value: \"\": "), "{errors:?}");
    let errors =
        Kind::new("", "secrets").create_errors(object("v1", "Secret", json!({ "data": { "a/b": "eA==" } })));
    assert!(
        errors[0].starts_with("data[a/b]: Invalid value: \"a/b\": a valid config key must consist of"),
        "{errors:?}"
    );
    let both = json!({ "data": { "a": "x" }, "binaryData": { "a": "eA==" } });
    assert_eq!(
        Kind::new("", "configmaps").create_errors(object("v1", "ConfigMap", both)),
        ["data[a]: Invalid value: \"a\": duplicate of key present in binaryData"]
    );
}

#[test]
fn string_data_becomes_data_and_types_need_their_keys() {
    let kind = Kind::new("", "secrets");
    let secret = |rest: Value| object("v1", "Secret", rest);
    let created =
        kind.accepted(secret(json!({ "stringData": { "user": "admin" }, "data": { "a": "eA==" } })));
    assert_eq!(created["data"], json!({ "a": "eA==", "user": "YWRtaW4=" }));
    assert_eq!((&created["stringData"], &created["type"]), (&Value::Null, &json!("Opaque")));
    let errors =
        |kind_name: &str, data: Value| kind.create_errors(secret(json!({ "type": kind_name, "data": data })));
    assert_eq!(errors("kubernetes.io/tls", json!({ "tls.crt": "eA==" })), ["data[tls.key]: Required value"]);
    assert_eq!(
        errors("kubernetes.io/dockerconfigjson", json!({})),
        ["data[.dockerconfigjson]: Required value"]
    );
    assert!(
        errors("kubernetes.io/dockerconfigjson", json!({ ".dockerconfigjson": "eA==" }))[0]
            .starts_with("data[.dockerconfigjson]: Invalid value: \"<secret contents redacted>\": ")
    );
    assert_eq!(
        errors("kubernetes.io/service-account-token", json!({})),
        ["metadata.annotations[kubernetes.io/service-account.name]: Required value"]
    );
    assert_eq!(
        kind.update_errors("", with(&created, json!({ "type": "mine" })), &created),
        ["type: Invalid value: \"mine\": field is immutable"]
    );
}

#[test]
fn a_node_keeps_its_status_at_creation_and_its_addresses_of_pods_for_ever() {
    let kind = Kind::new("", "nodes");
    let node = cluster_object(
        "v1",
        "Node",
        json!({
            "spec": { "podCIDR": "10.244.0.0/26" }, "status": { "capacity": { "cpu": "4", "memory": "8Gi" } },
        }),
    );
    let old = kind.accepted(node);
    assert_eq!(old["spec"]["podCIDRs"], json!(["10.244.0.0/26"]));
    assert_eq!(old["status"]["allocatable"], json!({ "cpu": "4", "memory": "8Gi" }));
    let moved = with(&old, json!({ "spec": { "podCIDR": "10.9.0.0/26", "podCIDRs": ["10.9.0.0/26"] } }));
    assert_eq!(
        kind.update_errors("", moved, &old),
        ["spec.podCIDRs: Forbidden: node updates may not change podCIDR except from \"\" to valid"]
    );
    let taints = json!([{ "key": "a", "effect": "NoSchedule" }, { "key": "b", "effect": "Maybe" }]);
    assert_eq!(
        kind.update_errors("", with(&old, json!({ "spec": { "taints": taints } })), &old),
        [
            "spec.taints[1].effect: Unsupported value: \"Maybe\": supported values: \"NoSchedule\", \"PreferNoSchedule\", \
          \"NoExecute\""
        ]
    );
    let labelled =
        with(&old, json!({ "metadata": { "labels": { "zone": "a" } }, "status": { "phase": "x" } }));
    let stored = kind.updated("status", labelled, &old);
    assert_eq!(stored["metadata"]["labels"], json!({ "zone": "a" }), "agents label their node by its status");
}

#[test]
fn roles_and_bindings_are_checked() {
    let kind = Kind::new("rbac.authorization.k8s.io", "clusterroles");
    let role = cluster_object(
        "rbac.authorization.k8s.io/v1",
        "ClusterRole",
        json!({
            "metadata": { "name": "system:thing" }, "rules": [{ "apiGroups": [""], "resources": ["pods"], "verbs": [] }],
        }),
    );
    assert_eq!(
        kind.create_errors(role),
        ["rules[0].verbs: Required value: verbs must contain at least one value"]
    );
    let kind = Kind::new("rbac.authorization.k8s.io", "rolebindings");
    let binding = object(
        "rbac.authorization.k8s.io/v1",
        "RoleBinding",
        json!({
            "roleRef": { "kind": "Role", "name": "reader" }, "subjects": [{ "kind": "User", "name": "alice" }],
        }),
    );
    let old = kind.accepted(binding);
    assert_eq!(old["roleRef"]["apiGroup"], "rbac.authorization.k8s.io");
    assert_eq!(old["subjects"][0]["apiGroup"], "rbac.authorization.k8s.io");
    let errors = kind.update_errors("", with(&old, json!({ "roleRef": { "name": "writer" } })), &old);
    assert_eq!(errors.len(), 1);
    assert!(
        errors[0].starts_with("roleRef: Invalid value: ") && errors[0].ends_with("cannot change roleRef")
    );
}

#[test]
fn claims_and_volumes_are_checked() {
    let kind = Kind::new("", "persistentvolumeclaims");
    let claim = |spec: Value| object("v1", "PersistentVolumeClaim", json!({ "spec": spec }));
    assert_eq!(
        kind.create_errors(claim(json!({}))),
        [
            "spec.accessModes: Required value: at least 1 access mode is required",
            "spec.resources[storage]: Required value"
        ]
    );
    let good = json!({ "accessModes": ["ReadWriteOnce"], "resources": { "requests": { "storage": "1Gi" } } });
    let old = kind.accepted(claim(good));
    assert_eq!(
        (&old["spec"]["volumeMode"], &old["status"]["phase"]),
        (&json!("Filesystem"), &json!("Pending"))
    );
    let bound = with(&old, json!({ "spec": { "volumeName": "pv-1" } }));
    assert!(kind.update_errors("", bound, &old).is_empty(), "binding sets the volume once");
    assert_eq!(
        kind.update_errors("", with(&old, json!({ "spec": { "accessModes": ["ReadWriteMany"] } })), &old),
        [
            "spec: Forbidden: spec is immutable after creation except resources.requests and volumeAttributesClassName for \
          bound claims"
        ]
    );
    let kind = Kind::new("", "persistentvolumes");
    let volume = cluster_object(
        "v1",
        "PersistentVolume",
        json!({ "spec": {
        "accessModes": ["ReadWriteOnce"], "capacity": { "storage": "1Gi" }, "hostPath": { "path": "/data" },
    } }),
    );
    let old = kind.accepted(volume);
    assert_eq!(old["spec"]["persistentVolumeReclaimPolicy"], "Retain");
    assert_eq!(
        kind.update_errors("", with(&old, json!({ "spec": { "hostPath": { "path": "/other" } } })), &old),
        ["spec.persistentvolumesource: Forbidden: spec.persistentvolumesource is immutable after creation"]
    );
}

#[test]
fn classes_do_not_change_what_they_stand_for() {
    let kind = Kind::new("storage.k8s.io", "storageclasses");
    let old = kind.accepted(cluster_object(
        "storage.k8s.io/v1",
        "StorageClass",
        json!({ "provisioner": "example.com/x" }),
    ));
    assert_eq!((&old["reclaimPolicy"], &old["volumeBindingMode"]), (&json!("Delete"), &json!("Immediate")));
    assert_eq!(
        kind.update_errors("", with(&old, json!({ "provisioner": "example.com/y" })), &old),
        ["provisioner: Forbidden: updates to provisioner are forbidden."]
    );
    let kind = Kind::new("scheduling.k8s.io", "priorityclasses");
    let class = |name: &str, value: i64| {
        cluster_object(
            "scheduling.k8s.io/v1",
            "PriorityClass",
            json!({ "metadata": { "name": name }, "value": value }),
        )
    };
    let old = kind.accepted(class("high", 1000));
    assert_eq!(old["preemptionPolicy"], "PreemptLowerPriority");
    assert_eq!(
        kind.update_errors("", with(&old, json!({ "value": 2000 })), &old),
        ["value: Forbidden: may not be changed in an update."]
    );
    assert_eq!(
        kind.create_errors(class("system-mine", 1)),
        [
            "metadata.name: Forbidden: priority class names with 'system-' prefix are reserved for system use only"
        ]
    );
    assert_eq!(
        kind.create_errors(class("huge", 1_000_000_001)),
        ["value: Forbidden: maximum allowed value of a user defined priority is 1000000000"]
    );
}

#[test]
fn limit_ranges_fill_defaults_from_bounds_and_order_them() {
    let kind = Kind::new("", "limitranges");
    let range = |limit: Value| object("v1", "LimitRange", json!({ "spec": { "limits": [limit] } }));
    let created = kind
        .accepted(range(json!({ "type": "Container", "max": { "cpu": "2" }, "min": { "memory": "1Mi" } })));
    let limit = &created["spec"]["limits"][0];
    assert_eq!(limit["default"], json!({ "cpu": "2" }));
    assert_eq!(limit["defaultRequest"], json!({ "cpu": "2", "memory": "1Mi" }));
    assert_eq!(
        kind.create_errors(range(json!({ "type": "Pod", "min": { "cpu": "2" }, "max": { "cpu": "1" } }))),
        ["spec.limits[0].min[cpu]: Invalid value: \"2\": min value 2 is greater than max value 1"]
    );
}

#[test]
fn autoscalers_and_budgets_are_checked() {
    let kind = Kind::new("autoscaling", "horizontalpodautoscalers");
    let target = json!({ "apiVersion": "apps/v1", "kind": "Deployment", "name": "web" });
    let autoscaler = |spec: Value| {
        let base = object(
            "autoscaling/v2",
            "HorizontalPodAutoscaler",
            json!({ "spec": { "scaleTargetRef": target } }),
        );
        with(&base, json!({ "spec": spec }))
    };
    let strategy = kind.strategy;
    let mut object_v2 = autoscaler(json!({ "maxReplicas": 3 }));
    strategy.default(&mut object_v2);
    assert_eq!(object_v2["spec"]["minReplicas"], 1);
    assert_eq!(
        object_v2["spec"]["metrics"],
        json!([{ "type": "Resource", "resource": { "name": "cpu", "target": { "type": "Utilization", "averageUtilization": 80 } } }])
    );
    let errors = |spec: Value| -> Vec<String> {
        let mut object = autoscaler(spec);
        strategy.default(&mut object);
        let context = super::context(kind.resource, "");
        strategy.validate(&context, &object).iter().map(ToString::to_string).collect()
    };
    assert_eq!(errors(json!({})), ["spec.maxReplicas: Required value: must be set and greater than 0"]);
    assert_eq!(
        errors(json!({ "minReplicas": 5, "maxReplicas": 3 })),
        ["spec.maxReplicas: Invalid value: 3: must be greater than or equal to `minReplicas`"]
    );
    let kind = Kind::new("policy", "poddisruptionbudgets");
    let budget = object(
        "policy/v1",
        "PodDisruptionBudget",
        json!({ "spec": { "minAvailable": 1, "maxUnavailable": 1 } }),
    );
    let errors = kind.create_errors(budget);
    assert!(errors[0].ends_with("minAvailable and maxUnavailable cannot be both set"), "{errors:?}");
}

#[test]
fn a_signing_request_says_who_asked_and_is_not_its_own_judge() {
    let kind = Kind::new("certificates.k8s.io", "certificatesigningrequests");
    let created = kind.created(cluster_object("certificates.k8s.io/v1", "CertificateSigningRequest", json!({
        "spec": { "request": "LS0t", "signerName": "example.com/x", "usages": ["client auth"], "username": "mallory" },
        "status": { "conditions": [{ "type": "Approved", "status": "True" }] },
    })));
    assert_eq!(created["spec"]["username"], "alice");
    assert_eq!(created["status"], json!({}));
}

#[test]
fn kinds_without_rules_of_their_own_require_what_the_schema_requires() {
    let kind = Kind::new("storage.k8s.io", "csinodes");
    let node =
        cluster_object("storage.k8s.io/v1", "CSINode", json!({ "spec": { "drivers": [{ "name": "d" }] } }));
    assert_eq!(kind.create_errors(node), ["spec.drivers[0].nodeID: Required value"]);
    let attachment =
        cluster_object("storage.k8s.io/v1", "VolumeAttachment", json!({ "spec": { "source": {} } }));
    assert_eq!(
        Kind::new("storage.k8s.io", "volumeattachments").create_errors(attachment),
        ["spec.attacher: Required value", "spec.nodeName: Required value"],
        "each once, and nothing of the status"
    );
    let role = object("rbac.authorization.k8s.io/v1", "Role", json!({}));
    assert!(Kind::new("rbac.authorization.k8s.io", "roles").create_errors(role).is_empty());
}

#[test]
fn the_way_a_kind_is_written_and_deleted_is_upstreams() {
    let strategy = |group: &str, plural: &str| super::super::strategy(group, plural);
    assert!(strategy("coordination.k8s.io", "leases").allow_create_on_update());
    assert!(!strategy("", "pods").allow_create_on_update());
    assert!(!strategy("policy", "poddisruptionbudgets").allow_unconditional_update());
    assert!(strategy("", "configmaps").allow_unconditional_update());
    assert_eq!(strategy("", "replicationcontrollers").default_propagation(), Propagation::Orphan);
    assert_eq!(strategy("batch", "jobs").default_propagation(), Propagation::Orphan);
    assert_eq!(strategy("apps", "deployments").default_propagation(), Propagation::Background);
    assert!(strategy("example.com", "widgets").has_generation());
    assert!(!strategy("", "configmaps").has_generation());
}

#[test]
fn selectable_fields_have_the_values_that_selectors_compare() {
    let pod = json!({ "spec": { "nodeName": "n1", "hostNetwork": true }, "status": { "phase": "Running", "podIPs": [{ "ip": "10.244.0.5" }] } });
    let fields = super::super::strategy("", "pods").selectable_fields(&pod);
    for expected in [
        ("spec.nodeName", "n1"),
        ("spec.hostNetwork", "true"),
        ("status.phase", "Running"),
        ("status.podIP", "10.244.0.5"),
    ] {
        assert!(fields.iter().any(|(name, value)| (*name, value.as_str()) == expected), "{expected:?}");
    }
    for (group, plural) in
        [("", "pods"), ("", "events"), ("", "nodes"), ("", "secrets"), ("", "services"), ("batch", "jobs")]
    {
        let strategy = super::super::strategy(group, plural);
        let names = strategy.selectable_field_names();
        for (name, _) in strategy.selectable_fields(&json!({})) {
            assert!(names.contains(&name), "{plural}: {name}");
        }
    }
    let event = json!({ "regarding": { "name": "web" }, "reportingController": "kubelet" });
    let fields = super::super::strategy("events.k8s.io", "events").selectable_fields(&event);
    assert!(fields.contains(&("involvedObject.name", "web".to_owned())));
    assert!(fields.contains(&("source", "kubelet".to_owned())));
}
