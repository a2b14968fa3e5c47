//! What a watcher holds: events in order, bookmarks between them, and an end when it was too slow.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures::Stream;
use tokio::sync::{mpsc, watch};

use super::{Object, Snapshot};
use crate::storage::{Revision, StorageError};

/// How often an idle watch says how fresh it is.
const BOOKMARK_INTERVAL: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    Added,
    Modified,
    Deleted,
}

impl EventKind {
    /// The word that clients know it by.
    pub fn word(self) -> &'static str {
        match self {
            Self::Added => "ADDED",
            Self::Modified => "MODIFIED",
            Self::Deleted => "DELETED",
        }
    }
}

/// One change of one object, shared by all watchers.
#[derive(Debug)]
pub struct Event {
    pub kind: EventKind,
    /// The new version; for a deletion the last one, under the revision of the deletion.
    pub object: Arc<Object>,
    /// The version before; `None` when the object was created.
    pub previous: Option<Arc<Object>>,
    pub revision: Revision,
}

impl Event {
    pub fn is_deletion(&self) -> bool {
        self.kind == EventKind::Deleted
    }
}

/// What a watch yields.
#[derive(Clone, Debug)]
pub enum Delivery {
    Event(Arc<Event>),
    /// Every event up to this revision was delivered.
    Bookmark(Revision),
}

/// A stream of [`Delivery`] that ends with an error, never silently: [`StorageError::Lagged`] when the reader was too
/// slow or the cache had to start anew.
pub struct Watch {
    pub(super) backlog: VecDeque<Arc<Event>>,
    pub(super) receiver: mpsc::Receiver<Arc<Event>>,
    pub(super) applied: watch::Receiver<Revision>,
    /// Only events after this revision are delivered.
    pub(super) after: Revision,
    pub(super) bookmarks: Option<tokio::time::Interval>,
    pub(super) ended: bool,
}

impl Watch {
    /// Asks for a bookmark each minute.
    pub fn with_bookmarks(self) -> Self {
        self.with_bookmarks_every(BOOKMARK_INTERVAL)
    }

    /// Asks for bookmarks at an interval of the caller's own; must be called within a runtime.
    pub fn with_bookmarks_every(mut self, interval: Duration) -> Self {
        let mut timer = tokio::time::interval_at(tokio::time::Instant::now() + interval, interval);
        timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        self.bookmarks = Some(timer);
        self
    }

    /// The next event where one waits, else `None`; an error at the end of the watch.
    pub fn try_next(&mut self) -> Result<Option<Arc<Event>>, StorageError> {
        loop {
            let event = match self.backlog.pop_front() {
                Some(event) => event,
                None => match self.receiver.try_recv() {
                    Ok(event) => event,
                    Err(mpsc::error::TryRecvError::Empty) => return Ok(None),
                    Err(mpsc::error::TryRecvError::Disconnected) => return Err(StorageError::Lagged),
                },
            };
            if event.revision > self.after {
                return Ok(Some(event));
            }
        }
    }

    /// An event where one waits, else a bookmark: for the time just before a watch is closed.
    pub fn event_or_bookmark(&mut self) -> Result<Delivery, StorageError> {
        // Read before the queue: an event is queued before its revision is published, so an empty queue afterwards
        // means that all events up to here were delivered.
        let applied = *self.applied.borrow();
        Ok(match self.try_next()? {
            Some(event) => Delivery::Event(event),
            None => Delivery::Bookmark(applied.max(self.after)),
        })
    }
}

impl Stream for Watch {
    type Item = Result<Delivery, StorageError>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.ended {
            return Poll::Ready(None);
        }
        loop {
            let event = match self.backlog.pop_front() {
                Some(event) => event,
                None => match self.receiver.poll_recv(context) {
                    Poll::Ready(Some(event)) => event,
                    Poll::Ready(None) => {
                        self.ended = true;
                        return Poll::Ready(Some(Err(StorageError::Lagged)));
                    }
                    Poll::Pending => break,
                },
            };
            if event.revision > self.after {
                return Poll::Ready(Some(Ok(Delivery::Event(event))));
            }
        }
        if let Some(timer) = &mut self.bookmarks
            && timer.poll_tick(context).is_ready()
        {
            let delivery = self.event_or_bookmark();
            self.ended = delivery.is_err();
            return Poll::Ready(Some(delivery));
        }
        Poll::Pending
    }
}

/// Follows a resource without a task: the reader pulls what changed when it needs to be current.
pub struct Follower {
    cache: Arc<super::Cache>,
    prefix: String,
    watch: Option<Watch>,
}

/// What a follower has to take in.
pub enum Step {
    /// Forget everything known and take these objects.
    Reset(Snapshot),
    Event(Arc<Event>),
}

impl Follower {
    pub fn new(cache: Arc<super::Cache>, prefix: String) -> Self {
        Self { cache, prefix, watch: None }
    }

    /// Hands over everything that the cache applied before this call.
    pub fn catch_up(&mut self, mut apply: impl FnMut(Step)) {
        loop {
            match self.watch.as_mut().map(Watch::try_next) {
                Some(Ok(Some(event))) => apply(Step::Event(event)),
                Some(Ok(None)) => return,
                Some(Err(_)) | None => {
                    let snapshot = self.cache.list(&self.prefix);
                    match self.cache.watch(&self.prefix, Some(snapshot.revision)) {
                        Ok(watch) => self.watch = Some(watch),
                        // The history moved past the snapshot in between: take a newer one.
                        Err(_) => continue,
                    }
                    apply(Step::Reset(snapshot));
                }
            }
        }
    }
}
