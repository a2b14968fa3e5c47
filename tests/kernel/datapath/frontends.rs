//! Every kind of frontend in the packet path: node ports, addresses of load balancers and externalIPs, for clients of
//! the node and beyond it, by both traffic policies.

use std::{
    collections::BTreeSet,
    io::{self, Read},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::OwnedFd,
    time::Duration,
};

use ebpf_common::{
    Counter, FORWARD_PORTS, FrontendKey, Protocol,
    desired::{Clients, Endpoint, Service},
};

use super::{
    count, endpoint, key, leading_to,
    node::{Node, to},
    node_port,
    packets::{ask, ask_and_stay, connect, drops, exchange, listen, talk, udp},
    tc_modes,
};

const NOTHING: Duration = Duration::from_millis(300);
const PROTOCOLS: [Protocol; 2] = [Protocol::TCP, Protocol::UDP];

/// One address family: frontends of all kinds as clients name them, backends here and elsewhere, and who is who.
struct Family {
    /// The node port twice: on each address of the node.
    frontends: [&'static str; 4],
    here: &'static str,
    elsewhere: &'static str,
    itself: &'static str,
    beyond: &'static str,
    node: &'static str,
}

const FAMILIES: [Family; 2] = [
    Family {
        frontends: ["10.89.0.11:30080", "10.89.0.21:30080", "192.0.2.10:80", "192.0.2.11:80"],
        here: "10.244.0.3:8080",
        elsewhere: "10.244.1.2:8080",
        itself: "10.244.0.2:8080",
        beyond: "10.89.0.12",
        node: "10.89.0.11",
    },
    Family {
        frontends: ["[fd00:89::11]:30080", "[fd00:89::21]:30080", "[2001:db8::10]:80", "[2001:db8::11]:80"],
        here: "[fd00:244::3]:8080",
        elsewhere: "[fd00:244:1::2]:8080",
        itself: "[fd00:244::2]:8080",
        beyond: "fd00:89::12",
        node: "fd00:89::11",
    },
];

/// A node with two addresses on its uplink.
fn node() -> Node {
    let mut node = Node::new();
    node.namespace.ip("addr add 10.89.0.21/24 dev uplink");
    node.namespace.ip("addr add fd00:89::21/64 dev uplink nodad");
    node.restart_agent();
    node
}

/// All kinds of frontends of one family, each leading to the same.
fn all(family: &Family, service: &Service) -> Vec<(FrontendKey, Service)> {
    let keys = |protocol| {
        let [port, _, balanced, external] = family.frontends;
        [node_port(port, protocol), key(balanced, protocol), key(external, protocol)]
    };
    PROTOCOLS.into_iter().flat_map(keys).map(|key| (key, service.clone())).collect()
}

fn at(address: &str) -> SocketAddr {
    address.parse().expect("an address")
}

fn is_forward_port(port: u16) -> bool {
    (FORWARD_PORTS.0..=FORWARD_PORTS.1).contains(&port)
}

#[test]
fn a_pod_reaches_every_kind_of_frontend() {
    let mut node = node();
    for family in &FAMILIES {
        for (backend, host) in [
            (family.here, node.pods[1].without_cgroup()),
            (family.elsewhere, node.beyond.without_cgroup()),
            (family.itself, node.pods[0].without_cgroup()),
        ] {
            let (listener, bound) = listen(&host, backend);
            let (server, _) = udp(&host, backend);
            node.serve(all(family, &to(&[bound])));
            for frontend in family.frontends {
                let seen = talk(&node.pods[0], frontend, &listener);
                let wanted =
                    if backend == family.itself { at(frontend).ip() } else { at(family.itself).ip() };
                assert_eq!(seen.ip(), wanted, "{frontend} to {backend}");
                ask(&node.pods[0], frontend, &server, 100);
            }
        }
    }
    assert_eq!((drops(&node), count(&node.datapath, Counter::Forwarded)), (0, 0));
}

#[test]
fn a_client_beyond_the_node_is_seen_by_a_backend_on_it() {
    let mut node = node();
    for family in &FAMILIES {
        let (listener, bound) = listen(&node.pods[1], family.here);
        let (server, _) = udp(&node.pods[1], family.here);
        node.serve(all(family, &to(&[bound])));
        for frontend in family.frontends {
            assert_eq!(talk(&node.beyond, frontend, &listener).ip().to_string(), family.beyond, "{frontend}");
            assert_eq!(ask(&node.beyond, frontend, &server, 3000).ip().to_string(), family.beyond);
        }
    }
    assert_eq!((drops(&node), count(&node.datapath, Counter::Forwarded)), (0, 0));
}

#[test]
fn a_client_beyond_the_node_reaches_a_backend_beyond_it_by_an_address_of_the_node() {
    for tc_mode in tc_modes() {
        let mut node = Node::with_mode(tc_mode);
        for family in &FAMILIES {
            let (listener, bound) = listen(&node.beyond, family.elsewhere);
            let (server, _) = udp(&node.beyond, family.elsewhere);
            node.serve(all(family, &to(&[bound])));
            let [port, _, balanced, external] = family.frontends;
            for frontend in [port, balanced, external] {
                for seen in [
                    talk(&node.beyond, frontend, &listener),
                    ask(&node.beyond, frontend, &server, 100),
                    // In fragments, both ways.
                    ask(&node.beyond, frontend, &server, 5000),
                ] {
                    assert_eq!(seen.ip().to_string(), family.node, "{frontend}");
                    assert!(is_forward_port(seen.port()), "{frontend}: {seen}");
                }
            }
        }
        assert!(count(&node.datapath, Counter::Forwarded) > 0);
        assert_eq!(drops(&node), 0);
    }
}

#[test]
fn clients_beyond_the_node_are_spread_over_all_backends() {
    let mut node = node();
    let family = &FAMILIES[0];
    let (here, here_at) = listen(&node.pods[1], family.here);
    let (elsewhere, elsewhere_at) = listen(&node.beyond, family.elsewhere);
    node.serve(all(family, &to(&[here_at, elsewhere_at])));
    let _clients: Vec<TcpStream> =
        (0..60).map(|_| connect(&node.beyond, family.frontends[0]).expect("a connection")).collect();
    let (here, elsewhere) = (accepted(&here), accepted(&elsewhere));
    assert_eq!(here + elsewhere, 60);
    // 60 fair choices of two leave this range once in some 10^9 runs.
    assert!((8..=52).contains(&here), "{here} here, {elsewhere} elsewhere");
}

fn accepted(listener: &TcpListener) -> usize {
    listener.set_nonblocking(true).expect("non-blocking");
    std::iter::from_fn(|| listener.accept().ok()).count()
}

/// The policy Local: clients beyond the node get what is here, those on it get all.
fn local(here: &[SocketAddr], elsewhere: &[SocketAddr]) -> Service {
    let here = here.iter().map(|at| endpoint(at.ip(), at.port(), true));
    let elsewhere =
        elsewhere.iter().map(|at| Endpoint { clients: Clients::Node, ..endpoint(at.ip(), at.port(), false) });
    leading_to(here.chain(elsewhere).collect())
}

#[test]
fn by_the_policy_local_a_client_beyond_the_node_gets_backends_of_this_node_only() {
    let mut node = node();
    for family in &FAMILIES {
        let (listener, here) = listen(&node.pods[1], family.here);
        let (far, elsewhere) = listen(&node.beyond, family.elsewhere);
        node.serve(all(family, &local(&[here], &[elsewhere])));
        for frontend in family.frontends {
            for _ in 0..5 {
                assert_eq!(talk(&node.beyond, frontend, &listener).ip().to_string(), family.beyond);
            }
        }
        let _clients: Vec<TcpStream> = (0..40)
            .map(|_| connect(&node.pods[0], family.frontends[0]).expect("a pod's connection"))
            .collect();
        assert_eq!(accepted(&listener) + accepted(&far), 40);
        assert!(accepted(&far) < 40);
    }
    assert_eq!(count(&node.datapath, Counter::Forwarded), 0);
}

#[test]
fn by_the_policy_local_a_node_without_a_backend_stays_silent_to_clients_beyond_it() {
    let mut node = node();
    for (number, family) in FAMILIES.iter().enumerate() {
        let (server, elsewhere) = udp(&node.beyond, family.elsewhere);
        node.serve(all(family, &local(&[], &[elsewhere])));
        ask(&node.pods[0], family.frontends[2], &server, 100);
        let any = if number == 0 { "0.0.0.0:0" } else { "[::]:0" };
        let (client, _) = udp(&node.beyond, any);
        client.send_to(b"x", family.frontends[2]).expect("a datagram");
        assert_eq!(count(&node.datapath, Counter::DropNoLocalBackend), number as u64 + 1);
        server.set_read_timeout(Some(NOTHING)).expect("a timeout");
        assert!(server.recv(&mut [0; 8]).is_err(), "the datagram went to another node");
    }
}

#[test]
fn a_backend_that_only_ends_here_serves_those_beyond_and_not_the_pods_of_the_node() {
    let mut node = node();
    let family = &FAMILIES[0];
    let (ending, here) = listen(&node.pods[1], family.here);
    let (ready, elsewhere) = listen(&node.beyond, family.elsewhere);
    let endpoints = vec![
        Endpoint { clients: Clients::Beyond, ..endpoint(here.ip(), here.port(), true) },
        Endpoint { clients: Clients::Node, ..endpoint(elsewhere.ip(), elsewhere.port(), false) },
    ];
    node.serve(all(family, &leading_to(endpoints)));
    for _ in 0..10 {
        talk(&node.beyond, family.frontends[1], &ending);
        talk(&node.pods[0], family.frontends[1], &ready);
    }
}

#[test]
fn flows_that_are_sent_on_share_no_port_with_each_other_or_with_a_socket_of_the_node() {
    const FLOWS: usize = 60;
    let mut node = node();
    for (family, protocol) in FAMILIES.iter().flat_map(|family| PROTOCOLS.map(|protocol| (family, protocol)))
    {
        // Without a look at the sockets, one flow in 32 would get the port of one.
        let taken: BTreeSet<u16> = (FORWARD_PORTS.0..=FORWARD_PORTS.1).step_by(32).collect();
        let address = at(family.frontends[0]).ip();
        let sockets = node.namespace.run(|| {
            let bind = |port: &u16| -> io::Result<OwnedFd> {
                Ok(match protocol {
                    Protocol::TCP => TcpListener::bind((address, *port))?.into(),
                    _ => UdpSocket::bind((address, *port))?.into(),
                })
            };
            taken.iter().map(bind).collect::<io::Result<Vec<_>>>().expect("sockets of the node")
        });
        let (listener, bound) = listen(&node.beyond, family.elsewhere);
        let (server, _) = udp(&node.beyond, family.elsewhere);
        node.serve(all(family, &to(&[bound])));
        let (mut streams, mut sockets_of_clients, mut seen) = (Vec::new(), Vec::new(), BTreeSet::new());
        for _ in 0..FLOWS {
            let client = if protocol == Protocol::TCP {
                streams.push(connect(&node.beyond, family.frontends[2]).expect("a connection"));
                let (stream, client) = listener.accept().expect("the connection at the backend");
                streams.push(stream);
                client
            } else {
                let (socket, client) = ask_and_stay(&node.beyond, family.frontends[2], &server, 10);
                sockets_of_clients.push(socket);
                client
            };
            assert!(is_forward_port(client.port()) && !taken.contains(&client.port()), "{client}");
            assert!(seen.insert(client.port()), "{client} is used twice");
        }
        drop(sockets);
    }
    assert_eq!(count(&node.datapath, Counter::DropPortsExhausted), 0);
}

#[test]
fn a_flow_that_is_sent_on_outlives_the_agent_and_is_listed() {
    let mut node = node();
    let family = &FAMILIES[0];
    let (listener, bound) = listen(&node.beyond, family.elsewhere);
    node.serve(all(family, &to(&[bound])));
    let client = connect(&node.beyond, family.frontends[0]).expect("a connection");
    let (server, seen) = listener.accept().expect("the connection at the backend");
    exchange(&client, &server);
    node.restart_agent();
    exchange(&client, &server);
    let flows = node.datapath.flows().expect("the flows");
    let flow = flows.iter().find(|flow| flow.client == here_of(&client)).expect("the flow");
    assert_eq!(flow.seen_as, (seen.ip(), seen.port()));
    assert_eq!(flow.frontend, (at(family.frontends[0]).ip(), 30080));
    // A second connection goes another way, and the first one ends as it should.
    drop(server);
    assert_eq!((&client).read(&mut [0; 8]).expect("the end"), 0);
}

fn here_of(stream: &TcpStream) -> (std::net::IpAddr, u16) {
    let address = stream.local_addr().expect("its address");
    (address.ip(), address.port())
}

#[test]
fn an_address_that_the_node_loses_has_no_node_port_any_more() {
    let mut node = node();
    let family = &FAMILIES[0];
    let (server, bound) = udp(&node.pods[1], family.here);
    node.serve(all(family, &to(&[bound])));
    ask(&node.beyond, family.frontends[1], &server, 10);
    node.namespace.ip("addr del 10.89.0.21/24 dev uplink");
    node.restart_agent();
    node.serve(all(family, &to(&[bound])));
    let flows = count(&node.datapath, Counter::FlowNew);
    let (client, _) = udp(&node.beyond, "0.0.0.0:0");
    // Nobody answers ARP for it any more, or the node refuses: no flow is opened in either case.
    let _ = client.send_to(b"x", family.frontends[1]);
    server.set_read_timeout(Some(NOTHING)).expect("a timeout");
    assert!(server.recv(&mut [0; 8]).is_err());
    assert_eq!(count(&node.datapath, Counter::FlowNew), flows);
}

#[test]
fn without_an_address_to_send_from_a_packet_for_elsewhere_is_dropped_by_its_reason() {
    let mut node = node();
    node.datapath.set_node(&dataplane::node::NodeConfig::default()).expect("an unknown node");
    let family = &FAMILIES[0];
    let (_server, elsewhere) = udp(&node.beyond, family.elsewhere);
    node.serve(all(family, &to(&[elsewhere])));
    let (client, _) = udp(&node.beyond, "0.0.0.0:0");
    client.send_to(b"x", family.frontends[2]).expect("a datagram");
    assert_eq!(count(&node.datapath, Counter::DropNoSource), 1);
}
