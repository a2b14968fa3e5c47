//! The agent between BIRD, FRR and GoBGP: sessions that carry IPv4 and IPv6, both sides connecting.

use std::fs;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::agent::Agent;
use super::daemons::{Daemon, Kind, Side};
use crate::netns::{NetNs, eventually};

pub const BLOCKS: [(&str, &str); 2] =
    [("10.244.0.0/16", "10.244.0.64/26"), ("fd00:10:244::/112", "fd00:10:244::40/122")];

/// A wire that the agent's host shares with any number of others: it is at 192.0.2.1 and 2001:db8::1.
pub fn lan() -> NetNs {
    let host = NetNs::new();
    host.ip("link add up0 type bridge");
    host.ip("address add 192.0.2.1/24 dev up0");
    host.ip("-6 address add 2001:db8::1/64 dev up0 nodad");
    host.ip("link set up0 up");
    host
}

pub fn attach(lan: &NetNs, side: &Side) -> NetNs {
    let host = NetNs::new();
    let port = format!("p{}", side.number);
    lan.ip(&format!("link add {port} type veth peer name up0 netns {}", host.path()));
    lan.ip(&format!("link set {port} master up0 up"));
    host.ip(&format!("address add {}/24 dev up0", side.v4()));
    host.ip(&format!("-6 address add {}/64 dev up0 nodad", side.v6()));
    host.ip("link set up0 up");
    host
}

/// An agent whose peers these are, by what is written in its file of peers.
fn agent(lan: &NetNs, peers: &Value, folder: &TempDir) -> Agent {
    let file = folder.path().join("peers.json");
    fs::write(&file, peers.to_string()).expect("the file of peers");
    let file = file.to_str().expect("a path of characters");
    Agent::with_blocks(lan, &BLOCKS, &["--node-ip", "2001:db8::1", "--bgp-peer-file", file])
}

fn peer_of(side: &Side, folder: &TempDir) -> Value {
    let mut peer = json!({"address": side.v4(), "asn": side.asn});
    if let Some(password) = side.password {
        let file = folder.path().join(format!("password-{}", side.number));
        fs::write(&file, password).expect("the password");
        peer["passwordFile"] = json!(file);
    }
    if side.ttl_security {
        peer["ttlSecurity"] = json!(1);
    }
    peer
}

fn start(lan: &NetNs, sides: Vec<Side>, folder: &TempDir) -> Vec<Daemon> {
    sides.into_iter().map(|side| Daemon::start(side.clone(), attach(lan, &side), folder.path())).collect()
}

/// Waits until the kernel sends packets for a prefix to a gateway.
pub fn await_route(host: &NetNs, prefix: &str, gateway: &str) {
    let family = if prefix.contains(':') { "-6" } else { "-4" };
    eventually(&format!("the kernel has {prefix} via {gateway}"), || {
        let shown = host.output("ip", &[family, "route", "show", prefix]);
        (shown.contains(&format!("via {gateway} ")) && shown.contains("proto 180")).then_some(())
    });
}

/// Every prefix of every side is where it should be: in the agent's kernel, and at the other daemons.
fn await_everything(lan: &NetNs, daemons: &mut [Daemon], passed_on: impl Fn(&Side, bool) -> String) {
    let sides: Vec<Side> = daemons.iter().map(|daemon| daemon.side.clone()).collect();
    for side in &sides {
        await_route(lan, &side.prefix_v4(), &side.v4());
        if side.announces_v6 {
            await_route(lan, &side.prefix_v6(), &side.v6());
        }
    }
    for daemon in daemons {
        daemon.await_next_hop("10.244.0.64/26", "192.0.2.1");
        daemon.await_next_hop("fd00:10:244::40/122", "2001:db8::1");
        let own = daemon.side.number;
        for side in sides.iter().filter(|side| side.number != own) {
            daemon.await_next_hop(&side.prefix_v4(), &passed_on(side, false));
            if side.announces_v6 {
                daemon.await_next_hop(&side.prefix_v6(), &passed_on(side, true));
            }
        }
    }
}

/// Security and timers go round among the daemons, so that two tests try most of them with each.
fn sides(remote_asn: u32, asn: impl Fn(u8) -> u32, first: usize) -> Vec<Side> {
    let side = |(index, kind): (usize, Kind)| {
        let number = 11 + index as u8;
        let mut side = Side::new(kind, number, asn(number), remote_asn);
        match (index + first) % 3 {
            0 => side.password = Some("not-a-secret"),
            1 => side.ttl_security = true,
            _ => side.hold_time = 3,
        }
        side
    };
    Kind::ALL.into_iter().enumerate().map(side).collect()
}

#[test]
fn as_their_reflector_we_pass_routes_between_three_daemons_unchanged() {
    let folder = tempfile::tempdir().expect("a folder");
    let lan = lan();
    let sides = sides(64512, |_| 64512, 0);
    let mut peers: Vec<Value> = sides.iter().map(|side| peer_of(side, &folder)).collect();
    peers.iter_mut().for_each(|peer| peer["routeReflectorClient"] = json!(true));
    let agent = agent(&lan, &json!(peers), &folder);
    let mut daemons = start(&lan, sides, &folder);
    await_everything(&lan, &mut daemons, |side, six| if six { side.v6() } else { side.v4() });
    let quick = agent.json("/v1/peers").as_array().and_then(|peers| peers.last().cloned()).expect("peers");
    assert_eq!((&quick["address"], &quick["holdTimeSeconds"]), (&json!("192.0.2.13"), &json!(3)));
    assert_eq!(quick["keepaliveSeconds"], json!(1.0));
}

#[test]
fn between_three_autonomous_systems_we_are_the_next_hop() {
    let folder = tempfile::tempdir().expect("a folder");
    let lan = lan();
    let mut sides = sides(64512, |number| 65000 + u32::from(number), 1);
    // Without zebra, FRR knows no IPv6 address of its own to be a next hop in another AS.
    sides[1].announces_v6 = false;
    let mut peers: Vec<Value> = sides.iter().map(|side| peer_of(side, &folder)).collect();
    peers[0]["addCommunities"] = json!(["64512:7", "64512:1:2"]);
    let _agent = agent(&lan, &json!(peers), &folder);
    let mut daemons = start(&lan, sides, &folder);
    let ours = |_: &Side, six| if six { "2001:db8::1".to_owned() } else { "192.0.2.1".to_owned() };
    await_everything(&lan, &mut daemons, ours);
    let shown = daemons[0].ask("show route 10.244.0.64/26 all").expect("BIRD answers");
    assert!(shown.contains("BGP.community: (64512,7)"), "{shown}");
    assert!(shown.contains("BGP.large_community: (64512, 1, 2)"), "{shown}");
}

#[test]
fn as_the_client_of_a_reflector_we_reach_its_other_client_directly() {
    let folder = tempfile::tempdir().expect("a folder");
    let lan = lan();
    let mut reflector = Side::new(Kind::Bird, 11, 64512, 64512);
    reflector.reflects = true;
    reflector.peers.push("192.0.2.13".to_owned());
    let mut other = Side::new(Kind::GoBgp, 13, 64512, 64512);
    other.peers = vec![reflector.v4()];
    let agent = agent(&lan, &json!([{"address": "192.0.2.11", "asn": 64512}]), &folder);
    let mut daemons = start(&lan, vec![reflector, other], &folder);
    await_route(&lan, "10.13.0.0/16", "192.0.2.13");
    await_route(&lan, "2001:db8:13::/48", "2001:db8::13");
    daemons[1].await_next_hop("10.244.0.64/26", "192.0.2.1");
    assert_eq!(agent.json("/v1/peers").as_array().map(Vec::len), Some(1));
}

#[test]
fn a_wrong_password_is_told_as_such_and_nothing_is_exchanged() {
    let folder = tempfile::tempdir().expect("a folder");
    let lan = lan();
    let mut side = Side::new(Kind::Bird, 11, 65011, 64512);
    side.password = Some("theirs");
    let mut peer = peer_of(&side, &folder);
    let file = folder.path().join("ours");
    fs::write(&file, "ours").expect("the password");
    peer["passwordFile"] = json!(file);
    let agent = agent(&lan, &json!([peer]), &folder);
    let daemons = start(&lan, vec![side], &folder);
    let status = eventually("the failure is told", || {
        let status = agent.json("/v1/peers")[0].clone();
        status["lastError"]
            .as_str()
            .is_some_and(|error| error.contains("compare the passwords"))
            .then_some(status)
    });
    assert_ne!(status["state"], "Established");
    assert_eq!(daemons[0].next_hop("10.244.0.64/26"), None);
    assert!(!agent.log().contains("ours\""), "the password is not told");
}
