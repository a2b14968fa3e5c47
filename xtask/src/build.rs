//! Building our binaries and finding them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::{ebpf, run};

/// The binaries that a host of the cluster runs, but the plugin.
const BINARIES: &[&str] = &["seaway-server", "seaway-agent", "seaway"];

/// The packages that they are in.
const PACKAGES: &[&str] = &["control-plane", "agent", "cli"];

const PLUGIN: &str = "seaway-cni";

/// Builds the BPF object and every binary; returns where each is, by name.
pub(crate) fn binaries(release: bool) -> Result<BTreeMap<String, PathBuf>> {
    run::step("building the BPF object", ebpf::build)?;
    let profile = if release { "release" } else { "dev" };
    let what = format!("building the binaries ({profile} profile; the first time takes minutes)");
    let mut built = run::step(&what, || compile(release.then_some(PACKAGES), BINARIES))?;
    built.insert(PLUGIN.to_owned(), plugin()?);
    Ok(built)
}

/// Builds the CNI plugin; returns where it is. It runs for a millisecond at each call, most of which would be the
/// search for libraries, and the move of the program to where it was put: so it is static and has its place.
pub(crate) fn plugin() -> Result<PathBuf> {
    run::step("building the CNI plugin", || {
        let mut built = in_static("cni")?;
        built.remove(PLUGIN).with_context(|| format!("cargo named no executable for {PLUGIN}"))
    })
}

/// Builds the static programs of a package; returns where each is, by name.
pub(crate) fn in_static(package: &str) -> Result<BTreeMap<String, PathBuf>> {
    let triple = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let mut cargo = run::cargo();
    cargo
        .args(["build", "--package", package, "--bins", "--profile", "image", "--target", &triple])
        .args(["--message-format", "json-render-diagnostics", "--target-dir"])
        .arg(run::target().join("images-build"))
        .env("RUSTFLAGS", "-C target-feature=+crt-static -C relocation-model=static");
    executables_of(cargo)
}

/// Builds one optimised binary, the same that is shipped; returns where it is.
pub(crate) fn shipped(binary: &str) -> Result<PathBuf> {
    optimised(PACKAGES, binary)
}

/// Builds one optimised binary with the features of dependencies that these packages ask for; returns where it is.
pub(crate) fn optimised(packages: &[&str], binary: &str) -> Result<PathBuf> {
    run::step(&format!("building {binary} (release profile; the first time takes minutes)"), || {
        let mut built = compile(Some(packages), &[binary])?;
        built.remove(binary).with_context(|| format!("cargo named no executable for {binary}"))
    })
}

/// Optimised where packages are named.
fn compile(packages: Option<&[&str]>, binaries: &[&str]) -> Result<BTreeMap<String, PathBuf>> {
    let mut cargo = run::cargo();
    cargo.args(["build", "--message-format", "json-render-diagnostics"]);
    match packages {
        // Nothing that only tests ask of a dependency; and the same for one binary as for all, so that what is built
        // is used again.
        Some(packages) => {
            cargo.arg("--release");
            for package in packages {
                cargo.args(["--package", package]);
            }
        }
        // The whole workspace decides the features of dependencies, so that the tests reuse what is built here.
        None => {
            cargo.arg("--workspace");
        }
    }
    for binary in binaries {
        cargo.args(["--bin", binary]);
    }
    let built = executables_of(cargo)?;
    for binary in binaries {
        if !built.contains_key(*binary) {
            bail!("cargo named no executable for {binary}");
        }
    }
    Ok(built)
}

/// Runs a build that writes JSON messages; the executables by target name.
fn executables_of(mut cargo: Command) -> Result<BTreeMap<String, PathBuf>> {
    let output = cargo.stdin(Stdio::null()).stderr(Stdio::inherit()).output().context("starting cargo")?;
    if !output.status.success() {
        bail!("cargo build ended with {}", output.status);
    }
    Ok(executables(&String::from_utf8_lossy(&output.stdout)))
}

/// Executables by target name, out of cargo's JSON messages.
pub(crate) fn executables(messages: &str) -> BTreeMap<String, PathBuf> {
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter_map(|message| {
            let executable = message["executable"].as_str()?;
            Some((message["target"]["name"].as_str()?.to_owned(), PathBuf::from(executable)))
        })
        .collect()
}
