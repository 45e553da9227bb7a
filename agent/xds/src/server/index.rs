//! Names by what they are looked up by.
use std::{collections::HashMap, sync::Arc};

/// Names by key. Most keys have one.
#[derive(Debug, Default)]
pub(crate) struct Index(HashMap<Arc<str>, Vec<Arc<str>>>);

impl Index {
    pub(crate) fn get(&self, key: &str) -> &[Arc<str>] {
        self.0.get(key).map_or(&[], Vec::as_slice)
    }

    /// An empty key is none: workloads of unknown nodes are not of one node.
    pub(crate) fn add(&mut self, key: &Arc<str>, name: &Arc<str>) {
        if key.is_empty() {
            return;
        }
        let names = self.0.entry(Arc::clone(key)).or_default();
        if !names.contains(name) {
            names.push(Arc::clone(name));
        }
    }

    pub(crate) fn remove(&mut self, key: &str, name: &str) {
        let Some(names) = self.0.get_mut(key) else {
            return;
        };
        names.retain(|known| &**known != name);
        if names.is_empty() {
            self.0.remove(key);
        }
    }
}
