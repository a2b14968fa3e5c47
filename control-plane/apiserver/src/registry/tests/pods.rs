use serde_json::{Value, json};

use super::{Kind, metadata, with};

fn pods() -> Kind {
    Kind::new("", "pods")
}

fn pod() -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata("web"),
        "spec": { "containers": [{ "name": "web", "image": "nginx" }] },
    })
}

fn with_spec(spec: Value) -> Value {
    with(&pod(), json!({ "spec": spec }))
}

#[test]
fn a_bare_pod_gets_upstreams_defaults() {
    let created = pods().accepted(pod());
    assert_eq!(
        created["spec"],
        json!({
            "containers": [{
                "name": "web",
                "image": "nginx",
                "imagePullPolicy": "Always",
                "resources": {},
                "terminationMessagePath": "/dev/termination-log",
                "terminationMessagePolicy": "File",
            }],
            "dnsPolicy": "ClusterFirst",
            "enableServiceLinks": true,
            "restartPolicy": "Always",
            "schedulerName": "default-scheduler",
            "securityContext": {},
            "terminationGracePeriodSeconds": 30,
        })
    );
    assert_eq!(created["status"], json!({ "phase": "Pending", "qosClass": "BestEffort" }));
    assert_eq!(created["metadata"]["generation"], 1);
}

#[test]
fn ports_probes_env_and_volumes_get_upstreams_defaults() {
    let created = pods().accepted(with_spec(json!({
        "hostNetwork": true,
        "containers": [{
            "name": "web",
            "image": "nginx:1.25",
            "ports": [{ "containerPort": 80 }],
            "livenessProbe": { "httpGet": { "port": 80 } },
            "readinessProbe": { "tcpSocket": { "port": "http" }, "periodSeconds": 2 },
            "env": [{ "name": "IP", "valueFrom": { "fieldRef": { "fieldPath": "status.podIP" } } }],
            "resources": { "limits": { "cpu": "500m", "memory": "64Mi" }, "requests": { "cpu": "100m" } },
        }],
        "volumes": [
            { "name": "scratch" },
            { "name": "conf", "configMap": { "name": "conf" } },
            { "name": "host", "hostPath": { "path": "/tmp" } },
            { "name": "token", "projected": { "sources": [{ "serviceAccountToken": { "path": "token" } }] } },
        ],
    })));
    let container = &created["spec"]["containers"][0];
    assert_eq!(container["imagePullPolicy"], "IfNotPresent");
    assert_eq!(container["ports"], json!([{ "containerPort": 80, "hostPort": 80, "protocol": "TCP" }]));
    assert_eq!(
        container["livenessProbe"],
        json!({
            "httpGet": { "path": "/", "port": 80, "scheme": "HTTP" },
            "timeoutSeconds": 1, "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3,
        })
    );
    assert_eq!(container["readinessProbe"]["periodSeconds"], 2);
    assert_eq!(container["env"][0]["valueFrom"]["fieldRef"]["apiVersion"], "v1");
    assert_eq!(container["resources"]["requests"], json!({ "cpu": "100m", "memory": "64Mi" }));
    assert_eq!(
        created["spec"]["volumes"],
        json!([
            { "name": "scratch", "emptyDir": {} },
            { "name": "conf", "configMap": { "name": "conf", "defaultMode": 420 } },
            { "name": "host", "hostPath": { "path": "/tmp", "type": "" } },
            { "name": "token", "projected": {
                "defaultMode": 420,
                "sources": [{ "serviceAccountToken": { "path": "token", "expirationSeconds": 3600 } }],
            } },
        ])
    );
    assert_eq!(created["status"]["qosClass"], "Burstable");
}

#[test]
fn defaulting_twice_is_as_once() {
    let kind = pods();
    let mut created = kind.accepted(pod());
    let before = created.clone();
    kind.strategy.default(&mut created);
    assert_eq!(created, before);
}

#[test]
fn quality_of_service_is_guaranteed_only_with_equal_cpu_and_memory_everywhere() {
    let of = |resources: Value| {
        let container = json!([{ "name": "web", "image": "nginx", "resources": resources }]);
        pods().accepted(with_spec(json!({ "containers": container })))["status"]["qosClass"].clone()
    };
    assert_eq!(of(json!({ "limits": { "cpu": "1", "memory": "1Gi" } })), "Guaranteed");
    assert_eq!(
        of(json!({ "limits": { "cpu": "1", "memory": "1Gi" }, "requests": { "cpu": "1000m" } })),
        "Guaranteed"
    );
    assert_eq!(of(json!({ "limits": { "cpu": "1" } })), "Burstable");
    assert_eq!(of(json!({ "requests": { "memory": "1Gi" } })), "Burstable");
    assert_eq!(of(json!({})), "BestEffort");
}

#[test]
fn a_gated_pod_says_so_from_the_start() {
    let created = pods().accepted(with_spec(json!({ "schedulingGates": [{ "name": "example.com/wait" }] })));
    assert_eq!(created["status"]["conditions"][0]["reason"], "SchedulingGated");
}

#[test]
fn each_fault_of_a_container_is_named_with_its_field() {
    let container = |changes: Value| with(&json!({ "name": "web", "image": "nginx" }), changes);
    let one = |changes: Value| json!({ "containers": [container(changes)] });
    let label = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start \
                 and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is \
                 '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
    let cases = [
        (json!({ "containers": [] }), "spec.containers: Required value".to_owned()),
        (one(json!({ "name": null })), "spec.containers[0].name: Required value".to_owned()),
        (one(json!({ "name": "Web" })), format!("spec.containers[0].name: Invalid value: \"Web\": {label}")),
        (one(json!({ "image": null })), "spec.containers[0].image: Required value".to_owned()),
        (
            one(json!({ "imagePullPolicy": "Sometimes" })),
            "spec.containers[0].imagePullPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", \
             \"IfNotPresent\", \"Never\""
                .to_owned(),
        ),
        (
            one(json!({ "ports": [{ "containerPort": 70000 }] })),
            "spec.containers[0].ports[0].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive"
                .to_owned(),
        ),
        (
            one(json!({ "volumeMounts": [{ "name": "data", "mountPath": "/data" }] })),
            "spec.containers[0].volumeMounts[0].name: Not found: \"data\"".to_owned(),
        ),
        (
            one(json!({ "resources": { "limits": { "cpu": "1" }, "requests": { "cpu": "2" } } })),
            "spec.containers[0].resources.requests: Invalid value: \"2\": must be less than or equal to cpu limit of 1"
                .to_owned(),
        ),
        (
            one(json!({ "resources": { "requests": { "gpu": "1" } } })),
            "spec.containers[0].resources.requests[gpu]: Invalid value: \"gpu\": must be a standard resource for \
             containers"
                .to_owned(),
        ),
        (
            one(json!({ "livenessProbe": { "periodSeconds": 1 } })),
            "spec.containers[0].livenessProbe: Required value: must specify a handler type".to_owned(),
        ),
        (
            one(json!({ "env": [{ "name": "A", "valueFrom": {} }] })),
            "spec.containers[0].env[0].valueFrom: Invalid value: \"\": must specify one of: `fieldRef`, \
             `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`"
                .to_owned(),
        ),
    ];
    for (spec, expected) in cases {
        assert_eq!(pods().create_errors(with_spec(spec.clone())), [expected], "{spec}");
    }
}

#[test]
fn each_fault_of_a_pod_is_named_with_its_field() {
    let cases = [
        (
            json!({ "restartPolicy": "Perhaps" }),
            "spec.restartPolicy: Unsupported value: \"Perhaps\": supported values: \"Always\", \"OnFailure\", \"Never\""
                .to_owned(),
        ),
        (
            json!({ "dnsPolicy": "None" }),
            "spec.dnsConfig: Required value: must provide `dnsConfig` when `dnsPolicy` is None".to_owned(),
        ),
        (
            json!({ "volumes": [{ "name": "a" }, { "name": "a" }] }),
            "spec.volumes[1].name: Duplicate value: \"a\"".to_owned(),
        ),
        (
            json!({ "volumes": [{ "name": "a", "hostPath": { "path": "/a/../b" } }] }),
            "spec.volumes[0].hostPath.path: Invalid value: \"/a/../b\": must not contain '..'".to_owned(),
        ),
        (
            json!({ "tolerations": [{ "operator": "Equal", "value": "x" }] }),
            "spec.tolerations[0].operator: Invalid value: \"Equal\": operator must be Exists when `key` is empty, which \
             means \"match all values and all keys\""
                .to_owned(),
        ),
        (
            json!({ "securityContext": { "sysctls": [{ "name": "Kernel", "value": "1" }] } }),
            "spec.securityContext.sysctls[0].name: Invalid value: \"Kernel\": must have at most 253 characters and \
             match regex ^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$"
                .to_owned(),
        ),
        (
            json!({ "topologySpreadConstraints": [{ "maxSkew": 0, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule" }] }),
            "spec.topologySpreadConstraints[0].maxSkew: Invalid value: 0: must be greater than zero".to_owned(),
        ),
        (
            json!({ "initContainers": [{ "name": "init", "image": "busybox", "livenessProbe": { "exec": { "command": ["true"] } } }] }),
            "spec.initContainers[0].livenessProbe: Forbidden: may not be set for init containers without \
             restartPolicy=Always"
                .to_owned(),
        ),
        (
            json!({ "activeDeadlineSeconds": 0 }),
            "spec.activeDeadlineSeconds: Invalid value: 0: must be between 1 and 2147483647, inclusive".to_owned(),
        ),
    ];
    for (spec, expected) in cases {
        assert_eq!(pods().create_errors(with_spec(spec.clone())), [expected], "{spec}");
    }
}

#[test]
fn metadata_is_checked_by_upstreams_rules() {
    let kind = pods();
    let errors = |changes: Value| kind.create_errors(with(&pod(), json!({ "metadata": changes })));
    assert_eq!(
        errors(json!({ "name": null })),
        ["metadata.name: Required value: name or generateName is required"]
    );
    assert!(errors(json!({ "name": "Web" }))[0].starts_with(
        "metadata.name: Invalid value: \"Web\": a lowercase RFC 1123 subdomain must consist of"
    ));
    assert!(
        errors(json!({ "labels": { "a b": "c" } }))[0]
            .starts_with("metadata.labels: Invalid value: \"a b\": name part")
    );
    assert!(
        errors(json!({ "annotations": { "-": "c" } }))[0]
            .starts_with("metadata.annotations: Invalid value: \"-\"")
    );
    assert_eq!(
        errors(json!({ "finalizers": ["mine"] })),
        [
            "metadata.finalizers: Invalid value: \"mine\": name is neither a standard finalizer name nor is it fully qualified"
        ]
    );
    let long = "x".repeat(300 * 1024);
    assert_eq!(
        errors(json!({ "annotations": { "big": long } })),
        ["metadata.annotations: Too long: may not be more than 262144 bytes"]
    );
}

#[test]
fn only_some_fields_of_a_pod_may_change() {
    let kind = pods();
    let old = kind.accepted(pod());
    let errors = |spec: Value| kind.update_errors("", with(&old, json!({ "spec": spec })), &old);
    let container = |changes: Value| json!([with(&old["spec"]["containers"][0], changes)]);

    assert!(errors(json!({ "containers": container(json!({ "image": "nginx:1.27" })) })).is_empty());
    assert!(errors(json!({ "activeDeadlineSeconds": 10 })).is_empty());
    assert!(errors(json!({ "tolerations": [{ "key": "a", "operator": "Exists" }] })).is_empty());

    let refused = errors(json!({ "containers": container(json!({ "command": ["sh"] })) }));
    assert_eq!(refused.len(), 1);
    assert!(refused[0].starts_with(
        "spec: Forbidden: pod updates may not change fields other than `spec.containers[*].image`,\
         `spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing \
         tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)\n"
    ));
    assert!(errors(json!({ "nodeName": "node-1" }))[0].starts_with("spec: Forbidden"));
    assert_eq!(
        errors(json!({ "containers": [old["spec"]["containers"][0], { "name": "b", "image": "b" }] })),
        ["spec.containers: Forbidden: pod updates may not add or remove containers"]
    );
}

#[test]
fn a_deadline_may_only_shrink_and_tolerations_only_grow() {
    let kind = pods();
    let tolerations =
        json!([{ "key": "a", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 5 }]);
    let old = kind.accepted(with_spec(json!({ "activeDeadlineSeconds": 10, "tolerations": tolerations })));
    let errors = |spec: Value| kind.update_errors("", with(&old, json!({ "spec": spec })), &old);
    assert_eq!(
        errors(json!({ "activeDeadlineSeconds": 20 })),
        ["spec.activeDeadlineSeconds: Invalid value: 20: must be less than or equal to previous value"]
    );
    assert_eq!(
        errors(json!({ "tolerations": [] })),
        ["spec.tolerations: Forbidden: existing toleration can not be modified except its tolerationSeconds"]
    );
    let longer =
        json!([{ "key": "a", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 50 }]);
    assert!(errors(json!({ "tolerations": longer })).is_empty());
}

#[test]
fn status_and_spec_are_written_apart() {
    let kind = pods();
    let old = kind.accepted(pod());
    let both = with(&old, json!({ "spec": { "nodeName": "n" }, "status": { "phase": "Running" } }));
    let main = kind.updated("", both.clone(), &old);
    assert_eq!((&main["status"], &main["spec"]["nodeName"]), (&old["status"], &json!("n")));
    let status = kind.updated("status", both, &old);
    assert_eq!((&status["status"]["phase"], &status["spec"]), (&json!("Running"), &old["spec"]));
    assert_eq!(status["metadata"]["generation"], 1, "status writes are no new generation");
    assert_eq!(main["metadata"]["generation"], 2);
}

#[test]
fn the_class_of_service_and_ended_containers_stay() {
    let kind = pods();
    let mut old = kind.accepted(with_spec(json!({ "restartPolicy": "Never" })));
    old["status"]["containerStatuses"] =
        json!([{ "name": "web", "state": { "terminated": { "exitCode": 1 } } }]);
    let errors = |status: Value| kind.update_errors("status", with(&old, json!({ "status": status })), &old);
    assert_eq!(
        errors(json!({ "qosClass": "Guaranteed" })),
        ["status.qosClass: Invalid value: \"Guaranteed\": field is immutable"]
    );
    let running = json!([{ "name": "web", "state": { "running": {} } }]);
    assert_eq!(
        errors(json!({ "containerStatuses": running })),
        ["status.containerStatuses[0].state: Forbidden: may not be transitioned to non-terminated state"]
    );
}

#[test]
fn unscheduled_and_ended_pods_go_at_once() {
    let grace = |pod: Value, requested| pods().strategy.grace_period_seconds(&pod, requested);
    let spec = json!({ "nodeName": "n", "terminationGracePeriodSeconds": 30 });
    assert_eq!(grace(json!({ "spec": { "terminationGracePeriodSeconds": 30 } }), None), Some(0));
    assert_eq!(grace(json!({ "spec": spec }), None), Some(30));
    assert_eq!(grace(json!({ "spec": spec }), Some(5)), Some(5));
    assert_eq!(grace(json!({ "spec": spec }), Some(-1)), Some(1));
    assert_eq!(grace(json!({ "spec": spec, "status": { "phase": "Failed" } }), Some(5)), Some(0));
}

#[test]
fn ephemeral_containers_come_only_by_their_subresource() {
    let kind = pods();
    let debugger = json!([{ "name": "debug", "image": "busybox" }]);
    assert_eq!(
        kind.create_errors(with_spec(json!({ "ephemeralContainers": debugger }))),
        ["spec.ephemeralContainers: Forbidden: cannot be set on create"]
    );
    let old = kind.accepted(pod());
    let new = with(&old, json!({ "spec": { "ephemeralContainers": debugger, "nodeName": "elsewhere" } }));
    assert!(kind.update_errors("ephemeralcontainers", new.clone(), &old).is_empty());
    let stored = kind.updated("ephemeralcontainers", new, &old);
    assert_eq!(stored["spec"]["nodeName"], Value::Null);
    let removed = with(&stored, json!({ "spec": { "ephemeralContainers": null } }));
    assert_eq!(kind.update_errors("ephemeralcontainers", removed, &stored).len(), 1);
}

#[test]
fn resize_changes_resources_and_nothing_else() {
    let kind = pods();
    let resources = |cpu: &str| json!({ "limits": { "cpu": cpu, "memory": "1Gi" }, "requests": { "cpu": cpu, "memory": "1Gi" } });
    let container = |cpu: &str| json!([{ "name": "web", "image": "nginx", "resources": resources(cpu) }]);
    let old = kind.accepted(with_spec(json!({ "containers": container("1") })));
    let mut new = with(&old, json!({ "spec": { "containers": container("2") } }));
    new["spec"]["containers"][0]["image"] = json!("other");
    assert!(kind.update_errors("resize", new.clone(), &old).is_empty());
    let stored = kind.updated("resize", new, &old);
    assert_eq!(stored["spec"]["containers"][0]["resources"], resources("2"));
    assert_eq!(stored["spec"]["containers"][0]["image"], "nginx");
    let burstable =
        json!({ "limits": { "cpu": "2", "memory": "1Gi" }, "requests": { "cpu": "1", "memory": "1Gi" } });
    let mut worse = old.clone();
    worse["spec"]["containers"][0]["resources"] = burstable;
    assert_eq!(
        kind.update_errors("resize", worse, &old),
        ["spec: Invalid value: \"Guaranteed\": Pod QOS Class may not change as a result of resizing"]
    );
}

#[test]
fn match_label_keys_become_requirements_of_the_selector() {
    let created = pods().accepted(with(
        &pod(),
        json!({
            "metadata": { "labels": { "pod-template-hash": "abc" } },
            "spec": { "topologySpreadConstraints": [{
                "maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule",
                "labelSelector": { "matchLabels": { "app": "web" } }, "matchLabelKeys": ["pod-template-hash"],
            }] },
        }),
    ));
    assert_eq!(
        created["spec"]["topologySpreadConstraints"][0]["labelSelector"]["matchExpressions"],
        json!([{ "key": "pod-template-hash", "operator": "In", "values": ["abc"] }])
    );
}
