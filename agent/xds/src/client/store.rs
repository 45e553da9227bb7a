//! What the server has told: workloads, services and policies as parts of the model, and what of them has changed.
//!
//! On the wire a workload says which services it belongs to; in the model a service says which endpoints it has.
//! The store keeps the wire's side, so that workload and service may come in any order, and makes the model's side
//! of those services alone that a change touches.
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use undermesh_model::{Delta, MeshBuilder, Policy, Service, Workload, service::ServiceEndpoint};

use crate::decode::{Address, Member, Membership};

/// The ports of a service's endpoints, by uid.
type Endpoints = BTreeMap<Arc<str>, Vec<(u16, u16)>>;

/// All that is known.
#[derive(Debug, Default)]
pub struct Store {
    workloads: HashMap<Arc<str>, Held>,
    services: HashMap<Arc<str>, Front>,
    /// Endpoints by service and uid, whether the service is known or not.
    endpoints: HashMap<Arc<str>, Endpoints>,
    policies: HashMap<Arc<str>, Arc<Policy>>,
    /// How many workloads name each policy.
    named: HashMap<Arc<str>, usize>,
    /// Services whose endpoints have changed since they were last put together.
    stale: HashSet<Arc<str>>,
    changes: Changes,
}

#[derive(Debug)]
struct Held {
    workload: Arc<Workload>,
    services: Vec<Membership>,
}

/// A service as the wire says, and with its endpoints.
#[derive(Debug)]
struct Front {
    bare: Service,
    full: Arc<Service>,
}

/// What has changed since the last delta.
#[derive(Debug, Default)]
struct Changes {
    workloads: HashSet<Arc<str>>,
    services: HashSet<Arc<str>>,
    policies: HashSet<Arc<str>>,
    /// Policies that workloads name and that are not there, and were not missing at the last delta.
    missing: HashSet<Arc<str>>,
}

/// How much a store holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Workloads.
    pub workloads: usize,
    /// Services.
    pub services: usize,
    /// Policies.
    pub policies: usize,
}

impl Store {
    /// Takes a new version of a workload or a service; one that is equal to the last is no change.
    pub fn put_address(&mut self, address: Address) {
        match address {
            Address::Workload(member) => self.put_workload(*member),
            Address::Service(service) => self.put_service(*service),
        }
    }

    fn put_workload(&mut self, member: Member) {
        let Member { workload, services } = member;
        let uid = Arc::clone(&workload.uid);
        let previous = self.workloads.remove(&uid);
        let (old_policies, old_services): (&[_], &[_]) = match &previous {
            Some(held) => (&held.workload.policies, &held.services),
            None => (&[], &[]),
        };
        if old_services != services {
            self.leave(&uid, old_services);
            self.join(&uid, &services);
        }
        if old_policies != workload.policies {
            self.name_policies(&workload.policies);
            self.unname_policies(old_policies);
        }
        let held = match previous {
            Some(held) if *held.workload == workload => Held {
                workload: held.workload,
                services,
            },
            _ => {
                self.changes.workloads.insert(Arc::clone(&uid));
                Held {
                    workload: Arc::new(workload),
                    services,
                }
            }
        };
        self.workloads.insert(uid, held);
    }

    fn put_service(&mut self, bare: Service) {
        let key: Arc<str> = Arc::from(bare.key());
        match self.services.get_mut(&key) {
            Some(front) if front.bare == bare => return,
            Some(front) => front.bare = bare,
            None => {
                let full = Arc::new(bare.clone());
                self.services.insert(Arc::clone(&key), Front { bare, full });
            }
        }
        self.service_changed(key);
    }

    /// Takes a new version of a policy.
    pub fn put_policy(&mut self, policy: Policy) {
        let key: Arc<str> = Arc::from(policy.key());
        self.changes.missing.remove(&key);
        let same = self.policies.get(&key).is_some_and(|held| **held == policy);
        if !same {
            self.policies.insert(Arc::clone(&key), Arc::new(policy));
            self.changes.policies.insert(key);
        }
    }

    /// Forgets the workload or the service of that name.
    pub fn remove_address(&mut self, name: &str) {
        if let Some((uid, held)) = self.workloads.remove_entry(name) {
            self.leave(&uid, &held.services);
            self.unname_policies(&held.workload.policies);
            self.changes.workloads.insert(uid);
        }
        if let Some((key, _)) = self.services.remove_entry(name) {
            self.changes.services.insert(key);
        }
    }

    /// Forgets a policy.
    pub fn remove_policy(&mut self, name: &str) {
        if let Some((key, _)) = self.policies.remove_entry(name) {
            if self.named.contains_key(&key) {
                self.changes.missing.insert(Arc::clone(&key));
            }
            self.changes.policies.insert(key);
        }
    }

    /// The workload with a uid.
    pub fn workload(&self, uid: &str) -> Option<&Arc<Workload>> {
        self.workloads.get(uid).map(|held| &held.workload)
    }

    /// The services of a workload, by their keys.
    pub fn services_of(&self, uid: &str) -> impl Iterator<Item = &Arc<str>> {
        let held = self.workloads.get(uid).into_iter();
        held.flat_map(|held| held.services.iter().map(|membership| &membership.service))
    }

    /// The service with a key, its endpoints aside.
    pub fn service(&self, key: &str) -> Option<&Service> {
        self.services.get(key).map(|front| &front.bare)
    }

    /// Whether a workload has come to name a policy that is not there. Such a workload lets nothing in, and its
    /// open connections would be cut: the server sends policies and workloads one after the other, so that this is
    /// most often over at once.
    pub fn is_torn(&self) -> bool {
        !self.changes.missing.is_empty()
    }

    /// How much there is.
    pub fn counts(&self) -> Counts {
        Counts {
            workloads: self.workloads.len(),
            services: self.services.len(),
            policies: self.policies.len(),
        }
    }

    /// What has changed since the last call.
    pub fn take_delta(&mut self) -> Delta {
        self.settle();
        let changes = std::mem::take(&mut self.changes);
        let mut delta = Delta::default();
        for uid in changes.workloads {
            match self.workloads.get(&uid) {
                Some(held) => delta.workloads.push(Arc::clone(&held.workload)),
                None => delta.removed_workloads.push(uid),
            }
        }
        for key in changes.services {
            match self.services.get(&key) {
                Some(front) => delta.services.push(Arc::clone(&front.full)),
                None => delta.removed_services.push(key),
            }
        }
        for key in changes.policies {
            match self.policies.get(&key) {
                Some(policy) => delta.policies.push(Arc::clone(policy)),
                None => delta.removed_policies.push(key),
            }
        }
        delta
    }

    /// All parts.
    pub fn builder(&mut self) -> MeshBuilder {
        self.settle();
        let workloads = self.workloads.values();
        let services = self.services.values();
        MeshBuilder {
            workloads: workloads.map(|held| Arc::clone(&held.workload)).collect(),
            services: services.map(|front| Arc::clone(&front.full)).collect(),
            policies: self.policies.values().cloned().collect(),
        }
    }

    /// Joins the services that have changed with their endpoints. Put off until somebody reads them: a burst of
    /// workloads makes a large service once.
    fn settle(&mut self) {
        for key in self.stale.drain() {
            if let Some(front) = self.services.get_mut(&key) {
                front.full = Arc::new(full(&front.bare, self.endpoints.get(&key)));
            }
        }
    }

    fn service_changed(&mut self, key: Arc<str>) {
        self.stale.insert(Arc::clone(&key));
        self.changes.services.insert(key);
    }

    fn join(&mut self, uid: &Arc<str>, services: &[Membership]) {
        for membership in services {
            let key = &membership.service;
            self.endpoints
                .entry(Arc::clone(key))
                .or_default()
                .insert(Arc::clone(uid), membership.ports.clone());
            self.touch(key);
        }
    }

    fn leave(&mut self, uid: &Arc<str>, services: &[Membership]) {
        for membership in services {
            let key = &membership.service;
            if let Some(endpoints) = self.endpoints.get_mut(key) {
                endpoints.remove(uid);
                if endpoints.is_empty() {
                    self.endpoints.remove(key);
                }
            }
            self.touch(key);
        }
    }

    /// The endpoints of a service have changed. One that is not known yet has no reader.
    fn touch(&mut self, service: &Arc<str>) {
        if self.services.contains_key(service) {
            self.service_changed(Arc::clone(service));
        }
    }

    fn name_policies(&mut self, policies: &[Arc<str>]) {
        for policy in policies {
            let count = self.named.entry(Arc::clone(policy)).or_default();
            *count += 1;
            if *count == 1 && !self.policies.contains_key(policy) {
                self.changes.missing.insert(Arc::clone(policy));
            }
        }
    }

    fn unname_policies(&mut self, policies: &[Arc<str>]) {
        for policy in policies {
            let Some(count) = self.named.get_mut(policy) else {
                continue;
            };
            *count -= 1;
            if *count == 0 {
                self.named.remove(policy);
                self.changes.missing.remove(policy);
            }
        }
    }
}

fn full(bare: &Service, endpoints: Option<&Endpoints>) -> Service {
    let endpoints = endpoints.into_iter().flatten();
    Service {
        endpoints: endpoints
            .map(|(uid, ports)| ServiceEndpoint {
                workload: Arc::clone(uid),
                ports: ports.clone(),
            })
            .collect(),
        ..bare.clone()
    }
}

#[cfg(test)]
mod tests;
