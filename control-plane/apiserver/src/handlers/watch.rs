//! WATCH: the state to begin with where it is asked for, then every change, then bookmarks, as lines of JSON or
//! frames of protobuf.
//!
//! | resourceVersion | sendInitialEvents | begins with                                     |
//! |-----------------|-------------------|-------------------------------------------------|
//! | unset, 0        | unset             | the state as ADDED events                       |
//! | any             | true              | the state, then a bookmark that says it is whole |
//! | unset, 0        | false             | what happens from now on                        |
//! | N               | unset, false      | every change after N, or an ERROR event with 410 |
//!
//! With a selector, an object that begins to match is ADDED and one that ceases to is DELETED.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use api::status::Status;
use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use futures::{
    FutureExt as _, Stream, StreamExt,
    future::BoxFuture,
    stream::{self, FuturesUnordered},
};
use http::{Response, StatusCode};
use rand::Rng as _;
use serde_json::{Value, json};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Call, Target, target::storage_status};
use crate::{
    negotiate::{Accepted, Encoding, Shape},
    protobuf,
    query::ListOptions,
    respond::{self, watch_frame},
    server::body::{self, Body, Data},
    state::State,
    storage::{
        Revision, StorageError,
        cache::{Delivery, Event, EventKind, FRESHNESS_TIMEOUT, Object, Watch},
    },
    table::{Tabler, partial},
};

/// Events that wait are sent together up to about this many bytes.
const BURST_BYTES: usize = 12 * 1024;
/// An event that comes sooner after the last send waits until then for others, as each send costs more than an event. One
/// that comes after a time without any is sent at once.
const GATHER_TIME: Duration = Duration::from_millis(1);
/// The annotation of the bookmark that ends the initial events.
const INITIAL_EVENTS_END: &str = "k8s.io/initial-events-end";

pub async fn handle(call: &mut Call, target: &Target) -> Result<Response<Body>, Status> {
    let accepted = call.accepted_stream()?;
    let mut options = ListOptions::parse(&call.query, true)?;
    if let Some(selector) = &options.fields {
        target.check_fields(selector)?;
    } else if !call.info.name.is_empty() {
        // The old form /watch/.../NAME.
        let selector = format!("metadata.name={}", call.info.name);
        options.fields = api::selector::FieldSelector::parse(&selector).ok();
    }
    let prefix = target.list_prefix(&call.info.namespace);
    let timeout =
        options.timeout.unwrap_or_else(|| Duration::from_secs(rand::rng().random_range(1800..3600)));
    let mut encoder = Encoder {
        target: target.clone(),
        tabler: match accepted.shape {
            Shape::Table => Some(call.tabler(target, accepted)?),
            _ => None,
        },
        accepted,
        with_columns: true,
    };
    let stop = target.ended.as_ref().unwrap_or(&call.state.stop).clone();
    let begin = begin(&call.state, target, &prefix, &options, &mut encoder).await?;
    let source = Source {
        initial: begin.frames,
        watch: begin.watch.map(|watch| if options.allow_bookmarks { watch.with_bookmarks() } else { watch }),
        options,
        encoder,
        ends: ends(stop, timeout),
        guard: Counted::new(Arc::clone(&call.state)),
        pace: Pace::default(),
        last: false,
    };
    let mut response = respond::bytes(StatusCode::OK, accepted.stream_type(), Bytes::new());
    *response.body_mut() = body::stream(frames(source));
    Ok(response)
}

/// Counts a watch for as long as it lives.
struct Counted(Arc<State>);

impl Counted {
    fn new(state: Arc<State>) -> Self {
        state.metrics.watch_started();
        Self(state)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.metrics.watch_ended();
    }
}

struct Begin {
    frames: VecDeque<Data>,
    /// `None` after an ERROR frame.
    watch: Option<Watch>,
}

async fn begin(
    state: &State,
    target: &Target,
    prefix: &str,
    options: &ListOptions,
    encoder: &mut Encoder,
) -> Result<Begin, Status> {
    let cache = &state.cache;
    let version = options.resource_version.unwrap_or(0);
    let wants_state = options.send_initial_events.unwrap_or(version == 0);
    if options.resource_version.is_none() {
        cache.fresh().await.map_err(|error| storage_status(&error))?;
    }
    if !wants_state {
        let watch = match version {
            0 => cache.watch(prefix, None),
            version => cache.resume(prefix, Revision(version)).await,
        };
        return Ok(match watch {
            Ok(watch) => Begin { frames: VecDeque::new(), watch: Some(watch) },
            Err(error) => {
                Begin { frames: VecDeque::from([error_frame(encoder.accepted, &error)]), watch: None }
            }
        });
    }
    if version > 0 {
        cache.wait_for(Revision(version), FRESHNESS_TIMEOUT).await.map_err(|error| storage_status(&error))?;
    }
    loop {
        let snapshot = cache.list(prefix);
        // History can move past the snapshot in between, on a busy resource: take a newer one.
        let Ok(watch) = cache.watch(prefix, Some(snapshot.revision)) else { continue };
        target.prepare(snapshot.iter()).await?;
        let mut frames: VecDeque<Data> = snapshot
            .iter()
            .filter(|object| target.matches(options, object))
            .map(|object| encoder.frame(EventKind::Added, object, None))
            .collect();
        if options.send_initial_events == Some(true) && options.allow_bookmarks {
            frames.push_back(encoder.bookmark(snapshot.revision, true));
        }
        return Ok(Begin { frames, watch: Some(watch) });
    }
}

/// The error that ends a stream, as a frame.
fn error_frame(accepted: Accepted, error: &StorageError) -> Data {
    let status = match error {
        StorageError::Compacted { requested, oldest } => {
            Status::expired(format!("too old resource version: {} ({})", requested.0, oldest.0))
        }
        StorageError::Lagged => Status::expired("the watch fell too far behind and was closed; list again"),
        other => storage_status(other),
    };
    status_frame(accepted, &status)
}

fn status_frame(accepted: Accepted, status: &Status) -> Data {
    value_frame(accepted, "ERROR", &status.to_value())
}

fn value_frame(accepted: Accepted, kind: &str, value: &Value) -> Data {
    match accepted.encoding {
        Encoding::Protobuf => protobuf::frame_of_value(kind, value).into(),
        Encoding::Json | Encoding::Yaml => watch_frame(kind, value.to_string().as_bytes()).into(),
    }
}

/// The line that tells of an object, around the bytes that all readers share.
fn line(kind: EventKind, json: Bytes) -> Data {
    let head: &[u8] = match kind {
        EventKind::Added => b"{\"type\":\"ADDED\",\"object\":",
        EventKind::Modified => b"{\"type\":\"MODIFIED\",\"object\":",
        EventKind::Deleted => b"{\"type\":\"DELETED\",\"object\":",
    };
    Data::of_parts([Bytes::from_static(head), json, Bytes::from_static(b"}\n")])
}

struct Source {
    initial: VecDeque<Data>,
    watch: Option<Watch>,
    options: ListOptions,
    encoder: Encoder,
    ends: FuturesUnordered<BoxFuture<'static, End>>,
    #[expect(dead_code, reason = "held for its Drop")]
    guard: Counted,
    pace: Pace,
    /// Nothing follows.
    last: bool,
}

/// Why a watch ends that could go on.
#[derive(Clone, Copy)]
enum End {
    Deadline,
    /// Of the server, or of the custom kind that is watched.
    Stop,
}

/// What ends a watch, in a set, as that asks its members only when they were woken: an event comes far more often.
fn ends(stop: CancellationToken, timeout: Duration) -> FuturesUnordered<BoxFuture<'static, End>> {
    let deadline = tokio::time::sleep(timeout).map(|()| End::Deadline).boxed();
    let stopped = stop.cancelled_owned().map(|()| End::Stop).boxed();
    FuturesUnordered::from_iter([deadline, stopped])
}

fn frames(source: Source) -> impl Stream<Item = Result<Data, body::BoxError>> + Send {
    // Boxed, as it moves twice for each frame.
    stream::unfold(Box::new(source), |mut source| async move {
        let frame = source.next().await?;
        Some((Ok(frame), source))
    })
}

impl Source {
    async fn next(&mut self) -> Option<Data> {
        if let Some(frame) = self.initial.pop_front() {
            return Some(frame);
        }
        loop {
            if self.last {
                return None;
            }
            let watch = self.watch.as_mut()?;
            // The ends first: they come however busy the watch is.
            let delivery = tokio::select! {
                biased;
                Some(end) = self.ends.next() => {
                    self.last = true;
                    if matches!(end, End::Stop) {
                        return self.rest().await;
                    }
                    if !self.options.allow_bookmarks {
                        return None;
                    }
                    watch.event_or_bookmark()
                }
                delivery = watch.next() => delivery?,
            };
            match delivery {
                Ok(Delivery::Bookmark(revision)) if self.options.allow_bookmarks => {
                    return Some(self.encoder.bookmark(revision, false));
                }
                Ok(Delivery::Bookmark(_)) => {}
                Ok(Delivery::Event(event)) => {
                    if let Err(status) = self.encoder.prepare(&event).await {
                        self.last = true;
                        return Some(status_frame(self.encoder.accepted, &status));
                    }
                    if let Some(frame) = self.encoder.event(&self.options, &event) {
                        self.pace.gather().await;
                        return Some(self.with_followers(frame));
                    }
                }
                Err(error) => {
                    self.last = true;
                    return Some(error_frame(self.encoder.accepted, &error));
                }
            }
        }
    }
}

impl Source {
    /// What happened before the kind was no more what it is here: a kind's objects are deleted before it is.
    async fn rest(&mut self) -> Option<Data> {
        let watch = self.watch.as_mut().filter(|_| self.encoder.target.ended.is_some())?;
        let mut frames = BytesMut::new();
        while let Ok(Some(event)) = watch.try_next() {
            if self.encoder.prepare(&event).await.is_err() {
                break;
            }
            if let Some(frame) = self.encoder.event(&self.options, &event) {
                frames.put(frame);
            }
        }
        (!frames.is_empty()).then(|| frames.freeze().into())
    }

    /// A frame with those of the events that wait behind it, so that a burst is one record and one send.
    fn with_followers(&mut self, first: Data) -> Data {
        let Some(watch) = self.watch.as_mut().filter(|_| self.encoder.target.is_ready()) else {
            return first;
        };
        let mut joined = BytesMut::new();
        while joined.len().max(first.remaining()) < BURST_BYTES {
            // An end is met again by the next poll.
            let Ok(Some(event)) = watch.try_next() else {
                self.pace.drained();
                break;
            };
            if let Some(frame) = self.encoder.event(&self.options, &event) {
                if joined.is_empty() {
                    joined.put(first.clone());
                }
                joined.put(frame);
            }
        }
        if joined.is_empty() { first } else { joined.freeze().into() }
    }
}

/// How soon events follow each other to a watcher.
#[derive(Default)]
struct Pace {
    /// When the last events were sent, if none waited behind them.
    drained: Option<Instant>,
}

impl Pace {
    /// All that there is is being sent.
    fn drained(&mut self) {
        self.drained = Some(Instant::now());
    }

    /// Before an event is sent: waits for more of them, until [`GATHER_TIME`] after the last ones.
    async fn gather(&mut self) {
        let Some(drained) = self.drained.take() else { return };
        if drained.elapsed() < GATHER_TIME {
            tokio::time::sleep_until(drained + GATHER_TIME).await;
        }
    }
}

/// Makes frames in the shape that was asked for.
struct Encoder {
    target: Target,
    accepted: Accepted,
    tabler: Option<Tabler>,
    /// The first Table carries the columns.
    with_columns: bool,
}

impl Encoder {
    async fn prepare(&self, event: &Event) -> Result<(), Status> {
        self.target.prepare(event.previous.iter().chain([&event.object])).await
    }

    /// The frame of an event as a watcher with this selection sees it; `None` where it sees nothing.
    fn event(&mut self, options: &ListOptions, event: &Event) -> Option<Data> {
        let matches = |object: &Object| self.target.matches(options, object);
        if event.kind == EventKind::Deleted {
            return matches(&event.object).then(|| self.frame(EventKind::Deleted, &event.object, None));
        }
        let before = event.previous.as_ref().filter(|previous| matches(previous));
        match (before, matches(&event.object)) {
            (None, true) => Some(self.frame(EventKind::Added, &event.object, None)),
            (Some(_), true) => Some(self.frame(EventKind::Modified, &event.object, None)),
            (Some(previous), false) => Some(self.frame(EventKind::Deleted, previous, Some(event.revision))),
            (None, false) => None,
        }
    }

    fn frame(&mut self, kind: EventKind, object: &Object, at: Option<Revision>) -> Data {
        if self.accepted.encoding == Encoding::Protobuf {
            return protobuf::frame(kind.word(), self.accepted, &self.target, object, at).into();
        }
        let json = match at {
            None => self.target.json(object),
            Some(revision) => self.target.json_at(object, revision),
        };
        if self.accepted.shape == Shape::Object {
            return line(kind, json);
        }
        let value: Value = serde_json::from_slice(&json).unwrap_or_default();
        let shaped = match &self.tabler {
            Some(tabler) => {
                let metadata = json!({"resourceVersion": value["metadata"]["resourceVersion"]});
                let columns = std::mem::take(&mut self.with_columns);
                let rows = vec![tabler.row(value)];
                tabler.table(metadata, rows, columns)
            }
            None => partial(&value, self.accepted.meta_version),
        };
        watch_frame(kind.word(), shaped.to_string().as_bytes()).into()
    }

    fn bookmark(&self, revision: Revision, ends_initial_events: bool) -> Data {
        let mut metadata = json!({"resourceVersion": revision.0.to_string()});
        if ends_initial_events {
            metadata["annotations"] = json!({INITIAL_EVENTS_END: "true"});
        }
        let resource = &*self.target.resource;
        let meta_version = format!("meta.k8s.io/{}", self.accepted.meta_version);
        let object = match self.accepted.shape {
            Shape::Object => {
                json!({"kind": resource.kind, "apiVersion": resource.group_version(), "metadata": metadata})
            }
            Shape::Table => {
                let object = json!({
                    "kind": resource.kind, "apiVersion": resource.group_version(), "metadata": metadata,
                });
                let rows = self.tabler.iter().map(|tabler| tabler.row(object.clone())).collect();
                let metadata = json!({"resourceVersion": metadata["resourceVersion"]});
                self.tabler.as_ref().map(|tabler| tabler.table(metadata, rows, false)).unwrap_or_default()
            }
            Shape::PartialObjectMetadata | Shape::PartialObjectMetadataList => {
                json!({"kind": "PartialObjectMetadata", "apiVersion": meta_version, "metadata": metadata})
            }
        };
        value_frame(self.accepted, "BOOKMARK", &object)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_the_frame_around_the_shared_bytes() {
        let json = Bytes::from_static(b"{\"metadata\":{\"name\":\"b\"}}");
        for kind in [EventKind::Added, EventKind::Modified, EventKind::Deleted] {
            let line = line(kind, json.clone());
            let Data::Several { parts, .. } = &line else { panic!("several places") };
            assert_eq!(parts[1].as_ptr(), json.as_ptr(), "not copied");
            assert_eq!(line.into_bytes(), watch_frame(kind.word(), &json));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn only_an_event_that_follows_closely_waits_for_others() {
        let took = async |pace: &mut Pace| {
            let began = Instant::now();
            pace.gather().await;
            began.elapsed()
        };
        let mut pace = Pace::default();
        assert_eq!(took(&mut pace).await, Duration::ZERO, "the first one");
        pace.drained();
        assert!(took(&mut pace).await >= GATHER_TIME, "one that comes at once");
        assert_eq!(took(&mut pace).await, Duration::ZERO, "what waited behind a send that was full");
        pace.drained();
        tokio::time::advance(GATHER_TIME).await;
        assert_eq!(took(&mut pace).await, Duration::ZERO, "one that comes later");
    }
}
