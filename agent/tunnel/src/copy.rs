//! Moves bytes between an application's socket and the tunnel, each direction for itself.
//!
//! Each direction ends by itself: the end of one side's data becomes a half-close of the other.
//! A buffer exists only while there is something in it, so that idle connections cost no memory, and
//! nothing is read before the other side has room, so that pressure passes from end to end.
use std::{
    collections::VecDeque,
    future::poll_fn,
    io::{self, IoSlice},
    pin::Pin,
    task::Poll,
};

use bytes::{Buf as _, Bytes, BytesMut};
use h2::{Reason, RecvStream, SendStream};
use tokio::{
    io::AsyncWrite as _,
    net::{
        TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
};
use tokio_util::io::poll_read_buf;
use undermesh_telemetry::Connection;

/// Buffer of a connection's first reads; most requests fit.
const READ_BYTES_MIN: usize = 4 * 1024;
/// Buffer of a connection that fills smaller ones.
const READ_BYTES_MAX: usize = 128 * 1024;
/// How much a full buffer grows.
const READ_GROWTH: usize = 4;
/// Chunks handed to one vectored write.
const WRITE_SLICES: usize = 32;
/// Bytes gathered from the tunnel before they are written.
const WRITE_BATCH: usize = 256 * 1024;

/// Why copying ended before both sides were done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CopyError {
    /// The near socket failed.
    #[error("{side} socket: {error}")]
    Socket {
        /// Whose socket it was.
        side: Side,
        /// The cause.
        error: io::Error,
    },
    /// The peer reset the stream, or the tunnel's connection broke.
    #[error("tunnel: {0}")]
    Tunnel(#[from] h2::Error),
}

/// The two ends of a connection, named from where it was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// Who opened it.
    Downstream,
    /// Whom it was opened to.
    Upstream,
}

impl std::fmt::Display for Side {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Downstream => "downstream",
            Self::Upstream => "upstream",
        })
    }
}

impl Side {
    fn other(self) -> Self {
        match self {
            Self::Downstream => Self::Upstream,
            Self::Upstream => Self::Downstream,
        }
    }
}

/// Counts bytes that came from one side.
fn count(connection: &Connection, from: Side, bytes: usize) {
    match from {
        Side::Downstream => connection.add_sent(bytes as u64),
        Side::Upstream => connection.add_received(bytes as u64),
    }
}

/// Copies both ways between a socket and a tunnel's stream, until both directions have ended.
///
/// `near` tells which side the socket is on. On a failure the stream is reset and the error returned;
/// the caller resets the socket.
pub(crate) async fn tunnel(
    socket: &mut TcpStream,
    near: Side,
    mut send: SendStream<Bytes>,
    mut receive: RecvStream,
    connection: &Connection,
) -> Result<(), CopyError> {
    let (mut read, mut write) = socket.split();
    let result = {
        let into_tunnel = async {
            let mut reader = Reader::new(&mut read, near);
            loop {
                let Some(chunk) = reader.next().await? else {
                    send.send_data(Bytes::new(), true)?;
                    return Ok(());
                };
                count(connection, near, chunk.len());
                send.send_data(chunk, false)?;
                room(&mut send).await?;
            }
        };
        let out_of_tunnel = drain(&mut receive, &mut write, near, connection);
        tokio::try_join!(into_tunnel, out_of_tunnel)
    };
    match result {
        Ok(((), ())) => Ok(()),
        Err(error) => {
            send.send_reset(Reason::CANCEL);
            Err(error)
        }
    }
}

/// Copies both ways between two sockets, until both directions have ended.
pub(crate) async fn sockets(
    downstream: &mut TcpStream,
    upstream: &mut TcpStream,
    connection: &Connection,
) -> Result<(), CopyError> {
    let (mut down_read, mut down_write) = downstream.split();
    let (mut up_read, mut up_write) = upstream.split();
    tokio::try_join!(
        forward(&mut down_read, &mut up_write, Side::Downstream, connection),
        forward(&mut up_read, &mut down_write, Side::Upstream, connection),
    )?;
    Ok(())
}

async fn forward(
    read: &mut ReadHalf<'_>,
    write: &mut WriteHalf<'_>,
    from: Side,
    connection: &Connection,
) -> Result<(), CopyError> {
    let to = from.other();
    let mut reader = Reader::new(read, from);
    while let Some(chunk) = reader.next().await? {
        count(connection, from, chunk.len());
        let mut chunks = VecDeque::from([chunk]);
        write_all(write, &mut chunks)
            .await
            .map_err(|error| CopyError::Socket { side: to, error })?;
    }
    shutdown(write)
        .await
        .map_err(|error| CopyError::Socket { side: to, error })
}

/// Reads chunks whose size follows what the sender offers.
struct Reader<'a, 'b> {
    half: &'a mut ReadHalf<'b>,
    side: Side,
    size: usize,
}

impl<'a, 'b> Reader<'a, 'b> {
    fn new(half: &'a mut ReadHalf<'b>, side: Side) -> Self {
        Self {
            half,
            side,
            size: READ_BYTES_MIN,
        }
    }

    /// The next bytes, or `None` at their end.
    async fn next(&mut self) -> Result<Option<Bytes>, CopyError> {
        let chunk = self.read().await.map_err(|error| CopyError::Socket {
            side: self.side,
            error,
        })?;
        Ok((!chunk.is_empty()).then_some(chunk))
    }

    async fn read(&mut self) -> io::Result<Bytes> {
        loop {
            // Waiting needs no buffer.
            self.half.readable().await?;
            let mut buffer = BytesMut::with_capacity(self.size);
            let read = poll_fn(|context| {
                match poll_read_buf(Pin::new(&mut *self.half), context, &mut buffer) {
                    // The readiness was stale: give the buffer back and wait.
                    Poll::Pending => Poll::Ready(Ok(None)),
                    Poll::Ready(result) => Poll::Ready(result.map(Some)),
                }
            })
            .await?;
            if let Some(read) = read {
                if read == buffer.capacity() {
                    self.size = (self.size * READ_GROWTH).min(READ_BYTES_MAX);
                }
                return Ok(buffer.freeze());
            }
        }
    }
}

/// Waits until the stream takes more: the peer's window and the bounded send buffer have room.
async fn room(send: &mut SendStream<Bytes>) -> Result<(), CopyError> {
    while send.capacity() == 0 {
        // One byte asks for more than what is queued, without holding back other streams' share.
        send.reserve_capacity(1);
        match poll_fn(|context| send.poll_capacity(context)).await {
            Some(Ok(_)) => {}
            Some(Err(error)) => return Err(error.into()),
            // The peer has ended the stream; the reason is with the receiving half.
            None => return Err(h2::Error::from(Reason::STREAM_CLOSED).into()),
        }
    }
    Ok(())
}

/// Writes what the tunnel brings to a socket, and half-closes it at the end.
async fn drain(
    receive: &mut RecvStream,
    write: &mut WriteHalf<'_>,
    near: Side,
    connection: &Connection,
) -> Result<(), CopyError> {
    let mut chunks = VecDeque::new();
    loop {
        let (bytes, ended) = gather(receive, &mut chunks).await?;
        count(connection, near.other(), bytes);
        write_all(write, &mut chunks)
            .await
            .map_err(|error| CopyError::Socket { side: near, error })?;
        // Only what the application took opens the peer's window again.
        if bytes > 0 {
            receive.flow_control().release_capacity(bytes)?;
        }
        if ended {
            return shutdown(write)
                .await
                .map_err(|error| CopyError::Socket { side: near, error });
        }
    }
}

/// Waits for data and takes all that is there, up to a batch. The flag tells the end of the stream.
async fn gather(
    receive: &mut RecvStream,
    chunks: &mut VecDeque<Bytes>,
) -> Result<(usize, bool), h2::Error> {
    let mut bytes = 0;
    poll_fn(|context| {
        while chunks.len() < WRITE_SLICES && bytes < WRITE_BATCH {
            match receive.poll_data(context) {
                Poll::Ready(Some(Ok(chunk))) => {
                    bytes += chunk.len();
                    if !chunk.is_empty() {
                        chunks.push_back(chunk);
                    }
                }
                Poll::Ready(Some(Err(error))) => return Poll::Ready(end_of(error, bytes)),
                Poll::Ready(None) => return Poll::Ready(Ok((bytes, true))),
                Poll::Pending if bytes > 0 => break,
                Poll::Pending => return Poll::Pending,
            }
        }
        Poll::Ready(Ok((bytes, false)))
    })
    .await
}

/// `RST_STREAM(NO_ERROR)` ends data in order (RFC 9113, section 8.1); every other reset may have cut it.
fn end_of(error: h2::Error, bytes: usize) -> Result<(usize, bool), h2::Error> {
    if error.is_reset() && error.reason() == Some(Reason::NO_ERROR) {
        Ok((bytes, true))
    } else {
        Err(error)
    }
}

async fn write_all(write: &mut WriteHalf<'_>, chunks: &mut VecDeque<Bytes>) -> io::Result<()> {
    while !chunks.is_empty() {
        let mut written = poll_fn(|context| {
            if chunks.len() == 1 {
                return Pin::new(&mut *write).poll_write(context, &chunks[0]);
            }
            let mut slices = [IoSlice::new(&[]); WRITE_SLICES];
            let mut used = 0;
            for (slice, chunk) in slices.iter_mut().zip(chunks.iter()) {
                *slice = IoSlice::new(chunk);
                used += 1;
            }
            Pin::new(&mut *write).poll_write_vectored(context, &slices[..used])
        })
        .await?;
        while let Some(first) = chunks.front_mut() {
            if written < first.len() {
                first.advance(written);
                break;
            }
            written -= first.len();
            chunks.pop_front();
        }
    }
    Ok(())
}

async fn shutdown(write: &mut WriteHalf<'_>) -> io::Result<()> {
    match poll_fn(|context| Pin::new(&mut *write).poll_shutdown(context)).await {
        // The other side has reset it in between: there is nobody left to tell.
        Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
        result => result,
    }
}
