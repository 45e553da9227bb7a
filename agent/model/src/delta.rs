//! What differs between one state of the mesh's parts and the next.
use std::sync::Arc;

use crate::{policy::Policy, service::Service, workload::Workload};

/// Changes of parts; a part that is both changed and removed is removed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Delta {
    /// New workloads and new versions of known ones.
    pub workloads: Vec<Arc<Workload>>,
    /// New services and new versions of known ones.
    pub services: Vec<Arc<Service>>,
    /// New policies and new versions of known ones.
    pub policies: Vec<Arc<Policy>>,
    /// [`Workload::uid`] of workloads that are gone.
    pub removed_workloads: Vec<Arc<str>>,
    /// [`Service::key`] of services that are gone.
    pub removed_services: Vec<Arc<str>>,
    /// [`Policy::key`] of policies that are gone.
    pub removed_policies: Vec<Arc<str>>,
}

impl Delta {
    /// Whether nothing differs.
    pub fn is_empty(&self) -> bool {
        self.workloads.is_empty()
            && self.services.is_empty()
            && self.policies.is_empty()
            && self.removed_workloads.is_empty()
            && self.removed_services.is_empty()
            && self.removed_policies.is_empty()
    }
}
