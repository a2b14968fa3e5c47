use api::{schema::builtin, status::Status};
use serde_json::{Value, json};

use super::{judge, policy::Policy};
use crate::{
    admission::{Operation, Options, Remarks, Request, tests::Objects},
    handlers::Target,
    kinds::Kinds,
    security::Identity,
};

const RESTRICTED: &str = "allowPrivilegeEscalation != false (container \"c\" must set \
     securityContext.allowPrivilegeEscalation=false), unrestricted capabilities (container \"c\" must set \
     securityContext.capabilities.drop=[\"ALL\"]), runAsNonRoot != true (pod or container \"c\" must set \
     securityContext.runAsNonRoot=true), seccompProfile (pod or container \"c\" must set \
     securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\")";

fn labelled(labels: &Value) -> Objects {
    Objects::default().with("namespaces", "", "default", json!({"metadata": {"labels": labels}}))
}

/// Judges a creation, or an update where there is an old object.
fn decide(
    objects: &Objects,
    (group, plural): (&str, &str),
    name: &str,
    object: &Value,
    old: Option<&Value>,
) -> (Result<(), Status>, Remarks) {
    let resource = builtin().resources().iter().find(|r| r.group == group && r.plural == plural).unwrap();
    let (kinds, target) = (Kinds::new(builtin()), Target::new(resource));
    let request = Request {
        operation: if old.is_some() { Operation::Update } else { Operation::Create },
        kinds: &kinds,
        target: &target,
        subresource: "",
        namespace: if plural == "namespaces" { "" } else { "default" },
        name,
        user: &Identity::default(),
        old,
        dry_run: false,
        options: Options::None,
    };
    let mut remarks = Remarks::default();
    let verdict = judge(&request, object, objects, &mut remarks);
    (verdict, remarks)
}

fn pod(spec: Value) -> Value {
    let mut pod = json!({
        "metadata": {"name": "p"},
        "spec": {"containers": [{"name": "c", "image": "i"}]},
    });
    for (key, value) in spec.as_object().unwrap() {
        pod["spec"][key] = value.clone();
    }
    pod
}

fn refusal(labels: &Value, pod: &Value) -> String {
    decide(&labelled(labels), ("", "pods"), "p", pod, None).0.err().map_or(String::new(), |status| {
        assert_eq!((status.code, status.reason.as_ref()), (403, "Forbidden"));
        status.message
    })
}

/// What baseline finds wrong with a pod.
fn baseline(spec: Value) -> String {
    let text = refusal(&json!({"pod-security.kubernetes.io/enforce": "baseline"}), &pod(spec));
    let start = "pods \"p\" is forbidden: violates PodSecurity \"baseline:latest\": ";
    text.strip_prefix(start).unwrap_or(&text).to_owned()
}

fn container(context: Value) -> Value {
    json!({"containers": [{"name": "c", "image": "i", "securityContext": context}]})
}

#[test]
fn a_namespace_without_labels_is_privileged() {
    let bad = pod(json!({"hostNetwork": true}));
    assert_eq!(refusal(&json!({}), &bad), "");
    assert_eq!(refusal(&json!({"pod-security.kubernetes.io/enforce": "privileged"}), &bad), "");
}

#[test]
fn a_plain_pod_breaks_restricted_in_upstreams_words() {
    assert_eq!(
        refusal(&json!({"pod-security.kubernetes.io/enforce": "restricted"}), &pod(json!({}))),
        format!("pods \"p\" is forbidden: violates PodSecurity \"restricted:latest\": {RESTRICTED}")
    );
    let good = pod(json!({
        "securityContext": {"runAsNonRoot": true, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [{"name": "c", "image": "i", "securityContext": {
            "allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"], "add": ["NET_BIND_SERVICE"]}}}],
        "volumes": [{"name": "a", "emptyDir": {}}, {"name": "b", "projected": {"sources": []}}],
    }));
    assert_eq!(refusal(&json!({"pod-security.kubernetes.io/enforce": "restricted"}), &good), "");
}

#[test]
fn baseline_names_what_it_forbids() {
    let cases = [
        (json!({"hostNetwork": true, "hostIPC": true}), "host namespaces (hostNetwork=true, hostIPC=true)"),
        (json!({"volumes": [{"name": "v", "hostPath": {"path": "/"}}]}), "hostPath volumes (volume \"v\")"),
        (
            json!({"containers": [{"name": "a", "ports": [{"hostPort": 80}, {"hostPort": 443}]},
                                  {"name": "b", "ports": [{"hostPort": 80}, {"containerPort": 1}]}]}),
            "hostPort (containers \"a\", \"b\" use hostPorts 443, 80)",
        ),
        (
            json!({"containers": [{"name": "c", "livenessProbe": {"httpGet": {"host": "h"}},
                                   "lifecycle": {"preStop": {"tcpSocket": {"host": "g"}}}}]}),
            "probe or lifecycle host (container \"c\" uses probe or lifecycle hosts \"g\", \"h\")",
        ),
        (
            container(json!({"privileged": true})),
            "privileged (container \"c\" must not set securityContext.privileged=true)",
        ),
        (
            container(json!({"capabilities": {"add": ["NET_RAW", "SYS_ADMIN", "CHOWN"]}})),
            "non-default capabilities (container \"c\" must not include \"NET_RAW\", \"SYS_ADMIN\" in \
             securityContext.capabilities.add)",
        ),
        (
            container(json!({"procMount": "Unmasked"})),
            "procMount (container \"c\" must not set securityContext.procMount to \"Unmasked\")",
        ),
        (
            json!({"securityContext": {"seLinuxOptions": {"type": "spc_t", "user": "u"}}}),
            "seLinuxOptions (pod set forbidden securityContext.seLinuxOptions: type \"spc_t\"; user may not be set)",
        ),
        (
            container(json!({"seccompProfile": {"type": "Unconfined"}})),
            "seccompProfile (container \"c\" must not set securityContext.seccompProfile.type to \"Unconfined\")",
        ),
        (
            json!({"securityContext": {"sysctls": [{"name": "kernel.shm_rmid_forced"}, {"name": "kernel.msgmax"}]}}),
            "forbidden sysctls (kernel.msgmax)",
        ),
        (
            json!({"securityContext": {"appArmorProfile": {"type": "Unconfined"}}}),
            "forbidden AppArmor profile (pod must not set AppArmor profile type to \"Unconfined\")",
        ),
        (
            json!({"securityContext": {"windowsOptions": {"hostProcess": true}}}),
            "hostProcess (pod must not set securityContext.windowsOptions.hostProcess=true)",
        ),
    ];
    for (spec, wanted) in cases {
        assert_eq!(baseline(spec), wanted);
    }
}

#[test]
fn several_violations_stand_in_the_order_of_the_checks() {
    let both =
        json!({"hostPID": true, "initContainers": [{"name": "i", "securityContext": {"privileged": true}}]});
    assert_eq!(
        baseline(both),
        "host namespaces (hostPID=true), privileged (container \"i\" must not set securityContext.privileged=true)"
    );
}

#[test]
fn restricted_overrides_the_weaker_baseline_check() {
    let labels = json!({"pod-security.kubernetes.io/enforce": "restricted"});
    let text = refusal(&labels, &pod(json!({"volumes": [{"name": "v", "hostPath": {"path": "/"}}]})));
    assert!(!text.contains("hostPath volumes"), "{text}");
    assert!(
        text.contains("restricted volume types (volume \"v\" uses restricted volume type \"hostPath\")"),
        "{text}"
    );
}

#[test]
fn checks_are_those_of_the_version_that_the_label_names() {
    let at = |version: &str, spec: Value| {
        let labels = json!({"pod-security.kubernetes.io/enforce": "baseline",
            "pod-security.kubernetes.io/enforce-version": version});
        refusal(&labels, &pod(spec))
    };
    let sysctl = json!({"securityContext": {"sysctls": [{"name": "net.ipv4.tcp_rmem"}]}});
    assert!(
        at("v1.31", sysctl.clone()).contains("violates PodSecurity \"baseline:v1.31\": forbidden sysctls")
    );
    assert_eq!(at("v1.32", sysctl.clone()), "");
    assert_eq!(at("v1.99", sysctl), "");
    let unmasked = json!({"hostUsers": false, "containers": [{"name": "c", "securityContext": {"procMount": "Unmasked"}}]});
    assert_ne!(at("v1.34", unmasked.clone()), "");
    assert_eq!(at("v1.35", unmasked), "");
}

#[test]
fn enforcing_a_level_warns_of_workloads_that_break_it() {
    let objects = labelled(&json!({"pod-security.kubernetes.io/enforce": "restricted"}));
    let deployment = json!({"metadata": {"name": "d"}, "spec": {"template": pod(json!({}))}});
    let (verdict, remarks) = decide(&objects, ("apps", "deployments"), "d", &deployment, None);
    assert!(verdict.is_ok());
    assert_eq!(remarks.warnings, [format!("would violate PodSecurity \"restricted:latest\": {RESTRICTED}")]);
    let objects = labelled(&json!({"pod-security.kubernetes.io/audit": "baseline"}));
    let cron = json!({"spec": {"jobTemplate": {"spec": {"template": pod(json!({"hostPID": true}))}}}});
    let (_, remarks) = decide(&objects, ("batch", "cronjobs"), "d", &cron, None);
    assert!(remarks.warnings.is_empty());
    assert_eq!(
        remarks.annotations,
        [(
            "pod-security.kubernetes.io/audit-violations".to_owned(),
            "would violate PodSecurity \"baseline:latest\": host namespaces (hostPID=true)".to_owned()
        )]
    );
}

#[test]
fn an_update_that_changes_no_image_passes() {
    let objects = labelled(&json!({"pod-security.kubernetes.io/enforce": "restricted"}));
    let old = pod(json!({}));
    let mut new = old.clone();
    new["metadata"]["labels"] = json!({"a": "b"});
    assert!(decide(&objects, ("", "pods"), "p", &new, Some(&old)).0.is_ok());
    new["spec"]["containers"][0]["image"] = json!("other");
    assert!(decide(&objects, ("", "pods"), "p", &new, Some(&old)).0.is_err());
}

#[test]
fn labels_that_make_no_sense_are_refused() {
    let namespace = |labels: Value| json!({"metadata": {"name": "n", "labels": labels}});
    let bad = namespace(json!({"pod-security.kubernetes.io/enforce": "strict",
        "pod-security.kubernetes.io/warn-version": "v1.01"}));
    let (verdict, _) = decide(&Objects::default(), ("", "namespaces"), "n", &bad, None);
    assert_eq!(
        verdict.unwrap_err().message,
        "Namespace \"n\" is invalid: [metadata.labels[pod-security.kubernetes.io/enforce]: Invalid value: \"strict\": \
         must be one of privileged, baseline, restricted, metadata.labels[pod-security.kubernetes.io/warn-version]: \
         Invalid value: \"v1.01\": must be \"latest\" or \"v1.x\"]"
    );
    let (verdict, _) = decide(&Objects::default(), ("", "namespaces"), "n", &bad, Some(&bad));
    assert!(verdict.is_ok(), "what was wrong before may stay");
    let (policy, _) = Policy::parse(bad["metadata"]["labels"].as_object().unwrap());
    assert_eq!(policy.enforce.to_string(), "restricted:latest");
    assert_eq!(policy.warn.to_string(), "privileged:latest");
}

#[test]
fn a_stricter_level_warns_of_existing_pods() {
    let mut objects = Objects::default();
    for name in ["b", "a"] {
        objects = objects.with("pods", "n", name, pod(json!({"hostPID": true})));
    }
    objects = objects.with(
        "pods",
        "n",
        "c",
        pod(json!({"hostNetwork": true, "hostPID": true, "volumes": [
        {"name": "v", "hostPath": {"path": "/"}}]})),
    );
    let namespace =
        |level: &str| json!({"metadata": {"labels": {"pod-security.kubernetes.io/enforce": level}}});
    let (new, old) = (namespace("baseline"), namespace("privileged"));
    let (_, remarks) = decide(&objects, ("", "namespaces"), "n", &new, Some(&old));
    assert_eq!(
        remarks.warnings,
        [
            "existing pods in namespace \"n\" violate the new PodSecurity enforce level \"baseline:latest\"",
            "a (and 1 other pod): host namespaces",
            "c: host namespaces, hostPath volumes",
        ]
    );
    let (_, remarks) = decide(&objects, ("", "namespaces"), "n", &old, Some(&new));
    assert!(remarks.warnings.is_empty(), "a relaxed level has nothing to say");
}
