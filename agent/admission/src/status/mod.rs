//! Conditions on the resources themselves: whether each is accepted, and which part of it is not enforced and why.
//!
//! ```text
//! let (reports, writer) = status::writer(client, WriterSettings::default(), clock);
//! tokio::spawn(writer.run(leads));
//! reports.record(update.diagnostics);      // for every update of the source, leader or not
//! ```
//!
//! The leader watches the kinds that have conditions, and so knows what is written already: only differences are.
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use k8s_openapi::jiff::Timestamp;
use kube::Client;
use tokio::sync::Notify;
use undermesh_control::{
    Diagnostic,
    resources::{Key, kinds::Kind},
};

mod conditions;
mod follow;
mod queue;
#[cfg(test)]
mod tests;
mod writer;

pub use writer::Writer;

/// The kinds that get conditions. Gateways get theirs from their own controller.
pub const KINDS: &[Kind] = &[
    Kind::AuthorizationPolicy,
    Kind::PeerAuthentication,
    Kind::ServiceEntry,
    Kind::WorkloadEntry,
];

/// Tells the time that goes into `lastTransitionTime`.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// How conditions are written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WriterSettings {
    /// Wait after a change of an object, in which the translation of that change arrives.
    pub settle: Duration,
    /// Shortest time between two writes.
    pub pace: Duration,
    /// Writes at once.
    pub concurrency: usize,
    /// The first wait after a failed write; it doubles up to the longest.
    pub first_retry: Duration,
    /// The longest wait after a failed write.
    pub longest_retry: Duration,
    /// How often a kind that the cluster does not have is looked for.
    pub absent_retry: Duration,
}

impl Default for WriterSettings {
    fn default() -> Self {
        Self {
            settle: Duration::from_secs(1),
            pace: Duration::from_millis(20),
            concurrency: 4,
            first_retry: Duration::from_millis(500),
            longest_retry: Duration::from_secs(60),
            absent_retry: Duration::from_secs(30),
        }
    }
}

/// A writer, and where it learns what was found.
pub fn writer(client: Client, settings: WriterSettings, clock: Clock) -> (Reports, Writer) {
    let reports = Reports::default();
    let writer = Writer::new(client, settings, clock, reports.clone());
    (reports, writer)
}

/// Findings on their way to the writer; those about one object replace each other, so that a writer that is not
/// fast enough never makes anybody wait.
#[derive(Clone, Debug, Default)]
pub struct Reports(Arc<Inbox>);

#[derive(Debug, Default)]
struct Inbox {
    waiting: Mutex<Option<BTreeMap<Key, Vec<Diagnostic>>>>,
    news: Notify,
}

impl Reports {
    /// Takes every resource whose findings changed, with all that it has now. The first call must hold all
    /// findings that there are; nothing is written before it.
    pub fn record(&self, changed: impl IntoIterator<Item = (Key, Vec<Diagnostic>)>) {
        let is_ours = |key: &Key| KINDS.iter().any(|kind| kind.name() == key.kind);
        let ours = changed.into_iter().filter(|(key, _)| is_ours(key));
        let mut waiting = self
            .0
            .waiting
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        waiting.get_or_insert_default().extend(ours);
        drop(waiting);
        self.0.news.notify_one();
    }

    /// Waits for findings and takes them. Cancel safe.
    async fn next(&self) -> BTreeMap<Key, Vec<Diagnostic>> {
        loop {
            let waiting = self
                .0
                .waiting
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take();
            match waiting {
                Some(waiting) => return waiting,
                None => self.0.news.notified().await,
            }
        }
    }
}
