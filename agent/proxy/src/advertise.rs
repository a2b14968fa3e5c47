//! Which addresses of Services a node announces to its BGP peers. Pure.
//!
//! | `externalTrafficPolicy` | within a range that is announced whole | otherwise |
//! |---|---|---|
//! | Cluster | nothing more than the range | the address, from every node, while any endpoint is ready |
//! | Local | the address, from nodes with a ready endpoint | the same |
//!
//! A range of one address is never announced whole: without an endpoint it would lead nowhere. Endpoints that end are not
//! ready. An address outside of all ranges is not announced, nor is any by a node that takes no traffic of load balancers.

use std::{collections::BTreeSet, net::IpAddr};

use ipnetwork::IpNetwork;

use crate::facts::{Service, Slice};

/// `node.kubernetes.io/exclude-from-external-load-balancers`: a node that carries it announces nothing of Services.
pub const EXCLUDE: &str = "node.kubernetes.io/exclude-from-external-load-balancers";

/// What may be announced, as `BGPConfiguration` says it, and whether by this node. The default announces nothing.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Advertisement {
    /// Of addresses of load balancers.
    pub load_balancer: Vec<IpNetwork>,
    /// Of `externalIPs`.
    pub external: Vec<IpNetwork>,
    /// Of cluster IPs.
    pub cluster: Vec<IpNetwork>,
    /// Ranges of load balancers are not announced whole.
    pub load_balancers_one_by_one: bool,
    /// This node announces nothing.
    pub is_excluded: bool,
}

/// What a node announces.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Announced {
    /// Whole ranges.
    pub ranges: BTreeSet<IpNetwork>,
    /// Single addresses, as /32 and /128.
    pub addresses: BTreeSet<IpNetwork>,
    /// Of `addresses`, those that lead to endpoints of this node alone (`externalTrafficPolicy: Local`).
    pub bound: BTreeSet<IpNetwork>,
}

/// What is announced of one Service.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct OfService {
    /// In order.
    pub addresses: Box<[IpNetwork]>,
    pub is_bound: bool,
}

impl Advertisement {
    /// The ranges that are announced whole.
    pub fn ranges(&self) -> BTreeSet<IpNetwork> {
        if self.is_excluded {
            return BTreeSet::new();
        }
        let balancers = self.load_balancer.iter().filter(|_| !self.load_balancers_one_by_one);
        let all = balancers.chain(&self.external).chain(&self.cluster);
        all.filter(|range| !is_single(range)).map(|range| network(*range)).collect()
    }

    fn is_empty(&self) -> bool {
        let no_ranges = self.load_balancer.is_empty() && self.external.is_empty() && self.cluster.is_empty();
        self.is_excluded || no_ranges
    }
}

/// A range of one address.
fn is_single(range: &IpNetwork) -> bool {
    range.prefix() == if range.is_ipv4() { 32 } else { 128 }
}

/// Without host bits: peers would see two ranges where there is one.
fn network(range: IpNetwork) -> IpNetwork {
    IpNetwork::new(range.network(), range.prefix()).unwrap_or(range)
}

/// The addresses of one Service that are announced by themselves.
pub(crate) fn of_service<'a>(
    service: &Service,
    slices: impl Iterator<Item = &'a Slice> + Clone,
    advertisement: &Advertisement,
) -> OfService {
    if advertisement.is_empty() {
        return OfService::default();
    }
    let is_ready = |v4: bool, here: bool| {
        let family = slices.clone().filter(|slice| slice.is_v4 == v4 && !slice.ports.is_empty());
        family.flat_map(Slice::endpoints).any(|(endpoint, _)| endpoint.ready && (endpoint.here || !here))
    };
    let is_announced = |ip: &IpAddr, ranges: &[IpNetwork], are_whole: bool| {
        let mut around = ranges.iter().filter(|range| range.contains(*ip)).peekable();
        if around.peek().is_none() {
            return false;
        }
        let is_covered = are_whole && around.any(|range| !is_single(range));
        (service.external_local || !is_covered) && is_ready(ip.is_ipv4(), service.external_local)
    };
    let (external, balancers) = service
        .outside
        .as_ref()
        .map_or((&[][..], &[][..]), |outside| (&outside.external, &outside.balancers));
    let whole_balancers = !advertisement.load_balancers_one_by_one;
    let of = |ips: &[IpAddr], ranges: &[IpNetwork], are_whole: bool| -> Vec<IpNetwork> {
        let announced = ips.iter().filter(|ip| is_announced(ip, ranges, are_whole));
        announced.map(|ip| IpNetwork::from(*ip)).collect()
    };
    let mut addresses = of(&service.cluster_ips, &advertisement.cluster, true);
    addresses.extend(of(external, &advertisement.external, true));
    addresses.extend(of(balancers, &advertisement.load_balancer, whole_balancers));
    addresses.sort_unstable();
    addresses.dedup();
    OfService { addresses: addresses.into(), is_bound: service.external_local }
}
