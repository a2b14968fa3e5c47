//! How long pods wait for their routes on other nodes, as the nodes themselves tell it.

use std::net::UdpSocket;
use std::time::Duration;

use serde_json::json;

use super::agent::Agent;
use super::peers::wire;
use super::plugin::{Call, address_of, call};
use crate::netns::{NetNs, eventually};

const FAMILY: &str = "seaway_pod_route_propagation_duration_seconds";
/// TCP of the node's health, UDP of this.
const PORT: u16 = 10256;

fn agent(host: &NetNs, node: (&'static str, &'static str), block: &str) -> Agent {
    let mut allocator = ipam::Allocator::new(1);
    let pool = ipam::Pool::with_default_blocks("10.244.0.0/16".parse().expect("a pool")).expect("a pool");
    allocator.add_block(block.parse().expect("a block"), &pool);
    let known = json!({ "nodes": {
        "node-a": { "addresses": ["192.0.2.1"] },
        "node-b": { "addresses": ["192.0.2.2"] },
    }});
    let saved = serde_json::to_value(&allocator).expect("JSON");
    Agent::named(node, host, Agent::folder(), &[("ipam.json", saved), ("routing.json", known)], &[])
}

fn add(agent: &Agent, container: &str, pod: &NetNs) -> String {
    let added =
        call(agent, &Call { command: "ADD", container, pod: "web", netns: Some(pod), config: json!({}) });
    assert!(added.0, "{}\n{}", added.1, agent.log());
    address_of(&added.1)
}

/// Addresses that waited for nothing, and all.
fn observed(agent: &Agent) -> (u32, u32) {
    let page = agent.get("/metrics").expect("the page");
    let value = |series: String| {
        let line =
            page.lines().find(|line| line.starts_with(&series)).unwrap_or_else(|| panic!("{series}: {page}"));
        line.rsplit(' ').next().and_then(|value| value.parse().ok()).expect("a number")
    };
    (value(format!("{FAMILY}_bucket{{le=\"0\"}}")), value(format!("{FAMILY}_count")))
}

/// A question for a block as a node asks it: magic, a question, /26, IPv4, a number, the address.
fn question(number: u8) -> [u8; 32] {
    let mut octets = [0; 32];
    octets[..8].copy_from_slice(&[b's', b'w', b'r', b't', 0, 26, 4, 0]);
    octets[15] = number;
    octets[16..20].copy_from_slice(&[10, 244, 0, 64]);
    octets
}

#[test]
fn a_pods_wait_for_its_route_on_the_other_node_is_measured_and_the_next_pod_waits_for_nothing() {
    let (host, other) = wire();
    let a = agent(&host, ("node-a", "192.0.2.1"), "10.244.0.64/26");
    let (first, second, third) = (NetNs::new(), NetNs::new(), NetNs::new());
    add(&a, "c1", &first);
    assert_eq!(observed(&a), (0, 0), "the other node is not there");
    let b = agent(&other, ("node-b", "192.0.2.2"), "10.244.0.128/26");
    eventually("the other node says that it has the route", || (observed(&a) == (0, 1)).then_some(()));
    let routes = other.output("ip", &["route", "show", "10.244.0.64/26"]);
    assert!(routes.contains("via 192.0.2.1"), "{routes}");
    let address = add(&a, "c2", &second);
    other.output("ping", &["-c", "1", "-W", "2", &address]);
    eventually("it had the route before", || (observed(&a) == (1, 2)).then_some(()));
    eventually("the other way as well", || {
        a.json("/v1/routes")
            .as_array()?
            .iter()
            .any(|route| route["prefix"] == "10.244.0.128/26")
            .then_some(())
    });
    add(&b, "c3", &third);
    eventually("node-b's own", || (observed(&b).1 == 1).then_some(()));
    assert!(!a.get("/metrics").expect("the page").contains("nodes_unanswered_total 1"));

    // Who is no node is told nothing.
    other.ip("address add 192.0.2.9/24 dev up0");
    other.run(|| {
        let from = |address: &str| {
            let socket = UdpSocket::bind((address, 0)).expect("a socket");
            socket.connect(("192.0.2.1", PORT)).expect("a way");
            socket
        };
        let (stranger, node) = (from("192.0.2.9"), from("192.0.2.2"));
        let mut of_b = question(2);
        of_b[19] = 128;
        stranger.send(&of_b).expect("sending");
        node.send(&of_b[..31]).expect("sending");
        node.send(&of_b).expect("sending");
        node.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
        let mut answer = [0; 64];
        assert_eq!(node.recv(&mut answer).expect("an answer"), 32);
        of_b[4] = 1;
        assert_eq!(answer[..32], of_b, "an answer is the question with one octet changed");
        stranger.set_nonblocking(true).expect("without waiting");
        assert!(stranger.recv(&mut answer).is_err(), "it was asked first, and nothing came");
    });
}
