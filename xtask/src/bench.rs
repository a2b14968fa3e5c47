//! `cargo xtask bench`: what the README's figures come from.

use anyhow::Result;
use clap::{Args, ValueEnum};

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Bench {
    /// Resident memory, idle CPU, apply to Ready, a new block to its routes
    Cluster,
}

#[derive(Args)]
pub(crate) struct BenchArguments {
    #[arg(value_enum, default_value = "cluster")]
    name: Bench,
}

pub(crate) fn bench(arguments: &BenchArguments) -> Result<()> {
    match arguments.name {
        Bench::Cluster => crate::cluster::measure(),
    }
}
