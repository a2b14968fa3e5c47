//! Export groups: what peers that are alike have been sent, and the encoding of changes for all of them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use super::{MULTIPATH_MAX, Output, Speaker};
use crate::best_path::LOCAL_PREF_DEFAULT;
use crate::prefix::{Family, Prefix};
use crate::rib::{Path, Source};
use crate::session::{ConnectionId, Negotiated};
use crate::wire::update::{encode_end_of_rib, encode_reach, encode_withdraw};
use crate::wire::{Attributes, EncodeContext};

/// Peers with equal keys are sent the same octets.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct GroupKey {
    pub external: bool,
    pub route_reflector_client: bool,
    pub families: Vec<Family>,
    pub encode: EncodeContext,
}

#[derive(Debug, Default)]
pub(super) struct Group {
    pub(super) members: BTreeMap<IpAddr, ConnectionId>,
    /// The Adj-RIB-Out, with the source of each route: it is not sent back there.
    advertised: BTreeMap<Prefix, (Source, Arc<Attributes>)>,
    pub(super) pending: BTreeSet<Prefix>,
}

/// One destination to announce, or to withdraw.
struct Change {
    prefix: Prefix,
    announce: Option<(Source, Arc<Attributes>)>,
}

impl Speaker {
    pub(super) fn join_group(&mut self, address: IpAddr, negotiated: &Negotiated) {
        let Some(peer) = self.peers.get_mut(&address) else { return };
        let key = GroupKey {
            external: negotiated.external,
            route_reflector_client: peer.config.route_reflector_client,
            families: negotiated.families.clone(),
            encode: negotiated.encode,
        };
        peer.group = Some(key.clone());
        if !self.groups.contains_key(&key) {
            let pending = self.rib.destinations().map(|(prefix, _)| *prefix).collect();
            self.groups.insert(key.clone(), Group { pending, ..Group::default() });
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

    /// Sends one peer all that its group has been sent.
    pub(super) fn resend(&mut self, address: IpAddr, family: Option<Family>) {
        let Some(key) = self.peers.get(&address).and_then(|peer| peer.group.clone()) else { return };
        let Some(group) = self.groups.get(&key) else { return };
        let Some(id) = group.members.get(&address).copied() else { return };
        let changes: Vec<Change> = group
            .advertised
            .iter()
            .filter(|(prefix, (source, _))| {
                *source != Source::Peer(address) && family.is_none_or(|family| prefix.family() == family)
            })
            .map(|(prefix, route)| Change { prefix: *prefix, announce: Some(route.clone()) })
            .collect();
        let messages = encode(&changes, None, &key.encode);
        self.count_sent(address, messages.len());
        self.outputs.extend(messages.into_iter().map(|message| Output::Send { id, message }));
    }

    pub(super) fn send_end_of_rib(&mut self, address: IpAddr) {
        let Some(peer) = self.peers.get_mut(&address) else { return };
        peer.end_of_rib_owed = false;
        let Some(negotiated) = peer.session.negotiated() else { return };
        let id = negotiated.connection;
        let messages: Vec<Arc<[u8]>> =
            negotiated.families.iter().map(|family| encode_end_of_rib(*family)).collect();
        self.count_sent(address, messages.len());
        self.outputs.extend(messages.into_iter().map(|message| Output::Send { id, message }));
    }

    /// Encodes each group's pending changes once and sends them to its members.
    pub(super) fn flush_groups(&mut self) {
        let keys: Vec<GroupKey> =
            self.groups.iter().filter(|(_, g)| !g.pending.is_empty()).map(|(key, _)| key.clone()).collect();
        for key in keys {
            let Some(mut group) = self.groups.remove(&key) else { continue };
            let mut changes = Vec::new();
            for prefix in std::mem::take(&mut group.pending) {
                let wanted = self.export(prefix, &key);
                let before = group.advertised.get(&prefix);
                match wanted {
                    Some(route) if before != Some(&route) => {
                        // Where the source moved to a member, that member must lose the old route.
                        group.advertised.insert(prefix, route.clone());
                        changes.push(Change { prefix, announce: Some(route) });
                    }
                    None if before.is_some() => {
                        group.advertised.remove(&prefix);
                        changes.push(Change { prefix, announce: None });
                    }
                    Some(_) | None => {}
                }
            }
            self.send_changes(&key, &group, &changes);
            self.groups.insert(key, group);
        }
    }

    fn send_changes(&mut self, key: &GroupKey, group: &Group, changes: &[Change]) {
        if changes.is_empty() {
            return;
        }
        let sources: BTreeSet<Source> =
            changes.iter().filter_map(|change| change.announce.as_ref().map(|(source, _)| *source)).collect();
        let shared = encode(changes, None, &key.encode);
        for (address, id) in &group.members {
            let source = Source::Peer(*address);
            let messages = if sources.contains(&source) {
                encode(changes, Some(source), &key.encode)
            } else {
                shared.clone()
            };
            self.count_sent(*address, messages.len());
            self.outputs.extend(messages.into_iter().map(|message| Output::Send { id: *id, message }));
        }
    }

    fn count_sent(&mut self, address: IpAddr, messages: usize) {
        if let Some(peer) = self.peers.get_mut(&address) {
            peer.session.messages_sent += messages as u64;
        }
    }

    /// The route a group is to have for a destination.
    fn export(&mut self, prefix: Prefix, key: &GroupKey) -> Option<(Source, Arc<Attributes>)> {
        if !key.families.contains(&prefix.family()) {
            return None;
        }
        let best = self.rib.select(prefix, MULTIPATH_MAX)?.best.clone();
        let own = match prefix.family() {
            Family::Ipv4 => self.config.next_hop_v4.map(IpAddr::V4),
            Family::Ipv6 => self.config.next_hop_v6.map(IpAddr::V6),
        }?;
        let attributes = self.export_attributes(&best, key, own)?;
        Some((best.source, self.rib.intern(attributes)))
    }

    fn export_attributes(&self, best: &Path, key: &GroupKey, own: IpAddr) -> Option<Attributes> {
        let mut attributes = (*best.attributes).clone();
        let internal_source = best.source != Source::Local && !best.external;
        if key.external {
            // Well-known communities of RFC 1997: NO_EXPORT and NO_ADVERTISE.
            if attributes.communities.iter().any(|c| matches!(*c, 0xffff_ff01 | 0xffff_ff02)) {
                return None;
            }
            attributes.prepend(self.config.asn);
            attributes.next_hop = own;
            attributes.local_pref = None;
            attributes.originator_id = None;
            attributes.cluster_list.clear();
            if best.source != Source::Local {
                attributes.med = None;
            }
            return Some(attributes);
        }
        if attributes.communities.contains(&0xffff_ff02) {
            return None;
        }
        if internal_source {
            // RFC 4456: between internal peers only where one side is a client.
            let from_client = match best.source {
                Source::Peer(peer) => {
                    self.peers.get(&peer).is_some_and(|peer| peer.config.route_reflector_client)
                }
                Source::Local => false,
            };
            if !from_client && !key.route_reflector_client {
                return None;
            }
            attributes.originator_id.get_or_insert(best.router_id);
            attributes.cluster_list.insert(0, self.config.router_id);
        } else {
            attributes.next_hop = own;
        }
        attributes.local_pref.get_or_insert(LOCAL_PREF_DEFAULT);
        Some(attributes)
    }
}

/// Packs changes: withdrawals by family, announcements by attributes and family. `except` gets a
/// withdrawal instead of a route that came from it.
fn encode(changes: &[Change], except: Option<Source>, context: &EncodeContext) -> Vec<Arc<[u8]>> {
    let mut withdrawn: BTreeMap<Family, Vec<Prefix>> = BTreeMap::new();
    let mut order: Vec<(Arc<Attributes>, Vec<Prefix>)> = Vec::new();
    let mut index: HashMap<(*const Attributes, Family), usize> = HashMap::new();
    for change in changes {
        let family = change.prefix.family();
        match &change.announce {
            Some((source, attributes)) if except != Some(*source) => {
                let key = (Arc::as_ptr(attributes), family);
                let at = *index.entry(key).or_insert_with(|| {
                    order.push((attributes.clone(), Vec::new()));
                    order.len() - 1
                });
                order[at].1.push(change.prefix);
            }
            Some(_) | None => withdrawn.entry(family).or_default().push(change.prefix),
        }
    }
    let mut messages = Vec::new();
    for prefixes in withdrawn.values() {
        messages.extend(encode_withdraw(prefixes, context));
    }
    for (attributes, prefixes) in &order {
        messages.extend(encode_reach(attributes, prefixes, context));
    }
    messages
}
