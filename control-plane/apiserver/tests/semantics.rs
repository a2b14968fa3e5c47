//! What the API promises of single requests beyond the usual way: combinations that are refused, bounds, dry-run.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use serde_json::{Value, json};
use support::{CONFIG_MAPS, PODS, TestServer, config_map, make_default_account, pod};

#[tokio::test(flavor = "multi_thread")]
async fn list_and_watch_refuse_combinations_that_say_nothing() {
    let server = TestServer::start().await;
    let admin = server.admin();
    for (query, expected) in [
        (
            "resourceVersionMatch=Exact",
            "resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden unless resourceVersion is provided",
        ),
        (
            "resourceVersionMatch=Exact&resourceVersion=0",
            "resourceVersionMatch: Forbidden: resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"",
        ),
        (
            "resourceVersionMatch=Newest&resourceVersion=1",
            "resourceVersionMatch: Unsupported value: \"Newest\": supported values: \"Exact\", \"NotOlderThan\", \"\"",
        ),
        ("sendInitialEvents=true", "sendInitialEvents: Forbidden: sendInitialEvents is forbidden for list"),
        (
            "watch=1&resourceVersionMatch=NotOlderThan",
            "resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
        ),
        (
            "watch=1&sendInitialEvents=true",
            "resourceVersionMatch: Forbidden: sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
        ),
    ] {
        let message = admin.get(&format!("{CONFIG_MAPS}?{query}")).await.refuse(422, "Invalid");
        assert!(message.starts_with("ListOptions.meta.k8s.io \"\" is invalid: "), "{message}");
        assert!(message.contains(expected), "{query}: {message}");
    }
    for name in ["a", "b"] {
        admin.post(CONFIG_MAPS, &config_map(name, json!({}), json!({}))).await.expect(201);
    }
    let first = admin.get(&format!("{CONFIG_MAPS}?limit=1")).await.expect(200);
    let token = first["metadata"]["continue"].as_str().unwrap();
    let version = first["metadata"]["resourceVersion"].as_str().unwrap();
    let message = admin
        .get(&format!("{CONFIG_MAPS}?limit=1&continue={token}&resourceVersion={version}"))
        .await
        .refuse(400, "BadRequest");
    assert_eq!(message, "specifying resource version is not allowed when using continue");
    let both = format!("{CONFIG_MAPS}?continue={token}&resourceVersion={version}&resourceVersionMatch=Exact");
    let message = admin.get(&both).await.refuse(422, "Invalid");
    assert!(message.contains("resourceVersionMatch is forbidden when continue is provided"), "{message}");
    let selected = admin.get(&format!("{CONFIG_MAPS}?limit=1&labelSelector=!x")).await.expect(200);
    assert_eq!(selected["metadata"].get("remainingItemCount"), None);
    assert!(selected["metadata"]["continue"].is_string());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dry_run_changes_nothing_on_any_verb() {
    let server = TestServer::start().await;
    let admin = server.admin();
    let dry = |path: &str| format!("{path}?dryRun=All");
    let made =
        admin.post(&dry(CONFIG_MAPS), &config_map("a", json!({}), json!({"k": "1"}))).await.expect(201);
    assert!(!made["metadata"]["uid"].as_str().unwrap().is_empty());
    let path = format!("{CONFIG_MAPS}/a");
    admin.get(&path).await.refuse(404, "NotFound");
    let stored = admin.post(CONFIG_MAPS, &config_map("a", json!({}), json!({"k": "1"}))).await.expect(201);
    admin.post(&dry(CONFIG_MAPS), &config_map("a", json!({}), json!({}))).await.refuse(409, "AlreadyExists");
    let patched = admin.patch(&dry(&path), "merge", &json!({"data": {"k": "2"}})).await.expect(200);
    assert_eq!(patched["data"]["k"], "2");
    let mut changed = stored.clone();
    changed["data"]["k"] = json!("3");
    assert_eq!(admin.put(&dry(&path), &changed).await.expect(200)["data"]["k"], "3");
    admin.delete(&dry(&path), &Value::Null).await.expect(200);
    admin
        .delete(&path, &json!({"kind": "DeleteOptions", "apiVersion": "v1", "dryRun": ["All"]}))
        .await
        .expect(200);
    admin.delete(&dry(CONFIG_MAPS), &Value::Null).await.expect(200);
    assert_eq!(admin.get(&path).await.expect(200), stored);
    let message = admin.post(&format!("{CONFIG_MAPS}?dryRun=Some"), &json!({})).await.refuse(422, "Invalid");
    assert!(message.contains("dryRun: Unsupported value"), "{message}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn writes_that_contradict_themselves_or_the_path_are_refused() {
    let server = TestServer::start().await;
    let admin = server.admin();
    let mut object = config_map("a", json!({}), json!({}));
    object["metadata"]["resourceVersion"] = json!("1");
    assert_eq!(
        admin.post(CONFIG_MAPS, &object).await.refuse(400, "BadRequest"),
        "resourceVersion should not be set on objects to be created"
    );
    let stored = admin.post(CONFIG_MAPS, &config_map("a", json!({}), json!({}))).await.expect(201);
    let path = format!("{CONFIG_MAPS}/a");
    assert_eq!(
        admin.put(&path, &config_map("b", json!({}), json!({}))).await.refuse(400, "BadRequest"),
        "the name of the object (b) does not match the name on the URL (a)"
    );
    let mut elsewhere = stored.clone();
    elsewhere["metadata"]["namespace"] = json!("kube-system");
    let message = admin.put(&path, &elsewhere).await.refuse(400, "BadRequest");
    assert!(message.contains("does not match the namespace sent on the request"), "{message}");
    let mut other = stored.clone();
    other["metadata"]["uid"] = json!("other");
    let message = admin.put(&path, &other).await.refuse(409, "Conflict");
    assert!(
        message.contains("Precondition failed: UID in precondition: other, UID in object meta: "),
        "{message}"
    );

    let leases = "/apis/coordination.k8s.io/v1/namespaces/default/leases";
    let lease = json!({"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "l"},
        "spec": {"holderIdentity": "x"}});
    admin.post(leases, &lease).await.expect(201);
    let message = admin.put(&format!("{leases}/l"), &lease).await.refuse(422, "Invalid");
    assert!(
        message.ends_with("metadata.resourceVersion: Invalid value: 0: must be specified for an update"),
        "{message}"
    );
    admin.get(&format!("{CONFIG_MAPS}?includeObject=All")).await.expect(200);
    let table = [("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")];
    let bogus = admin.send("GET", &format!("{CONFIG_MAPS}?includeObject=All"), &table, Vec::new()).await;
    bogus.refuse(400, "BadRequest");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn finalizers_hold_an_object_and_cannot_be_added_while_it_goes() {
    let server = TestServer::start().await;
    let admin = server.admin();
    let mut object = config_map("a", json!({}), json!({}));
    object["metadata"]["finalizers"] = json!(["example.com/hold"]);
    let made = admin.post(CONFIG_MAPS, &object).await.expect(201);
    let path = format!("{CONFIG_MAPS}/a");
    let wrong = json!({"preconditions": {"resourceVersion": "1"}});
    let message = admin.delete(&path, &wrong).await.refuse(409, "Conflict");
    assert!(message.contains("Precondition failed: ResourceVersion in precondition: 1"), "{message}");
    let going = admin.delete(&path, &Value::Null).await.expect(200);
    assert!(going["metadata"]["deletionTimestamp"].is_string());
    assert_eq!(going["metadata"]["uid"], made["metadata"]["uid"]);
    let more = json!({"metadata": {"finalizers": ["example.com/hold", "example.com/more"]}});
    let message = admin.patch(&path, "merge", &more).await.refuse(422, "Invalid");
    assert!(message.contains("no new finalizers can be added if the object is being deleted"), "{message}");
    let again = admin.delete(&path, &Value::Null).await.expect(200);
    assert_eq!(again["metadata"]["resourceVersion"], going["metadata"]["resourceVersion"]);
    admin.patch(&path, "merge", &json!({"metadata": {"finalizers": null}})).await.expect(200);
    admin.get(&path).await.refuse(404, "NotFound");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_is_bound_goes_gracefully_and_its_time_only_shrinks() {
    let server = TestServer::start().await;
    let admin = server.admin();
    make_default_account(&admin).await;
    let mut bound = pod("p");
    bound["spec"]["nodeName"] = json!("n");
    admin.post(PODS, &bound).await.expect(201);
    let path = format!("{PODS}/p");
    let grace = |seconds: i64| json!({"gracePeriodSeconds": seconds});
    let going = admin.delete(&path, &grace(20)).await.expect(200);
    assert_eq!(going["metadata"]["deletionGracePeriodSeconds"], 20);
    assert_eq!(
        admin.delete(&path, &grace(60)).await.expect(200)["metadata"]["deletionGracePeriodSeconds"],
        20
    );
    let sooner = admin.delete(&path, &grace(5)).await.expect(200);
    assert_eq!(sooner["metadata"]["deletionGracePeriodSeconds"], 5);
    assert!(
        sooner["metadata"]["deletionTimestamp"].as_str() < going["metadata"]["deletionTimestamp"].as_str()
    );
    admin.delete(&path, &grace(0)).await.expect(200);
    admin.get(&path).await.refuse(404, "NotFound");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_large_or_too_deep_is_refused() {
    let server = TestServer::start().await;
    let admin = server.admin();
    admin.post(CONFIG_MAPS, &config_map("a", json!({}), json!({}))).await.expect(201);
    let path = format!("{CONFIG_MAPS}/a");
    let json = [("content-type", "application/json")];
    let large = config_map("b", json!({}), json!({"k": "x".repeat(3 * 1024 * 1024)})).to_string();
    let message =
        admin.send("POST", CONFIG_MAPS, &json, large.into()).await.refuse(413, "RequestEntityTooLarge");
    assert_eq!(message, "Request entity too large: limit is 3145728");
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    admin.send("POST", CONFIG_MAPS, &json, deep.into()).await.refuse(400, "BadRequest");
    let operation = json!({"op": "test", "path": "/kind", "value": "ConfigMap"});
    let many = Value::from(vec![operation; 10_001]);
    let message = admin.patch(&path, "json", &many).await.refuse(413, "RequestEntityTooLarge");
    assert!(
        message.ends_with("The allowed maximum operations in a JSON patch is 10000, got 10001"),
        "{message}"
    );
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn only_large_answers_are_compressed_and_only_for_who_asks() {
    let server = TestServer::start().await;
    let admin = server.admin();
    for name in ["a", "b"] {
        let data = json!({"k": "x".repeat(100_000)});
        admin.post(CONFIG_MAPS, &config_map(name, json!({}), data)).await.expect(201);
    }
    let gzip = [("accept-encoding", "gzip")];
    let encoding = async |path: &str, headers: &[(&str, &str)]| {
        let answer = admin.send("GET", path, headers, Vec::new()).await;
        assert_eq!(answer.code, 200, "{}", answer.text);
        let encoding = answer.headers.get("content-encoding").map(|value| value.to_str().unwrap().to_owned());
        (encoding, answer.bytes.len())
    };
    let (list, size) = encoding(CONFIG_MAPS, &gzip).await;
    assert_eq!(list.as_deref(), Some("gzip"));
    assert!(size < 10_000, "{size}");
    assert_eq!(encoding(CONFIG_MAPS, &[]).await.0, None);
    assert_eq!(encoding(&format!("{CONFIG_MAPS}/a"), &gzip).await.0, None);
    server.stop().await;
}
