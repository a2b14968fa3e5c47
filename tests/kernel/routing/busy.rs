//! A hold time of 3 s with every processor busy: no session drops.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::agent::Agent;
use super::capture::{Capture, KEEPALIVE, NOTIFICATION};
use super::daemons::{Kind, Side};
use super::interop::{agent, lan, peer_of, start};
use crate::netns::eventually;

const BUSY_TIME: Duration = Duration::from_secs(10);
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// `SEAWAY_HAMMER_SECONDS`, or a short time.
fn busy_time() -> Duration {
    let wanted = std::env::var("SEAWAY_HAMMER_SECONDS").ok();
    wanted.map_or(BUSY_TIME, |text| Duration::from_secs(text.parse().expect("a number of seconds")))
}

/// Keeps every processor busy with something else, twice, for that long; meanwhile, `look` is asked.
fn while_busy(time: Duration, look: impl Fn()) {
    let count = 2 * std::thread::available_parallelism().map_or(2, usize::from);
    let end = Instant::now() + time;
    std::thread::scope(|scope| {
        for _ in 0..count {
            scope.spawn(|| {
                while Instant::now() < end {
                    std::hint::spin_loop();
                }
            });
        }
        while Instant::now() < end {
            look();
            std::thread::park_timeout(LOOK_INTERVAL);
        }
    });
}

/// What changes where a session drops.
fn sessions(agent: &Agent) -> Vec<(Value, Value)> {
    let peers = agent.json("/v1/peers");
    let of = |peer: &Value| {
        assert_eq!(peer["state"], "Established", "{peer}");
        assert_eq!(peer["holdTimeSeconds"], json!(3), "{peer}");
        let changes = peer["history"].as_array().map(Vec::len);
        (peer["address"].clone(), json!(changes))
    };
    peers.as_array().expect("peers").iter().map(of).collect()
}

#[test]
fn sessions_with_a_hold_time_of_3_s_stay_up_while_every_processor_is_busy() {
    let folder = tempfile::tempdir().expect("a folder");
    let lan = lan();
    let sides: Vec<Side> = Kind::ALL
        .into_iter()
        .zip(11..)
        .map(|(kind, number)| Side { hold_time: 3, ..Side::new(kind, number, 64512, 64512) })
        .collect();
    let peers: Vec<Value> = sides.iter().map(|side| peer_of(side, &folder)).collect();
    let capture = Capture::start(&lan, "up0", folder.path());
    let mut agent = agent(&lan, &json!(peers), &folder);
    let daemons = start(&lan, sides, &folder);
    for daemon in &daemons {
        agent.await_peer(&daemon.side.v4(), "Established");
        eventually("the daemon has its session", || daemon.is_established("192.0.2.1").then_some(()));
    }
    // A second connection may have been there, which is settled by now.
    let before = sessions(&agent);
    let time = busy_time();
    while_busy(time, || assert_eq!(sessions(&agent), before, "a session has dropped"));
    assert_eq!(sessions(&agent), before, "a session has dropped");
    for daemon in &daemons {
        assert!(daemon.is_established("192.0.2.1"), "{:?}", daemon.side.kind);
    }
    let traffic = capture.finish();
    let farewells: Vec<_> =
        traffic.messages.iter().filter(|m| m.kind == NOTIFICATION && !m.ends_collision).collect();
    assert!(farewells.is_empty(), "{farewells:?}");
    for address in daemons.iter().map(|daemon| daemon.side.v4()).chain(["192.0.2.1".to_owned()]) {
        // One each second where nothing is late, and none for 3 s where the session ends.
        let count = traffic.lengths(&address, KEEPALIVE).len() as u64;
        assert!(count > time.as_secs() / 3, "{address} has said {count} times that it is there");
    }
}
