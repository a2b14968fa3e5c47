//! Sockets of BFD (RFC 5881 sections 4 and 5): what arrives tells its TTL, what is sent has TTL 255 and a port of its own.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, RawFd};
use std::ptr;

use socket2::{Domain, Protocol, Socket, Type};

pub const PORT: u16 = 3784;
pub const PORT_MULTIHOP: u16 = 4784;
/// Source ports.
const PORT_MIN: u16 = 49152;
const PORT_TRIES: u32 = 256;
/// Network control, as routing protocols mark themselves.
const TRAFFIC_CLASS: libc::c_int = 0xc0;
/// Octets; what a second brings from a thousand peers.
const RECEIVE_BUFFER: libc::c_int = 4 << 20;
/// More than the Length field can say.
pub const PAYLOAD_MAX: usize = 512;

/// Hears one family at one of the ports.
#[derive(Debug)]
pub struct Receiver(UdpSocket);

/// A datagram, its payload in the caller's buffer.
#[derive(Clone, Copy, Debug)]
pub struct Datagram {
    pub source: IpAddr,
    pub ttl: Option<u8>,
    pub length: usize,
}

fn set(socket: RawFd, level: libc::c_int, option: libc::c_int, value: libc::c_int) -> io::Result<()> {
    let length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: `value` is valid for its length, and the kernel checks the descriptor.
    match unsafe { libc::setsockopt(socket, level, option, ptr::from_ref(&value).cast(), length) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

impl Receiver {
    pub fn open(is_v4: bool, multihop: bool) -> io::Result<Receiver> {
        let domain = if is_v4 { Domain::IPV4 } else { Domain::IPV6 };
        let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
        let fd = socket.as_raw_fd();
        let any: IpAddr = if is_v4 {
            set(fd, libc::IPPROTO_IP, libc::IP_RECVTTL, 1)?;
            Ipv4Addr::UNSPECIFIED.into()
        } else {
            socket.set_only_v6(true)?;
            set(fd, libc::IPPROTO_IPV6, libc::IPV6_RECVHOPLIMIT, 1)?;
            Ipv6Addr::UNSPECIFIED.into()
        };
        // Beyond the system's limit only with privileges; the usual size does for few peers.
        let _ = set(fd, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, RECEIVE_BUFFER);
        socket.set_nonblocking(true)?;
        let port = if multihop { PORT_MULTIHOP } else { PORT };
        socket.bind(&SocketAddr::new(any, port).into())?;
        Ok(Receiver(socket.into()))
    }

    pub fn fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }

    /// `None` where nothing waits.
    pub fn receive(&self, payload: &mut [u8; PAYLOAD_MAX]) -> io::Result<Option<Datagram>> {
        // SAFETY: all of its fields are integers or arrays of integers, for which zero is a value.
        let mut address: libc::sockaddr_storage = unsafe { std::mem::zeroed() };
        let mut control = [0_u64; 16];
        let mut piece = libc::iovec { iov_base: payload.as_mut_ptr().cast(), iov_len: payload.len() };
        // SAFETY: its pointers may be null, and zero is a value of its other fields.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_name = ptr::from_mut(&mut address).cast();
        message.msg_namelen = size_of::<libc::sockaddr_storage>() as libc::socklen_t;
        message.msg_iov = &raw mut piece;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = size_of_val(&control);
        // SAFETY: the message points to buffers of the lengths that it says, which outlive the call.
        let received = unsafe { libc::recvmsg(self.fd(), &raw mut message, libc::MSG_DONTWAIT) };
        let Ok(length) = usize::try_from(received) else {
            let error = io::Error::last_os_error();
            return if error.kind() == io::ErrorKind::WouldBlock { Ok(None) } else { Err(error) };
        };
        // SAFETY: the kernel has filled in the message that was made above.
        let ttl = unsafe { ttl_of(&message) };
        Ok(Some(Datagram { source: source_of(&address), ttl, length: length.min(payload.len()) }))
    }
}

fn source_of(address: &libc::sockaddr_storage) -> IpAddr {
    let storage: *const libc::sockaddr_storage = address;
    if libc::c_int::from(address.ss_family) == libc::AF_INET {
        // SAFETY: the family says that the storage, which is large enough and aligned, holds this structure.
        let address = unsafe { &*storage.cast::<libc::sockaddr_in>() };
        IpAddr::V4(Ipv4Addr::from(u32::from_be(address.sin_addr.s_addr)))
    } else {
        // SAFETY: the sockets here are of two families, and this one is the other.
        let address = unsafe { &*storage.cast::<libc::sockaddr_in6>() };
        IpAddr::V6(Ipv6Addr::from(address.sin6_addr.s6_addr)).to_canonical()
    }
}

/// # Safety
/// The kernel must have filled in the message, and its control buffer must be alive.
unsafe fn ttl_of(message: &libc::msghdr) -> Option<u8> {
    // SAFETY: the caller's promise.
    let mut header = unsafe { libc::CMSG_FIRSTHDR(message) };
    while !header.is_null() {
        // SAFETY: CMSG_FIRSTHDR and CMSG_NXTHDR return null or a header within the buffer.
        let (level, kind) = unsafe { ((*header).cmsg_level, (*header).cmsg_type) };
        if matches!(
            (level, kind),
            (libc::IPPROTO_IP, libc::IP_TTL) | (libc::IPPROTO_IPV6, libc::IPV6_HOPLIMIT)
        ) {
            // SAFETY: the data of both is an int, which may be unaligned.
            let ttl = unsafe { libc::CMSG_DATA(header).cast::<libc::c_int>().read_unaligned() };
            return u8::try_from(ttl).ok();
        }
        // SAFETY: the header is of this message.
        header = unsafe { libc::CMSG_NXTHDR(message, header) };
    }
    None
}

/// A socket to send from: the source where one is named, and a port that no other session has. `first_port` is where the
/// search begins.
pub fn open_sender(is_v4: bool, source: Option<IpAddr>, first_port: u16) -> io::Result<UdpSocket> {
    let domain = if is_v4 { Domain::IPV4 } else { Domain::IPV6 };
    let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
    let fd = socket.as_raw_fd();
    let any: IpAddr = if is_v4 {
        set(fd, libc::IPPROTO_IP, libc::IP_TTL, 255)?;
        set(fd, libc::IPPROTO_IP, libc::IP_TOS, TRAFFIC_CLASS)?;
        Ipv4Addr::UNSPECIFIED.into()
    } else {
        socket.set_only_v6(true)?;
        set(fd, libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS, 255)?;
        set(fd, libc::IPPROTO_IPV6, libc::IPV6_TCLASS, TRAFFIC_CLASS)?;
        Ipv6Addr::UNSPECIFIED.into()
    };
    socket.set_nonblocking(true)?;
    let ports = u32::from(u16::MAX - PORT_MIN) + 1;
    let mut taken = io::Error::from(io::ErrorKind::AddrInUse);
    for step in 0..PORT_TRIES {
        let port = u32::from(PORT_MIN) + (u32::from(first_port) + step) % ports;
        match socket.bind(&SocketAddr::new(source.unwrap_or(any), port as u16).into()) {
            Ok(()) => return Ok(socket.into()),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => taken = error,
            Err(error) => return Err(error),
        }
    }
    Err(taken)
}

/// How the kernel schedules the calling thread from now on: before everything that is not real-time, where that is allowed;
/// else with the best niceness; else as it was. In words, for people.
pub fn raise_priority() -> String {
    // SAFETY: all of its fields are integers, for which zero is a value.
    let mut parameters: libc::sched_param = unsafe { std::mem::zeroed() };
    parameters.sched_priority = 1;
    let policy = libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK;
    // SAFETY: 0 is the calling thread, and the parameters are valid for the call.
    if unsafe { libc::sched_setscheduler(0, policy, &raw const parameters) } == 0 {
        return "SCHED_FIFO".to_owned();
    }
    let refused = io::Error::last_os_error();
    // SAFETY: plain numbers; in Linux, 0 is the calling thread.
    if unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, -20) } == 0 {
        return format!("nice -20 (SCHED_FIFO: {refused})");
    }
    let error = io::Error::last_os_error();
    format!("as any other thread (SCHED_FIFO: {refused}; nice -20: {error}): a busy node may lose sessions")
}
