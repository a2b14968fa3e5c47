//! The last stages of a request: what it came to, and when what lasts has ended.

use std::sync::Arc;

use http::{Response, header};
use http_body::Body as _;
use http_body_util::BodyExt as _;
use serde_json::Value;

use super::{Level, Recorder, Stage};
use crate::server::body::{self, Body};

/// Larger answers are not kept.
const KEPT_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// Makes the event of the end when it is dropped, with the body of a watch or a stream.
struct End(Arc<Recorder>);

impl Drop for End {
    fn drop(&mut self) {
        self.0.write(Stage::ResponseComplete);
    }
}

/// Notes an answer before it is sent; `lasts` tells a watch or a stream.
pub(crate) async fn finish(audit: Arc<Recorder>, lasts: bool, response: Response<Body>) -> Response<Body> {
    let code = response.status().as_u16();
    if lasts && code < 400 {
        audit.response(code, None);
        audit.write(Stage::ResponseStarted);
        let end = End(audit);
        return response.map(|body| {
            body.map_frame(move |frame| {
                let _lasts_as_long = &end;
                frame
            })
            .boxed_unsync()
        });
    }
    let is_kept = code >= 400 || audit.level() >= Level::RequestResponse;
    let (response, value) = if is_kept { read(response).await } else { (response, None) };
    audit.response(code, value.as_ref());
    audit.write(Stage::ResponseComplete);
    response
}

/// The answer with its body as a value, where it is JSON that is all there.
async fn read(response: Response<Body>) -> (Response<Body>, Option<Value>) {
    let is_json = response
        .headers()
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .is_some_and(|value| value.starts_with("application/json"));
    let is_whole = response.body().size_hint().exact().is_some_and(|size| size <= KEPT_BYTES_MAX);
    if !is_json || !is_whole {
        return (response, None);
    }
    let (parts, body) = response.into_parts();
    let bytes = match body.collect().await {
        Ok(body) => body.to_bytes(),
        // A body that is all there cannot fail.
        Err(_) => bytes::Bytes::new(),
    };
    let value = serde_json::from_slice(&bytes).ok();
    (Response::from_parts(parts, body::full(bytes)), value)
}
