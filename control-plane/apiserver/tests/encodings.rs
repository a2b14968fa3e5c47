//! Protobuf, YAML and JSON over the wire: what goes in comes out the same in every form.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use api::{
    protobuf,
    schema::{TypeId, builtin},
};
use serde_json::{Value, json};
use support::{Answer, CONFIG_MAPS, Client, PODS, TestServer, config_map, make_default_account, pod};

const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";

fn type_of(api_version: &str, kind: &str) -> TypeId {
    let (group, version) = api::meta::group_and_version(api_version);
    builtin().type_of(group, version, kind).unwrap()
}

fn encoded(object: &Value) -> Vec<u8> {
    protobuf::encode_any(builtin(), object).unwrap()
}

/// Sends protobuf and takes nothing else; returns the answer decoded.
async fn exchange(client: &Client, method: &str, path: &str, object: Option<&Value>) -> Answer {
    let body = object.map(encoded).unwrap_or_default();
    let mut answer =
        client.send(method, path, &[("content-type", PROTOBUF), ("accept", PROTOBUF)], body).await;
    assert_eq!(answer.headers["content-type"], PROTOBUF, "{}", answer.text);
    answer.body = decoded(&answer.bytes);
    answer
}

fn decoded(bytes: &[u8]) -> Value {
    let (api_version, kind) = protobuf::identity(bytes).unwrap();
    protobuf::decode(builtin(), type_of(&api_version, &kind), bytes).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_lives_its_whole_life_in_protobuf() {
    let server = TestServer::start().await;
    let admin = server.admin();
    let object = config_map("a", json!({"x": "y"}), json!({"k": "1"}));
    let made = exchange(&admin, "POST", CONFIG_MAPS, Some(&object)).await.expect(201);
    assert_eq!(made["data"], json!({"k": "1"}));
    let path = format!("{CONFIG_MAPS}/a");
    let as_json = admin.get(&path).await.expect(200);
    assert_eq!(as_json, made);
    assert_eq!(exchange(&admin, "GET", &path, None).await.expect(200), as_json);

    let mut changed = made.clone();
    changed["data"]["k"] = json!("2");
    let stored = exchange(&admin, "PUT", &path, Some(&changed)).await.expect(200);
    assert_eq!(stored["data"]["k"], "2");
    assert_eq!(exchange(&admin, "PUT", &path, Some(&made)).await.code, 409);
    let list = exchange(&admin, "GET", CONFIG_MAPS, None).await.expect(200);
    assert_eq!((&list["kind"], &list["items"][0]["data"]["k"]), (&json!("ConfigMapList"), &json!("2")));
    let version =
        |object: &Value| object["metadata"]["resourceVersion"].as_str().unwrap().parse::<u64>().unwrap();
    assert!(version(&list) >= version(&stored));

    let options = json!({"apiVersion": "v1", "kind": "DeleteOptions",
        "preconditions": {"uid": "00000000-0000-0000-0000-000000000000"}});
    exchange(&admin, "DELETE", &path, Some(&options)).await.refuse(409, "Conflict");
    let options = json!({"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": {"uid": made["metadata"]["uid"]}});
    let status = exchange(&admin, "DELETE", &path, Some(&options)).await.expect(200);
    assert_eq!((&status["kind"], &status["status"]), (&json!("Status"), &json!("Success")));
    exchange(&admin, "GET", &path, None).await.refuse(404, "NotFound");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_of_what_protobuf_read_changes_nothing() {
    let server = TestServer::start().await;
    let admin = server.admin();
    let deployments = "/apis/apps/v1/namespaces/default/deployments";
    let deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "web", "creationTimestamp": null},
        "spec": {
            "replicas": 0, "strategy": {},
            "selector": {"matchLabels": {"app": "web"}},
            "template": {
                "metadata": {"labels": {"app": "web"}, "creationTimestamp": null},
                "spec": {"hostNetwork": false, "containers": [{"name": "c", "image": "nginx", "resources": {},
                    "ports": [{"name": "", "containerPort": 80}],
                    "env": [{"name": "CPU", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu"}}}]}]},
            },
        },
        "status": {},
    });
    let made = admin.post(deployments, &deployment).await.expect(201);
    assert_eq!(made["spec"]["template"]["metadata"].get("creationTimestamp"), None);
    assert_eq!(made["spec"]["replicas"], 0);
    let path = format!("{deployments}/web");
    let read = exchange(&admin, "GET", &path, None).await.expect(200);
    assert_eq!(read, made);
    let written = exchange(&admin, "PUT", &path, Some(&read)).await.expect(200);
    assert_eq!(written["metadata"]["generation"], 1);
    assert_eq!(written["metadata"]["resourceVersion"], made["metadata"]["resourceVersion"]);

    let mut other = deployment.clone();
    other["metadata"]["name"] = json!("other");
    let other = exchange(&admin, "POST", deployments, Some(&other)).await.expect(201);
    assert_eq!(other["spec"], made["spec"]);
    let scale = exchange(&admin, "GET", &format!("{path}/scale"), None).await.expect(200);
    assert_eq!((&scale["kind"], &scale["status"]["selector"]), (&json!("Scale"), &json!("app=web")));
    let mut wanted = scale.clone();
    wanted["spec"]["replicas"] = json!(3);
    let scaled = exchange(&admin, "PUT", &format!("{path}/scale"), Some(&wanted)).await.expect(200);
    assert_eq!(scaled["spec"]["replicas"], 3);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn subresources_and_reviews_speak_protobuf() {
    let server = TestServer::start().await;
    let admin = server.admin();
    make_default_account(&admin).await;
    exchange(&admin, "POST", PODS, Some(&pod("p"))).await.expect(201);
    let binding = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "p"},
        "target": {"kind": "Node", "name": "n"}});
    let status = exchange(&admin, "POST", &format!("{PODS}/p/binding"), Some(&binding)).await.expect(201);
    assert_eq!(status["status"], "Success");
    let mut with_status = exchange(&admin, "GET", &format!("{PODS}/p"), None).await.expect(200);
    assert_eq!(with_status["spec"]["nodeName"], "n");
    with_status["status"]["phase"] = json!("Running");
    let stored = exchange(&admin, "PUT", &format!("{PODS}/p/status"), Some(&with_status)).await.expect(200);
    assert_eq!(stored["status"]["phase"], "Running");
    let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "p"}});
    let evicted = exchange(&admin, "POST", &format!("{PODS}/p/eviction"), Some(&eviction)).await.expect(201);
    assert_eq!(evicted["status"], "Success");

    let request = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
        "spec": {"audiences": ["x"], "expirationSeconds": 600}});
    let accounts = "/api/v1/namespaces/default/serviceaccounts/default/token";
    let token = exchange(&admin, "POST", accounts, Some(&request)).await.expect(201);
    assert!(token["status"]["token"].as_str().unwrap().len() > 100);
    let review = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
        "spec": {"resourceAttributes": {"verb": "get", "resource": "pods"}}});
    let reviews = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    assert_eq!(exchange(&admin, "POST", reviews, Some(&review)).await.expect(201)["status"]["allowed"], true);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_in_protobuf_is_made_of_frames() {
    let server = TestServer::start().await;
    let admin = server.admin();
    admin.post(CONFIG_MAPS, &config_map("a", json!({}), json!({"k": "1"}))).await.expect(201);
    let query = "watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";
    let stream = format!("{PROTOBUF};stream=watch");
    let mut watch = admin.watch_as(&format!("{CONFIG_MAPS}?{query}"), &[("accept", &stream)]).await;
    assert_eq!(watch.content_type, stream);
    let next = async |watch: &mut support::Events| {
        let frame = watch.next_frame().await.unwrap();
        // The event itself is not in an envelope; its object is.
        let whole = protobuf::envelope("v1", "WatchEvent", &frame);
        let event = read_event(&whole);
        (event.0, decoded(&event.1))
    };
    let (kind, object) = next(&mut watch).await;
    assert_eq!((kind.as_str(), &object["data"]["k"]), ("ADDED", &json!("1")));
    assert_eq!(object, admin.get(&format!("{CONFIG_MAPS}/a")).await.expect(200));
    let (kind, object) = next(&mut watch).await;
    assert_eq!((kind.as_str(), &object["kind"]), ("BOOKMARK", &json!("ConfigMap")));
    assert_eq!(object["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    admin.patch(&format!("{CONFIG_MAPS}/a"), "merge", &json!({"data": {"k": "2"}})).await.expect(200);
    assert_eq!(next(&mut watch).await.1["data"]["k"], "2");
    admin.delete(&format!("{CONFIG_MAPS}/a"), &Value::Null).await.expect(200);
    assert_eq!(next(&mut watch).await.0, "DELETED");

    let partial = format!("{PROTOBUF};as=PartialObjectMetadata;g=meta.k8s.io;v=v1");
    admin.post(CONFIG_MAPS, &config_map("b", json!({}), json!({"k": "1"}))).await.expect(201);
    let mut watch = admin.watch_as(&format!("{CONFIG_MAPS}?watch=1"), &[("accept", &partial)]).await;
    let frame = watch.next_frame().await.unwrap();
    let (_, object) = read_event(&protobuf::envelope("v1", "WatchEvent", &frame));
    assert!(contains(&object, b"PartialObjectMetadata") && contains(&object, b"meta.k8s.io/v1"));
    assert!(contains(&object, b"default") && !contains(&object, b"k\x12\x011"));
    server.stop().await;
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

/// Type and object of a WatchEvent whose object is no JSON.
fn read_event(envelope: &[u8]) -> (String, Vec<u8>) {
    let at = envelope.windows(4).enumerate().skip(4).find(|(_, window)| *window == b"k8s\0").unwrap().0;
    let kinds = ["ADDED", "MODIFIED", "DELETED", "BOOKMARK", "ERROR"];
    let kind = kinds.iter().find(|kind| contains(&envelope[..at], kind.as_bytes())).unwrap();
    let object = &envelope[at..envelope.len() - protobuf::ENVELOPE_TAIL.len()];
    ((*kind).to_owned(), object.to_vec())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_had_is_refused_with_the_list_of_what_can() {
    let server = TestServer::start().await;
    let admin = server.admin();
    let send = async |method: &str, accept: &str, content_type: &str, body: &[u8]| {
        let headers = [("accept", accept), ("content-type", content_type)];
        admin.send(method, CONFIG_MAPS, &headers, body.to_vec()).await
    };
    let types = "application/json, application/yaml, application/vnd.kubernetes.protobuf";
    assert_eq!(
        send("GET", "application/cbor", "", b"").await.refuse(406, "NotAcceptable"),
        format!("only the following media types are accepted: {types}")
    );
    assert_eq!(
        send("POST", "*/*", "application/cbor", b"\xd9\xd9\xf7\xa0")
            .await
            .refuse(415, "UnsupportedMediaType"),
        format!("the body of the request was in an unknown format - accepted media types include: {types}")
    );
    let table = format!("{PROTOBUF};as=Table;g=meta.k8s.io;v=v1");
    send("GET", &table, "", b"").await.refuse(406, "NotAcceptable");
    assert_eq!(
        send("GET", "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1", "", b"")
            .await
            .refuse(406, "NotAcceptable"),
        "you requested PartialObjectMetadata, but the requested object is a list (*core.ConfigMapList)"
    );
    send("POST", "*/*", PROTOBUF, b"{}").await.refuse(400, "BadRequest");
    send("GET", "application/yaml;stream=watch", "", b"").await.expect(200);
    let watch = format!("{CONFIG_MAPS}?watch=1");
    let yaml = admin.send("GET", &watch, &[("accept", "application/yaml")], Vec::new()).await;
    assert_eq!(yaml.code, 406);
    assert!(yaml.text.contains("application/json;stream=watch, application/vnd"), "{}", yaml.text);
    let pretty = admin.get(&format!("{CONFIG_MAPS}?pretty=true")).await;
    assert!(pretty.text.starts_with("{\n  \""), "{}", pretty.text);
    let partial = format!("{PROTOBUF};as=PartialObjectMetadataList;g=meta.k8s.io;v=v1");
    let list = admin.send("GET", CONFIG_MAPS, &[("accept", &partial)], Vec::new()).await;
    assert!(contains(&list.bytes, b"PartialObjectMetadataList"), "{}", list.text);
    server.stop().await;
}
