//! The controllers, one file each: level-triggered, idempotent, and deterministic where they choose.
//!
//! ```text
//! watch -> Store -> dirty keys -> Queue -> reconcile(key): plan (pure) -> API writes -> Store (the answers)
//! ```
//!
//! Decisions are pure functions that tests call alone; the stores are shared, one watch per kind for all controllers.

use std::sync::Arc;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

mod cluster;
pub mod deployment;
pub mod events;
pub mod ownership;
pub mod pods;
pub mod queue;
pub mod reconcile;
pub mod replica_set;
pub mod store;

pub use cluster::Cluster;

use queue::Queue;
use reconcile::Reconcile;

/// What the controllers need to know beyond the API.
#[derive(Debug, Clone, Default)]
pub struct Config {
    /// PEM of the cluster's CA, published as ConfigMap `kube-root-ca.crt`; empty publishes nothing.
    pub root_ca_pem: String,
}

/// Runs every controller with the default configuration until `cancel` is cancelled.
pub async fn run(client: kube::Client, cancel: CancellationToken) -> anyhow::Result<()> {
    run_with(client, Config::default(), cancel).await
}

/// Runs every controller until `cancel` is cancelled.
pub async fn run_with(client: kube::Client, config: Config, cancel: CancellationToken) -> anyhow::Result<()> {
    let _ = config;
    let mut tasks = JoinSet::new();
    let (events, writer) = events::Recorder::new(client.clone(), cancel.clone());
    tasks.spawn(writer);
    let cluster = Arc::new(Cluster::new(client, events));
    let mut controllers = Controllers { cluster: cluster.clone(), tasks: &mut tasks, cancel: &cancel };
    controllers.start(deployment::new(&cluster), 4);
    controllers.start(replica_set::new::<k8s_openapi::api::apps::v1::ReplicaSet>(&cluster), 4);
    cluster.start(&mut tasks, &cancel);
    cancel.cancelled().await;
    tasks.join_all().await;
    Ok(())
}

struct Controllers<'a> {
    cluster: Arc<Cluster>,
    tasks: &'a mut JoinSet<()>,
    cancel: &'a CancellationToken,
}

impl Controllers<'_> {
    /// Lets a controller work as soon as every store has its first list: acting on half a picture would be wrong.
    fn start<R: Reconcile>(&mut self, (reconciler, queue): (Arc<R>, Arc<Queue>), workers: usize) {
        let (cluster, cancel) = (self.cluster.clone(), self.cancel.clone());
        self.tasks.spawn(async move {
            tokio::select! {
                () = cancel.cancelled() => return,
                () = cluster.wait_synced() => {}
            }
            reconcile::work(reconciler, queue, workers, cancel).await;
        });
    }
}
