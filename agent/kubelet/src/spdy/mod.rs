//! SPDY/3.1, as much of it as Kubernetes uses: multiplexed streams for exec, attach and port-forward.
//!
//! ```text
//!   transport bytes -> Connection::handle -> poll_event      (sans-io, connection.rs)
//!                      Connection::open/send/finish -> take_output
//!   Mux: one transport, one Connection, two tasks; a Stream is a pair of channel ends
//! ```
//! Absent: flow control and priorities (the Go side has none either), server push, credentials. Specification: SPDY
//! Protocol Draft 3.1.

mod connection;
mod frame;
mod headers;
mod mux;

pub use connection::{Connection, Error, Event, Side, StreamId};
pub use headers::Headers;
pub use mux::{Incoming, Mux, Stream, StreamReader, StreamWriter};
