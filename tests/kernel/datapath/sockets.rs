//! The socket load balancer: real sockets in a test cgroup, backends on addresses of the namespace's loopback.

use std::{
    collections::BTreeSet,
    io::{self, Read, Write},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::AsRawFd,
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use dataplane::{
    datapath::{Config, Datapath},
    node::NodeConfig,
    programs::LogLevel,
    services::ServiceMaps,
};
use ebpf_common::{
    Counter, FrontendKey, Protocol,
    desired::{Clients, Endpoint, Service},
};

use super::{chain, count, endpoint, key, leading_to, node_port, open, service, services};
use crate::netns::{BpfDir, Cgroup, NetNs};

const FRONTEND: &str = "10.96.0.7:80";
const FRONTEND_V6: &str = "[fd00:96::7]:80";
const DEADLINE: Duration = Duration::from_secs(5);

/// A host whose processes are balanced, with backends 10.244.0.1 to .9 and fd00:244::1 to ::9 on its loopback.
pub struct Host {
    pub namespace: NetNs,
    pub datapath: Datapath,
    pub directory: BpfDir,
    pub cgroup: Cgroup,
}

impl Host {
    pub fn new() -> Self {
        Self::with(Cgroup::new(), BpfDir::new(), &Config::new(""))
    }

    fn with(cgroup: Cgroup, directory: BpfDir, config: &Config) -> Self {
        let config = Config { bpf_dir: directory.path.clone(), ..config.clone() };
        let mut datapath = Datapath::open(&config).unwrap_or_else(|error| panic!("{}", chain(&error)));
        datapath.attach_cgroup(&cgroup.path).expect("attaching to the cgroup");
        let namespace = NetNs::in_cgroup(&cgroup);
        for host in 1..10 {
            namespace.ip(&format!("addr add 10.244.0.{host}/32 dev lo"));
            namespace.ip(&format!("addr add fd00:244::{host}/128 dev lo nodad"));
        }
        let node = namespace.run(|| NodeConfig::of_namespace(&[])).expect("the node's addresses");
        datapath.set_node(&node).expect("telling them");
        Self { namespace, datapath, directory, cgroup }
    }

    fn serve(&mut self, frontend: &str, protocol: Protocol, backends: &[SocketAddr]) {
        let wanted = services([(key(frontend, protocol), service(backends))]);
        self.datapath.set_services(wanted).expect("setting the services");
    }
}

/// A TCP server on `address` that sends its own address to each client, until the namespace's work is done.
fn tcp_server(address: &str) -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind(address).unwrap_or_else(|e| panic!("{address}: {e}"));
    let bound = listener.local_addr().expect("its address");
    (listener, bound)
}

pub fn udp(address: &str) -> (UdpSocket, SocketAddr) {
    let socket = UdpSocket::bind(address).unwrap_or_else(|e| panic!("{address}: {e}"));
    socket.set_read_timeout(Some(DEADLINE)).expect("a timeout");
    let bound = socket.local_addr().expect("its address");
    (socket, bound)
}

fn connect(address: &str) -> io::Result<TcpStream> {
    TcpStream::connect_timeout(&address.parse().expect("an address"), DEADLINE)
}

#[test]
fn connect_reaches_a_backend_and_getpeername_shows_the_service() {
    let mut host = Host::new();
    for (frontend, backend) in [(FRONTEND, "10.244.0.1:0"), (FRONTEND_V6, "[fd00:244::1]:0")] {
        let (listener, bound) = host.namespace.run(|| tcp_server(backend));
        host.serve(frontend, Protocol::TCP, &[bound]);
        host.namespace.run(|| {
            let client = connect(frontend).expect("a connection to the service");
            assert_eq!(client.peer_addr().expect("its peer").to_string(), frontend);
            let (server, peer) = listener.accept().expect("the connection at the backend");
            assert_eq!(server.local_addr().expect("its address"), bound);
            // The backend sees the client itself.
            assert_eq!(peer, client.local_addr().expect("the client's address"));
            assert_eq!(server.peer_addr().expect("its peer"), peer);
        });
    }
    assert_eq!(count(&host.datapath, Counter::SocketConnect), 2);
}

#[test]
fn a_v6_socket_reaches_a_v4_service_by_its_mapped_address() {
    let mut host = Host::new();
    let (listener, bound) = host.namespace.run(|| tcp_server("10.244.0.1:0"));
    host.serve(FRONTEND, Protocol::TCP, &[bound]);
    let (backend, backend_at) = host.namespace.run(|| udp("10.244.0.2:0"));
    let both = services([
        (key(FRONTEND, Protocol::TCP), service(&[bound])),
        (key(FRONTEND, Protocol::UDP), service(&[backend_at])),
    ]);
    host.datapath.set_services(both).expect("setting the services");
    host.namespace.run(|| {
        let client = connect("[::ffff:10.96.0.7]:80").expect("a connection to the service");
        // std shows a mapped peer as it is.
        assert_eq!(client.peer_addr().expect("its peer").to_string(), "[::ffff:10.96.0.7]:80");
        listener.accept().expect("the connection at the backend");

        let (client, _) = udp("[::]:0");
        client.send_to(b"ask", "[::ffff:10.96.0.7]:80").expect("a datagram to the service");
        let mut buffer = [0; 16];
        let (length, from) = backend.recv_from(&mut buffer).expect("the datagram at the backend");
        backend.send_to(&buffer[..length], from).expect("the answer");
        let (_, from) = client.recv_from(&mut buffer).expect("the answer at the client");
        assert_eq!(from.to_string(), "[::ffff:10.96.0.7]:80");
    });
}

#[test]
fn unconnected_datagrams_come_back_from_the_service() {
    let mut host = Host::new();
    for (frontend, backend) in [(FRONTEND, "10.244.0.1:0"), (FRONTEND_V6, "[fd00:244::1]:0")] {
        let (server, bound) = host.namespace.run(|| udp(backend));
        host.serve(frontend, Protocol::UDP, &[bound]);
        host.namespace.run(|| {
            let any = if bound.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
            let (client, _) = udp(any);
            client.send_to(b"ask", frontend).expect("a datagram to the service");
            let mut buffer = [0; 16];
            let (length, from) = server.recv_from(&mut buffer).expect("the datagram at the backend");
            server.send_to(&buffer[..length], from).expect("the answer");
            let (_, from) = client.recv_from(&mut buffer).expect("the answer at the client");
            assert_eq!(from.to_string(), frontend);
        });
    }
    assert_eq!(count(&host.datapath, Counter::SocketSend), 2);
    assert_eq!(count(&host.datapath, Counter::SocketReverse), 2);
}

#[test]
fn a_connected_datagram_socket_talks_to_one_backend_and_believes_in_the_service() {
    let mut host = Host::new();
    let (server, bound) = host.namespace.run(|| udp("10.244.0.1:0"));
    host.serve(FRONTEND, Protocol::UDP, &[bound]);
    host.namespace.run(|| {
        let (client, _) = udp("0.0.0.0:0");
        client.connect(FRONTEND).expect("connecting to the service");
        assert_eq!(client.peer_addr().expect("its peer").to_string(), FRONTEND);
        client.send(b"ask").expect("a datagram");
        let mut buffer = [0; 16];
        let (length, from) = server.recv_from(&mut buffer).expect("the datagram at the backend");
        server.send_to(&buffer[..length], from).expect("the answer");
        // recvfrom on a connected socket names the sender too.
        let (_, from) = client.recv_from(&mut buffer).expect("the answer at the client");
        assert_eq!(from.to_string(), FRONTEND);
    });
}

#[test]
fn an_unconnected_socket_keeps_its_backend_until_that_is_gone() {
    let mut host = Host::new();
    let servers: Vec<_> =
        host.namespace.run(|| (1..=4).map(|n| udp(&format!("10.244.0.{n}:5300"))).collect());
    let backends: Vec<SocketAddr> = servers.iter().map(|(_, bound)| *bound).collect();
    host.serve(FRONTEND, Protocol::UDP, &backends);

    let (client, _) = host.namespace.run(|| udp("0.0.0.0:0"));
    let receive = |expected: usize| {
        // The sockets of all backends are looked at; only the chosen one has something.
        let deadline = Instant::now() + DEADLINE;
        let mut found = Vec::new();
        while found.len() < expected {
            assert!(Instant::now() < deadline, "only {} of {expected} datagrams arrived", found.len());
            for (server, bound) in &servers {
                server.set_nonblocking(true).expect("non-blocking");
                if server.recv_from(&mut [0; 16]).is_ok() {
                    found.push(*bound);
                }
            }
        }
        found.into_iter().collect::<BTreeSet<SocketAddr>>()
    };
    for _ in 0..20 {
        client.send_to(b"x", FRONTEND).expect("a datagram to the service");
    }
    let first = receive(20);
    assert_eq!(first.len(), 1, "datagrams of one socket went to {first:?}");

    let rest: Vec<SocketAddr> = backends.iter().filter(|backend| !first.contains(backend)).copied().collect();
    host.serve(FRONTEND, Protocol::UDP, &rest);
    for _ in 0..20 {
        client.send_to(b"x", FRONTEND).expect("a datagram to the service");
    }
    let second = receive(20);
    assert_eq!(second.len(), 1);
    assert!(first.is_disjoint(&second));
}

#[test]
fn connections_spread_over_all_backends() {
    let mut host = Host::new();
    let servers: Vec<_> =
        host.namespace.run(|| (1..=6).map(|n| tcp_server(&format!("10.244.0.{n}:8080"))).collect());
    let backends: Vec<SocketAddr> = servers.iter().map(|(_, bound)| *bound).collect();
    host.serve(FRONTEND, Protocol::TCP, &backends);
    host.namespace.run(|| {
        let _clients: Vec<TcpStream> = (0..300).map(|_| connect(FRONTEND).expect("a connection")).collect();
        for (listener, bound) in &servers {
            listener.set_nonblocking(true).expect("non-blocking");
            let accepted = std::iter::from_fn(|| listener.accept().ok()).count();
            // 300 fair choices among 6 leave this range once in some 10^9 runs.
            assert!((10..=100).contains(&accepted), "{bound} got {accepted} of 300");
        }
    });
}

/// What connects to a node port by loopback: the address, and the one that a backend has.
const LOOPBACKS: [(&str, &str); 5] = [
    ("127.0.0.1:30080", "10.244.0.1:0"),
    ("127.1.2.3:30080", "10.244.0.1:0"),
    ("0.0.0.0:30080", "10.244.0.1:0"),
    ("[::ffff:127.0.0.1]:30080", "10.244.0.1:0"),
    ("[::1]:30080", "[fd00:244::1]:0"),
];

/// Node port 30080 of the backend's family.
fn any_address(backend: SocketAddr, protocol: Protocol) -> FrontendKey {
    node_port(if backend.is_ipv4() { "0.0.0.0:30080" } else { "[::]:30080" }, protocol)
}

#[test]
fn a_process_of_the_node_reaches_a_node_port_by_every_address_of_the_node_and_by_loopback() {
    let mut host = Host::new();
    let by_address = [
        ("10.244.0.7:30080", "10.244.0.1:0"),
        ("[::ffff:10.244.0.8]:30080", "10.244.0.1:0"),
        ("[fd00:244::7]:30080", "[fd00:244::1]:0"),
    ];
    for (frontend, backend) in by_address.into_iter().chain(LOOPBACKS) {
        let (listener, bound) = host.namespace.run(|| tcp_server(backend));
        let (server, server_at) = host.namespace.run(|| udp(backend));
        let wanted = |bound, protocol| (any_address(bound, protocol), service(&[bound]));
        let both = services([wanted(bound, Protocol::TCP), wanted(server_at, Protocol::UDP)]);
        host.datapath.set_services(both).expect("setting the services");
        host.namespace.run(|| {
            let client = connect(frontend).unwrap_or_else(|e| panic!("{frontend}: {e}"));
            assert_eq!(client.peer_addr().expect("its peer").to_string(), frontend);
            listener.accept().expect("the connection at the backend");
            ask(frontend, &server);
        });
    }
}

/// An unconnected socket's datagram, and the answer that seems to come from where the datagram was sent.
fn ask(frontend: &str, server: &UdpSocket) {
    let (client, _) = udp(if frontend.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" });
    client.send_to(b"ask", frontend).unwrap_or_else(|e| panic!("{frontend}: {e}"));
    let mut buffer = [0; 16];
    let (length, from) = server.recv_from(&mut buffer).expect("the datagram at the backend");
    server.send_to(&buffer[..length], from).expect("the answer");
    let (_, from) = client.recv_from(&mut buffer).expect("the answer at the client");
    assert_eq!(from.to_string(), frontend);
}

#[test]
fn loopback_in_a_pod_is_the_pods_own() {
    let mut host = Host::new();
    let pod = NetNs::in_cgroup(&host.cgroup);
    for (frontend, backend) in LOOPBACKS {
        let backend: SocketAddr = backend.replace(":0", ":1").parse().expect("an address");
        let any = any_address(backend, Protocol::TCP);
        host.datapath.set_services(services([(any, service(&[backend]))])).expect("setting the services");
        let listen = if frontend.starts_with("[::1]") { "[::1]:30080" } else { "0.0.0.0:30080" };
        pod.run(|| {
            let (listener, _) = tcp_server(listen);
            connect(frontend).unwrap_or_else(|e| panic!("{frontend}: {e}"));
            listener.accept().expect("the pod's own connection");
        });
    }
    assert_eq!(count(&host.datapath, Counter::SocketConnect), 0);
}

#[test]
fn a_port_open_at_a_loopback_address_only_is_the_nodes_own() {
    let mut host = Host::new();
    let pod = NetNs::in_cgroup(&host.cgroup);
    let (listener, bound) = host.namespace.run(|| tcp_server("10.244.0.1:0"));
    let wanted = services([(key("127.0.0.1:8080", Protocol::TCP), service(&[bound]))]);
    host.datapath.set_services(wanted).expect("setting the services");
    host.namespace.run(|| connect("127.0.0.1:8080")).expect("a connection of the node's own");
    listener.accept().expect("the connection at the backend");
    for (namespace, at) in
        [(&host.namespace, "127.0.0.2:8080"), (&host.namespace, "10.244.0.7:8080"), (&pod, "127.0.0.1:8080")]
    {
        let error = namespace.run(|| connect(at)).expect_err(at);
        assert_eq!(error.raw_os_error(), Some(libc::ECONNREFUSED), "{at}: {error}");
    }
}

#[test]
fn a_pods_socket_reaches_a_node_port_by_the_nodes_address() {
    let mut host = Host::new();
    let pod = NetNs::in_cgroup(&host.cgroup);
    // The backend is in the pod too: no packet has to leave it.
    pod.ip("addr add 10.244.0.20/32 dev lo");
    let (listener, bound) = pod.run(|| tcp_server("10.244.0.20:0"));
    let any = any_address(bound, Protocol::TCP);
    host.datapath.set_services(services([(any, service(&[bound]))])).expect("setting the services");
    pod.run(|| connect("10.244.0.7:30080")).expect("a connection by the node's address");
    listener.accept().expect("the connection at the backend");
    let elsewhere = pod.run(|| connect("10.244.0.99:30080")).expect_err("no address of the node");
    assert_eq!(elsewhere.raw_os_error(), Some(libc::ENETUNREACH), "{elsewhere}");
}

#[test]
fn an_address_with_a_service_of_its_own_goes_before_the_node_port() {
    let mut host = Host::new();
    let (own, own_at) = host.namespace.run(|| tcp_server("10.244.0.1:0"));
    let (_any, any_at) = host.namespace.run(|| tcp_server("10.244.0.2:0"));
    let wanted = services([
        (key("10.244.0.7:30080", Protocol::TCP), service(&[own_at])),
        (node_port("0.0.0.0:30080", Protocol::TCP), service(&[any_at])),
    ]);
    host.datapath.set_services(wanted).expect("setting the services");
    host.namespace.run(|| connect("10.244.0.7:30080")).expect("a connection");
    own.accept().expect("the connection at the address's own backend");
}

#[test]
fn a_socket_gets_only_backends_for_clients_of_the_node() {
    let mut host = Host::new();
    let servers: Vec<_> =
        host.namespace.run(|| (1..=3).map(|n| tcp_server(&format!("10.244.0.{n}:8080"))).collect());
    let endpoints = servers.iter().zip([Clients::Beyond, Clients::All, Clients::Node]);
    let endpoints = endpoints
        .map(|((_, bound), clients)| Endpoint { clients, ..endpoint(bound.ip(), bound.port(), true) })
        .collect();
    let wanted = services([(key(FRONTEND, Protocol::TCP), leading_to(endpoints))]);
    host.datapath.set_services(wanted).expect("setting the services");
    let accepted: Vec<usize> = host.namespace.run(|| {
        let _clients: Vec<TcpStream> = (0..60).map(|_| connect(FRONTEND).expect("a connection")).collect();
        let count = |(listener, _): &(TcpListener, SocketAddr)| {
            listener.set_nonblocking(true).expect("non-blocking");
            std::iter::from_fn(|| listener.accept().ok()).count()
        };
        servers.iter().map(count).collect()
    });
    assert_eq!((accepted[0], accepted[1] + accepted[2]), (0, 60), "{accepted:?}");
    assert!(accepted[1] > 0 && accepted[2] > 0, "{accepted:?}");
}

#[test]
fn a_service_without_backends_refuses_at_once() {
    let mut host = Host::new();
    for frontend in [FRONTEND, FRONTEND_V6] {
        host.serve(frontend, Protocol::TCP, &[]);
        let error = host.namespace.run(|| connect(frontend)).expect_err("nothing to connect to");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused, "{error}");
        host.serve(frontend, Protocol::UDP, &[]);
        let error = host.namespace.run(|| {
            let any = if frontend == FRONTEND { "0.0.0.0:0" } else { "[::]:0" };
            UdpSocket::bind(any).expect("a socket").send_to(b"x", frontend)
        });
        assert_eq!(error.expect_err("nowhere to send to").kind(), io::ErrorKind::ConnectionRefused);
    }
    assert_eq!(count(&host.datapath, Counter::SocketRefused), 4);
}

#[test]
fn a_port_that_a_service_has_not_refuses_at_once_and_an_address_of_no_service_does_not() {
    let mut host = Host::new();
    let node = host.namespace.run(super::node::node_config);
    host.datapath.set_node(&node).expect("the range of Services");
    let backend = "10.244.0.1:1".parse().expect("an address");
    for (frontend, other, nobodys) in
        [(FRONTEND, "10.96.0.7:81", "10.96.0.8:80"), (FRONTEND_V6, "[fd00:96::7]:81", "[fd00:96::8]:80")]
    {
        host.serve(frontend, Protocol::TCP, &[backend]);
        let error = host.namespace.run(|| connect(other)).expect_err("nobody there");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused, "{other}: {error}");
        let error = host.namespace.run(|| connect(nobodys)).expect_err("no route");
        assert_eq!(error.raw_os_error(), Some(libc::ENETUNREACH), "{nobodys}: {error}");
    }
    assert_eq!(count(&host.datapath, Counter::SocketRefused), 2);
    assert_eq!(count(&host.datapath, Counter::Unallocated), 2);
}

#[test]
fn what_is_no_service_is_left_alone() {
    let mut host = Host::new();
    let (_listener, bound) = host.namespace.run(|| tcp_server("10.244.0.1:0"));
    host.serve(FRONTEND, Protocol::TCP, &["10.244.0.9:1".parse().expect("an address")]);
    host.namespace.run(|| {
        let client = connect(&bound.to_string()).expect("a connection to the address itself");
        assert_eq!(client.peer_addr().expect("its peer"), bound);
        // Same address and port, other protocol.
        let sent = UdpSocket::bind("0.0.0.0:0").expect("a socket").send_to(b"x", FRONTEND);
        assert_eq!(sent.expect_err("no route").raw_os_error(), Some(libc::ENETUNREACH));
    });
    assert_eq!(count(&host.datapath, Counter::SocketConnect), 0);
}

#[test]
fn processes_outside_the_cgroup_are_not_touched() {
    let mut host = Host::new();
    let (_listener, bound) = host.namespace.run(|| tcp_server("10.244.0.1:0"));
    host.serve(FRONTEND, Protocol::TCP, &[bound]);
    let error = host.namespace.without_cgroup().run(|| connect(FRONTEND)).expect_err("no service there");
    assert_eq!(error.raw_os_error(), Some(libc::ENETUNREACH));
}

#[test]
fn affinity_holds_for_all_sockets_of_a_namespace() {
    let mut host = Host::new();
    let servers: Vec<_> =
        host.namespace.run(|| (1..=6).map(|n| tcp_server(&format!("10.244.0.{n}:8080"))).collect());
    let endpoints = servers.iter().map(|(_, bound)| endpoint(bound.ip(), bound.port(), true)).collect();
    let sticky = Service { affinity_seconds: 60, ..leading_to(endpoints) };
    host.datapath
        .set_services(services([(key(FRONTEND, Protocol::TCP), sticky)]))
        .expect("setting the services");
    host.namespace.run(|| {
        let _clients: Vec<TcpStream> = (0..50).map(|_| connect(FRONTEND).expect("a connection")).collect();
        let accepted: Vec<usize> = servers
            .iter()
            .map(|(listener, _)| {
                listener.set_nonblocking(true).expect("non-blocking");
                std::iter::from_fn(|| listener.accept().ok()).count()
            })
            .collect();
        let mut sorted = accepted.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, [0, 0, 0, 0, 0, 50], "{accepted:?}");
    });
}

#[test]
fn a_new_agent_keeps_ids_services_and_flows() {
    let mut host = Host::new();
    let (listener, bound) = host.namespace.run(|| tcp_server("10.244.0.1:0"));
    host.serve(FRONTEND, Protocol::TCP, &[bound]);
    let before = ServiceMaps::dump(&host.directory.path.join("maps")).expect("the maps");
    let client = host.namespace.run(|| connect(FRONTEND).expect("a connection"));
    let (mut server, _) = listener.accept().expect("the connection at the backend");

    drop(host.datapath);
    // Nobody runs: the pinned programs serve.
    host.namespace.run(|| connect(FRONTEND).expect("a connection while no agent runs"));
    let mut datapath = open(&host.directory);
    datapath.attach_cgroup(&host.cgroup.path).expect("attaching again");
    // A new agent that is not in sync yet deletes nothing.
    host.namespace.run(|| connect(FRONTEND).expect("a connection while the agent starts"));
    let wanted = services([(key(FRONTEND, Protocol::TCP), service(&[bound]))]);
    let applied = datapath.set_services(wanted).expect("setting the services");
    assert_eq!((applied.written, applied.deleted), (0, 0), "the maps held all of it");
    assert_eq!(ServiceMaps::dump(&host.directory.path.join("maps")).expect("the maps"), before);

    server.write_all(b"still here").expect("writing to the old connection");
    let mut text = [0; 10];
    (&client).read_exact(&mut text).expect("reading from the old connection");
    assert_eq!(&text, b"still here");
    assert_eq!(host.namespace.run(|| client.peer_addr()).expect("its peer").to_string(), FRONTEND);
    let _ = client.as_raw_fd();
}

#[test]
fn ids_are_not_given_out_twice() {
    let mut host = Host::new();
    let ids = |datapath: &Datapath| -> Vec<(u32, u32)> {
        let entries = datapath.services();
        entries.iter().map(|entry| (entry.service_id, entry.backends[0].backend_id)).collect()
    };
    let backend = |n: u8| SocketAddr::new(IpAddr::from([10, 244, 0, n]), 80);
    host.serve(FRONTEND, Protocol::TCP, &[backend(1)]);
    let first = ids(&host.datapath);
    host.datapath.set_services(services([])).expect("no services");
    // Also over a restart with empty maps.
    drop(host.datapath);
    host.datapath = open(&host.directory);
    host.serve(FRONTEND, Protocol::TCP, &[backend(2)]);
    let second = ids(&host.datapath);
    assert!(second[0].0 > first[0].0 && second[0].1 > first[0].1, "{first:?} then {second:?}");
}

#[test]
fn no_connection_fails_while_backends_come_and_go() {
    const ROUNDS: u32 = 2000;
    const CONNECTIONS: u32 = 300;
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut host = Host::new();
    let servers: Vec<_> =
        host.namespace.run(|| (1..=8).map(|n| tcp_server(&format!("10.244.0.{n}:8080"))).collect());
    let backends: Vec<SocketAddr> = servers.iter().map(|(_, bound)| *bound).collect();
    host.serve(FRONTEND, Protocol::TCP, &backends);
    let (done, connected) = (AtomicBool::new(false), AtomicU32::new(0));
    let Host { namespace, datapath, .. } = &mut host;
    thread::scope(|scope| {
        for (listener, _) in &servers {
            let done = &done;
            scope.spawn(move || {
                listener.set_nonblocking(true).expect("non-blocking");
                while !done.load(Ordering::Relaxed) {
                    while listener.accept().is_ok() {}
                    thread::yield_now();
                }
            });
        }
        let client = scope.spawn(|| {
            namespace.run(|| {
                while !done.load(Ordering::Relaxed) {
                    connect(FRONTEND).expect("a connection in the midst of changes");
                    connected.fetch_add(1, Ordering::Relaxed);
                }
            });
        });
        // Both sides get their turn, however busy the machine is.
        for round in 0.. {
            let enough = round >= ROUNDS && connected.load(Ordering::Relaxed) >= CONNECTIONS;
            if enough || client.is_finished() || Instant::now() > deadline {
                break;
            }
            // Sets that share some backends, share none, grow and shrink.
            let some: Vec<SocketAddr> = (0..8)
                .filter(|n| (round.wrapping_mul(2_654_435_761) >> (8 + n)) & 1 == 1 || round % 8 == *n)
                .map(|n| backends[n as usize])
                .collect();
            let wanted = services([(key(FRONTEND, Protocol::TCP), service(&some))]);
            datapath.set_services(wanted).expect("setting the services");
        }
        done.store(true, Ordering::Relaxed);
        client.join().expect("no connection failed");
    });
    let connected = connected.into_inner();
    assert!(connected >= CONNECTIONS, "only {connected} connections were made meanwhile");
}

/// Keeps what is logged.
#[derive(Clone, Default)]
struct Lines(std::sync::Arc<std::sync::Mutex<Vec<String>>>);

impl log::Log for Lines {
    fn enabled(&self, _metadata: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        self.0.lock().expect("the lines").push(record.args().to_string());
    }

    fn flush(&self) {}
}

#[test]
fn the_log_names_what_was_connected_and_what_was_refused() {
    let directory = BpfDir::new();
    let config = Config { log_level: LogLevel::Debug, ..Config::new(&directory.path) };
    let mut host = Host::with(Cgroup::new(), directory, &config);
    let (_listener, bound) = host.namespace.run(|| tcp_server("10.244.0.1:8080"));
    let wanted = services([
        (key(FRONTEND, Protocol::TCP), service(&[bound])),
        (key(FRONTEND_V6, Protocol::TCP), service(&[])),
    ]);
    host.datapath.set_services(wanted).expect("setting the services");

    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_io().build();
    let runtime = runtime.expect("a runtime");
    let lines = Lines::default();
    runtime.block_on(async { host.datapath.spawn_log_reader(lines.clone()) }).expect("reading the log");
    host.namespace.run(|| {
        connect(FRONTEND).expect("a connection");
        connect(FRONTEND_V6).expect_err("no backend");
    });
    for wanted in
        ["connect ::ffff:10.96.0.7:80 -> ::ffff:10.244.0.1:8080", "refused fd00:96::7:80: no backend"]
    {
        crate::netns::eventually(wanted, || {
            lines.0.lock().expect("the lines").iter().any(|l| l == wanted).then_some(())
        });
    }
}

#[test]
fn a_cgroup_that_was_made_anew_is_served_by_the_next_agent() {
    let Host { datapath, directory, cgroup, .. } = Host::new();
    drop(datapath);
    let name = cgroup.path.clone();
    drop(cgroup);
    let mut host = Host::with(Cgroup::at(&name), directory, &Config::new(""));
    let (_listener, bound) = host.namespace.run(|| tcp_server("10.244.0.1:0"));
    host.serve(FRONTEND, Protocol::TCP, &[bound]);
    host.namespace.run(|| connect(FRONTEND)).expect("a connection");
}
