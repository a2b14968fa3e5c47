//! Next hops of the other family, of one link alone, and groups of them: what the kernel makes of them, and packets by them.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use dataplane::routes::{Applied, Gateways, Routes, RoutesConfig, Target};
use ipnetwork::IpNetwork;

use crate::netns::NetNs;

/// As many small datagrams fit one socket.
const FLOWS: u16 = 200;

fn network(text: &str) -> IpNetwork {
    text.parse().expect("a network")
}

fn via(gateways: &[IpAddr]) -> Target {
    let mut gateways = gateways.to_vec();
    gateways.sort_unstable();
    Target::Via(Gateways::from(gateways))
}

fn apply(routes: &mut Routes) -> Applied {
    let applied = routes.apply().expect("netlink works");
    assert_eq!(applied.failed, [], "no route is refused");
    applied
}

/// A host between others, each at the end of a link of its own: `up0`, `up1` and so on; the others' end is `far`. The host and the
/// others have an address on the links that means nothing elsewhere: fe80::1 and fe80::2. No link has one of IPv4.
struct Star {
    host: NetNs,
    others: Vec<NetNs>,
}

impl Star {
    fn of(count: usize) -> Star {
        let host = NetNs::new();
        host.ip("address add 198.51.100.1/32 dev lo");
        host.sysctl("net/ipv4/ip_forward", "1");
        host.sysctl("net/ipv4/fib_multipath_hash_policy", "1");
        let others: Vec<NetNs> = (0..count).map(|_| NetNs::new()).collect();
        for (number, other) in others.iter().enumerate() {
            host.ip(&format!("link add up{number} type veth peer name far netns {}", other.path()));
            for (end, name, last) in [(&host, format!("up{number}"), 1), (other, "far".to_owned(), 2)] {
                end.sysctl(&format!("net/ipv6/conf/{name}/addr_gen_mode"), "1");
                end.ip(&format!("-6 address add fe80::{last}/64 dev {name} nodad"));
                end.ip(&format!("link set {name} up"));
            }
            other.sysctl("net/ipv4/conf/all/rp_filter", "0");
            other.ip("address add 203.0.113.7/32 dev lo");
            other.ip("route add 198.51.100.1 via inet6 fe80::1 dev far");
        }
        Star { host, others }
    }

    /// The address of the other at the end of a link, with the link.
    fn gateway(&self, number: usize) -> IpAddr {
        let index = self.host.interface_index(&format!("up{number}"));
        bgp::link_local::with_link("fe80::2".parse().expect("an address"), index)
    }

    /// Which other answers each flow from the host to what all of them have.
    fn ways(&self, listeners: &[UdpSocket]) -> BTreeMap<u16, usize> {
        let to: SocketAddr = "203.0.113.7:7".parse().expect("an address");
        self.host.run(|| {
            for flow in 0..FLOWS {
                let socket = UdpSocket::bind(("198.51.100.1", 20_000 + flow)).expect("a socket");
                socket.send_to(&flow.to_be_bytes(), to).expect("sending");
            }
        });
        let mut ways = BTreeMap::new();
        for (number, listener) in listeners.iter().enumerate() {
            let mut octets = [0; 2];
            while ways.len() < usize::from(FLOWS) && listener.recv(&mut octets).is_ok() {
                ways.insert(u16::from_be_bytes(octets), number);
            }
        }
        assert_eq!(ways.len(), usize::from(FLOWS), "every flow arrives");
        ways
    }

    fn listeners(&self) -> Vec<UdpSocket> {
        let listen = |other: &NetNs| {
            let socket = other.run(|| UdpSocket::bind("203.0.113.7:7").expect("a socket"));
            // All that comes has come when the sender is back: the links are veth pairs.
            socket.set_read_timeout(Some(Duration::from_millis(20))).expect("a time");
            socket
        };
        self.others.iter().map(listen).collect()
    }
}

#[test]
fn ipv4_routes_lead_over_link_local_gateways_and_read_back_as_they_were_written() {
    let star = Star::of(2);
    let config = RoutesConfig { source_v4: Some([198, 51, 100, 1].into()), source_v6: None };
    star.host.run(|| {
        let mut routes = Routes::open(config.clone()).expect("the table");
        let gateways = [star.gateway(0), star.gateway(1)];
        routes.set(network("203.0.113.7/32"), Some(via(&gateways[..1])));
        routes.set(network("10.244.1.0/26"), Some(via(&gateways)));
        routes.set(network("fd00:10:244::/122"), Some(via(&gateways)));
        assert_eq!(apply(&mut routes).installed, 3);
        assert_eq!(routes.resync().expect("the table"), [], "nothing is found to differ");
        let again = Routes::open(config.clone()).expect("the table");
        assert_eq!(again.actual(), routes.desired());
        let shown = star.host.output("ip", &["route", "show", "203.0.113.7"]);
        assert!(shown.contains("via inet6 fe80::2 dev up0") && shown.contains("src 198.51.100.1"), "{shown}");
        let shown = star.host.output("ip", &["route", "show", "10.244.1.0/26"]);
        assert!(
            shown.contains("dev up0") && shown.contains("dev up1"),
            "the same address on two links: {shown}"
        );
    });
    let listener = star.others[0].run(|| UdpSocket::bind("203.0.113.7:7").expect("a socket"));
    listener.set_read_timeout(Some(Duration::from_secs(10))).expect("a time");
    star.host.run(|| {
        let socket = UdpSocket::bind("198.51.100.1:0").expect("a socket");
        socket.send_to(b"hello", "203.0.113.7:7").expect("sending");
    });
    let (_, from) = listener.recv_from(&mut [0; 8]).expect("a packet over a next hop of the other family");
    assert_eq!(from.ip().to_string(), "198.51.100.1");
}

#[test]
fn a_next_hop_behind_a_link_local_gateway_is_reached_by_it() {
    let star = Star::of(1);
    star.host.ip("route add 203.0.113.7 via inet6 fe80::2 dev up0");
    star.host.run(|| {
        let mut routes = Routes::open(RoutesConfig::default()).expect("the table");
        routes.set(network("10.244.1.0/26"), Some(via(&["203.0.113.7".parse().expect("an address")])));
        assert_eq!(apply(&mut routes).installed, 1);
        assert_eq!(routes.resync().expect("the table"), []);
    });
    let shown = star.host.output("ip", &["route", "show", "10.244.1.0/26"]);
    assert!(shown.contains("via inet6 fe80::2 dev up0"), "{shown}");
}

#[test]
fn a_gateway_of_a_link_that_is_not_there_is_named_with_its_link() {
    let star = Star::of(1);
    star.host.run(|| {
        let mut routes = Routes::open(RoutesConfig::default()).expect("the table");
        let nowhere = bgp::link_local::with_link("fe80::2".parse().expect("an address"), 4711);
        routes.set(network("10.244.1.0/26"), Some(via(&[nowhere])));
        let failed = routes.apply().expect("netlink works").failed;
        assert!(failed[0].1.starts_with("next hop fe80::2%4711 is not reachable"), "{failed:?}");
    });
}

#[test]
fn flows_over_gateways_that_stay_keep_their_way_when_another_goes_and_comes_back() {
    let star = Star::of(4);
    let listeners = star.listeners();
    star.host.run(|| {
        let mut routes = Routes::open(RoutesConfig::default()).expect("the table");
        let all: Vec<IpAddr> = (0..4).map(|number| star.gateway(number)).collect();
        let destinations = [network("203.0.113.7/32"), network("10.244.1.0/26")];
        let lead = |routes: &mut Routes, gateways: &[IpAddr]| {
            for destination in destinations {
                routes.set(destination, Some(via(gateways)));
            }
            apply(routes)
        };
        routes.allow_removal();
        lead(&mut routes, &all);
        let shown = star.host.output("ip", &["nexthop", "show", "proto", "180"]);
        assert!(shown.contains("type resilient"), "this kernel has such groups: {shown}");
        let before = star.ways(&listeners);
        let over =
            |ways: &BTreeMap<u16, usize>, number: usize| ways.values().filter(|way| **way == number).count();
        assert!((0..4).all(|number| over(&before, number) > 20), "all share the load: {before:?}");
        lead(&mut routes, &all[..3]);
        let after = star.ways(&listeners);
        let moved: Vec<u16> = before
            .iter()
            .filter(|(flow, way)| **way != 3 && after[*flow] != **way)
            .map(|(flow, _)| *flow)
            .collect();
        assert_eq!(moved, [] as [u16; 0], "only the flows of the gateway that is gone move");
        assert_eq!(over(&after, 3), 0);
        // The kernel takes for unused what is used in the same tick in which it moved.
        assert!(star.ways(&listeners) == after, "the others stay where they have moved to");
        assert_eq!(routes.resync().expect("the table"), [], "nothing is found to differ");
        assert_eq!(lead(&mut routes, &all[..3]).installed, 0);
        lead(&mut routes, &all);
        assert!(star.ways(&listeners) == after, "no busy flow moves to the one that is back");
        lead(&mut routes, &all[..1]);
        assert_eq!(over(&star.ways(&listeners), 0), usize::from(FLOWS));
        // Where there is one way the kernel chooses none, and so does not see which shares are used.
        lead(&mut routes, &all[..2]);
        let last = star.ways(&listeners);
        assert!((0..2).all(|number| over(&last, number) > 40), "both share the load again: {last:?}");
        for destination in destinations {
            routes.set(destination, None);
        }
        assert_eq!(apply(&mut routes).removed, 2);
    });
    assert_eq!(star.host.output("ip", &["nexthop", "show", "proto", "180"]), "", "nothing is left behind");
}

#[test]
fn a_group_that_some_of_its_routes_leave_stays_as_it_is_for_the_others() {
    let star = Star::of(3);
    star.host.run(|| {
        let mut routes = Routes::open(RoutesConfig::default()).expect("the table");
        let all: Vec<IpAddr> = (0..3).map(|number| star.gateway(number)).collect();
        let (a, b, c) = (network("10.1.0.0/16"), network("10.2.0.0/16"), network("10.3.0.0/16"));
        for destination in [a, b, c] {
            routes.set(destination, Some(via(&all)));
        }
        apply(&mut routes);
        routes.set(a, Some(via(&all[..2])));
        apply(&mut routes);
        let hops =
            |prefix: &str| star.host.output("ip", &["route", "show", prefix]).matches("fe80::2").count();
        assert_eq!((hops("10.1.0.0/16"), hops("10.2.0.0/16"), hops("10.3.0.0/16")), (2, 3, 3));
        // One is withdrawn, the other changes: the group has nobody else then.
        routes.set(b, None);
        routes.set(c, Some(via(&all[1..])));
        let applied = apply(&mut routes);
        assert_eq!((applied.installed, applied.removed), (1, 1));
        assert_eq!((hops("10.1.0.0/16"), hops("10.3.0.0/16")), (2, 2));
        let known = Routes::open(RoutesConfig::default()).expect("the table");
        assert_eq!(known.actual(), routes.desired());
    });
}
