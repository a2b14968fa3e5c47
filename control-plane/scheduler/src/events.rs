//! Events about pods, written to the API; the same news about the same pod is one Event whose count grows.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt};

use crate::pod::PodInfo;

const REMEMBERED_MAX: usize = 4096;

/// Writes Events in the scheduler's name.
#[derive(Clone)]
pub struct Recorder {
    client: Client,
    component: &'static str,
    written: Arc<Mutex<HashMap<News, (String, i32)>>>,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct News {
    uid: String,
    reason: &'static str,
    message: String,
}

impl Recorder {
    /// A recorder that signs as `component`.
    pub fn new(client: Client, component: &'static str) -> Self {
        Self { client, component, written: Arc::default() }
    }

    /// Writes one Event; a failure is logged, since an Event is news and not state.
    pub async fn report(&self, pod: &PodInfo, kind: &str, reason: &'static str, message: String) {
        let news = News { uid: pod.uid.clone(), reason, message };
        if let Err(error) = self.write(pod, kind, news).await {
            tracing::debug!(pod = pod.full_name(), %error, "cannot write an event");
        }
    }

    async fn write(&self, pod: &PodInfo, kind: &str, news: News) -> kube::Result<()> {
        let api = Api::<Event>::namespaced(self.client.clone(), &pod.namespace);
        let known = self.written().get(&news).cloned();
        if let Some((name, count)) = known {
            let patch = serde_json::json!({ "count": count + 1, "lastTimestamp": now() });
            match api.patch(&name, &PatchParams::default(), &Patch::Merge(patch)).await {
                Ok(_) => {
                    self.remember(news, name, count + 1);
                    return Ok(());
                }
                Err(kube::Error::Api(status)) if status.is_not_found() => {}
                Err(error) => return Err(error),
            }
        }
        let name = format!("{}.{:x}", pod.pod.name_any(), Timestamp::now().as_nanosecond());
        let event = Event {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                namespace: Some(pod.namespace.clone()),
                ..ObjectMeta::default()
            },
            involved_object: ObjectReference {
                api_version: Some("v1".into()),
                kind: Some("Pod".into()),
                namespace: Some(pod.namespace.clone()),
                name: pod.pod.metadata.name.clone(),
                uid: Some(pod.uid.clone()),
                resource_version: pod.pod.metadata.resource_version.clone(),
                field_path: None,
            },
            type_: Some(kind.to_owned()),
            reason: Some(news.reason.to_owned()),
            message: Some(news.message.clone()),
            source: Some(EventSource { component: Some(self.component.to_owned()), host: None }),
            reporting_component: Some(self.component.to_owned()),
            reporting_instance: Some(String::new()),
            count: Some(1),
            first_timestamp: Some(now()),
            last_timestamp: Some(now()),
            ..Event::default()
        };
        api.create(&PostParams::default(), &event).await?;
        self.remember(news, name, 1);
        Ok(())
    }

    fn remember(&self, news: News, name: String, count: i32) {
        let mut written = self.written();
        if written.len() >= REMEMBERED_MAX {
            written.clear();
        }
        written.insert(news, (name, count));
    }

    fn written(&self) -> std::sync::MutexGuard<'_, HashMap<News, (String, i32)>> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The wall clock with the precision that objects carry.
pub fn now() -> Time {
    let seconds = Timestamp::now().as_second();
    Time(Timestamp::from_second(seconds).expect("the present is within jiff's range"))
}
