//! Tier kernel: the real verifier, real sockets, real packets, in namespaces that each test makes for itself.

mod datapath;
mod failures;
mod matrix;
mod netns;
mod routing;
mod store;
