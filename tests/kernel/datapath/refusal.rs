//! What a client is told that gets no backend: resets and ICMP errors, to the byte and by real sockets, and silence.

use std::{
    io::ErrorKind,
    net::{SocketAddr, UdpSocket},
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    thread,
    time::Duration,
};

use dataplane::{datapath::Datapath, maps::PinnedMap, node::NodeConfig};
use ebpf_common::{
    Counter, Frontend, FrontendKey, Protocol, ServiceId, checksum,
    desired::{Clients, Endpoint, Service},
    maps,
};

use super::{
    count, endpoint,
    errors::{error, quote},
    key, leading_to,
    node::{Node, to},
    node_port, open,
    packets::{connect, drops, receive, udp},
    program_runs::{CLIENT, CLIENT_V6, PASS, REDIRECT, SHOT, enclosed, frame, run, transport_checksum},
    services, tc_modes,
};
use crate::netns::{BpfDir, NetNs, eventually};

const FIN: u8 = 0x01;
const SYN: u8 = 0x02;
const RST: u8 = 0x04;
const PSH: u8 = 0x08;
const ACK: u8 = 0x10;

const PAIRS: [(&str, &str); 2] = [(CLIENT, "10.96.0.7"), (CLIENT_V6, "fd00:96::7")];

/// The same Service in both families, without endpoints.
fn deserted(directory: &BpfDir) -> Datapath {
    let mut datapath = open(directory);
    let mut wanted = services([]);
    for protocol in [Protocol::TCP, Protocol::UDP] {
        wanted.insert(key("10.96.0.7:80", protocol), to(&[]));
        wanted.insert(key("[fd00:96::7]:80", protocol), to(&[]));
    }
    datapath.set_services(wanted).expect("setting the services");
    datapath
}

/// A TCP segment, addressed to the host that gets it.
fn segment(from: (&str, u16), to: (&str, u16), flags: u8, numbers: (u32, u32), payload: &[u8]) -> Vec<u8> {
    let window: u16 = if flags & RST == 0 { 0xffff } else { 0 };
    let mut transport = Vec::new();
    transport.extend(from.1.to_be_bytes());
    transport.extend(to.1.to_be_bytes());
    transport.extend(numbers.0.to_be_bytes());
    transport.extend(numbers.1.to_be_bytes());
    transport.extend([0x50, flags]);
    transport.extend(window.to_be_bytes());
    transport.extend([0; 4]);
    transport.extend(payload);
    let (source, destination) = (from.0.parse().expect("an address"), to.0.parse().expect("an address"));
    let sum = transport_checksum(source, destination, Protocol::TCP, &transport);
    transport[16..18].copy_from_slice(&sum.to_be_bytes());
    for_host(enclosed(Protocol::TCP, source, destination, &transport))
}

/// A single run's device has an address of zeros only.
fn for_host(mut frame: Vec<u8>) -> Vec<u8> {
    frame[..6].fill(0);
    frame
}

/// What the program makes of an answer besides what `of` builds: the stations change places, and nothing identifies a
/// packet that is not to be fragmented.
fn as_answer(mut frame: Vec<u8>) -> Vec<u8> {
    frame[..6].copy_from_slice(&[2, 0, 0, 0, 0, 2]);
    frame[6..12].fill(0);
    if frame[12..14] == [0x08, 0] {
        frame[18..22].copy_from_slice(&[0, 0, 0x40, 0]);
        frame[24..26].fill(0);
        let sum = checksum::checksum(&frame[14..34]);
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
    }
    frame
}

#[test]
fn a_segment_to_nobody_is_reset_by_the_numbers_of_the_standard() {
    let directory = BpfDir::new();
    let mut datapath = deserted(&directory);
    for program in ["pod_ingress", "uplink_ingress"] {
        for (client, service) in PAIRS {
            for (flags, numbers, payload, answer, answered) in [
                (SYN, (7, 0), b"".as_slice(), RST | ACK, (0, 8)),
                (SYN, (u32::MAX, 0), b"", RST | ACK, (0, 0)),
                (SYN, (7, 0), b"early", RST | ACK, (0, 13)),
                (SYN | ACK, (7, 900), b"", RST, (900, 0)),
                (ACK, (7, 900), b"", RST, (900, 0)),
                (ACK | PSH, (7, 900), &[0xfe; 1001], RST, (900, 0)),
                (FIN | ACK, (7, 0xffff_fff0), b"x", RST, (0xffff_fff0, 0)),
                (FIN, (7, 0), b"x", RST | ACK, (0, 9)),
            ] {
                let asked = segment((client, 40000), (service, 80), flags, numbers, payload);
                let wanted = segment((service, 80), (client, 40000), answer, answered, b"");
                assert_eq!(
                    run(&mut datapath, program, &asked),
                    (REDIRECT, as_answer(wanted)),
                    "{client} {flags:#x} {numbers:?}"
                );
            }
        }
    }
    assert_eq!((count(&datapath, Counter::DropNoBackend), count(&datapath, Counter::Answered)), (32, 32));
}

#[test]
fn a_datagram_to_nobody_is_answered_with_port_unreachable() {
    let directory = BpfDir::new();
    let mut datapath = deserted(&directory);
    for (client, service) in PAIRS {
        let kind = if client == CLIENT { (3, 3, [0; 4]) } else { (1, 4, [0; 4]) };
        for payload in [b"".as_slice(), b"x", &[0xee; 1000]] {
            let asked = for_host(frame(Protocol::UDP, (client, 40000), (service, 80), payload));
            let wanted = as_answer(error(kind, service, client, &quote(&asked, 8)));
            assert_eq!(run(&mut datapath, "pod_ingress", &asked), (REDIRECT, wanted), "{client}");
        }
    }
    assert_eq!((count(&datapath, Counter::DropNoBackend), count(&datapath, Counter::Answered)), (6, 6));
}

#[test]
fn who_may_not_be_answered_hears_nothing() {
    let directory = BpfDir::new();
    let mut datapath = deserted(&directory);
    let mut packets = Vec::new();
    for (client, service) in PAIRS {
        packets.push(segment((client, 40000), (service, 80), RST, (7, 0), b""));
        packets.push(segment((client, 40000), (service, 80), RST | ACK, (7, 8), b""));
        // To another station, which the link shows to everybody, and to all.
        let asked = segment((client, 40000), (service, 80), SYN, (7, 0), b"");
        packets.extend([2, 0xff].map(|station| [[station; 6].as_slice(), &asked[6..]].concat()));
    }
    for source in ["0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255"] {
        packets.push(segment((source, 40000), ("10.96.0.7", 80), SYN, (7, 0), b""));
        packets.push(for_host(frame(Protocol::UDP, (source, 40000), ("10.96.0.7", 80), b"x")));
    }
    for source in ["::", "::1", "ff02::1"] {
        packets.push(segment((source, 40000), ("fd00:96::7", 80), SYN, (7, 0), b""));
        packets.push(for_host(frame(Protocol::UDP, (source, 40000), ("fd00:96::7", 80), b"x")));
    }
    let mut fragment = for_host(frame(Protocol::UDP, (CLIENT, 40000), ("10.96.0.7", 80), &[7; 64]));
    fragment[20] = 0x20;
    packets.push(fragment);
    let mut with_options = segment((CLIENT, 40000), ("10.96.0.7", 80), SYN, (7, 0), b"");
    with_options.splice(34..34, [1, 1, 1, 1]);
    with_options[14] = 0x46;
    packets.push(with_options);
    for packet in &packets {
        assert_eq!(run(&mut datapath, "pod_ingress", packet).0, SHOT, "{packet:02x?}");
    }
    assert_eq!(count(&datapath, Counter::DropNoBackend), packets.len() as u64);
    assert_eq!(count(&datapath, Counter::Answered), 0);
}

#[test]
fn who_sends_with_too_few_hops_is_told_by_the_node() {
    let directory = BpfDir::new();
    let mut datapath = super::program_runs::datapath(&directory);
    let nodes = ["10.89.0.11", "fd00:89::11"];
    let sources = nodes.map(|node| node.parse().expect("an address")).to_vec();
    datapath.set_node(&NodeConfig { sources, ..NodeConfig::default() }).expect("the node's addresses");
    for ((client, service), (node, kind, hops_at)) in
        PAIRS.into_iter().zip([(nodes[0], 11, 22), (nodes[1], 3, 21)])
    {
        let mut asked = for_host(frame(Protocol::UDP, (client, 40000), (service, 80), b"trace"));
        asked[hops_at] = 1;
        let wanted = as_answer(error((kind, 0, [0; 4]), node, client, &quote(&asked, 8)));
        assert_eq!(run(&mut datapath, "uplink_ingress", &asked), (REDIRECT, wanted));
    }
    assert_eq!((count(&datapath, Counter::DropHopLimit), count(&datapath, Counter::Answered)), (2, 2));
}

#[test]
fn only_ports_of_a_cluster_ip_that_no_service_has_are_refused() {
    let directory = BpfDir::new();
    let mut datapath = super::program_runs::datapath(&directory);
    let asked = |service: &str, port| segment((CLIENT, 40000), (service, port), SYN, (7, 0), b"");
    let other_port = asked("10.96.0.7", 81);
    assert_eq!(
        run(&mut datapath, "pod_ingress", &other_port),
        (PASS, other_port.clone()),
        "no range is known"
    );
    let range = ["10.96.0.0/16".parse().expect("a range")];
    let node = NodeConfig { service_ranges: range.to_vec(), ..NodeConfig::default() };
    datapath.set_node(&node).expect("the range");
    let wanted = segment(("10.96.0.7", 81), (CLIENT, 40000), RST | ACK, (0, 8), b"");
    assert_eq!(run(&mut datapath, "pod_ingress", &other_port), (REDIRECT, as_answer(wanted)));
    let nobodys = asked("10.96.0.8", 80);
    assert_eq!(run(&mut datapath, "pod_ingress", &nobodys), (PASS, nobodys.clone()));
    assert_eq!((count(&datapath, Counter::DropNoPort), count(&datapath, Counter::Unallocated)), (1, 1));
    // With its last port the address is nobody's again.
    datapath.set_services(services([])).expect("no services");
    assert_eq!(run(&mut datapath, "pod_ingress", &other_port), (PASS, other_port.clone()));
}

#[test]
fn a_reader_that_changes_outran_is_not_refused() {
    let node = Node::new();
    let frontends: PinnedMap<FrontendKey, Frontend> =
        PinnedMap::open(&node.directory.path.join("maps"), maps::FRONTENDS).expect("the map");
    // A slot that never comes, which a reader cannot tell from one that is on its way.
    let half_written = Frontend::new(ServiceId(99), 0, 1, 0..1, true);
    frontends.insert(&key("10.96.0.7:80", Protocol::UDP), &half_written).expect("writing it");
    let (client, _) = udp(&node.pods[0], "0.0.0.0:0");
    client.send_to(b"x", "10.96.0.7:80").expect("a datagram");
    assert_eq!(count(&node.datapath, Counter::DropOutrun), 1);
    assert_eq!(count(&node.datapath, Counter::Answered), 0);
}

#[test]
fn answers_are_limited_in_number() {
    const SENT: u64 = 20_000;
    let mut node = Node::new();
    node.serve([(key("10.96.0.7:80", Protocol::UDP), to(&[]))]);
    let (client, _) = udp(&node.pods[0], "0.0.0.0:0");
    for _ in 0..SENT {
        client.send_to(b"x", "10.96.0.7:80").expect("a datagram");
    }
    let of = |counter| count(&node.datapath, counter);
    eventually("some are answered, and the others are not", || {
        let (answered, limited) = (of(Counter::Answered), of(Counter::AnswerLimited));
        (answered > 0 && limited > 0 && answered + limited == of(Counter::DropNoBackend)).then_some(())
    });
}

/// One address family: frontends of all kinds, and a port of the cluster IP that it has not.
struct Family {
    frontends: [&'static str; 4],
    other_port: &'static str,
    nobodys: &'static str,
    elsewhere: &'static str,
    any: &'static str,
}

/// In each the first is the node port.
const FAMILIES: [Family; 2] = [
    Family {
        frontends: ["10.89.0.11:30080", "10.96.0.7:80", "192.0.2.10:80", "192.0.2.11:80"],
        other_port: "10.96.0.7:81",
        nobodys: "10.96.0.8:80",
        elsewhere: "10.244.1.2:8080",
        any: "0.0.0.0:0",
    },
    Family {
        frontends: ["[fd00:89::11]:30080", "[fd00:96::7]:80", "[2001:db8::10]:80", "[2001:db8::11]:80"],
        other_port: "[fd00:96::7]:81",
        nobodys: "[fd00:96::8]:80",
        elsewhere: "[fd00:244:1::2]:8080",
        any: "[::]:0",
    },
];

fn all(family: &Family, service: &Service) -> Vec<(FrontendKey, Service)> {
    let keys = |protocol| {
        let [port, rest @ ..] = family.frontends;
        [vec![node_port(port, protocol)], rest.map(|frontend| key(frontend, protocol)).to_vec()].concat()
    };
    [Protocol::TCP, Protocol::UDP].into_iter().flat_map(keys).map(|key| (key, service.clone())).collect()
}

/// A pod of the node, and a host beyond it.
fn clients(node: &Node) -> [NetNs; 2] {
    [node.pods[0].without_cgroup(), node.beyond.without_cgroup()]
}

fn asked(client: &NetNs, family: &Family, frontend: &str) -> UdpSocket {
    let (socket, _) = udp(client, family.any);
    client.run(|| socket.connect(frontend)).expect("connecting");
    socket.send(b"anybody?").expect("a datagram");
    socket
}

fn assert_refused(client: &NetNs, family: &Family, frontend: &str) {
    let error = connect(client, frontend).expect_err("nobody there");
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{frontend}: {error}");
    let error = receive(&asked(client, family, frontend)).expect_err("nobody there");
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{frontend}: {error}");
}

#[test]
fn a_service_without_endpoints_refuses_pods_and_clients_beyond_the_node() {
    for tc_mode in tc_modes() {
        let mut node = Node::with_mode(tc_mode);
        let mut refused = 0;
        for family in &FAMILIES {
            node.serve(all(family, &to(&[])));
            for client in clients(&node) {
                for frontend in family.frontends.iter().chain([&family.other_port]) {
                    assert_refused(&client, family, frontend);
                    refused += 2;
                }
            }
        }
        assert_eq!(count(&node.datapath, Counter::Answered), refused);
        assert_eq!(drops(&node), refused);
        assert_eq!(count(&node.datapath, Counter::DropNoPort), 8);
    }
}

#[test]
fn a_client_that_only_another_node_would_serve_and_one_of_no_service_are_not_refused() {
    const NOTHING: Duration = Duration::from_millis(300);
    let mut node = Node::new();
    for family in &FAMILIES {
        let elsewhere: SocketAddr = family.elsewhere.parse().expect("an address");
        // By the policy Local of a Service with endpoints on other nodes only.
        let elsewhere =
            Endpoint { clients: Clients::Node, ..endpoint(elsewhere.ip(), elsewhere.port(), false) };
        node.serve(all(family, &leading_to(vec![elsewhere])));
        // Of an address of no Service the node's own routes have the last word.
        for (client, frontend) in [(&node.beyond, family.frontends[2]), (&node.pods[0], family.nobodys)] {
            let socket = asked(client, family, frontend);
            socket.set_read_timeout(Some(NOTHING)).expect("a timeout");
            let error = receive(&socket).expect_err("nobody answers");
            assert_eq!(error.kind(), ErrorKind::WouldBlock, "{frontend}: {error}");
        }
    }
    assert_eq!(count(&node.datapath, Counter::DropNoLocalBackend), 2);
    assert_eq!(count(&node.datapath, Counter::Unallocated), 2);
    assert_eq!(count(&node.datapath, Counter::Answered), 0);
}

#[test]
fn clients_are_refused_while_the_agent_is_replaced() {
    const ENOUGH: u32 = 20;
    let mut node = Node::new();
    let family = &FAMILIES[0];
    node.serve(all(family, &to(&[])));
    let (done, refused) = (AtomicBool::new(false), AtomicU32::new(0));
    let pod = node.pods[0].without_cgroup();
    thread::scope(|scope| {
        let client = scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let error = connect(&pod, family.frontends[1]).expect_err("nobody there");
                assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{error}");
                refused.fetch_add(1, Ordering::Relaxed);
            }
        });
        for _ in 0..5 {
            let before = refused.load(Ordering::Relaxed);
            node.restart_agent();
            eventually("the client goes on", || {
                let enough = refused.load(Ordering::Relaxed) >= before + ENOUGH;
                (enough || client.is_finished()).then_some(())
            });
        }
        done.store(true, Ordering::Relaxed);
        client.join().expect("no client waited in vain");
    });
}
