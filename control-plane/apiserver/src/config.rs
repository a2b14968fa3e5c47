//! What the server is told at start.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use ipnetwork::IpNetwork;

use crate::security::authentication::Anonymous;

/// Where the objects are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Store {
    /// A file below the data folder, of this process alone.
    Embedded,
    /// An etcd cluster, by its endpoints (URLs).
    Etcd { endpoints: Vec<String> },
}

/// How the server judges and limits those who call it; the defaults are upstream's.
#[derive(Clone, Debug)]
pub struct Security {
    pub anonymous: Anonymous,
    /// CSV of token, user, uid and groups.
    pub token_auth_file: Option<PathBuf>,
    /// Whether bootstrap tokens are credentials.
    pub bootstrap_tokens: bool,
    /// More keys that verify ServiceAccount tokens: PEM files of public or private keys.
    pub service_account_key_files: Vec<PathBuf>,
    /// Whom ServiceAccount tokens are from, the first for new ones; empty: the name of the `kubernetes` Service.
    pub service_account_issuers: Vec<String>,
    /// Whom tokens for this server are for; empty: its issuers.
    pub api_audiences: Vec<String>,
    /// More CAs that client certificates may be of; read again when it changes.
    pub client_ca_file: Option<PathBuf>,
    /// Read-only requests that are served at a time; 0 is no limit.
    pub max_requests_inflight: usize,
    /// Mutating requests that are served at a time; 0 is no limit.
    pub max_mutating_requests_inflight: usize,
    /// Whether the two limits above are one, shared out by FlowSchemas.
    pub priority_and_fairness: bool,
    /// What a request may take, but for those that are long by nature (watches, streams).
    pub request_timeout: Duration,
    /// Between the signal to stop and the end of accepting connections, for load balancers to notice.
    pub shutdown_delay: Duration,
    /// Directives of the header Strict-Transport-Security; empty: no such header.
    pub strict_transport_security: Vec<String>,
    /// The part of the HTTP/2 requests after which their connection takes no more, so that its client comes back, maybe to
    /// another server: 0 to 1.
    pub goaway_chance: f64,
    pub audit: crate::audit::Config,
}

impl Default for Security {
    fn default() -> Self {
        Self {
            anonymous: Anonymous::Everywhere,
            token_auth_file: None,
            bootstrap_tokens: false,
            service_account_key_files: Vec::new(),
            service_account_issuers: Vec::new(),
            api_audiences: Vec::new(),
            client_ca_file: None,
            max_requests_inflight: 400,
            max_mutating_requests_inflight: 200,
            priority_and_fairness: true,
            request_timeout: Duration::from_secs(60),
            shutdown_delay: Duration::ZERO,
            strict_transport_security: Vec::new(),
            goaway_chance: 0.0,
            audit: crate::audit::Config::default(),
        }
    }
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
    pub security: Security,
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

    /// Whom ServiceAccount tokens are from; the first issues. There is always one.
    pub fn issuers(&self) -> Vec<String> {
        match self.security.service_account_issuers.as_slice() {
            [] => vec![format!("https://kubernetes.default.svc.{}", self.cluster_domain)],
            issuers => issuers.to_vec(),
        }
    }
}
