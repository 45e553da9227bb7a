//! The seam to whoever signs certificates: the embedded CA now, istiod or SPIRE behind the same trait.
use std::{fmt, sync::Arc, time::Duration};

use futures::future::BoxFuture;
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer};
use tokio::sync::watch;
use undermesh_model::Identity;

use crate::key::WorkloadKey;

/// What is asked of an issuer.
#[derive(Clone)]
pub struct CertificateRequest {
    /// Whom the certificate shall name.
    pub identity: Identity,
    /// A PKCS #10 request signed by the key that the certificate is for (RFC 2986).
    pub csr: CertificateSigningRequestDer<'static>,
    /// How long the certificate shall be valid from now; the issuer may shorten it.
    pub lifetime: Duration,
}

impl CertificateRequest {
    /// The request as PEM, the form that Istio's `CreateCertificate` takes.
    pub fn csr_pem(&self) -> String {
        pem::encode(&pem::Pem::new("CERTIFICATE REQUEST", self.csr.as_ref()))
    }
}

impl fmt::Debug for CertificateRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CertificateRequest")
            .field("identity", &self.identity)
            .field("lifetime", &self.lifetime)
            .finish_non_exhaustive()
    }
}

/// What an issuer returns.
#[derive(Clone)]
pub struct IssuedCertificate {
    /// The workload's own certificate.
    pub leaf: CertificateDer<'static>,
    /// The leaf's key, from issuers that make keys themselves, as SPIRE does; `None` when the leaf is for the key of
    /// the request.
    pub key: Option<Arc<WorkloadKey>>,
    /// The certificates between the leaf and the roots, the leaf's issuer first; roots are not among them.
    pub intermediates: Vec<CertificateDer<'static>>,
    /// The roots that peers are judged by; several during a root rotation.
    pub roots: Vec<CertificateDer<'static>>,
}

/// Shows the certificates, never the key.
impl fmt::Debug for IssuedCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IssuedCertificate")
            .field("leaf", &self.leaf)
            .field("intermediates", &self.intermediates)
            .field("roots", &self.roots)
            .finish_non_exhaustive()
    }
}

/// Why an issuer did not sign.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IssueError {
    /// The request itself is wrong; the same request will fail again.
    #[error("the issuer refused the request for {identity}: {reason}")]
    Refused {
        /// For whom the certificate was asked.
        identity: Identity,
        /// What is wrong with the request.
        reason: String,
    },
    /// The issuer cannot sign at present.
    #[error("the issuer cannot sign for {identity}: {reason}")]
    Unavailable {
        /// For whom the certificate was asked.
        identity: Identity,
        /// What the issuer lacks.
        reason: String,
    },
}

/// Signs certificates for workloads.
pub trait Issuer: Send + Sync {
    /// Signs one request.
    ///
    /// # Errors
    /// When the request is refused or the issuer cannot be reached; the caller tries again later.
    fn issue(
        &self,
        request: CertificateRequest,
    ) -> BoxFuture<'_, Result<IssuedCertificate, IssueError>>;

    /// Changes whenever certificates issued before should be asked for anew ahead of their time, because the roots
    /// that come with them are others now. `None` from an issuer that cannot tell.
    fn renewals(&self) -> Option<watch::Receiver<u64>> {
        None
    }
}
