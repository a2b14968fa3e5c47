//! A node to run programs on: links with neighbours and routes in the process's own namespace, maps with many Services.
//!
//! ```text
//!   pods 10.244.0.2, .3, .4, .5 (pod) ── node 10.89.0.11 (uplink) ── 10.89.0.12, way to 10.244.1.0/24 and more
//! ```
//!
//! No packet is sent: what a program decides is read from its answer. The neighbours are there without being asked.

use std::{net::IpAddr, path::PathBuf};

use anyhow::{Context as _, Result, ensure};
use dataplane::{
    datapath::{Config, Datapath},
    flows::now_ns,
    links::{Links, PodLink},
    maps::PinnedMap,
    masquerade::MasqueradeConfig,
    node::NodeConfig,
    programs::{XdpMode, XdpSetting, XdpState},
};
use ebpf_common::{
    Address, BackendId, Direction, Flow, FrontendKey, GroupId, Policed, Port, Protocol, RuleKey, RulesId,
    ServiceId, Tuple,
    desired::{Clients, Endpoint, Policies, Service, SourceRange},
    maps,
};
use nix::mount::{MntFlags, umount2};
use proxy::NodeView;

use super::frame::MAC;
use crate::services::{
    ground::{Ground, NetNs, ip},
    objects,
};

/// The addresses of one family.
pub(super) struct Family {
    pub(super) name: &'static str,
    /// Pods of this node: one that asks, one that answers, and two that are Services of each other.
    pub(super) client: &'static str,
    pub(super) server: &'static str,
    pub(super) pair: [&'static str; 2],
    /// Of pods: one that no Service knows, here and on another node.
    pub(super) pod: &'static str,
    /// A pod that policies isolate, once there are some.
    pub(super) policed: &'static str,
    pub(super) pod_beyond: &'static str,
    pub(super) node: &'static str,
    /// Of other machines: a neighbour, and one outside of the cluster.
    pub(super) beyond: &'static str,
    pub(super) outside: &'static str,
    /// Of Services: with a backend here, on another node, none, and for nobody.
    pub(super) here: &'static str,
    pub(super) elsewhere: &'static str,
    pub(super) empty: &'static str,
    pub(super) closed: &'static str,
    /// Two whose flows lead to each other, beyond the node.
    pub(super) forwarded: [&'static str; 2],
}

pub(super) const FAMILIES: [Family; 2] = [
    Family {
        name: "IPv4",
        client: "10.244.0.2",
        server: "10.244.0.3",
        pair: ["10.244.0.4", "10.244.0.5"],
        pod: "10.244.0.77",
        policed: "10.244.0.88",
        pod_beyond: "10.244.1.2",
        node: "10.89.0.11",
        beyond: "10.89.0.200",
        outside: "203.0.113.7",
        here: "10.97.0.3",
        elsewhere: "10.97.0.4",
        empty: "10.97.0.5",
        closed: "10.97.0.6",
        forwarded: ["198.51.100.1", "198.51.100.2"],
    },
    Family {
        name: "IPv6",
        client: "fd00:244::2",
        server: "fd00:244::3",
        pair: ["fd00:244::4", "fd00:244::5"],
        pod: "fd00:244::77",
        policed: "fd00:244::88",
        pod_beyond: "fd00:244:1::2",
        node: "fd00:89::11",
        beyond: "fd00:89::200",
        outside: "2001:db8:7::7",
        here: "fd00:97::3",
        elsewhere: "fd00:97::4",
        empty: "fd00:97::5",
        closed: "fd00:97::6",
        forwarded: ["2001:db8:51::1", "2001:db8:51::2"],
    },
];

pub(super) const NODE_PORT_ELSEWHERE: u16 = 30_080;
pub(super) const NODE_PORT_HERE: u16 = 30_081;
pub(super) const SERVICE_PORT: u16 = 80;
pub(super) const BACKEND_PORT: u16 = 8080;

pub(super) struct Lab {
    pub(super) datapath: Datapath,
    flows: PinnedMap<Tuple, Flow>,
    directory: PathBuf,
    /// Interface indexes.
    pub(super) pod: u32,
    pub(super) uplink: u32,
    /// Of the isolated pod.
    pub(super) isolated: u32,
}

/// The other ends of the node's links.
pub(super) struct Wires {
    _pods: NetNs,
    _beyond: NetNs,
}

/// Makes the node's links, once for all numbers of Services.
pub(super) fn wire() -> Result<Wires> {
    let (pods, beyond) = (NetNs::new()?, NetNs::new()?);
    for (name, other) in [("pod", &pods), ("isolated", &pods), ("uplink", &beyond)] {
        let path = other.path();
        ip(&format!("link add {name} address {MAC} type veth peer name {name} netns {}", path.display()))?;
        other.ip(&format!("link set {name} up"))?;
        ip(&format!("link set {name} up"))?;
    }
    for key in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
        let path = format!("/proc/sys/net/{key}");
        std::fs::write(&path, "1").with_context(|| format!("writing 1 to {path}"))?;
    }
    for (family, bits) in FAMILIES.iter().zip([24, 64]) {
        let next_hop = family.node.replace("11", "12");
        let nodad = if bits == 64 { "nodad" } else { "" };
        ip(&format!("address add {}/{bits} dev uplink {nodad}", family.node))?;
        for neighbour in [next_hop.as_str(), family.beyond] {
            ip(&format!("neighbour replace {neighbour} lladdr {MAC} dev uplink nud permanent"))?;
        }
        let ranges = if bits == 24 {
            ["10.244.1.0/24", "198.51.100.0/24", "203.0.113.0/24"]
        } else {
            ["fd00:244:1::/64", "2001:db8:51::/64", "2001:db8:7::/64"]
        };
        for range in ranges {
            ip(&format!("route replace {range} via {next_hop} dev uplink"))?;
        }
    }
    Ok(Wires { _pods: pods, _beyond: beyond })
}

impl Lab {
    /// With `services` Services in the maps, beside those that are measured.
    pub(super) fn new(ground: &Ground, services: u32) -> Result<Self> {
        let directory = ground.folder().join(format!("bpf-programs-{services}"));
        let mut datapath = Datapath::open(&Config::new(&directory)).context("opening the datapath")?;
        fill(&mut datapath, services)?;
        let flows = PinnedMap::open(&directory.join("maps"), maps::CONNTRACK).context("opening the flows")?;
        let mut links = Links::open().context("opening a netlink socket")?;
        let [pod, uplink, isolated] = [links.index("pod")?, links.index("uplink")?, links.index("isolated")?];
        let link = PodLink { host_index: pod, pod_mac: [2, 0xfe, 0, 0, 0, 1] };
        for of in &FAMILIES {
            let pods = [of.client, of.server, of.pair[0], of.pair[1], of.pod].map(address);
            datapath.add_pod(&pods, &link).context("telling of pods")?;
        }
        // Only then can a run be in the place of the link.
        let state = datapath.set_xdp(uplink, XdpSetting::In(XdpMode::Driver)).context("attaching XDP")?;
        ensure!(state == XdpState::In(XdpMode::Driver), "the uplink has no XDP: {state:?}");
        Ok(Self { datapath, flows, directory, pod, uplink, isolated })
    }

    /// Isolates a pod of the family: all may reach its TCP port 9000.
    pub(super) fn police(&mut self, of: &Family) -> Result<()> {
        const RULES: RulesId = RulesId(1);
        let pod = address(of.policed);
        let rule = RuleKey::ports(RULES, GroupId::EVERYBODY, Protocol::TCP, Port::new(9000), 16);
        let policed = Policed { ingress: RULES, egress: RULES };
        let policies = Policies {
            rules: [rule].into(),
            pods: [(Address::from(pod), policed)].into(),
            ..Policies::default()
        };
        self.datapath.set_policies(&policies).context("setting policies")?;
        let link = PodLink { host_index: self.isolated, pod_mac: [2, 0xfe, 0, 0, 0, 2] };
        self.datapath.add_pod(&[pod], &link).context("telling of an isolated pod")
    }

    /// Writes two flows, each of which leads to the other: a packet of them goes to and fro for ever.
    pub(super) fn write_cycle(&self, flows: [(Tuple, Flow); 2]) -> Result<()> {
        flows.iter().try_for_each(|(tuple, flow)| {
            self.flows.insert(tuple, flow).context("writing a flow that leads to another")
        })
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // Where that fails, it goes with this process.
        let _ = umount2(&self.directory, MntFlags::MNT_DETACH);
    }
}

/// A flow between a client and a backend that are both beyond the node, whose packets become `translated`.
pub(super) fn forwarded(direction: Direction, translated: Tuple) -> Flow {
    // Seen now, so that none of the runs is the first one after a while.
    Flow::new(direction, translated, ServiceId(1), BackendId(1), false, now_ns()).forwarded()
}

pub(super) fn tuple(protocol: Protocol, from: (&str, u16), to: (&str, u16)) -> Tuple {
    let of = |(ip, port): (&str, u16)| (Address::from(address(ip)), Port::new(port));
    let ((source, source_port), (destination, destination_port)) = (of(from), of(to));
    Tuple::new(source, source_port, destination, destination_port, protocol)
}

fn fill(datapath: &mut Datapath, services: u32) -> Result<()> {
    let (all, slices): (Vec<_>, Vec<_>) =
        (0..services).map(|index| (objects::service(index), objects::slice(index))).unzip();
    let node = NodeView { name: objects::NODES[0].to_owned(), ..NodeView::default() };
    let mut wanted = proxy::desired(&all, &slices, &node);
    for (protocol, of) in [Protocol::TCP, Protocol::UDP]
        .into_iter()
        .flat_map(|protocol| FAMILIES.iter().map(move |of| (protocol, of)))
    {
        let mut put = |frontend: &str, backend: Option<(&str, u16, bool)>| {
            wanted.insert(key(frontend, SERVICE_PORT, protocol), leading_to(backend));
        };
        put(of.pair[0], Some((of.pair[1], SERVICE_PORT, true)));
        put(of.pair[1], Some((of.pair[0], SERVICE_PORT, true)));
        put(of.here, Some((of.server, BACKEND_PORT, true)));
        put(of.elsewhere, Some((of.pod_beyond, BACKEND_PORT, false)));
        put(of.empty, None);
        let nobody = SourceRange::new(address(of.outside), if of.name == "IPv4" { 32 } else { 128 });
        let closed = Service {
            source_ranges: nobody.into_iter().collect(),
            ..leading_to(Some((of.server, BACKEND_PORT, true)))
        };
        wanted.insert(key(of.closed, SERVICE_PORT, protocol), closed);
        for (port, backend) in [
            (NODE_PORT_ELSEWHERE, (of.pod_beyond, BACKEND_PORT, false)),
            (NODE_PORT_HERE, (of.server, BACKEND_PORT, true)),
        ] {
            wanted.insert(key(of.node, port, protocol).of_any_address(), leading_to(Some(backend)));
        }
    }
    datapath.set_services(wanted).context("writing the Services")?;
    let sources = FAMILIES.map(|of| address(of.node));
    let pods = || -> Result<Vec<_>> { Ok(vec!["10.244.0.0/16".parse()?, "fd00:244::/32".parse()?]) };
    let config = NodeConfig {
        sources: sources.to_vec(),
        addresses: sources.into(),
        service_ranges: vec!["10.96.0.0/12".parse()?, "fd00:97::/112".parse()?],
        pod_ranges: pods()?,
        ..NodeConfig::default()
    };
    datapath.set_node(&config).context("telling what the node is")?;
    let nodes = FAMILIES.iter().flat_map(|of| [of.node, of.beyond]).map(|node| address(node).into());
    let masquerade =
        MasqueradeConfig { pods: pods()?, except: nodes.collect(), ..MasqueradeConfig::default() };
    datapath.set_masquerade(&masquerade).context("telling whose address is exchanged")
}

fn key(frontend: &str, port: u16, protocol: Protocol) -> FrontendKey {
    FrontendKey::new(Address::from(address(frontend)), Port::new(port), protocol)
}

fn leading_to(backend: Option<(&str, u16, bool)>) -> Service {
    let endpoint = |(backend, port, local): (&str, u16, bool)| Endpoint {
        address: Address::from(address(backend)),
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
pub(super) fn address(text: &str) -> IpAddr {
    text.parse().expect("a constant of this file is an address")
}
