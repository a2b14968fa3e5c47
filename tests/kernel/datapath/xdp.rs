//! XDP on the uplink: real flows through it and without it.

mod single;

use std::{
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

use dataplane::programs::{XdpMode, XdpSetting, XdpState};
use ebpf_common::{Counter, FORWARD_PORTS, FrontendKey, Protocol, desired::Service};

use super::{
    chain, count,
    errors::{learns, path_mtu, send_when_told},
    key,
    node::{Node, to},
    node_port, open,
    packets::{ask, ask_and_stay, connect, drops, exchange, listen, receive, talk, udp},
};
use crate::netns::{BpfDir, NetNs, eventually};

const PROTOCOLS: [Protocol; 2] = [Protocol::TCP, Protocol::UDP];
/// Questions of each flow of datagrams.
const QUESTIONS: usize = 5;

struct Family {
    node_port: &'static str,
    balanced: &'static str,
    here: &'static str,
    elsewhere: &'static str,
    beyond: &'static str,
    node: &'static str,
    any: &'static str,
}

const FAMILIES: [Family; 2] = [
    Family {
        node_port: "10.89.0.11:30080",
        balanced: "192.0.2.10:80",
        here: "10.244.0.3:8080",
        elsewhere: "10.244.1.2:8080",
        beyond: "10.89.0.12",
        node: "10.89.0.11",
        any: "0.0.0.0:0",
    },
    Family {
        node_port: "[fd00:89::11]:30080",
        balanced: "[2001:db8::10]:80",
        here: "[fd00:244::3]:8080",
        elsewhere: "[fd00:244:1::2]:8080",
        beyond: "fd00:89::12",
        node: "fd00:89::11",
        any: "[::]:0",
    },
];

fn all(family: &Family, service: &Service) -> Vec<(FrontendKey, Service)> {
    let keys = |protocol| [node_port(family.node_port, protocol), key(family.balanced, protocol)];
    PROTOCOLS.into_iter().flat_map(keys).map(|key| (key, service.clone())).collect()
}

fn at(address: &str) -> SocketAddr {
    address.parse().expect("an address")
}

/// A node whose uplink is as a network card's: packets come one by one and with whole checksums, and what is sent from the
/// driver arrives. The other end is as a card for as long as the descriptor is open.
fn node() -> (Node, OwnedFd) {
    const ETHTOOL_STXCSUM: u32 = 0x17;
    let node = Node::new();
    // Without checksums nothing is sent in larger pieces either.
    let card = node.beyond.run(|| {
        set_feature("uplink", ETHTOOL_STXCSUM, false);
        pass_all("uplink")
    });
    (node, card)
}

/// Attaches a program to a link that lets all pass. A veth gets nothing of what its peer's program sends without one
/// (drivers/net/veth.c, veth_xdp_flush).
fn pass_all(link: &str) -> OwnedFd {
    const BPF_PROG_LOAD: libc::c_long = 5;
    const BPF_LINK_CREATE: libc::c_long = 28;
    const BPF_PROG_TYPE_XDP: u64 = 6;
    const BPF_XDP: u64 = 37;
    const XDP_FLAGS_DRV_MODE: u64 = 1 << 2;
    /// r0 = XDP_PASS; exit
    const PROGRAM: [u64; 2] = [0x0000_0002_0000_00b7, 0x95];
    fn bpf(command: libc::c_long, attributes: &[u64]) -> OwnedFd {
        // SAFETY: the attributes of the command, whose pointers lead to what lives on; the descriptor is new.
        unsafe {
            let size = size_of_val(attributes);
            let result = libc::syscall(libc::SYS_bpf, command, attributes.as_ptr(), size);
            assert!(result >= 0, "bpf command {command}: {}", std::io::Error::last_os_error());
            OwnedFd::from_raw_fd(result as i32)
        }
    }
    let index = nix::net::if_::if_nametoindex(link).expect("the link");
    let count = (PROGRAM.len() as u64) << 32;
    let program =
        bpf(BPF_PROG_LOAD, &[BPF_PROG_TYPE_XDP | count, PROGRAM.as_ptr() as u64, c"GPL".as_ptr() as u64]);
    let ends = program.as_raw_fd() as u64 | u64::from(index) << 32;
    bpf(BPF_LINK_CREATE, &[ends, BPF_XDP | XDP_FLAGS_DRV_MODE << 32])
}

/// Sets a feature of a link of the calling thread's namespace by ethtool's ioctl.
fn set_feature(link: &str, command: u32, on: bool) {
    const SIOCETHTOOL: libc::c_ulong = 0x8946;
    let mut value = [command, u32::from(on)];
    // SAFETY: all zeros is a value of it.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(link.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_data = value.as_mut_ptr().cast();
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a socket");
    // SAFETY: the request names a link and a structure of the command's size.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL as _, &raw mut request) };
    assert_eq!(result, 0, "{command:#x} on {link}: {}", std::io::Error::last_os_error());
}

fn set_xdp(node: &Node, setting: XdpSetting) -> XdpState {
    let uplink = node.namespace.interface_index("uplink");
    let set = || node.datapath.set_xdp(uplink, setting).unwrap_or_else(|error| panic!("{}", chain(&error)));
    node.namespace.run(set)
}

fn switch_on(node: &Node, mode: XdpMode) {
    assert_eq!(set_xdp(node, XdpSetting::In(mode)), XdpState::In(mode));
}

fn early(node: &Node) -> u64 {
    count(&node.datapath, Counter::ForwardedEarly)
}

fn late(node: &Node) -> u64 {
    count(&node.datapath, Counter::Forwarded)
}

/// A flow of datagrams that goes on for as long as it is asked to.
struct Datagrams {
    client: UdpSocket,
    server: UdpSocket,
    seen: SocketAddr,
}

impl Datagrams {
    fn begin(host: &NetNs, frontend: &str, backend: &str) -> Self {
        let (server, _) = udp(host, backend);
        let (client, seen) = ask_and_stay(host, frontend, &server, 10);
        Self { client, server, seen }
    }

    fn go_on(&self, what: &str) {
        self.client.send(b"question").expect("a datagram");
        assert_eq!(receive(&self.server).unwrap_or_else(|e| panic!("{what}: {e}")), 8);
        self.server.send_to(b"answer", self.seen).expect("a datagram");
        assert_eq!(receive(&self.client).unwrap_or_else(|e| panic!("{what}: {e}")), 6);
    }
}

#[test]
fn a_client_beyond_reaches_a_backend_beyond_without_a_socket_buffer() {
    for mode in [XdpMode::Driver, XdpMode::Generic] {
        let (mut node, _card) = node();
        switch_on(&node, mode);
        for family in &FAMILIES {
            let (listener, bound) = listen(&node.beyond, family.elsewhere);
            node.serve(all(family, &to(&[bound])));
            for frontend in [family.node_port, family.balanced] {
                let (before, what) = (early(&node), format!("{mode:?} {frontend}"));
                let seen = talk(&node.beyond, frontend, &listener);
                assert_eq!(seen.ip().to_string(), family.node, "{what}");
                assert!((FORWARD_PORTS.0..=FORWARD_PORTS.1).contains(&seen.port()), "{seen}");
                // 20 kB each way, in segments of 1448 octets at most: all but the first packet and what asks after a
                // neighbour.
                assert!(early(&node) >= before + 2 * 14, "{what}: {} early", early(&node) - before);

                let before = early(&node);
                let datagrams = Datagrams::begin(&node.beyond, frontend, family.elsewhere);
                (0..QUESTIONS).for_each(|_| datagrams.go_on(&what));
                assert_eq!(early(&node), before + 1 + 2 * QUESTIONS as u64, "{what}: all but the first");
                drop(datagrams);
                // In fragments, both ways: by tc.
                let (server, _) = udp(&node.beyond, family.elsewhere);
                let (before, by_tc) = (early(&node), late(&node));
                ask(&node.beyond, frontend, &server, 5000);
                assert_eq!((early(&node), late(&node)), (before, by_tc + 8), "{what}");
            }
        }
        assert_eq!(drops(&node), 0, "{mode:?}");
    }
}

/// Flows of both protocols and families, and what they need.
fn flows(node: &mut Node) -> (Vec<TcpListener>, Vec<(TcpStream, TcpStream)>, Vec<Datagrams>) {
    let (mut wanted, mut listeners) = (Vec::new(), Vec::new());
    for family in &FAMILIES {
        let (listener, bound) = listen(&node.beyond, family.elsewhere);
        wanted.extend(all(family, &to(&[bound])));
        listeners.push(listener);
    }
    node.serve(wanted);
    let streams = FAMILIES.iter().zip(&listeners).map(|(family, listener)| {
        let client = connect(&node.beyond, family.node_port).expect("a connection");
        (client, listener.accept().expect("the connection at the backend").0)
    });
    let streams = streams.collect();
    let datagrams = FAMILIES.iter().map(|of| Datagrams::begin(&node.beyond, of.balanced, of.elsewhere));
    let datagrams = datagrams.collect();
    (listeners, streams, datagrams)
}

#[test]
fn flows_go_on_from_tc_to_xdp_and_back_and_outlive_the_agent() {
    let (mut node, _card) = node();
    let (_listeners, streams, datagrams) = flows(&mut node);
    let go_on = |what: &str| {
        streams.iter().for_each(|(client, server)| exchange(client, server));
        datagrams.iter().for_each(|flow| flow.go_on(what));
    };
    go_on("without XDP");
    assert_eq!(early(&node), 0);
    let mut new = count(&node.datapath, Counter::FlowNew);
    assert_eq!(new, 4);

    switch_on(&node, XdpMode::Driver);
    go_on("with XDP");
    let mut before = early(&node);
    assert!(before > 0);
    // As after kill -9: nothing was undone, and the next agent finds it.
    node.restart_agent();
    go_on("after the agent");
    assert!(early(&node) > before, "the program stayed on the link");
    switch_on(&node, XdpMode::Driver);
    before = early(&node);
    go_on("with its next agent");
    assert!(early(&node) > before);

    let XdpState::Off(_) = set_xdp(&node, XdpSetting::Off) else { panic!("it is switched off") };
    let by_tc = late(&node);
    before = early(&node);
    go_on("without XDP again");
    assert_eq!(early(&node), before);
    assert!(late(&node) > by_tc);

    switch_on(&node, XdpMode::Generic);
    go_on("with XDP again");
    assert!(early(&node) > before);
    new = count(&node.datapath, Counter::FlowNew) - new;
    assert_eq!((new, drops(&node)), (0, 0), "they were the same flows all the time");
}

#[test]
fn a_connection_to_a_backend_of_the_node_is_left_to_tc() {
    let (mut node, _card) = node();
    switch_on(&node, XdpMode::Driver);
    for family in &FAMILIES {
        let (listener, bound) = listen(&node.pods[1], family.here);
        node.serve(all(family, &to(&[bound])));
        assert_eq!(talk(&node.beyond, family.node_port, &listener).ip().to_string(), family.beyond);
        let (server, _) = udp(&node.pods[1], family.here);
        ask(&node.beyond, family.balanced, &server, 100);
    }
    assert_eq!((early(&node), late(&node), drops(&node)), (0, 0, 0));
}

/// Moves the backends behind a link with a smaller MTU, to which the host beyond is the router.
fn far(node: &Node, mtu: u32) -> NetNs {
    let far = NetNs::new();
    // It tells its own processes, with its own address, by way of the node.
    node.beyond.sysctl("net/ipv4/conf/all/accept_local", "1");
    node.beyond.ip(&format!("link add far mtu {mtu} type veth peer name near netns {}", far.path()));
    far.ip(&format!("link set near mtu {mtu} up"));
    node.beyond.ip("link set far up");
    for (family, bits, router, own, backend) in [
        ("-4", 32, "10.90.0.1/24", "10.90.0.2/24", "10.244.1.2"),
        ("-6", 128, "fd00:90::1/64", "fd00:90::2/64", "fd00:244:1::2"),
    ] {
        let nodad = if bits == 128 { "nodad" } else { "" };
        let way = |address: &str| address.split('/').next().map(str::to_owned).expect("an address");
        node.beyond.ip(&format!("{family} addr del {backend}/{bits} dev lo"));
        node.beyond.ip(&format!("{family} addr add {router} dev far {nodad}"));
        far.ip(&format!("{family} addr add {own} dev near {nodad}"));
        far.ip(&format!("{family} addr add {backend}/{bits} dev lo {nodad}"));
        far.ip(&format!("{family} route add default via {}", way(router)));
        node.beyond.ip(&format!("{family} route add {backend}/{bits} via {}", way(own)));
    }
    far
}

#[test]
fn a_client_is_told_that_its_packet_is_too_big_for_a_link_behind_the_node() {
    let (mut node, _card) = node();
    switch_on(&node, XdpMode::Driver);
    let far = far(&node, 1300);
    for family in &FAMILIES {
        let (server, bound) = udp(&far, family.elsewhere);
        let (listener, _) = listen(&far, family.elsewhere);
        node.serve(all(family, &to(&[bound])));
        let (client, _) = udp(&node.beyond, family.any);
        node.beyond.run(|| client.connect(family.balanced)).expect("connecting");
        // The flow is known, so that its packets are sent on early.
        let before = early(&node);
        eventually("a datagram is sent on early", || {
            client.send(b"small").expect("a datagram");
            assert_eq!(receive(&server).expect("the datagram at the backend"), 5);
            (early(&node) > before).then_some(())
        });
        learns(&client, &server, family.balanced);
        // TCP lives by it too.
        talk(&node.beyond, family.node_port, &listener);
    }
    assert!(count(&node.datapath, Counter::IcmpTranslated) >= 2);
    assert_eq!(drops(&node), 0);
}

#[test]
fn what_is_too_big_for_the_nodes_own_route_is_left_to_tc() {
    let (mut node, _card) = node();
    switch_on(&node, XdpMode::Driver);
    node.narrow(Some(1300));
    let family = &FAMILIES[0];
    let (_, bound) = udp(&node.beyond, family.elsewhere);
    node.serve(all(family, &to(&[bound])));
    let flow = Datagrams::begin(&node.beyond, family.balanced, family.elsewhere);
    (0..QUESTIONS).for_each(|_| flow.go_on("small"));
    let before = early(&node);
    flow.client.send(&[7; 1400]).expect("a datagram");
    eventually("tc has told the route's MTU", || (path_mtu(&flow.client) == 1300).then_some(()));
    let too_big = count(&node.datapath, Counter::DropTooBig);
    assert_eq!((early(&node), too_big, drops(&node)), (before, 1, 1));
    send_when_told(&flow.client, b"small again");
    assert_eq!(receive(&flow.server).expect("the datagram at the backend"), 11);
    assert_eq!((early(&node), drops(&node)), (before + 1, 1));
}

#[test]
fn nobody_gets_xdp_unasked_on_a_veth_and_a_program_of_another_is_left_alone() {
    let (node, _card) = node();
    let XdpState::Off(reason) = set_xdp(&node, XdpSetting::Auto) else { panic!("a veth is no card") };
    assert!(reason.contains("veth"), "{reason}");
    let directory = BpfDir::new();
    let other = open(&directory);
    let uplink = node.namespace.interface_index("uplink");
    let state = node.namespace.run(|| other.set_xdp(uplink, XdpSetting::In(XdpMode::Driver)));
    assert_eq!(state.expect("the other's program"), XdpState::In(XdpMode::Driver));
    for mode in [XdpMode::Driver, XdpMode::Generic] {
        let XdpState::Off(reason) = set_xdp(&node, XdpSetting::In(mode)) else { panic!("{mode:?}: taken") };
        assert!(reason.contains("another program"), "{reason}");
    }
    let state = node.namespace.run(|| other.set_xdp(uplink, XdpSetting::Off));
    assert!(matches!(state, Ok(XdpState::Off(_))));
    switch_on(&node, XdpMode::Driver);
}
