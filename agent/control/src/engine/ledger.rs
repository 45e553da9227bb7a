//! The diagnostics of every resource, and whose have changed.
use std::collections::{BTreeMap, BTreeSet};

use crate::{diagnostic::Diagnostic, resources::Key};

/// Where a diagnostic comes from; each writes over its own only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Reading the object.
    Reading,
    /// Translating it.
    Translation,
}

/// The diagnostics of one resource, by stage.
#[derive(Debug, Default)]
struct Page([Vec<Diagnostic>; 2]);

/// The diagnostics of all resources.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    pages: BTreeMap<Key, Page>,
    changed: BTreeSet<Key>,
}

impl Ledger {
    /// Writes what a stage says of a resource now.
    pub(super) fn write(&mut self, key: &Key, stage: Stage, diagnostics: Vec<Diagnostic>) {
        if diagnostics.is_empty() && !self.pages.contains_key(key) {
            return;
        }
        let page = self.pages.entry(key.clone()).or_default();
        let lines = &mut page.0[stage as usize];
        if *lines != diagnostics {
            *lines = diagnostics;
            self.changed.insert(key.clone());
        }
        if page.0.iter().all(Vec::is_empty) {
            self.pages.remove(key);
        }
    }

    /// All diagnostics, in the order of their resources.
    pub(super) fn all(&self) -> impl Iterator<Item = &Diagnostic> {
        self.pages.values().flat_map(|page| page.0.iter().flatten())
    }

    /// Those that translating found.
    #[cfg(test)]
    pub(super) fn translated(&self) -> impl Iterator<Item = &Diagnostic> {
        let stage = Stage::Translation as usize;
        self.pages.values().flat_map(move |page| &page.0[stage])
    }

    /// Those of one resource.
    pub(super) fn of(&self, key: &Key) -> impl Iterator<Item = &Diagnostic> {
        let page = self.pages.get(key).into_iter();
        page.flat_map(|page| page.0.iter().flatten())
    }

    /// The resources whose diagnostics changed since the last call, with all that they have.
    pub(super) fn take_changed(&mut self) -> BTreeMap<Key, Vec<Diagnostic>> {
        let changed = std::mem::take(&mut self.changed);
        let page = |key: Key| {
            let diagnostics = self.of(&key).cloned().collect();
            (key, diagnostics)
        };
        changed.into_iter().map(page).collect()
    }
}
