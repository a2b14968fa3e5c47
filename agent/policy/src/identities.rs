//! Pods that no selector tells apart are one identity: what a term costs is by identities and not by pods, and a pod like
//! others costs a look-up.

use std::{
    hash::{BuildHasher, RandomState},
    sync::Arc,
};

use ebpf_common::{Address, Protocol};
use hashbrown::{HashMap, HashSet};

use crate::{
    Namespaces,
    objects::{Peer, Scope},
    selector::Labels,
    terms::{Mark, Term, TermId, Terms},
};

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct IdentityId(u64);

/// A port of a container that has a name.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct NamedPort {
    pub name: Box<str>,
    pub protocol: Protocol,
    pub number: u16,
}

/// All that selectors look at.
#[derive(PartialEq, Eq, Hash, Debug)]
pub(crate) struct Identity {
    pub(crate) namespace: Arc<str>,
    pub(crate) labels: Labels,
    /// As the pod names them; of two alike, the first is meant.
    pub(crate) ports: Box<[NamedPort]>,
}

impl Identity {
    pub(crate) fn port(&self, protocol: Protocol, name: &str) -> Option<u16> {
        named(&self.ports, protocol, name)
    }

    /// `None` for one that does not fit.
    fn mark(&self, id: TermId, term: &Term, namespaces: &Namespaces) -> Option<Mark> {
        let Peer::Pods { namespaces: scope, pods } = &term.peer else { return None };
        let is_within = match scope {
            Scope::One(namespace) => *namespace == self.namespace,
            Scope::Selected(selector) => {
                selector.selects_everything() || selector.matches(&namespaces.labels(&self.namespace))
            }
        };
        if !is_within || !pods.matches(&self.labels) {
            return None;
        }
        self.marked(id, term)
    }

    /// The mark of a term whose peers the pod is among; `None` where it has not the port.
    pub(crate) fn marked(&self, id: TermId, term: &Term) -> Option<Mark> {
        let port = match &term.port {
            None => 0,
            Some((protocol, name)) => self.port(*protocol, name)?,
        };
        Some(Mark { term: id, port })
    }
}

pub(crate) fn named(ports: &[NamedPort], protocol: Protocol, name: &str) -> Option<u16> {
    ports.iter().find(|port| port.protocol == protocol && *port.name == *name).map(|port| port.number)
}

#[derive(Debug)]
pub(crate) struct Known {
    pub(crate) identity: Arc<Identity>,
    /// In order.
    pub(crate) marks: Vec<Mark>,
    pub(crate) addresses: HashSet<Address>,
    pods: usize,
}

#[derive(Debug, Default)]
pub(crate) struct Identities {
    by_id: HashMap<IdentityId, Known>,
    ids: HashMap<Arc<Identity>, IdentityId>,
    next: u64,
    by_namespace: HashMap<Arc<str>, HashSet<IdentityId>>,
    /// By the hash of a label and its value. What shares a hash is looked at, and found not to fit.
    by_label: HashMap<u64, HashSet<IdentityId>>,
    by_term: HashMap<TermId, HashSet<IdentityId>>,
    /// Terms of pods of one namespace.
    of_one: HashMap<Arc<str>, HashSet<TermId>>,
    /// Those of pods of selected namespaces.
    of_selected: HashSet<TermId>,
    hashes: RandomState,
    /// So many times a term was held against an identity.
    pub(crate) comparisons: u64,
}

impl Identities {
    pub(crate) fn get(&self, id: IdentityId) -> Option<&Known> {
        self.by_id.get(&id)
    }

    pub(crate) fn addresses(&mut self, id: IdentityId) -> Option<&mut HashSet<Address>> {
        self.by_id.get_mut(&id).map(|known| &mut known.addresses)
    }

    pub(crate) fn of_term(&self, term: TermId) -> impl Iterator<Item = IdentityId> {
        self.by_term.get(&term).into_iter().flatten().copied()
    }

    pub(crate) fn len(&self) -> usize {
        self.by_id.len()
    }

    /// For one more pod. A new identity is held against all terms that its namespace may fit.
    pub(crate) fn acquire(
        &mut self,
        identity: Identity,
        terms: &Terms,
        namespaces: &Namespaces,
    ) -> IdentityId {
        if let Some(id) = self.ids.get(&identity) {
            if let Some(known) = self.by_id.get_mut(id) {
                known.pods += 1;
            }
            return *id;
        }
        let id = IdentityId(self.next);
        self.next += 1;
        let identity = Arc::new(identity);
        self.ids.insert(Arc::clone(&identity), id);
        self.by_namespace.entry(Arc::clone(&identity.namespace)).or_default().insert(id);
        for label in identity.labels.iter() {
            self.by_label.entry(self.hashes.hash_one(label)).or_default().insert(id);
        }
        let marks = self.marks(&identity, terms, namespaces);
        for mark in &marks {
            self.by_term.entry(mark.term).or_default().insert(id);
        }
        self.by_id.insert(id, Known { identity, marks, addresses: HashSet::new(), pods: 1 });
        id
    }

    pub(crate) fn release(&mut self, id: IdentityId) {
        let Some(known) = self.by_id.get_mut(&id) else { return };
        known.pods -= 1;
        if known.pods > 0 {
            return;
        }
        let Some(Known { identity, marks, .. }) = self.by_id.remove(&id) else { return };
        self.ids.remove(&identity);
        remove(&mut self.by_namespace, &identity.namespace, &id);
        for label in identity.labels.iter() {
            let hash = self.hashes.hash_one(label);
            remove(&mut self.by_label, &hash, &id);
        }
        for mark in marks {
            remove(&mut self.by_term, &mark.term, &id);
        }
    }

    fn marks(&mut self, identity: &Identity, terms: &Terms, namespaces: &Namespaces) -> Vec<Mark> {
        let of_one = self.of_one.get(&identity.namespace).into_iter().flatten();
        let mut marks = Vec::new();
        for id in of_one.chain(&self.of_selected) {
            self.comparisons += 1;
            let mark = terms.get(*id).and_then(|in_use| identity.mark(*id, &in_use.term, namespaces));
            marks.extend(mark);
        }
        marks.sort_unstable();
        marks
    }

    /// Marks who fits a term that is new. Who is marked is told.
    pub(crate) fn begin(&mut self, id: TermId, term: &Term, namespaces: &Namespaces) -> Vec<IdentityId> {
        let Peer::Pods { namespaces: scope, .. } = &term.peer else { return Vec::new() };
        match scope {
            Scope::One(namespace) => {
                self.of_one.entry(Arc::clone(namespace)).or_default().insert(id);
            }
            Scope::Selected(_) => {
                self.of_selected.insert(id);
            }
        }
        let mut marked = HashSet::new();
        for candidate in self.candidates(term, namespaces) {
            self.comparisons += 1;
            let Some(known) = self.by_id.get_mut(&candidate) else { continue };
            if let Some(mark) = known.identity.mark(id, term, namespaces)
                && marked.insert(candidate)
            {
                let place = known.marks.partition_point(|other| *other < mark);
                known.marks.insert(place, mark);
            }
        }
        let found = marked.iter().copied().collect();
        if !marked.is_empty() {
            self.by_term.insert(id, marked);
        }
        found
    }

    /// Who fits a term that need not be in use.
    pub(crate) fn fitting(&self, id: TermId, term: &Term, namespaces: &Namespaces) -> Vec<IdentityId> {
        let fits = |candidate: &IdentityId| {
            self.by_id.get(candidate).is_some_and(|known| known.identity.mark(id, term, namespaces).is_some())
        };
        let found: HashSet<IdentityId> = self.candidates(term, namespaces).into_iter().filter(fits).collect();
        found.into_iter().collect()
    }

    /// Who may fit: the fewest that can be named.
    fn candidates(&self, term: &Term, namespaces: &Namespaces) -> Vec<IdentityId> {
        let Peer::Pods { namespaces: scope, pods } = &term.peer else { return Vec::new() };
        let by_label = pods.labels().map(|labels| {
            let sets = labels.filter_map(|label| self.by_label.get(&self.hashes.hash_one(label)));
            sets.collect::<Vec<_>>()
        });
        let labelled = |sets: &[&HashSet<IdentityId>]| sets.iter().map(|set| set.len()).sum::<usize>();
        if let Scope::One(namespace) = scope {
            let Some(here) = self.by_namespace.get(namespace) else { return Vec::new() };
            if by_label.as_ref().is_none_or(|sets| labelled(sets) > here.len()) {
                return here.iter().copied().collect();
            }
        }
        if let Some(sets) = by_label {
            return sets.into_iter().flatten().copied().collect();
        }
        let Scope::Selected(selector) = scope else { return Vec::new() };
        let selected = self.by_namespace.iter().filter(|(namespace, _)| {
            selector.selects_everything() || selector.matches(&namespaces.labels(namespace))
        });
        selected.flat_map(|(_, here)| here).copied().collect()
    }

    /// Who had the mark is told.
    pub(crate) fn end(&mut self, id: TermId, term: &Term) -> Vec<IdentityId> {
        let Peer::Pods { namespaces: scope, .. } = &term.peer else { return Vec::new() };
        match scope {
            Scope::One(namespace) => remove(&mut self.of_one, namespace, &id),
            Scope::Selected(_) => {
                self.of_selected.remove(&id);
            }
        }
        let had: Vec<IdentityId> = self.by_term.remove(&id).into_iter().flatten().collect();
        for identity in &had {
            if let Some(known) = self.by_id.get_mut(identity) {
                known.marks.retain(|mark| mark.term != id);
            }
        }
        had
    }

    /// After a namespace's labels became others. Whose marks are others is told.
    pub(crate) fn relabelled(
        &mut self,
        namespace: &str,
        terms: &Terms,
        namespaces: &Namespaces,
    ) -> Vec<IdentityId> {
        let here: Vec<IdentityId> = self.by_namespace.get(namespace).into_iter().flatten().copied().collect();
        if self.of_selected.is_empty() {
            return Vec::new();
        }
        let mut changed = Vec::new();
        for id in here {
            let Some(identity) = self.by_id.get(&id).map(|known| Arc::clone(&known.identity)) else {
                continue;
            };
            let marks = self.marks(&identity, terms, namespaces);
            let Some(known) = self.by_id.get_mut(&id).filter(|known| known.marks != marks) else { continue };
            for mark in std::mem::take(&mut known.marks) {
                remove(&mut self.by_term, &mark.term, &id);
            }
            for mark in &marks {
                self.by_term.entry(mark.term).or_default().insert(id);
            }
            known.marks = marks;
            changed.push(id);
        }
        changed
    }
}

fn remove<K, V>(sets: &mut HashMap<K, HashSet<V>>, key: &K, value: &V)
where
    K: std::hash::Hash + Eq,
    V: std::hash::Hash + Eq,
{
    if let Some(set) = sets.get_mut(key) {
        set.remove(value);
        if set.is_empty() {
            sets.remove(key);
        }
    }
}
