//! What flows are doing, and how many do so.

use std::collections::{BTreeMap, HashMap};

use ebpf_common::{Flow, Protocol, Tuple, sctp::State};

/// In the words of a connection where the flow is one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum FlowState {
    /// Nobody has answered.
    New,
    /// A connection whose backend has answered.
    Established,
    /// Datagrams that the backend has answered.
    Answered,
    /// One side has said that it is done; of an association of SCTP, its end has begun.
    Closing,
    /// Both have.
    Closed,
    /// Or aborted.
    Reset,
}

impl FlowState {
    pub const ALL: [Self; 6] =
        [Self::New, Self::Established, Self::Answered, Self::Closing, Self::Closed, Self::Reset];

    pub const fn name(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Established => "established",
            Self::Answered => "answered",
            Self::Closing => "closing",
            Self::Closed => "closed",
            Self::Reset => "reset",
        }
    }

    /// From both entries of a flow; `None` where that of the answers is missing.
    pub(crate) fn of(protocol: Protocol, forward: &Flow, reverse: Option<&Flow>) -> Self {
        let ends = |flow: &Flow| (flow.fin != 0, flow.rst != 0);
        let answered = reverse.is_some_and(|reverse| reverse.seen != 0);
        let sides = || std::iter::once(ends(forward)).chain(reverse.map(ends));
        match (protocol, reverse) {
            (Protocol::SCTP, Some(reverse)) => return Self::of_association(State::of(forward, reverse)),
            (Protocol::SCTP, None) => return Self::New,
            _ => {}
        }
        match protocol {
            Protocol::TCP if sides().any(|(_, rst)| rst) => Self::Reset,
            Protocol::TCP if sides().count() == 2 && sides().all(|(fin, _)| fin) => Self::Closed,
            _ if sides().any(|(fin, rst)| fin || rst) => Self::Closing,
            Protocol::TCP if answered => Self::Established,
            _ if answered => Self::Answered,
            _ => Self::New,
        }
    }

    const fn of_association(state: State) -> Self {
        match state {
            State::CookieWait | State::CookieEchoed => Self::New,
            State::Established => Self::Established,
            State::ShutdownSent | State::ShutdownReceived | State::ShutdownAckSent => Self::Closing,
            State::Closed => Self::Closed,
            State::Aborted => Self::Reset,
        }
    }
}

/// Numbers of flows.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Census {
    count_by_kind: BTreeMap<(u8, FlowState), u64>,
}

impl Census {
    pub(crate) fn of(entries: &HashMap<Tuple, Flow>) -> Self {
        let mut census = Self::default();
        for (tuple, flow) in entries.iter().filter(|(_, flow)| flow.is_forward()) {
            let reverse = entries.get(&flow.translated.reversed());
            let state = FlowState::of(tuple.protocol, flow, reverse);
            *census.count_by_kind.entry((tuple.protocol.0, state)).or_default() += 1;
        }
        census
    }

    pub fn count(&self, protocol: Protocol, state: FlowState) -> u64 {
        self.count_by_kind.get(&(protocol.0, state)).copied().unwrap_or(0)
    }

    /// Those that flows have, in order.
    pub fn protocols(&self) -> Vec<Protocol> {
        let mut protocols: Vec<u8> = self.count_by_kind.keys().map(|(protocol, _)| *protocol).collect();
        protocols.dedup();
        protocols.into_iter().map(Protocol).collect()
    }
}
