//! The scheduler: finds a node for each pod that has none, and binds it.
//!
//! ```text
//! watch -> snapshot, queue -> cycle(snapshot, pod): pure -> assume -> bind
//! ```
//!
//! `framework` has the extension points, `plugins` one file per plugin, `cycle` the pure decision, `run` all IO.

pub mod cycle;
pub mod events;
pub mod framework;
pub mod plugins;
pub mod pod;
pub mod predicates;
pub mod queue;
pub mod resources;
mod run;
pub mod snapshot;
#[cfg(test)]
mod testing;

pub use run::{SCHEDULER_NAME, run};
