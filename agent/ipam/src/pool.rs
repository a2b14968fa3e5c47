//! A pool of addresses and its division into blocks.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;
use thiserror::Error;

#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PoolError {
    #[error("block length /{block} is shorter than the pool {pool}")]
    BlockLargerThanPool { pool: IpNetwork, block: u8 },
    #[error("block length /{block} is longer than an address of pool {pool}")]
    BlockTooLong { pool: IpNetwork, block: u8 },
    #[error("blocks of /{block} in pool {pool} have more than 65536 addresses")]
    BlockTooLarge { pool: IpNetwork, block: u8 },
}

/// Addresses for pods, cut into blocks of equal length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pool {
    cidr: IpNetwork,
    block_length: u8,
}

impl Pool {
    pub fn new(cidr: IpNetwork, block_length: u8) -> Result<Pool, PoolError> {
        let bits = bits(cidr);
        if block_length > bits {
            return Err(PoolError::BlockTooLong { pool: cidr, block: block_length });
        }
        if block_length < cidr.prefix() {
            return Err(PoolError::BlockLargerThanPool { pool: cidr, block: block_length });
        }
        if bits - block_length > 16 {
            return Err(PoolError::BlockTooLarge { pool: cidr, block: block_length });
        }
        Ok(Pool { cidr: network(cidr), block_length })
    }

    /// The block length that is usual for the family: /26, or /122 for IPv6.
    pub fn with_default_blocks(cidr: IpNetwork) -> Result<Pool, PoolError> {
        let usual = if cidr.is_ipv4() { 26 } else { 122 };
        Pool::new(cidr, usual.max(cidr.prefix()))
    }

    pub fn cidr(&self) -> IpNetwork {
        self.cidr
    }

    /// Length of the prefix of its blocks.
    pub fn block_length(&self) -> u8 {
        self.block_length
    }

    /// The block that has an address of the pool.
    pub fn block_of(&self, address: IpAddr) -> Option<IpNetwork> {
        let block = IpNetwork::new(address, self.block_length).ok()?;
        self.cidr.contains(address).then(|| network(block))
    }

    /// How many blocks there are, at most 2^64 - 1.
    pub fn block_count(&self) -> u64 {
        1u64.checked_shl(u32::from(self.block_length - self.cidr.prefix())).unwrap_or(u64::MAX)
    }

    /// The block of this index, counted from the start of the pool.
    pub fn block(&self, index: u64) -> Option<IpNetwork> {
        if index >= self.block_count() {
            return None;
        }
        let size = 1u128 << (bits(self.cidr) - self.block_length);
        let address = offset(self.cidr.network(), u128::from(index) * size);
        IpNetwork::new(address, self.block_length).ok()
    }

    /// Whether `block` is one of this pool's.
    pub fn owns(&self, block: IpNetwork) -> bool {
        block.prefix() == self.block_length && self.cidr.contains(block.network())
    }

    /// Whether an address may be given out: not the first and not the last of the pool.
    pub fn usable(&self, address: IpAddr) -> bool {
        self.cidr.prefix() == bits(self.cidr)
            || (address != self.cidr.network() && address != self.cidr.broadcast())
    }
}

/// Length of an address of the network's family, in bits.
pub(crate) fn bits(network: IpNetwork) -> u8 {
    if network.is_ipv4() { 32 } else { 128 }
}

/// Without the bits of a host.
pub(crate) fn network(of: IpNetwork) -> IpNetwork {
    IpNetwork::new(of.network(), of.prefix()).expect("the length was valid before")
}

/// The index of an address in its block.
pub(crate) fn ordinal(block: IpNetwork, address: IpAddr) -> Option<u32> {
    if !block.contains(address) {
        return None;
    }
    match (block.network(), address) {
        (IpAddr::V4(first), IpAddr::V4(address)) => Some(u32::from(address) - u32::from(first)),
        (IpAddr::V6(first), IpAddr::V6(address)) => {
            u32::try_from(u128::from(address) - u128::from(first)).ok()
        }
        _ => None,
    }
}

pub(crate) fn offset(address: IpAddr, by: u128) -> IpAddr {
    match address {
        IpAddr::V4(v4) => IpAddr::V4(Ipv4Addr::from(u32::from(v4).wrapping_add(by as u32))),
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from(u128::from(v6).wrapping_add(by))),
    }
}
