//! The decision process (RFC 4271 9.1.2.2, RFC 4456 section 9), with the step that decided.

use std::cmp::Ordering;
use std::fmt;
use std::net::IpAddr;

use crate::rib::{Path, Source};

/// The step at which the best path won over the runner-up, in the order they are tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    OnlyPath,
    Local,
    NotStale,
    LocalPref,
    AsPathLength,
    Origin,
    Med,
    ExternalOverInternal,
    RouterId,
    ClusterListLength,
    PeerAddress,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Reason::OnlyPath => "only path",
            Reason::Local => "originated here",
            Reason::NotStale => "the other is long stale",
            Reason::LocalPref => "higher LOCAL_PREF",
            Reason::AsPathLength => "shorter AS_PATH",
            Reason::Origin => "lower ORIGIN",
            Reason::Med => "lower MULTI_EXIT_DISC",
            Reason::ExternalOverInternal => "external over internal",
            Reason::RouterId => "lower BGP identifier",
            Reason::ClusterListLength => "shorter CLUSTER_LIST",
            Reason::PeerAddress => "lower peer address",
        })
    }
}

/// The default LOCAL_PREF where the attribute is absent.
pub const LOCAL_PREF_DEFAULT: u32 = 100;

/// Orders two paths; `Less` is better. The reason is the first step at which they differ.
pub fn compare(a: &Path, b: &Path) -> (Ordering, Reason) {
    let (order, reason) = compare_cost(a, b);
    if order != Ordering::Equal {
        return (order, reason);
    }
    let originator = |path: &Path| path.attributes.originator_id.unwrap_or(path.router_id);
    let cluster_list = |path: &Path| path.attributes.cluster_list.len();
    let steps = [
        (originator(a).cmp(&originator(b)), Reason::RouterId),
        (cluster_list(a).cmp(&cluster_list(b)), Reason::ClusterListLength),
    ];
    for (order, reason) in steps {
        if order != Ordering::Equal {
            return (order, reason);
        }
    }
    ((a.source, a.path_id).cmp(&(b.source, b.path_id)), Reason::PeerAddress)
}

/// The steps before the tie-breakers: paths equal here share the load.
fn compare_cost(a: &Path, b: &Path) -> (Ordering, Reason) {
    let local = |path: &Path| path.source != Source::Local;
    let local_pref = |path: &Path| path.attributes.local_pref.unwrap_or(LOCAL_PREF_DEFAULT);
    let length = |path: &Path| path.attributes.as_path_length();
    let med = |path: &Path| path.attributes.med.unwrap_or(0);
    let neighbour = |path: &Path| path.attributes.neighbour_asn();
    let med_order = if neighbour(a) == neighbour(b) { med(a).cmp(&med(b)) } else { Ordering::Equal };
    let steps = [
        (local(a).cmp(&local(b)), Reason::Local),
        (a.long_stale().cmp(&b.long_stale()), Reason::NotStale),
        (local_pref(b).cmp(&local_pref(a)), Reason::LocalPref),
        (length(a).cmp(&length(b)), Reason::AsPathLength),
        (a.attributes.origin.cmp(&b.attributes.origin), Reason::Origin),
        (med_order, Reason::Med),
        (b.external.cmp(&a.external), Reason::ExternalOverInternal),
    ];
    for (order, reason) in steps {
        if order != Ordering::Equal {
            return (order, reason);
        }
    }
    (Ordering::Equal, Reason::RouterId)
}

/// The outcome for one destination.
#[derive(Clone, Debug, PartialEq)]
pub struct Selection<'a> {
    pub best: &'a Path,
    pub reason: Reason,
    /// Next hops of the best path and of those equal in cost, sorted, without repeats.
    pub next_hops: Vec<IpAddr>,
}

/// Selects among `paths`. MED is compared between paths of one neighbour AS only, so those are settled
/// first (RFC 4271 9.1.2.2 c): otherwise the result would depend on the order of arrival. Rejected paths take no part.
pub fn select(paths: &[Path], multipath_max: usize) -> Option<Selection<'_>> {
    let eligible = || paths.iter().filter(|path| path.rejected.is_none());
    if let (Some(best), None) = (eligible().next(), eligible().nth(1)) {
        let next_hops = vec![best.attributes.next_hop];
        return Some(Selection { best, reason: Reason::OnlyPath, next_hops });
    }
    let candidates = ranked(paths);
    let (best, rest) = candidates.split_first()?;
    let reason = match rest.first() {
        None => Reason::Med,
        Some(second) => compare(best, second).1,
    };
    let mut next_hops = vec![best.attributes.next_hop];
    for path in rest {
        if next_hops.len() < multipath_max
            && compare_cost(best, path).0 == Ordering::Equal
            && !next_hops.contains(&path.attributes.next_hop)
        {
            next_hops.push(path.attributes.next_hop);
        }
    }
    next_hops.sort_unstable();
    Some(Selection { best, reason, next_hops })
}

/// The path that `select` chooses.
pub fn best(paths: &[Path]) -> Option<&Path> {
    match paths {
        [] => None,
        [path] => Some(path).filter(|path| path.rejected.is_none()),
        _ => select(paths, 1).map(|selection| selection.best),
    }
}

/// The paths that may be chosen, the best first; without those that lose to another by MED.
pub fn ranked(paths: &[Path]) -> Vec<&Path> {
    let eligible = || paths.iter().filter(|path| path.rejected.is_none());
    let beaten_by_med = |path: &Path, other: &Path| {
        other.attributes.med.unwrap_or(0) < path.attributes.med.unwrap_or(0)
            && other.attributes.neighbour_asn() == path.attributes.neighbour_asn()
            && compare_cost(other, path) == (Ordering::Less, Reason::Med)
    };
    let mut candidates: Vec<&Path> =
        eligible().filter(|path| !eligible().any(|other| beaten_by_med(path, other))).collect();
    candidates.sort_by(|a, b| compare(a, b).0);
    candidates
}
