//! Which block a node claims next.

use std::collections::BTreeMap;

use ipnetwork::IpNetwork;

use crate::affinity::Affinity;
use crate::keeper::Version;
use crate::pool::{Pool, network};

type Known = BTreeMap<IpNetwork, (Affinity, Version)>;

/// The first unclaimed block from a start that differs by node, so that nodes that join together seldom collide.
pub(crate) fn next(pool: &Pool, node: &str, taken: &Known) -> Option<IpNetwork> {
    let count = pool.block_count();
    let start = hash(node) % count;
    // One more probe than blocks are taken finds a free one where there is one. A larger block, of an earlier pool, takes
    // as many as it covers.
    let covered = |block: &IpNetwork| match pool.block_length().checked_sub(block.prefix()) {
        Some(bits) if pool.cidr().contains(block.network()) => {
            1u64.checked_shl(bits.into()).unwrap_or(u64::MAX)
        }
        _ => 1,
    };
    let probes = taken.keys().map(covered).fold(1u64, u64::saturating_add).min(count);
    (0..probes)
        .filter_map(|step| pool.block(((u128::from(start) + u128::from(step)) % u128::from(count)) as u64))
        .find(|block| !overlaps(*block, taken))
}

/// Whether any address of it is in a block that somebody has.
pub(crate) fn overlaps(block: IpNetwork, taken: &Known) -> bool {
    let within = taken.range(first(block)..).next().is_some_and(|(other, _)| block.contains(other.network()));
    within
        || (0..=block.prefix()).any(|length| {
            let around = IpNetwork::new(block.network(), length).map(network);
            around.is_ok_and(|around| taken.contains_key(&around))
        })
}

/// The least network that begins where `block` does.
fn first(block: IpNetwork) -> IpNetwork {
    IpNetwork::new(block.network(), 0).unwrap_or(block)
}

pub(crate) fn hash(node: &str) -> u64 {
    node.bytes()
        .fold(0xcbf2_9ce4_8422_2325u64, |hash, octet| (hash ^ u64::from(octet)).wrapping_mul(0x100_0000_01b3))
}
