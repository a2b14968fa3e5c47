//! The BGP message codec: framing, OPEN, UPDATE, NOTIFICATION, KEEPALIVE, ROUTE-REFRESH.
//!
//! Decoding never panics on any input. A fault is either a `Notification` that ends the session or,
//! where RFC 7606 allows, an `AttributeError` that costs only the routes of its UPDATE.

pub mod attributes;
pub mod notification;
pub mod open;
pub mod update;

use std::sync::Arc;

pub use attributes::{AsSegment, Attributes, Origin};
pub use notification::Notification;
pub use open::{Capability, GracefulRestart, Open};
pub use update::{AttributeError, DecodeContext, EncodeContext, Nlri, Reach, Update};

use crate::prefix::Family;
use notification::{MESSAGE_HEADER_ERROR, ROUTE_REFRESH_MESSAGE_ERROR};

pub const HEADER_LENGTH: usize = 19;
/// Octets; RFC 4271 section 4.1.
pub const MESSAGE_LENGTH_MAX: usize = 4096;
/// Octets; RFC 8654.
pub const EXTENDED_MESSAGE_LENGTH_MAX: usize = 65535;

const OPEN: u8 = 1;
const UPDATE: u8 = 2;
const NOTIFICATION: u8 = 3;
const KEEPALIVE: u8 = 4;
const ROUTE_REFRESH: u8 = 5;

#[derive(Clone, Debug, PartialEq)]
pub enum Message {
    Open(Open),
    Update(Box<Update>),
    Notification(Notification),
    Keepalive,
    /// `None`: a family that is not spoken, or a kind that is not known.
    RouteRefresh(Option<(Family, Refresh)>),
}

/// What a ROUTE-REFRESH says (RFC 2918, RFC 7313).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refresh {
    /// Send all again.
    Request,
    /// All comes again, from here: BoRR.
    Begin,
    /// All has come again: EoRR.
    End,
}

/// The length of the first message in `buffer`, `None` while its header is incomplete.
///
/// Checks marker, length and type, so that a stream of random bytes fails on its first octet.
pub fn message_length(buffer: &[u8], extended: bool) -> Result<Option<usize>, Notification> {
    if buffer.iter().take(16).any(|octet| *octet != 0xff) {
        return Err(Notification::new(MESSAGE_HEADER_ERROR, 1));
    }
    let Some(header) = buffer.get(..HEADER_LENGTH) else { return Ok(None) };
    let length = usize::from(u16::from_be_bytes([header[16], header[17]]));
    let limit = |allowed: bool| if allowed { EXTENDED_MESSAGE_LENGTH_MAX } else { MESSAGE_LENGTH_MAX };
    let valid = match header[18] {
        OPEN => (29..=MESSAGE_LENGTH_MAX).contains(&length),
        UPDATE => (23..=limit(extended)).contains(&length),
        NOTIFICATION => (21..=limit(extended)).contains(&length),
        KEEPALIVE => length == HEADER_LENGTH,
        ROUTE_REFRESH => (23..=limit(extended)).contains(&length),
        other => return Err(Notification::with_data(MESSAGE_HEADER_ERROR, 3, &[other])),
    };
    if !valid {
        return Err(Notification::with_data(MESSAGE_HEADER_ERROR, 2, &header[16..18]));
    }
    Ok(Some(length))
}

/// Decodes one whole message, as delimited by `message_length`.
pub fn decode(message: &[u8], context: &DecodeContext) -> Result<Message, Notification> {
    let body = message.get(HEADER_LENGTH..).unwrap_or_default();
    match message.get(18).copied() {
        Some(OPEN) => Open::decode(body).map(Message::Open),
        Some(UPDATE) => Update::decode(body, context).map(|update| Message::Update(Box::new(update))),
        Some(NOTIFICATION) => {
            let (code, subcode) = match body {
                [code, subcode, ..] => (*code, *subcode),
                _ => return Err(Notification::new(MESSAGE_HEADER_ERROR, 2)),
            };
            Ok(Message::Notification(Notification { code, subcode, data: body[2..].to_vec() }))
        }
        Some(KEEPALIVE) => Ok(Message::Keepalive),
        Some(ROUTE_REFRESH) => match body {
            [a, b, kind, safi] => {
                let kind = match kind {
                    1 => Some(Refresh::Begin),
                    2 => Some(Refresh::End),
                    0 => Some(Refresh::Request),
                    _ => None,
                };
                let family = Family::from_afi_safi(u16::from_be_bytes([*a, *b]), *safi);
                Ok(Message::RouteRefresh(family.zip(kind)))
            }
            // RFC 7313 section 5; outbound route filters (RFC 5291) are not offered.
            _ => Err(Notification::with_data(ROUTE_REFRESH_MESSAGE_ERROR, 1, message)),
        },
        Some(other) => Err(Notification::with_data(MESSAGE_HEADER_ERROR, 3, &[other])),
        None => Err(Notification::new(MESSAGE_HEADER_ERROR, 2)),
    }
}

pub fn encode_open(open: &Open) -> Arc<[u8]> {
    finish(OPEN, |out| open.encode(out))
}

pub fn encode_keepalive() -> Arc<[u8]> {
    finish(KEEPALIVE, |_| {})
}

pub fn encode_notification(notification: &Notification) -> Arc<[u8]> {
    finish(NOTIFICATION, |out| {
        out.extend_from_slice(&[notification.code, notification.subcode]);
        // A quoted message must not make this one too long.
        let room = MESSAGE_LENGTH_MAX - HEADER_LENGTH - 2;
        out.extend_from_slice(&notification.data[..notification.data.len().min(room)]);
    })
}

pub fn encode_route_refresh(family: Family, kind: Refresh) -> Arc<[u8]> {
    finish(ROUTE_REFRESH, |out| {
        out.extend_from_slice(&family.afi().to_be_bytes());
        out.extend_from_slice(&[kind as u8, Family::SAFI]);
    })
}

/// Writes header and body; the length is filled in after the body.
fn finish(kind: u8, body: impl FnOnce(&mut Vec<u8>)) -> Arc<[u8]> {
    let mut out = vec![0xff; 16];
    out.extend_from_slice(&[0, 0, kind]);
    body(&mut out);
    let length = u16::try_from(out.len()).expect("messages are built below 65535 octets");
    out[16..18].copy_from_slice(&length.to_be_bytes());
    out.into()
}

/// A cursor whose reads return `None` past the end.
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) fn new(rest: &'a [u8]) -> Reader<'a> {
        Reader { rest }
    }

    pub(crate) fn remaining(&self) -> usize {
        self.rest.len()
    }

    pub(crate) fn peek(&self) -> Option<u8> {
        self.rest.first().copied()
    }

    pub(crate) fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.rest.split_at_checked(count)?;
        self.rest = rest;
        Some(head)
    }

    pub(crate) fn u8(&mut self) -> Option<u8> {
        self.take(1).map(|octets| octets[0])
    }

    pub(crate) fn u16(&mut self) -> Option<u16> {
        self.take(2).map(|octets| u16::from_be_bytes([octets[0], octets[1]]))
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.take(4).map(|octets| u32::from_be_bytes([octets[0], octets[1], octets[2], octets[3]]))
    }
}

#[cfg(test)]
mod tests;
