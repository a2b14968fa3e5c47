//! API groups that another server answers for, and a server that is itself behind a front proxy.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::{fs, time::Instant};

use apiserver::security::pki::{Ca, client_spec};
use serde_json::{Value, json};
use support::{Answer, Client, DEADLINE, TestServer, webhook::Backend};

const API_SERVICES: &str = "/apis/apiregistration.k8s.io/v1/apiservices";
const SERVICES: &str = "/api/v1/namespaces/default/services";

/// Asks until the answer is as wanted.
async fn wait_for(client: &Client, path: &str, wanted: impl Fn(&Answer) -> bool) -> Answer {
    let until = Instant::now() + DEADLINE;
    loop {
        let answer = client.get(path).await;
        if wanted(&answer) {
            return answer;
        }
        assert!(Instant::now() < until, "{path} stays {}", answer.text);
        tokio::task::yield_now().await;
    }
}

fn condition(answer: &Answer) -> (String, String) {
    let condition = &answer.body["status"]["conditions"][0];
    let text = |field: &str| condition[field].as_str().unwrap_or_default().to_owned();
    (text("status"), text("reason"))
}

/// An APIService, and the Service that leads to the backend on loopback.
async fn register(admin: &Client, backend: &Backend) {
    let port = backend.address.port();
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "api"},
        "spec": {"type": "ExternalName", "externalName": "localhost"},
    });
    let api_service = json!({
        "apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService",
        "metadata": {"name": "v1alpha1.wardle.example.com"},
        "spec": {
            "group": "wardle.example.com", "version": "v1alpha1", "groupPriorityMinimum": 2000, "versionPriority": 200,
            "service": {"name": "api", "namespace": "default", "port": port}, "caBundle": backend.ca_bundle(),
        },
    });
    admin.post(API_SERVICES, &api_service).await.expect(201);
    let path = format!("{API_SERVICES}/v1alpha1.wardle.example.com");
    wait_for(admin, &path, |answer| condition(answer) == ("False".into(), "ServiceNotFound".into())).await;
    let early = admin.get("/apis/wardle.example.com/v1alpha1/namespaces/default/flunders").await;
    assert_eq!((early.code, early.text.as_str()), (503, "service unavailable\n"));
    admin.post(SERVICES, &service).await.expect(201);
    wait_for(admin, &path, |answer| condition(answer) == ("True".into(), "Passed".into())).await;
}

async fn backend() -> Backend {
    let kind = json!({"group": "wardle.example.com", "version": "v1alpha1", "kind": "Flunder"});
    let document = json!({"swagger": "2.0",
        "paths": {"/apis/wardle.example.com/v1alpha1/flunders": {"get": {"operationId": "listFlunders",
            "responses": {"200": {"description": "OK", "schema": {"$ref": "#/definitions/wardle.Flunder"}}}}}},
        "definitions": {"wardle.Flunder": {"type": "object", "x-kubernetes-group-version-kind": [kind]}}});
    backend_with(move || (200, document.clone())).await
}

/// `document` answers `/openapi/v2`.
async fn backend_with(document: impl Fn() -> (u16, Value) + Send + Sync + 'static) -> Backend {
    Backend::start(move |request| {
        let flunders = json!({"name": "flunders", "singularName": "flunder", "namespaced": true, "kind": "Flunder", "verbs": ["get", "list"]});
        let base = "/apis/wardle.example.com/v1alpha1";
        match request.path.strip_prefix(base) {
            Some("") => (200, json!({"kind": "APIResourceList", "groupVersion": "wardle.example.com/v1alpha1", "resources": [flunders]})),
            Some("/namespaces/default/flunders") => (200, json!({"kind": "FlunderList", "seen": request.body})),
            _ if request.path == "/openapi/v2" => document(),
            _ if request.path == "/openapi/v3" => (200, json!({"paths": {
                "apis/wardle.example.com/v1alpha1": {
                    "serverRelativeURL": "/openapi/v3/apis/wardle.example.com/v1alpha1?hash=AB"}}})),
            _ if request.path.starts_with("/openapi/v3/apis/wardle") => (200, json!({"openapi": "3.0.0"})),
            _ => (404, json!({"kind": "Status", "message": "no"})),
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_of_another_server_is_proxied_discovered_and_withdrawn() {
    let server = TestServer::start().await;
    let admin = server.admin();
    let backend = backend().await;
    register(&admin, &backend).await;
    let path = "/apis/wardle.example.com/v1alpha1/namespaces/default/flunders";
    let forged = [("x-remote-user", "somebody"), ("content-type", "application/json")];
    let answer = admin.send("POST", &format!("{path}?a=b"), &forged, b"{\"k\":1}".to_vec()).await;
    assert_eq!(answer.expect(200)["seen"]["k"], 1);
    let received = backend.received();
    let request = received.iter().rfind(|request| request.method == "POST").unwrap();
    assert_eq!(request.query, "a=b");
    assert_eq!(request.headers["x-remote-user"], "admin");
    let groups: Vec<_> = request.headers.get_all("x-remote-group").iter().collect();
    assert_eq!(groups, ["system:masters", "system:authenticated"]);
    assert!(!request.headers.contains_key("authorization"));

    let groups =
        wait_for(&admin, "/apis", |answer| answer.text.contains("wardle.example.com")).await.expect(200);
    let names: Vec<&str> =
        groups["groups"].as_array().unwrap().iter().map(|group| group["name"].as_str().unwrap()).collect();
    // Groups of custom kinds, such as the last one, have the priority 1000.
    assert_eq!(names.last_chunk(), Some(&["wardle.example.com", "projectcalico.org"]));
    admin.get("/apis/wardle.example.com").await.expect(200);
    let accept = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
    // The document of the other server arrives after its name.
    let deadline = tokio::time::Instant::now() + DEADLINE;
    let group = loop {
        let aggregated = admin.send("GET", "/apis", &[("accept", accept)], Vec::new()).await.expect(200);
        let items = aggregated["items"].as_array().unwrap();
        let group = items[items.len() - 2].clone();
        if group["versions"][0]["freshness"] == "Current" || tokio::time::Instant::now() > deadline {
            break group;
        }
        tokio::task::yield_now().await;
    };
    assert_eq!(group["metadata"]["name"], "wardle.example.com");
    assert_eq!(group["versions"][0]["freshness"], "Current");
    assert_eq!(group["versions"][0]["resources"][0]["resource"], "flunders");
    let index = admin.get("/openapi/v3").await.expect(200);
    assert!(index["paths"]["apis/wardle.example.com/v1alpha1"].is_object());
    assert!(index["paths"]["api/v1"].is_object());
    let document = admin.get("/openapi/v3/apis/wardle.example.com/v1alpha1").await.expect(200);
    assert_eq!(document["openapi"], "3.0.0");

    admin.delete(&format!("{API_SERVICES}/v1alpha1.wardle.example.com"), &Value::Null).await.expect(200);
    admin.get(path).await.refuse(404, "NotFound");
    wait_for(&admin, "/apis", |answer| !answer.text.contains("wardle.example.com")).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_v2_document_has_what_another_server_documents_while_its_api_service_is_there() {
    let server = TestServer::start().await;
    let admin = server.admin();
    let path = "/apis/wardle.example.com/v1alpha1/flunders";
    assert!(!admin.get("/openapi/v2").await.text.contains(path));
    let backend = backend().await;
    register(&admin, &backend).await;
    let merged = wait_for(&admin, "/openapi/v2", |answer| answer.text.contains(path)).await.expect(200);
    assert_eq!(merged["paths"][path]["get"]["operationId"], "listFlunders");
    assert_eq!(merged["definitions"]["wardle.Flunder"]["type"], "object");
    assert!(merged["definitions"]["io.k8s.api.core.v1.Pod"].is_object());
    let index = admin.get("/openapi/v3").await.expect(200);
    assert_eq!(
        index["paths"]["apis/wardle.example.com/v1alpha1"]["serverRelativeURL"],
        "/openapi/v3/apis/wardle.example.com/v1alpha1?hash=AB"
    );
    let accept = [("accept", "application/com.github.proto-openapi.spec.v2@v1.0+protobuf")];
    let packed = admin.send("GET", "/openapi/v2", &accept, Vec::new()).await;
    assert_eq!(packed.code, 200);
    assert!(packed.bytes.windows(path.len()).any(|window| window == path.as_bytes()));
    admin.delete(&format!("{API_SERVICES}/v1alpha1.wardle.example.com"), &Value::Null).await.expect(200);
    wait_for(&admin, "/openapi/v2", |answer| !answer.text.contains(path)).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_does_not_hand_out_its_document_holds_up_nobody() {
    let server = TestServer::start().await;
    let admin = server.admin();
    let (release, held) = std::sync::mpsc::channel::<()>();
    let held = std::sync::Mutex::new(held);
    let backend = backend_with(move || {
        // Ends when the test does.
        let _ = held.lock().unwrap().recv();
        (500, Value::Null)
    })
    .await;
    register(&admin, &backend).await;
    wait_for(&admin, "/apis", |answer| answer.text.contains("wardle.example.com")).await;
    let asked = async || backend.received().iter().any(|request| request.path == "/openapi/v2");
    let until = Instant::now() + DEADLINE;
    while !asked().await {
        assert!(Instant::now() < until, "nobody asked for the document");
        tokio::task::yield_now().await;
    }
    let own = admin.get("/openapi/v2").await.expect(200);
    assert!(own["definitions"]["io.k8s.api.core.v1.Pod"].is_object());
    let again = admin.get("/apis/wardle.example.com/v1alpha1/namespaces/default/flunders").await;
    assert_eq!(again.code, 200);
    drop(release);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn other_servers_are_shown_a_certificate_that_can_be_renewed() {
    let server = TestServer::start().await;
    let admin = server.admin();
    let backend = backend().await;
    register(&admin, &backend).await;
    let shown = async || {
        admin.get("/apis/wardle.example.com/v1alpha1/namespaces/default/flunders").await.expect(200);
        let received = backend.received();
        let request = received.iter().rfind(|request| request.path.ends_with("/flunders"));
        request.unwrap().certificate.clone().expect("the server says who it is")
    };
    let before = shown().await;
    assert_eq!(shown().await, before);
    std::fs::remove_file(server.folder.path().join("pki/front-proxy/client.crt")).unwrap();
    server.server.reload_certificates().unwrap();
    assert_ne!(shown().await, before, "from the next request on");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_own_group_has_a_local_api_service_that_comes_back() {
    let server = TestServer::start().await;
    let admin = server.admin();
    let path = format!("{API_SERVICES}/v1.apps");
    let apps = wait_for(&admin, &path, |answer| answer.code == 200).await;
    assert_eq!(condition(&apps), ("True".into(), "Local".into()));
    assert_eq!(apps.body["spec"]["groupPriorityMinimum"], 17800);
    wait_for(&admin, &format!("{API_SERVICES}/v1."), |answer| answer.code == 200).await;
    admin.delete(&path, &Value::Null).await.expect(200);
    let uid = apps.body["metadata"]["uid"].clone();
    wait_for(&admin, &path, |answer| answer.code == 200 && answer.body["metadata"]["uid"] != uid).await;
    let message = admin
        .post(API_SERVICES, &json!({"metadata": {"name": "v1.x"}, "spec": {"group": "y", "version": "v1"}}))
        .await
        .refuse(422, "Invalid");
    assert!(message.contains("must be `spec.version+\".\"+spec.group`: \"v1.y\""), "{message}");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_front_proxy_says_whom_it_acts_for_and_nobody_else_can() {
    let server = TestServer::start().await;
    let folder = server.folder.path().join("pki/front-proxy");
    let ca = Ca::load_or_create(&folder).unwrap();
    let proxy = server.client_with(Some(&ca.issue(&client_spec("front-proxy-client", "")).unwrap()));
    let headers = [("x-remote-user", "alice"), ("x-remote-group", "team"), ("x-remote-extra-scopes", "a")];
    let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"});
    let path = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
    let mut all = headers.to_vec();
    all.push(("content-type", "application/json"));
    let seen = proxy.send("POST", path, &all, review.to_string().into()).await.expect(201);
    let user = &seen["status"]["userInfo"];
    assert_eq!(
        (&user["username"], &user["groups"]),
        (&json!("alice"), &json!(["team", "system:authenticated"]))
    );
    assert_eq!(user["extra"]["scopes"], json!(["a"]));
    proxy.get("/api/v1/namespaces").await.refuse(401, "Unauthorized");
    let stranger = server.client_with(Some(&ca.issue(&client_spec("somebody", "")).unwrap()));
    stranger.send("POST", path, &all, review.to_string().into()).await.refuse(401, "Unauthorized");
    let forged = server.admin().send("POST", path, &all, review.to_string().into()).await.expect(201);
    assert_eq!(forged["status"]["userInfo"]["username"], "admin");
    let map = server
        .admin()
        .get("/api/v1/namespaces/kube-system/configmaps/extension-apiserver-authentication")
        .await
        .expect(200);
    let proxy_ca = fs::read_to_string(folder.join("ca.crt")).unwrap();
    assert_eq!(map["data"]["requestheader-client-ca-file"], proxy_ca);
    assert_eq!(map["data"]["requestheader-username-headers"], "[\"X-Remote-User\"]");
    server.stop().await;
}
