//! Medians over the rounds as tables, each line with its goal and whether it was reached, and everything as JSON.

use std::{collections::BTreeMap, time::Duration};

use serde_json::{Value, json};

use super::{
    Options, Part,
    kube_proxy::ProxyMode,
    lab::Served,
    load::{Mode, Outcome},
    objects::Place,
    path::{Runs, Subject},
};
use crate::report::{median, percentile, shown};

/// Times plain routing, at every size.
const CONNECTIONS_GOAL: f64 = 1.10;
/// Time of an operation, beside plain routing's.
const POLICED_GOAL: f64 = 1.05;
const REQUESTS_GOAL: f64 = 1.12;
const ACROSS_GOAL: f64 = 1.00;
/// Times kube-proxy in nftables mode.
const PEER_GOAL: f64 = 1.3;
const CHANGE_P50_GOAL_MS: f64 = 3.0;
const CHANGE_P99_GOAL_MS: f64 = 10.0;
/// Services from which on the goals of a change, and of a cold start and memory, are asked for.
const CHANGE_SIZE: u32 = 10_000;
const LARGEST_SIZE: u32 = 50_000;
const COLD_START_GOAL_MS: f64 = 2000.0;
const MEMORY_GOAL_MB: f64 = 120.0;

/// Size, place, kind of operation.
type Line = (u32, Place, Mode);

#[derive(Default)]
pub(crate) struct Report {
    runs: BTreeMap<Line, Runs>,
    /// Milliseconds, by size and subject.
    changes: BTreeMap<(u32, Subject), Vec<f64>>,
    cold_starts: BTreeMap<(u32, Subject), Vec<f64>>,
    /// Megabytes: resident, and without what is shared where that was read.
    memory: BTreeMap<(u32, Subject), (f64, Option<f64>)>,
    served: BTreeMap<u32, Served>,
    notes: Vec<String>,
}

/// A figure beside its goal.
struct Goal {
    text: String,
    reached: bool,
}

impl Report {
    pub(crate) fn ran(&mut self, line: Line, subject: Subject, outcome: Outcome) {
        self.runs.entry(line).or_default().entry(subject).or_default().push(outcome);
    }

    pub(crate) fn changes(&mut self, services: u32, subject: Subject, times: Vec<Duration>) {
        self.changes.insert((services, subject), times.into_iter().map(milliseconds).collect());
    }

    pub(crate) fn cold_start(&mut self, services: u32, subject: Subject, took: Duration) {
        self.cold_starts.entry((services, subject)).or_default().push(milliseconds(took));
    }

    pub(crate) fn memory(&mut self, services: u32, subject: Subject, resident: f64, own: Option<f64>) {
        self.memory.insert((services, subject), (resident, own));
    }

    pub(crate) fn served(&mut self, services: u32, served: Served) {
        self.served.insert(services, served);
    }

    pub(crate) fn note(&mut self, text: String) {
        crate::say(&format!("    not measured: {text}"));
        self.notes.push(text);
    }

    #[expect(clippy::print_stdout, reason = "the tables are what was asked for")]
    pub(crate) fn print(&self, options: &Options) {
        if options.has(Part::Path) {
            println!("\n{}\n", self.path_heading(options));
            println!("{}", self.path_table());
        }
        if options.has(Part::Change) {
            println!(
                "\nChanges, cold starts, memory; a change is from just before the API request to the answer on"
            );
            println!("the first connection to the new endpoint, tried every 0.1 ms\n");
            println!("{}", self.change_table());
        }
        self.print_missing(options);
    }

    #[expect(clippy::print_stdout, reason = "as above")]
    fn print_missing(&self, options: &Options) {
        if options.has(Part::Path) {
            for line in self.policed_lines() {
                println!("{line}");
            }
        }
        if options.peer.is_none() && (options.has(Part::Path) || options.has(Part::Change)) {
            println!("kube-proxy was NOT measured in this run: --peer kube-proxy=PATH");
        }
        for note in &self.notes {
            println!("not measured: {note}");
        }
        for (line, failures, subject) in self.failures() {
            println!("{failures} operations FAILED: {}, {}", subject.name(), line_name(line));
        }
    }

    /// What 100 policies that select the pod cost beside plain routing.
    fn policed_lines(&self) -> Vec<String> {
        let lines = self.runs.iter().filter(|((_, place, _), _)| *place == Place::SameNode);
        let shown_line = |(line, runs): (&Line, &Runs)| {
            let of = |subject| median_of(runs, subject, Figure::Rate);
            let ratio = of(Subject::Plain)? / of(Subject::SeawayPoliced)?;
            let goal = Goal { text: format!("<= {POLICED_GOAL:.2}"), reached: ratio <= POLICED_GOAL };
            let name = line_name(*line);
            Some(format!(
                "With 100 policies selecting the pod, {name}: {ratio:.2} of plain routing's time, {}",
                goal.shown()
            ))
        };
        lines.filter_map(shown_line).collect()
    }

    fn path_heading(&self, options: &Options) -> String {
        let served = self.served.iter().map(|(services, served)| {
            let (computed, written) = (milliseconds(served.computed), milliseconds(served.written));
            format!("{services}: {computed:.0} + {written:.0} ms")
        });
        format!(
            "Connections and requests, 16 at a time: medians of {} runs of {} s; CPU is of client and server with the\n\
             kernel's work for their packets, and of softirq threads. From objects to desired maps, and from there to the\n\
             kernel, took {}",
            options.rounds,
            options.seconds,
            served.collect::<Vec<_>>().join(", ")
        )
    }

    fn subjects(&self) -> Vec<Subject> {
        let mut subjects: Vec<Subject> = self.runs.values().flat_map(|runs| runs.keys().copied()).collect();
        subjects.sort_unstable();
        subjects.dedup();
        subjects
    }

    fn path_table(&self) -> String {
        let subjects = self.subjects();
        let names: Vec<&str> = subjects.iter().map(|subject| subject.name()).collect();
        let mut rows = vec![
            format!(
                "| Services | where | operation | | {} | to plain | goal | to nftables | goal |",
                names.join(" | ")
            ),
            format!("|---|---|---|---|{}---|---|---|---|", "---|".repeat(subjects.len())),
        ];
        for (line, runs) in &self.runs {
            for figure in [Figure::Rate, Figure::Cpu] {
                rows.push(path_row(*line, runs, &subjects, figure));
            }
        }
        rows.join("\n")
    }

    fn change_table(&self) -> String {
        let mut rows =
            vec!["| Services | | figure | value | goal |".to_owned(), "|---|---|---|---|---|".to_owned()];
        let mut row = |services: u32, subject: Subject, figure: &str, value: String, goal: Option<Goal>| {
            let goal = goal.map_or_else(String::new, |goal| goal.shown());
            rows.push(format!("| {services} | {} | {figure} | {value} | {goal} |", subject.name()));
        };
        for ((services, subject), times) in &self.changes {
            let ours = *subject == Subject::Seaway && *services >= CHANGE_SIZE;
            for (part, limit) in [(0.5, CHANGE_P50_GOAL_MS), (0.99, CHANGE_P99_GOAL_MS)] {
                let value = percentile(times, part);
                let figure = format!("one change, p{:.0} of {}", part * 100.0, times.len());
                let goal = ours.then(|| at_most(value, limit, "ms"));
                row(*services, *subject, &figure, format!("{} ms", shown(value)), goal);
            }
        }
        for ((services, subject), times) in &self.cold_starts {
            let ours = *subject == Subject::Seaway && *services >= LARGEST_SIZE;
            let value = median(times.clone());
            let figure = format!("cold start, median of {}", times.len());
            let goal = ours.then(|| at_most(value, COLD_START_GOAL_MS, "ms"));
            row(*services, *subject, &figure, format!("{} ms", shown(value)), goal);
        }
        for ((services, subject), (resident, own)) in &self.memory {
            let ours = *subject == Subject::Seaway && *services >= LARGEST_SIZE;
            let goal = ours.then(|| at_most(Some(*resident), MEMORY_GOAL_MB, "MB"));
            row(*services, *subject, "resident memory", format!("{resident:.1} MB"), goal);
            if let Some(own) = own {
                row(*services, *subject, "proportional set size", format!("{own:.1} MB"), None);
            }
        }
        rows.join("\n")
    }

    fn failures(&self) -> Vec<(Line, u64, Subject)> {
        let lines = self.runs.iter().flat_map(|(line, runs)| {
            runs.iter().map(|(subject, outcomes)| {
                (*line, outcomes.iter().map(|outcome| outcome.failures).sum::<u64>(), *subject)
            })
        });
        lines.filter(|(_, failures, _)| *failures > 0).collect()
    }

    pub(crate) fn json(&self, options: &Options) -> Value {
        let runs = self.runs.iter().flat_map(|((services, place, mode), runs)| {
            runs.iter().map(move |(subject, outcomes)| {
                json!({"services": services, "place": place.name(), "operation": mode.name(),
                    "subject": subject.name(), "runs": outcomes})
            })
        });
        let timed = |map: &BTreeMap<(u32, Subject), Vec<f64>>| -> Vec<Value> {
            map.iter()
                .map(|((services, subject), times)| {
                    json!({"services": services, "subject": subject.name(), "milliseconds": times})
                })
                .collect()
        };
        let memory = self.memory.iter().map(|((services, subject), (resident, own))| {
            json!({"services": services, "subject": subject.name(), "resident_mb": resident, "pss_mb": own})
        });
        json!({
            "rounds": options.rounds,
            "seconds": options.seconds,
            "runs": runs.collect::<Vec<_>>(),
            "changes": timed(&self.changes),
            "cold_starts": timed(&self.cold_starts),
            "memory": memory.collect::<Vec<_>>(),
            "not_measured": self.notes,
        })
    }
}

#[derive(Clone, Copy)]
enum Figure {
    /// Operations per second.
    Rate,
    /// Microseconds of CPU time per operation.
    Cpu,
}

impl Figure {
    fn of(self, outcome: &Outcome) -> Option<f64> {
        let operations = outcome.operations as f64;
        match self {
            Self::Rate => Some(operations / outcome.seconds),
            Self::Cpu => (outcome.operations > 0).then(|| outcome.cpu_seconds / operations * 1e6),
        }
    }

    const fn unit(self) -> &'static str {
        match self {
            Self::Rate => "per second",
            Self::Cpu => "µs CPU",
        }
    }
}

fn median_of(runs: &Runs, subject: Subject, figure: Figure) -> Option<f64> {
    median(runs.get(&subject)?.iter().filter_map(|outcome| figure.of(outcome)).collect())
}

fn path_row(line: Line, runs: &Runs, subjects: &[Subject], figure: Figure) -> String {
    let (services, place, mode) = line;
    let values: Vec<String> =
        subjects.iter().map(|subject| shown(median_of(runs, *subject, figure))).collect();
    let ratio = |other| Some(median_of(runs, Subject::Seaway, figure)? / median_of(runs, other, figure)?);
    let (to_plain, to_peer) = (ratio(Subject::Plain), ratio(Subject::KubeProxy(ProxyMode::Nftables)));
    let plain_goal = to_plain.and_then(|ratio| plain_goal(place, mode, figure, ratio));
    let peer_goal =
        to_peer.and_then(|ratio| matches!(figure, Figure::Rate).then(|| at_least(ratio, PEER_GOAL)));
    let text = |goal: Option<Goal>| goal.map_or_else(String::new, |goal| goal.shown());
    format!(
        "| {services} | {} | {} | {} | {} | {} | {} | {} | {} |",
        place.name(),
        mode.name(),
        figure.unit(),
        values.join(" | "),
        shown(to_plain),
        text(plain_goal),
        shown(to_peer),
        text(peer_goal),
    )
}

fn plain_goal(place: Place, mode: Mode, figure: Figure, ratio: f64) -> Option<Goal> {
    match (figure, place) {
        (Figure::Rate, Place::SameNode) if mode.connects() => Some(at_least(ratio, CONNECTIONS_GOAL)),
        (Figure::Rate, Place::SameNode) => Some(at_least(ratio, REQUESTS_GOAL)),
        (Figure::Rate, Place::Across) => Some(at_least(ratio, ACROSS_GOAL)),
        (Figure::Cpu, Place::SameNode) => Some(Goal { text: "< 1.00".to_owned(), reached: ratio < 1.0 }),
        (Figure::Cpu, Place::Across) => None,
    }
}

fn at_least(value: f64, goal: f64) -> Goal {
    Goal { text: format!(">= {goal:.2}"), reached: value >= goal }
}

/// What was not measured is missed.
fn at_most(value: Option<f64>, goal: f64, unit: &str) -> Goal {
    Goal { text: format!("<= {goal:.0} {unit}"), reached: value.is_some_and(|value| value <= goal) }
}

impl Goal {
    fn shown(&self) -> String {
        format!("{} {}", self.text, if self.reached { "reached" } else { "MISSED" })
    }
}

fn line_name((services, place, mode): Line) -> String {
    format!("{services} Services, {}, {}", place.name(), mode.name())
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(operations: u64, cpu_seconds: f64) -> Outcome {
        Outcome { operations, failures: 0, seconds: 1.0, cpu_seconds }
    }

    #[test]
    fn a_line_says_medians_ratios_and_whether_its_goals_were_reached() {
        let mut report = Report::default();
        let line = (10, Place::SameNode, Mode::TcpConnect);
        for (plain, ours) in [(100, 109), (100, 111), (100, 112)] {
            report.ran(line, Subject::Plain, outcome(plain, 1.0));
            report.ran(line, Subject::Seaway, outcome(ours, 1.2));
        }
        report.ran(line, Subject::KubeProxy(ProxyMode::Nftables), outcome(90, 1.0));
        let table = report.path_table();
        assert!(
            table.contains("| 100 | 111 | 90.0 | 1.11 | >= 1.10 reached | 1.23 | >= 1.30 MISSED |"),
            "{table}"
        );
        assert!(table.contains("| 1.08 | < 1.00 MISSED |"), "{table}");
    }

    #[test]
    fn failures_are_summed_over_the_rounds() {
        let mut report = Report::default();
        let line = (10, Place::Across, Mode::UdpRequest);
        for failures in [0, 2, 3] {
            report.ran(line, Subject::Seaway, Outcome { failures, ..outcome(10, 0.1) });
            report.ran(line, Subject::Plain, outcome(10, 0.1));
        }
        assert_eq!(report.failures(), [(line, 5, Subject::Seaway)]);
    }
}
