//! Netlink, as much as links, routes and socket diagnosis need: messages, batches, dumps, events.
//!
//! Requests of a batch go out in few sends and only the last of each asks for an acknowledgement, so that the
//! kernel's own insert time is what a route costs. Sockets belong to the namespace they were opened in.

use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// Requests per send.
const BATCH_SIZE: usize = 512;
/// Octets; holds the answers to a whole batch of failures.
const RECEIVE_BUFFER: libc::c_int = 8 << 20;

/// Octets; holds the largest part of a dump, which is not looked at before.
const RECEIVE_SIZE: usize = 128 << 10;

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLMSG_MIN_TYPE: u16 = 16;
const SOL_NETLINK: libc::c_int = 270;
const NETLINK_ADD_MEMBERSHIP: libc::c_int = 1;
const NETLINK_CAP_ACK: libc::c_int = 10;
const NETLINK_EXT_ACK: libc::c_int = 11;
const NETLINK_GET_STRICT_CHK: libc::c_int = 12;
const NLMSGERR_ATTR_MSG: u16 = 1;

pub(crate) const REQUEST: u16 = 0x1;
pub(crate) const ACK: u16 = 0x4;
pub(crate) const DUMP: u16 = 0x300;
pub(crate) const REPLACE: u16 = 0x100;
pub(crate) const EXCLUSIVE: u16 = 0x200;
pub(crate) const CREATE: u16 = 0x400;
/// Marks an attribute that holds others.
pub(crate) const NESTED: u16 = 0x8000;

/// The kernel's refusal of one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub errno: i32,
    /// The kernel's extended acknowledgement, where it gave one.
    pub message: Option<String>,
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", io::Error::from_raw_os_error(self.errno))?;
        self.message.iter().try_for_each(|message| write!(f, ": {message}"))
    }
}

impl From<Refusal> for io::Error {
    fn from(refusal: Refusal) -> io::Error {
        let kind = io::Error::from_raw_os_error(refusal.errno).kind();
        io::Error::new(kind, refusal.to_string())
    }
}

/// A request under construction: header, fixed part, attributes.
#[derive(Clone, Debug)]
pub(crate) struct Message {
    octets: Vec<u8>,
}

impl Message {
    pub(crate) fn new(kind: u16, flags: u16, fixed: &[u8]) -> Message {
        let mut octets = vec![0; 16];
        octets[4..6].copy_from_slice(&kind.to_ne_bytes());
        octets[6..8].copy_from_slice(&(flags | REQUEST).to_ne_bytes());
        octets.extend_from_slice(fixed);
        Message { octets }
    }

    pub(crate) fn attribute(mut self, kind: u16, value: &[u8]) -> Message {
        put_attribute(&mut self.octets, kind, value);
        self
    }

    /// Attributes that are put together already.
    pub(crate) fn attributes(mut self, attributes: &[u8]) -> Message {
        self.octets.resize(self.octets.len().next_multiple_of(4), 0);
        self.octets.extend_from_slice(attributes);
        self
    }

    pub(crate) fn u32(self, kind: u16, value: u32) -> Message {
        self.attribute(kind, &value.to_ne_bytes())
    }

    pub(crate) fn string(self, kind: u16, value: &str) -> Message {
        self.attribute(kind, &[value.as_bytes(), &[0]].concat())
    }

    pub(crate) fn address(self, kind: u16, address: IpAddr) -> Message {
        match address {
            IpAddr::V4(v4) => self.attribute(kind, &v4.octets()),
            IpAddr::V6(v6) => self.attribute(kind, &v6.octets()),
        }
    }

    fn finish(&mut self, sequence: u32, acknowledge: bool) -> &[u8] {
        let length = self.octets.len() as u32;
        self.octets[..4].copy_from_slice(&length.to_ne_bytes());
        if acknowledge {
            let flags = u16::from_ne_bytes([self.octets[6], self.octets[7]]) | ACK;
            self.octets[6..8].copy_from_slice(&flags.to_ne_bytes());
        }
        self.octets[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.octets.resize(self.octets.len().next_multiple_of(4), 0);
        &self.octets
    }
}

/// Appends one attribute; nested ones are built in a buffer of their own.
pub(crate) fn put_attribute(out: &mut Vec<u8>, kind: u16, value: &[u8]) {
    out.resize(out.len().next_multiple_of(4), 0);
    out.extend_from_slice(&((value.len() + 4) as u16).to_ne_bytes());
    out.extend_from_slice(&kind.to_ne_bytes());
    out.extend_from_slice(value);
    out.resize(out.len().next_multiple_of(4), 0);
}

/// The attributes after a fixed part; stops at the first malformed one.
pub(crate) fn attributes(octets: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = octets;
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes([*rest.first()?, *rest.get(1)?]));
        let kind = u16::from_ne_bytes([*rest.get(2)?, *rest.get(3)?]) & 0x3fff;
        let value = rest.get(4..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

pub(crate) fn read_u32(value: &[u8]) -> Option<u32> {
    value.get(..4)?.try_into().ok().map(u32::from_ne_bytes)
}

pub(crate) fn read_address(value: &[u8]) -> Option<IpAddr> {
    match value.len() {
        4 => <[u8; 4]>::try_from(value).ok().map(IpAddr::from),
        16 => <[u8; 16]>::try_from(value).ok().map(IpAddr::from),
        _ => None,
    }
}

/// A message from the kernel: its type and all after the header.
#[derive(Clone, Debug)]
pub(crate) struct Received {
    pub(crate) kind: u16,
    pub(crate) body: Vec<u8>,
}

#[derive(Debug)]
pub(crate) struct Socket {
    fd: OwnedFd,
    sequence: u32,
}

impl Socket {
    /// Opens a socket for routes and links in the namespace of the calling thread.
    pub(crate) fn open() -> io::Result<Socket> {
        Self::of_family(libc::NETLINK_ROUTE)
    }

    /// Opens a socket of a netlink family in the namespace of the calling thread.
    pub(crate) fn of_family(family: libc::c_int) -> io::Result<Socket> {
        let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
        // SAFETY: plain system call; the descriptor is checked before it is owned.
        let raw = unsafe { libc::socket(libc::AF_NETLINK, kind, family) };
        if raw < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `raw` is a fresh descriptor that nothing else owns.
        let fd = unsafe { OwnedFd::from_raw_fd(raw) };
        let socket = Socket { fd, sequence: 0 };
        socket.bind()?;
        for option in [NETLINK_CAP_ACK, NETLINK_EXT_ACK, NETLINK_GET_STRICT_CHK] {
            // Kernels before 4.20 know fewer of these; all work without.
            let _ = socket.set_option(SOL_NETLINK, option, 1);
        }
        if socket.set_option(libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, RECEIVE_BUFFER).is_err() {
            socket.set_option(libc::SOL_SOCKET, libc::SO_RCVBUF, RECEIVE_BUFFER)?;
        }
        Ok(socket)
    }

    /// Opens a socket inside another network namespace, which the calling thread enters and leaves for it. Ends the
    /// process where it cannot leave: what that thread did next would be done in the wrong namespace.
    pub(crate) fn open_in(netns: &File) -> io::Result<Socket> {
        struct Way<'a>(&'a File);
        impl Drop for Way<'_> {
            fn drop(&mut self) {
                if let Err(error) = enter(self.0) {
                    tracing::error!(%error, "a thread cannot leave a pod's network namespace");
                    std::process::abort();
                }
            }
        }
        let own = File::open("/proc/thread-self/ns/net")?;
        let _back = Way(&own);
        enter(netns)?;
        Socket::open()
    }

    /// Takes a port of the kernel's choice. Without one a socket has port 0, which is the kernel's own, and a sender
    /// is left out of what is told to a group: no event would ever come.
    fn bind(&self) -> io::Result<()> {
        // SAFETY: all zero is a valid sockaddr_nl.
        let mut address: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
        address.nl_family = libc::AF_NETLINK as libc::sa_family_t;
        let length = size_of::<libc::sockaddr_nl>() as libc::socklen_t;
        // SAFETY: the address lives over the call and its size is given.
        let result = unsafe { libc::bind(self.fd.as_raw_fd(), (&raw const address).cast(), length) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    fn set_option(&self, level: libc::c_int, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
        // SAFETY: `value` lives over the call and its size is given.
        let result = unsafe {
            libc::setsockopt(
                self.fd.as_raw_fd(),
                level,
                option,
                (&raw const value).cast(),
                size_of::<libc::c_int>() as libc::socklen_t,
            )
        };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    pub(crate) fn join(&self, group: u32) -> io::Result<()> {
        self.set_option(SOL_NETLINK, NETLINK_ADD_MEMBERSHIP, group as libc::c_int)
    }

    pub(crate) fn set_nonblocking(&self) -> io::Result<()> {
        // SAFETY: plain system call on an owned descriptor.
        let result = unsafe { libc::fcntl(self.fd.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// Sends requests in batches; the result has one entry per request, `None` for success.
    pub(crate) fn execute(&mut self, messages: &mut [Message]) -> io::Result<Vec<Option<Refusal>>> {
        let mut results = Vec::with_capacity(messages.len());
        for batch in messages.chunks_mut(BATCH_SIZE) {
            let first = self.sequence.wrapping_add(1);
            let count = batch.len();
            let mut octets = Vec::new();
            for (index, message) in batch.iter_mut().enumerate() {
                octets
                    .extend_from_slice(message.finish(first.wrapping_add(index as u32), index + 1 == count));
            }
            self.sequence = self.sequence.wrapping_add(count as u32);
            self.send(&octets)?;
            let start = results.len();
            results.resize(start + count, None);
            let mut acknowledged = false;
            while !acknowledged {
                for (header, body) in split(&self.receive()?) {
                    let index = header.sequence.wrapping_sub(first) as usize;
                    if header.kind != NLMSG_ERROR || index >= count {
                        continue;
                    }
                    results[start + index] = refusal(body, header.flags);
                    acknowledged |= index + 1 == count;
                }
            }
        }
        Ok(results)
    }

    /// Sends one request and turns a refusal into an error.
    pub(crate) fn request(&mut self, message: Message) -> io::Result<()> {
        match self.execute(&mut [message])?.pop().flatten() {
            Some(refusal) => Err(refusal.into()),
            None => Ok(()),
        }
    }

    /// Runs a dump, or a single get where `message` lacks the dump flag.
    pub(crate) fn query(&mut self, mut message: Message) -> io::Result<Vec<Received>> {
        self.sequence = self.sequence.wrapping_add(1);
        let sequence = self.sequence;
        let dump = u16::from_ne_bytes([message.octets[6], message.octets[7]]) & DUMP == DUMP;
        self.send(message.finish(sequence, false))?;
        let mut answers = Vec::new();
        loop {
            for (header, body) in split(&self.receive()?) {
                if header.sequence != sequence {
                    continue;
                }
                match header.kind {
                    NLMSG_DONE => {
                        // A dump that failed says so at its end.
                        return match read_u32(body).map(u32::cast_signed) {
                            Some(errno) if errno < 0 => Err(io::Error::from_raw_os_error(-errno)),
                            Some(_) | None => Ok(answers),
                        };
                    }
                    NLMSG_ERROR => {
                        return match refusal(body, header.flags) {
                            Some(refusal) => Err(refusal.into()),
                            None => Ok(answers),
                        };
                    }
                    kind if kind >= NLMSG_MIN_TYPE => answers.push(Received { kind, body: body.to_vec() }),
                    _ => {}
                }
            }
            if !dump && !answers.is_empty() {
                return Ok(answers);
            }
        }
    }

    /// Events that have come, without waiting. `ENOBUFS`: some were lost.
    pub(crate) fn events(&self) -> io::Result<Vec<Received>> {
        let octets = self.receive()?;
        Ok(split(&octets)
            .filter(|(header, _)| header.kind >= NLMSG_MIN_TYPE)
            .map(|(header, body)| Received { kind: header.kind, body: body.to_vec() })
            .collect())
    }

    fn send(&self, octets: &[u8]) -> io::Result<()> {
        // SAFETY: the buffer lives over the call and its length is given.
        let sent = unsafe { libc::send(self.fd.as_raw_fd(), octets.as_ptr().cast(), octets.len(), 0) };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    fn receive(&self) -> io::Result<Vec<u8>> {
        let mut buffer = Vec::<u8>::with_capacity(RECEIVE_SIZE);
        loop {
            // SAFETY: the buffer has room for as much as the kernel is told to write at most.
            let length =
                unsafe { libc::recv(self.fd.as_raw_fd(), buffer.as_mut_ptr().cast(), RECEIVE_SIZE, 0) };
            if length >= 0 {
                // SAFETY: the kernel has written this many octets, and no more than there is room for.
                unsafe { buffer.set_len(length as usize) };
                return Ok(buffer);
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
    }
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

struct Header {
    kind: u16,
    flags: u16,
    sequence: u32,
}

/// Takes the calling thread into a network namespace.
fn enter(netns: &File) -> io::Result<()> {
    // SAFETY: plain system call on an open descriptor.
    let result = unsafe { libc::setns(netns.as_raw_fd(), libc::CLONE_NEWNET) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

fn split(octets: &[u8]) -> impl Iterator<Item = (Header, &[u8])> {
    let mut rest = octets;
    std::iter::from_fn(move || {
        let length = read_u32(rest)? as usize;
        let message = rest.get(..length).filter(|message| message.len() >= 16)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        let header = Header {
            kind: u16::from_ne_bytes([message[4], message[5]]),
            flags: u16::from_ne_bytes([message[6], message[7]]),
            sequence: read_u32(&message[8..])?,
        };
        Some((header, &message[16..]))
    })
}

/// Reads an `nlmsgerr`; `None` is an acknowledgement.
fn refusal(body: &[u8], flags: u16) -> Option<Refusal> {
    const NLM_F_CAPPED: u16 = 0x100;
    const NLM_F_ACK_TLVS: u16 = 0x200;
    let errno = -(read_u32(body)? as i32);
    if errno == 0 {
        return None;
    }
    let request_length = if flags & NLM_F_CAPPED != 0 { 16 } else { read_u32(body.get(4..)?)? as usize };
    let message = (flags & NLM_F_ACK_TLVS != 0)
        .then(|| body.get(4 + request_length.next_multiple_of(4)..))
        .flatten()
        .and_then(|octets| attributes(octets).find(|(kind, _)| *kind == NLMSGERR_ATTR_MSG))
        .map(|(_, value)| String::from_utf8_lossy(value).trim_end_matches('\0').to_owned());
    Some(Refusal { errno, message })
}
