//! Ends UDP sockets whose backend is gone once the maps have changed: beside the event loop, many changes in one run.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context;
use dataplane::stale::{StaleSockets, probe};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::network::Network;
use crate::watch;

/// Changes come in bursts; and a call that found a backend right before it went needs a moment to note its socket.
const DELAY: Duration = Duration::from_millis(50);
const RETRY: Duration = Duration::from_secs(10);

/// The other ends of the task.
#[derive(Clone, Debug, Default)]
pub struct Handle {
    /// To be told when datagram backends have gone.
    pub due: Arc<Notify>,
    /// Sockets ended since the start.
    pub destroyed: Arc<AtomicU64>,
    /// What the kernel lacks for it; then nothing is ended.
    pub missing: Option<String>,
}

/// Starts the task where the kernel can do that. A kernel that cannot leaves such sockets to their owners' patience.
///
/// # Errors
/// Where the datapath's maps cannot be opened.
pub fn start(network: &Network, cancel: CancellationToken) -> anyhow::Result<Handle> {
    let mut handle = Handle::default();
    let Some(sockets) = network.datapath().map(|datapath| datapath.stale_sockets()) else {
        return Ok(handle);
    };
    let sockets = sockets.context("opening the maps of sockets")?;
    match probe() {
        Ok(()) => drop(tokio::spawn(run(sockets, handle.clone(), cancel))),
        Err(missing) => {
            tracing::warn!(%missing, "UDP sockets that are connected to a removed backend stay connected to it");
            handle.missing = Some(format!("ending UDP sockets of removed backends: {missing}"));
        }
    }
    Ok(handle)
}

async fn run(mut sockets: StaleSockets, handle: Handle, cancel: CancellationToken) {
    loop {
        tokio::select! {
            () = cancel.cancelled() => return,
            () = handle.due.notified() => tokio::time::sleep(DELAY).await,
        }
        let working = tokio::task::spawn_blocking(move || {
            let result = sockets.destroy();
            (sockets, result)
        });
        let (returned, result) = match working.await {
            Ok(done) => done,
            Err(error) => {
                tracing::error!(%error, "ending UDP sockets of removed backends; it is not tried again");
                return;
            }
        };
        sockets = returned;
        match result {
            Ok(done) if done.stale == 0 => {}
            Ok(done) => {
                handle.destroyed.fetch_add(done.destroyed as u64, Ordering::Relaxed);
                let (destroyed, unreachable) = (done.destroyed, done.unreachable);
                tracing::info!(destroyed, unreachable, "UDP sockets of removed backends ended");
            }
            Err(error) => {
                tracing::warn!(error = watch::chain(&error), "ending UDP sockets of removed backends");
                tokio::time::sleep(RETRY).await;
                handle.due.notify_one();
            }
        }
    }
}
