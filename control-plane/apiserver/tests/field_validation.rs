//! Unknown and duplicate fields, in every form of a write, with the texts that kubectl and client-go show.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use serde_json::{Value, json};
use support::{Answer, Client, TestServer};

const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";

const JSON: &str = r#"{"apiVersion":"apps/v1","kind":"Deployment",
  "metadata":{"name":"dupename","name":"NAME","unknownMeta":"metaVal","labels":{"app":"nginx"}},
  "spec":{"unknown1":"val1","unknownDupe":"valDupe","unknownDupe":"valDupe2","paused":true,"paused":false,
    "selector":{"matchLabels":{"app":"nginx"}},
    "template":{"metadata":{"labels":{"app":"nginx"}},
      "spec":{"containers":[{"name":"nginx","image":"nginx:latest","unknownNested":"val1",
        "imagePullPolicy":"Always","imagePullPolicy":"Never"}]}}}}"#;

const YAML: &str = "apiVersion: apps/v1
kind: Deployment
metadata:
  name: dupename
  name: NAME
  unknownMeta: metaVal
  labels:
    app: nginx
spec:
  unknown1: val1
  unknownDupe: valDupe
  unknownDupe: valDupe2
  paused: true
  paused: false
  selector:
    matchLabels:
      app: nginx
  template:
    metadata:
      labels:
        app: nginx
    spec:
      containers:
      - name: nginx
        image: nginx:latest
        unknownNested: val1
        imagePullPolicy: Always
        imagePullPolicy: Never
";

/// What is wrong with the JSON, in its order.
const JSON_WRONG: [&str; 7] = [
    "duplicate field \"metadata.name\"",
    "unknown field \"metadata.unknownMeta\"",
    "unknown field \"spec.unknown1\"",
    "unknown field \"spec.unknownDupe\"",
    "duplicate field \"spec.paused\"",
    "unknown field \"spec.template.spec.containers[0].unknownNested\"",
    "duplicate field \"spec.template.spec.containers[0].imagePullPolicy\"",
];

const YAML_TWICE: [&str; 4] = [
    "line 5: key \"name\" already set in map",
    "line 12: key \"unknownDupe\" already set in map",
    "line 14: key \"paused\" already set in map",
    "line 28: key \"imagePullPolicy\" already set in map",
];

const YAML_UNKNOWN: [&str; 4] = [
    "unknown field \"metadata.unknownMeta\"",
    "unknown field \"spec.template.spec.containers[0].unknownNested\"",
    "unknown field \"spec.unknown1\"",
    "unknown field \"spec.unknownDupe\"",
];

async fn post(client: &Client, body: &str, kind: &str, name: &str, validation: &str) -> Answer {
    let headers = [("content-type", kind)];
    let path = format!("{DEPLOYMENTS}?{validation}");
    client.send("POST", &path, &headers, body.replace("NAME", name).into()).await
}

/// The texts of warnings without their code and quotes.
fn warned(answer: &Answer) -> Vec<String> {
    let text = |warning: String| {
        let inner =
            warning.strip_prefix("299 - \"").and_then(|rest| rest.strip_suffix('"')).unwrap().to_owned();
        inner.replace("\\\"", "\"")
    };
    answer.warnings().into_iter().map(text).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_create_in_json_is_judged_in_the_order_of_the_document() {
    let server = TestServer::start().await;
    let admin = server.admin();
    let kind = "application/json";
    let refused = post(&admin, JSON, kind, "strict", "fieldValidation=Strict").await;
    assert_eq!(
        refused.refuse(400, "BadRequest"),
        format!(
            "Deployment in version \"v1\" cannot be handled as a Deployment: strict decoding error: {}",
            JSON_WRONG.join(", ")
        )
    );
    for (name, validation) in [("warn", "fieldValidation=Warn"), ("default", "")] {
        let warns = post(&admin, JSON, kind, name, validation).await;
        assert_eq!(warned(&warns), JSON_WRONG);
        assert_eq!(
            warns.expect(201)["spec"]["template"]["spec"]["containers"][0]["imagePullPolicy"],
            "Never"
        );
    }
    let ignores = post(&admin, JSON, kind, "ignore", "fieldValidation=Ignore").await;
    assert_eq!((ignores.code, ignores.warnings()), (201, Vec::new()));
    let other = post(&admin, JSON, kind, "x", "fieldValidation=Sometimes").await.refuse(422, "Invalid");
    assert!(other.contains("fieldValidation: Unsupported value: \"Sometimes\""), "{other}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_create_in_yaml_names_lines() {
    let server = TestServer::start().await;
    let admin = server.admin();
    let kind = "application/yaml";
    let refused =
        post(&admin, YAML, kind, "strict", "fieldValidation=Strict").await.refuse(400, "BadRequest");
    let expected = format!(
        "strict decoding error: yaml: unmarshal errors:\n  {}, {}",
        YAML_TWICE.join("\n  "),
        YAML_UNKNOWN.join(", ")
    );
    assert!(refused.ends_with(&expected), "{refused}");
    let warns = post(&admin, YAML, kind, "warn", "").await;
    let all: Vec<&str> = YAML_TWICE.into_iter().chain(YAML_UNKNOWN).collect();
    assert_eq!(warned(&warns), all);
    warns.expect(201);
    let ignores = post(&admin, YAML, kind, "ignore", "fieldValidation=Ignore").await;
    assert_eq!((ignores.code, ignores.warnings()), (201, Vec::new()));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn patches_are_judged_with_what_they_make() {
    let server = TestServer::start().await;
    let admin = server.admin();
    post(&admin, JSON, "application/json", "d", "fieldValidation=Ignore").await.expect(201);
    let send = async |kind: &str, body: &str, validation: &str| {
        let content_type = format!("application/{kind}-patch+json");
        let path = format!("{DEPLOYMENTS}/d?fieldValidation={validation}");
        admin.send("PATCH", &path, &[("content-type", &content_type)], body.to_owned().into()).await
    };
    let merge =
        r#"{"spec":{"unknown1":"v","unknownDupe":"a","unknownDupe":"b","paused":true,"paused":false}}"#;
    let wrong = [
        "duplicate field \"spec.unknownDupe\"",
        "duplicate field \"spec.paused\"",
        "unknown field \"spec.unknown1\"",
        "unknown field \"spec.unknownDupe\"",
    ];
    for kind in ["merge", "strategic-merge"] {
        let text = send(kind, merge, "Strict").await.refuse(422, "Invalid");
        assert!(text.contains(&format!("strict decoding error: {}", wrong.join(", "))), "{kind}: {text}");
        let warns = send(kind, merge, "Warn").await;
        assert_eq!(warned(&warns), wrong, "{kind}");
        warns.expect(200);
        assert_eq!(send(kind, merge, "Ignore").await.warnings(), Vec::<String>::new());
    }
    let json_patch = r#"[{"op":"add","path":"/spec/unknown1","value":"v","foo":"bar"},
        {"op":"add","path":"/spec/x","path":"/spec/unknown3","value":1}]"#;
    let wrong = [
        "json patch unknown field \"[0].foo\"",
        "json patch duplicate field \"[1].path\"",
        "unknown field \"spec.unknown1\"",
        "unknown field \"spec.unknown3\"",
    ];
    let text = send("json", json_patch, "Strict").await.refuse(422, "Invalid");
    assert!(text.contains(&format!("strict decoding error: {}", wrong.join(", "))), "{text}");
    assert_eq!(warned(&send("json", json_patch, "Warn").await), wrong);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_put_is_judged_as_a_create_is() {
    let server = TestServer::start().await;
    let admin = server.admin();
    post(&admin, JSON, "application/json", "d", "fieldValidation=Ignore").await.expect(201);
    let put = async |body: &Value, validation: &str| {
        let path = format!("{DEPLOYMENTS}/d?fieldValidation={validation}");
        admin.put(&path, body).await
    };
    let mut stored = admin.get(&format!("{DEPLOYMENTS}/d")).await.expect(200);
    stored["spec"]["template"]["spec"]["volumes"] = json!([{"name": "v", "emptyDir": {"bogus": 1}}]);
    let text = put(&stored, "Strict").await.refuse(400, "BadRequest");
    let field = "unknown field \"spec.template.spec.volumes[0].emptyDir.bogus\"";
    assert!(text.ends_with(&format!("strict decoding error: {field}")), "{text}");
    let warns = put(&stored, "Warn").await;
    assert_eq!(warned(&warns), [field]);
    assert_eq!(warns.expect(200)["spec"]["template"]["spec"]["volumes"][0]["emptyDir"], json!({}));
    server.stop().await;
}
