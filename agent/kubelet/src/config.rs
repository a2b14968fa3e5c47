//! What the agent tells the kubelet about its node.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use tokio::sync::watch;

/// Files (PEM) of the kubelet's HTTPS server.
#[derive(Clone, Debug)]
pub struct ServerTls {
    pub cert: PathBuf,
    pub key: PathBuf,
    /// The CA that client certificates must chain to.
    pub client_ca: PathBuf,
}

/// Settings of one kubelet.
#[derive(Clone, Debug)]
pub struct Config {
    /// `metadata.name` of the Node and `spec.nodeName` of its pods.
    pub node_name: String,
    /// Addresses of the node, the primary family first; at least one.
    pub node_ips: Vec<IpAddr>,
    /// Persistent state: pod directories live in `state_dir/pods`.
    pub state_dir: PathBuf,
    /// State that does not outlive a boot.
    pub run_dir: PathBuf,
    /// Container and pod logs: `log_dir/pods/NS_NAME_UID/CONTAINER/N.log`. The runtime writes there.
    pub log_dir: PathBuf,
    pub containerd_socket: PathBuf,
    /// Cgroup under which pods live, such as `/kubepods` or `/sw-node1/kubepods`.
    pub cgroup_parent: String,
    /// Addresses put into `resolv.conf` of pods with `dnsPolicy: ClusterFirst`.
    pub cluster_dns: Vec<IpAddr>,
    pub cluster_domain: String,
    /// TCP port of the HTTPS server.
    pub port: u16,
    /// Without it there is no server: logs and exec do not work then.
    pub server_tls: Option<ServerTls>,
    /// Where the agent of the node answers questions about its network, which this kubelet hands on.
    pub agent_socket: Option<PathBuf>,
    pub max_pods: u32,
    /// Labels put on the Node when it registers, besides the well-known ones.
    pub node_labels: BTreeMap<String, String>,
    /// `true` once pods can be given a network. The Node is `Ready=False` and pods without `hostNetwork` wait until then.
    pub network_ready: watch::Receiver<bool>,
    /// Directory of static pod manifests (YAML or JSON).
    pub static_pod_dir: Option<PathBuf>,
    /// The host's `resolv.conf`, for `dnsPolicy: Default`.
    pub host_resolv_conf: PathBuf,
}

impl Config {
    /// Settings with upstream's defaults; what has no default is an argument.
    pub fn new(
        node_name: impl Into<String>,
        node_ips: Vec<IpAddr>,
        network_ready: watch::Receiver<bool>,
    ) -> Self {
        Self {
            node_name: node_name.into(),
            node_ips,
            state_dir: PathBuf::from("/var/lib/seaway"),
            run_dir: PathBuf::from("/run/seaway"),
            log_dir: PathBuf::from("/var/log"),
            containerd_socket: PathBuf::from("/run/containerd/containerd.sock"),
            cgroup_parent: "/kubepods".to_owned(),
            cluster_dns: Vec::new(),
            cluster_domain: "cluster.local".to_owned(),
            port: 10250,
            server_tls: None,
            agent_socket: None,
            max_pods: 110,
            node_labels: BTreeMap::new(),
            network_ready,
            static_pod_dir: None,
            host_resolv_conf: PathBuf::from("/etc/resolv.conf"),
        }
    }
}
