//! One Service with its EndpointSlices, to its frontends.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr},
};

use ebpf_common::{
    Address, FrontendKey, Port, Protocol,
    desired::{self, Endpoint},
};
use k8s_openapi::api::{
    core::v1::{Service, ServicePort, ServiceSpec},
    discovery::v1::{EndpointConditions, EndpointPort, EndpointSlice},
};

use crate::{NodeView, ObjectName};

const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Somebody else proxies what carries this label.
const SERVICE_PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";
const HEADLESS: &str = "service.kubernetes.io/headless";
/// `sessionAffinityConfig.clientIP.timeoutSeconds`, as the API defaults it.
const AFFINITY_SECONDS: i32 = 10_800;

/// Whether the Service has addresses that this node balances.
pub(crate) fn is_ours(service: &Service) -> bool {
    let is_foreign =
        service.metadata.labels.as_ref().is_some_and(|labels| labels.contains_key(SERVICE_PROXY_NAME));
    let Some(spec) = &service.spec else { return false };
    !is_foreign && spec.type_.as_deref() != Some("ExternalName") && !cluster_ips(spec).is_empty()
}

/// The Service that a slice belongs to, unless it is one that nobody balances.
pub(crate) fn service_of_slice(slice: &EndpointSlice) -> Option<ObjectName> {
    let labels = slice.metadata.labels.as_ref()?;
    if labels.contains_key(SERVICE_PROXY_NAME) || labels.contains_key(HEADLESS) {
        return None;
    }
    let name = labels.get(SERVICE_NAME).filter(|name| !name.is_empty())?.clone();
    Some(ObjectName { namespace: slice.metadata.namespace.clone().unwrap_or_default(), name })
}

/// Every cluster IP with every port.
pub(crate) fn frontends<'a>(
    name: &ObjectName,
    service: &Service,
    slices: impl Iterator<Item = &'a EndpointSlice> + Clone,
    node: &NodeView,
) -> BTreeMap<FrontendKey, desired::Service> {
    let Some(spec) = &service.spec else { return BTreeMap::new() };
    let mut frontends = BTreeMap::new();
    for ip in cluster_ips(spec) {
        for port in spec.ports.iter().flatten() {
            let (Some(protocol), Some(number)) = (protocol(port.protocol.as_deref()), number(port.port))
            else {
                continue;
            };
            let family = slices.clone().filter(|slice| is_family(slice, ip));
            let endpoints = endpoints(spec, port, family, node);
            frontends.insert(
                FrontendKey::new(Address::from(ip), number, protocol),
                desired::Service {
                    name: display_name(name, port),
                    endpoints,
                    affinity_seconds: affinity_seconds(spec),
                },
            );
        }
    }
    frontends
}

/// What a slice says of an endpoint; several slices may, while one replaces another.
#[derive(Default)]
struct Conditions {
    ready: bool,
    serving_terminating: bool,
    local: bool,
}

/// The endpoints that get new connections: those that are ready, else those that end but still serve (KEP-1669). With
/// `internalTrafficPolicy: Local` the choice is among those of this node from the start (KEP-2086).
fn endpoints<'a>(
    spec: &ServiceSpec,
    port: &ServicePort,
    slices: impl Iterator<Item = &'a EndpointSlice>,
    node: &NodeView,
) -> Vec<Endpoint> {
    let only_local = spec.internal_traffic_policy.as_deref() == Some("Local");
    let mut all: BTreeMap<(Address, Port), Conditions> = BTreeMap::new();
    for slice in slices {
        let numbers: Vec<Port> = slice
            .ports
            .iter()
            .flatten()
            .filter(|candidate| is_same_port(candidate, port))
            .filter_map(port_number)
            .collect();
        for endpoint in slice.endpoints.iter().flatten() {
            // The addresses of one endpoint are interchangeable, and consumers take the first.
            let Some(ip) = endpoint.addresses.first().and_then(|text| text.parse::<IpAddr>().ok()) else {
                continue;
            };
            let local = endpoint.node_name.as_deref() == Some(node.name.as_str());
            if is_wrong_target(ip) || (only_local && !local) {
                continue;
            }
            let conditions = endpoint.conditions.as_ref();
            for number in &numbers {
                let merged = all.entry((Address::from(ip), *number)).or_default();
                merged.ready |= is_ready(conditions);
                merged.serving_terminating |= is_serving_terminating(conditions);
                merged.local |= local;
            }
        }
    }
    let chosen = |usable: fn(&Conditions) -> bool| -> Vec<Endpoint> {
        all.iter()
            .filter(|(_, conditions)| usable(conditions))
            .map(|((address, port), conditions)| Endpoint {
                address: *address,
                port: *port,
                local: conditions.local,
            })
            .collect()
    };
    let ready = chosen(|conditions| conditions.ready);
    if ready.is_empty() { chosen(|conditions| conditions.serving_terminating) } else { ready }
}

/// An unknown condition counts as ready (EndpointConditions, `ready`).
fn is_ready(conditions: Option<&EndpointConditions>) -> bool {
    conditions.and_then(|conditions| conditions.ready).unwrap_or(true)
}

fn is_serving_terminating(conditions: Option<&EndpointConditions>) -> bool {
    conditions.is_some_and(|conditions| {
        conditions.serving.unwrap_or(true) && conditions.terminating.unwrap_or(false)
    })
}

/// Addresses that the API forbids as endpoints, since each node would take them for its own.
fn is_wrong_target(ip: IpAddr) -> bool {
    ip.is_loopback() || ip.is_unspecified() || ip.is_multicast()
}

/// A port of a Service and one of a slice belong together by name and protocol; an unnamed one is named "".
fn is_same_port(candidate: &EndpointPort, port: &ServicePort) -> bool {
    candidate.name.as_deref().unwrap_or_default() == port.name.as_deref().unwrap_or_default()
        && protocol(candidate.protocol.as_deref()) == protocol(port.protocol.as_deref())
}

fn port_number(port: &EndpointPort) -> Option<Port> {
    port.port.and_then(number)
}

fn is_family(slice: &EndpointSlice, ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(_) => slice.address_type == "IPv4",
        IpAddr::V6(_) => slice.address_type == "IPv6",
    }
}

/// The addresses of the Service; none for a headless one or one without addresses yet.
fn cluster_ips(spec: &ServiceSpec) -> Vec<IpAddr> {
    let listed = spec.cluster_ips.as_deref().unwrap_or_default();
    let single = spec.cluster_ip.iter().filter(|_| listed.is_empty());
    let mut ips: Vec<IpAddr> = listed.iter().chain(single).filter_map(|text| text.parse().ok()).collect();
    ips.retain(|ip| *ip != IpAddr::V6(Ipv6Addr::UNSPECIFIED) && !ip.is_unspecified());
    ips
}

/// TCP where none is named; `None` for what is not balanced.
fn protocol(name: Option<&str>) -> Option<Protocol> {
    match name.unwrap_or("TCP") {
        "TCP" => Some(Protocol::TCP),
        "UDP" => Some(Protocol::UDP),
        _ => None,
    }
}

fn number(port: i32) -> Option<Port> {
    u16::try_from(port).ok().filter(|port| *port != 0).map(Port::new)
}

fn affinity_seconds(spec: &ServiceSpec) -> u32 {
    if spec.session_affinity.as_deref() != Some("ClientIP") {
        return 0;
    }
    let configured = spec
        .session_affinity_config
        .as_ref()
        .and_then(|config| config.client_ip.as_ref())
        .and_then(|client_ip| client_ip.timeout_seconds);
    u32::try_from(configured.unwrap_or(AFFINITY_SECONDS)).unwrap_or_default()
}

fn display_name(name: &ObjectName, port: &ServicePort) -> String {
    match port.name.as_deref().unwrap_or_default() {
        "" => format!("{}/{}", name.namespace, name.name),
        port => format!("{}/{}:{port}", name.namespace, name.name),
    }
}
