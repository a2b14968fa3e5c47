//! A cluster of hollow nodes: starts the parts, and kills and restarts each of them alone.

use std::{collections::BTreeMap, net::Ipv4Addr, sync::Arc, time::Duration};

use apiserver::{Config, Identity, Server, Store, storage::embedded::Embedded};
use controllers::{ADDRESS_REPAIR, Accounts};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::{Api, Client};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::{
    gateway::{Address, Gateway, Incarnation},
    hollow::{HollowNode, Shape},
    observe::eventually,
};

const MASTERS: &str = "system:masters";

/// A task of the control plane that can be killed.
struct Part {
    stop: CancellationToken,
    task: JoinHandle<anyhow::Result<()>>,
}

impl Part {
    /// Ends it wherever it is, as a kill -9 would: no further line of it runs.
    async fn kill(self) {
        self.task.abort();
        self.stop.cancel();
        let _ = self.task.await;
    }
}

pub struct Cluster {
    folder: TempDir,
    address: Address,
    seed: u64,
    controllers: Option<Part>,
    scheduler: Option<Part>,
    pub nodes: BTreeMap<String, HollowNode>,
}

impl Cluster {
    /// A control plane and `nodes` ready nodes named n1 and up. `seed` decides whatever is left to chance.
    pub async fn start(nodes: usize, seed: u64) -> Self {
        let mut cluster = Self::without_controllers(seed).await;
        cluster.start_controllers();
        for index in 1..=nodes {
            cluster.add_node(index, Shape::default());
        }
        cluster.wait_ready(nodes).await;
        cluster
    }

    /// Server and scheduler alone.
    pub async fn without_controllers(seed: u64) -> Self {
        let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "error".into());
        let _ = tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().try_init();
        let mut cluster = Self {
            folder: tempfile::tempdir().expect("the folder for temporary files is writable"),
            address: Address::default(),
            seed,
            controllers: None,
            scheduler: None,
            nodes: BTreeMap::new(),
        };
        cluster.start_server().await;
        cluster.start_scheduler();
        cluster
    }

    pub async fn start_server(&mut self) {
        let stop = CancellationToken::new();
        let server =
            Server::start(self.config(), stop.clone()).await.expect("the server starts over its own data");
        self.address.store(Some(Arc::new(Incarnation { server, dead: stop })));
    }

    /// Cuts every connection, ends every request wherever it is, and returns when the store is closed.
    pub async fn kill_server(&mut self) {
        let current = self.address.swap(None).expect("the server runs");
        current.dead.cancel();
        drop(current);
        let store = self.folder.path().join("store.redb");
        eventually("the dead server lets go of its store", async || {
            Embedded::open(&store).map(drop).map_err(|error| error.to_string())
        })
        .await;
    }

    fn config(&self) -> Config {
        Config {
            data_dir: self.folder.path().to_owned(),
            store: Store::Embedded,
            bind: Vec::new(),
            // Nothing is ever sent there: all clients are in this process.
            advertise_address: Ipv4Addr::new(10, 89, 0, 10).into(),
            advertise_port: 6443,
            service_cidrs: vec!["10.96.0.0/16".parse().expect("a valid range")],
            cluster_cidrs: vec!["10.244.0.0/16".parse().expect("a valid range")],
            cluster_domain: "cluster.local".to_owned(),
            compaction_interval: apiserver::storage::compactor::INTERVAL,
            sans: Vec::new(),
            security: apiserver::config::Security::default(),
        }
    }

    pub fn start_controllers(&mut self) {
        let config = controllers::Config {
            root_ca_pem: "a certificate".to_owned(),
            accounts: Some(self.accounts()),
            node_monitor_grace_period: Duration::from_secs(2),
            node_startup_grace_period: Duration::from_secs(10),
            block_grace: Duration::from_millis(400),
            ..controllers::Config::default()
        };
        let run = |client, stop| controllers::run_with(client, config, stop);
        self.controllers = Some(self.part(run, "system:kube-controller-manager", &[]));
    }

    /// Each controller with no more than its own role.
    fn accounts(&self) -> Accounts {
        let address = self.address.clone();
        Accounts::new(move |account| {
            let identity = match account {
                ADDRESS_REPAIR => Identity::internal("system:apiserver", &[MASTERS]),
                account => Identity::service_account("kube-system", account, ""),
            };
            Gateway { address: address.clone(), identity }.client()
        })
    }

    pub async fn kill_controllers(&mut self) {
        self.controllers.take().expect("the controllers run").kill().await;
    }

    pub fn start_scheduler(&mut self) {
        self.scheduler = Some(self.part(scheduler::run, "system:kube-scheduler", &[]));
    }

    pub async fn kill_scheduler(&mut self) {
        self.scheduler.take().expect("the scheduler runs").kill().await;
    }

    fn part<F, R>(&self, run: F, user: &str, groups: &[&str]) -> Part
    where
        F: FnOnce(Client, CancellationToken) -> R,
        R: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        let stop = CancellationToken::new();
        let task = tokio::spawn(run(self.client_as(user, groups), stop.clone()));
        Part { stop, task }
    }

    /// Starts node `n<index>`, anew or again.
    pub fn add_node(&mut self, index: usize, shape: Shape) {
        let name = format!("n{index}");
        let client = self.client_as(&format!("system:node:{name}"), &["system:nodes"]);
        let node = HollowNode::start(client, index, shape, self.seed.wrapping_add(index as u64));
        self.nodes.insert(name, node);
    }

    async fn wait_ready(&self, nodes: usize) {
        let accounts = Api::<ServiceAccount>::namespaced(self.client(), "default");
        eventually("nodes and the default ServiceAccount", async || {
            let ready = self.ready_nodes().await;
            let account = accounts.get_opt("default").await.map_err(|error| error.to_string())?;
            match ready.len() == nodes && account.is_some() {
                true => Ok(()),
                false => Err(format!("ready: {ready:?}, account: {}", account.is_some())),
            }
        })
        .await;
    }

    /// Names of the nodes that are Ready and carry no taint.
    pub async fn ready_nodes(&self) -> Vec<String> {
        crate::observe::ready_nodes(&self.client()).await
    }

    /// A client that may do everything.
    pub fn client(&self) -> Client {
        self.client_as("admin", &[MASTERS])
    }

    pub fn client_as(&self, user: &str, groups: &[&str]) -> Client {
        Gateway { address: self.address.clone(), identity: Identity::internal(user, groups) }.client()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for part in [self.controllers.take(), self.scheduler.take()].into_iter().flatten() {
            part.stop.cancel();
            part.task.abort();
        }
        if let Some(current) = self.address.swap(None) {
            current.dead.cancel();
        }
    }
}
