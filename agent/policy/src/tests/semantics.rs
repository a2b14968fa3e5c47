use ebpf_common::{GroupId, Protocol, RulesId};
use serde_json::{Value, json};

use super::*;
use crate::terms::prefixes;

const UDP: Protocol = Protocol::UDP;
const ICMP: Protocol = Protocol::ICMP;
const WEB: &str = "10.1.0.1";

/// A node whose pod `default/web` is subject to one policy with this spec.
fn under(spec: Value) -> Policer {
    let mut policer = policer();
    policer.insert_pod(
        "default",
        "client",
        &pod("app=client,tier=a", &["10.1.0.2", "fd00::2"], &[("http", 80)]),
    );
    policer.insert_pod("team", "client", &pod("app=client", &["10.2.0.2"], &[("http", 8000)]));
    policer.insert_pod("team", "other", &pod("app=other", &["10.2.0.3"], &[]));
    policer.insert_policy(&policy("default", "one", spec));
    policer.update();
    policer
}

fn from(peers: Value) -> Value {
    json!({ "podSelector": {}, "ingress": [{ "from": peers }] })
}

fn heard(policer: &Policer) -> Vec<&'static str> {
    let judge = Judge(policer.policies());
    let everybody = ["10.1.0.2", "fd00::2", "10.2.0.2", "10.2.0.3", "192.0.2.1"];
    everybody.into_iter().filter(|peer| judge.hears(WEB, peer, TCP, 80)).collect()
}

#[test]
fn a_pod_is_isolated_where_a_policy_selects_it_and_only_in_its_directions() {
    let isolated = |spec: Value| {
        let policed = Judge(under(spec).policies()).policed(WEB);
        (policed.ingress.is_some(), policed.egress.is_some())
    };
    assert_eq!(isolated(json!({ "podSelector": { "matchLabels": { "app": "db" } } })), (false, false));
    assert_eq!(isolated(json!({ "podSelector": {} })), (true, false));
    assert_eq!(isolated(json!({ "egress": [{}] })), (true, true), "egress rules bring their type");
    assert_eq!(isolated(json!({ "egress": [{}], "policyTypes": ["Ingress"] })), (true, false));
    assert_eq!(isolated(json!({ "policyTypes": ["Egress"], "ingress": [{}] })), (false, true));
    assert_eq!(isolated(json!({ "policyTypes": ["Egress", "Ingress"] })), (true, true));
    let expressions = json!([{ "key": "app", "operator": "In", "values": ["db", "web"] },
        { "key": "x", "operator": "DoesNotExist" }, { "key": "app", "operator": "Exists" },
        { "key": "y", "operator": "NotIn", "values": ["z"] }]);
    assert_eq!(isolated(json!({ "podSelector": { "matchExpressions": expressions } })), (true, false));
    // Both its addresses, and nobody else.
    assert_eq!(under(json!({})).policies().pods.len(), 2);
}

#[test]
fn peers_are_pods_of_the_own_namespace_of_others_or_of_both_selectors_at_once() {
    let client = json!({ "matchLabels": { "app": "client" } });
    let team = json!({ "matchLabels": { "of": "team" } });
    assert_eq!(heard(&under(from(json!([{ "podSelector": client }])))), ["10.1.0.2", "fd00::2"]);
    assert_eq!(heard(&under(from(json!([{ "namespaceSelector": team }])))), ["10.2.0.2", "10.2.0.3"]);
    let both = json!([{ "namespaceSelector": team, "podSelector": client }]);
    assert_eq!(heard(&under(from(both))), ["10.2.0.2"]);
    let either = json!([{ "namespaceSelector": team }, { "podSelector": client }]);
    assert_eq!(heard(&under(from(either))), ["10.1.0.2", "fd00::2", "10.2.0.2", "10.2.0.3"]);
    let all = json!([{ "namespaceSelector": {} }]);
    assert_eq!(heard(&under(from(all))), ["10.1.0.2", "fd00::2", "10.2.0.2", "10.2.0.3"]);
    let by_name =
        json!([{ "namespaceSelector": { "matchLabels": { "kubernetes.io/metadata.name": "team" } } }]);
    assert_eq!(heard(&under(from(by_name))), ["10.2.0.2", "10.2.0.3"]);
}

#[test]
fn who_is_not_named_is_everybody_and_no_rule_is_nobody() {
    assert_eq!(heard(&under(json!({ "ingress": [{}] }))).len(), 5);
    assert_eq!(heard(&under(from(json!([])))).len(), 5);
    assert_eq!(heard(&under(json!({ "ingress": [] }))), Vec::<&str>::new());
    let policer = under(json!({ "ingress": [{}] }));
    assert!(Judge(policer.policies()).hears(WEB, "192.0.2.1", ICMP, 0));
    assert!(policer.policies().peers.is_empty(), "nobody need be told apart");
    let policer = under(json!({ "ingress": [{ "ports": [{ "port": 80 }] }] }));
    let judge = Judge(policer.policies());
    assert!(judge.hears(WEB, "192.0.2.1", TCP, 80) && !judge.hears(WEB, "192.0.2.1", TCP, 81));
    assert!(!judge.hears(WEB, "192.0.2.1", UDP, 80) && !judge.hears(WEB, "192.0.2.1", ICMP, 0));
}

#[test]
fn a_block_has_its_exceptions_and_pods_addresses_too() {
    let block = |cidr: &str, except: Value| from(json!([{ "ipBlock": { "cidr": cidr, "except": except } }]));
    assert_eq!(heard(&under(block("10.0.0.0/8", json!(["10.2.0.3/32"])))), ["10.1.0.2", "10.2.0.2"]);
    assert_eq!(heard(&under(block("10.2.0.3/32", json!([])))), ["10.2.0.3"]);
    assert_eq!(heard(&under(block("192.0.2.77/24", json!([])))), ["192.0.2.1"], "bits behind do not count");
    assert_eq!(heard(&under(block("0.0.0.0/0", json!(["10.0.0.0/8"])))), ["192.0.2.1"]);
    // Pods that nothing else tells apart do not stand for themselves.
    assert_eq!(under(block("10.0.0.0/8", json!([]))).policies().peers.len(), 1);
    let nested = json!([{ "ipBlock": { "cidr": "10.0.0.0/8", "except": ["10.2.0.0/16"] } },
        { "ipBlock": { "cidr": "10.2.0.0/30", "except": ["10.2.0.2/32"] } }]);
    assert_eq!(heard(&under(from(nested))), ["10.1.0.2", "10.2.0.3"]);
}

#[test]
fn a_pod_is_all_that_selectors_and_blocks_say_of_it() {
    let mut spec = json!({ "podSelector": {}, "ingress": [
        { "from": [{ "ipBlock": { "cidr": "10.1.0.0/24" } }], "ports": [{ "port": 1 }] },
        { "from": [{ "podSelector": { "matchLabels": { "tier": "a" } } }], "ports": [{ "port": 2 }] },
        { "from": [{ "podSelector": {} }], "ports": [{ "port": 3 }] },
        { "ports": [{ "port": 4 }] },
    ] });
    let ports = |policer: &Policer, peer: &str| -> Vec<u16> {
        let judge = Judge(policer.policies());
        (1..6).filter(|port| judge.hears(WEB, peer, TCP, *port)).collect()
    };
    let mut policer = under(spec.clone());
    assert_eq!(ports(&policer, "10.1.0.2"), [1, 2, 3, 4]);
    assert_eq!(ports(&policer, "10.1.0.9"), [1, 4]);
    assert_eq!(ports(&policer, "192.0.2.1"), [4]);
    // Policies add up.
    spec["ingress"] = json!([{ "ports": [{ "port": 5 }] }]);
    policer.insert_policy(&policy("default", "two", spec));
    policer.update();
    assert_eq!(ports(&policer, "10.1.0.2"), [1, 2, 3, 4, 5]);
    policer.remove_policy("default", "one");
    policer.update();
    assert_eq!(ports(&policer, "10.1.0.2"), [5]);
}

#[test]
fn all_of_ipv6_is_none_of_ipv4() {
    for cidr in ["::/0", "::/64", "::ffff:0:0/90"] {
        let policer = under(from(json!([{ "ipBlock": { "cidr": cidr } }])));
        let judge = Judge(policer.policies());
        assert!(judge.hears(WEB, "::9", TCP, 1) || cidr != "::/0");
        assert!(!judge.hears(WEB, "192.0.2.1", TCP, 1), "{cidr}");
        assert!(!judge.hears(WEB, "10.1.0.2", TCP, 1), "{cidr}");
        assert_eq!(judge.group(ip("0.0.0.0").into()), GroupId::UNKNOWN);
    }
    let policer =
        under(from(json!([{ "ipBlock": { "cidr": "::/0" } }, { "ipBlock": { "cidr": "10.2.0.0/16" } }])));
    assert_eq!(heard(&policer), ["fd00::2", "10.2.0.2", "10.2.0.3"]);
    let policer =
        under(from(json!([{ "ipBlock": { "cidr": "::/0" } }, { "ipBlock": { "cidr": "0.0.0.0/0" } }])));
    assert_eq!(heard(&policer).len(), 5);
    // IPv4 in the words of IPv6 is no range.
    let policer = under(from(json!([{ "ipBlock": { "cidr": "::ffff:10.0.0.0/104" } }])));
    assert_eq!(heard(&policer), Vec::<&str>::new());
}

#[test]
fn ranges_of_ports_are_the_fewest_prefixes() {
    assert_eq!(prefixes(80, 80).collect::<Vec<_>>(), [(80, 16)]);
    assert_eq!(prefixes(0, u16::MAX).collect::<Vec<_>>(), [(0, 0)]);
    assert_eq!(prefixes(80, 90).collect::<Vec<_>>(), [(80, 13), (88, 15), (90, 16)]);
    assert_eq!(prefixes(1, u16::MAX).count(), 16);
    assert_eq!(prefixes(1, u16::MAX - 1).count(), 30, "the most there are");
    let ports = json!([{ "port": 80, "endPort": 85 }, { "port": 86, "endPort": 95 }, { "port": 90 },
        { "protocol": "UDP", "port": 1, "endPort": 65535 }, { "protocol": "SCTP" }]);
    let policer = under(json!({ "ingress": [{ "ports": ports }] }));
    assert_eq!(policer.policies().rules.len(), 3, "80-95, all of UDP, all of SCTP");
    let judge = Judge(policer.policies());
    let heard: Vec<u16> = (0..200).filter(|port| judge.hears(WEB, "192.0.2.1", TCP, *port)).collect();
    assert_eq!(heard, (80..=95).collect::<Vec<u16>>());
    assert!(judge.hears(WEB, "192.0.2.1", UDP, 9) && judge.hears(WEB, "192.0.2.1", Protocol::SCTP, 9));
    assert!(!judge.hears(WEB, "192.0.2.1", ICMP, 0));
}

#[test]
fn a_named_port_is_the_pods_own_of_what_it_hears_and_the_peers_of_what_it_sends() {
    let named = json!([{ "port": "http" }]);
    let policer = under(json!({ "ingress": [{ "ports": named }] }));
    let judge = Judge(policer.policies());
    assert!(judge.hears(WEB, "192.0.2.1", TCP, 8080) && !judge.hears(WEB, "192.0.2.1", TCP, 80));
    let reached = |policer: &Policer| -> Vec<(&'static str, u16)> {
        let judge = Judge(policer.policies());
        let all = ["10.1.0.2", "10.2.0.2", "10.2.0.3", "192.0.2.1", "10.1.0.1"];
        let ports = all.into_iter().flat_map(|peer| [80, 8000, 8080].map(|port| (peer, port)));
        ports.filter(|(peer, port)| judge.reaches(WEB, peer, TCP, *port)).collect()
    };
    let egress = |to: Value| json!({ "policyTypes": ["Egress"], "egress": [{ "to": to, "ports": named }] });
    let all_pods = [("10.1.0.2", 80), ("10.2.0.2", 8000), ("10.1.0.1", 8080)];
    assert_eq!(reached(&under(egress(json!([])))), all_pods);
    assert_eq!(
        reached(&under(egress(json!([{ "podSelector": {} }])))),
        [("10.1.0.2", 80), ("10.1.0.1", 8080)]
    );
    let mut policer = under(egress(json!([{ "ipBlock": { "cidr": "10.2.0.0/16" } }])));
    assert_eq!(reached(&policer), [("10.2.0.2", 8000)]);
    // The port moves with the pod.
    policer.insert_pod("team", "client", &pod("app=client", &["10.2.0.2"], &[("http", 80)]));
    policer.update();
    assert_eq!(reached(&policer), [("10.2.0.2", 80)]);
    let policer = under(json!({ "ingress": [{ "ports": [{ "port": "none" }] }] }));
    let policed = Judge(policer.policies()).policed(WEB);
    assert!(policed.ingress.is_some() && policer.policies().rules.is_empty());
}

#[test]
fn pods_of_the_hosts_network_are_peers_by_their_address_alone() {
    let mut policer = under(from(json!([{ "podSelector": {} }])));
    let on_host = Pod { is_of_host_network: true, ..pod("app=client", &["192.0.2.1"], &[]) };
    policer.insert_pod("default", "on-host", &on_host);
    policer.update();
    assert_eq!(heard(&policer), ["10.1.0.2", "fd00::2"]);
    policer.insert_policy(&policy(
        "default",
        "one",
        from(json!([{ "ipBlock": { "cidr": "192.0.2.0/24" } }])),
    ));
    policer.update();
    assert_eq!(heard(&policer), ["192.0.2.1"]);
    // One that was a usual pod before.
    policer.insert_policy(&policy("default", "one", from(json!([{ "podSelector": {} }]))));
    policer.insert_pod("default", "client", &Pod { is_of_host_network: true, ..pod("", &["10.1.0.2"], &[]) });
    policer.update();
    assert_eq!(heard(&policer), Vec::<&str>::new());
}

#[test]
fn an_address_is_of_the_pod_that_has_it_here_and_else_of_who_said_so_last() {
    let mut policer = under(from(json!([{ "podSelector": { "matchLabels": { "app": "client" } } }])));
    // What ended gives its address back.
    policer.insert_pod("default", "client", &pod("app=client", &[], &[]));
    policer.update();
    assert_eq!(heard(&policer), Vec::<&str>::new());
    policer.insert_pod("default", "client", &pod("app=client", &["10.1.0.2"], &[]));
    policer.insert_pod("default", "heir", &pod("app=other", &["10.1.0.2"], &[]));
    policer.update();
    assert_eq!(heard(&policer), Vec::<&str>::new());
    policer.remove_pod("default", "heir");
    policer.update();
    assert_eq!(heard(&policer), ["10.1.0.2"]);
    // Before its status says so, and whatever that says.
    policer.insert_pod("default", "here", &pod("app=client", &[], &[]));
    policer.attach("default", "here", &[ip("192.0.2.1")]);
    policer.insert_pod("team", "liar", &pod("app=other", &["192.0.2.1"], &[]));
    policer.update();
    assert_eq!(heard(&policer), ["10.1.0.2", "192.0.2.1"]);
    assert!(Judge(policer.policies()).policed("192.0.2.1").ingress.is_some());
    // It stays what it is until it is detached, whatever becomes of its object.
    policer.remove_pod("default", "here");
    policer.update();
    assert_eq!(heard(&policer), ["10.1.0.2", "192.0.2.1"]);
    assert!(!policer.knows_pod("default", "here", "u"));
    policer.attach("default", "here", &[]);
    policer.update();
    assert_eq!(heard(&policer), ["10.1.0.2"]);
    assert!(!policer.policies().pods.contains_key(&ip("192.0.2.1").into()));
}

#[test]
fn what_cannot_be_read_allows_nothing_and_is_told() {
    let mut policer = under(json!({}));
    let mut told = |spec: Value| {
        let problems = policer.insert_policy(&policy("default", "one", spec)).to_vec();
        policer.update();
        let judge = Judge(policer.policies());
        assert!(judge.policed(WEB).ingress.is_some(), "{problems:?}");
        (problems, judge.hears(WEB, "10.1.0.2", TCP, 80), judge.hears(WEB, "10.1.0.2", TCP, 443))
    };
    let port = |port: Value| json!({ "podSelector": {}, "ingress": [{ "ports": [{ "port": 443 }, port] }] });
    for (spec, words, is_443_heard) in [
        (
            json!({ "podSelector": { "matchExpressions": [{ "key": "a", "operator": "Is" }] }, "ingress": [{}] }),
            "spec.podSelector.matchExpressions[0].operator: there is no \"Is\"",
            false,
        ),
        (from(json!([{}])), "spec.ingress[0].from[0]: nobody is named", false),
        (
            from(json!([{ "ipBlock": { "cidr": "10.0.0.0/8" }, "podSelector": {} }])),
            "beside a selector",
            false,
        ),
        (
            from(json!([{ "ipBlock": { "cidr": "10.0.0.0" } }])),
            "ipBlock.cidr: \"10.0.0.0\" is no range",
            false,
        ),
        (from(json!([{ "ipBlock": { "cidr": "10.0.0.0/33" } }])), "is no range", false),
        (
            from(json!([{ "ipBlock": { "cidr": "10.0.0.0/8", "except": ["x"] } }])),
            "except[0]: \"x\" is no",
            false,
        ),
        (
            from(json!([{ "ipBlock": { "cidr": "10.0.0.0/8", "except": ["10.0.0.0/7"] } }])),
            "10.0.0.0/7 is no part of 10.0.0.0/8",
            false,
        ),
        (
            from(
                json!([{ "namespaceSelector": { "matchExpressions": [{ "key": "a", "operator": "In" }] } }]),
            ),
            "from[0].namespaceSelector.matchExpressions[0].values: In needs some",
            false,
        ),
        (port(json!({ "port": 80, "protocol": "ICMP" })), "ports[1].protocol: there is no \"ICMP\"", true),
        (port(json!({ "port": 80, "endPort": 79 })), "endPort: 79 is below the port, 80", true),
        (port(json!({ "port": 0 })), "port: 0 is no port", true),
        (port(json!({ "port": 70000 })), "70000 is no port", true),
        (port(json!({ "port": "http", "endPort": 80 })), "endPort: it needs a port", true),
        (
            json!({ "policyTypes": ["Ingress", "Sideways"] }),
            "policyTypes[1]: there is no \"Sideways\"",
            false,
        ),
    ] {
        let (problems, hears_80, hears_443) = told(spec);
        assert!(problems.len() == 1 && problems[0].contains(words), "{problems:?} says nothing of {words}");
        assert!(!hears_80, "{words}");
        assert_eq!(hears_443, is_443_heard, "{words}");
    }
    assert_eq!(told(json!({ "ingress": [{}] })), (vec![], true, true));
}

#[test]
fn pods_with_the_same_policies_share_their_rules_and_nothing_is_left_behind() {
    let mut policer = under(from(json!([{ "podSelector": { "matchLabels": { "app": "client" } } },
        { "ipBlock": { "cidr": "10.0.0.0/8", "except": ["10.3.0.0/16"] } }])));
    let rules = policer.policies().rules.clone();
    policer.insert_pod("default", "web-2", &pod("app=web,n=2", &[], &[]));
    policer.attach("default", "web-2", &[ip("10.1.0.7")]);
    let changes = policer.update();
    assert!(changes.rules.is_empty(), "{changes:?}");
    assert_eq!(policer.policies().rules, rules);
    let judge = Judge(policer.policies());
    assert_eq!(judge.policed("10.1.0.7"), judge.policed(WEB));
    assert_ne!(judge.policed(WEB).ingress, RulesId::NONE);
    policer.attach("default", "web-2", &[]);
    policer.attach("default", "web", &[]);
    policer.update();
    assert_eq!(*policer.policies(), Policies::default());
    assert!(policer.terms.is_empty());
    // Numbers do not come back.
    policer.attach("default", "web", &[ip(WEB)]);
    policer.update();
    assert!(policer.policies().rules.is_disjoint(&rules));
}

#[test]
fn a_namespaces_labels_select_its_pods_from_when_they_are_there() {
    let mut policer = under(from(json!([{ "namespaceSelector": { "matchLabels": { "env": "prod" } } }])));
    assert_eq!(heard(&policer), Vec::<&str>::new());
    policer.insert_namespace("team", &labels("env=prod"));
    policer.update();
    assert_eq!(heard(&policer), ["10.2.0.2", "10.2.0.3"]);
    policer.remove_namespace("team");
    policer.update();
    assert_eq!(heard(&policer), Vec::<&str>::new());
    policer.insert_policy(&policy("default", "one", from(json!([{ "namespaceSelector": {} }]))));
    policer.update();
    assert_eq!(heard(&policer).len(), 4, "one that was not heard of has its name and no other label");
}

#[test]
fn a_pod_of_which_nothing_is_known_has_no_labels() {
    let mut policer = Policer::new(0);
    policer.attach("default", "web", &[ip(WEB)]);
    policer.insert_policy(&policy("default", "all", json!({ "podSelector": {} })));
    policer.insert_policy(&policy(
        "default",
        "web",
        json!({ "podSelector": { "matchLabels": { "app": "web" } },
        "ingress": [{}] }),
    ));
    policer.update();
    assert!(!Judge(policer.policies()).hears(WEB, "192.0.2.1", TCP, 80));
    policer.insert_pod("default", "web", &pod("app=web", &[], &[]));
    policer.update();
    assert!(Judge(policer.policies()).hears(WEB, "192.0.2.1", TCP, 80));
    policer.clear();
    policer.update();
    assert_eq!(*policer.policies(), Policies::default());
}

#[test]
fn people_are_told_by_whom_a_pod_is_isolated_and_what_it_is_allowed() {
    let spec = json!({ "podSelector": { "matchLabels": { "app": "web" } }, "policyTypes": ["Ingress", "Egress"],
        "ingress": [{ "from": [{ "podSelector": { "matchLabels": { "app": "client" } } },
            { "ipBlock": { "cidr": "10.9.0.0/16", "except": ["10.9.1.0/24"] } }], "ports": [{ "port": "http" }] }],
        "egress": [{ "ports": [{ "port": 53, "protocol": "UDP" }] }] });
    let policer = under(spec);
    let report = policer.show("default", "web").unwrap();
    assert!(report.is_known && report.addresses == [ip("10.1.0.1"), ip("fd00::1")]);
    assert_eq!(report.ingress.policies, ["one"]);
    assert_eq!(report.ingress.entries, 2, "of the client's group and of the range's");
    let rule = &report.ingress.allowed[0];
    assert_eq!(rule.ports.as_deref().unwrap(), ["TCP http (8080)"]);
    let peers = rule.peers.as_ref().unwrap();
    assert_eq!(peers[0].peer, "pods app=client in namespace default");
    assert_eq!(peers[0].pods, [("default/client".to_owned(), vec![ip("10.1.0.2"), ip("fd00::2")])]);
    assert_eq!(peers[1].peer, "10.9.0.0/16 except 10.9.1.0/24");
    assert_eq!(report.egress.allowed[0].peers, None);
    assert_eq!(report.egress.allowed[0].ports.as_deref().unwrap(), ["UDP 53"]);
    assert!(policer.show("default", "client").is_none(), "it is not of this node");
    let listed = policer.list();
    assert_eq!((listed[0].name.as_str(), &listed[0].pods), ("one", &vec!["web".to_owned()]));
    assert_eq!((listed[0].ingress, listed[0].egress), (Some(1), Some(1)));
    let counts = policer.counts();
    assert_eq!((counts.policies, counts.isolated_pods, counts.lists), (1, 1, 2));
    assert_eq!((counts.peers, counts.rules), (4, 3));
}
