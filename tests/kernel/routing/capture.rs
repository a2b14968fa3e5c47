//! All that passes over a link, judged by tshark: no message of BGP is malformed, whoever sent it.
//!
//! TCP segments are written to a file while a test runs. When the value is dropped, tshark reads it, so that no test
//! that has one can forget to ask.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{SystemTime, UNIX_EPOCH};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

use crate::netns::NetNs;

pub const OPEN: u8 = 1;
pub const UPDATE: u8 = 2;
pub const NOTIFICATION: u8 = 3;
pub const KEEPALIVE: u8 = 4;
/// Octets of a frame at most, which may be a segment that is to be cut up by a device.
const FRAME_MAX: usize = 256 << 10;
/// Octets that may wait to be written.
const BUFFER: usize = 256 << 20;
/// tshark's severity of an error; warnings and notes are less.
const ERROR: u64 = 0x0080_0000;
const ETHERNET_HEADER: usize = 14;
/// Octets of a message, without RFC 8654.
const LENGTH_MAX: u64 = 4096;

pub struct Capture {
    path: PathBuf,
    ended: Arc<AtomicBool>,
    writer: Option<JoinHandle<()>>,
    /// Whose messages may be malformed.
    hostile: BTreeSet<String>,
    takes_extended: bool,
}

/// One message of BGP, as tshark reads it.
#[derive(Clone, Debug)]
pub struct Message {
    pub from: String,
    pub to: String,
    /// A number of the connection.
    pub connection: u32,
    pub kind: u8,
    /// Octets, header included.
    pub length: usize,
    /// A Cease of subcode 7: connection collision resolution.
    pub ends_collision: bool,
}

/// What tshark found.
#[derive(Debug, Default)]
pub struct Traffic {
    pub messages: Vec<Message>,
    pub malformed: Vec<Fault>,
}

#[derive(Debug)]
pub struct Fault {
    pub from: String,
    pub why: String,
    /// There are messages of more than 4,096 octets, and nothing else is wrong.
    pub is_length_alone: bool,
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.from, self.why)
    }
}

impl Capture {
    /// Of a link of this host, from now on; the file is in `folder`.
    pub fn start(host: &NetNs, link: &str, folder: &Path) -> Capture {
        let path = folder.join(format!("{link}-{}.pcap", crate::netns::unique()));
        let index = host.interface_index(link);
        let socket = host.run(|| packet_socket(index));
        let ended = Arc::new(AtomicBool::new(false));
        let file = BufWriter::new(File::create(&path).expect("the file of packets"));
        let until = ended.clone();
        let writer = std::thread::spawn(move || write_segments(&socket, file, &until));
        Capture { path, ended, writer: Some(writer), hostile: BTreeSet::new(), takes_extended: false }
    }

    /// What this one says may be malformed.
    pub fn expect_hostile(&mut self, address: &str) {
        self.hostile.insert(address.to_owned());
    }

    /// Messages may be longer than 4,096 octets (RFC 8654). tshark 4.0 knows of none, says that their length is invalid, and
    /// looks no further into them.
    pub fn expect_extended(&mut self) {
        self.takes_extended = true;
    }

    /// Ends it and returns what tshark says of it.
    pub fn finish(mut self) -> Traffic {
        self.judge()
    }

    fn judge(&mut self) -> Traffic {
        let Some(writer) = self.writer.take() else { return Traffic::default() };
        self.ended.store(true, Ordering::Relaxed);
        writer.join().expect("all packets were written");
        let traffic = read(&self.path);
        let is_wrong = |fault: &&Fault| {
            let is_expected = self.takes_extended && fault.is_length_alone;
            !(is_expected || self.hostile.contains(&fault.from))
        };
        let wrong: Vec<String> = traffic.malformed.iter().filter(is_wrong).map(Fault::to_string).collect();
        assert!(wrong.is_empty(), "tshark finds these malformed: {wrong:?}");
        for kind in [OPEN, UPDATE] {
            let seen = traffic.messages.iter().any(|message| message.kind == kind);
            assert!(seen || !self.hostile.is_empty(), "tshark has seen no message of type {kind}");
        }
        traffic
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        if !std::thread::panicking() {
            self.judge();
        }
    }
}

impl Traffic {
    pub fn lengths_between(&self, from: &str, to: &str, kind: u8) -> Vec<usize> {
        let of = self.messages.iter().filter(|m| m.from == from && m.to == to && m.kind == kind);
        of.map(|message| message.length).collect()
    }

    pub fn lengths(&self, from: &str, kind: u8) -> Vec<usize> {
        let of = self.messages.iter().filter(|message| message.from == from && message.kind == kind);
        of.map(|message| message.length).collect()
    }
}

/// A socket that is given all frames of a link, also those that the host sends.
fn packet_socket(index: u32) -> OwnedFd {
    let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll)
        .expect("a packet socket");
    setsockopt(&socket, sockopt::RcvBufForce, &BUFFER).expect("a large buffer");
    setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::milliseconds(20)).expect("a timeout");
    // SAFETY: all fields are integers or arrays of integers, for which zero is a value.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
    address.sll_ifindex = index.cast_signed();
    let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: the descriptor is open, and the address is valid for its length.
    let bound = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) };
    assert_eq!(bound, 0, "the link's packets: {}", std::io::Error::last_os_error());
    socket
}

fn write_segments(socket: &OwnedFd, mut file: BufWriter<File>, ended: &AtomicBool) {
    // Microseconds, version 2.4, Ethernet.
    let header = [0xa1b2_c3d4_u32, 2 | 4 << 16, 0, 0, FRAME_MAX as u32, 1];
    file.write_all(&header.map(u32::to_le_bytes).concat()).expect("writing packets");
    let mut frame = vec![0; FRAME_MAX];
    loop {
        // What came before the end is in the buffer: an empty one is the end.
        let last = ended.load(Ordering::Relaxed);
        match recv(socket.as_raw_fd(), &mut frame, MsgFlags::empty()) {
            Ok(length) => {
                assert!(length < FRAME_MAX, "a frame is cut short");
                write_frame(&mut file, &frame[..length]);
            }
            Err(nix::errno::Errno::EAGAIN) if last => break,
            // The link may be cut while nothing else ends.
            Err(nix::errno::Errno::EAGAIN | nix::errno::Errno::EINTR | nix::errno::Errno::ENETDOWN) => {}
            Err(error) => panic!("reading packets: {error}"),
        }
    }
    file.flush().expect("writing packets");
    assert_eq!(dropped(socket), 0, "the capture has lost packets");
}

fn write_frame(file: &mut BufWriter<File>, frame: &[u8]) {
    let is_tcp = match frame.get(12..ETHERNET_HEADER) {
        Some([0x08, 0x00]) => frame.get(ETHERNET_HEADER + 9) == Some(&6),
        Some([0x86, 0xdd]) => frame.get(ETHERNET_HEADER + 6) == Some(&6),
        _ => false,
    };
    if !is_tcp {
        return;
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a time after 1970");
    let length = frame.len() as u32;
    let record = [now.as_secs() as u32, now.subsec_micros(), length, length];
    file.write_all(&record.map(u32::to_le_bytes).concat()).expect("writing packets");
    file.write_all(frame).expect("writing packets");
}

/// Packets that found no room, from the kernel's `struct tpacket_stats`.
fn dropped(socket: &OwnedFd) -> u32 {
    let mut counts = [0u32; 2];
    let mut length = size_of_val(&counts) as libc::socklen_t;
    // SAFETY: the descriptor is open, and both pointers are valid for what is written.
    let got = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_STATISTICS,
            (&raw mut counts).cast(),
            &raw mut length,
        )
    };
    assert_eq!(got, 0, "the capture's statistics: {}", std::io::Error::last_os_error());
    counts[1]
}

const FIELDS: [&str; 11] = [
    "ip.src",
    "ip.dst",
    "ipv6.src",
    "ipv6.dst",
    "tcp.stream",
    "bgp.type",
    "bgp.length",
    "bgp.notify.minor_error_cease",
    "_ws.malformed",
    "_ws.expert.severity",
    "_ws.expert.message",
];

fn read(path: &Path) -> Traffic {
    let mut tshark = Command::new("tshark");
    tshark
        .args(["-n", "-Y", "bgp", "-T", "fields", "-E", "separator=|", "-E", "occurrence=a", "-r"])
        .arg(path);
    // The host's resolvers and the user's preferences have no say.
    tshark.args(["-o", "tcp.desegment_tcp_streams:TRUE", "-o", "bgp.desegment:TRUE"]);
    tshark.args(FIELDS.iter().flat_map(|field| ["-e", *field]));
    let output = tshark.output().expect("running tshark");
    assert!(output.status.success(), "tshark: {}", String::from_utf8_lossy(&output.stderr));
    let mut traffic = Traffic::default();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        traffic.take(line);
    }
    traffic
}

impl Traffic {
    /// One packet, in which several messages may end.
    fn take(&mut self, line: &str) {
        let fields: Vec<&str> = line.splitn(FIELDS.len(), '|').collect();
        let [v4, to_v4, v6, to_v6, stream, kinds, lengths, ceases, malformed, severities, why] = fields[..]
        else {
            panic!("tshark says {line:?}")
        };
        let (from, to) = if v4.is_empty() { (v6, to_v6) } else { (v4, to_v4) };
        let (from, to) = (from.to_owned(), to.to_owned());
        let (kinds, lengths) = (numbers(kinds), numbers(lengths));
        let long = lengths.iter().filter(|length| **length > LENGTH_MAX).count();
        let errors = numbers(severities).into_iter().filter(|severity| *severity >= ERROR).count();
        if errors > 0 || !malformed.is_empty() {
            let invalid = why.matches("Length is invalid").count();
            let is_length_alone = long > 0 && (errors, invalid) == (long, long);
            let why = format!("{malformed} {why}");
            self.malformed.push(Fault { from: from.clone(), why, is_length_alone });
        }
        let (mut kinds, mut ceases) = (kinds.into_iter(), numbers(ceases).into_iter());
        for length in lengths {
            // OPEN and KEEPALIVE are never that long, and nobody has so much to say at the end.
            let kind =
                if length > LENGTH_MAX { u64::from(UPDATE) } else { kinds.next().unwrap_or_default() } as u8;
            self.messages.push(Message {
                from: from.clone(),
                to: to.clone(),
                connection: stream.parse().unwrap_or_default(),
                kind,
                length: length as usize,
                ends_collision: kind == NOTIFICATION && ceases.next() == Some(7),
            });
        }
    }
}

/// Decimal or hexadecimal, between commas.
fn numbers(text: &str) -> Vec<u64> {
    let number = |text: &str| match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    };
    text.split(',').filter_map(number).collect()
}
