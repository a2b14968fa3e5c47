//! The page for Prometheus, and the port where it may ask for it.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bgp::{PeerStatus, State};
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::{Body, Status, page, text};
use crate::bgp_io::Snapshot;
use crate::metrics::text::Text;
use crate::network::Network;

/// How long until a port that somebody else has is tried again, or another connection after one failed.
const RETRY: Duration = Duration::from_secs(2);
/// For the next request on a connection, its headers included.
const REQUEST_MAX: Duration = Duration::from_secs(10);
const CONNECTIONS_MAX: usize = 8;
/// The least that hyper takes; requests here have no body.
const BUFFER_BYTES: usize = 8 << 10;

/// Answers `/metrics`, and nothing else, to whoever reaches `address`, until cancelled.
pub(super) async fn serve(status: Arc<Status>, address: SocketAddr, cancel: CancellationToken) {
    tokio::select! {
        () = cancel.cancelled() => {}
        () = listen(status, address, &cancel) => {}
    }
}

async fn listen(status: Arc<Status>, address: SocketAddr, cancel: &CancellationToken) {
    let mut is_told = false;
    let listener = loop {
        match TcpListener::bind(address).await {
            Ok(listener) => break listener,
            Err(error) => {
                if !std::mem::replace(&mut is_told, true) {
                    tracing::warn!(%address, %error, "metrics are not answered over TCP; trying again");
                }
                tokio::time::sleep(RETRY).await;
            }
        }
    };
    let limit = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::debug!(%error, "accepting a question for metrics");
                tokio::time::sleep(RETRY).await;
                continue;
            }
        };
        // One too many is closed at once.
        let Ok(permit) = limit.clone().try_acquire_owned() else { continue };
        let (status, cancel) = (status.clone(), cancel.clone());
        tokio::spawn(async move {
            tokio::select! {
                () = converse(&status, stream) => {}
                () = cancel.cancelled() => {}
            }
            drop(permit);
        });
    }
}

async fn converse(status: &Status, stream: TcpStream) {
    let service = hyper::service::service_fn(|request: Request<Incoming>| async move {
        Ok::<Response<Body>, Infallible>(match request.uri().path() {
            "/metrics" => page(status.metrics().await),
            // Where kube-proxy says how it works; what is told by it is only that this is none of its ways.
            "/proxyMode" => text(StatusCode::OK, "ebpf".to_owned()),
            path => text(StatusCode::NOT_FOUND, format!("no such page: {path}\n")),
        })
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(REQUEST_MAX)
        .max_buf_size(BUFFER_BYTES)
        .serve_connection(TokioIo::new(stream), service);
    // A client that went away is its own business.
    let _ = connection.await;
}

impl Status {
    pub(super) async fn metrics(&self) -> String {
        let mut text = Text::default();
        if let Some(snapshot) = self.bgp.snapshot().await {
            write_bgp(&mut text, &snapshot);
        }
        if let Some(snapshot) = self.bgp.bfd().snapshot().await {
            super::bfd::write(&mut text, &snapshot);
        }
        text.counter(
            "seaway_stale_sockets_destroyed_total",
            "UDP sockets ended with their backend since the start.",
        )
        .sample(&[], self.stale.destroyed.load(Ordering::Relaxed));
        let (network, metrics) = (self.network.clone(), self.metrics.clone());
        let written = tokio::task::spawn_blocking(move || {
            write_network(&mut text, &network);
            network.reach().write(&mut text);
            if network.datapath().is_some() {
                network.policies().write(&mut text);
            }
            metrics.write(&network, &mut text);
            text.finish()
        });
        written.await.unwrap_or_else(|error| {
            tracing::warn!(%error, "writing the page of metrics");
            String::new()
        })
    }
}

fn write_bgp(text: &mut Text, snapshot: &Snapshot) {
    let mut by_peer = |name, help, value: fn(&PeerStatus) -> usize| {
        let mut family = text.gauge(name, help);
        for peer in &snapshot.peers {
            family.sample(&[("peer", &peer.address.to_string())], value(peer));
        }
    };
    by_peer("seaway_bgp_peer_established", "Whether the session is established.", |peer| {
        usize::from(peer.state == State::Established)
    });
    by_peer("seaway_bgp_peer_routes", "Routes held from a peer.", |peer| peer.routes);
    by_peer("seaway_bgp_peer_routes_stale", "Routes kept over a peer's restart.", |peer| peer.routes_stale);
    text.gauge("seaway_bgp_converged", "Whether the routes are complete after the start.")
        .sample(&[], u8::from(snapshot.converged));
    text.gauge("seaway_bgp_routes", "Destinations in the routing table.").sample(&[], snapshot.routes.len());
}

fn write_network(text: &mut Text, network: &Network) {
    let routes = network.routes();
    let missing = routes.iter().filter(|(_, _, installed)| !installed).count();
    text.gauge("seaway_routes_desired", "Routes wanted in the kernel.").sample(&[], routes.len());
    text.gauge("seaway_routes_missing", "Routes wanted but not in the kernel.").sample(&[], missing);
    let allocator = network.allocator();
    let usage: Vec<(String, (usize, usize))> = allocator
        .blocks()
        .map(|block| (block.to_string(), allocator.usage(block).unwrap_or_default()))
        .collect();
    let mut family = text.gauge("seaway_ipam_addresses_used", "Addresses of pods.");
    for (block, (used, _)) in &usage {
        family.sample(&[("block", block)], used);
    }
    let mut family = text.gauge("seaway_ipam_addresses_free", "Addresses free or cooling down.");
    for (block, (_, free)) in &usage {
        family.sample(&[("block", block)], free);
    }
}
