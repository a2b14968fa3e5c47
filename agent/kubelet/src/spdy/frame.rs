//! Frames: eight bytes of head, then control payload or data.

use super::connection::{Error, StreamId};

pub const VERSION: u16 = 3;
pub const FLAG_FIN: u8 = 1;
/// Control frames hold a header block at most; data frames are not buffered and may be as long as the format allows.
const CONTROL_BYTES_MAX: usize = 256 << 10;
pub const DATA_BYTES_MAX: usize = 1 << 16;

pub mod kind {
    pub const SYN_STREAM: u16 = 1;
    pub const SYN_REPLY: u16 = 2;
    pub const RST_STREAM: u16 = 3;
    pub const SETTINGS: u16 = 4;
    pub const PING: u16 = 6;
    pub const GOAWAY: u16 = 7;
    pub const HEADERS: u16 = 8;
    pub const WINDOW_UPDATE: u16 = 9;
}

/// A piece of what came in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    Control {
        kind: u16,
        flags: u8,
        payload: Vec<u8>,
    },
    /// Some bytes of a data frame; `fin` with the last ones of the stream's last frame.
    Data {
        stream: StreamId,
        bytes: Vec<u8>,
        fin: bool,
    },
}

enum State {
    Head,
    Control { kind: u16, flags: u8, length: usize },
    Data { stream: StreamId, left: usize, fin: bool },
}

/// Cuts a byte stream into pieces.
pub struct Decoder {
    buffer: Vec<u8>,
    state: State,
}

impl Decoder {
    pub fn new() -> Self {
        Self { buffer: Vec::new(), state: State::Head }
    }

    pub fn feed(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next piece, if enough bytes are there.
    pub fn next(&mut self) -> Result<Option<Piece>, Error> {
        loop {
            match self.state {
                State::Head => {
                    let Some(head) = self.buffer.first_chunk::<8>().copied() else { return Ok(None) };
                    self.buffer.drain(..8);
                    self.state = parse_head(head)?;
                }
                State::Control { kind, flags, length } => {
                    if self.buffer.len() < length {
                        return Ok(None);
                    }
                    let payload = self.buffer.drain(..length).collect();
                    self.state = State::Head;
                    return Ok(Some(Piece::Control { kind, flags, payload }));
                }
                State::Data { stream, left, fin } => {
                    let ready = left.min(self.buffer.len());
                    if ready == 0 && left > 0 {
                        return Ok(None);
                    }
                    let bytes = self.buffer.drain(..ready).collect();
                    let last = ready == left;
                    self.state =
                        if last { State::Head } else { State::Data { stream, left: left - ready, fin } };
                    return Ok(Some(Piece::Data { stream, bytes, fin: fin && last }));
                }
            }
        }
    }
}

fn parse_head(head: [u8; 8]) -> Result<State, Error> {
    let first = u32::from_be_bytes([head[0], head[1], head[2], head[3]]);
    let flags = head[4];
    let length = usize::from(head[5]) << 16 | usize::from(head[6]) << 8 | usize::from(head[7]);
    if first >> 31 == 0 {
        if first == 0 {
            return Err(Error::Protocol("data on stream 0"));
        }
        return Ok(State::Data { stream: first, left: length, fin: flags & FLAG_FIN != 0 });
    }
    let version = (first >> 16) & 0x7fff;
    if version != u32::from(VERSION) {
        return Err(Error::Protocol("not SPDY/3"));
    }
    if length > CONTROL_BYTES_MAX {
        return Err(Error::Protocol("control frame too long"));
    }
    let kind = u16::try_from(first & 0xffff).map_err(|_| Error::Protocol("frame type"))?;
    Ok(State::Control { kind, flags, length })
}

pub fn write_control(out: &mut Vec<u8>, kind: u16, flags: u8, payload: &[u8]) {
    out.extend_from_slice(&(0x8000 | VERSION).to_be_bytes());
    out.extend_from_slice(&kind.to_be_bytes());
    write_length(out, flags, payload.len());
    out.extend_from_slice(payload);
}

pub fn write_data(out: &mut Vec<u8>, stream: StreamId, flags: u8, bytes: &[u8]) {
    out.extend_from_slice(&stream.to_be_bytes());
    write_length(out, flags, bytes.len());
    out.extend_from_slice(bytes);
}

fn write_length(out: &mut Vec<u8>, flags: u8, length: usize) {
    let length = u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes();
    out.extend_from_slice(&[flags, length[1], length[2], length[3]]);
}
