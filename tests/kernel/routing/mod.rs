//! Routes, pod links, and the agent as a router between real peers.

pub mod addresses;
pub mod agent;
mod asked;
mod bfd;
mod chain;
pub mod daemons;
mod interop;
mod layers;
mod links;
pub mod peers;
mod plugin;
mod pools;
mod reach;
mod routes;
pub mod server;
mod table;

pub use agent::binary;
