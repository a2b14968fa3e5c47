//! The figures as a table, each with its goal and whether it was reached, and as JSON.

use std::{collections::BTreeMap, time::Duration};

use serde_json::{Value, json};

use super::{Options, routes, told::Reached};
use crate::report::{median, percentile, shown};

const OURS: &str = "seaway";
/// Of the peer's time.
const PART: f64 = 1.0 / 3.0;
const BURST_GOAL_MS: f64 = 100.0;
/// Of 99 % of the pods, from ADD's return to the route on every other node.
const ROUTE_GOAL_MS: f64 = 5.0;

#[derive(Default)]
pub(super) struct Figures {
    pub(super) add: Vec<Duration>,
    pub(super) del: Vec<Duration>,
    /// From DEL's end until the link is gone.
    pub(super) gone: Vec<Duration>,
    /// CPU seconds.
    pub(super) add_cpu: Vec<f64>,
    pub(super) del_cpu: Vec<f64>,
    pub(super) burst_add: Vec<Duration>,
    pub(super) burst_del: Vec<Duration>,
}

#[derive(Default)]
pub(super) struct Report {
    by_plugin: BTreeMap<&'static str, Figures>,
    pub(super) reached: Vec<Reached>,
}

impl Report {
    pub(super) fn figures(&mut self, plugin: &'static str) -> &mut Figures {
        self.by_plugin.entry(plugin).or_default()
    }

    #[expect(clippy::print_stdout, reason = "the table is what was asked for")]
    pub(super) fn print(&self, options: &Options) {
        println!(
            "\n{} pods one after another, {} rounds of {} at once; milliseconds\n",
            options.pods, options.rounds, options.burst
        );
        let names: Vec<&str> = self.by_plugin.keys().copied().collect();
        println!("| figure | {} | goal |", names.join(" | "));
        println!("|---|{}---|", "---|".repeat(names.len()));
        self.row("ADD, median", |figures| part_of(&figures.add, 0.5), Some(PART), None);
        self.row("ADD, p99", |figures| part_of(&figures.add, 0.99), None, None);
        self.row("ADD, CPU time, median", |figures| cpu(&figures.add_cpu), None, None);
        self.row("DEL, median", |figures| part_of(&figures.del, 0.5), Some(PART), None);
        self.row("DEL, p99", |figures| part_of(&figures.del, 0.99), None, None);
        self.row("DEL, CPU time until the link is gone, median", |figures| cpu(&figures.del_cpu), None, None);
        self.row("from DEL's end until the link is gone, median", |f| part_of(&f.gone, 0.5), None, None);
        let at_once = format!("ADD of {} at once", options.burst);
        let burst = Some(BURST_GOAL_MS);
        self.row(&format!("{at_once}, median"), |figures| part_of(&figures.burst_add, 0.5), None, burst);
        self.row(&format!("{at_once}, longest"), |figures| part_of(&figures.burst_add, 1.0), None, None);
        let at_once = format!("DEL of {} at once", options.burst);
        self.row(&format!("{at_once}, median"), |figures| part_of(&figures.burst_del, 0.5), None, None);
    }

    /// `part`: at most this part of the peer's; `limit`: at most this.
    #[expect(clippy::print_stdout, reason = "as above")]
    fn row(
        &self,
        name: &str,
        value: impl Fn(&Figures) -> Option<f64>,
        part: Option<f64>,
        limit: Option<f64>,
    ) {
        let values: Vec<String> = self.by_plugin.values().map(|figures| shown(value(figures))).collect();
        let ours = self.by_plugin.get(OURS).and_then(&value);
        let peer = self.by_plugin.iter().find(|(name, _)| **name != OURS).and_then(|(_, f)| value(f));
        let limit = limit.or_else(|| Some(peer? * part?));
        let goal = limit.map_or_else(String::new, |limit| {
            let reached = ours.is_some_and(|ours| ours <= limit);
            format!("<= {} {}", shown(Some(limit)), if reached { "reached" } else { "MISSED" })
        });
        println!("| {name} | {} | {goal} |", values.join(" | "));
    }

    #[expect(clippy::print_stdout, reason = "as above")]
    pub(super) fn print_reached(&self) {
        println!(
            "\nfrom ADD's return to the route on every other node, by the agents' histograms; milliseconds\n"
        );
        println!(
            "| pods | how many | seconds | for a new block waited | routes came after ADD | median | p99 | longest | goal of \
             p99 | ADD, median | ADD, p99 |"
        );
        println!("|---|---|---|---|---|---|---|---|---|---|---|");
        for Reached { what, seconds, add, told } in &self.reached {
            let reached = told.bound_of(0.99).is_some_and(|p99| p99 <= ROUTE_GOAL_MS);
            let [median, p99, longest] = [0.5, 0.99, 1.0].map(|part| at_most(told.bound_of(part)));
            println!(
                "| {what} | {} | {seconds:.1} | {} | {} | {median} | {p99} | {longest} | <= {ROUTE_GOAL_MS} {} | {} | {} |",
                told.count,
                told.waited,
                told.count - told.before_return(),
                if reached { "reached" } else { "MISSED" },
                shown(part_of(add, 0.5)),
                shown(part_of(add, 0.99)),
            );
        }
    }

    pub(super) fn json(&self) -> Value {
        let of = |times: &[Duration]| times.iter().map(Duration::as_secs_f64).collect::<Vec<_>>();
        let plugins = self.by_plugin.iter().map(|(name, figures)| {
            json!({
                "plugin": name,
                "add_seconds": of(&figures.add),
                "del_seconds": of(&figures.del),
                "link_gone_seconds": of(&figures.gone),
                "add_cpu_seconds": figures.add_cpu,
                "del_cpu_seconds": figures.del_cpu,
                "burst_add_seconds": of(&figures.burst_add),
                "burst_del_seconds": of(&figures.burst_del),
            })
        });
        json!({ "calls": plugins.collect::<Vec<_>>(), "routes": routes::json(&self.reached) })
    }
}

/// A bound of a histogram.
fn at_most(milliseconds: Option<f64>) -> String {
    match milliseconds {
        None => String::new(),
        Some(0.0) => "0".to_owned(),
        Some(bound) if bound.is_finite() => format!("<= {bound}"),
        Some(_) => "over all bounds".to_owned(),
    }
}

/// Milliseconds.
fn part_of(times: &[Duration], part: f64) -> Option<f64> {
    let milliseconds: Vec<f64> = times.iter().map(|time| time.as_secs_f64() * 1000.0).collect();
    percentile(&milliseconds, part)
}

/// Milliseconds.
fn cpu(seconds: &[f64]) -> Option<f64> {
    median(seconds.iter().map(|seconds| seconds * 1000.0).collect())
}
