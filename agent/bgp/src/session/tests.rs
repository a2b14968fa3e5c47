use proptest::prelude::*;

use super::*;
use crate::prefix::Prefix;
use crate::wire::EncodeContext;

fn config(router_id: u8) -> Config {
    Config {
        local_asn: 64512,
        router_id: Ipv4Addr::new(10, 0, 0, router_id),
        remote_asn: Some(64512),
        hold_time: Duration::from_secs(90),
        connect_retry: Duration::from_secs(5),
        passive: false,
        families: vec![Family::Ipv4, Family::Ipv6],
        restart_time: Duration::from_secs(120),
        keepalive_time: None,
        long_lived_stale_time: None,
        add_path: AddPath::default(),
        extended_next_hop: false,
    }
}

fn drain(session: &mut Session) -> Vec<Output> {
    std::iter::from_fn(|| session.poll_output()).collect()
}

/// The octets sent on a connection.
fn sent(outputs: &[Output], id: ConnectionId) -> Vec<u8> {
    outputs
        .iter()
        .filter_map(|output| match output {
            Output::Send(to, message) if *to == id => Some(message.to_vec()),
            _ => None,
        })
        .flatten()
        .collect()
}

fn established(session: &mut Session, id: ConnectionId, peer_open: &[u8], now: Instant) {
    session.handle(Input::Start, now);
    session.handle(Input::Accepted(id), now);
    session.handle(Input::Received(id, peer_open), now);
    session.handle(Input::Received(id, &wire::encode_keepalive()), now);
    assert_eq!(session.state(), State::Established);
}

fn open_of(router_id: u8) -> Vec<u8> {
    wire::encode_open(&Session::new(config(router_id)).local_open()).to_vec()
}

const A: ConnectionId = ConnectionId(1);
const B: ConnectionId = ConnectionId(2);

#[test]
fn hold_timer_expiry_sends_notification_and_retains_routes() {
    let now = Instant::now();
    let mut session = Session::new(config(1));
    established(&mut session, A, &open_of(2), now);
    drain(&mut session);
    session.handle(Input::Tick, now + Duration::from_secs(90));
    let outputs = drain(&mut session);
    let notification = wire::encode_notification(&Notification::new(notification::HOLD_TIMER_EXPIRED, 0));
    assert!(outputs.contains(&Output::Send(A, notification)));
    assert!(outputs.contains(&Output::Down(Down {
        reason: DownReason::HoldTimerExpired,
        was_established: true,
        retain: vec![Family::Ipv4, Family::Ipv6],
    })));
}

#[test]
fn keepalives_are_sent_each_third_of_the_hold_time() {
    let now = Instant::now();
    let mut session = Session::new(config(1));
    established(&mut session, A, &open_of(2), now);
    drain(&mut session);
    session.handle(Input::Tick, now + Duration::from_secs(29));
    assert_eq!(drain(&mut session), []);
    session.handle(Input::Tick, now + Duration::from_secs(30));
    assert_eq!(drain(&mut session), [Output::Send(A, wire::encode_keepalive())]);
}

#[test]
fn random_octets_are_answered_with_connection_not_synchronized() {
    let now = Instant::now();
    let mut session = Session::new(config(1));
    session.handle(Input::Start, now);
    session.handle(Input::Accepted(A), now);
    drain(&mut session);
    session.handle(Input::Received(A, b"GET / HTTP/1.1\r\n"), now);
    let outputs = drain(&mut session);
    let expected = wire::encode_notification(&Notification::new(notification::MESSAGE_HEADER_ERROR, 1));
    assert_eq!(outputs[..2], [Output::Send(A, expected), Output::Close(A)]);
}

#[test]
fn a_peer_of_the_wrong_as_is_refused_with_bad_peer_as() {
    let now = Instant::now();
    let mut session = Session::new(config(1));
    session.handle(Input::Start, now);
    session.handle(Input::Accepted(A), now);
    drain(&mut session);
    let open = Session::new(Config { local_asn: 65001, ..config(2) }).local_open();
    session.handle(Input::Received(A, &wire::encode_open(&open)), now);
    let expected = wire::encode_notification(&Notification::new(notification::OPEN_MESSAGE_ERROR, 2));
    assert_eq!(drain(&mut session)[0], Output::Send(A, expected));
}

#[test]
fn of_colliding_connections_both_sides_keep_the_one_from_the_higher_identifier() {
    for order in 0..2 {
        let now = Instant::now();
        let (mut low, mut high) = (Session::new(config(1)), Session::new(config(2)));
        // A is opened by low, B by high.
        for (session, outgoing, incoming) in [(&mut low, A, B), (&mut high, B, A)] {
            session.handle(Input::Start, now);
            drain(session);
            session.handle(Input::Connected(outgoing), now);
            session.handle(Input::Accepted(incoming), now);
        }
        let (from_low, from_high) = (drain(&mut low), drain(&mut high));
        let ids = if order == 0 { [A, B] } else { [B, A] };
        for id in ids {
            low.handle(Input::Received(id, &sent(&from_high, id)), now);
            high.handle(Input::Received(id, &sent(&from_low, id)), now);
        }
        for _ in 0..3 {
            let (from_low, from_high) = (drain(&mut low), drain(&mut high));
            for id in ids {
                low.handle(Input::Received(id, &sent(&from_high, id)), now);
                high.handle(Input::Received(id, &sent(&from_low, id)), now);
            }
        }
        assert_eq!((low.state(), high.state()), (State::Established, State::Established));
        assert_eq!(low.negotiated().unwrap().connection, B);
        assert_eq!(high.negotiated().unwrap().connection, B);
    }
}

#[test]
fn a_restarted_peer_replaces_its_old_connection_and_keeps_its_routes() {
    let now = Instant::now();
    let mut session = Session::new(config(1));
    established(&mut session, A, &open_of(2), now);
    let later = now + Duration::from_secs(20);
    session.handle(Input::Accepted(B), later);
    drain(&mut session);
    session.handle(Input::Received(B, &open_of(2)), later);
    let outputs = drain(&mut session);
    assert!(outputs.contains(&Output::Close(A)), "{outputs:?}");
    let down = outputs.iter().find_map(|o| if let Output::Down(down) = o { Some(down) } else { None });
    assert_eq!(down.unwrap().retain, [Family::Ipv4, Family::Ipv6]);
    session.handle(Input::Received(B, &wire::encode_keepalive()), later);
    assert_eq!(session.negotiated().unwrap().connection, B);
}

#[test]
fn stop_sends_cease_and_keeps_nothing() {
    let now = Instant::now();
    let mut session = Session::new(config(1));
    established(&mut session, A, &open_of(2), now);
    drain(&mut session);
    session.handle(Input::Stop(Notification::cease(cease::PEER_DE_CONFIGURED)), now);
    let outputs = drain(&mut session);
    assert!(matches!(&outputs[2], Output::Down(down) if down.retain.is_empty()), "{outputs:?}");
    assert_eq!(session.state(), State::Idle);
}

proptest! {
    #[test]
    fn random_octets_cost_at_most_a_notification(
        chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200), 0..8),
        synchronized in any::<bool>(),
        stage in 0..3,
    ) {
        let now = Instant::now();
        let mut session = Session::new(config(1));
        session.handle(Input::Start, now);
        session.handle(Input::Accepted(A), now);
        if stage > 0 {
            session.handle(Input::Received(A, &open_of(2)), now);
        }
        if stage > 1 {
            session.handle(Input::Received(A, &wire::encode_keepalive()), now);
        }
        drain(&mut session);
        for chunk in &chunks {
            let mut octets = Vec::new();
            if synchronized {
                // A valid header, so that the body decoders are reached.
                octets.extend([0xff; 16]);
                octets.extend(((chunk.len() + 20) as u16).to_be_bytes());
                octets.push(1 + chunk.first().copied().unwrap_or(0) % 5);
                octets.push(0);
            }
            octets.extend(chunk);
            session.handle(Input::Received(A, &octets), now);
        }
        let outputs = drain(&mut session);
        let notifications = outputs
            .iter()
            .filter(|o| matches!(o, Output::Send(_, m) if m[18] == 3))
            .count();
        prop_assert!(notifications <= 1);
    }

    #[test]
    fn update_decoding_never_panics_and_reencodes(
        attributes in proptest::collection::vec((any::<u8>(), 0u8..40, proptest::collection::vec(any::<u8>(), 0..24)), 0..6),
        nlri in proptest::collection::vec(any::<u8>(), 0..20),
    ) {
        let mut list = Vec::new();
        for (flags, code, value) in &attributes {
            list.extend([flags & 0xef, *code, value.len() as u8]);
            list.extend(value);
        }
        let mut body = vec![0, 0];
        body.extend((list.len() as u16).to_be_bytes());
        body.extend(list);
        body.extend(nlri);
        for four_octet_as in [false, true] {
            let context = DecodeContext { four_octet_as, ..DecodeContext::default() };
            let Ok(update) = Update::decode(&body, &context) else { continue };
            let encode = EncodeContext { four_octet_as: true, message_length_max: 4096, add_path: Families::default() };
            for reach in &update.reach {
                let mut attributes = update.attributes.clone();
                attributes.next_hop = reach.next_hop;
                for message in wire::update::encode_reach(&attributes, &reach.prefixes, &encode) {
                    let context = DecodeContext { four_octet_as: true, ..DecodeContext::default() };
                    let wire::Message::Update(again) = wire::decode(&message, &context).unwrap() else {
                        panic!("not an UPDATE")
                    };
                    prop_assert_eq!(&again.errors, &vec![]);
                    prop_assert_eq!(&again.reach[0].prefixes, &reach.prefixes);
                }
            }
        }
    }
}

#[test]
fn malformed_attributes_are_treated_as_rfc_7606_says() {
    let context = DecodeContext { four_octet_as: true, external: true, ..DecodeContext::default() };
    let decode = |list: &[u8], nlri: &[u8]| {
        let mut body = vec![0, 0];
        body.extend((list.len() as u16).to_be_bytes());
        body.extend(list);
        body.extend(nlri);
        Update::decode(&body, &context)
    };
    let origin = [0x40, 1, 1, 0];
    let as_path = [0x40, 2, 6, 2, 1, 0, 0, 0xfd, 0xe8];
    let next_hop = [0x40, 3, 4, 10, 0, 0, 1];
    let nlri = [24, 10, 1, 2];
    let prefix: Prefix = "10.1.2.0/24".parse().unwrap();
    let good = [&origin[..], &as_path, &next_hop].concat();
    assert_eq!(decode(&good, &nlri).unwrap().reach[0].prefixes, [prefix.into()]);

    let bad_origin = [&[0x40, 1, 1, 9][..], &as_path, &next_hop].concat();
    let without_as_path = [&origin[..], &next_hop].concat();
    let without_next_hop = [&origin[..], &as_path].concat();
    let overrun = [&good[..], &[0xc0, 8, 200, 1]].concat();
    let community_of_three = [&good[..], &[0xc0, 8, 3, 1, 2, 3]].concat();
    for list in [bad_origin, without_as_path, without_next_hop, overrun, community_of_three] {
        let update = decode(&list, &nlri).unwrap();
        assert_eq!((update.reach, update.withdrawn), (vec![], vec![prefix.into()]), "{list:?}");
    }
    // Discarded attributes leave the route: LOCAL_PREF from another AS, a second ORIGIN, odd AGGREGATOR.
    for extra in [&[0x40, 5, 4, 0, 0, 0, 9][..], &[0x40, 1, 1, 2], &[0xc0, 7, 3, 1, 2, 3]] {
        let update = decode(&[&good[..], extra].concat(), &nlri).unwrap();
        assert_eq!(update.reach.len(), 1);
        assert_eq!(update.errors.len(), 1);
    }
    // What cannot be attributed to prefixes resets the session.
    assert_eq!(decode(&good, &[33, 1, 2, 3, 4, 5]).unwrap_err().subcode, 10);
    let twice = [&[0x80, 15, 3, 0, 2, 1][..], &[0x80, 15, 3, 0, 2, 1]].concat();
    assert_eq!(decode(&twice, &[]).unwrap_err().subcode, 1);
}

#[test]
fn a_two_octet_speaker_sees_as_trans_and_the_wide_path_survives() {
    let attributes = wire::Attributes {
        as_path: vec![wire::AsSegment::Sequence(vec![4_200_000_001, 65000])],
        next_hop: [10, 0, 0, 1].into(),
        ..wire::Attributes::default()
    };
    let prefix: Prefix = "10.1.0.0/16".parse().unwrap();
    let encode =
        EncodeContext { four_octet_as: false, message_length_max: 4096, add_path: Families::default() };
    let message = &wire::update::encode_reach(&attributes, &[prefix.into()], &encode)[0];
    let context = DecodeContext { external: true, ..DecodeContext::default() };
    let wire::Message::Update(update) = wire::decode(message, &context).unwrap() else { panic!() };
    assert_eq!(update.attributes.as_path, attributes.as_path);
}

/// One end of a race for a session: connection A is the low side's, B the high side's.
trait Side {
    fn take(&mut self, event: Event);
    /// What it sends, and where it closes.
    fn told(&mut self) -> Vec<(ConnectionId, Option<Vec<u8>>)>;
    fn has_session(&self) -> Option<ConnectionId>;
    /// A session has ended.
    fn has_lost(&self) -> bool;
}

#[derive(Clone, Debug)]
enum Event {
    Connected(ConnectionId),
    Accepted(ConnectionId),
    Received(ConnectionId, Vec<u8>),
    Closed(ConnectionId),
}

struct Ours {
    session: Session,
    now: Instant,
    lost: bool,
}

impl Side for Ours {
    fn take(&mut self, event: Event) {
        let input = match &event {
            Event::Connected(id) => Input::Connected(*id),
            Event::Accepted(id) => Input::Accepted(*id),
            Event::Received(id, octets) => Input::Received(*id, octets),
            Event::Closed(id) => Input::Closed(*id),
        };
        self.session.handle(input, self.now);
    }

    fn told(&mut self) -> Vec<(ConnectionId, Option<Vec<u8>>)> {
        let mut told = Vec::new();
        for output in drain(&mut self.session) {
            match output {
                Output::Send(id, message) => told.push((id, Some(message.to_vec()))),
                Output::Close(id) => told.push((id, None)),
                Output::Down(down) => self.lost |= down.was_established,
                _ => {}
            }
        }
        told
    }

    fn has_session(&self) -> Option<ConnectionId> {
        self.session.negotiated().map(|negotiated| negotiated.connection)
    }

    fn has_lost(&self) -> bool {
        self.lost
    }
}

/// As RFC 4271 section 6.8 has it to the letter, and BIRD and FRR do it: OPEN at once on each connection; what is established
/// stays, and else what the side with the higher identifier began.
struct Literal {
    id: u8,
    own: ConnectionId,
    states: std::collections::BTreeMap<ConnectionId, State>,
    told: Vec<(ConnectionId, Option<Vec<u8>>)>,
    lost: bool,
}

impl Literal {
    fn close(&mut self, id: ConnectionId) {
        self.lost |= self.states.remove(&id) == Some(State::Established);
        self.told.push((id, None));
    }

    fn refuse(&mut self, id: ConnectionId) {
        let collision = Notification::cease(cease::CONNECTION_COLLISION_RESOLUTION);
        self.told.push((id, Some(wire::encode_notification(&collision).to_vec())));
        self.close(id);
    }

    fn opened(&mut self, id: ConnectionId) {
        let other =
            self.states.iter().find(|(other, _)| **other != id).map(|(other, state)| (*other, *state));
        // Of two, the high side's own one is the high side's.
        let keeps_own = self.id == 2;
        match other {
            Some((_, State::Established)) => return self.refuse(id),
            Some((other, State::OpenConfirm)) if (id == self.own) == keeps_own => self.refuse(other),
            Some((_, State::OpenConfirm)) => return self.refuse(id),
            Some(_) | None => {}
        }
        self.states.insert(id, State::OpenConfirm);
        self.told.push((id, Some(wire::encode_keepalive().to_vec())));
    }
}

impl Side for Literal {
    fn take(&mut self, event: Event) {
        match event {
            Event::Connected(id) | Event::Accepted(id) => {
                self.states.insert(id, State::OpenSent);
                self.told.push((id, Some(open_of(self.id))));
            }
            Event::Received(id, _) if !self.states.contains_key(&id) => {}
            Event::Received(id, octets) => match octets[18] {
                1 => self.opened(id),
                4 if self.states[&id] == State::OpenConfirm => {
                    self.states.insert(id, State::Established);
                }
                4 => {}
                _ => self.close(id),
            },
            Event::Closed(id) => {
                self.lost |= self.states.remove(&id) == Some(State::Established);
            }
        }
    }

    fn told(&mut self) -> Vec<(ConnectionId, Option<Vec<u8>>)> {
        std::mem::take(&mut self.told)
    }

    fn has_session(&self) -> Option<ConnectionId> {
        self.states.iter().find(|(_, state)| **state == State::Established).map(|(id, _)| *id)
    }

    fn has_lost(&self) -> bool {
        self.lost
    }
}

fn ours(id: u8) -> Box<dyn Side> {
    let now = Instant::now();
    let mut session = Session::new(config(id));
    session.handle(Input::Start, now);
    drain(&mut session);
    Box::new(Ours { session, now, lost: false })
}

fn literal(id: u8) -> Box<dyn Side> {
    let own = if id == 1 { A } else { B };
    Box::new(Literal { id, own, states: Default::default(), told: Vec::new(), lost: false })
}

/// Runs a race in this order; what is on one connection stays in its order. Whether one session came of it, over one connection,
/// and no other was lost on the way.
fn race(mut sides: [Box<dyn Side>; 2], order: &[u8]) -> bool {
    // By receiver and connection.
    let mut queues: [[VecDeque<Event>; 2]; 2] = Default::default();
    let at = |id: ConnectionId| usize::from(id == B);
    for (receiver, id) in [(0, A), (1, A), (0, B), (1, B)] {
        let began = receiver == at(id);
        let event = if began { Event::Connected(id) } else { Event::Accepted(id) };
        queues[receiver][at(id)].push_back(event);
    }
    let mut closed = [[false; 2]; 2];
    let mut order = order.iter().map(|choice| usize::from(*choice));
    loop {
        let ready: Vec<(usize, usize)> = [(0, 0), (0, 1), (1, 0), (1, 1)]
            .into_iter()
            .filter(|(receiver, connection)| !queues[*receiver][*connection].is_empty())
            .collect();
        if ready.is_empty() {
            break;
        }
        let (receiver, connection) = ready[order.next().unwrap_or(0) % ready.len()];
        let event = queues[receiver][connection].pop_front().expect("it is ready");
        if closed[receiver][connection] {
            continue;
        }
        sides[receiver].take(event);
        for (id, what) in sides[receiver].told() {
            let event = match what {
                Some(octets) => Event::Received(id, octets),
                None => {
                    closed[receiver][at(id)] = true;
                    Event::Closed(id)
                }
            };
            queues[1 - receiver][at(id)].push_back(event);
        }
    }
    let [low, high] = &sides;
    low.has_session().is_some()
        && low.has_session() == high.has_session()
        && !low.has_lost()
        && !high.has_lost()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn in_every_order_one_session_comes_of_a_collision_and_none_is_lost(order in proptest::collection::vec(any::<u8>(), 40)) {
        prop_assert!(race([ours(1), ours(2)], &order), "with ourselves");
        prop_assert!(race([ours(1), literal(2)], &order), "with who goes by the letter, above us");
        prop_assert!(race([literal(1), ours(2)], &order), "with who goes by the letter, below us");
    }
}

#[test]
fn two_sides_that_both_go_by_the_letter_may_end_both_connections() {
    let mut random = 1u64;
    let mut order = || -> Vec<u8> {
        let next = || {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 56) as u8
        };
        std::iter::repeat_with(next).take(40).collect()
    };
    assert!((0..2000).any(|_| !race([literal(1), literal(2)], &order())), "else the races test nothing");
}

#[test]
fn other_times_are_for_keepalives_now_and_else_for_the_next_session() {
    let now = Instant::now();
    let mut session = Session::new(config(1));
    established(&mut session, A, &open_of(2), now);
    drain(&mut session);
    let (hold_time, keepalive_time) = (Duration::from_secs(30), Some(Duration::from_secs(5)));
    session.set_times(&Config { hold_time, keepalive_time, ..config(1) }, now);
    assert_eq!(drain(&mut session), []);
    let negotiated = session.negotiated().expect("a session");
    assert_eq!(
        (negotiated.hold_time, negotiated.keepalive_time),
        (Duration::from_secs(90), Duration::from_secs(5))
    );
    let soon = now + Duration::from_secs(5);
    session.handle(Input::Tick, soon);
    assert_eq!(drain(&mut session), [Output::Send(A, wire::encode_keepalive())]);
    session.handle(Input::Closed(A), soon);
    drain(&mut session);
    session.handle(Input::Accepted(B), soon);
    session.handle(Input::Received(B, &open_of(2)), soon);
    session.handle(Input::Received(B, &wire::encode_keepalive()), soon);
    let negotiated = session.negotiated().expect("a session");
    assert_eq!((negotiated.hold_time, negotiated.keepalive_time), (hold_time, Duration::from_secs(5)));
}

#[test]
fn a_second_connection_is_used_when_the_first_one_ends() {
    let now = Instant::now();
    let mut session = Session::new(config(1));
    session.handle(Input::Start, now);
    session.handle(Input::Accepted(A), now);
    session.handle(Input::Connected(B), now);
    let outputs = drain(&mut session);
    assert!(!sent(&outputs, A).is_empty() && sent(&outputs, B).is_empty(), "{outputs:?}");
    session.handle(Input::Closed(A), now);
    assert_eq!(sent(&drain(&mut session), B), open_of(1));
    session.handle(Input::Received(B, &open_of(2)), now);
    session.handle(Input::Received(B, &wire::encode_keepalive()), now);
    assert_eq!(session.state(), State::Established);
}
