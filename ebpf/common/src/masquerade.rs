//! Pods' traffic to hosts outside of the cluster, which gets an address of the node as its source.

use crate::{Address, FORWARD_PORTS, Ranges};

/// Whose traffic that is. The one element of its map, at 0. All zero, which is nobody's, until an agent has said more.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Masquerade {
    /// Where the pods of the whole cluster are, in families whose traffic gets the node's address: from there, and not to
    /// there.
    pub pods: Ranges,
    /// Source ports and ICMP identifiers that flows get, first and last.
    pub first_port: u16,
    pub last_port: u16,
    zero: [u8; 4],
}

impl Masquerade {
    pub const NONE: Self = Self::new(Ranges::NONE, FORWARD_PORTS);

    pub const fn new(pods: Ranges, (first_port, last_port): (u16, u16)) -> Self {
        Self { pods, first_port, last_port, zero: [0; 4] }
    }

    /// How many ports there are.
    #[inline(always)]
    pub const fn port_count(&self) -> u32 {
        (self.last_port as u32 + 1).saturating_sub(self.first_port as u32)
    }
}

/// A key of a trie of addresses: those whose first bits are the same.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Prefix {
    /// Of 128, in both families.
    bits: u32,
    address: Address,
}

impl Prefix {
    pub const ADDRESS_BITS: u32 = 128;
    const MAPPED_BITS: u32 = 96;

    /// The first `bits` of `address`, counted in its family; those behind them must be 0.
    pub const fn new(address: Address, bits: u8) -> Self {
        let before = if address.is_v4() { Self::MAPPED_BITS } else { 0 };
        Self { bits: before + bits as u32, address }
    }

    /// An address of the family, and how many of its bits count.
    pub const fn to_parts(&self) -> (Address, u8) {
        let before = if self.address.is_v4() { Self::MAPPED_BITS } else { 0 };
        (self.address, self.bits.saturating_sub(before) as u8)
    }
}

const _: () = {
    use core::mem::offset_of;
    assert!(size_of::<Masquerade>() == 72 && offset_of!(Masquerade, first_port) == 64);
    assert!(offset_of!(Masquerade, last_port) == 66);
    assert!(size_of::<Prefix>() == 20 && offset_of!(Prefix, address) == 4);
};

crate::pod!(Masquerade, Prefix);
