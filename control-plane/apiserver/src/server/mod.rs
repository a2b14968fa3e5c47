//! The server: everything that starts once, its sockets, and its service for clients in the same process.
//!
//! ```text
//! Server::start: keys -> store -> cache -> security, admission, discovery -> bootstrap objects -> ready
//! Server::serve: accept -> TLS -> HTTP -> pipeline
//! Server::service(identity): pipeline, without a socket
//! ```

use std::{
    convert::Infallible,
    future::Future,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, atomic::AtomicBool},
    task::{Context, Poll},
    time::Duration,
};

use anyhow::Context as _;
use bytes::Bytes;
use http::{HeaderValue, Request, Response};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::info;

use self::{
    body::{BoxError, JoinedBody},
    certificates::{Certificates, Shown},
    limits::Limits,
};
use crate::{
    admission::{Admission, View, policy::Policies, webhook::Webhooks},
    aggregation::{self, Aggregation},
    audit::Audit,
    callout::{Callout, ConversionWebhooks},
    config::{self, Config, Store},
    custom::Registrar,
    discovery::{Discovery, openapi::OpenApi},
    flow_control::{self, FlowControl},
    kinds::Kinds,
    security::{
        self, Authenticator, Authorizer, Identity,
        authentication::Options,
        credentials::StaticTokens,
        pki::{Pki, ServerNames},
        tokens::{Reference, Tokens},
    },
    state::{Peer, State},
    storage::{Storage, cache::Cache, compactor, embedded::Embedded, etcd::Etcd},
    subresources::{node_ports, service::ServiceIps},
};

pub mod body;
pub(crate) mod bootstrap;
mod certificates;
mod connection;
mod definitions;
mod gzip;
mod health;
mod legacy_tokens;
pub mod limits;
pub mod listen;
pub mod metrics;
mod pipeline;
mod roles;
mod service_cidr;
mod tls;
mod wire;

/// How long connections get to end after the stop.
const STOP_TIME_MAX: Duration = Duration::from_secs(15);

/// A server that is ready to serve.
pub struct Server {
    state: Arc<State>,
    tls: TlsAcceptor,
    certificates: Arc<Certificates>,
}

impl Server {
    /// Opens the store, makes what is missing (keys, bootstrap objects) and returns once all of it is there.
    pub async fn start(config: Config, stop: CancellationToken) -> anyhow::Result<Self> {
        let names = ServerNames {
            advertise_address: config.advertise_address,
            service_cidrs: config.service_cidrs.clone(),
            cluster_domain: config.cluster_domain.clone(),
            extra: config.sans.clone(),
        };
        let local = config.bind.first().copied().unwrap_or_else(|| config.address());
        let url = format!("https://{}", reachable(local, config.address()));
        let pki = Pki::load_or_create(&config.data_dir, &names, &url)?;
        info!(data_dir = %config.data_dir.display(), "keys are there");
        let storage = open(&config).await?;
        let cache = Cache::start(storage).await.context("cannot load the store")?;
        info!(revision = cache.revision().0, "store is loaded");
        tokio::spawn(compactor::run(Arc::clone(&cache), config.compaction_interval, stop.clone()));
        let shown = Shown::new(&pki)?;
        let state = Arc::new(build(config, &pki, &shown, cache, stop)?);
        let tls = security::tls::server_config(Arc::clone(&shown.serving))?;
        service_cidr::ensure(&state)
            .await
            .map_err(|status| anyhow::anyhow!(status.message))
            .context("cannot write the ServiceCIDR kubernetes")?;
        bootstrap::reconcile(&state).await.context("cannot write the bootstrap objects")?;
        definitions::install(&state).await.context("cannot write the definitions of projectcalico.org")?;
        flow_control::sync::load(&state);
        tokio::spawn(flow_control::sync::run(Arc::clone(&state)));
        tokio::spawn(Registrar::start(&state).await.run());
        aggregation::registration::publish_authentication(
            &state,
            &certificates::client_cas(&pki, &state.config.security)?,
            &pki.front_proxy_ca_pem,
        )
        .await
        .context("cannot publish how aggregated servers know this one")?;
        tokio::spawn(aggregation::registration::run(Arc::clone(&state)));
        tokio::spawn(aggregation::watch_availability(Arc::clone(&state)));
        tokio::spawn(aggregation::watch_documents(Arc::clone(&state)));
        tokio::spawn(service_cidr::keep(Arc::clone(&state)));
        tokio::spawn(legacy_tokens::keep(Arc::clone(&state)));
        tokio::spawn(node_ports::keep(Arc::clone(&state)));
        state.ready.store(true, std::sync::atomic::Ordering::Release);
        let certificates = Arc::new(Certificates::new(pki, names, shown, Arc::clone(&state)));
        tokio::spawn(Arc::clone(&certificates).run());
        Ok(Self { state, tls: TlsAcceptor::from(tls), certificates })
    }

    /// Serves these sockets until the server is stopped and its connections have ended.
    pub async fn serve(&self, listeners: Vec<TcpListener>) {
        let connections = TaskTracker::new();
        let mut acceptors = tokio::task::JoinSet::new();
        let closing = self.closing();
        for listener in listeners {
            acceptors.spawn(listen::accept(
                listener,
                self.tls.clone(),
                Arc::clone(&self.state),
                closing.clone(),
                connections.clone(),
            ));
        }
        while acceptors.join_next().await.is_some() {}
        connections.close();
        // A connection that is stuck is dropped with the process.
        let _ = tokio::time::timeout(STOP_TIME_MAX, connections.wait()).await;
    }

    /// Cancelled when connections are no longer accepted: some time after the signal to stop, in which the server says
    /// that it is not ready.
    fn closing(&self) -> CancellationToken {
        let delay = self.state.config.security.shutdown_delay;
        if delay.is_zero() {
            return self.state.stop.clone();
        }
        let (stop, closing) = (self.state.stop.clone(), CancellationToken::new());
        let close = closing.clone();
        tokio::spawn(async move {
            stop.cancelled().await;
            tokio::time::sleep(delay).await;
            close.cancel();
        });
        closing
    }

    /// The API for a client in this process, with all of authorization and none of the network.
    pub fn service(&self, identity: Identity) -> LocalService {
        let agent = identity.name.trim_start_matches("system:").parse().ok();
        LocalService { state: Arc::clone(&self.state), peer: Arc::new(Peer::Local(identity)), agent }
    }

    /// A ServiceAccount's token without an end, for the Secret that is to carry it; `uid` is the account's.
    ///
    /// # Errors
    /// When signing fails.
    pub fn legacy_token(
        &self,
        namespace: &str,
        account: &str,
        uid: &str,
        secret: &str,
    ) -> anyhow::Result<String> {
        let account = Reference { name: account.to_owned(), uid: uid.to_owned() };
        Ok(self.state.tokens.issue_legacy(namespace, &account, secret)?)
    }

    pub fn cache(&self) -> &Arc<Cache> {
        &self.state.cache
    }

    /// Who issues and verifies the cluster's ServiceAccount tokens.
    pub fn tokens(&self) -> &Arc<Tokens> {
        &self.state.tokens
    }

    /// Reads certificates and CAs again now, and issues anew what comes close to expiry; without this, it happens every
    /// minute.
    ///
    /// # Errors
    /// When a file cannot be used; what was in use stays so.
    pub fn reload_certificates(&self) -> anyhow::Result<()> {
        self.certificates.reload()
    }
}

/// Where the administrator's kubeconfig points: the first socket, or the advertised address for a wildcard.
fn reachable(bound: SocketAddr, advertised: SocketAddr) -> SocketAddr {
    if bound.ip().is_unspecified() { SocketAddr::new(advertised.ip(), bound.port()) } else { bound }
}

async fn open(config: &Config) -> anyhow::Result<Arc<dyn Storage>> {
    Ok(match &config.store {
        Store::Embedded => {
            let path = config.data_dir.join("store.redb");
            let store =
                Embedded::open(&path).with_context(|| format!("cannot open the store {}", path.display()))?;
            info!(path = %path.display(), "embedded store is open");
            Arc::new(store)
        }
        Store::Etcd { endpoints } => {
            let store = Etcd::connect(endpoints, None)
                .await
                .with_context(|| format!("cannot connect to etcd at {}", endpoints.join(", ")))?;
            info!(?endpoints, "etcd is connected");
            Arc::new(store)
        }
    })
}

fn build(
    config: Config,
    pki: &Pki,
    shown: &Shown,
    cache: Arc<Cache>,
    stop: CancellationToken,
) -> anyhow::Result<State> {
    let schema = api::schema::builtin();
    let tokens = Arc::new(tokens(&config, pki)?);
    let verifier = security::tls::client_verifier(&certificates::client_cas(pki, &config.security)?)?;
    let authenticator = Authenticator::new(verifier, Arc::clone(&tokens), Arc::clone(&cache) as _)
        .with(credentials(&config.security, pki)?);
    let authorizer = Arc::new(Authorizer::new(&cache));
    let proxy = Arc::clone(&shown.front_proxy);
    let callout = Arc::new(Callout::new(Arc::clone(&cache) as _, Some(proxy)));
    let kinds = Arc::new(Kinds::new(schema));
    kinds.set_webhook(Arc::new(ConversionWebhooks(Arc::clone(&callout))));
    let view = View { cache: Arc::clone(&cache), authorizer: Arc::clone(&authorizer) };
    let admission = Admission::new(Arc::new(view))
        .with(Arc::new(Policies::new(Arc::clone(&cache), Arc::clone(&authorizer))))
        .with(Arc::new(Webhooks::new(Arc::clone(&cache), Arc::clone(&callout), Arc::clone(&authorizer))));
    Ok(State {
        schema,
        kinds,
        authenticator,
        admission,
        authorizer,
        tokens,
        audit: Audit::start(&config.security.audit)?,
        aggregation: Aggregation::new(Arc::clone(&cache), Arc::clone(&callout)),
        callout,
        service_ips: ServiceIps::new(&cache, config.service_cidrs.clone()),
        discovery: Discovery::new(schema, config.address().to_string()),
        openapi: OpenApi::default(),
        metrics: metrics::Metrics::default(),
        flow_control: FlowControl::new(Limits::seats(&config.security), config.security.request_timeout),
        limits: Limits::new(&config.security).context("--strict-transport-security-directives")?,
        kubelet_tls: tls::kubelet(pki.ca.certificate_pem(), Arc::clone(&shown.kubelet_client))?,
        proxy_tls: tls::proxy()?,
        ready: AtomicBool::new(false),
        stop,
        cache,
        config,
    })
}

fn read_file(path: &std::path::Path) -> anyhow::Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

fn tokens(config: &Config, pki: &Pki) -> anyhow::Result<Tokens> {
    let issuers = config.issuers();
    let more_keys: Vec<String> = config
        .security
        .service_account_key_files
        .iter()
        .map(|path| read_file(path))
        .collect::<Result<_, _>>()?;
    let tokens = Tokens::new(&issuers[0], &pki.service_account_key_pem)
        .context("the ServiceAccount key cannot be used")?
        .with_keys(&more_keys)
        .context("a file of ServiceAccount keys cannot be used")?;
    Ok(tokens.with_issuers(&issuers[1..]).with_audiences(&config.security.api_audiences))
}

fn credentials(config: &config::Security, pki: &Pki) -> anyhow::Result<Options> {
    let static_tokens = match &config.token_auth_file {
        None => StaticTokens::default(),
        Some(path) => StaticTokens::parse(&read_file(path)?)
            .map_err(|why| anyhow::anyhow!("the token file {} cannot be used: {why}", path.display()))?,
    };
    Ok(Options {
        anonymous: config.anonymous.clone(),
        static_tokens,
        bootstrap_tokens: config.bootstrap_tokens,
        front_proxy: Some(security::tls::client_verifier(&pki.front_proxy_ca_pem)?),
    })
}

/// See [`Server::service`].
#[derive(Clone)]
pub struct LocalService {
    state: Arc<State>,
    peer: Arc<Peer>,
    agent: Option<HeaderValue>,
}

impl LocalService {
    /// Names the client by another name than its user's; its writes are recorded under it.
    pub fn called(mut self, agent: &'static str) -> Self {
        self.agent = Some(HeaderValue::from_static(agent));
        self
    }
}

impl<B> tower::Service<Request<B>> for LocalService
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response<JoinedBody>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let (state, peer) = (Arc::clone(&self.state), Arc::clone(&self.peer));
        let mut request = request.map(body::of);
        if let Some(agent) = &self.agent {
            request.headers_mut().entry(http::header::USER_AGENT).or_insert_with(|| agent.clone());
        }
        Box::pin(async move { Ok(pipeline::respond(state, peer, request).await.map(body::joined)) })
    }
}
