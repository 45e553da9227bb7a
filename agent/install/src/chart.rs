//! The Helm chart in `deploy/chart`, which is what the installer installs: there is no second copy of a manifest.
mod manifest;
mod schema;
mod template;
mod values;

pub use manifest::{Manifest, ManifestError, to_yaml};
pub use schema::SchemaError;
pub use template::TemplateError;
pub use values::{Overrides, Profile, Values, ValuesError};

use crate::kinds;

/// A file of the chart.
#[derive(Clone, Copy, Debug)]
pub(crate) struct File {
    /// Its path in the chart.
    pub name: &'static str,
    /// Its content.
    pub text: &'static str,
}

macro_rules! file {
    ($name:literal) => {
        File {
            name: $name,
            text: include_str!(concat!("../../../deploy/chart/undermesh/", $name)),
        }
    };
}

pub(crate) const VALUES: File = file!("values.yaml");
pub(crate) const SCHEMA: File = file!("values.schema.json");

/// The profiles beside the default one, which is `values.yaml` as it is.
pub(crate) const PROFILES: [File; 3] = [
    file!("profiles/istiod.yaml"),
    file!("profiles/demo.yaml"),
    file!("profiles/ztunnel.yaml"),
];

/// Definitions that are installed where nobody has installed them yet.
pub(crate) const CRDS: [File; 5] = [
    file!("crds/authorizationpolicies.yaml"),
    file!("crds/peerauthentications.yaml"),
    file!("crds/serviceentries.yaml"),
    file!("crds/workloadentries.yaml"),
    file!("crds/workloadgroups.yaml"),
];

pub(crate) const TEMPLATES: [File; 9] = [
    file!("templates/namespace.yaml"),
    file!("templates/resource-quota.yaml"),
    file!("templates/controller-rbac.yaml"),
    file!("templates/controller-service.yaml"),
    file!("templates/controller.yaml"),
    file!("templates/controller-webhook.yaml"),
    file!("templates/node-rbac.yaml"),
    file!("templates/node.yaml"),
    file!("templates/pod-monitor.yaml"),
];

/// Who installs: the label `app.kubernetes.io/managed-by`, which Helm sets to its own name.
pub const MANAGED_BY: &str = "undermesh";
/// The version of this program and of the chart in it.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Why the chart gives no manifests.
#[derive(Debug, thiserror::Error)]
pub enum ChartError {
    /// A template cannot be rendered.
    #[error("{file}: {source}")]
    Template {
        /// The template.
        file: &'static str,
        /// What is wrong.
        source: TemplateError,
    },
    /// What was rendered is not a list of manifests.
    #[error("{file}: {source}; check the values that it uses")]
    Manifest {
        /// The template.
        file: &'static str,
        /// What is wrong.
        source: ManifestError,
    },
}

/// The chart's objects for `values` in `namespace`, in the order in which they are applied.
///
/// # Errors
/// When a value does not fit where a template uses it.
pub fn render(values: &Values, namespace: &str) -> Result<Vec<Manifest>, ChartError> {
    let scope = values.scope(namespace);
    let mut manifests = Vec::new();
    for File { name: file, text } in TEMPLATES {
        let text = template::render(text, &scope)
            .map_err(|source| ChartError::Template { file, source })?;
        manifests.extend(read(file, &text)?);
    }
    manifests.sort_by_key(Manifest::phase);
    Ok(manifests)
}

/// The definitions that the mesh reads.
///
/// # Errors
/// When a file of the chart is damaged.
pub fn definitions() -> Result<Vec<Manifest>, ChartError> {
    let mut definitions = Vec::new();
    for File { name, text } in CRDS {
        definitions.extend(read(name, text)?);
    }
    Ok(definitions)
}

fn read(file: &'static str, text: &str) -> Result<Vec<Manifest>, ChartError> {
    manifest::read(text).map_err(|source| ChartError::Manifest { file, source })
}

/// The kinds of which the chart has or had objects.
pub(crate) fn kinds() -> impl DoubleEndedIterator<Item = &'static kinds::Kind> {
    kinds::ALL.iter()
}

#[cfg(test)]
mod tests;
