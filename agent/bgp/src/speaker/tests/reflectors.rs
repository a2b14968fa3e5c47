//! A reflector that is lost, and comes back: it leads to nobody itself.

use super::*;

/// A reflector, and its clients 1 and 2, which originate a prefix each. All keep what is long stale for a day.
fn reflected() -> Network {
    let mut network = Network::new(&INTERNAL);
    let peer = |client: bool| PeerConfig {
        asn: Some(INTERNAL[0]),
        route_reflector_client: client,
        long_lived_stale_time: Some(Duration::from_secs(86_400)),
        ..PeerConfig::default()
    };
    let clients = BTreeMap::from([(address(1), peer(true)), (address(2), peer(true))]);
    network.speakers[0].set_peers(&clients, network.now);
    for index in 1..3 {
        network.speakers[index].set_peers(&BTreeMap::from([(address(0), peer(false))]), network.now);
    }
    for index in 0..3 {
        network.originate(index, &[prefix(index, 0)]);
    }
    network.advance(Duration::from_secs(1));
    assert_eq!(network.next_hops(1, prefix(2, 0)), [address(2)]);
    assert_eq!(network.next_hops(1, prefix(0, 0)), [address(0)]);
    network
}

/// BFD tells one that another is not reached any more, which hears nothing of it.
fn lose(network: &mut Network, index: usize, peer: usize) {
    let ids: Vec<ConnectionId> =
        network.owner.iter().filter(|(_, o)| **o == index).map(|(id, _)| *id).collect();
    let to_peer = |id: &ConnectionId| network.far_end.get(id).is_some_and(|(owner, _)| *owner == peer);
    let cut: Vec<ConnectionId> = ids.into_iter().filter(to_peer).collect();
    network.far_end.retain(|id, _| !cut.contains(id));
    let input = Input::PathFailed { peer: address(peer), heard_at: Some(network.now), independent: false };
    network.speakers[index].handle(input, network.now);
    network.settle();
}

#[test]
fn what_a_lost_reflector_told_is_kept_as_long_stale_and_its_own_routes_are_not() {
    let mut network = reflected();
    lose(&mut network, 1, 0);
    assert_eq!(network.next_hops(1, prefix(2, 0)), [address(2)], "the other client is no further away");
    assert_eq!(network.next_hops(1, prefix(0, 0)), [] as [IpAddr; 0], "this leads over the lost path");
    let route = network.speakers[1].routes().into_iter().find(|route| route.prefix == prefix(2, 0));
    let path = route.expect("it is there").paths[0].clone();
    assert!(path.stale && path.long_stale(), "any other path goes before it");
}

#[test]
fn without_long_lived_graceful_restart_a_lost_reflector_takes_its_routes_along() {
    let mut network = Network::new(&INTERNAL);
    let peer = |client: bool| PeerConfig { route_reflector_client: client, ..PeerConfig::default() };
    let clients = BTreeMap::from([(address(1), peer(true)), (address(2), peer(true))]);
    network.speakers[0].set_peers(&clients, network.now);
    for index in 1..3 {
        network.speakers[index].set_peers(&BTreeMap::from([(address(0), peer(false))]), network.now);
        network.originate(index, &[prefix(index, 0)]);
    }
    network.advance(Duration::from_secs(1));
    assert_eq!(network.next_hops(1, prefix(2, 0)), [address(2)]);
    lose(&mut network, 1, 0);
    assert_eq!(network.next_hops(1, prefix(2, 0)), [] as [IpAddr; 0]);
}

#[test]
fn a_reflector_that_lost_its_clients_says_that_it_sent_all_when_they_are_back() {
    for returns in [true, false] {
        let mut network = reflected();
        for client in 1..3 {
            lose(&mut network, client, 0);
            lose(&mut network, 0, client);
        }
        // The first one is back, with a session to a reflector that knows nothing of the second yet.
        network.down.insert(2);
        network.advance(Duration::from_secs(40));
        let state = network.speakers[1].peers()[0].state;
        assert_eq!(state, State::Established);
        assert_eq!(network.next_hops(1, prefix(2, 0)), [address(2)], "kept until there is better news");
        if returns {
            network.down.remove(&2);
        }
        network.advance(Duration::from_secs(60));
        let expected = if returns { vec![address(2)] } else { vec![] };
        assert_eq!(network.next_hops(1, prefix(2, 0)), expected, "it is back: {returns}");
        assert_eq!(network.speakers[1].peers()[0].routes_stale, 0);
    }
}
