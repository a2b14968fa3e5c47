//! CustomResourceDefinitions and their objects against a real server.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::time::Instant;

use serde_json::{Value, json};
use support::{Client, DEADLINE, TestServer};

const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const WIDGETS: &str = "/apis/example.com/v1/namespaces/default/widgets";

fn schema() -> Value {
    json!({"type": "object", "description": "A widget.", "properties": {
        "spec": {"type": "object", "description": "What is wanted.", "required": ["size"], "properties": {
            "size": {"type": "string", "enum": ["small", "large"], "description": "How large."},
            "replicas": {"type": "integer", "default": 1, "minimum": 0},
            "tags": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}},
            "open": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
            "limit": {"type": "integer"},
        },
        "x-kubernetes-validations": [
            {"rule": "!has(self.limit) || self.replicas <= self.limit", "message": "replicas are limited"},
            {"rule": "self.size == oldSelf.size", "message": "size cannot change", "reason": "FieldValueForbidden"},
        ]},
        "status": {"type": "object", "properties": {
            "replicas": {"type": "integer"}, "selector": {"type": "string"}}},
    }})
}

fn definition() -> Value {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "widgets.example.com"},
        "spec": {
            "group": "example.com", "scope": "Namespaced",
            "names": {"plural": "widgets", "kind": "Widget", "shortNames": ["wd"], "categories": ["all"]},
            "versions": [{
                "name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema()},
                "subresources": {"status": {}, "scale": {
                    "specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas",
                    "labelSelectorPath": ".status.selector"}},
                "additionalPrinterColumns": [{"name": "Size", "type": "string", "jsonPath": ".spec.size"}],
                "selectableFields": [{"jsonPath": ".spec.size"}],
            }],
        },
    })
}

fn widget(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": name}, "spec": spec})
}

/// Asks until the answer is as it should be, and returns it.
async fn until(client: &Client, path: &str, what: &str, is_good: impl Fn(&support::Answer) -> bool) -> Value {
    let began = Instant::now();
    loop {
        let answer = client.get(path).await;
        if is_good(&answer) {
            return answer.body;
        }
        assert!(began.elapsed() < DEADLINE, "{what}: {}", answer.text);
        tokio::task::yield_now().await;
    }
}

async fn define(client: &Client, definition: &Value) {
    client.post(DEFINITIONS, definition).await.expect(201);
    let name = definition["metadata"]["name"].as_str().unwrap();
    until(client, &format!("{DEFINITIONS}/{name}"), "the kind is established", |answer| {
        answer.body["status"]["conditions"].as_array().is_some_and(|conditions| {
            conditions.iter().any(|found| found["type"] == "Established" && found["status"] == "True")
        })
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_defined_kind_is_served_validated_and_deleted_with_its_definition() {
    let server = TestServer::start().await;
    let admin = server.admin();
    define(&admin, &definition()).await;
    let made = admin.post(WIDGETS, &widget("a", json!({"size": "small", "typo": 1}))).await;
    assert_eq!(made.warnings(), ["299 - \"unknown field \\\"spec.typo\\\"\""]);
    let made = made.expect(201);
    assert_eq!(made["spec"], json!({"size": "small", "replicas": 1}));
    assert_eq!(made["metadata"]["generation"], 1);

    let strict = format!("{WIDGETS}?fieldValidation=Strict");
    let refused = admin.post(&strict, &widget("b", json!({"size": "small", "typo": 1}))).await;
    let message = refused.refuse(400, "BadRequest");
    assert!(message.ends_with("strict decoding error: unknown field \"spec.typo\""), "{message}");
    let message = admin.post(WIDGETS, &widget("b", json!({"size": "huge", "replicas": -1}))).await;
    let message = message.refuse(422, "Invalid");
    assert!(
        message.contains("spec.size: Unsupported value: \"huge\": supported values: \"small\", \"large\""),
        "{message}"
    );
    assert!(message.contains("spec.replicas in body should be greater than or equal to 0"), "{message}");
    let twice = admin.post(WIDGETS, &widget("b", json!({"size": "small", "tags": ["x", "x"]}))).await;
    assert!(twice.refuse(422, "Invalid").contains("spec.tags[1]: Duplicate value: \"x\""));

    let path = format!("{WIDGETS}/a");
    let mut without_version = made.clone();
    without_version["metadata"].as_object_mut().unwrap().remove("resourceVersion");
    let message = admin.put(&path, &without_version).await.refuse(422, "Invalid");
    assert!(
        message.contains("metadata.resourceVersion: Invalid value: 0: must be specified for an update"),
        "{message}"
    );
    admin
        .patch(&path, "strategic-merge", &json!({"spec": {"replicas": 2}}))
        .await
        .refuse(415, "UnsupportedMediaType");

    admin.delete(&format!("{DEFINITIONS}/widgets.example.com"), &Value::Null).await.expect(200);
    until(&admin, &format!("{DEFINITIONS}/widgets.example.com"), "the definition goes", |a| a.code == 404)
        .await;
    until(&admin, WIDGETS, "the kind goes", |answer| answer.code == 404).await;
    until(&admin, "/apis/example.com", "the group goes", |answer| answer.code == 404).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn status_scale_and_generation_are_kept_apart() {
    let server = TestServer::start().await;
    let admin = server.admin();
    define(&admin, &definition()).await;
    let mut made = widget("a", json!({"size": "small", "replicas": 3}));
    made["status"] = json!({"replicas": 9});
    let made = admin.post(WIDGETS, &made).await.expect(201);
    assert_eq!(made.get("status"), None);
    let path = format!("{WIDGETS}/a");

    let mut status = made.clone();
    status["spec"]["replicas"] = json!(7);
    status["metadata"]["labels"] = json!({"a": "b"});
    status["status"] = json!({"replicas": 2, "selector": "app=a"});
    let stored = admin.put(&format!("{path}/status"), &status).await.expect(200);
    assert_eq!((&stored["spec"]["replicas"], &stored["status"]["replicas"]), (&json!(3), &json!(2)));
    assert_eq!(stored["metadata"].get("labels"), None);
    assert_eq!(stored["metadata"]["generation"], 1);

    let scale = admin.get(&format!("{path}/scale")).await.expect(200);
    assert_eq!(scale["spec"]["replicas"], 3);
    assert_eq!(scale["status"], json!({"replicas": 2, "selector": "app=a"}));
    let scaled =
        admin.patch(&format!("{path}/scale"), "merge", &json!({"spec": {"replicas": 5}})).await.expect(200);
    assert_eq!(scaled["spec"]["replicas"], 5);
    let object = admin.get(&path).await.expect(200);
    assert_eq!((&object["spec"]["replicas"], &object["metadata"]["generation"]), (&json!(5), &json!(2)));
    let labelled =
        admin.patch(&path, "merge", &json!({"metadata": {"labels": {"x": "y"}}})).await.expect(200);
    assert_eq!(labelled["metadata"]["generation"], 2);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_judge_objects_and_their_changes() {
    let server = TestServer::start().await;
    let admin = server.admin();
    define(&admin, &definition()).await;
    let message =
        admin.post(WIDGETS, &widget("a", json!({"size": "small", "replicas": 3, "limit": 2}))).await;
    let message = message.refuse(422, "Invalid");
    assert!(message.contains("spec: Invalid value: replicas are limited"), "{message}");
    admin.post(WIDGETS, &widget("a", json!({"size": "small"}))).await.expect(201);
    let path = format!("{WIDGETS}/a");
    let message =
        admin.patch(&path, "merge", &json!({"spec": {"size": "large"}})).await.refuse(422, "Invalid");
    assert!(message.contains("spec: Forbidden: size cannot change"), "{message}");

    let mut broken = definition();
    broken["metadata"]["name"] = json!("others.example.com");
    broken["spec"]["names"] = json!({"plural": "others", "kind": "Other"});
    broken["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["x-kubernetes-validations"] =
        json!([{"rule": "self.missing > 1"}]);
    let message = admin.post(DEFINITIONS, &broken).await.refuse(422, "Invalid");
    assert!(message.contains("x-kubernetes-validations[0].rule: Invalid value"), "{message}");
    assert!(message.contains("undefined field 'missing'"), "{message}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn several_versions_show_the_same_objects() {
    let server = TestServer::start().await;
    let admin = server.admin();
    let mut two = definition();
    let mut older = two["spec"]["versions"][0].clone();
    older["name"] = json!("v1beta1");
    older["storage"] = json!(false);
    older["deprecated"] = json!(true);
    two["spec"]["versions"].as_array_mut().unwrap().push(older);
    define(&admin, &two).await;
    admin.post(WIDGETS, &widget("a", json!({"size": "small"}))).await.expect(201);
    let old_path = "/apis/example.com/v1beta1/namespaces/default/widgets";
    let mut watch = admin.watch(&format!("{old_path}?watch=true")).await;
    let event = watch.next().await.unwrap();
    assert_eq!(
        (event["type"].as_str(), event["object"]["apiVersion"].as_str()),
        (Some("ADDED"), Some("example.com/v1beta1"))
    );
    let answer = admin.get(&format!("{old_path}/a")).await;
    assert_eq!(
        answer.warnings(),
        ["299 - \"example.com/v1beta1 Widget is deprecated; use example.com/v1 Widget\""]
    );
    let mut object = answer.expect(200);
    assert_eq!(object["apiVersion"], "example.com/v1beta1");
    object["spec"]["replicas"] = json!(4);
    admin.put(&format!("{old_path}/a"), &object).await.expect(200);
    let newer = admin.get(&format!("{WIDGETS}/a")).await.expect(200);
    assert_eq!((&newer["apiVersion"], &newer["spec"]["replicas"]), (&json!("example.com/v1"), &json!(4)));
    let list = admin.get(old_path).await.expect(200);
    assert_eq!(list["items"][0]["apiVersion"], "example.com/v1beta1");

    let unserve = json!([{"op": "replace", "path": "/spec/versions/1/served", "value": false}]);
    admin.patch(&format!("{DEFINITIONS}/widgets.example.com"), "json", &unserve).await.expect(200);
    until(&admin, old_path, "the version is not served any more", |answer| answer.code == 404).await;
    admin.get(&format!("{WIDGETS}/a")).await.expect(200);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn defaults_that_come_later_show_in_old_objects_and_are_not_written_back() {
    let server = TestServer::start().await;
    let admin = server.admin();
    define(&admin, &definition()).await;
    let made = admin.post(WIDGETS, &widget("a", json!({"size": "small"}))).await.expect(201);
    let path = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/colour";
    let add = json!([{"op": "add", "path": path, "value": {"type": "string", "default": "red"}}]);
    admin.patch(&format!("{DEFINITIONS}/widgets.example.com"), "json", &add).await.expect(200);
    let object = format!("{WIDGETS}/a");
    let shown =
        until(&admin, &object, "the default shows", |answer| answer.body["spec"]["colour"] == "red").await;
    assert_eq!(shown["metadata"]["resourceVersion"], made["metadata"]["resourceVersion"]);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_selectors_and_other_encodings_know_custom_kinds() {
    let server = TestServer::start().await;
    let admin = server.admin();
    define(&admin, &definition()).await;
    for (name, size) in [("a", "small"), ("b", "large")] {
        admin.post(WIDGETS, &widget(name, json!({"size": size}))).await.expect(201);
    }
    let table = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";
    let table = admin.send("GET", WIDGETS, &[("accept", table)], Vec::new()).await.expect(200);
    assert_eq!(table["columnDefinitions"][1]["name"], "Size");
    assert_eq!(table["rows"][0]["cells"], json!(["a", "small"]));
    let large = admin.get(&format!("{WIDGETS}?fieldSelector=spec.size%3Dlarge")).await.expect(200);
    let names: Vec<&Value> =
        large["items"].as_array().unwrap().iter().map(|item| &item["metadata"]["name"]).collect();
    assert_eq!(names, ["b"]);
    admin.get(&format!("{WIDGETS}?fieldSelector=spec.replicas%3D1")).await.refuse(400, "BadRequest");
    let protobuf = "application/vnd.kubernetes.protobuf";
    let refused = admin.send("GET", WIDGETS, &[("accept", protobuf)], Vec::new()).await;
    assert_eq!(refused.code, 406, "{}", refused.text);
    let either = format!("{protobuf},application/json");
    let answer = admin.send("GET", WIDGETS, &[("accept", &either)], Vec::new()).await;
    assert_eq!(answer.headers["content-type"], "application/json");
    assert_eq!(answer.expect(200)["items"].as_array().unwrap().len(), 2);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn discovery_and_openapi_show_custom_kinds() {
    let server = TestServer::start().await;
    let admin = server.admin();
    define(&admin, &definition()).await;
    let list = admin.get("/apis/example.com/v1").await.expect(200);
    let names: Vec<&str> =
        list["resources"].as_array().unwrap().iter().filter_map(|entry| entry["name"].as_str()).collect();
    assert_eq!(names, ["widgets", "widgets/status", "widgets/scale"]);
    assert_eq!(list["resources"][0]["shortNames"], json!(["wd"]));
    assert_eq!(list["resources"][2]["kind"], "Scale");
    let groups = admin.get("/apis").await.expect(200);
    // After the built-in ones, in the order of their names.
    let groups: Vec<&Value> =
        groups["groups"].as_array().unwrap().iter().map(|group| &group["name"]).collect();
    assert!(groups.ends_with(&[&json!("example.com"), &json!("projectcalico.org")]), "{groups:?}");

    let v2 = admin.get("/openapi/v2").await.expect(200);
    let definition_of = &v2["definitions"]["com.example.v1.Widget"];
    assert_eq!(definition_of["properties"]["spec"]["properties"]["size"]["description"], "How large.");
    assert_eq!(
        definition_of["x-kubernetes-group-version-kind"],
        json!([{"group": "example.com", "version": "v1", "kind": "Widget"}])
    );
    assert!(v2["paths"]["/apis/example.com/v1/namespaces/{namespace}/widgets/{name}/status"].is_object());
    let index = admin.get("/openapi/v3").await.expect(200);
    let url = index["paths"]["apis/example.com/v1"]["serverRelativeURL"].as_str().unwrap();
    let v3 = admin.get(url).await.expect(200);
    assert!(v3["components"]["schemas"]["com.example.v1.WidgetList"].is_object());
    assert!(v3["components"]["schemas"]["io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"].is_object());
    let patch = &v3["paths"]["/apis/example.com/v1/namespaces/{namespace}/widgets/{name}"]["patch"];
    assert!(patch["requestBody"]["content"].get("application/strategic-merge-patch+json").is_none());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn fields_that_are_applied_belong_to_their_manager() {
    let server = TestServer::start().await;
    let admin = server.admin();
    define(&admin, &definition()).await;
    let apply = async |manager: &str, spec: Value| {
        let path = format!("{WIDGETS}/a?fieldManager={manager}");
        let body = widget("a", spec).to_string().into();
        admin.send("PATCH", &path, &[("content-type", "application/apply-patch+yaml")], body).await
    };
    let made = apply("one", json!({"size": "small", "tags": ["x"]})).await.expect(201);
    assert_eq!(made["spec"], json!({"size": "small", "tags": ["x"], "replicas": 1}));
    let more = apply("two", json!({"size": "small", "tags": ["y"], "replicas": 3})).await.expect(200);
    assert_eq!(more["spec"]["tags"], json!(["x", "y"]), "the set has members of both");
    let conflict = apply("one", json!({"size": "small", "tags": ["x"], "replicas": 4})).await;
    conflict.refuse(409, "Conflict");
    let open = apply("three", json!({"size": "small", "open": {"any": {"thing": 1}}})).await.expect(200);
    assert_eq!(open["spec"]["open"], json!({"any": {"thing": 1}}));
    let unknown = apply("three", json!({"size": "small", "typo": 1})).await;
    assert!(unknown.text.contains(".spec.typo: field not declared in schema"), "{}", unknown.text);
    let less = apply("two", json!({"size": "small"})).await.expect(200);
    let less = json!({"spec": {"size": less["spec"]["size"], "tags": less["spec"]["tags"], "replicas": less["spec"]["replicas"]}});
    assert_eq!(less["spec"], json!({"size": "small", "tags": ["x"], "replicas": 1}));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_with_finalizers_hold_their_definition() {
    let server = TestServer::start().await;
    let admin = server.admin();
    define(&admin, &definition()).await;
    let mut held = widget("a", json!({"size": "small"}));
    held["metadata"]["finalizers"] = json!(["example.com/hold"]);
    admin.post(WIDGETS, &held).await.expect(201);
    let path = format!("{DEFINITIONS}/widgets.example.com");
    let deleted = admin.delete(&path, &Value::Null).await.expect(200);
    assert_eq!(deleted["metadata"]["finalizers"], json!(["customresourcecleanup.apiextensions.k8s.io"]));
    let object = format!("{WIDGETS}/a");
    until(&admin, &object, "the object is marked", |answer| {
        answer.body["metadata"]["deletionTimestamp"].is_string()
    })
    .await;
    let labelled =
        admin.patch(&path, "merge", &json!({"metadata": {"labels": {"a": "b"}}})).await.expect(200);
    assert_eq!(labelled["metadata"]["labels"]["a"], "b", "a definition that goes may still be changed");
    admin.post(WIDGETS, &widget("b", json!({"size": "small"}))).await.refuse(405, "MethodNotAllowed");
    let release = json!({"metadata": {"finalizers": null}});
    admin.patch(&object, "merge", &release).await.expect(200);
    until(&admin, &path, "the definition goes", |answer| answer.code == 404).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kinds_are_served_again_after_a_restart() {
    let server = TestServer::start().await;
    define(&server.admin(), &definition()).await;
    server.admin().post(WIDGETS, &widget("a", json!({"size": "small"}))).await.expect(201);
    let folder = server.stop().await;
    let server = TestServer::start_in(folder).await;
    assert_eq!(server.admin().get(&format!("{WIDGETS}/a")).await.expect(200)["spec"]["size"], "small");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn watches_end_with_the_kind_as_they_began_to_watch_it() {
    let server = TestServer::start().await;
    let admin = server.admin();
    define(&admin, &definition()).await;
    let path = format!("{DEFINITIONS}/widgets.example.com");
    let watch = format!("{WIDGETS}?watch=1");
    let mut events = admin.watch(&watch).await;
    let labels = json!({"metadata": {"labels": {"a": "b"}}});
    admin.patch(&path, "merge", &labels).await.expect(200);
    admin.post(WIDGETS, &widget("a", json!({"size": "small"}))).await.expect(201);
    assert_eq!(events.next_named().await, ("ADDED".to_owned(), "a".to_owned()), "metadata is no matter");
    let column = json!([{"op": "add", "path": "/spec/versions/0/additionalPrinterColumns/-",
        "value": {"name": "Limit", "type": "integer", "jsonPath": ".spec.limit"}}]);
    admin.patch(&path, "json", &column).await.expect(200);
    assert_eq!(events.next().await, None, "another spec ends it");

    let mut events = loop {
        // Another watch of the old kind, where the new one was not there yet, ends at once.
        let mut events = admin.watch(&watch).await;
        if let Some(first) = events.next().await {
            assert_eq!(first["object"]["metadata"]["name"], "a");
            break events;
        }
    };
    admin.delete(&path, &Value::Null).await.expect(200);
    let mut last = None;
    while let Some(event) = events.next().await {
        last = Some(event);
    }
    assert_eq!(last.unwrap()["type"], "DELETED", "the objects go first, and then the watch");
    until(&admin, WIDGETS, "the kind goes", |answer| answer.code == 404).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_definition_tells_of_its_approval_and_of_a_bundle_that_trusts_nobody() {
    let server = TestServer::start().await;
    let admin = server.admin();
    let condition = |answer: &support::Answer, kind: &str| {
        let conditions = answer.body["status"]["conditions"].as_array().cloned().unwrap_or_default();
        conditions.into_iter().find(|found| found["type"] == kind).unwrap_or_default()
    };
    let mut community = definition();
    community["metadata"] =
        json!({"name": "widgets.x.k8s.io", "annotations": {"api-approved.kubernetes.io": "unapproved"}});
    community["spec"]["group"] = json!("x.k8s.io");
    define(&admin, &community).await;
    let path = format!("{DEFINITIONS}/widgets.x.k8s.io");
    let kind = "KubernetesAPIApprovalPolicyConformant";
    until(&admin, &path, "what it lacks is told", |answer| {
        condition(answer, kind)["reason"] == "UnapprovedAnnotation"
    })
    .await;
    let approve = json!({"metadata": {"annotations": {"api-approved.kubernetes.io": "https://a.b/1"}}});
    admin.patch(&path, "merge", &approve).await.expect(200);
    until(&admin, &path, "the approval is told", |answer| {
        let condition = condition(answer, kind);
        condition["status"] == "True" && condition["message"] == "approved in https://a.b/1"
    })
    .await;

    let mut converted = definition();
    converted["spec"]["conversion"] = json!({"strategy": "Webhook", "webhook": {"conversionReviewVersions": ["v1"],
        "clientConfig": {"url": "https://127.0.0.1:1/convert", "caBundle": "YQ=="}}});
    admin.post(DEFINITIONS, &converted).await.expect(201);
    let path = format!("{DEFINITIONS}/widgets.example.com");
    until(&admin, &path, "it is not served", |answer| {
        condition(answer, "Established")["reason"] == "InvalidCABundle"
    })
    .await;
    assert_eq!(admin.get(WIDGETS).await.code, 404);
    let bundle = json!({"spec": {"conversion": {"webhook": {"clientConfig": {"caBundle": null}}}}});
    admin.patch(&path, "merge", &bundle).await.expect(200);
    until(&admin, &path, "it is served", |answer| condition(answer, "Established")["status"] == "True").await;
    admin.get(WIDGETS).await.expect(200);
    let again = json!({"spec": {"conversion": {"webhook": {"clientConfig": {"caBundle": "YQ=="}}}}});
    let message = admin.patch(&path, "merge", &again).await.refuse(422, "Invalid");
    assert!(
        message.contains("unable to load root certificates: unable to parse bytes as PEM block"),
        "{message}"
    );
    server.stop().await;
}
