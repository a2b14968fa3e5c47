//! The objects of a resource by the value of a label or a field, so that a list by selector looks at what it returns.
//!
//! An index is made when the same key was asked for before, kept current with every event, and given up for another one
//! when nobody asked for it for a while. It is only ever a shorter way to what a scan of all objects finds.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{Event, Object, ObjectMap};

/// Fewer objects are scanned.
const OBJECTS_MIN: usize = 256;
/// So many indexes has a resource at most.
const INDEXES_MAX: usize = 4;
/// So many keys are remembered that were asked for once.
const ASKED_MAX: usize = 16;
/// An index that nobody used for so long makes room for another one.
const IDLE_MAX: Duration = Duration::from_secs(300);

/// What objects are found by.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum IndexKey {
    Label(String),
    Field(String),
}

/// The value that an object is found by; `None` for objects that no value finds.
pub type ValueOf = Arc<dyn Fn(&Object) -> Option<Box<str>> + Send + Sync>;

/// One index, current up to the objects that it was last told of.
pub(super) struct Index {
    key: IndexKey,
    value_of: ValueOf,
    by_value: HashMap<Box<str>, ObjectMap>,
    used: Instant,
}

impl Index {
    pub(super) fn build(key: IndexKey, value_of: ValueOf, objects: &ObjectMap, now: Instant) -> Self {
        let mut index = Self { key, value_of, by_value: HashMap::new(), used: now };
        for object in objects.iter_from("") {
            index.insert(object);
        }
        index
    }

    fn insert(&mut self, object: &Arc<Object>) {
        if let Some(value) = (self.value_of)(object) {
            self.by_value.entry(value).or_default().insert(Arc::clone(object));
        }
    }

    fn remove(&mut self, object: &Object) {
        let Some(value) = (self.value_of)(object) else { return };
        if let Some(objects) = self.by_value.get_mut(&value) {
            objects.remove(object.key());
            if objects.is_empty() {
                self.by_value.remove(&value);
            }
        }
    }

    pub(super) fn apply(&mut self, event: &Event) {
        if let Some(previous) = &event.previous {
            self.remove(previous);
        }
        if !event.is_deletion() {
            self.insert(&event.object);
        }
    }
}

/// The indexes of a resource.
#[derive(Default)]
pub(super) struct Indexes {
    indexes: Vec<Index>,
    asked: Vec<IndexKey>,
}

/// What a look into the indexes gives.
pub(super) enum Found {
    Objects(ObjectMap),
    /// Look at all objects.
    Scan,
    /// Look at all objects, and make an index of them for the next time.
    Build,
}

impl Indexes {
    pub(super) fn apply(&mut self, event: &Event) {
        for index in &mut self.indexes {
            index.apply(event);
        }
    }

    /// The objects under a value, of `count` objects in all.
    pub(super) fn find(&mut self, key: &IndexKey, value: &str, count: usize, now: Instant) -> Found {
        if let Some(index) = self.indexes.iter_mut().find(|index| index.key == *key) {
            index.used = now;
            return Found::Objects(index.by_value.get(value).cloned().unwrap_or_default());
        }
        if count < OBJECTS_MIN {
            return Found::Scan;
        }
        if let Some(at) = self.asked.iter().position(|asked| asked == key) {
            let has_room = self.indexes.len() < INDEXES_MAX
                || self.indexes.iter().any(|index| now.duration_since(index.used) > IDLE_MAX);
            if has_room {
                self.asked.remove(at);
                return Found::Build;
            }
        } else {
            if self.asked.len() == ASKED_MAX {
                self.asked.remove(0);
            }
            self.asked.push(key.clone());
        }
        Found::Scan
    }

    /// Takes in an index that is current.
    pub(super) fn add(&mut self, index: Index) {
        if self.indexes.iter().any(|other| other.key == index.key) {
            return;
        }
        if self.indexes.len() == INDEXES_MAX
            && let Some(oldest) = (0..self.indexes.len()).min_by_key(|at| self.indexes[*at].used)
        {
            self.indexes.swap_remove(oldest);
        }
        self.indexes.push(index);
    }
}
