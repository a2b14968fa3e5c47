//! Every class of packet through its program: what it costs, and that it took the way that it stands for.
//!
//! The kernel runs a program again and again over one buffer. What a program leaves as it is, it sees again. What it
//! translates, it sees translated; so flows are written that lead to each other, and a packet of them goes to and fro. A
//! program that takes a hop gets as many runs as a packet has hops. A packet that opens a flow does so once: it is run once,
//! with a new port each time, and what the kernel's taking of the time itself costs is subtracted.

use std::net::IpAddr;

use anyhow::{Result, ensure};
use ebpf_common::{BackendId, Counter, Direction, Flow, Protocol, ServiceId, Tuple};

use super::{
    frame::{ACK, FIN, SYN, addresses, fragments, frame, from_port, refusal},
    lab::{
        BACKEND_PORT, FAMILIES, Family, Lab, NODE_PORT_ELSEWHERE, NODE_PORT_HERE, SERVICE_PORT, address,
        forwarded, tuple,
    },
    runs::{Case, REDIRECT, Runs, UNTOUCHED},
};

const FIRST_PORT: u16 = 20_000;
const KNOWN_PORT: u16 = 41_000;
/// Of the node, towards backends and hosts beyond it.
const NODE_PORTS: [u16; 2] = [49_200, 49_201];
const WEB_PORT: u16 = 443;
const PASS: &[u32] = &[u32::MAX];
const DROP: &[u32] = &[2];
/// The program of XDP, and what it answers.
const XDP: &str = "uplink_xdp";
const XDP_PASS: &[u32] = &[2];
const XDP_TX: &[u32] = &[3];
const XDP_TX_OR_PASS: &[u32] = &[3, 2];
/// Nanoseconds that a packet of a known flow is to take at most.
const XDP_GOAL: f64 = 150.0;
/// Answered, or dropped without an answer where there were too many.
const REFUSE: &[u32] = &[7, 2];

type Ends<'a> = ((&'a str, u16), (&'a str, u16));

fn packet(protocol: Protocol, (from, to): Ends<'_>, flags: u8) -> Vec<u8> {
    frame(protocol, (address(from.0), from.1), (address(to.0), to.1), flags)
}

fn between(protocol: Protocol, (from, to): Ends<'_>) -> Tuple {
    tuple(protocol, from, to)
}

pub(super) fn all(runs: &mut Runs) -> Result<()> {
    runs.calibrate()?;
    for of in &FAMILIES {
        not_ours(runs, of)?;
        direct(runs, of)?;
        opening(runs, of)?;
        known(runs, of)?;
        replies(runs, of)?;
        sent_on(runs, of)?;
        early(runs, of)?;
        outside(runs, of)?;
        errors(runs, of)?;
        pieces(runs, of)?;
        dropped(runs, of)?;
    }
    // Last, as from here on there are policies.
    FAMILIES.iter().try_for_each(|of| policed(runs, of))
}

fn not_ours(runs: &mut Runs, of: &Family) -> Result<()> {
    let (pod, uplink) = (runs.lab().pod, runs.lab().uplink);
    let to_node = packet(Protocol::TCP, ((of.beyond, 40_000), (of.node, 9000)), ACK);
    let from_node = packet(Protocol::TCP, ((of.node, 9000), (of.beyond, 40_000)), ACK);
    let from_pod = packet(Protocol::TCP, ((of.client, 40_000), (of.node, 9000)), ACK);
    for (program, name, link, packet) in [
        ("pod_ingress", "TCP, of a pod to the node", pod, &from_pod),
        ("uplink_ingress", "TCP, to the node", uplink, &to_node),
        ("uplink_egress", "TCP, of the node", uplink, &from_node),
    ] {
        runs.repeated(
            Case { program, name, of, link, verdicts: PASS, counted: UNTOUCHED, to: None },
            packet,
        )?;
    }
    Ok(())
}

fn direct(runs: &mut Runs, of: &Family) -> Result<()> {
    let (pod, uplink) = (runs.lab().pod, runs.lab().uplink);
    let delivered: &[Counter] = &[Counter::Delivered];
    for (program, name, link, from, to, verdicts, counted) in [
        ("pod_ingress", "TCP, to a pod here", pod, of.client, of.pod, REDIRECT, delivered),
        (
            "pod_ingress",
            "TCP, to a pod elsewhere",
            pod,
            of.client,
            of.pod_beyond,
            REDIRECT,
            &[Counter::Routed],
        ),
        ("uplink_ingress", "TCP, of a pod to a pod", uplink, of.pod_beyond, of.pod, REDIRECT, delivered),
        ("uplink_ingress", "TCP, of others to a pod", uplink, of.outside, of.pod, REDIRECT, delivered),
        ("uplink_egress", "TCP, of a pod to a pod", uplink, of.client, of.pod_beyond, PASS, UNTOUCHED),
        ("pod_egress", "TCP, to a pod without flows", pod, of.client, of.pod, PASS, UNTOUCHED),
    ] {
        let packet = packet(Protocol::TCP, ((from, 40_000), (to, 9000)), ACK);
        let case = Case { program, name, of, link, verdicts, counted, to: None };
        if verdicts == REDIRECT { runs.hopping(case, &packet)? } else { runs.repeated(case, &packet)? }
    }
    Ok(())
}

fn opening(runs: &mut Runs, of: &Family) -> Result<()> {
    let (pod, uplink) = (runs.lab().pod, runs.lab().uplink);
    let here: &[Counter] = &[Counter::FlowNew, Counter::FlowForward, Counter::Delivered];
    let beyond: &[Counter] = &[Counter::FlowNew, Counter::FlowForward, Counter::Routed];
    let sent_on: &[Counter] = &[Counter::FlowNew, Counter::FlowForward, Counter::Forwarded];
    let (tcp, udp) = (Protocol::TCP, Protocol::UDP);
    let service = |address| (address, SERVICE_PORT);
    for (program, name, link, protocol, from, to, counted, becomes) in [
        (
            "pod_ingress",
            "TCP, ClusterIP, backend here, new",
            pod,
            tcp,
            of.client,
            service(of.here),
            here,
            of.server,
        ),
        (
            "pod_ingress",
            "UDP, ClusterIP, backend here, new",
            pod,
            udp,
            of.client,
            service(of.here),
            here,
            of.server,
        ),
        (
            "pod_ingress",
            "TCP, ClusterIP, backend elsewhere, new",
            pod,
            tcp,
            of.client,
            service(of.elsewhere),
            beyond,
            of.pod_beyond,
        ),
        (
            "uplink_ingress",
            "TCP, NodePort, backend here, new",
            uplink,
            tcp,
            of.beyond,
            (of.node, NODE_PORT_HERE),
            here,
            of.server,
        ),
        (
            "uplink_ingress",
            "TCP, NodePort, backend elsewhere, new",
            uplink,
            tcp,
            of.beyond,
            (of.node, NODE_PORT_ELSEWHERE),
            sent_on,
            of.pod_beyond,
        ),
    ] {
        let to_backend = Some(address(becomes));
        let case = Case { program, name, of, link, verdicts: REDIRECT, counted, to: to_backend };
        runs.single(case, |number| packet(protocol, ((from, FIRST_PORT + number), to), SYN))?;
    }
    Ok(())
}

/// To a backend here by flows that lead to each other, to one elsewhere one by one.
fn known(runs: &mut Runs, of: &Family) -> Result<()> {
    let (pod, uplink) = (runs.lab().pod, runs.lab().uplink);
    // Pods that have flows, so that what comes for them is looked up.
    for member in of.pair {
        let asks = packet(Protocol::TCP, ((member, 40_000), (of.here, SERVICE_PORT)), SYN);
        runs.once("pod_ingress", pod, &asks, REDIRECT)?;
    }
    let counted: &[Counter] = &[Counter::FlowForward, Counter::Delivered];
    for (program, name, link, protocol, client) in [
        ("pod_ingress", "TCP, ClusterIP, backend here, known", pod, Protocol::TCP, of.client),
        ("pod_ingress", "UDP, ClusterIP, backend here, known", pod, Protocol::UDP, of.client),
        ("uplink_ingress", "TCP, LoadBalancer, backend here, known", uplink, Protocol::TCP, of.beyond),
    ] {
        for frontend in of.pair {
            let opens = packet(protocol, ((client, KNOWN_PORT), (frontend, SERVICE_PORT)), SYN);
            runs.once(program, link, &opens, REDIRECT)?;
        }
        let packet = packet(protocol, ((client, KNOWN_PORT), (of.pair[0], SERVICE_PORT)), ACK);
        runs.hopping(Case { program, name, of, link, verdicts: REDIRECT, counted, to: None }, &packet)?;
    }
    let ends = ((of.client, KNOWN_PORT), (of.elsewhere, SERVICE_PORT));
    runs.once("pod_ingress", pod, &packet(Protocol::TCP, ends, SYN), REDIRECT)?;
    let known = packet(Protocol::TCP, ends, ACK);
    let case = Case {
        program: "pod_ingress",
        name: "TCP, ClusterIP, backend elsewhere, known",
        of,
        link: pod,
        verdicts: REDIRECT,
        counted: &[Counter::FlowForward, Counter::Routed],
        to: Some(address(of.pod_beyond)),
    };
    runs.single(case, |_| known.clone()).map(drop)
}

fn replies(runs: &mut Runs, of: &Family) -> Result<()> {
    let (pod, uplink) = (runs.lab().pod, runs.lab().uplink);
    let reverse =
        |translated| Flow::new(Direction::Reverse, translated, ServiceId(1), BackendId(1), false, 0);
    let handed: &[Counter] = &[Counter::FlowReverse, Counter::Delivered];
    let passed: &[Counter] = &[Counter::FlowReverse];
    for (program, name, link, client, backends, verdicts, counted) in [
        (
            "pod_ingress",
            "TCP, reply of a backend here",
            pod,
            (of.client, 42_000),
            [(of.server, BACKEND_PORT), (of.here, SERVICE_PORT)],
            REDIRECT,
            handed,
        ),
        (
            "pod_egress",
            "TCP, reply of a backend elsewhere",
            pod,
            (of.client, 42_001),
            [(of.pod_beyond, BACKEND_PORT), (of.elsewhere, SERVICE_PORT)],
            PASS,
            passed,
        ),
        (
            "uplink_egress",
            "TCP, reply of a backend here",
            uplink,
            (of.beyond, 42_002),
            [(of.server, BACKEND_PORT), (of.pod, BACKEND_PORT)],
            PASS,
            passed,
        ),
    ] {
        let [one, other] = backends.map(|backend| between(Protocol::TCP, (backend, client)));
        runs.lab().write_cycle([(one, reverse(other)), (other, reverse(one))])?;
        let packet = packet(Protocol::TCP, (backends[0], client), ACK);
        let case = Case { program, name, of, link, verdicts, counted, to: None };
        if verdicts == REDIRECT { runs.hopping(case, &packet)? } else { runs.repeated(case, &packet)? }
    }
    Ok(())
}

/// Between a client and a backend that are both beyond the node, there and back.
fn sent_on(runs: &mut Runs, of: &Family) -> Result<()> {
    let link = runs.lab().uplink;
    for (name, counted, ends) in sent_on_cycles(runs.lab(), of)? {
        let case = Case {
            program: "uplink_ingress",
            name,
            of,
            link,
            verdicts: REDIRECT,
            counted: &[counted, Counter::Forwarded],
            to: None,
        };
        runs.hopping(case, &packet(Protocol::TCP, ends, ACK))?;
    }
    Ok(())
}

/// What XDP takes for the same, and for what it leaves to tc.
fn early(runs: &mut Runs, of: &Family) -> Result<()> {
    let (program, link) = (XDP, runs.lab().uplink);
    let cycles = sent_on_cycles(runs.lab(), of)?;
    for (name, counted, ends) in cycles {
        let counted: &[Counter] = &[counted, Counter::ForwardedEarly];
        let case = Case { program, name, of, link, verdicts: XDP_TX, counted, to: None };
        let known = packet(Protocol::TCP, ends, ACK);
        // So that the kernel asks after the neighbour, the first one is tc's.
        runs.once(program, link, &known, XDP_TX_OR_PASS)?;
        runs.hopping(case, &known)?;
        runs.is_to_take(XDP_GOAL);
    }
    let [(_, counted, ends), _] = cycles;
    let counted: &[Counter] = &[counted, Counter::ForwardedEarly];
    let name = "TCP, NodePort, backend elsewhere, flow and route looked up";
    let ends_it = packet(Protocol::TCP, ends, ACK | FIN);
    runs.hopping(Case { program, name, of, link, verdicts: XDP_TX, counted, to: None }, &ends_it)?;
    for (name, from, to, flags) in [
        ("TCP, left to tc: to the node", (of.beyond, 40_000), (of.node, 9000), ACK),
        ("TCP, left to tc: to a pod", (of.pod_beyond, 40_000), (of.pod, 9000), ACK),
        ("TCP, left to tc: to a backend here", (of.beyond, KNOWN_PORT), (of.pair[0], SERVICE_PORT), ACK),
        ("TCP, left to tc: new", (of.beyond, 40_000), (of.node, NODE_PORT_ELSEWHERE), SYN),
    ] {
        let case = Case { program, name, of, link, verdicts: XDP_PASS, counted: UNTOUCHED, to: None };
        runs.repeated(case, &packet(Protocol::TCP, (from, to), flags))?;
    }
    Ok(())
}

/// Flows that lead to each other, and the packet that goes to and fro.
fn sent_on_cycles<'a>(lab: &Lab, of: &'a Family) -> Result<[(&'static str, Counter, Ends<'a>); 2]> {
    let [first, second] = of.forwarded.map(|address| (address, SERVICE_PORT));
    let there = [((of.beyond, KNOWN_PORT), first), ((of.node, NODE_PORTS[0]), second)];
    let back = [(first, (of.outside, NODE_PORTS[0])), (second, (of.beyond, KNOWN_PORT))];
    for (direction, [one, other]) in [(Direction::Forward, there), (Direction::Reverse, back)] {
        let [one, other] = [one, other].map(|ends| between(Protocol::TCP, ends));
        lab.write_cycle([(one, forwarded(direction, other)), (other, forwarded(direction, one))])?;
    }
    Ok([
        ("TCP, NodePort, backend elsewhere, known", Counter::FlowForward, there[0]),
        ("TCP, reply of a backend elsewhere", Counter::FlowReverse, back[0]),
    ])
}

/// Between pods and hosts outside of the cluster.
fn outside(runs: &mut Runs, of: &Family) -> Result<()> {
    let link = runs.lab().uplink;
    let web = (of.outside, WEB_PORT);
    let mut seen_as = 0;
    for (name, protocol) in
        [("TCP, masqueraded, new", Protocol::TCP), ("UDP, masqueraded, new", Protocol::UDP)]
    {
        let counted: &[Counter] = &[Counter::FlowNew, Counter::Masqueraded, Counter::FlowForward];
        let case = Case {
            program: "uplink_egress",
            name,
            of,
            link,
            verdicts: PASS,
            counted,
            to: Some(address(of.outside)),
        };
        let sent =
            runs.single(case, |number| packet(protocol, ((of.client, FIRST_PORT + number), web), SYN))?;
        ensure!(
            addresses(&sent).is_some_and(|(from, _)| from == address(of.node)),
            "{name}: the packet has the node's address"
        );
        if protocol == Protocol::TCP {
            seen_as = from_port(&sent);
        }
    }
    let [one, other] = [(of.client, 43_000), (of.pod, 43_001)].map(|pod| between(Protocol::TCP, (pod, web)));
    let flow = |translated| Flow::masqueraded(Direction::Forward, translated, 0);
    runs.lab().write_cycle([(one, flow(other)), (other, flow(one))])?;
    let known = packet(Protocol::TCP, ((of.client, 43_000), web), ACK);
    let case = Case {
        program: "uplink_egress",
        name: "TCP, masqueraded, known",
        of,
        link,
        verdicts: PASS,
        counted: &[Counter::FlowForward],
        to: None,
    };
    runs.repeated(case, &known)?;
    let answer = packet(Protocol::TCP, (web, (of.node, seen_as)), ACK);
    let case = Case {
        program: "uplink_ingress",
        name: "TCP, reply to a masqueraded pod",
        verdicts: REDIRECT,
        counted: &[Counter::FlowReverse, Counter::Delivered],
        to: Some(address(of.client)),
        ..case
    };
    runs.single(case, |_| answer.clone())?;
    let asked = packet(Protocol::TCP, ((of.pod, 8080), (of.outside, 40_000)), ACK);
    let name = "TCP, of a pod to outside, which asked it";
    let case = Case { program: "uplink_egress", name, verdicts: PASS, counted: UNTOUCHED, to: None, ..case };
    runs.repeated(case, &asked)
}

fn errors(runs: &mut Runs, of: &Family) -> Result<()> {
    let (pod, uplink) = (runs.lab().pod, runs.lab().uplink);
    let asked = packet(Protocol::TCP, ((of.client, 44_000), (of.elsewhere, SERVICE_PORT)), SYN);
    let sent = runs.once("pod_ingress", pod, &asked, REDIRECT)?;
    let about = refusal(address(of.pod_beyond), address(of.client), &sent);
    let counted: &[Counter] = &[Counter::IcmpTranslated];
    let name = "ICMP error about a packet of a Service";
    let to = Some(address(of.client));
    let case = Case { program: "pod_egress", name, of, link: pod, verdicts: PASS, counted, to };
    let told = runs.single(case, |_| about.clone())?;
    ensure!(
        addresses(&told).is_some_and(|(from, _)| from == address(of.elsewhere)),
        "the error comes from the Service"
    );

    let asked = packet(Protocol::TCP, ((of.beyond, 44_000), (of.node, NODE_PORT_ELSEWHERE)), SYN);
    let sent = runs.once("uplink_ingress", uplink, &asked, REDIRECT)?;
    let about = refusal(address(of.pod_beyond), address(of.node), &sent);
    let counted: &[Counter] = &[Counter::IcmpTranslated, Counter::Forwarded];
    let name = "ICMP error about a packet that was sent on";
    let to = Some(address(of.beyond));
    let case = Case { program: "uplink_ingress", name, of, link: uplink, verdicts: REDIRECT, counted, to };
    runs.single(case, |_| about.clone()).map(drop)
}

fn pieces(runs: &mut Runs, of: &Family) -> Result<()> {
    let link = runs.lab().pod;
    let ends = |to: IpAddr| ((address(of.client), KNOWN_PORT), (to, SERVICE_PORT));
    let [[first, later], [other, _]] = of.pair.map(|pair| {
        let (from, to) = ends(address(pair));
        fragments(from, to)
    });
    runs.once("pod_ingress", link, &other, PASS)?;
    let case = Case {
        program: "pod_ingress",
        name: "UDP, first fragment, known",
        of,
        link,
        verdicts: PASS,
        counted: &[Counter::FlowForward],
        to: None,
    };
    runs.repeated(case, &first)?;
    let to = Some(address(of.pair[1]));
    let translated = runs.once("pod_ingress", link, &later, PASS)?;
    ensure!(addresses(&translated).map(|(_, to)| to) == to, "a later fragment goes where the first one went");
    let case = Case { name: "UDP, later fragment", counted: UNTOUCHED, ..case };
    runs.repeated(case, &later)
}

fn dropped(runs: &mut Runs, of: &Family) -> Result<()> {
    let closed = packet(Protocol::TCP, ((of.beyond, 40_000), (of.closed, SERVICE_PORT)), SYN);
    let case = Case {
        program: "uplink_ingress",
        name: "TCP, dropped: not in the source ranges",
        of,
        link: runs.lab().uplink,
        verdicts: DROP,
        counted: &[Counter::DropSourceRange],
        to: None,
    };
    runs.repeated(case, &closed)?;
    let refused = packet(Protocol::TCP, ((of.beyond, 40_000), (of.empty, SERVICE_PORT)), SYN);
    let name = "TCP, no endpoint: refused, most without an answer";
    let case = Case { name, verdicts: REFUSE, counted: &[Counter::DropNoBackend], ..case };
    runs.single(case, |_| refused.clone()).map(drop)
}

/// For a pod that is isolated, of one that is not, and the other way round.
fn policed(runs: &mut Runs, of: &Family) -> Result<()> {
    let (pod, uplink) = (runs.lab().pod, runs.lab().uplink);
    runs.lab_mut().police(of)?;
    let delivered: &[Counter] = &[Counter::Delivered];
    let ends = |port| ((of.outside, port), (of.policed, 9000));
    runs.once("uplink_ingress", uplink, &packet(Protocol::TCP, ends(KNOWN_PORT), SYN), REDIRECT)?;
    let known = packet(Protocol::TCP, ends(KNOWN_PORT), ACK);
    let case = Case {
        program: "uplink_ingress",
        name: "TCP, to an isolated pod, known",
        of,
        link: uplink,
        verdicts: REDIRECT,
        counted: delivered,
        to: None,
    };
    runs.hopping(case, &known)?;
    let case = Case { name: "TCP, to an isolated pod, new", ..case };
    runs.single(case, |number| packet(Protocol::TCP, ends(FIRST_PORT + number), SYN))?;
    let denied = packet(Protocol::TCP, ((of.outside, 40_000), (of.policed, 9001)), SYN);
    let name = "TCP, to an isolated pod, denied";
    let case = Case { name, verdicts: DROP, counted: &[Counter::DropPolicyIngress], ..case };
    runs.repeated(case, &denied)?;
    let answer = packet(Protocol::TCP, ((of.policed, 9000), (of.pod_beyond, KNOWN_PORT)), ACK);
    let opens = packet(Protocol::TCP, ((of.pod_beyond, KNOWN_PORT), (of.policed, 9000)), SYN);
    runs.once("uplink_ingress", uplink, &opens, REDIRECT)?;
    let case = Case {
        program: "pod_ingress",
        name: "TCP, of an isolated pod to a pod elsewhere, known",
        link: runs.lab().isolated,
        counted: &[Counter::Routed],
        verdicts: REDIRECT,
        ..case
    };
    runs.hopping(case, &answer)?;
    let free = packet(Protocol::TCP, ((of.client, 40_000), (of.pod, 9000)), ACK);
    let name = "TCP, to a pod here, others are isolated";
    runs.hopping(Case { name, link: pod, counted: delivered, ..case }, &free)
}
