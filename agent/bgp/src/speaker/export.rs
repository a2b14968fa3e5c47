//! Export groups: what peers that are alike have been sent, and the encoding of changes for all of them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use super::explain::Withheld;
use super::group::{Change, Group, Route};
use super::{Output, Peer, Speaker};
use crate::best_path::{self, LOCAL_PREF_DEFAULT};
use crate::config::NextHopMode;
use crate::link_local::without_link;
use crate::policy::{LocalKind, PeerType, Policy, RouteSource, Subject, Verdict};
use crate::prefix::{Families, Family, Prefix};
use crate::rib::{DestinationId, Learned, Path, Source};
use crate::session::Negotiated;
use crate::wire::attributes::community;
use crate::wire::update::{encode_end_of_rib, encode_reach, encode_withdraw};
use crate::wire::{self, Attributes, EncodeContext, Nlri, Refresh};

/// Peers with equal keys are sent the same octets.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct GroupKey {
    pub external: bool,
    pub local_asn: u32,
    pub route_reflector_client: bool,
    pub cluster_id: Ipv4Addr,
    pub families: Vec<Family>,
    pub encode: EncodeContext,
    /// Paths per destination at most, where they have identifiers.
    pub send_max: u8,
    pub policy: Arc<Policy>,
    pub next_hop: NextHopMode,
    /// Our own next hops: for IPv4 and for IPv6.
    pub own: [Option<IpAddr>; 2],
    /// The peers take IPv6 next hops in these (RFC 8950).
    pub extended_next_hop: Families,
    /// The peers know long stale routes (RFC 9494).
    pub long_lived: bool,
    pub graceful_shutdown: bool,
}

/// Destinations without paths that keep their numbers until there is time to forget them.
const VANISHED_MAX: usize = 1 << 18;

/// What the last path became: the next one of the same UPDATE becomes the same.
#[derive(Default)]
struct Memo {
    last: Option<(Arc<Learned>, Family, Option<Arc<Route>>)>,
}

impl Speaker {
    fn group_key(&self, address: IpAddr, peer: &Peer, negotiated: &Negotiated) -> GroupKey {
        let config = &peer.config;
        let over_ipv6 = address.is_ipv6() && negotiated.extended_next_hop.ipv4;
        let local = |ipv4: bool| config.local_address.filter(|local| local.is_ipv4() == ipv4);
        let own_v4 = local(true).or(self.config.next_hop_v4.map(IpAddr::V4));
        let own_v6 = local(false).or(self.config.next_hop_v6.map(IpAddr::V6));
        let add_path = !negotiated.encode.add_path.is_empty();
        GroupKey {
            external: negotiated.external,
            local_asn: peer.session.config().local_asn,
            route_reflector_client: config.route_reflector_client,
            cluster_id: config.cluster_id.unwrap_or(self.config.router_id),
            families: negotiated.families.clone(),
            encode: negotiated.encode,
            send_max: if add_path { config.add_path.send_max } else { 1 },
            policy: Arc::new(config.export.clone()),
            next_hop: config.next_hop,
            own: [if over_ipv6 { own_v6.or(own_v4) } else { own_v4 }, own_v6],
            extended_next_hop: negotiated.extended_next_hop,
            long_lived: !negotiated.long_lived.is_empty(),
            graceful_shutdown: config.graceful_shutdown,
        }
    }

    pub(super) fn join_group(&mut self, address: IpAddr, negotiated: &Negotiated) {
        let Some(peer) = self.peers.get(&address) else { return };
        let key = self.group_key(address, peer, negotiated);
        if let Some(peer) = self.peers.get_mut(&address) {
            peer.group = Some(key.clone());
        }
        if !self.groups.contains_key(&key) {
            let has_identifiers = !key.encode.add_path.is_empty();
            self.groups.insert(key.clone(), Group::new(has_identifiers, self.rib.ids().collect()));
            self.flush_groups();
        }
        if let Some(group) = self.groups.get_mut(&key) {
            group.members.insert(address, negotiated.connection);
        }
    }

    pub(super) fn leave_group(&mut self, address: IpAddr) {
        let Some(key) = self.peers.get_mut(&address).and_then(|peer| peer.group.take()) else { return };
        if let Some(group) = self.groups.get_mut(&key) {
            group.members.remove(&address);
            if group.members.is_empty() {
                self.groups.remove(&key);
            }
        }
    }

    /// Moves an established peer to the group that its configuration asks for now, and sends it the difference alone.
    pub(super) fn change_group(&mut self, address: IpAddr) {
        let Some(peer) = self.peers.get(&address) else { return };
        let Some(negotiated) = peer.session.negotiated().cloned() else { return };
        let Some(old) = peer.group.clone() else { return };
        if self.group_key(address, peer, &negotiated) == old {
            return;
        }
        self.decide();
        self.flush_groups();
        let sent = |speaker: &Speaker, key: &GroupKey| -> BTreeMap<Nlri, Arc<Route>> {
            let group = speaker.groups.get(key);
            group.into_iter().flat_map(|group| group.sent_to(address, &speaker.rib)).collect()
        };
        let before = sent(self, &old);
        self.leave_group(address);
        self.join_group(address, &negotiated);
        let Some(key) = self.peers.get(&address).and_then(|peer| peer.group.clone()) else { return };
        let after = sent(self, &key);
        let gone = before.keys().filter(|nlri| !after.contains_key(nlri));
        let mut changes: Vec<Change> = gone.map(|nlri| Change { nlri: *nlri, announce: None }).collect();
        for (nlri, route) in after {
            if before.get(&nlri).is_none_or(|before| before.attributes != route.attributes) {
                changes.push(Change { nlri, announce: Some(route) });
            }
        }
        self.send_to(address, encode(&changes, None, &key.encode));
    }

    /// Sends one peer all that its group has been sent.
    pub(super) fn resend(&mut self, address: IpAddr, family: Option<Family>) {
        let Some(key) = self.peers.get(&address).and_then(|peer| peer.group.clone()) else { return };
        let Some(group) = self.groups.get(&key) else { return };
        let changes: Vec<Change> = group
            .sent_to(address, &self.rib)
            .into_iter()
            .filter(|(nlri, _)| family.is_none_or(|family| nlri.prefix.family() == family))
            .map(|(nlri, route)| Change { nlri, announce: Some(route) })
            .collect();
        self.send_to(address, encode(&changes, None, &key.encode));
    }

    /// Answers a request for all of a family, between BoRR and EoRR where the peer knows them (RFC 7313).
    pub(super) fn send_again(&mut self, address: IpAddr, family: Family) {
        let Some(negotiated) = self.peers.get(&address).and_then(|peer| peer.session.negotiated()) else {
            return;
        };
        if !negotiated.families.contains(&family) {
            return;
        }
        let enhanced = negotiated.enhanced_route_refresh;
        self.decide();
        self.flush_groups();
        let mark = |kind| if enhanced { vec![wire::encode_route_refresh(family, kind)] } else { Vec::new() };
        self.send_to(address, mark(Refresh::Begin));
        self.resend(address, Some(family));
        self.send_to(address, mark(Refresh::End));
    }

    fn send_to(&mut self, address: IpAddr, messages: Vec<Arc<[u8]>>) {
        let Some(peer) = self.peers.get_mut(&address) else { return };
        let Some(id) = peer.session.negotiated().map(|negotiated| negotiated.connection) else { return };
        peer.session.messages_sent += messages.len() as u64;
        self.outputs.extend(messages.into_iter().map(|message| Output::Send { id, message }));
    }

    pub(super) fn send_end_of_rib(&mut self, address: IpAddr) {
        let Some(peer) = self.peers.get_mut(&address) else { return };
        peer.end_of_rib_owed = false;
        let Some(negotiated) = peer.session.negotiated() else { return };
        let messages = negotiated.families.iter().map(|family| encode_end_of_rib(*family)).collect();
        self.send_to(address, messages);
    }

    pub(super) fn count_advertised(&self, address: IpAddr, peer: &Peer) -> usize {
        let group = peer.group.as_ref().and_then(|key| self.groups.get(key));
        group.map_or(0, |group| group.count_sent_to(address))
    }

    /// What a peer has been sent of a destination: the attributes as they travel. With path identifiers there may be several.
    pub fn advertised_to(&self, address: IpAddr, prefix: Prefix) -> Vec<Arc<Attributes>> {
        let key = self.peers.get(&address).and_then(|peer| peer.group.as_ref());
        let group = key.and_then(|key| self.groups.get(key));
        group
            .zip(self.rib.find(prefix))
            .into_iter()
            .flat_map(|(group, id)| group.of(id))
            .filter(|(_, route)| route.source != Source::Peer(address))
            .map(|(_, route)| route.attributes.clone())
            .collect()
    }

    /// Encodes each group's pending changes once and sends them to its members.
    pub(super) fn flush_groups(&mut self) {
        let keys: Vec<GroupKey> =
            self.groups.iter().filter(|(_, g)| !g.pending.is_empty()).map(|(key, _)| key.clone()).collect();
        for key in keys {
            let Some(mut group) = self.groups.remove(&key) else { continue };
            let mut changes = Vec::new();
            let mut memo = Memo::default();
            for id in std::mem::take(&mut group.pending) {
                let prefix = self.rib.prefix_at(id);
                if key.encode.add_path.contains(prefix.family()) {
                    group.set_several((id, prefix), self.export_several(id, &key), &mut changes);
                } else {
                    group.set_best((id, prefix), self.export_best(id, &key, &mut memo), &mut changes);
                }
            }
            self.send_changes(&key, &group, &changes);
            self.groups.insert(key, group);
        }
        if self.rib.vanished() > VANISHED_MAX {
            self.rib.forget_vanished();
        }
    }

    /// Gives back the memory of what is gone. For moments in which there is nothing else to do.
    pub fn tidy(&mut self) {
        self.decide();
        self.flush_groups();
        self.rib.forget_vanished();
        for group in self.groups.values_mut() {
            group.shrink(self.rib.numbers().len());
        }
    }

    fn send_changes(&mut self, key: &GroupKey, group: &Group, changes: &[Change]) {
        if changes.is_empty() || group.members.is_empty() {
            return;
        }
        let mut sources: BTreeSet<Source> = BTreeSet::new();
        let mut last = None;
        for source in changes.iter().filter_map(|change| Some(change.announce.as_ref()?.source)) {
            if last.replace(source) != Some(source) {
                sources.insert(source);
            }
        }
        let shared = encode(changes, None, &key.encode);
        for (address, id) in &group.members {
            let source = Source::Peer(*address);
            let own;
            let messages = if sources.contains(&source) {
                own = encode(changes, Some(source), &key.encode);
                &own
            } else {
                &shared
            };
            if let Some(peer) = self.peers.get_mut(address) {
                peer.session.messages_sent += messages.len() as u64;
            }
            self.outputs
                .extend(messages.iter().map(|message| Output::Send { id: *id, message: message.clone() }));
        }
    }

    /// The route that a group is to have for a destination.
    fn export_best(&mut self, id: DestinationId, key: &GroupKey, memo: &mut Memo) -> Option<Arc<Route>> {
        let prefix = self.rib.prefix_at(id);
        let family = prefix.family();
        if !key.families.contains(&family) {
            return None;
        }
        let path = best_path::best(self.rib.paths_at(id))?;
        if let Some((learned, of, route)) = &memo.last
            && Arc::ptr_eq(learned, path.learned())
            && *of == family
            && key.policy.is_transparent()
        {
            return route.clone();
        }
        let path = path.clone();
        let attributes = self.export_attributes(prefix, &path, key).ok();
        let route = attributes.map(|attributes| {
            let attributes = self.rib.intern(attributes);
            let before = memo.last.take().and_then(|(.., route)| route);
            before
                .filter(|before| before.source == path.source && Arc::ptr_eq(&before.attributes, &attributes))
                .unwrap_or_else(|| Arc::new(Route { source: path.source, attributes }))
        });
        memo.last = Some((path.learned().clone(), family, route.clone()));
        route
    }

    /// The routes that a group with identifiers is to have for a destination.
    fn export_several(&mut self, id: DestinationId, key: &GroupKey) -> Vec<(u32, Arc<Route>)> {
        let prefix = self.rib.prefix_at(id);
        if !key.families.contains(&prefix.family()) {
            return Vec::new();
        }
        let ranked = best_path::ranked(self.rib.paths_at(id));
        let paths: Vec<Path> = ranked.into_iter().take(usize::from(key.send_max)).cloned().collect();
        let mut routes = Vec::with_capacity(paths.len());
        for path in paths {
            if let Ok(attributes) = self.export_attributes(prefix, &path, key) {
                let attributes = self.rib.intern(attributes);
                routes.push((path.local_id, Arc::new(Route { source: path.source, attributes })));
            }
        }
        routes
    }

    pub(super) fn export_attributes(
        &self,
        prefix: Prefix,
        path: &Path,
        key: &GroupKey,
    ) -> Result<Attributes, Withheld> {
        let mut attributes = (*path.attributes).clone();
        let says = |community: u32| attributes.communities.contains(&community);
        let inside = says(community::NO_EXPORT) || says(community::NO_EXPORT_SUBCONFED);
        if says(community::NO_ADVERTISE) {
            return Err(Withheld::NoAdvertise);
        }
        if key.external && inside {
            return Err(Withheld::NoExport);
        }
        // RFC 9494 section 4.3: who does not know that it is stale would take it for a good route.
        if path.long_stale() && !key.long_lived {
            return Err(Withheld::LongStale);
        }
        let internal_source = path.source != Source::Local && !path.external;
        if internal_source
            && !key.external
            && !key.route_reflector_client
            && !self.is_from_client(path.source)
        {
            return Err(Withheld::Internal);
        }
        if key.external && path.source != Source::Local {
            attributes.med = None;
        }
        let attributes = self.export_policy(prefix, path, key, attributes)?;
        let attributes = self.export_mechanics(path, key, attributes, internal_source);
        self.with_next_hop(prefix, path, key, attributes, internal_source)
            .ok_or(Withheld::NoNextHop(prefix.family()))
    }

    /// RFC 4456: between internal peers routes pass only where one side is a client.
    fn is_from_client(&self, source: Source) -> bool {
        match source {
            Source::Peer(peer) => {
                self.peers.get(&peer).is_some_and(|peer| peer.config.route_reflector_client)
            }
            Source::Local => false,
        }
    }

    fn export_policy(
        &self,
        prefix: Prefix,
        path: &Path,
        key: &GroupKey,
        attributes: Attributes,
    ) -> Result<Attributes, Withheld> {
        if key.policy.is_transparent() {
            return Ok(attributes);
        }
        let local = self.local.get(&prefix).filter(|_| path.source == Source::Local);
        let (source, interface) = match path.source {
            Source::Local => {
                let kind = local.map_or_else(LocalKind::default, |route| route.kind);
                (RouteSource::Local(kind), local.and_then(|route| route.interface.as_deref()))
            }
            Source::Peer(peer) => {
                let peer = self.peers.get(&peer);
                let interface = peer.and_then(|peer| peer.config.interface.as_deref());
                (RouteSource::Peer(PeerType::of(path.external)), interface)
            }
        };
        let subject = Subject { prefix, source, peer_type: PeerType::of(key.external), interface };
        let outcome = key.policy.evaluate(&subject, &attributes);
        if outcome.verdict == Verdict::Accept {
            return Ok(outcome.attributes.into_owned());
        }
        let rule = outcome.rule.and_then(|index| key.policy.rules.get(index));
        Err(Withheld::Policy { rule: rule.map(|rule| Arc::clone(&rule.name)) })
    }

    /// What the protocol says of each attribute, after the policy.
    fn export_mechanics(
        &self,
        path: &Path,
        key: &GroupKey,
        mut attributes: Attributes,
        internal_source: bool,
    ) -> Attributes {
        if key.graceful_shutdown && !attributes.communities.contains(&community::GRACEFUL_SHUTDOWN) {
            attributes.communities.push(community::GRACEFUL_SHUTDOWN);
        }
        if key.external {
            attributes.prepend(key.local_asn);
            attributes.local_pref = None;
            attributes.originator_id = None;
            attributes.cluster_list.clear();
            attributes.retain_transitive_communities();
            return attributes;
        }
        if internal_source {
            attributes.originator_id.get_or_insert(path.router_id);
            attributes.cluster_list.insert(0, key.cluster_id);
        }
        if key.graceful_shutdown {
            attributes.local_pref = Some(0);
        }
        attributes.local_pref.get_or_insert(LOCAL_PREF_DEFAULT);
        attributes
    }

    /// `None`: there is no next hop that the peer could use.
    fn with_next_hop(
        &self,
        prefix: Prefix,
        path: &Path,
        key: &GroupKey,
        mut attributes: Attributes,
        internal_source: bool,
    ) -> Option<Attributes> {
        let family = prefix.family();
        let own = match family {
            Family::Ipv4 => key.own[0],
            Family::Ipv6 => key.own[1],
        };
        let kept = match key.next_hop {
            NextHopMode::Auto => internal_source && !key.external,
            NextHopMode::SelfAddress => false,
            NextHopMode::Keep => true,
        };
        // A link-local one means nothing to who is not on its link.
        let is_elsewhere = without_link(attributes.next_hop).1.is_some();
        if !kept || is_elsewhere || path.source == Source::Local {
            attributes.next_hop = own?;
        }
        let of_family = Family::of(attributes.next_hop) == family;
        let sendable = of_family || family == Family::Ipv4 && key.extended_next_hop.ipv4;
        sendable.then_some(attributes)
    }
}

/// Packs changes: withdrawals by family, announcements by attributes and family. `except` gets a
/// withdrawal instead of a route that came from it.
fn encode(changes: &[Change], except: Option<Source>, context: &EncodeContext) -> Vec<Arc<[u8]>> {
    let mut withdrawn: [Vec<Nlri>; 2] = [Vec::new(), Vec::new()];
    let mut order: Vec<(Arc<Attributes>, Vec<Nlri>)> = Vec::new();
    let mut index: HashMap<(*const Attributes, Family), usize> = HashMap::new();
    let mut last = None;
    for change in changes {
        let family = change.nlri.prefix.family();
        match &change.announce {
            Some(route) if except != Some(route.source) => {
                let key = (Arc::as_ptr(&route.attributes), family);
                let at = match last {
                    Some((before, at)) if before == key => at,
                    _ => *index.entry(key).or_insert_with(|| {
                        order.push((route.attributes.clone(), Vec::new()));
                        order.len() - 1
                    }),
                };
                last = Some((key, at));
                order[at].1.push(change.nlri);
            }
            Some(_) | None => withdrawn[usize::from(family == Family::Ipv6)].push(change.nlri),
        }
    }
    let mut messages = Vec::new();
    for prefixes in &withdrawn {
        messages.extend(encode_withdraw(prefixes, context));
    }
    for (attributes, prefixes) in &order {
        messages.extend(encode_reach(attributes, prefixes, context));
    }
    messages
}
