//! The policies of a mesh, found by what they govern.
use std::{collections::HashMap, sync::Arc};

use crate::{
    evaluation::{Named, judge},
    policy::{Policy, Request, Scope, Verdict},
    workload::Workload,
};

/// Policies by key and by reach.
#[derive(Default)]
pub(crate) struct Rulebook {
    by_key: HashMap<Arc<str>, Named>,
    global: Vec<Named>,
    by_namespace: HashMap<Arc<str>, Vec<Named>>,
}

impl Rulebook {
    pub(crate) fn new<'a>(policies: impl Iterator<Item = &'a Arc<Policy>>) -> Self {
        let mut book = Self::default();
        for policy in policies {
            book.add(Named {
                key: Arc::from(policy.key()),
                policy: Arc::clone(policy),
            });
        }
        book
    }

    fn add(&mut self, named: Named) {
        match named.policy.scope {
            Scope::Global => self.global.push(named.clone()),
            Scope::Namespace => {
                let namespace = Arc::clone(&named.policy.namespace);
                self.by_namespace
                    .entry(namespace)
                    .or_default()
                    .push(named.clone());
            }
            Scope::WorkloadSelector => {}
        }
        self.by_key.insert(Arc::clone(&named.key), named);
    }

    pub(crate) fn policy(&self, key: &str) -> Option<&Arc<Policy>> {
        self.by_key.get(key).map(|named| &named.policy)
    }

    /// Judges by every policy that governs `destination`: global ones, its namespace's, those it names.
    pub(crate) fn evaluate(&self, destination: &Workload, request: &Request<'_>) -> Verdict {
        let namespace = &destination.namespace;
        let named = destination
            .policies
            .iter()
            .filter_map(|key| self.by_key.get(key));
        let governing = self
            .global
            .iter()
            .chain(self.by_namespace.get(namespace).into_iter().flatten())
            .chain(named.filter(|named| !reaches(&named.policy, namespace)));
        let missing = destination
            .policies
            .iter()
            .find(|key| !self.by_key.contains_key(*key));
        judge(governing, missing, request)
    }
}

/// Whether the policy governs the whole namespace by its scope, named or not.
fn reaches(policy: &Policy, namespace: &str) -> bool {
    match policy.scope {
        Scope::Global => true,
        Scope::Namespace => &*policy.namespace == namespace,
        Scope::WorkloadSelector => false,
    }
}
