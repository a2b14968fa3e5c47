//! The ABI between the BPF programs and the agent: every byte that crosses the kernel boundary is laid out here, once.
//!
//! Keys and values are `repr(C)` without implicit padding, so that the kernel hashes and compares exactly the bytes
//! that are named; sizes and offsets are asserted at compile time. Addresses are 16 bytes in network order, IPv4 as
//! IPv4-mapped IPv6 (RFC 4291 2.5.5.2): one map and one code path serve both families and mapped sockets.
//!
//! No IO, no clock, no allocation. Feature `user` makes the types loadable by aya; feature `desired` adds the plain data in
//! which the agent's crates tell each other what the maps shall say.
#![no_std]

#[cfg(feature = "desired")]
extern crate alloc;

mod address;
pub mod balancing;
mod bucket;
mod call;
pub mod checksum;
mod conntrack;
mod counter;
#[cfg(feature = "desired")]
pub mod desired;
mod drops;
pub mod maps;
mod masquerade;
mod node;
mod policy;
pub mod retired;
pub mod sctp;
mod service;
pub mod shortcut;
#[cfg(test)]
mod tests;

pub use address::{Address, Port, Protocol};
pub use balancing::Balancing;
pub use bucket::Bucket;
pub use call::{Call, Reason};
pub use conntrack::{Direction, FORWARD_PORTS, Flow, Fragment, FragmentKey, Tuple, timeout_seconds};
pub use counter::{Counter, ServiceCount};
pub use drops::{DropGate, Dropped};
pub use masquerade::{Masquerade, Prefix};
pub use node::{LocalPod, Node, Range, Ranges};
pub use policy::{
    GroupId, Policed, Policing, PolicyFlow, PolicyFlowKey, Rule, RuleKey, RulesId, policy_flow_key,
};
pub use service::{
    Affinity, AffinityKey, Backend, BackendId, ConnectedSocket, ConnectedStream, Frontend, FrontendKey,
    Origin, Sender, ServiceId, SlotKey, SocketForward, SocketKey, SocketReverse, SourceAddress,
    SourceRangeKey, pick_backend,
};
pub use shortcut::Shortcut;

/// Implements `aya::Pod` where the agent asks for it.
macro_rules! pod {
    ($($type:ty),+ $(,)?) => {
        $(
            // SAFETY: repr(C) or repr(transparent) over integers and byte arrays, no implicit padding (asserted
            // where the type is defined), valid for any bit pattern.
            #[cfg(feature = "user")]
            unsafe impl aya::Pod for $type {}
        )+
    };
}
pub(crate) use pod;
