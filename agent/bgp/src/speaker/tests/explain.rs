//! Why a peer is told of a destination, or is not.

use super::exchange::{linked, plain, reject, with_communities, within};
use super::*;
use crate::config::NextHopMode;
use crate::wire::attributes::community;

fn told(network: &Network, index: usize, prefix: Prefix, peer: usize) -> Explanation {
    let explanation = network.speakers[index].explain(address(peer), prefix).expect("a peer");
    let sent = network.speakers[index].advertised_to(address(peer), prefix);
    assert_eq!(explanation.is_told(), !sent.is_empty(), "what is said is what was done: {explanation:?}");
    explanation
}

fn why(network: &Network, index: usize, prefix: Prefix, peer: usize) -> Vec<String> {
    let explanation = told(network, index, prefix, peer);
    let obstacle = explanation.obstacle.iter().map(ToString::to_string);
    obstacle.chain(explanation.paths.iter().map(|(source, fate)| format!("{source}: {fate}"))).collect()
}

#[test]
fn between_internal_peers_a_route_passes_only_through_a_reflector() {
    let client = PeerConfig { route_reflector_client: true, ..plain() };
    let links = |of: PeerConfig| [(0, 1, plain()), (1, 0, of.clone()), (1, 2, of), (2, 1, plain())];
    let mut network = linked(&[64512; 3], &links(plain()));
    network.originate(0, &[prefix(0, 0)]);
    network.advance(Duration::from_secs(15));
    let [internal] = &why(&network, 1, prefix(0, 0), 2)[..] else { panic!("one path") };
    assert!(internal.starts_with("10.89.0.11: it comes from an internal peer"), "{internal}");
    assert_eq!(why(&network, 1, prefix(0, 0), 0), ["10.89.0.11: the peer itself announced it"]);
    network.set_links(1, &links(client));
    network.advance(Duration::from_secs(15));
    assert_eq!(why(&network, 1, prefix(0, 0), 2), ["10.89.0.11: told, with next hop 10.89.0.11"]);
}

#[test]
fn communities_rules_and_next_hops_that_keep_a_route_back_are_named() {
    let mut rejecting = reject(within(prefix(1, 3)));
    rejecting.rules[0].name = "cut/exportV4/0".into();
    let filtered = PeerConfig { export: rejecting, ..plain() };
    let keeping = PeerConfig { next_hop: NextHopMode::Keep, ..plain() };
    let links = [(0, 1, plain()), (1, 0, keeping), (1, 2, filtered), (2, 1, plain())];
    let mut network = linked(&[64512, 64512, 65001], &links);
    network.advance(Duration::from_secs(15));
    let routes = [
        (prefix(1, 0), with_communities(&[])),
        (prefix(1, 1), with_communities(&[community::NO_EXPORT])),
        (prefix(1, 2), with_communities(&[community::NO_ADVERTISE])),
        (prefix(1, 3), with_communities(&[])),
    ];
    network.originate_as(1, &routes);
    let reasons: Vec<String> = (0..4).flat_map(|n| why(&network, 1, prefix(1, n), 2)).collect();
    assert_eq!(
        reasons,
        [
            "local: told, with next hop 10.89.0.12",
            "local: it has the community NO_EXPORT (RFC 1997), and the peer is of another AS",
            "local: it has the community NO_ADVERTISE (RFC 1997)",
            "local: rule cut/exportV4/0 of the export policy rejects it",
        ]
    );
    assert_eq!(why(&network, 1, prefix(1, 1), 0), ["local: told, with next hop 10.89.0.12"]);
    let v6 = Prefix::new("fd00::".parse().unwrap(), 64).unwrap();
    assert_eq!(why(&network, 1, v6, 0), ["the session does not carry IPv6"]);
    let unknown = Prefix::new("192.0.2.0".parse().unwrap(), 24).unwrap();
    assert_eq!(
        why(&network, 1, unknown, 0),
        ["nobody announced it to this node, and it is none of the node's own"]
    );
    let inside = Prefix::new(prefix(1, 0).address(), 28).unwrap();
    assert_eq!(
        why(&network, 1, inside, 0),
        [format!("nobody announced exactly this to this node; {} holds it", prefix(1, 0))]
    );
}

#[test]
fn a_path_that_lost_names_the_better_one_and_one_that_is_not_considered_says_why() {
    let mut rejecting = reject(within(prefix(0, 1)));
    rejecting.rules[0].name = "cut/importV4/0".into();
    let filtered = PeerConfig { import: rejecting, ..plain() };
    let links = [
        (0, 1, plain()),
        (1, 0, filtered),
        (1, 2, plain()),
        (2, 1, plain()),
        (1, 3, plain()),
        (3, 1, plain()),
    ];
    let mut network = linked(&[65000, 64512, 65002, 65003], &links);
    network.originate(0, &[prefix(0, 0), prefix(0, 1)]);
    network.originate(2, &[prefix(0, 0)]);
    network.advance(Duration::from_secs(15));
    assert_eq!(
        why(&network, 1, prefix(0, 0), 3),
        [
            "10.89.0.11: told, with next hop 10.89.0.12",
            "10.89.0.13: the path from 10.89.0.11 goes instead: lower BGP identifier",
        ]
    );
    assert_eq!(
        why(&network, 1, prefix(0, 1), 3),
        ["10.89.0.11: not considered here: rule cut/importV4/0 of the import policy rejects it"]
    );
}

#[test]
fn what_the_peer_is_likely_to_drop_is_said_and_so_is_a_session_that_is_down() {
    // 0 and 2 are of one AS, with another between them.
    let links = [(0, 1, plain()), (1, 0, plain()), (1, 2, plain()), (2, 1, plain())];
    let mut network = linked(&[65001, 64512, 65001], &links);
    network.originate(0, &[prefix(0, 0)]);
    network.advance(Duration::from_secs(15));
    assert_eq!(
        why(&network, 1, prefix(0, 0), 2),
        [
            "10.89.0.11: told, with next hop 10.89.0.12; the peer drops it unless it allows its own AS 65001 in the AS_PATH"
        ]
    );
    assert_eq!(network.next_hops(2, prefix(0, 0)), [] as [IpAddr; 0]);
    network.kill(2);
    network.settle();
    let [down] = &why(&network, 1, prefix(0, 0), 2)[..] else { panic!("one reason") };
    assert!(down.starts_with("the session is "), "{down}");
    assert!(network.speakers[1].explain(address(9), prefix(0, 0)).is_none());
}
