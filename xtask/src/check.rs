//! `cargo xtask check`: what every commit must pass.

use anyhow::Result;

use crate::{ebpf, run, schema, tidy};

pub(crate) fn check(fix: bool) -> Result<()> {
    run::step("fmt", || {
        let mut fmt = run::cargo();
        fmt.args(["fmt", "--all"]);
        if !fix {
            fmt.arg("--check");
        }
        run::run(&mut fmt)
    })?;
    run::step("tidy", tidy::tidy)?;
    run::step("the schema table equals its sources", || schema::run(true))?;
    run::step("building the BPF object", ebpf::build)?;
    run::step("clippy", || clippy(&["--all-targets"]))?;
    // Tiers that a plain `cargo test` leaves out are no part of all targets.
    run::step("clippy of the tiers", || {
        clippy(&["--test", "sim", "--test", "kernel", "--test", "cluster", "--test", "fuzz"])
    })?;
    run::step("doc", || {
        let mut doc = run::cargo();
        doc.args(["doc", "--workspace", "--no-deps", "--locked", "--document-private-items"]);
        run::run(doc.env("RUSTDOCFLAGS", "-D warnings"))
    })?;
    run::say("check: all well");
    Ok(())
}

fn clippy(targets: &[&str]) -> Result<()> {
    run::run(
        run::cargo().args(["clippy", "--workspace", "--locked"]).args(targets).args(["--", "-D", "warnings"]),
    )
}
