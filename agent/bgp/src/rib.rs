//! The routing information base: every accepted path, by destination, with interned attributes.
//!
//! A change marks its destination dirty; the speaker runs the decision process over dirty ones only.
//! The paths kept here are the Adj-RIB-In of all peers and the local prefixes at once.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use crate::best_path::{self, Selection};
use crate::prefix::{Family, Prefix};
use crate::wire::Attributes;

/// Where a path comes from. Local sorts first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Source {
    Local,
    Peer(IpAddr),
}

#[derive(Clone, Debug, PartialEq)]
pub struct Path {
    pub source: Source,
    pub attributes: Arc<Attributes>,
    /// BGP identifier of the peer.
    pub router_id: Ipv4Addr,
    /// Learned from another AS.
    pub external: bool,
    /// Kept over a restart of the peer, not yet announced again.
    pub stale: bool,
}

#[derive(Debug, Default)]
pub struct Rib {
    destinations: HashMap<Prefix, Vec<Path>>,
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

    /// Adds a path or replaces the one of the same source.
    pub fn insert(&mut self, prefix: Prefix, path: Path) {
        let paths = self.destinations.entry(prefix).or_default();
        match paths.iter_mut().find(|known| known.source == path.source) {
            Some(known) => {
                let refreshed_only = known.attributes == path.attributes
                    && known.router_id == path.router_id
                    && known.external == path.external;
                *known = path;
                if refreshed_only {
                    return;
                }
            }
            None => paths.push(path),
        }
        self.dirty.insert(prefix);
    }

    pub fn remove(&mut self, prefix: Prefix, source: Source) {
        self.remove_if(prefix, |path| path.source == source);
    }

    fn remove_if(&mut self, prefix: Prefix, condition: impl Fn(&Path) -> bool) {
        let Some(paths) = self.destinations.get_mut(&prefix) else { return };
        let before = paths.len();
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
        for (prefix, paths) in &mut self.destinations {
            if prefix.family() == family {
                for path in paths.iter_mut().filter(|path| path.source == source) {
                    path.stale = true;
                }
            }
        }
    }

    /// Removes the paths of a source that are still stale, in one family or in all.
    pub fn sweep_stale(&mut self, source: Source, family: Option<Family>) {
        self.sweep(family, |path| path.source == source && path.stale);
    }

    /// Removes all paths of a source, in one family or in all.
    pub fn remove_source(&mut self, source: Source, family: Option<Family>) {
        self.sweep(family, |path| path.source == source);
    }

    fn sweep(&mut self, family: Option<Family>, condition: impl Fn(&Path) -> bool) {
        let affected: Vec<Prefix> = self
            .destinations
            .iter()
            .filter(|(prefix, paths)| {
                family.is_none_or(|family| prefix.family() == family) && paths.iter().any(&condition)
            })
            .map(|(prefix, _)| *prefix)
            .collect();
        for prefix in affected {
            self.remove_if(prefix, &condition);
        }
    }

    /// The destinations changed since the last call, in order.
    pub fn take_dirty(&mut self) -> BTreeSet<Prefix> {
        std::mem::take(&mut self.dirty)
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

    /// The number of paths held from a source, and how many of them are stale.
    pub fn count(&self, source: Source) -> (usize, usize) {
        let mut total = (0, 0);
        for path in self.destinations.values().flatten().filter(|path| path.source == source) {
            total.0 += 1;
            total.1 += usize::from(path.stale);
        }
        total
    }
}

#[cfg(test)]
mod tests;
