//! Random clusters: what is computed step by step is what is computed at once, and both are what the API's words say of each
//! packet, evaluated one by one from the objects.

use std::collections::BTreeMap;

use k8s_openapi::{
    api::networking::v1::{NetworkPolicyPeer, NetworkPolicyPort},
    apimachinery::pkg::{apis::meta::v1::LabelSelector, util::intstr::IntOrString},
};
use proptest::{prelude::*, sample::select};

use super::*;

const NAMESPACES: [&str; 3] = ["a", "b", "c"];
const RANGES: [&str; 10] = [
    "0.0.0.0/0",
    "10.0.0.0/8",
    "10.1.0.0/16",
    "10.1.0.0/30",
    "10.1.0.2/32",
    "192.0.2.0/24",
    "::/0",
    "fd00::/16",
    "fd00:1::/32",
    "fd00:1::2/128",
];
const OUTSIDERS: [&str; 7] =
    ["10.1.0.9", "10.77.0.1", "8.8.8.8", "192.0.2.2", "fd00:1::9", "fd00:7::1", "2001:db8::1"];
const PACKETS: [(Protocol, u16); 7] = [
    (TCP, 80),
    (TCP, 81),
    (TCP, 90),
    (TCP, 8080),
    (Protocol::UDP, 80),
    (Protocol::SCTP, 80),
    (Protocol::ICMP, 0),
];

type Name = (&'static str, u8);

/// The objects, as they are.
#[derive(Clone, Default)]
struct Cluster {
    policies: BTreeMap<(&'static str, u8), NetworkPolicy>,
    namespaces: BTreeMap<&'static str, BTreeMap<String, String>>,
    /// Those that are gone and attached still, too.
    pods: BTreeMap<Name, Pod>,
    attached: BTreeMap<Name, Vec<IpAddr>>,
}

#[derive(Clone, Debug)]
enum Step {
    Policy(&'static str, u8, Option<Value>),
    Namespace(&'static str, Option<&'static str>),
    Pod(Name, Option<Pod>),
    Attach(Name, Vec<IpAddr>),
}

fn selector() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(json!({})),
        select(vec!["x", "y"]).prop_map(|app| json!({ "matchLabels": { "app": app } })),
        select(vec!["x", "y"]).prop_map(|app| json!({ "matchLabels": { "app": app, "tier": "1" } })),
        Just(json!({ "matchExpressions": [{ "key": "tier", "operator": "Exists" }] })),
        Just(json!({ "matchExpressions": [{ "key": "tier", "operator": "NotIn", "values": ["1"] }] })),
        Just(json!({ "matchExpressions": [{ "key": "app", "operator": "In", "values": ["x", "z"] }] })),
        Just(json!({ "matchExpressions": [{ "key": "tier", "operator": "DoesNotExist" }] })),
    ]
}

fn of_namespaces() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(json!({})),
        select(vec!["1", "2"]).prop_map(|env| json!({ "matchLabels": { "env": env } })),
        Just(json!({ "matchLabels": { "kubernetes.io/metadata.name": "b" } })),
    ]
}

fn peer() -> impl Strategy<Value = Value> {
    let block = (select(RANGES.to_vec()), prop::collection::vec(select(RANGES.to_vec()), 0..3));
    let block = block.prop_map(|(range, except)| {
        let whole = crate::blocks::Range::read(range).unwrap();
        let is_part = |it: &&str| whole.has_inside(&crate::blocks::Range::read(it).unwrap());
        let except: Vec<&str> = except.into_iter().filter(is_part).collect();
        json!({ "ipBlock": { "cidr": range, "except": except } })
    });
    prop_oneof![
        selector().prop_map(|pods| json!({ "podSelector": pods })),
        of_namespaces().prop_map(|namespaces| json!({ "namespaceSelector": namespaces })),
        (of_namespaces(), selector())
            .prop_map(|(of, pods)| json!({ "namespaceSelector": of, "podSelector": pods })),
        block,
    ]
}

fn port() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(json!({ "port": 80 })),
        Just(json!({ "port": 80, "endPort": 90, "protocol": "TCP" })),
        Just(json!({ "protocol": "UDP" })),
        Just(json!({ "port": "http" })),
    ]
}

fn spec() -> impl Strategy<Value = Value> {
    let rules = || {
        let rule = (prop::collection::vec(peer(), 0..3), prop::collection::vec(port(), 0..3));
        prop::collection::vec(rule, 0..3)
    };
    let types = select(vec![vec![], vec!["Ingress"], vec!["Egress"], vec!["Ingress", "Egress"]]);
    (selector(), rules(), rules(), types).prop_map(|(pods, ingress, egress, types)| {
        let rules = |rules: Vec<(Vec<Value>, Vec<Value>)>, peers: &str| -> Vec<Value> {
            rules.into_iter().map(|(of, ports)| json!({ peers: of, "ports": ports })).collect()
        };
        json!({ "podSelector": pods, "ingress": rules(ingress, "from"), "egress": rules(egress, "to"),
            "policyTypes": types })
    })
}

fn name() -> impl Strategy<Value = Name> {
    (select(NAMESPACES.to_vec()), 0..4_u8)
}

/// No two pods have an address in common.
fn addresses_of((namespace, n): Name, second: u8) -> Vec<IpAddr> {
    let of = namespace.as_bytes()[0] - b'a';
    let number = n + second * 4;
    vec![ip(&format!("10.{of}.0.{number}")), ip(&format!("fd00:{of}::{number}"))]
}

fn step() -> impl Strategy<Value = Step> {
    let facts = (select(vec!["app=x", "app=y", "app=x,tier=1", "app=y,tier=2", ""]), 0..4_u8, any::<bool>());
    let some_pod = (name(), facts).prop_map(|(name, (of, kind, is_named))| {
        let port = if kind == 3 { 8080 } else { 80 };
        let ports = [("http", port)];
        let mut facts = pod(of, &[], if is_named { &ports } else { &[] });
        facts.addresses = if kind == 0 { Vec::new() } else { addresses_of(name, 0) };
        facts.is_of_host_network = kind == 2;
        Step::Pod(name, Some(facts))
    });
    prop_oneof![
        3 => (select(NAMESPACES.to_vec()), 0..2_u8, spec())
            .prop_map(|(namespace, n, spec)| Step::Policy(namespace, n, Some(spec))),
        1 => (select(NAMESPACES.to_vec()), 0..2_u8).prop_map(|(namespace, n)| Step::Policy(namespace, n, None)),
        1 => (select(NAMESPACES.to_vec()), select(vec![None, Some("env=1"), Some("env=2")]))
            .prop_map(|(namespace, labels)| Step::Namespace(namespace, labels)),
        4 => some_pod,
        1 => name().prop_map(|name| Step::Pod(name, None)),
        3 => (name(), 0..2_u8).prop_map(|(name, second)| Step::Attach(name, addresses_of(name, second))),
        1 => name().prop_map(|name| Step::Attach(name, Vec::new())),
    ]
}

impl Cluster {
    fn step(&mut self, step: &Step) {
        match step.clone() {
            Step::Policy(namespace, n, Some(spec)) => {
                self.policies.insert((namespace, n), policy(namespace, &n.to_string(), spec));
            }
            Step::Policy(namespace, n, None) => drop(self.policies.remove(&(namespace, n))),
            Step::Namespace(namespace, Some(of)) => drop(self.namespaces.insert(namespace, labels(of))),
            Step::Namespace(namespace, None) => drop(self.namespaces.remove(namespace)),
            Step::Pod(name, Some(pod)) => drop(self.pods.insert(name, Pod { uid: String::new(), ..pod })),
            Step::Pod(name, None) => {
                // Known until it is detached.
                match self.pods.get_mut(&name).filter(|_| self.attached.contains_key(&name)) {
                    Some(pod) => pod.uid = "gone".to_owned(),
                    None => drop(self.pods.remove(&name)),
                }
            }
            Step::Attach(name, addresses) if addresses.is_empty() => {
                self.attached.remove(&name);
                self.pods.retain(|it, pod| *it != name || pod.uid != "gone");
            }
            Step::Attach(name, addresses) => drop(self.attached.insert(name, addresses)),
        }
    }

    fn pod(&self, name: &Name) -> Option<&Pod> {
        self.pods.get(name).filter(|pod| !pod.is_of_host_network)
    }

    fn addresses(&self, name: &Name) -> Vec<IpAddr> {
        let said = || self.pod(name).map(|pod| pod.addresses.clone()).unwrap_or_default();
        self.attached.get(name).cloned().unwrap_or_else(said)
    }

    fn allows(&self, pod: &Name, is_egress: bool, peer: IpAddr, protocol: Protocol, port: u16) -> bool {
        let nothing = BTreeMap::new();
        let own = self.pod(pod).map_or(&nothing, |pod| &pod.labels);
        let mut is_isolated = false;
        for policy in self.policies.iter().filter(|((namespace, _), _)| *namespace == pod.0) {
            let spec = policy.1.spec.as_ref().unwrap();
            if !matches(spec.pod_selector.as_ref().unwrap(), own) {
                continue;
            }
            let types = spec.policy_types.clone().unwrap_or_default();
            let has_egress = spec.egress.as_ref().is_some_and(|rules| !rules.is_empty());
            let is_of = |kind: &str| types.iter().any(|it| it == kind);
            let applies = match is_egress {
                true => is_of("Egress") || types.is_empty() && has_egress,
                false => is_of("Ingress") || types.is_empty(),
            };
            if !applies {
                continue;
            }
            is_isolated = true;
            let rules: Vec<(Vec<NetworkPolicyPeer>, Vec<NetworkPolicyPort>)> = if is_egress {
                let rules = spec.egress.clone().unwrap_or_default().into_iter();
                rules.map(|rule| (rule.to.unwrap_or_default(), rule.ports.unwrap_or_default())).collect()
            } else {
                let rules = spec.ingress.clone().unwrap_or_default().into_iter();
                rules.map(|rule| (rule.from.unwrap_or_default(), rule.ports.unwrap_or_default())).collect()
            };
            let end =
                |name: &str| if is_egress { self.port_at(peer, name) } else { named(self.pod(pod), name) };
            if rules.iter().any(|(peers, ports)| {
                let is_peer = peers.is_empty() || peers.iter().any(|it| self.is_peer(pod.0, it, peer));
                is_peer && (ports.is_empty() || ports.iter().any(|it| is_port(it, protocol, port, &end)))
            }) {
                return true;
            }
        }
        !is_isolated
    }

    fn owner(&self, address: IpAddr) -> Option<(&Name, &Pod)> {
        let mut owners = self.pods.iter().filter(|(_, pod)| !pod.is_of_host_network);
        owners.find(|(name, _)| self.addresses(name).contains(&address))
    }

    fn port_at(&self, peer: IpAddr, name: &str) -> Option<u16> {
        named(self.owner(peer).map(|(_, pod)| pod), name)
    }

    fn is_peer(&self, own: &str, peer: &NetworkPolicyPeer, address: IpAddr) -> bool {
        if let Some(block) = &peer.ip_block {
            let is_in = |range: &String| contains(range, address);
            return is_in(&block.cidr) && !block.except.iter().flatten().any(is_in);
        }
        let Some(((namespace, _), pod)) = self.owner(address) else { return false };
        let of = self.namespaces.get(namespace).cloned();
        let of = of.unwrap_or_else(|| labels(&format!("kubernetes.io/metadata.name={namespace}")));
        let is_within = peer.namespace_selector.as_ref().map_or(*namespace == own, |it| matches(it, &of));
        is_within && peer.pod_selector.as_ref().is_none_or(|it| matches(it, &pod.labels))
    }

    fn policer(&self) -> Policer {
        let mut policer = Policer::new(7_000);
        for (name, addresses) in &self.attached {
            policer.attach(name.0, &name.1.to_string(), addresses);
        }
        for (name, pod) in &self.pods {
            policer.insert_pod(name.0, &name.1.to_string(), pod);
        }
        for policy in self.policies.values() {
            assert!(policer.insert_policy(policy).is_empty());
        }
        self.namespaces.iter().for_each(|(name, of)| policer.insert_namespace(name, of));
        policer.update();
        policer
    }

    fn check(&self, policies: &Policies) -> Result<(), TestCaseError> {
        let judge = Judge(policies);
        let mut peers: Vec<IpAddr> = OUTSIDERS.into_iter().map(ip).collect();
        for namespace in NAMESPACES {
            peers.extend((0..4).flat_map(|n| addresses_of((namespace, n), 0)));
            peers.extend((0..4).flat_map(|n| addresses_of((namespace, n), 1)));
        }
        for (name, addresses) in &self.attached {
            let policed = policies.pods.get(&addresses[0].into()).copied().unwrap_or_default();
            for (is_egress, rules) in [(false, policed.ingress), (true, policed.egress)] {
                for peer in &peers {
                    for (protocol, port) in PACKETS {
                        prop_assert_eq!(
                            judge.allows(rules, (*peer).into(), protocol, port),
                            self.allows(name, is_egress, *peer, protocol, port),
                            "{:?} {} {} {:?} {}",
                            name,
                            if is_egress { "->" } else { "<-" },
                            peer,
                            protocol,
                            port
                        );
                    }
                }
            }
        }
        Ok(())
    }
}

fn matches(selector: &LabelSelector, of: &BTreeMap<String, String>) -> bool {
    let equal = selector.match_labels.iter().flatten().all(|(label, value)| of.get(label) == Some(value));
    equal
        && selector.match_expressions.iter().flatten().all(|it| {
            let value = of.get(&it.key);
            let is_among = value.is_some_and(|value| it.values.iter().flatten().any(|other| other == value));
            match it.operator.as_str() {
                "In" => is_among,
                "NotIn" => !is_among,
                "Exists" => value.is_some(),
                _ => value.is_none(),
            }
        })
}

fn named(pod: Option<&Pod>, name: &str) -> Option<u16> {
    pod?.ports.iter().find(|port| *port.name == *name).map(|port| port.number)
}

fn is_port(
    port: &NetworkPolicyPort,
    protocol: Protocol,
    number: u16,
    end: &impl Fn(&str) -> Option<u16>,
) -> bool {
    let is_of_protocol = port.protocol.as_deref().unwrap_or("TCP")
        == match protocol {
            Protocol::TCP => "TCP",
            Protocol::UDP => "UDP",
            Protocol::SCTP => "SCTP",
            _ => "",
        };
    is_of_protocol
        && match &port.port {
            None => true,
            Some(IntOrString::Int(first)) => {
                (*first..=port.end_port.unwrap_or(*first)).contains(&i32::from(number))
            }
            Some(IntOrString::String(name)) => end(name) == Some(number),
        }
}

fn contains(range: &str, address: IpAddr) -> bool {
    let (start, bits) = range.split_once('/').unwrap();
    let bits: u32 = bits.parse().unwrap();
    match (ip(start), address) {
        (IpAddr::V4(start), IpAddr::V4(address)) => {
            let shift = |it| u32::from(it).checked_shr(32 - bits).unwrap_or(0);
            shift(start) == shift(address)
        }
        (IpAddr::V6(start), IpAddr::V6(address)) => {
            let shift = |it| u128::from(it).checked_shr(128 - bits).unwrap_or(0);
            shift(start) == shift(address)
        }
        _ => false,
    }
}

fn tell(policer: &mut Policer, step: &Step) {
    match step {
        Step::Policy(namespace, n, Some(spec)) => {
            policer.insert_policy(&policy(namespace, &n.to_string(), spec.clone()));
        }
        Step::Policy(namespace, n, None) => policer.remove_policy(namespace, &n.to_string()),
        Step::Namespace(namespace, Some(of)) => policer.insert_namespace(namespace, &labels(of)),
        Step::Namespace(namespace, None) => policer.remove_namespace(namespace),
        Step::Pod((namespace, n), Some(pod)) => policer.insert_pod(namespace, &n.to_string(), pod),
        Step::Pod((namespace, n), None) => policer.remove_pod(namespace, &n.to_string()),
        Step::Attach((namespace, n), addresses) => policer.attach(namespace, &n.to_string(), addresses),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 50, ..ProptestConfig::default() })]

    #[test]
    fn steps_come_to_what_is_computed_at_once_and_to_what_the_objects_say(
        steps in prop::collection::vec((step(), any::<bool>()), 1..40)
    ) {
        let mut cluster = Cluster::default();
        let mut policer = Policer::new(u32::MAX - 20);
        let mut model = Policies::default();
        for (step, is_update_due) in &steps {
            cluster.step(step);
            tell(&mut policer, step);
            if *is_update_due {
                carry_out(&mut model, &policer.update());
                prop_assert_eq!(&model, policer.policies());
            }
        }
        carry_out(&mut model, &policer.update());
        prop_assert_eq!(&model, policer.policies());
        prop_assert!(policer.update().is_empty());
        let fresh = cluster.policer();
        prop_assert_eq!(grouping(&model), grouping(fresh.policies()));
        prop_assert_eq!(meaning(&model), meaning(fresh.policies()));
        cluster.check(&model)?;
        // And back to nothing.
        for name in cluster.attached.keys() {
            policer.attach(name.0, &name.1.to_string(), &[]);
        }
        carry_out(&mut model, &policer.update());
        prop_assert_eq!(&model, &Policies::default());
        prop_assert!(policer.terms.is_empty());
    }
}
