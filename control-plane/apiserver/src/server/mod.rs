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
use http::{Request, Response};
use http_body_util::BodyExt;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::info;

use self::body::{Body, BoxError};
use crate::{
    admission::Admission,
    config::{Config, Store},
    discovery::{Discovery, openapi::OpenApi},
    kinds::Kinds,
    security::{
        self, Authenticator, Authorizer, Identity,
        pki::{Pki, ServerNames},
        tokens::Tokens,
    },
    state::{Peer, State},
    storage::{Storage, cache::Cache, compactor, embedded::Embedded, etcd::Etcd},
    subresources::service::ServiceIps,
};

pub mod body;
mod bootstrap;
pub mod listen;
pub mod metrics;
mod pipeline;
mod tls;

/// How long connections get to end after the stop.
const STOP_TIME_MAX: Duration = Duration::from_secs(15);

/// A server that is ready to serve.
pub struct Server {
    state: Arc<State>,
    tls: TlsAcceptor,
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
        let cache = Cache::start(Arc::clone(&storage)).await.context("cannot load the store")?;
        info!(revision = cache.revision().0, "store is loaded");
        tokio::spawn(compactor::run(storage, config.compaction_interval, stop.clone()));
        let state = Arc::new(build(config, &pki, cache, stop)?);
        let tls = security::tls::server_config(&pki.serving.certificate_pem, &pki.serving.key_pem)?;
        bootstrap::reconcile(&state).await.context("cannot write the bootstrap objects")?;
        state.ready.store(true, std::sync::atomic::Ordering::Release);
        Ok(Self { state, tls: TlsAcceptor::from(tls) })
    }

    /// Serves these sockets until the server is stopped and its connections have ended.
    pub async fn serve(&self, listeners: Vec<TcpListener>) {
        let connections = TaskTracker::new();
        let mut acceptors = tokio::task::JoinSet::new();
        for listener in listeners {
            acceptors.spawn(listen::accept(
                listener,
                self.tls.clone(),
                Arc::clone(&self.state),
                self.state.stop.clone(),
                connections.clone(),
            ));
        }
        while acceptors.join_next().await.is_some() {}
        connections.close();
        // A connection that is stuck is dropped with the process.
        let _ = tokio::time::timeout(STOP_TIME_MAX, connections.wait()).await;
    }

    /// The API for a client in this process, with all of authorization and none of the network.
    pub fn service(&self, identity: Identity) -> LocalService {
        LocalService { state: Arc::clone(&self.state), peer: Arc::new(Peer::Local(identity)) }
    }

    pub fn cache(&self) -> &Arc<Cache> {
        &self.state.cache
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

fn build(config: Config, pki: &Pki, cache: Arc<Cache>, stop: CancellationToken) -> anyhow::Result<State> {
    let schema = api::schema::builtin();
    let tokens = Arc::new(
        Tokens::new(&config.issuer(), &pki.service_account_key_pem)
            .context("the ServiceAccount key cannot be used")?,
    );
    let verifier = security::tls::client_verifier(pki.ca.certificate_pem())?;
    Ok(State {
        schema,
        kinds: Kinds::new(schema),
        authenticator: Authenticator::new(verifier, Arc::clone(&tokens), Arc::clone(&cache) as _),
        authorizer: Authorizer::new(&cache),
        tokens,
        admission: Admission::new(Arc::clone(&cache)),
        service_ips: tokio::sync::Mutex::new(ServiceIps::new(&cache, config.service_cidrs.clone())),
        discovery: Discovery::new(schema, config.address().to_string()),
        openapi: OpenApi::default(),
        metrics: metrics::Metrics::default(),
        kubelet_tls: tls::kubelet(pki.ca.certificate_pem(), &pki.kubelet_client)?,
        proxy_tls: tls::proxy()?,
        ready: AtomicBool::new(false),
        stop,
        cache,
        config,
    })
}

/// See [`Server::service`].
#[derive(Clone)]
pub struct LocalService {
    state: Arc<State>,
    peer: Arc<Peer>,
}

impl<B> tower::Service<Request<B>> for LocalService
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let (state, peer) = (Arc::clone(&self.state), Arc::clone(&self.peer));
        let request = request.map(|body| body.map_err(Into::into).boxed_unsync());
        Box::pin(async move { Ok(pipeline::respond(state, peer, request).await) })
    }
}
