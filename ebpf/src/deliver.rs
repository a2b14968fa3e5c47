//! The way that most packets take: to a pod of this node none of whose flows is translated, or out of the node by the
//! kernel's routes, past the node's stack.
//!
//! Here the headers are read and written where they lie, as far as they lie in the buffer's linear part; nothing is ever
//! pulled there. What they do not lie in, and what needs more than a hop and two stations, goes the long way (`nat`).

use aya_ebpf::{
    bindings::{TC_ACT_UNSPEC, bpf_fib_lookup as FibQuery, bpf_redir_neigh},
    helpers::{bpf_csum_update, bpf_redirect_peer},
    programs::TcContext,
};
use ebpf_common::{Address, Counter, LocalPod, Protocol};

use crate::{
    maps, masquerade,
    packet::{self, AF_INET, ETHERNET_BYTES, ETHERTYPE_V4, ETHERTYPE_V6, V4_WITHOUT_OPTIONS},
};

/// Words of 16 bits, as that is what headers behind an Ethernet header are aligned to.
type Word = [u16; 2];

#[repr(C)]
struct Stations {
    to: [u16; 3],
    from: [u16; 3],
    ethertype: u16,
}

#[repr(C)]
struct V4 {
    stations: Stations,
    /// Version, header length and type of service; total length; identification; flags and fragment offset.
    first: [u16; 4],
    hops_and_protocol: u16,
    checksum: u16,
    source: Word,
    destination: Word,
}

#[repr(C)]
struct V4AndPorts {
    header: V4,
    ports: [u16; 2],
}

#[repr(C)]
struct V6 {
    stations: Stations,
    /// Version, traffic class and flow label; payload length.
    first: [u16; 3],
    next_and_hops: u16,
    source: [Word; 4],
    destination: [Word; 4],
}

/// What becomes of a packet, beside the actions of tc.
pub const OTHERS: i32 = i32::MIN;
/// It is for a pod, but for none of this node.
pub const ON_ANOTHER_NODE: i32 = i32::MIN + 1;
/// A datagram that has to be noted.
pub const FOREIGN: i32 = i32::MIN + 2;
/// It is for a pod of this node that is policed.
pub const POLICED: i32 = i32::MIN + 3;
const LONG_WAY: i32 = i32::MIN + 4;

/// Hands the packet over and returns the action, or one of the constants above; `None` where it has to go the long way.
#[inline(always)]
pub fn in_place(ctx: &TcContext, is_beyond: bool) -> Option<i32> {
    let (at, end) = (ctx.data(), ctx.data_end());
    let action = match ctx.skb.protocol() {
        // SAFETY: as many octets are there, and nothing invalidates them before they are written.
        ETHERTYPE_V4 if at + size_of::<V4>() <= end => unsafe { (*(at as *mut V4)).hand_over(is_beyond) },
        // SAFETY: as above.
        ETHERTYPE_V6 if at + size_of::<V6>() <= end => unsafe {
            (*(at as *mut V6)).hand_over(ctx, is_beyond)
        },
        _ => LONG_WAY,
    };
    if action == LONG_WAY { None } else { Some(action) }
}

impl V4 {
    #[inline(always)]
    fn hand_over(&mut self, is_beyond: bool) -> i32 {
        let [hops, protocol] = self.hops_and_protocol.to_ne_bytes();
        let ends = [self.source, self.destination].map(|end| Address::from_v4_word(word(end)));
        let pod = match receiver(&ends, is_beyond, hops, protocol) {
            Ok(pod) => pod,
            Err(action) => return action,
        };
        self.stations.write(pod);
        self.take_hop(hops, protocol);
        redirect(pod)
    }

    #[inline(always)]
    fn take_hop(&mut self, hops: u8, protocol: u8) {
        self.hops_and_protocol = u16::from_ne_bytes([hops - 1, protocol]);
        // RFC 1141: a hop less is a sum of the header that is 0x100 less, and a complement that much more.
        let (sum, carry) = u16::from_be(self.checksum).overflowing_add(0x100);
        self.checksum = sum.wrapping_add(carry as u16).to_be();
    }
}

impl V6 {
    #[inline(always)]
    fn hand_over(&mut self, ctx: &TcContext, is_beyond: bool) -> i32 {
        /// IPv6 has no sum of its own; what a device summed up is one of the second octet less.
        const HOP_LESS: u32 = !(u16::from_ne_bytes([0, 1]) as u32);
        let [next, hops] = self.next_and_hops.to_ne_bytes();
        let ends = [self.source, self.destination].map(|end| Address::from_words(end.map(word)));
        let pod = match receiver(&ends, is_beyond, hops, next) {
            Ok(pod) => pod,
            Err(action) => return action,
        };
        self.stations.write(pod);
        self.next_and_hops = u16::from_ne_bytes([next, hops - 1]);
        // SAFETY: the buffer that the context is of. Where no device summed it up, there is nothing to change.
        unsafe { bpf_csum_update(ctx.skb.skb, HOP_LESS) };
        redirect(pod)
    }
}

/// The pod that a packet from and to `ends` is for, if nothing but a hop and the stations has to change. A packet without a
/// hop left is for the stack, which tells its sender.
#[inline(always)]
fn receiver(
    [source, destination]: &[Address; 2],
    is_beyond: bool,
    hops: u8,
    protocol: u8,
) -> Result<&'static LocalPod, i32> {
    match maps::local_pod(destination) {
        Some(_) if hops <= 1 => Err(LONG_WAY),
        Some(_) if is_beyond && protocol == Protocol::UDP.0 && masquerade::is_foreign(source) => Err(FOREIGN),
        Some(pod) if pod.has_flows == 0 => Ok(pod),
        Some(pod) if pod.has_flows & LocalPod::POLICED != 0 => Err(POLICED),
        None if maps::is_in_pod_ranges(destination) => Err(ON_ANOTHER_NODE),
        _ => Err(OTHERS),
    }
}

/// As [`packet::route`] does it, for TCP and UDP over IPv4 without options and fragments; `None` for all else.
#[inline(always)]
pub fn route_in_place(ctx: &TcContext) -> Option<i32> {
    const FRAGMENT: u16 = 0x3fff_u16.to_be();
    let at = ctx.data();
    if ctx.skb.protocol() != ETHERTYPE_V4 || at + size_of::<V4AndPorts>() > ctx.data_end() {
        return None;
    }
    // SAFETY: as many octets are there, and nothing invalidates them before they are written.
    let V4AndPorts { header, ports } = unsafe { &mut *(at as *mut V4AndPorts) };
    let [hops, protocol] = header.hops_and_protocol.to_ne_bytes();
    let [version_and_length, service] = header.first[0].to_ne_bytes();
    let has_ports = protocol == Protocol::TCP.0 || protocol == Protocol::UDP.0;
    if hops <= 1 || version_and_length != V4_WITHOUT_OPTIONS || header.first[3] & FRAGMENT != 0 || !has_ports
    {
        return None;
    }
    // SAFETY: all zeros is a value of either.
    let (mut query, mut next_hop): (FibQuery, bpf_redir_neigh) = unsafe { core::mem::zeroed() };
    query.family = AF_INET;
    query.l4_protocol = protocol;
    [query.sport, query.dport] = *ports;
    query.__bindgen_anon_2.tos = service;
    query.__bindgen_anon_3.ipv4_src = word(header.source);
    query.__bindgen_anon_4.ipv4_dst = word(header.destination);
    // SAFETY: fields of the context.
    let gso = unsafe {
        query.ifindex = (*ctx.skb.skb).ifindex;
        (*ctx.skb.skb).gso_size != 0
    };
    if !gso {
        query.__bindgen_anon_1.tot_len = ctx.len().saturating_sub(ETHERNET_BYTES as u32) as u16;
    }
    let interface_index = packet::look_up(ctx, &mut query, gso, &mut next_hop);
    if interface_index == 0 {
        return Some(TC_ACT_UNSPEC);
    }
    header.take_hop(hops, protocol);
    Some(packet::send_to(interface_index, &mut next_hop))
}

impl Stations {
    #[inline(always)]
    fn write(&mut self, pod: &LocalPod) {
        let half = |station: &[u8; 6], at: usize| u16::from_ne_bytes([station[at], station[at + 1]]);
        let [to, from] = &pod.stations;
        self.to = [half(to, 0), half(to, 2), half(to, 4)];
        self.from = [half(from, 0), half(from, 2), half(from, 4)];
    }
}

#[inline(always)]
fn redirect(pod: &LocalPod) -> i32 {
    maps::count(Counter::Delivered);
    // SAFETY: a helper without pointers.
    unsafe { bpf_redirect_peer(pod.interface_index, 0) as i32 }
}

/// As it lies in the packet.
#[inline(always)]
const fn word([first, second]: Word) -> u32 {
    let ([a, b], [c, d]) = (first.to_ne_bytes(), second.to_ne_bytes());
    u32::from_ne_bytes([a, b, c, d])
}

const _: () = assert!(size_of::<V4>() == 34 && size_of::<V6>() == 54);
