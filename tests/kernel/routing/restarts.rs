//! Graceful restart with BIRD, FRR and GoBGP: whoever is killed, and twice, the side that stays has its routes all the
//! while, and what was not announced again is gone after End-of-RIB.

use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::agent::Agent;
use super::capture::Capture;
use super::daemons::{Daemon, Kind, Offer, Side};
use super::interop::{await_route, kernel_routes, lan, peer_file, start};
use super::peers::Process;
use crate::netns::{NetNs, eventually};

const KEPT: [&str; 2] = ["10.244.0.64/26", "fd00:10:244::40/122"];
/// Of a pool of its own, so that it can be given up.
const GIVEN_UP: &str = "10.245.0.64/26";
const BLOCKS: [(&str, &str); 3] =
    [("10.244.0.0/16", KEPT[0]), ("fd00:10:244::/112", KEPT[1]), ("10.245.0.0/16", GIVEN_UP)];
const PACKET_INTERVAL: Duration = Duration::from_millis(1);

/// Packets to one address, a thousand in a second, until it is dropped.
struct Flow {
    target: SocketAddr,
    _stop: mpsc::Sender<()>,
    sender: JoinHandle<Sent>,
}

#[derive(Debug, Default)]
struct Sent {
    count: usize,
    /// When the kernel had no route, since the flow began.
    without_route: Vec<Duration>,
}

impl Flow {
    fn start(host: &NetNs, target: &str) -> Flow {
        let target: SocketAddr = target.parse().expect("an address");
        let any = if target.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = host.run(|| UdpSocket::bind(any)).expect("a socket");
        let (stop, stopped) = mpsc::channel::<()>();
        let sender = std::thread::spawn(move || {
            let (began, mut sent) = (Instant::now(), Sent::default());
            while stopped.recv_timeout(PACKET_INTERVAL) == Err(mpsc::RecvTimeoutError::Timeout) {
                sent.count += 1;
                // A neighbour that does not answer, as its process's host does while its link is cut, is no lost route.
                if let Err(error) = socket.send_to(b"flow", target)
                    && error.kind() == std::io::ErrorKind::NetworkUnreachable
                {
                    sent.without_route.push(began.elapsed());
                }
            }
            sent
        });
        Flow { target, _stop: stop, sender }
    }

    fn finish(self) {
        drop(self._stop);
        let sent = self.sender.join().expect("the flow");
        assert!(sent.count > 100, "{} packets are too few to tell", sent.count);
        assert!(
            sent.without_route.is_empty(),
            "{} of {} packets to {} found no route, the first after {:?}",
            sent.without_route.len(),
            sent.count,
            self.target,
            sent.without_route.first()
        );
    }
}

/// What happens to routes on the side that stays, by its kernel's words and by packets.
struct Watch {
    monitors: Vec<(Process, PathBuf)>,
    flows: Vec<Flow>,
    /// What is written where a route is gone, before its prefix.
    sign: &'static str,
    kept: Vec<String>,
}

impl Watch {
    fn kernel(host: &NetNs, prefixes: &[String], targets: &[&str], folder: &Path) -> Watch {
        let log = folder.join(format!("monitor-{}.log", crate::netns::unique()));
        let monitor = Process::start(host, Command::new("ip").args(["monitor", "route"]), &log);
        Watch {
            monitors: vec![(monitor, log)],
            flows: targets.iter().map(|target| Flow::start(host, target)).collect(),
            sign: "Deleted",
            kept: prefixes.to_vec(),
        }
    }

    /// GoBGP's kernel has no routes.
    fn gobgp(daemon: &Daemon, prefixes: &[String], folder: &Path) -> Watch {
        let monitor = |family: &str| {
            let log = folder.join(format!("monitor-{family}.log"));
            (daemon.monitor(family, &log), log)
        };
        Watch {
            monitors: ["ipv4", "ipv6"].map(monitor).into(),
            flows: Vec::new(),
            sign: "[DELROUTE]",
            kept: prefixes.to_vec(),
        }
    }

    /// All that was to be kept was there all the while, and the monitor has seen what was not.
    fn finish(self, gone: Option<&str>) {
        self.flows.into_iter().for_each(Flow::finish);
        let mut told = String::new();
        for (mut monitor, log) in self.monitors {
            assert!(monitor.is_running(), "the monitor has ended");
            monitor.kill();
            told.push_str(&std::fs::read_to_string(log).expect("what the monitor wrote"));
        }
        let is_told = |prefix: &str| told.contains(&format!("{} {prefix}", self.sign));
        for prefix in &self.kept {
            assert!(!is_told(prefix), "{prefix} was gone:\n{told}");
        }
        assert!(gone.is_none_or(is_told), "the monitor says nothing of {gone:?}:\n{told}");
    }
}

struct Lab {
    lan: NetNs,
    daemon: Daemon,
    agent: Agent,
    options: Vec<String>,
    _capture: Capture,
    folder: TempDir,
}

impl Lab {
    fn new(kind: Kind) -> Lab {
        let folder = tempfile::tempdir().expect("a folder");
        let lan = lan();
        let mut side = Side::new(kind, 11, 64512, 64512);
        (side.restarts, side.forwards) = (true, true);
        side.offers = vec![Offer::of("10.111.0.0/16")];
        let peers = json!([{"address": side.v4(), "asn": 64512}]);
        let file = peer_file(&peers, &folder);
        let capture = Capture::start(&lan, "up0", folder.path());
        let options = ["--node-ip", "2001:db8::1", "--bgp-peer-file", &file].map(str::to_owned).to_vec();
        let words: Vec<&str> = options.iter().map(String::as_str).collect();
        let agent = Agent::with_blocks(&lan, &BLOCKS, &words);
        // Another wire, so that the link has a carrier while the daemon's is cut.
        lan.ip("link add idle0 type veth peer name idle1");
        lan.ip("link set idle1 up");
        lan.ip("link set idle0 master up0 up");
        let daemon = start(&lan, vec![side], &folder).remove(0);
        let mut lab = Lab { lan, daemon, agent, options, _capture: capture, folder };
        await_route(&lab.lan, "10.111.0.0/16", "192.0.2.11");
        lab.await_all();
        lab.daemon.await_next_hop(GIVEN_UP, "192.0.2.1");
        lab
    }

    fn run_agent(&mut self) {
        let words: Vec<&str> = self.options.iter().map(String::as_str).collect();
        self.agent.run(&self.lan, &words);
    }

    /// Both sides have a session and what the other one announces, none of it from before.
    fn await_all(&mut self) {
        eventually("the session is whole", || {
            let peer = self.agent.json("/v1/peers")[0].clone();
            let whole = (&peer["state"], &peer["routesStale"]) == (&json!("Established"), &json!(0));
            whole.then_some(())
        });
        await_route(&self.lan, &self.daemon.side.prefix_v4(), "192.0.2.11");
        await_route(&self.lan, &self.daemon.side.prefix_v6(), "2001:db8::11");
        self.daemon.await_next_hop(KEPT[0], "192.0.2.1");
        self.daemon.await_next_hop(KEPT[1], "2001:db8::1");
        eventually("the daemon sees it too", || self.daemon.is_established("192.0.2.1").then_some(()));
    }

    /// kill -9 of the agent, twice, the second time right after the session is back; then one that has a block less.
    fn kill_us(&mut self) {
        if self.daemon.side.has_kernel() {
            eventually("the daemon's kernel has our blocks", || {
                let routes = kernel_routes(&self.daemon.host);
                KEPT.iter().all(|prefix| routes.contains_key(*prefix)).then_some(())
            });
        }
        let kept: Vec<String> = KEPT.iter().map(|prefix| (*prefix).to_owned()).collect();
        let watch = if self.daemon.side.has_kernel() {
            let targets = ["10.244.0.70:9", "[fd00:10:244::50]:9"];
            Watch::kernel(&self.daemon.host, &kept, &targets, self.folder.path())
        } else {
            Watch::gobgp(&self.daemon, &kept, self.folder.path())
        };
        // Our own kernel goes on as well.
        let learned = [self.daemon.side.prefix_v4(), self.daemon.side.prefix_v6()];
        let targets = ["10.11.0.9:9", "[2001:db8:11::9]:9"];
        let own = Watch::kernel(&self.lan, &learned, &targets, self.folder.path());
        for _ in 0..2 {
            self.agent.kill();
            self.run_agent();
            self.agent.await_peer("192.0.2.11", "Established");
        }
        self.await_all();
        self.agent.kill();
        give_up_block(&self.agent);
        self.run_agent();
        eventually("what is not announced again is gone", || {
            (self.daemon.next_hop(GIVEN_UP).is_none()
                && !kernel_routes(&self.daemon.host).contains_key(GIVEN_UP))
            .then_some(())
        });
        self.await_all();
        watch.finish(Some(GIVEN_UP));
        own.finish(None);
    }

    /// kill -9 of the daemon, twice, the second time right after the session is back; then one that announces less.
    fn kill_them(&mut self) {
        let learned = [self.daemon.side.prefix_v4(), self.daemon.side.prefix_v6()];
        let targets = ["10.11.0.9:9", "[2001:db8:11::9]:9"];
        let watch = Watch::kernel(&self.lan, &learned, &targets, self.folder.path());
        for _ in 0..2 {
            self.restart_daemon();
            self.agent.await_peer("192.0.2.11", "Established");
        }
        self.await_all();
        self.daemon.side.offers.clear();
        self.restart_daemon();
        eventually("what is not announced again is gone", || {
            (!kernel_routes(&self.lan).contains_key("10.111.0.0/16")).then_some(())
        });
        self.await_all();
        watch.finish(Some("10.111.0.0/16"));
    }

    fn restart_daemon(&mut self) {
        self.daemon.kill();
        // GoBGP would say that it has told everything before anybody has told it what there is to tell.
        self.lan.ip("link set p11 down");
        eventually("the agent sees the session end", || {
            (self.agent.json("/v1/peers")[0]["state"] != "Established").then_some(())
        });
        self.daemon.run_again();
        self.lan.ip("link set p11 up");
    }
}

/// What the agent finds when it starts again: a block less than before.
fn give_up_block(agent: &Agent) {
    let file = agent.folder.path().join("state/ipam.json");
    let text = std::fs::read_to_string(&file).expect("what the agent keeps");
    let saved: Value = serde_json::from_str(&text).expect("JSON");
    let allocator = saved.get("allocator").unwrap_or(&saved).clone();
    let mut allocator: ipam::Allocator = serde_json::from_value(allocator).expect("an allocator");
    allocator.remove_block(GIVEN_UP.parse().expect("a block"));
    std::fs::write(&file, json!(allocator).to_string()).expect("what the agent keeps");
}

#[test]
fn whoever_is_killed_twice_no_route_is_missing_on_the_side_that_stays() {
    std::thread::scope(|scope| {
        for kind in Kind::ALL {
            scope.spawn(move || {
                let mut lab = Lab::new(kind);
                lab.kill_them();
                lab.kill_us();
            });
        }
    });
}
