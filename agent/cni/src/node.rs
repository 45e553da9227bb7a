//! The node's enrollment controller: keeps what is captured equal to what the cluster wants.
//!
//! [`Controller`] watches the pods of its node and the labels of namespaces, and drives an [`Enroller`].
//! The enroller always says what is captured; the controller knows besides, by the pod's uid, *whose*
//! each captured namespace is, and takes nobody's word for it: an enrollment that an earlier agent left
//! is compared with the namespace of the pod's processes. What a watch says may be late, so before a pod
//! is let go the API server is asked again. All that is done to one pod is done one thing after the other.
mod agenda;
mod book;
mod cluster;
mod controller;
mod facts;
mod sandbox;
#[cfg(test)]
mod simulation;
mod turns;
mod watch;

use std::{
    error::Error,
    fmt,
    future::Future,
    io,
    net::IpAddr,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::Arc,
};

use crate::{
    discovery::{Discovery, DiscoveryError, Found},
    netns::{self, NetnsId},
};

pub use cluster::{Cluster, ClusterError, Kubernetes, View};
pub use controller::Controller;
pub use facts::{PodFacts, REDIRECTION, REDIRECTION_ENABLED};
pub use sandbox::SandboxError;
pub use turns::Turns;
pub use watch::Change;

/// Longest namespace name: a DNS label (RFC 1123).
const MAX_LABEL: usize = 63;
/// Longest name of a pod: a DNS subdomain (RFC 1123).
const MAX_SUBDOMAIN: usize = 253;

/// A pod by its names, which are checked; another pod may have them later.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PodKey {
    namespace: String,
    name: String,
}

/// Names that are not ones of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the pod's names are not valid; give lower-case letters, digits and hyphens, as Kubernetes takes them"
)]
pub struct InvalidKey;

impl PodKey {
    /// Checks and keeps the names of a pod.
    ///
    /// # Errors
    /// When one is not a name that Kubernetes takes.
    pub fn new(namespace: &str, name: &str) -> Result<Self, InvalidKey> {
        let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let valid = |text: &str, longest: usize, dots: bool| {
            let between = |byte: u8| inner(byte) || byte == b'-' || (dots && byte == b'.');
            let bytes = text.as_bytes();
            bytes.len() <= longest
                && bytes.first().is_some_and(|byte| inner(*byte))
                && bytes.last().is_some_and(|byte| inner(*byte))
                && bytes.iter().all(|byte| between(*byte))
        };
        if valid(namespace, MAX_LABEL, false) && valid(name, MAX_SUBDOMAIN, true) {
            return Ok(Self {
                namespace: namespace.to_owned(),
                name: name.to_owned(),
            });
        }
        Err(InvalidKey)
    }

    /// The Kubernetes namespace.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The pod's name.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl fmt::Display for PodKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// A pod that is to be captured.
#[derive(Debug)]
pub struct Target {
    /// The pod.
    pub pod: PodKey,
    /// Its uid.
    pub uid: String,
    /// Its service account, which gives it its identity.
    pub service_account: String,
    /// Its addresses, which are in the namespace.
    pub addresses: Vec<IpAddr>,
    /// Its network namespace, open: as long as this is held, no other has the same identity.
    pub netns: OwnedFd,
    /// Which namespace that is. An enroller that opens [`Self::path`] compares what it finds there with this.
    pub netns_id: NetnsId,
    /// A path of the namespace, on the host.
    pub path: PathBuf,
}

/// A pod that is captured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// The pod, by the names that it was enrolled under.
    pub pod: PodKey,
    /// The service account that it was enrolled under.
    pub service_account: String,
    /// Its network namespace.
    pub netns: NetnsId,
}

/// Why a pod is released.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Release {
    /// It runs on outside the mesh: capture is undone after its connections ended.
    Left,
    /// It has ended, or its sandbox has: it is let go at once, and capture is *not* undone. What may still run
    /// in its namespace is refused and never runs uncaptured.
    Ended,
}

/// What the enroller refuses, for whatever reason of its own.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct EnrollError(Box<dyn Error + Send + Sync>);

impl EnrollError {
    /// Keeps the reason.
    pub fn new(reason: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self(reason.into())
    }
}

/// Captures pods and lets go of them.
pub trait Enroller: Send + Sync + 'static {
    /// Captures a pod, and returns once capture stands. The same pod in the same namespace again is no error;
    /// a pod of the same name in another namespace is.
    fn enroll(&self, target: Target) -> impl Future<Output = Result<(), EnrollError>> + Send;

    /// Lets go of a pod; one that is not held is no error.
    fn release(
        &self,
        pod: &PodKey,
        why: Release,
    ) -> impl Future<Output = Result<(), EnrollError>> + Send;

    /// All pods that are captured, including those that an earlier agent left.
    fn enrolled(&self) -> Vec<Held>;
}

impl<E: Enroller> Enroller for Arc<E> {
    fn enroll(&self, target: Target) -> impl Future<Output = Result<(), EnrollError>> + Send {
        E::enroll(self, target)
    }

    fn release(
        &self,
        pod: &PodKey,
        why: Release,
    ) -> impl Future<Output = Result<(), EnrollError>> + Send {
        E::release(self, pod, why)
    }

    fn enrolled(&self) -> Vec<Held> {
        E::enrolled(self)
    }
}

/// Finds the network namespaces of pods. Its calls block.
pub trait Namespaces: Send + Sync + 'static {
    /// The namespace of the running pod with this uid, which has all of `addresses`.
    ///
    /// # Errors
    /// When there is none, or it is not certain.
    fn of_pod(&self, uid: &str, addresses: &[IpAddr]) -> Result<Found, DiscoveryError>;

    /// The namespace at `path`, which is not the node's own and has all of `addresses`.
    ///
    /// # Errors
    /// When it is not there, or another one.
    fn at(&self, path: &Path, uid: &str, addresses: &[IpAddr]) -> Result<Found, DiscoveryError>;

    /// Which namespace is at `path`.
    ///
    /// # Errors
    /// When there is none.
    fn identify(&self, path: &Path) -> io::Result<NetnsId>;
}

impl Namespaces for Discovery {
    fn of_pod(&self, uid: &str, addresses: &[IpAddr]) -> Result<Found, DiscoveryError> {
        self.find(uid, addresses)
    }

    fn at(&self, path: &Path, uid: &str, addresses: &[IpAddr]) -> Result<Found, DiscoveryError> {
        self.open(path, uid, addresses)
    }

    fn identify(&self, path: &Path) -> io::Result<NetnsId> {
        netns::open(path).and_then(NetnsId::of)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_kubernetes_takes_are_taken_and_no_others() {
        assert!(PodKey::new("shop", "web-0.a").is_ok());
        for (namespace, name) in [
            ("", "web"),
            ("shop", ""),
            ("sh.op", "web"),
            ("shop", "../web"),
            ("shop", "web?"),
            ("shop", "-web"),
            ("Shop", "web"),
        ] {
            assert!(PodKey::new(namespace, name).is_err(), "{namespace}/{name}");
        }
        assert!(PodKey::new(&"n".repeat(64), "web").is_err());
    }
}
