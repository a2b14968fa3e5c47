//! What the agents tell of their pods' routes: the sum of their histograms.

use std::fmt;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use anyhow::{Context, Result, ensure};

use super::super::super::layout;

const BUCKET: &str = "seaway_pod_route_propagation_duration_seconds_bucket{le=\"";
/// Seconds.
const P99_MAX: f64 = 0.005;

/// Bounds in seconds, each with how many addresses waited no longer.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Told(Vec<(f64, u64)>);

impl Told {
    pub(super) fn read(hosts: &[String]) -> Result<Self> {
        let mut all = Self::default();
        for host in hosts {
            all.add(&Self::parse(&page(host).with_context(|| format!("the metrics of {host}"))?)?);
        }
        Ok(all)
    }

    fn parse(page: &str) -> Result<Self> {
        let bucket = |line: &str| {
            let (bound, count) = line.strip_prefix(BUCKET)?.split_once("\"} ")?;
            let bound = if bound == "+Inf" { f64::INFINITY } else { bound.parse().ok()? };
            Some((bound, count.parse().ok()?))
        };
        let buckets: Vec<(f64, u64)> = page.lines().filter_map(bucket).collect();
        ensure!(!buckets.is_empty(), "no histogram is on the page");
        Ok(Self(buckets))
    }

    fn add(&mut self, other: &Self) {
        if self.0.is_empty() {
            self.0 = other.0.iter().map(|(bound, _)| (*bound, 0)).collect();
        }
        self.0.iter_mut().zip(&other.0).for_each(|((_, count), (_, more))| *count += more);
    }

    /// What came after `before`.
    pub(super) fn since(mut self, before: &Self) -> Self {
        self.0.iter_mut().zip(&before.0).for_each(|((_, count), (_, less))| *count -= less);
        self
    }

    fn all(&self) -> u64 {
        self.0.last().map_or(0, |(_, count)| *count)
    }

    /// The least bound that this part waited no longer than, in percent.
    fn bound_of(&self, percent: u64) -> f64 {
        let least = (self.all() * percent).div_ceil(100);
        self.0.iter().find(|(_, count)| *count >= least).map_or(f64::NAN, |(bound, _)| *bound)
    }
}

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let at_once = self.0.first().map_or(0, |(_, count)| *count);
        let [p99, longest] = [99, 100].map(|percent| self.bound_of(percent) * 1000.0);
        let goal = if p99 <= P99_MAX * 1000.0 { "reached" } else { "MISSED" };
        let all = self.all();
        write!(
            f,
            "{all} addresses, {at_once} waited for nothing; p99 within {p99} ms (<= {} {goal}), all within {longest} ms",
            P99_MAX * 1000.0
        )
    }
}

/// The agent's page, over the socket in its host's mounts.
fn page(host: &str) -> Result<String> {
    let file = layout::state().join(host).join("agent.pid");
    let pid = std::fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
    let socket = format!("/proc/{}/root/run/seaway/agent.sock", pid.trim());
    let mut stream = UnixStream::connect(&socket).with_context(|| format!("connecting to {socket}"))?;
    stream
        .write_all(b"GET /metrics HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n")
        .context("asking")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).context("reading the answer")?;
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn histograms_are_added_and_what_was_before_is_not_counted() {
        let page = |counts: [u64; 3]| {
            let [zero, some, all] = counts;
            Told::parse(&format!(
                "x 1\n{BUCKET}0\"}} {zero}\n{BUCKET}0.005\"}} {some}\n{BUCKET}+Inf\"}} {all}\n"
            ))
        };
        let mut told = Told::default();
        told.add(&page([10, 20, 20]).expect("a page"));
        told.add(&page([90, 99, 100]).expect("a page"));
        let told = told.since(&page([10, 20, 20]).expect("a page"));
        assert_eq!(told.0, [(0.0, 90), (0.005, 99), (f64::INFINITY, 100)]);
        assert_eq!((told.bound_of(90), told.bound_of(99), told.bound_of(100)), (0.0, 0.005, f64::INFINITY));
        assert!(
            told.to_string().contains("100 addresses, 90 waited for nothing; p99 within 5 ms (<= 5 reached)"),
            "{told}"
        );
        assert!(Told::parse("nothing").is_err());
    }
}
