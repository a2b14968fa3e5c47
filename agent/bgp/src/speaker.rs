//! All peers of one router: sessions into the RIB, selections out to the FIB and to the peers.
//!
//! `handle` only takes in; `poll_output` decides over what became dirty, so that a burst of input costs
//! one decision per destination and UPDATEs packed by attributes. Peers alike in what they are sent form
//! an export group: each message is encoded once and sent to every member.
//!
//! Graceful restart, both roles: routes of a peer that vanished stay until it is back or its restart time
//! is over; after our own start `Output::Converged` tells when the FIB may be swept.

mod export;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::best_path::Reason;
use crate::config::{LocalRoute, PeerConfig, SpeakerConfig};
use crate::prefix::{Family, Prefix};
use crate::rib::{Path, Rib, Source};
use crate::session::{self, ConnectionId, Down, Negotiated, Session, State};
use crate::wire::notification::cease;
use crate::wire::{self, Attributes, Notification, Update};
use export::Group;
pub use export::GroupKey;

/// Next hops per destination at most.
const MULTIPATH_MAX: usize = 16;

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
    /// The next hops for a destination changed; empty: it is gone. Local destinations are not reported.
    Route {
        prefix: Prefix,
        next_hops: Vec<IpAddr>,
    },
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
    pub graceful_restart: bool,
    pub routes: usize,
    pub routes_stale: usize,
    pub messages_received: u64,
    pub messages_sent: u64,
    pub last_error: Option<String>,
}

/// A destination with all its paths, for display.
#[derive(Clone, Debug)]
pub struct RouteStatus {
    pub prefix: Prefix,
    pub next_hops: Vec<IpAddr>,
    pub reason: Reason,
    pub best: Source,
    pub paths: Vec<Path>,
}

struct Peer {
    config: PeerConfig,
    session: Session,
    dynamic: bool,
    group: Option<GroupKey>,
    established_at: Option<Instant>,
    /// When routes kept over the peer's restart are given up.
    stale_deadline: Option<Instant>,
    /// Families whose End-of-RIB is awaited.
    awaited: BTreeSet<Family>,
    synced_once: bool,
    /// Everything of the newest session has arrived, also from a peer that is restarting itself.
    received_all: bool,
    /// Our End-of-RIB waits for the end of our own deferral.
    end_of_rib_owed: bool,
    last_error: Option<String>,
}

pub struct Speaker {
    config: SpeakerConfig,
    peers: BTreeMap<IpAddr, Peer>,
    peer_by_connection: HashMap<ConnectionId, IpAddr>,
    rib: Rib,
    local: BTreeMap<Prefix, LocalRoute>,
    /// What was last reported as `Output::Route`.
    reported: HashMap<Prefix, Vec<IpAddr>>,
    groups: BTreeMap<GroupKey, Group>,
    outputs: VecDeque<Output>,
    deferral_deadline: Option<Instant>,
    /// Until then, or until every peer has sent all, routes of an earlier run stay in the FIB.
    convergence_deadline: Option<Instant>,
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
            reported: HashMap::new(),
            groups: BTreeMap::new(),
            outputs: VecDeque::new(),
            deferral_deadline,
            convergence_deadline: deferral_deadline,
        }
    }

    /// Makes the configured peers equal `desired`; those gone are ended with Peer De-configured.
    pub fn set_peers(&mut self, desired: &BTreeMap<IpAddr, PeerConfig>, now: Instant) {
        let gone: Vec<IpAddr> = self
            .peers
            .iter()
            .filter(|(address, peer)| match desired.get(*address) {
                Some(config) => !peer.dynamic && *config != peer.config,
                None => !peer.dynamic,
            })
            .map(|(address, _)| *address)
            .collect();
        for address in gone {
            self.remove_peer(address, cease::PEER_DE_CONFIGURED, now);
        }
        for (address, config) in desired {
            match self.peers.get_mut(address) {
                Some(peer) if peer.dynamic => {
                    peer.dynamic = false;
                    peer.config = config.clone();
                    peer.session.set_passive(config.passive, now);
                }
                Some(_) => {}
                None => self.add_peer(*address, config.clone(), false, now),
            }
        }
        self.finish_deferral(now);
    }

    /// Makes the locally originated routes equal `desired`.
    pub fn set_local(&mut self, desired: BTreeMap<Prefix, LocalRoute>) {
        for prefix in self.local.keys().filter(|prefix| !desired.contains_key(prefix)) {
            self.rib.remove(*prefix, Source::Local);
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
                ..Attributes::default()
            });
            let router_id = self.config.router_id;
            let path = Path { source: Source::Local, attributes, router_id, external: false, stale: false };
            self.rib.insert(*prefix, path);
        }
        self.local = desired;
    }

    pub fn handle(&mut self, input: Input<'_>, now: Instant) {
        match input {
            Input::Connected { peer, id } => {
                if self.peers.contains_key(&peer) {
                    self.peer_by_connection.insert(id, peer);
                    self.feed(peer, session::Input::Connected(id), now);
                } else {
                    self.outputs.push_back(Output::Close { id });
                }
            }
            Input::ConnectFailed { peer, error } => {
                if let Some(known) = self.peers.get_mut(&peer) {
                    known.last_error = Some(error);
                    self.feed(peer, session::Input::ConnectFailed, now);
                }
            }
            Input::Accepted { remote, id } => self.accepted(remote, id, now),
            Input::Received { id, octets } => {
                if let Some(peer) = self.peer_by_connection.get(&id).copied() {
                    self.feed(peer, session::Input::Received(id, octets), now);
                }
            }
            Input::Closed { id } => {
                if let Some(peer) = self.peer_by_connection.remove(&id) {
                    self.feed(peer, session::Input::Closed(id), now);
                }
            }
            Input::Tick => {}
        }
        self.expire(now);
    }

    pub fn poll_output(&mut self) -> Option<Output> {
        if self.outputs.is_empty() {
            self.decide();
            self.flush_groups();
        }
        self.outputs.pop_front()
    }

    pub fn next_deadline(&self) -> Option<Instant> {
        self.peers
            .values()
            .flat_map(|peer| [peer.session.next_deadline(), peer.stale_deadline])
            .chain([self.deferral_deadline, self.convergence_deadline])
            .flatten()
            .min()
    }

    /// Whether everything that the peers know has arrived since the start.
    pub fn converged(&self) -> bool {
        self.convergence_deadline.is_none()
    }

    pub fn peers(&self) -> Vec<PeerStatus> {
        let status = |(address, peer): (&IpAddr, &Peer)| {
            let (routes, routes_stale) = self.rib.count(Source::Peer(*address));
            let negotiated = peer.session.negotiated();
            PeerStatus {
                address: *address,
                asn: negotiated.map(|n| n.remote_asn).or(peer.config.asn),
                router_id: negotiated.map(|n| n.remote_router_id),
                state: peer.session.state(),
                dynamic: peer.dynamic,
                established_at: peer.established_at,
                hold_time: negotiated.map(|n| n.hold_time),
                graceful_restart: negotiated.is_some_and(|n| n.graceful_restart.is_some()),
                routes,
                routes_stale,
                messages_received: peer.session.messages_received,
                messages_sent: peer.session.messages_sent,
                last_error: peer.last_error.clone(),
            }
        };
        self.peers.iter().map(status).collect()
    }

    /// Every destination with its selection, sorted.
    pub fn routes(&self) -> Vec<RouteStatus> {
        let mut routes: Vec<RouteStatus> = self
            .rib
            .destinations()
            .filter_map(|(prefix, paths)| {
                let selection = self.rib.select(*prefix, MULTIPATH_MAX)?;
                Some(RouteStatus {
                    prefix: *prefix,
                    next_hops: selection.next_hops.clone(),
                    reason: selection.reason,
                    best: selection.best.source,
                    paths: paths.to_vec(),
                })
            })
            .collect();
        routes.sort_by_key(|route| route.prefix);
        routes
    }

    fn add_peer(&mut self, address: IpAddr, config: PeerConfig, dynamic: bool, now: Instant) {
        let mut families = Vec::new();
        families.extend(self.config.next_hop_v4.map(|_| Family::Ipv4));
        families.extend(self.config.next_hop_v6.map(|_| Family::Ipv6));
        let session = Session::new(session::Config {
            local_asn: self.config.asn,
            router_id: self.config.router_id,
            remote_asn: config.asn,
            hold_time: self.config.hold_time,
            connect_retry: self.config.connect_retry,
            passive: config.passive || dynamic,
            families,
            restart_time: self.config.restart_time,
        });
        let peer = Peer {
            config,
            session,
            dynamic,
            group: None,
            established_at: None,
            stale_deadline: None,
            awaited: BTreeSet::new(),
            synced_once: false,
            received_all: false,
            end_of_rib_owed: false,
            last_error: None,
        };
        self.peers.insert(address, peer);
        self.feed(address, session::Input::Start, now);
    }

    fn remove_peer(&mut self, address: IpAddr, subcode: u8, now: Instant) {
        self.feed(address, session::Input::Stop(subcode), now);
        self.leave_group(address);
        self.peers.remove(&address);
        self.peer_by_connection.retain(|_, peer| *peer != address);
        self.rib.remove_source(Source::Peer(address), None);
    }

    fn accepted(&mut self, remote: IpAddr, id: ConnectionId, now: Instant) {
        let in_range = self.config.listen_ranges.iter().any(|range| range.contains(remote));
        if !self.peers.contains_key(&remote) {
            if !in_range {
                let rejected = Notification::cease(cease::CONNECTION_REJECTED);
                self.outputs.push_back(Output::Send { id, message: wire::encode_notification(&rejected) });
                self.outputs.push_back(Output::Close { id });
                return;
            }
            let asn = Some(self.config.asn);
            let config = PeerConfig { asn, passive: true, ..PeerConfig::default() };
            self.add_peer(remote, config, true, now);
        }
        self.peer_by_connection.insert(id, remote);
        self.feed(remote, session::Input::Accepted(id), now);
    }

    /// Gives one input to a peer's session and acts on all that comes out.
    fn feed(&mut self, address: IpAddr, input: session::Input<'_>, now: Instant) {
        let restarting = self.deferral_deadline.is_some();
        let Some(peer) = self.peers.get_mut(&address) else { return };
        peer.session.restarting = restarting;
        let before = peer.session.state();
        peer.session.handle(input, now);
        while let Some(output) = self.peers.get_mut(&address).and_then(|peer| peer.session.poll_output()) {
            match output {
                session::Output::Connect => self.outputs.push_back(Output::Connect { peer: address }),
                session::Output::Send(id, message) => self.outputs.push_back(Output::Send { id, message }),
                session::Output::Close(id) => {
                    self.peer_by_connection.remove(&id);
                    self.outputs.push_back(Output::Close { id });
                }
                session::Output::Established(negotiated) => self.established(address, &negotiated, now),
                session::Output::Update(update) => self.update(address, *update, now),
                session::Output::Refresh(family) => self.resend(address, Some(family)),
                session::Output::Down(down) => self.down(address, &down, now),
            }
        }
        let Some(peer) = self.peers.get(&address) else { return };
        let state = peer.session.state();
        if state != before && (state == State::Established || before == State::Established) {
            let detail = match state {
                State::Established => "session established".to_owned(),
                _ => peer.last_error.clone().unwrap_or_default(),
            };
            self.outputs.push_back(Output::PeerChanged { peer: address, state, detail });
        }
    }

    fn established(&mut self, address: IpAddr, negotiated: &Negotiated, now: Instant) {
        let source = Source::Peer(address);
        let deferring = self.deferral_deadline.is_some();
        let Some(peer) = self.peers.get_mut(&address) else { return };
        peer.established_at = Some(now);
        peer.last_error = None;
        peer.end_of_rib_owed = deferring;
        let graceful = negotiated.graceful_restart.as_ref();
        peer.awaited =
            if graceful.is_some() { negotiated.families.iter().copied().collect() } else { BTreeSet::new() };
        // RFC 4724 4.1: a peer that is restarting too is not waited for.
        peer.synced_once = peer.awaited.is_empty() || graceful.is_some_and(|g| g.restarted);
        peer.received_all = peer.awaited.is_empty();
        for family in Family::ALL {
            let kept = graceful.is_some_and(|g| {
                negotiated.families.contains(&family)
                    && g.families.iter().any(|(other, forwarding)| *other == family && *forwarding)
            });
            if !kept {
                self.rib.sweep_stale(source, Some(family));
            }
        }
        // Existing members first get what is pending: the newcomer starts from the group's whole table.
        self.decide();
        self.flush_groups();
        self.join_group(address, negotiated);
        self.resend(address, None);
        if deferring {
            self.finish_deferral(now);
        } else {
            self.send_end_of_rib(address);
            self.finish_convergence(now);
        }
    }

    fn down(&mut self, address: IpAddr, down: &Down, now: Instant) {
        let source = Source::Peer(address);
        let restart_cap = self.config.restart_time;
        let Some(peer) = self.peers.get_mut(&address) else { return };
        peer.last_error = Some(down.reason.to_string());
        if !down.was_established {
            if peer.dynamic && peer.session.state() < State::OpenSent && peer.stale_deadline.is_none() {
                self.remove_peer(address, cease::PEER_DE_CONFIGURED, now);
            }
            return;
        }
        peer.established_at = None;
        peer.awaited.clear();
        self.leave_group(address);
        for family in Family::ALL {
            if down.retain.contains(&family) {
                self.rib.mark_stale(source, family);
            } else {
                self.rib.remove_source(source, Some(family));
            }
        }
        let Some(peer) = self.peers.get_mut(&address) else { return };
        if down.retain.is_empty() {
            peer.stale_deadline = None;
            if peer.dynamic {
                self.remove_peer(address, cease::PEER_DE_CONFIGURED, now);
            }
        } else {
            // RFC 4724 4.2 would drop what is already stale at a second restart. Routes to a node that is
            // restarting twice in a row are worth keeping; the first loss's deadline still bounds them.
            peer.stale_deadline.get_or_insert(now + restart_cap);
        }
    }

    fn update(&mut self, address: IpAddr, update: Update, now: Instant) {
        let source = Source::Peer(address);
        let Some(peer) = self.peers.get_mut(&address) else { return };
        if let Some(error) = update.errors.first() {
            peer.last_error = Some(error.to_string());
        }
        let Some(negotiated) = peer.session.negotiated() else { return };
        let (router_id, external) = (negotiated.remote_router_id, negotiated.external);
        let families = negotiated.families.clone();
        for prefix in &update.withdrawn {
            self.rib.remove(*prefix, source);
        }
        for reach in update.reach {
            let usable = self.acceptable(&update.attributes, reach.next_hop, external);
            let mut attributes = update.attributes.clone();
            attributes.next_hop = reach.next_hop;
            let attributes = self.rib.intern(attributes);
            for prefix in reach.prefixes {
                if usable && families.contains(&prefix.family()) {
                    let attributes = attributes.clone();
                    let path = Path { source, attributes, router_id, external, stale: false };
                    self.rib.insert(prefix, path);
                } else {
                    self.rib.remove(prefix, source);
                }
            }
        }
        if let Some(family) = update.end_of_rib {
            self.rib.sweep_stale(source, Some(family));
            let Some(peer) = self.peers.get_mut(&address) else { return };
            peer.awaited.remove(&family);
            if peer.awaited.is_empty() {
                peer.synced_once = true;
                peer.received_all = true;
                peer.stale_deadline = None;
                self.finish_deferral(now);
                self.finish_convergence(now);
            }
        }
    }

    /// Loops and next hops that cannot be used (RFC 4271 9.1.2, 5.1.3; RFC 4456 section 8).
    fn acceptable(&self, attributes: &Attributes, next_hop: IpAddr, external: bool) -> bool {
        let own_next_hop = self.config.next_hop_v4.map(IpAddr::V4) == Some(next_hop)
            || self.config.next_hop_v6.map(IpAddr::V6) == Some(next_hop);
        let looped = external && attributes.as_path_contains(self.config.asn)
            || attributes.originator_id == Some(self.config.router_id)
            || attributes.cluster_list.contains(&self.config.router_id);
        let bad = next_hop.is_unspecified() || next_hop.is_multicast() || next_hop.is_loopback();
        !own_next_hop && !looped && !bad
    }

    fn expire(&mut self, now: Instant) {
        let due: Vec<IpAddr> = self
            .peers
            .iter()
            .filter(|(_, peer)| peer.session.next_deadline().is_some_and(|at| at <= now))
            .map(|(address, _)| *address)
            .collect();
        for address in due {
            self.feed(address, session::Input::Tick, now);
        }
        let stale: Vec<IpAddr> = self
            .peers
            .iter()
            .filter(|(_, peer)| peer.stale_deadline.is_some_and(|at| at <= now))
            .map(|(address, _)| *address)
            .collect();
        for address in stale {
            self.rib.sweep_stale(Source::Peer(address), None);
            let Some(peer) = self.peers.get_mut(&address) else { continue };
            peer.stale_deadline = None;
            if peer.dynamic && peer.session.state() < State::OpenSent {
                self.remove_peer(address, cease::PEER_DE_CONFIGURED, now);
            }
        }
        self.finish_deferral(now);
        self.finish_convergence(now);
    }

    /// Ends the start's deferral once every configured peer has sent all, or the time is over.
    fn finish_deferral(&mut self, now: Instant) {
        let Some(deadline) = self.deferral_deadline else { return };
        let mut configured = self.peers.values().filter(|peer| !peer.dynamic).peekable();
        let complete = configured.peek().is_some() && configured.all(|peer| peer.synced_once);
        if !complete && now < deadline {
            return;
        }
        self.deferral_deadline = None;
        self.decide();
        self.flush_groups();
        let owed: Vec<IpAddr> =
            self.peers.iter().filter(|(_, peer)| peer.end_of_rib_owed).map(|(a, _)| *a).collect();
        for address in owed {
            self.send_end_of_rib(address);
        }
        self.finish_convergence(now);
    }

    /// Lets the FIB be swept. Later than the end of the deferral where a peer restarts at the same time: it is not
    /// waited for with our own announcements (RFC 4724 4.1), or both would wait for ever, but its routes are still to
    /// come, and the kernel forwards by them all the while.
    fn finish_convergence(&mut self, now: Instant) {
        let Some(deadline) = self.convergence_deadline else { return };
        let mut configured = self.peers.values().filter(|peer| !peer.dynamic).peekable();
        let complete = configured.peek().is_some() && configured.all(|peer| peer.received_all);
        if self.deferral_deadline.is_some() || (!complete && now < deadline) {
            return;
        }
        self.convergence_deadline = None;
        self.decide();
        self.outputs.push_back(Output::Converged);
    }

    /// Runs the decision process over dirty destinations: reports changes, marks them for the groups.
    fn decide(&mut self) {
        if !self.rib.is_dirty() {
            return;
        }
        for prefix in self.rib.take_dirty() {
            let next_hops = match self.rib.select(prefix, MULTIPATH_MAX) {
                Some(selection) if selection.best.source != Source::Local => selection.next_hops,
                Some(_) | None => Vec::new(),
            };
            let before = self.reported.get(&prefix).map_or(&[][..], Vec::as_slice);
            if before != next_hops {
                if next_hops.is_empty() {
                    self.reported.remove(&prefix);
                } else {
                    self.reported.insert(prefix, next_hops.clone());
                }
                self.outputs.push_back(Output::Route { prefix, next_hops });
            }
            for group in self.groups.values_mut() {
                group.pending.insert(prefix);
            }
        }
    }
}

#[cfg(test)]
mod tests;
