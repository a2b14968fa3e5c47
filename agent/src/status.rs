//! The agent's own HTTP socket, `RUN_DIR/agent.sock`: JSON for the command line tool, metrics for Prometheus.
//!
//! ```text
//! /v1/peers /v1/routes /v1/services /v1/blocks /v1/pods /v1/counters /v1/maps /v1/status   /metrics   /healthz
//! /v1/why-not?prefix=&peer=      why a BGP peer is told of a destination, or is not
//! /v1/diff                       where API, speaker, agent, kernel and maps do not agree
//! /v1/journal?kind=&about=&limit= what changed, and why
//! /v1/policies                   NetworkPolicies that select pods of this node
//! /v1/policies/NAMESPACE/POD     how a pod is isolated, and what is allowed
//! /v1/flows /v1/maps/NAME        one JSON object per line
//! /v1/drops                      the same, as they occur
//! ```
//!
//! Answers are made from snapshots or in pieces, so that asking never holds up the sessions.

mod bfd;
mod diff;
mod drops;
mod flow;
mod hosts;
mod metrics;
mod pieces;
mod policies;
mod query;
mod rows;

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use bgp::policy::Community;
use bgp::rib::Source;
use bgp::{Explanation, Fate, PeerStatus, Prefix, RouteStatus};
use dataplane::programs::XdpState;
use dataplane::routes::Target;
use ebpf_common::{ServiceId, desired::Clients};
use futures::Stream;
use http::{Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper_util::rt::TokioIo;
use ipnetwork::IpNetwork;
use serde_json::{Value, json};
use tokio::sync::watch as signal;
use tokio_util::sync::CancellationToken;

use crate::bgp_io;
use crate::cni_server;
use crate::journal::Journal;
use crate::metrics::{Metrics, text as metrics_text};
use crate::network::{BlockStatus, Network};
use crate::stale;
use crate::watch;

pub use diff::Objects;
pub use drops::Drops;
use hosts::Hosts;
use pieces::{Dump, FlowFilter, FlowPieces};
use query::Query;

const NO_DATAPATH: &str = "this agent balances no Services (--router-only)";

type Body = UnsyncBoxBody<Bytes, Infallible>;

pub struct Status {
    pub node_name: String,
    pub network: Arc<Network>,
    pub bgp: bgp_io::Handle,
    /// Why pods cannot be served now; empty when they can.
    pub not_ready: signal::Receiver<String>,
    pub stale: stale::Handle,
    pub drops: Arc<Drops>,
    pub metrics: Arc<Metrics>,
    /// All nodes, this one among them.
    pub nodes: signal::Receiver<BTreeMap<String, Vec<IpAddr>>>,
    pub started_at: Instant,
    pub journal: Journal,
    /// Whether what the speaker learns becomes routes of the kernel.
    pub kernel_routes: bool,
    /// Where Services come from; absent on a host without pods.
    pub objects: Option<Objects>,
}

/// Serves until cancelled, metrics at `metrics_address` too.
pub fn start(
    status: Status,
    socket: &Path,
    metrics_address: Option<SocketAddr>,
    cancel: CancellationToken,
) -> anyhow::Result<()> {
    let listener = cni_server::bind(socket)?;
    let status = Arc::new(status);
    if let Some(address) = metrics_address {
        tokio::spawn(metrics::serve(status.clone(), address, cancel.clone()));
    }
    tokio::spawn(async move {
        loop {
            let stream = tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => stream,
                    Err(error) => {
                        tracing::warn!(%error, "accepting on the agent's socket");
                        continue;
                    }
                },
                () = cancel.cancelled() => return,
            };
            let status = status.clone();
            tokio::spawn(async move {
                let service = hyper::service::service_fn(move |request| {
                    let status = status.clone();
                    async move { Ok::<_, Infallible>(status.answer(&request).await) }
                });
                let connection = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service);
                // A client that went away is its own business.
                let _ = connection.await;
            });
        }
    });
    Ok(())
}

impl Status {
    async fn answer(&self, request: &Request<Incoming>) -> Response<Body> {
        let value = match request.uri().path() {
            "/healthz" => return text(StatusCode::OK, "ok\n".to_owned()),
            "/metrics" => return page(self.metrics().await),
            "/v1/status" => self.status().await,
            "/v1/peers" => self.peers().await,
            "/v1/routes" => self.routes().await,
            "/v1/why-not" => match self.why_not(request.uri().query()).await {
                Ok(value) => value,
                Err((code, error)) => return text(code, error + "\n"),
            },
            "/v1/diff" => self.diff().await,
            "/v1/journal" => match self.journal(request.uri().query()) {
                Ok(value) => value,
                Err(error) => return text(StatusCode::BAD_REQUEST, error + "\n"),
            },
            "/v1/services" => self.services(),
            "/v1/blocks" => self.blocks(),
            "/v1/pods" => self.pods(),
            "/v1/counters" => self.counters(),
            "/v1/maps" => self.maps().await,
            "/v1/flows" => return lines(self.flows(request.uri().query()).map(pieces::stream)),
            "/v1/drops" => return lines(self.drops.follow()),
            "/v1/policies" => match self.policies() {
                Ok(value) => value,
                Err((code, error)) => return text(code, error + "\n"),
            },
            path if path.starts_with("/v1/policies/") => {
                match self.policies_of(&path["/v1/policies/".len()..]) {
                    Ok(value) => value,
                    Err((code, error)) => return text(code, error + "\n"),
                }
            }
            path => match path.strip_prefix("/v1/maps/") {
                Some(map) => return lines(self.dump(map, request.uri().query()).map(pieces::stream)),
                None => return text(StatusCode::NOT_FOUND, format!("no such page: {path}\n")),
            },
        };
        let mut response = Response::new(Full::new(Bytes::from(format!("{value}\n"))).boxed_unsync());
        let json = http::HeaderValue::from_static("application/json");
        response.headers_mut().insert(http::header::CONTENT_TYPE, json);
        response
    }

    fn hosts(&self) -> Hosts {
        Hosts::of(&self.network, &self.nodes.borrow())
    }

    fn maps_dir(&self) -> Option<PathBuf> {
        Some(self.network.datapath()?.maps_dir().to_owned())
    }

    async fn maps(&self) -> Value {
        let Some(directory) = self.maps_dir() else { return json!([]) };
        let counted = tokio::task::spawn_blocking(move || pieces::maps(directory)).await;
        counted.unwrap_or_else(|error| json!({ "error": error.to_string() }))
    }

    fn dump(&self, map: &str, query: Option<&str>) -> Result<Dump, String> {
        let query = Query::parse(query, &Dump::PARAMETERS)?;
        let directory = self.maps_dir().ok_or(NO_DATAPATH)?;
        Dump::open(directory, map, &query, self.network.clone(), self.hosts())
    }

    fn flows(&self, query: Option<&str>) -> Result<FlowPieces, String> {
        let query = Query::parse(query, &FlowFilter::PARAMETERS)?;
        let flows = self.network.datapath().ok_or(NO_DATAPATH)?.flow_table();
        FlowPieces::open(flows, &query, self.network.clone(), self.hosts())
    }

    async fn status(&self) -> Value {
        let reason = self.not_ready.borrow().clone();
        let bfd = self.bgp.bfd().snapshot().await;
        json!({
            "node": self.node_name,
            "version": env!("CARGO_PKG_VERSION"),
            "uptimeSeconds": self.started_at.elapsed().as_secs(),
            "ready": reason.is_empty(),
            "reason": reason,
            "mtu": self.network.mtu(),
            "missing": self.stale.missing.iter().collect::<Vec<_>>(),
            "bfd": bfd::thread_json(bfd.as_ref()),
            "xdp": self.network.xdp().map(xdp_json),
        })
    }

    async fn peers(&self) -> Value {
        let Some(snapshot) = self.bgp.snapshot().await else { return json!([]) };
        let bfd = self.bgp.bfd().snapshot().await;
        let with_bfd = |peer: &PeerStatus| {
            let mut value = peer_json(peer, snapshot.taken_at);
            value["bfd"] = bfd::session_of(bfd.as_ref(), peer.address);
            value
        };
        snapshot.peers.iter().map(with_bfd).collect()
    }

    async fn routes(&self) -> Value {
        let Some(snapshot) = self.bgp.snapshot().await else { return json!([]) };
        let kernel = self.network.routes();
        let mut routes: Vec<Value> = snapshot
            .routes
            .iter()
            .map(|route| {
                let destination = IpNetwork::from(route.prefix);
                let found = kernel.iter().find(|(d, _, _)| *d == destination);
                route_json(route, found.map(|(_, target, installed)| (target, *installed)))
            })
            .collect();
        let learned: Vec<IpNetwork> = snapshot.routes.iter().map(|route| route.prefix.into()).collect();
        for (destination, target, installed) in kernel.iter().filter(|(d, _, _)| !learned.contains(d)) {
            routes.push(json!({
                "prefix": destination,
                "kernel": kernel_json(target, *installed),
                "paths": [],
            }));
        }
        Value::Array(routes)
    }

    fn journal(&self, query: Option<&str>) -> Result<Value, String> {
        let query = Query::parse(query, &["kind", "about", "limit"])?;
        let limit = query.value("limit")?.unwrap_or(usize::MAX);
        let entries =
            self.journal.entries(query.text("kind"), query.text("about").unwrap_or_default(), limit);
        Ok(json!(entries))
    }

    async fn why_not(&self, query: Option<&str>) -> Result<Value, (StatusCode, String)> {
        let bad = |error: String| (StatusCode::BAD_REQUEST, error);
        let query = Query::parse(query, &["prefix", "peer"]).map_err(bad)?;
        let missing = |name: &str| bad(format!("{name} is missing"));
        let peer: IpAddr = query.value("peer").map_err(bad)?.ok_or_else(|| missing("peer"))?;
        let prefix: IpNetwork = query.value("prefix").map_err(bad)?.ok_or_else(|| missing("prefix"))?;
        if let Some(explanation) = self.bgp.explain(peer, prefix.into()).await {
            return Ok(explanation_json(peer, prefix.into(), &explanation));
        }
        let peers = self.bgp.snapshot().await.map_or_else(Vec::new, |snapshot| snapshot.peers);
        let known: Vec<String> = peers.iter().map(|peer| peer.address.to_string()).collect();
        let known = if known.is_empty() { "it has none".to_owned() } else { known.join(", ") };
        Err((StatusCode::NOT_FOUND, format!("{peer} is no BGP peer of this node: {known}")))
    }

    fn services(&self) -> Value {
        let Some(datapath) = self.network.datapath() else { return json!([]) };
        let (entries, counts) = (datapath.services(), datapath.service_counts());
        drop(datapath);
        // Without them the rest is still worth telling.
        let counts = counts.all().unwrap_or_else(|error| {
            tracing::warn!(error = watch::chain(&error), "reading the counts of Services");
            HashMap::new()
        });
        entries
            .iter()
            .map(|entry| {
                let backends: Vec<Value> = entry
                    .backends
                    .iter()
                    .map(|b| {
                        json!({
                            "id": b.backend_id,
                            "address": b.address,
                            "port": b.port,
                            "local": b.local,
                            "clients": clients_name(b.clients),
                            "weight": b.weight,
                            "open": b.open,
                        })
                    })
                    .collect();
                let count = counts.get(&ServiceId(entry.service_id)).copied().unwrap_or_default();
                json!({
                    "name": entry.name,
                    "id": entry.service_id,
                    "address": entry.address,
                    "port": entry.port,
                    "protocol": protocol_name(entry.protocol),
                    "affinitySeconds": entry.affinity_seconds,
                    "balancing": entry.balancing.name(),
                    "sourceRanges": entry.source_ranges.as_ref().map(|ranges| ranges_text(ranges)),
                    "connections": count.chosen,
                    "refused": count.refused,
                    "backends": backends,
                })
            })
            .collect()
    }

    fn blocks(&self) -> Value {
        let block = |status: BlockStatus| {
            json!({
                "block": status.block,
                "pool": status.pool,
                "owner": status.owner,
                "used": status.used,
                "free": status.free,
                "lent": status.lent,
                "borrowed": status.is_borrowed,
            })
        };
        self.network.blocks().into_iter().map(block).collect()
    }

    fn pods(&self) -> Value {
        self.network
            .pods()
            .iter()
            .map(|pod| {
                json!({
                    "namespace": pod.allocation.owner.pod_namespace,
                    "name": pod.allocation.owner.pod_name,
                    "address": pod.allocation.address,
                    "containerId": pod.allocation.owner.container_id,
                    "interface": pod.allocation.owner.interface,
                    "hostInterface": pod.host_interface,
                    "hostIndex": pod.host_index,
                    "allocatedAt": pod.allocation.allocated_at,
                })
            })
            .collect()
    }

    fn counters(&self) -> Value {
        let Some(datapath) = self.network.datapath() else { return json!([]) };
        let counters = match datapath.counters() {
            Ok(counters) => counters,
            Err(error) => return json!({ "error": error.to_string() }),
        };
        drop(datapath);
        counters
            .iter()
            .map(|(counter, count)| json!({ "name": counter.name(), "count": count, "drop": counter.is_drop() }))
            .collect()
    }
}

fn page(body: String) -> Response<Body> {
    let mut response = text(StatusCode::OK, body);
    let kind = http::HeaderValue::from_static(metrics_text::CONTENT_TYPE);
    response.headers_mut().insert(http::header::CONTENT_TYPE, kind);
    response
}

fn text(status: StatusCode, body: String) -> Response<Body> {
    let mut response = Response::new(Full::new(Bytes::from(body)).boxed_unsync());
    *response.status_mut() = status;
    response
}

/// Lines of JSON as they come, or why there are none.
fn lines(
    lines: Result<impl Stream<Item = Result<Frame<Bytes>, Infallible>> + Send + 'static, String>,
) -> Response<Body> {
    match lines {
        Ok(lines) => {
            let mut response = Response::new(StreamBody::new(lines).boxed_unsync());
            let json = http::HeaderValue::from_static("application/x-ndjson");
            response.headers_mut().insert(http::header::CONTENT_TYPE, json);
            response
        }
        Err(reason) => text(StatusCode::BAD_REQUEST, format!("{reason}\n")),
    }
}

fn xdp_json(state: &XdpState) -> Value {
    match state {
        XdpState::In(mode) => json!({ "mode": mode.name() }),
        XdpState::Off(reason) => json!({ "mode": "off", "reason": reason }),
    }
}

fn peer_json(peer: &PeerStatus, now: Instant) -> Value {
    let transition = |change: &bgp::Transition| {
        let ago = now.duration_since(change.at).as_secs();
        json!({ "secondsAgo": ago, "state": change.state.to_string(), "detail": change.detail })
    };
    let history: Vec<Value> = peer.history.iter().map(transition).collect();
    json!({
        "address": peer.address,
        "asn": peer.asn,
        "routerId": peer.router_id,
        "state": peer.state.to_string(),
        "dynamic": peer.dynamic,
        "establishedSeconds": peer.established_at.map(|at| now.duration_since(at).as_secs()),
        "holdTimeSeconds": peer.hold_time.map(|time| time.as_secs()),
        "keepaliveSeconds": peer.keepalive_time.map(|time| time.as_secs_f64()),
        "gracefulRestart": peer.graceful_restart,
        "routes": peer.routes,
        "routesStale": peer.routes_stale,
        "routesRejected": peer.routes_rejected,
        "routesAdvertised": peer.routes_advertised,
        "messagesReceived": peer.messages_received,
        "messagesSent": peer.messages_sent,
        "lastError": peer.last_error,
        "lastNotificationSent": peer.last_notification_sent.as_ref().map(ToString::to_string),
        "lastNotificationReceived": peer.last_notification_received.as_ref().map(ToString::to_string),
        "history": history,
    })
}

/// Whom a backend serves, by where they ask from.
fn clients_name(clients: Clients) -> &'static str {
    match clients {
        Clients::All => "all",
        Clients::Node => "node",
        Clients::Beyond => "beyond",
        Clients::Present => "present",
    }
}

fn ranges_text(ranges: &[(std::net::IpAddr, u8)]) -> Vec<String> {
    ranges.iter().map(|(address, prefix)| format!("{address}/{prefix}")).collect()
}

pub fn protocol_name(protocol: ebpf_common::Protocol) -> String {
    match protocol {
        ebpf_common::Protocol::TCP => "TCP".to_owned(),
        ebpf_common::Protocol::UDP => "UDP".to_owned(),
        ebpf_common::Protocol::SCTP => "SCTP".to_owned(),
        ebpf_common::Protocol::ICMP => "ICMP".to_owned(),
        ebpf_common::Protocol::ICMP_V6 => "ICMPv6".to_owned(),
        ebpf_common::Protocol(number) => number.to_string(),
    }
}

fn explanation_json(peer: IpAddr, prefix: Prefix, explanation: &Explanation) -> Value {
    let path = |(source, fate): &(Source, Fate)| {
        json!({
            "source": source.to_string(),
            "told": matches!(fate, Fate::Told { .. }),
            "why": fate.to_string(),
        })
    };
    json!({
        "peer": peer,
        "prefix": prefix.to_string(),
        "told": explanation.is_told(),
        "why": explanation.obstacle.as_ref().map(ToString::to_string),
        "paths": explanation.paths.iter().map(path).collect::<Vec<_>>(),
    })
}

fn kernel_json(target: &Target, installed: bool) -> Value {
    let mut value = match target {
        Target::Blackhole => json!({ "kind": "blackhole" }),
        Target::Unreachable => json!({ "kind": "unreachable" }),
        Target::Link(index) => json!({ "kind": "link", "interface": index }),
        Target::Via(gateways) => json!({ "kind": "via", "gateways": **gateways }),
    };
    value["installed"] = json!(installed);
    value
}

fn route_json(route: &RouteStatus, kernel: Option<(&Target, bool)>) -> Value {
    let paths: Vec<Value> = route
        .paths
        .iter()
        .map(|path| {
            let attributes = &path.attributes;
            let as_path: Vec<u32> = attributes.as_path.iter().flat_map(|s| s.asns()).copied().collect();
            let communities: Vec<String> =
                attributes.communities.iter().map(|c| format!("{}:{}", c >> 16, c & 0xffff)).collect();
            let large = attributes.large_communities.iter().copied().map(Community::Large);
            let large: Vec<String> = large.map(|community| community.to_string()).collect();
            let extended = attributes.extended_communities.iter().copied().map(Community::Extended);
            let extended: Vec<String> = extended.map(|community| community.to_string()).collect();
            json!({
                "source": path.source.to_string(),
                "nextHop": attributes.next_hop,
                "origin": format!("{:?}", attributes.origin),
                "asPath": as_path,
                "localPref": attributes.local_pref,
                "med": attributes.med,
                "communities": communities,
                "largeCommunities": large,
                "extendedCommunities": extended,
                "rejected": path.rejected.map(|rejected| rejected.to_string()),
                "external": path.external,
                "stale": path.stale,
            })
        })
        .collect();
    json!({
        "prefix": route.prefix.to_string(),
        "best": route.best.map(|source| source.to_string()),
        "reason": route.reason.map(|reason| reason.to_string()),
        "nextHops": route.next_hops,
        "kernel": kernel.map(|(target, installed)| kernel_json(target, installed)),
        "paths": paths,
    })
}
