//! What runs, and a way onto a host.

use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::{
    host,
    layout::{self, Cluster},
};
use crate::run;

#[expect(clippy::print_stdout, reason = "the table is what was asked for")]
pub(crate) fn status() -> Result<()> {
    let state = layout::state();
    let Ok(cluster) = Cluster::load() else {
        println!("no cluster: `cargo xtask up --nodes 3` makes one");
        return Ok(());
    };
    println!(
        "{} nodes, store {}, API at https://127.0.0.1:{}",
        cluster.nodes, cluster.store, cluster.api_port
    );
    println!("kubeconfig {}", state.join("kubeconfig").display());
    println!("{:<12} {:<16} {:>8} {:>9} {:>8}", "HOST", "PROCESS", "PID", "RSS MB", "CPU s");
    let mut hosts = vec![layout::FABRIC.to_owned(), layout::SERVER.to_owned()];
    hosts.extend((1..=cluster.nodes).map(layout::node_name));
    for host in hosts {
        let mut files: Vec<_> = std::fs::read_dir(state.join(&host))
            .with_context(|| format!("reading the folder of {host}"))?
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "pid"))
            .collect();
        files.sort();
        for file in files {
            let name = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            let pid = std::fs::read_to_string(&file).unwrap_or_default();
            match usage(pid.trim()) {
                Some((megabytes, seconds)) => {
                    println!("{host:<12} {name:<16} {:>8} {megabytes:>9.1} {seconds:>8.1}", pid.trim());
                }
                None => println!("{host:<12} {name:<16} {:>8} not running", pid.trim()),
            }
        }
    }
    let kubectl = run::which("kubectl").map(|kubectl| {
        run::output(
            Command::new(kubectl)
                .arg("--kubeconfig")
                .arg(state.join("kubeconfig"))
                .args(["get", "nodes", "-o", "wide"]),
        )
    });
    match kubectl {
        Some(Ok(nodes)) => println!("\n{nodes}"),
        Some(Err(error)) => println!("\nthe API does not answer: {error:#}"),
        None => {}
    }
    Ok(())
}

/// Resident memory in MB and CPU time in seconds.
pub(super) fn usage(pid: &str) -> Option<(f64, f64)> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let kilobytes: f64 = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))?
        .trim()
        .trim_end_matches(" kB")
        .parse()
        .ok()?;
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<&str> = stat.rsplit(") ").next()?.split(' ').collect();
    let ticks: f64 = fields.get(11)?.parse::<f64>().ok()? + fields.get(12)?.parse::<f64>().ok()?;
    Some((kilobytes / 1024.0, ticks / 100.0))
}

/// Replaces this process by `command` in the namespaces of `host`.
pub(crate) fn enter(host: &str, command: &[String]) -> Result<()> {
    let mut nsenter = enter_command(host)?;
    if host != layout::FABRIC {
        // As a process of the host, whose sockets its programs see.
        host::join_cgroup(host)?;
    }
    if command.is_empty() {
        nsenter.arg("/bin/sh");
    }
    Err(nsenter.args(command).exec()).context("starting nsenter")
}

/// `nsenter` into the namespaces of `host`; the caller appends what to run.
pub(super) fn enter_command(host: &str) -> Result<Command> {
    let mut nsenter = Command::new("nsenter");
    if host == layout::FABRIC {
        nsenter.arg(format!("--net={}", layout::netns_path(host).display())).arg("--");
        return Ok(nsenter);
    }
    if !layout::is_ours(host) {
        bail!("{host} is no host of the cluster; they are sw-fabric, sw-server, sw-node1, ...");
    }
    let path = layout::state().join(host).join("host.pid");
    let pid = std::fs::read_to_string(&path)
        .with_context(|| format!("{host} does not run (no {})", path.display()))?;
    nsenter.args(["--target", pid.trim(), "--net", "--mount", "--uts", "--"]);
    Ok(nsenter)
}

/// The end of every log, for the reader of a failed run.
pub(crate) fn print_logs() -> Result<()> {
    const LINES: usize = 60;
    let folder = layout::state().join("logs");
    let Ok(entries) = std::fs::read_dir(&folder) else { return Ok(()) };
    let mut files: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    files.sort();
    for file in files {
        let text = std::fs::read(&file).with_context(|| format!("reading {}", file.display()))?;
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        let tail = &lines[lines.len().saturating_sub(LINES)..];
        run::say(&format!("---- the end of {}\n{}", file.display(), tail.join("\n")));
    }
    Ok(())
}
