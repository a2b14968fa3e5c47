//! What all controllers share: the client, the stores, and the writer of Events.

use std::fmt::Debug;
use std::sync::Arc;

use calico::{BlockAffinity, IpPool, IpReservation};
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::batch::v1::{CronJob, Job};
use k8s_openapi::api::certificates::v1::CertificateSigningRequest;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{
    ConfigMap, Endpoints, Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod,
    ReplicationController, ResourceQuota, Secret, Service, ServiceAccount,
};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::{IPAddress, ServiceCIDR};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::ClusterRole;
use k8s_openapi::api::storage::v1::VolumeAttributesClass;
use kube::runtime::watcher;
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::events::Recorder;
use crate::service_account_tokens::TOKEN_TYPE;
use crate::store::{Store, feed};

/// The controllers' common view of the cluster. Clones share the stores.
#[derive(Clone)]
pub struct Cluster {
    /// Talks to the API.
    pub client: Client,
    /// Writes Events.
    pub events: Recorder,
    /// As [`Self::ip_pools`].
    pub block_affinities: Arc<Store<BlockAffinity>>,
    /// The ConfigMaps in which nodes agree on blocks of addresses.
    pub blocks: Arc<Store<ConfigMap>>,
    pub certificate_requests: Arc<Store<CertificateSigningRequest>>,
    pub cluster_roles: Arc<Store<ClusterRole>>,
    pub controller_revisions: Arc<Store<ControllerRevision>>,
    pub cron_jobs: Arc<Store<CronJob>>,
    pub daemon_sets: Arc<Store<DaemonSet>>,
    pub deployments: Arc<Store<Deployment>>,
    pub disruption_budgets: Arc<Store<PodDisruptionBudget>>,
    pub endpoint_slices: Arc<Store<EndpointSlice>>,
    pub endpoints: Arc<Store<Endpoints>>,
    pub ip_addresses: Arc<Store<IPAddress>>,
    /// Not waited for, as a server may not serve the kind.
    pub ip_pools: Arc<Store<IpPool>>,
    /// As [`Self::ip_pools`].
    pub ip_reservations: Arc<Store<IpReservation>>,
    pub jobs: Arc<Store<Job>>,
    /// The Leases of nodes: namespace kube-node-lease.
    pub leases: Arc<Store<Lease>>,
    pub namespaces: Arc<Store<Namespace>>,
    pub nodes: Arc<Store<Node>>,
    pub persistent_volume_claims: Arc<Store<PersistentVolumeClaim>>,
    pub persistent_volumes: Arc<Store<PersistentVolume>>,
    pub pods: Arc<Store<Pod>>,
    pub replica_sets: Arc<Store<ReplicaSet>>,
    pub replication_controllers: Arc<Store<ReplicationController>>,
    pub resource_quotas: Arc<Store<ResourceQuota>>,
    /// The ConfigMaps named kube-root-ca.crt.
    pub root_certificates: Arc<Store<ConfigMap>>,
    pub service_accounts: Arc<Store<ServiceAccount>>,
    pub service_cidrs: Arc<Store<ServiceCIDR>>,
    pub services: Arc<Store<Service>>,
    pub stateful_sets: Arc<Store<StatefulSet>>,
    /// The Secrets that carry ServiceAccount tokens.
    pub token_secrets: Arc<Store<Secret>>,
    pub volume_attributes_classes: Arc<Store<VolumeAttributesClass>>,
}

/// The name of the ConfigMap that carries the cluster's CA in every namespace.
pub const ROOT_CERTIFICATE: &str = "kube-root-ca.crt";
/// The namespace of the ConfigMaps in which nodes agree on blocks of addresses.
pub const BLOCKS_NAMESPACE: &str = "kube-system";
/// Their label.
pub const BLOCK_LABEL: &str = "seaway.dev/ipam-block";
/// The namespace of the nodes' Leases.
pub const NODE_LEASES: &str = "kube-node-lease";

impl Cluster {
    /// Empty stores.
    pub fn new(client: Client, events: Recorder) -> Self {
        Self {
            client,
            events,
            block_affinities: Arc::default(),
            blocks: Arc::default(),
            certificate_requests: Arc::default(),
            cluster_roles: Arc::default(),
            controller_revisions: Arc::default(),
            cron_jobs: Arc::default(),
            daemon_sets: Arc::default(),
            deployments: Arc::default(),
            disruption_budgets: Arc::default(),
            endpoint_slices: Arc::default(),
            endpoints: Arc::default(),
            ip_addresses: Arc::default(),
            ip_pools: Arc::default(),
            ip_reservations: Arc::default(),
            jobs: Arc::default(),
            leases: Arc::default(),
            namespaces: Arc::default(),
            nodes: Arc::default(),
            persistent_volume_claims: Arc::default(),
            persistent_volumes: Arc::default(),
            pods: Arc::default(),
            replica_sets: Arc::default(),
            replication_controllers: Arc::default(),
            resource_quotas: Arc::default(),
            root_certificates: Arc::default(),
            service_accounts: Arc::default(),
            service_cidrs: Arc::default(),
            services: Arc::default(),
            stateful_sets: Arc::default(),
            token_secrets: Arc::default(),
            volume_attributes_classes: Arc::default(),
        }
    }

    /// The same view for a controller that acts through `client`.
    pub fn acting_through(&self, client: Client) -> Arc<Self> {
        Arc::new(Self { client, ..self.clone() })
    }

    /// Starts one watch per store; subscribe first, so that no object is missed.
    pub fn start(&self, tasks: &mut JoinSet<()>, cancel: &CancellationToken) {
        self.watch(&self.block_affinities, tasks, cancel);
        self.watch(&self.certificate_requests, tasks, cancel);
        self.watch(&self.cluster_roles, tasks, cancel);
        self.watch(&self.controller_revisions, tasks, cancel);
        self.watch(&self.cron_jobs, tasks, cancel);
        self.watch(&self.daemon_sets, tasks, cancel);
        self.watch(&self.deployments, tasks, cancel);
        self.watch(&self.disruption_budgets, tasks, cancel);
        self.watch(&self.endpoint_slices, tasks, cancel);
        self.watch(&self.endpoints, tasks, cancel);
        self.watch(&self.ip_addresses, tasks, cancel);
        self.watch(&self.ip_pools, tasks, cancel);
        self.watch(&self.ip_reservations, tasks, cancel);
        self.watch(&self.jobs, tasks, cancel);
        self.watch(&self.namespaces, tasks, cancel);
        self.watch(&self.nodes, tasks, cancel);
        self.watch(&self.persistent_volume_claims, tasks, cancel);
        self.watch(&self.persistent_volumes, tasks, cancel);
        self.watch(&self.pods, tasks, cancel);
        self.watch(&self.replica_sets, tasks, cancel);
        self.watch(&self.replication_controllers, tasks, cancel);
        self.watch(&self.resource_quotas, tasks, cancel);
        self.watch(&self.service_accounts, tasks, cancel);
        self.watch(&self.service_cidrs, tasks, cancel);
        self.watch(&self.services, tasks, cancel);
        self.watch(&self.stateful_sets, tasks, cancel);
        self.watch(&self.volume_attributes_classes, tasks, cancel);
        let leases = Api::<Lease>::namespaced(self.client.clone(), NODE_LEASES);
        tasks.spawn(feed(leases, watcher::Config::default(), self.leases.clone(), cancel.clone()));
        let blocks = Api::<ConfigMap>::namespaced(self.client.clone(), BLOCKS_NAMESPACE);
        let labelled = watcher::Config::default().labels(BLOCK_LABEL);
        tasks.spawn(feed(blocks, labelled, self.blocks.clone(), cancel.clone()));
        let typed = watcher::Config::default().fields(&format!("type={TOKEN_TYPE}"));
        let secrets = Api::<Secret>::all(self.client.clone());
        tasks.spawn(feed(secrets, typed, self.token_secrets.clone(), cancel.clone()));
        let named = watcher::Config::default().fields(&format!("metadata.name={ROOT_CERTIFICATE}"));
        let certificates = Api::<ConfigMap>::all(self.client.clone());
        tasks.spawn(feed(certificates, named, self.root_certificates.clone(), cancel.clone()));
    }

    fn watch<K>(&self, store: &Arc<Store<K>>, tasks: &mut JoinSet<()>, cancel: &CancellationToken)
    where
        K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
    {
        let api = Api::<K>::all(self.client.clone());
        tasks.spawn(feed(api, watcher::Config::default(), store.clone(), cancel.clone()));
    }

    /// Waits until every store holds its first complete list.
    pub async fn wait_synced(&self) {
        self.blocks.wait_synced().await;
        self.certificate_requests.wait_synced().await;
        self.cluster_roles.wait_synced().await;
        self.controller_revisions.wait_synced().await;
        self.cron_jobs.wait_synced().await;
        self.daemon_sets.wait_synced().await;
        self.deployments.wait_synced().await;
        self.disruption_budgets.wait_synced().await;
        self.endpoint_slices.wait_synced().await;
        self.endpoints.wait_synced().await;
        self.ip_addresses.wait_synced().await;
        self.jobs.wait_synced().await;
        self.leases.wait_synced().await;
        self.namespaces.wait_synced().await;
        self.nodes.wait_synced().await;
        self.persistent_volume_claims.wait_synced().await;
        self.persistent_volumes.wait_synced().await;
        self.pods.wait_synced().await;
        self.replica_sets.wait_synced().await;
        self.replication_controllers.wait_synced().await;
        self.resource_quotas.wait_synced().await;
        self.root_certificates.wait_synced().await;
        self.service_accounts.wait_synced().await;
        self.service_cidrs.wait_synced().await;
        self.services.wait_synced().await;
        self.stateful_sets.wait_synced().await;
        self.token_secrets.wait_synced().await;
        self.volume_attributes_classes.wait_synced().await;
    }
}
