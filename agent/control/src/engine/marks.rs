//! What is to be translated again, and why: the dependencies between resources.
//!
//! Every function of [`crate::translate`] that looks at another resource has its counterpart here.
use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::Arc,
};

use undermesh_model::Locality;

use crate::{
    resources::{Resource, field::Labels, kinds::Kind},
    translate::{
        inventory::{Id, Inventory, Place},
        scope::{Body, Scope, selector},
        services::hostname,
        waypoints, workloads,
    },
};

/// What is to be translated again.
#[derive(Debug, Default)]
pub(super) struct Marks {
    /// Single resources.
    objects: BTreeMap<Kind, BTreeSet<Place>>,
    /// Namespaces whose PeerAuthentications are to be ranked again.
    pub(super) rankings: BTreeSet<Arc<str>>,
    /// Namespaces of which everything that inherits from them is to be translated.
    pub(super) namespaces: BTreeSet<Arc<str>>,
    /// Nodes that have moved.
    pub(super) nodes: HashSet<Arc<str>>,
    /// Gateways that have changed.
    pub(super) gateways: HashSet<Place>,
    /// Workloads that are selected anew or no longer: in a namespace, or in all.
    pub(super) selections: Vec<(Option<Arc<str>>, Labels)>,
}

impl Marks {
    /// Marks one resource.
    pub(super) fn mark(&mut self, kind: Kind, place: Place) {
        self.objects.entry(kind).or_default().insert(place);
    }

    /// Takes the marked resources of a kind.
    pub(super) fn take(&mut self, kind: Kind) -> BTreeSet<Place> {
        self.objects.remove(&kind).unwrap_or_default()
    }

    /// Marks what depends on a resource that has changed. The inventory holds the new version.
    pub(super) fn changed(
        &mut self,
        id: &Id,
        old: Option<&Resource>,
        new: Option<&Resource>,
        inventory: &Inventory,
    ) {
        let place = (id.namespace.clone(), id.name.clone());
        let versions = [old, new].into_iter().flatten();
        match id.kind {
            Kind::Pod | Kind::WorkloadEntry | Kind::AuthorizationPolicy => {}
            Kind::Namespace => {
                if said(old) != said(new) {
                    self.namespaces.insert(id.name.clone());
                }
            }
            Kind::Node => {
                if locality(old) != locality(new) {
                    self.nodes.insert(id.name.clone());
                }
                return;
            }
            Kind::Service => self.claimants(&hostname(&id.namespace, &id.name), inventory),
            Kind::ServiceEntry => versions
                .filter_map(hosts)
                .flatten()
                .for_each(|host| self.claimants(host, inventory)),
            Kind::EndpointSlice => {
                for service in versions.filter_map(service_of_slice) {
                    self.mark(Kind::Service, (id.namespace.clone(), service.clone()));
                }
            }
            Kind::PeerAuthentication => {
                self.rankings.insert(place.0);
                return;
            }
            Kind::Gateway => {
                self.gateways.insert(place);
                return;
            }
            Kind::GatewayClass => {
                self.gateways.extend(inventory.gateways_of(&id.name));
                return;
            }
        }
        self.mark(id.kind, place);
    }

    /// Marks the ServiceEntries that have a host: which of them counts may have changed.
    fn claimants(&mut self, host: &str, inventory: &Inventory) {
        for claimant in inventory.claimants(host) {
            let metadata = &claimant.metadata;
            let place = (metadata.namespace().clone(), metadata.name().clone());
            self.mark(Kind::ServiceEntry, place);
        }
    }

    /// Marks the services that a member was or is an endpoint of.
    pub(super) fn fronts_of(
        &mut self,
        id: &Id,
        labels: &[&Labels],
        addresses: &[std::net::IpAddr],
        inventory: &Inventory,
    ) {
        let Some(scope) = inventory.scope(&id.namespace) else {
            return;
        };
        for ((kind, name), front) in &scope.fronts {
            let selector = front.source.as_ref().and_then(selector);
            let selects = |wanted: &Labels| labels.iter().any(|labels| labels.include(wanted));
            if selector.is_some_and(selects) {
                self.mark(*kind, (id.namespace.clone(), name.clone()));
            }
        }
        let pod = (id.namespace.clone(), id.name.clone());
        for service in inventory.services_mentioning(&pod, addresses) {
            self.mark(Kind::Service, service);
        }
    }

    /// Turns the wide marks into those of single resources.
    pub(super) fn spread(&mut self, inventory: &Inventory) {
        let causes = Causes {
            namespaces: std::mem::take(&mut self.namespaces),
            nodes: std::mem::take(&mut self.nodes),
            gateways: std::mem::take(&mut self.gateways),
            selections: std::mem::take(&mut self.selections),
        };
        if causes.concern_everywhere() {
            for (namespace, scope) in &inventory.scopes {
                self.spread_in(namespace, scope, &causes);
            }
            return;
        }
        let selected = causes.selections.iter().filter_map(|(it, _)| it.as_ref());
        let concerned: BTreeSet<&Arc<str>> = causes.namespaces.iter().chain(selected).collect();
        for namespace in concerned {
            if let Some(scope) = inventory.scope(namespace) {
                self.spread_in(namespace, scope, &causes);
            }
        }
    }

    fn spread_in(&mut self, namespace: &Arc<str>, scope: &Scope, causes: &Causes) {
        let inherited = scope
            .labels()
            .is_some_and(|labels| causes.names_gateway(labels, namespace));
        if inherited {
            self.mark(Kind::Namespace, (Arc::default(), namespace.clone()));
        }
        let all = inherited || causes.namespaces.contains(namespace);
        for ((kind, name), member) in &scope.members {
            let body = member.source.as_ref().and_then(Body::of);
            if all || body.is_some_and(|body| causes.concern_member(body, namespace)) {
                self.mark(*kind, (namespace.clone(), name.clone()));
            }
        }
        for ((kind, name), front) in &scope.fronts {
            let source = front.source.as_ref();
            if all || source.is_some_and(|source| causes.concern_front(source, scope)) {
                self.mark(*kind, (namespace.clone(), name.clone()));
            }
        }
    }
}

/// What others take from a namespace.
fn said(namespace: Option<&Resource>) -> Option<(&Labels, &Labels)> {
    let metadata = namespace?.metadata();
    Some((&metadata.labels, &metadata.annotations))
}

/// What others take from a node.
fn locality(node: Option<&Resource>) -> Option<Locality> {
    workloads::locality_labels(&node?.metadata().labels)
}

fn hosts(resource: &Resource) -> Option<&[Arc<str>]> {
    match resource {
        Resource::ServiceEntry(entry) => Some(&entry.hosts),
        _ => None,
    }
}

fn service_of_slice(resource: &Resource) -> Option<&Arc<str>> {
    match resource {
        Resource::EndpointSlice(slice) => slice.service.as_ref(),
        _ => None,
    }
}

/// Changes that concern many resources.
struct Causes {
    namespaces: BTreeSet<Arc<str>>,
    nodes: HashSet<Arc<str>>,
    gateways: HashSet<Place>,
    selections: Vec<(Option<Arc<str>>, Labels)>,
}

impl Causes {
    fn concern_everywhere(&self) -> bool {
        let everywhere = |(namespace, _): &(Option<_>, _)| namespace.is_none();
        !self.nodes.is_empty()
            || !self.gateways.is_empty()
            || self.selections.iter().any(everywhere)
    }

    fn names_gateway(&self, labels: &Labels, namespace: &Arc<str>) -> bool {
        !self.gateways.is_empty()
            && waypoints::named(labels, namespace).any(|place| self.gateways.contains(&place))
    }

    fn concern_member(&self, body: Body<'_>, namespace: &Arc<str>) -> bool {
        let selected = |(within, labels): &(Option<Arc<str>>, Labels)| {
            within.as_ref().is_none_or(|within| within == namespace)
                && body.labels().include(labels)
        };
        body.node().is_some_and(|node| self.nodes.contains(node))
            || self.names_gateway(body.labels(), namespace)
            || self.selections.iter().any(selected)
    }

    fn concern_front(&self, source: &Resource, scope: &Scope) -> bool {
        let metadata = source.metadata();
        let namespace = metadata.namespace();
        self.names_gateway(&metadata.labels, namespace)
            || match source {
                Resource::Service(_) => scope
                    .slices_of(metadata.name())
                    .flat_map(|slice| &slice.endpoints)
                    .filter_map(|endpoint| endpoint.node.as_ref())
                    .any(|node| self.nodes.contains(node)),
                Resource::ServiceEntry(entry) => entry
                    .endpoints
                    .iter()
                    .any(|endpoint| self.names_gateway(&endpoint.labels, namespace)),
                _ => false,
            }
    }
}
