//! `undermesh install` and `undermesh upgrade`: checked, applied in order, waited for, pruned.
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use kube::Client;
use serde_json::json;

use super::{
    Event, InstallError, Progress, Severity, Summary, apply, labels, preflight, record::Record,
    remove, wait,
};
use crate::{
    args::{ApplyArgs, InstallArgs, ManifestForm, Target, UpgradeArgs},
    chart::{self, Manifest, Values},
};

/// What is to be in the cluster.
pub(super) struct Plan {
    pub namespace: String,
    /// In the order in which they are applied.
    pub manifests: Vec<Manifest>,
}

impl Plan {
    fn new(record: &Record, namespace: &str) -> Result<Self, InstallError> {
        let mut overrides = record.overrides.clone();
        // With Helm somebody else makes the namespace, so the chart does not by itself.
        let made_here = json!({ "namespace": { "create": true } });
        overrides.extend(serde_json::from_value(made_here).unwrap_or_default());
        let values = Values::new(record.profile, &overrides)?;
        let mut manifests = chart::render(&values, namespace)?;
        manifests.extend(chart::definitions()?);
        manifests.push(record.manifest(namespace)?);
        manifests.sort_by_key(Manifest::phase);
        Ok(Self {
            namespace: namespace.to_owned(),
            manifests,
        })
    }

    /// Whether it has an object of this kind with this name.
    pub fn has(&self, kind: &str, name: &str) -> bool {
        let mut manifests = self.manifests.iter();
        manifests.any(|it| it.kind().kind == kind && it.name() == name)
    }
}

/// The manifests that [`install`] would apply, as text.
///
/// # Errors
/// When the values do not fit.
pub fn render_install(args: &InstallArgs) -> Result<String, InstallError> {
    let record = Record::new(args.profile, args.values.overrides()?);
    print(
        &Plan::new(&record, &args.target.namespace)?,
        args.apply.output,
    )
}

/// The manifests that [`upgrade`] would apply, as text.
///
/// # Errors
/// When there is no installation, or the values do not fit.
pub async fn render_upgrade(args: &UpgradeArgs, client: &Client) -> Result<String, InstallError> {
    let (_, record) = upgraded(args, client).await?;
    print(
        &Plan::new(&record, &args.target.namespace)?,
        args.apply.output,
    )
}

fn print(plan: &Plan, form: ManifestForm) -> Result<String, InstallError> {
    match form {
        ManifestForm::Yaml => {
            chart::to_yaml(&plan.manifests).map_err(|error| InstallError::Print(error.to_string()))
        }
        ManifestForm::Json => {
            let items: Vec<_> = plan.manifests.iter().map(Manifest::object).collect();
            let list = json!({ "apiVersion": "v1", "kind": "List", "items": items });
            serde_json::to_string_pretty(&list)
                .map(|text| text + "\n")
                .map_err(|error| InstallError::Print(error.to_string()))
        }
    }
}

/// Installs undermesh, or makes an installation what the arguments say.
///
/// # Errors
/// When the cluster does not take it, or it does not become ready.
pub async fn install(
    args: &InstallArgs,
    client: &Client,
    progress: &mut dyn Progress,
) -> Result<Summary, InstallError> {
    let record = Record::new(args.profile, args.values.overrides()?);
    let plan = Plan::new(&record, &args.target.namespace)?;
    preflight::reachable(client).await?;
    let previous = Record::load(client, &args.target.namespace).await?;
    let previous = previous.map(|record| record.version);
    carry_out(&plan, previous, &args.target, &args.apply, client, progress).await
}

/// Brings an installation to this program's version, with its values unless others are given.
///
/// # Errors
/// When there is no installation, the cluster does not take the new one, or it does not become ready.
pub async fn upgrade(
    args: &UpgradeArgs,
    client: &Client,
    progress: &mut dyn Progress,
) -> Result<Summary, InstallError> {
    preflight::reachable(client).await?;
    let (previous, record) = upgraded(args, client).await?;
    let plan = Plan::new(&record, &args.target.namespace)?;
    let previous = Some(previous);
    carry_out(&plan, previous, &args.target, &args.apply, client, progress).await
}

/// The version that is there, and the record of what is to be.
async fn upgraded(args: &UpgradeArgs, client: &Client) -> Result<(String, Record), InstallError> {
    let namespace = &args.target.namespace;
    let Some(old) = Record::load(client, namespace).await? else {
        let found = remove::find(client, namespace).await?;
        return Err(absent(namespace, &found));
    };
    let mut overrides = old.overrides;
    overrides.extend(args.values.overrides()?);
    let profile = args.profile.unwrap_or(old.profile);
    Ok((old.version, Record::new(profile, overrides)))
}

/// Why there is no installation of ours.
pub(super) fn absent(namespace: &str, found: &[remove::Found]) -> InstallError {
    let helm =
        |it: &remove::Found| labels::label(&it.object.metadata, labels::MANAGED_BY) == Some("Helm");
    if found.iter().any(helm) {
        InstallError::Helm(namespace.to_owned())
    } else {
        InstallError::NotInstalled(namespace.to_owned())
    }
}

async fn carry_out(
    plan: &Plan,
    previous: Option<String>,
    target: &Target,
    args: &ApplyArgs,
    client: &Client,
    progress: &mut dyn Progress,
) -> Result<Summary, InstallError> {
    check(plan, previous.as_deref(), args, client, progress).await?;
    let mut summary = Summary {
        namespace: plan.namespace.clone(),
        version: chart::VERSION.to_owned(),
        previous,
        ..Summary::default()
    };
    progress.event(&Event::Step("Applying the manifests"));
    for manifest in &plan.manifests {
        summary.count(apply::apply(client, manifest, args, progress).await?);
        // What comes later asks what came before: nodes their controller, the webhook's callers its service.
        match manifest.kind().kind {
            "Deployment" => {
                wait::until_ready::<Deployment>(client, manifest, target.timeout, progress).await?;
            }
            "DaemonSet" => {
                let nodes =
                    wait::until_ready::<DaemonSet>(client, manifest, target.timeout, progress)
                        .await?;
                summary.nodes = Some(nodes);
            }
            _ => {}
        }
    }
    summary.removed = prune(plan, target, client, progress).await?;
    Ok(summary)
}

async fn check(
    plan: &Plan,
    previous: Option<&str>,
    args: &ApplyArgs,
    client: &Client,
    progress: &mut dyn Progress,
) -> Result<(), InstallError> {
    progress.event(&Event::Step("Checking the cluster"));
    let problems = preflight::check(client, plan, previous, args).await?;
    for problem in &problems {
        progress.event(&Event::Problem(problem));
    }
    let errors = problems
        .iter()
        .filter(|problem| problem.severity() == Severity::Error)
        .count();
    if errors > 0 && !args.ignore_problems {
        return Err(InstallError::Preflight(errors));
    }
    Ok(())
}

/// Removes what an earlier version or another profile left.
async fn prune(
    plan: &Plan,
    target: &Target,
    client: &Client,
    progress: &mut dyn Progress,
) -> Result<usize, InstallError> {
    let found = remove::find(client, &plan.namespace).await?;
    let stale: Vec<_> = found
        .into_iter()
        .filter(|it| labels::is_ours(&it.object.metadata))
        .filter(|it| !plan.manifests.iter().any(|manifest| it.is(manifest)))
        .collect();
    if !stale.is_empty() {
        progress.event(&Event::Step("Removing what is no longer part of it"));
    }
    for found in &stale {
        remove::remove(client, found, target.timeout, progress).await?;
    }
    Ok(stale.len())
}
