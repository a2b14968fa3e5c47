//! How a peer is reached: options of its sockets. TCP MD5 signatures (RFC 2385) and TTL security (RFC 5082) are the
//! kernel's work. A peer with a password is reached with it or not at all: where the kernel refuses the key, nothing is
//! sent or accepted.

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;

/// Octets of a TCP MD5 key at most, by the kernel's structure.
pub const PASSWORD_LENGTH_MAX: usize = 80;

/// How one peer is reached. The default is the speaker's port and address, the system's TTL, and no signature.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Transport {
    /// The peer's port; the speaker's own where `None`.
    pub port: Option<u16>,
    /// The address to connect from; the node's first one of the family where `None`.
    pub source: Option<IpAddr>,
    /// Signs and checks every segment (TCP MD5); 1 to 80 octets.
    pub password: Option<Secret>,
    /// Hops to the peer at most, 1 to 254: packets that came further are dropped (RFC 5082).
    pub ttl_security: Option<u8>,
    /// TTL of what is sent, 1 to 255; without meaning beside `ttl_security`, which sends 255.
    pub ttl: Option<u8>,
}

/// Octets that nobody is shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Arc<[u8]>);

impl Secret {
    pub fn new(octets: &[u8]) -> Secret {
        Secret(octets.into())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

impl Transport {
    /// Prepares a socket before it connects to `peer`, or one that was accepted from it.
    pub(super) fn prepare(&self, socket: BorrowedFd<'_>, peer: IpAddr, connecting: bool) -> io::Result<()> {
        if let (Some(password), true) = (&self.password, connecting) {
            set_signature(socket, peer, Some(password))?;
        }
        let sent = if self.ttl_security.is_some() { Some(u8::MAX) } else { self.ttl };
        if let Some(ttl) = sent {
            set_ttl(socket, peer, ttl)?;
        }
        if let Some(hops) = self.ttl_security {
            set_ttl_min(socket, peer, u8::MAX - hops.max(1) + 1)?;
        }
        Ok(())
    }
}

/// The kernel's `struct tcp_md5sig`.
#[repr(C)]
struct Signature {
    address: libc::sockaddr_storage,
    flags: u8,
    prefix_length: u8,
    key_length: u16,
    interface: i32,
    key: [u8; PASSWORD_LENGTH_MAX],
}

/// Sets or removes the key for segments of `peer` on a socket, be it listening or not.
pub(super) fn set_signature(
    socket: BorrowedFd<'_>,
    peer: IpAddr,
    password: Option<&Secret>,
) -> io::Result<()> {
    let key = password.map_or(&[][..], |password| &password.0);
    if key.len() > PASSWORD_LENGTH_MAX || (password.is_some() && key.is_empty()) {
        let wrong = format!("a BGP password has 1 to {PASSWORD_LENGTH_MAX} octets, not {}", key.len());
        return Err(io::Error::new(io::ErrorKind::InvalidInput, wrong));
    }
    // SAFETY: all of its fields are integers or arrays of integers, for which zero is a value.
    let mut signature: Signature = unsafe { std::mem::zeroed() };
    let address = socket2::SockAddr::from(std::net::SocketAddr::new(peer, 0));
    // SAFETY: `address` holds `len()` valid octets, which are not more than a sockaddr_storage.
    unsafe {
        std::ptr::copy_nonoverlapping(
            address.as_ptr().cast::<u8>(),
            (&raw mut signature.address).cast::<u8>(),
            address.len() as usize,
        );
    }
    signature.key_length = key.len() as u16;
    signature.key[..key.len()].copy_from_slice(key);
    set_option(socket, libc::IPPROTO_TCP, libc::TCP_MD5SIG, &signature)
}

pub(super) fn set_ttl(socket: BorrowedFd<'_>, peer: IpAddr, ttl: u8) -> io::Result<()> {
    let (level, option) = match peer {
        IpAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_TTL),
        IpAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS),
    };
    set_option(socket, level, option, &libc::c_int::from(ttl))
}

fn set_ttl_min(socket: BorrowedFd<'_>, peer: IpAddr, ttl: u8) -> io::Result<()> {
    let (level, option) = match peer {
        IpAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_MINTTL),
        IpAddr::V6(_) => (libc::IPPROTO_IPV6, IPV6_MINHOPCOUNT),
    };
    set_option(socket, level, option, &libc::c_int::from(ttl))
}

/// From linux/in6.h.
const IPV6_MINHOPCOUNT: libc::c_int = 73;

fn set_option<T>(
    socket: BorrowedFd<'_>,
    level: libc::c_int,
    option: libc::c_int,
    value: &T,
) -> io::Result<()> {
    let length = size_of::<T>() as libc::socklen_t;
    let value: *const T = value;
    // SAFETY: the descriptor is open for as long as it is borrowed, and `value` is valid for `length` octets.
    match unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, value.cast(), length) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Segments that this network namespace dropped for their MD5 signature: wrong, missing or unexpected.
pub(super) fn signature_failures() -> u64 {
    let Ok(text) = std::fs::read_to_string("/proc/thread-self/net/netstat") else { return 0 };
    count_signature_failures(&text)
}

/// `netstat` has pairs of lines: names, then numbers, each after the group's name.
fn count_signature_failures(netstat: &str) -> u64 {
    let mut lines = netstat.lines();
    let mut total = 0;
    while let (Some(names), Some(numbers)) = (lines.next(), lines.next()) {
        for (name, number) in names.split_whitespace().zip(numbers.split_whitespace()) {
            if matches!(name, "TCPMD5NotFound" | "TCPMD5Unexpected" | "TCPMD5Failure") {
                total += number.parse::<u64>().unwrap_or(0);
            }
        }
    }
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_not_shown() {
        let transport = Transport { password: Some(Secret::new(b"hunter2")), ..Transport::default() };
        assert!(!format!("{transport:?}").contains("hunter2"));
    }

    #[test]
    fn signature_failures_are_summed_over_their_counters_alone() {
        let text = "TcpExt: SyncookiesSent TCPMD5NotFound TCPMD5Unexpected TCPMD5Failure TCPTimeouts\n\
                    TcpExt: 9 1 2 4 9\nIpExt: InNoRoutes\nIpExt: 9\n";
        assert_eq!(count_signature_failures(text), 7);
    }
}
