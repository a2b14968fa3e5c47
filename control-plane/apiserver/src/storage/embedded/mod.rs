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
use tokio::sync::{mpsc, oneshot};

use self::{
    hub::Hub,
    table_file::TableFile,
    writer::{Job, Operation, Writer},
};
use super::{Page, Range, Revision, Storage, StorageError, Stored, VALUE_BYTES_MAX, WatchStream};

/// A store in one file. Dropping it ends its thread and closes the file.
pub struct Embedded {
    file: Arc<TableFile>,
    hub: Arc<Hub>,
    /// `None` only while it is dropped.
    jobs: Option<mpsc::UnboundedSender<Job>>,
    writer: Option<JoinHandle<()>>,
}

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
        read: impl FnOnce(&records::Tables) -> Result<T, StorageError> + Send + 'static,
    ) -> Result<T, StorageError> {
        let file = self.file.clone();
        let answer = tokio::task::spawn_blocking(move || file.read(read)).await;
        answer.map_err(|error| StorageError::Unavailable { detail: format!("a read was ended: {error}") })?
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
        let prefix = prefix.to_owned();
        let history = self.read(move |tables| tables.changes(&prefix, after, published)).await?;
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
