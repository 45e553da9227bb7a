//! What a request asks for, read from its path and query.
use std::{collections::BTreeMap, time::Duration};

use super::{selector::Selector, status::Status};

/// Where a request goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// `/version`.
    Version,
    /// `/healthz`, `/livez`, `/readyz`.
    Health,
    /// `/api`.
    CoreVersions,
    /// `/apis`.
    Groups,
    /// `/apis/GROUP`.
    Group(String),
    /// `/api/v1` or `/apis/GROUP/VERSION`.
    Resources { group: String, version: String },
    /// Objects of one resource type.
    Objects(Address),
}

/// A resource type and, as far as given, a namespace, an object and a part of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Address {
    pub group: String,
    pub version: String,
    pub plural: String,
    pub namespace: Option<String>,
    pub name: Option<String>,
    pub subresource: Option<String>,
}

impl Target {
    pub fn parse(path: &str) -> Option<Self> {
        let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
        match parts.as_slice() {
            ["version"] => Some(Self::Version),
            ["healthz" | "livez" | "readyz"] => Some(Self::Health),
            ["api"] => Some(Self::CoreVersions),
            ["apis"] => Some(Self::Groups),
            ["apis", group] => Some(Self::Group((*group).to_owned())),
            ["api", version, rest @ ..] => Self::inside("", version, rest),
            ["apis", group, version, rest @ ..] => Self::inside(group, version, rest),
            _ => None,
        }
    }

    fn inside(group: &str, version: &str, rest: &[&str]) -> Option<Self> {
        let (group, version) = (group.to_owned(), version.to_owned());
        let (namespace, rest) = match rest {
            [] => return Some(Self::Resources { group, version }),
            // A namespace's own parts; everything else below it is in it.
            ["namespaces", _, "status" | "finalize"] | ["namespaces"] | ["namespaces", _] => {
                (None, rest)
            }
            ["namespaces", namespace, rest @ ..] => (Some((*namespace).to_owned()), rest),
            _ => (None, rest),
        };
        let (plural, name, subresource) = match rest {
            [plural] => (plural, None, None),
            [plural, name] => (plural, Some(name), None),
            [plural, name, subresource] => (plural, Some(name), Some(subresource)),
            _ => return None,
        };
        Some(Self::Objects(Address {
            group,
            version,
            plural: (*plural).to_owned(),
            namespace,
            name: name.map(|it| (*it).to_owned()),
            subresource: subresource.map(|it| (*it).to_owned()),
        }))
    }
}

/// The parameters of a request.
#[derive(Clone, Debug, Default)]
pub(super) struct Query(BTreeMap<String, String>);

impl Query {
    pub fn parse(query: &str) -> Self {
        Self(
            form_urlencoded::parse(query.as_bytes())
                .into_owned()
                .collect(),
        )
    }

    pub fn text(&self, name: &str) -> &str {
        self.0.get(name).map_or("", String::as_str)
    }

    pub fn is_set(&self, name: &str) -> bool {
        matches!(self.text(name), "true" | "1")
    }

    pub fn number(&self, name: &str) -> Result<Option<u64>, Status> {
        match self.text(name) {
            "" => Ok(None),
            text => text
                .parse()
                .map(Some)
                .map_err(|_| Status::bad_request(format!("{name}: {text:?} is not a number"))),
        }
    }

    pub fn seconds(&self, name: &str) -> Result<Option<Duration>, Status> {
        Ok(self.number(name)?.map(Duration::from_secs))
    }

    pub fn selector(&self) -> Result<Selector, Status> {
        Selector::parse(self.text("labelSelector"), self.text("fieldSelector"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(path: &str) -> Address {
        match Target::parse(path) {
            Some(Target::Objects(address)) => address,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn namespaces_are_objects_and_places() {
        assert_eq!(address("/api/v1/namespaces/shop").plural, "namespaces");
        let status = address("/api/v1/namespaces/shop/status");
        assert_eq!(status.subresource.as_deref(), Some("status"));
        let pods = address("/api/v1/namespaces/shop/pods");
        assert_eq!(
            (pods.plural.as_str(), pods.namespace.as_deref()),
            ("pods", Some("shop"))
        );
        let token = address("/api/v1/namespaces/a/serviceaccounts/b/token");
        assert_eq!(token.subresource.as_deref(), Some("token"));
    }

    #[test]
    fn groups_and_versions_are_found() {
        let lease = address("/apis/coordination.k8s.io/v1/namespaces/a/leases/b");
        assert_eq!(lease.group, "coordination.k8s.io");
        assert_eq!(lease.name.as_deref(), Some("b"));
        assert!(matches!(
            Target::parse("/apis/security.istio.io/v1"),
            Some(Target::Resources { .. })
        ));
        assert_eq!(Target::parse("/metrics"), None);
    }
}
