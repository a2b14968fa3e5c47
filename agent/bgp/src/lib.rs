//! BGP-4 speaker without IO and without a clock (RFC 4271, 4760, 6793, 7606, 4724, 8538, 8654).
//!
//! ```text
//! socket bytes -> session (FSM per peer) -> rib -> best_path -> speaker -> Output
//! ```
//!
//! Everything is fed through `Speaker::handle(input, now)` and read through `poll_output()` and
//! `next_deadline()`; the driver owns sockets, time and the FIB.

pub mod best_path;
pub mod config;
pub mod link_local;
pub mod policy;
pub mod prefix;
pub mod rib;
pub mod session;
pub mod speaker;
pub mod wire;

pub use best_path::Reason;
pub use config::{AddPath, LocalRoute, NextHopMode, PeerConfig, SpeakerConfig};
pub use prefix::{Families, Family, Prefix};
pub use rib::NextHops;
pub use session::{ConnectionId, State};
pub use speaker::{
    Explanation, Fate, Input, Objection, Obstacle, Output, PeerStatus, RouteStatus, Speaker, Transition,
};
