//! Events that say what a controller did, written to the API in the background.
//!
//! The same news about the same object is one Event whose count grows. One object gets at most a burst of 25 and then one
//! every five minutes, so that a failing reconciler cannot flood the store.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client, Resource};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::reconcile::now;

/// Writes Events in the name of the controllers.
#[derive(Clone)]
pub struct Recorder {
    news: mpsc::Sender<News>,
}

/// Whether an Event reports business as usual.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Severity {
    /// Business as usual.
    Normal,
    /// Somebody should look.
    Warning,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct News {
    component: &'static str,
    involved: Involved,
    severity: Severity,
    reason: &'static str,
    message: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Involved {
    api_version: String,
    kind: String,
    namespace: Option<String>,
    name: String,
    uid: Option<String>,
    resource_version: Option<String>,
}

impl Recorder {
    /// A recorder and the task that writes for it until `cancel` is cancelled.
    pub fn new(client: Client, cancel: CancellationToken) -> (Self, impl Future<Output = ()> + Send) {
        let (news, receiver) = mpsc::channel(1024);
        (Self { news }, write(client, receiver, cancel))
    }

    /// Reports `message` about `object`; dropped where the writer is far behind.
    pub fn report<K: Resource<DynamicType = ()>>(
        &self,
        component: &'static str,
        object: &K,
        severity: Severity,
        reason: &'static str,
        message: impl Into<String>,
    ) {
        let meta = object.meta();
        let involved = ObjectReference {
            api_version: Some(K::api_version(&()).into_owned()),
            kind: Some(K::kind(&()).into_owned()),
            namespace: meta.namespace.clone(),
            name: meta.name.clone(),
            uid: meta.uid.clone(),
            resource_version: meta.resource_version.clone(),
            field_path: None,
        };
        self.report_about(component, involved, severity, reason, message);
    }

    /// As [`Recorder::report`], about an object of any kind.
    pub fn report_about(
        &self,
        component: &'static str,
        involved: ObjectReference,
        severity: Severity,
        reason: &'static str,
        message: impl Into<String>,
    ) {
        let involved = Involved {
            api_version: involved.api_version.unwrap_or_default(),
            kind: involved.kind.unwrap_or_default(),
            namespace: involved.namespace,
            name: involved.name.unwrap_or_default(),
            uid: involved.uid,
            resource_version: involved.resource_version,
        };
        let news = News { component, involved, severity, reason, message: message.into() };
        if self.news.try_send(news).is_err() {
            tracing::debug!(reason, "event dropped: the writer is behind");
        }
    }
}

const REMEMBERED_MAX: usize = 2048;
const BURST: f64 = 25.0;
const REFILL_PER_SECOND: f64 = 1.0 / 300.0;

/// Which Events were written lately, and how often each object was in the news.
#[derive(Default)]
struct Memory {
    written: HashMap<News, (String, i32, Time)>,
    order: VecDeque<News>,
    tokens: HashMap<Involved, (f64, Instant)>,
}

impl Memory {
    fn admit(&mut self, involved: &Involved, now: Instant) -> bool {
        if self.tokens.len() > REMEMBERED_MAX {
            self.tokens.retain(|_, (_, at)| now.duration_since(*at) < Duration::from_secs(600));
        }
        let (tokens, at) = self.tokens.entry(involved.clone()).or_insert((BURST, now));
        *tokens = (*tokens + now.duration_since(*at).as_secs_f64() * REFILL_PER_SECOND).min(BURST);
        *at = now;
        if *tokens < 1.0 {
            return false;
        }
        *tokens -= 1.0;
        true
    }

    fn remember(&mut self, news: News, name: String, count: i32, first: Time) {
        if self.written.insert(news.clone(), (name, count, first)).is_none() {
            self.order.push_back(news);
        }
        if self.order.len() > REMEMBERED_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.written.remove(&oldest);
        }
    }
}

async fn write(client: Client, mut receiver: mpsc::Receiver<News>, cancel: CancellationToken) {
    let mut memory = Memory::default();
    loop {
        let mut news = tokio::select! {
            () = cancel.cancelled() => return,
            news = receiver.recv() => match news {
                Some(news) => news,
                None => return,
            },
        };
        // The version is for readers of the Event; two reports about two versions are still the same news.
        let resource_version = news.involved.resource_version.take();
        if !memory.admit(&news.involved, Instant::now()) {
            continue;
        }
        if let Err(error) = write_one(&client, &mut memory, news, resource_version).await {
            tracing::debug!(%error, "cannot write an event");
        }
    }
}

async fn write_one(
    client: &Client,
    memory: &mut Memory,
    news: News,
    resource_version: Option<String>,
) -> kube::Result<()> {
    let namespace = news.involved.namespace.clone().unwrap_or_else(|| "default".to_owned());
    let api = Api::<Event>::namespaced(client.clone(), &namespace);
    if let Some((name, count, first)) = memory.written.get(&news).cloned() {
        let patch = serde_json::json!({ "count": count + 1, "lastTimestamp": now() });
        match api.patch(&name, &PatchParams::default(), &Patch::Merge(patch)).await {
            Ok(_) => {
                memory.remember(news, name, count + 1, first);
                return Ok(());
            }
            Err(kube::Error::Api(status)) if status.is_not_found() => {}
            Err(error) => return Err(error),
        }
    }
    let event = event(&news, &namespace, resource_version);
    let name = event.metadata.name.clone().unwrap_or_default();
    let first = event.first_timestamp.clone().unwrap_or_else(now);
    api.create(&PostParams::default(), &event).await?;
    memory.remember(news, name, 1, first);
    Ok(())
}

fn event(news: &News, namespace: &str, resource_version: Option<String>) -> Event {
    let nanoseconds = k8s_openapi::jiff::Timestamp::now().as_nanosecond();
    let now = now();
    Event {
        metadata: ObjectMeta {
            name: Some(format!("{}.{nanoseconds:x}", news.involved.name)),
            namespace: Some(namespace.to_owned()),
            ..ObjectMeta::default()
        },
        involved_object: ObjectReference {
            api_version: Some(news.involved.api_version.clone()),
            kind: Some(news.involved.kind.clone()),
            namespace: news.involved.namespace.clone(),
            name: Some(news.involved.name.clone()),
            uid: news.involved.uid.clone(),
            resource_version,
            field_path: None,
        },
        reason: Some(news.reason.to_owned()),
        message: Some(news.message.clone()),
        source: Some(EventSource { component: Some(news.component.to_owned()), host: None }),
        reporting_component: Some(news.component.to_owned()),
        reporting_instance: Some(String::new()),
        type_: Some(match news.severity {
            Severity::Normal => "Normal".to_owned(),
            Severity::Warning => "Warning".to_owned(),
        }),
        count: Some(1),
        first_timestamp: Some(now.clone()),
        last_timestamp: Some(now),
        ..Event::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn involved(name: &str) -> Involved {
        Involved {
            api_version: "v1".into(),
            kind: "Pod".into(),
            namespace: Some("ns".into()),
            name: name.into(),
            uid: None,
            resource_version: None,
        }
    }

    #[test]
    fn a_flood_about_one_object_does_not_silence_another() {
        let (mut memory, now) = (Memory::default(), Instant::now());
        let admitted = (0..100).filter(|_| memory.admit(&involved("a"), now)).count();
        assert_eq!(admitted, 25);
        assert!(memory.admit(&involved("b"), now));
        assert!(memory.admit(&involved("a"), now + Duration::from_secs(301)));
    }

    #[test]
    fn memory_of_written_events_is_bounded() {
        let mut memory = Memory::default();
        for n in 0..(REMEMBERED_MAX + 10) {
            let news = News {
                component: "test",
                involved: involved("a"),
                severity: Severity::Normal,
                reason: "Because",
                message: n.to_string(),
            };
            memory.remember(news, String::new(), 1, now());
        }
        assert_eq!(memory.written.len(), REMEMBERED_MAX);
    }
}
