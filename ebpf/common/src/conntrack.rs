//! Connection tracking of the packet path: two entries per translated flow, found by the packet's own tuple.
//!
//! The forward entry is keyed by what the client sends, the reverse entry by what the backend answers; each holds the
//! whole tuple that the packet gets. An entry is written by packets of its own direction only, one byte per fact, so
//! that CPUs never overwrite each other's; whoever judges a flow reads both. There is no window tracking: a packet that
//! fits the tuple is translated, and the hosts judge it.

use crate::{Address, BackendId, Port, Protocol, ServiceId, retired::Flow0, sctp};

#[repr(C, align(8))]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Tuple {
    pub source: Address,
    pub destination: Address,
    pub source_port: Port,
    pub destination_port: Port,
    pub protocol: Protocol,
    zero: [u8; 3],
}

impl Tuple {
    #[inline(always)]
    pub const fn new(
        source: Address,
        source_port: Port,
        destination: Address,
        destination_port: Port,
        protocol: Protocol,
    ) -> Self {
        Self { source, destination, source_port, destination_port, protocol, zero: [0; 3] }
    }

    /// From words as they lie in a packet: addresses with IPv4 mapped, both ports, and the protocol in the first octet.
    #[inline(always)]
    pub const fn from_words(source: [u32; 4], destination: [u32; 4], ports: u32, protocol: u32) -> Self {
        let ([a, b, c, d], [e, f, g, h]) = (source, destination);
        // SAFETY: of the same size, without padding (asserted below), and any octets are valid.
        unsafe { core::mem::transmute([a, b, c, d, e, f, g, h, ports, protocol]) }
    }

    /// The tuple of the answer.
    #[inline(always)]
    pub const fn reversed(&self) -> Self {
        Self {
            source: self.destination,
            destination: self.source,
            source_port: self.destination_port,
            destination_port: self.source_port,
            protocol: self.protocol,
            zero: [0; 3],
        }
    }
}

/// Source ports of the node, first and last, that forwarded flows get: the dynamic ports of RFC 6335. The node's sockets
/// are kept from choosing them (`net.ipv4.ip_local_reserved_ports`), and one that asked for one keeps it.
pub const FORWARD_PORTS: (u16, u16) = (49152, 65535);

#[repr(u8)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    Forward = 1,
    Reverse = 2,
}

#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Flow {
    /// CLOCK_MONOTONIC at the last packet of this direction.
    pub last_seen_ns: u64,
    /// What the packet becomes. Its reverse is the key of the other entry.
    pub translated: Tuple,
    pub service_id: ServiceId,
    pub backend_id: BackendId,
    direction: u8,
    /// 1 where client and backend are one pod: both directions enter at the pod's own link and leave there again.
    pub hairpin: u8,
    /// 1 once a packet of this direction was seen. 0 only on a reverse entry that waits for its first answer.
    pub seen: u8,
    /// 1 once this direction sent FIN.
    pub fin: u8,
    /// 1 once this direction sent RST.
    pub rst: u8,
    /// 1 where the client is beyond the node and the backend too: the client's address was exchanged as well, and both
    /// directions enter from outside and leave there again. No entry had one before there were such flows.
    forwarded: u8,
    /// 1 where the client is a pod of this node and has the node's address for a host outside of the cluster: packets
    /// are translated where they leave by the uplink and where they enter there.
    masqueraded: u8,
    /// Which chunks of SCTP this direction has sent, of those that `sctp` has a bit for. 0 in other protocols, and in entries
    /// from before SCTP was tracked.
    pub said: u8,
}

impl Flow {
    #[inline(always)]
    pub const fn new(
        direction: Direction,
        translated: Tuple,
        service_id: ServiceId,
        backend_id: BackendId,
        hairpin: bool,
        now_ns: u64,
    ) -> Self {
        Self {
            last_seen_ns: now_ns,
            translated,
            service_id,
            backend_id,
            direction: direction as u8,
            hairpin: hairpin as u8,
            seen: matches!(direction, Direction::Forward) as u8,
            fin: 0,
            rst: 0,
            forwarded: 0,
            masqueraded: 0,
            said: 0,
        }
    }

    /// What is known of a flow of the layout before. Its Service is not.
    #[inline(always)]
    pub const fn of_layout_0(old: &Flow0) -> Self {
        Self {
            last_seen_ns: old.last_seen_ns,
            translated: old.translated,
            service_id: ServiceId(0),
            backend_id: old.backend_id,
            direction: old.direction,
            hairpin: old.hairpin,
            seen: old.seen & 1,
            fin: old.seen >> 1 & 1,
            rst: old.seen >> 2 & 1,
            forwarded: old.way & 1,
            masqueraded: old.way >> 1 & 1,
            said: 0,
        }
    }

    /// The same, for a client and a backend that are both beyond the node.
    #[inline(always)]
    pub const fn forwarded(self) -> Self {
        Self { forwarded: 1, ..self }
    }

    /// An entry of a flow that a pod of this node began to a host outside of the cluster. No Service has part in it.
    #[inline(always)]
    pub const fn masqueraded(direction: Direction, translated: Tuple, now_ns: u64) -> Self {
        let flow = Self::new(direction, translated, ServiceId(0), BackendId(0), false, now_ns);
        Self { masqueraded: 1, ..flow }
    }

    #[inline(always)]
    pub const fn is_masqueraded(&self) -> bool {
        self.masqueraded != 0
    }

    #[inline(always)]
    pub const fn is_forwarded(&self) -> bool {
        self.forwarded != 0
    }

    /// Whether the answers are translated where they enter, and not at the client's edge.
    #[inline(always)]
    pub const fn turns_around(&self) -> bool {
        (self.hairpin | self.forwarded) != 0
    }

    #[inline(always)]
    pub const fn is_forward(&self) -> bool {
        self.direction == Direction::Forward as u8
    }

    #[inline(always)]
    pub const fn is_hairpin(&self) -> bool {
        self.hairpin != 0
    }

    /// Whether this direction said that it is done.
    #[inline(always)]
    pub const fn is_closing(&self) -> bool {
        (self.fin | self.rst | self.said & sctp::CLOSING) != 0
    }
}

/// A datagram in pieces: only its first fragment has ports.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct FragmentKey {
    pub source: Address,
    pub destination: Address,
    /// The Identification field: 16 bits in IPv4, 32 in IPv6.
    pub identification: u32,
    pub protocol: Protocol,
    /// 1 where packets enter the node's stack, 0 where they leave it: one packet passes both, and is translated at one. 2 more
    /// where a policy allowed the first fragment of what a pod sends, or of what enters it.
    entering: u8,
    zero: [u8; 2],
}

impl FragmentKey {
    #[inline(always)]
    pub const fn new(
        source: Address,
        destination: Address,
        identification: u32,
        protocol: Protocol,
        entering: bool,
    ) -> Self {
        Self { source, destination, identification, protocol, entering: entering as u8, zero: [0; 2] }
    }

    /// That the first fragment was allowed at a pod's edge, where it entered the pod or was sent by it. The addresses are those
    /// behind Services.
    #[inline(always)]
    pub const fn judged(self, into_pod: bool) -> Self {
        Self { entering: 2 + into_pod as u8, ..self }
    }

    pub const fn is_entering(&self) -> bool {
        self.entering & 1 != 0
    }
}

/// The addresses that the first fragment got, for those that follow it.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Fragment {
    pub source: Address,
    pub destination: Address,
    /// One of those below, or 0.
    way: u32,
}

impl Fragment {
    const FORWARDED: u32 = 1;
    const HAIRPIN: u32 = 2;
    /// With [`FragmentKey::judged`]: nothing but that the first one was allowed.
    pub const JUDGED: Self = Self { source: Address::UNSPECIFIED, destination: Address::UNSPECIFIED, way: 0 };

    /// What the first fragment of `flow` became.
    #[inline(always)]
    pub const fn of(flow: &Flow) -> Self {
        let Tuple { source, destination, .. } = flow.translated;
        let way = if flow.is_forwarded() {
            Self::FORWARDED
        } else if flow.is_hairpin() {
            Self::HAIRPIN
        } else {
            0
        };
        Self { source, destination, way }
    }

    /// As [`Flow::is_forwarded`].
    #[inline(always)]
    pub const fn is_forwarded(&self) -> bool {
        self.way == Self::FORWARDED
    }

    /// As [`Flow::is_hairpin`].
    #[inline(always)]
    pub const fn is_hairpin(&self) -> bool {
        self.way == Self::HAIRPIN
    }
}

const NAME_SERVER_PORT: u16 = 53;

/// How long a flow may be silent before it is forgotten, judged from both of its entries.
///
/// TCP established outlives the default keepalive time of hosts (2 h, RFC 9293 3.8.4). A reset flow is kept for 2
/// minutes, since a reset may be forged or out of window, and RFC 5382 REQ-5 asks for a closed one as long.
pub const fn timeout_seconds(protocol: Protocol, forward: &Flow, reverse: &Flow) -> u64 {
    let answered = reverse.seen != 0;
    match protocol {
        Protocol::TCP => {
            if forward.rst != 0 || reverse.rst != 0 || (forward.fin != 0 && reverse.fin != 0) {
                120
            } else if forward.fin != 0 || reverse.fin != 0 {
                300
            } else if answered {
                8000
            } else {
                60
            }
        }
        Protocol::SCTP => sctp::State::of(forward, reverse).timeout_seconds(),
        // RFC 4787 REQ-5 recommends 5 minutes and requires 2, but for well-known ports: a question to a name server is
        // over in seconds, and there are many. An unanswered datagram holds nothing open.
        _ => {
            if forward.masqueraded != 0 && forward.translated.destination_port.get() == NAME_SERVER_PORT {
                10
            } else if answered {
                180
            } else {
                30
            }
        }
    }
}

const _: () = {
    use core::mem::offset_of;
    assert!(size_of::<Tuple>() == 40 && align_of::<Tuple>() == 8);
    assert!(offset_of!(Tuple, source_port) == 32 && offset_of!(Tuple, protocol) == 36);
    assert!(size_of::<FragmentKey>() == 40 && size_of::<Fragment>() == 36);
    assert!(size_of::<Flow>() == 64 && offset_of!(Flow, translated) == 8);
    assert!(offset_of!(Flow, service_id) == 48 && offset_of!(Flow, hairpin) == 57);
    assert!(offset_of!(Flow, rst) == 60 && offset_of!(Flow, forwarded) == 61);
    assert!(offset_of!(Flow, masqueraded) == 62 && offset_of!(Flow, said) == 63);
};

crate::pod!(Tuple, Flow, FragmentKey, Fragment);
