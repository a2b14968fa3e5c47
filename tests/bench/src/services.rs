//! `seaway-bench services`: what a connection through a Service costs beside a direct one on plain routing and beside
//! peers, how long a change takes to be used, what memory the agent needs.
//!
//! Everything is in network namespaces of this process, which no packet leaves. Where only packets are measured, the
//! laboratory drives the crates of the agent itself; changes are measured with the real agent and our API server, which
//! peers are fed by too. CPU time of an operation is that of client and server, with the kernel's work for packets
//! in them, and of the kernel's softirq threads. Deliberately absent: what programs take for a packet
//! (`programs`).

pub(crate) mod api;
mod change;
pub(crate) mod ground;
mod kube_proxy;
mod lab;
mod load;
pub(crate) mod objects;
mod path;
mod report;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use clap::{Args, ValueEnum};

use self::{api::Api, ground::Ground, objects::SERVICES_MAX, report::Report};
use crate::{process, say};

pub(crate) use load::{ClientOptions, ServerOptions, run_client as load_client, run_server as load_server};

/// What can be measured alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Part {
    /// Connections and requests
    Path,
    /// From a write to its first use, cold start, memory
    Change,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct Options {
    /// seaway-server, for `change` and for peers
    #[arg(long)]
    server: Option<PathBuf>,
    /// seaway-agent, for `change`
    #[arg(long)]
    agent: Option<PathBuf>,
    /// What else to measure: kube-proxy=PATH
    #[arg(long, value_parser = peer_of)]
    peer: Option<PathBuf>,
    /// How many Services there are, each with 4 endpoints
    #[arg(long, value_delimiter = ',', default_value = "10,1000,10000,50000")]
    services: Vec<u32>,
    /// How often everything is measured
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Seconds of each run
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// Changes of an endpoint
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    changes: u32,
    /// Seconds that a peer gets to write its rules
    #[arg(long, default_value_t = 300)]
    peer_seconds: u64,
    /// Only these parts
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["path", "change"])]
    only: Vec<Part>,
    /// Measures clients too whose sockets are not served, so that their packets are translated
    #[arg(long)]
    tc: bool,
    /// Writes every figure to this file
    #[arg(long)]
    json: Option<PathBuf>,
}

impl Options {
    pub(crate) fn has(&self, part: Part) -> bool {
        self.only.contains(&part)
    }

    /// Whether this is the smallest number of Services.
    pub(crate) fn is_smallest(&self, services: u32) -> bool {
        self.services.first() == Some(&services)
    }

    pub(crate) fn kube_proxy(&self) -> Option<&Path> {
        self.peer.as_deref()
    }

    /// Seconds of a run that do not count.
    pub(crate) fn warm(&self) -> f64 {
        (self.seconds / 5.0).min(0.2)
    }

    fn check(&self) -> Result<()> {
        if !self.seconds.is_finite() || !(0.05..=600.0).contains(&self.seconds) {
            bail!("--seconds is {}, it must be between 0.05 and 600", self.seconds);
        }
        for services in &self.services {
            ensure!((10..=SERVICES_MAX).contains(services), "--services {services}: 10 to {SERVICES_MAX}");
        }
        ensure!(self.services.is_sorted(), "--services: the smallest first, as Services are only added");
        Ok(())
    }
}

fn peer_of(text: &str) -> Result<PathBuf, String> {
    match text.split_once('=') {
        Some(("kube-proxy", path)) if !path.is_empty() => Ok(path.into()),
        _ => Err("a peer is given as kube-proxy=PATH".to_owned()),
    }
}

pub(crate) fn run(options: &Options) -> Result<()> {
    options.check()?;
    process::raise_descriptor_limit();
    // Relative paths mean the folder that this was started in; processes start in it too.
    let ground = Ground::enter()?;
    let mut report = Report::default();
    // What was measured before a failure is shown all the same: it took long.
    let measured = measure(&ground, options, &mut report);
    drop(ground);
    report.print(options);
    if let Some(path) = &options.json {
        let text = serde_json::to_string_pretty(&report.json(options))?;
        std::fs::write(path, text + "\n").with_context(|| format!("writing {}", path.display()))?;
        say(&format!("every figure: {}", path.display()));
    }
    measured
}

fn measure(ground: &Ground, options: &Options, report: &mut Report) -> Result<()> {
    let with_peer = options.has(Part::Path) && options.peer.is_some();
    let mut api = if options.has(Part::Change) || with_peer {
        let server =
            options.server.as_deref().context("changes and peers are measured with --server PATH")?;
        say("starting our API server");
        Some(Api::start(ground, server).context("starting our API server")?)
    } else {
        None
    };
    for services in &options.services {
        say(&format!("{services} Services with 4 endpoints each"));
        if let Some(api) = &mut api {
            api.grow(*services).context("creating Services")?;
        }
        if options.has(Part::Path) {
            path::measure(ground, options, api.as_mut(), *services, report)?;
        }
        if let Some(api) = api.as_mut().filter(|_| options.has(Part::Change)) {
            change::agent(ground, options, api, *services, report)?;
        }
    }
    drop(api);
    Ok(())
}
