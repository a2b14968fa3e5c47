//! The one thread that writes: batches what waits into one transaction.

use std::{collections::HashMap, sync::Arc};

use bytes::Bytes;
use redb::{Database, ReadableTable};
use tokio::sync::{mpsc, oneshot};

use super::{
    hub::Hub,
    records::{
        CURRENT, FORMAT, LOG, STATE, STATE_COMPACTED, STATE_FORMAT, STATE_REVISION, decode_current,
        encode_change, encode_current,
    },
    table_file::TableFile,
};
use crate::storage::{Change, Revision, StorageError, Stored};

/// So many writes share one fsync at most.
const BATCH_MAX: usize = 1024;
/// So many log records are deleted in one transaction, so that compaction does not hold up writes.
const COMPACT_STEP: u64 = 4096;

type Done<T> = oneshot::Sender<Result<T, StorageError>>;

pub(super) enum Job {
    Write { key: Arc<str>, operation: Operation, done: Done<Revision> },
    Compact { revision: Revision, done: Done<()> },
}

pub(super) enum Operation {
    Create { value: Bytes },
    Update { expected: Revision, value: Bytes },
    Delete { expected: Revision },
}

pub(super) struct Writer {
    file: Arc<TableFile>,
    hub: Arc<Hub>,
    queue: mpsc::UnboundedReceiver<Job>,
    /// A commit failed, so the file may hold changes that were not published.
    uncertain: bool,
}

struct Waiting {
    key: Arc<str>,
    operation: Operation,
    done: Done<Revision>,
}

impl Writer {
    pub(super) fn new(file: Arc<TableFile>, hub: Arc<Hub>, queue: mpsc::UnboundedReceiver<Job>) -> Self {
        Self { file, hub, queue, uncertain: false }
    }

    /// Until the store is dropped.
    pub(super) fn run(mut self) {
        let mut next = None;
        while let Some(job) = next.take().or_else(|| self.queue.blocking_recv()) {
            match job {
                Job::Compact { revision, done } => drop(done.send(self.compact(revision))),
                Job::Write { key, operation, done } => {
                    let mut batch = vec![Waiting { key, operation, done }];
                    while batch.len() < BATCH_MAX {
                        match self.queue.try_recv() {
                            Ok(Job::Write { key, operation, done }) => {
                                batch.push(Waiting { key, operation, done })
                            }
                            Ok(compact) => {
                                next = Some(compact);
                                break;
                            }
                            Err(_) => break,
                        }
                    }
                    self.commit(batch);
                }
            }
        }
    }

    /// Commits a batch, publishes it, acknowledges it, in this order.
    fn commit(&mut self, batch: Vec<Waiting>) {
        let committed = self.settle().and_then(|()| self.file.write(|database| apply(database, &batch)));
        match committed {
            Ok((outcomes, changes)) => {
                self.hub.publish(&changes);
                for (waiting, outcome) in batch.into_iter().zip(outcomes) {
                    // The caller may have given up; the write stands.
                    drop(waiting.done.send(outcome));
                }
            }
            Err(error) => {
                self.uncertain = true;
                let detail = match error {
                    StorageError::Unavailable { detail } => detail,
                    other => other.to_string(),
                };
                for waiting in batch {
                    drop(waiting.done.send(Err(StorageError::Unavailable { detail: detail.clone() })));
                }
            }
        }
    }

    /// After a commit that failed: opens the file again and publishes what it kept of that commit. A write that was answered
    /// with an error may stand, as with any store; watchers must see it then.
    fn settle(&mut self) -> Result<(), StorageError> {
        if self.uncertain {
            self.file.write(|_| Ok(()))?;
            let published = self.hub.published();
            let kept = self.file.read(|tables| tables.changes("", published, tables.revisions()?.0))?;
            self.hub.publish(&kept);
            self.uncertain = false;
        }
        Ok(())
    }

    fn compact(&mut self, revision: Revision) -> Result<(), StorageError> {
        let current = self.hub.published();
        if revision > current {
            return Err(StorageError::Future { requested: revision, current });
        }
        self.settle()?;
        loop {
            match self.file.write(|database| compact_step(database, revision)) {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(error) => {
                    self.uncertain = true;
                    return Err(error);
                }
            }
        }
    }
}

type Outcomes = (Vec<Result<Revision, StorageError>>, Vec<Change>);

/// Applies every operation that its expectation allows, each at its own revision.
fn apply(database: &Database, batch: &[Waiting]) -> Result<Outcomes, redb::Error> {
    let transaction = database.begin_write()?;
    let mut outcomes = Vec::with_capacity(batch.len());
    let mut changes = Vec::new();
    {
        let mut current = transaction.open_table(CURRENT)?;
        let mut log = transaction.open_table(LOG)?;
        let mut state = transaction.open_table(STATE)?;
        let mut newest = state.get(STATE_REVISION)?.map_or(0, |value| value.value());
        // What this batch wrote shares its bytes with the changes that follow it.
        let mut written: HashMap<Arc<str>, Option<Stored>> = HashMap::new();
        for Waiting { key, operation, .. } in batch {
            let before = match written.get(key) {
                Some(before) => before.clone(),
                None => match current.get(&**key)? {
                    Some(record) => Some(
                        decode_current(key.clone(), record.value())
                            .map_err(|error| redb::Error::Corrupted(error.to_string()))?,
                    ),
                    None => None,
                },
            };
            let value = match judge(key, operation, before.as_ref()) {
                Ok(value) => value,
                Err(error) => {
                    outcomes.push(Err(error));
                    continue;
                }
            };
            newest += 1;
            let revision = Revision(newest);
            match &value {
                Some(value) => drop(current.insert(&**key, &*encode_current(revision, value))?),
                None => drop(current.remove(&**key)?),
            }
            let after = value.clone().map(|value| Stored { key: key.clone(), value, revision });
            written.insert(key.clone(), after);
            let change = Change { key: key.clone(), revision, value, previous: before };
            log.insert(newest, &*encode_change(&change))?;
            changes.push(change);
            outcomes.push(Ok(revision));
        }
        if !changes.is_empty() {
            state.insert(STATE_REVISION, newest)?;
            state.insert(STATE_FORMAT, FORMAT)?;
        }
    }
    if changes.is_empty() {
        transaction.abort()?;
    } else {
        transaction.commit()?;
    }
    Ok((outcomes, changes))
}

/// The value to store, `None` to delete, or why not.
fn judge(key: &str, operation: &Operation, before: Option<&Stored>) -> Result<Option<Bytes>, StorageError> {
    let (expected, value) = match operation {
        Operation::Create { value } if before.is_none() => return Ok(Some(value.clone())),
        Operation::Create { .. } => return Err(StorageError::Exists { key: key.to_owned() }),
        Operation::Update { expected, value } => (expected, Some(value.clone())),
        Operation::Delete { expected } => (expected, None),
    };
    match before {
        Some(stored) if stored.revision == *expected => Ok(value),
        _ => Err(StorageError::Conflict { key: key.to_owned(), current: before.cloned() }),
    }
}

/// Deletes some log records up to `revision`; true when none is left.
fn compact_step(database: &Database, revision: Revision) -> Result<bool, redb::Error> {
    let transaction = database.begin_write()?;
    let done;
    {
        let mut log = transaction.open_table(LOG)?;
        let mut state = transaction.open_table(STATE)?;
        let first = log.first()?.map(|(revision, _)| revision.value());
        let until = match first {
            Some(first) if first <= revision.0 => first.saturating_add(COMPACT_STEP).min(revision.0),
            _ => revision.0,
        };
        log.retain_in(..=until, |_, _| false)?;
        let before = state.get(STATE_COMPACTED)?.map_or(0, |value| value.value());
        state.insert(STATE_COMPACTED, before.max(until))?;
        done = until == revision.0;
    }
    transaction.commit()?;
    Ok(done)
}
