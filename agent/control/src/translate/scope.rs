//! All of one namespace: its resources, each beside the parts that were made from it.
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use undermesh_model::{Policy, Service, Workload};

use super::{inventory::Id, peer_authentication::Ranking, workloads};
use crate::resources::{
    Resource,
    core::{Namespace, Pod},
    discovery::EndpointSlice,
    field::Labels,
    gateway::Gateway,
    kinds::Kind,
    metadata::Metadata,
    networking::WorkloadEntry,
    security::{AuthorizationPolicy, PeerAuthentication},
};

/// Takes the resource out of its variant.
macro_rules! only {
    ($resource:expr, $kind:ident) => {
        match $resource {
            Some(Resource::$kind(it)) => Some(it),
            _ => None,
        }
    };
}
pub(super) use only;

/// A Pod or WorkloadEntry with its workload.
#[derive(Debug, Default)]
pub(crate) struct Member {
    pub(crate) source: Option<Resource>,
    /// The source from which `workload` was made.
    pub(crate) translated: Option<Resource>,
    pub(crate) workload: Option<Arc<Workload>>,
}

/// What the endpoints of services are made from.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Body<'a> {
    Pod(&'a Pod),
    Entry(&'a WorkloadEntry),
}

impl<'a> Body<'a> {
    pub(crate) fn of(resource: &'a Resource) -> Option<Self> {
        match resource {
            Resource::Pod(it) => Some(Self::Pod(it)),
            Resource::WorkloadEntry(it) => Some(Self::Entry(it)),
            _ => None,
        }
    }

    pub(crate) fn labels(self) -> &'a Labels {
        match self {
            Self::Pod(pod) => &pod.metadata.labels,
            Self::Entry(entry) => &entry.entry.labels,
        }
    }

    pub(crate) fn ports(self) -> &'a [(Arc<str>, u16)] {
        match self {
            Self::Pod(pod) => &pod.ports,
            Self::Entry(entry) => &entry.entry.ports,
        }
    }

    pub(crate) fn metadata(self) -> &'a Metadata {
        match self {
            Self::Pod(pod) => &pod.metadata,
            Self::Entry(entry) => &entry.metadata,
        }
    }

    /// The node that it runs on.
    pub(crate) fn node(self) -> Option<&'a Arc<str>> {
        match self {
            Self::Pod(pod) => pod.node.as_ref(),
            Self::Entry(entry) => workloads::entry_node(entry),
        }
    }
}

/// A Service or ServiceEntry with what was made from it.
#[derive(Debug, Default)]
pub(crate) struct Front {
    pub(crate) source: Option<Resource>,
    pub(crate) services: Vec<Arc<Service>>,
    /// The workloads that only exist as its endpoints.
    pub(crate) workloads: Vec<Arc<Workload>>,
}

/// The labels that a Service or ServiceEntry selects its workloads by.
pub(crate) fn selector(source: &Resource) -> Option<&Labels> {
    let labels = match source {
        Resource::Service(it) => Some(&it.selector),
        Resource::ServiceEntry(it) => it.selector.as_ref(),
        _ => None,
    };
    labels.filter(|labels| !labels.is_empty())
}

/// An AuthorizationPolicy with its policy.
#[derive(Debug, Default)]
pub(crate) struct Ruling {
    pub(crate) source: Option<Arc<AuthorizationPolicy>>,
    pub(crate) policy: Option<Arc<Policy>>,
    /// What workloads list it by, and the labels of those that do.
    pub(crate) listed: Option<(Arc<str>, Labels)>,
}

/// All of one namespace.
#[derive(Debug, Default)]
pub(crate) struct Scope {
    pub(crate) object: Option<Arc<Namespace>>,
    pub(crate) members: BTreeMap<(Kind, Arc<str>), Member>,
    pub(crate) fronts: BTreeMap<(Kind, Arc<str>), Front>,
    pub(crate) slices: BTreeMap<Arc<str>, Arc<EndpointSlice>>,
    /// The slices of each Service.
    slices_of: BTreeMap<Arc<str>, BTreeSet<Arc<str>>>,
    pub(crate) rulings: BTreeMap<Arc<str>, Ruling>,
    pub(crate) peer_authentications: BTreeMap<Arc<str>, Arc<PeerAuthentication>>,
    pub(crate) gateways: BTreeMap<Arc<str>, Arc<Gateway>>,
    pub(crate) ranking: Ranking,
}

impl Scope {
    /// The labels of the namespace.
    pub(crate) fn labels(&self) -> Option<&Labels> {
        self.object.as_ref().map(|object| &object.metadata.labels)
    }

    /// The slices of a Service, in the order of their names.
    pub(crate) fn slices_of(&self, service: &str) -> impl Iterator<Item = &Arc<EndpointSlice>> {
        let names = self.slices_of.get(service).into_iter().flatten();
        names.filter_map(|name| self.slices.get(name))
    }

    /// What can be an endpoint, with its workload.
    pub(crate) fn endpoints(&self) -> impl Iterator<Item = (&Arc<Workload>, Body<'_>)> {
        self.members.values().filter_map(|member| {
            let body = member.source.as_ref().and_then(Body::of)?;
            Some((member.workload.as_ref()?, body))
        })
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.object.is_none()
            && self.members.is_empty()
            && self.fronts.is_empty()
            && self.slices.is_empty()
            && self.rulings.is_empty()
            && self.peer_authentications.is_empty()
            && self.gateways.is_empty()
    }
}

impl Scope {
    /// Files a resource, or its absence; returns what was there.
    pub(super) fn replace(&mut self, id: &Id, new: Option<Resource>) -> Option<Resource> {
        let name = &id.name;
        match id.kind {
            Kind::Pod | Kind::WorkloadEntry => {
                swap_source(&mut self.members, id.in_scope(), new, |it| &mut it.source)
            }
            Kind::Service | Kind::ServiceEntry => {
                swap_source(&mut self.fronts, id.in_scope(), new, |it| &mut it.source)
            }
            Kind::AuthorizationPolicy => {
                let new = only!(new, AuthorizationPolicy);
                swap_source(&mut self.rulings, name.clone(), new, |it| &mut it.source)
                    .map(Resource::AuthorizationPolicy)
            }
            Kind::EndpointSlice => self
                .replace_slice(name, only!(new, EndpointSlice))
                .map(Resource::EndpointSlice),
            Kind::PeerAuthentication => {
                let new = only!(new, PeerAuthentication);
                swap(&mut self.peer_authentications, name, new).map(Resource::PeerAuthentication)
            }
            Kind::Gateway => {
                swap(&mut self.gateways, name, only!(new, Gateway)).map(Resource::Gateway)
            }
            Kind::Namespace | Kind::Node | Kind::GatewayClass => None,
        }
    }

    fn replace_slice(
        &mut self,
        name: &Arc<str>,
        new: Option<Arc<EndpointSlice>>,
    ) -> Option<Arc<EndpointSlice>> {
        if let Some(service) = new.as_ref().and_then(|new| new.service.clone()) {
            let names = self.slices_of.entry(service).or_default();
            names.insert(name.clone());
        }
        let service = new.as_ref().and_then(|new| new.service.clone());
        let old = swap(&mut self.slices, name, new);
        let left = old.as_ref().and_then(|old| old.service.clone());
        if let Some(left) = left.filter(|left| service.as_ref() != Some(left)) {
            let names = self.slices_of.entry(left.clone()).or_default();
            names.remove(name);
            if names.is_empty() {
                self.slices_of.remove(&left);
            }
        }
        old
    }
}

/// Puts a value under a key, or takes it away; returns what was there.
pub(super) fn swap<T>(
    map: &mut BTreeMap<Arc<str>, T>,
    name: &Arc<str>,
    new: Option<T>,
) -> Option<T> {
    match new {
        Some(new) => map.insert(name.clone(), new),
        None => map.remove(name),
    }
}

/// Changes the source of an entry. One that loses it stays until its parts are taken back too.
fn swap_source<K: Ord, T: Default, S>(
    map: &mut BTreeMap<K, T>,
    key: K,
    new: Option<S>,
    source: impl Fn(&mut T) -> &mut Option<S>,
) -> Option<S> {
    if new.is_none() && !map.contains_key(&key) {
        return None;
    }
    std::mem::replace(source(map.entry(key).or_default()), new)
}
