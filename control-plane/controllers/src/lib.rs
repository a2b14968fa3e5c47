//! The controllers, one file each: level-triggered, idempotent, and deterministic where they choose.
//!
//! ```text
//! watch -> Store -> dirty keys -> Queue -> reconcile(key): plan (pure) -> API writes -> Store (the answers)
//! ```
//!
//! Decisions are pure functions that tests call alone; the stores are shared, one watch per kind for all controllers.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::ReplicationController;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub mod blocks;
pub mod certificates;
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
pub mod load_balancer;
pub mod namespace;
pub mod node_lifecycle;
pub mod ownership;
pub mod pod_gc;
pub mod pods;
pub mod policy_types;
pub mod queue;
pub mod reconcile;
pub mod replica_set;
pub mod resource_quota;
pub mod revisions;
pub mod service_account;
pub mod service_account_tokens;
pub mod service_cidr;
pub mod service_ip_repair;
pub mod services;
pub mod stateful_set;
pub mod store;
pub mod taint_eviction;
pub mod taints;
pub mod token_cleaner;
pub mod ttl_after_finished;
pub mod volume_protection;

pub use cluster::Cluster;

use queue::Queue;
use reconcile::Reconcile;

/// What the controllers need to know beyond the API.
#[derive(Debug, Clone)]
pub struct Config {
    /// PEM of the cluster's CA, published as ConfigMap `kube-root-ca.crt`; empty publishes nothing.
    pub root_ca_pem: String,
    /// PEM of the CA's key, which signs CertificateSigningRequests; empty signs nothing.
    pub ca_key_pem: String,
    /// Fills Secrets that are to carry a ServiceAccount's token; `None` fills in no tokens.
    pub token_issuer: Option<service_account_tokens::Issuer>,
    /// Who the controllers are when they act; `None` lets them act as whoever they watch as.
    pub accounts: Option<Accounts>,
    /// How long a node may be silent before it counts as unreachable.
    pub node_monitor_grace_period: Duration,
    /// The same for a node that has not posted its status yet.
    pub node_startup_grace_period: Duration,
    /// Finished pods that may stay before the oldest are collected.
    pub terminated_pod_gc_threshold: usize,
    /// How long a node must be missing before the pods bound to it are collected.
    pub pod_gc_quarantine: Duration,
    /// How long a node must be missing before its blocks of addresses are given back.
    pub block_grace: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            root_ca_pem: String::new(),
            ca_key_pem: String::new(),
            token_issuer: None,
            accounts: None,
            node_monitor_grace_period: Duration::from_secs(50),
            node_startup_grace_period: Duration::from_secs(60),
            terminated_pod_gc_threshold: 12_500,
            pod_gc_quarantine: Duration::from_secs(40),
            block_grace: Duration::from_secs(300),
        }
    }
}

/// Runs every controller with the default configuration until `cancel` is cancelled.
pub async fn run(client: kube::Client, cancel: CancellationToken) -> anyhow::Result<()> {
    run_with(client, Config::default(), cancel).await
}

/// Runs every controller until `cancel` is cancelled. `client` reads and watches, and acts where no account does.
pub async fn run_with(client: kube::Client, config: Config, cancel: CancellationToken) -> anyhow::Result<()> {
    let mut tasks = JoinSet::new();
    let (events, writer) = events::Recorder::new(client.clone(), cancel.clone());
    tasks.spawn(writer);
    let cluster = Arc::new(Cluster::new(client, events));
    let mut controllers = Controllers {
        cluster: cluster.clone(),
        accounts: config.accounts.clone(),
        tasks: &mut tasks,
        cancel: &cancel,
    };
    controllers.start_workloads();
    controllers.start_network(&config);
    controllers.start_access(&config)?;
    controllers.start_content();
    controllers.start_nodes(&config);
    cluster.start(&mut tasks, &cancel);
    cancel.cancelled().await;
    tasks.join_all().await;
    Ok(())
}

/// Gives each controller a client that acts as its ServiceAccount in kube-system.
#[derive(Clone)]
pub struct Accounts(Arc<dyn Fn(&'static str) -> kube::Client + Send + Sync>);

impl Accounts {
    /// Accounts whose clients `client_of` makes by the account's name.
    pub fn new(client_of: impl Fn(&'static str) -> kube::Client + Send + Sync + 'static) -> Self {
        Self(Arc::new(client_of))
    }
}

impl fmt::Debug for Accounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Accounts")
    }
}

/// Not an account of Kubernetes: upstream's API server repairs addresses itself, and so in its own name.
pub const ADDRESS_REPAIR: &str = "service-ip-repair";

struct Controllers<'a> {
    cluster: Arc<Cluster>,
    accounts: Option<Accounts>,
    tasks: &'a mut JoinSet<()>,
    cancel: &'a CancellationToken,
}

impl Controllers<'_> {
    /// The view of the cluster for the controller whose account this is.
    fn acting_as(&self, account: &'static str) -> Arc<Cluster> {
        match &self.accounts {
            Some(accounts) => self.cluster.acting_through((accounts.0)(account)),
            None => self.cluster.clone(),
        }
    }

    fn start_workloads(&mut self) {
        self.start(deployment::new(&self.acting_as("deployment-controller")), 4);
        self.start(replica_set::new::<ReplicaSet>(&self.acting_as("replicaset-controller")), 4);
        self.start(replica_set::new::<ReplicationController>(&self.acting_as("replication-controller")), 2);
        self.start(daemon_set::new(&self.acting_as("daemon-set-controller")), 2);
        self.start(job::new(&self.acting_as("job-controller")), 4);
        self.start(cron_job::new(&self.acting_as("cronjob-controller")), 1);
        self.start(stateful_set::new(&self.acting_as("statefulset-controller")), 2);
        self.start(ttl_after_finished::new(&self.acting_as("ttl-after-finished-controller")), 1);
        self.start(disruption::new(&self.acting_as("disruption-controller")), 2);
    }

    fn start_network(&mut self, config: &Config) {
        self.start(endpoint_slice::new(&self.acting_as("endpointslice-controller")), 4);
        self.start(endpoint_slice_mirroring::new(&self.acting_as("endpointslicemirroring-controller")), 1);
        self.start(endpoints::new(&self.acting_as("endpoint-controller")), 2);
        self.start(load_balancer::new(&self.acting_as("load-balancer-controller")), 1);
        let blocks = self.acting_as("block-controller");
        self.start(blocks::new(&blocks), 2);
        self.tasks.spawn(blocks::run(blocks, config.block_grace, self.cancel.clone()));
        self.start(service_cidr::new(&self.acting_as("service-cidrs-controller")), 1);
        let repair = self.acting_as(ADDRESS_REPAIR);
        self.start(service_ip_repair::of_services(&repair), 1);
        self.start(service_ip_repair::of_addresses(&repair), 1);
    }

    fn start_access(&mut self, config: &Config) -> anyhow::Result<()> {
        self.start(service_account::service_accounts(&self.acting_as("service-account-controller")), 1);
        let ca_pem = || config.root_ca_pem.clone();
        if !config.root_ca_pem.is_empty() {
            let publisher = self.acting_as("root-ca-cert-publisher");
            self.start(service_account::root_certificates(&publisher, ca_pem()), 1);
        }
        self.start(service_account_tokens::new(&self.cluster, config.token_issuer.clone(), ca_pem()), 1);
        self.tasks.spawn(token_cleaner::run(self.cluster.client.clone(), self.cancel.clone()));
        let certificates = self.acting_as("certificate-controller");
        self.start(certificates::approver(&certificates), 1);
        self.start(certificates::cleaner(&certificates), 1);
        if !config.ca_key_pem.is_empty() {
            let signer = certificates::Signer::new(&config.root_ca_pem, &config.ca_key_pem);
            self.start(certificates::signing(&certificates, signer.map_err(anyhow::Error::msg)?), 1);
        }
        let roles = self.acting_as("clusterrole-aggregation-controller");
        self.start(cluster_role_aggregation::new(&roles), 1);
        Ok(())
    }

    /// What looks after objects of any kind, and after volumes.
    fn start_content(&mut self) {
        self.start(namespace::new(&self.acting_as("namespace-controller")), 4);
        let collecting = self.acting_as("generic-garbage-collector");
        let collector = garbage::Collector::new(collecting.client.clone(), collecting.events.clone());
        let (quotas, dirty) = resource_quota::new(&self.acting_as("resourcequota-controller"), &collector);
        self.tasks.spawn(resource_quota::resync(self.cluster.clone(), dirty.clone(), self.cancel.clone()));
        self.start((quotas, dirty), 5);
        self.tasks.spawn(garbage::run(collector, self.cancel.clone()));
        let policies = self.acting_as("validatingadmissionpolicy-status-controller");
        self.tasks.spawn(policy_types::run(policies.client.clone(), self.cancel.clone()));
        self.start(volume_protection::claims(&self.acting_as("pvc-protection-controller")), 1);
        self.start(volume_protection::volumes(&self.acting_as("pv-protection-controller")), 1);
        let classes = self.acting_as("volumeattributesclass-protection-controller");
        self.start(volume_protection::classes(&classes), 1);
    }

    fn start_nodes(&mut self, config: &Config) {
        let nodes = self.acting_as("node-controller");
        self.start(taint_eviction::new(&nodes), 4);
        let timing = node_lifecycle::Timing {
            grace: config.node_monitor_grace_period,
            startup_grace: config.node_startup_grace_period,
        };
        self.tasks.spawn(node_lifecycle::run(nodes, timing, self.cancel.clone()));
        let limits = pod_gc::Limits {
            finished_max: config.terminated_pod_gc_threshold,
            quarantine: config.pod_gc_quarantine,
        };
        let pods = self.acting_as("pod-garbage-collector");
        self.tasks.spawn(pod_gc::run(pods, limits, self.cancel.clone()));
    }

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
