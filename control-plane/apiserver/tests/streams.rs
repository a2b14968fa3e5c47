//! Logs, exec and port-forward through the server, against a kubelet that this test plays.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::net::SocketAddr;

use apiserver::security::{pki::CertificateSpec, tls};
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use support::{
    Client, DEADLINE, PODS, TestServer, make_default_account, pod,
    webhook::{Backend, patch},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};
use tokio_rustls::TlsAcceptor;

/// Echoes what is streamed, and answers other requests with their path; 400 for the container `bad`.
async fn kubelet(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, std::convert::Infallible> {
    let target = request.uri().path_and_query().map(ToString::to_string).unwrap_or_default();
    if target.contains("/bad") {
        let text = "container \"bad\" is waiting to start: ContainerCreating";
        let mut response = Response::new(Full::new(Bytes::from(text)));
        *response.status_mut() = StatusCode::BAD_REQUEST;
        return Ok(response);
    }
    let Some(protocol) = request.headers().get("upgrade").cloned() else {
        return Ok(Response::new(Full::new(Bytes::from(format!("log of {target}\n")))));
    };
    tokio::spawn(async move {
        let mut stream = TokioIo::new(hyper::upgrade::on(request).await.unwrap());
        stream.write_all(format!("{target}\n").as_bytes()).await.unwrap();
        let mut buffer = [0; 64];
        while let Ok(count @ 1..) = stream.read(&mut buffer).await {
            stream.write_all(&buffer[..count]).await.unwrap();
        }
    });
    let response = Response::builder()
        .status(StatusCode::SWITCHING_PROTOCOLS)
        .header("connection", "Upgrade")
        .header("upgrade", protocol)
        .body(Full::new(Bytes::new()));
    Ok(response.unwrap())
}

async fn start_kubelet(server: &TestServer) -> SocketAddr {
    let spec = CertificateSpec {
        common_name: "system:node:n1".to_owned(),
        organization: "system:nodes".to_owned(),
        sans: ["127.0.0.1".to_owned()].into(),
        client: true,
        server: true,
    };
    let issued = server.ca.issue(&spec).unwrap();
    let config = tls::server_config(tls::Live::new(&issued).unwrap()).unwrap();
    let acceptor = TlsAcceptor::from(config);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let stream = acceptor.accept(stream).await.unwrap();
                assert!(stream.get_ref().1.peer_certificates().is_some(), "the server shows who it is");
                let connection = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service_fn(kubelet));
                // A client that goes away is no failure.
                let _ = connection.with_upgrades().await;
            });
        }
    });
    address
}

async fn set_up() -> (TestServer, Client) {
    let server = TestServer::start().await;
    let admin = server.admin();
    let address = start_kubelet(&server).await;
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}});
    admin.post("/api/v1/nodes", &node).await.expect(201);
    let status = json!({"status": {
        "addresses": [{"type": "InternalIP", "address": "127.0.0.1"}],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": address.port()}},
    }});
    admin.patch("/api/v1/nodes/n1/status", "merge", &status).await.expect(200);
    make_default_account(&admin).await;
    let mut two = pod("p");
    two["spec"]["containers"] = json!([{"name": "c", "image": "x"}, {"name": "bad", "image": "x"}]);
    admin.post(PODS, &two).await.expect(201);
    (server, admin)
}

async fn bind(admin: &Client) {
    let binding = json!({"metadata": {"name": "p"}, "target": {"kind": "Node", "name": "n1"}});
    admin.post(&format!("{PODS}/p/binding"), &binding).await.expect(201);
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_come_from_the_kubelet_of_the_pods_node() {
    let (server, admin) = set_up().await;
    let log = format!("{PODS}/p/log");
    let unscheduled = admin.get(&format!("{log}?container=c")).await;
    assert_eq!((unscheduled.code, unscheduled.text.as_str()), (200, ""));
    bind(&admin).await;
    let answer = admin.get(&format!("{log}?container=c&tailLines=5&follow=true&pretty=1")).await;
    assert_eq!(answer.text, "log of /containerLogs/default/p/c?follow=true&tailLines=5\n");
    let message = admin.get(&log).await.refuse(400, "BadRequest");
    assert_eq!(message, "a container name must be specified for pod p, choose one of: [c bad]");
    let message = admin.get(&format!("{log}?container=bad")).await.refuse(400, "BadRequest");
    assert!(message.contains("is waiting to start: ContainerCreating"), "{message}");
    admin.get(&format!("{log}?container=c&tailLines=-1")).await.refuse(422, "Invalid");
    let all = admin.get("/api/v1/nodes/n1/proxy/stats/summary?x=1").await;
    assert_eq!(all.text, "log of /stats/summary?x=1\n");
    let root = admin.get("/api/v1/nodes/https:n1:/proxy?x=1").await;
    assert_eq!(root.code, 301);
    assert_eq!(root.headers["location"], "/api/v1/nodes/https:n1:/proxy/?x=1");
    assert_eq!(admin.get("/api/v1/nodes/n1/proxy/?x=1").await.text, "log of /?x=1\n");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_protocol_switch_is_passed_through_with_its_bytes() {
    let (server, admin) = set_up().await;
    bind(&admin).await;
    for (protocol, path, expected) in [
        (
            "websocket",
            "exec?container=c&command=sh&command=a%20b&stdin=true&tty=true",
            "/exec/default/p/c?command=sh&command=a%20b&input=1&tty=1\n",
        ),
        ("SPDY/3.1", "attach?container=c&stdout=true", "/attach/default/p/c?output=1\n"),
        ("SPDY/3.1", "portforward?ports=80", "/portForward/default/p?ports=80\n"),
    ] {
        let response = admin.upgrade(&format!("{PODS}/p/{path}"), protocol).await;
        assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS, "{path}");
        assert_eq!(response.headers()["upgrade"], protocol);
        let mut stream = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
        let exchange = async {
            stream.write_all(b"ping").await.unwrap();
            let mut received = vec![0; expected.len() + 4];
            stream.read_exact(&mut received).await.unwrap();
            received
        };
        let received = tokio::time::timeout(DEADLINE, exchange).await.unwrap();
        assert_eq!(String::from_utf8(received).unwrap(), format!("{expected}ping"));
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_need_the_right_to_create_them() {
    let (server, admin) = set_up().await;
    bind(&admin).await;
    let alice = server.client("alice", "people");
    let group = "rbac.authorization.k8s.io";
    let role = json!({"apiVersion": format!("{group}/v1"), "kind": "ClusterRole", "metadata": {"name": "r"},
        "rules": [{"apiGroups": [""], "resources": ["pods/exec"], "verbs": ["get"]}]});
    admin.post(&format!("/apis/{group}/v1/clusterroles"), &role).await.expect(201);
    let binding = json!({"apiVersion": format!("{group}/v1"), "kind": "ClusterRoleBinding", "metadata": {"name": "b"},
        "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": "r"},
        "subjects": [{"kind": "User", "apiGroup": group, "name": "alice"}]});
    admin.post(&format!("/apis/{group}/v1/clusterrolebindings"), &binding).await.expect(201);
    let response = alice.upgrade(&format!("{PODS}/p/exec?container=c&command=sh"), "websocket").await;
    assert_eq!(response.status(), StatusCode::FORBIDDEN);
    let (_parts, body) = response.into_parts();
    let body: Value = serde_json::from_slice(&body.collect().await.unwrap().to_bytes()).unwrap();
    assert!(body["message"].as_str().unwrap().contains("cannot create resource \"pods/exec\""), "{body}");
    let plain = admin.get(&format!("{PODS}/p/exec?container=c&command=sh")).await;
    assert_eq!(plain.refuse(400, "BadRequest"), "Upgrade request required");
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_begins_with_what_admission_made_of_its_options() {
    let (server, admin) = set_up().await;
    bind(&admin).await;
    let operations = json!([
        {"op": "replace", "path": "/command", "value": ["safe", "a b"]},
        {"op": "replace", "path": "/container", "value": "c"},
        {"op": "add", "path": "/tty", "value": true},
    ]);
    let backend = Backend::start(move |request| patch(request, operations.clone())).await;
    let hook = json!({"name": "exec.example.com", "clientConfig": backend.client_config("/exec"), "sideEffects": "None",
        "admissionReviewVersions": ["v1"],
        "rules": [{"operations": ["CONNECT"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods/exec"]}]});
    let configuration = json!({"metadata": {"name": "exec"}, "webhooks": [hook]});
    let path = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations";
    admin.post(path, &configuration).await.expect(201);
    let exec = format!("{PODS}/p/exec?container=bad&command=rm&stdin=true");
    let response = admin.upgrade(&exec, "websocket").await;
    assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
    let mut stream = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
    let expected = "/exec/default/p/c?command=safe&command=a%20b&input=1&tty=1\n";
    let mut received = vec![0; expected.len()];
    tokio::time::timeout(DEADLINE, stream.read_exact(&mut received)).await.unwrap().unwrap();
    assert_eq!(String::from_utf8(received).unwrap(), expected);
    server.stop().await;
}
