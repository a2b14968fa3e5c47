//! SCTP through a Service: single packets to the byte, and whole associations between raw sockets, which work where the
//! kernel has no SCTP of its own.

mod associations;

use std::net::IpAddr;

use aya::programs::{SchedClassifier, TestRun, TestRunOptions};
use dataplane::{datapath::Datapath, node::NodeConfig};
use ebpf_common::{
    Counter, Protocol,
    sctp::{self, CHECKSUM_AT},
};

use super::{
    count, endpoint,
    errors::{error, quote},
    key, leading_to,
    node::to,
    open,
    program_runs::{BACKEND, BACKEND_V6, CLIENT, CLIENT_V6, PASS, REDIRECT, SHOT, datapath, enclosed, run},
    services,
};
use crate::netns::BpfDir;

/// A client, a frontend and its backend, where the SCTP header is in a frame, and where the length of the IP packet.
const FAMILIES: [(&str, &str, &str, usize); 2] =
    [(CLIENT, "10.96.0.7", BACKEND, 34), (CLIENT_V6, "fd00:96::7", BACKEND_V6, 54)];

/// What either side wants as verification tag.
const TAG_OF_CLIENT: u32 = 0x0102_0304;
const TAG_OF_BACKEND: u32 = 0xa1a2_a3a4;

/// Types of chunks (RFC 9260 3.2).
const INIT: u8 = 1;
const INIT_ACK: u8 = 2;
const SACK: u8 = 3;
const HEARTBEAT: u8 = 4;
const ABORT: u8 = 6;
const SHUTDOWN: u8 = 7;
const SHUTDOWN_ACK: u8 = 8;
const COOKIE_ECHO: u8 = 10;
const COOKIE_ACK: u8 = 11;
const SHUTDOWN_COMPLETE: u8 = 14;

/// A chunk, filled up to a word.
pub fn chunk(kind: u8, flags: u8, value: &[u8]) -> Vec<u8> {
    let mut chunk = vec![kind, flags];
    chunk.extend((4 + value.len() as u16).to_be_bytes());
    chunk.extend(value);
    chunk.resize(chunk.len().next_multiple_of(4), 0);
    chunk
}

/// An INIT or INIT ACK whose sender wants `tag`.
fn init_chunk(kind: u8, tag: u32, parameters: &[u8]) -> Vec<u8> {
    let mut value = tag.to_be_bytes().to_vec();
    // Window, streams out and in, first TSN.
    value.extend([0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1]);
    value.extend(parameters);
    chunk(kind, 0, &value)
}

pub fn data(payload: &[u8]) -> Vec<u8> {
    chunk(0, 3, &[&[0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0], payload].concat())
}

/// A packet with a right checksum.
fn packet(ports: (u16, u16), tag: u32, chunks: &[u8]) -> Vec<u8> {
    let mut packet = [ports.0.to_be_bytes(), ports.1.to_be_bytes()].concat();
    packet.extend(tag.to_be_bytes());
    packet.extend([0; 4]);
    packet.extend(chunks);
    let sum = sctp::checksum(&packet).to_le_bytes();
    packet[CHECKSUM_AT..CHECKSUM_AT + 4].copy_from_slice(&sum);
    packet
}

/// A packet that begins an association.
pub fn init(ports: (u16, u16), parameters: &[u8]) -> Vec<u8> {
    packet(ports, 0, &init_chunk(INIT, TAG_OF_CLIENT, parameters))
}

/// An Ethernet frame of a packet with a right checksum.
pub fn frame(from: (&str, u16), to: (&str, u16), tag: u32, chunks: &[u8]) -> Vec<u8> {
    let ip = |text: &str| text.parse::<IpAddr>().expect("an address");
    enclosed(Protocol::SCTP, ip(from.0), ip(to.0), &packet((from.1, to.1), tag, chunks))
}

/// One after another through the programs at the client's link, with what becomes of them checked.
struct Association<'a> {
    datapath: &'a mut Datapath,
    of: (&'static str, &'static str, &'static str, usize),
}

impl Association<'_> {
    fn client_sends(&mut self, tag: u32, chunks: &[u8]) {
        let (client, frontend, backend, _) = self.of;
        let sent = frame((client, 40000), (frontend, 80), tag, chunks);
        let wanted = frame((client, 40000), (backend, 8080), tag, chunks);
        assert_eq!(run(self.datapath, "pod_ingress", &sent), (PASS, wanted), "{chunks:?}");
    }

    fn backend_sends(&mut self, tag: u32, chunks: &[u8]) {
        let (client, frontend, backend, _) = self.of;
        let sent = frame((backend, 8080), (client, 40000), tag, chunks);
        let wanted = frame((frontend, 80), (client, 40000), tag, chunks);
        assert_eq!(run(self.datapath, "pod_egress", &sent), (PASS, wanted), "{chunks:?}");
    }

    /// Until both sides have said that they know each other.
    fn establish(&mut self) {
        self.client_sends(0, &init_chunk(INIT, TAG_OF_CLIENT, b""));
        self.backend_sends(TAG_OF_CLIENT, &init_chunk(INIT_ACK, TAG_OF_BACKEND, b"\0\x07\0\x08cook"));
        self.client_sends(TAG_OF_BACKEND, &chunk(COOKIE_ECHO, 0, b"cook"));
        self.backend_sends(TAG_OF_CLIENT, &chunk(COOKIE_ACK, 0, b""));
        assert_eq!(self.state(), ("established", 210));
    }

    fn state(&self) -> (&'static str, u64) {
        let flows = self.datapath.flows().expect("the flows");
        let client: IpAddr = self.of.0.parse().expect("an address");
        let flow = flows.iter().find(|flow| flow.client == (client, 40000)).expect("the flow");
        (flow.state, flow.timeout_seconds)
    }
}

#[test]
fn an_association_is_followed_from_its_begin_to_its_end() {
    let directory = BpfDir::new();
    let mut datapath = datapath(&directory);
    for of in FAMILIES {
        let mut association = Association { datapath: &mut datapath, of };
        association.client_sends(0, &init_chunk(INIT, TAG_OF_CLIENT, b""));
        assert_eq!(association.state(), ("cookie-wait", 60));
        association.backend_sends(TAG_OF_CLIENT, &init_chunk(INIT_ACK, TAG_OF_BACKEND, b""));
        assert_eq!(association.state(), ("cookie-wait", 60));
        association.client_sends(TAG_OF_BACKEND, &[chunk(COOKIE_ECHO, 0, b"odd"), data(b"x")].concat());
        assert_eq!(association.state(), ("cookie-echoed", 60));
        let acknowledged = [chunk(COOKIE_ACK, 0, b""), chunk(SACK, 0, &[0; 12]), data(b"xy")].concat();
        association.backend_sends(TAG_OF_CLIENT, &acknowledged);
        association.client_sends(TAG_OF_BACKEND, &data(b"xyz"));
        association.client_sends(TAG_OF_BACKEND, &chunk(HEARTBEAT, 0, &[0, 1, 0, 6, 1, 2]));
        assert_eq!(association.state(), ("established", 210));
        // Behind another chunk too.
        association
            .client_sends(TAG_OF_BACKEND, &[chunk(SACK, 0, &[0; 12]), chunk(SHUTDOWN, 0, &[0; 4])].concat());
        assert_eq!(association.state(), ("shutdown-sent", 60));
        association.backend_sends(TAG_OF_CLIENT, &chunk(SHUTDOWN_ACK, 0, b""));
        assert_eq!(association.state(), ("shutdown-ack-sent", 60));
        association.client_sends(TAG_OF_BACKEND, &chunk(SHUTDOWN_COMPLETE, 0, b""));
        assert_eq!(association.state(), ("closed", 10));
    }
    assert_eq!(count(&datapath, Counter::FlowNew), 2);
}

#[test]
fn only_who_knows_the_tags_ends_an_association() {
    let directory = BpfDir::new();
    let mut datapath = datapath(&directory);
    for of in FAMILIES {
        let mut association = Association { datapath: &mut datapath, of };
        association.establish();
        for tag in [0, 1, TAG_OF_CLIENT] {
            for kind in [ABORT, SHUTDOWN_COMPLETE, SHUTDOWN, SHUTDOWN_ACK] {
                association.client_sends(tag, &chunk(kind, 0, b""));
                association.backend_sends(tag ^ TAG_OF_CLIENT ^ TAG_OF_BACKEND, &chunk(kind, 0, b""));
            }
            // Data that looks like it.
            association.client_sends(TAG_OF_BACKEND, &data(&chunk(ABORT, 0, b"")));
        }
        // One that is reflected has the tag of who sends it, and of no one else.
        association.client_sends(TAG_OF_BACKEND, &chunk(ABORT, 1, b""));
        assert_eq!(association.state(), ("established", 210));
        association.client_sends(TAG_OF_CLIENT, &chunk(ABORT, 1, b""));
        assert_eq!(association.state(), ("aborted", 10));
        // The next one on the same ports is another flow.
        association.establish();
        association.backend_sends(TAG_OF_CLIENT, &chunk(ABORT, 0, b"\0\x0c\0\x04"));
        assert_eq!(association.state(), ("aborted", 10));
    }
    assert_eq!(count(&datapath, Counter::FlowNew), 4);
}

#[test]
fn an_init_that_is_sent_again_stays_with_its_backend_until_that_is_gone_or_the_association_over() {
    let directory = BpfDir::new();
    let mut datapath = open(&directory);
    let all: Vec<_> = (1..=20).map(|n| endpoint(IpAddr::from([10, 244, 1, n]), 8080, false)).collect();
    let frontend = key("10.96.0.7:80", Protocol::SCTP);
    datapath.set_services(services([(frontend, leading_to(all.clone()))])).expect("setting the services");
    let sent = frame((CLIENT, 40000), ("10.96.0.7", 80), 0, &init_chunk(INIT, TAG_OF_CLIENT, b""));
    let backend = |datapath: &mut Datapath| run(datapath, "pod_ingress", &sent).1[33];
    let first = backend(&mut datapath);
    assert!((0..20).all(|_| backend(&mut datapath) == first));
    assert_eq!(count(&datapath, Counter::FlowNew), 1);
    let rest: Vec<_> = all.into_iter().filter(|at| at.address.octets()[15] != first).collect();
    datapath.set_services(services([(frontend, leading_to(rest))])).expect("one less");
    // DATA goes on to who has the association.
    let data = frame((CLIENT, 40000), ("10.96.0.7", 80), TAG_OF_BACKEND, &data(b"x"));
    assert_eq!(run(&mut datapath, "pod_ingress", &data).1[33], first);
    assert_ne!(backend(&mut datapath), first);
    assert_eq!(count(&datapath, Counter::FlowNew), 2);
}

#[test]
fn a_checksum_of_zero_is_the_devices_to_fill_in() {
    let directory = BpfDir::new();
    let mut datapath = datapath(&directory);
    for (client, frontend, backend, at) in FAMILIES {
        let without = |mut frame: Vec<u8>| {
            frame[at + CHECKSUM_AT..at + CHECKSUM_AT + 4].fill(0);
            frame
        };
        let chunks = init_chunk(INIT, TAG_OF_CLIENT, b"parameters");
        let asked = without(frame((client, 40000), (frontend, 80), 0, &chunks));
        let wanted = without(frame((client, 40000), (backend, 8080), 0, &chunks));
        assert_eq!(run(&mut datapath, "pod_ingress", &asked), (PASS, wanted));
    }
}

#[test]
fn what_the_link_adds_behind_a_packet_is_none_of_its_checksum() {
    let directory = BpfDir::new();
    let mut datapath = datapath(&directory);
    for (client, frontend, backend, _) in FAMILIES {
        let chunks = chunk(SHUTDOWN_COMPLETE, 0, b"");
        let padded = |mut frame: Vec<u8>| {
            frame.resize(90, 0);
            frame
        };
        let asked = padded(frame((client, 40000), (frontend, 80), 7, &chunks));
        let wanted = padded(frame((client, 40000), (backend, 8080), 7, &chunks));
        assert_eq!(run(&mut datapath, "pod_ingress", &asked), (PASS, wanted));
    }
    // Options and extension headers are none of it either.
    let (client, frontend, backend, _) = FAMILIES[1];
    let extended = |to: (&str, u16)| {
        let mut frame = frame((client, 40001), to, 7, &data(b"x"));
        frame.splice(54..54, [132, 0, 1, 4, 0, 0, 0, 0]);
        frame[20] = 60;
        frame[19] += 8;
        frame
    };
    assert_eq!(
        run(&mut datapath, "pod_ingress", &extended((frontend, 80))),
        (PASS, extended((backend, 8080)))
    );
}

#[test]
fn large_packets_have_right_checksums_too() {
    let directory = BpfDir::new();
    let mut datapath = datapath(&directory);
    for (client, frontend, backend, _) in FAMILIES {
        for bytes in [2000, 3400] {
            let chunks = data(&vec![0xa5; bytes]);
            let asked = frame((client, 40000), (frontend, 80), 7, &chunks);
            let wanted = frame((client, 40000), (backend, 8080), 7, &chunks);
            assert_eq!(run(&mut datapath, "pod_ingress", &asked), (PASS, wanted), "{bytes}");
        }
    }
}

#[test]
fn a_first_fragment_passes_where_its_ports_stay_and_is_dropped_where_its_checksum_could_not_follow() {
    let directory = BpfDir::new();
    let mut datapath = open(&directory);
    let to = |port| leading_to(vec![endpoint(BACKEND.parse().expect("an address"), port, false)]);
    let wanted = [("10.96.0.7:80", 80), ("10.96.0.8:80", 8080)];
    let wanted = wanted.map(|(frontend, port)| (key(frontend, Protocol::SCTP), to(port)));
    datapath.set_services(services(wanted)).expect("setting the services");
    let fragment = |address: &str, offset: u16| {
        let mut frame = frame((CLIENT, 40000), (address, 80), 7, &data(&[7; 32]));
        frame[20..22].copy_from_slice(&offset.to_be_bytes());
        frame[24..26].fill(0);
        let sum = ebpf_common::checksum::checksum(&frame[14..34]);
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
        frame
    };
    const MORE: u16 = 0x2000;
    for offset in [MORE, 8] {
        let came = run(&mut datapath, "pod_ingress", &fragment("10.96.0.7", offset));
        assert_eq!(came, (PASS, fragment(BACKEND, offset)));
    }
    assert_eq!(run(&mut datapath, "pod_ingress", &fragment("10.96.0.8", MORE)).0, SHOT);
    assert_eq!(count(&datapath, Counter::DropFragment), 1);
}

#[test]
fn an_association_with_nobody_is_refused_as_unreachable_with_the_tag_that_its_client_is_known_by() {
    let directory = BpfDir::new();
    let mut datapath = open(&directory);
    let nobody = ["10.96.0.7:80", "[fd00:96::7]:80"].map(|at| (key(at, Protocol::SCTP), to(&[])));
    datapath.set_services(services(nobody)).expect("setting the services");
    for (client, frontend, _, _) in FAMILIES {
        let kind = if client == CLIENT { (3, 3, [0; 4]) } else { (1, 4, [0; 4]) };
        let begins = init_chunk(INIT, TAG_OF_CLIENT, b"");
        for (tag, chunks, quoted) in [(0, begins, 20), (7, chunk(COOKIE_ACK, 0, b""), 8)] {
            let mut asked = frame((client, 40000), (frontend, 80), tag, &chunks);
            asked[..6].fill(0);
            let mut wanted = error(kind, frontend, client, &quote(&asked, quoted));
            wanted[..6].copy_from_slice(&[2, 0, 0, 0, 0, 2]);
            wanted[6..12].fill(0);
            if client == CLIENT {
                // Not to be fragmented, and so without identification.
                wanted[18..22].copy_from_slice(&[0, 0, 0x40, 0]);
                wanted[24..26].fill(0);
                let sum = ebpf_common::checksum::checksum(&wanted[14..34]);
                wanted[24..26].copy_from_slice(&sum.to_be_bytes());
            }
            assert_eq!(run(&mut datapath, "pod_ingress", &asked), (REDIRECT, wanted), "{client} {tag}");
        }
    }
    assert_eq!(count(&datapath, Counter::DropNoBackend), 4);
}

#[test]
fn what_is_sent_on_to_a_backend_elsewhere_gets_a_port_of_the_node_and_the_checksum_of_it() {
    let directory = BpfDir::new();
    let mut datapath = datapath(&directory);
    let nodes = ["10.89.0.11", "fd00:89::11"];
    let sources = nodes.map(|node| node.parse().expect("an address")).to_vec();
    datapath.set_node(&NodeConfig { sources, ..NodeConfig::default() }).expect("the node's addresses");
    let beyond = ["10.89.0.12", "fd00:89::12"];
    for ((node, client), (_, frontend, backend, at)) in nodes.into_iter().zip(beyond).zip(FAMILIES) {
        let chunks = init_chunk(INIT, TAG_OF_CLIENT, b"");
        let (verdict, mut out) =
            run(&mut datapath, "uplink_ingress", &frame((client, 40000), (frontend, 80), 0, &chunks));
        let port = u16::from_be_bytes([out[at], out[at + 1]]);
        assert!(port >= 49152, "{port}");
        // One hop less.
        let mut wanted = frame((node, port), (backend, 8080), 0, &chunks);
        for packet in [&mut wanted, &mut out] {
            packet[21..26].fill(0);
        }
        assert_eq!((verdict, out), (REDIRECT, wanted));
        let answer = chunk(ABORT, 0, b"");
        let (verdict, out) = run(
            &mut datapath,
            "uplink_ingress",
            &frame((backend, 8080), (node, port), TAG_OF_CLIENT, &answer),
        );
        let wanted = frame((frontend, 80), (client, 40000), TAG_OF_CLIENT, &answer);
        assert_eq!((verdict, &out[at..]), (REDIRECT, &wanted[at..]));
    }
}

#[test]
fn the_programs_look_into_no_more_chunks_than_there_are() {
    let directory = BpfDir::new();
    let mut datapath = datapath(&directory);
    let mut programs = datapath.programs_mut();
    let program: &mut SchedClassifier = programs
        .ebpf_mut()
        .program_mut("pod_ingress")
        .expect("the program")
        .try_into()
        .expect("a classifier");
    for chunks in
        [&[][..], &[1], &[14, 0, 0], &[4, 0, 0, 0], &[4, 0, 0, 3], &[6, 0, 0xff, 0xff], &[4, 0, 0xff, 0xfe]]
    {
        let asked = frame((CLIENT, 40000), ("10.96.0.7", 80), 7, chunks);
        let mut out = vec![0; asked.len()];
        let options =
            TestRunOptions { data_in: Some(&asked), data_out: Some(&mut out), ..TestRunOptions::default() };
        assert_eq!(program.test_run(options).expect("a run").return_value, PASS, "{chunks:?}");
        assert_eq!(out, frame((CLIENT, 40000), (BACKEND, 8080), 7, chunks), "{chunks:?}");
    }
}
