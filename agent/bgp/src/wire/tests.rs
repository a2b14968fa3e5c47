use std::net::Ipv4Addr;

use proptest::prelude::*;

use super::open::{AddPathMode, LongLived};
use super::update::{encode_reach, encode_withdraw};
use super::*;
use crate::prefix::{Families, Prefix};

const EXTERNAL: DecodeContext =
    DecodeContext { four_octet_as: true, external: true, add_path: Families { ipv4: false, ipv6: false } };
const INTERNAL: DecodeContext = DecodeContext { external: false, ..EXTERNAL };

/// An UPDATE of one prefix with the attributes that it must have, and these.
fn with(extra: &[u8], context: &DecodeContext) -> Update {
    let mut list = vec![0x40, 1, 1, 0, 0x40, 2, 6, 2, 1, 0, 0, 0xfd, 0xe8, 0x40, 3, 4, 10, 0, 0, 1];
    list.extend(extra);
    let mut body = vec![0, 0];
    body.extend((list.len() as u16).to_be_bytes());
    body.extend(list);
    body.extend([24, 10, 1, 2]);
    Update::decode(&body, context).unwrap()
}

fn families() -> impl Iterator<Item = Family> {
    Family::ALL.into_iter()
}

#[test]
fn each_faulty_attribute_costs_what_rfc_7606_says() {
    // Code, flags, a value, and whether the routes are withdrawn, or else the attribute discarded.
    let cases: [(&str, u8, u8, &[u8], bool); 22] = [
        ("MULTI_EXIT_DISC of three octets", 4, 0x80, &[0; 3], true),
        ("MULTI_EXIT_DISC that is transitive", 4, 0xc0, &[0; 4], true),
        ("LOCAL_PREF of five octets", 5, 0x40, &[0; 5], true),
        ("ATOMIC_AGGREGATE with a value", 6, 0x40, &[0], false),
        ("ATOMIC_AGGREGATE that is optional", 6, 0xc0, &[], true),
        ("AGGREGATOR of seven octets", 7, 0xc0, &[1; 7], false),
        ("AGGREGATOR of AS 0", 7, 0xc0, &[0; 8], false),
        ("COMMUNITIES without any", 8, 0xc0, &[], true),
        ("COMMUNITIES of six octets", 8, 0xc0, &[0; 6], true),
        ("ORIGINATOR_ID of two octets", 9, 0x80, &[0; 2], true),
        ("CLUSTER_LIST of five octets", 10, 0x80, &[0; 5], true),
        ("CLUSTER_LIST without any", 10, 0x80, &[], true),
        ("EXTENDED_COMMUNITIES of nine octets", 16, 0xc0, &[0; 9], true),
        ("LARGE_COMMUNITIES of thirteen octets", 32, 0xc0, &[0; 13], true),
        ("an unknown attribute that is well-known", 99, 0x40, &[0], true),
        ("AS_PATH twice", 2, 0x40, &[], false),
        ("NEXT_HOP twice", 3, 0x40, &[1], false),
        ("ORIGIN twice", 1, 0x40, &[7], false),
        ("a length beyond the list", 8, 0xd0, &[], true),
        ("COMMUNITIES that are not optional", 8, 0x40, &[0; 4], true),
        ("LARGE_COMMUNITIES that are not transitive", 32, 0x80, &[0; 12], true),
        ("EXTENDED_COMMUNITIES that are not optional", 16, 0x40, &[0; 8], true),
    ];
    for (what, code, flags, value, withdrawn) in cases {
        let extra = [&[flags, code, value.len() as u8], value].concat();
        let update = with(&extra, &INTERNAL);
        assert_eq!(update.errors.len(), 1, "{what}: {:?}", update.errors);
        assert_eq!(update.errors[0].withdraw, withdrawn, "{what}");
        assert_eq!(
            (update.reach.is_empty(), update.withdrawn.len()),
            (withdrawn, usize::from(withdrawn)),
            "{what}"
        );
    }
}

#[test]
fn an_as_path_with_as_0_or_an_unknown_segment_is_malformed() {
    for path in [[2u8, 1, 0, 0, 0, 0], [3, 1, 0, 0, 0, 1], [2, 0, 0, 0, 0, 1], [2, 2, 0, 0, 0, 1]] {
        let list = [&[0x40, 1, 1, 0, 0x40, 2, 6][..], &path, &[0x40, 3, 4, 10, 0, 0, 1]].concat();
        let mut body = vec![0, 0, 0, list.len() as u8];
        body.extend(list);
        body.extend([24, 10, 1, 2]);
        let update = Update::decode(&body, &EXTERNAL).unwrap();
        assert_eq!((update.reach.len(), update.withdrawn.len()), (0, 1), "{path:?}");
    }
}

#[test]
fn what_is_internal_is_discarded_from_another_as() {
    for (flags, code) in [(0x40, 5), (0x80, 9), (0x80, 10)] {
        let update = with(&[flags, code, 4, 0, 0, 0, 1], &EXTERNAL);
        assert_eq!((update.reach.len(), update.errors.len()), (1, 1));
        assert_eq!(with(&[flags, code, 4, 0, 0, 0, 1], &INTERNAL).errors, []);
    }
}

#[test]
fn unknown_transitive_attributes_go_on_with_the_partial_bit_and_others_do_not() {
    let update = with(&[0xc0, 99, 2, 5, 6, 0x80, 98, 1, 7], &EXTERNAL);
    assert_eq!(update.attributes.unknown.len(), 1);
    let context =
        EncodeContext { four_octet_as: true, message_length_max: 4096, add_path: Families::default() };
    let attributes = Attributes { next_hop: update.reach[0].next_hop, ..update.attributes };
    let message = &encode_reach(&attributes, &update.reach[0].prefixes, &context)[0];
    assert!(message.windows(5).any(|octets| octets == [0xe0, 99, 2, 5, 6]), "{message:?}");
}

#[test]
fn an_aggregator_of_four_octets_survives_a_speaker_of_two() {
    let attributes = Attributes {
        aggregator: Some((4_200_000_001, Ipv4Addr::new(1, 2, 3, 4))),
        as_path: vec![AsSegment::Sequence(vec![65000])],
        next_hop: [10, 0, 0, 1].into(),
        ..Attributes::default()
    };
    let prefix: Prefix = "10.1.0.0/16".parse().unwrap();
    let encode =
        EncodeContext { four_octet_as: false, message_length_max: 4096, add_path: Families::default() };
    let message = &encode_reach(&attributes, &[prefix.into()], &encode)[0];
    let context = DecodeContext { external: true, ..DecodeContext::default() };
    let Message::Update(update) = decode(message, &context).unwrap() else { panic!() };
    assert_eq!(update.attributes.aggregator, attributes.aggregator);
}

#[test]
fn extended_messages_are_filled_to_their_last_octets() {
    let prefixes: Vec<Nlri> = (0..40_000u32)
        .map(|n| {
            Prefix::new(std::net::IpAddr::from((0x0a00_0000 + n * 256).to_be_bytes()), 24).unwrap().into()
        })
        .collect();
    let attributes = Attributes { next_hop: [10, 0, 0, 1].into(), ..Attributes::default() };
    let encode = EncodeContext {
        four_octet_as: true,
        message_length_max: EXTENDED_MESSAGE_LENGTH_MAX,
        add_path: Families::default(),
    };
    for messages in [encode_reach(&attributes, &prefixes, &encode), encode_withdraw(&prefixes, &encode)] {
        assert_eq!(messages.len(), 3);
        assert!(messages[0].len() > EXTENDED_MESSAGE_LENGTH_MAX - 4, "{}: one more fits", messages[0].len());
        assert!(message_length(&messages[0], false).is_err(), "not for who has not offered it");
        assert_eq!(message_length(&messages[0], true), Ok(Some(messages[0].len())));
        let decoded: usize = messages
            .iter()
            .map(|message| match decode(message, &EXTERNAL).unwrap() {
                Message::Update(update) => {
                    update.withdrawn.len()
                        + update.reach.iter().map(|reach| reach.prefixes.len()).sum::<usize>()
                }
                other => panic!("{other:?}"),
            })
            .sum();
        assert_eq!(decoded, prefixes.len());
    }
}

#[test]
fn attributes_that_fit_no_message_of_the_peer_withdraw_the_route_from_it() {
    let attributes = Attributes {
        communities: (0..1020).collect(),
        next_hop: [10, 0, 0, 1].into(),
        ..Attributes::default()
    };
    let prefix: Prefix = "10.1.0.0/16".parse().unwrap();
    let encode =
        EncodeContext { four_octet_as: true, message_length_max: 4096, add_path: Families::default() };
    let messages = encode_reach(&attributes, &[prefix.into()], &encode);
    let Message::Update(update) = decode(&messages[0], &EXTERNAL).unwrap() else { panic!() };
    assert_eq!((update.reach.len(), update.withdrawn), (0, vec![prefix.into()]));
}

#[test]
fn a_notification_tells_what_the_other_operator_said() {
    let shutdown = Notification::with_data(6, 2, b"\x0cback at noon\x1b");
    let shown = "Cease (6): Administrative Shutdown (2): \"back at noon\"";
    assert_eq!(shutdown.to_string(), shown);
    assert_eq!(shutdown.hard().to_string(), format!("Cease (6): Hard Reset (9): {shown}"));
    assert_eq!(
        Notification::with_data(6, 2, &[200, 1]).to_string(),
        "Cease (6): Administrative Shutdown (2)"
    );
}

#[test]
fn a_refresh_of_another_length_is_an_error_that_quotes_it() {
    let mut message = encode_route_refresh(Family::Ipv4, Refresh::End).to_vec();
    assert_eq!(decode(&message, &EXTERNAL), Ok(Message::RouteRefresh(Some((Family::Ipv4, Refresh::End)))));
    message[21] = 9;
    assert_eq!(decode(&message, &EXTERNAL), Ok(Message::RouteRefresh(None)), "an unknown kind is ignored");
    message.push(0);
    let error = decode(&message, &EXTERNAL).unwrap_err();
    assert_eq!((error.code, error.subcode, error.data), (7, 1, message));
}

fn nlri() -> impl Strategy<Value = Nlri> {
    (any::<u32>(), any::<u128>(), 0u8..=128, any::<bool>()).prop_map(|(path_id, address, length, six)| {
        let prefix = if six {
            Prefix::new(std::net::Ipv6Addr::from(address).into(), length)
        } else {
            Prefix::new(Ipv4Addr::from(address as u32).into(), length.min(32))
        };
        Nlri { prefix: prefix.unwrap(), path_id }
    })
}

proptest! {
    #[test]
    fn prefixes_with_path_identifiers_read_back(list in proptest::collection::vec(nlri(), 1..400), limit in 600usize..5000) {
        let add_path = Families { ipv4: true, ipv6: true };
        let encode = EncodeContext { four_octet_as: true, message_length_max: limit, add_path };
        let context = DecodeContext { add_path, ..EXTERNAL };
        for family in families() {
            let list: Vec<Nlri> = list.iter().copied().filter(|nlri| nlri.prefix.family() == family).collect();
            let attributes = Attributes { next_hop: std::net::Ipv6Addr::LOCALHOST.into(), ..Attributes::default() };
            let mut reached = Vec::new();
            for message in encode_reach(&attributes, &list, &encode) {
                prop_assert!(message.len() <= limit);
                let Message::Update(update) = decode(&message, &context).unwrap() else { panic!() };
                reached.extend(update.reach.into_iter().flat_map(|reach| reach.prefixes));
            }
            prop_assert_eq!(&reached, &list);
            let mut withdrawn = Vec::new();
            for message in encode_withdraw(&list, &encode) {
                prop_assert!(message.len() <= limit);
                let Message::Update(update) = decode(&message, &context).unwrap() else { panic!() };
                withdrawn.extend(update.withdrawn);
            }
            prop_assert_eq!(&withdrawn, &list);
        }
    }

    #[test]
    fn an_open_reads_back(
        asn in 1u32.., hold_time in 3u16.., id in 1u32.., restart_time in 0u16..4096, stale_time in 0u32..1 << 24,
        (restarted, notification, receive, send, forwarding) in any::<(bool, bool, bool, bool, bool)>(),
    ) {
        let graceful = GracefulRestart {
            restarted,
            notification,
            restart_time,
            families: families().map(|family| (family, forwarding)).collect(),
        };
        let long = |family| LongLived { family, forwarding, stale_time };
        let mut capabilities = vec![
            Capability::MultiProtocol(Family::Ipv6),
            Capability::RouteRefresh,
            Capability::EnhancedRouteRefresh,
            Capability::ExtendedMessage,
            Capability::FourOctetAs(asn),
            Capability::GracefulRestart(graceful),
            Capability::LongLivedGracefulRestart(families().map(long).collect()),
            Capability::ExtendedNextHop(Families { ipv4: true, ipv6: false }),
            Capability::Unknown { code: 200, value: vec![1, 2, 3] },
        ];
        if receive || send {
            capabilities.push(Capability::AddPath(vec![(Family::Ipv4, AddPathMode { receive, send })]));
        }
        let open = Open { asn, hold_time, router_id: Ipv4Addr::from(id), capabilities };
        prop_assert_eq!(decode(&encode_open(&open), &EXTERNAL), Ok(Message::Open(open)));
    }
}
