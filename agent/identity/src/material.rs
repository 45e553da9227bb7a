//! The key and the certificates of a CA: a root made here, or an intermediate plugged in, read and checked.
use std::{
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, KeyPair, KeyUsagePurpose,
    PublicKeyData, SerialNumber,
};
use rustls_pki_types::CertificateDer;
use undermesh_model::TrustDomain;
use zeroize::Zeroizing;

use crate::{
    certificate::{self, Certificate, CertificateError},
    store::{self, Secrecy, StoreError},
    tls,
};

/// Lifetime of a root that is made here.
pub const ROOT_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);
/// How far certificates are dated back, for peers whose clocks lag.
pub const BACKDATE: Duration = Duration::from_secs(60);

/// The key of a root that is made here.
pub(crate) const ROOT_KEY: &str = "root-key.pem";
/// The roots: of a root that is made here, and of a plugged-in intermediate.
pub const ROOT_CERTIFICATE: &str = "root-cert.pem";
/// The key of an intermediate in the form of Istio's `cacerts` secret.
pub const CA_KEY: &str = "ca-key.pem";
/// Its certificate.
pub const CA_CERTIFICATE: &str = "ca-cert.pem";
/// What leads from it to the roots, if more than itself.
pub const CHAIN: &str = "cert-chain.pem";

/// Why a CA's files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum MaterialError {
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
    /// The cryptographic library failed.
    #[error("cannot make a root: {0}")]
    Root(#[from] rcgen::Error),
}

/// A CA as PEM, wherever it is kept, under the names that Istio's `cacerts` secret gives the parts.
pub struct CaParts {
    /// Where it is kept, as messages name it: a directory, or `Secret <namespace>/<name>`.
    pub place: PathBuf,
    /// `ca-key.pem`: the key that signs.
    pub key: Zeroizing<Vec<u8>>,
    /// `ca-cert.pem`: its certificate.
    pub certificate: Vec<u8>,
    /// `cert-chain.pem`: what leads from it to a root, if more than itself.
    pub chain: Option<Vec<u8>>,
    /// `root-cert.pem`: all roots that peers are judged by.
    pub roots: Vec<u8>,
}

/// A root that was just made, as PEM.
pub struct NewRoot {
    /// Its key.
    pub key: Zeroizing<String>,
    /// Its certificate.
    pub certificate: String,
}

impl NewRoot {
    /// Makes a root for `trust_domain` that holds for [`ROOT_LIFETIME`].
    ///
    /// # Errors
    /// When the cryptographic library fails.
    pub fn make(trust_domain: &TrustDomain, now: SystemTime) -> Result<Self, MaterialError> {
        let key = KeyPair::generate()?;
        let certificate = self_signed(&key, trust_domain, now)?.pem();
        Ok(Self {
            key: Zeroizing::new(key.serialize_pem()),
            certificate,
        })
    }
}

/// The files of a CA, read and checked one by one.
pub(crate) struct Material {
    pub(crate) key: KeyPair,
    pub(crate) certificate: Certificate,
    chain: Vec<CertificateDer<'static>>,
    pub(crate) roots: Vec<CertificateDer<'static>>,
}

impl Material {
    /// The intermediate in `directory` if it holds `ca-cert.pem`, else the root there, made if it is missing.
    pub(crate) fn open(
        directory: &Path,
        trust_domain: &TrustDomain,
        now: SystemTime,
    ) -> Result<Self, MaterialError> {
        if store::read_certificates(&directory.join(CA_CERTIFICATE))?.is_some() {
            Self::read_intermediate(directory)
        } else {
            Self::read_or_make_root(directory, trust_domain, now)
        }
    }

    fn read_intermediate(directory: &Path) -> Result<Self, MaterialError> {
        let missing = |name: &str, beside| MaterialError::Missing {
            path: directory.join(name),
            beside,
        };
        let read = |name| store::read_certificates(&directory.join(name));
        Self::parse(&CaParts {
            place: directory.to_owned(),
            key: store::read_key(&directory.join(CA_KEY))?
                .ok_or_else(|| missing(CA_KEY, CA_CERTIFICATE))?,
            certificate: read(CA_CERTIFICATE)?.ok_or_else(|| missing(CA_CERTIFICATE, CA_KEY))?,
            chain: read(CHAIN)?,
            roots: read(ROOT_CERTIFICATE)?
                .ok_or_else(|| missing(ROOT_CERTIFICATE, CA_CERTIFICATE))?,
        })
    }

    /// Reads a CA that somebody keeps as PEM.
    pub(crate) fn parse(parts: &CaParts) -> Result<Self, MaterialError> {
        let pair = Pair {
            place: &parts.place,
            key: CA_KEY,
            certificate: CA_CERTIFICATE,
        };
        let at = |name: &str| parts.place.join(name);
        let key = pair.parse_key(&parts.key)?;
        let candidates = parse_certificates(at(CA_CERTIFICATE), &parts.certificate)?;
        let chain = match &parts.chain {
            Some(chain) if !chain.trim_ascii().is_empty() => parse_certificates(at(CHAIN), chain)?,
            _ => Vec::new(),
        };
        Ok(Self {
            certificate: pair.certificate_of(&key, &candidates)?,
            roots: parse_certificates(at(ROOT_CERTIFICATE), &parts.roots)?,
            key,
            chain,
        })
    }

    /// The key decides who made the root: it is published first, and everybody who finds it without a certificate
    /// makes one for it. A start that was cut short between the two is so completed by the next.
    fn read_or_make_root(
        directory: &Path,
        trust_domain: &TrustDomain,
        now: SystemTime,
    ) -> Result<Self, MaterialError> {
        store::prepare_directory(directory)?;
        let (key_path, certificate_path) =
            (directory.join(ROOT_KEY), directory.join(ROOT_CERTIFICATE));
        // Looked at before the key, which is always published first: so another node's start cannot look like a loss.
        let has_certificate = store::read_certificates(&certificate_path)?.is_some();
        if store::read_key(&key_path)?.is_none() {
            if has_certificate {
                return Err(MaterialError::Missing {
                    path: key_path,
                    beside: ROOT_CERTIFICATE,
                });
            }
            let pem = Zeroizing::new(KeyPair::generate()?.serialize_pem());
            store::publish(&key_path, pem.as_bytes(), Secrecy::Key)?;
        }
        let missing = |path: &Path, beside| MaterialError::Missing {
            path: path.to_owned(),
            beside,
        };
        let pair = Pair {
            place: directory,
            key: ROOT_KEY,
            certificate: ROOT_CERTIFICATE,
        };
        let content =
            store::read_key(&key_path)?.ok_or_else(|| missing(&key_path, ROOT_CERTIFICATE))?;
        let key = pair.parse_key(&content)?;
        if store::read_certificates(&certificate_path)?.is_none() {
            let pem = self_signed(&key, trust_domain, now)?.pem();
            store::publish(&certificate_path, pem.as_bytes(), Secrecy::Certificate)?;
        }
        let content = store::read_certificates(&certificate_path)?
            .ok_or_else(|| missing(&certificate_path, ROOT_KEY))?;
        let roots = parse_certificates(certificate_path, &content)?;
        let certificate = pair.certificate_of(&key, &roots)?;
        Ok(Self {
            key,
            certificate,
            chain: Vec::new(),
            roots,
        })
    }

    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn ephemeral(
        trust_domain: &TrustDomain,
        now: SystemTime,
    ) -> Result<Self, MaterialError> {
        let key = KeyPair::generate()?;
        let root = CertificateDer::from(self_signed(&key, trust_domain, now)?);
        let certificate =
            Certificate::parse(root.clone()).map_err(|error| MaterialError::Certificate {
                path: PathBuf::from("memory"),
                error,
            })?;
        Ok(Self {
            key,
            certificate,
            chain: Vec::new(),
            roots: vec![root],
        })
    }

    /// What peers need to get from a leaf to a root. Istio's chain files hold the CA's own certificate and often the
    /// root as well.
    pub(crate) fn intermediates(&self) -> Vec<CertificateDer<'static>> {
        let mut intermediates = Vec::new();
        for certificate in std::iter::once(self.certificate.der()).chain(&self.chain) {
            if !self.roots.contains(certificate) && !intermediates.contains(certificate) {
                intermediates.push(certificate.clone());
            }
        }
        intermediates
    }
}

/// A key and its certificate in one place, under whatever names.
struct Pair<'a> {
    place: &'a Path,
    key: &'static str,
    certificate: &'static str,
}

impl Pair<'_> {
    fn parse_key(&self, content: &[u8]) -> Result<KeyPair, MaterialError> {
        let parsed = std::str::from_utf8(content)
            .map_err(|_| rcgen::Error::CouldNotParseKeyPair)
            .and_then(KeyPair::from_pem);
        parsed.map_err(|error| MaterialError::Key {
            path: self.place.join(self.key),
            error,
        })
    }

    /// The certificate of `key`; during a root rotation others stand beside it in the file.
    fn certificate_of(
        &self,
        key: &KeyPair,
        candidates: &[CertificateDer<'static>],
    ) -> Result<Certificate, MaterialError> {
        let unreadable = |error| MaterialError::Certificate {
            path: self.place.join(self.certificate),
            error,
        };
        for candidate in candidates {
            if certificate::public_key_of(candidate).map_err(unreadable)?
                == key.subject_public_key_info()
            {
                return Certificate::parse(candidate.clone()).map_err(unreadable);
            }
        }
        Err(MaterialError::Mismatch {
            path: self.place.join(self.key),
            certificate: self.certificate,
        })
    }
}

fn parse_certificates(
    path: PathBuf,
    content: &[u8],
) -> Result<Vec<CertificateDer<'static>>, MaterialError> {
    certificate::parse_pem(content).map_err(|error| MaterialError::Certificate { path, error })
}

pub(crate) fn self_signed(
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

/// What all certificates made here share: empty subject, random serial, dated back.
pub(crate) fn base_params(
    now: SystemTime,
    not_after: SystemTime,
) -> Result<CertificateParams, rcgen::Error> {
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
