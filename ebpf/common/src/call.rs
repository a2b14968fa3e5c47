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
    /// A packet that nobody takes, and whose sender is told. The control buffer's first word is a [`Reason`].
    Answer = 2,
    /// A packet on its way out of the node, of a pod or about one, to a host outside of the cluster.
    Masquerade = 3,
    /// A packet on its way into the node that may be an answer to such a one.
    Unmasquerade = 4,
    /// A packet that enters the node and is of a policed pod, or for one.
    Police = 5,
    /// As above, once its addresses are those behind Services.
    PoliceFinal = 6,
    /// As above, of a policed pod: what is no whole packet with ports.
    PoliceRest = 7,
    /// A packet that leaves for a policed pod.
    PoliceEntering = 8,
    /// A packet of a policed pod that may be for a Service, which is found before the packet is judged.
    Judged = 9,
    /// A packet that leaves for a pod, and was judged.
    TowardsClient = 10,
}

impl Call {
    pub const ALL: [Self; 11] = [
        Self::RelayEntering,
        Self::RelayLeaving,
        Self::Answer,
        Self::Masquerade,
        Self::Unmasquerade,
        Self::Police,
        Self::PoliceFinal,
        Self::PoliceRest,
        Self::PoliceEntering,
        Self::Judged,
        Self::TowardsClient,
    ];

    /// The name of the program.
    pub const fn program(self) -> &'static str {
        match self {
            Self::RelayEntering => "relay_entering",
            Self::RelayLeaving => "relay_leaving",
            Self::Answer => "answer",
            Self::Masquerade => "masquerade",
            Self::Unmasquerade => "unmasquerade",
            Self::Police => "police",
            Self::PoliceFinal => "police_final",
            Self::PoliceRest => "police_rest",
            Self::PoliceEntering => "police_entering",
            Self::Judged => "judged",
            Self::TowardsClient => "towards_client",
        }
    }

    /// Whether a packet that could not go on there must not pass.
    pub const fn is_needed(self) -> bool {
        self as u32 >= Self::Police as u32
    }
}

/// What a sender is told.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reason {
    /// Nobody listens there.
    Refused = 0,
    /// The packet had no hop left.
    HopLimit = 1,
    /// The packet is too large to be sent on in one piece. The control buffer's second word says how large it may be.
    TooBig = 2,
}
