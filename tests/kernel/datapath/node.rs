//! A node with pods for packet tests: namespaces joined by veth, routed by the kernel, no process in any cgroup.
//!
//! ```text
//!   pod 10.244.0.2, fd00:244::2 ──┐
//!   pod 10.244.0.3, fd00:244::3 ──┤ node 10.89.0.11, fd00:89::11 ── beyond 10.89.0.12, fd00:89::12
//!                                 │                                 with 10.244.1.2, fd00:244:1::2 on it
//! ```

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use dataplane::{
    datapath::{Config, Datapath, Error},
    links::PodLink,
    node::NodeConfig,
    programs::{TcMode, TcModes},
    sizes::Sizes,
    swap::Step,
};
use ebpf_common::{
    FrontendKey,
    desired::{Service, Services},
};

use super::{chain, endpoint, leading_to, services};
use crate::netns::{BpfDir, NetNs};

pub struct Node {
    pub datapath: Datapath,
    pub namespace: NetNs,
    pub pods: [NetNs; 2],
    pub beyond: NetNs,
    pub directory: BpfDir,
    tc_modes: TcModes,
    sizes: Sizes,
}

/// Where other machines see what the node sends on.
const SOURCES: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(10, 89, 0, 11)), IpAddr::V6(Ipv6Addr::new(0xfd00, 0x89, 0, 0, 0, 0, 0, 0x11))];

const POD_MAC: &str = "02:00:00:00:00:01";
const POD_MAC_BYTES: [u8; 6] = [2, 0, 0, 0, 0, 1];
const HOST_MAC: &str = "02:00:00:00:00:02";

impl Node {
    pub fn new() -> Self {
        Self::with_modes(TcModes::of_kernel())
    }

    pub fn with_mode(tc_mode: TcMode) -> Self {
        Self::with_modes(TcModes::all(tc_mode))
    }

    fn with_modes(tc_modes: TcModes) -> Self {
        Self::with(tc_modes, &Sizes::default())
    }

    /// Whose maps have these sizes.
    pub fn with_sizes(sizes: &Sizes) -> Self {
        Self::with(TcModes::of_kernel(), sizes)
    }

    fn with(tc_modes: TcModes, sizes: &Sizes) -> Self {
        let directory = BpfDir::new();
        let mut node = Self {
            datapath: open(&directory, tc_modes, sizes),
            namespace: host(),
            pods: [host(), host()],
            beyond: host(),
            directory,
            tc_modes,
            sizes: sizes.clone(),
        };
        node.join_beyond();
        for index in 0..node.pods.len() {
            node.join_pod(index);
        }
        node.attach();
        for (addresses, link) in node.links() {
            node.datapath.add_pod(&addresses, &link).expect("telling of a pod");
        }
        node
    }

    /// Another agent takes over, of a version that attaches as it pleases.
    pub fn restart_agent_with(&mut self, tc_modes: TcModes) {
        self.tc_modes = tc_modes;
        self.restart_agent();
    }

    /// Another agent takes over: opens what is pinned and attaches everything again.
    pub fn restart_agent(&mut self) {
        self.datapath = open(&self.directory, self.tc_modes, &self.sizes);
        self.attach();
        self.tell_pods();
    }

    /// Another agent takes over as it does on a node, in its network namespace, with these sizes of maps. Where it is left
    /// off, the one before is there still.
    pub fn take_over(&mut self, sizes: &Sizes, halt_at: Option<Step>) -> Result<(), Error> {
        let config = Config {
            sizes: sizes.clone(),
            halt_at,
            tc_modes: self.tc_modes,
            ..Config::new(&self.directory.path)
        };
        self.datapath = self.namespace.run(|| Datapath::open(&config))?;
        self.sizes = sizes.clone();
        self.attach();
        self.tell_pods();
        Ok(())
    }

    fn tell_pods(&mut self) {
        let pods = self.links().into_iter();
        let pods = pods.flat_map(|(addresses, link)| addresses.map(|address| (address, link.clone())));
        self.datapath.set_pods(pods).expect("telling the node's pods");
    }

    /// The pods as packets are handed over to them.
    pub fn links(&self) -> [([IpAddr; 2], PodLink); 2] {
        [0, 1].map(|index| {
            let host_index = self.namespace.interface_index(&format!("pod{index}"));
            let addresses = [format!("10.244.0.{}", index + 2), format!("fd00:244::{}", index + 2)];
            let link = PodLink { host_index, pod_mac: POD_MAC_BYTES };
            (addresses.map(|address| address.parse().expect("an address")), link)
        })
    }

    pub fn serve(&mut self, of: impl IntoIterator<Item = (FrontendKey, Service)>) {
        let wanted: Services = services(of);
        self.datapath.set_services(wanted).expect("setting the services");
    }

    fn attach(&mut self) {
        let pods: Vec<u32> = (0..self.pods.len())
            .map(|index| self.namespace.interface_index(&format!("pod{index}")))
            .collect();
        let uplink = self.namespace.interface_index("uplink");
        let datapath = &mut self.datapath;
        self.namespace.run(|| {
            for pod in pods {
                datapath.pod_links().attach(pod).unwrap_or_else(|error| panic!("{}", chain(&error)));
            }
            datapath.attach_uplink(uplink).unwrap_or_else(|error| panic!("{}", chain(&error)));
            datapath.set_node(&node_config()).expect("telling the node's addresses");
        });
    }

    /// To pods of the other node only packets of `mtu` octets pass, or all that the link takes.
    pub fn narrow(&self, mtu: Option<u32>) {
        let lock = mtu.map_or(String::new(), |mtu| format!(" mtu lock {mtu}"));
        self.namespace.ip(&format!("route replace 10.244.1.0/24 via 10.89.0.12{lock}"));
        self.namespace.ip(&format!("-6 route replace fd00:244:1::/64 via fd00:89::12{lock}"));
    }

    fn join_beyond(&self) {
        self.namespace
            .ip(&format!("link add uplink type veth peer name uplink netns {}", self.beyond.path()));
        for (host, last) in [(&self.namespace, 11), (&self.beyond, 12)] {
            host.ip("link set uplink up");
            host.ip(&format!("addr add 10.89.0.{last}/24 dev uplink"));
            host.ip(&format!("addr add fd00:89::{last}/64 dev uplink nodad"));
        }
        self.beyond.ip("addr add 10.244.1.2/32 dev lo");
        self.beyond.ip("addr add fd00:244:1::2/128 dev lo nodad");
        for of in ["10.244.0.0/24", "10.96.0.0/16", "192.0.2.0/24"] {
            self.beyond.ip(&format!("route add {of} via 10.89.0.11"));
        }
        for of in ["fd00:244::/64", "fd00:96::/64", "2001:db8::/64"] {
            self.beyond.ip(&format!("-6 route add {of} via fd00:89::11"));
        }
        self.namespace.ip("route add 10.244.1.0/24 via 10.89.0.12");
        self.namespace.ip("-6 route add fd00:244:1::/64 via fd00:89::12");
    }

    fn join_pod(&self, index: usize) {
        let pod = &self.pods[index];
        let (link, last) = (format!("pod{index}"), index + 2);
        let path = pod.path();
        self.namespace.ip(&format!(
            "link add {link} address {HOST_MAC} type veth peer name eth0 address {POD_MAC} netns {path}"
        ));
        self.namespace.ip(&format!("link set {link} up"));
        pod.ip("link set eth0 up");
        for (address, gateway) in
            [(format!("10.244.0.{last}"), "169.254.1.1"), (format!("fd00:244::{last}"), "fe80::1")]
        {
            pod.ip(&format!("addr add {address} dev eth0"));
            pod.ip(&format!("neigh add {gateway} lladdr {HOST_MAC} dev eth0 nud permanent"));
            let family = if gateway.contains(':') { "-6" } else { "-4" };
            pod.ip(&format!("{family} route add default via {gateway} dev eth0 onlink"));
            self.namespace.ip(&format!("{family} route add {address} dev {link}"));
            self.namespace.ip(&format!("neigh add {address} lladdr {POD_MAC} dev {link} nud permanent"));
        }
    }
}

/// A service to the given backends: those of 10.244.0.0/24 and the node's own are on this node.
pub fn to(backends: &[SocketAddr]) -> Service {
    let here = |ip: IpAddr| !matches!(ip.to_string().as_str(), "10.244.1.2" | "fd00:244:1::2" | "10.89.0.12");
    leading_to(backends.iter().map(|b| endpoint(b.ip(), b.port(), here(b.ip()))).collect())
}

/// The calling thread's namespace as a node, with the ranges that the tests' cluster IPs and pods are in.
pub fn node_config() -> NodeConfig {
    let [services, pods] = [["10.96.0.0/16", "fd00:96::/64"], ["10.244.0.0/16", "fd00:244::/32"]]
        .map(|ranges| ranges.map(|range| range.parse().expect("a range")).to_vec());
    let node = NodeConfig::of_namespace(&SOURCES).expect("the node's addresses");
    NodeConfig { service_ranges: services, pod_ranges: pods, ..node }
}

fn open(directory: &BpfDir, tc_modes: TcModes, sizes: &Sizes) -> Datapath {
    let config = Config { tc_modes, sizes: sizes.clone(), ..Config::new(&directory.path) };
    Datapath::open(&config).unwrap_or_else(|error| panic!("{}", chain(&error)))
}

fn host() -> NetNs {
    let host = NetNs::new();
    host.sysctl("net/ipv4/ip_forward", "1");
    host.sysctl("net/ipv6/conf/all/forwarding", "1");
    // Addresses are usable at once.
    host.sysctl("net/ipv6/conf/all/accept_dad", "0");
    host.sysctl("net/ipv6/conf/default/accept_dad", "0");
    host
}
