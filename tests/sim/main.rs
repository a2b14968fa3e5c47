//! Tier sim: the whole control plane in one process, with hollow nodes and without sockets.
//!
//! ```text
//! scheduler, controllers, hollow nodes, test -> kube clients -> Gateway -> apiserver -> embedded store in a temporary folder
//! ```
//!
//! Real parts all of them but the nodes. Time is real, because the store's fsync is; a test waits for conditions with a
//! deadline. What is chosen at random comes from a seed.

mod addresses;
mod cluster;
mod deletion;
mod failure;
mod gateway;
mod hollow;
mod observe;
mod restart;
mod rollout;
mod workload;
