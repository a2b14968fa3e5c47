//! Answers in the place of a host that is not there: TCP resets (RFC 9293 3.10.7.1) and ICMP errors (RFC 792, RFC 4443),
//! made out of the packet that asked, and sent back where that came from.
//!
//! Answers are a courtesy, and limited in number. None is given to what may itself be one, may be meant for several
//! hosts or is said to come from several (RFC 1122 3.2.2, RFC 4443 2.4 (e)); nor to a packet with IP options, with
//! extension headers or in fragments. ICMP errors quote the header and the 64 bits after it, by which hosts find the
//! socket; of SCTP 160 bits, as an INIT is known by the tag in its chunk (RFC 9260 10).

use core::ptr;

use aya_ebpf::{
    bindings::TC_ACT_SHOT,
    helpers::{bpf_csum_diff, bpf_skb_change_tail},
    programs::TcContext,
};
use ebpf_common::{Address, Call, Counter, Protocol, Reason, Tuple, sctp::HEADER_BYTES};

use crate::{
    error::Error,
    maps,
    nat::Verdict,
    packet::{self, ETHERNET_BYTES, ICMP, ICMP_V6, Packet, Part, TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN, load},
};

const HOPS: u8 = 64;
const V4_BYTES: usize = 20;
const V6_BYTES: usize = 40;
const TCP_BYTES: usize = 20;
const ICMP_BYTES: usize = 8;

/// Quoted words.
const V4_QUOTE: usize = (V4_BYTES + 8) / 4;
const V6_QUOTE: usize = (V6_BYTES + 8) / 4;
/// More of them where there is a tag to be found.
const TAGGED_BYTES: usize = HEADER_BYTES + 8;
const TAGGED_WORDS: usize = (TAGGED_BYTES - 8) / 4;

/// What a checksum covers besides what is sent (RFC 9293 3.1, RFC 8200 8.1); IPv4 addresses are mapped, and the two
/// prefixes add nothing to a sum. Words are in network order.
#[repr(C)]
struct Pseudo {
    source: Address,
    destination: Address,
    length: u32,
    protocol: u32,
}

/// Continues in the program that answers. Returns only where there is none.
#[inline(always)]
pub fn call(ctx: &TcContext, reason: Reason) {
    // SAFETY: a field of the context that is for programs to write.
    unsafe { ptr::write_volatile(&raw mut (*ctx.skb.skb).cb[0], reason as u32) };
    maps::call(ctx, Call::Answer);
}

/// Notes how large a packet may be, for [`Reason::TooBig`].
#[inline(always)]
pub fn note_mtu(ctx: &TcContext, mtu: u32) {
    // SAFETY: a field of the context that is for programs to write.
    unsafe { ptr::write_volatile(&raw mut (*ctx.skb.skb).cb[1], mtu) };
}

/// Answers a packet that is as it came, or drops it without a word.
#[inline(always)]
pub fn answer(ctx: &TcContext) -> Result<Verdict, Error> {
    // SAFETY: the fields that `call` and `note_mtu` wrote.
    let [reason, mtu] = unsafe {
        [
            ptr::read_volatile(&raw const (*ctx.skb.skb).cb[0]),
            ptr::read_volatile(&raw const (*ctx.skb.skb).cb[1]),
        ]
    };
    let asked = packet::read(ctx)?;
    if !may_be_answered(ctx, asked) || !maps::take_answer() {
        return Ok(Verdict::Return(TC_ACT_SHOT as i32));
    }
    if reason != Reason::Refused as u32 {
        let (kind, code, more) = match (asked.is_v4, reason == Reason::TooBig as u32) {
            (true, false) => (11, 0, 0),
            (false, false) => (3, 0, 0),
            // RFC 1191 4, RFC 4443 3.2.
            (true, true) => (3, 4, mtu),
            (false, true) => (2, 0, mtu),
        };
        let mut to = asked.tuple.reversed();
        // Here the node speaks for itself, as a router.
        if let Some(node) = maps::node() {
            to.source = node.source_for(&to.destination);
        }
        error(ctx, asked, &to, u32::from_ne_bytes([kind, code, 0, 0]), more)?;
    } else if asked.tuple.protocol == Protocol::TCP {
        reset(ctx, asked)?;
    } else {
        let (kind, code) = if asked.is_v4 { (3, 3) } else { (1, 4) };
        error(ctx, asked, &asked.tuple.reversed(), u32::from_ne_bytes([kind, code, 0, 0]), 0)?;
    }
    maps::count(Counter::Answered);
    packet::turn_around(ctx).map(Verdict::Return)
}

#[inline(always)]
fn may_be_answered(ctx: &TcContext, asked: &Packet) -> bool {
    const PACKET_HOST: u32 = 0;
    // SAFETY: a field of the context.
    let kind = unsafe { (*ctx.skb.skb).pkt_type };
    kind == PACKET_HOST
        && matches!(asked.part, Part::Whole)
        && asked.transport == transport_at(asked.is_v4)
        && asked.tcp_flags & TCP_RST == 0
        && asked.tuple.source.is_host()
}

/// Where the next header begins after an IP header without options.
#[inline(always)]
fn transport_at(is_v4: bool) -> usize {
    ETHERNET_BYTES + if is_v4 { V4_BYTES } else { V6_BYTES }
}

#[inline(never)]
fn reset(ctx: &TcContext, asked: &Packet) -> Result<(), Error> {
    let at = transport_at(asked.is_v4);
    let numbers: [u32; 2] = load(ctx, at + 4)?;
    let (sequence, acknowledged, flags) = if asked.tcp_flags & TCP_ACK != 0 {
        (numbers[1], 0, TCP_RST)
    } else {
        let next = u32::from_be(numbers[0]).wrapping_add(sequence_length(ctx, asked)?);
        (0, next.to_be(), TCP_RST | TCP_ACK)
    };
    let to = asked.tuple.reversed();
    let ([a, b], [c, d]) = (to.source_port.to_network(), to.destination_port.to_network());
    let offset_and_flags = u32::from_ne_bytes([(TCP_BYTES as u8 / 4) << 4, flags, 0, 0]);
    let mut header = [u32::from_ne_bytes([a, b, c, d]), sequence, acknowledged, offset_and_flags, 0_u32];
    let sum = sum_pseudo(&to, TCP_BYTES, Protocol::TCP.0)?;
    let [low, high] = checksum(sum_words(&header, TCP_BYTES, sum)?).to_ne_bytes();
    header[4] = u32::from_ne_bytes([low, high, 0, 0]);
    resize(ctx, at + TCP_BYTES)?;
    ctx.store(at, &header, 0).map_err(|_| Error::Rewrite)?;
    write_header(ctx, asked.is_v4, &to, TCP_BYTES, Protocol::TCP.0)
}

/// How far the segment moves the sequence number: its payload, and one each for SYN and FIN (RFC 9293 3.4).
#[inline(always)]
fn sequence_length(ctx: &TcContext, asked: &Packet) -> Result<u32, Error> {
    let words: u8 = load(ctx, transport_at(asked.is_v4) + 12)?;
    let header = (words >> 4) as u32 * 4;
    let length: [u8; 2] = load(ctx, ETHERNET_BYTES + if asked.is_v4 { 2 } else { 4 })?;
    let ip_header = if asked.is_v4 { V4_BYTES as u32 } else { 0 };
    let payload = (u16::from_be_bytes(length) as u32).wrapping_sub(ip_header + header);
    let one = |flag: u8| (asked.tcp_flags & flag != 0) as u32;
    Ok(payload.wrapping_add(one(TCP_SYN) + one(TCP_FIN)))
}

/// Makes the packet an ICMP error about itself, with the addresses of `to`. `kind` is the first word of its header, the
/// checksum left out, and `more` the second, a number.
#[inline(never)]
fn error(ctx: &TcContext, asked: &Packet, to: &Tuple, kind: u32, more: u32) -> Result<(), Error> {
    let is_v4 = asked.is_v4;
    let at = transport_at(is_v4);
    let is_tagged = asked.tuple.protocol == Protocol::SCTP && ctx.len() as usize >= at + TAGGED_BYTES;
    let words = if is_v4 { V4_QUOTE } else { V6_QUOTE } + if is_tagged { TAGGED_WORDS } else { 0 };
    let length = ICMP_BYTES + words * 4;
    let protocol = if is_v4 { ICMP } else { ICMP_V6 };
    let mut header = [kind, more.to_be()];
    let sum = if is_v4 { 0 } else { sum_pseudo(to, length, ICMP_V6)? };
    let sum = sum_words(&header, ICMP_BYTES, sum)?;
    let quote_at = at + ICMP_BYTES;
    let sum = match (is_v4, is_tagged) {
        (true, false) => move_quote::<V4_QUOTE>(ctx, quote_at, sum)?,
        (true, true) => move_quote::<{ V4_QUOTE + TAGGED_WORDS }>(ctx, quote_at, sum)?,
        (false, false) => move_quote::<V6_QUOTE>(ctx, quote_at, sum)?,
        (false, true) => move_quote::<{ V6_QUOTE + TAGGED_WORDS }>(ctx, quote_at, sum)?,
    };
    let [low, high] = checksum(sum).to_ne_bytes();
    header[0] = kind | u32::from_ne_bytes([0, 0, low, high]);
    ctx.store(at, &header, 0).map_err(|_| Error::Rewrite)?;
    write_header(ctx, is_v4, to, length, protocol)
}

/// Makes the packet end with the first `WORDS` words of its IP part at `to`, and adds them to the sum.
#[inline(always)]
fn move_quote<const WORDS: usize>(ctx: &TcContext, to: usize, sum: u32) -> Result<u32, Error> {
    let quote: [u32; WORDS] = load(ctx, ETHERNET_BYTES)?;
    resize(ctx, to + WORDS * 4)?;
    ctx.store(to, &quote, 0).map_err(|_| Error::Rewrite)?;
    sum_words(&quote, WORDS * 4, sum)
}

/// Makes the packet so long. Nothing stays of what offloads it had.
#[inline(always)]
fn resize(ctx: &TcContext, bytes: usize) -> Result<(), Error> {
    // SAFETY: the buffer that the context is of.
    let result = unsafe { bpf_skb_change_tail(ctx.skb.skb, bytes as u32, 0) };
    if result == 0 { Ok(()) } else { Err(Error::Rewrite) }
}

/// Writes an IP header without options for a packet with the addresses of `to`.
#[inline(always)]
fn write_header(ctx: &TcContext, is_v4: bool, to: &Tuple, payload: usize, protocol: u8) -> Result<(), Error> {
    if is_v4 {
        let [high, low] = ((V4_BYTES + payload) as u16).to_be_bytes();
        let mut header = [
            u32::from_ne_bytes([0x45, 0, high, low]),
            // Not to be fragmented, so that no identification is needed (RFC 6864 4.1).
            u32::from_ne_bytes([0, 0, 0x40, 0]),
            u32::from_ne_bytes([HOPS, protocol, 0, 0]),
            to.source.to_words()[3],
            to.destination.to_words()[3],
        ];
        let [first, second] = checksum(sum_words(&header, V4_BYTES, 0)?).to_ne_bytes();
        header[2] = u32::from_ne_bytes([HOPS, protocol, first, second]);
        ctx.store(ETHERNET_BYTES, &header, 0).map_err(|_| Error::Rewrite)
    } else {
        let [high, low] = (payload as u16).to_be_bytes();
        let words = [u32::from_ne_bytes([0x60, 0, 0, 0]), u32::from_ne_bytes([high, low, protocol, HOPS])];
        ctx.store(ETHERNET_BYTES, &words, 0).map_err(|_| Error::Rewrite)?;
        ctx.store(ETHERNET_BYTES + 8, &to.source, 0).map_err(|_| Error::Rewrite)?;
        ctx.store(ETHERNET_BYTES + 24, &to.destination, 0).map_err(|_| Error::Rewrite)
    }
}

#[inline(always)]
fn sum_pseudo(to: &Tuple, length: usize, protocol: u8) -> Result<u32, Error> {
    let pseudo = Pseudo {
        source: to.source,
        destination: to.destination,
        length: (length as u32).to_be(),
        protocol: (protocol as u32).to_be(),
    };
    sum_words(&pseudo, size_of::<Pseudo>(), 0)
}

/// Adds the value's words, `bytes` bytes in all, to a sum.
#[inline(always)]
fn sum_words<T>(words: &T, bytes: usize, start: u32) -> Result<u32, Error> {
    let words = ptr::from_ref(words).cast_mut().cast();
    // SAFETY: a value on the stack with its size, which the helper only reads; nothing is subtracted.
    let sum = unsafe { bpf_csum_diff(ptr::null_mut(), 0, words, bytes as u32, start) };
    if sum < 0 { Err(Error::Rewrite) } else { Ok(sum as u32) }
}

#[inline(always)]
fn checksum(sum: u32) -> u16 {
    // Twice is enough: the first leaves at most one carry.
    let once = (sum & 0xffff) + (sum >> 16);
    !((once & 0xffff) + (once >> 16)) as u16
}
