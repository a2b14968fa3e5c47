//! ICMP errors on their way through a Service: single ones to the byte, and what real sockets make of them.

use std::{
    io::ErrorKind,
    net::{IpAddr, SocketAddr, UdpSocket},
    os::fd::AsRawFd,
};

use dataplane::node::NodeConfig;
use ebpf_common::{Counter, FrontendKey, Protocol, checksum, desired::Service};

use super::{
    count, key,
    node::{Node, to},
    packets::{ask, drops, listen, receive, talk, udp},
    program_runs::{
        BACKEND, BACKEND_V6, CLIENT, CLIENT_V6, PASS, REDIRECT, datapath, enclosed, frame, run,
        transport_checksum,
    },
    tc_modes,
};
use crate::netns::{BpfDir, NetNs, eventually};

const ETHERNET_BYTES: usize = 14;

/// Type, code and the four bytes after the checksum of every kind of error that is translated.
const ERRORS_V4: [(u8, u8, [u8; 4]); 4] =
    [(3, 3, [0; 4]), (3, 4, [0, 0, 5, 20]), (11, 0, [0; 4]), (12, 0, [8, 0, 0, 0])];
const ERRORS_V6: [(u8, u8, [u8; 4]); 4] =
    [(1, 4, [0; 4]), (2, 0, [0, 0, 5, 20]), (3, 0, [0; 4]), (4, 0, [0, 0, 0, 6])];

/// One address family: a client, a router and a client beyond the node, the node.
struct Single {
    client: &'static str,
    frontend: &'static str,
    backend: &'static str,
    router: &'static str,
    beyond: &'static str,
    node: &'static str,
    errors: [(u8, u8, [u8; 4]); 4],
}

const SINGLES: [Single; 2] = [
    Single {
        client: CLIENT,
        frontend: "10.96.0.7",
        backend: BACKEND,
        router: "10.89.0.99",
        beyond: "10.89.0.12",
        node: "10.89.0.11",
        errors: ERRORS_V4,
    },
    Single {
        client: CLIENT_V6,
        frontend: "fd00:96::7",
        backend: BACKEND_V6,
        router: "fd00:89::99",
        beyond: "fd00:89::12",
        node: "fd00:89::11",
        errors: ERRORS_V6,
    },
];

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

/// An ICMP error with a right checksum.
pub fn error(of: (u8, u8, [u8; 4]), from: &str, to: &str, quote: &[u8]) -> Vec<u8> {
    let (from, to) = (ip(from), ip(to));
    let mut message = vec![of.0, of.1, 0, 0];
    message.extend(of.2);
    message.extend(quote);
    let protocol = Protocol(if from.is_ipv4() { 1 } else { 58 });
    let sum = match from {
        IpAddr::V4(_) => checksum::checksum(&message),
        IpAddr::V6(_) => transport_checksum(from, to, protocol, &message),
    };
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    enclosed(protocol, from, to, &message)
}

/// The IP packet in a frame, as far as an error quotes it: its header and so much of what follows.
pub fn quote(frame: &[u8], transport_bytes: usize) -> Vec<u8> {
    let header = if frame[12..14] == [0x08, 0] { 20 } else { 40 };
    frame[ETHERNET_BYTES..][..header + transport_bytes].to_vec()
}

/// The quote with the addresses and ports of a frame, and nothing else changed.
fn as_sent(quote: &[u8], frame: &[u8]) -> Vec<u8> {
    let (mut quote, packet) = (quote.to_vec(), &frame[ETHERNET_BYTES..]);
    if quote[0] >> 4 == 4 {
        quote[12..24].copy_from_slice(&packet[12..24]);
        quote[10..12].fill(0);
        let sum = checksum::checksum(&quote[..20]);
        quote[10..12].copy_from_slice(&sum.to_be_bytes());
    } else {
        quote[8..44].copy_from_slice(&packet[8..44]);
    }
    quote
}

/// The frame with one hop less.
fn one_hop_on(mut frame: Vec<u8>) -> Vec<u8> {
    if frame[12..14] == [0x08, 0] {
        frame[22] -= 1;
        frame[24..26].fill(0);
        let sum = checksum::checksum(&frame[14..34]);
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
    } else {
        frame[21] -= 1;
    }
    frame
}

#[test]
fn an_error_about_a_translated_packet_becomes_one_about_the_packet_that_was_sent() {
    let directory = BpfDir::new();
    let mut datapath = datapath(&directory);
    let mut translated = 0;
    for of in &SINGLES {
        for (protocol, quoted_bytes) in [
            (Protocol::UDP, 8),
            (Protocol::TCP, 8),
            (Protocol::TCP, 20),
            (Protocol::SCTP, 8),
            (Protocol::SCTP, 20),
        ] {
            let asked = frame(protocol, (of.client, 40000), (of.frontend, 80), b"ask");
            let (_, sent) = run(&mut datapath, "pod_ingress", &asked);
            let answered = frame(protocol, (of.backend, 8080), (of.client, 40000), b"answer");
            let (_, returned) = run(&mut datapath, "pod_egress", &answered);
            for kind in of.errors {
                // About what the client sent, from the backend and from a router on the way.
                let seen = quote(&sent, quoted_bytes);
                for (from, shown) in [(of.backend, of.frontend), (of.router, of.router)] {
                    assert_eq!(
                        run(&mut datapath, "pod_egress", &error(kind, from, of.client, &seen)),
                        (PASS, error(kind, shown, of.client, &as_sent(&seen, &asked))),
                        "{protocol:?} {kind:?} from {from}"
                    );
                }
                // About the answer, from the client.
                let seen = quote(&returned, quoted_bytes);
                assert_eq!(
                    run(&mut datapath, "pod_ingress", &error(kind, of.client, of.frontend, &seen)),
                    (PASS, error(kind, of.client, of.backend, &as_sent(&seen, &answered))),
                    "{protocol:?} {kind:?} from the client"
                );
                translated += 3;
            }
        }
    }
    assert_eq!(count(&datapath, Counter::IcmpTranslated), translated);
}

#[test]
fn an_error_about_a_packet_that_was_sent_on_goes_on_to_who_sent_it() {
    let directory = BpfDir::new();
    let mut datapath = datapath(&directory);
    let sources = SINGLES.iter().map(|of| ip(of.node)).collect();
    let node = NodeConfig { sources, ..NodeConfig::default() };
    datapath.set_node(&node).expect("the node's addresses");
    for of in &SINGLES {
        let asked = frame(Protocol::UDP, (of.beyond, 40000), (of.frontend, 80), b"ask");
        let (verdict, sent) = run(&mut datapath, "uplink_ingress", &asked);
        assert_eq!(verdict, REDIRECT);
        let ports = if of.client == CLIENT { 34 } else { 54 };
        let port = u16::from_be_bytes([sent[ports], sent[ports + 1]]);
        let answered = frame(Protocol::UDP, (of.backend, 8080), (of.node, port), b"answer");
        let (_, returned) = run(&mut datapath, "uplink_ingress", &answered);
        for kind in of.errors {
            let seen = quote(&sent, 8);
            for (from, shown) in [(of.backend, of.frontend), (of.router, of.router)] {
                let wanted = one_hop_on(error(kind, shown, of.beyond, &as_sent(&seen, &asked)));
                let came = error(kind, from, of.node, &seen);
                assert_eq!(
                    run(&mut datapath, "uplink_ingress", &came),
                    (REDIRECT, wanted),
                    "{kind:?} {from}"
                );
            }
            let seen = quote(&returned, 8);
            for (from, shown) in [(of.beyond, of.node), (of.router, of.router)] {
                let wanted = one_hop_on(error(kind, shown, of.backend, &as_sent(&seen, &answered)));
                let came = error(kind, from, of.frontend, &seen);
                assert_eq!(
                    run(&mut datapath, "uplink_ingress", &came),
                    (REDIRECT, wanted),
                    "{kind:?} {from}"
                );
            }
        }
    }
}

#[test]
fn an_error_that_is_about_no_flow_of_ours_comes_out_as_it_went_in() {
    let directory = BpfDir::new();
    let mut datapath = datapath(&directory);
    for of in &SINGLES {
        let asked = frame(Protocol::UDP, (of.client, 40000), (of.frontend, 80), b"ask");
        let (_, sent) = run(&mut datapath, "pod_ingress", &asked);
        let direct = frame(Protocol::UDP, (of.client, 40001), (of.backend, 8080), b"ask");
        let kind = of.errors[0];
        let seen = quote(&sent, 8);
        // A later fragment has no ports where the quote has bytes.
        let mut fragment = seen.clone();
        if of.client == CLIENT {
            fragment[7] = 185;
        } else {
            fragment[6] = 44;
            fragment[40..44].copy_from_slice(&[17, 0, 5, 0xc8]);
        }
        let mut echo = error(kind, of.router, of.client, &seen);
        let at = if of.client == CLIENT { 34 } else { 54 };
        echo[at] = if of.client == CLIENT { 8 } else { 128 };
        for packet in [
            error(kind, of.router, of.client, &quote(&direct, 8)),
            // To somebody who did not send what is quoted.
            error(kind, of.router, of.beyond, &seen),
            error(kind, of.router, of.client, &seen[..seen.len() - 6]),
            error(kind, of.router, of.client, &fragment),
            echo,
        ] {
            for program in ["pod_ingress", "pod_egress", "uplink_ingress", "uplink_egress"] {
                assert_eq!(run(&mut datapath, program, &packet), (PASS, packet.clone()), "{program}");
            }
        }
    }
    assert_eq!(count(&datapath, Counter::IcmpTranslated), 0);
    assert_eq!(count(&datapath, Counter::DropMalformed), 0);
}

/// One address family: a frontend, a backend here and one elsewhere, and what a client is bound to.
struct Family {
    frontend: &'static str,
    here: &'static str,
    elsewhere: &'static str,
    itself: &'static str,
    any: &'static str,
}

const FAMILIES: [Family; 2] = [
    Family {
        frontend: "192.0.2.10:80",
        here: "10.244.0.3:8080",
        elsewhere: "10.244.1.2:8080",
        itself: "10.244.0.2:8080",
        any: "0.0.0.0:0",
    },
    Family {
        frontend: "[2001:db8::10]:80",
        here: "[fd00:244::3]:8080",
        elsewhere: "[fd00:244:1::2]:8080",
        itself: "[fd00:244::2]:8080",
        any: "[::]:0",
    },
];

fn at(address: &str) -> SocketAddr {
    address.parse().expect("an address")
}

fn both(frontend: &str, service: &Service) -> [(FrontendKey, Service); 2] {
    [Protocol::TCP, Protocol::UDP].map(|protocol| (key(frontend, protocol), service.clone()))
}

/// A pod of the node, and a host beyond it.
fn clients(node: &Node) -> [NetNs; 2] {
    [node.pods[0].without_cgroup(), node.beyond.without_cgroup()]
}

fn connected(client: &NetNs, any: &str, to: &str) -> UdpSocket {
    let (socket, _) = udp(client, any);
    client.run(|| socket.connect(to)).unwrap_or_else(|e| panic!("{to}: {e}"));
    socket
}

fn assert_refused(socket: &UdpSocket, what: &str) {
    socket.send(b"anybody?").expect("a datagram");
    let refused = receive(socket).expect_err("nobody answers");
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{what}: {refused}");
}

#[test]
fn a_backend_that_does_not_listen_refuses_through_the_service() {
    for tc_mode in tc_modes() {
        let mut node = Node::with_mode(tc_mode);
        for family in &FAMILIES {
            for backend in [family.here, family.elsewhere] {
                node.serve(both(family.frontend, &to(&[at(backend)])));
                for client in clients(&node) {
                    let socket = connected(&client, family.any, family.frontend);
                    assert_refused(&socket, backend);
                }
            }
            node.serve(both(family.frontend, &to(&[at(family.itself)])));
            assert_refused(&connected(&node.pods[0], family.any, family.frontend), "the client itself");
        }
        assert_eq!(count(&node.datapath, Counter::IcmpTranslated), 10);
        assert_eq!(drops(&node), 0);
    }
}

#[test]
fn a_client_that_is_gone_refuses_what_its_backend_sends() {
    let mut node = Node::new();
    for family in &FAMILIES {
        for backend in [family.here, family.elsewhere] {
            let host = if backend == family.here { &node.pods[1] } else { &node.beyond };
            let host = host.without_cgroup();
            node.serve(both(family.frontend, &to(&[at(backend)])));
            for client in clients(&node) {
                let (server, _) = udp(&host, backend);
                // The client's socket is closed when this returns.
                let seen = ask(&client, family.frontend, &server, 10);
                host.run(|| server.connect(seen)).expect("connecting to the client");
                assert_refused(&server, backend);
            }
        }
    }
    assert_eq!(drops(&node), 0);
}

/// The path MTU that the kernel knows for a connected socket.
pub fn path_mtu(socket: &UdpSocket) -> i32 {
    let is_v4 = socket.local_addr().expect("its address").is_ipv4();
    let (level, name) =
        if is_v4 { (libc::IPPROTO_IP, libc::IP_MTU) } else { (libc::IPPROTO_IPV6, libc::IPV6_MTU) };
    let (mut mtu, mut length) = (0i32, size_of::<i32>() as libc::socklen_t);
    // SAFETY: the option is an int, for which there is room.
    let result =
        unsafe { libc::getsockopt(socket.as_raw_fd(), level, name, (&raw mut mtu).cast(), &raw mut length) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    mtu
}

#[test]
fn a_client_learns_the_path_mtu_to_the_service_from_a_router_that_knows_only_the_backend() {
    let mut node = Node::new();
    node.narrow(Some(1300));
    for family in &FAMILIES {
        let (server, bound) = udp(&node.beyond, family.elsewhere);
        let (listener, _) = listen(&node.beyond, family.elsewhere);
        node.serve(both(family.frontend, &to(&[bound])));
        let client = connected(&node.pods[0], family.any, family.frontend);
        learns(&client, &server, family.frontend);
        // TCP lives by it too.
        talk(&node.pods[0], family.frontend, &listener);
    }
    assert_eq!(drops(&node), 0);
}

/// What a client learns by the size of what it sends: its path's MTU, and that smaller pieces arrive.
pub fn learns(client: &UdpSocket, server: &UdpSocket, what: &str) {
    const SIZE: usize = 1400;
    assert_eq!(path_mtu(client), 1500, "{what}");
    client.send(&[7; SIZE]).expect("a datagram");
    eventually("the path's MTU is known", || (path_mtu(client) == 1300).then_some(()));
    // What is larger than the path goes in fragments then.
    send_when_told(client, &[7; SIZE]);
    assert_eq!(receive(server).expect("the datagram"), SIZE, "{what}");
}

/// Sends by a socket that tells once that it sent too much before.
pub fn send_when_told(client: &UdpSocket, payload: &[u8]) {
    eventually("a datagram is sent", || match client.send(payload) {
        Err(error) if error.raw_os_error() == Some(libc::EMSGSIZE) => None,
        sent => Some(sent.expect("a datagram")),
    });
}

#[test]
fn who_is_beyond_the_node_learns_from_it_how_large_packets_may_be_that_are_sent_on() {
    let mut node = Node::new();
    for family in &FAMILIES {
        let (server, bound) = udp(&node.beyond, family.elsewhere);
        let (listener, _) = listen(&node.beyond, family.elsewhere);
        node.serve(both(family.frontend, &to(&[bound])));
        let client = connected(&node.beyond, family.any, family.frontend);
        // What fits says where the backend sees the client.
        client.send(b"small").expect("a datagram");
        let (_, seen) = server.recv_from(&mut [0; 8]).expect("the datagram");
        node.narrow(Some(1300));
        learns(&client, &server, family.frontend);
        // Segments of one large packet are judged one by one.
        talk(&node.beyond, family.frontend, &listener);
        // The same for the answers.
        node.narrow(None);
        node.namespace.ip("route replace 10.89.0.12/32 dev uplink mtu lock 1300");
        node.namespace.ip("-6 route replace fd00:89::12/128 dev uplink mtu lock 1300");
        node.beyond.run(|| server.connect(seen)).expect("connecting");
        learns(&server, &client, family.elsewhere);
        node.namespace.ip("route del 10.89.0.12/32 dev uplink");
        node.namespace.ip("-6 route del fd00:89::12/128 dev uplink");
    }
    let too_big = count(&node.datapath, Counter::DropTooBig);
    assert!(too_big >= 4, "{too_big}");
    assert_eq!((drops(&node), count(&node.datapath, Counter::Answered)), (too_big, too_big));
}

#[test]
fn a_datagram_that_routers_may_fragment_is_sent_on_whole() {
    let mut node = Node::new();
    let family = &FAMILIES[0];
    let (server, bound) = udp(&node.beyond, family.elsewhere);
    node.serve(both(family.frontend, &to(&[bound])));
    node.narrow(Some(1300));
    let client = connected(&node.beyond, family.any, family.frontend);
    let never: libc::c_int = libc::IP_PMTUDISC_DONT;
    // SAFETY: the option is an int, which is there.
    let result = unsafe {
        libc::setsockopt(
            client.as_raw_fd(),
            libc::IPPROTO_IP,
            libc::IP_MTU_DISCOVER,
            (&raw const never).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    client.send(&[7; 1400]).expect("a datagram");
    assert_eq!(receive(&server).expect("the datagram"), 1400);
    assert_eq!(drops(&node), 0);
}
