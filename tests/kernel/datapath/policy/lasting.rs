//! Connections while policies come, change and go, and while agents do; ways out of the cluster.

use std::{
    io::{Read, Write},
    net::TcpListener,
    process::{Child, Command, Stdio},
};

use dataplane::flows::now_ns;

use super::{
    super::{errors::path_mtu, masquerade::Ground},
    *,
};

/// A process by which a pod's namespace is found.
struct Resident(Child);

impl Resident {
    fn of(pod: &NetNs) -> Self {
        Self(pod.run(|| {
            Command::new("sleep").arg("600").stdin(Stdio::null()).spawn().expect("a process in the pod")
        }))
    }
}

impl Drop for Resident {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

struct Pair {
    client: TcpStream,
    server: TcpStream,
}

fn open(client: &NetNs, to: &str, listener: &TcpListener) -> Pair {
    let client = connect(client, to).unwrap_or_else(|error| panic!("{to}: {error}"));
    let (server, _) = listener.accept().expect("the connection at the server");
    Pair { client, server }
}

impl Pair {
    fn assert_open(&self) {
        exchange(&self.client, &self.server);
    }

    /// What either side sends is dropped.
    fn assert_cut(&mut self, node: &Node, reason: Counter) {
        dropped(node, reason, || self.client.write_all(b"x").expect("in the socket's buffer"));
        self.server.set_read_timeout(Some(Duration::from_millis(10))).expect("a timeout");
        self.server.read(&mut [0]).expect_err("nothing comes");
    }
}

#[test]
fn a_change_of_rules_cuts_what_they_no_longer_allow_and_nothing_else() {
    let web = |group| RuleKey::ports(RULES, group, Protocol::TCP, Port::new(8080), 16);
    let other = |group| RuleKey::ports(RULES, group, Protocol::TCP, Port::new(8081), 16);
    let mut node = node(INGRESS, &[web(NEAR), other(NEAR)]);
    for of in &FAMILIES {
        let change = |node: &mut Node, rules: &[(RuleKey, bool)]| {
            let changes = PolicyChanges { rules: rules.to_vec(), ..PolicyChanges::default() };
            node.datapath.change_policies(&changes).expect("changing rules");
        };
        change(&mut node, &[(web(NEAR), true)]);
        let [first, second] = [8080, 8081].map(|port| listen(&node.pods[1], &at(of.pod, port)).0);
        let mut cut = open(&node.pods[0], &at(of.pod, 8080), &first);
        let kept = open(&node.pods[0], &at(of.pod, 8081), &second);
        let (listener, _) = listen(&node.pods[0], &at(of.near, 8080));
        let of_pod = open(&node.pods[1], &at(of.near, 8080), &listener);
        cut.assert_open();

        change(&mut node, &[(web(NEAR), false)]);
        cut.assert_cut(&node, Counter::DropPolicyIngress);
        kept.assert_open();
        of_pod.assert_open();
        // What was meant for it comes when it may.
        change(&mut node, &[(web(NEAR), true)]);
        cut.server.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
        assert_eq!(cut.server.read(&mut [0]).expect("what was sent again"), 1);
        cut.assert_open();
    }
}

#[test]
fn the_first_policy_of_a_pod_leaves_it_the_answers_to_what_it_asked_and_its_peers_what_they_may() {
    let mut node = Node::new();
    let _resident = Resident::of(&node.pods[1]);
    let (pod, near) = (node.pods[1].again(), node.pods[0].again());
    let mut pairs = Vec::new();
    let mut datagrams = Vec::new();
    // Who listens where a connection ends, began it not.
    let mut listeners = Vec::new();
    for of in &FAMILIES {
        let [may, may_not] = [8080, 8081].map(|port| listen(&pod, &at(of.pod, port)).0);
        let (listener, _) = listen(&near, &at(of.near, 8080));
        node.serve([(
            key(&at(of.service, 80), Protocol::TCP),
            to(&[at(of.near, 8080).parse().expect("it")]),
        )]);
        pairs.push([
            open(&near, &at(of.pod, 8080), &may),
            open(&near, &at(of.pod, 8081), &may_not),
            open(&pod, &at(of.near, 8080), &listener),
            open(&pod, &at(of.service, 80), &listener),
        ]);
        listeners.extend([may, may_not, listener]);
        let (server, _) = udp(&near, &at(of.near, 5300));
        let (client, _) = udp(&pod, of.any);
        pod.run(|| client.connect(at(of.near, 5300))).expect("connecting");
        client.send(b"ask").expect("a datagram");
        let (_, asked_from) = server.recv_from(&mut [0; 8]).expect("the datagram");
        datagrams.push((client, server, asked_from));
    }
    let rules = [RuleKey::ports(RULES, NEAR, Protocol::TCP, Port::new(8080), 16)];
    node.datapath.set_policies(&policies(INGRESS, &rules)).expect("setting policies");
    for (client, server, asked_from) in &datagrams {
        server.send_to(b"answer", asked_from).expect("the answer");
        assert_eq!(receive(client).expect("the answer comes"), 6);
    }
    for [may, may_not, own, by_service] in &mut pairs {
        // The other side speaks first.
        (&own.server).write_all(b"x").expect("an answer");
        (&own.client).read_exact(&mut [0]).expect("it comes");
        may.assert_open();
        own.assert_open();
        (&by_service.server).write_all(b"x").expect("an answer");
        (&by_service.client).read_exact(&mut [0]).expect("it comes");
        by_service.assert_open();
        may_not.assert_cut(&node, Counter::DropPolicyIngress);
    }
    // Without policies, all is as before.
    node.datapath.set_policies(&Policies::default()).expect("no policies");
    let all = drops(&node);
    let (listener, _) = listen(&pod, "10.244.0.3:8082");
    talk(&near, "10.244.0.3:8082", &listener);
    assert_eq!(drops(&node), all);
}

#[test]
fn verdicts_outlive_the_agent_and_what_is_silent_is_forgotten() {
    const SECOND: u64 = 1_000_000_000;
    let rules = [RuleKey::ports(RULES, NEAR, Protocol::TCP, Port::new(8080), 16)];
    let mut node = node(BOTH, &rules);
    let of = &FAMILIES[0];
    let (listener, _) = listen(&node.pods[1], &at(of.pod, 8080));
    let kept = open(&node.pods[0], &at(of.pod, 8080), &listener);
    node.restart_agent();
    kept.assert_open();
    dropped(&node, Counter::DropPolicyIngress, || send(&node.pods[0], of.any, &at(of.pod, 9000)));
    node.datapath.set_policies(&policies(BOTH, &rules)).expect("the same again");
    kept.assert_open();
    dropped(&node, Counter::DropPolicyEgress, || send(&node.pods[1], of.any, &at(of.near, 9000)));

    let flows = node.datapath.flow_table();
    let left = |seconds: u64| flows.sweep(now_ns() + seconds * SECOND).expect("a sweep").policy_flows;
    assert_eq!(left(7000), 1);
    // Of one that both sides have closed nothing is left, without waiting.
    talk(&node.pods[0], &at(of.pod, 8080), &listener);
    eventually("the closed one is forgotten", || (left(0) == 1).then_some(()));
    kept.assert_open();
    assert_eq!(left(9000), 0);
}

#[test]
fn what_leaves_the_cluster_is_judged_by_where_it_goes_and_errors_about_it_come_back() {
    let mut ground = Ground::new();
    let outside = GroupId(9);
    let rules = [
        RuleKey::ports(RULES, outside, Protocol::UDP, Port::new(9000), 16),
        RuleKey::ports(RULES, outside, Protocol::TCP, Port::new(443), 16),
    ];
    let mut wanted = policies(BOTH, &rules);
    wanted.peers.insert(prefix("203.0.113.0", 24), outside);
    wanted.peers.insert(prefix("2001:db8:113::", 64), outside);
    ground.node.datapath.set_policies(&wanted).expect("setting policies");
    for (of, host) in FAMILIES.iter().zip(["203.0.113.2", "2001:db8:113::2"]) {
        let pod = &ground.node.pods[1];
        let (listener, _) = listen(&ground.outside, &at(host, 443));
        assert_eq!(talk(pod, &at(host, 443), &listener).ip(), ip(of.node));
        let (server, _) = udp(&ground.outside, &at(host, 9000));
        assert_eq!(ask(pod, &at(host, 9000), &server, 100).ip(), ip(of.node));
        dropped(&ground.node, Counter::DropPolicyEgress, || send(pod, of.any, &at(host, 9001)));

        ground.node.beyond.ip("link set outside mtu 1300");
        let (client, _) = udp(pod, of.any);
        pod.run(|| client.connect(at(host, 9000))).expect("connecting");
        eventually("the pod learns what the way takes", || {
            // Once it knows, it cuts the datagram or is refused.
            let _ = client.send(&[7; 1400]);
            (path_mtu(&client) == 1300).then_some(())
        });
        ground.node.beyond.ip("link set outside mtu 1500");
    }
    assert_eq!(count(&ground.node.datapath, Counter::DropPolicyIngress), 0);
}
