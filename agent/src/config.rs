//! The command line and environment of the agent.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use anyhow::{Context, bail, ensure};
use clap::Parser;
use dataplane::masquerade::MasqueradeConfig;
use dataplane::programs::XdpSetting;
use ipam::Pool;
use ipnetwork::IpNetwork;

/// The agent of one Seaway node: network and kubelet.
#[derive(Clone, Debug, Parser)]
#[command(name = "seaway-agent", version)]
pub struct Config {
    /// Name of the Node object.
    #[arg(long, env = "SEAWAY_NODE_NAME")]
    pub node_name: String,

    /// Address of this node; one per family, the primary one first.
    #[arg(long = "node-ip", env = "SEAWAY_NODE_IP", value_delimiter = ',', required = true)]
    pub node_ips: Vec<IpAddr>,

    /// Credentials for the API server.
    #[arg(long, env = "SEAWAY_KUBECONFIG", value_name = "FILE")]
    pub kubeconfig: PathBuf,

    /// State that outlives a reboot.
    #[arg(long, env = "SEAWAY_STATE_DIR", default_value = "/var/lib/seaway")]
    pub state_dir: PathBuf,

    /// Sockets.
    #[arg(long, env = "SEAWAY_RUN_DIR", default_value = "/run/seaway")]
    pub run_dir: PathBuf,

    #[arg(long, env = "SEAWAY_CONTAINERD_SOCKET", default_value = "/run/containerd/containerd.sock")]
    pub containerd_socket: PathBuf,

    /// Cgroup of the pods; Services are served to all processes in its parent.
    #[arg(long, env = "SEAWAY_CGROUP_PARENT", default_value = "/kubepods")]
    pub cgroup_parent: String,

    /// Folder of this node's own on a BPF file system.
    #[arg(long, env = "SEAWAY_BPF_DIR", default_value = "/sys/fs/bpf/seaway")]
    pub bpf_dir: PathBuf,

    /// Where the runtime looks for network configurations; ours is written there once pods can be served.
    #[arg(long, env = "SEAWAY_CNI_CONF_DIR", default_value = "/etc/cni/net.d")]
    pub cni_conf_dir: PathBuf,

    /// Addresses of pods; one range per family, whose families pods have. IPPools for pods go before them.
    #[arg(
        long = "cluster-cidr",
        env = "SEAWAY_CLUSTER_CIDR",
        value_delimiter = ',',
        default_value = "10.244.0.0/16"
    )]
    pub cluster_cidrs: Vec<IpNetwork>,

    /// Addresses of Services; one range per family.
    #[arg(
        long = "service-cidr",
        env = "SEAWAY_SERVICE_CIDR",
        value_delimiter = ',',
        default_value = "10.96.0.0/16"
    )]
    pub service_cidrs: Vec<IpNetwork>,

    /// Address of the cluster's DNS Service.
    #[arg(long, env = "SEAWAY_CLUSTER_DNS", value_delimiter = ',', default_value = "10.96.0.10")]
    pub cluster_dns: Vec<IpAddr>,

    #[arg(long, env = "SEAWAY_CLUSTER_DOMAIN", default_value = "cluster.local")]
    pub cluster_domain: String,

    /// Whose packets from pods to hosts outside of the cluster leave with this node's address. Nobody there need know the
    /// way to a pod then. Answers of a pod to who asked it at its own address keep that.
    #[arg(long, env = "SEAWAY_MASQUERADE", value_enum, default_value = "ipv4", value_name = "FAMILIES")]
    pub masquerade: Masquerade,

    /// Where pods are seen under their own addresses all the same, as other pods and nodes always see them. Repeatable.
    #[arg(
        long = "no-masquerade-cidr",
        env = "SEAWAY_NO_MASQUERADE_CIDR",
        value_delimiter = ',',
        value_name = "CIDR"
    )]
    pub no_masquerade_cidrs: Vec<IpNetwork>,

    /// Where packets between clients and backends beyond this node are sent on without a socket buffer: auto (in the drivers of
    /// network cards that are known to be good at it, on a link without VLANs), driver, generic (in the kernel's stack,
    /// slower than without) or off. A link that cannot have it, and one with another's program, is served by tc alone.
    /// Attaching it for the first time may interrupt a card's link for a moment.
    #[arg(long, env = "SEAWAY_XDP", default_value = "auto", value_name = "MODE")]
    pub xdp: XdpSetting,

    /// Autonomous system of nodes of which neither an annotation nor BGPConfiguration says another.
    #[arg(long, env = "SEAWAY_ASN", default_value_t = 64512)]
    pub asn: u32,

    /// TCP port of BGP where BGPConfiguration says no other.
    #[arg(long, env = "SEAWAY_BGP_PORT", default_value_t = 179)]
    pub bgp_port: u16,

    /// Hold time proposed to BGP peers, in seconds.
    #[arg(long, env = "SEAWAY_BGP_HOLD_TIME", default_value_t = 90)]
    pub bgp_hold_time: u16,

    /// Addresses in this range are accepted as internal BGP neighbours. Repeatable.
    #[arg(
        long = "bgp-listen-range",
        env = "SEAWAY_BGP_LISTEN_RANGE",
        value_delimiter = ',',
        value_name = "CIDR"
    )]
    pub bgp_listen_ranges: Vec<IpNetwork>,

    /// A BGP peer besides the other nodes: ADDRESS, or ADDRESS@AS where it is in another AS. Repeatable.
    #[arg(long = "bgp-peer", env = "SEAWAY_BGP_PEER", value_delimiter = ',', value_name = "ADDRESS[@AS]")]
    pub bgp_peers: Vec<StaticPeer>,

    /// A file of BGP peers with all that can be said of them: a JSON array.
    #[arg(long, env = "SEAWAY_BGP_PEER_FILE", value_name = "FILE", value_parser = crate::bgp_peers::load)]
    pub bgp_peer_file: Option<crate::bgp_peers::PeerFile>,

    /// Leaves pods to another kubelet: network only.
    #[arg(long)]
    pub no_kubelet: bool,

    /// Leaves the network to another CNI: kubelet only.
    #[arg(long, conflicts_with_all = ["no_kubelet", "router_only"])]
    pub no_network: bool,

    /// Leaves cluster DNS to somebody else.
    #[arg(long)]
    pub no_dns: bool,

    /// No pods at all: learns routes to them, for a host that is not a node.
    #[arg(long)]
    pub router_only: bool,

    /// Gives learned routes to peers alone and not to the kernel: a route reflector that forwards nothing.
    #[arg(long, requires = "router_only")]
    pub no_kernel_routes: bool,

    /// TCP port of /healthz and /livez, which answer as kube-proxy's; 0 for none.
    #[arg(long, env = "SEAWAY_HEALTHZ_PORT", default_value_t = 10256)]
    pub healthz_port: u16,

    /// Where /metrics is answered over TCP, besides the agent's socket.
    #[arg(long, env = "SEAWAY_METRICS_BIND_ADDRESS", value_name = "ADDRESS:PORT")]
    pub metrics_bind_address: Option<SocketAddr>,

    /// How many ports of Services have series of their own among the metrics; those asked for less share one.
    #[arg(long, env = "SEAWAY_METRICS_SERVICES", default_value_t = 1000, value_name = "N")]
    pub metrics_services: usize,

    /// TCP port of the kubelet's server.
    #[arg(long, env = "SEAWAY_KUBELET_PORT", default_value_t = 10250)]
    pub kubelet_port: u16,

    /// Certificate of the kubelet's server (PEM).
    #[arg(long, env = "SEAWAY_TLS_CERT", requires_all = ["tls_key", "client_ca"], value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,

    /// Key of the kubelet's server (PEM).
    #[arg(long, env = "SEAWAY_TLS_KEY", requires = "tls_cert", value_name = "FILE")]
    pub tls_key: Option<PathBuf>,

    /// CA of the kubelet's clients (PEM).
    #[arg(long, env = "SEAWAY_CLIENT_CA", requires = "tls_cert", value_name = "FILE")]
    pub client_ca: Option<PathBuf>,

    /// Resolvers of the host, for pods and names outside the cluster.
    #[arg(long, env = "SEAWAY_RESOLV_CONF", default_value = "/etc/resolv.conf", value_name = "FILE")]
    pub resolv_conf: PathBuf,

    /// Folder of the pods' logs.
    #[arg(long, env = "SEAWAY_LOG_DIR", default_value = "/var/log")]
    pub log_dir: PathBuf,

    #[arg(long, env = "SEAWAY_MAX_PODS", default_value_t = 110)]
    pub max_pods: u32,

    /// What the BPF programs say of single connections and packets: off, error, warn, info, debug or trace.
    #[arg(long, env = "SEAWAY_DATAPATH_LOG", default_value = "off", value_name = "LEVEL")]
    pub datapath_log: dataplane::programs::LogLevel,

    /// How many elements a map of the datapath has room for, and what it may grow to by itself. NAME is conntrack (two elements
    /// for each flow that is translated packet by packet, 192 octets each; 524288..2097152 where nothing is said),
    /// sockets-connected (32768..262144), affinity (32768), socket-forward (32768), socket-reverse (32768), frontends or
    /// addresses (131072..1048576), slots or backends (262144..2097152). From 1024 to 16777216. A map that is there with another
    /// size is exchanged when the agent starts, where it is below the size or above the limit; flows go on. Repeatable.
    #[arg(
        long = "map-size",
        env = "SEAWAY_MAP_SIZE",
        value_delimiter = ',',
        value_name = "NAME=ENTRIES[..LIMIT]"
    )]
    pub map_sizes: Vec<dataplane::sizes::Setting>,

    /// Folder of static pod manifests.
    #[arg(long, env = "SEAWAY_STATIC_POD_DIR", value_name = "DIR")]
    pub static_pod_dir: Option<PathBuf>,
}

/// Address families in which pods get the node's address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Masquerade {
    /// None: pods are seen under their own addresses everywhere, and routers outside need to know the way to them.
    Off,
    Ipv4,
    Ipv6,
    Both,
}

impl Masquerade {
    /// Whether it is so in the family of `range`.
    pub fn covers(self, range: &IpNetwork) -> bool {
        match self {
            Masquerade::Off => false,
            Masquerade::Ipv4 => range.is_ipv4(),
            Masquerade::Ipv6 => range.is_ipv6(),
            Masquerade::Both => true,
        }
    }
}

/// A peer from the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StaticPeer {
    pub address: IpAddr,
    /// `None`: the cluster's own AS.
    pub asn: Option<u32>,
}

impl std::str::FromStr for StaticPeer {
    type Err = String;

    fn from_str(text: &str) -> Result<StaticPeer, String> {
        let (address, asn) = match text.split_once('@') {
            Some((address, asn)) => {
                let asn = asn.parse().map_err(|error| format!("AS number {asn:?}: {error}"))?;
                (address, Some(asn))
            }
            None => (text, None),
        };
        let address = address.parse().map_err(|error| format!("address {address:?}: {error}"))?;
        Ok(StaticPeer { address, asn })
    }
}

impl Config {
    /// Checks what clap cannot.
    pub fn validate(&self) -> anyhow::Result<()> {
        for (name, families) in [
            ("--node-ip", self.node_ips.iter().map(IpAddr::is_ipv4).collect::<Vec<_>>()),
            ("--cluster-cidr", self.cluster_cidrs.iter().map(IpNetwork::is_ipv4).collect()),
            ("--service-cidr", self.service_cidrs.iter().map(IpNetwork::is_ipv4).collect()),
        ] {
            let two_of_a_kind = families.len() > 1 && families[0] == families[1];
            ensure!(families.len() <= 2 && !two_of_a_kind, "{name}: at most one per address family");
        }
        for cidr in &self.cluster_cidrs {
            let family = self.node_ips.iter().any(|address| address.is_ipv4() == cidr.is_ipv4());
            ensure!(
                family,
                "--cluster-cidr {cidr}: there is no --node-ip of that family to announce it with"
            );
        }
        ensure!(self.asn != 0, "--asn: AS 0 is reserved (RFC 7607)");
        if matches!(self.bgp_hold_time, 1 | 2) {
            bail!("--bgp-hold-time {}: must be 0 or at least 3 (RFC 4271)", self.bgp_hold_time);
        }
        self.pools().map(|_| ())
    }

    pub fn pools(&self) -> anyhow::Result<Vec<Pool>> {
        self.cluster_cidrs
            .iter()
            .map(|cidr| Pool::with_default_blocks(*cidr).context("--cluster-cidr"))
            .collect()
    }

    /// What leaves with the node's address, as far as it is known before any other node is.
    pub fn masquerade(&self) -> MasqueradeConfig {
        let pods = self.cluster_cidrs.iter().filter(|cidr| self.masquerade.covers(cidr)).copied();
        let except = self.no_masquerade_cidrs.iter().copied();
        let own = self.node_ips.iter().copied().map(IpNetwork::from);
        MasqueradeConfig {
            pods: pods.collect(),
            except: except.chain(own).collect(),
            ..MasqueradeConfig::default()
        }
    }

    pub fn node_ip(&self) -> IpAddr {
        self.node_ips[0]
    }

    pub fn node_ip_v4(&self) -> Option<Ipv4Addr> {
        self.node_ips.iter().find_map(|address| match address {
            IpAddr::V4(v4) => Some(*v4),
            IpAddr::V6(_) => None,
        })
    }

    pub fn cni_socket(&self) -> PathBuf {
        self.run_dir.join("cni.sock")
    }

    pub fn dns_listen(&self) -> SocketAddr {
        SocketAddr::new(self.node_ip(), 53)
    }
}
