//! The finite state machine of one peer (RFC 4271 section 8), over up to two TCP connections.
//!
//! ```text
//! Idle -> Connect | Active -> OpenSent -> OpenConfirm -> Established
//! ```
//!
//! The driver opens, accepts, reads and closes sockets and names each with a `ConnectionId`. A peer that comes back
//! while its old connection still looks alive replaces it where graceful restart was negotiated (RFC 4724 section 4.2).
//!
//! Where both sides connect at once, RFC 4271 section 6.8 lets each end the connection that the other keeps: one has heard
//! the last KEEPALIVE, and keeps what is established, the other has not, and goes by identifiers. Here that cannot be. On a
//! second connection nothing is said before the peer's OPEN (`DelayOpen`), and what is lost by then is closed without ours:
//! on what we close the peer has never heard of us. The first connection stays once the peer's OPEN has come on it; before
//! that, the one stays that the side with the higher identifier began.

mod negotiation;

use std::collections::VecDeque;
use std::fmt;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::config::AddPath;
use crate::prefix::{Families, Family};
use crate::wire::notification::{self, cease};
use crate::wire::{self, DecodeContext, Message, Notification, Open, Refresh, Update};
pub use negotiation::Negotiated;

/// Names a TCP connection; the driver picks them, never twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnectionId(pub u64);

/// RFC 4271 suggests four minutes before an OPEN has come; a minute frees a stuck slot sooner.
const OPEN_HOLD_TIME: Duration = Duration::from_secs(60);
/// Within this time of Established a second connection is a collision, after it a restarted peer.
const COLLISION_WINDOW: Duration = Duration::from_secs(2);
/// First reconnect after an established session ended.
const RECONNECT_DELAY: Duration = Duration::from_millis(500);
const SEND_HOLD_TIME_MIN: Duration = Duration::from_secs(480);
const CONNECT_RETRY_MAX: Duration = Duration::from_secs(30);

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    pub local_asn: u32,
    pub router_id: Ipv4Addr,
    /// `None` takes any AS number.
    pub remote_asn: Option<u32>,
    /// Proposed hold time, whole seconds: 0 or 3 to 65535.
    pub hold_time: Duration,
    /// A third of the negotiated hold time at most, and where `None`.
    pub keepalive_time: Option<Duration>,
    /// Delay before a second attempt; doubles to 30 s.
    pub connect_retry: Duration,
    /// Never connects, only accepts.
    pub passive: bool,
    pub families: Vec<Family>,
    /// Restart time announced with graceful restart, 0 to 4095 s; 0 leaves the capability out.
    pub restart_time: Duration,
    /// RFC 9494; `None` leaves the capability out.
    pub long_lived_stale_time: Option<Duration>,
    pub add_path: AddPath,
    pub extended_next_hop: bool,
}

impl Config {
    /// What a session that is up was not agreed on, or may do without: times, and who connects.
    pub fn apart_from_times(&self) -> Config {
        Config {
            passive: false,
            hold_time: Duration::ZERO,
            keepalive_time: None,
            connect_retry: Duration::ZERO,
            restart_time: Duration::ZERO,
            long_lived_stale_time: None,
            ..self.clone()
        }
    }
}

/// The states of RFC 4271 section 8.2.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum State {
    Idle,
    Connect,
    Active,
    OpenSent,
    OpenConfirm,
    Established,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    Outgoing,
    Incoming,
}

#[derive(Clone, Debug)]
pub enum Input<'a> {
    Start,
    /// Ends the session with this; it stays ended until `Start`.
    Stop(Notification),
    Connected(ConnectionId),
    ConnectFailed,
    Accepted(ConnectionId),
    Received(ConnectionId, &'a [u8]),
    Closed(ConnectionId),
    /// The peer's TCP took something of what was sent.
    Sent(ConnectionId),
    /// BFD has lost the path to the peer: an established session ends, and its routes go.
    PathFailed,
    /// Time has passed.
    Tick,
}

#[derive(Clone, Debug, PartialEq)]
pub enum Output {
    /// Open a TCP connection to the peer.
    Connect,
    Send(ConnectionId, Arc<[u8]>),
    /// Close after what was sent is flushed.
    Close(ConnectionId),
    Established(Box<Negotiated>),
    Update(Box<Update>),
    Refresh(Family, Refresh),
    Down(Down),
}

/// Why an established session, or an attempt, ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Down {
    pub reason: DownReason,
    /// The session had been established.
    pub was_established: bool,
    /// Routes of these families are to be kept as stale (RFC 4724, RFC 8538).
    pub retain: Vec<Family>,
}

#[derive(Clone, Debug, PartialEq)]
pub enum DownReason {
    ConnectionClosed,
    HoldTimerExpired,
    /// The peer read nothing for too long (RFC 9687).
    SendHoldTimerExpired,
    NotificationSent(Notification),
    NotificationReceived(Notification),
    /// The peer opened a new connection after a restart.
    Replaced,
    Stopped,
}

impl DownReason {
    /// BFD has lost the path, here or at the peer (RFC 9384).
    pub fn is_path_failure(&self) -> bool {
        match self {
            DownReason::NotificationSent(n) | DownReason::NotificationReceived(n) => n.is_bfd_down(),
            _ => false,
        }
    }
}

impl fmt::Display for DownReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DownReason::ConnectionClosed => write!(f, "connection closed"),
            DownReason::HoldTimerExpired => write!(f, "hold timer expired"),
            DownReason::SendHoldTimerExpired => write!(f, "send hold timer expired: the peer reads nothing"),
            DownReason::NotificationSent(n) => write!(f, "sent NOTIFICATION {n}"),
            DownReason::NotificationReceived(n) => write!(f, "received NOTIFICATION {n}"),
            DownReason::Replaced => write!(f, "peer reconnected"),
            DownReason::Stopped => write!(f, "stopped"),
        }
    }
}

#[derive(Debug)]
struct Connection {
    id: ConnectionId,
    direction: Direction,
    state: State,
    buffer: Vec<u8>,
    hold_time: Duration,
    keepalive_time: Duration,
    hold_deadline: Option<Instant>,
    keepalive_deadline: Option<Instant>,
    send_hold_deadline: Option<Instant>,
    negotiated: Option<Negotiated>,
    established_at: Option<Instant>,
}

/// The FSM of one peer.
#[derive(Debug)]
pub struct Session {
    config: Config,
    started: bool,
    connecting: bool,
    attempts: u32,
    retry_deadline: Option<Instant>,
    connections: Vec<Connection>,
    outputs: VecDeque<Output>,
    /// Set while our own restart has not converged: the R bit.
    pub restarting: bool,
    pub messages_received: u64,
    pub messages_sent: u64,
}

impl Session {
    pub fn new(config: Config) -> Session {
        Session {
            config,
            started: false,
            connecting: false,
            attempts: 0,
            retry_deadline: None,
            connections: Vec::new(),
            outputs: VecDeque::new(),
            restarting: false,
            messages_received: 0,
            messages_sent: 0,
        }
    }

    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The most advanced state of the peer's connections.
    pub fn state(&self) -> State {
        let connection = self.connections.iter().map(|c| c.state).max();
        connection.unwrap_or(match (self.started, self.connecting) {
            (false, _) => State::Idle,
            (true, true) => State::Connect,
            (true, false) => State::Active,
        })
    }

    pub fn negotiated(&self) -> Option<&Negotiated> {
        self.established().and_then(|c| c.negotiated.as_ref())
    }

    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    pub fn next_deadline(&self) -> Option<Instant> {
        let timers = self
            .connections
            .iter()
            .flat_map(|c| [c.hold_deadline, c.keepalive_deadline, c.send_hold_deadline]);
        timers.chain([self.retry_deadline]).flatten().min()
    }

    /// Whether the session may connect by itself, from now on.
    pub fn set_passive(&mut self, passive: bool, now: Instant) {
        self.config.passive = passive;
        if !passive && self.started && self.connections.is_empty() && !self.connecting {
            self.retry_deadline.get_or_insert(now);
        }
    }

    /// Takes the times of a configuration: for keepalives now, as nobody was told of theirs; what OPENs agree on, the hold
    /// time and those of restarts, from the next session on.
    pub fn set_times(&mut self, times: &Config, now: Instant) {
        let passive = self.config.passive;
        self.config = Config { passive, ..times.clone() };
        for connection in &mut self.connections {
            let Some(negotiated) = &mut connection.negotiated else { continue };
            let keepalive_time = negotiation::keepalive_time(&self.config, negotiated.hold_time);
            if connection.keepalive_time != keepalive_time {
                (negotiated.keepalive_time, connection.keepalive_time) = (keepalive_time, keepalive_time);
                // The next one comes no later than either time has it.
                let at = connection.keepalive_deadline.map(|at| at.min(now + keepalive_time));
                connection.keepalive_deadline = at;
            }
        }
    }

    pub fn handle(&mut self, input: Input<'_>, now: Instant) {
        match input {
            Input::Start => self.start(now),
            Input::Stop(notification) => self.stop(&notification),
            Input::Connected(id) => {
                self.connecting = false;
                self.open(id, Direction::Outgoing, now);
            }
            Input::ConnectFailed => {
                self.connecting = false;
                self.schedule_retry(now);
            }
            Input::Accepted(id) => self.open(id, Direction::Incoming, now),
            Input::Received(id, octets) => self.received(id, octets, now),
            Input::Closed(id) => self.end(id, DownReason::ConnectionClosed, now),
            Input::Sent(id) => {
                if let Some(index) = self.index(id) {
                    self.connections[index].restart_send_hold_timer(now);
                }
            }
            Input::PathFailed => self.path_failed(now),
            Input::Tick => {}
        }
        self.expire(now);
    }

    /// RFC 9384. The peer is not to keep our routes either (RFC 8538 section 4), if it hears that at all.
    fn path_failed(&mut self, now: Instant) {
        let Some(negotiated) = self.negotiated() else { return };
        let (id, keeps) = (negotiated.connection, negotiated.notification_restart);
        let down = Notification::cease(cease::BFD_DOWN);
        self.fail(id, if keeps { down.hard() } else { down }, now);
    }

    fn start(&mut self, now: Instant) {
        if !self.started {
            self.started = true;
            self.attempts = 0;
            self.retry_deadline = (!self.config.passive).then_some(now);
        }
    }

    fn stop(&mut self, notification: &Notification) {
        self.started = false;
        self.retry_deadline = None;
        for connection in std::mem::take(&mut self.connections) {
            // RFC 8538 section 4: else the peer would keep our routes.
            let keeps = connection.negotiated.as_ref().is_some_and(|n| n.notification_restart);
            let for_good = if keeps { notification.hard() } else { notification.clone() };
            self.output_send(connection.id, wire::encode_notification(&for_good));
            self.outputs.push_back(Output::Close(connection.id));
            if connection.state == State::Established {
                let down = Down { reason: DownReason::Stopped, was_established: true, retain: Vec::new() };
                self.outputs.push_back(Output::Down(down));
            }
        }
    }

    /// A TCP connection is up: sends OPEN and waits for the peer's.
    fn open(&mut self, id: ConnectionId, direction: Direction, now: Instant) {
        let outgoing_is_late = direction == Direction::Outgoing && self.established().is_some();
        if !self.started || outgoing_is_late {
            self.outputs.push_back(Output::Close(id));
            return;
        }
        // A second connection of the same direction: the peer has given the first one up.
        let abandoned = self
            .connections
            .iter()
            .find(|c| c.direction == direction && c.state < State::Established)
            .map(|c| c.id);
        if let Some(old) = abandoned {
            self.connections.retain(|c| c.id != old);
            self.outputs.push_back(Output::Close(old));
            self.send_delayed_open();
        }
        let is_first = self.connections.is_empty();
        self.connections.push(Connection {
            id,
            direction,
            state: State::Active,
            buffer: Vec::new(),
            hold_time: OPEN_HOLD_TIME,
            keepalive_time: OPEN_HOLD_TIME / 3,
            hold_deadline: Some(now + OPEN_HOLD_TIME),
            keepalive_deadline: None,
            send_hold_deadline: None,
            negotiated: None,
            established_at: None,
        });
        if is_first {
            self.send_open(id);
        }
    }

    fn send_open(&mut self, id: ConnectionId) {
        let Some(index) = self.index(id) else { return };
        self.connections[index].state = State::OpenSent;
        let open = wire::encode_open(&self.local_open());
        self.output_send(id, open);
    }

    /// What is left alone need not wait any more.
    fn send_delayed_open(&mut self) {
        if let [only] = &self.connections[..]
            && only.state == State::Active
        {
            self.send_open(only.id);
        }
    }

    fn local_open(&self) -> Open {
        negotiation::local_open(&self.config, self.restarting)
    }

    fn received(&mut self, id: ConnectionId, octets: &[u8], now: Instant) {
        let Some(index) = self.index(id) else { return };
        let connection = &mut self.connections[index];
        connection.buffer.extend_from_slice(octets);
        let mut consumed = 0;
        loop {
            let Some(index) = self.index(id) else { return };
            let connection = &self.connections[index];
            let rest = &connection.buffer[consumed..];
            let context = connection.decode_context();
            let extended = connection.state == State::Established
                && connection.negotiated.as_ref().is_some_and(Negotiated::extended_message);
            let message = match wire::message_length(rest, extended) {
                Ok(Some(length)) if rest.len() >= length => {
                    consumed += length;
                    wire::decode(&rest[..length], &context)
                }
                Ok(_) => break,
                Err(notification) => Err(notification),
            };
            match message {
                Ok(message) => {
                    self.messages_received += 1;
                    self.message(id, message, now);
                }
                Err(notification) => return self.fail(id, notification, now),
            }
        }
        if let Some(index) = self.index(id) {
            self.connections[index].buffer.drain(..consumed);
        }
    }

    fn message(&mut self, id: ConnectionId, message: Message, now: Instant) {
        let Some(index) = self.index(id) else { return };
        let connection = &mut self.connections[index];
        match (connection.state, message) {
            (_, Message::Notification(notification)) => {
                self.end(id, DownReason::NotificationReceived(notification), now);
            }
            (State::Active | State::OpenSent, Message::Open(open)) => self.received_open(id, &open, now),
            (State::OpenConfirm, Message::Keepalive) => {
                connection.restart_hold_timer(now);
                self.establish(id, now);
            }
            (State::Established, Message::Keepalive) => connection.restart_hold_timer(now),
            (State::Established, Message::Update(update)) => {
                connection.restart_hold_timer(now);
                self.outputs.push_back(Output::Update(update));
            }
            (State::Established, Message::RouteRefresh(refresh)) => {
                connection.restart_hold_timer(now);
                if let Some((family, kind)) = refresh {
                    self.outputs.push_back(Output::Refresh(family, kind));
                }
            }
            (state, _) => {
                let subcode = match state {
                    State::OpenSent => 1,
                    State::OpenConfirm => 2,
                    _ => 3,
                };
                let code = notification::FINITE_STATE_MACHINE_ERROR;
                self.fail(id, Notification::new(code, subcode), now);
            }
        }
    }

    fn received_open(&mut self, id: ConnectionId, open: &Open, now: Instant) {
        let config = &self.config;
        let internal = open.asn == config.local_asn;
        if config.remote_asn.is_some_and(|asn| asn != open.asn) {
            return self.fail(id, Notification::new(notification::OPEN_MESSAGE_ERROR, 2), now);
        }
        // RFC 6286: inside one AS the identifier must differ.
        if internal && open.router_id == config.router_id {
            return self.fail(id, Notification::new(notification::OPEN_MESSAGE_ERROR, 3), now);
        }
        if !self.resolve_collision(id, open, now) {
            return;
        }
        let negotiated = negotiation::negotiate(&self.config, id, open);
        if self.index(id).is_some_and(|index| self.connections[index].state == State::Active) {
            self.send_open(id);
        }
        let Some(index) = self.index(id) else { return };
        let connection = &mut self.connections[index];
        connection.hold_time = negotiated.hold_time;
        connection.keepalive_time = negotiated.keepalive_time;
        connection.restart_send_hold_timer(now);
        connection.restart_hold_timer(now);
        connection.restart_keepalive_timer(now);
        connection.negotiated = Some(negotiated);
        connection.state = State::OpenConfirm;
        self.output_send(id, wire::encode_keepalive());
    }

    /// Returns whether connection `id`, on which the peer's OPEN has come, survives (RFC 4271 section 6.8).
    fn resolve_collision(&mut self, id: ConnectionId, open: &Open, now: Instant) -> bool {
        let Some(other) = self.connections.iter().find(|c| c.id != id) else { return true };
        let Some(this) = self.connections.iter().find(|c| c.id == id) else { return false };
        let (other_id, other_direction) = (other.id, other.direction);
        match other.state {
            State::Established
                if other.established_at.is_some_and(|at| now.duration_since(at) > COLLISION_WINDOW)
                    && other.negotiated.as_ref().is_some_and(|n| n.graceful_restart.is_some()) =>
            {
                self.outputs.push_back(Output::Close(other_id));
                self.end(other_id, DownReason::Replaced, now);
                return true;
            }
            // The peer may hold it established.
            State::Established | State::OpenConfirm => {
                self.lose_collision(id);
                return false;
            }
            // Nothing was said on it, and nothing will be unless this one ends.
            State::Idle | State::Connect | State::Active => return true,
            State::OpenSent => {}
        }
        // The connection that the speaker with the higher identifier initiated stays; by AS where equal.
        let local = (u32::from(self.config.router_id), self.config.local_asn);
        let remote = (u32::from(open.router_id), open.asn);
        let keep = if local < remote { Direction::Incoming } else { Direction::Outgoing };
        let survives = this.direction == keep || other_direction == this.direction;
        self.lose_collision(if survives { other_id } else { id });
        survives
    }

    fn lose_collision(&mut self, id: ConnectionId) {
        let collision = Notification::cease(cease::CONNECTION_COLLISION_RESOLUTION);
        self.output_send(id, wire::encode_notification(&collision));
        self.outputs.push_back(Output::Close(id));
        self.connections.retain(|c| c.id != id);
        self.send_delayed_open();
    }

    fn establish(&mut self, id: ConnectionId, now: Instant) {
        let Some(index) = self.index(id) else { return };
        let connection = &mut self.connections[index];
        connection.state = State::Established;
        connection.established_at = Some(now);
        self.attempts = 0;
        self.retry_deadline = None;
        let negotiated = connection.negotiated.clone().expect("OpenConfirm is entered after negotiation");
        self.outputs.push_back(Output::Established(Box::new(negotiated)));
        let waiting: Vec<ConnectionId> =
            self.connections.iter().filter(|c| c.state == State::Active).map(|c| c.id).collect();
        waiting.into_iter().for_each(|id| self.lose_collision(id));
    }

    /// Sends a NOTIFICATION and ends the connection.
    fn fail(&mut self, id: ConnectionId, notification: Notification, now: Instant) {
        self.output_send(id, wire::encode_notification(&notification));
        self.outputs.push_back(Output::Close(id));
        let reason = match notification.code {
            notification::HOLD_TIMER_EXPIRED => DownReason::HoldTimerExpired,
            notification::SEND_HOLD_TIMER_EXPIRED => DownReason::SendHoldTimerExpired,
            _ => DownReason::NotificationSent(notification),
        };
        self.end(id, reason, now);
    }

    fn end(&mut self, id: ConnectionId, reason: DownReason, now: Instant) {
        let Some(index) = self.index(id) else { return };
        let connection = self.connections.remove(index);
        let was_established = connection.state == State::Established;
        if matches!(reason, DownReason::NotificationReceived(_)) {
            self.outputs.push_back(Output::Close(id));
        }
        let retain = match &connection.negotiated {
            Some(negotiated) if was_established => negotiated.retained(&reason),
            _ => Vec::new(),
        };
        let routine = !was_established && !self.connections.is_empty();
        if !routine {
            self.outputs.push_back(Output::Down(Down { reason, was_established, retain }));
        }
        if was_established {
            self.retry_deadline = (self.started && !self.config.passive).then_some(now + RECONNECT_DELAY);
        } else {
            self.schedule_retry(now);
        }
        self.send_delayed_open();
    }

    fn schedule_retry(&mut self, now: Instant) {
        let busy = self.connecting || !self.connections.is_empty();
        if !self.started || self.config.passive || busy {
            return;
        }
        let backoff = self.config.connect_retry.saturating_mul(1 << self.attempts.min(5));
        self.attempts += 1;
        // Two peers that fail in step part ways: 75 to 100 % of the delay, by identifier and attempt.
        let spread =
            (u32::from(self.config.router_id).wrapping_mul(2_654_435_761) ^ (self.attempts * 7919)) % 256;
        let delay = backoff.min(CONNECT_RETRY_MAX) * (768 + spread) / 1024;
        self.retry_deadline = Some(now + delay);
    }

    fn expire(&mut self, now: Instant) {
        if self.retry_deadline.is_some_and(|at| at <= now) {
            self.retry_deadline = None;
            if self.connections.is_empty() && !self.connecting {
                self.connecting = true;
                self.outputs.push_back(Output::Connect);
            }
        }
        let expired: Vec<ConnectionId> = self
            .connections
            .iter()
            .filter(|c| c.hold_deadline.is_some_and(|at| at <= now))
            .map(|c| c.id)
            .collect();
        for id in expired {
            self.fail(id, Notification::new(notification::HOLD_TIMER_EXPIRED, 0), now);
        }
        let stuck: Vec<ConnectionId> = self
            .connections
            .iter()
            .filter(|c| c.send_hold_deadline.is_some_and(|at| at <= now))
            .map(|c| c.id)
            .collect();
        for id in stuck {
            self.fail(id, Notification::new(notification::SEND_HOLD_TIMER_EXPIRED, 0), now);
        }
        let mut due = Vec::new();
        for connection in &mut self.connections {
            if connection.keepalive_deadline.is_some_and(|at| at <= now) {
                connection.restart_keepalive_timer(now);
                due.push(connection.id);
            }
        }
        for id in due {
            self.output_send(id, wire::encode_keepalive());
        }
    }

    fn output_send(&mut self, id: ConnectionId, message: Arc<[u8]>) {
        self.messages_sent += 1;
        self.outputs.push_back(Output::Send(id, message));
    }

    fn index(&self, id: ConnectionId) -> Option<usize> {
        self.connections.iter().position(|c| c.id == id)
    }

    fn established(&self) -> Option<&Connection> {
        self.connections.iter().find(|c| c.state == State::Established)
    }
}

impl Connection {
    fn decode_context(&self) -> DecodeContext {
        match &self.negotiated {
            Some(negotiated) => negotiated.decode,
            None => DecodeContext { four_octet_as: true, external: true, add_path: Families::default() },
        }
    }

    fn restart_hold_timer(&mut self, now: Instant) {
        self.hold_deadline = (!self.hold_time.is_zero()).then(|| now + self.hold_time);
    }

    fn restart_keepalive_timer(&mut self, now: Instant) {
        self.keepalive_deadline = (!self.hold_time.is_zero()).then(|| now + self.keepalive_time);
    }

    /// RFC 9687 section 4: at least eight minutes, or twice the hold time.
    fn restart_send_hold_timer(&mut self, now: Instant) {
        let time = SEND_HOLD_TIME_MIN.max(self.hold_time * 2);
        self.send_hold_deadline = (!self.hold_time.is_zero()).then(|| now + time);
    }
}

#[cfg(test)]
mod tests;
