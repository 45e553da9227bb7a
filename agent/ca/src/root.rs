//! The Secrets that hold the CA: `istio-ca-secret`, a root of our own in istiod's form, and `cacerts`, an intermediate
//! that the operator plugs in.
use std::{
    collections::BTreeMap,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use k8s_openapi::{ByteString, api::core::v1::Secret};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use undermesh_identity::{
    CaParts, CertificateError,
    material::{CA_CERTIFICATE, CA_KEY, CHAIN, ROOT_CERTIFICATE},
};
use zeroize::Zeroizing;

use crate::rotation::{Phase, Root, Roots, Wish};

/// The Secret of a root that is made here.
pub const OWN_SECRET: &str = "istio-ca-secret";
/// The Secret of an intermediate that the operator plugs in; it goes before the other.
pub const PLUGGED_SECRET: &str = "cacerts";
/// The type of [`OWN_SECRET`].
pub const OWN_SECRET_TYPE: &str = "istio.io/ca-root";
/// The annotation on [`OWN_SECRET`] by which an operator asks for another root; its value does not matter.
pub const ROTATE_ANNOTATION: &str = "undermesh.io/rotate-root";

const NEXT_CERTIFICATE: &str = "next-cert.pem";
const NEXT_KEY: &str = "next-key.pem";
const NEXT_SINCE: &str = "next-since";
const PREVIOUS_CERTIFICATE: &str = "previous-cert.pem";
const PREVIOUS_SINCE: &str = "previous-since";
const OWN_KEYS: [&str; 8] = [
    CA_CERTIFICATE,
    CA_KEY,
    ROOT_CERTIFICATE,
    NEXT_CERTIFICATE,
    NEXT_KEY,
    NEXT_SINCE,
    PREVIOUS_CERTIFICATE,
    PREVIOUS_SINCE,
];

/// Why a Secret holds no CA.
#[derive(Debug, thiserror::Error)]
pub enum RootError {
    /// A key is missing.
    #[error("{} has no key {key}; restore the Secret from a copy", .place.display())]
    Missing {
        /// The Secret.
        place: PathBuf,
        /// The key.
        key: &'static str,
    },
    /// A value is no text.
    #[error("{}/{key} is not text; restore the Secret from a copy", .place.display())]
    Text {
        /// The Secret.
        place: PathBuf,
        /// The key.
        key: &'static str,
    },
    /// A value is no certificate.
    #[error("{}/{key}: {error}; restore the Secret from a copy", .place.display())]
    Certificate {
        /// The Secret.
        place: PathBuf,
        /// The key.
        key: &'static str,
        /// What is wrong.
        error: CertificateError,
    },
    /// A value is no time.
    #[error("{}/{key} is not a time such as 2026-01-31T12:00:00Z; restore the Secret from a copy", .place.display())]
    Time {
        /// The Secret.
        place: PathBuf,
        /// The key.
        key: &'static str,
    },
    /// The Secret is in two phases at once.
    #[error("{} holds both {NEXT_CERTIFICATE} and {PREVIOUS_CERTIFICATE}; remove the keys of the root that shall not be used", .place.display())]
    Phases {
        /// The Secret.
        place: PathBuf,
    },
}

/// A Secret's values, with its name for messages.
struct Values<'a> {
    place: PathBuf,
    data: &'a BTreeMap<String, ByteString>,
}

static NOTHING: BTreeMap<String, ByteString> = BTreeMap::new();

impl<'a> Values<'a> {
    fn of(secret: &'a Secret) -> Self {
        let metadata = &secret.metadata;
        let name = |text: &'a Option<String>| text.as_deref().unwrap_or_default();
        Self {
            place: place(name(&metadata.namespace), name(&metadata.name)),
            data: secret.data.as_ref().unwrap_or(&NOTHING),
        }
    }

    fn optional(&self, key: &str) -> Option<&'a [u8]> {
        let value = self.data.get(key).map(|value| value.0.as_slice());
        value.filter(|value| !value.trim_ascii().is_empty())
    }

    fn bytes(&self, key: &'static str) -> Result<&'a [u8], RootError> {
        self.optional(key).ok_or_else(|| RootError::Missing {
            place: self.place.clone(),
            key,
        })
    }

    fn text(&self, key: &'static str) -> Result<&'a str, RootError> {
        std::str::from_utf8(self.bytes(key)?).map_err(|_| RootError::Text {
            place: self.place.clone(),
            key,
        })
    }

    fn time(&self, key: &'static str) -> Result<SystemTime, RootError> {
        OffsetDateTime::parse(self.text(key)?.trim(), &Rfc3339)
            .map(SystemTime::from)
            .map_err(|_| RootError::Time {
                place: self.place.clone(),
                key,
            })
    }

    fn root(&self, certificate: &'static str, key: &'static str) -> Result<Root, RootError> {
        let private = Zeroizing::new(self.text(key)?.to_owned());
        Root::new(self.text(certificate)?.to_owned(), private).map_err(|error| {
            RootError::Certificate {
                place: self.place.clone(),
                key: certificate,
                error,
            }
        })
    }

    fn phase(&self) -> Result<Phase, RootError> {
        let next = self.optional(NEXT_CERTIFICATE).is_some();
        let previous = self.optional(PREVIOUS_CERTIFICATE).is_some();
        match (next, previous) {
            (false, false) => Ok(Phase::Steady),
            (true, false) => Ok(Phase::Introducing {
                next: self.root(NEXT_CERTIFICATE, NEXT_KEY)?,
                since: self.time(NEXT_SINCE)?,
            }),
            (false, true) => Ok(Phase::Retiring {
                previous: self.text(PREVIOUS_CERTIFICATE)?.to_owned(),
                since: self.time(PREVIOUS_SINCE)?,
            }),
            (true, true) => Err(RootError::Phases {
                place: self.place.clone(),
            }),
        }
    }
}

fn place(namespace: &str, name: &str) -> PathBuf {
    PathBuf::from(format!("Secret {namespace}/{name}"))
}

/// The CA in [`PLUGGED_SECRET`]; `None` if the Secret is none yet, without a certificate.
///
/// # Errors
/// When a part is missing beside the certificate.
pub fn plugged(secret: &Secret) -> Result<Option<CaParts>, RootError> {
    let values = Values::of(secret);
    let Some(certificate) = values.optional(CA_CERTIFICATE) else {
        return Ok(None);
    };
    Ok(Some(CaParts {
        key: Zeroizing::new(values.bytes(CA_KEY)?.to_vec()),
        certificate: certificate.to_vec(),
        chain: values.optional(CHAIN).map(<[u8]>::to_vec),
        roots: values.bytes(ROOT_CERTIFICATE)?.to_vec(),
        place: values.place,
    }))
}

/// The roots in [`OWN_SECRET`], whether made here or by istiod.
///
/// # Errors
/// When a part is missing or cannot be read.
pub fn read(secret: &Secret) -> Result<Roots, RootError> {
    let values = Values::of(secret);
    Ok(Roots {
        signing: values.root(CA_CERTIFICATE, CA_KEY)?,
        phase: values.phase()?,
    })
}

/// The CA that signs by these roots.
pub fn parts(roots: &Roots, namespace: &str) -> CaParts {
    CaParts {
        place: place(namespace, OWN_SECRET),
        key: Zeroizing::new(roots.signing.key.as_bytes().to_vec()),
        certificate: roots.signing.certificate.clone().into_bytes(),
        chain: None,
        roots: roots.bundle().into_bytes(),
    }
}

/// Whether the operator asks for another root.
pub fn wish(secret: &Secret) -> Wish {
    let annotations = secret.metadata.annotations.as_ref();
    match annotations.is_some_and(|all| all.contains_key(ROTATE_ANNOTATION)) {
        true => Wish::Now,
        false => Wish::InTime,
    }
}

/// A new Secret with these roots.
pub fn new_secret(roots: &Roots, namespace: &str) -> Secret {
    let mut secret = Secret {
        type_: Some(OWN_SECRET_TYPE.to_owned()),
        ..Secret::default()
    };
    secret.metadata.name = Some(OWN_SECRET.to_owned());
    secret.metadata.namespace = Some(namespace.to_owned());
    write(&mut secret, roots);
    secret
}

/// Puts these roots into the Secret; keys of others stay.
pub fn write(secret: &mut Secret, roots: &Roots) {
    let data = secret.data.get_or_insert_default();
    data.retain(|key, _| !OWN_KEYS.contains(&key.as_str()));
    let mut put = |key: &str, value: &str| {
        data.insert(key.to_owned(), ByteString(value.as_bytes().to_vec()));
    };
    put(CA_CERTIFICATE, &roots.signing.certificate);
    put(CA_KEY, &roots.signing.key);
    put(ROOT_CERTIFICATE, &roots.bundle());
    match &roots.phase {
        Phase::Steady => {}
        Phase::Introducing { next, since } => {
            put(NEXT_CERTIFICATE, &next.certificate);
            put(NEXT_KEY, &next.key);
            put(NEXT_SINCE, &timestamp(*since));
        }
        Phase::Retiring { previous, since } => {
            put(PREVIOUS_CERTIFICATE, previous);
            put(PREVIOUS_SINCE, &timestamp(*since));
        }
    }
    let started = matches!(roots.phase, Phase::Introducing { .. });
    if started && let Some(annotations) = &mut secret.metadata.annotations {
        annotations.remove(ROTATE_ANNOTATION);
    }
}

/// The moment as text, to the second and never too early.
fn timestamp(time: SystemTime) -> String {
    let whole = OffsetDateTime::from(time + Duration::from_secs(1));
    let whole = whole.replace_nanosecond(0).unwrap_or(whole);
    whole.format(&Rfc3339).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use undermesh_identity::NewRoot;
    use undermesh_model::TrustDomain;

    fn root() -> Root {
        let made = NewRoot::make(&TrustDomain::cluster_local(), SystemTime::now()).unwrap();
        made.try_into().unwrap()
    }

    fn noon() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
    }

    fn phases() -> [Phase; 3] {
        [
            Phase::Steady,
            Phase::Introducing {
                next: root(),
                since: noon(),
            },
            Phase::Retiring {
                previous: root().certificate,
                since: noon(),
            },
        ]
    }

    #[test]
    fn each_phase_survives_in_the_secret() {
        for phase in phases() {
            let roots = Roots {
                signing: root(),
                phase,
            };
            let read = read(&new_secret(&roots, "mesh")).unwrap();
            assert_eq!(
                (&read.signing, read.phase.label()),
                (&roots.signing, roots.phase.label())
            );
            assert_eq!(read.bundle(), roots.bundle());
            if let Phase::Introducing { since, .. } | Phase::Retiring { since, .. } = read.phase {
                assert_eq!(since, noon() + Duration::from_secs(1));
            }
        }
    }

    #[test]
    fn what_others_keep_in_the_secret_stays_and_old_phases_go() {
        let mut secret = Secret::default();
        secret
            .data
            .get_or_insert_default()
            .insert("key.pem".to_owned(), ByteString(b"theirs".to_vec()));
        for phase in phases().into_iter().rev() {
            let roots = Roots {
                signing: root(),
                phase,
            };
            write(&mut secret, &roots);
            assert_eq!(read(&secret).unwrap().phase.label(), roots.phase.label());
        }
        assert_eq!(secret.data.unwrap().len(), 4);
    }

    #[test]
    fn the_start_of_a_rotation_answers_the_wish() {
        let mut secret = Secret::default();
        let annotations = secret.metadata.annotations.get_or_insert_default();
        annotations.insert(ROTATE_ANNOTATION.to_owned(), String::new());
        let [steady, introducing, _] = phases();
        let mut put = |phase| {
            let signing = root();
            write(&mut secret, &Roots { signing, phase });
            wish(&secret)
        };
        assert_eq!(put(steady), Wish::Now);
        assert_eq!(put(introducing), Wish::InTime);
    }

    #[test]
    fn damaged_secrets_are_named() {
        let good = new_secret(&Roots::steady(root()), "mesh");
        let with = |key: &str, value: &str| {
            let mut secret = good.clone();
            let data = secret.data.get_or_insert_default();
            data.insert(key.to_owned(), ByteString(value.as_bytes().to_vec()));
            read(&secret).unwrap_err().to_string()
        };
        assert!(with(CA_KEY, "").starts_with("Secret mesh/istio-ca-secret has no key ca-key.pem"));
        assert!(with(CA_CERTIFICATE, "x").contains("istio-ca-secret/ca-cert.pem"));
        let other = root().certificate;
        assert!(with(PREVIOUS_CERTIFICATE, &other).contains("no key previous-since"));
        let mut both = good.clone();
        for key in [NEXT_CERTIFICATE, PREVIOUS_CERTIFICATE] {
            let value = ByteString(other.clone().into_bytes());
            both.data
                .get_or_insert_default()
                .insert(key.to_owned(), value);
        }
        assert!(matches!(read(&both), Err(RootError::Phases { .. })));
        assert!(plugged(&Secret::default()).unwrap().is_none());
        let mut half = good;
        half.data.get_or_insert_default().remove(ROOT_CERTIFICATE);
        assert!(plugged(&half).is_err());
    }
}
