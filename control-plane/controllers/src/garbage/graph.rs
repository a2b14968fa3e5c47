//! Who owns whom. No IO.
//!
//! Nodes are objects by uid. An owner that is referred to need not be known: references are indexed by uid alone, so
//! dependents may be seen before their owner, or after it is gone.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::core::ApiResource;

/// The finalizer of an object that goes after its dependents.
pub const FOREGROUND: &str = "foregroundDeletion";
/// The finalizer of an object whose dependents are to be left alone.
pub const ORPHAN: &str = "orphan";

/// Where an object is served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Its resource.
    pub resource: ApiResource,
    /// Its namespace, or empty.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// What the collector knows of an object.
#[derive(Debug, Clone)]
pub struct Object {
    /// Where it is served.
    pub identity: Identity,
    /// Its owners.
    pub owners: Vec<OwnerReference>,
    /// Whether it is being deleted.
    pub deleting: bool,
    /// Whether it waits for its dependents to be deleted.
    pub foreground: bool,
    /// Whether it waits for its dependents to be released.
    pub orphaning: bool,
}

impl Object {
    /// Reads an object's metadata.
    pub fn new(resource: &ApiResource, meta: &ObjectMeta) -> Self {
        let deleting = meta.deletion_timestamp.is_some();
        let has = |finalizer: &str| meta.finalizers.iter().flatten().any(|held| held == finalizer);
        Self {
            identity: Identity {
                resource: resource.clone(),
                namespace: meta.namespace.clone().unwrap_or_default(),
                name: meta.name.clone().unwrap_or_default(),
            },
            owners: meta.owner_references.clone().unwrap_or_default(),
            deleting,
            foreground: deleting && has(FOREGROUND),
            orphaning: deleting && has(ORPHAN),
        }
    }

    fn blocks(&self, owner: &str) -> bool {
        self.owners
            .iter()
            .any(|reference| reference.uid == owner && reference.block_owner_deletion == Some(true))
    }
}

const GONE_MAX: usize = 4096;

/// All objects and references.
#[derive(Debug, Default)]
pub struct Graph {
    objects: HashMap<String, Object>,
    dependents_by_owner: HashMap<String, BTreeSet<String>>,
    uids_by_resource: BTreeMap<String, HashSet<String>>,
    /// How many objects a namespace has, by resource; only what was listed completely is counted right.
    counts: HashMap<String, HashMap<String, usize>>,
    listed: HashSet<String>,
    /// Uids that are known not to exist; a uid never comes back.
    gone: HashSet<String>,
    gone_order: VecDeque<String>,
}

/// What a change gives reason to look at.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Dirty {
    /// Objects that may have to be deleted or let go, by uid.
    pub delete: BTreeSet<String>,
    /// Objects whose dependents are to be released, by uid.
    pub orphan: BTreeSet<String>,
}

impl Graph {
    /// The object with this uid.
    pub fn get(&self, uid: &str) -> Option<&Object> {
        self.objects.get(uid)
    }

    /// Objects that refer to `uid` as an owner.
    pub fn dependents(&self, uid: &str) -> Vec<(String, Object)> {
        let uids = self.dependents_by_owner.get(uid).into_iter().flatten();
        uids.filter_map(|uid| Some((uid.clone(), self.objects.get(uid)?.clone()))).collect()
    }

    /// Dependents without which `uid` may not go.
    pub fn blocking(&self, uid: &str) -> Vec<(String, Object)> {
        let mut dependents = self.dependents(uid);
        dependents.retain(|(_, object)| object.blocks(uid));
        dependents
    }

    /// How many objects of a resource a namespace has; `None` until all of them are known.
    pub fn count(&self, group: &str, plural: &str, namespace: &str) -> Option<usize> {
        let key = format!("{group}/{plural}");
        let count = self.counts.get(&key).and_then(|counts| counts.get(namespace)).copied();
        self.listed.contains(&key).then(|| count.unwrap_or(0))
    }

    fn recount(&mut self, object: &Object, appears: bool) {
        let counts = self.counts.entry(resource_key(&object.identity.resource)).or_default();
        let count = counts.entry(object.identity.namespace.clone()).or_default();
        *count = if appears { *count + 1 } else { count.saturating_sub(1) };
        if *count == 0 {
            counts.remove(&object.identity.namespace);
        }
    }

    /// Whether the uid is known not to exist.
    pub fn is_gone(&self, uid: &str) -> bool {
        self.gone.contains(uid)
    }

    /// Notes that a uid does not exist.
    pub fn set_gone(&mut self, uid: &str) {
        if self.gone.insert(uid.to_owned()) {
            self.gone_order.push_back(uid.to_owned());
        }
        while self.gone_order.len() > GONE_MAX {
            if let Some(oldest) = self.gone_order.pop_front() {
                self.gone.remove(&oldest);
            }
        }
    }

    /// Takes in a new version of an object.
    pub fn set(&mut self, uid: &str, object: Object) -> Dirty {
        let mut dirty = Dirty::default();
        let old = self.objects.remove(uid);
        let old_owners: HashMap<&str, &OwnerReference> =
            old.iter().flat_map(|old| &old.owners).map(|o| (o.uid.as_str(), o)).collect();
        for (owner, reference) in &old_owners {
            let now = object.owners.iter().find(|reference| reference.uid == **owner);
            if now.is_none() {
                self.unlink(owner, uid);
            }
            // An owner that waits for this object may have one thing less to wait for.
            let unblocked = reference.block_owner_deletion == Some(true)
                && now.is_none_or(|now| now.block_owner_deletion != Some(true));
            if unblocked && self.objects.get(*owner).is_some_and(|owner| owner.foreground) {
                dirty.delete.insert((*owner).to_owned());
            }
        }
        for owner in &object.owners {
            self.dependents_by_owner.entry(owner.uid.clone()).or_default().insert(uid.to_owned());
            let known = self.objects.get(&owner.uid);
            if known.is_none_or(|known| known.foreground || is_elsewhere(known, &object))
                && old_owners.get(owner.uid.as_str()).is_none_or(|_| known.is_some())
            {
                dirty.delete.insert(uid.to_owned());
            }
        }
        if object.foreground {
            dirty.delete.insert(uid.to_owned());
            if old.as_ref().is_none_or(|old| !old.foreground) {
                dirty.delete.extend(self.dependents_by_owner.get(uid).into_iter().flatten().cloned());
            }
        }
        if object.orphaning {
            dirty.orphan.insert(uid.to_owned());
        }
        if old.is_none() {
            let misled = self.dependents(uid).into_iter().filter(|(_, child)| is_elsewhere(&object, child));
            dirty.delete.extend(misled.map(|(uid, _)| uid));
            self.recount(&object, true);
        }
        self.uids_by_resource
            .entry(resource_key(&object.identity.resource))
            .or_default()
            .insert(uid.to_owned());
        self.objects.insert(uid.to_owned(), object);
        dirty
    }

    /// Takes in that an object is gone.
    pub fn remove(&mut self, uid: &str) -> Dirty {
        let mut dirty = Dirty::default();
        self.set_gone(uid);
        dirty.delete.extend(self.dependents_by_owner.get(uid).into_iter().flatten().cloned());
        let Some(object) = self.objects.remove(uid) else { return dirty };
        self.recount(&object, false);
        if let Some(uids) = self.uids_by_resource.get_mut(&resource_key(&object.identity.resource)) {
            uids.remove(uid);
        }
        for owner in &object.owners {
            self.unlink(&owner.uid, uid);
            if self.objects.get(&owner.uid).is_some_and(|owner| owner.foreground) {
                dirty.delete.insert(owner.uid.clone());
            }
        }
        dirty
    }

    /// Takes in a complete list of one resource: what is not in `listed` is gone.
    pub fn retain(&mut self, resource: &ApiResource, listed: &HashSet<String>) -> Dirty {
        let key = resource_key(resource);
        let known = self.uids_by_resource.get(&key).cloned().unwrap_or_default();
        self.listed.insert(key);
        let mut dirty = Dirty::default();
        for uid in known.difference(listed) {
            let more = self.remove(uid);
            dirty.delete.extend(more.delete);
            dirty.orphan.extend(more.orphan);
        }
        dirty
    }

    fn unlink(&mut self, owner: &str, dependent: &str) {
        if let Some(dependents) = self.dependents_by_owner.get_mut(owner) {
            dependents.remove(dependent);
            if dependents.is_empty() {
                self.dependents_by_owner.remove(owner);
            }
        }
    }
}

/// Whether the owner lives in a namespace in which it cannot own the dependent.
fn is_elsewhere(owner: &Object, dependent: &Object) -> bool {
    !owner.identity.namespace.is_empty() && owner.identity.namespace != dependent.identity.namespace
}

fn resource_key(resource: &ApiResource) -> String {
    format!("{}/{}", resource.group, resource.plural)
}

/// What an owner is to a dependent that asks whether it may stay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// It exists and stays.
    Solid,
    /// It does not exist.
    Dangling,
    /// It exists and waits for its dependents to be deleted.
    Waiting,
    /// It cannot be told whether it exists: a namespaced owner of a cluster-scoped object.
    Unresolvable,
}

/// What to do with an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Nothing.
    Keep,
    /// Some owners stay: drop the references to the others, given by uid.
    Unlink(Vec<String>),
    /// Delete it after its own dependents; `unblock` first lets its owners go, since it is in a cycle with them.
    Foreground { unblock: bool },
    /// Delete it, as its own finalizers ask.
    Delete,
}

/// Decides about an object from the standing of its owners.
///
/// `dependents` are its own dependents, `in_cycle` tells that one of them waits for its dependents too.
pub fn decide(owners: &[(String, Standing)], has_dependents: bool, in_cycle: bool) -> Action {
    let with =
        |standing: Standing| owners.iter().filter(move |(_, s)| *s == standing).map(|(uid, _)| uid.clone());
    if owners.is_empty() || with(Standing::Unresolvable).next().is_some() {
        return Action::Keep;
    }
    if with(Standing::Solid).next().is_some() {
        let others: Vec<String> = with(Standing::Dangling).chain(with(Standing::Waiting)).collect();
        return if others.is_empty() { Action::Keep } else { Action::Unlink(others) };
    }
    if with(Standing::Waiting).next().is_some() && has_dependents {
        return Action::Foreground { unblock: in_cycle };
    }
    Action::Delete
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn resource() -> ApiResource {
        ApiResource {
            group: "apps".into(),
            version: "v1".into(),
            api_version: "apps/v1".into(),
            kind: "K".into(),
            plural: "ks".into(),
        }
    }

    fn object(owners: &[(&str, bool)], finalizer: Option<&str>) -> Object {
        let owners = owners.iter().map(|(uid, block)| OwnerReference {
            uid: (*uid).to_owned(),
            block_owner_deletion: Some(*block),
            ..OwnerReference::default()
        });
        let meta = ObjectMeta {
            owner_references: Some(owners.collect()),
            finalizers: finalizer.map(|finalizer| vec![finalizer.to_owned()]),
            deletion_timestamp: finalizer.map(|_| crate::reconcile::now()),
            ..ObjectMeta::default()
        };
        Object::new(&resource(), &meta)
    }

    fn uids(uids: &[&str]) -> BTreeSet<String> {
        uids.iter().map(|uid| (*uid).to_owned()).collect()
    }

    #[test]
    fn a_deleted_owner_makes_its_dependents_dirty() {
        let mut graph = Graph::default();
        graph.set("owner", object(&[], None));
        assert_eq!(graph.set("child", object(&[("owner", true)], None)), Dirty::default());
        assert_eq!(graph.remove("owner").delete, uids(&["child"]));
        assert!(graph.is_gone("owner"));
    }

    #[test]
    fn a_dependent_seen_before_its_owner_is_looked_at_once() {
        let mut graph = Graph::default();
        assert_eq!(graph.set("child", object(&[("owner", true)], None)).delete, uids(&["child"]));
        assert_eq!(graph.set("child", object(&[("owner", true)], None)), Dirty::default());
    }

    #[test]
    fn an_owner_in_foreground_deletion_is_looked_at_whenever_a_blocker_goes() {
        let mut graph = Graph::default();
        graph.set("owner", object(&[], None));
        graph.set("a", object(&[("owner", true)], None));
        graph.set("b", object(&[("owner", false)], None));
        assert_eq!(graph.set("owner", object(&[], Some(FOREGROUND))).delete, uids(&["owner", "a", "b"]));
        let blocking: Vec<String> = graph.blocking("owner").into_iter().map(|(uid, _)| uid).collect();
        assert_eq!(blocking, ["a"]);
        assert_eq!(graph.remove("a").delete, uids(&["owner"]));
        assert!(graph.blocking("owner").is_empty());
    }

    #[test]
    fn a_complete_list_takes_out_what_it_does_not_name() {
        let mut graph = Graph::default();
        graph.set("owner", object(&[], None));
        graph.set("child", object(&[("owner", true)], None));
        let listed = ["child".to_owned()].into();
        assert_eq!(graph.retain(&resource(), &listed).delete, uids(&["child"]));
        assert!(graph.get("owner").is_none());
    }

    #[test]
    fn an_owner_in_another_namespace_makes_the_dependent_dirty_whichever_is_seen_first() {
        let within = |namespace: &str, mut object: Object| {
            object.identity.namespace = namespace.to_owned();
            object
        };
        let mut graph = Graph::default();
        graph.set("owner", within("a", object(&[], None)));
        let child = || within("b", object(&[("owner", true)], None));
        assert_eq!(graph.set("child", child()).delete, uids(&["child"]));
        let mut graph = Graph::default();
        graph.set("child", child());
        assert_eq!(graph.set("owner", within("a", object(&[], None))).delete, uids(&["child"]));
    }

    #[test]
    fn objects_are_counted_by_namespace_once_they_are_all_listed() {
        let mut graph = Graph::default();
        graph.set("a", object(&[], None));
        graph.set("a", object(&[], None));
        assert_eq!(graph.count("apps", "ks", ""), None);
        graph.retain(&resource(), &["a".to_owned()].into());
        assert_eq!((graph.count("apps", "ks", ""), graph.count("apps", "ks", "ns")), (Some(1), Some(0)));
        graph.remove("a");
        assert_eq!(graph.count("apps", "ks", ""), Some(0));
    }

    #[test]
    fn the_decision_follows_the_owners() {
        use Standing::{Dangling, Solid, Waiting};
        let decide = |standings: &[Standing], dependents, cycle| {
            let owners: Vec<_> = standings.iter().enumerate().map(|(n, s)| (n.to_string(), *s)).collect();
            super::decide(&owners, dependents, cycle)
        };
        assert_eq!(decide(&[], true, false), Action::Keep);
        assert_eq!(decide(&[Solid, Solid], true, false), Action::Keep);
        assert_eq!(decide(&[Solid, Dangling], false, false), Action::Unlink(vec!["1".into()]));
        assert_eq!(decide(&[Dangling], true, false), Action::Delete);
        assert_eq!(decide(&[Dangling, Standing::Unresolvable], true, false), Action::Keep);
        assert_eq!(decide(&[Waiting], false, false), Action::Delete);
        assert_eq!(decide(&[Waiting, Dangling], true, true), Action::Foreground { unblock: true });
    }

    proptest! {
        /// The index of dependents must equal what the objects themselves say, whatever happened before.
        #[test]
        fn the_index_equals_the_references(
            changes in prop::collection::vec((0_u8..6, prop::option::of(prop::collection::btree_set(0_u8..6, 0..3))), 0..60),
        ) {
            let mut graph = Graph::default();
            for (uid, owners) in changes {
                match owners {
                    Some(owners) => {
                        let names: Vec<String> = owners.iter().map(u8::to_string).collect();
                        let owners: Vec<(&str, bool)> = names.iter().map(|name| (name.as_str(), true)).collect();
                        graph.set(&uid.to_string(), object(&owners, None));
                    }
                    None => _ = graph.remove(&uid.to_string()),
                }
            }
            for owner in 0_u8..6 {
                let owner = owner.to_string();
                let mut expected: Vec<String> = graph.objects.iter()
                    .filter(|(_, object)| object.owners.iter().any(|reference| reference.uid == owner))
                    .map(|(uid, _)| uid.clone())
                    .collect();
                expected.sort();
                let indexed: Vec<String> = graph.dependents(&owner).into_iter().map(|(uid, _)| uid).collect();
                prop_assert_eq!(indexed, expected);
            }
        }
    }
}
