//! Watches of the API server that never give up, and lists that are complete.

use std::fmt::Debug;
use std::time::Duration;

use futures::StreamExt;
use kube::runtime::watcher;
use kube::{Api, Resource};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;

const RETRY_MIN: Duration = Duration::from_millis(250);
const RETRY_MAX: Duration = Duration::from_secs(5);

/// Follows a resource for ever and hands its events on. The objects that there are come one by one (KEP-3157), so that
/// 50,000 of them are never in memory at once; from a server that cannot do that, in one list.
pub fn spawn<K, E>(
    api: Api<K>,
    config: watcher::Config,
    sender: mpsc::UnboundedSender<E>,
    wrap: fn(watcher::Event<K>) -> E,
) where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
    K::DynamicType: Default,
    E: Send + 'static,
{
    tokio::spawn(async move {
        let kind = K::plural(&K::DynamicType::default()).into_owned();
        let mut stream = watcher(api.clone(), config.clone().streaming_lists()).boxed();
        let mut streams_lists = true;
        let mut delay = RETRY_MIN;
        let mut failing = false;
        while let Some(item) = stream.next().await {
            match item {
                Ok(event) => {
                    // A list only begins with it.
                    if !matches!(event, watcher::Event::Init) {
                        delay = RETRY_MIN;
                        if std::mem::take(&mut failing) {
                            tracing::info!(kind, "watching again");
                        }
                    }
                    if sender.send(wrap(event)).is_err() {
                        return;
                    }
                }
                Err(error) if streams_lists && refuses_streaming(&error) => {
                    tracing::info!(kind, error = chain(&error), "the server does not stream lists");
                    streams_lists = false;
                    stream = watcher(api.clone(), config.clone()).boxed();
                }
                Err(error) => {
                    if !std::mem::replace(&mut failing, true) {
                        tracing::warn!(kind, error = chain(&error), "watch failed; keeping what is known");
                    }
                    tokio::time::sleep(delay).await;
                    delay = (delay * 2).min(RETRY_MAX);
                }
            }
        }
    });
}

/// `sendInitialEvents` is invalid where the server has not the feature WatchList.
fn refuses_streaming(error: &watcher::Error) -> bool {
    use http::StatusCode;
    let watcher::Error::WatchStartFailed(kube::Error::Api(status)) = error else { return false };
    [StatusCode::BAD_REQUEST, StatusCode::UNPROCESSABLE_ENTITY]
        .iter()
        .any(|code| status.code == code.as_u16())
}

/// An error with its causes.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

/// What a watch event means for a store.
#[derive(Debug)]
pub enum Change<K> {
    /// These are all there are.
    All(Vec<K>),
    Apply(K),
    Delete(K),
}

/// Collects the objects of a list until it is complete.
#[derive(Debug)]
pub struct Listing<K> {
    pending: Vec<K>,
}

impl<K> Default for Listing<K> {
    fn default() -> Listing<K> {
        Listing { pending: Vec::new() }
    }
}

impl<K> Listing<K> {
    pub fn change(&mut self, event: watcher::Event<K>) -> Option<Change<K>> {
        match event {
            watcher::Event::Init => self.pending.clear(),
            watcher::Event::InitApply(object) => self.pending.push(object),
            watcher::Event::InitDone => return Some(Change::All(std::mem::take(&mut self.pending))),
            watcher::Event::Apply(object) => return Some(Change::Apply(object)),
            watcher::Event::Delete(object) => return Some(Change::Delete(object)),
        }
        None
    }
}
