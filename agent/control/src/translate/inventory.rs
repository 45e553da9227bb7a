//! All resources, found as the translation needs them.
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::Arc,
};

use undermesh_model::{Locality, Workload};

use super::{
    scope::{Scope, only, swap},
    workloads,
};
use crate::{
    resources::{
        Key, Resource,
        core::Node,
        field::Labels,
        gateway::{Gateway, GatewayClass},
        kinds::Kind,
        metadata::Metadata,
        networking::ServiceEntry,
        strings::Strings,
    },
    settings::{Settings, Source},
};

/// A namespace and a name in it.
pub(crate) type Place = (Arc<str>, Arc<str>);

/// What a resource is known by; the name alone for those of the whole cluster.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Id {
    pub(crate) kind: Kind,
    pub(crate) namespace: Arc<str>,
    pub(crate) name: Arc<str>,
}

impl Id {
    pub(crate) fn new(kind: Kind, namespace: &Arc<str>, name: &Arc<str>) -> Self {
        Self {
            kind,
            namespace: namespace.clone(),
            name: name.clone(),
        }
    }

    /// That of a key, unless its kind is not used.
    pub(crate) fn of(key: &Key) -> Option<Self> {
        let kind = Kind::ALL.iter().find(|kind| kind.name() == key.kind)?;
        Some(Self::new(*kind, &key.namespace, &key.name))
    }

    pub(crate) fn in_scope(&self) -> (Kind, Arc<str>) {
        (self.kind, self.name.clone())
    }
}

/// All resources.
#[derive(Debug)]
pub(crate) struct Inventory {
    pub(crate) settings: Settings,
    pub(crate) strings: Strings,
    pub(crate) scopes: HashMap<Arc<str>, Scope>,
    nodes: BTreeMap<Arc<str>, Arc<Node>>,
    classes: BTreeMap<Arc<str>, Arc<GatewayClass>>,
    /// The ServiceEntries that have a host.
    hosts: HashMap<Arc<str>, BTreeSet<Place>>,
    /// The slices that mention a pod.
    pod_slices: HashMap<Place, BTreeSet<Place>>,
    /// The slices that mention an address; kept where slices are matched by address.
    address_slices: HashMap<IpAddr, BTreeSet<Place>>,
    /// The members that have an address; kept where slices are matched by address.
    holders: HashMap<(Arc<str>, IpAddr), BTreeSet<Id>>,
}

impl Inventory {
    pub(crate) fn new(settings: Settings) -> Self {
        Self {
            settings,
            strings: Strings::default(),
            scopes: HashMap::new(),
            nodes: BTreeMap::new(),
            classes: BTreeMap::new(),
            hosts: HashMap::new(),
            pod_slices: HashMap::new(),
            address_slices: HashMap::new(),
            holders: HashMap::new(),
        }
    }

    /// Files a resource, or its absence; returns what was there.
    pub(crate) fn replace(&mut self, id: &Id, new: Option<Resource>) -> Option<Resource> {
        let name = &id.name;
        match id.kind {
            Kind::Node => swap(&mut self.nodes, name, only!(new, Node)).map(Resource::Node),
            Kind::GatewayClass => {
                swap(&mut self.classes, name, only!(new, GatewayClass)).map(Resource::GatewayClass)
            }
            Kind::Namespace => {
                let object = &mut self.scopes.entry(name.clone()).or_default().object;
                std::mem::replace(object, only!(new, Namespace)).map(Resource::Namespace)
            }
            _ if new.is_none() && !self.scopes.contains_key(&id.namespace) => None,
            _ => {
                let scope = self.scopes.entry(id.namespace.clone()).or_default();
                let old = scope.replace(id, new.clone());
                self.index(id, old.as_ref(), new.as_ref());
                old
            }
        }
    }

    fn index(&mut self, id: &Id, old: Option<&Resource>, new: Option<&Resource>) {
        let place = (id.namespace.clone(), id.name.clone());
        if let Some(Resource::ServiceEntry(old)) = old {
            old.hosts
                .iter()
                .for_each(|host| forget(&mut self.hosts, host, &place));
        }
        if let Some(Resource::ServiceEntry(new)) = new {
            for host in &new.hosts {
                let claims = self.hosts.entry(host.clone()).or_default();
                claims.insert(place.clone());
            }
        }
        if let Some(Resource::EndpointSlice(old)) = old {
            for endpoint in &old.endpoints {
                if let Some(pod) = &endpoint.pod {
                    forget(&mut self.pod_slices, pod, &place);
                }
                for address in &endpoint.addresses {
                    forget(&mut self.address_slices, address, &place);
                }
            }
        }
        if let Some(Resource::EndpointSlice(new)) = new {
            for endpoint in &new.endpoints {
                if let Some(pod) = &endpoint.pod {
                    let slices = self.pod_slices.entry(pod.clone()).or_default();
                    slices.insert(place.clone());
                }
                let by_address = self.settings.source == Source::Manifests;
                for address in endpoint.addresses.iter().filter(|_| by_address) {
                    let slices = self.address_slices.entry(*address).or_default();
                    slices.insert(place.clone());
                }
            }
        }
    }

    /// A resource that is there.
    pub(crate) fn get(&self, id: &Id) -> Option<Resource> {
        let name = &id.name;
        let scope = || self.scope(&id.namespace);
        match id.kind {
            Kind::Node => self.nodes.get(name).cloned().map(Resource::Node),
            Kind::GatewayClass => self.classes.get(name).cloned().map(Resource::GatewayClass),
            Kind::Namespace => {
                let object = self.scope(name)?.object.clone();
                object.map(Resource::Namespace)
            }
            Kind::Pod | Kind::WorkloadEntry => scope()?.members.get(&id.in_scope())?.source.clone(),
            Kind::Service | Kind::ServiceEntry => {
                scope()?.fronts.get(&id.in_scope())?.source.clone()
            }
            Kind::AuthorizationPolicy => {
                let source = scope()?.rulings.get(name)?.source.clone();
                source.map(Resource::AuthorizationPolicy)
            }
            Kind::EndpointSlice => {
                let slice = scope()?.slices.get(name).cloned();
                slice.map(Resource::EndpointSlice)
            }
            Kind::PeerAuthentication => {
                let source = scope()?.peer_authentications.get(name).cloned();
                source.map(Resource::PeerAuthentication)
            }
            Kind::Gateway => scope()?.gateways.get(name).cloned().map(Resource::Gateway),
        }
    }

    /// Drops a scope that holds nothing.
    pub(crate) fn tidy(&mut self, namespace: &str) {
        if self.scope(namespace).is_some_and(Scope::is_empty) {
            self.scopes.remove(namespace);
        }
    }

    /// A scope that is there.
    pub(crate) fn scope(&self, namespace: &str) -> Option<&Scope> {
        self.scopes.get(namespace)
    }

    /// The labels of a namespace.
    pub(crate) fn namespace_labels(&self, namespace: &str) -> Option<&Labels> {
        self.scope(namespace)?.labels()
    }

    /// The metadata of a namespace.
    pub(crate) fn namespace(&self, namespace: &str) -> Option<&Metadata> {
        Some(&self.scope(namespace)?.object.as_ref()?.metadata)
    }

    /// Where a node is, by the labels of Kubernetes and Istio.
    pub(crate) fn locality_of(&self, node: &str) -> Option<Locality> {
        let node = self.nodes.get(node)?;
        workloads::locality_labels(&node.metadata.labels)
    }

    pub(crate) fn gateway(&self, namespace: &str, name: &str) -> Option<&Arc<Gateway>> {
        self.scope(namespace)?.gateways.get(name)
    }

    pub(crate) fn class(&self, name: &str) -> Option<&Arc<GatewayClass>> {
        self.classes.get(name)
    }

    /// The ServiceEntries that have a host, in the order of their places.
    pub(crate) fn claimants(&self, host: &str) -> impl Iterator<Item = &Arc<ServiceEntry>> {
        let places = self.hosts.get(host).into_iter().flatten();
        places.filter_map(|(namespace, name)| {
            let key = (Kind::ServiceEntry, name.clone());
            match self.scope(namespace)?.fronts.get(&key)?.source.as_ref()? {
                Resource::ServiceEntry(it) => Some(it),
                _ => None,
            }
        })
    }

    /// A Service that is there.
    pub(crate) fn has_service(&self, namespace: &str, name: &str) -> bool {
        let front = |scope: &Scope| {
            let key = (Kind::Service, Arc::from(name));
            scope.fronts.get(&key)?.source.clone()
        };
        self.scope(namespace).and_then(front).is_some()
    }

    pub(crate) fn pod(&self, place: &Place) -> Option<&Arc<Workload>> {
        let key = (Kind::Pod, place.1.clone());
        let member = self.scope(&place.0)?.members.get(&key)?;
        member.workload.as_ref()
    }

    /// The member that holds an address on a network: a pod before an entry, then by namespace and name.
    pub(crate) fn holder(&self, network: &Arc<str>, address: IpAddr) -> Option<&Arc<Workload>> {
        let first = self.holders.get(&(network.clone(), address))?.first()?;
        let scope = self.scope(&first.namespace)?;
        scope.members.get(&first.in_scope())?.workload.as_ref()
    }

    /// Notes a new workload of a member.
    pub(crate) fn settle(&mut self, id: &Id, workload: Option<Arc<Workload>>) {
        let Some(scope) = self.scopes.get_mut(&id.namespace) else {
            return;
        };
        let member = scope.members.entry(id.in_scope()).or_default();
        let old = std::mem::replace(&mut member.workload, workload.clone());
        member.translated = member.source.clone();
        if member.source.is_none() {
            scope.members.remove(&id.in_scope());
        }
        if self.settings.source == Source::Manifests {
            for (network, address) in old.iter().flat_map(|it| held(it)) {
                forget(&mut self.holders, &(network, address), id);
            }
            for place in workload.iter().flat_map(|it| held(it)) {
                self.holders.entry(place).or_default().insert(id.clone());
            }
        }
    }

    /// The Services of the slices that mention a pod or one of some addresses.
    pub(crate) fn services_mentioning(&self, pod: &Place, addresses: &[IpAddr]) -> Vec<Place> {
        let by_address = addresses
            .iter()
            .filter_map(|it| self.address_slices.get(it));
        let slices = self.pod_slices.get(pod).into_iter().chain(by_address);
        let service = |(namespace, slice): &Place| {
            let slice = self.scope(namespace)?.slices.get(slice)?;
            Some((namespace.clone(), slice.service.clone()?))
        };
        slices.flatten().filter_map(service).collect()
    }

    /// The Gateways of a class.
    pub(crate) fn gateways_of<'a>(&'a self, class: &'a str) -> impl Iterator<Item = Place> + 'a {
        let all = self.scopes.values().flat_map(|it| it.gateways.values());
        all.filter(move |gateway| *gateway.class == *class)
            .map(|gateway| {
                let metadata = &gateway.metadata;
                (metadata.namespace().clone(), metadata.name().clone())
            })
    }
}

fn forget<K: Clone + Eq + std::hash::Hash, V: Ord>(
    map: &mut HashMap<K, BTreeSet<V>>,
    key: &K,
    value: &V,
) {
    if let Some(values) = map.get_mut(key) {
        values.remove(value);
        if values.is_empty() {
            map.remove(key);
        }
    }
}

/// The addresses of a workload on its network.
fn held(workload: &Workload) -> impl Iterator<Item = (Arc<str>, IpAddr)> + '_ {
    let addresses = workload.addresses.iter();
    addresses.map(|address| (workload.network.clone(), *address))
}
