//! The one body type of requests and responses inside the server, and reading a body within its limit.

use std::{
    collections::VecDeque,
    convert::Infallible,
    io::IoSlice,
    pin::Pin,
    task::{Context, Poll},
};

use api::status::Status;
use bytes::{Buf, BufMut as _, Bytes, BytesMut};
use futures::{FutureExt as _, Stream, StreamExt};
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited, StreamBody, combinators::UnsyncBoxBody};

pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
pub type Body = UnsyncBoxBody<Data, BoxError>;
/// A body whose frames lie in one place each.
pub type JoinedBody = UnsyncBoxBody<Bytes, BoxError>;

/// Bytes of the largest request body that is read.
pub const REQUEST_BYTES_MAX: usize = 3 * 1024 * 1024;

pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(Data::One(bytes.into())).map_err(|never| match never {}).boxed_unsync()
}

/// The body of a message that another library received or made.
pub fn of<B>(body: B) -> Body
where
    B: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    body.map_frame(|frame| frame.map_data(Data::One)).map_err(Into::into).boxed_unsync()
}

pub fn empty() -> Body {
    full(Bytes::new())
}

pub fn stream<D: Into<Data>>(frames: impl Stream<Item = Result<D, BoxError>> + Send + 'static) -> Body {
    StreamBody::new(frames.map(|item| item.map(|data| Frame::data(data.into())))).boxed_unsync()
}

/// The body as other libraries take it.
pub fn joined(body: Body) -> JoinedBody {
    body.map_frame(|frame| frame.map_data(Data::into_bytes)).boxed_unsync()
}

/// Bytes of a piece of a long body: with the head of an HTTP/2 frame it fills one TLS record.
const PIECE_BYTES: usize = 16 * 1024 - 9;

/// Parts from here on are sent from where they are; shorter ones are joined. So a piece has at most 15 places, and a
/// vectored write takes it whole.
const LENT_FROM: usize = 2048;

/// A body of parts that are there already: its length is known. They go a piece at a time, as the client takes them, and no
/// copy of the whole is made.
pub fn pieces(parts: Vec<Bytes>) -> Body {
    let left = parts.iter().map(|part| part.len() as u64).sum();
    let pieces = Pieces { parts: parts.into_iter(), part: Bytes::new(), left };
    pieces.map_err(|never| match never {}).boxed_unsync()
}

/// What a frame of a body carries, in one place or in several.
#[derive(Clone, Debug)]
pub enum Data {
    One(Bytes),
    Several { parts: VecDeque<Bytes>, left: usize },
}

impl From<Bytes> for Data {
    fn from(bytes: Bytes) -> Self {
        Self::One(bytes)
    }
}

impl Data {
    /// Parts one after the other, each where it is.
    pub fn of_parts<const N: usize>(parts: [Bytes; N]) -> Self {
        let left = parts.iter().map(Bytes::len).sum();
        Self::Several { parts: parts.into(), left }
    }

    /// All of it in one place; copied only where it is in several.
    pub fn into_bytes(mut self) -> Bytes {
        self.copy_to_bytes(self.remaining())
    }
}

impl Buf for Data {
    fn remaining(&self) -> usize {
        match self {
            Self::One(bytes) => bytes.len(),
            Self::Several { left, .. } => *left,
        }
    }

    fn chunk(&self) -> &[u8] {
        match self {
            Self::One(bytes) => bytes,
            Self::Several { parts, .. } => parts.front().map_or(&[], Bytes::chunk),
        }
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        match self {
            Self::One(bytes) => bytes.chunks_vectored(slices),
            Self::Several { parts, .. } => {
                let filled = slices.iter_mut().zip(parts);
                filled.map(|(slice, part)| *slice = IoSlice::new(part)).count()
            }
        }
    }

    fn advance(&mut self, mut count: usize) {
        match self {
            Self::One(bytes) => bytes.advance(count),
            Self::Several { parts, left } => {
                *left = left.checked_sub(count).expect("no more than what remains, as Buf demands");
                while let Some(part) = parts.front_mut().filter(|_| count > 0) {
                    if count < part.len() {
                        part.advance(count);
                        return;
                    }
                    count -= part.len();
                    parts.pop_front();
                }
            }
        }
    }

    fn copy_to_bytes(&mut self, count: usize) -> Bytes {
        match self {
            Self::One(bytes) => bytes.copy_to_bytes(count),
            Self::Several { .. } => {
                let mut copy = BytesMut::with_capacity(count);
                copy.put(self.take(count));
                copy.freeze()
            }
        }
    }
}

struct Pieces {
    parts: std::vec::IntoIter<Bytes>,
    /// What is left of the part that was begun.
    part: Bytes,
    left: u64,
}

impl Pieces {
    fn next(&mut self) -> Data {
        let size = usize::try_from(self.left).map_or(PIECE_BYTES, |left| left.min(PIECE_BYTES));
        let mut places = Places::default();
        let mut left = size;
        while left > 0 {
            if self.part.is_empty() {
                match self.parts.next() {
                    Some(next) => self.part = next,
                    None => break,
                }
            }
            let taken = self.part.split_to(self.part.len().min(left));
            left -= taken.len();
            places.add(taken);
        }
        self.left -= (size - left) as u64;
        self.fetch_ahead();
        places.finish(size - left)
    }

    /// Has the next piece's bytes brought near while this one is encrypted: they were last read when the objects were
    /// stored, and the processor's own look-ahead ends with every page of memory.
    fn fetch_ahead(&self) {
        let mut left = PIECE_BYTES;
        for part in std::iter::once(&self.part).chain(self.parts.as_slice()) {
            let taken = part.len().min(left);
            fetch(&part[..taken]);
            left -= taken;
            if left == 0 {
                break;
            }
        }
    }
}

/// Asks for bytes that are wanted soon; without a meaning of its own.
#[cfg(target_arch = "x86_64")]
fn fetch(bytes: &[u8]) {
    use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
    const CACHE_LINE_BYTES: usize = 64;
    for line in bytes.chunks(CACHE_LINE_BYTES) {
        // SAFETY: a hint, which may be given for any address; SSE is part of the architecture.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(line.as_ptr().cast()) };
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn fetch(_bytes: &[u8]) {}

/// The places of a piece: long parts as they are, what is short between them joined.
#[derive(Default)]
struct Places {
    parts: VecDeque<Bytes>,
    short: Bytes,
    joined: BytesMut,
}

impl Places {
    fn add(&mut self, part: Bytes) {
        if part.len() >= LENT_FROM {
            self.close();
            self.parts.push_back(part);
        } else if !self.joined.is_empty() {
            self.joined.extend_from_slice(&part);
        } else if self.short.is_empty() {
            self.short = part;
        } else {
            self.joined.reserve(PIECE_BYTES / 2);
            self.joined.extend_from_slice(&std::mem::take(&mut self.short));
            self.joined.extend_from_slice(&part);
        }
    }

    /// Ends what is joined.
    fn close(&mut self) {
        let short = std::mem::take(&mut self.short);
        let place = if self.joined.is_empty() { short } else { std::mem::take(&mut self.joined).freeze() };
        if !place.is_empty() {
            self.parts.push_back(place);
        }
    }

    fn finish(mut self, left: usize) -> Data {
        self.close();
        match self.parts.len() {
            1 => Data::One(self.parts.pop_front().unwrap_or_default()),
            _ => Data::Several { parts: self.parts, left },
        }
    }
}

impl http_body::Body for Pieces {
    type Data = Data;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Data>, Infallible>>> {
        if self.left == 0 {
            return Poll::Ready(None);
        }
        Poll::Ready(Some(Ok(Frame::data(self.next()))))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

/// Bytes that are read and thrown away of a body that is refused: a client that still writes when the connection is
/// closed sees a broken pipe, not the answer.
const DISCARDED_BYTES_MAX: usize = 4 * REQUEST_BYTES_MAX;

/// The whole body, or 413 where it is larger than [`REQUEST_BYTES_MAX`].
pub async fn read(body: Body) -> Result<Bytes, Status> {
    let too_large = || Status::request_entity_too_large(format_args!("limit is {REQUEST_BYTES_MAX}"));
    if body.size_hint().lower() > REQUEST_BYTES_MAX as u64 {
        discard(body).await;
        return Err(too_large());
    }
    // Boxed: the compiler cannot see through the error types of the combinators that the future is Send.
    match Limited::new(body, REQUEST_BYTES_MAX).collect().boxed().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.downcast_ref::<LengthLimitError>().is_some() => Err(too_large()),
        Err(error) => Err(Status::bad_request(format!("the request body could not be read: {error}"))),
    }
}

async fn discard(mut body: Body) {
    let mut left = DISCARDED_BYTES_MAX;
    while let Some(Ok(frame)) = body.frame().await {
        let length = frame.data_ref().map_or(0, Data::remaining);
        let Some(rest) = left.checked_sub(length) else { return };
        left = rest;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn joined_parts_are_the_same_bytes_in_pieces_of_one_size() {
        for sizes in [
            vec![],
            vec![0, 1, 0],
            vec![1; 40_000],
            vec![3000; 50],
            [LENT_FROM, 1].repeat(60),
            [LENT_FROM - 1, LENT_FROM].repeat(60),
            vec![PIECE_BYTES, PIECE_BYTES + 1, 7],
        ] {
            let parts: Vec<Bytes> =
                sizes.iter().enumerate().map(|(at, size)| vec![at as u8; *size].into()).collect();
            let whole = parts.concat();
            let mut body = pieces(parts);
            assert_eq!(body.size_hint().exact(), Some(whole.len() as u64));
            let mut seen = Vec::new();
            while let Some(frame) = body.frame().await {
                let data = frame.unwrap().into_data().unwrap();
                let count = data.remaining();
                assert!(seen.len() % PIECE_BYTES == 0 && count > 0 && count <= PIECE_BYTES);
                let mut slices = [IoSlice::new(&[]); 16];
                let filled = data.chunks_vectored(&mut slices);
                assert!(filled < slices.len(), "{filled} places of {sizes:?}");
                let gathered: usize = slices.iter().map(|slice| slice.len()).sum();
                assert_eq!(gathered, count);
                seen.extend_from_slice(&data.into_bytes());
            }
            assert!(seen == whole, "{} parts", sizes.len());
        }
    }

    #[test]
    fn long_parts_are_lent_and_what_is_taken_moves_over_their_ends() {
        let long = Bytes::from(vec![7; LENT_FROM]);
        let comma = Bytes::from_static(b",");
        let mut places = Places::default();
        [&long, &comma, &long, &comma, &comma].into_iter().for_each(|part| places.add(part.clone()));
        let mut data = places.finish(2 * LENT_FROM + 3);
        let Data::Several { parts, .. } = &data else { panic!("several places") };
        let lengths: Vec<usize> = parts.iter().map(Bytes::len).collect();
        assert_eq!(lengths, [LENT_FROM, 1, LENT_FROM, 2]);
        assert_eq!(parts[0].as_ptr(), long.as_ptr(), "no copy of a long part");
        data.advance(LENT_FROM - 1);
        assert_eq!(data.copy_to_bytes(3), [7, b',', 7].as_slice());
        data.advance(LENT_FROM - 1);
        assert_eq!((data.chunk(), data.remaining()), (b",,".as_slice(), 2));
        data.advance(2);
        assert!(data.chunk().is_empty() && !data.has_remaining());
    }
}
