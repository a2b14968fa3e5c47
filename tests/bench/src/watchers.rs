//! What an event costs that many watchers get: writes with them less the same writes without.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use serde_json::{Value, json};
use tokio::sync::Notify;

use crate::{
    Options,
    client::{Client, Connection, Request},
    objects,
    report::Figures,
    subject::Subject,
};

const WRITES: u32 = 500;
const DELIVERY_TIME_MAX: Duration = Duration::from_secs(30);

/// What the watchers tell the writer.
#[derive(Default)]
struct Shared {
    delivered: AtomicU64,
    /// Wakes the writer at this count.
    wanted: AtomicU64,
    reached: Notify,
    /// Nanoseconds between the start of the run and the newest write.
    written: AtomicU64,
    latencies: Mutex<Vec<Duration>>,
}

pub(crate) async fn measure(
    subject: &Subject,
    client: &Client,
    options: &Options,
    figures: &mut Figures,
) -> Result<()> {
    let mut writer = client.connect().await?;
    write(&mut writer, 0, "warm").await?;
    let (cpu, kernel) = (subject.cpu()?, subject.cpu_of_kernel()?);
    for index in 0..WRITES {
        write(&mut writer, index % options.objects, "alone").await?;
    }
    let (alone, kernel_alone) = (subject.cpu()? - cpu, subject.cpu_of_kernel()? - kernel);
    figures.put("patch", "us CPU", alone / f64::from(WRITES) * 1e6);

    for (name, one_connection) in [("watch event", false), ("watch event, one connection", true)] {
        if one_connection && writer.share().is_none() {
            continue;
        }
        let (with_watchers, with_kernel, took) =
            watched(subject, client, &mut writer, options, one_connection).await?;
        let events = f64::from(WRITES) * f64::from(options.watchers);
        figures.put(name, "us CPU", (with_watchers - alone).max(0.0) / events * 1e6);
        figures.put(name, "us CPU in the kernel", (with_kernel - kernel_alone).max(0.0) / events * 1e6);
        figures.latencies(name, took);
    }
    Ok(())
}

/// CPU time, of it in the kernel, and the latency of each event, of the writes while all watch: each on a connection of its
/// own as nodes do, or all on one as the informers of one process do.
async fn watched(
    subject: &Subject,
    client: &Client,
    writer: &mut Connection,
    options: &Options,
    one_connection: bool,
) -> Result<(f64, f64, Vec<Duration>)> {
    let list = writer.send(Request::get("/api/v1/pods?limit=1").keep()).await?.good()?;
    let list: Value = serde_json::from_slice(&list.body)?;
    let version = list["metadata"]["resourceVersion"].as_str().context("a list without a resourceVersion")?;
    let shared = Arc::new(Shared::default());
    let began = Instant::now();
    let mut watchers = tokio::task::JoinSet::new();
    let all = if one_connection { Some(client.connect().await?) } else { None };
    for _ in 0..options.watchers {
        let mut connection = match all.as_ref().and_then(Connection::share) {
            Some(shared) => shared,
            None => client.connect().await?,
        };
        let path = format!("/api/v1/pods?watch=1&resourceVersion={version}");
        let (status, body) = connection.open(Request::get(path)).await?;
        if status != 200 {
            bail!("a watch was answered with {status}");
        }
        // The connection lives as long as its sender.
        watchers.spawn(follow(connection, body, Arc::clone(&shared), began));
    }
    // The first event is on its way while the last watchers begin.
    deliver(writer, &shared, began, 0, options.watchers, "first").await?;
    let (cpu, kernel) = (subject.cpu()?, subject.cpu_of_kernel()?);
    for index in 0..WRITES {
        let index = index % options.objects;
        deliver(writer, &shared, began, index, options.watchers, "watched").await?;
    }
    let used = (subject.cpu()? - cpu, subject.cpu_of_kernel()? - kernel);
    // Closes their connections.
    watchers.abort_all();
    while let Some(ended) = watchers.join_next().await {
        match ended {
            Ok(Err(error)) => return Err(error),
            Ok(Ok(())) => bail!("a watch ended by itself"),
            Err(_) => {}
        }
    }
    let took = std::mem::take(&mut *shared.latencies.lock().unwrap_or_else(PoisonError::into_inner));
    Ok((used.0, used.1, took))
}

async fn write(writer: &mut Connection, index: u32, value: &str) -> Result<()> {
    let patch = json!({"metadata": {"annotations": {"example.com/step": format!("{value}-{}", rand::random::<u64>())}}});
    writer.send(Request::merge_patch(objects::path(index), patch.to_string())).await?.good()?;
    Ok(())
}

/// One write, until every watcher has its event.
async fn deliver(
    writer: &mut Connection,
    shared: &Shared,
    began: Instant,
    index: u32,
    watchers: u32,
    value: &str,
) -> Result<()> {
    let wanted = shared.delivered.load(Ordering::Acquire) + u64::from(watchers);
    shared.wanted.store(wanted, Ordering::Release);
    shared.written.store(nanoseconds(began.elapsed()), Ordering::Release);
    write(writer, index, value).await?;
    let all = async {
        while shared.delivered.load(Ordering::Acquire) < wanted {
            shared.reached.notified().await;
        }
    };
    tokio::time::timeout(DELIVERY_TIME_MAX, all).await.context("an event did not reach every watcher")
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

async fn follow(
    _connection: Connection,
    mut body: Incoming,
    shared: Arc<Shared>,
    began: Instant,
) -> Result<()> {
    while let Some(frame) = body.frame().await {
        let frame = frame?;
        let Some(data) = frame.data_ref() else { continue };
        let events = data.iter().filter(|byte| **byte == b'\n').count() as u64;
        if events == 0 {
            continue;
        }
        let now = nanoseconds(began.elapsed());
        let took = Duration::from_nanos(now.saturating_sub(shared.written.load(Ordering::Acquire)));
        shared.latencies.lock().unwrap_or_else(PoisonError::into_inner).push(took);
        let delivered = shared.delivered.fetch_add(events, Ordering::AcqRel) + events;
        if delivered >= shared.wanted.load(Ordering::Acquire) {
            shared.reached.notify_one();
        }
    }
    Ok(())
}
