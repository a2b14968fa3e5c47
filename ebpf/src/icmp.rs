//! ICMP errors about packets that were translated: the host that gets one must find the packet in it that it sent.
//!
//! An error quotes the packet that caused it (RFC 792, RFC 4443 3). Its quote, turned round, has the tuple by which the
//! other direction of the flow is known, and what that becomes, turned round again, is what the sender knows. Path MTU
//! discovery (RFC 1191, RFC 8201) rests on it. The quoted transport checksum stays: hosts do not verify it, as a quote
//! may be cut. An error says nothing about whether its flow lives, and touches none.

use aya_ebpf::programs::TcContext;
use ebpf_common::{Address, Counter, Port, Protocol, Tuple};

use crate::{
    conntrack,
    error::Error,
    maps,
    nat::Verdict,
    packet::{self, ETHERNET_BYTES, ETHERTYPE_V4, ETHERTYPE_V6, ICMP, ICMP_V6, Packet, Part, load},
};

/// An ICMP error as it came.
struct Quoting {
    source: Address,
    destination: Address,
    /// The quoted packet's.
    tuple: Tuple,
    is_v4: bool,
    /// Offset of the ICMP header.
    icmp: usize,
    /// Offset of the quoted ports, or of an echo's identifier.
    transport: usize,
}

/// The ICMP header, after which the quote begins.
const HEADER_BYTES: usize = 8;
const V6_BYTES: usize = 40;

/// Translates an error about a packet of a flow, where packets of the flow in the error's direction are translated:
/// entering the node or leaving it.
#[inline(always)]
pub fn relay(ctx: &TcContext, entering: bool) -> Result<Verdict, Error> {
    const NOWHERE: Address = Address::UNSPECIFIED;
    let mut quoting = Quoting {
        source: NOWHERE,
        destination: NOWHERE,
        tuple: Tuple::new(NOWHERE, Port::new(0), NOWHERE, Port::new(0), Protocol(0)),
        is_v4: false,
        icmp: 0,
        transport: 0,
    };
    // Only who sent a packet is told of its fate.
    if !parse(ctx, &mut quoting) || quoting.destination != quoting.tuple.source {
        return Ok(Verdict::PASS);
    }
    let Some(found) = conntrack::find(&quoting.tuple.reversed()) else { return Ok(Verdict::PASS) };
    // SAFETY: an element of the map, alive for this run of the program.
    let flow = unsafe { &*found };
    let translated_here = if flow.turns_around() {
        entering
    } else {
        // A pod's packets to hosts outside of the cluster are translated where they leave.
        (flow.is_forward() != flow.is_masqueraded()) == entering
    };
    if !translated_here {
        return Ok(Verdict::PASS);
    }
    maps::count(Counter::IcmpTranslated);
    if flow.is_forwarded() {
        packet::take_hop(ctx, quoting.is_v4)?;
    }
    rewrite(ctx, &quoting, &flow.translated.reversed())?;
    if flow.is_forwarded() {
        Ok(Verdict::Return(packet::send_on(ctx)))
    } else if flow.is_hairpin() {
        packet::turn_around(ctx).map(Verdict::Return)
    } else {
        Ok(Verdict::PASS)
    }
}

/// What an ICMP message is to who judges it.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Message {
    /// Its identifier is in the packet's tuple.
    Echo,
    Error,
    /// Discovery of neighbours and of who listens to groups, which ends at a link (RFC 4861, RFC 2710, RFC 3810).
    Neighbours,
    Other,
}

/// Looks into a whole ICMP message.
#[inline(always)]
pub fn message(ctx: &TcContext, packet: &mut Packet) -> Message {
    let is_v4 = packet.is_v4;
    let Ok(header) = load::<[u8; HEADER_BYTES]>(ctx, packet.transport) else { return Message::Other };
    let identifier = Port::from_network([header[IDENTIFIER_AT], header[IDENTIFIER_AT + 1]]);
    match (is_v4, header[0]) {
        (true, 8) | (false, 128) => packet.tuple.source_port = identifier,
        (true, 0) | (false, 129) => packet.tuple.destination_port = identifier,
        (true, 3 | 11 | 12) | (false, 1..=4) => return Message::Error,
        (false, 130..=137 | 143) => return Message::Neighbours,
        _ => return Message::Other,
    }
    Message::Echo
}

/// The tuple of the packet that an error quotes, where the error came to who sent that, and whether it is from who should have
/// got it.
#[inline(never)]
pub fn quoted(ctx: &TcContext, tuple: &mut Tuple, is_from_peer: &mut bool) -> bool {
    let mut quoting = Quoting {
        source: Address::UNSPECIFIED,
        destination: Address::UNSPECIFIED,
        tuple: *tuple,
        is_v4: false,
        icmp: 0,
        transport: 0,
    };
    if !parse(ctx, &mut quoting) || quoting.destination != quoting.tuple.source {
        return false;
    }
    *tuple = quoting.tuple;
    *is_from_peer = quoting.source == quoting.tuple.destination;
    true
}

/// Where an echo's identifier is in its header.
const IDENTIFIER_AT: usize = 4;

/// An echo message (RFC 792, RFC 4443 4). A flow of them has the identifier where others have the port of who asks, and 0
/// for the other one.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Echo {
    None,
    Request,
    Reply,
}

#[inline(always)]
const fn is_request(kind: u8, is_v4: bool) -> bool {
    kind == if is_v4 { 8 } else { 128 }
}

/// Reads an echo message, a whole packet without extension headers, into `packet`, of which nothing else is known.
#[inline(never)]
pub fn parse_echo(ctx: &TcContext, packet: &mut Packet) -> Echo {
    read_echo(ctx, packet).unwrap_or(Echo::None)
}

#[inline(always)]
fn read_echo(ctx: &TcContext, packet: &mut Packet) -> Result<Echo, Error> {
    let is_v4 = ctx.skb.protocol() == ETHERTYPE_V4;
    let transport = if is_v4 {
        let header: [u32; 5] = load(ctx, ETHERNET_BYTES)?;
        packet.tuple.source = Address::from_v4_word(header[3]);
        packet.tuple.destination = Address::from_v4_word(header[4]);
        packet.tuple.protocol = Protocol::ICMP;
        ETHERNET_BYTES + header_bytes(header[0])
    } else {
        let next: u8 = load(ctx, ETHERNET_BYTES + 6)?;
        if next != ICMP_V6 {
            return Ok(Echo::None);
        }
        let addresses: [Address; 2] = load(ctx, ETHERNET_BYTES + 8)?;
        [packet.tuple.source, packet.tuple.destination] = addresses;
        packet.tuple.protocol = Protocol::ICMP_V6;
        ETHERNET_BYTES + V6_BYTES
    };
    let message: [u8; HEADER_BYTES] = load(ctx, transport)?;
    let identifier = Port::from_network([message[IDENTIFIER_AT], message[IDENTIFIER_AT + 1]]);
    packet.is_v4 = is_v4;
    packet.transport = transport;
    packet.part = Part::Whole;
    if is_request(message[0], is_v4) {
        packet.tuple.source_port = identifier;
        Ok(Echo::Request)
    } else if message[0] == if is_v4 { 0 } else { 129 } {
        packet.tuple.destination_port = identifier;
        Ok(Echo::Reply)
    } else {
        Ok(Echo::None)
    }
}

/// Gives an echo message the addresses and the identifier of `to`, and the checksums that follow.
#[inline(never)]
pub fn rewrite_echo(ctx: &TcContext, packet: &Packet, to: &Tuple) -> Result<(), Error> {
    let from = &packet.tuple;
    let difference = packet::difference(from, to)?;
    let checksum = packet.transport + 2;
    if !packet.is_v4 {
        // ICMPv6 covers the addresses (RFC 4443 2.3).
        ctx.l4_csum_replace(checksum, 0, difference, 0).map_err(|_| Error::Rewrite)?;
    }
    let at = packet.transport + IDENTIFIER_AT;
    if from.source_port != to.source_port {
        rewrite_identifier(ctx, checksum, at, from.source_port, to.source_port)?;
    } else {
        rewrite_identifier(ctx, checksum, at, from.destination_port, to.destination_port)?;
    }
    packet::rewrite_addresses(ctx, packet.is_v4, difference, &to.source, &to.destination)
}

#[inline(always)]
fn rewrite_identifier(
    ctx: &TcContext,
    checksum: usize,
    at: usize,
    from: Port,
    to: Port,
) -> Result<(), Error> {
    let (from, to) = (u16::from_ne_bytes(from.to_network()), u16::from_ne_bytes(to.to_network()));
    ctx.l4_csum_replace(checksum, from as u64, to as u64, 2).map_err(|_| Error::Rewrite)?;
    ctx.store(at, &to, 0).map_err(|_| Error::Rewrite)
}

/// Whether this is an error that quotes a packet with ports. What is cut short is not for us to judge.
#[inline(never)]
fn parse(ctx: &TcContext, quoting: &mut Quoting) -> bool {
    match ctx.skb.protocol() {
        ETHERTYPE_V4 => parse_v4(ctx, quoting).unwrap_or(false),
        ETHERTYPE_V6 => parse_v6(ctx, quoting).unwrap_or(false),
        _ => false,
    }
}

#[inline(always)]
fn parse_v4(ctx: &TcContext, quoting: &mut Quoting) -> Result<bool, Error> {
    let header: [u32; 5] = load(ctx, ETHERNET_BYTES)?;
    if header[2].to_ne_bytes()[1] != ICMP || is_fragment(header[1], 0x3fff) {
        return Ok(false);
    }
    quoting.icmp = ETHERNET_BYTES + header_bytes(header[0]);
    let kind: u8 = load(ctx, quoting.icmp)?;
    // Destination unreachable, time exceeded, parameter problem.
    if !matches!(kind, 3 | 11 | 12) {
        return Ok(false);
    }
    let inner: [u32; 5] = load(ctx, quoting.icmp + HEADER_BYTES)?;
    // A later fragment has no ports.
    if is_fragment(inner[1], 0x1fff) {
        return Ok(false);
    }
    quoting.is_v4 = true;
    quoting.source = Address::from_v4_word(header[3]);
    quoting.destination = Address::from_v4_word(header[4]);
    quoting.tuple.source = Address::from_v4_word(inner[3]);
    quoting.tuple.destination = Address::from_v4_word(inner[4]);
    quoting.tuple.protocol = Protocol(inner[2].to_ne_bytes()[1]);
    quoting.transport = quoting.icmp + HEADER_BYTES + header_bytes(inner[0]);
    read_ports(ctx, quoting)
}

/// Of the second word of an IPv4 header.
#[inline(always)]
fn is_fragment(word: u32, mask: u16) -> bool {
    let [_, _, high, low] = word.to_ne_bytes();
    u16::from_be_bytes([high, low]) & mask != 0
}

/// Of the first word of an IPv4 header.
#[inline(always)]
fn header_bytes(word: u32) -> usize {
    (word.to_ne_bytes()[0] & 0x0f) as usize * 4
}

#[inline(always)]
fn parse_v6(ctx: &TcContext, quoting: &mut Quoting) -> Result<bool, Error> {
    const FRAGMENT: u8 = 44;
    let first: [u32; 2] = load(ctx, ETHERNET_BYTES)?;
    if first[1].to_ne_bytes()[2] != ICMP_V6 {
        return Ok(false);
    }
    quoting.icmp = ETHERNET_BYTES + V6_BYTES;
    let kind: u8 = load(ctx, quoting.icmp)?;
    // Destination unreachable, packet too big, time exceeded, parameter problem.
    if !matches!(kind, 1..=4) {
        return Ok(false);
    }
    let inner = quoting.icmp + HEADER_BYTES;
    let mut protocol: u8 = load(ctx, inner + 6)?;
    quoting.transport = inner + V6_BYTES;
    if protocol == FRAGMENT {
        let extension: [u8; 4] = load(ctx, quoting.transport)?;
        if u16::from_be_bytes([extension[2], extension[3]]) & 0xfff8 != 0 {
            return Ok(false);
        }
        protocol = extension[0];
        quoting.transport += 8;
    }
    let outer: [Address; 2] = load(ctx, ETHERNET_BYTES + 8)?;
    let quoted: [Address; 2] = load(ctx, inner + 8)?;
    [quoting.source, quoting.destination] = outer;
    [quoting.tuple.source, quoting.tuple.destination] = quoted;
    quoting.tuple.protocol = Protocol(protocol);
    read_ports(ctx, quoting)
}

#[inline(always)]
fn read_ports(ctx: &TcContext, quoting: &mut Quoting) -> Result<bool, Error> {
    if quoting.tuple.protocol == Protocol::ICMP || quoting.tuple.protocol == Protocol::ICMP_V6 {
        let header: [u8; HEADER_BYTES] = load(ctx, quoting.transport)?;
        quoting.tuple.source_port = Port::from_network([header[4], header[5]]);
        quoting.transport += IDENTIFIER_AT;
        return Ok(is_request(header[0], quoting.is_v4));
    }
    if !quoting.tuple.protocol.has_ports() {
        return Ok(false);
    }
    let ports: [Port; 2] = load(ctx, quoting.transport)?;
    [quoting.tuple.source_port, quoting.tuple.destination_port] = ports;
    Ok(true)
}

/// Makes the error quote `quoted`, and come to who sent that.
#[inline(never)]
fn rewrite(ctx: &TcContext, quoting: &Quoting, quoted: &Tuple) -> Result<(), Error> {
    let addresses = packet::difference(&quoting.tuple, quoted)?;
    let checksum = quoting.icmp + 2;
    let inner = quoting.icmp + HEADER_BYTES;
    if quoting.is_v4 {
        // The quoted header's checksum makes up for its addresses, so the error's is left with the ports.
        ctx.l3_csum_replace(inner + 10, 0, addresses, 0).map_err(|_| Error::Rewrite)?;
        let words = [quoted.source.to_words()[3], quoted.destination.to_words()[3]];
        ctx.store(inner + 12, &words, 0).map_err(|_| Error::Rewrite)?;
    } else {
        ctx.l4_csum_replace(checksum, 0, addresses, 0).map_err(|_| Error::Rewrite)?;
        ctx.store(inner + 8, &quoted.source, 0).map_err(|_| Error::Rewrite)?;
        ctx.store(inner + 24, &quoted.destination, 0).map_err(|_| Error::Rewrite)?;
    }
    if quoted.protocol.has_ports() {
        let (from, to) = (ports(&quoting.tuple), ports(quoted));
        ctx.l4_csum_replace(checksum, from as u64, to as u64, 4).map_err(|_| Error::Rewrite)?;
        ctx.store(quoting.transport, &to, 0).map_err(|_| Error::Rewrite)?;
    } else {
        let (from, to) = (quoting.tuple.source_port, quoted.source_port);
        rewrite_identifier(ctx, checksum, quoting.transport, from, to)?;
    }
    rewrite_outer(ctx, quoting, quoted)
}

/// Both ports as they lie in the header.
#[inline(always)]
fn ports(tuple: &Tuple) -> u32 {
    let ([a, b], [c, d]) = (tuple.source_port.to_network(), tuple.destination_port.to_network());
    u32::from_ne_bytes([a, b, c, d])
}

/// The peer itself is known by another address; a router on the way has only its own.
#[inline(always)]
fn rewrite_outer(ctx: &TcContext, quoting: &Quoting, quoted: &Tuple) -> Result<(), Error> {
    let from_peer = quoting.source == quoting.tuple.destination;
    let source = if from_peer { quoted.destination } else { quoting.source };
    let tuple = |source, destination| {
        Tuple::new(source, Port::new(0), destination, Port::new(0), quoting.tuple.protocol)
    };
    let (before, after) = (tuple(quoting.source, quoting.destination), tuple(source, quoted.source));
    let difference = packet::difference(&before, &after)?;
    if !quoting.is_v4 {
        // ICMPv6 covers the addresses (RFC 4443 2.3).
        ctx.l4_csum_replace(quoting.icmp + 2, 0, difference, 0).map_err(|_| Error::Rewrite)?;
    }
    packet::rewrite_addresses(ctx, quoting.is_v4, difference, &after.source, &after.destination)
}
