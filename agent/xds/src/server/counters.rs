//! What the server has done, in numbers.
use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// Upper bounds of the latency histogram; what takes longer is counted after the last of them.
pub const LATENCY_BOUNDS: [Duration; 10] = [
    Duration::from_millis(1),
    Duration::from_millis(2),
    Duration::from_millis(5),
    Duration::from_millis(10),
    Duration::from_millis(25),
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_millis(500),
    Duration::from_secs(2),
    Duration::from_secs(10),
];

/// Totals since the start.
#[derive(Debug, Default)]
pub struct Counters {
    pub(crate) responses: AtomicU64,
    pub(crate) resources: AtomicU64,
    pub(crate) removals: AtomicU64,
    pub(crate) bytes: AtomicU64,
    pub(crate) acknowledged: AtomicU64,
    pub(crate) rejected: AtomicU64,
    pub(crate) connections: AtomicU64,
    pub(crate) refused: AtomicU64,
    latency: [AtomicU64; LATENCY_BOUNDS.len() + 1],
    latency_micros: AtomicU64,
}

/// A reading of [`Counters`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Responses sent.
    pub responses: u64,
    /// Resources in them.
    pub resources: u64,
    /// Names of removed resources in them.
    pub removals: u64,
    /// Their size, before TLS and HTTP/2.
    pub bytes: u64,
    /// Responses that clients took.
    pub acknowledged: u64,
    /// Responses of which clients rejected resources.
    pub rejected: u64,
    /// Clients that were let in.
    pub connections: u64,
    /// Calls that were refused.
    pub refused: u64,
    /// Responses by the time from the oldest change in them to their departure: one count for each of
    /// [`LATENCY_BOUNDS`], and one for those that took longer. Answers to requests are not in it.
    pub latency: [u64; LATENCY_BOUNDS.len() + 1],
    /// Sum of these times.
    pub latency_sum: Duration,
}

impl Counters {
    /// The present totals.
    pub fn read(&self) -> Figures {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Figures {
            responses: read(&self.responses),
            resources: read(&self.resources),
            removals: read(&self.removals),
            bytes: read(&self.bytes),
            acknowledged: read(&self.acknowledged),
            rejected: read(&self.rejected),
            connections: read(&self.connections),
            refused: read(&self.refused),
            latency: std::array::from_fn(|place| read(&self.latency[place])),
            latency_sum: Duration::from_micros(read(&self.latency_micros)),
        }
    }

    pub(crate) fn count(counter: &AtomicU64, by: usize) {
        counter.fetch_add(by as u64, Ordering::Relaxed);
    }

    pub(crate) fn delayed(&self, latency: Duration) {
        let place = LATENCY_BOUNDS.partition_point(|bound| *bound < latency);
        self.latency[place].fetch_add(1, Ordering::Relaxed);
        let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        self.latency_micros.fetch_add(micros, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_latency_counts_in_the_first_bound_that_holds_it() {
        let counters = Counters::default();
        for millis in [0, 1, 3, 60_000] {
            counters.delayed(Duration::from_millis(millis));
        }
        let figures = counters.read();
        assert_eq!(figures.latency, [2, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1]);
        assert_eq!(figures.latency_sum, Duration::from_millis(60_004));
    }
}
