//! From values, cached bytes and errors to HTTP responses.

use api::{protobuf, schema::builtin, status::Status};
use bytes::{Bytes, BytesMut};
use http::{HeaderValue, Response, StatusCode, header};
use serde_json::Value;

use crate::{
    negotiate::{Accepted, Encoding},
    server::body::{self, Body},
};

/// Characters of all warnings of one answer together, and of each where that is not enough, as upstream limits them.
const WARNING_CHARACTERS_MAX: usize = 4096;
const CUT_WARNING_CHARACTERS: usize = 256;

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
    let encoded = encode(accepted, value);
    // Only built-in kinds have a protobuf form, and negotiation knows which are: JSON stands in for all others.
    match encoded {
        Some(encoded) => bytes(code, accepted.content_type(), encoded),
        None => bytes(code, Accepted::JSON.content_type(), json(value, accepted.pretty)),
    }
}

/// The bytes of a value; `None` where it has no form in this encoding.
fn encode(accepted: Accepted, value: &Value) -> Option<Bytes> {
    Some(match accepted.encoding {
        Encoding::Json => json(value, accepted.pretty),
        Encoding::Yaml => serde_saphyr::to_string(value).unwrap_or_else(|_| value.to_string()).into(),
        Encoding::Protobuf => protobuf::encode_any(builtin(), value)?.into(),
    })
}

/// JSON ends with a newline, as upstream's encoder does.
fn json(value: &Value, pretty: bool) -> Bytes {
    let encoded = if pretty { serde_json::to_vec_pretty(value) } else { serde_json::to_vec(value) };
    let mut bytes = encoded.expect("a JSON value always encodes");
    bytes.push(b'\n');
    bytes.into()
}

/// Answers with an error, or with `Status: Success`.
pub fn status(accepted: Accepted, status: &Status) -> Response<Body> {
    let code = StatusCode::from_u16(status.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let mut response = value(code, accepted, &status.to_value());
    if let Some(seconds) = status.retry_after_seconds() {
        response.headers_mut().insert(header::RETRY_AFTER, seconds.into());
    }
    response
}

/// Adds a `Warning` header for each distinct warning. Once all of them together are longer than upstream allows, each is
/// cut, and what is then still too much is not said.
pub fn add_warnings(response: &mut Response<Body>, warnings: &[String]) {
    let mut distinct: Vec<&str> = Vec::new();
    for warning in warnings {
        if !warning.is_empty() && !distinct.contains(&warning.as_str()) {
            distinct.push(warning);
        }
    }
    let characters: usize = distinct.iter().map(|warning| warning.chars().count()).sum();
    let cut = characters > WARNING_CHARACTERS_MAX;
    let mut total = 0;
    for warning in distinct {
        if total >= WARNING_CHARACTERS_MAX && cut {
            return;
        }
        let text = if cut { truncate(warning, CUT_WARNING_CHARACTERS) } else { warning };
        total += text.chars().count();
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

fn truncate(text: &str, characters: usize) -> &str {
    text.char_indices().nth(characters).map_or(text, |(end, _)| &text[..end])
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
    fn many_long_warnings_are_cut_and_end_within_the_limit() {
        let mut response = text(StatusCode::OK, "");
        let warnings: Vec<String> = (0..20).map(|i| format!("{i}{}", "\u{e4}".repeat(400))).collect();
        add_warnings(&mut response, &warnings);
        let headers: Vec<_> = response.headers().get_all(header::WARNING).iter().collect();
        assert_eq!(headers.len(), 16);
        let said = String::from_utf8(headers[15].as_bytes().to_vec()).unwrap();
        assert_eq!(said.chars().count(), 256 + r#"299 - """#.len());
    }

    #[test]
    fn a_frame_is_one_line() {
        assert_eq!(watch_frame("ADDED", b"{\"a\":1}\n"), "{\"type\":\"ADDED\",\"object\":{\"a\":1}}\n");
    }
}
