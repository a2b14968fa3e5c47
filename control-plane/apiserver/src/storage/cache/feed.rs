//! The one task that follows the store and keeps the cache current, in revision order.

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use futures::{StreamExt, stream::ReadyChunks};
use tokio_util::sync::CancellationToken;

use super::{Cache, Event, EventKind, Object, ObjectMap, resource::Resource};
use crate::storage::{
    Change, Revision, Storage, StorageError, WatchItem, WatchStream,
    keys::{REGISTRY, resource_of},
};

const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(2);
/// Changes that wait are taken in together, at most so many: a watcher is woken once for all of them, which is most of what
/// an event costs.
pub(super) const TOGETHER_MAX: usize = 64;

pub(super) struct Feed {
    cache: Weak<Cache>,
    storage: Arc<dyn Storage>,
    stream: ReadyChunks<WatchStream>,
    /// The newest change that was delivered, or what the stream began after.
    position: Revision,
}

impl Feed {
    /// Lists everything and opens the stream of what follows; what was before comes later, as [`super::past`].
    pub(super) async fn load(cache: &Arc<Cache>) -> Result<Self, StorageError> {
        let storage = cache.storage.clone();
        let (objects, loaded) = everything(&*storage).await?;
        let stream = storage.watch(REGISTRY, loaded).await?.ready_chunks(TOGETHER_MAX);
        show(cache, objects, loaded);
        cache.applied.send_replace(loaded);
        Ok(Self { cache: Arc::downgrade(cache), storage, stream, position: loaded })
    }

    /// Where the stream began, before it was followed.
    pub(super) fn position(&self) -> Revision {
        self.position
    }

    pub(super) async fn run(mut self, stop: CancellationToken) {
        loop {
            let items = tokio::select! {
                () = stop.cancelled() => return,
                items = self.stream.next() => items,
            };
            let Some(cache) = self.cache.upgrade() else { return };
            let goes_on = items.is_some_and(|items| self.take(&cache, items));
            drop(cache);
            if !goes_on {
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = self.reopen() => {}
                }
            }
        }
    }

    /// Takes in what came; whether the stream goes on.
    fn take(&mut self, cache: &Cache, items: Vec<Result<WatchItem, StorageError>>) -> bool {
        let mut groups = Groups::default();
        let mut failure = None;
        for item in items {
            let revision = match item {
                Ok(WatchItem::Change(change)) => {
                    groups.add(cache, &change);
                    change.revision
                }
                Ok(WatchItem::Progress(revision)) => revision,
                Err(error) => {
                    failure = Some(error);
                    break;
                }
            };
            self.position = self.position.max(revision);
        }
        groups.apply();
        cache.applied.send_if_modified(|applied| {
            let newer = self.position > *applied;
            *applied = self.position.max(*applied);
            newer
        });
        if let Some(error) = &failure {
            tracing::warn!(%error, position = self.position.0, "the store's watch ended; opening it again");
        }
        failure.is_none()
    }

    /// Opens the stream after the last delivered change; where history is gone, loads everything anew.
    async fn reopen(&mut self) {
        let mut wait = RETRY_FIRST;
        loop {
            match self.storage.watch(REGISTRY, self.position).await {
                Ok(stream) => {
                    self.stream = stream.ready_chunks(TOGETHER_MAX);
                    return;
                }
                Err(StorageError::Compacted { .. }) => match self.reload().await {
                    Ok(()) => return,
                    Err(error) => tracing::warn!(%error, "the store cannot be read; trying again"),
                },
                Err(error) => tracing::warn!(%error, "the store cannot be watched; trying again"),
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(RETRY_MAX);
        }
    }

    async fn reload(&mut self) -> Result<(), StorageError> {
        let Some(cache) = self.cache.upgrade() else { return Ok(()) };
        let (objects, revision) = everything(&*self.storage).await?;
        let stream = self.storage.watch(REGISTRY, revision).await?;
        show(&cache, objects, revision);
        self.stream = stream.ready_chunks(TOGETHER_MAX);
        self.position = revision;
        cache.applied.send_replace(revision);
        tracing::warn!(revision = revision.0, "the store's history was lost; all watches begin anew");
        Ok(())
    }
}

/// Events that are taken in together, those of each resource in their order.
#[derive(Default)]
pub(super) struct Groups(Vec<(Arc<Resource>, Vec<Arc<Event>>)>);

impl Groups {
    pub(super) fn add(&mut self, cache: &Cache, change: &Change) {
        if resource_of(&change.key).is_none() {
            return;
        }
        let resource = cache.resource(&change.key);
        let at = self.0.iter().position(|(known, _)| Arc::ptr_eq(known, &resource)).unwrap_or_else(|| {
            self.0.push((resource, Vec::new()));
            self.0.len() - 1
        });
        let (resource, events) = &mut self.0[at];
        let earlier = events.iter().rev().find(|event| **event.object.key() == *change.key);
        let newest =
            earlier.map_or_else(|| resource.get(&change.key), |event| Some(Arc::clone(&event.object)));
        if let Some(event) = event(change, &[newest]) {
            events.push(Arc::new(event));
        }
    }

    pub(super) fn apply(self) {
        let now = Instant::now();
        for (resource, events) in self.0 {
            resource.apply(&events, now);
        }
    }
}

/// The objects of each resource by its prefix.
type Objects = HashMap<String, ObjectMap>;

/// All objects as of one revision.
async fn everything(storage: &dyn Storage) -> Result<(Objects, Revision), StorageError> {
    let mut scan = storage.scan(REGISTRY).await?;
    let mut objects = Objects::new();
    while let Some(batch) = scan.batches.next().await {
        for stored in batch? {
            let Some(prefix) = resource_of(&stored.key) else { continue };
            let object = Object::from_stored(&stored).map_err(|error| super::damaged(&stored.key, &error))?;
            let known = match objects.get_mut(prefix) {
                Some(known) => known,
                None => objects.entry(prefix.to_owned()).or_default(),
            };
            known.insert(Arc::new(object));
        }
    }
    Ok((objects, scan.revision))
}

/// Makes the cache show exactly these objects, one resource after the other, with a history that begins at `oldest`.
fn show(cache: &Cache, mut objects: Objects, oldest: Revision) {
    *cache.oldest.write().expect("no code panics while it holds this lock") = oldest;
    for prefix in cache.resources.read().expect("no code panics while it holds this lock").keys() {
        objects.entry(prefix.to_string()).or_default();
    }
    for (prefix, objects) in objects {
        cache.resource(&prefix).reset(objects, oldest);
    }
}

/// The event of a change. Versions that are known are shared, not parsed again.
pub(super) fn event(change: &Change, known: &[Option<Arc<Object>>]) -> Option<Event> {
    let version = |bytes: &[u8], revision| match known.iter().flatten().find(|one| one.revision() == revision)
    {
        Some(known) => Some(Arc::clone(known)),
        None => match Object::new(change.key.clone(), revision, bytes) {
            Ok(object) => Some(Arc::new(object)),
            Err(error) => {
                tracing::error!(key = %change.key, %error, "the store holds a value that is no object; it is not shown");
                None
            }
        },
    };
    let previous = match &change.previous {
        Some(stored) => Some(version(&stored.value, stored.revision)?),
        None => None,
    };
    let kind = match (&change.value, &previous) {
        (Some(_), None) => EventKind::Added,
        (Some(_), Some(_)) => EventKind::Modified,
        (None, _) => EventKind::Deleted,
    };
    let object = match (&change.value, &previous) {
        (Some(bytes), _) => version(bytes, change.revision)?,
        (None, Some(previous)) => Arc::new(previous.deleted_at(change.revision)),
        (None, None) => return None,
    };
    Some(Event { kind, object, previous, revision: change.revision })
}
