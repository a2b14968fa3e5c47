//! `cargo xtask test`: the tiers in order, each counted, none skipped in silence.

use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};

use crate::cluster::{self, IpFamily, Store, UpArguments};
use crate::emulated::OLDEST;
use crate::{build, ebpf, emulated, install, root_only, run};

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Tier {
    /// Unit and property tests of every crate
    Unit,
    /// Hostile input for every decoder
    Fuzz,
    /// The control plane in one process, without containers
    Sim,
    /// Root, namespaces, the real verifier
    Kernel,
    /// The developer's cluster, on both stores
    Cluster,
    /// The kernel tier's tests of the datapath on Debian's kernels, in emulation; only where it is named
    Emulated,
}

#[derive(Args)]
pub(crate) struct TestArguments {
    /// Only this tier
    #[arg(value_enum)]
    tier: Option<Tier>,
    /// Only tests whose name contains this
    filter: Option<String>,
    /// Only this store in the cluster tier
    #[arg(long, value_enum)]
    store: Option<Store>,
    /// How long each target of the fuzz tier runs
    #[arg(long, default_value_t = 20)]
    fuzz_seconds: u64,
    /// The kernels of the tier emulated, such as 6.12; several by naming it again
    #[arg(long, value_name = "VERSION", default_value = OLDEST)]
    kernel: Vec<String>,
}

/// What test binaries reported.
#[derive(Default)]
pub(crate) struct Count {
    passed: u64,
    pub(crate) failed: u64,
    ignored: u64,
}

pub(crate) fn test(arguments: &TestArguments) -> Result<()> {
    let tiers = match arguments.tier {
        Some(tier) => vec![tier],
        None => vec![Tier::Unit, Tier::Fuzz, Tier::Sim, Tier::Kernel, Tier::Cluster],
    };
    let filter = arguments.filter.as_deref();
    if arguments.tier.is_none() {
        build_all()?;
    }
    let mut rows = Vec::new();
    let mut all = Count::default();
    for tier in tiers {
        let start = Instant::now();
        run::say(&format!("tier {}", tier.name()));
        let count = match tier {
            Tier::Unit => unit(filter),
            Tier::Fuzz => fuzz(arguments.fuzz_seconds, filter),
            Tier::Sim => sim(filter),
            Tier::Kernel => kernel(filter),
            Tier::Cluster => on_clusters(arguments.store, filter),
            Tier::Emulated => emulated::run(&arguments.kernel, filter),
        }?;
        rows.push(format!(
            "{:<8} {:>5} passed {:>4} failed {:>4} ignored {:>7.0} s",
            tier.name(),
            count.passed,
            count.failed,
            count.ignored,
            start.elapsed().as_secs_f64()
        ));
        all.add_all(&count);
    }
    println!("\n{}", rows.join("\n"));
    if arguments.tier.is_none() {
        println!(
            "emulated did not run: `cargo xtask test emulated` boots Linux {OLDEST} and tests the datapath there"
        );
    }
    println!("\n{} passed, {} failed, {} skipped", all.passed, all.failed, all.ignored);
    if all.failed > 0 {
        bail!("{} tests failed", all.failed);
    }
    if all.passed == 0 {
        bail!("no test ran");
    }
    Ok(())
}

impl Tier {
    fn name(self) -> &'static str {
        match self {
            Self::Unit => "unit",
            Self::Fuzz => "fuzz",
            Self::Sim => "sim",
            Self::Kernel => "kernel",
            Self::Cluster => "cluster",
            Self::Emulated => "emulated",
        }
    }
}

/// Builds what all tiers run, in one go: each tier by itself would keep one core busy and the others waiting at its end.
fn build_all() -> Result<()> {
    install::ensure(&[install::ETCD])?;
    run::step("building the BPF object", ebpf::build)?;
    run::step("building the tests of all tiers (the first time takes minutes)", || {
        let mut cargo = run::cargo();
        cargo.args(["test", "--workspace", "--locked", "--no-run", "--lib", "--bins", "--tests"]);
        for tier in [Tier::Fuzz, Tier::Sim, Tier::Kernel, Tier::Cluster] {
            cargo.args(["--test", tier.name()]);
        }
        run::run(&mut cargo)
    })?;
    build::binaries(false).map(drop)
}

fn unit(filter: Option<&str>) -> Result<Count> {
    install::ensure(&[install::ETCD])?;
    run::step("building the BPF object", ebpf::build)?;
    cargo_test(&["--workspace", "--no-fail-fast"], filter, None)
}

fn fuzz(seconds: u64, filter: Option<&str>) -> Result<Count> {
    let mut cargo = command(&["--package", "fuzz", "--test", "fuzz"], filter, None)?;
    cargo.arg("--nocapture").env("SEAWAY_FUZZ_SECONDS", seconds.to_string());
    counted(cargo)
}

fn sim(filter: Option<&str>) -> Result<Count> {
    cargo_test(&["--workspace", "--test", "sim"], filter, None)
}

fn kernel(filter: Option<&str>) -> Result<Count> {
    root_only("test kernel")?;
    install::ensure(&[install::CLUSTER, install::PEERS, install::CNI_PLUGINS, install::FILTERS])?;
    // The agent and the plugin are started as processes.
    let binaries = build::binaries(false)?;
    let mut cargo = command(&["--workspace", "--test", "kernel"], filter, None)?;
    cargo.env("SEAWAY_CNI", &binaries["seaway-cni"]);
    counted(cargo)
}

/// The tests of the cluster tier share one cluster for each store: a cluster is part of what they test.
fn on_clusters(store: Option<Store>, filter: Option<&str>) -> Result<Count> {
    root_only("test cluster")?;
    install::ensure(&[install::CLUSTER, install::IMAGES, install::KUBECTL, install::ETCD, install::PEERS])?;
    let mut all = Count::default();
    for store in store.map_or_else(|| vec![Store::Embedded, Store::Etcd], |store| vec![store]) {
        cluster::up(&UpArguments { nodes: 3, store, ip_family: IpFamily::Dual, release: false })?;
        let count = cargo_test(&["--workspace", "--test", "cluster"], filter, Some(store));
        if count.as_ref().is_ok_and(|count| count.failed == 0) {
            cluster::down()?;
        } else {
            cluster::print_logs()?;
        }
        let count = count?;
        all.add_all(&count);
        if count.failed > 0 {
            break;
        }
    }
    Ok(all)
}

/// Runs cargo test, shows what it prints, and counts the summary lines.
fn cargo_test(arguments: &[&str], filter: Option<&str>, store: Option<Store>) -> Result<Count> {
    counted(command(arguments, filter, store)?)
}

fn command(arguments: &[&str], filter: Option<&str>, store: Option<Store>) -> Result<Command> {
    let mut cargo: Command = run::cargo();
    cargo.args(["test", "--locked"]).args(arguments);
    cargo.args(["--"]).args(filter);
    // One cluster, and one machine's kernel, are shared: these tiers run in order.
    if arguments.contains(&"kernel") || arguments.contains(&"cluster") {
        cargo.arg("--test-threads=1");
    }
    if let Some(store) = store {
        cargo.env("SEAWAY_STORE", if store == Store::Etcd { "etcd" } else { "embedded" });
        cargo.env("SEAWAY_CLUSTER", run::target().join("cluster"));
        cargo.env("SEAWAY_XTASK", std::env::current_exe().context("finding xtask")?);
    }
    Ok(cargo)
}

fn counted(mut cargo: Command) -> Result<Count> {
    use std::io::{BufRead, BufReader};
    let mut child =
        cargo.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("starting cargo test")?;
    let mut count = Count::default();
    let lines = BufReader::new(child.stdout.take().expect("standard output is piped")).lines();
    for line in lines {
        let line = line.context("reading what cargo test prints")?;
        println!("{line}");
        if let Some(summary) = line.strip_prefix("test result: ") {
            count.add(summary);
        }
    }
    let status = child.wait().context("waiting for cargo test")?;
    if !status.success() && count.failed == 0 {
        bail!("{cargo:?} ended with {status} without a failed test: a build error or a crash");
    }
    Ok(count)
}

impl Count {
    /// How many ran.
    pub(crate) fn all(&self) -> u64 {
        self.passed + self.failed
    }

    pub(crate) fn add_all(&mut self, other: &Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.ignored += other.ignored;
    }

    /// Adds `ok. 3 passed; 0 failed; 1 ignored; ...`.
    pub(crate) fn add(&mut self, summary: &str) {
        for part in summary.split(['.', ';']) {
            let words: Vec<&str> = part.split_whitespace().collect();
            if let [number, what] = words.as_slice()
                && let Ok(number) = number.parse::<u64>()
            {
                match *what {
                    "passed" => self.passed += number,
                    "failed" => self.failed += number,
                    "ignored" => self.ignored += number,
                    _ => {}
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Count;

    #[test]
    fn summary_lines_of_cargo_test_are_counted() {
        let mut count = Count::default();
        count.add("ok. 3 passed; 0 failed; 1 ignored; 0 measured; 2 filtered out; finished in 0.00s");
        count.add("FAILED. 2 passed; 4 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.10s");
        assert_eq!((count.passed, count.failed, count.ignored), (5, 4, 1));
    }
}
