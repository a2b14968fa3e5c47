//! How often clients asked for each frontend, as the programs count: per CPU, found by the frontend's id.
//!
//! An element comes with the first who asks, so that Services nobody asks for cost nothing. Only the agent deletes: what
//! it does not know any more.

use std::{
    collections::HashMap,
    io,
    path::{Path, PathBuf},
};

use ebpf_common::{ServiceCount, ServiceId, maps};

use crate::{
    bpf,
    maps::{MapError, PinnedMap},
    view::{Element, Walk},
};

#[derive(Debug)]
pub struct ServiceCounts {
    directory: PathBuf,
    map: PinnedMap<ServiceId, ServiceCount>,
    cpus: usize,
}

impl ServiceCounts {
    /// Opens the pinned map, and makes the place for what finds no room in it.
    ///
    /// # Errors
    /// Where there is no such map, or the number of CPUs cannot be read.
    pub fn open(directory: &Path) -> Result<Self, MapError> {
        let map = PinnedMap::open(directory, maps::SERVICE_COUNTS)?;
        let cpus =
            aya::util::nr_cpus().map_err(|(path, source)| MapError::Open { path: path.into(), source })?;
        let counts = Self { directory: directory.to_owned(), map, cpus };
        if counts.get(ServiceCount::REST)?.is_none() {
            let zeros = vec![ServiceCount::ZERO; counts.cpus];
            // SAFETY: the key has the map's size, and the kernel reads one value for each possible CPU.
            unsafe { bpf::update_at(counts.map.fd(), &ServiceCount::REST, zeros.as_ptr().cast()) }
                .map_err(|source| counts.map.error("update", source))?;
        }
        Ok(counts)
    }

    /// The sum over all CPUs; `None` of a frontend that nobody ever asked for.
    pub fn get(&self, id: ServiceId) -> Result<Option<ServiceCount>, MapError> {
        let mut values = vec![ServiceCount::ZERO; self.cpus];
        // SAFETY: the key has the map's size, and the kernel writes one value for each possible CPU, which is what
        // `values` has room for.
        match unsafe { bpf::lookup(self.map.fd(), &id, values.as_mut_ptr().cast()) } {
            Ok(()) => Ok(Some(values.into_iter().sum())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(self.map.error("lookup", source)),
        }
    }

    /// All that were asked for, and [`ServiceCount::REST`].
    pub fn all(&self) -> Result<HashMap<ServiceId, ServiceCount>, MapError> {
        let mut all = HashMap::new();
        let mut walk = Walk::open(&self.directory, maps::SERVICE_COUNTS)?;
        while let Some(piece) = walk.next_piece()? {
            for element in piece {
                if let Element::ServiceCount(id, count) = element {
                    all.insert(id, count);
                }
            }
        }
        Ok(all)
    }

    /// Forgets these.
    pub fn remove(&self, ids: &[ServiceId]) -> Result<(), MapError> {
        self.map.remove_all(ids, |_| {})
    }
}
