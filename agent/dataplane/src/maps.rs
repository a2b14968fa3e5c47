//! Pinned maps with their types: opened by path, checked against the layout, read and written in batches.
//!
//! A batch is one system call for thousands of elements; where the kernel has none (before 5.6) each element is its own.

use std::{
    collections::HashSet,
    hash::Hash,
    io,
    marker::PhantomData,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use aya::Pod;

use crate::bpf;

/// Elements per system call: large enough that the call does not count, small enough for one allocation.
const BATCH: usize = 4096;

#[derive(Debug, thiserror::Error)]
pub enum MapError {
    #[error("opening the pinned map {}", path.display())]
    Open { path: PathBuf, source: io::Error },
    #[error(
        "the pinned map {} has keys of {key} and values of {value} bytes, and not {wanted_key} and {wanted_value}: \
         it was made by another program",
        path.display()
    )]
    Layout { path: PathBuf, key: usize, value: usize, wanted_key: usize, wanted_value: usize },
    #[error("the map {name} is full")]
    Full { name: String },
    #[error("{operation} in the map {name}")]
    Access { operation: &'static str, name: String, source: io::Error },
}

/// A pinned hash of `K` to `V`, or a trie.
#[derive(Debug)]
pub struct PinnedMap<K, V> {
    name: String,
    fd: OwnedFd,
    types: PhantomData<(K, V)>,
}

impl<K: Pod, V: Pod> PinnedMap<K, V> {
    /// # Errors
    /// Where there is no map at `directory/name`, or one with other sizes.
    pub fn open(directory: &Path, name: &str) -> Result<Self, MapError> {
        let path = directory.join(name);
        let fd = bpf::get_pinned(&path).map_err(|source| MapError::Open { path: path.clone(), source })?;
        let (key, value) =
            bpf::map_sizes(fd.as_fd()).map_err(|source| MapError::Open { path: path.clone(), source })?;
        if (key, value) != (size_of::<K>(), size_of::<V>()) {
            let (wanted_key, wanted_value) = (size_of::<K>(), size_of::<V>());
            return Err(MapError::Layout { path, key, value, wanted_key, wanted_value });
        }
        Ok(Self { name: name.to_owned(), fd, types: PhantomData })
    }

    pub fn get(&self, key: &K) -> Result<Option<V>, MapError> {
        let mut value = core::mem::MaybeUninit::<V>::uninit();
        // SAFETY: sizes were checked at opening; V is Pod, so any bytes that the kernel writes are valid.
        match unsafe { bpf::lookup(self.fd.as_fd(), key, value.as_mut_ptr().cast()) } {
            // SAFETY: the kernel filled it.
            Ok(()) => Ok(Some(unsafe { value.assume_init() })),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(self.error("lookup", source)),
        }
    }

    pub fn insert(&self, key: &K, value: &V) -> Result<(), MapError> {
        // SAFETY: sizes were checked at opening.
        unsafe { bpf::update(self.fd.as_fd(), key, value) }.map_err(|source| self.error("update", source))
    }

    /// Deletes an element; one that is not there is no error.
    pub fn remove(&self, key: &K) -> Result<(), MapError> {
        // SAFETY: sizes were checked at opening.
        match unsafe { bpf::delete(self.fd.as_fd(), key) } {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(self.error("delete", source)),
            _ => Ok(()),
        }
    }

    /// Writes all elements. `done` is told of each that is in the map, also where the call fails later.
    pub fn insert_all(&self, elements: &[(K, V)], mut done: impl FnMut(&K, &V)) -> Result<(), MapError> {
        for chunk in elements.chunks(BATCH) {
            let keys: Vec<K> = chunk.iter().map(|(key, _)| *key).collect();
            let values: Vec<V> = chunk.iter().map(|(_, value)| *value).collect();
            // SAFETY: sizes were checked at opening, and both slices come from one chunk.
            let batch = unsafe { bpf::update_batch(self.fd.as_fd(), &keys, &values) };
            match batch.result {
                Ok(()) => chunk.iter().for_each(|(key, value)| done(key, value)),
                Err(error) if is_unsupported(&error) => {
                    for (key, value) in chunk {
                        self.insert(key, value)?;
                        done(key, value);
                    }
                }
                Err(source) => {
                    // Unless the kernel said where it stopped, it did not begin.
                    let written = if batch.done < chunk.len() { batch.done } else { 0 };
                    chunk.iter().take(written).for_each(|(key, value)| done(key, value));
                    return Err(self.error("batch update", source));
                }
            }
        }
        Ok(())
    }

    /// Deletes all keys, those that are not there included. `done` is told of each.
    pub fn remove_all(&self, keys: &[K], mut done: impl FnMut(&K)) -> Result<(), MapError> {
        for chunk in keys.chunks(BATCH) {
            // SAFETY: sizes were checked at opening.
            let batch = unsafe { bpf::delete_batch(self.fd.as_fd(), chunk) };
            let deleted = if batch.result.is_ok() { chunk.len() } else { 0 };
            chunk[..deleted].iter().for_each(&mut done);
            // A batch stops at a missing key, and older kernels have none: each key by itself is always right.
            for key in &chunk[deleted..] {
                self.remove(key)?;
                done(key);
            }
        }
        Ok(())
    }

    /// Reads the keys of a trie, of which there are `max` at most, in no order. Those that come and go meanwhile may be
    /// missed.
    pub fn keys(&self, max: u32) -> Result<HashSet<K>, MapError>
    where
        K: Eq + Hash,
    {
        let (mut keys, mut last) = (HashSet::new(), None::<K>);
        // A trie has no position but a key, and begins again after one that is gone.
        for _ in 0..2 * u64::from(max) {
            let mut next = core::mem::MaybeUninit::<K>::uninit();
            let after = last.as_ref().map(|key| core::ptr::from_ref(key).cast());
            // SAFETY: the size was checked at opening.
            match unsafe { bpf::next_key(self.fd.as_fd(), after, next.as_mut_ptr().cast()) } {
                // SAFETY: the kernel filled it; K is Pod, so any bytes are valid.
                Ok(()) => keys.insert(*last.insert(unsafe { next.assume_init() })),
                Err(error) if error.kind() == io::ErrorKind::NotFound => break,
                Err(source) => return Err(self.error("next key", source)),
            };
        }
        Ok(keys)
    }

    /// Reads a whole hash. Elements that come and go meanwhile may be missed or, rarely, seen twice.
    pub fn read_all(&self) -> Result<Vec<(K, V)>, MapError> {
        let mut elements = Vec::new();
        let mut position = None;
        let mut size = BATCH;
        loop {
            let mut keys: Vec<K> = Vec::with_capacity(size);
            let mut values: Vec<V> = Vec::with_capacity(size);
            // SAFETY: K and V are Pod: any bytes, zeros included, are valid; the capacity was just reserved.
            unsafe {
                keys.as_mut_ptr().write_bytes(0, size);
                values.as_mut_ptr().write_bytes(0, size);
                keys.set_len(size);
                values.set_len(size);
            }
            let before = position;
            // SAFETY: sizes were checked at opening, and both slices are `size` long.
            let batch = unsafe { bpf::lookup_batch(self.fd.as_fd(), &mut position, &mut keys, &mut values) };
            let error = batch.result.err();
            match error {
                // One bucket holds more than there is room for.
                Some(error) if error.raw_os_error() == Some(libc::ENOSPC) => {
                    position = before;
                    size *= 2;
                    continue;
                }
                Some(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(self.error("batch lookup", error));
                }
                end => {
                    elements.extend(keys.into_iter().zip(values).take(batch.done));
                    if end.is_some() {
                        return Ok(elements);
                    }
                }
            }
        }
    }

    /// Whether nothing is in the map.
    pub fn is_empty(&self) -> Result<bool, MapError> {
        let (mut key, mut value) =
            (core::mem::MaybeUninit::<K>::zeroed(), core::mem::MaybeUninit::<V>::zeroed());
        // SAFETY: K and V are Pod: zeros and whatever the kernel writes are valid.
        let (key, value) = unsafe { (key.assume_init_mut(), value.assume_init_mut()) };
        let (keys, values) = (std::slice::from_mut(key), std::slice::from_mut(value));
        // SAFETY: sizes were checked at opening, and both slices are one long.
        let batch = unsafe { bpf::lookup_batch(self.fd.as_fd(), &mut None, keys, values) };
        match batch.result {
            // One bucket holds more than there is room for.
            Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => Ok(false),
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(self.error("batch lookup", error)),
            Ok(()) | Err(_) => Ok(batch.done == 0),
        }
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    pub(crate) fn error(&self, operation: &'static str, source: io::Error) -> MapError {
        match source.raw_os_error() {
            // A hash says the first, a trie the second.
            Some(libc::E2BIG | libc::ENOSPC) => MapError::Full { name: self.name.clone() },
            _ => MapError::Access { operation, name: self.name.clone(), source },
        }
    }
}

/// A pinned per-CPU array of counters.
#[derive(Debug)]
pub struct PinnedCounters {
    map: PinnedMap<u32, u64>,
    cpus: usize,
}

impl PinnedCounters {
    /// # Errors
    /// Where there is no such map, or the number of CPUs cannot be read.
    pub fn open(directory: &Path, name: &str) -> Result<Self, MapError> {
        let map = PinnedMap::open(directory, name)?;
        let cpus =
            aya::util::nr_cpus().map_err(|(path, source)| MapError::Open { path: path.into(), source })?;
        Ok(Self { map, cpus })
    }

    /// The counter's sum over all CPUs.
    pub fn sum(&self, index: u32) -> Result<u64, MapError> {
        let mut values = vec![0u64; self.cpus];
        // SAFETY: the kernel writes 8 bytes for each possible CPU, which is what `values` has room for.
        unsafe { bpf::lookup(self.map.fd.as_fd(), &index, values.as_mut_ptr().cast()) }
            .map_err(|source| self.map.error("lookup", source))?;
        Ok(values.iter().sum())
    }
}

pub(crate) fn is_unsupported(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EOPNOTSUPP | 524))
}
