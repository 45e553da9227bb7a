//! The controller's judge of client certificates: optional, under the mesh's roots of the moment, of its trust domain.
//!
//! What a certificate is good for is not decided here: see [`undermesh_identity::Authenticator::certified`].
use std::{fmt, sync::Arc};

use rustls::{
    DigitallySignedStruct, DistinguishedName, Error, RootCertStore, SignatureScheme,
    client::danger::HandshakeSignatureValid,
    crypto::{verify_tls12_signature, verify_tls13_signature},
    server::danger::{ClientCertVerified, ClientCertVerifier},
};
use rustls_pki_types::{CertificateDer, UnixTime};
use undermesh_identity::{tls::provider, verify::ClientIdentityVerifier};

use crate::live::LiveAuthority;

/// Lets in callers without a certificate, and those whose certificate the CA in force has signed.
pub struct OptionalCallers {
    authority: Arc<LiveAuthority>,
}

impl OptionalCallers {
    /// Judges by the roots that `authority` has at the time of each handshake.
    pub fn new(authority: Arc<LiveAuthority>) -> Arc<Self> {
        Arc::new(Self { authority })
    }

    fn judge(&self) -> Result<ClientIdentityVerifier, Error> {
        let authority = self.authority.current();
        let mut roots = RootCertStore::empty();
        for root in authority.roots() {
            roots.add(root.clone())?;
        }
        let trust_domain = authority.trust_domain().clone();
        ClientIdentityVerifier::new(Arc::new(roots), Arc::clone(provider()), trust_domain)
            .map_err(|error| Error::General(error.to_string()))
    }
}

impl fmt::Debug for OptionalCallers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OptionalCallers").finish_non_exhaustive()
    }
}

impl ClientCertVerifier for OptionalCallers {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.judge()?
            .verify_client_cert(end_entity, intermediates, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &provider().signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &provider().signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use undermesh_identity::{Authority, SystemClock, certificate, testing::TestMesh};
    use undermesh_model::TrustDomain;

    use super::*;
    use crate::{
        fixtures::{live_authority, request},
        live::Lifetimes,
    };

    const MACHINE: &str = "ns/shop/sa/vm";

    fn accepted(callers: &OptionalCallers, leaf: &CertificateDer<'_>) -> bool {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let now = UnixTime::since_unix_epoch(since.unwrap_or(Duration::ZERO));
        callers.verify_client_cert(leaf, &[], now).is_ok()
    }

    #[test]
    fn a_certificate_is_optional_and_must_be_of_this_mesh() {
        let authority = live_authority(Lifetimes::default());
        let callers = OptionalCallers::new(Arc::clone(&authority));
        assert!(callers.offer_client_auth() && !callers.client_auth_mandatory());
        let own = authority.sign(request(MACHINE)).unwrap().leaf;
        assert!(accepted(&callers, &own));

        let identity = format!("spiffe://cluster.local/{MACHINE}");
        let strange = TestMesh::new("cluster.local").certificate(&identity);
        let strange = certificate::parse_pem(strange.chain_pem().as_bytes()).unwrap();
        assert!(!accepted(&callers, &strange[0]));

        // After a rotation without overlap, what the old root signed is worth nothing.
        let next = Authority::ephemeral(TrustDomain::cluster_local(), Arc::new(SystemClock));
        authority.replace(next.unwrap());
        assert!(!accepted(&callers, &own));
    }
}
