//! What balancing depends on of a Service and of an EndpointSlice, and nothing more: 50,000 of each are kept.
//!
//! An object that says the same here as before changes nothing, however much else of it changed.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
};

use ebpf_common::{
    Address, Balancing, Port, Protocol,
    desired::{self, SourceRange},
};
use k8s_openapi::api::{
    core::v1::{self, ServicePort, ServiceSpec},
    discovery::v1::{self as discovery, EndpointConditions, EndpointPort},
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::ObjectName;

const SERVICE_NAME: &str = "kubernetes.io/service-name";
/// Somebody else proxies what carries this label.
const SERVICE_PROXY_NAME: &str = "service.kubernetes.io/service-proxy-name";
const HEADLESS: &str = "service.kubernetes.io/headless";
/// Of a Service, by an annotation: how its backends are chosen.
pub const BALANCING: &str = "seaway.dev/load-balancing";
/// Of an EndpointSlice, by an annotation: the weight of each of its endpoints, [`WEIGHTS`].
pub const WEIGHT: &str = "seaway.dev/weight";
pub const WEIGHTS: std::ops::RangeInclusive<u16> = 0..=256;
/// `sessionAffinityConfig.clientIP.timeoutSeconds`, as the API defaults it.
const AFFINITY_SECONDS: i32 = 10_800;

/// By which a port of a Service and one of a slice belong together; an unnamed one is named "".
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct PortName {
    pub(crate) name: Box<str>,
    pub(crate) protocol: Protocol,
}

#[derive(PartialEq, Eq, Debug)]
pub(crate) struct ServicePortFacts {
    pub(crate) port: PortName,
    pub(crate) number: Port,
    pub(crate) node_port: Option<Port>,
}

#[derive(PartialEq, Eq, Debug)]
pub(crate) struct Service {
    pub(crate) cluster_ips: Box<[IpAddr]>,
    /// The addresses by which clients outside the cluster know the Service: externalIPs, and those of its load balancer
    /// that are its own and not a proxy's (KEP-1860).
    pub(crate) external_ips: Box<[IpAddr]>,
    /// The same, apart; few Services have any.
    pub(crate) outside: Option<Box<Outside>>,
    /// Those of them that are for some clients only.
    pub(crate) restricted: Option<Box<Restricted>>,
    pub(crate) ports: Box<[ServicePortFacts]>,
    /// 0 means none.
    pub(crate) affinity_seconds: u32,
    /// Where load balancers ask for endpoints on this node.
    pub(crate) health_port: Option<u16>,
    pub(crate) balancing: Balancing,
    pub(crate) internal_local: bool,
    pub(crate) external_local: bool,
}

/// Addresses for clients outside of the cluster, by where they are written.
#[derive(PartialEq, Eq, Debug)]
pub(crate) struct Outside {
    pub(crate) external: Box<[IpAddr]>,
    pub(crate) balancers: Box<[IpAddr]>,
}

/// `loadBalancerSourceRanges`: whom the addresses of a load balancer serve.
#[derive(PartialEq, Eq, Debug)]
pub(crate) struct Restricted {
    ips: Box<[IpAddr]>,
    /// In order. A family that has none serves everybody.
    ranges: Box<[SourceRange]>,
}

#[derive(PartialEq, Eq, Debug)]
pub(crate) struct Slice {
    pub(crate) is_v4: bool,
    pub(crate) ports: Box<[(PortName, Port)]>,
    endpoints: Endpoints,
    pub(crate) weight: u16,
    /// The endpoints that are hinted to zones, in order; few have any.
    hints: Option<Box<[ZoneHint]>>,
}

#[derive(PartialEq, Eq, Debug)]
struct ZoneHint {
    endpoint: u32,
    zone: Arc<str>,
}

/// An address of IPv4 is kept in a quarter of the room: most are, and there are hundreds of thousands.
#[derive(PartialEq, Eq, Debug)]
enum Endpoints {
    V4(Box<[Endpoint<[u8; 4]>]>),
    Any(Box<[Endpoint]>),
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Endpoint<A = Address> {
    pub(crate) address: A,
    /// An unknown condition counts as ready (EndpointConditions, `ready`).
    pub(crate) ready: bool,
    pub(crate) serving: bool,
    pub(crate) terminating: bool,
    pub(crate) here: bool,
    /// It is hinted to nodes, and to this one.
    pub(crate) has_nodes: bool,
    pub(crate) this_node: bool,
}

/// The names of zones, each once.
#[derive(Debug, Default)]
pub(crate) struct Zones {
    names: BTreeSet<Arc<str>>,
    /// So many were in use when they were last looked through.
    used: usize,
}

impl Zones {
    fn named(&mut self, name: &str) -> Arc<str> {
        if let Some(known) = self.names.get(name) {
            return Arc::clone(known);
        }
        // Whoever writes slices may think of ever new ones.
        if self.names.len() >= 2 * self.used.max(32) {
            self.names.retain(|name| Arc::strong_count(name) > 1);
            self.used = self.names.len();
        }
        let new: Arc<str> = name.into();
        self.names.insert(Arc::clone(&new));
        new
    }
}

impl Service {
    /// `None` for one that has no addresses which this node balances.
    pub(crate) fn of(service: &v1::Service) -> Option<Self> {
        let labels = service.metadata.labels.as_ref();
        let is_foreign = labels.is_some_and(|labels| labels.contains_key(SERVICE_PROXY_NAME));
        let spec = service.spec.as_ref()?;
        let cluster_ips = cluster_ips(spec);
        if is_foreign || spec.type_.as_deref() == Some("ExternalName") || cluster_ips.is_empty() {
            return None;
        }
        Some(Self {
            cluster_ips: cluster_ips.into(),
            external_ips: external_ips(service, spec).into_iter().collect(),
            outside: Outside::of(service, spec).map(Box::new),
            restricted: Restricted::of(service, spec).map(Box::new),
            ports: spec.ports.iter().flatten().filter_map(service_port).collect(),
            affinity_seconds: affinity_seconds(spec),
            health_port: health_port(spec),
            balancing: said(&service.metadata, BALANCING, Balancing::of_name).unwrap_or_default(),
            internal_local: is_local(spec.internal_traffic_policy.as_deref()),
            external_local: is_local(spec.external_traffic_policy.as_deref()),
        })
    }
}

impl Outside {
    fn of(service: &v1::Service, spec: &ServiceSpec) -> Option<Self> {
        let external: Box<[IpAddr]> = addresses(spec.external_ips.iter().flatten()).collect();
        let balancers: Box<[IpAddr]> = balancer_ips(service, spec).collect();
        (!external.is_empty() || !balancers.is_empty()).then_some(Self { external, balancers })
    }
}

impl Restricted {
    fn of(service: &v1::Service, spec: &ServiceSpec) -> Option<Self> {
        let ips: BTreeSet<IpAddr> = balancer_ips(service, spec).collect();
        let mut ranges: BTreeSet<SourceRange> = source_ranges(spec).filter_map(|(_, range)| range).collect();
        for v4 in [true, false] {
            if ranges.iter().any(|range| range.is_v4() == v4 && range.is_everything()) {
                ranges.retain(|range| range.is_v4() != v4);
            }
        }
        let is_any = !ips.is_empty() && !ranges.is_empty();
        is_any.then(|| Self { ips: ips.into_iter().collect(), ranges: ranges.into_iter().collect() })
    }

    /// Whom an address of the Service serves; none where it serves everybody. Those of the other family do not matter.
    pub(crate) fn ranges_of(&self, ip: &IpAddr) -> Box<[SourceRange]> {
        if !self.ips.contains(ip) {
            return Box::default();
        }
        self.ranges.iter().filter(|range| range.is_v4() == ip.is_ipv4()).copied().collect()
    }
}

/// What an annotation says.
fn said<T>(metadata: &ObjectMeta, annotation: &str, read: impl Fn(&str) -> Option<T>) -> Option<T> {
    read(metadata.annotations.as_ref()?.get(annotation)?.trim())
}

fn weight(text: &str) -> Option<u16> {
    text.parse().ok().filter(|weight| WEIGHTS.contains(weight))
}

/// What a Service's annotation [`BALANCING`] says, where that is nothing known, and so ignored.
pub fn invalid_balancing(service: &v1::Service) -> Option<&str> {
    let text = service.metadata.annotations.as_ref()?.get(BALANCING)?;
    Balancing::of_name(text.trim()).is_none().then_some(text)
}

/// What an EndpointSlice's annotation [`WEIGHT`] says, where that is no weight, and so ignored.
pub fn invalid_weight(slice: &discovery::EndpointSlice) -> Option<&str> {
    let text = slice.metadata.annotations.as_ref()?.get(WEIGHT)?;
    weight(text.trim()).is_none().then_some(text)
}

/// What of `loadBalancerSourceRanges` is no range, and so ignored. Blanks around a range are allowed, and so is an empty
/// text.
pub fn invalid_source_ranges(service: &v1::Service) -> impl Iterator<Item = &str> {
    let ranges = service.spec.iter().flat_map(source_ranges);
    ranges.filter(|(text, range)| !text.is_empty() && range.is_none()).map(|(text, _)| text)
}

fn source_ranges(spec: &ServiceSpec) -> impl Iterator<Item = (&str, Option<SourceRange>)> {
    let texts = spec.load_balancer_source_ranges.iter().flatten().map(|text| text.trim());
    texts.map(|text| (text, source_range(text)))
}

/// ADDRESS/PREFIX. Old objects may have zeros before the numbers of an IPv4 address, which are decimal then too.
fn source_range(text: &str) -> Option<SourceRange> {
    let number = |digits: &str| -> Option<u8> {
        let is_number = digits.bytes().all(|byte| byte.is_ascii_digit());
        digits.parse().ok().filter(|_| is_number)
    };
    let (address, prefix) = text.split_once('/')?;
    let ip = address.parse::<IpAddr>().ok().or_else(|| {
        let octets: Option<Vec<u8>> = address.split('.').map(number).collect();
        <[u8; 4]>::try_from(octets?).ok().map(IpAddr::from)
    })?;
    SourceRange::new(ip, number(prefix)?)
}

impl Slice {
    /// The Service that a slice belongs to with what it says, unless it is one that nobody balances.
    pub(crate) fn of(
        slice: &discovery::EndpointSlice,
        node_name: &str,
        zones: &mut Zones,
    ) -> Option<(ObjectName, Self)> {
        let labels = slice.metadata.labels.as_ref()?;
        if labels.contains_key(SERVICE_PROXY_NAME) || labels.contains_key(HEADLESS) {
            return None;
        }
        let is_v4 = match slice.address_type.as_str() {
            "IPv4" => true,
            "IPv6" => false,
            _ => return None,
        };
        let name = labels.get(SERVICE_NAME).filter(|name| !name.is_empty())?.clone();
        let namespace = slice.metadata.namespace.clone().unwrap_or_default();
        let mut endpoints = Vec::new();
        let mut hints = Vec::new();
        for endpoint in slice.endpoints.iter().flatten() {
            let Some(facts) = Endpoint::of(endpoint, node_name) else { continue };
            let index = endpoints.len() as u32;
            let hinted = endpoint.hints.iter().flat_map(|hints| hints.for_zones.iter().flatten());
            hints.extend(hinted.map(|zone| ZoneHint { endpoint: index, zone: zones.named(&zone.name) }));
            endpoints.push(facts);
        }
        let facts = Self {
            is_v4,
            ports: slice.ports.iter().flatten().filter_map(slice_port).collect(),
            endpoints: Endpoints::of(endpoints),
            weight: said(&slice.metadata, WEIGHT, weight).unwrap_or(desired::Endpoint::WEIGHT),
            hints: (!hints.is_empty()).then(|| hints.into()),
        };
        Some((ObjectName { namespace, name }, facts))
    }

    /// The endpoints, each with the zones that it is hinted to.
    pub(crate) fn endpoints(&self) -> impl Iterator<Item = (Endpoint, impl Iterator<Item = &str>)> {
        let hints = self.hints.as_deref().unwrap_or_default();
        (0..).zip(self.endpoints.iter()).map(move |(index, endpoint)| {
            let first = hints.partition_point(|hint| hint.endpoint < index);
            let own = hints[first..].iter().take_while(move |hint| hint.endpoint == index);
            (endpoint, own.map(|hint| &*hint.zone))
        })
    }
}

impl Endpoints {
    fn of(endpoints: Vec<Endpoint>) -> Self {
        if endpoints.iter().all(|endpoint| endpoint.address.is_v4()) {
            let v4 = |endpoint: Endpoint| endpoint.at(endpoint.address.to_words()[3].to_ne_bytes());
            Self::V4(endpoints.into_iter().map(v4).collect())
        } else {
            Self::Any(endpoints.into())
        }
    }

    fn iter(&self) -> impl Iterator<Item = Endpoint> {
        let (v4, any): (&[Endpoint<[u8; 4]>], &[Endpoint]) = match self {
            Self::V4(v4) => (v4, &[]),
            Self::Any(any) => (&[], any),
        };
        v4.iter().map(|endpoint| endpoint.at(Address::from_v4(endpoint.address))).chain(any.iter().copied())
    }
}

impl<A> Endpoint<A> {
    /// The same with its address in another form.
    fn at<B>(&self, address: B) -> Endpoint<B> {
        let Self { address: _, ready, serving, terminating, here, has_nodes, this_node } = *self;
        Endpoint { address, ready, serving, terminating, here, has_nodes, this_node }
    }
}

impl Endpoint {
    fn of(endpoint: &discovery::Endpoint, node_name: &str) -> Option<Self> {
        // The addresses of one endpoint are interchangeable, and consumers take the first.
        let ip = endpoint.addresses.first()?.parse().ok().filter(|ip| !is_wrong_target(*ip))?;
        let said = |condition: fn(&EndpointConditions) -> Option<bool>| {
            endpoint.conditions.as_ref().and_then(condition)
        };
        let mut for_nodes = endpoint.hints.iter().flat_map(|hints| hints.for_nodes.iter().flatten());
        Some(Self {
            address: Address::from(ip),
            ready: said(|conditions| conditions.ready).unwrap_or(true),
            serving: said(|conditions| conditions.serving).unwrap_or(true),
            terminating: said(|conditions| conditions.terminating).unwrap_or(false),
            here: endpoint.node_name.as_deref() == Some(node_name),
            has_nodes: for_nodes.clone().next().is_some(),
            this_node: for_nodes.any(|hinted| hinted.name == node_name),
        })
    }
}

fn service_port(port: &ServicePort) -> Option<ServicePortFacts> {
    Some(ServicePortFacts {
        port: port_name(port.name.as_deref(), port.protocol.as_deref())?,
        number: number(port.port)?,
        node_port: port.node_port.and_then(number),
    })
}

fn slice_port(port: &EndpointPort) -> Option<(PortName, Port)> {
    Some((port_name(port.name.as_deref(), port.protocol.as_deref())?, port.port.and_then(number)?))
}

/// TCP where no protocol is named; `None` for what is not balanced.
fn port_name(name: Option<&str>, protocol: Option<&str>) -> Option<PortName> {
    let protocol = match protocol.unwrap_or("TCP") {
        "TCP" => Protocol::TCP,
        "UDP" => Protocol::UDP,
        "SCTP" => Protocol::SCTP,
        _ => return None,
    };
    Some(PortName { name: name.unwrap_or_default().into(), protocol })
}

fn number(port: i32) -> Option<Port> {
    u16::try_from(port).ok().filter(|port| *port != 0).map(Port::new)
}

fn is_local(policy: Option<&str>) -> bool {
    policy == Some("Local")
}

fn external_ips(service: &v1::Service, spec: &ServiceSpec) -> BTreeSet<IpAddr> {
    let of_spec = spec.external_ips.iter().flatten();
    addresses(of_spec).chain(balancer_ips(service, spec)).collect()
}

fn balancer_ips(service: &v1::Service, spec: &ServiceSpec) -> impl Iterator<Item = IpAddr> {
    let is_balanced = spec.type_.as_deref() == Some("LoadBalancer");
    let status = service.status.as_ref().filter(|_| is_balanced);
    let ingress = status.and_then(|status| status.load_balancer.as_ref()?.ingress.as_ref());
    let vips = ingress.into_iter().flatten().filter(|at| at.ip_mode.as_deref().unwrap_or("VIP") == "VIP");
    addresses(vips.filter_map(|ingress| ingress.ip.as_ref()))
}

fn addresses<'a>(texts: impl Iterator<Item = &'a String>) -> impl Iterator<Item = IpAddr> {
    texts.filter_map(|text| text.parse().ok()).filter(|ip| !is_wrong_target(*ip))
}

/// Addresses that the API forbids as endpoints, since each node would take them for its own.
fn is_wrong_target(ip: IpAddr) -> bool {
    ip.is_loopback() || ip.is_unspecified() || ip.is_multicast()
}

/// The addresses of the Service; none for a headless one or one without addresses yet.
fn cluster_ips(spec: &ServiceSpec) -> Vec<IpAddr> {
    let listed = spec.cluster_ips.as_deref().unwrap_or_default();
    let single = spec.cluster_ip.iter().filter(|_| listed.is_empty());
    let mut ips: Vec<IpAddr> = listed.iter().chain(single).filter_map(|text| text.parse().ok()).collect();
    ips.retain(|ip| *ip != IpAddr::V6(Ipv6Addr::UNSPECIFIED) && !ip.is_unspecified());
    ips
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

fn health_port(spec: &ServiceSpec) -> Option<u16> {
    let is_asked = spec.type_.as_deref() == Some("LoadBalancer")
        && spec.external_traffic_policy.as_deref() == Some("Local");
    let port = spec.health_check_node_port.filter(|_| is_asked)?;
    u16::try_from(port).ok().filter(|port| *port != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zones_that_nobody_names_any_more_are_forgotten() {
        let mut zones = Zones::default();
        let kept = zones.named("zone-a");
        for index in 0..10_000 {
            zones.named(&format!("zone-{index}"));
        }
        assert!(zones.names.len() <= 64, "{}", zones.names.len());
        assert!(Arc::ptr_eq(&kept, &zones.named("zone-a")));
    }
}
