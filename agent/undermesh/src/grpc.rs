//! Serves gRPC over TLS: accepts, shakes hands, and hands each connection to the services.
use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use http::Request;
use hyper::{
    body::Incoming,
    server::conn::http2,
    service::{Service as _, service_fn},
};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use rustls::ServerConfig;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tonic::service::Routes;
use undermesh_identity::{PeerCertificate, peer_identity};

/// Connections at once: a node has two, and both come again before the old ones are noticed to be gone.
const MAX_CONNECTIONS: usize = 16 * 1024;
/// Streams at once on one connection.
const MAX_STREAMS: u32 = 256;
/// How long a handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How often a silent peer is asked whether it is there, and how long it may take to say so.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(10));
/// Pause after the system refused a connection for want of something.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// HTTP/2 is the only protocol spoken here.
const ALPN: &[u8] = b"h2";

/// Accepts connections for ever; a connection that fails ends alone.
pub async fn serve(listener: TcpListener, mut tls: ServerConfig, routes: Routes) {
    tls.alpn_protocols = vec![ALPN.to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(tls));
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, peer)) => {
                tokio::spawn(connection(
                    acceptor.clone(),
                    stream,
                    peer,
                    routes.clone(),
                    place,
                ));
            }
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn connection(
    acceptor: TlsAcceptor,
    stream: TcpStream,
    peer: SocketAddr,
    routes: Routes,
    _place: OwnedSemaphorePermit,
) {
    // Small messages must not wait for acknowledgements of earlier ones; without it they are only late.
    let _ = stream.set_nodelay(true);
    let handshake = timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await;
    let handshake =
        handshake.unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, "no handshake")));
    let stream = match handshake {
        Ok(stream) => stream,
        Err(error) => return tracing::debug!(%error, %peer, "a TLS handshake failed"),
    };
    let caller = caller(&stream);
    let routes = TowerToHyperService::new(routes);
    let service = service_fn(move |mut request: Request<Incoming>| {
        if let Some(caller) = &caller {
            request.extensions_mut().insert(caller.clone());
        }
        routes.call(request)
    });
    let served = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .keep_alive_interval(KEEPALIVE.0)
        .keep_alive_timeout(KEEPALIVE.1)
        .max_concurrent_streams(MAX_STREAMS)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, %peer, "a connection ended early");
    }
}

/// Whom the client's certificate names, which the handshake has verified; nobody if there is none.
fn caller(stream: &TlsStream<TcpStream>) -> Option<PeerCertificate> {
    let (_, connection) = stream.get_ref();
    let identity = peer_identity(connection.peer_certificates()?);
    identity.ok().map(PeerCertificate)
}
