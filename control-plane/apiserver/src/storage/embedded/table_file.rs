//! Opening the file without harm, reading it, and opening it again after the disk failed.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError, RwLock},
};

use redb::{Database, DatabaseError, ReadableDatabase, StorageBackend};

use super::records::{
    CURRENT, FIRST, FORMAT, FORMAT_WITH_VALUES, LOG, STATE, STATE_COMPACTED, STATE_FORMAT, STATE_REVISION,
    Tables,
};
use crate::storage::{Revision, StorageError};

/// redb's own cache; small, because the watch cache above holds every object.
const PAGE_CACHE_BYTES: usize = 2 << 20;

/// Opens the database behind a path.
type Opener = Box<dyn Fn(&Path) -> Result<Database, DatabaseError> + Send + Sync>;

/// One redb file.
pub(super) struct TableFile {
    path: PathBuf,
    opener: Opener,
    /// `None` after an error of the disk, until it is opened again.
    database: RwLock<Option<Database>>,
}

impl TableFile {
    pub(super) fn open(path: &Path) -> Result<Self, StorageError> {
        Self::open_with(path, Box::new(|path| builder().open(path)))
    }

    /// Makes a file that is not there yet.
    pub(super) fn create_at(path: &Path, revision: Revision) -> Result<Self, StorageError> {
        if fs::exists(path).map_err(|error| unavailable(path, &error))? {
            let detail = format!("{} is there already", path.display());
            return Err(StorageError::Unavailable { detail });
        }
        create(path, revision.max(FIRST))?;
        Self::open(path)
    }

    pub(super) fn open_with(path: &Path, opener: Opener) -> Result<Self, StorageError> {
        if fs::exists(path).map_err(|error| unavailable(path, &error))? {
            verify(path)?;
        } else {
            create(path, FIRST)?;
        }
        let database = opener(path).map_err(|error| open_error(path, error))?;
        Ok(Self { path: path.to_owned(), opener, database: RwLock::new(Some(database)) })
    }

    /// Reads in one transaction.
    pub(super) fn read<T>(
        &self,
        read: impl FnOnce(&Tables) -> Result<T, StorageError>,
    ) -> Result<T, StorageError> {
        let guard = self.database.read().unwrap_or_else(PoisonError::into_inner);
        let Some(database) = &*guard else { return Err(self.closed()) };
        let answer = (|| {
            let transaction = database.begin_read().map_err(failed)?;
            read(&Tables::open(&transaction).map_err(failed)?)
        })();
        answer.map_err(|error| name(&self.path, error))
    }

    /// Runs a write. After a failure the database is opened again at the next write, as redb asks for. A panic is a failure
    /// too: redb asserts what a disk that lies may break, and the thread that writes is the only one.
    pub(super) fn write<T>(
        &self,
        write: impl FnOnce(&Database) -> Result<T, redb::Error>,
    ) -> Result<T, StorageError> {
        self.reopen()?;
        let guard = self.database.read().unwrap_or_else(PoisonError::into_inner);
        let Some(database) = &*guard else { return Err(self.closed()) };
        let answer = catch_unwind(AssertUnwindSafe(|| write(database)));
        drop(guard);
        let answer = answer.unwrap_or_else(|_| {
            Err(redb::Error::Io(io::Error::other("the storage engine met what it holds impossible")))
        });
        answer.map_err(|error| {
            tracing::error!(path = %self.path.display(), %error, "the store cannot be written");
            let broken = self.database.write().unwrap_or_else(PoisonError::into_inner).take();
            // Closing writes as well; what fails there is found when the file is opened again.
            drop(catch_unwind(AssertUnwindSafe(|| drop(broken))));
            name(&self.path, failed(error))
        })
    }

    fn reopen(&self) -> Result<(), StorageError> {
        if self.database.read().unwrap_or_else(PoisonError::into_inner).is_some() {
            return Ok(());
        }
        let mut guard = self.database.write().unwrap_or_else(PoisonError::into_inner);
        if guard.is_none() {
            *guard = Some((self.opener)(&self.path).map_err(|error| open_error(&self.path, error))?);
            tracing::info!(path = %self.path.display(), "the store is open again");
        }
        Ok(())
    }

    fn closed(&self) -> StorageError {
        let detail = format!("{}: the last write failed; the next one opens it again", self.path.display());
        StorageError::Unavailable { detail }
    }
}

fn builder() -> redb::Builder {
    let mut builder = Database::builder();
    builder.set_cache_size(PAGE_CACHE_BYTES);
    builder
}

/// Makes an empty store beside the path and moves it there, so that a file at the path is always a whole one.
fn create(path: &Path, revision: Revision) -> Result<(), StorageError> {
    let fails = |error: &dyn std::error::Error| unavailable(path, error);
    let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::create_dir_all(folder).map_err(|error| fails(&error))?;
    let new = path.with_extension("new");
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(fails(&error)),
        _ => {}
    }
    let database = builder().create(&new).map_err(|error| fails(&error))?;
    let written = (|| -> Result<(), redb::Error> {
        let transaction = database.begin_write()?;
        transaction.open_table(CURRENT)?;
        transaction.open_table(LOG)?;
        let mut state = transaction.open_table(STATE)?;
        state.insert(STATE_FORMAT, FORMAT)?;
        state.insert(STATE_REVISION, revision.0)?;
        state.insert(STATE_COMPACTED, revision.0)?;
        drop(state);
        Ok(transaction.commit()?)
    })();
    written.map_err(|error| fails(&error))?;
    drop(database);
    fs::rename(&new, path).map_err(|error| fails(&error))?;
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(|error| fails(&error))
}

/// Opens a file with everything that opening would write kept in memory, and reads all of it: a damaged file is told from
/// a good one before anything can touch it.
fn verify(path: &Path) -> Result<(), StorageError> {
    let file =
        File::options().read(true).write(true).open(path).map_err(|error| unavailable(path, &error))?;
    let length = file.metadata().map_err(|error| unavailable(path, &error))?.len();
    if length == 0 {
        return Err(damaged(path, "it is empty"));
    }
    match file.try_lock() {
        Ok(()) => {}
        Err(fs::TryLockError::WouldBlock) => {
            return Err(open_error(path, DatabaseError::DatabaseAlreadyOpen));
        }
        Err(fs::TryLockError::Error(error)) => return Err(unavailable(path, &error)),
    }
    let state = Mutex::new(OverlayState { length, pages: BTreeMap::new() });
    let overlay = Overlay { file, state };
    // redb asserts where a page says what no page can say.
    let verified = catch_unwind(AssertUnwindSafe(|| {
        let mut database = builder().create_with_backend(overlay).map_err(|error| open_error(path, error))?;
        if !database.check_integrity().map_err(|error| open_error(path, error))? {
            tracing::warn!(path = %path.display(), "the store was not closed; it is repaired to its last commit");
        }
        let transaction = database.begin_read().map_err(failed)?;
        let tables = Tables::open(&transaction).map_err(failed)?;
        match tables.format()? {
            Some(FORMAT | FORMAT_WITH_VALUES) => tables.verify(),
            Some(other) => {
                Err(StorageError::Damaged { detail: format!("its format is {other}, not {FORMAT}") })
            }
            None => Err(StorageError::Damaged { detail: "it has no format record".to_owned() }),
        }
    }));
    match verified {
        Ok(verified) => verified.map_err(|error| name(path, error)),
        Err(_) => Err(damaged(path, "its pages contradict each other")),
    }
}

/// A file whose writes stay in memory.
#[derive(Debug)]
struct Overlay {
    file: File,
    state: Mutex<OverlayState>,
}

#[derive(Debug)]
struct OverlayState {
    length: u64,
    /// What was written, in pages of [`OVERLAY_PAGE`] bytes by number.
    pages: BTreeMap<u64, Vec<u8>>,
}

const OVERLAY_PAGE: usize = 4096;

impl Overlay {
    fn page(&self, number: u64) -> io::Result<Vec<u8>> {
        let mut page = vec![0; OVERLAY_PAGE];
        let mut filled = 0;
        while filled < OVERLAY_PAGE {
            let at = number * OVERLAY_PAGE as u64 + filled as u64;
            match self.file.read_at(&mut page[filled..], at)? {
                0 => break,
                read => filled += read,
            }
        }
        Ok(page)
    }

    /// Calls `each` with the part of every page in a span: page number, range in the page, range in the span.
    fn pages(
        offset: u64,
        length: usize,
        mut each: impl FnMut(u64, std::ops::Range<usize>, std::ops::Range<usize>) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut done = 0;
        while done < length {
            let at = offset + done as u64;
            let start = usize::try_from(at % OVERLAY_PAGE as u64).expect("below the size of a page");
            let size = (OVERLAY_PAGE - start).min(length - done);
            each(at / OVERLAY_PAGE as u64, start..start + size, done..done + size)?;
            done += size;
        }
        Ok(())
    }
}

impl StorageBackend for Overlay {
    fn len(&self) -> io::Result<u64> {
        Ok(self.state.lock().unwrap_or_else(PoisonError::into_inner).length)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if offset + out.len() as u64 > state.length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        // At one go, and over it what was written: that is little or nothing.
        let mut filled = 0;
        while filled < out.len() {
            match self.file.read_at(&mut out[filled..], offset + filled as u64)? {
                0 => break,
                read => filled += read,
            }
        }
        out[filled..].fill(0);
        Self::pages(offset, out.len(), |number, in_page, in_span| {
            if let Some(page) = state.pages.get(&number) {
                out[in_span].copy_from_slice(&page[in_page]);
            }
            Ok(())
        })
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).length = length;
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        Self::pages(offset, data.len(), |number, in_page, in_span| {
            let page = match state.pages.entry(number) {
                Entry::Occupied(page) => page.into_mut(),
                Entry::Vacant(page) => page.insert(self.page(number)?),
            };
            page[in_page].copy_from_slice(&data[in_span]);
            Ok(())
        })
    }
}

/// An error of redb in our words, without the file's name.
pub(super) fn failed(error: impl Into<redb::Error>) -> StorageError {
    match error.into() {
        redb::Error::Corrupted(detail) => StorageError::Damaged { detail },
        error @ (redb::Error::TableDoesNotExist(_)
        | redb::Error::TableTypeMismatch { .. }
        | redb::Error::TableIsMultimap(_)
        | redb::Error::TypeDefinitionChanged { .. }) => StorageError::Damaged { detail: error.to_string() },
        error => StorageError::Unavailable { detail: error.to_string() },
    }
}

const OPEN_ELSEWHERE: &str = "is open in another process";

/// Whether a file was not opened because another process has it.
pub(super) fn is_open_elsewhere(error: &StorageError) -> bool {
    matches!(error, StorageError::Unavailable { detail } if detail.ends_with(OPEN_ELSEWHERE))
}

fn open_error(path: &Path, error: DatabaseError) -> StorageError {
    match error {
        DatabaseError::DatabaseAlreadyOpen => {
            let detail = format!("{} {OPEN_ELSEWHERE}", path.display());
            StorageError::Unavailable { detail }
        }
        DatabaseError::Storage(redb::StorageError::Corrupted(detail)) => damaged(path, &detail),
        DatabaseError::Storage(redb::StorageError::Io(error))
            if matches!(error.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof) =>
        {
            damaged(path, "it is no store, or only a part of one")
        }
        DatabaseError::UpgradeRequired(version) => damaged(path, &format!("its file format is {version}")),
        error => unavailable(path, &error),
    }
}

/// Puts the file's name into an error that does not have it yet.
fn name(path: &Path, error: StorageError) -> StorageError {
    let shown = path.display().to_string();
    match error {
        StorageError::Damaged { detail } if !detail.contains(&shown) => damaged(path, &detail),
        StorageError::Unavailable { detail } if !detail.contains(&shown) => {
            StorageError::Unavailable { detail: format!("{shown}: {detail}") }
        }
        error => error,
    }
}

fn damaged(path: &Path, why: &str) -> StorageError {
    let detail = format!(
        "{} cannot be used: {why}. It was left as it is. Put a backup in its place, or move it away to begin with an \
         empty store",
        path.display()
    );
    StorageError::Damaged { detail }
}

fn unavailable(path: &Path, error: &dyn std::error::Error) -> StorageError {
    StorageError::Unavailable { detail: format!("{}: {error}", path.display()) }
}
