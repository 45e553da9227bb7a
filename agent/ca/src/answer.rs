//! What comes back from a certificate service, checked before anybody uses it.
use rustls_pki_types::CertificateDer;
use undermesh_identity::{
    Certificate, CertificateError, CertificateRequest, IssuedCertificate, certificate, csr,
};
use undermesh_model::Identity;

/// Most texts in one answer: a leaf, intermediates and the roots.
pub const MAX_TEXTS: usize = 16;

/// Why an answer cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AnswerError {
    #[error("it sent {0} texts, where 2 to {MAX_TEXTS} make a leaf, its chain and the roots")]
    Count(usize),
    #[error("it sent what cannot be read: {0}")]
    Certificate(#[from] CertificateError),
    #[error("it certified {0} instead")]
    Identity(String),
    #[error("it certified another key than the one that was sent")]
    Key,
    #[error("the request itself cannot be read: {0}")]
    Csr(#[from] csr::CsrError),
}

/// Reads an answer of `IstioCertificateService`: the leaf first, the roots last, all of them in one text.
pub(crate) fn read(
    texts: &[String],
    request: &CertificateRequest,
) -> Result<IssuedCertificate, AnswerError> {
    if !(2..=MAX_TEXTS).contains(&texts.len()) {
        return Err(AnswerError::Count(texts.len()));
    }
    let (chain, roots) = texts.split_at(texts.len() - 1);
    let mut certificates = Vec::new();
    for text in chain {
        certificates.extend(certificate::parse_pem(text.as_bytes())?);
    }
    let leaf = certificates.remove(0);
    check_identity(&leaf, &request.identity)?;
    if certificate::public_key_of(&leaf)? != csr::public_key_of(&request.csr)? {
        return Err(AnswerError::Key);
    }
    Ok(IssuedCertificate {
        leaf,
        key: None,
        intermediates: certificates,
        roots: certificate::parse_pem(roots.concat().as_bytes())?,
    })
}

pub(crate) fn check_identity(
    leaf: &CertificateDer<'static>,
    expected: &Identity,
) -> Result<(), AnswerError> {
    let leaf = Certificate::parse(leaf.clone())?;
    match leaf.identity() {
        Some(identity) if identity == expected => Ok(()),
        Some(identity) => Err(AnswerError::Identity(identity.to_string())),
        None => Err(AnswerError::Identity("nobody".to_owned())),
    }
}
