//! A connection on a transport: a task reads, a task writes, streams are ends of channels.
//!
//! A stream whose reader is slow stops the reading task, as the peer's own stack does too: there is no flow control
//! in between. Writers wait while too much is unsent.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::{Notify, mpsc};
use tokio::task::{AbortHandle, JoinHandle};

use super::connection::{Connection, Event, Side, StreamId};
use super::headers::Headers;

const UNSENT_BYTES_MAX: usize = 1 << 20;
const QUEUE: usize = 64;

struct Shared {
    connection: Mutex<State>,
    /// Something was put into the output, or the connection was closed.
    output: Notify,
    /// Output was taken.
    drained: Notify,
}

struct State {
    connection: Connection,
    readers: HashMap<StreamId, mpsc::Sender<Bytes>>,
    closed: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        state.readers.clear();
        drop(state);
        self.output.notify_waiters();
        self.output.notify_one();
        self.drained.notify_waiters();
    }
}

/// The receiving end of a stream; `None` when the peer sends no more.
pub struct StreamReader(mpsc::Receiver<Bytes>);

impl StreamReader {
    pub async fn read(&mut self) -> Option<Bytes> {
        self.0.recv().await
    }
}

/// The sending end of a stream; dropping it finishes the stream.
pub struct StreamWriter {
    id: StreamId,
    shared: Arc<Shared>,
}

impl StreamWriter {
    /// Sends bytes; `false` when the connection is gone.
    pub async fn write(&self, bytes: &[u8]) -> bool {
        loop {
            let drained = self.shared.drained.notified();
            {
                let mut state = self.shared.lock();
                if state.closed {
                    return false;
                }
                if state.connection.output_len() < UNSENT_BYTES_MAX {
                    state.connection.send(self.id, bytes);
                    break;
                }
            }
            drained.await;
        }
        self.shared.output.notify_one();
        true
    }
}

impl Drop for StreamWriter {
    fn drop(&mut self) {
        self.shared.lock().connection.finish(self.id);
        self.shared.output.notify_one();
    }
}

pub struct Stream {
    pub reader: StreamReader,
    pub writer: StreamWriter,
}

/// A stream that the peer opened. It has been accepted.
pub struct Incoming {
    pub headers: Headers,
    pub stream: Stream,
}

impl Incoming {
    /// The value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }
}

/// One side of a connection on a transport. The transport is closed when this is dropped.
pub struct Mux {
    shared: Arc<Shared>,
    incoming: mpsc::Receiver<Incoming>,
    reader: AbortHandle,
    writer: JoinHandle<()>,
}

impl Drop for Mux {
    fn drop(&mut self) {
        self.reader.abort();
        self.writer.abort();
    }
}

impl Mux {
    pub fn start<T>(side: Side, transport: T) -> Self
    where
        T: AsyncRead + AsyncWrite + Send + 'static,
    {
        let state = State { connection: Connection::new(side), readers: HashMap::new(), closed: false };
        let shared =
            Arc::new(Shared { connection: Mutex::new(state), output: Notify::new(), drained: Notify::new() });
        let (reader, writer) = tokio::io::split(transport);
        let (opened, incoming) = mpsc::channel(QUEUE);
        let reader = tokio::spawn(read_all(shared.clone(), reader, opened)).abort_handle();
        let writer = tokio::spawn(write_all(shared.clone(), writer));
        Self { shared, incoming, reader, writer }
    }

    /// Opens a stream; bytes may be sent before the peer has accepted it.
    pub fn open(&self, headers: &Headers) -> Stream {
        let (sender, receiver) = mpsc::channel(QUEUE);
        let mut state = self.shared.lock();
        let id = state.connection.open(headers);
        if !state.closed {
            state.readers.insert(id, sender);
        }
        drop(state);
        self.shared.output.notify_one();
        Stream { reader: StreamReader(receiver), writer: StreamWriter { id, shared: self.shared.clone() } }
    }

    /// The next stream of the peer; `None` when the connection is over.
    pub async fn accept(&mut self) -> Option<Incoming> {
        self.incoming.recv().await
    }

    /// Sends what is unsent, then closes the transport.
    pub async fn close(mut self) {
        self.shared.close();
        let _ = (&mut self.writer).await;
    }
}

async fn write_all<W: AsyncWrite + Unpin>(shared: Arc<Shared>, mut writer: W) {
    loop {
        let notified = shared.output.notified();
        let (bytes, closed) = {
            let mut state = shared.lock();
            (state.connection.take_output(), state.closed)
        };
        shared.drained.notify_waiters();
        if !bytes.is_empty() {
            if writer.write_all(&bytes).await.is_err() || writer.flush().await.is_err() {
                shared.close();
                return;
            }
            continue;
        }
        if closed {
            let _ = writer.shutdown().await;
            return;
        }
        notified.await;
    }
}

async fn read_all<R: AsyncRead + Unpin>(shared: Arc<Shared>, mut reader: R, opened: mpsc::Sender<Incoming>) {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let count = match reader.read(&mut buffer).await {
            Ok(0) | Err(_) => break,
            Ok(count) => count,
        };
        let events = {
            let mut state = shared.lock();
            if let Err(error) = state.connection.handle(&buffer[..count]) {
                tracing::debug!(%error, "connection given up");
                break;
            }
            std::iter::from_fn(|| state.connection.poll_event()).collect::<Vec<_>>()
        };
        shared.output.notify_one();
        for event in events {
            deliver(&shared, event, &opened).await;
        }
    }
    shared.close();
}

async fn deliver(shared: &Arc<Shared>, event: Event, opened: &mpsc::Sender<Incoming>) {
    match event {
        Event::Opened { id, headers } => {
            let (sender, receiver) = mpsc::channel(QUEUE);
            {
                let mut state = shared.lock();
                state.connection.reply(id);
                state.readers.insert(id, sender);
            }
            shared.output.notify_one();
            let writer = StreamWriter { id, shared: shared.clone() };
            let stream = Stream { reader: StreamReader(receiver), writer };
            // Nobody accepts any more: dropping the stream finishes it.
            let _ = opened.send(Incoming { headers, stream }).await;
        }
        Event::Data { id, bytes } => {
            let reader = shared.lock().readers.get(&id).cloned();
            if let Some(reader) = reader
                && reader.send(Bytes::from(bytes)).await.is_err()
            {
                shared.lock().readers.remove(&id);
            }
        }
        Event::Finished { id } | Event::Reset { id } => drop(shared.lock().readers.remove(&id)),
        Event::Replied { .. } | Event::GoneAway => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn read_to_end(reader: &mut StreamReader) -> Vec<u8> {
        let mut out = Vec::new();
        while let Some(bytes) = reader.read().await {
            out.extend(bytes);
        }
        out
    }

    #[tokio::test]
    async fn megabytes_pass_both_ways_at_once_and_ends_are_seen() {
        let (near, far) = tokio::io::duplex(1000);
        let client = Mux::start(Side::Client, near);
        let mut server = Mux::start(Side::Server, far);
        let echo = tokio::spawn(async move {
            let Incoming { headers, stream } = server.accept().await.unwrap();
            let Stream { mut reader, writer } = stream;
            while let Some(bytes) = reader.read().await {
                assert!(writer.write(&bytes).await);
            }
            drop(writer);
            assert!(server.accept().await.is_none());
            headers
        });
        let headers = vec![("streamtype".to_owned(), "data".to_owned())];
        let Stream { mut reader, writer } = client.open(&headers);
        let sent: Vec<u8> = (0..3_000_000u32).map(|n| n as u8).collect();
        let copy = sent.clone();
        let send = tokio::spawn(async move {
            for chunk in copy.chunks(100_000) {
                assert!(writer.write(chunk).await);
            }
        });
        assert_eq!(read_to_end(&mut reader).await, sent);
        send.await.unwrap();
        client.close().await;
        assert_eq!(echo.await.unwrap(), headers);
    }

    #[tokio::test]
    async fn a_peer_that_goes_away_ends_all_streams() {
        let (near, far) = tokio::io::duplex(1000);
        let client = Mux::start(Side::Client, near);
        let Stream { mut reader, writer } = client.open(&vec![("a".to_owned(), "b".to_owned())]);
        drop(far);
        assert!(reader.read().await.is_none());
        while writer.write(b"x").await {
            tokio::task::yield_now().await;
        }
    }
}
