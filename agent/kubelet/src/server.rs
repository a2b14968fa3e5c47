//! The kubelet's HTTPS server: logs, exec, attach, port-forward, the list of pods, and what the agent says, for the apiserver.
//!
//! Every client shows a certificate of the cluster's CA; only the apiserver's own and `system:masters` get further
//! than the health check.

mod agent;
mod exec;
mod forward;
mod log;
mod stats;
mod upgrade;

use std::convert::Infallible;
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use futures::future::BoxFuture;
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use k8s_openapi::api::core::v1::Pod;
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::config::ServerTls;
use crate::context::Context;
use crate::pod;
use crate::run::PodTable;

const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);
const APISERVER: &str = "kube-apiserver-kubelet-client";
const MASTERS: &str = "system:masters";

pub type Body = BoxBody<Bytes, std::io::Error>;

/// An answer that is an error, as text.
pub struct Refusal {
    pub status: StatusCode,
    pub message: String,
}

impl Refusal {
    pub fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into() }
    }

    pub fn bad_request(message: impl ToString) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message.to_string())
    }

    pub fn internal(error: impl std::fmt::Display) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string())
    }
}

pub type Answer = Result<Response<Body>, Refusal>;

pub fn full(text: impl Into<Bytes>) -> Body {
    Full::new(text.into()).map_err(|never: Infallible| match never {}).boxed()
}

pub fn text(status: StatusCode, content_type: &'static str, text: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(full(text));
    *response.status_mut() = status;
    response.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static(content_type));
    response
}

/// The parameters of a query string, decoded; names may repeat.
pub struct Query(Vec<(String, String)>);

impl Query {
    pub fn of<B>(request: &Request<B>) -> Self {
        let text = request.uri().query().unwrap_or_default();
        let pairs = text.split('&').filter(|pair| !pair.is_empty());
        Self(
            pairs
                .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
                .map(|(k, v)| (decode(k), decode(v)))
                .collect(),
        )
    }

    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    pub fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    /// Upstream writes `1` (remote command) or `true` (logs).
    pub fn flag(&self, name: &str) -> bool {
        matches!(self.get(name), Some("1" | "true"))
    }
}

fn decode(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let bytes = text.as_bytes();
    let mut at = 0;
    while at < bytes.len() {
        let hex = bytes.get(at + 1..at + 3).and_then(|hex| std::str::from_utf8(hex).ok());
        let byte = hex.and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match (bytes[at], byte) {
            (b'%', Some(byte)) => {
                out.push(byte);
                at += 3;
                continue;
            }
            (b'+', _) => out.push(b' '),
            (other, _) => out.push(other),
        }
        at += 1;
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// A bound port with its TLS, not serving yet.
pub struct Server {
    listener: TcpListener,
    tls: TlsAcceptor,
    state: Arc<State>,
}

/// What handlers work with.
pub struct State {
    pub context: Arc<Context>,
    pub pods: PodTable,
}

impl Server {
    /// # Errors
    /// The files of `tls` cannot be read or do not fit together, or the port is taken.
    pub async fn bind(context: Arc<Context>, pods: PodTable, tls: &ServerTls) -> anyhow::Result<Self> {
        let acceptor = TlsAcceptor::from(Arc::new(server_config(tls)?));
        let port = context.config.port;
        let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
        let listener = match TcpListener::bind(any).await {
            Ok(listener) => listener,
            // A host without IPv6.
            Err(_) => TcpListener::bind(SocketAddr::from(([0, 0, 0, 0], port)))
                .await
                .with_context(|| format!("the kubelet's server cannot listen on port {port}"))?,
        };
        Ok(Self { listener, tls: acceptor, state: Arc::new(State { context, pods }) })
    }

    /// Serves until `cancel`; open streams end then too.
    pub async fn run(self, cancel: CancellationToken) {
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                () = cancel.cancelled() => break,
                accepted = self.listener.accept() => match accepted {
                    Ok((stream, _)) => {
                        let _ = stream.set_nodelay(true);
                        connections.spawn(serve(stream, self.tls.clone(), self.state.clone()));
                    }
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept a connection");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                },
                Some(_) = connections.join_next() => {}
            }
        }
    }
}

fn server_config(tls: &ServerTls) -> anyhow::Result<rustls::ServerConfig> {
    let read = |path: &std::path::Path| {
        let certs =
            CertificateDer::pem_file_iter(path).and_then(|certs| certs.collect::<Result<Vec<_>, _>>());
        certs.with_context(|| format!("cannot read certificates from {}", path.display()))
    };
    let key = PrivateKeyDer::from_pem_file(&tls.key)
        .with_context(|| format!("cannot read a private key from {}", tls.key.display()))?;
    let mut roots = RootCertStore::empty();
    for certificate in read(&tls.client_ca)? {
        roots.add(certificate).with_context(|| format!("bad certificate in {}", tls.client_ca.display()))?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .build()
        .with_context(|| format!("no usable CA in {}", tls.client_ca.display()))?;
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_single_cert(read(&tls.cert)?, key)
        .with_context(|| format!("{} and {} do not fit together", tls.cert.display(), tls.key.display()))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

async fn serve(stream: tokio::net::TcpStream, tls: TlsAcceptor, state: Arc<State>) {
    let stream = match tokio::time::timeout(HANDSHAKE_LIMIT, tls.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return tracing::debug!(%error, "TLS handshake failed"),
        Err(_) => return,
    };
    let allowed =
        stream.get_ref().1.peer_certificates().and_then(|certs| certs.first()).is_some_and(|c| may_all(c));
    let service = hyper::service::service_fn(move |request| {
        let state = state.clone();
        async move { Ok::<_, Infallible>(answer(state, request, allowed).await) }
    });
    let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
    let served = builder.serve_connection_with_upgrades(TokioIo::new(stream), service).await;
    if let Err(error) = served {
        tracing::debug!(error, "connection ended");
    }
}

/// Whether the certificate's subject is the apiserver or an administrator.
fn may_all(certificate: &CertificateDer<'_>) -> bool {
    let Ok((_, certificate)) = X509Certificate::from_der(certificate) else { return false };
    let subject = certificate.subject();
    let masters = subject.iter_organization().any(|name| name.as_str().is_ok_and(|name| name == MASTERS));
    masters || subject.iter_common_name().any(|name| name.as_str().is_ok_and(|name| name == APISERVER))
}

async fn answer(state: Arc<State>, request: Request<Incoming>, allowed: bool) -> Response<Body> {
    let path = request.uri().path().to_owned();
    let answered = match (path.as_str(), allowed) {
        ("/healthz" | "/readyz" | "/livez", _) => Ok(text(StatusCode::OK, "text/plain", "ok")),
        (_, false) => {
            let message = "Forbidden: this client certificate may not use the kubelet's API";
            Err(Refusal::new(StatusCode::FORBIDDEN, message))
        }
        _ => route(state, request, &path).await,
    };
    match answered {
        Ok(response) => response,
        Err(refusal) => text(refusal.status, "text/plain; charset=utf-8", format!("{}\n", refusal.message)),
    }
}

fn route(state: Arc<State>, request: Request<Incoming>, path: &str) -> BoxFuture<'static, Answer> {
    let parts: Vec<String> = path.trim_matches('/').split('/').map(decode).collect();
    let method = request.method().clone();
    Box::pin(async move {
        let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
        let stream = method == Method::GET || method == Method::POST;
        match parts.as_slice() {
            ["pods" | "runningpods"] if method == Method::GET => Ok(pods(&state)),
            ["containerLogs", namespace, name, container] if method == Method::GET => {
                log::serve(&state, &request, namespace, name, container).await
            }
            ["exec", namespace, name, rest @ ..] | ["attach", namespace, name, rest @ ..] if stream => {
                let (uid, container) = match rest {
                    [container] => (None, *container),
                    [uid, container] => (Some(*uid), *container),
                    _ => return Err(not_found(&request)),
                };
                let pod = find_pod(&state, namespace, name, uid)?;
                let attach = parts[0] == "attach";
                exec::serve(state.clone(), request, &pod, container, attach).await
            }
            ["portForward", namespace, name, rest @ ..] if stream => {
                let pod = find_pod(&state, namespace, name, rest.first().copied())?;
                forward::serve(state.clone(), request, &pod).await
            }
            ["metrics"] | ["metrics", "resource"] if method == Method::GET => stats::metrics(&state).await,
            ["stats", "summary"] if method == Method::GET => stats::summary(&state).await,
            ["seaway", ..] if method == Method::GET => agent::serve(&state, &request).await,
            _ => Err(not_found(&request)),
        }
    })
}

fn not_found<B>(request: &Request<B>) -> Refusal {
    let message = format!("404 page not found: {} {}", request.method(), request.uri().path());
    Refusal::new(StatusCode::NOT_FOUND, message)
}

fn pods(state: &State) -> Response<Body> {
    let items: Vec<Pod> = state.pods.all().iter().map(|pod| Pod::clone(pod)).collect();
    let list = serde_json::json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items});
    text(StatusCode::OK, "application/json", list.to_string())
}

pub fn find_pod(state: &State, namespace: &str, name: &str, uid: Option<&str>) -> Result<Arc<Pod>, Refusal> {
    let found = state.pods.find(namespace, name).filter(|found| uid.is_none_or(|uid| pod::uid(found) == uid));
    found.ok_or_else(|| {
        Refusal::new(
            StatusCode::NOT_FOUND,
            format!("pod does not exist: {namespace}/{name} is not on this node"),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_decoded_and_repeat() {
        let request = Request::get("/x?command=a%20b&command=c+d&stdin=1&tty=false&e=%zz").body(()).unwrap();
        let query = Query::of(&request);
        assert_eq!(query.all("command").collect::<Vec<_>>(), ["a b", "c d"]);
        assert!(query.flag("stdin") && !query.flag("tty") && !query.flag("none"));
        assert_eq!(query.get("e"), Some("%zz"));
    }

    #[test]
    fn only_the_apiserver_and_administrators_get_further() {
        let certificate = |name: &str, organization: &str| {
            let mut params = rcgen::CertificateParams::default();
            params.distinguished_name = rcgen::DistinguishedName::new();
            params.distinguished_name.push(rcgen::DnType::CommonName, name);
            params.distinguished_name.push(rcgen::DnType::OrganizationName, organization);
            let key = rcgen::KeyPair::generate().unwrap();
            params.self_signed(&key).unwrap().der().clone()
        };
        assert!(may_all(&certificate("admin", MASTERS)));
        assert!(may_all(&certificate(APISERVER, "x")));
        assert!(!may_all(&certificate("system:node:n", "system:nodes")));
        assert!(!may_all(&CertificateDer::from(vec![1, 2, 3])));
    }
}
