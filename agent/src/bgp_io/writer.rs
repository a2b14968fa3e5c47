//! What one connection is sent.
//!
//! All that a decision has for a peer goes to its socket in one system call, without another task in between. What the
//! socket does not take is left to a task, and all that comes after it, until it is through.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bgp::ConnectionId;
use tokio::net::tcp::OwnedWriteHalf;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use super::SocketEvent;

/// Octets; a peer that lets more pile up is closed.
const BACKLOG_MAX: usize = 64 << 20;
/// How often the speaker is told that a peer takes what it is sent.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(10);
/// Octets that the task gathers for one system call.
const WRITE_SIZE: usize = 64 << 10;
/// Pieces of one system call, a little below what the kernel takes.
const PIECES_MAX: usize = 512;

/// When it is dropped, reading ends at once, and what was flushed is still sent before the connection is closed.
pub(super) struct Writer {
    half: Arc<OwnedWriteHalf>,
    pending: VecDeque<Arc<[u8]>>,
    queue: mpsc::UnboundedSender<Arc<[u8]>>,
    /// Octets that the task has to send.
    backlog: Arc<AtomicUsize>,
    progress: Progress,
    reader: AbortHandle,
}

/// For the send hold timer, which counts in minutes.
struct Progress {
    id: ConnectionId,
    events: mpsc::Sender<SocketEvent>,
    told: Instant,
}

impl Writer {
    pub(super) fn start(
        half: OwnedWriteHalf,
        id: ConnectionId,
        reader: AbortHandle,
        events: mpsc::Sender<SocketEvent>,
    ) -> Writer {
        let half = Arc::new(half);
        let backlog = Arc::new(AtomicUsize::new(0));
        let (queue, messages) = mpsc::unbounded_channel();
        let progress = || Progress { id, events: events.clone(), told: Instant::now() };
        tokio::spawn(write_rest(half.clone(), messages, backlog.clone(), progress()));
        Writer { half, pending: VecDeque::new(), queue, backlog, progress: progress(), reader }
    }

    /// Returns whether it is the first since the last flush.
    pub(super) fn push(&mut self, message: Arc<[u8]>) -> bool {
        self.pending.push_back(message);
        self.pending.len() == 1
    }

    /// Sends what was pushed. `false`: too much waits for a peer that does not read.
    pub(super) fn flush(&mut self) -> bool {
        if self.backlog.load(Ordering::Relaxed) == 0 {
            // One that has failed is about to be reported closed by the reader.
            let sent = self.write_now();
            if sent {
                self.progress.tell();
            }
        }
        for message in self.pending.drain(..) {
            self.backlog.fetch_add(message.len(), Ordering::Relaxed);
            // Fails where the connection has.
            let _ = self.queue.send(message);
        }
        self.backlog.load(Ordering::Relaxed) <= BACKLOG_MAX
    }

    /// Writes as much as the socket takes; returns whether it took something.
    fn write_now(&mut self) -> bool {
        let mut sent = false;
        while !self.pending.is_empty() {
            let pieces = self.pending.iter().take(PIECES_MAX).map(|message| IoSlice::new(message));
            let pieces: Vec<IoSlice<'_>> = pieces.collect();
            let Ok(mut count @ 1..) = self.half.try_write_vectored(&pieces) else { return sent };
            sent = true;
            while let Some(first) = self.pending.front() {
                if count < first.len() {
                    break;
                }
                count -= first.len();
                self.pending.pop_front();
            }
            if count > 0
                && let Some(first) = self.pending.front_mut()
            {
                *first = first[count..].into();
            }
        }
        sent
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.flush();
        self.reader.abort();
    }
}

impl Progress {
    fn tell(&mut self) {
        // A full channel means that others are heard; later will do.
        if self.told.elapsed() >= PROGRESS_INTERVAL
            && self.events.try_send(SocketEvent::Sent(self.id)).is_ok()
        {
            self.told = Instant::now();
        }
    }
}

/// Sends what a flush could not, until the writer is dropped and all is sent; then the peer sees the end, as nobody has
/// the half of the connection any more.
async fn write_rest(
    half: Arc<OwnedWriteHalf>,
    mut messages: mpsc::UnboundedReceiver<Arc<[u8]>>,
    backlog: Arc<AtomicUsize>,
    mut progress: Progress,
) {
    let mut octets = Vec::new();
    while let Some(message) = messages.recv().await {
        octets.clear();
        octets.extend_from_slice(&message);
        while octets.len() < WRITE_SIZE {
            let Ok(message) = messages.try_recv() else { break };
            octets.extend_from_slice(&message);
        }
        if write_all(&half, &octets).await.is_err() {
            return;
        }
        backlog.fetch_sub(octets.len(), Ordering::Relaxed);
        progress.tell();
    }
}

async fn write_all(half: &OwnedWriteHalf, mut octets: &[u8]) -> io::Result<()> {
    while !octets.is_empty() {
        half.writable().await?;
        match half.try_write(octets) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => octets = &octets[count..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
