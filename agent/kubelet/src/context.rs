//! What all workers of one kubelet share.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use k8s_cri::v1 as cri_api;
use k8s_openapi::api::core::v1::Pod;
use tokio::sync::watch;

use crate::cgroups::Cgroups;
use crate::config::Config;
use crate::configuration::Configuration;
use crate::cri::Runtime;
use crate::downward::Facts;
use crate::env::ServiceLinks;
use crate::eviction::signals::Condition;
use crate::images::Images;
use crate::pod;
use crate::recorder::Recorder;
use crate::volumes::Volumes;

/// Which pod a container or sandbox belongs to, by its id: where runtime events go.
#[derive(Clone, Default)]
pub struct Owners(Arc<Mutex<HashMap<String, String>>>);

impl Owners {
    pub fn add(&self, id: &str, uid: &str) {
        let mut owners = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        owners.insert(id.to_owned(), uid.to_owned());
    }

    pub fn get(&self, id: &str) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(id).cloned()
    }

    pub fn forget_pod(&self, uid: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|_, owner| owner != uid);
    }
}

/// Resources of the node: whole for memory in bytes, thousandths for everything in `allocatable_milli`.
#[derive(Clone, Debug, Default)]
pub struct Capacity {
    pub memory_bytes: i128,
    pub allocatable_milli: BTreeMap<String, i128>,
}

pub struct Context {
    pub client: kube::Client,
    pub config: Config,
    pub configuration: Configuration,
    pub runtime: Runtime,
    pub images: Images,
    pub volumes: Volumes,
    pub cgroups: Cgroups,
    pub recorder: Recorder,
    pub services: Arc<dyn ServiceLinks>,
    pub owners: Owners,
    pub capacity: Capacity,
    /// What the node is short of, or was lately.
    pub pressure: watch::Sender<BTreeSet<Condition>>,
    /// Addresses of the node as text, primary first.
    pub host_ips: Vec<String>,
}

impl Context {
    pub fn facts(&self, pod_ips: &[String]) -> Facts {
        Facts {
            node_name: self.config.node_name.clone(),
            pod_ips: pod_ips.to_vec(),
            host_ips: self.host_ips.clone(),
            allocatable: self.capacity.allocatable_milli.clone(),
        }
    }

    /// The host's `resolv.conf`; empty if it has none.
    pub async fn host_dns(&self) -> cri_api::DnsConfig {
        let text = tokio::fs::read_to_string(&self.config.host_resolv_conf).await.unwrap_or_default();
        crate::dns::parse_resolv_conf(&text)
    }

    pub fn hosts_file(&self, pod: &Pod) -> PathBuf {
        self.volumes.pod_dir(pod::uid(pod)).join("etc-hosts")
    }
}
