//! The packet path: clients that pass no socket program, through veth and the kernel's own routing.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsRawFd,
    time::Duration,
};

use dataplane::{
    flows::{Flows, now_ns},
    programs::{TcMode, TcModes},
};
use ebpf_common::{Counter, Protocol, desired::Service};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, setsockopt, sockopt};

use super::{
    count, endpoint, key, leading_to,
    node::{Node, to},
};
use crate::netns::NetNs;

const FRONTEND: &str = "10.96.0.7:80";
const FRONTEND_V6: &str = "[fd00:96::7]:80";
const DEADLINE: Duration = Duration::from_secs(5);
/// Long enough to be sure that nothing comes, on a machine that delivers in microseconds.
const NOTHING: Duration = Duration::from_millis(300);

pub fn listen(host: &NetNs, address: &str) -> (TcpListener, SocketAddr) {
    host.run(|| {
        let listener = TcpListener::bind(address).unwrap_or_else(|e| panic!("{address}: {e}"));
        let bound = listener.local_addr().expect("its address");
        (listener, bound)
    })
}

pub fn udp(host: &NetNs, address: &str) -> (UdpSocket, SocketAddr) {
    host.run(|| {
        let socket = UdpSocket::bind(address).unwrap_or_else(|e| panic!("{address}: {e}"));
        socket.set_read_timeout(Some(DEADLINE)).expect("a timeout");
        let bound = socket.local_addr().expect("its address");
        (socket, bound)
    })
}

pub fn connect(host: &NetNs, address: &str) -> io::Result<TcpStream> {
    host.run(|| {
        let stream = TcpStream::connect_timeout(&address.parse().expect("an address"), DEADLINE)?;
        stream.set_read_timeout(Some(DEADLINE))?;
        Ok(stream)
    })
}

/// What comes next at the socket: how many bytes, or an error. A signal that is not for this thread is neither.
pub fn receive(socket: &UdpSocket) -> io::Result<usize> {
    loop {
        match socket.recv(&mut [0; 2000]) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            received => return received,
        }
    }
}

/// Connects, exchanges more than one segment both ways, and returns the client's address as the backend saw it.
pub fn talk(client: &NetNs, frontend: &str, listener: &TcpListener) -> SocketAddr {
    let stream = connect(client, frontend).unwrap_or_else(|e| panic!("{frontend}: {e}"));
    let (accepted, seen) = listener.accept().expect("the connection at the backend");
    exchange(&stream, &accepted);
    seen
}

pub fn exchange(client: &TcpStream, server: &TcpStream) {
    const SIZE: usize = 20_000;
    for (mut from, mut into) in [(client, server), (server, client)] {
        from.write_all(&[7; SIZE]).expect("writing");
        let mut read = vec![0; SIZE];
        into.set_read_timeout(Some(DEADLINE)).expect("a timeout");
        into.read_exact(&mut read).expect("reading");
        assert!(read.iter().all(|byte| *byte == 7));
    }
}

/// Sends to the frontend from a connected socket, which takes an answer only from there.
pub fn ask(client: &NetNs, frontend: &str, server: &UdpSocket, size: usize) -> SocketAddr {
    ask_and_stay(client, frontend, server, size).1
}

/// The same, with the socket: as long as it is open, no other gets its port.
pub fn ask_and_stay(
    client: &NetNs,
    frontend: &str,
    server: &UdpSocket,
    size: usize,
) -> (UdpSocket, SocketAddr) {
    let any = if frontend.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" };
    let (socket, _) = udp(client, any);
    client.run(|| socket.connect(frontend)).expect("connecting");
    let question: Vec<u8> = (0..size).map(|n| n as u8).collect();
    socket.send(&question).expect("the question");
    let mut buffer = vec![0; size + 1];
    let question_at = server.recv_from(&mut buffer);
    let (length, seen) = question_at.unwrap_or_else(|e| panic!("no question by way of {frontend}: {e}"));
    assert_eq!(buffer[..length], question);
    server.send_to(&question, seen).expect("the answer");
    let length = socket.recv(&mut buffer).unwrap_or_else(|e| panic!("no answer from {frontend}: {e}"));
    assert_eq!(buffer[..length], question);
    (socket, seen)
}

#[test]
fn a_pod_reaches_another_pod_through_its_service() {
    let mut node = Node::new();
    for (frontend, backend, client) in
        [(FRONTEND, "10.244.0.3:8080", "10.244.0.2"), (FRONTEND_V6, "[fd00:244::3]:8080", "fd00:244::2")]
    {
        let (listener, bound) = listen(&node.pods[1], backend);
        let (server, _) = udp(&node.pods[1], backend);
        node.serve([
            (key(frontend, Protocol::TCP), to(&[bound])),
            (key(frontend, Protocol::UDP), to(&[bound])),
        ]);
        let seen = talk(&node.pods[0], frontend, &listener);
        assert_eq!(seen.ip().to_string(), client, "the backend sees the client itself");
        ask(&node.pods[0], frontend, &server, 100);
    }
    assert_eq!(count(&node.datapath, Counter::FlowNew), 4);
    assert!(count(&node.datapath, Counter::FlowReverse) > 4);
    assert_eq!(drops(&node), 0);
}

#[test]
fn a_pod_reaches_a_backend_on_another_node() {
    let mut node = Node::new();
    for (frontend, backend) in [(FRONTEND, "10.244.1.2:8080"), (FRONTEND_V6, "[fd00:244:1::2]:8080")] {
        let (listener, bound) = listen(&node.beyond, backend);
        let (server, _) = udp(&node.beyond, backend);
        node.serve([
            (key(frontend, Protocol::TCP), to(&[bound])),
            (key(frontend, Protocol::UDP), to(&[bound])),
        ]);
        talk(&node.pods[0], frontend, &listener);
        ask(&node.pods[0], frontend, &server, 100);
    }
    assert_eq!(drops(&node), 0);
}

#[test]
fn a_pod_reaches_a_backend_in_its_hosts_network() {
    let mut node = Node::new();
    for (frontend, backend) in [(FRONTEND, "10.89.0.11:8080"), (FRONTEND_V6, "[fd00:89::11]:8080")] {
        let (listener, bound) = listen(&node.namespace, backend);
        let (server, _) = udp(&node.namespace, backend);
        node.serve([
            (key(frontend, Protocol::TCP), to(&[bound])),
            (key(frontend, Protocol::UDP), to(&[bound])),
        ]);
        talk(&node.pods[0], frontend, &listener);
        ask(&node.pods[0], frontend, &server, 100);
    }
    assert_eq!(drops(&node), 0);
}

#[test]
fn a_pod_reaches_itself_through_its_service() {
    let mut node = Node::new();
    for (frontend, backend) in [(FRONTEND, "10.244.0.2:8080"), (FRONTEND_V6, "[fd00:244::2]:8080")] {
        let (listener, bound) = listen(&node.pods[0], backend);
        let (server, _) = udp(&node.pods[0], backend);
        node.serve([
            (key(frontend, Protocol::TCP), to(&[bound])),
            (key(frontend, Protocol::UDP), to(&[bound])),
        ]);
        let service: SocketAddr = frontend.parse().expect("a frontend");
        assert_eq!(talk(&node.pods[0], frontend, &listener).ip(), service.ip());
        assert_eq!(ask(&node.pods[0], frontend, &server, 100).ip(), service.ip());
    }
    assert!(count(&node.datapath, Counter::Hairpin) >= 20);
    assert_eq!(drops(&node), 0);
}

#[test]
fn datagrams_in_fragments_pass_both_ways() {
    let mut node = Node::new();
    for (frontend, elsewhere, here, itself) in [
        (FRONTEND, "10.244.1.2:8080", "10.244.0.3:8080", "10.244.0.2:8080"),
        (FRONTEND_V6, "[fd00:244:1::2]:8080", "[fd00:244::3]:8080", "[fd00:244::2]:8080"),
    ] {
        for (host, backend) in [
            (node.beyond.without_cgroup(), elsewhere),
            (node.pods[1].without_cgroup(), here),
            (node.pods[0].without_cgroup(), itself),
        ] {
            let (server, bound) = udp(&host, backend);
            node.serve([(key(frontend, Protocol::UDP), to(&[bound]))]);
            ask(&node.pods[0], frontend, &server, 6000);
        }
    }
    assert_eq!(drops(&node), 0);
}

#[test]
fn older_kernels_clsact_serves_the_same_and_survives_its_agent() {
    let mut node = Node::with_mode(TcMode::Clsact);
    let (listener, bound) = listen(&node.pods[1], "10.244.0.3:8080");
    node.serve([(key(FRONTEND, Protocol::TCP), to(&[bound]))]);
    talk(&node.pods[0], FRONTEND, &listener);
    assert_eq!(filters(&node), 1);
    node.restart_agent();
    assert_eq!(filters(&node), 1);
    talk(&node.pods[0], FRONTEND, &listener);
    let pod = node.namespace.interface_index("pod0");
    let datapath = &mut node.datapath;
    node.namespace.run(|| datapath.pod_links().detach(pod)).expect("detaching");
    assert_eq!(filters(&node), 0);
    node.namespace.run(|| node.datapath.pod_links().detach(pod)).expect("detaching twice");
}

/// How many filters of clsact serve the first pod's packets.
fn filters(node: &Node) -> usize {
    let shown = node.namespace.output("tc", &["filter", "show", "dev", "pod0", "ingress"]);
    shown.matches("pod_ingress direct-action").count()
}

/// How many tcx links there are, and those of sockets.
fn links(node: &Node) -> usize {
    std::fs::read_dir(node.directory.path.join("links")).expect("the links").count()
}

#[test]
fn pods_that_an_earlier_agent_served_by_tcx_links_keep_them() {
    let mut node = Node::with_mode(TcMode::of_kernel());
    let (listener, bound) = listen(&node.pods[1], "10.244.0.3:8080");
    node.serve([(key(FRONTEND, Protocol::TCP), to(&[bound]))]);
    let client = connect(&node.pods[0], FRONTEND).expect("a connection");
    let (server, _) = listener.accept().expect("the connection at the backend");
    let before = (links(&node), filters(&node));
    node.restart_agent_with(TcModes::of_kernel());
    exchange(&client, &server);
    talk(&node.pods[0], FRONTEND, &listener);
    assert_eq!((links(&node), filters(&node)), before);
    // A pod that comes after it has filters.
    let pod = node.namespace.interface_index("pod0");
    let pod_links = node.datapath.pod_links();
    node.namespace.run(|| pod_links.detach(pod)).expect("detaching");
    node.namespace.run(|| pod_links.attach(pod)).expect("attaching anew");
    assert_eq!(filters(&node), 1);
    exchange(&client, &server);
}

#[test]
fn a_connection_outlives_the_agent_and_its_replacement() {
    let mut node = Node::new();
    let (listener, bound) = listen(&node.pods[1], "10.244.0.3:8080");
    node.serve([(key(FRONTEND, Protocol::TCP), to(&[bound]))]);
    let client = connect(&node.pods[0], FRONTEND).expect("a connection");
    let (server, _) = listener.accept().expect("the connection at the backend");
    exchange(&client, &server);
    node.restart_agent();
    exchange(&client, &server);
    talk(&node.pods[0], FRONTEND, &listener);
    // Attaching again made no second link: detached once, nothing serves the pod any more.
    let pod = node.namespace.interface_index("pod0");
    let datapath = &mut node.datapath;
    node.namespace.run(|| datapath.pod_links().detach(pod)).expect("detaching");
    let new_flows = count(&node.datapath, Counter::FlowNew);
    let (socket, _) = udp(&node.pods[0], "0.0.0.0:0");
    socket.send_to(b"x", FRONTEND).expect("a datagram");
    let address: SocketAddr = FRONTEND.parse().expect("an address");
    let stream = node.pods[0].run(|| TcpStream::connect_timeout(&address, NOTHING));
    assert!(stream.is_err(), "the pod is still served");
    assert_eq!(count(&node.datapath, Counter::FlowNew), new_flows);
}

#[test]
fn a_link_that_went_with_its_pod_is_cleared_and_its_index_can_serve_again() {
    let mut node = Node::with_mode(TcMode::of_kernel());
    // Filters of clsact are the interface's own, and go with it.
    let [all, rest] = match TcMode::of_kernel() {
        TcMode::Tcx => [6, 4],
        TcMode::Clsact => [0, 0],
    };
    assert_eq!(links(&node), all);
    let index = node.namespace.interface_index("pod1");
    node.namespace.ip("link del pod1");
    let path = node.pods[1].path();
    node.namespace.ip(&format!("link add pod1 index {index} type veth peer name eth0 netns {path}"));
    let datapath = &mut node.datapath;
    node.namespace.run(|| datapath.pod_links().attach(index)).expect("attaching to the index again");
    // The new link serves.
    node.namespace.ip("link set pod1 up");
    node.pods[1].ip("link set eth0 up");
    node.pods[1].ip("addr add 10.244.0.3/24 dev eth0");
    node.pods[1].ip("route add 10.96.0.0/16 via 10.244.0.1 onlink dev eth0");
    node.pods[1].ip("neigh add 10.244.0.1 lladdr 02:00:00:00:00:09 dev eth0 nud permanent");
    node.serve([(key(FRONTEND, Protocol::UDP), to(&[]))]);
    let (socket, _) = udp(&node.pods[1], "0.0.0.0:0");
    socket.send_to(b"x", FRONTEND).expect("a datagram");
    assert_eq!(count(&node.datapath, Counter::DropNoBackend), 1);
    node.namespace.ip("link del pod1");
    drop(super::open(&node.directory));
    assert_eq!(links(&node), rest, "links of the interface that is gone are unpinned at the next start");
}

#[test]
fn a_packet_to_a_service_without_backends_is_dropped_and_counted() {
    let mut node = Node::new();
    node.serve([(key(FRONTEND, Protocol::UDP), to(&[]))]);
    let (socket, _) = udp(&node.pods[0], "0.0.0.0:0");
    socket.send_to(b"x", FRONTEND).expect("a datagram");
    assert_eq!(count(&node.datapath, Counter::DropNoBackend), 1);
    assert_eq!(drops(&node), 1);
}

#[test]
fn one_source_port_to_two_services_with_one_backend_gives_two_flows() {
    let mut node = Node::new();
    const OTHER: &str = "10.96.0.8:80";
    let (server, bound) = udp(&node.pods[1], "10.244.0.3:8080");
    node.serve([(key(FRONTEND, Protocol::UDP), to(&[bound])), (key(OTHER, Protocol::UDP), to(&[bound]))]);
    let sockets = [FRONTEND, OTHER].map(|frontend| {
        let socket = node.pods[0].run(|| {
            let address: SocketAddr = "10.244.0.2:40000".parse().expect("an address");
            let socket = reusable(SockType::Datagram, address);
            UdpSocket::from(socket)
        });
        socket.set_read_timeout(Some(DEADLINE)).expect("a timeout");
        node.pods[0].run(|| socket.connect(frontend)).expect("connecting");
        socket.send(frontend.as_bytes()).expect("a datagram");
        socket
    });
    let mut buffer = [0; 32];
    let mut seen = Vec::new();
    for _ in &sockets {
        let (length, from) = server.recv_from(&mut buffer).expect("the datagram at the backend");
        server.send_to(&buffer[..length], from).expect("the answer");
        seen.push(from);
    }
    assert_eq!(seen[0].to_string(), "10.244.0.2:40000");
    assert_ne!(seen[0], seen[1], "the second flow got another port");
    for (socket, frontend) in sockets.iter().zip([FRONTEND, OTHER]) {
        let length = socket.recv(&mut buffer).expect("the answer at its own socket");
        assert_eq!(&buffer[..length], frontend.as_bytes());
    }
}

#[test]
fn datagrams_leave_a_backend_that_is_gone_and_a_connection_stays() {
    let mut node = Node::new();
    let (first, first_at) = udp(&node.pods[1], "10.244.0.3:5300");
    let (second, second_at) = udp(&node.beyond, "10.244.1.2:5300");
    let (listener, listens) = listen(&node.pods[1], "10.244.0.3:8080");
    node.serve([
        (key(FRONTEND, Protocol::UDP), to(&[first_at])),
        (key(FRONTEND, Protocol::TCP), to(&[listens])),
    ]);
    let (client, _) = udp(&node.pods[0], "0.0.0.0:0");
    node.pods[0].run(|| client.connect(FRONTEND)).expect("connecting");
    let stream = connect(&node.pods[0], FRONTEND).expect("a connection");
    let (accepted, _) = listener.accept().expect("the connection at the backend");
    client.send(b"one").expect("a datagram");
    assert_eq!(first.recv(&mut [0; 8]).expect("at the first backend"), 3);

    node.serve([(key(FRONTEND, Protocol::UDP), to(&[second_at])), (key(FRONTEND, Protocol::TCP), to(&[]))]);
    client.send(b"three").expect("a datagram");
    let mut buffer = [0; 8];
    let (length, from) = second.recv_from(&mut buffer).expect("at the second backend");
    assert_eq!(length, 5);
    second.send_to(b"back", from).expect("the answer");
    assert_eq!(client.recv(&mut buffer).expect("the answer at the client"), 4);
    exchange(&stream, &accepted);
}

#[test]
fn a_port_that_is_used_again_gets_a_backend_that_exists() {
    let mut node = Node::new();
    let (first, first_at) = listen(&node.pods[1], "10.244.0.3:8080");
    let (second, second_at) = listen(&node.beyond, "10.244.1.2:8080");
    let local: SocketAddr = "10.244.0.2:41000".parse().expect("an address");
    let connect_from = |node: &Node| {
        node.pods[0].run(|| {
            let frontend = SockaddrIn::new(10, 96, 0, 7, 80);
            // An earlier connection has the port until the other side has confirmed its end.
            crate::netns::eventually("the port is free", || {
                let socket = reusable(SockType::Stream, local);
                match nix::sys::socket::connect(socket.as_raw_fd(), &frontend) {
                    Err(nix::errno::Errno::EADDRNOTAVAIL) => None,
                    result => result.map(|()| Some(TcpStream::from(socket))).expect("a connection"),
                }
            })
        })
    };
    node.serve([(key(FRONTEND, Protocol::TCP), to(&[first_at]))]);
    let stream = connect_from(&node);
    let (accepted, _) = first.accept().expect("at the first backend");
    // The backend closes first, so that no TIME-WAIT holds the client's port.
    drop(accepted);
    let mut rest = Vec::new();
    (&stream).read_to_end(&mut rest).expect("the end");
    drop(stream);

    node.serve([(key(FRONTEND, Protocol::TCP), to(&[second_at]))]);
    let _stream = connect_from(&node);
    let (_, seen) = second.accept().expect("at the second backend");
    assert_eq!(seen, local);
}

#[test]
fn affinity_keeps_a_client_address_at_one_backend() {
    let mut node = Node::new();
    let (server, bound) = udp(&node.pods[1], "10.244.0.3:5300");
    let others: Vec<SocketAddr> = (0..7).map(|n| SocketAddr::new(bound.ip(), 5301 + n)).collect();
    let sockets: Vec<_> = others.iter().map(|at| udp(&node.pods[1], &at.to_string()).0).collect();
    let endpoints = others.iter().chain([&bound]).map(|at| endpoint(at.ip(), at.port(), true)).collect();
    let sticky = Service { affinity_seconds: 60, ..leading_to(endpoints) };
    node.serve([(key(FRONTEND, Protocol::UDP), sticky)]);
    for _ in 0..30 {
        let (client, _) = udp(&node.pods[0], "0.0.0.0:0");
        client.send_to(b"x", FRONTEND).expect("a datagram");
    }
    let received: Vec<usize> = sockets
        .iter()
        .chain([&server])
        .map(|socket| {
            socket.set_read_timeout(Some(NOTHING)).expect("a timeout");
            std::iter::from_fn(|| socket.recv(&mut [0; 8]).ok()).count()
        })
        .collect();
    assert_eq!(received.iter().filter(|count| **count > 0).count(), 1, "{received:?}");
    assert_eq!(received.iter().sum::<usize>(), 30);
}

#[test]
fn flows_are_listed_and_forgotten_when_they_are_over() {
    const SECOND: u64 = 1_000_000_000;
    let mut node = Node::new();
    let (listener, bound) = listen(&node.pods[1], "10.244.0.3:8080");
    node.serve([(key(FRONTEND, Protocol::TCP), to(&[bound]))]);
    let open = connect(&node.pods[0], FRONTEND).expect("a connection");
    let (accepted, open_at) = listener.accept().expect("the connection at the backend");
    let closed_at = talk(&node.pods[0], FRONTEND, &listener);

    let flows = Flows::open(&node.directory.path.join("maps")).expect("the flows");
    crate::netns::eventually("the second flow is closing", || {
        let entries = node.datapath.flows().expect("the flows");
        let of = |at: SocketAddr| entries.iter().find(|entry| entry.client == (at.ip(), at.port())).cloned();
        let (open, closed) = (of(open_at).expect("the open flow"), of(closed_at).expect("the closed flow"));
        assert!(open.answered && !open.closing);
        assert_eq!((open.backend.1, open.frontend.1), (8080, 80));
        closed.closing.then_some(())
    });
    assert_eq!(node.datapath.sweep_flows().expect("a sweep").deleted, 0, "nothing is due yet");
    let swept = flows.sweep(now_ns() + 200 * SECOND).expect("a later sweep");
    assert_eq!((swept.seen, swept.deleted), (4, 2), "the closed one is due");
    exchange(&open, &accepted);
    let swept = flows.sweep(now_ns() + 9000 * SECOND).expect("a much later sweep");
    assert_eq!((swept.seen, swept.deleted), (2, 2));
    assert!(node.datapath.flows().expect("the flows").is_empty());
}

pub fn drops(node: &Node) -> u64 {
    let counters = node.datapath.counters().expect("the counters");
    counters.iter().filter(|(counter, _)| counter.is_drop()).map(|(_, count)| count).sum()
}

/// A socket bound to an address that others may be bound to too.
fn reusable(kind: SockType, address: SocketAddr) -> std::os::fd::OwnedFd {
    let SocketAddr::V4(address) = address else { panic!("{address} is not IPv4") };
    let socket =
        nix::sys::socket::socket(AddressFamily::Inet, kind, SockFlag::SOCK_CLOEXEC, None).expect("a socket");
    setsockopt(&socket, sockopt::ReuseAddr, &true).expect("reusable");
    bind(socket.as_raw_fd(), &SockaddrIn::from(address)).unwrap_or_else(|e| panic!("{address}: {e}"));
    socket
}
