//! Names, addresses and places of the cluster.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::run;

pub(super) const FABRIC: &str = "sw-fabric";
pub(super) const SERVER: &str = "sw-server";
pub(super) const BRIDGE: &str = "sw-bridge";
pub(super) const FABRIC_CIDR: &str = "10.89.0.0/24";
pub(super) const FABRIC_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 89, 0, 1);
pub(super) const REGISTRY_PORT: u16 = 5000;
pub(super) const SERVER_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 89, 0, 10);
pub(super) const API_PORT: u16 = 6443;
pub(crate) const NODES_MAX: u8 = 100;
pub(super) const CGROUPS: &str = "/sys/fs/cgroup";

/// Where the cluster keeps everything: `target/cluster`.
pub(super) fn state() -> PathBuf {
    run::target().join("cluster")
}

pub(super) fn node_name(index: u8) -> String {
    format!("sw-node{index}")
}

pub(super) fn node_address(index: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 89, 0, 10 + index)
}

/// The IPv6 address of the host that has this IPv4 address, its last number written alike.
pub(super) fn address_v6(address: Ipv4Addr) -> Ipv6Addr {
    let digits = address.octets()[3].to_string();
    let last = u16::from_str_radix(&digits, 16).expect("decimal digits are hexadecimal ones");
    Ipv6Addr::new(0xfd00, 0x89, 0, 0, 0, 0, 0, last)
}

pub(super) fn netns_path(host: &str) -> PathBuf {
    Path::new("/run/netns").join(host)
}

/// Network namespaces of ours that exist, by name.
pub(super) fn namespaces() -> Vec<String> {
    let Ok(entries) = std::fs::read_dir("/run/netns") else { return Vec::new() };
    let mut names: Vec<String> = entries
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| is_ours(name))
        .collect();
    names.sort();
    names
}

/// Whether a host or cgroup of this name belongs to the cluster.
pub(super) fn is_ours(name: &str) -> bool {
    name == FABRIC || name == SERVER || name.strip_prefix("sw-node").is_some_and(|n| n.parse::<u8>().is_ok())
}

/// The root of the cgroup v2 tree: unified, or beside the v1 controllers.
pub(super) fn cgroup2() -> Result<PathBuf> {
    [CGROUPS, "/sys/fs/cgroup/unified"]
        .iter()
        .map(PathBuf::from)
        .find(|path| path.join("cgroup.controllers").exists())
        .context(
            "no cgroup v2 tree at /sys/fs/cgroup or /sys/fs/cgroup/unified: mount one, the kernel needs it",
        )
}

/// The trees that hold cgroups: the v2 tree and every v1 controller.
pub(super) fn cgroup_trees() -> Vec<PathBuf> {
    let mut trees = Vec::new();
    if Path::new(CGROUPS).join("cgroup.controllers").exists() {
        trees.push(PathBuf::from(CGROUPS));
        return trees;
    }
    if let Ok(entries) = std::fs::read_dir(CGROUPS) {
        trees.extend(
            entries.flatten().map(|entry| entry.path()).filter(|path| path.join("cgroup.procs").exists()),
        );
    }
    trees
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum IpFamily {
    /// Pods, Services and hosts have IPv4 addresses only
    Ipv4,
    /// Both families, IPv4 preferred
    Dual,
}

impl IpFamily {
    pub(super) fn cluster_cidrs(self) -> &'static str {
        match self {
            Self::Ipv4 => "10.244.0.0/16",
            Self::Dual => "10.244.0.0/16,fd00:10:244::/64",
        }
    }

    pub(super) fn service_cidrs(self) -> &'static str {
        match self {
            Self::Ipv4 => "10.96.0.0/16",
            Self::Dual => "10.96.0.0/16,fd00:10:96::/112",
        }
    }

    /// The addresses of a host, as a flag takes them.
    pub(super) fn host_addresses(self, address: Ipv4Addr) -> String {
        match self {
            Self::Ipv4 => address.to_string(),
            Self::Dual => format!("{address},{}", address_v6(address)),
        }
    }
}

/// What `up` was asked for; kept for `status` and for a second look.
#[derive(Serialize, Deserialize)]
pub(super) struct Cluster {
    pub(super) nodes: u8,
    pub(super) store: String,
    pub(super) api_port: u16,
    pub(super) release: bool,
    pub(super) ip_family: IpFamily,
}

impl Cluster {
    pub(super) fn load() -> Result<Self> {
        let path = state().join("cluster.json");
        let text = std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        serde_json::from_str(&text).with_context(|| format!("parsing {}", path.display()))
    }

    pub(super) fn save(&self) -> Result<()> {
        let text = serde_json::to_string_pretty(self).context("encoding the cluster's description")?;
        std::fs::write(state().join("cluster.json"), text).context("writing cluster.json")
    }
}
