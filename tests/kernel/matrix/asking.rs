//! Servers that say who they are and whom they see, and clients that ask once.

use std::fmt;
use std::io::{self, ErrorKind, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicU16, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ebpf_common::FORWARD_PORTS;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, UdpSocket as AsyncUdpSocket};
use tokio_util::sync::CancellationToken;

use crate::netns::NetNs;

/// Until an answer that is expected, on a machine that others keep busy.
const PATIENCE: Duration = Duration::from_secs(5);
/// Between two datagrams that are to be refused: routers limit how many they answer.
const AGAIN: Duration = Duration::from_millis(200);
/// Until it is sure that nothing comes, on a machine that delivers in microseconds.
const NOTHING: Duration = Duration::from_millis(300);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Tcp,
    /// By a socket that is connected.
    Udp,
    /// By a socket that is not.
    Datagram,
}

impl Protocol {
    pub const ALL: [Protocol; 3] = [Protocol::Tcp, Protocol::Udp, Protocol::Datagram];
}

/// Who answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The name and the port of the server.
    pub server: String,
    /// Under which address it saw the client.
    pub seen: IpAddr,
}

/// How a question ended that nobody answered.
pub struct Failure(io::Error);

impl Failure {
    pub fn is_silence(&self) -> bool {
        let is_connecting = self.0.raw_os_error() == Some(libc::EINPROGRESS);
        is_connecting || matches!(self.0.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock)
    }

    pub fn is_refusal(&self) -> bool {
        self.0.kind() == ErrorKind::ConnectionRefused
    }

    /// There is no way there, as the client's host says or a router.
    pub fn is_unreachable(&self) -> bool {
        matches!(self.0.kind(), ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable)
    }

    pub fn is_denial(&self) -> bool {
        self.0.kind() == ErrorKind::PermissionDenied
    }
}

impl fmt::Debug for Failure {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "{}", self.0)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        Failure(error)
    }
}

/// What a question waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    Answer,
    Refusal,
    Silence,
}

/// Asks once, from the calling thread's namespace and cgroup, by a socket of `to`'s family. For a refusal datagrams are sent
/// again.
pub fn ask(ports: &Ports, protocol: Protocol, to: SocketAddr, due: Due) -> Result<Answer, Failure> {
    let patience = if due == Due::Silence { NOTHING } else { PATIENCE };
    let text = match protocol {
        Protocol::Tcp => by_connection(ports, to, patience)?,
        Protocol::Udp if due == Due::Refusal => {
            let end = Instant::now() + patience;
            loop {
                match by_connected_socket(ports, to, AGAIN).map_err(Failure::from) {
                    Err(failure) if failure.is_silence() && Instant::now() < end => {}
                    ended => break ended?,
                }
            }
        }
        Protocol::Udp => by_connected_socket(ports, to, patience)?,
        Protocol::Datagram => by_datagram(ports, to, patience)?,
    };
    let (server, seen) = text.split_once(' ').expect("a name and an address");
    Ok(Answer { server: server.to_owned(), seen: seen.parse().expect("an address") })
}

/// What a client is to believe: that it speaks with the Service.
fn believes(peer: SocketAddr, to: SocketAddr) -> io::Result<()> {
    if peer == to { Ok(()) } else { Err(io::Error::other(format!("the client sees {peer}"))) }
}

fn by_connection(ports: &Ports, to: SocketAddr, patience: Duration) -> io::Result<String> {
    let mut stream = TcpStream::from(ports.socket(SockType::Stream, to, patience)?);
    connect(stream.as_raw_fd(), &SockaddrStorage::from(to))?;
    believes(stream.peer_addr()?, to)?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    if text.is_empty() { Err(ErrorKind::UnexpectedEof.into()) } else { Ok(text) }
}

fn by_connected_socket(ports: &Ports, to: SocketAddr, patience: Duration) -> io::Result<String> {
    let socket = UdpSocket::from(ports.socket(SockType::Datagram, to, patience)?);
    socket.connect(to)?;
    believes(socket.peer_addr()?, to)?;
    socket.send(b"who")?;
    let mut buffer = [0; 100];
    let length = uninterrupted(patience, || socket.recv(&mut buffer))?;
    Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
}

fn by_datagram(ports: &Ports, to: SocketAddr, patience: Duration) -> io::Result<String> {
    let socket = UdpSocket::from(ports.socket(SockType::Datagram, to, patience)?);
    socket.send_to(b"who", to)?;
    let mut buffer = [0; 100];
    let (length, from) = uninterrupted(patience, || socket.recv_from(&mut buffer))?;
    believes(from, to)?;
    Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
}

/// The ports of the clients of a namespace. None is used twice: what a node knows of a flow is there for a while when its
/// socket is closed, and another of the same port and backend would be that one.
pub struct Ports {
    next: AtomicU16,
}

impl Ports {
    pub fn new() -> Ports {
        Ports { next: AtomicU16::new(1024) }
    }

    /// A socket at the next free one.
    fn socket(&self, kind: SockType, to: SocketAddr, patience: Duration) -> io::Result<OwnedFd> {
        let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let any: IpAddr =
            if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let socket = socket(family, kind, SockFlag::SOCK_CLOEXEC, None)?;
        let time = TimeVal::microseconds(patience.as_micros() as i64);
        setsockopt(&socket, sockopt::ReceiveTimeout, &time)?;
        // For how long it tries to connect, too.
        setsockopt(&socket, sockopt::SendTimeout, &time)?;
        loop {
            let port = self.next.fetch_add(1, Ordering::Relaxed);
            // From there on ports are the node's.
            assert!(port < FORWARD_PORTS.0, "too many questions from one namespace");
            match bind(socket.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(any, port))) {
                Err(Errno::EADDRINUSE) => {}
                bound => break bound?,
            }
        }
        Ok(socket)
    }
}

/// A signal that is not for this thread is no answer.
fn uninterrupted<T>(patience: Duration, mut receive: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let end = Instant::now() + patience;
    loop {
        match receive() {
            Err(error) if error.kind() == ErrorKind::Interrupted && Instant::now() < end => {}
            received => return received,
        }
    }
}

/// A server of both protocols and families at some ports of a namespace, until it is dropped.
pub struct Echo {
    stop: CancellationToken,
    thread: Option<JoinHandle<()>>,
}

impl Echo {
    /// One that serves when this returns.
    pub fn start(netns: &NetNs, name: &str, ports: &[u16]) -> Echo {
        let (stop, netns) = (CancellationToken::new(), netns.without_cgroup());
        let (name, ports, is_over) = (name.to_owned(), ports.to_vec(), stop.clone());
        let (ready, is_ready) = std::sync::mpsc::channel();
        let thread = std::thread::spawn(move || {
            netns.run(|| {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
                runtime.expect("a runtime").block_on(async {
                    for port in ports {
                        let listener = TcpListener::bind(("::", port)).await.expect("a listener");
                        let socket = AsyncUdpSocket::bind(("::", port)).await.expect("a socket");
                        tokio::spawn(greet(listener, format!("{name}:{port}")));
                        tokio::spawn(answer(socket, format!("{name}:{port}")));
                    }
                    ready.send(()).expect("somebody waits");
                    is_over.cancelled().await;
                });
            });
        });
        is_ready.recv().expect("the server serves");
        Echo { stop, thread: Some(thread) }
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        self.stop.cancel();
        // Its panic was seen by the clients.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

async fn greet(listener: TcpListener, name: String) {
    loop {
        // A client that is gone already is no business of the others.
        let Ok((mut stream, from)) = listener.accept().await else { continue };
        let text = format!("{name} {}", from.ip().to_canonical());
        let _ = stream.write_all(text.as_bytes()).await;
    }
}

async fn answer(socket: AsyncUdpSocket, name: String) {
    let mut buffer = [0; 100];
    loop {
        let Ok((_, from)) = socket.recv_from(&mut buffer).await else { continue };
        let text = format!("{name} {}", from.ip().to_canonical());
        let _ = socket.send_to(text.as_bytes(), from).await;
    }
}
