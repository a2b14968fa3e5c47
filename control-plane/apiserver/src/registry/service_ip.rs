//! Cluster IPs and node ports: who holds which. One allocator lives in the server process; it is rebuilt from the
//! stored Services at start, asked inside the create or update of a Service, and told when one is gone. No IO.
//!
//! The lower part of each range is left to addresses that people choose; the server's own choices start above it
//! (KEP-3070, KEP-3668) and fall back to it only when the rest is full.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    ops::RangeInclusive,
};

use api::field::FieldError;
use ipnetwork::IpNetwork;
use serde_json::{Value, json};

use super::{
    fields::*,
    service::{is_headless, needs_cluster_ip, needs_health_check_port, needs_node_ports},
};

/// The node ports of an unconfigured cluster.
pub const NODE_PORTS: RangeInclusive<u16> = 30_000..=32_767;

/// One address or port that a request took. Give it back with [`Allocator::release`] if the write fails.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reservation {
    Ip(IpAddr),
    Port(u16),
}

/// Why an address or port cannot be had.
#[derive(Debug, PartialEq, Eq)]
enum Refused {
    Taken,
    OutOfRange(String),
    Full,
}

/// Holds what is taken. Owners are `namespace/name`; what a Service holds already it may ask for again.
pub struct Allocator {
    networks: Vec<IpNetwork>,
    node_ports: RangeInclusive<u16>,
    owner_by_ip: HashMap<IpAddr, String>,
    owner_by_port: HashMap<u16, String>,
}

impl Allocator {
    /// An allocator over one service range, or two of different families; the first is the cluster's own family.
    pub fn new(networks: Vec<IpNetwork>) -> Self {
        Self { networks, node_ports: NODE_PORTS, owner_by_ip: HashMap::new(), owner_by_port: HashMap::new() }
    }

    /// Forgets everything and takes what the stored Services hold.
    pub fn rebuild<'a>(&mut self, services: impl IntoIterator<Item = &'a Value>) {
        self.owner_by_ip.clear();
        self.owner_by_port.clear();
        for service in services {
            for ip in held_ips(service) {
                self.owner_by_ip.insert(ip, owner(service));
            }
            for port in held_ports(service) {
                self.owner_by_port.insert(port, owner(service));
            }
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
        let outcome = self
            .fill_families(service, old)
            .and_then(|()| self.fill_cluster_ips(service, &mut reservations))
            .and_then(|()| self.fill_ports(service, &mut reservations));
        if outcome.is_err() || dry_run {
            self.release(&reservations);
            reservations.clear();
        }
        outcome.map(|()| reservations)
    }

    /// Gives back what a failed write had taken.
    pub fn release(&mut self, reservations: &[Reservation]) {
        for reservation in reservations {
            match reservation {
                Reservation::Ip(ip) => self.owner_by_ip.remove(ip),
                Reservation::Port(port) => self.owner_by_port.remove(port),
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
        for ip in held_ips(service).iter().filter(|ip| ip_gone(ip)) {
            if self.owner_by_ip.get(ip) == Some(&owner) {
                self.owner_by_ip.remove(ip);
            }
        }
        for port in held_ports(service).iter().filter(|port| port_gone(port)) {
            if self.owner_by_port.get(port) == Some(&owner) {
                self.owner_by_port.remove(port);
            }
        }
    }

    fn families(&self) -> Vec<&'static str> {
        self.networks.iter().map(family).collect()
    }

    fn fill_families(&self, service: &mut Value, old: Option<&Value>) -> Result<(), FieldError> {
        if text(service, "/spec/type") == "ExternalName" {
            return Ok(());
        }
        let own = self.families();
        let headless_anywhere = is_headless(service) && entries(service, "/spec/selector").is_empty();
        let asked: Vec<String> = match items(service, "/spec/clusterIPs") {
            ips if items(service, "/spec/ipFamilies").is_empty() => {
                let parsed = ips.iter().filter_map(|ip| ip.as_str()?.parse::<IpAddr>().ok());
                parsed.map(|ip| if ip.is_ipv4() { "IPv4" } else { "IPv6" }.to_owned()).collect()
            }
            _ => items(service, "/spec/ipFamilies")
                .iter()
                .filter_map(Value::as_str)
                .map(str::to_owned)
                .collect(),
        };
        let policy = match text(service, "/spec/ipFamilyPolicy") {
            "" if headless_anywhere || asked.len() == 2 => "RequireDualStack",
            "" => "SingleStack",
            policy => policy,
        }
        .to_owned();
        if !headless_anywhere {
            if policy == "RequireDualStack" && own.len() < 2 {
                let detail = "this cluster is not configured for dual-stack services";
                return Err(FieldError::invalid("spec.ipFamilyPolicy", policy, detail));
            }
            if let Some(i) = asked.iter().position(|family| !own.contains(&family.as_str())) {
                let (path, detail) = (format!("spec.ipFamilies[{i}]"), "not configured on this cluster");
                return Err(FieldError::invalid(path, asked[i].as_str(), detail));
            }
        }
        if policy == "SingleStack" && asked.len() > 1 {
            let before = old.map_or(0, |old| items(old, "/spec/ipFamilies").len());
            if before < 2 {
                let detail =
                    "must be 'RequireDualStack' or 'PreferDualStack' when multiple IP families are specified";
                return Err(FieldError::invalid("spec.ipFamilyPolicy", policy, detail));
            }
        }
        let mut families: Vec<&str> = asked.iter().map(String::as_str).collect();
        if families.is_empty() {
            families.extend(own.first());
        }
        if policy == "SingleStack" {
            families.truncate(1);
        } else if families.len() < 2 && (headless_anywhere || own.len() == 2) {
            families.push(if families.first() == Some(&"IPv4") { "IPv6" } else { "IPv4" });
        }
        let families = json!(families);
        let spec = child(service, "spec");
        set(spec, "ipFamilyPolicy", policy);
        set(spec, "ipFamilies", families);
        Ok(())
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
            let network =
                self.networks.iter().find(|network| family(network) == family_name.as_str()).copied();
            let Some(network) = network else { continue };
            let asked = ips.get(i).cloned();
            let ip = match asked.as_deref().map(str::parse::<IpAddr>) {
                Some(Ok(ip)) => self.take_ip(ip, network, &owner, taken).map(|()| ip),
                _ => self.choose_ip(network, &owner, taken),
            };
            match (ip, asked) {
                (Ok(ip), None) => ips.push(ip.to_string()),
                (Ok(_), Some(_)) => {}
                (Err(refused), Some(asked)) => {
                    let detail = format!("failed to allocate IP {asked}: {}", refused.text("IP", &asked));
                    return Err(FieldError::invalid("spec.clusterIPs", json!([asked]), detail));
                }
                (Err(refused), None) => {
                    let detail = format!("failed to allocate a serviceIP: {}", refused.text("IP", ""));
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
                    let detail = refused.text("port", &asked.to_string());
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
                    FieldError::internal("spec.healthCheckNodePort", detail + &refused.text("port", ""))
                })?;
            }
        }
        Ok(())
    }

    fn take_ip(
        &mut self,
        ip: IpAddr,
        network: IpNetwork,
        owner: &str,
        taken: &mut Vec<Reservation>,
    ) -> Result<(), Refused> {
        let offset = to_number(ip).wrapping_sub(to_number(network.network()));
        if !network.contains(ip) || !usable(&network).contains(&offset) {
            return Err(Refused::OutOfRange(network.to_string()));
        }
        match self.owner_by_ip.get(&ip) {
            Some(holder) if holder != owner => Err(Refused::Taken),
            Some(_) => Ok(()),
            None => {
                self.owner_by_ip.insert(ip, owner.to_owned());
                taken.push(Reservation::Ip(ip));
                Ok(())
            }
        }
    }

    fn choose_ip(
        &mut self,
        network: IpNetwork,
        owner: &str,
        taken: &mut Vec<Reservation>,
    ) -> Result<IpAddr, Refused> {
        let offsets = usable(&network);
        let size = offsets.end() - offsets.start() + 1;
        let band = static_band(size, 16, 256);
        let base = to_number(network.network());
        let ip_at = |offset: u128| from_number(base + offset, network.is_ipv4());
        let free = |offset: &u128| !self.owner_by_ip.contains_key(&ip_at(*offset));
        let upper = (offsets.start() + band)..=*offsets.end();
        let lower = *offsets.start()..=(offsets.start() + band).saturating_sub(1);
        let offset = first_free(upper, free).or_else(|| first_free(lower, free)).ok_or(Refused::Full)?;
        let ip = ip_at(offset);
        self.owner_by_ip.insert(ip, owner.to_owned());
        taken.push(Reservation::Ip(ip));
        Ok(ip)
    }

    fn take_port(&mut self, port: i64, owner: &str, taken: &mut Vec<Reservation>) -> Result<(), Refused> {
        let range = format!("{}-{}", self.node_ports.start(), self.node_ports.end());
        let port = u16::try_from(port).ok().filter(|port| self.node_ports.contains(port));
        let port = port.ok_or(Refused::OutOfRange(range))?;
        match self.owner_by_port.get(&port) {
            Some(holder) if holder != owner => Err(Refused::Taken),
            Some(_) => Ok(()),
            None => {
                self.owner_by_port.insert(port, owner.to_owned());
                taken.push(Reservation::Port(port));
                Ok(())
            }
        }
    }

    fn choose_port(&mut self, owner: &str, taken: &mut Vec<Reservation>) -> Result<u16, FieldError> {
        let (start, end) = (u128::from(*self.node_ports.start()), u128::from(*self.node_ports.end()));
        let band = static_band(end - start + 1, 32, 128);
        let free = |port: &u128| !self.owner_by_port.contains_key(&(*port as u16));
        let port =
            first_free(start + band..=end, free).or_else(|| first_free(start..=start + band - 1, free));
        let port = port.ok_or_else(|| {
            FieldError::internal("spec.ports[0].nodePort", "failed to allocate a nodePort: range is full")
        })? as u16;
        self.owner_by_port.insert(port, owner.to_owned());
        taken.push(Reservation::Port(port));
        Ok(port)
    }
}

impl Refused {
    fn text(&self, what: &str, asked: &str) -> String {
        match self {
            Self::Taken => format!("provided {what} is already allocated"),
            Self::OutOfRange(range) if what == "IP" => format!(
                "the provided IP ({asked}) is not in the valid range. The range of valid IPs is {range}"
            ),
            Self::OutOfRange(range) => {
                format!("provided port is not in the valid range. The range of valid ports is {range}")
            }
            Self::Full => "range is full".to_owned(),
        }
    }
}

fn owner(service: &Value) -> String {
    format!("{}/{}", text(service, "/metadata/namespace"), text(service, "/metadata/name"))
}

fn held_ips(service: &Value) -> Vec<IpAddr> {
    items(service, "/spec/clusterIPs").iter().filter_map(|ip| ip.as_str()?.parse().ok()).collect()
}

fn held_ports(service: &Value) -> Vec<u16> {
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
