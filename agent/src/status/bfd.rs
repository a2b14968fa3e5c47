//! What is told of BFD: of each session, and of the thread that runs them.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use bfd::{Hops, Refusals, SessionStatus, State};
use serde_json::{Map, Value, json};

use crate::bfd_io::Snapshot;
use crate::metrics::text::Text;

/// The session with a peer, `null` where there is none.
pub fn session_of(snapshot: Option<&Snapshot>, peer: IpAddr) -> Value {
    let Some(snapshot) = snapshot else { return Value::Null };
    let session = snapshot.sessions.iter().find(|session| session.peer == peer);
    session.map_or(Value::Null, |session| session_json(session, snapshot.taken_at))
}

/// `null` where no peer ever had BFD.
pub fn thread_json(snapshot: Option<&Snapshot>) -> Value {
    let Some(snapshot) = snapshot else { return Value::Null };
    json!({
        "scheduling": snapshot.scheduling,
        "problems": snapshot.problems,
        "sessions": snapshot.sessions.len(),
        "up": snapshot.sessions.iter().filter(|session| session.state == State::Up).count(),
        "packetsRefused": refused(&snapshot.refusals),
    })
}

fn session_json(session: &SessionStatus, now: Instant) -> Value {
    let remote = &session.remote;
    let ms = |time: Duration| time.as_secs_f64() * 1000.0;
    let micros = |interval: u32| f64::from(interval) / 1000.0;
    json!({
        "state": session.state.to_string(),
        "diagnostic": session.diagnostic.to_string(),
        "remoteState": remote.state.to_string(),
        "remoteDiagnostic": remote.diagnostic.to_string(),
        "localDiscriminator": session.local_discriminator,
        "remoteDiscriminator": remote.discriminator,
        "maximumHops": match session.config.hops {
            Hops::Single => 1,
            Hops::Multiple(hops) => hops,
        },
        "minimumSendMilliseconds": ms(session.config.send_interval),
        "minimumReceiveMilliseconds": ms(session.config.receive_interval),
        "multiplier": session.config.multiplier,
        "remoteMinimumSendMilliseconds": micros(remote.desired_min_tx),
        "remoteMinimumReceiveMilliseconds": micros(remote.required_min_rx),
        "remoteMultiplier": remote.multiplier,
        "remoteDemand": remote.demand,
        "remoteControlPlaneIndependent": remote.control_plane_independent,
        "sendMilliseconds": ms(session.send_interval),
        "receiveMilliseconds": session.receive_interval.map(ms),
        "detectionMilliseconds": session.detection_time.map(ms),
        "isPolling": session.is_polling,
        "packetsSent": session.packets_sent,
        "packetsReceived": session.packets_received,
        "packetsRefused": refused(&session.refusals),
        "sendFailures": session.send_failures,
        "failures": session.failures,
        "lastChange": session.last_change.map(|(at, cause)| json!({
            "secondsAgo": now.duration_since(at).as_secs_f64(),
            "cause": cause.to_string(),
        })),
        "lastReceivedMilliseconds": session.last_received.map(|at| ms(now.duration_since(at))),
    })
}

/// Reasons that were met.
fn refused(refusals: &Refusals) -> Map<String, Value> {
    let met = refusals.iter().filter(|(_, count)| *count > 0);
    met.map(|(refusal, count)| (refusal.name().to_owned(), json!(count))).collect()
}

pub fn write(text: &mut Text, snapshot: &Snapshot) {
    let mut by_peer = |name, help, value: fn(&SessionStatus) -> u64| {
        let mut family = text.gauge(name, help);
        for session in &snapshot.sessions {
            family.sample(&[("peer", &session.peer.to_string())], value(session));
        }
    };
    by_peer("seaway_bfd_session_up", "Whether the BFD session is up.", |session| {
        u64::from(session.state == State::Up)
    });
    let mut failures = text.counter(
        "seaway_bfd_session_failures_total",
        "How often a path was lost since its peer was configured.",
    );
    for session in &snapshot.sessions {
        failures.sample(&[("peer", &session.peer.to_string())], session.failures);
    }
    let mut refused =
        text.counter("seaway_bfd_packets_refused_total", "BFD packets discarded, by every reason there is.");
    for (refusal, count) in snapshot.refusals.iter() {
        refused.sample(&[("reason", refusal.name())], count);
    }
}
