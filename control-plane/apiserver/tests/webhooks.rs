//! Admission webhooks, asked by a real server over TLS on loopback.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::{
    sync::{Mutex, mpsc},
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use support::{
    CONFIG_MAPS, Client, DEADLINE, PODS, TestServer, config_map, make_default_account, pod,
    webhook::{Backend, patch, review},
};

const GROUP: &str = "/apis/admissionregistration.k8s.io/v1";
const VALIDATING: &str = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations";
const MUTATING: &str = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations";

fn rule(operations: &[&str], group: &str, resource: &str) -> Value {
    json!({"operations": operations, "apiGroups": [group], "apiVersions": ["*"], "resources": [resource]})
}

/// A configuration with one webhook; `more` overrides its fields.
fn configuration(kind: &str, name: &str, client: Value, rules: Value, more: Value) -> Value {
    let mut hook = json!({
        "name": format!("{name}.example.com"), "clientConfig": client, "rules": rules, "sideEffects": "None",
        "admissionReviewVersions": ["v1"],
    });
    for (key, value) in more.as_object().unwrap() {
        hook[key] = value.clone();
    }
    json!({
        "apiVersion": "admissionregistration.k8s.io/v1", "kind": kind, "metadata": {"name": name}, "webhooks": [hook],
    })
}

async fn validate(admin: &Client, name: &str, client: Value, rules: Value, more: Value) {
    let object = configuration("ValidatingWebhookConfiguration", name, client, rules, more);
    admin.post(VALIDATING, &object).await.expect(201);
}

async fn mutate(admin: &Client, name: &str, client: Value, rules: Value, more: Value) {
    let object = configuration("MutatingWebhookConfiguration", name, client, rules, more);
    admin.post(MUTATING, &object).await.expect(201);
}

fn all_of(resource: &str) -> Value {
    json!([rule(&["*"], "", resource)])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_validating_webhook_refuses_and_warns_from_the_first_request_on() {
    let server = TestServer::start().await;
    let admin = server.admin();
    let backend = Backend::start(|request| {
        let object = &request.body["request"]["object"];
        let bad = object["data"]["bad"] == "yes";
        let status =
            json!({"message": "the configmap contains bad data", "code": 403, "reason": "Forbidden"});
        review(request, json!({"allowed": !bad, "status": status, "warnings": ["be careful"]}))
    })
    .await;
    validate(&admin, "deny", backend.client_config("/check"), all_of("configmaps"), json!({})).await;
    let refused = admin.post(CONFIG_MAPS, &config_map("a", json!({}), json!({"bad": "yes"}))).await;
    assert_eq!(refused.warnings(), ["299 - \"be careful\""]);
    assert_eq!(
        refused.refuse(403, "Forbidden"),
        "admission webhook \"deny.example.com\" denied the request: the configmap contains bad data"
    );
    let made = admin.post(CONFIG_MAPS, &config_map("a", json!({}), json!({"bad": "no"}))).await;
    assert_eq!(made.warnings(), ["299 - \"be careful\""]);
    made.expect(201);
    let patched = admin.patch(&format!("{CONFIG_MAPS}/a"), "merge", &json!({"data": {"bad": "yes"}})).await;
    assert!(patched.refuse(403, "Forbidden").contains("denied the request"));
    let received = backend.received();
    let first = &received[0];
    assert_eq!((first.method.as_str(), first.path.as_str()), ("POST", "/check"));
    assert_eq!(first.query, "timeout=10s");
    let request = &first.body["request"];
    assert_eq!(first.body["apiVersion"], "admission.k8s.io/v1");
    assert_eq!(request["operation"], "CREATE");
    assert_eq!(request["kind"], json!({"group": "", "version": "v1", "kind": "ConfigMap"}));
    assert_eq!(request["resource"], json!({"group": "", "version": "v1", "resource": "configmaps"}));
    assert_eq!((&request["name"], &request["namespace"]), (&json!("a"), &json!("default")));
    assert_eq!(request["userInfo"]["username"], "admin");
    assert_eq!((&request["dryRun"], &request["oldObject"]), (&json!(false), &Value::Null));
    assert_eq!(request["options"]["kind"], "CreateOptions");
    let update = &received[2].body["request"];
    assert_eq!(
        (&update["operation"], &update["options"]["kind"]),
        (&json!("UPDATE"), &json!("UpdateOptions"))
    );
    assert_eq!(update["oldObject"]["data"]["bad"], "no");
    assert_eq!(received[2].connections, 1, "the connection is used again");

    admin.delete(&format!("{VALIDATING}/deny"), &Value::Null).await.expect(200);
    admin.post(CONFIG_MAPS, &config_map("b", json!({}), json!({"bad": "yes"}))).await.expect(201);
    assert_eq!(backend.received().len(), 3, "a configuration that is gone asks nobody");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn match_conditions_decide_who_is_asked() {
    let server = TestServer::start().await;
    let admin = server.admin();
    let backend = Backend::start(|request| review(request, json!({"allowed": false}))).await;
    let conditions = json!({"matchConditions": [
        {"name": "skip", "expression": "!object.metadata.name.startsWith('skip')"},
        {"name": "typed", "expression": "object.metadata.name != 'broken' || object.data.missing == '1'"},
    ]});
    validate(&admin, "conditions", backend.client_config("/"), all_of("configmaps"), conditions).await;
    admin.post(CONFIG_MAPS, &config_map("skip-me", json!({}), json!({}))).await.expect(201);
    assert_eq!(backend.received().len(), 0);
    let asked = admin.post(CONFIG_MAPS, &config_map("asked", json!({}), json!({}))).await;
    assert!(asked.text.contains("denied the request"), "{}", asked.text);
    assert_eq!(backend.received().len(), 1);
    let broken = admin.post(CONFIG_MAPS, &config_map("broken", json!({}), json!({"a": "b"}))).await;
    assert!(broken.refuse(403, "Forbidden").contains("resulted in error: no such key: missing"));
    let wrong = json!({"matchConditions": [{"name": "wrong", "expression": "object.metadata.name"}, {"name": "bad", "expression": "x"}]});
    let object = configuration(
        "ValidatingWebhookConfiguration",
        "wrong",
        backend.client_config("/"),
        all_of("pods"),
        wrong,
    );
    let refused = admin.post(VALIDATING, &object).await.refuse(422, "Invalid");
    assert!(refused.contains("undeclared reference to 'x' (in container '')"), "{refused}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mutating_webhook_patches_and_defaults_are_applied_to_what_it_adds() {
    let server = TestServer::start().await;
    let admin = server.admin();
    make_default_account(&admin).await;
    let backend = Backend::start(|request| {
        let container = json!({"name": "added", "image": "sidecar:latest"});
        patch(request, json!([{"op": "add", "path": "/spec/initContainers", "value": [container]}]))
    })
    .await;
    mutate(&admin, "add", backend.client_config("/add"), all_of("pods"), json!({})).await;
    let made = admin.post(PODS, &pod("web")).await.expect(201);
    let added = &made["spec"]["initContainers"][0];
    assert_eq!(added["name"], "added");
    assert_eq!(added["imagePullPolicy"], "Always", "{added}");
    assert_eq!(added["terminationMessagePath"], "/dev/termination-log");
    let reviewed = &backend.received()[0].body["request"]["object"];
    assert_eq!(reviewed["spec"]["restartPolicy"], "Always", "webhooks see defaults");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn webhooks_are_asked_in_order_and_once_more_where_they_want_to_be() {
    let server = TestServer::start().await;
    let admin = server.admin();
    let backend = Backend::start(|request| {
        let data = &request.body["request"]["object"]["data"];
        let order = data["order"].as_str().unwrap_or_default();
        let name = request.path.trim_start_matches('/').to_owned();
        // Those that only look never change anything.
        if name == "looks" {
            return review(request, json!({"allowed": true}));
        }
        let order = json!(format!("{order}{name}"));
        patch(request, json!([{"op": "add", "path": "/data/order", "value": order}]))
    })
    .await;
    let rules = || all_of("configmaps");
    let again = json!({"reinvocationPolicy": "IfNeeded"});
    mutate(&admin, "c", backend.client_config("/c"), rules(), json!({})).await;
    mutate(&admin, "b", backend.client_config("/b"), rules(), again.clone()).await;
    mutate(&admin, "a-looks", backend.client_config("/looks"), rules(), again).await;
    let made = admin.post(CONFIG_MAPS, &config_map("a", json!({}), json!({"order": ""}))).await.expect(201);
    assert_eq!(made["data"]["order"], "bcb");
    let paths: Vec<String> = backend.received().into_iter().map(|request| request.path).collect();
    assert_eq!(paths, ["/looks", "/b", "/c", "/looks", "/b"]);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_that_cannot_be_asked_fails_as_its_policy_says() {
    let server = TestServer::start().await;
    let admin = server.admin();
    let (release, held) = mpsc::channel::<()>();
    let held = Mutex::new(held);
    let backend = Backend::start(move |request| {
        if request.path == "/slow" {
            // Until the test lets go.
            let _ = held.lock().unwrap().recv_timeout(DEADLINE);
        }
        match request.path.as_str() {
            "/broken" => (500, json!("broken")),
            "/foreign" => (200, json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": {"uid": "x", "allowed": true}})),
            _ => review(request, json!({"allowed": true})),
        }
    })
    .await;
    let stranger = json!({"url": format!("https://{}/x", backend.address)});
    let service = json!({"service": {"name": "nobody", "namespace": "default"}});
    let cases = [
        ("slow", backend.client_config("/slow"), "/slow?timeout=1s\": context deadline exceeded"),
        (
            "broken",
            backend.client_config("/broken"),
            "an error on the server (\"\\\"broken\\\"\") has prevented",
        ),
        (
            "foreign",
            backend.client_config("/foreign"),
            "received invalid webhook response: expected response.uid=",
        ),
        ("stranger", stranger, "failed to verify certificate"),
        ("service", service, "service \"nobody\" not found"),
    ];
    for (name, client, expected) in cases {
        let path = format!("{VALIDATING}/{name}");
        let more = json!({"timeoutSeconds": 1});
        validate(&admin, name, client, all_of("configmaps"), more).await;
        let began = Instant::now();
        let object = config_map(name, json!({}), json!({}));
        let message = admin.post(CONFIG_MAPS, &object).await.refuse(500, "InternalError");
        let begin = format!("Internal error occurred: failed calling webhook \"{name}.example.com\": ");
        assert!(message.starts_with(&begin) && message.contains(expected), "{message}");
        assert!(began.elapsed() < Duration::from_secs(3), "{name} waited {:?}", began.elapsed());
        let open = json!([{"op": "replace", "path": "/webhooks/0/failurePolicy", "value": "Ignore"}]);
        admin.patch(&path, "json", &open).await.expect(200);
        admin.post(CONFIG_MAPS, &object).await.expect(201);
        admin.delete(&path, &Value::Null).await.expect(200);
    }
    drop(release);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn selectors_operations_and_subresources_decide_who_is_asked() {
    let server = TestServer::start().await;
    let admin = server.admin();
    make_default_account(&admin).await;
    let backend = Backend::start(|request| {
        let status = json!({"reason": "Denied", "message": format!("no {}", request.body["request"]["operation"].as_str().unwrap())});
        review(request, json!({"allowed": false, "status": status}))
    })
    .await;
    let client = || backend.client_config("/deny");
    let labelled = json!({"objectSelector": {"matchLabels": {"guarded": "yes"}}});
    validate(&admin, "label", client(), json!([rule(&["CREATE", "UPDATE"], "", "configmaps")]), labelled)
        .await;
    let mut made = admin.post(CONFIG_MAPS, &config_map("a", json!({}), json!({}))).await.expect(201);
    admin
        .post(CONFIG_MAPS, &config_map("b", json!({"guarded": "yes"}), json!({})))
        .await
        .refuse(400, "Denied");
    made["metadata"]["labels"] = json!({"guarded": "yes"});
    let path = format!("{CONFIG_MAPS}/a");
    admin.put(&path, &made).await.refuse(400, "Denied");
    admin.delete(&path, &Value::Null).await.expect(200);

    let in_namespace = json!({"namespaceSelector": {"matchLabels": {"team": "x"}}});
    validate(&admin, "space", client(), all_of("secrets"), in_namespace.clone()).await;
    validate(&admin, "spaces", client(), all_of("namespaces"), in_namespace).await;
    let namespace = |name: &str, labels: Value| json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}});
    admin.post("/api/v1/namespaces", &namespace("x", json!({"team": "x"}))).await.refuse(400, "Denied");
    admin.post("/api/v1/namespaces", &namespace("y", json!({"team": "y"}))).await.expect(201);
    let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}});
    admin.post("/api/v1/namespaces/y/secrets", &secret).await.expect(201);
    let turn = json!({"metadata": {"labels": {"team": "x"}}});
    admin.patch("/api/v1/namespaces/y", "merge", &turn).await.refuse(400, "Denied");

    let connects = json!([rule(&["CONNECT"], "", "pods/attach"), rule(&["CREATE"], "", "pods/binding")]);
    validate(&admin, "connect", client(), connects, json!({})).await;
    admin.post(PODS, &pod("web")).await.expect(201);
    let attach = admin.get(&format!("{PODS}/web/attach?container=c&stdin=true")).await;
    assert!(attach.text.contains("denied the request: no CONNECT"), "{}", attach.text);
    let binding = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "web"}, "target": {"kind": "Node", "name": "n"}});
    let bound = admin.post(&format!("{PODS}/web/binding"), &binding).await;
    assert!(bound.text.contains("denied the request: no CREATE"), "{}", bound.text);
    let received = backend.received();
    let stream = &received[received.len() - 2].body["request"];
    assert_eq!(
        stream["object"],
        json!({"kind": "PodAttachOptions", "apiVersion": "v1", "stdin": true, "container": "c"})
    );
    assert_eq!(
        (&stream["subResource"], &stream["kind"]["kind"]),
        (&json!("attach"), &json!("PodAttachOptions"))
    );

    let deletes = json!([rule(&["DELETE"], "", "pods")]);
    validate(&admin, "delete", client(), deletes, json!({})).await;
    let kept = admin.delete(&format!("{PODS}/web"), &Value::Null).await;
    assert!(kept.text.contains("denied the request: no DELETE"), "{}", kept.text);
    let all = admin.delete(PODS, &Value::Null).await;
    assert!(all.text.contains("denied the request: no DELETE"), "{}", all.text);
    let last = backend.received().pop().unwrap().body;
    let deletion = &last["request"];
    assert_eq!(
        (&deletion["object"], &deletion["oldObject"]["metadata"]["name"]),
        (&Value::Null, &json!("web"))
    );
    assert_eq!((&deletion["name"], &deletion["options"]["kind"]), (&Value::Null, &json!("DeleteOptions")));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_of_a_scale_is_admitted_as_a_scale() {
    let server = TestServer::start().await;
    let admin = server.admin();
    let backend = Backend::start(|request| match request.path.as_str() {
        "/cap" => patch(request, json!([{"op": "replace", "path": "/spec/replicas", "value": 5}])),
        _ => {
            let few = request.body["request"]["object"]["spec"]["replicas"].as_i64().unwrap() < 6;
            review(request, json!({"allowed": few, "status": {"message": "too many", "code": 403}}))
        }
    })
    .await;
    let path = "/apis/apps/v1/namespaces/default/deployments";
    let deployment = json!({"metadata": {"name": "d"}, "spec": {"selector": {"matchLabels": {"a": "b"}}, "template": {
        "metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "nginx"}]}}}});
    admin.post(path, &deployment).await.expect(201);
    let scale = format!("{path}/d/scale");
    let of_scales = json!([rule(&["UPDATE"], "apps", "deployments/scale")]);
    let of_parents = json!([rule(&["UPDATE"], "apps", "deployments")]);
    validate(&admin, "few", backend.client_config("/few"), of_scales.clone(), json!({})).await;
    validate(&admin, "parents", backend.client_config("/parents"), of_parents, json!({})).await;
    let asked = admin.patch(&scale, "merge", &json!({"spec": {"replicas": 7}})).await;
    assert!(asked.text.contains("denied the request: too many"), "{}", asked.text);
    mutate(&admin, "cap", backend.client_config("/cap"), of_scales, json!({})).await;
    let capped = admin.patch(&scale, "merge", &json!({"spec": {"replicas": 7}})).await.expect(200);
    assert_eq!((&capped["kind"], &capped["spec"]["replicas"]), (&json!("Scale"), &json!(5)));
    let mut whole = admin.get(&scale).await.expect(200);
    whole["spec"]["replicas"] = json!(9);
    admin.put(&scale, &whole).await.expect(200);
    assert_eq!(admin.get(&format!("{path}/d")).await.expect(200)["spec"]["replicas"], 5);
    let received = backend.received();
    assert!(received.iter().all(|request| request.path != "/parents"), "the parent is not what is written");
    let request = &received[0].body["request"];
    assert_eq!(request["kind"], json!({"group": "autoscaling", "version": "v1", "kind": "Scale"}));
    assert_eq!(request["resource"]["resource"], "deployments");
    assert_eq!((&request["subResource"], &request["name"]), (&json!("scale"), &json!("d")));
    assert_eq!(
        (&request["object"]["kind"], &request["oldObject"]["kind"]),
        (&json!("Scale"), &json!("Scale"))
    );
    assert_eq!(
        (&request["object"]["spec"]["replicas"], &request["oldObject"]["spec"]["replicas"]),
        (&json!(7), &json!(1))
    );
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_equivalent_version_is_shown_in_the_version_that_the_rule_names() {
    let server = TestServer::start().await;
    let admin = server.admin();
    let backend = Backend::start(|request| {
        patch(
            request,
            json!([{"op": "replace", "path": "/spec/targetCPUUtilizationPercentage", "value": 70}]),
        )
    })
    .await;
    let rules = json!([{
        "operations": ["CREATE"], "apiGroups": ["autoscaling"], "apiVersions": ["v1"],
        "resources": ["horizontalpodautoscalers"],
    }]);
    mutate(&admin, "hpa", backend.client_config("/hpa"), rules.clone(), json!({})).await;
    let path = "/apis/autoscaling/v2/namespaces/default/horizontalpodautoscalers";
    let target = json!({"type": "Utilization", "averageUtilization": 50});
    let autoscaler = |name: &str| {
        json!({
            "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": {"name": name},
            "spec": {
                "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"}, "maxReplicas": 3,
                "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": target}}],
            },
        })
    };
    let made = admin.post(path, &autoscaler("a")).await.expect(201);
    assert_eq!(made["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"], 70);
    let request = &backend.received()[0].body["request"];
    assert_eq!(
        (&request["kind"]["version"], &request["requestKind"]["version"]),
        (&json!("v1"), &json!("v2"))
    );
    assert_eq!(request["object"]["apiVersion"], "autoscaling/v1");
    let exact = json!([{"op": "replace", "path": "/webhooks/0/matchPolicy", "value": "Exact"}]);
    admin.patch(&format!("{MUTATING}/hpa"), "json", &exact).await.expect(200);
    let made = admin.post(path, &autoscaler("b")).await.expect(201);
    assert_eq!(made["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"], 50);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn configurations_are_checked_and_never_sent_to_webhooks_themselves() {
    let server = TestServer::start().await;
    let admin = server.admin();
    let backend = Backend::start(|request| review(request, json!({"allowed": false}))).await;
    let everything = json!([rule(&["*"], "admissionregistration.k8s.io", "*/*")]);
    validate(&admin, "all", backend.client_config("/all"), everything, json!({})).await;
    let bad = configuration(
        "MutatingWebhookConfiguration",
        "bad",
        json!({}),
        all_of("pods"),
        json!({"sideEffects": "Some"}),
    );
    let message = admin.post(MUTATING, &bad).await.refuse(422, "Invalid");
    assert!(
        message.contains("webhooks[0].clientConfig: Required value: exactly one of url or service"),
        "{message}"
    );
    assert!(message.contains("webhooks[0].sideEffects: Unsupported value: \"Some\""), "{message}");
    admin.delete(&format!("{VALIDATING}/all"), &Value::Null).await.expect(200);
    assert!(backend.received().is_empty());
    let resources = admin.get(GROUP).await.expect(200);
    assert!(
        resources["resources"]
            .as_array()
            .unwrap()
            .iter()
            .any(|r| r["name"] == "mutatingwebhookconfigurations")
    );
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_reaches_only_webhooks_without_side_effects() {
    let server = TestServer::start().await;
    let admin = server.admin();
    let backend = Backend::start(|request| review(request, json!({"allowed": true}))).await;
    validate(&admin, "dry", backend.client_config("/dry"), all_of("configmaps"), json!({})).await;
    let path = format!("{CONFIG_MAPS}?dryRun=All&fieldManager=me");
    admin.post(&path, &config_map("a", json!({}), json!({}))).await.expect(201);
    let request = &backend.received()[0].body["request"];
    assert_eq!(request["dryRun"], true);
    assert_eq!(
        (&request["options"]["dryRun"], &request["options"]["fieldManager"]),
        (&json!(["All"]), &json!("me"))
    );
    server.stop().await;
}
