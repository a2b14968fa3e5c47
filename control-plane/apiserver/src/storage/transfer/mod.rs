//! A whole store as a file, and back: how a cluster moves between the engines, and a backup that outlives both.
//!
//! The file is lines of JSON, with members in this order and no spaces:
//!
//! ```text
//! {"seawayStoreExport":1,"revision":4711}                                     version of the format, state that is shown
//! {"key":"/registry/core/pods/a/b","revision":42,"value":{...}}               one per key, in key order
//! {"key":"/registry/x","revision":43,"base64":"..."}                          where the value is no JSON of one line
//! {"objects":2,"sha256":"..."}                                                of all bytes before this line
//! ```
//!
//! Values are kept to the byte, so uids stay; revisions are the store's own and are given anew. Nothing is written to the
//! target before the whole file was read and found good.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read as _, Write},
    path::{Path, PathBuf},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use serde::{Deserialize, de::IgnoredAny};
use sha2::{Digest as _, Sha256};

use super::{Range, Revision, Storage, StorageError, VALUE_BYTES_MAX, cache::BARRIER_KEY, keys::REGISTRY};

const FORMAT: u64 = 1;
/// Keys of one request to the source.
const PAGE: usize = 500;
/// Writes that wait for the target at the same time, and share its fsync.
const AT_ONCE: usize = 64;
/// A value as base64, its key, and the rest of the line.
const LINE_BYTES_MAX: usize = VALUE_BYTES_MAX / 3 * 4 + 64 * 1024;

/// What was moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    pub objects: u64,
    /// The source's state that the file shows.
    pub revision: Revision,
}

#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    #[error(transparent)]
    Store(#[from] StorageError),
    #[error("the export cannot be written")]
    Write(#[source] io::Error),
    #[error("{path} cannot be read")]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{path} line {line}: {detail}. Nothing was written")]
    Corrupt { path: PathBuf, line: u64, detail: String },
    #[error("the target is not empty, it holds {key}; nothing was written")]
    NotEmpty { key: String },
    #[error("the target took {written} of {objects} objects and then failed; empty it before another try")]
    Unfinished {
        written: u64,
        objects: u64,
        #[source]
        source: StorageError,
    },
}

/// Writes every key of one state of `source`; `progress` is told how many so far.
///
/// # Errors
/// What the source or `out` answers; what is in `out` then has no last line.
pub async fn export(
    source: &dyn Storage,
    out: &mut (dyn Write + Send),
    mut progress: impl FnMut(u64) + Send,
) -> Result<Summary, TransferError> {
    let mut file = Hashed { out, hash: Sha256::new() };
    let revision = source.revision().await?;
    file.line(format!("{{\"seawayStoreExport\":{FORMAT},\"revision\":{}}}", revision.0).as_bytes())?;
    let mut objects = 0;
    let mut start = None;
    loop {
        let range =
            Range { prefix: REGISTRY.to_owned(), start: start.take(), limit: Some(PAGE), at: Some(revision) };
        let page = source.list(range).await?;
        for stored in page.items.iter().filter(|stored| &*stored.key != BARRIER_KEY) {
            file.line(&record(&stored.key, stored.revision, &stored.value))?;
            objects += 1;
        }
        progress(objects);
        match page.items.last() {
            Some(last) if page.remaining > 0 => start = Some(format!("{}\0", last.key)),
            _ => break,
        }
    }
    let sum = hex(&file.hash.clone().finalize());
    file.line(format!("{{\"objects\":{objects},\"sha256\":\"{sum}\"}}").as_bytes())?;
    file.out.flush().map_err(TransferError::Write)?;
    Ok(Summary { objects, revision })
}

struct Hashed<'a> {
    out: &'a mut (dyn Write + Send),
    hash: Sha256,
}

impl Hashed<'_> {
    fn line(&mut self, line: &[u8]) -> Result<(), TransferError> {
        for bytes in [line, b"\n"] {
            self.hash.update(bytes);
            self.out.write_all(bytes).map_err(TransferError::Write)?;
        }
        Ok(())
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn record_head(key: &str, revision: Revision) -> String {
    format!("{{\"key\":{},\"revision\":{},", serde_json::Value::from(key), revision.0)
}

fn record(key: &str, revision: Revision, value: &[u8]) -> Vec<u8> {
    let mut line = record_head(key, revision).into_bytes();
    if !value.contains(&b'\n') && serde_json::from_slice::<IgnoredAny>(value).is_ok() {
        line.extend_from_slice(b"\"value\":");
        line.extend_from_slice(value);
    } else {
        line.extend_from_slice(b"\"base64\":\"");
        line.extend_from_slice(STANDARD.encode(value).as_bytes());
        line.push(b'"');
    }
    line.push(b'}');
    line
}

/// Reads a whole export and says what is in it.
///
/// # Errors
/// [`TransferError::Corrupt`] names the line that is not as it must be, and why.
pub fn verify(path: &Path) -> Result<Summary, TransferError> {
    let mut lines = Lines::open(path)?;
    while lines.record()?.is_some() {}
    Ok(Summary { objects: lines.objects, revision: lines.revision })
}

/// Fills an empty store from an export; `progress` is told how many so far and how many in all.
///
/// # Errors
/// As [`verify`]; [`TransferError::NotEmpty`]; [`TransferError::Unfinished`] when the target fails on the way.
pub async fn import(
    target: &dyn Storage,
    path: &Path,
    mut progress: impl FnMut(u64, u64) + Send,
) -> Result<Summary, TransferError> {
    let found = verify(path)?;
    let range = Range { prefix: REGISTRY.to_owned(), limit: Some(2), ..Range::default() };
    if let Some(stored) = target.list(range).await?.items.iter().find(|stored| &*stored.key != BARRIER_KEY) {
        return Err(TransferError::NotEmpty { key: stored.key.to_string() });
    }
    let mut lines = Lines::open(path)?;
    let records = std::iter::from_fn(|| lines.record().transpose());
    let mut written = 0;
    let writes = stream::iter(records).map(async |record| {
        let Record { key, value } = record?;
        target.create(&key, value).await.map_err(|source| TransferError::Unfinished {
            written: 0,
            objects: found.objects,
            source,
        })
    });
    let mut writes = std::pin::pin!(writes.buffered(AT_ONCE));
    while writes.try_next().await.map_err(|error| error.after(written))?.is_some() {
        written += 1;
        if written % 1000 == 0 || written == found.objects {
            progress(written, found.objects);
        }
    }
    Ok(found)
}

impl TransferError {
    fn after(self, done: u64) -> Self {
        match self {
            Self::Unfinished { objects, source, .. } => Self::Unfinished { written: done, objects, source },
            other => other,
        }
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Head {
    seaway_store_export: u64,
    revision: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Foot {
    objects: u64,
    sha256: String,
}

#[derive(Deserialize)]
struct RecordHead {
    key: String,
    revision: u64,
    base64: Option<String>,
}

struct Record {
    key: String,
    value: Bytes,
}

/// The lines of an export, each checked as it is read.
struct Lines {
    reader: BufReader<File>,
    path: PathBuf,
    hash: Sha256,
    /// The number of the line that was read last.
    number: u64,
    line: Vec<u8>,
    objects: u64,
    last_key: String,
    revision: Revision,
}

impl Lines {
    fn open(path: &Path) -> Result<Self, TransferError> {
        let file =
            File::open(path).map_err(|source| TransferError::Read { path: path.to_owned(), source })?;
        let mut lines = Self {
            reader: BufReader::with_capacity(1 << 20, file),
            path: path.to_owned(),
            hash: Sha256::new(),
            number: 0,
            line: Vec::new(),
            objects: 0,
            last_key: String::new(),
            revision: Revision(0),
        };
        lines.next()?;
        let head: Head = serde_json::from_slice(&lines.line)
            .map_err(|_| lines.corrupt("this is no export of a store: the first line is not its header"))?;
        if head.seaway_store_export != FORMAT {
            let found = head.seaway_store_export;
            return Err(lines.corrupt(format!("the format is version {found}, this program reads {FORMAT}")));
        }
        lines.revision = Revision(head.revision);
        lines.hash_line();
        Ok(lines)
    }

    fn corrupt(&self, detail: impl Into<String>) -> TransferError {
        TransferError::Corrupt { path: self.path.clone(), line: self.number, detail: detail.into() }
    }

    /// Reads a line, without its end.
    fn next(&mut self) -> Result<(), TransferError> {
        self.number += 1;
        self.line.clear();
        let mut limited = (&mut self.reader).take(LINE_BYTES_MAX as u64);
        let read = limited.read_until(b'\n', &mut self.line);
        read.map_err(|source| TransferError::Read { path: self.path.clone(), source })?;
        if self.line.pop_if(|last| *last == b'\n').is_some() {
            return Ok(());
        }
        Err(match self.line.len() {
            0 => self.corrupt("the file ends here, without the line that ends an export: it was cut off"),
            LINE_BYTES_MAX.. => {
                self.corrupt(format!("the line is longer than {LINE_BYTES_MAX} bytes, which no object is"))
            }
            _ => self.corrupt("the file ends within this line: it was cut off"),
        })
    }

    fn hash_line(&mut self) {
        self.hash.update(&self.line);
        self.hash.update(b"\n");
    }

    /// The next key and value; `None` after the line that ends the export, once it agrees with what was read.
    fn record(&mut self) -> Result<Option<Record>, TransferError> {
        self.next()?;
        if self.line.starts_with(b"{\"objects\":") {
            self.end()?;
            return Ok(None);
        }
        let head: RecordHead = serde_json::from_slice(&self.line)
            .map_err(|error| self.corrupt(format!("this is no record: {error}")))?;
        if head.key <= self.last_key || !head.key.starts_with(REGISTRY) {
            return Err(self.corrupt(format!("the key {:?} cannot follow {:?}", head.key, self.last_key)));
        }
        let value = match &head.base64 {
            Some(text) => STANDARD
                .decode(text)
                .map_err(|error| self.corrupt(format!("the value of {} is no base64: {error}", head.key)))?,
            None => {
                let start = record_head(&head.key, Revision(head.revision)) + "\"value\":";
                let value = self.line.strip_prefix(start.as_bytes()).and_then(|rest| rest.strip_suffix(b"}"));
                value
                    .ok_or_else(|| self.corrupt(format!("the record of {} has no value", head.key)))?
                    .to_vec()
            }
        };
        if value.len() > VALUE_BYTES_MAX {
            let size = value.len();
            return Err(self.corrupt(format!(
                "the value of {} has {size} bytes, the limit is {VALUE_BYTES_MAX}",
                head.key
            )));
        }
        self.hash_line();
        self.objects += 1;
        self.last_key.clone_from(&head.key);
        Ok(Some(Record { key: head.key, value: value.into() }))
    }

    fn end(&mut self) -> Result<(), TransferError> {
        let foot: Foot = serde_json::from_slice(&self.line)
            .map_err(|error| self.corrupt(format!("the last line is malformed: {error}")))?;
        if foot.objects != self.objects {
            return Err(
                self.corrupt(format!("{} records were announced, {} are here", foot.objects, self.objects))
            );
        }
        if foot.sha256 != hex(&self.hash.clone().finalize()) {
            return Err(self.corrupt("the checksum is not that of the lines before: a byte was changed"));
        }
        let mut rest = [0];
        match self.reader.read(&mut rest) {
            Ok(0) => Ok(()),
            Ok(_) => Err(self.corrupt("something follows the line that ends an export")),
            Err(source) => Err(TransferError::Read { path: self.path.clone(), source }),
        }
    }
}

#[cfg(test)]
mod tests;
