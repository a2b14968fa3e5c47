//! One Service with its EndpointSlices, to its frontends.

use std::{collections::BTreeMap, net::IpAddr};

use ebpf_common::{Address, FrontendKey, Protocol, desired};

use crate::{
    NodeView, ObjectName,
    endpoints::{self, Choice},
    facts::{PortName, Service, Slice},
};

/// Every address of the Service with every port.
pub(crate) fn frontends<'a>(
    name: &ObjectName,
    service: &Service,
    slices: impl Iterator<Item = &'a Slice> + Clone,
    node: &NodeView,
) -> BTreeMap<FrontendKey, desired::Service> {
    let mut frontends = BTreeMap::new();
    for ip in &service.cluster_ips {
        let is_family = |other: &&IpAddr| other.is_ipv4() == ip.is_ipv4();
        let external: Vec<&IpAddr> = service.external_ips.iter().filter(is_family).collect();
        for port in &service.ports {
            let protocol = port.port.protocol;
            let family = slices.clone().filter(|slice| slice.is_v4 == ip.is_ipv4());
            let known = endpoints::of_port(&port.port, family, node);
            let desired = |mut choice: Choice| {
                // A connection is bound to its endpoint in any case.
                if protocol == Protocol::UDP {
                    choice.endpoints.extend(endpoints::present(&known, &choice));
                }
                desired::Service {
                    name: display_name(name, &port.port),
                    endpoints: choice.endpoints,
                    balancing: service.balancing,
                    affinity_seconds: service.affinity_seconds,
                    has_endpoints: choice.has_endpoints,
                    source_ranges: Box::default(),
                }
            };
            if port.node_port.is_some() || !external.is_empty() {
                let from_outside = desired(endpoints::external(&known, service.external_local, node));
                let key = |ip: &IpAddr| FrontendKey::new(Address::from(*ip), port.number, protocol);
                frontends.extend(external.iter().map(|ip| {
                    let restricted = service.restricted.as_ref();
                    let source_ranges = restricted.map(|some| some.ranges_of(ip)).unwrap_or_default();
                    (key(ip), desired::Service { source_ranges, ..from_outside.clone() })
                }));
                let any = key(ip).of_any_address();
                frontends.extend(
                    port.node_port.map(|port| (FrontendKey::new(any.address, port, protocol), from_outside)),
                );
            }
            // Last, so that no other address of the Service takes the place of its own.
            frontends.insert(
                FrontendKey::new(Address::from(*ip), port.number, protocol),
                desired(endpoints::internal(&known, service.internal_local, node)),
            );
        }
    }
    frontends
}

fn display_name(name: &ObjectName, port: &PortName) -> String {
    match &*port.name {
        "" => format!("{}/{}", name.namespace, name.name),
        port => format!("{}/{}:{port}", name.namespace, name.name),
    }
}
