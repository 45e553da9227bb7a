//! What an installation remembers of itself: the values it was made with, so that an upgrade keeps them.
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Api, Client};
use serde_json::json;

use super::{InstallError, labels};
use crate::chart::{MANAGED_BY, Manifest, Overrides, Profile, VERSION};

/// The ConfigMap in the namespace of the mesh.
const NAME: &str = "undermesh-install";

/// How undermesh was installed.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Record {
    /// The version of the program that did it.
    pub version: String,
    pub profile: Profile,
    pub overrides: Overrides,
}

impl Record {
    /// What this program is about to do.
    pub fn new(profile: Profile, overrides: Overrides) -> Self {
        Self {
            version: VERSION.to_owned(),
            profile,
            overrides,
        }
    }

    /// The record of the installation in `namespace`; `None` when there is none.
    ///
    /// # Errors
    /// When it cannot be read or understood.
    pub async fn load(client: &Client, namespace: &str) -> Result<Option<Self>, InstallError> {
        let maps: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
        let object = format!("ConfigMap {namespace}/{NAME}");
        let found = maps
            .get_opt(NAME)
            .await
            .map_err(|source| InstallError::request("get", &object, source))?;
        match found {
            None => Ok(None),
            Some(map) => Self::read(&map)
                .map(Some)
                .ok_or_else(|| InstallError::Record(format!("{namespace}/{NAME}"))),
        }
    }

    fn read(map: &ConfigMap) -> Option<Self> {
        let data = map.data.as_ref()?;
        Some(Self {
            version: data.get("version")?.clone(),
            profile: serde_norway::from_str(data.get("profile")?).ok()?,
            overrides: serde_norway::from_str(data.get("values")?).ok()?,
        })
    }

    /// The object that keeps it.
    ///
    /// # Errors
    /// When the values cannot be written as YAML.
    pub fn manifest(&self, namespace: &str) -> Result<Manifest, InstallError> {
        let print = |error: serde_norway::Error| InstallError::Print(error.to_string());
        let values = serde_norway::to_string(&self.overrides).map_err(print)?;
        let object = json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {
                "name": NAME,
                "namespace": namespace,
                "labels": {
                    "app.kubernetes.io/name": labels::MESH,
                    labels::PART_OF: labels::MESH,
                    "app.kubernetes.io/component": "mesh",
                    "app.kubernetes.io/version": self.version,
                    labels::MANAGED_BY: MANAGED_BY,
                },
            },
            "data": {
                "version": self.version,
                "profile": self.profile.to_string(),
                "values": values,
            },
        });
        Manifest::new(object).map_err(|error| InstallError::Print(error.to_string()))
    }
}
