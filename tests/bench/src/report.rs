//! Medians over the rounds, as a table with ratios and as JSON.

use std::{collections::BTreeMap, time::Duration};

use serde_json::{Value, json};

use crate::{Options, Store};

/// The figures of one round of one subject: name and unit to value, in the order in which they were taken.
#[derive(Default)]
pub(crate) struct Figures(Vec<(String, &'static str, f64)>);

impl Figures {
    pub(crate) fn put(&mut self, name: &str, unit: &'static str, value: f64) {
        self.0.push((name.to_owned(), unit, value));
    }

    pub(crate) fn latencies(&mut self, name: &str, mut took: Vec<Duration>) {
        took.sort_unstable();
        for (unit, part) in [("us p50", 0.5), ("us p99", 0.99)] {
            let at = ((took.len() as f64 * part) as usize).min(took.len().saturating_sub(1));
            if let Some(took) = took.get(at) {
                self.put(name, unit, took.as_secs_f64() * 1e6);
            }
        }
    }
}

/// How many times less than the peer's a figure is to be.
const GOALS: &[(&str, &str, f64)] = &[
    ("get", "us CPU", 10.0),
    ("create", "us CPU", 5.0),
    ("list of all", "us CPU", 30.0),
    ("list by label", "us CPU", 10.0),
    ("watch event", "us CPU", 8.0),
    ("watch event, one connection", "us CPU", 8.0),
    ("watch event, 1 writer", "us CPU", 8.0),
    ("watch event, 1 writer, one connection", "us CPU", 8.0),
    ("watch event, 8 writers", "us CPU", 8.0),
    ("watch event, 8 writers, one connection", "us CPU", 8.0),
    ("memory of the server", "MB", 8.0),
];

#[derive(Default)]
pub(crate) struct Report {
    /// Subject, then its rounds.
    rounds: BTreeMap<String, Vec<Figures>>,
}

impl Report {
    pub(crate) fn add(&mut self, subject: &str, figures: Figures) {
        self.rounds.entry(subject.to_owned()).or_default().push(figures);
    }

    fn median(&self, subject: &str, name: &str, unit: &str) -> Option<f64> {
        let of_round = |figures: &Figures| {
            figures.0.iter().find(|(other, of, _)| other == name && *of == unit).map(|(_, _, value)| *value)
        };
        median(self.rounds.get(subject)?.iter().filter_map(of_round).collect())
    }

    /// Every figure in order of first appearance, ours first.
    fn names(&self) -> Vec<(String, &'static str)> {
        let mut names: Vec<(String, &'static str)> = Vec::new();
        for subject in ["seaway", "kube-apiserver"] {
            let first = self.rounds.get(subject).and_then(|rounds| rounds.first());
            for (name, unit, _) in first.iter().flat_map(|figures| &figures.0) {
                if !names.iter().any(|(other, of)| other == name && of == unit) {
                    names.push((name.clone(), unit));
                }
            }
        }
        names
    }

    #[expect(clippy::print_stdout, reason = "the table is what was asked for")]
    pub(crate) fn print(&self, options: &Options) {
        println!("\n{}; CPU is of server and store together\n", setting(options));
        println!("| figure | unit | seaway | kube-apiserver | ratio | goal |");
        println!("|---|---|---|---|---|---|");
        for (name, unit) in self.names() {
            let (ours, peer) =
                (self.median("seaway", &name, unit), self.median("kube-apiserver", &name, unit));
            let goal =
                GOALS.iter().find(|(goal, of, _)| *goal == name && *of == unit).map(|(.., times)| *times);
            println!(
                "| {name} | {unit} | {} | {} | {} | {} |",
                shown(ours),
                shown(peer),
                ratio(ours, peer),
                goal.map_or_else(String::new, |times| format!("1/{times}")),
            );
        }
    }

    pub(crate) fn json(&self, options: &Options) -> Value {
        let subjects = self.rounds.iter().map(|(subject, rounds)| {
            let rounds = rounds.iter().map(|figures| {
                let figures = figures
                    .0
                    .iter()
                    .map(|(name, unit, value)| json!({"name": name, "unit": unit, "value": value}));
                Value::from(figures.collect::<Vec<_>>())
            });
            let medians = self.names().into_iter().filter_map(|(name, unit)| {
                let value = self.median(subject, &name, unit)?;
                Some(json!({"name": name, "unit": unit, "value": value}))
            });
            let medians: Vec<Value> = medians.collect();
            (subject.clone(), json!({"medians": medians, "rounds": rounds.collect::<Vec<_>>()}))
        });
        json!({"setting": setting(options), "subjects": subjects.collect::<serde_json::Map<_, _>>()})
    }
}

fn setting(options: &Options) -> String {
    let store = match options.store {
        Store::Embedded => "its embedded store",
        Store::Etcd => "etcd",
    };
    format!(
        "{} pods of 2 kB, {} watchers, {:?} as HTTP version, seaway on {store}, medians of {} rounds",
        options.objects, options.watchers, options.http, options.rounds
    )
}

pub(crate) fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    let upper = *values.get(middle)?;
    Some(if values.len() % 2 == 1 { upper } else { f64::midpoint(values[middle - 1], upper) })
}

/// The smallest value that this part of all values do not exceed.
pub(crate) fn percentile(values: &[f64], part: f64) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (sorted.len() as f64 * part).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied()
}

pub(crate) fn shown(value: Option<f64>) -> String {
    match value {
        None => String::new(),
        Some(value) if value >= 100.0 => format!("{value:.0}"),
        Some(value) if value >= 10.0 => format!("{value:.1}"),
        Some(value) => format!("{value:.2}"),
    }
}

/// How many times smaller ours is, as 1/N, or larger.
fn ratio(ours: Option<f64>, peer: Option<f64>) -> String {
    match (ours, peer) {
        (Some(ours), Some(peer)) if ours > 0.0 && peer > 0.0 => {
            let times = peer / ours;
            if times >= 1.0 { format!("1/{times:.1}") } else { format!("{:.1}", 1.0 / times) }
        }
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_ratios_are_over_rounds() {
        let mut report = Report::default();
        for (ours, peer) in [(1.0, 9.0), (3.0, 30.0), (2.0, 40.0)] {
            for (subject, value) in [("seaway", ours), ("kube-apiserver", peer)] {
                let mut figures = Figures::default();
                figures.put("get", "us CPU", value);
                report.add(subject, figures);
            }
        }
        let (ours, peer) =
            (report.median("seaway", "get", "us CPU"), report.median("kube-apiserver", "get", "us CPU"));
        assert_eq!((ours, peer), (Some(2.0), Some(30.0)));
        assert_eq!(ratio(ours, peer), "1/15.0");
        assert_eq!(ratio(peer, ours), "15.0");
        assert_eq!(median(vec![1.0, 2.0]), Some(1.5));
        assert_eq!(median(Vec::new()), None);
    }

    #[test]
    fn percentiles_come_from_sorted_latencies() {
        let mut figures = Figures::default();
        figures.latencies("x", (0..100).rev().map(Duration::from_micros).collect());
        assert_eq!(figures.0[0].2.round(), 50.0);
        assert_eq!(figures.0[1].2.round(), 99.0);
    }

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let values: Vec<f64> = (1..=100).map(f64::from).rev().collect();
        assert_eq!(percentile(&values, 0.5), Some(50.0));
        assert_eq!(percentile(&values, 0.99), Some(99.0));
        assert_eq!(percentile(&[7.0], 0.99), Some(7.0));
        assert_eq!(percentile(&[], 0.5), None);
    }
}
