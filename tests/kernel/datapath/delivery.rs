//! Packets for pods of the node, which are handed over past its stack.

use std::net::{IpAddr, Ipv4Addr};

use dataplane::links::{HOST_MAC, PodLink};
use ebpf_common::{Counter, Protocol, checksum};

use super::{
    count, key,
    node::{Node, to},
    packets::{ask, connect, exchange, listen, talk, udp},
    program_runs::{BACKEND, BACKEND_V6, CLIENT, CLIENT_V6, PASS, REDIRECT, datapath, frame, run},
    tc_modes,
};
use crate::netns::BpfDir;

const POD_MAC: [u8; 6] = [2, 0xfe, 10, 244, 0, 3];
const POD: &str = "10.244.0.3";
const POD_V6: &str = "fd00:244::3";

/// From now on a packet that needs the node's stack to be forwarded goes nowhere.
fn stop_forwarding(node: &Node) {
    node.namespace.sysctl("net/ipv4/ip_forward", "0");
    node.namespace.sysctl("net/ipv6/conf/all/forwarding", "0");
}

#[test]
fn pods_of_a_node_reach_each_other_past_its_stack() {
    for mode in tc_modes() {
        let mut node = Node::with_mode(mode);
        stop_forwarding(&node);
        for server in ["10.244.0.3:8080", "[fd00:244::3]:8080"] {
            let (listener, _) = listen(&node.pods[1], server);
            talk(&node.pods[0], server, &listener);
            let (socket, _) = udp(&node.pods[1], server);
            ask(&node.pods[0], server, &socket, 900);
        }
        assert!(count(&node.datapath, Counter::Delivered) > 20);
        assert_eq!(count(&node.datapath, Counter::FlowNew), 0);

        let [_, (addresses, link)] = node.links();
        node.datapath.remove_pod(&addresses).expect("the pod is gone");
        let (_listener, _) = listen(&node.pods[1], "10.244.0.3:8081");
        connect(&node.pods[0], "10.244.0.3:8081").expect_err("nobody forwards");
        node.datapath.add_pod(&addresses, &link).expect("and back");
        connect(&node.pods[0], "10.244.0.3:8081").expect("handed over again");
    }
}

#[test]
fn flows_through_services_are_handed_over_both_ways_also_by_the_next_agent() {
    let mut node = Node::new();
    stop_forwarding(&node);
    for (frontend, server) in [("10.96.0.7:80", "10.244.0.3:8080"), ("[fd00:96::7]:80", "[fd00:244::3]:8080")]
    {
        node.serve(
            [Protocol::TCP, Protocol::UDP]
                .map(|protocol| (key(frontend, protocol), to(&[server.parse().expect("an address")]))),
        );
        let (listener, _) = listen(&node.pods[1], server);
        talk(&node.pods[0], frontend, &listener);
        let (socket, _) = udp(&node.pods[1], server);
        ask(&node.pods[0], frontend, &socket, 900);

        // What was noted of the client lasts.
        let open = connect(&node.pods[0], frontend).expect("a connection");
        let (accepted, _) = listener.accept().expect("the connection");
        node.restart_agent();
        exchange(&open, &accepted);
    }
    assert!(count(&node.datapath, Counter::FlowReverse) > 10);
}

#[test]
fn clients_beyond_the_node_are_handed_over_to_pods_and_answered() {
    let mut node = Node::new();
    for (frontend, server) in
        [("192.0.2.7:80", "10.244.0.3:8080"), ("[2001:db8::7]:80", "[fd00:244::3]:8080")]
    {
        node.serve([(key(frontend, Protocol::TCP), to(&[server.parse().expect("an address")]))]);
        let (listener, _) = listen(&node.pods[1], server);
        let before = count(&node.datapath, Counter::Delivered);
        talk(&node.beyond, frontend, &listener);
        // A direct one, not translated.
        talk(&node.beyond, server, &listener);
        assert!(count(&node.datapath, Counter::Delivered) > before + 10);
    }
}

#[test]
fn a_packet_that_is_handed_over_has_a_hop_less_and_the_pods_hardware_address() {
    let directory = BpfDir::new();
    let mut datapath = datapath(&directory);
    let pod = PodLink { host_index: 1, pod_mac: POD_MAC };
    let addresses = [POD, POD_V6].map(|address| address.parse::<IpAddr>().expect("an address"));
    datapath.add_pod(&addresses, &pod).expect("telling of a pod");
    for (number, program) in ["pod_ingress", "uplink_ingress"].into_iter().enumerate() {
        for (from, to, hops_at) in [(BACKEND, POD, 22), (BACKEND_V6, POD_V6, 21)] {
            for payload in [b"".as_slice(), b"odd", &[0xff; 1000]] {
                let sent = frame(Protocol::TCP, (from, 40000), (to, 80), payload);
                let mut wanted = sent.clone();
                wanted[..6].copy_from_slice(&POD_MAC);
                wanted[6..12].copy_from_slice(&HOST_MAC);
                wanted[hops_at] -= 1;
                if hops_at == 22 {
                    wanted[24..26].fill(0);
                    let sum = checksum::checksum(&wanted[14..34]);
                    wanted[24..26].copy_from_slice(&sum.to_be_bytes());
                }
                assert_eq!(run(&mut datapath, program, &sent), (REDIRECT, wanted), "{program} {to}");
            }
            // The stack tells its sender.
            let mut last = frame(Protocol::TCP, (from, 40000), (to, 80), b"");
            last[hops_at] = 1;
            assert_eq!(run(&mut datapath, program, &last), (PASS, last.clone()), "{program} {to}");
        }
        assert_eq!(count(&datapath, Counter::Delivered), 6 * (number as u64 + 1));
    }
}

#[test]
fn a_checksum_that_overflows_when_a_hop_is_taken_is_right() {
    let directory = BpfDir::new();
    let mut datapath = datapath(&directory);
    let pod = PodLink { host_index: 1, pod_mac: POD_MAC };
    datapath.add_pod(&[POD.parse().expect("an address")], &pod).expect("telling of a pod");
    // Over all identifications, the sum takes every value.
    for identification in (0..=u16::MAX).step_by(7) {
        let source = Ipv4Addr::new(10, 244, 1, 2).to_string();
        let mut sent = frame(Protocol::UDP, (&source, 40000), (POD, 80), b"x");
        sent[18..20].copy_from_slice(&identification.to_be_bytes());
        sent[24..26].fill(0);
        let sum = checksum::checksum(&sent[14..34]);
        sent[24..26].copy_from_slice(&sum.to_be_bytes());
        let (verdict, out) = run(&mut datapath, "pod_ingress", &sent);
        // A header with its checksum in it sums up to nothing (RFC 1071 1).
        assert_eq!((verdict, checksum::checksum(&out[14..34])), (REDIRECT, 0), "{identification}");
    }
}

#[test]
fn what_comes_for_a_pod_with_translated_flows_is_looked_up() {
    let directory = BpfDir::new();
    let mut datapath = datapath(&directory);
    let pod = PodLink { host_index: 1, pod_mac: POD_MAC };
    for (client, backend, frontend) in [(CLIENT, BACKEND, "10.96.0.7"), (CLIENT_V6, BACKEND_V6, "fd00:96::7")]
    {
        datapath.add_pod(&[client.parse().expect("an address")], &pod).expect("telling of a pod");
        let answer = frame(Protocol::UDP, (backend, 8080), (client, 40000), b"x");
        let source = if client == CLIENT { 26..30 } else { 22..38 };
        let untranslated = run(&mut datapath, "uplink_ingress", &answer);
        assert_eq!((untranslated.0, &untranslated.1[source.clone()]), (REDIRECT, &answer[source.clone()]));

        let asked = frame(Protocol::UDP, (client, 40000), (frontend, 80), b"x");
        assert_eq!(run(&mut datapath, "pod_ingress", &asked).0, PASS);
        let translated = run(&mut datapath, "uplink_ingress", &answer);
        let from_frontend = frame(Protocol::UDP, (frontend, 80), (client, 40000), b"x");
        assert_eq!((translated.0, &translated.1[source.clone()]), (REDIRECT, &from_frontend[source.clone()]));
    }
}
