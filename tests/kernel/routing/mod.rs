//! Routes, pod links, and the agent as a router between real peers.

mod addresses;
mod agent;
mod asked;
mod bfd;
mod daemons;
mod interop;
mod layers;
mod links;
mod peers;
mod plugin;
mod pools;
mod routes;
mod table;

pub use agent::binary;
