//! Sockets and time for the BGP speaker, on a thread of its own.
//!
//! Nothing else runs on that thread, and what has been received is handled before a timer: a busy node must not lose
//! sessions whose keepalives have arrived. What BFD says of a path goes before all of it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use bgp::{
    ConnectionId, Explanation, Input, LocalRoute, NextHops, Output, PeerConfig, PeerStatus, Prefix,
    RouteStatus, Speaker, SpeakerConfig, State,
};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{mpsc, oneshot};

use crate::bfd_io;
use crate::journal::note;

mod transport;
mod writer;

pub use transport::{PASSWORD_LENGTH_MAX, Secret, Transport};
use writer::Writer;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const SIGNED_CONNECT_TIMEOUT: Duration = Duration::from_millis(2500);
const READ_SIZE: usize = 64 << 10;
/// Octets received after which is decided about what they said: what was just touched is near still, and peers need
/// not wait for all of a table.
const BATCH: usize = 64 << 10;
const TIDY_DELAY: Duration = Duration::from_millis(250);
/// Octets received, after which there is memory to give back.
const MUCH: usize = 256 << 10;

/// What the agent learns from the speaker.
#[derive(Debug)]
pub enum Event {
    /// Without next hops the destinations are gone.
    Routes(Vec<(NextHops, Vec<Prefix>)>),
    /// Routes are complete as far as can be expected: old ones may be swept.
    Converged,
}

enum Command {
    Peers(BTreeMap<IpAddr, Neighbour>),
    Local(BTreeMap<Prefix, LocalRoute>),
    Snapshot(oneshot::Sender<Snapshot>),
    Explain { peer: IpAddr, prefix: Prefix, reply: oneshot::Sender<Option<Explanation>> },
}

/// A peer, and how it is reached.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Neighbour {
    pub config: PeerConfig,
    /// A change of it costs the session.
    pub transport: Transport,
    /// Watches the path to the peer; a change of it costs no session.
    pub bfd: Option<bfd::Config>,
    pub origin: Origin,
}

/// Why a peer is one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Origin {
    /// All nodes are peers.
    Mesh,
    /// A BGPPeer of some nodes.
    Node,
    /// A BGPPeer of all nodes, the command line, or the peer itself came.
    #[default]
    Global,
}

/// Peers and routes at one moment.
#[derive(Debug)]
pub struct Snapshot {
    pub peers: Vec<PeerStatus>,
    pub routes: Vec<RouteStatus>,
    pub converged: bool,
    pub taken_at: Instant,
    pub origins: BTreeMap<IpAddr, Origin>,
    /// When the peers were set otherwise last.
    pub configured_at: Option<Instant>,
}

/// Tells the speaker what is desired.
#[derive(Clone, Debug)]
pub struct Handle {
    commands: mpsc::UnboundedSender<Command>,
    bfd: bfd_io::Handle,
}

impl std::fmt::Debug for Command {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Command")
    }
}

impl Handle {
    pub fn set_peers(&self, peers: BTreeMap<IpAddr, Neighbour>) {
        // Fails only when the thread is gone, which ends the agent.
        let _ = self.commands.send(Command::Peers(peers));
    }

    pub fn set_local(&self, routes: BTreeMap<Prefix, LocalRoute>) {
        let _ = self.commands.send(Command::Local(routes));
    }

    pub fn bfd(&self) -> &bfd_io::Handle {
        &self.bfd
    }

    /// `None` when the speaker has stopped.
    pub async fn snapshot(&self) -> Option<Snapshot> {
        let (sender, receiver) = oneshot::channel();
        self.commands.send(Command::Snapshot(sender)).ok()?;
        receiver.await.ok()
    }

    /// Why a peer is told of a destination, or is not. `None` where there is no such peer, or the speaker has stopped.
    pub async fn explain(&self, peer: IpAddr, prefix: Prefix) -> Option<Explanation> {
        let (reply, receiver) = oneshot::channel();
        self.commands.send(Command::Explain { peer, prefix, reply }).ok()?;
        receiver.await.ok().flatten()
    }
}

/// Binds the listening sockets and starts the thread. It ends when all handles are gone. Routes are told where
/// `tells_routes`.
pub fn start(
    config: SpeakerConfig,
    addresses: &[IpAddr],
    port: u16,
    events: mpsc::UnboundedSender<Event>,
    tells_routes: bool,
) -> anyhow::Result<Handle> {
    let mut listeners = Vec::new();
    for address in addresses {
        let address = SocketAddr::new(*address, port);
        let listener = std::net::TcpListener::bind(address).with_context(|| format!("BGP on {address}"))?;
        listener.set_nonblocking(true)?;
        // A peer with TTL security drops an answer to its SYN that might have come from afar.
        transport::set_ttl(listener.as_fd(), address.ip(), u8::MAX)
            .with_context(|| format!("TTL of {address}"))?;
        listeners.push(listener);
    }
    let (commands, receiver) = mpsc::unbounded_channel();
    let (bfd_sender, bfd_events) = mpsc::unbounded_channel();
    let bfd = bfd_io::Handle::new(bfd_sender).context("BFD")?;
    let bfd_handle = bfd.clone();
    let addresses = addresses.to_vec();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new().name("bgp".to_owned()).spawn(move || {
        runtime.block_on(async {
            let (socket_events, received) = mpsc::channel(1024);
            let mut listening = Vec::new();
            for listener in listeners {
                match listener.try_clone() {
                    Ok(listener) => listening.push(listener),
                    Err(error) => tracing::error!(%error, "BGP listener"),
                }
                match TcpListener::from_std(listener) {
                    Ok(listener) => drop(tokio::spawn(accept(listener, socket_events.clone()))),
                    Err(error) => tracing::error!(%error, "BGP listener"),
                }
            }
            let driver = Driver {
                speaker: Speaker::new(config, Instant::now()),
                neighbours: BTreeMap::new(),
                configured_at: None,
                unsigned: BTreeMap::new(),
                listening,
                writers: HashMap::new(),
                connecting: BTreeMap::new(),
                unflushed: Vec::new(),
                received: 0,
                tidy_at: None,
                next_id: 0,
                addresses,
                port,
                socket_events,
                events,
                tells_routes,
                bfd: bfd_handle,
            };
            driver.run(receiver, received, bfd_events).await;
        });
    })?;
    Ok(Handle { commands, bfd })
}

enum SocketEvent {
    Accepted(TcpStream, IpAddr),
    Connected(IpAddr, io::Result<TcpStream>),
    Received(ConnectionId, Vec<u8>),
    Closed(ConnectionId),
    Sent(ConnectionId),
}

struct Driver {
    speaker: Speaker,
    neighbours: BTreeMap<IpAddr, Neighbour>,
    configured_at: Option<Instant>,
    /// Peers whose password the kernel did not take, and why: there is no way to speak to them.
    unsigned: BTreeMap<IpAddr, String>,
    listening: Vec<std::net::TcpListener>,
    writers: HashMap<ConnectionId, Writer>,
    /// Attempts to connect.
    connecting: BTreeMap<IpAddr, tokio::task::AbortHandle>,
    /// Connections that were given something to send since the last flush.
    unflushed: Vec<ConnectionId>,
    /// Octets since the last tidying, and when the next one is due.
    received: usize,
    tidy_at: Option<Instant>,
    next_id: u64,
    addresses: Vec<IpAddr>,
    port: u16,
    socket_events: mpsc::Sender<SocketEvent>,
    events: mpsc::UnboundedSender<Event>,
    tells_routes: bool,
    bfd: bfd_io::Handle,
}

impl Driver {
    async fn run(
        mut self,
        mut commands: mpsc::UnboundedReceiver<Command>,
        mut received: mpsc::Receiver<SocketEvent>,
        mut bfd_events: mpsc::UnboundedReceiver<bfd_io::Event>,
    ) {
        loop {
            let deadline = self.speaker.next_deadline().into_iter().chain(self.tidy_at).min();
            let timer = async {
                match deadline {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                Some(event) = bfd_events.recv() => self.bfd_event(event),
                Some(event) = received.recv() => {
                    let mut octets = self.socket_event(event);
                    while octets < BATCH && let Ok(event) = received.try_recv() {
                        octets += self.socket_event(event);
                    }
                }
                command = commands.recv() => match command {
                    Some(command) => self.command(command),
                    None => return,
                },
                () = timer => {
                    self.speaker.handle(Input::Tick, Instant::now());
                    self.tidy();
                }
            }
            self.outputs();
        }
    }

    /// Gives memory back some time after much was said, and not with the next message, which may be urgent.
    fn tidy(&mut self) {
        let now = Instant::now();
        if self.tidy_at.is_some_and(|at| at <= now) {
            self.tidy_at = None;
            self.speaker.tidy();
            if std::mem::take(&mut self.received) > MUCH {
                crate::allocator::give_back();
            }
        }
    }

    /// Acts on all that the speaker says.
    fn outputs(&mut self) {
        while let Some(output) = self.speaker.poll_output() {
            // What peers are told goes out before anybody is woken for the rest.
            if !matches!(output, Output::Send { .. }) {
                self.flush();
            }
            self.output(output);
            if !self.speaker.has_output() {
                self.flush();
            }
        }
    }

    fn bfd_event(&mut self, event: bfd_io::Event) {
        match event {
            bfd_io::Event::Started { scheduling } => tracing::info!(scheduling, "BFD is on"),
            bfd_io::Event::Problem(problem) => {
                tracing::warn!(problem, "BFD hears nothing there; trying again");
            }
            bfd_io::Event::Changed(change) => {
                let bfd::Change { peer, state, cause, heard_at, .. } = change;
                tracing::info!(%peer, %state, %cause, "BFD session");
                if change.is_failure() {
                    let independent = change.control_plane_independent;
                    self.speaker.handle(Input::PathFailed { peer, heard_at, independent }, Instant::now());
                }
            }
        }
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Peers(peers) => self.set_peers(peers),
            Command::Local(routes) => self.speaker.set_local(routes),
            Command::Snapshot(reply) => {
                let snapshot = Snapshot {
                    peers: self.speaker.peers(),
                    routes: self.speaker.routes(),
                    converged: self.speaker.converged(),
                    taken_at: Instant::now(),
                    origins: self.neighbours.iter().map(|(peer, it)| (*peer, it.origin)).collect(),
                    configured_at: self.configured_at,
                };
                // Whoever asked may have gone.
                let _ = reply.send(snapshot);
            }
            Command::Explain { peer, prefix, reply } => {
                let _ = reply.send(self.speaker.explain(peer, prefix));
            }
        }
    }

    /// Peers that are reached in another way than before lose their session, the others do not.
    fn set_peers(&mut self, desired: BTreeMap<IpAddr, Neighbour>) {
        let now = Instant::now();
        let same = |peer: &IpAddr, neighbour: &Neighbour| {
            self.neighbours.get(peer).is_some_and(|known| known.transport == neighbour.transport)
        };
        let configs = |peers: &BTreeMap<IpAddr, Neighbour>| -> BTreeMap<IpAddr, PeerConfig> {
            peers.iter().map(|(peer, neighbour)| (*peer, neighbour.config.clone())).collect()
        };
        let mut kept = configs(&desired);
        kept.retain(|peer, _| same(peer, &desired[peer]));
        if kept.len() < desired.len() {
            self.speaker.set_peers(&kept, now);
            self.outputs();
        }
        let before = std::mem::replace(&mut self.neighbours, desired);
        if before != self.neighbours {
            self.configured_at = Some(now);
        }
        self.set_signatures(&before);
        self.speaker.set_peers(&configs(&self.neighbours), now);
        self.set_bfd();
    }

    fn set_bfd(&self) {
        let with_bfd = self.neighbours.iter().filter_map(|(peer, neighbour)| {
            let source = neighbour.transport.source.or_else(|| self.address_like(*peer));
            Some((*peer, bfd_io::Peer { config: neighbour.bfd?, source }))
        });
        self.bfd.set_peers(with_bfd.collect());
    }

    /// The node's first one of the peer's family.
    fn address_like(&self, peer: IpAddr) -> Option<IpAddr> {
        self.addresses.iter().find(|address| address.is_ipv4() == peer.is_ipv4()).copied()
    }

    /// Gives the listening sockets the keys of the peers that have a password, and takes those of others from them.
    fn set_signatures(&mut self, before: &BTreeMap<IpAddr, Neighbour>) {
        let password = |neighbours: &BTreeMap<IpAddr, Neighbour>, peer: &IpAddr| {
            neighbours.get(peer).and_then(|neighbour| neighbour.transport.password.clone())
        };
        let peers: BTreeSet<IpAddr> = before.keys().chain(self.neighbours.keys()).copied().collect();
        for peer in peers {
            let (old, new) = (password(before, &peer), password(&self.neighbours, &peer));
            if old == new {
                continue;
            }
            self.unsigned.remove(&peer);
            for listener in &self.listening {
                let same_family = listener.local_addr().is_ok_and(|local| local.is_ipv4() == peer.is_ipv4());
                if !same_family {
                    continue;
                }
                if let Err(error) = transport::set_signature(listener.as_fd(), peer, new.as_ref())
                    && new.is_some()
                {
                    tracing::error!(%peer, %error, "the kernel does not take the BGP password");
                    self.unsigned.insert(peer, format!("the kernel does not take the password: {error}"));
                }
            }
        }
    }

    /// Why a connection from a peer cannot be used, if so.
    fn refusal(&self, stream: &TcpStream, remote: IpAddr) -> Option<String> {
        if let Some(reason) = self.unsigned.get(&remote) {
            return Some(reason.clone());
        }
        let neighbour = self.neighbours.get(&remote)?;
        let error = neighbour.transport.prepare(stream.as_fd(), remote, false).err()?;
        Some(format!("options of its socket: {error}"))
    }

    /// Returns how many octets came.
    fn socket_event(&mut self, event: SocketEvent) -> usize {
        let now = Instant::now();
        match event {
            SocketEvent::Accepted(stream, remote) => {
                if let Some(reason) = self.refusal(&stream, remote) {
                    tracing::warn!(%remote, reason, "a BGP connection is refused");
                    return 0;
                }
                let id = self.adopt(stream);
                self.speaker.handle(Input::Accepted { remote, id }, now);
            }
            SocketEvent::Connected(peer, Ok(stream)) => {
                let id = self.adopt(stream);
                self.speaker.handle(Input::Connected { peer, id }, now);
            }
            SocketEvent::Connected(peer, Err(error)) => {
                let error = format!("connecting: {error}");
                self.speaker.handle(Input::ConnectFailed { peer, error }, now);
            }
            SocketEvent::Received(id, octets) => {
                self.speaker.handle(Input::Received { id, octets: &octets }, now);
                self.received += octets.len();
                self.tidy_at.get_or_insert(now + TIDY_DELAY);
                return octets.len();
            }
            SocketEvent::Sent(id) => self.speaker.handle(Input::Sent { id }, now),
            SocketEvent::Closed(id) => {
                self.writers.remove(&id);
                self.speaker.handle(Input::Closed { id }, now);
            }
        }
        0
    }

    fn output(&mut self, output: Output) {
        match output {
            Output::Connect { peer } => self.connect(peer),
            Output::Send { id, message } => self.send(id, message),
            Output::Close { id } => drop(self.writers.remove(&id)),
            Output::Routes(routes) => {
                if self.tells_routes {
                    let _ = self.events.send(Event::Routes(routes));
                }
            }
            Output::PeerChanged { peer, state, detail } => {
                tracing::info!(%peer, %state, detail, "BGP peer");
                note!("peer", peer, state, detail);
                if state == State::Established {
                    self.give_up_connecting(peer);
                }
            }
            Output::Converged => {
                let _ = self.events.send(Event::Converged);
            }
        }
    }

    /// A peer with graceful restart would take a connection beside its session for our restart, and end the session (RFC 4724
    /// section 5): an attempt whose first packets a cut link has swallowed must not come through later.
    fn give_up_connecting(&mut self, peer: IpAddr) {
        if let Some(attempt) = self.connecting.remove(&peer).filter(|attempt| !attempt.is_finished()) {
            attempt.abort();
            let error = "connecting: there is a session".to_owned();
            self.speaker.handle(Input::ConnectFailed { peer, error }, Instant::now());
        }
    }

    fn connect(&mut self, peer: IpAddr) {
        let transport =
            self.neighbours.get(&peer).map(|neighbour| neighbour.transport.clone()).unwrap_or_default();
        let source = transport.source.or_else(|| self.address_like(peer));
        let target = SocketAddr::new(peer, transport.port.unwrap_or(self.port));
        let refused = self.unsigned.get(&peer).cloned();
        let socket_events = self.socket_events.clone();
        let attempt = tokio::spawn(async move {
            let signed = transport.password.is_some();
            let failures = if signed { transport::signature_failures() } else { 0 };
            let result = match refused {
                Some(reason) => Err(io::Error::other(reason)),
                None => {
                    // A peer with another key does not answer, and will not.
                    let limit = if signed { SIGNED_CONNECT_TIMEOUT } else { CONNECT_TIMEOUT };
                    let attempt = tokio::time::timeout(limit, connect(source, target, &transport)).await;
                    attempt.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
                }
            };
            let result = result.map_err(|error| {
                let more = if signed { transport::signature_failures().saturating_sub(failures) } else { 0 };
                if signed { io::Error::other(Signed { error, more }) } else { error }
            });
            // Fails only at the end of the thread.
            let _ = socket_events.send(SocketEvent::Connected(peer, result)).await;
        });
        self.connecting.insert(peer, attempt.abort_handle());
    }

    fn send(&mut self, id: ConnectionId, message: Arc<[u8]>) {
        let Some(writer) = self.writers.get_mut(&id) else { return };
        if writer.push(message) {
            self.unflushed.push(id);
        }
    }

    fn flush(&mut self) {
        for id in std::mem::take(&mut self.unflushed) {
            let Some(writer) = self.writers.get_mut(&id) else { continue };
            if !writer.flush() {
                tracing::warn!(connection = id.0, "BGP peer does not read; closing");
                self.writers.remove(&id);
                self.speaker.handle(Input::Closed { id }, Instant::now());
            }
        }
    }

    /// Starts reading and writing a connection.
    fn adopt(&mut self, stream: TcpStream) -> ConnectionId {
        self.next_id += 1;
        let id = ConnectionId(self.next_id);
        // Only costs latency where it is refused.
        let _ = stream.set_nodelay(true);
        let (read, write) = stream.into_split();
        let reader = tokio::spawn(read_all(read, id, self.socket_events.clone())).abort_handle();
        self.writers.insert(id, Writer::start(write, id, reader, self.socket_events.clone()));
        id
    }
}

async fn accept(listener: TcpListener, events: mpsc::Sender<SocketEvent>) {
    loop {
        match listener.accept().await {
            Ok((stream, remote)) => {
                if events.send(SocketEvent::Accepted(stream, remote.ip().to_canonical())).await.is_err() {
                    return;
                }
            }
            Err(error) => {
                tracing::warn!(%error, "accepting a BGP connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// A signed connection failed; the kernel tells only how many segments it dropped for their signature meanwhile.
#[derive(Debug, thiserror::Error)]
#[error(
    "{error}; TCP MD5 is on, and {more} segments had a wrong signature or none: compare the passwords of both sides"
)]
struct Signed {
    error: io::Error,
    more: u64,
}

async fn connect(source: Option<IpAddr>, target: SocketAddr, transport: &Transport) -> io::Result<TcpStream> {
    let socket = if target.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    transport.prepare(socket.as_fd(), target.ip(), true)?;
    if let Some(source) = source {
        socket.bind(SocketAddr::new(source, 0))?;
    }
    socket.connect(target).await
}

thread_local! {
    /// Where all connections are read to: one that is silent costs no memory of its own.
    static SCRATCH: std::cell::RefCell<Vec<u8>> = std::cell::RefCell::new(vec![0; READ_SIZE]);
}

async fn read_all(read: tokio::net::tcp::OwnedReadHalf, id: ConnectionId, events: mpsc::Sender<SocketEvent>) {
    while read.readable().await.is_ok() {
        let octets = SCRATCH.with_borrow_mut(|scratch| {
            let length = read.try_read(scratch)?;
            Ok(scratch[..length].to_vec())
        });
        match octets {
            Ok(octets) if octets.is_empty() => break,
            Ok(octets) => {
                if events.send(SocketEvent::Received(id, octets)).await.is_err() {
                    return;
                }
            }
            Err(error) if io::Error::kind(&error) == io::ErrorKind::WouldBlock => {}
            Err(_) => break,
        }
    }
    // Fails only at the end of the thread.
    let _ = events.send(SocketEvent::Closed(id)).await;
}
