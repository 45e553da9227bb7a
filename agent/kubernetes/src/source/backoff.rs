//! How long to wait before the next attempt; randomness is an argument.
use std::time::Duration;

/// Waits that double, spread so that many clients do not come back at once.
#[derive(Clone, Debug)]
pub(super) struct Backoff {
    first: Duration,
    longest: Duration,
    next: Duration,
}

impl Backoff {
    pub fn new(first: Duration, longest: Duration) -> Self {
        Self {
            first,
            longest,
            next: first,
        }
    }

    /// The wait now: between half and one and a half of the current step. `random` is in 0..1.
    pub fn wait(&mut self, random: f64) -> Duration {
        let wait = self.next.mul_f64(0.5 + random.clamp(0.0, 1.0));
        self.next = (self.next * 2).min(self.longest);
        wait
    }

    /// An attempt went well.
    pub fn reset(&mut self) {
        self.next = self.first;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_longest_and_start_over() {
        let milliseconds = Duration::from_millis;
        let mut backoff = Backoff::new(milliseconds(100), milliseconds(300));
        let waits: Vec<_> = (0..4).map(|_| backoff.wait(0.5)).collect();
        assert_eq!(waits, [100, 200, 300, 300].map(milliseconds));
        backoff.reset();
        assert_eq!(backoff.wait(0.0), milliseconds(50));
    }
}
