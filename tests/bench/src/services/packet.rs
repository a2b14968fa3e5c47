//! Nanoseconds per packet of each class, by BPF_PROG_TEST_RUN, with all Services in the maps.
//!
//! The kernel runs a program again and again over one buffer. What a program leaves as it is, it sees again. What it
//! translates, it sees translated; so two Services lead to each other, and a packet of a known flow goes to and fro
//! between them for ever. A packet that opens a flow does so once: it is run once, with a new port each time, and what
//! the kernel's taking of the time itself costs is subtracted.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context as _, Result, ensure};
use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions};
use dataplane::{
    datapath::{Config, Datapath},
    flows::FlowEntry,
    links::PodLink,
    masquerade::MasqueradeConfig,
    node::NodeConfig,
};
use ebpf_common::{
    Address, FrontendKey, Port, Protocol,
    desired::{Clients, Endpoint, Service},
};
use nix::mount::{MntFlags, umount2};
use proxy::NodeView;

use super::{
    frame::{ACK, SYN, frame, to_port},
    ground::Ground,
    objects,
};
use crate::report::median;

/// Runs over one buffer.
const REPEAT: u32 = 50_000;
/// How often that is done; the median counts.
const TIMES: usize = 5;
/// Single runs; the median counts.
const SINGLES: u16 = 4000;
const FIRST_PORT: u16 = 20_000;
/// What a program may answer that lets a packet pass (TC_ACT_UNSPEC), sends it elsewhere (TC_ACT_REDIRECT), or answers it
/// in that way as long as it may, and then drops it (TC_ACT_SHOT).
const PASS: &[u32] = &[u32::MAX];
const REDIRECT: &[u32] = &[7];
const REFUSE: &[u32] = &[7, 2];

const CLIENT: &str = "10.244.0.2";
const CLIENT_V6: &str = "fd00:244::2";
const BEYOND: &str = "10.89.0.200";
const OUTSIDE: &str = "203.0.113.7";
const OUTSIDE_V6: &str = "2001:db8::7";
const NODE_V6: &str = "fd00:89::11";
/// Addresses of nodes, where pods keep theirs.
const NODES: u8 = 200;
/// Services that lead to each other: their backends are their addresses.
const PAIR: [&str; 2] = ["10.97.0.1", "10.97.0.2"];
const PAIR_V6: [&str; 2] = ["fd00:97::1", "fd00:97::2"];
/// Services with a backend on the node, one beyond it, and none.
const LOCAL: &str = "10.97.0.3";
const LOCAL_V6: &str = "fd00:97::3";
const REMOTE: &str = "10.97.0.4";
const EMPTY: &str = "10.97.0.5";
const NODE: &str = "10.89.0.11";
const BACKEND: &str = "10.244.0.3";
const BACKEND_V6: &str = "fd00:244::3";
const BACKEND_BEYOND: &str = "10.244.1.2";
const POD: &str = "10.244.0.77";
const POD_V6: &str = "fd00:244::77";
/// Runs of single packets send nothing: any interface will do.
const LOOPBACK: u32 = 1;

/// One line of the table.
pub(crate) struct Class {
    pub(crate) program: &'static str,
    pub(crate) name: &'static str,
    pub(crate) nanoseconds: f64,
}

pub(crate) fn measure(ground: &Ground, services: u32) -> Result<Vec<Class>> {
    let directory = ground.folder().join("bpf-packet");
    let mut datapath = Datapath::open(&Config::new(&directory)).context("opening the datapath")?;
    fill(&mut datapath, services)?;
    let mut runs = Runs { datapath, classes: Vec::new(), clock: 0.0 };
    runs.all()?;
    let classes = std::mem::take(&mut runs.classes);
    drop(runs);
    // Where that fails, it goes with this process.
    let _ = umount2(&directory, MntFlags::MNT_DETACH);
    Ok(classes)
}

fn fill(datapath: &mut Datapath, services: u32) -> Result<()> {
    let (all, slices): (Vec<_>, Vec<_>) =
        (0..services).map(|index| (objects::service(index), objects::slice(index))).unzip();
    let node = NodeView { name: objects::NODES[0].to_owned(), ..NodeView::default() };
    let mut wanted = proxy::desired(&all, &slices, &node);
    for protocol in [Protocol::TCP, Protocol::UDP] {
        for (frontend, backend, port, local) in [
            (PAIR[0], PAIR[1], 80, true),
            (PAIR[1], PAIR[0], 80, true),
            (PAIR_V6[0], PAIR_V6[1], 80, true),
            (PAIR_V6[1], PAIR_V6[0], 80, true),
            (LOCAL, BACKEND, 8080, true),
            (LOCAL_V6, BACKEND_V6, 8080, true),
            (REMOTE, BACKEND_BEYOND, 8080, false),
        ] {
            wanted.insert(key(frontend, protocol), leading_to(Some((backend, port, local))));
        }
        wanted.insert(key(EMPTY, protocol), leading_to(None));
    }
    let any = key(NODE, Protocol::TCP).of_any_address();
    let node_port = FrontendKey::new(any.address, Port::new(30080), Protocol::TCP);
    wanted.insert(node_port, leading_to(Some((BACKEND_BEYOND, 8080, false))));
    datapath.set_services(wanted).context("writing the Services")?;
    let sources = [NODE, NODE_V6].map(ip);
    let config = NodeConfig { sources: sources.to_vec(), addresses: sources.into(), ..NodeConfig::default() };
    datapath.set_node(&config).context("telling what the node is")?;
    let masquerade = MasqueradeConfig {
        pods: vec!["10.244.0.0/16".parse()?, "fd00:244::/32".parse()?],
        except: (0..NODES).map(|last| IpAddr::from([10, 89, 0, last]).into()).collect(),
        ..MasqueradeConfig::default()
    };
    datapath.set_masquerade(&masquerade).context("telling whose address is exchanged")
}

fn key(address: &str, protocol: Protocol) -> FrontendKey {
    FrontendKey::new(Address::from(ip(address)), Port::new(80), protocol)
}

fn leading_to(backend: Option<(&str, u16, bool)>) -> Service {
    let endpoint = |(address, port, local): (&str, u16, bool)| Endpoint {
        address: Address::from(ip(address)),
        port: Port::new(port),
        local,
        clients: Clients::All,
        weight: Endpoint::WEIGHT,
    };
    Service {
        name: "bench".to_owned(),
        endpoints: backend.map(endpoint).into_iter().collect(),
        has_endpoints: backend.is_some(),
        ..Service::default()
    }
}

/// The addresses above are written by us.
fn ip(text: &str) -> IpAddr {
    let v4 = text.parse::<Ipv4Addr>().map(IpAddr::V4);
    v4.or_else(|_| text.parse::<Ipv6Addr>().map(IpAddr::V6)).expect("a constant of this file is an address")
}

struct Runs {
    datapath: Datapath,
    classes: Vec<Class>,
    /// Nanoseconds that a single run shows more than it took.
    clock: f64,
}

impl Runs {
    fn all(&mut self) -> Result<()> {
        let mut arp = vec![0xff; 12];
        arp.extend([0x08, 0x06]);
        arp.resize(60, 0);
        self.repeated("pod_ingress", "neither IPv4 nor IPv6", &arp, PASS)?;
        let repeated = self.classes.last().map_or(0.0, |class| class.nanoseconds);
        let single = self.single("pod_ingress", PASS, |_| arp.clone())?;
        self.clock = (single - repeated).max(0.0);
        self.passing()?;
        self.known()?;
        self.known_forwarded()?;
        self.opening()?;
        self.outside()?;
        self.handed_over()?;
        let refused = frame(Protocol::TCP, (ip(CLIENT), 40_000), (ip(EMPTY), 80), SYN);
        let took = self.single("pod_ingress", REFUSE, |_| refused.clone())?;
        self.put(
            "pod_ingress",
            "TCP, to a Service without endpoints: refused, most without an answer",
            took - self.clock,
        );
        Ok(())
    }

    /// To pods and others, in all directions.
    fn passing(&mut self) -> Result<()> {
        for program in ["pod_ingress", "pod_egress", "uplink_ingress", "uplink_egress"] {
            for (name, protocol, from, to) in [
                ("TCP, IPv4, no Service's", Protocol::TCP, CLIENT, BACKEND),
                ("UDP, IPv4, no Service's", Protocol::UDP, CLIENT, BACKEND),
                ("TCP, IPv6, no Service's", Protocol::TCP, CLIENT_V6, BACKEND_V6),
            ] {
                let packet = frame(protocol, (ip(from), 40_000), (ip(to), 9000), ACK);
                self.repeated(program, name, &packet, PASS)?;
            }
        }
        Ok(())
    }

    /// Known flows, there and back.
    fn known(&mut self) -> Result<()> {
        for (there, back) in [("pod_ingress", "pod_egress"), ("uplink_ingress", "uplink_egress")] {
            for (name, back_name, protocol, client, pair) in [
                ("TCP, IPv4, to a backend, known", "TCP, IPv4, to the client", Protocol::TCP, CLIENT, PAIR),
                ("UDP, IPv4, to a backend, known", "UDP, IPv4, to the client", Protocol::UDP, CLIENT, PAIR),
                (
                    "TCP, IPv6, to a backend, known",
                    "TCP, IPv6, to the client",
                    Protocol::TCP,
                    CLIENT_V6,
                    PAIR_V6,
                ),
            ] {
                let client = (ip(client), 41_000 + self.classes.len() as u16);
                for frontend in pair {
                    let opening = frame(protocol, client, (ip(frontend), 80), SYN);
                    self.once(there, &opening, PASS)?;
                }
                let packet = frame(protocol, client, (ip(pair[0]), 80), ACK);
                self.repeated(there, name, &packet, PASS)?;
                let answer = frame(protocol, (ip(pair[1]), 80), client, ACK);
                self.repeated(back, back_name, &answer, PASS)?;
            }
        }
        Ok(())
    }

    /// Between a client and a backend that are both beyond the node; each packet has one hop less than the one before.
    fn known_forwarded(&mut self) -> Result<()> {
        let client = (ip(BEYOND), 42_000);
        let opening = frame(Protocol::TCP, client, (ip(NODE), 30080), SYN);
        self.once("uplink_ingress", &opening, REDIRECT)?;
        let packet = frame(Protocol::TCP, client, (ip(NODE), 30080), ACK);
        let took = self.single("uplink_ingress", REDIRECT, |_| packet.clone())?;
        self.put(
            "uplink_ingress",
            "TCP, IPv4, node port to a backend beyond the node, known",
            took - self.clock,
        );
        Ok(())
    }

    fn opening(&mut self) -> Result<()> {
        for (program, name, protocol, from, to, verdict) in [
            ("pod_ingress", "TCP, IPv4, to a backend, new", Protocol::TCP, CLIENT, (LOCAL, 80), PASS),
            ("pod_ingress", "UDP, IPv4, to a backend, new", Protocol::UDP, CLIENT, (LOCAL, 80), PASS),
            ("pod_ingress", "TCP, IPv6, to a backend, new", Protocol::TCP, CLIENT_V6, (LOCAL_V6, 80), PASS),
            ("pod_ingress", "TCP, IPv4, to a backend beyond, new", Protocol::TCP, CLIENT, (REMOTE, 80), PASS),
            ("uplink_ingress", "TCP, IPv4, to a backend, new", Protocol::TCP, BEYOND, (LOCAL, 80), PASS),
            (
                "uplink_ingress",
                "TCP, IPv4, node port to a backend beyond the node, new",
                Protocol::TCP,
                BEYOND,
                (NODE, 30080),
                REDIRECT,
            ),
        ] {
            let took = self.single(program, verdict, |number| {
                frame(protocol, (ip(from), FIRST_PORT + number), (ip(to.0), to.1), SYN)
            })?;
            self.put(program, name, took - self.clock);
        }
        Ok(())
    }

    /// Between pods and hosts outside of the cluster; each packet is translated once.
    fn outside(&mut self) -> Result<()> {
        for (name, back_name, new_name, protocol, pod, outside, node) in [
            (
                "TCP, IPv4, of a pod to outside, known",
                "TCP, IPv4, from outside to a pod, known",
                "TCP, IPv4, of a pod to outside, new",
                Protocol::TCP,
                CLIENT,
                OUTSIDE,
                NODE,
            ),
            (
                "UDP, IPv4, of a pod to outside, known",
                "UDP, IPv4, from outside to a pod, known",
                "UDP, IPv4, of a pod to outside, new",
                Protocol::UDP,
                CLIENT,
                OUTSIDE,
                NODE,
            ),
            (
                "TCP, IPv6, of a pod to outside, known",
                "TCP, IPv6, from outside to a pod, known",
                "TCP, IPv6, of a pod to outside, new",
                Protocol::TCP,
                CLIENT_V6,
                OUTSIDE_V6,
                NODE_V6,
            ),
        ] {
            let took = self.single("uplink_egress", PASS, |number| {
                frame(protocol, (ip(pod), FIRST_PORT + number), (ip(outside), 443), SYN)
            })?;
            self.put("uplink_egress", new_name, took - self.clock);
            let packet = frame(protocol, (ip(pod), FIRST_PORT), (ip(outside), 443), ACK);
            let took = self.single("uplink_egress", PASS, |_| packet.clone())?;
            self.put("uplink_egress", name, took - self.clock);
            let flows = self.datapath.flows().context("reading the flows")?;
            let is_wanted = |flow: &&FlowEntry| {
                flow.protocol == protocol
                    && flow.client == (ip(pod), FIRST_PORT)
                    && flow.frontend == (ip(outside), 443)
            };
            let flow = flows.iter().find(is_wanted);
            let seen_as = flow.context("the flow is there")?.seen_as;
            ensure!(seen_as.0 == ip(node), "the flow has the node's address");
            let answer = frame(protocol, (ip(outside), 443), seen_as, ACK);
            let took = self.single("uplink_ingress", PASS, |_| answer.clone())?;
            self.put("uplink_ingress", back_name, took - self.clock);
        }
        let answer = frame(Protocol::TCP, (ip(CLIENT), 8080), (ip(OUTSIDE), 40_000), ACK);
        self.repeated("uplink_egress", "TCP, IPv4, of a pod to outside, which asked it", &answer, PASS)
    }

    /// To a pod of this node; each packet has one hop less than the one before.
    fn handed_over(&mut self) -> Result<()> {
        let link = PodLink { host_index: LOOPBACK, pod_mac: [2, 0xfe, 0, 0, 0, 1] };
        self.datapath.add_pod(&[ip(POD), ip(POD_V6)], &link).context("telling of a pod")?;
        for program in ["pod_ingress", "uplink_ingress"] {
            for (name, from, to) in [
                ("TCP, IPv4, to a pod of the node, no Service's", CLIENT, POD),
                ("TCP, IPv6, to a pod of the node, no Service's", CLIENT_V6, POD_V6),
            ] {
                let packet = frame(Protocol::TCP, (ip(from), 40_000), (ip(to), 9000), ACK);
                let took = self.single(program, REDIRECT, |_| packet.clone())?;
                self.put(program, name, took - self.clock);
            }
        }
        Ok(())
    }

    fn put(&mut self, program: &'static str, name: &'static str, nanoseconds: f64) {
        self.classes.push(Class { program, name, nanoseconds: nanoseconds.max(0.0) });
    }

    /// A packet that comes out as it went in, or goes to and fro.
    fn repeated(
        &mut self,
        program: &'static str,
        name: &'static str,
        packet: &[u8],
        verdicts: &[u32],
    ) -> Result<()> {
        let mut took = Vec::new();
        for _ in 0..TIMES {
            let (answer, nanoseconds) = self.run(program, packet, REPEAT)?;
            ensure!(
                verdicts.contains(&answer),
                "{program}, {name}: the verdict is {answer}, not one of {verdicts:?}"
            );
            took.push(nanoseconds);
        }
        let took = median(took).context("there are runs")?;
        self.put(program, name, took);
        Ok(())
    }

    /// The median of single runs, the clock's part included.
    fn single(&mut self, program: &str, verdicts: &[u32], packet: impl Fn(u16) -> Vec<u8>) -> Result<f64> {
        let mut took = Vec::new();
        for number in 0..SINGLES {
            took.push(self.once(program, &packet(number), verdicts)?);
        }
        median(took).context("there are runs")
    }

    fn once(&mut self, program: &str, packet: &[u8], verdicts: &[u32]) -> Result<f64> {
        let (answer, nanoseconds) = self.run(program, packet, 1)?;
        ensure!(
            verdicts.contains(&answer),
            "{program}, a packet to port {}: the verdict is {answer}, not one of {verdicts:?}",
            to_port(packet)
        );
        Ok(nanoseconds)
    }

    fn run(&mut self, program: &str, packet: &[u8], repeat: u32) -> Result<(u32, f64)> {
        let mut programs = self.datapath.programs_mut();
        let classifier: &mut SchedClassifier = programs
            .ebpf_mut()
            .program_mut(program)
            .with_context(|| format!("there is no program {program}"))?
            .try_into()?;
        let mut out = vec![0; packet.len() + 64];
        let options = TestRunOptions {
            data_in: Some(packet),
            data_out: Some(&mut out),
            repeat,
            ..TestRunOptions::default()
        };
        let result = classifier.test_run(options).with_context(|| format!("running {program}"))?;
        Ok((result.return_value, result.duration.as_nanos() as f64))
    }
}
