//! SCTP (RFC 9260) per packet: which chunks it has, what they say of the flow, and a checksum that follows other ports.
//!
//! A checksum field of zero is left alone. The device fills it in where the sender left that to it, as the kernel does on
//! veth and in packets that are yet to be cut into several (GSO), whose parts all get the ports of the first; and a peer
//! may have agreed to have none (RFC 9653). No program can tell either from a checksum that happens to be zero, which is
//! one in 2^32: that packet is lost and sent again with others. The kernel keeps where the checksum belongs, which no
//! rewriting here moves.

use aya_ebpf::{bindings::BPF_F_RECOMPUTE_CSUM, programs::TcContext};
use ebpf_common::{
    Flow, Tuple,
    sctp::{
        self, ABORT, CHECKSUM_AT, CLOSING, DATA_TYPE, HEADER_BYTES, INIT, INIT_ACK, REFLECTED,
        SHUTDOWN_COMPLETE, Tags,
    },
};

use crate::{
    error::Error,
    maps::SCTP_TAGS,
    packet::{ETHERNET_BYTES, Packet, load},
};

/// Chunks that are looked at. What speaks of the association stands first, and mostly alone.
const CHUNKS_MAX: usize = 4;
const INIT_TAG_AT: usize = HEADER_BYTES + 4;

/// The bits of the chunks before the first with data. An INIT whose tag is not zero is none (RFC 9260 8.5.1).
#[inline(never)]
pub fn chunks(ctx: &TcContext, transport: u32) -> u32 {
    let transport = transport as usize;
    let Ok(tag) = load::<u32>(ctx, transport + sctp::TAG_AT) else { return 0 };
    let mut said = 0;
    let mut at = transport + HEADER_BYTES;
    for _ in 0..CHUNKS_MAX {
        let Ok([kind, _, high, low]) = load::<[u8; 4]>(ctx, at) else { break };
        if kind == DATA_TYPE {
            break;
        }
        said |= sctp::bit(kind) as u32;
        let length = u16::from_be_bytes([high, low]) as usize;
        if length < 4 {
            break;
        }
        // The last octets fill up a word (RFC 9260 3.2).
        at += (length + 3) & !3;
    }
    if tag != 0 { said & !(INIT as u32) } else { said }
}

/// Notes what a packet's chunks say of its association. The end of one is believed only to who knows its tag.
#[inline(never)]
pub fn note(ctx: &TcContext, flow: *mut Flow, packet: &Packet) -> bool {
    let Ok([_, tag, _, first]) = load::<[u32; 4]>(ctx, packet.transport) else { return false };
    // SAFETY: an element of the map, alive for this run of the program.
    let (is_forward, client) = unsafe {
        let flow = &*flow;
        (flow.is_forward(), if flow.is_forward() { packet.tuple } else { flow.translated.reversed() })
    };
    let mut said = packet.chunks;
    if said & CLOSING != 0 {
        // SAFETY: copied at once.
        let known = unsafe { SCTP_TAGS.get(&client) }.copied().unwrap_or_default();
        let (asked, own) = if is_forward {
            (known.by_backend, known.by_client)
        } else {
            (known.by_client, known.by_backend)
        };
        let [kind, flags, ..] = first.to_ne_bytes();
        let is_reflected = flags & REFLECTED != 0 && sctp::bit(kind) & (ABORT | SHUTDOWN_COMPLETE) != 0;
        if !Tags::admits(asked, own, tag, is_reflected) {
            said &= !CLOSING;
        }
    }
    if said & (INIT | INIT_ACK) != 0 {
        remember(ctx, packet, &client, is_forward);
    }
    // SAFETY: as above; the byte is written by packets of this direction only.
    unsafe {
        if (*flow).said | said != (*flow).said {
            (*flow).said |= said;
        }
    }
    true
}

/// Remembers the tag that the sender of an INIT or INIT ACK wants in what it is sent.
#[inline(always)]
fn remember(ctx: &TcContext, packet: &Packet, client: &Tuple, is_forward: bool) {
    let Ok(asked) = load::<u32>(ctx, packet.transport + INIT_TAG_AT) else { return };
    if let Some(tags) = SCTP_TAGS.get_ptr_mut(client) {
        // SAFETY: an element of the map, alive for this run of the program; each word is written by one direction only.
        unsafe {
            if is_forward {
                (*tags).by_client = asked;
                if packet.chunks & INIT != 0 {
                    // Another association begins, and who answers will say so.
                    (*tags).by_backend = 0;
                }
            } else {
                (*tags).by_backend = asked;
            }
        }
        return;
    }
    let tags = if is_forward {
        Tags { by_client: asked, by_backend: 0 }
    } else {
        Tags { by_client: 0, by_backend: asked }
    };
    // Where there is no room, who ends the association is believed without.
    let _ = SCTP_TAGS.insert(client, tags, 0);
}

/// Gives a whole packet the ports of `to`, and the checksum that follows.
#[inline(never)]
pub fn rewrite_ports(ctx: &TcContext, packet: &Packet, to: &Tuple) -> Result<(), Error> {
    let [before, checksum] =
        [load::<u32>(ctx, packet.transport)?, load(ctx, packet.transport + CHECKSUM_AT)?];
    let ([a, b], [c, d]) = (to.source_port.to_network(), to.destination_port.to_network());
    let after = u32::from_ne_bytes([a, b, c, d]);
    if checksum != 0 {
        let difference = sctp::difference(u32::from_le(before ^ after), length(ctx, packet)?);
        let new = checksum ^ difference.to_le();
        ctx.store(packet.transport + CHECKSUM_AT, &new, BPF_F_RECOMPUTE_CSUM as u64)
            .map_err(|_| Error::Rewrite)?;
    }
    ctx.store(packet.transport, &after, BPF_F_RECOMPUTE_CSUM as u64).map_err(|_| Error::Rewrite)
}

/// The octets of the packet from the common header on, as the IP header says it: behind them there may be some of the link's.
#[inline(always)]
fn length(ctx: &TcContext, packet: &Packet) -> Result<u16, Error> {
    let (at, header) = if packet.is_v4 { (2, 0) } else { (4, 40) };
    let said: [u8; 2] = load(ctx, ETHERNET_BYTES + at)?;
    let length = (u16::from_be_bytes(said) as usize + header + ETHERNET_BYTES).wrapping_sub(packet.transport);
    if length < HEADER_BYTES || length > u16::MAX as usize {
        Err(Error::Malformed)
    } else {
        Ok(length as u16)
    }
}
