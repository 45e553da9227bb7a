//! What the store keeps by: keys of objects, parts of them, and the changes in its log.
use std::sync::Arc;

use serde_json::Value;

use super::kinds::KindInfo;

/// Where an object is kept; sorts as the API lists.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    pub group: String,
    pub plural: String,
    pub namespace: String,
    pub name: String,
}

/// Which part of an object a write concerns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    /// All but `status`, when that is a subresource.
    Main,
    /// `status` alone.
    Status,
    /// Everything: a test plays the components of a cluster.
    Whole,
}

/// One change.
#[derive(Clone, Debug)]
pub(super) struct Event {
    pub revision: u64,
    pub key: Key,
    /// The object before, as far as there was one.
    pub before: Option<Arc<Value>>,
    /// The object after; for a deletion the last state with the version of the deletion.
    pub after: Arc<Value>,
    pub deleted: bool,
}

pub(super) fn key_of(kind: &KindInfo, namespace: &str, name: &str) -> Key {
    Key {
        group: kind.group.clone(),
        plural: kind.plural.clone(),
        namespace: if kind.namespaced {
            namespace.to_owned()
        } else {
            String::new()
        },
        name: name.to_owned(),
    }
}
