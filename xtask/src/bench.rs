//! `cargo xtask bench`: what the README's figures come from.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};

use crate::{build, install, run};

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Bench {
    /// Resident memory, idle CPU, apply to Ready, a new block to its routes
    Cluster,
    /// CPU per request, latency and memory of the API server, beside a peer
    Apiserver,
}

#[derive(Args)]
pub(crate) struct BenchArguments {
    #[arg(value_enum, default_value = "cluster")]
    name: Bench,
    #[command(flatten)]
    apiserver: ApiserverArguments,
}

/// What `bench apiserver` takes; `seaway-bench --help` says more of each.
#[derive(Args)]
struct ApiserverArguments {
    /// apiserver: what else to measure in the same run, kube-apiserver=PATH
    #[arg(long)]
    peer: Option<String>,
    /// apiserver: a seaway-server that is built already
    #[arg(long)]
    server: Option<PathBuf>,
    /// apiserver: embedded or etcd
    #[arg(long)]
    store: Option<String>,
    /// apiserver: how many pods
    #[arg(long)]
    objects: Option<u32>,
    /// apiserver: how many watchers
    #[arg(long)]
    watchers: Option<u32>,
    /// apiserver: 1 or 2
    #[arg(long)]
    http: Option<String>,
    /// apiserver: how often each server is started and measured
    #[arg(long)]
    rounds: Option<u32>,
}

pub(crate) fn bench(arguments: &BenchArguments) -> Result<()> {
    match arguments.name {
        Bench::Cluster => crate::root_only("bench cluster").and_then(|()| crate::cluster::measure()),
        Bench::Apiserver => apiserver(&arguments.apiserver),
    }
}

fn apiserver(arguments: &ApiserverArguments) -> Result<()> {
    if arguments.peer.is_some() || arguments.store.as_deref() == Some("etcd") {
        install::ensure(&[install::ETCD])?;
    }
    let load = release("bench", "seaway-bench")?;
    let server = match &arguments.server {
        Some(path) => path.clone(),
        None => release("control-plane", "seaway-server")?,
    };
    let folder = run::target().join("bench");
    std::fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    let mut command = Command::new(load);
    command.arg("--server").arg(server).arg("--json").arg(folder.join("apiserver.json"));
    let number = |value: Option<u32>| value.map(|value| value.to_string());
    for (name, value) in [
        ("--peer", arguments.peer.clone()),
        ("--store", arguments.store.clone()),
        ("--objects", number(arguments.objects)),
        ("--watchers", number(arguments.watchers)),
        ("--http", arguments.http.clone()),
        ("--rounds", number(arguments.rounds)),
    ] {
        if let Some(value) = value {
            command.arg(name).arg(value);
        }
    }
    run::run(&mut command)
}

/// Builds one optimised binary of one package.
fn release(package: &str, binary: &str) -> Result<PathBuf> {
    run::step(&format!("building {binary} (release profile; the first time takes minutes)"), || {
        let mut cargo = run::cargo();
        cargo.args(["build", "--release", "--message-format", "json-render-diagnostics"]);
        cargo.args(["--package", package, "--bin", binary]);
        let output =
            cargo.stdin(Stdio::null()).stderr(Stdio::inherit()).output().context("starting cargo")?;
        if !output.status.success() {
            bail!("cargo build ended with {}", output.status);
        }
        let mut built = build::executables(&String::from_utf8_lossy(&output.stdout));
        built.remove(binary).with_context(|| format!("cargo named no executable for {binary}"))
    })
}
