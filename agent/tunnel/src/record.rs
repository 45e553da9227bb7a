//! A TLS stream that trades records for system calls: reads are large, writes leave in batches.
//!
//! HTTP/2 asks for a flush after nearly every frame. Here a flush is put off until the task that
//! drives the connection has written all it had, so that the frames of many streams leave in full
//! records and one system call. [`Driver`] does that last step.
use std::{
    cell::RefCell,
    future::{Future, poll_fn},
    io::{self, IoSlice},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use rustls::pki_types::CertificateDer;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use crate::engine::{Endpoint, Engine, Need, RECORD_BYTES};

/// A handle on a TLS connection; the handles of one connection share it.
pub(crate) struct RecordStream<E>(Rc<RefCell<Shared<E>>>);

struct Shared<E> {
    tcp: TcpStream,
    tls: Engine<E>,
    /// Plaintext of small writes, until it fills a record or the batch ends.
    staged: Vec<u8>,
    /// Whether the peer's side has ended.
    ended: bool,
}

impl<E: Endpoint> RecordStream<E> {
    /// Performs the handshake.
    ///
    /// # Errors
    /// When the socket fails, or the peer is refused or refuses; it has been told why by then.
    pub(crate) async fn handshake(tcp: TcpStream, tls: E) -> io::Result<Self> {
        let mut shared = Shared {
            tcp,
            tls: Engine::new(tls),
            staged: Vec::new(),
            ended: false,
        };
        poll_fn(|context| shared.poll_handshake(context)).await?;
        Ok(Self(Rc::new(RefCell::new(shared))))
    }

    /// Looks at what the peer presented.
    pub(crate) fn peer_certificates<T>(
        &self,
        look: impl FnOnce(Option<&[CertificateDer<'static>]>) -> T,
    ) -> T {
        look(self.0.borrow().tls.peer_certificates())
    }

    /// Another handle on the same connection, to drive the writer that owns this one.
    pub(crate) fn handle(&self) -> Self {
        Self(Rc::clone(&self.0))
    }

    /// Wraps the future that writes to this connection: each time it pauses, what it wrote is sent.
    pub(crate) fn drive<F>(&self, writer: F) -> Driver<E, F> {
        Driver {
            stream: Rc::clone(&self.0),
            writer,
        }
    }
}

/// Polls a writer and then sends what it left; see [`RecordStream::drive`].
pub(crate) struct Driver<E, F> {
    stream: Rc<RefCell<Shared<E>>>,
    writer: F,
}

impl<E: Endpoint, F: Future + Unpin> Future for Driver<E, F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let done = Pin::new(&mut self.writer).poll(context);
        // An error of the socket shows again at the writer's next read or write, where it is handled.
        let _ = self.stream.borrow_mut().poll_send(context);
        done
    }
}

impl<E: Endpoint> Shared<E> {
    fn poll_handshake(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let opened = self.tls.open(&mut ReadBuf::new(&mut []));
            ready!(self.poll_transmit(context))?;
            match opened? {
                Need::Ended => return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
                Need::Input | Need::Room if !self.tls.is_handshaking() => {
                    return Poll::Ready(Ok(()));
                }
                Need::Input | Need::Room => ready!(self.poll_receive(context))?,
            }
        }
    }

    /// Hands all records to the socket; pending while it takes no more.
    fn poll_transmit(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.tls.outgoing.is_empty() {
            let sent = Pin::new(&mut self.tcp).poll_write(context, self.tls.outgoing.filled());
            match ready!(sent)? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                sent => self.tls.outgoing.consume(sent),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Sends everything written so far.
    fn poll_send(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.staged.is_empty() {
            self.seal_staged()?;
            ready!(self.poll_transmit(context))?;
        }
        if self.staged.capacity() > 0 {
            self.staged = Vec::new();
        }
        self.poll_transmit(context)
    }

    fn seal_staged(&mut self) -> io::Result<()> {
        let sealed = self.tls.seal(&self.staged)?;
        self.staged.drain(..sealed);
        Ok(())
    }

    /// Takes a part of `data` that is not empty, staging what does not fill a record.
    fn poll_take(&mut self, data: &[u8], context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        loop {
            if self.staged.is_empty() && data.len() >= RECORD_BYTES {
                let whole = data.len() - data.len() % RECORD_BYTES;
                let sealed = self.tls.seal(&data[..whole])?;
                if sealed > 0 {
                    return Poll::Ready(Ok(sealed));
                }
            } else if self.staged.len() < RECORD_BYTES {
                let taken = data.len().min(RECORD_BYTES - self.staged.len());
                self.staged.extend_from_slice(&data[..taken]);
                return Poll::Ready(Ok(taken));
            } else {
                self.seal_staged()?;
                if self.staged.is_empty() {
                    continue;
                }
            }
            // The records made so far fill the buffer.
            ready!(self.poll_transmit(context))?;
        }
    }

    fn poll_read(
        &mut self,
        out: &mut ReadBuf<'_>,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        let before = out.filled().len();
        while !self.ended {
            match self.tls.open(out)? {
                Need::Room => break,
                Need::Ended => self.ended = true,
                Need::Input => match self.poll_receive(context) {
                    // What came before a pause or a failure is delivered first.
                    Poll::Pending | Poll::Ready(Err(_)) if out.filled().len() > before => break,
                    received => ready!(received)?,
                },
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Reads once from the socket.
    fn poll_receive(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Asked first, so that an idle connection borrows no buffer.
        ready!(self.tcp.poll_read_ready(context))?;
        let mut spare = ReadBuf::new(self.tls.incoming.spare());
        let read = Pin::new(&mut self.tcp).poll_read(context, &mut spare);
        let received = spare.filled().len();
        self.tls.incoming.fill(received);
        ready!(read)?;
        if received == 0 {
            // The peer ends its side by a close_notify; without it the data may have been cut.
            return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
        }
        Poll::Ready(Ok(()))
    }
}

impl<E: Endpoint> AsyncRead for RecordStream<E> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.0.borrow_mut().poll_read(out, context)
    }
}

impl<E: Endpoint> AsyncWrite for RecordStream<E> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        if data.is_empty() {
            return Poll::Ready(Ok(0));
        }
        self.0.borrow_mut().poll_take(data, context)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let mut shared = self.0.borrow_mut();
        let mut taken = 0;
        for slice in slices {
            let mut rest = &slice[..];
            while !rest.is_empty() {
                match shared.poll_take(rest, context) {
                    Poll::Ready(Ok(count)) => {
                        taken += count;
                        rest = &rest[count..];
                    }
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                    Poll::Pending if taken > 0 => return Poll::Ready(Ok(taken)),
                    Poll::Pending => return Poll::Pending,
                }
            }
        }
        Poll::Ready(Ok(taken))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The driver sends at the end of its turn.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut shared = self.0.borrow_mut();
        ready!(shared.poll_send(context))?;
        shared.tls.close()?;
        ready!(shared.poll_transmit(context))?;
        Pin::new(&mut shared.tcp).poll_shutdown(context)
    }
}
