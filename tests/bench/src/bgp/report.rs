//! The figures as a table, each with its goal and whether it was reached, and as JSON.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{Options, device::Kind};
use crate::report::{median, percentile, shown};

const OCTETS_PER_ROUTE_MAX: f64 = 150.0;
const MESH_MS_MAX: f64 = 20.0;
const INSTALLS_MIN: f64 = 250_000.0;

/// Seconds, octets, routes per second.
#[derive(Default)]
pub(super) struct Figures {
    pub(super) announce: Vec<f64>,
    pub(super) announce_cpu: Vec<f64>,
    pub(super) announce_updates: Vec<f64>,
    pub(super) withdraw: Vec<f64>,
    pub(super) withdraw_cpu: Vec<f64>,
    pub(super) withdraw_updates: Vec<f64>,
    pub(super) octets_per_route: Vec<f64>,
    pub(super) single: Vec<f64>,
    pub(super) mesh: Vec<f64>,
    pub(super) fib_install: Vec<f64>,
    pub(super) fib_remove: Vec<f64>,
    pub(super) fib_singles: Vec<f64>,
    pub(super) learned_install: Vec<f64>,
    pub(super) learned_remove: Vec<f64>,
}

/// What ours is to be.
#[derive(Clone, Copy)]
enum Goal {
    None,
    /// At most what BIRD's is in the same run.
    Bird,
    AtMost(f64),
    AtLeast(f64),
}

type Figure = fn(&Figures) -> Option<f64>;

const MS: f64 = 1e3;
const US: f64 = 1e6;

#[derive(Default)]
pub(super) struct Report {
    by_kind: BTreeMap<Kind, Figures>,
}

impl Report {
    pub(super) fn figures(&mut self, kind: Kind) -> &mut Figures {
        self.by_kind.entry(kind).or_default()
    }

    fn rows(options: &Options) -> Vec<(String, Figure, Goal)> {
        let n = options.prefixes;
        let fib = |what: &str| format!("{n} routes over {} next hops, {what}, routes/s", options.next_hops);
        vec![
            (format!("{n} prefixes announced, ms"), |f| of(&f.announce, MS), Goal::Bird),
            ("CPU time of it, ms".to_owned(), |f| of(&f.announce_cpu, MS), Goal::None),
            ("UPDATEs that the receiver got".to_owned(), |f| of(&f.announce_updates, 1.0), Goal::None),
            (format!("{n} prefixes withdrawn, ms"), |f| of(&f.withdraw, MS), Goal::Bird),
            ("CPU time of it, ms".to_owned(), |f| of(&f.withdraw_cpu, MS), Goal::None),
            ("UPDATEs that the receiver got".to_owned(), |f| of(&f.withdraw_updates, 1.0), Goal::None),
            ("one prefix, p50, us".to_owned(), |f| part(&f.single, 0.5, US), Goal::Bird),
            ("one prefix, p99, us".to_owned(), |f| part(&f.single, 0.99, US), Goal::Bird),
            (
                "memory per route, octets".to_owned(),
                |f| of(&f.octets_per_route, 1.0),
                Goal::AtMost(OCTETS_PER_ROUTE_MAX),
            ),
            (
                format!("one block to {} internal peers, ms", options.peers),
                |f| of(&f.mesh, MS),
                Goal::AtMost(MESH_MS_MAX),
            ),
            (fib("installed"), |f| of(&f.fib_install, 1.0), Goal::AtLeast(INSTALLS_MIN)),
            (fib("removed"), |f| of(&f.fib_remove, 1.0), Goal::None),
            (fib("installed one by one"), |f| of(&f.fib_singles, 1.0), Goal::None),
            (fib("from a peer to the kernel"), |f| of(&f.learned_install, 1.0), Goal::None),
            (fib("withdrawn by a peer, gone from the kernel"), |f| of(&f.learned_remove, 1.0), Goal::None),
        ]
    }

    #[expect(clippy::print_stdout, reason = "the table is what was asked for")]
    pub(super) fn print(&self, options: &Options) {
        println!("\nmedians of {} rounds\n", options.rounds);
        let names: Vec<String> = self.by_kind.keys().map(Kind::to_string).collect();
        println!("| figure | {} | goal |", names.join(" | "));
        println!("|---|{}---|", "---|".repeat(names.len()));
        for (name, value, goal) in Self::rows(options) {
            let values: Vec<Option<f64>> = self.by_kind.values().map(value).collect();
            if values.iter().all(Option::is_none) {
                continue;
            }
            let cells: Vec<String> = values.iter().map(|value| shown(*value)).collect();
            let ours = self.by_kind.get(&Kind::Seaway).and_then(value);
            let birds = self.by_kind.get(&Kind::Bird).and_then(value);
            println!("| {name} | {} | {} |", cells.join(" | "), verdict(goal, ours, birds));
        }
    }

    pub(super) fn json(&self, options: &Options) -> Value {
        let devices = self.by_kind.iter().map(|(kind, figures)| {
            json!({
                "device": kind.to_string(),
                "announce_seconds": figures.announce,
                "announce_cpu_seconds": figures.announce_cpu,
                "announce_updates": figures.announce_updates,
                "withdraw_seconds": figures.withdraw,
                "withdraw_cpu_seconds": figures.withdraw_cpu,
                "withdraw_updates": figures.withdraw_updates,
                "octets_per_route": figures.octets_per_route,
                "one_prefix_seconds": figures.single,
                "mesh_seconds": figures.mesh,
                "fib_installs_per_second": figures.fib_install,
                "fib_removals_per_second": figures.fib_remove,
                "fib_installs_one_by_one_per_second": figures.fib_singles,
                "learned_installs_per_second": figures.learned_install,
                "learned_removals_per_second": figures.learned_remove,
            })
        });
        let devices: Vec<Value> = devices.collect();
        let goals = Self::rows(options).into_iter().filter_map(|(name, value, goal)| {
            let ours = self.by_kind.get(&Kind::Seaway).and_then(value)?;
            let limit = limit(goal, self.by_kind.get(&Kind::Bird).and_then(value))?;
            let reached = is_reached(goal, ours, limit);
            Some(json!({"figure": name, "value": ours, "goal": limit, "reached": reached}))
        });
        json!({
            "prefixes": options.prefixes, "peers": options.peers, "next_hops": options.next_hops,
            "rounds": options.rounds, "goals": goals.collect::<Vec<_>>(), "devices": devices,
        })
    }
}

fn of(values: &[f64], scale: f64) -> Option<f64> {
    median(values.to_vec()).map(|value| value * scale)
}

fn part(values: &[f64], part: f64, scale: f64) -> Option<f64> {
    percentile(values, part).map(|value| value * scale)
}

fn limit(goal: Goal, birds: Option<f64>) -> Option<f64> {
    match goal {
        Goal::None => None,
        Goal::Bird => birds,
        Goal::AtMost(limit) | Goal::AtLeast(limit) => Some(limit),
    }
}

fn is_reached(goal: Goal, ours: f64, limit: f64) -> bool {
    if matches!(goal, Goal::AtLeast(_)) { ours >= limit } else { ours <= limit }
}

fn verdict(goal: Goal, ours: Option<f64>, birds: Option<f64>) -> String {
    let (Some(limit), Some(ours)) = (limit(goal, birds), ours) else { return String::new() };
    let sign = if matches!(goal, Goal::AtLeast(_)) { ">=" } else { "<=" };
    let words = if is_reached(goal, ours, limit) { "reached" } else { "MISSED" };
    format!("{sign} {} {words}", shown(Some(limit)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_goal_that_is_not_reached_is_said_to_be_missed() {
        assert_eq!(verdict(Goal::Bird, Some(2.0), Some(3.0)), "<= 3.00 reached");
        assert_eq!(verdict(Goal::Bird, Some(4.0), Some(3.0)), "<= 3.00 MISSED");
        assert_eq!(verdict(Goal::Bird, Some(4.0), None), "");
        assert_eq!(verdict(Goal::AtMost(20.0), Some(21.0), None), "<= 20.0 MISSED");
        assert_eq!(verdict(Goal::AtLeast(200.0), Some(210.0), Some(1.0)), ">= 200 reached");
        assert_eq!(verdict(Goal::AtLeast(200.0), Some(190.0), None), ">= 200 MISSED");
        assert_eq!(verdict(Goal::None, Some(1.0), Some(1.0)), "");
    }
}
