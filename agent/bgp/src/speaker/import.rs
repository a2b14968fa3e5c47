//! What a peer sends, on its way into the RIB: loops, next hops, policy, limits.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Instant;

use super::Speaker;
use crate::policy::{PeerType, RouteSource, Subject, Verdict};
use crate::prefix::{Family, Prefix};
use crate::rib::{Path, Rejected, Source};
use crate::session;
use crate::wire::attributes::community;
use crate::wire::notification::{CEASE, cease};
use crate::wire::{Attributes, Notification, Update};

impl Speaker {
    pub(super) fn update(&mut self, address: IpAddr, update: Update, now: Instant) {
        let source = Source::Peer(address);
        let Some(peer) = self.peers.get_mut(&address) else { return };
        if let Some(error) = update.errors.first() {
            peer.last_error = Some(error.to_string());
        }
        let Some(negotiated) = peer.session.negotiated() else { return };
        let (router_id, external) = (negotiated.remote_router_id, negotiated.external);
        let families = negotiated.families.clone();
        for nlri in &update.withdrawn {
            self.rib.remove(nlri.prefix, source, nlri.path_id);
        }
        for reach in update.reach {
            let mut attributes = update.attributes.clone();
            attributes.next_hop = reach.next_hop;
            let received = self.rib.intern(attributes);
            let common = self.import_common(address, &received, external);
            for nlri in reach.prefixes {
                if !families.contains(&nlri.prefix.family()) {
                    continue;
                }
                let (attributes, rejected) =
                    self.import(address, nlri.prefix, &received, external, common.clone());
                let path = Path {
                    path_id: nlri.path_id,
                    received: received.clone(),
                    rejected,
                    ..Path::new(source, attributes, router_id, external)
                };
                self.rib.insert(nlri.prefix, path);
            }
        }
        self.enforce_max_prefixes(address, now);
        if let Some(family) = update.end_of_rib {
            self.received_end_of_rib(address, family, now);
        }
    }

    /// Applies what is configured now to all that a peer has sent.
    pub(super) fn import_again(&mut self, address: IpAddr) {
        for (prefix, path) in self.rib.paths_of(Source::Peer(address)) {
            let received = path.received.clone();
            let common = self.import_common(address, &received, path.external);
            let (mut attributes, rejected) = self.import(address, prefix, &received, path.external, common);
            if path.long_stale() {
                attributes = self.mark_long_stale(&attributes);
            }
            self.rib.insert(prefix, Path { attributes, rejected, ..path });
        }
    }

    pub(super) fn mark_long_stale(&mut self, attributes: &Attributes) -> Arc<Attributes> {
        let mut attributes = attributes.clone();
        if !attributes.communities.contains(&community::LLGR_STALE) {
            attributes.communities.push(community::LLGR_STALE);
        }
        self.rib.intern(attributes)
    }

    /// What becomes of attributes whatever the prefix is.
    fn import_common(
        &mut self,
        address: IpAddr,
        received: &Arc<Attributes>,
        external: bool,
    ) -> (Arc<Attributes>, Option<Rejected>) {
        let rejected = self.ineligible(address, received, external);
        // RFC 8326 section 4.1: our AS asks nobody else to send traffic that way.
        if external && received.communities.contains(&community::GRACEFUL_SHUTDOWN) {
            let shut = Attributes { local_pref: Some(0), ..(**received).clone() };
            return (self.rib.intern(shut), rejected);
        }
        (received.clone(), rejected)
    }

    /// What becomes of one route of a peer.
    fn import(
        &mut self,
        address: IpAddr,
        prefix: Prefix,
        received: &Arc<Attributes>,
        external: bool,
        (attributes, rejected): (Arc<Attributes>, Option<Rejected>),
    ) -> (Arc<Attributes>, Option<Rejected>) {
        let Some(peer) = self.peers.get(&address) else { return (attributes, rejected) };
        if rejected.is_some() || peer.config.import.is_transparent() {
            return (attributes, rejected);
        }
        let peer_type = PeerType::of(external);
        let interface = peer.config.interface.as_deref();
        let subject = Subject { prefix, source: RouteSource::Peer(peer_type), peer_type, interface };
        let outcome = peer.config.import.evaluate(&subject, &attributes);
        if outcome.verdict == Verdict::Reject {
            let rule = outcome.rule.map(|rule| u16::try_from(rule).unwrap_or(u16::MAX));
            return (received.clone(), Some(Rejected::Policy(rule)));
        }
        match outcome.attributes {
            std::borrow::Cow::Borrowed(_) => (attributes, None),
            std::borrow::Cow::Owned(changed) => (self.rib.intern(changed), None),
        }
    }

    /// Loops and next hops that cannot be used (RFC 4271 9.1.2, 5.1.3; RFC 4456 section 8).
    fn ineligible(&self, address: IpAddr, attributes: &Attributes, external: bool) -> Option<Rejected> {
        let peer = self.peers.get(&address)?;
        let local_asn = peer.session.config().local_asn;
        let own_as = |asn: u32| attributes.as_path_count(asn);
        let occurrences =
            own_as(local_asn) + if local_asn == self.config.asn { 0 } else { own_as(self.config.asn) };
        if external && occurrences > usize::from(peer.config.allow_own_as) {
            return Some(Rejected::AsLoop);
        }
        if attributes.originator_id == Some(self.config.router_id) {
            return Some(Rejected::OwnOriginator);
        }
        if attributes.cluster_list.iter().any(|cluster| self.is_own_cluster(*cluster)) {
            return Some(Rejected::ClusterLoop);
        }
        let next_hop = attributes.next_hop;
        let own = self.config.next_hop_v4.map(IpAddr::V4) == Some(next_hop)
            || self.config.next_hop_v6.map(IpAddr::V6) == Some(next_hop)
            || peer.config.local_address == Some(next_hop);
        let bad = next_hop.is_unspecified() || next_hop.is_multicast() || next_hop.is_loopback();
        (own || bad).then_some(Rejected::NextHop)
    }

    fn is_own_cluster(&self, cluster: Ipv4Addr) -> bool {
        cluster == self.config.router_id
            || self.peers.values().any(|peer| peer.config.cluster_id == Some(cluster))
    }

    /// Ends the session of a peer that has sent more than it may (RFC 4486 section 4).
    pub(super) fn enforce_max_prefixes(&mut self, address: IpAddr, now: Instant) {
        let Some(peer) = self.peers.get(&address) else { return };
        let Some(limit) = peer.config.max_prefixes else { return };
        let source = Source::Peer(address);
        let passed = |family: &Family| self.rib.count_in(source, *family).total > limit as usize;
        let Some(family) = Family::ALL.into_iter().find(passed) else { return };
        let restart = peer.config.max_prefixes_restart;
        let mut data = family.afi().to_be_bytes().to_vec();
        data.push(Family::SAFI);
        data.extend_from_slice(&limit.to_be_bytes());
        let notification = Notification::with_data(CEASE, cease::MAXIMUM_PREFIXES, &data);
        self.feed(address, session::Input::Stop(notification.clone()), now);
        self.rib.remove_source(source, None);
        let Some(peer) = self.peers.get_mut(&address) else { return };
        peer.last_error = Some(format!("more than the {limit} {family:?} prefixes that are allowed"));
        peer.last_notification_sent = Some(notification);
        peer.start_deadline = restart.map(|time| now + time);
    }

    pub(super) fn received_end_of_rib(&mut self, address: IpAddr, family: Family, now: Instant) {
        self.rib.sweep_stale(Source::Peer(address), Some(family));
        let Some(peer) = self.peers.get_mut(&address) else { return };
        peer.long_stale_deadlines.remove(&family);
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
