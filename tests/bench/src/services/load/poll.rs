//! The few system calls that the standard library has not: epoll, and sockets that connect without waiting.

use std::{
    io,
    net::{SocketAddr, SocketAddrV4},
    os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd},
};

pub(super) const IN: u32 = libc::EPOLLIN as u32;
pub(super) const OUT: u32 = libc::EPOLLOUT as u32;
/// The other side has closed, or will send no more.
pub(super) const HANGUP: u32 = (libc::EPOLLRDHUP | libc::EPOLLHUP) as u32;
/// Told once for each change.
pub(super) const EDGE: u32 = libc::EPOLLET as u32;

const EVENTS: usize = 64;

#[derive(Debug)]
pub(super) struct Poll {
    fd: OwnedFd,
}

/// What happened to which socket, by the number that it was added with.
pub(super) type Events = Vec<(u64, u32)>;

impl Poll {
    pub(super) fn new() -> io::Result<Self> {
        // SAFETY: a call without pointers.
        let fd = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel just gave the descriptor, which nobody else has.
        Ok(Self { fd: unsafe { OwnedFd::from_raw_fd(fd) } })
    }

    pub(super) fn add(&self, fd: RawFd, events: u32, number: u64) -> io::Result<()> {
        let mut event = libc::epoll_event { events, u64: number };
        // SAFETY: the event is read during the call only.
        let result = unsafe { libc::epoll_ctl(self.fd.as_raw_fd(), libc::EPOLL_CTL_ADD, fd, &raw mut event) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Fills `events` with what is there, after `timeout_ms` at the latest with nothing.
    pub(super) fn wait(&self, events: &mut Events, timeout_ms: i32) -> io::Result<()> {
        let mut buffer = [libc::epoll_event { events: 0, u64: 0 }; EVENTS];
        // SAFETY: the buffer has room for as many events as are named.
        let count =
            unsafe { libc::epoll_wait(self.fd.as_raw_fd(), buffer.as_mut_ptr(), EVENTS as i32, timeout_ms) };
        events.clear();
        if count < 0 {
            let error = io::Error::last_os_error();
            return if error.kind() == io::ErrorKind::Interrupted { Ok(()) } else { Err(error) };
        }
        events.extend(buffer[..count as usize].iter().map(|event| (event.u64, event.events)));
        Ok(())
    }
}

/// A socket that is connecting, or connected already.
pub(super) fn connect(target: SocketAddr, is_tcp: bool) -> io::Result<OwnedFd> {
    let SocketAddr::V4(target) = target else {
        return Err(io::Error::new(io::ErrorKind::Unsupported, "only IPv4 is asked"));
    };
    let kind = if is_tcp { libc::SOCK_STREAM } else { libc::SOCK_DGRAM };
    // SAFETY: a call without pointers.
    let fd = unsafe { libc::socket(libc::AF_INET, kind | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just gave the descriptor, which nobody else has.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let address = raw(target);
    let length = size_of::<libc::sockaddr_in>() as libc::socklen_t;
    // SAFETY: the address lives through the call and is as long as it says.
    let result = unsafe { libc::connect(fd, (&raw const address).cast(), length) };
    let error = io::Error::last_os_error();
    if result < 0 && error.raw_os_error() != Some(libc::EINPROGRESS) { Err(error) } else { Ok(socket) }
}

fn raw(address: SocketAddrV4) -> libc::sockaddr_in {
    libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: address.port().to_be(),
        sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(address.ip().octets()) },
        sin_zero: [0; 8],
    }
}

pub(super) fn send(fd: RawFd, octets: &[u8]) -> io::Result<usize> {
    // SAFETY: the octets live through the call.
    let sent = unsafe { libc::send(fd, octets.as_ptr().cast(), octets.len(), libc::MSG_NOSIGNAL) };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(sent as usize) }
}

pub(super) fn receive(fd: RawFd, buffer: &mut [u8]) -> io::Result<usize> {
    // SAFETY: the kernel writes no more than the buffer's length.
    let received = unsafe { libc::recv(fd, buffer.as_mut_ptr().cast(), buffer.len(), 0) };
    if received < 0 { Err(io::Error::last_os_error()) } else { Ok(received as usize) }
}
