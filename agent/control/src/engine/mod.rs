//! The incremental translation: changes of resources in, changes of parts and of diagnostics out.
//!
//! Filing a change marks what depends on it (`marks`); a commit translates what is marked and compares it with
//! what was there. A change of a pod thus costs its own translation, and that of the services that select it if
//! its labels, addresses or ports differ.
use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    sync::Arc,
};

use undermesh_model::{Delta, MeshBuilder, Policy};

use self::{
    ledger::{Ledger, Stage},
    marks::Marks,
    pending::Pending,
};
use crate::{
    diagnostic::{Diagnostic, Severity},
    path::Path,
    resources::{Decoded, Key, Outcome, Resource, field::Problem, kinds::Kind},
    settings::Settings,
    succession::{Held, REMEDY, succeed},
    translate::inventory::{Id, Inventory},
};

mod ledger;
mod marks;
mod pending;
mod steps;

#[cfg(test)]
mod tests;

/// What happened to an object.
#[derive(Debug)]
pub enum Change {
    /// It is there, as read.
    Applied(Decoded),
    /// It is gone.
    Removed(Key),
}

/// What a commit has changed.
#[derive(Debug, Default)]
pub struct Commit {
    /// The changes of the mesh's parts.
    pub delta: Delta,
    /// Every resource whose diagnostics changed, with all that it has now: none when it is well, or gone.
    pub diagnostics: BTreeMap<Key, Vec<Diagnostic>>,
}

/// Resources, the parts made from them, and what is yet to be done.
#[derive(Debug)]
pub struct Engine {
    inventory: Inventory,
    /// The resources in force that only stand in for a bad one.
    stand_ins: HashSet<Id>,
    counts: BTreeMap<&'static str, usize>,
    /// The policy that refuses plain connections, while there is any PeerAuthentication.
    strict: Option<Arc<Policy>>,
    ledger: Ledger,
    marks: Marks,
    pending: Pending,
    /// Namespaces that lost a resource and may be empty.
    vacated: BTreeSet<Arc<str>>,
}

impl Engine {
    /// An engine without resources.
    pub fn new(settings: Settings) -> Self {
        Self {
            inventory: Inventory::new(settings),
            stand_ins: HashSet::new(),
            counts: BTreeMap::new(),
            strict: None,
            ledger: Ledger::default(),
            marks: Marks::default(),
            pending: Pending::default(),
            vacated: BTreeSet::new(),
        }
    }

    /// Files a change; it counts from the next [`Self::commit`] on.
    ///
    /// A bad object leaves its last good version in force. A bad policy that never was good is stood in for by one
    /// that denies what it selects.
    pub fn apply(&mut self, change: Change) {
        match change {
            Change::Removed(key) => {
                self.ledger.write(&key, Stage::Reading, Vec::new());
                self.file(&key, None);
            }
            Change::Applied(decoded) => {
                let Some(key) = decoded.key.clone() else {
                    return;
                };
                let mut diagnostics = decoded.diagnostics();
                let succession = succeed(&decoded.outcome, self.held(&key).as_ref());
                if let Some((_, Some(message))) = &succession {
                    diagnostics.push(decoded.origin.diagnostic(
                        Some(key.clone()),
                        Problem {
                            severity: Severity::Error,
                            path: Path::root(),
                            message: (*message).to_owned(),
                            remedy: REMEDY.to_owned(),
                        },
                    ));
                }
                self.ledger.write(&key, Stage::Reading, diagnostics);
                if !matches!(decoded.outcome, Outcome::Noted) {
                    self.file(&key, succession.map(|(held, _)| held));
                }
            }
        }
    }

    /// Files a resource that was read and found good.
    pub fn put(&mut self, resource: Resource) {
        let key = resource.metadata().key.clone();
        let held = Held {
            resource,
            is_good: true,
        };
        self.file(&key, Some(held));
    }

    /// Takes a resource away.
    pub fn remove(&mut self, key: &Key) {
        self.file(key, None);
    }

    fn held(&self, key: &Key) -> Option<Held> {
        let id = Id::of(key)?;
        Some(Held {
            resource: self.inventory.get(&id)?,
            is_good: !self.stand_ins.contains(&id),
        })
    }

    fn file(&mut self, key: &Key, held: Option<Held>) {
        let Some(id) = Id::of(key) else {
            return;
        };
        let is_stand_in = held.as_ref().is_some_and(|held| !held.is_good);
        if is_stand_in {
            self.stand_ins.insert(id.clone());
        } else {
            self.stand_ins.remove(&id);
        }
        let new = held.map(|held| held.resource);
        let old = self.inventory.replace(&id, new.clone());
        if old == new {
            return;
        }
        if new.is_none() {
            self.ledger.write(key, Stage::Translation, Vec::new());
            let is_namespace = id.kind == Kind::Namespace;
            self.vacated.insert(
                if is_namespace {
                    &id.name
                } else {
                    &id.namespace
                }
                .clone(),
            );
        }
        let count = self.counts.entry(id.kind.name()).or_default();
        *count += usize::from(new.is_some());
        *count -= usize::from(old.is_some());
        self.marks
            .changed(&id, old.as_ref(), new.as_ref(), &self.inventory);
    }

    /// Translates what changed since the last commit.
    pub fn commit(&mut self) -> Commit {
        for place in self.marks.take(Kind::AuthorizationPolicy) {
            self.translate_policy(&place);
        }
        self.rank();
        self.marks.spread(&self.inventory);
        for kind in [Kind::Pod, Kind::WorkloadEntry] {
            for (namespace, name) in self.marks.take(kind) {
                self.translate_member(&Id {
                    kind,
                    namespace,
                    name,
                });
            }
        }
        for kind in [Kind::Service, Kind::ServiceEntry] {
            for place in self.marks.take(kind) {
                self.translate_front(kind, &place);
            }
        }
        for place in self.marks.take(Kind::EndpointSlice) {
            self.check_slice(&place);
        }
        for place in self.marks.take(Kind::Namespace) {
            self.check_namespace(&place);
        }
        for namespace in std::mem::take(&mut self.vacated) {
            self.inventory.tidy(&namespace);
        }
        Commit {
            delta: std::mem::take(&mut self.pending).into_delta(),
            diagnostics: self.ledger.take_changed(),
        }
    }

    /// How many objects of each kind are in force.
    pub fn counts(&self) -> impl Iterator<Item = (&'static str, usize)> + '_ {
        let counts = self.counts.iter().map(|(kind, count)| (*kind, *count));
        counts.filter(|(_, count)| *count > 0)
    }

    /// All diagnostics, in the order of their resources.
    pub fn diagnostics(&self) -> impl Iterator<Item = &Diagnostic> {
        self.ledger.all()
    }

    /// All parts as of the last commit: a first snapshot for who follows the commits from here on.
    pub fn parts(&self) -> Delta {
        let scopes = || self.inventory.scopes.values();
        let fronts = || scopes().flat_map(|scope| scope.fronts.values());
        let members = scopes().flat_map(|scope| scope.members.values());
        let workloads = members.filter_map(|member| member.workload.as_ref());
        let rulings = scopes().flat_map(|scope| scope.rulings.values());
        let policies = rulings.filter_map(|ruling| ruling.policy.as_ref());
        let converted = scopes().flat_map(|scope| &scope.ranking.policies);
        let mut parts = Delta {
            workloads: workloads
                .chain(fronts().flat_map(|front| &front.workloads))
                .cloned()
                .collect(),
            services: fronts()
                .flat_map(|front| &front.services)
                .cloned()
                .collect(),
            policies: policies
                .chain(converted)
                .chain(&self.strict)
                .cloned()
                .collect(),
            ..Delta::default()
        };
        parts.workloads.sort_by(|a, b| a.uid.cmp(&b.uid));
        parts.services.sort_by_cached_key(|service| service.key());
        parts.policies.sort_by_cached_key(|policy| policy.key());
        parts
    }

    /// All parts as of the last commit, as a mesh is built from them.
    pub fn builder(&self) -> MeshBuilder {
        let parts = self.parts();
        MeshBuilder {
            workloads: parts.workloads,
            services: parts.services,
            policies: parts.policies,
        }
    }
}
