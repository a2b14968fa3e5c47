//! One resource in the cache: its objects, the recent history that watches resume from, and its watchers.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, RwLock, RwLockReadGuard, RwLockWriteGuard},
    time::{Duration, Instant},
};

use tokio::sync::mpsc;

use super::{
    Event, Object, ObjectMap,
    index::{Found, Index, IndexKey, Indexes, ValueOf},
};
use crate::storage::{Revision, StorageError};

/// Every event is kept this long at least, unless [`HISTORY_MAX`] are newer.
const HISTORY_AGE: Duration = Duration::from_secs(90);
/// So many events are kept however old they are.
const HISTORY_MIN: usize = 256;
const HISTORY_MAX: usize = 65_536;
/// A watcher that has this many undelivered events is ended.
pub(super) const WATCHER_BACKLOG_MAX: usize = 16_384;

pub(super) struct Resource {
    prefix: Arc<str>,
    state: RwLock<State>,
}

struct State {
    objects: ObjectMap,
    /// The same objects, for those who know the key.
    by_key: HashMap<Arc<str>, Arc<Object>>,
    indexes: Indexes,
    /// The newest event of this resource, or where its history begins.
    newest: Revision,
    /// Every event after this revision is in `history`.
    oldest: Revision,
    history: VecDeque<(Instant, Arc<Event>)>,
    watchers: Vec<Watcher>,
}

struct Watcher {
    prefix: Arc<str>,
    sender: mpsc::Sender<Arc<Event>>,
}

/// The events that history holds for a new watcher, and where the later ones come.
pub(super) type Registered = (VecDeque<Arc<Event>>, mpsc::Receiver<Arc<Event>>);

impl Resource {
    pub(super) fn new(prefix: &str, oldest: Revision) -> Self {
        let state = State {
            objects: ObjectMap::default(),
            by_key: HashMap::new(),
            indexes: Indexes::default(),
            newest: oldest,
            oldest,
            history: VecDeque::new(),
            watchers: Vec::new(),
        };
        Self { prefix: prefix.into(), state: RwLock::new(state) }
    }

    pub(super) fn prefix(&self) -> &str {
        &self.prefix
    }

    fn read(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().expect("no code panics while it holds this lock")
    }

    fn write(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().expect("no code panics while it holds this lock")
    }

    pub(super) fn get(&self, key: &str) -> Option<Arc<Object>> {
        self.read().by_key.get(key).cloned()
    }

    /// The objects now, and the newest event among them.
    pub(super) fn objects(&self) -> (ObjectMap, Revision) {
        let state = self.read();
        (state.objects.clone(), state.newest)
    }

    /// At least the objects that have a value, and the newest event of the resource.
    pub(super) fn objects_by(
        &self,
        key: &IndexKey,
        value: &str,
        value_of: &ValueOf,
    ) -> (ObjectMap, Revision) {
        let now = Instant::now();
        let (objects, newest) = {
            let mut state = self.write();
            let (count, newest) = (state.objects.len(), state.newest);
            match state.indexes.find(key, value, count, now) {
                Found::Objects(found) => return (found, newest),
                Found::Scan => return (state.objects.clone(), newest),
                Found::Build => (state.objects.clone(), newest),
            }
        };
        let mut index = Index::build(key.clone(), value_of.clone(), &objects, now);
        let mut state = self.write();
        // What happened while it was built is in history, unless that was very much.
        if newest >= state.oldest {
            let from = state.history.partition_point(|(_, event)| event.revision <= newest);
            for (_, event) in state.history.range(from..) {
                index.apply(event);
            }
            state.indexes.add(index);
        }
        (objects, newest)
    }

    pub(super) fn newest(&self) -> Revision {
        self.read().newest
    }

    /// The objects as they were after the write of `at`.
    pub(super) fn objects_at(&self, at: Revision) -> Result<ObjectMap, StorageError> {
        let state = self.read();
        if at < state.oldest {
            return Err(StorageError::Compacted { requested: at, oldest: state.oldest });
        }
        let mut objects = state.objects.clone();
        let undone: Vec<_> = state
            .history
            .iter()
            .rev()
            .map(|(_, event)| event)
            .take_while(|event| event.revision > at)
            .cloned()
            .collect();
        drop(state);
        for event in undone {
            match &event.previous {
                Some(previous) => drop(objects.insert(previous.clone())),
                None => drop(objects.remove(event.object.key())),
            }
        }
        Ok(objects)
    }

    /// Registers a watcher: what history holds for it, and a receiver of all that follows.
    pub(super) fn watch(&self, prefix: &str, after: Option<Revision>) -> Result<Registered, StorageError> {
        let mut state = self.write();
        let mut backlog = VecDeque::new();
        if let Some(after) = after {
            if after < state.oldest {
                return Err(StorageError::Compacted { requested: after, oldest: state.oldest });
            }
            let from = state.history.partition_point(|(_, event)| event.revision <= after);
            let events = state.history.range(from..).map(|(_, event)| event);
            backlog.extend(events.filter(|event| event.object.key().starts_with(prefix)).cloned());
        }
        let (sender, receiver) = mpsc::channel(WATCHER_BACKLOG_MAX);
        state.watchers.push(Watcher { prefix: prefix.into(), sender });
        Ok((backlog, receiver))
    }

    /// Takes in what happened before the history begins, where it still begins at `until`: it goes back to `oldest` then.
    pub(super) fn remember_before(
        &self,
        until: Revision,
        oldest: Revision,
        events: Vec<Arc<Event>>,
        now: Instant,
    ) {
        let mut state = self.write();
        if state.oldest != until {
            return;
        }
        state.oldest = oldest;
        for event in events.into_iter().rev() {
            state.history.push_front((now, event));
        }
        state.forget(now);
    }

    /// Takes in events: objects, history, watchers.
    pub(super) fn apply(&self, events: &[Arc<Event>], now: Instant) {
        if events.is_empty() {
            return;
        }
        let mut state = self.write();
        for event in events {
            if event.is_deletion() {
                state.objects.remove(event.object.key());
                state.by_key.remove(event.object.key());
            } else {
                state.objects.insert(event.object.clone());
                state.by_key.insert(event.object.key().clone(), event.object.clone());
            }
            state.indexes.apply(event);
        }
        let whole = self.prefix.len();
        // One watcher after the other: it is woken by its first event, and finds all when it comes to look.
        state.watchers.retain(|watcher| {
            let wanted = |event: &&Arc<Event>| {
                watcher.prefix.len() == whole || event.object.key().starts_with(&*watcher.prefix)
            };
            !watcher.sender.is_closed()
                && events.iter().filter(wanted).all(|event| watcher.sender.try_send(event.clone()).is_ok())
        });
        state.remember(events, now);
    }

    /// Begins anew with these objects and ends all watchers: the store's history was lost between two reads.
    pub(super) fn reset(&self, objects: ObjectMap, oldest: Revision) {
        let by_key = objects.iter_from("").map(|object| (object.key().clone(), object.clone())).collect();
        let mut state = self.write();
        *state = State {
            objects,
            by_key,
            indexes: Indexes::default(),
            newest: oldest,
            oldest,
            history: VecDeque::new(),
            watchers: Vec::new(),
        };
    }
}

impl State {
    fn remember(&mut self, events: &[Arc<Event>], now: Instant) {
        for event in events {
            self.newest = event.revision;
            self.history.push_back((now, event.clone()));
        }
        self.forget(now);
    }

    /// Lets go of what is too old or too much.
    fn forget(&mut self, now: Instant) {
        while let Some((at, event)) = self.history.front() {
            let aged = now.duration_since(*at) > HISTORY_AGE && self.history.len() > HISTORY_MIN;
            if !aged && self.history.len() <= HISTORY_MAX {
                break;
            }
            self.oldest = event.revision;
            self.history.pop_front();
        }
    }
}
