//! Backends that are not chosen by chance alone: tables alike on every node, weights, and what becomes of flows meanwhile.

use std::{
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream},
    time::Duration,
};

use dataplane::{datapath::Datapath, maps::PinnedMap};
use ebpf_common::{
    BackendId, Balancing, Protocol,
    balancing::PIECES,
    desired::{Clients, Endpoint, Service},
    maps,
};

use super::{
    endpoint, key, leading_to, open,
    program_runs::{PASS, frame, run},
    services,
    sockets::Host,
    verifier::bpftool,
};
use crate::netns::BpfDir;

const FRONTEND: &str = "10.96.0.7:80";
const CLIENT: &str = "10.89.0.12";
/// Of TCP, in a frame of IPv4.
const FLAGS: usize = 14 + 20 + 13;
const ACK: u8 = 0x10;

fn maglev(endpoints: Vec<Endpoint>) -> Service {
    Service { balancing: Balancing::Maglev, ..leading_to(endpoints) }
}

/// Backends 10.244.1.1 and so on, of another node.
fn backends(numbers: impl IntoIterator<Item = u8>) -> Vec<Endpoint> {
    let address = |last: u8| IpAddr::V4(Ipv4Addr::new(10, 244, 1, last));
    numbers.into_iter().map(|last| endpoint(address(last), 8080, false)).collect()
}

fn node_with(directory: &BpfDir, service: Service) -> Datapath {
    let mut datapath = open(directory);
    serve(&mut datapath, service);
    datapath
}

fn serve(datapath: &mut Datapath, service: Service) {
    datapath.set_services(services([(key(FRONTEND, Protocol::TCP), service)])).expect("the services");
}

/// The last byte of the backend's address, for a packet with these flags of a client's port.
fn asked(datapath: &mut Datapath, program: &str, client: &str, port: u16, flags: u8) -> u8 {
    let mut packet = frame(Protocol::TCP, (client, port), ("10.96.0.7", 80), b"");
    packet[FLAGS] = flags;
    let (verdict, out) = run(datapath, program, &packet);
    assert_eq!((verdict, &out[30..33]), (PASS, [10, 244, 1].as_slice()), "{client}:{port}");
    out[33]
}

/// The backends of the first packets from so many ports.
fn chosen(datapath: &mut Datapath, ports: std::ops::Range<u16>) -> Vec<u8> {
    ports.map(|port| asked(datapath, "pod_ingress", CLIENT, port, 2)).collect()
}

#[test]
fn nodes_that_know_backends_by_other_ids_and_in_another_order_lead_a_client_to_the_same() {
    let directories = [BpfDir::new(), BpfDir::new()];
    let mut first = node_with(&directories[0], maglev(backends(1..=10)));
    let mut second = node_with(&directories[1], maglev(backends([9, 4])));
    serve(&mut second, maglev(backends((1..=10).rev())));
    let here = chosen(&mut first, 40_000..40_300);
    assert_eq!(here, chosen(&mut second, 40_000..40_300));
    assert!((1..=10).all(|backend| here.contains(&backend)), "{here:?}");
    // Without the annotation they would agree as dice do.
    serve(&mut second, leading_to(backends(1..=10)));
    assert_ne!(chosen(&mut first, 41_000..41_100), chosen(&mut second, 41_000..41_100));
}

#[test]
fn flows_outlive_a_change_of_backends_and_a_restart_and_nearly_all_find_their_backend_by_another_node() {
    let directories = [BpfDir::new(), BpfDir::new()];
    let mut first = node_with(&directories[0], maglev(backends(1..=10)));
    let before = chosen(&mut first, 40_000..40_300);
    serve(&mut first, maglev(backends((1..=10).filter(|backend| *backend != 3))));
    let still: Vec<u8> =
        (40_000..40_300).map(|port| asked(&mut first, "pod_ingress", CLIENT, port, ACK)).collect();
    assert_eq!(still, before, "flows keep what they have");
    drop(first);
    let mut first = open(&directories[0]);
    let same = services([(
        key(FRONTEND, Protocol::TCP),
        maglev(backends((1..=10).filter(|backend| *backend != 3))),
    )]);
    let applied = first.set_services(same).expect("the same services");
    assert_eq!((applied.written, applied.deleted), (0, 0), "the table is found as it is");
    assert_eq!(asked(&mut first, "pod_ingress", CLIENT, 40_000, ACK), before[0]);

    let mut other = node_with(&directories[1], maglev(backends((1..=10).filter(|backend| *backend != 3))));
    let moved = (40_000..40_300).map(|port| asked(&mut other, "pod_ingress", CLIENT, port, ACK));
    let pairs: Vec<(u8, u8)> = before.into_iter().zip(moved).filter(|(was, _)| *was != 3).collect();
    let lost = pairs.iter().filter(|(was, is)| was != is).count();
    assert!(pairs.len() > 200 && lost * 20 < pairs.len(), "{lost} of {}", pairs.len());
    assert!(pairs.iter().all(|(_, is)| *is != 3));
}

#[test]
fn a_client_with_affinity_finds_its_backend_on_another_node_too() {
    let directories = [BpfDir::new(), BpfDir::new()];
    let sticky = || Service { affinity_seconds: 60, ..maglev(backends(1..=10)) };
    let mut nodes = directories.each_ref().map(|directory| node_with(directory, sticky()));
    let mut seen = Vec::new();
    for last in 1..=20 {
        let client = format!("10.89.0.{last}");
        let mut of = |node: usize, port| asked(&mut nodes[node], "pod_ingress", &client, port, 2);
        let backend = of(0, 40_000);
        assert_eq!([of(0, 40_001), of(1, 50_000)], [backend; 2], "{client}");
        seen.push(backend);
    }
    seen.sort_unstable();
    seen.dedup();
    assert!(seen.len() > 4, "{seen:?}");
}

#[test]
fn clients_beyond_the_node_have_a_table_of_their_own_where_they_have_other_backends() {
    let directory = BpfDir::new();
    let mut endpoints = backends(1..=9);
    for (endpoint, number) in endpoints.iter_mut().zip(1..) {
        endpoint.clients = [Clients::Node, Clients::Beyond, Clients::All][number % 3];
        endpoint.local = true;
    }
    let mut datapath = node_with(&directory, maglev(endpoints));
    for (program, left_out) in [("pod_ingress", 1), ("uplink_ingress", 0)] {
        let seen: Vec<u8> =
            (40_000..40_200).map(|port| asked(&mut datapath, program, CLIENT, port, 2)).collect();
        assert!(seen.iter().all(|backend| backend % 3 != left_out), "{program}: {seen:?}");
        let wanted = (1..=9).filter(|backend| backend % 3 != left_out);
        assert!(wanted.clone().all(|backend| seen.contains(&backend)), "{program}: {seen:?}");
        // The next program is to see new flows.
        datapath.flow_table().sweep(u64::MAX / 2).expect("forgetting all flows");
    }
}

#[test]
fn weights_are_shares_of_new_flows_with_either_balancing() {
    const FLOWS: u16 = 2000;
    for balancing in [Balancing::Random, Balancing::Maglev] {
        let directory = BpfDir::new();
        let mut endpoints = backends(1..=3);
        endpoints.iter_mut().zip([1, 2, 5]).for_each(|(endpoint, weight)| endpoint.weight = weight);
        let mut datapath = node_with(&directory, Service { balancing, ..leading_to(endpoints) });
        let seen = chosen(&mut datapath, 40_000..40_000 + FLOWS);
        for (backend, weight) in [(1, 1), (2, 2), (3, 5)] {
            let count = seen.iter().filter(|seen| **seen == backend).count();
            let wanted = usize::from(FLOWS) * weight / 8;
            assert!(count.abs_diff(wanted) < 120, "{balancing:?} {backend}: {count}, not {wanted}");
        }
        let entry = &datapath.services()[0];
        assert_eq!(entry.balancing, balancing);
        assert_eq!(entry.backends.iter().map(|b| b.weight).collect::<Vec<_>>(), [Some(1), Some(2), Some(5)]);

        // Without weights chance needs no table.
        let applied = {
            let plain = services([(key(FRONTEND, Protocol::TCP), leading_to(backends(1..=3)))]);
            datapath.set_services(plain).expect("the same without weights")
        };
        assert_eq!((applied.written, applied.deleted), (1, PIECES as usize));
        assert_eq!(datapath.services()[0].balancing, Balancing::Random);
        chosen(&mut datapath, 50_000..50_010);
    }
}

#[test]
fn a_table_that_finds_no_room_leaves_its_frontend_to_chance_until_there_is_some() {
    let directory = BpfDir::new();
    drop(open(&directory));
    let tables = directory.path.join("maps").join(maps::TABLES);
    fs::remove_file(&tables).expect("unpinning");
    let path = tables.to_str().expect("a path");
    bpftool(&[
        "map", "create", path, "type", "hash", "key", "8", "value", "1984", "entries", "40", "name", "SMALL",
        "flags", "1",
    ]);
    let mut datapath = open(&directory);
    let [first, second] = [FRONTEND, "10.96.0.8:80"].map(|frontend| key(frontend, Protocol::TCP));
    let both = services([(first, maglev(backends(1..=3))), (second, maglev(backends(1..=3)))]);
    let applied = datapath.set_services(both).expect("both are served");
    assert_eq!(applied.tables_without_room, 1);
    for service in ["10.96.0.7", "10.96.0.8"] {
        for port in 40_000..40_020 {
            let packet = frame(Protocol::TCP, (CLIENT, port), (service, 80), b"");
            assert_eq!(run(&mut datapath, "pod_ingress", &packet).0, PASS);
        }
    }
    datapath.change_services([(&first, &None)]);
    let applied = datapath.apply_services().expect("one is gone");
    assert_eq!(applied.tables_without_room, 0, "its room is taken at once");
}

#[test]
fn sockets_reach_any_backend_of_a_table_and_keep_to_one_under_affinity() {
    let mut host = Host::new();
    let listeners: Vec<_> = (1..=4)
        .map(|last| {
            let at = format!("10.244.0.{last}:8080");
            host.namespace.run(|| std::net::TcpListener::bind(&at).unwrap_or_else(|e| panic!("{at}: {e}")))
        })
        .collect();
    let endpoints = || (1..=4).map(|n| endpoint(Ipv4Addr::new(10, 244, 0, n).into(), 8080, true)).collect();
    let connections = |host: &Host, count: usize| -> Vec<SocketAddr> {
        host.namespace.run(|| {
            let frontend: SocketAddr = FRONTEND.parse().expect("an address");
            let streams: Vec<TcpStream> = (0..count)
                .map(|_| TcpStream::connect_timeout(&frontend, Duration::from_secs(5)).expect("a backend"))
                .collect();
            listeners.iter().for_each(|listener| listener.set_nonblocking(true).expect("not waiting"));
            let accepted = listeners.iter().flat_map(|listener| {
                std::iter::from_fn(|| listener.accept().ok().map(|(stream, _)| stream.local_addr()))
            });
            let seen = accepted.map(|at| at.expect("its address")).collect();
            drop(streams);
            seen
        })
    };
    serve(&mut host.datapath, maglev(endpoints()));
    let mut seen = connections(&host, 60);
    assert_eq!(seen.len(), 60);
    seen.dedup();
    assert_eq!(seen.len(), 4, "every backend has some");
    serve(&mut host.datapath, Service { affinity_seconds: 60, ..maglev(endpoints()) });
    let mut seen = connections(&host, 20);
    seen.dedup();
    assert_eq!(seen.len(), 1, "one client has one backend");
}

fn least(endpoints: Vec<Endpoint>) -> Service {
    Service { balancing: Balancing::LeastConnections, ..leading_to(endpoints) }
}

/// The connections of each backend, as they are told.
fn open_connections(datapath: &Datapath) -> Vec<i64> {
    datapath.services()[0].backends.iter().map(|backend| backend.open.expect("a count")).collect()
}

#[test]
fn sockets_get_the_backend_with_fewer_connections_and_give_it_back_when_they_close() {
    let mut host = Host::new();
    let listeners: Vec<_> = (1..=4)
        .map(|last| {
            let at = format!("10.244.0.{last}:8080");
            host.namespace.run(|| std::net::TcpListener::bind(&at).unwrap_or_else(|e| panic!("{at}: {e}")))
        })
        .collect();
    let endpoints = (1..=4).map(|n| endpoint(Ipv4Addr::new(10, 244, 0, n).into(), 8080, true)).collect();
    serve(&mut host.datapath, least(endpoints));
    // Connections with the backends that they have, in the order of the backends.
    let connect = |count: usize| -> Vec<Vec<(TcpStream, TcpStream)>> {
        let mut by_backend: Vec<Vec<(TcpStream, TcpStream)>> = (0..4).map(|_| Vec::new()).collect();
        host.namespace.run(|| {
            listeners.iter().for_each(|listener| listener.set_nonblocking(true).expect("not waiting"));
            for _ in 0..count {
                let stream = TcpStream::connect(FRONTEND).expect("a backend");
                let accepted = listeners
                    .iter()
                    .zip(&mut by_backend)
                    .find_map(|(listener, of)| Some((listener.accept().ok()?.0, of)));
                let (server, of) = accepted.expect("a connection at a backend");
                of.push((stream, server));
            }
        });
        by_backend
    };
    let spread = |open: &[i64]| open.iter().max().expect("one") - open.iter().min().expect("one");
    let mut held = connect(40);
    let open = open_connections(&host.datapath);
    assert_eq!(open, held.iter().map(|of| of.len() as i64).collect::<Vec<_>>());
    assert!(spread(&open) <= 6, "{open:?}");
    held[2].clear();
    assert_eq!(open_connections(&host.datapath)[2], 0, "closed is closed at once");
    // It is looked at by every second client.
    let _more = connect(90);
    let open = open_connections(&host.datapath);
    assert!(open.iter().sum::<i64>() > 110 && spread(&open) <= 8, "{open:?}: the idle one caught up");
    // A sweep finds what it knew.
    host.datapath.sweep_flows().expect("a sweep");
    assert_eq!(open_connections(&host.datapath), open);
}

#[test]
fn packets_get_the_backend_with_fewer_connections_and_a_wrong_count_is_put_right() {
    let directory = BpfDir::new();
    let mut datapath = node_with(&directory, least(backends(1..=4)));
    let of = |seen: &[u8]| -> Vec<i64> {
        (1..=4).map(|backend| seen.iter().filter(|seen| **seen == backend).count() as i64).collect()
    };
    let seen = of(&chosen(&mut datapath, 40_000..40_100));
    assert_eq!(open_connections(&datapath), seen);
    assert!(seen.iter().all(|count| (20..=30).contains(count)), "{seen:?}");
    datapath.sweep_flows().expect("a sweep");
    assert_eq!(open_connections(&datapath), seen, "flows that are open are counted");

    // As if closings had been missed.
    let open: PinnedMap<BackendId, i64> =
        PinnedMap::open(&directory.path.join("maps"), maps::OPEN).expect("the counts");
    let first = BackendId(datapath.services()[0].backends[0].backend_id);
    open.insert(&first, &1000).expect("a wrong count");
    let avoided = of(&chosen(&mut datapath, 41_000..41_040));
    assert_eq!(avoided[0], 0, "{avoided:?}");
    datapath.sweep_flows().expect("a sweep");
    let together: Vec<i64> = seen.iter().zip(&avoided).map(|(one, other)| one + other).collect();
    assert_eq!(open_connections(&datapath), together);
    let after = of(&chosen(&mut datapath, 42_000..42_020));
    assert!(after[0] >= 2, "{after:?}: it gets its share again");

    for port in 40_000..40_100 {
        // FIN and ACK.
        asked(&mut datapath, "pod_ingress", CLIENT, port, 0x11);
    }
    datapath.sweep_flows().expect("a sweep");
    let left: Vec<i64> = avoided.iter().zip(&after).map(|(one, other)| one + other).collect();
    assert_eq!(open_connections(&datapath), left, "what ends is no longer open");
    datapath.set_services(services([])).expect("no service");
    datapath.flow_table().sweep(u64::MAX / 2).expect("forgetting all flows");
    assert_eq!(open.read_all().expect("the counts"), [], "nothing is kept of backends that are gone");
}
