//! The load generator's HTTP client: TLS with a client certificate, HTTP/1.1 or HTTP/2, bodies read and thrown away.

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::{Context as _, Result, bail};
use base64::Engine as _;
use bytes::{Bytes, BytesMut};
use http_body_util::{BodyExt as _, Full};
use hyper::{
    body::Incoming,
    client::conn::{http1, http2},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject as _};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::HttpVersion;

/// No answer takes longer.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(120);
const JSON: &str = "application/json";

/// How to connect.
#[derive(Clone)]
pub(crate) struct Client {
    tls: TlsConnector,
    port: u16,
    version: HttpVersion,
}

pub(crate) struct Request {
    method: &'static str,
    path: String,
    content_type: &'static str,
    accept: &'static str,
    body: Bytes,
    keep: bool,
}

impl Request {
    pub(crate) fn get(path: impl Into<String>) -> Self {
        Self {
            method: "GET",
            path: path.into(),
            content_type: "",
            accept: JSON,
            body: Bytes::new(),
            keep: false,
        }
    }

    pub(crate) fn post(path: impl Into<String>, body: impl Into<Bytes>) -> Self {
        Self { method: "POST", content_type: JSON, body: body.into(), ..Self::get(path) }
    }

    pub(crate) fn merge_patch(path: impl Into<String>, body: impl Into<Bytes>) -> Self {
        Self {
            method: "PATCH",
            content_type: "application/merge-patch+json",
            body: body.into(),
            ..Self::get(path)
        }
    }

    pub(crate) fn accept(self, accept: &'static str) -> Self {
        Self { accept, ..self }
    }

    /// Keeps the body of the answer.
    pub(crate) fn keep(self) -> Self {
        Self { keep: true, ..self }
    }
}

pub(crate) struct Answer {
    pub(crate) status: u16,
    /// Bytes of the body.
    pub(crate) length: usize,
    /// The body, where it was asked for or is an error.
    pub(crate) body: Bytes,
}

impl Answer {
    /// Fails unless the status is one of 2xx.
    pub(crate) fn good(self) -> Result<Self> {
        if (200..300).contains(&self.status) {
            return Ok(self);
        }
        bail!("status {}: {}", self.status, String::from_utf8_lossy(&self.body).trim())
    }
}

/// One connection; requests of one value go one after the other.
pub(crate) struct Connection {
    sender: Sender,
    host: String,
}

enum Sender {
    One(http1::SendRequest<Full<Bytes>>),
    Two(http2::SendRequest<Full<Bytes>>),
}

impl Client {
    pub(crate) fn new(
        port: u16,
        ca: &str,
        certificate: &str,
        key: &str,
        version: HttpVersion,
    ) -> Result<Self> {
        let mut roots = rustls::RootCertStore::empty();
        for one in CertificateDer::pem_slice_iter(ca.as_bytes()) {
            roots.add(one.context("CA certificate")?)?;
        }
        let chain = CertificateDer::pem_slice_iter(certificate.as_bytes()).collect::<Result<Vec<_>, _>>()?;
        let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).context("client key")?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)?;
        config.alpn_protocols = vec![match version {
            HttpVersion::One => b"http/1.1".to_vec(),
            HttpVersion::Two => b"h2".to_vec(),
        }];
        Ok(Self { tls: TlsConnector::from(Arc::new(config)), port, version })
    }

    /// Connects as the user of a kubeconfig that seaway-server wrote.
    pub(crate) fn of_kubeconfig(path: &Path, port: u16, version: HttpVersion) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        let field = |name: &str| -> Result<String> {
            let line = text.lines().find_map(|line| line.trim().strip_prefix(name));
            let encoded = line.with_context(|| format!("{} has no {name}", path.display()))?;
            let bytes = base64::engine::general_purpose::STANDARD.decode(encoded.trim())?;
            Ok(String::from_utf8(bytes)?)
        };
        Self::new(
            port,
            &field("certificate-authority-data:")?,
            &field("client-certificate-data:")?,
            &field("client-key-data:")?,
            version,
        )
    }

    /// A connection on which nothing was said yet.
    pub(crate) async fn stream(&self) -> Result<TlsStream<TcpStream>> {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).await?;
        stream.set_nodelay(true)?;
        let name = ServerName::try_from("127.0.0.1").context("an address is a server name")?;
        Ok(self.tls.connect(name, stream).await?)
    }

    pub(crate) async fn connect(&self) -> Result<Connection> {
        let stream = TokioIo::new(self.stream().await?);
        let sender = match self.version {
            HttpVersion::One => {
                let (sender, connection) = http1::handshake(stream).await?;
                tokio::spawn(connection);
                Sender::One(sender)
            }
            HttpVersion::Two => {
                let (sender, connection) = http2::Builder::new(TokioExecutor::new())
                    .initial_stream_window_size(8 << 20)
                    .initial_connection_window_size(16 << 20)
                    .handshake(stream)
                    .await?;
                tokio::spawn(connection);
                Sender::Two(sender)
            }
        };
        Ok(Connection { sender, host: format!("127.0.0.1:{}", self.port) })
    }
}

impl Connection {
    /// Another value for requests on the same connection, which only HTTP/2 can carry side by side.
    pub(crate) fn share(&self) -> Option<Self> {
        match &self.sender {
            Sender::One(_) => None,
            Sender::Two(sender) => {
                Some(Self { sender: Sender::Two(sender.clone()), host: self.host.clone() })
            }
        }
    }

    /// Sends a request and reads the whole answer.
    pub(crate) async fn send(&mut self, request: Request) -> Result<Answer> {
        let keep = request.keep;
        let shown = format!("{} {}", request.method, request.path);
        let answer = async {
            let (status, mut body) = self.open(request).await?;
            let mut length = 0;
            let mut kept = BytesMut::new();
            while let Some(frame) = body.frame().await {
                if let Some(data) = frame?.data_ref() {
                    length += data.len();
                    if keep || status >= 300 {
                        kept.extend_from_slice(data);
                    }
                }
            }
            Ok(Answer { status, length, body: kept.freeze() })
        };
        tokio::time::timeout(ANSWER_TIME_MAX, answer)
            .await
            .unwrap_or_else(|_| bail!("no answer"))
            .context(shown)
    }

    /// Sends a request; the body of the answer is the caller's to read.
    pub(crate) async fn open(&mut self, request: Request) -> Result<(u16, Incoming)> {
        let uri = match &self.sender {
            Sender::One(_) => request.path,
            Sender::Two(_) => format!("https://{}{}", self.host, request.path),
        };
        let mut built = http::Request::builder()
            .method(request.method)
            .uri(uri)
            .header("host", &self.host)
            .header("accept", request.accept)
            .header("user-agent", "seaway-bench");
        if !request.content_type.is_empty() {
            built = built.header("content-type", request.content_type);
        }
        let built = built.body(Full::new(request.body))?;
        let response = match &mut self.sender {
            Sender::One(sender) => {
                sender.ready().await?;
                sender.send_request(built).await?
            }
            Sender::Two(sender) => {
                sender.ready().await?;
                sender.send_request(built).await?
            }
        };
        Ok((response.status().as_u16(), response.into_body()))
    }
}
