//! The measurements of one subject in one round.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use rand::Rng as _;
use serde_json::{Value, json};

use crate::{
    Options, Part,
    client::{Client, Request},
    objects::{self, APPS, NODES},
    report::Figures,
    say,
    subject::Subject,
    watchers,
};

/// Connections that create and get at the same time.
const CONNECTIONS: u32 = 8;
const PROTOBUF: &str = "application/vnd.kubernetes.protobuf";
/// A list is made this often at least.
const LISTS_MIN: u32 = 3;

/// Fills a subject, measures everything, and ends it; `figures` has what was measured before a failure too.
pub(crate) async fn all(mut subject: Subject, options: &Options, figures: &mut Figures) -> Result<()> {
    let (client, took) = subject.start().await?;
    figures.put("ready, empty store", "ms", milliseconds(took));
    prepare(&client).await?;
    create(&subject, &client, options, figures).await?;
    let (server, store) = subject.memory()?;
    figures.put("memory of the server", "MB", server);
    if let Some(store) = store {
        figures.put("memory of the store", "MB", store);
    }
    if options.only.contains(&Part::Get) {
        get(&subject, &client, options, figures).await?;
    }
    if options.only.contains(&Part::List) {
        lists(&subject, &client, options, figures).await?;
    }
    if options.only.contains(&Part::Watch) {
        watchers::measure(&subject, &client, options, figures).await?;
    }
    subject.stop()?;
    let (_, took) = subject.start().await?;
    figures.put("ready, filled store", "ms", milliseconds(took));
    subject.stop()
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

/// Namespaces, with the ServiceAccount that a pod needs and that a controller would make.
async fn prepare(client: &Client) -> Result<()> {
    let mut connection = client.connect().await?;
    for name in objects::namespaces() {
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
        connection.send(Request::post("/api/v1/namespaces", namespace.to_string())).await?.good()?;
        let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default"}});
        let path = format!("/api/v1/namespaces/{name}/serviceaccounts");
        connection.send(Request::post(path, account.to_string())).await?.good()?;
    }
    Ok(())
}

async fn create(subject: &Subject, client: &Client, options: &Options, figures: &mut Figures) -> Result<()> {
    let next = Arc::new(AtomicU32::new(0));
    let total = options.objects;
    let (cpu, began) = (subject.cpu()?, Instant::now());
    let mut workers = tokio::task::JoinSet::new();
    for _ in 0..CONNECTIONS {
        let (next, mut connection) = (Arc::clone(&next), client.connect().await?);
        workers.spawn(async move {
            let mut took = Vec::new();
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                if index >= total {
                    return anyhow::Ok(took);
                }
                let path = format!("/api/v1/namespaces/{}/pods", objects::place(index).0);
                let request = Request::post(path, objects::pod(index).to_string());
                let sent = Instant::now();
                connection.send(request).await?.good()?;
                took.push(sent.elapsed());
            }
        });
    }
    let took = join(workers).await?;
    let wall = began.elapsed();
    figures.put("create", "us CPU", (subject.cpu()? - cpu) / f64::from(total) * 1e6);
    figures.latencies("create", took);
    figures.put("create", "per second", f64::from(total) / wall.as_secs_f64());
    say(&format!("    {total} pods created in {:.1} s", wall.as_secs_f64()));
    Ok(())
}

async fn join(mut workers: tokio::task::JoinSet<Result<Vec<Duration>>>) -> Result<Vec<Duration>> {
    let mut all = Vec::new();
    while let Some(took) = workers.join_next().await {
        all.extend(took.context("a worker panicked")??);
    }
    Ok(all)
}

async fn get(subject: &Subject, client: &Client, options: &Options, figures: &mut Figures) -> Result<()> {
    let total = options.objects;
    let mut connections = Vec::new();
    for _ in 0..CONNECTIONS {
        let mut connection = client.connect().await?;
        connection.send(Request::get(objects::path(0))).await?.good()?;
        connections.push(connection);
    }
    let cpu = subject.cpu()?;
    let until = Instant::now() + Duration::from_secs_f64(options.seconds);
    let mut workers = tokio::task::JoinSet::new();
    for mut connection in connections {
        workers.spawn(async move {
            let mut took = Vec::new();
            while Instant::now() < until {
                let path = objects::path(rand::rng().random_range(0..total));
                let sent = Instant::now();
                connection.send(Request::get(path)).await?.good()?;
                took.push(sent.elapsed());
            }
            anyhow::Ok(took)
        });
    }
    let took = join(workers).await?;
    figures.put("get", "us CPU", (subject.cpu()? - cpu) / took.len() as f64 * 1e6);
    figures.latencies("get", took);
    Ok(())
}

async fn lists(subject: &Subject, client: &Client, options: &Options, figures: &mut Figures) -> Result<()> {
    let total = options.objects as usize;
    let label = || format!("/api/v1/pods?labelSelector=app%3Dapp-{:02}", rand::rng().random_range(0..APPS));
    let node = || {
        format!("/api/v1/pods?fieldSelector=spec.nodeName%3Dnode-{:03}", rand::rng().random_range(0..NODES))
    };
    let cached = || "/api/v1/pods?resourceVersion=0".to_owned();
    let newest = || "/api/v1/pods".to_owned();
    let before = subject.forget_highest_memory()?;
    let mut list = List { subject, client, options, figures };
    list.measure("list of all", "application/json", total, cached).await?;
    list.measure("list of all, newest", "application/json", total, newest).await?;
    list.measure("list of all, protobuf", PROTOBUF, total, cached).await?;
    list.measure("list by label", "application/json", total / APPS as usize, label).await?;
    list.measure("list by node", "application/json", total / NODES as usize, node).await?;
    figures.put("peak memory while listing", "MB more", (subject.highest_memory()? - before).max(0.0));
    Ok(())
}

struct List<'a> {
    subject: &'a Subject,
    client: &'a Client,
    options: &'a Options,
    figures: &'a mut Figures,
}

impl List<'_> {
    /// Lists for a while, one list after the other; `expected` is how many items the answers have.
    async fn measure(
        &mut self,
        name: &str,
        accept: &'static str,
        expected: usize,
        path: impl Fn() -> String,
    ) -> Result<()> {
        let mut connection = self.client.connect().await?;
        let first = connection.send(Request::get(path()).accept(accept).keep()).await?;
        if first.status == 406 {
            say(&format!("    {name}: not served as {accept}"));
            return Ok(());
        }
        let first = first.good()?;
        if accept != PROTOBUF {
            check_count(&first.body, expected).with_context(|| name.to_owned())?;
        }
        self.figures.put(name, "MB", first.length as f64 / 1e6);
        let (cpu, kernel) = (self.subject.cpu()?, self.subject.cpu_of_kernel()?);
        let began = Instant::now();
        let mut took = Vec::new();
        while began.elapsed().as_secs_f64() < self.options.seconds || took.len() < LISTS_MIN as usize {
            let sent = Instant::now();
            connection.send(Request::get(path()).accept(accept)).await?.good()?;
            took.push(sent.elapsed());
        }
        let each = |seconds: f64| seconds / took.len() as f64 * 1e6;
        self.figures.put(name, "us CPU", each(self.subject.cpu()? - cpu));
        self.figures.put(name, "us CPU in the kernel", each(self.subject.cpu_of_kernel()? - kernel));
        self.figures.latencies(name, took);
        Ok(())
    }
}

fn check_count(body: &[u8], expected: usize) -> Result<()> {
    let list: BTreeMap<String, Value> = serde_json::from_slice(body).context("the list is no JSON object")?;
    let found = list.get("items").and_then(Value::as_array).map_or(0, Vec::len);
    anyhow::ensure!(found.abs_diff(expected) <= 1, "the list has {found} items, not {expected}");
    Ok(())
}
