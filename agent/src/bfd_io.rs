//! Sockets and time for BFD, on one thread for all sessions that goes before others.
//!
//! ```text
//! bgp_io --peers--> Handle --eventfd--> thread: sockets <-> bfd::Endpoint --changes--> bgp_io --> speaker
//! ```
//!
//! All that has arrived is handed over before time is said to have passed. While sessions are up, the thread allocates
//! nothing, takes no lock that others hold for long, and writes no log: who hears of changes does. It is started with the
//! first peer that has BFD; before that no port is open.

mod socket;

use std::collections::hash_map::RandomState;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::hash::BuildHasher;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use bfd::{Arrival, Config, Endpoint, Hops, Input, Output, Refusals, SessionStatus};
use tokio::sync::{mpsc, oneshot};

use socket::{PAYLOAD_MAX, Receiver};

/// Until a port that somebody else has is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// Datagrams of one socket taken in at once, before anything else has its turn.
const BATCH: usize = 512;
/// What others get of a processor while more arrives than can be meant.
const BREATH: Duration = Duration::from_millis(1);
/// While somebody holds the commands.
const COMMANDS_RETRY: Duration = Duration::from_millis(1);
const STOP_TIME_MAX: Duration = Duration::from_millis(200);

/// One peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    pub config: Config,
    /// The address to send from; what the kernel takes where `None`.
    pub source: Option<IpAddr>,
}

/// What is worth a line in the log.
#[derive(Clone, Debug)]
pub enum Event {
    Started { scheduling: String },
    Changed(bfd::Change),
    Problem(String),
}

enum Command {
    Peers(BTreeMap<IpAddr, Peer>),
    Snapshot(oneshot::Sender<Snapshot>),
    Stop(std::sync::mpsc::SyncSender<()>),
}

/// The sessions at one moment.
#[derive(Clone, Debug)]
pub struct Snapshot {
    pub sessions: Vec<SessionStatus>,
    /// Of all packets, those of strangers included.
    pub refusals: Refusals,
    /// How the thread is scheduled, in words.
    pub scheduling: String,
    /// Ports that cannot be listened at.
    pub problems: Vec<String>,
    pub taken_at: Instant,
}

/// Tells the thread what is desired.
#[derive(Clone)]
pub struct Handle {
    shared: Arc<Shared>,
}

struct Shared {
    commands: Mutex<Vec<Command>>,
    /// Readable when there are commands.
    wake: File,
    is_started: Mutex<bool>,
    events: mpsc::UnboundedSender<Event>,
}

impl std::fmt::Debug for Handle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("bfd_io::Handle")
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Handle {
    pub fn new(events: mpsc::UnboundedSender<Event>) -> io::Result<Handle> {
        // SAFETY: plain numbers.
        let wake = unsafe { libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC) };
        if wake < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor was just made and is nobody else's.
        let wake = unsafe { File::from_raw_fd(wake) };
        let shared = Shared { commands: Mutex::new(Vec::new()), wake, is_started: Mutex::new(false), events };
        Ok(Handle { shared: Arc::new(shared) })
    }

    /// Makes the sessions equal these.
    pub fn set_peers(&self, peers: BTreeMap<IpAddr, Peer>) {
        let mut is_started = lock(&self.shared.is_started);
        if !*is_started {
            if peers.is_empty() {
                return;
            }
            let shared = self.shared.clone();
            let started =
                std::thread::Builder::new().name("bfd".to_owned()).spawn(|| Driver::new(shared).run());
            if let Err(error) = started {
                tracing::error!(%error, "starting the thread of BFD");
                return;
            }
            *is_started = true;
        }
        drop(is_started);
        self.send(Command::Peers(peers));
    }

    fn send(&self, command: Command) {
        lock(&self.shared.commands).push(command);
        // Fails only where so many wait that the thread is woken anyway.
        let _ = (&self.shared.wake).write(&1_u64.to_ne_bytes());
    }

    fn is_started(&self) -> bool {
        *lock(&self.shared.is_started)
    }

    /// `None` where no peer ever had BFD.
    pub async fn snapshot(&self) -> Option<Snapshot> {
        if !self.is_started() {
            return None;
        }
        let (sender, receiver) = oneshot::channel();
        self.send(Command::Snapshot(sender));
        receiver.await.ok()
    }

    /// Tells all peers that the sessions end on purpose, before the process does. Blocks for a moment.
    pub fn stop(&self) {
        if self.is_started() {
            let (sender, receiver) = std::sync::mpsc::sync_channel(1);
            self.send(Command::Stop(sender));
            // Without an answer they find out by themselves.
            let _ = receiver.recv_timeout(STOP_TIME_MAX);
        }
    }
}

/// One family at one port.
#[derive(Default)]
struct Listening {
    is_wanted: bool,
    receiver: Option<Receiver>,
    /// Why there is none, and when that is tried again.
    failed: Option<(String, Instant)>,
}

struct Driver {
    shared: Arc<Shared>,
    endpoint: Endpoint,
    peers: BTreeMap<IpAddr, Peer>,
    /// By family and port: IPv4, IPv6, both beyond the link.
    listening: [Listening; 4],
    senders: HashMap<IpAddr, UdpSocket>,
    next_port: u16,
    scheduling: String,
    is_stopped: bool,
}

impl Driver {
    fn new(shared: Arc<Shared>) -> Driver {
        // The standard library's own source of randomness.
        let seed = RandomState::new().hash_one(std::process::id());
        Driver {
            shared,
            endpoint: Endpoint::new(seed),
            peers: BTreeMap::new(),
            listening: Default::default(),
            senders: HashMap::new(),
            next_port: (seed >> 32) as u16,
            scheduling: String::new(),
            is_stopped: false,
        }
    }

    fn run(mut self) {
        self.scheduling = socket::raise_priority();
        self.tell(Event::Started { scheduling: self.scheduling.clone() });
        while !self.is_stopped {
            self.commands();
            let is_flooded = self.receive();
            self.endpoint.handle(Input::Tick, Instant::now());
            self.outputs();
            if is_flooded {
                // Before everything else in the system, it would leave others nothing.
                std::thread::sleep(BREATH);
            } else if !self.is_stopped {
                self.wait();
            }
        }
    }

    /// Fails only at the end of the agent.
    fn tell(&self, event: Event) {
        let _ = self.shared.events.send(event);
    }

    /// Until a datagram, a command, or the next deadline.
    fn wait(&self) {
        let now = Instant::now();
        let retries = self.listening.iter().filter_map(|one| one.failed.as_ref().map(|(_, at)| *at));
        let deadline = retries.chain(self.endpoint.next_deadline()).min();
        let unused = libc::pollfd { fd: -1, events: libc::POLLIN, revents: 0 };
        let mut watched = [unused; 5];
        for (place, one) in watched.iter_mut().zip(&self.listening) {
            place.fd = one.receiver.as_ref().map_or(-1, Receiver::fd);
        }
        watched[4].fd = self.shared.wake.as_raw_fd();
        let timeout = deadline.map(|at| {
            let time = at.saturating_duration_since(now);
            libc::timespec {
                tv_sec: time.as_secs() as libc::time_t,
                tv_nsec: libc::c_long::from(time.subsec_nanos() as i32),
            }
        });
        let timeout = timeout.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
        // SAFETY: both pointers are valid for the call, or null where that has a meaning.
        unsafe {
            libc::ppoll(watched.as_mut_ptr(), watched.len() as libc::nfds_t, timeout, std::ptr::null())
        };
    }

    fn commands(&mut self) {
        self.listen_again();
        if (&self.shared.wake).read(&mut [0; 8]).is_err() {
            return;
        }
        let commands = match self.shared.commands.try_lock() {
            Ok(mut commands) => std::mem::take(&mut *commands),
            Err(TryLockError::Poisoned(poisoned)) => std::mem::take(&mut *poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => {
                // Who holds it may be waiting for this very processor.
                let _ = (&self.shared.wake).write(&1_u64.to_ne_bytes());
                std::thread::sleep(COMMANDS_RETRY);
                return;
            }
        };
        for command in commands {
            self.command(command);
        }
    }

    fn command(&mut self, command: Command) {
        let now = Instant::now();
        match command {
            Command::Peers(peers) => self.set_peers(peers, now),
            Command::Snapshot(reply) => {
                let problem = |one: &Listening| one.failed.as_ref().map(|(problem, _)| problem.clone());
                let snapshot = Snapshot {
                    sessions: self.endpoint.status(),
                    refusals: self.endpoint.refusals(),
                    scheduling: self.scheduling.clone(),
                    problems: self.listening.iter().filter_map(problem).collect(),
                    taken_at: now,
                };
                // Whoever asked may have gone.
                let _ = reply.send(snapshot);
            }
            Command::Stop(reply) => {
                self.endpoint.disable_all(now);
                self.outputs();
                self.is_stopped = true;
                let _ = reply.try_send(());
            }
        }
    }

    fn set_peers(&mut self, peers: BTreeMap<IpAddr, Peer>, now: Instant) {
        // A socket with another source is opened when something is sent.
        self.senders.retain(|peer, _| match (self.peers.get(peer), peers.get(peer)) {
            (Some(before), Some(after)) => before.source == after.source,
            _ => true,
        });
        for (index, one) in self.listening.iter_mut().enumerate() {
            let (is_v4, multihop) = place(index);
            one.is_wanted = peers.iter().any(|(peer, what)| {
                peer.is_ipv4() == is_v4 && (what.config.hops != Hops::Single) == multihop
            });
            if !one.is_wanted {
                *one = Listening::default();
            }
        }
        self.listen_again();
        let configs = peers.iter().map(|(peer, what)| (*peer, what.config)).collect();
        self.peers = peers;
        self.endpoint.set_peers(&configs, now);
    }

    /// Opens what is wanted and not there.
    fn listen_again(&mut self) {
        for index in 0..self.listening.len() {
            let one = &mut self.listening[index];
            let is_due = one.failed.as_ref().is_none_or(|(_, at)| *at <= Instant::now());
            if !one.is_wanted || one.receiver.is_some() || !is_due {
                continue;
            }
            let (is_v4, multihop) = place(index);
            match Receiver::open(is_v4, multihop) {
                Ok(receiver) => *one = Listening { is_wanted: true, receiver: Some(receiver), failed: None },
                Err(error) => {
                    let family = if is_v4 { "IPv4" } else { "IPv6" };
                    let port = if multihop { socket::PORT_MULTIHOP } else { socket::PORT };
                    let problem = format!("{family}, UDP port {port}: {error}");
                    let is_new = one.failed.as_ref().is_none_or(|(known, _)| *known != problem);
                    one.failed = Some((problem.clone(), Instant::now() + RETRY));
                    if is_new {
                        self.tell(Event::Problem(problem));
                    }
                }
            }
        }
    }

    /// Takes in all that has arrived; whether there is more than can be meant.
    fn receive(&mut self) -> bool {
        let mut payload = [0; PAYLOAD_MAX];
        let mut is_flooded = false;
        for (index, one) in self.listening.iter().enumerate() {
            let Some(receiver) = &one.receiver else { continue };
            let mut count = 0;
            // An error is about a single datagram, and the next one may be whole.
            while count < BATCH
                && let Some(datagram) = receiver.receive(&mut payload).transpose()
            {
                count += 1;
                let Ok(datagram) = datagram else { continue };
                let arrival = Arrival {
                    source: datagram.source,
                    multihop: place(index).1,
                    ttl: datagram.ttl,
                    payload: &payload[..datagram.length],
                };
                self.endpoint.handle(Input::Received(arrival), Instant::now());
            }
            is_flooded |= count == BATCH;
        }
        is_flooded
    }

    fn outputs(&mut self) {
        while let Some(output) = self.endpoint.poll_output() {
            match output {
                Output::Send { peer, multihop, packet } => {
                    if let Err(error) = self.send(peer, multihop, &packet) {
                        // The source is no address of the host any more: it may be again.
                        if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EADDRNOTAVAIL)) {
                            self.senders.remove(&peer);
                        }
                        self.endpoint.handle(Input::SendFailed { peer }, Instant::now());
                    }
                }
                Output::Changed(change) => self.tell(Event::Changed(change)),
                Output::Closed { peer } => drop(self.senders.remove(&peer)),
            }
        }
    }

    fn send(&mut self, peer: IpAddr, multihop: bool, packet: &[u8]) -> io::Result<()> {
        let port = if multihop { socket::PORT_MULTIHOP } else { socket::PORT };
        let target = SocketAddr::new(peer, port);
        if let Some(sender) = self.senders.get(&peer) {
            return sender.send_to(packet, target).map(|_| ());
        }
        let source = self.peers.get(&peer).and_then(|what| what.source);
        let sender = socket::open_sender(peer.is_ipv4(), source, self.next_port)?;
        self.next_port = self.next_port.wrapping_add(1);
        let sent = sender.send_to(packet, target);
        self.senders.insert(peer, sender);
        sent.map(|_| ())
    }
}

/// Whether a place of `listening` is for IPv4, and whether for peers beyond the link.
fn place(index: usize) -> (bool, bool) {
    (index.is_multiple_of(2), index >= 2)
}
