//! Associations between raw sockets through veth and the kernel's own routing, each packet with its checksum verified.

use std::{
    io::{self, ErrorKind},
    net::{IpAddr, SocketAddr, UdpSocket},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    time::Duration,
};

use dataplane::programs::TcMode;
use ebpf_common::{
    Counter, FORWARD_PORTS, FrontendKey, Protocol,
    desired::{Clients, Endpoint, Service, SourceRange},
    sctp::{self, CHECKSUM_AT, HEADER_BYTES},
};

use super::{
    COOKIE_ACK, COOKIE_ECHO, INIT, INIT_ACK, SHUTDOWN, SHUTDOWN_ACK, SHUTDOWN_COMPLETE, TAG_OF_BACKEND,
    TAG_OF_CLIENT, chunk, data, init_chunk, packet,
};
use crate::{
    datapath::{
        count, endpoint, key, leading_to,
        node::{Node, to},
        node_port,
        packets::drops,
        tc_modes,
    },
    netns::NetNs,
};

const DEADLINE: Duration = Duration::from_secs(5);
const NOTHING: Duration = Duration::from_millis(200);
const CLIENT_PORT: u16 = 40000;

/// A raw socket that speaks for one port of an address.
struct Peer {
    socket: UdpSocket,
    port: u16,
    is_v4: bool,
}

impl Peer {
    fn new(host: &NetNs, at: SocketAddr) -> Self {
        let family = if at.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
        let socket = host.run(|| {
            // SAFETY: no pointers; what is returned is a descriptor or an error.
            let number =
                unsafe { libc::socket(family, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::IPPROTO_SCTP) };
            assert!(number >= 0, "a raw socket: {}", io::Error::last_os_error());
            // SAFETY: a descriptor of ours that nobody else has.
            UdpSocket::from(unsafe { OwnedFd::from_raw_fd(number) })
        });
        let bound = nix::sys::socket::SockaddrStorage::from(SocketAddr::new(at.ip(), 0));
        host.run(|| nix::sys::socket::bind(socket.as_raw_fd(), &bound))
            .unwrap_or_else(|e| panic!("{at}: {e}"));
        socket.set_read_timeout(Some(DEADLINE)).expect("a timeout");
        Self { socket, port: at.port(), is_v4: at.is_ipv4() }
    }

    fn send(&self, to: SocketAddr, tag: u32, chunks: &[u8]) {
        let packet = packet((self.port, to.port()), tag, chunks);
        // A raw socket's address has no port.
        self.socket.send_to(&packet, (to.ip(), 0)).unwrap_or_else(|e| panic!("to {to}: {e}"));
    }

    /// Who sent the next packet to this port, and its chunks. Its checksum is right.
    fn receive(&self) -> io::Result<(SocketAddr, Vec<u8>)> {
        let mut buffer = [0; 4096];
        loop {
            let (length, from) = match self.socket.recv_from(&mut buffer) {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                received => received?,
            };
            // IPv4 comes with its header.
            let header = if self.is_v4 { usize::from(buffer[0] & 0x0f) * 4 } else { 0 };
            let mut packet = buffer[header..length].to_vec();
            if u16::from_be_bytes([packet[2], packet[3]]) != self.port {
                continue;
            }
            let field = CHECKSUM_AT..CHECKSUM_AT + 4;
            let sum = packet[field.clone()].to_vec();
            packet[field].fill(0);
            assert_eq!(sum, sctp::checksum(&packet).to_le_bytes(), "the checksum from {from}");
            let port = u16::from_be_bytes([packet[0], packet[1]]);
            return Ok((SocketAddr::new(from.ip(), port), packet.split_off(HEADER_BYTES)));
        }
    }

    fn hears(&self, wanted: &[u8]) -> SocketAddr {
        let (from, chunks) = self.receive().unwrap_or_else(|e| panic!("waiting for {wanted:?}: {e}"));
        assert_eq!(chunks, wanted, "from {from}");
        from
    }
}

/// Begins an association, exchanges data and ends it. Returns who the backend saw.
fn associate(client: &Peer, frontend: SocketAddr, backend: &Peer) -> SocketAddr {
    let begins = init_chunk(INIT, TAG_OF_CLIENT, b"");
    client.send(frontend, 0, &begins);
    let seen = backend.hears(&begins);
    let asks = |tag: u32, chunks: &[u8]| {
        client.send(frontend, tag, chunks);
        assert_eq!(backend.hears(chunks), seen);
    };
    let answers = |chunks: &[u8]| {
        backend.send(seen, TAG_OF_CLIENT, chunks);
        assert_eq!(client.hears(chunks), frontend);
    };
    answers(&init_chunk(INIT_ACK, TAG_OF_BACKEND, b"\0\x07\0\x08cook"));
    asks(TAG_OF_BACKEND, &[chunk(COOKIE_ECHO, 0, b"cook"), data(b"early")].concat());
    answers(&chunk(COOKIE_ACK, 0, b""));
    for payload in [b"odd".as_slice(), &[0xa5; 1400]] {
        asks(TAG_OF_BACKEND, &data(payload));
        answers(&data(payload));
    }
    asks(TAG_OF_BACKEND, &chunk(SHUTDOWN, 0, &[0; 4]));
    answers(&chunk(SHUTDOWN_ACK, 0, b""));
    asks(TAG_OF_BACKEND, &chunk(SHUTDOWN_COMPLETE, 0, b""));
    seen
}

/// One address family: a cluster IP, a node port, an address of a load balancer, backends, and the node.
struct Family {
    frontends: [&'static str; 3],
    here: &'static str,
    elsewhere: &'static str,
    itself: &'static str,
    on_host: &'static str,
    node: &'static str,
    beyond: &'static str,
}

const FAMILIES: [Family; 2] = [
    Family {
        frontends: ["10.96.0.7:3868", "10.89.0.11:30868", "192.0.2.10:3868"],
        here: "10.244.0.3:38680",
        elsewhere: "10.244.1.2:38680",
        itself: "10.244.0.2:38680",
        on_host: "10.89.0.11:38680",
        node: "10.89.0.11",
        beyond: "10.89.0.12:38680",
    },
    Family {
        frontends: ["[fd00:96::7]:3868", "[fd00:89::11]:30868", "[2001:db8::10]:3868"],
        here: "[fd00:244::3]:38680",
        elsewhere: "[fd00:244:1::2]:38680",
        itself: "[fd00:244::2]:38680",
        on_host: "[fd00:89::11]:38680",
        node: "fd00:89::11",
        beyond: "[fd00:89::12]:38680",
    },
];

fn at(address: &str) -> SocketAddr {
    address.parse().expect("an address")
}

/// The address of `at` with another port.
fn client_at(at: &str, port: u16) -> SocketAddr {
    SocketAddr::new(self::at(at).ip(), port)
}

fn ip(address: &str) -> IpAddr {
    address.parse().expect("an address")
}

fn all(family: &Family, service: &Service) -> Vec<(FrontendKey, Service)> {
    let [cluster_ip, port, balanced] = family.frontends;
    let sctp = Protocol::SCTP;
    [key(cluster_ip, sctp), node_port(port, sctp), key(balanced, sctp)]
        .map(|key| (key, service.clone()))
        .to_vec()
}

#[test]
fn a_pod_has_associations_through_every_kind_of_frontend_with_backends_everywhere() {
    for tc_mode in tc_modes() {
        let mut node = Node::with_mode(tc_mode);
        for family in &FAMILIES {
            for (backend, host) in [
                (family.here, node.pods[1].without_cgroup()),
                (family.elsewhere, node.beyond.without_cgroup()),
                (family.on_host, node.namespace.without_cgroup()),
                (family.itself, node.pods[0].without_cgroup()),
            ] {
                let server = Peer::new(&host, at(backend));
                node.serve(all(family, &to(&[at(backend)])));
                // Each from a port of its own, as one backend tells clients by theirs.
                for (frontend, port) in family.frontends.into_iter().zip(CLIENT_PORT..) {
                    let client = Peer::new(&node.pods[0], client_at(family.itself, port));
                    let seen = associate(&client, at(frontend), &server);
                    let is_itself = backend == family.itself;
                    let wanted = if is_itself { at(frontend).ip() } else { at(family.itself).ip() };
                    assert_eq!(seen, SocketAddr::new(wanted, port), "{frontend} to {backend}");
                }
            }
        }
        assert_eq!(drops(&node), 0);
        assert_eq!(count(&node.datapath, Counter::FlowNew), 24);
    }
}

#[test]
fn a_client_beyond_the_node_has_associations_with_backends_on_it_and_on_other_nodes() {
    let mut node = Node::new();
    for family in &FAMILIES {
        for (backend, host) in [(family.here, &node.pods[1]), (family.elsewhere, &node.beyond)] {
            let server = Peer::new(host, at(backend));
            let wanted = all(family, &to(&[at(backend)])).into_iter().collect();
            node.datapath.set_services(wanted).expect("setting the services");
            for (frontend, port) in family.frontends.into_iter().zip(CLIENT_PORT..) {
                let client = Peer::new(&node.beyond, client_at(family.beyond, port));
                let seen = associate(&client, at(frontend), &server);
                if backend == family.here {
                    assert_eq!(seen, client_at(family.beyond, port), "{frontend}");
                } else {
                    assert_eq!(seen.ip(), ip(family.node), "{frontend}");
                    assert!((FORWARD_PORTS.0..=FORWARD_PORTS.1).contains(&seen.port()), "{seen}");
                }
            }
        }
    }
    assert_eq!(drops(&node), 0);
}

#[test]
fn one_port_of_a_client_has_associations_with_one_backend_through_two_frontends() {
    let mut node = Node::with_mode(TcMode::of_kernel());
    let family = &FAMILIES[0];
    let (client, server) = (
        Peer::new(&node.pods[0], client_at(family.itself, CLIENT_PORT)),
        Peer::new(&node.pods[1], at(family.here)),
    );
    node.serve(all(family, &to(&[at(family.here)])));
    let begins = init_chunk(INIT, TAG_OF_CLIENT, b"");
    let [first, second] = [family.frontends[0], family.frontends[2]].map(|frontend| {
        client.send(at(frontend), 0, &begins);
        server.hears(&begins)
    });
    assert_eq!((first.port(), first.ip()), (CLIENT_PORT, second.ip()));
    assert_ne!(second.port(), CLIENT_PORT);
    for (seen, frontend) in [(first, family.frontends[0]), (second, family.frontends[2])] {
        let answer = chunk(COOKIE_ACK, 0, b"");
        server.send(seen, TAG_OF_CLIENT, &answer);
        assert_eq!(client.hears(&answer), at(frontend));
    }
}

#[test]
fn clients_are_remembered_and_policies_and_source_ranges_hold() {
    let mut node = Node::new();
    let family = &FAMILIES[0];
    let frontend = at(family.frontends[2]);
    let many = (1..=20).map(|n| endpoint(ip(&format!("10.244.0.{}", 100 + n)), 38680, true)).collect();
    let sticky = Service { affinity_seconds: 60, ..leading_to(many) };
    node.serve(all(family, &sticky));
    let begins = init_chunk(INIT, TAG_OF_CLIENT, b"");
    for port in 40000..40010 {
        Peer::new(&node.pods[0], client_at(family.itself, port)).send(frontend, 0, &begins);
    }
    let flows = node.datapath.flows().expect("the flows");
    assert_eq!(flows.len(), 10);
    assert!(flows.iter().all(|flow| flow.backend == flows[0].backend), "{flows:?}");

    let client = Peer::new(&node.beyond, client_at(family.beyond, CLIENT_PORT));
    client.socket.set_read_timeout(Some(NOTHING)).expect("a timeout");
    // By the policy Local, with endpoints on other nodes only.
    let elsewhere = endpoint(at(family.elsewhere).ip(), 38680, false);
    let elsewhere = leading_to(vec![Endpoint { clients: Clients::Node, ..elsewhere }]);
    let range = SourceRange::new(ip("203.0.113.0"), 24).expect("a range");
    let guarded = Service { source_ranges: [range].into(), ..to(&[at(family.here)]) };
    for (service, counter) in [(elsewhere, Counter::DropNoLocalBackend), (guarded, Counter::DropSourceRange)]
    {
        node.serve(all(family, &service));
        client.send(frontend, 0, &begins);
        let silence = client.receive().expect_err("nobody answers");
        assert_eq!(silence.kind(), ErrorKind::WouldBlock, "{silence}");
        assert_eq!(count(&node.datapath, counter), 1);
    }
}

#[test]
fn a_service_without_endpoints_refuses_associations() {
    let mut node = Node::new();
    for family in &FAMILIES {
        node.serve(all(family, &to(&[])));
        for (host, address) in [(&node.pods[0], family.itself), (&node.beyond, family.beyond)] {
            for frontend in family.frontends {
                let client = Peer::new(host, client_at(address, CLIENT_PORT));
                // Who is connected is told of errors.
                host.run(|| client.socket.connect((at(frontend).ip(), 0))).expect("connecting");
                let begins = packet((CLIENT_PORT, at(frontend).port()), 0, &init_chunk(INIT, 7, b""));
                client.socket.send(&begins).expect("an INIT");
                let refused = client.receive().expect_err("nobody there");
                assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{frontend}: {refused}");
            }
        }
    }
    assert_eq!((drops(&node), count(&node.datapath, Counter::Answered)), (12, 12));
}
