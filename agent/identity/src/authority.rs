//! The embedded CA: a root kept in a directory or an intermediate plugged in, and what it is willing to sign.
use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures::future::{BoxFuture, FutureExt};
use rcgen::{ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, PublicKeyData, SanType};
use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;
use undermesh_model::{Identity, TrustDomain};

use crate::{
    clock::Clock,
    csr::ProvenKey,
    issuer::{CertificateRequest, IssueError, IssuedCertificate, Issuer},
    key::{KeyError, WorkloadKey, uri_san},
    material::{self, BACKDATE, CaParts, Material, MaterialError},
    tls::{TlsError, WorkloadCertificate},
};

/// Longest lifetime that is granted, as in istiod.
pub const MAX_LIFETIME: Duration = Duration::from_secs(90 * 24 * 60 * 60);
/// Why the CA cannot start.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// The CA's files cannot be used.
    #[error(transparent)]
    Material(#[from] MaterialError),
    /// The CA certificate's time is over.
    #[error("the CA certificate in {} has expired at {at}; put a new one there", .place.display())]
    Expired {
        /// Where it is kept: a directory, or `Secret <namespace>/<name>`.
        place: PathBuf,
        /// When.
        at: OffsetDateTime,
    },
    /// What the CA signs would not be accepted under its own roots.
    #[error("certificates signed by the CA in {} would be refused: {error}; check that its certificate is a CA's and that cert-chain.pem leads to root-cert.pem", .place.display())]
    Unsound {
        /// Where it is kept: a directory, or `Secret <namespace>/<name>`.
        place: PathBuf,
        /// What a peer would say.
        error: Box<TlsError>,
    },
    /// The CA's certificate cannot be signed under.
    #[error("cannot sign under the certificate in {}: {error}", .place.display())]
    Issuer {
        /// Where it is kept: a directory, or `Secret <namespace>/<name>`.
        place: PathBuf,
        /// What the cryptographic library says.
        error: rcgen::Error,
    },
    /// No key could be made for the trial certificate.
    #[error(transparent)]
    Trial(#[from] KeyError),
    /// The trial certificate could not be signed.
    #[error("the CA cannot sign: {0}")]
    Sign(#[from] IssueError),
}

/// Why a certificate could not be signed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SignError {
    /// The CA's own time is over.
    #[error("the CA certificate has expired; put a new one where the CA is kept")]
    Expired,
    /// The cryptographic library failed.
    #[error("signing failed: {0}")]
    Library(#[from] rcgen::Error),
}

/// A CA for the workloads of one trust domain.
pub struct Authority {
    trust_domain: TrustDomain,
    clock: Arc<dyn Clock>,
    signer: rcgen::Issuer<'static, KeyPair>,
    intermediates: Vec<CertificateDer<'static>>,
    roots: Vec<CertificateDer<'static>>,
    not_after: SystemTime,
}

impl Authority {
    /// Opens the CA in `directory`: the intermediate there if it holds `ca-cert.pem` (the form of Istio's `cacerts`),
    /// else the root there, which is made if the directory is empty or missing.
    ///
    /// # Errors
    /// When a file is missing, unreadable, open to others, or does not fit the rest.
    pub fn open(
        directory: &Path,
        trust_domain: TrustDomain,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, AuthorityError> {
        let material = Material::open(directory, &trust_domain, clock.now())?;
        Self::from_material(material, directory, trust_domain, clock)
    }

    /// A CA that is kept elsewhere than in files, such as in a Secret.
    ///
    /// # Errors
    /// When a part cannot be read or does not fit the rest.
    pub fn from_parts(
        parts: &CaParts,
        trust_domain: TrustDomain,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, AuthorityError> {
        Self::from_material(Material::parse(parts)?, &parts.place, trust_domain, clock)
    }

    /// A CA whose root lives as long as it does.
    ///
    /// # Errors
    /// When the cryptographic library fails.
    #[cfg(any(test, feature = "testing"))]
    pub fn ephemeral(
        trust_domain: TrustDomain,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, AuthorityError> {
        let material = Material::ephemeral(&trust_domain, clock.now())?;
        Self::from_material(material, Path::new("memory"), trust_domain, clock)
    }

    fn from_material(
        material: Material,
        place: &Path,
        trust_domain: TrustDomain,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, AuthorityError> {
        let not_after = material.certificate.not_after();
        if clock.now() > not_after {
            return Err(AuthorityError::Expired {
                place: place.to_owned(),
                at: not_after.into(),
            });
        }
        let intermediates = material.intermediates();
        let authority = Self {
            signer: rcgen::Issuer::from_ca_cert_der(material.certificate.der(), material.key)
                .map_err(|error| AuthorityError::Issuer {
                    place: place.to_owned(),
                    error,
                })?,
            roots: material.roots,
            intermediates,
            trust_domain,
            not_after,
            clock,
        };
        authority.try_out(place)?;
        Ok(authority)
    }

    /// The roots under which this CA's certificates are valid.
    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.roots
    }

    /// The trust domain that it signs for.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The last moment at which it can sign.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// The time of day that it goes by.
    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.clock
    }

    /// Signs one request, now.
    ///
    /// Only the public key is taken from it, once its signature has proved that the sender holds the private key.
    ///
    /// # Errors
    /// When the request is for another trust domain or not properly signed, or the CA has expired.
    pub fn sign(&self, request: &CertificateRequest) -> Result<IssuedCertificate, IssueError> {
        let refused = |reason: String| IssueError::Refused {
            identity: request.identity.clone(),
            reason,
        };
        if request.identity.trust_domain != self.trust_domain {
            return Err(refused(format!(
                "this CA signs for the trust domain {} only",
                self.trust_domain
            )));
        }
        let key = ProvenKey::of(&request.csr).map_err(|error| refused(error.to_string()))?;
        let unavailable = |error: SignError| IssueError::Unavailable {
            identity: request.identity.clone(),
            reason: error.to_string(),
        };
        let names = vec![uri_san(&request.identity).map_err(|error| unavailable(error.into()))?];
        let leaf = self
            .certify(names, key.public_key(), request.lifetime)
            .map_err(unavailable)?;
        Ok(IssuedCertificate {
            leaf,
            key: None,
            intermediates: self.intermediates.clone(),
            roots: self.roots.clone(),
        })
    }

    /// A certificate for `key` that names `names`, for both ends of TLS.
    pub(crate) fn certify(
        &self,
        names: Vec<SanType>,
        key: &impl PublicKeyData,
        lifetime: Duration,
    ) -> Result<CertificateDer<'static>, SignError> {
        let now = self.clock.now();
        if now > self.not_after {
            return Err(SignError::Expired);
        }
        let not_after = now
            .checked_add(lifetime.min(MAX_LIFETIME))
            .unwrap_or(now)
            .min(self.not_after);
        let mut params = material::base_params(now, not_after)?;
        params.subject_alt_names = names;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        params.use_authority_key_identifier_extension = true;
        Ok(params.signed_by(key, &self.signer)?.into())
    }

    /// What peers need to get from a leaf to a root.
    pub(crate) fn intermediates(&self) -> &[CertificateDer<'static>] {
        &self.intermediates
    }

    /// Signs a certificate and judges it as a peer would, so that a wrong chain shows at the start, not at the first
    /// connection.
    fn try_out(&self, place: &Path) -> Result<(), AuthorityError> {
        let name: Arc<str> = Arc::from("ca-trial");
        let trust_domain = self.trust_domain.clone();
        let identity = Identity {
            trust_domain,
            namespace: Arc::clone(&name),
            service_account: name,
        };
        let key = WorkloadKey::generate(&identity)?;
        let csr = key.signing_request()?;
        let issued = self.sign(&CertificateRequest {
            identity: identity.clone(),
            csr,
            lifetime: BACKDATE,
        })?;
        WorkloadCertificate::new(identity, &key, issued, Arc::clone(&self.clock))
            .map(drop)
            .map_err(|error| AuthorityError::Unsound {
                place: place.to_owned(),
                error: Box::new(error),
            })
    }
}

/// Shows what the CA is for, never its key.
impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority")
            .field("trust_domain", &self.trust_domain)
            .field("not_after", &self.not_after)
            .finish_non_exhaustive()
    }
}

impl Issuer for Authority {
    fn issue(
        &self,
        request: CertificateRequest,
    ) -> BoxFuture<'_, Result<IssuedCertificate, IssueError>> {
        async move { self.sign(&request) }.boxed()
    }
}

#[cfg(test)]
mod tests;
