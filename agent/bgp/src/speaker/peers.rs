//! Peers and their sessions: configuration, what goes into a session, and what comes out.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::time::Instant;

use super::{HISTORY_MAX, Input, Output, Peer, Speaker, Transition};
use crate::config::PeerConfig;
use crate::prefix::Family;
use crate::rib::Source;
use crate::session::{self, ConnectionId, Down, DownReason, Negotiated, Session, State};
use crate::wire::notification::cease;
use crate::wire::{self, Notification, Refresh};

impl Speaker {
    /// Makes the configured peers equal `desired`; those gone are ended with Peer De-configured. A session is reset only
    /// where its OPENs would have to say of other routes; other times wait for the next one (as FRR has it; BIRD resets).
    pub fn set_peers(&mut self, desired: &BTreeMap<IpAddr, PeerConfig>, now: Instant) {
        let gone: Vec<IpAddr> = self
            .peers
            .iter()
            .filter(|(address, peer)| !peer.dynamic && !desired.contains_key(*address))
            .map(|(address, _)| *address)
            .collect();
        for address in gone {
            self.remove_peer(address, cease::PEER_DE_CONFIGURED, now);
        }
        for (address, config) in desired {
            match self.peers.get(address) {
                Some(peer) if !peer.dynamic && peer.config == *config => {}
                Some(_) => self.reconfigure(*address, config, now),
                None => self.add_peer(*address, config.clone(), false, now),
            }
        }
        self.finish_deferral(now);
    }

    fn reconfigure(&mut self, address: IpAddr, config: &PeerConfig, now: Instant) {
        let wanted = self.session_config(address, config, false);
        let Some(peer) = self.peers.get_mut(&address) else { return };
        let was_dynamic = std::mem::replace(&mut peer.dynamic, false);
        let before = std::mem::replace(&mut peer.config, config.clone());
        let passive = wanted.passive;
        if peer.session.config().apart_from_times() != wanted.apart_from_times() {
            if was_dynamic && peer.session.config().remote_asn == config.asn {
                peer.session.set_passive(passive, now);
                return self.timer_set(address);
            }
            self.remove_peer(address, cease::OTHER_CONFIGURATION_CHANGE, now);
            return self.add_peer(address, config.clone(), false, now);
        }
        peer.session.set_times(&wanted, now);
        peer.session.set_passive(passive, now);
        self.timer_set(address);
        let Some(peer) = self.peers.get_mut(&address) else { return };
        if before.max_prefixes != config.max_prefixes && peer.start_deadline.take().is_some()
            || peer.session.state() == State::Idle
        {
            self.feed(address, session::Input::Start, now);
        }
        if before.import != config.import
            || before.allow_own_as != config.allow_own_as
            || before.interface != config.interface
        {
            self.import_again(address);
        }
        if before.cluster_id != config.cluster_id {
            let all: Vec<IpAddr> = self.peers.keys().copied().collect();
            all.into_iter().for_each(|address| self.import_again(address));
        }
        if before.route_reflector_client != config.route_reflector_client
            || before.interface != config.interface
        {
            // What others are sent of this peer's routes depends on it.
            for (prefix, _) in self.rib.paths_of(Source::Peer(address)) {
                self.rib.mark_dirty(prefix);
            }
        }
        self.change_group(address);
        self.enforce_max_prefixes(address, now);
    }

    fn session_config(&self, address: IpAddr, config: &PeerConfig, dynamic: bool) -> session::Config {
        let own = || {
            let mut families = Vec::new();
            // Over IPv6, IPv4 needs no next hop of its own where it may be an IPv6 address.
            let own_v6 =
                self.config.next_hop_v6.is_some() || config.local_address.is_some_and(|own| own.is_ipv6());
            let borrowed = config.extended_next_hop && address.is_ipv6() && own_v6;
            families.extend((self.config.next_hop_v4.is_some() || borrowed).then_some(Family::Ipv4));
            families.extend(self.config.next_hop_v6.map(|_| Family::Ipv6));
            families
        };
        session::Config {
            local_asn: config.local_asn.unwrap_or(self.config.asn),
            router_id: self.config.router_id,
            remote_asn: config.asn,
            hold_time: config.hold_time.unwrap_or(self.config.hold_time),
            keepalive_time: config.keepalive_time,
            connect_retry: self.config.connect_retry,
            passive: config.passive || dynamic,
            families: config.families.clone().unwrap_or_else(own),
            restart_time: config.restart_time.unwrap_or(self.config.restart_time),
            long_lived_stale_time: config.long_lived_stale_time,
            add_path: config.add_path,
            extended_next_hop: config.extended_next_hop,
        }
    }

    fn add_peer(&mut self, address: IpAddr, config: PeerConfig, dynamic: bool, now: Instant) {
        let session = Session::new(self.session_config(address, &config, dynamic));
        let peer = Peer {
            config,
            session,
            dynamic,
            group: None,
            established_at: None,
            stale_deadline: None,
            long_lived: BTreeMap::new(),
            long_stale_deadlines: BTreeMap::new(),
            start_deadline: None,
            awaited: BTreeSet::new(),
            synced_once: false,
            received_all: false,
            end_of_rib_owed: false,
            is_known: false,
            last_error: None,
            last_notification_sent: None,
            last_notification_received: None,
            history: VecDeque::new(),
        };
        self.peers.insert(address, peer);
        self.feed(address, session::Input::Start, now);
    }

    pub(super) fn remove_peer(&mut self, address: IpAddr, subcode: u8, now: Instant) {
        self.feed(address, session::Input::Stop(Notification::cease(subcode)), now);
        self.leave_group(address);
        self.peers.remove(&address);
        self.peer_by_connection.retain(|_, peer| *peer != address);
        self.rib.remove_source(Source::Peer(address), None);
    }

    pub(super) fn accepted(&mut self, remote: IpAddr, id: ConnectionId, now: Instant) {
        let in_range = self.config.listen_ranges.iter().any(|range| range.contains(remote));
        if !self.peers.contains_key(&remote) {
            if !in_range {
                let rejected = Notification::cease(cease::CONNECTION_REJECTED);
                self.outputs.push_back(Output::Send { id, message: wire::encode_notification(&rejected) });
                self.outputs.push_back(Output::Close { id });
                return;
            }
            let asn = Some(self.config.asn);
            let long_lived_stale_time = self.config.long_lived_stale_time;
            let config = PeerConfig { asn, passive: true, long_lived_stale_time, ..PeerConfig::default() };
            self.add_peer(remote, config, true, now);
        }
        self.peer_by_connection.insert(id, remote);
        self.feed(remote, session::Input::Accepted(id), now);
    }

    /// Gives one input to a peer's session and acts on all that comes out.
    pub(super) fn feed(&mut self, address: IpAddr, input: session::Input<'_>, now: Instant) {
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
                session::Output::Refresh(family, kind) => self.refresh(address, family, kind),
                session::Output::Down(down) => self.down(address, &down, now),
            }
        }
        self.timer_set(address);
        let Some(peer) = self.peers.get_mut(&address) else { return };
        let state = peer.session.state();
        if state == before {
            return;
        }
        let detail = match state {
            State::Established => "session established".to_owned(),
            _ if state < before => peer.last_error.clone().unwrap_or_default(),
            _ => String::new(),
        };
        if peer.history.len() == HISTORY_MAX {
            peer.history.pop_front();
        }
        peer.history.push_back(Transition { at: now, state, detail: detail.clone() });
        if state == State::Established || before == State::Established {
            self.outputs.push_back(Output::PeerChanged { peer: address, state, detail });
        }
    }

    /// Acts on a ROUTE-REFRESH of a peer (RFC 2918, RFC 7313).
    fn refresh(&mut self, address: IpAddr, family: Family, kind: Refresh) {
        let source = Source::Peer(address);
        match kind {
            Refresh::Request => self.send_again(address, family),
            Refresh::Begin => self.rib.mark_stale(source, family),
            Refresh::End => self.rib.sweep_stale(source, Some(family)),
        }
    }

    /// Asks a peer to send all of a family again. `false` where there is no session that could.
    pub fn request_refresh(&mut self, address: IpAddr, family: Family) -> bool {
        let negotiated = self.peers.get(&address).and_then(|peer| peer.session.negotiated());
        let able = |n: &&Negotiated| n.route_refresh && n.families.contains(&family);
        let Some(id) = negotiated.filter(able).map(|n| n.connection) else { return false };
        let message = wire::encode_route_refresh(family, Refresh::Request);
        self.outputs.push_back(Output::Send { id, message });
        true
    }

    fn established(&mut self, address: IpAddr, negotiated: &Negotiated, now: Instant) {
        let source = Source::Peer(address);
        let deferring = self.deferral_deadline.is_some() || self.awaits_clients(address, now);
        let Some(peer) = self.peers.get_mut(&address) else { return };
        peer.established_at = Some(now);
        peer.is_known = true;
        peer.last_error = None;
        peer.end_of_rib_owed = deferring;
        let graceful = negotiated.graceful_restart.as_ref();
        peer.awaited =
            if graceful.is_some() { negotiated.families.iter().copied().collect() } else { BTreeSet::new() };
        // RFC 4724 4.1: a peer that is restarting too is not waited for.
        peer.synced_once = peer.awaited.is_empty() || graceful.is_some_and(|g| g.restarted);
        peer.received_all = peer.awaited.is_empty();
        let long_stale = !peer.long_stale_deadlines.is_empty();
        peer.long_lived = Family::ALL
            .into_iter()
            .filter_map(|family| Some((family, negotiated.long_lived_stale_time(family)?)))
            .collect();
        for family in Family::ALL {
            let kept = graceful.is_some_and(|g| {
                let preserved = |forwarding: bool| negotiated.families.contains(&family) && forwarding;
                let long = negotiated.long_lived.iter().find(|long| long.family == family);
                if long_stale {
                    long.is_some_and(|long| preserved(long.forwarding))
                } else {
                    g.families.iter().any(|(other, forwarding)| *other == family && preserved(*forwarding))
                }
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
            self.finish_reunion(now);
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
        match &down.reason {
            DownReason::NotificationSent(sent) => peer.last_notification_sent = Some(sent.clone()),
            DownReason::NotificationReceived(received) => {
                peer.last_notification_received = Some(received.clone());
            }
            _ => {}
        }
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
            } else if down.reason.is_path_failure() {
                self.keep_reflected(address, family);
            } else {
                self.rib.remove_source(source, Some(family));
            }
        }
        if down.reason.is_path_failure() && self.rib.count(source).total > 0 {
            return self.end_restart_time(address, now);
        }
        let Some(peer) = self.peers.get_mut(&address) else { return };
        if down.retain.is_empty() {
            peer.stale_deadline = None;
            peer.long_stale_deadlines.clear();
            if peer.dynamic {
                self.remove_peer(address, cease::PEER_DE_CONFIGURED, now);
            }
        } else if peer.long_stale_deadlines.is_empty() {
            // RFC 4724 4.2 would drop what is already stale at a second restart. Routes to a node that is
            // restarting twice in a row are worth keeping; the first loss's deadline still bounds them.
            let kept = peer.config.restart_time.unwrap_or(restart_cap);
            peer.stale_deadline.get_or_insert(now + kept);
        }
    }

    pub(super) fn connection_input(&mut self, input: Input<'_>, now: Instant) {
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
                    if known.established_at.is_none() {
                        known.last_error = Some(error);
                    }
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
            Input::Sent { id } => {
                if let Some(peer) = self.peer_by_connection.get(&id).copied() {
                    self.feed(peer, session::Input::Sent(id), now);
                }
            }
            Input::PathFailed { peer, heard_at, independent } => {
                self.path_failed(peer, heard_at, independent, now);
            }
            Input::Tick => {}
        }
    }
}
