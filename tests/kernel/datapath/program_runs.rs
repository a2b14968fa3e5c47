//! Single packets through single programs (BPF_PROG_TEST_RUN): what real hosts never send, and checksums that no
//! offload hides.

use std::net::IpAddr;

use aya::programs::{Program, TestRun, TestRunOptions};
use dataplane::{datapath::Datapath, node::NodeConfig};
use ebpf_common::{Address, Counter, Protocol, checksum};

use super::{count, endpoint, key, leading_to, open, sctp::init, services};
use crate::netns::BpfDir;

pub const PASS: u32 = u32::MAX;
pub const SHOT: u32 = 2;
pub const REDIRECT: u32 = 7;
pub const CLIENT: &str = "10.244.0.2";
pub const BACKEND: &str = "10.244.1.2";
pub const CLIENT_V6: &str = "fd00:244::2";
pub const BACKEND_V6: &str = "fd00:244:1::2";

/// 10.96.0.7:80 and [fd00:96::7]:80 lead to port 8080 of a backend elsewhere.
pub fn datapath(directory: &BpfDir) -> Datapath {
    let mut datapath = open(directory);
    let to = |backend: &str| leading_to(vec![endpoint(backend.parse().expect("an address"), 8080, false)]);
    let mut wanted = services([]);
    for protocol in [Protocol::TCP, Protocol::UDP, Protocol::SCTP] {
        wanted.insert(key("10.96.0.7:80", protocol), to(BACKEND));
        wanted.insert(key("[fd00:96::7]:80", protocol), to(BACKEND_V6));
    }
    datapath.set_services(wanted).expect("setting the services");
    datapath
}

pub fn run(datapath: &mut Datapath, program: &str, packet: &[u8]) -> (u32, Vec<u8>) {
    run_at(datapath, program, None, packet)
}

/// The same for a packet that came by a link of the calling thread's namespace, for a program of tc or XDP.
pub fn run_at(datapath: &mut Datapath, program: &str, link: Option<u32>, packet: &[u8]) -> (u32, Vec<u8>) {
    let mut programs = datapath.programs_mut();
    let program = programs.ebpf_mut().program_mut(program).expect("the program");
    // struct xdp_md: data, data_end, data_meta, ingress_ifindex; struct __sk_buff has that in its eleventh word.
    let words = link.map(|link| match program {
        Program::Xdp(_) => vec![0, packet.len() as u32, 0, link],
        _ => [vec![0; 10], vec![link]].concat(),
    });
    let context: Option<Vec<u8>> = words.map(|words| words.into_iter().flat_map(u32::to_ne_bytes).collect());
    let mut out = vec![0; packet.len() + 64];
    let options = TestRunOptions {
        data_in: Some(packet),
        data_out: Some(&mut out),
        ctx_in: context.as_deref(),
        ..TestRunOptions::default()
    };
    let result = match program {
        Program::Xdp(program) => program.test_run(options),
        Program::SchedClassifier(program) => program.test_run(options),
        other => panic!("{other:?} takes no packets"),
    };
    let result = result.expect("a run");
    out.truncate(result.data_size_out as usize);
    (result.return_value, out)
}

/// An Ethernet frame of one TCP, UDP or SCTP packet with right checksums: a SYN, a datagram, an INIT.
pub fn frame(protocol: Protocol, from: (&str, u16), to: (&str, u16), payload: &[u8]) -> Vec<u8> {
    let (source, destination): (IpAddr, IpAddr) =
        (from.0.parse().expect("an address"), to.0.parse().expect("an address"));
    if protocol == Protocol::SCTP {
        return enclosed(protocol, source, destination, &init((from.1, to.1), payload));
    }
    let mut transport = Vec::new();
    transport.extend(from.1.to_be_bytes());
    transport.extend(to.1.to_be_bytes());
    if protocol == Protocol::TCP {
        transport.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x02, 0xff, 0xff, 0, 0, 0, 0]);
    } else {
        transport.extend((8 + payload.len() as u16).to_be_bytes());
        transport.extend([0, 0]);
    }
    transport.extend(payload);
    let at = checksum_at(protocol);
    let sum = transport_checksum(source, destination, protocol, &transport);
    transport[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    enclosed(protocol, source, destination, &transport)
}

/// An Ethernet frame of one IP packet.
pub fn enclosed(protocol: Protocol, source: IpAddr, destination: IpAddr, transport: &[u8]) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    match (source, destination) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => {
            frame.extend([0x08, 0x00]);
            let mut header = vec![0x45, 0];
            header.extend((20 + transport.len() as u16).to_be_bytes());
            header.extend([0x12, 0x34, 0, 0, 64, protocol.0, 0, 0]);
            header.extend(source.octets());
            header.extend(destination.octets());
            let sum = checksum::checksum(&header);
            header[10..12].copy_from_slice(&sum.to_be_bytes());
            frame.extend(header);
        }
        (IpAddr::V6(source), IpAddr::V6(destination)) => {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            frame.extend((transport.len() as u16).to_be_bytes());
            frame.extend([protocol.0, 64]);
            frame.extend(source.octets());
            frame.extend(destination.octets());
        }
        _ => panic!("two families"),
    }
    frame.extend(transport);
    frame
}

fn checksum_at(protocol: Protocol) -> usize {
    if protocol == Protocol::TCP { 16 } else { 6 }
}

/// Over the pseudo header too (RFC 9293 3.1, RFC 8200 8.1).
pub fn transport_checksum(source: IpAddr, destination: IpAddr, protocol: Protocol, transport: &[u8]) -> u16 {
    let octets = |ip: IpAddr| match ip {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    };
    let mut sum = checksum::sum(&octets(source), 0);
    sum = checksum::sum(&octets(destination), sum);
    sum = checksum::sum(&[0, protocol.0], sum);
    sum = checksum::sum(&(transport.len() as u32).to_be_bytes(), sum);
    !checksum::fold(checksum::sum(transport, sum))
}

#[test]
fn a_translated_packet_is_the_one_that_a_host_would_have_sent() {
    let directory = BpfDir::new();
    let mut datapath = datapath(&directory);
    for (client, frontend, backend) in [(CLIENT, "10.96.0.7", BACKEND), (CLIENT_V6, "fd00:96::7", BACKEND_V6)]
    {
        for protocol in [Protocol::TCP, Protocol::UDP, Protocol::SCTP] {
            for payload in [b"".as_slice(), b"x", b"odd", &[0xff; 1000]] {
                let asked = frame(protocol, (client, 40000), (frontend, 80), payload);
                let wanted = frame(protocol, (client, 40000), (backend, 8080), payload);
                assert_eq!(
                    run(&mut datapath, "pod_ingress", &asked),
                    (PASS, wanted),
                    "{protocol:?} {frontend}"
                );

                let answered = frame(protocol, (backend, 8080), (client, 40000), payload);
                let wanted = frame(protocol, (frontend, 80), (client, 40000), payload);
                assert_eq!(
                    run(&mut datapath, "pod_egress", &answered),
                    (PASS, wanted),
                    "{protocol:?} {frontend}"
                );
            }
        }
    }
    assert_eq!(count(&datapath, Counter::FlowNew), 6);
}

#[test]
fn a_datagram_without_a_checksum_stays_without_one() {
    let directory = BpfDir::new();
    let mut datapath = datapath(&directory);
    let mut asked = frame(Protocol::UDP, (CLIENT, 40000), ("10.96.0.7", 80), b"x");
    asked[14 + 20 + 6..14 + 20 + 8].fill(0);
    let (verdict, out) = run(&mut datapath, "pod_ingress", &asked);
    assert_eq!((verdict, &out[40..42]), (PASS, [0, 0].as_slice()));
    assert_eq!(out[30..34], [10, 244, 1, 2]);
}

#[test]
fn what_is_not_addressed_to_a_service_comes_out_as_it_went_in() {
    let directory = BpfDir::new();
    let mut datapath = datapath(&directory);
    let mut arp = vec![0xff; 12];
    arp.extend([0x08, 0x06]);
    arp.resize(60, 0);
    let mut icmp = frame(Protocol::UDP, (CLIENT, 40000), ("10.96.0.7", 80), b"x");
    icmp[23] = 1;
    let packets = [
        frame(Protocol::TCP, (CLIENT, 40000), (BACKEND, 8080), b"x"),
        frame(Protocol::TCP, (CLIENT, 40000), ("10.96.0.7", 81), b"x"),
        frame(Protocol::UDP, (CLIENT_V6, 40000), (BACKEND_V6, 80), b"x"),
        arp,
        icmp,
    ];
    for packet in packets {
        for program in ["pod_ingress", "pod_egress", "uplink_ingress", "uplink_egress"] {
            assert_eq!(run(&mut datapath, program, &packet), (PASS, packet.clone()), "{program}");
        }
    }
}

#[test]
fn a_packet_shorter_than_its_headers_is_dropped_and_counted() {
    let directory = BpfDir::new();
    let mut datapath = datapath(&directory);
    let whole = frame(Protocol::TCP, (CLIENT, 40000), ("10.96.0.7", 80), b"");
    let (verdict, _) = run(&mut datapath, "pod_ingress", &whole[..14 + 20 + 10]);
    assert_eq!(verdict, SHOT);
    let mut short_header = whole.clone();
    short_header[14] = 0x43;
    assert_eq!(run(&mut datapath, "pod_ingress", &short_header).0, SHOT);
    assert_eq!(count(&datapath, Counter::DropMalformed), 2);
}

#[test]
fn options_and_extension_headers_are_walked() {
    let directory = BpfDir::new();
    let mut datapath = datapath(&directory);
    let mut with_options = frame(Protocol::TCP, (CLIENT, 40000), ("10.96.0.7", 80), b"");
    // Four no-operation options (RFC 791 3.1).
    with_options.splice(34..34, [1, 1, 1, 1]);
    with_options[14] = 0x46;
    let (verdict, out) = run(&mut datapath, "pod_ingress", &with_options);
    assert_eq!((verdict, &out[30..34]), (PASS, [10, 244, 1, 2].as_slice()));
    assert_eq!(out[40..42], 8080u16.to_be_bytes());

    let mut with_extensions = frame(Protocol::UDP, (CLIENT_V6, 40000), ("fd00:96::7", 80), b"x");
    // Hop-by-hop options, then destination options, each of padding only (RFC 8200 4.2).
    with_extensions.splice(54..54, [60, 0, 1, 4, 0, 0, 0, 0, 17, 0, 1, 4, 0, 0, 0, 0]);
    with_extensions[20] = 0;
    let (verdict, out) = run(&mut datapath, "pod_ingress", &with_extensions);
    let backend = Address::from(BACKEND_V6.parse::<IpAddr>().expect("an address"));
    assert_eq!((verdict, &out[38..54]), (PASS, backend.octets().as_slice()));
    assert_eq!(out[72..74], 8080u16.to_be_bytes());
}

#[test]
fn a_later_fragment_whose_first_was_never_seen_is_dropped_where_it_is_for_a_service_and_passes_elsewhere() {
    let directory = BpfDir::new();
    let mut datapath = datapath(&directory);
    for (client, service, backend) in [(CLIENT, "10.96.0.7", BACKEND), (CLIENT_V6, "fd00:96::7", BACKEND_V6)]
    {
        let fragment = |to: &str| {
            let mut fragment = frame(Protocol::UDP, (client, 40000), (to, 80), &[7; 64]);
            if client == CLIENT {
                fragment[20..22].copy_from_slice(&185u16.to_be_bytes());
            } else {
                fragment.splice(54..54, [17, 0, 5, 0xc8, 0, 0, 0, 1]);
                (fragment[19], fragment[20]) = (fragment[19] + 8, 44);
            }
            fragment
        };
        for program in ["pod_ingress", "uplink_ingress"] {
            assert_eq!(run(&mut datapath, program, &fragment(service)).0, SHOT, "{program}");
            assert_eq!(
                run(&mut datapath, program, &fragment(backend)),
                (PASS, fragment(backend)),
                "{program}"
            );
        }
        // Answers pass, as nothing says of them whose they are.
        assert_eq!(run(&mut datapath, "pod_egress", &fragment(service)), (PASS, fragment(service)));
    }
    assert_eq!(count(&datapath, Counter::DropFragmentEarly), 4);
}

#[test]
fn a_packet_that_has_no_hop_left_is_not_sent_on() {
    let directory = BpfDir::new();
    let mut datapath = datapath(&directory);
    let sources = [CLIENT, CLIENT_V6].map(|source| source.parse().expect("an address"));
    let node = NodeConfig { sources: sources.to_vec(), ..NodeConfig::default() };
    datapath.set_node(&node).expect("the node's addresses");
    for (number, (client, frontend, hops_at)) in
        [("10.89.0.12", "10.96.0.7", 22), ("fd00:89::12", "fd00:96::7", 21)].into_iter().enumerate()
    {
        let mut packet = frame(Protocol::TCP, (client, 40000), (frontend, 80), b"");
        packet[hops_at] = 1;
        assert_eq!(run(&mut datapath, "uplink_ingress", &packet).0, SHOT);
        assert_eq!(count(&datapath, Counter::DropHopLimit), number as u64 + 1);
    }
}
