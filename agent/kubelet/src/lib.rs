//! The kubelet of one node: pods bound to it become containers of a CRI runtime, and what happens to them becomes
//! pod status.
//!
//! ```text
//!  apiserver --watch--> worker (one task per pod) --plan()--> actions --> CRI, volumes, probes
//!      ^                    ^   |
//!      '---- status --------'   '-- woken by: pod, runtime events, probes, objects, its own deadline
//! ```
//!
//! Decisions are pure and live in [`plan`] and [`status`]; everything else is IO around them. Read `worker.rs` first.
//! Deliberately absent: the network (CNI does it), the scheduler's decisions, device plugins and CSI.

pub mod actual;
pub mod config;
pub mod cri;
pub mod plan;
pub mod pod;
pub mod quantity;
mod run;
pub mod status;

pub use config::{Config, ServerTls};
pub use run::run;
