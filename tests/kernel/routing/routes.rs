//! The route table against the kernel's.

use std::net::IpAddr;

use dataplane::routes::{Applied, METRIC, RouteMonitor, Routes, RoutesConfig, Target};
use ipnetwork::IpNetwork;

use crate::netns::NetNs;

fn host() -> NetNs {
    let host = NetNs::new();
    host.ip("link add up0 type veth peer name far0");
    host.ip("link set far0 up");
    host.ip("address add 192.0.2.1/24 dev up0");
    host.ip("-6 address add 2001:db8::1/64 dev up0 nodad");
    host.ip("link set up0 up");
    host
}

fn config() -> RoutesConfig {
    RoutesConfig { source_v4: Some([192, 0, 2, 1].into()), source_v6: None }
}

fn network(text: &str) -> IpNetwork {
    text.parse().expect("a network")
}

fn via(addresses: &[&str]) -> Target {
    let addresses = addresses.iter().map(|address| address.parse().expect("an address"));
    Target::Via(addresses.collect::<Vec<_>>().into())
}

fn apply(routes: &mut Routes) -> Applied {
    let applied = routes.apply().expect("netlink works");
    assert_eq!(applied.failed, [], "no route is refused");
    applied
}

#[test]
fn each_kind_of_route_is_installed_with_our_protocol_and_source() {
    let host = host();
    host.ip("link add pod0 type veth peer name far1");
    host.ip("link set pod0 up");
    let index = host.interface_index("pod0");
    host.run(|| {
        let mut routes = Routes::open(config()).expect("the table");
        routes.set(network("10.244.1.0/26"), Some(via(&["192.0.2.11"])));
        routes.set(network("10.244.0.64/26"), Some(Target::Blackhole));
        routes.set(network("10.244.0.66/32"), Some(Target::Link(index)));
        routes.set(network("fd00:10:244::/122"), Some(via(&["2001:db8::11"])));
        routes.set(network("10.96.0.0/16"), Some(Target::Unreachable));
        routes.set(network("fd00:10:96::/112"), Some(Target::Unreachable));
        assert_eq!(apply(&mut routes).installed, 6);
        let known = Routes::open(config()).expect("the table again");
        assert_eq!(known.actual()[&network("10.96.0.0/16")], Target::Unreachable);
        assert_eq!(known.actual()[&network("fd00:10:96::/112")], Target::Unreachable);
    });
    let shown = host.output("ip", &["route", "show", "proto", "180"]);
    assert!(shown.contains("unreachable 10.96.0.0/16 metric 180"), "{shown}");
    assert!(shown.contains("blackhole 10.244.0.64/26 metric 180"), "{shown}");
    assert!(shown.contains("10.244.0.66 dev pod0 scope link src 192.0.2.1 metric 180"), "{shown}");
    assert!(shown.contains("via 192.0.2.11 dev up0 src 192.0.2.1 metric 180"), "{shown}");
    let objects = host.output("ip", &["nexthop", "show", "proto", "180"]);
    assert_eq!(objects.lines().count(), 2, "one object per gateway: {objects}");
    let v6 = host.output("ip", &["-6", "route", "show", "proto", "180"]);
    assert!(v6.contains("fd00:10:244::/122") && v6.contains("via 2001:db8::11"), "{v6}");
}

#[test]
fn a_restart_finds_its_routes_and_leaves_no_orphans_and_foreign_routes_alone() {
    let host = host();
    host.ip("route add 10.9.0.0/16 via 192.0.2.99");
    host.ip("route add 10.244.3.0/26 via 192.0.2.99 metric 50");
    host.run(|| {
        let mut routes = Routes::open(config()).expect("the table");
        routes.set(network("10.244.1.0/26"), Some(via(&["192.0.2.11"])));
        routes.set(network("10.244.2.0/26"), Some(via(&["192.0.2.12"])));
        routes.set(network("10.244.3.0/26"), Some(via(&["192.0.2.11", "192.0.2.12"])));
        apply(&mut routes);
    });
    host.run(|| {
        let mut routes = Routes::open(config()).expect("the table");
        assert_eq!(routes.actual().len(), 3);
        assert_eq!(routes.actual()[&network("10.244.3.0/26")], via(&["192.0.2.11", "192.0.2.12"]));
        routes.set(network("10.244.1.0/26"), Some(via(&["192.0.2.11"])));
        let applied = apply(&mut routes);
        assert_eq!((applied.installed, applied.removed), (0, 0), "nothing is touched before all is known");
        routes.allow_removal();
        assert_eq!(apply(&mut routes).removed, 2);
        let mut again = Routes::open(config()).expect("the table");
        assert_eq!(again.actual(), routes.actual());
        again.resync().expect("the table");
    });
    let objects = host.output("ip", &["nexthop", "show", "proto", "180"]);
    assert_eq!(objects.lines().count(), 1, "{objects}");
    let shown = host.output("ip", &["route", "show"]);
    assert!(shown.contains("10.9.0.0/16 via 192.0.2.99"), "{shown}");
    assert!(shown.contains("10.244.3.0/26 via 192.0.2.99 dev up0 metric 50"), "{shown}");
}

#[test]
fn routes_lost_with_their_link_come_back_with_it() {
    let host = host();
    host.run(|| {
        let mut routes = Routes::open(config()).expect("the table");
        routes.set(network("10.244.1.0/26"), Some(via(&["192.0.2.11"])));
        apply(&mut routes);
        host.ip("link set up0 down");
        routes.resync().expect("the table");
        let applied = routes.apply().expect("netlink works");
        assert_eq!(applied.failed.len(), 1, "without the link there is no way: {applied:?}");
        host.ip("link set up0 up");
        routes.resync().expect("the table");
        assert_eq!(apply(&mut routes).installed, 1);
    });
    let shown = host.output("ip", &["route", "get", "10.244.1.5"]);
    assert!(shown.contains("via 192.0.2.11"), "{shown}");
}

#[test]
fn a_route_that_somebody_changed_or_deleted_is_repaired_by_resync() {
    let host = host();
    host.run(|| {
        let mut routes = Routes::open(config()).expect("the table");
        for n in 0..50u8 {
            routes.set(network(&format!("10.244.{n}.0/26")), Some(via(&["192.0.2.11"])));
        }
        apply(&mut routes);
        host.ip("route del 10.244.7.0/26 proto 180");
        host.ip("route replace 10.244.8.0/26 via 192.0.2.66 proto 180 metric 180");
        routes.resync().expect("the table");
        assert_eq!(apply(&mut routes).installed, 2);
    });
    let shown = host.output("ip", &["route", "get", "10.244.8.5"]);
    assert!(shown.contains("via 192.0.2.11"), "{shown}");
}

#[test]
fn a_lost_link_and_a_deleted_route_of_ours_are_told_at_once() {
    let host = host();
    host.run(|| {
        let mut routes = Routes::open(config()).expect("the table");
        routes.set(network("10.244.1.0/26"), Some(via(&["192.0.2.11"])));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let monitor = RouteMonitor::open().expect("the events");
            let told = async |what: &str| {
                let limit = std::time::Duration::from_secs(10);
                let changed = tokio::time::timeout(limit, monitor.changed()).await;
                changed.unwrap_or_else(|_| panic!("not told of {what}")).expect("the events");
            };
            apply(&mut routes);
            host.ip("route del 10.244.1.0/26 proto 180");
            told("the route").await;
            host.ip("link set up0 down");
            told("the link").await;
        });
    });
}

#[test]
fn ten_thousand_routes_over_a_thousand_gateways_are_installed_and_removed() {
    let host = host();
    host.ip("address add 198.18.0.1/15 dev up0");
    host.run(|| {
        let mut routes = Routes::open(RoutesConfig::default()).expect("the table");
        let destination =
            |n: u32| IpNetwork::new(IpAddr::from((0x0b00_0000 + n * 64).to_be_bytes()), 26).expect("a /26");
        for n in 0..10_000u32 {
            let gateway = IpAddr::from((0xc612_0100 + n % 1000).to_be_bytes());
            routes.set(destination(n), Some(Target::Via(vec![gateway].into())));
        }
        let started = std::time::Instant::now();
        assert_eq!(apply(&mut routes).installed, 10_000);
        println!("10000 routes over 1000 gateways: {:?}", started.elapsed());
        routes.resync().expect("the table");
        assert_eq!(apply(&mut routes).installed, 0, "the table reads back as it was written");
        for n in 0..10_000 {
            routes.set(destination(n), None);
        }
        assert_eq!(apply(&mut routes).removed, 10_000);
    });
    assert_eq!(host.output("ip", &["route", "show", "proto", &180.to_string()]), "");
    assert_eq!(METRIC, 180, "the tests above show it");
}
