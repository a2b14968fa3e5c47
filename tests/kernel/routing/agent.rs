//! The agent as a process, without an API server: what it knows from before must be enough.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use tempfile::TempDir;

use super::capture::Capture;
use super::peers::{Bird, Process, wire};
use crate::netns::{BpfDir, NetNs, eventually};

/// A binary of this workspace, as it was built beside this test.
pub fn binary(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("this test's own path");
    let path = test.ancestors().nth(2).expect("target/PROFILE/deps/TEST").join(name);
    assert!(path.exists(), "{} is missing: `cargo xtask test kernel` builds it", path.display());
    path
}

/// The CNI plugin, static as it is shipped.
pub fn plugin() -> PathBuf {
    let path =
        std::env::var_os("SEAWAY_CNI").expect("SEAWAY_CNI: `cargo xtask test kernel` builds the plugin");
    PathBuf::from(path)
}

/// An agent: node-a at 192.0.2.1, which owns block 10.244.0.64/26, where nothing else is said.
pub struct Agent {
    name: String,
    /// Of each family, with a comma between them.
    address: String,
    pub folder: TempDir,
    bpf: BpfDir,
    process: Option<Process>,
}

impl Agent {
    pub fn start(host: &NetNs, extra: &[&str]) -> Agent {
        Agent::with_blocks(host, &[("10.244.0.0/16", "10.244.0.64/26")], extra)
    }

    /// One that owns these blocks, each of its pool.
    pub fn with_blocks(host: &NetNs, blocks: &[(&str, &str)], extra: &[&str]) -> Agent {
        Agent::over(host, Agent::folder(), &[("ipam.json", Agent::blocks(blocks))], extra)
    }

    /// What is saved of these blocks, each of its pool.
    pub fn blocks(blocks: &[(&str, &str)]) -> Value {
        let mut allocator = ipam::Allocator::new(1);
        for (pool, block) in blocks {
            let pool = ipam::Pool::with_default_blocks(pool.parse().expect("a pool")).expect("a pool");
            allocator.add_block(block.parse().expect("a block"), &pool);
        }
        serde_json::to_value(&allocator).expect("JSON")
    }

    /// One that finds these files of an earlier one.
    pub fn over(host: &NetNs, folder: TempDir, files: &[(&str, Value)], extra: &[&str]) -> Agent {
        Agent::named(("node-a", "192.0.2.1"), host, folder, files, extra)
    }

    /// One of this name and address.
    pub fn named(
        node: (&str, &str),
        host: &NetNs,
        folder: TempDir,
        files: &[(&str, Value)],
        extra: &[&str],
    ) -> Agent {
        let mut agent = Agent::prepared(node, folder, files);
        agent.run(host, extra);
        agent
    }

    /// The same, without a process yet.
    pub fn prepared((name, address): (&str, &str), folder: TempDir, files: &[(&str, Value)]) -> Agent {
        let path = folder.path();
        for (name, content) in files {
            fs::write(path.join("state").join(name), content.to_string()).expect("a file");
        }
        if !path.join("kubeconfig").exists() {
            fs::write(path.join("kubeconfig"), KUBECONFIG).expect("the kubeconfig");
            // Nobody will tell it: what was known last is that there are none.
            fs::write(path.join("state/policies.json"), r#"{"namespaces": []}"#).expect("a file");
        }
        let (name, address) = (name.to_owned(), address.to_owned());
        Agent { name, address, folder, bpf: BpfDir::new(), process: None }
    }

    /// With a place for what an agent keeps.
    pub fn folder() -> TempDir {
        let folder = tempfile::tempdir().expect("a folder");
        fs::create_dir(folder.path().join("state")).expect("the state folder");
        folder
    }

    /// Starts the process again over what is on disk and in the kernel, and waits for its socket.
    pub fn run(&mut self, host: &NetNs, extra: &[&str]) {
        self.spawn(host, extra);
        eventually("the agent's socket answers", || {
            assert!(self.is_running(), "the agent has ended:\n{}", self.log());
            self.get("/healthz").map(|_| ())
        });
    }

    /// Starts the process again, and waits for nothing. It has no DNS unless `extra` says its address, and serves the sockets
    /// of a cgroup of its own unless that says another.
    pub fn spawn(&mut self, host: &NetNs, extra: &[&str]) {
        let path = self.folder.path();
        let cgroup = format!("/seaway-test-{}-{}/kubepods", std::process::id(), crate::netns::unique());
        let mut command = Command::new(binary("seaway-agent"));
        command
            .args(["--node-name", &self.name, "--node-ip", &self.address, "--no-kubelet"])
            .args(["--no-dns"].iter().filter(|_| !extra.contains(&"--cluster-dns")))
            .args(["--cgroup-parent", &cgroup].iter().filter(|_| !extra.contains(&"--cgroup-parent")))
            .arg("--kubeconfig")
            .arg(path.join("kubeconfig"))
            .arg("--state-dir")
            .arg(path.join("state"))
            .arg("--run-dir")
            .arg(path.join("run"))
            .arg("--cni-conf-dir")
            .arg(path.join("net.d"))
            .arg("--bpf-dir")
            .arg(&self.bpf.path)
            .args(extra);
        self.process = Some(Process::start(host, &mut command, &path.join("agent.log")));
    }

    pub fn kill(&mut self) {
        self.process.as_mut().expect("it was started").kill();
    }

    pub fn terminate(&mut self) {
        self.process.as_mut().expect("it was started").terminate();
    }

    pub fn is_running(&mut self) -> bool {
        self.process.as_mut().expect("it was started").is_running()
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("agent.log")).unwrap_or_default()
    }

    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("run/cni.sock")
    }

    /// Where its maps are pinned.
    pub fn maps(&self) -> PathBuf {
        self.bpf.path.join("maps")
    }

    /// `seaway`, to ask this agent.
    pub fn asking(&self, arguments: &str) -> Command {
        let mut seaway = Command::new(binary("seaway"));
        seaway.args(arguments.split_whitespace()).arg("--socket");
        seaway.arg(self.folder.path().join("run/agent.sock"));
        seaway
    }

    /// What `seaway` prints to its output, or else to its errors.
    pub fn seaway(&self, arguments: &str) -> Result<String, String> {
        let output = self.asking(arguments).output().expect("running seaway");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }

    pub fn get(&self, page: &str) -> Option<String> {
        let mut stream = UnixStream::connect(self.folder.path().join("run/agent.sock")).ok()?;
        let request = format!("GET {page} HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        head.starts_with("HTTP/1.1 200").then(|| body.to_owned())
    }

    pub fn json(&self, page: &str) -> Value {
        let body = self.get(page).unwrap_or_else(|| panic!("{page} is not answered:\n{}", self.log()));
        serde_json::from_str(&body).unwrap_or_else(|error| panic!("{page}: {error}: {body}"))
    }

    pub fn await_peer(&mut self, address: &str, state: &str) {
        eventually(&format!("peer {address} is {state}"), || {
            let peers = self.json("/v1/peers");
            let peer = peers.as_array()?.iter().find(|peer| peer["address"] == address)?;
            (peer["state"] == state).then_some(())
        });
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("the agent of {} said:\n{}", self.name, self.log());
        }
        self.process = None;
        remove_cgroups();
    }
}

/// The agents of this process leave empty cgroups: they do not undo anything when they end.
fn remove_cgroups() {
    let mounts = fs::read_to_string("/proc/self/mounts").expect("the mounts");
    let tree =
        mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>()).find(|fields| fields[2] == "cgroup2");
    let Some(tree) = tree else { return };
    let prefix = format!("seaway-test-{}-", std::process::id());
    for entry in fs::read_dir(tree[1]).into_iter().flatten().flatten() {
        let own_child = entry.file_name().to_string_lossy().starts_with(&prefix);
        if own_child {
            // Another test of this process may still use its own.
            let _ = fs::remove_dir(entry.path());
        }
    }
}

/// Credentials for a server that is not there: nothing listens in the namespace.
const KUBECONFIG: &str = r#"{
  "apiVersion": "v1", "kind": "Config", "current-context": "c",
  "clusters": [{ "name": "c", "cluster": { "server": "http://127.0.0.1:1" } }],
  "users": [{ "name": "u", "user": {} }],
  "contexts": [{ "name": "c", "context": { "cluster": "c", "user": "u" } }]
}"#;

fn bird_has_block(bird: &Bird) -> bool {
    bird.ask("show route 10.244.0.64/26").contains("192.0.2.1")
}

#[test]
fn bird_learns_our_block_and_its_prefix_reaches_our_fib() {
    let (host, other) = wire();
    let packets = tempfile::tempdir().expect("a folder");
    let _capture = Capture::start(&host, "up0", packets.path());
    let mut agent = Agent::start(&host, &["--bgp-peer", "192.0.2.2"]);
    let mut bird = Bird::start(&other, agent.folder.path());
    bird.await_established();
    eventually("BIRD has our block", || bird_has_block(&bird).then_some(()));
    let shown = eventually("its prefix is in our FIB", || {
        let shown = host.output("ip", &["route", "show", "10.77.0.0/16"]);
        (!shown.is_empty()).then_some(shown)
    });
    assert!(shown.contains("via 192.0.2.2") && shown.contains("proto 180"), "{shown}");
    let blackhole = host.output("ip", &["route", "show", "type", "blackhole"]);
    assert!(blackhole.contains("10.244.0.64/26 proto 180"), "{blackhole}");
    let unreachable = host.output("ip", &["route", "show", "type", "unreachable"]);
    assert!(unreachable.contains("10.96.0.0/16 proto 180"), "Services that there are not: {unreachable}");
    let routes = agent.json("/v1/routes");
    let learned = routes.as_array().unwrap().iter().find(|route| route["prefix"] == "10.77.0.0/16").unwrap();
    assert_eq!(learned["reason"], "only path");
    assert_eq!(learned["kernel"]["installed"], true);
    assert_eq!(agent.json("/v1/blocks")[0]["block"], "10.244.0.64/26");
    agent.await_peer("192.0.2.2", "Established");
    for (prefix, answer) in [
        (
            "10.244.0.64/26",
            "10.244.0.64/26 is told to 192.0.2.2\n  this node's own: told, with next hop 192.0.2.1\n",
        ),
        (
            "10.77.0.0/16",
            "10.77.0.0/16 is not told to 192.0.2.2\n  from 192.0.2.2: the peer itself announced it\n",
        ),
        (
            "10.244.0.70/32",
            "10.244.0.70/32 is not told to 192.0.2.2: nobody announced exactly this to this node; 10.244.0.64/26 holds it\n",
        ),
    ] {
        assert_eq!(agent.seaway(&format!("why-not {prefix} --peer 192.0.2.2")).expect(prefix), answer);
    }
    let refused = agent.seaway("why-not 10.77.0.0/16 --peer 192.0.2.9").expect_err("no peer");
    assert!(refused.contains("192.0.2.9 is no BGP peer of this node: 192.0.2.2"), "{refused}");
    drop(bird);
}

#[test]
fn an_agent_killed_twice_in_ten_seconds_loses_no_route_at_its_peer_nor_its_own() {
    let (host, other) = wire();
    let packets = tempfile::tempdir().expect("a folder");
    let _capture = Capture::start(&host, "up0", packets.path());
    let mut agent = Agent::start(&host, &["--bgp-peer", "192.0.2.2"]);
    let mut bird = Bird::start(&other, agent.folder.path());
    eventually("BIRD has our block", || bird_has_block(&bird).then_some(()));
    eventually("its kernel too", || {
        other.output("ip", &["route", "show", "10.244.0.64/26"]).contains("192.0.2.1").then_some(())
    });
    let monitor_log = agent.folder.path().join("monitor.log");
    let mut monitor = Process::start(&other, Command::new("ip").args(["monitor", "route"]), &monitor_log);
    for _ in 0..2 {
        agent.kill();
        assert!(bird_has_block(&bird), "kept while the agent is away");
        assert!(host.output("ip", &["route", "show", "10.77.0.0/16"]).contains("192.0.2.2"));
        agent.run(&host, &["--bgp-peer", "192.0.2.2"]);
        agent.await_peer("192.0.2.2", "Established");
        assert!(host.output("ip", &["route", "show", "10.77.0.0/16"]).contains("192.0.2.2"));
    }
    bird.await_established();
    assert!(bird_has_block(&bird));
    monitor.kill();
    let changes = fs::read_to_string(monitor_log).expect("the monitor's log");
    assert!(!changes.contains("Deleted 10.244.0.64/26"), "the peer's kernel lost the route:\n{changes}");
}

#[test]
fn routes_come_back_with_the_uplink() {
    let (host, other) = wire();
    let mut agent = Agent::start(&host, &["--bgp-peer", "192.0.2.2"]);
    let mut bird = Bird::start(&other, agent.folder.path());
    bird.await_established();
    let learned = || host.output("ip", &["route", "show", "10.77.0.0/16"]).contains("192.0.2.2");
    eventually("its prefix is in our FIB", || learned().then_some(()));
    host.ip("link set up0 down");
    eventually("the kernel has dropped it", || (!learned()).then_some(()));
    host.ip("link set up0 up");
    eventually("it is there again", || learned().then_some(()));
    assert!(agent.is_running());
}

#[test]
fn random_bytes_on_the_bgp_port_are_answered_with_a_notification_and_the_process_lives() {
    let (host, other) = wire();
    let mut agent = Agent::start(&host, &["--bgp-listen-range", "192.0.2.0/24"]);
    // From inside the range: a message header error. From a stranger: a cease.
    other.ip("address add 198.51.100.2/24 dev up0");
    host.ip("address add 198.51.100.1/24 dev up0");
    for (bind, expected) in [("192.0.2.2:0", [1, 1]), ("198.51.100.2:0", [6, 5])] {
        let answer = other.run(|| send_garbage(bind.parse().expect("an address")));
        let notification = first_notification(&answer);
        assert_eq!(notification, Some(expected), "from {bind}: {answer:?}");
    }
    assert!(agent.is_running());
    agent.json("/v1/peers");
}

/// A connection from an address of this host's.
pub fn connect_from(source: SocketAddr, target: SocketAddr) -> TcpStream {
    use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd};
    let socket = nix::sys::socket::socket(
        nix::sys::socket::AddressFamily::Inet,
        nix::sys::socket::SockType::Stream,
        nix::sys::socket::SockFlag::empty(),
        None,
    )
    .expect("a socket");
    let address = |address: SocketAddr| nix::sys::socket::SockaddrStorage::from(address);
    nix::sys::socket::bind(socket.as_raw_fd(), &address(source)).expect("the source");
    nix::sys::socket::connect(socket.as_raw_fd(), &address(target)).expect("connecting");
    // SAFETY: the descriptor is given up by `into_raw_fd` and owned by the stream alone.
    unsafe { TcpStream::from_raw_fd(socket.into_raw_fd()) }
}

/// Sends what is not BGP and returns all that comes back.
fn send_garbage(source: SocketAddr) -> Vec<u8> {
    let mut stream = connect_from(source, "192.0.2.1:179".parse().expect("an address"));
    stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
    let garbage: Vec<u8> = (0..4096u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    // The agent may have closed already.
    let _ = stream.write_all(&garbage);
    let mut answer = Vec::new();
    let mut buffer = [0; 4096];
    while let Ok(length @ 1..) = stream.read(&mut buffer) {
        answer.extend_from_slice(&buffer[..length]);
    }
    answer
}

/// Code and subcode of the first NOTIFICATION in a stream of messages.
pub fn first_notification(mut stream: &[u8]) -> Option<[u8; 2]> {
    while stream.len() >= 21 {
        let length = usize::from(u16::from_be_bytes([stream[16], stream[17]]));
        if stream[18] == 3 {
            return Some([stream[19], stream[20]]);
        }
        stream = stream.get(length..)?;
    }
    None
}

/// What port 10256 of the host answers, if it does.
fn health(host: &NetNs, page: &str) -> Option<(String, String)> {
    host.run(|| {
        let mut stream = TcpStream::connect("127.0.0.1:10256").ok()?;
        let request = format!("GET {page} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        Some((head.lines().next()?.to_owned(), body.to_owned()))
    })
}

#[test]
fn health_is_answered_as_soon_as_its_port_is_free_and_says_that_no_node_is_known() {
    let (host, _other) = wire();
    let taken = host.run(|| TcpListener::bind("0.0.0.0:10256")).expect("the port");
    let mut agent = Agent::start(&host, &[]);
    eventually("the conflict is told", || agent.log().contains("address already in use").then_some(()));
    assert!(agent.is_running());
    drop(taken);
    let (status, _) = eventually("the port is answered", || health(&host, "/livez"));
    assert_eq!(status, "HTTP/1.1 200 OK");
    let (status, body) = health(&host, "/healthz").expect("an answer");
    assert_eq!(status, "HTTP/1.1 503 Service Unavailable");
    let body: Value = serde_json::from_str(&body).expect("JSON");
    assert_eq!((&body["nodeEligible"], &body["healthy"]), (&Value::from(false), &Value::from(true)));
    assert_eq!(agent.json("/v1/status")["missing"], serde_json::json!([]), "this kernel can do everything");
    agent.kill();
    agent.run(&host, &["--healthz-port", "0"]);
    assert_eq!(health(&host, "/livez"), None);
}

#[test]
fn a_damaged_allocation_file_stops_the_agent_with_its_name() {
    let (host, _other) = wire();
    let folder = tempfile::tempdir().expect("a folder");
    let path: &Path = folder.path();
    fs::create_dir(path.join("state")).expect("the state folder");
    fs::write(path.join("state/ipam.json"), "{\"blocks\": [").expect("ipam.json");
    // Of a pod that runs, whose address must not be given away.
    host.ip("link add swptest0 type veth peer name eth9");
    fs::write(path.join("kubeconfig"), KUBECONFIG).expect("the kubeconfig");
    let output = host.run(|| {
        Command::new(binary("seaway-agent"))
            .args(["--node-name", "node-a", "--node-ip", "192.0.2.1", "--router-only"])
            .arg("--kubeconfig")
            .arg(path.join("kubeconfig"))
            .arg("--state-dir")
            .arg(path.join("state"))
            .arg("--run-dir")
            .arg(path.join("run"))
            .output()
            .expect("running the agent")
    });
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert!(said.contains("ipam.json is damaged"), "{said}");
}
