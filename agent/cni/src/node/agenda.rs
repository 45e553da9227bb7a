//! When which pod is looked at: at once when something changed, later after a failure. No clock of its own.
use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use super::PodKey;

/// The pause after a first failure.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
/// The longest pause between two attempts.
const LONGEST_PAUSE: Duration = Duration::from_secs(15);
/// Pods that are worked on at a time.
const MAX_RUNNING: usize = 16;

/// How work on a pod ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// There is nothing more to do.
    Settled,
    /// There may be more to do at once.
    Again,
    /// There is more to do, but not before this time, whatever changes.
    Pause(Duration),
    /// It failed.
    Failed,
}

/// The pods that are due, and those that are worked on.
#[derive(Debug, Default)]
pub struct Agenda {
    due: BTreeMap<PodKey, Instant>,
    not_before: BTreeMap<PodKey, Instant>,
    running: BTreeSet<PodKey>,
    failures: BTreeMap<PodKey, u32>,
}

impl Agenda {
    /// Something changed for a pod: it is due now, also if it failed before.
    pub fn touch(&mut self, key: PodKey, now: Instant) {
        let earliest = self.not_before.get(&key).copied();
        self.due
            .insert(key, earliest.map_or(now, |earliest| earliest.max(now)));
    }

    /// Takes the pods that are due, as many as may be worked on.
    pub fn take(&mut self, now: Instant) -> Vec<PodKey> {
        let room = MAX_RUNNING.saturating_sub(self.running.len());
        let ready: Vec<PodKey> = self
            .due
            .iter()
            .filter(|(key, due)| **due <= now && !self.running.contains(*key))
            .map(|(key, _)| key.clone())
            .take(room)
            .collect();
        for key in &ready {
            self.due.remove(key);
            self.not_before.remove(key);
            self.running.insert(key.clone());
        }
        ready
    }

    /// Work on a pod has ended.
    pub fn finish(&mut self, key: PodKey, outcome: Outcome, now: Instant) {
        self.running.remove(&key);
        if outcome != Outcome::Failed {
            self.failures.remove(&key);
        }
        match outcome {
            Outcome::Settled => {}
            Outcome::Again => {
                self.due.insert(key, now);
            }
            Outcome::Pause(pause) => {
                self.not_before.insert(key.clone(), now + pause);
                self.due.insert(key, now + pause);
            }
            Outcome::Failed => {
                let failures = self.failures.entry(key.clone()).or_default();
                *failures = failures.saturating_add(1);
                // A change meanwhile has made it due already.
                self.due.entry(key).or_insert(now + pause(*failures));
            }
        }
    }

    /// When to take again, if nothing happens before.
    pub fn next(&self) -> Option<Instant> {
        if self.running.len() >= MAX_RUNNING {
            return None;
        }
        let waiting = self
            .due
            .iter()
            .filter(|(key, _)| !self.running.contains(*key));
        waiting.map(|(_, due)| *due).min()
    }
}

fn pause(failures: u32) -> Duration {
    let doublings = failures.saturating_sub(1).min(16);
    (FIRST_PAUSE * 2_u32.pow(doublings)).min(LONGEST_PAUSE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> PodKey {
        PodKey::new("shop", name).unwrap()
    }

    #[test]
    fn one_pod_is_worked_on_by_one_at_a_time() {
        let (mut agenda, now) = (Agenda::default(), Instant::now());
        agenda.touch(key("web"), now);
        assert_eq!(agenda.take(now), [key("web")]);
        agenda.touch(key("web"), now);
        assert_eq!(agenda.take(now), []);
        assert_eq!(agenda.next(), None);
        agenda.finish(key("web"), Outcome::Failed, now);
        assert_eq!(agenda.take(now), [key("web")]);
        agenda.finish(key("web"), Outcome::Settled, now);
        assert_eq!(agenda.next(), None);
    }

    #[test]
    fn failures_are_tried_again_ever_later_until_one_succeeds() {
        let (mut agenda, mut now) = (Agenda::default(), Instant::now());
        agenda.touch(key("web"), now);
        let mut pauses = Vec::new();
        for _ in 0..12 {
            assert_eq!(agenda.take(now), [key("web")]);
            agenda.finish(key("web"), Outcome::Failed, now);
            let next = agenda.next().unwrap();
            assert_eq!(agenda.take(next - Duration::from_millis(1)), []);
            pauses.push(next - now);
            now = next;
        }
        assert!(pauses.is_sorted());
        assert_eq!((pauses[0], pauses[11]), (FIRST_PAUSE, LONGEST_PAUSE));
        assert_eq!(agenda.take(now), [key("web")]);
        agenda.finish(key("web"), Outcome::Again, now);
        assert_eq!(agenda.take(now), [key("web")]);
        agenda.finish(key("web"), Outcome::Failed, now);
        assert_eq!(agenda.next(), Some(now + FIRST_PAUSE));
    }

    #[test]
    fn a_change_ends_a_pause() {
        let (mut agenda, now) = (Agenda::default(), Instant::now());
        agenda.touch(key("web"), now);
        agenda.take(now);
        agenda.finish(key("web"), Outcome::Failed, now);
        assert_eq!(agenda.take(now), []);
        agenda.touch(key("web"), now);
        assert_eq!(agenda.take(now), [key("web")]);
    }

    #[test]
    fn no_change_ends_a_pause_that_was_asked_for() {
        let (mut agenda, now) = (Agenda::default(), Instant::now());
        let pause = Duration::from_secs(2);
        agenda.touch(key("web"), now);
        agenda.take(now);
        agenda.touch(key("web"), now);
        agenda.finish(key("web"), Outcome::Pause(pause), now);
        agenda.touch(key("web"), now);
        assert_eq!(
            (agenda.take(now), agenda.next()),
            (vec![], Some(now + pause))
        );
        assert_eq!(agenda.take(now + pause), [key("web")]);
        agenda.finish(key("web"), Outcome::Settled, now + pause);
        agenda.touch(key("web"), now + pause);
        assert_eq!(agenda.take(now + pause), [key("web")]);
    }

    #[test]
    fn work_is_bounded() {
        let (mut agenda, now) = (Agenda::default(), Instant::now());
        for number in 0..MAX_RUNNING + 1 {
            agenda.touch(key(&format!("web-{number}")), now);
        }
        let taken = agenda.take(now);
        assert_eq!(taken.len(), MAX_RUNNING);
        assert_eq!((agenda.take(now), agenda.next()), (Vec::new(), None));
        agenda.finish(taken[0].clone(), Outcome::Settled, now);
        assert_eq!(agenda.take(now).len(), 1);
    }
}
