//! The BFD control packet (RFC 5880 section 4.1): its mandatory section, 24 octets.
//!
//! ```text
//! Vers 3 | Diag 5 | Sta 2 P F C A D M | Detect Mult 8 | Length 8
//! My Discriminator 32 | Your Discriminator 32
//! Desired Min TX 32 | Required Min RX 32 | Required Min Echo RX 32      microseconds
//! ```

use std::fmt;

use crate::refusal::Refusal;

/// Octets of a packet without authentication.
pub const LENGTH: usize = 24;
/// The least with authentication.
const LENGTH_AUTHENTICATED: usize = 26;
const VERSION: u8 = 1;

const POLL: u8 = 0x20;
const FINAL: u8 = 0x10;
const CONTROL_PLANE_INDEPENDENT: u8 = 0x08;
const AUTHENTICATION: u8 = 0x04;
const DEMAND: u8 = 0x02;
const MULTIPOINT: u8 = 0x01;

/// The states of RFC 5880 section 4.1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum State {
    AdminDown = 0,
    #[default]
    Down = 1,
    Init = 2,
    Up = 3,
}

impl State {
    fn of_bits(bits: u8) -> State {
        match bits & 3 {
            0 => State::AdminDown,
            1 => State::Down,
            2 => State::Init,
            _ => State::Up,
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Why a session changed its state last: the codes of RFC 5880 section 4.1, 0 to 31.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Diagnostic(u8);

impl Diagnostic {
    pub const NONE: Diagnostic = Diagnostic(0);
    pub const DETECTION_TIME_EXPIRED: Diagnostic = Diagnostic(1);
    pub const NEIGHBOR_SIGNALED_DOWN: Diagnostic = Diagnostic(3);
    pub const ADMINISTRATIVELY_DOWN: Diagnostic = Diagnostic(7);

    /// Only the lower five bits are kept.
    pub fn new(code: u8) -> Diagnostic {
        Diagnostic(code & 0x1f)
    }

    pub fn code(self) -> u8 {
        self.0
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            0 => "No Diagnostic",
            1 => "Control Detection Time Expired",
            2 => "Echo Function Failed",
            3 => "Neighbor Signaled Session Down",
            4 => "Forwarding Plane Reset",
            5 => "Path Down",
            6 => "Concatenated Path Down",
            7 => "Administratively Down",
            8 => "Reverse Concatenated Path Down",
            9 => "Mis-Connectivity Defect",
            other => return write!(f, "Diagnostic {other}"),
        })
    }
}

/// What one packet says. Intervals are in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Packet {
    pub diagnostic: Diagnostic,
    pub state: State,
    pub poll: bool,
    pub is_final: bool,
    /// The sender's BFD does not share the fate of its control plane: the C bit.
    pub control_plane_independent: bool,
    /// The A bit: an authentication section follows.
    pub authentication: bool,
    pub demand: bool,
    /// Not 0.
    pub detect_multiplier: u8,
    /// Not 0.
    pub my_discriminator: u32,
    pub your_discriminator: u32,
    pub desired_min_tx: u32,
    pub required_min_rx: u32,
    pub required_min_echo_rx: u32,
}

impl Packet {
    /// Reads a datagram's payload; what follows the packet's own Length is not looked at.
    ///
    /// # Errors
    /// The first check of RFC 5880 section 6.8.6 that fails, of those that need no session.
    pub fn decode(payload: &[u8]) -> Result<Packet, Refusal> {
        let Some(octets) = payload.first_chunk::<LENGTH>() else { return Err(Refusal::Truncated) };
        let word =
            |at: usize| u32::from_be_bytes([octets[at], octets[at + 1], octets[at + 2], octets[at + 3]]);
        let (flags, length) = (octets[1], usize::from(octets[3]));
        let has = |flag: u8| flags & flag != 0;
        let least = if has(AUTHENTICATION) { LENGTH_AUTHENTICATED } else { LENGTH };
        let packet = Packet {
            diagnostic: Diagnostic::new(octets[0]),
            state: State::of_bits(flags >> 6),
            poll: has(POLL),
            is_final: has(FINAL),
            control_plane_independent: has(CONTROL_PLANE_INDEPENDENT),
            authentication: has(AUTHENTICATION),
            demand: has(DEMAND),
            detect_multiplier: octets[2],
            my_discriminator: word(4),
            your_discriminator: word(8),
            desired_min_tx: word(12),
            required_min_rx: word(16),
            required_min_echo_rx: word(20),
        };
        for (is_wrong, refusal) in [
            (octets[0] >> 5 != VERSION, Refusal::Version),
            (length < least, Refusal::LengthBelowMinimum),
            (length > payload.len(), Refusal::LengthBeyondPayload),
            (packet.detect_multiplier == 0, Refusal::DetectMultiplierZero),
            (has(MULTIPOINT), Refusal::Multipoint),
            (packet.my_discriminator == 0, Refusal::MyDiscriminatorZero),
        ] {
            if is_wrong {
                return Err(refusal);
            }
        }
        Ok(packet)
    }

    /// Without an authentication section, whatever `authentication` says.
    pub fn encode(&self) -> [u8; LENGTH] {
        let bit = |is_set: bool, flag: u8| if is_set { flag } else { 0 };
        let flags = bit(self.poll, POLL)
            | bit(self.is_final, FINAL)
            | bit(self.control_plane_independent, CONTROL_PLANE_INDEPENDENT)
            | bit(self.demand, DEMAND);
        let mut octets = [0; LENGTH];
        octets[0] = VERSION << 5 | self.diagnostic.code();
        octets[1] = (self.state as u8) << 6 | flags;
        octets[2] = self.detect_multiplier;
        octets[3] = LENGTH as u8;
        let words = [
            self.my_discriminator,
            self.your_discriminator,
            self.desired_min_tx,
            self.required_min_rx,
            self.required_min_echo_rx,
        ];
        for (place, word) in octets[4..].chunks_exact_mut(4).zip(words) {
            place.copy_from_slice(&word.to_be_bytes());
        }
        octets
    }
}

#[cfg(test)]
mod tests;
