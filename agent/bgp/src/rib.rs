//! The routing information base: every accepted path, by destination, with interned attributes.
//!
//! A change marks its destination dirty; the speaker runs the decision process over dirty ones only.
//! The paths kept here are the Adj-RIB-In of all peers and the local prefixes at once; rejected ones are kept too, with
//! the reason, for display and for the day the policy changes.
//!
//! A destination has a number for as long as anybody knows of it, by which export groups keep what they have sent. What
//! the paths of one UPDATE have in common stands in memory once.

mod destinations;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::ops::Deref;
use std::sync::Arc;

use hashbrown::{HashMap, HashSet};

use crate::best_path::{self, Selection};
use crate::prefix::{Family, Prefix};
use crate::wire::Attributes;
use crate::wire::attributes::community;
pub use destinations::DestinationId;
use destinations::Destinations;

/// Next hops of one destination, sorted; equal ones share one allocation.
pub type NextHops = Arc<Vec<IpAddr>>;

/// Where a path comes from. Local sorts first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Source {
    Local,
    Peer(IpAddr),
}

#[derive(Clone, Debug, PartialEq)]
pub struct Path {
    learned: Arc<Learned>,
    /// The identifier that the peer gave it (RFC 7911); 0 without.
    pub path_id: u32,
    /// The identifier that we give it among the paths of its destination; set by `Rib::insert`, 1 or more.
    pub local_id: u32,
    /// Kept over a restart of the peer, not yet announced again.
    pub stale: bool,
}

/// What the paths of one UPDATE have in common.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Learned {
    pub source: Source,
    /// As the peer sent them: the Adj-RIB-In, to which a changed policy is applied.
    pub received: Arc<Attributes>,
    /// As the import policy left them.
    pub attributes: Arc<Attributes>,
    /// Why it takes no part in the decision.
    pub rejected: Option<Rejected>,
    /// BGP identifier of the peer.
    pub router_id: Ipv4Addr,
    /// Learned from another AS.
    pub external: bool,
}

/// Why a path is not considered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rejected {
    /// Our AS is in its AS_PATH.
    AsLoop,
    /// We are its ORIGINATOR_ID.
    OwnOriginator,
    /// Our cluster is in its CLUSTER_LIST.
    ClusterLoop,
    /// Its next hop is ours, or none that packets can be sent to.
    NextHop,
    /// The import policy's rule of this index, or its default.
    Policy(Option<u16>),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Local => f.write_str("local"),
            Source::Peer(peer) => peer.fmt(f),
        }
    }
}

impl fmt::Display for Rejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Rejected::AsLoop => f.write_str("our AS is in its AS_PATH"),
            Rejected::OwnOriginator => f.write_str("we are its ORIGINATOR_ID"),
            Rejected::ClusterLoop => f.write_str("our cluster is in its CLUSTER_LIST"),
            Rejected::NextHop => f.write_str("unusable next hop"),
            Rejected::Policy(Some(rule)) => write!(f, "rule {rule} of the import policy"),
            Rejected::Policy(None) => f.write_str("default of the import policy"),
        }
    }
}

impl Path {
    /// A path that was just learned or originated, with nothing done to it.
    pub fn new(source: Source, attributes: Arc<Attributes>, router_id: Ipv4Addr, external: bool) -> Path {
        let received = attributes.clone();
        let learned = Learned { source, received, attributes, rejected: None, router_id, external };
        Path::of(Arc::new(learned), 0)
    }

    pub fn of(learned: Arc<Learned>, path_id: u32) -> Path {
        Path { learned, path_id, local_id: 0, stale: false }
    }

    pub fn learned(&self) -> &Arc<Learned> {
        &self.learned
    }

    /// The same path with other things learned of it.
    pub fn with(&self, learned: Arc<Learned>) -> Path {
        Path { learned, ..*self }
    }
}

impl Deref for Path {
    type Target = Learned;

    fn deref(&self) -> &Learned {
        &self.learned
    }
}

impl Learned {
    /// Kept beyond the restart time (RFC 9494): only better than nothing.
    pub fn long_stale(&self) -> bool {
        self.attributes.communities.contains(&community::LLGR_STALE)
    }
}

/// How many paths a source has in a family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    pub total: usize,
    pub stale: usize,
    pub rejected: usize,
}

impl Count {
    fn add(&mut self, path: &Path) {
        self.total += 1;
        self.stale += usize::from(path.stale);
        self.rejected += usize::from(path.rejected.is_some());
    }

    fn subtract(&mut self, path: &Path) {
        self.total -= 1;
        self.stale -= usize::from(path.stale);
        self.rejected -= usize::from(path.rejected.is_some());
    }
}

/// The counts of all sources, with the place of the last one at hand: the next prefix of an UPDATE is of the same.
#[derive(Debug, Default)]
struct Counts {
    places: HashMap<(Source, Family), usize>,
    counts: Vec<Count>,
    last: Option<((Source, Family), usize)>,
}

impl Counts {
    fn of(&mut self, source: Source, family: Family) -> &mut Count {
        let key = (source, family);
        let place = match self.last {
            Some((last, place)) if last == key => place,
            _ => *self.places.entry(key).or_insert_with(|| {
                self.counts.push(Count::default());
                self.counts.len() - 1
            }),
        };
        self.last = Some((key, place));
        &mut self.counts[place]
    }

    fn get(&self, source: Source, family: Family) -> Count {
        self.places.get(&(source, family)).map_or_else(Count::default, |place| self.counts[*place])
    }

    fn forget_empty(&mut self) {
        let kept: Vec<((Source, Family), Count)> = self
            .places
            .iter()
            .map(|(key, place)| (*key, self.counts[*place]))
            .filter(|(_, count)| count.total > 0)
            .collect();
        *self = Counts::default();
        for ((source, family), count) in kept {
            *self.of(source, family) = count;
        }
    }
}

#[derive(Debug, Default)]
pub struct Rib {
    destinations: Destinations,
    counts: Counts,
    interned: HashSet<Arc<Attributes>>,
    interned_limit: usize,
    next_hops: HashSet<NextHops>,
    next_hops_limit: usize,
    /// Most destinations of one UPDATE have the same.
    last_next_hops: NextHops,
    dirty: Vec<DestinationId>,
    /// Destinations that had no path left when they were decided about.
    vanished: Vec<DestinationId>,
}

impl Rib {
    /// Shares one allocation between equal attributes.
    pub fn intern(&mut self, attributes: Attributes) -> Arc<Attributes> {
        shared(&mut self.interned, &mut self.interned_limit, attributes)
    }

    /// Adds a path or replaces the one of the same source and identifier.
    pub fn insert(&mut self, prefix: Prefix, mut path: Path) {
        let count = self.counts.of(path.source, prefix.family());
        count.add(&path);
        let id = self.destinations.add(prefix);
        let paths = self.destinations.paths_mut(id);
        let known =
            paths.iter_mut().find(|known| known.source == path.source && known.path_id == path.path_id);
        match known {
            Some(known) => {
                count.subtract(known);
                path.local_id = known.local_id;
                let refreshed_only = Arc::ptr_eq(&known.learned, &path.learned)
                    || known.attributes == path.attributes
                        && known.rejected == path.rejected
                        && known.router_id == path.router_id
                        && known.external == path.external;
                *known = path;
                if refreshed_only {
                    return;
                }
            }
            None => {
                path.local_id =
                    (1..).find(|id| paths.iter().all(|known| known.local_id != *id)).expect("few paths");
                paths.push(path);
            }
        }
        self.dirty(id);
    }

    pub fn remove(&mut self, prefix: Prefix, source: Source, path_id: u32) {
        if let Some(id) = self.destinations.find_next(prefix) {
            self.remove_if(id, |path| path.source == source && path.path_id == path_id);
        }
    }

    fn remove_if(&mut self, id: DestinationId, condition: impl Fn(&Path) -> bool) {
        let family = self.destinations.prefix(id).family();
        let counts = &mut self.counts;
        let removed = self.destinations.paths_mut(id).remove_if(|path| {
            let removes = condition(path);
            if removes {
                counts.of(path.source, family).subtract(path);
            }
            removes
        });
        if removed {
            self.dirty(id);
        }
    }

    fn dirty(&mut self, id: DestinationId) {
        if self.destinations.set_dirty(id, true) {
            self.dirty.push(id);
        }
    }

    /// Marks the paths of a source in one family as stale (RFC 4724 section 4.2).
    pub fn mark_stale(&mut self, source: Source, family: Family) {
        for id in self.destinations.ids() {
            if self.destinations.prefix(id).family() != family {
                continue;
            }
            for path in self.destinations.paths_mut(id).iter_mut().filter(|path| path.source == source) {
                let count = self.counts.of(source, family);
                count.subtract(path);
                path.stale = true;
                count.add(path);
            }
        }
    }

    /// Removes the paths of a source that are still stale, in one family or in all.
    pub fn sweep_stale(&mut self, source: Source, family: Option<Family>) {
        self.sweep(source, family, |path| path.stale);
    }

    /// Removes all paths of a source, in one family or in all.
    pub fn remove_source(&mut self, source: Source, family: Option<Family>) {
        self.sweep(source, family, |_| true);
    }

    /// Removes the paths of a source for which `condition` holds, in one family or in all.
    pub fn sweep(&mut self, source: Source, family: Option<Family>, condition: impl Fn(&Path) -> bool) {
        if self.count(source) == Count::default() {
            return;
        }
        let condition = |path: &Path| path.source == source && condition(path);
        for id in self.destinations.ids() {
            if family.is_none_or(|family| self.destinations.prefix(id).family() == family) {
                self.remove_if(id, condition);
            }
        }
        self.counts.forget_empty();
    }

    /// The destinations changed since the last call, in the order of their first change.
    pub fn take_dirty(&mut self) -> Vec<DestinationId> {
        let dirty = std::mem::take(&mut self.dirty);
        for id in &dirty {
            self.destinations.set_dirty(*id, false);
            if self.destinations.paths(*id).is_empty() {
                self.vanished.push(*id);
            }
        }
        dirty
    }

    /// How many numbers there may be of destinations without paths.
    pub fn vanished(&self) -> usize {
        self.vanished.len()
    }

    /// Nobody keeps anything of destinations without paths any more: their numbers are free for others.
    pub fn forget_vanished(&mut self) {
        for id in std::mem::take(&mut self.vanished) {
            self.destinations.forget(id);
        }
        self.destinations.give_back();
    }

    /// Has the decision and the exports of a destination made anew.
    pub fn mark_dirty(&mut self, prefix: Prefix) {
        if let Some(id) = self.destinations.find(prefix) {
            self.dirty(id);
        }
    }

    /// The paths of a source.
    pub fn paths_of(&self, source: Source) -> Vec<(Prefix, Path)> {
        let of_source = |(prefix, paths): (&Prefix, &[Path])| {
            let prefix = *prefix;
            let found: Vec<(Prefix, Path)> = paths
                .iter()
                .filter(|path| path.source == source)
                .map(|path| (prefix, path.clone()))
                .collect();
            found
        };
        self.destinations().flat_map(of_source).collect()
    }

    pub fn is_dirty(&self) -> bool {
        !self.dirty.is_empty()
    }

    pub fn select(&self, prefix: Prefix, multipath_max: usize) -> Option<Selection<'_>> {
        best_path::select(self.paths(prefix), multipath_max)
    }

    pub fn paths(&self, prefix: Prefix) -> &[Path] {
        self.destinations.find(prefix).map_or(&[], |id| self.destinations.paths(id))
    }

    pub fn paths_at(&self, id: DestinationId) -> &[Path] {
        self.destinations.paths(id)
    }

    pub fn prefix_at(&self, id: DestinationId) -> Prefix {
        self.destinations.prefix(id)
    }

    /// The number of a destination, while it has one.
    pub fn find(&self, prefix: Prefix) -> Option<DestinationId> {
        self.destinations.find(prefix)
    }

    /// The numbers of all destinations that have paths.
    pub fn ids(&self) -> impl Iterator<Item = DestinationId> {
        self.destinations.ids()
    }

    /// The numbers of all destinations, also of those without paths that somebody may know of still.
    pub fn numbers(&self) -> impl ExactSizeIterator<Item = DestinationId> {
        self.destinations.numbers()
    }

    /// Takes note of the next hops by which a destination is reached now; what they are, where they are others than
    /// before. None at all: it is not reached.
    pub fn set_next_hops(&mut self, id: DestinationId, next_hops: &[IpAddr]) -> Option<NextHops> {
        let before = self.destinations.next_hops(id);
        if before.map_or(&[][..], |before| before.as_slice()) == next_hops {
            return None;
        }
        if *self.last_next_hops != next_hops {
            self.last_next_hops = shared(&mut self.next_hops, &mut self.next_hops_limit, next_hops.to_vec());
        }
        let now = self.last_next_hops.clone();
        self.destinations.set_next_hops(id, (!now.is_empty()).then(|| now.clone()));
        Some(now)
    }

    /// All destinations that have paths, in no order.
    pub fn destinations(&self) -> impl Iterator<Item = (&Prefix, &[Path])> {
        self.destinations.iter()
    }

    /// The paths held from a source.
    pub fn count(&self, source: Source) -> Count {
        let mut sum = Count::default();
        for family in Family::ALL {
            let count = self.count_in(source, family);
            sum.total += count.total;
            sum.stale += count.stale;
            sum.rejected += count.rejected;
        }
        sum
    }

    /// The paths held from a source in one family.
    pub fn count_in(&self, source: Source, family: Family) -> Count {
        self.counts.get(source, family)
    }
}

/// The one allocation of a value; those that nobody else has are dropped now and then.
fn shared<T: Eq + std::hash::Hash>(known: &mut HashSet<Arc<T>>, limit: &mut usize, value: T) -> Arc<T> {
    if let Some(known) = known.get(&value) {
        return known.clone();
    }
    if known.len() >= *limit {
        known.retain(|entry| Arc::strong_count(entry) > 1);
        *limit = (known.len() * 2).max(1024);
    }
    let fresh = Arc::new(value);
    known.insert(fresh.clone());
    fresh
}

#[cfg(test)]
mod tests;
