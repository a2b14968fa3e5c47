//! The table of destinations: numbered places in pieces that never move, and an index of numbers by prefix.
//!
//! A place costs 56 octets and its entry in the index 5, so that the memory of a full table goes into what is said of
//! its routes. A place is free again when `forget` says so, not before: others keep what belongs to its number.

use std::hash::BuildHasher;
use std::sync::Arc;

use hashbrown::{DefaultHashBuilder, HashTable};

use super::{NextHops, Path};
use crate::prefix::Prefix;

/// Places of one piece.
const PIECE: usize = 1024;

/// Names a destination while it is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DestinationId(u32);

impl DestinationId {
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

#[derive(Debug)]
struct Destination {
    paths: Paths,
    next_hops: Option<NextHops>,
    prefix: Prefix,
    is_dirty: bool,
    /// It is in the index.
    is_known: bool,
}

const _: () = assert!(size_of::<Destination>() <= 56);

/// The paths of a destination: most have one, which needs no list.
#[derive(Debug, Default)]
pub(super) enum Paths {
    #[default]
    None,
    One(Path),
    #[expect(clippy::box_collection, reason = "a list in place would make every destination larger")]
    Several(Box<Vec<Path>>),
}

impl Paths {
    fn as_slice(&self) -> &[Path] {
        match self {
            Paths::None => &[],
            Paths::One(path) => std::slice::from_ref(path),
            Paths::Several(paths) => paths,
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Path> {
        self.as_slice().iter()
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Path> {
        match self {
            Paths::None => Default::default(),
            Paths::One(path) => std::slice::from_mut(path).iter_mut(),
            Paths::Several(paths) => paths.iter_mut(),
        }
    }

    pub(super) fn push(&mut self, path: Path) {
        *self = match std::mem::take(self) {
            Paths::None => Paths::One(path),
            Paths::One(first) => Paths::Several(Box::new(vec![first, path])),
            Paths::Several(mut paths) => {
                paths.reserve_exact(1);
                paths.push(path);
                Paths::Several(paths)
            }
        };
    }

    /// Returns whether any was removed; `condition` is asked once for each.
    pub(super) fn remove_if(&mut self, mut condition: impl FnMut(&Path) -> bool) -> bool {
        match self {
            Paths::None => false,
            Paths::One(path) => {
                let removes = condition(path);
                if removes {
                    *self = Paths::None;
                }
                removes
            }
            Paths::Several(paths) => {
                let before = paths.len();
                paths.retain(|path| !condition(path));
                let removed = paths.len() < before;
                if paths.len() < 2 {
                    *self = paths.pop().map_or(Paths::None, Paths::One);
                }
                removed
            }
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Destinations {
    index: HashTable<u32>,
    hasher: DefaultHashBuilder,
    pieces: Vec<Vec<Destination>>,
    free: Vec<u32>,
    /// The place that was last asked for.
    last: u32,
}

fn at(pieces: &[Vec<Destination>], id: u32) -> &Destination {
    &pieces[id as usize / PIECE][id as usize % PIECE]
}

impl Destinations {
    fn at(&self, id: u32) -> &Destination {
        at(&self.pieces, id)
    }

    fn at_mut(&mut self, id: DestinationId) -> &mut Destination {
        &mut self.pieces[id.index() / PIECE][id.index() % PIECE]
    }

    pub(super) fn find(&self, prefix: Prefix) -> Option<DestinationId> {
        let hash = self.hasher.hash_one(prefix);
        self.index.find(hash, |id| self.at(*id).prefix == prefix).copied().map(DestinationId)
    }

    /// As `find`, with a look at the next place first: what came in one UPDATE is withdrawn in one, and told again in one.
    pub(super) fn find_next(&mut self, prefix: Prefix) -> Option<DestinationId> {
        let next = self.last.wrapping_add(1);
        let place = self.pieces.get(next as usize / PIECE).and_then(|piece| piece.get(next as usize % PIECE));
        let is_next = place.is_some_and(|place| place.is_known && place.prefix == prefix);
        let found = if is_next { Some(DestinationId(next)) } else { self.find(prefix) };
        self.last = found.map_or(self.last, |id| id.0);
        found
    }

    /// The number of a destination, given now where it had none.
    pub(super) fn add(&mut self, prefix: Prefix) -> DestinationId {
        if let Some(id) = self.find_next(prefix) {
            return id;
        }
        let fresh =
            Destination { paths: Paths::None, next_hops: None, prefix, is_dirty: false, is_known: true };
        let id = match self.free.pop() {
            Some(id) => {
                *self.at_mut(DestinationId(id)) = fresh;
                id
            }
            None => self.append(fresh),
        };
        self.last = id;
        let (pieces, hasher) = (&self.pieces, &self.hasher);
        let hash_of = |id: &u32| hasher.hash_one(at(pieces, *id).prefix);
        self.index.insert_unique(hasher.hash_one(prefix), id, hash_of);
        DestinationId(id)
    }

    fn append(&mut self, fresh: Destination) -> u32 {
        if self.pieces.last().is_none_or(|piece| piece.len() == PIECE) {
            self.pieces.push(Vec::with_capacity(PIECE));
        }
        let before = (self.pieces.len() - 1) * PIECE;
        let piece = self.pieces.last_mut().expect("one was added where there was none");
        piece.push(fresh);
        u32::try_from(before + piece.len() - 1).expect("fewer than four thousand million destinations")
    }

    /// Frees the number of a destination that has no paths; one that has some again, or is about to be decided about,
    /// keeps it.
    pub(super) fn forget(&mut self, id: DestinationId) {
        let Destination { paths, prefix, is_dirty, .. } = self.at(id.0);
        if !matches!(paths, Paths::None) || *is_dirty {
            return;
        }
        let hash = self.hasher.hash_one(prefix);
        if let Ok(entry) = self.index.find_entry(hash, |known| *known == id.0) {
            entry.remove();
            self.free.push(id.0);
            self.at_mut(id).is_known = false;
        }
    }

    /// Gives memory back where there are no destinations left.
    pub(super) fn give_back(&mut self) {
        if self.index.is_empty() {
            *self = Destinations { hasher: self.hasher.clone(), ..Destinations::default() };
        }
    }

    pub(super) fn paths(&self, id: DestinationId) -> &[Path] {
        self.at(id.0).paths.as_slice()
    }

    pub(super) fn paths_mut(&mut self, id: DestinationId) -> &mut Paths {
        &mut self.at_mut(id).paths
    }

    pub(super) fn prefix(&self, id: DestinationId) -> Prefix {
        self.at(id.0).prefix
    }

    /// Returns whether that is a change.
    pub(super) fn set_dirty(&mut self, id: DestinationId, is_dirty: bool) -> bool {
        std::mem::replace(&mut self.at_mut(id).is_dirty, is_dirty) != is_dirty
    }

    pub(super) fn next_hops(&self, id: DestinationId) -> Option<&NextHops> {
        self.at(id.0).next_hops.as_ref()
    }

    pub(super) fn set_next_hops(&mut self, id: DestinationId, next_hops: Option<Arc<Vec<std::net::IpAddr>>>) {
        self.at_mut(id).next_hops = next_hops;
    }

    fn places(&self) -> impl Iterator<Item = (DestinationId, &Destination)> {
        let places = self.pieces.iter().flatten().zip(0..).map(|(place, id)| (DestinationId(id), place));
        places.filter(|(_, place)| !matches!(place.paths, Paths::None))
    }

    pub(super) fn numbers(&self) -> impl ExactSizeIterator<Item = DestinationId> + use<> {
        let count = self.pieces.iter().map(Vec::len).sum::<usize>();
        (0..count).map(|index| DestinationId(index as u32))
    }

    /// Those that have paths.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&Prefix, &[Path])> {
        self.places().map(|(_, place)| (&place.prefix, place.paths.as_slice()))
    }

    /// Those that have paths.
    pub(super) fn ids(&self) -> impl Iterator<Item = DestinationId> + use<> {
        let ids: Vec<DestinationId> = self.places().map(|(id, _)| id).collect();
        ids.into_iter()
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use super::*;
    use crate::rib::Source;

    fn prefix(n: u8) -> Prefix {
        Prefix::new(IpAddr::from([10, 244, n, 0]), 24).unwrap()
    }

    #[test]
    fn a_number_that_was_forgotten_leads_nowhere_and_is_given_again() {
        let mut destinations = Destinations::default();
        let ids: Vec<DestinationId> = (0..3).map(|n| destinations.add(prefix(n))).collect();
        assert_eq!(ids.iter().map(|id| id.index()).collect::<Vec<_>>(), [0, 1, 2]);
        destinations.forget(ids[1]);
        destinations.give_back();
        assert_eq!(destinations.find_next(prefix(0)), Some(ids[0]));
        assert_eq!(destinations.find_next(prefix(1)), None, "its place still says its prefix");
        assert_eq!(destinations.add(prefix(7)), ids[1]);
        assert_eq!(destinations.find_next(prefix(2)), Some(ids[2]));
        assert_eq!(destinations.find(prefix(7)), Some(ids[1]));
    }

    #[test]
    fn a_destination_with_paths_or_undecided_keeps_its_number() {
        let mut destinations = Destinations::default();
        let (with_path, undecided) = (destinations.add(prefix(1)), destinations.add(prefix(2)));
        let path = Path::new(Source::Local, Arc::default(), Ipv4Addr::LOCALHOST, false);
        destinations.paths_mut(with_path).push(path);
        destinations.set_dirty(undecided, true);
        for id in [with_path, undecided] {
            destinations.forget(id);
        }
        assert_eq!(destinations.find(prefix(1)), Some(with_path));
        assert_eq!(destinations.find(prefix(2)), Some(undecided));
        assert_eq!(destinations.iter().count(), 1, "those without paths are not shown");
    }
}
