//! `seaway-bench programs`: nanoseconds that the programs take for a packet of each class, by BPF_PROG_TEST_RUN, with few
//! and with many Services in the maps.
//!
//! Nothing is sent: the kernel runs a program over a packet in memory and says how long it took. What each class stands
//! for is checked by the verdict, the packet that came out and the datapath's counters; a packet that took another way
//! ends the bench. Deliberately absent: programs of sockets, which the kernel runs for nobody.

mod classes;
mod frame;
mod lab;
mod runs;

use std::{collections::BTreeMap, path::PathBuf};

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use serde_json::{Value, json};

use self::{
    lab::Lab,
    runs::{Class, Runs, Way},
};
use crate::{
    process, say,
    services::{ground::Ground, objects::SERVICES_MAX},
};

#[derive(Clone, Debug, Args)]
pub(crate) struct Options {
    /// How many Services there are beside those that are measured, each with 4 endpoints
    #[arg(long, value_delimiter = ',', default_value = "10,10000")]
    services: Vec<u32>,
    /// Writes every figure to this file
    #[arg(long)]
    json: Option<PathBuf>,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    for services in &options.services {
        ensure!((1..=SERVICES_MAX).contains(services), "--services {services}: 1 to {SERVICES_MAX}");
    }
    process::raise_descriptor_limit();
    let ground = Ground::enter()?;
    let wires = lab::wire().context("making the node's links")?;
    let mut measured = BTreeMap::new();
    for services in &options.services {
        say(&format!("every class of packet, with {services} Services"));
        let mut runs = Runs::new(Lab::new(&ground, *services)?);
        classes::all(&mut runs)?;
        measured.insert(*services, runs.into_classes());
    }
    drop((wires, ground));
    print(&measured);
    if let Some(path) = &options.json {
        let text = serde_json::to_string_pretty(&figures(&measured))?;
        std::fs::write(path, text + "\n").with_context(|| format!("writing {}", path.display()))?;
        say(&format!("every figure: {}", path.display()));
    }
    Ok(())
}

#[expect(clippy::print_stdout, reason = "the table is what was asked for")]
fn print(measured: &BTreeMap<u32, Vec<Class>>) {
    let Some(classes) = measured.values().next() else { return };
    println!("\nNanoseconds per packet; * one packet at a time, the others many times over\n");
    let sizes: Vec<String> = measured.keys().map(|services| format!("{services} Services")).collect();
    println!("| program | packet | {} | goal |", sizes.join(" | "));
    println!("|---|---|{}---|", "---|".repeat(sizes.len()));
    for (at, class) in classes.iter().enumerate() {
        let of = |classes: &Vec<Class>| classes.get(at).map_or(f64::NAN, |class| class.nanoseconds);
        let values: Vec<String> = measured.values().map(|classes| format!("{:.0}", of(classes))).collect();
        let star = if class.way == Way::Single { " *" } else { "" };
        let goal = class.goal.map_or_else(String::new, |goal| {
            let reached = measured.values().all(|classes| of(classes) <= goal);
            format!(" <= {goal:.0} {}", if reached { "reached" } else { "MISSED" })
        });
        println!("| {} | {}{star} | {} |{goal} |", class.program, class.name, values.join(" | "));
    }
}

fn figures(measured: &BTreeMap<u32, Vec<Class>>) -> Value {
    let all = measured.iter().flat_map(|(services, classes)| {
        classes.iter().map(move |class| {
            json!({
                "services": services,
                "program": class.program,
                "packet": class.name,
                "one_at_a_time": class.way == Way::Single,
                "nanoseconds": class.nanoseconds,
                "goal": class.goal,
            })
        })
    });
    json!({"packets": all.collect::<Vec<_>>()})
}
