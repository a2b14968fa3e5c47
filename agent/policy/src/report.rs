//! What is in force, for people.

use std::net::IpAddr;

use ebpf_common::{Address, RulesId};
use hashbrown::HashMap;

use crate::{
    Policer,
    identities::{IdentityId, NamedPort, named},
    objects::{Peer, Policy, Ports, Rule, protocol_name},
    terms::{Term, TermId},
    update::Direction,
};

/// Pods that are named of a peer; of more, the number.
const PODS_MAX: usize = 20;

/// How much there is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    /// Of the cluster.
    pub policies: usize,
    /// Pods of this node that a policy isolates.
    pub isolated_pods: usize,
    /// Pods of the cluster that selectors tell apart.
    pub identities: usize,
    /// Peers that rules in force here name.
    pub terms: usize,
    pub groups: usize,
    /// Different lists of what pods are allowed.
    pub lists: usize,
    /// Elements of the maps.
    pub peers: usize,
    pub rules: usize,
}

/// A policy that selects pods of this node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PolicyReport {
    pub namespace: String,
    pub name: String,
    /// The names of the pods.
    pub pods: Vec<String>,
    /// The number of its rules; `None` where it says nothing of what enters pods.
    pub ingress: Option<usize>,
    pub egress: Option<usize>,
    /// What could not be read, and allows nothing.
    pub problems: Vec<String>,
}

/// How a pod of this node is isolated.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PodReport {
    pub namespace: String,
    pub name: String,
    pub addresses: Vec<IpAddr>,
    /// Its object was seen; else it is taken to have no labels.
    pub is_known: bool,
    pub ingress: DirectionReport,
    pub egress: DirectionReport,
}

#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct DirectionReport {
    /// The list in the maps; `None` where the pod is not isolated.
    pub list: Option<u32>,
    /// How many elements the list has in the maps.
    pub entries: usize,
    /// The policies that isolate it.
    pub policies: Vec<String>,
    pub allowed: Vec<RuleReport>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RuleReport {
    pub policy: String,
    /// `None` for everybody.
    pub peers: Option<Vec<PeerReport>>,
    /// `None` for whatever is sent.
    pub ports: Option<Vec<String>>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PeerReport {
    /// The selectors, or the range.
    pub peer: String,
    /// The first of the pods that are meant, `namespace/name` with addresses.
    pub pods: Vec<(String, Vec<IpAddr>)>,
    /// How many there are; `None` for a range.
    pub pod_count: Option<usize>,
}

impl Policer {
    pub fn counts(&self) -> Counts {
        Counts {
            policies: self.policy_count(),
            isolated_pods: self.local.values().filter(|local| local.policed.is_isolated()).count(),
            identities: self.identities.len(),
            terms: self.terms.iter().count(),
            groups: self.terms.group_count(),
            lists: self.terms.rules_count(),
            peers: self.told.peers.len(),
            rules: self.told.rules.len(),
        }
    }

    /// The policies that select pods of this node.
    pub fn list(&self) -> Vec<PolicyReport> {
        let mut reports: Vec<PolicyReport> = Vec::new();
        for (pod, _) in self.local.iter().filter(|(_, local)| !local.addresses.is_empty()) {
            for (name, policy) in self.selecting(&pod.0, &pod.1) {
                let known = reports.iter_mut().find(|it| *it.namespace == *pod.0 && it.name == name);
                match known {
                    Some(report) => report.pods.push(pod.1.to_string()),
                    None => reports.push(PolicyReport {
                        namespace: pod.0.to_string(),
                        name: name.to_owned(),
                        pods: vec![pod.1.to_string()],
                        ingress: policy.ingress.as_ref().map(|rules| rules.len()),
                        egress: policy.egress.as_ref().map(|rules| rules.len()),
                        problems: policy.problems.clone(),
                    }),
                }
            }
        }
        reports.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
        reports
    }

    /// The names of the pods that are attached here.
    pub fn attached(&self) -> impl Iterator<Item = (&str, &str)> {
        let attached = self.local.iter().filter(|(_, local)| !local.addresses.is_empty());
        attached.map(|(name, _)| (&*name.0, &*name.1))
    }

    /// `None` for a pod that is not attached here.
    pub fn show(&self, namespace: &str, name: &str) -> Option<PodReport> {
        let is_meant = |it: &crate::PodName| *it.0 == *namespace && *it.1 == *name;
        let (pod, local) = self.local.iter().find(|(it, _)| is_meant(it))?;
        if local.addresses.is_empty() {
            return None;
        }
        let known = self.namespaces.pod(&pod.0, &pod.1);
        let mut names = Names { policer: self, by_identity: None };
        Some(PodReport {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            addresses: local.addresses.iter().map(Address::to_ip).collect(),
            is_known: known.is_some(),
            ingress: self.direction(pod, Direction::Ingress, local.policed.ingress, &mut names),
            egress: self.direction(pod, Direction::Egress, local.policed.egress, &mut names),
        })
    }

    fn direction(
        &self,
        pod: &crate::PodName,
        direction: Direction,
        list: RulesId,
        names: &mut Names<'_>,
    ) -> DirectionReport {
        let known = self.namespaces.pod(&pod.0, &pod.1).and_then(|known| self.identities.get(known.identity));
        let own_ports: &[NamedPort] = known.map_or(&[], |known| &known.identity.ports);
        let mut report = DirectionReport {
            list: list.is_some().then_some(list.0),
            entries: self.told.rules.iter().filter(|key| list.is_some() && key.rule.rules == list).count(),
            ..DirectionReport::default()
        };
        let selecting = self.selecting(&pod.0, &pod.1);
        let of_direction = selecting.filter_map(|(name, policy): (&str, &Policy)| {
            let rules = direction.rules(policy)?;
            Some((name, rules))
        });
        for (policy, rules) in of_direction {
            report.policies.push(policy.to_owned());
            report.allowed.extend(rules.iter().map(|rule: &Rule| {
                RuleReport {
                    policy: policy.to_owned(),
                    peers: rule
                        .peers
                        .as_ref()
                        .map(|peers| peers.iter().map(|peer| names.peer(peer)).collect()),
                    ports: rule.ports.as_ref().map(|ports| {
                        ports.iter().map(|port| port_text(port, direction, own_ports)).collect()
                    }),
                }
            }));
        }
        report
    }
}

fn port_text(port: &Ports, direction: Direction, own: &[NamedPort]) -> String {
    match port {
        Ports::Named(protocol, name) if direction == Direction::Ingress => {
            let number = named(own, *protocol, name);
            let number = number.map_or("the pod has none".to_owned(), |number| number.to_string());
            format!("{} {name} ({number})", protocol_name(*protocol))
        }
        Ports::Named(..) => format!("{port} of the peer"),
        _ => port.to_string(),
    }
}

/// `namespace/name` and addresses.
type PodsByIdentity = HashMap<IdentityId, Vec<(String, Vec<IpAddr>)>>;

/// The pods of each identity, looked for when they are asked for.
struct Names<'a> {
    policer: &'a Policer,
    by_identity: Option<PodsByIdentity>,
}

impl Names<'_> {
    fn peer(&mut self, peer: &Peer) -> PeerReport {
        let Peer::Pods { .. } = peer else {
            return PeerReport { peer: peer.to_string(), pods: Vec::new(), pod_count: None };
        };
        let policer = self.policer;
        let term = Term { peer: peer.clone(), port: None };
        let identities: Vec<IdentityId> = match policer.terms.id(&term) {
            Some(id) => policer.identities.of_term(id).collect(),
            None => policer.identities.fitting(TermId::NONE, &term, &policer.namespaces),
        };
        let by_identity = self.by_identity.get_or_insert_with(|| pods_by_identity(policer));
        let of = |id: &IdentityId| by_identity.get(id).into_iter().flatten();
        let mut pods: Vec<(String, Vec<IpAddr>)> = identities.iter().flat_map(of).cloned().collect();
        pods.sort();
        let pod_count = Some(pods.len());
        pods.truncate(PODS_MAX);
        PeerReport { peer: peer.to_string(), pods, pod_count }
    }
}

fn pods_by_identity(policer: &Policer) -> PodsByIdentity {
    let mut by_identity = PodsByIdentity::new();
    for (namespace, here) in &policer.namespaces.0 {
        for (name, pod) in &here.pods {
            let local = policer.local.get(&crate::PodName(namespace.clone(), name.clone()));
            let held = local.map(|local| &local.addresses).filter(|held| !held.is_empty());
            let addresses = held.unwrap_or(&pod.addresses).iter().map(Address::to_ip).collect();
            by_identity.entry(pod.identity).or_default().push((format!("{namespace}/{name}"), addresses));
        }
    }
    by_identity
}
