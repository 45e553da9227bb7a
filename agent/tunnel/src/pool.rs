//! A pod's tunnels to its peers: HTTP/2 connections that many application connections share.
//!
//! A tunnel belongs to one source pod and one destination *workload* with the identities it may prove;
//! an address alone never selects a tunnel, since addresses are used again by other pods.
use std::{
    cell::{Cell, RefCell},
    collections::HashMap,
    io,
    net::SocketAddr,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use h2::{RecvStream, SendStream, client::SendRequest};
use http::{Request, StatusCode};
use tokio::{
    sync::Mutex,
    task::{AbortHandle, spawn_local},
    time::Instant,
};
use undermesh_identity::{CertificateHandle, NotReady, WorkloadCertificate};
use undermesh_model::{Identity, Mesh};

use crate::{
    session::{self, SessionError},
    socket::Netns,
};

/// Streams on one connection before another is made; peers announce 100 or more.
const STREAMS_PER_CONNECTION: usize = 100;
/// How long a tunnel without streams is kept.
const IDLE_RELEASE: Duration = Duration::from_secs(300);
/// How often idle tunnels are looked for.
pub(crate) const SWEEP_INTERVAL: Duration = Duration::from_secs(30);
/// Tunnels tried for one request when kept ones turn out to be dead.
const STALE_ATTEMPTS: usize = 3;

/// Why no stream could be opened to a workload.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum OpenError {
    /// This pod has no certificate to show.
    #[error("own certificate: {0}")]
    Certificate(Arc<NotReady>),
    /// What is known of the connection cannot be written as a request.
    #[error("request: {0}")]
    Request(Arc<http::Error>),
    /// The peer's node did not take the connection.
    #[error("connect to {peer}: {error}{hint}", hint = hint(.error))]
    Connect {
        /// Address of the peer's HBONE listener.
        peer: SocketAddr,
        /// The cause.
        error: Arc<io::Error>,
    },
    /// A handshake failed.
    #[error(transparent)]
    Session(#[from] Arc<SessionError>),
    /// The tunnel broke while the request was on its way.
    #[error("tunnel to {peer}: {error}")]
    Broken {
        /// Address of the peer's HBONE listener.
        peer: SocketAddr,
        /// The cause.
        error: Arc<h2::Error>,
    },
    /// The peer answered with something other than 200.
    #[error("{peer} answered {status}: {meaning}", meaning = meaning(*.status))]
    Status {
        /// Address of the peer's HBONE listener.
        peer: SocketAddr,
        /// Its answer.
        status: StatusCode,
    },
}

fn hint(error: &io::Error) -> &'static str {
    if error.kind() == io::ErrorKind::TimedOut {
        "; a NetworkPolicy may block port 15008"
    } else {
        ""
    }
}

fn meaning(status: StatusCode) -> &'static str {
    match status {
        StatusCode::UNAUTHORIZED => "denied by its authorization policy",
        StatusCode::SERVICE_UNAVAILABLE => "the application could not be reached",
        StatusCode::BAD_REQUEST => "the destination is not its own",
        _ => "not an HBONE answer",
    }
}

/// What selects a tunnel.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct PeerKey {
    /// `uid` of the workload that takes the tunnel.
    pub workload: Arc<str>,
    /// Address of its HBONE listener.
    pub address: SocketAddr,
    /// Identities that it may prove.
    pub expected: Arc<[Identity]>,
}

/// An open stream; the tunnel is kept as long as it.
pub(crate) struct Stream {
    /// Towards the peer.
    pub send: SendStream<Bytes>,
    /// From the peer.
    pub receive: RecvStream,
    /// Who the peer has proved to be.
    pub peer: Identity,
    /// Counts the stream until it is dropped.
    pub lease: Lease,
}

/// Counts one stream of a tunnel.
pub(crate) struct Lease(Rc<Tunnel>);

impl Drop for Lease {
    fn drop(&mut self) {
        self.0.streams.set(self.0.streams.get() - 1);
        self.0.used.set(Instant::now());
    }
}

struct Tunnel {
    requests: SendRequest<Bytes>,
    peer: Identity,
    certificate: Arc<WorkloadCertificate>,
    streams: Cell<usize>,
    used: Cell<Instant>,
    driver: AbortHandle,
    /// Number of tunnels of all pods, for the metrics.
    count: Arc<AtomicUsize>,
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Tunnel {
    fn lease(self: &Rc<Self>) -> Lease {
        self.streams.set(self.streams.get() + 1);
        Lease(Rc::clone(self))
    }

    fn has_room(&self) -> bool {
        self.streams.get() < STREAMS_PER_CONNECTION
    }
}

/// All tunnels of one pod on one worker.
pub(crate) struct Pool {
    netns: Netns,
    mark: u32,
    certificate: CertificateHandle,
    peers: RefCell<HashMap<PeerKey, Rc<Peer>>>,
    count: Arc<AtomicUsize>,
}

/// The tunnels to one workload, and the one that is being made.
#[derive(Default)]
struct Peer {
    tunnels: RefCell<Vec<Rc<Tunnel>>>,
    /// Held while connecting, so that a burst of first connections makes one tunnel.
    dialing: Mutex<()>,
    /// The last failure, for those who waited for that attempt.
    failure: RefCell<Option<OpenError>>,
    attempts: Cell<u64>,
}

impl Pool {
    /// An empty pool; `count` follows the number of tunnels.
    pub(crate) fn new(
        netns: Netns,
        mark: u32,
        certificate: CertificateHandle,
        count: Arc<AtomicUsize>,
    ) -> Self {
        Self {
            netns,
            mark,
            certificate,
            peers: RefCell::default(),
            count,
        }
    }

    /// Opens a stream with `request` on a kept tunnel, or on a new one.
    ///
    /// A kept tunnel that turns out to be dead is replaced; the peer has then not seen the request.
    ///
    /// # Errors
    /// When the peer cannot be reached, is not who it should be, or answers with another status than 200.
    pub(crate) async fn open(
        &self,
        key: &PeerKey,
        request: impl Fn() -> Result<Request<()>, http::Error>,
    ) -> Result<Stream, OpenError> {
        let peer = self.peer(key);
        let mut attempt = 1;
        loop {
            let lease = self.tunnel(key, &peer).await?;
            let request = request().map_err(|error| OpenError::Request(Arc::new(error)))?;
            let error = match send(&lease.0, request).await {
                Ok((response, send)) => return accept(key, response, send, lease),
                Err(error) => error,
            };
            if !error.is_of_stream() {
                peer.forget(&lease.0);
            }
            if attempt == STALE_ATTEMPTS || !error.unprocessed() {
                let (SendError::Unsent(error) | SendError::Unanswered(error)) = error;
                return Err(OpenError::Broken {
                    peer: key.address,
                    error: Arc::new(error),
                });
            }
            attempt += 1;
        }
    }

    /// Lets go of tunnels to workloads that have left the mesh or changed, and of idle ones. Streams that
    /// are open go on.
    pub(crate) fn sweep(&self, mesh: &Mesh) {
        let now = Instant::now();
        self.peers.borrow_mut().retain(|key, peer| {
            let known = mesh.workload(&key.workload).is_some_and(|workload| {
                let is_there = workload.is_named() || workload.owns(key.address.ip());
                is_there && key.expected.contains(&workload.identity)
            });
            let mut tunnels = peer.tunnels.borrow_mut();
            tunnels.retain(|tunnel| {
                let idle = tunnel.streams.get() == 0
                    && now.duration_since(tunnel.used.get()) >= IDLE_RELEASE;
                known && !idle && !tunnel.driver.is_finished()
            });
            // Somebody who is dialing holds the peer.
            !tunnels.is_empty() || Rc::strong_count(peer) > 1
        });
    }

    fn peer(&self, key: &PeerKey) -> Rc<Peer> {
        if let Some(peer) = self.peers.borrow().get(key) {
            return Rc::clone(peer);
        }
        Rc::clone(self.peers.borrow_mut().entry(key.clone()).or_default())
    }

    async fn tunnel(&self, key: &PeerKey, peer: &Rc<Peer>) -> Result<Lease, OpenError> {
        let certificate = self
            .certificate
            .load()
            .map_err(|error| OpenError::Certificate(Arc::new(error)))?;
        if let Some(lease) = peer.kept(&certificate) {
            return Ok(lease);
        }
        let attempts = peer.attempts.get();
        let _dialing = peer.dialing.lock().await;
        if let Some(lease) = peer.kept(&certificate) {
            return Ok(lease);
        }
        if peer.attempts.get() != attempts
            && let Some(failure) = &*peer.failure.borrow()
        {
            return Err(failure.clone());
        }
        let result = self.dial(key, certificate).await;
        peer.attempts.set(peer.attempts.get() + 1);
        match result {
            Ok(tunnel) => {
                let lease = tunnel.lease();
                peer.failure.replace(None);
                peer.tunnels.borrow_mut().push(tunnel);
                Ok(lease)
            }
            Err(error) => {
                peer.failure.replace(Some(error.clone()));
                Err(error)
            }
        }
    }

    async fn dial(
        &self,
        key: &PeerKey,
        certificate: Arc<WorkloadCertificate>,
    ) -> Result<Rc<Tunnel>, OpenError> {
        let tcp = self
            .netns
            .connect(key.address, self.mark)
            .await
            .map_err(|error| OpenError::Connect {
                peer: key.address,
                error: Arc::new(error),
            })?;
        let session = session::connect(tcp, key.address, &certificate, &key.expected)
            .await
            .map_err(Arc::new)?;
        let peer = key.address;
        let driver = session.driver;
        let driver = spawn_local(async move {
            if let Err(error) = driver.await {
                tracing::debug!(%peer, %error, "tunnel ended");
            }
        });
        self.count.fetch_add(1, Ordering::Relaxed);
        Ok(Rc::new(Tunnel {
            requests: session.requests,
            peer: session.peer,
            certificate,
            streams: Cell::new(0),
            used: Cell::new(Instant::now()),
            driver: driver.abort_handle(),
            count: Arc::clone(&self.count),
        }))
    }
}

impl Peer {
    /// A stream on the tunnel with the fewest of them. Tunnels made with an older certificate, and dead
    /// ones, are let go; their open streams go on.
    fn kept(&self, certificate: &Arc<WorkloadCertificate>) -> Option<Lease> {
        let mut tunnels = self.tunnels.borrow_mut();
        tunnels.retain(|tunnel| {
            !tunnel.driver.is_finished() && Arc::ptr_eq(&tunnel.certificate, certificate)
        });
        tunnels
            .iter()
            .filter(|tunnel| tunnel.has_room())
            .min_by_key(|tunnel| tunnel.streams.get())
            .map(Tunnel::lease)
    }

    fn forget(&self, dead: &Rc<Tunnel>) {
        self.tunnels
            .borrow_mut()
            .retain(|tunnel| !Rc::ptr_eq(tunnel, dead));
    }
}

/// How far a request came before its tunnel failed it.
enum SendError {
    /// The tunnel was dead before the request left.
    Unsent(h2::Error),
    /// No answer came.
    Unanswered(h2::Error),
}

impl SendError {
    /// Whether the peer cannot have acted on the request (RFC 9113, section 8.7).
    fn unprocessed(&self) -> bool {
        match self {
            Self::Unsent(_) => true,
            Self::Unanswered(error) => {
                error.is_io()
                    || error.is_go_away() && error.reason() == Some(h2::Reason::NO_ERROR)
                    || error.reason() == Some(h2::Reason::REFUSED_STREAM)
            }
        }
    }

    /// Whether the failure concerns this one request, and the tunnel lives.
    fn is_of_stream(&self) -> bool {
        matches!(self, Self::Unanswered(error) if error.is_reset())
    }
}

async fn send(
    tunnel: &Tunnel,
    request: Request<()>,
) -> Result<(http::Response<RecvStream>, SendStream<Bytes>), SendError> {
    let mut requests = tunnel
        .requests
        .clone()
        .ready()
        .await
        .map_err(SendError::Unsent)?;
    let (answer, send) = requests
        .send_request(request, false)
        .map_err(SendError::Unsent)?;
    let response = answer.await.map_err(SendError::Unanswered)?;
    Ok((response, send))
}

fn accept(
    key: &PeerKey,
    response: http::Response<RecvStream>,
    send: SendStream<Bytes>,
    lease: Lease,
) -> Result<Stream, OpenError> {
    let status = response.status();
    if status != StatusCode::OK {
        return Err(OpenError::Status {
            peer: key.address,
            status,
        });
    }
    Ok(Stream {
        send,
        receive: response.into_body(),
        peer: lease.0.peer.clone(),
        lease,
    })
}
