//! What peers are sent and what is made of it: policies, attributes, limits, several paths.

use super::*;
use crate::config::{AddPath, NextHopMode};
use crate::policy::{
    Action, Community, LocalKind, Match, Policy, PrefixMatch, PrefixOperator, Rule, SourceMatch, Verdict,
};
use crate::rib::Rejected;
use crate::wire::attributes::community;

/// Speakers with one configuration per direction of each link.
pub(super) fn linked(asns: &[u32], links: &[(usize, usize, PeerConfig)]) -> Network {
    let mut network = Network::new(asns);
    for index in 0..asns.len() {
        network.set_links(index, links);
    }
    network
}

impl Network {
    pub(super) fn set_links(&mut self, index: usize, links: &[(usize, usize, PeerConfig)]) {
        let of_index = links.iter().filter(|(from, _, _)| *from == index);
        let peers = of_index.map(|(_, to, config)| (address(*to), config.clone())).collect();
        self.speakers[index].set_peers(&peers, self.now);
    }

    pub(super) fn originate_as(&mut self, index: usize, routes: &[(Prefix, LocalRoute)]) {
        self.speakers[index].set_local(routes.iter().cloned().collect());
        self.advance(Duration::from_millis(1));
    }

    fn status(&self, index: usize, peer: usize) -> PeerStatus {
        let wanted = address(peer);
        self.speakers[index].peers().into_iter().find(|status| status.address == wanted).unwrap()
    }

    /// The path that a speaker has from a peer.
    fn path(&self, index: usize, prefix: Prefix, from: usize) -> Option<Path> {
        let routes = self.speakers[index].routes();
        let route = routes.into_iter().find(|route| route.prefix == prefix)?;
        route.paths.into_iter().find(|path| path.source == Source::Peer(address(from)))
    }
}

pub(super) fn plain() -> PeerConfig {
    PeerConfig::default()
}

pub(super) fn reject(matches: Match) -> Policy {
    let rule = Rule { matches, verdict: Some(Verdict::Reject), ..Rule::default() };
    Policy { rules: vec![rule], default: Verdict::Accept }
}

pub(super) fn within(prefix: Prefix) -> Match {
    Match { prefix: Some(PrefixMatch::new(PrefixOperator::In, prefix)), ..Match::default() }
}

pub(super) fn with_communities(communities: &[u32]) -> LocalRoute {
    LocalRoute { communities: communities.to_vec(), ..LocalRoute::default() }
}

#[test]
fn a_changed_export_policy_withdraws_and_announces_on_the_session_there_is() {
    let mut network = linked(&[64512, 65001], &[(0, 1, plain()), (1, 0, plain())]);
    network.originate(0, &[prefix(0, 0), prefix(0, 1)]);
    network.advance(Duration::from_secs(1));
    let since = network.status(0, 1).established_at;
    let filtered = PeerConfig { export: reject(within(prefix(0, 1))), ..plain() };
    network.set_links(0, &[(0, 1, filtered)]);
    network.advance(Duration::from_millis(1));
    assert_eq!(network.next_hops(1, prefix(0, 1)), [] as [IpAddr; 0]);
    assert_eq!(network.next_hops(1, prefix(0, 0)), [address(0)]);
    assert_eq!(network.status(0, 1).routes_advertised, 1);
    let before = network.updates_sent[0];
    network.set_links(0, &[(0, 1, plain())]);
    network.advance(Duration::from_millis(1));
    assert_eq!(network.next_hops(1, prefix(0, 1)), [address(0)]);
    assert_eq!(network.updates_sent[0] - before, 1, "the difference alone is sent");
    assert_eq!(network.status(0, 1).established_at, since, "no reset");
}

#[test]
fn a_changed_import_policy_is_applied_to_what_the_peer_has_sent_before() {
    let mut network = linked(&[64512, 65001], &[(0, 1, plain()), (1, 0, plain())]);
    network.originate(1, &[prefix(1, 0), prefix(1, 1)]);
    network.advance(Duration::from_secs(1));
    let (since, sent) = (network.status(0, 1).established_at, network.updates_sent[1]);
    network.set_links(0, &[(0, 1, PeerConfig { import: reject(within(prefix(1, 1))), ..plain() })]);
    network.advance(Duration::from_millis(1));
    assert_eq!(network.next_hops(0, prefix(1, 1)), [] as [IpAddr; 0]);
    assert_eq!(network.path(0, prefix(1, 1), 1).unwrap().rejected, Some(Rejected::Policy(Some(0))));
    assert_eq!((network.status(0, 1).routes, network.status(0, 1).routes_rejected), (2, 1));
    network.set_links(0, &[(0, 1, plain())]);
    network.advance(Duration::from_millis(1));
    assert_eq!(network.next_hops(0, prefix(1, 1)), [address(1)]);
    assert_eq!((network.status(0, 1).established_at, network.updates_sent[1]), (since, sent));
}

#[test]
fn changed_limits_and_times_leave_the_session_alone_and_other_families_begin_a_new_one() {
    let mut network = linked(&[64512, 65001], &[(0, 1, plain()), (1, 0, plain())]);
    network.advance(Duration::from_secs(1));
    let since = network.status(0, 1).established_at;
    network.set_links(
        0,
        &[(0, 1, PeerConfig { max_prefixes: Some(9), next_hop: NextHopMode::Keep, ..plain() })],
    );
    network.advance(Duration::from_secs(1));
    assert_eq!(network.status(0, 1).established_at, since);
    let timers = PeerConfig {
        hold_time: Some(Duration::from_secs(9)),
        keepalive_time: Some(Duration::from_secs(2)),
        ..plain()
    };
    network.set_links(0, &[(0, 1, timers.clone())]);
    network.advance(Duration::from_secs(5));
    let status = network.status(0, 1);
    assert_eq!((status.established_at, status.hold_time), (since, Some(Duration::from_secs(90))));
    assert_eq!(status.keepalive_time, Some(Duration::from_secs(2)), "nobody was told of that");
    let families = Some(vec![Family::Ipv4, Family::Ipv6]);
    network.set_links(0, &[(0, 1, PeerConfig { families, ..timers })]);
    network.advance(Duration::from_secs(5));
    let status = network.status(0, 1);
    assert_ne!(status.established_at, since);
    assert_eq!(status.hold_time, Some(Duration::from_secs(9)));
    assert_eq!(status.keepalive_time, Some(Duration::from_secs(2)));
    assert_eq!(network.status(1, 0).keepalive_time, Some(Duration::from_secs(3)));
}

#[test]
fn services_and_blocks_are_told_apart_in_policies() {
    let services = Rule {
        matches: Match { sources: vec![SourceMatch::Kind(LocalKind::Service)], ..Match::default() },
        actions: vec![Action::AddCommunity(Community::Large([64512, 1, 2]))],
        verdict: Some(Verdict::Accept),
        ..Rule::default()
    };
    let export = Policy::reject_by_default(vec![services]);
    let mut network = linked(&[64512, 65001], &[(0, 1, PeerConfig { export, ..plain() }), (1, 0, plain())]);
    let service: Prefix = "10.96.0.7/32".parse().unwrap();
    let route = |kind| LocalRoute { kind, ..LocalRoute::default() };
    network.advance(Duration::from_secs(1));
    network.originate_as(0, &[(prefix(0, 0), route(LocalKind::Block)), (service, route(LocalKind::Service))]);
    assert_eq!(network.speakers[1].routes().len(), 1);
    assert_eq!(network.path(1, service, 0).unwrap().attributes.large_communities, [[64512, 1, 2]]);
    // The kind alone changes: nothing else of the route does.
    network.originate_as(0, &[(service, route(LocalKind::ServiceRange))]);
    assert_eq!(network.speakers[1].routes().len(), 0);
}

#[test]
fn a_local_as_is_all_that_the_peer_sees_and_our_own_as_twice_needs_leave() {
    // 0 is AS 65100 to 1, which passes its route to 2, of the same AS as 0.
    let local = PeerConfig { local_asn: Some(65100), asn: Some(65001), ..plain() };
    let from_0 = PeerConfig { asn: Some(65100), ..plain() };
    let links = [(0, 1, local), (1, 0, from_0), (1, 2, plain()), (2, 1, plain())];
    let mut network = linked(&[64512, 65001, 65100], &links);
    network.originate(0, &[prefix(0, 0)]);
    network.advance(Duration::from_secs(15));
    let seen = network.path(1, prefix(0, 0), 0).unwrap();
    assert!(seen.attributes.as_path_starts_with(&[65100]) && seen.attributes.as_path_length() == 1);
    assert_eq!(network.path(2, prefix(0, 0), 1).unwrap().rejected, Some(Rejected::AsLoop));
    assert_eq!(network.next_hops(2, prefix(0, 0)), [] as [IpAddr; 0]);
    network.set_links(2, &[(2, 1, PeerConfig { allow_own_as: 1, ..plain() })]);
    network.advance(Duration::from_millis(1));
    assert_eq!(network.next_hops(2, prefix(0, 0)), [address(1)]);
}

#[test]
fn graceful_shutdown_moves_traffic_away_before_the_session_ends() {
    // 2 hears of the prefix from 0 and from 1; by the lower identifier it takes 0.
    let links = [(0, 2, plain()), (1, 2, plain()), (2, 0, plain()), (2, 1, plain())];
    let mut network = linked(&[64512, 64512, 65001], &links);
    let anycast = prefix(9, 0);
    network.originate(0, &[anycast]);
    network.originate(1, &[anycast]);
    network.advance(Duration::from_secs(15));
    assert_eq!(network.next_hops(2, anycast), [address(0), address(1)]);
    let since = network.status(2, 0).established_at;
    network.set_links(0, &[(0, 2, PeerConfig { graceful_shutdown: true, ..plain() })]);
    network.advance(Duration::from_millis(1));
    assert_eq!(network.next_hops(2, anycast), [address(1)]);
    let shut = network.path(2, anycast, 0).unwrap().attributes.clone();
    assert_eq!((&shut.communities[..], shut.local_pref), (&[community::GRACEFUL_SHUTDOWN][..], Some(0)));
    assert_eq!(network.status(2, 0).established_at, since);
}

#[test]
fn too_many_prefixes_end_the_session_until_its_time() {
    let limited =
        PeerConfig { max_prefixes: Some(2), max_prefixes_restart: Some(Duration::from_secs(30)), ..plain() };
    let mut network = linked(&[64512, 65001], &[(0, 1, limited), (1, 0, plain())]);
    network.originate(1, &[prefix(1, 0), prefix(1, 1)]);
    network.advance(Duration::from_secs(1));
    assert_eq!(network.status(0, 1).state, State::Established);
    network.originate(1, &[prefix(1, 0), prefix(1, 1), prefix(1, 2)]);
    network.advance(Duration::from_secs(5));
    let status = network.status(0, 1);
    assert_eq!((status.state, status.routes, network.fib[0].len()), (State::Idle, 0, 0));
    assert!(status.last_error.unwrap().contains("more than the 2 Ipv4 prefixes"));
    let sent = status.last_notification_sent.unwrap();
    assert_eq!((sent.code, sent.subcode, &sent.data[..]), (6, 1, &[0, 1, 1, 0, 0, 0, 2][..]));
    let received = network.status(1, 0).last_notification_received.unwrap().to_string();
    assert!(
        received.contains("Hard Reset (9): Cease (6): Maximum Number of Prefixes Reached (1)"),
        "{received}"
    );
    network.originate(1, &[prefix(1, 0)]);
    network.advance(Duration::from_secs(60));
    assert_eq!(network.status(0, 1).state, State::Established);
    assert_eq!(network.next_hops(0, prefix(1, 0)), [address(1)]);
}

#[test]
fn communities_of_three_sizes_pass_and_the_well_known_ones_keep_routes_in() {
    let links = [(0, 1, plain()), (1, 0, plain()), (1, 2, plain()), (2, 1, plain())];
    let mut network = linked(&[64512, 64512, 65001], &links);
    network.advance(Duration::from_secs(15));
    let large = LocalRoute { large_communities: vec![[1, 2, 3]], ..with_communities(&[0x1_0002]) };
    let routes = [
        (prefix(0, 0), large),
        (prefix(0, 1), with_communities(&[community::NO_EXPORT])),
        (prefix(0, 2), with_communities(&[community::NO_ADVERTISE])),
    ];
    network.originate_as(0, &routes);
    assert_eq!(network.next_hops(1, prefix(0, 1)), [address(0)]);
    assert_eq!(network.next_hops(1, prefix(0, 2)), [] as [IpAddr; 0]);
    assert_eq!(network.next_hops(2, prefix(0, 1)), [] as [IpAddr; 0]);
    let passed = network.path(2, prefix(0, 0), 1).unwrap().attributes.clone();
    assert_eq!((&passed.communities[..], &passed.large_communities[..]), (&[0x1_0002][..], &[[1, 2, 3]][..]));
}

#[test]
fn next_hops_are_kept_or_ours_as_the_mode_says() {
    let client = |next_hop| PeerConfig { route_reflector_client: true, next_hop, ..plain() };
    let links = |mode| [(0, 1, plain()), (1, 0, client(mode)), (1, 2, client(mode)), (2, 1, plain())];
    let mut network = linked(&INTERNAL, &links(NextHopMode::Auto));
    network.originate(0, &[prefix(0, 0)]);
    network.originate(1, &[prefix(1, 0)]);
    network.advance(Duration::from_secs(15));
    for (mode, expected) in [
        (NextHopMode::SelfAddress, address(1)),
        (NextHopMode::Keep, address(0)),
        (NextHopMode::Auto, address(0)),
    ] {
        network.set_links(1, &links(mode));
        network.advance(Duration::from_millis(1));
        assert_eq!(network.next_hops(2, prefix(0, 0)), [expected], "{mode:?}");
        assert_eq!(network.next_hops(2, prefix(1, 0)), [address(1)], "ours has ours: {mode:?}");
    }
}

#[test]
fn a_route_that_comes_back_with_our_cluster_is_kept_out_at_import() {
    let cluster = Some(Ipv4Addr::new(9, 9, 9, 9));
    let client = PeerConfig { route_reflector_client: true, cluster_id: cluster, ..plain() };
    // Two reflectors of one cluster, 1 and 2, each a client of the other; 0 is a client of 1.
    let links = [(0, 1, plain()), (1, 0, client.clone()), (1, 2, client.clone()), (2, 1, client)];
    let mut network = linked(&INTERNAL, &links);
    network.originate(0, &[prefix(0, 0)]);
    network.advance(Duration::from_secs(15));
    assert_eq!(network.path(2, prefix(0, 0), 1).unwrap().rejected, Some(Rejected::ClusterLoop));
    assert_eq!(network.next_hops(2, prefix(0, 0)), [] as [IpAddr; 0]);
}

#[test]
fn a_reflector_sends_every_way_to_a_peer_that_takes_several() {
    let several = AddPath { receive: true, send_max: 4 };
    let client = PeerConfig { route_reflector_client: true, ..plain() };
    let towards_3 = PeerConfig { add_path: several, ..client.clone() };
    let from_1 = PeerConfig { add_path: several, ..plain() };
    let links = [
        (0, 1, plain()),
        (2, 1, plain()),
        (1, 0, client.clone()),
        (1, 2, client),
        (1, 3, towards_3),
        (3, 1, from_1),
    ];
    let mut network = linked(&[64512; 4], &links);
    let anycast = prefix(9, 0);
    network.originate(0, &[anycast]);
    network.originate(2, &[anycast]);
    network.advance(Duration::from_secs(15));
    assert_eq!(network.next_hops(3, anycast), [address(0), address(2)]);
    assert_eq!(network.next_hops(0, anycast), [] as [IpAddr; 0], "its own wins, and one more is known");
    network.originate(0, &[]);
    network.advance(Duration::from_millis(1));
    assert_eq!(network.next_hops(3, anycast), [address(2)]);
    assert_eq!(network.speakers[3].advertised_to(address(1), anycast).len(), 0);
    network.originate(2, &[]);
    network.advance(Duration::from_millis(1));
    assert_eq!(network.speakers[3].routes().len(), 0);
}

#[test]
fn a_refresh_brings_all_again_and_drops_what_does_not_come() {
    let mut network = linked(&[64512, 65001], &[(0, 1, plain()), (1, 0, plain())]);
    network.originate(1, &[prefix(1, 0), prefix(1, 1)]);
    network.advance(Duration::from_secs(1));
    // A route that the peer no longer has, as after a lost withdrawal.
    let path = network.path(0, prefix(1, 0), 1).unwrap();
    network.speakers[0].rib.insert(prefix(1, 3), path);
    assert!(network.speakers[0].request_refresh(address(1), Family::Ipv4));
    assert!(!network.speakers[0].request_refresh(address(1), Family::Ipv6), "not negotiated");
    network.advance(Duration::from_millis(1));
    let known: Vec<Prefix> = network.speakers[0].routes().iter().map(|route| route.prefix).collect();
    assert_eq!(known, [prefix(1, 0), prefix(1, 1)]);
    assert_eq!(network.status(0, 1).routes_stale, 0);
}

#[test]
fn med_reaches_the_neighbouring_as_and_goes_no_further() {
    let med = Rule { actions: vec![Action::SetMed(Some(7))], ..Rule::default() };
    let export = Policy { rules: vec![med], default: Verdict::Accept };
    let marked = PeerConfig { export, ..plain() };
    let links = [(0, 1, marked), (1, 0, plain()), (1, 2, plain()), (2, 1, plain())];
    let mut network = linked(&[64512, 65001, 65002], &links);
    network.originate(0, &[prefix(0, 0)]);
    network.advance(Duration::from_secs(15));
    assert_eq!(network.path(1, prefix(0, 0), 0).unwrap().attributes.med, Some(7));
    assert_eq!(network.path(2, prefix(0, 0), 1).unwrap().attributes.med, None);
}

fn policy_of(choice: u8) -> Policy {
    match choice {
        0 => Policy::default(),
        1 => reject(within(prefix(0, 0))),
        2 => Policy::reject_by_default(Vec::new()),
        3 => reject(Match { communities: vec![Community::Standard(5)], ..Match::default() }),
        _ => {
            let actions = vec![Action::AddCommunity(Community::Standard(5)), Action::SetLocalPreference(200)];
            Policy { rules: vec![Rule { actions, ..Rule::default() }], default: Verdict::Accept }
        }
    }
}

fn peer_of(choice: (u8, u8, u8)) -> PeerConfig {
    let (import, export, mode) = choice;
    PeerConfig {
        import: policy_of(import),
        export: policy_of(export),
        next_hop: [NextHopMode::Auto, NextHopMode::SelfAddress, NextHopMode::Keep][usize::from(mode % 3)],
        graceful_shutdown: mode & 4 != 0,
        route_reflector_client: mode & 8 != 0,
        ..plain()
    }
}

type Table = Vec<(Prefix, Vec<IpAddr>, Vec<Attributes>)>;

/// What every speaker knows, but for identifiers of its own.
fn tables(network: &Network) -> Vec<Table> {
    let table = |speaker: &Speaker| {
        let route = |route: RouteStatus| {
            let mut paths = route.paths;
            paths.sort_by_key(|path| path.source);
            let attributes = paths.iter().map(|path| (*path.attributes).clone()).collect();
            (route.prefix, route.next_hops, attributes)
        };
        speaker.routes().into_iter().map(route).collect()
    };
    network.speakers.iter().map(table).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn after_any_changes_of_configuration_tables_equal_those_of_speakers_started_with_it(
        steps in proptest::collection::vec((0usize..4, 0u8..5, 0u8..5, 0u8..16, 0u8..8), 1..12)
    ) {
        // 0 and 1 are in one AS, 2 in another. In a ring, such policies need not have one outcome, or any.
        let asns = [64512, 64512, 65001];
        let pairs = [(0, 1), (1, 0), (1, 2), (2, 1)];
        let mut links: Vec<(usize, usize, PeerConfig)> =
            pairs.iter().map(|(from, to)| (*from, *to, plain())).collect();
        let mut network = linked(&asns, &links);
        let mut local = vec![Vec::new(); 3];
        network.advance(Duration::from_secs(15));
        for (link, import, export, mode, bits) in steps {
            links[link].2 = peer_of((import, export, mode));
            network.set_links(links[link].0, &links);
            let node = link % 3;
            local[node] = (0..3).filter(|n| bits & (1 << n) != 0).map(|n| prefix(n % 2, n as u8)).collect();
            network.originate(node, &local[node].clone());
            network.advance(Duration::from_millis(100));
        }
        for peer in (0..3).flat_map(|index| network.speakers[index].peers()) {
            let times = peer.history.iter().filter(|change| change.state == State::Established).count();
            prop_assert_eq!((peer.state, times), (State::Established, 1), "no session was reset");
        }
        let mut fresh = linked(&asns, &links);
        for (node, prefixes) in local.iter().enumerate() {
            fresh.originate(node, prefixes);
        }
        fresh.advance(Duration::from_secs(15));
        prop_assert_eq!(tables(&network), tables(&fresh));
    }

    #[test]
    fn nonsense_from_one_peer_costs_that_session_alone(
        chunks in proptest::collection::vec((0u8..6, proptest::collection::vec(any::<u8>(), 0..80)), 1..12)
    ) {
        let mut network = linked(&[64512, 65001, 65002], &[(0, 1, plain()), (1, 0, plain()), (0, 2, plain()), (2, 0, plain())]);
        network.originate(1, &[prefix(1, 0)]);
        network.originate(2, &[prefix(2, 0)]);
        network.advance(Duration::from_secs(15));
        let connection = network.speakers[0].peers[&address(1)].session.negotiated().unwrap().connection;
        for (kind, chunk) in &chunks {
            let mut octets = vec![0xff; 16];
            octets.extend((19 + chunk.len() as u16).to_be_bytes());
            octets.push(*kind);
            octets.extend(chunk);
            let now = network.now;
            network.speakers[0].handle(Input::Received { id: connection, octets: &octets }, now);
        }
        network.advance(Duration::from_millis(1));
        prop_assert_eq!(network.status(0, 2).state, State::Established);
        prop_assert_eq!(network.next_hops(0, prefix(2, 0)), [address(2)]);
    }
}
