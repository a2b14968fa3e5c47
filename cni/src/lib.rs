//! The contract between the CNI plugin and the agent of its node: one call per connection of a unix socket.
//!
//! The plugin is a new process for each call and does nothing itself but check its input and shape the result; the
//! agent, which stays, does the work. So it is static and blocking, and what they say to each other is one message each
//! way: four octets of length, big endian, and JSON. The request brings the pod's network namespace as a descriptor.

pub mod call;
pub mod config;
pub mod error;

/// Where the agent listens if not told otherwise.
pub const DEFAULT_SOCKET: &str = "/run/seaway/cni.sock";

/// The plugin's `type` in a network configuration, and the name of its binary.
pub const PLUGIN_TYPE: &str = "seaway-cni";
