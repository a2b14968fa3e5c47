//! Answers in protobuf, from the messages that the cache keeps: an object in its envelope, a list as its items one after
//! another, the frames of a watch. Nothing is decoded for them, and an object version is encoded once.

use std::sync::Arc;

use api::{
    protobuf::{self, ENVELOPE_TAIL, envelope_head, field_head},
    schema::builtin,
};
use bytes::{Bytes, BytesMut};
use futures::{Stream, stream};
use http::{Response, StatusCode};
use serde_json::Value;

use crate::{
    handlers::Target,
    negotiate::{Accepted, Shape},
    respond,
    server::body::{Body, BoxError, Data},
    storage::{Revision, cache::Object},
};

/// Other requests get their turn after so many lengths.
const LENGTHS_AT_ONCE: usize = 64;

/// The message of an object in the shape that was asked for: the whole, or what holds its metadata.
fn message(target: &Target, accepted: Accepted, object: &Object) -> Bytes {
    shaped(accepted, target.protobuf(object))
}

fn shaped(accepted: Accepted, whole: Bytes) -> Bytes {
    if accepted.shape == Shape::Object {
        return whole;
    }
    // Not a part of it, which would keep all of it in memory.
    let metadata = protobuf::metadata_of(&whole).map_or(0..0, |metadata| 0..metadata.len());
    Bytes::copy_from_slice(&whole[metadata])
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

/// A list that is too long to have all its messages in memory: they are made one after the other as the client takes them,
/// once before for those whose length nobody knows, as the list begins with the length of the whole.
pub async fn long_list(
    target: &Target,
    metadata: &Value,
    items: Vec<Arc<Object>>,
) -> impl Stream<Item = Result<Data, BoxError>> + Send + use<> {
    let metadata = protobuf::list_metadata(builtin(), metadata);
    let mut length = metadata.len();
    for (index, object) in items.iter().enumerate() {
        let message = target.protobuf_length(object);
        length += field_head(2, message).len() + message;
        if index % LENGTHS_AT_ONCE == LENGTHS_AT_ONCE - 1 {
            tokio::task::yield_now().await;
        }
    }
    let head = envelope_head(&target.resource.group_version(), &target.resource.list_kind(), length).into();
    let target = target.clone();
    let items = items.into_iter().map(move |object| {
        let message = target.protobuf(&object);
        Data::of_parts([field_head(2, message.len()).into(), message])
    });
    let whole = std::iter::once(Data::of_parts([head, metadata.into()]))
        .chain(items)
        .chain(std::iter::once(Bytes::from_static(ENVELOPE_TAIL).into()));
    stream::iter(whole.map(Ok))
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

#[cfg(test)]
mod tests {
    use bytes::Buf as _;
    use futures::StreamExt as _;
    use serde_json::json;

    use super::*;
    use crate::{kinds::Kinds, negotiate::Encoding};

    #[tokio::test]
    async fn a_long_list_is_the_same_bytes_as_a_short_one() {
        let kinds = Kinds::new(builtin());
        let target = kinds.of_kind("", "v1", "ConfigMap").unwrap();
        let objects: Vec<Arc<Object>> = (0..LENGTHS_AT_ONCE * 2 + 1)
            .map(|index| {
                let name = format!("c{index:04}");
                let value = json!({
                    "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "namespace": "n"},
                    "data": {"text": "x".repeat(index * 3)},
                });
                let revision = Revision(index as u64 + 2);
                Arc::new(Object::new(name.into(), revision, value.to_string().as_bytes()).unwrap())
            })
            .collect();
        let accepted = Accepted { encoding: Encoding::Protobuf, ..Accepted::JSON };
        let metadata = json!({"resourceVersion": "7"});
        let mut long = BytesMut::new();
        let mut pieces = std::pin::pin!(long_list(&target, &metadata, objects.clone()).await);
        while let Some(piece) = pieces.next().await {
            let mut piece = piece.unwrap();
            long.extend_from_slice(&piece.copy_to_bytes(piece.remaining()));
        }
        let short = list(accepted, &target, &metadata, objects.iter().map(|object| &**object)).concat();
        assert_eq!(long, short);
        assert!(objects.iter().all(|object| object.protobuf_length().is_some()), "known for the next list");
    }
}
