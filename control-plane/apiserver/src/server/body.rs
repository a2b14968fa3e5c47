//! The one body type of requests and responses inside the server, and reading a body within its limit.

use std::{
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
};

use api::status::Status;
use bytes::Bytes;
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

/// A body of pieces that are there already, sent one by one: its length is known, and no copy of the whole is made.
pub fn pieces(pieces: Vec<Bytes>) -> Body {
    let left = pieces.iter().map(|piece| piece.len() as u64).sum();
    Pieces { pieces: pieces.into_iter(), left }.map_err(|never| match never {}).boxed_unsync()
}

struct Pieces {
    pieces: std::vec::IntoIter<Bytes>,
    left: u64,
}

impl http_body::Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        Poll::Ready(self.pieces.next().map(|piece| {
            self.left -= piece.len() as u64;
            Ok(Frame::data(piece))
        }))
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
