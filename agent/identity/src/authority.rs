//! The embedded CA: a root kept in a directory or an intermediate plugged in, and what it is willing to sign.
use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures::future::{BoxFuture, FutureExt};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, PublicKeyData, SerialNumber,
};
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer};
use time::OffsetDateTime;
use undermesh_model::{Identity, TrustDomain};

use crate::{
    certificate::{self, Certificate, CertificateError},
    clock::Clock,
    issuer::{CertificateRequest, IssueError, IssuedCertificate, Issuer},
    key::{KeyError, WorkloadKey, uri_san},
    store::{self, Secrecy, StoreError},
    tls::{self, TlsError, WorkloadCertificate},
};

/// Longest lifetime that is granted, as in istiod.
pub const MAX_LIFETIME: Duration = Duration::from_secs(90 * 24 * 60 * 60);
/// Lifetime of a root that is made here.
pub const ROOT_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);
/// How far certificates are dated back, for peers whose clocks lag.
pub const BACKDATE: Duration = Duration::from_secs(60);
/// Largest signing request that is read, in bytes of DER.
pub const MAX_REQUEST_BYTES: usize = 16 * 1024;

/// File names of a root that is made here.
const ROOT_KEY: &str = "root-key.pem";
const ROOT_CERTIFICATE: &str = "root-cert.pem";
/// File names of an intermediate in the form of Istio's `cacerts` secret; its root is `root-cert.pem` too.
const CA_KEY: &str = "ca-key.pem";
const CA_CERTIFICATE: &str = "ca-cert.pem";
const CHAIN: &str = "cert-chain.pem";

/// Why the CA cannot start.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// A file cannot be used.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A file that belongs to the others is missing.
    #[error("{} is missing beside {beside}; restore it, or move the directory away to start with a new root", .path.display())]
    Missing {
        /// The file.
        path: PathBuf,
        /// The file that makes it necessary.
        beside: &'static str,
    },
    /// A certificate file cannot be read.
    #[error("{}: {error}; it must hold certificates as PEM", .path.display())]
    Certificate {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        error: CertificateError,
    },
    /// A key file cannot be read.
    #[error("{} holds no usable private key ({error}); it must hold one unencrypted ECDSA, Ed25519 or RSA key as PEM", .path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// What the cryptographic library says.
        error: rcgen::Error,
    },
    /// The key is not the certificate's.
    #[error("the key in {} is not the key of {certificate}; put the matching pair there", .path.display())]
    Mismatch {
        /// The key file.
        path: PathBuf,
        /// The certificate file beside it.
        certificate: &'static str,
    },
    /// The CA certificate's time is over.
    #[error("the CA certificate in {} has expired at {at}; put a new one there", .directory.display())]
    Expired {
        /// The CA's directory.
        directory: PathBuf,
        /// When.
        at: OffsetDateTime,
    },
    /// What the CA signs would not be accepted under its own roots.
    #[error("certificates signed by the CA in {} would be refused: {error}; check that its certificate is a CA's and that {CHAIN} leads to {ROOT_CERTIFICATE}", .directory.display())]
    Unsound {
        /// The CA's directory.
        directory: PathBuf,
        /// What a peer would say.
        error: TlsError,
    },
    /// The cryptographic library failed.
    #[error("cannot make a root: {0}")]
    Root(#[from] rcgen::Error),
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
        let material = if store::read_certificates(&directory.join(CA_CERTIFICATE))?.is_some() {
            Material::read_intermediate(directory)?
        } else {
            Material::read_or_make_root(directory, &trust_domain, clock.now())?
        };
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
        let material = Material::make_root(&trust_domain, clock.now())?;
        Self::from_material(material, Path::new("memory"), trust_domain, clock)
    }

    fn from_material(
        material: Material,
        directory: &Path,
        trust_domain: TrustDomain,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, AuthorityError> {
        let not_after = material.not_after(directory)?;
        if clock.now() > not_after {
            return Err(AuthorityError::Expired {
                directory: directory.to_owned(),
                at: not_after.into(),
            });
        }
        let intermediates = material.intermediates();
        let authority = Self {
            signer: rcgen::Issuer::from_ca_cert_der(&material.certificate, material.key)?,
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
        let mut params =
            base_params(now, not_after).map_err(|error| unavailable(error.to_string()))?;
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
        let trial = "ca-trial";
        let Ok(identity) = Identity::new(self.trust_domain.clone(), trial, trial) else {
            return Ok(());
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
                error,
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

/// What all certificates made here share: empty subject, random serial, dated back.
fn base_params(now: SystemTime, not_after: SystemTime) -> Result<CertificateParams, rcgen::Error> {
    let mut serial = [0u8; 16];
    tls::provider()
        .secure_random
        .fill(&mut serial)
        .map_err(|_| rcgen::Error::RingUnspecified)?;
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.not_before = now.checked_sub(BACKDATE).unwrap_or(now).into();
    params.not_after = not_after.into();
    Ok(params)
}

/// The files of a CA, read and checked one by one.
struct Material {
    key: KeyPair,
    certificate: CertificateDer<'static>,
    chain: Vec<CertificateDer<'static>>,
    roots: Vec<CertificateDer<'static>>,
}

impl Material {
    fn read_intermediate(directory: &Path) -> Result<Self, AuthorityError> {
        let key = read_key(directory, CA_KEY, CA_CERTIFICATE)?;
        let certificate = read_certificate(directory, CA_CERTIFICATE, CA_KEY)?;
        let roots = read_certificates(directory, ROOT_CERTIFICATE)?.ok_or_else(|| {
            AuthorityError::Missing {
                path: directory.join(ROOT_CERTIFICATE),
                beside: CA_CERTIFICATE,
            }
        })?;
        let chain = read_certificates(directory, CHAIN)?.unwrap_or_default();
        check_pair(directory, &key, CA_KEY, &certificate, CA_CERTIFICATE)?;
        Ok(Self {
            key,
            certificate,
            chain,
            roots,
        })
    }

    /// The key decides who made the root: it is published first, and everybody who finds it without a certificate
    /// makes one for it. A start that was cut short between the two is so completed by the next.
    fn read_or_make_root(
        directory: &Path,
        trust_domain: &TrustDomain,
        now: SystemTime,
    ) -> Result<Self, AuthorityError> {
        store::prepare_directory(directory)?;
        let (key_path, certificate_path) =
            (directory.join(ROOT_KEY), directory.join(ROOT_CERTIFICATE));
        // Looked at before the key, which is always published first: so another node's start cannot look like a loss.
        let has_certificate = store::read_certificates(&certificate_path)?.is_some();
        if store::read_key(&key_path)?.is_none() {
            if has_certificate {
                return Err(AuthorityError::Missing {
                    path: key_path,
                    beside: ROOT_CERTIFICATE,
                });
            }
            let pem = zeroize::Zeroizing::new(KeyPair::generate()?.serialize_pem());
            store::publish(&key_path, pem.as_bytes(), Secrecy::Key)?;
        }
        let key = read_key(directory, ROOT_KEY, ROOT_CERTIFICATE)?;
        if store::read_certificates(&certificate_path)?.is_none() {
            let pem = self_signed(&key, trust_domain, now)?.pem();
            store::publish(&certificate_path, pem.as_bytes(), Secrecy::Certificate)?;
        }
        let roots = read_certificates(directory, ROOT_CERTIFICATE)?.unwrap_or_default();
        let certificate = read_certificate(directory, ROOT_CERTIFICATE, ROOT_KEY)?;
        check_pair(directory, &key, ROOT_KEY, &certificate, ROOT_CERTIFICATE)?;
        Ok(Self {
            key,
            certificate,
            chain: Vec::new(),
            roots,
        })
    }

    #[cfg(any(test, feature = "testing"))]
    fn make_root(trust_domain: &TrustDomain, now: SystemTime) -> Result<Self, AuthorityError> {
        let key = KeyPair::generate()?;
        let certificate = CertificateDer::from(self_signed(&key, trust_domain, now)?);
        Ok(Self {
            key,
            roots: vec![certificate.clone()],
            certificate,
            chain: Vec::new(),
        })
    }

    /// What peers need to get from a leaf to a root. Istio's chain files hold the CA's own certificate and often the
    /// root as well.
    fn intermediates(&self) -> Vec<CertificateDer<'static>> {
        let mut intermediates = Vec::new();
        for certificate in std::iter::once(&self.certificate).chain(&self.chain) {
            if !self.roots.contains(certificate) && !intermediates.contains(certificate) {
                intermediates.push(certificate.clone());
            }
        }
        intermediates
    }

    fn not_after(&self, directory: &Path) -> Result<SystemTime, AuthorityError> {
        Certificate::parse(self.certificate.clone())
            .map(|certificate| certificate.not_after())
            .map_err(|error| AuthorityError::Certificate {
                path: directory.to_owned(),
                error,
            })
    }
}

fn read_key(directory: &Path, name: &str, beside: &'static str) -> Result<KeyPair, AuthorityError> {
    let path = directory.join(name);
    let Some(content) = store::read_key(&path)? else {
        return Err(AuthorityError::Missing { path, beside });
    };
    let parsed = std::str::from_utf8(&content)
        .map_err(|_| rcgen::Error::CouldNotParseKeyPair)
        .and_then(KeyPair::from_pem);
    parsed.map_err(|error| AuthorityError::Key { path, error })
}

fn read_certificate(
    directory: &Path,
    name: &str,
    beside: &'static str,
) -> Result<CertificateDer<'static>, AuthorityError> {
    read_certificates(directory, name)?
        .and_then(|certificates| certificates.into_iter().next())
        .ok_or_else(|| AuthorityError::Missing {
            path: directory.join(name),
            beside,
        })
}

fn read_certificates(
    directory: &Path,
    name: &str,
) -> Result<Option<Vec<CertificateDer<'static>>>, AuthorityError> {
    let path = directory.join(name);
    let Some(content) = store::read_certificates(&path)? else {
        return Ok(None);
    };
    let certificates = certificate::parse_pem(&content)
        .map_err(|error| AuthorityError::Certificate { path, error })?;
    Ok(Some(certificates))
}

fn check_pair(
    directory: &Path,
    key: &KeyPair,
    key_name: &str,
    certificate: &CertificateDer<'static>,
    certificate_name: &'static str,
) -> Result<(), AuthorityError> {
    let path = directory.join(key_name);
    let public =
        certificate::public_key_of(certificate).map_err(|error| AuthorityError::Certificate {
            path: directory.join(certificate_name),
            error,
        })?;
    if public == key.subject_public_key_info() {
        return Ok(());
    }
    Err(AuthorityError::Mismatch {
        path,
        certificate: certificate_name,
    })
}

fn self_signed(
    key: &KeyPair,
    trust_domain: &TrustDomain,
    now: SystemTime,
) -> Result<rcgen::Certificate, rcgen::Error> {
    let mut params = base_params(now, now.checked_add(ROOT_LIFETIME).unwrap_or(now))?;
    params
        .distinguished_name
        .push(DnType::OrganizationName, trust_domain.as_str());
    params
        .distinguished_name
        .push(DnType::CommonName, "undermesh root CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![
        KeyUsagePurpose::DigitalSignature,
        KeyUsagePurpose::KeyCertSign,
        KeyUsagePurpose::CrlSign,
    ];
    params.self_signed(key)
}

#[cfg(test)]
mod tests;
