//! The agent between BIRD, FRR and GoBGP: sessions that carry IPv4 and IPv6, both sides connecting.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::agent::Agent;
use super::capture::Capture;
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
pub fn agent(lan: &NetNs, peers: &Value, folder: &TempDir) -> Agent {
    Agent::with_blocks(
        lan,
        &BLOCKS,
        &["--node-ip", "2001:db8::1", "--bgp-peer-file", &peer_file(peers, folder)],
    )
}

pub fn peer_file(peers: &Value, folder: &TempDir) -> String {
    let file = folder.path().join("peers.json");
    fs::write(&file, peers.to_string()).expect("the file of peers");
    file.to_str().expect("a path of characters").to_owned()
}

pub fn peer_of(side: &Side, folder: &TempDir) -> Value {
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

pub fn start(lan: &NetNs, sides: Vec<Side>, folder: &TempDir) -> Vec<Daemon> {
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

/// Gateways by destination, of the routes that a speaker of BGP gave the kernel: BIRD, FRR or the agent.
pub fn kernel_routes(host: &NetNs) -> BTreeMap<String, BTreeSet<String>> {
    let mut routes = BTreeMap::new();
    for family in ["-4", "-6"] {
        let shown = host.output("ip", &["-j", "-N", family, "route", "show"]);
        let shown: Vec<Value> = serde_json::from_str(&shown).unwrap_or_default();
        let learned = |route: &&Value| {
            route["protocol"].as_str().is_some_and(|number| matches!(number, "12" | "180" | "186"))
        };
        for route in shown.iter().filter(learned) {
            let hops = route["nexthops"].as_array().map_or(std::slice::from_ref(route), Vec::as_slice);
            let gateways: BTreeSet<String> =
                hops.iter().filter_map(|hop| hop["gateway"].as_str()).map(str::to_owned).collect();
            let prefix = route["dst"].as_str().unwrap_or_default().to_owned();
            if !gateways.is_empty() {
                routes.insert(prefix, gateways);
            }
        }
    }
    routes
}

/// `ip route` of the agent's host and of those of its peers say the same: whatever somebody announces goes to where
/// `passed_on` says, and on the agent's host to whoever announced it.
fn await_equal_kernels(lan: &NetNs, daemons: &[Daemon], passed_on: impl Fn(&Side, bool) -> String) {
    let sides: Vec<Side> = daemons.iter().map(|daemon| daemon.side.clone()).collect();
    let of = |side: &Side, gateways: [String; 2]| {
        let prefixes = [side.prefix_v4(), side.prefix_v6()];
        let count = if side.announces_v6 { 2 } else { 1 };
        prefixes.into_iter().zip(gateways.map(|gateway| BTreeSet::from([gateway]))).take(count)
    };
    let ours: BTreeMap<_, _> = sides.iter().flat_map(|side| of(side, [side.v4(), side.v6()])).collect();
    let mut hosts = vec![("the agent's host".to_owned(), lan.without_cgroup(), ours)];
    for daemon in daemons.iter().filter(|daemon| daemon.side.has_kernel()) {
        let others = sides.iter().filter(|side| side.number != daemon.side.number);
        let mut expected: BTreeMap<_, _> =
            others.flat_map(|side| of(side, [passed_on(side, false), passed_on(side, true)])).collect();
        for ((_, block), gateway) in BLOCKS.iter().zip(["192.0.2.1", "2001:db8::1"]) {
            expected.insert((*block).to_owned(), BTreeSet::from([gateway.to_owned()]));
        }
        hosts.push((format!("{:?}'s host", daemon.side.kind), daemon.host.without_cgroup(), expected));
    }
    for (name, host, expected) in hosts {
        let mut found = BTreeMap::new();
        let same = crate::netns::attempts(|| {
            found = kernel_routes(&host);
            (found == expected).then_some(())
        });
        assert!(same.is_some(), "{name} has {found:?} and not {expected:?}");
    }
}

/// Every prefix of every side is where it should be: in the agent's kernel, and at the other daemons.
fn await_everything(lan: &NetNs, daemons: &mut [Daemon], passed_on: impl Fn(&Side, bool) -> String + Copy) {
    let sides: Vec<Side> = daemons.iter().map(|daemon| daemon.side.clone()).collect();
    for side in &sides {
        await_route(lan, &side.prefix_v4(), &side.v4());
        if side.announces_v6 {
            await_route(lan, &side.prefix_v6(), &side.v6());
        }
    }
    for daemon in &mut *daemons {
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
    await_equal_kernels(lan, daemons, passed_on);
}

/// Security and timers go round among the daemons, so that three tests try all of them with each.
pub fn sides(remote_asn: u32, asn: impl Fn(u8) -> u32, first: usize) -> Vec<Side> {
    let side = |(index, kind): (usize, Kind)| {
        let number = 11 + index as u8;
        let mut side = Side::new(kind, number, asn(number), remote_asn);
        match (index + first) % 3 {
            0 => side.password = Some("not-a-secret"),
            1 => side.ttl_security = true,
            _ => side.hold_time = 3,
        }
        side.forwards = true;
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
    let _capture = Capture::start(&lan, "up0", folder.path());
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
    let sides = sides(64512, |number| 65000 + u32::from(number), 1);
    let mut peers: Vec<Value> = sides.iter().map(|side| peer_of(side, &folder)).collect();
    peers[0]["addCommunities"] = json!(["64512:7", "64512:1:2"]);
    let _capture = Capture::start(&lan, "up0", folder.path());
    let _agent = agent(&lan, &json!(peers), &folder);
    let mut daemons = start(&lan, sides, &folder);
    let ours = |_: &Side, six| if six { "2001:db8::1".to_owned() } else { "192.0.2.1".to_owned() };
    await_everything(&lan, &mut daemons, ours);
    let shown = daemons[0].ask("show route 10.244.0.64/26 all").expect("BIRD answers");
    assert!(shown.contains("BGP.community: (64512,7)"), "{shown}");
    assert!(shown.contains("BGP.large_community: (64512, 1, 2)"), "{shown}");
}

#[test]
fn as_the_client_of_each_reflector_we_reach_its_other_client_directly() {
    std::thread::scope(|scope| {
        for kind in Kind::ALL {
            scope.spawn(move || be_the_client_of(kind));
        }
    });
}

fn be_the_client_of(kind: Kind) {
    let folder = tempfile::tempdir().expect("a folder");
    let lan = lan();
    let mut reflector = Side::new(kind, 11, 64512, 64512);
    reflector.reflects = true;
    reflector.forwards = true;
    reflector.peers.push(("192.0.2.13".to_owned(), 64512));
    let mut other = Side::new(if kind == Kind::Bird { Kind::GoBgp } else { Kind::Bird }, 13, 64512, 64512);
    other.peers = vec![(reflector.v4(), 64512)];
    let _capture = Capture::start(&lan, "up0", folder.path());
    let agent = agent(&lan, &json!([{"address": "192.0.2.11", "asn": 64512}]), &folder);
    let mut daemons = start(&lan, vec![reflector, other], &folder);
    for number in [11, 13] {
        await_route(&lan, &format!("10.{number}.0.0/16"), &format!("192.0.2.{number}"));
        await_route(&lan, &format!("2001:db8:{number}::/48"), &format!("2001:db8::{number}"));
    }
    daemons[1].await_next_hop("10.244.0.64/26", "192.0.2.1");
    daemons[1].await_next_hop("fd00:10:244::40/122", "2001:db8::1");
    await_equal_kernels(&lan, &daemons, |side, six| if six { side.v6() } else { side.v4() });
    assert_eq!(agent.json("/v1/peers").as_array().map(Vec::len), Some(1));
}

#[test]
fn a_wrong_password_is_told_as_such_and_nothing_is_exchanged() {
    let folder = tempfile::tempdir().expect("a folder");
    let lan = lan();
    let sides: Vec<Side> = Kind::ALL
        .into_iter()
        .zip(11..)
        .map(|(kind, number)| {
            let password = Some("theirs");
            Side { password, ..Side::new(kind, number, 65000 + u32::from(number), 64512) }
        })
        .collect();
    let mut peers: Vec<Value> = sides.iter().map(|side| peer_of(side, &folder)).collect();
    let file = folder.path().join("ours");
    fs::write(&file, "ours").expect("the password");
    peers.iter_mut().for_each(|peer| peer["passwordFile"] = json!(file));
    let agent = agent(&lan, &json!(peers), &folder);
    let daemons = start(&lan, sides, &folder);
    for index in 0..daemons.len() {
        let status = eventually("the failure is told", || {
            let status = agent.json("/v1/peers")[index].clone();
            status["lastError"]
                .as_str()
                .is_some_and(|error| error.contains("compare the passwords"))
                .then_some(status)
        });
        assert_ne!(status["state"], "Established");
    }
    for daemon in &daemons {
        assert_eq!(daemon.next_hop("10.244.0.64/26"), None);
        assert!(!daemon.is_established("192.0.2.1"));
    }
    assert!(!agent.log().contains("ours\""), "the password is not told");
}
