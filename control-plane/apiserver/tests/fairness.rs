//! Pod security, priority and fairness and the server's limits, as clients see them.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::time::Duration;

use apiserver::config::Security;
use serde_json::{Value, json};
use support::{DEADLINE, PODS, TestServer, make_default_account, pod};
use tempfile::TempDir;

const FLOW_CONTROL: &str = "/apis/flowcontrol.apiserver.k8s.io/v1";

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_enforces_warns_and_tells_of_its_pods() {
    let server = TestServer::start().await;
    let admin = server.admin();
    make_default_account(&admin).await;
    let mut bad = pod("bad");
    bad["spec"]["hostNetwork"] = json!(true);
    admin.post(PODS, &bad).await.expect(201);
    let label = |level: &str| json!({"metadata": {"labels": {"pod-security.kubernetes.io/enforce": level}}});
    let namespace = "/api/v1/namespaces/default";
    let answer = admin.patch(namespace, "merge", &label("baseline")).await;
    assert_eq!(
        answer.warnings(),
        [
            "299 - \"existing pods in namespace \\\"default\\\" violate the new PodSecurity enforce level \
             \\\"baseline:latest\\\"\"",
            "299 - \"bad: host namespaces\"",
        ]
    );
    answer.expect(200);
    bad["metadata"]["name"] = json!("worse");
    let message = admin.post(PODS, &bad).await.refuse(403, "Forbidden");
    assert!(
        message.starts_with(
            "pods \"worse\" is forbidden: violates PodSecurity \"baseline:latest\": host namespaces (hostNetwork=true)"
        ),
        "{message}"
    );
    let template = json!({"metadata": {"labels": {"a": "b"}}, "spec": bad["spec"]});
    let deployment = json!({"metadata": {"name": "d"},
        "spec": {"selector": {"matchLabels": {"a": "b"}}, "template": template}});
    let answer = admin.post("/apis/apps/v1/namespaces/default/deployments", &deployment).await;
    assert!(answer.warnings()[0].contains("would violate PodSecurity"), "{:?}", answer.warnings());
    answer.expect(201);
    let message = admin.patch(namespace, "merge", &label("strict")).await.refuse(422, "Invalid");
    assert!(message.contains("must be one of privileged, baseline, restricted"), "{message}");
    server.stop().await;
}

fn schema(name: &str, level: &str, user: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {
        "priorityLevelConfiguration": {"name": level}, "matchingPrecedence": 1000,
        "distinguisherMethod": {"type": "ByUser"},
        "rules": [{"subjects": [{"kind": "User", "user": {"name": user}}],
            "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}]}]}})
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_say_how_they_were_classified() {
    let server = TestServer::start().await;
    let admin = server.admin();
    let level = json!({"metadata": {"name": "l"}, "spec": {"type": "Limited",
        "limited": {"nominalConcurrencyShares": 1, "limitResponse": {"type": "Reject"}}}});
    let schemas = format!("{FLOW_CONTROL}/flowschemas");
    let schema = admin.post(&schemas, &schema("s", "l", "noxu")).await.expect(201);
    let dangling = |wanted: &'static str| {
        let (admin, path) = (admin.clone(), format!("{schemas}/s"));
        async move {
            let deadline = tokio::time::Instant::now() + DEADLINE;
            loop {
                let stored = admin.get(&path).await.expect(200);
                let condition = stored["status"]["conditions"][0].clone();
                if condition["status"] == wanted {
                    return condition;
                }
                assert!(tokio::time::Instant::now() < deadline, "{stored}");
                tokio::task::yield_now().await;
            }
        }
    };
    assert_eq!(dangling("True").await["reason"], "NotFound");
    let level = admin.post(&format!("{FLOW_CONTROL}/prioritylevelconfigurations"), &level).await.expect(201);
    assert_eq!(dangling("False").await["reason"], "Found");
    let uids = |headers: &http::HeaderMap| {
        let text = |name: &str| headers[name].to_str().unwrap().to_owned();
        (text("x-kubernetes-pf-flowschema-uid"), text("x-kubernetes-pf-prioritylevel-uid"))
    };
    let wanted = [&schema, &level].map(|object| object["metadata"]["uid"].as_str().unwrap().to_owned());
    let noxu = server.client("noxu", "").get("/version").await;
    assert_eq!(uids(&noxu.headers), (wanted[0].clone(), wanted[1].clone()));
    let foo = server.client("foo", "").get("/version").await;
    assert!(!uids(&foo.headers).0.is_empty() && uids(&foo.headers).0 != wanted[0]);
    let metrics = admin.get("/metrics").await.text;
    assert!(
        metrics.contains("apiserver_flowcontrol_nominal_limit_seats{priority_level=\"l\"} "),
        "{metrics}"
    );
    let dump = admin.get("/debug/api_priority_and_fairness/dump_priority_levels").await.text;
    assert!(dump.contains("workload-low, "), "{dump}");

    let catch_all = format!("{FLOW_CONTROL}/prioritylevelconfigurations/catch-all");
    let change = json!({"spec": {"limited": {"nominalConcurrencyShares": 7}}});
    let message = admin.patch(&catch_all, "merge", &change).await.refuse(422, "Invalid");
    assert!(message.contains("spec of 'catch-all' must equal the fixed value"), "{message}");
    admin.delete(&catch_all, &Value::Null).await.expect(200);
    let deadline = tokio::time::Instant::now() + DEADLINE;
    while admin.get(&catch_all).await.code != 200 {
        assert!(tokio::time::Instant::now() < deadline, "what is mandatory comes back");
        tokio::task::yield_now().await;
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_level_answers_429_and_others_go_on() {
    let security =
        Security { max_requests_inflight: 30, max_mutating_requests_inflight: 0, ..Security::default() };
    let server = TestServer::start_with(TempDir::new().unwrap(), security).await;
    let admin = server.admin();
    make_default_account(&admin).await;
    let level = json!({"metadata": {"name": "l"}, "spec": {"type": "Limited",
        "limited": {"nominalConcurrencyShares": 0, "limitResponse": {"type": "Reject"}}}});
    admin.post(&format!("{FLOW_CONTROL}/prioritylevelconfigurations"), &level).await.expect(201);
    admin.post(&format!("{FLOW_CONTROL}/flowschemas"), &schema("s", "l", "noxu")).await.expect(201);
    let noxu = server.client("noxu", "");
    // With no seats, one request at a time is let in: many at once are more.
    let deadline = tokio::time::Instant::now() + DEADLINE;
    let refused = loop {
        assert!(tokio::time::Instant::now() < deadline, "nothing was refused");
        let all = (0..16).map(|_| {
            let noxu = noxu.clone();
            tokio::spawn(async move { noxu.get("/openapi/v2").await })
        });
        let answers = futures::future::join_all(all).await;
        if let Some(answer) = answers.into_iter().map(Result::unwrap).find(|answer| answer.code == 429) {
            break answer;
        }
    };
    assert_eq!(refused.headers["retry-after"], "1");
    assert_eq!(refused.text, "Too many requests, please try again later.\n");
    assert!(refused.headers.contains_key("x-kubernetes-pf-flowschema-uid"));
    server.client("foo", "").get("/version").await.expect(200);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_carry_the_headers_of_a_careful_server() {
    let security = Security {
        strict_transport_security: vec!["max-age=31536000".to_owned()],
        request_timeout: Duration::from_secs(30),
        ..Security::default()
    };
    let server = TestServer::start_with(TempDir::new().unwrap(), security).await;
    let admin = server.admin();
    let answer = admin.get("/api/v1/nodes").await;
    assert_eq!(answer.headers["strict-transport-security"], "max-age=31536000");
    assert_eq!(answer.headers["cache-control"], "no-cache, private");
    let message = admin.get("/api/v1/nodes?timeout=never").await.refuse(400, "BadRequest");
    assert!(message.contains("invalid timeout"), "{message}");
    admin.get("/api/v1/nodes?timeout=10s").await.expect(200);
    server.stop().await;
}
