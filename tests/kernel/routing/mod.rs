//! Routes, pod links, and the agent as a router between real peers.

pub mod addresses;
pub mod agent;
mod asked;
mod best;
mod bfd;
mod busy;
mod capture;
mod chain;
mod collisions;
pub mod daemons;
mod hostile;
mod interop;
mod layers;
mod links;
mod messages;
mod next_hops;
pub mod peers;
pub mod plugin;
mod policies;
mod pools;
mod reach;
mod restarts;
mod routes;
pub mod server;
mod table;
mod words;

pub use agent::binary;
