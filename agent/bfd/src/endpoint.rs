//! All sessions of one host: whose a packet is, which session is due next, and what happened.
//!
//! A session has one entry in the heap of deadlines. A packet that moves its deadline further leaves the entry where it
//! is; when that comes up, it is put back. So a packet costs no change of the heap, and nothing is allocated for it.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap, VecDeque};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use crate::packet::{Diagnostic, LENGTH, Packet, State};
use crate::refusal::{Refusal, Refusals};
use crate::session::{Cause, Config, Hops, Reaction, Remote, Session};

/// How long the peer of a session that was configured away is told so, at least.
const FAREWELL_MIN: Duration = Duration::from_secs(1);
/// Outdated entries in the heap of deadlines, beside one for each session, before it is made anew.
const DEADLINES_SPARE: usize = 64;

#[derive(Clone, Copy, Debug)]
pub enum Input<'a> {
    Received(Arrival<'a>),
    /// Time has passed, and all that had arrived was handed over.
    Tick,
    /// Packets cannot be sent to the peer; counted until the next one can.
    SendFailed {
        peer: IpAddr,
    },
}

/// A datagram at one of the ports.
#[derive(Clone, Copy, Debug)]
pub struct Arrival<'a> {
    pub source: IpAddr,
    /// It came to the port for peers beyond the link.
    pub multihop: bool,
    /// TTL or hop limit, where the system told it.
    pub ttl: Option<u8>,
    pub payload: &'a [u8],
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Output {
    /// TTL 255, from a port of its own among 49152 to 65535.
    Send {
        peer: IpAddr,
        multihop: bool,
        packet: [u8; LENGTH],
    },
    Changed(Change),
    /// The session is over: its socket can be closed.
    Closed {
        peer: IpAddr,
    },
}

/// A session has changed its state.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Change {
    pub peer: IpAddr,
    pub before: State,
    pub state: State,
    pub cause: Cause,
    /// When the peer was heard last, as far as it is known.
    pub heard_at: Option<Instant>,
    /// The peer's BFD outlives its control plane: its failure is one of forwarding (RFC 5882 section 4.3).
    pub control_plane_independent: bool,
}

impl Change {
    /// Whether the path to the peer has failed, so that protocols over it should not wait for their own timers.
    pub fn is_failure(&self) -> bool {
        self.before == State::Up
            && self.state == State::Down
            && matches!(self.cause, Cause::DetectionTimeExpired | Cause::NeighborDown)
    }
}

/// A session, for display.
#[derive(Clone, Debug)]
pub struct SessionStatus {
    pub peer: IpAddr,
    pub config: Config,
    pub state: State,
    pub diagnostic: Diagnostic,
    pub local_discriminator: u32,
    pub remote: Remote,
    /// Between packets sent, before jitter.
    pub send_interval: Duration,
    /// Between packets received at most; `None` before the peer was heard.
    pub receive_interval: Option<Duration>,
    pub detection_time: Option<Duration>,
    pub is_polling: bool,
    pub packets_sent: u64,
    pub packets_received: u64,
    pub send_failures: u64,
    pub refusals: Refusals,
    /// How often the session was lost.
    pub failures: u64,
    pub last_change: Option<(Instant, Cause)>,
    pub last_received: Option<Instant>,
}

#[derive(Debug)]
struct Entry {
    peer: IpAddr,
    session: Session,
    /// When its place in the heap comes up.
    armed: Option<Instant>,
    /// Configured away: until when the peer is told so.
    farewell_until: Option<Instant>,
    packets_sent: u64,
    packets_received: u64,
    send_failures: u64,
    refusals: Refusals,
    failures: u64,
    last_change: Option<(Instant, Cause)>,
}

/// SplitMix64: discriminators that nobody guesses from afar need a seed that nobody knows.
#[derive(Debug)]
struct Random(u64);

impl Random {
    fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// 0 to 255.
    fn jitter(&mut self) -> u32 {
        (self.number() >> 56) as u32
    }
}

#[derive(Debug)]
pub struct Endpoint {
    /// By local discriminator.
    entries: HashMap<u32, Entry>,
    discriminator_by_peer: HashMap<IpAddr, u32>,
    deadlines: BinaryHeap<Reverse<(Instant, u32)>>,
    outputs: VecDeque<Output>,
    random: Random,
    refusals: Refusals,
}

impl Endpoint {
    /// `seed` makes discriminators and jitter: it should be random.
    pub fn new(seed: u64) -> Endpoint {
        Endpoint {
            entries: HashMap::new(),
            discriminator_by_peer: HashMap::new(),
            deadlines: BinaryHeap::new(),
            outputs: VecDeque::new(),
            random: Random(seed),
            refusals: Refusals::default(),
        }
    }

    /// Makes the sessions equal `desired`. Those gone tell their peers that they were ended on purpose; new intervals are
    /// agreed on with a Poll Sequence, without losing the session.
    pub fn set_peers(&mut self, desired: &BTreeMap<IpAddr, Config>, now: Instant) {
        let gone: Vec<IpAddr> =
            self.discriminator_by_peer.keys().filter(|peer| !desired.contains_key(*peer)).copied().collect();
        for peer in gone {
            self.say_farewell(peer, now);
        }
        for (peer, config) in desired {
            let known = self.discriminator_by_peer.get(peer).copied();
            let Some(entry) = known.and_then(|discriminator| self.entries.get_mut(&discriminator)) else {
                self.add(*peer, *config, now);
                continue;
            };
            let is_over = entry.farewell_until.is_some();
            if is_over || entry.session.config().hops != config.hops {
                self.remove(*peer);
                self.add(*peer, *config, now);
            } else if entry.session.config() != config {
                let jitter = self.random.jitter();
                entry.session.set_config(*config, now, jitter);
                let discriminator = entry.session.local_discriminator;
                self.arm(discriminator);
            }
        }
    }

    fn add(&mut self, peer: IpAddr, config: Config, now: Instant) {
        let discriminator = loop {
            let candidate = self.random.number() as u32;
            if candidate != 0 && !self.entries.contains_key(&candidate) {
                break candidate;
            }
        };
        let entry = Entry {
            peer,
            session: Session::new(config, discriminator, now),
            armed: None,
            farewell_until: None,
            packets_sent: 0,
            packets_received: 0,
            send_failures: 0,
            refusals: Refusals::default(),
            failures: 0,
            last_change: None,
        };
        self.entries.insert(discriminator, entry);
        self.discriminator_by_peer.insert(peer, discriminator);
        self.arm(discriminator);
    }

    fn say_farewell(&mut self, peer: IpAddr, now: Instant) {
        let Some(discriminator) = self.discriminator_by_peer.get(&peer).copied() else { return };
        let Some(entry) = self.entries.get_mut(&discriminator) else { return };
        if entry.farewell_until.is_some() {
            return;
        }
        entry.farewell_until = Some(now + entry.session.remote_detection_time().max(FAREWELL_MIN));
        let jitter = self.random.jitter();
        let reaction = entry.session.disable(now, jitter);
        self.react(discriminator, reaction, now);
    }

    /// Tells every peer, once, that its session is ended on purpose: for the end of the process.
    pub fn disable_all(&mut self, now: Instant) {
        let peers: Vec<IpAddr> = self.discriminator_by_peer.keys().copied().collect();
        peers.into_iter().for_each(|peer| self.say_farewell(peer, now));
    }

    fn remove(&mut self, peer: IpAddr) {
        if let Some(discriminator) = self.discriminator_by_peer.remove(&peer) {
            self.entries.remove(&discriminator);
            self.outputs.push_back(Output::Closed { peer });
        }
    }

    pub fn handle(&mut self, input: Input<'_>, now: Instant) {
        match input {
            Input::Received(arrival) => {
                if let Err(refusal) = self.received(&arrival, now) {
                    self.refuse(arrival.source, refusal);
                }
            }
            Input::Tick => self.expire(now),
            Input::SendFailed { peer } => {
                if let Some(entry) = self.entry_of(peer) {
                    entry.send_failures += 1;
                }
            }
        }
    }

    fn entry_of(&mut self, peer: IpAddr) -> Option<&mut Entry> {
        let discriminator = self.discriminator_by_peer.get(&peer)?;
        self.entries.get_mut(discriminator)
    }

    fn refuse(&mut self, source: IpAddr, refusal: Refusal) {
        self.refusals.add(refusal);
        if let Some(entry) = self.entry_of(source) {
            entry.refusals.add(refusal);
        }
    }

    /// The checks of RFC 5880 section 6.8.6, in its order, after those of the IP header.
    fn received(&mut self, arrival: &Arrival<'_>, now: Instant) -> Result<(), Refusal> {
        let of_source = self.discriminator_by_peer.get(&arrival.source).copied();
        let known = of_source.and_then(|discriminator| self.entries.get(&discriminator));
        let hops = known.map(|entry| entry.session.config().hops);
        // Without a session the packet is refused anyway, for the reason that tells more.
        let is_expected = hops.is_none_or(|hops| {
            (hops != Hops::Single) == arrival.multihop && arrival.ttl.is_some_and(|ttl| ttl >= hops.ttl_min())
        });
        if !is_expected {
            return Err(Refusal::HopLimit);
        }
        let packet = Packet::decode(arrival.payload)?;
        let discriminator = if packet.your_discriminator != 0 {
            let entry = self.entries.get(&packet.your_discriminator).ok_or(Refusal::UnknownDiscriminator)?;
            if entry.peer != arrival.source {
                return Err(Refusal::OtherPeer);
            }
            packet.your_discriminator
        } else if matches!(packet.state, State::Down | State::AdminDown) {
            of_source.ok_or(Refusal::UnknownPeer)?
        } else {
            return Err(Refusal::YourDiscriminatorZero);
        };
        if packet.authentication {
            return Err(Refusal::Authentication);
        }
        let jitter = self.random.jitter();
        let Some(entry) = self.entries.get_mut(&discriminator) else { return Err(Refusal::UnknownPeer) };
        entry.packets_received += 1;
        let reaction = entry.session.received(&packet, now, jitter);
        self.react(discriminator, reaction, now);
        Ok(())
    }

    fn expire(&mut self, now: Instant) {
        while let Some(Reverse((at, discriminator))) = self.deadlines.peek().copied() {
            if at > now {
                return;
            }
            self.deadlines.pop();
            // One that was replaced by an earlier one, or whose session is gone.
            let Some(entry) = self.entries.get_mut(&discriminator).filter(|entry| entry.armed == Some(at))
            else {
                continue;
            };
            entry.armed = None;
            if entry.farewell_until.is_some_and(|until| until <= now) {
                let peer = entry.peer;
                self.remove(peer);
                continue;
            }
            let jitter = self.random.jitter();
            let heard_at = entry.session.last_received();
            let independent = entry.session.remote.control_plane_independent;
            let reaction = entry.session.expire(now, jitter);
            self.react_after(discriminator, reaction, (heard_at, independent), now);
        }
    }

    fn react(&mut self, discriminator: u32, reaction: Reaction, now: Instant) {
        let Some(entry) = self.entries.get(&discriminator) else { return };
        let known = (entry.session.last_received(), entry.session.remote.control_plane_independent);
        self.react_after(discriminator, reaction, known, now);
    }

    fn react_after(
        &mut self,
        discriminator: u32,
        reaction: Reaction,
        (heard_at, control_plane_independent): (Option<Instant>, bool),
        now: Instant,
    ) {
        let Some(entry) = self.entries.get_mut(&discriminator) else { return };
        let peer = entry.peer;
        if let Some(packet) = reaction.send {
            entry.packets_sent += 1;
            let multihop = entry.session.config().hops != Hops::Single;
            self.outputs.push_back(Output::Send { peer, multihop, packet: packet.encode() });
        }
        if let Some((before, cause)) = reaction.change {
            let state = entry.session.state;
            let change = Change { peer, before, state, cause, heard_at, control_plane_independent };
            entry.last_change = Some((now, cause));
            entry.failures += u64::from(change.is_failure());
            self.outputs.push_back(Output::Changed(change));
        }
        self.arm(discriminator);
    }

    /// Sees to it that the session comes up by its next deadline.
    fn arm(&mut self, discriminator: u32) {
        let Some(entry) = self.entries.get_mut(&discriminator) else { return };
        let next = [entry.session.next_deadline(), entry.farewell_until].into_iter().flatten().min();
        if let Some(next) = next.filter(|next| entry.armed.is_none_or(|armed| *next < armed)) {
            entry.armed = Some(next);
            self.deadlines.push(Reverse((next, discriminator)));
        }
        // A peer that moves its deadline back and forth leaves entries behind.
        if self.deadlines.len() > 2 * self.entries.len() + DEADLINES_SPARE {
            self.deadlines.clear();
            let armed = self.entries.iter().filter_map(|(key, entry)| Some(Reverse((entry.armed?, *key))));
            self.deadlines.extend(armed);
        }
    }

    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// Until when nothing happens by itself. It may be early, never late.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.peek().map(|Reverse((at, _))| *at)
    }

    /// Of all packets, also of those that no session could be found for.
    pub fn refusals(&self) -> Refusals {
        self.refusals
    }

    /// By peer; those that were configured away are not shown.
    pub fn status(&self) -> Vec<SessionStatus> {
        let shown = self.entries.values().filter(|entry| entry.farewell_until.is_none());
        let mut all: Vec<SessionStatus> = shown.map(Entry::status).collect();
        all.sort_by_key(|session| session.peer);
        all
    }
}

impl Entry {
    fn status(&self) -> SessionStatus {
        let micros = |interval: u32| Duration::from_micros(u64::from(interval));
        SessionStatus {
            peer: self.peer,
            config: *self.session.config(),
            state: self.session.state,
            diagnostic: self.session.diagnostic,
            local_discriminator: self.session.local_discriminator,
            remote: self.session.remote,
            send_interval: micros(self.session.send_interval_micros()),
            receive_interval: self.session.receive_interval_micros().map(micros),
            detection_time: self.session.detection_time(),
            is_polling: self.session.is_polling(),
            packets_sent: self.packets_sent,
            packets_received: self.packets_received,
            send_failures: self.send_failures,
            refusals: self.refusals,
            failures: self.failures,
            last_change: self.last_change,
            last_received: self.session.last_received(),
        }
    }
}

#[cfg(test)]
mod tests;
