//! Certificates as parsed once: whom they name and how long they hold.
use std::time::SystemTime;

use rustls_pki_types::{CertificateDer, pem::PemObject};
use undermesh_model::Identity;
use x509_parser::{
    certificate::X509Certificate, extensions::GeneralName, prelude::FromDer, time::ASN1Time,
};

/// Largest certificate that is read, in bytes of DER.
pub const MAX_CERTIFICATE_BYTES: usize = 64 * 1024;
/// Most certificates in one chain or bundle of roots.
pub const MAX_CERTIFICATES: usize = 64;
/// Most alternative names that are looked at in one certificate.
pub const MAX_ALTERNATIVE_NAMES: usize = 64;

/// Why bytes are not a certificate that can be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// The certificate is larger than any certificate needs to be.
    #[error("a certificate of {0} bytes is larger than the {MAX_CERTIFICATE_BYTES} that are read")]
    Length(usize),
    /// The bytes are not an X.509 certificate.
    #[error("the certificate is not valid X.509: {0}")]
    Encoding(String),
    /// More alternative names than are looked at.
    #[error(
        "the certificate has {0} alternative names, more than the {MAX_ALTERNATIVE_NAMES} that are read"
    )]
    Names(usize),
    /// The text is not PEM.
    #[error("the text is not PEM: {0}")]
    Pem(String),
    /// No certificate where one is needed.
    #[error("there is no certificate in the text; it needs at least one BEGIN CERTIFICATE block")]
    Empty,
    /// More certificates than any chain needs.
    #[error(
        "there are more than {MAX_CERTIFICATES} certificates; remove those that are not needed"
    )]
    Count,
}

/// One certificate, with what the mesh reads from it.
#[derive(Clone, Debug)]
pub struct Certificate {
    der: CertificateDer<'static>,
    identities: Vec<Identity>,
    not_before: SystemTime,
    not_after: SystemTime,
    serial: String,
}

impl Certificate {
    /// Reads one certificate from DER. Only the form is checked, no signature.
    ///
    /// # Errors
    /// When the bytes are not one X.509 certificate or exceed a limit.
    pub fn parse(der: CertificateDer<'static>) -> Result<Self, CertificateError> {
        let x509 = parse_x509(&der)?;
        let identities = uri_identities(&x509)?;
        let not_before = system_time(x509.validity().not_before)?;
        let not_after = system_time(x509.validity().not_after)?;
        let serial = x509
            .raw_serial()
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        Ok(Self {
            identities,
            not_before,
            not_after,
            serial,
            der,
        })
    }

    /// Whom the certificate names: the first URI SAN that is an identity, as Istio reads it.
    pub fn identity(&self) -> Option<&Identity> {
        self.identities.first()
    }

    /// All URI SANs that are identities, in order.
    pub fn identities(&self) -> &[Identity] {
        &self.identities
    }

    /// The first moment at which it is valid.
    pub fn not_before(&self) -> SystemTime {
        self.not_before
    }

    /// The last moment at which it is valid.
    pub fn not_after(&self) -> SystemTime {
        self.not_after
    }

    /// The serial number in lower-case hexadecimal.
    pub fn serial(&self) -> &str {
        &self.serial
    }

    /// The certificate as it travels.
    pub fn der(&self) -> &CertificateDer<'static> {
        &self.der
    }
}

/// The identities that the URI SANs of a certificate name; other names are passed over.
///
/// # Errors
/// When the bytes are not one X.509 certificate or exceed a limit.
pub fn identities_of(der: &CertificateDer<'_>) -> Result<Vec<Identity>, CertificateError> {
    uri_identities(&parse_x509(der)?)
}

/// The subject's public key as DER (`SubjectPublicKeyInfo`).
///
/// # Errors
/// When the bytes are not one X.509 certificate.
pub fn public_key_of(der: &CertificateDer<'_>) -> Result<Vec<u8>, CertificateError> {
    Ok(parse_x509(der)?.public_key().raw.to_vec())
}

/// Reads all certificates of a PEM text; other blocks are passed over.
///
/// # Errors
/// When the text is not PEM, has no certificate, or exceeds a limit.
pub fn parse_pem(text: &[u8]) -> Result<Vec<CertificateDer<'static>>, CertificateError> {
    let mut found = Vec::new();
    for certificate in CertificateDer::pem_slice_iter(text) {
        if found.len() == MAX_CERTIFICATES {
            return Err(CertificateError::Count);
        }
        found.push(certificate.map_err(|error| CertificateError::Pem(error.to_string()))?);
    }
    if found.is_empty() {
        return Err(CertificateError::Empty);
    }
    Ok(found)
}

/// Certificates as PEM, in the order given.
pub fn to_pem<'a>(certificates: impl IntoIterator<Item = &'a CertificateDer<'static>>) -> String {
    let encode =
        |der: &CertificateDer<'_>| pem::encode(&pem::Pem::new("CERTIFICATE", der.as_ref()));
    certificates.into_iter().map(encode).collect()
}

fn parse_x509<'a>(der: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, CertificateError> {
    if der.len() > MAX_CERTIFICATE_BYTES {
        return Err(CertificateError::Length(der.len()));
    }
    let (rest, x509) = X509Certificate::from_der(der)
        .map_err(|error| CertificateError::Encoding(error.to_string()))?;
    if !rest.is_empty() {
        return Err(CertificateError::Encoding(format!(
            "{} bytes follow it",
            rest.len()
        )));
    }
    Ok(x509)
}

fn uri_identities(x509: &X509Certificate<'_>) -> Result<Vec<Identity>, CertificateError> {
    let names = x509
        .subject_alternative_name()
        .map_err(|error| CertificateError::Encoding(error.to_string()))?;
    let Some(names) = names else {
        return Ok(Vec::new());
    };
    let names = &names.value.general_names;
    if names.len() > MAX_ALTERNATIVE_NAMES {
        return Err(CertificateError::Names(names.len()));
    }
    let identity = |name: &GeneralName<'_>| match name {
        GeneralName::URI(uri) => uri.parse().ok(),
        _ => None,
    };
    Ok(names.iter().filter_map(identity).collect())
}

fn system_time(time: ASN1Time) -> Result<SystemTime, CertificateError> {
    let seconds = time.timestamp();
    let out_of_range = || CertificateError::Encoding(format!("the time {time} is out of range"));
    let offset = u64::try_from(seconds).map_err(|_| out_of_range())?;
    SystemTime::UNIX_EPOCH
        .checked_add(std::time::Duration::from_secs(offset))
        .ok_or_else(out_of_range)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TestMesh;
    use proptest::prelude::*;
    use std::sync::LazyLock;

    const CART: &str = "spiffe://cluster.local/ns/shop/sa/cart";

    static PEM: LazyLock<String> =
        LazyLock::new(|| TestMesh::new("cluster.local").certificate(CART).chain_pem());

    fn der() -> CertificateDer<'static> {
        parse_pem(PEM.as_bytes()).unwrap().remove(0)
    }

    #[test]
    fn a_certificate_says_whom_it_names_and_how_long_it_holds() {
        let certificate = Certificate::parse(der()).unwrap();
        assert_eq!(certificate.identity().unwrap().to_string(), CART);
        let life = certificate
            .not_after()
            .duration_since(certificate.not_before())
            .unwrap();
        assert_eq!(life.as_secs(), 3660, "an hour, dated back a minute");
        assert!(
            certificate.serial().len() >= 24
                && certificate.serial().bytes().all(|b| b.is_ascii_hexdigit())
        );
    }

    #[test]
    fn pem_survives_a_round_trip() {
        assert_eq!(to_pem(&[der()]), *PEM);
        assert_eq!(
            parse_pem(to_pem(&[der(), der()]).as_bytes()).unwrap(),
            [der(), der()]
        );
    }

    #[test]
    fn what_is_too_large_or_no_certificate_is_refused() {
        let huge = CertificateDer::from(vec![0x30; MAX_CERTIFICATE_BYTES + 1]);
        assert_eq!(
            Certificate::parse(huge).unwrap_err(),
            CertificateError::Length(MAX_CERTIFICATE_BYTES + 1)
        );
        assert!(Certificate::parse(CertificateDer::from(Vec::new())).is_err());
        let followed = CertificateDer::from([der().as_ref(), b"x"].concat());
        assert!(matches!(
            Certificate::parse(followed),
            Err(CertificateError::Encoding(_))
        ));
        assert_eq!(parse_pem(b"").unwrap_err(), CertificateError::Empty);
        assert_eq!(
            parse_pem(PEM.repeat(MAX_CERTIFICATES + 1).as_bytes()).unwrap_err(),
            CertificateError::Count
        );
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
            let _ = parse_pem(&bytes);
            let _ = Certificate::parse(CertificateDer::from(bytes));
        }

        #[test]
        fn a_damaged_certificate_never_panics(place: prop::sample::Index, value: u8, cut: prop::sample::Index) {
            let mut bytes = der().to_vec();
            let place = place.index(bytes.len());
            bytes[place] = value;
            let _ = Certificate::parse(CertificateDer::from(bytes.clone()));
            bytes.truncate(cut.index(bytes.len()));
            prop_assert!(Certificate::parse(CertificateDer::from(bytes)).is_err());
        }

        #[test]
        fn damaged_pem_never_panics(place: prop::sample::Index, value: u8) {
            let mut bytes = PEM.clone().into_bytes();
            let place = place.index(bytes.len());
            bytes[place] = value;
            let _ = parse_pem(&bytes);
        }
    }
}
