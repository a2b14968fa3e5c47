//! What a peer sends, on its way into the RIB: loops, next hops, policy, limits.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Instant;

use super::Speaker;
use crate::link_local::{lacks_link, with_link, without_link};
use crate::policy::{PeerType, RouteSource, Subject, Verdict};
use crate::prefix::{Families, Family, Prefix};
use crate::rib::{Learned, Path, Rejected, Source};
use crate::session;
use crate::wire::attributes::community;
use crate::wire::notification::{CEASE, cease};
use crate::wire::update::Reach;
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
        let families: Families = negotiated.families.iter().copied().collect();
        for nlri in &update.withdrawn {
            self.rib.remove(nlri.prefix, source, nlri.path_id);
        }
        for reach in update.reach {
            let next_hop = next_hop_from(address, &reach);
            let attributes = Attributes { next_hop, ..update.attributes.clone() };
            let received = self.rib.intern(attributes);
            let (attributes, rejected) = self.import_common(address, &received, external);
            let common = Arc::new(Learned { source, received, attributes, rejected, router_id, external });
            let alike = common.rejected.is_some() || self.takes_all(address);
            let mut last = common.clone();
            for nlri in reach.prefixes.iter().filter(|nlri| families.contains(nlri.prefix.family())) {
                if !alike {
                    last = self.import(address, nlri.prefix, &common, last);
                }
                self.rib.insert(nlri.prefix, Path::of(last.clone(), nlri.path_id));
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
            let (attributes, rejected) = self.import_common(address, &path.received, path.external);
            let common = Arc::new(Learned { attributes, rejected, ..(**path.learned()).clone() });
            let mut learned = self.import(address, prefix, &common, path.learned().clone());
            if path.long_stale() {
                let attributes = self.mark_long_stale(&learned.attributes);
                learned = Arc::new(Learned { attributes, ..(*learned).clone() });
            }
            self.rib.insert(prefix, path.with(learned));
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

    fn takes_all(&self, address: IpAddr) -> bool {
        self.peers.get(&address).is_some_and(|peer| peer.config.import.is_transparent())
    }

    /// What becomes of one route of a peer: `last` again, where nothing is other than there.
    fn import(
        &mut self,
        address: IpAddr,
        prefix: Prefix,
        common: &Arc<Learned>,
        last: Arc<Learned>,
    ) -> Arc<Learned> {
        let Some(peer) = self.peers.get(&address) else { return common.clone() };
        if common.rejected.is_some() || peer.config.import.is_transparent() {
            return if last == *common { last } else { common.clone() };
        }
        let peer_type = PeerType::of(common.external);
        let interface = peer.config.interface.as_deref();
        let subject = Subject { prefix, source: RouteSource::Peer(peer_type), peer_type, interface };
        let outcome = peer.config.import.evaluate(&subject, &common.attributes);
        let (attributes, rejected) = if outcome.verdict == Verdict::Reject {
            let rule = outcome.rule.map(|rule| u16::try_from(rule).unwrap_or(u16::MAX));
            (common.received.clone(), Some(Rejected::Policy(rule)))
        } else {
            match outcome.attributes {
                std::borrow::Cow::Borrowed(_) => (common.attributes.clone(), None),
                std::borrow::Cow::Owned(changed) => (self.rib.intern(changed), None),
            }
        };
        let learned = Learned { attributes, rejected, ..(**common).clone() };
        if *last == learned { last } else { Arc::new(learned) }
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
        let bad = next_hop.is_unspecified()
            || next_hop.is_multicast()
            || next_hop.is_loopback()
            || lacks_link(next_hop);
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
        self.timer_set(address);
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
            self.finish_reunion(now);
        }
    }
}

/// Where a peer wants packets sent to. One that is reached by its link-local address is on our link: that address of it leads
/// there whatever else is said, and a global one may not (RFC 2545 section 3).
fn next_hop_from(peer: IpAddr, reach: &Reach) -> IpAddr {
    let Some(link) = without_link(peer).1 else { return reach.next_hop };
    let next_hop = reach.link_local.map_or(reach.next_hop, IpAddr::V6);
    with_link(next_hop, link)
}
