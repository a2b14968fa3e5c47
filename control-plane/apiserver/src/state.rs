//! What every request shares, and what is known about who sent it.

use std::{
    net::SocketAddr,
    sync::{Arc, atomic::AtomicBool},
};

use api::schema::Schema;
use tokio_util::sync::CancellationToken;

use crate::{
    admission::Admission,
    aggregation::Aggregation,
    audit::Audit,
    callout::Callout,
    config::Config,
    discovery::{Discovery, openapi::OpenApi},
    flow_control::FlowControl,
    kinds::Kinds,
    security::{self, Authenticator, Authorizer, Identity, tokens::Tokens},
    server::{limits::Limits, metrics::Metrics},
    storage::cache::Cache,
    subresources::service::ServiceIps,
};

/// Where a request came from.
pub enum Peer {
    /// Over TLS.
    Network { peer: security::Peer, address: SocketAddr },
    /// From this process.
    Local(Identity),
}

/// The server without its sockets.
pub struct State {
    pub config: Config,
    /// The built-in types and resources.
    pub schema: &'static Schema,
    pub kinds: Arc<Kinds>,
    pub cache: Arc<Cache>,
    pub authenticator: Authenticator,
    pub authorizer: Arc<Authorizer>,
    pub tokens: Arc<Tokens>,
    pub admission: Admission,
    /// How webhooks and aggregated servers are called.
    pub callout: Arc<Callout>,
    pub aggregation: Aggregation,
    pub audit: Option<Audit>,
    pub service_ips: ServiceIps,
    pub discovery: Discovery,
    pub openapi: OpenApi,
    pub metrics: Metrics,
    pub flow_control: FlowControl,
    pub limits: Limits,
    /// How kubelets are dialled: our client certificate, our CA.
    pub kubelet_tls: Arc<rustls::ClientConfig>,
    /// How pods and Services are dialled over TLS: any certificate.
    pub proxy_tls: Arc<rustls::ClientConfig>,
    /// Set once the bootstrap objects are there.
    pub ready: AtomicBool,
    /// Ends watches and streams when the server stops.
    pub stop: CancellationToken,
}
