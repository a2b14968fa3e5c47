//! Who gets in, who may do what, and what the server says of itself.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use apiserver::{
    Identity,
    security::pki::{Ca, client_spec},
};
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use support::{CONFIG_MAPS, PODS, TestServer, config_map, make_default_account, pod};
use tempfile::TempDir;
use tower::ServiceExt as _;

#[tokio::test(flavor = "multi_thread")]
async fn strangers_and_the_unentitled_are_refused_in_upstreams_words() {
    let server = TestServer::start().await;
    let alice = server.client("alice", "people");
    assert_eq!(
        alice.get(PODS).await.refuse(403, "Forbidden"),
        "pods is forbidden: User \"alice\" cannot list resource \"pods\" in API group \"\" in the namespace \"default\""
    );
    let anonymous = server.client_with(None);
    assert!(
        anonymous.get(PODS).await.refuse(403, "Forbidden").contains("User \"system:anonymous\" cannot list")
    );
    assert_eq!(anonymous.get("/version").await.expect(200)["gitVersion"], "v1.36.2+seaway");
    assert_eq!(anonymous.get("/readyz").await.text, "ok");
    anonymous.get("/metrics").await.refuse(403, "Forbidden");

    let folder = TempDir::new().unwrap();
    let foreign = Ca::load_or_create(folder.path()).unwrap();
    let stranger = foreign.issue(&client_spec("admin", "system:masters")).unwrap();
    assert_eq!(
        server.client_with(Some(&stranger)).get(PODS).await.refuse(401, "Unauthorized"),
        "Unauthorized"
    );
    let mut forged = server.client_with(None);
    forged.token = Some("not.a.token".to_owned());
    forged.get(PODS).await.refuse(401, "Unauthorized");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_binding_counts_from_the_next_request_on() {
    let server = TestServer::start().await;
    let (admin, alice) = (server.admin(), server.client("alice", "people"));
    let role = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "r"},
        "rules": [{"apiGroups": [""], "resources": ["configmaps"], "verbs": ["list"]}]});
    let rbac = "/apis/rbac.authorization.k8s.io/v1/namespaces/default";
    admin.post(&format!("{rbac}/roles"), &role).await.expect(201);
    let binding = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": "b"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "r"},
        "subjects": [{"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": "alice"}]});
    alice.get(CONFIG_MAPS).await.refuse(403, "Forbidden");
    admin.post(&format!("{rbac}/rolebindings"), &binding).await.expect(201);
    alice.get(CONFIG_MAPS).await.expect(200);
    alice.get("/api/v1/configmaps").await.refuse(403, "Forbidden");
    alice.post(CONFIG_MAPS, &config_map("a", json!({}), json!({}))).await.refuse(403, "Forbidden");
    admin.delete(&format!("{rbac}/rolebindings/b"), &Value::Null).await.expect(200);
    alice.get(CONFIG_MAPS).await.refuse(403, "Forbidden");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_grants_what_they_do_not_hold() {
    let server = TestServer::start().await;
    let (admin, alice) = (server.admin(), server.client("alice", "people"));
    let rbac = "/apis/rbac.authorization.k8s.io/v1";
    let role = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": "role-writer"},
        "rules": [{"apiGroups": ["rbac.authorization.k8s.io"], "resources": ["clusterroles"], "verbs": ["create"]}]});
    admin.post(&format!("{rbac}/clusterroles"), &role).await.expect(201);
    let binding = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "b"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "role-writer"},
        "subjects": [{"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": "alice"}]});
    admin.post(&format!("{rbac}/clusterrolebindings"), &binding).await.expect(201);
    let mut more = role.clone();
    more["metadata"]["name"] = json!("more");
    more["rules"] = json!([{"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]}]);
    let message = alice.post(&format!("{rbac}/clusterroles"), &more).await.refuse(403, "Forbidden");
    assert!(message.contains("attempting to grant RBAC permissions not currently held"), "{message}");
    let mut same = role.clone();
    same["metadata"]["name"] = json!("same");
    alice.post(&format!("{rbac}/clusterroles"), &same).await.expect(201);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_account_token_is_an_identity_until_its_account_goes() {
    let server = TestServer::start().await;
    let admin = server.admin();
    make_default_account(&admin).await;
    let accounts = "/api/v1/namespaces/default/serviceaccounts/default";
    let request = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {"expirationSeconds": 600}});
    let answer = admin.post(&format!("{accounts}/token"), &request).await.expect(201);
    let token = answer["status"]["token"].as_str().unwrap().to_owned();
    let mut robot = server.client_with(None);
    robot.token = Some(token.clone());
    let review = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"});
    let reviews = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
    let shown = robot.post(reviews, &review).await.expect(201);
    assert_eq!(shown["status"]["userInfo"]["username"], "system:serviceaccount:default:default");
    let review =
        json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token}});
    let path = "/apis/authentication.k8s.io/v1/tokenreviews";
    assert_eq!(admin.post(path, &review).await.expect(201)["status"]["authenticated"], true);
    let short = json!({"spec": {"expirationSeconds": 5}});
    let message = admin.post(&format!("{accounts}/token"), &short).await.refuse(422, "Invalid");
    assert!(message.contains("may not specify a duration less than 10 minutes"), "{message}");
    admin.delete(accounts, &Value::Null).await.expect(200);
    robot.post(reviews, &json!({})).await.refuse(401, "Unauthorized");
    assert_eq!(admin.post(path, &review).await.expect(201)["status"].get("authenticated"), None);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn access_reviews_answer_for_others_and_impersonation_needs_the_right() {
    let server = TestServer::start().await;
    let (admin, alice) = (server.admin(), server.client("alice", "people"));
    let review = |user: &str, verb: &str| {
        json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview",
            "spec": {"user": user, "resourceAttributes": {"verb": verb, "resource": "pods", "namespace": "default"}}})
    };
    let reviews = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
    assert_eq!(admin.post(reviews, &review("alice", "get")).await.expect(201)["status"]["allowed"], false);
    let scheduler = review("system:kube-scheduler", "list");
    assert_eq!(admin.post(reviews, &scheduler).await.expect(201)["status"]["allowed"], true);
    let as_alice = [("impersonate-user", "alice")];
    let message = admin.send("GET", PODS, &as_alice, Vec::new()).await.refuse(403, "Forbidden");
    assert!(message.contains("User \"alice\" cannot list resource \"pods\""), "{message}");
    let as_bob = [("impersonate-user", "bob")];
    let message = alice.send("GET", PODS, &as_bob, Vec::new()).await.refuse(403, "Forbidden");
    assert_eq!(
        message,
        "pods is forbidden: User \"alice\" cannot impersonate-on:user-info:list resource \"pods\" in API group \"\" in the \
         namespace \"default\""
    );
    let rbac = "/apis/rbac.authorization.k8s.io/v1";
    let role = json!({"metadata": {"name": "actor"}, "rules": [
        {"apiGroups": [""], "resources": ["pods"], "verbs": ["impersonate-on:user-info:list"]},
        {"apiGroups": ["authentication.k8s.io"], "resources": ["users"], "resourceNames": ["system:kube-scheduler"],
            "verbs": ["impersonate:user-info"]}]});
    admin.post(&format!("{rbac}/clusterroles"), &role).await.expect(201);
    let binding = json!({"metadata": {"name": "actor"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "actor"},
        "subjects": [{"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": "alice"}]});
    admin.post(&format!("{rbac}/clusterrolebindings"), &binding).await.expect(201);
    let as_scheduler = [("impersonate-user", "system:kube-scheduler")];
    alice.send("GET", PODS, &as_scheduler, Vec::new()).await.expect(200);
    let message =
        alice.send("GET", &format!("{PODS}/x"), &as_scheduler, Vec::new()).await.refuse(403, "Forbidden");
    assert!(message.contains("cannot impersonate-on:user-info:get resource \"pods\""), "{message}");
    let message = alice.send("GET", PODS, &as_bob, Vec::new()).await.refuse(403, "Forbidden");
    assert!(
        message.starts_with(
            "users.authentication.k8s.io \"bob\" is forbidden: User \"alice\" cannot \
                             impersonate:user-info resource \"users\""
        ),
        "{message}"
    );
    let whole = [
        ("impersonate-user", "bob"),
        ("impersonate-uid", "7"),
        ("impersonate-group", "a"),
        ("impersonate-extra-acme.com%2fproject", "x"),
        ("content-type", "application/json"),
    ];
    let who = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
    let shown = admin.send("POST", who, &whole, b"{}".to_vec()).await.expect(201);
    assert_eq!(
        shown["status"]["userInfo"],
        json!({"username": "bob", "uid": "7", "groups": ["a", "system:authenticated"],
            "extra": {"acme.com/project": ["x"]}})
    );
    let without_user = [("impersonate-group", "a"), ("content-type", "application/json")];
    admin.send("POST", who, &without_user, b"{}".to_vec()).await.refuse(400, "BadRequest");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_discover_what_is_served() {
    let server = TestServer::start().await;
    let admin = server.admin();
    assert_eq!(admin.get("/api").await.expect(200)["versions"], json!(["v1"]));
    let groups = admin.get("/apis").await.expect(200);
    assert!(groups["groups"].as_array().unwrap().iter().any(|group| group["name"] == "apps"));
    assert_eq!(admin.get("/apis/apps").await.expect(200)["preferredVersion"]["version"], "v1");
    let accept =
        [("accept", "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json")];
    let aggregated = admin.send("GET", "/apis", &accept, Vec::new()).await;
    let tag = aggregated.headers["etag"].to_str().unwrap().to_owned();
    assert_eq!(aggregated.expect(200)["kind"], "APIGroupDiscoveryList");
    let again = [accept[0], ("if-none-match", tag.as_str())];
    assert_eq!(admin.send("GET", "/apis", &again, Vec::new()).await.code, 304);
    let index = admin.get("/openapi/v3").await.expect(200);
    let url = index["paths"]["apis/apps/v1"]["serverRelativeURL"].as_str().unwrap().to_owned();
    let document = admin.get(&url).await.expect(200);
    assert!(document["components"]["schemas"]["io.k8s.api.apps.v1.Deployment"].is_object());
    assert!(admin.get("/openapi/v2").await.expect(200)["definitions"]["io.k8s.api.core.v1.Pod"].is_object());
    admin.get("/apis/none").await.refuse(404, "NotFound");
    admin.get("/api/v1/nothings").await.refuse(404, "NotFound");
    let metrics = admin.get("/metrics").await.text;
    assert!(
        metrics.contains("apiserver_request_total{verb=\"LIST\",group=\"\",resource=\"nothings\""),
        "{metrics}"
    );
    let paths = admin.get("/").await.expect(200);
    assert!(paths["paths"].as_array().unwrap().contains(&json!("/apis/apps/v1")));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_bootstrap_objects_are_there() {
    let server = TestServer::start().await;
    let admin = server.admin();
    for path in [
        "/api/v1/namespaces/kube-system",
        "/api/v1/namespaces/kube-node-lease",
        "/api/v1/namespaces/default/services/kubernetes",
        "/api/v1/namespaces/kube-system/services/kube-dns",
        "/apis/scheduling.k8s.io/v1/priorityclasses/system-node-critical",
        "/apis/rbac.authorization.k8s.io/v1/clusterroles/cluster-admin",
    ] {
        admin.get(path).await.expect(200);
    }
    let service = admin.get("/api/v1/namespaces/default/services/kubernetes").await.expect(200);
    assert_eq!(service["spec"]["clusterIP"], "10.96.0.1");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_in_the_process_needs_no_socket_but_its_rights() {
    let server = TestServer::start().await;
    let call = |user: &'static str, groups: &'static [&'static str]| {
        let service = server.server.service(Identity::internal(user, groups));
        async move {
            let request =
                http::Request::get(PODS).body(http_body_util::Empty::<bytes::Bytes>::new()).unwrap();
            let response = service.oneshot(request).await.unwrap();
            let code = response.status().as_u16();
            let body = response.into_body().collect().await.unwrap().to_bytes();
            (code, serde_json::from_slice::<Value>(&body).unwrap())
        }
    };
    assert_eq!(call("alice", &[]).await.0, 403);
    let (code, list) = call("system:kube-scheduler", &[]).await;
    assert_eq!((code, &list["kind"]), (200, &json!("PodList")));
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn methods_and_paths_that_make_no_sense_are_refused() {
    let server = TestServer::start().await;
    let admin = server.admin();
    make_default_account(&admin).await;
    admin.post("/api/v1/pods", &pod("p")).await.refuse(405, "MethodNotAllowed");
    admin.put(PODS, &pod("p")).await.refuse(405, "MethodNotAllowed");
    admin.get("/api/v1/namespaces/default/nodes").await.refuse(404, "NotFound");
    admin.get(&format!("{PODS}/p/nothing")).await.refuse(404, "NotFound");
    admin.delete("/apis", &Value::Null).await.refuse(405, "MethodNotAllowed");
    server.stop().await;
}
