//! Figures of a running cluster, for the README's table: release binaries, one run.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::json;

use super::layout::{self, SERVER, node_name};
use super::status::{enter_command, usage};
use super::up::{Store, UpArguments, kubectl, until, up};
use crate::run;

const NODES: u8 = 3;
const PODS: usize = 20;
const IDLE: Duration = Duration::from_secs(30);
const POD_WITHIN: Duration = Duration::from_secs(30);

#[expect(clippy::print_stdout, reason = "the table is what was asked for")]
pub(crate) fn measure() -> Result<()> {
    up(&UpArguments { nodes: NODES, store: Store::Embedded, release: true })?;
    run::say("    letting the cluster come to rest");
    std::thread::sleep(Duration::from_secs(10));
    let mut processes = vec![(SERVER.to_owned(), "server")];
    processes.extend((1..=NODES).map(|index| (node_name(index), "agent")));
    let mut agents = idle(&processes)?;
    let server = agents.remove(0);
    let ready = run::step(&format!("starting {PODS} pods, one after the other"), apply_to_ready)?;
    let route = run::step("filling a block, so that its node announces another", add_to_route)?;
    let agent_memory = median(agents.iter().map(|(memory, _)| *memory).collect());
    let agent_cpu = median(agents.iter().map(|(_, cpu)| *cpu).collect());
    println!("\n| figure | value |\n|---|---|");
    println!("| seaway-server, resident memory, {NODES} idle nodes | {:.1} MB |", server.0);
    println!("| seaway-server, idle CPU | {:.2} % of one core |", server.1);
    println!("| seaway-agent with kubelet, resident memory | {agent_memory:.1} MB |");
    println!("| seaway-agent with kubelet, idle CPU | {agent_cpu:.2} % of one core |");
    println!("| `kubectl apply` of one pod to Ready, median of {PODS} | {:.0} ms |", median(ready));
    println!("| a new block's confirmation to its route in the kernel of every other node | {route:.2} ms |");
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

/// Milliseconds from a new block's blackhole on its owner to the last route to it on the other nodes, taken from the
/// kernels' own notifications (`ip -ts monitor`). A pod of a block that is announced already waits for nothing: its
/// route is there before its ADD.
fn add_to_route() -> Result<f64> {
    let mut monitors = BTreeMap::new();
    for index in 1..=NODES {
        let host = node_name(index);
        let log = layout::state().join("measure").join(format!("{host}.monitor"));
        let file = std::fs::File::create(&log).context("making a monitor's log")?;
        let child = enter_command(&host)?
            .args(["ip", "-ts", "monitor", "link", "route"])
            .stdout(file)
            .spawn()
            .context("starting ip monitor")?;
        monitors.insert(host, (child, log));
    }
    let result = fill_a_block();
    for (child, _) in monitors.values_mut() {
        child.kill().context("ending ip monitor")?;
        child.wait().context("waiting for ip monitor")?;
    }
    result?;
    let logs = monitors
        .iter()
        .map(|(host, (_, log))| {
            Ok((host.clone(), std::fs::read_to_string(log).context("reading a monitor's log")?))
        })
        .collect::<Result<BTreeMap<_, _>>>()?;
    newest_block(&logs)
}

/// More pods on one node than a block of 64 holds, so that the node claims another block.
fn fill_a_block() -> Result<()> {
    let manifest = layout::state().join("measure/fill.json");
    let labels = json!({"app": "measure-fill"});
    let spec = json!({
        "nodeName": node_name(1),
        "terminationGracePeriodSeconds": 0,
        "containers": [{"name": "pause", "image": "registry.k8s.io/pause:3.10"}],
    });
    let deployment = json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "measure-fill"},
        "spec": {
            "replicas": 70,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": spec},
        },
    });
    std::fs::write(&manifest, deployment.to_string()).context("writing a manifest")?;
    kubectl(&["apply", "-f", &manifest.display().to_string()])?;
    until(Duration::from_secs(180), "70 pods on one node", || {
        let ready =
            kubectl(&["get", "deployment", "measure-fill", "-o", "jsonpath={.status.readyReplicas}"])?;
        Ok(ready == "70")
    })?;
    kubectl(&["delete", "deployment", "measure-fill"])?;
    until(POD_WITHIN * 4, "the pods to go", || {
        Ok(kubectl(&["get", "pods", "-l", "app=measure-fill", "-o", "name"])?.is_empty())
    })
}

/// The time between the first appearance of the newest block's blackhole on its owner and its last appearance as a
/// route elsewhere.
fn newest_block(logs: &BTreeMap<String, String>) -> Result<f64> {
    let owner = &logs[&node_name(1)];
    let (claimed, block) = events(owner)
        .filter_map(|(time, text)| {
            Some((time, text.strip_prefix("blackhole ")?.split(' ').next()?.to_owned()))
        })
        .last()
        .context("the node claimed no second block")?;
    let mut last = claimed;
    for (host, log) in logs.iter().filter(|(host, _)| **host != node_name(1)) {
        let seen = events(log).find(|(_, text)| text.starts_with(&format!("{block} ")));
        let Some((time, _)) = seen else { bail!("{host} has seen no route to {block}") };
        last = last.max(time);
    }
    Ok((last - claimed) * 1000.0)
}

/// Lines `[2026-01-31T10:20:30.123456] text` as seconds of the day and text.
fn events(log: &str) -> impl Iterator<Item = (f64, &str)> {
    log.lines().filter_map(|line| {
        let (stamp, text) = line.strip_prefix('[')?.split_once("] ")?;
        let mut parts =
            stamp.split_once('T')?.1.split(':').map(|part| part.parse::<f64>().unwrap_or_default());
        let seconds = parts.next()? * 3600.0 + parts.next()? * 60.0 + parts.next()?;
        Some((seconds, text))
    })
}

#[cfg(test)]
mod tests {
    use super::events;

    #[test]
    fn monitor_lines_carry_their_time() {
        let log = "[2026-01-31T10:00:01.500000] 10.244.0.64/26 via 10.89.0.12 dev eth0 proto 180\nnoise\n";
        let found: Vec<_> = events(log).collect();
        assert_eq!(found.len(), 1);
        assert!((found[0].0 - 36001.5).abs() < 1e-6);
    }
}
