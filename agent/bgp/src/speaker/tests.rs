use std::collections::BTreeSet;

use proptest::prelude::*;

mod exchange;
mod explain;
mod links;
mod reflectors;
mod restarts;

use super::*;
use crate::wire;
use crate::wire::notification::cease;

/// Speakers joined by in-memory connections, one virtual clock.
struct Network {
    now: Instant,
    speakers: Vec<Speaker>,
    /// Connection id -> (owner, remote id); a remote id of `None` is a closed far end.
    far_end: HashMap<ConnectionId, (usize, ConnectionId)>,
    queue: VecDeque<(ConnectionId, Option<Arc<[u8]>>)>,
    owner: HashMap<ConnectionId, usize>,
    next_id: u64,
    down: BTreeSet<usize>,
    fib: Vec<BTreeMap<Prefix, Vec<IpAddr>>>,
    updates_sent: Vec<usize>,
    converged: Vec<bool>,
    /// Routes that were known when the FIB might be swept.
    known_when_converged: Vec<usize>,
}

fn address(index: usize) -> IpAddr {
    IpAddr::from([10, 89, 0, 11 + index as u8])
}

fn prefix(node: usize, n: u8) -> Prefix {
    Prefix::new(IpAddr::from([10, 244, node as u8, n.wrapping_mul(64)]), 26).unwrap()
}

fn config(index: usize, asn: u32) -> SpeakerConfig {
    let IpAddr::V4(v4) = address(index) else { unreachable!() };
    SpeakerConfig {
        asn,
        router_id: v4,
        next_hop_v4: Some(v4),
        next_hop_v6: None,
        hold_time: Duration::from_secs(90),
        connect_retry: Duration::from_secs(5),
        restart_time: Duration::from_secs(120),
        deferral_time: Duration::from_secs(10),
        listen_ranges: Vec::new(),
        long_lived_stale_time: None,
    }
}

fn local(prefixes: &[Prefix]) -> BTreeMap<Prefix, LocalRoute> {
    prefixes.iter().map(|prefix| (*prefix, LocalRoute::default())).collect()
}

impl Network {
    fn new(asns: &[u32]) -> Network {
        let now = Instant::now();
        let speakers: Vec<Speaker> =
            asns.iter().enumerate().map(|(i, asn)| Speaker::new(config(i, *asn), now)).collect();
        let count = speakers.len();
        Network {
            now,
            speakers,
            far_end: HashMap::new(),
            queue: VecDeque::new(),
            owner: HashMap::new(),
            next_id: 0,
            down: BTreeSet::new(),
            fib: vec![BTreeMap::new(); count],
            updates_sent: vec![0; count],
            converged: vec![false; count],
            known_when_converged: vec![0; count],
        }
    }

    fn mesh(asns: &[u32]) -> Network {
        let mut network = Network::new(asns);
        for index in 0..asns.len() {
            network.configure(index, asns);
        }
        network
    }

    fn configure(&mut self, index: usize, asns: &[u32]) {
        let peers = (0..asns.len())
            .filter(|other| *other != index)
            .map(|other| {
                let peer = PeerConfig { asn: Some(asns[other]), ..PeerConfig::default() };
                (address(other), peer)
            })
            .collect();
        self.speakers[index].set_peers(&peers, self.now);
    }

    fn originate(&mut self, index: usize, prefixes: &[Prefix]) {
        self.speakers[index].set_local(local(prefixes));
    }

    fn id(&mut self, owner: usize) -> ConnectionId {
        self.next_id += 1;
        let id = ConnectionId(self.next_id);
        self.owner.insert(id, owner);
        id
    }

    fn settle(&mut self) {
        loop {
            let mut quiet = true;
            for index in 0..self.speakers.len() {
                if self.down.contains(&index) {
                    continue;
                }
                while let Some(output) = self.speakers[index].poll_output() {
                    quiet = false;
                    self.output(index, output);
                }
            }
            if let Some((id, octets)) = self.queue.pop_front() {
                quiet = false;
                let owner = self.owner[&id];
                if !self.down.contains(&owner) {
                    let now = self.now;
                    match octets {
                        Some(octets) => {
                            self.speakers[owner].handle(Input::Received { id, octets: &octets }, now);
                        }
                        None => self.speakers[owner].handle(Input::Closed { id }, now),
                    }
                }
            }
            if quiet {
                return;
            }
        }
    }

    fn output(&mut self, index: usize, output: Output) {
        match output {
            Output::Connect { peer } => {
                let other = (0..self.speakers.len()).find(|i| address(*i) == peer).unwrap();
                let now = self.now;
                if self.down.contains(&other) {
                    let error = "connection refused".to_owned();
                    self.speakers[index].handle(Input::ConnectFailed { peer, error }, now);
                    return;
                }
                let (near, far) = (self.id(index), self.id(other));
                self.far_end.insert(near, (other, far));
                self.far_end.insert(far, (index, near));
                self.speakers[other].handle(Input::Accepted { remote: address(index), id: far }, now);
                self.speakers[index].handle(Input::Connected { peer, id: near }, now);
            }
            Output::Send { id, message } => {
                let now = self.now;
                self.speakers[index].handle(Input::Sent { id }, now);
                self.updates_sent[index] += usize::from(message[18] == 2);
                if let Some((_, far)) = self.far_end.get(&id) {
                    self.queue.push_back((*far, Some(message)));
                }
            }
            Output::Close { id } => {
                if let Some((_, far)) = self.far_end.remove(&id) {
                    self.queue.push_back((far, None));
                }
            }
            Output::Routes(routes) => {
                for (next_hops, prefix) in routes.iter().flat_map(|(n, all)| all.iter().map(move |p| (n, p)))
                {
                    if next_hops.is_empty() {
                        self.fib[index].remove(prefix);
                    } else {
                        self.fib[index].insert(*prefix, next_hops.to_vec());
                    }
                }
            }
            Output::Converged => {
                self.converged[index] = true;
                self.known_when_converged[index] = self.fib[index].len();
            }
            Output::PeerChanged { .. } => {}
        }
    }

    fn advance(&mut self, by: Duration) {
        let end = self.now + by;
        loop {
            self.settle();
            let live = (0..self.speakers.len()).filter(|i| !self.down.contains(i));
            let next = live.filter_map(|i| self.speakers[i].next_deadline()).min();
            match next {
                Some(at) if at <= end => self.now = self.now.max(at),
                _ => break,
            }
            for index in 0..self.speakers.len() {
                if !self.down.contains(&index) {
                    self.speakers[index].handle(Input::Tick, self.now);
                }
            }
        }
        self.now = end;
    }

    /// kill -9: the kernel closes the sockets, nothing else is said.
    fn kill(&mut self, index: usize) {
        self.settle();
        self.down.insert(index);
        let ids: Vec<ConnectionId> =
            self.owner.iter().filter(|(_, owner)| **owner == index).map(|(id, _)| *id).collect();
        for id in ids {
            if let Some((_, far)) = self.far_end.remove(&id) {
                self.queue.push_back((far, None));
            }
        }
        self.settle();
    }

    fn restart(&mut self, index: usize, asns: &[u32], prefixes: &[Prefix]) {
        self.speakers[index] = Speaker::new(config(index, asns[index]), self.now);
        self.down.remove(&index);
        self.converged[index] = false;
        self.originate(index, prefixes);
        self.configure(index, asns);
    }

    fn next_hops(&self, index: usize, prefix: Prefix) -> Vec<IpAddr> {
        self.fib[index].get(&prefix).cloned().unwrap_or_default()
    }
}

const INTERNAL: [u32; 3] = [64512; 3];

#[test]
fn a_full_mesh_establishes_and_exchanges_blocks() {
    let mut network = Network::mesh(&INTERNAL);
    for index in 0..3 {
        network.originate(index, &[prefix(index, 0), prefix(index, 1)]);
    }
    network.advance(Duration::from_secs(1));
    for index in 0..3 {
        for other in (0..3).filter(|other| *other != index) {
            assert_eq!(network.next_hops(index, prefix(other, 1)), [address(other)]);
        }
        assert_eq!(network.fib[index].len(), 4, "own blocks are not reported");
        assert!(network.converged[index]);
        assert!(network.speakers[index].peers().iter().all(|p| p.state == State::Established));
    }
    network.originate(0, &[prefix(0, 0), prefix(0, 2)]);
    network.advance(Duration::from_millis(1));
    assert_eq!(network.next_hops(1, prefix(0, 1)), [] as [IpAddr; 0]);
    assert_eq!(network.next_hops(1, prefix(0, 2)), [address(0)]);
}

#[test]
fn many_prefixes_of_one_node_travel_in_few_updates() {
    let mut network = Network::mesh(&INTERNAL[..2]);
    network.advance(Duration::from_secs(1));
    let before = network.updates_sent[0];
    let many: Vec<Prefix> = (0..4000u32)
        .map(|n| Prefix::new(IpAddr::from((0x0af4_0000 + n * 64).to_be_bytes()), 26).unwrap())
        .collect();
    network.originate(0, &many);
    network.advance(Duration::from_millis(1));
    assert_eq!(network.fib[1].len(), 4000);
    let sent = network.updates_sent[0] - before;
    assert!(sent <= 2, "{sent} UPDATEs for 4000 prefixes of 5 octets and messages of 65535");
}

#[test]
fn a_block_is_encoded_once_for_all_peers_of_the_mesh() {
    let asns = [64512; 6];
    let mut network = Network::mesh(&asns);
    network.advance(Duration::from_secs(1));
    network.speakers[0].set_local(local(&[prefix(0, 1)]));
    let mut sent: Vec<Arc<[u8]>> = Vec::new();
    while let Some(output) = network.speakers[0].poll_output() {
        if let Output::Send { message, .. } = output {
            sent.push(message);
        }
    }
    assert_eq!(sent.len(), 5);
    assert!(sent.iter().all(|message| Arc::ptr_eq(message, &sent[0])));
}

#[test]
fn what_is_gone_and_tidied_away_can_come_again() {
    let asns = [64512; 2];
    let mut network = Network::mesh(&asns);
    let all: Vec<Prefix> = (0..3).map(|n| prefix(0, n)).collect();
    for round in 0..3 {
        network.originate(0, &all[round..]);
        network.advance(Duration::from_secs(1));
        assert_eq!(network.fib[1].len(), 3 - round);
        network.originate(0, &[]);
        network.advance(Duration::from_secs(1));
        assert_eq!(network.fib[1].len(), 0);
        network.speakers.iter_mut().for_each(Speaker::tidy);
    }
    assert!(network.speakers[1].routes().is_empty());
}

#[test]
fn a_peer_killed_twice_in_ten_seconds_loses_no_route() {
    let mut network = Network::mesh(&INTERNAL);
    for index in 0..3 {
        network.originate(index, &[prefix(index, 0)]);
    }
    network.advance(Duration::from_secs(1));
    for _ in 0..2 {
        network.kill(0);
        assert_eq!(network.next_hops(1, prefix(0, 0)), [address(0)]);
        network.advance(Duration::from_secs(3));
        assert_eq!(network.next_hops(1, prefix(0, 0)), [address(0)]);
        network.restart(0, &INTERNAL, &[prefix(0, 0)]);
        network.advance(Duration::from_millis(500));
        assert_eq!(network.next_hops(2, prefix(0, 0)), [address(0)]);
    }
    network.advance(Duration::from_secs(300));
    assert_eq!(network.next_hops(1, prefix(0, 0)), [address(0)]);
    assert_eq!(network.speakers[1].peers()[0].routes_stale, 0);
}

#[test]
fn a_second_kill_before_end_of_rib_loses_no_route_either() {
    let mut network = Network::mesh(&INTERNAL);
    network.originate(0, &[prefix(0, 0)]);
    network.advance(Duration::from_secs(1));
    // With node 2 away, node 0 waits for it and owes its End-of-RIB.
    network.kill(2);
    network.kill(0);
    network.restart(0, &INTERNAL, &[]);
    network.advance(Duration::from_secs(1));
    assert_eq!(network.speakers[1].peers()[0].state, State::Established);
    assert_eq!(network.speakers[1].peers()[0].routes_stale, 1);
    network.kill(0);
    assert_eq!(network.next_hops(1, prefix(0, 0)), [address(0)]);
}

#[test]
fn two_that_restart_at_once_sweep_only_when_they_know_each_others_routes() {
    let mut network = Network::mesh(&INTERNAL);
    for index in 0..3 {
        network.originate(index, &[prefix(index, 0)]);
    }
    network.advance(Duration::from_secs(1));
    network.kill(0);
    network.kill(1);
    for index in [0, 1] {
        network.fib[index].clear();
        network.restart(index, &INTERNAL, &[prefix(index, 0)]);
    }
    network.advance(Duration::from_secs(20));
    for index in [0, 1] {
        assert!(network.converged[index]);
        assert_eq!(network.known_when_converged[index], 2);
    }
}

#[test]
fn routes_of_a_peer_that_stays_away_go_after_its_restart_time() {
    let mut network = Network::mesh(&INTERNAL[..2]);
    network.originate(0, &[prefix(0, 0)]);
    network.advance(Duration::from_secs(1));
    network.kill(0);
    network.advance(Duration::from_secs(119));
    assert_eq!(network.next_hops(1, prefix(0, 0)), [address(0)]);
    network.advance(Duration::from_secs(2));
    assert_eq!(network.next_hops(1, prefix(0, 0)), [] as [IpAddr; 0]);
}

#[test]
fn a_prefix_gone_over_a_restart_is_removed_at_end_of_rib() {
    let mut network = Network::mesh(&INTERNAL[..2]);
    network.originate(0, &[prefix(0, 0), prefix(0, 1)]);
    network.advance(Duration::from_secs(1));
    network.kill(0);
    network.restart(0, &INTERNAL[..2], &[prefix(0, 0)]);
    network.advance(Duration::from_secs(12));
    assert_eq!(network.next_hops(1, prefix(0, 0)), [address(0)]);
    assert_eq!(network.next_hops(1, prefix(0, 1)), [] as [IpAddr; 0]);
}

#[test]
fn a_removed_peer_is_told_so_and_its_routes_go_at_once() {
    let mut network = Network::mesh(&INTERNAL[..2]);
    network.originate(0, &[prefix(0, 0)]);
    network.advance(Duration::from_secs(1));
    let now = network.now;
    network.speakers[1].set_peers(&BTreeMap::new(), now);
    network.settle();
    assert_eq!(network.next_hops(1, prefix(0, 0)), [] as [IpAddr; 0]);
    let error = network.speakers[0].peers()[0].last_error.clone().unwrap();
    assert!(error.contains("Peer De-configured"), "{error}");
}

#[test]
fn internal_routes_are_not_passed_on_to_internal_peers_but_external_ones_are() {
    let asns = [64512, 64512, 65001];
    let mut network = Network::new(&asns);
    let peer = |asn: u32| PeerConfig { asn: Some(asn), ..PeerConfig::default() };
    // 0 - 1 internal, 1 - 2 external.
    let now = network.now;
    network.speakers[0].set_peers(&BTreeMap::from([(address(1), peer(64512))]), now);
    let both = BTreeMap::from([(address(0), peer(64512)), (address(2), peer(65001))]);
    network.speakers[1].set_peers(&both, now);
    network.speakers[2].set_peers(&BTreeMap::from([(address(1), peer(64512))]), now);
    network.originate(0, &[prefix(0, 0)]);
    network.originate(2, &[prefix(2, 0)]);
    network.advance(Duration::from_secs(15));
    assert_eq!(network.next_hops(2, prefix(0, 0)), [address(1)]);
    assert_eq!(network.next_hops(0, prefix(2, 0)), [address(1)], "next hop self towards the mesh");
    let route = &network.speakers[2].routes()[0];
    assert_eq!(route.paths[0].attributes.as_path_length(), 1);
    assert_eq!(route.reason, Some(Reason::OnlyPath));
}

#[test]
fn a_route_reflector_passes_clients_routes_on_and_its_mark_stops_loops() {
    let mut network = Network::new(&INTERNAL);
    let now = network.now;
    let peer =
        |client| PeerConfig { asn: Some(64512), route_reflector_client: client, ..PeerConfig::default() };
    network.speakers[0].set_peers(&BTreeMap::from([(address(1), peer(false))]), now);
    network.speakers[2].set_peers(&BTreeMap::from([(address(1), peer(false))]), now);
    let clients = BTreeMap::from([(address(0), peer(true)), (address(2), peer(true))]);
    network.speakers[1].set_peers(&clients, now);
    network.originate(0, &[prefix(0, 0)]);
    network.advance(Duration::from_secs(15));
    assert_eq!(network.next_hops(2, prefix(0, 0)), [address(0)], "next hop unchanged");
    let attributes = network.speakers[2].routes()[0].paths[0].attributes.clone();
    assert_eq!(attributes.cluster_list, [Ipv4Addr::new(10, 89, 0, 12)]);
    assert_eq!(attributes.originator_id, Some(Ipv4Addr::new(10, 89, 0, 11)));
    assert_eq!(network.speakers[0].routes().len(), 1, "not back to the originator");
}

#[test]
fn a_neighbour_in_the_listen_range_is_accepted_and_another_is_rejected() {
    let now = Instant::now();
    let mut listener = config(0, 64512);
    listener.listen_ranges = vec!["10.89.0.0/28".parse().unwrap()];
    let mut speaker = Speaker::new(listener, now);
    let id = ConnectionId(9);
    speaker.handle(Input::Accepted { remote: [10, 89, 0, 200].into(), id }, now);
    let rejected = wire::encode_notification(&Notification::cease(cease::CONNECTION_REJECTED));
    assert_eq!(speaker.poll_output(), Some(Output::Send { id, message: rejected }));
    assert_eq!(speaker.poll_output(), Some(Output::Close { id }));
    speaker.handle(Input::Accepted { remote: [10, 89, 0, 12].into(), id: ConnectionId(10) }, now);
    assert!(speaker.peers()[0].dynamic);
    speaker.handle(Input::Closed { id: ConnectionId(10) }, now);
    assert_eq!(speaker.peers().len(), 0);
}

#[test]
fn without_peers_the_deferral_ends_after_its_time() {
    let now = Instant::now();
    let mut speaker = Speaker::new(config(0, 64512), now);
    speaker.handle(Input::Tick, now + Duration::from_secs(9));
    assert_eq!(speaker.poll_output(), None);
    speaker.handle(Input::Tick, now + Duration::from_secs(10));
    assert_eq!(speaker.poll_output(), Some(Output::Converged));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn after_any_restarts_and_changes_every_fib_equals_what_is_originated(
        steps in proptest::collection::vec((0usize..3, 0u8..4, 0u8..8, 0u64..4000), 1..20)
    ) {
        let mut network = Network::mesh(&INTERNAL);
        let mut origin: Vec<Vec<Prefix>> = vec![Vec::new(); 3];
        for (index, kind, bits, wait) in steps {
            match kind {
                0 if !network.down.contains(&index) => network.kill(index),
                1 if network.down.contains(&index) => {
                    let prefixes = origin[index].clone();
                    network.restart(index, &INTERNAL, &prefixes);
                }
                _ => {
                    origin[index] = (0..3).filter(|n| bits & (1 << n) != 0).map(|n| prefix(index, n)).collect();
                    if !network.down.contains(&index) {
                        let prefixes = origin[index].clone();
                        network.originate(index, &prefixes);
                    }
                }
            }
            network.advance(Duration::from_millis(wait));
        }
        for index in network.down.clone() {
            let prefixes = origin[index].clone();
            network.fib[index].clear();
            network.restart(index, &INTERNAL, &prefixes);
        }
        network.advance(Duration::from_secs(200));
        for index in 0..3 {
            let expected: BTreeMap<Prefix, Vec<IpAddr>> = (0..3)
                .filter(|other| *other != index)
                .flat_map(|other| origin[other].iter().map(move |p| (*p, vec![address(other)])))
                .collect();
            let learned: BTreeMap<Prefix, Vec<IpAddr>> = network.speakers[index]
                .routes()
                .into_iter()
                .filter(|route| route.best != Some(Source::Local))
                .map(|route| (route.prefix, route.next_hops))
                .collect();
            prop_assert_eq!(learned, expected);
        }
    }
}
