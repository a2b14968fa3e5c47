//! The one body type of requests and responses inside the server, and reading a body within its limit.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
};

use api::status::Status;
use bytes::{Bytes, BytesMut};
use futures::{FutureExt as _, Stream, StreamExt};
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited, StreamBody, combinators::UnsyncBoxBody};

pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
pub type Body = UnsyncBoxBody<Bytes, BoxError>;

/// Bytes of the largest request body that is read.
pub const REQUEST_BYTES_MAX: usize = 3 * 1024 * 1024;

pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

pub fn empty() -> Body {
    full(Bytes::new())
}

pub fn stream(frames: impl Stream<Item = Result<Bytes, BoxError>> + Send + 'static) -> Body {
    StreamBody::new(frames.map(|item| item.map(Frame::data))).boxed_unsync()
}

/// Bytes of a piece of a long body: with the head of an HTTP/2 frame it fills one TLS record.
const PIECE_BYTES: usize = 16 * 1024 - 9;

/// A body of parts that are there already: its length is known. Small parts are joined a piece at a time, as the client takes
/// them, and no copy of the whole is made.
pub fn pieces(parts: Vec<Bytes>) -> Body {
    let left = parts.iter().map(|part| part.len() as u64).sum();
    let pieces = Pieces { parts: parts.into_iter(), part: Bytes::new(), left };
    pieces.map_err(|never| match never {}).boxed_unsync()
}

struct Pieces {
    parts: std::vec::IntoIter<Bytes>,
    /// What is left of the part that was begun.
    part: Bytes,
    left: u64,
}

impl Pieces {
    fn next(&mut self) -> Bytes {
        let size = usize::try_from(self.left).map_or(PIECE_BYTES, |left| left.min(PIECE_BYTES));
        let mut piece = BytesMut::with_capacity(size);
        while piece.len() < size {
            if self.part.is_empty() {
                match self.parts.next() {
                    Some(next) => self.part = next,
                    None => break,
                }
            }
            let taken = self.part.split_to(self.part.len().min(size - piece.len()));
            piece.extend_from_slice(&taken);
        }
        self.left -= piece.len() as u64;
        piece.freeze()
    }
}

impl http_body::Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
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
        let length = frame.data_ref().map_or(0, Bytes::len);
        let Some(rest) = left.checked_sub(length) else { return };
        left = rest;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn joined_parts_are_the_same_bytes_in_pieces_of_one_size() {
        for sizes in
            [vec![], vec![0, 1, 0], vec![1; 40_000], vec![3000; 50], vec![PIECE_BYTES, PIECE_BYTES + 1, 7]]
        {
            let parts: Vec<Bytes> =
                sizes.iter().enumerate().map(|(at, size)| vec![at as u8; *size].into()).collect();
            let whole = parts.concat();
            let mut body = pieces(parts);
            assert_eq!(body.size_hint().exact(), Some(whole.len() as u64));
            let mut seen = Vec::new();
            while let Some(frame) = body.frame().await {
                let data = frame.unwrap().into_data().unwrap();
                assert!(seen.len() % PIECE_BYTES == 0 && !data.is_empty() && data.len() <= PIECE_BYTES);
                seen.extend_from_slice(&data);
            }
            assert!(seen == whole, "{} parts", sizes.len());
        }
    }
}
