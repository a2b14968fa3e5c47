//! BFD with BIRD and with FRR's bfdd: who is dead is known in 0.3 s, and who is busy is not dead.

use std::fs;
use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::agent::Agent;
use super::capture::Capture;
use super::daemons::{Daemon, Kind, Side};
use super::interop::{attach, await_route, lan};
use super::peers::Process;
use crate::netns::{NetNs, eventually};

/// From the cut of a link to the end of the routes in the kernel.
const FAILURE_TIME_MAX: Duration = Duration::from_millis(300);
/// Of cuts, where others keep the machine busy.
const TRIES: usize = 3;
const BUSY_TIME: Duration = Duration::from_secs(2);

fn agent(lan: &NetNs, numbers: &[u8], folder: &TempDir) -> Agent {
    let peers: Vec<Value> = numbers
        .iter()
        .flat_map(|number| [format!("192.0.2.{number}"), format!("2001:db8::{number}")])
        .map(|address| {
            // By its default, BIRD takes an internal peer for one beyond the link, and sends what has TTL 64.
            let is_far = address == "2001:db8::11";
            let bfd = if is_far { json!({ "maximumHops": 255 }) } else { json!(true) };
            // Two connections at once would make FRR's session begin twice.
            json!({ "address": address, "bfd": bfd, "passive": address == "192.0.2.12" })
        })
        .collect();
    let file = folder.path().join("peers.json");
    fs::write(&file, json!(peers).to_string()).expect("the file of peers");
    let file = file.to_str().expect("a path of characters");
    Agent::start(lan, &["--node-ip", "2001:db8::1", "--bgp-peer-file", file])
}

fn peer(agent: &Agent, address: &str) -> Value {
    let peers = agent.json("/v1/peers");
    let peer = peers.as_array().and_then(|peers| peers.iter().find(|peer| peer["address"] == address));
    peer.unwrap_or_else(|| panic!("{address} is a peer: {peers}")).clone()
}

fn await_bfd(agent: &Agent, address: &str, state: &str) -> Value {
    eventually(&format!("BFD with {address} is {state}"), || {
        let bfd = peer(agent, address)["bfd"].clone();
        (bfd["state"] == state).then_some(bfd)
    })
}

/// BIRD at 192.0.2.11 and 2001:db8::11, with a session of BGP and of BFD over each: on the link, and as if beyond it.
struct Bird {
    folder: PathBuf,
    process: Process,
}

impl Bird {
    fn start(host: &NetNs, folder: &Path) -> Bird {
        let session = |name: &str, local: &str, remote: &str, family: &str, hops: &str| {
            format!(
                "protocol bgp {name} {{ local {local} as 64512; neighbor {remote} as 64512; bfd on; {hops};
                graceful restart on; connect retry time 1; connect delay time 1; error wait time 1, 2;
                {family} {{ import all; export where source = RTS_STATIC; next hop self; }}; }}\n"
            )
        };
        let configuration = [
            "router id 192.0.2.11;\nprotocol device {}\nprotocol direct { ipv4; ipv6; }\n",
            "protocol static { ipv4; route 10.11.0.0/16 blackhole; }\n",
            "protocol static { ipv6; route 2001:db8:11::/48 blackhole; }\n",
            "protocol bfd bfd1 { interface \"*\" { interval 90 ms; multiplier 3; }; multihop { interval 90 ms; multiplier 3; }; }\n",
            &session("four", "192.0.2.11", "192.0.2.1", "ipv4", "direct"),
            &session("six", "2001:db8::11", "2001:db8::1", "ipv6", "multihop"),
        ];
        let folder = folder.join("bird");
        fs::create_dir(&folder).expect("a folder");
        fs::write(folder.join("conf"), configuration.concat()).expect("the configuration");
        let mut command = Command::new("/usr/sbin/bird");
        command.arg("-f").arg("-c").arg(folder.join("conf")).arg("-s").arg(folder.join("ctl"));
        let process = Process::start(host, &mut command, &folder.join("log"));
        Bird { folder, process }
    }

    /// Its sessions that are up: address, link, state, since when.
    fn sessions_up(&self) -> Vec<String> {
        let mut birdc = Command::new("/usr/sbin/birdc");
        birdc.arg("-s").arg(self.folder.join("ctl")).args(["show", "bfd", "sessions"]);
        let output = birdc.output().expect("running birdc");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let up = text.lines().filter(|line| line.contains(" Up "));
        up.map(|line| line.split_whitespace().take(4).collect::<Vec<&str>>().join(" ")).collect()
    }
}

impl Drop for Bird {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("BIRD said:\n{}", fs::read_to_string(self.folder.join("log")).unwrap_or_default());
        }
    }
}

/// Both directions of both families, and the routes that came with them.
fn await_bird(lan: &NetNs, agent: &Agent, bird: &Bird) {
    for address in ["192.0.2.11", "2001:db8::11"] {
        let bfd = await_bfd(agent, address, "Up");
        assert_eq!(bfd["remoteMultiplier"], 3, "{bfd}");
    }
    eventually("BIRD has two sessions", || (bird.sessions_up().len() == 2).then_some(()));
    await_route(lan, "10.11.0.0/16", "192.0.2.11");
    await_route(lan, "2001:db8:11::/48", "2001:db8::11");
}

/// Cuts BIRD's link beyond the bridge, which stays up; how long its routes stay in the kernel.
fn cut(lan: &NetNs) -> Duration {
    let has = |family: &str, prefix: &str| !lan.output("ip", &[family, "route", "show", prefix]).is_empty();
    lan.ip("link set p11 down");
    let began = Instant::now();
    eventually("its routes are gone", || {
        (!has("-4", "10.11.0.0/16") && !has("-6", "2001:db8:11::/48")).then_some(())
    });
    began.elapsed()
}

#[test]
fn a_cut_link_takes_its_routes_along_within_0_3_s_and_a_busy_node_is_not_dead() {
    let folder = tempfile::tempdir().expect("a folder");
    let lan = lan();
    let _capture = Capture::start(&lan, "up0", folder.path());
    let mut agent = agent(&lan, &[11], &folder);
    // Another wire of the bridge, so that it has a carrier all the time.
    let _other = attach(&lan, &Side::new(Kind::Bird, 12, 64512, 64512));
    let host = attach(&lan, &Side::new(Kind::Bird, 11, 64512, 64512));
    let mut bird = Bird::start(&host, folder.path());
    await_bird(&lan, &agent, &bird);
    stay_up_while_busy(&lan, &agent, &bird, &folder);

    let mut times = Vec::new();
    while times.len() < TRIES && times.iter().all(|time| *time > FAILURE_TIME_MAX) {
        times.push(cut(&lan));
        let told = peer(&agent, "192.0.2.11");
        assert!(told["lastError"].as_str().is_some_and(|error| error.contains("BFD Down (10)")), "{told}");
        assert_eq!(told["bfd"]["diagnostic"], "Control Detection Time Expired");
        lan.ip("link set p11 up");
        await_bird(&lan, &agent, &bird);
    }
    assert!(times.iter().any(|time| *time <= FAILURE_TIME_MAX), "the routes stayed for {times:?}");
    eprintln!("from the cut to the end of the routes: {times:?}");

    // It dies: its sessions of BGP end before BFD can tell, and it may come back.
    bird.process.kill();
    await_bfd(&agent, "192.0.2.11", "Down");
    await_bfd(&agent, "2001:db8::11", "Down");
    assert!(lan.output("ip", &["route", "show", "10.11.0.0/16"]).contains("192.0.2.11"), "kept, as stale");
    let kept = peer(&agent, "192.0.2.11");
    assert_eq!((&kept["routesStale"], &kept["lastError"]), (&json!(1), &json!("connection closed")));
    assert!(agent.is_running());
}

/// More processes than processors do nothing but run, for a moment.
fn stay_up_while_busy(lan: &NetNs, agent: &Agent, bird: &Bird, folder: &TempDir) {
    let before = bird.sessions_up();
    let count = 2 * std::thread::available_parallelism().map_or(2, usize::from);
    let burn = |_| {
        let mut shell = Command::new("sh");
        shell.args(["-c", "while :; do :; done"]);
        Process::start(lan, &mut shell, &folder.path().join("burner.log"))
    };
    let burners: Vec<Process> = (0..count).map(burn).collect();
    let end = Instant::now() + BUSY_TIME;
    eventually("that time is over", || (Instant::now() > end).then_some(()));
    drop(burners);
    for address in ["192.0.2.11", "2001:db8::11"] {
        let bfd = &peer(agent, address)["bfd"];
        assert_eq!((&bfd["state"], &bfd["failures"]), (&json!("Up"), &json!(0)), "{bfd}");
    }
    assert_eq!(bird.sessions_up(), before, "BIRD has missed nothing either");
    let status = agent.json("/v1/status");
    assert_eq!((&status["bfd"]["up"], &status["bfd"]["problems"]), (&json!(2), &json!([])), "{status}");
    assert!(status["bfd"]["scheduling"].as_str().is_some_and(|how| !how.is_empty()), "{status}");
}

/// FRR's bfdd at 192.0.2.12 and 2001:db8::12, without zebra.
struct Bfdd {
    folder: PathBuf,
    host: NetNs,
    _process: Process,
}

impl Bfdd {
    fn start(host: &NetNs, folder: &Path) -> Bfdd {
        let folder = folder.join("bfdd");
        fs::create_dir(&folder).expect("a folder");
        let configuration = "bfd\n peer 192.0.2.1 local-address 192.0.2.12\n exit\n \
                             peer 2001:db8::1 local-address 2001:db8::12\n exit\nexit\n";
        fs::write(folder.join("conf"), configuration).expect("the configuration");
        let mut command = Command::new("/usr/lib/frr/bfdd");
        // Its usual user cannot write here, and it insists on its group.
        command.args(["-u", "root", "-g", "frrvty", "-P", "0", "--log", "stdout"]);
        command.arg("-f").arg(folder.join("conf")).arg("-i").arg(folder.join("pid"));
        command.arg("--vty_socket").arg(&folder).arg("--bfdctl").arg(folder.join("bfdd.sock"));
        command.arg("-z").arg(folder.join("no-zebra"));
        let process = Process::start(host, &mut command, &folder.join("log"));
        Bfdd { folder, host: host.without_cgroup(), _process: process }
    }

    fn ask(&self, commands: &[&str]) -> Option<String> {
        let mut vtysh = Command::new("vtysh");
        vtysh.arg("--vty_socket").arg(&self.folder).args(["-d", "bfdd"]);
        vtysh.args(commands.iter().flat_map(|command| ["-c", *command]));
        let output = self.host.run(|| vtysh.output().expect("running vtysh"));
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Says something of the session over IPv4.
    fn configure(&self, what: &[&str]) {
        let head = ["configure terminal", "bfd", "peer 192.0.2.1 local-address 192.0.2.12"];
        let told = self.ask(&[&head[..], what].concat());
        assert!(told.is_some(), "bfdd takes {what:?}");
    }

    fn session(&self, remote: &str) -> Option<Value> {
        let shown: Value = serde_json::from_str(&self.ask(&["show bfd peers json"])?).ok()?;
        shown.as_array()?.iter().find(|session| session["peer"] == remote).cloned()
    }
}

#[test]
fn frr_changes_its_timers_and_ends_a_session_on_purpose_and_bgp_stays() {
    let folder = tempfile::tempdir().expect("a folder");
    let lan = lan();
    let _capture = Capture::start(&lan, "up0", folder.path());
    let mut agent = agent(&lan, &[12], &folder);
    let side = Side::new(Kind::Frr, 12, 64512, 64512);
    let host = attach(&lan, &side);
    let bfdd = Bfdd::start(&host, folder.path());
    let _bgpd = Daemon::start(side, host.without_cgroup(), folder.path());
    for (local, remote) in [("192.0.2.12", "192.0.2.1"), ("2001:db8::12", "2001:db8::1")] {
        let bfd = await_bfd(&agent, local, "Up");
        assert_eq!((&bfd["diagnostic"], &bfd["failures"]), (&json!("No Diagnostic"), &json!(0)));
        eventually("bfdd knows our intervals", || {
            let session = bfdd.session(remote)?;
            let told = (&session["status"], &session["remote-transmit-interval"]);
            (told == (&json!("up"), &json!(90))).then_some(())
        });
    }
    agent.await_peer("192.0.2.12", "Established");

    bfdd.configure(&["transmit-interval 200", "receive-interval 250"]);
    let bfd = eventually("the new intervals are agreed on", || {
        let bfd = peer(&agent, "192.0.2.12")["bfd"].clone();
        let told = [&bfd["sendMilliseconds"], &bfd["receiveMilliseconds"], &bfd["isPolling"]];
        (told == [&json!(250.0), &json!(200.0), &json!(false)]).then_some(bfd)
    });
    assert_eq!(bfd["detectionMilliseconds"], json!(600.0));
    assert_eq!((&bfd["state"], &bfd["failures"]), (&json!("Up"), &json!(0)), "{bfd}");

    let before = peer(&agent, "192.0.2.12")["history"].as_array().map(Vec::len);
    bfdd.configure(&["shutdown"]);
    let bfd = await_bfd(&agent, "192.0.2.12", "Down");
    assert_eq!(bfd["remoteState"], "AdminDown", "{bfd}");
    assert_eq!(bfd["lastChange"]["cause"], "the peer's operator has ended it");
    bfdd.configure(&["no shutdown"]);
    await_bfd(&agent, "192.0.2.12", "Up");
    let after = peer(&agent, "192.0.2.12");
    assert_eq!(after["state"], "Established");
    assert_eq!(after["history"].as_array().map(Vec::len), before, "BGP has not noticed: {after}");
    noise_is_counted_and_changes_nothing(&agent, &host);
    assert!(agent.is_running());
    agent.terminate();
    eventually("bfdd is told that the agent ended on purpose", || {
        (bfdd.session("2001:db8::1")?["remote-diagnostic"] == "administratively down").then_some(())
    });
}

fn noise_is_counted_and_changes_nothing(agent: &Agent, host: &NetNs) {
    // Down, from nobody's discriminator: believed, it would begin the session anew.
    let down = [[0x20, 0x40, 3, 24], [0, 0, 0, 9], [0; 4], [0, 1, 0, 0], [0, 1, 0, 0], [0; 4]].concat();
    let with = |at: usize, octet: u8| {
        let mut packet = down.clone();
        packet[at] = octet;
        packet
    };
    let noise = [
        (64, down.clone()),
        (255, down[..23].to_vec()),
        (255, Vec::new()),
        (255, vec![0xff; 1400]),
        (255, with(1, 0xc0)),
        (255, with(2, 0)),
        (255, with(11, 1)),
    ];
    host.run(|| {
        let target: SocketAddr = "192.0.2.1:3784".parse().expect("an address");
        let socket = UdpSocket::bind("192.0.2.12:0").expect("a socket");
        for (ttl, packet) in &noise {
            socket.set_ttl(*ttl).expect("the TTL");
            socket.send_to(packet, target).expect("sending");
        }
    });
    let bfd = eventually("all of it is refused", || {
        let bfd = peer(agent, "192.0.2.12")["bfd"].clone();
        let refused = bfd["packetsRefused"].as_object()?.values().filter_map(Value::as_u64).sum::<u64>();
        (refused >= noise.len() as u64).then_some(bfd)
    });
    let expected = json!({ "hop_limit": 1, "truncated": 2, "version": 1, "your_discriminator_zero": 1,
        "detect_multiplier_zero": 1, "unknown_discriminator": 1 });
    assert_eq!(bfd["packetsRefused"], expected);
    assert_eq!((&bfd["state"], &bfd["failures"]), (&json!("Up"), &json!(0)));
    let shown = agent.seaway("peer show 192.0.2.12").expect("the peer");
    assert!(shown.contains("bfd.packetsRefused.hop_limit"), "{shown}");
    let listed = agent.seaway("peer list").expect("the peers");
    assert!(
        listed.lines().next().is_some_and(|head| head.contains("STATE") && head.contains("BFD")),
        "{listed}"
    );
    let metrics = agent.get("/metrics").expect("the metrics");
    for line in [
        "seaway_bfd_session_up{peer=\"192.0.2.12\"} 1",
        "seaway_bfd_session_failures_total{peer=\"2001:db8::12\"} 0",
        "seaway_bfd_packets_refused_total{reason=\"hop_limit\"} 1",
    ] {
        assert!(metrics.lines().any(|found| found == line), "{line} is not in {metrics}");
    }
}
