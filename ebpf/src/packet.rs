//! Headers in a socket buffer: read into a tuple, rewritten with their checksums.
//!
//! All access goes through the kernel's load and store functions, so that paged and cloned buffers need no pulling
//! (which has crashed kernels on fragment-list GSO packets).

use aya_ebpf::{
    EbpfContext as _,
    bindings::{
        BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, BPF_F_RECOMPUTE_CSUM, BPF_FIB_LKUP_RET_FRAG_NEEDED,
        BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_SUCCESS, BPF_FIB_LOOKUP_OUTPUT,
        BPF_FIB_LOOKUP_SKIP_NEIGH, TC_ACT_UNSPEC, bpf_check_mtu_flags::BPF_MTU_CHK_SEGS,
        bpf_fib_lookup as FibQuery, bpf_redir_neigh,
    },
    helpers::{
        bpf_check_mtu, bpf_csum_diff, bpf_fib_lookup, bpf_redirect, bpf_redirect_neigh, bpf_redirect_peer,
    },
    programs::TcContext,
};
use ebpf_common::{Address, Counter, Fragment, FragmentKey, LocalPod, Port, Protocol, Tuple, sctp::INIT};

use crate::{deliver, error::Error, maps, sctp};

pub const ETHERNET_BYTES: usize = 14;
pub const ETHERTYPE_V4: u32 = 0x0800_u16.to_be() as u32;
pub const ETHERTYPE_V6: u32 = 0x86dd_u16.to_be() as u32;

/// Protocol numbers of ICMP and ICMPv6.
pub const ICMP: u8 = Protocol::ICMP.0;
pub const ICMP_V6: u8 = Protocol::ICMP_V6.0;

pub const TCP_FIN: u8 = 0x01;
pub const TCP_SYN: u8 = 0x02;
pub const TCP_RST: u8 = 0x04;
pub const TCP_ACK: u8 = 0x10;

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Part {
    Whole,
    First,
    /// Has no ports.
    Later,
    /// A whole ICMP message of either version, of which nothing but addresses and the protocol is known.
    Icmp,
    /// None of these. Of IP, addresses and the protocol are known.
    Other,
}

pub struct Packet {
    pub tuple: Tuple,
    pub is_v4: bool,
    pub part: Part,
    /// The Identification field of a fragment.
    pub identification: u32,
    /// Of TCP, else 0.
    pub tcp_flags: u8,
    /// Of SCTP, as in [`ebpf_common::sctp`], else 0.
    pub chunks: u8,
    /// Offset of the header of TCP, UDP or SCTP.
    pub transport: usize,
}

impl Packet {
    pub const OTHER: Self = Self {
        tuple: Tuple::new(
            Address::UNSPECIFIED,
            Port::new(0),
            Address::UNSPECIFIED,
            Port::new(0),
            Protocol(0),
        ),
        is_v4: false,
        part: Part::Other,
        identification: 0,
        tcp_flags: 0,
        chunks: 0,
        transport: 0,
    };

    pub fn fragment_key(&self, entering: bool) -> FragmentKey {
        let tuple = &self.tuple;
        FragmentKey::new(tuple.source, tuple.destination, self.identification, tuple.protocol, entering)
    }

    /// Whether a connection begins with this packet: a SYN without ACK, or an INIT.
    pub fn is_initial(&self) -> bool {
        self.tcp_flags & (TCP_SYN | TCP_ACK) == TCP_SYN || self.chunks & INIT != 0
    }
}

/// Reads the headers. What is read lies in a map, one place for each CPU, until the program ends or reads again: of what a
/// map holds the verifier knows nothing, so that it goes the ways of a packet after this once, and not once for each way
/// that leads here.
#[inline(always)]
pub fn read(ctx: &TcContext) -> Result<&'static mut Packet, Error> {
    let Some(place) = maps::packet() else { return Err(Error::Malformed) };
    // SAFETY: the kernel gave this CPU's element, and no other program that reads one interrupts this one.
    let packet = unsafe {
        place.write(Packet::OTHER);
        &mut *place
    };
    parse(ctx, packet)?;
    Ok(packet)
}

/// Reads the headers into `packet`, which is [`Packet::OTHER`] before.
#[inline(never)]
fn parse(ctx: &TcContext, packet: &mut Packet) -> Result<(), Error> {
    match ctx.skb.protocol() {
        ETHERTYPE_V4 => parse_v4(ctx, packet)?,
        ETHERTYPE_V6 => parse_v6(ctx, packet)?,
        _ => return Ok(()),
    }
    if !matches!(packet.part, Part::Whole | Part::First) {
        return Ok(());
    }
    let ports: [u8; 4] = load(ctx, packet.transport)?;
    packet.tuple.source_port = Port::from_network([ports[0], ports[1]]);
    packet.tuple.destination_port = Port::from_network([ports[2], ports[3]]);
    if packet.tuple.protocol == Protocol::TCP {
        packet.tcp_flags = load(ctx, packet.transport + 13)?;
    } else if packet.tuple.protocol == Protocol::SCTP {
        packet.chunks = sctp::chunks(ctx, packet.transport as u32) as u8;
    }
    Ok(())
}

#[inline(always)]
fn parse_v4(ctx: &TcContext, packet: &mut Packet) -> Result<(), Error> {
    let header: [u32; 5] = load(ctx, ETHERNET_BYTES)?;
    let first = header[0].to_ne_bytes();
    let second = header[1].to_ne_bytes();
    let protocol = Protocol(header[2].to_ne_bytes()[1]);
    let header_bytes = (first[0] & 0x0f) as usize * 4;
    packet.tuple.source = Address::from_v4_word(header[3]);
    packet.tuple.destination = Address::from_v4_word(header[4]);
    packet.tuple.protocol = protocol;
    packet.is_v4 = true;
    packet.transport = ETHERNET_BYTES + header_bytes;
    if protocol.0 == ICMP && second[2] & 0x3f == 0 && second[3] == 0 {
        packet.part = Part::Icmp;
        return Ok(());
    }
    if !protocol.has_ports() {
        return Ok(());
    }
    if header_bytes < 20 {
        return Err(Error::Malformed);
    }
    let offset = u16::from_be_bytes([second[2] & 0x1f, second[3]]);
    let more = second[2] & 0x20 != 0;
    packet.part = match (offset, more) {
        (0, false) => Part::Whole,
        (0, true) => Part::First,
        _ => Part::Later,
    };
    packet.identification = u16::from_ne_bytes([second[0], second[1]]) as u32;
    Ok(())
}

/// Extension headers that are walked; RFC 8200 asks for each at most once, and four kinds stand before a transport's.
const EXTENSIONS_MAX: usize = 4;

#[inline(always)]
fn parse_v6(ctx: &TcContext, packet: &mut Packet) -> Result<(), Error> {
    let header: [u32; 10] = load(ctx, ETHERNET_BYTES)?;
    let mut next = header[1].to_ne_bytes()[2];
    let mut transport = ETHERNET_BYTES + 40;
    let mut part = Part::Whole;
    let mut identification = 0;
    for _ in 0..EXTENSIONS_MAX {
        match next {
            // Hop-by-hop options, routing, destination options (RFC 8200 4.3, 4.4, 4.6).
            0 | 43 | 60 => {
                let extension: [u8; 2] = load(ctx, transport)?;
                next = extension[0];
                transport += (extension[1] as usize + 1) * 8;
            }
            // Fragment (RFC 8200 4.5).
            44 => {
                let extension: [u8; 8] = load(ctx, transport)?;
                let offset = u16::from_be_bytes([extension[2], extension[3]]);
                part = match (offset & 0xfff8, offset & 1) {
                    (0, 0) => Part::Whole,
                    (0, _) => Part::First,
                    _ => Part::Later,
                };
                identification = u32::from_ne_bytes([extension[4], extension[5], extension[6], extension[7]]);
                next = extension[0];
                transport += 8;
                if matches!(part, Part::Later) {
                    break;
                }
            }
            _ => break,
        }
    }
    let protocol = Protocol(next);
    packet.tuple.source = Address::from_words([header[2], header[3], header[4], header[5]]);
    packet.tuple.destination = Address::from_words([header[6], header[7], header[8], header[9]]);
    packet.tuple.protocol = protocol;
    packet.transport = transport;
    if next == ICMP_V6 && matches!(part, Part::Whole) {
        packet.part = Part::Icmp;
        return Ok(());
    }
    if !protocol.has_ports() {
        return Ok(());
    }
    packet.part = part;
    packet.identification = identification;
    Ok(())
}

/// Gives the packet the addresses and ports of `to`, and the checksums that follow.
#[inline(never)]
pub fn rewrite(ctx: &TcContext, packet: &Packet, to: &Tuple) -> Result<(), Error> {
    let from = &packet.tuple;
    let difference = difference(from, to)?;
    if from.protocol == Protocol::SCTP {
        // Its checksum covers no addresses.
        if from.source_port != to.source_port || from.destination_port != to.destination_port {
            if !matches!(packet.part, Part::Whole) {
                // It covers what follows in other fragments.
                return Err(Error::Fragment);
            }
            sctp::rewrite_ports(ctx, packet, to)?;
        }
        return rewrite_addresses(ctx, packet.is_v4, difference, &to.source, &to.destination);
    }
    let (checksum_at, zero_is_none) = if from.protocol == Protocol::TCP {
        (packet.transport + 16, 0)
    } else {
        (packet.transport + 6, BPF_F_MARK_MANGLED_0 as u64)
    };
    ctx.l4_csum_replace(checksum_at, 0, difference, BPF_F_PSEUDO_HDR as u64 | zero_is_none)
        .map_err(|_| Error::Rewrite)?;
    if from.source_port != to.source_port {
        rewrite_port(ctx, packet.transport, checksum_at, zero_is_none, from.source_port, to.source_port)?;
    }
    if from.destination_port != to.destination_port {
        let at = packet.transport + 2;
        rewrite_port(ctx, at, checksum_at, zero_is_none, from.destination_port, to.destination_port)?;
    }
    rewrite_addresses(ctx, packet.is_v4, difference, &to.source, &to.destination)
}

/// Gives a later fragment the addresses that its first one got.
#[inline(never)]
pub fn rewrite_fragment(ctx: &TcContext, packet: &Packet, to: &Fragment) -> Result<(), Error> {
    let to = Tuple::new(to.source, Port::new(0), to.destination, Port::new(0), packet.tuple.protocol);
    let difference = difference(&packet.tuple, &to)?;
    rewrite_addresses(ctx, packet.is_v4, difference, &to.source, &to.destination)
}

/// The checksum difference of both addresses. IPv4 is mapped on both sides, so that the prefixes cancel.
#[inline(always)]
pub fn difference(from: &Tuple, to: &Tuple) -> Result<u64, Error> {
    const ADDRESSES_BYTES: u32 = 32;
    // SAFETY: both tuples begin with their two addresses, 32 bytes that the helper only reads.
    let difference = unsafe {
        bpf_csum_diff(
            core::ptr::from_ref(from).cast_mut().cast(),
            ADDRESSES_BYTES,
            core::ptr::from_ref(to).cast_mut().cast(),
            ADDRESSES_BYTES,
            0,
        )
    };
    if difference < 0 { Err(Error::Rewrite) } else { Ok(difference as u64) }
}

#[inline(always)]
fn rewrite_port(
    ctx: &TcContext,
    at: usize,
    checksum_at: usize,
    zero_is_none: u64,
    from: Port,
    to: Port,
) -> Result<(), Error> {
    let (from, to) = (u16::from_ne_bytes(from.to_network()), u16::from_ne_bytes(to.to_network()));
    ctx.l4_csum_replace(checksum_at, from as u64, to as u64, 2 | zero_is_none).map_err(|_| Error::Rewrite)?;
    ctx.store(at, &to, 0).map_err(|_| Error::Rewrite)
}

#[inline(always)]
pub fn rewrite_addresses(
    ctx: &TcContext,
    is_v4: bool,
    difference: u64,
    source: &Address,
    destination: &Address,
) -> Result<(), Error> {
    if is_v4 {
        ctx.l3_csum_replace(ETHERNET_BYTES + 10, 0, difference, 0).map_err(|_| Error::Rewrite)?;
        let addresses = [source.to_words()[3], destination.to_words()[3]];
        ctx.store(ETHERNET_BYTES + 12, &addresses, 0).map_err(|_| Error::Rewrite)
    } else {
        ctx.store(ETHERNET_BYTES + 8, source, 0).map_err(|_| Error::Rewrite)?;
        ctx.store(ETHERNET_BYTES + 24, destination, 0).map_err(|_| Error::Rewrite)
    }
}

/// Sends the packet back out of the link it came in on, to the station that sent it.
#[inline(never)]
pub fn turn_around(ctx: &TcContext) -> Result<i32, Error> {
    let stations: [[u8; 6]; 2] = load(ctx, 0)?;
    ctx.store(0, &[stations[1], stations[0]], 0).map_err(|_| Error::Rewrite)?;
    // SAFETY: the context field and a helper without pointers.
    Ok(unsafe { bpf_redirect((*ctx.skb.skb).ifindex, 0) } as i32)
}

/// Sends the packet to where its new addresses lead: out of the link it came in on, past the node's own stack.
#[inline(always)]
pub fn send_on(ctx: &TcContext) -> i32 {
    maps::count(Counter::Forwarded);
    // The kernel looks the route up among those of this link, and finds the neighbour.
    // SAFETY: the context field, and a helper that takes no parameters where their size is 0.
    unsafe { bpf_redirect_neigh((*ctx.skb.skb).ifindex, core::ptr::null_mut(), 0, 0) as i32 }
}

/// How large a packet may be that [`send_on`] sends, with the addresses of `to`, where this one is larger and its sender can
/// be told; else 0. What may be cut goes on, for a router to cut it; so do fragments, and what has IP options.
#[inline(never)]
pub fn exceeded_mtu(ctx: &TcContext, packet: &Packet, to: &Tuple) -> u32 {
    /// What every way takes (RFC 8200 5), and the least that the kernel believes of one.
    const LEAST: [usize; 2] = [1280, 552];
    let header = if packet.is_v4 { 20 } else { 40 };
    // SAFETY: a field of the context.
    let segment = unsafe { (*ctx.skb.skb).gso_size } as usize;
    let mut bytes = (ctx.len() as usize).saturating_sub(ETHERNET_BYTES);
    if segment != 0 {
        bytes = header + segment + transport_bytes(ctx, packet);
    }
    if bytes <= LEAST[packet.is_v4 as usize]
        || bytes > u16::MAX as usize
        || packet.transport != ETHERNET_BYTES + header
        || !matches!(packet.part, Part::Whole)
        || (packet.is_v4 && may_be_cut(ctx))
    {
        return 0;
    }
    // SAFETY: all zeros is a value of it.
    let mut query: FibQuery = unsafe { core::mem::zeroed() };
    // SAFETY: a field of the context.
    query.ifindex = unsafe { (*ctx.skb.skb).ifindex };
    query.l4_protocol = packet.tuple.protocol.0;
    query.__bindgen_anon_1.tot_len = bytes as u16;
    if packet.is_v4 {
        query.family = AF_INET;
        query.__bindgen_anon_3.ipv4_src = to.source.to_words()[3];
        query.__bindgen_anon_4.ipv4_dst = to.destination.to_words()[3];
    } else {
        query.family = AF_INET6;
        query.__bindgen_anon_3.ipv6_src = to.source.to_words();
        query.__bindgen_anon_4.ipv6_dst = to.destination.to_words();
    }
    // SAFETY: the helper reads and writes a query of the size that it is told.
    let result = unsafe {
        bpf_fib_lookup(ctx.as_ptr(), &mut query, size_of::<FibQuery>() as i32, BPF_FIB_LOOKUP_OUTPUT)
    };
    if result != BPF_FIB_LKUP_RET_FRAG_NEEDED as i64 {
        return 0;
    }
    // SAFETY: the kernel wrote it.
    unsafe { query.__bindgen_anon_1.mtu_result as u32 }
}

/// The transport's header in each of the packets that the kernel is going to cut this one into.
#[inline(always)]
fn transport_bytes(ctx: &TcContext, packet: &Packet) -> usize {
    if packet.tuple.protocol != Protocol::TCP {
        return 8;
    }
    load::<u8>(ctx, packet.transport + 12).map_or(20, |words| (words >> 4) as usize * 4)
}

/// Whether routers may fragment a packet of IPv4.
#[inline(always)]
fn may_be_cut(ctx: &TcContext) -> bool {
    load::<u8>(ctx, ETHERNET_BYTES + 6).is_ok_and(|flags| flags & 0x40 == 0)
}

/// An Ethernet header and the least of an IP header.
pub type Head = [u8; HEAD_BYTES];
const HEAD_BYTES: usize = ETHERNET_BYTES + 20;

const V4_TTL: usize = ETHERNET_BYTES + 8;
const V4_CHECKSUM: usize = ETHERNET_BYTES + 10;
const V6_HOPS: usize = ETHERNET_BYTES + 7;
pub const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// The destination of what begins with `head`.
#[inline(always)]
pub fn destination(ctx: &TcContext, head: &Head) -> Option<Address> {
    match ctx.skb.protocol() {
        ETHERTYPE_V4 => {
            let word = u32::from_ne_bytes([head[30], head[31], head[32], head[33]]);
            Some(Address::from_v4_word(word))
        }
        ETHERTYPE_V6 => load(ctx, ETHERNET_BYTES + 24).ok().map(Address::from_words),
        _ => None,
    }
}

/// Hands the packet, which begins with `head`, to a pod of this node as a router does, past the node's stack and the
/// queue before the pod's. Where it has no hop left, that is for the stack to tell its sender. Returns the action.
#[inline(always)]
pub fn hand_over(ctx: &TcContext, head: &mut Head, is_v4: bool, pod: &LocalPod) -> i32 {
    const STATIONS_BYTES: usize = 12;
    let hops = head[if is_v4 { V4_TTL } else { V6_HOPS }];
    if hops <= 1 {
        return TC_ACT_UNSPEC;
    }
    let [to, from] = pod.stations;
    head[..6].copy_from_slice(&to);
    head[6..STATIONS_BYTES].copy_from_slice(&from);
    let stored = if is_v4 {
        take_hop_of_head(head);
        ctx.store(0, head, 0)
    } else {
        // The hop limit is part of what a device may have summed up; the Ethernet header is not.
        let hops = [hops - 1];
        ctx.store(V6_HOPS, &hops, BPF_F_RECOMPUTE_CSUM as u64).and_then(|()| ctx.store(0, &pod.stations, 0))
    };
    if stored.is_err() {
        return TC_ACT_UNSPEC;
    }
    maps::count(Counter::Delivered);
    // SAFETY: a helper without pointers.
    unsafe { bpf_redirect_peer(pod.interface_index, 0) as i32 }
}

/// The first octet of such a header.
pub const V4_WITHOUT_OPTIONS: u8 = 0x45;

/// Takes a hop in the header of IPv4, whose checksum follows.
#[inline(always)]
fn take_hop_of_head(head: &mut Head) {
    head[V4_TTL] -= 1;
    // RFC 1141: a hop less is a sum of the header that is 0x100 less, and a complement that much more.
    let (sum, carry) = u16::from_be_bytes([head[V4_CHECKSUM], head[V4_CHECKSUM + 1]]).overflowing_add(0x100);
    let sum = sum.wrapping_add(carry as u16).to_be_bytes();
    head[V4_CHECKSUM] = sum[0];
    head[V4_CHECKSUM + 1] = sum[1];
}

/// Sends the packet on by the kernel's routes and rules, past the rest of its stack. Returns the action: the stack gets
/// what has no hop left, what no link takes in one piece, what has options, and what leads nowhere, so that it tells
/// the sender. The MTU of a route of IPv6 counts where it is locked.
#[inline(never)]
pub fn route(ctx: &TcContext) -> i32 {
    if let Some(action) = deliver::route_in_place(ctx) {
        return action;
    }
    let Ok(mut head) = load::<Head>(ctx, 0) else { return TC_ACT_UNSPEC };
    let is_v4 = ctx.skb.protocol() == ETHERTYPE_V4;
    let hops = head[if is_v4 { V4_TTL } else { V6_HOPS }];
    if hops <= 1 || (is_v4 && head[ETHERNET_BYTES] != V4_WITHOUT_OPTIONS) {
        return TC_ACT_UNSPEC;
    }
    // SAFETY: all zeros is a value of it.
    let mut next_hop = unsafe { core::mem::zeroed::<bpf_redir_neigh>() };
    let interface_index = next_hop_of(ctx, &head, is_v4, &mut next_hop);
    if interface_index == 0 {
        return TC_ACT_UNSPEC;
    }
    let stored = if is_v4 {
        take_hop_of_head(&mut head);
        ctx.store(V4_TTL, &[head[V4_TTL], head[V4_TTL + 1], head[V4_CHECKSUM], head[V4_CHECKSUM + 1]], 0)
    } else {
        ctx.store(V6_HOPS, &(hops - 1), BPF_F_RECOMPUTE_CSUM as u64)
    };
    if stored.is_err() {
        return TC_ACT_UNSPEC;
    }
    send_to(interface_index, &mut next_hop)
}

#[inline(always)]
pub fn send_to(interface_index: u32, next_hop: &mut bpf_redir_neigh) -> i32 {
    maps::count(Counter::Routed);
    // SAFETY: the helper reads the parameters, whose size it is told.
    unsafe { bpf_redirect_neigh(interface_index, next_hop, size_of::<bpf_redir_neigh>() as i32, 0) as i32 }
}

/// The interface that the kernel would send the packet out of, and the neighbour there; 0 for none.
#[inline(always)]
fn next_hop_of(ctx: &TcContext, head: &Head, is_v4: bool, next_hop: &mut bpf_redir_neigh) -> u32 {
    // SAFETY: all zeros is a value of it.
    let mut query: FibQuery = unsafe { core::mem::zeroed() };
    // SAFETY: fields of the context.
    let gso = unsafe {
        query.ifindex = (*ctx.skb.skb).ifindex;
        (*ctx.skb.skb).gso_size != 0
    };
    if !gso {
        query.__bindgen_anon_1.tot_len = ctx.len().saturating_sub(ETHERNET_BYTES as u32) as u16;
    }
    let (ports_at, has_ports);
    if is_v4 {
        query.family = AF_INET;
        query.__bindgen_anon_2.tos = head[ETHERNET_BYTES + 1];
        query.l4_protocol = head[ETHERNET_BYTES + 9];
        query.__bindgen_anon_3.ipv4_src = u32::from_ne_bytes([head[26], head[27], head[28], head[29]]);
        query.__bindgen_anon_4.ipv4_dst = u32::from_ne_bytes([head[30], head[31], head[32], head[33]]);
        // A fragment's ports say nothing.
        (ports_at, has_ports) = (HEAD_BYTES, head[20] & 0x3f == 0 && head[21] == 0);
    } else {
        let Ok(addresses) = load::<[[u32; 4]; 2]>(ctx, ETHERNET_BYTES + 8) else { return 0 };
        query.family = AF_INET6;
        query.__bindgen_anon_2.flowinfo = u32::from_ne_bytes([head[14] & 0x0f, head[15], head[16], head[17]]);
        query.l4_protocol = head[ETHERNET_BYTES + 6];
        query.__bindgen_anon_3.ipv6_src = addresses[0];
        query.__bindgen_anon_4.ipv6_dst = addresses[1];
        (ports_at, has_ports) = (ETHERNET_BYTES + 40, true);
    }
    if has_ports && Protocol(query.l4_protocol).has_ports() {
        let Ok([source, destination]) = load::<[u16; 2]>(ctx, ports_at) else { return 0 };
        query.sport = source;
        query.dport = destination;
    }
    look_up(ctx, &mut query, gso, next_hop)
}

/// Fills in the neighbour that the kernel's routes lead to, and returns the interface; 0 for none, or for a link that does
/// not take the packet in one piece.
#[inline(always)]
pub fn look_up(ctx: &TcContext, query: &mut FibQuery, gso: bool, next_hop: &mut bpf_redir_neigh) -> u32 {
    const BYTES: i32 = size_of::<FibQuery>() as i32;
    // The neighbour's station is looked up when the packet is sent, and asked for where it is not known yet: from Linux 6.3
    // on the kernel need not do it here too. Earlier ones say at once that they do not know the flag.
    // SAFETY: the helper reads and writes a query of the size that it is told.
    let result = unsafe {
        match bpf_fib_lookup(ctx.as_ptr(), query, BYTES, BPF_FIB_LOOKUP_SKIP_NEIGH) {
            ..0 => bpf_fib_lookup(ctx.as_ptr(), query, BYTES, 0),
            result => result,
        }
    };
    if result != BPF_FIB_LKUP_RET_SUCCESS as i64 && result != BPF_FIB_LKUP_RET_NO_NEIGH as i64 {
        return 0;
    }
    let mut mtu = 0;
    // SAFETY: the helper writes the link's MTU.
    if gso && unsafe { bpf_check_mtu(ctx.as_ptr(), query.ifindex, &mut mtu, 0, BPF_MTU_CHK_SEGS as u64) } != 0
    {
        return 0;
    }
    next_hop.nh_family = query.family as u32;
    // SAFETY: the kernel wrote what the family says; the rest is zeros.
    unsafe {
        if query.family == AF_INET {
            next_hop.__bindgen_anon_1.ipv4_nh = query.__bindgen_anon_4.ipv4_dst;
        } else {
            next_hop.__bindgen_anon_1.ipv6_nh = query.__bindgen_anon_4.ipv6_dst;
        }
    }
    query.ifindex
}

/// Takes a hop of a packet that is going to be sent on.
#[inline(never)]
pub fn take_hop(ctx: &TcContext, is_v4: bool) -> Result<(), Error> {
    if is_v4 {
        let word: [u8; 2] = load(ctx, ETHERNET_BYTES + 8)?;
        if word[0] <= 1 {
            return Err(Error::HopLimit);
        }
        let new = [word[0] - 1, word[1]];
        let (from, to) = (u16::from_ne_bytes(word), u16::from_ne_bytes(new));
        ctx.l3_csum_replace(ETHERNET_BYTES + 10, from as u64, to as u64, 2).map_err(|_| Error::Rewrite)?;
        ctx.store(ETHERNET_BYTES + 8, &new, 0).map_err(|_| Error::Rewrite)
    } else {
        let hops: u8 = load(ctx, ETHERNET_BYTES + 7)?;
        if hops <= 1 {
            return Err(Error::HopLimit);
        }
        ctx.store(ETHERNET_BYTES + 7, &(hops - 1), 0).map_err(|_| Error::Rewrite)
    }
}

/// As [`load`], without a call of the kernel where the bytes are in the buffer's linear part, as headers mostly are.
#[inline(always)]
pub fn peek<T: Copy>(ctx: &TcContext, offset: usize) -> Result<T, Error> {
    let at = ctx.data() + offset;
    if at + size_of::<T>() <= ctx.data_end() {
        // SAFETY: as many bytes are there, and callers ask for types that any bytes are valid for.
        return Ok(unsafe { (at as *const T).read_unaligned() });
    }
    load(ctx, offset)
}

#[inline(always)]
pub fn load<T>(ctx: &TcContext, offset: usize) -> Result<T, Error> {
    ctx.load(offset).map_err(|_| Error::Malformed)
}
