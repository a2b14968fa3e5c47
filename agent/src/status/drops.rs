//! Drops for those who follow them: one reader of the datapath's ring, made when the first comes and gone with the last.
//!
//! Each follower has the same lines, made once. One that is slower than they come is told how many it did not get, as
//! all are told of those that the datapath did not report.

use std::collections::{BTreeMap, HashSet};
use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dataplane::drops::{DropReader, interface_name};
use dataplane::flows::now_ns;
use dataplane::maps::MapError;
use dataplane::services::Names;
use ebpf_common::{Address, Counter, Dropped, FrontendKey};
use futures::Stream;
use hyper::body::{Bytes, Frame};
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use tokio::sync::broadcast::{Receiver, Sender, error::RecvError};
use tokio::sync::watch;
use tokio::time::{Instant, MissedTickBehavior};

use super::hosts::Hosts;
use super::protocol_name;
use super::rows::{Row, encode, end};
use crate::network::Network;
use crate::watch as watches;

/// How often the ring is emptied: soon for people, and many at once when there are many.
const LOOK: Duration = Duration::from_millis(50);
const RENEW: Duration = Duration::from_secs(1);
/// Drops taken at once.
const PIECE: usize = 512;
/// Lines that a follower may be behind.
const BEHIND_MAX: usize = 2048;
const FOLLOWERS_MAX: usize = 32;

type Lines = Sender<Bytes>;

pub struct Drops {
    network: Arc<Network>,
    nodes: watch::Receiver<BTreeMap<String, Vec<IpAddr>>>,
    /// There while somebody follows.
    lines: Mutex<Option<Lines>>,
}

impl Drops {
    pub fn new(network: Arc<Network>, nodes: watch::Receiver<BTreeMap<String, Vec<IpAddr>>>) -> Arc<Drops> {
        Arc::new(Drops { network, nodes, lines: Mutex::default() })
    }

    /// Every drop from now on.
    ///
    /// # Errors
    /// Where the datapath's maps cannot be opened, and where too many follow already.
    pub fn follow(
        self: &Arc<Drops>,
    ) -> Result<impl Stream<Item = Result<Frame<Bytes>, Infallible>> + Send + use<>, String> {
        let mut running = self.lines();
        let receiver = match &*running {
            Some(lines) if lines.receiver_count() >= FOLLOWERS_MAX => {
                return Err(format!("{FOLLOWERS_MAX} follow the drops already"));
            }
            Some(lines) => lines.subscribe(),
            None => {
                let directory = self.network.datapath().map(|datapath| datapath.maps_dir().to_owned());
                let directory = directory.ok_or(super::NO_DATAPATH)?;
                let reader = DropReader::open(&directory).map_err(|error| watches::chain(&error))?;
                let (sender, receiver) = tokio::sync::broadcast::channel(BEHIND_MAX);
                *running = Some(sender.clone());
                tokio::spawn(self.clone().read(reader, sender));
                receiver
            }
        };
        Ok(futures::stream::unfold(receiver, next_line))
    }

    async fn read(self: Arc<Drops>, mut reader: DropReader, lines: Lines) {
        let mut look = tokio::time::interval(LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut renewed = Instant::now();
        loop {
            look.tick().await;
            if lines.receiver_count() == 0 {
                let mut running = self.lines();
                // Somebody may have come meanwhile.
                if lines.receiver_count() == 0 {
                    *running = None;
                    return;
                }
            }
            loop {
                let drops = reader.take(PIECE);
                if drops.is_empty() {
                    break;
                }
                for line in self.encode(&drops) {
                    // Who is gone needs none.
                    let _ = lines.send(line);
                }
                tokio::task::yield_now().await;
            }
            if renewed.elapsed() >= RENEW {
                renewed = Instant::now();
                if let Err(error) = renew(&mut reader, &lines) {
                    tracing::warn!(error = watches::chain(&error), "following drops");
                }
            }
        }
    }

    fn encode(&self, drops: &[Dropped]) -> Vec<Bytes> {
        let hosts = Hosts::of(&self.network, &self.nodes.borrow());
        let addresses: HashSet<Address> =
            drops.iter().flat_map(|dropped| [dropped.source, dropped.destination]).collect();
        let mut names = Names::default();
        let mut services = vec![None; drops.len()];
        if let Some(datapath) = self.network.datapath() {
            names = datapath.names(&HashSet::new(), &addresses);
            for (service, dropped) in services.iter_mut().zip(drops) {
                let key = FrontendKey::new(dropped.destination, dropped.destination_port, dropped.protocol);
                *service = datapath.service_at(&key).map(str::to_owned);
            }
        }
        let now = (Timestamp::now(), now_ns());
        let line = |(dropped, service): (&Dropped, Option<String>)| {
            let mut line = String::new();
            encode(&row(dropped, service, &names, &hosts, now), &mut line);
            Bytes::from(line)
        };
        drops.iter().zip(services).map(line).collect()
    }

    fn lines(&self) -> MutexGuard<'_, Option<Lines>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn renew(reader: &mut DropReader, lines: &Lines) -> Result<(), MapError> {
    reader.renew()?;
    let missed = reader.missed()?;
    if missed > 0 {
        let _ = lines.send(missing(missed, "datapath"));
    }
    Ok(())
}

async fn next_line(
    mut receiver: Receiver<Bytes>,
) -> Option<(Result<Frame<Bytes>, Infallible>, Receiver<Bytes>)> {
    let line = match receiver.recv().await {
        Ok(line) => line,
        Err(RecvError::Lagged(lost)) => missing(lost, "follower"),
        Err(RecvError::Closed) => return None,
    };
    Some((Ok(Frame::data(line)), receiver))
}

/// The line in the place of drops that are not told.
fn missing(count: u64, slow: &str) -> Bytes {
    Bytes::from(format!("{}\n", json!({ "missed": count, "by": slow })))
}

fn row(
    dropped: &Dropped,
    service: Option<String>,
    names: &Names,
    hosts: &Hosts,
    (now, now_ns): (Timestamp, u64),
) -> Row {
    let ago = SignedDuration::from_nanos(now_ns.saturating_sub(dropped.time_ns) as i64);
    let time = now.checked_sub(ago).unwrap_or(now);
    let reason = Counter::of_index(dropped.reason).map(Counter::name);
    let name = |address: &Address| match names.by_address.get(address) {
        Some(service) => json!(format!("Service {service}")),
        None => json!(hosts.name(address.to_ip())),
    };
    let family = match (dropped.source == Address::UNSPECIFIED, dropped.source.is_v4()) {
        (_, true) => json!("IPv4"),
        (false, false) => json!("IPv6"),
        (true, false) => Value::Null,
    };
    vec![
        ("time", json!(format!("{time:.3}"))),
        ("reason", json!(reason.map(|reason| reason.strip_prefix("drop_").unwrap_or(reason)))),
        ("family", family),
        ("protocol", json!(protocol_name(dropped.protocol))),
        ("source", json!(end(&dropped.source, dropped.source_port))),
        ("sourceName", name(&dropped.source)),
        ("destination", json!(end(&dropped.destination, dropped.destination_port))),
        (
            "destinationName",
            service.map_or_else(|| name(&dropped.destination), |s| json!(format!("Service {s}"))),
        ),
        ("interface", json!(interface_name(dropped.interface_index))),
        ("interfaceIndex", json!(dropped.interface_index)),
        ("pod", json!(hosts.pod_at(dropped.interface_index))),
        ("length", json!(dropped.length)),
    ]
}

#[cfg(test)]
mod tests {
    use ebpf_common::{Port, Protocol};

    use super::*;

    #[test]
    fn a_drop_is_a_line_with_its_time_and_the_names_of_both_ends() {
        let mut dropped = Dropped::new(1_000_000_000, Counter::DropNoBackend as u32, u32::MAX, 74);
        dropped.source = Address::from_v4([10, 244, 0, 2]);
        dropped.destination = Address::from_v4([10, 96, 0, 7]);
        (dropped.source_port, dropped.destination_port) = (Port::new(40000), Port::new(80));
        dropped.protocol = Protocol::TCP;
        let mut names = Names::default();
        names.by_address.insert(dropped.destination, "default/web".to_owned());
        let now = ("2026-01-02T03:04:05.5Z".parse().unwrap(), 1_250_000_000);
        let mut line = String::new();
        encode(&row(&dropped, None, &names, &Hosts::default(), now), &mut line);
        assert_eq!(
            line,
            "{\"time\":\"2026-01-02T03:04:05.250Z\",\"reason\":\"no_backend\",\"family\":\"IPv4\",\
             \"protocol\":\"TCP\",\"source\":\"10.244.0.2:40000\",\"sourceName\":null,\
             \"destination\":\"10.96.0.7:80\",\"destinationName\":\"Service default/web\",\"interface\":null,\
             \"interfaceIndex\":4294967295,\"pod\":null,\"length\":74}\n"
        );
        let named = row(&dropped, Some("default/web:http".to_owned()), &names, &Hosts::default(), now);
        assert_eq!(named[7].1, "Service default/web:http");
    }

    #[tokio::test]
    async fn a_follower_that_is_too_slow_is_told_how_many_it_missed() {
        let (sender, receiver) = tokio::sync::broadcast::channel(2);
        for line in ["1\n", "2\n", "3\n", "4\n", "5\n"] {
            sender.send(Bytes::from(line)).unwrap();
        }
        let (first, receiver) = next_line(receiver).await.unwrap();
        assert_eq!(first.unwrap().into_data().unwrap(), "{\"by\":\"follower\",\"missed\":3}\n");
        let (second, receiver) = next_line(receiver).await.unwrap();
        assert_eq!(second.unwrap().into_data().unwrap(), "4\n");
        drop(sender);
        let (_, receiver) = next_line(receiver).await.unwrap();
        assert!(next_line(receiver).await.is_none());
    }
}
