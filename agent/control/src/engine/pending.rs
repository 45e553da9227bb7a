//! The changes of parts that a commit gathers.
use std::{collections::BTreeMap, sync::Arc};

use undermesh_model::{Delta, Policy, Service, Workload};

/// New versions of parts by key, or nothing for those that are gone.
#[derive(Debug)]
pub(super) struct Changes<T>(BTreeMap<Arc<str>, Option<Arc<T>>>);

impl<T> Default for Changes<T> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<T> Changes<T> {
    /// A part is new or has changed.
    pub(super) fn set(&mut self, key: Arc<str>, part: Arc<T>) {
        self.0.insert(key, Some(part));
    }

    /// A part is gone, unless another resource has made it anew: a key can pass from one to another.
    pub(super) fn unset(&mut self, key: Arc<str>) {
        self.0.entry(key).or_insert(None);
    }

    fn split(self) -> (Vec<Arc<T>>, Vec<Arc<str>>) {
        let (mut changed, mut removed) = (Vec::new(), Vec::new());
        for (key, part) in self.0 {
            match part {
                Some(part) => changed.push(part),
                None => removed.push(key),
            }
        }
        (changed, removed)
    }
}

impl<T: PartialEq> Changes<T> {
    /// Compares what one resource made before with what it makes now. Where nothing differs, the version from
    /// before stays, so that it is the same for all who hold it.
    pub(super) fn compare(
        &mut self,
        before: &[Arc<T>],
        now: Vec<T>,
        key: impl Fn(&T) -> Arc<str>,
    ) -> Vec<Arc<T>> {
        let mut left: BTreeMap<Arc<str>, &Arc<T>> =
            before.iter().map(|part| (key(part), part)).collect();
        let mut parts = Vec::with_capacity(now.len());
        for part in now {
            let key = key(&part);
            match left.remove(&key) {
                Some(before) if **before == part => parts.push(before.clone()),
                _ => {
                    let part = Arc::new(part);
                    self.set(key, part.clone());
                    parts.push(part);
                }
            }
        }
        left.into_keys().for_each(|key| self.unset(key));
        parts
    }
}

/// All changes of a commit.
#[derive(Debug, Default)]
pub(super) struct Pending {
    pub(super) workloads: Changes<Workload>,
    pub(super) services: Changes<Service>,
    pub(super) policies: Changes<Policy>,
}

impl Pending {
    pub(super) fn into_delta(self) -> Delta {
        let (workloads, removed_workloads) = self.workloads.split();
        let (services, removed_services) = self.services.split();
        let (policies, removed_policies) = self.policies.split();
        Delta {
            workloads,
            services,
            policies,
            removed_workloads,
            removed_services,
            removed_policies,
        }
    }
}
