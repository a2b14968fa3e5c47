//! What policies mean, said by objects, and what the maps would do with it.

mod oracle;
mod semantics;
mod work;

use std::net::IpAddr;

use ebpf_common::{
    Address, GroupId, Policed, Port, Prefix, Protocol, Rule, RuleKey, RulesId,
    desired::{Policies, PolicyChanges},
};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use serde_json::{Value, json};

use crate::{NamedPort, Pod, Policer};

pub(super) const TCP: Protocol = Protocol::TCP;

pub(super) fn policy(namespace: &str, name: &str, spec: Value) -> NetworkPolicy {
    let object = json!({ "metadata": { "namespace": namespace, "name": name }, "spec": spec });
    serde_json::from_value(object).unwrap()
}

/// Labels as `a=1,b=2`.
pub(super) fn labels(text: &str) -> std::collections::BTreeMap<String, String> {
    let label = |it: &str| it.split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned()));
    text.split(',').filter_map(label).collect()
}

pub(super) fn pod(of: &str, addresses: &[&str], ports: &[(&str, u16)]) -> Pod {
    Pod {
        uid: "u".to_owned(),
        labels: labels(of),
        addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
        ports: ports
            .iter()
            .map(|(name, number)| NamedPort { name: (*name).into(), protocol: TCP, number: *number })
            .collect(),
        is_of_host_network: false,
    }
}

pub(super) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// A policer's node, with the pod `default/web` (app=web) at 10.1.0.1 and fd00::1 attached.
pub(super) fn policer() -> Policer {
    let mut policer = Policer::new(1);
    for namespace in ["default", "team"] {
        policer.insert_namespace(
            namespace,
            &labels(&format!("kubernetes.io/metadata.name={namespace},of={namespace}")),
        );
    }
    policer.insert_pod("default", "web", &pod("app=web", &[], &[("http", 8080)]));
    policer.attach("default", "web", &[ip("10.1.0.1"), ip("fd00::1")]);
    policer
}

/// As the maps do it.
pub(super) struct Judge<'a>(pub(super) &'a Policies);

impl Judge<'_> {
    fn bits(address: Address) -> u128 {
        u128::from_be_bytes(address.octets())
    }

    pub(super) fn group(&self, peer: Address) -> GroupId {
        let mut best: Option<(u8, GroupId)> = None;
        for (prefix, group) in &self.0.peers {
            let (address, of_family) = prefix.to_parts();
            let bits = of_family + if address.is_v4() { 96 } else { 0 };
            let mask = u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0);
            let is_in = Self::bits(peer) & mask == Self::bits(address);
            if is_in && best.is_none_or(|(longest, _)| bits >= longest) {
                best = Some((bits, *group));
            }
        }
        best.map_or(GroupId::UNKNOWN, |(_, group)| group)
    }

    fn is_listed(&self, rules: RulesId, group: GroupId, protocol: Protocol, port: u16) -> bool {
        let mut keys = vec![RuleKey::everything(rules, group), RuleKey::protocol(rules, group, protocol)];
        let masked = |bits: u8| port & u16::MAX.checked_shl(16 - u32::from(bits)).unwrap_or(0);
        keys.extend(
            (1..=16).map(|bits| RuleKey::ports(rules, group, protocol, Port::new(masked(bits)), bits)),
        );
        keys.iter().any(|key| self.0.rules.contains(key))
    }

    pub(super) fn allows(&self, rules: RulesId, peer: Address, protocol: Protocol, port: u16) -> bool {
        if !rules.is_some() {
            return true;
        }
        let group = self.group(peer);
        let of_group = group != GroupId::UNKNOWN && self.is_listed(rules, group, protocol, port);
        of_group || self.is_listed(rules, GroupId::EVERYBODY, protocol, port)
    }

    pub(super) fn policed(&self, pod: &str) -> Policed {
        self.0.pods.get(&Address::from(ip(pod))).copied().unwrap_or_default()
    }

    /// Whether `pod` of this node hears `peer`.
    pub(super) fn hears(&self, pod: &str, peer: &str, protocol: Protocol, port: u16) -> bool {
        self.allows(self.policed(pod).ingress, ip(peer).into(), protocol, port)
    }

    pub(super) fn reaches(&self, pod: &str, peer: &str, protocol: Protocol, port: u16) -> bool {
        self.allows(self.policed(pod).egress, ip(peer).into(), protocol, port)
    }
}

/// Carries changes out as the writer does; what says what was there already is none.
pub(super) fn carry_out(policies: &mut Policies, changes: &PolicyChanges) {
    for (prefix, group) in &changes.peers {
        let before = match group {
            Some(group) => policies.peers.insert(*prefix, *group),
            None => policies.peers.remove(prefix),
        };
        assert_ne!(before, *group, "{prefix:?} is other than before");
    }
    for (key, is_there) in &changes.rules {
        let is_change = if *is_there { policies.rules.insert(*key) } else { policies.rules.remove(key) };
        assert!(is_change, "{key:?} is other than before");
    }
    for (address, policed) in &changes.pods {
        let before = match policed {
            Some(policed) => policies.pods.insert(*address, *policed),
            None => policies.pods.remove(address),
        };
        assert_ne!(before, *policed, "{address:?} is other than before");
    }
}

/// What is said, with numbers that do not matter: for each pod and direction, the peers and what is allowed of them.
type Meaning = std::collections::BTreeSet<(Address, bool, Option<Prefix>, Vec<(u32, Rule)>)>;

pub(super) fn meaning(policies: &Policies) -> Meaning {
    let mut meaning = Meaning::new();
    for (address, policed) in &policies.pods {
        for (is_egress, rules) in [(false, policed.ingress), (true, policed.egress)] {
            if !rules.is_some() {
                continue;
            }
            let listed = |group: GroupId| -> Vec<(u32, Rule)> {
                let keys =
                    policies.rules.iter().filter(|key| key.rule.rules == rules && key.rule.group == group);
                let nobody =
                    |rule: Rule| Rule::new(RulesId::NONE, GroupId::UNKNOWN, rule.protocol, rule.port);
                let mut keys: Vec<(u32, Rule)> = keys.map(|key| (key.bits(), nobody(key.rule))).collect();
                keys.sort();
                keys
            };
            meaning.insert((*address, is_egress, None, listed(GroupId::EVERYBODY)));
            for (prefix, group) in &policies.peers {
                meaning.insert((*address, is_egress, Some(*prefix), listed(*group)));
            }
        }
    }
    meaning
}

/// The same as numbers that do not matter: who shares a group with whom.
pub(super) fn grouping(policies: &Policies) -> Vec<Vec<Prefix>> {
    let mut groups: std::collections::BTreeMap<GroupId, Vec<Prefix>> = std::collections::BTreeMap::new();
    for (prefix, group) in &policies.peers {
        groups.entry(*group).or_default().push(*prefix);
    }
    let mut groups: Vec<Vec<Prefix>> = groups.into_values().collect();
    groups.sort();
    groups
}
