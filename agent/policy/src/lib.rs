//! NetworkPolicies (networking.k8s.io/v1), Pods and Namespaces, as this node sees them, to what the datapath's maps shall say.
//!
//! ```text
//!   attached pods -> policies that select them -> lists of what is allowed of whom -> terms
//!   pods' labels -> identities -+
//!   ranges of ipBlocks ---------+-> the terms that an address fits: its group -> peers; lists x groups -> rules
//! ```
//!
//! Facts go into [`Policer`], and [`Policer::update`] says what of the maps is other since the last time; a fresh one that is
//! told the same says the same but for the numbers. What no policy of a pod of this node names, stands nowhere.
//!
//! What a change costs: a pod elsewhere that is like others, one look-up and its addresses; one that is like no other, a
//! comparison with each term of its namespace and each with a `namespaceSelector`. A pod of this node, the policies of its
//! namespace and what they allow, and for each term that is new the identities that have a label which it asks for, else
//! those of its namespaces. A change of ranges, all ranges and addresses.
//!
//! Pods of the host's network are selected by nothing, and are peers by their address alone. Deliberately absent: IO, clock,
//! and the exceptions for a pod's own node, which are the programs'.

mod blocks;
mod identities;
mod objects;
mod report;
mod selector;
mod terms;
#[cfg(test)]
mod tests;
mod update;

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    hash::{BuildHasher, RandomState},
    net::IpAddr,
    sync::Arc,
};

use ebpf_common::{Address, Policed, desired::Policies};
use hashbrown::{HashMap, HashSet};
pub use identities::NamedPort;
use identities::{Identities, Identity, IdentityId};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use objects::Policy;
pub use objects::protocol;
pub use report::{Counts, DirectionReport, PeerReport, PodReport, PolicyReport, RuleReport};
use selector::Labels;
use terms::Terms;

/// The label that every namespace has.
const NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";

/// What policies depend on of a Pod.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Pod {
    pub uid: String,
    pub labels: BTreeMap<String, String>,
    /// None for one that has ended.
    pub addresses: Vec<IpAddr>,
    pub ports: Vec<NamedPort>,
    pub is_of_host_network: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Namespaces(HashMap<Arc<str>, Namespace>);

#[derive(Debug, Default)]
pub(crate) struct Namespace {
    /// `None` until it is heard of.
    labels: Option<Labels>,
    pods: HashMap<Box<str>, KnownPod>,
    policies: BTreeMap<Box<str>, Policy>,
}

#[derive(Debug)]
struct KnownPod {
    identity: IdentityId,
    /// Of the object's uid.
    uid_hash: u64,
    addresses: Box<[Address]>,
    /// The object is gone, and the pod is still attached.
    is_gone: bool,
}

impl Namespaces {
    fn labels(&self, namespace: &str) -> Cow<'_, Labels> {
        match self.0.get(namespace).and_then(|it| it.labels.as_ref()) {
            Some(labels) => Cow::Borrowed(labels),
            None => Cow::Owned(Labels::new([(NAMESPACE_NAME, namespace)])),
        }
    }

    fn named(&mut self, name: &str) -> (Arc<str>, &mut Namespace) {
        let known = self.0.get_key_value(name).map(|(name, _)| Arc::clone(name));
        let name = known.unwrap_or_else(|| name.into());
        (Arc::clone(&name), self.0.entry(name).or_default())
    }

    /// Forgets one of which nothing is known any more.
    fn tidy(&mut self, name: &str) {
        if self
            .0
            .get(name)
            .is_some_and(|it| it.labels.is_none() && it.pods.is_empty() && it.policies.is_empty())
        {
            self.0.remove(name);
        }
    }

    fn pod(&self, namespace: &str, name: &str) -> Option<&KnownPod> {
        self.0.get(namespace)?.pods.get(name)
    }
}

/// Namespace and name.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct PodName(Arc<str>, Box<str>);

/// A pod that is attached on this node.
#[derive(Debug, Default)]
struct Local {
    addresses: Box<[Address]>,
    policed: Policed,
    /// Its addresses as they were told with that.
    told: Box<[Address]>,
}

/// Who says to have an address. Of several, a pod of this node has it, else the last that said so.
#[derive(Debug, Default)]
struct Claims(Vec<Claim>);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Claim {
    identity: IdentityId,
    is_local: bool,
}

impl Claims {
    fn owner(&self) -> Option<IdentityId> {
        let local = self.0.iter().rfind(|claim| claim.is_local);
        local.or(self.0.last()).map(|claim| claim.identity)
    }
}

/// Computes what is policed on this node, from facts that come one by one.
#[derive(Debug)]
pub struct Policer {
    namespaces: Namespaces,
    identities: Identities,
    claims: HashMap<Address, Claims>,
    local: BTreeMap<PodName, Local>,
    terms: Terms,
    blocks: blocks::Blocks,
    are_blocks_due: bool,
    due_pods: BTreeSet<PodName>,
    due_addresses: HashSet<Address>,
    told: Policies,
    uids: RandomState,
    policy_count: usize,
}

impl Policer {
    /// Numbers of lists and groups begin at `first`: another one each time, so that none means what it meant to an earlier
    /// agent whose maps still hold.
    pub fn new(first: u32) -> Self {
        Self {
            namespaces: Namespaces::default(),
            identities: Identities::default(),
            claims: HashMap::new(),
            local: BTreeMap::new(),
            terms: Terms::new(first),
            blocks: blocks::Blocks::default(),
            are_blocks_due: false,
            due_pods: BTreeSet::new(),
            due_addresses: HashSet::new(),
            told: Policies::default(),
            uids: RandomState::new(),
            policy_count: 0,
        }
    }

    /// What could not be read of the policy, and where. It allows nothing: see `objects`.
    pub fn insert_policy(&mut self, policy: &NetworkPolicy) -> &[String] {
        let name: Box<str> = policy.metadata.name.as_deref().unwrap_or_default().into();
        let (namespace, here) =
            self.namespaces.named(policy.metadata.namespace.as_deref().unwrap_or_default());
        let read = Policy::read(&namespace, policy);
        if here.policies.insert(name.clone(), read).is_none() {
            self.policy_count += 1;
        }
        self.pods_of_namespace_are_due(&namespace);
        let known = self.namespaces.0.get(&namespace).and_then(|here| here.policies.get(&name));
        known.map_or(&[], |policy| &policy.problems)
    }

    pub fn remove_policy(&mut self, namespace: &str, name: &str) {
        let Some(here) = self.namespaces.0.get_mut(namespace) else { return };
        if here.policies.remove(name).is_some() {
            self.policy_count -= 1;
            self.pods_of_namespace_are_due(namespace);
            self.namespaces.tidy(namespace);
        }
    }

    /// Removes the policies for which `is_there`, told namespace and name, says no.
    pub fn retain_policies(&mut self, mut is_there: impl FnMut(&str, &str) -> bool) {
        let mut gone = Vec::new();
        for (namespace, here) in &self.namespaces.0 {
            let names = here.policies.keys().filter(|name| !is_there(namespace, name));
            gone.extend(names.map(|name| (Arc::clone(namespace), name.clone())));
        }
        gone.iter().for_each(|(namespace, name)| self.remove_policy(namespace, name));
    }

    /// All policies of the cluster.
    pub fn policy_count(&self) -> usize {
        self.policy_count
    }

    pub fn has_policies(&self, namespace: &str) -> bool {
        self.namespaces.0.get(namespace).is_some_and(|here| !here.policies.is_empty())
    }

    /// The namespaces that have policies.
    pub fn policed_namespaces(&self) -> impl Iterator<Item = &str> {
        let policed = self.namespaces.0.iter().filter(|(_, here)| !here.policies.is_empty());
        policed.map(|(name, _)| &**name)
    }

    pub fn insert_namespace(&mut self, name: &str, labels: &BTreeMap<String, String>) {
        let known = self.namespaces.0.get(name).and_then(|here| here.labels.as_ref());
        if known.is_some_and(|known| known.iter().eq(labels.iter().map(|(a, b)| (a.as_str(), b.as_str())))) {
            return;
        }
        let of = labels.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        self.set_namespace(name, Some(Labels::new(of)));
    }

    pub fn remove_namespace(&mut self, name: &str) {
        if self.namespaces.0.contains_key(name) {
            self.set_namespace(name, None);
            self.namespaces.tidy(name);
        }
    }

    pub fn retain_namespaces(&mut self, mut is_there: impl FnMut(&str) -> bool) {
        let known = self.namespaces.0.iter().filter(|(_, here)| here.labels.is_some());
        let gone: Vec<Arc<str>> =
            known.map(|(name, _)| name).filter(|name| !is_there(name)).cloned().collect();
        gone.iter().for_each(|name| self.remove_namespace(name));
    }

    fn set_namespace(&mut self, name: &str, labels: Option<Labels>) {
        let (name, namespace) = self.namespaces.named(name);
        if namespace.labels == labels {
            return;
        }
        namespace.labels = labels;
        let changed = self.identities.relabelled(&name, &self.terms, &self.namespaces);
        self.addresses_are_due(changed);
    }

    pub fn insert_pod(&mut self, namespace: &str, name: &str, pod: &Pod) {
        if pod.is_of_host_network {
            return self.forget_pod(namespace, name);
        }
        let (namespace, here) = self.namespaces.named(namespace);
        let before = here.pods.get(name).map(|known| (known.identity, known.addresses.clone()));
        let labels = pod.labels.iter().map(|(name, value)| (name.as_str(), value.as_str()));
        let identity = Identity {
            namespace: Arc::clone(&namespace),
            labels: Labels::new(labels),
            ports: pod.ports.as_slice().into(),
        };
        let said: Box<[Address]> = pod.addresses.iter().map(|address| Address::from(*address)).collect();
        // Acquired before the one before is released: mostly it is the same.
        let identity = self.identities.acquire(identity, &self.terms, &self.namespaces);
        let known = KnownPod {
            identity,
            uid_hash: self.uids.hash_one(&pod.uid),
            addresses: said.clone(),
            is_gone: false,
        };
        let local = self.local.get(&PodName(Arc::clone(&namespace), name.into()));
        let held = local.map(|local| local.addresses.clone()).filter(|held| !held.is_empty());
        let (now, is_local) = held.map_or((said, false), |held| (held, true));
        let is_same = before.as_ref().is_some_and(|(before_identity, before_said)| {
            *before_identity == identity && (is_local || *before_said == now)
        });
        if !is_same {
            if let Some((before_identity, before_said)) = &before {
                let before = if is_local { &now } else { before_said };
                self.unclaim(before, Claim { identity: *before_identity, is_local });
            }
            self.claim(&now, Claim { identity, is_local });
            if is_local {
                self.due_pods.insert(PodName(Arc::clone(&namespace), name.into()));
            }
        }
        if let Some((before_identity, _)) = before {
            self.identities.release(before_identity);
        }
        if let Some(here) = self.namespaces.0.get_mut(&namespace) {
            here.pods.insert(name.into(), known);
        }
    }

    /// The object is gone. A pod that is attached is known until it is not.
    pub fn remove_pod(&mut self, namespace: &str, name: &str) {
        let Some((namespace, here)) = self.namespaces.0.get_key_value(namespace) else { return };
        if !here.pods.contains_key(name) {
            return;
        }
        let pod_name = PodName(Arc::clone(namespace), name.into());
        if self.local.get(&pod_name).is_none_or(|local| local.addresses.is_empty()) {
            return self.forget_pod(&pod_name.0, name);
        }
        let pods = self.namespaces.0.get_mut(&pod_name.0).map(|here| &mut here.pods);
        if let Some(known) = pods.and_then(|pods| pods.get_mut(name)) {
            known.is_gone = true;
        }
    }

    pub fn retain_pods(&mut self, mut is_there: impl FnMut(&str, &str) -> bool) {
        let mut gone = Vec::new();
        for (namespace, here) in &self.namespaces.0 {
            let names = here.pods.keys().filter(|name| !is_there(namespace, name));
            gone.extend(names.map(|name| (Arc::clone(namespace), name.clone())));
        }
        gone.iter().for_each(|(namespace, name)| self.remove_pod(namespace, name));
    }

    /// Forgets all objects, and keeps what is attached.
    pub fn clear(&mut self) {
        let pods: Vec<(Arc<str>, Box<str>)> = self
            .namespaces
            .0
            .iter()
            .flat_map(|(namespace, here)| here.pods.keys().map(|name| (Arc::clone(namespace), name.clone())))
            .collect();
        pods.iter().for_each(|(namespace, name)| self.forget_pod(namespace, name));
        self.retain_policies(|_, _| false);
        self.retain_namespaces(|_| false);
        // The room that many took is given back.
        self.namespaces.0.shrink_to_fit();
        self.claims.shrink_to_fit();
    }

    fn forget_pod(&mut self, namespace: &str, name: &str) {
        let Some((namespace, here)) = self.namespaces.0.get_key_value(namespace) else { return };
        let namespace = Arc::clone(namespace);
        if !here.pods.contains_key(name) {
            return;
        }
        let pod_name = PodName(Arc::clone(&namespace), name.into());
        let pods = self.namespaces.0.get_mut(&namespace).map(|here| &mut here.pods);
        let Some(known) = pods.and_then(|pods| pods.remove(name)) else { return };
        let local = self.local.get(&pod_name).map(|local| local.addresses.clone());
        let held = local.filter(|held| !held.is_empty());
        if held.is_some() {
            self.due_pods.insert(pod_name);
        }
        let (held, is_local) = held.map_or((known.addresses, false), |held| (held, true));
        self.unclaim(&held, Claim { identity: known.identity, is_local });
        self.identities.release(known.identity);
        self.namespaces.tidy(&namespace);
    }

    /// Whether the pod with this uid, if one is given, is known by its object.
    pub fn knows_pod(&self, namespace: &str, name: &str, uid: &str) -> bool {
        let known = self.namespaces.pod(namespace, name);
        known.is_some_and(|known| {
            !known.is_gone && (uid.is_empty() || known.uid_hash == self.uids.hash_one(uid))
        })
    }

    /// These are all addresses of the pod on this node, whatever its object says; none once it is detached.
    pub fn attach(&mut self, namespace: &str, name: &str, addresses: &[IpAddr]) {
        let now: Box<[Address]> = addresses.iter().map(|address| Address::from(*address)).collect();
        let namespace = self.namespaces.named(namespace).0;
        let pod_name = PodName(Arc::clone(&namespace), name.into());
        if now.is_empty() && !self.local.contains_key(&pod_name) {
            return self.namespaces.tidy(&namespace);
        }
        let local = self.local.entry(pod_name.clone()).or_default();
        let before = std::mem::replace(&mut local.addresses, now.clone());
        if before == now {
            return;
        }
        self.due_pods.insert(pod_name);
        let Some(known) = self.namespaces.pod(&namespace, name) else {
            return self.namespaces.tidy(&namespace);
        };
        let (identity, is_gone, said) = (known.identity, known.is_gone, known.addresses.clone());
        let of = |addresses: &[Address]| match addresses.is_empty() {
            true => (said.clone(), Claim { identity, is_local: false }),
            false => (addresses.into(), Claim { identity, is_local: true }),
        };
        let ((before, before_claim), (now_claimed, claim)) = (of(&before), of(&now));
        self.claim(&now_claimed, claim);
        self.unclaim(&before, before_claim);
        if now.is_empty() && is_gone {
            self.forget_pod(&namespace, name);
        }
    }

    fn claim(&mut self, addresses: &[Address], claim: Claim) {
        for address in addresses {
            self.claims.entry(*address).or_default().0.push(claim);
            if let Some(of_identity) = self.identities.addresses(claim.identity) {
                of_identity.insert(*address);
            }
            self.due_addresses.insert(*address);
        }
    }

    fn unclaim(&mut self, addresses: &[Address], claim: Claim) {
        for address in addresses {
            let Some(claims) = self.claims.get_mut(address) else { continue };
            if let Some(place) = claims.0.iter().position(|it| *it == claim) {
                claims.0.remove(place);
            }
            let has_other = claims.0.iter().any(|it| it.identity == claim.identity);
            if claims.0.is_empty() {
                self.claims.remove(address);
            }
            if let Some(of_identity) = self.identities.addresses(claim.identity).filter(|_| !has_other) {
                of_identity.remove(address);
            }
            self.due_addresses.insert(*address);
        }
    }

    fn addresses_are_due(&mut self, identities: impl IntoIterator<Item = IdentityId>) {
        for id in identities {
            self.due_addresses.extend(self.identities.get(id).into_iter().flat_map(|known| &known.addresses));
        }
    }

    fn pods_of_namespace_are_due(&mut self, namespace: &str) {
        let attached = self.local.keys().filter(|name| *name.0 == *namespace);
        self.due_pods.extend(attached.cloned());
    }
}
