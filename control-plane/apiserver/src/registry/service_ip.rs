//! Cluster IPs and node ports: who holds which. One allocator lives in the server process; it is rebuilt from the
//! stored Services and IPAddresses at start, asked inside the create or update of a Service, and told when one is gone.
//! What a write under way has taken is pending until the write ends. No IO.
//!
//! The lower part of each range is left to addresses that people choose; the server's own choices start above it
//! (KEP-3070, KEP-3668) and fall back to it only when the rest is full.

use std::{
    collections::HashMap,
    hash::Hash,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ops::RangeInclusive,
};

use api::field::FieldError;
use ipnetwork::IpNetwork;
use serde_json::{Value, json};

use super::{
    fields::*,
    service::{needs_cluster_ip, needs_health_check_port, needs_node_ports},
    service_families,
};

/// The node ports of an unconfigured cluster.
pub const NODE_PORTS: RangeInclusive<u16> = 30_000..=32_767;

/// One address or port that a request took, until [`Allocator::release`]. A write that succeeded is known by what it stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reservation {
    Ip(IpAddr),
    Port(u16),
}

/// Why an address or port cannot be had.
#[derive(Debug, PartialEq, Eq)]
enum Refused {
    Taken,
    /// In no range that addresses are given from.
    Elsewhere,
    OutOfRange(String),
    Full,
}

/// Who holds what, by stored objects and by writes under way. Owners are `namespace/name`.
struct Holders<T> {
    stored: HashMap<T, String>,
    pending: HashMap<T, String>,
}

impl<T: Copy + Eq + Hash> Holders<T> {
    fn new() -> Self {
        Self { stored: HashMap::new(), pending: HashMap::new() }
    }

    fn of(&self, what: &T) -> Option<&String> {
        self.pending.get(what).or_else(|| self.stored.get(what))
    }

    fn free(&mut self, what: &T, owner: &str) {
        if self.stored.get(what).is_some_and(|holder| holder == owner) {
            self.stored.remove(what);
        }
    }
}

/// Holds what is taken. What a Service holds already it may ask for again.
pub struct Allocator {
    /// The ranges that the server was configured with; they say which families the cluster has, the first its own.
    configured: Vec<IpNetwork>,
    /// The ranges to choose from: those of the ServiceCIDRs that are ready.
    networks: Vec<IpNetwork>,
    node_ports: RangeInclusive<u16>,
    ips: Holders<IpAddr>,
    ports: Holders<u16>,
    /// Owners by IPAddress objects.
    addresses: HashMap<IpAddr, String>,
}

impl Allocator {
    /// An allocator over one service range, or two of different families; the first is the cluster's own family.
    pub fn new(networks: Vec<IpNetwork>) -> Self {
        Self {
            configured: networks.clone(),
            networks,
            node_ports: NODE_PORTS,
            ips: Holders::new(),
            ports: Holders::new(),
            addresses: HashMap::new(),
        }
    }

    /// Takes what the stored ServiceCIDRs allow; without any, the configured ranges.
    pub fn set_ranges<'a>(&mut self, ranges: impl IntoIterator<Item = &'a Value>) {
        let ready = ranges.into_iter().filter(|range| is_ready(range));
        let networks = ready.flat_map(|range| items(range, "/spec/cidrs"));
        let mut networks: Vec<IpNetwork> =
            networks.filter_map(|network| network.as_str()?.parse().ok()).collect();
        if networks.is_empty() {
            networks.clone_from(&self.configured);
        }
        // The configured ranges come first.
        networks.sort_by_key(|network| !self.configured.contains(network));
        networks.dedup();
        self.networks = networks;
    }

    /// Forgets what Services hold and takes what these do; writes under way keep what they have.
    pub fn rebuild<'a>(&mut self, services: impl IntoIterator<Item = &'a Value>) {
        self.ips.stored.clear();
        self.ports.stored.clear();
        services.into_iter().for_each(|service| self.stored(service));
    }

    /// Takes what a stored Service holds, whatever else the allocator would have said to it.
    pub fn stored(&mut self, service: &Value) {
        let owner = owner(service);
        for ip in held_ips(service) {
            self.ips.stored.entry(ip).or_insert_with(|| owner.clone());
        }
        for port in held_ports(service) {
            self.ports.stored.entry(port).or_insert_with(|| owner.clone());
        }
    }

    /// Forgets all IPAddresses and takes these.
    pub fn rebuild_addresses<'a>(&mut self, addresses: impl IntoIterator<Item = &'a Value>) {
        self.addresses.clear();
        addresses.into_iter().for_each(|address| self.address_stored(address));
    }

    /// Takes what a stored IPAddress holds.
    pub fn address_stored(&mut self, address: &Value) {
        if let Ok(ip) = text(address, "/metadata/name").parse() {
            self.addresses.insert(ip, parent(address));
        }
    }

    /// After an IPAddress is gone.
    pub fn address_deleted(&mut self, address: &Value) {
        if let Ok(ip) = text(address, "/metadata/name").parse::<IpAddr>() {
            self.addresses.remove(&ip);
        }
    }

    /// Fills families, cluster IPs, node ports and the health check port of a Service that is about to be written, and
    /// takes them. `old` is the stored version on update. With `dry_run` the Service is filled but nothing stays taken.
    ///
    /// # Errors
    /// A field error as upstream's for a value that is taken or out of range, or when a range is full; nothing is taken
    /// then.
    pub fn allocate(
        &mut self,
        service: &mut Value,
        old: Option<&Value>,
        dry_run: bool,
    ) -> Result<Vec<Reservation>, FieldError> {
        let mut reservations = Vec::new();
        let outcome = service_families::fill(service, old, &self.families())
            .and_then(|()| self.fill_cluster_ips(service, &mut reservations))
            .and_then(|()| self.fill_ports(service, &mut reservations));
        if outcome.is_err() || dry_run {
            self.release(&reservations);
            reservations.clear();
        }
        outcome.map(|()| reservations)
    }

    /// Ends a write: what it had taken is free again, unless it is known to be stored by now.
    pub fn release(&mut self, reservations: &[Reservation]) {
        for reservation in reservations {
            match reservation {
                Reservation::Ip(ip) => self.ips.pending.remove(ip),
                Reservation::Port(port) => self.ports.pending.remove(port),
            };
        }
    }

    /// After an update is stored: frees what the old version held and the new one does not.
    pub fn updated(&mut self, new: &Value, old: &Value) {
        let (ips, ports) = (held_ips(new), held_ports(new));
        self.free(old, |ip| !ips.contains(ip), |port| !ports.contains(port));
    }

    /// After a Service is gone: frees all that it held.
    pub fn deleted(&mut self, service: &Value) {
        self.free(service, |_| true, |_| true);
    }

    fn free(&mut self, service: &Value, ip_gone: impl Fn(&IpAddr) -> bool, port_gone: impl Fn(&u16) -> bool) {
        let owner = owner(service);
        held_ips(service).iter().filter(|ip| ip_gone(ip)).for_each(|ip| self.ips.free(ip, &owner));
        held_ports(service)
            .iter()
            .filter(|port| port_gone(port))
            .for_each(|port| self.ports.free(port, &owner));
    }

    fn families(&self) -> Vec<&'static str> {
        self.configured.iter().map(family).collect()
    }

    fn fill_cluster_ips(
        &mut self,
        service: &mut Value,
        taken: &mut Vec<Reservation>,
    ) -> Result<(), FieldError> {
        if !needs_cluster_ip(service) {
            return Ok(());
        }
        let owner = owner(service);
        let families: Vec<String> =
            items(service, "/spec/ipFamilies").iter().filter_map(Value::as_str).map(str::to_owned).collect();
        let mut ips: Vec<String> =
            items(service, "/spec/clusterIPs").iter().filter_map(Value::as_str).map(str::to_owned).collect();
        ips.truncate(families.len());
        for (i, family_name) in families.iter().enumerate() {
            let asked = ips.get(i).cloned();
            let ip = match asked.as_deref().map(str::parse::<IpAddr>) {
                Some(Ok(ip)) => self.take_ip(ip, &owner, taken).map(|()| ip),
                _ => self.choose_ip(family_name, &owner, taken),
            };
            match (ip, asked) {
                (Ok(ip), None) => ips.push(ip.to_string()),
                (Ok(_), Some(_)) => {}
                (Err(refused), Some(asked)) => {
                    let detail = format!("failed to allocate IP {asked}: {}", refused.text("IP"));
                    return Err(FieldError::invalid("spec.clusterIPs", json!([asked]), detail));
                }
                (Err(refused), None) => {
                    let detail = format!("failed to allocate a serviceIP: {}", refused.text("IP"));
                    return Err(FieldError::internal("spec.clusterIPs", detail));
                }
            }
        }
        let spec = child(service, "spec");
        set(spec, "clusterIP", ips.first().cloned().unwrap_or_default());
        set(spec, "clusterIPs", ips);
        Ok(())
    }

    fn fill_ports(&mut self, service: &mut Value, taken: &mut Vec<Reservation>) -> Result<(), FieldError> {
        let owner = owner(service);
        let allocate_missing = needs_node_ports(service);
        let mut node_port_by_port: HashMap<i64, u16> = HashMap::new();
        let mut ports = items(service, "/spec/ports").to_vec();
        for (i, port) in ports.iter_mut().enumerate() {
            let asked = int(port, "/nodePort");
            if asked != 0 {
                self.take_port(asked, &owner, taken).map_err(|refused| {
                    let detail = refused.text("port");
                    FieldError::invalid(format!("spec.ports[{i}].nodePort"), asked, detail)
                })?;
                node_port_by_port.insert(int(port, "/port"), asked as u16);
            }
        }
        for port in ports.iter_mut().filter(|port| allocate_missing && int(port, "/nodePort") == 0) {
            let number = int(port, "/port");
            let node_port = match node_port_by_port.get(&number) {
                Some(shared) => *shared,
                None => self.choose_port(&owner, taken)?,
            };
            node_port_by_port.insert(number, node_port);
            set(port, "nodePort", node_port);
        }
        if !ports.is_empty() {
            set(child(service, "spec"), "ports", ports);
        }
        if needs_health_check_port(service) {
            let asked = int(service, "/spec/healthCheckNodePort");
            if asked == 0 {
                let port = self.choose_port(&owner, taken)?;
                set(child(service, "spec"), "healthCheckNodePort", port);
            } else {
                self.take_port(asked, &owner, taken).map_err(|refused| {
                    let detail = format!("failed to allocate requested HealthCheck NodePort {asked}: ");
                    FieldError::internal("spec.healthCheckNodePort", detail + &refused.text("port"))
                })?;
            }
        }
        Ok(())
    }

    fn holder(&self, ip: &IpAddr) -> Option<&String> {
        self.ips.of(ip).or_else(|| self.addresses.get(ip))
    }

    fn take_ip(&mut self, ip: IpAddr, owner: &str, taken: &mut Vec<Reservation>) -> Result<(), Refused> {
        // What a Service has it may keep, even if its range is gone.
        if self.ips.of(&ip).is_some_and(|holder| holder == owner) {
            return Ok(());
        }
        let usable = |network: &&IpNetwork| {
            let offset = to_number(ip).wrapping_sub(to_number(network.network()));
            network.contains(ip) && usable(network).contains(&offset)
        };
        if self.networks.iter().find(usable).is_none() {
            return Err(Refused::Elsewhere);
        }
        if self.holder(&ip).is_some_and(|holder| holder != owner) {
            return Err(Refused::Taken);
        }
        self.ips.pending.insert(ip, owner.to_owned());
        taken.push(Reservation::Ip(ip));
        Ok(())
    }

    fn choose_ip(
        &mut self,
        family_name: &str,
        owner: &str,
        taken: &mut Vec<Reservation>,
    ) -> Result<IpAddr, Refused> {
        let networks = self.networks.iter().filter(|network| family(network) == family_name);
        let ip = networks.into_iter().find_map(|network| self.first_free_ip(network)).ok_or(Refused::Full)?;
        self.ips.pending.insert(ip, owner.to_owned());
        taken.push(Reservation::Ip(ip));
        Ok(ip)
    }

    fn first_free_ip(&self, network: &IpNetwork) -> Option<IpAddr> {
        let offsets = usable(network);
        let size = (offsets.end() + 1).saturating_sub(*offsets.start());
        let band = static_band(size, 16, 256);
        let base = to_number(network.network());
        let ip_at = |offset: u128| from_number(base + offset, network.is_ipv4());
        let free = |offset: &u128| self.holder(&ip_at(*offset)).is_none();
        let upper = (offsets.start() + band)..=*offsets.end();
        let lower = *offsets.start()..=(offsets.start() + band).saturating_sub(1);
        first_free(upper, free).or_else(|| first_free(lower, free)).map(ip_at)
    }

    fn take_port(&mut self, port: i64, owner: &str, taken: &mut Vec<Reservation>) -> Result<(), Refused> {
        let range = format!("{}-{}", self.node_ports.start(), self.node_ports.end());
        let port = u16::try_from(port).ok().filter(|port| self.node_ports.contains(port));
        let port = port.ok_or(Refused::OutOfRange(range))?;
        match self.ports.of(&port) {
            Some(holder) if holder != owner => Err(Refused::Taken),
            Some(_) => Ok(()),
            None => {
                self.ports.pending.insert(port, owner.to_owned());
                taken.push(Reservation::Port(port));
                Ok(())
            }
        }
    }

    fn choose_port(&mut self, owner: &str, taken: &mut Vec<Reservation>) -> Result<u16, FieldError> {
        let (start, end) = (u128::from(*self.node_ports.start()), u128::from(*self.node_ports.end()));
        let band = static_band(end - start + 1, 32, 128);
        let free = |port: &u128| self.ports.of(&(*port as u16)).is_none();
        let port =
            first_free(start + band..=end, free).or_else(|| first_free(start..=start + band - 1, free));
        let port = port.ok_or_else(|| {
            FieldError::internal("spec.ports[0].nodePort", "failed to allocate a nodePort: range is full")
        })? as u16;
        self.ports.pending.insert(port, owner.to_owned());
        taken.push(Reservation::Port(port));
        Ok(port)
    }
}

impl Refused {
    fn text(&self, what: &str) -> String {
        match self {
            Self::Taken => format!("provided {what} is already allocated"),
            Self::Elsewhere => "the provided network does not match the current range".to_owned(),
            Self::OutOfRange(range) => {
                format!("provided port is not in the valid range. The range of valid ports is {range}")
            }
            Self::Full => "range is full".to_owned(),
        }
    }
}

pub(crate) fn owner(service: &Value) -> String {
    format!("{}/{}", text(service, "/metadata/namespace"), text(service, "/metadata/name"))
}

/// The owner that an IPAddress names, in the same form; not a Service's where it belongs to something else.
pub(crate) fn parent(address: &Value) -> String {
    let parent = at(address, "/spec/parentRef");
    let (namespace, name) = (text(parent, "/namespace"), text(parent, "/name"));
    match (text(parent, "/group"), text(parent, "/resource")) {
        ("", "services") => format!("{namespace}/{name}"),
        (group, resource) => format!("{resource}.{group}/{namespace}/{name}"),
    }
}

/// Whether addresses may be given from a ServiceCIDR.
fn is_ready(range: &Value) -> bool {
    let is_ready =
        |condition: &Value| text(condition, "/type") == "Ready" && text(condition, "/status") == "True";
    items(range, "/status/conditions").iter().any(is_ready) && !present(range, "/metadata/deletionTimestamp")
}

pub(crate) fn held_ips(service: &Value) -> Vec<IpAddr> {
    items(service, "/spec/clusterIPs").iter().filter_map(|ip| ip.as_str()?.parse().ok()).collect()
}

pub(crate) fn held_ports(service: &Value) -> Vec<u16> {
    let ports = items(service, "/spec/ports").iter().map(|port| int(port, "/nodePort"));
    let all = ports.chain([int(service, "/spec/healthCheckNodePort")]);
    all.filter_map(|port| u16::try_from(port).ok()).filter(|port| *port != 0).collect()
}

fn family(network: &IpNetwork) -> &'static str {
    if network.is_ipv4() { "IPv4" } else { "IPv6" }
}

/// Offsets from the network address that may be given out: neither the network's own nor, for IPv4, the broadcast.
fn usable(network: &IpNetwork) -> RangeInclusive<u128> {
    let bits: u32 = if network.is_ipv4() { 32 } else { 128 };
    let host_bits = bits - u32::from(network.prefix());
    let last = if host_bits >= 64 { u128::from(u64::MAX) } else { (1 << host_bits) - 1 };
    1..=if network.is_ipv4() { last.saturating_sub(1) } else { last }
}

/// How much of a range is left to static choices.
fn static_band(size: u128, divisor: u128, max: u128) -> u128 {
    if size <= 16 { 0 } else { (size / divisor).clamp(16, max) }
}

/// The first free number after a random start, once around the range.
fn first_free(range: RangeInclusive<u128>, free: impl Fn(&u128) -> bool) -> Option<u128> {
    if range.is_empty() {
        return None;
    }
    let start = rand::random_range(range.clone());
    (start..=*range.end()).find(&free).or_else(|| (*range.start()..start).find(&free))
}

fn to_number(ip: IpAddr) -> u128 {
    match ip {
        IpAddr::V4(ip) => u128::from(u32::from(ip)),
        IpAddr::V6(ip) => u128::from(ip),
    }
}

fn from_number(number: u128, is_ipv4: bool) -> IpAddr {
    if is_ipv4 { Ipv4Addr::from(number as u32).into() } else { Ipv6Addr::from(number).into() }
}
