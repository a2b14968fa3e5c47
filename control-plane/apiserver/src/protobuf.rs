//! Answers in protobuf, from the messages that the cache keeps: an object in its envelope, a list as its items one after
//! another, the frames of a watch. Nothing is decoded for them, and an object version is encoded once.

use api::{
    protobuf::{self, ENVELOPE_TAIL, envelope_head, field_head},
    schema::builtin,
};
use bytes::{Bytes, BytesMut};
use http::{Response, StatusCode};
use serde_json::Value;

use crate::{
    handlers::Target,
    negotiate::{Accepted, Shape},
    respond,
    server::body::Body,
    storage::{Revision, cache::Object},
};

/// The message of an object in the shape that was asked for: the whole, or what holds its metadata.
fn message(target: &Target, accepted: Accepted, object: &Object) -> Bytes {
    shaped(accepted, target.protobuf(object))
}

fn shaped(accepted: Accepted, whole: Bytes) -> Bytes {
    if accepted.shape == Shape::Object {
        return whole;
    }
    let metadata = protobuf::metadata_of(&whole).map_or(0..0, |metadata| 0..metadata.len());
    whole.slice(metadata)
}

/// `apiVersion` and `kind` of one object in the shape that was asked for.
fn identity(target: &Target, accepted: Accepted) -> (String, String) {
    match accepted.shape {
        Shape::Object => (target.resource.group_version(), target.resource.kind.clone()),
        _ => (format!("meta.k8s.io/{}", accepted.meta_version), "PartialObjectMetadata".to_owned()),
    }
}

/// Answers with one object.
pub fn object(code: StatusCode, accepted: Accepted, target: &Target, object: &Object) -> Response<Body> {
    let (api_version, kind) = identity(target, accepted);
    let message = message(target, accepted, object);
    respond::bytes(code, accepted.content_type(), protobuf::envelope(&api_version, &kind, &message))
}

/// The pieces of a list: its head, for each item a head and its cached message, and the envelope's tail.
pub fn list<'a>(
    accepted: Accepted,
    target: &Target,
    metadata: &Value,
    items: impl Iterator<Item = &'a Object>,
) -> Vec<Bytes> {
    let (api_version, kind) = match accepted.shape {
        Shape::Object => (target.resource.group_version(), target.resource.list_kind()),
        _ => identity(target, accepted),
    };
    let kind = if accepted.shape == Shape::Object { kind } else { format!("{kind}List") };
    let metadata = protobuf::list_metadata(builtin(), metadata);
    let mut length = metadata.len();
    let mut pieces = vec![Bytes::new()];
    for object in items {
        let message = message(target, accepted, object);
        let head = field_head(2, message.len());
        length += head.len() + message.len();
        pieces.push(head.into());
        pieces.push(message);
    }
    let mut head = BytesMut::from(&*envelope_head(&api_version, &kind, length));
    head.extend_from_slice(&metadata);
    pieces[0] = head.freeze();
    pieces.push(Bytes::from_static(ENVELOPE_TAIL));
    pieces
}

/// The frame of an event that carries an object, under another revision where `at` says one.
pub fn frame(
    kind: &str,
    accepted: Accepted,
    target: &Target,
    object: &Object,
    at: Option<Revision>,
) -> Bytes {
    let whole = match at {
        None => target.protobuf(object),
        Some(revision) => target.protobuf_at(object, revision),
    };
    let message = shaped(accepted, whole);
    let (api_version, object_kind) = identity(target, accepted);
    let head = envelope_head(&api_version, &object_kind, message.len());
    protobuf::watch_frame(kind, &head, &message).into()
}

/// The frame of an event that carries a Status or a bookmark.
pub fn frame_of_value(kind: &str, value: &Value) -> Bytes {
    let object = protobuf::encode_any(builtin(), value);
    protobuf::watch_frame_of(kind, &object.unwrap_or_default()).into()
}
