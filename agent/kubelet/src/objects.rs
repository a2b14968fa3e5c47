//! ConfigMaps and Secrets that pods of this node refer to, each kept fresh by a watch of that one object: the Node
//! authorizer allows no more than that.
//!
//! A watch lives as long as a pod is interested; a change wakes the pods that are.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError};

use futures::StreamExt;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::api::Api;
use kube::runtime::{WatchStreamExt, watcher};
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    ConfigMap,
    Secret,
}

impl Kind {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ConfigMap => "ConfigMap",
            Self::Secret => "Secret",
        }
    }

    /// The sentence that pods show while they wait for the object.
    pub fn not_found(self, name: &str) -> String {
        format!("{} \"{name}\" not found", self.as_str().to_lowercase())
    }
}

/// What volumes and env need of a ConfigMap or Secret.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Payload {
    pub data: BTreeMap<String, Vec<u8>>,
    /// `type` of a Secret.
    pub kind: Option<String>,
}

impl From<ConfigMap> for Payload {
    fn from(map: ConfigMap) -> Self {
        let text = map.data.into_iter().flatten().map(|(key, value)| (key, value.into_bytes()));
        let binary = map.binary_data.into_iter().flatten().map(|(key, value)| (key, value.0));
        Self { data: text.chain(binary).collect(), kind: None }
    }
}

impl From<Secret> for Payload {
    fn from(secret: Secret) -> Self {
        let data = secret.data.into_iter().flatten().map(|(key, value)| (key, value.0)).collect();
        Self { data, kind: secret.type_ }
    }
}

type Key = (Kind, String, String);

struct Watched {
    payload: Option<Arc<Payload>>,
    pods: HashSet<String>,
    task: AbortHandle,
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[derive(Clone)]
pub struct Objects {
    client: kube::Client,
    watched: Arc<Mutex<HashMap<Key, Watched>>>,
    changed: mpsc::UnboundedSender<String>,
}

impl Objects {
    /// UIDs of pods whose objects changed arrive at `changed`.
    pub fn new(client: kube::Client, changed: mpsc::UnboundedSender<String>) -> Self {
        Self { client, watched: Arc::default(), changed }
    }

    /// The object for the pod `uid`, which is told of later changes; `None` if there is no such object.
    pub async fn get(
        &self,
        uid: &str,
        kind: Kind,
        namespace: &str,
        name: &str,
    ) -> Result<Option<Arc<Payload>>, kube::Error> {
        let key = (kind, namespace.to_owned(), name.to_owned());
        if let Some(payload) = self.cached(uid, &key) {
            return Ok(Some(payload));
        }
        let payload = match kind {
            Kind::ConfigMap => {
                let api = Api::<ConfigMap>::namespaced(self.client.clone(), namespace);
                api.get_opt(name).await?.map(Payload::from)
            }
            Kind::Secret => {
                let api = Api::<Secret>::namespaced(self.client.clone(), namespace);
                api.get_opt(name).await?.map(Payload::from)
            }
        };
        let payload = payload.map(Arc::new);
        self.watch(uid, key, payload.clone());
        Ok(payload)
    }

    /// The pod needs no objects any more; watches that no other pod needs end.
    pub fn release(&self, uid: &str) {
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        watched.retain(|_, object| {
            object.pods.remove(uid);
            !object.pods.is_empty()
        });
    }

    fn cached(&self, uid: &str, key: &Key) -> Option<Arc<Payload>> {
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        let object = watched.get_mut(key)?;
        object.pods.insert(uid.to_owned());
        object.payload.clone()
    }

    fn watch(&self, uid: &str, key: Key, payload: Option<Arc<Payload>>) {
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(object) = watched.get_mut(&key) {
            object.pods.insert(uid.to_owned());
            object.payload = payload;
            return;
        }
        let task = match key.0 {
            Kind::ConfigMap => tokio::spawn(follow::<ConfigMap>(self.clone(), key.clone())),
            Kind::Secret => tokio::spawn(follow::<Secret>(self.clone(), key.clone())),
        };
        let pods = HashSet::from([uid.to_owned()]);
        watched.insert(key, Watched { payload, pods, task: task.abort_handle() });
    }

    fn update(&self, key: &Key, payload: Option<Payload>) {
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(object) = watched.get_mut(key) else { return };
        if object.payload.as_deref() == payload.as_ref() {
            return;
        }
        object.payload = payload.map(Arc::new);
        for uid in &object.pods {
            // The receiver is gone only when the kubelet ends.
            let _ = self.changed.send(uid.clone());
        }
    }
}

async fn follow<K>(objects: Objects, key: Key)
where
    K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>
        + Clone
        + Debug
        + Send
        + serde::de::DeserializeOwned
        + Into<Payload>
        + 'static,
{
    let api = Api::<K>::namespaced(objects.client.clone(), &key.1);
    let config = watcher::Config::default().fields(&format!("metadata.name={}", key.2));
    let mut events = watcher(api, config).default_backoff().boxed();
    let mut seen = false;
    while let Some(event) = events.next().await {
        match event {
            Ok(watcher::Event::Init) => seen = false,
            Ok(watcher::Event::InitApply(object) | watcher::Event::Apply(object)) => {
                seen = true;
                objects.update(&key, Some(object.into()));
            }
            Ok(watcher::Event::InitDone) if !seen => objects.update(&key, None),
            Ok(watcher::Event::InitDone) => {}
            Ok(watcher::Event::Delete(_)) => objects.update(&key, None),
            Err(error) => {
                tracing::debug!(kind = key.0.as_str(), name = key.2, %error, "watch will be retried")
            }
        }
    }
}
