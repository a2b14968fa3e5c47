//! Single packets in the place of the uplink, through tc's program and XDP's: what is sent on is exact, what is not is left as
//! it came, and nothing old is used for long.

use dataplane::{
    flows::{FlowEntry, now_ns},
    programs::XdpMode,
};
use ebpf_common::{Counter, Protocol, Shortcut, checksum};

use super::{FAMILIES, Family, PROTOCOLS, all, at, early, switch_on};
use crate::{
    datapath::{
        count,
        errors::{error, quote},
        node::{Node, to},
        packets::drops,
        program_runs::{REDIRECT, frame, run_at},
    },
    netns::eventually,
};

const PASS: u32 = 2;
const TX: u32 = 3;
/// The station of every frame of [`frame`], and the neighbour's.
const STATION: &str = "02:00:00:00:00:01";
const NEIGHBOUR: &str = "02:00:00:00:00:02";
const FIN: u8 = 0x11;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const ACK: u8 = 0x10;
/// Kernels count the programs' time in ticks.
const TICK_NS: u64 = 10_000_000;

fn run(node: &mut Node, program: &str, packet: &[u8]) -> (u32, Vec<u8>) {
    let uplink = node.namespace.interface_index("uplink");
    let datapath = &mut node.datapath;
    node.namespace.run(|| run_at(datapath, program, Some(uplink), packet))
}

fn xdp(node: &mut Node, packet: &[u8]) -> (u32, Vec<u8>) {
    run(node, "uplink_xdp", packet)
}

/// As the kernel does: what XDP leaves is tc's.
fn both(node: &mut Node, packet: &[u8]) -> Vec<u8> {
    match xdp(node, packet) {
        (TX, sent) => sent,
        (_, left) => {
            let (verdict, sent) = run(node, "uplink_ingress", &left);
            assert_eq!(verdict, REDIRECT);
            sent
        }
    }
}

/// A node with Services of one family for single packets, and a neighbour that is known and was asked after.
fn single(family: &Family) -> Node {
    let mut node = Node::new();
    node.namespace.ip(&format!("link set uplink address {STATION}"));
    know_neighbour(&node, family, NEIGHBOUR);
    switch_on(&node, XdpMode::Driver);
    node.serve(all(family, &to(&[at(family.elsewhere)])));
    let asked = question(family, 39_999, b"");
    both(&mut node, &asked);
    assert_eq!(xdp(&mut node, &asked), (PASS, asked.clone()), "the first by which the kernel asks after it");
    assert_eq!(xdp(&mut node, &asked).0, TX);
    node
}

fn know_neighbour(node: &Node, family: &Family, station: &str) {
    let neighbour = family.beyond;
    node.namespace.ip(&format!("neigh replace {neighbour} lladdr {station} dev uplink nud permanent"));
}

fn host(address: &str) -> (String, u16) {
    let address = at(address);
    (address.ip().to_string(), address.port())
}

fn question(family: &Family, port: u16, payload: &[u8]) -> Vec<u8> {
    let frontend = host(family.node_port);
    frame(Protocol::UDP, (family.beyond, port), (&frontend.0, frontend.1), payload)
}

/// A segment with other flags than SYN, and its checksum.
fn flagged(mut segment: Vec<u8>, flags: u8) -> Vec<u8> {
    let at = transport_at(&segment);
    let word = |at: usize| u16::from_be_bytes([segment[at], segment[at + 1]]);
    let sum = checksum::update(word(at + 16), u16::from(SYN), u16::from(flags)).to_be_bytes();
    segment[at + 13] = flags;
    segment[at + 16..at + 18].copy_from_slice(&sum);
    segment
}

fn transport_at(frame: &[u8]) -> usize {
    if frame[12..14] == [0x08, 0] { 34 } else { 54 }
}

fn source_port(frame: &[u8]) -> u16 {
    let at = transport_at(frame);
    u16::from_be_bytes([frame[at], frame[at + 1]])
}

/// The frame as the node sends it on.
fn sent_on(mut frame: Vec<u8>) -> Vec<u8> {
    frame[..12].copy_from_slice(&[2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1]);
    if transport_at(&frame) == 34 {
        frame[22] -= 1;
        frame[24..26].fill(0);
        let sum = checksum::checksum(&frame[14..34]);
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
    } else {
        frame[21] -= 1;
    }
    frame
}

/// Waits until what was known before is no longer used.
fn outlast_shortcuts() {
    let until = now_ns() + Shortcut::LIFE_NS + TICK_NS;
    eventually("shortcuts are too old", || (now_ns() > until).then_some(()));
}

fn flow(node: &Node, port: u16) -> FlowEntry {
    let flows = node.datapath.flows().expect("the flows");
    flows.into_iter().find(|flow| flow.client.1 == port).expect("the flow")
}

#[test]
fn a_packet_that_is_sent_on_early_is_the_one_that_a_host_would_have_sent() {
    let payloads: [&[u8]; 4] = [b"", b"x", b"odd", &[0xff; 1000]];
    for family in &FAMILIES {
        let mut node = single(family);
        let (frontend, backend) = (host(family.node_port), host(family.elsewhere));
        let (frontend, backend) = ((&*frontend.0, frontend.1), (&*backend.0, backend.1));
        let before = early(&node);
        for (number, protocol) in PROTOCOLS.into_iter().enumerate() {
            let client = (family.beyond, 40_000 + number as u16);
            let packet = |from, to, payload: &[u8]| {
                let packet = frame(protocol, from, to, payload);
                if protocol == Protocol::TCP { flagged(packet, ACK) } else { packet }
            };
            let opens = frame(protocol, client, frontend, b"");
            assert_eq!(xdp(&mut node, &opens), (PASS, opens.clone()), "tc begins flows");
            let seen = (family.node, source_port(&run(&mut node, "uplink_ingress", &opens).1));
            for payload in payloads {
                let wanted = (TX, sent_on(packet(seen, backend, payload)));
                let what = format!("{protocol:?} {}", payload.len());
                assert_eq!(xdp(&mut node, &packet(client, frontend, payload)), wanted, "{what}");
                let wanted = (TX, sent_on(packet(frontend, client, payload)));
                assert_eq!(xdp(&mut node, &packet(backend, seen, payload)), wanted, "{what}");
            }
        }
        assert_eq!((early(&node), drops(&node)), (before + 16, 0));
        if at(family.any).is_ipv4() {
            let mut unsummed = question(family, 40_001, b"x");
            unsummed[40..42].fill(0);
            let (verdict, sent) = xdp(&mut node, &unsummed);
            assert_eq!((verdict, &sent[40..42]), (TX, [0, 0].as_slice()));
        }
    }
}

#[test]
fn what_tc_does_better_is_left_to_it_as_it_came() {
    for family in &FAMILIES {
        let mut node = single(family);
        let frontend = host(family.node_port);
        let is_v4 = at(family.any).is_ipv4();
        let plain = question(family, 40_000, b"ask");
        both(&mut node, &plain);
        let ends = |to: &str| frame(Protocol::UDP, (family.beyond, 40_000), (to, 80), b"ask");
        let hops_at = if is_v4 { 22 } else { 21 };
        let with = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut packet = plain.clone();
            change(&mut packet);
            packet
        };
        let refused = (if is_v4 { 3 } else { 1 }, 3, [0; 4]);
        let mut packets = vec![
            ("tagged", with(&|packet| drop(packet.splice(12..12, [0x81, 0, 0, 7])))),
            ("without a hop", with(&|packet| packet[hops_at] = 1)),
            ("for another station", with(&|packet| packet[5] = 9)),
            ("cut short", plain[..transport_at(&plain) + 7].to_vec()),
            ("too big", question(family, 40_000, &[7; 1500])),
            ("of no flow", question(family, 40_001, b"ask")),
            (
                "a segment of no flow",
                flagged(frame(Protocol::TCP, (family.beyond, 1), (&frontend.0, frontend.1), b""), ACK),
            ),
            ("to a pod here", ends(&host(family.here).0)),
            ("to a pod elsewhere", ends(&host(family.elsewhere).0)),
            ("to no Service", ends(family.node)),
            ("an error", error(refused, family.beyond, family.node, &quote(&plain, 8))),
        ];
        if is_v4 {
            packets.extend([
                // Four no-operation options (RFC 791 3.1).
                (
                    "with options",
                    with(&|packet| {
                        packet.splice(34..34, [1; 4]);
                        packet[14] = 0x46;
                    }),
                ),
                ("a first fragment", with(&|packet| packet[20] = 0x20)),
                ("a later fragment", with(&|packet| packet[21] = 8)),
            ]);
        } else {
            let extended = |kind: u8, header: [u8; 8]| {
                with(&|packet| {
                    packet.splice(54..54, header);
                    packet[20] = kind;
                })
            };
            packets.extend([
                ("with an extension header", extended(60, [17, 0, 1, 4, 0, 0, 0, 0])),
                ("a first fragment", extended(44, [17, 0, 0, 1, 0, 0, 0, 7])),
            ]);
        }
        let before = early(&node);
        for (what, packet) in packets {
            assert_eq!(xdp(&mut node, &packet), (PASS, packet), "{what}");
        }
        assert_eq!((early(&node), drops(&node)), (before, 0));
        assert_eq!(xdp(&mut node, &plain).0, TX, "and what is plain is sent on");
    }
}

#[test]
fn a_neighbour_or_route_that_changed_is_used_for_a_tenth_of_a_second_at_most() {
    for family in &FAMILIES {
        let mut node = single(family);
        let asked = question(family, 39_999, b"ask");
        let stations = |sent: &[u8]| sent[..12].to_vec();
        let before = xdp(&mut node, &asked);
        assert_eq!(before.0, TX);
        know_neighbour(&node, family, "02:00:00:00:00:03");
        outlast_shortcuts();
        let (verdict, sent) = xdp(&mut node, &asked);
        assert_eq!((verdict, stations(&sent)), (TX, vec![2, 0, 0, 0, 0, 3, 2, 0, 0, 0, 0, 1]));
        node.namespace.ip("link set uplink address 02:00:00:00:00:07");
        outlast_shortcuts();
        assert_eq!(xdp(&mut node, &asked), (PASS, asked.clone()), "it is for another station");
        node.namespace.ip(&format!("link set uplink address {STATION}"));
        outlast_shortcuts();
        // Such a change makes the kernel forget even permanent neighbours.
        know_neighbour(&node, family, NEIGHBOUR);
        assert_eq!(xdp(&mut node, &asked).0, TX);
        let range = if at(family.any).is_ipv4() { "10.244.1.0/24" } else { "fd00:244:1::/64" };
        node.namespace.ip(&format!("route del {range}"));
        outlast_shortcuts();
        assert_eq!(xdp(&mut node, &asked), (PASS, asked.clone()), "there is no route");
        node.namespace.ip(&format!("route add {range} via {}", family.beyond));
        assert_eq!(xdp(&mut node, &asked).0, TX);
        node.namespace.ip(&format!("neigh del {} dev uplink", family.beyond));
        outlast_shortcuts();
        assert_eq!(xdp(&mut node, &asked), (PASS, asked.clone()), "the neighbour is not known");
    }
}

#[test]
fn datagrams_go_to_a_backend_that_is_gone_for_a_tenth_of_a_second_at_most() {
    for family in &FAMILIES {
        let mut node = single(family);
        let asked = question(family, 39_999, b"ask");
        assert_eq!(xdp(&mut node, &asked).0, TX);
        let other = family.elsewhere.replace("8080", "8081");
        node.serve(all(family, &to(&[at(&other)])));
        outlast_shortcuts();
        assert_eq!(xdp(&mut node, &asked), (PASS, asked.clone()), "tc chooses another");
        let at = transport_at(&asked);
        for _ in 0..2 {
            assert_eq!(both(&mut node, &asked)[at + 2..at + 4], 8081_u16.to_be_bytes());
        }
        node.serve(all(family, &to(&[])));
        outlast_shortcuts();
        assert_eq!(xdp(&mut node, &asked), (PASS, asked.clone()), "tc refuses");
    }
}

#[test]
fn what_ends_a_connection_is_noted_as_tc_notes_it_and_its_ports_may_open_another() {
    for family in &FAMILIES {
        let mut node = single(family);
        let (frontend, backend) = (host(family.node_port), host(family.elsewhere));
        let (frontend, backend) = ((&*frontend.0, frontend.1), (&*backend.0, backend.1));
        for (number, program) in ["uplink_xdp", "uplink_ingress"].into_iter().enumerate() {
            let client = (family.beyond, 41_000 + number as u16);
            let [opens, goes_on, ends, resets] =
                [SYN, ACK, FIN, RST].map(|flags| flagged(frame(Protocol::TCP, client, frontend, b""), flags));
            let seen = (family.node, source_port(&both(&mut node, &opens)));
            let answer = |flags| flagged(frame(Protocol::TCP, backend, seen, b""), flags);
            let (sent_on, timeout) = (if program == "uplink_xdp" { TX } else { REDIRECT }, |node: &Node| {
                let flow = flow(node, client.1);
                (flow.answered, flow.closing, flow.timeout_seconds)
            });
            assert_eq!(timeout(&node), (false, false, 60), "{program}");
            for (packet, wanted) in [
                (answer(SYN | ACK), (true, false, 8000)),
                (goes_on.clone(), (true, false, 8000)),
                (ends.clone(), (true, true, 300)),
                (answer(FIN), (true, true, 120)),
                (goes_on.clone(), (true, true, 120)),
            ] {
                assert_eq!(run(&mut node, program, &packet).0, sent_on, "{program}");
                assert_eq!(timeout(&node), wanted, "{program}");
            }
            // Shortcuts of the flow are there; its ports open another, to another backend, and nothing goes to the old one.
            let backend = family.elsewhere.replace("8080", "8081");
            node.serve(all(family, &to(&[at(&backend)])));
            for packet in [&opens, &goes_on, &goes_on] {
                let (sent, at) = (both(&mut node, packet), transport_at(packet));
                assert_eq!(sent[at + 2..at + 4], 8081_u16.to_be_bytes(), "{program}");
            }
            assert_eq!(timeout(&node), (false, false, 60), "{program}");
            assert_eq!(run(&mut node, program, &resets).0, sent_on);
            assert_eq!(timeout(&node), (false, true, 120), "{program}");
            node.serve(all(family, &to(&[at(family.elsewhere)])));
        }
        assert_eq!((count(&node.datapath, Counter::FlowNew), drops(&node)), (5, 0));
    }
}
