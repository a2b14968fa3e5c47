//! What agents tell of their pods' routes on `/metrics`: the sum of their histograms, which end at bounds.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Result, ensure};

const BUCKET: &str = "seaway_pod_route_propagation_duration_seconds_bucket{le=\"";
const WAITED: &str = "seaway_pod_address_waits_total ";
const UNANSWERED: &str = "seaway_pod_route_nodes_unanswered_total ";

/// What happened to the pods of one way of adding them.
pub(super) struct Reached {
    pub(super) what: String,
    /// From the first ADD's begin to the last one's end.
    pub(super) seconds: f64,
    /// How long each ADD took.
    pub(super) add: Vec<Duration>,
    pub(super) told: Told,
}

/// Sums over agents.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Told {
    /// Bounds in seconds, each with how many pods waited no longer.
    buckets: Vec<(f64, u64)>,
    pub(super) count: u64,
    /// Pods whose ADD waited for an address.
    pub(super) waited: u64,
    pub(super) unanswered: u64,
}

impl Told {
    /// One agent's page.
    pub(super) fn read(page: &str) -> Result<Self> {
        let bucket = |line: &str| {
            let (bound, count) = line.strip_prefix(BUCKET)?.split_once("\"} ")?;
            let bound = if bound == "+Inf" { f64::INFINITY } else { bound.parse().ok()? };
            Some((bound, count.parse().ok()?))
        };
        let buckets: Vec<(f64, u64)> = page.lines().filter_map(bucket).collect();
        ensure!(!buckets.is_empty(), "no histogram of routes is on the page");
        let count = buckets.last().map_or(0, |(_, count)| *count);
        let number = |name: &str| page.lines().find_map(|line| line.strip_prefix(name)?.parse().ok());
        let (waited, unanswered) = (number(WAITED), number(UNANSWERED));
        let (Some(waited), Some(unanswered)) = (waited, unanswered) else {
            anyhow::bail!("{WAITED}or {UNANSWERED}is not on the page");
        };
        Ok(Self { buckets, count, waited, unanswered })
    }

    pub(super) fn plus(self, other: &Self) -> Result<Self> {
        self.with(other, |a, b| a + b)
    }

    /// What came after `before`.
    pub(super) fn since(self, before: &Self) -> Result<Self> {
        self.with(before, u64::saturating_sub)
    }

    fn with(mut self, other: &Self, join: fn(u64, u64) -> u64) -> Result<Self> {
        let bounds = |told: &Self| told.buckets.iter().map(|(bound, _)| *bound).collect::<Vec<_>>();
        if self.buckets.is_empty() {
            self.buckets = other.buckets.iter().map(|(bound, _)| (*bound, 0)).collect();
        }
        ensure!(other.buckets.is_empty() || bounds(&self) == bounds(other), "histograms of other bounds");
        self.buckets.iter_mut().zip(&other.buckets).for_each(|((_, a), (_, b))| *a = join(*a, *b));
        self.count = join(self.count, other.count);
        self.waited = join(self.waited, other.waited);
        self.unanswered = join(self.unanswered, other.unanswered);
        Ok(self)
    }

    /// The least bound in milliseconds that this part of the pods waited no longer than.
    pub(super) fn bound_of(&self, part: f64) -> Option<f64> {
        let least = ((self.count as f64 * part).ceil() as u64).max(1);
        self.buckets.iter().find(|(_, count)| *count >= least).map(|(bound, _)| bound * 1000.0)
    }

    /// Pods whose routes were everywhere when their ADD returned.
    pub(super) fn before_return(&self) -> u64 {
        self.buckets.first().filter(|(bound, _)| *bound == 0.0).map_or(0, |(_, count)| *count)
    }

    /// How many pods waited so many seconds at most, and more than the bound before.
    pub(super) fn pods_by_bound(&self) -> BTreeMap<String, u64> {
        let mut before = 0;
        let own = self
            .buckets
            .iter()
            .map(|(bound, count)| (bound.to_string(), count - std::mem::replace(&mut before, *count)));
        own.filter(|(_, count)| *count > 0).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(zero: u64, five: u64, more: u64) -> String {
        format!(
            "{BUCKET}0\"}} {zero}\n{BUCKET}0.005\"}} {five}\n{BUCKET}+Inf\"}} {more}\n{WAITED}2\n{UNANSWERED}0\n"
        )
    }

    #[test]
    fn pages_add_up_and_the_bound_of_a_part_is_the_least_that_holds_it() {
        let told = Told::default().plus(&Told::read(&page(98, 99, 100)).unwrap()).unwrap();
        let told = told.plus(&Told::read(&page(100, 100, 100)).unwrap()).unwrap();
        assert_eq!((told.count, told.waited, told.before_return()), (200, 4, 198));
        assert_eq!(told.bound_of(0.99), Some(0.0));
        assert_eq!(told.bound_of(0.995), Some(5.0));
        assert_eq!(told.bound_of(1.0), Some(f64::INFINITY));
        let later = told.since(&Told::read(&page(98, 99, 100)).unwrap()).unwrap();
        assert_eq!((later.count, later.bound_of(1.0)), (100, Some(0.0)));
        assert_eq!(Told::default().bound_of(0.5), None);
        assert!(Told::read("nothing").is_err());
    }
}
