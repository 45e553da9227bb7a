//! The resources of one type, by name and in the order of their last change.
use std::{
    collections::{BTreeMap, HashMap},
    ops::Bound,
    sync::Arc,
    time::Instant,
};

use super::frame::Encoded;

/// Most removals that are remembered, for clients that have not heard of them.
const MAX_GRAVES: usize = 1 << 16;

/// A client has not been told of removals that are no longer remembered. It has to connect anew and say what it has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the client is too many changes behind; connect again with the versions of its resources")]
pub struct Lagging;

/// When something changed: its place in the order of all changes, and the time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stamp {
    pub(crate) revision: u64,
    pub(crate) time: Instant,
}

/// A resource and its last change.
#[derive(Debug)]
pub(crate) struct Item {
    pub(crate) encoded: Encoded,
    pub(crate) changed: Stamp,
}

/// Resources by name. Each is listed once in the order of changes, however often it changed.
#[derive(Debug, Default)]
pub(crate) struct Shelf {
    items: HashMap<Arc<str>, Item>,
    order: BTreeMap<u64, Arc<str>>,
    graves: BTreeMap<u64, Arc<str>>,
    buried: HashMap<Arc<str>, u64>,
    /// The last removal that is no longer remembered.
    forgotten: u64,
}

impl Shelf {
    /// Sets a resource. Whether it differs from what was there.
    pub(crate) fn put(&mut self, name: &Arc<str>, encoded: Encoded, changed: Stamp) -> bool {
        if let Some(item) = self.items.get(name) {
            if item.encoded == encoded {
                return false;
            }
            self.order.remove(&item.changed.revision);
        }
        if let Some(revision) = self.buried.remove(name) {
            self.graves.remove(&revision);
        }
        self.order.insert(changed.revision, Arc::clone(name));
        self.items
            .insert(Arc::clone(name), Item { encoded, changed });
        true
    }

    /// Removes a resource. Whether it was there.
    pub(crate) fn remove(&mut self, name: &str, revision: u64) -> bool {
        let Some((name, item)) = self.items.remove_entry(name) else {
            return false;
        };
        self.order.remove(&item.changed.revision);
        self.graves.insert(revision, Arc::clone(&name));
        self.buried.insert(name, revision);
        if self.graves.len() > MAX_GRAVES
            && let Some((revision, name)) = self.graves.pop_first()
        {
            self.buried.remove(&name);
            self.forgotten = revision;
        }
        true
    }

    pub(crate) fn get(&self, name: &str) -> Option<&Item> {
        self.items.get(name)
    }

    pub(crate) fn len(&self) -> usize {
        self.items.len()
    }

    /// The resource whose last change has this place; `None` when it has changed since.
    pub(crate) fn at(&self, revision: u64) -> Option<&Item> {
        self.items.get(self.order.get(&revision)?)
    }

    /// Resources that changed after a revision, in that order.
    pub(crate) fn changed_after(&self, revision: u64) -> impl Iterator<Item = (&Arc<str>, &Item)> {
        let names = self
            .order
            .range((Bound::Excluded(revision), Bound::Unbounded));
        names.filter_map(|(_, name)| Some((name, self.items.get(name)?)))
    }

    /// Names of resources that were removed after a revision and are not there again, with the places of their removals.
    ///
    /// # Errors
    /// When some of them are no longer remembered.
    pub(crate) fn removed_after(
        &self,
        revision: u64,
    ) -> Result<impl Iterator<Item = (u64, &Arc<str>)>, Lagging> {
        if revision < self.forgotten {
            return Err(Lagging);
        }
        let graves = self
            .graves
            .range((Bound::Excluded(revision), Bound::Unbounded));
        Ok(graves.map(|(revision, name)| (*revision, name)))
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn stamp(revision: u64) -> Stamp {
        Stamp {
            revision,
            time: Instant::now(),
        }
    }

    fn encoded(text: &'static str) -> Encoded {
        Encoded {
            bytes: Bytes::from_static(text.as_bytes()),
            version: None,
        }
    }

    fn changed(shelf: &Shelf, revision: u64) -> Vec<&str> {
        shelf
            .changed_after(revision)
            .map(|(name, _)| &**name)
            .collect()
    }

    fn removed(shelf: &Shelf, revision: u64) -> Vec<&str> {
        shelf
            .removed_after(revision)
            .unwrap()
            .map(|(_, name)| &**name)
            .collect()
    }

    #[test]
    fn a_resource_is_listed_once_at_its_last_change() {
        let (mut shelf, a, b) = (Shelf::default(), Arc::from("a"), Arc::from("b"));
        assert!(shelf.put(&a, encoded("1"), stamp(1)));
        assert!(shelf.put(&b, encoded("1"), stamp(2)));
        assert!(!shelf.put(&b, encoded("1"), stamp(3)));
        assert!(shelf.put(&a, encoded("2"), stamp(4)));
        assert_eq!(changed(&shelf, 0), ["b", "a"]);
        assert_eq!(changed(&shelf, 2), ["a"]);
        assert!(shelf.at(1).is_none());
    }

    #[test]
    fn a_resource_that_is_there_again_is_not_listed_as_removed() {
        let (mut shelf, a) = (Shelf::default(), Arc::from("a"));
        shelf.put(&a, encoded("1"), stamp(1));
        assert!(shelf.remove("a", 2));
        assert!(!shelf.remove("a", 3));
        assert_eq!(
            (changed(&shelf, 0), removed(&shelf, 1)),
            (vec![], vec!["a"])
        );
        shelf.put(&a, encoded("1"), stamp(4));
        assert_eq!(
            (changed(&shelf, 2), removed(&shelf, 1)),
            (vec!["a"], vec![])
        );
    }

    #[test]
    fn who_missed_a_forgotten_removal_is_told_so() {
        let mut shelf = Shelf::default();
        for number in 1..=MAX_GRAVES as u64 + 1 {
            shelf.put(&number.to_string().into(), encoded(""), stamp(2 * number));
            shelf.remove(&number.to_string(), 2 * number + 1);
        }
        assert!(shelf.removed_after(2).is_err());
        assert_eq!(removed(&shelf, 3).len(), MAX_GRAVES);
    }
}
