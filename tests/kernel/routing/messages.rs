//! Long messages, both ways: 4,096 octets to everybody, and 65,535 (RFC 8654) with BIRD and FRR, who take them.

use serde_json::{Value, json};

use super::capture::{Capture, UPDATE};
use super::daemons::{Kind, Offer, Side};
use super::interop::{agent, lan, peer_of, start};
use crate::netns::eventually;

const LENGTH_MAX: usize = 4096;
const EXTENDED_LENGTH_MAX: usize = 65535;
/// Octets that a sender may leave free: we none that a prefix would fit into.
const SLACK: usize = 64;
const HOST_LENGTH: usize = 17;
const HOSTS: u16 = 3_900;
/// The attribute alone has 6,000 octets.
const COMMUNITIES: usize = 500;

/// Announces so many addresses that they fill a message of any length.
fn side(kind: Kind, number: u8, extended_messages: bool) -> Side {
    let hosts = (1..=HOSTS).map(|host| Offer::of(&format!("2001:db8:{number}:1::{host:x}/128")));
    Side { extended_messages, offers: hosts.collect(), ..Side::new(kind, number, 64512, 64512) }
}

#[test]
fn full_messages_of_4096_and_of_65535_octets_go_both_ways() {
    let folder = tempfile::tempdir().expect("a folder");
    let lan = lan();
    let mut long = side(Kind::Bird, 11, true);
    long.offers.push(Offer { communities: COMMUNITIES, ..Offer::of("10.211.0.0/16") });
    let sides = vec![
        long,
        side(Kind::Frr, 12, true),
        Side::new(Kind::GoBgp, 13, 64512, 64512),
        side(Kind::Bird, 14, false),
    ];
    let mut peers: Vec<Value> = sides.iter().map(|side| peer_of(side, &folder)).collect();
    peers.iter_mut().for_each(|peer| peer["routeReflectorClient"] = json!(true));
    let mut capture = Capture::start(&lan, "up0", folder.path());
    capture.expect_extended();
    let agent = agent(&lan, &json!(peers), &folder);
    let mut daemons = start(&lan, sides, &folder);
    for daemon in &mut daemons {
        // The prefixes of others that make up three tables, or two for one of the three who make them.
        let own = daemon.side.number;
        let others = [11, 12, 14].into_iter().filter(|number| *number != own);
        for number in others {
            for host in [1, HOSTS / 2, HOSTS] {
                let prefix = format!("2001:db8:{number}:1::{host:x}/128");
                daemon.await_next_hop(&prefix, &format!("2001:db8::{number}"));
            }
        }
    }
    daemons[1].await_next_hop("10.211.0.0/16", "192.0.2.11");
    eventually("all routes are here", || {
        let peers = agent.json("/v1/peers");
        let count = |index: usize| peers[index]["routes"].as_u64();
        let own = u64::from(HOSTS) + 2;
        ([count(0), count(1), count(3)] == [Some(own + 1), Some(own), Some(own)]).then_some(())
    });
    // What does not fit into a message of the others is not told them.
    for index in [2, 3] {
        assert_eq!(daemons[index].next_hop("10.211.0.0/16"), None);
        assert!(daemons[index].is_established("192.0.2.1"));
    }
    drop(daemons);
    let traffic = capture.finish();
    let longest =
        |from: &str, to: &str| traffic.lengths_between(from, to, UPDATE).into_iter().max().unwrap_or(0);
    let us = "192.0.2.1";
    for (from, to, wanted) in [
        // BIRD gathers no more than it has looked through at once.
        ("192.0.2.11", us, LENGTH_MAX + 1..=EXTENDED_LENGTH_MAX),
        ("192.0.2.12", us, EXTENDED_LENGTH_MAX - SLACK..=EXTENDED_LENGTH_MAX),
        ("192.0.2.14", us, LENGTH_MAX - SLACK..=LENGTH_MAX),
        (us, "192.0.2.11", EXTENDED_LENGTH_MAX - HOST_LENGTH + 1..=EXTENDED_LENGTH_MAX),
        (us, "192.0.2.12", EXTENDED_LENGTH_MAX - HOST_LENGTH + 1..=EXTENDED_LENGTH_MAX),
        (us, "192.0.2.13", LENGTH_MAX - HOST_LENGTH + 1..=LENGTH_MAX),
        (us, "192.0.2.14", LENGTH_MAX - HOST_LENGTH + 1..=LENGTH_MAX),
    ] {
        let length = longest(from, to);
        assert!(wanted.contains(&length), "{from} to {to}: {length} octets at most, not {wanted:?}");
    }
}
