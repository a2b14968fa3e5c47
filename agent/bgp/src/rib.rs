//! The routing information base: every accepted path, by destination, with interned attributes.
//!
//! A change marks its destination dirty; the speaker runs the decision process over dirty ones only.
//! The paths kept here are the Adj-RIB-In of all peers and the local prefixes at once; rejected ones are kept too, with
//! the reason, for display and for the day the policy changes.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use crate::best_path::{self, Selection};
use crate::prefix::{Family, Prefix};
use crate::wire::Attributes;
use crate::wire::attributes::community;

/// Where a path comes from. Local sorts first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Source {
    Local,
    Peer(IpAddr),
}

#[derive(Clone, Debug, PartialEq)]
pub struct Path {
    pub source: Source,
    /// The identifier that the peer gave it (RFC 7911); 0 without.
    pub path_id: u32,
    /// The identifier that we give it among the paths of its destination; set by `Rib::insert`, 1 or more.
    pub local_id: u32,
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
    /// Kept over a restart of the peer, not yet announced again.
    pub stale: bool,
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
        Path {
            source,
            path_id: 0,
            local_id: 0,
            received: attributes.clone(),
            attributes,
            rejected: None,
            router_id,
            external,
            stale: false,
        }
    }

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

#[derive(Debug, Default)]
pub struct Rib {
    destinations: HashMap<Prefix, Vec<Path>>,
    counts: HashMap<(Source, Family), Count>,
    interned: HashSet<Arc<Attributes>>,
    interned_limit: usize,
    dirty: BTreeSet<Prefix>,
}

impl Rib {
    /// Shares one allocation between equal attributes.
    pub fn intern(&mut self, attributes: Attributes) -> Arc<Attributes> {
        if let Some(known) = self.interned.get(&attributes) {
            return known.clone();
        }
        if self.interned.len() >= self.interned_limit {
            self.interned.retain(|entry| Arc::strong_count(entry) > 1);
            self.interned_limit = (self.interned.len() * 2).max(1024);
        }
        let fresh = Arc::new(attributes);
        self.interned.insert(fresh.clone());
        fresh
    }

    /// Adds a path or replaces the one of the same source and identifier.
    pub fn insert(&mut self, prefix: Prefix, mut path: Path) {
        let paths = self.destinations.entry(prefix).or_default();
        let count = self.counts.entry((path.source, prefix.family())).or_default();
        count.add(&path);
        match paths.iter_mut().find(|known| known.source == path.source && known.path_id == path.path_id) {
            Some(known) => {
                count.subtract(known);
                path.local_id = known.local_id;
                let refreshed_only = known.attributes == path.attributes
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
                paths.reserve_exact(1);
                paths.push(path);
            }
        }
        self.dirty.insert(prefix);
    }

    pub fn remove(&mut self, prefix: Prefix, source: Source, path_id: u32) {
        self.remove_if(prefix, |path| path.source == source && path.path_id == path_id);
    }

    fn remove_if(&mut self, prefix: Prefix, condition: impl Fn(&Path) -> bool) {
        let Some(paths) = self.destinations.get_mut(&prefix) else { return };
        let before = paths.len();
        for path in paths.iter().filter(|path| condition(path)) {
            if let Some(count) = self.counts.get_mut(&(path.source, prefix.family())) {
                count.subtract(path);
            }
        }
        paths.retain(|path| !condition(path));
        if paths.len() == before {
            return;
        }
        if paths.is_empty() {
            self.destinations.remove(&prefix);
        }
        self.dirty.insert(prefix);
    }

    /// Marks the paths of a source in one family as stale (RFC 4724 section 4.2).
    pub fn mark_stale(&mut self, source: Source, family: Family) {
        self.update(source, Some(family), |path| {
            path.stale = true;
            false
        });
    }

    /// Changes the paths of a source, in one family or in all; `change` says whether that may change a decision.
    pub fn update(
        &mut self,
        source: Source,
        family: Option<Family>,
        mut change: impl FnMut(&mut Path) -> bool,
    ) {
        for (prefix, paths) in &mut self.destinations {
            if family.is_some_and(|family| family != prefix.family()) {
                continue;
            }
            for path in paths.iter_mut().filter(|path| path.source == source) {
                let count = self.counts.entry((source, prefix.family())).or_default();
                count.subtract(path);
                if change(path) {
                    self.dirty.insert(*prefix);
                }
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
        let affected: Vec<Prefix> = self
            .destinations
            .iter()
            .filter(|(prefix, paths)| {
                family.is_none_or(|family| prefix.family() == family) && paths.iter().any(condition)
            })
            .map(|(prefix, _)| *prefix)
            .collect();
        for prefix in affected {
            self.remove_if(prefix, condition);
        }
        self.counts.retain(|_, count| count.total > 0);
    }

    /// The destinations changed since the last call, in order.
    pub fn take_dirty(&mut self) -> BTreeSet<Prefix> {
        std::mem::take(&mut self.dirty)
    }

    /// Has the decision and the exports of a destination made anew.
    pub fn mark_dirty(&mut self, prefix: Prefix) {
        self.dirty.insert(prefix);
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
        best_path::select(self.destinations.get(&prefix)?, multipath_max)
    }

    pub fn paths(&self, prefix: Prefix) -> &[Path] {
        self.destinations.get(&prefix).map_or(&[], Vec::as_slice)
    }

    /// All destinations, in no order.
    pub fn destinations(&self) -> impl Iterator<Item = (&Prefix, &[Path])> {
        self.destinations.iter().map(|(prefix, paths)| (prefix, paths.as_slice()))
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
        self.counts.get(&(source, family)).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests;
