//! What the programs know of the node itself and of its network.

use crate::Address;

/// The one element of its map, at 0. All zero until an agent has said more.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Node {
    /// Where backends on other machines see clients beyond the node; unspecified where the node has no such family.
    pub source_v4: Address,
    pub source_v6: Address,
    /// The network namespace of the node itself: only its sockets mean the node by a loopback address.
    pub netns_cookie: u64,
}

impl Node {
    pub const UNKNOWN: Self =
        Self { source_v4: Address::UNSPECIFIED, source_v6: Address::UNSPECIFIED, netns_cookie: 0 };

    /// The address of the node in the family of `peer`.
    #[inline(always)]
    pub const fn source_for(&self, peer: &Address) -> Address {
        if peer.is_v4() { self.source_v4 } else { self.source_v6 }
    }
}

/// A range of addresses, IPv4 as mapped. All zero is none.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Range {
    network: Address,
    mask: Address,
}

impl Range {
    pub const NONE: Self = Self { network: Address::UNSPECIFIED, mask: Address::UNSPECIFIED };

    /// The range of `network`, whose first `prefix` bits its addresses share: up to 32 in IPv4, and 128 in IPv6.
    pub fn new(network: Address, prefix: u8) -> Self {
        let bits = u32::from(prefix) + if network.is_v4() { 96 } else { 0 };
        let mask = if bits == 0 { 0 } else { u128::MAX << (128 - bits.min(128)) };
        let word = |at: u32| ((mask >> (96 - 32 * at)) as u32).to_be();
        let mask = [word(0), word(1), word(2), word(3)];
        let [a, b, c, d] = network.to_words();
        let network = Address::from_words([a & mask[0], b & mask[1], c & mask[2], d & mask[3]]);
        Self { network, mask: Address::from_words(mask) }
    }

    #[inline(always)]
    pub const fn is_some(&self) -> bool {
        self.mask.to_words()[0] != 0
    }

    pub const fn network(&self) -> Address {
        self.network
    }

    /// The bits that its addresses share, counted in the family of the network; `None` where this is no range.
    pub fn prefix(&self) -> Option<u8> {
        let bits: u32 = self.mask.to_words().iter().map(|word| word.count_ones()).sum();
        if !self.is_some() {
            return None;
        }
        Some((if self.network.is_v4() { bits.saturating_sub(96) } else { bits }) as u8)
    }

    #[inline(always)]
    pub const fn contains(&self, address: &Address) -> bool {
        let ([a, b, c, d], mask) = (address.to_words(), self.mask.to_words());
        let [w, x, y, z] = self.network.to_words();
        self.is_some() && a & mask[0] == w && b & mask[1] == x && c & mask[2] == y && d & mask[3] == z
    }
}

/// Where the addresses of Services are, or those of pods, per family. The one element of its map, at 0.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ranges {
    pub v4: Range,
    pub v6: Range,
}

impl Ranges {
    pub const NONE: Self = Self { v4: Range::NONE, v6: Range::NONE };

    #[inline(always)]
    pub const fn contains(&self, address: &Address) -> bool {
        if address.is_v4() { self.v4.contains(address) } else { self.v6.contains(address) }
    }
}

/// A pod of this node: where packets for its address are handed over.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LocalPod {
    /// The host's end of the pod's link.
    pub interface_index: u32,
    /// Hardware addresses as an Ethernet header has them: the pod's, and that of the host's end.
    pub stations: [[u8; 6]; 2],
    /// Not 0 once packets of the pod were translated: then what comes for it may have to be translated back. The agent
    /// writes it where it cannot know, the programs when they open a flow; nobody takes it back. [`Self::POLICED`] is a bit
    /// of it, so that one look says whether the pod is reached by the short way.
    pub has_flows: u32,
}

impl LocalPod {
    /// In `has_flows`: a policy selects the pod. The agent writes it and takes it back.
    pub const POLICED: u32 = 2;
    /// In `has_flows`: packets of the pod may have been translated.
    pub const FLOWS: u32 = 1;

    pub const fn new(interface_index: u32, stations: [[u8; 6]; 2]) -> Self {
        Self { interface_index, stations, has_flows: 0 }
    }
}

const _: () = {
    use core::mem::offset_of;
    assert!(size_of::<LocalPod>() == 20 && offset_of!(LocalPod, has_flows) == 16);
    assert!(size_of::<Range>() == 32 && offset_of!(Range, mask) == 16);
    assert!(size_of::<Ranges>() == 64 && offset_of!(Ranges, v6) == 32);
    assert!(size_of::<Node>() == 40 && align_of::<Node>() == 8);
    assert!(offset_of!(Node, source_v6) == 16 && offset_of!(Node, netns_cookie) == 32);
};

crate::pod!(LocalPod, Node, Range, Ranges);
