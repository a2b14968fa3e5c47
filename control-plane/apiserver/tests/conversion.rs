//! A kind of two versions between which a webhook converts: every verb in both versions, against a real server.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use serde_json::{Value, json};
use support::{
    Answer, Client, DEADLINE, TestServer,
    webhook::{Backend, Received},
};

const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const V1: &str = "/apis/example.com/v1/namespaces/default/endings";
const V2: &str = "/apis/example.com/v2/namespaces/default/endings";

/// `hostPort: "a:1"` in v1 is `host: "a"` and `port: "1"` in v2, and `count` is `size`.
fn convert(object: &Value, version: &str) -> Value {
    let mut object = object.clone();
    let spec = object["spec"].take();
    object["spec"] = match (version, spec["hostPort"].as_str()) {
        ("example.com/v2", Some(both)) => {
            let (host, port) = both.split_once(':').unwrap_or((both, ""));
            json!({"host": host, "port": port})
        }
        ("example.com/v1", None) => {
            let text = |field: &str| spec[field].as_str().unwrap_or_default().to_owned();
            json!({"hostPort": format!("{}:{}", text("host"), text("port"))})
        }
        _ => spec.clone(),
    };
    if let Some(count) = spec.get("count").or(spec.get("size")) {
        object["spec"][if version == "example.com/v1" { "count" } else { "size" }] = count.clone();
    }
    object["apiVersion"] = json!(version);
    object
}

fn answer(request: &Received, is_broken: bool) -> (u16, Value) {
    let asked = &request.body["request"];
    let version = asked["desiredAPIVersion"].as_str().unwrap();
    let objects = asked["objects"].as_array().unwrap().iter();
    let response = if is_broken {
        json!({"uid": asked["uid"], "result": {"status": "Failed", "message": "out of order"}})
    } else {
        let converted: Vec<Value> = objects.map(|object| convert(object, version)).collect();
        json!({"uid": asked["uid"], "result": {"status": "Success"}, "convertedObjects": converted})
    };
    (200, json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "ConversionReview", "response": response}))
}

fn definition(client: Value) -> Value {
    let text = json!({"type": "string"});
    let version = |name: &str, storage: bool, fields: &[&str], count: &str| {
        let mut fields: Value = fields.iter().map(|field| ((*field).to_owned(), text.clone())).collect();
        fields[count] = json!({"type": "integer"});
        let scale =
            json!({"specReplicasPath": format!(".spec.{count}"), "statusReplicasPath": ".status.count"});
        json!({"name": name, "served": true, "storage": storage, "subresources": {"scale": scale},
            "schema": {"openAPIV3Schema": {"type": "object",
                "properties": {"spec": {"type": "object", "properties": fields}}}}})
    };
    json!({"metadata": {"name": "endings.example.com"}, "spec": {
        "group": "example.com", "scope": "Namespaced", "names": {"plural": "endings", "kind": "Ending"},
        "versions": [version("v1", true, &["hostPort"], "count"), version("v2", false, &["host", "port"], "size")],
        "conversion": {"strategy": "Webhook", "webhook": {"conversionReviewVersions": ["v1"], "clientConfig": client}},
    }})
}

fn v1(name: &str, both: &str) -> Value {
    json!({"apiVersion": "example.com/v1", "kind": "Ending", "metadata": {"name": name}, "spec": {"hostPort": both}})
}

fn v2(name: &str, host: &str, port: &str) -> Value {
    json!({"apiVersion": "example.com/v2", "kind": "Ending", "metadata": {"name": name},
        "spec": {"host": host, "port": port}})
}

async fn until(client: &Client, path: &str, is_good: impl Fn(&Answer) -> bool) {
    let asking = async { while !is_good(&client.get(path).await) {} };
    tokio::time::timeout(DEADLINE, asking).await.unwrap_or_else(|_| panic!("waited for {path}"));
}

async fn apply(client: &Client, path: &str, manager: &str, object: &Value) -> Answer {
    let path = format!("{path}/{}?fieldManager={manager}", object["metadata"]["name"].as_str().unwrap());
    client
        .send("PATCH", &path, &[("content-type", "application/apply-patch+yaml")], object.to_string().into())
        .await
}

async fn start() -> (TestServer, Client, Backend, Arc<AtomicBool>) {
    let server = TestServer::start().await;
    let admin = server.admin();
    let is_broken = Arc::new(AtomicBool::new(false));
    let switch = Arc::clone(&is_broken);
    let backend = Backend::start(move |request| answer(request, switch.load(Ordering::SeqCst))).await;
    admin.post(DEFINITIONS, &definition(backend.client_config("/convert"))).await.expect(201);
    until(&admin, V2, |answer| answer.code == 200).await;
    (server, admin, backend, is_broken)
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_are_read_written_and_watched_in_every_version() {
    let (server, admin, backend, _) = start().await;
    let mut events = admin.watch(&format!("{V2}?watch=1")).await;
    admin.post(V1, &v1("a", "x:1")).await.expect(201);
    let event = events.next().await.unwrap();
    assert_eq!(
        (&event["type"], &event["object"]["spec"]),
        (&json!("ADDED"), &json!({"host": "x", "port": "1"}))
    );
    assert_eq!(event["object"]["apiVersion"], "example.com/v2");

    let made = admin.post(V2, &v2("b", "y", "2")).await.expect(201);
    assert_eq!((&made["apiVersion"], &made["spec"]["host"]), (&json!("example.com/v2"), &json!("y")));
    assert_eq!(events.next_named().await, ("ADDED".to_owned(), "b".to_owned()));
    assert_eq!(admin.get(&format!("{V1}/b")).await.expect(200)["spec"], json!({"hostPort": "y:2"}));
    let list = admin.get(V2).await.expect(200);
    let hosts: Vec<&Value> =
        list["items"].as_array().unwrap().iter().map(|item| &item["spec"]["host"]).collect();
    assert_eq!(hosts, ["x", "y"]);

    let mut whole = admin.get(&format!("{V2}/a")).await.expect(200);
    whole["spec"]["port"] = json!("9");
    admin.put(&format!("{V2}/a"), &whole).await.expect(200);
    assert_eq!(events.next().await.unwrap()["object"]["spec"]["port"], "9");
    let patched = admin.patch(&format!("{V2}/a"), "merge", &json!({"spec": {"host": "z"}})).await.expect(200);
    assert_eq!((&patched["spec"]["host"], &patched["metadata"]["generation"]), (&json!("z"), &json!(3)));
    assert_eq!(events.next().await.unwrap()["object"]["spec"]["host"], "z");
    assert_eq!(admin.get(&format!("{V1}/a")).await.expect(200)["spec"], json!({"hostPort": "z:9"}));
    let again = admin.put(&format!("{V2}/a"), &patched).await.expect(200);
    assert_eq!(
        again["metadata"]["resourceVersion"], patched["metadata"]["resourceVersion"],
        "nothing changed"
    );

    admin.delete(&format!("{V1}/b"), &Value::Null).await.expect(200);
    let gone = events.next().await.unwrap();
    assert_eq!((&gone["type"], &gone["object"]["spec"]["host"]), (&json!("DELETED"), &json!("y")));
    let review = &backend.received()[0].body;
    assert_eq!(
        (&review["kind"], &review["apiVersion"]),
        (&json!("ConversionReview"), &json!("apiextensions.k8s.io/v1"))
    );
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fields_are_owned_across_versions() {
    let (server, admin, _backend, _) = start().await;
    apply(&admin, V1, "one", &v1("a", "x:1")).await.expect(201);
    let same = apply(&admin, V2, "two", &v2("a", "x", "1")).await.expect(200);
    assert_eq!(same["spec"], json!({"host": "x", "port": "1"}));
    let managers = same["metadata"]["managedFields"].as_array().unwrap().clone();
    let named =
        |name: &str| managers.iter().find(|entry| entry["manager"] == name).unwrap()["apiVersion"].clone();
    assert_eq!((named("one"), named("two")), (json!("example.com/v1"), json!("example.com/v2")));
    let moved = apply(&admin, V2, "one", &v2("a", "x", "1")).await.expect(200);
    let entries = moved["metadata"]["managedFields"].as_array().unwrap();
    assert!(entries.iter().all(|entry| entry["apiVersion"] == "example.com/v2"), "{entries:?}");
    let message = apply(&admin, V2, "three", &v2("a", "y", "1")).await.refuse(409, "Conflict");
    let named = message.contains("\"one\"") && message.contains("\"two\"") && message.contains(".spec.host");
    assert!(named, "{message}");
    server.stop().await;
}

/// The fields of a manager, without the operation and the time.
fn owned_by(object: &Value, manager: &str) -> Option<(String, Value)> {
    let entries = object["metadata"]["managedFields"].as_array()?;
    let entry = entries.iter().find(|entry| entry["manager"] == manager)?;
    Some((entry["apiVersion"].as_str()?.to_owned(), entry["fieldsV1"].clone()))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_field_that_the_conversion_renames_conflicts_in_the_version_of_its_owner() {
    let (server, admin, _backend, _) = start().await;
    apply(&admin, V1, "one", &v1("a", "x:1")).await.expect(201);
    let message = apply(&admin, V2, "two", &v2("a", "y", "1")).await.refuse(409, "Conflict");
    assert_eq!(message, "Apply failed with 1 conflict: conflict with \"one\": .spec.hostPort");
    let path = format!("{V2}/a?fieldManager=two&force=true");
    let headers = [("content-type", "application/apply-patch+yaml")];
    let forced = admin.send("PATCH", &path, &headers, v2("a", "y", "1").to_string().into()).await.expect(200);
    assert_eq!(owned_by(&forced, "one"), None, "{forced}");
    let own = json!({"f:spec": {"f:host": {}, "f:port": {}}});
    assert_eq!(owned_by(&forced, "two"), Some(("example.com/v2".to_owned(), own.clone())));

    // A write in the other version takes what it changes there, and no more.
    let other = json!({"spec": {"hostPort": "z:1"}});
    let patched = admin.patch(&format!("{V1}/a?fieldManager=three"), "merge", &other).await.expect(200);
    let left = json!({"f:spec": {"f:port": {}}});
    assert_eq!(owned_by(&patched, "two"), Some(("example.com/v2".to_owned(), left)));
    let taken = json!({"f:spec": {"f:hostPort": {}}});
    assert_eq!(owned_by(&patched, "three"), Some(("example.com/v1".to_owned(), taken)));
    let message = apply(&admin, V2, "two", &v2("a", "y", "1")).await.refuse(409, "Conflict");
    let wanted = "Apply failed with 1 conflict: conflict with \"three\" using example.com/v1: .spec.hostPort";
    assert_eq!(message, wanted);
    // The same value by other names is no conflict.
    let same = apply(&admin, V2, "two", &v2("a", "z", "1")).await.expect(200);
    assert_eq!(owned_by(&same, "two"), Some(("example.com/v2".to_owned(), own)));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scale_takes_the_replica_count_from_its_owner_in_another_version() {
    let (server, admin, _backend, _) = start().await;
    let mut one = v1("a", "x:1");
    one["spec"]["count"] = json!(1);
    apply(&admin, V1, "one", &one).await.expect(201);
    let mut scale = admin.get(&format!("{V2}/a/scale")).await.expect(200);
    scale["spec"]["replicas"] = json!(3);
    admin.put(&format!("{V2}/a/scale?fieldManager=two"), &scale).await.expect(200);
    let scaled = admin.get(&format!("{V2}/a")).await.expect(200);
    assert_eq!(scaled["spec"], json!({"host": "x", "port": "1", "size": 3}));
    let left = json!({"f:spec": {"f:hostPort": {}}});
    assert_eq!(owned_by(&scaled, "one"), Some(("example.com/v1".to_owned(), left)));
    let taken = json!({"f:spec": {"f:size": {}}});
    assert_eq!(owned_by(&scaled, "two"), Some(("example.com/v2".to_owned(), taken)));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_applier_leaves_out_goes_under_the_names_of_its_last_version() {
    let (server, admin, backend, _) = start().await;
    let mut one = v1("a", "x:1");
    one["metadata"]["labels"] = json!({"mine": "1"});
    apply(&admin, V1, "one", &one).await.expect(201);
    apply(&admin, V1, "other", &v1("a", "x:1")).await.expect(200);
    let before = backend.received().len();
    let moved = apply(&admin, V2, "one", &v2("a", "x", "1")).await.expect(200);
    assert_eq!(moved["spec"], json!({"host": "x", "port": "1"}));
    assert_eq!(moved["metadata"].get("labels"), None, "{moved}");
    let own = json!({"f:spec": {"f:host": {}, "f:port": {}}});
    assert_eq!(owned_by(&moved, "one"), Some(("example.com/v2".to_owned(), own)));
    let asked: Vec<(Value, Value)> = backend.received()[before..]
        .iter()
        .flat_map(|review| {
            let request = &review.body["request"];
            let objects = request["objects"].as_array().unwrap().iter();
            objects.map(|object| (request["desiredAPIVersion"].clone(), object.clone())).collect::<Vec<_>>()
        })
        .collect();
    let twice = asked.iter().enumerate().find(|(i, one)| asked[..*i].contains(one));
    assert_eq!(twice, None, "asked once for each object and version");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_whose_version_cannot_be_made_fails_an_apply_and_no_update() {
    let (server, admin, _backend, is_broken) = start().await;
    apply(&admin, V2, "two", &v2("a", "x", "1")).await.expect(201);
    is_broken.store(true, Ordering::SeqCst);
    let message = apply(&admin, V1, "one", &v1("a", "y:1")).await.refuse(500, "InternalError");
    assert_eq!(message, "conversion webhook for example.com/v1, Kind=Ending failed: out of order");
    let other = json!({"spec": {"hostPort": "z:1"}});
    let patched = admin.patch(&format!("{V1}/a"), "merge", &other).await.expect(200);
    assert_eq!(patched["spec"]["hostPort"], "z:1");
    assert_eq!(patched["metadata"].get("managedFields"), None, "nobody can be said to own what");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_webhook_that_fails_is_quoted_and_harms_no_other_version() {
    let (server, admin, _backend, is_broken) = start().await;
    admin.post(V1, &v1("a", "x:1")).await.expect(201);
    is_broken.store(true, Ordering::SeqCst);
    let wanted = "conversion webhook for example.com/v1, Kind=Ending failed: out of order";
    assert_eq!(admin.get(&format!("{V2}/a")).await.refuse(500, "InternalError"), wanted);
    assert_eq!(admin.get(V2).await.refuse(500, "InternalError"), wanted);
    let refused = admin.post(V2, &v2("b", "y", "2")).await.refuse(500, "InternalError");
    assert_eq!(refused, "conversion webhook for example.com/v2, Kind=Ending failed: out of order");
    assert_eq!(admin.get(&format!("{V1}/a")).await.expect(200)["spec"]["hostPort"], "x:1");
    is_broken.store(false, Ordering::SeqCst);
    assert_eq!(admin.get(&format!("{V2}/a")).await.expect(200)["spec"]["host"], "x");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_move_to_the_version_that_is_stored_now() {
    let (server, admin, _backend, is_broken) = start().await;
    admin.post(V1, &v1("a", "x:1")).await.expect(201);
    let path = format!("{DEFINITIONS}/endings.example.com");
    let turn = json!([
        {"op": "replace", "path": "/spec/versions/0/storage", "value": false},
        {"op": "replace", "path": "/spec/versions/1/storage", "value": true},
    ]);
    let turned = admin.patch(&path, "json", &turn).await.expect(200);
    assert_eq!(turned["status"]["storedVersions"], json!(["v1", "v2"]));
    // A version that is stored is shown without the webhook, and only that one.
    let mut writes = 0;
    let mut stored_as_v2 = async || {
        writes += 1;
        let label = json!({"metadata": {"labels": {"write": writes.to_string()}}});
        admin.patch(&format!("{V2}/a"), "merge", &label).await.expect(200);
        is_broken.store(true, Ordering::SeqCst);
        let codes = (admin.get(&format!("{V1}/a")).await.code, admin.get(&format!("{V2}/a")).await.code);
        is_broken.store(false, Ordering::SeqCst);
        codes == (500, 200)
    };
    let moving = async { while !stored_as_v2().await {} };
    tokio::time::timeout(DEADLINE, moving).await.expect("what is written is stored in the new version");
    assert_eq!(admin.get(&format!("{V1}/a")).await.expect(200)["spec"], json!({"hostPort": "x:1"}));
    server.stop().await;
}
