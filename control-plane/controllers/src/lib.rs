//! The controllers, one file each: level-triggered, idempotent, and deterministic where they choose.
//!
//! ```text
//! watch -> Store -> dirty keys -> Queue -> reconcile(key): plan (pure) -> API writes -> Store (the answers)
//! ```
//!
//! Decisions are pure functions that tests call alone; the stores are shared, one watch per kind for all controllers.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::ReplicationController;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

mod cluster;
pub mod cluster_role_aggregation;
pub mod cron_job;
pub mod daemon_set;
pub mod deployment;
pub mod discovery;
pub mod disruption;
pub mod endpoint_slice;
pub mod endpoint_slice_mirroring;
pub mod endpoints;
pub mod events;
pub mod garbage;
pub mod job;
pub mod namespace;
pub mod node_lifecycle;
pub mod ownership;
pub mod pod_gc;
pub mod pods;
pub mod policy_types;
pub mod queue;
pub mod reconcile;
pub mod replica_set;
pub mod revisions;
pub mod service_account;
pub mod services;
pub mod stateful_set;
pub mod store;
pub mod taint_eviction;
pub mod taints;
pub mod token_cleaner;
pub mod ttl_after_finished;

pub use cluster::Cluster;

use queue::Queue;
use reconcile::Reconcile;

/// What the controllers need to know beyond the API.
#[derive(Debug, Clone)]
pub struct Config {
    /// PEM of the cluster's CA, published as ConfigMap `kube-root-ca.crt`; empty publishes nothing.
    pub root_ca_pem: String,
    /// How long a node may be silent before it counts as unreachable.
    pub node_monitor_grace_period: Duration,
    /// The same for a node that has not posted its status yet.
    pub node_startup_grace_period: Duration,
    /// Finished pods that may stay before the oldest are collected.
    pub terminated_pod_gc_threshold: usize,
    /// How long a node must be missing before the pods bound to it are collected.
    pub pod_gc_quarantine: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            root_ca_pem: String::new(),
            node_monitor_grace_period: Duration::from_secs(50),
            node_startup_grace_period: Duration::from_secs(60),
            terminated_pod_gc_threshold: 12_500,
            pod_gc_quarantine: Duration::from_secs(40),
        }
    }
}

/// Runs every controller with the default configuration until `cancel` is cancelled.
pub async fn run(client: kube::Client, cancel: CancellationToken) -> anyhow::Result<()> {
    run_with(client, Config::default(), cancel).await
}

/// Runs every controller until `cancel` is cancelled.
pub async fn run_with(client: kube::Client, config: Config, cancel: CancellationToken) -> anyhow::Result<()> {
    let mut tasks = JoinSet::new();
    let (events, writer) = events::Recorder::new(client.clone(), cancel.clone());
    tasks.spawn(writer);
    let cluster = Arc::new(Cluster::new(client.clone(), events));
    let mut controllers = Controllers { cluster: cluster.clone(), tasks: &mut tasks, cancel: &cancel };
    controllers.start(deployment::new(&cluster), 4);
    controllers.start(replica_set::new::<ReplicaSet>(&cluster), 4);
    controllers.start(replica_set::new::<ReplicationController>(&cluster), 2);
    controllers.start(daemon_set::new(&cluster), 2);
    controllers.start(job::new(&cluster), 4);
    controllers.start(cron_job::new(&cluster), 1);
    controllers.start(stateful_set::new(&cluster), 2);
    controllers.start(ttl_after_finished::new(&cluster), 1);
    controllers.start(endpoint_slice::new(&cluster), 4);
    controllers.start(endpoint_slice_mirroring::new(&cluster), 1);
    controllers.start(endpoints::new(&cluster), 2);
    controllers.start(namespace::new(&cluster), 4);
    controllers.start(service_account::service_accounts(&cluster), 1);
    if !config.root_ca_pem.is_empty() {
        controllers.start(service_account::root_certificates(&cluster, config.root_ca_pem), 1);
    }
    controllers.start(disruption::new(&cluster), 2);
    controllers.start(cluster_role_aggregation::new(&cluster), 1);
    controllers.start(taint_eviction::new(&cluster), 4);
    let timing = node_lifecycle::Timing {
        grace: config.node_monitor_grace_period,
        startup_grace: config.node_startup_grace_period,
    };
    tasks.spawn(node_lifecycle::run(cluster.clone(), timing, cancel.clone()));
    let limits = pod_gc::Limits {
        finished_max: config.terminated_pod_gc_threshold,
        quarantine: config.pod_gc_quarantine,
    };
    tasks.spawn(pod_gc::run(cluster.clone(), limits, cancel.clone()));
    tasks.spawn(token_cleaner::run(client.clone(), cancel.clone()));
    tasks.spawn(policy_types::run(client.clone(), cancel.clone()));
    tasks.spawn(garbage::run(client, cancel.clone()));
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
