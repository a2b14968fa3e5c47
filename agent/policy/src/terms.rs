//! What rules name, and what they allow, by numbers.
//!
//! A *term* is a peer that some rule in force here names. An address has a *mark* of each term that it fits, and the set of
//! its marks is its group. What a direction of a pod allows is a list of terms with ports; pods that are allowed the same
//! share it. Both sets never change: another set is another number. So what the maps say of a group and a list is written
//! when the younger of the two appears, and gone with the first that goes.

use std::{collections::BTreeMap, sync::Arc};

use ebpf_common::{GroupId, Port, Protocol, RuleKey, RulesId};
use hashbrown::{HashMap, HashSet};

use crate::objects::{Peer, Ports};

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct TermId(u64);

impl TermId {
    /// Of a term that is only looked at.
    pub(crate) const NONE: Self = Self(u64::MAX);
}

#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct Term {
    pub(crate) peer: Peer,
    /// Only of pods that have a port of this name, and then that port.
    pub(crate) port: Option<(Protocol, Box<str>)>,
}

/// A term that an address fits, with the number of the port that it names; 0 where it names none.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct Mark {
    pub(crate) term: TermId,
    pub(crate) port: u16,
}

/// What is allowed of a term, or of everybody.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct Allow<T = TermId> {
    pub(crate) term: Option<T>,
    pub(crate) what: What,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) enum What {
    Everything,
    Protocol(Protocol),
    /// The first and the last.
    Ports(Protocol, u16, u16),
    /// The port of the mark.
    Marked(Protocol),
}

impl What {
    /// `None` for a port that has yet to be found.
    pub(crate) fn of(ports: &Ports) -> Option<Self> {
        Some(match ports {
            Ports::Protocol(protocol) => Self::Protocol(*protocol),
            Ports::Numbers(protocol, first, last) => Self::Ports(*protocol, *first, *last),
            Ports::Named(..) => return None,
        })
    }
}

#[derive(Debug)]
pub(crate) struct InUse {
    pub(crate) term: Arc<Term>,
    /// Lists that have it.
    rules: HashSet<RulesId>,
    /// Groups that have it.
    groups: HashSet<GroupId>,
}

#[derive(Debug)]
struct Rules {
    allowed: Arc<[Allow]>,
    users: usize,
}

#[derive(Debug)]
struct Group {
    marks: Arc<[Mark]>,
    users: usize,
}

/// All terms, groups and lists in use, and what the maps say of them.
#[derive(Debug)]
pub(crate) struct Terms {
    by_id: BTreeMap<TermId, InUse>,
    ids: HashMap<Arc<Term>, TermId>,
    next_term: u64,
    rules: HashMap<RulesId, Rules>,
    rules_ids: HashMap<Arc<[Allow]>, RulesId>,
    groups: HashMap<GroupId, Group>,
    group_ids: HashMap<Arc<[Mark]>, GroupId>,
    next: u32,
    /// What of the rules in the maps is other than it was.
    pub(crate) changed: BTreeMap<RuleKey, bool>,
    pub(crate) begun: Vec<TermId>,
    pub(crate) ended: Vec<(TermId, Arc<Term>)>,
}

impl Terms {
    /// Ids begin at `first`, and come back only when all others were used.
    pub(crate) fn new(first: u32) -> Self {
        Self {
            by_id: BTreeMap::new(),
            ids: HashMap::new(),
            next_term: 0,
            rules: HashMap::new(),
            rules_ids: HashMap::new(),
            groups: HashMap::new(),
            group_ids: HashMap::new(),
            next: first,
            changed: BTreeMap::new(),
            begun: Vec::new(),
            ended: Vec::new(),
        }
    }

    pub(crate) fn get(&self, id: TermId) -> Option<&InUse> {
        self.by_id.get(&id)
    }

    pub(crate) fn id(&self, term: &Term) -> Option<TermId> {
        self.ids.get(term).copied()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (TermId, &Arc<Term>)> {
        self.by_id.iter().map(|(id, in_use)| (*id, &in_use.term))
    }

    pub(crate) fn group_count(&self) -> usize {
        self.groups.len()
    }

    pub(crate) fn rules_count(&self) -> usize {
        self.rules.len()
    }

    fn next_id(&mut self) -> u32 {
        loop {
            let id = self.next;
            self.next = self.next.wrapping_add(1);
            let is_used = self.groups.contains_key(&GroupId(id)) || self.rules.contains_key(&RulesId(id));
            if id != RulesId::NONE.0 && id != GroupId::EVERYBODY.0 && !is_used {
                return id;
            }
        }
    }

    /// The list that allows this. Terms that are new with it stand in [`Self::begun`].
    pub(crate) fn acquire_rules(&mut self, allowed: impl IntoIterator<Item = Allow<Term>>) -> RulesId {
        let mut by_id = Vec::new();
        for Allow { term, what } in allowed {
            by_id.push(Allow { term: term.map(|term| self.term(term)), what });
        }
        by_id.sort_unstable();
        let allowed: Arc<[Allow]> = by_id.into();
        if let Some(id) = self.rules_ids.get(&allowed) {
            if let Some(rules) = self.rules.get_mut(id) {
                rules.users += 1;
            }
            return *id;
        }
        let id = RulesId(self.next_id());
        self.rules_ids.insert(Arc::clone(&allowed), id);
        let mut groups: HashSet<GroupId> = HashSet::new();
        for term in allowed.iter().filter_map(|allow| allow.term) {
            if let Some(in_use) = self.by_id.get_mut(&term) {
                in_use.rules.insert(id);
                groups.extend(&in_use.groups);
            }
        }
        self.rules.insert(id, Rules { allowed, users: 1 });
        self.change_of_rules(id, groups, true);
        id
    }

    fn term(&mut self, term: Term) -> TermId {
        if let Some(id) = self.ids.get(&term) {
            return *id;
        }
        let id = TermId(self.next_term);
        self.next_term += 1;
        let term = Arc::new(term);
        self.ids.insert(Arc::clone(&term), id);
        self.by_id.insert(id, InUse { term, rules: HashSet::new(), groups: HashSet::new() });
        self.begun.push(id);
        id
    }

    /// Terms that no list has any more stand in [`Self::ended`].
    pub(crate) fn release_rules(&mut self, id: RulesId) {
        let Some(rules) = self.rules.get_mut(&id) else { return };
        rules.users -= 1;
        if rules.users > 0 {
            return;
        }
        let terms: HashSet<TermId> = rules.allowed.iter().filter_map(|allow| allow.term).collect();
        let of_term = |term: &TermId| self.by_id.get(term).map(|in_use| &in_use.groups);
        let groups: HashSet<GroupId> = terms.iter().filter_map(of_term).flatten().copied().collect();
        self.change_of_rules(id, groups, false);
        for term in terms {
            let Some(in_use) = self.by_id.get_mut(&term) else { continue };
            in_use.rules.remove(&id);
            if in_use.rules.is_empty() {
                self.ended.push((term, Arc::clone(&in_use.term)));
                self.ids.remove(&in_use.term);
                self.by_id.remove(&term);
            }
        }
        if let Some(gone) = self.rules.remove(&id) {
            self.rules_ids.remove(&gone.allowed);
        }
    }

    /// The group of these marks, which are in order; nobody's where there are none.
    pub(crate) fn acquire_group(&mut self, marks: &[Mark]) -> GroupId {
        if marks.is_empty() {
            return GroupId::UNKNOWN;
        }
        if let Some(id) = self.group_ids.get(marks) {
            if let Some(group) = self.groups.get_mut(id) {
                group.users += 1;
            }
            return *id;
        }
        let id = GroupId(self.next_id());
        let marks: Arc<[Mark]> = marks.into();
        self.group_ids.insert(Arc::clone(&marks), id);
        for mark in marks.iter() {
            if let Some(in_use) = self.by_id.get_mut(&mark.term) {
                in_use.groups.insert(id);
            }
        }
        self.groups.insert(id, Group { marks, users: 1 });
        self.change_of_group(id, true);
        id
    }

    pub(crate) fn release_group(&mut self, id: GroupId) {
        let Some(group) = self.groups.get_mut(&id) else { return };
        group.users -= 1;
        if group.users > 0 {
            return;
        }
        self.change_of_group(id, false);
        let Some(group) = self.groups.remove(&id) else { return };
        for mark in group.marks.iter() {
            if let Some(in_use) = self.by_id.get_mut(&mark.term) {
                in_use.groups.remove(&id);
            }
        }
        self.group_ids.remove(&group.marks);
    }

    fn change_of_group(&mut self, id: GroupId, is_there: bool) {
        let Some(group) = self.groups.get(&id) else { return };
        let of_mark = |mark: &Mark| self.by_id.get(&mark.term).map(|in_use| &in_use.rules);
        let rules: HashSet<RulesId> = group.marks.iter().filter_map(of_mark).flatten().copied().collect();
        let mut keys = Vec::new();
        for rules_id in rules {
            if let Some(rules) = self.rules.get(&rules_id) {
                keys.extend(keys_of(rules_id, &rules.allowed, id, &group.marks));
            }
        }
        self.changed.extend(keys.into_iter().map(|key| (key, is_there)));
    }

    fn change_of_rules(&mut self, id: RulesId, groups: HashSet<GroupId>, is_there: bool) {
        let Some(rules) = self.rules.get(&id) else { return };
        let mut keys = keys_of(id, &rules.allowed, GroupId::EVERYBODY, &[]);
        for group_id in groups {
            if let Some(group) = self.groups.get(&group_id) {
                keys.extend(keys_of(id, &rules.allowed, group_id, &group.marks));
            }
        }
        self.changed.extend(keys.into_iter().map(|key| (key, is_there)));
    }

    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.by_id.is_empty() && self.ids.is_empty() && self.rules.is_empty() && self.groups.is_empty()
    }
}

/// What stands in the maps for a list and a group, or for a list and everybody.
fn keys_of(rules: RulesId, allowed: &[Allow], group: GroupId, marks: &[Mark]) -> Vec<RuleKey> {
    let mut ports_by_protocol: BTreeMap<u8, Vec<(u16, u16)>> = BTreeMap::new();
    let mut add = |protocol: Protocol, first: u16, last: u16| {
        ports_by_protocol.entry(protocol.0).or_default().push((first, last));
    };
    for allow in allowed {
        let ports: &[Mark] = match allow.term {
            None if group == GroupId::EVERYBODY => &[],
            None => continue,
            Some(term) => {
                let first = marks.partition_point(|mark| mark.term < term);
                match marks.get(first..=first) {
                    Some(found) if found[0].term == term => found,
                    _ => continue,
                }
            }
        };
        match allow.what {
            What::Everything => return vec![RuleKey::everything(rules, group)],
            What::Protocol(protocol) => add(protocol, 0, u16::MAX),
            What::Ports(protocol, first, last) => add(protocol, first, last),
            What::Marked(protocol) => ports.iter().for_each(|mark| add(protocol, mark.port, mark.port)),
        }
    }
    let mut keys = Vec::new();
    for (protocol, ranges) in ports_by_protocol {
        let protocol = Protocol(protocol);
        for (first, last) in joined(ranges) {
            if first <= 1 && last == u16::MAX {
                keys.push(RuleKey::protocol(rules, group, protocol));
                continue;
            }
            let key = |(port, bits)| RuleKey::ports(rules, group, protocol, Port::new(port), bits);
            keys.extend(prefixes(first, last).map(key));
        }
    }
    keys
}

/// The same ports in the fewest ranges.
fn joined(mut ranges: Vec<(u16, u16)>) -> Vec<(u16, u16)> {
    ranges.sort_unstable();
    let mut joined: Vec<(u16, u16)> = Vec::new();
    for (first, last) in ranges {
        match joined.last_mut() {
            Some((_, end)) if u32::from(first) <= u32::from(*end) + 1 => *end = last.max(*end),
            _ => joined.push((first, last)),
        }
    }
    joined
}

/// The fewest prefixes that have these ports and no others, each by its first port and how many bits count.
pub(crate) fn prefixes(first: u16, last: u16) -> impl Iterator<Item = (u16, u8)> {
    let mut next = u32::from(first);
    let end = u32::from(last) + 1;
    std::iter::from_fn(move || {
        if next >= end {
            return None;
        }
        let mut size = 1_u32 << next.trailing_zeros().min(16);
        while next + size > end {
            size /= 2;
        }
        let prefix = (next as u16, 16 - size.trailing_zeros() as u8);
        next += size;
        Some(prefix)
    })
}
