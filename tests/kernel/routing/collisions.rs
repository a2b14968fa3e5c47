//! Both sides connect at the same time, over a wire so long that neither hears of the other before: what remains is one
//! session (RFC 4271 section 6.8), and it begins once.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::agent::Agent;
use super::capture::{Capture, Message, Traffic};
use super::daemons::{Daemon, Kind, Side};
use super::interop::{agent, await_route, peer_of};
use crate::netns::{NetNs, attempts, eventually};

/// From one end of the wire to the other.
const DELAY: Duration = Duration::from_millis(150);
/// How often a session begins anew, by each order of identifiers.
const ROUNDS: usize = 10;
/// How often all rounds are made where by chance one side was always quicker, so that nothing collided.
const TRIES: usize = 3;
/// Which does nothing for seconds after each loss.
const ROUNDS_OF_GOBGP: usize = 2;
const POLL_MILLISECONDS: u16 = 20;
const FRAME_MAX: usize = 2048;

/// A wire between links `up0` of two hosts on which everything takes a while.
struct LongWire {
    ended: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl LongWire {
    fn between(a: &NetNs, b: &NetNs) -> LongWire {
        let ends = [a, b].map(|host| host.run(tap));
        let ended = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        for (from, to) in [(0, 1), (1, 0)] {
            let (from, to) = (&ends[from], &ends[to]);
            let (mut from, mut to) =
                (from.try_clone().expect("a descriptor"), to.try_clone().expect("a descriptor"));
            let (sender, frames) = mpsc::channel::<(Instant, Vec<u8>)>();
            let until = ended.clone();
            threads.push(std::thread::spawn(move || read_frames(&mut from, &sender, &until)));
            threads.push(std::thread::spawn(move || {
                for (at, frame) in frames {
                    let wait = at.saturating_duration_since(Instant::now());
                    std::thread::sleep(wait);
                    // A link that is down takes nothing, as a cut wire would.
                    let _ = to.write(&frame);
                }
            }));
        }
        LongWire { ended, threads }
    }
}

impl Drop for LongWire {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // Its panic is that of the test, which has seen what came of it.
            let _ = thread.join();
        }
    }
}

fn read_frames(from: &mut File, sender: &mpsc::Sender<(Instant, Vec<u8>)>, ended: &AtomicBool) {
    use std::os::fd::AsFd;
    let mut frame = vec![0; FRAME_MAX];
    while !ended.load(Ordering::Relaxed) {
        let mut polled = [nix::poll::PollFd::new(from.as_fd(), nix::poll::PollFlags::POLLIN)];
        if nix::poll::poll(&mut polled, POLL_MILLISECONDS).unwrap_or(0) == 0 {
            continue;
        }
        let Ok(length) = from.read(&mut frame) else { continue };
        if sender.send((Instant::now() + DELAY, frame[..length].to_vec())).is_err() {
            return;
        }
    }
}

/// The kernel's `struct ifreq`, as far as it is needed.
#[repr(C)]
struct Request {
    name: [u8; libc::IFNAMSIZ],
    flags: libc::c_short,
    rest: [u8; 22],
}

/// Link `up0` of this thread's namespace, whose frames are read and written by who holds the file.
fn tap() -> File {
    let file = File::options().read(true).write(true).open("/dev/net/tun").expect("/dev/net/tun");
    let mut request = Request { name: [0; libc::IFNAMSIZ], flags: 0, rest: [0; 22] };
    request.name[..3].copy_from_slice(b"up0");
    request.flags = (libc::IFF_TAP | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: the descriptor is open, and the request is a whole ifreq, which the call reads and writes.
    let made = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    assert_eq!(made, 0, "a tap: {}", std::io::Error::last_os_error());
    file
}

/// Connections of a host to or from port 179 that are up: each by what no other one ever has.
fn connections(host: &NetNs) -> Vec<String> {
    let filter = "( sport = :179 or dport = :179 )";
    let mut ss = Command::new("ss");
    ss.args(["-Htne", "state", "established", filter]);
    let output = host.run(|| ss.output().expect("running ss"));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let cookie = |line: &str| line.split_whitespace().find(|word| word.starts_with("sk:")).map(str::to_owned);
    text.lines().map(|line| cookie(line).unwrap_or_else(|| panic!("ss says {line}"))).collect()
}

/// The daemon's host forgets its connections, and tells the other end so.
fn cut_connections(host: &NetNs) {
    let mut ss = Command::new("ss");
    ss.args(["-K", "-Htn", "state", "established", "( sport = :179 or dport = :179 )"]);
    let output = host.run(|| ss.output().expect("running ss"));
    assert!(output.status.success(), "ss: {}", String::from_utf8_lossy(&output.stderr));
}

/// What the agent says of its only peer.
fn peer(agent: &Agent) -> Value {
    agent.json("/v1/peers")[0].clone()
}

/// How many sessions have begun, of those that are remembered.
fn begun(peer: &Value) -> usize {
    let history = peer["history"].as_array().expect("a history");
    history.iter().filter(|change| change["state"] == "Established").count()
}

/// Both sides say that there is a session over the one connection, which is not the one before.
fn await_one_session(agent: &Agent, daemon: &Daemon, local: &NetNs, before: &[String]) -> Vec<String> {
    let kind = daemon.side.kind;
    let mut seen = String::new();
    let now = attempts(|| {
        let (ours, theirs) = (connections(local), connections(&daemon.host));
        let (peer, established) = (peer(agent), daemon.is_established("192.0.2.1"));
        let one = ours.len() == 1 && ours != before && theirs.len() == 1;
        seen = format!("our {ours:?}, their {theirs:?}, established there: {established}, here: {peer}");
        (one && peer["state"] == "Established" && established).then_some(ours)
    });
    let now = now.unwrap_or_else(|| panic!("no new session with {kind:?} after {before:?}: {seen}"));
    // What is on the wire still must not change it.
    let end = Instant::now() + 3 * DELAY;
    eventually("what was sent has arrived", || (Instant::now() > end).then_some(()));
    let peer = peer(agent);
    assert_eq!((&peer["state"], connections(local)), (&json!("Established"), now.clone()), "{peer}");
    assert!(daemon.is_established("192.0.2.1"), "{kind:?}: {peer}");
    now
}

/// Resets the session again and again; the daemon's identifier is lower or higher than the agent's.
fn collide(kind: Kind, router_id: Option<&'static str>) -> Traffic {
    let folder = tempfile::tempdir().expect("a folder");
    let (local, remote) = (NetNs::new(), NetNs::new());
    let _wire = LongWire::between(&local, &remote);
    let mut side = Side::new(kind, 11, 64512, 64512);
    (side.router_id, side.restarts) = (router_id, true);
    for (host, v4, v6) in [(&local, "192.0.2.1", "2001:db8::1"), (&remote, "192.0.2.11", "2001:db8::11")] {
        host.ip(&format!("address add {v4}/24 dev up0"));
        host.ip(&format!("-6 address add {v6}/64 dev up0 nodad"));
        host.ip("link set up0 up");
    }
    let capture = Capture::start(&local, "up0", folder.path());
    let agent = agent(&local, &json!([peer_of(&side, &folder)]), &folder);
    let daemon = Daemon::start(side, remote, folder.path());
    let mut connection = await_one_session(&agent, &daemon, &local, &[]);
    let begun = || begun(&peer(&agent));
    let rounds = if kind == Kind::GoBgp { ROUNDS_OF_GOBGP } else { ROUNDS };
    for _ in 0..rounds {
        let before = begun();
        match kind {
            Kind::Bird => daemon.reset("restart peer0"),
            Kind::Frr => daemon.reset("clear bgp 192.0.2.1"),
            // Told to do so, it would do nothing for half a minute first.
            Kind::GoBgp => cut_connections(&daemon.host),
        }
        connection = await_one_session(&agent, &daemon, &local, &connection);
        // Only the newest changes are remembered.
        assert!(begun() <= before + 1, "{kind:?}: no session is lost to a collision: {}", peer(&agent));
    }
    await_route(&local, "10.11.0.0/16", "192.0.2.11");
    await_route(&local, "2001:db8:11::/48", "2001:db8::11");
    drop((daemon, agent));
    capture.finish()
}

#[test]
fn when_both_sides_connect_at_once_one_session_remains() {
    // Ours is 192.0.2.1.
    let orders = [Some("192.0.1.255"), None];
    std::thread::scope(|scope| {
        for kind in Kind::ALL {
            for router_id in orders {
                scope.spawn(move || {
                    // GoBGP closes what comes too much without a word.
                    let has_collided =
                        (0..TRIES).any(|_| judge(kind, &collide(kind, router_id)) || kind == Kind::GoBgp);
                    assert!(has_collided, "{kind:?}: nothing has collided");
                });
            }
        }
    });
}

/// What we end for a collision the peer cannot hold established: we have never said there that its OPEN is good. Others may end
/// whichever comes after a session is established. Whether anything has collided.
fn judge(kind: Kind, traffic: &Traffic) -> bool {
    const KEEPALIVE: u8 = 4;
    let ended: Vec<_> = traffic.messages.iter().filter(|message| message.ends_collision).collect();
    for end in ended.iter().filter(|message| message.from == "192.0.2.1") {
        let is_good = |message: &&Message| {
            message.connection == end.connection && message.from == end.from && message.kind == KEEPALIVE
        };
        assert_eq!(traffic.messages.iter().filter(is_good).count(), 0, "{kind:?}, {end:?}");
    }
    !ended.is_empty()
}
