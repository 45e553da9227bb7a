//! The embedded CA: a root kept in a directory or an intermediate plugged in, and what it is willing to sign.
use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures::future::{BoxFuture, FutureExt};
use rcgen::{
    CertificateParams, CertificateSigningRequestParams, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer};
use time::OffsetDateTime;
use undermesh_model::{Identity, TrustDomain};

use crate::{
    clock::Clock,
    issuer::{CertificateRequest, IssueError, IssuedCertificate, Issuer},
    key::{KeyError, WorkloadKey, uri_san},
    material::{self, BACKDATE, Material, MaterialError},
    tls::{TlsError, WorkloadCertificate},
};

/// Longest lifetime that is granted, as in istiod.
pub const MAX_LIFETIME: Duration = Duration::from_secs(90 * 24 * 60 * 60);
/// Largest signing request that is read, in bytes of DER.
pub const MAX_REQUEST_BYTES: usize = 16 * 1024;

/// Why the CA cannot start.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// The CA's files cannot be used.
    #[error(transparent)]
    Material(#[from] MaterialError),
    /// The CA certificate's time is over.
    #[error("the CA certificate in {} has expired at {at}; put a new one there", .directory.display())]
    Expired {
        /// The CA's directory.
        directory: PathBuf,
        /// When.
        at: OffsetDateTime,
    },
    /// What the CA signs would not be accepted under its own roots.
    #[error("certificates signed by the CA in {} would be refused: {error}; check that its certificate is a CA's and that cert-chain.pem leads to root-cert.pem", .directory.display())]
    Unsound {
        /// The CA's directory.
        directory: PathBuf,
        /// What a peer would say.
        error: Box<TlsError>,
    },
    /// The CA's certificate cannot be signed under.
    #[error("cannot sign under the certificate in {}: {error}", .directory.display())]
    Issuer {
        /// The CA's directory.
        directory: PathBuf,
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
        directory: &Path,
        trust_domain: TrustDomain,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, AuthorityError> {
        let not_after = material.certificate.not_after();
        if clock.now() > not_after {
            return Err(AuthorityError::Expired {
                directory: directory.to_owned(),
                at: not_after.into(),
            });
        }
        let intermediates = material.intermediates();
        let authority = Self {
            signer: rcgen::Issuer::from_ca_cert_der(material.certificate.der(), material.key)
                .map_err(|error| AuthorityError::Issuer {
                    directory: directory.to_owned(),
                    error,
                })?,
            roots: material.roots,
            intermediates,
            trust_domain,
            not_after,
            clock,
        };
        authority.try_out(directory)?;
        Ok(authority)
    }

    /// The roots under which this CA's certificates are valid.
    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.roots
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
        let public_key = proven_key(&request.csr).map_err(refused)?;
        let params = self.leaf(&request.identity, request.lifetime)?;
        let signed = params
            .signed_by(&public_key, &self.signer)
            .map_err(|error| IssueError::Unavailable {
                identity: request.identity.clone(),
                reason: format!("signing failed: {error}"),
            })?;
        Ok(IssuedCertificate {
            leaf: signed.into(),
            intermediates: self.intermediates.clone(),
            roots: self.roots.clone(),
        })
    }

    fn leaf(
        &self,
        identity: &Identity,
        lifetime: Duration,
    ) -> Result<CertificateParams, IssueError> {
        let unavailable = |reason: String| IssueError::Unavailable {
            identity: identity.clone(),
            reason,
        };
        let now = self.clock.now();
        if now > self.not_after {
            return Err(unavailable(
                "the CA certificate has expired; put a new one into its directory".to_owned(),
            ));
        }
        let not_after = now
            .checked_add(lifetime.min(MAX_LIFETIME))
            .unwrap_or(now)
            .min(self.not_after);
        let mut params = material::base_params(now, not_after)
            .map_err(|error| unavailable(error.to_string()))?;
        params.subject_alt_names =
            vec![uri_san(identity).map_err(|error| unavailable(error.to_string()))?];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        params.use_authority_key_identifier_extension = true;
        Ok(params)
    }

    /// Signs a certificate and judges it as a peer would, so that a wrong chain shows at the start, not at the first
    /// connection.
    fn try_out(&self, directory: &Path) -> Result<(), AuthorityError> {
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
                directory: directory.to_owned(),
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

/// The public key of a request whose signature shows that the sender holds the private one (RFC 2986, section 3).
fn proven_key(csr: &CertificateSigningRequestDer<'_>) -> Result<rcgen::PublicKey, String> {
    if csr.len() > MAX_REQUEST_BYTES {
        return Err(format!(
            "it has {} bytes, more than the {MAX_REQUEST_BYTES} that are read",
            csr.len()
        ));
    }
    let parsed =
        CertificateSigningRequestParams::from_der(csr).map_err(|error| error.to_string())?;
    Ok(parsed.public_key)
}

#[cfg(test)]
mod tests;
