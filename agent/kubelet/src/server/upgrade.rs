//! Taking over a connection: WebSocket or SPDY, and the choice of a subprotocol.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use futures::{Sink, Stream};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error, Message};

use super::{Body, Refusal, full};

pub type Socket = WebSocketStream<TokioIo<Upgraded>>;
const MESSAGE_BYTES_MAX: usize = 32 << 20;
const STREAM_PROTOCOL: &str = "X-Stream-Protocol-Version";

/// What the client wants the connection to become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    WebSocket,
    Spdy,
}

/// Reads the upgrade headers.
pub fn wanted(headers: &HeaderMap) -> Result<Wanted, Refusal> {
    let upgrade = headers.get(header::UPGRADE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let connection = headers.get_all(header::CONNECTION).iter().filter_map(|value| value.to_str().ok());
    let asks =
        connection.flat_map(|value| value.split(',')).any(|word| word.trim().eq_ignore_ascii_case("upgrade"));
    match upgrade.to_ascii_lowercase().as_str() {
        "websocket" if asks => Ok(Wanted::WebSocket),
        "spdy/3.1" if asks => Ok(Wanted::Spdy),
        _ => Err(Refusal::bad_request("unable to upgrade: missing upgrade headers in request")),
    }
}

/// The first of `known` that the client offers in `name`; without an offer, `None`.
fn negotiate(
    headers: &HeaderMap,
    name: &str,
    known: &[&'static str],
) -> Result<Option<&'static str>, Refusal> {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    let offered: Vec<&str> =
        values.flat_map(|value| value.split(',')).map(str::trim).filter(|v| !v.is_empty()).collect();
    if offered.is_empty() {
        return Ok(None);
    }
    let chosen = known.iter().find(|protocol| offered.contains(*protocol));
    chosen.copied().map(Some).ok_or_else(|| {
        let message = format!("unable to upgrade: unable to negotiate protocol: client supports {offered:?}, server accepts {known:?}");
        Refusal::new(StatusCode::FORBIDDEN, message)
    })
}

/// An accepted upgrade: the answer to send, and the connection that will come of it.
pub struct Accepted {
    pub response: Response<Body>,
    pub protocol: Option<&'static str>,
    upgrade: OnUpgrade,
}

/// Accepts a WebSocket with the first of `known` that the client offers.
pub fn websocket<B>(request: &mut Request<B>, known: &[&'static str]) -> Result<Accepted, Refusal> {
    let protocol = negotiate(request.headers(), header::SEC_WEBSOCKET_PROTOCOL.as_str(), known)?;
    let key = request.headers().get(header::SEC_WEBSOCKET_KEY);
    let key = key.ok_or_else(|| Refusal::bad_request("missing header Sec-WebSocket-Key"))?;
    let accept = derive_accept_key(key.as_bytes());
    let mut response = switching("websocket");
    let headers = response.headers_mut();
    headers.insert(header::SEC_WEBSOCKET_ACCEPT, HeaderValue::try_from(accept).map_err(Refusal::internal)?);
    if let Some(protocol) = protocol {
        headers.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(protocol));
    }
    Ok(Accepted { response, protocol, upgrade: hyper::upgrade::on(request) })
}

/// Accepts SPDY with the first of `known` that the client offers.
pub fn spdy<B>(request: &mut Request<B>, known: &[&'static str]) -> Result<Accepted, Refusal> {
    let protocol = negotiate(request.headers(), STREAM_PROTOCOL, known)?;
    let mut response = switching("SPDY/3.1");
    if let Some(protocol) = protocol {
        response.headers_mut().insert(STREAM_PROTOCOL, HeaderValue::from_static(protocol));
    }
    Ok(Accepted { response, protocol, upgrade: hyper::upgrade::on(request) })
}

fn switching(to: &'static str) -> Response<Body> {
    let mut response = Response::new(full(""));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    response.headers_mut().insert(header::UPGRADE, HeaderValue::from_static(to));
    response
}

impl Accepted {
    /// Splits into the answer and the future of the raw connection.
    pub fn into_parts(self) -> (Response<Body>, Pending) {
        (self.response, Pending(self.upgrade))
    }
}

/// A connection that will be ours once the answer is sent.
pub struct Pending(OnUpgrade);

impl Pending {
    pub async fn raw(self) -> Result<TokioIo<Upgraded>, hyper::Error> {
        Ok(TokioIo::new(self.0.await?))
    }

    pub async fn websocket(self) -> Result<Socket, hyper::Error> {
        let raw = self.raw().await?;
        let config = WebSocketConfig::default()
            .max_message_size(Some(MESSAGE_BYTES_MAX))
            .max_frame_size(Some(MESSAGE_BYTES_MAX));
        Ok(WebSocketStream::from_raw_socket(raw, Role::Server, Some(config)).await)
    }
}

/// A byte stream in the binary messages of a WebSocket: how `kubectl port-forward` carries SPDY.
pub struct Tunnel {
    socket: Socket,
    rest: Bytes,
}

impl Tunnel {
    pub fn new(socket: Socket) -> Self {
        Self { socket, rest: Bytes::new() }
    }
}

fn io_error(error: Error) -> std::io::Error {
    match error {
        Error::Io(error) => error,
        other => std::io::Error::other(other),
    }
}

impl AsyncRead for Tunnel {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        while self.rest.is_empty() {
            match ready!(Pin::new(&mut self.socket).poll_next(cx)) {
                Some(Ok(Message::Binary(bytes))) => self.rest = bytes,
                None | Some(Ok(Message::Close(_)) | Err(Error::ConnectionClosed | Error::AlreadyClosed)) => {
                    return Poll::Ready(Ok(()));
                }
                Some(Ok(Message::Text(_))) => {
                    let text = "a text message in a tunnel of bytes";
                    return Poll::Ready(Err(std::io::Error::new(std::io::ErrorKind::InvalidData, text)));
                }
                Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {}
                Some(Err(error)) => return Poll::Ready(Err(io_error(error))),
            }
        }
        let count = self.rest.len().min(buffer.remaining());
        buffer.put_slice(&self.rest[..count]);
        self.rest.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Tunnel {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        ready!(Pin::new(&mut self.socket).poll_ready(cx)).map_err(io_error)?;
        let message = Message::Binary(Bytes::copy_from_slice(bytes));
        Pin::new(&mut self.socket).start_send(message).map_err(io_error)?;
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx).map_err(io_error)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.socket).poll_close(cx).map_err(io_error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (http::HeaderName::from_static(name), HeaderValue::from_static(value)))
            .collect()
    }

    #[test]
    fn both_kinds_of_upgrade_are_recognised() {
        let of = |pairs: &[(&'static str, &'static str)]| wanted(&headers(pairs)).ok();
        assert_eq!(
            of(&[("connection", "keep-alive, Upgrade"), ("upgrade", "websocket")]),
            Some(Wanted::WebSocket)
        );
        assert_eq!(of(&[("connection", "Upgrade"), ("upgrade", "SPDY/3.1")]), Some(Wanted::Spdy));
        assert_eq!(of(&[("upgrade", "websocket")]), None);
        assert_eq!(of(&[]), None);
    }

    #[test]
    fn the_servers_order_of_protocols_decides() {
        let known = ["v5.channel.k8s.io", "v4.channel.k8s.io"];
        let of = |offer: &'static str| {
            negotiate(&headers(&[("sec-websocket-protocol", offer)]), "sec-websocket-protocol", &known).ok()
        };
        assert_eq!(of("v4.channel.k8s.io, v5.channel.k8s.io"), Some(Some("v5.channel.k8s.io")));
        assert_eq!(of("v4.channel.k8s.io"), Some(Some("v4.channel.k8s.io")));
        assert_eq!(of("v9.channel.k8s.io"), None);
        assert_eq!(negotiate(&HeaderMap::new(), "sec-websocket-protocol", &known).ok(), Some(None));
    }
}
