//! The cluster tier: real containerd, kubectl and kernel, on the cluster that `cargo xtask test cluster` made.

mod advertised;
mod bad_input;
mod dual_stack;
mod evicted;
mod exposed;
mod failures;
mod health;
mod kubectl;
mod network;
mod python;
mod web;
