//! A pool of texts: many objects of a cluster share node names, namespaces, label keys and values.
use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
};

/// Fewest texts at which unused ones are looked for.
const FIRST_SWEEP: usize = 1024;

/// The pool; clones share it.
#[derive(Clone, Debug, Default)]
pub struct Strings(Arc<Mutex<Pool>>);

#[derive(Debug, Default)]
struct Pool {
    texts: HashSet<Arc<str>>,
    /// Size at which texts that nobody else holds are dropped.
    sweep_at: usize,
}

impl Strings {
    /// The one copy of a text.
    pub fn get(&self, text: &str) -> Arc<str> {
        if text.is_empty() {
            return Arc::default();
        }
        let mut pool = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = pool.texts.get(text) {
            return found.clone();
        }
        if pool.texts.len() >= pool.sweep_at {
            pool.texts.retain(|text| Arc::strong_count(text) > 1);
            // Doubling keeps the cost of sweeping in proportion to what was added.
            pool.sweep_at = (pool.texts.len() * 2).max(FIRST_SWEEP);
        }
        let text: Arc<str> = Arc::from(text);
        pool.texts.insert(text.clone());
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_texts_are_one() {
        let strings = Strings::default();
        assert!(Arc::ptr_eq(&strings.get("a"), &strings.clone().get("a")));
    }

    #[test]
    fn texts_that_nobody_holds_are_dropped() {
        let strings = Strings::default();
        for number in 0..10 * FIRST_SWEEP {
            strings.get(&number.to_string());
        }
        assert!(strings.0.lock().unwrap().texts.len() <= FIRST_SWEEP);
    }
}
