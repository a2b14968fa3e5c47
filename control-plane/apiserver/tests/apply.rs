//! Server-side apply and `metadata.managedFields` over real HTTP.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use api::apply::FieldSet;
use serde_json::{Value, json};
use support::{Answer, CONFIG_MAPS, Client, PODS, TestServer, kubectl::kubectl, make_default_account, pod};

const DEPLOYMENTS: &str = "/apis/apps/v1/namespaces/default/deployments";
const APPLY: &str = "application/apply-patch+yaml";

async fn apply(client: &Client, path: &str, query: &str, body: &Value) -> Answer {
    apply_text(client, path, query, &body.to_string()).await
}

async fn apply_text(client: &Client, path: &str, query: &str, body: &str) -> Answer {
    client.send("PATCH", &format!("{path}?{query}"), &[("content-type", APPLY)], body.into()).await
}

fn deployment(replicas: i64, image: &str) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "namespace": "default"},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": "web"}},
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {"containers": [{"name": "c", "image": image}]},
            },
        },
    })
}

fn data(name: &str, data: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data})
}

fn entry<'a>(object: &'a Value, manager: &str) -> &'a Value {
    static NULL: Value = Value::Null;
    let entries = object["metadata"]["managedFields"].as_array();
    entries.into_iter().flatten().find(|entry| entry["manager"] == manager).unwrap_or(&NULL)
}

fn owned(object: &Value, manager: &str) -> String {
    let fields = &entry(object, manager)["fieldsV1"];
    if fields.is_null() { String::new() } else { FieldSet::decode(fields).unwrap().to_json() }
}

fn version(object: &Value) -> String {
    object["metadata"]["resourceVersion"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn an_object_is_created_by_its_first_apply_and_left_alone_by_the_second() {
    let server = TestServer::start().await;
    let admin = server.admin();
    let path = format!("{DEPLOYMENTS}/web");
    let created = apply(&admin, &path, "fieldManager=a", &deployment(3, "nginx")).await.expect(201);
    assert_eq!(created["metadata"]["generation"], 1);
    assert_eq!(created["spec"]["strategy"]["type"], "RollingUpdate");
    assert_eq!(entry(&created, "a")["operation"], "Apply");
    assert_eq!(
        owned(&created, "a"),
        concat!(
            r#"{"f:spec":{"f:replicas":{},"f:selector":{},"f:template":{"f:metadata":{"f:labels":{"f:app":{}}},"#,
            r#""f:spec":{"f:containers":{"k:{\"name\":\"c\"}":{".":{},"f:image":{},"f:name":{}}}}}}}"#
        )
    );
    let again = apply(&admin, &path, "fieldManager=a", &deployment(3, "nginx")).await.expect(200);
    assert_eq!(again, created);
    let changed = apply(&admin, &path, "fieldManager=a", &deployment(4, "nginx")).await.expect(200);
    assert_ne!(version(&changed), version(&created));
    assert_eq!(changed["metadata"]["generation"], 2);
    server.stop().await;
}

#[tokio::test]
async fn yaml_is_applied_too_and_a_key_that_occurs_twice_is_told() {
    let server = TestServer::start().await;
    let admin = server.admin();
    let yaml = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: twice\ndata:\n  k: one\n  k: two\n";
    let path = format!("{CONFIG_MAPS}/twice");
    let refused = apply_text(&admin, &path, "fieldManager=a&fieldValidation=Strict", yaml).await;
    let message = refused.refuse(400, "BadRequest");
    assert_eq!(
        message,
        "error strict decoding YAML: error converting YAML to JSON: yaml: unmarshal errors:\n  line 7: key \"k\" already \
         set in map"
    );
    let warned = apply_text(&admin, &path, "fieldManager=a", yaml).await;
    assert_eq!(warned.warnings(), ["299 - \"line 7: key \\\"k\\\" already set in map\""]);
    assert_eq!(warned.expect(201)["data"]["k"], "two");
    let json =
        r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"twice"},"data":{"k":"1","k":"2"}}"#;
    let refused = apply_text(&admin, &path, "fieldManager=a&fieldValidation=Strict", json).await;
    assert!(refused.refuse(400, "BadRequest").ends_with("line 1: key \"k\" already set in map"));
    for body in ["", "a: [b", "- x", "3"] {
        let answer = apply_text(&admin, &path, "fieldManager=a", body).await;
        assert!(answer.refuse(400, "BadRequest").starts_with("error decoding YAML: "), "{body}");
    }
    server.stop().await;
}

#[tokio::test]
async fn conflicts_name_manager_and_field_and_can_be_forced() {
    let server = TestServer::start().await;
    let admin = server.admin();
    admin.post(&format!("{DEPLOYMENTS}?fieldManager=creator"), &deployment(1, "nginx")).await.expect(201);
    let path = format!("{DEPLOYMENTS}/web");
    let answer = apply(&admin, &path, "fieldManager=a", &deployment(5, "nginx")).await;
    assert_eq!(
        answer.body["details"]["causes"],
        json!([{
            "reason": "FieldManagerConflict",
            "message": "conflict with \"creator\" using apps/v1",
            "field": ".spec.replicas",
        }])
    );
    assert_eq!(
        answer.refuse(409, "Conflict"),
        "Apply failed with 1 conflict: conflict with \"creator\" using apps/v1: .spec.replicas"
    );
    let forced = apply(&admin, &path, "fieldManager=a&force=true", &deployment(5, "nginx")).await.expect(200);
    assert_eq!(forced["spec"]["replicas"], 5);
    assert!(!owned(&forced, "creator").contains("replicas"), "{}", owned(&forced, "creator"));
    server.stop().await;
}

#[tokio::test]
async fn options_and_bodies_that_are_no_apply_are_refused() {
    let server = TestServer::start().await;
    let admin = server.admin();
    let path = format!("{CONFIG_MAPS}/x");
    let body = data("x", json!({}));
    let message = |answer: Answer, code, reason: &str| answer.refuse(code, reason);
    let refused = message(apply(&admin, &path, "", &body).await, 422, "Invalid");
    assert!(refused.contains("fieldManager: Required value: is required for apply patch"), "{refused}");
    let long = format!("fieldManager={}", "x".repeat(129));
    let refused = message(apply(&admin, &path, &long, &body).await, 422, "Invalid");
    assert!(refused.contains("fieldManager: Too long"), "{refused}");
    let refused = message(apply(&admin, &path, "fieldManager=a%07", &body).await, 422, "Invalid");
    assert!(refused.contains("invalid character U+0007 (at position 1)"), "{refused}");
    let other = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "x"}});
    let refused = message(apply(&admin, &path, "fieldManager=a", &other).await, 400, "BadRequest");
    assert_eq!(refused, "invalid object type: apps/v1, Kind=Deployment");
    let mut owners = body.clone();
    owners["metadata"]["managedFields"] = json!([]);
    let refused = message(apply(&admin, &path, "fieldManager=a", &owners).await, 400, "BadRequest");
    assert_eq!(refused, "metadata.managedFields must be nil");
    let unnamed = json!({"apiVersion": "v1", "kind": "ConfigMap"});
    message(apply(&admin, &path, "fieldManager=a", &unnamed).await, 400, "BadRequest");
    let renamed = data("other", json!({}));
    let refused = message(apply(&admin, &path, "fieldManager=a", &renamed).await, 400, "BadRequest");
    assert_eq!(refused, "the name of the object (other) does not match the name on the URL (x)");
    let mut with_uid = body.clone();
    with_uid["metadata"]["uid"] = json!("1");
    message(apply(&admin, &path, "fieldManager=a", &with_uid).await, 409, "Conflict");
    let unknown = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x"}, "foo": 1});
    let answer = apply(&admin, &path, "fieldManager=a", &unknown).await;
    assert_eq!(
        (answer.code, answer.body["message"].as_str().unwrap()),
        (
            500,
            "failed to create typed patch object (/x; /v1, Kind=ConfigMap): .foo: field not declared in schema"
        )
    );
    admin.post(CONFIG_MAPS, &body).await.expect(201);
    let answer = admin.patch(&format!("{path}?force=true"), "merge", &json!({})).await;
    assert!(answer.refuse(422, "Invalid").contains("may not be specified for non-apply patch"));
    let cbor =
        admin.send("PATCH", &path, &[("content-type", "application/apply-patch+cbor")], vec![0xa0]).await;
    cbor.refuse(415, "UnsupportedMediaType");
    server.stop().await;
}

#[tokio::test]
async fn every_verb_records_its_manager() {
    let server = TestServer::start().await;
    let admin = server.admin();
    let agent = [("content-type", "application/json"), ("user-agent", "kubectl/v1.36.0 (linux)")];
    let body = data("x", json!({"a": "1", "b": "1", "c": "1", "d": "1"})).to_string();
    let made = admin.send("POST", CONFIG_MAPS, &agent, body.into()).await.expect(201);
    assert_eq!(owned(&made, "kubectl"), r#"{"f:data":{".":{},"f:a":{},"f:b":{},"f:c":{},"f:d":{}}}"#);
    assert!(entry(&made, "kubectl")["time"].is_string());
    let path = format!("{CONFIG_MAPS}/x");
    let mut put = made.clone();
    put["data"]["a"] = json!("2");
    admin.put(&format!("{path}?fieldManager=putter"), &put).await.expect(200);
    let query = |manager: &str| format!("{path}?fieldManager={manager}");
    admin.patch(&query("merger"), "merge", &json!({"data": {"b": "2"}})).await.expect(200);
    admin.patch(&query("strategic"), "strategic-merge", &json!({"data": {"c": "2"}})).await.expect(200);
    let patch = json!([{"op": "replace", "path": "/data/d", "value": "2"}]);
    let object = admin.patch(&query("json"), "json", &patch).await.expect(200);
    for (manager, field) in [("putter", "a"), ("merger", "b"), ("strategic", "c"), ("json", "d")] {
        assert_eq!(owned(&object, manager), format!(r#"{{"f:data":{{"f:{field}":{{}}}}}}"#));
    }
    assert_eq!(owned(&object, "kubectl"), r#"{"f:data":{}}"#);
    let before = version(&object);
    let same = admin.put(&query("nobody"), &object).await.expect(200);
    assert_eq!(version(&same), before, "nothing changed");
    assert_eq!(same, object);
    let reset = json!({"metadata": {"managedFields": [{}]}});
    let object = admin.patch(&query("x"), "merge", &reset).await.expect(200);
    assert_eq!(object["metadata"].get("managedFields"), None);
    let after = admin.patch(&query("x"), "merge", &json!({"data": {"a": "3"}})).await.expect(200);
    assert_eq!(after["metadata"].get("managedFields"), None, "untracked objects stay so until an apply");
    let config = data("x", json!({"z": "1"}));
    let object = apply(&admin, &path, "fieldManager=a", &config).await.expect(200);
    assert_eq!(
        owned(&object, "before-first-apply"),
        r#"{"f:data":{".":{},"f:a":{},"f:b":{},"f:c":{},"f:d":{}}}"#
    );
    server.stop().await;
}

#[tokio::test]
async fn an_empty_list_resets_owners_in_a_put_and_a_json_patch() {
    let server = TestServer::start().await;
    let admin = server.admin();
    let path = format!("{CONFIG_MAPS}/x");
    let mut object = admin.post(CONFIG_MAPS, &data("x", json!({"a": "1"}))).await.expect(201);
    object["metadata"]["managedFields"] = json!([]);
    let object = admin.put(&path, &object).await.expect(200);
    assert_eq!(object["metadata"].get("managedFields"), None);
    apply(&admin, &path, "fieldManager=a", &data("x", json!({"b": "1"}))).await.expect(200);
    let patch = json!([{"op": "replace", "path": "/metadata/managedFields", "value": []}]);
    let object = admin.patch(&path, "json", &patch).await.expect(200);
    assert_eq!(object["metadata"].get("managedFields"), None);
    server.stop().await;
}

#[tokio::test]
async fn status_and_spec_have_different_owners() {
    let server = TestServer::start().await;
    let admin = server.admin();
    let path = format!("{DEPLOYMENTS}/web");
    let mut config = deployment(1, "nginx");
    config["status"] = json!({"replicas": 7});
    let object = apply(&admin, &path, "fieldManager=a", &config).await.expect(201);
    assert!(!owned(&object, "a").contains("status"));
    assert_ne!(object["status"]["replicas"], 7);
    let status = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "labels": {"x": "y"}},
        "spec": {"replicas": 9}, "status": {"replicas": 3},
    });
    let missing = apply(&admin, &format!("{DEPLOYMENTS}/none/status"), "fieldManager=s", &status).await;
    missing.refuse(404, "NotFound");
    let object = apply(&admin, &format!("{path}/status"), "fieldManager=s", &status).await;
    let object = object.expect(200);
    assert_eq!(object["status"]["replicas"], 3);
    assert_eq!(object["spec"]["replicas"], 1);
    assert_eq!(entry(&object, "s")["subresource"], "status");
    assert_eq!(owned(&object, "s"), r#"{"f:status":{"f:replicas":{}}}"#);
    let mut put = object.clone();
    put["status"]["replicas"] = json!(4);
    put["metadata"]["managedFields"] = json!([]);
    let object = admin.put(&format!("{path}/status?fieldManager=controller"), &put).await.expect(200);
    assert_eq!(owned(&object, "controller"), r#"{"f:status":{"f:replicas":{}}}"#);
    assert!(!owned(&object, "a").is_empty(), "a status write cannot reset owners");
    server.stop().await;
}

#[tokio::test]
async fn the_count_of_a_scale_is_owned_by_who_set_it_there() {
    let server = TestServer::start().await;
    let admin = server.admin();
    let path = format!("{DEPLOYMENTS}/web");
    apply(&admin, &path, "fieldManager=a", &deployment(1, "nginx")).await.expect(201);
    let scale = |replicas: i64| {
        json!({"apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": {"name": "web"},
            "spec": {"replicas": replicas}})
    };
    let refused = apply(&admin, &format!("{path}/scale"), "fieldManager=b", &scale(5)).await;
    assert_eq!(
        refused.refuse(409, "Conflict"),
        "Apply failed with 1 conflict: conflict with \"a\": .spec.replicas"
    );
    let forced = apply(&admin, &format!("{path}/scale"), "fieldManager=b&force=true", &scale(5)).await;
    assert_eq!(forced.expect(200)["spec"]["replicas"], 5);
    let object = admin.get(&path).await.expect(200);
    assert_eq!(owned(&object, "b"), r#"{"f:spec":{"f:replicas":{}}}"#);
    assert_eq!(entry(&object, "b")["subresource"], "scale");
    assert_eq!(entry(&object, "b")["apiVersion"], "apps/v1");
    assert!(!owned(&object, "a").contains("replicas"));
    admin.put(&format!("{path}/scale?fieldManager=c"), &scale(6)).await.expect(200);
    let object = admin.get(&path).await.expect(200);
    assert_eq!(owned(&object, "c"), r#"{"f:spec":{"f:replicas":{}}}"#);
    assert_eq!(owned(&object, "b"), "");
    let patch = json!({"spec": {"replicas": 7}});
    admin.patch(&format!("{path}/scale?fieldManager=d"), "merge", &patch).await.expect(200);
    let object = admin.get(&path).await.expect(200);
    assert_eq!((owned(&object, "c"), object["spec"]["replicas"].clone()), (String::new(), json!(7)));
    let refused = apply(&admin, &path, "fieldManager=a", &deployment(1, "nginx")).await;
    assert_eq!(
        refused.refuse(409, "Conflict"),
        "Apply failed with 1 conflict: conflict with \"d\" with subresource \"scale\" using apps/v1: .spec.replicas"
    );
    server.stop().await;
}

#[tokio::test]
async fn what_an_applier_leaves_out_goes_and_defaults_come_back() {
    let server = TestServer::start().await;
    let admin = server.admin();
    let path = format!("{DEPLOYMENTS}/web");
    apply(&admin, &path, "fieldManager=a", &deployment(3, "nginx")).await.expect(201);
    let mut config = deployment(3, "nginx");
    config["spec"].as_object_mut().unwrap().remove("replicas");
    config["metadata"]["labels"] = json!({"x": "y"});
    let object = apply(&admin, &path, "fieldManager=a", &config).await.expect(200);
    assert_eq!(object["spec"]["replicas"], 1, "the default");
    config["metadata"].as_object_mut().unwrap().remove("labels");
    let object = apply(&admin, &path, "fieldManager=a", &config).await.expect(200);
    assert_eq!(object["metadata"].get("labels"), None);
    server.stop().await;
}

#[tokio::test]
async fn a_dry_run_shows_the_result_and_stores_nothing() {
    let server = TestServer::start().await;
    let admin = server.admin();
    let path = format!("{CONFIG_MAPS}/x");
    let config = data("x", json!({"a": "1"}));
    let dry = apply(&admin, &path, "fieldManager=a&dryRun=All", &config).await.expect(201);
    assert_eq!(owned(&dry, "a"), r#"{"f:data":{"f:a":{}}}"#);
    admin.get(&path).await.refuse(404, "NotFound");
    apply(&admin, &path, "fieldManager=a", &config).await.expect(201);
    let other = data("x", json!({"a": "2"}));
    let dry = apply(&admin, &path, "fieldManager=a&dryRun=All", &other).await.expect(200);
    assert_eq!(dry["data"]["a"], "2");
    assert_eq!(admin.get(&path).await.expect(200)["data"]["a"], "1");
    server.stop().await;
}

#[tokio::test]
async fn applying_what_is_not_there_needs_the_right_to_create() {
    let server = TestServer::start().await;
    let admin = server.admin();
    let role = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": "patcher"},
        "rules": [{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["patch"]}],
    });
    let binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "patcher"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "patcher"},
        "subjects": [{"kind": "User", "name": "jane", "apiGroup": "rbac.authorization.k8s.io"}],
    });
    admin.post("/apis/rbac.authorization.k8s.io/v1/clusterroles", &role).await.expect(201);
    admin.post("/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", &binding).await.expect(201);
    let jane = server.client("jane", "people");
    let path = format!("{CONFIG_MAPS}/x");
    let config = data("x", json!({"a": "1"}));
    let refused = apply(&jane, &path, "fieldManager=a", &config).await;
    assert!(refused.refuse(403, "Forbidden").contains("cannot create resource \"configmaps\""));
    admin.post(CONFIG_MAPS, &config).await.expect(201);
    apply(&jane, &path, "fieldManager=a", &config).await.expect(200);
    server.stop().await;
}

#[tokio::test]
async fn a_binding_and_a_kubelet_leave_other_owners_alone() {
    let server = TestServer::start().await;
    let admin = server.admin();
    make_default_account(&admin).await;
    let made = admin.post(&format!("{PODS}?fieldManager=creator"), &pod("p")).await.expect(201);
    let binding = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "p"},
        "target": {"kind": "Node", "name": "n1"}});
    admin.post(&format!("{PODS}/p/binding"), &binding).await.expect(201);
    let bound = admin.get(&format!("{PODS}/p")).await.expect(200);
    assert_eq!(bound["spec"]["nodeName"], "n1");
    assert_eq!(bound["metadata"]["managedFields"], made["metadata"]["managedFields"]);
    let status = json!({"status": {"phase": "Running", "podIP": "10.0.0.1"}});
    let path = format!("{PODS}/p/status?fieldManager=kubelet");
    let running = admin.patch(&path, "strategic-merge", &status).await.expect(200);
    assert_eq!(owned(&running, "kubelet"), r#"{"f:status":{"f:phase":{},"f:podIP":{}}}"#);
    assert_eq!(entry(&running, "creator"), entry(&made, "creator"));
    server.stop().await;
}

#[tokio::test]
async fn events_keep_their_owners_across_both_groups() {
    let server = TestServer::start().await;
    let admin = server.admin();
    let core = "/api/v1/namespaces/default/events";
    let event = json!({
        "apiVersion": "v1", "kind": "Event", "metadata": {"name": "e", "namespace": "default"},
        "involvedObject": {"kind": "Pod", "name": "p", "namespace": "default"},
        "message": "m", "reason": "R", "type": "Normal",
    });
    admin.post(&format!("{core}?fieldManager=core"), &event).await.expect(201);
    let newer = "/apis/events.k8s.io/v1/namespaces/default/events/e";
    let object =
        admin.patch(&format!("{newer}?fieldManager=new"), "merge", &json!({"note": "n"})).await.expect(200);
    assert_eq!(owned(&object, "new"), r#"{"f:note":{}}"#);
    let object = admin.get(&format!("{core}/e")).await.expect(200);
    assert_eq!(object["message"], "n");
    assert!(!owned(&object, "core").contains("f:message"), "{}", owned(&object, "core"));
    assert!(owned(&object, "core").contains("f:reason"));
    server.stop().await;
}

#[tokio::test]
async fn kubectl_moves_from_client_side_to_server_side_apply() {
    let server = TestServer::start().await;
    let admin = server.admin();
    let path = format!("{DEPLOYMENTS}/web");
    let mut object = deployment(1, "nginx");
    object["metadata"]["annotations"] = json!({
        "kubectl.kubernetes.io/last-applied-configuration": deployment(1, "nginx").to_string(),
    });
    admin.post(&format!("{DEPLOYMENTS}?fieldManager=kubectl-client-side-apply"), &object).await.expect(201);
    let object = apply(&admin, &path, "fieldManager=kubectl", &deployment(2, "nginx")).await.expect(200);
    assert_eq!(object["spec"]["replicas"], 2);
    let annotation = &object["metadata"]["annotations"]["kubectl.kubernetes.io/last-applied-configuration"];
    let said: Value = serde_json::from_str(annotation.as_str().unwrap()).unwrap();
    assert_eq!(said["spec"]["replicas"], 2);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kubectl_applies_and_compares_from_the_servers_side() {
    let server = TestServer::start().await;
    let write = |name: &str, object: &Value| {
        std::fs::write(server.folder.path().join(name), object.to_string()).unwrap();
    };
    write("web.json", &deployment(3, "nginx"));
    let run = async |arguments: &[&str]| kubectl(&server, arguments).await;
    let apply = ["apply", "--server-side", "-f", "web.json"];
    let Some((done, text)) = run(&apply).await else { return };
    assert!(done && text.contains("deployment.apps/web serverside-applied"), "{text}");
    let (done, text) = run(&apply).await.unwrap();
    assert!(done, "{text}");
    let (done, text) = run(&["scale", "deployment/web", "--replicas=5"]).await.unwrap();
    assert!(done, "{text}");
    let (done, text) = run(&apply).await.unwrap();
    let conflict = "Apply failed with 1 conflict: conflict with \"kubectl\" with subresource \"scale\" using apps/v1: \
                    .spec.replicas";
    assert!(!done && text.contains(conflict), "{text}");
    let (done, text) = run(&["diff", "--server-side", "--force-conflicts", "-f", "web.json"]).await.unwrap();
    assert!(!done && text.contains("-  replicas: 5") && text.contains("+  replicas: 3"), "{text}");
    let (done, text) = run(&["apply", "--server-side", "--force-conflicts", "-f", "web.json"]).await.unwrap();
    assert!(done, "{text}");
    let (_, text) = run(&["get", "deployment", "web", "-o", "yaml"]).await.unwrap();
    assert!(text.contains("replicas: 3") && !text.contains("managedFields"), "{text}");
    let (_, text) = run(&["get", "deployment", "web", "-o", "yaml", "--show-managed-fields"]).await.unwrap();
    assert!(text.contains("f:replicas: {}") && text.contains("manager: kubectl"), "{text}");

    write("map.json", &data("m", json!({"a": "1"})));
    let (done, text) = run(&["apply", "-f", "map.json"]).await.unwrap();
    assert!(done, "{text}");
    write("map.json", &data("m", json!({"a": "2"})));
    let (done, text) = run(&["apply", "--server-side", "-f", "map.json"]).await.unwrap();
    assert!(done, "from the client's side to the server's: {text}");
    let object = server.admin().get(&format!("{CONFIG_MAPS}/m")).await.expect(200);
    assert_eq!(object["data"]["a"], "2");
    server.stop().await;
}
