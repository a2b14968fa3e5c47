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
//! `SEAWAY_FAILURE_SECONDS` says how long the API server is away.

mod asked;
mod drain;
mod fabric;
mod flows;
mod hammer;
mod paths;
mod reflectors;
