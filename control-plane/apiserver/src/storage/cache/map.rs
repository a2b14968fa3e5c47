//! An ordered map of objects whose snapshots are cheap: sorted chunks behind `Arc`s, copied only when shared.
//!
//! A write while a snapshot is alive copies one chunk and the list of chunks, never all objects.

use std::sync::Arc;

use super::Object;

/// A chunk is split in two when it reaches this many objects.
const CHUNK_MAX: usize = 128;

type Chunk = Vec<Arc<Object>>;

/// Objects by key, in key order. Cloning is two reference counts.
#[derive(Clone, Default)]
pub struct ObjectMap {
    /// No chunk is empty; keys ascend within and across chunks.
    chunks: Arc<Vec<Arc<Chunk>>>,
    len: usize,
}

impl ObjectMap {
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn get(&self, key: &str) -> Option<&Arc<Object>> {
        let chunk = self.chunks.get(self.chunk_of(key))?;
        let at = chunk.binary_search_by(|object| object.key().as_ref().cmp(key)).ok()?;
        Some(&chunk[at])
    }

    /// Puts the object at its key; returns the one before.
    pub fn insert(&mut self, object: Arc<Object>) -> Option<Arc<Object>> {
        let index = self.chunk_of(object.key());
        let chunks = Arc::make_mut(&mut self.chunks);
        let Some(chunk) = chunks.get_mut(index) else {
            chunks.push(Arc::new(vec![object]));
            self.len = 1;
            return None;
        };
        let chunk = Arc::make_mut(chunk);
        match chunk.binary_search_by(|other| other.key().cmp(object.key())) {
            Ok(at) => Some(std::mem::replace(&mut chunk[at], object)),
            Err(at) => {
                chunk.insert(at, object);
                self.len += 1;
                if chunk.len() >= CHUNK_MAX {
                    let upper = chunk.split_off(CHUNK_MAX / 2);
                    chunks.insert(index + 1, Arc::new(upper));
                }
                None
            }
        }
    }

    pub fn remove(&mut self, key: &str) -> Option<Arc<Object>> {
        let index = self.chunk_of(key);
        let at = self.chunks.get(index)?.binary_search_by(|object| object.key().as_ref().cmp(key)).ok()?;
        let chunks = Arc::make_mut(&mut self.chunks);
        let chunk = Arc::make_mut(&mut chunks[index]);
        let removed = chunk.remove(at);
        if chunk.is_empty() {
            chunks.remove(index);
        }
        self.len -= 1;
        Some(removed)
    }

    /// Objects whose keys are `start` or after it, in order.
    pub fn iter_from<'a>(&'a self, start: &str) -> impl Iterator<Item = &'a Arc<Object>> + use<'a> {
        let index = self.chunk_of(start);
        let skip = self.chunks.get(index).map_or(0, |chunk| lower_bound(chunk, start));
        self.chunks[index.min(self.chunks.len())..].iter().flat_map(|chunk| chunk.iter()).skip(skip)
    }

    /// Objects whose keys are `start` or after it and below `end`, in order. Only the bounds look at keys.
    pub fn range<'a>(
        &'a self,
        start: &str,
        end: Option<&str>,
    ) -> impl Iterator<Item = &'a Arc<Object>> + use<'a> {
        let count = end.map_or(self.len, |end| self.rank(end)).saturating_sub(self.rank(start));
        self.iter_from(start).take(count)
    }

    /// How many keys are below `bound`.
    pub fn rank(&self, bound: &str) -> usize {
        let index = self.chunk_of(bound);
        let before: usize = self.chunks.iter().take(index).map(|chunk| chunk.len()).sum();
        before + self.chunks.get(index).map_or(0, |chunk| lower_bound(chunk, bound))
    }

    /// The chunk that holds `key` or would take it.
    fn chunk_of(&self, key: &str) -> usize {
        self.chunks.partition_point(|chunk| chunk[0].key().as_ref() <= key).saturating_sub(1)
    }
}

impl Extend<Arc<Object>> for ObjectMap {
    fn extend<I: IntoIterator<Item = Arc<Object>>>(&mut self, objects: I) {
        for object in objects {
            self.insert(object);
        }
    }
}

fn lower_bound(chunk: &Chunk, key: &str) -> usize {
    chunk.partition_point(|object| object.key().as_ref() < key)
}
