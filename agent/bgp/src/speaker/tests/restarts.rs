//! Routes that outlive their session: long-lived graceful restart (RFC 9494), NOTIFICATIONs that do not end it all.

use super::*;
use crate::session;
use crate::wire::attributes::community;

fn long_lived() -> PeerConfig {
    PeerConfig { long_lived_stale_time: Some(Duration::from_secs(3600)), ..PeerConfig::default() }
}

fn pair(config: &PeerConfig) -> Network {
    let mut network = Network::new(&INTERNAL[..2]);
    for index in 0..2 {
        let peers = BTreeMap::from([(address(1 - index), config.clone())]);
        network.speakers[index].set_peers(&peers, network.now);
    }
    network
}

#[test]
fn long_stale_routes_stay_as_a_last_resort_and_go_in_the_end() {
    let mut network = pair(&long_lived());
    let refused = LocalRoute { communities: vec![community::NO_LLGR], ..LocalRoute::default() };
    let routes = BTreeMap::from([(prefix(0, 0), LocalRoute::default()), (prefix(0, 1), refused)]);
    network.speakers[0].set_local(routes);
    network.advance(Duration::from_secs(1));
    network.kill(0);
    network.advance(Duration::from_secs(121));
    assert_eq!(network.next_hops(1, prefix(0, 0)), [address(0)], "beyond the restart time");
    assert_eq!(network.next_hops(1, prefix(0, 1)), [] as [IpAddr; 0], "NO_LLGR");
    let path = &network.speakers[1].routes()[0].paths[0];
    assert!(path.long_stale() && path.stale);
    // The session's own timers must not hinder the wait.
    network.advance(Duration::from_secs(3590));
    assert_eq!(network.next_hops(1, prefix(0, 0)), [address(0)]);
    network.advance(Duration::from_secs(20));
    assert_eq!(network.next_hops(1, prefix(0, 0)), [] as [IpAddr; 0]);
    assert_eq!(network.speakers[1].routes().len(), 0);
}

#[test]
fn a_peer_that_returns_after_its_restart_time_makes_its_routes_fresh() {
    let mut network = pair(&long_lived());
    network.originate(0, &[prefix(0, 0), prefix(0, 1)]);
    network.advance(Duration::from_secs(1));
    network.kill(0);
    network.advance(Duration::from_secs(600));
    network.speakers[0] = Speaker::new(config(0, 64512), network.now);
    network.down.remove(&0);
    network.originate(0, &[prefix(0, 0)]);
    let peers = BTreeMap::from([(address(1), long_lived())]);
    network.speakers[0].set_peers(&peers, network.now);
    network.advance(Duration::from_secs(60));
    let routes = network.speakers[1].routes();
    assert_eq!(routes.len(), 1, "what did not come again is gone");
    assert!(!routes[0].paths[0].long_stale() && !routes[0].paths[0].stale);
    network.advance(Duration::from_secs(4000));
    assert_eq!(network.next_hops(1, prefix(0, 0)), [address(0)], "the deadline is gone too");
}

#[test]
fn a_session_ended_by_an_error_keeps_its_routes_and_one_ended_for_good_does_not() {
    let plain = PeerConfig::default();
    for (notification, kept) in [
        (Notification::new(3, 1), true),
        (Notification::cease(cease::ADMINISTRATIVE_RESET), true),
        (Notification::cease(cease::OTHER_CONFIGURATION_CHANGE), true),
        (Notification::cease(cease::HARD_RESET), false),
        (Notification::cease(cease::ADMINISTRATIVE_SHUTDOWN), false),
    ] {
        let mut network = pair(&plain);
        network.originate(0, &[prefix(0, 0)]);
        network.advance(Duration::from_secs(1));
        let id = network.speakers[1].peers[&address(0)].session.negotiated().unwrap().connection;
        let message = wire::encode_notification(&notification);
        let now = network.now;
        network.speakers[1].handle(Input::Received { id, octets: &message }, now);
        network.settle();
        let expected = if kept { vec![address(0)] } else { vec![] };
        assert_eq!(network.next_hops(1, prefix(0, 0)), expected, "{notification}");
    }
}

#[test]
fn a_peer_that_reads_nothing_is_given_up_after_eight_minutes() {
    let mut network = pair(&PeerConfig::default());
    network.advance(Duration::from_secs(1));
    let peer = network.speakers[0].peers.get_mut(&address(1)).unwrap();
    let (id, mut now) = (peer.session.negotiated().unwrap().connection, network.now);
    let end = now + Duration::from_secs(470);
    while now < end {
        // It says that it is alive, and takes nothing.
        now += Duration::from_secs(47);
        peer.session.handle(session::Input::Received(id, &wire::encode_keepalive()), now);
    }
    assert_eq!(peer.session.state(), State::Established);
    peer.session.handle(session::Input::Tick, now + Duration::from_secs(12));
    let outputs: Vec<session::Output> = std::iter::from_fn(|| peer.session.poll_output()).collect();
    let told = outputs
        .iter()
        .any(|output| matches!(output, session::Output::Send(_, m) if m[18..].starts_with(&[3, 8])));
    assert!(told, "{outputs:?}");
}

fn path_failed(network: &mut Network, heard_at: Option<Instant>, independent: bool) {
    let input = Input::PathFailed { peer: address(0), heard_at, independent };
    network.speakers[1].handle(input, network.now);
    network.settle();
}

#[test]
fn a_lost_path_ends_the_session_and_its_routes_at_once() {
    // Both have graceful restart, and would keep the routes of one that is restarting.
    for config in [PeerConfig::default(), long_lived()] {
        let mut network = pair(&config);
        network.originate(0, &[prefix(0, 0)]);
        network.advance(Duration::from_secs(1));
        let before = network.now - Duration::from_secs(60);
        path_failed(&mut network, Some(before), false);
        assert_eq!(network.next_hops(1, prefix(0, 0)), [address(0)], "lost before the session began");
        let now = network.now;
        path_failed(&mut network, Some(now), false);
        assert_eq!(network.next_hops(1, prefix(0, 0)), [] as [IpAddr; 0]);
        let status = &network.speakers[1].peers()[0];
        let sent = status.last_notification_sent.as_ref().expect("a NOTIFICATION").to_string();
        assert_eq!(sent, "Cease (6): Hard Reset (9): Cease (6): BFD Down (10)");
        assert!(status.state < State::Established);
        let told = network.speakers[0].peers()[0].last_notification_received.clone();
        assert_eq!(told.expect("it came through").to_string(), sent);
        network.advance(Duration::from_secs(5));
        assert_eq!(network.next_hops(1, prefix(0, 0)), [address(0)], "BGP comes back without BFD");
    }
}

#[test]
fn a_lost_path_to_a_restarting_peer_ends_its_routes_only_where_forwarding_has_failed() {
    for (independent, kept) in [(false, true), (true, false)] {
        let mut network = pair(&long_lived());
        network.originate(0, &[prefix(0, 0)]);
        network.advance(Duration::from_secs(1));
        network.kill(0);
        network.settle();
        assert_eq!(network.next_hops(1, prefix(0, 0)), [address(0)], "graceful restart");
        let now = network.now;
        path_failed(&mut network, Some(now), independent);
        let expected = if kept { vec![address(0)] } else { vec![] };
        assert_eq!(network.next_hops(1, prefix(0, 0)), expected, "C bit {independent}");
    }
}
