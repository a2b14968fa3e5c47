//! How full maps are.
//!
//! Of maps that the agent writes it knows the number of elements ([`crate::datapath::Datapath::map_entries`]); the others
//! are walked over, which a full one of half a million elements makes a matter of a hundred milliseconds: not for a
//! moment when somebody waits.

use std::path::Path;

use ebpf_common::maps;

use crate::{
    maps::MapError,
    view::{self, Walk},
};

/// Maps whose elements only the agent writes and deletes.
pub const WRITTEN_BY_AGENT: [&str; 11] = [
    maps::FRONTENDS,
    maps::SLOTS,
    maps::BACKENDS,
    maps::ADDRESSES,
    maps::SOURCE_RANGES,
    maps::TABLES,
    maps::NODE_ADDRESSES,
    maps::PODS,
    maps::POLICED,
    maps::PEERS,
    maps::RULES,
];

/// A pinned map that can be full.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Room {
    /// With the layout's version.
    pub map: String,
    /// As bpftool calls it. An LRU hash that is full forgets what was used least.
    pub kind: String,
    pub max_entries: u32,
}

impl Room {
    /// The map's name without the layout's version.
    pub fn name(&self) -> &str {
        view::split_version(&self.map).0
    }
}

/// The maps in `directory` that can be full, by name. Arrays always are.
pub fn rooms(directory: &Path) -> Result<Vec<Room>, MapError> {
    let mut rooms = Vec::new();
    for map in view::names(directory)? {
        let walk = Walk::open(directory, &map)?;
        if let Some(max_entries) = walk.room() {
            rooms.push(Room { kind: walk.kind(), max_entries, map });
        }
    }
    Ok(rooms)
}

/// Counts the elements of a map by walking over them.
pub fn count(directory: &Path, map: &str) -> Result<u64, MapError> {
    Walk::open(directory, map)?.count()
}
