//! What is wrong between objects that are each in order: selectors that meet nothing, policies over workloads that
//! are not in the mesh, rivals.
use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::Arc,
};

use undermesh_control::{
    Diagnostic, Settings, Severity, Source,
    diagnostic::quote,
    path::Path,
    resources::{
        Resource,
        core::Namespace,
        field::{Labels, Problem},
        metadata::Metadata,
        networking::ServiceEntry,
        security::{Mode, PeerAuthentication, PolicyTarget},
    },
};
use undermesh_model::{Delta, workload::Tunnel};

use crate::network::NetworkPolicy;

/// The label that takes a namespace or a pod into the mesh.
const DATAPLANE_MODE: &str = "istio.io/dataplane-mode";
/// The label that has sidecars put into the pods of a namespace.
const INJECTION: &str = "istio-injection";

/// What is wrong between the objects; `parts` is what they were translated to.
pub(crate) fn run(
    settings: &Settings,
    resources: &[Resource],
    network_policies: &[NetworkPolicy],
    parts: &Delta,
) -> Vec<Diagnostic> {
    let scene = Scene::new(settings, resources, parts);
    let mut findings = Vec::new();
    for resource in resources {
        match resource {
            Resource::Namespace(it) => check_namespace(it, &mut findings),
            Resource::Pod(it) => check_mode(&it.metadata, &mut findings),
            Resource::ServiceEntry(it) => scene.check_service_entry(it, &mut findings),
            Resource::AuthorizationPolicy(it) => {
                if let PolicyTarget::Workloads(selector) = &it.target {
                    scene.check_policy(&it.metadata, selector, NOT_ENFORCED, &mut findings);
                }
            }
            Resource::PeerAuthentication(it) if demands_mtls(it) => {
                scene.check_policy(&it.metadata, &it.selector, NOT_STRICT, &mut findings);
            }
            _ => {}
        }
    }
    check_rivals(settings, resources, &mut findings);
    findings.extend(scene.check_network_policies(network_policies));
    findings
}

const NOT_ENFORCED: &str = "is not enforced";
const NOT_STRICT: &str = "refuses no plain connection";

fn demands_mtls(source: &PeerAuthentication) -> bool {
    let modes = source.ports.iter().map(|(_, mode)| *mode);
    modes.chain([source.mode]).any(|mode| mode == Mode::Strict)
}

fn warn(metadata: &Metadata, path: Path, message: String, remedy: &str) -> Diagnostic {
    metadata.diagnostic(Problem {
        severity: Severity::Warning,
        path,
        message,
        remedy: remedy.to_owned(),
    })
}

fn label(name: &'static str) -> Path {
    Path::root().key("metadata").key("labels").key(name)
}

fn spec(field: &'static str) -> Path {
    Path::root().key("spec").key(field)
}

fn check_namespace(namespace: &Namespace, findings: &mut Vec<Diagnostic>) {
    let metadata = &namespace.metadata;
    check_mode(metadata, findings);
    if metadata.labels.is(DATAPLANE_MODE, "ambient") && metadata.labels.is(INJECTION, "enabled") {
        let message =
            "pods with a sidecar are left to it, and this label gives them one".to_owned();
        findings.push(warn(
            metadata,
            label(INJECTION),
            message,
            "remove the label and restart the pods",
        ));
    }
}

fn check_mode(metadata: &Metadata, findings: &mut Vec<Diagnostic>) {
    let Some(mode) = metadata.labels.get(DATAPLANE_MODE) else {
        return;
    };
    if !matches!(&**mode, "ambient" | "none") {
        let message = format!("{} is no mode and has no effect", quote(mode));
        findings.push(warn(
            metadata,
            label(DATAPLANE_MODE),
            message,
            "write ambient or none",
        ));
    }
}

/// What policies can select.
struct Member<'a> {
    labels: &'a Labels,
    is_pod: bool,
    is_enrolled: bool,
}

/// The workloads of all namespaces.
struct Scene<'a> {
    settings: &'a Settings,
    members: BTreeMap<&'a str, Vec<Member<'a>>>,
    namespaces: BTreeSet<&'a str>,
    /// Those whose label takes all their pods into the mesh.
    ambient: BTreeSet<&'a str>,
}

impl<'a> Scene<'a> {
    fn new(settings: &'a Settings, resources: &'a [Resource], parts: &Delta) -> Self {
        let workloads = parts.workloads.iter();
        let enrolled: HashSet<(bool, &str, &str)> = workloads
            .filter(|it| it.tunnel == Tunnel::Hbone)
            .map(|it| (it.is_pod(), &*it.namespace, &*it.name))
            .collect();
        let mut scene = Self {
            settings,
            members: BTreeMap::new(),
            namespaces: BTreeSet::new(),
            ambient: BTreeSet::new(),
        };
        for resource in resources {
            let metadata = resource.metadata();
            let member = |is_pod, labels| Member {
                labels,
                is_pod,
                is_enrolled: enrolled.contains(&(
                    is_pod,
                    &**metadata.namespace(),
                    &**metadata.name(),
                )),
            };
            match resource {
                Resource::Namespace(_) => {
                    scene.namespaces.insert(metadata.name());
                    if metadata.labels.is(DATAPLANE_MODE, "ambient") {
                        scene.ambient.insert(metadata.name());
                    }
                }
                Resource::Pod(pod) if !pod.terminal => {
                    scene.add(metadata, member(true, &metadata.labels));
                }
                Resource::WorkloadEntry(entry) => {
                    scene.add(metadata, member(false, &entry.entry.labels));
                }
                _ => {}
            }
        }
        scene
    }

    fn add(&mut self, metadata: &'a Metadata, member: Member<'a>) {
        let members = self.members.entry(metadata.namespace()).or_default();
        members.push(member);
    }

    /// The workloads that a policy of this namespace can select: all, when it is the root namespace.
    fn reach(&self, namespace: &str) -> impl Iterator<Item = &Member<'a>> {
        let is_root = namespace == &*self.settings.root_namespace;
        let within = move |(own, _): &(&&str, &Vec<Member<'a>>)| is_root || **own == namespace;
        self.members
            .iter()
            .filter(within)
            .flat_map(|(_, members)| members)
    }

    fn selected(&self, namespace: &str, selector: &Labels) -> impl Iterator<Item = &Member<'a>> {
        self.reach(namespace)
            .filter(|member| member.labels.include(selector))
    }

    /// Whether nothing more is to be expected in a namespace. Files seldom hold pods, and often not all of a
    /// namespace.
    fn is_complete(&self, namespace: &str) -> bool {
        match self.settings.source {
            Source::Kubernetes => true,
            Source::Manifests => {
                self.namespaces.contains(namespace) && self.members.contains_key(namespace)
            }
        }
    }

    fn check_policy(
        &self,
        metadata: &Metadata,
        selector: &Labels,
        consequence: &str,
        findings: &mut Vec<Diagnostic>,
    ) {
        let namespace = metadata.namespace();
        if !self.is_complete(namespace) {
            return;
        }
        let selected = self.selected(namespace, selector).count();
        let captured = self
            .selected(namespace, selector)
            .filter(|member| member.is_enrolled);
        let path = if selector.is_empty() {
            Path::root()
        } else {
            spec("selector")
        };
        if selected == 0 && !selector.is_empty() {
            let remedy = "compare the labels with those of the pods";
            let message = "selects no workload and has no effect".to_owned();
            findings.push(warn(metadata, path, message, remedy));
        } else if selected > 0 && captured.count() == 0 {
            let message = format!(
                "{consequence}: it selects {}, in the mesh is none of them",
                counted(selected)
            );
            let remedy = "label the namespace istio.io/dataplane-mode=ambient";
            findings.push(warn(metadata, path, message, remedy));
        }
    }

    /// What policies let in adds up, so a pod is cut off when none of those for it admits the mesh.
    fn check_network_policies(&self, policies: &[NetworkPolicy]) -> Vec<Diagnostic> {
        let mut by_namespace: BTreeMap<&str, Vec<&NetworkPolicy>> = BTreeMap::new();
        for policy in policies {
            let all = by_namespace.entry(policy.namespace()).or_default();
            all.push(policy);
        }
        let complain = |policy: &NetworkPolicy| {
            let rivals = &by_namespace[policy.namespace()];
            policy.complain(&self.cut_off(policy, rivals)?)
        };
        policies.iter().filter_map(complain).collect()
    }

    /// Who is in the mesh and cannot be reached by it, of those whom `policy` is for.
    fn cut_off(&self, policy: &NetworkPolicy, all: &[&NetworkPolicy]) -> Option<String> {
        let namespace = policy.namespace();
        let members = self.members.get(namespace).map_or(&[][..], Vec::as_slice);
        let pods = || members.iter().filter(|it| it.is_pod);
        if pods().next().is_none() && self.ambient.contains(namespace) {
            // Manifests seldom hold pods; those to come will be in the mesh.
            return (!policy.admits_mesh()).then(|| "its pods".to_owned());
        }
        let is_admitted = |labels: &Labels| {
            let mut all = all.iter().filter(|it| it.selects(labels));
            all.any(|it| it.admits_mesh())
        };
        let cut_off = pods()
            .filter(|pod| pod.is_enrolled && policy.selects(pod.labels))
            .filter(|pod| !is_admitted(pod.labels))
            .count();
        (cut_off > 0).then(|| counted(cut_off))
    }

    fn check_service_entry(&self, entry: &ServiceEntry, findings: &mut Vec<Diagnostic>) {
        let Some(selector) = &entry.selector else {
            return;
        };
        let namespace = entry.metadata.namespace();
        let mut own = self.members.get(&**namespace).into_iter().flatten();
        let is_met = own.any(|member| member.labels.include(selector));
        if !is_met && self.is_complete(namespace) {
            let message = "selects no workload and has no endpoints".to_owned();
            let remedy = "compare the labels with those of the pods and WorkloadEntries";
            findings.push(warn(
                &entry.metadata,
                spec("workloadSelector"),
                message,
                remedy,
            ));
        }
    }
}

fn counted(workloads: usize) -> String {
    match workloads {
        1 => "1 workload".to_owned(),
        more => format!("{more} workloads"),
    }
}

/// PeerAuthentications of one namespace with one selector: the oldest counts. The translation tells of those without a
/// selector, and of selectors in the root namespace.
fn check_rivals(settings: &Settings, resources: &[Resource], findings: &mut Vec<Diagnostic>) {
    let mut sources: Vec<&Arc<PeerAuthentication>> = resources
        .iter()
        .filter_map(|resource| match resource {
            Resource::PeerAuthentication(it) => Some(it),
            _ => None,
        })
        .filter(|it| !it.selector.is_empty())
        .filter(|it| *it.metadata.namespace() != settings.root_namespace)
        .collect();
    sources.sort_by_key(|source| source.metadata.age());
    let mut winners: BTreeMap<&str, Vec<&PeerAuthentication>> = BTreeMap::new();
    for source in sources {
        let metadata = &source.metadata;
        let before = winners.entry(metadata.namespace()).or_default();
        match before.iter().find(|it| it.selector == source.selector) {
            Some(winner) => {
                let message = format!(
                    "has no effect: {} has the same selector and wins",
                    winner.metadata.key
                );
                findings.push(warn(
                    metadata,
                    spec("selector"),
                    message,
                    "remove one of the two",
                ));
            }
            None => before.push(source),
        }
    }
}

#[cfg(test)]
mod tests;
