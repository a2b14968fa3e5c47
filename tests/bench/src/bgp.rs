//! `seaway-bench bgp`: our speaker beside BIRD, FRR and GoBGP, by one sender and one receiver.
//!
//! Everything is in network namespaces of this process. Each round starts every device anew and ends it, one after another,
//! so that what else the machine does meets all of them; a device has no other than its own session's work meanwhile.
//! What is sent is encoded before the clock starts, and what comes is only counted. Routes into the kernel are measured
//! apart from that, and of ours alone: the others leave them to programs that are not here.

mod device;
mod fib;
mod mesh;
mod report;
mod session;
mod through;

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result, ensure};
use clap::{Args, ValueEnum};

use self::{device::Kind, report::Report};
use crate::{process, say, services::ground::Ground};

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Prefixes from a sender to a receiver, and memory
    Through,
    /// One block to all peers of a mesh
    Mesh,
    /// Routes into the kernel
    Fib,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct Options {
    /// seaway-agent
    #[arg(long)]
    agent: PathBuf,
    /// Only these devices
    #[arg(long, value_enum, value_delimiter = ',', default_value = "seaway,bird,frr,gobgp")]
    devices: Vec<Kind>,
    /// Only these parts
    #[arg(long, value_enum, value_delimiter = ',', default_value = "through,mesh,fib")]
    only: Vec<Part>,
    /// How many prefixes are announced at once
    #[arg(long, default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1..=i64::from(session::PREFIXES_MAX)))]
    prefixes: u32,
    /// How many prefixes are announced one at a time, in each round
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    singles: u32,
    /// How many peers the mesh has
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=5000))]
    peers: u32,
    /// How often a block is announced to them
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    mesh_rounds: u32,
    /// How many next hops the routes have
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=50_000))]
    next_hops: u32,
    /// How often each device is started and measured
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Writes every figure to this file
    #[arg(long)]
    json: Option<PathBuf>,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    ensure!(options.agent.exists(), "there is no agent at {}", options.agent.display());
    process::raise_descriptor_limit();
    let ground = Ground::enter()?;
    let mut report = Report::default();
    // What was measured before a failure is shown all the same: it took long.
    let measured = measure(options, &ground, &mut report);
    report.print(options);
    if let Some(path) = &options.json {
        let text = serde_json::to_string_pretty(&report.json(options))?;
        fs::write(path, text + "\n").with_context(|| format!("writing {}", path.display()))?;
        say(&format!("figures of every round: {}", path.display()));
    }
    measured
}

fn measure(options: &Options, ground: &Ground, report: &mut Report) -> Result<()> {
    let has = |part: Part| options.only.contains(&part);
    if has(Part::Through) {
        for round in 1..=options.rounds {
            for kind in &options.devices {
                say(&format!("    {kind}: {} prefixes, {round} of {}", options.prefixes, options.rounds));
                let name = format!("{kind}-{round}");
                let figures = report.figures(*kind);
                through::measure(*kind, options, ground, &name, figures).with_context(|| kind.to_string())?;
            }
        }
    }
    if has(Part::Mesh) {
        for kind in &options.devices {
            say(&format!("    {kind}: one block to {} peers", options.peers));
            mesh::measure(*kind, options, ground, report.figures(*kind)).with_context(|| kind.to_string())?;
        }
    }
    if has(Part::Fib) && options.devices.contains(&Kind::Seaway) {
        say(&format!("    routes over {} next hops into the kernel", options.next_hops));
        let figures = report.figures(Kind::Seaway);
        fib::measure(options, figures)?;
        for round in 1..=options.rounds {
            fib::learned(options, ground, round, figures)?;
        }
    }
    Ok(())
}
