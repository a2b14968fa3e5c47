//! Pods' traffic to hosts outside of the cluster: with the node's address, from real sockets of hosts that know the way
//! to nodes only, and single packets to the byte.
//!
//! ```text
//!   pod 10.244.0.2 ── node 10.89.0.11 ── beyond 10.89.0.12, another node and a router ── outside 203.0.113.2
//! ```

mod packets;

use std::{
    io::ErrorKind,
    net::{IpAddr, SocketAddr, UdpSocket},
    time::Duration,
};

use dataplane::{
    drops::DropReader,
    flows::{Flows, Way, now_ns},
    masquerade::MasqueradeConfig,
    programs::TcMode,
};
use ebpf_common::{Counter, FORWARD_PORTS, Port, Protocol};
use nix::sys::socket::{AddressFamily, SockFlag, SockType};

use super::{
    count,
    errors::path_mtu,
    key,
    node::{Node, to},
    node_port,
    packets::{ask, ask_and_stay, connect, drops, exchange, listen, receive, talk, udp},
    tc_modes,
};
use crate::netns::{NetNs, eventually};

struct Family {
    outside: &'static str,
    node: &'static str,
    other_node: &'static str,
    pod: &'static str,
    /// On another node.
    other_pod: &'static str,
    service: &'static str,
    any: &'static str,
}

const FAMILIES: [Family; 2] = [
    Family {
        outside: "203.0.113.2",
        node: "10.89.0.11",
        other_node: "10.89.0.12",
        pod: "10.244.0.2",
        other_pod: "10.244.1.2",
        service: "10.96.0.7",
        any: "0.0.0.0:0",
    },
    Family {
        outside: "2001:db8:113::2",
        node: "fd00:89::11",
        other_node: "fd00:89::12",
        pod: "fd00:244::2",
        other_pod: "fd00:244:1::2",
        service: "fd00:96::7",
        any: "[::]:0",
    },
];

/// Pods of the whole cluster in both families, and what is excepted as on a node: the nodes' addresses.
fn config() -> MasqueradeConfig {
    let range = |text: &str| text.parse().expect("a range");
    MasqueradeConfig {
        pods: ["10.244.0.0/16", "fd00:244::/32"].map(range).to_vec(),
        except: FAMILIES.iter().flat_map(|of| [of.node, of.other_node]).map(range).collect(),
        ..MasqueradeConfig::default()
    }
}

pub struct Ground {
    pub node: Node,
    pub outside: NetNs,
}

impl Ground {
    pub fn new() -> Self {
        Self::with_mode(TcMode::of_kernel())
    }

    fn with_mode(tc_mode: TcMode) -> Self {
        let mut node = Node::with_mode(tc_mode);
        node.datapath.set_masquerade(&config()).expect("telling whose address is exchanged");
        let outside = NetNs::new();
        node.beyond.ip(&format!("link add outside type veth peer name uplink netns {}", outside.path()));
        outside.sysctl("net/ipv6/conf/all/accept_dad", "0");
        for (host, link, last) in [(&node.beyond, "outside", 1), (&outside, "uplink", 2)] {
            host.ip(&format!("link set {link} up"));
            host.ip(&format!("addr add 203.0.113.{last}/24 dev {link}"));
            host.ip(&format!("addr add 2001:db8:113::{last}/64 dev {link} nodad"));
        }
        outside.ip("route add 10.89.0.0/24 via 203.0.113.1");
        outside.ip("-6 route add fd00:89::/64 via 2001:db8:113::1");
        node.namespace.ip("route add 203.0.113.0/24 via 10.89.0.12");
        node.namespace.ip("-6 route add 2001:db8:113::/64 via fd00:89::12");
        for host in node.pods.iter().chain([&node.namespace, &outside]) {
            host.sysctl("net/ipv4/ping_group_range", "0 2147483647");
        }
        Self { node, outside }
    }

    /// The fabric learns the way to pods, and so does the host outside.
    fn announce_pods(&self) {
        self.outside.ip("route add 10.244.0.0/16 via 203.0.113.1");
        self.outside.ip("-6 route add fd00:244::/32 via 2001:db8:113::1");
    }

    fn set_ports(&mut self, ports: (u16, u16)) {
        let config = MasqueradeConfig { ports, ..config() };
        self.node.datapath.set_masquerade(&config).expect("telling which ports there are");
    }

    fn count(&self, counter: Counter) -> u64 {
        count(&self.node.datapath, counter)
    }
}

fn at(address: &str, port: u16) -> String {
    SocketAddr::new(ip(address), port).to_string()
}

fn ip(address: &str) -> IpAddr {
    address.parse().expect("an address")
}

/// The host outside saw the node, at a port that no socket of the node chooses.
fn assert_node(seen: SocketAddr, of: &Family) {
    assert_eq!(seen.ip(), ip(of.node));
    assert!((FORWARD_PORTS.0..=FORWARD_PORTS.1).contains(&seen.port()), "{seen}");
}

fn connected(client: &NetNs, from: &str, to: &str) -> UdpSocket {
    let (socket, _) = udp(client, from);
    client.run(|| socket.connect(to)).unwrap_or_else(|e| panic!("{to}: {e}"));
    socket
}

#[test]
fn a_pod_reaches_a_host_outside_that_knows_the_way_to_the_node_only() {
    for tc_mode in tc_modes() {
        let ground = Ground::with_mode(tc_mode);
        for of in &FAMILIES {
            let server_at = at(of.outside, 8080);
            let (listener, _) = listen(&ground.outside, &server_at);
            let (server, _) = udp(&ground.outside, &server_at);
            for pod in &ground.node.pods {
                assert_node(talk(pod, &server_at, &listener), of);
                // In one piece, and in fragments.
                for size in [100, 6000] {
                    assert_node(ask(pod, &server_at, &server, size), of);
                }
            }
        }
        assert_eq!(ground.count(Counter::Masqueraded), 12);
        assert_eq!(drops(&ground.node), 0);
    }
}

#[test]
fn a_flow_keeps_its_port_and_outlives_the_agent() {
    let mut ground = Ground::new();
    let (server, _) = udp(&ground.outside, &at(FAMILIES[0].outside, 5300));
    let (listener, _) = listen(&ground.outside, &at(FAMILIES[0].outside, 8080));
    let client = connected(&ground.node.pods[0], FAMILIES[0].any, &at(FAMILIES[0].outside, 5300));
    let stream = connect(&ground.node.pods[0], &at(FAMILIES[0].outside, 8080)).expect("a connection");
    let (accepted, _) = listener.accept().expect("the connection outside");
    let mut seen = Vec::new();
    for round in 0..4 {
        client.send(b"ask").expect("a datagram");
        let (_, from) = server.recv_from(&mut [0; 8]).expect("the datagram outside");
        server.send_to(b"answer", from).expect("the answer");
        assert_eq!(receive(&client).expect("the answer in the pod"), 6);
        exchange(&stream, &accepted);
        seen.push(from);
        match round {
            // What an earlier agent said holds until the new one says something.
            1 => ground.node.restart_agent(),
            // Flows without a backend have not lost one.
            2 => assert_eq!(ground.node.datapath.sweep_flows().expect("a sweep").deleted, 0),
            _ => {}
        }
    }
    assert!(seen.iter().all(|from| *from == seen[0]), "{seen:?}");
    assert_eq!(ground.count(Counter::Masqueraded), 2);
}

#[test]
fn a_flow_is_shown_with_the_nodes_port_and_forgotten_as_a_whole() {
    const SECOND: u64 = 1_000_000_000;
    let ground = Ground::new();
    let of = &FAMILIES[0];
    let (server, _) = udp(&ground.outside, &at(of.outside, 8080));
    let (socket, seen) = ask_and_stay(&ground.node.pods[0], &at(of.outside, 8080), &server, 10);
    let flows = ground.node.datapath.flows().expect("the flows");
    let [flow] = flows.as_slice() else { panic!("one flow, and not {flows:?}") };
    let port = socket.local_addr().expect("its address").port();
    assert_eq!((flow.way, flow.state), (Way::Masqueraded, "answered"));
    assert_eq!((flow.client, flow.seen_as), ((ip(of.pod), port), (seen.ip(), seen.port())));
    assert_eq!((flow.frontend, flow.backend), ((ip(of.outside), 8080), (ip(of.outside), 8080)));

    let flows = Flows::open(&ground.node.directory.path.join("maps")).expect("the flows");
    let swept = flows.sweep(now_ns() + 200 * SECOND).expect("a later sweep");
    assert_eq!((swept.seen, swept.deleted), (2, 2));
}

#[test]
fn who_asks_a_pod_at_its_own_address_is_answered_from_there() {
    let mut ground = Ground::new();
    ground.announce_pods();
    for with_flows in [false, true] {
        for of in &FAMILIES {
            if with_flows {
                // Then packets for the pod are looked at more closely.
                let (other, bound) = udp(
                    &ground.node.pods[1],
                    &at(&of.pod.replace("::2", "::3").replace(".0.2", ".0.3"), 5310),
                );
                ground.node.serve([(key(&at(of.service, 80), Protocol::UDP), to(&[bound]))]);
                ask(&ground.node.pods[0], &at(of.service, 80), &other, 10);
            }
            let before = ground.count(Counter::Masqueraded);
            let (listener, _) = listen(&ground.node.pods[0], &at(of.pod, 8080));
            assert_eq!(talk(&ground.outside, &at(of.pod, 8080), &listener).ip(), ip(of.outside));
            let (server, _) = udp(&ground.node.pods[0], &at(of.pod, 5300));
            for size in [100, 1400] {
                let seen = ask(&ground.outside, &at(of.pod, 5300), &server, size);
                assert_eq!(seen.ip(), ip(of.outside));
            }
            let echo = Echo::new(&ground.outside, of.outside, 77);
            assert_eq!(echo.ask(of.pod), Some(ip(of.pod)));
            assert_eq!(ground.count(Counter::Masqueraded), before);
        }
    }
    assert_eq!(drops(&ground.node), 0);
}

#[test]
fn a_pod_that_spoke_first_still_answers_who_asks_it_at_its_own_address() {
    let ground = Ground::new();
    ground.announce_pods();
    for of in &FAMILIES {
        let (outside, _) = udp(&ground.outside, &at(of.outside, 5302));
        let (pod, _) = udp(&ground.node.pods[0], &at(of.pod, 5301));
        pod.send_to(b"first", at(of.outside, 5302)).expect("a datagram");
        assert_node(outside.recv_from(&mut [0; 8]).expect("the datagram outside").1, of);
        outside.send_to(b"ask", at(of.pod, 5301)).expect("a datagram");
        let (_, from) = pod.recv_from(&mut [0; 8]).expect("the datagram in the pod");
        pod.send_to(b"answer", from).expect("the answer");
        let (_, answered) = outside.recv_from(&mut [0; 8]).expect("the answer outside");
        assert_eq!(answered.to_string(), at(of.pod, 5301));
    }
    assert!(ground.node.datapath.flows().expect("the flows").is_empty());
}

#[test]
fn pods_nodes_exceptions_and_the_nodes_own_processes_are_seen_as_they_are() {
    let mut ground = Ground::new();
    ground.announce_pods();
    for of in &FAMILIES {
        for (host, to) in [(&ground.node.beyond, of.other_node), (&ground.node.beyond, of.other_pod)] {
            let (listener, _) = listen(host, &at(to, 8080));
            let (server, _) = udp(host, &at(to, 8080));
            assert_eq!(talk(&ground.node.pods[0], &at(to, 8080), &listener).ip(), ip(of.pod));
            assert_eq!(ask(&ground.node.pods[0], &at(to, 8080), &server, 100).ip(), ip(of.pod));
        }
        let (listener, _) = listen(&ground.outside, &at(of.outside, 8080));
        let (server, _) = udp(&ground.outside, &at(of.outside, 8080));
        let host = &ground.node.namespace;
        let stream = connect(host, &at(of.outside, 8080)).expect("a connection");
        let (_, seen) = listener.accept().expect("the connection outside");
        assert_eq!(seen, stream.local_addr().expect("its address"));
        let (socket, seen) = ask_and_stay(host, &at(of.outside, 8080), &server, 100);
        assert_eq!(seen, socket.local_addr().expect("its address"));
    }
    let mut config = config();
    for range in ["203.0.113.128/25", "203.0.113.0/29", "2001:db8::/32"] {
        config.except.insert(range.parse().expect("a range"));
    }
    ground.node.datapath.set_masquerade(&config).expect("more exceptions");
    for of in &FAMILIES {
        let (server, _) = udp(&ground.outside, &at(of.outside, 8081));
        assert_eq!(ask(&ground.node.pods[0], &at(of.outside, 8081), &server, 100).ip(), ip(of.pod));
    }
    assert_eq!(ground.count(Counter::Masqueraded), 0);
    assert_eq!(drops(&ground.node), 0);
}

#[test]
fn a_port_of_a_socket_of_the_node_is_no_pods_at_the_same_time() {
    const TAKEN: u16 = 50_000;
    let mut ground = Ground::new();
    ground.set_ports((TAKEN, TAKEN + 1));
    for of in &FAMILIES {
        let to = at(of.outside, 8080);
        let (server, _) = udp(&ground.outside, &to);
        let host = connected(&ground.node.namespace, &at(of.node, TAKEN), &to);
        let pod = connected(&ground.node.pods[0], of.any, &to);
        for round in 0..3 {
            for (socket, port) in [(&host, TAKEN), (&pod, TAKEN + 1)] {
                socket.send(&[round]).expect("a datagram");
                let (_, from) = server.recv_from(&mut [0; 8]).expect("the datagram outside");
                assert_eq!(from.to_string(), at(of.node, port));
                server.send_to(&[0; 2], from).expect("the answer");
                assert_eq!(receive(socket).expect("the answer at its own socket"), 2);
            }
        }
    }
    assert_eq!(drops(&ground.node), 0);
}

#[test]
fn a_port_serves_many_destinations_and_of_one_destination_as_many_flows_as_there_are_ports() {
    const PORTS: (u16, u16) = (50_000, 50_003);
    let mut ground = Ground::new();
    ground.set_ports(PORTS);
    let of = &FAMILIES[0];
    let mut reader = DropReader::open(ground.node.datapath.maps_dir()).expect("following drops");
    let servers = [8080, 8081].map(|port| udp(&ground.outside, &at(of.outside, port)).0);
    let mut sockets = Vec::new();
    for server in &servers {
        let to = server.local_addr().expect("its address").to_string();
        let mut seen = Vec::new();
        for _ in 0..4 {
            let (socket, from) = ask_and_stay(&ground.node.pods[0], &to, server, 10);
            sockets.push(socket);
            seen.push(from.port());
        }
        seen.sort_unstable();
        assert_eq!(seen, (PORTS.0..=PORTS.1).collect::<Vec<_>>());
    }
    let one_more = connected(&ground.node.pods[1], of.any, &at(of.outside, 8080));
    one_more.send(b"x").expect("a datagram");
    assert_eq!(ground.count(Counter::DropPortsExhausted), 1);
    let told = eventually("the drop is told", || Some(reader.take(9)).filter(|told| !told.is_empty()));
    assert_eq!((told.len(), told[0].reason), (1, Counter::DropPortsExhausted as u32));
    assert_eq!(told[0].destination_port, Port::new(8080));
    // A flow that is over leaves its port to others.
    let flows = Flows::open(ground.node.datapath.maps_dir()).expect("the flows");
    assert_eq!(flows.sweep(now_ns() + 200_000_000_000).expect("a later sweep").deleted, 16);
    one_more.send(b"x").expect("a datagram");
    assert!((PORTS.0..=PORTS.1).contains(&servers[0].recv_from(&mut [0; 8]).expect("the datagram").1.port()));
}

#[test]
fn a_pod_learns_the_path_mtu_and_that_nobody_listens_outside() {
    const SIZE: usize = 1400;
    let ground = Ground::new();
    ground.node.beyond.ip("link set outside mtu 1300");
    ground.outside.ip("link set uplink mtu 1300");
    for of in &FAMILIES {
        let to = at(of.outside, 8080);
        let (server, _) = udp(&ground.outside, &to);
        let (listener, _) = listen(&ground.outside, &to);
        let client = connected(&ground.node.pods[0], of.any, &to);
        assert_eq!(path_mtu(&client), 1500);
        client.send(&[7; SIZE]).expect("a datagram");
        eventually("the path's MTU is known", || (path_mtu(&client) == 1300).then_some(()));
        // The socket is told once; then what is larger than the path goes in fragments.
        eventually("a datagram is sent", || match client.send(&[7; SIZE]) {
            Err(error) if error.raw_os_error() == Some(libc::EMSGSIZE) => None,
            sent => Some(sent.expect("a datagram")),
        });
        assert_eq!(receive(&server).expect("the datagram outside"), SIZE);
        talk(&ground.node.pods[0], &to, &listener);

        let nobody = connected(&ground.node.pods[0], of.any, &at(of.outside, 8099));
        nobody.send(b"anybody?").expect("a datagram");
        let refused = receive(&nobody).expect_err("nobody answers");
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{refused}");
    }
    assert_eq!(drops(&ground.node), 0);
}

#[test]
fn who_outside_answers_a_socket_that_is_gone_is_told() {
    let ground = Ground::new();
    for of in &FAMILIES {
        let (server, _) = udp(&ground.outside, &at(of.outside, 8080));
        // The pod's socket is closed when this returns.
        let seen = ask(&ground.node.pods[0], &at(of.outside, 8080), &server, 10);
        ground.outside.run(|| server.connect(seen)).expect("connecting to the node");
        server.send(b"anybody?").expect("a datagram");
        let refused = receive(&server).expect_err("nobody answers");
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{refused}");
    }
}

/// A socket for echo messages, which the kernel gives an identifier as it gives others a port.
pub struct Echo {
    socket: UdpSocket,
}

impl Echo {
    pub fn new(host: &NetNs, address: &str, identifier: u16) -> Self {
        let bound = SocketAddr::new(ip(address), identifier);
        let socket = host.run(|| {
            let (family, protocol) = if bound.is_ipv4() {
                (AddressFamily::Inet, nix::sys::socket::SockProtocol::Icmp)
            } else {
                (AddressFamily::Inet6, nix::sys::socket::SockProtocol::IcmpV6)
            };
            let socket =
                nix::sys::socket::socket(family, SockType::Datagram, SockFlag::SOCK_CLOEXEC, protocol)
                    .expect("a socket for echo messages");
            nix::sys::socket::bind(
                std::os::fd::AsRawFd::as_raw_fd(&socket),
                &nix::sys::socket::SockaddrStorage::from(bound),
            )
            .unwrap_or_else(|e| panic!("{bound}: {e}"));
            socket
        });
        let socket = UdpSocket::from(socket);
        socket.set_read_timeout(Some(Duration::from_secs(2))).expect("a timeout");
        Self { socket }
    }

    pub fn request(&self, address: &str) {
        let to = SocketAddr::new(ip(address), 0);
        let request = if to.is_ipv4() { 8 } else { 128 };
        self.socket.send_to(&[request, 0, 0, 0, 0, 0, 0, 1, 42], to).expect("an echo request");
    }

    /// Who answers an echo request to `address`.
    pub fn ask(&self, address: &str) -> Option<IpAddr> {
        self.request(address);
        let mut answer = [0; 64];
        let (length, from) = self.socket.recv_from(&mut answer).ok()?;
        assert_eq!(answer[..length].last(), Some(&42));
        Some(from.ip())
    }
}

#[test]
fn pods_with_the_same_identifier_and_the_node_itself_ping_a_host_outside() {
    let mut ground = Ground::new();
    for of in &FAMILIES {
        let pods = [of.pod.to_owned(), of.pod.replace("::2", "::3").replace(".0.2", ".0.3")];
        let echoes: Vec<Echo> = (0..2).map(|pod| Echo::new(&ground.node.pods[pod], &pods[pod], 77)).collect();
        let host = Echo::new(&ground.node.namespace, of.node, 77);
        for _ in 0..2 {
            for echo in echoes.iter().chain([&host]) {
                assert_eq!(echo.ask(of.outside), Some(ip(of.outside)));
            }
        }
        let flows = ground.node.datapath.flows().expect("the flows");
        let is_of = |address: &IpAddr| flows.iter().filter(|flow| flow.client.0 == *address).count();
        assert_eq!(pods.each_ref().map(|pod| is_of(&ip(pod))), [1, 1], "{flows:?}");
    }
    // The node's own request has its identifier for itself.
    ground.set_ports((500, 501));
    for of in &FAMILIES {
        let pod = Echo::new(&ground.node.pods[0], of.pod, 78);
        assert_eq!(pod.ask(of.outside), Some(ip(of.outside)));
        for identifier in [500, 501] {
            let host = Echo::new(&ground.node.namespace, of.node, identifier);
            assert_eq!(host.ask(of.outside), Some(ip(of.outside)));
            assert_eq!(pod.ask(of.outside), Some(ip(of.outside)));
        }
    }
    assert_eq!(drops(&ground.node), 0);
}

#[test]
fn a_service_of_a_host_outside_is_reached_by_pods_through_both_translations() {
    let mut ground = Ground::new();
    for of in &FAMILIES {
        let (listener, bound) = listen(&ground.outside, &at(of.outside, 8080));
        let (server, _) = udp(&ground.outside, &at(of.outside, 8080));
        let frontend = at(of.service, 80);
        ground
            .node
            .serve([Protocol::TCP, Protocol::UDP].map(|protocol| (key(&frontend, protocol), to(&[bound]))));
        assert_node(talk(&ground.node.pods[0], &frontend, &listener), of);
        for size in [100, 6000] {
            assert_node(ask(&ground.node.pods[0], &frontend, &server, size), of);
        }
    }
    assert_eq!(drops(&ground.node), 0);
}

#[test]
fn a_client_outside_is_answered_by_the_node_port_that_it_asked() {
    let mut ground = Ground::new();
    for of in &FAMILIES {
        for backend in [of.pod, of.other_pod] {
            let host = if backend == of.pod { &ground.node.pods[0] } else { &ground.node.beyond };
            let host = host.without_cgroup();
            let (listener, bound) = listen(&host, &at(backend, 8080));
            let (server, _) = udp(&host, &at(backend, 8080));
            let frontend = at(of.node, 30080);
            ground.node.serve(
                [Protocol::TCP, Protocol::UDP].map(|protocol| (node_port(&frontend, protocol), to(&[bound]))),
            );
            talk(&ground.outside, &frontend, &listener);
            for size in [100, 6000] {
                ask(&ground.outside, &frontend, &server, size);
            }
        }
    }
    assert_eq!(ground.count(Counter::Masqueraded), 0);
    assert_eq!(drops(&ground.node), 0);
}
