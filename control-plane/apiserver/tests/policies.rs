//! ValidatingAdmissionPolicy and MutatingAdmissionPolicy over HTTP, as upstream's tests of them expect.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use serde_json::{Value, json};
use support::{Client, TestServer};

const POLICIES: &str = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies";
const BINDINGS: &str = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings";
const MUTATING: &str = "/apis/admissionregistration.k8s.io/v1/mutatingadmissionpolicies";
const MUTATING_BINDINGS: &str = "/apis/admissionregistration.k8s.io/v1/mutatingadmissionpolicybindings";
const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";
const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";

fn rules(group: &str, resource: &str) -> Value {
    json!({"resourceRules": [{
        "apiGroups": [group], "apiVersions": ["v1"], "operations": ["CREATE", "UPDATE"], "resources": [resource],
    }]})
}

fn policy(name: &str, constraints: Value, spec: Value) -> Value {
    let mut spec = spec;
    spec["matchConstraints"] = constraints;
    json!({"metadata": {"name": name}, "spec": spec})
}

fn binding(name: &str, policy: &str, spec: Value) -> Value {
    let mut spec = spec;
    spec["policyName"] = json!(policy);
    json!({"metadata": {"name": name}, "spec": spec})
}

fn config_map(name: &str, data: Value) -> Value {
    json!({"metadata": {"name": name}, "data": data})
}

fn deployment(name: &str, replicas: i64) -> Value {
    let labels = json!({"app": name});
    json!({"metadata": {"name": name, "labels": {"app": name}}, "spec": {
        "replicas": replicas,
        "selector": {"matchLabels": labels},
        "template": {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "c", "image": "i"}]}},
    }})
}

async fn created(client: &Client, path: &str, object: Value) -> Value {
    let answer = client.post(path, &object).await;
    assert_eq!(answer.code, 201, "{}", answer.text);
    answer.body
}

#[tokio::test]
async fn a_policy_denies_at_once_with_its_message_and_reason() {
    let server = TestServer::start().await;
    let admin = server.admin();
    let spec = json!({
    "variables": [{"name": "replicas", "expression": "object.spec.replicas"}],
    "matchConditions": [{"name": "not-exempt", "expression": "!object.metadata.name.startsWith('exempt')"}],
    "validations": [
        {"expression": "variables.replicas > 1", "messageExpression": "'wants more than ' + string(variables.replicas)"},
        {"expression": "object.metadata.name != 'bad' || oldObject != null", "reason": "Forbidden"},
        {"expression": "namespaceObject.metadata.name == 'default' && request.operation in ['CREATE', 'UPDATE']"},
    ]});
    created(&admin, POLICIES, policy("replicas", rules("apps", "deployments"), spec)).await;
    created(&admin, DEPLOYMENTS, deployment("before", 1)).await;
    created(
        &admin,
        BINDINGS,
        binding("replicas-binding", "replicas", json!({"validationActions": ["Deny"]})),
    )
    .await;
    let answer = admin.post(DEPLOYMENTS, &deployment("one", 1)).await;
    assert_eq!(answer.code, 422);
    let status = answer.body;
    assert_eq!(status["reason"], "Invalid");
    assert_eq!(
        status["message"],
        "deployments.apps \"one\" is forbidden: ValidatingAdmissionPolicy 'replicas' with binding 'replicas-binding' \
         denied request: wants more than 1"
    );
    assert_eq!(
        status["details"]["causes"][0]["message"],
        "ValidatingAdmissionPolicy 'replicas' with binding 'replicas-binding' denied request: wants more than 1"
    );
    let forbidden = admin.post(DEPLOYMENTS, &deployment("bad", 2)).await;
    assert_eq!(forbidden.code, 403);
    assert!(forbidden.text.contains("failed expression: object.metadata.name != 'bad'"));
    created(&admin, DEPLOYMENTS, deployment("two", 2)).await;
    created(&admin, DEPLOYMENTS, deployment("exempt", 1)).await;
    let gone = admin.delete(&format!("{BINDINGS}/replicas-binding"), &json!({})).await;
    assert_eq!(gone.code, 200);
    created(&admin, DEPLOYMENTS, deployment("after", 1)).await;
}

#[tokio::test]
async fn warnings_only_warn_and_failures_follow_the_failure_policy() {
    let server = TestServer::start().await;
    let admin = server.admin();
    let warns =
        json!({"validations": [{"expression": "object.data.level == 'low'", "message": "level is not low"}]});
    created(&admin, POLICIES, policy("warns", rules("", "configmaps"), warns)).await;
    created(
        &admin,
        BINDINGS,
        binding("warns-binding", "warns", json!({"validationActions": ["Warn", "Audit"]})),
    )
    .await;
    let answer = admin.post(CONFIG_MAPS, &config_map("high", json!({"level": "high"}))).await;
    assert_eq!(answer.code, 201);
    let warning = answer.warnings().join(
        "
",
    );
    assert!(
        warning.contains("Validation failed for ValidatingAdmissionPolicy 'warns' with binding 'warns-binding': level is not low"),
        "{warning}"
    );
    for (name, failure_policy, expected) in [("closed", "Fail", 422), ("open", "Ignore", 201)] {
        let spec = json!({"failurePolicy": failure_policy, "validations": [{"expression": "object.data.missing == '1'"}],
            "matchConditions": [{"name": "own", "expression": format!("object.metadata.name == '{name}'")}]});
        created(&admin, POLICIES, policy(name, rules("", "configmaps"), spec)).await;
        created(&admin, BINDINGS, binding(name, name, json!({"validationActions": ["Deny"]}))).await;
        let answer = admin.post(CONFIG_MAPS, &config_map(name, json!({"level": "low"}))).await;
        assert_eq!(answer.code, expected, "{}", answer.text);
        if expected != 201 {
            let why = "expression 'object.data.missing == '1'' resulted in error: no such key: missing";
            assert!(answer.text.contains(why), "{}", answer.text);
        }
    }
}

#[tokio::test]
async fn parameters_come_from_the_binding() {
    let server = TestServer::start().await;
    let admin = server.admin();
    let spec = json!({"paramKind": {"apiVersion": "v1", "kind": "ConfigMap"}, "validations": [
        {"expression": "object.spec.replicas <= int(params.data.max)", "messageExpression": "'at most ' + params.data.max"}]});
    created(&admin, POLICIES, policy("limits", rules("apps", "deployments"), spec)).await;
    let reference = json!({"name": "limits", "parameterNotFoundAction": "Deny"});
    let bound = json!({"validationActions": ["Deny"], "paramRef": reference});
    created(&admin, BINDINGS, binding("limits-binding", "limits", bound)).await;
    let answer = admin.post(DEPLOYMENTS, &deployment("unknown", 2)).await;
    let why = "denied request: failed to configure binding: no params found for policy binding with `Deny` parameterNotFoundAction";
    assert!(answer.text.contains(why), "{}", answer.text);
    created(&admin, CONFIG_MAPS, config_map("limits", json!({"max": "3"}))).await;
    let answer = admin.post(DEPLOYMENTS, &deployment("four", 4)).await;
    assert!(answer.text.contains("denied request: at most 3"), "{}", answer.text);
    created(&admin, DEPLOYMENTS, deployment("three", 3)).await;
}

#[tokio::test]
async fn who_names_parameters_must_be_able_to_read_them() {
    let server = TestServer::start().await;
    let (admin, alice) = (server.admin(), server.client("alice", "people"));
    let grant = async |name: &str, group: &str, resource: &str, verbs: Value| {
        let rbac = "/apis/rbac.authorization.k8s.io/v1";
        let role = json!({"metadata": {"name": name},
            "rules": [{"apiGroups": [group], "resources": [resource], "verbs": verbs}]});
        admin.post(&format!("{rbac}/clusterroles"), &role).await.expect(201);
        let binding = json!({"metadata": {"name": name},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name},
            "subjects": [{"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": "alice"}]});
        admin.post(&format!("{rbac}/clusterrolebindings"), &binding).await.expect(201);
    };
    grant("policies", "admissionregistration.k8s.io", "*", json!(["*"])).await;
    let spec = json!({"paramKind": {"apiVersion": "v1", "kind": "ConfigMap"}, "validations": [{"expression": "true"}]});
    let limits = policy("limits", rules("apps", "deployments"), spec);
    let message = alice.post(POLICIES, &limits).await.refuse(422, "Invalid");
    let begin = "spec.paramKind: Forbidden: user &{alice  [people system:authenticated] map[";
    let end = "must have \"get\" permission on all objects of the referenced paramKind (kind=ConfigMap, apiVersion=v1)";
    assert!(message.contains(begin) && message.ends_with(end), "{message}");
    created(&admin, POLICIES, limits.clone()).await;
    let bound = |name: &str, reference: Value| {
        binding(name, "limits", json!({"validationActions": ["Deny"], "paramRef": reference}))
    };
    let named = json!({"name": "p", "namespace": "default", "parameterNotFoundAction": "Deny"});
    let message = alice.post(BINDINGS, &bound("a", named.clone())).await.refuse(422, "Invalid");
    assert!(message.contains("spec.paramRef: Forbidden: user &{alice "), "{message}");
    assert!(
        message.ends_with("does not have \"get\" permission on the object referenced by paramRef"),
        "{message}"
    );
    let nobodys = binding("n", "nobody", json!({"validationActions": ["Deny"], "paramRef": named.clone()}));
    let message = alice.post(BINDINGS, &nobodys).await.refuse(422, "Invalid");
    assert!(
        message.contains("unable to get policy nobody to determine minimum required permissions"),
        "{message}"
    );

    grant("readers", "", "configmaps", json!(["get"])).await;
    created(&alice, BINDINGS, bound("a", named)).await;
    let selected = json!({"selector": {"matchLabels": {"a": "b"}}, "parameterNotFoundAction": "Deny"});
    let message = alice.post(BINDINGS, &bound("b", selected.clone())).await.refuse(422, "Invalid");
    assert!(message.contains("does not have \"list\" permission"), "{message}");
    created(&admin, BINDINGS, bound("b", selected)).await;
    let label = json!({"metadata": {"labels": {"x": "y"}}});
    let labelled = alice.patch(&format!("{BINDINGS}/b"), "merge", &label).await;
    assert_eq!(labelled.code, 200, "what was there before is not asked about: {}", labelled.text);
    let mut more = limits;
    more["metadata"]["name"] = json!("more");
    created(&alice, POLICIES, more).await;
}

#[tokio::test]
async fn the_authorizer_answers_for_the_user() {
    let server = TestServer::start().await;
    let admin = server.admin();
    let check = "authorizer.group('').resource('secrets').namespace('default').check('get').allowed() \
                 && !authorizer.serviceAccount('default', 'nobody').requestsNothing";
    let wrong = json!({"validations": [{"expression": check}]});
    let answer = admin.post(POLICIES, &policy("authz", rules("", "configmaps"), wrong)).await;
    assert_eq!(answer.code, 422);
    assert!(answer.text.contains("undefined field 'requestsNothing'"), "{}", answer.text);
    let spec = json!({"validations": [{"expression":
        "authorizer.group('').resource('secrets').namespace('default').check('get').allowed() \
         && !authorizer.serviceAccount('default', 'nobody').group('').resource('secrets').check('get').allowed()"}, {"expression": "authorizer.requestResource.check('create').allowed()"}]});
    created(&admin, POLICIES, policy("authz", rules("", "configmaps"), spec)).await;
    created(&admin, BINDINGS, binding("authz", "authz", json!({"validationActions": ["Deny"]}))).await;
    created(&admin, CONFIG_MAPS, config_map("allowed", json!({}))).await;
}

#[tokio::test]
async fn what_cannot_work_is_refused_when_it_is_written() {
    let server = TestServer::start().await;
    let admin = server.admin();
    let cases = [
        (
            json!({"validations": [{"expression": "object.spec.replicas > 1 &&"}]}),
            "Syntax error: mismatched input '<EOF>'",
        ),
        (
            json!({"validations": [{"expression": "'text'"}]}),
            "spec.validations[0].expression: Invalid value: \\\"'text'\\\": must evaluate to bool but got string",
        ),
        (
            json!({"validations": [{"expression": "params.x == 1"}]}),
            "undeclared reference to 'params' (in container '')",
        ),
        (
            json!({"variables": [{"name": "for", "expression": "1"}], "validations": [{"expression": "true"}]}),
            "must be a valid CEL identifier",
        ),
        (json!({}), "validations or auditAnnotations must contain at least one item"),
        (
            json!({"validations": [{"expression": "true"}], "failurePolicy": "Maybe"}),
            "supported values: \\\"Fail\\\", \\\"Ignore\\\"",
        ),
    ];
    for (spec, expected) in cases {
        let answer = admin.post(POLICIES, &policy("bad", rules("apps", "deployments"), spec.clone())).await;
        assert_eq!(answer.code, 422, "{spec}");
        assert!(answer.text.contains(expected), "{spec}: {}", answer.text);
    }
    let both = binding("bad", "any", json!({"validationActions": ["Deny", "Warn"]}));
    let answer = admin.post(BINDINGS, &both).await;
    assert!(answer.text.contains("must not contain both Deny and Warn"), "{}", answer.text);
}

#[tokio::test]
async fn mutating_policies_lay_parts_over_objects_and_patch_them() {
    let server = TestServer::start().await;
    let admin = server.admin();
    let apply = "Object{metadata: Object.metadata{labels: {'added': object.metadata.name}}, \
                 spec: Object.spec{template: Object.spec.template{spec: Object.spec.template.spec{initContainers: [\
                 Object.spec.template.spec.initContainers{name: 'mesh', image: 'mesh:1'}]}}}}";
    let patch = "[JSONPatch{op: 'test', path: '/metadata/labels/added', value: 'web'}, \
                 JSONPatch{op: 'add', path: '/metadata/labels/' + jsonpatch.escapeKey('example.com/patched'), value: 'yes'}]";
    let spec = json!({"reinvocationPolicy": "Never", "mutations": [
        {"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": apply}},
        {"patchType": "JSONPatch", "jsonPatch": {"expression": patch}},
    ]});
    created(&admin, MUTATING, policy("mesh", rules("apps", "deployments"), spec)).await;
    created(&admin, MUTATING_BINDINGS, binding("mesh-binding", "mesh", json!({}))).await;
    let web = created(&admin, DEPLOYMENTS, deployment("web", 1)).await;
    assert_eq!(
        web["metadata"]["labels"],
        json!({"app": "web", "added": "web", "example.com/patched": "yes"})
    );
    let init = &web["spec"]["template"]["spec"]["initContainers"][0];
    assert_eq!((&init["name"], &init["imagePullPolicy"]), (&json!("mesh"), &json!("IfNotPresent")));
    let other = created(&admin, DEPLOYMENTS, deployment("other", 1)).await;
    assert_eq!(other["metadata"]["labels"], json!({"app": "other", "added": "other"}));
}

#[tokio::test]
async fn mutations_that_fail_refuse_the_request() {
    let server = TestServer::start().await;
    let admin = server.admin();
    let cases = [
        (
            "names",
            "ApplyConfiguration",
            "applyConfiguration",
            "Object{spec: Object.wrong{replicas: 1}}",
            "error",
            "unexpected type name \\\"Object.wrong\\\", expected \\\"Object.spec\\\"",
        ),
        (
            "atomic",
            "ApplyConfiguration",
            "applyConfiguration",
            "Object{spec: Object.spec{selector: Object.spec.selector{matchLabels: {'a': 'b'}}}}",
            "error",
            "may not mutate atomic arrays, maps or structs: .spec.selector",
        ),
        (
            "fails",
            "JSONPatch",
            "jsonPatch",
            "[JSONPatch{op: 'add', path: '/x', value: object.missing.thing}]",
            "error",
            "no such key: missing",
        ),
    ];
    for (name, kind, field, expression, _, expected) in cases {
        let spec = json!({"reinvocationPolicy": "Never",
            "matchConditions": [{"name": "own", "expression": format!("object.metadata.name == '{name}'")}],
            "mutations": [{"patchType": kind, field: {"expression": expression}}]});
        created(&admin, MUTATING, policy(name, rules("apps", "deployments"), spec)).await;
        created(&admin, MUTATING_BINDINGS, binding(name, name, json!({}))).await;
        let answer = admin.post(DEPLOYMENTS, &deployment(name, 1)).await;
        assert!(answer.text.contains(expected), "{name}: {}", answer.text);
        assert!(
            answer.text.contains(&format!("policy '{name}' with binding '{name}' denied request:")),
            "{}",
            answer.text
        );
    }
}
