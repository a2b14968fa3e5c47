//! Source ranges: whom a frontend serves that has some. Packets and sockets, in both families.

use std::{
    io::{self, ErrorKind},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use dataplane::{
    datapath::Datapath,
    node::NodeConfig,
    services::ServiceMaps,
    view::{Element, Walk},
};
use ebpf_common::{
    Counter, FrontendKey, Protocol,
    desired::{Service, SourceRange},
    maps,
};

use super::{
    chain, count, key,
    node::{Node, to},
    open,
    packets::{ask, connect, exchange, listen, receive, talk, udp},
    service, services,
    sockets::Host,
};
use crate::netns::{Cgroup, NetNs, eventually};

const NOTHING: Duration = Duration::from_millis(300);
const PROTOCOLS: [Protocol; 2] = [Protocol::TCP, Protocol::UDP];

struct Family {
    frontend: &'static str,
    backend: &'static str,
    /// The first pod, all pods, who is beyond the node, and the node.
    first: &'static str,
    pods: &'static str,
    beyond: &'static str,
    node: &'static str,
    any: &'static str,
}

const FAMILIES: [Family; 2] = [
    Family {
        frontend: "192.0.2.10:80",
        backend: "10.244.0.3:8080",
        first: "10.244.0.2/32",
        pods: "10.244.0.0/16",
        beyond: "10.89.0.12/32",
        node: "10.89.0.11/32",
        any: "0.0.0.0:0",
    },
    Family {
        frontend: "[2001:db8::10]:80",
        backend: "[fd00:244::3]:8080",
        first: "fd00:244::2/128",
        pods: "fd00:244::/32",
        beyond: "fd00:89::12/128",
        node: "fd00:89::11/128",
        any: "[::]:0",
    },
];

fn range(text: &str) -> SourceRange {
    let (address, prefix) = text.split_once('/').expect("a prefix length");
    let range = SourceRange::new(address.parse().expect("an address"), prefix.parse().expect("a number"));
    range.expect("a length of the family")
}

/// The frontend of a family by both protocols, for clients in the ranges only.
fn both(family: &Family, ranges: &[&str], service: Service) -> [(FrontendKey, Service); 2] {
    let service = Service { source_ranges: ranges.iter().map(|text| range(text)).collect(), ..service };
    PROTOCOLS.map(|protocol| (key(family.frontend, protocol), service.clone()))
}

/// Whether a datagram to the frontend arrives, and a connection is made.
fn is_served(client: &NetNs, family: &Family, server: &UdpSocket, listener: &TcpListener) -> bool {
    let (socket, _) = udp(client, family.any);
    socket.send_to(b"x", family.frontend).expect("a datagram");
    server.set_read_timeout(Some(NOTHING)).expect("a timeout");
    let arrived = receive(server).is_ok();
    let frontend = family.frontend.parse().expect("an address");
    let connected = client.run(|| TcpStream::connect_timeout(&frontend, NOTHING)).is_ok();
    if connected {
        listener.accept().expect("the connection at the backend");
    }
    assert_eq!(arrived, connected, "both protocols are for the same clients");
    arrived
}

fn denied(datapath: &Datapath) -> u64 {
    count(datapath, Counter::DropSourceRange)
}

fn address_of(prefix: &str) -> IpAddr {
    prefix.split_once('/').expect("a prefix length").0.parse().expect("an address")
}

#[test]
fn packets_of_clients_in_no_range_are_dropped_by_their_reason() {
    let mut node = Node::new();
    for (family, other) in FAMILIES.iter().zip(FAMILIES.iter().rev()) {
        let (listener, bound) = listen(&node.pods[1], family.backend);
        let (server, _) = udp(&node.pods[1], family.backend);
        let mut serve =
            |ranges: &[&str]| node.datapath.set_services(services(both(family, ranges, to(&[bound]))));
        serve(&[family.first, other.beyond, other.pods]).expect("setting the services");
        let before = denied(&node.datapath);
        assert!(is_served(&node.pods[0], family, &server, &listener));
        assert_eq!(denied(&node.datapath), before);
        assert!(!is_served(&node.beyond, family, &server, &listener));
        assert!(
            !is_served(&node.pods[1], family, &server, &listener),
            "the backend's pod is a client like others"
        );
        assert!(denied(&node.datapath) >= before + 4);

        node.serve(both(family, &[family.pods], to(&[bound])));
        assert!(is_served(&node.pods[0], family, &server, &listener));
        assert!(!is_served(&node.beyond, family, &server, &listener));
        node.serve(both(family, &[family.first, family.beyond], to(&[bound])));
        assert!(is_served(&node.beyond, family, &server, &listener));
        talk(&node.beyond, family.frontend, &listener);
        // Ranges that go leave none behind.
        node.serve(both(family, &[], to(&[bound])));
        assert!(is_served(&node.beyond, family, &server, &listener));
        assert!(is_served(&node.pods[0], family, &server, &listener));
    }
}

#[test]
fn a_flow_under_way_outlives_ranges_that_would_deny_it() {
    let mut node = Node::new();
    for family in &FAMILIES {
        let (listener, bound) = listen(&node.pods[1], family.backend);
        node.serve(both(family, &[], to(&[bound])));
        let stream = connect(&node.pods[0], family.frontend).expect("a connection");
        let (accepted, _) = listener.accept().expect("the connection at the backend");
        node.serve(both(family, &[family.beyond], to(&[bound])));
        exchange(&stream, &accepted);
        talk(&node.beyond, family.frontend, &listener);
        assert_eq!(denied(&node.datapath), 0);
    }
}

#[test]
fn a_client_in_no_range_does_not_hear_that_there_is_no_backend() {
    let mut node = Node::new();
    for (number, family) in FAMILIES.iter().enumerate() {
        node.serve(both(family, &[family.first], to(&[])));
        let (socket, _) = udp(&node.beyond, family.any);
        socket.send_to(b"x", family.frontend).expect("a datagram");
        let seen = || (denied(&node.datapath) == 1 + number as u64).then_some(());
        eventually("the datagram is dropped", seen);
    }
    assert_eq!(
        (count(&node.datapath, Counter::DropNoBackend), count(&node.datapath, Counter::Answered)),
        (0, 0)
    );
}

#[test]
fn a_pods_socket_leaves_the_question_to_its_packets() {
    let mut node = Node::new();
    let cgroup = Cgroup::new();
    node.datapath.attach_cgroup(&cgroup.path).expect("attaching to the cgroup");
    let pods = [0, 1].map(|index: usize| node.pods[index].within(&cgroup));
    for family in &FAMILIES {
        let (listener, bound) = listen(&node.pods[1], family.backend);
        let (server, _) = udp(&node.pods[1], family.backend);
        let sockets = |node: &Node| {
            count(&node.datapath, Counter::SocketConnect) + count(&node.datapath, Counter::SocketSend)
        };
        let (sockets_before, denied_before) = (sockets(&node), denied(&node.datapath));
        node.serve(both(family, &[family.first], to(&[bound])));
        talk(&pods[0], family.frontend, &listener);
        ask(&pods[0], family.frontend, &server, 10);
        assert!(is_served(&pods[0], family, &server, &listener));
        assert_eq!(denied(&node.datapath), denied_before);
        assert!(!is_served(&pods[1], family, &server, &listener));
        assert!(denied(&node.datapath) >= denied_before + 2);
        assert_eq!(sockets(&node), sockets_before, "nothing was decided at a socket");

        node.serve(both(family, &[], to(&[bound])));
        talk(&pods[0], family.frontend, &listener);
        assert_eq!(sockets(&node), sockets_before + 1);
    }
}

#[test]
fn a_pod_in_a_range_reaches_a_frontend_among_the_addresses_of_services() {
    let mut node = Node::new();
    let cgroup = Cgroup::new();
    node.datapath.attach_cgroup(&cgroup.path).expect("attaching to the cgroup");
    let pod = node.pods[0].within(&cgroup);
    for (frontend, family) in ["10.96.0.10:80", "[fd00:96::10]:80"].iter().zip(&FAMILIES) {
        let (listener, bound) = listen(&node.pods[1], family.backend);
        let family = Family { frontend, ..*family };
        node.serve(both(&family, &[family.first], to(&[bound])));
        talk(&pod, family.frontend, &listener);
    }
}

/// A host that knows itself by the addresses of both families.
fn host() -> Host {
    let mut host = Host::new();
    let sources = FAMILIES.each_ref().map(|family| address_of(family.node));
    let node = host.namespace.run(|| NodeConfig::of_namespace(&sources)).expect("the node's addresses");
    host.datapath.set_node(&node).expect("telling them");
    host
}

/// What sending and connecting from a socket that is bound to an address come to.
fn from(host: &NetNs, source: &str, frontend: &str) -> [Result<(), ErrorKind>; 2] {
    let (socket, _) = udp(host, source);
    let sent = host.run(|| socket.send_to(b"x", frontend)).map(drop);
    let connected = host.run(|| socket.connect(frontend));
    [sent, connected].map(|result: io::Result<()>| result.map_err(|error| error.kind()))
}

const SERVED: [Result<(), ErrorKind>; 2] = [Ok(()); 2];
const DENIED: [Result<(), ErrorKind>; 2] = [Err(ErrorKind::PermissionDenied); 2];

#[test]
fn a_socket_of_the_node_asks_as_the_node_unless_it_is_bound_to_another_address() {
    let mut host = host();
    for (family, own) in FAMILIES.iter().zip(["10.244.0.2:0", "[fd00:244::2]:0"]) {
        let (listener, bound) = listen(&host.namespace, family.backend);
        let mut serve = |ranges: &[&str]| {
            let wanted = services(both(family, ranges, service(&[bound])));
            host.datapath.set_services(wanted).expect("setting the services");
        };
        let vip_address = key(family.frontend, Protocol::UDP).address.to_ip();
        let mask = if bound.is_ipv4() { "32 dev lo" } else { "128 dev lo nodad" };
        host.namespace.ip(&format!("addr add {vip_address}/{mask}"));
        let vip = SocketAddr::new(vip_address, 0).to_string();
        let cases = |asked: &dyn Fn(&str) -> [Result<(), ErrorKind>; 2]| [family.any, own, &vip].map(asked);
        let asked = |source: &str| from(&host.namespace, source, family.frontend);

        serve(&[family.node, family.beyond]);
        assert_eq!(cases(&asked), [SERVED, DENIED, SERVED], "the node");
        connect(&host.namespace, family.frontend).expect("a connection of the node");
        listener.accept().expect("the connection at the backend");

        serve(&[family.pods]);
        assert_eq!(cases(&asked), [DENIED, SERVED, DENIED], "another address of the node");
        let error = connect(&host.namespace, family.frontend).expect_err("the node is in no range");
        assert_eq!(error.kind(), ErrorKind::PermissionDenied, "{error}");
    }
    // For each family twice two of them, three of them, and a connection.
    assert_eq!(denied(&host.datapath), 2 * (2 + 4 + 1));
}

#[test]
fn a_v6_socket_with_a_mapped_address_asks_as_the_node_by_ipv4() {
    let mut host = host();
    let (_, bound) = listen(&host.namespace, FAMILIES[0].backend);
    for (node, outcome) in [(FAMILIES[0].node, SERVED), (FAMILIES[0].beyond, DENIED)] {
        let wanted = services(both(&FAMILIES[0], &[node], service(&[bound])));
        host.datapath.set_services(wanted).expect("setting the services");
        for source in ["[::]:0", "[::ffff:0.0.0.0]:0"] {
            assert_eq!(from(&host.namespace, source, "[::ffff:192.0.2.10]:80"), outcome, "{source}");
        }
    }
}

#[test]
fn a_datagram_socket_that_is_older_than_the_ranges_is_asked_again() {
    let mut host = host();
    for family in &FAMILIES {
        let (server, bound) = udp(&host.namespace, family.backend);
        let (socket, _) = udp(&host.namespace, family.any);
        for (ranges, kind) in [(vec![], None), (vec![family.beyond], Some(ErrorKind::PermissionDenied))] {
            let wanted = services(both(family, &ranges, service(&[bound])));
            host.datapath.set_services(wanted).expect("setting the services");
            let sent = host.namespace.run(|| socket.send_to(b"x", family.frontend));
            assert_eq!(sent.err().map(|error| error.kind()), kind);
        }
        receive(&server).expect("the first datagram");
    }
}

/// Ranges that come, go and change leave no moment in which a client is taken for another.
#[test]
fn nobody_is_taken_for_another_while_ranges_change() {
    const ROUNDS: u32 = 2000;
    const ASKED: u32 = 500;
    let deadline = Instant::now() + Duration::from_secs(60);
    let family = &FAMILIES[0];
    let mut host = host();
    let (_server, bound) = udp(&host.namespace, family.backend);
    let (done, asked) = (AtomicBool::new(false), AtomicU32::new(0));
    let always = services(both(family, &[family.node], service(&[bound])));
    host.datapath.set_services(always).expect("setting the services");
    let Host { namespace, datapath, .. } = &mut host;
    thread::scope(|scope| {
        let client = scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                assert_eq!(from(namespace, family.any, family.frontend), SERVED);
                assert_eq!(from(namespace, "10.244.0.2:0", family.frontend), DENIED);
                asked.fetch_add(1, Ordering::Relaxed);
            }
        });
        for round in 0.. {
            let enough = round >= ROUNDS && asked.load(Ordering::Relaxed) >= ASKED;
            if enough || client.is_finished() || Instant::now() > deadline {
                break;
            }
            let others = ["10.89.0.0/24", "10.89.0.11/32", "10.0.0.0/10", "198.51.100.0/24"];
            let mut ranges: Vec<&str> = others
                .into_iter()
                .enumerate()
                .filter(|(n, _)| round >> n & 1 == 1)
                .map(|(_, range)| range)
                .collect();
            if !ranges.iter().any(|range| range.starts_with("10.89.")) {
                ranges.push("10.89.0.8/29");
            }
            // Now and then the frontend goes, and comes back with its ranges.
            let wanted = services(both(family, &ranges, service(&[bound])));
            datapath.set_services(wanted).expect("setting the services");
        }
        done.store(true, Ordering::Relaxed);
        client.join().expect("every client was taken for what it is");
    });
    let asked = asked.into_inner();
    assert!(asked >= ASKED, "only {asked} rounds of questions meanwhile");
}

#[test]
fn ranges_are_shown_and_come_back_after_a_restart() {
    let mut node = Node::new();
    let family = &FAMILIES[0];
    let backend: SocketAddr = family.backend.parse().expect("an address");
    let wanted = |ranges: &[&str]| services(both(family, ranges, to(&[backend])));
    node.datapath.set_services(wanted(&["10.0.0.0/8", family.node])).expect("setting the services");
    node.datapath = open(&node.directory);
    let applied = node.datapath.set_services(wanted(&["10.0.0.0/8", family.node])).expect("the same");
    assert_eq!((applied.written, applied.deleted), (0, 0), "the maps held all of it");
    let applied = node.datapath.set_services(wanted(&[family.node, "198.51.100.0/24"])).expect("others");
    assert_eq!((applied.written, applied.deleted), (2, 2), "one range of two frontends is another");

    let ranges: Vec<(IpAddr, u8)> =
        vec![(address_of(family.node), 32), ("198.51.100.0".parse().expect("an address"), 24)];
    assert_eq!(node.datapath.services()[0].source_ranges.as_ref(), Some(&ranges));
    let maps_dir = node.directory.path.join("maps");
    assert_eq!(ServiceMaps::dump(&maps_dir).expect("the maps")[0].source_ranges, Some(ranges));
    let mut walk = Walk::open(&maps_dir, maps::SOURCE_RANGES).expect("the trie");
    let shown = walk.next_piece().expect("its elements").expect("some");
    assert_eq!(shown.len(), 4);
    assert!(shown.iter().all(|element| matches!(element, Element::SourceRange(_))), "{shown:?}");
    let applied = node.datapath.set_services(wanted(&[])).expect("for everybody");
    assert_eq!((applied.written, applied.deleted), (2, 4));
    assert_eq!(ServiceMaps::dump(&maps_dir).expect("the maps")[0].source_ranges, None);

    node.datapath.set_services(wanted(&[family.node])).expect("for the node");
    // What an earlier agent left goes with its frontends.
    node.datapath = open(&node.directory);
    let applied = node.datapath.set_services(services([])).expect("no services");
    let of_each = 1 + 1 + 1 + 1;
    assert_eq!(
        applied.deleted,
        2 * of_each + 1,
        "frontend, slot, backend and range of each, and their address"
    );
}

#[test]
fn a_frontend_is_not_there_before_its_ranges_are() {
    let mut node = Node::new();
    let family = &FAMILIES[0];
    let backend: SocketAddr = family.backend.parse().expect("an address");
    let mut wanted = services(both(family, &[], to(&[backend])));
    let many = (0..=maps::SOURCE_RANGES_MAX).map(|n| {
        let [_, b, c, d] = n.to_be_bytes();
        range(&format!("10.{b}.{c}.{d}/32"))
    });
    wanted.get_mut(&key(family.frontend, Protocol::TCP)).expect("a frontend").source_ranges = many.collect();
    let error = node.datapath.set_services(wanted).expect_err("one range too many");
    assert!(chain(&error).contains("SRC_RANGES_1 is full"), "{}", chain(&error));
    assert!(ServiceMaps::dump(&node.directory.path.join("maps")).expect("the maps").is_empty());
    node.serve(both(family, &[family.node], to(&[backend])));
    assert_eq!(node.datapath.services().len(), 2);
}
