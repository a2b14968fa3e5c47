//! A whole API server on loopback with its embedded store, and a plain HTTP client that says what it sends.

#![expect(dead_code, reason = "each test binary uses a part of this")]

pub mod kubectl;
pub mod webhook;

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use apiserver::{
    Config, Server, Store,
    config::Security,
    security::pki::{Ca, KeyedCertificate, client_spec},
    server::listen,
};
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{net::TcpStream, task::JoinHandle};
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

/// Every wait of a test ends by then.
pub const DEADLINE: Duration = Duration::from_secs(20);

pub struct TestServer {
    pub address: SocketAddr,
    pub server: Arc<Server>,
    pub ca: Ca,
    pub folder: TempDir,
    stop: CancellationToken,
    serving: JoinHandle<()>,
}

pub fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// Starts a server; the tasks of an earlier one may hold the store for a moment after it has stopped.
async fn open(config: &Config, stop: &CancellationToken) -> Server {
    let deadline = tokio::time::Instant::now() + DEADLINE;
    loop {
        match Server::start(config.clone(), stop.clone()).await {
            Ok(server) => return server,
            Err(error) if format!("{error:#}").contains("is open in another process") => {
                assert!(tokio::time::Instant::now() < deadline, "{error:#}");
                tokio::task::yield_now().await;
            }
            Err(error) => panic!("{error:#}"),
        }
    }
}

impl TestServer {
    pub async fn start() -> Self {
        Self::start_in(TempDir::new().unwrap()).await
    }

    /// Starts on a folder that may hold the store of an earlier server.
    pub async fn start_in(folder: TempDir) -> Self {
        Self::start_with(folder, Security::default()).await
    }

    pub async fn start_with(folder: TempDir, security: Security) -> Self {
        let listener = listen::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = listener.local_addr().unwrap();
        let config = Config {
            data_dir: folder.path().to_owned(),
            store: Store::Embedded,
            bind: vec![address],
            advertise_address: address.ip(),
            advertise_port: address.port(),
            service_cidrs: vec!["10.96.0.0/16".parse().unwrap()],
            cluster_cidrs: vec!["10.244.0.0/16".parse().unwrap()],
            cluster_domain: "cluster.local".to_owned(),
            compaction_interval: apiserver::storage::compactor::INTERVAL,
            sans: Vec::new(),
            security,
        };
        let stop = CancellationToken::new();
        let server = Arc::new(open(&config, &stop).await);
        let serving = tokio::spawn({
            let server = Arc::clone(&server);
            async move { server.serve(vec![listener]).await }
        });
        let ca = Ca::load_or_create(&folder.path().join("pki")).unwrap();
        Self { address, server, ca, folder, stop, serving }
    }

    /// Stops gracefully and returns the folder.
    pub async fn stop(self) -> TempDir {
        self.stop.cancel();
        tokio::time::timeout(DEADLINE, self.serving).await.unwrap().unwrap();
        self.folder
    }

    /// A member of system:masters.
    pub fn admin(&self) -> Client {
        self.client("admin", "system:masters")
    }

    pub fn client(&self, user: &str, group: &str) -> Client {
        let issued = self.ca.issue(&client_spec(user, group)).unwrap();
        self.client_with(Some(&issued))
    }

    /// A client with this certificate, or with none.
    pub fn client_with(&self, certificate: Option<&KeyedCertificate>) -> Client {
        let mut roots = RootCertStore::empty();
        for root in CertificateDer::pem_slice_iter(self.ca.certificate_pem().as_bytes()) {
            roots.add(root.unwrap()).unwrap();
        }
        let builder = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let config = match certificate {
            None => builder.with_no_client_auth(),
            Some(pair) => {
                let chain: Vec<_> = CertificateDer::pem_slice_iter(pair.certificate_pem.as_bytes())
                    .collect::<Result<_, _>>()
                    .unwrap();
                let key = PrivateKeyDer::from_pem_slice(pair.key_pem.as_bytes()).unwrap();
                builder.with_client_auth_cert(chain, key).unwrap()
            }
        };
        Client { address: self.address, tls: Arc::new(config), token: None }
    }
}

#[derive(Clone)]
pub struct Client {
    address: SocketAddr,
    tls: Arc<ClientConfig>,
    pub token: Option<String>,
}

#[derive(Debug)]
pub struct Answer {
    pub code: u16,
    pub headers: HeaderMap,
    pub body: Value,
    pub text: String,
    pub bytes: Bytes,
}

impl Answer {
    /// The body, where the code is the expected one.
    #[track_caller]
    pub fn expect(self, code: u16) -> Value {
        assert_eq!(self.code, code, "{}", self.text);
        self.body
    }

    #[track_caller]
    pub fn refuse(self, code: u16, reason: &str) -> String {
        assert_eq!((self.code, self.body["reason"].as_str()), (code, Some(reason)), "{}", self.text);
        self.body["message"].as_str().unwrap_or_default().to_owned()
    }

    pub fn warnings(&self) -> Vec<String> {
        self.headers.get_all("warning").iter().map(|value| value.to_str().unwrap().to_owned()).collect()
    }
}

/// Keeps the connection of an answer that is being read.
#[derive(Clone)]
struct Held(Arc<Mutex<http1::SendRequest<Full<Bytes>>>>);

impl Client {
    async fn exchange(&self, request: Request<Full<Bytes>>) -> http::Response<Incoming> {
        let stream = TcpStream::connect(self.address).await.unwrap();
        let name = ServerName::IpAddress(self.address.ip().into());
        let stream = TlsConnector::from(Arc::clone(&self.tls)).connect(name, stream).await.unwrap();
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection.with_upgrades());
        let sent = tokio::time::timeout(DEADLINE, sender.send_request(request)).await;
        let mut response = sent.unwrap().unwrap();
        // The connection lives as long as its sender: whoever reads the answer keeps it.
        response.extensions_mut().insert(Held(Arc::new(Mutex::new(sender))));
        response
    }

    /// The certificate that the server shows to a new connection.
    pub async fn server_certificate(&self) -> Vec<u8> {
        let stream = TcpStream::connect(self.address).await.unwrap();
        let name = ServerName::IpAddress(self.address.ip().into());
        let stream = TlsConnector::from(Arc::clone(&self.tls)).connect(name, stream).await.unwrap();
        stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()
    }

    fn request(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Vec<u8>,
    ) -> Request<Full<Bytes>> {
        let mut builder =
            Request::builder().method(method).uri(path).header("host", self.address.to_string());
        if let Some(token) = &self.token {
            builder = builder.header("authorization", format!("Bearer {token}"));
        }
        for (name, value) in headers {
            builder = builder.header(*name, *value);
        }
        builder.body(Full::new(body.into())).unwrap()
    }

    /// Sends anything.
    pub async fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: Vec<u8>) -> Answer {
        let response = self.exchange(self.request(method, path, headers, body)).await;
        let (parts, body) = response.into_parts();
        let bytes = tokio::time::timeout(DEADLINE, body.collect()).await.unwrap().unwrap().to_bytes();
        Answer {
            code: parts.status.as_u16(),
            headers: parts.headers,
            body: serde_json::from_slice(&bytes).unwrap_or_default(),
            text: String::from_utf8_lossy(&bytes).into_owned(),
            bytes,
        }
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.send("GET", path, &[], Vec::new()).await
    }

    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        self.send("POST", path, &[("content-type", "application/json")], body.to_string().into()).await
    }

    pub async fn put(&self, path: &str, body: &Value) -> Answer {
        self.send("PUT", path, &[("content-type", "application/json")], body.to_string().into()).await
    }

    /// `kind` is `json`, `merge` or `strategic-merge`.
    pub async fn patch(&self, path: &str, kind: &str, body: &Value) -> Answer {
        let content_type = format!("application/{kind}-patch+json");
        self.send("PATCH", path, &[("content-type", &content_type)], body.to_string().into()).await
    }

    pub async fn delete(&self, path: &str, body: &Value) -> Answer {
        let body = if body.is_null() { Vec::new() } else { body.to_string().into() };
        self.send("DELETE", path, &[("content-type", "application/json")], body).await
    }

    /// One HTTP/2 connection, for many requests at a time.
    pub async fn connect_http2(&self) -> Http2 {
        let mut tls = (*self.tls).clone();
        tls.alpn_protocols = vec![b"h2".to_vec()];
        let stream = TcpStream::connect(self.address).await.unwrap();
        let name = ServerName::IpAddress(self.address.ip().into());
        let stream = TlsConnector::from(Arc::new(tls)).connect(name, stream).await.unwrap();
        let (sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        Http2 { sender, address: self.address, connection: tokio::spawn(connection) }
    }

    /// Opens a watch; `path` holds the query.
    pub async fn watch(&self, path: &str) -> Events {
        self.watch_as(path, &[]).await
    }

    pub async fn watch_as(&self, path: &str, headers: &[(&str, &str)]) -> Events {
        let response = self.exchange(self.request("GET", path, headers, Vec::new())).await;
        assert_eq!(response.status(), StatusCode::OK);
        let content_type = response.headers()["content-type"].to_str().unwrap().to_owned();
        let (parts, body) = response.into_parts();
        Events { content_type, body, buffer: BytesMut::new(), parts }
    }

    /// Asks to switch protocols; returns the answer for the caller to upgrade or read.
    pub async fn upgrade(&self, path: &str, protocol: &str) -> http::Response<Incoming> {
        let headers = [("connection", "Upgrade"), ("upgrade", protocol)];
        self.exchange(self.request("GET", path, &headers, Vec::new())).await
    }
}

/// See [`Client::connect_http2`].
pub struct Http2 {
    sender: hyper::client::conn::http2::SendRequest<Full<Bytes>>,
    address: SocketAddr,
    connection: JoinHandle<hyper::Result<()>>,
}

impl Http2 {
    /// Begins a request; its answer comes when it is polled.
    pub fn send(
        &self,
        method: &str,
        path: &str,
        body: &Value,
    ) -> impl Future<Output = http::Response<Incoming>> + use<> {
        let sent = self.try_send(method, path, body);
        async move { sent.await.unwrap() }
    }

    /// As [`Http2::send`]; an error where the connection takes no more requests.
    pub fn try_send(
        &self,
        method: &str,
        path: &str,
        body: &Value,
    ) -> impl Future<Output = hyper::Result<http::Response<Incoming>>> + use<> {
        let body = if body.is_null() { Vec::new() } else { body.to_string().into() };
        let request = Request::builder()
            .method(method)
            .uri(format!("https://{}{path}", self.address))
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(body)))
            .unwrap();
        let mut sender = self.sender.clone();
        async move { tokio::time::timeout(DEADLINE, sender.send_request(request)).await.unwrap() }
    }

    pub async fn watch(&self, path: &str) -> Events {
        let response = self.send("GET", path, &Value::Null).await;
        assert_eq!(response.status(), StatusCode::OK);
        let (parts, body) = response.into_parts();
        Events { content_type: String::new(), body, buffer: BytesMut::new(), parts }
    }

    /// Waits until the server has closed the connection.
    pub async fn closed(self) {
        tokio::time::timeout(DEADLINE, self.connection).await.unwrap().unwrap().unwrap();
    }
}

/// The events of a watch.
pub struct Events {
    pub content_type: String,
    body: Incoming,
    buffer: BytesMut,
    /// Holds the connection.
    parts: http::response::Parts,
}

impl Events {
    /// The next event; `None` at the end of the stream.
    pub async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(at) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line = self.buffer.split_to(at + 1);
                return Some(serde_json::from_slice(&line).unwrap());
            }
            let frame = tokio::time::timeout(DEADLINE, self.body.frame()).await.expect("an event in time")?;
            self.buffer.extend_from_slice(&frame.unwrap().into_data().unwrap());
        }
    }

    /// The content of the next length-delimited frame; `None` at the end of the stream.
    pub async fn next_frame(&mut self) -> Option<Bytes> {
        loop {
            if let Some(length) = self.buffer.first_chunk::<4>() {
                let length = u32::from_be_bytes(*length) as usize;
                if self.buffer.len() >= 4 + length {
                    let frame = self.buffer.split_to(4 + length).freeze();
                    return Some(frame.slice(4..));
                }
            }
            let frame = tokio::time::timeout(DEADLINE, self.body.frame()).await.expect("an event in time")?;
            self.buffer.extend_from_slice(&frame.unwrap().into_data().unwrap());
        }
    }

    /// Type and name of the next event.
    pub async fn next_named(&mut self) -> (String, String) {
        let event = self.next().await.expect("the watch goes on");
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        (text(&event["type"]), text(&event["object"]["metadata"]["name"]))
    }
}

pub fn config_map(name: &str, labels: Value, data: Value) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "labels": labels}, "data": data})
}

pub fn pod(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {
            "automountServiceAccountToken": false,
            "containers": [{"name": "c", "image": "nginx"}],
        },
    })
}

/// Makes the ServiceAccount that pods of a namespace need: no controller runs here.
pub async fn make_default_account(client: &Client) {
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
    client.post("/api/v1/namespaces/default/serviceaccounts", &account).await.expect(201);
}

pub const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";
pub const PODS: &str = "/api/v1/namespaces/default/pods";
