//! Forgets history by time: at each step the store is compacted to where it was one interval ago.
//!
//! Several servers on one store may each run this; the store takes the newest of what they ask.

use std::{sync::Arc, time::Duration};

use tokio_util::sync::CancellationToken;

use super::Storage;

/// As upstream compacts etcd: history of five to ten minutes.
pub const INTERVAL: Duration = Duration::from_secs(300);

/// Compacts until `stop`.
pub async fn run(storage: Arc<dyn Storage>, interval: Duration, stop: CancellationToken) {
    let mut before = None;
    loop {
        match storage.revision().await {
            Ok(now) => {
                if let Some(before) = before.replace(now)
                    && let Err(error) = storage.compact(before).await
                {
                    tracing::warn!(%error, "the store was not compacted; trying again");
                }
            }
            Err(error) => tracing::warn!(%error, "the store does not say its revision; trying again"),
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(interval) => {}
        }
    }
}
