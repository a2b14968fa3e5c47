//! What the tests of the cluster tier share: the developer's cluster, commands, conditions with deadlines.
//!
//! A test never makes the cluster: `cargo xtask test cluster` does, once for each store, and tells where it is in
//! SEAWAY_CLUSTER. Without that a test fails and says so. Everything that a test creates lives in a namespace of its own.

mod cluster;
mod command;
mod condition;

pub use cluster::{Cluster, Namespace, Pod};
pub use command::{Run, run};
pub use condition::{eventually, eventually_some};
