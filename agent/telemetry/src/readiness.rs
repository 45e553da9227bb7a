//! Readiness: the node is ready when nothing blocks it any more.
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// What still has to happen, by name.
#[derive(Clone, Debug, Default)]
pub struct Readiness(Arc<Mutex<BTreeMap<String, usize>>>);

/// Blocks readiness until dropped.
#[derive(Debug)]
#[must_use = "the task counts as done when this is dropped"]
pub struct ReadyGuard {
    readiness: Readiness,
    name: String,
}

impl Readiness {
    /// Ready, until something blocks it.
    pub fn new() -> Self {
        Self::default()
    }

    /// Holds readiness back under `name` until the guard is dropped.
    pub fn block(&self, name: impl Into<String>) -> ReadyGuard {
        let name = name.into();
        *self.lock().entry(name.clone()).or_default() += 1;
        ReadyGuard {
            readiness: self.clone(),
            name,
        }
    }

    /// What readiness waits for; empty when ready.
    pub fn pending(&self) -> Vec<String> {
        self.lock().keys().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ReadyGuard {
    /// The task is done.
    pub fn done(self) {}
}

impl Drop for ReadyGuard {
    fn drop(&mut self) {
        let mut tasks = self.readiness.lock();
        if let Some(count) = tasks.get_mut(&self.name) {
            *count -= 1;
            if *count == 0 {
                tasks.remove(&self.name);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_when_every_task_is_done() {
        let readiness = Readiness::new();
        let first = readiness.block("manifests");
        let second = readiness.block("manifests");
        let third = readiness.block("capture");
        assert_eq!(readiness.pending(), ["capture", "manifests"]);
        first.done();
        drop(third);
        assert_eq!(readiness.pending(), ["manifests"]);
        second.done();
        assert!(readiness.pending().is_empty());
    }
}
