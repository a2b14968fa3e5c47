//! What the server is told at start.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use ipnetwork::IpNetwork;

/// Where the objects are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Store {
    /// A file below the data folder, of this process alone.
    Embedded,
    /// An etcd cluster, by its endpoints (URLs).
    Etcd { endpoints: Vec<String> },
}

#[derive(Clone, Debug)]
pub struct Config {
    /// Holds `pki/`, `admin.kubeconfig` and the embedded store.
    pub data_dir: PathBuf,
    pub store: Store,
    /// Sockets to bind, besides those that were inherited.
    pub bind: Vec<SocketAddr>,
    /// Where nodes and pods reach this server.
    pub advertise_address: IpAddr,
    /// The port at that address.
    pub advertise_port: u16,
    /// At least one; of two, each is of its own IP family and the first is preferred.
    pub service_cidrs: Vec<IpNetwork>,
    pub cluster_cidrs: Vec<IpNetwork>,
    pub cluster_domain: String,
    /// Between compactions of the store.
    pub compaction_interval: Duration,
    /// More names and addresses for the serving certificate.
    pub sans: Vec<String>,
}

impl Config {
    /// The advertised `host:port`.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::new(self.advertise_address, self.advertise_port)
    }

    /// The preferred range of Services.
    ///
    /// # Panics
    /// Where there is none.
    pub fn service_cidr(&self) -> IpNetwork {
        *self.service_cidrs.first().expect("a server has a range for Services")
    }

    /// The address of the cluster's DNS: the tenth of the service range.
    pub fn cluster_dns(&self) -> IpAddr {
        match self.service_cidr() {
            IpNetwork::V4(range) => IpAddr::V4((u32::from(range.network()).saturating_add(10)).into()),
            IpNetwork::V6(range) => IpAddr::V6((u128::from(range.network()).saturating_add(10)).into()),
        }
    }

    /// Whom ServiceAccount tokens are from.
    pub fn issuer(&self) -> String {
        format!("https://kubernetes.default.svc.{}", self.cluster_domain)
    }
}
