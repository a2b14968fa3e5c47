//! `cargo xtask bench`: what the README's figures come from.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};

use crate::cluster::{NODES_MAX, Store};
use crate::{build, ebpf, install, run};

const CLUSTER_NODES: u8 = 3;

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Bench {
    /// Resident memory, idle CPU, apply to Ready, a new block to its routes
    Cluster,
    /// CPU per request, latency and memory of the API server, beside a peer
    Apiserver,
    /// Connections through Services, changes of endpoints, beside plain routing and a peer
    Services,
    /// What the BPF programs take for a packet of each class
    Programs,
    /// Adding and deleting pods, beside Debian's ptp and host-local, and when other nodes have their routes
    Cni,
    /// Routes through the BGP speaker and into the kernel, beside BIRD, FRR and GoBGP
    Bgp,
}

#[derive(Args)]
pub(crate) struct BenchArguments {
    #[arg(value_enum, default_value = "cluster")]
    name: Bench,
    /// What else to measure in the same run: kube-apiserver=PATH, kube-proxy=PATH
    #[arg(long)]
    peer: Option<String>,
    /// A seaway-server that is built already
    #[arg(long)]
    server: Option<PathBuf>,
    /// How many nodes; cluster: 3 where nothing is said, cni: 10
    #[arg(long, value_parser = clap::value_parser!(u8).range(2..=i64::from(NODES_MAX)))]
    nodes: Option<u8>,
    /// How often everything is measured
    #[arg(long)]
    rounds: Option<u32>,
    #[command(flatten)]
    apiserver: ApiserverArguments,
    #[command(flatten)]
    services: ServicesArguments,
}

/// What `bench apiserver` takes; `seaway-bench apiserver --help` says more of each.
#[derive(Args)]
struct ApiserverArguments {
    /// apiserver and cluster: where objects are kept
    #[arg(long, value_enum, default_value = "embedded")]
    store: Store,
    /// apiserver: how many pods
    #[arg(long)]
    objects: Option<u32>,
    /// apiserver: how many watchers
    #[arg(long)]
    watchers: Option<u32>,
    /// apiserver: 1 or 2
    #[arg(long)]
    http: Option<String>,
}

/// What `bench services` takes, and `bench programs`; `seaway-bench services --help` says more of each.
#[derive(Args)]
struct ServicesArguments {
    /// services and programs: how many there are, such as 10,1000
    #[arg(long)]
    services: Option<String>,
    /// services: only these parts of path,change; apiserver: of get,list,watch; cni: of calls,routes; bgp: of through,mesh,fib
    #[arg(long)]
    only: Option<String>,
    /// services: seconds of each run
    #[arg(long)]
    seconds: Option<f64>,
    /// services: how many changes of an endpoint
    #[arg(long)]
    changes: Option<u32>,
    /// services, cni and bgp: a seaway-agent that is built already
    #[arg(long)]
    agent: Option<PathBuf>,
    /// services: clients too whose sockets are not served
    #[arg(long)]
    tc: bool,
}

pub(crate) fn bench(arguments: &BenchArguments) -> Result<()> {
    match arguments.name {
        Bench::Cluster => crate::root_only("bench cluster").and_then(|()| {
            crate::cluster::measure(arguments.apiserver.store, arguments.nodes.unwrap_or(CLUSTER_NODES))
        }),
        Bench::Apiserver => apiserver(arguments),
        Bench::Services => crate::root_only("bench services").and_then(|()| services(arguments)),
        Bench::Programs => crate::root_only("bench programs").and_then(|()| programs(arguments)),
        Bench::Cni => crate::root_only("bench cni").and_then(|()| cni(arguments)),
        Bench::Bgp => crate::root_only("bench bgp").and_then(|()| bgp(arguments)),
    }
}

fn apiserver(arguments: &BenchArguments) -> Result<()> {
    let of = &arguments.apiserver;
    if arguments.peer.is_some() || of.store == Store::Etcd {
        install::ensure(&[install::ETCD])?;
    }
    let load = build::optimised(&["bench"], "seaway-bench")?;
    let server = built(arguments.server.as_ref(), "seaway-server")?;
    let mut command = Command::new(load);
    command.arg("apiserver").arg("--server").arg(server).arg("--json").arg(figures("apiserver")?);
    pass(
        &mut command,
        [
            ("--peer", arguments.peer.clone()),
            ("--store", of.store.to_possible_value().map(|value| value.get_name().to_owned())),
            ("--objects", number(of.objects)),
            ("--watchers", number(of.watchers)),
            ("--http", of.http.clone()),
            ("--only", arguments.services.only.clone()),
            ("--rounds", number(arguments.rounds)),
        ],
    );
    run::run(&mut command)
}

fn services(arguments: &BenchArguments) -> Result<()> {
    let of = &arguments.services;
    let has = |part: &str| of.only.as_deref().is_none_or(|only| only.split(',').any(|one| one == part));
    install::ensure(&[install::IP])?;
    if arguments.peer.is_some() {
        install::ensure(&[install::FILTERS])?;
    }
    let mut command = datapath("services")?;
    if has("change") || (has("path") && arguments.peer.is_some()) {
        let server = built(arguments.server.as_ref(), "seaway-server")?;
        command.arg("--server").arg(server);
    }
    if has("change") {
        command.arg("--agent").arg(built(of.agent.as_ref(), "seaway-agent")?);
    }
    if of.tc {
        command.arg("--tc");
    }
    pass(
        &mut command,
        [
            ("--peer", arguments.peer.clone()),
            ("--services", of.services.clone()),
            ("--only", of.only.clone()),
            ("--seconds", number(of.seconds)),
            ("--changes", number(of.changes)),
            ("--rounds", number(arguments.rounds)),
        ],
    );
    run::run(&mut command)
}

fn programs(arguments: &BenchArguments) -> Result<()> {
    install::ensure(&[install::IP])?;
    let mut command = datapath("programs")?;
    pass(&mut command, [("--services", arguments.services.services.clone())]);
    run::run(&mut command)
}

fn cni(arguments: &BenchArguments) -> Result<()> {
    install::ensure(&[install::IP, install::CNI_PLUGINS])?;
    let mut command = datapath("cni")?;
    command.arg("--agent").arg(built(arguments.services.agent.as_ref(), "seaway-agent")?);
    command.arg("--plugin").arg(build::plugin()?);
    let only = &arguments.services.only;
    if only.as_deref().is_none_or(|only| only.split(',').any(|one| one == "routes")) {
        command.arg("--server").arg(built(arguments.server.as_ref(), "seaway-server")?);
    }
    pass(
        &mut command,
        [
            ("--only", only.clone()),
            ("--nodes", number(arguments.nodes)),
            ("--rounds", number(arguments.rounds)),
        ],
    );
    run::run(&mut command)
}

fn bgp(arguments: &BenchArguments) -> Result<()> {
    install::ensure(&[install::IP, install::SPEAKERS])?;
    let mut command = datapath("bgp")?;
    command.arg("--agent").arg(built(arguments.services.agent.as_ref(), "seaway-agent")?);
    let only = ("--only", arguments.services.only.clone());
    pass(&mut command, [only, ("--rounds", number(arguments.rounds))]);
    run::run(&mut command)
}

/// The command that measures `name`, with the BPF object built.
fn datapath(name: &str) -> Result<Command> {
    run::step("building the BPF object", ebpf::build)?;
    let mut command = Command::new(build::optimised(&["bench"], "seaway-bench")?);
    command.arg(name).arg("--json").arg(figures(name)?);
    Ok(command)
}

fn number<T: ToString>(value: Option<T>) -> Option<String> {
    value.map(|value| value.to_string())
}

/// Hands on what was given; the rest has its default there.
fn pass<const N: usize>(command: &mut Command, options: [(&str, Option<String>); N]) {
    for (name, value) in options {
        if let Some(value) = value {
            command.arg(name).arg(value);
        }
    }
}

/// Where the figures of every round go.
fn figures(bench: &str) -> Result<PathBuf> {
    let folder = run::target().join("bench");
    std::fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    Ok(folder.join(format!("{bench}.json")))
}

/// What was given, or what is built now.
fn built(given: Option<&PathBuf>, binary: &str) -> Result<PathBuf> {
    given.map_or_else(|| build::shipped(binary), |path| Ok(path.clone()))
}
