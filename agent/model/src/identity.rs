//! SPIFFE identities in the shape that Istio gives them: `spiffe://<trust domain>/ns/<ns>/sa/<sa>`.
//!
//! Source: SPIFFE-ID, section 2, and Istio's `spiffe` package.
use std::{fmt, str::FromStr, sync::Arc};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Longest SPIFFE id that is accepted, in bytes (SPIFFE-ID, section 2.3).
pub const MAX_ID_BYTES: usize = 2048;

/// Why a text is not an identity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// The text is not of the five-segment form.
    #[error(
        "'{0}' is not an identity; write spiffe://<trust domain>/ns/<namespace>/sa/<service account>"
    )]
    Form(String),
    /// A segment holds a character that names cannot hold, or is empty.
    #[error("'{0}' is not a valid {1}; use letters, digits, '-', '_' and '.'")]
    Segment(String, &'static str),
    /// The text is longer than a SPIFFE id may be.
    #[error("an identity of {0} bytes is longer than the {MAX_ID_BYTES} that SPIFFE allows")]
    Length(usize),
}

/// The authority part of a SPIFFE id.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct TrustDomain(Arc<str>);

impl TrustDomain {
    /// Istio's default, `cluster.local`.
    pub fn cluster_local() -> Self {
        Self(Arc::from("cluster.local"))
    }

    /// The name itself.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for TrustDomain {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        segment(text, "trust domain").map(Self)
    }
}

impl<'de> Deserialize<'de> for TrustDomain {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Who a workload is: the namespace and the service account, in a trust domain.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Identity {
    /// The trust domain, `cluster.local` unless configured.
    pub trust_domain: TrustDomain,
    /// The Kubernetes namespace.
    pub namespace: Arc<str>,
    /// The Kubernetes service account.
    pub service_account: Arc<str>,
}

impl Identity {
    /// Checks the segments and joins them.
    ///
    /// # Errors
    /// When a segment is empty or holds a character that a SPIFFE path cannot hold.
    pub fn new(
        trust_domain: TrustDomain,
        namespace: &str,
        service_account: &str,
    ) -> Result<Self, IdentityError> {
        Ok(Self {
            trust_domain,
            namespace: segment(namespace, "namespace")?,
            service_account: segment(service_account, "service account")?,
        })
    }

    /// The SPIFFE id without `spiffe://`: what Istio's policies call a principal.
    pub fn principal(&self) -> String {
        format!(
            "{}/ns/{}/sa/{}",
            self.trust_domain, self.namespace, self.service_account
        )
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "spiffe://{}/ns/{}/sa/{}",
            self.trust_domain, self.namespace, self.service_account
        )
    }
}

impl FromStr for Identity {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() > MAX_ID_BYTES {
            return Err(IdentityError::Length(text.len()));
        }
        let form = || IdentityError::Form(text.to_owned());
        let path = text.strip_prefix("spiffe://").ok_or_else(form)?;
        let parts: Vec<&str> = path.split('/').collect();
        let [trust_domain, "ns", namespace, "sa", service_account] = parts[..] else {
            return Err(form());
        };
        Self::new(trust_domain.parse()?, namespace, service_account)
    }
}

impl Serialize for Identity {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Identity {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

fn segment(text: &str, what: &'static str) -> Result<Arc<str>, IdentityError> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if text.len() > MAX_ID_BYTES {
        return Err(IdentityError::Length(text.len()));
    }
    // '.' and '..' are path steps, not names (SPIFFE-ID, section 2.2).
    if text.is_empty() || matches!(text, "." | "..") || !text.bytes().all(allowed) {
        return Err(IdentityError::Segment(text.to_owned(), what));
    }
    Ok(Arc::from(text))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_written_is_read_back(
            trust_domain in "[a-z0-9][a-z0-9.-]{0,20}",
            namespace in "[a-z0-9][a-z0-9-]{0,20}",
            account in "[a-z0-9][a-z0-9._-]{0,20}",
        ) {
            let identity = Identity::new(trust_domain.parse().unwrap(), &namespace, &account).unwrap();
            prop_assert_eq!(identity.to_string().parse::<Identity>(), Ok(identity.clone()));
            prop_assert_eq!(format!("spiffe://{}", identity.principal()), identity.to_string());
        }

        #[test]
        fn any_text_is_refused_or_read_exactly(
            text in "(spiffe://)?[a-z./%\\PC]{0,40}(/ns/)?.{0,20}(/sa/)?.{0,20}"
        ) {
            if let Ok(identity) = text.parse::<Identity>() {
                prop_assert_eq!(identity.to_string(), text);
            }
        }
    }

    #[test]
    fn refuses_a_text_longer_than_an_id_may_be() {
        let text = format!(
            "spiffe://cluster.local/ns/shop/sa/{}",
            "a".repeat(MAX_ID_BYTES)
        );
        assert_eq!(
            text.parse::<Identity>(),
            Err(IdentityError::Length(text.len()))
        );
    }

    #[test]
    fn reads_and_writes_istio_identities() {
        let text = "spiffe://cluster.local/ns/shop/sa/cart";
        let identity: Identity = text.parse().unwrap();
        assert_eq!(&*identity.namespace, "shop");
        assert_eq!(identity.to_string(), text);
    }

    #[test]
    fn refuses_other_shapes() {
        for text in [
            "",
            "cluster.local/ns/a/sa/b",
            "spiffe://cluster.local/ns/a",
            "spiffe://cluster.local/ns/a/sa/b/c",
            "spiffe://cluster.local/ns//sa/b",
            "spiffe:///ns/a/sa/b",
            "spiffe://cluster.local/ns/../sa/b",
            "spiffe://cluster.local/ns/a b/sa/c",
        ] {
            assert!(text.parse::<Identity>().is_err(), "{text}");
        }
    }
}
