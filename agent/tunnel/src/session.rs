//! One HTTP/2 connection over mutual TLS: handshakes, settings, keepalive, and the task that drives it.
use std::{
    future::{Future, poll_fn},
    io,
    net::SocketAddr,
    pin::pin,
    task::Poll,
    time::Duration,
};

use bytes::Bytes;
use h2::{Ping, PingPong, client, server};
use rustls::{
    client::UnbufferedClientConnection,
    pki_types::{CertificateDer, ServerName},
    server::UnbufferedServerConnection,
};
use tokio::{net::TcpStream, time::timeout};
use undermesh_identity::WorkloadCertificate;
use undermesh_model::Identity;

use crate::record::RecordStream;

/// How long TLS and the HTTP/2 preface may take together.
pub(crate) const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// Window of one stream: what one slow reader can make this node hold.
const STREAM_WINDOW: u32 = 1024 * 1024;
/// Window of a connection, shared by its streams.
const CONNECTION_WINDOW: u32 = 8 * 1024 * 1024;
/// Largest frame accepted: what the peer reads from its application at once.
const FRAME_BYTES: u32 = 128 * 1024;
/// Bytes queued for one stream before its sender waits.
const SEND_BUFFER: usize = 256 * 1024;
/// Streams that a peer may have open on one connection, as Istio's node proxy announces.
const SERVED_STREAMS: u32 = 200;
/// Longest header list accepted from a peer, in bytes.
const HEADER_BYTES: u32 = 64 * 1024;

const PING_INTERVAL: Duration = Duration::from_secs(10);
const PING_TIMEOUT: Duration = Duration::from_secs(20);

/// Why a tunnel's connection could not be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SessionError {
    /// The TLS handshake failed: a wrong identity, an unknown root, or a peer that is no mesh member.
    #[error("TLS handshake with {peer}: {error}")]
    Tls {
        /// The other end.
        peer: SocketAddr,
        /// The cause.
        error: io::Error,
    },
    /// HTTP/2 could not be agreed on.
    #[error("HTTP/2 handshake with {peer}: {error}")]
    Http {
        /// The other end.
        peer: SocketAddr,
        /// The cause.
        error: h2::Error,
    },
    /// The handshakes took too long.
    #[error("no handshake with {0} within {seconds} s", seconds = HANDSHAKE_TIMEOUT.as_secs())]
    Timeout(SocketAddr),
    /// The peer's certificate holds no identity.
    #[error("the certificate of {peer}: {error}")]
    Identity {
        /// The other end.
        peer: SocketAddr,
        /// The cause.
        error: String,
    },
}

/// The client's side of a connection.
pub(crate) struct ClientSession<D> {
    /// Opens streams.
    pub requests: client::SendRequest<Bytes>,
    /// Runs the connection; ends with it.
    pub driver: D,
    /// Who the peer has proved to be.
    pub peer: Identity,
}

/// Performs both handshakes as the client, accepting only a peer that proves one of `expected`.
///
/// # Errors
/// When a handshake fails or takes longer than [`HANDSHAKE_TIMEOUT`].
pub(crate) async fn connect(
    tcp: TcpStream,
    peer: SocketAddr,
    certificate: &WorkloadCertificate,
    expected: &[Identity],
) -> Result<ClientSession<impl Future<Output = Result<(), h2::Error>> + use<>>, SessionError> {
    let config = certificate.client_config(expected);
    let handshakes = async {
        // No name is sent or checked: the identity in the certificate decides.
        let name = ServerName::IpAddress(peer.ip().into());
        let stream = match UnbufferedClientConnection::new(config, name) {
            Ok(tls) => RecordStream::handshake(tcp, tls).await,
            Err(error) => Err(io::Error::other(error)),
        };
        let stream = stream.map_err(|error| SessionError::Tls { peer, error })?;
        let identity = stream.peer_certificates(|chain| identity_of(chain, peer))?;
        let handle = stream.handle();
        let (requests, mut connection) = client::Builder::new()
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_frame_size(FRAME_BYTES)
            .max_header_list_size(HEADER_BYTES)
            .max_send_buffer_size(SEND_BUFFER)
            .enable_push(false)
            .handshake::<_, Bytes>(stream)
            .await
            .map_err(|error| SessionError::Http { peer, error })?;
        let pings = connection.ping_pong();
        let driver = async move {
            let keepalive = pin!(keep_alive(pings));
            let connection = pin!(connection);
            let connection = handle.drive(connection);
            tokio::select! {
                result = connection => result,
                () = keepalive => Ok(()),
            }
        };
        Ok(ClientSession {
            requests,
            driver,
            peer: identity,
        })
    };
    timeout(HANDSHAKE_TIMEOUT, handshakes)
        .await
        .unwrap_or(Err(SessionError::Timeout(peer)))
}

/// The server's side of a connection.
pub(crate) struct ServerSession {
    connection: server::Connection<RecordStream<UnbufferedServerConnection>, Bytes>,
    handle: RecordStream<UnbufferedServerConnection>,
    pings: Option<PingPong>,
    /// Who the peer has proved to be.
    pub peer: Identity,
}

/// Performs both handshakes as the server.
///
/// # Errors
/// When a handshake fails or takes longer than [`HANDSHAKE_TIMEOUT`].
pub(crate) async fn accept(
    tcp: TcpStream,
    peer: SocketAddr,
    certificate: &WorkloadCertificate,
) -> Result<ServerSession, SessionError> {
    let config = certificate.server_config();
    let handshakes = async {
        let stream = match UnbufferedServerConnection::new(config) {
            Ok(tls) => RecordStream::handshake(tcp, tls).await,
            Err(error) => Err(io::Error::other(error)),
        };
        let stream = stream.map_err(|error| SessionError::Tls { peer, error })?;
        let identity = stream.peer_certificates(|chain| identity_of(chain, peer))?;
        let handle = stream.handle();
        let mut handshake = server::Builder::new()
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_frame_size(FRAME_BYTES)
            .max_header_list_size(HEADER_BYTES)
            .max_concurrent_streams(SERVED_STREAMS)
            .max_send_buffer_size(SEND_BUFFER)
            .handshake::<_, Bytes>(stream);
        let mut connection = handle
            .drive(&mut handshake)
            .await
            .map_err(|error| SessionError::Http { peer, error })?;
        let pings = connection.ping_pong();
        Ok(ServerSession {
            connection,
            handle,
            pings,
            peer: identity,
        })
    };
    timeout(HANDSHAKE_TIMEOUT, handshakes)
        .await
        .unwrap_or(Err(SessionError::Timeout(peer)))
}

/// A request for a tunnel, and the means to answer it.
pub(crate) type Incoming = (http::Request<h2::RecvStream>, server::SendResponse<Bytes>);

impl ServerSession {
    /// Hands each request to `serve` until the peer is done. When `drain` completes, the peer is told
    /// to open no more streams (GOAWAY) and the open ones go on.
    pub(crate) async fn run(
        self,
        drain: impl Future<Output = ()>,
        mut serve: impl FnMut(Incoming),
    ) -> Result<(), h2::Error> {
        let Self {
            mut connection,
            handle,
            pings,
            ..
        } = self;
        let mut drain = pin!(drain);
        let mut draining = false;
        let requests = pin!(poll_fn(|context| {
            if !draining && drain.as_mut().poll(context).is_ready() {
                draining = true;
                connection.graceful_shutdown();
            }
            loop {
                match connection.poll_accept(context) {
                    Poll::Ready(Some(Ok(incoming))) => serve(incoming),
                    Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(error)),
                    Poll::Ready(None) => return Poll::Ready(Ok(())),
                    Poll::Pending => return Poll::Pending,
                }
            }
        }));
        let keepalive = pin!(keep_alive(pings));
        tokio::select! {
            result = handle.drive(requests) => result,
            () = keepalive => Ok(()),
        }
    }
}

/// Pings a peer; returns when it no longer answers.
async fn keep_alive(pings: Option<PingPong>) {
    let Some(mut pings) = pings else {
        return std::future::pending().await;
    };
    loop {
        tokio::time::sleep(PING_INTERVAL).await;
        match timeout(PING_TIMEOUT, pings.ping(Ping::opaque())).await {
            Ok(Ok(_)) => {}
            Ok(Err(_)) | Err(_) => return,
        }
    }
}

fn identity_of(
    chain: Option<&[CertificateDer<'_>]>,
    peer: SocketAddr,
) -> Result<Identity, SessionError> {
    undermesh_identity::peer_identity(chain.unwrap_or_default()).map_err(|error| {
        SessionError::Identity {
            peer,
            error: error.to_string(),
        }
    })
}
