//! TLS of an accepted connection, whose records leave together.
//!
//! While it is corked, a flush only says that what was written may go: the task that owns the connection sends it once, when
//! it has nothing more to write. So a burst of frames is one system call, and a long body goes in pieces of
//! [`QUEUED_BYTES_MAX`], not record by record. The handshake is done before; renegotiation does not exist.

use std::{
    io::{self, BufRead as _, IoSlice, Read, Write},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, ready},
};

use rustls::ServerConnection;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Bytes of records that wait at a time: sixteen full ones.
pub(super) const QUEUED_BYTES_MAX: usize = 16 * (16 * 1024 + RECORD_OVERHEAD);
/// Bytes of a record's head, its content type and its tag.
const RECORD_OVERHEAD: usize = 5 + 1 + 16;

/// One end of a TLS connection; clones are the same end.
pub(super) struct Wire<T>(Arc<Mutex<Inner<T>>>);

struct Inner<T> {
    io: T,
    session: ServerConnection,
    is_corked: bool,
    is_closing: bool,
    /// Bytes that were written since all was sent: at least what waits.
    queued: usize,
}

impl<T> Clone for Wire<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> Wire<T> {
    /// A connection after its handshake.
    pub(super) fn new(io: T, mut session: ServerConnection) -> Self {
        // Counted here, by whole writes, so that no record is split to fit.
        session.set_buffer_limit(None);
        Self(Arc::new(Mutex::new(Inner { io, session, is_corked: false, is_closing: false, queued: 0 })))
    }

    fn lock(&self) -> MutexGuard<'_, Inner<T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Flushes do nothing from now on, until [`Wire::send`].
    pub(super) fn cork(&self) {
        self.lock().is_corked = true;
    }

    /// Sends what waits; flushes are what they say again.
    pub(super) fn send(&self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.lock();
        inner.is_corked = false;
        inner.send(context)
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> Inner<T> {
    fn read(&mut self, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            match self.session.reader().into_first_chunk() {
                Ok(chunk) => {
                    let count = chunk.len().min(buffer.remaining());
                    buffer.put_slice(&chunk[..count]);
                    self.session.reader().consume(count);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
            match self.session.read_tls(&mut Blocking { io: &mut self.io, context }) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Poll::Pending,
                Err(error) => return Poll::Ready(Err(error)),
            }
            if let Err(error) = self.session.process_new_packets() {
                // The alert that says why; the error is what counts.
                let _ = self.send(context);
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, error)));
            }
        }
    }

    fn write(&mut self, context: &mut Context<'_>, buffers: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        if self.queued >= QUEUED_BYTES_MAX {
            ready!(self.send(context))?;
        }
        let count = self.session.writer().write_vectored(buffers)?;
        self.queued += count + RECORD_OVERHEAD;
        if !self.is_corked
            && let Poll::Ready(Err(error)) = self.send(context)
        {
            return Poll::Ready(Err(error));
        }
        Poll::Ready(Ok(count))
    }

    fn send(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.session.wants_write() {
            match self.session.write_tls(&mut Blocking { io: &mut self.io, context }) {
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Poll::Pending,
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        self.queued = 0;
        Poll::Ready(Ok(()))
    }

    fn shutdown(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !std::mem::replace(&mut self.is_closing, true) {
            self.session.send_close_notify();
        }
        ready!(self.send(context))?;
        match ready!(Pin::new(&mut self.io).poll_shutdown(context)) {
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Poll::Ready(Ok(())),
            result => Poll::Ready(result),
        }
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncRead for Wire<T> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.lock().read(context, buffer)
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Wire<T> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.lock().write(context, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.lock().write(context, buffers)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.lock();
        if inner.is_corked { Poll::Ready(Ok(())) } else { inner.send(context) }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.lock().shutdown(context)
    }
}

/// Shows the TLS library a socket as it wants one: `WouldBlock` for what is pending.
struct Blocking<'a, 'b, T> {
    io: &'a mut T,
    context: &'a mut Context<'b>,
}

fn blocking<R>(polled: Poll<io::Result<R>>) -> io::Result<R> {
    match polled {
        Poll::Ready(result) => result,
        Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
    }
}

impl<T: AsyncRead + Unpin> Read for Blocking<'_, '_, T> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let mut buffer = ReadBuf::new(bytes);
        blocking(Pin::new(&mut *self.io).poll_read(self.context, &mut buffer))?;
        Ok(buffer.filled().len())
    }
}

impl<T: AsyncWrite + Unpin> Write for Blocking<'_, '_, T> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        blocking(Pin::new(&mut *self.io).poll_write(self.context, bytes))
    }

    fn write_vectored(&mut self, buffers: &[IoSlice<'_>]) -> io::Result<usize> {
        match buffers {
            // A shorter way through the kernel.
            [one] => self.write(one),
            _ => blocking(Pin::new(&mut *self.io).poll_write_vectored(self.context, buffers)),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        blocking(Pin::new(&mut *self.io).poll_flush(self.context))
    }
}

#[cfg(test)]
mod tests;
