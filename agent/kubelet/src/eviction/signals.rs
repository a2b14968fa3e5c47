//! What the node runs short of: signals, their thresholds, and the conditions that follow. Pure.
//!
//! A threshold is met while less is available than it says. One with a grace period (upstream's "soft") counts for evictions
//! only when it has been met that long; its condition shows at once. One that has counted goes on to count until the
//! minimum reclaim is free as well. A condition stays for the transition period after it was last seen, so that pods
//! do not come and go with it. Signals and defaults are those of Kubernetes' node-pressure eviction.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Signal {
    /// Bytes that the kernel could give out without swapping, by its own estimate (`MemAvailable`).
    MemoryAvailable,
    /// Bytes free for ordinary users on the file system of pods' directories and logs.
    NodefsAvailable,
    NodefsInodesFree,
    /// Bytes on the file system of images and writable layers, which may be the same one.
    ImagefsAvailable,
    ImagefsInodesFree,
    /// Process ids that are not taken.
    PidAvailable,
}

/// A condition of the Node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Condition {
    Memory,
    Disk,
    Pid,
}

impl Condition {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Memory => "MemoryPressure",
            Self::Disk => "DiskPressure",
            Self::Pid => "PIDPressure",
        }
    }
}

impl Signal {
    pub const ALL: [Self; 6] = [
        Self::MemoryAvailable,
        Self::NodefsAvailable,
        Self::NodefsInodesFree,
        Self::ImagefsAvailable,
        Self::ImagefsInodesFree,
        Self::PidAvailable,
    ];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::MemoryAvailable => "memory.available",
            Self::NodefsAvailable => "nodefs.available",
            Self::NodefsInodesFree => "nodefs.inodesFree",
            Self::ImagefsAvailable => "imagefs.available",
            Self::ImagefsInodesFree => "imagefs.inodesFree",
            Self::PidAvailable => "pid.available",
        }
    }

    pub fn condition(self) -> Condition {
        match self {
            Self::MemoryAvailable => Condition::Memory,
            Self::PidAvailable => Condition::Pid,
            _ => Condition::Disk,
        }
    }

    /// What is short, in the words of upstream's messages.
    pub fn resource(self) -> &'static str {
        match self {
            Self::MemoryAvailable => "memory",
            Self::NodefsAvailable | Self::ImagefsAvailable => "ephemeral-storage",
            Self::NodefsInodesFree | Self::ImagefsInodesFree => "inodes",
            Self::PidAvailable => "pids",
        }
    }

    /// Whether amounts are bytes, else they are counts.
    pub fn is_bytes(self) -> bool {
        matches!(self, Self::MemoryAvailable | Self::NodefsAvailable | Self::ImagefsAvailable)
    }
}

/// An amount as configured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Amount {
    /// Bytes or a count.
    Whole(u64),
    /// Of the capacity, 0 to 100.
    Percent(f64),
}

impl Amount {
    pub fn of(self, capacity: u64) -> u64 {
        match self {
            Self::Whole(amount) => amount,
            Self::Percent(percent) => (capacity as f64 * percent / 100.0) as u64,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Threshold {
    pub signal: Signal,
    pub amount: Amount,
    /// How long it is met before a pod is evicted; zero for a hard threshold.
    pub grace: Duration,
    /// What must be free beyond the amount before evictions end.
    pub reclaim: Option<Amount>,
}

impl Threshold {
    pub fn hard(signal: Signal, amount: Amount) -> Self {
        Self { signal, amount, grace: Duration::ZERO, reclaim: None }
    }

    pub fn is_hard(&self) -> bool {
        self.grace.is_zero()
    }

    fn is_met(&self, seen: &Observations, with_reclaim: bool) -> bool {
        let Some(observed) = seen.get(&self.signal) else { return false };
        let reclaim = self.reclaim.filter(|_| with_reclaim).map_or(0, |amount| amount.of(observed.capacity));
        observed.available < self.amount.of(observed.capacity).saturating_add(reclaim)
    }
}

/// When pods are evicted.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    pub thresholds: Vec<Threshold>,
    /// How long a condition stays after it was last seen.
    pub transition: Duration,
    /// The longest time that a pod gets to end where a soft threshold is met.
    pub grace_max: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            thresholds: vec![
                Threshold::hard(Signal::MemoryAvailable, Amount::Whole(100 << 20)),
                Threshold::hard(Signal::NodefsAvailable, Amount::Percent(10.0)),
                Threshold::hard(Signal::NodefsInodesFree, Amount::Percent(5.0)),
                Threshold::hard(Signal::ImagefsAvailable, Amount::Percent(15.0)),
                Threshold::hard(Signal::ImagefsInodesFree, Amount::Percent(5.0)),
            ],
            transition: Duration::from_secs(300),
            grace_max: Duration::ZERO,
        }
    }
}

impl Settings {
    /// What a hard threshold keeps free of `capacity`, and so is not for pods to ask for.
    pub fn reserved(&self, signal: Signal, capacity: u64) -> u64 {
        let hard = self.thresholds.iter().filter(|threshold| threshold.is_hard());
        hard.filter(|threshold| threshold.signal == signal)
            .map(|threshold| threshold.amount.of(capacity))
            .max()
            .unwrap_or(0)
    }

    /// Whether enough is free that nothing more has to be given up.
    pub fn is_relieved(&self, seen: &Observations) -> bool {
        !self.thresholds.iter().any(|threshold| threshold.is_met(seen, true))
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Observation {
    pub available: u64,
    pub capacity: u64,
}

pub type Observations = BTreeMap<Signal, Observation>;

/// What follows from one look at the node.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Verdict {
    pub conditions: BTreeSet<Condition>,
    /// Thresholds for which a pod has to go, the most urgent first: memory before all, hard before soft.
    pub starved: Vec<Threshold>,
}

/// What is remembered between looks. Thresholds are known by their place in the settings, which do not change.
#[derive(Clone, Debug, Default)]
pub struct Pressure {
    met_since: BTreeMap<usize, Instant>,
    starved: BTreeSet<usize>,
    seen_at: BTreeMap<Condition, Instant>,
}

impl Pressure {
    /// Takes a look. A signal without an observation is as one that is well.
    pub fn observe(&mut self, settings: &Settings, seen: &Observations, now: Instant) -> Verdict {
        let all = settings.thresholds.iter().enumerate();
        let met = all.filter(|(place, threshold)| threshold.is_met(seen, self.starved.contains(place)));
        let met_since = met.map(|(place, _)| (place, *self.met_since.get(&place).unwrap_or(&now)));
        self.met_since = met_since.collect();
        for place in self.met_since.keys() {
            self.seen_at.insert(settings.thresholds[*place].signal.condition(), now);
        }
        self.seen_at.retain(|_, at| *at == now || now.saturating_duration_since(*at) < settings.transition);
        let due = self.met_since.iter().filter(|(place, since)| {
            now.saturating_duration_since(**since) >= settings.thresholds[**place].grace
        });
        self.starved = due.map(|(place, _)| *place).collect();
        let mut starved: Vec<Threshold> =
            self.starved.iter().map(|place| settings.thresholds[*place]).collect();
        starved.sort_by_key(|threshold| {
            let memory = threshold.signal == Signal::MemoryAvailable;
            (!memory, !threshold.is_hard(), threshold.signal)
        });
        Verdict { conditions: self.seen_at.keys().copied().collect(), starved }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn seen(signal: Signal, available: u64, capacity: u64) -> Observations {
        Observations::from([(signal, Observation { available, capacity })])
    }

    fn settings(thresholds: Vec<Threshold>) -> Settings {
        Settings { thresholds, ..Settings::default() }
    }

    #[test]
    fn the_defaults_are_those_of_kubernetes() {
        let look = |signal, available| {
            let verdict = Pressure::default().observe(
                &Settings::default(),
                &seen(signal, available, 100 * GIB),
                Instant::now(),
            );
            verdict.starved.len()
        };
        for (signal, limit) in [
            (Signal::MemoryAvailable, 100 << 20),
            (Signal::NodefsAvailable, 10 * GIB),
            (Signal::NodefsInodesFree, 5 * GIB),
            (Signal::ImagefsAvailable, 15 * GIB),
            (Signal::ImagefsInodesFree, 5 * GIB),
        ] {
            assert_eq!((look(signal, limit), look(signal, limit - 1)), (0, 1), "{signal:?}");
        }
        assert_eq!(look(Signal::PidAvailable, 0), 0, "nothing is said about processes");
    }

    #[test]
    fn a_soft_threshold_shows_at_once_and_evicts_after_its_grace() {
        let soft = Threshold {
            grace: Duration::from_secs(90),
            ..Threshold::hard(Signal::MemoryAvailable, Amount::Whole(2 * GIB))
        };
        let settings = settings(vec![soft]);
        let (mut pressure, start) = (Pressure::default(), Instant::now());
        let mut at = |seconds, available| {
            let seen = seen(Signal::MemoryAvailable, available, 8 * GIB);
            pressure.observe(&settings, &seen, start + Duration::from_secs(seconds))
        };
        let first = at(0, GIB);
        assert_eq!((first.conditions, first.starved), (BTreeSet::from([Condition::Memory]), vec![]));
        assert_eq!(at(89, GIB).starved, vec![]);
        assert_eq!(at(90, GIB).starved, vec![soft]);
        assert_eq!(at(91, 2 * GIB).starved, vec![]);
        assert_eq!(at(92, GIB).starved, vec![], "the grace begins anew");
    }

    #[test]
    fn evictions_go_on_until_the_minimum_reclaim_is_free() {
        let threshold = Threshold {
            reclaim: Some(Amount::Whole(GIB)),
            ..Threshold::hard(Signal::NodefsAvailable, Amount::Percent(10.0))
        };
        let settings = settings(vec![threshold]);
        let (mut pressure, now) = (Pressure::default(), Instant::now());
        let mut starved = |available| {
            let verdict =
                pressure.observe(&settings, &seen(Signal::NodefsAvailable, available, 100 * GIB), now);
            verdict.starved.len()
        };
        assert_eq!(starved(10 * GIB), 0);
        assert_eq!(starved(10 * GIB - 1), 1);
        assert_eq!(starved(11 * GIB - 1), 1);
        assert_eq!(starved(11 * GIB), 0);
        assert_eq!(starved(11 * GIB - 1), 0);
        assert!(!settings.is_relieved(&seen(Signal::NodefsAvailable, 10 * GIB, 100 * GIB)));
    }

    #[test]
    fn a_condition_stays_for_the_transition_period() {
        let settings = Settings::default();
        let (mut pressure, start) = (Pressure::default(), Instant::now());
        let mut conditions = |seconds, available| {
            let seen = seen(Signal::ImagefsAvailable, available, 100 * GIB);
            let verdict = pressure.observe(&settings, &seen, start + Duration::from_secs(seconds));
            assert_eq!(verdict.starved.is_empty(), available > GIB, "evictions end at once");
            verdict.conditions.len()
        };
        assert_eq!([conditions(0, GIB), conditions(10, 50 * GIB), conditions(299, 50 * GIB)], [1, 1, 1]);
        assert_eq!([conditions(300, 50 * GIB), conditions(310, GIB), conditions(600, 50 * GIB)], [0, 1, 1]);
        let at_once = Settings { transition: Duration::ZERO, ..Settings::default() };
        let verdict = Pressure::default().observe(&at_once, &seen(Signal::ImagefsAvailable, 0, GIB), start);
        assert_eq!(verdict.conditions.len(), 1, "what is seen now holds now");
    }

    #[test]
    fn memory_is_relieved_first_and_hard_thresholds_before_soft_ones() {
        let soft = |signal| Threshold {
            grace: Duration::from_nanos(1),
            ..Threshold::hard(signal, Amount::Percent(50.0))
        };
        let hard = |signal| Threshold::hard(signal, Amount::Percent(20.0));
        let settings = settings(vec![
            soft(Signal::NodefsAvailable),
            hard(Signal::ImagefsAvailable),
            hard(Signal::NodefsAvailable),
            soft(Signal::MemoryAvailable),
        ]);
        let seen: Observations =
            Signal::ALL.map(|signal| (signal, Observation { available: 1, capacity: 10 })).into();
        let (mut pressure, now) = (Pressure::default(), Instant::now());
        pressure.observe(&settings, &seen, now);
        let verdict = pressure.observe(&settings, &seen, now + Duration::from_secs(1));
        let order: Vec<_> = verdict.starved.iter().map(|t| (t.signal, t.is_hard())).collect();
        assert_eq!(
            order,
            [
                (Signal::MemoryAvailable, false),
                (Signal::NodefsAvailable, true),
                (Signal::ImagefsAvailable, true),
                (Signal::NodefsAvailable, false),
            ]
        );
        assert_eq!(verdict.conditions, BTreeSet::from([Condition::Memory, Condition::Disk]));
    }

    #[test]
    fn what_a_hard_threshold_keeps_free_is_not_for_pods() {
        let settings = Settings::default();
        assert_eq!(settings.reserved(Signal::MemoryAvailable, GIB), 100 << 20);
        assert_eq!(settings.reserved(Signal::NodefsAvailable, 100 * GIB), 10 * GIB);
        assert_eq!(settings.reserved(Signal::PidAvailable, 100), 0);
    }
}
