//! What pods send to those of other nodes, which takes the kernel's route past the rest of the node's stack.

use std::{io::ErrorKind, net::IpAddr};

use ebpf_common::{Counter, Protocol, checksum};

use super::{
    count, key,
    node::{Node, to},
    packets::{ask, connect, exchange, listen, talk, udp},
    program_runs::{BACKEND, BACKEND_V6, CLIENT, CLIENT_V6, PASS, REDIRECT, frame, run},
    tc_modes,
};

const SERVERS: [&str; 2] = ["10.244.1.2:8080", "[fd00:244:1::2]:8080"];

/// Packets that the node's stack forwarded, of both versions.
fn forwarded(node: &Node) -> u64 {
    let v4 = node.namespace.output("cat", &["/proc/net/snmp"]);
    let mut lines = v4.lines().filter_map(|line| line.strip_prefix("Ip: "));
    let (names, values) = (lines.next().expect("names"), lines.next().expect("values"));
    let at =
        names.split(' ').position(|name| name == "ForwDatagrams").expect("a counter of forwarded packets");
    let v4: u64 = values.split(' ').nth(at).and_then(|value| value.parse().ok()).expect("a number");
    let v6 = node.namespace.output("cat", &["/proc/net/snmp6"]);
    let v6 = v6.lines().find_map(|line| line.strip_prefix("Ip6OutForwDatagrams")).expect("a counter");
    v4 + v6.trim().parse::<u64>().expect("a number")
}

#[test]
fn pods_reach_pods_of_other_nodes_past_the_nodes_stack() {
    for mode in tc_modes() {
        let mut node = Node::with_mode(mode);
        let frontends = ["10.96.0.7:80", "[fd00:96::7]:80"];
        for (frontend, server) in frontends.into_iter().zip(SERVERS) {
            node.serve(
                [Protocol::TCP, Protocol::UDP]
                    .map(|protocol| (key(frontend, protocol), to(&[server.parse().expect("an address")]))),
            );
            let (listener, _) = listen(&node.beyond, server);
            let (socket, _) = udp(&node.beyond, server);
            for target in [server, frontend] {
                let before = count(&node.datapath, Counter::Routed);
                talk(&node.pods[0], target, &listener);
                ask(&node.pods[1], target, &socket, 900);
                assert!(count(&node.datapath, Counter::Routed) > before + 5, "{target}");
            }
        }
        // The neighbour was asked for by what was sent past the stack.
        assert_eq!(forwarded(&node), 0);
        assert_eq!(count(&node.datapath, Counter::FlowNew), 4);
    }
}

#[test]
fn what_the_nodes_routes_and_rules_say_is_followed() {
    let node = Node::new();
    let (listener, _) = listen(&node.beyond, SERVERS[0]);
    talk(&node.pods[0], SERVERS[0], &listener);
    for (family, prefix, gateway, other) in [
        ("-4", "10.244.1.0/24", "10.89.0.12", "10.244.1.2/32"),
        ("-6", "fd00:244:1::/64", "fd00:89::12", "fd00:244:1::2/128"),
    ] {
        let server = SERVERS[usize::from(family == "-6")];
        let _listener = (family == "-6").then(|| listen(&node.beyond, server));
        connect(&node.pods[0], server).expect("there is a route");
        // Somebody else's, and more specific.
        node.namespace.ip(&format!("{family} route add unreachable {other}"));
        let refused = connect(&node.pods[0], server).expect_err("there is none");
        assert!(
            matches!(refused.kind(), ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable),
            "{server}: {refused}"
        );
        node.namespace.ip(&format!("{family} route del unreachable {other}"));
        connect(&node.pods[0], server).expect("there is one again");
        node.namespace.ip(&format!("{family} rule add from all iif pod0 to {prefix} prohibit"));
        connect(&node.pods[0], server).expect_err("a rule says no");
        connect(&node.pods[1], server).expect("only for one of them");
        node.namespace.ip(&format!("{family} rule del from all iif pod0 to {prefix} prohibit"));
        node.namespace.ip(&format!("{family} route del {prefix} via {gateway}"));
        connect(&node.pods[0], server).expect_err("there is no route");
    }
}

#[test]
fn a_smaller_mtu_further_on_is_learned_by_pods() {
    for server in SERVERS {
        let node = Node::new();
        for host in [&node.namespace, &node.beyond] {
            host.ip("link set uplink mtu 1400");
        }
        let (listener, _) = listen(&node.beyond, server);
        let stream = connect(&node.pods[0], server).expect("a connection");
        let (accepted, _) = listener.accept().expect("the connection");
        // Full segments, of a client that believes in 1,500 octets.
        for _ in 0..20 {
            exchange(&stream, &accepted);
        }
        assert!(count(&node.datapath, Counter::Routed) > 20);
    }
}

#[test]
fn a_packet_that_is_sent_on_has_a_hop_less_and_nothing_else_changed() {
    let mut node = Node::new();
    let namespace = &node.namespace;
    let datapath = &mut node.datapath;
    for (from, to, hops_at) in [(CLIENT, BACKEND, 22), (CLIENT_V6, BACKEND_V6, 21)] {
        for protocol in [Protocol::TCP, Protocol::UDP] {
            let sent = frame(protocol, (from, 40000), (to, 80), b"payload");
            let mut wanted = sent.clone();
            wanted[hops_at] -= 1;
            if hops_at == 22 {
                wanted[24..26].fill(0);
                let sum = checksum::checksum(&wanted[14..34]);
                wanted[24..26].copy_from_slice(&sum.to_be_bytes());
            }
            let sent_on = namespace.run(|| run(datapath, "pod_ingress", &sent));
            assert_eq!(sent_on, (REDIRECT, wanted), "{to}");
            // The stack tells the sender.
            let mut last = sent.clone();
            last[hops_at] = 1;
            assert_eq!(namespace.run(|| run(datapath, "pod_ingress", &last)), (PASS, last.clone()), "{to}");
            // What comes in by the uplink may be on its way anywhere.
            assert_eq!(namespace.run(|| run(datapath, "uplink_ingress", &sent)), (PASS, sent), "{to}");
        }
    }
    // A pod of this node that has gone: its address leads nowhere.
    let gone: IpAddr = "10.244.0.9".parse().expect("an address");
    let stray = frame(Protocol::TCP, (CLIENT, 40000), (&gone.to_string(), 80), b"");
    assert_eq!(namespace.run(|| run(datapath, "pod_ingress", &stray)), (PASS, stray));
}
