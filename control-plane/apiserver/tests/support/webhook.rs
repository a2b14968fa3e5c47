//! A TLS server in the test process that answers as the test's function says: webhooks and aggregated servers.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use apiserver::security::{
    pki::{Ca, CertificateSpec},
    tls,
};
use base64::Engine as _;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_rustls::TlsAcceptor;

/// One request as it arrived.
#[derive(Clone, Debug)]
pub struct Received {
    pub method: String,
    pub path: String,
    pub query: String,
    pub headers: http::HeaderMap,
    pub body: Value,
    /// What the client showed, in DER.
    pub certificate: Option<Vec<u8>>,
    /// Connections that were accepted before this request was read.
    pub connections: usize,
}

type Answerer = dyn Fn(&Received) -> (u16, Value) + Send + Sync;

/// See the module's documentation.
pub struct Backend {
    pub address: SocketAddr,
    /// PEM of the CA that signed its certificate.
    pub ca: String,
    received: Arc<Mutex<Vec<Received>>>,
    serving: JoinHandle<()>,
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Backend {
    /// Listens on loopback; `answer` gives the code and the JSON of every answer.
    pub async fn start(answer: impl Fn(&Received) -> (u16, Value) + Send + Sync + 'static) -> Self {
        let pair = Ca::generate("webhook-ca").unwrap();
        let ca = Ca::from_pem(&pair.certificate_pem, &pair.key_pem).unwrap();
        let spec = CertificateSpec {
            common_name: "webhook".to_owned(),
            sans: ["127.0.0.1", "localhost", "api.default.svc"].map(str::to_owned).into(),
            server: true,
            ..CertificateSpec::default()
        };
        let issued = ca.issue(&spec).unwrap();
        let tls = tls::server_config(tls::Live::new(&issued).unwrap()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let received = Arc::new(Mutex::new(Vec::new()));
        let serving =
            tokio::spawn(accept(listener, TlsAcceptor::from(tls), Arc::new(answer), Arc::clone(&received)));
        Self { address, ca: ca.certificate_pem().to_owned(), received, serving }
    }

    pub fn received(&self) -> Vec<Received> {
        self.received.lock().unwrap().clone()
    }

    pub fn ca_bundle(&self) -> String {
        base64::engine::general_purpose::STANDARD.encode(&self.ca)
    }

    /// A clientConfig that leads to `path` of this server.
    pub fn client_config(&self, path: &str) -> Value {
        json!({"url": format!("https://{}{path}", self.address), "caBundle": self.ca_bundle()})
    }
}

async fn accept(
    listener: TcpListener,
    tls: TlsAcceptor,
    answer: Arc<Answerer>,
    received: Arc<Mutex<Vec<Received>>>,
) {
    let mut connections = 0;
    while let Ok((stream, _)) = listener.accept().await {
        connections += 1;
        let (tls, answer, received) = (tls.clone(), Arc::clone(&answer), Arc::clone(&received));
        tokio::spawn(async move {
            let Ok(stream) = tls.accept(stream).await else { return };
            let shown = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
            let certificate = shown.map(|shown| shown.to_vec());
            let service = service_fn(move |request: Request<Incoming>| {
                respond(request, connections, certificate.clone(), Arc::clone(&answer), Arc::clone(&received))
            });
            let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
            // A client that goes away ends its connection.
            let _ = server.serve_connection_with_upgrades(TokioIo::new(stream), service).await;
        });
    }
}

async fn respond(
    request: Request<Incoming>,
    connections: usize,
    certificate: Option<Vec<u8>>,
    answer: Arc<Answerer>,
    received: Arc<Mutex<Vec<Received>>>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let (parts, body) = request.into_parts();
    let bytes = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let request = Received {
        method: parts.method.to_string(),
        path: parts.uri.path().to_owned(),
        query: parts.uri.query().unwrap_or_default().to_owned(),
        headers: parts.headers,
        body: serde_json::from_slice(&bytes).unwrap_or_default(),
        certificate,
        connections,
    };
    received.lock().unwrap().push(request.clone());
    let (code, value) = tokio::task::spawn_blocking(move || answer(&request)).await.unwrap();
    let response = Response::builder().status(code).header("content-type", "application/json");
    Ok(response.body(Full::new(value.to_string().into())).unwrap())
}

/// An AdmissionReview that answers `request` with these fields of the response.
pub fn review(request: &Received, mut response: Value) -> (u16, Value) {
    response["uid"] = request.body["request"]["uid"].clone();
    (200, json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response}))
}

/// An answer that allows, with a JSON patch.
pub fn patch(request: &Received, operations: Value) -> (u16, Value) {
    let patch = base64::engine::general_purpose::STANDARD.encode(operations.to_string());
    review(request, json!({"allowed": true, "patchType": "JSONPatch", "patch": patch}))
}
