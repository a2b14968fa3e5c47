//! What XDP remembers of a flow, so that a packet costs one look: what it becomes, and the stations of its next hop.
//!
//! It is derived from conntrack and the kernel's routes and neighbours, and good for [`Shortcut::LIFE_NS`] only; then both
//! are asked again. So nothing has to be told of what changes: flow, route and neighbour that are gone are used for that
//! long at most. Packets that begin or end a connection are always looked up.

use crate::{Address, Port, Tuple};

/// The value of a flow's shortcut; the key is the packet's own tuple, as in conntrack.
#[repr(C, align(8))]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Shortcut {
    /// CLOCK_MONOTONIC when the flow and its way were last found to be good.
    pub confirmed_ns: u64,
    /// Ethernet addresses, as they lie in the frame that is sent: of the next hop, and the link's own.
    pub stations: [[u16; 3]; 2],
    /// Octets that an IP packet on this way may have.
    pub mtu: u16,
    /// What the checksum of the transport's header changes by: a sum of 16-bit words as they lie in the packet (RFC 1624).
    pub transport_sum: u16,
    pub source: Address,
    pub destination: Address,
    /// Source and destination, as they lie in the packet.
    pub ports: [u16; 2],
    /// What the checksum of an IPv4 header changes by, a hop less included.
    pub header_sum: u16,
    forward: u8,
    zero: u8,
}

impl Shortcut {
    /// How long it is good. The clock of the programs goes in ticks of up to 10 ms.
    pub const LIFE_NS: u64 = 100_000_000;

    const ZERO: Self = Self {
        confirmed_ns: 0,
        stations: [[0; 3]; 2],
        mtu: 0,
        transport_sum: 0,
        source: Address::UNSPECIFIED,
        destination: Address::UNSPECIFIED,
        ports: [0; 2],
        header_sum: 0,
        forward: 0,
        zero: 0,
    };

    /// What makes packets of the tuple `from` those of the tuple `to`. Way and time are missing.
    #[inline(always)]
    pub fn new(from: &Tuple, to: &Tuple, is_forward: bool) -> Self {
        let port = |port: Port| u16::from_ne_bytes(port.to_network());
        let [old_ports, new_ports] =
            [from, to].map(|tuple| [port(tuple.source_port), port(tuple.destination_port)]);
        // IPv4 is mapped on both sides, so that the prefixes cancel.
        let addresses = changes(&from.source.to_words(), &to.source.to_words())
            + changes(&from.destination.to_words(), &to.destination.to_words());
        let ports = change(old_ports[0] as u32, new_ports[0] as u32)
            + change(old_ports[1] as u32, new_ports[1] as u32);
        Self {
            transport_sum: fold(addresses + ports),
            // The hop limit is the first octet of its word.
            header_sum: fold(addresses + !u16::from_ne_bytes([1, 0]) as u64),
            source: to.source,
            destination: to.destination,
            ports: new_ports,
            forward: is_forward as u8,
            ..Self::ZERO
        }
    }

    #[inline(always)]
    pub const fn is_good(&self, now_ns: u64) -> bool {
        now_ns.wrapping_sub(self.confirmed_ns) < Self::LIFE_NS
    }

    /// Whether it is for what the client sends.
    #[inline(always)]
    pub const fn is_forward(&self) -> bool {
        self.forward != 0
    }
}

/// A checksum after what it sums up changed by `sum` (RFC 1624, equation 3); all as they lie in the packet.
#[inline(always)]
pub const fn changed(checksum: u16, sum: u16) -> u16 {
    let total = (!checksum) as u32 + sum as u32;
    !((total & 0xffff) + (total >> 16)) as u16
}

#[inline(always)]
const fn changes(old: &[u32; 4], new: &[u32; 4]) -> u64 {
    change(old[0], new[0]) + change(old[1], new[1]) + change(old[2], new[2]) + change(old[3], new[3])
}

#[inline(always)]
const fn change(old: u32, new: u32) -> u64 {
    (!old) as u64 + new as u64
}

/// A sum below 2^36 in 16 bits.
#[inline(always)]
const fn fold(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + ((sum >> 16) & 0xffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

const _: () = {
    use core::mem::offset_of;
    assert!(size_of::<Shortcut>() == 64 && offset_of!(Shortcut, stations) == 8);
    assert!(offset_of!(Shortcut, mtu) == 20 && offset_of!(Shortcut, source) == 24);
    assert!(offset_of!(Shortcut, ports) == 56 && offset_of!(Shortcut, header_sum) == 60);
};

crate::pod!(Shortcut);
