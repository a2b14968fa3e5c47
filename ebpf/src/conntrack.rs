//! The flow table of the packet path: finding, opening and touching flows. The agent forgets them
//! (`ebpf_common::timeout_seconds`).

use aya_ebpf::{
    bindings::BPF_NOEXIST,
    helpers::{bpf_get_prandom_u32, bpf_ktime_get_coarse_ns},
};
use ebpf_common::{Backend, Direction, Flow, Port, Protocol, Tuple, pick_backend};

use crate::{
    error::Error,
    maps::CONNTRACK,
    packet::{Packet, TCP_FIN, TCP_RST},
    service,
};

const EEXIST: i32 = -17;

/// Writing the time of each packet would move the cache line between CPUs for nothing.
const TOUCH_NS: u64 = 1_000_000_000;

/// Source ports that a flow may get instead of its own: the dynamic ports of RFC 6335.
const PORT_FIRST: u16 = 49152;
const PORT_COUNT: u32 = 16384;
const PORT_ATTEMPTS: u32 = 8;

#[inline(always)]
pub fn find(tuple: &Tuple) -> Option<*mut Flow> {
    CONNTRACK.get_ptr_mut(tuple)
}

/// Notes what the packet says about its direction.
#[inline(always)]
pub fn touch(flow: *mut Flow, packet: &Packet) {
    // SAFETY: an element of the map, alive for this run of the program; each byte is written by one direction only.
    unsafe {
        let now = bpf_ktime_get_coarse_ns();
        if now.wrapping_sub((*flow).last_seen_ns) > TOUCH_NS {
            (*flow).last_seen_ns = now;
        }
        if (*flow).seen == 0 {
            (*flow).seen = 1;
        }
        if packet.tcp_flags & (TCP_FIN | TCP_RST) != 0 {
            if packet.tcp_flags & TCP_FIN != 0 {
                (*flow).fin = 1;
            }
            if packet.tcp_flags & TCP_RST != 0 {
                (*flow).rst = 1;
            }
        }
    }
}

/// Whether a packet from the client opens its flow anew: a SYN on a tuple that was closed, or whose backend is gone
/// (RFC 9293 3.10.7.4 lets a SYN reuse a port pair), and any datagram whose backend is gone.
#[inline(never)]
pub fn is_stale(flow: &Flow, packet: &Packet) -> bool {
    if packet.is_initial_syn() {
        // SAFETY: read at once.
        let closing = match find(&flow.translated.reversed()) {
            Some(reverse) => unsafe { (*reverse).is_closing() },
            None => true,
        };
        return closing || flow.is_closing() || service::backend(flow.backend_id).is_none();
    }
    packet.tuple.protocol == Protocol::UDP && service::backend(flow.backend_id).is_none()
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
    let mut translated = Tuple::new(source, tuple.source_port, backend.address, backend.port, tuple.protocol);
    // SAFETY: a helper without arguments.
    let now = unsafe { bpf_ktime_get_coarse_ns() };
    // The one flow of the caller serves for both entries in turn: the stack has no room for more.
    *opened = Flow::new(Direction::Reverse, tuple.reversed(), backend.service_id, backend.id, hairpin, now);
    for _ in 0..PORT_ATTEMPTS {
        match insert_reverse(&translated.reversed(), opened) {
            Ok(()) => {
                *opened =
                    Flow::new(Direction::Forward, translated, backend.service_id, backend.id, hairpin, now);
                if CONNTRACK.insert(tuple, &*opened, 0).is_err() {
                    let _ = CONNTRACK.remove(translated.reversed());
                    return Err(Error::ConntrackFull);
                }
                return Ok(());
            }
            Err(EEXIST) => {
                // SAFETY: a helper without arguments.
                let random = unsafe { bpf_get_prandom_u32() };
                let offset = pick_backend(random, PORT_COUNT).unwrap_or(0) as u16;
                translated.source_port = Port::new(PORT_FIRST + offset);
            }
            Err(_) => return Err(Error::ConntrackFull),
        }
    }
    Err(Error::PortsExhausted)
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
