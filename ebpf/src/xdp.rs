//! Packets between clients and backends that are both beyond the node, sent on before they cost a socket buffer.
//!
//! ```text
//!   frame ─> tuple ─> shortcut, good for 0.1 s ──────────────────────> new addresses, stations ─> out of the same link
//!                └─ none ─> flow in conntrack ─> route, neighbour ─> shortcut ─┘
//!                                            └─ none, or one of those below ─> tc
//! ```
//!
//! tc begins every flow, and does all that this does too: either goes on with the other's. Deliberately absent, and left to
//! tc: what is in fragments, has options, extension headers or a VLAN's tag, is too big for its route, has no hop left,
//! is for another station, or whose neighbour is not known.
//!
//! Headers are read and written in words of 16 bits, as they lie at even places: of wider ones the compiler makes octets.

use core::ptr;

use aya_ebpf::{
    EbpfContext as _,
    bindings::{BPF_FIB_LKUP_RET_SUCCESS, BPF_FIB_LOOKUP_OUTPUT, bpf_fib_lookup as FibQuery},
    helpers::{bpf_fib_lookup, bpf_ktime_get_coarse_ns},
    programs::XdpContext,
};
use ebpf_common::{Address, Counter, Flow, Protocol, Shortcut, Tuple, shortcut};

use crate::{
    conntrack,
    maps::{self, NEIGHBOURS, SHORTCUTS},
    packet::{ETHERNET_BYTES, ETHERTYPE_V4, ETHERTYPE_V6, Packet, Part, TCP_FIN, TCP_RST, TCP_SYN},
};

const V4: u16 = ETHERTYPE_V4 as u16;
const V6: u16 = ETHERTYPE_V6 as u16;
const V4_BYTES: usize = 20;
const V6_BYTES: usize = 40;
const TCP_BYTES: usize = 20;
const UDP_BYTES: usize = 8;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// How long the kernel may believe in a neighbour, of which it hears nothing while packets pass it by. It asks after one by
/// itself 15 to 45 s after it last heard of it, once something is sent there (RFC 4861 6.3.2).
const NEIGHBOUR_NS: u64 = 16_000_000_000;

/// What of a packet is asked for beside its tuple.
struct Headers {
    /// Octets of the IP packet.
    length: u16,
    protocol: u8,
    /// Of IPv4 the type of service, of IPv6 the first word without the version.
    class: u32,
}

/// Whether the packet became one for its next hop; else it is as it came.
#[inline(always)]
pub fn send_on(ctx: &XdpContext) -> bool {
    let (start, end) = (ctx.data(), ctx.data_end());
    if start + ETHERNET_BYTES + V4_BYTES + UDP_BYTES > end {
        return false;
    }
    // SAFETY: as many octets are there.
    match unsafe { half(start + 12) } {
        V4 => send_on_as::<true>(ctx, start, end),
        V6 => send_on_as::<false>(ctx, start, end),
        _ => false,
    }
}

#[inline(always)]
fn send_on_as<const IS_V4: bool>(ctx: &XdpContext, start: usize, end: usize) -> bool {
    let ip = start + ETHERNET_BYTES;
    let transport = ip + if IS_V4 { V4_BYTES } else { V6_BYTES };
    if transport + UDP_BYTES > end {
        return false;
    }
    // SAFETY: all octets up to the end of UDP's header are there.
    let Some(headers) = (unsafe { parse::<IS_V4>(ip) }) else { return false };
    let (mut tcp_flags, mut checksum_at, mut is_udp) = (0, transport + 6, true);
    if headers.protocol == Protocol::TCP.0 {
        if transport + TCP_BYTES > end {
            return false;
        }
        // SAFETY: it was looked for.
        tcp_flags = unsafe { *((transport + 13) as *const u8) };
        (checksum_at, is_udp) = (transport + 16, false);
    } else if headers.protocol != Protocol::UDP.0 {
        return false;
    }
    // SAFETY: as above.
    let tuple = unsafe { tuple::<IS_V4>(ip, transport, headers.protocol) };
    let Some(shortcut) = shortcut(ctx, &tuple, tcp_flags, &headers) else { return false };
    let [to, from] = &shortcut.stations;
    // SAFETY: as above.
    let is_own =
        unsafe { half(start) == from[0] && half(start + 2) == from[1] && half(start + 4) == from[2] };
    if !is_own || headers.length > shortcut.mtu {
        return false;
    }
    // SAFETY: as above; what is written was read or looked for.
    unsafe {
        for at in 0..3 {
            put(start + 2 * at, to[at]);
            put(start + 6 + 2 * at, from[at]);
        }
        rewrite::<IS_V4>(ip, transport, shortcut);
        let sum = half(checksum_at);
        // A datagram without a checksum stays one (RFC 768).
        if !is_udp || sum != 0 {
            let sum = shortcut::changed(sum, shortcut.transport_sum);
            put(checksum_at, if is_udp && sum == 0 { u16::MAX } else { sum });
        }
    }
    maps::count(if shortcut.is_forward() { Counter::FlowForward } else { Counter::FlowReverse });
    maps::count(Counter::ForwardedEarly);
    true
}

/// What is asked for beside the tuple, unless the packet is one that is left to tc.
///
/// # Safety
/// An IP header without options has to be there.
#[inline(always)]
unsafe fn parse<const IS_V4: bool>(ip: usize) -> Option<Headers> {
    // SAFETY: as the caller says.
    let (first, second, third) = unsafe { (half(ip), half(ip + 2), half(ip + 4)) };
    if IS_V4 {
        /// Version 4, and five words; offset and "more fragments" (RFC 791 3.1).
        const PLAIN: u8 = 0x45;
        const FRAGMENT: u16 = 0x3fff_u16.to_be();
        // SAFETY: as above.
        let (fragment, [hops, protocol]) = unsafe { (half(ip + 6), half(ip + 8).to_ne_bytes()) };
        let [version, class] = first.to_ne_bytes();
        if version != PLAIN || fragment & FRAGMENT != 0 || hops <= 1 {
            return None;
        }
        Some(Headers { length: u16::from_be(second), protocol, class: class as u32 })
    } else {
        // SAFETY: as above.
        let [protocol, hops] = unsafe { half(ip + 6).to_ne_bytes() };
        if hops <= 1 {
            return None;
        }
        let class = both(first & u16::from_ne_bytes([0x0f, 0xff]), second);
        Some(Headers { length: u16::from_be(third).saturating_add(V6_BYTES as u16), protocol, class })
    }
}

/// # Safety
/// An IP header without options and four octets of another header behind it have to be there.
#[inline(always)]
unsafe fn tuple<const IS_V4: bool>(ip: usize, transport: usize, protocol: u8) -> Tuple {
    // SAFETY: as the caller says.
    let (source, destination, ports) = unsafe {
        let address = |at: usize| [word(at), word(at + 4), word(at + 8), word(at + 12)];
        if IS_V4 {
            let mapped = |at: usize| Address::from_v4_word(word(at)).to_words();
            (mapped(ip + 12), mapped(ip + 16), word(transport))
        } else {
            (address(ip + 8), address(ip + 24), word(transport))
        }
    };
    Tuple::from_words(source, destination, ports, u32::from_ne_bytes([protocol, 0, 0, 0]))
}

/// What becomes of the packet, where that is known or can be found.
#[inline(always)]
fn shortcut(ctx: &XdpContext, tuple: &Tuple, tcp_flags: u8, headers: &Headers) -> Option<&'static Shortcut> {
    const TURNS: u8 = TCP_SYN | TCP_FIN | TCP_RST;
    // SAFETY: a helper without arguments.
    let now = unsafe { bpf_ktime_get_coarse_ns() };
    // SAFETY: alive for this run of the program; but for the time, values are replaced as a whole.
    if let Some(known) = unsafe { SHORTCUTS.get(tuple) }
        && tcp_flags & TURNS == 0
        && known.is_good(now)
    {
        return Some(known);
    }
    let found = known_flow(tuple, tcp_flags);
    if found.is_null() || !find_way(ctx, tuple, found, headers, now) {
        return None;
    }
    // SAFETY: as above.
    unsafe { SHORTCUTS.get(tuple) }
}

/// The flow of a packet that may be sent on from here, touched; null where there is none.
#[inline(never)]
fn known_flow(tuple: &Tuple, tcp_flags: u8) -> *mut Flow {
    // A pod's address is its own, whatever flows there are. Most of what comes is for one.
    if maps::is_in_pod_ranges(&tuple.destination) {
        return ptr::null_mut();
    }
    let Some(found) = conntrack::find(tuple) else { return ptr::null_mut() };
    // SAFETY: an element of the map, alive for this run of the program.
    let flow = unsafe { &*found };
    if !flow.is_forwarded() || maps::local_pod(&tuple.destination).is_some() {
        return ptr::null_mut();
    }
    let packet = Packet { tuple: *tuple, part: Part::Whole, tcp_flags, ..Packet::OTHER };
    if packet.is_initial() {
        // It may open the flow anew, to another backend: that is for tc.
        let _ = SHORTCUTS.remove(tuple);
        let _ = SHORTCUTS.remove(flow.translated.reversed());
        return ptr::null_mut();
    }
    if flow.is_forward() && conntrack::is_stale(flow, &packet) {
        return ptr::null_mut();
    }
    conntrack::touch_known(found, tcp_flags);
    found
}

/// Makes or confirms the shortcut of a flow's direction.
#[inline(never)]
fn find_way(ctx: &XdpContext, tuple: &Tuple, found: *mut Flow, headers: &Headers, now: u64) -> bool {
    // SAFETY: an element of the map, alive for this run of the program.
    let flow = unsafe { &*found };
    let mut new = Shortcut::new(tuple, &flow.translated, flow.is_forward());
    let mut neighbour = Address::UNSPECIFIED;
    if !next_hop(ctx, headers, &flow.translated, &mut new, &mut neighbour) {
        return false;
    }
    remember(tuple, &mut new, now) && !is_to_be_asked(&neighbour, now)
}

#[inline(always)]
fn remember(tuple: &Tuple, new: &mut Shortcut, now: u64) -> bool {
    if let Some(known) = SHORTCUTS.get_ptr_mut(tuple) {
        // SAFETY: an element of the map, alive for this run of the program; nothing but the time is written in place.
        unsafe {
            new.confirmed_ns = (*known).confirmed_ns;
            if *known == *new {
                (*known).confirmed_ns = now;
                return true;
            }
        }
    }
    new.confirmed_ns = now;
    SHORTCUTS.insert(tuple, &*new, 0).is_ok()
}

/// Finds the way of a packet that becomes `to` out of the link it came in on, as tc does. False where tc has to find it.
#[inline(never)]
fn next_hop(
    ctx: &XdpContext,
    headers: &Headers,
    to: &Tuple,
    way: &mut Shortcut,
    neighbour: &mut Address,
) -> bool {
    // SAFETY: all zeros is a value of it.
    let mut query: FibQuery = unsafe { core::mem::zeroed() };
    query.ifindex = ctx.ingress_ifindex() as u32;
    query.l4_protocol = to.protocol.0;
    query.sport = u16::from_ne_bytes(to.source_port.to_network());
    query.dport = u16::from_ne_bytes(to.destination_port.to_network());
    query.__bindgen_anon_1.tot_len = headers.length;
    if to.source.is_v4() {
        query.family = AF_INET;
        query.__bindgen_anon_2.tos = headers.class as u8;
        query.__bindgen_anon_3.ipv4_src = to.source.to_words()[3];
        query.__bindgen_anon_4.ipv4_dst = to.destination.to_words()[3];
    } else {
        query.family = AF_INET6;
        query.__bindgen_anon_2.flowinfo = headers.class;
        query.__bindgen_anon_3.ipv6_src = to.source.to_words();
        query.__bindgen_anon_4.ipv6_dst = to.destination.to_words();
    }
    // SAFETY: the helper reads and writes a query of the size that it is told.
    let result = unsafe {
        bpf_fib_lookup(ctx.as_ptr(), &mut query, size_of::<FibQuery>() as i32, BPF_FIB_LOOKUP_OUTPUT)
    };
    // Older kernels give a neighbour that they are still asking for, whose station is not known.
    if result != BPF_FIB_LKUP_RET_SUCCESS as i64 || query.dmac == [0; 6] {
        return false;
    }
    way.stations = [query.dmac, query.smac].map(|[a, b, c, d, e, f]| {
        [u16::from_ne_bytes([a, b]), u16::from_ne_bytes([c, d]), u16::from_ne_bytes([e, f])]
    });
    // SAFETY: where the lookup succeeds the kernel writes the MTU, and the next hop of the family that it says.
    unsafe {
        way.mtu = query.__bindgen_anon_1.mtu_result;
        *neighbour = if query.family == AF_INET {
            Address::from_v4_word(query.__bindgen_anon_4.ipv4_dst)
        } else {
            Address::from_words(query.__bindgen_anon_4.ipv6_dst)
        };
    }
    true
}

/// Whether it is time for a packet to go by way of the kernel, so that it asks after the neighbour.
#[inline(always)]
fn is_to_be_asked(neighbour: &Address, now: u64) -> bool {
    if let Some(asked_ns) = NEIGHBOURS.get_ptr_mut(neighbour) {
        // SAFETY: an element of the map, alive for this run of the program; a torn time only has it asked after sooner.
        unsafe {
            if now.wrapping_sub(*asked_ns) < NEIGHBOUR_NS {
                return false;
            }
            *asked_ns = now;
        }
        return true;
    }
    // Where there is no room it is not asked after here: tc is, at the latest when the kernel forgets it.
    NEIGHBOURS.insert(neighbour, now, 0).is_ok()
}

/// # Safety
/// Both headers have to be there.
#[inline(always)]
unsafe fn rewrite<const IS_V4: bool>(ip: usize, transport: usize, to: &Shortcut) {
    let halves = |address: &Address| ptr::from_ref(address).cast::<u16>();
    let (source, destination) = (halves(&to.source), halves(&to.destination));
    // SAFETY: of the packet as the caller says; an address has eight halves.
    unsafe {
        if IS_V4 {
            // The hop limit is the first octet, and more than 1.
            put(ip + 8, half(ip + 8).wrapping_sub(u16::from_ne_bytes([1, 0])));
            put(ip + 10, shortcut::changed(half(ip + 10), to.header_sum));
            for at in 0..2 {
                put(ip + 12 + 2 * at, *source.add(6 + at));
                put(ip + 16 + 2 * at, *destination.add(6 + at));
            }
        } else {
            put(ip + 6, half(ip + 6).wrapping_sub(u16::from_ne_bytes([0, 1])));
            for at in 0..8 {
                put(ip + 8 + 2 * at, *source.add(at));
                put(ip + 24 + 2 * at, *destination.add(at));
            }
        }
        put(transport, to.ports[0]);
        put(transport + 2, to.ports[1]);
    }
}

/// # Safety
/// Two octets have to be there, at an even place.
#[inline(always)]
unsafe fn half(at: usize) -> u16 {
    // SAFETY: as the caller says.
    unsafe { *(at as *const u16) }
}

/// # Safety
/// Four octets have to be there, at an even place.
#[inline(always)]
unsafe fn word(at: usize) -> u32 {
    // SAFETY: as the caller says.
    unsafe { both(half(at), half(at + 2)) }
}

/// The word whose halves lie one behind the other.
#[inline(always)]
fn both(first: u16, second: u16) -> u32 {
    let (first, second) = (first as u32, second as u32);
    if cfg!(target_endian = "little") { first | second << 16 } else { first << 16 | second }
}

/// # Safety
/// As of [`half`].
#[inline(always)]
unsafe fn put(at: usize, value: u16) {
    // SAFETY: as the caller says.
    unsafe { *(at as *mut u16) = value };
}
