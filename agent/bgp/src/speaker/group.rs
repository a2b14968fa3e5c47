//! An export group: who is in it, and what it has been sent of each destination (the Adj-RIB-Out of all its members).

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use hashbrown::HashMap;

use crate::prefix::Prefix;
use crate::rib::{DestinationId, Rib, Source};
use crate::session::ConnectionId;
use crate::wire::{Attributes, Nlri};

/// A route as it travels, with where it came from: it is not sent back there.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Route {
    pub(super) source: Source,
    pub(super) attributes: Arc<Attributes>,
}

/// One path to announce, or to withdraw.
pub(super) struct Change {
    pub(super) nlri: Nlri,
    pub(super) announce: Option<Arc<Route>>,
}

#[derive(Debug)]
pub(super) struct Group {
    pub(super) members: BTreeMap<IpAddr, ConnectionId>,
    advertised: Advertised,
    /// How much of it is from which source.
    counts: Counts,
    pub(super) pending: Vec<DestinationId>,
}

/// By the number of the destination.
#[derive(Debug)]
enum Advertised {
    /// Without identifiers there is one path at most.
    Best(Vec<Option<Arc<Route>>>),
    /// Each with its identifier; 0 in families that have none.
    Several(Vec<Vec<(u32, Arc<Route>)>>),
}

/// Counts by source. What changes of the last one is added when another comes.
#[derive(Debug, Default)]
struct Counts {
    by_source: HashMap<Source, isize>,
    last: Option<(Source, isize)>,
}

impl Counts {
    fn add(&mut self, source: Source, change: isize) {
        if let Some((last, sum)) = &mut self.last
            && *last == source
        {
            *sum += change;
            return;
        }
        if let Some((last, sum)) = self.last.replace((source, change)) {
            let count = self.by_source.entry(last).or_default();
            *count += sum;
            if *count == 0 {
                self.by_source.remove(&last);
            }
        }
    }
}

impl Group {
    pub(super) fn new(has_identifiers: bool, pending: Vec<DestinationId>) -> Group {
        let advertised =
            if has_identifiers { Advertised::Several(Vec::new()) } else { Advertised::Best(Vec::new()) };
        Group { members: BTreeMap::new(), advertised, counts: Counts::default(), pending }
    }

    /// Takes in that a destination is to have this route and no other, and adds to `changes` what that changes. For
    /// groups without identifiers.
    pub(super) fn set_best(
        &mut self,
        (id, prefix): (DestinationId, Prefix),
        wanted: Option<Arc<Route>>,
        changes: &mut Vec<Change>,
    ) {
        let Advertised::Best(routes) = &mut self.advertised else {
            let wanted = wanted.map(|route| (0, route));
            return self.set_several((id, prefix), wanted.into_iter().collect(), changes);
        };
        if routes.len() <= id.index() {
            if wanted.is_none() {
                return;
            }
            routes.resize(id.index() + 1, None);
        }
        let known = &mut routes[id.index()];
        if *known == wanted {
            return;
        }
        // Where the source moved to a member, that member must lose the old route.
        let source = wanted.as_ref().map(|route| route.source);
        let before = std::mem::replace(known, wanted.clone()).map(|route| route.source);
        if before != source {
            source.into_iter().for_each(|source| self.counts.add(source, 1));
            before.into_iter().for_each(|source| self.counts.add(source, -1));
        }
        changes.push(Change { nlri: prefix.into(), announce: wanted });
    }

    /// As `set_best`, for groups with identifiers.
    pub(super) fn set_several(
        &mut self,
        (id, prefix): (DestinationId, Prefix),
        wanted: Vec<(u32, Arc<Route>)>,
        changes: &mut Vec<Change>,
    ) {
        let Advertised::Several(routes) = &mut self.advertised else {
            let best = wanted.into_iter().next().map(|(_, route)| route);
            return self.set_best((id, prefix), best, changes);
        };
        if routes.len() <= id.index() {
            routes.resize(id.index() + 1, Vec::new());
        }
        let before = std::mem::replace(&mut routes[id.index()], wanted.clone());
        let nlri = |path_id: u32| Nlri { prefix, path_id };
        let has =
            |paths: &[(u32, Arc<Route>)], path_id: u32| paths.iter().any(|(known, _)| *known == path_id);
        let gone = before.iter().filter(|(path_id, _)| !has(&wanted, *path_id));
        changes.extend(gone.map(|(path_id, _)| Change { nlri: nlri(*path_id), announce: None }));
        let new = wanted.iter().filter(|path| !before.contains(path));
        changes.extend(
            new.map(|(path_id, route)| Change { nlri: nlri(*path_id), announce: Some(route.clone()) }),
        );
        wanted.iter().for_each(|(_, route)| self.counts.add(route.source, 1));
        before.iter().for_each(|(_, route)| self.counts.add(route.source, -1));
    }

    /// How many routes a member has been sent.
    pub(super) fn count_sent_to(&self, member: IpAddr) -> usize {
        let others = self.counts.by_source.iter().filter(|(source, _)| **source != Source::Peer(member));
        let last = self.counts.last.filter(|(source, _)| *source != Source::Peer(member));
        let sum = others.map(|(_, count)| count).sum::<isize>() + last.map_or(0, |(_, change)| change);
        usize::try_from(sum).unwrap_or(0)
    }

    /// There are this many destinations, and no number beyond.
    pub(super) fn shrink(&mut self, count: usize) {
        self.pending.shrink_to_fit();
        match &mut self.advertised {
            Advertised::Best(routes) => {
                routes.truncate(count);
                routes.shrink_to_fit();
            }
            Advertised::Several(routes) => {
                routes.truncate(count);
                routes.shrink_to_fit();
            }
        }
    }

    /// What the group has been sent of a destination.
    pub(super) fn of(&self, id: DestinationId) -> impl Iterator<Item = (u32, &Arc<Route>)> {
        let (best, several) = match &self.advertised {
            Advertised::Best(routes) => (routes.get(id.index()).and_then(Option::as_ref), None),
            Advertised::Several(routes) => (None, routes.get(id.index())),
        };
        let several = several.into_iter().flatten().map(|(path_id, route)| (*path_id, route));
        best.map(|route| (0, route)).into_iter().chain(several)
    }

    /// What a member has been sent.
    pub(super) fn sent_to(&self, member: IpAddr, rib: &Rib) -> Vec<(Nlri, Arc<Route>)> {
        let others = rib.numbers().flat_map(|id| {
            let prefix = rib.prefix_at(id);
            self.of(id).map(move |(path_id, route)| (Nlri { prefix, path_id }, route))
        });
        others
            .filter(|(_, route)| route.source != Source::Peer(member))
            .map(|(nlri, route)| (nlri, route.clone()))
            .collect()
    }
}
