//! Looks at the cluster before anything is changed. It reads, and changes nothing.
use std::collections::{BTreeMap, BTreeSet};

use futures::{StreamExt as _, TryStreamExt as _, stream};
use k8s_openapi::api::{
    apps::v1::{DaemonSet, Deployment},
    authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec},
    core::v1::{Namespace, Node},
};
use kube::{
    Api, Client, ResourceExt as _,
    api::{ListParams, PostParams},
    core::ObjectMeta,
};

use super::{CONCURRENCY, InstallError, Problem, api, install::Plan, is_missing, labels, list};
use crate::{args::ApplyArgs, chart::Manifest, chart::VERSION, kinds::Kind};

/// The oldest API server: ValidatingAdmissionPolicy, and the node's name in tokens.
const OLDEST_CLUSTER: (u32, u32) = (1, 30);
/// The oldest kernel that the node's programs run on.
const OLDEST_KERNEL: (u32, u32) = (5, 15);
/// Most names in a message.
const MAX_NAMES: usize = 10;
/// Enrolls a namespace (Istio).
const MODE: &str = "istio.io/dataplane-mode=ambient";

/// Other meshes' node agents: DaemonSet and usual Helm release.
const OTHER_CAPTURE: [(&str, &str); 2] = [("ztunnel", "ztunnel"), ("istio-cni-node", "istio-cni")];

/// Whether there is an API server that talks to us.
///
/// # Errors
/// When there is none.
pub(super) async fn reachable(client: &Client) -> Result<(), InstallError> {
    let version = client.apiserver_version().await;
    version.map(|_| ()).map_err(InstallError::Unreachable)
}

/// Everything that stands against `plan`.
///
/// # Errors
/// When the cluster cannot be looked at.
pub(super) async fn check(
    client: &Client,
    plan: &Plan,
    previous: Option<&str>,
    args: &ApplyArgs,
) -> Result<Vec<Problem>, InstallError> {
    let mut problems = Vec::new();
    problems.extend(version(client).await?);
    problems.extend(previous.and_then(downgrade));
    problems.extend(kinds(client, plan).await?);
    problems.extend(permissions(client, plan).await?);
    if plan.has("DaemonSet", "undermesh-node") {
        problems.extend(nodes(client).await?);
        problems.extend(other_capture(client).await?);
        problems.extend(labelled(client).await?.map(Problem::AlreadyLabelled));
    }
    problems.extend(control_plane(client, plan).await?);
    problems.extend(elsewhere(client, plan).await?);
    problems.extend(objects(client, plan, args).await?);
    Ok(problems)
}

async fn version(client: &Client) -> Result<Option<Problem>, InstallError> {
    let info = client
        .apiserver_version()
        .await
        .map_err(InstallError::Unreachable)?;
    let found = two_numbers(&format!("{}.{}", info.major, info.minor));
    let old = found.is_none_or(|found| found < OLDEST_CLUSTER);
    Ok(old.then_some(Problem::Version(info.git_version)))
}

/// The first two numbers of a version: `33+`, `5.15.0-91-generic`.
fn two_numbers(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.trim_start_matches('v').split(['.', '-', '+']);
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn downgrade(installed: &str) -> Option<Problem> {
    let newer = two_numbers(installed) > two_numbers(VERSION);
    newer.then(|| Problem::Downgrade {
        installed: installed.to_owned(),
        own: VERSION,
    })
}

/// Kinds of the plan, and of the Gateway API, that the cluster does not have.
async fn kinds(client: &Client, plan: &Plan) -> Result<Vec<Problem>, InstallError> {
    let mut problems = Vec::new();
    let mut served: Vec<(String, Option<BTreeSet<String>>)> = Vec::new();
    let mut kinds: Vec<&'static Kind> = plan.manifests.iter().map(Manifest::kind).collect();
    kinds.dedup();
    for kind in kinds {
        let api_version = kind.api_version();
        if !served.iter().any(|(known, _)| *known == api_version) {
            served.push((api_version.clone(), resources(client, &api_version).await?));
        }
        let there = served
            .iter()
            .find(|(known, _)| *known == api_version)
            .and_then(|(_, names)| names.as_ref())
            .is_some_and(|names| names.contains(kind.kind));
        if !there {
            problems.push(Problem::Kind {
                kind: kind.kind,
                api_version,
                remedy: match kind.group {
                    "monitoring.coreos.com" => {
                        "install the Prometheus operator, or set podMonitor.enabled=false"
                    }
                    _ => "upgrade the cluster to Kubernetes 1.30 or newer",
                },
            });
        }
    }
    let gateways = resources(client, "gateway.networking.k8s.io/v1").await?;
    if gateways.is_none() {
        problems.push(Problem::NoGatewayApi);
    }
    Ok(problems)
}

/// The kinds in a group and version; `None` when the cluster does not serve it.
async fn resources(
    client: &Client,
    api_version: &str,
) -> Result<Option<BTreeSet<String>>, InstallError> {
    let listed = match api_version.contains('/') {
        true => client.list_api_group_resources(api_version).await,
        false => client.list_core_api_resources(api_version).await,
    };
    match listed {
        Ok(listed) => Ok(Some(
            listed.resources.into_iter().map(|it| it.kind).collect(),
        )),
        Err(error) if is_missing(&error) => Ok(None),
        Err(source) => Err(InstallError::request("discover", api_version, source)),
    }
}

/// What the caller may not do of what applying, waiting and pruning take.
async fn permissions(client: &Client, plan: &Plan) -> Result<Vec<Problem>, InstallError> {
    if allowed(client, "*", "*", "*", None).await? {
        return Ok(Vec::new());
    }
    let mut asked = BTreeSet::new();
    for manifest in &plan.manifests {
        for verb in ["get", "create", "patch", "list", "delete"] {
            let kind = manifest.kind();
            asked.insert((kind.group, kind.plural, manifest.namespace(), verb));
        }
    }
    let namespace = Some(plan.namespace.as_str());
    for plural in ["deployments", "daemonsets"] {
        asked.insert(("apps", plural, namespace, "watch"));
    }
    stream::iter(asked)
        .map(|(group, plural, namespace, verb)| async move {
            let allowed = allowed(client, group, plural, verb, namespace).await?;
            Ok((!allowed).then(|| permission(group, plural, verb, namespace)))
        })
        .buffered(CONCURRENCY)
        .try_filter_map(|problem| async move { Ok(problem) })
        .try_collect()
        .await
}

fn permission(group: &str, plural: &str, verb: &'static str, namespace: Option<&str>) -> Problem {
    let mut resource = plural.to_owned();
    if !group.is_empty() {
        resource = format!("{resource}.{group}");
    }
    if let Some(namespace) = namespace {
        resource = format!("{resource} in {namespace}");
    }
    Problem::Permission { verb, resource }
}

async fn allowed(
    client: &Client,
    group: &str,
    plural: &str,
    verb: &str,
    namespace: Option<&str>,
) -> Result<bool, InstallError> {
    let reviews: Api<SelfSubjectAccessReview> = Api::all(client.clone());
    let review = SelfSubjectAccessReview {
        spec: SelfSubjectAccessReviewSpec {
            resource_attributes: Some(ResourceAttributes {
                group: Some(group.to_owned()),
                resource: Some(plural.to_owned()),
                verb: Some(verb.to_owned()),
                namespace: namespace.map(str::to_owned),
                ..ResourceAttributes::default()
            }),
            ..SelfSubjectAccessReviewSpec::default()
        },
        ..SelfSubjectAccessReview::default()
    };
    let answer = reviews
        .create(&PostParams::default(), &review)
        .await
        .map_err(|source| InstallError::request("create", "SelfSubjectAccessReview", source))?;
    Ok(answer.status.is_some_and(|status| status.allowed))
}

async fn nodes(client: &Client) -> Result<Option<Problem>, InstallError> {
    let api: Api<Node> = Api::all(client.clone());
    let kernels = list(&api, ListParams::default(), |node| {
        let name = node.name_any();
        let info = node.status?.node_info?;
        (info.operating_system == "linux").then_some((name, info.kernel_version))
    })
    .await
    .map_err(|source| InstallError::request("list", "nodes", source))?;
    if kernels.is_empty() {
        return Ok(Some(Problem::NoNode));
    }
    let old = kernels
        .into_iter()
        .filter(|(_, kernel)| two_numbers(kernel).is_none_or(|found| found < OLDEST_KERNEL))
        .map(|(name, kernel)| format!("{name} ({kernel})"))
        .collect();
    Ok(some_of(old).map(Problem::Kernel))
}

async fn other_capture(client: &Client) -> Result<Vec<Problem>, InstallError> {
    let sets: Api<DaemonSet> = Api::all(client.clone());
    let found = list(&sets, ListParams::default(), |set| {
        let name = set.name_any();
        let (_, release) = OTHER_CAPTURE.iter().find(|(other, _)| *other == name)?;
        let namespace = set.namespace().unwrap_or_default();
        Some(Problem::OtherCapture(
            format!("DaemonSet {namespace}/{name}"),
            release,
        ))
    });
    found
        .await
        .map_err(|source| InstallError::request("list", "daemonsets", source))
}

/// istiod's Deployment in `namespace`.
///
/// # Errors
/// When the API server does not list it.
pub(super) async fn istiod(
    client: &Client,
    namespace: &str,
) -> Result<Option<Deployment>, InstallError> {
    let api: Api<Deployment> = Api::namespaced(client.clone(), namespace);
    let params = ListParams::default().labels("app=istiod");
    let found = list(&api, params, Some)
        .await
        .map_err(|source| InstallError::request("list", "deployments", source))?;
    Ok(found.into_iter().next())
}

/// One control plane, and one that serves the nodes.
async fn control_plane(client: &Client, plan: &Plan) -> Result<Option<Problem>, InstallError> {
    let istiod = istiod(client, &plan.namespace).await?;
    let own = plan.has("Deployment", "undermesh-controller");
    Ok(match istiod {
        None if own => None,
        None => Some(Problem::NoIstiod(plan.namespace.clone())),
        Some(istiod) => {
            let name = format!("Deployment {}/{}", plan.namespace, istiod.name_any());
            if own {
                Some(Problem::OtherController(name))
            } else {
                (!serves_ambient(&istiod)).then_some(Problem::NotAmbient(name))
            }
        }
    })
}

fn serves_ambient(istiod: &Deployment) -> bool {
    let pod = istiod
        .spec
        .as_ref()
        .and_then(|spec| spec.template.spec.as_ref());
    let containers = pod.into_iter().flat_map(|pod| &pod.containers);
    containers
        .flat_map(|container| container.env.iter().flatten())
        .any(|variable| {
            variable.name == "PILOT_ENABLE_AMBIENT" && variable.value.as_deref() == Some("true")
        })
}

/// Another undermesh.
async fn elsewhere(client: &Client, plan: &Plan) -> Result<Vec<Problem>, InstallError> {
    let params = || ListParams::default().labels(labels::SELECTOR);
    let sets: Api<DaemonSet> = Api::all(client.clone());
    let deployments: Api<Deployment> = Api::all(client.clone());
    let mut namespaces = BTreeSet::new();
    let sets = list(&sets, params(), |it| it.namespace())
        .await
        .map_err(|source| InstallError::request("list", "daemonsets", source))?;
    let deployments = list(&deployments, params(), |it| it.namespace())
        .await
        .map_err(|source| InstallError::request("list", "deployments", source))?;
    namespaces.extend(sets.into_iter().chain(deployments));
    namespaces.remove(&plan.namespace);
    Ok(namespaces.into_iter().map(Problem::Elsewhere).collect())
}

/// Objects of the plan that are there and are not ours to change.
async fn objects(
    client: &Client,
    plan: &Plan,
    args: &ApplyArgs,
) -> Result<Vec<Problem>, InstallError> {
    let found: Vec<(&Manifest, ObjectMeta)> = stream::iter(&plan.manifests)
        .map(|manifest| existing(client, manifest))
        .buffered(CONCURRENCY)
        .try_filter_map(|found| async move { Ok(found) })
        .try_collect()
        .await?;
    let mut problems = Vec::new();
    let mut foreign: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (manifest, metadata) in found {
        match manifest.kind().kind {
            "Namespace" if metadata.deletion_timestamp.is_some() => {
                problems.push(Problem::Terminating(manifest.name().to_owned()));
            }
            // Others may have made these, and both may use them.
            "Namespace" | "CustomResourceDefinition" => {}
            _ if args.force_conflicts || labels::is_ours(&metadata) => {}
            _ => foreign
                .entry(labels::owner(&metadata))
                .or_default()
                .push(manifest.to_string()),
        }
    }
    problems.extend(foreign.into_iter().filter_map(|(owner, objects)| {
        let objects = some_of(objects)?;
        Some(Problem::Foreign { objects, owner })
    }));
    Ok(problems)
}

async fn existing<'a>(
    client: &Client,
    manifest: &'a Manifest,
) -> Result<Option<(&'a Manifest, ObjectMeta)>, InstallError> {
    let namespace = manifest.namespace().unwrap_or_default();
    let found = api(client, manifest.kind(), namespace)
        .get_opt(manifest.name())
        .await
        .map_err(|source| InstallError::request("get", &manifest.to_string(), source))?;
    Ok(found.map(|found| (manifest, found.metadata)))
}

/// Names of the namespaces that are enrolled.
///
/// # Errors
/// When the API server does not list them.
pub(super) async fn labelled(client: &Client) -> Result<Option<String>, InstallError> {
    let api: Api<Namespace> = Api::all(client.clone());
    let params = ListParams::default().labels(MODE);
    let names = list(&api, params, |it| Some(it.name_any()))
        .await
        .map_err(|source| InstallError::request("list", "namespaces", source))?;
    Ok(some_of(names))
}

/// The first names, and how many more there are.
fn some_of(mut names: Vec<String>) -> Option<String> {
    let more = names.len().saturating_sub(MAX_NAMES);
    names.truncate(MAX_NAMES);
    if more > 0 {
        names.push(format!("and {more} more"));
    }
    (!names.is_empty()).then(|| names.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_they_come() {
        for (text, wanted) in [
            ("1.33+", Some((1, 33))),
            ("v1.30.2-eks-1", Some((1, 30))),
            ("5.15.0-91-generic", Some((5, 15))),
            ("6.1-rc3", Some((6, 1))),
            ("6", None),
            ("", None),
            ("a.b", None),
        ] {
            assert_eq!(two_numbers(text), wanted, "{text}");
        }
    }

    #[test]
    fn only_an_older_program_is_a_downgrade() {
        assert!(downgrade("99.0.0").is_some());
        assert!(downgrade(VERSION).is_none());
        assert!(downgrade("0.0.1").is_none());
    }

    #[test]
    fn long_lists_are_cut() {
        let names = |count: usize| (0..count).map(|n| n.to_string()).collect();
        assert_eq!(some_of(names(0)), None);
        assert_eq!(some_of(names(2)).unwrap(), "0, 1");
        assert!(some_of(names(12)).unwrap().ends_with("9, and 2 more"));
    }
}
