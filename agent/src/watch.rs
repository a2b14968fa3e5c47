//! Watches of the API server that never give up, and lists that are complete.

use std::collections::HashSet;
use std::fmt::Debug;
use std::time::Duration;

use futures::StreamExt;
use kube::runtime::watcher;
use kube::{Api, Resource};
use proxy::ObjectName;
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

const RETRY_MIN: Duration = Duration::from_millis(250);
const RETRY_MAX: Duration = Duration::from_secs(5);
/// Events that wait to be taken. A server sends a list faster than it is taken: more of it waits there, not here.
const QUEUE: usize = 512;

/// What watches hand their events on through.
pub fn channel<E>() -> (mpsc::Sender<E>, mpsc::Receiver<E>) {
    mpsc::channel(QUEUE)
}

/// Follows a resource for ever and hands its events on. The objects that there are come one by one (KEP-3157), so that
/// 50,000 of them are never in memory at once; from a server that cannot do that, in one list.
pub fn spawn<K, E>(
    api: Api<K>,
    config: watcher::Config,
    sender: mpsc::Sender<E>,
    wrap: fn(watcher::Event<K>) -> E,
) -> AbortHandle
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
    K::DynamicType: Default,
    E: Send + 'static,
{
    spawn_telling(api, config, sender, wrap, || {})
}

/// As [`spawn`], and tells whenever the server did not answer.
pub fn spawn_telling<K, E>(
    api: Api<K>,
    config: watcher::Config,
    sender: mpsc::Sender<E>,
    wrap: fn(watcher::Event<K>) -> E,
    failed: impl Fn() + Send + 'static,
) -> AbortHandle
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
    K::DynamicType: Default,
    E: Send + 'static,
{
    let following = tokio::spawn(async move {
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
                    if sender.send(wrap(event)).await.is_err() {
                        return;
                    }
                }
                Err(error) if streams_lists && refuses_streaming(&error) => {
                    tracing::info!(kind, error = chain(&error), "the server does not stream lists");
                    streams_lists = false;
                    stream = watcher(api.clone(), config.clone()).boxed();
                }
                Err(error) => {
                    failed();
                    if !std::mem::replace(&mut failing, true) {
                        tracing::warn!(kind, error = chain(&error), "watch failed; keeping what is known");
                    }
                    tokio::time::sleep(delay).await;
                    delay = (delay * 2).min(RETRY_MAX);
                }
            }
        }
    });
    following.abort_handle()
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

/// What a watch event means for a store that takes a list object by object.
#[derive(Debug)]
pub enum Step<K> {
    Apply(K),
    Delete(K),
    /// A list is complete: what it did not name is gone.
    Listed(Named),
}

/// The names in a list.
#[derive(Debug)]
pub struct Named(Option<HashSet<ObjectName>>);

impl Named {
    pub fn contains(&self, name: &ObjectName) -> bool {
        self.0.as_ref().is_none_or(|names| names.contains(name))
    }
}

/// How far the list of a kind is.
#[derive(Debug, Default)]
pub struct Steps {
    lists: Lists,
    /// What the list that is under way has named so far. None for the first, before which nothing was known.
    named: Option<HashSet<ObjectName>>,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
enum Lists {
    #[default]
    None,
    Begun,
    Complete,
}

impl Steps {
    pub fn step<K: Resource>(&mut self, event: watcher::Event<K>) -> Option<Step<K>> {
        match event {
            watcher::Event::Init => {
                self.named = (self.lists != Lists::None).then(HashSet::new);
                self.lists = self.lists.max(Lists::Begun);
                None
            }
            watcher::Event::InitApply(object) => {
                if let Some(named) = &mut self.named {
                    named.insert(ObjectName::of(object.meta()));
                }
                Some(Step::Apply(object))
            }
            watcher::Event::InitDone => {
                self.lists = Lists::Complete;
                Some(Step::Listed(Named(self.named.take())))
            }
            watcher::Event::Apply(object) => Some(Step::Apply(object)),
            watcher::Event::Delete(object) => Some(Step::Delete(object)),
        }
    }

    /// Whether a list has ever been complete.
    pub fn complete(&self) -> bool {
        self.lists == Lists::Complete
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Service;
    use kube::api::ObjectMeta;

    use super::*;

    fn service(name: &str) -> Service {
        Service {
            metadata: ObjectMeta {
                namespace: Some("default".to_owned()),
                name: Some(name.to_owned()),
                ..ObjectMeta::default()
            },
            ..Service::default()
        }
    }

    fn named(name: &str) -> ObjectName {
        ObjectName { namespace: "default".to_owned(), name: name.to_owned() }
    }

    #[test]
    fn a_list_names_what_is_left_of_an_earlier_one_that_was_broken_off() {
        let mut steps = Steps::default();
        assert!(steps.step::<Service>(watcher::Event::Init).is_none());
        assert!(matches!(steps.step(watcher::Event::InitApply(service("a"))), Some(Step::Apply(_))));
        assert!(steps.step::<Service>(watcher::Event::Init).is_none());
        assert!(!steps.complete());
        assert!(matches!(steps.step(watcher::Event::InitApply(service("b"))), Some(Step::Apply(_))));
        let Some(Step::Listed(list)) = steps.step::<Service>(watcher::Event::InitDone) else {
            panic!("the list is complete")
        };
        assert!(steps.complete());
        assert!(list.contains(&named("b")) && !list.contains(&named("a")));
    }

    #[test]
    fn the_first_list_leaves_nothing_out() {
        let mut steps = Steps::default();
        steps.step::<Service>(watcher::Event::Init);
        steps.step(watcher::Event::InitApply(service("a")));
        let Some(Step::Listed(list)) = steps.step::<Service>(watcher::Event::InitDone) else {
            panic!("the list is complete")
        };
        assert!(list.contains(&named("a")));
        // A later one may.
        assert!(steps.step::<Service>(watcher::Event::Init).is_none());
        let Some(Step::Listed(list)) = steps.step::<Service>(watcher::Event::InitDone) else {
            panic!("the list is complete")
        };
        assert!(!list.contains(&named("a")) && steps.complete());
    }

    #[test]
    fn what_is_not_taken_waits_at_the_server() {
        let (sender, mut events) = channel();
        let sent = (0..).take_while(|event| sender.try_send(*event).is_ok()).count();
        assert_eq!(sent, QUEUE);
        assert_eq!(events.try_recv(), Ok(0));
        assert!(sender.try_send(sent).is_ok());
    }
}
