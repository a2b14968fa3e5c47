//! How long a pod's address waits for its route on the other nodes.
//!
//! The agents' logs say when each ADD began and ended; `ip -ts monitor` in every node says when a route came into that
//! kernel. A pod of a block that is announced already waits for nothing; the first pod of a new block waits for its
//! block's announcement, and those are reported apart. The agents' own histogram is shown beside.

mod told;

use std::{collections::BTreeMap, net::Ipv4Addr, path::PathBuf, process::Child, time::Duration};

use anyhow::{Context, Result, ensure};
use ipnetwork::Ipv4Network;
use serde_json::json;

use super::super::{
    layout::{self, node_name},
    status::enter_command,
    up::{kubectl, until},
};
use super::median;
use told::Told;

/// More than a block of 64 holds, so that every node claims another.
const PODS_PER_NODE: usize = 90;
/// With more nodes than this, pods would be too many for one machine: then there are fewer, and blocks are small.
const NODES_WITH_LARGE_BLOCKS: u8 = 3;
const PODS_PER_NODE_OF_MANY: usize = 24;
/// A pool with blocks of eight addresses.
const SMALL_BLOCKS: &str = "measure-small-blocks";
const PODS_WITHIN: Duration = Duration::from_secs(300);
const PODS_GONE_WITHIN: Duration = Duration::from_secs(180);

#[derive(Default)]
pub(super) struct Routes {
    /// Milliseconds from the start of each pod's ADD to the last other node's route to its address; 0 where all
    /// had it before.
    from_start: Vec<f64>,
    /// The same from the end of the ADD; 0 where all had it by then.
    from_end: Vec<f64>,
    /// Milliseconds of each ADD in the agent.
    add: Vec<f64>,
    /// From a new block's first appearance on its owner to its last on the others.
    blocks: Vec<f64>,
    /// What the agents tell of the same.
    told: Told,
}

impl Routes {
    pub(super) fn rows(mut self) -> Vec<(String, String)> {
        self.from_start.sort_by(f64::total_cmp);
        self.from_end.sort_by(f64::total_cmp);
        self.blocks.sort_by(f64::total_cmp);
        let pods = self.from_start.len();
        let late = self.from_start.iter().filter(|time| **time > 0.0).count();
        let list =
            |times: &[f64]| times.iter().map(|time| format!("{time:.1}")).collect::<Vec<_>>().join(", ");
        vec![
            (
                format!("pod ADD, begun, to its route on every node, {pods} pods: median, p99, longest"),
                format!(
                    "{}, {}, {} ms",
                    at(&self.from_start, 50),
                    at(&self.from_start, 99),
                    at(&self.from_start, 100)
                ),
            ),
            (
                "pod ADD, ended, to its route on every node: median, p99, longest".to_owned(),
                format!(
                    "{}, {}, {} ms",
                    at(&self.from_end, 50),
                    at(&self.from_end, 99),
                    at(&self.from_end, 100)
                ),
            ),
            (
                format!("of these, pods whose block was new ({late} had to wait): block to route"),
                format!("{} ms", list(&self.blocks)),
            ),
            (
                "ADD's return to the route on every other node, as the agents tell it".to_owned(),
                self.told.to_string(),
            ),
            (
                "ADD in the agent, all nodes starting pods at once, median".to_owned(),
                format!("{:.0} ms", median(self.add)),
            ),
        ]
    }
}

/// A percentile of sorted times.
fn at(sorted: &[f64], percent: usize) -> String {
    let index = (sorted.len() * percent).div_ceil(100).saturating_sub(1);
    sorted.get(index).map_or_else(|| "-".to_owned(), |time| format!("{time:.1}"))
}

pub(super) fn measure(nodes: u8) -> Result<Routes> {
    let hosts: Vec<String> = (1..=nodes).map(node_name).collect();
    let pods = if nodes > NODES_WITH_LARGE_BLOCKS { PODS_PER_NODE_OF_MANY } else { PODS_PER_NODE };
    if nodes > NODES_WITH_LARGE_BLOCKS {
        small_blocks()?;
    }
    // First, so that no route comes between the two looks: blocks of a new pool are claimed at once.
    let monitors = hosts.iter().map(|host| Monitor::start(host)).collect::<Result<Vec<_>>>()?;
    let mut logs = BTreeMap::new();
    let mut skip = BTreeMap::new();
    for host in &hosts {
        let routed = enter_command(host)?.args(["ip", "-4", "route"]).output().context("reading routes")?;
        logs.insert(host.clone(), blocks_in(&String::from_utf8_lossy(&routed.stdout)).collect());
        skip.insert(host.clone(), agent_log(host)?.len());
    }
    let told = Told::read(&hosts)?;
    let filled = fill(&hosts, pods);
    let seen = monitors.into_iter().map(Monitor::stop).collect::<Result<BTreeMap<_, _>>>()?;
    filled?;
    let mut adds = BTreeMap::new();
    for (host, skip) in skip {
        let log = agent_log(&host)?;
        adds.insert(host, log.get(skip..).unwrap_or_default().lines().filter_map(Add::parse).collect());
    }
    let told = Told::read(&hosts)?.since(&told);
    for (owner, adds) in &adds {
        let adds: &Vec<Add> = adds;
        ensure!(adds.len() >= pods, "{owner} has logged {} of {pods} ADDs", adds.len());
    }
    Ok(Routes { told, ..evaluate(&logs, &seen, &adds)? })
}

/// Pods get their addresses of small blocks from now on.
fn small_blocks() -> Result<()> {
    let manifest = layout::state().join("measure").join("pool.json");
    let pool = json!({
        "apiVersion": "projectcalico.org/v3",
        "kind": "IPPool",
        "metadata": {"name": SMALL_BLOCKS},
        "spec": {"cidr": "10.60.0.0/16", "blockSize": 29, "natOutgoing": true},
    });
    std::fs::write(&manifest, pool.to_string()).context("writing a manifest")?;
    kubectl(&["apply", "-f", &manifest.display().to_string()]).map(drop)
}

/// `ip -ts monitor` in one node.
struct Monitor {
    host: String,
    child: Child,
    log: PathBuf,
}

impl Monitor {
    fn start(host: &str) -> Result<Self> {
        let log = layout::state().join("measure").join(format!("{host}.monitor"));
        let file = std::fs::File::create(&log).context("making a monitor's log")?;
        let child = enter_command(host)?
            .args(["ip", "-ts", "monitor", "route"])
            .env("TZ", "UTC")
            .stdout(file)
            .spawn()
            .context("starting ip monitor")?;
        Ok(Self { host: host.to_owned(), child, log })
    }

    fn stop(mut self) -> Result<(String, String)> {
        self.child.kill().context("ending ip monitor")?;
        self.child.wait().context("waiting for ip monitor")?;
        let text = std::fs::read_to_string(&self.log).context("reading a monitor's log")?;
        Ok((self.host, text))
    }
}

fn agent_log(host: &str) -> Result<String> {
    let path = layout::state().join("logs").join(format!("{host}.agent.log"));
    std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
}

/// More pods on every node than a block holds.
fn fill(hosts: &[String], pods: usize) -> Result<()> {
    for host in hosts {
        let manifest = layout::state().join("measure").join(format!("fill-{host}.json"));
        let labels = json!({"app": "measure-fill", "node": host});
        let spec = json!({
            "nodeName": host,
            "terminationGracePeriodSeconds": 0,
            "containers": [{"name": "pause", "image": "registry.k8s.io/pause:3.10"}],
        });
        let deployment = json!({
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": format!("measure-fill-{host}"), "labels": labels},
            "spec": {
                "replicas": pods,
                "selector": {"matchLabels": labels},
                "template": {"metadata": {"labels": labels}, "spec": spec},
            },
        });
        std::fs::write(&manifest, deployment.to_string()).context("writing a manifest")?;
        kubectl(&["apply", "-f", &manifest.display().to_string()])?;
    }
    let ready =
        ["get", "deployment", "-l", "app=measure-fill", "-o", "jsonpath={.items[*].status.readyReplicas}"];
    let all = vec![pods.to_string(); hosts.len()].join(" ");
    until(PODS_WITHIN, "the nodes to be full of ready pods", || Ok(kubectl(&ready)? == all))?;
    kubectl(&["delete", "deployment", "-l", "app=measure-fill"])?;
    until(PODS_GONE_WITHIN, "the pods to go", || {
        Ok(kubectl(&["get", "pods", "-l", "app=measure-fill", "-o", "name"])?.is_empty())
    })
}

/// One ADD as the agent logged it.
#[derive(Debug, PartialEq)]
struct Add {
    /// Seconds of the day.
    end: f64,
    seconds: f64,
    address: Ipv4Addr,
}

impl Add {
    /// `2026-01-31T10:20:30.123456Z  INFO …: pod added pod="…" addresses=[10.244.0.5/32] … microseconds=1234`.
    fn parse(line: &str) -> Option<Self> {
        let (stamp, text) = line.split_once(' ')?;
        let addresses = text.split_once("pod added ")?.1.split_once("addresses=[")?.1;
        let address = addresses.split([']', ',', '/']).next()?.parse().ok()?;
        let microseconds: f64 = text.split_once("microseconds=")?.1.split(' ').next()?.parse().ok()?;
        Some(Self { end: seconds_of_day(stamp.trim_end_matches('Z'))?, seconds: microseconds / 1e6, address })
    }
}

/// Seconds of the day of `2026-01-31T10:20:30.123456`.
fn seconds_of_day(stamp: &str) -> Option<f64> {
    let mut parts = stamp.split_once('T')?.1.split(':').map(|part| part.parse::<f64>().ok());
    Some(parts.next()?? * 3600.0 + parts.next()?? * 60.0 + parts.next()??)
}

/// Lines `[2026-01-31T10:20:30.123456] text` as seconds of the day and text.
fn events(log: &str) -> impl Iterator<Item = (f64, &str)> {
    log.lines().filter_map(|line| {
        let (stamp, text) = line.strip_prefix('[')?.split_once(']')?;
        Some((seconds_of_day(stamp)?, text.trim_start()))
    })
}

/// The destinations in lines of `ip route`, blackholes included.
fn blocks_in(routes: &str) -> impl Iterator<Item = Ipv4Network> {
    routes.lines().filter_map(block)
}

fn block(route: &str) -> Option<Ipv4Network> {
    let route = route.strip_prefix("blackhole ").unwrap_or(route);
    route.split(' ').next()?.parse().ok().filter(|network: &Ipv4Network| network.prefix() < 32)
}

/// When each destination first came into a kernel; before everything where it was there.
fn first_seen(routed: &[Ipv4Network], log: &str) -> BTreeMap<Ipv4Network, f64> {
    let mut first: BTreeMap<_, _> = routed.iter().map(|network| (*network, f64::NEG_INFINITY)).collect();
    for (time, network) in events(log).filter_map(|(time, text)| Some((time, block(text)?))) {
        first.entry(network).or_insert(time);
    }
    first
}

fn evaluate(
    before: &BTreeMap<String, Vec<Ipv4Network>>,
    monitored: &BTreeMap<String, String>,
    adds: &BTreeMap<String, Vec<Add>>,
) -> Result<Routes> {
    let seen: BTreeMap<&String, _> =
        monitored.iter().map(|(host, log)| (host, first_seen(&before[host], log))).collect();
    let mut routes = Routes::default();
    for (owner, adds) in adds {
        let others = || seen.iter().filter(|(host, _)| **host != owner);
        for add in adds {
            let mut last = f64::NEG_INFINITY;
            for (host, networks) in others() {
                let covering = networks.iter().filter(|(network, _)| network.contains(add.address));
                let first = covering.map(|(_, time)| *time).min_by(f64::total_cmp);
                last =
                    last.max(first.with_context(|| format!("{host} has seen no route to {}", add.address))?);
            }
            routes.from_start.push(((last - (add.end - add.seconds)) * 1000.0).max(0.0));
            routes.from_end.push(((last - add.end) * 1000.0).max(0.0));
            routes.add.push(add.seconds * 1000.0);
        }
        for (network, claimed) in seen[owner].iter().filter(|(network, time)| {
            time.is_finite() && adds.iter().any(|add| network.contains(add.address))
        }) {
            let last =
                others().filter_map(|(_, networks)| networks.get(network)).copied().fold(*claimed, f64::max);
            routes.blocks.push((last - claimed) * 1000.0);
        }
    }
    Ok(routes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_add_is_read_from_the_agents_log() {
        let line = r#"2026-01-31T10:00:01.500000Z  INFO seaway_agent::cni_server: pod added pod="a/b" addresses=[10.244.0.5] link="swa" microseconds=2500"#;
        let add = Add::parse(line).expect("an ADD");
        assert_eq!(add, Add { end: 36001.5, seconds: 0.0025, address: Ipv4Addr::new(10, 244, 0, 5) });
        assert_eq!(Add::parse("2026-01-31T10:00:01.5Z  INFO something else"), None);
    }

    #[test]
    fn pods_of_known_blocks_wait_for_nothing_and_those_of_a_new_block_for_its_last_route() {
        let pod = |end: f64, last| Add { end, seconds: 0.010, address: Ipv4Addr::new(10, 244, 0, last) };
        let known: Ipv4Network = "10.244.0.0/26".parse().expect("a block");
        let before: BTreeMap<_, _> = ["a", "b", "c"].map(|host| (host.to_owned(), vec![known])).into();
        let monitored: BTreeMap<_, _> = [
            ("a", "[2026-01-31T00:00:09.995000] blackhole 10.244.0.64/26 proto 180\n"),
            ("b", "noise\n[2026-01-31T00:00:09.997000] 10.244.0.64/26 via 10.89.0.11 dev eth0\n"),
            ("c", "[2026-01-31T00:00:10.002000] 10.244.0.64/26 via 10.89.0.11 dev eth0\n"),
        ]
        .map(|(host, log)| (host.to_owned(), log.to_owned()))
        .into();
        let mut pods: Vec<Add> = (1..90).map(|_| pod(5.0, 3)).collect();
        pods.push(pod(10.0, 70));
        let adds = [("a".to_owned(), pods)].into();
        let routes = evaluate(&before, &monitored, &adds).expect("routes");
        let longest = |times: &[f64]| times.iter().copied().fold(0.0, f64::max);
        assert!((longest(&routes.from_start) - 12.0).abs() < 1e-3, "{:?}", routes.from_start);
        assert!((longest(&routes.from_end) - 2.0).abs() < 1e-3);
        assert_eq!(routes.from_end.iter().filter(|time| **time > 0.0).count(), 1);
        assert!((routes.blocks[0] - 7.0).abs() < 1e-3, "{:?}", routes.blocks);
    }
}
