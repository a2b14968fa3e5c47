//! The watch cache: everything that the server reads, in memory, in front of a [`Storage`].
//!
//! One feed follows the store; every write appears here, in revision order, in the resource's objects (copy-on-write,
//! so that a LIST is a snapshot), in its recent history (so that a WATCH resumes) and at its watchers. An object version is
//! encoded once and shared. Writes go through the cache and return when it shows them, so a caller reads its own writes.
//!
//! ```text
//! create ─> Storage ─> feed ─> Resource { objects, history, watchers }
//!    ^                                        |
//!    └────────── applied revision ────────────┘
//! ```

mod encodings;
mod feed;
mod index;
mod map;
mod object;
mod past;
mod resource;
mod watch;

use std::{
    collections::HashMap,
    sync::{
        Arc, RwLock, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use serde_json::Value;
use tokio::sync::watch as latest;
use tokio_util::sync::{CancellationToken, DropGuard};

use self::resource::Resource;
pub use self::{
    index::{IndexKey, ValueOf},
    map::ObjectMap,
    object::{Meta, Object, View},
    watch::{Delivery, Event, EventKind, Follower, Step, Watch},
};
use super::{Range, Revision, Storage, StorageError, keys};

/// How long a reader waits for a revision that the cache does not show yet.
pub const FRESHNESS_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a consistent read waits for the feed before it writes a barrier to learn where the feed is.
const BARRIER_AFTER: Duration = Duration::from_millis(200);
/// How long a watch that resumes waits for what happened before the start.
const PAST_TIMEOUT: Duration = Duration::from_secs(10);
/// A key that is no object's; writing it makes the feed say where it is.
pub(super) const BARRIER_KEY: &str = "/registry/.barrier";

/// The objects of a prefix as of one revision.
#[derive(Clone)]
pub struct Snapshot {
    objects: ObjectMap,
    prefix: String,
    pub revision: Revision,
}

impl Snapshot {
    /// All objects, in key order.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Object>> {
        self.iter_from(&self.prefix)
    }

    /// The objects whose keys are `start` or after it.
    pub fn iter_from<'a>(&'a self, start: &str) -> impl Iterator<Item = &'a Arc<Object>> + use<'a> {
        let start = if start < self.prefix.as_str() { &self.prefix } else { start };
        let end = self.end();
        let is_bounded = end.is_some();
        let objects = self.objects.range(start, end.as_deref());
        objects.take_while(move |object| is_bounded || object.key().starts_with(&self.prefix))
    }

    pub fn get(&self, key: &str) -> Option<&Arc<Object>> {
        self.objects.get(key)
    }

    /// The same state with no object but that of `key`.
    pub fn only(mut self, key: &str) -> Self {
        let found = self.objects.get(key).cloned();
        self.objects = ObjectMap::default();
        self.objects.extend(found);
        self
    }

    pub fn len(&self) -> usize {
        self.remaining_from(&self.prefix)
    }

    pub fn is_empty(&self) -> bool {
        self.iter().next().is_none()
    }

    /// How many keys are `start` or after it.
    pub fn remaining_from(&self, start: &str) -> usize {
        let end = self.end().map_or(self.objects.len(), |end| self.objects.rank(&end));
        end.saturating_sub(self.objects.rank(start))
    }

    /// The first key after the prefix's, where it is a text.
    fn end(&self) -> Option<String> {
        keys::prefix_end(&self.prefix).and_then(|end| String::from_utf8(end).ok())
    }
}

/// See the module's documentation.
pub struct Cache {
    storage: Arc<dyn Storage>,
    resources: RwLock<HashMap<Box<str>, Arc<Resource>>>,
    /// Everything up to here is in the resources and at their watchers.
    applied: latest::Sender<Revision>,
    /// Where the history of a resource without events begins.
    oldest: RwLock<Revision>,
    /// Lists of states before this one are refused, as the store has forgotten them.
    forgotten: AtomicU64,
    /// Whether the histories have what happened before the start, or never will.
    has_past: latest::Sender<bool>,
    _feed: DropGuard,
}

impl Cache {
    /// Loads the store and follows it; returns when the cache shows everything written before the call.
    ///
    /// # Errors
    /// What the store answers; the cache needs a store that is there to begin with.
    pub async fn start(storage: Arc<dyn Storage>) -> Result<Arc<Self>, StorageError> {
        let stop = CancellationToken::new();
        let cache = Arc::new(Self {
            storage,
            resources: RwLock::default(),
            applied: latest::Sender::new(Revision(0)),
            oldest: RwLock::default(),
            forgotten: AtomicU64::new(0),
            has_past: latest::Sender::new(false),
            _feed: stop.clone().drop_guard(),
        });
        let feed = feed::Feed::load(&cache).await?;
        let began = feed.position();
        tokio::spawn(feed.run(stop.clone()));
        let barrier = cache.barrier().await?;
        cache.wait_for(barrier, FRESHNESS_TIMEOUT * 10).await?;
        tokio::spawn(stop.run_until_cancelled_owned(Self::read_past(
            cache.storage.clone(),
            Arc::downgrade(&cache),
            began,
        )));
        Ok(cache)
    }

    async fn read_past(storage: Arc<dyn Storage>, cache: Weak<Self>, until: Revision) {
        if let Err(error) = past::read(&*storage, &cache, until).await {
            tracing::warn!(%error, "what happened before the start cannot be read: watches from before it begin anew");
        }
        if let Some(cache) = cache.upgrade() {
            cache.has_past.send_replace(true);
        }
    }

    pub fn storage(&self) -> &Arc<dyn Storage> {
        &self.storage
    }

    /// Everything up to this revision can be read here.
    pub fn revision(&self) -> Revision {
        *self.applied.borrow()
    }

    /// The newest version that the cache shows.
    pub fn get(&self, key: &str) -> Option<Arc<Object>> {
        self.find(keys::resource_of(key)?)?.get(key)
    }

    /// The objects under a resource prefix, or a resource prefix with a namespace.
    pub fn list(&self, prefix: &str) -> Snapshot {
        // Read first: all events up to here are in the objects, and newer ones are at most as new as `newest`.
        let applied = self.revision();
        let (objects, newest) = self.resource(prefix).objects();
        Snapshot { objects, prefix: prefix.to_owned(), revision: applied.max(newest) }
    }

    /// As [`Cache::list`], but of objects that have another value by that key some or all may be missing.
    pub fn list_by(&self, prefix: &str, key: &IndexKey, value: &str, value_of: &ValueOf) -> Snapshot {
        let applied = self.revision();
        let (objects, newest) = self.resource(prefix).objects_by(key, value, value_of);
        Snapshot { objects, prefix: prefix.to_owned(), revision: applied.max(newest) }
    }

    /// The objects as they were after the write of `at`.
    ///
    /// # Errors
    /// [`StorageError::Compacted`] when that is too long ago, [`StorageError::Future`] when it is not written.
    pub async fn list_at(&self, prefix: &str, at: Revision) -> Result<Snapshot, StorageError> {
        self.wait_for(at, FRESHNESS_TIMEOUT).await?;
        let oldest = Revision(self.forgotten.load(Ordering::Relaxed));
        if at < oldest {
            return Err(StorageError::Compacted { requested: at, oldest });
        }
        if let Ok(objects) = self.resource(prefix).objects_at(at) {
            return Ok(Snapshot { objects, prefix: prefix.to_owned(), revision: at });
        }
        let range = Range { prefix: prefix.to_owned(), at: Some(at), ..Range::default() };
        let mut objects = ObjectMap::default();
        for stored in self.storage.list(range).await?.items {
            objects.insert(Arc::new(
                Object::from_stored(&stored).map_err(|error| damaged(&stored.key, &error))?,
            ));
        }
        Ok(Snapshot { objects, prefix: prefix.to_owned(), revision: at })
    }

    /// The newest event of a resource: changes when, and only when, the resource does.
    pub fn newest(&self, prefix: &str) -> Revision {
        self.resource(prefix).newest()
    }

    /// Lists of states before `revision` are refused from now on, whatever is still in memory: the store was compacted
    /// to it, and clients that page are to be told so whichever server they ask.
    pub fn forget_before(&self, revision: Revision) {
        self.forgotten.fetch_max(revision.0, Ordering::Relaxed);
    }

    /// Waits until the cache shows `revision`.
    ///
    /// # Errors
    /// [`StorageError::Future`] when the cache does not show it after `timeout`.
    pub async fn wait_for(&self, revision: Revision, timeout: Duration) -> Result<(), StorageError> {
        if self.revision() >= revision {
            return Ok(());
        }
        let mut applied = self.applied.subscribe();
        let shown = applied.wait_for(|applied| *applied >= revision);
        match tokio::time::timeout(timeout, shown).await {
            Ok(_) => Ok(()),
            Err(_) => Err(StorageError::Future { requested: revision, current: self.revision() }),
        }
    }

    /// Waits until the cache shows every write that any server had acknowledged before the call.
    ///
    /// # Errors
    /// What the store answers; [`StorageError::Future`] when the feed does not get there in [`FRESHNESS_TIMEOUT`].
    pub async fn fresh(&self) -> Result<Revision, StorageError> {
        let newest = self.storage.revision().await?;
        if self.wait_for(newest, BARRIER_AFTER).await.is_err() {
            // The store's revision also counts writes outside our keys (a shared etcd): those never come.
            let barrier = self.barrier().await?;
            self.wait_for(barrier, FRESHNESS_TIMEOUT).await?;
        }
        Ok(self.revision())
    }

    /// Follows a prefix: every event after `after` that history still holds, then every event as it happens; `None`
    /// begins now.
    ///
    /// # Errors
    /// [`StorageError::Compacted`] when history no longer reaches back to `after`.
    pub fn watch(&self, prefix: &str, after: Option<Revision>) -> Result<Watch, StorageError> {
        let (backlog, receiver) = self.resource(prefix).watch(prefix, after)?;
        Ok(Watch {
            backlog,
            receiver,
            applied: self.applied.subscribe(),
            after: after.unwrap_or_default(),
            bookmarks: None,
            ended: false,
        })
    }

    /// As [`Cache::watch`], and waits for what happened before the server started where the watch begins there.
    ///
    /// # Errors
    /// As [`Cache::watch`].
    pub async fn resume(&self, prefix: &str, after: Revision) -> Result<Watch, StorageError> {
        let mut has_past = self.has_past.subscribe();
        // Without it the watch is refused, as what is too long ago is.
        drop(tokio::time::timeout(PAST_TIMEOUT, has_past.wait_for(|has_past| *has_past)).await);
        self.watch(prefix, Some(after))
    }

    /// Stores a new object and returns it as the cache shows it. `metadata.resourceVersion` is taken out.
    ///
    /// # Errors
    /// [`StorageError::Exists`] and what the store answers.
    pub async fn create(&self, key: &str, value: Value) -> Result<Arc<Object>, StorageError> {
        let bytes = encode(key, value)?;
        let revision = self.storage.create(key, bytes.clone()).await?;
        self.written(key, revision, &bytes).await
    }

    /// Replaces the version of revision `expected`. Writing what is stored already changes nothing: no revision, no event.
    ///
    /// # Errors
    /// [`StorageError::Conflict`] when the object changed or is gone; by then the cache shows what is there.
    pub async fn update(
        &self,
        key: &str,
        expected: Revision,
        value: Value,
    ) -> Result<Arc<Object>, StorageError> {
        let bytes = encode(key, value)?;
        if let Some(object) = self.get(key)
            && object.revision() == expected
            && object.stored() == bytes
        {
            return Ok(object);
        }
        match self.storage.update(key, expected, bytes.clone()).await {
            Ok(revision) => self.written(key, revision, &bytes).await,
            Err(error) => Err(self.refused(error).await),
        }
    }

    /// Deletes the version of revision `expected`; returns the revision of the deletion.
    ///
    /// # Errors
    /// As [`Cache::update`].
    pub async fn delete(&self, key: &str, expected: Revision) -> Result<Revision, StorageError> {
        match self.storage.delete(key, expected).await {
            Ok(revision) => {
                self.wait_for(revision, FRESHNESS_TIMEOUT).await?;
                Ok(revision)
            }
            Err(error) => Err(self.refused(error).await),
        }
    }

    async fn written(
        &self,
        key: &str,
        revision: Revision,
        bytes: &Bytes,
    ) -> Result<Arc<Object>, StorageError> {
        // The write is acknowledged whatever the feed does, so a feed that is late is no error of the write.
        if self.wait_for(revision, FRESHNESS_TIMEOUT).await.is_err() {
            tracing::warn!(key, revision = revision.0, "the cache did not show a write in time");
        }
        match self.get(key) {
            Some(object) if object.revision() == revision => Ok(object),
            _ => Object::new(key.into(), revision, bytes).map(Arc::new).map_err(|error| damaged(key, &error)),
        }
    }

    /// Makes the cache show what a refused write met, so that a caller who reads again sees it.
    async fn refused(&self, error: StorageError) -> StorageError {
        if let StorageError::Conflict { current, .. } = &error {
            let shown = match current {
                Some(stored) => self.wait_for(stored.revision, FRESHNESS_TIMEOUT).await,
                None => self.fresh().await.map(drop),
            };
            if let Err(late) = shown {
                tracing::warn!(%late, "the cache does not show what a refused write met");
            }
        }
        error
    }

    /// A revision that the feed is sure to deliver and that no earlier acknowledged write is after.
    async fn barrier(&self) -> Result<Revision, StorageError> {
        let began = self.storage.revision().await?;
        let now = || Bytes::from(uuid::Uuid::new_v4().to_string());
        loop {
            let written = match self.storage.get(BARRIER_KEY).await? {
                Some(stored) => self.storage.update(BARRIER_KEY, stored.revision, now()).await,
                None => self.storage.create(BARRIER_KEY, now()).await,
            };
            match written {
                Ok(revision) => return Ok(revision),
                Err(StorageError::Exists { .. }) => {}
                // Another server's barrier is as good, when it was written after this call began.
                Err(StorageError::Conflict { current: Some(stored), .. }) if stored.revision > began => {
                    return Ok(stored.revision);
                }
                Err(StorageError::Conflict { .. }) => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn find(&self, prefix: &str) -> Option<Arc<Resource>> {
        self.resources.read().expect("no code panics while it holds this lock").get(prefix).cloned()
    }

    /// The resource that a prefix lies in, made when it is new.
    fn resource(&self, prefix: &str) -> Arc<Resource> {
        let prefix = keys::resource_of(prefix).unwrap_or(prefix);
        if let Some(resource) = self.find(prefix) {
            return resource;
        }
        let oldest = *self.oldest.read().expect("no code panics while it holds this lock");
        let mut resources = self.resources.write().expect("no code panics while it holds this lock");
        resources.entry(prefix.into()).or_insert_with(|| Arc::new(Resource::new(prefix, oldest))).clone()
    }
}

fn encode(key: &str, mut value: Value) -> Result<Bytes, StorageError> {
    match value.get_mut("metadata").and_then(Value::as_object_mut) {
        Some(metadata) => {
            metadata.remove("resourceVersion");
        }
        None => {
            return Err(StorageError::Damaged { detail: format!("{key} would be stored without metadata") });
        }
    }
    Ok(serde_json::to_vec(&value).expect("a JSON value with string keys always encodes").into())
}

fn damaged(key: &str, error: &serde_json::Error) -> StorageError {
    StorageError::Damaged { detail: format!("the value of {key} is not an object: {error}") }
}

#[cfg(test)]
mod tests;
