//! The datapath's programs and maps.

mod balancing;
pub mod continuity;
mod delivery;
mod drops;
mod errors;
mod frontends;
mod masquerade;
mod metrics;
mod node;
mod packets;
mod policy;
mod program_runs;
mod refusal;
mod routing;
mod sctp;
mod sockets;
mod source_ranges;
mod stale;
mod verifier;
mod view;
mod xdp;

use std::net::{IpAddr, SocketAddr};

use dataplane::{
    datapath::{Config, Datapath},
    programs::TcMode,
};
use ebpf_common::{
    Address, Counter, FrontendKey, Port, Protocol,
    desired::{Clients, Endpoint, Service, Services},
};

use crate::netns::BpfDir;

fn open(directory: &BpfDir) -> Datapath {
    Datapath::open(&Config::new(&directory.path)).unwrap_or_else(|error| panic!("{}", chain(&error)))
}

/// Every way to attach to interfaces that the running kernel has, the best first.
fn tc_modes() -> Vec<TcMode> {
    match TcMode::of_kernel() {
        TcMode::Tcx => vec![TcMode::Tcx, TcMode::Clsact],
        TcMode::Clsact => vec![TcMode::Clsact],
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

fn key(frontend: &str, protocol: Protocol) -> FrontendKey {
    let frontend: SocketAddr = frontend.parse().expect("a frontend");
    FrontendKey::new(Address::from(frontend.ip()), Port::new(frontend.port()), protocol)
}

fn endpoint(address: IpAddr, port: u16, local: bool) -> Endpoint {
    Endpoint {
        address: Address::from(address),
        port: Port::new(port),
        local,
        clients: Clients::All,
        weight: Endpoint::WEIGHT,
    }
}

/// A service to `backends`, all of them on this node.
fn service(backends: &[SocketAddr]) -> Service {
    leading_to(backends.iter().map(|backend| endpoint(backend.ip(), backend.port(), true)).collect())
}

fn leading_to(endpoints: Vec<Endpoint>) -> Service {
    let has_endpoints = !endpoints.is_empty();
    Service { name: "default/web".into(), endpoints, has_endpoints, ..Service::default() }
}

/// The node port of a family, which any address of the family names.
fn node_port(frontend: &str, protocol: Protocol) -> FrontendKey {
    key(frontend, protocol).of_any_address()
}

fn services(of: impl IntoIterator<Item = (FrontendKey, Service)>) -> Services {
    of.into_iter().collect()
}

fn count(datapath: &Datapath, counter: Counter) -> u64 {
    let counters = datapath.counters().expect("the counters");
    counters.iter().find(|(found, _)| *found == counter).expect("every counter is listed").1
}
