//! What a BFD peer sends: datagrams to a host that has a session with it, and one with another.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use bfd::{Arrival, Config, Endpoint, Hops, Input, Output, Packet, State};
use fuzz::{Fuzz, outcome};

const PEER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 2));
const WITNESS: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 3));
const CONFIG: Config = Config {
    send_interval: Duration::from_millis(100),
    receive_interval: Duration::from_millis(100),
    multiplier: 255,
    hops: Hops::Single,
};
/// Octets before each packet: how long it takes, its TTL, its length.
const HEAD: usize = 3;
const DICTIONARY: [&[u8]; 6] = [
    b"\x05\xff\x18",
    b"\x20\x40\x03\x18",
    b"\x20\xc4\x03\x1c",
    b"\x20\xe0\x03\x18",
    b"\x00\x01\x86\xa0\x00\x01\x86\xa0",
    b"\xff\xff\xff\xff",
];

/// One session of each, the witness's up.
fn host(now: Instant) -> (Endpoint, u32) {
    let mut host = Endpoint::new(7);
    host.set_peers(&BTreeMap::from([(PEER, CONFIG), (WITNESS, CONFIG)]), now);
    let discriminators = host.status();
    let witness = Packet {
        state: State::Init,
        detect_multiplier: 255,
        my_discriminator: 5,
        your_discriminator: discriminators[1].local_discriminator,
        desired_min_tx: 10_000_000,
        required_min_rx: 10_000_000,
        ..Packet::default()
    };
    let payload = witness.encode();
    host.handle(
        Input::Received(Arrival { source: WITNESS, multihop: false, ttl: Some(255), payload: &payload }),
        now,
    );
    (host, discriminators[0].local_discriminator)
}

fn seeds(discriminator: u32) -> Vec<Vec<u8>> {
    let states = [State::Down, State::Init, State::Up, State::AdminDown];
    let mut all: Vec<Vec<u8>> = states
        .into_iter()
        .map(|state| {
            let packet = Packet {
                state,
                poll: state == State::Up,
                detect_multiplier: 3,
                my_discriminator: 9,
                your_discriminator: discriminator,
                desired_min_tx: 100_000,
                required_min_rx: 100_000,
                ..Packet::default()
            };
            [&[5, 255, 24], &packet.encode()[..]].concat()
        })
        .collect();
    all.push(all.concat());
    all
}

#[test]
fn bfd_packets() {
    let start = Instant::now();
    let corpus = seeds(host(start).1);
    Fuzz { name: "bfd-packets", corpus, dictionary: &DICTIONARY }.run(|input| {
        let (mut host, _) = host(start);
        let mut now = start;
        let mut rest = input;
        let mut sent = 0_usize;
        let mut taken = 0_usize;
        while let Some((head, payload)) = rest.split_first_chunk::<HEAD>() {
            let [wait, ttl, length] = *head;
            let (payload, next) = payload.split_at(payload.len().min(usize::from(length)));
            (rest, taken) = (next, taken + 1);
            now += Duration::from_millis(u64::from(wait));
            if let Ok(packet) = Packet::decode(payload) {
                let again = Packet::decode(&packet.encode()).expect("what was written can be read");
                assert_eq!(again, Packet { authentication: false, ..packet });
            }
            let arrival = Arrival { source: PEER, multihop: false, ttl: Some(ttl), payload };
            host.handle(Input::Received(arrival), now);
            host.handle(Input::Tick, now);
            while let Some(output) = host.poll_output() {
                sent += usize::from(matches!(output, Output::Send { peer: PEER, .. }));
                assert!(!matches!(output, Output::Closed { .. }), "no session is closed by a packet");
            }
        }
        // An answer to each packet, and what the time allows.
        let allowed = taken + (now - start).as_millis() as usize / 75 + 2;
        assert!(sent <= allowed, "{sent} packets were sent, {allowed} are allowed");
        let status = host.status();
        assert_eq!(status[1].state, State::Up, "the other session is not touched");
        let refused: Vec<bool> = host.refusals().iter().map(|(_, count)| count > 0).collect();
        outcome(&(refused, status[0].state, status[0].is_polling, status[0].failures.min(3)))
    });
}
