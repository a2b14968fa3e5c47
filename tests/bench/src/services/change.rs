//! From a write to the API to the first connection that uses it, from a cold start to complete maps, and what memory
//! the real agent needs for them.

use std::{
    collections::HashSet,
    io::{BufRead as _, BufReader, Write as _},
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    process::{ChildStdin, ChildStdout, Command},
    sync::mpsc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use dataplane::maps::PinnedMap;
use ebpf_common::{Address, Frontend, FrontendKey, Port, Protocol, maps};
use nix::mount::{MntFlags, umount2};

use super::{
    Options,
    api::{Api, last_lines},
    ground::Ground,
    lab::{Lab, Owner, own_program},
    load::{Mode, monotonic_ns},
    objects::{self, ENDPOINTS, Place},
    path::Subject,
    report::Report,
};
use crate::{process::Process, say};

/// No change takes longer.
const CHANGE_TIME_MAX: Duration = Duration::from_secs(120);
/// Changes of one subject; a slow one gets fewer of them.
const CHANGES_TIME_MAX: Duration = Duration::from_secs(120);
const COLD_START_TIME_MAX: Duration = Duration::from_secs(120);
/// Memory is read this long after a start, when what starting took is given back.
const SETTLED: Duration = Duration::from_secs(3);
const PAUSE: Duration = Duration::from_millis(1);
/// Keys that are looked for before all are.
const SAMPLES: usize = 64;

/// Times from just before the request is sent to the answer on the first connection that went to the new endpoint.
pub(crate) fn measure(options: &Options, api: &mut Api, lab: &Lab, services: u32) -> Result<Vec<Duration>> {
    say(&format!("    {}: changing an endpoint at {services} Services", lab.name));
    let mut watcher = Watcher::start(lab)?;
    api.change_endpoint(0)?;
    watcher.wait_for(0)?;
    watcher.seen()?;
    let began = Instant::now();
    let mut times = Vec::new();
    for number in 1..=options.changes {
        let pod = number % ENDPOINTS;
        watcher.wait_for(pod)?;
        let asked_ns = monotonic_ns();
        api.change_endpoint(pod)?;
        let seen_ns = watcher.seen()?;
        times.push(Duration::from_nanos(seen_ns.saturating_sub(asked_ns)));
        if began.elapsed() > CHANGES_TIME_MAX {
            break;
        }
    }
    Ok(times)
}

/// A client in its pod that says when it first reached a pod.
struct Watcher {
    _process: Process,
    input: ChildStdin,
    lines: mpsc::Receiver<String>,
}

impl Watcher {
    fn start(lab: &Lab) -> Result<Self> {
        let mut command = own_program()?;
        let target = objects::changing_address().to_string();
        command.args(["load-client", "--watch", "--mode", Mode::TcpConnect.word(), "--target", &target]);
        let mut process = lab.spawn_client(command, true)?;
        let (input, output) = process.pipes().context("the client's input and output are pipes")?;
        Ok(Self { _process: process, input, lines: lines_of(output) })
    }

    fn wait_for(&mut self, pod: u32) -> Result<()> {
        self.input.write_all(format!("{pod}\n").as_bytes()).context("telling the client what to wait for")
    }

    /// CLOCK_MONOTONIC.
    fn seen(&self) -> Result<u64> {
        let limit = CHANGE_TIME_MAX.as_secs();
        let line = self
            .lines
            .recv_timeout(CHANGE_TIME_MAX)
            .with_context(|| format!("no connection reached the new endpoint within {limit} s"))?;
        line.trim().parse().with_context(|| format!("the client said {line:?}"))
    }
}

fn lines_of(output: ChildStdout) -> mpsc::Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}

/// The real agent at one size: cold starts, memory, changes.
pub(crate) fn agent(
    ground: &Ground,
    options: &Options,
    api: &mut Api,
    services: u32,
    report: &mut Report,
) -> Result<()> {
    let program = options.agent.as_deref().context("changes are measured with --agent PATH")?;
    let lab = Lab::new(ground, "agent", Owner::Agent)?;
    api.join(&lab)?;
    for round in 1..=options.rounds {
        say(&format!("    cold start of the agent with {services} Services, {round} of {}", options.rounds));
        let mut agent = Agent::start(ground, api, &lab, program, &format!("{services}-{round}"))?;
        report.cold_start(services, Subject::Seaway, agent.complete(services)?);
        if round < options.rounds {
            continue;
        }
        std::thread::sleep(SETTLED);
        let (resident, proportional) = agent.memory()?;
        report.memory(services, Subject::Seaway, resident, Some(proportional));
        let times = measure(options, api, &lab, services);
        let times = times.with_context(|| last_lines(&agent.folder.join("agent.log")))?;
        report.changes(services, Subject::Seaway, times);
    }
    Ok(())
}

struct Agent {
    process: Process,
    folder: PathBuf,
    began: Instant,
}

impl Agent {
    fn start(ground: &Ground, api: &Api, lab: &Lab, program: &Path, name: &str) -> Result<Self> {
        let node = &lab.nodes[0];
        let folder = ground.folder().join(format!("agent-{name}"));
        std::fs::create_dir_all(&folder).context("making the agent's folder")?;
        let kubeconfig = api.kubeconfig(&format!("system:node:{}", node.name), "system:nodes")?;
        let mut command = Command::new(program);
        command.args(["--node-name", node.name, "--node-ip", &node.address.to_string()]);
        command.args(["--no-kubelet", "--no-dns", "--service-cidr", objects::SERVICE_CIDR]);
        command.arg("--kubeconfig").arg(kubeconfig);
        // Served are the processes in the parent of what is named.
        let pods = ground.cgroup_from_root(&node.cgroup.join("kubepods"))?;
        command.args(["--cgroup-parent", &pods]);
        for (option, below) in
            [("--state-dir", "state"), ("--run-dir", "run"), ("--cni-conf-dir", "cni"), ("--bpf-dir", "bpf")]
        {
            command.arg(option).arg(folder.join(below));
        }
        // Beside what it serves, as the agent of a node is.
        node.namespace.place(&mut command, &node.cgroup)?;
        let began = Instant::now();
        let process = Process::start_logged(command, &folder.join("agent.log"))
            .with_context(|| format!("starting {}", program.display()))?;
        Ok(Self { process, folder, began })
    }

    /// How long it took from the start until every frontend is in its map; slots and backends are written before.
    fn complete(&mut self, services: u32) -> Result<Duration> {
        let wanted = frontends(services);
        let step = (wanted.len() / SAMPLES).max(1);
        let directory = self.folder.join("bpf/maps");
        loop {
            if self.began.elapsed() > COLD_START_TIME_MAX {
                let log = last_lines(&self.folder.join("agent.log"));
                let limit = COLD_START_TIME_MAX.as_secs();
                bail!(
                    "{} in {} is not complete after {limit} s; {log}",
                    maps::FRONTENDS,
                    directory.display()
                );
            }
            self.process.check().with_context(|| last_lines(&self.folder.join("agent.log")))?;
            // Not there before the agent has made it.
            if let Ok(map) = PinnedMap::<FrontendKey, Frontend>::open(&directory, maps::FRONTENDS)
                && wanted.iter().step_by(step).all(|key| matches!(map.get(key), Ok(Some(_))))
            {
                let seen = self.began.elapsed();
                let found: HashSet<FrontendKey> = map.read_all()?.into_iter().map(|(key, _)| key).collect();
                if wanted.iter().all(|key| found.contains(key)) {
                    return Ok(seen);
                }
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// Resident memory, and the part of it that is not shared, in MB.
    fn memory(&self) -> Result<(f64, f64)> {
        let path = format!("/proc/{}/smaps_rollup", self.process.id());
        let text = std::fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            let kilobytes = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<f64>().ok());
            kilobytes.map(|kilobytes| kilobytes / 1024.0).with_context(|| format!("{path} has no {name}"))
        };
        Ok((field("Rss:")?, field("Pss:")?))
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.process.kill();
        // With it goes what is pinned: the next one starts cold.
        let _ = umount2(&self.folder.join("bpf"), MntFlags::MNT_DETACH);
    }
}

fn frontends(services: u32) -> Vec<FrontendKey> {
    let key =
        |at: SocketAddr, protocol| FrontendKey::new(Address::from(at.ip()), Port::new(at.port()), protocol);
    let service =
        |index| SocketAddr::from((IpAddr::V4(objects::service_address(index)), objects::SERVICE_PORT));
    let mut keys: Vec<FrontendKey> = (0..services).map(|index| key(service(index), Protocol::TCP)).collect();
    let measured = Place::ALL.iter().flat_map(|place| objects::measured(services, *place));
    keys.extend(measured.map(|at| key(at, Protocol::UDP)));
    keys.push(key(objects::changing_address(), Protocol::TCP));
    keys
}
