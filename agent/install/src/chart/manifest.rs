//! One object of the chart, and reading it from YAML.
use std::fmt;

use kube::core::{DynamicObject, ObjectMeta};
use serde::Deserialize as _;
use serde_json::Value;

use crate::kinds::{Kind, Scope};

/// Why text is not a list of manifests.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// It is not YAML.
    #[error("not YAML: {0}")]
    Yaml(#[from] serde_norway::Error),
    /// It is not an object of Kubernetes.
    #[error("a document is not an object with apiVersion, kind and metadata.name")]
    NotAnObject,
    /// A kind that the installer does not know.
    #[error("{api_version} {kind} is not a kind that is installed")]
    Kind {
        /// Its `apiVersion`.
        api_version: String,
        /// Its `kind`.
        kind: String,
    },
}

/// An object that is to be in the cluster.
#[derive(Clone, Debug, PartialEq)]
pub struct Manifest {
    kind: &'static Kind,
    phase: usize,
    object: DynamicObject,
}

impl Manifest {
    /// Reads an object.
    ///
    /// # Errors
    /// When it is not an object of a kind that is installed.
    pub(crate) fn new(value: Value) -> Result<Self, ManifestError> {
        let text = |field: &str| value.get(field).and_then(Value::as_str);
        let (Some(api_version), Some(name)) = (text("apiVersion"), text("kind")) else {
            return Err(ManifestError::NotAnObject);
        };
        let (phase, kind) = Kind::find(api_version, name).ok_or_else(|| ManifestError::Kind {
            api_version: api_version.to_owned(),
            kind: name.to_owned(),
        })?;
        let object: DynamicObject =
            serde_json::from_value(value).map_err(|_| ManifestError::NotAnObject)?;
        let ObjectMeta {
            name: Some(_),
            namespace,
            ..
        } = &object.metadata
        else {
            return Err(ManifestError::NotAnObject);
        };
        if namespace.is_some() != (kind.scope == Scope::Namespaced) {
            return Err(ManifestError::NotAnObject);
        }
        Ok(Self {
            kind,
            phase,
            object,
        })
    }

    /// Its kind.
    pub fn kind(&self) -> &'static Kind {
        self.kind
    }

    /// When it is applied, relative to the others.
    pub(crate) fn phase(&self) -> usize {
        self.phase
    }

    /// Its name.
    pub fn name(&self) -> &str {
        self.object.metadata.name.as_deref().unwrap_or_default()
    }

    /// Its namespace; `None` in the cluster.
    pub fn namespace(&self) -> Option<&str> {
        self.object.metadata.namespace.as_deref()
    }

    /// The object as it is sent.
    pub fn object(&self) -> &DynamicObject {
        &self.object
    }
}

impl fmt::Display for Manifest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.kind.kind)?;
        if let Some(namespace) = self.namespace() {
            write!(f, "{namespace}/")?;
        }
        f.write_str(self.name())
    }
}

/// Reads YAML documents; empty ones are passed over.
pub(super) fn read(text: &str) -> Result<Vec<Manifest>, ManifestError> {
    let mut manifests = Vec::new();
    for document in serde_norway::Deserializer::from_str(text) {
        match Value::deserialize(document)? {
            Value::Null => {}
            value => manifests.push(Manifest::new(value)?),
        }
    }
    Ok(manifests)
}

/// Writes YAML documents, as `kubectl apply -f -` takes them.
///
/// # Errors
/// When an object cannot be written as YAML.
pub fn to_yaml(manifests: &[Manifest]) -> Result<String, serde_norway::Error> {
    let mut out = String::new();
    for manifest in manifests {
        out.push_str("---\n");
        out.push_str(&serde_norway::to_string(&manifest.object)?);
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_are_told_apart_and_written_back() {
        let text = "# nothing\n---\napiVersion: v1\nkind: Service\nmetadata:\n  name: a\n  namespace: n\n---\n";
        let manifests = read(text).unwrap();
        assert_eq!(manifests.len(), 1);
        assert_eq!(manifests[0].to_string(), "Service n/a");
        assert_eq!(read(&to_yaml(&manifests).unwrap()).unwrap(), manifests);
    }

    #[test]
    fn what_is_no_object_to_install_is_refused() {
        for text in [
            "a: b",
            "- 1",
            "apiVersion: v1\nkind: Service\nmetadata: {}",
            "apiVersion: v1\nkind: Service\nmetadata: {name: without-namespace}",
            "apiVersion: v1\nkind: Namespace\nmetadata: {name: a, namespace: b}",
            "apiVersion: v1\nkind: Secret\nmetadata: {name: a, namespace: b}",
            "a: [",
        ] {
            assert!(read(text).is_err(), "{text}");
        }
    }
}
