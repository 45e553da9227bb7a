//! Which changes are under way, to whom, and how long each took to arrive.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use undermesh_model::Delta;

/// The uid of a workload.
type Uid = Arc<str>;

/// A change that some nodes have not seen.
#[derive(Debug)]
struct Awaited {
    since: Instant,
    nodes: Vec<u32>,
}

/// What happened to a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Change {
    /// It is ready: a workload and an endpoint of its service.
    Arrival,
    /// It is gone.
    Departure,
}

/// All changes that are awaited, and the times of those that arrived.
#[derive(Debug)]
pub struct Ledger {
    entries: Mutex<Entries>,
    open: watch::Sender<usize>,
}

#[derive(Debug, Default)]
struct Entries {
    awaited: HashMap<(Change, Uid), Awaited>,
    delays: Vec<Duration>,
}

impl Default for Ledger {
    fn default() -> Self {
        Self {
            entries: Mutex::default(),
            open: watch::Sender::new(0),
        }
    }
}

impl Ledger {
    /// Awaits a change at some nodes from now on.
    pub fn expect(&self, change: Change, uid: &str, nodes: &[u32]) {
        let mut entries = self.lock();
        let awaited = Awaited {
            since: Instant::now(),
            nodes: nodes.to_vec(),
        };
        entries.awaited.insert((change, Uid::from(uid)), awaited);
        self.open.send_replace(entries.awaited.len());
    }

    /// A node has taken a delta. A new workload counts when it is an endpoint, too.
    pub fn seen(&self, node: u32, delta: &Delta, at: Instant) {
        let services = delta.services.iter();
        let endpoints: HashSet<&Uid> = services
            .flat_map(|service| &service.endpoints)
            .map(|endpoint| &endpoint.workload)
            .collect();
        let arrived = delta.workloads.iter().map(|workload| &workload.uid);
        let arrived = arrived.filter(|uid| endpoints.contains(uid));
        let mut entries = self.lock();
        for uid in arrived {
            entries.arrived(Change::Arrival, uid, node, at);
        }
        for uid in &delta.removed_workloads {
            entries.arrived(Change::Departure, uid, node, at);
        }
        self.open.send_if_modified(|open| {
            let before = std::mem::replace(open, entries.awaited.len());
            before != *open
        });
    }

    /// Waits until every change has arrived everywhere, at most for `patience`; returns how many times a node
    /// still lacks a change.
    pub async fn settle(&self, patience: Duration) -> usize {
        let mut open = self.open.subscribe();
        let settled = open.wait_for(|open| *open == 0);
        // What is missing is counted below, whether the time was up or not.
        drop(tokio::time::timeout(patience, settled).await);
        let entries = self.lock();
        entries.awaited.values().map(|it| it.nodes.len()).sum()
    }

    /// Takes the times from the write to the node, one for each change and node, in ascending order.
    pub fn take_delays(&self) -> Vec<Duration> {
        let mut delays = std::mem::take(&mut self.lock().delays);
        delays.sort_unstable();
        delays
    }

    fn lock(&self) -> MutexGuard<'_, Entries> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entries {
    fn arrived(&mut self, change: Change, uid: &Uid, node: u32, at: Instant) {
        let key = (change, Arc::clone(uid));
        let Some(awaited) = self.awaited.get_mut(&key) else {
            return;
        };
        let Some(place) = awaited.nodes.iter().position(|it| *it == node) else {
            return;
        };
        awaited.nodes.swap_remove(place);
        let delay = at.saturating_duration_since(awaited.since);
        if awaited.nodes.is_empty() {
            self.awaited.remove(&key);
        }
        self.delays.push(delay);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn departed(uid: &str) -> Delta {
        Delta {
            removed_workloads: vec![Uid::from(uid)],
            ..Delta::default()
        }
    }

    #[tokio::test]
    async fn a_change_is_awaited_until_each_node_has_seen_it_once() {
        let ledger = Ledger::default();
        ledger.expect(Change::Departure, "a", &[1, 2]);
        let now = Instant::now();
        for node in [1, 1, 3] {
            ledger.seen(node, &departed("a"), now);
        }
        assert_eq!(ledger.settle(Duration::ZERO).await, 1);
        ledger.seen(2, &departed("a"), now);
        assert_eq!(ledger.settle(Duration::ZERO).await, 0);
        assert_eq!(ledger.take_delays().len(), 2);
    }

    #[tokio::test]
    async fn another_change_of_the_same_pod_does_not_count() {
        let ledger = Ledger::default();
        ledger.expect(Change::Arrival, "a", &[1]);
        ledger.seen(1, &departed("a"), Instant::now());
        assert_eq!(ledger.settle(Duration::ZERO).await, 1);
    }
}
