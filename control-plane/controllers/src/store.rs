//! A shared, read-your-writes view of one kind of object.
//!
//! One watch feeds a [`Store`]; every controller reads it and subscribes to its changes. A controller puts what the API
//! answered to its own writes into the store at once ([`Store::observe`], [`Store::forget`]), so its next look sees them:
//! resource versions are growing integers, which makes the merge of the two sources a comparison. That is why the
//! controllers need no separate bookkeeping of expected creations and deletions.
//!
//! Handlers run inside the change and only mark keys as dirty; they must not block.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;
use std::fmt::Debug;
use std::hash::Hash;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use futures::StreamExt;
use kube::runtime::watcher;
use kube::{Api, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Names one object of a kind; the namespace is empty for cluster-scoped kinds.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// Namespace, or empty.
    pub namespace: String,
    /// Name of the object.
    pub name: String,
}

impl Key {
    /// A key from its two parts.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }

    /// The key of a cluster-scoped object.
    pub fn cluster(name: impl Into<String>) -> Self {
        Self::new("", name)
    }

    /// The key of `object`.
    pub fn of<K: Resource>(object: &K) -> Self {
        Self::new(
            object.meta().namespace.clone().unwrap_or_default(),
            object.meta().name.clone().unwrap_or_default(),
        )
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            f.write_str(&self.name)
        } else {
            write!(f, "{}/{}", self.namespace, self.name)
        }
    }
}

type Handler<K> = Box<dyn Fn(Option<&Arc<K>>, Option<&Arc<K>>) + Send + Sync>;

/// The objects of one kind, as last seen.
pub struct Store<K> {
    inner: RwLock<Inner<K>>,
    handlers: RwLock<Vec<Handler<K>>>,
    synced: watch::Sender<bool>,
}

struct Inner<K> {
    objects: BTreeMap<Key, Arc<K>>,
    /// Keys of the objects that a controller owns, by the uid of that controller.
    keys_by_owner: HashMap<String, BTreeSet<Key>>,
    /// The newest version that the watch itself has delivered.
    version_watched: u64,
    /// Uids that a controller has seen vanish before the watch said so.
    gone: HashSet<String>,
    /// Objects of a list in progress.
    listing: Option<BTreeMap<Key, Arc<K>>>,
}

impl<K: Resource> Default for Store<K> {
    fn default() -> Self {
        let inner = Inner {
            objects: BTreeMap::new(),
            keys_by_owner: HashMap::new(),
            version_watched: 0,
            gone: HashSet::new(),
            listing: None,
        };
        Self { inner: RwLock::new(inner), handlers: RwLock::default(), synced: watch::Sender::new(false) }
    }
}

impl<K: Resource> Store<K> {
    /// The object named by `key`.
    pub fn get(&self, key: &Key) -> Option<Arc<K>> {
        self.read(|inner| inner.objects.get(key).cloned())
    }

    /// All objects, ordered by key.
    pub fn all(&self) -> Vec<Arc<K>> {
        self.read(|inner| inner.objects.values().cloned().collect())
    }

    /// The objects of one namespace, ordered by name.
    pub fn in_namespace(&self, namespace: &str) -> Vec<Arc<K>> {
        let first = Key::new(namespace, "");
        self.read(|inner| {
            inner
                .objects
                .range(first..)
                .take_while(|(key, _)| key.namespace == namespace)
                .map(|(_, o)| o.clone())
                .collect()
        })
    }

    /// The objects whose controlling owner reference carries `uid`, ordered by key.
    pub fn owned_by(&self, uid: &str) -> Vec<Arc<K>> {
        self.read(|inner| {
            let keys = inner.keys_by_owner.get(uid).into_iter().flatten();
            keys.filter_map(|key| inner.objects.get(key).cloned()).collect()
        })
    }

    /// Calls `handler` with the object before and after each change from now on.
    pub fn subscribe(&self, handler: impl Fn(Option<&Arc<K>>, Option<&Arc<K>>) + Send + Sync + 'static) {
        self.handlers.write().unwrap_or_else(PoisonError::into_inner).push(Box::new(handler));
    }

    /// Whether the first complete list is in the store.
    pub fn is_synced(&self) -> bool {
        *self.synced.borrow()
    }

    /// Waits until the first complete list is in the store.
    pub async fn wait_synced(&self) {
        let mut synced = self.synced.subscribe();
        // The sender lives as long as `self`, so this cannot fail while we are borrowed.
        let _ = synced.wait_for(|synced| *synced).await;
    }

    /// Takes in the API's answer to a write, unless the watch has already gone past it.
    pub fn observe(&self, object: &K)
    where
        K: Clone,
    {
        let key = Key::of(object);
        let version = version(object);
        self.change(|inner| {
            if version <= inner.version_watched
                || inner.objects.get(&key).is_some_and(|o| self::version(&**o) >= version)
            {
                return Vec::new();
            }
            let object = Arc::new(object.clone());
            vec![(inner.insert(key, object.clone()), Some(object))]
        });
    }

    /// Takes out an object that the API said is gone, so that the next look does not count it.
    pub fn forget(&self, key: &Key, uid: &str) {
        self.change(|inner| {
            if inner.objects.get(key).is_none_or(|o| o.meta().uid.as_deref() != Some(uid)) {
                return Vec::new();
            }
            inner.gone.insert(uid.to_owned());
            vec![(inner.remove(key), None)]
        });
    }

    /// Applies one event of the watch.
    pub fn handle(&self, event: watcher::Event<K>) {
        match event {
            watcher::Event::Init => self.change(|inner| {
                inner.listing = Some(BTreeMap::new());
                Vec::new()
            }),
            watcher::Event::InitApply(object) => self.change(|inner| {
                inner.listing.get_or_insert_default().insert(Key::of(&object), Arc::new(object));
                Vec::new()
            }),
            watcher::Event::InitDone => {
                self.change(Inner::replace_by_listing);
                self.synced.send_replace(true);
            }
            watcher::Event::Apply(object) => self.change(|inner| inner.apply(object)),
            watcher::Event::Delete(object) => self.change(|inner| inner.delete(&object)),
        }
    }

    fn read<T>(&self, f: impl FnOnce(&Inner<K>) -> T) -> T {
        f(&self.inner.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn change(&self, f: impl FnOnce(&mut Inner<K>) -> Vec<Change<K>>) {
        let changes = f(&mut self.inner.write().unwrap_or_else(PoisonError::into_inner));
        if changes.is_empty() {
            return;
        }
        let handlers = self.handlers.read().unwrap_or_else(PoisonError::into_inner);
        for (old, new) in &changes {
            handlers.iter().for_each(|handler| handler(old.as_ref(), new.as_ref()));
        }
    }
}

type Change<K> = (Option<Arc<K>>, Option<Arc<K>>);

impl<K: Resource> Inner<K> {
    fn insert(&mut self, key: Key, object: Arc<K>) -> Option<Arc<K>> {
        let owner = owner_uid(&*object).map(str::to_owned);
        let old = self.objects.insert(key.clone(), object);
        let old_owner = old.as_deref().and_then(owner_uid).map(str::to_owned);
        if old_owner != owner {
            self.disown(old_owner, &key);
            if let Some(owner) = owner {
                self.keys_by_owner.entry(owner).or_default().insert(key);
            }
        }
        old
    }

    fn remove(&mut self, key: &Key) -> Option<Arc<K>> {
        let old = self.objects.remove(key);
        self.disown(old.as_deref().and_then(owner_uid).map(str::to_owned), key);
        old
    }

    fn disown(&mut self, owner: Option<String>, key: &Key) {
        let Some(owner) = owner else { return };
        if let Some(keys) = self.keys_by_owner.get_mut(&owner) {
            keys.remove(key);
            if keys.is_empty() {
                self.keys_by_owner.remove(&owner);
            }
        }
    }

    fn apply(&mut self, object: K) -> Vec<Change<K>> {
        let (key, version) = (Key::of(&object), version(&object));
        self.version_watched = self.version_watched.max(version);
        if object.meta().uid.as_ref().is_some_and(|uid| self.gone.contains(uid)) {
            return Vec::new();
        }
        let known = self.objects.get(&key).map(|o| self::version(&**o));
        if version != 0 && known.is_some_and(|known| known >= version) {
            return Vec::new();
        }
        let object = Arc::new(object);
        vec![(self.insert(key, object.clone()), Some(object))]
    }

    fn delete(&mut self, object: &K) -> Vec<Change<K>> {
        let key = Key::of(object);
        self.version_watched = self.version_watched.max(version(object));
        if let Some(uid) = &object.meta().uid {
            self.gone.remove(uid);
        }
        // A successor of the same name, observed from our own write, outlives the old object's deletion.
        if self.objects.get(&key).is_none_or(|known| known.meta().uid != object.meta().uid) {
            return Vec::new();
        }
        vec![(self.remove(&key), None)]
    }

    fn replace_by_listing(&mut self) -> Vec<Change<K>> {
        let listed = self.listing.take().unwrap_or_default();
        let version_listed = listed.values().map(|o| version(&**o)).max().unwrap_or(0);
        self.version_watched = self.version_watched.max(version_listed);
        self.gone.clear();
        let vanished: Vec<Key> = self
            .objects
            .iter()
            .filter(|(key, o)| !listed.contains_key(key) && version(&***o) <= self.version_watched)
            .map(|(key, _)| key.clone())
            .collect();
        let mut changes: Vec<Change<K>> = vanished.iter().map(|key| (self.remove(key), None)).collect();
        for (key, object) in listed {
            let known = self.objects.get(&key).map(|o| (version(&**o), o.meta().uid.clone()));
            if known.is_some_and(|(known, uid)| known >= version(&*object) && uid == object.meta().uid) {
                continue;
            }
            changes.push((self.insert(key, object.clone()), Some(object)));
        }
        changes
    }
}

/// Keeps `store` equal to what `api` serves until `cancel` is cancelled.
///
/// Starts with a streaming list; a server that refuses it is listed in pages instead.
pub async fn feed<K>(api: Api<K>, config: watcher::Config, store: Arc<Store<K>>, cancel: CancellationToken)
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
{
    let mut streaming = true;
    let mut pause = PAUSE_MIN;
    loop {
        let config = if streaming { config.clone().streaming_lists() } else { config.clone() };
        let mut events = std::pin::pin!(watcher::watcher(api.clone(), config));
        loop {
            let event = tokio::select! {
                () = cancel.cancelled() => return,
                event = events.next() => event,
            };
            match event {
                Some(Ok(event)) => {
                    pause = PAUSE_MIN;
                    store.handle(event.modify(|object| object.managed_fields_mut().clear()));
                }
                Some(Err(watcher::Error::WatchError(status))) if status.code == 410 => {}
                Some(Err(error)) => {
                    tracing::debug!(url = api.resource_url(), error = %error, "watch interrupted");
                    tokio::select! {
                        () = cancel.cancelled() => return,
                        () = tokio::time::sleep(pause) => {}
                    }
                    pause = (pause * 2).min(PAUSE_MAX);
                    if streaming && refuses_streaming(&error) {
                        streaming = false;
                        break;
                    }
                }
                None => break,
            }
        }
    }
}

const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(5);

fn refuses_streaming(error: &watcher::Error) -> bool {
    matches!(error, watcher::Error::WatchStartFailed(kube::Error::Api(status)) if status.code == 422 || status.code == 400)
}

/// The resource version as the number it is; 0 where it is absent or not one.
pub fn version<K: Resource>(object: &K) -> u64 {
    object.meta().resource_version.as_deref().and_then(|v| v.parse().ok()).unwrap_or(0)
}

/// The uid of the owner that controls `object`.
pub fn owner_uid<K: Resource>(object: &K) -> Option<&str> {
    let owners = object.meta().owner_references.as_deref().unwrap_or_default();
    owners.iter().find(|owner| owner.controller == Some(true)).map(|owner| owner.uid.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::runtime::watcher::Event;
    use proptest::prelude::*;

    fn object(name: &str, uid: &str, version: u64) -> ConfigMap {
        let mut object = ConfigMap::default();
        object.metadata.name = Some(name.into());
        object.metadata.namespace = Some("ns".into());
        object.metadata.uid = Some(uid.into());
        object.metadata.resource_version = Some(version.to_string());
        object
    }

    fn listed(objects: impl IntoIterator<Item = ConfigMap>) -> Store<ConfigMap> {
        let store = Store::default();
        store.handle(Event::Init);
        objects.into_iter().for_each(|o| store.handle(Event::InitApply(o)));
        store.handle(Event::InitDone);
        store
    }

    fn versions(store: &Store<ConfigMap>) -> Vec<(String, u64)> {
        store.all().iter().map(|o| (o.name_any(), version(&**o))).collect()
    }

    #[test]
    fn an_answer_older_than_the_watch_does_not_resurrect_an_object() {
        let store = listed([]);
        store.handle(Event::Apply(object("a", "1", 5)));
        store.handle(Event::Delete(object("a", "1", 6)));
        store.observe(&object("a", "1", 5));
        assert!(store.all().is_empty());
    }

    #[test]
    fn an_answer_ahead_of_the_watch_is_seen_at_once_and_not_undone_by_older_events() {
        let store = listed([object("a", "1", 5)]);
        store.observe(&object("a", "1", 9));
        store.handle(Event::Apply(object("a", "1", 7)));
        assert_eq!(versions(&store), [("a".to_owned(), 9)]);
    }

    #[test]
    fn a_forgotten_object_stays_away_until_its_deletion_is_watched() {
        let store = listed([object("a", "1", 5)]);
        store.forget(&Key::new("ns", "a"), "1");
        store.handle(Event::Apply(object("a", "1", 6)));
        assert!(store.all().is_empty());
        store.handle(Event::Delete(object("a", "1", 7)));
        store.handle(Event::Apply(object("a", "2", 8)));
        assert_eq!(versions(&store), [("a".to_owned(), 8)]);
    }

    #[test]
    fn a_new_list_reports_what_vanished() {
        let store = listed([object("a", "1", 5), object("b", "2", 6)]);
        let seen = Arc::new(RwLock::new(Vec::new()));
        let record = seen.clone();
        store.subscribe(move |old, new| record.write().unwrap().push((old.is_some(), new.is_some())));
        store.handle(Event::Init);
        store.handle(Event::InitApply(object("b", "2", 6)));
        store.handle(Event::InitDone);
        assert_eq!(*seen.read().unwrap(), [(true, false)]);
        assert_eq!(versions(&store), [("b".to_owned(), 6)]);
    }

    proptest! {
        /// Writes to one name happen in version order; the watch lags behind the answers by any amount.
        #[test]
        fn any_interleaving_of_answers_and_watch_ends_at_the_last_write(
            writes in prop::collection::vec(any::<bool>(), 1..20),
            lag in prop::collection::vec(0_usize..4, 20),
        ) {
            let store = listed([]);
            let mut history = Vec::new();
            let (mut alive, mut incarnation) = (false, 0);
            for (at, delete) in writes.iter().enumerate() {
                let at_version = at as u64 + 1;
                if *delete && alive {
                    alive = false;
                    history.push(Event::Delete(object("a", &incarnation.to_string(), at_version)));
                } else {
                    if !alive { incarnation += 1; }
                    alive = true;
                    history.push(Event::Apply(object("a", &incarnation.to_string(), at_version)));
                }
            }
            let mut watched = 0;
            for (at, event) in history.iter().enumerate() {
                match event {
                    Event::Apply(o) => store.observe(o),
                    Event::Delete(o) => store.forget(&Key::new("ns", "a"), o.metadata.uid.as_deref().unwrap()),
                    Event::Init | Event::InitApply(_) | Event::InitDone => unreachable!(),
                }
                for _ in 0..lag[at] {
                    if watched <= at { store.handle(history[watched].clone()); watched += 1; }
                }
            }
            history[watched..].iter().for_each(|event| store.handle(event.clone()));
            let last = match history.last().unwrap() {
                Event::Apply(o) => vec![("a".to_owned(), version(o))],
                _ => Vec::new(),
            };
            prop_assert_eq!(versions(&store), last);
        }
    }
}
