//! What a BGP peer sends: single messages, and whole conversations with a speaker.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use bgp::policy::{Action, Community, Policy, Rule};
use bgp::wire::open::{AddPathMode, LongLived};
use bgp::wire::update::{encode_end_of_rib, encode_reach, encode_withdraw};
use bgp::wire::{
    self, AsSegment, Attributes, Capability, DecodeContext, EncodeContext, GracefulRestart, Message, Nlri,
    Notification, Open, Refresh,
};
use bgp::{
    AddPath, ConnectionId, Families, Family, Input, Output, PeerConfig, Prefix, Speaker, SpeakerConfig,
};
use fuzz::{Fuzz, outcome};

const BOTH: Families = Families { ipv4: true, ipv6: true };
const DICTIONARY: [&[u8]; 14] = [
    &[0xff; 16],
    b"\x40\x01\x01\x00",
    b"\x40\x02\x06\x02\x01\x00\x00\xfd\xe9",
    b"\x40\x03\x04\x0a\x00\x00\x01",
    b"\xc0\x08\x04\xff\xff\x00\x06",
    b"\x80\x0e\x1a\x00\x02\x01\x10\x20\x01\x0d\xb8",
    b"\x80\x0f\x03\x00\x02\x01",
    b"\xc0\x10\x08\x00\x02\x00\x01\x00\x00\x00\x01",
    b"\xc0\x20\x0c\x00\x00\x00\x01\x00\x00\x00\x02",
    b"\xe0\xff\x00",
    b"\x50\x02\x10\x00",
    b"\x45\x08\x00\x01\x01\x03\x00\x02\x01\x03",
    b"\x18\x0a\x01\x02",
    b"\x00\x1d",
];

fn open(router_id: u8) -> Open {
    let families = || Family::ALL.into_iter();
    let mode = AddPathMode { receive: true, send: true };
    let long = |family| LongLived { family, forwarding: true, stale_time: 3600 };
    let graceful = GracefulRestart {
        restarted: false,
        notification: true,
        restart_time: 120,
        families: families().map(|family| (family, true)).collect(),
    };
    let mut capabilities: Vec<Capability> = families().map(Capability::MultiProtocol).collect();
    capabilities.extend([
        Capability::RouteRefresh,
        Capability::EnhancedRouteRefresh,
        Capability::ExtendedMessage,
        Capability::FourOctetAs(65001),
        Capability::GracefulRestart(graceful),
        Capability::LongLivedGracefulRestart(families().map(long).collect()),
        Capability::AddPath(families().map(|family| (family, mode)).collect()),
        Capability::ExtendedNextHop(Families { ipv4: true, ipv6: false }),
    ]);
    Open { asn: 65001, hold_time: 90, router_id: Ipv4Addr::new(10, 0, 0, router_id), capabilities }
}

fn attributes() -> Attributes {
    Attributes {
        as_path: vec![AsSegment::Sequence(vec![65001, 4_200_000_001]), AsSegment::Set(vec![7, 8])],
        next_hop: IpAddr::from([192, 0, 2, 2]),
        med: Some(9),
        aggregator: Some((4_200_000_001, Ipv4Addr::LOCALHOST)),
        communities: vec![0xffff_0000, 1],
        extended_communities: vec![[0, 2, 0, 1, 0, 0, 0, 1]],
        large_communities: vec![[1, 2, 3]],
        ..Attributes::default()
    }
}

/// One message of each kind, as this speaker writes them.
fn messages(add_path: Families) -> Vec<Vec<u8>> {
    let nlri = |text: &str| Nlri { prefix: text.parse().expect("a prefix"), path_id: 1 };
    let mut all = vec![
        wire::encode_open(&open(2)),
        wire::encode_keepalive(),
        wire::encode_notification(&Notification::cease(2).hard()),
        wire::encode_route_refresh(Family::Ipv4, Refresh::Begin),
        wire::encode_route_refresh(Family::Ipv6, Refresh::Request),
        encode_end_of_rib(Family::Ipv6),
    ];
    for four_octet_as in [false, true] {
        let context = EncodeContext { four_octet_as, message_length_max: 4096, add_path };
        let six = Attributes { next_hop: Ipv6Addr::LOCALHOST.into(), ..attributes() };
        all.extend(encode_reach(&attributes(), &[nlri("10.1.2.0/24"), nlri("0.0.0.0/0")], &context));
        all.extend(encode_reach(&six, &[nlri("2001:db8::/32"), nlri("::1/128")], &context));
        all.extend(encode_reach(&six, &[nlri("10.2.0.0/16")], &context));
        all.extend(encode_withdraw(&[nlri("10.1.2.0/24")], &context));
        all.extend(encode_withdraw(&[nlri("2001:db8::/32")], &context));
    }
    all.into_iter().map(|message| message.to_vec()).collect()
}

/// What was decoded goes out again and is read back the same.
fn decoded(message: &[u8], context: &DecodeContext) -> u64 {
    let message = match wire::decode(message, context) {
        Err(notification) => return outcome(&(notification.code, notification.subcode)),
        Ok(message) => message,
    };
    match &message {
        Message::Open(open) => {
            let fits = open.capabilities.len() < 10;
            let unknown =
                open.capabilities.iter().filter(|c| matches!(c, Capability::Unknown { .. })).count();
            if fits && unknown == 0 {
                let again =
                    wire::decode(&wire::encode_open(open), context).expect("what was written can be read");
                assert_eq!(message, again);
            }
            outcome(&(1, open.capabilities.len().min(9), unknown.min(3)))
        }
        Message::Update(update) => {
            for reach in &update.reach {
                let attributes = Attributes { next_hop: reach.next_hop, ..update.attributes.clone() };
                let encode = EncodeContext {
                    four_octet_as: true,
                    message_length_max: wire::EXTENDED_MESSAGE_LENGTH_MAX,
                    add_path: context.add_path,
                };
                let context = DecodeContext { four_octet_as: true, ..*context };
                for again in encode_reach(&attributes, &reach.prefixes, &encode) {
                    let again = wire::decode(&again, &context).expect("what was written can be read");
                    let Message::Update(again) = again else { panic!("an UPDATE is read as one") };
                    assert_eq!(again.errors, []);
                }
            }
            let codes: Vec<(u8, bool)> = update.errors.iter().map(|e| (e.code, e.withdraw)).take(3).collect();
            outcome(&(2, update.reach.len(), update.withdrawn.len().min(3), codes))
        }
        Message::Notification(notification) => {
            // It is shown to people, as it came.
            outcome(&(3, notification.to_string().len().min(200)))
        }
        Message::Keepalive => outcome(&4),
        Message::RouteRefresh(refresh) => outcome(&(5, refresh.is_some())),
    }
}

#[test]
fn bgp_messages() {
    let mut corpus = Vec::new();
    for (head, add_path) in [(0u8, Families::default()), (3, BOTH)] {
        for message in messages(add_path) {
            corpus.push([&[head], &message[..]].concat());
        }
    }
    Fuzz { name: "bgp-messages", corpus, dictionary: &DICTIONARY }.run(|input| {
        let Some((flags, input)) = input.split_first() else { return 0 };
        let context = DecodeContext {
            four_octet_as: flags & 1 != 0,
            external: flags & 4 != 0,
            add_path: if flags & 2 != 0 { BOTH } else { Families::default() },
        };
        match wire::message_length(input, flags & 8 != 0) {
            Err(notification) => outcome(&(9, notification.subcode)),
            Ok(None) => 0,
            // The length is the mutated one, and there may be less.
            Ok(Some(length)) => decoded(&input[..length.min(input.len())], &context),
        }
    });
}

fn speaker(now: Instant) -> Speaker {
    let config = SpeakerConfig {
        asn: 64512,
        router_id: Ipv4Addr::new(10, 0, 0, 1),
        next_hop_v4: Some(Ipv4Addr::new(192, 0, 2, 1)),
        next_hop_v6: Some(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)),
        hold_time: Duration::from_secs(90),
        connect_retry: Duration::from_secs(5),
        restart_time: Duration::from_secs(120),
        deferral_time: Duration::ZERO,
        listen_ranges: Vec::new(),
        long_lived_stale_time: None,
    };
    let mark = Rule { actions: vec![Action::AddCommunity(Community::Standard(7))], ..Rule::default() };
    let policy = Policy { rules: vec![mark], ..Policy::default() };
    let peer = PeerConfig {
        passive: true,
        import: policy.clone(),
        export: policy,
        max_prefixes: Some(50),
        long_lived_stale_time: Some(Duration::from_secs(3600)),
        add_path: AddPath { receive: true, send_max: 4 },
        extended_next_hop: true,
        ..PeerConfig::default()
    };
    let peers = [2, 3].map(|number| (IpAddr::from([192, 0, 2, number]), peer.clone()));
    let mut speaker = Speaker::new(config, now);
    speaker.set_peers(&peers.into_iter().collect(), now);
    speaker
}

#[test]
fn bgp_conversations() {
    let begin = [messages(BOTH)[0].clone(), wire::encode_keepalive().to_vec()].concat();
    let mut corpus: Vec<Vec<u8>> =
        messages(BOTH).into_iter().map(|message| [&begin, &message[..]].concat()).collect();
    corpus.push([&begin[..], &messages(BOTH)[6..].concat()].concat());
    let now = Instant::now();
    let witness: Prefix = "203.0.113.0/24".parse().expect("a prefix");
    Fuzz { name: "bgp-conversations", corpus, dictionary: &DICTIONARY }.run(|input| {
        let mut speaker = speaker(now);
        let (good, bad) = (ConnectionId(1), ConnectionId(2));
        let context = EncodeContext { four_octet_as: true, message_length_max: 4096, add_path: BOTH };
        let route = encode_reach(&attributes(), &[Nlri { prefix: witness, path_id: 1 }], &context);
        speaker.handle(Input::Accepted { remote: [192, 0, 2, 3].into(), id: good }, now);
        for message in [wire::encode_open(&open(3)), wire::encode_keepalive(), route[0].clone()] {
            speaker.handle(Input::Received { id: good, octets: &message }, now);
        }
        speaker.handle(Input::Accepted { remote: [192, 0, 2, 2].into(), id: bad }, now);
        for piece in input.chunks(97) {
            speaker.handle(Input::Received { id: bad, octets: piece }, now);
        }
        let mut notifications = Vec::new();
        while let Some(output) = speaker.poll_output() {
            match output {
                Output::Send { id, message } if id == bad && message[18] == 3 => {
                    notifications.push([message[19], message[20]]);
                }
                Output::Close { id } => assert_eq!(id, bad, "no other connection is closed"),
                _ => {}
            }
        }
        assert!(notifications.len() <= 1, "one NOTIFICATION at most: {notifications:?}");
        let routes = speaker.routes();
        let kept =
            routes.iter().find(|route| route.prefix == witness).expect("the other peer's route is kept");
        assert!(kept.best.is_some());
        speaker.handle(Input::Closed { id: bad }, now);
        speaker.handle(Input::Tick, now + Duration::from_secs(4000));
        outcome(&(notifications, routes.len().min(8), speaker.peers()[0].state as u8))
    });
}
