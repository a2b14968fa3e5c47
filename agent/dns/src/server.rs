//! The sockets: UDP and TCP on one address, and the node's own resolvers for what is not the cluster's.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use anyhow::{Context, Result};
use hickory_proto::op::{Message, OpCode, ResponseCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use crate::{Answer, Transport, Zone, answer};

/// How long one resolver may take before the next is asked.
const FORWARD_WITHIN: Duration = Duration::from_secs(2);
/// A TCP connection without a query for this long is closed, RFC 7766 section 6.2.3.
const IDLE: Duration = Duration::from_secs(10);
/// Queries and connections under way at once; what comes above that is dropped, and the client asks again.
const UNDER_WAY_MAX: usize = 1024;

/// Where to listen and whom to ask.
#[derive(Clone, Debug)]
pub struct Config {
    pub listen: SocketAddr,
    /// Resolvers for names outside the cluster's domain, in order.
    pub upstreams: Vec<SocketAddr>,
}

/// The resolvers of a resolv.conf.
///
/// # Errors
/// When the file cannot be read.
pub fn upstreams(resolv_conf: &Path) -> Result<Vec<SocketAddr>> {
    let text =
        std::fs::read_to_string(resolv_conf).with_context(|| format!("reading {}", resolv_conf.display()))?;
    Ok(text
        .lines()
        .filter_map(|line| line.trim().strip_prefix("nameserver"))
        .filter_map(|address| address.trim().parse::<IpAddr>().ok())
        .map(|address| SocketAddr::new(address, 53))
        .collect())
}

/// The bound sockets: once this exists, queries are answered or wait in the sockets.
pub struct Server {
    udp: Arc<UdpSocket>,
    tcp: TcpListener,
    shared: Arc<Shared>,
}

struct Shared {
    zone: Arc<RwLock<Zone>>,
    upstreams: Vec<SocketAddr>,
    slots: Arc<Semaphore>,
}

impl Server {
    /// # Errors
    /// When the address cannot be bound, naming it.
    pub async fn bind(config: Config, zone: Arc<RwLock<Zone>>) -> Result<Self> {
        let listen = config.listen;
        let udp = UdpSocket::bind(listen).await.with_context(|| format!("DNS over UDP on {listen}"))?;
        let tcp = TcpListener::bind(listen).await.with_context(|| format!("DNS over TCP on {listen}"))?;
        info!(%listen, upstreams = ?config.upstreams, "DNS answers");
        let slots = Arc::new(Semaphore::new(UNDER_WAY_MAX));
        Ok(Self {
            udp: Arc::new(udp),
            tcp,
            shared: Arc::new(Shared { zone, upstreams: config.upstreams, slots }),
        })
    }

    /// Serves until cancelled.
    pub async fn run(self, cancel: CancellationToken) {
        let udp = serve_udp(&self.udp, &self.shared);
        let tcp = serve_tcp(&self.tcp, &self.shared);
        tokio::select! {
            () = udp => {}
            () = tcp => {}
            () = cancel.cancelled() => {}
        }
    }
}

impl Shared {
    fn answer(&self, query: &[u8], transport: Transport) -> Answer {
        answer(&self.zone.read().unwrap_or_else(PoisonError::into_inner), query, transport)
    }
}

async fn serve_udp(socket: &Arc<UdpSocket>, shared: &Arc<Shared>) {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let (length, client) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            // The ICMP error of an answer to a client that is gone.
            Err(error) => {
                debug!(%error, "receiving a query");
                continue;
            }
        };
        match shared.answer(&buffer[..length], Transport::Udp) {
            Answer::Reply(reply) => {
                if let Err(error) = socket.send_to(&reply, client).await {
                    debug!(%client, %error, "sending an answer");
                }
            }
            Answer::Forward => {
                let Ok(slot) = Arc::clone(&shared.slots).try_acquire_owned() else { continue };
                let (socket, shared, query) =
                    (Arc::clone(socket), Arc::clone(shared), buffer[..length].to_vec());
                tokio::spawn(async move {
                    let reply = forward(&query, &shared.upstreams, Transport::Udp).await;
                    if let Err(error) = socket.send_to(&reply, client).await {
                        debug!(%client, %error, "sending an answer");
                    }
                    drop(slot);
                });
            }
            Answer::Ignore => {}
        }
    }
}

async fn serve_tcp(listener: &TcpListener, shared: &Arc<Shared>) {
    loop {
        let (stream, client) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors: a pause lets connections end.
                debug!(%error, "accepting");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let Ok(slot) = Arc::clone(&shared.slots).try_acquire_owned() else { continue };
        let shared = Arc::clone(shared);
        tokio::spawn(async move {
            if let Err(error) = serve_connection(stream, &shared).await {
                debug!(%client, error = format!("{error:#}"), "a connection ended");
            }
            drop(slot);
        });
    }
}

async fn serve_connection(mut stream: TcpStream, shared: &Shared) -> Result<()> {
    loop {
        let Ok(query) = timeout(IDLE, read_message(&mut stream)).await else { return Ok(()) };
        let query = query?;
        let reply = match shared.answer(&query, Transport::Tcp) {
            Answer::Reply(reply) => reply,
            Answer::Forward => forward(&query, &shared.upstreams, Transport::Tcp).await,
            Answer::Ignore => return Ok(()),
        };
        write_message(&mut stream, &reply).await?;
    }
}

async fn read_message(stream: &mut TcpStream) -> Result<Vec<u8>> {
    let length = stream.read_u16().await.context("reading a length")?;
    let mut message = vec![0; usize::from(length)];
    stream.read_exact(&mut message).await.context("reading a message")?;
    Ok(message)
}

async fn write_message(stream: &mut TcpStream, message: &[u8]) -> Result<()> {
    let mut framed = Vec::with_capacity(message.len() + 2);
    framed.extend_from_slice(&u16::try_from(message.len()).context("a message above 64 KiB")?.to_be_bytes());
    framed.extend_from_slice(message);
    stream.write_all(&framed).await.context("writing a message")
}

/// The first resolver's answer, or SERVFAIL.
async fn forward(query: &[u8], upstreams: &[SocketAddr], transport: Transport) -> Vec<u8> {
    for upstream in upstreams {
        match timeout(FORWARD_WITHIN, ask(query, *upstream, transport)).await {
            Ok(Ok(reply)) => return reply,
            Ok(Err(error)) => debug!(%upstream, error = format!("{error:#}"), "asking a resolver"),
            Err(_) => debug!(%upstream, "a resolver gave no answer in 2 s"),
        }
    }
    let mut failure =
        Message::error_msg(u16::from_be_bytes([query[0], query[1]]), OpCode::Query, ResponseCode::ServFail);
    if let Ok(request) = Message::from_vec(query) {
        failure.add_queries(request.queries);
    }
    failure.to_vec().unwrap_or_default()
}

async fn ask(query: &[u8], upstream: SocketAddr, transport: Transport) -> Result<Vec<u8>> {
    if transport == Transport::Tcp {
        let mut stream = TcpStream::connect(upstream).await.context("connecting")?;
        write_message(&mut stream, query).await?;
        return read_message(&mut stream).await;
    }
    // A socket of its own for each query: an unpredictable source port, RFC 5452 section 9.2.
    let local: SocketAddr = if upstream.is_ipv4() { ([0, 0, 0, 0], 0).into() } else { ([0u16; 8], 0).into() };
    let socket = UdpSocket::bind(local).await.context("binding")?;
    socket.connect(upstream).await.context("connecting")?;
    socket.send(query).await.context("sending")?;
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let length = socket.recv(&mut buffer).await.context("receiving")?;
        if length >= 12 && buffer[..2] == query[..2] {
            buffer.truncate(length);
            return Ok(buffer);
        }
    }
}

#[cfg(test)]
mod tests;
