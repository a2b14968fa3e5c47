//! A peer that is reached by its link-local address, and next hops that mean something on one link alone.

use std::net::Ipv6Addr;

use super::exchange::linked;
use super::*;
use crate::link_local::with_link;
use crate::rib::Rejected;
use crate::wire::update::encode_reach;
use crate::wire::{Capability, EncodeContext, Nlri, Open};
use crate::{Families, NextHopMode};

const LINK: u32 = 7;
const A: ConnectionId = ConnectionId(900);

fn now() -> Instant {
    Network::new(&INTERNAL[..1]).now
}

fn on_link(last: u16) -> IpAddr {
    with_link(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, last).into(), LINK)
}

fn v6_prefix() -> Prefix {
    Prefix::new("2001:db8:7::".parse().unwrap(), 48).unwrap()
}

/// A speaker, fe80::1 on the link, with an external peer at fe80::2 there and one in the network at 10.89.0.12.
fn speaker(now: Instant) -> Speaker {
    let mut speaker = Speaker::new(config(0, 64512), now);
    let peer = PeerConfig {
        asn: Some(64999),
        local_address: Some(on_link(1)),
        extended_next_hop: true,
        families: Some(vec![Family::Ipv4, Family::Ipv6]),
        ..PeerConfig::default()
    };
    let inside = PeerConfig { asn: Some(64512), next_hop: NextHopMode::Keep, ..PeerConfig::default() };
    speaker.set_peers(&BTreeMap::from([(on_link(2), peer), (address(1), inside)]), now);
    speaker.set_local(local(&[prefix(0, 0)]));
    speaker
}

fn join(speaker: &mut Speaker, remote: IpAddr, id: ConnectionId, asn: u32, now: Instant) {
    let extended = Capability::ExtendedNextHop(Families { ipv4: true, ipv6: false });
    let mut capabilities = vec![Capability::FourOctetAs(asn), extended];
    capabilities.extend(Family::ALL.map(Capability::MultiProtocol));
    let router_id = Ipv4Addr::new(10, 99, 0, id.0 as u8);
    let open = Open { asn, hold_time: 90, router_id, capabilities };
    speaker.handle(Input::Accepted { remote, id }, now);
    speaker.handle(Input::Received { id, octets: &wire::encode_open(&open) }, now);
    speaker.handle(Input::Received { id, octets: &wire::encode_keepalive() }, now);
}

fn drain(speaker: &mut Speaker, id: ConnectionId) -> Vec<Arc<[u8]>> {
    let sent = |output| match output {
        Output::Send { id: to, message } if to == id => Some(Some(message)),
        _ => Some(None),
    };
    std::iter::from_fn(|| speaker.poll_output().and_then(sent)).flatten().collect()
}

fn holds(messages: &[Arc<[u8]>], wanted: &[u8]) -> bool {
    messages.iter().any(|message| message.windows(wanted.len()).any(|octets| octets == wanted))
}

#[test]
fn ipv4_is_told_with_the_address_of_the_link_as_it_is_on_the_wire() {
    let now = now();
    let mut speaker = speaker(now);
    join(&mut speaker, on_link(2), A, 64999, now);
    let sent = drain(&mut speaker, A);
    // AFI 1, SAFI 1, 16 octets of next hop, reserved, the prefix.
    let mut reach = vec![0, 1, 1, 16];
    reach.extend(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1).octets());
    reach.extend([0, 26, 10, 244, 0, 0]);
    assert!(holds(&sent, &reach), "{sent:?}");
}

#[test]
fn next_hops_of_a_peer_of_a_link_carry_the_link_and_go_to_nobody_else() {
    let now = now();
    let mut speaker = speaker(now);
    join(&mut speaker, on_link(2), A, 64999, now);
    let inside = ConnectionId(901);
    join(&mut speaker, address(1), inside, 64512, now);
    let attributes = Attributes {
        next_hop: Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2).into(),
        as_path: vec![wire::attributes::AsSegment::Sequence(vec![64999])],
        ..Attributes::default()
    };
    let context =
        EncodeContext { four_octet_as: true, message_length_max: 4096, add_path: Families::default() };
    for destination in [prefix(9, 0), v6_prefix()] {
        for octets in encode_reach(&attributes, &[Nlri::from(destination)], &context) {
            speaker.handle(Input::Received { id: A, octets: &octets }, now);
        }
    }
    let sent = drain(&mut speaker, inside);
    for destination in [prefix(9, 0), v6_prefix()] {
        let route =
            speaker.routes().into_iter().find(|route| route.prefix == destination).expect("it is there");
        assert_eq!((route.next_hops, route.paths[0].rejected), (vec![on_link(2)], None));
    }
    assert!(holds(&sent, &[10, 89, 0, 11]), "with ours, though it was to be kept");
    assert!(!holds(&sent, &[0xfe, 0x80, 0, 0]), "nobody else is on that link: {sent:?}");
}

#[test]
fn of_two_next_hops_the_one_of_the_link_is_taken() {
    let now = now();
    let mut speaker = speaker(now);
    join(&mut speaker, on_link(2), A, 64999, now);
    for (global, last) in [(Ipv6Addr::UNSPECIFIED, 3), (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2), 4)] {
        let mut value = vec![0, 2, 1, 32];
        value.extend(global.octets());
        value.extend(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, last).octets());
        value.extend([0, 48, 0x20, 0x01, 0x0d, 0xb8, 0, 7]);
        let mut list = vec![0x80, 14, value.len() as u8];
        list.extend(value);
        list.extend([0x40, 1, 1, 0, 0x40, 2, 6, 2, 1, 0, 0, 0xfd, 0xe7]);
        let mut octets = vec![0xff; 16];
        octets.extend(((19 + 4 + list.len()) as u16).to_be_bytes());
        octets.extend([2, 0, 0]);
        octets.extend((list.len() as u16).to_be_bytes());
        octets.extend(list);
        speaker.handle(Input::Received { id: A, octets: &octets }, now);
        let routes = speaker.routes();
        let route = routes.iter().find(|route| route.prefix == v6_prefix()).expect("it is there");
        assert_eq!(route.next_hops, [on_link(last)]);
    }
}

#[test]
fn a_link_local_next_hop_of_a_peer_that_is_on_no_link_is_refused() {
    let mut network = linked(&INTERNAL, &[]);
    let peer = PeerConfig { families: Some(vec![Family::Ipv6]), ..PeerConfig::default() };
    let now = network.now;
    let speaker = &mut network.speakers[0];
    speaker.set_peers(&BTreeMap::from([(address(1), peer)]), now);
    join(speaker, address(1), A, INTERNAL[0], now);
    let next_hop = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2).into();
    let attributes = Attributes { next_hop, local_pref: Some(100), ..Attributes::default() };
    let context =
        EncodeContext { four_octet_as: true, message_length_max: 4096, add_path: Families::default() };
    for octets in encode_reach(&attributes, &[Nlri::from(v6_prefix())], &context) {
        speaker.handle(Input::Received { id: A, octets: &octets }, now);
    }
    assert_eq!(speaker.routes()[0].paths[0].rejected, Some(Rejected::NextHop));
}
