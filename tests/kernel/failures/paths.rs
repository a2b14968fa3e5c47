//! Two racks with two routers between them: what a cut link costs where there is another way.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};

use super::fabric::{Node, Switch, await_ways, pass};
use super::flows::{End, Flows};
use crate::netns::{NetNs, eventually};
use crate::routing::peers::Process;

/// From the last datagram before the cut to the first one that takes the other way.
const GAP_MAX: Duration = Duration::from_millis(300);
/// Of pairs of cuts, where others keep the machine busy.
const TRIES: usize = 3;
const ROUTERS: [u8; 2] = [251, 252];
const NODES: [u8; 2] = [11, 12];

/// BIRD on a host with a link in each rack, which it routes between.
struct Router {
    host: NetNs,
    folder: std::path::PathBuf,
    _process: Process,
}

impl Router {
    fn start(racks: &[Switch; 2], number: u8, folder: &Path) -> Router {
        let host = NetNs::new();
        let mut configuration = format!(
            "router id {};\nprotocol device {{}}\nprotocol direct {{ ipv4; }}\n\
             protocol bfd {{ interface \"*\" {{ interval 90 ms; multiplier 3; }}; }}\n\
             protocol kernel {{ merge paths on; ipv4 {{ export where source = RTS_BGP; }}; }}\n",
            racks[0].address(number)
        );
        for (index, rack) in racks.iter().enumerate() {
            rack.attach(&host, number, &format!("rack{index}"));
            for node in NODES {
                configuration.push_str(&format!(
                    "protocol bgp {{ local {} as 64999; neighbor {} as 64512; direct; bfd on;\n\
                     connect retry time 1; connect delay time 1; error wait time 1, 2;\n\
                     ipv4 {{ import all; export where source = RTS_BGP; }}; }}\n",
                    rack.address(number),
                    rack.address(node)
                ));
            }
        }
        for (path, value) in [
            ("net/ipv4/ip_forward", "1"),
            ("net/ipv4/conf/all/rp_filter", "0"),
            ("net/ipv4/fib_multipath_hash_policy", "1"),
        ] {
            host.sysctl(path, value);
        }
        let folder = folder.join(format!("router-{number}"));
        std::fs::create_dir(&folder).expect("a folder");
        std::fs::write(folder.join("conf"), configuration).expect("the configuration");
        let mut command = Command::new("/usr/sbin/bird");
        command.arg("-f").arg("-c").arg(folder.join("conf")).arg("-s").arg(folder.join("ctl"));
        let process = Process::start(&host, &mut command, &folder.join("log"));
        Router { host, folder, _process: process }
    }

    /// Its sessions of BFD have come to an agreement, with all nodes.
    fn await_bfd(&self) {
        eventually("the router watches all nodes", || {
            let mut birdc = Command::new("/usr/sbin/birdc");
            birdc.arg("-s").arg(self.folder.join("ctl")).args(["show", "bfd", "sessions"]);
            let shown = String::from_utf8_lossy(&birdc.output().expect("running birdc").stdout).into_owned();
            let agreed =
                |line: &&str| line.contains(" Up ") && line.contains("0.090") && line.contains("0.270");
            (shown.lines().filter(agreed).count() == 2 * NODES.len()).then_some(())
        });
    }

    /// It has the way to all blocks.
    fn await_routes(&self) {
        eventually("the router has all blocks", || {
            let routes = self.host.output("ip", &["route", "show", "proto", "bird"]);
            (routes.matches("10.244.").count() == 2 * NODES.len()).then_some(())
        });
    }
}

impl Drop for Router {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("BIRD said:\n{}", std::fs::read_to_string(self.folder.join("log")).unwrap_or_default());
        }
    }
}

/// Both routers are a way from every node to the blocks of the other rack.
fn await_both(nodes: &[Vec<Node>; 2], routers: &[Router]) {
    routers.iter().for_each(Router::await_routes);
    routers.iter().for_each(Router::await_bfd);
    for node in nodes.iter().flatten() {
        eventually(&format!("{} watches both routers", node.name), || {
            let peers = node.agent.json("/v1/peers");
            let agreed = |peer: &&Value| {
                let bfd = &peer["bfd"];
                bfd["state"] == "Up" && bfd["detectionMilliseconds"] == 270.0 && bfd["isPolling"] == false
            };
            (peers.as_array()?.iter().filter(agreed).count() == ROUTERS.len()).then_some(())
        });
    }
    for (rack, other) in [(0, "10.244.1."), (1, "10.244.0.")] {
        for node in &nodes[rack] {
            eventually(&format!("{} has two ways to the other rack", node.name), || {
                let shown = node.host.output("ip", &["-j", "route", "show", "proto", "180"]);
                let routes: Vec<Value> = serde_json::from_str(&shown).ok()?;
                let groups = |route: &&Value| {
                    let is_there = route["dst"].as_str().is_some_and(|dst| dst.starts_with(other));
                    is_there && route["nexthops"].as_array().is_some_and(|hops| hops.len() == ROUTERS.len())
                };
                (routes.iter().filter(groups).count() == NODES.len()).then_some(())
            });
        }
    }
}

#[test]
fn a_cut_link_of_one_of_two_routers_costs_0_3_s_at_most() {
    let folder = tempfile::tempdir().expect("a folder");
    let racks = [Switch::new("192.0.2"), Switch::new("198.51.100")];
    let routers = ROUTERS.map(|number| Router::start(&racks, number, folder.path()));
    let start = |rack: usize, number: u8| {
        let peer = |router: &u8| json!({ "address": racks[rack].address(*router), "asn": 64999, "bfd": true, "allowOwnAs": 1 });
        let peers: Vec<Value> = ROUTERS.iter().map(peer).collect();
        let block = format!("10.244.{rack}.{}/26", u32::from(number - NODES[0]) * 64);
        let node = Node::alone(&racks[rack], number, &block, &json!(peers));
        node.host.sysctl("net/ipv4/fib_multipath_hash_policy", "1");
        node
    };
    let nodes = [0, 1].map(|rack| NODES.iter().map(|number| start(rack, *number)).collect::<Vec<Node>>());
    await_both(&nodes, &routers);
    let pod = |(rack, node): (usize, &Node)| node.pod(&format!("pod-{}-of-rack-{rack}", node.name));
    let all = nodes.iter().enumerate().flat_map(|(rack, nodes)| nodes.iter().map(move |node| (rack, node)));
    let pods: Vec<End> = all.map(pod).collect();
    await_ways(&pods);
    let flows = Flows::between(&pods);
    pass(Duration::from_secs(1));
    flows.finish().must_be_whole("two racks, two routers between, nothing fails");

    let mut gaps: Vec<Duration> = Vec::new();
    while gaps.len() < TRIES && gaps.iter().all(|gap| *gap > GAP_MAX) {
        // Every flow takes one of both ways there, and one back: one of the cuts or both are felt.
        let both = ROUTERS.map(|router| cut(&racks[0], router, &pods, &nodes, &routers));
        gaps.push(both[0].max(both[1]));
        assert!(gaps.last() > Some(&Duration::ZERO), "somebody has felt it");
    }
    assert!(gaps.iter().any(|gap| *gap <= GAP_MAX), "the longest gaps: {gaps:?}");
}

/// The longest gap when a router has lost a rack, and when it is back.
fn cut(rack: &Switch, router: u8, pods: &[End], nodes: &[Vec<Node>; 2], routers: &[Router]) -> Duration {
    let flows = Flows::between(pods);
    pass(Duration::from_millis(200));
    rack.cut(router);
    pass(Duration::from_millis(800));
    let report = flows.finish();
    report.show(&format!("the link of router {router} is cut"));
    if report.longest_gap > GAP_MAX {
        eprintln!("{:#?}", report.losers);
    }
    let flows = Flows::between(pods);
    rack.mend(router);
    await_both(nodes, routers);
    pass(Duration::from_millis(200));
    flows.finish().must_be_whole(&format!("the link of router {router} is mended"));
    report.longest_gap
}
