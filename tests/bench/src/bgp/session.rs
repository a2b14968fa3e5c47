//! The other side of a device: a sender whose messages are encoded before the clock starts, and a receiver that counts
//! prefixes. Both are the same for every device.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream},
    sync::{
        Arc,
        mpsc::{self, Receiver, Sender},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use bgp::{
    Families, Family, Prefix,
    wire::{
        self, AsSegment, Attributes, Capability, EncodeContext, Nlri, Open,
        update::{encode_reach, encode_withdraw},
    },
};

const PORT: u16 = 179;
const PAUSE: Duration = Duration::from_millis(20);
const READY_TIME_MAX: Duration = Duration::from_secs(30);
/// No device may take longer for anything that is asked of it.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(60);
const READ_SIZE: usize = 256 << 10;
/// Seconds; a run is shorter than a third of it, so that keepalives need not be sent.
const HOLD_TIME: u16 = 240;
const ENCODE: EncodeContext = EncodeContext {
    four_octet_as: true,
    message_length_max: wire::MESSAGE_LENGTH_MAX,
    add_path: Families { ipv4: false, ipv6: false },
};
/// Prefixes of one UPDATE, which share their attributes with no other UPDATE's.
const SHARED: u32 = 200;
/// Of the prefixes, which follow each other from here.
const FIRST: u32 = u32::from_be_bytes([10, 0, 0, 0]);
const LENGTH: u8 = 26;
/// That there can be at most.
pub(super) const PREFIXES_MAX: u32 = 1 << (LENGTH - 8);

/// One of the prefixes.
pub(super) fn prefix(index: u32) -> Prefix {
    let address = IpAddr::from((FIRST + (index << (32 - LENGTH))).to_be_bytes());
    Prefix::new(address, LENGTH).expect("a length that there is")
}

/// Announcements of the first `count` prefixes, over these next hops in turn.
pub(super) fn announcements(count: u32, asn: u32, next_hops: &[Ipv4Addr]) -> Vec<u8> {
    let mut octets = Vec::new();
    let shared = SHARED.min(count.div_ceil(u32::try_from(next_hops.len()).unwrap_or(1)));
    for (number, first) in (0..count).step_by(shared as usize).enumerate() {
        let prefixes: Vec<Nlri> =
            (first..count.min(first + shared)).map(|index| prefix(index).into()).collect();
        let origin = 100_000 + number as u32;
        let attributes = Attributes {
            as_path: vec![AsSegment::Sequence(vec![asn, origin])],
            next_hop: next_hops[number % next_hops.len()].into(),
            ..Attributes::default()
        };
        octets
            .extend(encode_reach(&attributes, &prefixes, &ENCODE).iter().flat_map(|message| message.iter()));
    }
    octets
}

/// Withdrawals of the first `count` prefixes, as many in each UPDATE.
pub(super) fn withdrawals(count: u32) -> Vec<u8> {
    let mut octets = Vec::new();
    for first in (0..count).step_by(SHARED as usize) {
        let prefixes: Vec<Nlri> =
            (first..count.min(first + SHARED)).map(|index| prefix(index).into()).collect();
        octets.extend(encode_withdraw(&prefixes, &ENCODE).iter().flat_map(|message| message.iter()));
    }
    octets
}

pub(super) fn open(asn: u32, router_id: Ipv4Addr) -> Arc<[u8]> {
    let capabilities = vec![Capability::MultiProtocol(Family::Ipv4), Capability::FourOctetAs(asn)];
    wire::encode_open(&Open { asn, hold_time: HOLD_TIME, router_id, capabilities })
}

/// Connects from an address to the device, again and again until the session is established.
pub(super) fn establish(local: Ipv4Addr, device: Ipv4Addr, asn: u32) -> Result<TcpStream> {
    let deadline = Instant::now() + READY_TIME_MAX;
    loop {
        match greet(local, device, asn) {
            Ok(stream) => return Ok(stream),
            Err(error) if Instant::now() > deadline => {
                return Err(error).with_context(|| format!("no session from {local} with {device}"));
            }
            Err(_) => std::thread::sleep(PAUSE),
        }
    }
}

fn greet(local: Ipv4Addr, device: Ipv4Addr, asn: u32) -> Result<TcpStream> {
    let mut stream = connect(local, device)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(&open(asn, local))?;
    let mut header = [0; wire::HEADER_LENGTH];
    let mut seen = Vec::new();
    while seen != [1, 4] {
        stream.read_exact(&mut header)?;
        let length = usize::from(u16::from_be_bytes([header[16], header[17]]));
        let mut body = vec![0; length.saturating_sub(header.len())];
        stream.read_exact(&mut body)?;
        ensure!(matches!(header[18], 1 | 4), "message of type {}: {body:?}", header[18]);
        if header[18] == 1 {
            stream.write_all(&wire::encode_keepalive())?;
        }
        seen.push(header[18]);
    }
    stream.set_read_timeout(None)?;
    Ok(stream)
}

fn connect(local: Ipv4Addr, device: Ipv4Addr) -> Result<TcpStream> {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, socket};
    use std::os::fd::AsRawFd as _;
    let fd = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    let sockaddr = |address, port| {
        let SocketAddr::V4(address) = SocketAddr::new(IpAddr::V4(address), port) else {
            unreachable!("it is IPv4")
        };
        SockaddrIn::from(address)
    };
    bind(fd.as_raw_fd(), &sockaddr(local, 0))?;
    connect(fd.as_raw_fd(), &sockaddr(device, PORT))?;
    Ok(TcpStream::from(fd))
}

/// What there is to count of one message.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Counted<'a> {
    withdrawn: &'a [u8],
    announced: &'a [u8],
}

/// The prefixes of an UPDATE, as they travel. IPv4 alone, outside of MP_REACH_NLRI, which no device uses for it here.
pub(super) fn prefixes_of(message: &[u8]) -> Option<Counted<'_>> {
    let body = message.get(wire::HEADER_LENGTH..).filter(|_| message[18] == 2)?;
    let length = |at: usize| Some(usize::from(u16::from_be_bytes([*body.get(at)?, *body.get(at + 1)?])));
    let withdrawn = body.get(2..2 + length(0)?)?;
    let attributes = 2 + withdrawn.len();
    let announced = body.get(attributes + 2 + length(attributes)?..)?;
    Some(Counted { withdrawn, announced })
}

/// The prefixes of the receiver: which it has, and how many.
#[derive(Default)]
pub(super) struct Table {
    words: Vec<u64>,
    held: u32,
}

impl Table {
    fn set(&mut self, index: u32, present: bool) {
        let (word, bit) = ((index / 64) as usize, 1 << (index % 64));
        if self.words.len() <= word {
            self.words.resize(word + 1, 0);
        }
        if (self.words[word] & bit != 0) != present {
            self.words[word] ^= bit;
            self.held = if present { self.held + 1 } else { self.held - 1 };
        }
    }

    fn each(&mut self, mut octets: &[u8], present: bool) -> Result<()> {
        while let Some((&length, rest)) = octets.split_first() {
            let significant = usize::from(length.div_ceil(8));
            ensure!(length == LENGTH && rest.len() >= significant, "a prefix of length {length}");
            let address = u32::from_be_bytes([rest[0], rest[1], rest[2], rest[3]]);
            self.set(address.wrapping_sub(FIRST) >> (32 - LENGTH), present);
            octets = &rest[significant..];
        }
        Ok(())
    }

    /// Takes in all whole messages; returns how many octets they have, and how many of them are UPDATEs with prefixes.
    pub(super) fn take(&mut self, octets: &[u8]) -> Result<(usize, u32)> {
        let (mut at, mut updates) = (0, 0);
        while let Some(header) = octets.get(at..at + wire::HEADER_LENGTH) {
            let length = usize::from(u16::from_be_bytes([header[16], header[17]]));
            ensure!(length >= wire::HEADER_LENGTH, "a message of {length} octets");
            let Some(message) = octets.get(at..at + length) else { break };
            ensure!(message[18] != 3, "a NOTIFICATION: {message:?}");
            if let Some(counted) = prefixes_of(message) {
                self.each(counted.withdrawn, false)?;
                self.each(counted.announced, true)?;
                updates += u32::from(!counted.withdrawn.is_empty() || !counted.announced.is_empty());
            }
            at += length;
        }
        Ok((at, updates))
    }

    pub(super) const fn held(&self) -> u32 {
        self.held
    }
}

/// The receiver has as many prefixes as it was to have.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reached {
    pub(super) at: Instant,
    /// In how many UPDATEs they came.
    pub(super) updates: u32,
}

/// Counts prefixes on a thread of its own.
pub(super) struct Counter {
    wanted: Sender<u32>,
    reached: Receiver<Result<Reached>>,
    stream: TcpStream,
    thread: Option<JoinHandle<()>>,
}

impl Counter {
    pub(super) fn start(stream: TcpStream) -> Result<Self> {
        let (wanted, wishes) = mpsc::channel();
        let (answers, reached) = mpsc::channel();
        let reading = stream.try_clone().context("a second descriptor")?;
        let thread = std::thread::Builder::new()
            .name("receiver".to_owned())
            .spawn(move || {
                if let Err(error) = count(reading, &wishes, &answers) {
                    // Fails when nobody waits any more.
                    let _ = answers.send(Err(error));
                }
            })
            .context("starting a thread")?;
        Ok(Self { wanted, reached, stream, thread: Some(thread) })
    }

    /// Asks to be told when this many are there; before anything is sent that leads to it.
    pub(super) fn expect(&self, count: u32) -> Result<()> {
        self.wanted.send(count).ok().context("the receiver has ended")
    }

    pub(super) fn wait(&self) -> Result<Reached> {
        self.reached.recv_timeout(ANSWER_TIME_MAX).context("the receiver is not told all")?
    }
}

impl Drop for Counter {
    fn drop(&mut self) {
        // Fails where the other side has closed it, which ends the thread too.
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn count(mut stream: TcpStream, wishes: &Receiver<u32>, answers: &Sender<Result<Reached>>) -> Result<()> {
    let mut table = Table::default();
    let mut buffer = vec![0; READ_SIZE];
    let (mut filled, mut updates, mut wanted) = (0, 0, None);
    loop {
        let length = match stream.read(&mut buffer[filled..]) {
            Ok(0) => bail!("the device has closed the receiver's connection"),
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            length => length.context("reading from the device")?,
        };
        filled += length;
        let (consumed, more) = table.take(&buffer[..filled])?;
        buffer.copy_within(consumed..filled, 0);
        filled -= consumed;
        updates += more;
        while let Ok(wish) = wishes.try_recv() {
            wanted = Some(wish);
        }
        if wanted == Some(table.held()) {
            wanted = None;
            let reached = Reached { at: Instant::now(), updates: std::mem::take(&mut updates) };
            // Fails when nobody waits any more.
            let _ = answers.send(Ok(reached));
        }
    }
}

/// Addresses that follow each other.
pub(super) fn gateways(first: Ipv4Addr, count: u32) -> Vec<Ipv4Addr> {
    (0..count).map(|index| Ipv4Addr::from(u32::from(first) + index)).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    #[test]
    fn what_is_sent_is_counted_also_in_pieces() {
        let octets = announcements(1000, 65001, &[Ipv4Addr::new(192, 0, 2, 2)]);
        let mut table = Table::default();
        let (consumed, updates) = table.take(&octets[..octets.len() - 1]).unwrap();
        assert_eq!((table.held(), updates), (800, 4));
        let (rest, updates) = table.take(&octets[consumed..]).unwrap();
        assert_eq!((table.held(), updates, consumed + rest), (1000, 1, octets.len()));
        table.take(&octets).unwrap();
        assert_eq!(table.held(), 1000, "what comes twice counts once");
        table.take(&withdrawals(999)).unwrap();
        assert_eq!(table.held(), 1);
    }

    #[test]
    fn every_next_hop_is_used() {
        let hops = gateways(Ipv4Addr::new(10, 200, 0, 10), 300);
        let octets = announcements(900, 65001, &hops);
        let context = wire::DecodeContext { four_octet_as: true, external: true, ..Default::default() };
        let (mut at, mut seen) = (0, HashMap::new());
        while let Ok(Some(length)) = wire::message_length(&octets[at..], false) {
            let wire::Message::Update(update) = wire::decode(&octets[at..at + length], &context).unwrap()
            else {
                panic!("only UPDATEs are sent")
            };
            *seen.entry(update.reach[0].next_hop).or_insert(0) += update.reach[0].prefixes.len();
            at += length;
            if at == octets.len() {
                break;
            }
        }
        assert_eq!(seen.len(), 300);
        assert!(seen.values().all(|count| *count == 3));
    }
}
