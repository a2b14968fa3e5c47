//! All peers of one router: sessions into the RIB, selections out to the FIB and to the peers.
//!
//! `handle` only takes in; `poll_output` decides over what became dirty, so that a burst of input costs
//! one decision per destination and UPDATEs packed by attributes. Peers alike in what they are sent form
//! an export group: each message is encoded once and sent to every member.
//!
//! Graceful restart, both roles: routes of a peer that vanished stay until it is back or its restart time
//! is over; after our own start `Output::Converged` tells when the FIB may be swept.

mod explain;
mod export;
mod group;
mod import;
mod peers;
mod restart;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::best_path::{self, Reason};
use crate::config::{LocalRoute, PeerConfig, SpeakerConfig};
use crate::prefix::{Family, Prefix};
use crate::rib::{NextHops, Path, Rib, Source};
use crate::session::{ConnectionId, Session, State};
use crate::wire::{Attributes, Notification};
pub use explain::{Explanation, Fate, Objection, Obstacle, Withheld};
pub use export::GroupKey;
use group::Group;

/// Next hops per destination at most.
const MULTIPATH_MAX: usize = 16;
/// Room for outputs that is kept when there are none.
const OUTPUTS_KEPT: usize = 4096;
/// Changes of state remembered per peer.
const HISTORY_MAX: usize = 16;

#[derive(Clone, Debug)]
pub enum Input<'a> {
    /// A connection to the peer that `Output::Connect` named is up.
    Connected {
        peer: IpAddr,
        id: ConnectionId,
    },
    ConnectFailed {
        peer: IpAddr,
        error: String,
    },
    /// A connection came in.
    Accepted {
        remote: IpAddr,
        id: ConnectionId,
    },
    Received {
        id: ConnectionId,
        octets: &'a [u8],
    },
    /// The connection was closed by the other side or failed.
    Closed {
        id: ConnectionId,
    },
    /// The other side's TCP took something of what was sent; needed every few minutes only.
    Sent {
        id: ConnectionId,
    },
    /// BFD has lost the path to the peer. A session ends as by a cut link: its routes go at once. One that has ended by
    /// itself, and whose peer may be restarting, is left to graceful restart, unless the peer's BFD is `independent` of
    /// its control plane and so tells that forwarding has failed (RFC 5882 section 4.3).
    PathFailed {
        peer: IpAddr,
        /// When BFD heard the peer last: what was lost before the session began is no news of it.
        heard_at: Option<Instant>,
        /// The C bit of the peer's packets.
        independent: bool,
    },
    /// Time has passed.
    Tick,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    Connect {
        peer: IpAddr,
    },
    Send {
        id: ConnectionId,
        message: Arc<[u8]>,
    },
    /// Close after what was sent is flushed.
    Close {
        id: ConnectionId,
    },
    /// The next hops of destinations changed, in this order; none: they are gone. Local destinations are not reported.
    Routes(Vec<(NextHops, Vec<Prefix>)>),
    /// A peer's state changed, for the log.
    PeerChanged {
        peer: IpAddr,
        state: State,
        detail: String,
    },
    /// All expected peers have sent their routes, or the deferral time is over.
    Converged,
}

/// A peer, for display.
#[derive(Clone, Debug)]
pub struct PeerStatus {
    pub address: IpAddr,
    pub asn: Option<u32>,
    pub router_id: Option<Ipv4Addr>,
    pub state: State,
    pub dynamic: bool,
    pub established_at: Option<Instant>,
    pub hold_time: Option<Duration>,
    pub keepalive_time: Option<Duration>,
    pub graceful_restart: bool,
    pub routes: usize,
    pub routes_stale: usize,
    /// Kept, but not considered: loops, and what the import policy rejects.
    pub routes_rejected: usize,
    pub routes_advertised: usize,
    pub messages_received: u64,
    pub messages_sent: u64,
    pub last_error: Option<String>,
    pub last_notification_sent: Option<Notification>,
    pub last_notification_received: Option<Notification>,
    /// The newest changes of state, the oldest first.
    pub history: Vec<Transition>,
}

/// A change of a session's state.
#[derive(Clone, Debug, PartialEq)]
pub struct Transition {
    pub at: Instant,
    pub state: State,
    /// Why, where something went wrong.
    pub detail: String,
}

/// A destination with all its paths, for display.
#[derive(Clone, Debug)]
pub struct RouteStatus {
    pub prefix: Prefix,
    pub next_hops: Vec<IpAddr>,
    /// `None` where every path is rejected.
    pub reason: Option<Reason>,
    pub best: Option<Source>,
    pub paths: Vec<Path>,
}

impl Peer {
    fn next_deadline(&self) -> Option<Instant> {
        let long_stale = self.long_stale_deadlines.values().min().copied();
        let all = [self.session.next_deadline(), self.stale_deadline, long_stale, self.start_deadline];
        all.into_iter().flatten().min()
    }
}

struct Peer {
    config: PeerConfig,
    session: Session,
    dynamic: bool,
    group: Option<GroupKey>,
    established_at: Option<Instant>,
    /// When routes kept over the peer's restart are given up, or become long stale.
    stale_deadline: Option<Instant>,
    /// When long stale routes are given up (RFC 9494); by family, times that the peer has asked for.
    long_lived: BTreeMap<Family, Duration>,
    long_stale_deadlines: BTreeMap<Family, Instant>,
    /// When the session may begin anew after too many prefixes.
    start_deadline: Option<Instant>,
    /// Families whose End-of-RIB is awaited.
    awaited: BTreeSet<Family>,
    synced_once: bool,
    /// Everything of the newest session has arrived, also from a peer that is restarting itself.
    received_all: bool,
    /// Our End-of-RIB waits for the end of our own deferral, or for clients that were lost.
    end_of_rib_owed: bool,
    /// There has been a session.
    is_known: bool,
    last_error: Option<String>,
    last_notification_sent: Option<Notification>,
    last_notification_received: Option<Notification>,
    history: VecDeque<Transition>,
}

pub struct Speaker {
    config: SpeakerConfig,
    peers: BTreeMap<IpAddr, Peer>,
    peer_by_connection: HashMap<ConnectionId, IpAddr>,
    rib: Rib,
    local: BTreeMap<Prefix, LocalRoute>,
    groups: BTreeMap<GroupKey, Group>,
    outputs: VecDeque<Output>,
    /// What `Output::Routes` is to say next.
    reports: Vec<(NextHops, Vec<Prefix>)>,
    /// No timer of a peer ends before this.
    peers_deadline: Option<Instant>,
    deferral_deadline: Option<Instant>,
    /// Until then, or until every peer has sent all, routes of an earlier run stay in the FIB.
    convergence_deadline: Option<Instant>,
    /// Until then at most, clients of a reflector are waited for that it has lost, before peers are told that all was sent.
    reunion_deadline: Option<Instant>,
}

impl Speaker {
    /// A speaker that has just started at `now`: its deferral begins.
    pub fn new(config: SpeakerConfig, now: Instant) -> Speaker {
        let deferral_deadline = Some(now + config.deferral_time);
        Speaker {
            config,
            peers: BTreeMap::new(),
            peer_by_connection: HashMap::new(),
            rib: Rib::default(),
            local: BTreeMap::new(),
            groups: BTreeMap::new(),
            outputs: VecDeque::new(),
            reports: Vec::new(),
            peers_deadline: None,
            deferral_deadline,
            convergence_deadline: deferral_deadline,
            reunion_deadline: None,
        }
    }

    /// Makes the locally originated routes equal `desired`.
    pub fn set_local(&mut self, desired: BTreeMap<Prefix, LocalRoute>) {
        for prefix in self.local.keys().filter(|prefix| !desired.contains_key(prefix)) {
            self.rib.remove(*prefix, Source::Local, 0);
        }
        for (prefix, route) in desired.iter().filter(|(prefix, route)| self.local.get(prefix) != Some(route))
        {
            let next_hop = match prefix.family() {
                Family::Ipv4 => self.config.next_hop_v4.map(IpAddr::V4),
                Family::Ipv6 => self.config.next_hop_v6.map(IpAddr::V6),
            };
            // Without an address of the family the prefix cannot be announced, but still wins locally.
            let next_hop = next_hop.unwrap_or(match prefix.family() {
                Family::Ipv4 => Ipv4Addr::UNSPECIFIED.into(),
                Family::Ipv6 => Ipv6Addr::UNSPECIFIED.into(),
            });
            let attributes = self.rib.intern(Attributes {
                next_hop,
                communities: route.communities.clone(),
                large_communities: route.large_communities.clone(),
                local_pref: route.local_preference,
                med: route.med,
                ..Attributes::default()
            });
            let router_id = self.config.router_id;
            self.rib.insert(*prefix, Path::new(Source::Local, attributes, router_id, false));
            // What only a policy sees is no change to the table.
            self.rib.mark_dirty(*prefix);
        }
        self.local = desired;
    }

    pub fn handle(&mut self, input: Input<'_>, now: Instant) {
        self.connection_input(input, now);
        self.expire(now);
    }

    pub fn poll_output(&mut self) -> Option<Output> {
        if self.outputs.is_empty() {
            self.decide();
            self.flush_groups();
            // After what peers are sent: they wait for that, and what is done about a route may take long.
            self.report();
            if self.outputs.capacity() > OUTPUTS_KEPT && self.outputs.is_empty() {
                self.outputs = VecDeque::new();
            }
        }
        self.outputs.pop_front()
    }

    /// Whether the next call of `poll_output` has something without a decision.
    pub fn has_output(&self) -> bool {
        !self.outputs.is_empty()
    }

    /// When `Input::Tick` is due. It may come to nothing: a timer may have been set anew meanwhile.
    pub fn next_deadline(&self) -> Option<Instant> {
        let all =
            [self.peers_deadline, self.deferral_deadline, self.convergence_deadline, self.reunion_deadline];
        all.into_iter().flatten().min()
    }

    /// Whether everything that the peers know has arrived since the start.
    pub fn converged(&self) -> bool {
        self.convergence_deadline.is_none()
    }

    pub fn peers(&self) -> Vec<PeerStatus> {
        self.peers.iter().map(|(address, peer)| self.peer_status(*address, peer)).collect()
    }

    fn peer_status(&self, address: IpAddr, peer: &Peer) -> PeerStatus {
        let count = self.rib.count(Source::Peer(address));
        let negotiated = peer.session.negotiated();
        PeerStatus {
            address,
            asn: negotiated.map(|n| n.remote_asn).or(peer.config.asn),
            router_id: negotiated.map(|n| n.remote_router_id),
            state: peer.session.state(),
            dynamic: peer.dynamic,
            established_at: peer.established_at,
            hold_time: negotiated.map(|n| n.hold_time),
            keepalive_time: negotiated.map(|n| n.keepalive_time),
            graceful_restart: negotiated.is_some_and(|n| n.graceful_restart.is_some()),
            routes: count.total,
            routes_stale: count.stale,
            routes_rejected: count.rejected,
            routes_advertised: self.count_advertised(address, peer),
            messages_received: peer.session.messages_received,
            messages_sent: peer.session.messages_sent,
            last_error: peer.last_error.clone(),
            last_notification_sent: peer.last_notification_sent.clone(),
            last_notification_received: peer.last_notification_received.clone(),
            history: peer.history.iter().cloned().collect(),
        }
    }

    /// Every destination with its selection, sorted.
    pub fn routes(&self) -> Vec<RouteStatus> {
        let status = |(prefix, paths): (&Prefix, &[Path])| {
            let selection = self.rib.select(*prefix, MULTIPATH_MAX);
            RouteStatus {
                prefix: *prefix,
                next_hops: selection.as_ref().map_or_else(Vec::new, |selection| selection.next_hops.clone()),
                reason: selection.as_ref().map(|selection| selection.reason),
                best: selection.as_ref().map(|selection| selection.best.source),
                paths: paths.to_vec(),
            }
        };
        let mut routes: Vec<RouteStatus> = self.rib.destinations().map(status).collect();
        routes.sort_by_key(|route| route.prefix);
        routes
    }

    fn report(&mut self) {
        if !self.reports.is_empty() {
            self.outputs.push_back(Output::Routes(std::mem::take(&mut self.reports)));
        }
    }

    /// Runs the decision process over dirty destinations: reports changes, marks them for the groups.
    fn decide(&mut self) {
        if !self.rib.is_dirty() {
            return;
        }
        let dirty = self.rib.take_dirty();
        for id in &dirty {
            let next_hops = match self.rib.paths_at(*id) {
                [] => self.rib.set_next_hops(*id, &[]),
                // Without a list of one for each of a full table.
                [path] if path.rejected.is_none() && path.source != Source::Local => {
                    let next_hop = path.attributes.next_hop;
                    self.rib.set_next_hops(*id, &[next_hop])
                }
                paths => match best_path::select(paths, MULTIPATH_MAX) {
                    Some(selection) if selection.best.source != Source::Local => {
                        let next_hops = selection.next_hops;
                        self.rib.set_next_hops(*id, &next_hops)
                    }
                    Some(_) | None => self.rib.set_next_hops(*id, &[]),
                },
            };
            if let Some(next_hops) = next_hops {
                let prefix = self.rib.prefix_at(*id);
                match self.reports.last_mut() {
                    Some((last, prefixes)) if Arc::ptr_eq(last, &next_hops) => prefixes.push(prefix),
                    _ => self.reports.push((next_hops, vec![prefix])),
                }
            }
        }
        for group in self.groups.values_mut() {
            group.pending.extend_from_slice(&dirty);
        }
    }
}

#[cfg(test)]
mod tests;
