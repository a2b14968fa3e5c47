//! How long pods wait for their routes on other nodes, by the histograms of the agents themselves.
//!
//! ```text
//!   node 1 ── uplink ─┐
//!   node 2 ── uplink ─┤ bridge 10.89.0.0/24, 10.89.0.10 ── seaway-server
//!   node N ── uplink ─┘
//! ```
//!
//! Every node is a namespace with an agent, which takes its blocks from the API server as on a machine. There is no kubelet:
//! the bench calls the plugin, at times that do not depend on how long earlier calls took, for so many pods that each node
//! needs new blocks meanwhile. The pods stay, as addresses of deleted ones would rest and be given again.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::Ipv4Addr,
    os::unix::net::UnixStream,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::{
    Options, agent_command,
    runner::{Call, Plugin, Pod},
    told::{Reached, Told},
};
use crate::{
    process::{Process, raise_descriptor_limit},
    say,
    services::{
        api::{self, Api},
        ground::{Ground, NetNs, ip},
    },
};

const BRIDGE_ADDRESS: &str = "10.89.0.10";
const READY_TIME_MAX: Duration = Duration::from_secs(60);
/// An agent gives up asking a node that does not answer after 30 s.
const TOLD_TIME_MAX: Duration = Duration::from_secs(40);
const PAUSE: Duration = Duration::from_millis(20);
/// Bursts on one node, so that at least one of them needs a new block.
const BURSTS: u32 = 3;

/// A pod at each interval, round the nodes; then many at once, on one node.
pub(super) fn measure(options: &Options, ground: &Ground) -> Result<Vec<Reached>> {
    raise_descriptor_limit();
    let fabric = Fabric::start(options, ground)?;
    let mut pods = fabric.first_pods()?;
    let steady = fabric.told_of(|| {
        say(&format!(
            "    adding {} pods on each of {} nodes, one every {} ms",
            options.per_node, options.nodes, options.interval
        ));
        fabric.one_by_one(options, &mut pods)
    })?;
    let bursts = fabric.told_of(|| {
        say(&format!(
            "    adding {} pods at once on one node, {BURSTS} times each on {} nodes",
            options.burst, options.rounds
        ));
        let mut took = Vec::new();
        for round in 0..options.rounds {
            let node = &fabric.nodes[round as usize % fabric.nodes.len()];
            for burst in 0..BURSTS {
                took.extend(node.at_once(options, &format!("{round}-{burst}"), &mut pods)?);
            }
        }
        Ok(took)
    })?;
    Ok(vec![
        Reached {
            what: format!("one pod every {} ms, round {} nodes", options.interval, options.nodes),
            ..steady
        },
        Reached {
            what: format!("{} pods at once on one of {} nodes", options.burst, options.nodes),
            ..bursts
        },
    ])
}

struct Fabric {
    nodes: Vec<Node>,
    _api: Api,
}

struct Node {
    name: String,
    plugin: Plugin,
    socket: PathBuf,
    log: PathBuf,
    agent: Process,
    _host: NetNs,
}

impl Fabric {
    fn start(options: &Options, ground: &Ground) -> Result<Self> {
        let server = options.server.as_deref().context("routes are measured with --server PATH")?;
        say(&format!("    starting {} nodes", options.nodes));
        let mut api = Api::bare(ground, server, "all")?;
        ip("link add fabric type bridge")?;
        ip(&format!("address add {BRIDGE_ADDRESS}/24 dev fabric"))?;
        ip("link set fabric up")?;
        let nodes = (1..=options.nodes).map(|number| Node::start(options, ground, &mut api, number));
        let mut fabric = Self { nodes: nodes.collect::<Result<_>>()?, _api: api };
        let others = fabric.nodes.len() - 1;
        for node in &mut fabric.nodes {
            node.await_that("it has a block and the routes to all others", |node| {
                let routes = node.json("/v1/routes")?;
                let learned =
                    |route: &&Value| route["kernel"]["kind"] == "via" && route["kernel"]["installed"] == true;
                Some(routes.as_array()?.iter().filter(learned).count() >= others && node.is_ready())
            })?;
        }
        Ok(fabric)
    }

    /// A pod on each node, which shows that the others have answered about the block.
    fn first_pods(&self) -> Result<Vec<Pod>> {
        let mut pods = Vec::new();
        for node in &self.nodes {
            let pod = Pod::new(format!("{}-first", node.name))?;
            node.plugin.call(Call::Add, &pod)?;
            pods.push(pod);
        }
        self.await_count(&Told::default(), pods.len())?;
        Ok(pods)
    }

    /// What the agents tell of the pods that `add` adds, which says how long each ADD took.
    fn told_of(&self, add: impl FnOnce() -> Result<Vec<Duration>>) -> Result<Reached> {
        let before = self.told()?;
        let began = Instant::now();
        let add = add()?;
        let seconds = began.elapsed().as_secs_f64();
        let told = self.await_count(&before, add.len())?;
        Ok(Reached { what: String::new(), seconds, add, told })
    }

    fn told(&self) -> Result<Told> {
        self.nodes.iter().try_fold(Told::default(), |sum, node| {
            let page = node.get("/metrics").with_context(|| format!("{} has no metrics", node.name))?;
            sum.plus(&Told::read(&page)?)
        })
    }

    /// Waits until the agents have told of so many more pods than `before`.
    fn await_count(&self, before: &Told, more: usize) -> Result<Told> {
        let deadline = Instant::now() + TOLD_TIME_MAX;
        loop {
            let told = self.told()?.since(before)?;
            if told.count >= more as u64 {
                return Ok(told);
            }
            ensure!(
                Instant::now() < deadline,
                "the agents tell of the routes to {} of {more} pods; {} nodes did not answer",
                told.count,
                told.unanswered
            );
            std::thread::sleep(PAUSE);
        }
    }

    /// Each ADD begins when it is due, on a thread of its own.
    fn one_by_one(&self, options: &Options, pods: &mut Vec<Pod>) -> Result<Vec<Duration>> {
        let interval = Duration::from_millis(u64::from(options.interval));
        std::thread::scope(|scope| {
            let mut threads = Vec::new();
            let start = Instant::now();
            for number in 0..options.per_node {
                for (index, node) in self.nodes.iter().enumerate() {
                    let pod = Pod::new(format!("{}-{number}", node.name))?;
                    let due = start + interval * (number * options.nodes + index as u32);
                    std::thread::sleep(due.saturating_duration_since(Instant::now()));
                    threads.push(scope.spawn(move || (node.plugin.call(Call::Add, &pod), pod)));
                }
            }
            threads
                .into_iter()
                .map(|thread| {
                    let (took, pod) = thread.join().expect("the thread does not panic");
                    pods.push(pod);
                    took
                })
                .collect()
        })
    }
}

impl Node {
    fn start(options: &Options, ground: &Ground, api: &mut Api, number: u32) -> Result<Self> {
        let (name, address) = (format!("node-{number}"), Ipv4Addr::from(0x0a59_000a + number));
        api.create_node(&name, address)?;
        let host = NetNs::new()?;
        ip(&format!("link add p{number} type veth peer name uplink netns {}", host.path().display()))?;
        ip(&format!("link set p{number} master fabric up"))?;
        host.ip(&format!("address add {address}/24 dev uplink"))?;
        host.ip("link set uplink up")?;
        host.ip(&format!("route add {}/32 via {BRIDGE_ADDRESS}", api::ADDRESS))?;
        let folder = ground.folder().join(&name);
        fs::create_dir(&folder).context("making the agent's folder")?;
        let kubeconfig = api.kubeconfig(&format!("system:node:{name}"), "system:nodes")?;
        let cgroup = ground.cgroup(&name)?;
        let kubepods = ground.cgroup(&format!("{name}/kubepods"))?;
        let kubepods = ground.cgroup_from_root(&kubepods)?;
        let mut command = agent_command(options, &folder, (&name, &address.to_string()), &kubepods);
        command.arg("--kubeconfig").arg(kubeconfig);
        host.place(&mut command, &cgroup)?;
        let log = folder.join("agent.log");
        let agent = Process::start_logged(command, &log)?;
        let plugin = super::ours(options, &folder.join("run/cni.sock"));
        let socket = folder.join("run/agent.sock");
        Ok(Self { name, plugin, socket, log, agent, _host: host })
    }

    fn await_that(&mut self, what: &str, is_so: impl Fn(&Self) -> Option<bool>) -> Result<()> {
        let deadline = Instant::now() + READY_TIME_MAX;
        while !is_so(self).unwrap_or(false) {
            let log = self.log.clone();
            let said = || format!("{}: {what}; {}", self.name, api::last_lines(&log));
            self.agent.check().with_context(said)?;
            ensure!(Instant::now() < deadline, "not within {} s: {}", READY_TIME_MAX.as_secs(), said());
            std::thread::sleep(PAUSE);
        }
        Ok(())
    }

    /// Whether it has told the runtime that pods can be served.
    fn is_ready(&self) -> bool {
        self.log.with_file_name("net.d").join("10-seaway.conflist").exists()
    }

    fn at_once(&self, options: &Options, round: &str, pods: &mut Vec<Pod>) -> Result<Vec<Duration>> {
        let new = (0..options.burst).map(|number| Pod::new(format!("{}-burst{round}-{number}", self.name)));
        let new = new.collect::<Result<Vec<_>>>()?;
        let took = super::at_once(&self.plugin, Call::Add, &new);
        pods.extend(new);
        took
    }

    fn get(&self, page: &str) -> Option<String> {
        let mut stream = UnixStream::connect(&self.socket).ok()?;
        let request = format!("GET {page} HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        head.starts_with("HTTP/1.1 200").then(|| body.to_owned())
    }

    fn json(&self, page: &str) -> Option<Value> {
        serde_json::from_str(&self.get(page)?).ok()
    }
}

/// As the figures' file has it.
pub(super) fn json(reached: &[Reached]) -> Value {
    let of = |one: &Reached| {
        let add: Vec<f64> = one.add.iter().map(Duration::as_secs_f64).collect();
        json!({
            "what": one.what,
            "seconds": one.seconds,
            "add_seconds": add,
            "pods_by_seconds_at_most": one.told.pods_by_bound(),
            "pods_that_waited_for_an_address": one.told.waited,
            "nodes_unanswered": one.told.unanswered,
        })
    };
    reached.iter().map(of).collect()
}
