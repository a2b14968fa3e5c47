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

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use hickory_proto::rr::rdata::{A, AAAA, CNAME, PTR, SRV, TXT};
use hickory_proto::rr::{Name, RData, RecordType};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;

/// The version of the Kubernetes DNS specification that the zone follows.
const SPECIFICATION: &str = "1.1.0";
const SERVICE_NAME: &str = "kubernetes.io/service-name";

type Key = (String, String);

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

#[derive(Clone, Debug, PartialEq, Eq)]
struct Endpoint {
    address: IpAddr,
    host: String,
    /// Port name, protocol in lower case, number.
    ports: Vec<(String, String, u16)>,
}

#[derive(Default)]
struct Entry {
    exists: bool,
    addresses: Vec<IpAddr>,
    headless: bool,
    publish_not_ready: bool,
    external_name: Option<Name>,
    ports: Vec<(String, String, u16)>,
    /// By EndpointSlice name: endpoint and whether it is ready.
    slices: BTreeMap<String, Vec<(Endpoint, bool)>>,
}

/// The cluster's zone.
pub struct Zone {
    domain: Vec<String>,
    entries: HashMap<Key, Entry>,
    /// How many Services a namespace has, for names that exist only as a parent of others.
    namespaces: HashMap<String, usize>,
    reverse: HashMap<IpAddr, BTreeSet<Key>>,
    service_by_slice: HashMap<Key, Key>,
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
            entries: HashMap::new(),
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
        let mut entry = self.take(&key);
        let addresses: Vec<&String> = spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip).collect();
        entry.exists = true;
        entry.headless = addresses.iter().any(|address| *address == "None");
        entry.addresses = addresses.iter().filter_map(|address| address.parse().ok()).collect();
        entry.addresses.sort_unstable();
        entry.addresses.dedup();
        entry.publish_not_ready = spec.publish_not_ready_addresses.unwrap_or_default();
        entry.external_name = match spec.type_.as_deref() {
            Some("ExternalName") => {
                spec.external_name.as_deref().and_then(|name| name_of(&[name.trim_end_matches('.')]))
            }
            _ => None,
        };
        entry.ports = spec
            .ports
            .iter()
            .flatten()
            .filter_map(|port| {
                let protocol = port.protocol.as_deref().unwrap_or("TCP").to_ascii_lowercase();
                Some((port.name.clone().unwrap_or_default(), protocol, u16::try_from(port.port).ok()?))
            })
            .collect();
        self.put(key, entry);
    }

    pub fn remove_service(&mut self, namespace: &str, name: &str) {
        let key = (namespace.to_owned(), name.to_owned());
        let entry = self.take(&key);
        self.put(key, Entry { slices: entry.slices, ..Entry::default() });
    }

    /// Takes an EndpointSlice as it is now.
    pub fn set_slice(&mut self, slice: &EndpointSlice) {
        let Some(slice_key) = key_of(slice.metadata.namespace.as_ref(), slice.metadata.name.as_ref()) else {
            return;
        };
        let service = slice.metadata.labels.as_ref().and_then(|labels| labels.get(SERVICE_NAME));
        self.remove_slice(&slice_key.0, &slice_key.1);
        let Some(service) = service else { return };
        let key = (slice_key.0.clone(), service.clone());
        let mut entry = self.take(&key);
        entry.slices.insert(slice_key.1.clone(), endpoints(slice));
        self.put(key.clone(), entry);
        self.service_by_slice.insert(slice_key, key);
    }

    pub fn remove_slice(&mut self, namespace: &str, name: &str) {
        let slice_key = (namespace.to_owned(), name.to_owned());
        let Some(key) = self.service_by_slice.remove(&slice_key) else { return };
        let mut entry = self.take(&key);
        entry.slices.remove(&slice_key.1);
        self.put(key, entry);
    }

    /// Removes an entry with what is derived from it.
    fn take(&mut self, key: &Key) -> Entry {
        let Some(entry) = self.entries.remove(key) else { return Entry::default() };
        for address in entry.reverse_addresses() {
            if let Some(keys) = self.reverse.get_mut(&address) {
                keys.remove(key);
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
        entry
    }

    fn put(&mut self, key: Key, entry: Entry) {
        if !entry.exists && entry.slices.is_empty() {
            return;
        }
        for address in entry.reverse_addresses() {
            self.reverse.entry(address).or_default().insert(key.clone());
        }
        if entry.exists {
            *self.namespaces.entry(key.0.clone()).or_default() += 1;
        }
        self.entries.insert(key, entry);
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
        match self.entries.get(&(namespace.to_owned(), service.to_owned())) {
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
        for (namespace, service) in keys {
            let Some(entry) = self.entries.get(&(namespace.clone(), service.clone())) else { continue };
            if entry.addresses.contains(&address) {
                names.extend(self.service_name(namespace, service));
            }
            let hosts = entry.ready().filter(|endpoint| entry.headless && endpoint.address == address);
            names.extend(hosts.filter_map(|endpoint| {
                self.service_name(namespace, &format!("{}.{service}", endpoint.host))
            }));
        }
        of_type(names.into_iter().map(|name| RData::PTR(PTR(name))).collect(), kind)
    }
}

impl Entry {
    fn ready(&self) -> impl Iterator<Item = &Endpoint> {
        self.slices
            .values()
            .flatten()
            .filter(|(_, ready)| *ready || self.publish_not_ready)
            .map(|(endpoint, _)| endpoint)
    }

    fn reverse_addresses(&self) -> Vec<IpAddr> {
        let mut addresses = if self.exists { self.addresses.clone() } else { Vec::new() };
        if self.exists && self.headless {
            addresses.extend(self.ready().map(|endpoint| endpoint.address));
        }
        addresses
    }

    fn addresses(&self, kind: RecordType) -> Records {
        if let Some(target) = &self.external_name {
            return Records::Found(vec![RData::CNAME(CNAME(target.clone()))]);
        }
        let mut addresses = self.addresses.clone();
        if self.headless {
            addresses.extend(self.ready().map(|endpoint| endpoint.address));
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
            .filter(|endpoint| self.headless && endpoint.host == host)
            .map(|endpoint| address_record(endpoint.address))
            .collect();
        if found.is_empty() { Records::NoName } else { of_type(found, kind) }
    }

    fn parent_of_ports(&self, protocol: &str) -> Records {
        let exists = self.ports.iter().any(|(_, of, _)| protocol.strip_prefix('_') == Some(of.as_str()));
        if exists { Records::NoData } else { Records::NoName }
    }

    fn srv(&self, port: &str, protocol: &str, service: Option<&Name>, kind: RecordType) -> Records {
        let (Some(port), Some(protocol), Some(service)) =
            (port.strip_prefix('_'), protocol.strip_prefix('_'), service)
        else {
            return Records::NoName;
        };
        let wanted = |of: &&(String, String, u16)| of.0 == port && of.1 == protocol;
        let mut found = Vec::new();
        if self.headless {
            for endpoint in self.ready() {
                let target = name_of(&[&endpoint.host, service.to_ascii().trim_end_matches('.')]);
                let numbers = endpoint.ports.iter().filter(wanted).map(|of| of.2);
                found.extend(target.into_iter().flat_map(|target| {
                    numbers.clone().map(move |number| RData::SRV(SRV::new(0, 100, number, target.clone())))
                }));
            }
        } else {
            let numbers = self.ports.iter().filter(wanted).map(|of| of.2);
            found.extend(numbers.map(|number| RData::SRV(SRV::new(0, 100, number, service.clone()))));
        }
        if found.is_empty() { Records::NoName } else { of_type(found, kind) }
    }
}

fn key_of(namespace: Option<&String>, name: Option<&String>) -> Option<Key> {
    Some((namespace?.clone(), name?.clone()))
}

fn endpoints(slice: &EndpointSlice) -> Vec<(Endpoint, bool)> {
    let ports: Vec<(String, String, u16)> = slice
        .ports
        .iter()
        .flatten()
        .filter_map(|port| {
            let protocol = port.protocol.as_deref().unwrap_or("TCP").to_ascii_lowercase();
            Some((port.name.clone().unwrap_or_default(), protocol, u16::try_from(port.port?).ok()?))
        })
        .collect();
    let mut found = Vec::new();
    for endpoint in slice.endpoints.iter().flatten() {
        let ready = endpoint.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true);
        for address in endpoint.addresses.iter().filter_map(|address| address.parse::<IpAddr>().ok()) {
            let host = endpoint.hostname.clone().unwrap_or_else(|| dashed(address));
            found.push((Endpoint { address, host, ports: ports.clone() }, ready));
        }
    }
    found
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
