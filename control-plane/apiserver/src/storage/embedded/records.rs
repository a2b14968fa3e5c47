//! The tables of the file and their records.
//!
//! `current`: key -> revision (8 bytes, big endian) and value. `log`: revision -> one change: its key and the version before.
//! The value that a change wrote is in `current`, or in the next change of the key as the version before, so that no value is
//! written twice.
//! `state`: the newest revision, the oldest that can be read, and the format.

use std::{
    collections::{BTreeMap, HashMap},
    ops::Bound,
    sync::Arc,
};

use bytes::Bytes;
use redb::{ReadTransaction, ReadableTable, TableDefinition};

use super::table_file::failed;
use crate::storage::{Change, Page, Range, Revision, StorageError, Stored};

pub(super) const CURRENT: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("current");
pub(super) const LOG: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("log");
pub(super) const STATE: TableDefinition<'_, &str, u64> = TableDefinition::new("state");

pub(super) const STATE_FORMAT: &str = "format";
pub(super) const STATE_REVISION: &str = "revision";
pub(super) const STATE_COMPACTED: &str = "compacted";
pub(super) const FORMAT: u64 = 2;
/// Its log holds the values too. It is read as it is, and written as the newer one.
pub(super) const FORMAT_WITH_VALUES: u64 = 1;
/// The revision of an empty store.
pub(super) const FIRST: Revision = Revision(1);

/// The tables as one read transaction sees them.
pub(super) struct Tables {
    current: redb::ReadOnlyTable<&'static str, &'static [u8]>,
    log: redb::ReadOnlyTable<u64, &'static [u8]>,
    state: redb::ReadOnlyTable<&'static str, u64>,
}

impl Tables {
    pub(super) fn open(transaction: &ReadTransaction) -> Result<Self, redb::TableError> {
        Ok(Self {
            current: transaction.open_table(CURRENT)?,
            log: transaction.open_table(LOG)?,
            state: transaction.open_table(STATE)?,
        })
    }

    /// The newest revision and the oldest that can be read.
    pub(super) fn revisions(&self) -> Result<(Revision, Revision), StorageError> {
        let state = |name| match self.state.get(name) {
            Ok(Some(value)) => Ok(Revision(value.value())),
            Ok(None) => Err(StorageError::Damaged { detail: format!("the record {name} is missing") }),
            Err(error) => Err(failed(error)),
        };
        Ok((state(STATE_REVISION)?, state(STATE_COMPACTED)?))
    }

    pub(super) fn format(&self) -> Result<Option<u64>, StorageError> {
        Ok(self.state.get(STATE_FORMAT).map_err(failed)?.map(|value| value.value()))
    }

    pub(super) fn get(&self, key: &str) -> Result<Option<Stored>, StorageError> {
        let value = self.current.get(key).map_err(failed)?;
        value.map(|record| decode_current(key.into(), record.value())).transpose()
    }

    pub(super) fn list(&self, range: &Range) -> Result<Page, StorageError> {
        let (revision, compacted) = self.revisions()?;
        let at = range.at.unwrap_or(revision);
        check_revision(at, compacted)?;
        if at > revision {
            return Err(StorageError::Future { requested: at, current: revision });
        }
        let undone = if at == revision { BTreeMap::new() } else { self.undo(&range.prefix, at, revision)? };
        let start =
            range.start.as_deref().filter(|start| *start > range.prefix.as_str()).unwrap_or(&range.prefix);
        let limit = range.limit.unwrap_or(usize::MAX);
        let mut items = Vec::new();
        let mut remaining = 0;
        // What is only counted is not read.
        let mut take = |stored: &dyn Fn() -> Result<Stored, StorageError>| {
            if items.len() < limit {
                items.push(stored()?)
            } else {
                remaining += 1
            }
            Ok(())
        };
        let mut undone_from = undone.range::<str, _>((Bound::Included(start), Bound::Unbounded)).peekable();
        for entry in self.current.range(start..).map_err(failed)? {
            let (key, record) = entry.map_err(failed)?;
            let key = key.value();
            if !key.starts_with(&range.prefix) {
                break;
            }
            // Keys that are not there any more come between those that are.
            while let Some((_, gone)) = undone_from.next_if(|(undone, _)| &***undone < key) {
                if let Some(stored) = gone {
                    take(&|| Ok(stored.clone()))?;
                }
            }
            match undone_from.next_if(|(undone, _)| &***undone == key) {
                Some((_, Some(stored))) => take(&|| Ok(stored.clone()))?,
                Some((_, None)) => {}
                None => take(&|| decode_current(key.into(), record.value()))?,
            }
        }
        for stored in undone_from.filter_map(|(_, stored)| stored.as_ref()) {
            take(&|| Ok(stored.clone()))?;
        }
        Ok(Page { items, revision: at, remaining })
    }

    /// What was stored at `at` of every key under a prefix that changed since; `None` when the key was not there.
    fn undo(
        &self,
        prefix: &str,
        at: Revision,
        newest: Revision,
    ) -> Result<BTreeMap<Arc<str>, Option<Stored>>, StorageError> {
        let mut undone = BTreeMap::new();
        for entry in self.log.range(at.0 + 1..=newest.0).map_err(failed)? {
            let (revision, record) = entry.map_err(failed)?;
            let change = decode_change(revision.value(), record.value())?;
            if change.key.starts_with(prefix) {
                // The oldest change of a key says what was before all of them.
                undone.entry(change.key).or_insert(change.previous);
            }
        }
        Ok(undone)
    }

    /// Every key under a prefix, in order, until `take` wants no more.
    pub(super) fn each(
        &self,
        prefix: &str,
        mut take: impl FnMut(Stored) -> bool,
    ) -> Result<(), StorageError> {
        for entry in self.current.range(prefix..).map_err(failed)? {
            let (key, record) = entry.map_err(failed)?;
            let key = key.value();
            if !key.starts_with(prefix) || !take(decode_current(key.into(), record.value())?) {
                break;
            }
        }
        Ok(())
    }

    /// Refuses what compaction took.
    pub(super) fn check_history(&self, after: Revision) -> Result<(), StorageError> {
        let (_, compacted) = self.revisions()?;
        check_revision(after, compacted)
    }

    /// The changes under a prefix after `after`, up to `until`.
    pub(super) fn changes(
        &self,
        prefix: &str,
        after: Revision,
        until: Revision,
    ) -> Result<Vec<Change>, StorageError> {
        let mut changes = Vec::new();
        self.each_change(prefix, after, until, |change| {
            changes.push(change);
            true
        })?;
        Ok(changes)
    }

    /// The changes under a prefix after `after`, up to `until`, in order, until `take` wants no more.
    pub(super) fn each_change(
        &self,
        prefix: &str,
        after: Revision,
        until: Revision,
        mut take: impl FnMut(Change) -> bool,
    ) -> Result<(), StorageError> {
        self.check_history(after)?;
        if after >= until {
            return Ok(());
        }
        let followers = self.followers(prefix, after)?;
        for entry in self.log.range(after.0 + 1..=until.0).map_err(failed)? {
            let (revision, record) = entry.map_err(failed)?;
            let revision = revision.value();
            let read = read_change(revision, record.value())?;
            if !read.key.starts_with(prefix) {
                continue;
            }
            let mut change = read.to_change(revision);
            if read.is_value_elsewhere {
                let written = match followers.get(&revision) {
                    Some(follower) => self.version_before(*follower)?,
                    None => self.get(&change.key)?,
                };
                let is_it = |stored: &Stored| stored.revision == change.revision;
                change.value = Some(written.filter(is_it).ok_or_else(|| lost(&change))?.value);
            }
            if !take(change) {
                break;
            }
        }
        Ok(())
    }

    /// For each change after `after` that another one of its key followed, the revision of that one: it holds the value
    /// that the first one wrote.
    fn followers(&self, prefix: &str, after: Revision) -> Result<HashMap<u64, u64>, StorageError> {
        let mut newest: HashMap<Box<str>, u64> = HashMap::new();
        let mut followers = HashMap::new();
        for entry in self.log.range(after.0 + 1..).map_err(failed)? {
            let (revision, record) = entry.map_err(failed)?;
            let revision = revision.value();
            let key = read_change(revision, record.value())?.key;
            match newest.get_mut(key) {
                Some(before) => drop(followers.insert(std::mem::replace(before, revision), revision)),
                None if key.starts_with(prefix) => drop(newest.insert(key.into(), revision)),
                None => {}
            }
        }
        Ok(followers)
    }

    /// What a change replaced.
    fn version_before(&self, revision: u64) -> Result<Option<Stored>, StorageError> {
        let record = self.log.get(revision).map_err(failed)?;
        let record = record.map(|record| decode_change(revision, record.value())).transpose()?;
        Ok(record.and_then(|change| change.previous))
    }

    /// Reads every record once.
    pub(super) fn verify(&self) -> Result<(), StorageError> {
        let (newest, _) = self.revisions()?;
        for entry in self.current.iter().map_err(failed)? {
            let (key, record) = entry.map_err(failed)?;
            let (revision, _) = split_current(key.value(), record.value())?;
            if revision > newest {
                let detail = format!("{} is newer than the store's revision {}", key.value(), newest.0);
                return Err(StorageError::Damaged { detail });
            }
        }
        for entry in self.log.iter().map_err(failed)? {
            let (revision, record) = entry.map_err(failed)?;
            read_change(revision.value(), record.value())?;
        }
        Ok(())
    }
}

fn check_revision(requested: Revision, oldest: Revision) -> Result<(), StorageError> {
    if requested < oldest { Err(StorageError::Compacted { requested, oldest }) } else { Ok(()) }
}

pub(super) fn encode_current(revision: Revision, value: &[u8]) -> Vec<u8> {
    [&revision.0.to_be_bytes(), value].concat()
}

pub(super) fn decode_current(key: Arc<str>, record: &[u8]) -> Result<Stored, StorageError> {
    let (revision, value) = split_current(&key, record)?;
    Ok(Stored { value: Bytes::copy_from_slice(value), revision, key })
}

fn split_current<'a>(key: &str, record: &'a [u8]) -> Result<(Revision, &'a [u8]), StorageError> {
    match record.split_first_chunk::<8>() {
        Some((revision, value)) => Ok((Revision(u64::from_be_bytes(*revision)), value)),
        None => Err(StorageError::Damaged { detail: format!("the record of {key} is too short") }),
    }
}

/// Of records of [`FORMAT_WITH_VALUES`].
const HAS_VALUE: u8 = 1;
const HAS_PREVIOUS: u8 = 2;
/// The change wrote a value, which is not in the record.
const VALUE_ELSEWHERE: u8 = 4;

fn lost(change: &Change) -> StorageError {
    let detail = format!("the value that revision {} gave to {} is nowhere", change.revision.0, change.key);
    StorageError::Damaged { detail }
}

/// flags, key length and key, then, where flagged, value length and value, previous revision and previous value.
pub(super) fn encode_change(change: &Change) -> Vec<u8> {
    let previous = change.previous.as_ref();
    let mut record =
        Vec::with_capacity(13 + change.key.len() + previous.map_or(0, |stored| stored.value.len()));
    let writes = u8::from(change.value.is_some());
    record.push(writes * VALUE_ELSEWHERE + u8::from(previous.is_some()) * HAS_PREVIOUS);
    let length = u32::try_from(change.key.len()).expect("keys are far below 4 GiB");
    record.extend_from_slice(&length.to_be_bytes());
    record.extend_from_slice(change.key.as_bytes());
    if let Some(previous) = previous {
        record.extend_from_slice(&previous.revision.0.to_be_bytes());
        record.extend_from_slice(&previous.value);
    }
    record
}

pub(super) fn decode_change(revision: u64, record: &[u8]) -> Result<Change, StorageError> {
    Ok(read_change(revision, record)?.to_change(revision))
}

/// What a record of the log says, where it lies.
struct ChangeRecord<'a> {
    key: &'a str,
    value: Option<&'a [u8]>,
    is_value_elsewhere: bool,
    previous: Option<(Revision, &'a [u8])>,
}

impl ChangeRecord<'_> {
    fn to_change(&self, revision: u64) -> Change {
        let key: Arc<str> = self.key.into();
        let copied =
            |(revision, value)| Stored { key: key.clone(), value: Bytes::copy_from_slice(value), revision };
        let previous = self.previous.map(copied);
        let value = self.value.map(Bytes::copy_from_slice);
        Change { revision: Revision(revision), value, previous, key }
    }
}

fn read_change(revision: u64, record: &[u8]) -> Result<ChangeRecord<'_>, StorageError> {
    parse_change(record).ok_or_else(|| StorageError::Damaged {
        detail: format!("the log record of revision {revision} is malformed"),
    })
}

fn parse_change(record: &[u8]) -> Option<ChangeRecord<'_>> {
    let take = |rest: &[u8]| -> Option<(usize, usize)> {
        let (length, tail) = rest.split_first_chunk::<4>()?;
        let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
        (tail.len() >= length).then_some((4, 4 + length))
    };
    let (flags, mut rest) = record.split_first()?;
    let (start, end) = take(rest)?;
    let key = std::str::from_utf8(&rest[start..end]).ok()?;
    rest = &rest[end..];
    let mut value = None;
    if flags & HAS_VALUE != 0 {
        let (start, end) = take(rest)?;
        value = Some(&rest[start..end]);
        rest = &rest[end..];
    }
    let mut previous = None;
    if flags & HAS_PREVIOUS != 0 {
        let (before, bytes) = rest.split_first_chunk::<8>()?;
        previous = Some((Revision(u64::from_be_bytes(*before)), bytes));
    }
    Some(ChangeRecord { key, value, is_value_elsewhere: flags & VALUE_ELSEWHERE != 0, previous })
}
