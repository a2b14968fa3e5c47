//! Which traffic of pods is allowed: what the agent says of pods, of their peers and of the rules between them, and what the
//! programs remember of connections that were allowed.
//!
//! ```text
//!   packet at a pod's link -> POLICED[interface]: is the pod isolated in that direction?
//!     -> POLICY_FLOWS[pod's end, peer's end]: was the connection judged, since the rules last changed?
//!     -> PEERS[peer's address] = group -> RULES[rules, group or EVERYBODY, protocol, port]: allowed, or dropped
//! ```
//!
//! A pod is isolated in a direction once a policy selects it there (NetworkPolicy v1), and what no rule allows is dropped.
//! Addresses are those behind Services: what a client sends is judged after its destination became a backend's, what a
//! backend answers before its source becomes the Service's. The node of a pod, and the pod itself, always reach it.

use crate::{Address, Port, Protocol, Tuple};

/// The rules of a direction that pods share. 0 isolates nobody.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct RulesId(pub u32);

impl RulesId {
    pub const NONE: Self = Self(0);

    #[inline(always)]
    pub const fn is_some(self) -> bool {
        self.0 != 0
    }
}

/// Peers that the rules of this node do not tell apart.
#[repr(transparent)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct GroupId(pub u32);

impl GroupId {
    /// Of peers that no rule names.
    pub const UNKNOWN: Self = Self(0);
    /// In a rule: whoever it is.
    pub const EVERYBODY: Self = Self(u32::MAX);
}

/// A pod's link, by the index of its host's end. One that is missing is isolated in no direction.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Policed {
    /// Of what enters the pod.
    pub ingress: RulesId,
    /// Of what the pod sends.
    pub egress: RulesId,
}

impl Policed {
    #[inline(always)]
    pub const fn is_isolated(&self) -> bool {
        self.ingress.is_some() || self.egress.is_some()
    }
}

/// The one element of its map, at 0.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Policing {
    /// Raised after each change of peers and rules: connections that were judged before are judged anew.
    pub generation: u32,
    /// How many links are policed. Where none is, nothing more is looked up.
    pub links: u32,
}

/// A key of the trie of rules: what is allowed is there.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RuleKey {
    /// How many bits of `rule` count, from its first.
    bits: u32,
    pub rule: Rule,
}

/// What a [`RuleKey`] is a prefix of.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Rule {
    pub rules: RulesId,
    /// Who the peer is.
    pub group: GroupId,
    pub protocol: Protocol,
    zero: u8,
    /// The port that the connection goes to: the pod's own of what enters it, the peer's of what it sends. 0 where the protocol has
    /// none.
    pub port: Port,
}

impl Rule {
    #[inline(always)]
    pub const fn new(rules: RulesId, group: GroupId, protocol: Protocol, port: Port) -> Self {
        Self { rules, group, protocol, zero: 0, port }
    }
}

impl RuleKey {
    pub const OF_PEER: u32 = 64;
    pub const OF_PROTOCOL: u32 = 80;
    /// Of a key that is looked up.
    pub const ALL_BITS: u32 = 96;

    /// Every packet of such peers, whatever its protocol.
    pub const fn everything(rules: RulesId, group: GroupId) -> Self {
        Self { bits: Self::OF_PEER, rule: Rule::new(rules, group, Protocol(0), Port::new(0)) }
    }

    /// Every port of the protocol.
    pub const fn protocol(rules: RulesId, group: GroupId, protocol: Protocol) -> Self {
        Self { bits: Self::OF_PROTOCOL, rule: Rule::new(rules, group, protocol, Port::new(0)) }
    }

    /// The ports that share their first `bits`, of 16, with `port`. The bits behind them must be 0.
    pub const fn ports(rules: RulesId, group: GroupId, protocol: Protocol, port: Port, bits: u8) -> Self {
        Self { bits: Self::OF_PROTOCOL + bits as u32, rule: Rule::new(rules, group, protocol, port) }
    }

    /// How many bits count, of [`Self::ALL_BITS`].
    pub const fn bits(&self) -> u32 {
        self.bits
    }
}

/// A key of what is remembered of a connection: the tuple that the pod itself sends, also of a connection that its peer
/// began. Both ends of a connection have their own where both are policed.
pub type PolicyFlowKey = Tuple;

/// A connection that was allowed.
///
/// Each side writes its own bytes. The entry goes once both have confirmed the other's FIN, so that connections that come and
/// go leave nothing behind.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PolicyFlow {
    /// CLOCK_MONOTONIC at the last packet of either direction, to the second.
    pub last_seen_ns: u64,
    /// [`Policing::generation`] when it was last judged; 0, which that never is, for one that was there before.
    pub generation: u32,
    /// 1 where the peer began it: then the rules of ingress judge it, else those of egress.
    pub inbound: u8,
    /// 1 once the other direction was seen too.
    pub answered: u8,
    /// What the pod said of the end: one of those below, or 0.
    pub pod_closing: u8,
    /// What its peer said.
    pub peer_closing: u8,
    /// The acknowledgment that confirms a side's FIN.
    pub pod_end: u32,
    pub peer_end: u32,
}

impl PolicyFlow {
    pub const FIN: u8 = 1;
    /// The other side has the FIN.
    pub const CONFIRMED: u8 = 2;
    pub const RESET: u8 = 3;

    #[inline(always)]
    pub const fn new(generation: u32, inbound: bool, now_ns: u64) -> Self {
        Self {
            last_seen_ns: now_ns,
            generation,
            inbound: inbound as u8,
            answered: 0,
            pod_closing: 0,
            peer_closing: 0,
            pod_end: 0,
            peer_end: 0,
        }
    }

    /// How long it may be silent until it is forgotten, as [`crate::timeout_seconds`] has it for what is translated. A reset is
    /// forgotten sooner: who speaks on after one is not taken to have sent it. So is what a peer asked by datagrams: the next
    /// one is judged by the same rules.
    pub const fn timeout_seconds(&self, key: &PolicyFlowKey) -> u64 {
        const NAME_SERVER_PORT: u16 = 53;
        let (pod, peer) = (self.pod_closing, self.peer_closing);
        match key.protocol {
            Protocol::TCP if pod == Self::RESET || peer == Self::RESET => 10,
            Protocol::TCP if pod != 0 && peer != 0 => 120,
            Protocol::TCP if pod != 0 || peer != 0 => 300,
            Protocol::TCP if self.answered != 0 || self.generation == 0 => 8000,
            Protocol::TCP => 60,
            Protocol::SCTP if pod != 0 || peer != 0 => 10,
            Protocol::SCTP => 210,
            _ if self.answered == 0 || self.inbound != 0 => 30,
            _ if key.destination_port.get() == NAME_SERVER_PORT => 10,
            _ => 180,
        }
    }
}

/// The key under which the pod with this end remembers a connection.
#[inline(always)]
pub const fn policy_flow_key(
    pod: Address,
    pod_port: Port,
    peer: Address,
    peer_port: Port,
    protocol: Protocol,
) -> PolicyFlowKey {
    Tuple::new(pod, pod_port, peer, peer_port, protocol)
}

const _: () = {
    use core::mem::offset_of;
    assert!(size_of::<Policed>() == 8 && offset_of!(Policed, egress) == 4);
    assert!(size_of::<Policing>() == 8 && offset_of!(Policing, links) == 4);
    assert!(size_of::<RuleKey>() == 16 && offset_of!(RuleKey, rule) == 4);
    assert!(size_of::<Rule>() == 12 && offset_of!(Rule, group) == 4);
    assert!(offset_of!(Rule, protocol) == 8 && offset_of!(Rule, port) == 10);
    assert!(size_of::<PolicyFlow>() == 24 && offset_of!(PolicyFlow, inbound) == 12);
    assert!(offset_of!(PolicyFlow, pod_closing) == 14 && offset_of!(PolicyFlow, pod_end) == 16);
};

crate::pod!(RulesId, GroupId, Policed, Policing, Rule, RuleKey, PolicyFlow);
