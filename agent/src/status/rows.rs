//! Elements of maps as rows: fields in an order for people, joined to the names of pods, Services and nodes.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::SocketAddr;

use dataplane::services::Names;
use dataplane::view::Element;
use ebpf_common::{
    Address, Backend, BackendId, Call, Counter, Flow, Frontend, FrontendKey, GroupId, LocalPod, Masquerade,
    Origin, PolicyFlow, Port, Range, RuleKey, ServiceId, Shortcut, SourceRangeKey, Tuple,
    balancing::{PIECE_PLACES, PIECES, PLACES, Piece, PieceKey},
    sctp,
};
use serde_json::{Value, json};

use super::hosts::Hosts;
use super::protocol_name;
use crate::network::Network;

const NS_PER_SECOND: u64 = 1_000_000_000;

/// Fields of an object, in the order of columns.
pub type Row = Vec<(&'static str, Value)>;

/// One line of JSON.
pub fn encode(row: &Row, out: &mut String) {
    out.push('{');
    for (at, (name, value)) in row.iter().enumerate() {
        if at > 0 {
            out.push(',');
        }
        out.push_str(&format!("\"{name}\":{value}"));
    }
    out.push_str("}\n");
}

/// What the elements of one piece refer to.
pub struct Joins<'a> {
    hosts: &'a Hosts,
    names: Names,
    backend_by_id: HashMap<BackendId, Backend>,
    now_ns: u64,
}

impl<'a> Joins<'a> {
    /// Holds the datapath while it looks.
    pub fn of(elements: &[Element], network: &Network, hosts: &'a Hosts, now_ns: u64) -> Joins<'a> {
        let mut ids = HashSet::new();
        let mut addresses: HashSet<Address> = HashSet::new();
        let mut backends = HashSet::new();
        for element in elements {
            addresses.extend(element.addresses());
            let (service, backend) = references(element);
            ids.extend(service);
            backends.extend(backend);
        }
        let mut backend_by_id = HashMap::new();
        let mut names = Names::default();
        if let Some(datapath) = network.datapath() {
            backend_by_id.extend(backends.iter().filter_map(|id| Some((*id, *datapath.backend(*id)?))));
            ids.extend(backend_by_id.values().map(|backend| backend.service_id));
            names = datapath.names(&ids, &addresses);
        }
        Joins { hosts, names, backend_by_id, now_ns }
    }

    /// The addresses of the element and of the backend that it refers to.
    pub fn addresses(&self, element: &Element) -> Vec<Address> {
        let mut addresses = element.addresses();
        if let (_, Some(id)) = references(element) {
            addresses.extend(self.backend_by_id.get(&id).map(|backend| backend.address));
        }
        addresses
    }

    /// `Service NAMESPACE/NAME`, or as [`Hosts::name`] has it.
    fn name(&self, address: &Address) -> Value {
        match self.names.by_address.get(address) {
            Some(service) => json!(format!("Service {service}")),
            None => json!(self.hosts.name(address.to_ip())),
        }
    }

    fn service(&self, id: ServiceId) -> Value {
        json!(self.names.by_id.get(&id))
    }

    fn backend(&self, id: BackendId) -> Value {
        json!(self.backend_by_id.get(&id).map(|backend| end(&backend.address, backend.port)))
    }

    fn frontend_row(&self, key: &FrontendKey, frontend: &Frontend) -> Row {
        vec![
            ("address", json!(key.address.to_ip())),
            ("port", json!(key.port.get())),
            ("protocol", json!(protocol_name(key.protocol))),
            ("service", self.service(frontend.service_id)),
            ("serviceId", json!(frontend.service_id.0)),
            ("forNode", slots(frontend.slots(Origin::Node))),
            ("forBeyond", slots(frontend.slots(Origin::Beyond))),
            ("affinitySeconds", json!(frontend.affinity_seconds)),
            ("hasEndpoints", json!(frontend.has_endpoints())),
            ("hasSourceRanges", json!(frontend.has_source_ranges())),
            ("balancing", json!(frontend.balancing().name())),
            ("hasTables", json!(frontend.has_tables())),
        ]
    }

    /// The places of each backend are counted: there are hundreds.
    fn piece_row(&self, key: &PieceKey, piece: &Piece) -> Row {
        let first = key.piece % PIECES * PIECE_PLACES;
        let end = PLACES.min(first + PIECE_PLACES);
        let mut places_by_id: BTreeMap<u32, u32> = BTreeMap::new();
        for id in piece.backends.iter().take((end - first) as usize) {
            *places_by_id.entry(id.0).or_default() += 1;
        }
        vec![
            ("serviceId", json!(key.service_id.0)),
            ("service", self.service(key.service_id)),
            ("clients", json!(if key.piece < PIECES { "node" } else { "beyond" })),
            ("places", json!(format!("{first}..{end}"))),
            ("placesByBackendId", json!(places_by_id)),
        ]
    }

    fn idle(&self, seen_ns: u64) -> Value {
        json!(self.now_ns.saturating_sub(seen_ns) / NS_PER_SECOND)
    }

    pub fn rows(&self, element: &Element) -> Vec<Row> {
        vec![match element {
            Element::Frontend(key, frontend) => self.frontend_row(key, frontend),
            Element::Slot(key, id) => vec![
                ("serviceId", json!(key.service_id.0)),
                ("slot", json!(key.slot)),
                ("backendId", json!(id.0)),
                ("backend", self.backend(*id)),
                ("service", self.service(key.service_id)),
            ],
            Element::Backend(id, backend) => self.backend_row(*id, backend),
            Element::TablePiece(key, piece) => self.piece_row(key, piece),
            Element::Affinity(..)
            | Element::SocketForward(..)
            | Element::SocketReverse(..)
            | Element::Socket(..)
            | Element::Stream(..)
            | Element::Open(..)
            | Element::SocketCounted(..) => self.remembered_row(element),
            Element::Flow(tuple, flow) => self.flow_row(tuple, flow),
            Element::Fragment(key, to) => vec![
                ("source", json!(key.source.to_ip())),
                ("destination", json!(key.destination.to_ip())),
                ("identification", json!(key.identification)),
                ("protocol", json!(protocol_name(key.protocol))),
                ("entering", json!(key.is_entering())),
                ("becomesSource", json!(to.source.to_ip())),
                ("becomesDestination", json!(to.destination.to_ip())),
            ],
            Element::Address(address, frontends) => vec![
                ("address", json!(address.to_ip())),
                ("name", self.name(address)),
                ("frontends", json!(frontends)),
            ],
            Element::NodeAddress(address) => vec![("address", json!(address.to_ip()))],
            Element::Pod(address, pod) => vec![
                ("address", json!(address.to_ip())),
                ("name", self.name(address)),
                ("interfaceIndex", json!(pod.interface_index)),
                ("hardwareAddress", json!(pod.stations[0].map(|octet| format!("{octet:02x}")).join(":"))),
                ("hasFlows", json!(pod.has_flows & LocalPod::FLOWS != 0)),
                ("policed", json!(pod.has_flows & LocalPod::POLICED != 0)),
            ],
            Element::Buckets(buckets) => return (0..).zip(buckets).map(bucket_row).collect(),
            Element::DropGates(gates) => return (0..).zip(gates).map(gate_row).collect(),
            Element::DropsFollowed(until) => {
                vec![("followedSeconds", json!(until.saturating_sub(self.now_ns) / NS_PER_SECOND))]
            }
            Element::ServiceCount(id, count) => vec![
                ("serviceId", json!(id.0)),
                ("service", self.service(*id)),
                ("connections", json!(count.chosen)),
                ("refused", json!(count.refused)),
            ],
            Element::Inbound(tuple, last_seen_ns) => self.inbound_row(tuple, *last_seen_ns),
            Element::Shortcut(tuple, to) => self.shortcut_row(tuple, to),
            Element::Neighbour(address, asked_ns) => vec![
                ("address", json!(address.to_ip())),
                ("name", self.name(address)),
                ("askedSeconds", self.idle(*asked_ns)),
            ],
            Element::SctpTags(tuple, tags) => self.tags_row(tuple, tags),
            Element::PolicyFlow(tuple, flow) => self.policy_flow_row(tuple, flow),
            Element::Ranges(ranges) => vec![("v4", range(&ranges.v4)), ("v6", range(&ranges.v6))],
            Element::SourceRange(key) => self.source_range_row(key),
            plain => plain_row(plain),
        }]
    }

    /// What is remembered of a choice.
    fn remembered_row(&self, element: &Element) -> Row {
        match element {
            Element::Open(id, open) => {
                vec![("backendId", json!(id.0)), ("backend", self.backend(*id)), ("connections", json!(open))]
            }
            Element::SocketCounted(cookie, id) => {
                vec![("socket", json!(cookie)), ("backendId", json!(id.0)), ("backend", self.backend(*id))]
            }
            Element::Affinity(key, affinity) => vec![
                (
                    "client",
                    key.client().map_or_else(|cookie| json!(format!("netns {cookie}")), |a| json!(a.to_ip())),
                ),
                ("name", key.client().map_or(Value::Null, |address| self.name(&address))),
                ("service", self.service(key.service_id())),
                ("serviceId", json!(key.service_id().0)),
                ("backendId", json!(affinity.backend_id.0)),
                ("backend", self.backend(affinity.backend_id)),
                ("idleSeconds", self.idle(affinity.last_used_ns)),
            ],
            Element::SocketForward(key, value) => vec![
                ("cookie", json!(key.cookie)),
                ("frontend", json!(end(&key.address, key.port))),
                ("protocol", json!(protocol_name(key.protocol))),
                ("service", self.service(value.service_id)),
                ("backendId", json!(value.backend_id.0)),
                ("backend", self.backend(value.backend_id)),
            ],
            Element::SocketReverse(key, value) => vec![
                ("cookie", json!(key.cookie)),
                ("backend", json!(end(&key.address, key.port))),
                ("protocol", json!(protocol_name(key.protocol))),
                ("name", self.name(&key.address)),
                ("frontend", json!(end(&value.address, value.port))),
                ("service", self.service(value.service_id)),
            ],
            Element::Socket(cookie, socket) => vec![
                ("cookie", json!(cookie)),
                ("netnsCookie", json!(socket.netns_cookie)),
                ("backend", json!(end(&socket.address, socket.port))),
                ("name", self.name(&socket.address)),
                ("backendId", json!(socket.backend_id.0)),
                ("frontend", json!(end(&socket.frontend, socket.frontend_port))),
                ("service", self.service(socket.service_id)),
            ],
            Element::Stream(_, stream) => vec![
                ("cookie", json!(stream.cookie)),
                ("backend", json!(end(&stream.address, stream.port))),
                ("name", self.name(&stream.address)),
                ("frontend", json!(end(&stream.frontend, stream.frontend_port))),
                ("service", self.service(stream.service_id)),
            ],
            other => plain_row(other),
        }
    }

    fn policy_flow_row(&self, tuple: &Tuple, flow: &PolicyFlow) -> Row {
        vec![
            ("protocol", json!(protocol_name(tuple.protocol))),
            ("pod", json!(end(&tuple.source, tuple.source_port))),
            ("podName", self.name(&tuple.source)),
            ("peer", json!(end(&tuple.destination, tuple.destination_port))),
            ("peerName", self.name(&tuple.destination)),
            ("inbound", json!(flow.inbound != 0)),
            ("answered", json!(flow.answered != 0)),
            ("closing", json!((flow.pod_closing | flow.peer_closing) != 0)),
            ("generation", json!(flow.generation)),
            ("idleSeconds", self.idle(flow.last_seen_ns)),
            ("timeoutSeconds", json!(flow.timeout_seconds(tuple))),
        ]
    }

    fn inbound_row(&self, tuple: &Tuple, last_seen_ns: u64) -> Row {
        vec![
            ("source", json!(end(&tuple.source, tuple.source_port))),
            ("destination", json!(end(&tuple.destination, tuple.destination_port))),
            ("destinationName", self.name(&tuple.destination)),
            ("idleSeconds", self.idle(last_seen_ns)),
        ]
    }

    fn shortcut_row(&self, tuple: &Tuple, to: &Shortcut) -> Row {
        let [station, _] = to.stations;
        let octets: Vec<String> =
            station.iter().flat_map(|half| half.to_ne_bytes()).map(|octet| format!("{octet:02x}")).collect();
        let [source_port, destination_port] = to.ports.map(|port| Port::from_network(port.to_ne_bytes()));
        vec![
            ("direction", json!(if to.is_forward() { "forward" } else { "reverse" })),
            ("protocol", json!(protocol_name(tuple.protocol))),
            ("source", json!(end(&tuple.source, tuple.source_port))),
            ("destination", json!(end(&tuple.destination, tuple.destination_port))),
            ("destinationName", self.name(&tuple.destination)),
            ("becomesSource", json!(end(&to.source, source_port))),
            ("becomesDestination", json!(end(&to.destination, destination_port))),
            ("hardwareAddress", json!(octets.join(":"))),
            ("mtu", json!(to.mtu)),
            ("idleSeconds", self.idle(to.confirmed_ns)),
        ]
    }

    fn tags_row(&self, tuple: &Tuple, tags: &sctp::Tags) -> Row {
        let shown = |tag: u32| json!((tag != 0).then(|| format!("{:#010x}", u32::from_be(tag))));
        vec![
            ("client", json!(end(&tuple.source, tuple.source_port))),
            ("clientName", self.name(&tuple.source)),
            ("frontend", json!(end(&tuple.destination, tuple.destination_port))),
            ("frontendName", self.name(&tuple.destination)),
            ("tagOfClient", shown(tags.by_client)),
            ("tagOfBackend", shown(tags.by_backend)),
        ]
    }

    fn source_range_row(&self, key: &SourceRangeKey) -> Row {
        let (address, prefix) = key.to_prefix();
        vec![
            ("serviceId", json!(key.source.service_id.0)),
            ("service", self.service(key.source.service_id)),
            ("clients", json!(format!("{address}/{prefix}"))),
        ]
    }

    fn backend_row(&self, id: BackendId, backend: &Backend) -> Row {
        let clients = match (backend.is_for(Origin::Node), backend.is_for(Origin::Beyond)) {
            (true, true) => "all",
            (true, false) => "node",
            (false, true) => "beyond",
            (false, false) => "present",
        };
        let name = if id.0 == 0 { json!("the last ids given") } else { self.name(&backend.address) };
        vec![
            ("backendId", json!(id.0)),
            ("address", json!(backend.address.to_ip())),
            ("port", json!(backend.port.get())),
            ("name", name),
            ("service", self.service(backend.service_id)),
            ("serviceId", json!(backend.service_id.0)),
            ("local", json!(!backend.is_remote())),
            ("clients", json!(clients)),
        ]
    }

    fn flow_row(&self, tuple: &Tuple, flow: &Flow) -> Row {
        let to = &flow.translated;
        vec![
            ("direction", json!(if flow.is_forward() { "forward" } else { "reverse" })),
            ("protocol", json!(protocol_name(tuple.protocol))),
            ("source", json!(end(&tuple.source, tuple.source_port))),
            ("sourceName", self.name(&tuple.source)),
            ("destination", json!(end(&tuple.destination, tuple.destination_port))),
            ("destinationName", self.name(&tuple.destination)),
            ("becomesSource", json!(end(&to.source, to.source_port))),
            ("becomesDestination", json!(end(&to.destination, to.destination_port))),
            ("service", self.service(flow.service_id)),
            ("backendId", json!(flow.backend_id.0)),
            ("seen", json!(flow.seen != 0)),
            ("fin", json!(flow.fin != 0)),
            ("rst", json!(flow.rst != 0)),
            ("chunks", json!(sctp::names(flow.said).collect::<Vec<_>>())),
            ("idleSeconds", self.idle(flow.last_seen_ns)),
        ]
    }
}

/// Elements that refer to nothing that has a name.
fn plain_row(element: &Element) -> Row {
    match element {
        Element::Counter(index, count) => {
            let counter = Counter::of_index(*index);
            vec![
                ("index", json!(index)),
                ("name", json!(counter.map(Counter::name))),
                ("count", json!(count)),
                ("drop", json!(counter.is_some_and(Counter::is_drop))),
            ]
        }
        Element::Node(node) => vec![
            ("sourceV4", known_address(&node.source_v4)),
            ("sourceV6", known_address(&node.source_v6)),
            ("netnsCookie", json!(node.netns_cookie)),
        ],
        Element::Call(place, program) => {
            let call = Call::ALL.iter().find(|call| **call as u32 == *place);
            vec![
                ("place", json!(place)),
                ("program", json!(call.map(|call| call.program()))),
                ("programId", json!(program)),
            ]
        }
        Element::Masquerade(masquerade) => masquerade_row(masquerade),
        Element::Unmasqueraded(prefix) => {
            let (address, bits) = prefix.to_parts();
            vec![("destinations", json!(format!("{}/{bits}", address.to_ip())))]
        }
        Element::Sender(_, to) => {
            vec![("cookie", json!(to.cookie())), ("several", json!(to.is_several()))]
        }
        Element::Policing(_) | Element::Policed(..) | Element::Peer(..) | Element::Rule(_) => {
            policy_row(element)
        }
        Element::Counting(any) => vec![("hasSockets", json!(*any != 0))],
        Element::Beyond(has_flows) => vec![("hasFlows", json!(*has_flows != 0))],
        Element::Bytes(key, value) => vec![("key", json!(hex(key))), ("value", json!(hex(value)))],
        Element::Frontend(..)
        | Element::Slot(..)
        | Element::Backend(..)
        | Element::TablePiece(..)
        | Element::Open(..)
        | Element::SocketCounted(..)
        | Element::Affinity(..)
        | Element::SocketForward(..)
        | Element::SocketReverse(..)
        | Element::Socket(..)
        | Element::Stream(..)
        | Element::Flow(..)
        | Element::Fragment(..)
        | Element::Address(..)
        | Element::NodeAddress(_)
        | Element::Pod(..)
        | Element::Buckets(_)
        | Element::DropGates(_)
        | Element::DropsFollowed(_)
        | Element::Inbound(..)
        | Element::Shortcut(..)
        | Element::Neighbour(..)
        | Element::SctpTags(..)
        | Element::PolicyFlow(..)
        | Element::Ranges(_)
        | Element::ServiceCount(..)
        | Element::SourceRange(_) => Row::new(),
    }
}

fn masquerade_row(masquerade: &Masquerade) -> Row {
    vec![
        ("podsV4", range(&masquerade.pods.v4)),
        ("podsV6", range(&masquerade.pods.v6)),
        ("ports", json!(format!("{}-{}", masquerade.first_port, masquerade.last_port))),
    ]
}

/// What policies say.
fn policy_row(element: &Element) -> Row {
    match element {
        Element::Policing(policing) => {
            vec![("generation", json!(policing.generation)), ("links", json!(policing.links))]
        }
        Element::Policed(link, policed) => vec![
            ("interfaceIndex", json!(link)),
            ("ingressRules", json!(policed.ingress.is_some().then_some(policed.ingress.0))),
            ("egressRules", json!(policed.egress.is_some().then_some(policed.egress.0))),
        ],
        Element::Peer(prefix, group) => {
            let (address, bits) = prefix.to_parts();
            vec![("peers", json!(format!("{}/{bits}", address.to_ip()))), ("group", json!(group.0))]
        }
        Element::Rule(key) => rule_row(key),
        _ => Row::new(),
    }
}

fn rule_row(key: &RuleKey) -> Row {
    let rule = key.rule;
    let group = (rule.group != GroupId::EVERYBODY).then_some(rule.group.0);
    let protocol = (key.bits() > RuleKey::OF_PEER).then(|| protocol_name(rule.protocol));
    let first = rule.port.get();
    let free_bits = RuleKey::ALL_BITS - key.bits().clamp(RuleKey::OF_PROTOCOL, RuleKey::ALL_BITS);
    let last = u32::from(first) + (1 << free_bits) - 1;
    vec![
        ("rules", json!(rule.rules.0)),
        ("group", json!(group)),
        ("protocol", json!(protocol)),
        ("ports", json!(protocol.is_some().then(|| format!("{first}-{last}")))),
    ]
}

fn references(element: &Element) -> (Option<ServiceId>, Option<BackendId>) {
    match element {
        Element::Frontend(_, frontend) => (Some(frontend.service_id), None),
        Element::Slot(key, id) => (Some(key.service_id), Some(*id)),
        Element::Backend(_, backend) => (Some(backend.service_id), None),
        Element::TablePiece(key, _) => (Some(key.service_id), None),
        Element::Open(id, _) | Element::SocketCounted(_, id) => (None, Some(*id)),
        Element::Affinity(key, affinity) => (Some(key.service_id()), Some(affinity.backend_id)),
        Element::SocketForward(_, value) => (Some(value.service_id), Some(value.backend_id)),
        Element::SocketReverse(_, value) => (Some(value.service_id), None),
        Element::SourceRange(key) => (Some(key.source.service_id), None),
        Element::ServiceCount(id, _) => (Some(*id), None),
        Element::Flow(_, flow) => (Some(flow.service_id), None),
        Element::Socket(_, socket) => (Some(socket.service_id), Some(socket.backend_id)),
        Element::Stream(_, stream) => (Some(stream.service_id), None),
        Element::Fragment(..)
        | Element::Counter(..)
        | Element::Node(_)
        | Element::NodeAddress(_)
        | Element::Pod(..)
        | Element::Beyond(_)
        | Element::Counting(_)
        | Element::Sender(..)
        | Element::Call(..)
        | Element::Address(..)
        | Element::Ranges(_)
        | Element::Buckets(_)
        | Element::DropGates(_)
        | Element::DropsFollowed(_)
        | Element::Masquerade(_)
        | Element::Unmasqueraded(_)
        | Element::Inbound(..)
        | Element::Shortcut(..)
        | Element::Neighbour(..)
        | Element::SctpTags(..)
        | Element::Policing(_)
        | Element::Policed(..)
        | Element::Peer(..)
        | Element::Rule(_)
        | Element::PolicyFlow(..)
        | Element::Bytes(..) => (None, None),
    }
}

fn bucket_row((cpu, bucket): (usize, &ebpf_common::Bucket)) -> Row {
    vec![("cpu", json!(cpu)), ("packetsLeft", json!(bucket.credit()))]
}

fn gate_row((cpu, gate): (usize, &ebpf_common::DropGate)) -> Row {
    vec![("cpu", json!(cpu)), ("dropsLeft", json!(gate.bucket.credit())), ("missed", json!(gate.missed))]
}

fn slots((first, count): (u32, u32)) -> Value {
    json!(format!("{first}..{}", first + count))
}

fn range(range: &Range) -> Value {
    json!(range.prefix().map(|prefix| format!("{}/{prefix}", range.network().to_ip())))
}

fn known_address(address: &Address) -> Value {
    if *address == Address::UNSPECIFIED { Value::Null } else { json!(address.to_ip()) }
}

pub fn end(address: &Address, port: Port) -> String {
    SocketAddr::new(address.to_ip(), port.get()).to_string()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use dataplane::services::Names;
    use ebpf_common::{FORWARD_PORTS, Frontend, FrontendKey, Masquerade, Prefix, Protocol, Ranges};

    use super::*;

    fn line(element: &Element, names: Names, backends: &[Backend]) -> String {
        let hosts = Hosts::default();
        let backend_by_id = backends.iter().map(|backend| (backend.id, *backend)).collect();
        let joins = Joins { hosts: &hosts, names, backend_by_id, now_ns: 9 * NS_PER_SECOND };
        let mut out = String::new();
        joins.rows(element).iter().for_each(|row| encode(row, &mut out));
        out
    }

    #[test]
    fn a_frontend_is_shown_with_its_service_and_its_slots() {
        let key = FrontendKey::new(Address::from_v4([10, 96, 0, 7]), Port::new(80), Protocol::TCP);
        let element = Element::Frontend(key, Frontend::new(ServiceId(9), 0, 2, 1..4, true));
        let mut names = Names::default();
        names.by_id.insert(ServiceId(9), "default/web:http".to_owned());
        assert_eq!(
            line(&element, names, &[]),
            "{\"address\":\"10.96.0.7\",\"port\":80,\"protocol\":\"TCP\",\"service\":\"default/web:http\",\
             \"serviceId\":9,\"forNode\":\"1..4\",\"forBeyond\":\"0..2\",\"affinitySeconds\":0,\
             \"hasEndpoints\":true,\"hasSourceRanges\":false,\"balancing\":\"random\",\"hasTables\":false}\n"
        );
    }

    #[test]
    fn a_source_range_is_shown_as_people_write_it() {
        let mut names = Names::default();
        names.by_id.insert(ServiceId(9), "default/web:http".to_owned());
        let key = SourceRangeKey::new(ServiceId(9), Address::from_v4([10, 0, 0, 0]), 96 + 8);
        assert_eq!(
            line(&Element::SourceRange(key), names, &[]),
            "{\"serviceId\":9,\"service\":\"default/web:http\",\"clients\":\"10.0.0.0/8\"}\n"
        );
    }

    #[test]
    fn who_is_masqueraded_is_shown_as_people_write_it() {
        let pods = Ranges { v4: Range::new(Address::from_v4([10, 244, 0, 0]), 16), v6: Range::NONE };
        assert_eq!(
            line(&Element::Masquerade(Masquerade::new(pods, FORWARD_PORTS)), Names::default(), &[]),
            "{\"podsV4\":\"10.244.0.0/16\",\"podsV6\":null,\"ports\":\"49152-65535\"}\n"
        );
        for (address, bits, shown) in [
            ("10.0.0.0", 8, "10.0.0.0/8"),
            ("0.0.0.0", 0, "0.0.0.0/0"),
            ("fd00:89::b", 128, "fd00:89::b/128"),
        ] {
            let address: std::net::IpAddr = address.parse().unwrap();
            let element = Element::Unmasqueraded(Prefix::new(address.into(), bits));
            let wanted = format!("{{\"destinations\":\"{shown}\"}}\n");
            assert_eq!(line(&element, Names::default(), &[]), wanted);
        }
    }

    #[test]
    fn a_backend_id_becomes_an_address_where_the_backend_is_known() {
        let address = Address::from_v4([10, 244, 0, 2]);
        let backend = Backend::new(BackendId(4), ServiceId(9), address, Port::new(8080));
        let key = ebpf_common::SlotKey { service_id: ServiceId(9), slot: 0 };
        let text = line(&Element::Slot(key, BackendId(4)), Names::default(), &[backend]);
        assert!(text.contains("\"backend\":\"10.244.0.2:8080\",\"service\":null"), "{text}");
        let text = line(&Element::Slot(key, BackendId(5)), Names::default(), &[backend]);
        assert!(text.contains("\"backend\":null"), "{text}");
    }

    #[test]
    fn elements_without_names_are_rows_too() {
        let ranges = Ranges { v4: Range::new(Address::from_v4([10, 96, 0, 0]), 16), v6: Range::NONE };
        assert_eq!(
            line(&Element::Ranges(ranges), Names::default(), &[]),
            "{\"v4\":\"10.96.0.0/16\",\"v6\":null}\n"
        );
        let counter = Element::Counter(Counter::DropNoBackend as u32, 3);
        assert_eq!(
            line(&counter, Names::default(), &[]),
            "{\"index\":8,\"name\":\"drop_no_backend\",\"count\":3,\"drop\":true}\n"
        );
        let bytes = Element::Bytes(vec![0, 255], vec![16]);
        assert_eq!(line(&bytes, Names::default(), &[]), "{\"key\":\"00ff\",\"value\":\"10\"}\n");
        let buckets = Element::Buckets(vec![ebpf_common::Bucket::EMPTY; 2]);
        let text = line(&buckets, Names::default(), &[]);
        assert_eq!(text, "{\"cpu\":0,\"packetsLeft\":0}\n{\"cpu\":1,\"packetsLeft\":0}\n");
    }
}
