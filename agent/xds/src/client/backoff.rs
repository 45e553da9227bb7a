//! How long to wait before the next attempt, as a function of failures and chance.
use std::time::Duration;

use rand::{Rng, RngExt};

/// The first wait.
pub const FIRST: Duration = Duration::from_millis(10);
/// The longest wait.
pub const LONGEST: Duration = Duration::from_secs(15);
/// A stream that lasted this long was a working one: the next failure is a first one. Shorter ones count as
/// failures even if they ended in order, so that a server that ends every stream at once is not overrun.
pub const STABLE: Duration = LONGEST;

/// Waits that double up to [`LONGEST`], each shortened by up to a half, so that the nodes of a mesh that lost
/// their server together do not come back together.
#[derive(Clone, Debug)]
pub struct Backoff {
    next: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { next: FIRST }
    }
}

impl Backoff {
    /// A stream ended after `lasted`: how long to wait before the next one.
    pub fn ended(&mut self, lasted: Duration, rng: &mut impl Rng) -> Duration {
        if lasted >= STABLE {
            self.next = FIRST;
        }
        let wait = self.next;
        self.next = (wait * 2).min(LONGEST);
        wait.mul_f64(rng.random_range(0.5..1.0))
    }
}

#[cfg(test)]
mod tests {
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;

    #[test]
    fn waits_double_up_to_the_longest() {
        let (mut backoff, mut rng) = (Backoff::default(), StdRng::seed_from_u64(1));
        let mut planned = FIRST;
        for _ in 0..20 {
            let wait = backoff.ended(Duration::ZERO, &mut rng);
            assert!(
                wait >= planned / 2 && wait < planned,
                "{wait:?} of {planned:?}"
            );
            planned = (planned * 2).min(LONGEST);
        }
    }

    #[test]
    fn a_stream_that_worked_starts_over() {
        let (mut backoff, mut rng) = (Backoff::default(), StdRng::seed_from_u64(1));
        for _ in 0..20 {
            backoff.ended(Duration::ZERO, &mut rng);
        }
        assert!(backoff.ended(STABLE, &mut rng) < FIRST);
    }
}
