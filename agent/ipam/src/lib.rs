//! Addresses for pods, without IO and without a clock.
//!
//! A pool is cut into blocks. A block belongs to at most one node: the node claims it (`pending`), checks that it won,
//! and confirms it (`confirmed`); only a confirmed block is announced, blackholed or allocated from. Inside its
//! blocks a node allocates alone, first freed first used again and not before a cooldown, so that a late packet to
//! a dead pod does not reach its successor.
//!
//! `affinity` decides what to claim, `allocator` hands out addresses; the caller stores both.

pub mod affinity;
pub mod allocator;
pub mod pool;

pub use affinity::{Action, Affinity, State};
pub use allocator::{AllocateError, Allocation, Allocator, HostPort, Request};
pub use pool::{Pool, PoolError};
