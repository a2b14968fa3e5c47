//! Events about pods and the node. The same event again raises the count of the first.

use std::collections::HashMap;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::json;
use tokio::sync::mpsc;

use crate::pod;
use crate::status::time;

/// Events waiting for the apiserver; beyond that the newest are dropped.
const QUEUE: usize = 512;
/// Events remembered to be counted up.
const REMEMBERED: usize = 1024;
const FORGET_AFTER: Duration = Duration::from_secs(600);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    Normal,
    Warning,
}

struct Entry {
    object: ObjectReference,
    kind: Type,
    reason: String,
    message: String,
    at: Timestamp,
}

/// The sending end. Cheap to clone; never blocks.
#[derive(Clone)]
pub struct Recorder {
    queue: mpsc::Sender<Entry>,
}

impl Recorder {
    /// Starts the task that writes events as `host`.
    pub fn start(client: kube::Client, host: String) -> Self {
        let (queue, entries) = mpsc::channel(QUEUE);
        tokio::spawn(write_all(client, host, entries));
        Self { queue }
    }

    pub fn pod(&self, pod: &Pod, kind: Type, reason: &str, message: impl Into<String>) {
        self.send(pod_reference(pod, None), kind, reason, message.into());
    }

    /// An event about one container; `list` is the field of the spec that it stands in.
    pub fn container(
        &self,
        pod: &Pod,
        entry: &pod::Entry,
        kind: Type,
        reason: &str,
        message: impl Into<String>,
    ) {
        let list = match entry.role {
            pod::Role::Init | pod::Role::Sidecar => "spec.initContainers",
            pod::Role::App => "spec.containers",
            pod::Role::Ephemeral => "spec.ephemeralContainers",
        };
        let path = format!("{list}{{{}}}", entry.name());
        self.send(pod_reference(pod, Some(path)), kind, reason, message.into());
    }

    pub fn node(&self, name: &str, kind: Type, reason: &str, message: impl Into<String>) {
        let object = ObjectReference {
            kind: Some("Node".to_owned()),
            name: Some(name.to_owned()),
            uid: Some(name.to_owned()),
            ..ObjectReference::default()
        };
        self.send(object, kind, reason, message.into());
    }

    fn send(&self, object: ObjectReference, kind: Type, reason: &str, message: String) {
        let entry = Entry { object, kind, reason: reason.to_owned(), message, at: Timestamp::now() };
        if self.queue.try_send(entry).is_err() {
            tracing::debug!(reason, "event dropped: the apiserver is slow");
        }
    }
}

fn pod_reference(pod: &Pod, field_path: Option<String>) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Pod".to_owned()),
        namespace: Some(pod::namespace(pod).to_owned()),
        name: Some(pod::name(pod).to_owned()),
        uid: Some(pod::uid(pod).to_owned()),
        resource_version: pod.metadata.resource_version.clone(),
        field_path,
    }
}

type Key = (Option<String>, Option<String>, String, String);

struct Written {
    namespace: String,
    name: String,
    count: i32,
    at: Timestamp,
}

async fn write_all(client: kube::Client, host: String, mut entries: mpsc::Receiver<Entry>) {
    let mut written: HashMap<Key, Written> = HashMap::new();
    while let Some(entry) = entries.recv().await {
        if written.len() >= REMEMBERED {
            let now = Timestamp::now();
            written.retain(|_, last| crate::plan::since(last.at, now) < FORGET_AFTER);
            if written.len() >= REMEMBERED {
                written.clear();
            }
        }
        let key = (
            entry.object.uid.clone(),
            entry.object.field_path.clone(),
            entry.reason.clone(),
            entry.message.clone(),
        );
        let last = written.get_mut(&key);
        match write(&client, &host, &entry, last).await {
            Ok(Some(new)) => {
                written.insert(key, new);
            }
            Ok(None) => {}
            Err(error) => {
                written.remove(&key);
                tracing::debug!(reason = entry.reason, %error, "event not written");
            }
        }
    }
}

async fn write(
    client: &kube::Client,
    host: &str,
    entry: &Entry,
    last: Option<&mut Written>,
) -> Result<Option<Written>, kube::Error> {
    if let Some(last) = last {
        let body = json!({"count": last.count + 1, "lastTimestamp": time(entry.at)});
        let api = Api::<Event>::namespaced(client.clone(), &last.namespace);
        api.patch(&last.name, &PatchParams::default(), &Patch::Merge(&body)).await?;
        last.count += 1;
        last.at = entry.at;
        return Ok(None);
    }
    let namespace = entry.object.namespace.clone().unwrap_or_else(|| "default".to_owned());
    let owner = entry.object.name.as_deref().unwrap_or_default();
    let name = format!("{owner}.{:x}", entry.at.as_nanosecond());
    let event = Event {
        metadata: ObjectMeta {
            name: Some(name.clone()),
            namespace: Some(namespace.clone()),
            ..ObjectMeta::default()
        },
        involved_object: entry.object.clone(),
        type_: Some(if entry.kind == Type::Normal { "Normal" } else { "Warning" }.to_owned()),
        reason: Some(entry.reason.clone()),
        message: Some(entry.message.clone()),
        count: Some(1),
        first_timestamp: Some(time(entry.at)),
        last_timestamp: Some(time(entry.at)),
        source: Some(EventSource { component: Some("kubelet".to_owned()), host: Some(host.to_owned()) }),
        reporting_component: Some("kubelet".to_owned()),
        reporting_instance: Some(host.to_owned()),
        ..Event::default()
    };
    Api::<Event>::namespaced(client.clone(), &namespace).create(&PostParams::default(), &event).await?;
    Ok(Some(Written { namespace, name, count: 1, at: entry.at }))
}
