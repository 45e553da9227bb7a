//! `undermesh uninstall`: the reverse order, so that nothing asks for what is gone.
use k8s_openapi::{
    api::{
        coordination::v1::Lease,
        core::v1::{ConfigMap, Pod, Secret},
    },
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api, Client, Resource, ResourceExt as _,
    api::{DeleteParams, ListParams},
};

use super::{
    Event, InstallError, Problem, Progress, Removed, install::absent, is_missing, labels, list,
    preflight, remove,
};
use crate::args::UninstallArgs;

/// The roots that a controller writes into every namespace, under Istio's name.
const ROOTS: &str = "istio-ca-root-cert";
/// The lease by which the controller's replicas elect one.
const LEASE: &str = "undermesh-controller";
/// The key of the certificate authority.
const AUTHORITY: &str = "istio-ca-secret";
/// Says of a pod that it is captured (Istio).
const REDIRECTION: &str = "ambient.istio.io/redirection";

/// What [`uninstall`] would remove, apart from what the controller made.
///
/// # Errors
/// When there is no installation of this installer.
pub async fn what_goes(args: &UninstallArgs, client: &Client) -> Result<Vec<String>, InstallError> {
    let found = installed(&args.target.namespace, client).await?;
    Ok(found.iter().map(ToString::to_string).collect())
}

/// Removes undermesh. Pods leave the mesh before their node's agent goes.
///
/// # Errors
/// When there is no installation of this installer, or something stays.
pub async fn uninstall(
    args: &UninstallArgs,
    client: &Client,
    progress: &mut dyn Progress,
) -> Result<Removed, InstallError> {
    let namespace = &args.target.namespace;
    progress.event(&Event::Step("Looking for the installation"));
    let found = installed(namespace, client).await?;
    if let Some(names) = preflight::labelled(client).await? {
        progress.event(&Event::Problem(&Problem::StillLabelled(names)));
    }
    // Their accounts go last, so this holds when an earlier try was cut short, too.
    let had = |name: &str| found.iter().any(|it| it.object.name_any() == name);
    let (had_controller, had_nodes) = (had("undermesh-controller"), had("undermesh-node"));
    progress.event(&Event::Step("Removing it"));
    let mut removed = Removed {
        namespace: namespace.clone(),
        ..Removed::default()
    };
    for found in &found {
        remove::remove(client, found, args.target.timeout, progress).await?;
        removed.objects.push(found.to_string());
    }
    if had_nodes {
        removed.captured = captured(client).await?;
    }
    let mut leftovers = Leftovers {
        client,
        progress,
        removed,
    };
    if had_controller {
        leftovers.of_controller(namespace).await?;
    }
    leftovers.kept(args).await?;
    Ok(leftovers.removed)
}

async fn installed(namespace: &str, client: &Client) -> Result<Vec<remove::Found>, InstallError> {
    preflight::reachable(client).await?;
    let mut found = remove::find(client, namespace).await?;
    if !found.iter().any(|it| labels::is_ours(&it.object.metadata)) {
        return Err(absent(namespace, &found));
    }
    found.retain(|it| labels::is_ours(&it.object.metadata));
    Ok(found)
}

/// Pods that still say they are captured though their agent is gone.
async fn captured(client: &Client) -> Result<Vec<String>, InstallError> {
    let pods: Api<Pod> = Api::all(client.clone());
    list(&pods, ListParams::default(), |pod| {
        let marked = pod
            .annotations()
            .get(REDIRECTION)
            .is_some_and(|it| it == "enabled");
        marked.then(|| format!("{}/{}", pod.namespace().unwrap_or_default(), pod.name_any()))
    })
    .await
    .map_err(|source| InstallError::request("list", "pods", source))
}

/// What the mesh made while it ran.
struct Leftovers<'a> {
    client: &'a Client,
    progress: &'a mut dyn Progress,
    removed: Removed,
}

impl Leftovers<'_> {
    /// What is worth nothing without a controller, unless istiod is there to go on with it.
    async fn of_controller(&mut self, namespace: &str) -> Result<(), InstallError> {
        self.delete::<Lease>(namespace, LEASE).await?;
        if preflight::istiod(self.client, namespace).await?.is_some() {
            return Ok(());
        }
        let maps: Api<ConfigMap> = Api::all(self.client.clone());
        let params = ListParams::default().fields(&format!("metadata.name={ROOTS}"));
        let namespaces = list(&maps, params, |map| map.namespace())
            .await
            .map_err(|source| InstallError::request("list", "configmaps", source))?;
        for namespace in namespaces {
            self.delete::<ConfigMap>(&namespace, ROOTS).await?;
        }
        Ok(())
    }

    /// What somebody may want to have again after the next installation.
    async fn kept(&mut self, args: &UninstallArgs) -> Result<(), InstallError> {
        let namespace = &args.target.namespace;
        let definitions = self.definitions().await?;
        if args.purge {
            self.delete::<Secret>(namespace, AUTHORITY).await?;
            for name in definitions {
                self.delete_definition(&name).await?;
            }
        } else {
            let secrets: Api<Secret> = Api::namespaced(self.client.clone(), namespace);
            let secret = format!("Secret {namespace}/{AUTHORITY}");
            let there = secrets
                .get_metadata_opt(AUTHORITY)
                .await
                .map_err(|source| InstallError::request("get", &secret, source))?;
            if there.is_some() {
                let note = format!("{secret}, the certificate authority; remove it with --purge");
                self.removed.left.push(note);
            }
            let note = |name| {
                format!(
                    "CustomResourceDefinition {name}; remove it, and all its objects, with --purge"
                )
            };
            self.removed.left.extend(definitions.into_iter().map(note));
        }
        let note =
            format!("Namespace {namespace}; remove it with `kubectl delete namespace {namespace}`");
        self.removed.left.push(note);
        Ok(())
    }

    /// The definitions that an installation made.
    async fn definitions(&self) -> Result<Vec<String>, InstallError> {
        let api: Api<CustomResourceDefinition> = Api::all(self.client.clone());
        let params = ListParams::default().labels(labels::SELECTOR);
        list(&api, params, |it| Some(it.name_any()))
            .await
            .map_err(|source| InstallError::request("list", "customresourcedefinitions", source))
    }

    async fn delete<K>(&mut self, namespace: &str, name: &str) -> Result<(), InstallError>
    where
        K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope>
            + Clone
            + std::fmt::Debug
            + serde::de::DeserializeOwned,
    {
        let api: Api<K> = Api::namespaced(self.client.clone(), namespace);
        let object = format!("{} {namespace}/{name}", K::kind(&()));
        let result = api.delete(name, &DeleteParams::default()).await;
        self.note(object, result.map(|_| ()))
    }

    async fn delete_definition(&mut self, name: &str) -> Result<(), InstallError> {
        let api: Api<CustomResourceDefinition> = Api::all(self.client.clone());
        let result = api.delete(name, &DeleteParams::default()).await;
        self.note(
            format!("CustomResourceDefinition {name}"),
            result.map(|_| ()),
        )
    }

    fn note(&mut self, object: String, result: kube::Result<()>) -> Result<(), InstallError> {
        match result {
            Ok(()) => {
                self.progress.event(&Event::Removed(&object));
                self.removed.objects.push(object);
                Ok(())
            }
            Err(error) if is_missing(&error) => Ok(()),
            Err(source) => Err(InstallError::request("delete", &object, source)),
        }
    }
}
