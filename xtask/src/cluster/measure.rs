//! Figures of a running cluster, for the README's table: release binaries, one run.

mod routes;

use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::layout::{self, IpFamily, SERVER, node_name};
use super::status::usage;
use super::up::{Store, UpArguments, kubectl, up};
use crate::run;

const PODS: usize = 20;
const IDLE: Duration = Duration::from_secs(30);

#[expect(clippy::print_stdout, reason = "the table is what was asked for")]
pub(crate) fn measure(store: Store, nodes: u8) -> Result<()> {
    up(&UpArguments { nodes, store, ip_family: IpFamily::Dual, release: true })?;
    run::say("    letting the cluster come to rest");
    std::thread::sleep(Duration::from_secs(10));
    let mut processes = vec![(SERVER.to_owned(), "server")];
    processes.extend((1..=nodes).map(|index| (node_name(index), "agent")));
    if store == Store::Etcd {
        processes.push((SERVER.to_owned(), "etcd"));
    }
    let mut agents = idle(&processes)?;
    let server = agents.remove(0);
    let etcd = if store == Store::Etcd { agents.pop() } else { None };
    let ready = run::step(&format!("starting {PODS} pods, one after the other"), apply_to_ready)?;
    let routes =
        run::step("filling the nodes, so that they announce more blocks", || routes::measure(nodes))?;
    let agent_memory = median(agents.iter().map(|(memory, _)| *memory).collect());
    let agent_cpu = median(agents.iter().map(|(_, cpu)| *cpu).collect());
    println!("\n| figure | value |\n|---|---|");
    println!("| seaway-server, resident memory, {nodes} idle nodes | {:.1} MB |", server.0);
    println!("| seaway-server, idle CPU | {:.2} % of one core |", server.1);
    if let Some((memory, cpu)) = etcd {
        println!("| etcd beside it, resident memory | {memory:.1} MB |");
        println!("| etcd beside it, idle CPU | {cpu:.2} % of one core |");
    }
    println!("| seaway-agent with kubelet, resident memory | {agent_memory:.1} MB |");
    println!("| seaway-agent with kubelet, idle CPU | {agent_cpu:.2} % of one core |");
    println!("| `kubectl apply` of one pod to Ready, median of {PODS} | {:.0} ms |", median(ready));
    for (figure, value) in routes.rows() {
        println!("| {figure} | {value} |");
    }
    Ok(())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Of each process: resident megabytes, and CPU in percent of one core over a quiet while.
fn idle(processes: &[(String, &str)]) -> Result<Vec<(f64, f64)>> {
    let read = || {
        processes
            .iter()
            .map(|(host, process)| {
                let file = layout::state().join(host).join(format!("{process}.pid"));
                let pid =
                    std::fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
                usage(pid.trim()).with_context(|| format!("{process} of {host} does not run"))
            })
            .collect::<Result<Vec<_>>>()
    };
    let before = read()?;
    std::thread::sleep(IDLE);
    let after = read()?;
    let used = |(before, after): (&(f64, f64), &(f64, f64))| {
        (after.0, (after.1 - before.1) / IDLE.as_secs_f64() * 100.0)
    };
    Ok(before.iter().zip(&after).map(used).collect())
}

/// Milliseconds from the start of `kubectl apply` to the condition Ready, for each pod.
fn apply_to_ready() -> Result<Vec<f64>> {
    let folder = layout::state().join("measure");
    std::fs::create_dir_all(&folder).context("making a folder for manifests")?;
    let mut times = Vec::new();
    for index in 0..PODS {
        let name = format!("measure-{index}");
        let manifest = folder.join(format!("{name}.yaml"));
        let text = format!(
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\nspec:\n  terminationGracePeriodSeconds: 0\n  containers:\n  - name: web\n    image: nginx:1.22\n"
        );
        std::fs::write(&manifest, text).context("writing a manifest")?;
        let manifest = manifest.display().to_string();
        let start = Instant::now();
        kubectl(&["apply", "-f", &manifest])?;
        kubectl(&["wait", "--for=condition=Ready", "--timeout=30s", &format!("pod/{name}")])?;
        times.push(start.elapsed().as_secs_f64() * 1000.0);
        kubectl(&["delete", "-f", &manifest, "--wait=true"])?;
    }
    Ok(times)
}
