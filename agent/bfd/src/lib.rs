//! Bidirectional Forwarding Detection without IO and without a clock (RFC 5880, 5881, 5883), asynchronous mode.
//!
//! ```text
//! datagram -> packet (checks) -> endpoint (whose session) -> session (FSM, timers) -> Output
//! ```
//!
//! `Endpoint::handle(input, now)` takes in, `poll_output()` and `next_deadline()` are read; the driver owns sockets and
//! time. It must hand over all that has arrived before it says that time has passed, or a busy host would take a peer for
//! dead whose packets wait in a buffer. In the steady state nothing is allocated. Deliberately absent: authentication
//! (such packets are refused), the echo function (none is offered), and demand mode of our own (the peer's is honoured).

pub mod endpoint;
pub mod packet;
pub mod refusal;
pub mod session;

pub use endpoint::{Arrival, Change, Endpoint, Input, Output, SessionStatus};
pub use packet::{Diagnostic, Packet, State};
pub use refusal::{Refusal, Refusals};
pub use session::{Cause, Config, Hops};
