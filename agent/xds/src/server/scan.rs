//! A client that wants all resources of a type: its place in the order of their changes.
use std::{collections::HashMap, time::Instant};

use super::{
    batch::Batch,
    shelf::{Item, Lagging, Shelf},
};

/// How far a client has been told. What it holds does not grow with the number of changes.
#[derive(Debug)]
pub(crate) struct Scan {
    /// Changes up to this place have been told, but for `backlog`.
    changes: u64,
    /// Removals up to this place have been told, but for `gone`.
    removals: u64,
    /// Places of resources that a client which came back does not have in their present form, last first. One
    /// that changes meanwhile leaves its place, and is found by the scan.
    backlog: Vec<u64>,
    /// Names that a client which came back still has and that are gone.
    gone: Vec<String>,
    /// The place of the last change when it began: up to here it is a snapshot, from here on it is news.
    began: u64,
}

impl Scan {
    /// Starts for a client that has `versions` by name. What it has is left out, what is gone is removed.
    pub(crate) fn begin(shelf: &Shelf, revision: u64, versions: HashMap<String, String>) -> Self {
        let missing = shelf.changed_after(0).filter(|(name, item)| {
            let held = versions.get(&***name);
            !held.is_some_and(|version| item.encoded.is(version))
        });
        let mut backlog: Vec<u64> = match versions.is_empty() {
            true => Vec::new(),
            false => missing.map(|(_, item)| item.changed.revision).collect(),
        };
        // With nothing in its present form the scan itself does it.
        let has_none = versions.is_empty() || backlog.len() == shelf.len();
        if has_none {
            backlog = Vec::new();
        }
        backlog.reverse();
        backlog.shrink_to_fit();
        let names = versions.into_keys();
        Self {
            changes: if has_none { 0 } else { revision },
            removals: revision,
            backlog,
            gone: names.filter(|name| shelf.get(name).is_none()).collect(),
            began: revision,
        }
    }

    /// Whether the client lacks part of the snapshot.
    pub(crate) fn is_incomplete(&self) -> bool {
        !self.backlog.is_empty() || self.changes < self.began
    }

    /// The place up to which the client knows everything.
    pub(crate) fn told(&self) -> u64 {
        match self.backlog.is_empty() {
            true => self.changes,
            false => 0,
        }
    }

    /// How many resources the client has not in their present form.
    pub(crate) fn behind(&self, shelf: &Shelf) -> usize {
        self.backlog.len() + self.gone.len() + shelf.changed_after(self.changes).count()
    }

    /// Adds changed resources until the batch is full.
    pub(crate) fn add_changes(&mut self, shelf: &Shelf, revision: u64, batch: &mut Batch) {
        while !batch.is_full()
            && let Some(place) = self.backlog.pop()
        {
            if let Some(item) = shelf.at(place) {
                batch.add(item.encoded.bytes.clone(), None);
            }
        }
        for (_, item) in shelf.changed_after(self.changes) {
            if batch.is_full() {
                return;
            }
            batch.add(item.encoded.bytes.clone(), self.news(item));
            self.changes = item.changed.revision;
        }
        if !batch.is_full() {
            self.changes = revision;
        }
    }

    /// Adds the names of removed resources until the batch is full, as far as removals came before `limit`.
    ///
    /// # Errors
    /// When removals that the client has not been told of are no longer remembered.
    pub(crate) fn add_removals(
        &mut self,
        shelf: &Shelf,
        limit: u64,
        batch: &mut Batch,
    ) -> Result<(), Lagging> {
        while limit >= self.began
            && !batch.is_full()
            && let Some(name) = self.gone.pop()
        {
            if shelf.get(&name).is_none() {
                batch.remove(&name);
            }
        }
        for (place, name) in shelf.removed_after(self.removals)? {
            if batch.is_full() || place > limit {
                break;
            }
            batch.remove(name);
            self.removals = place;
        }
        Ok(())
    }

    fn news(&self, item: &Item) -> Option<Instant> {
        (item.changed.revision > self.began).then_some(item.changed.time)
    }
}
