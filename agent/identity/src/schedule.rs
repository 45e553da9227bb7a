//! When to rotate or to try again, as a function of time, validity, failures and chance. No clock, no runtime.
use std::time::{Duration, SystemTime};

use rand::{Rng, RngExt};

/// Shortest time between two certificates of one identity, whatever the issuer says about their validity.
pub const MIN_INTERVAL: Duration = Duration::from_secs(1);
/// Longest single wait: a step of the machine's clock is noticed after this time at the latest.
pub const MAX_NAP: Duration = Duration::from_secs(60);
/// How far from half of the life a rotation may fall, so that a node's certificates do not all rotate at once.
pub const ROTATION_JITTER: f64 = 0.1;
/// The first retry comes after this many seconds.
pub const FIRST_RETRY_SECONDS: std::ops::Range<f64> = 0.5..1.0;
/// The wait between retries grows up to this.
pub const MAX_RETRY: Duration = Duration::from_secs(150);
/// How far from its plan a retry may fall.
pub const RETRY_JITTER: f64 = 0.2;

/// When one identity's next certificate is to be asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule {
    due: SystemTime,
    failures: u32,
}

impl Schedule {
    /// A certificate is needed now.
    pub fn new(now: SystemTime) -> Self {
        Self {
            due: now,
            failures: 0,
        }
    }

    /// When to ask.
    pub fn due(&self) -> SystemTime {
        self.due
    }

    /// How often in a row asking failed.
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// How long to sleep before looking again; zero when it is time to ask.
    pub fn wait(&self, now: SystemTime) -> Duration {
        self.due
            .duration_since(now)
            .unwrap_or_default()
            .min(MAX_NAP)
    }

    /// A certificate came: the next one is due at half of the time that this one still holds.
    ///
    /// The life is counted from `now`, not from a `not_before` that issuers date back for clocks that lag; else
    /// a short certificate would be past its half at birth.
    pub fn succeeded(
        &mut self,
        now: SystemTime,
        not_before: SystemTime,
        not_after: SystemTime,
        rng: &mut impl Rng,
    ) {
        let life = not_after
            .duration_since(now.max(not_before))
            .unwrap_or_default();
        let half = (life / 2).mul_f64(spread(ROTATION_JITTER, rng));
        self.failures = 0;
        self.due = later(now, half.max(MIN_INTERVAL));
    }

    /// Asking failed: try again after a wait that doubles each time.
    pub fn failed(&mut self, now: SystemTime, rng: &mut impl Rng) {
        let first = rng.random_range(FIRST_RETRY_SECONDS);
        // Beyond 2^16 the wait is at its limit anyway.
        let doubled = first * f64::from(2u32.pow(self.failures.min(16)));
        let wait = Duration::from_secs_f64(doubled).min(MAX_RETRY);
        self.failures = self.failures.saturating_add(1);
        self.due = later(now, wait.mul_f64(spread(RETRY_JITTER, rng)));
    }
}

/// A factor around one.
fn spread(jitter: f64, rng: &mut impl Rng) -> f64 {
    rng.random_range(1.0 - jitter..1.0 + jitter)
}

fn later(now: SystemTime, wait: Duration) -> SystemTime {
    // A time that cannot be told is never reached by waiting; looking again at once is the safe side.
    now.checked_add(wait).unwrap_or(now)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rand::{SeedableRng, rngs::StdRng};

    const DAY: Duration = Duration::from_secs(86_400);

    fn noon() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
    }

    fn seconds_until(due: SystemTime) -> f64 {
        due.duration_since(noon()).unwrap().as_secs_f64()
    }

    #[test]
    fn a_certificate_is_asked_for_at_once() {
        assert_eq!(Schedule::new(noon()).wait(noon()), Duration::ZERO);
    }

    #[test]
    fn it_is_rotated_at_half_life() {
        let mut rng = StdRng::seed_from_u64(1);
        for _ in 0..1000 {
            let mut schedule = Schedule::new(noon());
            schedule.succeeded(
                noon(),
                noon() - Duration::from_secs(60),
                noon() + DAY,
                &mut rng,
            );
            let wait = seconds_until(schedule.due());
            assert!((43_200.0 * 0.9..=43_200.0 * 1.1).contains(&wait), "{wait}");
        }
    }

    #[test]
    fn a_certificate_shorter_than_its_backdating_still_lives_half_of_its_life() {
        let mut schedule = Schedule::new(noon());
        let mut rng = StdRng::seed_from_u64(1);
        let soon = noon() + Duration::from_secs(10);
        schedule.succeeded(noon(), noon() - Duration::from_secs(60), soon, &mut rng);
        assert!((4.5..=5.5).contains(&seconds_until(schedule.due())));
    }

    #[test]
    fn an_expired_certificate_is_not_asked_for_in_a_loop() {
        let mut schedule = Schedule::new(noon());
        schedule.succeeded(
            noon(),
            noon() - DAY,
            noon() - DAY / 2,
            &mut StdRng::seed_from_u64(1),
        );
        assert_eq!(schedule.wait(noon()), MIN_INTERVAL);
    }

    #[test]
    fn retries_back_off_to_a_limit_and_start_over_after_success() {
        let mut schedule = Schedule::new(noon());
        let mut rng = StdRng::seed_from_u64(2);
        for failure in 0..40 {
            schedule.failed(noon(), &mut rng);
            let plan = |first: f64| (first * 2f64.powi(failure)).min(150.0);
            let wait = seconds_until(schedule.due());
            assert!(
                (plan(0.5) * 0.8..=plan(1.0) * 1.2).contains(&wait),
                "{failure}: {wait}"
            );
        }
        schedule.succeeded(noon(), noon(), noon() + DAY, &mut rng);
        assert_eq!(schedule.failures(), 0);
        schedule.failed(noon(), &mut rng);
        assert!(seconds_until(schedule.due()) <= 1.2);
    }

    #[test]
    fn a_long_wait_is_taken_in_naps() {
        let schedule = Schedule {
            due: noon() + DAY,
            failures: 0,
        };
        assert_eq!(schedule.wait(noon()), MAX_NAP);
        assert_eq!(schedule.wait(noon() + DAY * 2), Duration::ZERO);
    }

    proptest! {
        #[test]
        fn it_never_panics_and_never_spins(
            now in 0u64..1 << 40, before in 0u64..1 << 40, after in 0u64..1 << 40, seed: u64, failures: u32,
        ) {
            let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
            let mut rng = StdRng::seed_from_u64(seed);
            let mut schedule = Schedule { due: at(now), failures };
            schedule.succeeded(at(now), at(before), at(after), &mut rng);
            prop_assert!(schedule.due() >= at(now) + MIN_INTERVAL);
            let mut schedule = Schedule { due: at(now), failures };
            schedule.failed(at(now), &mut rng);
            prop_assert!(schedule.due() >= at(now) + Duration::from_millis(400));
        }
    }
}
