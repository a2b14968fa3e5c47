//! A real routing table (RIPE RIS, 2002) through the speaker: the best paths are those that BIRD chooses from the same
//! messages, and all of it goes out again.

use std::collections::{BTreeMap, HashMap};
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bgp::rib::Source;
use bgp::wire::update::{encode_end_of_rib, encode_reach};
use bgp::wire::{self, Attributes, Capability, DecodeContext, EncodeContext, Message, Nlri, Open, Update};
use bgp::{ConnectionId, Families, Family, Input, Output, PeerConfig, Prefix, Speaker, SpeakerConfig};

use super::agent::connect_from;
use super::peers::{Process, wire};
use crate::netns::eventually;

const ENTRIES: usize = 115_521;
const PREFIXES: usize = 112_988;
const ENCODE: EncodeContext = EncodeContext {
    four_octet_as: true,
    message_length_max: 4096,
    add_path: Families { ipv4: false, ipv6: false },
};

/// The dump, which is no part of the project. `SEAWAY_BGP_DATA` says in which folder it is.
fn dump() -> Option<Vec<u8>> {
    let beside = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../shared/data/bgp");
    let folder = std::env::var_os("SEAWAY_BGP_DATA").map_or(beside, PathBuf::from);
    let path = folder.join("bview.20020722.2337.gz");
    let Ok(file) = std::fs::File::open(&path) else {
        // Not eprintln!, which the test harness would swallow.
        let text = format!("NOT RUN: {} is not there; SEAWAY_BGP_DATA names its folder\n", path.display());
        std::io::stderr().write_all(text.as_bytes()).expect("the error output");
        return None;
    };
    let mut octets = Vec::new();
    flate2::read::GzDecoder::new(file).read_to_end(&mut octets).expect("the dump is whole");
    Some(octets)
}

/// One peer of the dump.
struct Peer {
    asn: u32,
    routes: HashMap<Attributes, Vec<Nlri>>,
}

/// Reads MRT records of type TABLE_DUMP (RFC 6396 section 4.2). Next hops become the addresses that the peers get here.
fn peers(dump: &[u8]) -> Vec<Peer> {
    let mut peers: BTreeMap<(u32, u32), Peer> = BTreeMap::new();
    let mut rest = dump;
    while let Some((header, more)) = rest.split_at_checked(12) {
        let number =
            |at: usize| u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        assert_eq!(number(4), 12 << 16 | 1, "TABLE_DUMP of IPv4");
        let (body, more) = more.split_at(number(8) as usize);
        rest = more;
        let prefix = &body[4..9];
        let peer = u32::from_be_bytes([body[14], body[15], body[16], body[17]]);
        let asn = u32::from(u16::from_be_bytes([body[18], body[19]]));
        let update =
            [&[0, 0], &body[20..], &[prefix[4]], &prefix[..usize::from(prefix[4].div_ceil(8))]].concat();
        let context = DecodeContext { external: true, ..DecodeContext::default() };
        let update = Update::decode(&update, &context).expect("an entry of the dump");
        // Some routes of that time were aggregated by AS 0 (RFC 7607): that attribute is discarded.
        assert!(update.errors.iter().all(|error| !error.withdraw && error.code == 7), "{:?}", update.errors);
        let peer = peers.entry((peer, asn)).or_insert_with(|| Peer { asn, routes: HashMap::new() });
        let nlri = update.reach[0].prefixes[0];
        peer.routes.entry(update.attributes).or_default().push(nlri);
    }
    peers.into_values().collect()
}

fn address(index: usize) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, 10 + index as u8)
}

impl Peer {
    /// All that it says, from OPEN to End-of-RIB.
    fn messages(&self, index: usize) -> Vec<Arc<[u8]>> {
        let mut messages = greeting(self.asn, address(index)).to_vec();
        for (attributes, prefixes) in &self.routes {
            let attributes = Attributes { next_hop: address(index).into(), ..attributes.clone() };
            messages.extend(encode_reach(&attributes, prefixes, &ENCODE));
        }
        messages.push(encode_end_of_rib(Family::Ipv4));
        messages
    }
}

fn greeting(asn: u32, router_id: Ipv4Addr) -> [Arc<[u8]>; 2] {
    let capabilities = vec![Capability::MultiProtocol(Family::Ipv4), Capability::FourOctetAs(asn)];
    let open = Open { asn, hold_time: 240, router_id, capabilities };
    [wire::encode_open(&open), wire::encode_keepalive()]
}

/// A speaker that has heard everybody, and what it has said to a receiver that came last.
fn speaker(peers: &[Peer], messages: &[Vec<Arc<[u8]>>]) -> (Speaker, Vec<Arc<[u8]>>) {
    let now = Instant::now();
    let router = Ipv4Addr::new(192, 0, 2, 1);
    let config = SpeakerConfig {
        asn: 64512,
        router_id: router,
        next_hop_v4: Some(router),
        next_hop_v6: None,
        hold_time: Duration::from_secs(240),
        connect_retry: Duration::from_secs(5),
        restart_time: Duration::ZERO,
        deferral_time: Duration::ZERO,
        listen_ranges: Vec::new(),
        long_lived_stale_time: None,
    };
    let receiver = Ipv4Addr::new(192, 0, 2, 200);
    let of = |asn| PeerConfig { asn: Some(asn), passive: true, ..PeerConfig::default() };
    let mut configs: BTreeMap<IpAddr, PeerConfig> =
        peers.iter().enumerate().map(|(index, peer)| (address(index).into(), of(peer.asn))).collect();
    configs.insert(receiver.into(), of(64999));
    let mut speaker = Speaker::new(config, now);
    speaker.set_peers(&configs, now);
    for (index, messages) in messages.iter().enumerate() {
        let id = ConnectionId(index as u64);
        speaker.handle(Input::Accepted { remote: address(index).into(), id }, now);
        for octets in messages {
            speaker.handle(Input::Received { id, octets }, now);
        }
    }
    let id = ConnectionId(1000);
    speaker.handle(Input::Accepted { remote: receiver.into(), id }, now);
    for octets in &greeting(64999, receiver) {
        speaker.handle(Input::Received { id, octets }, now);
    }
    let mut sent = Vec::new();
    while let Some(output) = speaker.poll_output() {
        match output {
            Output::Send { id: to, message } if to == id => sent.push(message),
            Output::Close { id } => panic!("connection {} is closed", id.0),
            _ => {}
        }
    }
    (speaker, sent)
}

/// Every prefix once, with the AS_PATH of its best path behind our own AS.
fn check_export(speaker: &Speaker, sent: &[Arc<[u8]>]) {
    let mut exported: HashMap<Prefix, Attributes> = HashMap::new();
    let context = DecodeContext { four_octet_as: true, external: true, ..DecodeContext::default() };
    for message in sent {
        let Ok(Message::Update(update)) = wire::decode(message, &context) else { continue };
        assert_eq!(update.errors, []);
        for nlri in update.reach.iter().flat_map(|reach| &reach.prefixes) {
            let twice = exported.insert(nlri.prefix, update.attributes.clone());
            assert!(twice.is_none(), "{} is sent twice", nlri.prefix);
        }
    }
    assert_eq!(exported.len(), PREFIXES);
    for route in speaker.routes() {
        let best = route.paths.iter().find(|path| Some(path.source) == route.best).expect("a best path");
        let mut expected = (*best.attributes).clone();
        expected.prepend(64512);
        let found = &exported[&route.prefix];
        assert_eq!(found.as_path, expected.as_path, "{}", route.prefix);
        assert_eq!(
            (found.origin, found.aggregator),
            (expected.origin, expected.aggregator),
            "{}",
            route.prefix
        );
        assert_eq!(found.communities, expected.communities, "{}", route.prefix);
    }
}

fn bird_configuration(peers: &[Peer]) -> String {
    let mut text = "router id 192.0.2.1;\nprotocol device {}\nprotocol direct { ipv4; }\n".to_owned();
    for (index, peer) in peers.iter().enumerate() {
        text.push_str(&format!(
            "protocol bgp p{index} {{ local 192.0.2.1 as 64512; neighbor {} as {}; passive on; hold time 240; \
             deterministic med on; ipv4 {{ import all; export none; }}; }}\n",
            address(index),
            peer.asn
        ));
    }
    text
}

#[test]
fn the_best_paths_of_a_real_table_are_those_that_bird_chooses() {
    let Some(dump) = dump() else { return };
    let peers = peers(&dump);
    assert_eq!(peers.len(), 36);
    let messages: Vec<Vec<Arc<[u8]>>> =
        peers.iter().enumerate().map(|(index, peer)| peer.messages(index)).collect();
    let folder = tempfile::tempdir().expect("a folder");
    let (host, other) = wire();
    other.ip("address flush dev up0 scope global");
    (0..peers.len()).for_each(|index| other.ip(&format!("address add {}/24 dev up0", address(index))));
    let file = folder.path().join("bird.conf");
    std::fs::write(&file, bird_configuration(&peers)).expect("bird.conf");
    let socket = folder.path().join("ctl");
    let mut bird = Command::new("/usr/sbin/bird");
    bird.arg("-f").arg("-c").arg(&file).arg("-s").arg(&socket);
    let _bird = Process::start(&host, &mut bird, &folder.path().join("log"));
    let ask = |question: &str| {
        let output =
            Command::new("/usr/sbin/birdc").arg("-s").arg(&socket).args(question.split(' ')).output();
        String::from_utf8_lossy(&output.expect("running birdc").stdout).into_owned()
    };
    eventually("BIRD has its peers", || ask("show protocols p35").contains("Passive").then_some(()));
    let streams: Vec<TcpStream> = other.run(|| {
        let speak = |(index, messages): (usize, &Vec<Arc<[u8]>>)| {
            let mut stream = connect_from(
                SocketAddr::new(address(index).into(), 0),
                SocketAddr::from(([192, 0, 2, 1], 179)),
            );
            stream.write_all(&messages.concat()).expect("BIRD reads");
            stream
        };
        messages.iter().enumerate().map(speak).collect()
    });
    let (speaker, sent) = speaker(&peers, &messages);
    let paths: usize = speaker.peers().iter().map(|peer| peer.routes - peer.routes_rejected).sum();
    assert_eq!((speaker.routes().len(), paths), (PREFIXES, ENTRIES));
    check_export(&speaker, &sent);
    let all = format!("{ENTRIES} of ");
    eventually("BIRD has the table", || {
        let shown = ask("show route count where source = RTS_BGP");
        shown.contains(&all).then_some(())
    });
    let shown = ask("show route primary where source = RTS_BGP");
    let chosen: BTreeMap<Prefix, usize> = shown.lines().filter_map(bird_choice).collect();
    assert_eq!(chosen.len(), PREFIXES);
    for route in speaker.routes() {
        let theirs = Source::Peer(address(chosen[&route.prefix]).into());
        assert_eq!(route.best, Some(theirs), "{} by {:?}: {:?}", route.prefix, route.reason, route.paths);
    }
    drop(streams);
}

/// `3.0.0.0/8   unicast [p5 11:20:15.123] * (100) [AS80i]`: the prefix, and the number of the peer.
fn bird_choice(line: &str) -> Option<(Prefix, usize)> {
    let (prefix, rest) = line.split_once(" unicast [p")?;
    let (peer, _) = rest.split_once(' ')?;
    Some((prefix.trim().parse().ok()?, peer.parse().ok()?))
}
