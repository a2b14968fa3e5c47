//! LIST: a snapshot of the cache, filtered, a page at a time, with the cached bytes of every object.
//!
//! | resourceVersion | match        | state that is shown                      |
//! |-----------------|--------------|------------------------------------------|
//! | unset           |              | the newest                               |
//! | 0               |              | whatever the cache has; `limit` is void  |
//! | N               | unset, no limit; NotOlderThan | N or newer              |
//! | N               | Exact; unset with a limit     | exactly N, or 410       |
//! | continue token  |              | that of the first page, or 410           |

use std::sync::Arc;

use api::status::Status;
use base64::Engine as _;
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Response, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Call, Target, target::storage_status};
use crate::{
    negotiate::{self, Accepted, Encoding, Shape},
    protobuf,
    query::{ListOptions, VersionMatch},
    respond,
    server::body::{self, Body},
    storage::{
        Revision, StorageError,
        cache::{Cache, FRESHNESS_TIMEOUT, Object, Snapshot},
    },
    table::partial,
};

/// A list of this many bytes or more is sent in pieces, without a copy of it in memory.
const STREAM_BYTES: usize = 256 * 1024;
/// The messages of a list whose JSON has this many bytes or more are not all kept: each is made when its turn comes.
const UNKEPT_BYTES: usize = 48 * 1024 * 1024;
const ENGINE: base64::engine::GeneralPurpose = base64::engine::general_purpose::URL_SAFE_NO_PAD;

/// Where the next page begins.
#[derive(Serialize, Deserialize)]
struct ContinueToken {
    /// The version of the token's own form.
    v: String,
    /// The state that the first page showed; -1 takes the newest.
    rv: i64,
    /// The first key, without the list's prefix.
    start: String,
}

impl ContinueToken {
    fn new(revision: i64, start: &str) -> Self {
        Self { v: "meta.k8s.io/v1".to_owned(), rv: revision, start: start.to_owned() }
    }

    fn parse(text: &str) -> Result<Self, Status> {
        let invalid = || Status::bad_request("continue key is not valid");
        let bytes = ENGINE.decode(text.trim_end_matches('=')).map_err(|_| invalid())?;
        let token: Self = serde_json::from_slice(&bytes).map_err(|_| invalid())?;
        if token.v != "meta.k8s.io/v1" || token.start.contains("..") || token.rv == 0 {
            return Err(invalid());
        }
        Ok(token)
    }

    fn text(&self) -> String {
        ENGINE.encode(serde_json::to_vec(self).expect("two strings and a number always encode"))
    }
}

/// A page of a list.
pub struct Page {
    pub items: Vec<Arc<Object>>,
    pub revision: Revision,
    next: Option<String>,
    remaining: Option<usize>,
}

impl Page {
    /// Of the items' JSON as stored.
    fn bytes(&self) -> usize {
        self.items.iter().map(|object| object.json().len()).sum()
    }

    /// The list's metadata.
    fn metadata(&self) -> Value {
        let mut metadata = json!({"resourceVersion": self.revision.0.to_string()});
        if let Some(next) = &self.next {
            metadata["continue"] = json!(next);
        }
        if let Some(remaining) = self.remaining {
            metadata["remainingItemCount"] = json!(remaining);
        }
        metadata
    }
}

/// Why there is no page: an error, or a state that is gone but can be gone on from.
enum Refusal {
    Status(Status),
    Expired(ContinueToken),
}

impl From<Status> for Refusal {
    fn from(status: Status) -> Self {
        Self::Status(status)
    }
}

pub async fn handle(call: &mut Call, target: &Target) -> Result<Response<Body>, Status> {
    let accepted = call.accepted_list()?;
    let options = ListOptions::parse(&call.query, false)?;
    let prefix = target.list_prefix(&call.info.namespace);
    match find_page(&call.state.cache, target, &prefix, &options).await {
        Ok(page) => {
            target.prepare(&page.items).await?;
            answer(call, target, accepted, page).await
        }
        Err(Refusal::Status(status)) => Err(status),
        Err(Refusal::Expired(token)) => Ok(expired(&call.headers, &token)),
    }
}

/// The objects of a selection in the newest state.
pub async fn select(
    cache: &Cache,
    target: &Target,
    namespace: &str,
    options: &ListOptions,
) -> Result<Page, Status> {
    match find_page(cache, target, &target.list_prefix(namespace), options).await {
        Ok(page) => Ok(page),
        Err(Refusal::Status(status)) => Err(status),
        Err(Refusal::Expired(_)) => Err(Status::expired(EXPIRED)),
    }
}

const EXPIRED: &str = "The provided continue parameter is too old to display a consistent list result. You can start \
                       a new list without the continue parameter, or use the continue token in this response to \
                       retrieve the remainder of the results. Continuing with the provided token results in an \
                       inconsistent list - objects that were created, modified, or deleted between the time the first \
                       chunk was returned and now may show up in the list.";

/// 410 with a token that goes on from the same place in the newest state.
fn expired(headers: &HeaderMap, token: &ContinueToken) -> Response<Body> {
    let mut value = Status::expired(EXPIRED).to_value();
    value["metadata"]["continue"] = json!(ContinueToken::new(-1, &token.start).text());
    respond::value(StatusCode::GONE, negotiate::for_error(headers), &value)
}

async fn find_page(
    cache: &Cache,
    target: &Target,
    prefix: &str,
    options: &ListOptions,
) -> Result<Page, Refusal> {
    if let Some(selector) = &options.fields {
        target.check_fields(selector)?;
    }
    if options.continue_token.is_empty() {
        let snapshot = snapshot(cache, target, prefix, options).await.map_err(|error| list_status(&error))?;
        let limit = if options.resource_version == Some(0) { 0 } else { options.limit };
        prepare(target, options, &snapshot).await?;
        return Ok(page(&snapshot, target, options, prefix, prefix, limit));
    }
    let token = ContinueToken::parse(&options.continue_token)?;
    if options.resource_version.is_some_and(|version| version != 0) {
        return Err(
            Status::bad_request("specifying resource version is not allowed when using continue").into()
        );
    }
    let start = format!("{prefix}{}", token.start);
    let snapshot = if token.rv < 0 {
        cache.fresh().await.map_err(|error| storage_status(&error))?;
        cache.list(prefix)
    } else {
        match cache.list_at(prefix, Revision(token.rv.unsigned_abs())).await {
            Ok(snapshot) => snapshot,
            Err(StorageError::Compacted { .. }) => return Err(Refusal::Expired(token)),
            Err(error) => return Err(list_status(&error).into()),
        }
    };
    prepare(target, options, &snapshot).await?;
    Ok(page(&snapshot, target, options, prefix, &start, options.limit))
}

fn list_status(error: &StorageError) -> Status {
    match error {
        StorageError::Compacted { requested, .. } => Status::expired(format!(
            "The provided resource version is too old: too old resource version: {}",
            requested.0
        )),
        other => storage_status(other),
    }
}

async fn snapshot(
    cache: &Cache,
    target: &Target,
    prefix: &str,
    options: &ListOptions,
) -> Result<Snapshot, StorageError> {
    let exact = options.version_match == VersionMatch::Exact
        || (options.version_match == VersionMatch::Unset && options.limit > 0);
    match options.resource_version {
        None => {
            cache.fresh().await?;
        }
        Some(0) => {}
        Some(version) if exact => return cache.list_at(prefix, Revision(version)).await,
        Some(version) => cache.wait_for(Revision(version), FRESHNESS_TIMEOUT).await?,
    }
    Ok(target.narrowed(cache, prefix, options))
}

/// A field selector looks into every object.
async fn prepare(target: &Target, options: &ListOptions, snapshot: &Snapshot) -> Result<(), Status> {
    if options.fields.is_some() { target.prepare(snapshot.iter()).await } else { Ok(()) }
}

fn page(
    snapshot: &Snapshot,
    target: &Target,
    options: &ListOptions,
    prefix: &str,
    start: &str,
    limit: usize,
) -> Page {
    let mut items = Vec::new();
    let mut next = None;
    let mut remaining = None;
    for object in snapshot.iter_from(start) {
        if !target.matches(options, object) {
            continue;
        }
        if limit > 0 && items.len() == limit {
            let last: &Arc<Object> = &items[limit - 1];
            let after = format!("{}\0", last.key().strip_prefix(prefix).unwrap_or(last.key()));
            let revision = i64::try_from(snapshot.revision.0).unwrap_or(-1);
            next = Some(ContinueToken::new(revision, &after).text());
            if !options.has_selector() {
                remaining = Some(snapshot.remaining_from(object.key()));
            }
            break;
        }
        items.push(Arc::clone(object));
    }
    Page { items, revision: snapshot.revision, next, remaining }
}

async fn answer(
    call: &Call,
    target: &Target,
    accepted: Accepted,
    page: Page,
) -> Result<Response<Body>, Status> {
    let value = match accepted.shape {
        Shape::Object if accepted.is_plain(Encoding::Json) => {
            return Ok(in_pieces(accepted, json_pieces(target, &page)));
        }
        Shape::Object if accepted.encoding == Encoding::Protobuf && page.bytes() >= UNKEPT_BYTES => {
            let mut response = respond::bytes(StatusCode::OK, accepted.content_type(), Bytes::new());
            let metadata = page.metadata();
            *response.body_mut() = body::stream(protobuf::long_list(target, &metadata, page.items).await);
            return Ok(response);
        }
        Shape::PartialObjectMetadata => {
            return Err(Status::not_acceptable_shape(format!(
                "you requested PartialObjectMetadata, but the requested object is a list ({}List)",
                target.go_kind()
            )));
        }
        Shape::Object | Shape::PartialObjectMetadataList if accepted.encoding == Encoding::Protobuf => {
            let items = page.items.iter().map(|object| &**object);
            return Ok(in_pieces(accepted, protobuf::list(accepted, target, &page.metadata(), items)));
        }
        Shape::Object => {
            let items: Vec<Value> = page.items.iter().map(|object| target.value(object)).collect();
            json!({
                "kind": target.resource.list_kind(),
                "apiVersion": target.resource.group_version(),
                "metadata": page.metadata(),
                "items": items,
            })
        }
        Shape::Table => {
            let tabler = call.tabler(target, accepted)?;
            let rows = page.items.iter().map(|object| tabler.row(target.value(object))).collect();
            tabler.table(page.metadata(), rows, true)
        }
        Shape::PartialObjectMetadataList => {
            let item = |object: &Arc<Object>| partial(&target.value(object), accepted.meta_version);
            let items: Vec<Value> = page.items.iter().map(item).collect();
            json!({
                "kind": "PartialObjectMetadataList",
                "apiVersion": format!("meta.k8s.io/{}", accepted.meta_version),
                "metadata": page.metadata(),
                "items": items,
            })
        }
    };
    Ok(respond::value(StatusCode::OK, accepted, &value))
}

/// The list as its head, the cached bytes of its items with commas between, and its tail.
fn json_pieces(target: &Target, page: &Page) -> Vec<Bytes> {
    let head = format!(
        "{{\"kind\":\"{}\",\"apiVersion\":\"{}\",\"metadata\":{},\"items\":[",
        target.resource.list_kind(),
        target.resource.group_version(),
        page.metadata()
    );
    let mut pieces: Vec<Bytes> = Vec::with_capacity(page.items.len() * 2 + 2);
    pieces.push(head.into());
    for (index, object) in page.items.iter().enumerate() {
        if index > 0 {
            pieces.push(Bytes::from_static(b","));
        }
        pieces.push(target.json(object));
    }
    pieces.push(Bytes::from_static(b"]}\n"));
    pieces
}

fn in_pieces(accepted: Accepted, pieces: Vec<Bytes>) -> Response<Body> {
    let size: usize = pieces.iter().map(Bytes::len).sum();
    let mut response = respond::bytes(StatusCode::OK, accepted.content_type(), Bytes::new());
    *response.body_mut() = if size < STREAM_BYTES {
        let mut whole = BytesMut::with_capacity(size);
        pieces.iter().for_each(|piece| whole.extend_from_slice(piece));
        body::full(whole.freeze())
    } else {
        body::pieces(pieces)
    };
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_continue_token_survives_its_text_form() {
        let token = ContinueToken::parse(&ContinueToken::new(7, "ns/a\0").text()).unwrap();
        assert_eq!((token.rv, token.start.as_str()), (7, "ns/a\0"));
        for text in ["", "x", "e30", &ENGINE.encode(r#"{"v":"other","rv":1,"start":"a"}"#)] {
            assert_eq!(ContinueToken::parse(text).err().map(|status| status.code), Some(400), "{text}");
        }
    }
}
