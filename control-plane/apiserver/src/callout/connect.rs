//! One TLS connection to a destination, for the pool.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http::Uri;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::{
    client::legacy::connect::{Connected, Connection},
    rt::TokioIo,
};
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::resolve::{Place, ServicePort};
use crate::admission::Lookup;

const CONNECT_TIME_MAX: Duration = Duration::from_secs(30);
/// Endpoints that are tried before a call fails.
const ENDPOINTS_TRIED_MAX: usize = 3;

/// Makes connections to one destination.
#[derive(Clone)]
pub(super) struct Connector {
    tls: Arc<ClientConfig>,
    service: Option<ServicePort>,
    lookup: Arc<dyn Lookup>,
}

impl Connector {
    pub(super) fn new(tls: Arc<ClientConfig>, service: Option<ServicePort>, lookup: Arc<dyn Lookup>) -> Self {
        Self { tls, service, lookup }
    }

    pub(super) async fn connect(self, uri: Uri) -> io::Result<Stream> {
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        let tcp = match &self.service {
            Some(service) => dial(service.resolve(&*self.lookup).map_err(io::Error::other)?).await?,
            None => dial(Place::Host(host.clone(), uri.port_u16().unwrap_or(443))).await?,
        };
        tcp.set_nodelay(true)?;
        let name = ServerName::try_from(host.clone())
            .map_err(|error| io::Error::other(format!("{host:?} is no name for TLS: {error}")))?;
        let tls = TlsConnector::from(self.tls)
            .connect(name, tcp)
            .await
            .map_err(|error| io::Error::other(format!("tls: failed to verify certificate: {error}")))?;
        Ok(Stream(TokioIo::new(tls)))
    }
}

/// A TCP connection to a place.
pub(crate) async fn dial(place: Place) -> io::Result<TcpStream> {
    let failed = |to: String, error: &io::Error| {
        let why = match error.kind() {
            io::ErrorKind::ConnectionRefused => "connect: connection refused".to_owned(),
            io::ErrorKind::TimedOut => "i/o timeout".to_owned(),
            _ => error.to_string(),
        };
        io::Error::other(format!("dial tcp {to}: {why}"))
    };
    match place {
        Place::Host(host, port) => TcpStream::connect((host.as_str(), port))
            .await
            .map_err(|error| failed(format!("{host}:{port}"), &error)),
        Place::Endpoints(addresses) => {
            let mut last = io::Error::other("no endpoints");
            for address in addresses.into_iter().take(ENDPOINTS_TRIED_MAX) {
                match TcpStream::connect(address).await {
                    Ok(stream) => return Ok(stream),
                    Err(error) => last = failed(address.to_string(), &error),
                }
            }
            Err(last)
        }
    }
}

impl tower::Service<Uri> for Connector {
    type Response = Stream;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Stream>> + Send>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connect = self.clone().connect(uri);
        Box::pin(async move {
            tokio::time::timeout(CONNECT_TIME_MAX, connect)
                .await
                .unwrap_or_else(|_| Err(io::Error::other("connection timed out")))
        })
    }
}

pub(super) struct Stream(TokioIo<TlsStream<TcpStream>>);

impl Stream {
    pub(super) fn into_inner(self) -> TlsStream<TcpStream> {
        self.0.into_inner()
    }
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        let (_, session) = self.0.inner().get_ref();
        let connected = Connected::new();
        if session.alpn_protocol() == Some(b"h2") { connected.negotiated_h2() } else { connected }
    }
}

impl Read for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl Write for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}
