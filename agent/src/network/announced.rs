//! What the node announces to its peers: blocks and pods, and of Services what the maps lead somewhere.
//!
//! | the node | of Services that other nodes serve as well | other addresses of Services | pods |
//! |---|---|---|---|
//! | in service | announced | announced | announced |
//! | leaving | announced, as the last choice | announced | announced |
//! | leaving, and its agent ends | withdrawn | announced | announced |
//!
//! The last choice is what carries GRACEFUL_SHUTDOWN (RFC 8326), LOCAL_PREF 0 inside the AS, and, for the many routers that
//! nobody has told of that community, the greatest MED.

use std::collections::BTreeSet;
use std::path::Path;

use bgp::policy::{Community, LocalKind};
use bgp::wire::attributes::community::GRACEFUL_SHUTDOWN;
use bgp::{LocalRoute, Prefix};
use dataplane::routes::Target;
use ipnetwork::IpNetwork;
use proxy::Announced;
use serde::{Deserialize, Serialize};

use super::{Network, State, is_single};
use crate::persist;

/// Some routers take the greatest number that there is for an unreachable route (RFC 4451, 3.1).
const LAST_CHOICE_MED: u32 = u32::MAX - 1;

/// What was announced of Services, and since which boot of the machine: the maps do not outlive it.
#[derive(Default, Serialize, Deserialize)]
struct Saved {
    boot_id: String,
    ranges: BTreeSet<IpNetwork>,
    addresses: BTreeSet<IpNetwork>,
    #[serde(default)]
    bound: BTreeSet<IpNetwork>,
}

impl Saved {
    fn write(announced: &Announced, path: &Path) -> anyhow::Result<()> {
        let Announced { ranges, addresses, bound } = announced.clone();
        persist::write_unflushed(path, &Saved { boot_id: persist::boot_id()?, ranges, addresses, bound })
    }

    /// What is of this boot.
    fn read(path: &Path) -> anyhow::Result<Saved> {
        let boot_id = persist::boot_id()?;
        let saved = persist::read_unflushed::<Saved>(path)?;
        Ok(saved.filter(|saved| saved.boot_id == boot_id).unwrap_or_default())
    }
}

impl Network {
    pub(super) fn announce(&self, state: &mut State) {
        let blocks: Vec<IpNetwork> =
            state.allocator.blocks().filter(|block| state.is_in_use(*block)).collect();
        for block in blocks.iter().filter(|block| !is_single(**block)) {
            state.own.insert(*block, Target::Blackhole);
        }
        let borrowed = state.allocator.borrowed().filter(|address| state.is_in_use(*address));
        let pods = borrowed.map(|address| (address, LocalKind::Pod));
        let of_pods = blocks.into_iter().map(|block| (block, LocalKind::Block)).chain(pods);
        let of_pods: Vec<_> = of_pods.filter(|(block, _)| state.supply.announces(*block)).collect();
        self.reach.announce(&of_pods.iter().map(|(prefix, _)| *prefix).collect());
        let services = &state.services;
        let ranges = services.ranges.iter().map(|range| (*range, LocalKind::ServiceRange));
        let addresses = services.addresses.iter().map(|address| (*address, LocalKind::Service));
        let all = ranges.chain(addresses).chain(of_pods);
        let route = |(prefix, kind): (IpNetwork, LocalKind)| {
            let is_last_choice = state.is_last_choice(prefix, kind);
            (Prefix::from(prefix), local_route(prefix, kind, &state.communities, is_last_choice))
        };
        self.bgp.set_local(all.map(route).collect());
    }

    /// Announces this of Services from now on, and nothing else. What the maps do not lead to a Service is unreachable
    /// here: it must not be sent to a router that sends it back.
    pub fn announce_services(&self, services: Announced) {
        let mut state = self.state();
        if state.services == services {
            return;
        }
        let of = |announced: &Announced| announced.ranges.union(&announced.addresses).copied().collect();
        let (before, after): (BTreeSet<IpNetwork>, BTreeSet<IpNetwork>) =
            (of(&state.services), of(&services));
        for gone in before.difference(&after).filter(|range| !self.service_cidrs.contains(range)) {
            if state.own.get(gone) == Some(&Target::Unreachable) {
                state.set_own(*gone, None);
            }
        }
        for new in after.difference(&before) {
            if !state.own.contains_key(new) {
                state.set_own(*new, Some(Target::Unreachable));
            }
        }
        state.services = services;
        if let Err(error) = Saved::write(&state.services, &self.services_file) {
            tracing::warn!("{error:#}");
        }
        self.announce(&mut state);
        state.apply();
    }

    /// Says this of announced prefixes from now on. Where the node `is_leaving`, peers are asked to prefer other ways to the
    /// Services that other nodes serve as well.
    pub fn set_attributes(&self, communities: Vec<(IpNetwork, Vec<Community>)>, is_leaving: bool) {
        let mut state = self.state();
        if state.communities != communities || state.is_leaving != is_leaving {
            state.communities = communities;
            state.is_leaving = is_leaving;
            self.announce(&mut state);
        }
    }

    /// Announces of Services only what leads to endpoints of this node alone, until it is told otherwise. Packets that are under
    /// way, and those of who has not heard, are served as before.
    pub fn withdraw_services(&self) {
        let mut state = self.state();
        let bound = std::mem::take(&mut state.services.bound);
        state.services = Announced { addresses: bound.clone(), bound, ..Announced::default() };
        self.announce(&mut state);
    }

    /// What an earlier agent announced of Services, as long as the maps that it filled may be there still.
    pub(super) fn restore_services(&self, state: &mut State) {
        let saved = match Saved::read(&self.services_file) {
            Ok(saved) => saved,
            Err(error) => {
                tracing::warn!("{error:#}");
                return;
            }
        };
        state.services = Announced { ranges: saved.ranges, addresses: saved.addresses, bound: saved.bound };
        let all = state.services.ranges.union(&state.services.addresses).copied().collect::<Vec<IpNetwork>>();
        for prefix in all {
            state.own.entry(prefix).or_insert(Target::Unreachable);
        }
    }
}

/// A route as peers are told of it. The last choice is taken where there is no other.
fn local_route(
    prefix: IpNetwork,
    kind: LocalKind,
    communities: &[(IpNetwork, Vec<Community>)],
    is_last_choice: bool,
) -> LocalRoute {
    let mut route = LocalRoute { kind, ..LocalRoute::default() };
    let covers = |range: &IpNetwork| range.contains(prefix.network()) && range.prefix() <= prefix.prefix();
    let shutdown = is_last_choice.then_some(Community::Standard(GRACEFUL_SHUTDOWN));
    let configured = communities.iter().filter(|(range, _)| covers(range)).flat_map(|(_, all)| all);
    for community in configured.chain(&shutdown) {
        match community {
            Community::Standard(value) if !route.communities.contains(value) => {
                route.communities.push(*value)
            }
            Community::Large(value) if !route.large_communities.contains(value) => {
                route.large_communities.push(*value);
            }
            _ => {}
        }
    }
    if is_last_choice {
        route.local_preference = Some(0);
        route.med = Some(LAST_CHOICE_MED);
    }
    route
}

impl State {
    /// Whether other nodes are to be preferred for this. The address of a backend that is here alone is at no other node, and
    /// neither are pods.
    fn is_last_choice(&self, prefix: IpNetwork, kind: LocalKind) -> bool {
        let is_elsewhere = match kind {
            LocalKind::ServiceRange => true,
            LocalKind::Service => !self.services.bound.contains(&prefix),
            LocalKind::Block | LocalKind::Pod | LocalKind::Node => false,
        };
        self.is_leaving && is_elsewhere
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_choice_is_said_in_every_way_that_a_router_may_listen_to() {
        let prefix: IpNetwork = "203.0.113.7/32".parse().expect("a prefix");
        let communities = [("203.0.113.0/24".parse().expect("a range"), vec![Community::Standard(80)])];
        let route = local_route(prefix, LocalKind::Service, &communities, false);
        assert_eq!((route.communities, route.local_preference, route.med), (vec![80], None, None));
        let route = local_route(prefix, LocalKind::Service, &communities, true);
        assert_eq!(route.communities, [80, GRACEFUL_SHUTDOWN], "what was configured stays");
        assert_eq!((route.local_preference, route.med), (Some(0), Some(4_294_967_294)));
        let configured = [(prefix, vec![Community::Standard(GRACEFUL_SHUTDOWN)])];
        let route = local_route(prefix, LocalKind::Service, &configured, true);
        assert_eq!(route.communities, [GRACEFUL_SHUTDOWN], "once");
    }
}
