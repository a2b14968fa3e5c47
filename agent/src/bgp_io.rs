//! Sockets and time for the BGP speaker, on a thread of its own.
//!
//! Nothing else runs on that thread, and what has been received is handled before a timer: a busy node must not lose
//! sessions whose keepalives have arrived.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use bgp::{ConnectionId, Input, Output, PeerConfig, PeerStatus, Prefix, RouteStatus, Speaker, SpeakerConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{mpsc, oneshot};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Octets; a peer that lets more pile up is closed.
const WRITE_BACKLOG_MAX: usize = 64 << 20;
const READ_SIZE: usize = 64 << 10;

/// What the agent learns from the speaker.
#[derive(Debug)]
pub enum Event {
    /// Empty: the destination is gone.
    Route { prefix: Prefix, next_hops: Vec<IpAddr> },
    /// Routes are complete as far as can be expected: old ones may be swept.
    Converged,
}

enum Command {
    Peers(BTreeMap<IpAddr, PeerConfig>),
    Local(BTreeSet<Prefix>),
    Snapshot(oneshot::Sender<Snapshot>),
}

/// Peers and routes at one moment.
#[derive(Debug)]
pub struct Snapshot {
    pub peers: Vec<PeerStatus>,
    pub routes: Vec<RouteStatus>,
    pub converged: bool,
    pub taken_at: Instant,
}

/// Tells the speaker what is desired.
#[derive(Clone, Debug)]
pub struct Handle {
    commands: mpsc::UnboundedSender<Command>,
}

impl std::fmt::Debug for Command {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Command")
    }
}

impl Handle {
    pub fn set_peers(&self, peers: BTreeMap<IpAddr, PeerConfig>) {
        // Fails only when the thread is gone, which ends the agent.
        let _ = self.commands.send(Command::Peers(peers));
    }

    pub fn set_local(&self, prefixes: BTreeSet<Prefix>) {
        let _ = self.commands.send(Command::Local(prefixes));
    }

    /// `None` when the speaker has stopped.
    pub async fn snapshot(&self) -> Option<Snapshot> {
        let (sender, receiver) = oneshot::channel();
        self.commands.send(Command::Snapshot(sender)).ok()?;
        receiver.await.ok()
    }
}

/// Binds the listening sockets and starts the thread. It ends when all handles are gone.
pub fn start(
    config: SpeakerConfig,
    addresses: &[IpAddr],
    port: u16,
    events: mpsc::UnboundedSender<Event>,
) -> anyhow::Result<Handle> {
    let mut listeners = Vec::new();
    for address in addresses {
        let address = SocketAddr::new(*address, port);
        let listener = std::net::TcpListener::bind(address).with_context(|| format!("BGP on {address}"))?;
        listener.set_nonblocking(true)?;
        listeners.push(listener);
    }
    let (commands, receiver) = mpsc::unbounded_channel();
    let addresses = addresses.to_vec();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new().name("bgp".to_owned()).spawn(move || {
        runtime.block_on(async {
            let (socket_events, received) = mpsc::channel(1024);
            for listener in listeners {
                match TcpListener::from_std(listener) {
                    Ok(listener) => drop(tokio::spawn(accept(listener, socket_events.clone()))),
                    Err(error) => tracing::error!(%error, "BGP listener"),
                }
            }
            let driver = Driver {
                speaker: Speaker::new(config, Instant::now()),
                writers: HashMap::new(),
                next_id: 0,
                addresses,
                port,
                socket_events,
                events,
            };
            driver.run(receiver, received).await;
        });
    })?;
    Ok(Handle { commands })
}

enum SocketEvent {
    Accepted(TcpStream, IpAddr),
    Connected(IpAddr, io::Result<TcpStream>),
    Received(ConnectionId, Vec<u8>),
    Closed(ConnectionId),
}

struct Writer {
    queue: mpsc::UnboundedSender<Arc<[u8]>>,
    backlog: Arc<std::sync::atomic::AtomicUsize>,
    reader: tokio::task::AbortHandle,
}

struct Driver {
    speaker: Speaker,
    writers: HashMap<ConnectionId, Writer>,
    next_id: u64,
    addresses: Vec<IpAddr>,
    port: u16,
    socket_events: mpsc::Sender<SocketEvent>,
    events: mpsc::UnboundedSender<Event>,
}

impl Driver {
    async fn run(
        mut self,
        mut commands: mpsc::UnboundedReceiver<Command>,
        mut received: mpsc::Receiver<SocketEvent>,
    ) {
        loop {
            let deadline = self.speaker.next_deadline();
            let timer = async {
                match deadline {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                Some(event) = received.recv() => {
                    self.socket_event(event);
                    while let Ok(event) = received.try_recv() {
                        self.socket_event(event);
                    }
                }
                command = commands.recv() => match command {
                    Some(command) => self.command(command),
                    None => return,
                },
                () = timer => self.speaker.handle(Input::Tick, Instant::now()),
            }
            while let Some(output) = self.speaker.poll_output() {
                self.output(output);
            }
        }
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Peers(peers) => self.speaker.set_peers(&peers, Instant::now()),
            Command::Local(prefixes) => self.speaker.set_local(prefixes),
            Command::Snapshot(reply) => {
                let snapshot = Snapshot {
                    peers: self.speaker.peers(),
                    routes: self.speaker.routes(),
                    converged: self.speaker.converged(),
                    taken_at: Instant::now(),
                };
                // Whoever asked may have gone.
                let _ = reply.send(snapshot);
            }
        }
    }

    fn socket_event(&mut self, event: SocketEvent) {
        let now = Instant::now();
        match event {
            SocketEvent::Accepted(stream, remote) => {
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
            }
            SocketEvent::Closed(id) => {
                self.writers.remove(&id);
                self.speaker.handle(Input::Closed { id }, now);
            }
        }
    }

    fn output(&mut self, output: Output) {
        match output {
            Output::Connect { peer } => {
                let source = self.addresses.iter().find(|a| a.is_ipv4() == peer.is_ipv4()).copied();
                let target = SocketAddr::new(peer, self.port);
                let socket_events = self.socket_events.clone();
                tokio::spawn(async move {
                    let result = match tokio::time::timeout(CONNECT_TIMEOUT, connect(source, target)).await {
                        Ok(result) => result,
                        Err(_) => Err(io::ErrorKind::TimedOut.into()),
                    };
                    // Fails only at the end of the thread.
                    let _ = socket_events.send(SocketEvent::Connected(peer, result)).await;
                });
            }
            Output::Send { id, message } => self.send(id, message),
            Output::Close { id } => {
                if let Some(writer) = self.writers.remove(&id) {
                    writer.reader.abort();
                }
            }
            Output::Route { prefix, next_hops } => {
                let _ = self.events.send(Event::Route { prefix, next_hops });
            }
            Output::PeerChanged { peer, state, detail } => tracing::info!(%peer, %state, detail, "BGP peer"),
            Output::Converged => {
                let _ = self.events.send(Event::Converged);
            }
        }
    }

    fn send(&mut self, id: ConnectionId, message: Arc<[u8]>) {
        use std::sync::atomic::Ordering::Relaxed;
        let Some(writer) = self.writers.get(&id) else { return };
        let backlog = writer.backlog.fetch_add(message.len(), Relaxed) + message.len();
        if backlog > WRITE_BACKLOG_MAX {
            tracing::warn!(connection = id.0, "BGP peer does not read; closing");
            writer.reader.abort();
            self.writers.remove(&id);
            self.speaker.handle(Input::Closed { id }, Instant::now());
            return;
        }
        // A writer that has failed is about to be reported closed by the reader.
        let _ = writer.queue.send(message);
    }

    /// Starts reading and writing a connection.
    fn adopt(&mut self, stream: TcpStream) -> ConnectionId {
        self.next_id += 1;
        let id = ConnectionId(self.next_id);
        // Only costs latency where it is refused.
        let _ = stream.set_nodelay(true);
        let (read, write) = stream.into_split();
        let (queue, messages) = mpsc::unbounded_channel();
        let backlog = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        tokio::spawn(write_all(write, messages, backlog.clone()));
        let reader = tokio::spawn(read_all(read, id, self.socket_events.clone())).abort_handle();
        self.writers.insert(id, Writer { queue, backlog, reader });
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

async fn connect(source: Option<IpAddr>, target: SocketAddr) -> io::Result<TcpStream> {
    let socket = if target.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    if let Some(source) = source {
        socket.bind(SocketAddr::new(source, 0))?;
    }
    socket.connect(target).await
}

async fn read_all(
    mut read: tokio::net::tcp::OwnedReadHalf,
    id: ConnectionId,
    events: mpsc::Sender<SocketEvent>,
) {
    let mut buffer = vec![0; READ_SIZE];
    while let Ok(length @ 1..) = read.read(&mut buffer).await {
        if events.send(SocketEvent::Received(id, buffer[..length].to_vec())).await.is_err() {
            return;
        }
    }
    // Fails only at the end of the thread.
    let _ = events.send(SocketEvent::Closed(id)).await;
}

async fn write_all(
    mut write: tokio::net::tcp::OwnedWriteHalf,
    mut messages: mpsc::UnboundedReceiver<Arc<[u8]>>,
    backlog: Arc<std::sync::atomic::AtomicUsize>,
) {
    let mut buffer = Vec::new();
    while let Some(message) = messages.recv().await {
        buffer.clear();
        buffer.extend_from_slice(&message);
        while buffer.len() < READ_SIZE {
            let Ok(message) = messages.try_recv() else { break };
            buffer.extend_from_slice(&message);
        }
        backlog.fetch_sub(buffer.len(), std::sync::atomic::Ordering::Relaxed);
        if write.write_all(&buffer).await.is_err() {
            return;
        }
    }
    // The queue is closed and empty: the peer is to see all that was said, then the end.
    let _ = write.shutdown().await;
}
