//! The only crate that touches the kernel's network: BPF maps and programs, links, routes, neighbours.
//!
//! It knows nothing of Kubernetes. Each table has a desired and an actual side (`delta`), and apply makes the kernel
//! match; what is in the kernel stays there when the process ends, and is recognised when it starts again.

mod bpf;
pub mod census;
mod clsact;
pub mod counts;
pub mod datapath;
pub mod delta;
pub mod drops;
pub mod flows;
pub mod growth;
pub mod links;
pub mod maps;
pub mod masquerade;
mod namespaces;
mod netlink;
pub mod node;
mod pods;
mod policies;
pub mod pressure;
pub mod programs;
pub mod reaper;
pub mod routes;
pub mod services;
pub mod sizes;
mod sock_diag;
pub mod stale;
pub mod swap;
pub mod view;
