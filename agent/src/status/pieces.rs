//! Answers that are made a piece at a time, as the asker takes them: maps and flows, one JSON object per line.
//!
//! Nothing is held but the piece, and no thread while the asker is slow. What fails on the way is the last line, an
//! object with nothing but `error`.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::{collections::HashSet, convert::Infallible};

use dataplane::flows::{self, Flows};
use dataplane::maps::MapError;
use dataplane::view::{self, Element, Walk};
use ebpf_common::{Address, Flow, Port, Protocol, ServiceId, Tuple};
use futures::Stream;
use hyper::body::{Bytes, Frame};
use serde_json::{Value, json};

use super::flow::flow_row;
use super::hosts::Hosts;
use super::query::Query;
use super::rows::{self, Joins};
use crate::network::Network;
use crate::watch;

/// Something that is read piece by piece; a piece may be empty.
pub trait Pieces: Send + 'static {
    /// `None` at the end. Blocks on the kernel only.
    fn next_piece(&mut self) -> Result<Option<String>, MapError>;
}

/// The pieces as a body.
pub fn stream(pieces: impl Pieces) -> impl Stream<Item = Result<Frame<Bytes>, Infallible>> + Send + 'static {
    futures::stream::unfold(Some(pieces), |pieces| async move {
        let mut pieces = pieces?;
        let (text, pieces) = tokio::task::spawn_blocking(move || {
            loop {
                match pieces.next_piece() {
                    Ok(Some(text)) if text.is_empty() => {}
                    Ok(Some(text)) => return Some((text, Some(pieces))),
                    Ok(None) => return None,
                    Err(error) => {
                        return Some((format!("{}\n", json!({ "error": watch::chain(&error) })), None));
                    }
                }
            }
        })
        .await
        .ok()??;
        Some((Ok(Frame::data(Bytes::from(text))), pieces))
    })
}

/// Counts down what may still be told.
struct Limit(Option<usize>);

impl Limit {
    fn of(query: &Query<'_>) -> Result<Limit, String> {
        query.value("limit").map(Limit)
    }

    fn is_reached(&self) -> bool {
        self.0 == Some(0)
    }

    fn take(&mut self) -> bool {
        match &mut self.0 {
            Some(0) => false,
            Some(left) => {
                *left -= 1;
                true
            }
            None => true,
        }
    }
}

/// Elements of a map.
pub struct Dump {
    walk: Walk,
    network: Arc<Network>,
    hosts: Hosts,
    address: Option<Address>,
    limit: Limit,
}

impl Dump {
    pub const PARAMETERS: [&str; 2] = ["address", "limit"];

    /// # Errors
    /// Where there is no such map, or one without elements, and where the query is none.
    pub fn open(
        directory: PathBuf,
        wanted: &str,
        query: &Query<'_>,
        network: Arc<Network>,
        hosts: Hosts,
    ) -> Result<Dump, String> {
        let address = query.value::<IpAddr>("address")?.map(Address::from);
        let limit = Limit::of(query)?;
        let names = view::names(&directory).map_err(|error| watch::chain(&error))?;
        let Some(name) = view::find(&names, wanted) else {
            return Err(format!("there is no map {wanted:?}; there is {}", names.join(", ")));
        };
        let walk = Walk::open(&directory, name).map_err(|error| watch::chain(&error))?;
        if !walk.has_elements() {
            return Err(format!("the map {name} is a ring buffer: what is in it is gone once it is read"));
        }
        Ok(Dump { walk, network, hosts, address, limit })
    }
}

impl Pieces for Dump {
    fn next_piece(&mut self) -> Result<Option<String>, MapError> {
        if self.limit.is_reached() {
            return Ok(None);
        }
        let Some(mut elements) = self.walk.next_piece()? else { return Ok(None) };
        // A refined question joins names only to what may be its answer.
        if let Some(address) = &self.address {
            elements.retain(|element| may_have(element, address));
        }
        let joins = Joins::of(&elements, &self.network, &self.hosts, flows::now_ns());
        let mut text = String::new();
        for element in &elements {
            if self.address.is_some_and(|address| !joins.addresses(element).contains(&address)) {
                continue;
            }
            for row in joins.rows(element) {
                if self.limit.take() {
                    rows::encode(&row, &mut text);
                }
            }
        }
        Ok(Some(text))
    }
}

/// Elements that refer to a backend by its id may have the backend's address.
fn may_have(element: &Element, address: &Address) -> bool {
    let by_id = matches!(element, Element::Slot(..) | Element::Affinity(..) | Element::SocketForward(..));
    by_id || element.addresses().contains(address)
}

/// Which flows are asked for.
#[derive(Debug, Default)]
pub struct FlowFilter {
    protocol: Option<Protocol>,
    client: Option<(Address, Port)>,
    frontend: Option<(Address, Port)>,
    backend: Option<(Address, Port)>,
    /// Any of the flow's addresses is one of these.
    addresses: Option<HashSet<Address>>,
    /// As well as this one.
    address: Option<Address>,
    services: Option<HashSet<ServiceId>>,
}

impl FlowFilter {
    pub const PARAMETERS: [&str; 8] =
        ["pod", "service", "address", "client", "frontend", "backend", "protocol", "limit"];

    /// # Errors
    /// Names what is no address, no protocol, or nothing that this node knows.
    pub fn of(query: &Query<'_>, network: &Network, hosts: &Hosts) -> Result<FlowFilter, String> {
        let end = |name| -> Result<Option<(Address, Port)>, String> {
            let at = query.value::<SocketAddr>(name)?;
            Ok(at.map(|at| (Address::from(at.ip()), Port::new(at.port()))))
        };
        let mut filter = FlowFilter {
            protocol: query.text("protocol").map(protocol).transpose()?,
            client: end("client")?,
            frontend: end("frontend")?,
            backend: end("backend")?,
            addresses: None,
            address: query.value::<IpAddr>("address")?.map(Address::from),
            services: None,
        };
        if let Some(pod) = query.text("pod") {
            let addresses = hosts.addresses_of(pod);
            if addresses.is_empty() {
                return Err(format!("no pod {pod:?} has an address on this node; `seaway pod list` has all"));
            }
            filter.addresses = Some(addresses.into_iter().map(Address::from).collect());
        }
        if let Some(service) = query.text("service") {
            let ids = network.datapath().map(|datapath| datapath.ids_of(service)).unwrap_or_default();
            if ids.is_empty() {
                return Err(format!(
                    "no Service {service:?} is balanced here; `seaway service list` has all"
                ));
            }
            filter.services = Some(ids);
        }
        Ok(filter)
    }

    fn matches(&self, tuple: &Tuple, flow: &Flow) -> bool {
        let to = &flow.translated;
        let all = [tuple.source, tuple.destination, to.source, to.destination];
        let is = |wanted: Option<(Address, Port)>, end: (Address, Port)| wanted.is_none_or(|w| w == end);
        self.protocol.is_none_or(|protocol| protocol == tuple.protocol)
            && is(self.client, (tuple.source, tuple.source_port))
            && is(self.frontend, (tuple.destination, tuple.destination_port))
            && is(self.backend, (to.destination, to.destination_port))
            && self.address.is_none_or(|address| all.contains(&address))
            && self.addresses.as_ref().is_none_or(|wanted| all.iter().any(|end| wanted.contains(end)))
            && self.services.as_ref().is_none_or(|ids| ids.contains(&flow.service_id))
    }
}

fn protocol(text: &str) -> Result<Protocol, String> {
    match text.to_ascii_uppercase().as_str() {
        "TCP" => Ok(Protocol::TCP),
        "UDP" => Ok(Protocol::UDP),
        "SCTP" => Ok(Protocol::SCTP),
        "ICMP" => Ok(Protocol::ICMP),
        "ICMPV6" => Ok(Protocol::ICMP_V6),
        _ => Err(format!("protocol={text} is none of TCP, UDP, SCTP, ICMP and ICMPv6")),
    }
}

/// Flows of conntrack.
pub struct FlowPieces {
    flows: Arc<Flows>,
    walk: Walk,
    network: Arc<Network>,
    hosts: Hosts,
    filter: FlowFilter,
    limit: Limit,
}

impl FlowPieces {
    /// # Errors
    /// Where the query is none, or the map cannot be opened.
    pub fn open(
        flows: Arc<Flows>,
        query: &Query<'_>,
        network: Arc<Network>,
        hosts: Hosts,
    ) -> Result<FlowPieces, String> {
        let filter = FlowFilter::of(query, &network, &hosts)?;
        let limit = Limit::of(query)?;
        let walk = flows.walk().map_err(|error| watch::chain(&error))?;
        Ok(FlowPieces { flows, walk, network, hosts, filter, limit })
    }
}

impl Pieces for FlowPieces {
    fn next_piece(&mut self) -> Result<Option<String>, MapError> {
        if self.limit.is_reached() {
            return Ok(None);
        }
        let wanted = |tuple: &Tuple, flow: &Flow| self.filter.matches(tuple, flow);
        let Some(flows) = self.flows.next_piece(&mut self.walk, flows::now_ns(), wanted)? else {
            return Ok(None);
        };
        let ids: HashSet<ServiceId> = flows.iter().map(|flow| ServiceId(flow.service_id)).collect();
        let names = match self.network.datapath() {
            Some(datapath) => datapath.names(&ids, &HashSet::new()),
            None => dataplane::services::Names::default(),
        };
        let mut text = String::new();
        for flow in flows {
            if self.limit.take() {
                let service = names.by_id.get(&ServiceId(flow.service_id));
                rows::encode(&flow_row(&flow, service, &self.hosts), &mut text);
            }
        }
        Ok(Some(text))
    }
}

/// Every pinned map.
pub fn maps(directory: PathBuf) -> Value {
    match view::list(&directory) {
        Ok(maps) => maps
            .iter()
            .map(|map| {
                json!({
                    "name": map.name,
                    "type": map.kind,
                    "keyBytes": map.key_bytes,
                    "valueBytes": map.value_bytes,
                    "entries": map.entries,
                    "capacity": map.capacity,
                    "memoryBytes": map.memory_bytes,
                    "layout": map.layout,
                    "path": map.path,
                })
            })
            .collect(),
        Err(error) => json!({ "error": watch::chain(&error) }),
    }
}

#[cfg(test)]
mod tests {
    use ebpf_common::{BackendId, Direction};
    use futures::StreamExt;

    use super::*;

    fn flow() -> (Tuple, Flow) {
        let client = Address::from_v4([10, 244, 0, 2]);
        let tuple = |to: [u8; 4], port| {
            Tuple::new(client, Port::new(40000), Address::from_v4(to), Port::new(port), Protocol::TCP)
        };
        let translated = tuple([10, 244, 1, 2], 8080);
        let flow = Flow::new(Direction::Forward, translated, ServiceId(9), BackendId(4), false, 0);
        (tuple([10, 96, 0, 7], 80), flow)
    }

    #[test]
    fn a_flow_is_found_by_each_of_its_ends() {
        let (tuple, flow) = flow();
        let end = |text: &str| {
            let at: SocketAddr = text.parse().unwrap();
            Some((Address::from(at.ip()), Port::new(at.port())))
        };
        let matching = [
            FlowFilter::default(),
            FlowFilter { client: end("10.244.0.2:40000"), ..FlowFilter::default() },
            FlowFilter {
                frontend: end("10.96.0.7:80"),
                backend: end("10.244.1.2:8080"),
                ..FlowFilter::default()
            },
            FlowFilter { address: Some(Address::from_v4([10, 244, 1, 2])), ..FlowFilter::default() },
            FlowFilter { services: Some([ServiceId(9)].into()), ..FlowFilter::default() },
        ];
        assert!(matching.iter().all(|filter| filter.matches(&tuple, &flow)), "{matching:?}");
        let others = [
            FlowFilter { client: end("10.244.0.2:40001"), ..FlowFilter::default() },
            FlowFilter { protocol: Some(Protocol::UDP), ..FlowFilter::default() },
            FlowFilter {
                addresses: Some([Address::from_v4([10, 244, 0, 3])].into()),
                ..FlowFilter::default()
            },
            FlowFilter { services: Some([ServiceId(8)].into()), ..FlowFilter::default() },
        ];
        assert!(!others.iter().any(|filter| filter.matches(&tuple, &flow)), "{others:?}");
        assert_eq!(protocol("sctp").unwrap(), Protocol::SCTP);
        assert_eq!(protocol("dccp").unwrap_err(), "protocol=dccp is none of TCP, UDP, SCTP, ICMP and ICMPv6");
    }

    struct Failing(u32);

    impl Pieces for Failing {
        fn next_piece(&mut self) -> Result<Option<String>, MapError> {
            self.0 += 1;
            match self.0 {
                1 => Ok(Some("{}\n".to_owned())),
                2 => Ok(Some(String::new())),
                _ => Err(MapError::Full { name: "SLOTS_1".to_owned() }),
            }
        }
    }

    #[tokio::test]
    async fn what_fails_on_the_way_is_the_last_line() {
        let frames: Vec<Bytes> =
            stream(Failing(0)).map(|frame| frame.unwrap().into_data().unwrap()).collect().await;
        assert_eq!(frames, ["{}\n", "{\"error\":\"the map SLOTS_1 is full\"}\n"]);
    }
}
