//! The steps of a commit: each translates one resource again and keeps what came of it.
use std::{net::IpAddr, sync::Arc};

use undermesh_model::{Workload, policy::Scope as PolicyScope};

use super::{Engine, ledger::Stage};
use crate::{
    resources::{Key, Resource, field::Labels, kinds::Kind, security::Mode},
    translate::{
        findings::Findings,
        inventory::{Id, Place},
        peer_authentication::{rank, static_strict},
        policies,
        scope::Body,
        service_entries::service_entry,
        services::{Parts, check_slice, service},
        waypoints, workloads,
    },
};

impl Engine {
    fn found(&mut self, resource: &Resource, findings: Findings) {
        let metadata = resource.metadata();
        let diagnostics = findings.diagnostics(metadata);
        self.ledger
            .write(&metadata.key, Stage::Translation, diagnostics);
    }

    /// Translates an AuthorizationPolicy, and marks whom it selects when that has changed.
    pub(super) fn translate_policy(&mut self, (namespace, name): &Place) {
        let Some(scope) = self.inventory.scopes.get_mut(namespace) else {
            return;
        };
        let Some(ruling) = scope.rulings.get_mut(name) else {
            return;
        };
        let source = ruling.source.clone();
        let mut findings = Findings::default();
        let settings = &self.inventory.settings;
        let made = source
            .as_ref()
            .and_then(|source| policies::policy(source, settings, &mut findings));
        let listed = made
            .as_ref()
            .filter(|(policy, _)| policy.scope == PolicyScope::WorkloadSelector)
            .map(|(policy, labels)| (policy.key().into(), (*labels).clone()));
        let now = made.map(|(policy, _)| policy).into_iter().collect();
        let before = ruling.policy.as_slice();
        let now = self
            .pending
            .policies
            .compare(before, now, |policy| policy.key().into());
        ruling.policy = now.into_iter().next();
        let selected = std::mem::replace(&mut ruling.listed, listed.clone());
        if selected != listed {
            let is_mesh_wide = *namespace == settings.root_namespace;
            let within = (!is_mesh_wide).then(|| namespace.clone());
            let selectors = [selected, listed].into_iter().flatten();
            self.marks
                .selections
                .extend(selectors.map(|(_, labels)| (within.clone(), labels)));
        }
        match source {
            Some(source) => self.found(&Resource::AuthorizationPolicy(source), findings),
            None => {
                scope.rulings.remove(name);
            }
        }
    }

    /// Ranks the PeerAuthentications of the marked namespaces: of all, when the mode of the mesh has changed.
    pub(super) fn rank(&mut self) {
        let mut namespaces = std::mem::take(&mut self.marks.rankings);
        if namespaces.is_empty() {
            return;
        }
        let root = self.inventory.settings.root_namespace.clone();
        if namespaces.remove(&root) {
            let before = self.mesh_mode();
            self.rank_in(&root, Mode::Unset);
            if self.mesh_mode() != before {
                let everybody = Labels::default();
                self.marks.selections.push((None, everybody));
                namespaces.extend(self.inventory.scopes.keys().cloned());
                namespaces.remove(&root);
            }
        }
        let mesh = self.mesh_mode();
        for namespace in namespaces {
            self.rank_in(&namespace, mesh);
        }
        let count = self.counts.get(Kind::PeerAuthentication.name());
        let strict = count.is_some_and(|count| *count > 0);
        let strict = strict.then(|| static_strict(&self.inventory.settings));
        let before = self.strict.as_slice();
        let now = strict.into_iter().collect();
        let now = self
            .pending
            .policies
            .compare(before, now, |policy| policy.key().into());
        self.strict = now.into_iter().next();
    }

    fn mesh_mode(&self) -> Mode {
        let root = self
            .inventory
            .scope(&self.inventory.settings.root_namespace);
        root.map_or(Mode::Unset, |root| root.ranking.wide)
    }

    fn rank_in(&mut self, namespace: &Arc<str>, mesh: Mode) {
        let is_root = *namespace == self.inventory.settings.root_namespace;
        let Some(scope) = self.inventory.scopes.get_mut(namespace) else {
            return;
        };
        let sources = scope.peer_authentications.values();
        let (mut ranking, findings) = rank(sources.map(|it| &**it), is_root, mesh);
        for (name, findings) in findings {
            let source = scope.peer_authentications.get(name);
            let Some(metadata) = source.map(|source| &source.metadata) else {
                continue;
            };
            let diagnostics = findings.diagnostics(metadata);
            self.ledger
                .write(&metadata.key, Stage::Translation, diagnostics);
        }
        if ranking == scope.ranking {
            return;
        }
        let now = std::mem::take(&mut ranking.policies);
        let now = now.into_iter().map(Arc::unwrap_or_clone).collect();
        let before = &scope.ranking.policies;
        ranking.policies = self
            .pending
            .policies
            .compare(before, now, |policy| policy.key().into());
        scope.ranking = ranking;
        let everybody = Labels::default();
        self.marks
            .selections
            .push((Some(namespace.clone()), everybody));
    }

    /// Translates a Pod or WorkloadEntry, and marks the services that it was or is an endpoint of when it differs
    /// in what they look at.
    pub(super) fn translate_member(&mut self, id: &Id) {
        let Some(member) = self
            .inventory
            .scope(&id.namespace)
            .and_then(|scope| scope.members.get(&id.in_scope()))
        else {
            return;
        };
        let (source, translated) = (member.source.clone(), member.translated.clone());
        let before = member.workload.clone();
        let mut findings = Findings::default();
        let made = match source.as_ref().and_then(Body::of) {
            Some(Body::Pod(pod)) => workloads::pod(pod, &self.inventory, &mut findings),
            Some(Body::Entry(entry)) => workloads::entry(entry, &self.inventory, &mut findings),
            None => None,
        };
        if let Some(source) = &source {
            self.found(source, findings);
        }
        let made = made.into_iter().collect();
        let now = self
            .pending
            .workloads
            .compare(before.as_slice(), made, |workload| workload.uid.clone());
        let now = now.into_iter().next();
        self.inventory.settle(id, now.clone());
        let old = Facet::of(translated.as_ref(), before.as_deref());
        let new = Facet::of(source.as_ref(), now.as_deref());
        if old != new {
            let facets: Vec<&Facet<'_>> = old.iter().chain(&new).collect();
            let labels: Vec<&Labels> = facets.iter().map(|facet| facet.labels).collect();
            let addresses: Vec<IpAddr> =
                facets.iter().flat_map(|it| it.addresses).copied().collect();
            self.marks
                .fronts_of(id, &labels, &addresses, &self.inventory);
        }
    }

    /// Translates a Service or ServiceEntry.
    pub(super) fn translate_front(&mut self, kind: Kind, (namespace, name): &Place) {
        let key = (kind, name.clone());
        let front = self
            .inventory
            .scope(namespace)
            .and_then(|it| it.fronts.get(&key));
        let Some(front) = front else {
            return;
        };
        let source = front.source.clone();
        let mut findings = Findings::default();
        let parts = match &source {
            Some(Resource::Service(it)) => service(it, &self.inventory, &mut findings),
            Some(Resource::ServiceEntry(it)) => service_entry(it, &self.inventory, &mut findings),
            _ => Parts::default(),
        };
        let services = self
            .pending
            .services
            .compare(&front.services, parts.services, |it| it.key().into());
        let workloads = parts.workloads.into_values().collect();
        let workloads = self
            .pending
            .workloads
            .compare(&front.workloads, workloads, |it| it.uid.clone());
        if let Some(source) = &source {
            self.found(source, findings);
        }
        let Some(scope) = self.inventory.scopes.get_mut(namespace) else {
            return;
        };
        if source.is_none() {
            scope.fronts.remove(&key);
        } else if let Some(front) = scope.fronts.get_mut(&key) {
            front.services = services;
            front.workloads = workloads;
        }
    }

    /// Looks for what is wrong with a slice as a whole.
    pub(super) fn check_slice(&mut self, (namespace, name): &Place) {
        let scope = self.inventory.scope(namespace);
        if let Some(slice) = scope.and_then(|it| it.slices.get(name)).cloned() {
            let mut findings = Findings::default();
            check_slice(&slice, &mut findings);
            self.found(&Resource::EndpointSlice(slice), findings);
        }
    }

    /// Looks for what is wrong with what a namespace says of all that is in it.
    pub(super) fn check_namespace(&mut self, (_, name): &Place) {
        let scope = self.inventory.scope(name);
        if let Some(namespace) = scope.and_then(|it| it.object.clone()) {
            let mut findings = Findings::default();
            waypoints::check_namespace(&namespace, &self.inventory, &mut findings);
            self.found(&Resource::Namespace(namespace), findings);
        }
    }
}

/// What services look at in a member.
#[derive(PartialEq)]
struct Facet<'a> {
    labels: &'a Labels,
    ports: &'a [(Arc<str>, u16)],
    network: &'a Arc<str>,
    addresses: &'a [IpAddr],
    hostname: &'a Arc<str>,
    key: &'a Key,
}

impl<'a> Facet<'a> {
    fn of(source: Option<&'a Resource>, workload: Option<&'a Workload>) -> Option<Self> {
        let (body, workload) = (Body::of(source?)?, workload?);
        Some(Self {
            labels: body.labels(),
            ports: body.ports(),
            network: &workload.network,
            addresses: &workload.addresses,
            hostname: &workload.hostname,
            key: &body.metadata().key,
        })
    }
}
