//! The CA that signs at present: replaced as a whole when its Secret changes, shared by all who sign or publish.
use std::{fmt, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use futures::future::{BoxFuture, FutureExt};
use tokio::sync::watch;
use undermesh_identity::{
    Authority, CertificateRequest, IssueError, IssuedCertificate, Issuer, certificate,
};

/// The lifetime that is granted to those who ask for none, as in istiod.
pub const DEFAULT_LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);

/// How long certificates hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lifetimes {
    /// What is granted to those who ask for none.
    pub default: Duration,
    /// The most that is granted. A root rotation waits this long before each of its steps, so a long one makes
    /// rotations slow.
    pub max: Duration,
}

impl Default for Lifetimes {
    fn default() -> Self {
        Self {
            default: DEFAULT_LIFETIME,
            max: 2 * DEFAULT_LIFETIME,
        }
    }
}

/// The CA in force.
pub struct LiveAuthority {
    authority: ArcSwap<Authority>,
    lifetimes: Lifetimes,
    generation: watch::Sender<u64>,
}

impl LiveAuthority {
    /// Starts with `authority`.
    pub fn new(authority: Authority, lifetimes: Lifetimes) -> Arc<Self> {
        Arc::new(Self {
            authority: ArcSwap::from_pointee(authority),
            lifetimes,
            generation: watch::Sender::new(0),
        })
    }

    /// The CA in force now.
    pub fn current(&self) -> Arc<Authority> {
        self.authority.load_full()
    }

    /// Signs with `authority` from now on, and tells all who follow.
    pub fn replace(&self, authority: Authority) {
        self.authority.store(Arc::new(authority));
        self.generation.send_modify(|generation| *generation += 1);
    }

    /// Changes whenever the CA or its roots do.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.generation.subscribe()
    }

    /// All roots that peers are judged by, as one PEM text.
    pub fn roots_pem(&self) -> String {
        certificate::to_pem(self.current().roots())
    }

    /// How long certificates hold.
    pub fn lifetimes(&self) -> Lifetimes {
        self.lifetimes
    }

    /// Signs one request, for no longer than is granted. Costs the calling thread up to some milliseconds.
    ///
    /// # Errors
    /// When the request is refused or the CA has expired.
    pub fn sign(&self, request: CertificateRequest) -> Result<IssuedCertificate, IssueError> {
        let lifetime = request.lifetime.min(self.lifetimes.max);
        self.current().sign(&CertificateRequest {
            lifetime,
            ..request
        })
    }
}

/// Shows what the CA is for, never its key.
impl fmt::Debug for LiveAuthority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LiveAuthority")
            .field("authority", &self.current())
            .field("lifetimes", &self.lifetimes)
            .finish_non_exhaustive()
    }
}

impl Issuer for LiveAuthority {
    fn issue(
        &self,
        request: CertificateRequest,
    ) -> BoxFuture<'_, Result<IssuedCertificate, IssueError>> {
        std::future::ready(self.sign(request)).boxed()
    }

    fn renewals(&self) -> Option<watch::Receiver<u64>> {
        Some(self.subscribe())
    }
}
