//! What Prometheus is told of the datapath and of its programming.
//!
//! A page costs no walk over a large map, but for the counts of Services that somebody asked for. What has to be walked
//! over is counted beside the sweep of flows ([`Metrics::collect`]), and the page says how old a number may be. Everything
//! here blocks on the kernel: not for the threads that serve.

mod services;
pub mod text;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use dataplane::census::{Census, FlowState};
use dataplane::flows::Swept;
use dataplane::maps::MapError;
use dataplane::pressure::{self, Room};
use ebpf_common::{Counter, Protocol, ServiceCount, ServiceId, maps};

use crate::network::Network;
use crate::watch;
use services::{NameById, ServiceSeries};
use text::{Histogram, Text};

/// How old the number of elements of a map may be that the agent has to walk over.
const COUNT_INTERVAL: Duration = Duration::from_secs(60);
/// With more elements than this the map of counts gets room, by forgetting the least until so many are left.
const COUNTS_FULL: usize = maps::SERVICE_COUNTS_MAX as usize / 4 * 3;
const COUNTS_KEPT: usize = maps::SERVICE_COUNTS_MAX as usize / 2;

/// Shared between those who do what is measured and those who tell it.
#[derive(Debug)]
pub struct Metrics {
    programming: Mutex<Programming>,
    observed: Mutex<Observed>,
    services: Mutex<ServiceSeries>,
}

#[derive(Debug)]
struct Programming {
    syncs: u64,
    errors: u64,
    last: Option<SystemTime>,
    /// Seconds.
    duration: Histogram,
    services: usize,
}

/// What was counted beside the sweep of flows.
#[derive(Debug, Default)]
struct Observed {
    /// By name.
    entries: HashMap<String, u64>,
    counted_at: Option<Instant>,
    flows: Option<Census>,
}

impl Metrics {
    /// At most `services_max` ports of Services have series of their own.
    pub fn new(services_max: usize) -> Metrics {
        let programming = Programming {
            syncs: 0,
            errors: 0,
            last: None,
            duration: Histogram::new(programming_bounds()),
            services: 0,
        };
        Metrics {
            programming: Mutex::new(programming),
            observed: Mutex::default(),
            services: Mutex::new(ServiceSeries::new(services_max)),
        }
    }

    /// The maps say what `services` Services are. `took` is the time since the first change that they did not say; `None`
    /// where that is not known.
    pub fn synced(&self, services: usize, took: Option<Duration>) {
        let mut programming = lock(&self.programming);
        programming.syncs += 1;
        programming.last = Some(SystemTime::now());
        programming.services = services;
        if let Some(took) = took {
            programming.duration.observe(took.as_secs_f64());
        }
    }

    /// The maps did not take it.
    pub fn sync_failed(&self) {
        lock(&self.programming).errors += 1;
    }

    /// The flows were swept.
    pub fn swept(&self, swept: Swept) {
        let mut observed = lock(&self.observed);
        observed.entries.insert(maps::CONNTRACK.to_owned(), (swept.seen - swept.deleted) as u64);
        observed.entries.insert(maps::POLICY_FLOWS.to_owned(), swept.policy_flows as u64);
        observed.flows = Some(swept.census);
    }

    /// Once a minute, counts the elements of maps that the programs write, and forgets the counts of Services that are
    /// gone. Other calls do nothing.
    pub fn collect(&self, network: &Network, now: Instant) {
        let is_due = lock(&self.observed).counted_at.is_none_or(|at| now - at >= COUNT_INTERVAL);
        let Some(directory) = network.datapath().map(|datapath| datapath.maps_dir().to_owned()) else {
            return;
        };
        if !is_due {
            return;
        }
        lock(&self.observed).counted_at = Some(now);
        let counted = self.count_maps(&directory).and_then(|()| self.count_services(network).map(drop));
        if let Err(error) = counted {
            tracing::warn!(error = watch::chain(&error), "counting elements of maps");
        }
    }

    fn count_maps(&self, directory: &Path) -> Result<(), MapError> {
        for Room { map, .. } in pressure::rooms(directory)? {
            let is_known_otherwise = map == maps::CONNTRACK
                || map == maps::POLICY_FLOWS
                || map == maps::SERVICE_COUNTS
                || pressure::WRITTEN_BY_AGENT.contains(&map.as_str());
            if !is_known_otherwise {
                let entries = pressure::count(directory, &map)?;
                lock(&self.observed).entries.insert(map, entries);
            }
        }
        Ok(())
    }

    /// Brings the series of Services up to date. Returns how many elements their map has.
    fn count_services(&self, network: &Network) -> Result<usize, MapError> {
        let Some(counts) = network.datapath().map(|datapath| datapath.service_counts()) else { return Ok(0) };
        // One at a time from here: a later look must not come before an earlier one.
        let mut series = lock(&self.services);
        let mut counted = counts.all()?;
        if let Some((generation, names)) = look_up(network, &series, &counted) {
            let is_gone = |id: &&ServiceId| **id != ServiceCount::REST && !names.contains_key(*id);
            let gone: HashSet<ServiceId> = counted.keys().filter(is_gone).copied().collect();
            counts.remove(&gone.iter().copied().collect::<Vec<_>>())?;
            counted.retain(|id, _| !gone.contains(id));
            series.set_names(generation, names);
        }
        series.update(&counted);
        if counted.len() > COUNTS_FULL {
            let least = series.forget_least(&counted, COUNTS_KEPT);
            // What is counted between the look and this is lost, of Services that have no series of their own.
            counts.remove(&least)?;
            return Ok(counted.len() - least.len());
        }
        Ok(counted.len())
    }

    /// Everything that is known.
    pub fn write(&self, network: &Network, text: &mut Text) {
        let Some((counters, entries, directory)) = network
            .datapath()
            .map(|datapath| (datapath.counters(), datapath.map_entries(), datapath.maps_dir().to_owned()))
        else {
            return;
        };
        match counters {
            Ok(counters) => write_counters(text, &counters),
            Err(error) => tracing::warn!(error = watch::chain(&error), "reading the datapath's counters"),
        }
        let mut entries: BTreeMap<String, u64> =
            entries.into_iter().map(|(map, entries)| (map.to_owned(), entries as u64)).collect();
        lock(&self.programming).write(text, &entries);
        match self.count_services(network) {
            Ok(elements) => drop(entries.insert(maps::SERVICE_COUNTS.to_owned(), elements as u64)),
            Err(error) => tracing::warn!(error = watch::chain(&error), "reading the counts of Services"),
        }
        lock(&self.services).write(text);
        {
            let observed = lock(&self.observed);
            entries.extend(observed.entries.iter().map(|(map, entries)| (map.clone(), *entries)));
            write_flows(text, &observed.flows.clone().unwrap_or_default());
        }
        match pressure::rooms(&directory) {
            Ok(rooms) => write_maps(text, &rooms, &entries),
            Err(error) => tracing::warn!(error = watch::chain(&error), "reading the sizes of maps"),
        }
    }
}

/// The names of what is counted, where they may have changed.
fn look_up(
    network: &Network,
    series: &ServiceSeries,
    counted: &HashMap<ServiceId, ServiceCount>,
) -> Option<(u64, NameById)> {
    let datapath = network.datapath()?;
    let generation = datapath.names_generation();
    if !series.needs_names(generation, counted) {
        return None;
    }
    let ids: HashSet<ServiceId> = counted.keys().copied().collect();
    Some((generation, datapath.named(&ids)))
}

impl Programming {
    fn write(&self, text: &mut Text, entries: &BTreeMap<String, u64>) {
        text.gauge("seaway_services", "Services that are balanced: those with a cluster IP.")
            .sample(&[], self.services);
        let of = |map: &str| entries.get(map).copied().unwrap_or(0);
        text.gauge(
            "seaway_service_frontends",
            "Addresses and ports at which Services and hostPorts are reached; a node port is one for each family.",
        )
        .sample(&[], of(maps::FRONTENDS));
        // One element keeps the last ids.
        text.gauge("seaway_service_backends", "Backends, each counted for every frontend that leads to it.")
            .sample(&[], of(maps::BACKENDS).saturating_sub(1));
        text.counter("seaway_service_syncs_total", "Times that the maps took what had changed of Services.")
            .sample(&[], self.syncs);
        text.counter(
            "seaway_service_sync_errors_total",
            "Times that the maps did not take what had changed of Services; it is tried again.",
        )
        .sample(&[], self.errors);
        let last = self.last.and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok());
        text.gauge(
            "seaway_service_last_sync_timestamp_seconds",
            "When the maps last took what had changed of Services, in Unix time; 0 for never.",
        )
        .sample(&[], last.unwrap_or_default().as_secs_f64());
        text.histogram(
            "seaway_service_programming_duration_seconds",
            "Time from the first event of a watch that changed Services or their endpoints until the maps said so, once \
             for each sync but the first.",
            &self.duration,
        );
    }
}

/// Those of kube-proxy's network_programming_duration_seconds, and finer ones below.
fn programming_bounds() -> impl Iterator<Item = f64> {
    let linear = |first: u32, step: u32, count: u32| (0..count).map(move |n| f64::from(first + step * n));
    [0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5]
        .into_iter()
        .chain(linear(1, 1, 59))
        .chain(linear(60, 5, 12))
        .chain(linear(120, 30, 7))
}

fn write_counters(text: &mut Text, counters: &[(Counter, u64)]) {
    let mut drops = text.counter(
        "seaway_datapath_drops_total",
        "Packets dropped in eBPF by reason since the maps were made; with outrun and source_range socket calls too.",
    );
    for (counter, count) in counters.iter().filter(|(counter, _)| counter.is_drop()) {
        let reason = counter.name().strip_prefix("drop_").unwrap_or(counter.name());
        drops.sample(&[("reason", reason)], count);
    }
    let mut events = text.counter(
        "seaway_datapath_events_total",
        "Events counted in eBPF since the maps were made, drops apart.",
    );
    for (counter, count) in counters.iter().filter(|(counter, _)| !counter.is_drop()) {
        events.sample(&[("event", counter.name())], count);
    }
}

fn write_flows(text: &mut Text, flows: &Census) {
    let mut family = text.gauge(
        "seaway_flows",
        "Flows that tc translates, by protocol and state. Up to 10 s old. Connections of sockets are none.",
    );
    let mut protocols = vec![Protocol::TCP, Protocol::UDP, Protocol::SCTP];
    let others = flows.protocols().into_iter().filter(|found| !protocols.contains(found));
    protocols.extend(others.collect::<Vec<_>>());
    for protocol in protocols {
        let name = crate::status::protocol_name(protocol);
        for state in FlowState::ALL {
            let labels = [("protocol", name.as_str()), ("state", state.name())];
            family.sample(&labels, flows.count(protocol, state));
        }
    }
}

fn write_maps(text: &mut Text, rooms: &[Room], entries: &BTreeMap<String, u64>) {
    let mut family = text.gauge(
        "seaway_map_entries",
        "Elements of each BPF map that can be full. Up to 10 s old of CONNTRACK, as it is now of SVC_COUNTS and of those \
         that only the agent writes, else up to 70 s old. A full map of type lru_hash forgets what was used least.",
    );
    for room in rooms {
        if let Some(entries) = entries.get(&room.map) {
            family.sample(&[("map", room.name()), ("type", &room.kind)], entries);
        }
    }
    let mut family = text.gauge("seaway_map_max_entries", "How many elements each BPF map can have.");
    for room in rooms {
        family.sample(&[("map", room.name()), ("type", &room.kind)], room.max_entries);
    }
}

/// A panic in another thread has been reported there; numbers may be a little off.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::text::rules::Page;
    use super::*;

    fn page(write: impl FnOnce(&mut Text)) -> Page {
        let mut text = Text::default();
        write(&mut text);
        Page::parse(&text.finish())
    }

    #[test]
    fn every_reason_to_drop_and_every_event_has_a_series_from_the_start() {
        let counters: Vec<(Counter, u64)> = Counter::ALL.iter().map(|counter| (*counter, 0)).collect();
        let page = page(|text| write_counters(text, &counters));
        for counter in Counter::ALL {
            let found = match counter.name().strip_prefix("drop_") {
                Some(reason) => page.get("seaway_datapath_drops_total", &[("reason", reason)]),
                None => page.get("seaway_datapath_events_total", &[("event", counter.name())]),
            };
            assert_eq!(found, Some(0.0), "{counter:?}");
        }
    }

    #[test]
    fn every_state_of_a_flow_has_a_series_from_the_start() {
        let page = page(|text| write_flows(text, &Census::default()));
        assert_eq!(page.count("seaway_flows"), 18);
        assert_eq!(page.get("seaway_flows", &[("protocol", "TCP"), ("state", "established")]), Some(0.0));
    }

    #[test]
    fn pressure_is_a_ratio_of_two_series_with_the_same_labels() {
        let room = |map: &str, kind: &str| Room { map: map.into(), kind: kind.into(), max_entries: 1000 };
        let rooms = [room("SLOTS_1", "hash"), room("AFFINITY_1", "lru_hash")];
        let entries = BTreeMap::from([("SLOTS_1".to_owned(), 900), ("COUNTERS_2".to_owned(), 64)]);
        let page = page(|text| write_maps(text, &rooms, &entries));
        let slots = [("map", "SLOTS"), ("type", "hash")];
        assert_eq!(page.get("seaway_map_entries", &slots), Some(900.0));
        assert_eq!(page.get("seaway_map_max_entries", &slots), Some(1000.0));
        assert_eq!(page.count("seaway_map_entries"), 1, "what was not counted yet is not told");
        assert_eq!(page.count("seaway_map_max_entries"), 2);
    }

    #[test]
    fn syncs_are_counted_and_timed_in_kube_proxys_buckets_and_finer_ones() {
        let metrics = Metrics::new(9);
        metrics.synced(7, None);
        metrics.synced(8, Some(Duration::from_millis(2)));
        metrics.sync_failed();
        let entries = BTreeMap::from([(maps::FRONTENDS.to_owned(), 5), (maps::BACKENDS.to_owned(), 4)]);
        let page = page(|text| lock(&metrics.programming).write(text, &entries));
        let of = |name: &str| page.get(name, &[]).unwrap();
        assert_eq!((of("seaway_service_syncs_total"), of("seaway_service_sync_errors_total")), (2.0, 1.0));
        assert_eq!((of("seaway_services"), of("seaway_service_frontends")), (8.0, 5.0));
        assert_eq!(of("seaway_service_backends"), 3.0);
        assert!(of("seaway_service_last_sync_timestamp_seconds") > 1e9);
        let bucket = |le| page.get("seaway_service_programming_duration_seconds_bucket", &[("le", le)]);
        assert_eq!([bucket("0.001"), bucket("0.0025"), bucket("300")], [Some(0.0), Some(1.0), Some(1.0)]);
        for bound in ["0.25", "0.5", "1", "59", "60", "115", "120", "150"] {
            assert!(bucket(bound).is_some(), "{bound}");
        }
        let bounds: Vec<f64> = programming_bounds().collect();
        assert!(bounds.is_sorted() && bounds.windows(2).all(|pair| pair[0] != pair[1]), "{bounds:?}");
    }
}
