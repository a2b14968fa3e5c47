//! The flow table of the packet path: finding, opening and touching flows. The agent forgets them
//! (`ebpf_common::timeout_seconds`).

use aya_ebpf::{
    EbpfContext,
    bindings::{BPF_NOEXIST, bpf_sock_tuple},
    helpers::{
        bpf_get_prandom_u32, bpf_ktime_get_coarse_ns, bpf_sk_lookup_udp, bpf_sk_release, bpf_skc_lookup_tcp,
    },
    programs::TcContext,
};
use ebpf_common::{
    Address, Backend, Direction, FORWARD_PORTS, Flow, Masquerade, Port, Protocol, Tuple, pick_backend,
};

use crate::{
    error::Error,
    maps::{self, CONNTRACK},
    packet::{Packet, TCP_FIN, TCP_RST},
    sctp, service,
};

const EEXIST: i32 = -17;

/// Writing the time of each packet would move the cache line between CPUs for nothing.
const TOUCH_NS: u64 = 1_000_000_000;

/// Source ports that a flow may get instead of its own: the dynamic ports of RFC 6335.
const PORT_FIRST: u16 = 49152;
const PORT_COUNT: u32 = 16384;
const PORT_ATTEMPTS: u32 = 8;

/// With half of the ports towards one backend in use, one flow in 65,536 finds none.
const FORWARD_ATTEMPTS: u32 = 16;
const FORWARD_PORT_COUNT: u32 = FORWARD_PORTS.1 as u32 - FORWARD_PORTS.0 as u32 + 1;
/// 2^32 over the golden ratio: steps of it lie evenly over all ports from wherever they begin, so that none of a few ports
/// is left out.
const GOLDEN: u32 = 0x9e37_79b9;

#[inline(always)]
pub fn find(tuple: &Tuple) -> Option<*mut Flow> {
    CONNTRACK.get_ptr_mut(tuple)
}

/// Notes what the packet says about its direction.
#[inline(always)]
pub fn touch(ctx: &TcContext, flow: *mut Flow, packet: &Packet) {
    touch_known(flow, packet.tcp_flags);
    if packet.chunks != 0 {
        sctp::note(ctx, flow, packet);
    }
}

/// As [`touch`], for a packet that is not of SCTP.
#[inline(always)]
pub fn touch_known(flow: *mut Flow, tcp_flags: u8) {
    // SAFETY: an element of the map, alive for this run of the program; each byte is written by one direction only.
    unsafe {
        let now = bpf_ktime_get_coarse_ns();
        if now.wrapping_sub((*flow).last_seen_ns) > TOUCH_NS {
            (*flow).last_seen_ns = now;
        }
        if (*flow).seen == 0 {
            (*flow).seen = 1;
        }
        if tcp_flags & (TCP_FIN | TCP_RST) != 0 {
            if tcp_flags & TCP_FIN != 0 {
                (*flow).fin = 1;
            }
            if tcp_flags & TCP_RST != 0 {
                (*flow).rst = 1;
            }
        }
    }
}

/// Notes what the packet says that opened its flow.
#[inline(always)]
pub fn note_first(ctx: &TcContext, packet: &Packet) {
    if packet.chunks != 0
        && let Some(flow) = find(&packet.tuple)
    {
        sctp::note(ctx, flow, packet);
    }
}

/// Whether a packet from the client opens its flow anew: a SYN or an INIT on a tuple that was closed, or whose backend is gone
/// (RFC 9293 3.10.7.4 lets a SYN reuse a port pair), and any datagram whose backend is gone.
#[inline(never)]
pub fn is_stale(flow: &Flow, packet: &Packet) -> bool {
    if packet.is_initial() {
        // SAFETY: read at once.
        let closing = match find(&flow.translated.reversed()) {
            Some(reverse) => unsafe { (*reverse).is_closing() },
            None => true,
        };
        return closing || flow.is_closing() || service::backend(flow.backend_id).is_none();
    }
    packet.tuple.protocol == Protocol::UDP && service::backend(flow.backend_id).is_none()
}

/// Whether a packet opens a flow without a Service anew: a SYN or an INIT where either side has said that it is done.
#[inline(never)]
pub fn is_over(flow: &Flow, packet: &Packet) -> bool {
    if !packet.is_initial() {
        return false;
    }
    // SAFETY: read at once.
    let closing = find(&flow.translated.reversed()).is_none_or(|reverse| unsafe { (*reverse).is_closing() });
    closing || flow.is_closing()
}

/// Forgets both directions, the client's first: what it sends meanwhile opens a new flow. Whether both were there.
#[inline(never)]
pub fn remove(tuple: &Tuple, flow: &Flow) -> bool {
    let reverse = flow.translated.reversed();
    // One that is gone already is what was wanted.
    let removed = CONNTRACK.remove(tuple).is_ok();
    CONNTRACK.remove(reverse).is_ok() && removed
}

/// Opens a flow from the tuple to the backend; `opened` becomes its forward entry.
///
/// The reverse entry comes first, so that an answer always finds it. Where the client already talks to this backend
/// from the same port through another frontend, the flow gets another source port.
#[inline(never)]
pub fn open(tuple: &Tuple, backend: &Backend, opened: &mut Flow) -> Result<(), Error> {
    let hairpin = tuple.source == backend.address;
    // A pod does not accept packets from its own address, so it sees the frontend's.
    let source = if hairpin { tuple.destination } else { tuple.source };
    // The tuple of the answer, never a copy turned round, and the one flow of the caller for both entries in turn: the
    // stack has no room for more.
    let mut answer = Tuple::new(backend.address, backend.port, source, tuple.source_port, tuple.protocol);
    // SAFETY: a helper without arguments.
    let now = unsafe { bpf_ktime_get_coarse_ns() };
    let (service_id, id) = (backend.service_id, backend.id);
    *opened = Flow::new(Direction::Reverse, tuple.reversed(), service_id, id, hairpin, now);
    for _ in 0..PORT_ATTEMPTS {
        match insert_reverse(&answer, opened) {
            Ok(()) => {
                *opened = Flow::new(Direction::Forward, answer.reversed(), service_id, id, hairpin, now);
                if CONNTRACK.insert(tuple, &*opened, 0).is_err() {
                    let _ = CONNTRACK.remove(&answer);
                    return Err(Error::ConntrackFull);
                }
                return Ok(());
            }
            Err(EEXIST) => {
                answer.destination_port = random_port(PORT_FIRST, PORT_COUNT);
            }
            Err(_) => return Err(Error::ConntrackFull),
        }
    }
    Err(Error::PortsExhausted)
}

/// Opens a flow between a client and a backend that are both beyond the node. The backend sees this node, at a port
/// that no other flow to it has and no socket of the node.
#[inline(never)]
pub fn open_forwarded(
    ctx: &TcContext,
    tuple: &Tuple,
    backend: &Backend,
    opened: &mut Flow,
) -> Result<(), Error> {
    let Some(node) = maps::node() else { return Err(Error::NoSource) };
    let source = node.source_for(&backend.address);
    if source == Address::UNSPECIFIED {
        return Err(Error::NoSource);
    }
    let mut answer = Tuple::new(backend.address, backend.port, source, Port::new(0), tuple.protocol);
    // SAFETY: a helper without arguments.
    let now = unsafe { bpf_ktime_get_coarse_ns() };
    let (service_id, id) = (backend.service_id, backend.id);
    *opened = Flow::new(Direction::Reverse, tuple.reversed(), service_id, id, false, now).forwarded();
    claim_port(ctx, &mut answer, opened, FORWARD_PORTS.0, FORWARD_PORT_COUNT)?;
    *opened = Flow::new(Direction::Forward, answer.reversed(), service_id, id, false, now).forwarded();
    finish_opening(tuple, &answer, opened)
}

/// Opens a flow from a pod of this node to a host outside of the cluster. That sees the node at `source` and a port, or
/// an ICMP identifier, that no other flow to it has and no socket of the node.
#[inline(never)]
pub fn open_masqueraded(
    ctx: &TcContext,
    tuple: &Tuple,
    source: &Address,
    ports: &Masquerade,
    opened: &mut Flow,
) -> Result<(), Error> {
    let mut answer =
        Tuple::new(tuple.destination, tuple.destination_port, *source, Port::new(0), tuple.protocol);
    // SAFETY: a helper without arguments.
    let now = unsafe { bpf_ktime_get_coarse_ns() };
    *opened = Flow::masqueraded(Direction::Reverse, tuple.reversed(), now);
    claim_port(ctx, &mut answer, opened, ports.first_port, ports.port_count())?;
    *opened = Flow::masqueraded(Direction::Forward, answer.reversed(), now);
    finish_opening(tuple, &answer, opened)
}

/// Finds a port of the node for the flow whose reverse entry is `reverse`, and writes that. `answer` gets the port.
#[inline(always)]
fn claim_port(
    ctx: &TcContext,
    answer: &mut Tuple,
    reverse: &Flow,
    first: u16,
    count: u32,
) -> Result<(), Error> {
    // SAFETY: a helper without arguments.
    let mut random = unsafe { bpf_get_prandom_u32() };
    for _ in 0..FORWARD_ATTEMPTS {
        answer.destination_port = Port::new(first + pick_backend(random, count).unwrap_or(0) as u16);
        random = random.wrapping_add(GOLDEN);
        if has_socket(ctx, answer) {
            continue;
        }
        match insert_reverse(answer, reverse) {
            Ok(()) => return Ok(()),
            Err(EEXIST) => {}
            Err(_) => return Err(Error::ConntrackFull),
        }
    }
    Err(Error::PortsExhausted)
}

/// Writes the forward entry; the reverse one is there.
#[inline(always)]
fn finish_opening(tuple: &Tuple, answer: &Tuple, forward: &Flow) -> Result<(), Error> {
    if CONNTRACK.insert(tuple, forward, 0).is_err() {
        let _ = CONNTRACK.remove(answer);
        return Err(Error::ConntrackFull);
    }
    Ok(())
}

/// Whether a packet with this tuple would be for a socket of the node.
#[inline(never)]
fn has_socket(ctx: &TcContext, tuple: &Tuple) -> bool {
    const CURRENT_NAMESPACE: u64 = u64::MAX;
    const V4_BYTES: u32 = 12;
    const V6_BYTES: u32 = 36;
    // Of who waits for an answer to an ICMP message nothing is known, nor of sockets of SCTP: those of the node are kept from
    // choosing the port.
    if tuple.protocol != Protocol::TCP && tuple.protocol != Protocol::UDP {
        return false;
    }
    let [source, destination] = [tuple.source.to_words()[3], tuple.destination.to_words()[3]];
    let ports = [tuple.source_port.to_network(), tuple.destination_port.to_network()];
    let ports = u32::from_ne_bytes([ports[0][0], ports[0][1], ports[1][0], ports[1][1]]);
    let mut v4: [u32; 3] = [source, destination, ports];
    // A tuple begins as the kernel's does in IPv6: two addresses, two ports.
    let (of, bytes) = if tuple.source.is_v4() {
        (v4.as_mut_ptr().cast::<bpf_sock_tuple>(), V4_BYTES)
    } else {
        (core::ptr::from_ref(tuple).cast_mut().cast::<bpf_sock_tuple>(), V6_BYTES)
    };
    // SAFETY: the helpers read `bytes` bytes of a tuple on the stack; what they find is released before the return.
    unsafe {
        let socket = if tuple.protocol == Protocol::TCP {
            bpf_skc_lookup_tcp(ctx.as_ptr(), of, bytes, CURRENT_NAMESPACE, 0)
        } else {
            bpf_sk_lookup_udp(ctx.as_ptr(), of, bytes, CURRENT_NAMESPACE, 0)
        };
        if socket.is_null() {
            return false;
        }
        bpf_sk_release(socket.cast());
        true
    }
}

#[inline(always)]
fn random_port(first: u16, count: u32) -> Port {
    // SAFETY: a helper without arguments.
    let random = unsafe { bpf_get_prandom_u32() };
    Port::new(first + pick_backend(random, count).unwrap_or(0) as u16)
}

#[inline(always)]
fn insert_reverse(key: &Tuple, reverse: &Flow) -> Result<(), i32> {
    match CONNTRACK.insert(key, reverse, BPF_NOEXIST as u64) {
        Ok(()) => Ok(()),
        Err(EEXIST) => {
            // Another packet of this same flow may have been quicker, on another CPU.
            // SAFETY: read at once.
            match find(key) {
                Some(found) if unsafe { (*found).translated == reverse.translated } => Ok(()),
                _ => Err(EEXIST),
            }
        }
        Err(error) => Err(error),
    }
}
