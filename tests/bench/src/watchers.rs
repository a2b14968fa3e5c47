//! What an event costs that many watchers get: writes with them less the same writes without.

use std::{
    sync::{
        Arc, LazyLock, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use memchr::{memchr, memchr_iter, memmem};
use serde_json::{Value, json};
use tokio::sync::Notify;

use crate::{
    Options,
    client::{Client, Connection, Request},
    floor, objects,
    report::Figures,
    subject::Subject,
};

const WRITES: u32 = 1500;
/// Who writes at the same time where nobody waits for the watchers.
const WRITERS: u32 = 8;
const DELIVERY_TIME_MAX: Duration = Duration::from_secs(30);

/// What an event has around its object.
const FRAME: usize = "{'type':'MODIFIED','object':}\n".len();

/// What the watchers tell the writer.
#[derive(Default)]
struct Shared {
    delivered: AtomicU64,
    /// Wakes the writer at this count.
    wanted: AtomicU64,
    reached: Notify,
    latencies: Mutex<Vec<Duration>>,
}

/// Every write says when it was sent, in nanoseconds since the bench began.
const WRITTEN: &str = "example.com/written";

fn now() -> u64 {
    static BEGAN: LazyLock<Instant> = LazyLock::new(Instant::now);
    u64::try_from(BEGAN.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

impl Shared {
    /// So many more are to be delivered; returns how many that are in all.
    fn expect(&self, more: u32) -> u64 {
        let wanted = self.delivered.load(Ordering::Acquire) + u64::from(more);
        self.wanted.store(wanted, Ordering::Release);
        wanted
    }

    async fn wait_for(&self, wanted: u64) -> Result<()> {
        let all = async {
            while self.delivered.load(Ordering::Acquire) < wanted {
                self.reached.notified().await;
            }
        };
        tokio::time::timeout(DELIVERY_TIME_MAX, all).await.context("an event did not reach every watcher")
    }
}

pub(crate) async fn measure(
    subject: &Subject,
    client: &Client,
    options: &Options,
    figures: &mut Figures,
) -> Result<()> {
    let mut writers = Vec::new();
    for _ in 0..WRITERS {
        let mut writer = client.connect().await?;
        write(&mut writer, 0).await?;
        writers.push(writer);
    }
    let used = Used::of(subject)?;
    for index in 0..WRITES {
        write(&mut writers[0], index % options.objects).await?;
    }
    let alone = Used::of(subject)?.since(used);
    figures.put("patch", "us CPU", alone.cpu / f64::from(WRITES) * 1e6);
    let used = Used::of(subject)?;
    write_together(&mut writers, options).await?;
    let together = Used::of(subject)?.since(used);
    figures.put("patch, 8 at a time", "us CPU", together.cpu / f64::from(WRITES) * 1e6);

    for (name, on_one, load, without) in [
        ("watch event", false, Load::EachAwaited, alone),
        ("watch event, one connection", true, Load::EachAwaited, alone),
        ("watch event, 1 writer", false, Load::Alone, alone),
        ("watch event, 1 writer, one connection", true, Load::Alone, alone),
        ("watch event, 8 writers", false, Load::Together, together),
        ("watch event, 8 writers, one connection", true, Load::Together, together),
    ] {
        if on_one && writers[0].share().is_none() {
            continue;
        }
        let (with, took) = watched(subject, client, &mut writers, options, (on_one, load)).await?;
        let added = with.since(without);
        let events = f64::from(WRITES) * f64::from(options.watchers);
        figures.put(name, "us CPU", added.cpu.max(0.0) / events * 1e6);
        figures.put(name, "us CPU in the kernel", added.kernel.max(0.0) / events * 1e6);
        figures.latencies(name, took);
    }
    let object = writers[0].send(Request::get(objects::path(0))).await?.good()?;
    floor::measure(options, u32::try_from(object.length + FRAME)?, figures).await
}

/// How the writes of a run follow each other.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Load {
    /// The next begins when every watcher has the event of the last.
    EachAwaited,
    /// From one connection as fast as they are answered; the run ends when every watcher has every event.
    Alone,
    /// As [`Load::Alone`], from [`WRITERS`] connections.
    Together,
}

/// Seconds of CPU time.
#[derive(Clone, Copy)]
struct Used {
    cpu: f64,
    /// Of it in the kernel.
    kernel: f64,
}

impl Used {
    fn of(subject: &Subject) -> Result<Self> {
        Ok(Self { cpu: subject.cpu()?, kernel: subject.cpu_of_kernel()? })
    }

    fn since(self, before: Self) -> Self {
        Self { cpu: self.cpu - before.cpu, kernel: self.kernel - before.kernel }
    }
}

/// What is used by the writes while all watch, and the time from each write to each of its events. They watch each on a
/// connection of its own as nodes do, or all on one as the informers of one process do.
async fn watched(
    subject: &Subject,
    client: &Client,
    writers: &mut [Connection],
    options: &Options,
    (on_one, load): (bool, Load),
) -> Result<(Used, Vec<Duration>)> {
    let list = writers[0].send(Request::get("/api/v1/pods?limit=1").keep()).await?.good()?;
    let list: Value = serde_json::from_slice(&list.body)?;
    let version = list["metadata"]["resourceVersion"].as_str().context("a list without a resourceVersion")?;
    let shared = Arc::new(Shared::default());
    let mut watchers = tokio::task::JoinSet::new();
    let all = if on_one { Some(client.connect().await?) } else { None };
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
        watchers.spawn(follow(connection, body, Arc::clone(&shared)));
    }
    // The first event is on its way while the last watchers begin.
    deliver(&mut writers[0], &shared, 0, options.watchers).await?;
    shared.latencies.lock().unwrap_or_else(PoisonError::into_inner).clear();
    let before = Used::of(subject)?;
    match load {
        Load::EachAwaited => {
            for index in 0..WRITES {
                deliver(&mut writers[0], &shared, index % options.objects, options.watchers).await?;
            }
        }
        Load::Alone | Load::Together => {
            let wanted = shared.expect(WRITES * options.watchers);
            let count = if load == Load::Alone { 1 } else { writers.len() };
            write_together(&mut writers[..count], options).await?;
            shared.wait_for(wanted).await?;
        }
    }
    let used = Used::of(subject)?.since(before);
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
    Ok((used, took))
}

/// [`WRITES`] from all writers, each object's by one of them.
async fn write_together(writers: &mut [Connection], options: &Options) -> Result<()> {
    let count = u32::try_from(writers.len())?;
    let all = writers.iter_mut().zip(0..).map(|(writer, first)| async move {
        for index in (first..WRITES).step_by(count as usize) {
            write(writer, index % options.objects).await?;
        }
        anyhow::Ok(())
    });
    futures::future::try_join_all(all).await?;
    Ok(())
}

async fn write(writer: &mut Connection, index: u32) -> Result<()> {
    let patch = json!({"metadata": {"annotations": {WRITTEN: now().to_string()}}});
    writer.send(Request::merge_patch(objects::path(index), patch.to_string())).await?.good()?;
    Ok(())
}

/// One write, until every watcher has its event.
async fn deliver(writer: &mut Connection, shared: &Shared, index: u32, watchers: u32) -> Result<()> {
    let wanted = shared.expect(watchers);
    write(writer, index).await?;
    shared.wait_for(wanted).await
}

async fn follow(_connection: Connection, mut body: Incoming, shared: Arc<Shared>) -> Result<()> {
    let stamp = memmem::Finder::new("\"example.com/written\":\"");
    while let Some(frame) = body.frame().await {
        let frame = frame?;
        let Some(data) = frame.data_ref() else { continue };
        let now = now();
        let took = stamp.find_iter(data).filter_map(|at| written(&data[at + stamp.needle().len()..]));
        let took: Vec<_> = took.map(|written| Duration::from_nanos(now.saturating_sub(written))).collect();
        shared.latencies.lock().unwrap_or_else(PoisonError::into_inner).extend(took);
        let events = memchr_iter(b'\n', data).count() as u64;
        if events == 0 {
            continue;
        }
        let delivered = shared.delivered.fetch_add(events, Ordering::AcqRel) + events;
        if delivered >= shared.wanted.load(Ordering::Acquire) {
            shared.reached.notify_one();
        }
    }
    Ok(())
}

/// The time at the beginning of these bytes; `None` where a frame ends within it.
fn written(bytes: &[u8]) -> Option<u64> {
    let end = memchr(b'"', bytes)?;
    std::str::from_utf8(&bytes[..end]).ok()?.parse().ok()
}
