//! The L4 data plane: takes captured connections, carries them over HBONE, judges what comes in.
//!
//! Each [`Workers`] thread is a single-threaded runtime; a connection and its HTTP/2 stay on the worker
//! that accepted them, so nothing on the byte path is shared or locked. Sources: Istio ambient's HBONE
//! and ztunnel's decision trees for outbound, inbound and plaintext connections.
#![forbid(unsafe_code)]

mod arrival;
mod copy;
mod engine;
mod failure;
mod hbone;
mod inbound;
mod names;
mod outbound;
mod plaintext;
mod pod;
mod pool;
mod proxy;
mod record;
mod resolve;
mod session;
mod socket;
#[cfg(test)]
mod tests;
mod worker;

use std::{
    io,
    net::{SocketAddr, TcpListener},
    os::fd::OwnedFd,
    sync::Arc,
};

use undermesh_identity::CertificateHandle;
use undermesh_model::Identity;

pub use resolve::{Resolve, Unanswered};
pub use worker::{Workers, WorkersConfig, WorkersError};

/// Tells where a captured connection was meant to go.
pub trait OriginalDestinations: Send + Sync {
    /// Takes the destination that the application at `source`, in the network namespace of this cookie,
    /// asked for. `None` when none is kept: the connection was not captured, or room was short.
    fn take(&self, netns_cookie: u64, source: SocketAddr) -> Option<SocketAddr>;
}

/// Lets connections to applications past inbound capture, on kernels that cannot tell them by their device.
pub trait Announce: Send + Sync {
    /// From here until [`Announce::withdraw`], a connection with these ends is for the application itself.
    ///
    /// # Errors
    /// When there is no room for more; the connection would come back to the node proxy.
    fn announce(&self, source: SocketAddr, target: SocketAddr) -> io::Result<()>;

    /// The connection stands, or has failed.
    fn withdraw(&self, source: SocketAddr, target: SocketAddr);
}

/// The listeners of one pod for one worker; an IPv4 and, where the pod has IPv6, an IPv6 one each.
#[derive(Debug, Default)]
pub struct WorkerListeners {
    /// Captured outbound connections (15001, on loopback).
    pub outbound: Vec<TcpListener>,
    /// Captured inbound plain connections (15006).
    pub plaintext: Vec<TcpListener>,
    /// HBONE (15008).
    pub hbone: Vec<TcpListener>,
}

/// An enrolled pod, ready to be served.
#[derive(Debug)]
pub struct PodConfig {
    /// Cookie of the pod's network namespace.
    pub id: u64,
    /// Kubernetes namespace.
    pub namespace: Arc<str>,
    /// Name of the pod.
    pub name: Arc<str>,
    /// Identity that the pod runs under.
    pub identity: Identity,
    /// Its certificate, renewed behind this handle.
    pub certificate: CertificateHandle,
    /// The pod's network namespace.
    pub netns: Arc<OwnedFd>,
    /// Mark that keeps this node's own connections out of capture.
    pub outbound_mark: u32,
    /// Listeners, one entry for each worker.
    pub listeners: Vec<WorkerListeners>,
}
