//! An API server and all controllers in one process, without sockets and without nodes.

#![expect(dead_code, reason = "each test binary uses a part of this")]

use std::fmt::Debug;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use apiserver::{Config, Identity, Server, Store};
use controllers::service_account_tokens::{Holder, Issuer};
use controllers::{ADDRESS_REPAIR, Accounts};
use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use kube::api::PostParams;
use kube::core::NamespaceResourceScope;
use kube::{Api, Client, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

const DEADLINE: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_millis(20);

pub struct Cluster {
    pub server: Arc<Server>,
    pub folder: TempDir,
    stop: CancellationToken,
    controllers: JoinHandle<anyhow::Result<()>>,
}

impl Cluster {
    pub async fn start() -> Self {
        Self::start_with(vec!["10.96.0.0/16"]).await
    }

    pub async fn start_with(service_cidrs: Vec<&str>) -> Self {
        let folder = tempfile::tempdir().expect("a folder for temporary files");
        let stop = CancellationToken::new();
        let server = Server::start(config(&folder, &service_cidrs), stop.clone()).await.expect("it starts");
        let server = Arc::new(server);
        let client = client_of(&server, "system:kube-controller-manager", "system:authenticated");
        let pki = folder.path().join("pki");
        let config = controllers::Config {
            root_ca_pem: std::fs::read_to_string(pki.join("ca.crt")).expect("the CA was made"),
            ca_key_pem: std::fs::read_to_string(pki.join("ca.key")).expect("the CA was made"),
            accounts: Some(accounts(server.clone())),
            token_issuer: Some(token_issuer(server.clone())),
            ..controllers::Config::default()
        };
        let controllers = tokio::spawn(controllers::run_with(client, config, stop.clone()));
        Self { server, folder, stop, controllers }
    }

    /// A client that may do everything.
    pub fn client(&self) -> Client {
        client_of(&self.server, "admin", "system:masters")
    }

    pub async fn namespace(&self, name: &str) {
        let api = Api::<Namespace>::all(self.client());
        create(&api, json!({ "metadata": { "name": name } })).await;
        let accounts = Api::<ServiceAccount>::namespaced(self.client(), name);
        eventually("the default ServiceAccount", async || {
            accounts.get_opt("default").await.ok().flatten().map(drop).ok_or("it is not there")
        })
        .await;
    }

    pub fn api<K>(&self, namespace: &str) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        Api::namespaced(self.client(), namespace)
    }

    pub async fn stop(self) {
        self.stop.cancel();
        let ended = tokio::time::timeout(DEADLINE, self.controllers).await;
        ended.expect("the controllers end in time").expect("no panic").expect("no error");
    }
}

/// A server that listens there.
pub fn config_at(folder: &TempDir, address: SocketAddr) -> Config {
    Config {
        bind: vec![address],
        advertise_address: address.ip(),
        advertise_port: address.port(),
        ..config(folder, &["10.96.0.0/16"])
    }
}

fn config(folder: &TempDir, service_cidrs: &[&str]) -> Config {
    Config {
        data_dir: folder.path().to_owned(),
        store: Store::Embedded,
        bind: Vec::new(),
        advertise_address: Ipv4Addr::new(10, 89, 0, 10).into(),
        advertise_port: 6443,
        service_cidrs: service_cidrs.iter().map(|range| range.parse().expect("a valid range")).collect(),
        cluster_cidrs: vec!["10.244.0.0/16".parse().expect("a valid range")],
        cluster_domain: "cluster.local".to_owned(),
        compaction_interval: apiserver::storage::compactor::INTERVAL,
        sans: Vec::new(),
        security: Default::default(),
    }
}

/// Each controller with no more than its own role.
fn accounts(server: Arc<Server>) -> Accounts {
    Accounts::new(move |account| match account {
        ADDRESS_REPAIR => client_of(&server, "system:apiserver", "system:masters"),
        account => {
            let identity = Identity::service_account("kube-system", account, "");
            Client::new(server.service(identity).called("kube-controller-manager"), "default")
        }
    })
}

fn token_issuer(server: Arc<Server>) -> Issuer {
    Issuer::new(move |Holder { namespace, account, uid, secret }| {
        server.legacy_token(namespace, account, uid, secret).map_err(|error| format!("{error:#}"))
    })
}

pub fn client_of(server: &Server, user: &str, group: &str) -> Client {
    Client::new(server.service(Identity::internal(user, &[group])), "default")
}

/// Makes an object from JSON.
pub async fn create<K>(api: &Api<K>, object: Value) -> K
where
    K: Clone + Debug + Serialize + DeserializeOwned,
{
    let object: K = serde_json::from_value(object).expect("the object fits its type");
    api.create(&PostParams::default(), &object).await.expect("it is created")
}

/// The message with which the API refuses to make an object.
pub async fn refused<K>(api: &Api<K>, object: Value) -> String
where
    K: Clone + Debug + Serialize + DeserializeOwned,
{
    let object: K = serde_json::from_value(object).expect("the object fits its type");
    match api.create(&PostParams::default(), &object).await {
        Err(kube::Error::Api(status)) => status.message,
        other => panic!("expected a refusal, got {other:?}"),
    }
}

/// Looks until there is nothing to complain about; at the deadline the test fails with the last complaint.
pub async fn eventually<T, E: Debug>(what: &str, mut look: impl AsyncFnMut() -> Result<T, E>) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        match look().await {
            Ok(value) => return value,
            Err(complaint) => assert!(Instant::now() < deadline, "waited for {what}: {complaint:?}"),
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Waits until there is no such object.
pub async fn gone<K>(api: &Api<K>, name: &str)
where
    K: Resource + Clone + Debug + DeserializeOwned,
{
    eventually(name, async || match api.get_opt(name).await {
        Ok(None) => Ok(()),
        Ok(Some(left)) => Err(format!("it is held by {:?}", left.meta().finalizers)),
        Err(error) => Err(error.to_string()),
    })
    .await;
}

pub fn pod(name: &str, cpu: &str) -> Value {
    json!({
        "metadata": { "name": name },
        "spec": { "containers": [{ "name": "c", "image": "nginx",
            "resources": { "requests": { "cpu": cpu, "memory": "64Mi" } } }] },
    })
}
