//! Which endpoints of a Service's port this node gives to which clients: KEP-1669 (terminating endpoints), KEP-2086
//! (internalTrafficPolicy), KEP-2433 and KEP-3015 (topology hints, same zone and same node).
//!
//! An endpoint that is chosen by neither but serves keeps the datagram flows that it has, as with kube-proxy: neither a
//! policy, nor a hint, nor the begin of its end breaks what is under way.
//!
//! Those of weight 0 are chosen for nobody new.
//!
//! Two choices are made, each on its own: *cluster* is what the policy Cluster leads to, narrowed by hints; *local* is
//! what the policy Local leads to, and hints do not matter there. Each takes endpoints that are ready, and only without
//! any of these those that end but still serve.

use std::collections::{BTreeMap, BTreeSet};

use ebpf_common::{
    Address, Port,
    desired::{Clients, Endpoint},
};

use crate::{
    NodeView,
    facts::{self, PortName, Slice},
};

/// Every endpoint of a port, used or not.
pub(crate) type Known = BTreeMap<(Address, Port), State>;

/// What slices say of an endpoint; several may, while one replaces another.
#[derive(Default)]
pub(crate) struct State {
    ready: bool,
    serving: bool,
    serving_terminating: bool,
    local: bool,
    hints: Hints,
    /// The highest that a slice says.
    weight: u16,
}

/// For this node.
#[derive(Clone, Copy, Default)]
struct Hints {
    has_zones: bool,
    has_nodes: bool,
    this_zone: bool,
    this_node: bool,
}

/// What clients of one frontend get.
pub(crate) struct Choice {
    pub(crate) endpoints: Vec<Endpoint>,
    /// There is one somewhere, be it for none of these clients.
    pub(crate) has_endpoints: bool,
}

pub(crate) fn of_port<'a>(
    port: &PortName,
    slices: impl Iterator<Item = &'a Slice>,
    node: &NodeView,
) -> Known {
    let mut known = Known::new();
    for slice in slices {
        for (_, number) in slice.ports.iter().filter(|(name, _)| name == port) {
            for (endpoint, zones) in slice.endpoints() {
                known.entry((endpoint.address, *number)).or_default().merge(
                    &endpoint,
                    slice.weight,
                    zones,
                    node,
                );
            }
        }
    }
    known
}

/// For a cluster IP: one policy for all clients.
pub(crate) fn internal(known: &Known, local: bool, node: &NodeView) -> Choice {
    let chosen = if local { self::local(known) } else { cluster(known, node) };
    Choice {
        endpoints: chosen.iter().map(|at| endpoint(known, at, Clients::All)).collect(),
        has_endpoints: known.values().any(State::is_usable),
    }
}

/// For the addresses that clients outside the cluster use. The policy Local is for clients beyond the node; those on
/// it would gain nothing from a detour, and get what the policy Cluster gives.
pub(crate) fn external(known: &Known, local: bool, node: &NodeView) -> Choice {
    let cluster = cluster(known, node);
    let beyond = if local { self::local(known) } else { cluster.clone() };
    let both = known.keys().filter_map(|at| {
        let clients = match (cluster.contains(at), beyond.contains(at)) {
            (true, true) => Clients::All,
            (true, false) => Clients::Node,
            (false, true) => Clients::Beyond,
            (false, false) => return None,
        };
        Some(endpoint(known, at, clients))
    });
    Choice { endpoints: both.collect(), has_endpoints: known.values().any(State::is_usable) }
}

/// Those that serve and are not chosen, for who has them already.
pub(crate) fn present(known: &Known, choice: &Choice) -> Vec<Endpoint> {
    let chosen: Chosen = choice.endpoints.iter().map(|endpoint| (endpoint.address, endpoint.port)).collect();
    let serving = known.iter().filter(|(at, state)| state.serving && !chosen.contains(*at));
    serving.map(|(at, _)| endpoint(known, at, Clients::Present)).collect()
}

type Chosen = BTreeSet<(Address, Port)>;

fn cluster(known: &Known, node: &NodeView) -> Chosen {
    let hinted = hint_in_use(known, node);
    let ready = chosen(known, |state| state.ready && hinted(&state.hints));
    if ready.is_empty() { chosen(known, |state| state.serving_terminating) } else { ready }
}

fn local(known: &Known) -> Chosen {
    let ready = chosen(known, |state| state.local && state.ready);
    if ready.is_empty() { chosen(known, |state| state.local && state.serving_terminating) } else { ready }
}

/// Hints count only where every ready endpoint has one of the kind and one of them is for this node: a node that they
/// leave out would else have no endpoint.
fn hint_in_use(known: &Known, node: &NodeView) -> fn(&Hints) -> bool {
    let all_and_any = |has: fn(&Hints) -> bool, here: fn(&Hints) -> bool| {
        let mut ready =
            known.values().filter(|state| state.is_for_new() && state.ready).map(|state| &state.hints);
        ready.clone().all(has) && ready.any(here)
    };
    if all_and_any(|hints| hints.has_nodes, |hints| hints.this_node) {
        |hints| hints.this_node
    } else if !node.zone.is_empty() && all_and_any(|hints| hints.has_zones, |hints| hints.this_zone) {
        |hints| hints.this_zone
    } else {
        |_| true
    }
}

fn chosen(known: &Known, usable: impl Fn(&State) -> bool) -> Chosen {
    known.iter().filter(|(_, state)| state.is_for_new() && usable(state)).map(|(at, _)| *at).collect()
}

fn endpoint(known: &Known, at: &(Address, Port), clients: Clients) -> Endpoint {
    let (local, weight) = known.get(at).map_or((false, 0), |state| (state.local, state.weight));
    Endpoint { address: at.0, port: at.1, local, clients, weight }
}

impl State {
    fn is_usable(&self) -> bool {
        self.is_for_new() && (self.ready || self.serving_terminating)
    }

    fn is_for_new(&self) -> bool {
        self.weight != 0
    }

    fn merge<'a>(
        &mut self,
        endpoint: &facts::Endpoint,
        weight: u16,
        zones: impl Iterator<Item = &'a str>,
        node: &NodeView,
    ) {
        self.ready |= endpoint.ready;
        self.serving |= endpoint.serving;
        self.serving_terminating |= endpoint.serving && endpoint.terminating;
        self.local |= endpoint.here;
        self.weight = self.weight.max(weight);
        self.hints.has_nodes |= endpoint.has_nodes;
        self.hints.this_node |= endpoint.this_node;
        for zone in zones {
            self.hints.has_zones = true;
            self.hints.this_zone |= zone == node.zone;
        }
    }
}
