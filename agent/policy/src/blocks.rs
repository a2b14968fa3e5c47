//! Ranges of addresses, and which blocks an address is in.
//!
//! ```text
//!   10.0.0.0/8    block A              -> {A}
//!   10.1.0.0/16   block B, not of A    -> {B}
//!   10.1.2.0/24   not of B             -> {}
//! ```
//!
//! Each range that a block names, its own and those that it excepts, stands with the blocks that all of its addresses are in:
//! an address is in the blocks of the longest range that has it. The ranges of IPv6 that have the IPv4-mapped ones in them
//! are for IPv6 only: beside them stands all of IPv4.

use std::{fmt, net::IpAddr, sync::Arc};

use ebpf_common::{Address, Prefix};
use hashbrown::HashMap;

use crate::{objects::Block, terms::TermId};

const MAPPED: u128 = 0xffff << 32;
const MAPPED_BITS: u8 = 96;

/// Addresses of a family that share their first bits; ordered so that who contains another stands before it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct Range {
    /// As IPv6 has it, with IPv4 mapped; bits that do not count are 0.
    address: u128,
    /// Of 128.
    bits: u8,
}

impl Range {
    const ALL_V4: Self = Self { address: MAPPED, bits: MAPPED_BITS };

    /// ADDRESS/PREFIX. Bits behind the prefix do not count, and old objects may have zeros before the numbers of an IPv4
    /// address, which are decimal then too. What is of IPv4 is not to be said in IPv6.
    pub(crate) fn read(text: &str) -> Option<Self> {
        let number = |digits: &str| -> Option<u8> {
            digits.parse().ok().filter(|_| digits.bytes().all(|byte| byte.is_ascii_digit()))
        };
        let (address, prefix) = text.split_once('/')?;
        let ip = address.parse::<IpAddr>().ok().or_else(|| {
            let octets: Option<Vec<u8>> = address.split('.').map(number).collect();
            <[u8; 4]>::try_from(octets?).ok().map(IpAddr::from)
        })?;
        let (before, most) = if ip.is_ipv4() { (MAPPED_BITS, 32) } else { (0, 128) };
        let bits = before + number(prefix).filter(|prefix| *prefix <= most)?;
        let range = Self::new(Address::from(ip), bits);
        (range.is_v4() == ip.is_ipv4()).then_some(range)
    }

    fn new(address: Address, bits: u8) -> Self {
        let mask = u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0);
        Self { address: u128::from_be_bytes(address.octets()) & mask, bits }
    }

    pub(crate) fn of(address: Address) -> Self {
        Self::new(address, 128)
    }

    /// The address, where it is one.
    pub(crate) fn single(&self) -> Option<Address> {
        (self.bits == 128).then(|| self.address())
    }

    fn is_v4(&self) -> bool {
        self.bits >= MAPPED_BITS && self.address >> 32 == 0xffff
    }

    /// Whether all addresses of the other are here too, whatever the families.
    fn encloses(&self, other: &Self) -> bool {
        let mask = u128::MAX.checked_shl(128 - u32::from(self.bits)).unwrap_or(0);
        self.bits <= other.bits && other.address & mask == self.address
    }

    /// Whether the other is a part of this one, and not all of it.
    pub(crate) fn has_inside(&self, other: &Self) -> bool {
        self != other && self.is_v4() == other.is_v4() && self.encloses(other)
    }

    fn address(&self) -> Address {
        Address::from(IpAddr::from(self.address.to_be_bytes()))
    }

    pub(crate) fn prefix(&self) -> Prefix {
        let before = if self.is_v4() { MAPPED_BITS } else { 0 };
        Prefix::new(self.address(), self.bits - before)
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let before = if self.is_v4() { MAPPED_BITS } else { 0 };
        write!(f, "{}/{}", self.address().to_ip(), self.bits - before)
    }
}

/// What is known of a range.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct InRange {
    /// The blocks that its addresses are in, in order.
    pub(crate) blocks: Arc<[TermId]>,
    /// Another range has it in it: so it matters also where it is in no block.
    pub(crate) is_enclosed: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Blocks {
    by_range: HashMap<Range, InRange>,
    /// The numbers of bits that ranges have, from the largest.
    lengths: Vec<u8>,
}

impl Blocks {
    /// Takes time by the number of ranges and of blocks around each.
    pub(crate) fn new<'a>(blocks: impl IntoIterator<Item = (TermId, &'a Block)>) -> Self {
        /// Blocks that begin and that end at a range.
        type Ends = (Vec<TermId>, Vec<TermId>);
        let mut ends: std::collections::BTreeMap<Range, Ends> = std::collections::BTreeMap::new();
        for (term, block) in blocks {
            ends.entry(block.range).or_default().0.push(term);
            for except in &block.except {
                ends.entry(*except).or_default().1.push(term);
            }
        }
        if ends.keys().any(|range| !range.is_v4() && range.encloses(&Range::ALL_V4)) {
            ends.entry(Range::ALL_V4).or_default();
        }
        let mut by_range: HashMap<Range, InRange> = HashMap::with_capacity(ends.len());
        let mut around: Vec<(Range, Arc<[TermId]>)> = Vec::new();
        for (range, (begun, ended)) in ends {
            while around.last().is_some_and(|(outer, _)| !outer.encloses(&range)) {
                around.pop();
            }
            let inherited = around.last().filter(|(outer, _)| outer.is_v4() == range.is_v4());
            let mut blocks: Vec<TermId> = inherited.map_or_else(Vec::new, |(_, blocks)| blocks.to_vec());
            blocks.extend(begun);
            blocks.retain(|term| !ended.contains(term));
            blocks.sort_unstable();
            let blocks: Arc<[TermId]> = blocks.into();
            by_range.insert(range, InRange { blocks: Arc::clone(&blocks), is_enclosed: !around.is_empty() });
            around.push((range, blocks));
        }
        let mut lengths: Vec<u8> = by_range.keys().map(|range| range.bits).collect();
        lengths.sort_unstable_by(|a, b| b.cmp(a));
        lengths.dedup();
        Self { by_range, lengths }
    }

    pub(crate) fn ranges(&self) -> impl Iterator<Item = Range> {
        self.by_range.keys().copied()
    }

    pub(crate) fn get(&self, range: &Range) -> Option<&InRange> {
        self.by_range.get(range)
    }

    /// The blocks that an address is in.
    pub(crate) fn around(&self, address: Address) -> &[TermId] {
        let mut lengths = self.lengths.iter();
        let found = lengths.find_map(|bits| self.by_range.get(&Range::new(address, *bits)));
        found.map_or(&[], |in_range| &in_range.blocks)
    }
}
