//! Single packets through the uplink's programs (BPF_PROG_TEST_RUN), with checksums that no offload hides.

use dataplane::{datapath::Datapath, node::NodeConfig};
use ebpf_common::{Counter, Protocol};

use super::{FAMILIES, Family, config, ip};
use crate::{
    datapath::{
        count,
        errors::{error, quote},
        open,
        program_runs::{PASS, frame, run},
        sctp,
    },
    netns::BpfDir,
};

const ROUTERS: [&str; 2] = ["198.51.100.1", "2001:db8:51::1"];

fn datapath(directory: &BpfDir) -> Datapath {
    let mut datapath = open(directory);
    let sources = FAMILIES.iter().map(|of| ip(of.node)).collect();
    datapath.set_node(&NodeConfig { sources, ..NodeConfig::default() }).expect("the node's addresses");
    datapath.set_masquerade(&config()).expect("telling whose address is exchanged");
    datapath
}

fn is_v4(of: &Family) -> bool {
    ip(of.node).is_ipv4()
}

/// Where the header after the IP header begins.
fn transport(of: &Family) -> usize {
    if is_v4(of) { 34 } else { 54 }
}

fn word(packet: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([packet[at], packet[at + 1]])
}

/// An echo request or reply.
fn echo(of: &Family, is_request: bool, from: &str, to: &str, identifier: u16) -> Vec<u8> {
    let kind = match (is_v4(of), is_request) {
        (true, true) => 8,
        (true, false) => 0,
        (false, true) => 128,
        (false, false) => 129,
    };
    let [high, low] = identifier.to_be_bytes();
    error((kind, 0, [high, low, 0, 1]), from, to, b"payload")
}

#[test]
fn packets_that_leave_and_come_back_are_those_that_hosts_would_have_sent() {
    let directory = BpfDir::new();
    let mut datapath = datapath(&directory);
    for of in &FAMILIES {
        for protocol in [Protocol::TCP, Protocol::UDP, Protocol::SCTP] {
            for payload in [b"".as_slice(), b"x", &[0xff; 1000]] {
                let sent = frame(protocol, (of.pod, 40000), (of.outside, 80), payload);
                let (verdict, out) = run(&mut datapath, "uplink_egress", &sent);
                let port = word(&out, transport(of));
                let wanted = frame(protocol, (of.node, port), (of.outside, 80), payload);
                assert_eq!((verdict, out), (PASS, wanted), "{protocol:?}");
                let answer = frame(protocol, (of.outside, 80), (of.node, port), payload);
                let wanted = frame(protocol, (of.outside, 80), (of.pod, 40000), payload);
                assert_eq!(run(&mut datapath, "uplink_ingress", &answer), (PASS, wanted), "{protocol:?}");
            }
        }
        let sent = echo(of, true, of.pod, of.outside, 77);
        let (verdict, out) = run(&mut datapath, "uplink_egress", &sent);
        let identifier = word(&out, transport(of) + 4);
        assert_eq!((verdict, out), (PASS, echo(of, true, of.node, of.outside, identifier)));
        let answer = echo(of, false, of.outside, of.node, identifier);
        let wanted = echo(of, false, of.outside, of.pod, 77);
        assert_eq!(run(&mut datapath, "uplink_ingress", &answer), (PASS, wanted));
    }
    assert_eq!(count(&datapath, Counter::Masqueraded), 8);
}

#[test]
fn errors_about_what_left_come_to_the_pod_and_about_what_came_back_to_who_sent_that() {
    let directory = BpfDir::new();
    let mut datapath = datapath(&directory);
    for (of, router) in FAMILIES.iter().zip(ROUTERS) {
        let kind = if is_v4(of) { (3, 4, [0, 0, 5, 20]) } else { (2, 0, [0, 0, 5, 20]) };
        let at = transport(of);
        for protocol in [Protocol::TCP, Protocol::UDP] {
            let sent = frame(protocol, (of.pod, 40000), (of.outside, 80), b"ask");
            let (_, out) = run(&mut datapath, "uplink_egress", &sent);
            let answer = frame(protocol, (of.outside, 80), (of.node, word(&out, at)), b"answer");
            let (_, back) = run(&mut datapath, "uplink_ingress", &answer);
            // The quoted checksum of the transport stays as it was sent on.
            let quoted = |packet: &[u8], checksum_of: &[u8]| {
                let mut quoted = quote(packet, 20.min(packet.len() - at));
                let sum = at - 14 + if protocol == Protocol::TCP { 16 } else { 6 };
                quoted[sum..sum + 2].copy_from_slice(&checksum_of[sum + 14..sum + 16]);
                quoted
            };
            for from in [router, of.outside] {
                let came = error(kind, from, of.node, &quoted(&out, &out));
                let wanted = error(kind, from, of.pod, &quoted(&sent, &out));
                assert_eq!(
                    run(&mut datapath, "uplink_ingress", &came),
                    (PASS, wanted),
                    "{protocol:?} {from}"
                );
            }
            for (from, shown) in [(of.pod, of.node), (of.node, of.node)] {
                let left = error(kind, from, of.outside, &quoted(&back, &back));
                let wanted = error(kind, shown, of.outside, &quoted(&answer, &back));
                assert_eq!(run(&mut datapath, "uplink_egress", &left), (PASS, wanted), "{protocol:?} {from}");
                // Not before it leaves.
                assert_eq!(run(&mut datapath, "pod_ingress", &left), (PASS, left), "{protocol:?} {from}");
            }
        }
        let sent = echo(of, true, of.pod, of.outside, 77);
        let (_, out) = run(&mut datapath, "uplink_egress", &sent);
        let mut wanted = quote(&sent, 15);
        wanted[at - 12..at - 10].copy_from_slice(&out[at + 2..at + 4]);
        let came = error(kind, router, of.node, &quote(&out, 15));
        assert_eq!(run(&mut datapath, "uplink_ingress", &came), (PASS, error(kind, router, of.pod, &wanted)));
    }
    assert_eq!(count(&datapath, Counter::IcmpTranslated), 2 * (2 * 4 + 1));
}

#[test]
fn what_no_pod_began_and_what_is_for_no_host_outside_leaves_as_it_is() {
    let directory = BpfDir::new();
    let mut datapath = datapath(&directory);
    for (of, multicast) in FAMILIES.iter().zip(["224.0.0.251", "ff05::fb"]) {
        let tcp = |flags: u8| {
            let mut packet = frame(Protocol::TCP, (of.pod, 8080), (of.outside, 40000), b"x");
            packet[transport(of) + 13] = flags;
            packet
        };
        let packets = [
            // SYN and ACK, ACK, RST.
            tcp(0x12),
            tcp(0x10),
            tcp(0x04),
            echo(of, false, of.pod, of.outside, 77),
            echo(of, true, of.node, of.outside, 77),
            frame(Protocol::UDP, (of.node, 40000), (of.outside, 80), b"x"),
            frame(Protocol::UDP, (of.pod, 40000), (of.other_pod, 80), b"x"),
            frame(Protocol::UDP, (of.pod, 40000), (of.other_node, 80), b"x"),
            frame(Protocol::UDP, (of.pod, 40000), (multicast, 80), b"x"),
            // DATA of an association that began elsewhere.
            sctp::frame((of.pod, 40000), (of.outside, 80), 7, &sctp::data(b"x")),
            frame(Protocol(33), (of.pod, 40000), (of.outside, 80), b"x"),
        ];
        for packet in packets {
            assert_eq!(run(&mut datapath, "uplink_egress", &packet), (PASS, packet));
        }
        // Nor is anybody's what comes for no flow.
        let stray = frame(Protocol::UDP, (of.outside, 80), (of.node, 50000), b"x");
        assert_eq!(run(&mut datapath, "uplink_ingress", &stray), (PASS, stray));
        // A pod cannot pass for a host outside.
        let sent = frame(Protocol::UDP, (of.pod, 40000), (of.outside, 80), b"x");
        let (_, out) = run(&mut datapath, "uplink_egress", &sent);
        let forged = frame(Protocol::UDP, (of.outside, 80), (of.node, word(&out, transport(of))), b"x");
        assert_eq!(run(&mut datapath, "pod_ingress", &forged), (PASS, forged));
    }
    assert_eq!(count(&datapath, Counter::Masqueraded), 2);
}

#[test]
fn a_connection_on_the_ports_of_one_that_is_over_is_another_flow() {
    let directory = BpfDir::new();
    let mut datapath = datapath(&directory);
    let of = &FAMILIES[0];
    let packet = |flags: u8| {
        let mut packet = frame(Protocol::TCP, (of.pod, 40000), (of.outside, 80), b"");
        packet[transport(of) + 13] = flags;
        packet
    };
    for flags in [0x02, 0x02, 0x10, 0x11] {
        run(&mut datapath, "uplink_egress", &packet(flags));
        assert_eq!(count(&datapath, Counter::Masqueraded), 1);
    }
    run(&mut datapath, "uplink_egress", &packet(0x02));
    assert_eq!(count(&datapath, Counter::Masqueraded), 2);
    assert_eq!(datapath.flows().expect("the flows").len(), 1);
}

#[test]
fn a_family_that_is_not_asked_for_leaves_as_it_is_and_so_does_all_before_anything_is_said() {
    let directory = BpfDir::new();
    let mut datapath = open(&directory);
    let sources = FAMILIES.iter().map(|of| ip(of.node)).collect();
    datapath.set_node(&NodeConfig { sources, ..NodeConfig::default() }).expect("the node's addresses");
    let sent = FAMILIES.each_ref().map(|of| frame(Protocol::UDP, (of.pod, 40000), (of.outside, 80), b"x"));
    for packet in &sent {
        assert_eq!(run(&mut datapath, "uplink_egress", packet), (PASS, packet.clone()));
    }
    let mut only_v4 = config();
    only_v4.pods.retain(ipnetwork::IpNetwork::is_ipv4);
    datapath.set_masquerade(&only_v4).expect("one family");
    let changed = sent.each_ref().map(|packet| run(&mut datapath, "uplink_egress", packet).1 != *packet);
    assert_eq!(changed, [true, false]);
}
