use proptest::prelude::*;

use super::*;

const A: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));
const B: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 2));
const MS: Duration = Duration::from_millis(1);

fn config(ms: u64, multiplier: u8) -> Config {
    let interval = Duration::from_millis(ms);
    Config { send_interval: interval, receive_interval: interval, multiplier, hops: Hops::Single }
}

/// Two hosts on a wire that takes a millisecond, and a clock that both follow.
struct Wire {
    now: Instant,
    hosts: [Endpoint; 2],
    /// When it arrives, at whom, what.
    under_way: VecDeque<(Instant, usize, [u8; LENGTH])>,
    /// Nothing comes through to the host.
    is_cut: [bool; 2],
    /// The host does nothing, and what comes waits.
    is_stalled: [bool; 2],
    changes: Vec<(usize, Change)>,
    sent: Vec<(usize, Instant, Packet)>,
}

fn other(host: usize) -> IpAddr {
    [B, A][host]
}

impl Wire {
    fn new(a: Config, b: Config) -> Wire {
        let now = Instant::now();
        let mut hosts = [Endpoint::new(1), Endpoint::new(2)];
        hosts[0].set_peers(&BTreeMap::from([(B, a)]), now);
        hosts[1].set_peers(&BTreeMap::from([(A, b)]), now);
        Wire {
            now,
            hosts,
            under_way: VecDeque::new(),
            is_cut: [false; 2],
            is_stalled: [false; 2],
            changes: Vec::new(),
            sent: Vec::new(),
        }
    }

    fn up(a: Config, b: Config) -> Wire {
        let mut wire = Wire::new(a, b);
        wire.advance(Duration::from_secs(3));
        assert_eq!(wire.states(), [State::Up; 2]);
        wire.changes.clear();
        wire.sent.clear();
        wire
    }

    fn status(&self, host: usize) -> SessionStatus {
        self.hosts[host].status().pop().expect("a session")
    }

    fn states(&self) -> [State; 2] {
        [0, 1].map(|host| self.status(host).state)
    }

    fn outputs(&mut self, host: usize) {
        while let Some(output) = self.hosts[host].poll_output() {
            match output {
                Output::Send { peer, packet, .. } => {
                    assert_eq!(peer, other(host));
                    let decoded = Packet::decode(&packet).expect("a packet");
                    self.sent.push((host, self.now, decoded));
                    if !self.is_cut[1 - host] {
                        self.under_way.push_back((self.now + MS, 1 - host, packet));
                    }
                }
                Output::Changed(change) => self.changes.push((host, change)),
                Output::Closed { .. } => {}
            }
        }
    }

    fn deliver(&mut self, host: usize, payload: &[u8]) {
        let arrival = Arrival { source: other(host), multihop: false, ttl: Some(255), payload };
        self.hosts[host].handle(Input::Received(arrival), self.now);
        self.outputs(host);
    }

    fn advance(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.now += MS;
            for _ in 0..self.under_way.len() {
                let Some(packet) = self.under_way.pop_front() else { break };
                if packet.0 > self.now || self.is_stalled[packet.1] {
                    self.under_way.push_back(packet);
                } else {
                    self.deliver(packet.1, &packet.2);
                }
            }
            for host in 0..2 {
                if !self.is_stalled[host] && self.hosts[host].next_deadline().is_some_and(|at| at <= self.now)
                {
                    self.hosts[host].handle(Input::Tick, self.now);
                }
                self.outputs(host);
            }
        }
    }

    fn gaps(&self, host: usize) -> Vec<Duration> {
        let times: Vec<Instant> = self
            .sent
            .iter()
            .filter(|(from, _, packet)| *from == host && !packet.is_final)
            .map(|s| s.1)
            .collect();
        times.windows(2).map(|pair| pair[1] - pair[0]).collect()
    }

    /// A packet of B's making, as if B had sent it.
    fn forged(&self, state: State) -> Packet {
        let (a, b) = (self.status(0), self.status(1));
        Packet {
            state,
            detect_multiplier: 3,
            my_discriminator: b.local_discriminator,
            your_discriminator: a.local_discriminator,
            desired_min_tx: 100_000,
            required_min_rx: 100_000,
            ..Packet::default()
        }
    }
}

#[test]
fn two_hosts_find_each_other_slowly_and_then_agree_on_the_configured_intervals() {
    let mut wire = Wire::new(config(100, 3), config(50, 5));
    wire.advance(Duration::from_secs(3));
    let (a, b) = (wire.status(0), wire.status(1));
    assert_eq!((a.state, b.state), (State::Up, State::Up));
    assert_eq!((a.send_interval, b.send_interval), (100 * MS, 100 * MS), "the slower one counts");
    assert_eq!((a.detection_time, b.detection_time), (Some(500 * MS), Some(300 * MS)));
    assert!(!a.is_polling && !b.is_polling, "the Poll was answered");
    let slow = wire.sent.iter().filter(|(_, _, packet)| packet.state != State::Up);
    assert!(slow.clone().count() > 1);
    assert!(slow.clone().all(|(_, _, packet)| packet.desired_min_tx == 1_000_000), "a second while not Up");
    assert!(wire.sent.iter().all(|(_, _, packet)| packet.my_discriminator != 0));
    assert_ne!(a.local_discriminator, b.local_discriminator);
    let causes: Vec<Cause> = wire.changes.iter().map(|(_, change)| change.cause).collect();
    assert!(causes.iter().all(|cause| *cause == Cause::Handshake), "{causes:?}");
}

#[test]
fn packets_are_sent_within_the_bounds_of_jitter() {
    for (multiplier, widest) in [(3, 100), (1, 90)] {
        let mut wire = Wire::up(config(100, multiplier), config(100, 3));
        wire.advance(Duration::from_secs(20));
        let gaps = wire.gaps(0);
        // The clock of this test counts milliseconds.
        assert!(gaps.iter().all(|gap| (75 * MS..=(widest + 1) * MS).contains(gap)), "{gaps:?}");
        assert!(gaps.iter().max() > gaps.iter().min(), "they differ");
        assert!(gaps.len() > 200);
    }
}

#[test]
fn silence_is_told_after_the_detection_time_and_no_sooner() {
    let mut wire = Wire::up(config(100, 3), config(100, 3));
    wire.is_cut = [true; 2];
    wire.advance(190 * MS);
    assert_eq!(wire.states(), [State::Up; 2]);
    wire.advance(120 * MS);
    assert_eq!(wire.states(), [State::Down; 2]);
    let (_, change) = wire.changes[0];
    assert!(change.is_failure() && change.cause == Cause::DetectionTimeExpired && change.heard_at.is_some());
    let status = wire.status(0);
    assert_eq!(status.diagnostic, Diagnostic::DETECTION_TIME_EXPIRED);
    assert_eq!((status.remote.discriminator, status.failures), (0, 1), "section 6.8.1");
    wire.is_cut = [false; 2];
    wire.advance(Duration::from_secs(3));
    assert_eq!(wire.states(), [State::Up; 2]);
}

#[test]
fn a_path_that_fails_one_way_is_down_at_both_ends() {
    let mut wire = Wire::up(config(100, 3), config(100, 3));
    wire.is_cut = [true, false];
    wire.advance(310 * MS);
    let told: Vec<(usize, Cause)> = wire.changes.iter().map(|(host, change)| (*host, change.cause)).collect();
    assert_eq!(told, [(0, Cause::DetectionTimeExpired), (1, Cause::NeighborDown)]);
    assert!(wire.changes.iter().all(|(_, change)| change.is_failure()));
    assert_eq!(wire.status(1).diagnostic, Diagnostic::NEIGHBOR_SIGNALED_DOWN);
    assert_eq!(wire.status(1).remote.diagnostic, Diagnostic::DETECTION_TIME_EXPIRED);
}

#[test]
fn a_host_that_stalls_for_long_takes_nobody_for_dead() {
    let mut wire = Wire::up(config(100, 3), config(100, 3));
    // Its packets come late, and are all there: those that it has not taken in, too.
    wire.is_stalled[0] = true;
    wire.advance(200 * MS);
    wire.is_stalled[0] = false;
    wire.advance(Duration::from_secs(1));
    assert!(wire.changes.is_empty(), "{:?}", wire.changes);
    // It did not run at all, and neither did its network: there is nothing to take in when it wakes.
    wire.is_stalled[0] = true;
    wire.is_cut[0] = true;
    wire.advance(2900 * MS);
    (wire.is_stalled[0], wire.is_cut[0]) = (false, false);
    let before = wire.changes.len();
    wire.advance(200 * MS);
    let own: Vec<Cause> =
        wire.changes[before..].iter().filter(|(host, _)| *host == 0).map(|(_, c)| c.cause).collect();
    assert!(!own.contains(&Cause::DetectionTimeExpired), "{own:?}: it looks twice");
}

#[test]
fn an_end_by_an_operator_is_no_failure() {
    let mut wire = Wire::up(config(100, 3), config(100, 3));
    let now = wire.now;
    wire.hosts[1].set_peers(&BTreeMap::new(), now);
    wire.advance(10 * MS);
    let (host, change) = *wire.changes.last().expect("a change");
    assert_eq!((host, change.cause, change.state), (0, Cause::NeighborAdminDown, State::Down));
    assert!(!change.is_failure());
    assert_eq!(wire.status(0).remote.diagnostic, Diagnostic::ADMINISTRATIVELY_DOWN);
    assert!(wire.hosts[1].status().is_empty());
    wire.advance(Duration::from_secs(10));
    let last = wire.sent.iter().rfind(|(host, _, _)| *host == 1).expect("a farewell");
    assert_eq!(last.2.state, State::AdminDown);
    assert!((700 * MS..2000 * MS).contains(&(last.1 - now)), "told for a while, then nothing more");
    assert!(wire.changes.iter().all(|(_, change)| !change.is_failure()));
    // Configured anew, it begins anew.
    let now = wire.now;
    wire.hosts[1].set_peers(&BTreeMap::from([(A, config(100, 3))]), now);
    wire.advance(Duration::from_secs(3));
    assert_eq!(wire.states(), [State::Up; 2]);
}

#[test]
fn a_peer_that_began_anew_is_told_from_one_that_does_not_hear_us() {
    let mut wire = Wire::up(config(100, 3), config(100, 3));
    let now = wire.now;
    wire.hosts[1] = Endpoint::new(3);
    wire.hosts[1].set_peers(&BTreeMap::from([(A, config(100, 3))]), now);
    wire.advance(10 * MS);
    let (_, change) = wire.changes.iter().find(|(host, _)| *host == 0).expect("a change");
    assert_eq!((change.cause, change.is_failure()), (Cause::NeighborRestarted, false));
    wire.advance(Duration::from_secs(3));
    assert_eq!(wire.states(), [State::Up; 2]);
    let mut wire = Wire::up(config(100, 3), config(100, 3));
    wire.deliver(0, &wire.forged(State::Down).encode());
    let (_, change) = wire.changes[0];
    assert_eq!((change.cause, change.is_failure()), (Cause::NeighborDown, true));
}

#[test]
fn the_state_machine_is_that_of_section_6_8_6() {
    use State::{AdminDown, Down, Init, Up};
    // What is received, and the states that Down, Init and Up become.
    for (received, expected) in [
        (AdminDown, [Down, Down, Down]),
        (Down, [Init, Init, Down]),
        (Init, [Up, Up, Up]),
        (Up, [Down, Up, Up]),
    ] {
        for (start, expected) in [Down, Init, Up].into_iter().zip(expected) {
            let mut wire = Wire::new(config(100, 3), config(100, 3));
            let to_there: &[State] = match start {
                Up => &[Down, Init],
                Init => &[Down],
                _ => &[],
            };
            for state in to_there.iter().chain([&received]) {
                wire.deliver(0, &wire.forged(*state).encode());
            }
            assert_eq!(wire.status(0).state, expected, "{received} in {start}");
        }
    }
}

#[test]
fn new_intervals_are_agreed_on_without_losing_the_session() {
    let mut wire = Wire::up(config(100, 3), config(100, 3));
    let now = wire.now;
    wire.hosts[0].set_peers(&BTreeMap::from([(B, config(300, 3))]), now);
    assert_eq!(wire.status(0).send_interval, 100 * MS, "as fast as before until the peer knows");
    assert!(wire.status(0).is_polling);
    wire.advance(Duration::from_secs(1));
    assert_eq!(wire.status(0).send_interval, 300 * MS);
    assert_eq!(wire.status(1).detection_time, Some(900 * MS));
    let asked = wire.sent.iter().filter(|(host, _, packet)| *host == 0 && packet.poll).count();
    let answered = wire.sent.iter().filter(|(host, _, packet)| *host == 1 && packet.is_final).count();
    assert!(asked >= 1 && asked == answered, "{asked} polls, {answered} answers");
    assert!(wire.sent.iter().all(|(_, _, packet)| !(packet.poll && packet.is_final)));
    let now = wire.now;
    wire.hosts[0].set_peers(&BTreeMap::from([(B, config(20, 4))]), now);
    assert_eq!(wire.status(0).detection_time, Some(900 * MS), "as patient as before until the peer knows");
    wire.advance(Duration::from_secs(1));
    assert_eq!(wire.status(0).send_interval, 100 * MS, "what the peer takes");
    assert_eq!((wire.status(0).detection_time, wire.status(0).is_polling), (Some(300 * MS), false));
    assert!(wire.changes.is_empty(), "{:?}", wire.changes);
}

#[test]
fn a_change_while_polling_needs_a_poll_of_its_own() {
    let mut wire = Wire::up(config(100, 3), config(100, 3));
    let now = wire.now;
    for interval in [300, 500] {
        wire.hosts[0].set_peers(&BTreeMap::from([(B, config(interval, 3))]), now);
    }
    let answer = Packet { is_final: true, ..wire.forged(State::Up) }.encode();
    wire.deliver(0, &answer);
    assert_eq!(wire.status(0).send_interval, 100 * MS, "it may be about the first change");
    wire.deliver(0, &answer);
    assert_eq!(wire.status(0).send_interval, 500 * MS);
}

#[test]
fn a_peer_in_demand_mode_is_sent_nothing_but_answers_and_polls() {
    let mut wire = Wire::up(config(100, 3), config(100, 3));
    wire.is_cut = [true; 2];
    wire.under_way.clear();
    let demand = Packet { demand: true, detect_multiplier: 255, ..wire.forged(State::Up) };
    wire.deliver(0, &demand.encode());
    let of_a = |wire: &Wire| wire.sent.iter().filter(|(host, _, _)| *host == 0).count();
    let before = of_a(&wire);
    wire.advance(Duration::from_secs(1));
    wire.deliver(0, &demand.encode());
    assert_eq!(of_a(&wire), before);
    wire.deliver(0, &Packet { poll: true, ..demand }.encode());
    assert_eq!(of_a(&wire), before + 1);
    assert!(wire.sent.last().expect("an answer").2.is_final);
    let now = wire.now;
    wire.hosts[0].set_peers(&BTreeMap::from([(B, config(200, 3))]), now);
    wire.advance(Duration::from_secs(1));
    let polls = of_a(&wire) - before - 1;
    assert!(polls > 3 && wire.sent.last().expect("a poll").2.poll, "{polls}: until it is answered");
    wire.deliver(0, &Packet { is_final: true, ..demand }.encode());
    wire.advance(Duration::from_secs(1));
    assert_eq!(of_a(&wire) - before - 1, polls);
}

#[test]
fn a_peer_that_wants_no_packets_gets_answers_alone() {
    let mut wire = Wire::up(config(100, 3), config(100, 3));
    wire.is_cut = [true; 2];
    wire.under_way.clear();
    let none = Packet { required_min_rx: 0, detect_multiplier: 255, ..wire.forged(State::Up) };
    wire.deliver(0, &none.encode());
    let of_a = |wire: &Wire| wire.sent.iter().filter(|(host, _, _)| *host == 0).count();
    let before = of_a(&wire);
    wire.advance(Duration::from_secs(1));
    assert_eq!(of_a(&wire), before);
    wire.deliver(0, &Packet { poll: true, ..none }.encode());
    assert_eq!(of_a(&wire), before + 1);
}

#[test]
fn what_a_session_refuses_is_counted_by_reason_and_changes_nothing() {
    let mut wire = Wire::up(config(100, 3), config(100, 3));
    let down = wire.forged(State::Down);
    let stranger = IpAddr::from([192, 0, 2, 9]);
    let arrival = |source, ttl, payload| Arrival { source, multihop: false, ttl, payload };
    let good = down.encode();
    let unknown = Packet { your_discriminator: 7, ..down }.encode();
    let zero = Packet { your_discriminator: 0, state: State::Up, ..down }.encode();
    let nobody = Packet { your_discriminator: 0, ..down }.encode();
    let mut signed = [good.to_vec(), vec![1, 4, 1, 0]].concat();
    (signed[1], signed[3]) = (signed[1] | 0x04, 28);
    let (now, before) = (wire.now, wire.status(0));
    for (arrival, refusal) in [
        (arrival(B, Some(254), &good[..]), Refusal::HopLimit),
        (arrival(B, None, &good), Refusal::HopLimit),
        (Arrival { multihop: true, ..arrival(B, Some(255), &good) }, Refusal::HopLimit),
        (arrival(B, Some(255), &good[..20]), Refusal::Truncated),
        (arrival(B, Some(255), &unknown), Refusal::UnknownDiscriminator),
        (arrival(stranger, Some(255), &good), Refusal::OtherPeer),
        (arrival(B, Some(255), &zero), Refusal::YourDiscriminatorZero),
        (arrival(stranger, Some(255), &nobody), Refusal::UnknownPeer),
        (arrival(B, Some(255), &signed), Refusal::Authentication),
    ] {
        let count = wire.hosts[0].refusals().count(refusal);
        wire.hosts[0].handle(Input::Received(arrival), now);
        assert_eq!(wire.hosts[0].refusals().count(refusal), count + 1, "{refusal}");
    }
    let after = wire.status(0);
    assert_eq!((after.state, after.remote), (before.state, before.remote));
    assert_eq!(
        (after.refusals.total(), wire.hosts[0].refusals().total()),
        (7, 9),
        "strangers have no session"
    );
    assert_eq!(wire.hosts[0].poll_output(), None);
    wire.hosts[0].handle(Input::Received(arrival(B, Some(255), &good)), now);
    assert_eq!(wire.status(0).state, State::Down, "the good one is believed");
}

#[test]
fn peers_beyond_the_link_use_the_other_port_and_may_be_as_far_as_said() {
    let far = Config { hops: Hops::Multiple(3), ..config(100, 3) };
    let now = Instant::now();
    let mut host = Endpoint::new(1);
    host.set_peers(&BTreeMap::from([(B, far)]), now);
    host.handle(Input::Tick, now);
    let sent = host.poll_output();
    assert!(matches!(sent, Some(Output::Send { multihop: true, .. })), "{sent:?}");
    let payload =
        Packet { state: State::Down, detect_multiplier: 3, my_discriminator: 9, ..Packet::default() };
    let payload = payload.encode();
    for (ttl, multihop, state) in
        [(252, true, State::Down), (255, false, State::Down), (253, true, State::Init)]
    {
        let arrival = Arrival { source: B, multihop, ttl: Some(ttl), payload: &payload };
        host.handle(Input::Received(arrival), now);
        assert_eq!(host.status()[0].state, state, "TTL {ttl}");
    }
}

#[test]
fn a_peer_that_moves_its_deadline_to_and_fro_fills_no_memory() {
    let mut wire = Wire::up(config(10, 3), config(10, 3));
    for round in 0..10_000 {
        let desired_min_tx = if round % 2 == 0 { 4_000_000_000 } else { 10_000 };
        let packet = Packet { desired_min_tx, ..wire.forged(State::Up) };
        wire.deliver(0, &packet.encode());
        wire.now += Duration::from_micros(100);
        let now = wire.now;
        wire.hosts[0].handle(Input::Tick, now);
        wire.outputs(0);
        wire.under_way.clear();
    }
    assert!(wire.hosts[0].deadlines.len() <= DEADLINES_SPARE + 2, "{}", wire.hosts[0].deadlines.len());
}

proptest! {
    /// Whatever arrives, whenever: no panic, no session of anybody else's, and the two find each other again.
    #[test]
    fn any_packets_at_any_time_leave_a_session_that_works(
        steps in proptest::collection::vec((any::<[u8; LENGTH]>(), 0u8..8, 0u32..400), 1..40),
    ) {
        let mut wire = Wire::up(config(50, 3), config(50, 3));
        for (mut octets, kind, wait) in steps {
            // Most of them pass some checks more than noise would.
            if kind > 0 {
                (octets[0], octets[1], octets[3]) = (octets[0] & 0x1f | 0x20, octets[1] & 0xfa, 24);
            }
            if kind > 1 {
                octets[8..12].copy_from_slice(&wire.status(0).local_discriminator.to_be_bytes());
            }
            wire.deliver(0, &octets);
            wire.advance(wait * MS);
            prop_assert!(wire.hosts[0].next_deadline().is_some());
        }
        // The longest silence that can have been asked for is over when the true peer speaks.
        wire.advance(Duration::from_secs(10));
        prop_assert_eq!(wire.states(), [State::Up; 2]);
    }

    #[test]
    fn neither_side_is_given_up_while_less_is_lost_than_the_multiplier(
        lost in proptest::collection::vec(any::<bool>(), 60),
        intervals in (10u64..200, 10u64..200),
    ) {
        let mut wire = Wire::up(config(intervals.0, 4), config(intervals.1, 4));
        let slower = intervals.0.max(intervals.1);
        for lost in lost {
            // Two intervals at most, then two without loss.
            wire.is_cut = [lost; 2];
            wire.advance(2 * slower as u32 * MS);
            wire.is_cut = [false; 2];
            wire.advance(2 * slower as u32 * MS);
        }
        prop_assert!(wire.changes.is_empty(), "{:?}", wire.changes);
    }
}
