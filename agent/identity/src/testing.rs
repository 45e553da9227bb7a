//! Fixtures for tests here and in other crates: a throw-away mesh, and clocks that tests move.
#![allow(
    clippy::expect_used,
    reason = "a fixture that cannot be made fails the test at once"
)]
use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use rustls_pki_types::CertificateDer;
use tokio::{runtime::Handle, time::Instant};
use undermesh_model::Identity;

use crate::{
    Authority, CacheOptions, CertificateCache, CertificateRequest, Clock, IssuedCertificate,
    SystemClock, WorkloadCertificate, key::WorkloadKey,
};

/// A clock that stands still until it is moved.
#[derive(Debug)]
pub struct ManualClock(Mutex<SystemTime>);

impl ManualClock {
    /// A clock that shows `now`.
    pub fn new(now: SystemTime) -> Arc<Self> {
        Arc::new(Self(Mutex::new(now)))
    }

    /// Moves it on.
    pub fn advance(&self, by: Duration) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) += by;
    }
}

impl Clock for ManualClock {
    fn now(&self) -> SystemTime {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A time of day that runs with tokio's clock, so that pausing and advancing that one moves both.
#[derive(Debug)]
pub struct TokioClock {
    base: SystemTime,
    start: Instant,
}

impl TokioClock {
    /// A clock that shows `base` now.
    pub fn new(base: SystemTime) -> Arc<Self> {
        Arc::new(Self {
            base,
            start: Instant::now(),
        })
    }
}

impl Clock for TokioClock {
    fn now(&self) -> SystemTime {
        self.base + self.start.elapsed()
    }
}

/// A mesh of its own root.
pub struct TestMesh {
    authority: Arc<Authority>,
    clock: Arc<dyn Clock>,
}

impl TestMesh {
    /// A mesh of this trust domain with a new root, in the present.
    pub fn new(trust_domain: &str) -> Self {
        Self::at(trust_domain, Arc::new(SystemClock))
    }

    /// A mesh whose CA and workloads live by `clock`.
    pub fn at(trust_domain: &str, clock: Arc<dyn Clock>) -> Self {
        let trust_domain = trust_domain.parse().expect("a trust domain");
        let authority =
            Authority::ephemeral(trust_domain, Arc::clone(&clock)).expect("an authority");
        Self {
            authority: Arc::new(authority),
            clock,
        }
    }

    /// Its CA.
    pub fn authority(&self) -> Arc<Authority> {
        Arc::clone(&self.authority)
    }

    /// The time there.
    pub fn clock(&self) -> &dyn Clock {
        &*self.clock
    }

    /// Its roots.
    pub fn roots(&self) -> &[CertificateDer<'static>] {
        self.authority.roots()
    }

    /// A certificate valid for an hour.
    pub fn certificate(&self, identity: &str) -> Arc<WorkloadCertificate> {
        self.certificate_with(identity, |_| {})
    }

    /// A certificate whose owner trusts the roots of `other` as well.
    pub fn certificate_trusting(&self, identity: &str, other: &Self) -> Arc<WorkloadCertificate> {
        self.certificate_with(identity, |issued| {
            issued.roots.extend_from_slice(other.roots())
        })
    }

    /// A cache of certificates of this mesh.
    pub fn cache(&self, runtime: Handle) -> CertificateCache {
        let options = CacheOptions {
            clock: Arc::clone(&self.clock),
            ..CacheOptions::default()
        };
        CertificateCache::new(self.authority(), options, runtime)
    }

    fn certificate_with(
        &self,
        identity: &str,
        change: impl FnOnce(&mut IssuedCertificate),
    ) -> Arc<WorkloadCertificate> {
        let identity: Identity = identity.parse().expect("an identity");
        let key = WorkloadKey::generate(&identity).expect("a key");
        let csr = key.signing_request().expect("a request");
        let lifetime = Duration::from_secs(3600);
        let request = CertificateRequest {
            identity: identity.clone(),
            csr,
            lifetime,
        };
        let mut issued = self.authority.sign(&request).expect("a certificate");
        change(&mut issued);
        let clock = Arc::clone(&self.clock);
        Arc::new(
            WorkloadCertificate::new(identity, &key, issued, clock).expect("a usable certificate"),
        )
    }
}
