use serde_json::{Value, json};

use super::{Kind, metadata, template, with};

fn deployment() -> Value {
    json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata("web"),
        "spec": { "selector": { "matchLabels": { "app": "web" } }, "template": template() },
    })
}

fn of_kind(kind: &str, spec: Value) -> Value {
    with(&deployment(), json!({ "kind": kind, "spec": spec }))
}

#[test]
fn a_deployment_gets_upstreams_defaults() {
    let created = Kind::new("apps", "deployments").accepted(deployment());
    let mut spec = created["spec"].clone();
    let template = spec["template"].take();
    assert_eq!(
        spec,
        json!({
            "progressDeadlineSeconds": 600,
            "replicas": 1,
            "revisionHistoryLimit": 10,
            "selector": { "matchLabels": { "app": "web" } },
            "strategy": { "type": "RollingUpdate", "rollingUpdate": { "maxSurge": "25%", "maxUnavailable": "25%" } },
            "template": null,
        })
    );
    assert_eq!(template["spec"]["restartPolicy"], "Always");
    assert_eq!(template["spec"]["securityContext"], json!({}));
    assert_eq!(template["spec"]["enableServiceLinks"], Value::Null, "only pods get it");
    assert_eq!((&created["status"], &created["metadata"]["generation"]), (&json!({}), &json!(1)));
}

#[test]
fn each_fault_of_a_deployment_is_named_with_its_field() {
    let kind = Kind::new("apps", "deployments");
    let cases = [
        (
            json!({ "selector": null }),
            vec![
                "spec.selector: Required value",
                "spec.template.metadata.labels: Invalid value: {\"app\":\"web\"}: `selector` does not match template `labels`",
            ],
        ),
        (
            json!({ "selector": { "matchLabels": { "app": "other" } } }),
            vec![
                "spec.template.metadata.labels: Invalid value: {\"app\":\"web\"}: `selector` does not match template `labels`",
            ],
        ),
        (
            json!({ "selector": { "matchLabels": null } }),
            vec!["spec.selector: Invalid value: {}: empty selector is invalid for deployment"],
        ),
        (
            json!({ "replicas": -1 }),
            vec!["spec.replicas: Invalid value: -1: must be greater than or equal to 0"],
        ),
        (
            json!({ "strategy": { "type": "Recreate", "rollingUpdate": { "maxSurge": 1 } } }),
            vec![
                "spec.strategy.rollingUpdate: Forbidden: may not be specified when strategy `type` is 'Recreate'",
            ],
        ),
        (
            json!({ "strategy": { "rollingUpdate": { "maxSurge": 0, "maxUnavailable": 0 } } }),
            vec![
                "spec.strategy.rollingUpdate.maxUnavailable: Invalid value: 0: may not be 0 when `maxSurge` is 0",
            ],
        ),
        (
            json!({ "strategy": { "rollingUpdate": { "maxUnavailable": "150%" } } }),
            vec![
                "spec.strategy.rollingUpdate.maxUnavailable: Invalid value: \"150%\": must not be greater than 100%",
            ],
        ),
        (
            json!({ "minReadySeconds": 600 }),
            vec!["spec.progressDeadlineSeconds: Invalid value: 600: must be greater than minReadySeconds"],
        ),
        (
            json!({ "template": { "spec": { "restartPolicy": "Never" } } }),
            vec![
                "spec.template.spec.restartPolicy: Unsupported value: \"Never\": supported values: \"Always\"",
            ],
        ),
        (
            json!({ "template": { "spec": { "containers": null } } }),
            vec!["spec.template.spec.containers: Required value"],
        ),
    ];
    for (spec, expected) in cases {
        assert_eq!(kind.create_errors(with(&deployment(), json!({ "spec": spec }))), expected, "{spec}");
    }
}

#[test]
fn selectors_of_controllers_do_not_change() {
    for (plural, name) in
        [("deployments", "Deployment"), ("replicasets", "ReplicaSet"), ("daemonsets", "DaemonSet")]
    {
        let kind = Kind::new("apps", plural);
        let old = kind.accepted(of_kind(name, json!({})));
        let changes = json!({ "spec": {
            "selector": { "matchLabels": { "tier": "x" } }, "template": { "metadata": { "labels": { "tier": "x" } } },
        } });
        let errors = kind.update_errors("", with(&old, changes), &old);
        assert_eq!(errors.len(), 1, "{errors:?}");
        assert!(errors[0].starts_with("spec.selector: Invalid value: "), "{errors:?}");
        assert!(errors[0].ends_with("field is immutable"), "{errors:?}");
    }
}

#[test]
fn generation_counts_changes_of_the_spec_only() {
    let kind = Kind::new("apps", "deployments");
    let old = kind.accepted(deployment());
    let generation = |subresource, changes: Value| {
        kind.updated(subresource, with(&old, changes), &old)["metadata"]["generation"].clone()
    };
    assert_eq!(generation("", json!({ "spec": { "replicas": 3 } })), 2);
    assert_eq!(generation("", json!({ "metadata": { "labels": { "a": "b" }, "generation": 9 } })), 1);
    assert_eq!(generation("", json!({ "metadata": { "annotations": { "a": "b" } } })), 2);
    assert_eq!(generation("status", json!({ "spec": { "replicas": 3 }, "status": { "replicas": 1 } })), 1);
}

#[test]
fn a_statefulset_changes_only_what_upstream_lets_change() {
    let kind = Kind::new("apps", "statefulsets");
    let claim = json!([{ "metadata": { "name": "data" }, "spec": {
        "accessModes": ["ReadWriteOnce"], "resources": { "requests": { "storage": "1Gi" } },
    } }]);
    let mount = json!([{ "name": "web", "image": "nginx", "volumeMounts": [{ "name": "data", "mountPath": "/data" }] }]);
    let old = kind.accepted(of_kind(
        "StatefulSet",
        json!({ "serviceName": "web", "volumeClaimTemplates": claim, "template": { "spec": { "containers": mount } } }),
    ));
    assert_eq!(old["spec"]["podManagementPolicy"], "OrderedReady");
    assert_eq!(
        old["spec"]["updateStrategy"],
        json!({ "type": "RollingUpdate", "rollingUpdate": { "partition": 0 } })
    );
    assert_eq!(old["spec"]["volumeClaimTemplates"][0]["spec"]["volumeMode"], "Filesystem");
    assert_eq!(old["status"], json!({ "replicas": 0, "availableReplicas": 0 }));
    let errors = |spec: Value| kind.update_errors("", with(&old, json!({ "spec": spec })), &old);
    assert!(errors(json!({ "replicas": 5, "minReadySeconds": 3 })).is_empty());
    assert_eq!(
        errors(json!({ "serviceName": "other" })),
        [
            "spec: Forbidden: updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', \
          'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are \
          forbidden"
        ]
    );
}

#[test]
fn a_daemonset_rolls_by_one_and_never_by_none() {
    let kind = Kind::new("apps", "daemonsets");
    let created = kind.accepted(of_kind("DaemonSet", json!({})));
    assert_eq!(
        created["spec"]["updateStrategy"],
        json!({ "type": "RollingUpdate", "rollingUpdate": { "maxUnavailable": 1, "maxSurge": 0 } })
    );
    let none = json!({ "updateStrategy": { "rollingUpdate": { "maxUnavailable": 0 } } });
    assert_eq!(
        kind.create_errors(of_kind("DaemonSet", none)),
        ["spec.updateStrategy.rollingUpdate.maxUnavailable: Required value: cannot be 0 when maxSurge is 0"]
    );
}

#[test]
fn a_replication_controller_takes_selector_and_labels_from_its_template() {
    let kind = Kind::new("", "replicationcontrollers");
    let controller = json!({
        "apiVersion": "v1", "kind": "ReplicationController", "metadata": metadata("web"), "spec": { "template": template() },
    });
    let created = kind.accepted(controller);
    assert_eq!(created["spec"]["selector"], json!({ "app": "web" }));
    assert_eq!(created["metadata"]["labels"], json!({ "app": "web" }));
    assert_eq!(created["spec"]["replicas"], 1);
}

fn job(spec: Value) -> Value {
    let base = json!({
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": metadata("pi"),
        "spec": { "template": { "spec": {
            "restartPolicy": "Never", "containers": [{ "name": "pi", "image": "perl:5" }],
        } } },
    });
    with(&base, json!({ "spec": spec }))
}

#[test]
fn a_job_makes_its_own_selector() {
    let created = Kind::new("batch", "jobs").accepted(job(json!({})));
    let uid = &created["metadata"]["uid"];
    assert_eq!(
        created["spec"]["selector"]["matchLabels"],
        json!({ "batch.kubernetes.io/controller-uid": uid })
    );
    let labels = json!({
        "batch.kubernetes.io/controller-uid": uid, "controller-uid": uid,
        "batch.kubernetes.io/job-name": "pi", "job-name": "pi",
    });
    assert_eq!(created["spec"]["template"]["metadata"]["labels"], labels);
    for (key, value) in [
        ("backoffLimit", json!(6)),
        ("completions", json!(1)),
        ("parallelism", json!(1)),
        ("completionMode", json!("NonIndexed")),
        ("suspend", json!(false)),
        ("podReplacementPolicy", json!("TerminatingOrFailed")),
    ] {
        assert_eq!(created["spec"][key], value, "{key}");
    }
}

#[test]
fn each_fault_of_a_job_is_named_with_its_field() {
    let kind = Kind::new("batch", "jobs");
    assert_eq!(
        kind.create_errors(job(json!({ "template": { "spec": { "restartPolicy": "Always" } } }))),
        ["spec.template.spec.restartPolicy: Required value: valid values: \"OnFailure\", \"Never\""]
    );
    assert_eq!(
        kind.create_errors(job(json!({ "completionMode": "Indexed", "parallelism": 2 }))),
        ["spec.completions: Required value: when completion mode is Indexed"]
    );
    let old = kind.accepted(job(json!({})));
    let errors = |spec: Value| kind.update_errors("", with(&old, json!({ "spec": spec })), &old);
    assert!(errors(json!({ "parallelism": 4, "suspend": true })).is_empty());
    assert_eq!(
        errors(json!({ "completions": 4 })),
        ["spec.completions: Invalid value: 4: field is immutable"]
    );
    let image = json!({ "template": { "spec": { "containers": [{ "name": "pi", "image": "perl:6" }] } } });
    assert!(errors(image)[0].starts_with("spec.template: Invalid value: "));
}

#[test]
fn a_cronjobs_schedule_is_checked() {
    let kind = Kind::new("batch", "cronjobs");
    let cron = |schedule: &str| {
        json!({
            "apiVersion": "batch/v1", "kind": "CronJob", "metadata": metadata("nightly"),
            "spec": { "schedule": schedule, "jobTemplate": { "spec": job(json!({}))["spec"] } },
        })
    };
    for schedule in ["*/5 * * * *", "0 3 * * mon-fri", "@hourly", "@every 1h30m", "0 0 1,15 jan *"] {
        kind.accepted(cron(schedule));
    }
    assert_eq!(
        kind.create_errors(cron("* * *")),
        ["spec.schedule: Invalid value: \"* * *\": expected exactly 5 fields, found 3: [* * *]"]
    );
    assert_eq!(
        kind.create_errors(cron("60 * * * *")),
        ["spec.schedule: Invalid value: \"60 * * * *\": end of range (60) above maximum (59): 60"]
    );
    assert_eq!(kind.create_errors(cron("")), ["spec.schedule: Required value"]);
    let long = with(&cron("@daily"), json!({ "metadata": { "name": "n".repeat(53) } }));
    assert!(kind.create_errors(long)[0].ends_with("must be no more than 52 characters"));
}
