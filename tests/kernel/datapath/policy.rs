//! What policies allow, between real sockets: a pod that is isolated, another pod of its node, one of another node, a host
//! beyond, and processes of the node itself.

mod lasting;

use std::{
    io::ErrorKind,
    net::{IpAddr, SocketAddr, TcpStream},
    time::Duration,
};

use dataplane::drops::DropReader;
use ebpf_common::{
    Address, Counter, GroupId, Policed, Port, Prefix, Protocol, RuleKey, RulesId,
    desired::{Policies, PolicyChanges},
};

use super::{
    count, key,
    masquerade::Echo,
    node::{Node, to},
    packets::{ask, connect, drops, exchange, listen, receive, talk, udp},
    tc_modes,
};
use crate::netns::{Cgroup, NetNs, eventually};

struct Family {
    /// The pod that is isolated, another one of its node, and one of another node.
    pod: &'static str,
    near: &'static str,
    far: &'static str,
    beyond: &'static str,
    node: &'static str,
    service: &'static str,
    any: &'static str,
}

const FAMILIES: [Family; 2] = [
    Family {
        pod: "10.244.0.3",
        near: "10.244.0.2",
        far: "10.244.1.2",
        beyond: "10.89.0.12",
        node: "10.89.0.11",
        service: "10.96.0.7",
        any: "0.0.0.0:0",
    },
    Family {
        pod: "fd00:244::3",
        near: "fd00:244::2",
        far: "fd00:244:1::2",
        beyond: "fd00:89::12",
        node: "fd00:89::11",
        service: "fd00:96::7",
        any: "[::]:0",
    },
];

const RULES: RulesId = RulesId(7);
const NEAR: GroupId = GroupId(1);
const FAR: GroupId = GroupId(2);
const NOBODY: GroupId = GroupId(3);
const INGRESS: Policed = Policed { ingress: RULES, egress: RulesId::NONE };
const EGRESS: Policed = Policed { ingress: RulesId::NONE, egress: RULES };
const BOTH: Policed = Policed { ingress: RULES, egress: RULES };

fn ip(address: &str) -> IpAddr {
    address.parse().expect("an address")
}

fn at(address: &str, port: u16) -> String {
    SocketAddr::new(ip(address), port).to_string()
}

fn prefix(address: &str, bits: u8) -> Prefix {
    Prefix::new(Address::from(ip(address)), bits)
}

/// The second pod is isolated. Peers have groups, of which the rules may name some.
fn policies(policed: Policed, rules: &[RuleKey]) -> Policies {
    let mut policies = Policies { rules: rules.iter().copied().collect(), ..Policies::default() };
    for of in &FAMILIES {
        policies.pods.insert(Address::from(ip(of.pod)), policed);
        let bits = if of.any == "[::]:0" { 128 } else { 32 };
        policies.peers.insert(prefix(of.near, bits), NEAR);
    }
    // A range, and one within it.
    policies.peers.insert(prefix("10.244.1.0", 24), FAR);
    policies.peers.insert(prefix("10.244.1.128", 25), NOBODY);
    policies.peers.insert(prefix("fd00:244:1::", 64), FAR);
    policies
}

fn node(policed: Policed, rules: &[RuleKey]) -> Node {
    let mut node = Node::new();
    node.datapath.set_policies(&policies(policed, rules)).expect("setting policies");
    node
}

fn echo(host: &NetNs, address: &str) -> Echo {
    host.sysctl("net/ipv4/ping_group_range", "0 2147483647");
    Echo::new(host, address, 77)
}

/// What `act` sends is dropped for that reason.
fn dropped<T>(node: &Node, reason: Counter, act: impl FnOnce() -> T) -> T {
    let before = count(&node.datapath, reason);
    let done = act();
    eventually(reason.name(), || (count(&node.datapath, reason) > before).then_some(()));
    done
}

fn send(client: &NetNs, from: &str, to: &str) {
    let (socket, _) = udp(client, from);
    client.run(|| socket.send_to(b"x", to)).expect("a datagram");
}

/// Long enough for an answer, had the packet come through.
fn connect_in_vain(client: &NetNs, to: &str) {
    let to = to.parse().expect("an address");
    let tried = client.run(|| TcpStream::connect_timeout(&to, Duration::from_millis(20)));
    let error = tried.expect_err("a connection that no policy allows");
    assert!(matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock), "{error}");
}

#[test]
fn what_enters_an_isolated_pod_is_allowed_by_group_protocol_port_and_range_or_dropped() {
    for tc_mode in tc_modes() {
        let mut node = Node::with_mode(tc_mode);
        let rules = [
            RuleKey::ports(RULES, NEAR, Protocol::TCP, Port::new(8080), 16),
            // 9000 to 9007.
            RuleKey::ports(RULES, NEAR, Protocol::UDP, Port::new(9000), 13),
            RuleKey::protocol(RULES, FAR, Protocol::UDP),
            RuleKey::ports(RULES, GroupId::EVERYBODY, Protocol::TCP, Port::new(443), 16),
        ];
        node.datapath.set_policies(&policies(INGRESS, &rules)).expect("setting policies");
        for of in &FAMILIES {
            let (pod, near, beyond) = (&node.pods[1], &node.pods[0], &node.beyond);
            let [web, tls] = [8080, 443].map(|port| listen(pod, &at(of.pod, port)).0);
            let datagrams = [8080, 9000, 9007, 9008].map(|port| udp(pod, &at(of.pod, port)).0);
            talk(near, &at(of.pod, 8080), &web);
            talk(near, &at(of.pod, 443), &tls);
            for (port, socket) in [(9000, &datagrams[1]), (9007, &datagrams[2])] {
                ask(near, &at(of.pod, port), socket, 100);
            }
            // By any of its addresses, the host beyond is in no group but for that of the other node's pod.
            talk(beyond, &at(of.pod, 443), &tls);
            let (from_far, _) = udp(beyond, &at(of.far, 0));
            from_far.connect(at(of.pod, 8080)).expect("connecting");
            from_far.send(b"ask").expect("a datagram");
            let (_, seen) = datagrams[0].recv_from(&mut [0; 8]).expect("the datagram in the pod");
            datagrams[0].send_to(b"answer", seen).expect("the answer");
            assert_eq!(receive(&from_far).expect("the answer"), 6);
            assert_eq!(drops(&node), 6 * u64::from(of.any == "[::]:0"));
            let own = echo(&node.namespace, of.node);
            assert_eq!(own.ask(of.pod), Some(ip(of.pod)), "the node reaches its pods");
            talk(&node.namespace, &at(of.pod, 8080), &web);

            let reason = Counter::DropPolicyIngress;
            dropped(&node, reason, || send(near, of.any, &at(of.pod, 8080)));
            dropped(&node, reason, || send(near, of.any, &at(of.pod, 9008)));
            dropped(&node, reason, || send(beyond, &at(of.beyond, 0), &at(of.pod, 9000)));
            dropped(&node, reason, || connect_in_vain(near, &at(of.pod, 8081)));
            dropped(&node, reason, || connect_in_vain(beyond, &at(of.pod, 8080)));
            let other = echo(near, of.near);
            dropped(&node, reason, || other.request(of.pod));
            // What the pod asks for may come.
            let (server, _) = listen(near, &at(of.near, 8080));
            talk(pod, &at(of.near, 8080), &server);
            let (server, _) = udp(near, &at(of.near, 8080));
            ask(pod, &at(of.near, 8080), &server, 100);
            let (server, _) = udp(beyond, &at(of.far, 53));
            ask(pod, &at(of.far, 53), &server, 100);
            assert_eq!(echo(pod, of.pod).ask(of.near), Some(ip(of.near)));
            let all = count(&node.datapath, reason);
            let expected = 6 * (1 + u64::from(of.any == "[::]:0"));
            // Retransmissions of a SYN come a second later, if the test is slow.
            assert!(all >= expected && all == drops(&node), "{all} of {} drops", drops(&node));
        }
    }
}

#[test]
fn what_an_isolated_pod_sends_is_allowed_by_group_and_port_and_answers_need_no_rule() {
    let rules =
        [RuleKey::ports(RULES, NEAR, Protocol::TCP, Port::new(8080), 16), RuleKey::everything(RULES, FAR)];
    let node = node(EGRESS, &rules);
    for of in &FAMILIES {
        let (pod, near, beyond) = (&node.pods[1], &node.pods[0], &node.beyond);
        let (web, _) = listen(near, &at(of.near, 8080));
        talk(pod, &at(of.near, 8080), &web);
        let (far, _) = udp(beyond, &at(of.far, 9000));
        ask(pod, &at(of.far, 9000), &far, 100);
        assert_eq!(echo(pod, of.pod).ask(of.far), Some(ip(of.far)));
        let (own, _) = udp(&node.namespace, &at(of.node, 9000));
        ask(pod, &at(of.node, 9000), &own, 100);
        // Who asks it gets an answer.
        let (server, _) = listen(pod, &at(of.pod, 8080));
        talk(near, &at(of.pod, 8080), &server);
        talk(beyond, &at(of.pod, 8080), &server);
        let (server, _) = udp(pod, &at(of.pod, 8080));
        ask(near, &at(of.pod, 8080), &server, 100);
        assert_eq!(echo(near, of.near).ask(of.pod), Some(ip(of.pod)));

        let reason = Counter::DropPolicyEgress;
        dropped(&node, reason, || send(pod, of.any, &at(of.near, 8080)));
        dropped(&node, reason, || connect_in_vain(pod, &at(of.near, 8081)));
        dropped(&node, reason, || connect_in_vain(pod, &at(of.beyond, 8080)));
        let other = echo(pod, of.pod);
        dropped(&node, reason, || other.request(of.beyond));
    }
    assert_eq!(count(&node.datapath, Counter::DropPolicyIngress), 0);
}

#[test]
fn a_service_is_judged_by_its_backend_also_for_the_pod_itself() {
    for is_socket_served in [false, true] {
        let rules = [RuleKey::ports(RULES, NEAR, Protocol::TCP, Port::new(8080), 16)];
        let mut node = node(BOTH, &rules);
        let cgroup = Cgroup::new();
        let view = |host: &NetNs| if is_socket_served { host.within(&cgroup) } else { host.again() };
        let (pod, near) = (view(&node.pods[1]), view(&node.pods[0]));
        if is_socket_served {
            node.datapath.attach_cgroup(&cgroup.path).expect("serving sockets");
        }
        for of in &FAMILIES {
            let backends = [at(of.pod, 8080), at(of.near, 8080), at(of.near, 9090)];
            let ports = [80, 81, 82];
            let of_port = |(port, backend): (u16, &String)| {
                let frontend = at(of.service, port);
                (key(&frontend, Protocol::TCP), to(&[backend.parse().expect("an address")]))
            };
            node.serve(ports.into_iter().zip(&backends).map(of_port));
            let [in_pod, in_near] =
                [(&pod, &backends[0]), (&near, &backends[1])].map(|(host, at)| listen(host, at).0);
            // There, back, and from the pod to itself: by the port that the rules name, which is the backend's.
            talk(&near, &at(of.service, 80), &in_pod);
            talk(&pod, &at(of.service, 81), &in_near);
            talk(&pod, &at(of.service, 80), &in_pod);
            dropped(&node, Counter::DropPolicyEgress, || connect_in_vain(&pod, &at(of.service, 82)));
            if !is_socket_served {
                // A Service that refuses does so to an isolated pod too.
                node.serve([(key(&at(of.service, 83), Protocol::TCP), to(&[]))]);
                let refused = connect(&pod, &at(of.service, 83)).expect_err("no endpoint");
                assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
            }
        }
        assert_eq!(count(&node.datapath, Counter::DropPolicyIngress), 0);
    }
}

#[test]
fn fragments_follow_a_first_one_that_was_allowed() {
    let rules = [RuleKey::ports(RULES, NEAR, Protocol::UDP, Port::new(9000), 16)];
    let node = node(BOTH, &rules);
    for of in &FAMILIES {
        let (pod, near) = (&node.pods[1], &node.pods[0]);
        let (server, _) = udp(pod, &at(of.pod, 9000));
        ask(near, &at(of.pod, 9000), &server, 6000);
        let (server, _) = udp(near, &at(of.near, 9000));
        ask(pod, &at(of.near, 9000), &server, 6000);
        assert_eq!(count(&node.datapath, Counter::DropFragmentEarly), 4 * u64::from(of.any == "[::]:0") * 2);
        let (client, _) = udp(near, of.any);
        dropped(&node, Counter::DropFragmentEarly, || {
            near.run(|| client.send_to(&[7; 6000], at(of.pod, 9001))).expect("a datagram")
        });
        let (client, _) = udp(pod, of.any);
        dropped(&node, Counter::DropFragmentEarly, || {
            pod.run(|| client.send_to(&[7; 6000], at(of.near, 9001))).expect("a datagram")
        });
        eventually("all pieces are dropped", || {
            let all = 8 * (1 + u64::from(of.any == "[::]:0"));
            (count(&node.datapath, Counter::DropFragmentEarly) == all).then_some(())
        });
    }
}

#[test]
fn a_drop_is_told_with_its_policy_as_the_reason() {
    let node = node(BOTH, &[]);
    let mut reader = DropReader::open(node.datapath.maps_dir()).expect("following");
    let of = &FAMILIES[0];
    for (client, to, reason) in [
        (&node.pods[0], at(of.pod, 9000), Counter::DropPolicyIngress),
        (&node.pods[1], at(of.near, 9000), Counter::DropPolicyEgress),
    ] {
        dropped(&node, reason, || send(client, of.any, &to));
        let dropped = eventually("the drop is told", || {
            reader.take(9).into_iter().find(|dropped| dropped.destination_port == Port::new(9000))
        });
        assert_eq!((dropped.reason, dropped.protocol), (reason as u32, Protocol::UDP));
    }
}
