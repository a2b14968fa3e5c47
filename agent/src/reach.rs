//! Since when every other node has routes to this node's pods: asked of them, and told as a histogram.
//!
//! ```text
//!  this node                                        every other node
//!  announces a prefix ----- BGP ------------------> route into the kernel
//!                     ----- has PREFIX? ----------> answers when its kernel has it
//!  observes for each ADD <-------------- it has ---
//! ```
//!
//! A prefix is asked for once, when it is announced, in a datagram for each node, and again where no answer comes. So all
//! is measured by this node's clock, an answer's way here included, and nothing is sent while blocks stay as they are.
//! Only nodes are answered; a question is 32 octets and so is its answer.
//!
//! An ADD of a pod in a new block is answered when all nodes have said that they have the route: the pod's first packets, and
//! those to it, find their way. It waits no longer than [`HELD_MAX`] after the block was announced, as a node may be silent.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ipnetwork::IpNetwork;
use tokio::net::UdpSocket;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::metrics::text::{Histogram, Text};
use crate::network::Network;

/// Until a question is asked again.
const AGAIN: Duration = Duration::from_millis(500);
/// Until a node counts as one that does not answer.
const ANSWER_MAX: Duration = Duration::from_secs(30);
/// How long a question is kept that cannot be answered yet: longer than until it is asked again.
const KEPT: Duration = Duration::from_secs(2);
/// Questions kept at most, and ADDs of one prefix that wait at most.
const QUESTIONS_MAX: usize = 16 << 10;
const ADDS_MAX: usize = 4096;
/// How long after the announcement of a prefix an ADD waits for its routes.
const HELD_MAX: Duration = Duration::from_millis(250);
/// Seconds; the first is for those that had to wait for nothing.
const BOUNDS: [f64; 16] =
    [0.0, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// What the node's pods are reached by, and how far that has got.
#[derive(Debug)]
pub struct Reach {
    state: Mutex<State>,
    announced: Notify,
    /// Told when a prefix is new no more.
    known: Condvar,
}

#[derive(Debug)]
struct State {
    prefixes: BTreeMap<IpNetwork, Prefix>,
    duration: Histogram,
    unanswered: u64,
    /// ADDs that waited for an address.
    waits: u64,
    /// Somebody asks the other nodes.
    is_asking: bool,
}

#[derive(Debug)]
enum Prefix {
    New {
        since: Instant,
        ended: Vec<Instant>,
    },
    /// So many other nodes have it.
    Everywhere(usize),
    /// There is no other node.
    Alone,
}

impl Prefix {
    fn new() -> Prefix {
        Prefix::New { since: Instant::now(), ended: Vec::new() }
    }
}

impl State {
    /// How long an ADD with these addresses waits for their routes from now on; `None` where it does not.
    fn time_left(&self, addresses: &[IpAddr]) -> Option<Duration> {
        let left = |address: &IpAddr| {
            let covering = self.prefixes.iter().filter(|(prefix, _)| prefix.contains(*address));
            match covering.max_by_key(|(prefix, _)| prefix.prefix()) {
                Some((_, Prefix::New { since, .. })) => HELD_MAX.checked_sub(since.elapsed()),
                _ => None,
            }
        };
        let longest = addresses.iter().filter_map(left).max();
        longest.filter(|left| self.is_asking && !left.is_zero())
    }
}

impl Default for Reach {
    fn default() -> Reach {
        let duration = Histogram::new(BOUNDS);
        let state = State { prefixes: BTreeMap::new(), duration, unanswered: 0, waits: 0, is_asking: false };
        Reach { state: Mutex::new(state), announced: Notify::new(), known: Condvar::new() }
    }
}

impl Reach {
    /// These are announced for pods from now on, and no others.
    pub fn announce(&self, prefixes: &BTreeSet<IpNetwork>) {
        let mut state = self.state();
        state.prefixes.retain(|prefix, _| prefixes.contains(prefix));
        let known = state.prefixes.len();
        for prefix in prefixes {
            state.prefixes.entry(*prefix).or_insert_with(Prefix::new);
        }
        if state.prefixes.len() > known {
            self.announced.notify_one();
        }
    }

    /// An ADD has been answered with these addresses.
    pub fn added(&self, addresses: &[IpAddr], at: Instant) {
        let mut state = self.state();
        let State { prefixes, duration, .. } = &mut *state;
        for address in addresses {
            let covering = prefixes.iter_mut().filter(|(prefix, _)| prefix.contains(*address));
            match covering.max_by_key(|(prefix, _)| prefix.prefix()) {
                Some((_, Prefix::New { ended, .. })) if ended.len() < ADDS_MAX => ended.push(at),
                Some((_, Prefix::Everywhere(1..))) => duration.observe(0.0),
                _ => {}
            }
        }
    }

    /// Blocks until all other nodes have routes to these addresses, or the time for that is over. Does not block where they
    /// had them before.
    pub fn await_routes(&self, addresses: &[IpAddr]) {
        let mut state = self.state();
        while let Some(left) = state.time_left(addresses) {
            let waited = self.known.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn set_asking(&self) {
        self.state().is_asking = true;
    }

    /// An ADD found no address and waits for one.
    pub fn waited(&self) {
        self.state().waits += 1;
    }

    /// All of `nodes` that answer have the route, since `at`.
    fn complete(&self, prefix: IpNetwork, at: Instant, nodes: usize, unanswered: usize) {
        let mut state = self.state();
        state.unanswered += unanswered as u64;
        let State { prefixes, duration, .. } = &mut *state;
        let Some(known) = prefixes.get_mut(&prefix) else { return };
        self.known.notify_all();
        let answered = nodes - unanswered;
        if let Prefix::New { ended, .. } = std::mem::replace(known, Prefix::Everywhere(answered))
            && answered > 0
        {
            ended
                .iter()
                .for_each(|ended| duration.observe(at.saturating_duration_since(*ended).as_secs_f64()));
        }
    }

    /// Prefixes to be asked for; where there are `others`, also those that nobody could be asked for before.
    fn new_prefixes(&self, others: bool) -> Vec<IpNetwork> {
        let mut state = self.state();
        for prefix in state.prefixes.values_mut() {
            match prefix {
                Prefix::New { .. } if !others => {
                    *prefix = Prefix::Alone;
                    self.known.notify_all();
                }
                Prefix::Alone if others => *prefix = Prefix::new(),
                _ => {}
            }
        }
        let new = state.prefixes.iter().filter(|(_, prefix)| matches!(prefix, Prefix::New { .. }));
        new.map(|(prefix, _)| *prefix).collect()
    }

    pub fn write(&self, text: &mut Text) {
        let state = self.state();
        text.histogram(
            "seaway_pod_route_propagation_duration_seconds",
            "Time from the return of an ADD until every other node had the route to the pod's address in its kernel, as \
             told to this node; 0 where all had it before. Once for each address, without nodes that do not answer.",
            &state.duration,
        );
        text.counter(
            "seaway_pod_route_nodes_unanswered_total",
            "Nodes that did not say within 30 s that they have a route which this node announced for its pods.",
        )
        .sample(&[], state.unanswered);
        text.counter(
            "seaway_pod_address_waits_total",
            "ADDs that found no free address and waited for a new block, or for an address of another node.",
        )
        .sample(&[], state.waits);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Asks the other nodes and answers them, on this UDP port of all of the node's addresses, until cancelled.
///
/// # Errors
/// Where the port is somebody else's.
pub async fn start(
    network: Arc<Network>,
    port: u16,
    own: String,
    nodes: watch::Receiver<BTreeMap<String, Vec<IpAddr>>>,
    cancel: CancellationToken,
) -> io::Result<()> {
    let (socket, is_dual) = match UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port)).await {
        Err(error) if error.kind() != io::ErrorKind::AddrInUse => {
            (UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).await?, false)
        }
        bound => (bound?, true),
    };
    let asking = Asking {
        reach: network.reach(),
        routes_changed: network.routes_learned(),
        network,
        socket,
        is_dual,
        port,
        own,
        nodes,
        asked: BTreeMap::new(),
        again_at: tokio::time::Instant::now(),
        kept: BTreeMap::new(),
        next_nonce: u64::from(std::process::id()) << 32
            | u64::from(std::time::UNIX_EPOCH.elapsed().map_or(0, |now| now.subsec_nanos())),
    };
    asking.reach.set_asking();
    tokio::spawn(cancel.run_until_cancelled_owned(asking.run()));
    Ok(())
}

/// A prefix that the nodes are asked for.
struct Asked {
    nonce: u64,
    since: Instant,
    /// Addresses of the nodes that have not answered.
    left: BTreeSet<IpAddr>,
    nodes: usize,
    last_answer: Instant,
}

struct Asking {
    reach: Arc<Reach>,
    network: Arc<Network>,
    routes_changed: Arc<Notify>,
    socket: UdpSocket,
    is_dual: bool,
    port: u16,
    own: String,
    nodes: watch::Receiver<BTreeMap<String, Vec<IpAddr>>>,
    asked: BTreeMap<IpNetwork, Asked>,
    again_at: tokio::time::Instant,
    /// Questions of others that cannot be answered yet, and when they came.
    kept: BTreeMap<(SocketAddr, u64), (IpNetwork, Instant)>,
    next_nonce: u64,
}

impl Asking {
    async fn run(mut self) {
        let (reach, routes_changed) = (self.reach.clone(), self.routes_changed.clone());
        let mut buffer = [0; Datagram::LENGTH + 1];
        loop {
            tokio::select! {
                received = self.socket.recv_from(&mut buffer) => {
                    let Ok((length, from)) = received else { continue };
                    let Some(datagram) = Datagram::read(&buffer[..length]) else { continue };
                    self.received(&datagram, from).await;
                }
                () = reach.announced.notified() => self.ask_new().await,
                Ok(()) = self.nodes.changed() => self.ask_new().await,
                () = routes_changed.notified(), if !self.kept.is_empty() => self.answer_kept().await,
                () = tokio::time::sleep_until(self.again_at), if !self.asked.is_empty() => self.ask_again().await,
            }
        }
    }

    /// Asks for prefixes that nobody was asked for yet, as soon as the nodes are known.
    async fn ask_new(&mut self) {
        let nodes = self.nodes.borrow_and_update().clone();
        if nodes.is_empty() {
            return;
        }
        let new = self.reach.new_prefixes(nodes.keys().any(|name| *name != self.own));
        self.asked.retain(|prefix, _| new.contains(prefix));
        if self.asked.is_empty() {
            self.again_at = tokio::time::Instant::now() + AGAIN;
        }
        for prefix in new {
            if self.asked.contains_key(&prefix) {
                continue;
            }
            let others = nodes.iter().filter(|(name, _)| **name != self.own);
            let address = |(_, addresses): (&String, &Vec<IpAddr>)| {
                let of_family = addresses.iter().find(|address| address.is_ipv4() == prefix.is_ipv4());
                of_family.or(addresses.first()).copied().filter(|address| self.is_dual || address.is_ipv4())
            };
            let left: BTreeSet<IpAddr> = others.filter_map(address).collect();
            let now = Instant::now();
            if left.is_empty() {
                // Their addresses are not known yet.
                continue;
            }
            self.next_nonce = self.next_nonce.wrapping_add(1);
            let nonce = self.next_nonce;
            for node in &left {
                self.send(Datagram { is_answer: false, nonce, prefix }, SocketAddr::new(*node, self.port))
                    .await;
            }
            let nodes = left.len();
            self.asked.insert(prefix, Asked { nonce, since: now, left, nodes, last_answer: now });
        }
    }

    async fn ask_again(&mut self) {
        self.again_at = tokio::time::Instant::now() + AGAIN;
        let late = self.asked.extract_if(.., |_, asked| asked.since.elapsed() >= ANSWER_MAX);
        for (prefix, Asked { left, nodes, last_answer, .. }) in late.collect::<Vec<_>>() {
            tracing::info!(%prefix, ?left, "nodes that do not say that they have a route to this node's pods");
            self.reach.complete(prefix, last_answer, nodes, left.len());
        }
        for (prefix, asked) in &self.asked {
            for node in &asked.left {
                let question = Datagram { is_answer: false, nonce: asked.nonce, prefix: *prefix };
                self.send(question, SocketAddr::new(*node, self.port)).await;
            }
        }
    }

    async fn received(&mut self, datagram: &Datagram, from: SocketAddr) {
        let Datagram { is_answer, nonce, prefix } = *datagram;
        let node = from.ip().to_canonical();
        if is_answer {
            let Some(asked) = self.asked.get_mut(&prefix).filter(|asked| asked.nonce == nonce) else {
                return;
            };
            if asked.left.remove(&node) {
                asked.last_answer = Instant::now();
            }
            if asked.left.is_empty()
                && let Some(Asked { last_answer, nodes, .. }) = self.asked.remove(&prefix)
            {
                self.reach.complete(prefix, last_answer, nodes, 0);
            }
            return;
        }
        if !self.nodes.borrow().values().flatten().any(|address| *address == node) {
            return;
        }
        if self.network.has_learned(prefix) {
            self.send(Datagram { is_answer: true, nonce, prefix }, from).await;
            return;
        }
        self.kept.retain(|_, (_, since)| since.elapsed() < KEPT);
        if self.kept.len() < QUESTIONS_MAX {
            self.kept.insert((from, nonce), (prefix, Instant::now()));
            // It may have come since the look.
            self.answer_kept().await;
        }
    }

    /// Answers those whose route has come.
    async fn answer_kept(&mut self) {
        self.kept.retain(|_, (_, since)| since.elapsed() < KEPT);
        let network = &self.network;
        let due = self.kept.extract_if(.., |_, (prefix, _)| network.has_learned(*prefix));
        for ((from, nonce), (prefix, _)) in due.collect::<Vec<_>>() {
            self.send(Datagram { is_answer: true, nonce, prefix }, from).await;
        }
    }

    /// What is lost is asked again.
    async fn send(&self, datagram: Datagram, to: SocketAddr) {
        let to = match to.ip() {
            IpAddr::V4(v4) if self.is_dual => SocketAddr::new(v4.to_ipv6_mapped().into(), to.port()),
            _ => to,
        };
        if let Err(error) = self.socket.send_to(&datagram.octets(), to).await {
            tracing::debug!(%to, %error, "asking or answering for a route");
        }
    }
}

/// A question whether a node has a route, or the answer that it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Datagram {
    is_answer: bool,
    nonce: u64,
    prefix: IpNetwork,
}

impl Datagram {
    const LENGTH: usize = 32;
    const MAGIC: [u8; 4] = *b"swrt";

    /// Magic, 0 or 1 for an answer, prefix length, family (4 or 6), 0, nonce, address (IPv4 in its first four octets).
    fn octets(self) -> [u8; Self::LENGTH] {
        let mut octets = [0; Self::LENGTH];
        octets[..4].copy_from_slice(&Self::MAGIC);
        octets[4] = u8::from(self.is_answer);
        octets[5] = self.prefix.prefix();
        octets[8..16].copy_from_slice(&self.nonce.to_be_bytes());
        match self.prefix.ip() {
            IpAddr::V4(v4) => {
                octets[6] = 4;
                octets[16..20].copy_from_slice(&v4.octets());
            }
            IpAddr::V6(v6) => {
                octets[6] = 6;
                octets[16..].copy_from_slice(&v6.octets());
            }
        }
        octets
    }

    /// `None` for what is none.
    fn read(octets: &[u8]) -> Option<Datagram> {
        let octets: &[u8; Self::LENGTH] = octets.try_into().ok()?;
        let address = match octets[6] {
            4 => IpAddr::from(<[u8; 4]>::try_from(&octets[16..20]).ok()?),
            6 => IpAddr::from(<[u8; 16]>::try_from(&octets[16..]).ok()?),
            _ => return None,
        };
        let prefix = IpNetwork::new(address, octets[5]).ok()?;
        let nonce = u64::from_be_bytes(octets[8..16].try_into().ok()?);
        let is_whole = octets[..4] == Self::MAGIC && octets[4] < 2 && prefix.network() == address;
        is_whole.then_some(Datagram { is_answer: octets[4] == 1, nonce, prefix })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::text::rules::Page;

    const FAMILY: &str = "seaway_pod_route_propagation_duration_seconds";

    fn page(reach: &Reach) -> Page {
        let mut text = Text::default();
        reach.write(&mut text);
        Page::parse(&text.finish())
    }

    fn bucket(reach: &Reach, bound: &str) -> f64 {
        page(reach).get(&format!("{FAMILY}_bucket"), &[("le", bound)]).unwrap()
    }

    #[test]
    fn a_pod_waits_from_its_adds_return_to_the_last_nodes_route_and_later_ones_for_nothing() {
        let reach = Reach::default();
        let (block, one) = ("10.244.0.64/26".parse().unwrap(), "10.244.1.3/32".parse().unwrap());
        reach.announce(&BTreeSet::from([block, one]));
        assert!(reach.new_prefixes(false).is_empty(), "there is no other node");
        reach.added(&["10.244.0.69".parse().unwrap()], Instant::now());
        assert_eq!(reach.new_prefixes(true), [block, one]);
        let start = Instant::now();
        let ip = |text: &str| -> IpAddr { text.parse().unwrap() };
        reach.added(&[ip("10.244.0.70")], start);
        reach.added(&[ip("10.244.0.71")], start + Duration::from_millis(9));
        reach.added(&[ip("10.244.9.9")], start);
        assert_eq!(bucket(&reach, "+Inf"), 0.0, "nobody has answered");
        reach.complete(block, start + Duration::from_millis(4), 2, 0);
        assert_eq!((bucket(&reach, "0"), bucket(&reach, "0.0025"), bucket(&reach, "0.005")), (1.0, 1.0, 2.0));
        reach.added(&[ip("10.244.0.72")], start + Duration::from_secs(1));
        assert_eq!((bucket(&reach, "0"), bucket(&reach, "+Inf")), (2.0, 3.0));
        // A node that stays silent is counted apart.
        reach.added(&[ip("10.244.1.3")], start);
        reach.complete(one, start, 1, 1);
        assert_eq!(page(&reach).get("seaway_pod_route_nodes_unanswered_total", &[]), Some(1.0));
        assert_eq!(bucket(&reach, "+Inf"), 3.0);
        // A block that was given back and taken again is a new one.
        reach.announce(&BTreeSet::new());
        reach.announce(&BTreeSet::from([block]));
        assert_eq!(reach.new_prefixes(true), [block]);
    }

    #[test]
    fn an_add_in_a_new_block_waits_for_its_routes_and_no_other_does() {
        let reach = Reach::default();
        let (block, pod) = ("10.244.0.64/26".parse().unwrap(), ["10.244.0.70".parse().unwrap()]);
        let left = || reach.state().time_left(&pod);
        reach.announce(&BTreeSet::from([block]));
        assert_eq!(left(), None, "nobody asks");
        reach.set_asking();
        assert!(left().is_some_and(|left| left <= HELD_MAX), "{:?}", left());
        std::thread::scope(|scope| {
            let add = scope.spawn(|| reach.await_routes(&pod));
            reach.complete(block, Instant::now(), 2, 0);
            add.join().unwrap();
        });
        assert_eq!(left(), None, "all have it");
        reach.announce(&BTreeSet::new());
        assert_eq!(left(), None, "it is announced no more");
        // A node that is silent is not waited for for ever.
        reach.announce(&BTreeSet::from([block]));
        let began = Instant::now();
        reach.await_routes(&pod);
        assert!(began.elapsed() < 20 * HELD_MAX && left().is_none());
    }

    #[test]
    fn a_datagram_survives_and_what_is_none_is_told_apart() {
        for prefix in ["10.244.0.64/26", "fd00:10:244::40/122", "0.0.0.0/0"] {
            let datagram = Datagram { is_answer: true, nonce: 7 << 40 | 3, prefix: prefix.parse().unwrap() };
            let octets = datagram.octets();
            assert_eq!(Datagram::read(&octets), Some(datagram));
            assert_eq!(Datagram::read(&octets[..31]), None);
            for (at, octet) in [(0, b'x'), (4, 2), (5, 129), (6, 5), (octets.len() - 1, 1)] {
                let mut wrong = octets;
                wrong[at] = octet;
                let of_v4_tail = at == 31 && datagram.prefix.is_ipv4();
                assert_eq!(Datagram::read(&wrong).is_none(), !of_v4_tail, "{prefix} {at}");
            }
        }
    }
}
