//! Pod links: what a pod finds in its namespace.

use std::fs::File;
use std::net::IpAddr;
use std::time::Duration;

use dataplane::links::{self, Links, PodLinkConfig};
use dataplane::reaper::Reaper;
use dataplane::routes::{Routes, RoutesConfig, Target};

use crate::netns::NetNs;

const POD: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 244, 0, 66));

fn node() -> NetNs {
    let node = NetNs::new();
    node.ip("link add up0 mtu 9000 type veth peer name far0 mtu 9000");
    node.ip("link set far0 up");
    node.ip("address add 192.0.2.1/24 dev up0");
    node.ip("link set up0 up");
    node
}

fn add(node: &NetNs, pod: &NetNs, name: &str, addresses: &[IpAddr]) -> links::PodLink {
    let netns = File::open(pod.path()).expect("the pod's namespace");
    node.run(|| {
        let mut links = Links::open().expect("netlink");
        let uplink = links.uplink([192, 0, 2, 1].into()).expect("the uplink");
        links::prepare_host(&uplink.name).expect("sysctls");
        let config =
            PodLinkConfig { host_name: name, pod_name: "eth0", netns: &netns, addresses, mtu: uplink.mtu };
        let link = links.add_pod(&config).expect("the link");
        let mut routes = Routes::open(RoutesConfig::default()).expect("the table");
        for address in addresses {
            routes.set((*address).into(), Some(Target::Link(link.host_index)));
        }
        assert_eq!(routes.apply().expect("netlink").failed, []);
        link
    })
}

#[test]
fn a_pod_reaches_its_node_and_the_node_its_pod_in_both_families() {
    let (node, pod) = (node(), NetNs::new());
    node.ip("-6 address add 2001:db8::1/64 dev up0 nodad");
    let v6: IpAddr = "fd00:10:244::42".parse().expect("an address");
    add(&node, &pod, "swptest0", &[POD, v6]);
    for target in ["192.0.2.1", "2001:db8::1"] {
        pod.output("ping", &["-c", "1", "-W", "2", target]);
    }
    node.output("ping", &["-c", "1", "-W", "2", "10.244.0.66"]);
    node.output("ping", &["-c", "1", "-W", "2", "fd00:10:244::42"]);
    let shown = pod.output("ip", &["-d", "link", "show", "eth0"]);
    assert!(shown.contains("mtu 9000") && shown.contains("02:fe:0a:f4:00:42"), "{shown}");
    assert_eq!(pod.output("ip", &["route"]).lines().count(), 2, "the gateway and the default route");
}

#[test]
fn two_pods_of_a_node_reach_each_other_and_the_hop_is_the_node() {
    let (node, a, b) = (node(), NetNs::new(), NetNs::new());
    add(&node, &a, "swptest0", &[POD]);
    add(&node, &b, "swptest1", &[[10, 244, 0, 67].into()]);
    let said = a.output("ping", &["-c", "1", "-W", "2", "10.244.0.67"]);
    assert!(said.contains("ttl=63"), "{said}");
}

#[test]
fn links_are_deleted_behind_the_callers_back_and_a_new_one_of_the_same_index_stays() {
    let (node, pod) = (node(), NetNs::new());
    let doomed: Vec<(u32, String)> = (0..8u32)
        .map(|n| {
            node.ip(&format!("link add swptest{n} type veth peer name eth{n} netns {}", pod.path()));
            let name = format!("swptest{n}");
            (node.interface_index(&name), name)
        })
        .collect();
    node.run(|| {
        let (told, gone) = std::sync::mpsc::channel();
        let reaper = Reaper::start(move |index| told.send(index).expect("the test waits")).expect("a thread");
        let mut links = Links::open().expect("netlink");
        // Its index was given away: another name stands for that.
        reaper.remove(doomed[0].0, "swpother".to_owned());
        doomed[1..].iter().for_each(|(index, name)| reaper.remove(*index, name.clone()));
        reaper.remove(doomed[1].0, doomed[1].1.clone());
        let told: Vec<u32> =
            (0..9).map(|_| gone.recv_timeout(Duration::from_secs(10)).expect("an end")).collect();
        assert_eq!(told.len(), 9);
        let left: Vec<String> = links.pods().expect("links").into_iter().map(|link| link.name).collect();
        assert_eq!(left, ["swptest0"]);
    });
}

#[test]
fn the_same_link_is_made_anew_and_removed_twice() {
    let (node, pod) = (node(), NetNs::new());
    let first = add(&node, &pod, "swptest0", &[POD]);
    let second = add(&node, &pod, "swptest0", &[POD]);
    assert_ne!(first.host_index, second.host_index);
    node.run(|| {
        let mut links = Links::open().expect("netlink");
        assert_eq!(links.pods().expect("links").len(), 1);
        links.remove("swptest0").expect("removing");
        links.remove("swptest0").expect("removing what is gone");
        assert_eq!(links.pods().expect("links").len(), 0);
    });
}

#[test]
fn an_interface_that_is_in_the_way_is_named_and_nothing_is_left() {
    let (node, pod) = (node(), NetNs::new());
    pod.ip("link add eth0 type veth peer name far0");
    let netns = File::open(pod.path()).expect("the pod's namespace");
    node.run(|| {
        let mut links = Links::open().expect("netlink");
        let config = PodLinkConfig {
            host_name: "swptest0",
            pod_name: "eth0",
            netns: &netns,
            addresses: &[POD],
            mtu: 1500,
        };
        let error = links.add_pod(&config).expect_err("eth0 is taken").to_string();
        assert!(error.contains("swptest0") && error.contains("File exists"), "{error}");
        assert_eq!(links.pods().expect("links"), []);
    });
}

#[test]
fn an_address_that_no_interface_has_is_refused_as_uplink() {
    let node = node();
    node.run(|| {
        let error = Links::open().expect("netlink").uplink([203, 0, 113, 9].into()).expect_err("not here");
        assert!(error.to_string().contains("203.0.113.9"), "{error}");
    });
}

#[test]
fn names_of_host_ends_fit_and_differ() {
    let a = links::host_link_name("0123456789abcdef", "eth0");
    let b = links::host_link_name("0123456789abcdef", "eth1");
    assert!(a.len() <= 15 && a.starts_with("swp") && a != b, "{a} {b}");
}
