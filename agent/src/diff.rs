//! Whether what should be the same is the same: the API's objects, the speaker's choice (RIB), the agent's wishes, the
//! kernel's routes (FIB) and links, the maps of the datapath (BPF). Pure: who gathers both sides is `status::diff`.

use std::collections::{BTreeSet, HashMap};
use std::fmt::{self, Display};
use std::hash::Hash;
use std::net::{IpAddr, SocketAddr};

use dataplane::routes::Target;
use dataplane::services::ServiceEntry;
use ebpf_common::FrontendKey;
use ebpf_common::desired::{self, Clients};
use ipnetwork::IpNetwork;
use serde::Serialize;

use crate::status::protocol_name;

/// Something that one layer wants and the next does not have so.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Difference {
    /// Who wants, and who does not have.
    pub between: [Layer; 2],
    /// What kind of thing it is.
    pub kind: &'static str,
    pub what: String,
    /// Empty where it is not wanted at all.
    pub wanted: String,
    /// Empty where it is not there at all.
    pub found: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Layer {
    #[serde(rename = "API")]
    Api,
    #[serde(rename = "RIB")]
    Rib,
    #[serde(rename = "agent")]
    Agent,
    #[serde(rename = "FIB")]
    Fib,
    #[serde(rename = "links")]
    Links,
    #[serde(rename = "BPF")]
    Bpf,
}

/// Where a Service is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Frontend {
    address: IpAddr,
    port: u16,
    protocol: ebpf_common::Protocol,
}

impl Frontend {
    pub fn of(key: &FrontendKey) -> Frontend {
        Frontend { address: key.address.to_ip(), port: key.port.get(), protocol: key.protocol }
    }
}

impl Display for Frontend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = protocol_name(self.protocol);
        if self.address.is_unspecified() {
            return write!(f, "port {}/{protocol} of the node", self.port);
        }
        write!(f, "{}/{protocol}", SocketAddr::new(self.address, self.port))
    }
}

/// A link that is to lead to a pod, by the address that does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    pub name: String,
    pub interface: String,
    /// Absent where the agent has no link for it.
    pub index: Option<u32>,
}

/// What the speaker chose of what it learned, and what the agent wishes of the kernel. What this node originates itself
/// goes before what it learns, so there only the wish counts.
pub fn of_rib(chosen: HashMap<IpNetwork, Target>, wished: &HashMap<IpNetwork, Target>) -> Vec<Difference> {
    let is_own = |destination: &IpNetwork| {
        wished.get(destination).is_some_and(|target| !matches!(target, Target::Via(_)))
    };
    let chosen = chosen.into_iter().filter(|(destination, _)| !is_own(destination)).collect();
    let learned = wished.iter().filter(|(_, target)| matches!(target, Target::Via(_)));
    let learned = learned.map(|(destination, target)| (*destination, target.clone())).collect();
    compare([Layer::Rib, Layer::Agent], "route", &chosen, &learned, Target::to_string)
}

/// What the agent wishes of the kernel, and the kernel's routes of our protocol.
pub fn of_routes(
    wished: &HashMap<IpNetwork, Target>,
    kernel: &HashMap<IpNetwork, Target>,
) -> Vec<Difference> {
    compare([Layer::Agent, Layer::Fib], "route", wished, kernel, Target::to_string)
}

/// What objects of the API say, as they are now, and what the agent has told the datapath. Of endpoints, only where they
/// are is compared.
pub fn of_api(services: &desired::Services, told: &[ServiceEntry]) -> Vec<Difference> {
    let wanted = services.iter().map(|(key, service)| {
        // One that is for nobody new is there only where somebody has it.
        let endpoints = service.endpoints.iter().filter(|endpoint| endpoint.clients != Clients::Present);
        let endpoints = endpoints.map(|endpoint| (endpoint.address.to_ip(), endpoint.port.get()));
        (Frontend::of(key), endpoints.map(SocketAddr::from).collect::<BTreeSet<_>>())
    });
    let told = told.iter().map(|entry| {
        let backends = entry.backends.iter().map(|backend| SocketAddr::new(backend.address, backend.port));
        (frontend(entry), backends.collect())
    });
    let (wanted, told) = (wanted.collect(), told.collect());
    compare([Layer::Api, Layer::Agent], "service", &wanted, &told, |endpoints| joined(endpoints))
}

/// What the agent has told the datapath, and what its maps hold.
pub fn of_services(told: Vec<ServiceEntry>, maps: Vec<ServiceEntry>) -> Vec<Difference> {
    let by_frontend = |entries: Vec<ServiceEntry>| -> HashMap<Frontend, ServiceEntry> {
        let plain = entries.into_iter().map(|mut entry| {
            // More than the maps of Services say.
            entry.name.clear();
            for backend in &mut entry.backends {
                (backend.weight, backend.open) = (None, None);
            }
            (frontend(&entry), entry)
        });
        plain.collect()
    };
    let (told, maps) = (by_frontend(told), by_frontend(maps));
    compare([Layer::Agent, Layer::Bpf], "service", &told, &maps, service_text)
}

/// Pods of the node by address: what the agent has attached, the kernel's links by name, and which link the datapath hands
/// packets to.
pub fn of_pods(
    pods: &HashMap<IpAddr, Pod>,
    links: &HashMap<String, u32>,
    handed: Option<&HashMap<IpAddr, u32>>,
) -> Vec<Difference> {
    let mut differences = Vec::new();
    for (address, pod) in pods {
        let found = links.get(&pod.interface).copied();
        if found.is_none() || found != pod.index {
            let text = |index: Option<u32>| index.map_or_else(String::new, interface_text);
            differences.push(Difference {
                between: [Layer::Agent, Layer::Links],
                kind: "pod",
                what: format!("{address} of {}", pod.name),
                wanted: format!("the link {}", pod.interface),
                found: text(found),
            });
        }
    }
    if let Some(handed) = handed {
        let linked = pods.iter().filter_map(|(address, pod)| Some((*address, pod.index?)));
        let linked = linked.collect();
        let text = |index: &u32| interface_text(*index);
        differences.extend(compare([Layer::Agent, Layer::Bpf], "pod", &linked, handed, text));
    }
    differences
}

/// Only what both looks found: what is under way between two layers is no difference.
pub fn lasting(first: Vec<Difference>, second: Vec<Difference>) -> Vec<Difference> {
    let first: BTreeSet<Difference> = first.into_iter().collect();
    let second: BTreeSet<Difference> = second.into_iter().collect();
    first.intersection(&second).cloned().collect()
}

fn compare<K: Eq + Hash + Display, V: PartialEq>(
    between: [Layer; 2],
    kind: &'static str,
    wanted: &HashMap<K, V>,
    found: &HashMap<K, V>,
    text: impl Fn(&V) -> String,
) -> Vec<Difference> {
    let difference = |key: &K, wanted: Option<&V>, found: Option<&V>| Difference {
        between,
        kind,
        what: key.to_string(),
        wanted: wanted.map_or_else(String::new, &text),
        found: found.map_or_else(String::new, &text),
    };
    let missing = wanted.iter().filter_map(|(key, value)| {
        let other = found.get(key);
        (other != Some(value)).then(|| difference(key, Some(value), other))
    });
    let extra = found.iter().filter(|(key, _)| !wanted.contains_key(key));
    missing.chain(extra.map(|(key, value)| difference(key, None, Some(value)))).collect()
}

fn frontend(entry: &ServiceEntry) -> Frontend {
    Frontend { address: entry.address, port: entry.port, protocol: entry.protocol }
}

fn interface_text(index: u32) -> String {
    format!("interface {index}")
}

fn service_text(entry: &ServiceEntry) -> String {
    let backends = entry.backends.iter().map(|backend| {
        format!("{} (id {})", SocketAddr::new(backend.address, backend.port), backend.backend_id)
    });
    let mut text = format!("id {}, {}: {}", entry.service_id, entry.balancing.name(), joined(backends));
    if entry.affinity_seconds > 0 {
        text.push_str(&format!("; affinity of {} s", entry.affinity_seconds));
    }
    if let Some(ranges) = &entry.source_ranges {
        let ranges = ranges.iter().map(|(address, prefix)| format!("{address}/{prefix}"));
        text.push_str(&format!("; for {}", joined(ranges)));
    }
    text
}

fn joined(items: impl IntoIterator<Item = impl Display>) -> String {
    let items: Vec<String> = items.into_iter().map(|item| item.to_string()).collect();
    if items.is_empty() { "nobody".to_owned() } else { items.join(", ") }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use dataplane::services::BackendEntry;
    use ebpf_common::{Balancing, Port, Protocol};

    use super::*;

    fn via(gateways: &[&str]) -> Target {
        Target::Via(Arc::new(gateways.iter().map(|gateway| gateway.parse().unwrap()).collect()))
    }

    fn routes<const N: usize>(routes: [(&str, Target); N]) -> HashMap<IpNetwork, Target> {
        routes.into_iter().map(|(to, target)| (to.parse().unwrap(), target)).collect()
    }

    fn told(difference: &Difference) -> (&str, &str, &str) {
        (&difference.what, &difference.wanted, &difference.found)
    }

    #[test]
    fn routes_that_are_missing_changed_and_foreign_are_told_each_with_both_sides() {
        let wished = routes([
            ("10.0.0.0/24", via(&["192.0.2.1", "192.0.2.2"])),
            ("10.0.1.0/24", Target::Blackhole),
            ("10.0.2.0/24", Target::Link(7)),
        ]);
        let kernel = routes([
            ("10.0.0.0/24", via(&["192.0.2.1"])),
            ("10.0.2.0/24", Target::Link(7)),
            ("10.0.3.0/24", Target::Unreachable),
        ]);
        let mut found = of_routes(&wished, &kernel);
        found.sort();
        assert_eq!(
            found.iter().map(told).collect::<Vec<_>>(),
            [
                ("10.0.0.0/24", "via 192.0.2.1, 192.0.2.2", "via 192.0.2.1"),
                ("10.0.1.0/24", "blackhole", ""),
                ("10.0.3.0/24", "", "unreachable"),
            ]
        );
        assert!(found.iter().all(|difference| difference.between == [Layer::Agent, Layer::Fib]));
        assert_eq!(of_routes(&wished, &wished), []);
    }

    #[test]
    fn what_the_node_originates_goes_before_what_it_learns() {
        let chosen = routes([("10.0.0.0/26", via(&["192.0.2.1"])), ("10.0.1.0/26", via(&["192.0.2.2"]))]);
        let wished = routes([
            ("10.0.0.0/26", Target::Blackhole),
            ("10.0.1.0/26", via(&["192.0.2.2"])),
            ("10.0.9.9/32", Target::Link(3)),
        ]);
        assert_eq!(of_rib(chosen.clone(), &wished), []);
        let forgotten = routes([("10.0.0.0/26", Target::Blackhole), ("10.0.5.0/26", via(&["192.0.2.2"]))]);
        let mut found = of_rib(chosen, &forgotten);
        found.sort();
        assert_eq!(
            found.iter().map(told).collect::<Vec<_>>(),
            [("10.0.1.0/26", "via 192.0.2.2", ""), ("10.0.5.0/26", "", "via 192.0.2.2")]
        );
    }

    fn entry(address: &str, backends: &[(u32, &str)]) -> ServiceEntry {
        let backend = |(id, at): &(u32, &str)| {
            let at: SocketAddr = at.parse().unwrap();
            let (address, port) = (at.ip(), at.port());
            BackendEntry {
                backend_id: *id,
                address,
                port,
                local: true,
                clients: Clients::All,
                weight: Some(3),
                open: None,
            }
        };
        let at: SocketAddr = address.parse().unwrap();
        ServiceEntry {
            name: "default/web".to_owned(),
            address: at.ip(),
            port: at.port(),
            protocol: Protocol::TCP,
            service_id: 4,
            affinity_seconds: 0,
            balancing: Balancing::Random,
            backends: backends.iter().map(backend).collect(),
            source_ranges: None,
        }
    }

    #[test]
    fn services_are_compared_by_what_the_maps_say_and_not_by_names_and_weights() {
        let told_them = vec![entry("10.96.0.7:80", &[(1, "10.244.0.2:8080")])];
        let mut maps = told_them.clone();
        maps[0].name.clear();
        maps[0].backends[0].weight = None;
        assert_eq!(of_services(told_them.clone(), maps.clone()), []);
        maps[0].backends[0].backend_id = 2;
        maps.push(entry("0.0.0.0:30080", &[]));
        let mut found = of_services(told_them, maps);
        found.sort();
        assert_eq!(
            found.iter().map(told).collect::<Vec<_>>(),
            [
                (
                    "10.96.0.7:80/TCP",
                    "id 4, random: 10.244.0.2:8080 (id 1)",
                    "id 4, random: 10.244.0.2:8080 (id 2)"
                ),
                ("port 30080/TCP of the node", "", "id 4, random: nobody"),
            ]
        );
    }

    #[test]
    fn objects_of_the_api_are_compared_by_where_their_endpoints_are() {
        let key =
            FrontendKey::new(ebpf_common::Address::from_v4([10, 96, 0, 7]), Port::new(80), Protocol::TCP);
        let endpoint = |last: u8| desired::Endpoint {
            address: ebpf_common::Address::from_v4([10, 244, 0, last]),
            port: Port::new(8080),
            local: false,
            clients: Clients::All,
            weight: desired::Endpoint::WEIGHT,
        };
        let elsewhere = desired::Endpoint { clients: Clients::Present, ..endpoint(4) };
        let endpoints = vec![endpoint(3), endpoint(2), elsewhere];
        let service = desired::Service { endpoints, ..Default::default() };
        let services = desired::Services::from_iter([(key, service)]);
        let same = [entry("10.96.0.7:80", &[(1, "10.244.0.2:8080"), (2, "10.244.0.3:8080")])];
        assert_eq!(of_api(&services, &same), []);
        let behind = [entry("10.96.0.7:80", &[(1, "10.244.0.2:8080")])];
        let found = of_api(&services, &behind);
        assert_eq!(
            found.iter().map(told).collect::<Vec<_>>(),
            [("10.96.0.7:80/TCP", "10.244.0.2:8080, 10.244.0.3:8080", "10.244.0.2:8080")]
        );
        assert_eq!(found[0].between, [Layer::Api, Layer::Agent]);
    }

    #[test]
    fn a_pod_without_its_link_and_one_that_packets_are_handed_to_elsewhere_are_told() {
        let pod = |index| Pod { name: "default/web".to_owned(), interface: "sw1".to_owned(), index };
        let address: IpAddr = "10.244.0.2".parse().unwrap();
        let pods = HashMap::from([(address, pod(Some(5)))]);
        let links = HashMap::from([("sw1".to_owned(), 5)]);
        let handed = HashMap::from([(address, 5)]);
        assert_eq!(of_pods(&pods, &links, Some(&handed)), []);
        assert_eq!(of_pods(&pods, &links, None), []);
        let found = of_pods(&pods, &HashMap::new(), Some(&HashMap::from([(address, 9)])));
        assert_eq!(
            found.iter().map(told).collect::<Vec<_>>(),
            [("10.244.0.2 of default/web", "the link sw1", ""), ("10.244.0.2", "interface 5", "interface 9"),]
        );
        let unlinked = HashMap::from([(address, pod(None))]);
        assert_eq!(of_pods(&unlinked, &links, Some(&HashMap::new()))[0].found, "interface 5");
    }

    #[test]
    fn what_was_under_way_at_the_first_look_is_no_difference() {
        let one = |what: &str| Difference {
            between: [Layer::Agent, Layer::Fib],
            kind: "route",
            what: what.to_owned(),
            wanted: String::new(),
            found: "blackhole".to_owned(),
        };
        assert_eq!(lasting(vec![one("a"), one("b")], vec![one("b"), one("c")]), [one("b")]);
    }
}
