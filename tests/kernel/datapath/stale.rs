//! Datagrams to a backend that is gone: sockets that a Service connected to it, and flows in the packet path.

use std::{
    fs, io,
    net::{SocketAddr, UdpSocket},
    os::fd::AsRawFd,
    path::Path,
    process::{Child, Command, Stdio},
};

use dataplane::{
    datapath::Datapath,
    maps::PinnedMap,
    stale::{Destroyed, probe},
};
use ebpf_common::{
    Backend, ConnectedSocket, Protocol, SocketKey, SocketReverse,
    desired::{Clients, Endpoint, Service},
    maps,
    retired::ConnectedSocket1,
};

use super::{
    endpoint, key, leading_to,
    node::{Node, to},
    open,
    packets::{self, connect, exchange, listen},
    service, services,
    sockets::{Host, udp},
    verifier::bpftool,
};
use crate::netns::{NetNs, eventually};

/// A pod's namespace, with a process that stays in it.
struct Pod {
    namespace: NetNs,
    process: Child,
}

impl Pod {
    fn new(host: &Host) -> Self {
        let namespace = NetNs::in_cgroup(&host.cgroup);
        for last in [1, 2] {
            namespace.ip(&format!("addr add 10.244.0.{last}/32 dev lo"));
            namespace.ip(&format!("addr add fd00:244::{last}/128 dev lo nodad"));
        }
        let process = namespace.without_cgroup().run(|| {
            Command::new("sleep").arg("600").stdin(Stdio::null()).spawn().expect("a process in the pod")
        });
        Self { namespace, process }
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Addresses of one family, as clients name them, and where its backends are.
struct Family {
    frontend: &'static str,
    other: &'static str,
    gone: &'static str,
    stays: &'static str,
    any: &'static str,
}

const V4: Family = Family {
    frontend: "10.96.0.7:80",
    other: "10.96.0.8:80",
    gone: "10.244.0.1:5300",
    stays: "10.244.0.2:5300",
    any: "0.0.0.0:0",
};

const FAMILIES: [Family; 3] = [
    V4,
    Family {
        frontend: "[fd00:96::7]:80",
        other: "[fd00:96::8]:80",
        gone: "[fd00:244::1]:5300",
        stays: "[fd00:244::2]:5300",
        any: "[::]:0",
    },
    // An IPv6 socket that talks IPv4.
    Family {
        frontend: "[::ffff:10.96.0.7]:80",
        other: "[::ffff:10.96.0.8]:80",
        gone: "[::ffff:10.244.0.1]:5300",
        stays: "[::ffff:10.244.0.2]:5300",
        any: "[::]:0",
    },
];

/// A backend of the family. One that is IPv4 is bound as such, also where clients name it by a mapped address.
fn backend(namespace: &NetNs, address: &str) -> (UdpSocket, SocketAddr) {
    let address: SocketAddr = address.parse().expect("an address");
    let address = SocketAddr::new(address.ip().to_canonical(), address.port());
    namespace.run(|| udp(&address.to_string()))
}

fn serve(datapath: &mut Datapath, of: &[(&str, Service)]) {
    let wanted = of.iter().map(|(frontend, service)| (key(frontend, Protocol::UDP), service.clone()));
    datapath.set_services(services(wanted)).expect("setting the services");
}

/// What still serves, for those who have it.
fn with_present(ready: SocketAddr, present: SocketAddr) -> Service {
    leading_to(vec![
        endpoint(ready.ip(), ready.port(), true),
        Endpoint { clients: Clients::Present, ..endpoint(present.ip(), present.port(), true) },
    ])
}

fn connected(namespace: &NetNs, family: &Family, to: &str) -> UdpSocket {
    namespace.run(|| {
        let (socket, _) = udp(family.any);
        socket.connect(to).unwrap_or_else(|error| panic!("{to}: {error}"));
        socket
    })
}

/// One datagram each way.
fn talk(client: &UdpSocket, server: &UdpSocket) {
    client.send(b"ask").expect("a datagram");
    let mut buffer = [0; 16];
    let (length, from) = server.recv_from(&mut buffer).expect("the datagram at the backend");
    assert_eq!(&buffer[..length], b"ask");
    server.send_to(b"answer", from).expect("the answer");
    assert_eq!(client.recv(&mut buffer).expect("the answer at the client"), 6);
}

fn destroy(host: &Host) -> Destroyed {
    let mut sockets = host.datapath.stale_sockets().expect("the maps of sockets");
    host.namespace.run(|| sockets.destroy()).expect("a run")
}

fn assert_aborted(socket: &UdpSocket) {
    let error = socket.recv(&mut [0; 8]).expect_err("the socket was ended");
    assert_eq!(error.raw_os_error(), Some(libc::ECONNABORTED), "{error}");
}

#[test]
fn a_socket_ends_with_the_backend_that_its_service_connected_it_to_and_no_other_does() {
    let mut host = Host::new();
    let pod = Pod::new(&host);
    let clients = [&host.namespace, &pod.namespace];
    for (client, family) in clients.iter().flat_map(|client| FAMILIES.iter().map(move |f| (*client, f))) {
        let Family { frontend, other, gone, .. } = *family;
        let (gone_server, gone_at) = backend(client, gone);
        let (stays_server, stays_at) = backend(client, family.stays);
        let to_gone = service(&[gone_at]);
        serve(&mut host.datapath, &[(frontend, to_gone.clone()), (other, to_gone.clone())]);
        let victim = connected(client, family, frontend);
        let elsewhere = connected(client, family, other);
        let direct = connected(client, family, gone);
        let (unconnected, _) = client.run(|| udp(family.any));
        unconnected.send_to(b"x", frontend).expect("a datagram");
        assert_eq!(gone_server.recv(&mut [0; 8]).expect("at the backend"), 1);
        let nothing = Destroyed { connected: 2, ..Destroyed::default() };
        assert_eq!(destroy(&host), nothing, "every backend is there");

        serve(&mut host.datapath, &[(frontend, service(&[stays_at])), (other, to_gone)]);
        let later = connected(client, family, frontend);
        let wanted = Destroyed { connected: 3, stale: 1, destroyed: 1, unreachable: 0, namespaces: 1 };
        assert_eq!(destroy(&host), wanted, "{frontend}");
        assert_aborted(&victim);
        for (socket, server) in [(&elsewhere, &gone_server), (&direct, &gone_server), (&later, &stays_server)]
        {
            talk(socket, server);
        }
        unconnected.send_to(b"xy", frontend).expect("a datagram");
        assert_eq!(stays_server.recv(&mut [0; 8]).expect("at the new backend"), 2);
        // The owner goes on with the same socket.
        client.run(|| victim.connect(frontend)).expect("connecting again");
        talk(&victim, &stays_server);
        assert_eq!(destroy(&host).stale, 0);
    }
}

#[test]
fn a_backend_that_still_serves_keeps_its_sockets_and_gets_no_new_ones() {
    let mut host = Host::new();
    let (old, old_at) = backend(&host.namespace, V4.gone);
    let (new, new_at) = backend(&host.namespace, V4.stays);
    serve(&mut host.datapath, &[(V4.frontend, service(&[old_at]))]);
    let socket = connected(&host.namespace, &V4, V4.frontend);
    let (unconnected, _) = host.namespace.run(|| udp(V4.any));
    let send = |bytes: &[u8], server: &UdpSocket| {
        unconnected.send_to(bytes, V4.frontend).expect("a datagram");
        assert_eq!(server.recv(&mut [0; 16]).expect("at the backend"), bytes.len());
    };
    send(b"1", &old);

    // A restart of the agent in the midst changes nothing.
    for _ in 0..2 {
        serve(&mut host.datapath, &[(V4.frontend, with_present(new_at, old_at))]);
        assert_eq!(destroy(&host).stale, 0);
        talk(&socket, &old);
        send(b"12", &old);
        for _ in 0..10 {
            talk(&connected(&host.namespace, &V4, V4.frontend), &new);
        }
        host.datapath = open(&host.directory);
    }
    let entries = host.datapath.services();
    assert_eq!(entries[0].backends.len(), 1, "{entries:?}");

    serve(&mut host.datapath, &[(V4.frontend, service(&[new_at]))]);
    assert_eq!(destroy(&host).destroyed, 1);
    assert_aborted(&socket);
    send(b"123", &new);
}

#[test]
fn an_endpoint_that_serves_and_was_never_given_to_anybody_takes_no_room() {
    let mut host = Host::new();
    let (_, old_at) = backend(&host.namespace, V4.gone);
    let (_, new_at) = backend(&host.namespace, V4.stays);
    let wanted = services([(key(V4.frontend, Protocol::UDP), with_present(new_at, old_at))]);
    // Address, frontend, slot, backend.
    assert_eq!(host.datapath.set_services(wanted).expect("setting the services").written, 4);
    let none = host.datapath.set_services(services([])).expect("no services");
    assert_eq!(none.deleted, 4);
}

#[test]
fn a_socket_that_went_elsewhere_by_itself_is_left_alone() {
    let mut host = Host::new();
    let (server, server_at) = backend(&host.namespace, V4.gone);
    serve(&mut host.datapath, &[(V4.frontend, service(&[server_at]))]);
    let direct = connected(&host.namespace, &V4, V4.frontend);
    host.namespace.run(|| direct.connect(V4.gone)).expect("connecting to the backend itself");
    let disconnected = connected(&host.namespace, &V4, V4.frontend);
    disconnect(&disconnected);
    serve(&mut host.datapath, &[]);
    assert_eq!(destroy(&host), Destroyed { connected: 1, stale: 1, namespaces: 1, ..Destroyed::default() });
    assert_eq!(destroy(&host), Destroyed::default(), "what is not connected is not looked for again");
    talk(&direct, &server);
    disconnected.send_to(b"x", V4.gone).expect("a datagram of a socket that lives");
    assert_eq!(server.recv(&mut [0; 8]).expect("at the backend"), 1);
}

/// connect(2) with AF_UNSPEC, which std has not.
fn disconnect(socket: &UdpSocket) {
    // SAFETY: all zero is a valid address, AF_UNSPEC.
    let nowhere: libc::sockaddr = unsafe { std::mem::zeroed() };
    let length = size_of::<libc::sockaddr>() as libc::socklen_t;
    // SAFETY: the address lives over the call, and its size is given.
    let result = unsafe { libc::connect(socket.as_raw_fd(), &raw const nowhere, length) };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
}

#[test]
fn of_a_closed_socket_and_of_a_connection_nothing_is_kept() {
    let mut host = Host::new();
    let (_server, server_at) = backend(&host.namespace, V4.gone);
    let (listener, _) = listen(&host.namespace, V4.gone);
    let both = services([Protocol::TCP, Protocol::UDP].map(|p| (key(V4.frontend, p), service(&[server_at]))));
    host.datapath.set_services(both).expect("setting the services");
    let sockets: Vec<UdpSocket> = (0..50).map(|_| connected(&host.namespace, &V4, V4.frontend)).collect();
    let _stream = connect(&host.namespace, V4.frontend).expect("a connection");
    listener.accept().expect("the connection at the backend");
    assert_eq!(destroy(&host).connected, 50);
    drop(sockets);
    // A close that has returned has passed the programs.
    assert_eq!(destroy(&host).connected, 0);
}

#[test]
fn sockets_of_a_namespace_that_nothing_leads_to_are_counted_and_forgotten() {
    let mut host = Host::new();
    let hidden = NetNs::in_cgroup(&host.cgroup);
    hidden.ip("addr add 10.244.0.1/32 dev lo");
    serve(&mut host.datapath, &[(V4.frontend, service(&["10.244.0.1:5300".parse().expect("an address")]))]);
    let _socket = connected(&hidden, &V4, V4.frontend);
    serve(&mut host.datapath, &[]);
    let wanted = Destroyed { connected: 1, stale: 1, unreachable: 1, ..Destroyed::default() };
    assert_eq!(destroy(&host), wanted);
    assert_eq!(destroy(&host), Destroyed::default());
}

#[test]
fn only_namespaces_with_such_a_socket_are_entered() {
    let mut host = Host::new();
    let pods: Vec<Pod> = (0..4).map(|_| Pod::new(&host)).collect();
    let to = |port: u16| service(&[SocketAddr::from(([10, 244, 0, 1], port))]);
    serve(&mut host.datapath, &[(V4.frontend, to(1)), (V4.other, to(2))]);
    let victims: Vec<UdpSocket> =
        pods[..2].iter().map(|pod| connected(&pod.namespace, &V4, V4.frontend)).collect();
    let _others: Vec<UdpSocket> = pods.iter().map(|pod| connected(&pod.namespace, &V4, V4.other)).collect();
    serve(&mut host.datapath, &[(V4.other, to(2))]);
    let wanted = Destroyed { connected: 6, stale: 2, destroyed: 2, unreachable: 0, namespaces: 2 };
    assert_eq!(destroy(&host), wanted);
    victims.iter().for_each(assert_aborted);
}

#[test]
fn a_change_says_whether_sockets_may_have_to_end() {
    let mut host = Host::new();
    let at = |port: u16| SocketAddr::from(([10, 244, 0, 1], port));
    let mut set = |protocol, backends: &[SocketAddr]| {
        let wanted = services([(key(V4.frontend, protocol), service(backends))]);
        host.datapath.set_services(wanted).expect("setting the services").datagram_backends_gone
    };
    assert!(set(Protocol::UDP, &[at(1)]), "an earlier agent may have left some");
    assert!(!set(Protocol::UDP, &[at(1), at(2)]));
    assert!(!set(Protocol::UDP, &[at(1), at(2)]));
    assert!(set(Protocol::UDP, &[at(2)]));
    assert!(set(Protocol::TCP, &[at(1), at(2)]), "the datagrams' Service is gone");
    assert!(!set(Protocol::TCP, &[at(2)]));
}

#[test]
fn this_kernel_can_end_sockets() {
    NetNs::new().run(|| probe().unwrap_or_else(|missing| panic!("{missing}")));
}

#[test]
fn in_the_packet_path_datagrams_flows_end_with_their_backend_and_not_while_it_serves() {
    let mut node = Node::new();
    let (first, first_at) = packets::udp(&node.pods[1], "10.244.0.3:5300");
    let (second, second_at) = packets::udp(&node.beyond, "10.244.1.2:5300");
    let (listener, listens) = listen(&node.pods[1], "10.244.0.3:8080");
    let udp_key = key(V4.frontend, Protocol::UDP);
    node.serve([(udp_key, to(&[first_at])), (key(V4.frontend, Protocol::TCP), to(&[listens]))]);
    let client = connected(&node.pods[0], &V4, V4.frontend);
    let stream = connect(&node.pods[0], V4.frontend).expect("a connection");
    let (accepted, _) = listener.accept().expect("the connection at the backend");
    talk(&client, &first);

    node.serve([(udp_key, with_present(second_at, first_at))]);
    assert_eq!(node.datapath.sweep_flows().expect("a sweep").deleted, 0);
    talk(&client, &first);

    node.serve([(udp_key, to(&[second_at]))]);
    assert_eq!(node.datapath.flows().expect("the flows").len(), 2);
    assert_eq!(node.datapath.sweep_flows().expect("a sweep").deleted, 2);
    talk(&client, &second);
    exchange(&stream, &accepted);
    eventually("the new flow is listed", || {
        let flows = node.datapath.flows().expect("the flows");
        let flow = flows.iter().find(|flow| flow.protocol == Protocol::UDP)?;
        (flow.backend == (second_at.ip(), second_at.port())).then_some(())
    });
}

/// Writes what the programs keep of UDP sockets as those of an earlier layout kept it: the sockets that are connected without
/// their frontends, which stood with those of the others, and nothing of who may have sent.
fn in_the_first_layout(maps_dir: &Path) {
    let new: PinnedMap<u64, ConnectedSocket> =
        PinnedMap::open(maps_dir, maps::SOCKETS_CONNECTED).expect("the map");
    let path = maps_dir.join(maps::SOCKETS_CONNECTED_1);
    let path = path.to_str().expect("a path");
    bpftool(&[
        "map", "create", path, "type", "hash", "key", "8", "value", "32", "entries", "64", "name", "OLD",
        "flags", "1",
    ]);
    let old: PinnedMap<u64, ConnectedSocket1> =
        PinnedMap::open(maps_dir, maps::SOCKETS_CONNECTED_1).expect("the map");
    let remembered: PinnedMap<SocketKey, SocketReverse> =
        PinnedMap::open(maps_dir, maps::SOCKET_REVERSE).expect("the map");
    let sockets = new.read_all().expect("the sockets");
    assert!(!sockets.is_empty(), "a socket is connected");
    for (cookie, socket) in sockets {
        let key = SocketKey::new(cookie, socket.address, socket.port, Protocol::UDP);
        let frontend = SocketReverse::new(socket.service_id, socket.frontend, socket.frontend_port);
        remembered.insert(&key, &frontend).expect("writing the frontend");
        let backend = Backend::new(socket.backend_id, socket.service_id, socket.address, socket.port);
        let value = ConnectedSocket1::new(socket.netns_cookie, &backend);
        old.insert(&cookie, &value).expect("writing the socket");
    }
    for name in [maps::SOCKETS_CONNECTED, maps::SENDERS] {
        fs::remove_file(maps_dir.join(name)).expect("unpinning");
    }
}

#[test]
fn sockets_that_programs_of_the_first_layout_served_keep_their_service_and_end_with_their_backend() {
    let mut host = Host::new();
    let (server, bound) = backend(&host.namespace, V4.gone);
    serve(&mut host.datapath, &[(V4.frontend, service(&[bound]))]);
    let connected = connected(&host.namespace, &V4, V4.frontend);
    let (unconnected, _) = host.namespace.run(|| udp(V4.any));
    connected.send(b"x").expect("a datagram");
    unconnected.send_to(b"x", V4.frontend).expect("a datagram");

    drop(host.datapath);
    in_the_first_layout(&host.directory.path.join("maps"));
    host.datapath = open(&host.directory);
    host.datapath.attach_cgroup(&host.cgroup.path).expect("attaching again");
    serve(&mut host.datapath, &[(V4.frontend, service(&[bound]))]);

    let mut buffer = [0; 8];
    for _ in [&connected, &unconnected] {
        let (length, from) = server.recv_from(&mut buffer).expect("a datagram at the backend");
        server.send_to(&buffer[..length], from).expect("its answer");
    }
    for client in [&connected, &unconnected] {
        let (_, from) = client.recv_from(&mut buffer).expect("the answer");
        assert_eq!(from.to_string(), V4.frontend);
    }
    let peer = host.namespace.run(|| connected.peer_addr()).expect("its peer");
    assert_eq!(peer.to_string(), V4.frontend);
    let old = host.directory.path.join("maps").join(maps::SOCKETS_CONNECTED_1);
    assert!(!old.exists(), "the old map is unpinned");

    serve(&mut host.datapath, &[]);
    let destroyed = destroy(&host);
    assert_eq!((destroyed.stale, destroyed.destroyed), (1, 1), "{destroyed:?}");
}
