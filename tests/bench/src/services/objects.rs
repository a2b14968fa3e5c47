//! The Services that are measured, and those that are there to be many: four endpoints each.
//!
//! The first hundred lead to pods of the laboratory, by turns on the client's node and on the other one, by TCP and UDP.
//! Every other one has one TCP port, and endpoints with addresses of their own that nobody has.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
};

use k8s_openapi::{
    api::{
        core::v1::{Service, ServicePort, ServiceSpec},
        discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice},
    },
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};

/// Endpoints of each Service, and server pods on each node.
pub(crate) const ENDPOINTS: u32 = 4;
/// How many Services lead somewhere.
const MEASURED: u32 = 100;
pub(crate) const SERVICES_MAX: u32 = 60_000;
pub(crate) const SERVICE_PORT: u16 = 80;
pub(crate) const POD_PORT: u16 = 8080;
pub(crate) const NODES: [&str; 2] = ["bench-a", "bench-b"];
pub(crate) const NAMESPACE: &str = "default";
/// Every pod and endpoint is in it.
pub(crate) const CLUSTER_CIDR: &str = "10.128.0.0/9";
pub(crate) const SERVICE_CIDR: &str = "10.96.0.0/16";

const SERVICES_FIRST: u32 = u32::from_be_bytes([10, 96, 1, 0]);
const FILLERS_FIRST: u32 = u32::from_be_bytes([10, 160, 0, 0]);

/// Where the endpoints of a Service are.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Place {
    SameNode,
    Across,
}

impl Place {
    pub(crate) const ALL: [Self; 2] = [Self::SameNode, Self::Across];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::SameNode => "same node",
            Self::Across => "across nodes",
        }
    }

    /// The node of the endpoints; the client is on the first one.
    pub(crate) const fn node(self) -> usize {
        match self {
            Self::SameNode => 0,
            Self::Across => 1,
        }
    }
}

/// The address of a pod by its node and its number on it.
pub(crate) fn pod_address(node: usize, pod: u32) -> Ipv4Addr {
    Ipv4Addr::new(10, 244, node as u8, pod as u8 + 2)
}

fn place(index: u32) -> Option<Place> {
    (index < MEASURED).then_some(if index.is_multiple_of(2) { Place::SameNode } else { Place::Across })
}

pub(crate) fn service_name(index: u32) -> String {
    format!("bench-{index:05}")
}

pub(crate) fn service_address(index: u32) -> Ipv4Addr {
    Ipv4Addr::from(SERVICES_FIRST + index)
}

/// Where clients ask that are to reach `place`, of `services` Services.
pub(crate) fn measured(services: u32, place: Place) -> Vec<SocketAddr> {
    (0..services)
        .filter(|index| self::place(*index) == Some(place))
        .map(|index| SocketAddr::from((service_address(index), SERVICE_PORT)))
        .collect()
}

/// The pods themselves, as often as there are Services that lead to them.
pub(crate) fn direct(services: u32, place: Place) -> Vec<SocketAddr> {
    let pods = measured(services, place).len() as u32 * ENDPOINTS;
    (0..pods).map(|at| SocketAddr::from((pod_address(place.node(), at % ENDPOINTS), POD_PORT))).collect()
}

pub(crate) fn service(index: u32) -> Service {
    let measured = place(index).is_some();
    let port = |protocol: &str| ServicePort {
        name: Some(protocol.to_lowercase()),
        port: i32::from(SERVICE_PORT),
        protocol: Some(protocol.to_owned()),
        ..ServicePort::default()
    };
    named_service(
        &service_name(index),
        service_address(index),
        if measured { vec![port("TCP"), port("UDP")] } else { vec![port("TCP")] },
    )
}

fn named_service(name: &str, address: Ipv4Addr, ports: Vec<ServicePort>) -> Service {
    Service {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some(NAMESPACE.to_owned()),
            ..ObjectMeta::default()
        },
        spec: Some(ServiceSpec {
            cluster_ip: Some(address.to_string()),
            cluster_ips: Some(vec![address.to_string()]),
            ports: Some(ports),
            ..ServiceSpec::default()
        }),
        status: None,
    }
}

pub(crate) fn slice(index: u32) -> EndpointSlice {
    let place = place(index);
    let endpoints = (0..ENDPOINTS).map(|number| match place {
        Some(place) => endpoint(pod_address(place.node(), number), NODES[place.node()]),
        None => endpoint(Ipv4Addr::from(FILLERS_FIRST + index * ENDPOINTS + number), NODES[1]),
    });
    let ports: &[&str] = if place.is_some() { &["TCP", "UDP"] } else { &["TCP"] };
    named_slice(&service_name(index), endpoints.collect(), ports)
}

fn endpoint(address: Ipv4Addr, node: &str) -> Endpoint {
    Endpoint {
        addresses: vec![address.to_string()],
        conditions: Some(EndpointConditions {
            ready: Some(true),
            serving: Some(true),
            terminating: Some(false),
        }),
        node_name: Some(node.to_owned()),
        ..Endpoint::default()
    }
}

fn named_slice(service: &str, endpoints: Vec<Endpoint>, protocols: &[&str]) -> EndpointSlice {
    let labels = BTreeMap::from([("kubernetes.io/service-name".to_owned(), service.to_owned())]);
    let port = |protocol: &&str| EndpointPort {
        name: Some(protocol.to_lowercase()),
        port: Some(i32::from(POD_PORT)),
        protocol: Some((*protocol).to_owned()),
        ..EndpointPort::default()
    };
    EndpointSlice {
        address_type: "IPv4".to_owned(),
        endpoints: Some(endpoints),
        metadata: ObjectMeta {
            name: Some(format!("{service}-1")),
            namespace: Some(NAMESPACE.to_owned()),
            labels: Some(labels),
            ..ObjectMeta::default()
        },
        ports: Some(protocols.iter().map(port).collect()),
    }
}

/// The Service whose endpoint changes. It has one at a time, so that the first connection to the new one is the first
/// that the change allows, and no choice is waited for.
pub(crate) const CHANGING: &str = "bench-changing";

const CHANGING_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 96, 255, 200);

pub(crate) fn changing_address() -> SocketAddr {
    SocketAddr::from((CHANGING_ADDRESS, SERVICE_PORT))
}

pub(crate) fn changing_service() -> Service {
    let port = ServicePort {
        name: Some("tcp".to_owned()),
        port: i32::from(SERVICE_PORT),
        protocol: Some("TCP".to_owned()),
        ..ServicePort::default()
    };
    named_service(CHANGING, CHANGING_ADDRESS, vec![port])
}

/// With the pod of this number on the client's node as its endpoint.
pub(crate) fn changing_slice(pod: u32) -> EndpointSlice {
    named_slice(CHANGING, vec![endpoint(pod_address(0, pod), NODES[0])], &["TCP"])
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn addresses_of_services_and_endpoints_differ_at_the_largest_size() {
        let services: BTreeSet<Ipv4Addr> = (0..SERVICES_MAX).map(service_address).collect();
        assert_eq!(services.len(), SERVICES_MAX as usize);
        let range = |text: &str| text.parse::<ipnetwork::Ipv4Network>().unwrap();
        assert!(services.iter().all(|address| range(SERVICE_CIDR).contains(*address)));
        assert!(!services.contains(&CHANGING_ADDRESS));
        let last = slice(SERVICES_MAX - 1).endpoints.unwrap();
        assert_eq!(last.len(), ENDPOINTS as usize);
        assert!(range(CLUSTER_CIDR).contains(last[3].addresses[0].parse().unwrap()));
    }

    #[test]
    fn the_same_pods_are_asked_directly_and_through_services() {
        for place in Place::ALL {
            assert_eq!(measured(10, place).len(), 5);
            assert_eq!(measured(50_000, place).len(), 50);
            assert_eq!(direct(10, place).len(), 20);
        }
        let endpoints = slice(1).endpoints.unwrap();
        assert_eq!(endpoints[0].addresses[0], pod_address(1, 0).to_string());
        assert_eq!(direct(10, Place::Across)[0].ip().to_string(), pod_address(1, 0).to_string());
    }
}
