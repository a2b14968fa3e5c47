//! HTTP load: a connection for each request, counted by the pod that answered. Always bounded in number or time.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use hyper::Uri;
use tokio::sync::Semaphore;

use crate::client;

/// The longest run: an hour of anything is a mistake in a test.
const SECONDS_MAX: u64 = 900;

#[derive(Args, Clone)]
pub(crate) struct Arguments {
    url: String,
    /// How many requests; 0 is: as many as `--seconds` allows
    #[arg(long, default_value_t = 300)]
    count: u64,
    /// How long at most
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=SECONDS_MAX))]
    seconds: u64,
    /// Requests per second; 0 is: as fast as answers come
    #[arg(long, default_value_t = 0)]
    rate: u32,
    /// Requests under way at once
    #[arg(long, default_value_t = 8)]
    concurrency: usize,
    /// Resolves the name for each request, not once
    #[arg(long)]
    resolve_each: bool,
}

#[derive(Default)]
struct Summary {
    sent: u64,
    failed: u64,
    by_pod: BTreeMap<String, u64>,
    errors: BTreeMap<String, u64>,
    milliseconds: Vec<f64>,
}

pub(crate) async fn load(arguments: Arguments) -> Result<()> {
    let uri: Arc<Uri> = Arc::new(arguments.url.parse().with_context(|| format!("URL {}", arguments.url))?);
    let authority = client::authority(&uri)?;
    let fixed = if arguments.resolve_each { None } else { Some(client::resolve(&authority).await?) };
    let summary = Arc::new(Mutex::new(Summary::default()));
    let slots = Arc::new(Semaphore::new(arguments.concurrency));
    let start = Instant::now();
    let end = start + Duration::from_secs(arguments.seconds);
    let mut sent = 0u64;
    while (arguments.count == 0 || sent < arguments.count) && Instant::now() < end {
        if arguments.rate > 0 {
            tokio::time::sleep_until(
                (start + Duration::from_secs(1) * u32::try_from(sent)? / arguments.rate).into(),
            )
            .await;
        }
        let slot = Arc::clone(&slots).acquire_owned().await.context("waiting for a slot")?;
        sent += 1;
        let (uri, summary, fixed, authority) =
            (Arc::clone(&uri), Arc::clone(&summary), fixed.clone(), authority.clone());
        tokio::spawn(async move {
            let begin = Instant::now();
            let outcome = tokio::time::timeout(client::PATIENCE, one(&uri, fixed, &authority)).await;
            let took = begin.elapsed().as_secs_f64() * 1000.0;
            summary.lock().expect("no holder of the lock panics").add(outcome, took);
            drop(slot);
        });
    }
    let all = u32::try_from(arguments.concurrency).context("concurrency")?;
    let _rest = slots.acquire_many(all).await.context("waiting for the last answers")?;
    let summary = summary.lock().expect("no holder of the lock panics");
    println!("{}", summary.to_json(start.elapsed().as_secs_f64()));
    if summary.failed > 0 {
        bail!("{} of {} requests failed", summary.failed, summary.sent);
    }
    Ok(())
}

/// The name of the pod that answered; empty where the body does not tell.
async fn one(uri: &Uri, fixed: Option<Vec<std::net::SocketAddr>>, authority: &str) -> Result<String> {
    let addresses = match fixed {
        Some(addresses) => addresses,
        None => client::resolve(authority).await.context("resolving")?,
    };
    let address = *addresses.first().context("the name has no address")?;
    let (status, body) = client::request(address, uri).await?;
    if status != 200 {
        bail!("status {status}");
    }
    let body: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
    Ok(body["pod"].as_str().unwrap_or_default().to_owned())
}

impl Summary {
    fn add(&mut self, outcome: Result<Result<String>, tokio::time::error::Elapsed>, milliseconds: f64) {
        self.sent += 1;
        self.milliseconds.push(milliseconds);
        let error = match outcome {
            Ok(Ok(pod)) => {
                *self.by_pod.entry(pod).or_default() += 1;
                return;
            }
            Ok(Err(error)) => format!("{error:#}"),
            Err(_) => "no answer in 5 s".to_owned(),
        };
        self.failed += 1;
        *self.errors.entry(error).or_default() += 1;
    }

    fn to_json(&self, seconds: f64) -> serde_json::Value {
        let mut sorted = self.milliseconds.clone();
        sorted.sort_by(f64::total_cmp);
        let at = |share: f64| {
            sorted.get(((sorted.len() as f64 - 1.0) * share) as usize).copied().unwrap_or_default()
        };
        serde_json::json!({
            "sent": self.sent,
            "failed": self.failed,
            "seconds": seconds,
            "by_pod": self.by_pod,
            "errors": self.errors,
            "milliseconds": {"p50": at(0.5), "p99": at(0.99), "max": at(1.0)},
        })
    }
}
