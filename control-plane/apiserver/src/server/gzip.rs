//! Compression of answers that are large, as upstream does it: only where the client asks, only from 128 KiB on, never a
//! watch, and at the level that costs least.

use std::{
    io::Write as _,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};
use http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use http_body::{Body as _, Frame};
use http_body_util::BodyExt as _;

use super::body::{Body, BoxError, Data};

/// Shorter answers are sent as they are.
const COMPRESSED_FROM: u64 = 128 * 1024;
/// What is compressed before something else may run on this thread.
const STEP_BYTES: usize = 64 * 1024;

/// Whether the client takes gzip.
pub fn is_asked_for(headers: &HeaderMap) -> bool {
    let values = headers.get_all(header::ACCEPT_ENCODING).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|clause| {
        let mut parts = clause.split(';').map(str::trim);
        let is_gzip = parts.next() == Some("gzip");
        is_gzip && !parts.any(|parameter| matches!(parameter, "q=0" | "q=0.0" | "q=0.00" | "q=0.000"))
    })
}

/// Compresses an answer that is worth it.
pub fn compress(response: Response<Body>) -> Response<Body> {
    let size = response.body().size_hint().exact();
    let is_whole = response.status() == StatusCode::OK
        && !response.headers().contains_key(header::CONTENT_ENCODING)
        && size.is_some_and(|size| size >= COMPRESSED_FROM);
    if !is_whole {
        return response;
    }
    let (mut parts, body) = response.into_parts();
    parts.headers.remove(header::CONTENT_LENGTH);
    parts.headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    parts.headers.append(header::VARY, HeaderValue::from_static("Accept-Encoding"));
    let encoder = Some(GzEncoder::new(Vec::with_capacity(STEP_BYTES), Compression::fast()));
    Response::from_parts(parts, Gzip { body, encoder, pending: Bytes::new() }.boxed_unsync())
}

struct Gzip {
    body: Body,
    /// `None` after the end.
    encoder: Option<GzEncoder<Vec<u8>>>,
    /// What is read and not compressed yet.
    pending: Bytes,
}

impl Gzip {
    /// Takes in some bytes; what came out so far, where that is enough to send.
    fn step(&mut self) -> Result<Option<Bytes>, BoxError> {
        let Some(encoder) = &mut self.encoder else { return Ok(None) };
        let part = self.pending.split_to(self.pending.len().min(STEP_BYTES));
        encoder.write_all(&part)?;
        let out = encoder.get_mut();
        Ok((out.len() >= STEP_BYTES).then(|| std::mem::take(out).into()))
    }
}

impl http_body::Body for Gzip {
    type Data = Data;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Data>, BoxError>>> {
        let mut budget = 8 * STEP_BYTES;
        loop {
            if self.encoder.is_none() {
                return Poll::Ready(None);
            }
            if !self.pending.is_empty() {
                if budget == 0 {
                    context.waker().wake_by_ref();
                    return Poll::Pending;
                }
                budget = budget.saturating_sub(self.pending.len().min(STEP_BYTES));
                match self.step() {
                    Ok(None) => continue,
                    Ok(Some(bytes)) => return Poll::Ready(Some(Ok(Frame::data(bytes.into())))),
                    Err(error) => return Poll::Ready(Some(Err(error))),
                }
            }
            match Pin::new(&mut self.body).poll_frame(context) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Some(Ok(frame))) => {
                    self.pending = frame.into_data().map(Data::into_bytes).unwrap_or_default();
                }
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Some(Err(error))),
                Poll::Ready(None) => {
                    let last = self.encoder.take().map(GzEncoder::finish);
                    let last = last.transpose().map(Option::unwrap_or_default);
                    return Poll::Ready(Some(
                        last.map(|bytes| Frame::data(Data::One(bytes.into()))).map_err(Into::into),
                    ));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;
    use crate::server::body;

    #[test]
    fn only_who_asks_for_gzip_gets_it() {
        for (value, expected) in [
            ("gzip", true),
            ("deflate, gzip;q=0.5", true),
            ("gzip;q=0", false),
            ("identity", false),
            ("", false),
        ] {
            let headers =
                HeaderMap::from_iter([(header::ACCEPT_ENCODING, HeaderValue::from_str(value).unwrap())]);
            assert_eq!(is_asked_for(&headers), expected, "{value}");
        }
    }

    #[tokio::test]
    async fn large_answers_are_compressed_and_small_ones_are_not() {
        let piece = Bytes::from((0..100_000_u32).flat_map(u32::to_be_bytes).collect::<Vec<u8>>());
        let pieces = vec![piece.clone(), Bytes::from_static(b"end")];
        let response = compress(Response::new(body::pieces(pieces)));
        assert_eq!(response.headers()[header::CONTENT_ENCODING], "gzip");
        let packed = response.into_body().collect().await.unwrap().to_bytes();
        let mut unpacked = Vec::new();
        flate2::read::GzDecoder::new(&*packed).read_to_end(&mut unpacked).unwrap();
        assert!(unpacked[..piece.len()] == piece && unpacked.ends_with(b"end"));
        let response = compress(Response::new(body::full("small")));
        assert!(!response.headers().contains_key(header::CONTENT_ENCODING));
    }
}
