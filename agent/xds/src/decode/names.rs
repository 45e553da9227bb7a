//! Texts that many resources hold, each kept once.
use std::{collections::HashSet, sync::Arc};

/// Fewest texts that are looked through for unused ones.
const FIRST_SWEEP: usize = 1024;

/// The texts in use. One that nothing else holds is forgotten in time.
#[derive(Debug)]
pub(super) struct Names {
    known: HashSet<Arc<str>>,
    sweep_at: usize,
}

impl Default for Names {
    fn default() -> Self {
        Self {
            known: HashSet::new(),
            sweep_at: FIRST_SWEEP,
        }
    }
}

impl Names {
    /// The shared form of a text.
    pub(super) fn get(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.known.get(text) {
            return Arc::clone(known);
        }
        if self.known.len() >= self.sweep_at {
            self.sweep();
        }
        let name: Arc<str> = Arc::from(text);
        self.known.insert(Arc::clone(&name));
        name
    }

    /// At twice the number that was left by the last one, so that each text costs a constant share of sweeps.
    fn sweep(&mut self) {
        self.known.retain(|name| Arc::strong_count(name) > 1);
        self.sweep_at = (self.known.len() * 2).max(FIRST_SWEEP);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_texts_share_one_allocation() {
        let mut names = Names::default();
        let (one, other) = (names.get("shop"), names.get("shop"));
        assert!(Arc::ptr_eq(&one, &other));
    }

    #[test]
    fn texts_that_nobody_holds_do_not_pile_up() {
        let mut names = Names::default();
        let kept = names.get("kept");
        for number in 0..10 * FIRST_SWEEP {
            names.get(&number.to_string());
        }
        assert!(names.known.len() <= 2 * FIRST_SWEEP);
        assert!(Arc::ptr_eq(&kept, &names.get("kept")));
    }
}
