//! The agent's listeners inside a pod's namespace.
use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener},
};

use socket2::{Domain, Protocol, Socket, Type};
use undermesh_abi::{INBOUND_HBONE_PORT, INBOUND_PLAINTEXT_PORT, OUTBOUND_PORT};

use crate::routes::{Addresses, Family};

/// Connections that the kernel completes before the agent accepts them, for each listener.
const BACKLOG: i32 = 1024;

/// The listeners of one worker; those of all workers share their ports by `SO_REUSEPORT`.
///
/// Each list holds one listener for each address family that the pod has. All are non-blocking.
#[derive(Debug)]
pub struct WorkerListeners {
    /// Captured connections of the pod's applications: port 15001 on loopback.
    pub outbound: Vec<TcpListener>,
    /// Plain connections to the pod's applications, given by `sk_lookup`: port 15006 on loopback.
    pub plaintext: Vec<TcpListener>,
    /// HBONE connections of mesh peers: port 15008 on every address.
    pub hbone: Vec<TcpListener>,
}

/// A listener that could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address} inside the pod: {source}; {}", remedy(.source))]
pub struct ListenError {
    address: SocketAddr,
    source: io::Error,
}

fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => "stop the program in the pod that holds this port",
        io::ErrorKind::AddrNotAvailable => "bring up the pod's loopback interface",
        _ => "check the limits of the agent's process (ulimit -n)",
    }
}

/// Opens the listeners of `workers` workers, in the calling thread's namespace.
pub(crate) fn open(
    addresses: &Addresses,
    workers: usize,
) -> Result<Vec<WorkerListeners>, ListenError> {
    (0..workers)
        .map(|_| {
            Ok(WorkerListeners {
                outbound: each_family(addresses, loopback, OUTBOUND_PORT)?,
                plaintext: each_family(addresses, loopback, INBOUND_PLAINTEXT_PORT)?,
                hbone: each_family(addresses, any, INBOUND_HBONE_PORT)?,
            })
        })
        .collect()
}

fn each_family(
    addresses: &Addresses,
    address: fn(Family) -> IpAddr,
    port: u16,
) -> Result<Vec<TcpListener>, ListenError> {
    addresses
        .families()
        .map(|family| {
            let address = SocketAddr::new(address(family), port);
            listen(address).map_err(|source| ListenError { address, source })
        })
        .collect()
}

fn loopback(family: Family) -> IpAddr {
    match family {
        Family::Ipv4 => Ipv4Addr::LOCALHOST.into(),
        Family::Ipv6 => Ipv6Addr::LOCALHOST.into(),
    }
}

fn any(family: Family) -> IpAddr {
    match family {
        Family::Ipv4 => Ipv4Addr::UNSPECIFIED.into(),
        Family::Ipv6 => Ipv6Addr::UNSPECIFIED.into(),
    }
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    // Close-on-exec is what this constructor sets.
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    socket.set_nonblocking(true)?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}
