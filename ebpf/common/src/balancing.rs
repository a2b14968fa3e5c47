//! Choosing a backend by more than chance: tables that lead a client to the same backend on every node (Maglev: Eisenbud et
//! al., NSDI 2016), and shares by weight.
//!
//! A table has [`PLACES`] places, each with a backend, and lies in the map in pieces. Clients of this node and clients beyond
//! it have a table each where they have other backends. What a table says follows from the addresses, ports and weights of
//! the backends alone, and a client's place from what every node sees of it: so a client that comes by another node finds the
//! backend that it had. Words are little-endian, as the programs are.

#[cfg(feature = "desired")]
use crate::Port;
use crate::{Address, BackendId, ServiceId};

/// How a Service's backends are chosen.
#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub enum Balancing {
    /// By chance, each time.
    #[default]
    Random,
    /// By the client's address and port, alike on every node.
    Maglev,
    /// By chance, of two the one with fewer connections from this node.
    LeastConnections,
}

impl Balancing {
    pub const ALL: [Self; 3] = [Self::Random, Self::Maglev, Self::LeastConnections];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Random => "random",
            Self::Maglev => "maglev",
            Self::LeastConnections => "least-connections",
        }
    }

    pub fn of_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|balancing| balancing.name() == name)
    }
}

/// Of a table; a prime, so that steps of any length from 1 on come by every place. All nodes must agree on it. With a
/// hundred places for each of 163 backends their shares differ by 1 % at most.
pub const PLACES: u32 = 16_381;

/// Places of a piece. With it an element of the map fills what the kernel allocates for it, 2048 bytes.
pub const PIECE_PLACES: u32 = 496;
pub const PIECES: u32 = PLACES.div_ceil(PIECE_PLACES);

#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PieceKey {
    pub service_id: ServiceId,
    /// From 0 for clients of the node, from [`PIECES`] for those beyond it that have a table of their own.
    pub piece: u32,
}

/// Behind the last place stand zeros.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Piece {
    pub backends: [BackendId; PIECE_PLACES as usize],
}

/// The place that 32 random bits lead to, as [`crate::pick_backend`].
#[inline(always)]
pub const fn place(bits: u32) -> u32 {
    ((bits as u64 * PLACES as u64) >> 32) as u32
}

const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;

#[inline(always)]
const fn mixed(state: u64, word: u64) -> u64 {
    let product = (state ^ word).wrapping_mul(MULTIPLIER);
    product ^ (product >> 29)
}

/// What leads a client to its place: its address and `port`, the 16 bits as they lie in a packet; 0 where all that comes from
/// an address belongs together. What is asked for is not in it: the table is the frontend's own, and a node port has other
/// addresses on other nodes.
#[inline(always)]
pub const fn client_bits(address: &Address, port: u32) -> u32 {
    let [a, b, c, d] = address.to_words();
    let state = mixed(MULTIPLIER, a as u64 | (b as u64) << 32);
    let state = mixed(state, c as u64 | (d as u64) << 32);
    (mixed(mixed(state, port as u64), 0) >> 32) as u32
}

/// The same of a network namespace.
#[inline(always)]
pub const fn namespace_bits(cookie: u64) -> u32 {
    (mixed(mixed(MULTIPLIER, cookie), 0) >> 32) as u32
}

/// Where a backend's claims to places begin, and the step from one to the next.
#[cfg(feature = "desired")]
const fn claims(address: &Address, port: Port) -> (u32, u32) {
    let port = u16::from_be_bytes(port.to_network()) as u32;
    let first = client_bits(address, port);
    let step = client_bits(address, port | 1 << 16);
    (place(first), 1 + ((step as u64 * (PLACES as u64 - 1)) >> 32) as u32)
}

/// A table: for each place the index of its backend among `backends`, whose order does not matter. Their shares are as their
/// weights, to within a place for each; one of weight 0 has none. Empty where none has a weight.
///
/// The backends claim places in turns, in the order of their addresses. One whose weight is a part of the highest has that
/// part of the turns.
#[cfg(feature = "desired")]
pub fn table(backends: &[(Address, Port, u16)]) -> alloc::vec::Vec<u32> {
    const FREE: u32 = u32::MAX;
    struct Claimant {
        index: u32,
        next: u32,
        step: u32,
        weight: u64,
        turns_due: u64,
    }
    let weighty = (0..).zip(backends).filter(|(_, (_, _, weight))| *weight != 0);
    let mut sorted: alloc::vec::Vec<(u32, &(Address, Port, u16))> = weighty.collect();
    sorted.sort_unstable_by_key(|(_, (address, port, _))| (*address, *port));
    let claimant = |(index, (address, port, weight)): (u32, &(Address, Port, u16))| {
        let (next, step) = claims(address, *port);
        Claimant { index, next, step, weight: u64::from(*weight), turns_due: 0 }
    };
    let mut claimants: alloc::vec::Vec<Claimant> = sorted.into_iter().map(claimant).collect();
    let Some(highest) = claimants.iter().map(|claimant| claimant.weight).max() else {
        return alloc::vec::Vec::new();
    };
    let mut table = alloc::vec![FREE; PLACES as usize];
    let mut left = PLACES;
    while left > 0 {
        for claimant in &mut claimants {
            claimant.turns_due += claimant.weight;
            if claimant.turns_due < highest {
                continue;
            }
            claimant.turns_due -= highest;
            while table[claimant.next as usize] != FREE {
                claimant.next = (claimant.next + claimant.step) % PLACES;
            }
            table[claimant.next as usize] = claimant.index;
            left -= 1;
            if left == 0 {
                break;
            }
        }
    }
    table
}

const _: () = {
    assert!(size_of::<PieceKey>() == 8 && size_of::<Piece>() == 1984);
    assert!(PIECES == 34 && PIECES * PIECE_PLACES >= PLACES);
};

crate::pod!(PieceKey, Piece);
