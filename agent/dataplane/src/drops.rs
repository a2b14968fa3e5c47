//! Drops as they occur, for as long as somebody follows them.
//!
//! The programs tell them while a time in a map lies ahead, which [`DropReader::renew`] moves on: when the reader goes,
//! however it goes, they stop. There is one reader at a time, as a ring has one reading end.

use std::path::{Path, PathBuf};

use aya::maps::{Map, MapData, RingBuf};
use ebpf_common::{Dropped, maps};

use crate::{
    flows::now_ns,
    maps::{MapError, PinnedMap},
    view::{Element, Walk},
};

/// The only element of the map.
const INDEX: u32 = 0;
/// How long after the last renewal drops are told.
const LEASE_NS: u64 = 5_000_000_000;

#[derive(Debug, thiserror::Error)]
pub enum DropError {
    #[error(transparent)]
    Map(#[from] MapError),
    #[error("opening the ring of drops {}", path.display())]
    Ring { path: PathBuf, source: aya::maps::MapError },
}

pub struct DropReader {
    directory: PathBuf,
    ring: RingBuf<MapData>,
    followed_until: PinnedMap<u32, u64>,
    /// What was missed before, over all CPUs.
    missed_before: u64,
    started_ns: u64,
}

impl DropReader {
    /// Begins to follow. What is in the ring from earlier is left out.
    ///
    /// # Errors
    /// Where no agent has pinned the maps in `directory`.
    pub fn open(directory: &Path) -> Result<Self, DropError> {
        let path = directory.join(maps::DROPS);
        let ring = MapData::from_pin(&path)
            .and_then(Map::from_map_data)
            .and_then(RingBuf::try_from)
            .map_err(|source| DropError::Ring { path, source })?;
        let mut reader = Self {
            directory: directory.to_owned(),
            ring,
            followed_until: PinnedMap::open(directory, maps::DROPS_FOLLOWED)?,
            missed_before: 0,
            started_ns: now_ns(),
        };
        reader.missed_before = reader.missed_in_all()?;
        while reader.ring.next().is_some() {}
        reader.renew()?;
        Ok(reader)
    }

    /// Follows for some seconds more; to be called every second.
    pub fn renew(&self) -> Result<(), MapError> {
        self.followed_until.insert(&INDEX, &(now_ns() + LEASE_NS))
    }

    /// The oldest drops that were not taken yet, `count` at most.
    pub fn take(&mut self, count: usize) -> Vec<Dropped> {
        let mut drops = Vec::new();
        while drops.len() < count
            && let Some(item) = self.ring.next()
        {
            if item.len() != size_of::<Dropped>() {
                continue;
            }
            // SAFETY: as many bytes as a Dropped has, of which any are valid.
            let dropped = unsafe { item.as_ptr().cast::<Dropped>().read_unaligned() };
            if dropped.time_ns >= self.started_ns.saturating_sub(COARSE_NS) {
                drops.push(dropped);
            }
        }
        drops
    }

    /// Drops that were not told, since the last call: they came too fast, or nobody emptied the ring in time.
    pub fn missed(&mut self) -> Result<u64, MapError> {
        let all = self.missed_in_all()?;
        let since = all.saturating_sub(self.missed_before);
        self.missed_before = all;
        Ok(since)
    }

    fn missed_in_all(&self) -> Result<u64, MapError> {
        let elements = Walk::open(&self.directory, maps::DROP_GATES)?.next_piece()?.unwrap_or_default();
        let gates = elements.iter().flat_map(|element| match element {
            Element::DropGates(gates) => gates.as_slice(),
            _ => &[],
        });
        Ok(gates.map(|gate| gate.missed).sum())
    }
}

/// The programs' clock is that of the last tick, some milliseconds behind.
const COARSE_NS: u64 = 20_000_000;

impl Drop for DropReader {
    fn drop(&mut self) {
        // Where it cannot be said, the lease ends by itself.
        let _ = self.followed_until.insert(&INDEX, &0);
    }
}

/// The name of an interface of the calling thread's network namespace.
pub fn interface_name(index: u32) -> Option<String> {
    let name = nix::net::if_::if_indextoname(index).ok()?;
    // An index that no interface can have comes back as no name, and no error.
    Some(name.to_string_lossy().into_owned()).filter(|name| !name.is_empty())
}
