//! Who a pod or a machine is: what the caller of `enroll` says of it.
use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::netns;

/// Longest namespace name: a DNS label (RFC 1123).
const MAX_LABEL: usize = 63;
/// Longest name of a pod or service account: a DNS subdomain (RFC 1123).
const MAX_SUBDOMAIN: usize = 253;
/// Longest path, as the kernel's `PATH_MAX`.
const MAX_PATH: usize = 4096;

/// A pod or machine to be enrolled: what is captured of it and its names, which are checked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Fields", into = "Fields")]
pub struct Enrollment {
    scope: Scope,
    namespace: String,
    name: String,
    service_account: String,
}

/// What is captured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// All that a pod does in the network namespace at this absolute path.
    Pod(PathBuf),
    /// What the processes of one cgroup do in the agent's own network namespace: a machine outside Kubernetes.
    Machine(MachineAddresses),
}

/// The addresses by which the mesh knows a machine, of the many that it may have: one at least, and one of each
/// family at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MachineAddresses {
    ipv4: Option<Ipv4Addr>,
    ipv6: Option<Ipv6Addr>,
}

impl MachineAddresses {
    /// The addresses, IPv4 first.
    pub fn iter(&self) -> impl Iterator<Item = IpAddr> + use<> {
        let ipv4 = self.ipv4.map(IpAddr::from);
        ipv4.into_iter().chain(self.ipv6.map(IpAddr::from))
    }

    fn new(addresses: impl IntoIterator<Item = IpAddr>) -> Result<Self, EnrollmentError> {
        let (mut ipv4, mut ipv6) = (None, None);
        for address in addresses {
            let earlier = match address {
                IpAddr::V4(v4) => ipv4.replace(v4).is_some(),
                IpAddr::V6(v6) => ipv6.replace(v6).is_some(),
            };
            if earlier || !is_reachable(address) {
                return Err(addresses_error(address.to_string()));
            }
        }
        if ipv4.is_none() && ipv6.is_none() {
            return Err(addresses_error(String::new()));
        }
        Ok(Self { ipv4, ipv6 })
    }
}

/// Whether others can reach a machine by this address.
fn is_reachable(address: IpAddr) -> bool {
    !(address.is_loopback() || address.is_unspecified() || address.is_multicast())
}

fn addresses_error(value: String) -> EnrollmentError {
    EnrollmentError {
        field: "address",
        value,
        wanted: "one address of the machine for each family, by which others reach it",
    }
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
        Self::of(Scope::Pod(netns), namespace, name, service_account)
    }

    /// Checks and keeps the names of the machine that the agent runs on, and the addresses by which the mesh knows it.
    ///
    /// Its processes are those of the cgroup in [`Settings`](crate::Settings), in the agent's own network namespace. A
    /// socket belongs to the cgroup in which it was made, for good: a process that is moved into the cgroup keeps
    /// its old sockets outside, and a socket unit of systemd's needs `Slice=` as its service does.
    ///
    /// # Errors
    /// When a name is not one that Kubernetes takes, or there is not one address of each family at most, or one
    /// that nobody can reach.
    pub fn machine(
        addresses: impl IntoIterator<Item = IpAddr>,
        namespace: &str,
        name: &str,
        service_account: &str,
    ) -> Result<Self, EnrollmentError> {
        let scope = Scope::Machine(MachineAddresses::new(addresses)?);
        Self::of(scope, namespace, name, service_account)
    }

    fn of(
        scope: Scope,
        namespace: &str,
        name: &str,
        service_account: &str,
    ) -> Result<Self, EnrollmentError> {
        check("namespace", namespace, MAX_LABEL)?;
        check("name", name, MAX_SUBDOMAIN)?;
        check("service account", service_account, MAX_SUBDOMAIN)?;
        Ok(Self {
            scope,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            service_account: service_account.to_owned(),
        })
    }

    /// What is captured.
    pub fn scope(&self) -> &Scope {
        &self.scope
    }

    /// The path of the network namespace; for a machine the agent's own.
    pub fn netns(&self) -> &Path {
        match &self.scope {
            Scope::Pod(path) => path,
            Scope::Machine(_) => Path::new(netns::OWN),
        }
    }

    /// The Kubernetes namespace.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The name of the pod or machine.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The service account, which gives the identity.
    pub fn service_account(&self) -> &str {
        &self.service_account
    }

    /// Whether both say that they are the same pod under the same identity, wherever its namespace is.
    pub(crate) fn is_same_pod(&self, other: &Self) -> bool {
        let same_scope = match (&self.scope, &other.scope) {
            (Scope::Pod(_), Scope::Pod(_)) => true,
            (one, another) => one == another,
        };
        same_scope && self.has_same_name(other) && self.service_account == other.service_account
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

/// The form in a state file: with a path for a pod, with addresses for a machine.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Fields {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    netns: Option<PathBuf>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    machine_addresses: Vec<IpAddr>,
    namespace: String,
    name: String,
    service_account: String,
}

impl TryFrom<Fields> for Enrollment {
    type Error = EnrollmentError;

    fn try_from(fields: Fields) -> Result<Self, Self::Error> {
        let Fields {
            netns,
            machine_addresses,
            namespace,
            name,
            service_account,
        } = fields;
        match netns {
            Some(netns) if machine_addresses.is_empty() => {
                Self::new(netns, &namespace, &name, &service_account)
            }
            Some(netns) => Err(EnrollmentError {
                field: "netns",
                value: netns.to_string_lossy().into_owned(),
                wanted: "either the path of a pod's namespace or the addresses of a machine",
            }),
            None => Self::machine(machine_addresses, &namespace, &name, &service_account),
        }
    }
}

impl From<Enrollment> for Fields {
    fn from(enrollment: Enrollment) -> Self {
        let Enrollment {
            scope,
            namespace,
            name,
            service_account,
        } = enrollment;
        let (netns, machine_addresses) = match scope {
            Scope::Pod(path) => (Some(path), Vec::new()),
            Scope::Machine(addresses) => (None, addresses.iter().collect()),
        };
        Self {
            netns,
            machine_addresses,
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

    fn addresses(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn a_machine_has_one_address_of_a_family() {
        let machine = |texts: &[&str]| Enrollment::machine(addresses(texts), "vms", "db-0", "db");
        for good in [&["10.0.0.1"][..], &["fd00::1"], &["fd00::1", "10.0.0.1"]] {
            assert!(machine(good).is_ok(), "{good:?}");
        }
        for bad in [
            &[][..],
            &["10.0.0.1", "10.0.0.2"],
            &["127.0.0.1"],
            &["::"],
            &["224.0.0.1"],
        ] {
            assert!(machine(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn both_kinds_are_kept_on_disk_and_files_of_earlier_releases_are_read() {
        let pod = Enrollment::new("/run/netns/a", "shop", "web-0", "web").unwrap();
        let machine =
            Enrollment::machine(addresses(&["10.0.0.1", "fd00::1"]), "vms", "db-0", "db").unwrap();
        for enrollment in [&pod, &machine] {
            let text = serde_json::to_string(enrollment).unwrap();
            let read: Enrollment = serde_json::from_str(&text).unwrap();
            assert_eq!(&read, enrollment);
        }
        let old =
            r#"{"netns":"/run/netns/a","namespace":"shop","name":"web-0","serviceAccount":"web"}"#;
        assert_eq!(serde_json::from_str::<Enrollment>(old).unwrap(), pod);
        let neither = r#"{"namespace":"shop","name":"web-0","serviceAccount":"web"}"#;
        assert!(serde_json::from_str::<Enrollment>(neither).is_err());
    }
}
