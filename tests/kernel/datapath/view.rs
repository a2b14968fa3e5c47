//! Maps as they are shown: all of them, each element once, in the types of the layout, and flows with both halves.

use std::{collections::BTreeSet, net::IpAddr};

use dataplane::{
    flows::{Way, now_ns},
    view::{self, Element, Walk},
};
use ebpf_common::{Address, Counter, Origin, Protocol, maps};

use super::{
    chain, endpoint, key, leading_to, open,
    program_runs::{BACKEND, CLIENT, PASS, datapath, frame, run},
    services,
};
use crate::netns::BpfDir;

fn elements(datapath: &dataplane::datapath::Datapath, map: &str) -> Vec<Element> {
    let mut walk = Walk::open(datapath.maps_dir(), map).unwrap_or_else(|error| panic!("{}", chain(&error)));
    let mut elements = Vec::new();
    while let Some(piece) = walk.next_piece().unwrap_or_else(|error| panic!("{map}: {}", chain(&error))) {
        elements.extend(piece);
    }
    elements
}

#[test]
fn every_pinned_map_is_listed_and_dumped_with_as_many_elements_as_it_is_said_to_have() {
    let directory = BpfDir::new();
    let mut datapath = datapath(&directory);
    let asked = frame(Protocol::TCP, (CLIENT, 40000), ("10.96.0.7", 80), b"");
    assert_eq!(run(&mut datapath, "pod_ingress", &asked).0, PASS);
    let listed = view::list(datapath.maps_dir()).expect("the list");
    let names: BTreeSet<&str> = listed.iter().map(|map| map.name.as_str()).collect();
    assert_eq!(names, maps::ALL.into());
    for map in &listed {
        let Some(entries) = map.entries else { continue };
        let elements = elements(&datapath, &map.name);
        assert_eq!(elements.len() as u64, entries, "{map:?}");
        assert!(entries <= u64::from(map.capacity) && map.layout.is_some(), "{map:?}");
        // The kernel accounts for the elements of a trie, and for nothing else of it.
        let is_empty_trie = map.kind == "lpm_trie" && entries == 0;
        assert!(map.memory_bytes.is_some_and(|bytes| bytes > 0 || is_empty_trie), "{map:?}");
        let unknown = elements.iter().any(|element| matches!(element, Element::Bytes(..)));
        assert!(!unknown, "{} is shown as bytes", map.name);
    }
    let map = |name: &str| listed.iter().find(|map| map.name == name).expect("it is listed");
    assert_eq!(map(maps::FRONTENDS).entries, Some(6));
    assert_eq!((map(maps::FRONTENDS).kind.as_str(), map(maps::AFFINITY).kind.as_str()), ("hash", "lru_hash"));
    assert_eq!((map(maps::CONNTRACK).entries, map(maps::CONNTRACK).key_bytes), (Some(2), 40));
    assert_eq!(map(maps::COUNTERS).kind, "percpu_array");
}

#[test]
fn elements_are_those_that_were_written_and_names_are_joined() {
    let directory = BpfDir::new();
    let mut datapath = datapath(&directory);
    let asked = frame(Protocol::TCP, (CLIENT, 40000), ("10.96.0.7", 80), b"");
    run(&mut datapath, "pod_ingress", &asked);
    let frontend = key("10.96.0.7:80", Protocol::TCP);
    let found = elements(&datapath, maps::FRONTENDS).into_iter().find_map(|element| match element {
        Element::Frontend(key, value) if key == frontend => Some(value),
        _ => None,
    });
    let found = found.expect("the frontend");
    assert_eq!(found.slots(Origin::Node), (0, 1));
    let backend: IpAddr = BACKEND.parse().expect("an address");
    let address = Address::from(backend);
    let backends = elements(&datapath, maps::BACKENDS);
    let with_address = backends.iter().filter(|element| element.addresses().contains(&address)).count();
    assert_eq!(with_address, 3, "one of each protocol in {backends:?}");
    let counted = Element::Counter(Counter::FlowNew as u32, 1);
    assert!(elements(&datapath, maps::COUNTERS).contains(&counted));

    let names = datapath.names(&[found.service_id].into(), &[frontend.address, address].into());
    assert_eq!(names.by_id[&found.service_id], "default/web");
    assert_eq!(names.by_address.get(&frontend.address).map(String::as_str), Some("default/web"));
    assert_eq!(names.by_address.get(&address), None);
    assert_eq!(datapath.ids_of("default/web").len(), 6);
    assert!(datapath.ids_of("default/we").is_empty());
    assert_eq!(datapath.service_at(&frontend), Some("default/web"));
}

#[test]
fn a_large_map_is_walked_in_pieces_and_each_element_comes_once() {
    const COUNT: u32 = 5000;
    let directory = BpfDir::new();
    let mut datapath = open(&directory);
    let backend = endpoint(BACKEND.parse().expect("an address"), 8080, false);
    let wanted = (0..COUNT).map(|number| {
        let frontend = format!("10.96.{}.{}:80", number >> 8, number & 255);
        (key(&frontend, Protocol::TCP), leading_to(vec![backend]))
    });
    datapath.set_services(services(wanted)).expect("setting the services");
    let mut walk = Walk::open(datapath.maps_dir(), maps::FRONTENDS).expect("the map");
    let mut seen = BTreeSet::new();
    let mut largest = 0;
    while let Some(piece) = walk.next_piece().expect("a piece") {
        largest = largest.max(piece.len());
        for element in piece {
            let Element::Frontend(key, _) = element else { panic!("{element:?} among frontends") };
            assert!(seen.insert(key), "{key:?} came twice");
        }
    }
    assert_eq!(seen.len(), COUNT as usize);
    assert!(largest <= 2048, "{largest} elements were held at once");
}

#[test]
fn a_flow_is_shown_with_what_both_sides_packets_become() {
    let directory = BpfDir::new();
    let mut datapath = datapath(&directory);
    let asked = frame(Protocol::TCP, (CLIENT, 40000), ("10.96.0.7", 80), b"");
    assert_eq!(run(&mut datapath, "pod_ingress", &asked).0, PASS);
    let flows = datapath.flow_table();
    let of = |wanted: Protocol| {
        let mut walk = flows.walk().expect("a walk");
        let piece =
            flows.next_piece(&mut walk, now_ns(), |tuple, _| tuple.protocol == wanted).expect("a piece");
        piece.unwrap_or_default()
    };
    assert!(of(Protocol::UDP).is_empty());
    let found = of(Protocol::TCP);
    let [flow] = found.as_slice() else { panic!("one flow, and not {found:?}") };
    assert_eq!((flow.state, flow.way, flow.timeout_seconds), ("new", Way::Direct, 60));
    let answers = flow.from_backend.expect("the entry of the answers");
    assert_eq!(answers.tuple, flow.from_client.translated.reversed());
    assert_eq!(answers.translated, flow.from_client.tuple.reversed());
    assert!(flow.from_client.seen && !answers.seen);

    let answered = frame(Protocol::TCP, (BACKEND, 8080), (CLIENT, 40000), b"");
    assert_eq!(run(&mut datapath, "pod_egress", &answered).0, PASS);
    let found = of(Protocol::TCP);
    assert_eq!((found[0].state, found[0].timeout_seconds), ("established", 8000));
}
