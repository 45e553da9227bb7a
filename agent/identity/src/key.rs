//! A workload's private key: made here or by the issuer, never written, wiped when dropped.
use rcgen::{CertificateParams, DistinguishedName, KeyPair, SanType};
use rustls::{
    crypto::aws_lc_rs::sign::any_supported_type,
    pki_types::{CertificateSigningRequestDer, PrivateKeyDer, PrivatePkcs8KeyDer},
    sign::SigningKey,
};
use std::sync::Arc;
use undermesh_model::Identity;
use zeroize::Zeroize;

use crate::credentials::Secret;

/// Why a key or its request could not be made.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The cryptographic library failed.
    #[error("cannot make a key pair for {0}: {1}; check that the system's random source works")]
    Generate(Identity, rcgen::Error),
    /// The request could not be encoded.
    #[error("cannot make a signing request for {0}: {1}")]
    Request(Identity, rcgen::Error),
    /// The issuer's key cannot be read.
    #[error(
        "the issuer sent no usable key for {0}: {1}; it must be ECDSA, Ed25519 or RSA as PKCS #8"
    )]
    Import(Identity, rcgen::Error),
    /// rustls does not take the key.
    #[error("cannot use the key pair of {0} for TLS: {1}")]
    Load(Identity, rustls::Error),
}

/// A key pair of one workload identity: ECDSA P-256, or whatever an issuer that makes keys has chosen.
///
/// It has no `Debug`, so that it cannot reach a log.
pub struct WorkloadKey {
    identity: Identity,
    pair: KeyPair,
}

impl WorkloadKey {
    /// Makes a new key pair for `identity`.
    ///
    /// # Errors
    /// When the cryptographic library fails.
    pub fn generate(identity: &Identity) -> Result<Self, KeyError> {
        let pair =
            KeyPair::generate().map_err(|error| KeyError::Generate(identity.clone(), error))?;
        Ok(Self {
            identity: identity.clone(),
            pair,
        })
    }

    /// Takes a key pair that the issuer made for `identity`, as PKCS #8.
    ///
    /// # Errors
    /// When it is not a key of a kind that TLS uses.
    pub fn from_pkcs8(identity: &Identity, der: PrivatePkcs8KeyDer<'_>) -> Result<Self, KeyError> {
        let pair = KeyPair::try_from(&PrivateKeyDer::Pkcs8(der))
            .map_err(|error| KeyError::Import(identity.clone(), error))?;
        Ok(Self {
            identity: identity.clone(),
            pair,
        })
    }

    /// A signing request with an empty subject and the identity as the only URI SAN, as Istio's agents send it.
    ///
    /// # Errors
    /// When the request cannot be encoded or signed.
    pub fn signing_request(&self) -> Result<CertificateSigningRequestDer<'static>, KeyError> {
        let failed = |error| KeyError::Request(self.identity.clone(), error);
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![uri_san(&self.identity).map_err(failed)?];
        let request = params.serialize_request(&self.pair).map_err(failed)?;
        Ok(request.into())
    }

    /// The key as rustls signs with it.
    ///
    /// # Errors
    /// When rustls does not take the key.
    pub fn signing_key(&self) -> Result<Arc<dyn SigningKey>, KeyError> {
        let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.pair.serialized_der()));
        any_supported_type(&der).map_err(|error| KeyError::Load(self.identity.clone(), error))
    }
}

impl WorkloadKey {
    /// The key as PKCS #8 in PEM, for the TLS of a client that takes it in no other form.
    pub(crate) fn to_pem(&self) -> Secret {
        Secret::new(self.pair.serialize_pem())
    }
}

impl Drop for WorkloadKey {
    fn drop(&mut self) {
        self.pair.zeroize();
    }
}

/// The identity as a subject alternative name.
pub(crate) fn uri_san(identity: &Identity) -> Result<SanType, rcgen::Error> {
    Ok(SanType::URI(identity.to_string().try_into()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::CertificateSigningRequestParams;

    #[test]
    fn a_request_has_an_empty_subject_and_one_uri() {
        let identity: Identity = "spiffe://cluster.local/ns/shop/sa/cart".parse().unwrap();
        let key = WorkloadKey::generate(&identity).unwrap();
        let request = key.signing_request().unwrap();
        let parsed = CertificateSigningRequestParams::from_der(&request).unwrap();
        assert_eq!(parsed.params.distinguished_name.iter().count(), 0);
        assert_eq!(
            parsed.params.subject_alt_names,
            [uri_san(&identity).unwrap()]
        );
    }

    #[test]
    fn each_key_is_new() {
        let identity: Identity = "spiffe://cluster.local/ns/shop/sa/cart".parse().unwrap();
        let (one, two) = (
            WorkloadKey::generate(&identity).unwrap(),
            WorkloadKey::generate(&identity).unwrap(),
        );
        assert_ne!(one.pair.public_key_raw(), two.pair.public_key_raw());
    }
}
