//! Allocation inside the blocks of one node.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::pool::{Pool, bits, offset, ordinal};

/// Who an address is for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// Container id of the sandbox: what a release names.
    pub container_id: String,
    pub interface: String,
    pub pod_namespace: String,
    pub pod_name: String,
    /// Ports of the node that lead to it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub host_ports: Vec<HostPort>,
}

/// A port of the node that leads to a port of a pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostPort {
    /// `None` for every address of the node.
    pub host_ip: Option<IpAddr>,
    pub host_port: u16,
    pub container_port: u16,
    /// IANA's number.
    pub protocol: u8,
}

/// What a request gets one address by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Want {
    /// Any address of one of these pools, the first that has one. They are of one family.
    Of(Vec<Pool>),
    /// This address, reserved or resting as it may be.
    Exactly(IpAddr),
}

impl Want {
    fn is_met_by(&self, address: IpAddr) -> bool {
        match self {
            Want::Of(pools) => pools.first().is_some_and(|pool| pool.cidr().is_ipv4() == address.is_ipv4()),
            Want::Exactly(wanted) => *wanted == address,
        }
    }
}

/// An address in use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Allocation {
    pub address: IpAddr,
    #[serde(flatten)]
    pub owner: Request,
    /// Seconds since the epoch.
    pub allocated_at: u64,
    /// Tells this use of the address from every other on this node. Who decided to release it before it was given
    /// anew names another.
    #[serde(default)]
    pub sequence: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum AllocateError {
    #[error("no block of pool {} is confirmed for this node yet", list(.0))]
    NoBlock(Vec<IpNetwork>),
    #[error("all addresses of this node's blocks in pool {} are in use, reserved or cooling down", list(.0))]
    Exhausted(Vec<IpNetwork>),
    #[error("{address} is in use by {holder}")]
    InUse { address: IpAddr, holder: String },
    #[error("{0} is not at this node yet: it is asked for")]
    Elsewhere(IpAddr),
}

impl AllocateError {
    /// What has to come to this node before it can be met.
    pub fn demands(&self) -> Vec<Demand> {
        match self {
            AllocateError::NoBlock(pools) | AllocateError::Exhausted(pools) => {
                pools.iter().map(|pool| Demand::Pool(*pool)).collect()
            }
            AllocateError::Elsewhere(address) => vec![Demand::Address(*address)],
            AllocateError::InUse { .. } => Vec::new(),
        }
    }
}

fn list(pools: &[IpNetwork]) -> String {
    pools.iter().map(IpNetwork::to_string).collect::<Vec<_>>().join(", ")
}

/// What somebody waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Demand {
    /// Any address of the pool.
    Pool(IpNetwork),
    Address(IpAddr),
}

/// A free address and since when.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Free {
    ordinal: u32,
    /// Seconds since the epoch; 0 for never used.
    freed_at: u64,
}

impl Free {
    /// A clock that was set back makes nothing rest for ever.
    fn has_rested(&self, cooldown: u64, now: u64) -> bool {
        self.freed_at == 0 || self.freed_at.abs_diff(now) >= cooldown
    }
}

/// An address that is set aside for other nodes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Lent {
    /// The block's sequence number with the write that says so to others.
    pub sequence: u64,
    /// The node that asked for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Block {
    cidr: IpNetwork,
    /// In the order of reuse: longest free first.
    free: VecDeque<Free>,
    used: BTreeMap<u32, Allocation>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    lent: BTreeMap<u32, Lent>,
    /// One address of another node's block.
    #[serde(default)]
    is_borrowed: bool,
    /// Nothing is given of it: the store does not say that it is this node's.
    #[serde(default)]
    is_suspended: bool,
    /// The newest state of the store that was acted on. Older ones mean nothing.
    #[serde(default)]
    seen: u64,
}

impl Block {
    fn is_of(&self, pool: &Pool) -> bool {
        pool.owns(self.cidr) || self.is_borrowed && pool.cidr().contains(self.cidr.ip())
    }

    fn address(&self, ordinal: u32) -> IpAddr {
        offset(self.cidr.network(), u128::from(ordinal))
    }
}

/// The allocations of one node. Serialize it before an address is answered, and it survives a crash.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Allocator {
    blocks: Vec<Block>,
    /// Seconds an address rests before it is used again.
    cooldown: u64,
    /// Of the newest allocation.
    #[serde(default)]
    sequence: u64,
    /// Blocks and borrowed addresses that were given up, with the sequence number from which that was decided, and when.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    given_up: Vec<(IpNetwork, u64, u64)>,
}

/// Seconds for which it is remembered what was given up: longer than any answer of the store is under way.
const GIVEN_UP_KEPT: u64 = 3600;

impl Allocator {
    /// `cooldown` in seconds.
    pub fn new(cooldown: u64) -> Allocator {
        Allocator { cooldown, ..Allocator::default() }
    }

    /// Checks what was read from disk: every ordinal of every block once.
    pub fn is_consistent(&self) -> bool {
        let distinct: BTreeSet<IpNetwork> = self.blocks.iter().map(|block| block.cidr).collect();
        distinct.len() == self.blocks.len()
            && self.blocks.iter().all(|block| {
                let free: BTreeSet<u32> = block.free.iter().map(|free| free.ordinal).collect();
                free.len() == block.free.len()
                    && block.used.keys().chain(block.lent.keys()).all(|ordinal| !free.contains(ordinal))
                    && block.used.keys().all(|ordinal| !block.lent.contains_key(ordinal))
                    && block.used.iter().all(|(o, a)| block.address(*o) == a.address)
                    && (block.used.keys().chain(block.lent.keys()).chain(free.iter()))
                        .all(|ordinal| *ordinal < size(block.cidr))
            })
    }

    /// Takes a confirmed block in; a known one stays as it is.
    pub fn add_block(&mut self, cidr: IpNetwork, pool: &Pool) {
        self.add(cidr, pool, false, 0);
    }

    pub(crate) fn add(&mut self, cidr: IpNetwork, pool: &Pool, is_borrowed: bool, seen: u64) {
        if self.has_block(cidr) {
            return;
        }
        let free = (0..size(cidr))
            .filter(|ordinal| pool.usable(offset(cidr.network(), u128::from(*ordinal))))
            .map(|ordinal| Free { ordinal, freed_at: 0 })
            .collect();
        let (used, lent) = (BTreeMap::new(), BTreeMap::new());
        self.blocks.push(Block { cidr, free, used, lent, is_borrowed, is_suspended: false, seen });
    }

    /// Forgets a block with its allocations, which are returned.
    pub fn remove_block(&mut self, cidr: IpNetwork) -> Vec<Allocation> {
        let Some(index) = self.blocks.iter().position(|block| block.cidr == cidr) else { return Vec::new() };
        self.blocks.remove(index).used.into_values().collect()
    }

    /// The node's own blocks.
    pub fn blocks(&self) -> impl Iterator<Item = IpNetwork> {
        self.blocks.iter().filter(|block| !block.is_borrowed).map(|block| block.cidr)
    }

    /// Single addresses of other nodes' blocks that this node uses.
    pub fn borrowed(&self) -> impl Iterator<Item = IpNetwork> {
        self.blocks.iter().filter(|block| block.is_borrowed).map(|block| block.cidr)
    }

    /// Whether it is a block of this node or an address that it borrows.
    pub fn has_block(&self, cidr: IpNetwork) -> bool {
        self.block(cidr).is_some()
    }

    pub fn allocations(&self) -> impl Iterator<Item = &Allocation> {
        self.blocks.iter().flat_map(|block| block.used.values())
    }

    /// Addresses in use and free in a block.
    pub fn usage(&self, cidr: IpNetwork) -> Option<(usize, usize)> {
        let block = self.block(cidr)?;
        Some((block.used.len(), block.free.len()))
    }

    /// How many addresses of a block are set aside for other nodes.
    pub fn lent_count(&self, cidr: IpNetwork) -> usize {
        self.block(cidr).map_or(0, |block| block.lent.len())
    }

    /// Free addresses of a pool's blocks but for `reserved` ones, cooling ones included.
    pub fn free(&self, pool: &Pool, reserved: &[IpNetwork]) -> usize {
        self.count(pool, reserved, |_| true)
    }

    /// As [`Self::free`], without those that cool down.
    pub fn rested(&self, pool: &Pool, reserved: &[IpNetwork], now: u64) -> usize {
        self.count(pool, reserved, |free| free.has_rested(self.cooldown, now))
    }

    fn count(&self, pool: &Pool, reserved: &[IpNetwork], counts: impl Fn(&Free) -> bool) -> usize {
        let of_block = |block: &Block| {
            let is_kept =
                |free: &&Free| reserved.iter().any(|range| range.contains(block.address(free.ordinal)));
            block.free.iter().filter(|free| counts(free) && !is_kept(free)).count()
        };
        self.blocks.iter().filter(|block| block.is_of(pool) && !block.is_suspended).map(of_block).sum()
    }

    /// The addresses of a container's interface, in the order in which they were asked for.
    pub fn addresses(&self, container_id: &str, interface: &str) -> Vec<IpAddr> {
        let mut found: Vec<&Allocation> = self
            .allocations()
            .filter(|a| a.owner.container_id == container_id && a.owner.interface == interface)
            .collect();
        found.sort_by_key(|allocation| allocation.sequence);
        found.into_iter().map(|allocation| allocation.address).collect()
    }

    /// One address for each of `wants`, or none at all. The same request again gets the same addresses. `reserved` are
    /// given to nobody who does not ask for exactly them.
    pub fn allocate(
        &mut self,
        wants: &[Want],
        reserved: &[IpNetwork],
        request: &Request,
        now: u64,
    ) -> Result<Vec<IpAddr>, AllocateError> {
        let known = self.addresses(&request.container_id, &request.interface);
        let mut addresses = Vec::new();
        let mut fresh = Vec::new();
        for want in wants {
            if let Some(address) = known.iter().find(|address| want.is_met_by(**address)) {
                addresses.push(*address);
                continue;
            }
            let found = match want {
                Want::Of(pools) => self.find(pools, reserved, now),
                Want::Exactly(address) => self.find_exactly(*address),
            };
            match found {
                Ok((block, index)) => {
                    let address = self.take(block, index, request, now);
                    fresh.push(address);
                    addresses.push(address);
                }
                Err(error) => {
                    fresh.iter().for_each(|address| self.put_back(*address));
                    return Err(error);
                }
            }
        }
        Ok(addresses)
    }

    /// A block, and where in its free addresses.
    fn find(
        &self,
        pools: &[Pool],
        reserved: &[IpNetwork],
        now: u64,
    ) -> Result<(usize, usize), AllocateError> {
        let mut any = false;
        for pool in pools {
            let of_pool =
                self.blocks.iter().enumerate().filter(|(_, block)| block.is_of(pool) && !block.is_suspended);
            for (number, block) in of_pool {
                any = true;
                let index = block.free.iter().position(|free| {
                    free.has_rested(self.cooldown, now)
                        && !reserved.iter().any(|range| range.contains(block.address(free.ordinal)))
                });
                if let Some(index) = index {
                    return Ok((number, index));
                }
            }
        }
        let all = pools.iter().map(Pool::cidr).collect();
        Err(if any { AllocateError::Exhausted(all) } else { AllocateError::NoBlock(all) })
    }

    fn find_exactly(&self, address: IpAddr) -> Result<(usize, usize), AllocateError> {
        let elsewhere = AllocateError::Elsewhere(address);
        let holds = |block: &Block| {
            let ordinal = ordinal(block.cidr, address);
            !block.is_suspended
                && ordinal.is_some_and(|ordinal| {
                    block.used.contains_key(&ordinal) || block.free.iter().any(|free| free.ordinal == ordinal)
                })
        };
        let Some(number) = self.blocks.iter().position(holds) else { return Err(elsewhere) };
        let block = &self.blocks[number];
        let ordinal = ordinal(block.cidr, address).ok_or(elsewhere.clone())?;
        if let Some(used) = block.used.get(&ordinal) {
            let holder = format!("pod {}/{}", used.owner.pod_namespace, used.owner.pod_name);
            return Err(AllocateError::InUse { address, holder });
        }
        let index = block.free.iter().position(|free| free.ordinal == ordinal).ok_or(elsewhere)?;
        Ok((number, index))
    }

    fn take(&mut self, block: usize, index: usize, request: &Request, now: u64) -> IpAddr {
        self.sequence += 1;
        let block = &mut self.blocks[block];
        let free = block.free.remove(index).expect("the index was found in the same call");
        let address = block.address(free.ordinal);
        let allocation =
            Allocation { address, owner: request.clone(), allocated_at: now, sequence: self.sequence };
        block.used.insert(free.ordinal, allocation);
        address
    }

    /// Undoes an allocation that was never used: no cooldown.
    fn put_back(&mut self, address: IpAddr) {
        for block in self.blocks.iter_mut().filter(|block| block.cidr.contains(address)) {
            let ordinal = block.used.iter().find(|(_, a)| a.address == address).map(|(ordinal, _)| *ordinal);
            if let Some(ordinal) = ordinal {
                block.used.remove(&ordinal);
                block.free.push_front(Free { ordinal, freed_at: 0 });
            }
        }
    }

    /// Releases what a container holds on one interface, or on all; returns what was released.
    pub fn release(&mut self, container_id: &str, interface: Option<&str>, now: u64) -> Vec<Allocation> {
        self.release_if(now, |allocation| {
            allocation.owner.container_id == container_id
                && interface.is_none_or(|interface| allocation.owner.interface == interface)
        })
    }

    /// Releases every allocation that meets the condition.
    pub fn release_if(&mut self, now: u64, condition: impl Fn(&Allocation) -> bool) -> Vec<Allocation> {
        let mut released = Vec::new();
        for block in &mut self.blocks {
            for (ordinal, allocation) in block.used.extract_if(.., |_, allocation| condition(allocation)) {
                block.free.push_back(Free { ordinal, freed_at: now });
                released.push(allocation);
            }
        }
        released
    }

    fn block(&self, cidr: IpNetwork) -> Option<&Block> {
        self.blocks.iter().find(|block| block.cidr == cidr)
    }

    fn block_mut(&mut self, cidr: IpNetwork) -> Option<&mut Block> {
        self.blocks.iter_mut().find(|block| block.cidr == cidr)
    }

    /// The newest state of the store that was acted on.
    pub(crate) fn seen(&self, cidr: IpNetwork) -> u64 {
        let of_block = self.block(cidr).map_or(0, |block| {
            block.lent.values().map(|lent| lent.sequence.saturating_sub(1)).max().unwrap_or(0).max(block.seen)
        });
        of_block.max(self.given_up_at(cidr))
    }

    /// The machine was started anew: no pod is there any more, and nothing is given until the store has confirmed it, which may
    /// have given it to others meanwhile. `freed_at` as `now` elsewhere.
    pub fn restart(&mut self, freed_at: u64) -> Vec<Allocation> {
        self.blocks.iter_mut().for_each(|block| block.is_suspended = true);
        self.release_if(freed_at, |_| true)
    }

    /// Whether nothing is given of it: the store does not say that it is this node's.
    pub fn is_suspended(&self, cidr: IpNetwork) -> bool {
        self.block(cidr).is_some_and(|block| block.is_suspended)
    }

    pub(crate) fn suspend(&mut self, cidr: IpNetwork, is_suspended: bool) {
        if let Some(block) = self.block_mut(cidr) {
            block.is_suspended = is_suspended;
        }
    }

    /// Whether nobody uses anything of it, here or elsewhere, and nobody did for the time of rest.
    pub(crate) fn is_idle(&self, cidr: IpNetwork, now: u64) -> bool {
        self.block(cidr).is_some_and(|block| {
            block.used.is_empty()
                && block.lent.is_empty()
                && (block.is_borrowed || block.free.iter().all(|free| free.has_rested(self.cooldown, now)))
        })
    }

    /// From which state of the store it was decided to give it up; 0 where it was not.
    pub(crate) fn given_up_at(&self, cidr: IpNetwork) -> u64 {
        self.given_up.iter().find(|(of, ..)| *of == cidr).map_or(0, |(_, sequence, _)| *sequence)
    }

    /// Has it no more, as the store at `sequence` is to learn.
    pub(crate) fn give_up(&mut self, cidr: IpNetwork, sequence: u64, now: u64) {
        self.blocks.retain(|block| block.cidr != cidr);
        self.given_up.retain(|(of, _, at)| *of != cidr && at.abs_diff(now) < GIVEN_UP_KEPT);
        self.given_up.push((cidr, sequence, now));
    }

    /// Up to `count` free addresses that have rested, the longest free last, so that reuse here goes on in order.
    pub(crate) fn lendable(
        &self,
        cidr: IpNetwork,
        reserved: &[IpNetwork],
        count: usize,
        now: u64,
    ) -> Vec<IpAddr> {
        let Some(block) = self.block(cidr) else { return Vec::new() };
        let rested = block.free.iter().rev().filter(|free| free.has_rested(self.cooldown, now));
        let addresses = rested.map(|free| block.address(free.ordinal));
        addresses.filter(|ip| !reserved.iter().any(|range| range.contains(*ip))).take(count).collect()
    }

    pub(crate) fn is_free(&self, cidr: IpNetwork, address: IpAddr) -> bool {
        let ordinal = ordinal(cidr, address);
        self.block(cidr).is_some_and(|block| block.free.iter().any(|free| Some(free.ordinal) == ordinal))
    }

    /// Sets a free address aside, as the store at `lent.sequence` says.
    pub(crate) fn lend(&mut self, cidr: IpNetwork, address: IpAddr, lent: Lent) {
        let (Some(ordinal), Some(block)) = (ordinal(cidr, address), self.block_mut(cidr)) else { return };
        if let Some(index) = block.free.iter().position(|free| free.ordinal == ordinal) {
            block.free.remove(index);
            block.lent.insert(ordinal, lent);
        }
    }

    pub(crate) fn lent(&self, cidr: IpNetwork) -> BTreeMap<IpAddr, Lent> {
        let Some(block) = self.block(cidr) else { return BTreeMap::new() };
        block.lent.iter().map(|(ordinal, lent)| (block.address(*ordinal), lent.clone())).collect()
    }

    /// Has an address back from other nodes, as the store at `sequence` says. It rests first.
    pub(crate) fn take_back(&mut self, cidr: IpNetwork, address: IpAddr, sequence: u64, now: u64) {
        let (Some(ordinal), Some(block)) = (ordinal(cidr, address), self.block_mut(cidr)) else { return };
        if block.lent.remove(&ordinal).is_some() {
            block.free.push_back(Free { ordinal, freed_at: now });
            block.seen = block.seen.max(sequence);
        }
    }
}

fn size(cidr: IpNetwork) -> u32 {
    1 << (bits(cidr) - cidr.prefix()).min(16)
}

#[cfg(test)]
mod tests;
