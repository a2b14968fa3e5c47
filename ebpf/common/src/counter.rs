//! What the programs count, per CPU: each verdict and each reason to drop has one counter.

use crate::ServiceId;

/// An index into the counters map. New counters are added at the end, numbers are never reused.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Counter {
    /// connect() to a frontend was given a backend.
    SocketConnect = 0,
    /// A datagram of an unconnected socket was given a backend.
    SocketSend = 1,
    /// A peer address was shown as the frontend's.
    SocketReverse = 2,
    /// connect() or sendmsg() to a frontend without backends was refused.
    SocketRefused = 3,
    /// A packet opened a tracked flow.
    FlowNew = 4,
    /// A packet was translated towards a backend.
    FlowForward = 5,
    /// A packet was translated back towards its client.
    FlowReverse = 6,
    /// A packet went back to the pod that sent it, through its Service.
    Hairpin = 7,
    /// Dropped: the frontend has no backend anywhere.
    DropNoBackend = 8,
    /// Dropped: the frontend has backends, but none for clients where the packet came from.
    DropNoLocalBackend = 9,
    /// Dropped: the conntrack map is full.
    DropConntrackFull = 10,
    /// Dropped: no source port of the node is free towards the chosen backend, or the host that a pod asks.
    DropPortsExhausted = 11,
    /// Dropped: a first fragment of which those that follow could not have been told, or whose checksum, of SCTP, could not
    /// have followed its ports.
    DropFragment = 12,
    /// Dropped: the packet is shorter than its headers say.
    DropMalformed = 13,
    /// Dropped: the kernel refused to rewrite the packet.
    DropRewrite = 14,
    /// A packet between a client and a backend that are both beyond the node was sent on, by tc.
    Forwarded = 15,
    /// Dropped: the packet had to be sent on to another machine, and the node has no address to send from.
    DropNoSource = 16,
    /// Dropped: the packet had to be sent on, and had no hop left.
    DropHopLimit = 17,
    /// An ICMP error about a translated packet was translated.
    IcmpTranslated = 18,
    /// Dropped or refused: each time a backend was looked up, the Service had changed.
    DropOutrun = 19,
    /// Dropped: the address is a Service's, and the port is none of it.
    DropNoPort = 20,
    /// A packet or a connect() was for an address of the Service range that no Service has. It goes to the node's routes.
    Unallocated = 21,
    /// The sender of a dropped packet was told, by a TCP reset or an ICMP error.
    Answered = 22,
    /// The sender of a dropped packet was not told, as too many others were.
    AnswerLimited = 23,
    /// A connected datagram socket was not noted, since the map is full: it will keep its backend beyond the backend's
    /// end.
    SocketNotNoted = 24,
    /// A packet was handed to a pod of this node, past the node's stack.
    Delivered = 25,
    /// Dropped, or refused to a socket: the client is in none of the Service's source ranges.
    DropSourceRange = 26,
    /// A packet was sent on to another node, past the node's stack.
    Routed = 27,
    /// A pod's packet opened a flow to a host outside of the cluster, which sees the node's address.
    Masqueraded = 28,
    /// As `Forwarded`, by XDP.
    ForwardedEarly = 29,
    /// Dropped: the packet had to be sent on in one piece, and is larger than the way takes.
    DropTooBig = 30,
    /// Dropped: a fragment for a Service, or of an isolated pod, came before the one that has the ports, or after that was
    /// forgotten.
    DropFragmentEarly = 31,
    /// Dropped: a policy isolates the pod, and none allows what comes for it.
    DropPolicyIngress = 32,
    /// Dropped: a policy isolates the pod, and none allows what it sends.
    DropPolicyEgress = 33,
    /// Dropped: a connection of an isolated pod could not be noted, since the map is full, and its answers would be lost.
    DropPolicyFull = 34,
}

impl Counter {
    pub const COUNT: u32 = 35;

    pub const ALL: [Self; Self::COUNT as usize] = [
        Self::SocketConnect,
        Self::SocketSend,
        Self::SocketReverse,
        Self::SocketRefused,
        Self::FlowNew,
        Self::FlowForward,
        Self::FlowReverse,
        Self::Hairpin,
        Self::DropNoBackend,
        Self::DropNoLocalBackend,
        Self::DropConntrackFull,
        Self::DropPortsExhausted,
        Self::DropFragment,
        Self::DropMalformed,
        Self::DropRewrite,
        Self::Forwarded,
        Self::DropNoSource,
        Self::DropHopLimit,
        Self::IcmpTranslated,
        Self::DropOutrun,
        Self::DropNoPort,
        Self::Unallocated,
        Self::Answered,
        Self::AnswerLimited,
        Self::SocketNotNoted,
        Self::Delivered,
        Self::DropSourceRange,
        Self::Routed,
        Self::Masqueraded,
        Self::ForwardedEarly,
        Self::DropTooBig,
        Self::DropFragmentEarly,
        Self::DropPolicyIngress,
        Self::DropPolicyEgress,
        Self::DropPolicyFull,
    ];

    /// The counter's name in metrics and command output.
    pub const fn name(self) -> &'static str {
        match self {
            Self::SocketConnect => "socket_connect",
            Self::SocketSend => "socket_send",
            Self::SocketReverse => "socket_reverse",
            Self::SocketRefused => "socket_refused",
            Self::FlowNew => "flow_new",
            Self::FlowForward => "flow_forward",
            Self::FlowReverse => "flow_reverse",
            Self::Hairpin => "hairpin",
            Self::DropNoBackend => "drop_no_backend",
            Self::DropNoLocalBackend => "drop_no_local_backend",
            Self::DropConntrackFull => "drop_conntrack_full",
            Self::DropPortsExhausted => "drop_ports_exhausted",
            Self::DropFragment => "drop_fragment",
            Self::DropMalformed => "drop_malformed",
            Self::DropRewrite => "drop_rewrite",
            Self::Forwarded => "forwarded",
            Self::DropNoSource => "drop_no_source",
            Self::DropHopLimit => "drop_hop_limit",
            Self::IcmpTranslated => "icmp_translated",
            Self::DropOutrun => "drop_outrun",
            Self::DropNoPort => "drop_no_port",
            Self::Unallocated => "unallocated",
            Self::Answered => "answered",
            Self::AnswerLimited => "answer_limited",
            Self::SocketNotNoted => "socket_not_noted",
            Self::Delivered => "delivered",
            Self::DropSourceRange => "drop_source_range",
            Self::Routed => "routed",
            Self::Masqueraded => "masqueraded",
            Self::ForwardedEarly => "forwarded_xdp",
            Self::DropTooBig => "drop_too_big",
            Self::DropFragmentEarly => "drop_fragment_early",
            Self::DropPolicyIngress => "drop_policy_ingress",
            Self::DropPolicyEgress => "drop_policy_egress",
            Self::DropPolicyFull => "drop_policy_full",
        }
    }

    /// The counter at an index of the map.
    pub const fn of_index(index: u32) -> Option<Self> {
        if index < Self::COUNT { Some(Self::ALL[index as usize]) } else { None }
    }

    pub const fn is_drop(self) -> bool {
        let other = matches!(
            self,
            Self::Forwarded
                | Self::IcmpTranslated
                | Self::Unallocated
                | Self::Answered
                | Self::AnswerLimited
                | Self::SocketNotNoted
                | Self::Delivered
                | Self::Routed
                | Self::Masqueraded
                | Self::ForwardedEarly
        );
        self as u32 >= Self::DropNoBackend as u32 && !other
    }
}

/// What became of those who asked for one frontend of a Service, on one CPU; found by the frontend's id.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct ServiceCount {
    /// Given a backend: calls of connect(), first datagrams of other sockets, packets that opened a flow.
    pub chosen: u64,
    /// Refused or dropped, since there was no endpoint for them: the same, each time that a client tries.
    pub refused: u64,
}

impl ServiceCount {
    /// No Service has this id. What was asked for while the map had no room for another one is counted here.
    pub const REST: ServiceId = ServiceId(0);
    pub const ZERO: Self = Self { chosen: 0, refused: 0 };
}

impl core::ops::AddAssign for ServiceCount {
    fn add_assign(&mut self, other: Self) {
        self.chosen += other.chosen;
        self.refused += other.refused;
    }
}

impl core::ops::Sub for ServiceCount {
    type Output = Self;

    /// At least 0.
    fn sub(self, other: Self) -> Self {
        Self {
            chosen: self.chosen.saturating_sub(other.chosen),
            refused: self.refused.saturating_sub(other.refused),
        }
    }
}

impl core::iter::Sum for ServiceCount {
    fn sum<I: Iterator<Item = Self>>(counts: I) -> Self {
        counts.fold(Self::ZERO, |mut sum, count| {
            sum += count;
            sum
        })
    }
}

const _: () = assert!(size_of::<ServiceCount>() == 16 && core::mem::offset_of!(ServiceCount, refused) == 8);

crate::pod!(ServiceCount);
