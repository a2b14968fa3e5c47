//! What the programs know of the node itself: its addresses, the ones it sends from, and its network namespace.

use std::{collections::BTreeSet, io, net::IpAddr, os::fd::AsRawFd, path::Path};

use ebpf_common::{Address, Node, Range, Ranges, maps};
use ipnetwork::IpNetwork;

use crate::{
    delta::Delta,
    links::Links,
    maps::{MapError, PinnedMap},
    namespaces,
};

/// The only element of maps that have one.
const INDEX: u32 = 0;

/// The node as the network sees it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct NodeConfig {
    /// One per family at most: where other machines see what the node sends on for clients beyond it.
    pub sources: Vec<IpAddr>,
    /// Where node ports are reached. Loopback addresses need not be named.
    pub addresses: BTreeSet<IpAddr>,
    /// The network namespace whose sockets are the node's own; 0 for none.
    pub netns_cookie: u64,
    /// Where cluster IPs are, of which one per family is minded: ports that no Service has are refused there, and only
    /// there.
    pub service_ranges: Vec<IpNetwork>,
    /// Where pods of the cluster are, of which one per family is minded: what a pod of this node sends there takes the
    /// kernel's route and no other step through its stack.
    pub pod_ranges: Vec<IpNetwork>,
}

impl NodeConfig {
    /// The calling thread's network namespace as a node that sends from `sources`.
    ///
    /// # Errors
    /// Where the kernel does not say which addresses there are, or which namespace this is (before Linux 5.14).
    pub fn of_namespace(sources: &[IpAddr]) -> io::Result<Self> {
        let mut addresses = Links::open()?.node_addresses()?;
        addresses.extend(sources);
        let netns_cookie = netns_cookie()?;
        Ok(Self { sources: sources.to_vec(), addresses, netns_cookie, ..Self::default() })
    }
}

#[derive(Debug)]
pub(crate) struct NodeMaps {
    node_map: PinnedMap<u32, Node>,
    ranges_map: PinnedMap<u32, Ranges>,
    pod_ranges_map: PinnedMap<u32, Ranges>,
    addresses_map: PinnedMap<Address, u32>,
    addresses: Delta<Address, u32>,
}

impl NodeMaps {
    pub(crate) fn open(directory: &Path) -> Result<Self, MapError> {
        let addresses_map = PinnedMap::open(directory, maps::NODE_ADDRESSES)?;
        let addresses = Delta::from_actual(addresses_map.read_all()?);
        let node_map = PinnedMap::open(directory, maps::NODE)?;
        let ranges_map = PinnedMap::open(directory, maps::RANGES)?;
        let pod_ranges_map = PinnedMap::open(directory, maps::POD_RANGES)?;
        Ok(Self { node_map, ranges_map, pod_ranges_map, addresses_map, addresses })
    }

    /// Elements of the map of addresses.
    pub(crate) fn address_count(&self) -> usize {
        self.addresses.actual_count()
    }

    pub(crate) fn set(&mut self, config: &NodeConfig) -> Result<(), MapError> {
        let source = |v4: bool| {
            let found = config.sources.iter().find(|source| source.is_ipv4() == v4);
            found.map_or(Address::UNSPECIFIED, |source| Address::from(*source))
        };
        let node =
            Node { source_v4: source(true), source_v6: source(false), netns_cookie: config.netns_cookie };
        if self.node_map.get(&INDEX)? != Some(node) {
            self.node_map.insert(&INDEX, &node)?;
        }
        for (map, networks) in
            [(&self.ranges_map, &config.service_ranges), (&self.pod_ranges_map, &config.pod_ranges)]
        {
            let ranges = ranges_of(networks);
            if map.get(&INDEX)? != Some(ranges) {
                map.insert(&INDEX, &ranges)?;
            }
        }
        self.addresses.set_desired(config.addresses.iter().map(|address| (Address::from(*address), 0)));
        let new = self.addresses.upserts();
        self.addresses_map.insert_all(&new, |address, value| self.addresses.upserted(address, *value))?;
        let gone = self.addresses.deletes();
        self.addresses_map.remove_all(&gone, |address| self.addresses.deleted(address))
    }
}

/// The first of each family.
fn ranges_of(networks: &[IpNetwork]) -> Ranges {
    let range = |v4: bool| {
        let found = networks.iter().find(|range| range.is_ipv4() == v4);
        found.map_or(Range::NONE, |range| Range::new(Address::from(range.network()), range.prefix()))
    };
    Ranges { v4: range(true), v6: range(false) }
}

/// The cookie of the calling thread's network namespace, as the programs see it.
fn netns_cookie() -> io::Result<u64> {
    let socket = std::net::UdpSocket::bind((std::net::Ipv4Addr::LOCALHOST, 0))
        .or_else(|_| std::net::UdpSocket::bind((std::net::Ipv6Addr::LOCALHOST, 0)))?;
    namespaces::cookie_of(socket.as_raw_fd())
}
