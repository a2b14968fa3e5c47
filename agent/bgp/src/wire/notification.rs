//! NOTIFICATION: error codes of RFC 4271 section 4.5, RFC 4486, RFC 8538 and RFC 7313.

use std::fmt;

/// What is sent before a session is closed for an error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notification {
    pub code: u8,
    pub subcode: u8,
    pub data: Vec<u8>,
}

pub const MESSAGE_HEADER_ERROR: u8 = 1;
pub const OPEN_MESSAGE_ERROR: u8 = 2;
pub const UPDATE_MESSAGE_ERROR: u8 = 3;
pub const HOLD_TIMER_EXPIRED: u8 = 4;
pub const FINITE_STATE_MACHINE_ERROR: u8 = 5;
pub const CEASE: u8 = 6;
pub const ROUTE_REFRESH_MESSAGE_ERROR: u8 = 7;
/// RFC 9687.
pub const SEND_HOLD_TIMER_EXPIRED: u8 = 8;

/// Subcodes of Cease (RFC 4486, RFC 8538, RFC 9384).
pub mod cease {
    pub const MAXIMUM_PREFIXES: u8 = 1;
    pub const ADMINISTRATIVE_SHUTDOWN: u8 = 2;
    pub const PEER_DE_CONFIGURED: u8 = 3;
    pub const ADMINISTRATIVE_RESET: u8 = 4;
    pub const CONNECTION_REJECTED: u8 = 5;
    pub const OTHER_CONFIGURATION_CHANGE: u8 = 6;
    pub const CONNECTION_COLLISION_RESOLUTION: u8 = 7;
    pub const HARD_RESET: u8 = 9;
    /// RFC 9384.
    pub const BFD_DOWN: u8 = 10;
}

impl Notification {
    pub fn new(code: u8, subcode: u8) -> Notification {
        Notification { code, subcode, data: Vec::new() }
    }

    pub fn with_data(code: u8, subcode: u8, data: &[u8]) -> Notification {
        Notification { code, subcode, data: data.to_vec() }
    }

    pub fn cease(subcode: u8) -> Notification {
        Notification::new(CEASE, subcode)
    }

    /// The same, so that the peer keeps no routes: the Hard Reset of RFC 8538.
    pub fn hard(&self) -> Notification {
        let data = [&[self.code, self.subcode], &self.data[..]].concat();
        Notification { code: CEASE, subcode: cease::HARD_RESET, data }
    }

    /// What a Hard Reset stands for.
    fn inner(&self) -> Option<Notification> {
        match (self.code, self.subcode, &self.data[..]) {
            (CEASE, cease::HARD_RESET, [code, subcode, data @ ..])
                if (*code, *subcode) != (CEASE, cease::HARD_RESET) =>
            {
                Some(Notification::with_data(*code, *subcode, data))
            }
            _ => None,
        }
    }

    /// BFD has lost the path (RFC 9384), also within a Hard Reset.
    pub fn is_bfd_down(&self) -> bool {
        let of = |code: u8, subcode: u8| (code, subcode) == (CEASE, cease::BFD_DOWN);
        of(self.code, self.subcode) || self.inner().is_some_and(|inner| of(inner.code, inner.subcode))
    }

    /// The shutdown communication of RFC 9003: what the other operator had to say.
    fn communication(&self) -> Option<String> {
        let told = self.code == CEASE
            && matches!(self.subcode, cease::ADMINISTRATIVE_SHUTDOWN | cease::ADMINISTRATIVE_RESET);
        let (length, text) = self.data.split_first().filter(|_| told)?;
        let text = text.get(..usize::from(*length)).filter(|text| !text.is_empty())?;
        // Control characters would reach an engineer's terminal.
        Some(String::from_utf8_lossy(text).chars().filter(|c| !c.is_control()).collect())
    }

    fn subcode_name(&self) -> &'static str {
        match (self.code, self.subcode) {
            (_, 0) => "Unspecific",
            (1, 1) => "Connection Not Synchronized",
            (1, 2) => "Bad Message Length",
            (1, 3) => "Bad Message Type",
            (2, 1) => "Unsupported Version Number",
            (2, 2) => "Bad Peer AS",
            (2, 3) => "Bad BGP Identifier",
            (2, 4) => "Unsupported Optional Parameter",
            (2, 6) => "Unacceptable Hold Time",
            (2, 7) => "Unsupported Capability",
            (3, 1) => "Malformed Attribute List",
            (3, 2) => "Unrecognized Well-known Attribute",
            (3, 3) => "Missing Well-known Attribute",
            (3, 4) => "Attribute Flags Error",
            (3, 5) => "Attribute Length Error",
            (3, 6) => "Invalid ORIGIN Attribute",
            (3, 8) => "Invalid NEXT_HOP Attribute",
            (3, 9) => "Optional Attribute Error",
            (3, 10) => "Invalid Network Field",
            (3, 11) => "Malformed AS_PATH",
            (5, 1) => "Unexpected Message in OpenSent State",
            (5, 2) => "Unexpected Message in OpenConfirm State",
            (5, 3) => "Unexpected Message in Established State",
            (6, 1) => "Maximum Number of Prefixes Reached",
            (6, 2) => "Administrative Shutdown",
            (6, 3) => "Peer De-configured",
            (6, 4) => "Administrative Reset",
            (6, 5) => "Connection Rejected",
            (6, 6) => "Other Configuration Change",
            (6, 7) => "Connection Collision Resolution",
            (6, 8) => "Out of Resources",
            (6, 9) => "Hard Reset",
            (6, 10) => "BFD Down",
            (7, 1) => "Invalid Message Length",
            _ => "unknown subcode",
        }
    }
}

impl fmt::Display for Notification {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let code = match self.code {
            MESSAGE_HEADER_ERROR => "Message Header Error",
            OPEN_MESSAGE_ERROR => "OPEN Message Error",
            UPDATE_MESSAGE_ERROR => "UPDATE Message Error",
            HOLD_TIMER_EXPIRED => "Hold Timer Expired",
            FINITE_STATE_MACHINE_ERROR => "Finite State Machine Error",
            CEASE => "Cease",
            ROUTE_REFRESH_MESSAGE_ERROR => "ROUTE-REFRESH Message Error",
            SEND_HOLD_TIMER_EXPIRED => "Send Hold Timer Expired",
            _ => "unknown code",
        };
        write!(f, "{code} ({})", self.code)?;
        if !matches!(self.code, HOLD_TIMER_EXPIRED | SEND_HOLD_TIMER_EXPIRED) {
            write!(f, ": {} ({})", self.subcode_name(), self.subcode)?;
        }
        if let Some(inner) = self.inner() {
            write!(f, ": {inner}")?;
        }
        if let Some(text) = self.communication() {
            write!(f, ": {text:?}")?;
        }
        Ok(())
    }
}
