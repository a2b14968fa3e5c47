//! Tables of frontends whose backends are not chosen by chance alone ([`ebpf_common::balancing`]).
//!
//! Of a table only the backends are kept here: it is computed from them again when they change, compared with what the map
//! holds, and the pieces that differ are written. Piece by piece, as any mixture of old and new leads to backends that
//! exist: new ones are written before, and old ones deleted after all pieces.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    path::Path,
};

use ebpf_common::{
    Address, BackendId, Port, ServiceId,
    balancing::{self, PIECE_PLACES, PIECES, Piece, PieceKey},
    maps,
};

use crate::maps::{MapError, PinnedMap};

#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Member {
    pub(super) id: BackendId,
    pub(super) address: Address,
    pub(super) port: Port,
    pub(super) weight: u16,
}

#[derive(Debug)]
pub(super) struct Tables {
    map: PinnedMap<PieceKey, Piece>,
    /// By their first pieces.
    desired: HashMap<PieceKey, Box<[Member]>>,
    /// Those of which something is in the map.
    actual: HashSet<PieceKey>,
    /// Those that are desired and may not be in the map as they shall be.
    due: BTreeSet<PieceKey>,
}

/// What a write did.
#[derive(Default)]
pub(super) struct Written {
    /// Pieces.
    pub(super) pieces: usize,
    /// Tables that the map has no room for. They stay due.
    pub(super) without_room: usize,
}

impl Tables {
    /// Whatever the map holds is due for deletion until it is desired.
    pub(super) fn open(directory: &Path) -> Result<Self, MapError> {
        let map: PinnedMap<PieceKey, Piece> = PinnedMap::open(directory, maps::TABLES)?;
        let first = |key: PieceKey| PieceKey { piece: key.piece / PIECES * PIECES, ..key };
        let actual = map.keys(maps::TABLES_MAX)?.into_iter().map(first).collect();
        Ok(Self { map, desired: HashMap::new(), actual, due: BTreeSet::new() })
    }

    /// The highest id of a frontend that has or had a table.
    pub(super) fn last_service_id(&self) -> Option<u32> {
        self.actual.iter().map(|key| key.service_id.0).max()
    }

    /// Makes `members` the backends of a table; without any there shall be none.
    pub(super) fn desire(&mut self, service_id: ServiceId, first_piece: u32, members: Vec<Member>) {
        let key = PieceKey { service_id, piece: first_piece };
        if members.is_empty() {
            self.desired.remove(&key);
            self.due.remove(&key);
        } else if self.desired.get(&key).is_none_or(|before| **before != *members) {
            self.desired.insert(key, members.into());
            self.due.insert(key);
        }
    }

    /// The weight that a backend has in one of the frontend's tables.
    pub(super) fn weight(&self, service_id: ServiceId, id: BackendId) -> Option<u16> {
        let table = |piece| self.desired.get(&PieceKey { service_id, piece });
        let members = [0, PIECES].into_iter().filter_map(table).flatten();
        members.into_iter().find(|member| member.id == id).map(|member| member.weight)
    }

    pub(super) fn is_settled(&self) -> bool {
        self.due.is_empty() && self.actual.len() == self.desired.len()
    }

    /// How many pieces the map holds, where all of them found room.
    pub(super) fn piece_count(&self) -> usize {
        self.actual.len() * PIECES as usize
    }

    /// Writes what is due.
    ///
    /// # Errors
    /// Where the kernel refuses for another reason than that the map is full.
    pub(super) fn write(&mut self) -> Result<Written, MapError> {
        let mut written = Written::default();
        for key in self.due.clone() {
            match self.write_table(key) {
                Ok(pieces) => {
                    written.pieces += pieces;
                    self.due.remove(&key);
                }
                Err(MapError::Full { .. }) => written.without_room += 1,
                Err(error) => return Err(error),
            }
        }
        Ok(written)
    }

    fn write_table(&mut self, first: PieceKey) -> Result<usize, MapError> {
        let Some(members) = self.desired.get(&first) else { return Ok(0) };
        let is_new = self.actual.insert(first);
        let mut changed = Vec::new();
        for (number, piece) in (first.piece..).zip(pieces(members)) {
            let key = PieceKey { piece: number, ..first };
            if is_new || self.map.get(&key)? != Some(piece) {
                changed.push((key, piece));
            }
        }
        self.map.insert_all(&changed, |_, _| {})?;
        Ok(changed.len())
    }

    /// Deletes the tables that are not desired. Returns how many pieces they have.
    pub(super) fn delete(&mut self) -> Result<usize, MapError> {
        let gone: Vec<PieceKey> =
            self.actual.iter().filter(|key| !self.desired.contains_key(key)).copied().collect();
        for first in &gone {
            let keys = (first.piece..first.piece + PIECES).map(|piece| PieceKey { piece, ..*first });
            self.map.remove_all(&keys.collect::<Vec<_>>(), |_| {})?;
            self.actual.remove(first);
        }
        Ok(gone.len() * PIECES as usize)
    }
}

fn pieces(members: &[Member]) -> impl Iterator<Item = Piece> {
    let known: Vec<(Address, Port, u16)> =
        members.iter().map(|member| (member.address, member.port, member.weight)).collect();
    let mut ids = balancing::table(&known).into_iter().map(|index| members[index as usize].id);
    (0..PIECES).map(move |_| {
        let mut piece = Piece { backends: [BackendId(0); PIECE_PLACES as usize] };
        piece.backends.iter_mut().zip(&mut ids).for_each(|(place, id)| *place = id);
        piece
    })
}
