//! `/containerLogs`: the log files of a container, from any point, followed if asked.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use jiff::Timestamp;
use k8s_cri::v1 as cri;
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::{Answer, Query, Refusal, State, find_pod};
use crate::context::Context;
use crate::cri::LABEL_CONTAINER_NAME;
use crate::logs::{Options, Reader, Stream, tail_offset};
use crate::pod;

const CHUNK_BYTES: usize = 64 << 10;
/// How often a followed file is looked at for more.
const FOLLOW_INTERVAL: Duration = Duration::from_millis(100);
/// After the container's end its last lines may still be on their way to the file.
const FOLLOW_ROUNDS_AFTER_EXIT: u32 = 3;

pub async fn serve(
    state: &Arc<State>,
    request: &Request<Incoming>,
    namespace: &str,
    name: &str,
    container: &str,
) -> Answer {
    let options = options(&Query::of(request))?;
    let pod = find_pod(state, namespace, name, None)?;
    let spec = pod.spec.clone().unwrap_or_default();
    if !pod::entries(&spec).iter().any(|entry| entry.name() == container) {
        let message = format!("container \"{container}\" not found in pod \"{name}_{namespace}\"");
        return Err(Refusal::new(StatusCode::NOT_FOUND, message));
    }
    let status = choose(&state.context, &pod, container, options.previous).await?;
    let (sender, receiver) = mpsc::channel(8);
    let context = state.context.clone();
    tokio::spawn(async move {
        let source = Source { id: status.id, path: PathBuf::from(status.log_path), context };
        if let Err(error) = send(source, options, &sender).await {
            // The reader is gone, or learns it from the end of the stream.
            let _ = sender.send(Err(error)).await;
        }
    });
    let frames = ReceiverStream::new(receiver).map(|bytes| bytes.map(Frame::data));
    let mut response = Response::new(BodyExt::boxed(StreamBody::new(frames)));
    response.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("text/plain"));
    Ok(response)
}

fn options(query: &Query) -> Result<Options, Refusal> {
    let number = |name: &str| -> Result<Option<usize>, Refusal> {
        let Some(text) = query.get(name).filter(|text| !text.is_empty()) else { return Ok(None) };
        text.parse()
            .map(Some)
            .map_err(|_| Refusal::bad_request(format!("{name}: \"{text}\" is not a number")))
    };
    let since = match (number("sinceSeconds")?, query.get("sinceTime").filter(|text| !text.is_empty())) {
        (Some(seconds), _) => {
            let seconds = Duration::from_secs(u64::try_from(seconds).unwrap_or(u64::MAX));
            Some(Timestamp::now().checked_sub(seconds).unwrap_or(Timestamp::UNIX_EPOCH))
        }
        (None, Some(text)) => Some(text.parse().map_err(|error| {
            Refusal::bad_request(format!("sinceTime: \"{text}\" is not a time: {error}"))
        })?),
        (None, None) => None,
    };
    let stream = match query.get("stream") {
        Some("Stdout") => Some(Stream::Stdout),
        Some("Stderr") => Some(Stream::Stderr),
        _ => None,
    };
    Ok(Options {
        follow: query.flag("follow"),
        previous: query.flag("previous"),
        timestamps: query.flag("timestamps"),
        tail_lines: number("tailLines")?,
        limit_bytes: number("limitBytes")?,
        since,
        stream,
    })
}

/// The container whose log is meant: the newest of its name, or with `previous` the one before it.
async fn choose(
    context: &Context,
    pod: &k8s_openapi::api::core::v1::Pod,
    name: &str,
    previous: bool,
) -> Result<cri::ContainerStatus, Refusal> {
    let listed = context.runtime.list_containers(Some(pod::uid(pod))).await.map_err(Refusal::internal)?;
    let mut lives: Vec<_> = listed
        .into_iter()
        .filter(|container| container.labels.get(LABEL_CONTAINER_NAME).is_some_and(|label| label == name))
        .collect();
    lives.sort_by_key(|container| std::cmp::Reverse(container.created_at));
    let exited = |container: &&cri::Container| container.state == cri::ContainerState::ContainerExited as i32;
    // While a container waits for its restart, the last life is the previous one too.
    let chosen = match lives.as_slice() {
        [] => None,
        [only] if previous => Some(only).filter(|_| waits(pod, name)).filter(exited),
        [newest, ..] if previous && waits(pod, name) => Some(newest),
        [_, before, ..] if previous => Some(before),
        [newest, ..] => Some(newest),
    };
    let pod_name = pod::name(pod);
    let Some(chosen) = chosen else {
        let ended = container_state(pod, name).and_then(|state| state.terminated.as_ref());
        return Err(Refusal::bad_request(if previous {
            format!("previous terminated container \"{name}\" in pod \"{pod_name}\" not found")
        } else if let Some(id) = ended.and_then(|ended| ended.container_id.as_ref()) {
            // It was removed for its disk.
            format!("unable to retrieve container logs for {id}")
        } else {
            let reason = waiting_reason(pod, name);
            format!("container \"{name}\" in pod \"{pod_name}\" is waiting to start: {reason}")
        }));
    };
    context.runtime.container_status(&chosen.id).await.map_err(Refusal::internal)
}

fn container_state<'a>(
    pod: &'a k8s_openapi::api::core::v1::Pod,
    name: &str,
) -> Option<&'a k8s_openapi::api::core::v1::ContainerState> {
    let status = pod.status.as_ref()?;
    let lists =
        [&status.container_statuses, &status.init_container_statuses, &status.ephemeral_container_statuses];
    let found = lists.into_iter().flatten().flatten().find(|status| status.name == name)?;
    found.state.as_ref()
}

fn waits(pod: &k8s_openapi::api::core::v1::Pod, name: &str) -> bool {
    container_state(pod, name).is_some_and(|state| state.waiting.is_some())
}

fn waiting_reason(pod: &k8s_openapi::api::core::v1::Pod, name: &str) -> String {
    let waiting = container_state(pod, name).and_then(|state| state.waiting.as_ref());
    let reason =
        waiting.and_then(|waiting| waiting.reason.clone()).unwrap_or_else(|| "ContainerCreating".to_owned());
    match reason.as_str() {
        "ErrImagePull" | "ImagePullBackOff" => "trying and failing to pull image".to_owned(),
        _ => reason,
    }
}

struct Source {
    id: String,
    path: PathBuf,
    context: Arc<Context>,
}

type Out = mpsc::Sender<std::io::Result<Bytes>>;

async fn send(source: Source, options: Options, out: &Out) -> std::io::Result<()> {
    let mut file = match File::open(&source.path).await {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && !options.follow => return Ok(()),
        other => other?,
    };
    if let Some(lines) = options.tail_lines {
        let offset = tail_start(&mut file, lines).await?;
        file.seek(std::io::SeekFrom::Start(offset)).await?;
    }
    let follow = options.follow;
    let mut reader = Reader::new(options);
    let mut after_exit = 0;
    loop {
        if !copy_rest(&mut file, &mut reader, out).await? || !follow {
            return Ok(());
        }
        if let Some(next) = rotated(&source.path, &file).await {
            // What came between the last read and the rotation.
            if !copy_rest(&mut file, &mut reader, out).await? {
                return Ok(());
            }
            file = next;
            continue;
        }
        if after_exit >= FOLLOW_ROUNDS_AFTER_EXIT || out.is_closed() {
            return Ok(());
        }
        after_exit = if is_running(&source).await { 0 } else { after_exit + 1 };
        tokio::time::sleep(FOLLOW_INTERVAL).await;
    }
}

async fn is_running(source: &Source) -> bool {
    let status = source.context.runtime.container_status(&source.id).await;
    status.is_ok_and(|status| status.state == cri::ContainerState::ContainerRunning as i32)
}

/// Reads to the end of the file; `false` when the reader wants no more.
async fn copy_rest(file: &mut File, reader: &mut Reader, out: &Out) -> std::io::Result<bool> {
    let mut buffer = vec![0; CHUNK_BYTES];
    loop {
        let count = file.read(&mut buffer).await?;
        if count == 0 {
            return Ok(true);
        }
        let mut seen = Vec::new();
        reader.feed(&buffer[..count], &mut seen);
        if !seen.is_empty() && out.send(Ok(Bytes::from(seen))).await.is_err() {
            return Ok(false);
        }
        if reader.is_full() {
            return Ok(false);
        }
    }
}

/// The new file at `path`, if the open one was renamed away.
async fn rotated(path: &Path, open: &File) -> Option<File> {
    let there = tokio::fs::metadata(path).await.ok()?;
    let here = open.metadata().await.ok()?;
    if there.ino() == here.ino() && there.dev() == here.dev() {
        return None;
    }
    File::open(path).await.ok()
}

/// Where the last `lines` lines begin, reading backwards in growing pieces.
async fn tail_start(file: &mut File, lines: usize) -> std::io::Result<u64> {
    let length = file.metadata().await?.len();
    let mut window = CHUNK_BYTES as u64;
    loop {
        let start = length.saturating_sub(window);
        file.seek(std::io::SeekFrom::Start(start)).await?;
        let mut bytes = Vec::new();
        (&mut *file).take(length - start).read_to_end(&mut bytes).await?;
        // The first line of the window may be torn: it counts only if the window is the whole file.
        let skip = if start == 0 {
            0
        } else {
            bytes.iter().position(|b| *b == b'\n').map_or(bytes.len(), |at| at + 1)
        };
        let offset = tail_offset(&bytes[skip..], lines);
        if offset > 0 || start == 0 {
            return Ok(start + (skip + offset) as u64);
        }
        window = window.saturating_mul(4);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_tail_of_a_long_file_is_found_from_its_end() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        let line =
            |n: usize| format!("2026-01-01T00:00:00.000000001Z stdout F line {n} {}\n", "x".repeat(100));
        std::fs::write(&path, (0..5000).map(line).collect::<String>()).unwrap();
        let total = std::fs::metadata(&path).unwrap().len();
        for wanted in [0, 1, 10, 700, 4999, 5000, 6000] {
            let mut file = File::open(&path).await.unwrap();
            let start = tail_start(&mut file, wanted).await.unwrap();
            let expected: u64 = (5000usize.saturating_sub(wanted)..5000).map(|n| line(n).len() as u64).sum();
            assert_eq!(total - start, expected, "{wanted}");
        }
    }

    #[tokio::test]
    async fn a_rotated_file_is_noticed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("log");
        std::fs::write(&path, "a").unwrap();
        let open = File::open(&path).await.unwrap();
        assert!(rotated(&path, &open).await.is_none());
        std::fs::rename(&path, directory.path().join("old")).unwrap();
        assert!(rotated(&path, &open).await.is_none());
        std::fs::write(&path, "b").unwrap();
        assert!(rotated(&path, &open).await.is_some());
    }

    #[test]
    fn wrong_parameters_are_named() {
        let of = |query: &str| {
            let request = Request::get(format!("/x?{query}")).body(()).unwrap();
            options(&Query::of(&request)).map_err(|refusal| refusal.message)
        };
        assert!(of("tailLines=x").unwrap_err().contains("tailLines"));
        assert!(of("sinceTime=yesterday").unwrap_err().contains("sinceTime"));
        let options = of("follow=true&tailLines=5&previous=1&sinceTime=2026-01-01T00%3A00%3A00Z").unwrap();
        assert!(
            options.follow && options.previous && options.tail_lines == Some(5) && options.since.is_some()
        );
    }
}
