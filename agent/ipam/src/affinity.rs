//! Which node a block belongs to, and what a node should do about it next.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use ipnetwork::IpNetwork;

use crate::allocator::Allocator;
use crate::pool::Pool;

/// A node asks for one more block when fewer addresses than this are free.
const FREE_MIN: usize = 8;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Claimed; to everybody else as good as absent, to other claimants taken.
    Pending,
    Confirmed,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            State::Pending => "pending",
            State::Confirmed => "confirmed",
        })
    }
}

impl FromStr for State {
    type Err = String;

    fn from_str(text: &str) -> Result<State, String> {
        match text {
            "pending" => Ok(State::Pending),
            "confirmed" => Ok(State::Confirmed),
            other => Err(format!("state is {other:?}, neither pending nor confirmed")),
        }
    }
}

/// One block's owner as the store has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Affinity {
    pub block: IpNetwork,
    pub node: String,
    pub state: State,
    /// Grows with every change.
    pub sequence: u64,
}

/// A step towards enough confirmed blocks. Each is idempotent; the next plan follows from what the store then has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Create the affinity as pending; fails where another node was first.
    Claim(IpNetwork),
    /// Update the own pending affinity, read at `sequence`, to confirmed.
    Confirm { block: IpNetwork, sequence: u64 },
    /// The store confirms a block that the allocator lacks: take it in.
    Adopt(IpNetwork),
    /// The store says that a block of the allocator is another node's: give it up.
    Surrender { block: IpNetwork, owner: String },
    /// No block of the pool is left.
    Exhausted(IpNetwork),
}

/// What `node` should do next, given everything the store has and what it allocates from.
pub fn plan(pools: &[Pool], node: &str, affinities: &[Affinity], allocator: &Allocator) -> Vec<Action> {
    let by_block: BTreeMap<IpNetwork, &Affinity> = affinities.iter().map(|a| (a.block, a)).collect();
    let mut actions = Vec::new();
    for block in allocator.blocks() {
        match by_block.get(&block) {
            None => actions.push(Action::Claim(block)),
            Some(affinity) if affinity.node != node => {
                actions.push(Action::Surrender { block, owner: affinity.node.clone() });
            }
            Some(_) => {}
        }
    }
    for affinity in affinities.iter().filter(|a| a.node == node) {
        let held = allocator.has_block(affinity.block);
        match affinity.state {
            State::Pending => {
                actions.push(Action::Confirm { block: affinity.block, sequence: affinity.sequence });
            }
            State::Confirmed if !held => actions.push(Action::Adopt(affinity.block)),
            State::Confirmed => {}
        }
    }
    if actions.is_empty() {
        for pool in pools {
            let addresses =
                1usize.checked_shl(u32::from(crate::pool::bits(pool.cidr()) - pool.cidr().prefix()));
            if allocator.free(pool) < addresses.map_or(FREE_MIN, |addresses| FREE_MIN.min(addresses)) {
                actions.push(claim_next(pool, node, &by_block));
            }
        }
    }
    actions
}

/// The first unclaimed block from a start that differs by node, so that nodes that join together seldom collide.
fn claim_next(pool: &Pool, node: &str, taken: &BTreeMap<IpNetwork, &Affinity>) -> Action {
    let count = pool.block_count();
    let start = node.bytes().fold(0xcbf2_9ce4_8422_2325u64, |hash, octet| {
        (hash ^ u64::from(octet)).wrapping_mul(0x100_0000_01b3)
    }) % count;
    // One more probe than blocks are taken finds a free one where there is one.
    let probes = count.min(taken.len() as u64 + 1);
    (0..probes)
        .filter_map(|step| pool.block(((u128::from(start) + u128::from(step)) % u128::from(count)) as u64))
        .find(|block| !taken.contains_key(block))
        .map_or(Action::Exhausted(pool.cidr()), Action::Claim)
}
