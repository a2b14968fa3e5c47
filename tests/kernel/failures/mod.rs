//! What fails, and what flows of 1,000 datagrams each second between all nodes lose by it.
//!
//! | scenario | may be lost |
//! |---|---|
//! | nothing fails | nothing |
//! | an agent is killed, twice | nothing |
//! | one of two reflectors, or both, are lost and come back | nothing |
//! | a link of a router that has another beside it is cut | 0.3 s |
//! | the API server is away | nothing |
//! | a node is added, cordoned, drained | nothing |
//!
//! 500 open flows through a Service lose no request while the agent is killed, begins with maps of other sizes or makes one
//! larger, and endpoints change (`open_flows`).
//!
//! `SEAWAY_FAILURE_SECONDS` says how long the API server is away.

mod asked;
mod drain;
pub mod fabric;
mod flows;
mod hammer;
mod open_flows;
mod paths;
mod reflectors;
