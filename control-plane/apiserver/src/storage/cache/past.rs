//! What happened before the server started, as far back as the store knows: read beside the server's first requests, so that
//! it is ready without it, and watches resume over the restart all the same.

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
    time::Instant,
};

use futures::StreamExt as _;

use super::{Cache, Event, Object, feed, resource::Resource};
use crate::storage::{
    Change, Revision, Storage, StorageError, WatchItem, WatchStream,
    keys::{REGISTRY, resource_of},
};

/// Reads the changes up to `until`, which is where the cache began, into the resources' histories. There must be a change
/// after it, or one to come.
pub(super) async fn read(
    storage: &dyn Storage,
    cache: &Weak<Cache>,
    until: Revision,
) -> Result<(), StorageError> {
    let (stream, oldest) = open_oldest(storage).await?;
    let mut past = Past::default();
    let mut stream = stream.ready_chunks(feed::TOGETHER_MAX);
    'all: while let Some(items) = stream.next().await {
        let Some(cache) = cache.upgrade() else { return Ok(()) };
        for item in items {
            match item? {
                WatchItem::Change(change) if change.revision <= until => past.add(&cache, &change),
                WatchItem::Progress(revision) if revision < until => {}
                WatchItem::Change(_) | WatchItem::Progress(_) => break 'all,
            }
        }
        // The server's requests come first.
        tokio::task::yield_now().await;
    }
    if let Some(cache) = cache.upgrade() {
        past.show(&cache, oldest, until);
    }
    Ok(())
}

#[derive(Default)]
struct Past {
    events: HashMap<Arc<str>, Vec<Arc<Event>>>,
    /// The version of each key that the last change made.
    last: HashMap<Arc<str>, Arc<Object>>,
}

impl Past {
    fn add(&mut self, cache: &Cache, change: &Change) {
        let Some(prefix) = resource_of(&change.key) else { return };
        let known = [self.last.get(&change.key).cloned(), cache.get(&change.key)];
        let Some(event) = feed::event(change, &known) else { return };
        self.last.insert(Arc::clone(event.object.key()), Arc::clone(&event.object));
        let events = match self.events.get_mut(prefix) {
            Some(events) => events,
            None => {
                // All of its objects may be gone: its history is not.
                cache.resource(prefix);
                self.events.entry(prefix.into()).or_default()
            }
        };
        events.push(Arc::new(event));
    }

    fn show(mut self, cache: &Cache, oldest: Revision, until: Revision) {
        // First, so that a resource that is made meanwhile is made with it.
        *cache.oldest.write().expect("no code panics while it holds this lock") = oldest;
        let all: Vec<Arc<Resource>> = {
            let resources = cache.resources.read().expect("no code panics while it holds this lock");
            resources.values().cloned().collect()
        };
        let now = Instant::now();
        for resource in all {
            let events = self.events.remove(resource.prefix()).unwrap_or_default();
            resource.remember_before(until, oldest, events, now);
        }
    }
}

/// A watch from the oldest revision that the store still holds.
async fn open_oldest(storage: &dyn Storage) -> Result<(WatchStream, Revision), StorageError> {
    let mut after = Revision(1);
    loop {
        match storage.watch(REGISTRY, after).await {
            Ok(stream) => return Ok((stream, after)),
            // Compaction may go on while we ask.
            Err(StorageError::Compacted { oldest, .. }) if oldest > after => after = oldest,
            Err(error) => return Err(error),
        }
    }
}
