//! The task of a connection: HTTP and, for HTTP/2, every stream of it in one task, so that what a stream has to say is
//! framed, encrypted and sent without waking another one.
//!
//! ```text
//! event ─wakes─> Conversation { streams: bodies ─> HTTP/2 frames ─> Wire } ─> one send
//! ```
//!
//! Handlers are elsewhere: their work would hold up the other streams.

use std::{
    future::Future,
    io,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
};

use futures::{StreamExt as _, future::BoxFuture, stream::FuturesUnordered, task::AtomicWaker};
use tokio::io::{AsyncRead, AsyncWrite};

use super::{body::BoxError, wire::Wire};

/// How often streams and connection are asked in turns before other tasks get theirs.
const TURNS_MAX: usize = 16;

/// Takes what HTTP/2 would spawn.
#[derive(Clone, Default)]
pub(super) struct Streams(Arc<Mutex<Vec<BoxFuture<'static, ()>>>>);

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for Streams {
    fn execute(&self, stream: F) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(Box::pin(stream));
    }
}

impl Streams {
    fn take(&self) -> Vec<BoxFuture<'static, ()>> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Whether the connection asked to be polled; it wakes the task only where that is not at it already.
#[derive(Default)]
struct Signal {
    is_woken: AtomicBool,
    is_polling: AtomicBool,
    task: AtomicWaker,
}

impl Wake for Signal {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.is_woken.store(true, Ordering::SeqCst);
        if !self.is_polling.load(Ordering::SeqCst) {
            self.task.wake();
        }
    }
}

/// A connection with its streams, until it ends.
pub(super) struct Conversation<C, T> {
    connection: Pin<Box<C>>,
    wire: Wire<T>,
    begun: Streams,
    running: FuturesUnordered<BoxFuture<'static, ()>>,
    signal: Arc<Signal>,
    waker: Waker,
    result: Option<Result<(), BoxError>>,
}

impl<C, T> Conversation<C, T>
where
    C: Future<Output = Result<(), BoxError>>,
    T: AsyncRead + AsyncWrite + Unpin,
{
    /// `connection` writes to `wire` and gives its streams to `streams`.
    pub(super) fn new(connection: C, wire: Wire<T>, streams: Streams) -> Self {
        let signal = Arc::new(Signal { is_woken: AtomicBool::new(true), ..Signal::default() });
        Self {
            connection: Box::pin(connection),
            wire,
            begun: streams,
            running: FuturesUnordered::new(),
            waker: Arc::clone(&signal).into(),
            signal,
            result: None,
        }
    }

    /// The connection, which is polled afterwards.
    pub(super) fn connection(&mut self) -> Pin<&mut C> {
        self.signal.is_woken.store(true, Ordering::SeqCst);
        self.connection.as_mut()
    }

    /// Streams, then the connection where one of them or the socket asks for it, until neither has more to do.
    fn turns(&mut self, context: &mut Context<'_>) {
        for _ in 0..TURNS_MAX {
            self.running.extend(self.begun.take());
            while let Poll::Ready(Some(())) = self.running.poll_next_unpin(context) {}
            if !self.signal.is_woken.swap(false, Ordering::SeqCst) {
                return;
            }
            if let Poll::Ready(result) = self.connection.as_mut().poll(&mut Context::from_waker(&self.waker))
            {
                self.result = Some(result);
                return;
            }
        }
        // There may be streams that nobody polled yet.
        self.signal.is_woken.store(true, Ordering::SeqCst);
    }

    fn send(&self) -> Poll<io::Result<()>> {
        // As the connection: a socket wakes only who asked last.
        self.wire.send(&mut Context::from_waker(&self.waker))
    }
}

impl<C, T> Future for Conversation<C, T>
where
    C: Future<Output = Result<(), BoxError>>,
    T: AsyncRead + AsyncWrite + Unpin,
{
    type Output = Result<(), BoxError>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        this.signal.task.register(context.waker());
        this.signal.is_polling.store(true, Ordering::SeqCst);
        if this.result.is_none() {
            this.wire.cork();
            this.turns(context);
        }
        let sent = this.send();
        this.signal.is_polling.store(false, Ordering::SeqCst);
        match sent {
            Poll::Ready(sent) if this.result.is_some() || sent.is_err() => {
                let result = this.result.take().unwrap_or(Ok(()));
                return Poll::Ready(result.and(sent.map_err(Into::into)));
            }
            _ => {}
        }
        // What came while nobody was woken for it.
        if this.signal.is_woken.load(Ordering::SeqCst) {
            context.waker().wake_by_ref();
        }
        Poll::Pending
    }
}

impl<C, T> Unpin for Conversation<C, T> {}
