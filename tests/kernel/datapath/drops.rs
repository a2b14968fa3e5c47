//! Drops as they are told: only while somebody follows, with all that is known of the packet, and not too many.

use dataplane::{datapath::Datapath, drops::DropReader};
use ebpf_common::{Address, Counter, Dropped, Port, Protocol};

use super::{
    count, key, leading_to, open,
    program_runs::{CLIENT, CLIENT_V6, SHOT, frame, run},
    services,
};
use crate::netns::{BpfDir, eventually};

/// Two Services without endpoints.
fn datapath(directory: &BpfDir) -> Datapath {
    let mut datapath = open(directory);
    let empty =
        ["10.96.0.7:80", "[fd00:96::7]:80"].map(|at| (key(at, Protocol::UDP), leading_to(Vec::new())));
    datapath.set_services(services(empty)).expect("setting the services");
    datapath
}

/// On its way out nobody is told of a drop, so that the packet does not become an answer.
fn drop_one(datapath: &mut Datapath, client: &str, frontend: &str) -> usize {
    let packet = frame(Protocol::UDP, (client, 40000), (frontend, 80), b"x");
    run(datapath, "pod_ingress", &packet);
    packet.len()
}

fn follow(datapath: &Datapath) -> DropReader {
    DropReader::open(datapath.maps_dir()).expect("following")
}

#[test]
fn a_drop_is_told_with_its_reason_and_both_ends_in_both_families() {
    let directory = BpfDir::new();
    let mut datapath = datapath(&directory);
    let mut reader = follow(&datapath);
    for (client, frontend) in [(CLIENT, "10.96.0.7"), (CLIENT_V6, "fd00:96::7")] {
        let length = drop_one(&mut datapath, client, frontend);
        let told = reader.take(9);
        let [dropped] = told.as_slice() else { panic!("one drop, and not {told:?}") };
        let address = |text: &str| Address::from(text.parse::<std::net::IpAddr>().expect("an address"));
        let reason = Counter::DropNoBackend as u32;
        let mut wanted = Dropped::new(dropped.time_ns, reason, dropped.interface_index, length as u32);
        (wanted.source, wanted.source_port) = (address(client), Port::new(40000));
        (wanted.destination, wanted.destination_port) = (address(frontend), Port::new(80));
        wanted.protocol = Protocol::UDP;
        assert_eq!(*dropped, wanted);
        assert!(dropped.time_ns <= dataplane::flows::now_ns());
    }
    assert_eq!(reader.missed().expect("the count"), 0);
}

#[test]
fn what_cannot_be_read_to_its_ports_is_told_with_its_addresses() {
    let directory = BpfDir::new();
    let mut datapath = datapath(&directory);
    let mut reader = follow(&datapath);
    let mut packet = frame(Protocol::UDP, (CLIENT, 40000), ("10.96.0.7", 80), b"x");
    // A header length below the least.
    packet[14] = 0x41;
    assert_eq!(run(&mut datapath, "pod_ingress", &packet).0, SHOT);
    let told = reader.take(9);
    let [dropped] = told.as_slice() else { panic!("one drop, and not {told:?}") };
    assert_eq!((dropped.reason, dropped.protocol), (Counter::DropMalformed as u32, Protocol::UDP));
    assert_eq!((dropped.source.to_ip().to_string(), dropped.source_port.get()), (CLIENT.to_owned(), 0));
}

#[test]
fn nothing_is_told_while_nobody_follows() {
    let directory = BpfDir::new();
    let mut datapath = datapath(&directory);
    drop_one(&mut datapath, CLIENT, "10.96.0.7");
    let mut reader = follow(&datapath);
    assert!(reader.take(9).is_empty(), "what came before is not told");
    drop_one(&mut datapath, CLIENT, "10.96.0.7");
    assert_eq!(reader.take(9).len(), 1);
    drop(reader);
    drop_one(&mut datapath, CLIENT, "10.96.0.7");
    let mut reader = follow(&datapath);
    assert!(reader.take(9).is_empty(), "what came in between is not told");
    assert_eq!(count(&datapath, Counter::DropNoBackend), 3, "all are counted");
}

#[test]
fn a_flood_is_told_in_part_and_the_rest_is_counted() {
    const COUNT: u64 = 20_000;
    let directory = BpfDir::new();
    let mut datapath = datapath(&directory);
    let mut reader = follow(&datapath);
    let (mut told, mut missed) = (0, 0);
    for _ in 0..COUNT {
        drop_one(&mut datapath, CLIENT, "10.96.0.7");
    }
    eventually("each is told or counted", || {
        told += reader.take(usize::MAX).len() as u64;
        missed += reader.missed().expect("the count");
        (told + missed == COUNT).then_some(())
    });
    assert!(missed > 0 && told >= 256, "{told} told, {missed} missed");
}
