//! Endpoint choice: what is known of each workload's load and health, and power of two choices by open connections.
use std::{
    cmp::Ordering,
    num::NonZeroU32,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU32, AtomicU64, Ordering as Memory},
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
        self.open.fetch_add(1, Memory::Relaxed);
        OpenConnection(Arc::clone(self))
    }

    /// Connections that are open now.
    pub fn open(&self) -> u32 {
        self.open.load(Memory::Relaxed)
    }

    /// Reports that no connection could be made: the workload is avoided for a while, twice as long
    /// after each failure in a row. Failures while it is avoided are of attempts that began before,
    /// and count once.
    pub fn failed(&self, now: Instant) {
        let now = self.elapsed(*self.first_failure.get_or_init(|| now), now);
        let until = self.avoided_until.load(Memory::Acquire);
        if now < until {
            return;
        }
        let next = now + avoidance(self.failures.load(Memory::Relaxed));
        let swap =
            self.avoided_until
                .compare_exchange(until, next, Memory::AcqRel, Memory::Acquire);
        if swap.is_ok() {
            self.failures.fetch_add(1, Memory::Relaxed);
        }
    }

    /// Reports that a connection was made: all failures are forgotten.
    pub fn succeeded(&self) {
        if self.failures.load(Memory::Relaxed) != 0 {
            self.failures.store(0, Memory::Relaxed);
            self.avoided_until.store(0, Memory::Release);
        }
    }

    /// Whether another endpoint is to be preferred, because of recent failures.
    pub fn avoided(&self, now: Instant) -> bool {
        match self.first_failure.get() {
            None => false,
            Some(first) => self.elapsed(*first, now) < self.avoided_until.load(Memory::Acquire),
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
        self.0.open.fetch_sub(1, Memory::Relaxed);
    }
}

fn avoidance(failures: u32) -> u64 {
    let doubled = SHORTEST_AVOIDANCE * 2u32.pow(failures.min(MAX_DOUBLINGS));
    milliseconds(doubled.min(LONGEST_AVOIDANCE))
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// What may be chosen: its share of the connections, and how many it has.
pub(crate) trait Choosable {
    /// Its share, relative to others.
    fn weight(&self) -> NonZeroU32;

    /// Connections that are open now.
    fn open(&self) -> u32;
}

impl<T: Choosable> Choosable for Arc<T> {
    fn weight(&self) -> NonZeroU32 {
        (**self).weight()
    }

    fn open(&self) -> u32 {
        (**self).open()
    }
}

/// Candidates, ready to be drawn by their weights.
pub(crate) struct Lots<T> {
    candidates: Vec<T>,
    /// Running sums of the weights; `None` where all weigh the same.
    sums: Option<Box<[u64]>>,
}

impl<T: Choosable> Lots<T> {
    pub(crate) fn new(candidates: Vec<T>) -> Self {
        let weights = || candidates.iter().map(|candidate| candidate.weight());
        let sum = |total: &mut u64, weight: NonZeroU32| {
            *total += u64::from(weight.get());
            Some(*total)
        };
        let sums = (weights().min() != weights().max()).then(|| weights().scan(0, sum).collect());
        Self { candidates, sums }
    }

    /// Picks a candidate that `fits`, by power of two choices: of two drawn by weight the one that has fewer
    /// connections for its weight.
    ///
    /// The cost does not depend on the number of candidates, but for the logarithm where weights differ, and
    /// unless nearly all of them do not fit. `None` when none fits.
    pub(crate) fn choose(&self, fits: impl Fn(&T) -> bool, rng: &mut impl Rng) -> Option<&T> {
        if self.candidates.len() > FEW {
            let mut drawn = (0..FEW)
                .filter_map(|_| self.draw(rng))
                .filter(|candidate| fits(candidate));
            if let Some(first) = drawn.next() {
                let second = drawn
                    .find(|other| !std::ptr::eq(*other, first))
                    .unwrap_or(first);
                return Some(match busier(second, first) {
                    Ordering::Less => second,
                    _ => first,
                });
            }
        }
        least(self.candidates.iter().filter(|one| fits(one)), rng)
    }

    fn draw(&self, rng: &mut impl Rng) -> Option<&T> {
        let index = match &self.sums {
            None => rng.random_range(0..self.candidates.len()),
            Some(sums) => {
                let lot = rng.random_range(0..*sums.last()?);
                sums.partition_point(|sum| *sum <= lot)
            }
        };
        self.candidates.get(index)
    }
}

/// The candidate with the fewest connections for its weight; of equals one by weight, so that connections
/// which end at once are shared by weight too.
fn least<'a, T: Choosable>(
    mut candidates: impl Iterator<Item = &'a T>,
    rng: &mut impl Rng,
) -> Option<&'a T> {
    let weight = |one: &T| u64::from(one.weight().get());
    let mut best = candidates.next()?;
    let mut equals = weight(best);
    for other in candidates {
        match busier(other, best) {
            Ordering::Less => (best, equals) = (other, weight(other)),
            Ordering::Equal => {
                equals += weight(other);
                if rng.random_range(0..equals) < weight(other) {
                    best = other;
                }
            }
            Ordering::Greater => {}
        }
    }
    Some(best)
}

/// Compares connections for each unit of weight, without dividing.
fn busier<T: Choosable>(one: &T, other: &T) -> Ordering {
    let load = |of: &T, beside: &T| u64::from(of.open()) * u64::from(beside.weight().get());
    load(one, other).cmp(&load(other, one))
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

    /// A candidate with a weight and its connections.
    #[derive(Clone, Debug)]
    struct Server {
        index: usize,
        weight: u32,
        open: Cell<u32>,
    }

    impl Choosable for Server {
        fn weight(&self) -> NonZeroU32 {
            NonZeroU32::new(self.weight).unwrap()
        }

        fn open(&self) -> u32 {
            self.open.get()
        }
    }

    fn servers(weights: impl IntoIterator<Item = u32>) -> Lots<Server> {
        let server = |(index, weight)| Server {
            index,
            weight,
            open: Cell::new(0),
        };
        Lots::new(weights.into_iter().enumerate().map(server).collect())
    }

    /// How often each is chosen when connections end at once.
    fn counts(lots: &Lots<Server>, choices: u32) -> Vec<u32> {
        let (mut rng, mut counts) = (StdRng::seed_from_u64(7), vec![0; lots.candidates.len()]);
        for _ in 0..choices {
            counts[lots.choose(|_| true, &mut rng).unwrap().index] += 1;
        }
        counts
    }

    #[test]
    fn a_choice_among_ten_thousand_looks_at_a_handful() {
        for heaviest in [1, 5] {
            let lots = servers((0..10_000).map(|index| 1 + index % heaviest));
            let mut rng = StdRng::seed_from_u64(1);
            for _ in 0..100 {
                let looked = Cell::new(0);
                let fits = |_: &Server| {
                    looked.set(looked.get() + 1);
                    true
                };
                assert!(lots.choose(fits, &mut rng).is_some());
                assert!(looked.get() <= FEW);
            }
        }
    }

    #[test]
    fn equal_candidates_are_chosen_about_equally_often() {
        for size in [2, 5, FEW, 40] {
            let counts = counts(&servers(vec![1; size]), 1000 * size as u32);
            assert!(
                counts.iter().all(|count| (800..1200).contains(count)),
                "{counts:?}"
            );
        }
    }

    #[test]
    fn short_connections_are_shared_by_weight() {
        for size in [2, FEW, 40] {
            let weights: Vec<u32> = (0..size).map(|index| 1 + 2 * (index as u32 % 2)).collect();
            let total: u32 = weights.iter().sum();
            let counts = counts(&servers(weights.clone()), 1000 * total);
            for (count, weight) in counts.iter().zip(weights) {
                assert!((800..1200).contains(&(count / weight)), "{counts:?}");
            }
        }
    }

    #[test]
    fn connections_that_stay_open_spread_evenly_by_weight() {
        for weights in [vec![1; 100], [3, 1, 2, 2].repeat(25), vec![1, 3]] {
            let lots = servers(weights);
            let total: u32 = lots.candidates.iter().map(|server| server.weight).sum();
            let mut rng = StdRng::seed_from_u64(3);
            for _ in 0..100 * total {
                let chosen = lots.choose(|_| true, &mut rng).unwrap();
                chosen.open.set(chosen.open.get() + 1);
            }
            let busiest = lots.candidates.iter().map(|it| it.open.get() / it.weight);
            let busiest = busiest.max();
            assert!(
                busiest < Some(110),
                "of 100 on average for each unit the busiest has {busiest:?}"
            );
        }
    }

    proptest! {
        #[test]
        fn a_choice_fits_and_is_made_when_one_does(
            servers_fitting in prop::collection::vec((any::<bool>(), 1..9u32), 0..60),
            seed: u64,
        ) {
            let lots = servers(servers_fitting.iter().map(|(_, weight)| *weight));
            let fits = |server: &Server| servers_fitting[server.index].0;
            let chosen = lots.choose(fits, &mut StdRng::seed_from_u64(seed));
            let possible = servers_fitting.iter().any(|(fits, _)| *fits);
            prop_assert_eq!(chosen.map(fits), possible.then_some(true));
        }
    }
}
