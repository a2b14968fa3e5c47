//! Building our binaries and finding them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::{ebpf, run};

/// The binaries that a host of the cluster runs.
pub(crate) const BINARIES: &[&str] = &["seaway-server", "seaway-agent", "seaway", "seaway-cni"];

/// The packages that they are in.
const PACKAGES: &[&str] = &["control-plane", "agent", "cli", "cni"];

/// Builds the BPF object and every binary; returns where each is, by name.
pub(crate) fn binaries(release: bool) -> Result<BTreeMap<String, PathBuf>> {
    run::step("building the BPF object", ebpf::build)?;
    let profile = if release { "release" } else { "dev" };
    let what = format!("building the binaries ({profile} profile; the first time takes minutes)");
    run::step(&what, || compile(release.then_some(PACKAGES), BINARIES))
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
    let output = cargo.stdin(Stdio::null()).stderr(Stdio::inherit()).output().context("starting cargo")?;
    if !output.status.success() {
        bail!("cargo build ended with {}", output.status);
    }
    let built = executables(&String::from_utf8_lossy(&output.stdout));
    for binary in binaries {
        if !built.contains_key(*binary) {
            bail!("cargo named no executable for {binary}");
        }
    }
    Ok(built)
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
