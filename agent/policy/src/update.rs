//! From facts that changed to what of the maps is other.

use std::collections::{BTreeMap, BTreeSet};

use ebpf_common::{
    Address, GroupId, Policed, Prefix, RulesId,
    desired::{Policies, PolicyChanges},
};

use crate::{
    Local, PodName, Policer,
    blocks::{Blocks, Range},
    identities::{NamedPort, named},
    objects::{Peer, Policy, Ports, Rule},
    selector::Labels,
    terms::{Allow, Mark, Term, TermId, What},
};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Direction {
    Ingress,
    Egress,
}

impl Direction {
    pub(crate) fn rules(self, policy: &Policy) -> Option<&[Rule]> {
        match self {
            Self::Ingress => policy.ingress.as_deref(),
            Self::Egress => policy.egress.as_deref(),
        }
    }
}

impl Policer {
    /// What the maps shall say, as of the last update.
    pub fn policies(&self) -> &Policies {
        &self.told
    }

    /// Carries out what changed since the last time, and says what that is to the maps.
    pub fn update(&mut self) -> PolicyChanges {
        let pods = self.update_pods();
        for (term, of) in std::mem::take(&mut self.terms.ended) {
            self.are_blocks_due |= matches!(of.peer, Peer::Block(_));
            let unmarked = self.identities.end(term, &of);
            self.addresses_are_due(unmarked);
        }
        let mut due: BTreeSet<Range> = BTreeSet::new();
        if std::mem::take(&mut self.are_blocks_due) {
            due.extend(self.blocks.ranges());
            self.blocks = Blocks::new(self.terms.iter().filter_map(|(id, term)| match &term.peer {
                Peer::Block(block) => Some((id, block)),
                Peer::Pods { .. } => None,
            }));
            due.extend(self.blocks.ranges());
            due.extend(self.claims.keys().map(|address| Range::of(*address)));
        }
        due.extend(self.due_addresses.drain().map(Range::of));
        let peers = self.update_peers(due);
        let mut rules = Vec::new();
        for (key, is_there) in std::mem::take(&mut self.terms.changed) {
            let changed = if is_there { self.told.rules.insert(key) } else { self.told.rules.remove(&key) };
            if changed {
                rules.push((key, is_there));
            }
        }
        PolicyChanges { peers, rules, pods }
    }

    fn update_pods(&mut self) -> Vec<(Address, Option<Policed>)> {
        let mut addresses: BTreeMap<Address, Option<Policed>> = BTreeMap::new();
        let mut isolated: Vec<(Address, Policed)> = Vec::new();
        let mut released = Vec::new();
        for name in std::mem::take(&mut self.due_pods) {
            let policed = self.policed(&name);
            let Some(local) = self.local.get_mut(&name) else { continue };
            addresses.extend(local.told.iter().map(|address| (*address, None)));
            released.push(std::mem::replace(&mut local.policed, policed));
            local.told = if policed.is_isolated() { local.addresses.clone() } else { Box::default() };
            isolated.extend(local.told.iter().map(|address| (*address, policed)));
            if local.addresses.is_empty() {
                self.local.remove(&name);
            }
        }
        // Only now, so that what others have too is not made anew.
        for Policed { ingress, egress } in released {
            [ingress, egress].into_iter().for_each(|id| self.terms.release_rules(id));
        }
        let begun = std::mem::take(&mut self.terms.begun);
        for id in begun {
            let Some(term) = self.terms.get(id).map(|in_use| in_use.term.clone()) else { continue };
            self.are_blocks_due |= matches!(term.peer, Peer::Block(_));
            let marked = self.identities.begin(id, &term, &self.namespaces);
            self.addresses_are_due(marked);
        }
        addresses.extend(isolated.into_iter().map(|(address, policed)| (address, Some(policed))));
        addresses.retain(|address, policed| match policed {
            Some(policed) => self.told.pods.insert(*address, *policed) != Some(*policed),
            None => self.told.pods.remove(address).is_some(),
        });
        addresses.into_iter().collect()
    }

    /// How a pod is isolated from now on; its lists are acquired.
    fn policed(&mut self, name: &PodName) -> Policed {
        let attached = self.local.get(name).is_some_and(|local: &Local| !local.addresses.is_empty());
        if !attached || !self.has_policies(&name.0) {
            return Policed::default();
        }
        let mut of = |direction| match self.allowed(name, direction) {
            None => RulesId::NONE,
            Some(allowed) => self.terms.acquire_rules(allowed),
        };
        Policed { ingress: of(Direction::Ingress), egress: of(Direction::Egress) }
    }

    /// The policies that select a pod. One of which nothing is known has no labels.
    pub(crate) fn selecting(&self, namespace: &str, pod: &str) -> impl Iterator<Item = (&str, &Policy)> {
        let here = self.namespaces.0.get(namespace);
        let known = self.namespaces.pod(namespace, pod).and_then(|known| self.identities.get(known.identity));
        let nothing = Labels::default();
        let labels = known.map_or(nothing, |known| known.identity.labels.clone());
        let policies = here.into_iter().flat_map(|here| &here.policies);
        policies
            .filter(move |(_, policy)| policy.pods.matches(&labels))
            .map(|(name, policy)| (&**name, policy))
    }

    /// `None` where the pod is not isolated.
    fn allowed(
        &self,
        PodName(namespace, pod): &PodName,
        direction: Direction,
    ) -> Option<BTreeSet<Allow<Term>>> {
        let known = self.namespaces.pod(namespace, pod).and_then(|known| self.identities.get(known.identity));
        let ports = known.map_or(&[][..], |known| &known.identity.ports);
        let mut isolated = None;
        for rules in self.selecting(namespace, pod).filter_map(|(_, policy)| direction.rules(policy)) {
            let allowed: &mut BTreeSet<Allow<Term>> = isolated.get_or_insert_default();
            for rule in rules {
                allow(allowed, rule, direction, ports);
            }
        }
        let everything = Allow { term: None, what: What::Everything };
        isolated.map(|allowed| match allowed.contains(&everything) {
            true => BTreeSet::from([everything]),
            false => allowed,
        })
    }

    fn update_peers(&mut self, due: BTreeSet<Range>) -> Vec<(Prefix, Option<GroupId>)> {
        let mut changes = Vec::new();
        let mut released = Vec::new();
        for range in due {
            let prefix = range.prefix();
            let group = self.marks_of(&range).map(|marks| self.terms.acquire_group(&marks));
            let before = match group {
                Some(group) => self.told.peers.insert(prefix, group),
                None => self.told.peers.remove(&prefix),
            };
            released.extend(before);
            if before != group {
                changes.push((prefix, group));
            }
        }
        released.into_iter().for_each(|group| self.terms.release_group(group));
        changes
    }

    /// What a range stands for; `None` where it need not stand.
    fn marks_of(&self, range: &Range) -> Option<Vec<Mark>> {
        let in_range = self.blocks.get(range);
        let of_range = |blocks: &[TermId]| -> Vec<Mark> {
            let unnamed =
                blocks.iter().filter(|id| self.terms.get(**id).is_some_and(|it| it.term.port.is_none()));
            unnamed.map(|id| Mark { term: *id, port: 0 }).collect()
        };
        let of_pod = range.single().and_then(|address| {
            let owner = self.identities.get(self.claims.get(&address)?.owner()?)?;
            let around = self.blocks.around(address);
            let mut marks = owner.marks.clone();
            let mark = |id: &TermId| owner.identity.marked(*id, &self.terms.get(*id)?.term);
            marks.extend(around.iter().filter_map(mark));
            marks.sort_unstable();
            // Else the range that it is in says the same.
            (marks != of_range(around)).then_some(marks)
        });
        of_pod.or_else(|| {
            let in_range = in_range?;
            let marks = of_range(&in_range.blocks);
            (!marks.is_empty() || in_range.is_enclosed).then_some(marks)
        })
    }
}

/// What a rule allows, beside what is allowed already.
fn allow(allowed: &mut BTreeSet<Allow<Term>>, rule: &Rule, direction: Direction, ports: &[NamedPort]) {
    let mut add = |port: Option<&(ebpf_common::Protocol, Box<str>)>, what: What| match (&rule.peers, port) {
        (None, None) => drop(allowed.insert(Allow { term: None, what })),
        (None, Some(port)) => {
            let term = Term { peer: Peer::all_pods(), port: Some(port.clone()) };
            allowed.insert(Allow { term: Some(term), what });
        }
        (Some(peers), port) => allowed.extend(peers.iter().map(|peer| {
            let term = Term { peer: peer.clone(), port: port.cloned() };
            Allow { term: Some(term), what }
        })),
    };
    let Some(of_rule) = &rule.ports else { return add(None, What::Everything) };
    for port in of_rule {
        match (What::of(port), port) {
            (Some(what), _) => add(None, what),
            (None, Ports::Named(protocol, name)) if direction == Direction::Ingress => {
                if let Some(number) = named(ports, *protocol, name) {
                    add(None, What::Ports(*protocol, number, number));
                }
            }
            (None, Ports::Named(protocol, name)) => {
                add(Some(&(*protocol, name.clone())), What::Marked(*protocol));
            }
            (None, _) => {}
        }
    }
}
