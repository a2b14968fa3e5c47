//! Forgets history by time: at each step the store is compacted to where it was one interval ago.
//!
//! A step writes a key of its own where nobody else wrote since the last one, so that revisions expire in a store at
//! rest too: a client with an old `continue` token is told so sooner or later, as upstream's are.
//!
//! Several servers on one store may each run this; the store takes the newest of what they ask.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use tokio_util::sync::CancellationToken;

use super::{Revision, Storage, StorageError, cache::Cache};

/// As upstream compacts etcd: history of five to ten minutes.
pub const INTERVAL: Duration = Duration::from_secs(300);

/// A key that is no object's.
const STEP_KEY: &str = "/registry/.compactor";

/// Compacts until `stop`.
pub async fn run(cache: Arc<Cache>, interval: Duration, stop: CancellationToken) {
    let mut before = None;
    loop {
        match step(&**cache.storage(), before).await {
            Ok(now) => {
                cache.forget_before(before.unwrap_or_default());
                before = Some(now);
            }
            Err(error) => tracing::warn!(%error, "the store was not compacted; trying again"),
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(interval) => {}
        }
    }
}

/// Compacts to where the last step left the store, and returns where this one does.
async fn step(storage: &dyn Storage, before: Option<Revision>) -> Result<Revision, StorageError> {
    let mut now = storage.revision().await?;
    let Some(before) = before else { return Ok(now) };
    let stored = storage.get(STEP_KEY).await?;
    let is_at_rest = stored.as_ref().is_some_and(|stored| stored.revision == now);
    if before == now && !is_at_rest {
        let text = Bytes::from(now.0.to_string());
        let written = match stored {
            Some(stored) => storage.update(STEP_KEY, stored.revision, text).await,
            None => storage.create(STEP_KEY, text).await,
        };
        now = match written {
            Ok(revision) => revision,
            // Another server's step moved the store on as well.
            Err(StorageError::Conflict { .. } | StorageError::Exists { .. }) => storage.revision().await?,
            Err(error) => return Err(error),
        };
    }
    storage.compact(before).await?;
    Ok(now)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::{Range, embedded::Embedded};

    #[tokio::test]
    async fn revisions_of_a_store_at_rest_expire_and_then_nothing_is_written_any_more() {
        let folder = tempfile::tempdir().unwrap();
        let storage = Embedded::open(folder.path().join("store")).unwrap();
        let written = storage.create("/registry/a/b", Bytes::from_static(b"{}")).await.unwrap();
        let list = |at| Range { prefix: "/registry/a/".to_owned(), at: Some(at), ..Range::default() };
        let mut before = None;
        for _ in 0..2 {
            before = Some(step(&storage, before).await.unwrap());
            assert_eq!(storage.list(list(written)).await.unwrap().items.len(), 1);
        }
        let rest = step(&storage, before).await.unwrap();
        let expired = storage.list(list(written)).await;
        assert!(matches!(expired, Err(StorageError::Compacted { .. })), "{expired:?}");
        assert_eq!(step(&storage, Some(rest)).await.unwrap(), rest);
        assert_eq!(storage.list(list(rest)).await.unwrap().items.len(), 1);
    }
}
