//! Endpoint choice: what is known of each workload's load and health, and power of two choices by open connections.
use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use rand::{Rng, RngExt};

/// How long a workload is avoided after one failed connect.
pub const SHORTEST_AVOIDANCE: Duration = Duration::from_secs(1);

/// How long it is avoided at most, after many in a row.
pub const LONGEST_AVOIDANCE: Duration = Duration::from_secs(30);

/// Doublings that are counted; more than enough to get from the shortest to the longest.
const MAX_DOUBLINGS: u32 = 8;

/// So few candidates are compared in full; among more, two drawn ones are compared.
const FEW: usize = 8;

/// How this node sees one workload: its open connections from here, and whether connecting worked.
///
/// Shared by all snapshots that know the workload, and lock-free.
#[derive(Debug, Default)]
pub struct Load {
    open: AtomicU32,
    failures: AtomicU32,
    first_failure: OnceLock<Instant>,
    /// Milliseconds after `first_failure`; zero is never.
    avoided_until: AtomicU64,
}

impl Load {
    /// Counts a connection as open until the guard is dropped.
    pub fn opened(self: &Arc<Self>) -> OpenConnection {
        self.open.fetch_add(1, Ordering::Relaxed);
        OpenConnection(Arc::clone(self))
    }

    /// Connections that are open now.
    pub fn open(&self) -> u32 {
        self.open.load(Ordering::Relaxed)
    }

    /// Reports that no connection could be made: the workload is avoided for a while, twice as long
    /// after each failure in a row. Failures while it is avoided are of attempts that began before,
    /// and count once.
    pub fn failed(&self, now: Instant) {
        let now = self.elapsed(*self.first_failure.get_or_init(|| now), now);
        let until = self.avoided_until.load(Ordering::Acquire);
        if now < until {
            return;
        }
        let next = now + avoidance(self.failures.load(Ordering::Relaxed));
        let swap =
            self.avoided_until
                .compare_exchange(until, next, Ordering::AcqRel, Ordering::Acquire);
        if swap.is_ok() {
            self.failures.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Reports that a connection was made: all failures are forgotten.
    pub fn succeeded(&self) {
        if self.failures.load(Ordering::Relaxed) != 0 {
            self.failures.store(0, Ordering::Relaxed);
            self.avoided_until.store(0, Ordering::Release);
        }
    }

    /// Whether another endpoint is to be preferred, because of recent failures.
    pub fn avoided(&self, now: Instant) -> bool {
        match self.first_failure.get() {
            None => false,
            Some(first) => self.elapsed(*first, now) < self.avoided_until.load(Ordering::Acquire),
        }
    }

    fn elapsed(&self, since: Instant, now: Instant) -> u64 {
        milliseconds(now.saturating_duration_since(since))
    }
}

/// One open connection of a [`Load`]; ends when dropped.
#[derive(Debug)]
pub struct OpenConnection(Arc<Load>);

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

fn avoidance(failures: u32) -> u64 {
    let doubled = SHORTEST_AVOIDANCE * 2u32.pow(failures.min(MAX_DOUBLINGS));
    milliseconds(doubled.min(LONGEST_AVOIDANCE))
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Picks a candidate that `fits`, by power of two choices: of two random ones the one with less `load`.
///
/// The cost does not depend on the number of candidates, unless nearly all of them do not fit.
/// `None` when none fits.
pub(crate) fn choose<'a, T>(
    candidates: &'a [T],
    fits: impl Fn(&T) -> bool,
    load: impl Fn(&T) -> u32,
    rng: &mut impl Rng,
) -> Option<&'a T> {
    if candidates.is_empty() {
        return None;
    }
    let start = rng.random_range(0..candidates.len());
    if candidates.len() > FEW {
        let mut drawn = (0..FEW)
            .map(|_| &candidates[rng.random_range(0..candidates.len())])
            .filter(|candidate| fits(candidate));
        if let Some(first) = drawn.next() {
            let second = drawn
                .find(|other| !std::ptr::eq(*other, first))
                .unwrap_or(first);
            return Some(if load(second) < load(first) {
                second
            } else {
                first
            });
        }
    }
    // From a random start, so that equals are taken equally often.
    let (before, after) = candidates.split_at(start);
    after
        .iter()
        .chain(before)
        .filter(|candidate| fits(candidate))
        .min_by_key(|candidate| load(candidate))
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use proptest::prelude::*;
    use rand::{SeedableRng, rngs::StdRng};

    use super::*;

    fn seconds(count: u64) -> Duration {
        Duration::from_secs(count)
    }

    #[test]
    fn a_connection_counts_while_its_guard_lives() {
        let load = Arc::new(Load::default());
        let (first, second) = (load.opened(), load.opened());
        assert_eq!(load.open(), 2);
        drop((first, second));
        assert_eq!(load.open(), 0);
    }

    #[test]
    fn failures_in_a_row_double_the_time_of_avoidance_up_to_the_longest() {
        let (load, mut now) = (Load::default(), Instant::now());
        assert!(!load.avoided(now));
        for expected in [1, 2, 4, 8, 16, 30, 30, 30, 30, 30, 30] {
            load.failed(now);
            assert!(
                load.avoided(now + seconds(expected) - Duration::from_millis(1)),
                "{expected} s"
            );
            assert!(!load.avoided(now + seconds(expected)), "{expected} s");
            now += seconds(expected);
        }
    }

    #[test]
    fn many_failures_at_once_count_as_one() {
        let (load, now) = (Load::default(), Instant::now());
        for _ in 0..100 {
            load.failed(now);
        }
        assert!(!load.avoided(now + SHORTEST_AVOIDANCE));
    }

    #[test]
    fn a_success_ends_the_avoidance_and_its_history() {
        let (load, now) = (Load::default(), Instant::now());
        load.failed(now);
        load.failed(now + seconds(1));
        load.succeeded();
        assert!(!load.avoided(now + seconds(1)));
        load.failed(now + seconds(2));
        assert!(!load.avoided(now + seconds(2) + SHORTEST_AVOIDANCE));
    }

    #[test]
    fn a_choice_among_ten_thousand_looks_at_a_handful() {
        let candidates: Vec<u32> = (0..10_000).collect();
        let mut rng = StdRng::seed_from_u64(1);
        for _ in 0..100 {
            let looked = Cell::new(0);
            let fits = |_: &u32| {
                looked.set(looked.get() + 1);
                true
            };
            assert!(choose(&candidates, fits, |_| 0, &mut rng).is_some());
            assert!(looked.get() <= FEW);
        }
    }

    #[test]
    fn equal_candidates_are_chosen_about_equally_often() {
        for size in [2, 5, FEW, 40] {
            let candidates: Vec<usize> = (0..size).collect();
            let (mut rng, mut counts) = (StdRng::seed_from_u64(7), vec![0u32; size]);
            for _ in 0..1000 * size {
                counts[*choose(&candidates, |_| true, |_| 0, &mut rng).unwrap()] += 1;
            }
            assert!(
                counts.iter().all(|count| (800..1200).contains(count)),
                "{counts:?}"
            );
        }
    }

    #[test]
    fn connections_that_stay_open_spread_evenly() {
        let candidates: Vec<Cell<u32>> = vec![Cell::new(0); 100];
        let mut rng = StdRng::seed_from_u64(3);
        for _ in 0..10_000 {
            let chosen = choose(&candidates, |_| true, Cell::get, &mut rng).unwrap();
            chosen.set(chosen.get() + 1);
        }
        let most = candidates.iter().map(Cell::get).max();
        assert!(
            most < Some(110),
            "of 100 on average the busiest has {most:?}"
        );
    }

    proptest! {
        #[test]
        fn a_choice_fits_and_is_made_when_one_does(fitting in prop::collection::vec(any::<bool>(), 0..60), seed: u64) {
            let chosen = choose(&fitting, |fits| *fits, |_| 0, &mut StdRng::seed_from_u64(seed));
            prop_assert_eq!(chosen.copied(), fitting.contains(&true).then_some(true));
        }
    }
}
