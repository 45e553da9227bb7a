//! From the results of a probe to what is said of an application. No I/O, no clock.
use crate::probe::Pace;

/// What is said of an application.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It is well.
    Healthy,
    /// It is not, for this reason.
    Unhealthy(String),
}

/// Counts results in a row.
#[derive(Clone, Debug)]
pub struct Monitor {
    pace: Pace,
    state: State,
    successes: u32,
    failures: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Unknown,
    Healthy,
    Unhealthy,
}

impl Monitor {
    /// Nothing is known yet.
    pub fn new(pace: Pace) -> Self {
        Self {
            pace,
            state: State::Unknown,
            successes: 0,
            failures: 0,
        }
    }

    /// Takes a result; returns what is to be said, if that has changed.
    pub fn take(&mut self, result: Result<(), String>) -> Option<Verdict> {
        match result {
            Ok(()) => {
                self.failures = 0;
                self.successes = self.successes.saturating_add(1);
                let turned = self.successes >= self.pace.successes && self.state != State::Healthy;
                turned.then(|| {
                    self.state = State::Healthy;
                    Verdict::Healthy
                })
            }
            Err(reason) => {
                self.successes = 0;
                self.failures = self.failures.saturating_add(1);
                let turned = self.failures >= self.pace.failures && self.state != State::Unhealthy;
                turned.then(|| {
                    self.state = State::Unhealthy;
                    Verdict::Unhealthy(reason)
                })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn monitor(successes: u32, failures: u32) -> Monitor {
        Monitor::new(Pace {
            successes,
            failures,
            ..Pace::default()
        })
    }

    fn failure() -> Result<(), String> {
        Err("refused".to_owned())
    }

    #[test]
    fn one_failure_among_successes_changes_nothing() {
        let mut monitor = monitor(1, 2);
        assert_eq!(monitor.take(Ok(())), Some(Verdict::Healthy));
        assert_eq!(monitor.take(failure()), None);
        assert_eq!(monitor.take(Ok(())), None);
        assert_eq!(monitor.take(failure()), None);
        let told = Verdict::Unhealthy("refused".to_owned());
        assert_eq!(monitor.take(failure()), Some(told));
        assert_eq!(monitor.take(failure()), None);
        assert_eq!(monitor.take(Ok(())), Some(Verdict::Healthy));
    }

    proptest! {
        #[test]
        fn verdicts_alternate_and_follow_enough_results_in_a_row(
            successes in 1..4u32,
            failures in 1..4u32,
            results in prop::collection::vec(any::<bool>(), 0..64),
        ) {
            let mut monitor = monitor(successes, failures);
            let mut last = None;
            for (index, success) in results.iter().enumerate() {
                let verdict = monitor.take(if *success { Ok(()) } else { failure() });
                let Some(verdict) = verdict else { continue };
                let healthy = verdict == Verdict::Healthy;
                prop_assert_ne!(last, Some(healthy));
                prop_assert_eq!(healthy, *success);
                let needed = if healthy { successes } else { failures } as usize;
                prop_assert!(index + 1 >= needed);
                let row = &results[index + 1 - needed..=index];
                prop_assert!(row.iter().all(|it| it == success));
                last = Some(healthy);
            }
        }
    }
}
