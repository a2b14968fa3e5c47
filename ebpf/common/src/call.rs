//! Programs that other programs continue in, by their place in the map of calls.
//!
//! What is rarely needed is a program of its own: the common path stays small, and the verifier sees each once. A place
//! keeps its meaning as a key or a value keeps its layout: while an agent is replaced, programs of the old one call those
//! of the new one.

/// An index into the map of calls. Each is entered with the packet as it came in.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Call {
    /// An ICMP error on its way into the node.
    RelayEntering = 0,
    /// An ICMP error on its way out of the node.
    RelayLeaving = 1,
}

impl Call {
    pub const ALL: [Self; 2] = [Self::RelayEntering, Self::RelayLeaving];

    /// The name of the program.
    pub const fn program(self) -> &'static str {
        match self {
            Self::RelayEntering => "relay_entering",
            Self::RelayLeaving => "relay_leaving",
        }
    }
}
