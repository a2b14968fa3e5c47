//! List and watch against a real server.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use base64::Engine as _;
use serde_json::{Value, json};
use support::{CONFIG_MAPS, Client, TestServer, config_map};

async fn make(client: &Client, name: &str, labels: Value) -> Value {
    client.post(CONFIG_MAPS, &config_map(name, labels, json!({}))).await.expect(201)
}

fn names(list: &Value) -> Vec<&str> {
    list["items"].as_array().unwrap().iter().filter_map(|item| item["metadata"]["name"].as_str()).collect()
}

fn version(object: &Value) -> String {
    object["metadata"]["resourceVersion"].as_str().unwrap().to_owned()
}

fn event(kind: &str, name: &str) -> (String, String) {
    (kind.to_owned(), name.to_owned())
}

/// A server with ConfigMaps `a` and `b` whose history begins after them.
async fn forgetful_server() -> TestServer {
    let server = TestServer::start().await;
    let admin = server.admin();
    make(&admin, "a", json!({})).await;
    make(&admin, "b", json!({})).await;
    let cache = server.server.cache();
    cache.storage().compact(cache.revision()).await.unwrap();
    let folder = server.stop().await;
    TestServer::start_in(folder).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_list_is_paged_as_of_its_first_page() {
    let server = TestServer::start().await;
    let admin = server.admin();
    for name in ["a", "b", "c", "d", "e"] {
        make(&admin, name, json!({})).await;
    }
    let first = admin.get(&format!("{CONFIG_MAPS}?limit=2")).await.expect(200);
    assert_eq!(first["kind"], "ConfigMapList");
    assert_eq!(names(&first), ["a", "b"]);
    assert_eq!(first["metadata"]["remainingItemCount"], 3);
    admin.delete(&format!("{CONFIG_MAPS}/c"), &Value::Null).await.expect(200);
    let token = first["metadata"]["continue"].as_str().unwrap();
    let second = admin.get(&format!("{CONFIG_MAPS}?limit=2&continue={token}")).await.expect(200);
    assert_eq!(names(&second), ["c", "d"]);
    assert_eq!(version(&second), version(&first));
    let token = second["metadata"]["continue"].as_str().unwrap();
    let last = admin.get(&format!("{CONFIG_MAPS}?limit=2&continue={token}")).await.expect(200);
    assert_eq!(names(&last), ["e"]);
    assert_eq!(last["metadata"].get("continue"), None);
    admin.get(&format!("{CONFIG_MAPS}?continue=nonsense")).await.refuse(400, "BadRequest");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_page_carries_a_token_that_goes_on() {
    let server = forgetful_server().await;
    let admin = server.admin();
    let token = json!({"v": "meta.k8s.io/v1", "rv": 1, "start": "a\u{0}"}).to_string();
    let token = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(token);
    let expired = admin.get(&format!("{CONFIG_MAPS}?limit=1&continue={token}")).await;
    assert_eq!((expired.code, expired.body["reason"].as_str()), (410, Some("Expired")));
    let fresh = expired.body["metadata"]["continue"].as_str().unwrap();
    let rest = admin.get(&format!("{CONFIG_MAPS}?limit=1&continue={fresh}")).await.expect(200);
    assert_eq!(names(&rest), ["b"]);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn selectors_choose_by_labels_and_fields() {
    let server = TestServer::start().await;
    let admin = server.admin();
    make(&admin, "a", json!({"app": "x"})).await;
    make(&admin, "b", json!({"app": "y"})).await;
    make(&admin, "c", json!({})).await;
    for (query, expected) in [
        ("labelSelector=app%3Dx", vec!["a"]),
        ("labelSelector=app", vec!["a", "b"]),
        ("labelSelector=%21app", vec!["c"]),
        ("labelSelector=app+in+(x,y),app%21%3Dx", vec!["b"]),
        ("fieldSelector=metadata.name%3Dc", vec!["c"]),
        ("fieldSelector=metadata.name%21%3Dc,metadata.namespace%3Ddefault", vec!["a", "b"]),
    ] {
        assert_eq!(
            names(&admin.get(&format!("{CONFIG_MAPS}?{query}")).await.expect(200)),
            expected,
            "{query}"
        );
    }
    let message =
        admin.get(&format!("{CONFIG_MAPS}?fieldSelector=data.k%3D1")).await.refuse(400, "BadRequest");
    assert!(message.contains("field label not supported: data.k"), "{message}");
    admin.get(&format!("{CONFIG_MAPS}?labelSelector=a%3D%3D%3Db")).await.refuse(400, "BadRequest");
    let gone = admin.delete(&format!("{CONFIG_MAPS}?labelSelector=app"), &Value::Null).await.expect(200);
    assert_eq!(names(&gone), ["a", "b"]);
    assert_eq!(names(&admin.get(CONFIG_MAPS).await.expect(200)), ["c"]);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn resource_versions_of_a_list_follow_the_table_of_matches() {
    let server = TestServer::start().await;
    let admin = server.admin();
    let first = version(&make(&admin, "a", json!({})).await);
    make(&admin, "b", json!({})).await;
    let at = |query: String| {
        let admin = admin.clone();
        async move { admin.get(&format!("{CONFIG_MAPS}?{query}")).await }
    };
    let exact = at(format!("resourceVersion={first}&resourceVersionMatch=Exact")).await.expect(200);
    assert_eq!((names(&exact), version(&exact)), (vec!["a"], first.clone()));
    let newer = at(format!("resourceVersion={first}&resourceVersionMatch=NotOlderThan")).await.expect(200);
    assert_eq!(names(&newer), ["a", "b"]);
    let any = at("resourceVersion=0&limit=1".to_owned()).await.expect(200);
    assert_eq!(names(&any), ["a", "b"]);
    at("resourceVersionMatch=Exact".to_owned()).await.refuse(422, "Invalid");
    at("resourceVersion=x".to_owned()).await.refuse(422, "Invalid");
    let future = at("resourceVersion=99999999".to_owned()).await;
    assert!(future.refuse(504, "Timeout").contains("Too large resource version: 99999999"));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_shows_the_state_then_every_change_and_resumes() {
    let server = TestServer::start().await;
    let admin = server.admin();
    let made = make(&admin, "a", json!({})).await;
    let mut watch = admin.watch(&format!("{CONFIG_MAPS}?watch=1")).await;
    assert_eq!(watch.next_named().await, event("ADDED", "a"));
    let path = format!("{CONFIG_MAPS}/a");
    admin.patch(&path, "merge", &json!({"data": {"k": "v"}})).await.expect(200);
    assert_eq!(watch.next_named().await, event("MODIFIED", "a"));
    admin.delete(&path, &Value::Null).await.expect(200);
    let deleted = watch.next().await.unwrap();
    assert_eq!((&deleted["type"], &deleted["object"]["data"]["k"]), (&json!("DELETED"), &json!("v")));
    let at_deletion: u64 = version(&deleted["object"]).parse().unwrap();
    assert!(at_deletion > version(&made).parse().unwrap());

    let mut resumed = admin.watch(&format!("{CONFIG_MAPS}?watch=1&resourceVersion={}", version(&made))).await;
    assert_eq!(resumed.next_named().await, event("MODIFIED", "a"));
    assert_eq!(resumed.next_named().await, event("DELETED", "a"));
    make(&admin, "b", json!({})).await;
    assert_eq!(resumed.next_named().await, event("ADDED", "b"));
    assert_eq!(watch.next_named().await, event("ADDED", "b"));
    server.stop().await;
    assert_eq!(watch.next().await, None);
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_enter_and_leave_a_selection() {
    let server = TestServer::start().await;
    let admin = server.admin();
    make(&admin, "a", json!({"app": "other"})).await;
    let mut watch = admin.watch(&format!("{CONFIG_MAPS}?watch=1&labelSelector=app%3Dx")).await;
    let path = format!("{CONFIG_MAPS}/a");
    let label = |value: &str| json!({"metadata": {"labels": {"app": value}}});
    admin.patch(&path, "merge", &label("x")).await.expect(200);
    assert_eq!(watch.next_named().await, event("ADDED", "a"));
    let left = admin.patch(&path, "merge", &label("other")).await.expect(200);
    let event = watch.next().await.unwrap();
    assert_eq!(
        (&event["type"], &event["object"]["metadata"]["labels"]["app"]),
        (&json!("DELETED"), &json!("x"))
    );
    assert_eq!(version(&event["object"]), version(&left));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn initial_events_end_with_a_bookmark_that_says_so() {
    let server = TestServer::start().await;
    let admin = server.admin();
    make(&admin, "b", json!({})).await;
    make(&admin, "a", json!({})).await;
    let query = "watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";
    let mut watch = admin.watch(&format!("{CONFIG_MAPS}?{query}&timeoutSeconds=2")).await;
    assert_eq!(watch.next_named().await, event("ADDED", "a"));
    assert_eq!(watch.next_named().await, event("ADDED", "b"));
    let bookmark = watch.next().await.unwrap();
    assert_eq!(bookmark["type"], "BOOKMARK");
    assert_eq!(bookmark["object"]["kind"], "ConfigMap");
    assert_eq!(bookmark["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    make(&admin, "c", json!({})).await;
    assert_eq!(watch.next_named().await, event("ADDED", "c"));
    let last = watch.next().await.unwrap();
    assert_eq!(last["type"], "BOOKMARK");
    assert_eq!(last["object"]["metadata"].get("annotations"), None);
    assert!(version(&last["object"]).parse::<u64>().unwrap() > version(&bookmark["object"]).parse().unwrap());
    assert_eq!(watch.next().await, None);
    let without = format!("{CONFIG_MAPS}?watch=1&sendInitialEvents=true");
    admin.get(&without).await.refuse(422, "Invalid");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_from_a_forgotten_version_ends_with_410() {
    let server = forgetful_server().await;
    let admin = server.admin();
    let mut watch = admin.watch(&format!("{CONFIG_MAPS}?watch=1&resourceVersion=1")).await;
    let error = watch.next().await.unwrap();
    assert_eq!(error["type"], "ERROR");
    assert_eq!((&error["object"]["code"], &error["object"]["reason"]), (&json!(410), &json!("Expired")));
    assert!(error["object"]["message"].as_str().unwrap().contains("too old resource version: 1"));
    assert_eq!(watch.next().await, None);
    let list = admin.get(&format!("{CONFIG_MAPS}?resourceVersion=1&resourceVersionMatch=Exact")).await;
    list.refuse(410, "Expired");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_and_metadata_are_answered_where_they_are_asked_for() {
    let server = TestServer::start().await;
    let admin = server.admin();
    make(&admin, "a", json!({})).await;
    let table = [("accept", "application/json;as=Table;v=v1;g=meta.k8s.io,application/json")];
    let shown = admin.send("GET", CONFIG_MAPS, &table, Vec::new()).await.expect(200);
    assert_eq!((&shown["kind"], &shown["apiVersion"]), (&json!("Table"), &json!("meta.k8s.io/v1")));
    assert_eq!(shown["columnDefinitions"][0]["name"], "Name");
    assert_eq!(shown["rows"][0]["cells"][0], "a");
    assert_eq!(shown["rows"][0]["object"]["kind"], "PartialObjectMetadata");
    let whole = format!("{CONFIG_MAPS}/a?includeObject=Object");
    let shown = admin.send("GET", &whole, &table, Vec::new()).await.expect(200);
    assert_eq!(shown["rows"][0]["object"]["kind"], "ConfigMap");
    let mut watch = admin.watch_as(&format!("{CONFIG_MAPS}?watch=1"), &table).await;
    assert_eq!(watch.next().await.unwrap()["object"]["rows"][0]["cells"][0], "a");

    let partial = [("accept", "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io")];
    let shown = admin.send("GET", CONFIG_MAPS, &partial, Vec::new()).await.expect(200);
    assert_eq!(shown["kind"], "PartialObjectMetadataList");
    assert_eq!(shown["items"][0].get("data"), None);
    let review = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": {"verb": "get", "resource": "pods"}}});
    let headers =
        [("accept", "application/json;as=Table;v=v1;g=meta.k8s.io"), ("content-type", "application/json")];
    let reviews = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    admin.send("POST", reviews, &headers, review.to_string().into()).await.refuse(406, "NotAcceptable");
    let yaml =
        admin.send("GET", &format!("{CONFIG_MAPS}/a"), &[("accept", "application/yaml")], Vec::new()).await;
    assert!(yaml.text.contains("kind: ConfigMap"), "{}", yaml.text);
    server.stop().await;
}
