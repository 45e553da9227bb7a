//! Keys with the time at which each is due, and how often each has failed.
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use tokio::time::Instant;
use undermesh_control::resources::Key;

/// What is to be looked at, and when.
#[derive(Debug, Default)]
pub(super) struct Queue {
    by_time: BTreeSet<(Instant, Key)>,
    by_key: BTreeMap<Key, Instant>,
    failures: BTreeMap<Key, u32>,
}

impl Queue {
    /// Has a key looked at from `at` on, and no earlier.
    pub fn schedule(&mut self, key: Key, at: Instant) {
        if let Some(before) = self.by_key.insert(key.clone(), at) {
            self.by_time.remove(&(before, key.clone()));
        }
        self.by_time.insert((at, key));
    }

    /// Forgets a key.
    pub fn forget(&mut self, key: &Key) {
        if let Some(at) = self.by_key.remove(key) {
            self.by_time.remove(&(at, key.clone()));
        }
        self.failures.remove(key);
    }

    /// When the next key is due.
    pub fn next(&self) -> Option<Instant> {
        self.by_time.first().map(|(at, _)| *at)
    }

    /// Takes the first key that is due.
    pub fn pop(&mut self, now: Instant) -> Option<Key> {
        let is_due = self.next().is_some_and(|at| at <= now);
        let (_, key) = is_due.then(|| self.by_time.pop_first()).flatten()?;
        self.by_key.remove(&key);
        Some(key)
    }

    /// Notes that a key went well.
    pub fn succeeded(&mut self, key: &Key) {
        self.failures.remove(key);
    }

    /// Has a key looked at again after a failure, unless it is scheduled already; returns how often it has failed.
    pub fn failed(&mut self, key: Key, now: Instant, first: Duration, longest: Duration) -> u32 {
        let count = self.failures.entry(key.clone()).or_default();
        let wait = first.saturating_mul(1 << (*count).min(16)).min(longest);
        *count = count.saturating_add(1);
        let count = *count;
        self.schedule(key, now + wait);
        count
    }
}

#[cfg(test)]
mod tests {
    use undermesh_control::resources::kinds::Kind;

    use super::*;

    fn key(name: &str) -> Key {
        Key::new(Kind::ServiceEntry, "shop".into(), name.into())
    }

    #[test]
    fn keys_come_when_they_are_due_and_only_once() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        let second = Duration::from_secs(1);
        queue.schedule(key("late"), now + second);
        queue.schedule(key("early"), now);
        queue.schedule(key("early"), now);
        assert_eq!(queue.pop(now), Some(key("early")));
        assert_eq!(queue.pop(now), None);
        assert_eq!(queue.next(), Some(now + second));
        queue.forget(&key("late"));
        assert_eq!(queue.pop(now + second), None);
    }

    #[test]
    fn a_change_while_waiting_puts_off() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        let second = Duration::from_secs(1);
        queue.schedule(key("a"), now);
        queue.schedule(key("a"), now + second);
        assert_eq!(queue.pop(now), None);
        assert_eq!(queue.pop(now + second), Some(key("a")));
    }

    #[test]
    fn failures_wait_longer_each_time() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        let (first, longest) = (Duration::from_secs(1), Duration::from_secs(3));
        let mut waits = Vec::new();
        for _ in 0..3 {
            queue.failed(key("a"), now, first, longest);
            waits.push(queue.next().unwrap() - now);
        }
        assert_eq!(waits, [1, 2, 3].map(Duration::from_secs));
        queue.succeeded(&key("a"));
        assert_eq!(queue.failed(key("a"), now, first, longest), 1);
    }
}
