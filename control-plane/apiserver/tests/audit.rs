//! The audit log of a real server.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::{fs, path::Path, time::Instant};

use apiserver::{audit, config::Security};
use serde_json::{Value, json};
use support::{CONFIG_MAPS, DEADLINE, TestServer, config_map};
use tempfile::TempDir;

const POLICY: &str = "
apiVersion: audit.k8s.io/v1
kind: Policy
omitManagedFields: true
omitStages: [RequestReceived]
rules:
- {level: RequestResponse, resources: [{group: '', resources: [configmaps]}], verbs: [create]}
- {level: Metadata, resources: [{group: '', resources: [configmaps]}]}
- {level: None}
";

/// The events of an audit ID, once there are so many.
async fn events(log: &Path, id: &str, count: usize) -> Vec<Value> {
    let until = Instant::now() + DEADLINE;
    loop {
        let text = fs::read_to_string(log).unwrap_or_default();
        let all = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let found: Vec<Value> = all.filter(|event| event["auditID"] == id).collect();
        if found.len() >= count {
            return found;
        }
        assert!(Instant::now() < until, "{id} stays {found:?} of {text}");
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_policy_says_what_is_logged_of_a_request() {
    let folder = TempDir::new().unwrap();
    let files = TempDir::new().unwrap();
    let (policy, log) = (files.path().join("policy.yaml"), files.path().join("log/audit.log"));
    fs::write(&policy, POLICY).unwrap();
    let audit =
        audit::Config { policy_file: Some(policy), log_path: Some(log.clone()), ..audit::Config::default() };
    let security = Security { audit, ..Security::default() };
    let server = TestServer::start_with(folder, security).await;
    let admin = server.admin();
    let headers = [("content-type", "application/json"), ("audit-id", "mine"), ("user-agent", "test/1")];
    let body = config_map("a", json!({}), json!({"k": "1"})).to_string().into_bytes();
    let answer = admin.send("POST", CONFIG_MAPS, &headers, body).await;
    assert_eq!(answer.headers["audit-id"], "mine");
    answer.expect(201);
    let made = events(&log, "mine", 1).await;
    let [event] = made.as_slice() else { panic!("{made:?}") };
    assert_eq!((&event["stage"], &event["level"]), (&json!("ResponseComplete"), &json!("RequestResponse")));
    assert_eq!((&event["verb"], &event["userAgent"]), (&json!("create"), &json!("test/1")));
    assert_eq!(event["user"]["username"], "admin");
    assert_eq!(
        event["objectRef"],
        json!({"resource": "configmaps", "namespace": "default", "apiVersion": "v1"})
    );
    assert_eq!(event["responseStatus"], json!({"metadata": {}, "code": 201}));
    assert_eq!(event["requestObject"]["data"]["k"], "1");
    assert_eq!(event["requestObject"]["metadata"].get("uid"), None);
    assert!(event["responseObject"]["metadata"]["uid"].is_string());
    assert_eq!(event["responseObject"]["metadata"].get("managedFields"), None);
    assert_eq!(event["annotations"]["authorization.k8s.io/decision"], "allow");
    assert_eq!(event["sourceIPs"], json!(["127.0.0.1"]));

    let stranger = server.client("eve", "nobody");
    let refused = stranger.get(&format!("{CONFIG_MAPS}/a")).await;
    let id = refused.headers["audit-id"].to_str().unwrap().to_owned();
    refused.refuse(403, "Forbidden");
    let event = events(&log, &id, 1).await.remove(0);
    assert_eq!((&event["level"], &event["user"]["username"]), (&json!("Metadata"), &json!("eve")));
    assert_eq!(
        (&event["responseStatus"]["code"], &event["responseStatus"]["reason"]),
        (&json!(403), &json!("Forbidden"))
    );
    assert_eq!(event["annotations"]["authorization.k8s.io/decision"], "forbid");
    assert_eq!(event.get("responseObject"), None);

    let watch =
        admin.watch_as(&format!("{CONFIG_MAPS}?watch=1&timeoutSeconds=1"), &[("audit-id", "watch")]).await;
    drop(watch);
    let stages: Vec<Value> =
        events(&log, "watch", 2).await.iter().map(|event| event["stage"].clone()).collect();
    assert_eq!(stages, ["ResponseStarted", "ResponseComplete"]);
    admin
        .send("GET", "/api/v1/namespaces/default/secrets", &[("audit-id", "unseen")], Vec::new())
        .await
        .expect(200);
    assert!(!fs::read_to_string(&log).unwrap().contains("unseen"));
    server.stop().await;
}
