//! Judges the peer of a TLS handshake: its chain, its purpose, its validity, and whom it names.
//!
//! A certificate that lists extended key usages must list the right one; one that lists none may serve any use
//! (RFC 5280, section 4.2.1.12). A refused chain is told in rustls's own errors, so that the peer gets the exact alert.
//! Host names and SNI play no part: a workload is who its SPIFFE URI says (SPIFFE X.509-SVID, section 5).
use std::{fmt, sync::Arc};

use rustls::{
    CertificateError as TlsCertificateError, DigitallySignedStruct, DistinguishedName, OtherError,
    RootCertStore, SignatureScheme,
    client::{
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor,
    },
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::{
        ParsedCertificate, VerifierBuilderError, WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};
use undermesh_model::{Identity, TrustDomain};

use crate::certificate::{self, CertificateError};

/// Why a peer whose chain is sound is still refused.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    /// The server is somebody else.
    #[error("expected {}, but the peer is {}; check that the address still belongs to that workload", list(.expected, "nobody"), list(.found, "nameless"))]
    WrongIdentity {
        /// Who may answer.
        expected: Vec<Identity>,
        /// Who answered.
        found: Vec<Identity>,
    },
    /// The client belongs to another mesh.
    #[error("expected a peer of trust domain {expected}, but the peer is {}; only peers of the same trust domain are served", list(.found, "nameless"))]
    WrongTrustDomain {
        /// The trust domain served.
        expected: TrustDomain,
        /// Who came.
        found: Vec<Identity>,
    },
    /// The certificate cannot be read.
    #[error("the peer's certificate cannot be read: {0}")]
    Unreadable(#[from] CertificateError),
    /// The peer sent no certificate.
    #[error("the peer sent no certificate")]
    Missing,
    /// The certificate names no identity.
    #[error(
        "the peer's certificate names no identity of the form spiffe://<trust domain>/ns/<namespace>/sa/<service account>"
    )]
    Nameless,
}

/// The same text as `Display`: rustls prints foreign errors by `Debug` in its own.
impl fmt::Debug for PeerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl From<PeerError> for rustls::Error {
    fn from(error: PeerError) -> Self {
        Self::InvalidCertificate(TlsCertificateError::Other(OtherError(Arc::new(error))))
    }
}

fn list(identities: &[Identity], none: &str) -> String {
    if identities.is_empty() {
        return none.to_owned();
    }
    identities
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(" or ")
}

/// The client's judge of a server: a sound chain for server use, and a leaf that names one of the expected.
#[derive(Debug)]
pub struct ServerIdentityVerifier {
    roots: Arc<RootCertStore>,
    provider: Arc<CryptoProvider>,
    expected: Box<[Identity]>,
}

impl ServerIdentityVerifier {
    /// Accepts servers under `roots` that are one of `expected`; none if that is empty.
    pub fn new(
        roots: Arc<RootCertStore>,
        provider: Arc<CryptoProvider>,
        expected: &[Identity],
    ) -> Self {
        Self {
            roots,
            provider,
            expected: expected.into(),
        }
    }

    fn check_identity(&self, leaf: &CertificateDer<'_>) -> Result<(), PeerError> {
        let found = certificate::identities_of(leaf)?;
        if found
            .iter()
            .any(|identity| self.expected.contains(identity))
        {
            return Ok(());
        }
        Err(PeerError::WrongIdentity {
            expected: self.expected.to_vec(),
            found,
        })
    }
}

impl ServerCertVerifier for ServerIdentityVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        verify_server_cert_signed_by_trust_anchor(
            &ParsedCertificate::try_from(end_entity)?,
            &self.roots,
            intermediates,
            now,
            self.provider.signature_verification_algorithms.all,
        )?;
        self.check_identity(end_entity)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(
            message,
            cert,
            dss,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(
            message,
            cert,
            dss,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// The server's judge of a client: a certificate is mandatory, its chain sound for client use, and the identity
/// that it names, which is the one that policy will see, of the server's own trust domain.
#[derive(Debug)]
pub struct ClientIdentityVerifier {
    chain: Arc<dyn ClientCertVerifier>,
    trust_domain: TrustDomain,
}

impl ClientIdentityVerifier {
    /// Accepts clients under `roots` whose identity is of `trust_domain`.
    ///
    /// # Errors
    /// When there are no roots.
    pub fn new(
        roots: Arc<RootCertStore>,
        provider: Arc<CryptoProvider>,
        trust_domain: TrustDomain,
    ) -> Result<Self, VerifierBuilderError> {
        // No root names in the CertificateRequest: a workload has one certificate to choose from.
        let chain = WebPkiClientVerifier::builder_with_provider(roots, provider)
            .clear_root_hint_subjects()
            .build()?;
        Ok(Self {
            chain,
            trust_domain,
        })
    }

    fn check_trust_domain(&self, leaf: &CertificateDer<'_>) -> Result<(), PeerError> {
        let found = certificate::identities_of(leaf)?;
        match found.first() {
            Some(identity) if identity.trust_domain == self.trust_domain => Ok(()),
            _ => Err(PeerError::WrongTrustDomain {
                expected: self.trust_domain.clone(),
                found,
            }),
        }
    }
}

impl ClientCertVerifier for ClientIdentityVerifier {
    fn client_auth_mandatory(&self) -> bool {
        true
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self
            .chain
            .verify_client_cert(end_entity, intermediates, now)?;
        self.check_trust_domain(end_entity)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}
