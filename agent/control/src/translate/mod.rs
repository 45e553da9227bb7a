//! Turns resources into the parts of a mesh, whatever source they come from.
use std::{collections::HashMap, sync::Arc};

use undermesh_model::{Locality, MeshBuilder};

use crate::{
    diagnostic::{Diagnostic, Severity},
    path::Path,
    resources::{
        Resource,
        core::{Namespace, Node, Pod, Service},
        discovery::EndpointSlice,
        field::Problem,
        metadata::Metadata,
        networking::{ServiceEntry, WorkloadEntry},
        security::{AuthorizationPolicy, PeerAuthentication},
    },
    settings::Settings,
};

mod peer_authentication;
mod policies;
mod service_entries;
mod services;
mod workloads;

#[cfg(test)]
mod tests;

/// The parts of a mesh, and what of the resources is not in them.
#[derive(Debug, Default)]
pub struct Translation {
    /// Workloads, services, policies.
    pub builder: MeshBuilder,
    /// Resources that are not in force as written.
    pub diagnostics: Vec<Diagnostic>,
}

/// Translates the resources of one moment. The outcome does not depend on their order.
pub fn translate<'a>(
    resources: impl IntoIterator<Item = &'a Arc<Resource>>,
    settings: &Settings,
) -> Translation {
    let inventory = Inventory::new(resources);
    let mut findings = Findings::default();
    let mut members = workloads::translate(&inventory, settings, &mut findings);
    let mut policies = policies::translate(&inventory, settings, &mut members, &mut findings);
    policies.extend(peer_authentication::translate(
        &inventory,
        settings,
        &mut members,
        &mut findings,
    ));
    let roster = services::Roster::new(&members);
    let mut parts = services::translate(&inventory, settings, &roster, &mut findings);
    parts.extend(service_entries::translate(
        &inventory,
        settings,
        &roster,
        &mut findings,
    ));
    let services::Parts {
        services,
        workloads,
    } = parts;
    let workloads = members
        .into_iter()
        .map(|member| member.workload)
        .chain(workloads.into_values())
        .collect();
    Translation {
        builder: MeshBuilder {
            workloads,
            services,
            policies,
        },
        diagnostics: findings.0,
    }
}

/// The resources by kind.
#[derive(Debug, Default)]
struct Inventory<'a> {
    namespaces: HashMap<&'a str, &'a Namespace>,
    nodes: HashMap<&'a str, &'a Node>,
    pods: Vec<&'a Pod>,
    services: Vec<&'a Service>,
    slices: Vec<&'a EndpointSlice>,
    service_entries: Vec<&'a ServiceEntry>,
    workload_entries: Vec<&'a WorkloadEntry>,
    peer_authentications: Vec<&'a PeerAuthentication>,
    authorization_policies: Vec<&'a AuthorizationPolicy>,
}

impl<'a> Inventory<'a> {
    fn new(resources: impl IntoIterator<Item = &'a Arc<Resource>>) -> Self {
        let mut sorted: Vec<&Resource> =
            resources.into_iter().map(|resource| &**resource).collect();
        sorted.sort_by_key(|resource| &resource.metadata().key);
        let mut inventory = Self::default();
        for resource in sorted {
            inventory.add(resource);
        }
        inventory
    }

    fn add(&mut self, resource: &'a Resource) {
        match resource {
            Resource::Namespace(it) => {
                self.namespaces.insert(it.metadata.name(), it);
            }
            Resource::Node(it) => {
                self.nodes.insert(it.metadata.name(), it);
            }
            Resource::Pod(it) => self.pods.push(it),
            Resource::Service(it) => self.services.push(it),
            Resource::EndpointSlice(it) => self.slices.push(it),
            Resource::ServiceEntry(it) => self.service_entries.push(it),
            Resource::WorkloadEntry(it) => self.workload_entries.push(it),
            Resource::PeerAuthentication(it) => self.peer_authentications.push(it),
            Resource::AuthorizationPolicy(it) => self.authorization_policies.push(it),
        }
    }

    /// Where a node is, by the labels of Kubernetes and Istio.
    fn locality_of(&self, node: &str) -> Option<Locality> {
        self.nodes
            .get(node)
            .and_then(|node| workloads::locality_labels(&node.metadata.labels))
    }
}

/// What is found in the course of a translation.
#[derive(Debug, Default)]
struct Findings(Vec<Diagnostic>);

impl Findings {
    fn add(
        &mut self,
        metadata: &Metadata,
        severity: Severity,
        path: Path,
        message: impl Into<String>,
        remedy: &str,
    ) {
        let (message, remedy) = (message.into(), remedy.to_owned());
        self.0.push(metadata.diagnostic(Problem {
            severity,
            path,
            message,
            remedy,
        }));
    }
}

/// The path of a field of `spec`.
fn spec(field: &'static str) -> Path {
    Path::root().key("spec").key(field)
}
