use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::{checksum::*, *};

#[test]
fn ipv4_address_is_held_as_mapped_and_comes_back() {
    let address = Address::from(IpAddr::V4(Ipv4Addr::new(10, 96, 0, 1)));
    assert!(address.is_v4());
    assert_eq!(address.to_ip(), IpAddr::V4(Ipv4Addr::new(10, 96, 0, 1)));
    assert_eq!(address.octets(), Ipv4Addr::new(10, 96, 0, 1).to_ipv6_mapped().octets());
}

#[test]
fn ipv6_address_is_not_taken_for_ipv4() {
    for ip in ["fd00::1", "::", "::1", "::10.0.0.1", "64:ff9b::10.0.0.1"] {
        let ip: Ipv6Addr = ip.parse().unwrap();
        assert!(!Address::from(IpAddr::V6(ip)).is_v4(), "{ip}");
        assert_eq!(Address::from(IpAddr::V6(ip)).to_ip(), IpAddr::V6(ip));
    }
}

#[test]
fn port_is_in_network_order() {
    assert_eq!(Port::new(0x1234).to_network(), [0x12, 0x34]);
    assert_eq!(Port::from_network([0x00, 0x50]).get(), 80);
}

#[test]
fn pick_backend_stays_below_the_count_and_reaches_every_slot() {
    assert_eq!(pick_backend(u32::MAX, 0), None);
    for count in [1, 2, 3, 7, 1000, u32::MAX] {
        assert_eq!(pick_backend(0, count), Some(0));
        assert_eq!(pick_backend(u32::MAX, count), Some(count - 1));
    }
    let mut hits = [0u32; 6];
    for i in 0..60_000u32 {
        let slot = pick_backend(i.wrapping_mul(2_654_435_761), 6).unwrap();
        hits[slot as usize] += 1;
    }
    assert!(hits.iter().all(|h| (9_900..10_100).contains(h)), "{hits:?}");
}

#[test]
fn a_clients_place_is_the_same_everywhere_and_in_every_release() {
    let v4 = Address::from(IpAddr::V4(Ipv4Addr::new(10, 89, 0, 12)));
    let v6 = Address::from(IpAddr::V6("2001:db8::12".parse().unwrap()));
    let port = u32::from(u16::from_ne_bytes(Port::new(40_000).to_network()));
    let places = [(v4, port), (v4, 0), (v6, port)]
        .map(|(address, port)| balancing::place(balancing::client_bits(&address, port)));
    assert_eq!(places, [2547, 2063, 12298]);
    assert_eq!((balancing::place(0), balancing::place(u32::MAX)), (0, balancing::PLACES - 1));
}

#[test]
fn a_frontend_says_whether_it_has_tables_and_which() {
    let plain = Frontend::new(ServiceId(7), 0, 3, 0..3, true);
    assert!(plain.is_plain() && !plain.has_tables());
    assert!(Frontend::new(ServiceId(7), 0, 0, 0..0, false).is_plain());
    assert!(!Frontend::new(ServiceId(7), 60, 3, 0..3, true).is_plain());
    assert!(!plain.with_source_ranges().is_plain());
    let counting = plain.with_counts();
    assert!(!counting.is_plain() && !counting.has_tables());
    assert_eq!(counting.balancing(), Balancing::LeastConnections);
    for balancing in [Balancing::Random, Balancing::Maglev] {
        let frontend = plain.with_tables(balancing);
        assert!(!frontend.is_plain() && frontend.has_tables());
        assert_eq!((frontend.balancing(), frontend.first_piece(Origin::Beyond)), (balancing, 0));
    }
    let split = Frontend::new(ServiceId(7), 0, 2, 1..4, true).with_tables(Balancing::Maglev);
    assert_eq!(split.first_piece(Origin::Node), 0);
    assert_eq!(split.first_piece(Origin::Beyond), balancing::PIECES);
}

#[test]
fn checksum_agrees_with_the_example_of_rfc_1071() {
    let bytes = [0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7];
    assert_eq!(fold(sum(&bytes, 0)), 0xddf2);
    assert_eq!(checksum(&bytes), !0xddf2);
}

#[test]
fn a_shortcut_leaves_the_checksums_that_fresh_sums_give() {
    let octets = |tuple: &Tuple| {
        let mut octets = [0; 36];
        octets[..16].copy_from_slice(&tuple.source.octets());
        octets[16..32].copy_from_slice(&tuple.destination.octets());
        octets[32..34].copy_from_slice(&tuple.source_port.to_network());
        octets[34..].copy_from_slice(&tuple.destination_port.to_network());
        octets
    };
    let in_packet = |checksum: u16| u16::from_ne_bytes(checksum.to_be_bytes());
    let tuple = |source, destination, ports: (u16, u16)| {
        Tuple::new(source, Port::new(ports.0), destination, Port::new(ports.1), Protocol::TCP)
    };
    let ends = [[0; 4], [255; 4], [10, 244, 1, 2], [0, 0, 0, 1], [255, 255, 0, 0], [203, 0, 113, 77]];
    for old in ends {
        for new in ends {
            let from = tuple(Address::from_v4(old), Address::from_v4([10, 0, 0, 1]), (40_000, 80));
            let to = tuple(Address::from_v4([10, 89, 0, 11]), Address::from_v4(new), (65_535, 8080));
            let shortcut = Shortcut::new(&from, &to, true);
            let (before, wanted) = (checksum(&octets(&from)), checksum(&octets(&to)));
            assert_eq!(shortcut::changed(in_packet(before), shortcut.transport_sum), in_packet(wanted));

            // A hop less: of 64 there are 63 left.
            let header = |of: &Tuple, hops: u8| {
                let mut header = [0; 20];
                header[..10].copy_from_slice(&[0x45, 0, 0, 60, 0x1c, 0x46, 0x40, 0, hops, 6]);
                header[12..16].copy_from_slice(&of.source.octets()[12..]);
                header[16..].copy_from_slice(&of.destination.octets()[12..]);
                in_packet(checksum(&header))
            };
            assert_eq!(shortcut::changed(header(&from, 64), shortcut.header_sum), header(&to, 63));
        }
    }
    let v6 = |last: u16| Address::from(IpAddr::V6(Ipv6Addr::new(0xfd00, 0x244, 0xffff, 0, 1, 0, 0, last)));
    let (from, to) = (tuple(v6(1), v6(0xffff), (1, 2)), tuple(v6(7), v6(0), (3, 4)));
    let sum = Shortcut::new(&from, &to, false).transport_sum;
    assert_eq!(
        shortcut::changed(in_packet(checksum(&octets(&from))), sum),
        in_packet(checksum(&octets(&to)))
    );
}

#[test]
fn a_tuple_of_words_is_the_one_of_its_parts() {
    let tuple = Tuple::new(
        Address::from_v4([10, 244, 1, 2]),
        Port::new(40_000),
        Address::from_v4([10, 96, 0, 1]),
        Port::new(80),
        Protocol::UDP,
    );
    let (source, destination) = (tuple.source.to_words(), tuple.destination.to_words());
    let [[a, b], [c, d]] = [tuple.source_port, tuple.destination_port].map(Port::to_network);
    let ports = u32::from_ne_bytes([a, b, c, d]);
    assert_eq!(Tuple::from_words(source, destination, ports, u32::from_ne_bytes([17, 0, 0, 0])), tuple);
}

#[test]
fn a_shortcut_is_good_for_its_life_and_no_longer() {
    let from =
        Tuple::new(Address::UNSPECIFIED, Port::new(1), Address::UNSPECIFIED, Port::new(2), Protocol::TCP);
    let mut shortcut = Shortcut::new(&from, &from.reversed(), true);
    shortcut.confirmed_ns = 1000;
    assert!(shortcut.is_good(1000 + Shortcut::LIFE_NS - 1) && !shortcut.is_good(1000 + Shortcut::LIFE_NS));
    // The other CPU's clock was a little behind.
    assert!(!shortcut.is_good(999));
}

#[test]
fn checksum_update_equals_a_fresh_sum() {
    let mut bytes = [0x45, 0x00, 0x12, 0x34, 0xab, 0xcd, 0x00, 0xff];
    let before = checksum(&bytes);
    for new in [0u16, 1, 0xffff, 0x8000, 0x1235] {
        bytes[2..4].copy_from_slice(&0x1234u16.to_be_bytes());
        let updated = update(before, 0x1234, new);
        bytes[2..4].copy_from_slice(&new.to_be_bytes());
        assert_eq!(updated, checksum(&bytes), "{new:#x}");
    }
}

#[test]
fn reversing_a_tuple_twice_gives_it_back() {
    let tuple = Tuple::new(
        Address::from_v4([10, 244, 0, 2]),
        Port::new(40000),
        Address::from_v4([10, 96, 0, 1]),
        Port::new(443),
        Protocol::TCP,
    );
    assert_ne!(tuple.reversed(), tuple);
    assert_eq!(tuple.reversed().reversed(), tuple);
}

#[test]
fn timeout_follows_the_state_of_both_directions() {
    let tuple =
        Tuple::new(Address::UNSPECIFIED, Port::new(1), Address::UNSPECIFIED, Port::new(2), Protocol::TCP);
    let flow = |direction| Flow::new(direction, tuple, ServiceId(1), BackendId(1), false, 0);
    let (mut forward, mut reverse) = (flow(Direction::Forward), flow(Direction::Reverse));
    assert_eq!(timeout_seconds(Protocol::TCP, &forward, &reverse), 60);
    assert_eq!(timeout_seconds(Protocol::UDP, &forward, &reverse), 30);
    reverse.seen = 1;
    assert_eq!(timeout_seconds(Protocol::TCP, &forward, &reverse), 8000);
    assert_eq!(timeout_seconds(Protocol::UDP, &forward, &reverse), 180);
    forward.fin = 1;
    assert_eq!(timeout_seconds(Protocol::TCP, &forward, &reverse), 300);
    reverse.fin = 1;
    assert_eq!(timeout_seconds(Protocol::TCP, &forward, &reverse), 120);
    let mut reset = flow(Direction::Reverse);
    reset.seen = 1;
    reset.rst = 1;
    assert_eq!(timeout_seconds(Protocol::TCP, &flow(Direction::Forward), &reset), 120);
}

#[test]
fn counter_numbers_are_their_places() {
    for (place, counter) in Counter::ALL.iter().enumerate() {
        assert_eq!(*counter as usize, place);
        assert_eq!(counter.is_drop(), counter.name().starts_with("drop_"));
    }
}

#[test]
fn an_address_of_the_host_itself_is_known() {
    let of = |text: &str| Address::from(text.parse::<IpAddr>().unwrap());
    for own in ["127.0.0.1", "127.3.2.1", "0.0.0.0", "::1", "::"] {
        assert!(of(own).is_own(), "{own}");
    }
    for other in ["10.0.0.127", "128.0.0.1", "::2", "fe80::1", "1::1", "0.0.0.1"] {
        assert!(!of(other).is_own(), "{other}");
    }
    assert_eq!(of("10.1.2.3").any(), of("0.0.0.0"));
    assert_eq!(of("fd00::1").any(), of("::"));
}

#[test]
fn slots_of_the_two_kinds_of_clients_overlap() {
    let frontend = Frontend::new(ServiceId(1), 0, 7, 3..9, true);
    assert_eq!(frontend.slots(Origin::Beyond), (0, 7));
    assert_eq!(frontend.slots(Origin::Node), (3, 6));
    assert_eq!(frontend.slot_count(), 9);
    assert_eq!(Frontend::new(ServiceId(1), 0, 7, 3..5, true).slot_count(), 7);
}

#[test]
fn an_old_frontend_leads_where_it_led() {
    let old = retired::Frontend1 {
        service_id: ServiceId(3),
        backend_count: 5,
        local_count: 2,
        affinity_seconds: 60,
    };
    let new = Frontend::from(old);
    assert_eq!((new.slots(Origin::Node), new.slots(Origin::Beyond)), ((0, 5), (0, 2)));
    assert_eq!((new.service_id, new.affinity_seconds, new.has_endpoints()), (ServiceId(3), 60, true));
    let none = Frontend::from(retired::Frontend1 { backend_count: 0, local_count: 0, ..old });
    assert!(!none.has_endpoints());
}

#[test]
fn a_backend_says_where_it_is_and_who_may_have_it() {
    let backend = Backend::new(BackendId(1), ServiceId(1), Address::UNSPECIFIED, Port::new(1));
    assert!(!backend.is_remote() && backend.is_for(Origin::Node) && backend.is_for(Origin::Beyond));
    assert!(backend.remote().is_remote());
    assert!(!backend.only_for(Origin::Node).is_for(Origin::Beyond));
    assert!(backend.remote().only_for(Origin::Node).is_for(Origin::Node));
    assert!(!backend.only_for(Origin::Beyond).is_for(Origin::Node));
    let kept = backend.for_nobody_new();
    assert!(!kept.is_for(Origin::Node) && !kept.is_for(Origin::Beyond));
}

#[test]
fn a_bucket_gives_a_burst_and_then_a_thousand_per_second() {
    const SECOND: u64 = 1_000_000_000;
    let mut bucket = Bucket::EMPTY;
    let mut taken = |now_ns: u64| (0..5000).take_while(|_| bucket.take(now_ns)).count() as u64;
    assert_eq!(taken(7000 * SECOND), Bucket::BURST, "as long as nobody asked, it has filled up");
    assert_eq!(taken(7000 * SECOND), 0);
    assert_eq!(taken(7000 * SECOND + Bucket::COST_NS - 1), 0);
    assert_eq!(taken(7000 * SECOND + 10 * Bucket::COST_NS), 10);
    assert_eq!(taken(7000 * SECOND), 0, "a clock that went back gives nothing");
    assert_eq!(taken(9000 * SECOND), Bucket::BURST);
    assert_eq!(taken(u64::MAX), Bucket::BURST);
}

#[test]
fn a_range_has_the_addresses_of_its_family_that_share_its_prefix() {
    let address = |text: &str| Address::from(text.parse::<IpAddr>().unwrap());
    let ranges =
        Ranges { v4: Range::new(address("10.96.255.255"), 12), v6: Range::new(address("fd00:10:96::"), 112) };
    for (inside, text) in [
        (true, "10.96.0.0"),
        (true, "10.111.255.255"),
        (false, "10.95.255.255"),
        (false, "10.112.0.0"),
        (true, "fd00:10:96::ffff"),
        (false, "fd00:10:96::1:0"),
        (false, "::"),
        (false, "0.0.0.0"),
    ] {
        assert_eq!(ranges.contains(&address(text)), inside, "{text}");
    }
    assert!(Range::new(address("10.0.0.1"), 32).contains(&address("10.0.0.1")));
    assert!(!Range::new(address("10.0.0.1"), 32).contains(&address("10.0.0.2")));
    for text in ["0.0.0.0", "10.96.0.1", "::", "fd00::1"] {
        assert!(!Ranges::NONE.contains(&address(text)), "{text}");
    }
}

#[test]
fn only_an_address_that_one_host_has_is_answered() {
    let address = |text: &str| Address::from(text.parse::<IpAddr>().unwrap());
    for host in ["10.244.0.2", "1.0.0.1", "126.0.0.1", "128.0.0.1", "223.255.255.255", "fd00::2", "fe80::1"] {
        assert!(address(host).is_host(), "{host}");
    }
    let others = ["0.0.0.0", "0.1.2.3", "127.0.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255"];
    for other in others.iter().chain(&["::", "::1", "ff02::1"]) {
        assert!(!address(other).is_host(), "{other}");
    }
}

#[test]
#[cfg(feature = "desired")]
fn a_source_range_holds_nothing_behind_its_prefix() {
    use desired::SourceRange;
    let range = |ip: &str, prefix| SourceRange::new(ip.parse().unwrap(), prefix);
    assert_eq!(range("10.1.2.3", 8), range("10.9.9.9", 8));
    assert_ne!(range("10.1.2.3", 8), range("10.1.2.3", 9));
    assert_eq!(range("::ffff:10.1.2.3", 104), range("10.0.0.0", 8));
    for (ip, prefix, held, bits) in [
        ("192.0.2.129", 25, "192.0.2.128", 121),
        ("192.0.2.129", 32, "192.0.2.129", 128),
        ("2001:db8:1::1", 32, "2001:db8::", 32),
        ("2001:db8::1", 128, "2001:db8::1", 128),
    ] {
        let found = range(ip, prefix).unwrap();
        assert_eq!((found.address().to_ip(), found.bits()), (held.parse().unwrap(), bits));
        let key = SourceRangeKey::new(ServiceId(7), found.address(), found.bits());
        assert_eq!(
            (key.to_prefix(), key.prefix_bits),
            ((found.address().to_ip(), prefix), 32 + u32::from(bits))
        );
    }
    assert_eq!((range("10.0.0.0", 33), range("::", 129)), (None, None));
    for (ip, prefix, everything) in [
        ("0.0.0.0", 0, true),
        ("10.0.0.0", 0, true),
        ("::", 0, true),
        ("0.0.0.0", 1, false),
        ("::", 1, false),
    ] {
        assert_eq!(range(ip, prefix).unwrap().is_everything(), everything, "{ip}/{prefix}");
    }
}

#[test]
fn a_sender_is_never_missed_in_its_place_and_others_are_told_apart_while_it_is_alone() {
    let (one, other) = (7, 7 + u64::from(Sender::PLACES));
    assert_eq!(Sender::place(one), Sender::place(other));
    let free = Sender(0);
    assert!(!free.may_be(one));
    let taken = free.with(one);
    assert!(taken.may_be(one) && !taken.may_be(other) && !taken.is_several());
    assert_eq!((taken.with(one), taken.without(other), taken.without(one)), (taken, taken, free));
    let several = taken.with(other);
    assert!(several.may_be(one) && several.may_be(other) && several.cookie() == one);
    // Of those that share a place nobody knows who is the last.
    assert_eq!(
        (several.without(one), several.without(other), several.with(one)),
        (several, several, several)
    );
}

#[test]
fn a_socket_of_the_first_layout_is_the_same_without_a_frontend() {
    use crate::retired::ConnectedSocket1;
    let backend = Backend::new(BackendId(5), ServiceId(3), Address::from_v4([10, 0, 0, 1]), Port::new(53));
    let socket = ConnectedSocket::new(9, &backend, Address::from_v4([10, 96, 0, 1]), Port::new(53));
    let old = ConnectedSocket1::new(9, &backend);
    let taken_over = ConnectedSocket::from(old);
    assert_eq!(taken_over.frontend_port, Port::new(0));
    assert_eq!(
        (taken_over.netns_cookie, taken_over.address, taken_over.port, taken_over.backend_id),
        (socket.netns_cookie, socket.address, socket.port, socket.backend_id)
    );
}

#[test]
fn an_allowed_connection_is_remembered_for_as_long_as_its_state_asks() {
    let key = |protocol, port| {
        let [pod, peer] = [2, 3].map(|last| Address::from_v4([10, 244, 0, last]));
        policy_flow_key(pod, Port::new(40000), peer, Port::new(port), protocol)
    };
    let flow = |inbound| PolicyFlow { answered: 1, ..PolicyFlow::new(1, inbound, 0) };
    let (tcp, udp) = (key(Protocol::TCP, 80), key(Protocol::UDP, 80));
    assert_eq!(PolicyFlow::new(1, false, 0).timeout_seconds(&tcp), 60);
    assert_eq!(PolicyFlow::new(0, false, 0).timeout_seconds(&tcp), 8000, "one that was there before");
    assert_eq!(flow(true).timeout_seconds(&tcp), 8000);
    let half = PolicyFlow { pod_closing: PolicyFlow::FIN, ..flow(true) };
    assert_eq!(half.timeout_seconds(&tcp), 300);
    assert_eq!(PolicyFlow { peer_closing: PolicyFlow::FIN, ..half }.timeout_seconds(&tcp), 120);
    assert_eq!(PolicyFlow { peer_closing: PolicyFlow::RESET, ..half }.timeout_seconds(&tcp), 10);
    assert_eq!((flow(false).timeout_seconds(&udp), flow(true).timeout_seconds(&udp)), (180, 30));
    assert_eq!(flow(false).timeout_seconds(&key(Protocol::UDP, 53)), 10);
    assert_eq!(flow(false).timeout_seconds(&key(Protocol::SCTP, 80)), 210);
}
