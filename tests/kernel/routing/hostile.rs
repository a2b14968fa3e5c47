//! A peer that sends what is malformed: tshark says so of its messages, and of none of our answers.

use std::io::{Read, Write};
use std::net::Ipv4Addr;
use std::time::Duration;

use bgp::wire::{self, Capability, Open};

use super::agent::{Agent, connect_from, first_notification};
use super::capture::Capture;
use super::peers::wire as two_hosts;

fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = (19 + body.len()) as u16;
    [&[0xff; 16][..], &length.to_be_bytes(), &[kind], body].concat()
}

/// An UPDATE of these attributes and octets of NLRI.
fn update(attributes: &[u8], reach: &[u8]) -> Vec<u8> {
    let length = (attributes.len() as u16).to_be_bytes();
    message(2, &[&[0, 0], &length[..], attributes, reach].concat())
}

/// What follows OPEN and KEEPALIVE, and the code and subcode that it is answered with.
fn hostile() -> Vec<(&'static str, Vec<u8>, [u8; 2])> {
    let attributes: &[u8] = &[0x40, 1, 1, 0, 0x40, 2, 0, 0x40, 3, 4, 192, 0, 2, 2, 0x40, 5, 4, 0, 0, 0, 100];
    let mut marker = message(4, &[]);
    marker[3] = 0;
    vec![
        ("no marker", marker, [1, 1]),
        ("a KEEPALIVE of 20 octets", message(4, &[0]), [1, 2]),
        ("a message of type 9", message(9, &[]), [1, 3]),
        ("an OPEN too many", message(1, &[4, 0xfc, 0, 0, 90, 192, 0, 2, 2, 0]), [5, 3]),
        ("withdrawn routes beyond the end", message(2, &[0xff, 0xff, 0, 0]), [3, 1]),
        ("attributes beyond the end", message(2, &[0, 0, 0xff, 0xff]), [3, 1]),
        ("a prefix of 33 bits", update(attributes, &[33, 10, 1, 1, 1, 1]), [3, 10]),
        ("a prefix beyond the end", update(attributes, &[24, 10, 1]), [3, 10]),
        ("MP_REACH_NLRI without a next hop", update(&[0x80, 14, 5, 0, 2, 1, 0, 0], &[]), [3, 9]),
    ]
}

#[test]
fn a_hostile_peer_is_answered_with_the_code_of_its_fault_and_in_no_malformed_message() {
    let (host, other) = two_hosts();
    let folder = tempfile::tempdir().expect("a folder");
    let mut capture = Capture::start(&host, "up0", folder.path());
    capture.expect_hostile("192.0.2.2");
    let mut agent = Agent::start(&host, &["--bgp-listen-range", "192.0.2.0/24"]);
    let router_id = Ipv4Addr::new(192, 0, 2, 2);
    let capabilities = vec![Capability::FourOctetAs(64512)];
    let open = wire::encode_open(&Open { asn: 64512, hold_time: 90, router_id, capabilities });
    for (what, octets, expected) in hostile() {
        let answer = other.run(|| {
            let source = "192.0.2.2:0".parse().expect("an address");
            let mut stream = connect_from(source, "192.0.2.1:179".parse().expect("an address"));
            stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
            stream.write_all(&[&open[..], &wire::encode_keepalive(), &octets].concat()).expect("it reads");
            let mut answer = Vec::new();
            // It ends with a reset where not all was read.
            let _ = stream.read_to_end(&mut answer);
            answer
        });
        assert_eq!(first_notification(&answer), Some(expected), "{what}: {answer:?}");
    }
    assert!(agent.is_running());
    drop(agent);
    let traffic = capture.finish();
    let senders: Vec<&str> = traffic.malformed.iter().map(|fault| fault.from.as_str()).collect();
    assert!(senders.contains(&"192.0.2.2"), "tshark can tell");
    assert!(!senders.contains(&"192.0.2.1"), "{:?}", traffic.malformed);
}
