//! A TLS stream that trades records for system calls: reads are large, writes leave in batches.
//!
//! HTTP/2 asks for a flush after nearly every frame. Here a flush is put off until the task that
//! drives the connection has written all it had, so that the frames of many streams leave in full
//! records and one system call. [`Driver`] does that last step.
use std::{
    cell::RefCell,
    future::Future,
    io::{self, IoSlice, Read as _, Write as _},
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
};

use bytes::{Buf as _, BytesMut};
use rustls::Connection;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_util::io::poll_read_buf;

/// Ciphertext asked of the socket at once: four full records.
const READ_BYTES: usize = 64 * 1024;
/// Largest plaintext of one record (RFC 8446, section 5.1).
const RECORD_BYTES: usize = 16 * 1024;
/// Ciphertext held before the socket takes it; a writer waits beyond.
const WRITE_LIMIT: usize = 256 * 1024;

/// A handle on an established TLS connection; the handles of one connection share it.
pub(crate) struct RecordStream(Rc<RefCell<Shared>>);

struct Shared {
    tcp: TcpStream,
    tls: Connection,
    /// Plaintext of small writes, until it fills a record or the batch ends.
    staged: Vec<u8>,
    /// Ciphertext read and not processed yet; without memory while idle.
    incoming: BytesMut,
    /// Whether the peer's side has ended.
    ended: bool,
}

impl RecordStream {
    /// Takes over a connection whose handshake is complete.
    pub(crate) fn new(tcp: TcpStream, mut tls: Connection) -> Self {
        tls.set_buffer_limit(Some(WRITE_LIMIT));
        Self(Rc::new(RefCell::new(Shared {
            tcp,
            tls,
            staged: Vec::new(),
            incoming: BytesMut::new(),
            ended: false,
        })))
    }

    /// Another handle on the same connection, to drive the writer that owns this one.
    pub(crate) fn handle(&self) -> Self {
        Self(Rc::clone(&self.0))
    }

    /// Wraps the future that writes to this connection: each time it pauses, what it wrote is sent.
    pub(crate) fn drive<F>(&self, writer: F) -> Driver<F> {
        Driver {
            stream: Rc::clone(&self.0),
            writer,
        }
    }
}

/// Polls a writer and then sends what it left; see [`RecordStream::drive`].
pub(crate) struct Driver<F> {
    stream: Rc<RefCell<Shared>>,
    writer: F,
}

impl<F: Future + Unpin> Future for Driver<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let done = Pin::new(&mut self.writer).poll(context);
        // An error of the socket shows again at the writer's next read or write, where it is handled.
        let _ = self.stream.borrow_mut().poll_send(context);
        done
    }
}

impl Shared {
    /// Encrypts what is staged; false where the records already made must leave first.
    fn seal_staged(&mut self) -> io::Result<bool> {
        while !self.staged.is_empty() {
            let sealed = self.tls.writer().write(&self.staged)?;
            if sealed == 0 {
                return Ok(false);
            }
            self.staged.drain(..sealed);
        }
        Ok(true)
    }

    /// Hands all records to the socket; pending while it takes no more.
    fn poll_transmit(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.tls.wants_write() {
            match self.tls.write_tls(&mut Socket(&self.tcp)) {
                Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    ready!(self.tcp.poll_write_ready(context))?;
                }
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Sends everything written so far.
    fn poll_send(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            let sealed = self.seal_staged()?;
            ready!(self.poll_transmit(context))?;
            if sealed {
                if self.staged.capacity() > 0 {
                    self.staged = Vec::new();
                }
                return Poll::Ready(Ok(()));
            }
        }
    }

    /// Takes a part of `data` that is not empty, staging what does not fill a record.
    fn poll_take(&mut self, data: &[u8], context: &mut Context<'_>) -> Poll<io::Result<usize>> {
        loop {
            if self.staged.is_empty() && data.len() >= RECORD_BYTES {
                let whole = data.len() - data.len() % RECORD_BYTES;
                let sealed = self.tls.writer().write(&data[..whole])?;
                if sealed > 0 {
                    return Poll::Ready(Ok(sealed));
                }
            } else if self.staged.len() < RECORD_BYTES {
                let taken = data.len().min(RECORD_BYTES - self.staged.len());
                self.staged.extend_from_slice(&data[..taken]);
                return Poll::Ready(Ok(taken));
            } else if self.seal_staged()? {
                continue;
            }
            // The records made so far fill the limit.
            ready!(self.poll_transmit(context))?;
        }
    }

    fn poll_read(
        &mut self,
        out: &mut ReadBuf<'_>,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        let before = out.filled().len();
        loop {
            self.open_records(out)?;
            let progressed = out.filled().len() > before;
            if out.remaining() == 0 || self.ended {
                return Poll::Ready(Ok(()));
            }
            match self.poll_receive(context) {
                Poll::Ready(result) => result?,
                // What came before an end or a pause is delivered first.
                Poll::Pending if progressed => return Poll::Ready(Ok(())),
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// Decrypts the ciphertext at hand into `out`, as far as there is room.
    fn open_records(&mut self, out: &mut ReadBuf<'_>) -> io::Result<()> {
        loop {
            while out.remaining() > 0 {
                match self.tls.reader().read(out.initialize_unfilled()) {
                    Ok(0) => {
                        self.ended = true;
                        return Ok(());
                    }
                    Ok(read) => out.advance(read),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) => return Err(error),
                }
            }
            if out.remaining() == 0 || self.incoming.is_empty() {
                return Ok(());
            }
            let taken = self.tls.read_tls(&mut &self.incoming[..])?;
            self.incoming.advance(taken);
            if self.incoming.is_empty() {
                self.incoming = BytesMut::new();
            }
            self.tls.process_new_packets().map_err(io::Error::other)?;
        }
    }

    /// Reads once from the socket.
    fn poll_receive(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Asked first, so that an idle connection holds no buffer.
        ready!(self.tcp.poll_read_ready(context))?;
        self.incoming.reserve(READ_BYTES);
        let read = ready!(poll_read_buf(
            Pin::new(&mut self.tcp),
            context,
            &mut self.incoming
        ))?;
        if read == 0 {
            // Without a close_notify this is a truncation, and rustls reports it so.
            self.tls.read_tls(&mut io::empty())?;
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for RecordStream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.0.borrow_mut().poll_read(out, context)
    }
}

impl AsyncWrite for RecordStream {
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
        shared.tls.send_close_notify();
        ready!(shared.poll_transmit(context))?;
        Pin::new(&mut shared.tcp).poll_shutdown(context)
    }
}

/// Lets rustls write records to a socket that does not block.
struct Socket<'a>(&'a TcpStream);

impl io::Write for Socket<'_> {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.0.try_write(data)
    }

    fn write_vectored(&mut self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.try_write_vectored(slices)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
