//! Finding the objects of an installation by their labels, and removing them.
use std::time::Duration;

use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use kube::{
    Api, Client, ResourceExt as _,
    api::{DeleteParams, ListParams},
    core::DynamicObject,
};

use super::{
    Event, InstallError, Progress, api, is_missing, labels, list,
    wait::{Workload, until_gone},
};
use crate::{chart, chart::Manifest, kinds::Kind};

/// An object in the cluster.
#[derive(Clone, Debug)]
pub(super) struct Found {
    pub kind: &'static Kind,
    pub object: DynamicObject,
}

impl Found {
    pub fn is(&self, manifest: &Manifest) -> bool {
        self.kind == manifest.kind()
            && self.object.metadata.name.as_deref() == Some(manifest.name())
            && self.object.metadata.namespace.as_deref() == manifest.namespace()
    }
}

impl std::fmt::Display for Found {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ", self.kind.kind)?;
        if let Some(namespace) = &self.object.metadata.namespace {
            write!(f, "{namespace}/")?;
        }
        f.write_str(&self.object.name_any())
    }
}

/// The objects of the mesh in `namespace` and in the cluster, in the order in which they go. Definitions and
/// the namespace are not among them: others' objects are in them.
///
/// # Errors
/// When the API server does not list them.
pub(super) async fn find(client: &Client, namespace: &str) -> Result<Vec<Found>, InstallError> {
    let mut found = Vec::new();
    for kind in chart::kinds().rev() {
        if matches!(kind.kind, "Namespace" | "CustomResourceDefinition") {
            continue;
        }
        let params = ListParams::default().labels(labels::SELECTOR);
        let listed = list(&api(client, kind, namespace), params, Some).await;
        match listed {
            Ok(objects) => found.extend(objects.into_iter().map(|object| Found { kind, object })),
            // A kind that the cluster does not have has no objects.
            Err(error) if is_missing(&error) => {}
            Err(source) => return Err(InstallError::request("list", kind.plural, source)),
        }
    }
    Ok(found)
}

/// Removes an object. With a workload its pods are gone, too, when this returns.
///
/// # Errors
/// When the API server refuses, or the object stays.
pub(super) async fn remove(
    client: &Client,
    found: &Found,
    patience: Duration,
    progress: &mut dyn Progress,
) -> Result<(), InstallError> {
    let name = found.object.name_any();
    let namespace = found.object.namespace().unwrap_or_default();
    match found.kind.kind {
        "Deployment" => remove_workload::<Deployment>(client, found, patience).await?,
        "DaemonSet" => remove_workload::<DaemonSet>(client, found, patience).await?,
        _ => {
            let api = api(client, found.kind, &namespace);
            gone(api.delete(&name, &DeleteParams::default()).await, found)?;
        }
    }
    progress.event(&Event::Removed(&found.to_string()));
    Ok(())
}

async fn remove_workload<K: Workload>(
    client: &Client,
    found: &Found,
    patience: Duration,
) -> Result<(), InstallError> {
    let object = found.to_string();
    let namespace = found.object.namespace().unwrap_or_default();
    let api: Api<K> = Api::namespaced(client.clone(), &namespace);
    let name = found.object.name_any();
    let Some(workload) = api
        .get_opt(&name)
        .await
        .map_err(|source| InstallError::request("get", &object, source))?
    else {
        return Ok(());
    };
    // In the foreground: the workload stays, marked as going, until its pods are gone. Node agents see by
    // that mark that they are to release their pods.
    gone(api.delete(&name, &DeleteParams::foreground()).await, found)?;
    until_gone(client, &workload, &object, patience).await
}

fn gone<T>(result: kube::Result<T>, found: &Found) -> Result<(), InstallError> {
    match result {
        Ok(_) => Ok(()),
        Err(error) if is_missing(&error) => Ok(()),
        Err(source) => Err(InstallError::request("delete", &found.to_string(), source)),
    }
}
