//! Pods that end and are replaced, at an even pace, with everything that a cluster writes about it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::{MissedTickBehavior, interval};
use undermesh_kubernetes::testing::ApiServer;

use crate::ledger::{Change, Ledger};
use crate::objects::{self, Progress};
use crate::plan::{Plan, PodName, Slot};
use crate::size::START_TIME;

/// The cluster's own side: who stands where, and what is written about it.
#[derive(Debug)]
pub struct Churn {
    plan: Arc<Plan>,
    ledger: Arc<Ledger>,
    /// How many pods a slot has seen before the present one; those that are not here have seen none.
    predecessors: BTreeMap<Slot, u32>,
    /// Slots whose pod is not ready yet.
    starting: VecDeque<(Instant, Slot)>,
    next: Slot,
}

impl Churn {
    /// Nothing has been replaced yet.
    pub fn new(plan: &Arc<Plan>, ledger: &Arc<Ledger>) -> Self {
        Self {
            plan: Arc::clone(plan),
            ledger: Arc::clone(ledger),
            predecessors: BTreeMap::new(),
            starting: VecDeque::new(),
            next: 0,
        }
    }

    /// Replaces `rate` pods a second until `count` are replaced and ready; returns how long that took.
    pub async fn run(&mut self, api: &ApiServer, rate: u32, count: u32) -> Duration {
        let begun = Instant::now();
        let mut ticks = interval(Duration::from_secs(1) / rate);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
        let mut left = count;
        while left > 0 || !self.starting.is_empty() {
            ticks.tick().await;
            if left > 0 {
                self.replace(api);
                left -= 1;
            }
            let now = Instant::now();
            while let Some((_, slot)) = self.starting.pop_front_if(|(due, _)| *due <= now) {
                self.finish(api, slot);
            }
        }
        begun.elapsed()
    }

    /// Ends the pod of the next slot and creates the one after it.
    fn replace(&mut self, api: &ApiServer) {
        let slot = self.next_slot();
        let service = self.plan.service_of(slot);
        let old = self.pod(slot);
        let audience = self.plan.audience(service);
        self.ledger.expect(Change::Departure, &old.uid(), audience);
        api.delete("Pod", &old.namespace, &old.name);
        *self.predecessors.entry(slot).or_default() += 1;
        let new = self.pod(slot);
        api.put(objects::pod(&self.plan, slot, &new, Progress::Scheduled));
        self.starting.push_back((Instant::now() + START_TIME, slot));
        self.write_slice(api, service);
    }

    /// The pod of a slot has its address and is ready.
    fn finish(&mut self, api: &ApiServer, slot: Slot) {
        let service = self.plan.service_of(slot);
        let pod = self.pod(slot);
        let object = objects::pod(&self.plan, slot, &pod, Progress::Ready);
        let audience = self.plan.audience(service);
        self.ledger.expect(Change::Arrival, &pod.uid(), audience);
        api.put(object);
        self.write_slice(api, service);
    }

    fn write_slice(&self, api: &ApiServer, service: u32) {
        let starting = |slot: &Slot| self.starting.iter().any(|(_, it)| it == slot);
        let ready: Vec<(PodName, u32)> = self
            .plan
            .slots_of(service)
            .filter(|slot| !starting(slot))
            .map(|slot| (self.pod(slot), self.plan.node_of(slot)))
            .collect();
        let ready = ready.iter().map(|(pod, node)| (pod, *node));
        api.put(objects::slice(&self.plan, service, ready));
    }

    fn pod(&self, slot: Slot) -> PodName {
        let predecessors = self.predecessors.get(&slot).copied().unwrap_or_default();
        self.plan.pod(slot, predecessors)
    }

    /// Slots in a turn that visits all services before it comes back to one.
    fn next_slot(&mut self) -> Slot {
        let size = self.plan.size();
        let stride = size.pods / size.services;
        let slot = self.next;
        self.next += stride;
        if self.next >= size.pods {
            // The next pod of each service; the stride is not larger than their number.
            self.next = (self.next + 1) % stride;
        }
        slot
    }
}
