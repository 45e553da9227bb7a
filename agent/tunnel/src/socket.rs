//! Sockets made inside a pod's network namespace, so that the fabric and NetworkPolicy see the pod itself.
use std::{
    cell::Cell,
    io,
    net::{IpAddr, SocketAddr},
    os::fd::OwnedFd,
    sync::Arc,
    time::Duration,
};

use nix::{
    sched::{CloneFlags, setns},
    sys::socket::{setsockopt, sockopt},
};
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpSocket, TcpStream};
use undermesh_abi::INBOUND_MARK;

use crate::Announce;

/// How long one connection attempt may take, as in Istio's node proxy.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

const KEEPALIVE_IDLE: Duration = Duration::from_secs(180);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(180);
const KEEPALIVE_PROBES: u32 = 9;

thread_local! {
    /// Cookie of the namespace that this worker thread is in; 0 is the one it started in.
    static CURRENT: Cell<u64> = const { Cell::new(0) };
}

/// A pod's network namespace, entered by a worker thread whenever it makes a socket there.
///
/// A worker makes no socket outside pods, so it stays where the last one was made: entering costs
/// a system call only when the pod changes.
#[derive(Clone)]
pub(crate) struct Netns {
    cookie: u64,
    file: Arc<OwnedFd>,
    announce: Option<Arc<dyn Announce>>,
}

impl Netns {
    /// The namespace with this cookie; connections to its applications are announced to `announce`.
    pub(crate) fn new(
        cookie: u64,
        file: Arc<OwnedFd>,
        announce: Option<Arc<dyn Announce>>,
    ) -> Self {
        Self {
            cookie,
            file,
            announce,
        }
    }

    /// Opens a connection from the pod itself, unseen by capture.
    ///
    /// # Errors
    /// Those of the system calls, and [`io::ErrorKind::TimedOut`] after [`CONNECT_TIMEOUT`].
    pub(crate) async fn connect(&self, target: SocketAddr, mark: u32) -> io::Result<TcpStream> {
        let socket = self.socket(target)?;
        socket.set_mark(mark)?;
        keep_alive(&SockRef::from(&socket))?;
        finish(socket, target).await
    }

    /// Opens a connection to the pod's application from the client's own address.
    ///
    /// # Errors
    /// Those of the system calls, and [`io::ErrorKind::TimedOut`] after [`CONNECT_TIMEOUT`].
    pub(crate) async fn connect_from(
        &self,
        client: IpAddr,
        target: SocketAddr,
    ) -> io::Result<TcpStream> {
        let socket = self.socket(target)?;
        socket.set_mark(INBOUND_MARK)?;
        unpaced(&SockRef::from(&socket));
        // A pod that calls itself through the mesh is local already.
        let mut announced = None;
        if client != target.ip() && client.is_ipv4() == target.is_ipv4() {
            // To the kernel a packet to an own address arrives on that address's device, and inbound
            // capture would take it for a client's; on `lo` the packets of both directions meet.
            socket.bind_device(Some(b"lo"))?;
            match target {
                SocketAddr::V4(_) => socket.set_ip_transparent_v4(true)?,
                SocketAddr::V6(_) => socket.set_ip_transparent_v6(true)?,
            }
            // The port is chosen at connect(), where the whole tuple decides what is free, unless it must be told before.
            setsockopt(
                &socket,
                sockopt::IpBindAddressNoPort,
                &self.announce.is_none(),
            )?;
            socket.bind(&SocketAddr::new(client, 0).into())?;
            let announce = self.announce.as_deref();
            announced = announce
                .map(|announce| Announced::new(announce, &socket, target))
                .transpose()?;
        }
        let connected = finish(socket, target).await;
        drop(announced);
        connected
    }

    fn socket(&self, target: SocketAddr) -> io::Result<Socket> {
        if CURRENT.get() != self.cookie {
            // Unknown until the call succeeded.
            CURRENT.set(0);
            setns(&self.file, CloneFlags::CLONE_NEWNET)?;
            CURRENT.set(self.cookie);
        }
        let kind = Type::STREAM.nonblocking().cloexec();
        let socket = Socket::new(Domain::for_address(target), kind, Some(Protocol::TCP))?;
        socket.set_tcp_nodelay(true)?;
        Ok(socket)
    }
}

/// A connection on its way to an application; withdrawn when dropped.
struct Announced<'a> {
    announce: &'a dyn Announce,
    source: SocketAddr,
    target: SocketAddr,
}

impl<'a> Announced<'a> {
    fn new(announce: &'a dyn Announce, socket: &Socket, target: SocketAddr) -> io::Result<Self> {
        let source = socket.local_addr()?.as_socket();
        let source = source.ok_or(io::ErrorKind::AddrNotAvailable)?;
        announce.announce(source, target)?;
        Ok(Self {
            announce,
            source,
            target,
        })
    }
}

impl Drop for Announced<'_> {
    fn drop(&mut self) {
        self.announce.withdraw(self.source, self.target);
    }
}

async fn finish(socket: Socket, target: SocketAddr) -> io::Result<TcpStream> {
    let connecting = TcpSocket::from_std_stream(socket.into()).connect(target);
    match tokio::time::timeout(CONNECT_TIMEOUT, connecting).await {
        Ok(result) => result,
        Err(_) => Err(io::Error::new(
            io::ErrorKind::TimedOut,
            format!("no answer within {} s", CONNECT_TIMEOUT.as_secs()),
        )),
    }
}

/// Options that accepted sockets inherit from their listener, set once instead of for each connection.
pub(crate) fn prepare_listener(listener: &std::net::TcpListener) -> io::Result<()> {
    let socket = SockRef::from(listener);
    socket.set_nonblocking(true)?;
    socket.set_tcp_nodelay(true)?;
    keep_alive(&socket)
}

/// Makes closing the socket send a reset: the application must not take a failure for an end of data.
pub(crate) fn reset_on_close(stream: &TcpStream) {
    // A failure leaves an orderly close, which is all that can be done then.
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

/// Takes a congestion control that does not pace for a connection that stays inside the pod.
///
/// Loopback has no queue to spare; a system that paces (`bbr`) would set a timer for nearly every write.
pub(crate) fn unpaced(socket: &SockRef<'_>) {
    // Every kernel has it. Without it the connection is only slower.
    let _ = socket.set_tcp_congestion(b"reno");
}

fn keep_alive(socket: &SockRef<'_>) -> io::Result<()> {
    socket.set_tcp_keepalive(
        &TcpKeepalive::new()
            .with_time(KEEPALIVE_IDLE)
            .with_interval(KEEPALIVE_INTERVAL)
            .with_retries(KEEPALIVE_PROBES),
    )
}

/// Writes an IPv4-mapped address as the IPv4 address that it is.
pub(crate) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}
