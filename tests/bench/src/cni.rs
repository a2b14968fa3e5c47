//! `seaway-bench cni`: what adding and deleting a pod takes beside Debian's ptp with host-local, by one runner.
//!
//! Everything is in network namespaces of this process: a node with an agent that has blocks and no API server, and a
//! namespace per pod, made before it is added. A call is what a runtime does: the plugin as a process, its environment,
//! its configuration on standard input, until it has ended. The two take turns, so that what else the machine does meets
//! both. CPU time is of the plugin and all it starts, and of the agent. Then [`routes`], on several nodes.

mod report;
mod routes;
mod runner;
mod told;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Barrier,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use clap::{Args, ValueEnum};
use dataplane::links::Links;
use serde_json::json;

use self::{
    report::{Figures, Report},
    runner::{Call, Plugin, Pod},
};
use crate::{
    process::Process,
    say,
    services::ground::{self, Ground, NetNs},
};

const READY_TIME_MAX: Duration = Duration::from_secs(20);
const GONE_TIME_MAX: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_millis(1);
const NODE_IP: &str = "192.0.2.1";
const POOL: &str = "10.244.0.0/16";
/// The node's blocks, so that no pod waits for one: addresses of the pods that are deleted rest for a while.
const BLOCKS: u64 = 16;
/// An API server that nobody is: what an agent knows from its disk and command line is enough.
pub(crate) const KUBECONFIG: &str = "apiVersion: v1
kind: Config
current-context: none
clusters:
- name: none
  cluster: {server: 'http://127.0.0.1:1'}
users:
- name: none
contexts:
- name: none
  context: {cluster: none, user: none}
";

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// What ADD and DEL take, beside the peers
    Calls,
    /// How long pods wait for their routes on other nodes
    Routes,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct Options {
    /// seaway-agent
    #[arg(long)]
    agent: PathBuf,
    /// seaway-server, for the routes
    #[arg(long)]
    server: Option<PathBuf>,
    /// Only these parts
    #[arg(long, value_enum, value_delimiter = ',', default_value = "calls,routes")]
    only: Vec<Part>,
    /// Routes: how many nodes
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(2..=100))]
    nodes: u32,
    /// Routes: how many pods of each node are added one by one
    #[arg(long, default_value_t = 150, value_parser = clap::value_parser!(u32).range(1..=1000))]
    per_node: u32,
    /// Routes: milliseconds from one pod to the next, of all nodes
    #[arg(long, default_value_t = 40, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    interval: u32,
    /// seaway-cni
    #[arg(long)]
    plugin: PathBuf,
    /// The folder with ptp and host-local
    #[arg(long, default_value = "/usr/lib/cni")]
    peers: PathBuf,
    /// How many pods are added and deleted one after another
    #[arg(long, default_value_t = 40, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pods: u32,
    /// How many pods are added at once
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(2..=100))]
    burst: u32,
    /// How often that is done; for the routes, on how many nodes
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=20))]
    rounds: u32,
    /// Writes every figure to this file
    #[arg(long)]
    json: Option<PathBuf>,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let ground = Ground::enter()?;
    let mut report = Report::default();
    if options.only.contains(&Part::Calls) {
        calls(options, &ground, &mut report)?;
        report.print(options);
    }
    if options.only.contains(&Part::Routes) {
        report.reached = routes::measure(options, &ground)?;
        report.print_reached();
    }
    if let Some(path) = &options.json {
        let text = serde_json::to_string_pretty(&report.json())?;
        fs::write(path, text + "\n").with_context(|| format!("writing {}", path.display()))?;
        say(&format!("figures of every pod: {}", path.display()));
    }
    Ok(())
}

fn calls(options: &Options, ground: &Ground, report: &mut Report) -> Result<()> {
    ensure!(options.peers.join("ptp").exists(), "{} has no ptp", options.peers.display());
    let node = Node::start(options, ground)?;
    let plugins = [ours(options, &node.socket), node.peer(options, ground.folder())];
    one_after_another(options, &node, &plugins, report)?;
    for round in 1..=options.rounds {
        for plugin in &plugins {
            say(&format!(
                "    {}: {} pods at once, {round} of {}",
                plugin.name, options.burst, options.rounds
            ));
            burst(options, plugin, round, report.figures(plugin.name))?;
        }
    }
    Ok(())
}

/// An agent of this name and address, which keeps all that is its own in a folder.
fn agent_command(options: &Options, folder: &Path, (name, address): (&str, &str), kubepods: &str) -> Command {
    let mut command = Command::new(&options.agent);
    command.args(["--node-name", name, "--node-ip", address, "--no-kubelet", "--no-dns"]);
    command.args(["--cgroup-parent", kubepods]);
    for (option, name) in
        [("--state-dir", "state"), ("--run-dir", "run"), ("--cni-conf-dir", "net.d"), ("--bpf-dir", "bpf")]
    {
        command.arg(option).arg(folder.join(name));
    }
    command
}

/// The plugin of the agent that listens there.
fn ours(options: &Options, socket: &Path) -> Plugin {
    Plugin {
        name: "seaway",
        program: options.plugin.clone(),
        folder: options.peers.clone(),
        config: json!({ "cniVersion": "1.0.0", "name": "seaway", "type": "seaway-cni", "socket": socket }),
    }
}

/// The calling thread's network namespace as a node.
struct Node {
    agent: Process,
    socket: PathBuf,
    _beyond: NetNs,
}

impl Node {
    fn start(options: &Options, ground: &Ground) -> Result<Self> {
        let beyond = NetNs::new()?;
        ground::ip(&format!("link add uplink type veth peer name eth0 netns {}", beyond.path().display()))?;
        ground::ip("link set uplink up")?;
        ground::ip(&format!("address add {NODE_IP}/24 dev uplink"))?;
        beyond.ip("link set eth0 up")?;
        beyond.ip("address add 192.0.2.2/24 dev eth0")?;
        let folder = ground.folder();
        let state = folder.join("state");
        fs::create_dir(&state).context("making the agent's folder")?;
        fs::write(state.join("ipam.json"), serde_json::to_vec(&allocator()?)?)
            .context("writing ipam.json")?;
        // No API server says that there are no NetworkPolicies.
        fs::write(state.join("policies.json"), r#"{"namespaces": []}"#).context("writing policies.json")?;
        fs::write(folder.join("kubeconfig"), KUBECONFIG).context("writing the kubeconfig")?;
        let kubepods = ground.cgroup_from_root(&ground.cgroup("kubepods")?)?;
        let mut command = agent_command(options, folder, ("node", NODE_IP), &kubepods);
        command.arg("--kubeconfig").arg(folder.join("kubeconfig"));
        let log = folder.join("agent.log");
        let mut agent = Process::start_logged(command, &log)?;
        let socket = folder.join("run/cni.sock");
        let deadline = Instant::now() + READY_TIME_MAX;
        while std::os::unix::net::UnixStream::connect(&socket).is_err() {
            let said = || fs::read_to_string(&log).unwrap_or_default();
            agent.check().with_context(said)?;
            ensure!(Instant::now() < deadline, "the agent has no CNI socket:\n{}", said());
            std::thread::sleep(PAUSE);
        }
        Ok(Self { agent, socket, _beyond: beyond })
    }

    fn peer(&self, options: &Options, folder: &Path) -> Plugin {
        Plugin {
            name: "ptp + host-local",
            program: options.peers.join("ptp"),
            folder: options.peers.clone(),
            config: json!({
                "cniVersion": "1.0.0", "name": "peer", "type": "ptp",
                "ipam": {
                    "type": "host-local",
                    "dataDir": folder.join("host-local"),
                    "ranges": [[{ "subnet": "10.245.0.0/16" }]],
                    "routes": [{ "dst": "0.0.0.0/0" }],
                },
            }),
        }
    }
}

/// Blocks as an earlier agent would have left them.
fn allocator() -> Result<ipam::Allocator> {
    let pool = ipam::Pool::with_default_blocks(POOL.parse().context("the pool")?)?;
    let mut allocator = ipam::Allocator::new(0);
    for index in 0..BLOCKS {
        allocator.add_block(pool.block(index).context("a block of the pool")?, &pool);
    }
    Ok(allocator)
}

fn one_after_another(
    options: &Options,
    node: &Node,
    plugins: &[Plugin; 2],
    report: &mut Report,
) -> Result<()> {
    say(&format!("    adding and deleting {} pods, one after another", options.pods));
    for number in 0..options.pods {
        for plugin in plugins {
            let pod = Pod::new(format!("one{number}"))?;
            let figures = report.figures(plugin.name);
            let cpu = || -> Result<f64> { Ok(node.agent.cpu()? + runner::cpu_of_children()?) };
            let before = cpu()?;
            figures.add.push(plugin.call(Call::Add, &pod)?);
            let between = cpu()?;
            figures.del.push(plugin.call(Call::Del, &pod)?);
            let deleted = Instant::now();
            links_are_gone()?;
            figures.gone.push(deleted.elapsed());
            figures.add_cpu.push(between - before);
            figures.del_cpu.push(cpu()? - between);
        }
    }
    Ok(())
}

/// Waits until the node has no link of a pod any more.
fn links_are_gone() -> Result<()> {
    let mut links = Links::open().context("netlink")?;
    let deadline = Instant::now() + GONE_TIME_MAX;
    loop {
        let left = links.list().context("the node's links")?;
        let left: Vec<String> =
            left.into_iter().map(|link| link.name).filter(|name| name != "lo" && name != "uplink").collect();
        if left.is_empty() {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "links of deleted pods are still there: {}", left.join(" "));
        std::thread::sleep(PAUSE);
    }
}

fn burst(options: &Options, plugin: &Plugin, round: u32, figures: &mut Figures) -> Result<()> {
    let pods = (0..options.burst).map(|number| Pod::new(format!("burst{round}-{number}")));
    let pods = pods.collect::<Result<Vec<_>>>()?;
    figures.burst_add.extend(at_once(plugin, Call::Add, &pods)?);
    figures.burst_del.extend(at_once(plugin, Call::Del, &pods)?);
    links_are_gone()
}

/// Calls for all pods at the same time; how long each call took.
fn at_once(plugin: &Plugin, call: Call, pods: &[Pod]) -> Result<Vec<Duration>> {
    let start = Barrier::new(pods.len());
    std::thread::scope(|scope| {
        let threads: Vec<_> = pods
            .iter()
            .map(|pod| {
                scope.spawn(|| {
                    start.wait();
                    plugin.call(call, pod)
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("the thread does not panic")).collect()
    })
}
