//! What clients may ask of the server has bounds, and whoever exceeds one is told which.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::{CONFIG_MAPS, Client, TestServer, config_map};

const JSON: &str = "application/json";
const YAML: &str = "application/yaml";
const APPLY: &str = "application/apply-patch+yaml";
const POLICIES: &str = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies";
const BINDINGS: &str = "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings";
/// Longer than any refusal may take on a busy machine, much shorter than the work that is refused.
const PROMPT: Duration = Duration::from_secs(10);

async fn send(
    client: &Client,
    method: &str,
    path: &str,
    kind: &str,
    body: impl Into<Vec<u8>>,
) -> support::Answer {
    client.send(method, path, &[("content-type", kind)], body.into()).await
}

/// Anchors that name each other, so that few bytes are many values.
fn bomb() -> String {
    let mut text =
        "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: a\n  annotations:\n    a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
            .to_owned();
    for i in 1..12 {
        let aliases = vec![format!("*a{}", i - 1); 10].join(", ");
        text.push_str(&format!("    a{i}: &a{i} [{aliases}]\n"));
    }
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_have_a_size_whatever_the_verb() {
    let server = TestServer::start().await;
    let admin = server.admin();
    admin.post(CONFIG_MAPS, &config_map("a", json!({}), json!({}))).await.expect(201);
    let path = format!("{CONFIG_MAPS}/a");
    let large = config_map("a", json!({}), json!({"k": "x".repeat(3 * 1024 * 1024)})).to_string();
    let applied = format!("{path}?fieldManager=m");
    let review = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    for (method, path, kind) in [
        ("POST", CONFIG_MAPS, JSON),
        ("POST", CONFIG_MAPS, YAML),
        ("POST", CONFIG_MAPS, "application/vnd.kubernetes.protobuf"),
        ("POST", review, JSON),
        ("PUT", &path, JSON),
        ("PATCH", &path, "application/json-patch+json"),
        ("PATCH", &path, "application/merge-patch+json"),
        ("PATCH", &path, "application/strategic-merge-patch+json"),
        ("PATCH", &applied, APPLY),
        ("DELETE", &path, JSON),
    ] {
        let answer = send(&admin, method, path, kind, large.clone()).await;
        assert_eq!(answer.code, 413, "{method} {path} {kind}: {}", answer.text);
        assert_eq!(
            answer.refuse(413, "RequestEntityTooLarge"),
            "Request entity too large: limit is 3145728",
            "{method} {path} {kind}"
        );
    }
    admin.get(&path).await.expect(200);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn documents_have_a_depth_and_aliases_an_end() {
    let server = TestServer::start().await;
    let admin = server.admin();
    admin.post(CONFIG_MAPS, &config_map("a", json!({}), json!({}))).await.expect(201);
    let path = format!("{CONFIG_MAPS}/a");
    let applied = format!("{path}?fieldManager=m");
    let lists = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    let maps = |depth: usize| format!("{}1{}", "{\"a\":".repeat(depth), "}".repeat(depth));
    let within = |deep: &str| format!("{{\"metadata\":{{\"name\":\"a\",\"annotations\":{deep}}}}}");
    let packed = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 3].repeat(1000);
    let cases: Vec<(&str, &str, &str, Vec<u8>)> = vec![
        ("POST", CONFIG_MAPS, JSON, within(&lists(100_000)).into()),
        ("POST", CONFIG_MAPS, JSON, within(&maps(100_000)).into()),
        ("POST", CONFIG_MAPS, YAML, within(&lists(100_000)).into()),
        ("POST", CONFIG_MAPS, YAML, within(&maps(20_000)).into()),
        ("POST", CONFIG_MAPS, YAML, bomb().into()),
        ("POST", CONFIG_MAPS, JSON, packed),
        ("PUT", &path, JSON, within(&maps(100_000)).into()),
        ("PATCH", &path, "application/merge-patch+json", within(&maps(100_000)).into()),
        ("PATCH", &path, "application/json-patch+json", lists(100_000).into()),
        ("PATCH", &applied, APPLY, bomb().into()),
        ("PATCH", &applied, APPLY, within(&lists(100_000)).into()),
    ];
    for (method, path, kind, body) in cases {
        let began = Instant::now();
        let answer = send(&admin, method, path, kind, body).await;
        let (code, text) = (answer.code, answer.text.clone());
        let what = format!("{method} {path} {kind}: {code} {}", &text[..text.len().min(300)]);
        assert_eq!((code, answer.body["kind"].as_str()), (400, Some("Status")), "{what}");
        assert!(text.len() < 4096, "the answer does not repeat the question: {what}");
        assert!(began.elapsed() < PROMPT, "{what} after {:?}", began.elapsed());
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn patches_neither_copy_nor_work_without_end() {
    let server = TestServer::start().await;
    let admin = server.admin();
    let made = config_map("a", json!({}), json!({"k": "x".repeat(10_000)}));
    admin.post(CONFIG_MAPS, &made).await.expect(201);
    let path = format!("{CONFIG_MAPS}/a");
    let many = vec![json!({"op": "test", "path": "/kind", "value": "ConfigMap"}); 10_001];
    let message = admin.patch(&path, "json", &many.into()).await.refuse(413, "RequestEntityTooLarge");
    assert!(
        message.ends_with("The allowed maximum operations in a JSON patch is 10000, got 10001"),
        "{message}"
    );
    let copies: Vec<Value> = (0..9000)
        .map(|i| json!({"op": "copy", "from": "/data", "path": format!("/metadata/annotations{i}")}))
        .collect();
    let message = admin.patch(&path, "json", &copies.into()).await.refuse(413, "RequestEntityTooLarge");
    assert!(message.contains("copy operations of the JSON patch add more than 3145728 bytes"), "{message}");
    let doubling: Vec<Value> =
        (0..64).map(|i| json!({"op": "copy", "from": "", "path": format!("/data/k{i}")})).collect();
    let answer = admin.patch(&path, "json", &doubling.into()).await;
    assert_eq!(answer.code, 413, "{}", &answer.text[..answer.text.len().min(300)]);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn heads_of_requests_have_a_size() {
    let server = TestServer::start().await;
    let admin = server.admin();
    let name = |i: usize| format!("x-header-{i}");
    let names: Vec<String> = (0..300).map(name).collect();
    let many: Vec<(&str, &str)> = names.iter().map(|name| (name.as_str(), "x")).collect();
    assert_eq!(admin.send("GET", "/api", &many, Vec::new()).await.code, 431);
    let selector = "a".repeat(60_000);
    let message =
        admin.get(&format!("{CONFIG_MAPS}?labelSelector={selector}")).await.refuse(400, "BadRequest");
    assert!(message.contains("no more than 63"), "{}", &message[..message.len().min(300)]);
    let fits = "a%2C".repeat(2000) + "b";
    let answer = admin.get(&format!("{CONFIG_MAPS}?labelSelector={fits}")).await;
    assert_eq!(answer.code, 200, "{}", answer.text);
    let manager = "m".repeat(129);
    let path = format!("{CONFIG_MAPS}?fieldManager={manager}");
    let message = admin.post(&path, &config_map("a", json!({}), json!({}))).await.refuse(422, "Invalid");
    assert!(message.contains("fieldManager: Too long: may not be more than 128 bytes"), "{message}");
    let annotated =
        |bytes: usize| json!({"metadata": {"name": "b", "annotations": {"a": "x".repeat(bytes)}}});
    let message = admin.post(CONFIG_MAPS, &annotated(256 * 1024)).await.refuse(422, "Invalid");
    assert!(
        message.contains("metadata.annotations: Too long: may not be more than 262144 bytes"),
        "{message}"
    );
    admin.post(CONFIG_MAPS, &annotated(200 * 1024)).await.expect(201);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn expressions_have_a_cost() {
    let server = TestServer::start().await;
    let admin = server.admin();
    let list = json!({"type": "array", "items": {"type": "string"}});
    let costly = json!([{"rule": "self.list.all(a, self.list.all(b, self.list.all(c, a + b != c)))"}]);
    let schema = json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {"list": list},
        "x-kubernetes-validations": costly}}});
    let definition = json!({"metadata": {"name": "widgets.example.com"}, "spec": {
        "group": "example.com", "scope": "Namespaced", "names": {"plural": "widgets", "kind": "Widget"},
        "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}}]}});
    let path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
    let message = admin.post(path, &definition).await.refuse(422, "Invalid");
    assert!(message.contains("estimated rule cost exceeds budget by factor of more than 100x"), "{message}");

    let expression = "object.data.all(a, object.data.all(b, object.data.all(c, a + b + c != '')))";
    let policy = json!({"metadata": {"name": "costly"}, "spec": {
        "matchConstraints": {"resourceRules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"],
            "resources": ["configmaps"]}]},
        "validations": [{"expression": expression}]}});
    admin.post(POLICIES, &policy).await.expect(201);
    let binding = json!({"metadata": {"name": "costly"},
        "spec": {"policyName": "costly", "validationActions": ["Deny"]}});
    admin.post(BINDINGS, &binding).await.expect(201);
    let data = |count: usize| Value::from_iter((0..count).map(|i| (format!("k{i}"), json!("v"))));
    admin.post(CONFIG_MAPS, &config_map("few", json!({}), data(5))).await.expect(201);
    let began = Instant::now();
    let message =
        admin.post(CONFIG_MAPS, &config_map("many", json!({}), data(1000))).await.refuse(422, "Invalid");
    assert!(message.contains("actual cost limit exceeded"), "{message}");
    assert!(began.elapsed() < PROMPT, "{:?}", began.elapsed());
    server.stop().await;
}
