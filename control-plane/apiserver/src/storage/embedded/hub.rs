//! Hands committed changes to watchers, in revision order.

use std::sync::{Mutex, MutexGuard};

use futures::{
    StreamExt,
    stream::{self, BoxStream},
};
use tokio::sync::mpsc;

use crate::storage::{Change, Revision, StorageError, WatchItem, WatchStream};

/// A watcher with this many undelivered items is ended.
const BACKLOG_MAX: usize = 65_536;

pub(super) struct Hub {
    state: Mutex<State>,
}

struct State {
    /// Everything up to here was handed to the watchers.
    published: Revision,
    watchers: Vec<Watcher>,
}

struct Watcher {
    prefix: Box<str>,
    sender: mpsc::Sender<WatchItem>,
}

impl Hub {
    pub(super) fn new(revision: Revision) -> Self {
        Self { state: Mutex::new(State { published: revision, watchers: Vec::new() }) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no code panics while it holds this lock")
    }

    pub(super) fn published(&self) -> Revision {
        self.state().published
    }

    /// A receiver of everything after the revision that is returned with it.
    pub(super) fn subscribe(&self, prefix: &str) -> (mpsc::Receiver<WatchItem>, Revision) {
        let (sender, receiver) = mpsc::channel(BACKLOG_MAX);
        let mut state = self.state();
        state.watchers.push(Watcher { prefix: prefix.into(), sender });
        (receiver, state.published)
    }

    /// Hands over the changes of one commit. A watcher that none concerns learns how far the store is.
    pub(super) fn publish(&self, changes: &[Change]) {
        let Some(last) = changes.last() else { return };
        let mut state = self.state();
        state.watchers.retain(|watcher| {
            let mut concerned = false;
            for change in changes.iter().filter(|change| change.key.starts_with(&*watcher.prefix)) {
                concerned = true;
                if watcher.sender.try_send(WatchItem::Change(change.clone())).is_err() {
                    return false;
                }
            }
            if concerned {
                return true;
            }
            // A full channel holds changes already, and those say more than this would.
            !matches!(
                watcher.sender.try_send(WatchItem::Progress(last.revision)),
                Err(mpsc::error::TrySendError::Closed(_))
            )
        });
        state.published = last.revision;
    }
}

/// The history, how far it reached, then what is published; ends with an error when the hub gave up on the watcher.
pub(super) fn stream(
    history: BoxStream<'static, Result<Vec<Change>, StorageError>>,
    receiver: mpsc::Receiver<WatchItem>,
    after: Revision,
    published: Revision,
) -> WatchStream {
    let live = stream::unfold(Some(receiver), move |receiver| async move {
        let mut receiver = receiver?;
        match receiver.recv().await {
            Some(item) => Some((Ok(item), Some(receiver))),
            None => Some((Err(StorageError::Lagged), None)),
        }
    });
    let newer = move |item: &Result<WatchItem, StorageError>| match item {
        Ok(WatchItem::Change(change)) => change.revision > after,
        Ok(WatchItem::Progress(_)) | Err(_) => true,
    };
    let reached = (published >= after).then_some(Ok(WatchItem::Progress(published)));
    let history = history.flat_map(|batch| match batch {
        Ok(changes) => {
            stream::iter(changes.into_iter().map(|change| Ok(WatchItem::Change(change)))).left_stream()
        }
        Err(error) => stream::iter([Err(error)]).right_stream(),
    });
    history
        .chain(stream::iter(reached))
        .chain(live.filter(move |item| std::future::ready(newer(item))))
        .boxed()
}
