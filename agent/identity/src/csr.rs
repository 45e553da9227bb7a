//! Signing requests (PKCS #10) of others: only the public key is taken from them, once it is proved and strong enough.
use rcgen::SubjectPublicKeyInfo;
use rustls_pki_types::{CertificateSigningRequestDer, pem::PemObject};
use x509_parser::{
    certification_request::X509CertificationRequest, oid_registry, prelude::FromDer,
    public_key::PublicKey,
};

/// Largest signing request that is read, in bytes of DER.
pub const MAX_REQUEST_BYTES: usize = 16 * 1024;
/// Largest signing request that is read, in bytes of PEM.
pub const MAX_REQUEST_PEM_BYTES: usize = 2 * MAX_REQUEST_BYTES;
/// Smallest and largest RSA modulus that is signed for, in bits. A large one costs the signer and every peer.
pub const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;

/// Why a signing request is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CsrError {
    /// More bytes than any request needs.
    #[error("it has {found} bytes, more than the {limit} that are read")]
    Length {
        /// How many it has.
        found: usize,
        /// How many are read.
        limit: usize,
    },
    /// The text holds no request.
    #[error("it is not PEM with one BEGIN CERTIFICATE REQUEST block")]
    Pem,
    /// The bytes are no request.
    #[error("it is not a PKCS #10 request: {0}")]
    Encoding(String),
    /// Its signature does not show that the sender holds the key.
    #[error(
        "its signature is not made by its own key, or by an algorithm that is not accepted; sign with SHA-256 or better"
    )]
    Signature,
    /// A kind of key that is not signed for.
    #[error(
        "its key is not accepted; use ECDSA P-256 or P-384, Ed25519, or RSA of 2048 to 8192 bits"
    )]
    Key,
}

/// The public key of a request whose signature shows that the sender holds the private one (RFC 2986, section 3).
#[derive(Debug)]
pub struct ProvenKey(SubjectPublicKeyInfo);

impl ProvenKey {
    /// Checks one request. Subject, names and extensions that it asks for are ignored.
    ///
    /// # Errors
    /// When it is not a request, not signed by its own key, or its key is too weak or too large.
    pub fn of(csr: &CertificateSigningRequestDer<'_>) -> Result<Self, CsrError> {
        let request = parse(csr)?;
        let spki = &request.certification_request_info.subject_pki;
        let scheme = &request.signature_algorithm.algorithm;
        let strong = match spki.parsed().map_err(|_| CsrError::Key)? {
            PublicKey::EC(_) => {
                let hashes = [
                    oid_registry::OID_SIG_ECDSA_WITH_SHA256,
                    oid_registry::OID_SIG_ECDSA_WITH_SHA384,
                ];
                hashes.contains(scheme)
            }
            PublicKey::RSA(key) => {
                if !RSA_BITS.contains(&key.key_size()) {
                    return Err(CsrError::Key);
                }
                let hashes = [
                    oid_registry::OID_PKCS1_SHA256WITHRSA,
                    oid_registry::OID_PKCS1_SHA384WITHRSA,
                    oid_registry::OID_PKCS1_SHA512WITHRSA,
                ];
                hashes.contains(scheme)
            }
            _ if spki.algorithm.algorithm == oid_registry::OID_SIG_ED25519 => {
                *scheme == oid_registry::OID_SIG_ED25519
            }
            _ => return Err(CsrError::Key),
        };
        if !strong || request.verify_signature().is_err() {
            return Err(CsrError::Signature);
        }
        let key = SubjectPublicKeyInfo::from_der(spki.raw).map_err(|_| CsrError::Key)?;
        Ok(Self(key))
    }

    pub(crate) fn public_key(&self) -> &SubjectPublicKeyInfo {
        &self.0
    }
}

/// The public key that a request is for, as DER (`SubjectPublicKeyInfo`), unproved.
///
/// # Errors
/// When the bytes are not one request.
pub fn public_key_of(csr: &CertificateSigningRequestDer<'_>) -> Result<Vec<u8>, CsrError> {
    let request = parse(csr)?;
    Ok(request.certification_request_info.subject_pki.raw.to_vec())
}

/// Reads one request from PEM, the form in which Istio's nodes send it.
///
/// # Errors
/// When the text is too long or not the PEM of one request.
pub fn from_pem(text: &str) -> Result<CertificateSigningRequestDer<'static>, CsrError> {
    if text.len() > MAX_REQUEST_PEM_BYTES {
        return Err(CsrError::Length {
            found: text.len(),
            limit: MAX_REQUEST_PEM_BYTES,
        });
    }
    let mut requests = CertificateSigningRequestDer::pem_slice_iter(text.as_bytes());
    match (requests.next(), requests.next()) {
        (Some(Ok(request)), None) => Ok(request),
        _ => Err(CsrError::Pem),
    }
}

fn parse<'a>(
    csr: &'a CertificateSigningRequestDer<'_>,
) -> Result<X509CertificationRequest<'a>, CsrError> {
    if csr.len() > MAX_REQUEST_BYTES {
        return Err(CsrError::Length {
            found: csr.len(),
            limit: MAX_REQUEST_BYTES,
        });
    }
    let (rest, request) = X509CertificationRequest::from_der(csr)
        .map_err(|error| CsrError::Encoding(error.to_string()))?;
    if !rest.is_empty() {
        return Err(CsrError::Encoding(format!(
            "{} bytes follow it",
            rest.len()
        )));
    }
    Ok(request)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rcgen::{CertificateParams, KeyPair, PublicKeyData, RsaKeySize};

    fn request(key: &KeyPair) -> CertificateSigningRequestDer<'static> {
        CertificateParams::default()
            .serialize_request(key)
            .unwrap()
            .into()
    }

    #[test]
    fn the_kinds_of_key_that_workloads_use_are_accepted() {
        for algorithm in [
            &rcgen::PKCS_ECDSA_P256_SHA256,
            &rcgen::PKCS_ECDSA_P384_SHA384,
            &rcgen::PKCS_ED25519,
            &rcgen::PKCS_RSA_SHA256,
        ] {
            let key = KeyPair::generate_for(algorithm).unwrap();
            let proven = ProvenKey::of(&request(&key)).unwrap();
            assert_eq!(
                proven.public_key().subject_public_key_info(),
                key.subject_public_key_info()
            );
            assert_eq!(
                public_key_of(&request(&key)).unwrap(),
                key.subject_public_key_info()
            );
        }
    }

    #[test]
    fn a_curve_that_is_not_accepted_is_refused() {
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P521_SHA512).unwrap();
        assert!(ProvenKey::of(&request(&key)).is_err());
    }

    #[test]
    fn a_strong_rsa_key_is_accepted_and_sha_1_is_not() {
        let key = KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA512, RsaKeySize::_3072).unwrap();
        let honest = request(&key);
        ProvenKey::of(&honest).unwrap();
        // sha512WithRSAEncryption is 1.2.840.113549.1.1.13, sha1WithRSAEncryption the same with 5 at the end.
        let scheme = [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0d];
        let mut bytes = honest.to_vec();
        let place = bytes
            .windows(scheme.len())
            .rposition(|window| window == scheme)
            .unwrap();
        bytes[place + scheme.len() - 1] = 5;
        assert_eq!(
            ProvenKey::of(&bytes.into()).unwrap_err(),
            CsrError::Signature
        );
    }

    #[test]
    fn the_key_of_another_cannot_be_certified() {
        let (own, other) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let mut bytes = request(&own).to_vec();
        let (from, to) = (own.public_key_raw(), other.public_key_raw());
        let place = bytes
            .windows(from.len())
            .position(|window| window == from)
            .unwrap();
        bytes[place..place + to.len()].copy_from_slice(to);
        assert_eq!(
            ProvenKey::of(&bytes.into()).unwrap_err(),
            CsrError::Signature
        );
    }

    #[test]
    fn pem_holds_exactly_one_request_of_bounded_size() {
        let der = request(&KeyPair::generate().unwrap());
        let pem = pem::encode(&pem::Pem::new("CERTIFICATE REQUEST", der.as_ref()));
        assert_eq!(from_pem(&pem).unwrap(), der);
        assert_eq!(from_pem(&pem.repeat(2)).unwrap_err(), CsrError::Pem);
        assert_eq!(from_pem("").unwrap_err(), CsrError::Pem);
        let long = "x".repeat(MAX_REQUEST_PEM_BYTES + 1);
        assert!(matches!(
            from_pem(&long).unwrap_err(),
            CsrError::Length { .. }
        ));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>, text: String) {
            let _ = from_pem(&text);
            prop_assert!(ProvenKey::of(&bytes.into()).is_err());
        }

        #[test]
        fn a_damaged_request_never_panics(place: prop::sample::Index, value: u8) {
            let mut bytes = request(&KeyPair::generate().unwrap()).to_vec();
            let place = place.index(bytes.len());
            bytes[place] = value;
            let _ = ProvenKey::of(&bytes.into());
        }
    }
}
