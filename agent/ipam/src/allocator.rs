//! Allocation inside the blocks of one node.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::pool::{Pool, bits, offset};

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

/// An address in use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Allocation {
    pub address: IpAddr,
    #[serde(flatten)]
    pub owner: Request,
    /// Seconds since the epoch.
    pub allocated_at: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum AllocateError {
    #[error("no block of pool {0} is confirmed for this node yet")]
    NoBlock(IpNetwork),
    #[error("all addresses of this node's blocks in pool {0} are in use or cooling down")]
    Exhausted(IpNetwork),
}

/// A free address and since when.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Free {
    ordinal: u32,
    /// Seconds since the epoch; 0 for never used.
    freed_at: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Block {
    cidr: IpNetwork,
    /// In the order of reuse: longest free first.
    free: VecDeque<Free>,
    used: BTreeMap<u32, Allocation>,
}

/// The allocations of one node. Serialize it before an address is answered, and it survives a crash.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Allocator {
    blocks: Vec<Block>,
    /// Seconds an address rests before it is used again.
    cooldown: u64,
}

impl Allocator {
    /// `cooldown` in seconds.
    pub fn new(cooldown: u64) -> Allocator {
        Allocator { blocks: Vec::new(), cooldown }
    }

    /// Checks what was read from disk: every ordinal of every block once.
    pub fn is_consistent(&self) -> bool {
        let distinct: BTreeSet<IpNetwork> = self.blocks.iter().map(|block| block.cidr).collect();
        distinct.len() == self.blocks.len()
            && self.blocks.iter().all(|block| {
                let free: BTreeSet<u32> = block.free.iter().map(|free| free.ordinal).collect();
                free.len() == block.free.len()
                    && block.used.keys().all(|ordinal| !free.contains(ordinal))
                    && block
                        .used
                        .iter()
                        .all(|(o, a)| offset(block.cidr.network(), u128::from(*o)) == a.address)
                    && block.used.keys().chain(free.iter()).all(|ordinal| *ordinal < size(block.cidr))
            })
    }

    /// Takes a confirmed block in; a known one stays as it is.
    pub fn add_block(&mut self, cidr: IpNetwork, pool: &Pool) {
        if self.has_block(cidr) {
            return;
        }
        let free = (0..size(cidr))
            .filter(|ordinal| pool.usable(offset(cidr.network(), u128::from(*ordinal))))
            .map(|ordinal| Free { ordinal, freed_at: 0 })
            .collect();
        self.blocks.push(Block { cidr, free, used: BTreeMap::new() });
    }

    /// Forgets a block with its allocations, which are returned.
    pub fn remove_block(&mut self, cidr: IpNetwork) -> Vec<Allocation> {
        let Some(index) = self.blocks.iter().position(|block| block.cidr == cidr) else { return Vec::new() };
        self.blocks.remove(index).used.into_values().collect()
    }

    pub fn blocks(&self) -> impl Iterator<Item = IpNetwork> {
        self.blocks.iter().map(|block| block.cidr)
    }

    pub fn has_block(&self, cidr: IpNetwork) -> bool {
        self.blocks.iter().any(|block| block.cidr == cidr)
    }

    pub fn allocations(&self) -> impl Iterator<Item = &Allocation> {
        self.blocks.iter().flat_map(|block| block.used.values())
    }

    /// Addresses in use and free in a block.
    pub fn usage(&self, cidr: IpNetwork) -> Option<(usize, usize)> {
        let block = self.blocks.iter().find(|block| block.cidr == cidr)?;
        Some((block.used.len(), block.free.len()))
    }

    /// Free addresses of a pool's blocks, cooling ones included.
    pub fn free(&self, pool: &Pool) -> usize {
        self.blocks.iter().filter(|block| pool.owns(block.cidr)).map(|block| block.free.len()).sum()
    }

    /// The addresses of a container's interface, in order of the pools.
    pub fn addresses(&self, container_id: &str, interface: &str) -> Vec<IpAddr> {
        self.allocations()
            .filter(|a| a.owner.container_id == container_id && a.owner.interface == interface)
            .map(|a| a.address)
            .collect()
    }

    /// One address of each pool, or none at all. The same request again gets the same addresses.
    pub fn allocate(
        &mut self,
        pools: &[Pool],
        request: &Request,
        now: u64,
    ) -> Result<Vec<IpAddr>, AllocateError> {
        let known = self.addresses(&request.container_id, &request.interface);
        let mut addresses = Vec::new();
        let mut fresh = Vec::new();
        for pool in pools {
            if let Some(address) = known.iter().find(|address| pool.cidr().contains(**address)) {
                addresses.push(*address);
                continue;
            }
            match self.allocate_one(pool, request, now) {
                Ok(address) => {
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

    fn allocate_one(&mut self, pool: &Pool, request: &Request, now: u64) -> Result<IpAddr, AllocateError> {
        let cooldown = self.cooldown;
        let mut any = false;
        for block in self.blocks.iter_mut().filter(|block| pool.owns(block.cidr)) {
            any = true;
            let rested = |free: &Free| free.freed_at == 0 || free.freed_at.saturating_add(cooldown) <= now;
            if let Some(free) = block.free.pop_front_if(|free| rested(free)) {
                let address = offset(block.cidr.network(), u128::from(free.ordinal));
                let allocation = Allocation { address, owner: request.clone(), allocated_at: now };
                block.used.insert(free.ordinal, allocation);
                return Ok(address);
            }
        }
        let cidr = pool.cidr();
        Err(if any { AllocateError::Exhausted(cidr) } else { AllocateError::NoBlock(cidr) })
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
}

fn size(cidr: IpNetwork) -> u32 {
    1 << (bits(cidr) - cidr.prefix()).min(16)
}

#[cfg(test)]
mod tests;
