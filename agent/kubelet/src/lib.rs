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
pub mod admission;
pub mod cgroups;
pub mod config;
pub mod configuration;
mod context;
pub mod cri;
mod dial;
pub mod dns;
pub mod downward;
pub mod env;
pub mod eviction;
pub mod image_gc;
pub mod images;
pub mod logs;
mod node;
pub mod objects;
mod observe;
mod orphans;
pub mod plan;
pub mod pod;
mod probes;
pub mod quantity;
mod recorder;
mod run;
pub mod runtime_config;
mod runtime_events;
mod security;
mod server;
pub mod spdy;
pub mod status;
pub mod volumes;
mod worker;

pub use config::{Config, ServerTls};
pub use env::{LinkPort, ServiceLink, ServiceLinks};
pub use run::run;
