//! From values, cached bytes and errors to HTTP responses.

use api::status::Status;
use bytes::{Bytes, BytesMut};
use http::{HeaderValue, Response, StatusCode, header};
use serde_json::Value;

use crate::{
    negotiate::{Accepted, Encoding},
    server::body::{self, Body},
};

/// Bytes of all warnings of one answer together, as upstream limits them.
const WARNING_BYTES_MAX: usize = 4096;

/// Answers with bytes that are encoded already.
pub fn bytes(code: StatusCode, content_type: &'static str, bytes: impl Into<Bytes>) -> Response<Body> {
    Response::builder()
        .status(code)
        .header(header::CONTENT_TYPE, content_type)
        .header(header::CACHE_CONTROL, "no-cache, private")
        .body(body::full(bytes))
        .expect("the headers are valid")
}

pub fn text(code: StatusCode, text: impl Into<Bytes>) -> Response<Body> {
    bytes(code, "text/plain; charset=utf-8", text)
}

/// Answers with a value in the negotiated encoding.
pub fn value(code: StatusCode, accepted: Accepted, value: &Value) -> Response<Body> {
    bytes(code, accepted.content_type(), encode(accepted.encoding, value))
}

/// The bytes of a value; JSON ends with a newline, as upstream's encoder does.
pub fn encode(encoding: Encoding, value: &Value) -> Bytes {
    match encoding {
        Encoding::Json => {
            let mut bytes = serde_json::to_vec(value).expect("a JSON value always encodes");
            bytes.push(b'\n');
            bytes.into()
        }
        Encoding::Yaml => serde_saphyr::to_string(value).unwrap_or_else(|_| value.to_string()).into(),
    }
}

/// Answers with JSON that is cached as bytes, transcoded where YAML was asked for.
pub fn cached(code: StatusCode, accepted: Accepted, json: &Bytes) -> Response<Body> {
    match accepted.encoding {
        Encoding::Json => bytes(code, accepted.content_type(), json.clone()),
        Encoding::Yaml => {
            let parsed: Value = serde_json::from_slice(json).unwrap_or_default();
            value(code, accepted, &parsed)
        }
    }
}

/// Answers with an error, or with `Status: Success`.
pub fn status(status: &Status) -> Response<Body> {
    let code = StatusCode::from_u16(status.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = value(code, Accepted::JSON, &status.to_value());
    if let Some(seconds) = status.retry_after_seconds() {
        response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
    }
    response
}

/// Adds a `Warning` header for each distinct warning, within upstream's limit.
pub fn add_warnings(response: &mut Response<Body>, warnings: &[String]) {
    let mut total = 0;
    let mut seen: Vec<&str> = Vec::new();
    for warning in warnings {
        if seen.contains(&warning.as_str()) {
            continue;
        }
        seen.push(warning);
        total += warning.len();
        let text = if total > WARNING_BYTES_MAX { truncate(warning, 256) } else { warning };
        let mut quoted = String::from("299 - \"");
        for c in text.chars() {
            match c {
                '"' | '\\' => quoted.extend(['\\', c]),
                c if c.is_control() => quoted.push(' '),
                c => quoted.push(c),
            }
        }
        quoted.push('"');
        if let Ok(value) = HeaderValue::from_bytes(quoted.as_bytes()) {
            response.headers_mut().append(header::WARNING, value);
        }
    }
}

fn truncate(text: &str, bytes_max: usize) -> &str {
    let end = (0..=bytes_max.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    &text[..end.unwrap_or(0)]
}

/// `{"type":KIND,"object":OBJECT}` and a newline: one frame of a watch.
pub fn watch_frame(kind: &str, object: &[u8]) -> Bytes {
    let object = object.strip_suffix(b"\n").unwrap_or(object);
    let mut frame = BytesMut::with_capacity(object.len() + 40);
    frame.extend_from_slice(b"{\"type\":\"");
    frame.extend_from_slice(kind.as_bytes());
    frame.extend_from_slice(b"\",\"object\":");
    frame.extend_from_slice(object);
    frame.extend_from_slice(b"}\n");
    frame.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_are_quoted_and_said_once() {
        let mut response = text(StatusCode::OK, "");
        let warning = "unknown field \"spec.x\"".to_owned();
        add_warnings(&mut response, &[warning.clone(), warning]);
        let headers: Vec<_> = response.headers().get_all(header::WARNING).iter().collect();
        assert_eq!(headers, [r#"299 - "unknown field \"spec.x\"""#]);
    }

    #[test]
    fn a_frame_is_one_line() {
        assert_eq!(watch_frame("ADDED", b"{\"a\":1}\n"), "{\"type\":\"ADDED\",\"object\":{\"a\":1}}\n");
    }
}
