//! What an operator is told about a certificate.
use serde::{Serialize, Serializer};
use std::time::SystemTime;
use time::OffsetDateTime;
use undermesh_model::Identity;

/// How an identity's certificate stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum CertificateState {
    /// The first one has been asked for.
    Pending,
    /// Valid, and the last attempt to get one succeeded.
    Valid,
    /// Valid, but the last attempt to rotate it failed.
    Stale,
    /// Expired; connections of this identity are refused.
    Expired,
    /// There is none and the last attempt to get one failed; connections of this identity are refused.
    Failed,
}

/// One line of `undermesh certificates`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CertificateReport {
    /// Whose certificate.
    pub identity: Identity,
    /// How it stands.
    pub state: CertificateState,
    /// Its serial number in lower-case hexadecimal.
    pub serial: Option<String>,
    /// The first moment at which it is valid (RFC 3339 when serialized).
    #[serde(serialize_with = "rfc3339")]
    pub not_before: Option<SystemTime>,
    /// The last moment at which it is valid.
    #[serde(serialize_with = "rfc3339")]
    pub not_after: Option<SystemTime>,
    /// When the next one will be asked for.
    #[serde(serialize_with = "rfc3339")]
    pub renewal: Option<SystemTime>,
    /// The leaf and the intermediates as PEM.
    pub chain_pem: Option<String>,
    /// The roots as PEM.
    pub roots_pem: Option<String>,
    /// Why the last attempt failed, if it did.
    pub last_error: Option<String>,
}

fn rfc3339<S: Serializer>(time: &Option<SystemTime>, serializer: S) -> Result<S::Ok, S::Error> {
    let time = time.map(OffsetDateTime::from);
    time::serde::rfc3339::option::serialize(&time, serializer)
}
