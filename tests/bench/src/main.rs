//! `seaway-bench`: measures ours and peers in one run with one load generator; `cargo xtask bench` builds and starts it.
//!
//! `apiserver`: CPU time per request of an API server with its store, latency, memory and time to ready. Each round starts
//! every subject anew on loopback and an empty store in a folder of its own, so that what else the machine does meets all
//! of them; the figures are medians over the rounds. `services`, `programs`, `cni`, `bgp`: the modules of these
//! names. Nothing is downloaded.

mod bgp;
mod client;
mod cni;
mod floor;
mod measure;
mod objects;
mod peer;
mod process;
mod programs;
mod report;
mod services;
mod subject;
mod watchers;

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::{
    report::{Figures, Report},
    subject::Subject,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Store {
    /// A file of the server's own.
    Embedded,
    /// An etcd process on loopback.
    Etcd,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum HttpVersion {
    #[value(name = "1")]
    One,
    #[value(name = "2")]
    Two,
}

/// What of an API server is measured besides start, creation and memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Part {
    Get,
    List,
    Watch,
}

#[derive(Parser)]
#[command(name = "seaway-bench")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Measures seaway-server, and a peer where one is given
    Apiserver(Options),
    /// Measures connections through Services and changes of endpoints, and peers where they are given
    Services(services::Options),
    /// Measures what the programs take for a packet of each class
    Programs(programs::Options),
    /// Measures adding and deleting pods, beside ptp and host-local
    Cni(cni::Options),
    /// Measures the BGP speaker and routes into the kernel, beside BIRD, FRR and GoBGP
    Bgp(bgp::Options),
    /// Sends records, for `apiserver`
    #[command(hide = true)]
    RecordServer(floor::ServerOptions),
    /// Answers, for `services`
    #[command(hide = true)]
    LoadServer(services::ServerOptions),
    /// Asks, for `services`
    #[command(hide = true)]
    LoadClient(services::ClientOptions),
}

#[derive(Clone, Debug, Args)]
pub(crate) struct Options {
    /// Our binary
    #[arg(long)]
    server: PathBuf,
    /// What else to measure: kube-apiserver=PATH
    #[arg(long, value_parser = peer_of)]
    peer: Option<PathBuf>,
    /// etcd, for the peer and for `--store etcd`
    #[arg(long, default_value = "etcd")]
    etcd: PathBuf,
    /// Where our server keeps its objects
    #[arg(long, value_enum, default_value = "embedded")]
    store: Store,
    /// How many pods of 2 kB there are
    #[arg(long, default_value_t = 5000, value_parser = clap::value_parser!(u32).range(100..=1_000_000))]
    objects: u32,
    /// Only these parts, besides start, creation and memory, which are always measured
    #[arg(long, value_enum, value_delimiter = ',', default_value = "get,list,watch")]
    only: Vec<Part>,
    /// How many watchers, each on a connection of its own
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    watchers: u32,
    #[arg(long, value_enum, default_value = "2")]
    http: HttpVersion,
    /// How often each subject is started and measured
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Seconds of each measurement
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Writes every figure of every round to this file
    #[arg(long)]
    json: Option<PathBuf>,
    /// Shows what the servers print
    #[arg(long)]
    verbose: bool,
}

fn peer_of(text: &str) -> Result<PathBuf, String> {
    match text.split_once('=') {
        Some(("kube-apiserver", path)) if !path.is_empty() => Ok(path.into()),
        _ => Err("a peer is given as kube-apiserver=PATH".to_owned()),
    }
}

fn main() -> std::process::ExitCode {
    let done = match Arguments::parse().command {
        Command::Apiserver(options) => run(&options),
        Command::Services(options) => services::run(&options),
        Command::Programs(options) => programs::run(&options),
        Command::Cni(options) => cni::run(&options),
        Command::Bgp(options) => bgp::run(&options),
        Command::RecordServer(options) => floor::serve(&options),
        Command::LoadServer(options) => services::load_server(&options),
        Command::LoadClient(options) => services::load_client(&options),
    };
    match done {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("seaway-bench: {error:#}"));
            std::process::ExitCode::FAILURE
        }
    }
}

pub(crate) fn say(text: &str) {
    eprintln!("{text}");
}

fn run(options: &Options) -> Result<()> {
    if !options.seconds.is_finite() || !(0.1..=600.0).contains(&options.seconds) {
        bail!("--seconds is {}, it must be between 0.1 and 600", options.seconds);
    }
    process::raise_descriptor_limit();
    let mut report = Report::default();
    // What was measured before a failure is shown all the same: it took long.
    let measured = rounds(options, &mut report);
    report.print(options);
    if let Some(path) = &options.json {
        let text = serde_json::to_string_pretty(&report.json(options))?;
        std::fs::write(path, text + "\n").with_context(|| format!("writing {}", path.display()))?;
        say(&format!("figures of every round: {}", path.display()));
    }
    measured
}

fn rounds(options: &Options, report: &mut Report) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    for round in 1..=options.rounds {
        let mut names = vec!["seaway"];
        names.extend(options.peer.is_some().then_some("kube-apiserver"));
        for name in names {
            say(&format!("round {round} of {}: {name}", options.rounds));
            let mut figures = Figures::default();
            let measured = runtime.block_on(async {
                let subject = Subject::new(name, options)?;
                measure::all(subject, options, &mut figures).await
            });
            report.add(name, figures);
            measured.with_context(|| format!("measuring {name}"))?;
        }
    }
    Ok(())
}
