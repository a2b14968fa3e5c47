//! Why a packet was dropped or a socket call refused.

use ebpf_common::{Counter, Reason};

use crate::maps;

/// Each reason is its own counter.
#[repr(u32)]
#[derive(Clone, Copy)]
pub enum Error {
    Refused = Counter::SocketRefused as u32,
    NoBackend = Counter::DropNoBackend as u32,
    NoLocalBackend = Counter::DropNoLocalBackend as u32,
    ConntrackFull = Counter::DropConntrackFull as u32,
    PortsExhausted = Counter::DropPortsExhausted as u32,
    Fragment = Counter::DropFragment as u32,
    Malformed = Counter::DropMalformed as u32,
    Rewrite = Counter::DropRewrite as u32,
    NoSource = Counter::DropNoSource as u32,
    HopLimit = Counter::DropHopLimit as u32,
    Outrun = Counter::DropOutrun as u32,
    NoPort = Counter::DropNoPort as u32,
    SourceRange = Counter::DropSourceRange as u32,
    TooBig = Counter::DropTooBig as u32,
    FragmentEarly = Counter::DropFragmentEarly as u32,
    PolicyIngress = Counter::DropPolicyIngress as u32,
    PolicyEgress = Counter::DropPolicyEgress as u32,
    PolicyFull = Counter::DropPolicyFull as u32,
}

impl Error {
    #[inline(always)]
    pub fn count(self) {
        maps::add(self as u32);
    }

    /// The counter's name.
    #[inline(always)]
    pub fn name(self) -> &'static str {
        match self {
            Self::Refused => Counter::SocketRefused.name(),
            Self::NoBackend => Counter::DropNoBackend.name(),
            Self::NoLocalBackend => Counter::DropNoLocalBackend.name(),
            Self::ConntrackFull => Counter::DropConntrackFull.name(),
            Self::PortsExhausted => Counter::DropPortsExhausted.name(),
            Self::Fragment => Counter::DropFragment.name(),
            Self::Malformed => Counter::DropMalformed.name(),
            Self::Rewrite => Counter::DropRewrite.name(),
            Self::NoSource => Counter::DropNoSource.name(),
            Self::HopLimit => Counter::DropHopLimit.name(),
            Self::Outrun => Counter::DropOutrun.name(),
            Self::NoPort => Counter::DropNoPort.name(),
            Self::SourceRange => Counter::DropSourceRange.name(),
            Self::TooBig => Counter::DropTooBig.name(),
            Self::FragmentEarly => Counter::DropFragmentEarly.name(),
            Self::PolicyIngress => Counter::DropPolicyIngress.name(),
            Self::PolicyEgress => Counter::DropPolicyEgress.name(),
            Self::PolicyFull => Counter::DropPolicyFull.name(),
        }
    }

    /// What the sender is told of a packet that is as it came. Of most drops it is told nothing, and tries again.
    #[inline(always)]
    pub fn answer(self) -> Option<Reason> {
        match self {
            Self::NoBackend | Self::NoPort => Some(Reason::Refused),
            Self::HopLimit => Some(Reason::HopLimit),
            Self::TooBig => Some(Reason::TooBig),
            _ => None,
        }
    }
}
