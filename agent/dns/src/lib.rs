//! Cluster DNS, answered on the node: the names of Services, headless Services and pods, from memory.
//!
//! Every agent serves it on its node's address; the kube-dns Service leads each pod to its own node
//! (internalTrafficPolicy Local), so that a look-up never crosses the network. Names outside the cluster domain go to
//! the node's own resolvers.
//!
//! [`Zone`] and [`answer()`] are pure; [`server`] holds the sockets. Follows the Kubernetes DNS-Based Service Discovery
//! specification 1.1.0 and RFC 1034, 1035, 2308 (negative answers), 2782 (SRV), 6891 (EDNS).

mod answer;
pub mod server;
mod zone;

pub use answer::{Answer, Transport, answer};
pub use zone::{Port, Records, Zone};
