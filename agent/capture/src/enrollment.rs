//! Who a pod is: what the caller of `enroll` says of it.
use std::{
    fmt,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

/// Longest namespace name: a DNS label (RFC 1123).
const MAX_LABEL: usize = 63;
/// Longest name of a pod or service account: a DNS subdomain (RFC 1123).
const MAX_SUBDOMAIN: usize = 253;
/// Longest path, as the kernel's `PATH_MAX`.
const MAX_PATH: usize = 4096;

/// A pod to be enrolled: its network namespace and its names, which are checked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Fields", into = "Fields")]
pub struct Enrollment {
    netns: PathBuf,
    namespace: String,
    name: String,
    service_account: String,
}

/// A value of an enrollment that is not acceptable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field} {value:?} is not valid; give {wanted}")]
pub struct EnrollmentError {
    field: &'static str,
    value: String,
    wanted: &'static str,
}

impl Enrollment {
    /// Checks and keeps the names of a pod and the absolute path of its network namespace.
    ///
    /// # Errors
    /// When a name is not one that Kubernetes takes, or the path is not absolute.
    pub fn new(
        netns: impl Into<PathBuf>,
        namespace: &str,
        name: &str,
        service_account: &str,
    ) -> Result<Self, EnrollmentError> {
        let netns = netns.into();
        if !netns.is_absolute() || netns.as_os_str().len() > MAX_PATH {
            let value = netns.to_string_lossy().into_owned();
            return Err(EnrollmentError {
                field: "netns",
                value,
                wanted: "an absolute path",
            });
        }
        check("namespace", namespace, MAX_LABEL)?;
        check("name", name, MAX_SUBDOMAIN)?;
        check("service account", service_account, MAX_SUBDOMAIN)?;
        Ok(Self {
            netns,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            service_account: service_account.to_owned(),
        })
    }

    /// The path of the pod's network namespace.
    pub fn netns(&self) -> &Path {
        &self.netns
    }

    /// The Kubernetes namespace.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The pod's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The service account, which gives the pod its identity.
    pub fn service_account(&self) -> &str {
        &self.service_account
    }

    /// Whether both say that they are the same pod under the same identity, wherever its namespace is.
    pub(crate) fn is_same_pod(&self, other: &Self) -> bool {
        self.has_same_name(other) && self.service_account == other.service_account
    }

    pub(crate) fn has_same_name(&self, other: &Self) -> bool {
        self.namespace == other.namespace && self.name == other.name
    }
}

impl fmt::Display for Enrollment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}/{} (service account {})",
            self.namespace, self.name, self.service_account
        )
    }
}

fn check(field: &'static str, value: &str, longest: usize) -> Result<(), EnrollmentError> {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let between =
        |byte: u8| inner(byte) || byte == b'-' || (byte == b'.' && longest == MAX_SUBDOMAIN);
    let bytes = value.as_bytes();
    let valid = bytes.len() <= longest
        && bytes.first().is_some_and(|byte| inner(*byte))
        && bytes.last().is_some_and(|byte| inner(*byte))
        && bytes.iter().all(|byte| between(*byte));
    if valid {
        return Ok(());
    }
    let value = value.chars().take(MAX_SUBDOMAIN).collect();
    let wanted = "lower-case letters, digits and hyphens, as Kubernetes takes them";
    Err(EnrollmentError {
        field,
        value,
        wanted,
    })
}

/// The form in a state file.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Fields {
    netns: PathBuf,
    namespace: String,
    name: String,
    service_account: String,
}

impl TryFrom<Fields> for Enrollment {
    type Error = EnrollmentError;

    fn try_from(fields: Fields) -> Result<Self, Self::Error> {
        Self::new(
            fields.netns,
            &fields.namespace,
            &fields.name,
            &fields.service_account,
        )
    }
}

impl From<Enrollment> for Fields {
    fn from(enrollment: Enrollment) -> Self {
        let Enrollment {
            netns,
            namespace,
            name,
            service_account,
        } = enrollment;
        Self {
            netns,
            namespace,
            name,
            service_account,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_kubernetes_takes_are_taken() {
        assert!(Enrollment::new("/run/netns/a", "default", "web-0.shop", "bookinfo-web").is_ok());
    }

    #[test]
    fn other_names_and_relative_paths_are_refused() {
        for (path, namespace, name) in [
            ("a", "default", "web"),
            ("/a", "", "web"),
            ("/a", "de.fault", "web"),
            ("/a", "default", "Web"),
            ("/a", "default", "-web"),
            ("/a", "default", "../web"),
        ] {
            let error = Enrollment::new(path, namespace, name, "sa").unwrap_err();
            assert!(error.to_string().contains("; give "), "{error}");
        }
        assert!(Enrollment::new("/a", &"n".repeat(64), "web", "sa").is_err());
    }
}
