//! Addresses for pods, without IO and without a clock.
//!
//! A pool is cut into blocks. A block belongs to at most one node: the node claims it (`pending`), checks that it won,
//! and confirms it (`confirmed`); only a confirmed block is announced, blackholed or allocated from. Inside its
//! blocks a node allocates alone, first freed first used again and not before a cooldown, so that a late packet to
//! a dead pod does not reach its successor.
//!
//! Where no block is left, a node borrows single addresses: owners set some aside, which leave their free lists before the
//! store offers them, and enter them again after the store says that nobody has them. A borrowed address is a block of one.
//!
//! `keeper` decides what to claim, lend, borrow and give back, `allocator` hands out addresses; the caller stores both.

pub mod affinity;
pub mod allocator;
mod claim;
pub mod keeper;
pub mod pool;

pub use affinity::{Affinity, State};
pub use allocator::{AllocateError, Allocation, Allocator, Demand, HostPort, Request, Want};
pub use keeper::{Change, Collected, Demands, Keeper, NodePool, Situation, Step, Write, collect};
pub use pool::{Pool, PoolError};
