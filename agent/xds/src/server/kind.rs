//! The types of resources.
use std::sync::Arc;

use super::{catalog::Catalog, interests::Topic, shelf::Shelf};
use crate::wire::{ADDRESS_TYPE, AUTHORIZATION_TYPE};

/// The types that are served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// `istio.workload.Address`: workloads and services.
    Address,
    /// `istio.security.Authorization`: policies.
    Authorization,
}

impl Kind {
    /// The kind with a type URL.
    pub fn of(type_url: &str) -> Option<Self> {
        match type_url {
            ADDRESS_TYPE => Some(Self::Address),
            AUTHORIZATION_TYPE => Some(Self::Authorization),
            _ => None,
        }
    }

    /// Its type URL.
    pub fn type_url(self) -> &'static str {
        match self {
            Self::Address => ADDRESS_TYPE,
            Self::Authorization => AUTHORIZATION_TYPE,
        }
    }

    pub(crate) fn shelf(self, catalog: &Catalog) -> &Shelf {
        match self {
            Self::Address => &catalog.addresses,
            Self::Authorization => &catalog.policies,
        }
    }

    pub(crate) fn topic(self, key: &Arc<str>) -> Topic {
        match self {
            Self::Address => Topic::Key(Arc::clone(key)),
            Self::Authorization => Topic::Policy(Arc::clone(key)),
        }
    }
}
