//! The packet path's flows, as the agent sees them: listing, and forgetting those that ended or fell silent.
//!
//! Only the agent knows both directions of a flow at once, so only it forgets. An entry is looked at again right before
//! it is deleted: one that a packet has touched since stays.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
    path::{Path, PathBuf},
};

use ebpf_common::{
    Backend, BackendId, Flow, PolicyFlow, PolicyFlowKey, Protocol, Tuple, maps, sctp::State, timeout_seconds,
};

use crate::{
    census::{Census, FlowState},
    maps::{MapError, PinnedMap},
    view::{Element, Walk},
};

/// An entry without its other half is either being made right now or a leftover.
const LONE_SECONDS: u64 = 10;

const NS_PER_SECOND: u64 = 1_000_000_000;

/// What a sweep saw and did, in map entries.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Swept {
    pub seen: usize,
    pub deleted: usize,
    /// Flows that are left.
    pub census: Census,
    /// Connections of policed pods that are left.
    pub policy_flows: usize,
}

/// A flow from its client's side.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FlowEntry {
    pub protocol: Protocol,
    pub client: (IpAddr, u16),
    pub frontend: (IpAddr, u16),
    pub backend: (IpAddr, u16),
    /// Where the backend sees the client.
    pub seen_as: (IpAddr, u16),
    pub service_id: u32,
    pub backend_id: u32,
    /// The backend has answered.
    pub answered: bool,
    /// Either side has said that it is done.
    pub closing: bool,
    pub idle_seconds: u64,
    /// How long it may be silent until it is forgotten.
    pub timeout_seconds: u64,
    /// In the words of its protocol where that has some.
    pub state: &'static str,
    pub way: Way,
    pub from_client: Half,
    /// `None` where the entry of the answers is missing.
    pub from_backend: Option<Half>,
}

/// How packets of a flow get where they go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// The client's edge is on this node.
    Direct,
    /// Client and backend are one pod.
    Hairpin,
    /// Client and backend are both beyond the node.
    Forwarded,
    /// A pod of the node asks a host outside of the cluster, which is frontend and backend, and sees the node.
    Masqueraded,
}

/// One direction of a flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Half {
    /// A packet of this direction, as it comes.
    pub tuple: Tuple,
    /// What it becomes.
    pub translated: Tuple,
    /// Any was seen.
    pub seen: bool,
    pub fin: bool,
    pub rst: bool,
    /// Chunks of SCTP, as in [`ebpf_common::sctp`].
    pub said: u8,
    pub idle_seconds: u64,
}

#[derive(Debug)]
pub struct Flows {
    directory: PathBuf,
    map: PinnedMap<Tuple, Flow>,
    backends: PinnedMap<BackendId, Backend>,
    open: PinnedMap<BackendId, i64>,
    /// Sockets, by cookie, that are connected to a backend whose connections are counted.
    sockets: PinnedMap<u64, BackendId>,
    /// Connections of policed pods that were allowed.
    policy_flows: PinnedMap<PolicyFlowKey, PolicyFlow>,
}

impl Flows {
    /// # Errors
    /// Where no agent has pinned the map in `directory`.
    pub fn open(directory: &Path) -> Result<Self, MapError> {
        let map = PinnedMap::open(directory, maps::CONNTRACK)?;
        let backends = PinnedMap::open(directory, maps::BACKENDS)?;
        let open = PinnedMap::open(directory, maps::OPEN)?;
        let sockets = PinnedMap::open(directory, maps::SOCKETS_COUNTED)?;
        let policy_flows = PinnedMap::open(directory, maps::POLICY_FLOWS)?;
        Ok(Self { directory: directory.to_owned(), map, backends, open, sockets, policy_flows })
    }

    /// Every flow, at `now_ns` of CLOCK_MONOTONIC.
    pub fn entries(&self, now_ns: u64) -> Result<Vec<FlowEntry>, MapError> {
        let mut entries = Vec::new();
        let mut walk = self.walk()?;
        while let Some(piece) = self.next_piece(&mut walk, now_ns, |_, _| true)? {
            entries.extend(piece);
        }
        entries.sort_unstable_by_key(|entry| (entry.client, entry.frontend, entry.protocol));
        Ok(entries)
    }

    /// A way through the map, for [`Self::next_piece`].
    pub fn walk(&self) -> Result<Walk, MapError> {
        Walk::open(&self.directory, maps::CONNTRACK)
    }

    /// The flows of the walk's next piece whose client's half is `wanted`; `None` at the end.
    pub fn next_piece(
        &self,
        walk: &mut Walk,
        now_ns: u64,
        wanted: impl Fn(&Tuple, &Flow) -> bool,
    ) -> Result<Option<Vec<FlowEntry>>, MapError> {
        let Some(elements) = walk.next_piece()? else { return Ok(None) };
        let mut entries = Vec::new();
        for element in &elements {
            let Element::Flow(tuple, flow) = element else { continue };
            if flow.is_forward() && wanted(tuple, flow) {
                let reverse = self.map.get(&flow.translated.reversed())?;
                entries.push(entry(tuple, flow, reverse.as_ref(), now_ns));
            }
        }
        Ok(Some(entries))
    }

    /// Forgets what is due at `now_ns` of CLOCK_MONOTONIC, and datagrams' flows whose backend is none any more.
    pub fn sweep(&self, now_ns: u64) -> Result<Swept, MapError> {
        let mut all: HashMap<Tuple, Flow> = self.map.read_all()?.into_iter().collect();
        let gone = self.gone_backends(&all)?;
        let seen = all.len();
        for tuple in due(&all, now_ns, &gone) {
            if self.map.get(&tuple)?.as_ref() == all.get(&tuple) {
                self.map.remove(&tuple)?;
                all.remove(&tuple);
            }
        }
        self.recount(&all)?;
        let policy_flows = self.sweep_policy_flows(now_ns)?;
        Ok(Swept { seen, deleted: seen - all.len(), census: Census::of(&all), policy_flows })
    }

    /// Forgets connections of policed pods. Returns how many are left.
    fn sweep_policy_flows(&self, now_ns: u64) -> Result<usize, MapError> {
        let all = self.policy_flows.read_all()?;
        let mut left = all.len();
        for (key, flow) in all {
            let idle = now_ns.saturating_sub(flow.last_seen_ns) / NS_PER_SECOND;
            if idle >= flow.timeout_seconds(&key) && self.policy_flows.get(&key)? == Some(flow) {
                self.policy_flows.remove(&key)?;
                left -= 1;
            }
        }
        Ok(left)
    }

    /// Counts the connections of backends anew, from the sockets and the flows that there are. What opens or closes
    /// meanwhile may be missed until the next time.
    fn recount(&self, all: &HashMap<Tuple, Flow>) -> Result<(), MapError> {
        let counted = self.open.read_all()?;
        if counted.is_empty() {
            return Ok(());
        }
        let mut open: HashMap<BackendId, i64> = counted.iter().map(|(id, _)| (*id, 0)).collect();
        let forward = all.values().filter(|flow| flow.is_forward() && !flow.is_closing());
        let sockets = self.sockets.read_all()?;
        for id in forward.map(|flow| flow.backend_id).chain(sockets.into_iter().map(|(_, id)| id)) {
            if let Some(count) = open.get_mut(&id) {
                *count += 1;
            }
        }
        for (id, before) in counted {
            match open.get(&id).copied().unwrap_or(0) {
                0 if self.backends.get(&id)?.is_none() => self.open.remove(&id)?,
                count if count != before => self.open.insert(&id, &count)?,
                _ => {}
            }
        }
        Ok(())
    }

    /// The backends of datagrams' flows that are none any more. An id is never given to another, so they stay that.
    fn gone_backends(&self, all: &HashMap<Tuple, Flow>) -> Result<HashSet<BackendId>, MapError> {
        let datagrams =
            all.iter().filter(|(tuple, flow)| tuple.protocol == Protocol::UDP && !flow.is_masqueraded());
        let mut ids: HashSet<BackendId> = datagrams.map(|(_, flow)| flow.backend_id).collect();
        let mut failed = Ok(());
        ids.retain(|id| match self.backends.get(id) {
            Ok(found) => found.is_none(),
            Err(error) => {
                failed = Err(error);
                false
            }
        });
        failed.map(|()| ids)
    }
}

/// CLOCK_MONOTONIC in nanoseconds, the clock of the programs.
pub fn now_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is a timespec that the call fills; CLOCK_MONOTONIC exists on every Linux.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    now.tv_sec as u64 * NS_PER_SECOND + now.tv_nsec as u64
}

/// The entries to delete; of a flow the client's first, so that a packet in between opens a new flow.
fn due(all: &HashMap<Tuple, Flow>, now_ns: u64, gone: &HashSet<BackendId>) -> Vec<Tuple> {
    let idle_seconds = |flow: &Flow| now_ns.saturating_sub(flow.last_seen_ns) / NS_PER_SECOND;
    let mut due = Vec::new();
    for (tuple, flow) in all {
        let other = flow.translated.reversed();
        let paired = all.get(&other).filter(|found| found.translated.reversed() == *tuple);
        match paired {
            None if idle_seconds(flow) >= LONE_SECONDS => due.push(*tuple),
            Some(reverse) if flow.is_forward() => {
                let idle = idle_seconds(flow).min(idle_seconds(reverse));
                let is_stale = tuple.protocol == Protocol::UDP
                    && !flow.is_masqueraded()
                    && gone.contains(&flow.backend_id);
                if is_stale || idle >= timeout_seconds(tuple.protocol, flow, reverse) {
                    due.extend([*tuple, other]);
                }
            }
            None | Some(_) => {}
        }
    }
    due
}

fn entry(tuple: &Tuple, forward: &Flow, reverse: Option<&Flow>, now_ns: u64) -> FlowEntry {
    let last_seen_ns = forward.last_seen_ns.max(reverse.map_or(0, |reverse| reverse.last_seen_ns));
    let to = &forward.translated;
    let half = |tuple: Tuple, flow: &Flow| Half {
        tuple,
        translated: flow.translated,
        seen: flow.seen != 0,
        fin: flow.fin != 0,
        rst: flow.rst != 0,
        said: flow.said,
        idle_seconds: now_ns.saturating_sub(flow.last_seen_ns) / NS_PER_SECOND,
    };
    let way = if forward.is_hairpin() {
        Way::Hairpin
    } else if forward.is_forwarded() {
        Way::Forwarded
    } else if forward.is_masqueraded() {
        Way::Masqueraded
    } else {
        Way::Direct
    };
    FlowEntry {
        protocol: tuple.protocol,
        client: (tuple.source.to_ip(), tuple.source_port.get()),
        frontend: (tuple.destination.to_ip(), tuple.destination_port.get()),
        backend: (to.destination.to_ip(), to.destination_port.get()),
        seen_as: (to.source.to_ip(), to.source_port.get()),
        service_id: forward.service_id.0,
        backend_id: forward.backend_id.0,
        answered: reverse.is_some_and(|reverse| reverse.seen != 0),
        closing: forward.is_closing() || reverse.is_some_and(Flow::is_closing),
        idle_seconds: now_ns.saturating_sub(last_seen_ns) / NS_PER_SECOND,
        timeout_seconds: reverse
            .map_or(LONE_SECONDS, |reverse| timeout_seconds(tuple.protocol, forward, reverse)),
        state: match reverse {
            Some(reverse) if tuple.protocol == Protocol::SCTP => State::of(forward, reverse).name(),
            _ => FlowState::of(tuple.protocol, forward, reverse).name(),
        },
        way,
        from_client: half(*tuple, forward),
        from_backend: reverse.map(|reverse| half(to.reversed(), reverse)),
    }
}

#[cfg(test)]
mod tests {
    use ebpf_common::{Address, BackendId, Direction, Port, ServiceId};

    use super::*;

    const SECOND: u64 = NS_PER_SECOND;

    fn flow(protocol: Protocol, seen_ns: (u64, u64)) -> [(Tuple, Flow); 2] {
        let client = Address::from_v4([10, 244, 0, 2]);
        let frontend = Address::from_v4([10, 96, 0, 1]);
        let backend = Address::from_v4([10, 244, 1, 2]);
        let tuple = Tuple::new(client, Port::new(40000), frontend, Port::new(80), protocol);
        let translated = Tuple::new(client, Port::new(40000), backend, Port::new(8080), protocol);
        let (service, id) = (ServiceId(1), BackendId(1));
        let forward = Flow::new(Direction::Forward, translated, service, id, false, seen_ns.0);
        let mut reverse = Flow::new(Direction::Reverse, tuple.reversed(), service, id, false, seen_ns.1);
        reverse.seen = 1;
        [(tuple, forward), (translated.reversed(), reverse)]
    }

    #[test]
    fn a_flow_lives_while_either_direction_is_heard() {
        let [forward, reverse] = flow(Protocol::UDP, (0, 1000 * SECOND));
        let all = HashMap::from([forward, reverse]);
        assert!(due(&all, 1179 * SECOND, &HashSet::new()).is_empty());
        assert_eq!(due(&all, 1180 * SECOND, &HashSet::new()), [forward.0, reverse.0]);
    }

    #[test]
    fn datagrams_are_forgotten_with_their_backend_and_connections_are_not() {
        let gone = HashSet::from([BackendId(1)]);
        let [forward, reverse] = flow(Protocol::UDP, (SECOND, SECOND));
        assert_eq!(due(&HashMap::from([forward, reverse]), SECOND, &gone), [forward.0, reverse.0]);
        assert!(due(&HashMap::from(flow(Protocol::TCP, (SECOND, SECOND))), SECOND, &gone).is_empty());
    }

    #[test]
    fn a_closed_connection_goes_long_before_an_open_one() {
        let [mut forward, mut reverse] = flow(Protocol::TCP, (0, 0));
        assert!(due(&HashMap::from([forward, reverse]), 7999 * SECOND, &HashSet::new()).is_empty());
        (forward.1.fin, reverse.1.fin) = (1, 1);
        assert_eq!(due(&HashMap::from([forward, reverse]), 120 * SECOND, &HashSet::new()).len(), 2);
    }

    #[test]
    fn half_a_flow_is_a_leftover_once_it_is_no_longer_new() {
        let [forward, reverse] = flow(Protocol::TCP, (5 * SECOND, 5 * SECOND));
        for lone in [forward, reverse] {
            let all = HashMap::from([lone]);
            assert!(due(&all, 14 * SECOND, &HashSet::new()).is_empty());
            assert_eq!(due(&all, 15 * SECOND, &HashSet::new()), [lone.0]);
        }
    }

    #[test]
    fn flows_are_counted_once_by_protocol_and_state() {
        let counts = |all: &[(Tuple, Flow)]| {
            let census = Census::of(&all.iter().copied().collect());
            let of = |protocol| FlowState::ALL.map(|state| census.count(protocol, state));
            (of(Protocol::TCP), of(Protocol::UDP), census.protocols())
        };
        let [forward, reverse] = flow(Protocol::TCP, (0, 0));
        assert_eq!(counts(&[forward]).0, [1, 0, 0, 0, 0, 0], "half a flow is a new one");
        assert_eq!(counts(&[reverse]).0, [0; 6], "answers belong to a flow");
        assert_eq!(counts(&[forward, reverse]).0, [0, 1, 0, 0, 0, 0]);
        let (mut done, mut gone) = (forward, reverse);
        done.1.fin = 1;
        assert_eq!(counts(&[done, reverse]).0, [0, 0, 0, 1, 0, 0]);
        gone.1.fin = 1;
        assert_eq!(counts(&[done, gone]).0, [0, 0, 0, 0, 1, 0]);
        gone.1.rst = 1;
        assert_eq!(counts(&[done, gone]).0, [0, 0, 0, 0, 0, 1]);
        let [asked, answer] = flow(Protocol::UDP, (0, 0));
        let both = counts(&[forward, reverse, asked, answer]);
        assert_eq!(both, ([0, 1, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0], vec![Protocol::TCP, Protocol::UDP]));
    }

    #[test]
    fn a_pods_flow_to_outside_lasts_as_any_but_for_questions_to_name_servers() {
        let pod = Address::from_v4([10, 244, 0, 2]);
        let node = Address::from_v4([10, 89, 0, 11]);
        let outside = Address::from_v4([203, 0, 113, 1]);
        for (port, seconds) in [(53, 10), (443, 180)] {
            let port = Port::new(port);
            let tuple = Tuple::new(pod, Port::new(40000), outside, port, Protocol::UDP);
            let translated = Tuple::new(node, Port::new(50000), outside, port, Protocol::UDP);
            let forward = Flow::masqueraded(Direction::Forward, translated, 0);
            let mut reverse = Flow::masqueraded(Direction::Reverse, tuple.reversed(), 0);
            reverse.seen = 1;
            let all = HashMap::from([(tuple, forward), (translated.reversed(), reverse)]);
            // No backend has the id that such flows have.
            let gone = HashSet::from([BackendId(0)]);
            assert!(due(&all, (seconds - 1) * SECOND, &gone).is_empty());
            assert_eq!(due(&all, seconds * SECOND, &gone), [tuple, translated.reversed()]);
        }
    }

    #[test]
    fn a_time_in_the_future_is_not_idle() {
        let all = HashMap::from(flow(Protocol::UDP, (u64::MAX, u64::MAX)));
        assert!(due(&all, 1000 * SECOND, &HashSet::new()).is_empty());
    }
}
