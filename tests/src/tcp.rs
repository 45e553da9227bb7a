//! TCP clients and servers in test code, for what no ready-made program shows exactly.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv6Addr, Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};

use crate::{Context, Place, Result};

/// No test waits longer than this for a peer.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Connections that may wait for a server to accept them.
const BACKLOG: i32 = 4096;

/// Stack of a thread that serves one connection; thousands run at once.
const STACK: usize = 128 * 1024;

/// A server that gives each connection a thread of its own.
#[derive(Debug)]
pub struct Server {
    listener: Arc<Socket>,
    accepted: Arc<AtomicUsize>,
    acceptor: Option<thread::JoinHandle<()>>,
}

impl Server {
    /// Listens in `place` on `port`, on IPv4 and IPv6, and serves each connection by `serve`. What
    /// `serve` returns as an error ends its connection and nothing else.
    ///
    /// # Errors
    /// When the port cannot be had.
    pub fn start(
        place: &Place,
        port: u16,
        serve: impl Fn(TcpStream) -> io::Result<()> + Send + Sync + 'static,
    ) -> Result<Self> {
        let listener = place
            .run(|| listen(port))?
            .context(|| format!("listen on port {port} in {}", place.label()))?;
        let listener = Arc::new(listener);
        let accepted = Arc::new(AtomicUsize::new(0));
        let (socket, count) = (Arc::clone(&listener), Arc::clone(&accepted));
        let acceptor = place.background(move || accept_all(&socket, &count, &Arc::new(serve)))?;
        Ok(Self {
            listener,
            accepted,
            acceptor: Some(acceptor),
        })
    }

    /// The connections accepted so far.
    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Shutting a listener down makes its accept() fail, which ends the acceptor.
        let _ = self.listener.shutdown(Shutdown::Both);
        if let Some(acceptor) = self.acceptor.take() {
            // It returns nothing, and a panic in it has been printed.
            let _ = acceptor.join();
        }
    }
}

fn listen(port: u16) -> io::Result<Socket> {
    let socket = Socket::new(Domain::IPV6, Type::STREAM, Some(Protocol::TCP))?;
    socket.set_only_v6(false)?;
    socket.set_reuse_address(true)?;
    socket.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)).into())?;
    socket.listen(BACKLOG)?;
    Ok(socket)
}

fn accept_all<S>(listener: &Socket, accepted: &AtomicUsize, serve: &Arc<S>)
where
    S: Fn(TcpStream) -> io::Result<()> + Send + Sync + 'static,
{
    while let Ok((socket, _)) = listener.accept() {
        accepted.fetch_add(1, Ordering::SeqCst);
        let serve = Arc::clone(serve);
        let started = thread::Builder::new().stack_size(STACK).spawn(move || {
            let stream = TcpStream::from(socket);
            // The client sees how its connection ended; the server has nobody to tell.
            let _ = patient(&stream).and_then(|()| serve(stream));
        });
        if let Err(error) = started {
            eprintln!("a test server cannot start a thread: {error}");
        }
    }
}

/// Connects, with [`PATIENCE`] for that and for each read and write.
///
/// # Errors
/// As `connect(2)`.
pub fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    connect_within(PATIENCE, address)
}

/// Connects within `limit`, with [`PATIENCE`] for each read and write.
///
/// # Errors
/// As `connect(2)`.
pub fn connect_within(limit: Duration, address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, limit)?;
    patient(&stream)?;
    Ok(stream)
}

/// Connects from a source address of the caller's choice.
///
/// # Errors
/// As `bind(2)` and `connect(2)`.
pub fn connect_from(source: SocketAddr, address: SocketAddr) -> io::Result<TcpStream> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    socket.set_reuse_address(true)?;
    socket.bind(&source.into())?;
    socket.connect_timeout(&address.into(), PATIENCE)?;
    let stream = TcpStream::from(socket);
    patient(&stream)?;
    Ok(stream)
}

fn patient(stream: &TcpStream) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)
}

/// Sends back all that comes until the client closes its side.
///
/// # Errors
/// When the connection breaks.
pub fn echo(mut stream: TcpStream) -> io::Result<()> {
    io::copy(&mut stream.try_clone()?, &mut stream)?;
    stream.shutdown(Shutdown::Write)
}

/// Says `words` as soon as a client connects.
pub fn greet(words: impl Into<Vec<u8>>) -> impl Fn(TcpStream) -> io::Result<()> {
    let words = words.into();
    move |mut stream: TcpStream| {
        stream.write_all(&words)?;
        stream.shutdown(Shutdown::Write)?;
        io::copy(&mut stream, &mut io::sink()).map(drop)
    }
}

/// Tells each client the address it is seen under.
///
/// # Errors
/// When the connection breaks.
pub fn tell_peer(stream: TcpStream) -> io::Result<()> {
    let peer = canonical(stream.peer_addr()?);
    greet(peer.to_string())(stream)
}

/// The address with an IPv4 address in IPv6 form (`::ffff:10.1.0.2`) made IPv4 again.
pub fn canonical(address: SocketAddr) -> SocketAddr {
    let ip: IpAddr = address.ip().to_canonical();
    SocketAddr::new(ip, address.port())
}

/// Connects, sends `request`, closes the sending side and returns all that comes back.
///
/// # Errors
/// When the connection is refused or breaks.
pub fn ask(address: SocketAddr, request: &[u8]) -> io::Result<Vec<u8>> {
    let mut stream = connect(address)?;
    stream.write_all(request)?;
    read_to_end(stream)
}

/// Closes the sending side and returns all that still comes.
///
/// # Errors
/// When the connection breaks.
pub fn read_to_end(mut stream: TcpStream) -> io::Result<Vec<u8>> {
    stream.shutdown(Shutdown::Write)?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    Ok(answer)
}

/// Like [`ask`], and an answer that is not `expected` is an error.
///
/// # Errors
/// When the connection is refused or breaks, or the answer differs.
pub fn expect(address: SocketAddr, request: &[u8], expected: &[u8]) -> io::Result<()> {
    let answer = ask(address, request)?;
    if answer == expected {
        return Ok(());
    }
    Err(io::Error::new(
        ErrorKind::InvalidData,
        format!("{} bytes came back, not what was expected", answer.len()),
    ))
}

/// Sends `words` and reads the same back, leaving the connection open.
///
/// # Errors
/// When the connection breaks or other bytes come back.
pub fn ping(stream: &mut TcpStream, words: &[u8]) -> io::Result<()> {
    stream.write_all(words)?;
    let mut answer = vec![0; words.len()];
    stream.read_exact(&mut answer)?;
    if answer == words {
        return Ok(());
    }
    Err(io::Error::new(
        ErrorKind::InvalidData,
        "other bytes came back",
    ))
}
