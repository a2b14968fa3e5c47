//! Request counts and latencies, in the Prometheus text format under upstream's names.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

/// Upper bounds of the latency buckets, in seconds.
const BUCKETS: [f64; 10] = [0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 60.0];

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Label {
    verb: String,
    group: String,
    resource: String,
    subresource: String,
}

#[derive(Default)]
struct Series {
    count_by_code: BTreeMap<u16, u64>,
    buckets: [u64; BUCKETS.len()],
    seconds: f64,
    count: u64,
}

#[derive(Default)]
pub struct Metrics {
    series: Mutex<BTreeMap<Label, Series>>,
    in_flight: Arc<AtomicU64>,
    watches: AtomicU64,
}

/// Counts down a gauge when it goes.
pub struct Gauge(Arc<AtomicU64>);

impl Drop for Gauge {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Metrics {
    pub fn enter(&self) -> Gauge {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        Gauge(Arc::clone(&self.in_flight))
    }

    pub fn watch_started(&self) {
        self.watches.fetch_add(1, Ordering::Relaxed);
    }

    pub fn watch_ended(&self) {
        self.watches.fetch_sub(1, Ordering::Relaxed);
    }

    pub fn observe(&self, info: &crate::request::RequestInfo, code: u16, took: Duration) {
        let label = Label {
            verb: if info.is_resource { info.verb.to_uppercase() } else { "GET".to_owned() },
            group: info.group.clone(),
            resource: info.resource.clone(),
            subresource: info.subresource.clone(),
        };
        let seconds = took.as_secs_f64();
        let mut series = self.series.lock().unwrap_or_else(PoisonError::into_inner);
        let series = series.entry(label).or_default();
        *series.count_by_code.entry(code).or_default() += 1;
        series.count += 1;
        series.seconds += seconds;
        for (bucket, bound) in series.buckets.iter_mut().zip(BUCKETS) {
            if seconds <= bound {
                *bucket += 1;
            }
        }
    }

    /// The exposition text.
    pub fn text(&self) -> String {
        let mut out = String::new();
        let in_flight = self.in_flight.load(Ordering::Relaxed);
        let watches = self.watches.load(Ordering::Relaxed);
        out.push_str("# TYPE apiserver_current_inflight_requests gauge\n");
        let _ = writeln!(out, "apiserver_current_inflight_requests {in_flight}");
        out.push_str("# TYPE apiserver_longrunning_requests gauge\n");
        let _ = writeln!(out, "apiserver_longrunning_requests{{verb=\"WATCH\"}} {watches}");
        let series = self.series.lock().unwrap_or_else(PoisonError::into_inner);
        out.push_str("# TYPE apiserver_request_total counter\n");
        for (label, series) in series.iter() {
            for (code, count) in &series.count_by_code {
                let labels = label.text();
                let _ = writeln!(out, "apiserver_request_total{{{labels},code=\"{code}\"}} {count}");
            }
        }
        out.push_str("# TYPE apiserver_request_duration_seconds histogram\n");
        for (label, series) in series.iter() {
            let labels = label.text();
            let name = "apiserver_request_duration_seconds";
            for (count, bound) in series.buckets.iter().zip(BUCKETS) {
                let _ = writeln!(out, "{name}_bucket{{{labels},le=\"{bound}\"}} {count}");
            }
            let _ = writeln!(out, "{name}_bucket{{{labels},le=\"+Inf\"}} {}", series.count);
            let _ = writeln!(out, "{name}_sum{{{labels}}} {}", series.seconds);
            let _ = writeln!(out, "{name}_count{{{labels}}} {}", series.count);
        }
        out
    }
}

impl Label {
    fn text(&self) -> String {
        format!(
            "verb=\"{}\",group=\"{}\",resource=\"{}\",subresource=\"{}\"",
            self.verb, self.group, self.resource, self.subresource
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{query::Query, request::RequestInfo};

    #[test]
    fn requests_are_counted_by_verb_resource_and_code() {
        let metrics = Metrics::default();
        let info = RequestInfo::parse(&http::Method::GET, "/api/v1/pods", &Query::default(), false);
        metrics.observe(&info, 200, Duration::from_millis(3));
        metrics.observe(&info, 200, Duration::from_millis(30));
        let text = metrics.text();
        let labels = "verb=\"LIST\",group=\"\",resource=\"pods\",subresource=\"\"";
        assert!(text.contains(&format!("apiserver_request_total{{{labels},code=\"200\"}} 2")), "{text}");
        assert!(text.contains(&format!("_bucket{{{labels},le=\"0.005\"}} 1")), "{text}");
    }
}
