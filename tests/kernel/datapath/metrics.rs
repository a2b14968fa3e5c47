//! What is told to who measures: clients by Service, drops by reason, and how full the maps are, exactly.

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream},
    time::Duration,
};

use dataplane::{datapath::Datapath, pressure};
use ebpf_common::{
    Address, Counter, FrontendKey, Port, Protocol, ServiceCount, ServiceId,
    desired::{Endpoint, Service},
    maps,
};

use super::{
    count, endpoint, key, leading_to, open,
    program_runs::{BACKEND, BACKEND_V6, CLIENT, CLIENT_V6, PASS, SHOT, frame, run},
    service, services,
    sockets::{Host, udp},
};
use crate::netns::BpfDir;

const DEADLINE: Duration = Duration::from_secs(5);

fn named(name: &str, service: Service) -> Service {
    Service { name: name.into(), ..service }
}

fn to_backend(backend: &str) -> Vec<Endpoint> {
    vec![endpoint(backend.parse().expect("an address"), 8080, false)]
}

/// default/web at 10.96.0.7:80 and [fd00:96::7]:80 for UDP; default/empty at 10.96.0.8:80 without endpoints.
fn datapath(directory: &BpfDir) -> Datapath {
    let mut datapath = open(directory);
    let wanted = services([
        (key("10.96.0.7:80", Protocol::UDP), named("default/web", leading_to(to_backend(BACKEND)))),
        (key("[fd00:96::7]:80", Protocol::UDP), named("default/web", leading_to(to_backend(BACKEND_V6)))),
        (key("10.96.0.8:80", Protocol::UDP), named("default/empty", leading_to(Vec::new()))),
    ]);
    datapath.set_services(wanted).expect("setting the services");
    datapath
}

/// By the names of Services; what has none is under "".
fn counted(datapath: &Datapath) -> Vec<(String, u64, u64)> {
    let counts = datapath.service_counts().all().expect("the counts");
    let names = datapath.named(&counts.keys().copied().collect());
    let name = |id| names.get(id).cloned().flatten().map_or_else(String::new, String::from);
    let mut counted: Vec<(String, u64, u64)> =
        counts.iter().map(|(id, count)| (name(id), count.chosen, count.refused)).collect();
    counted.sort();
    counted
}

fn is(name: &str, chosen: u64, refused: u64) -> (String, u64, u64) {
    (name.to_owned(), chosen, refused)
}

#[test]
fn flows_are_counted_once_by_service_and_drops_by_reason() {
    let directory = BpfDir::new();
    let mut datapath = datapath(&directory);
    assert_eq!(
        counted(&datapath),
        [is("", 0, 0)],
        "nobody asked, and nothing is there but the place for the rest"
    );
    let mut send = |client: (&str, u16), frontend: &str| {
        run(&mut datapath, "pod_ingress", &frame(Protocol::UDP, client, (frontend, 80), b"x")).0
    };
    for port in 0..3 {
        for _ in 0..4 {
            assert_eq!(send((CLIENT, 40_000 + port), "10.96.0.7"), PASS);
        }
    }
    assert_eq!(send((CLIENT_V6, 40_000), "fd00:96::7"), PASS);
    for _ in 0..5 {
        send((CLIENT, 40_000), "10.96.0.8");
    }
    let mut malformed = frame(Protocol::UDP, (CLIENT, 40_000), ("10.96.0.7", 80), b"x");
    malformed[14] = 0x41;
    for _ in 0..2 {
        assert_eq!(run(&mut datapath, "pod_ingress", &malformed).0, SHOT);
    }
    let beyond = frame(Protocol::UDP, ("10.89.0.200", 40_000), ("10.96.0.8", 80), b"x");
    run(&mut datapath, "uplink_ingress", &beyond);

    assert_eq!(
        counted(&datapath),
        [is("", 0, 0), is("default/empty", 0, 6), is("default/web", 1, 0), is("default/web", 3, 0)]
    );
    let drops = Counter::ALL.into_iter().filter(|counter| counter.is_drop());
    let drops: Vec<(Counter, u64)> =
        drops.map(|counter| (counter, count(&datapath, counter))).filter(|(_, count)| *count != 0).collect();
    assert_eq!(drops, [(Counter::DropNoBackend, 6), (Counter::DropMalformed, 2)]);

    let swept = datapath.sweep_flows().expect("a sweep");
    assert_eq!((swept.seen, swept.deleted), (8, 0));
    let new = dataplane::census::FlowState::New;
    assert_eq!((swept.census.count(Protocol::UDP, new), swept.census.count(Protocol::TCP, new)), (4, 0));
}

#[test]
fn sockets_are_counted_when_they_are_given_a_backend_and_when_there_is_none() {
    let mut host = Host::new();
    let (listener, tcp) = host.namespace.run(|| {
        let listener = std::net::TcpListener::bind("10.244.0.1:0").expect("a listener");
        let bound = listener.local_addr().expect("its address");
        (listener, bound)
    });
    let (_server, datagrams) = host.namespace.run(|| udp("10.244.0.2:0"));
    let wanted = services([
        (key("10.96.0.7:80", Protocol::TCP), named("default/web:http", service(&[tcp]))),
        (key("10.96.0.7:53", Protocol::UDP), named("default/web:dns", service(&[datagrams]))),
        (key("10.96.0.8:80", Protocol::TCP), named("default/empty", leading_to(Vec::new()))),
    ]);
    host.datapath.set_services(wanted).expect("setting the services");
    host.namespace.run(|| {
        let connect = |address: &str| -> io::Result<TcpStream> {
            let address: SocketAddr = address.parse().expect("an address");
            TcpStream::connect_timeout(&address, DEADLINE)
        };
        for _ in 0..3 {
            connect("10.96.0.7:80").expect("a connection");
            listener.accept().expect("at the backend");
        }
        for _ in 0..2 {
            let refused = connect("10.96.0.8:80").expect_err("nobody is there");
            assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        }
        let (client, _) = udp("0.0.0.0:0");
        for _ in 0..4 {
            client.send_to(b"x", "10.96.0.7:53").expect("sending");
        }
    });
    assert_eq!(
        counted(&host.datapath),
        [is("", 0, 0), is("default/empty", 0, 2), is("default/web:dns", 1, 0), is("default/web:http", 3, 0)]
    );
}

#[test]
fn counts_outlive_the_agent_and_go_with_their_service() {
    let directory = BpfDir::new();
    let mut datapath = datapath(&directory);
    let asked = frame(Protocol::UDP, (CLIENT, 40_000), ("10.96.0.7", 80), b"x");
    run(&mut datapath, "pod_ingress", &asked);
    drop(datapath);
    let mut datapath = open(&directory);
    assert_eq!(counted(&datapath), [is("", 0, 0), is("", 1, 0)], "counts stay, and names are still to come");
    let before = datapath.names_generation();
    datapath.set_services(services([])).expect("taking the services away");
    assert_ne!(datapath.names_generation(), before);
    let counts = datapath.service_counts();
    let ids = counts.all().expect("the counts").into_keys().filter(|id| *id != ServiceCount::REST);
    let ids: Vec<ServiceId> = ids.collect();
    assert!(datapath.named(&ids.iter().copied().collect()).is_empty(), "no frontend has the id any more");
    counts.remove(&ids).expect("forgetting it");
    assert_eq!(counts.get(ids[0]).expect("a look"), None);
    assert_eq!(counted(&datapath), [is("", 0, 0)]);
}

#[test]
fn what_the_map_has_no_room_for_is_counted_together() {
    const MORE: u32 = 200;
    let directory = BpfDir::new();
    let mut datapath = open(&directory);
    let address = |number: u32| Ipv4Addr::from(0x0a60_0000 + number);
    let all = maps::SERVICE_COUNTS_MAX + MORE;
    let wanted = (0..all).map(|number| {
        let address = Address::from(IpAddr::from(address(number)));
        (FrontendKey::new(address, Port::new(80), Protocol::UDP), named("default/s", leading_to(Vec::new())))
    });
    datapath.set_services(services(wanted)).expect("setting the services");
    for number in 0..all {
        let to = address(number).to_string();
        run(&mut datapath, "pod_ingress", &frame(Protocol::UDP, (CLIENT, 40_000), (&to, 80), b"x"));
    }
    let counts = datapath.service_counts().all().expect("the counts");
    assert!(counts.len() <= maps::SERVICE_COUNTS_MAX as usize, "{} elements", counts.len());
    let rest = counts[&ServiceCount::REST].refused;
    assert_eq!(counts.values().map(|count| count.refused).sum::<u64>(), u64::from(all), "nobody is lost");
    assert_eq!(rest, u64::from(all) - (counts.len() as u64 - 1));
    assert!(rest > u64::from(MORE), "{rest} of the rest");
}

#[test]
fn maps_that_can_be_full_are_known_with_their_sizes_and_the_agents_numbers_are_the_kernels() {
    let directory = BpfDir::new();
    let mut datapath = datapath(&directory);
    let is_same = |datapath: &Datapath| {
        let entries = datapath.map_entries();
        let known: BTreeSet<&str> = entries.iter().map(|(map, _)| *map).collect();
        assert_eq!(known, pressure::WRITTEN_BY_AGENT.into());
        for (map, entries) in entries {
            let found = pressure::count(datapath.maps_dir(), map).expect("a count");
            assert_eq!(found, entries as u64, "{map}");
        }
    };
    is_same(&datapath);
    assert!(datapath.map_entries().contains(&(maps::FRONTENDS, 3)));
    let change = [(key("10.96.0.7:80", Protocol::UDP), None)];
    datapath.change_services(change.iter().map(|(key, change)| (key, change)));
    is_same(&datapath);
    datapath.apply_services().expect("taking one away");
    is_same(&datapath);
    drop(datapath);
    is_same(&open(&directory));

    let rooms = pressure::rooms(&directory.path.join("maps")).expect("the maps");
    let names: BTreeSet<&str> = rooms.iter().map(|room| room.map.as_str()).collect();
    let others = [
        maps::COUNTERS,
        maps::NODE,
        maps::CALLS,
        maps::RANGES,
        maps::POD_RANGES,
        maps::ANSWERS,
        maps::BEYOND,
        maps::DROPS,
        maps::DROP_GATES,
        maps::DROPS_FOLLOWED,
        maps::MASQUERADE,
        maps::COUNTING,
        maps::STREAMS_CONNECTED,
        maps::SENDERS,
        maps::POLICING,
    ];
    let wanted: BTreeSet<&str> = maps::ALL.into_iter().filter(|map| !others.contains(map)).collect();
    assert_eq!(names, wanted, "arrays are always full");
    let room = |map| rooms.iter().find(|room| room.map == map).expect("it is there");
    assert_eq!(room(maps::CONNTRACK).max_entries, maps::CONNTRACK_MAX);
    assert_eq!((room(maps::AFFINITY).kind.as_str(), room(maps::AFFINITY).name()), ("lru_hash", "AFFINITY"));
}
