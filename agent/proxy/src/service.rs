//! One Service with its EndpointSlices, to its frontends.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv6Addr},
};

use ebpf_common::{Address, FrontendKey, Port, Protocol, desired};
use k8s_openapi::api::{
    core::v1::{Service, ServicePort, ServiceSpec},
    discovery::v1::EndpointSlice,
};

use crate::{
    NodeView, ObjectName,
    endpoints::{self, Choice},
};

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

/// Every address of the Service with every port.
pub(crate) fn frontends<'a>(
    name: &ObjectName,
    service: &Service,
    slices: impl Iterator<Item = &'a EndpointSlice> + Clone,
    node: &NodeView,
) -> BTreeMap<FrontendKey, desired::Service> {
    let Some(spec) = &service.spec else { return BTreeMap::new() };
    let mut frontends = BTreeMap::new();
    for ip in cluster_ips(spec) {
        let external: Vec<IpAddr> =
            external_ips(service).into_iter().filter(|external| external.is_ipv4() == ip.is_ipv4()).collect();
        for port in spec.ports.iter().flatten() {
            let (Some(protocol), Some(number)) = (protocol(port.protocol.as_deref()), number(port.port))
            else {
                continue;
            };
            let family = slices.clone().filter(|slice| is_family(slice, ip.is_ipv4()));
            let known = endpoints::of_port(port, family, node);
            let desired = |mut choice: Choice| {
                // A connection is bound to its endpoint in any case.
                if protocol == Protocol::UDP {
                    choice.endpoints.extend(endpoints::present(&known, &choice));
                }
                desired::Service {
                    name: display_name(name, port),
                    endpoints: choice.endpoints,
                    affinity_seconds: affinity_seconds(spec),
                    has_endpoints: choice.has_endpoints,
                }
            };
            let node_port = port.node_port.and_then(self::number);
            if node_port.is_some() || !external.is_empty() {
                let from_outside = desired(endpoints::external(
                    &known,
                    is_local(spec.external_traffic_policy.as_deref()),
                    node,
                ));
                let key = |ip: &IpAddr| FrontendKey::new(Address::from(*ip), number, protocol);
                frontends.extend(external.iter().map(|ip| (key(ip), from_outside.clone())));
                let any = FrontendKey::new(Address::from(ip), number, protocol).of_any_address();
                frontends.extend(
                    node_port.map(|port| (FrontendKey::new(any.address, port, protocol), from_outside)),
                );
            }
            // Last, so that no other address of the Service takes the place of its own.
            frontends.insert(
                FrontendKey::new(Address::from(ip), number, protocol),
                desired(endpoints::internal(&known, is_local(spec.internal_traffic_policy.as_deref()), node)),
            );
        }
    }
    frontends
}

fn is_local(policy: Option<&str>) -> bool {
    policy == Some("Local")
}

/// The addresses by which clients outside the cluster know the Service: externalIPs, and those of its load balancer
/// that are its own and not a proxy's (KEP-1860).
fn external_ips(service: &Service) -> BTreeSet<IpAddr> {
    let spec = service.spec.as_ref();
    let of_spec = spec.and_then(|spec| spec.external_ips.as_ref()).into_iter().flatten();
    let is_balanced = spec.is_some_and(|spec| spec.type_.as_deref() == Some("LoadBalancer"));
    let status = service.status.as_ref().filter(|_| is_balanced);
    let ingress = status.and_then(|status| status.load_balancer.as_ref()?.ingress.as_ref());
    let of_status = ingress
        .into_iter()
        .flatten()
        .filter(|ingress| ingress.ip_mode.as_deref().unwrap_or("VIP") == "VIP")
        .filter_map(|ingress| ingress.ip.as_ref());
    let all = of_spec.chain(of_status).filter_map(|text| text.parse::<IpAddr>().ok());
    all.filter(|ip| !is_wrong_target(*ip)).collect()
}

/// Addresses that the API forbids as endpoints, since each node would take them for its own.
pub(crate) fn is_wrong_target(ip: IpAddr) -> bool {
    ip.is_loopback() || ip.is_unspecified() || ip.is_multicast()
}

pub(crate) fn is_family(slice: &EndpointSlice, v4: bool) -> bool {
    slice.address_type == if v4 { "IPv4" } else { "IPv6" }
}

/// The addresses of the Service; none for a headless one or one without addresses yet.
pub(crate) fn cluster_ips(spec: &ServiceSpec) -> Vec<IpAddr> {
    let listed = spec.cluster_ips.as_deref().unwrap_or_default();
    let single = spec.cluster_ip.iter().filter(|_| listed.is_empty());
    let mut ips: Vec<IpAddr> = listed.iter().chain(single).filter_map(|text| text.parse().ok()).collect();
    ips.retain(|ip| *ip != IpAddr::V6(Ipv6Addr::UNSPECIFIED) && !ip.is_unspecified());
    ips
}

/// TCP where none is named; `None` for what is not balanced.
pub(crate) fn protocol(name: Option<&str>) -> Option<Protocol> {
    match name.unwrap_or("TCP") {
        "TCP" => Some(Protocol::TCP),
        "UDP" => Some(Protocol::UDP),
        _ => None,
    }
}

pub(crate) fn number(port: i32) -> Option<Port> {
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
