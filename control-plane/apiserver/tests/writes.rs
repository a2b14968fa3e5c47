//! Create, update, patch and delete against a real server.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use serde_json::{Value, json};
use support::{CONFIG_MAPS, PODS, TestServer, config_map, make_default_account, pod};

#[tokio::test(flavor = "multi_thread")]
async fn an_object_is_created_read_updated_and_deleted() {
    let server = TestServer::start().await;
    let admin = server.admin();
    let made = admin.post(CONFIG_MAPS, &config_map("a", json!({}), json!({"k": "1"}))).await.expect(201);
    assert!(!made["metadata"]["uid"].as_str().unwrap().is_empty());
    assert!(made["metadata"]["resourceVersion"].as_str().unwrap().parse::<u64>().unwrap() > 0);
    let path = format!("{CONFIG_MAPS}/a");
    assert_eq!(admin.get(&path).await.expect(200), made);
    let message =
        admin.post(CONFIG_MAPS, &config_map("a", json!({}), json!({}))).await.refuse(409, "AlreadyExists");
    assert_eq!(message, "configmaps \"a\" already exists");

    let mut changed = made.clone();
    changed["data"]["k"] = json!("2");
    let stored = admin.put(&path, &changed).await.expect(200);
    assert_ne!(stored["metadata"]["resourceVersion"], made["metadata"]["resourceVersion"]);
    assert_eq!(stored["metadata"]["uid"], made["metadata"]["uid"]);

    let status = admin.delete(&path, &Value::Null).await.expect(200);
    assert_eq!((status["kind"].as_str(), status["status"].as_str()), (Some("Status"), Some("Success")));
    assert_eq!(status["details"]["uid"], made["metadata"]["uid"]);
    assert_eq!(admin.get(&path).await.refuse(404, "NotFound"), "configmaps \"a\" not found");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stale_update_conflicts_and_a_write_of_the_same_changes_nothing() {
    let server = TestServer::start().await;
    let admin = server.admin();
    let first = admin.post(CONFIG_MAPS, &config_map("a", json!({}), json!({"k": "1"}))).await.expect(201);
    let path = format!("{CONFIG_MAPS}/a");
    let mut second = first.clone();
    second["data"]["k"] = json!("2");
    let second = admin.put(&path, &second).await.expect(200);
    let message = admin.put(&path, &first).await.refuse(409, "Conflict");
    assert_eq!(
        message,
        "Operation cannot be fulfilled on configmaps \"a\": the object has been modified; please apply your changes \
         to the latest version and try again"
    );
    let again = admin.put(&path, &second).await.expect(200);
    assert_eq!(again["metadata"]["resourceVersion"], second["metadata"]["resourceVersion"]);
    let patched = admin.patch(&path, "merge", &json!({"data": {"k": "2"}})).await.expect(200);
    assert_eq!(patched["metadata"]["resourceVersion"], second["metadata"]["resourceVersion"]);

    let stale =
        json!({"metadata": {"resourceVersion": first["metadata"]["resourceVersion"]}, "data": {"k": "3"}});
    admin.patch(&path, "merge", &stale).await.refuse(409, "Conflict");
    let other = json!({"metadata": {"uid": "00000000-0000-0000-0000-000000000000"}});
    admin.patch(&path, "merge", &other).await.refuse(409, "Conflict");
    let mut free = first.clone();
    free["metadata"].as_object_mut().unwrap().remove("resourceVersion");
    admin.put(&path, &free).await.expect(200);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_patches_without_a_version_all_arrive() {
    let server = TestServer::start().await;
    let admin = server.admin();
    admin.post(CONFIG_MAPS, &config_map("a", json!({}), json!({}))).await.expect(201);
    let path = format!("{CONFIG_MAPS}/a");
    let patches = (0..20).map(|index| {
        let (admin, path) = (admin.clone(), path.clone());
        async move { admin.patch(&path, "merge", &json!({"data": {format!("k{index}"): "v"}})).await.code }
    });
    assert_eq!(futures::future::join_all(patches).await, [200; 20]);
    let data = admin.get(&path).await.expect(200)["data"].clone();
    assert_eq!(data.as_object().unwrap().len(), 20);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_three_patches_do_what_their_standards_say() {
    let server = TestServer::start().await;
    let admin = server.admin();
    make_default_account(&admin).await;
    admin.post(PODS, &pod("p")).await.expect(201);
    let path = format!("{PODS}/p");
    let named = json!([{"op": "add", "path": "/metadata/labels", "value": {"a": "1"}}]);
    assert_eq!(admin.patch(&path, "json", &named).await.expect(200)["metadata"]["labels"]["a"], "1");
    let merged = json!({"metadata": {"labels": {"a": null, "b": "2"}}});
    assert_eq!(
        admin.patch(&path, "merge", &merged).await.expect(200)["metadata"]["labels"],
        json!({"b": "2"})
    );
    let by_name = json!({"spec": {"containers": [{"name": "c", "image": "nginx:2"}]}});
    let patched = admin.patch(&path, "strategic-merge", &by_name).await.expect(200);
    assert_eq!(patched["spec"]["containers"].as_array().unwrap().len(), 1);
    assert_eq!(patched["spec"]["containers"][0]["image"], "nginx:2");
    assert_eq!(patched["metadata"]["generation"], 2);

    let missing = json!([{"op": "remove", "path": "/metadata/annotations/none"}]);
    admin.patch(&path, "json", &missing).await.refuse(422, "Invalid");
    admin.patch(&path, "json", &json!({"not": "a list"})).await.refuse(400, "BadRequest");
    admin.patch(&path, "unknown", &json!({})).await.refuse(415, "UnsupportedMediaType");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn status_and_spec_are_written_apart() {
    let server = TestServer::start().await;
    let admin = server.admin();
    make_default_account(&admin).await;
    let made = admin.post(PODS, &pod("p")).await.expect(201);
    assert_eq!(made["status"]["phase"], "Pending");
    let path = format!("{PODS}/p");
    let both = json!({"metadata": {"labels": {"a": "1"}}, "status": {"phase": "Running"}});
    let patched = admin.patch(&path, "merge", &both).await.expect(200);
    assert_eq!(
        (&patched["status"]["phase"], &patched["metadata"]["labels"]["a"]),
        (&json!("Pending"), &json!("1"))
    );
    let both = json!({"spec": {"activeDeadlineSeconds": 5}, "status": {"phase": "Running"}});
    let patched = admin.patch(&format!("{path}/status"), "merge", &both).await.expect(200);
    assert_eq!(patched["status"]["phase"], "Running");
    assert_eq!(patched["spec"].get("activeDeadlineSeconds"), None);
    assert_eq!(patched["metadata"]["generation"], made["metadata"]["generation"]);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn finalizers_hold_an_object_until_the_last_is_gone() {
    let server = TestServer::start().await;
    let admin = server.admin();
    let mut held = config_map("a", json!({}), json!({}));
    held["metadata"]["finalizers"] = json!(["example.com/hold"]);
    admin.post(CONFIG_MAPS, &held).await.expect(201);
    let path = format!("{CONFIG_MAPS}/a");
    let waiting = admin.delete(&path, &Value::Null).await.expect(200);
    assert_eq!(waiting["kind"], "ConfigMap");
    assert!(waiting["metadata"]["deletionTimestamp"].is_string());
    let more = json!({"metadata": {"finalizers": ["example.com/hold", "example.com/more"]}});
    let message = admin.patch(&path, "merge", &more).await.refuse(422, "Invalid");
    assert!(message.contains("no new finalizers can be added if the object is being deleted"), "{message}");
    admin.patch(&path, "merge", &json!({"metadata": {"finalizers": null}})).await.expect(200);
    admin.get(&path).await.refuse(404, "NotFound");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bound_pod_is_deleted_with_grace_and_grace_only_shrinks() {
    let server = TestServer::start().await;
    let admin = server.admin();
    make_default_account(&admin).await;
    admin.post(PODS, &pod("free")).await.expect(201);
    admin.delete(&format!("{PODS}/free"), &Value::Null).await.expect(200);
    admin.get(&format!("{PODS}/free")).await.refuse(404, "NotFound");

    admin.post(PODS, &pod("p")).await.expect(201);
    let binding = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "p"}, "target": {"kind": "Node", "name": "n1"}});
    let path = format!("{PODS}/p");
    admin.post(&format!("{path}/binding"), &binding).await.expect(201);
    let message = admin.post(&format!("{path}/binding"), &binding).await.refuse(409, "Conflict");
    assert!(message.contains("already assigned to node \"n1\""), "{message}");
    let bound = admin.get(&path).await.expect(200);
    assert_eq!(bound["spec"]["nodeName"], "n1");

    let waiting = admin.delete(&path, &Value::Null).await.expect(200);
    assert_eq!(waiting["metadata"]["deletionGracePeriodSeconds"], 30);
    let longer = admin.delete(&path, &json!({"gracePeriodSeconds": 60})).await.expect(200);
    assert_eq!(longer["metadata"]["deletionGracePeriodSeconds"], 30);
    let shorter = admin.delete(&path, &json!({"gracePeriodSeconds": 5})).await.expect(200);
    assert_eq!(shorter["metadata"]["deletionGracePeriodSeconds"], 5);
    admin.delete(&path, &json!({"gracePeriodSeconds": 0})).await.expect(200);
    admin.get(&path).await.refuse(404, "NotFound");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn deletion_checks_preconditions_and_sets_the_collectors_finalizers() {
    let server = TestServer::start().await;
    let admin = server.admin();
    let made = admin.post(CONFIG_MAPS, &config_map("a", json!({}), json!({}))).await.expect(201);
    let path = format!("{CONFIG_MAPS}/a");
    let other = json!({"preconditions": {"uid": "other"}});
    assert!(admin.delete(&path, &other).await.refuse(409, "Conflict").contains("UID in precondition: other"));
    let both = json!({"propagationPolicy": "Orphan", "orphanDependents": true});
    admin.delete(&path, &both).await.refuse(422, "Invalid");
    let dry = json!({"dryRun": ["All"]});
    admin.delete(&path, &dry).await.expect(200);
    let foreground =
        json!({"propagationPolicy": "Foreground", "preconditions": {"uid": made["metadata"]["uid"]}});
    let waiting = admin.delete(&path, &foreground).await.expect(200);
    assert_eq!(waiting["metadata"]["finalizers"], json!(["foregroundDeletion"]));
    let background = json!({"propagationPolicy": "Background"});
    admin.delete(&path, &background).await.expect(200);
    admin.get(&path).await.refuse(404, "NotFound");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_waits_for_its_finalizer() {
    let server = TestServer::start().await;
    let admin = server.admin();
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "a"}});
    let made = admin.post("/api/v1/namespaces", &namespace).await.expect(201);
    assert_eq!(made["spec"]["finalizers"], json!(["kubernetes"]));
    let waiting = admin.delete("/api/v1/namespaces/a", &Value::Null).await.expect(200);
    assert_eq!(waiting["status"]["phase"], "Terminating");
    let late = admin.post("/api/v1/namespaces/a/configmaps", &config_map("x", json!({}), json!({}))).await;
    let message = late.refuse(403, "Forbidden");
    assert!(message.contains("because it is being terminated"), "{message}");
    let mut finished = waiting.clone();
    finished["spec"]["finalizers"] = json!([]);
    admin.put("/api/v1/namespaces/a/finalize", &finished).await.expect(200);
    admin.get("/api/v1/namespaces/a").await.refuse(404, "NotFound");
    let gone = admin.post("/api/v1/namespaces/a/configmaps", &config_map("x", json!({}), json!({}))).await;
    assert_eq!(gone.refuse(404, "NotFound"), "namespaces \"a\" not found");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn generated_names_are_unique_and_dry_runs_leave_nothing() {
    let server = TestServer::start().await;
    let admin = server.admin();
    let generated = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"generateName": "g-"}});
    let first = admin.post(CONFIG_MAPS, &generated).await.expect(201)["metadata"]["name"].clone();
    let second = admin.post(CONFIG_MAPS, &generated).await.expect(201)["metadata"]["name"].clone();
    assert!(first.as_str().unwrap().starts_with("g-") && first.as_str().unwrap().len() == 7);
    assert_ne!(first, second);
    let dry = format!("{CONFIG_MAPS}?dryRun=All");
    let shown = admin.post(&dry, &config_map("dry", json!({}), json!({}))).await.expect(201);
    assert_eq!(shown["metadata"].get("resourceVersion"), None);
    admin.get(&format!("{CONFIG_MAPS}/dry")).await.refuse(404, "NotFound");
    let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"},
        "spec": {"clusterIP": "10.96.7.7", "ports": [{"port": 80}]}});
    let services = "/api/v1/namespaces/default/services";
    admin.post(&format!("{services}?dryRun=All"), &service).await.expect(201);
    admin.post(services, &service).await.expect(201);
    let mut other = service.clone();
    other["metadata"]["name"] = json!("t");
    let message = admin.post(services, &other).await.refuse(422, "Invalid");
    assert!(message.contains("provided IP is already allocated"), "{message}");
    admin.delete(&format!("{services}/s"), &Value::Null).await.expect(200);
    admin.post(services, &other).await.expect(201);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_and_duplicate_fields_are_refused_told_or_ignored() {
    let server = TestServer::start().await;
    let admin = server.admin();
    let body = br#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"a"},"dat":{},"data":{"k":"1","k":"2"}}"#;
    let json = [("content-type", "application/json")];
    let send = |mode: &'static str| {
        let path = format!("{CONFIG_MAPS}?dryRun=All&fieldValidation={mode}");
        let admin = admin.clone();
        async move { admin.send("POST", &path, &json, body.to_vec()).await }
    };
    assert_eq!(
        send("Strict").await.refuse(400, "BadRequest"),
        "ConfigMap in version \"v1\" cannot be handled as a ConfigMap: strict decoding error: unknown field \"dat\", \
         duplicate field \"data.k\""
    );
    let warned = send("Warn").await;
    assert_eq!(
        warned.warnings(),
        [r#"299 - "unknown field \"dat\"""#, r#"299 - "duplicate field \"data.k\"""#]
    );
    assert_eq!(warned.expect(201)["data"]["k"], "2");
    let ignored = send("Ignore").await;
    assert!(ignored.warnings().is_empty());
    ignored.expect(201);
    assert!(send("Never").await.refuse(422, "Invalid").contains("fieldValidation"));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_bodies_are_refused_with_what_and_where() {
    let server = TestServer::start().await;
    let admin = server.admin();
    make_default_account(&admin).await;
    let json = [("content-type", "application/json")];
    let yaml = [("content-type", "application/yaml")];
    let broken = admin.send("POST", CONFIG_MAPS, &json, b"{\"a\": ]".to_vec()).await;
    assert!(broken.refuse(400, "BadRequest").contains("line 1 column 7"));
    let broken = admin.send("POST", CONFIG_MAPS, &yaml, b"a: [b".to_vec()).await;
    assert!(broken.refuse(400, "BadRequest").contains("YAML"));
    let good = b"apiVersion: v1\nkind: ConfigMap\nmetadata: {name: from-yaml}\ndata: {a: b}\n".to_vec();
    admin.send("POST", CONFIG_MAPS, &yaml, good).await.expect(201);
    admin
        .send("POST", CONFIG_MAPS, &[("content-type", "text/plain")], b"x".to_vec())
        .await
        .refuse(415, "UnsupportedMediaType");
    admin.send("POST", CONFIG_MAPS, &json, Vec::new()).await.refuse(400, "BadRequest");
    let mut wrong = config_map("w", json!({}), json!({}));
    wrong["data"] = json!("text");
    let message = admin.post(CONFIG_MAPS, &wrong).await.refuse(400, "BadRequest");
    assert!(message.contains("cannot unmarshal string into Go struct field ConfigMap.data"), "{message}");
    let message = admin
        .post(PODS, &json!({"kind": "Pod", "metadata": {"name": "x"}, "spec": {"containers": []}}))
        .await;
    assert!(message.refuse(422, "Invalid").contains("spec.containers: Required value"));
    let message = admin.post(CONFIG_MAPS, &config_map("Bad_Name", json!({}), json!({}))).await;
    assert!(message.refuse(422, "Invalid").contains("metadata.name: Invalid value: \"Bad_Name\""));
    let mut elsewhere = config_map("e", json!({}), json!({}));
    elsewhere["metadata"]["namespace"] = json!("kube-system");
    admin.post(CONFIG_MAPS, &elsewhere).await.refuse(400, "BadRequest");
    let large = config_map("l", json!({}), json!({"k": "x".repeat(4 * 1024 * 1024)}));
    let message = admin.post(CONFIG_MAPS, &large).await.refuse(413, "RequestEntityTooLarge");
    assert_eq!(message, "Request entity too large: limit is 3145728");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scale_changes_the_replicas_of_its_object() {
    let server = TestServer::start().await;
    let admin = server.admin();
    let path = "/apis/apps/v1/namespaces/default/deployments";
    let deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"},
        "spec": {"selector": {"matchLabels": {"a": "b"}}, "template": {
            "metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "nginx"}]},
        }},
    });
    let made = admin.post(path, &deployment).await.expect(201);
    assert_eq!((&made["spec"]["replicas"], &made["metadata"]["generation"]), (&json!(1), &json!(1)));
    let mut scale = admin.get(&format!("{path}/d/scale")).await.expect(200);
    assert_eq!((&scale["kind"], &scale["status"]["selector"]), (&json!("Scale"), &json!("a=b")));
    scale["spec"]["replicas"] = json!(3);
    admin.put(&format!("{path}/d/scale"), &scale).await.expect(200);
    admin.put(&format!("{path}/d/scale"), &scale).await.refuse(409, "Conflict");
    let patched = admin.patch(&format!("{path}/d/scale"), "merge", &json!({"spec": {"replicas": 4}})).await;
    assert_eq!(patched.expect(200)["spec"]["replicas"], 4);
    let stored = admin.get(&format!("{path}/d")).await.expect(200);
    assert_eq!((&stored["spec"]["replicas"], &stored["metadata"]["generation"]), (&json!(4), &json!(3)));
    let message = admin.patch(&format!("{path}/d/scale"), "merge", &json!({"spec": {"replicas": -1}})).await;
    assert!(message.refuse(422, "Invalid").contains("spec.replicas: Invalid value: -1"));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_eviction_asks_the_disruption_budget() {
    let server = TestServer::start().await;
    let admin = server.admin();
    make_default_account(&admin).await;
    let mut labelled = pod("p");
    labelled["metadata"]["labels"] = json!({"a": "b"});
    admin.post(PODS, &labelled).await.expect(201);
    let ready = json!({"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}});
    admin.patch(&format!("{PODS}/p/status"), "merge", &ready).await.expect(200);
    let budgets = "/apis/policy/v1/namespaces/default/poddisruptionbudgets";
    let budget = json!({"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": "b"},
        "spec": {"minAvailable": 1, "selector": {"matchLabels": {"a": "b"}}}});
    admin.post(budgets, &budget).await.expect(201);
    let spent = json!({"status": {"observedGeneration": 1, "disruptionsAllowed": 0, "currentHealthy": 1, "desiredHealthy": 1, "expectedPods": 1}});
    admin.patch(&format!("{budgets}/b/status"), "merge", &spent).await.expect(200);
    let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "p"}});
    let path = format!("{PODS}/p/eviction");
    let refused = admin.post(&path, &eviction).await;
    assert_eq!(refused.headers["retry-after"], "10");
    assert!(refused.refuse(429, "TooManyRequests").contains("would violate the pod's disruption budget"));
    admin
        .patch(&format!("{budgets}/b/status"), "merge", &json!({"status": {"disruptionsAllowed": 1}}))
        .await
        .expect(200);
    admin.post(&path, &eviction).await.expect(201);
    let budget = admin.get(&format!("{budgets}/b")).await.expect(200);
    assert_eq!(budget["status"]["disruptionsAllowed"], 0);
    assert!(budget["status"]["disruptedPods"]["p"].is_string());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn events_are_one_store_with_two_faces() {
    let server = TestServer::start().await;
    let admin = server.admin();
    let event = json!({
        "apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {"name": "e"},
        "eventTime": "2026-01-01T00:00:00.000000Z", "reportingController": "example.com/c", "reportingInstance": "i",
        "action": "A", "reason": "R", "type": "Normal", "note": "text",
        "regarding": {"kind": "Pod", "name": "p", "namespace": "default"},
    });
    let new = "/apis/events.k8s.io/v1/namespaces/default/events";
    admin.post(new, &event).await.expect(201);
    let core = "/api/v1/namespaces/default/events?fieldSelector=involvedObject.name%3Dp";
    let list = admin.get(core).await.expect(200);
    assert_eq!((&list["items"][0]["message"], &list["items"][0]["kind"]), (&json!("text"), &json!("Event")));
    assert_eq!(admin.get(&format!("{new}/e")).await.expect(200)["note"], "text");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_is_there_after_a_restart() {
    let server = TestServer::start().await;
    let made =
        server.admin().post(CONFIG_MAPS, &config_map("a", json!({}), json!({"k": "1"}))).await.expect(201);
    let folder = server.stop().await;
    let server = TestServer::start_in(folder).await;
    assert_eq!(server.admin().get(&format!("{CONFIG_MAPS}/a")).await.expect(200), made);
    server.stop().await;
}
