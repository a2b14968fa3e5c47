//! HTTPS calls that the server makes on a request's behalf: to admission and conversion webhooks, to aggregated API servers.
//!
//! ```text
//! clientConfig -> Destination -> Pool (one per destination and trust) -> Connector: resolve a Service, dial, TLS
//! ```
//!
//! A Service is dialled at one of its endpoints, since this process need not have a route to cluster IPs; the TLS name stays
//! `NAME.NAMESPACE.svc`. Connections are kept and shared.

mod connect;
mod conversion;
pub mod resolve;
mod trust;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use base64::Engine as _;
use bytes::Bytes;
use http::{Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Limited};
use hyper_util::{
    client::legacy::Client,
    rt::{TokioExecutor, TokioTimer},
};
use rustls::ClientConfig;
use serde_json::Value;

use self::connect::Connector;
pub use self::{conversion::ConversionWebhooks, resolve::ServicePort};
use crate::{
    admission::Lookup,
    security::tls::Live,
    server::body::{self, Body},
    subresources::upstream::{Stream, chain},
};

/// The largest answer of a webhook: what a request body may have, with a patch around it.
pub const ANSWER_BYTES_MAX: usize = 3 * 1024 * 1024;
/// More destinations than this, and connections to all are dropped.
const POOLS_MAX: usize = 256;
const IDLE_CONNECTIONS_MAX: usize = 16;
const IDLE_TIME_MAX: Duration = Duration::from_secs(90);

/// Whom to call, and how to know them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Destination {
    /// As the URL writes it: `name.namespace.svc:443` for a Service.
    pub authority: String,
    /// With a leading slash; may be empty.
    pub path: String,
    pub service: Option<ServicePort>,
    /// PEM; the machine's roots where it is empty.
    pub ca_bundle: Vec<u8>,
    /// Any certificate will do.
    pub skip_verify: bool,
    /// Shows the front-proxy certificate.
    pub as_proxy: bool,
}

impl Destination {
    /// From a WebhookClientConfig.
    ///
    /// # Errors
    /// A text, where it names no place.
    pub fn of_client_config(config: &Value) -> Result<Self, String> {
        let ca_bundle = ca_bundle(&config["caBundle"])?;
        let to = |authority: String, path: String, service| Self {
            authority,
            path,
            service,
            ca_bundle,
            skip_verify: false,
            as_proxy: false,
        };
        if config["service"].is_object() {
            let service = ServicePort::parse(&config["service"]);
            let path = config["service"]["path"].as_str().unwrap_or_default().to_owned();
            return Ok(to(service.authority(), path, Some(service)));
        }
        let url = config["url"].as_str().ok_or("webhook configuration must have either service or URL")?;
        let uri: Uri = url.parse().map_err(|error| format!("Unparsable URL: {error}"))?;
        let authority = uri.authority().ok_or_else(|| format!("Unparsable URL: {url} names no host"))?;
        Ok(to(authority.as_str().to_owned(), uri.path().to_owned(), None))
    }

    pub fn url(&self) -> String {
        format!("https://{}{}", self.authority, self.path)
    }

    /// As upstream, HTTP/2 only to this machine: one connection would tie all calls to one endpoint.
    fn is_local(&self) -> bool {
        let host = self.authority.rsplit_once(':').map_or(self.authority.as_str(), |(host, _)| host);
        let address = host.trim_matches(['[', ']']).parse::<std::net::IpAddr>();
        host.eq_ignore_ascii_case("localhost") || address.is_ok_and(|address| address.is_loopback())
    }
}

/// A `caBundle` field: base64 of PEM.
///
/// # Errors
/// A text, where it is not base64.
pub fn ca_bundle(value: &Value) -> Result<Vec<u8>, String> {
    let text = value.as_str().unwrap_or_default();
    base64::engine::general_purpose::STANDARD
        .decode(text)
        .map_err(|error| format!("caBundle is not base64: {error}"))
}

/// Why a call has no answer; the text is upstream's where clients show it.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct CallError(pub String);

type Pool = Client<Connector, Body>;

/// See the module's documentation.
pub struct Callout {
    lookup: Arc<dyn Lookup>,
    /// Shown to aggregated API servers.
    proxy: Option<Arc<Live>>,
    pools: Mutex<HashMap<Destination, Arc<Pool>>>,
}

impl Callout {
    pub fn new(lookup: Arc<dyn Lookup>, proxy: Option<Arc<Live>>) -> Self {
        Self { lookup, proxy, pools: Mutex::default() }
    }

    /// Lets open connections end when their requests do: after the certificate that they showed is replaced.
    pub fn forget_connections(&self) {
        self.pools.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// How a destination is trusted, and what it is shown.
    ///
    /// # Errors
    /// A text, where its CA bundle holds no certificates.
    pub fn tls(&self, destination: &Destination) -> Result<Arc<ClientConfig>, CallError> {
        let identity = self.proxy.as_ref().filter(|_| destination.as_proxy);
        trust::client_config(&destination.ca_bundle, destination.skip_verify, identity).map_err(CallError)
    }

    fn pool(&self, destination: &Destination) -> Result<Arc<Pool>, CallError> {
        // The path does not make another connection.
        let key = Destination { path: String::new(), ..destination.clone() };
        if let Some(pool) = self.pools.lock().unwrap_or_else(PoisonError::into_inner).get(&key) {
            return Ok(Arc::clone(pool));
        }
        let mut tls = ClientConfig::clone(&*self.tls(destination)?);
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        if destination.is_local() || destination.as_proxy {
            tls.alpn_protocols.insert(0, b"h2".to_vec());
        }
        let connector = Connector::new(Arc::new(tls), destination.service.clone(), Arc::clone(&self.lookup));
        let pool = Arc::new(
            Client::builder(TokioExecutor::new())
                .pool_timer(TokioTimer::new())
                .pool_idle_timeout(IDLE_TIME_MAX)
                .pool_max_idle_per_host(IDLE_CONNECTIONS_MAX)
                .build(connector),
        );
        let mut pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        if pools.len() >= POOLS_MAX {
            pools.clear();
        }
        Ok(Arc::clone(pools.entry(key).or_insert(pool)))
    }

    /// A connection of its own, which speaks HTTP/1.1: for a request that switches protocols.
    ///
    /// # Errors
    /// When nothing answers.
    pub(crate) async fn connect(&self, destination: &Destination) -> Result<Box<dyn Stream>, CallError> {
        let mut tls = ClientConfig::clone(&*self.tls(destination)?);
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        let connector = Connector::new(Arc::new(tls), destination.service.clone(), Arc::clone(&self.lookup));
        let uri = destination.url().parse().map_err(|error| CallError(format!("{error}")))?;
        let stream = connector.connect(uri).await.map_err(|error| CallError(error.to_string()))?;
        Ok(Box::new(stream.into_inner()))
    }

    /// Sends a request whose URI is absolute; its body and the answer's are streams.
    ///
    /// # Errors
    /// When nothing answers.
    pub async fn send(
        &self,
        destination: &Destination,
        request: Request<Body>,
    ) -> Result<http::Response<hyper::body::Incoming>, CallError> {
        let pool = self.pool(destination)?;
        pool.request(request).await.map_err(|error| CallError(cause(&error)))
    }

    /// POSTs JSON and reads the answer; `timeout` is for all of it.
    ///
    /// # Errors
    /// When nothing answers in time, when what answers is larger than [`ANSWER_BYTES_MAX`], or is no success.
    pub async fn post(
        &self,
        destination: &Destination,
        body: Vec<u8>,
        timeout: Duration,
    ) -> Result<Bytes, CallError> {
        // Whole seconds, rounded up, as webhooks expect them.
        let seconds = timeout.as_millis().div_ceil(1000).max(1);
        let url = format!("{}?timeout={seconds}s", destination.url());
        let failed = |why: &str| CallError(format!("Post {url:?}: {why}"));
        let request = Request::builder()
            .method(Method::POST)
            .uri(&url)
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::ACCEPT, "application/json, */*")
            .header(header::USER_AGENT, "kube-apiserver-admission")
            .body(body::full(body))
            .map_err(|error| failed(&error.to_string()))?;
        let exchange = async {
            let response = self.send(destination, request).await.map_err(|error| failed(&error.0))?;
            let code = response.status();
            let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
            let body = body.map_err(|error| failed(&chain(&*error)))?.to_bytes();
            if code.is_success() { Ok(body) } else { Err(CallError(refusal(code, &body))) }
        };
        match tokio::time::timeout(timeout, exchange).await {
            Ok(answer) => answer,
            Err(_) => Err(failed("context deadline exceeded")),
        }
    }
}

/// The innermost cause: what dialling or TLS said.
fn cause(error: &hyper_util::client::legacy::Error) -> String {
    let mut inner: &dyn std::error::Error = error;
    while let Some(source) = inner.source() {
        inner = source;
    }
    inner.to_string()
}

/// What an answer without success means, in the words of upstream's client.
fn refusal(code: StatusCode, body: &[u8]) -> String {
    if let Ok(status) = serde_json::from_slice::<Value>(body)
        && status["kind"] == "Status"
        && let Some(message) = status["message"].as_str()
    {
        return message.to_owned();
    }
    match code.as_u16() {
        400 => "the server rejected our request for an unknown reason".to_owned(),
        401 => "the server has asked for the client to provide credentials".to_owned(),
        403 => "forbidden".to_owned(),
        404 => "the server could not find the requested resource".to_owned(),
        405 => "the server does not allow this method on the requested resource".to_owned(),
        503 => "the server is currently unable to handle the request".to_owned(),
        500.. => {
            let text: String = String::from_utf8_lossy(body).trim().chars().take(2048).collect();
            let text = if text.is_empty() { "unknown".to_owned() } else { text };
            format!("an error on the server ({text:?}) has prevented the request from succeeding")
        }
        other => {
            format!("the server responded with the status code {other} but did not return more information")
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_client_config_names_a_service_or_a_url() {
        let service = json!({"service": {"name": "hook", "namespace": "team", "path": "/check"}});
        let destination = Destination::of_client_config(&service).unwrap();
        assert_eq!(destination.url(), "https://hook.team.svc:443/check");
        let url = json!({"url": "https://127.0.0.1:8443/a"});
        let destination = Destination::of_client_config(&url).unwrap();
        assert_eq!((destination.url().as_str(), destination.is_local()), ("https://127.0.0.1:8443/a", true));
        assert!(Destination::of_client_config(&json!({})).is_err());
        assert!(Destination::of_client_config(&json!({"url": "https://a", "caBundle": "%"})).is_err());
    }

    #[test]
    fn a_refusal_is_told_in_the_words_of_clients() {
        assert_eq!(
            refusal(StatusCode::NOT_FOUND, b"404 page not found"),
            "the server could not find the requested resource"
        );
        assert_eq!(
            refusal(StatusCode::INTERNAL_SERVER_ERROR, b"broken"),
            "an error on the server (\"broken\") has prevented the request from succeeding"
        );
        let status = br#"{"kind":"Status","message":"no"}"#;
        assert_eq!(refusal(StatusCode::FORBIDDEN, status), "no");
    }
}
