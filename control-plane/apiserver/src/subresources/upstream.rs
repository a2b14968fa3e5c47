//! One HTTP/1.1 exchange with a backend (a kubelet, a pod, a Service's endpoint) on behalf of a client, with the
//! protocol switch passed through: after `101` bytes are copied both ways and never read.
//!
//! ```text
//! client --- WebSocket or SPDY ---> server --- the same bytes ---> kubelet
//! ```

use std::{net::IpAddr, sync::Arc, time::Duration};

use api::status::Status;
use http::{HeaderMap, HeaderName, Request, Response, StatusCode, header};
use http_body_util::BodyExt;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite, copy_bidirectional},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;
use tracing::debug;

use crate::server::body::{self, Body, BoxError};

const CONNECT_TIME_MAX: Duration = Duration::from_secs(10);

/// Where to connect; TLS where `tls` is there.
pub struct Backend {
    pub address: IpAddr,
    pub port: u16,
    pub tls: Option<Arc<rustls::ClientConfig>>,
}

pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Whether a request asks to switch protocols.
pub fn is_upgrade(headers: &HeaderMap) -> bool {
    headers.contains_key(header::UPGRADE)
        && headers
            .get_all(header::CONNECTION)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .any(|value| value.to_ascii_lowercase().contains("upgrade"))
}

impl Backend {
    /// Host and port.
    pub fn authority(&self) -> String {
        match self.address {
            IpAddr::V4(address) => format!("{address}:{}", self.port),
            IpAddr::V6(address) => format!("[{address}]:{}", self.port),
        }
    }

    async fn connect(&self) -> Result<Box<dyn Stream>, BoxError> {
        let connect = async {
            let stream = TcpStream::connect((self.address, self.port)).await?;
            stream.set_nodelay(true)?;
            let stream: Box<dyn Stream> = match &self.tls {
                None => Box::new(stream),
                Some(config) => {
                    let name = ServerName::IpAddress(self.address.into());
                    Box::new(TlsConnector::from(Arc::clone(config)).connect(name, stream).await?)
                }
            };
            Ok::<_, BoxError>(stream)
        };
        tokio::time::timeout(CONNECT_TIME_MAX, connect)
            .await
            .map_err(|_| BoxError::from("connection timed out"))?
    }

    /// Sends `request`, whose URI is a path and query, and returns the backend's answer. `upgrade` is the client's
    /// half of a protocol switch, where it asked for one.
    pub async fn exchange(
        &self,
        request: Request<Body>,
        upgrade: Option<OnUpgrade>,
    ) -> Result<Response<Body>, Status> {
        let authority = self.authority();
        let failed = |error: BoxError| {
            Status::internal(format_args!("error dialing backend: {}", chain(error.as_ref())))
        };
        let stream = self
            .connect()
            .await
            .map_err(|error| failed(format!("dial tcp {authority}: {}", chain(error.as_ref())).into()))?;
        exchange_on(stream, &authority, request, upgrade).await
    }
}

/// One exchange on a connection of its own. See [`Backend::exchange`].
///
/// # Errors
/// When the backend does not answer, or switches protocols unasked.
pub(crate) async fn exchange_on(
    stream: Box<dyn Stream>,
    authority: &str,
    mut request: Request<Body>,
    upgrade: Option<OnUpgrade>,
) -> Result<Response<Body>, Status> {
    let failed =
        |error: BoxError| Status::internal(format_args!("error dialing backend: {}", chain(error.as_ref())));
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| failed(error.into()))?;
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            debug!(%error, "backend connection ended");
        }
    });
    if upgrade.is_none() {
        strip_hop_headers(request.headers_mut());
    }
    if let Ok(host) = authority.parse() {
        request.headers_mut().insert(header::HOST, host);
    }
    let mut response = sender.send_request(request).await.map_err(|error| failed(error.into()))?;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let Some(client) = upgrade else {
            return Err(Status::internal("the backend switched protocols unasked"));
        };
        tokio::spawn(splice(client, hyper::upgrade::on(&mut response)));
        let (parts, _) = response.into_parts();
        return Ok(Response::from_parts(parts, body::empty()));
    }
    strip_hop_headers(response.headers_mut());
    // The sender must outlive the answer's body, or hyper closes the connection below it.
    Ok(response.map(|incoming| {
        body::of(incoming.map_frame(move |frame| {
            let _open = &sender;
            frame
        }))
    }))
}

async fn splice(client: OnUpgrade, backend: OnUpgrade) {
    match tokio::try_join!(client, backend) {
        Ok((client, backend)) => {
            let (mut client, mut backend) = (TokioIo::new(client), TokioIo::new(backend));
            if let Err(error) = copy_bidirectional(&mut client, &mut backend).await {
                debug!(%error, "proxied stream ended");
            }
        }
        Err(error) => debug!(%error, "protocol switch failed"),
    }
}

/// Headers that describe one connection, not the message (RFC 9110, section 7.6.1).
pub(crate) fn strip_hop_headers(headers: &mut HeaderMap) {
    for name in [
        header::CONNECTION,
        header::PROXY_AUTHENTICATE,
        header::TE,
        header::TRAILER,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
        HeaderName::from_static("keep-alive"),
    ] {
        headers.remove(name);
    }
}

/// An error with its causes in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}
