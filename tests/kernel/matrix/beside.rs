//! What is no cell: names, health checks, and clients that are forgotten.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::asking::{Due, Protocol, ask};
use super::rows::Row;
use super::scene::{Scene, address_of, health_port};
use super::{Family, Place};
use crate::failures::fabric::pass;
use crate::netns::{NetNs, eventually};

const NAMES: [&str; 2] = ["headless.default.svc.cluster.local", "row-0.default.svc.cluster.local"];
const SERVER: &str = "10.96.0.10:53";
/// Ports of a Service that remembers its clients this long.
pub const FLEETING_PORTS: std::ops::Range<u16> = 90..98;
const REMEMBERED: Duration = Duration::from_secs(1);
const FLEETING: [&str; 2] = ["10.96.2.1", "fd00:10:96::201"];
const ROUNDS: usize = 10;

/// The Services of these tests.
pub fn services() -> Vec<Value> {
    let plain = json!({ "app": "plain" });
    let headless = json!({
        "clusterIP": "None", "ipFamilyPolicy": "RequireDualStack", "selector": plain,
        "ports": [{ "name": "tcp", "port": 80, "targetPort": 8080 }],
    });
    let ports: Vec<Value> = FLEETING_PORTS
        .map(|port| json!({ "name": format!("p{port}"), "port": port, "targetPort": 8080 }))
        .collect();
    let affinity = json!({ "clientIP": { "timeoutSeconds": REMEMBERED.as_secs() } });
    let fleeting = json!({
        "clusterIP": FLEETING[0], "clusterIPs": FLEETING, "ipFamilyPolicy": "RequireDualStack",
        "selector": plain, "ports": ports, "sessionAffinity": "ClientIP", "sessionAffinityConfig": affinity,
    });
    let named = |name: &str, spec: Value| json!({ "metadata": { "name": name }, "spec": spec });
    vec![named("headless", headless), named("fleeting", fleeting)]
}

/// A headless Service has no frontend, and the addresses of its pods under its name; others have their own.
pub fn headless_services_are_names_alone(scene: &Scene) {
    for node in &scene.nodes {
        let known = node.agent.json("/v1/services");
        let is_headless =
            |service: &Value| service["name"].as_str().is_some_and(|it| it.contains("headless"));
        assert!(!known.as_array().expect("a list").iter().any(is_headless), "{known}");
    }
    let pods = ["here", "there"].map(|name| scene.pod(name));
    for is_v4 in [true, false] {
        let wanted: BTreeSet<IpAddr> = pods.iter().map(|pod| address_of(pod, is_v4)).collect();
        let own: IpAddr = if is_v4 { "10.96.1.1" } else { "fd00:10:96::101" }.parse().expect("an address");
        for (name, wanted) in NAMES.into_iter().zip([wanted, BTreeSet::from([own])]) {
            for place in [Place::PodBySockets, Place::PodByPackets, Place::HostBySockets] {
                let netns = place.netns(scene);
                let found = eventually("DNS answers", || netns.run(|| resolve(name, is_v4)));
                assert_eq!(found, wanted, "{name} from {place:?}");
            }
        }
    }
}

/// The addresses of a name; `None` without an answer.
fn resolve(name: &str, is_v4: bool) -> Option<BTreeSet<IpAddr>> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.set_read_timeout(Some(Duration::from_secs(2))).ok()?;
    socket.connect(SERVER).ok()?;
    // RFC 1035, 4.1: one question.
    let mut question = vec![0x5e, 0xa1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.') {
        question.push(label.len() as u8);
        question.extend(label.as_bytes());
    }
    let kind = if is_v4 { 1 } else { 28 };
    question.extend([0, 0, kind, 0, 1]);
    socket.send(&question).ok()?;
    let mut buffer = [0; 512];
    let length = socket.recv(&mut buffer).ok()?;
    let mut rest = buffer.get(question.len()..length)?;
    let mut found = BTreeSet::new();
    // Each name is a pointer to the question's; type, class, time and length follow.
    for _ in 0..buffer[7] {
        let (record, after) = rest.split_at_checked(12)?;
        let (data, after) = after.split_at_checked(usize::from(record[11]))?;
        rest = after;
        match data.len() {
            4 => found.insert(<[u8; 4]>::try_from(data).ok()?.into()),
            16 => found.insert(<[u8; 16]>::try_from(data).ok()?.into()),
            _ => false,
        };
    }
    Some(found)
}

/// A node says how many endpoints it has of what only it would answer for.
pub fn balancers_find_the_nodes_with_endpoints(scene: &Scene, rows: &[Row]) {
    for (row, counts) in [
        ("external policy Local", [1, 1]),
        ("external policy Local, nothing there", [1, 0]),
        ("external policy Local, nothing here", [0, 1]),
        ("no endpoints, both policies Local", [0, 0]),
    ] {
        let number = rows.iter().position(|it| it.name == row).expect("a row");
        for (node, count) in ["192.0.2.11", "192.0.2.12"].into_iter().zip(counts) {
            let at = format!("{node}:{}", health_port(number));
            let (status, body) = eventually("the node answers", || http(&scene.outside, &at));
            let wanted = if count > 0 { "HTTP/1.1 200 OK" } else { "HTTP/1.1 503 Service Unavailable" };
            let said: Value = serde_json::from_str(&body).expect("JSON");
            assert_eq!((status.as_str(), &said["localEndpoints"]), (wanted, &json!(count)), "{row}: {at}");
        }
    }
}

fn http(host: &NetNs, at: &str) -> Option<(String, String)> {
    host.run(|| {
        let mut stream = TcpStream::connect(at).ok()?;
        let request = format!("GET / HTTP/1.1\r\nHost: {at}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        Some((head.lines().next()?.to_owned(), body.to_owned()))
    })
}

/// A client that was silent for longer than its Service remembers gets any backend.
pub fn clients_are_forgotten_in_time(scene: &Scene) {
    std::thread::scope(|scope| {
        for place in [Place::PodBySockets, Place::PodByPackets, Place::HostBySockets, Place::Outside] {
            for family in [Family::V4, Family::V6] {
                scope.spawn(move || place.netns(scene).run(|| is_forgotten(scene, place, family)));
            }
        }
    });
}

fn is_forgotten(scene: &Scene, place: Place, family: Family) {
    let address: IpAddr = FLEETING[usize::from(!family.is_v4())].parse().expect("an address");
    let all = || -> Vec<String> {
        let servers = FLEETING_PORTS.map(|port| {
            let answer = ask(place.ports(scene), Protocol::Tcp, SocketAddr::new(address, port), Due::Answer);
            answer.unwrap_or_else(|failure| panic!("{place:?}, {family:?}: {failure:?}")).server
        });
        servers.collect()
    };
    for _ in 0..ROUNDS {
        let began = Instant::now();
        let (first, again) = (all(), all());
        // Seconds are counted, so that one of them may be over at once.
        assert!(
            first == again || began.elapsed() > REMEMBERED / 2,
            "{place:?}, {family:?}: {first:?}, {again:?}"
        );
        pass(REMEMBERED + REMEMBERED / 2);
        if all() != again {
            return;
        }
    }
    panic!("{place:?}, {family:?}: the same backends after {ROUNDS} times {REMEMBERED:?}");
}
