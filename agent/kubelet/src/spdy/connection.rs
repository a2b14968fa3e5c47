//! One side of a connection: bytes in, events and bytes out. No IO, no clock.

use std::collections::{HashMap, VecDeque};

use super::frame::{self, DATA_BYTES_MAX, Decoder, FLAG_FIN, Piece, kind};
use super::headers::{self, Headers};

/// Odd for streams of the client, even for those of the server.
pub type StreamId = u32;

const STREAMS_MAX: usize = 1024;
const PROTOCOL_ERROR: u32 = 1;
const INVALID_STREAM: u32 = 2;
const REFUSED_STREAM: u32 = 3;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    Client,
    Server,
}

/// What the peer did wrong; the connection is of no use afterwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("spdy: {0}")]
    Protocol(&'static str),
    #[error("spdy: header block: {0}")]
    Headers(&'static str),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The peer opened a stream; it wants a reply.
    Opened {
        id: StreamId,
        headers: Headers,
    },
    /// The peer accepted our stream.
    Replied {
        id: StreamId,
    },
    Data {
        id: StreamId,
        bytes: Vec<u8>,
    },
    /// The peer sends no more on the stream.
    Finished {
        id: StreamId,
    },
    /// The stream is over in both directions.
    Reset {
        id: StreamId,
    },
    GoneAway,
}

#[derive(Default)]
struct Stream {
    finished_here: bool,
    finished_there: bool,
}

/// The state of a connection.
pub struct Connection {
    side: Side,
    decoder: Decoder,
    inflate: headers::Decoder,
    deflate: headers::Encoder,
    streams: HashMap<StreamId, Stream>,
    next_id: StreamId,
    last_peer_id: StreamId,
    events: VecDeque<Event>,
    out: Vec<u8>,
}

impl Connection {
    pub fn new(side: Side) -> Self {
        Self {
            side,
            decoder: Decoder::new(),
            inflate: headers::Decoder::new(),
            deflate: headers::Encoder::new(),
            streams: HashMap::new(),
            next_id: if side == Side::Client { 1 } else { 2 },
            last_peer_id: 0,
            events: VecDeque::new(),
            out: Vec::new(),
        }
    }

    /// Takes bytes of the transport.
    pub fn handle(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.decoder.feed(bytes);
        while let Some(piece) = self.decoder.next()? {
            match piece {
                Piece::Data { stream, bytes, fin } => self.data(stream, bytes, fin),
                Piece::Control { kind, flags, payload } => self.control(kind, flags, &payload)?,
            }
        }
        Ok(())
    }

    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Bytes for the transport.
    pub fn take_output(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.out)
    }

    /// Length of what [`Self::take_output`] would give.
    pub fn output_len(&self) -> usize {
        self.out.len()
    }

    /// Opens a stream.
    pub fn open(&mut self, headers: &Headers) -> StreamId {
        let id = self.next_id;
        self.next_id += 2;
        let mut payload = Vec::new();
        payload.extend_from_slice(&id.to_be_bytes());
        payload.extend_from_slice(&[0; 6]);
        payload.extend(self.deflate.encode(headers));
        frame::write_control(&mut self.out, kind::SYN_STREAM, 0, &payload);
        self.streams.insert(id, Stream::default());
        id
    }

    /// Accepts a stream of the peer.
    pub fn reply(&mut self, id: StreamId) {
        let mut payload = id.to_be_bytes().to_vec();
        payload.extend(self.deflate.encode(&Headers::new()));
        frame::write_control(&mut self.out, kind::SYN_REPLY, 0, &payload);
    }

    /// Sends bytes on a stream. On a stream that is finished or unknown they are dropped: the peer was quicker.
    pub fn send(&mut self, id: StreamId, bytes: &[u8]) {
        if self.streams.get(&id).is_none_or(|stream| stream.finished_here) {
            return;
        }
        for chunk in bytes.chunks(DATA_BYTES_MAX) {
            frame::write_data(&mut self.out, id, 0, chunk);
        }
    }

    /// Says that nothing more will be sent on the stream.
    pub fn finish(&mut self, id: StreamId) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if !stream.finished_here {
            stream.finished_here = true;
            frame::write_data(&mut self.out, id, FLAG_FIN, &[]);
        }
        self.forget_if_over(id);
    }

    /// Ends a stream in both directions.
    pub fn reset(&mut self, id: StreamId) {
        if self.streams.remove(&id).is_some() {
            self.write_reset(id, PROTOCOL_ERROR + 4);
        }
    }

    fn write_reset(&mut self, id: StreamId, status: u32) {
        let payload = [id.to_be_bytes(), status.to_be_bytes()].concat();
        frame::write_control(&mut self.out, kind::RST_STREAM, 0, &payload);
    }

    fn forget_if_over(&mut self, id: StreamId) {
        if self.streams.get(&id).is_some_and(|stream| stream.finished_here && stream.finished_there) {
            self.streams.remove(&id);
        }
    }

    fn data(&mut self, id: StreamId, bytes: Vec<u8>, fin: bool) {
        let Some(stream) = self.streams.get_mut(&id) else {
            // Of a stream that we have already closed: the peer will learn.
            if !bytes.is_empty() {
                self.write_reset(id, INVALID_STREAM);
            }
            return;
        };
        if stream.finished_there {
            return;
        }
        stream.finished_there = fin;
        if !bytes.is_empty() {
            self.events.push_back(Event::Data { id, bytes });
        }
        if fin {
            self.events.push_back(Event::Finished { id });
            self.forget_if_over(id);
        }
    }

    fn control(&mut self, frame: u16, flags: u8, payload: &[u8]) -> Result<(), Error> {
        match frame {
            kind::SYN_STREAM => self.opened(flags, payload),
            kind::SYN_REPLY => {
                let (id, block) = stream_id(payload)?;
                self.inflate.decode(block)?;
                if self.streams.contains_key(&id) {
                    self.events.push_back(Event::Replied { id });
                    self.peer_fin(id, flags);
                }
                Ok(())
            }
            kind::HEADERS => {
                let (id, block) = stream_id(payload)?;
                // Read for the sake of the compression state; trailers mean nothing here.
                self.inflate.decode(block)?;
                self.peer_fin(id, flags);
                Ok(())
            }
            kind::RST_STREAM => {
                let (id, _) = stream_id(payload)?;
                if self.streams.remove(&id).is_some() {
                    self.events.push_back(Event::Reset { id });
                }
                Ok(())
            }
            kind::PING => {
                let (id, _) = stream_id(payload)?;
                let of_client = id % 2 == 1;
                if of_client != (self.side == Side::Client) {
                    frame::write_control(&mut self.out, kind::PING, 0, &payload[..4]);
                }
                Ok(())
            }
            kind::GOAWAY => {
                self.events.push_back(Event::GoneAway);
                Ok(())
            }
            kind::SETTINGS | kind::WINDOW_UPDATE => Ok(()),
            // Types that are not known are to be ignored.
            _ => Ok(()),
        }
    }

    fn peer_fin(&mut self, id: StreamId, flags: u8) {
        if flags & FLAG_FIN != 0 {
            self.data(id, Vec::new(), true);
        }
    }

    fn opened(&mut self, flags: u8, payload: &[u8]) -> Result<(), Error> {
        let (id, rest) = stream_id(payload)?;
        let block = rest.get(6..).ok_or(Error::Protocol("SYN_STREAM too short"))?;
        let headers = self.inflate.decode(block)?;
        let of_client = id % 2 == 1;
        if of_client == (self.side == Side::Client) || id <= self.last_peer_id {
            return Err(Error::Protocol("stream id out of order"));
        }
        self.last_peer_id = id;
        if self.streams.len() >= STREAMS_MAX {
            self.write_reset(id, REFUSED_STREAM);
            return Ok(());
        }
        self.streams.insert(id, Stream::default());
        self.events.push_back(Event::Opened { id, headers });
        self.peer_fin(id, flags);
        Ok(())
    }
}

fn stream_id(payload: &[u8]) -> Result<(StreamId, &[u8]), Error> {
    let (head, rest) = payload.split_first_chunk::<4>().ok_or(Error::Protocol("control frame too short"))?;
    Ok((u32::from_be_bytes(*head) & 0x7fff_ffff, rest))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn named(name: &str) -> Headers {
        vec![("streamtype".into(), name.into())]
    }

    /// Carries bytes both ways until nothing moves, in pieces of `step`.
    fn exchange(a: &mut Connection, b: &mut Connection, step: usize) {
        loop {
            let (from_a, from_b) = (a.take_output(), b.take_output());
            if from_a.is_empty() && from_b.is_empty() {
                return;
            }
            from_a.chunks(step).for_each(|chunk| b.handle(chunk).unwrap());
            from_b.chunks(step).for_each(|chunk| a.handle(chunk).unwrap());
        }
    }

    fn events(connection: &mut Connection) -> Vec<Event> {
        std::iter::from_fn(|| connection.poll_event()).collect()
    }

    #[test]
    fn a_stream_is_opened_answered_used_and_half_closed() {
        let (mut client, mut server) = (Connection::new(Side::Client), Connection::new(Side::Server));
        let id = client.open(&named("stdin"));
        client.send(id, b"hello");
        client.finish(id);
        exchange(&mut client, &mut server, 1);
        let expected = [
            Event::Opened { id, headers: named("stdin") },
            Event::Data { id, bytes: b"h".to_vec() },
            Event::Data { id, bytes: b"e".to_vec() },
            Event::Data { id, bytes: b"l".to_vec() },
            Event::Data { id, bytes: b"l".to_vec() },
            Event::Data { id, bytes: b"o".to_vec() },
            Event::Finished { id },
        ];
        assert_eq!(events(&mut server), expected);
        server.reply(id);
        server.send(id, b"late");
        server.finish(id);
        exchange(&mut client, &mut server, 3);
        let seen = events(&mut client);
        assert_eq!(seen[0], Event::Replied { id });
        assert_eq!(seen.last(), Some(&Event::Finished { id }));
        assert!(client.streams.is_empty() && server.streams.is_empty());
    }

    #[test]
    fn pings_of_the_peer_are_echoed_and_own_ones_are_not() {
        let mut server = Connection::new(Side::Server);
        let mut ping = Vec::new();
        frame::write_control(&mut ping, kind::PING, 0, &1u32.to_be_bytes());
        server.handle(&ping).unwrap();
        assert_eq!(server.take_output(), ping);
        let mut own = Vec::new();
        frame::write_control(&mut own, kind::PING, 0, &2u32.to_be_bytes());
        server.handle(&own).unwrap();
        assert!(server.take_output().is_empty());
    }

    #[test]
    fn a_peer_that_breaks_the_rules_is_an_error() {
        let mut client = Connection::new(Side::Client);
        let first = client.open(&named("a"));
        let bytes = client.take_output();
        let mut server = Connection::new(Side::Server);
        server.handle(&bytes).unwrap();
        assert_eq!(first, 1);
        let mut replay = Connection::new(Side::Client);
        assert!(replay.handle(&bytes).is_err(), "a server may not open odd streams");
        assert_eq!(server.handle(&[0x80, 2, 0, 1, 0, 0, 0, 0]), Err(Error::Protocol("not SPDY/3")));
        let mut server = Connection::new(Side::Server);
        assert!(server.handle(&[0x80, 3, 0, 1, 0, 0xff, 0xff, 0xff]).is_err());
    }

    #[test]
    fn bytes_for_a_stream_that_is_gone_are_answered_with_a_reset() {
        let mut server = Connection::new(Side::Server);
        let mut data = Vec::new();
        frame::write_data(&mut data, 7, 0, b"x");
        server.handle(&data).unwrap();
        assert!(server.poll_event().is_none());
        assert_eq!(server.take_output()[..4], [0x80, 3, 0, 3]);
    }

    proptest! {
        #[test]
        fn what_is_sent_arrives_in_order_whatever_the_chunks(
            sends in prop::collection::vec((0usize..3, prop::collection::vec(any::<u8>(), 0..2000)), 0..20),
            step in 1usize..500,
        ) {
            let (mut client, mut server) = (Connection::new(Side::Client), Connection::new(Side::Server));
            let ids: Vec<_> = ["a", "b", "c"].iter().map(|name| client.open(&named(name))).collect();
            let mut expected = HashMap::<StreamId, Vec<u8>>::new();
            for (index, bytes) in &sends {
                client.send(ids[*index], bytes);
                expected.entry(ids[*index]).or_default().extend(bytes);
            }
            ids.iter().for_each(|id| client.finish(*id));
            exchange(&mut client, &mut server, step);
            let mut seen = HashMap::<StreamId, Vec<u8>>::new();
            let mut finished = 0;
            for event in events(&mut server) {
                match event {
                    Event::Data { id, bytes } => seen.entry(id).or_default().extend(bytes),
                    Event::Finished { .. } => finished += 1,
                    _ => {}
                }
            }
            expected.retain(|_, bytes| !bytes.is_empty());
            prop_assert_eq!(seen, expected);
            prop_assert_eq!(finished, 3);
        }

        #[test]
        fn hostile_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..400), server in any::<bool>()) {
            let side = if server { Side::Server } else { Side::Client };
            let mut connection = Connection::new(side);
            let _ = connection.handle(&bytes);
            let mut framed = vec![0x80, 3, 0];
            framed.extend(&bytes);
            let _ = Connection::new(side).handle(&framed);
        }
    }
}
