//! The names of the cluster domain, kept by Service so that one change costs one Service's records.
//!
//! ```text
//! SVC.NS.svc.DOMAIN                    A, AAAA   cluster IPs; headless: the ready endpoints
//! _PORT._PROTO.SVC.NS.svc.DOMAIN       SRV       port and SVC name; headless: one for each endpoint
//! HOST.SVC.NS.svc.DOMAIN               A, AAAA   headless: one endpoint, by host name or dashed address
//! A-B-C-D.NS.pod.DOMAIN                A, AAAA   the address in the name itself
//! D.C.B.A.in-addr.arpa, …ip6.arpa      PTR       of cluster IPs and of headless endpoints
//! dns-version.DOMAIN                   TXT       the version of the specification
//! ```

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::num::NonZeroU16;
use std::sync::Arc;

use hashbrown::HashMap;
use hickory_proto::rr::rdata::{A, AAAA, CNAME, PTR, SRV, TXT};
use hickory_proto::rr::{Name, RData, RecordType};
use k8s_openapi::api::core::v1::{Service, ServicePort};
use k8s_openapi::api::discovery::v1::{EndpointPort, EndpointSlice};

/// The version of the Kubernetes DNS specification that the zone follows.
const SPECIFICATION: &str = "1.1.0";
const SERVICE_NAME: &str = "kubernetes.io/service-name";

/// Namespace and name.
type Key = (Box<str>, Box<str>);

/// What the zone knows about a name and type.
#[derive(Debug, PartialEq, Eq)]
pub enum Records {
    Found(Vec<RData>),
    /// The name exists, without records of that type.
    NoData,
    /// There is no such name in the domain.
    NoName,
    /// The name is not in the cluster's domain, nor a reverse name of one of its addresses.
    Elsewhere,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

/// A port of a Service or of its endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Empty for an unnamed one.
    pub name: Box<str>,
    protocol: Protocol,
    pub number: u16,
}

#[derive(Clone, Copy, Debug)]
struct Endpoint<A = IpAddr> {
    address: A,
    ready: bool,
    /// Which of its slice's hosts it is, counted from 1; `None` for the dashed address.
    host: Option<NonZeroU16>,
}

/// An address of IPv4 is kept in less room: most are, and there are hundreds of thousands.
#[derive(Debug)]
enum Endpoints {
    V4(Box<[Endpoint<Ipv4Addr>]>),
    Any(Box<[Endpoint]>),
}

#[derive(Debug)]
struct Slice {
    name: Arc<str>,
    ports: Box<[Port]>,
    endpoints: Endpoints,
    hosts: Box<[Box<str>]>,
}

/// Each field is as small as it can be: there may be 50,000 of these.
#[derive(Debug, Default)]
struct Entry {
    exists: bool,
    headless: bool,
    publish_not_ready: bool,
    /// As the Service lists them.
    addresses: Box<[IpAddr]>,
    external_name: Option<Box<Name>>,
    ports: Box<[Port]>,
    /// By name.
    slices: Vec<Slice>,
}

/// The cluster's zone.
pub struct Zone {
    domain: Vec<String>,
    entries: BTreeMap<Arc<Key>, Box<Entry>>,
    /// How many Services a namespace has, for names that exist only as a parent of others.
    namespaces: HashMap<Box<str>, usize>,
    reverse: HashMap<IpAddr, Vec<Arc<Key>>>,
    /// By a slice's namespace, which is its Service's too, and its name.
    service_by_slice: HashMap<Box<str>, HashMap<Arc<str>, Arc<Key>>>,
}

fn labels(name: &str) -> Vec<String> {
    name.trim_end_matches('.')
        .split('.')
        .filter(|label| !label.is_empty())
        .map(str::to_ascii_lowercase)
        .collect()
}

fn name_of(labels: &[&str]) -> Option<Name> {
    Name::from_ascii(format!("{}.", labels.join("."))).ok()
}

impl Zone {
    /// An empty zone for a domain such as `cluster.local`.
    #[must_use]
    pub fn new(domain: &str) -> Self {
        Self {
            domain: labels(domain),
            entries: BTreeMap::new(),
            namespaces: HashMap::new(),
            reverse: HashMap::new(),
            service_by_slice: HashMap::new(),
        }
    }

    /// The domain, absolute.
    #[must_use]
    pub fn origin(&self) -> String {
        format!("{}.", self.domain.join("."))
    }

    /// Takes a Service as it is now.
    pub fn set_service(&mut self, service: &Service) {
        let Some(key) = key_of(service.metadata.namespace.as_ref(), service.metadata.name.as_ref()) else {
            return;
        };
        let Some(spec) = &service.spec else { return };
        let (key, mut entry) = self.take(key);
        let listed: Vec<&String> = spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip).collect();
        entry.exists = true;
        entry.headless = listed.iter().any(|address| *address == "None");
        let mut addresses: Vec<IpAddr> = Vec::with_capacity(listed.len());
        for address in listed.iter().filter_map(|address| address.parse().ok()) {
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
        entry.addresses = addresses.into();
        entry.publish_not_ready = spec.publish_not_ready_addresses.unwrap_or_default();
        entry.external_name = match spec.type_.as_deref() {
            Some("ExternalName") => {
                spec.external_name.as_deref().and_then(|name| name_of(&[name.trim_end_matches('.')]))
            }
            _ => None,
        }
        .map(Box::new);
        let port =
            |port: &ServicePort| Port::new(port.name.as_deref(), port.protocol.as_deref(), Some(port.port));
        entry.ports = spec.ports.iter().flatten().filter_map(port).collect();
        self.put(key, entry);
    }

    pub fn remove_service(&mut self, namespace: &str, name: &str) {
        let (key, entry) = self.take((namespace.into(), name.into()));
        self.put(key, Box::new(Entry { slices: entry.slices, ..Entry::default() }));
    }

    /// After a fresh list: forgets the Services that were not in it, by namespace and name.
    pub fn retain_services(&mut self, listed: impl Fn(&str, &str) -> bool) {
        let is_gone = |key: &Key, entry: &Entry| entry.exists && !listed(&key.0, &key.1);
        let gone = self.entries.iter().filter(|(key, entry)| is_gone(key, entry));
        let gone: Vec<Arc<Key>> = gone.map(|(key, _)| Arc::clone(key)).collect();
        gone.iter().for_each(|key| self.remove_service(&key.0, &key.1));
    }

    /// Takes an EndpointSlice as it is now.
    pub fn set_slice(&mut self, slice: &EndpointSlice) {
        let Some((namespace, name)) = key_of(slice.metadata.namespace.as_ref(), slice.metadata.name.as_ref())
        else {
            return;
        };
        let service = slice.metadata.labels.as_ref().and_then(|labels| labels.get(SERVICE_NAME));
        self.remove_slice(&namespace, &name);
        let Some(service) = service else { return };
        let name: Arc<str> = name.into();
        let (key, mut entry) = self.take((namespace.clone(), service.as_str().into()));
        let place = entry.slices.partition_point(|known| known.name < name);
        entry.slices.reserve_exact(1);
        entry.slices.insert(place, Slice::new(Arc::clone(&name), slice));
        self.put(Arc::clone(&key), entry);
        self.service_by_slice.entry(namespace).or_default().insert(name, key);
    }

    pub fn remove_slice(&mut self, namespace: &str, name: &str) {
        let Some(slices) = self.service_by_slice.get_mut(namespace) else { return };
        let Some(key) = slices.remove(name) else { return };
        if slices.is_empty() {
            self.service_by_slice.remove(namespace);
        }
        let (key, mut entry) = self.take(Arc::unwrap_or_clone(key));
        entry.slices.retain(|slice| *slice.name != *name);
        self.put(key, entry);
    }

    /// After a fresh list: forgets the EndpointSlices that were not in it, by namespace and name.
    pub fn retain_slices(&mut self, listed: impl Fn(&str, &str) -> bool) {
        let mut gone: Vec<(Box<str>, Arc<str>)> = Vec::new();
        for (namespace, slices) in &self.service_by_slice {
            let unlisted = slices.keys().filter(|name| !listed(namespace, name));
            gone.extend(unlisted.map(|name| (namespace.clone(), Arc::clone(name))));
        }
        gone.iter().for_each(|(namespace, name)| self.remove_slice(namespace, name));
    }

    /// Removes an entry with what is derived from it.
    fn take(&mut self, key: Key) -> (Arc<Key>, Box<Entry>) {
        let Some((key, entry)) = self.entries.remove_entry(&key) else {
            return (Arc::new(key), Box::default());
        };
        for address in entry.reverse_addresses() {
            if let Some(keys) = self.reverse.get_mut(&address) {
                keys.retain(|of| *of != key);
                if keys.is_empty() {
                    self.reverse.remove(&address);
                }
            }
        }
        if entry.exists
            && let Some(count) = self.namespaces.get_mut(&key.0)
        {
            *count -= 1;
            if *count == 0 {
                self.namespaces.remove(&key.0);
            }
        }
        (key, entry)
    }

    fn put(&mut self, key: Arc<Key>, entry: Box<Entry>) {
        if !entry.exists && entry.slices.is_empty() {
            return;
        }
        for address in entry.reverse_addresses() {
            let keys = self.reverse.entry(address).or_default();
            if let Err(place) = keys.binary_search(&key) {
                keys.reserve_exact(1);
                keys.insert(place, Arc::clone(&key));
            }
        }
        if entry.exists {
            *self.namespaces.entry(key.0.clone()).or_default() += 1;
        }
        self.entries.insert(key, entry);
    }

    /// The Services of a namespace: name, cluster IPs and ports, each as the Service lists them.
    pub fn services_of(&self, namespace: &str) -> impl Iterator<Item = (&str, &[IpAddr], &[Port])> {
        let first: Key = (namespace.into(), "".into());
        let entries = self.entries.range::<Key, _>(first..);
        let own = entries.take_while(move |(key, _)| *key.0 == *namespace);
        own.filter(|(_, entry)| entry.exists).map(|(key, entry)| (&*key.1, &*entry.addresses, &*entry.ports))
    }

    /// What is known about `name` (absolute or not, any case).
    #[must_use]
    pub fn lookup(&self, name: &str, kind: RecordType) -> Records {
        let labels = labels(name);
        if let Some(address) = reverse_address(&labels) {
            return self.lookup_reverse(address, kind);
        }
        let Some(relative) = labels.strip_suffix(self.domain.as_slice()) else { return Records::Elsewhere };
        let relative: Vec<&str> = relative.iter().map(String::as_str).collect();
        match relative.as_slice() {
            [] | ["svc"] => Records::NoData,
            ["dns-version"] => of_type(vec![RData::TXT(TXT::new(vec![SPECIFICATION.to_owned()]))], kind),
            [namespace, "svc"] if self.namespaces.contains_key(*namespace) => Records::NoData,
            [service, namespace, "svc"] => self.with(namespace, service, |entry| entry.addresses(kind)),
            [host, service, namespace, "svc"] if !host.starts_with('_') => {
                self.with(namespace, service, |entry| entry.host(host, kind))
            }
            [protocol, service, namespace, "svc"] => {
                self.with(namespace, service, |entry| entry.parent_of_ports(protocol))
            }
            [port, protocol, service, namespace, "svc"] => {
                let origin = self.service_name(namespace, service);
                self.with(namespace, service, |entry| entry.srv(port, protocol, origin.as_ref(), kind))
            }
            ["pod"] => Records::NoData,
            [address, namespace, "pod"] if self.namespaces.contains_key(*namespace) => {
                pod_address(address, kind)
            }
            _ => Records::NoName,
        }
    }

    fn with(&self, namespace: &str, service: &str, look: impl FnOnce(&Entry) -> Records) -> Records {
        match self.entries.get(&(namespace.into(), service.into())) {
            Some(entry) if entry.exists => look(entry),
            _ => Records::NoName,
        }
    }

    fn service_name(&self, namespace: &str, service: &str) -> Option<Name> {
        let mut labels = vec![service, namespace, "svc"];
        labels.extend(self.domain.iter().map(String::as_str));
        name_of(&labels)
    }

    fn lookup_reverse(&self, address: IpAddr, kind: RecordType) -> Records {
        let Some(keys) = self.reverse.get(&address) else { return Records::Elsewhere };
        let mut names = Vec::new();
        for key in keys {
            let Some(entry) = self.entries.get(key) else { continue };
            let (namespace, service) = &**key;
            if entry.addresses.contains(&address) {
                names.extend(self.service_name(namespace, service));
            }
            let hosts = entry.ready().filter(|(_, of)| entry.headless && of.address == address);
            names.extend(hosts.filter_map(|(slice, endpoint)| {
                self.service_name(namespace, &format!("{}.{service}", slice.host(&endpoint)))
            }));
        }
        of_type(names.into_iter().map(|name| RData::PTR(PTR(name))).collect(), kind)
    }
}

impl Entry {
    /// The endpoints that are published, each with its slice.
    fn ready(&self) -> impl Iterator<Item = (&Slice, Endpoint)> {
        let all = self.slices.iter().flat_map(|slice| slice.endpoints.iter().map(move |of| (slice, of)));
        all.filter(|(_, endpoint)| endpoint.ready || self.publish_not_ready)
    }

    fn reverse_addresses(&self) -> Vec<IpAddr> {
        let mut addresses = if self.exists { self.addresses.to_vec() } else { Vec::new() };
        if self.exists && self.headless {
            addresses.extend(self.ready().map(|(_, endpoint)| endpoint.address));
        }
        addresses
    }

    fn addresses(&self, kind: RecordType) -> Records {
        if let Some(target) = &self.external_name {
            return Records::Found(vec![RData::CNAME(CNAME(Name::clone(target)))]);
        }
        let mut addresses = self.addresses.to_vec();
        if self.headless {
            addresses.extend(self.ready().map(|(_, endpoint)| endpoint.address));
            addresses.sort_unstable();
            addresses.dedup();
            if addresses.is_empty() {
                // A headless Service without endpoints has no name, so that a client's search goes on.
                return Records::NoName;
            }
        }
        of_type(addresses.into_iter().map(address_record).collect(), kind)
    }

    fn host(&self, host: &str, kind: RecordType) -> Records {
        let found: Vec<RData> = self
            .ready()
            .filter(|(slice, endpoint)| self.headless && slice.host(endpoint) == host)
            .map(|(_, endpoint)| address_record(endpoint.address))
            .collect();
        if found.is_empty() { Records::NoName } else { of_type(found, kind) }
    }

    fn parent_of_ports(&self, protocol: &str) -> Records {
        let wanted = protocol.strip_prefix('_').and_then(Protocol::of_label);
        let exists = self.ports.iter().any(|port| Some(port.protocol) == wanted);
        if exists { Records::NoData } else { Records::NoName }
    }

    fn srv(&self, port: &str, protocol: &str, service: Option<&Name>, kind: RecordType) -> Records {
        let (Some(port), Some(protocol), Some(service)) =
            (port.strip_prefix('_'), protocol.strip_prefix('_').and_then(Protocol::of_label), service)
        else {
            return Records::NoName;
        };
        let numbers = |ports: &[Port]| -> Vec<u16> {
            let wanted = |of: &&Port| *of.name == *port && of.protocol == protocol;
            ports.iter().filter(wanted).map(|of| of.number).collect()
        };
        let mut found = Vec::new();
        if self.headless {
            for (slice, endpoint) in self.ready() {
                let target = name_of(&[&slice.host(&endpoint), service.to_ascii().trim_end_matches('.')]);
                found.extend(target.into_iter().flat_map(|target| {
                    let record = move |number| RData::SRV(SRV::new(0, 100, number, target.clone()));
                    numbers(&slice.ports).into_iter().map(record)
                }));
            }
        } else {
            let record = |number| RData::SRV(SRV::new(0, 100, number, service.clone()));
            found.extend(numbers(&self.ports).into_iter().map(record));
        }
        if found.is_empty() { Records::NoName } else { of_type(found, kind) }
    }
}

impl Protocol {
    /// As the API names it; TCP where it names none.
    fn of_api(name: Option<&str>) -> Option<Self> {
        Self::of_label(&name.unwrap_or("TCP").to_ascii_lowercase())
    }

    fn of_label(label: &str) -> Option<Self> {
        match label {
            "tcp" => Some(Self::Tcp),
            "udp" => Some(Self::Udp),
            "sctp" => Some(Self::Sctp),
            _ => None,
        }
    }
}

impl Port {
    fn new(name: Option<&str>, protocol: Option<&str>, number: Option<i32>) -> Option<Self> {
        let (protocol, number) = (Protocol::of_api(protocol)?, u16::try_from(number?).ok()?);
        Some(Self { name: name.unwrap_or_default().into(), protocol, number })
    }

    /// In lower case, as in names.
    #[must_use]
    pub fn protocol(&self) -> &'static str {
        match self.protocol {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Sctp => "sctp",
        }
    }
}

impl Slice {
    fn new(name: Arc<str>, slice: &EndpointSlice) -> Self {
        let port = |port: &EndpointPort| Port::new(port.name.as_deref(), port.protocol.as_deref(), port.port);
        let mut endpoints = Vec::new();
        let mut hosts: Vec<Box<str>> = Vec::new();
        for endpoint in slice.endpoints.iter().flatten() {
            let ready = endpoint.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true);
            // The API lets a slice have 1000 endpoints.
            let host = endpoint.hostname.as_deref().and_then(|host| {
                let number = u16::try_from(hosts.len() + 1).ok().and_then(NonZeroU16::new)?;
                hosts.push(host.into());
                Some(number)
            });
            for address in endpoint.addresses.iter().filter_map(|address| address.parse::<IpAddr>().ok()) {
                endpoints.push(Endpoint { address, ready, host });
            }
        }
        let ports = slice.ports.iter().flatten().filter_map(port).collect();
        Self { name, ports, endpoints: Endpoints::of(endpoints), hosts: hosts.into() }
    }

    /// The label of one of its endpoints.
    fn host(&self, endpoint: &Endpoint) -> Cow<'_, str> {
        let host = endpoint.host.and_then(|number| self.hosts.get(usize::from(number.get()) - 1));
        host.map_or_else(|| dashed(endpoint.address).into(), |host| Cow::Borrowed(&**host))
    }
}

impl Endpoints {
    fn of(endpoints: Vec<Endpoint>) -> Self {
        let v4 = |Endpoint { address, ready, host }: &Endpoint| match address {
            IpAddr::V4(address) => Some(Endpoint { address: *address, ready: *ready, host: *host }),
            IpAddr::V6(_) => None,
        };
        match endpoints.iter().map(v4).collect() {
            Some(all) => Self::V4(all),
            None => Self::Any(endpoints.into()),
        }
    }

    fn iter(&self) -> impl Iterator<Item = Endpoint> {
        let (v4, any): (&[Endpoint<Ipv4Addr>], &[Endpoint]) = match self {
            Self::V4(v4) => (v4, &[]),
            Self::Any(any) => (&[], any),
        };
        let wide = |endpoint: &Endpoint<Ipv4Addr>| {
            let Endpoint { address, ready, host } = *endpoint;
            Endpoint { address: address.into(), ready, host }
        };
        v4.iter().map(wide).chain(any.iter().copied())
    }
}

fn key_of(namespace: Option<&String>, name: Option<&String>) -> Option<Key> {
    Some((namespace?.as_str().into(), name?.as_str().into()))
}

/// `10-244-0-7` or `fd00--7`: an address as one label.
fn dashed(address: IpAddr) -> String {
    address.to_string().replace(['.', ':'], "-")
}

fn address_record(address: IpAddr) -> RData {
    match address {
        IpAddr::V4(address) => RData::A(A(address)),
        IpAddr::V6(address) => RData::AAAA(AAAA(address)),
    }
}

fn pod_address(label: &str, kind: RecordType) -> Records {
    let address = label.replace('-', ".").parse().or_else(|_| label.replace('-', ":").parse());
    address.map_or(Records::NoName, |address: IpAddr| of_type(vec![address_record(address)], kind))
}

fn of_type(records: Vec<RData>, kind: RecordType) -> Records {
    let found: Vec<RData> = records
        .into_iter()
        .filter(|record| kind == RecordType::ANY || record.record_type() == kind)
        .collect();
    if found.is_empty() { Records::NoData } else { Records::Found(found) }
}

/// The address of a name below in-addr.arpa or ip6.arpa.
fn reverse_address(labels: &[String]) -> Option<IpAddr> {
    let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
    match labels.as_slice() {
        [octets @ .., "in-addr", "arpa"] if octets.len() == 4 => {
            let text: Vec<&str> = octets.iter().rev().copied().collect();
            text.join(".").parse().ok().map(IpAddr::V4)
        }
        [nibbles @ .., "ip6", "arpa"] if nibbles.len() == 32 => {
            let text: String = nibbles.iter().rev().copied().collect();
            u128::from_str_radix(&text, 16).ok().map(|bits| IpAddr::V6(bits.into()))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests;
