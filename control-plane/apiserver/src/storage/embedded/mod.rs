//! The store of a single server: one redb file with the current values and a log of changes.
//!
//! Every write goes to one thread, which takes all writes that wait, commits them in one transaction with one fsync, hands
//! the changes to the watchers in revision order and only then acknowledges. The log makes reads in the past and watches
//! possible over a restart, until compaction. Deliberately absent: replication; several servers share etcd.
//!
//! ```text
//! create ─┐                 ┌─ fsync ─> Hub ─> watchers
//! update ─┼─> Writer: batch ┤
//! delete ─┘                 └─ acknowledge
//! ```

mod hub;
mod records;
mod table_file;
mod writer;

use std::{
    path::Path,
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use async_trait::async_trait;
use bytes::Bytes;
use futures::{
    StreamExt as _,
    future::ready,
    stream::{self, BoxStream},
};
use tokio::{
    sync::{mpsc, oneshot},
    task::JoinError,
};
use tokio_stream::wrappers::ReceiverStream;

use self::{
    hub::Hub,
    records::Tables,
    table_file::TableFile,
    writer::{Job, Operation, Writer},
};
use super::{
    Change, Page, Range, Revision, Scan, Storage, StorageError, Stored, VALUE_BYTES_MAX, WatchStream,
};

/// A store in one file. Dropping it ends its thread and closes the file.
pub struct Embedded {
    file: Arc<TableFile>,
    hub: Arc<Hub>,
    /// `None` only while it is dropped.
    jobs: Option<mpsc::UnboundedSender<Job>>,
    writer: Option<JoinHandle<()>>,
}

/// Bytes of values that are read before they are handed on.
const BATCH_BYTES: usize = 256 * 1024;
/// Batches that wait for their reader.
const BATCHES_MAX: usize = 2;

/// How long another process that has the file is waited for.
const PREDECESSOR_TIMEOUT: Duration = Duration::from_secs(1);

impl Embedded {
    /// Opens the store, making the file when it is not there. The whole file is verified.
    ///
    /// # Errors
    /// [`StorageError::Damaged`] names a file that cannot be used; it is left as it is. [`StorageError::Unavailable`] when
    /// it cannot be opened: another process has it, or no permission.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, StorageError> {
        let deadline = Instant::now() + PREDECESSOR_TIMEOUT;
        loop {
            match TableFile::open(path.as_ref()) {
                // A process that is on its way out lets go of the file in a moment.
                Err(error) if table_file::is_open_elsewhere(&error) && Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                opened => return Self::with_file(opened?),
            }
        }
    }

    /// Makes a store whose first write gets the revision after `revision`, so that a cluster that moves here goes on counting.
    ///
    /// # Errors
    /// [`StorageError::Unavailable`] when the file is there already or cannot be made.
    pub fn create_at(path: impl AsRef<Path>, revision: Revision) -> Result<Self, StorageError> {
        Self::with_file(TableFile::create_at(path.as_ref(), revision)?)
    }

    fn with_file(file: TableFile) -> Result<Self, StorageError> {
        let file = Arc::new(file);
        let (revision, _) = file.read(|tables| tables.revisions())?;
        let hub = Arc::new(Hub::new(revision));
        let (jobs, queue) = mpsc::unbounded_channel();
        let writer = Writer::new(file.clone(), hub.clone(), queue);
        let writer =
            std::thread::Builder::new().name("store-writer".to_owned()).spawn(move || writer.run()).map_err(
                |error| StorageError::Unavailable { detail: format!("cannot start the writer: {error}") },
            )?;
        Ok(Self { file, hub, jobs: Some(jobs), writer: Some(writer) })
    }

    async fn write(&self, key: &str, operation: Operation) -> Result<Revision, StorageError> {
        if let Operation::Create { value } | Operation::Update { value, .. } = &operation
            && value.len() > VALUE_BYTES_MAX
        {
            return Err(StorageError::TooLarge {
                key: key.to_owned(),
                size: value.len(),
                limit: VALUE_BYTES_MAX,
            });
        }
        let (done, answer) = oneshot::channel();
        self.send(Job::Write { key: key.into(), operation, done })?;
        answer.await.map_err(|_| stopped())?
    }

    fn send(&self, job: Job) -> Result<(), StorageError> {
        self.jobs.as_ref().ok_or_else(stopped)?.send(job).map_err(|_| stopped())
    }

    /// Reads off the runtime's threads.
    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Tables) -> Result<T, StorageError> + Send + 'static,
    ) -> Result<T, StorageError> {
        let file = self.file.clone();
        let answer = tokio::task::spawn_blocking(move || file.read(read)).await;
        answer.map_err(|error| StorageError::Unavailable { detail: format!("a read was ended: {error}") })?
    }
}

/// Takes what was read and its bytes; says whether more is wanted.
type Take<'a, T> = &'a mut dyn FnMut(T, usize) -> bool;
type Batches<T> = BoxStream<'static, Result<Vec<T>, StorageError>>;

impl Embedded {
    /// Reads a long answer off the runtime's threads, in one transaction, as fast as its reader takes it. What `begin`
    /// returns comes first.
    async fn read_in_batches<H: Send + 'static, T: Send + 'static>(
        &self,
        begin: impl FnOnce(&Tables) -> Result<H, StorageError> + Send + 'static,
        each: impl FnOnce(&Tables, Take<'_, T>) -> Result<(), StorageError> + Send + 'static,
    ) -> Result<(H, Batches<T>), StorageError> {
        let ended =
            |error: JoinError| StorageError::Unavailable { detail: format!("a read was ended: {error}") };
        let (head, begun) = oneshot::channel();
        let (batches, receiver) = mpsc::channel(BATCHES_MAX);
        let file = self.file.clone();
        let reading = tokio::task::spawn_blocking(move || {
            file.read(|tables| {
                let Ok(()) = head.send(begin(tables)?) else { return Ok(()) };
                let (mut batch, mut size) = (Vec::new(), 0);
                each(tables, &mut |item, bytes| {
                    batch.push(item);
                    size += bytes;
                    if size < BATCH_BYTES {
                        return true;
                    }
                    size = 0;
                    batches.blocking_send(std::mem::take(&mut batch)).is_ok()
                })?;
                if !batch.is_empty() {
                    // Nobody may want it any more.
                    drop(batches.blocking_send(batch));
                }
                Ok(())
            })
        });
        let Ok(begun) = begun.await else {
            // It failed before it began.
            reading.await.map_err(ended)??;
            return Err(stopped());
        };
        let last = stream::once(reading).filter_map(move |result| {
            ready(match result {
                Ok(Ok(())) => None,
                Ok(Err(error)) => Some(Err(error)),
                Err(error) => Some(Err(ended(error))),
            })
        });
        Ok((begun, ReceiverStream::new(receiver).map(Ok).chain(last).boxed()))
    }
}

impl Drop for Embedded {
    fn drop(&mut self) {
        drop(self.jobs.take());
        if let Some(writer) = self.writer.take() {
            // A panic of the writer was printed when it happened; there is nobody left to tell.
            drop(writer.join());
        }
    }
}

fn stopped() -> StorageError {
    StorageError::Unavailable { detail: "the store's writer has stopped".to_owned() }
}

#[async_trait]
impl Storage for Embedded {
    async fn revision(&self) -> Result<Revision, StorageError> {
        Ok(self.hub.published())
    }

    async fn get(&self, key: &str) -> Result<Option<Stored>, StorageError> {
        let key = key.to_owned();
        self.read(move |tables| tables.get(&key)).await
    }

    async fn list(&self, range: Range) -> Result<Page, StorageError> {
        self.read(move |tables| tables.list(&range)).await
    }

    async fn scan(&self, prefix: &str) -> Result<Scan, StorageError> {
        let prefix = prefix.to_owned();
        let begin = |tables: &Tables| Ok(tables.revisions()?.0);
        let each = move |tables: &Tables, take: Take<'_, Stored>| {
            tables.each(&prefix, |stored| {
                let size = stored.value.len();
                take(stored, size)
            })
        };
        let (revision, batches) = self.read_in_batches(begin, each).await?;
        Ok(Scan { revision, batches })
    }

    async fn create(&self, key: &str, value: Bytes) -> Result<Revision, StorageError> {
        self.write(key, Operation::Create { value }).await
    }

    async fn update(&self, key: &str, expected: Revision, value: Bytes) -> Result<Revision, StorageError> {
        self.write(key, Operation::Update { expected, value }).await
    }

    async fn delete(&self, key: &str, expected: Revision) -> Result<Revision, StorageError> {
        self.write(key, Operation::Delete { expected }).await
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<WatchStream, StorageError> {
        // Registered first: what is published from here on is in the channel, what was published before is in the log.
        let (receiver, published) = self.hub.subscribe(prefix);
        if after >= published {
            self.read(move |tables| tables.check_history(after)).await?;
            return Ok(hub::stream(stream::empty().boxed(), receiver, after, published));
        }
        let prefix = prefix.to_owned();
        let begin = move |tables: &Tables| tables.check_history(after);
        let each = move |tables: &Tables, take: Take<'_, Change>| {
            tables.each_change(&prefix, after, published, |change| {
                let values =
                    [change.value.as_ref(), change.previous.as_ref().map(|previous| &previous.value)];
                let size = values.into_iter().flatten().map(Bytes::len).sum();
                take(change, size)
            })
        };
        let ((), history) = self.read_in_batches(begin, each).await?;
        Ok(hub::stream(history, receiver, after, published))
    }

    async fn compact(&self, revision: Revision) -> Result<(), StorageError> {
        let (done, answer) = oneshot::channel();
        self.send(Job::Compact { revision, done })?;
        answer.await.map_err(|_| stopped())?
    }
}

#[cfg(test)]
mod tests;
