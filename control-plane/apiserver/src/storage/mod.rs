//! Where objects live: a small ordered key-value store with revisions, and nothing that knows Kubernetes.
//!
//! Two engines implement [`Storage`]: [`embedded`] (redb, one process) and [`etcd`] (etcd v3, several servers).
//! One suite, `conformance`, states the laws below as tests and runs over both.
//!
//! Laws:
//! 1. Revisions are positive, grow by at least one with every successful write, and order all writes of the store.
//! 2. `create` fails with [`StorageError::Exists`] when the key is there; `update` and `delete` succeed only when the
//!    key's modification revision is the expected one, else [`StorageError::Conflict`] carries what is stored now.
//! 3. A write that was acknowledged survives the death of the process and loss of power.
//! 4. `list` and `get` at a revision see exactly the state after the write of that revision, or fail with
//!    [`StorageError::Compacted`] (too old) or [`StorageError::Future`] (not yet written).
//! 5. `watch(prefix, after)` delivers every change with a revision greater than `after`, once, in order, without a gap,
//!    each with the value before it; a start that history no longer holds fails with [`StorageError::Compacted`].
//! 6. A watcher that cannot keep up is ended with an error, never silently skipped.
//! 7. `scan` yields what `list` yields at its revision, and holds no more than a few batches at a time.

pub mod cache;
pub mod compactor;
pub mod embedded;
pub mod etcd;
pub mod keys;
pub mod transfer;

#[cfg(test)]
mod conformance;

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::BoxStream;

/// The longest value, in bytes: what etcd takes in a request by default, less room for the key and the request around it.
pub const VALUE_BYTES_MAX: usize = 1_500_000;

/// A point in the store's history; the `resourceVersion` of Kubernetes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Revision(pub u64);

/// A value with the revision of the write that made it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    pub key: Arc<str>,
    pub value: Bytes,
    pub revision: Revision,
}

/// Part of an ordered range of keys, as of `revision`.
#[derive(Clone, Debug)]
pub struct Page {
    pub items: Vec<Stored>,
    /// The state that the page shows.
    pub revision: Revision,
    /// How many keys of the range follow the last item.
    pub remaining: u64,
}

/// What to list: keys that begin with `prefix`, from `start` on where it is given.
#[derive(Clone, Debug, Default)]
pub struct Range {
    pub prefix: String,
    /// The first key to return; must begin with `prefix`.
    pub start: Option<String>,
    /// At most this many items; `None` is all.
    pub limit: Option<usize>,
    /// The state to read; `None` is the newest.
    pub at: Option<Revision>,
}

/// All keys under a prefix as of `revision`, in order.
pub struct Scan {
    pub revision: Revision,
    pub batches: BoxStream<'static, Result<Vec<Stored>, StorageError>>,
}

/// One change of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    pub key: Arc<str>,
    pub revision: Revision,
    /// The new value; `None` when the key was deleted.
    pub value: Option<Bytes>,
    /// The version before; `None` when the key was created.
    pub previous: Option<Stored>,
}

/// What a watch yields.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WatchItem {
    Change(Change),
    /// Every change up to this revision has been delivered; sent when the store is idle so that readers know how
    /// fresh they are.
    Progress(Revision),
}

#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    #[error("key {key} exists already")]
    Exists { key: String },
    #[error("key {key} is not there")]
    NotFound { key: String },
    #[error("key {key} was changed by another writer")]
    Conflict { key: String, current: Option<Stored> },
    #[error("revision {requested:?} was compacted, the oldest kept is {oldest:?}")]
    Compacted { requested: Revision, oldest: Revision },
    #[error("revision {requested:?} is ahead of the store, which is at {current:?}")]
    Future { requested: Revision, current: Revision },
    #[error("the watcher fell behind and was ended")]
    Lagged,
    #[error("value of {key} has {size} bytes, the limit is {limit}")]
    TooLarge { key: String, size: usize, limit: usize },
    #[error("the store is damaged: {detail}")]
    Damaged { detail: String },
    #[error("the store is unavailable: {detail}")]
    Unavailable { detail: String },
}

pub type WatchStream = BoxStream<'static, Result<WatchItem, StorageError>>;

#[async_trait]
pub trait Storage: Send + Sync + 'static {
    /// The newest revision; every write acknowledged before the call is at or before it.
    async fn revision(&self) -> Result<Revision, StorageError>;
    async fn get(&self, key: &str) -> Result<Option<Stored>, StorageError>;
    async fn list(&self, range: Range) -> Result<Page, StorageError>;
    async fn scan(&self, prefix: &str) -> Result<Scan, StorageError>;
    async fn create(&self, key: &str, value: Bytes) -> Result<Revision, StorageError>;
    async fn update(&self, key: &str, expected: Revision, value: Bytes) -> Result<Revision, StorageError>;
    async fn delete(&self, key: &str, expected: Revision) -> Result<Revision, StorageError>;
    /// Starts after `after`; `Revision(0)` is not valid: list first.
    async fn watch(&self, prefix: &str, after: Revision) -> Result<WatchStream, StorageError>;
    /// Forgets history before `revision`; the newest value of every key stays.
    async fn compact(&self, revision: Revision) -> Result<(), StorageError>;
}
