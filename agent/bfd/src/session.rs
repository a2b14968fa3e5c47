//! One session: the state machine of RFC 5880 section 6.8, its timers and its Poll Sequences.
//!
//! ```text
//! Down --Down received--> Init --Init or Up received--> Up        Down --Init received--> Up
//! Init, Up --detection time over, or AdminDown received--> Down   Up --Down received--> Down
//! ```
//!
//! Names of variables follow section 6.8.1. An increase of the interval sent, and a decrease of the interval received,
//! take effect when the peer has answered a Poll; all else does at once (section 6.8.3).
//!
//! At the end of the detection time the peer is looked for once more, a moment later: a host that was late to notice the end
//! was late to take in packets, too. That moment is as long as it was late, and half the detection time at most.

use std::fmt;
use std::time::{Duration, Instant};

use crate::packet::{Diagnostic, Packet, State};

/// What is sent at most while the session is not Up, in microseconds (section 6.8.3).
const SLOW: u32 = 1_000_000;
/// Between the end of the detection time and the verdict, at least.
const SECOND_LOOK_MIN: Duration = Duration::from_millis(1);

/// How a session is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Config {
    /// The least interval between packets sent: 10 ms to 10 s.
    pub send_interval: Duration,
    /// The least interval between packets received: 10 ms to 10 s.
    pub receive_interval: Duration,
    /// Packets of ours that the peer must miss to take us for dead; 1 to 255.
    pub multiplier: u8,
    pub hops: Hops,
}

/// Where the peer is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Hops {
    /// On the link: port 3784, and nothing is believed that a router has passed on (RFC 5881).
    #[default]
    Single,
    /// Up to so many hops away: port 4784 (RFC 5883).
    Multiple(u8),
}

impl Hops {
    /// The least TTL or hop limit of what is believed.
    pub fn ttl_min(self) -> u8 {
        match self {
            Hops::Single => u8::MAX,
            Hops::Multiple(hops) => u8::MAX - hops.max(1) + 1,
        }
    }
}

/// Why a session changed its state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Cause {
    /// Both sides hear each other, or begin to.
    Handshake,
    DetectionTimeExpired,
    /// The peer does not hear us.
    NeighborDown,
    /// The peer's operator has ended the session: that says nothing about the path.
    NeighborAdminDown,
    /// The peer has begun anew and says so: the path leads to it.
    NeighborRestarted,
    /// Our configuration has ended it.
    AdminDown,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Cause::Handshake => "packets arrive both ways",
            Cause::DetectionTimeExpired => "nothing was heard for the detection time",
            Cause::NeighborDown => "the peer says that it is down",
            Cause::NeighborAdminDown => "the peer's operator has ended it",
            Cause::NeighborRestarted => "the peer began anew",
            Cause::AdminDown => "ended by our configuration",
        })
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Poll {
    #[default]
    None,
    Running,
    /// Something changed after it began: its Final may be about what was before.
    RunningOutdated,
}

/// What a session wants after an input.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Reaction {
    pub send: Option<Packet>,
    /// The state before, and why it was left.
    pub change: Option<(State, Cause)>,
}

#[derive(Debug)]
pub(crate) struct Session {
    config: Config,
    pub state: State,
    pub diagnostic: Diagnostic,
    pub local_discriminator: u32,
    pub remote: Remote,
    /// What the peer is told, in microseconds.
    desired_min_tx: u32,
    required_min_rx: u32,
    /// What holds until a Poll is answered.
    min_tx_in_use: u32,
    min_rx_in_use: u32,
    poll: Poll,
    last_sent: Option<Instant>,
    next_send: Option<Instant>,
    /// The interval that `next_send` was made from.
    scheduled_interval: u32,
    last_received: Option<Instant>,
    /// The detection time is over; the verdict is due then.
    second_look: Option<Instant>,
}

/// What the peer said last. The default is what holds before it said anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Remote {
    /// 0 where it is not known.
    pub discriminator: u32,
    pub state: State,
    pub diagnostic: Diagnostic,
    pub multiplier: u8,
    /// Microseconds.
    pub desired_min_tx: u32,
    /// Microseconds; 0 asks for no periodic packets.
    pub required_min_rx: u32,
    pub demand: bool,
    /// Its BFD outlives its control plane: the C bit.
    pub control_plane_independent: bool,
}

impl Default for Remote {
    fn default() -> Remote {
        Remote {
            discriminator: 0,
            state: State::Down,
            diagnostic: Diagnostic::NONE,
            multiplier: 0,
            desired_min_tx: 0,
            required_min_rx: 1,
            demand: false,
            control_plane_independent: false,
        }
    }
}

fn micros(time: Duration) -> u32 {
    u32::try_from(time.as_micros()).unwrap_or(u32::MAX)
}

impl Session {
    /// Begins to send at `now`.
    pub fn new(config: Config, local_discriminator: u32, now: Instant) -> Session {
        let mut session = Session {
            config,
            state: State::Down,
            diagnostic: Diagnostic::NONE,
            local_discriminator,
            remote: Remote::default(),
            desired_min_tx: 0,
            required_min_rx: 0,
            min_tx_in_use: 0,
            min_rx_in_use: 0,
            poll: Poll::None,
            last_sent: None,
            next_send: Some(now),
            scheduled_interval: 0,
            last_received: None,
            second_look: None,
        };
        session.set_intervals();
        session.scheduled_interval = session.send_interval_micros();
        session
    }

    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Other intervals, from now on.
    pub fn set_config(&mut self, config: Config, now: Instant, jitter: u32) {
        self.config = config;
        self.set_intervals();
        self.schedule(now, jitter);
    }

    /// Tells the peer that this is no failure, for as long as it is ticked.
    pub fn disable(&mut self, now: Instant, jitter: u32) -> Reaction {
        let before = self.enter(State::AdminDown, Diagnostic::ADMINISTRATIVELY_DOWN);
        let send = self.send_at_once(false, now, jitter);
        Reaction { send, change: Some((before, Cause::AdminDown)) }
    }

    /// A packet that has passed all checks (RFC 5880 section 6.8.6). `jitter` is 0 to 255.
    pub fn received(&mut self, packet: &Packet, now: Instant, jitter: u32) -> Reaction {
        let began_anew =
            self.remote.discriminator != 0 && self.remote.discriminator != packet.my_discriminator;
        self.remote = Remote {
            discriminator: packet.my_discriminator,
            state: packet.state,
            diagnostic: packet.diagnostic,
            multiplier: packet.detect_multiplier,
            desired_min_tx: packet.desired_min_tx,
            required_min_rx: packet.required_min_rx,
            demand: packet.demand,
            control_plane_independent: packet.control_plane_independent,
        };
        if packet.is_final {
            self.end_poll();
        }
        if self.state == State::AdminDown {
            return Reaction::default();
        }
        self.last_received = Some(now);
        self.second_look = None;
        let change = self.transition(packet.state, began_anew);
        self.schedule(now, jitter);
        let send =
            if packet.poll || change.is_some() { self.send_at_once(packet.poll, now, jitter) } else { None };
        Reaction { send, change }
    }

    fn transition(&mut self, received: State, began_anew: bool) -> Option<(State, Cause)> {
        let (next, diagnostic, cause) = match (self.state, received) {
            (State::Down, State::Down) => (State::Init, self.diagnostic, Cause::Handshake),
            (State::Down, State::Init) | (State::Init, State::Init | State::Up) => {
                (State::Up, Diagnostic::NONE, Cause::Handshake)
            }
            (State::Init | State::Up, State::AdminDown) => {
                (State::Down, Diagnostic::NEIGHBOR_SIGNALED_DOWN, Cause::NeighborAdminDown)
            }
            (State::Up, State::Down) => {
                let cause = if began_anew { Cause::NeighborRestarted } else { Cause::NeighborDown };
                (State::Down, Diagnostic::NEIGHBOR_SIGNALED_DOWN, cause)
            }
            _ => return None,
        };
        Some((self.enter(next, diagnostic), cause))
    }

    /// Returns the state before.
    fn enter(&mut self, state: State, diagnostic: Diagnostic) -> State {
        let before = std::mem::replace(&mut self.state, state);
        self.diagnostic = diagnostic;
        self.poll = Poll::None;
        self.set_intervals();
        before
    }

    /// Time has passed, and all that had arrived was handed over.
    pub fn expire(&mut self, now: Instant, jitter: u32) -> Reaction {
        let mut reaction = Reaction::default();
        if self.is_silent(now) {
            self.last_received = None;
            self.second_look = None;
            self.remote = Remote::default();
            if matches!(self.state, State::Init | State::Up) {
                let before = self.enter(State::Down, Diagnostic::DETECTION_TIME_EXPIRED);
                reaction.change = Some((before, Cause::DetectionTimeExpired));
                reaction.send = self.send_at_once(false, now, jitter);
            }
            self.schedule(now, jitter);
        }
        if reaction.send.is_none() && self.next_send.is_some_and(|at| at <= now) {
            reaction.send = self.send_at_once(false, now, jitter);
        }
        reaction
    }

    fn is_silent(&mut self, now: Instant) -> bool {
        let Some((deadline, time)) = self.detection_deadline().zip(self.detection_time()) else {
            return false;
        };
        if now < deadline {
            return false;
        }
        let late = now.duration_since(deadline).min(time / 2).max(SECOND_LOOK_MIN);
        *self.second_look.get_or_insert(now + late) <= now
    }

    pub fn next_deadline(&self) -> Option<Instant> {
        [self.next_send, self.second_look.or_else(|| self.detection_deadline())].into_iter().flatten().min()
    }

    /// When the detection time is over, if nothing more arrives.
    fn detection_deadline(&self) -> Option<Instant> {
        Some(self.last_received? + self.detection_time()?)
    }

    /// How long the peer may be silent; `None` before it has said how often it sends (section 6.8.4).
    pub fn detection_time(&self) -> Option<Duration> {
        let interval = u64::from(self.receive_interval_micros()?);
        Some(Duration::from_micros(interval * u64::from(self.remote.multiplier)))
    }

    /// How long the peer waits for us.
    pub fn remote_detection_time(&self) -> Duration {
        Duration::from_micros(u64::from(self.send_interval_micros()) * u64::from(self.config.multiplier))
    }

    /// Between packets received, at most.
    pub fn receive_interval_micros(&self) -> Option<u32> {
        (self.remote.discriminator != 0).then(|| self.min_rx_in_use.max(self.remote.desired_min_tx))
    }

    /// Between packets sent, before jitter (section 6.8.2).
    pub fn send_interval_micros(&self) -> u32 {
        self.min_tx_in_use.max(self.remote.required_min_rx)
    }

    pub fn last_received(&self) -> Option<Instant> {
        self.last_received
    }

    pub fn is_polling(&self) -> bool {
        self.poll != Poll::None
    }

    /// Brings what the peer is told in line with the state and the configuration (section 6.8.3).
    fn set_intervals(&mut self) {
        let configured = micros(self.config.send_interval);
        let is_up = self.state == State::Up;
        let desired = if is_up { configured } else { configured.max(SLOW) };
        let required = micros(self.config.receive_interval);
        if (desired, required) == (self.desired_min_tx, self.required_min_rx) && self.poll == Poll::None {
            (self.min_tx_in_use, self.min_rx_in_use) = (desired, required);
            return;
        }
        let changed = (desired, required) != (self.desired_min_tx, self.required_min_rx);
        (self.desired_min_tx, self.required_min_rx) = (desired, required);
        if is_up {
            self.min_tx_in_use = self.min_tx_in_use.min(desired);
            self.min_rx_in_use = self.min_rx_in_use.max(required);
            if changed {
                self.poll = match self.poll {
                    Poll::None => Poll::Running,
                    Poll::Running | Poll::RunningOutdated => Poll::RunningOutdated,
                };
            }
        } else {
            (self.min_tx_in_use, self.min_rx_in_use) = (desired, required);
        }
    }

    fn end_poll(&mut self) {
        match self.poll {
            Poll::None => {}
            Poll::RunningOutdated => self.poll = Poll::Running,
            Poll::Running => {
                self.poll = Poll::None;
                (self.min_tx_in_use, self.min_rx_in_use) = (self.desired_min_tx, self.required_min_rx);
            }
        }
    }

    /// Whether packets are sent without being asked for (section 6.8.7).
    fn is_periodic(&self) -> bool {
        let demanded = self.remote.demand && self.state == State::Up && self.remote.state == State::Up;
        self.remote.required_min_rx != 0 && (!demanded || self.is_polling())
    }

    /// Keeps the next transmission where it is unless the interval has changed.
    fn schedule(&mut self, now: Instant, jitter: u32) {
        if !self.is_periodic() {
            self.next_send = None;
            return;
        }
        let interval = self.send_interval_micros();
        if self.next_send.is_none() || interval != self.scheduled_interval {
            self.scheduled_interval = interval;
            let next = self.last_sent.map_or(now, |sent| sent + self.jittered(interval, jitter));
            self.next_send = Some(next.max(now));
        }
    }

    /// 75 to 100 % of the interval; to 90 % where one lost packet is too many.
    fn jittered(&self, interval: u32, jitter: u32) -> Duration {
        let widest = if self.config.multiplier == 1 { 15 } else { 25 };
        let hundredths = 7500 + u64::from(jitter.min(255)) * widest * 100 / 255;
        Duration::from_micros(u64::from(interval) * hundredths / 10_000)
    }

    fn send_at_once(&mut self, is_final: bool, now: Instant, jitter: u32) -> Option<Packet> {
        // An answer to a Poll is owed even to a peer that wants nothing else.
        if !is_final && self.remote.required_min_rx == 0 {
            self.next_send = None;
            return None;
        }
        self.last_sent = Some(now);
        self.next_send = None;
        self.schedule(now, jitter);
        Some(self.packet(is_final))
    }

    fn packet(&self, is_final: bool) -> Packet {
        Packet {
            diagnostic: self.diagnostic,
            state: self.state,
            poll: !is_final && self.is_polling(),
            is_final,
            control_plane_independent: false,
            authentication: false,
            demand: false,
            detect_multiplier: self.config.multiplier,
            my_discriminator: self.local_discriminator,
            your_discriminator: self.remote.discriminator,
            desired_min_tx: self.desired_min_tx,
            required_min_rx: self.required_min_rx,
            required_min_echo_rx: 0,
        }
    }
}
