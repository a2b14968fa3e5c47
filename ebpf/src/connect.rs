//! The socket load balancer: addresses are exchanged in socket calls, so that packets need nothing.
//!
//! A connected socket keeps its backend for life; where that is UDP, the agent ends it with the backend. An unconnected
//! UDP socket asks at each datagram and gets the same backend while that exists. Sockets of `AF_INET6` that talk IPv4
//! pass the v6 hooks with mapped addresses, which are the maps' own form.

use core::ptr;

use aya_ebpf::{
    EbpfContext,
    helpers::{bpf_get_netns_cookie, bpf_get_socket_cookie},
    programs::{SockAddrContext, SockContext},
};
use aya_log_ebpf::debug;
use ebpf_common::{
    Address, Backend, ConnectedSocket, ConnectedStream, Counter, FrontendKey, Origin, Port, Protocol,
    ServiceId, SocketForward, SocketKey, SocketReverse,
};

use crate::{
    error::Error,
    maps::{self, SOCKET_FORWARD, SOCKET_REVERSE},
    service::{self, Admission, Client},
};

#[derive(Clone, Copy)]
pub enum Family {
    V4,
    V6,
}

#[inline(always)]
pub fn connect(ctx: &SockAddrContext, family: Family) -> Result<(), Error> {
    let Some(key) = destination(ctx, family) else { return Ok(()) };
    let (sought, mut selected) = (sought(ctx, &key), None);
    if let Some(mut sought) = sought {
        selected = select(ctx, family, &mut sought)?;
    }
    let Some(backend) = selected else {
        if key.protocol == Protocol::UDP {
            // It may have been connected to a Service before.
            maps::forget_socket(socket_cookie(ctx));
        }
        return if sought.is_some() { stray(ctx, &key) } else { Ok(()) };
    };
    let cookie = socket_cookie(ctx);
    if backend.is_counted() {
        maps::note_counted(cookie, backend.id);
    }
    if key.protocol == Protocol::UDP {
        note_socket(cookie, netns_cookie(ctx), &key, &backend);
    } else {
        maps::note_stream(&ConnectedStream::new(cookie, &backend, key.address, key.port));
    }
    write(ctx, family, &backend.address, backend.port);
    maps::count(Counter::SocketConnect);
    debug!(
        ctx,
        "connect {:i}:{} -> {:i}:{}",
        key.address.octets(),
        key.port.get(),
        backend.address.octets(),
        backend.port.get()
    );
    Ok(())
}

#[inline(always)]
pub fn sendmsg(ctx: &SockAddrContext, family: Family) -> Result<(), Error> {
    let Some(key) = destination(ctx, family) else { return Ok(()) };
    let Some(mut sought) = sought(ctx, &key) else { return Ok(()) };
    let Some(frontend) = service::frontend(&mut sought) else { return Ok(()) };
    if frontend.has_source_ranges() {
        // Each datagram anew: a socket may be older than the ranges.
        match service::admission(frontend.service_id, &sought, &client(ctx, family)) {
            Admission::Granted => {}
            Admission::Denied => return Err(refused(ctx, &sought, Error::SourceRange)),
            Admission::LeftToPackets => return Ok(()),
        }
    }
    let cookie = socket_cookie(ctx);
    let socket = SocketKey::new(cookie, key.address, key.port, key.protocol);
    let backend = match same_as_before(&socket, frontend.service_id) {
        Some(backend) => backend,
        None => {
            let Some(backend) = select(ctx, family, &mut sought)? else { return Ok(()) };
            let forward = SocketForward { service_id: frontend.service_id, backend_id: backend.id };
            // Without the entry the next datagram chooses again.
            let _ = SOCKET_FORWARD.insert(socket, forward, 0);
            backend
        }
    };
    remember_frontend(cookie, &key, &backend);
    maps::note_sender(cookie);
    write(ctx, family, &backend.address, backend.port);
    maps::count(Counter::SocketSend);
    Ok(())
}

/// Shows the frontend where the kernel would show the backend: at recvmsg and getpeername.
#[inline(always)]
pub fn show_frontend(ctx: &SockAddrContext, family: Family) {
    let Some(peer) = destination(ctx, family) else { return };
    let cookie = socket_cookie(ctx);
    if peer.protocol == Protocol::TCP {
        if let Some(to) = maps::connected_stream(cookie)
            && to.address == peer.address
            && to.port == peer.port
        {
            return show(ctx, family, &to.frontend, to.frontend_port);
        }
    } else if !is_connected(ctx) {
        if !maps::may_be_sender(cookie) {
            return;
        }
    } else if let Some(to) = maps::connected_socket(cookie)
        && to.frontend_port != Port::new(0)
    {
        // Nobody else's datagrams come.
        if to.address == peer.address && to.port == peer.port {
            show(ctx, family, &to.frontend, to.frontend_port);
        }
        return;
    }
    show_remembered(ctx, family, cookie, &peer);
}

#[inline(always)]
fn show_remembered(ctx: &SockAddrContext, family: Family, cookie: u64, peer: &FrontendKey) {
    let socket = SocketKey::new(cookie, peer.address, peer.port, peer.protocol);
    // SAFETY: copied at once.
    let Some(frontend) = unsafe { SOCKET_REVERSE.get(socket) }.copied() else { return };
    show(ctx, family, &frontend.address, frontend.port);
}

#[inline(always)]
fn show(ctx: &SockAddrContext, family: Family, address: &Address, port: Port) {
    write(ctx, family, address, port);
    maps::count(Counter::SocketReverse);
}

/// Of a UDP socket.
#[inline(always)]
fn is_connected(ctx: &SockAddrContext) -> bool {
    /// TCP_ESTABLISHED, which the kernel says of them too.
    const ESTABLISHED: u32 = 1;
    // SAFETY: fields of the context and of its socket, as the verifier allows.
    unsafe {
        let socket = ptr::read_volatile(&raw const (*ctx.sock_addr).__bindgen_anon_1.sk);
        !socket.is_null() && ptr::read_volatile(&raw const (*socket).state) == ESTABLISHED
    }
}

/// The key to look up, which for a pod's address there is none. A loopback address means the node only to the node's own
/// sockets; a pod means itself. A port of the node may be open at a loopback address only.
#[inline(always)]
fn sought(ctx: &SockAddrContext, key: &FrontendKey) -> Option<FrontendKey> {
    if !key.address.is_own() {
        return if maps::is_in_pod_ranges(&key.address) { None } else { Some(*key) };
    }
    if maps::node()?.netns_cookie != netns_cookie(ctx) {
        return None;
    }
    if service::exists(key) { Some(*key) } else { Some(key.of_any_address()) }
}

#[inline(always)]
fn select(ctx: &SockAddrContext, family: Family, key: &mut FrontendKey) -> Result<Option<Backend>, Error> {
    let mut selected = None;
    match service::select(key, Origin::Node, &client(ctx, family), 0, &mut selected) {
        Err(error) => Err(refused(ctx, key, error)),
        Ok(()) => Ok(selected),
    }
}

/// As for a packet. A datagram socket is connected to see where datagrams would come from, also to ports that nobody
/// has, and told when it sends.
#[inline(always)]
fn stray(ctx: &SockAddrContext, key: &FrontendKey) -> Result<(), Error> {
    if key.protocol != Protocol::TCP {
        return Ok(());
    }
    match service::stray(&key.address) {
        // What has a frontend is none: its packets are asked where they come from.
        Err(_) if service::exists(key) => Ok(()),
        Err(error) => Err(refused(ctx, key, error)),
        Ok(()) => Ok(()),
    }
}

#[inline(always)]
fn refused(ctx: &SockAddrContext, key: &FrontendKey, error: Error) -> Error {
    if matches!(error, Error::Outrun | Error::SourceRange) {
        error.count();
        debug!(ctx, "refused {:i}:{}: {}", key.address.octets(), key.port.get(), error.name());
        return error;
    }
    Error::Refused.count();
    debug!(ctx, "refused {:i}:{}: no backend", key.address.octets(), key.port.get());
    Error::Refused
}

#[inline(always)]
fn client(ctx: &SockAddrContext, family: Family) -> Client {
    Client::of_socket(netns_cookie(ctx), bound_address(ctx, family))
}

/// Where the socket sends from, as far as that is settled.
#[inline(always)]
fn bound_address(ctx: &SockAddrContext, family: Family) -> Address {
    // SAFETY: a field of the context, which is there for as long as the program runs.
    let socket = unsafe { ptr::read_volatile(&raw const (*ctx.sock_addr).__bindgen_anon_1.sk) };
    if socket.is_null() {
        return Address::UNSPECIFIED;
    }
    // SAFETY: fields of the socket, read as the 32-bit words that the verifier allows.
    unsafe {
        match family {
            Family::V4 => Address::from_v4_word(ptr::read_volatile(&raw const (*socket).src_ip4)),
            Family::V6 => {
                let words = (&raw const (*socket).src_ip6).cast::<u32>();
                Address::from_words([
                    ptr::read_volatile(words),
                    ptr::read_volatile(words.add(1)),
                    ptr::read_volatile(words.add(2)),
                    ptr::read_volatile(words.add(3)),
                ])
            }
        }
    }
}

#[inline(always)]
fn same_as_before(socket: &SocketKey, service_id: ServiceId) -> Option<Backend> {
    // SAFETY: copied at once.
    let forward = unsafe { SOCKET_FORWARD.get(socket) }.copied()?;
    let backend = service::backend(forward.backend_id)?;
    if backend.service_id == service_id { Some(backend) } else { None }
}

#[inline(never)]
fn remember_frontend(cookie: u64, key: &FrontendKey, backend: &Backend) {
    let socket = SocketKey::new(cookie, backend.address, backend.port, key.protocol);
    let frontend = SocketReverse::new(backend.service_id, key.address, key.port);
    // SAFETY: copied at once.
    if unsafe { SOCKET_REVERSE.get(socket) }.copied() != Some(frontend) {
        // Without the entry the application sees the backend's address.
        let _ = SOCKET_REVERSE.insert(socket, frontend, 0);
    }
}

#[inline(never)]
fn note_socket(cookie: u64, netns_cookie: u64, key: &FrontendKey, backend: &Backend) {
    if !maps::note_socket(cookie, &ConnectedSocket::new(netns_cookie, backend, key.address, key.port)) {
        remember_frontend(cookie, key, backend);
    }
}

/// The socket is closed for good.
#[inline(always)]
pub fn release(ctx: &SockContext) {
    // SAFETY: a field of the context, as the verifier allows.
    let is_udp = unsafe { ptr::read_volatile(&raw const (*ctx.sock).protocol) } == Protocol::UDP.0 as u32;
    let is_counting = maps::is_counting();
    if !is_udp && !is_counting {
        return;
    }
    // SAFETY: the context is a socket.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    if is_counting {
        maps::forget_counted(cookie);
    }
    if is_udp {
        maps::forget_socket(cookie);
        maps::forget_sender(cookie);
    }
}

#[inline(always)]
fn netns_cookie(ctx: &SockAddrContext) -> u64 {
    // SAFETY: the context is a sock_addr's, from which the kernel knows the namespace.
    unsafe { bpf_get_netns_cookie(ctx.as_ptr()) }
}

#[inline(always)]
fn socket_cookie(ctx: &SockAddrContext) -> u64 {
    // SAFETY: the context is a sock_addr's.
    unsafe { bpf_get_socket_cookie(ctx.as_ptr()) }
}

/// The address in the call, or `None` for protocols that are not balanced.
#[inline(always)]
fn destination(ctx: &SockAddrContext, family: Family) -> Option<FrontendKey> {
    let fields = ctx.sock_addr;
    // SAFETY: fields of the context, read as the 32-bit words that the verifier allows.
    unsafe {
        let protocol = match ptr::read_volatile(&raw const (*fields).protocol) {
            6 => Protocol::TCP,
            17 => Protocol::UDP,
            _ => return None,
        };
        let address = match family {
            Family::V4 => Address::from_v4_word(ptr::read_volatile(&raw const (*fields).user_ip4)),
            Family::V6 => {
                let words = (&raw const (*fields).user_ip6).cast::<u32>();
                Address::from_words([
                    ptr::read_volatile(words),
                    ptr::read_volatile(words.add(1)),
                    ptr::read_volatile(words.add(2)),
                    ptr::read_volatile(words.add(3)),
                ])
            }
        };
        let port = ptr::read_volatile(&raw const (*fields).user_port).to_ne_bytes();
        Some(FrontendKey::new(address, Port::from_network([port[0], port[1]]), protocol))
    }
}

#[inline(always)]
fn write(ctx: &SockAddrContext, family: Family, address: &Address, port: Port) {
    let fields = ctx.sock_addr;
    let words = address.to_words();
    // SAFETY: fields of the context, written as the 32-bit words that the verifier allows.
    unsafe {
        match family {
            Family::V4 => ptr::write_volatile(&raw mut (*fields).user_ip4, words[3]),
            Family::V6 => {
                let target = (&raw mut (*fields).user_ip6).cast::<u32>();
                ptr::write_volatile(target, words[0]);
                ptr::write_volatile(target.add(1), words[1]);
                ptr::write_volatile(target.add(2), words[2]);
                ptr::write_volatile(target.add(3), words[3]);
            }
        }
        let bytes = port.to_network();
        ptr::write_volatile(&raw mut (*fields).user_port, u16::from_ne_bytes(bytes) as u32);
    }
}
