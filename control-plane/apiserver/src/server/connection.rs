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

/// The task of a conversation, which is woken only while it is not at work.
#[derive(Default)]
struct Task {
    is_polling: AtomicBool,
    waker: AtomicWaker,
}

/// Whether a part of a conversation asked to be polled.
struct Signal {
    is_woken: AtomicBool,
    task: Arc<Task>,
}

impl Signal {
    fn set(&self) {
        self.is_woken.store(true, Ordering::SeqCst);
    }

    fn take(&self) -> bool {
        self.is_woken.swap(false, Ordering::SeqCst)
    }

    fn is_set(&self) -> bool {
        self.is_woken.load(Ordering::SeqCst)
    }
}

impl Wake for Signal {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.set();
        if !self.task.is_polling.load(Ordering::SeqCst) {
            self.task.waker.wake();
        }
    }
}

/// The signal of a part, twice: to be asked, and to be given to what the part waits for.
struct Part {
    signal: Arc<Signal>,
    waker: Waker,
}

impl Part {
    fn new(task: &Arc<Task>) -> Self {
        // Nobody polled it yet.
        let signal = Arc::new(Signal { is_woken: AtomicBool::new(true), task: Arc::clone(task) });
        Self { waker: Arc::clone(&signal).into(), signal }
    }
}

/// A connection with its streams, until it ends.
pub(super) struct Conversation<C, T> {
    connection: Pin<Box<C>>,
    wire: Wire<T>,
    begun: Streams,
    running: FuturesUnordered<BoxFuture<'static, ()>>,
    task: Arc<Task>,
    of_connection: Part,
    of_streams: Part,
    result: Option<Result<(), BoxError>>,
}

impl<C, T> Conversation<C, T>
where
    C: Future<Output = Result<(), BoxError>>,
    T: AsyncRead + AsyncWrite + Unpin,
{
    /// `connection` writes to `wire` and gives its streams to `streams`.
    pub(super) fn new(connection: C, wire: Wire<T>, streams: Streams) -> Self {
        let task = Arc::default();
        Self {
            connection: Box::pin(connection),
            wire,
            begun: streams,
            running: FuturesUnordered::new(),
            of_connection: Part::new(&task),
            of_streams: Part::new(&task),
            task,
            result: None,
        }
    }

    /// The connection, which is polled afterwards.
    pub(super) fn connection(&mut self) -> Pin<&mut C> {
        self.of_connection.signal.set();
        self.connection.as_mut()
    }

    /// Streams, then the connection where one of them or the socket asks for it, until neither has more to do.
    fn turns(&mut self) {
        for _ in 0..TURNS_MAX {
            let begun = self.begun.take();
            // A set learns who was woken only when it is polled.
            if self.of_streams.signal.take() || !begun.is_empty() {
                self.running.extend(begun);
                let mut context = Context::from_waker(&self.of_streams.waker);
                while let Poll::Ready(Some(())) = self.running.poll_next_unpin(&mut context) {}
            }
            if !self.of_connection.signal.take() {
                if self.of_streams.signal.is_set() {
                    continue;
                }
                return;
            }
            let mut context = Context::from_waker(&self.of_connection.waker);
            if let Poll::Ready(result) = self.connection.as_mut().poll(&mut context) {
                self.result = Some(result);
                return;
            }
        }
        // There may be streams that nobody polled yet.
        self.of_streams.signal.set();
    }

    fn send(&self) -> Poll<io::Result<()>> {
        // As the connection: a socket wakes only who asked last.
        self.wire.send(&mut Context::from_waker(&self.of_connection.waker))
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
        this.task.waker.register(context.waker());
        this.task.is_polling.store(true, Ordering::SeqCst);
        if this.result.is_none() {
            this.wire.cork();
            this.turns();
        }
        if this.result.is_some() {
            // Only the socket counts from here on.
            this.of_streams.signal.take();
            this.of_connection.signal.take();
        }
        let sent = this.send();
        this.task.is_polling.store(false, Ordering::SeqCst);
        match sent {
            Poll::Ready(sent) if this.result.is_some() || sent.is_err() => {
                let result = this.result.take().unwrap_or(Ok(()));
                return Poll::Ready(result.and(sent.map_err(Into::into)));
            }
            _ => {}
        }
        // What came while nobody was woken for it.
        if this.of_connection.signal.is_set() || this.of_streams.signal.is_set() {
            context.waker().wake_by_ref();
        }
        Poll::Pending
    }
}

impl<C, T> Unpin for Conversation<C, T> {}
