use std::time::Duration;

use bgp::NextHopMode;
use bgp::policy::{LocalKind, PeerType, Policy, RouteSource, Subject, Verdict};
use bgp::wire::Attributes;
use calico::{BgpConfigurationSpec, BgpFilterSpec, BgpPeerSpec};
use serde_json::{Value, json};

use super::peers::{Desired, desired};
use super::standing::Standing;
use super::*;
use crate::bgp_io::{Secret, Transport};

const TOR: &str = "192.0.2.1";

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

fn node(last: u8, labels: Value, as_number: Option<u32>, cluster_id: Option<&str>) -> NodeFacts {
    NodeFacts {
        addresses: vec![ip(&format!("10.0.0.{last}")), ip(&format!("fd00::{last}"))],
        labels: serde_json::from_value(labels).expect("labels"),
        as_number: as_number.map(calico::AsNumber),
        cluster_id: cluster_id.map(|id| id.parse().expect("an id")),
        ..NodeFacts::default()
    }
}

/// Three nodes, of which node1 is ours.
fn known() -> Known {
    Known {
        nodes: BTreeMap::from([
            ("node1".to_owned(), node(1, json!({ "rack": "r1" }), None, None)),
            ("node2".to_owned(), node(2, json!({ "rack": "r1", "reflects": "yes" }), None, None)),
            ("node3".to_owned(), node(3, json!({ "rack": "r2" }), Some(65003), None)),
        ]),
        ..Known::default()
    }
}

fn own() -> Own {
    Own {
        name: "node1".to_owned(),
        addresses: vec![ip("10.0.0.1"), ip("fd00::1")],
        asn: 64512,
        default_asn: 64512,
        port: 179,
        default_port: 179,
        static_peers: Vec::new(),
        file_peers: Vec::new(),
        cluster_ranges: vec!["10.244.0.0/16".parse().expect("a range")],
    }
}

fn configuration(known: &mut Known, name: &str, spec: Value) {
    let spec: BgpConfigurationSpec = serde_json::from_value(spec).expect("a BGPConfiguration");
    known.configurations.insert(name.to_owned(), spec);
}

fn peer(known: &mut Known, name: &str, spec: Value) {
    let spec: BgpPeerSpec = serde_json::from_value(spec).expect("a BGPPeer");
    known.peers.insert(name.to_owned(), spec);
}

fn filter(known: &mut Known, name: &str, spec: Value) {
    let spec: BgpFilterSpec = serde_json::from_value(spec).expect("a BGPFilter");
    known.filters.insert(name.to_owned(), spec);
}

fn plan(known: &Known) -> Desired {
    desired(known, &own(), &Passwords::default())
}

/// Without the mesh, which is in nobody's way then.
fn with_peer(spec: Value) -> Known {
    let mut known = known();
    configuration(&mut known, "default", json!({ "nodeToNodeMeshEnabled": false }));
    peer(&mut known, "tor", spec);
    known
}

/// Addresses and their AS numbers.
fn peers_of(desired: &Desired) -> Vec<(String, u32)> {
    desired.neighbours.iter().map(|(ip, peer)| (ip.to_string(), peer.config.asn.unwrap_or(0))).collect()
}

fn only(desired: &Desired) -> &Neighbour {
    assert_eq!(desired.neighbours.len(), 1, "{desired:?}");
    desired.neighbours.values().next().expect("one")
}

fn problems(desired: &Desired) -> Vec<&str> {
    desired.problems.iter().map(|problem| problem.message.as_str()).collect()
}

#[test]
fn nodes_are_a_mesh_unless_that_is_said_otherwise() {
    let mut known = known();
    let mesh = [("10.0.0.2".to_owned(), 64512), ("10.0.0.3".to_owned(), 65003)];
    assert_eq!(peers_of(&plan(&known)), mesh);
    configuration(&mut known, "default", json!({ "asNumber": "1.0", "listenPort": 1790 }));
    configuration(&mut known, "node.node2", json!({ "listenPort": 179 }));
    let desired = plan(&known);
    assert_eq!(peers_of(&desired), [("10.0.0.2".to_owned(), 65536), ("10.0.0.3".to_owned(), 65003)]);
    assert_eq!(desired.neighbours[&ip("10.0.0.2")].transport.port, None, "it is our own port");
    assert_eq!(desired.neighbours[&ip("10.0.0.3")].transport.port, Some(1790));
    configuration(&mut known, "default", json!({ "nodeToNodeMeshEnabled": false }));
    assert!(plan(&known).neighbours.is_empty());
}

#[test]
fn reflectors_leave_the_mesh() {
    let mut known = known();
    known.nodes.insert("node2".to_owned(), node(2, json!({}), None, Some("10.0.0.2")));
    assert_eq!(peers_of(&plan(&known)), [("10.0.0.3".to_owned(), 65003)]);
    known.nodes.insert("node1".to_owned(), node(1, json!({}), None, Some("10.0.0.1")));
    assert!(plan(&known).neighbours.is_empty());
}

#[test]
fn a_peer_is_for_the_nodes_that_it_names() {
    let of = |more: Value| {
        let mut spec = json!({ "peerIP": TOR, "asNumber": 65000 });
        for (key, value) in more.as_object().expect("an object") {
            spec[key] = value.clone();
        }
        !plan(&with_peer(spec)).neighbours.is_empty()
    };
    assert!(of(json!({})) && of(json!({ "node": "node1" })) && of(json!({ "nodeSelector": "rack == 'r1'" })));
    assert!(!of(json!({ "node": "node2" })) && !of(json!({ "nodeSelector": "rack == 'r2'" })));
    let wrong = plan(&with_peer(json!({ "peerIP": TOR, "nodeSelector": "rack = 'r1'" })));
    assert!(wrong.neighbours.is_empty() && problems(&wrong)[0].starts_with("nodeSelector:"), "{wrong:?}");
}

#[test]
fn every_word_of_a_peer_reaches_the_speaker() {
    let known = with_peer(json!({
        "peerIP": "192.0.2.1:1790", "asNumber": "1.1", "localASNumber": 65009, "nextHopMode": "Keep",
        "sourceAddress": "None", "maxRestartTime": "2m", "keepaliveTime": "5s", "numAllowedLocalASNumbers": 2,
        "ttlSecurity": 3,
    }));
    let desired = plan(&known);
    let Neighbour { config, transport, .. } = only(&desired);
    assert_eq!((config.asn, config.local_asn), (Some(65537), Some(65009)));
    assert_eq!((config.next_hop, config.allow_own_as), (NextHopMode::Keep, 2));
    assert_eq!(config.restart_time, Some(Duration::from_secs(120)));
    assert_eq!(config.keepalive_time, Some(Duration::from_secs(5)));
    let expected = Transport {
        port: Some(1790),
        source: Some(ip("0.0.0.0")),
        ttl_security: Some(3),
        ..Transport::default()
    };
    assert_eq!(*transport, expected);
    assert!(desired.problems.is_empty());
    let plain = plan(&with_peer(json!({ "peerIP": TOR })));
    assert_eq!(only(&plain).config.asn, Some(64512), "our own, where none is named");
    assert_eq!(only(&plain).transport, Transport::default());
    let older = plan(&with_peer(json!({ "peerIP": TOR, "keepOriginalNextHop": true })));
    assert_eq!(only(&older).config.next_hop, NextHopMode::Keep);
}

#[test]
fn selected_nodes_peer_in_both_directions() {
    let mut known = with_peer(json!({ "nodeSelector": "!has(reflects)", "peerSelector": "has(reflects)" }));
    assert_eq!(peers_of(&plan(&known)), [("10.0.0.2".to_owned(), 64512)]);
    let reflector = Own { name: "node2".to_owned(), addresses: vec![ip("10.0.0.2")], ..own() };
    known.nodes.insert("node2".to_owned(), node(2, json!({ "reflects": "yes" }), None, Some("244.0.0.1")));
    let back = desired(&known, &reflector, &Passwords::default());
    assert_eq!(peers_of(&back), [("10.0.0.1".to_owned(), 64512), ("10.0.0.3".to_owned(), 65003)]);
    let client = &back.neighbours[&ip("10.0.0.1")].config;
    assert!(client.route_reflector_client);
    assert_eq!(client.cluster_id, Some("244.0.0.1".parse().expect("an id")));
    assert!(!back.neighbours[&ip("10.0.0.3")].config.route_reflector_client, "it is in another AS");
    peer(
        &mut known,
        "tor",
        json!({ "nodeSelector": "!has(reflects)", "peerSelector": "has(reflects)", "reversePeering": "Manual" }),
    );
    assert!(desired(&known, &reflector, &Passwords::default()).neighbours.is_empty());
}

#[test]
fn a_peer_without_its_password_is_not_connected_to() {
    let spec = json!({ "peerIP": TOR, "password": { "secretKeyRef": { "name": "bgp", "key": "tor" } } });
    let mut known = with_peer(spec);
    let without = plan(&known);
    assert!(without.neighbours.is_empty());
    assert_eq!(
        problems(&without),
        ["password: Secret kube-system/bgp was not read yet; the peer is not connected to"]
    );
    let key = PasswordKey { secret: "bgp".to_owned(), key: "tor".to_owned() };
    assert_eq!(without.passwords, BTreeSet::from([key.clone()]));
    let passwords = Passwords::with(key, b"secret");
    let with = desired(&known, &own(), &passwords);
    assert_eq!(only(&with).transport.password, Some(Secret::new(b"secret")));
    configuration(
        &mut known,
        "default",
        json!({ "nodeMeshPassword": { "secretKeyRef": { "name": "bgp", "key": "mesh" } } }),
    );
    let mesh = desired(&known, &own(), &passwords);
    assert_eq!(peers_of(&mesh), [(TOR.to_owned(), 64512)]);
    assert!(problems(&mesh)[0].starts_with("nodeMeshPassword: Secret kube-system/bgp"), "{mesh:?}");
}

#[test]
fn bfd_is_for_whom_an_annotation_asks() {
    let mut known = known();
    assert!(plan(&known).neighbours.values().all(|neighbour| neighbour.bfd.is_none()), "off by default");
    peer(&mut known, "tor", json!({ "peerIP": TOR, "asNumber": 65000 }));
    known.bfd_by_configuration.insert("default".to_owned(), "true".to_owned());
    known.bfd_by_peer.insert("tor".to_owned(), r#"{ "minimumSendInterval": "300ms" }"#.to_owned());
    let desired = plan(&known);
    assert_eq!(desired.neighbours[&ip("10.0.0.2")].bfd, Some(bfd_config::DEFAULT));
    let tor = desired.neighbours[&ip(TOR)].bfd.expect("BFD");
    assert_eq!((tor.send_interval, tor.multiplier), (Duration::from_millis(300), 3));
    known.bfd_by_peer.insert("tor".to_owned(), r#"{ "detectionMultiplier": 256 }"#.to_owned());
    let wrong = plan(&known);
    assert_eq!(wrong.neighbours[&ip(TOR)].bfd, None);
    assert_eq!(
        problems(&wrong),
        ["annotation seaway.dev/bfd: detectionMultiplier: 256 is no number from 1 to 255; there is no BFD"]
    );
    let problem = wrong.problems.first().expect("one");
    assert_eq!((problem.kind, problem.name.as_str()), ("BGPPeer", "tor"));
    let text = serde_json::to_string(&known).expect("it is written");
    assert_eq!(serde_json::from_str::<Known>(&text).expect("it is read"), known);
}

#[test]
fn an_annotation_that_goes_takes_bfd_along() {
    let object = |annotation: Option<&str>| BgpPeer {
        metadata: ObjectMeta {
            name: Some("tor".to_owned()),
            annotations: annotation
                .map(|text| BTreeMap::from([(bfd_config::ANNOTATION.to_owned(), text.to_owned())])),
            ..ObjectMeta::default()
        },
        ..BgpPeer::default()
    };
    let of = |peer: &BgpPeer| bfd_of(&peer.metadata);
    let with = changed(&BTreeMap::new(), &Change::Apply(object(Some("true"))), of);
    assert_eq!(with, BTreeMap::from([("tor".to_owned(), "true".to_owned())]));
    assert!(changed(&with, &Change::Apply(object(None)), of).is_empty());
    assert!(changed(&with, &Change::Delete(object(Some("true"))), of).is_empty());
    assert!(changed(&with, &Change::All(vec![object(None)]), of).is_empty());
}

#[test]
fn one_address_has_one_peer() {
    let mut known = with_peer(json!({ "peerIP": TOR, "asNumber": 65000 }));
    peer(&mut known, "zweiter", json!({ "peerIP": TOR, "asNumber": 65001 }));
    peer(&mut known, "self", json!({ "peerIP": "10.0.0.1" }));
    let command_line = vec![static_peer("192.0.2.1@65002"), static_peer("192.0.2.9")];
    let desired = desired(&known, &Own { static_peers: command_line, ..own() }, &Passwords::default());
    assert_eq!(peers_of(&desired), [(TOR.to_owned(), 65000), ("192.0.2.9".to_owned(), 64512)]);
    assert_eq!(problems(&desired), ["192.0.2.1 is the peer of another BGPPeer already"]);
}

fn static_peer(text: &str) -> crate::config::StaticPeer {
    text.parse().expect("a peer")
}

fn verdict(policy: &Policy, prefix: &str, source: RouteSource) -> Verdict {
    let prefix: IpNetwork = prefix.parse().expect("a prefix");
    let subject = Subject { prefix: prefix.into(), source, peer_type: PeerType::External, interface: None };
    policy.evaluate(&subject, &Attributes::default()).verdict
}

#[test]
fn a_node_speaks_for_itself_and_for_others_only_where_they_cannot() {
    let export = |spec: Value| {
        let mut known = with_peer(spec);
        let services = json!([{ "cidr": "203.0.113.0/24" }]);
        let spec = json!({ "nodeToNodeMeshEnabled": false, "serviceLoadBalancerIPs": services });
        configuration(&mut known, "default", spec);
        only(&plan(&known)).config.export.clone()
    };
    let (own, other) = (RouteSource::Local(LocalKind::Block), RouteSource::Peer(PeerType::Internal));
    let of_others = |policy: &Policy| {
        let prefixes = ["10.244.1.0/26", "203.0.113.9/32", "0.0.0.0/0"];
        prefixes.map(|prefix| verdict(policy, prefix, other) == Verdict::Accept)
    };
    let everywhere = export(json!({ "peerIP": TOR }));
    assert_eq!(verdict(&everywhere, "192.168.0.0/24", own), Verdict::Accept);
    assert_eq!(of_others(&everywhere), [false, false, false], "every node has this peer");
    let border = export(json!({ "peerIP": TOR, "nodeSelector": "rack == 'r1'" }));
    assert_eq!(of_others(&border), [true, false, false], "pods of rack r2 are reached by this node");
    let kept = export(json!({ "peerIP": TOR, "nextHopMode": "Keep" }));
    assert_eq!(of_others(&kept), [true, true, false], "the routes lead straight to their nodes");
}

#[test]
fn filters_are_tried_in_order_and_a_missing_one_closes_the_peer() {
    let mut known = with_peer(json!({ "peerIP": TOR, "filters": ["first", "second"] }));
    filter(
        &mut known,
        "first",
        json!({ "exportV4": [{ "action": "Reject", "cidr": "10.244.1.0/24", "matchOperator": "In" }],
            "importV4": [{ "action": "Accept", "cidr": "198.51.100.0/24", "matchOperator": "Equal", "operations": [
                { "addCommunity": { "value": "65000:7" } }, { "setPriority": { "value": 512 } }] }] }),
    );
    let own_block = RouteSource::Local(LocalKind::Block);
    let remote = RouteSource::Peer(PeerType::External);
    let closed = plan(&known);
    assert!(problems(&closed)[0].starts_with("filters: there is no BGPFilter second"), "{closed:?}");
    assert_eq!(verdict(&only(&closed).config.import, "198.51.100.0/24", remote), Verdict::Reject);
    assert_eq!(verdict(&only(&closed).config.export, "10.244.9.0/26", own_block), Verdict::Reject);
    filter(&mut known, "second", json!({ "importV4": [{ "action": "Reject" }] }));
    let open = plan(&known);
    let config = &only(&open).config;
    assert_eq!(verdict(&config.import, "198.51.100.0/24", remote), Verdict::Accept);
    assert_eq!(verdict(&config.import, "198.51.101.0/24", remote), Verdict::Reject);
    assert_eq!(
        verdict(&config.import, "2001:db8::/32", remote),
        Verdict::Accept,
        "rules of IPv4 are for IPv4"
    );
    assert_eq!(verdict(&config.export, "10.244.1.64/26", own_block), Verdict::Reject);
    assert_eq!(verdict(&config.export, "10.244.9.0/26", own_block), Verdict::Accept);
    assert_eq!(config.import.rules[0].name.as_ref(), "first/importV4/0");
    // Of what needs a new session, nothing differs.
    let strip = |desired: &Desired| {
        let mut neighbour = only(desired).clone();
        (neighbour.config.import, neighbour.config.export) = (Policy::default(), Policy::default());
        neighbour
    };
    assert_eq!(strip(&open), strip(&closed));
}

#[test]
fn communities_are_values_or_names_of_them() {
    let mut known = known();
    configuration(
        &mut known,
        "default",
        json!({ "communities": [{ "name": "rack", "value": "65000:300:100" }], "prefixAdvertisements": [
            { "cidr": "203.0.113.0/24", "communities": ["rack", "65000:120", "nobody"] }] }),
    );
    let (communities, problems) = known.communities("node1");
    let range: IpNetwork = "203.0.113.0/24".parse().expect("a range");
    assert_eq!(communities, [(range, vec!["65000:300:100".to_owned(), "65000:120".to_owned()])]);
    assert_eq!(
        problems,
        ["prefixAdvertisements of 203.0.113.0/24: \"nobody\" is no community and no name of one"]
    );
    assert_eq!(filters::community("65000:120"), Some(Community::Standard(65000 << 16 | 120)));
    for text in ["65536:1", "1", "1:2:3:4", "a:b", "1:4294967296:1"] {
        assert_eq!(filters::community(text), None, "{text}");
    }
}

#[test]
fn what_is_known_survives_the_disk() {
    let mut known = with_peer(json!({ "peerIP": TOR, "asNumber": "1.1", "password": {
        "secretKeyRef": { "name": "a", "key": "b" } } }));
    filter(
        &mut known,
        "f",
        json!({ "exportV6": [{ "action": "Accept", "cidr": "2001:db8::/32", "matchOperator": "In",
            "prefixLength": { "max": 64 }, "operations": [{ "prependASPath": { "prefix": [1, 2] } }] }] }),
    );
    let text = serde_json::to_string(&known).expect("it is written");
    assert_eq!(serde_json::from_str::<Known>(&text).expect("it is read"), known);
}

#[test]
fn an_excluded_node_announces_nothing_of_services() {
    let mut known = known();
    configuration(
        &mut known,
        "default",
        json!({ "serviceLoadBalancerIPs": [{ "cidr": "203.0.113.0/24" }], "serviceLoadBalancerAggregation": "Disabled" }),
    );
    let advertisement = known.advertisement("node1");
    assert!(advertisement.load_balancers_one_by_one && !advertisement.is_excluded);
    let excluded = json!({ "node.kubernetes.io/exclude-from-external-load-balancers": "" });
    known.nodes.insert("node1".to_owned(), node(1, excluded, None, None));
    assert!(known.advertisement("node1").is_excluded && !known.advertisement("node2").is_excluded);
}

#[test]
fn what_nodes_and_internal_peers_told_is_kept_when_they_are_silent() {
    let mut known = known();
    let times = |desired: &Desired| -> Vec<Option<Duration>> {
        desired.neighbours.values().map(|neighbour| neighbour.config.long_lived_stale_time).collect()
    };
    assert_eq!(times(&plan(&known)), [Some(LAST_KNOWN_TIME); 2], "the mesh, also with a node of another AS");
    configuration(&mut known, "default", json!({ "nodeToNodeMeshEnabled": false }));
    for (spec, kept) in [
        (json!({ "peerSelector": "has(reflects)" }), Some(LAST_KNOWN_TIME)),
        (json!({ "peerIP": TOR, "asNumber": 64512 }), Some(LAST_KNOWN_TIME)),
        (json!({ "peerIP": TOR, "asNumber": 64999 }), None),
    ] {
        peer(&mut known, "tor", spec.clone());
        assert_eq!(times(&plan(&known)), [kept], "{spec}");
    }
}

#[test]
fn a_node_out_of_service_announces_nothing_of_services_and_a_leaving_one_knows_whether_others_stay() {
    let mut known = known();
    configuration(&mut known, "default", json!({ "serviceClusterIPs": [{ "cidr": "10.96.0.0/16" }] }));
    let mut set = |node: &str, standing: Standing| {
        known.nodes.get_mut(node).expect("a node").standing = standing;
        (known.is_leaving("node1"), known.advertisement("node1").is_excluded, known.has_successor("node1"))
    };
    assert_eq!(set("node1", Standing::InService), (false, false, true));
    assert_eq!(set("node1", Standing::Leaving), (true, false, true));
    assert_eq!(set("node2", Standing::Leaving), (true, false, true), "there is a third one");
    assert_eq!(set("node3", Standing::OutOfService), (true, false, false));
    assert_eq!(set("node1", Standing::OutOfService), (false, true, false));
}
