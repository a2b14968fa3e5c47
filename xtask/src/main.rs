//! `cargo xtask`: the commands of the project, one file each. It depends on none of our crates, so that it builds in
//! seconds on a machine that has nothing yet.

mod bench;
mod build;
mod check;
mod cluster;
mod dist;
mod ebpf;
mod emulated;
mod images;
mod install;
mod run;
mod schema;
mod test;
mod tidy;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(
    name = "cargo xtask",
    about = "Builds, runs, tests and measures Seaway",
    disable_help_subcommand = true
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Makes a cluster on this machine, each host a network namespace
    Up(cluster::UpArguments),
    /// Removes every trace of the cluster
    Down,
    /// Shows the hosts of the cluster, their processes and nodes
    Status,
    /// Runs a command on a host of the cluster (a shell where none is given)
    Enter {
        /// sw-server, sw-node1, ...
        host: String,
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<String>,
    },
    /// Runs the tests: all tiers, or one of unit, fuzz, sim, kernel, cluster, emulated
    Test(test::TestArguments),
    /// fmt, clippy, doc and tidy
    Check {
        /// Formats instead of complaining
        #[arg(long)]
        fix: bool,
    },
    /// Measures, as ratios against a peer in the same run
    Bench(bench::BenchArguments),
    /// Derives the schema table from the sources of k8s-openapi and k8s-pb
    Schema {
        /// Compares with the committed table instead of writing it
        #[arg(long)]
        check: bool,
    },
    /// Builds release binaries with the BPF object inside, and systemd units
    Dist {
        /// Where the archive goes
        #[arg(long, default_value = "target/dist")]
        output: PathBuf,
    },
    /// Builds the BPF object
    Ebpf,
    /// Builds the test images
    Images,
    /// The first process of a host of the cluster; `up` starts it
    #[command(hide = true)]
    Host { spec: PathBuf },
    /// The first process of an emulated machine; `test emulated` boots it
    #[command(hide = true)]
    Guest,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match obey(arguments.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            run::say(&format!("\nerror: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn obey(command: Command) -> Result<()> {
    if matches!(command, Command::Guest) {
        return emulated::guest();
    }
    std::env::set_current_dir(run::root())?;
    match command {
        Command::Up(arguments) => root_only("up").and_then(|()| cluster::up(&arguments)),
        Command::Down => root_only("down").and_then(|()| cluster::down()),
        Command::Status => cluster::status(),
        Command::Enter { host, command } => root_only("enter").and_then(|()| cluster::enter(&host, &command)),
        Command::Test(arguments) => test::test(&arguments),
        Command::Check { fix } => check::check(fix),
        Command::Bench(arguments) => bench::bench(&arguments),
        Command::Schema { check } => schema::run(check),
        Command::Dist { output } => dist::dist(&output),
        Command::Ebpf => ebpf::build().map(|object| run::say(&format!("BPF object: {}", object.display()))),
        Command::Images => images::build().map(|_| ()),
        Command::Host { spec } => cluster::host(&spec),
        Command::Guest => emulated::guest(),
    }
}

/// Says at once what is missing, before anything is built.
pub(crate) fn root_only(command: &str) -> Result<()> {
    if nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    bail!(
        "`cargo xtask {command}` makes network namespaces, mounts and cgroups and loads BPF programs: run it as root"
    )
}
