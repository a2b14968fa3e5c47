//! The loop around every controller: take a dirty key, reconcile it, come back later if asked or if it failed.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::core::Status;
use tokio_util::sync::CancellationToken;

use crate::queue::Queue;
use crate::store::Key;

/// Why a reconciliation did not reach its goal; it is tried again with a growing delay.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The API refused or could not be reached.
    #[error(transparent)]
    Api(#[from] kube::Error),
    /// The object says something that cannot be acted upon.
    #[error("{0}")]
    Invalid(String),
    /// Something that must come first has not happened yet.
    #[error("{0}")]
    Waiting(String),
}

/// The result of a reconciliation.
pub type Result<T = Next, E = Error> = std::result::Result<T, E>;

/// When a key wants to be looked at again without a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Only a change matters.
    Change,
    /// After this time at the latest.
    After(Duration),
}

impl Next {
    /// The earlier of two wishes.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        match (self, other) {
            (Self::After(a), Self::After(b)) => Self::After(a.min(b)),
            (Self::Change, next) | (next, Self::Change) => next,
        }
    }
}

/// Brings the world one step closer to what one object asks for.
///
/// Laws: idempotent; remembers nothing between calls that a restart would lose; a key whose object is gone is not an error.
pub trait Reconcile: Send + Sync + 'static {
    /// The controller's name, as in its service account and in log lines.
    const NAME: &'static str;

    /// Reconciles the object named by `key`.
    fn reconcile(&self, key: &Key) -> impl Future<Output = Result> + Send;
}

/// Works on `queue` with `workers` tasks until `cancel` is cancelled.
pub async fn work<R: Reconcile>(
    reconciler: Arc<R>,
    queue: Arc<Queue>,
    workers: usize,
    cancel: CancellationToken,
) {
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..workers {
        let (reconciler, queue, cancel) = (reconciler.clone(), queue.clone(), cancel.clone());
        tasks.spawn(async move {
            loop {
                let key = tokio::select! {
                    () = cancel.cancelled() => return,
                    key = queue.next() => key,
                };
                let outcome = reconciler.reconcile(&key).await;
                queue.done(&key);
                settle::<R>(&queue, key, outcome);
            }
        });
    }
    tasks.join_all().await;
}

fn settle<R: Reconcile>(queue: &Queue, key: Key, outcome: Result) {
    match outcome {
        Ok(next) => {
            queue.succeeded(&key);
            if let Next::After(delay) = next {
                queue.add_after(key, delay);
            }
        }
        Err(error) => {
            match &error {
                Error::Api(kube::Error::Api(status)) if expected(status) => {
                    tracing::debug!(controller = R::NAME, %key, %error, "will retry");
                }
                Error::Waiting(_) => tracing::debug!(controller = R::NAME, %key, %error, "waiting"),
                Error::Api(_) | Error::Invalid(_) => {
                    tracing::warn!(controller = R::NAME, %key, %error, "will retry")
                }
            }
            queue.add_failed(key);
        }
    }
}

fn expected(status: &Status) -> bool {
    status.is_conflict() || status.is_not_found() || status.is_already_exists()
}

/// Turns "not found" into `None`.
pub fn found<T>(result: kube::Result<T>) -> Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(kube::Error::Api(status)) if status.is_not_found() => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The wall clock with the precision that objects carry.
pub fn now() -> Time {
    let seconds = Timestamp::now().as_second();
    Time(Timestamp::from_second(seconds).expect("the present is within jiff's range"))
}

/// How long after `from` it is at `to`; zero if `to` is earlier.
pub fn elapsed(from: Timestamp, to: Timestamp) -> Duration {
    Duration::try_from(to.duration_since(from)).unwrap_or_default()
}
