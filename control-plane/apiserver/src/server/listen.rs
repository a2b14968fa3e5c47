//! The accept loop: TCP, TLS, then HTTP/1.1 or HTTP/2 as ALPN decided, with upgrades, until told to stop.

use std::{future, io, net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context as _;
use futures::{StreamExt as _, stream::FuturesUnordered};
use http::{Request, Response, Version};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::conn::auto,
};
use rand::Rng as _;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::{
    sync::CancellationToken,
    task::{AbortOnDropHandle, TaskTracker},
};
use tracing::{debug, warn};

use super::{
    body::{self, Body, BoxError},
    connection::{Conversation, Streams},
    pipeline,
    wire::Wire,
};
use crate::state::{Peer, State};

/// A client that has not finished its TLS handshake by then is dropped.
const HANDSHAKE_TIME_MAX: Duration = Duration::from_secs(10);
/// As upstream's ReadHeaderTimeout.
const HEADER_TIME_MAX: Duration = Duration::from_secs(32);
/// Bytes of the largest request head.
const HEADER_BYTES_MAX: u32 = 1024 * 1024;
const HEADERS_MAX: usize = 256;
/// As upstream: a client opens another connection for more.
const STREAMS_MAX: u32 = 250;
/// What a connection gets to finish its requests once the server stops.
const DRAIN_TIME_MAX: Duration = Duration::from_secs(10);

/// Sockets that whoever started this process bound for it (the protocol of sd_listen_fds(3)).
pub fn inherited() -> anyhow::Result<Vec<TcpListener>> {
    use std::os::fd::FromRawFd;
    let Ok(count) = std::env::var("LISTEN_FDS") else { return Ok(Vec::new()) };
    if std::env::var("LISTEN_PID").is_ok_and(|pid| pid != std::process::id().to_string()) {
        return Ok(Vec::new());
    }
    let count: i32 = count.parse().with_context(|| format!("LISTEN_FDS is {count:?}, not a number"))?;
    (3..3 + count)
        .map(|fd| {
            // SAFETY: the parent handed over the descriptors 3 to 3 + LISTEN_FDS for this process to own, and this
            // function runs once, at start.
            // Not dropped before it is known to be a socket: closing somebody else's descriptor would be worse.
            let listener = std::mem::ManuallyDrop::new(unsafe { std::net::TcpListener::from_raw_fd(fd) });
            listener.local_addr().with_context(|| format!("inherited descriptor {fd} is no TCP socket"))?;
            let listener = std::mem::ManuallyDrop::into_inner(listener);
            listener.set_nonblocking(true)?;
            Ok(TcpListener::from_std(listener)?)
        })
        .collect()
}

/// Binds `address`, with an error that names it.
pub async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))
}

/// Accepts until `cancel`; the connections live on in `connections` until they are drained.
pub(crate) async fn accept(
    listener: TcpListener,
    tls: TlsAcceptor,
    state: Arc<State>,
    cancel: CancellationToken,
    connections: TaskTracker,
) {
    loop {
        let accepted = tokio::select! {
            () = cancel.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, address)) => {
                let connection = serve(stream, address, tls.clone(), Arc::clone(&state), cancel.clone());
                connections.spawn(async move {
                    if let Err(error) = connection.await {
                        debug!(%address, %error, "connection ended");
                    }
                });
            }
            Err(error) => {
                warn!(%error, "accept failed");
                // Out of descriptors, most likely: let some close first.
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn serve(
    stream: TcpStream,
    address: SocketAddr,
    tls: TlsAcceptor,
    state: Arc<State>,
    cancel: CancellationToken,
) -> Result<(), BoxError> {
    stream.set_nodelay(true)?;
    let stream = tokio::time::timeout(HANDSHAKE_TIME_MAX, tls.accept(stream))
        .await
        .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "TLS handshake"))??;
    let (stream, session) = stream.into_inner();
    let peer = state.authenticator.peer(session.peer_certificates());
    let peer = Arc::new(Peer::Network { peer, address });
    let chance = state.config.security.goaway_chance;
    // Once a request says so, the connection takes no more: those that it has are answered.
    let leave = CancellationToken::new();
    let asked = leave.clone();
    let service = service_fn(move |request: Request<Incoming>| {
        if chance > 0.0 && request.version() == Version::HTTP_2 && rand::rng().random_bool(chance.min(1.0)) {
            asked.cancel();
        }
        let answer = answer(Arc::clone(&state), Arc::clone(&peer), request);
        async move { Ok::<_, std::convert::Infallible>(answer.await) }
    });
    let (wire, streams) = (Wire::new(stream, session), Streams::default());
    let builder = builder(streams.clone());
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(wire.clone()), service).into_owned();
    let mut conversation = Conversation::new(connection, wire, streams);
    // In sets, as those ask their members only when they were woken.
    let mut cancelled = FuturesUnordered::from_iter([cancel.cancelled_owned()]);
    let mut left = FuturesUnordered::from_iter((chance > 0.0).then(|| leave.cancelled_owned()));
    loop {
        tokio::select! {
            biased;
            result = &mut conversation => return result,
            _ = cancelled.next() => break,
            Some(()) = left.next() => conversation.connection().graceful_shutdown(),
        }
    }
    conversation.connection().graceful_shutdown();
    match tokio::time::timeout(DRAIN_TIME_MAX, conversation).await {
        Ok(result) => result,
        Err(_) => Ok(()),
    }
}

/// Answers a request. That of HTTP/2 is worked on in a task of its own, as the others of its connection do not wait for it;
/// the task ends with the stream.
async fn answer(state: Arc<State>, peer: Arc<Peer>, request: Request<Incoming>) -> Response<Body> {
    let is_one_of_many = request.version() == Version::HTTP_2;
    let request = request.map(body::of);
    let response = pipeline::respond(state, peer, request);
    if !is_one_of_many {
        return response.await;
    }
    match AbortOnDropHandle::new(tokio::spawn(response)).await {
        Ok(response) => response,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime is going.
            Err(_) => future::pending().await,
        },
    }
}

fn builder(streams: Streams) -> auto::Builder<Streams> {
    let mut builder = auto::Builder::new(streams);
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIME_MAX)
        .max_headers(HEADERS_MAX)
        .max_buf_size(HEADER_BYTES_MAX as usize);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(HEADER_BYTES_MAX)
        .initial_stream_window_size(1024 * 1024)
        .initial_connection_window_size(4 * 1024 * 1024)
        .keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(15));
    builder
}
