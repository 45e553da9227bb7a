//! Writes the cache beside the client's task, one state at a time; of several that wait the last one counts.
use std::{
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::{sync::watch, task::JoinHandle};

use super::cache::{self, Saved};

/// A task that writes, and what it reports.
pub(super) struct Writer {
    states: watch::Sender<Option<Arc<Saved>>>,
    report: Arc<Mutex<Report>>,
    task: JoinHandle<()>,
}

/// What came of the last write.
#[derive(Clone, Debug, Default)]
pub(super) struct Report {
    /// The size of the file, as of the last write that succeeded.
    pub(super) bytes: u64,
    /// Why it failed, if it did.
    pub(super) error: Option<String>,
}

impl Writer {
    /// Starts it on the current runtime.
    pub(super) fn start(path: PathBuf) -> Self {
        let (states, waiting) = watch::channel(None);
        let report = Arc::default();
        let task = tokio::spawn(write_all(path, waiting, Arc::clone(&report)));
        Self {
            states,
            report,
            task,
        }
    }

    /// Has a state written as soon as the one before it is.
    pub(super) fn submit(&self, state: Saved) {
        self.states.send_replace(Some(Arc::new(state)));
    }

    /// What came of the last write.
    pub(super) fn report(&self) -> Report {
        lock(&self.report).clone()
    }

    /// Waits until the last state is written.
    pub(super) async fn finish(self) {
        drop(self.states);
        if let Err(error) = self.task.await {
            tracing::warn!(%error, "the cache may not be current");
        }
    }
}

async fn write_all(
    path: PathBuf,
    mut waiting: watch::Receiver<Option<Arc<Saved>>>,
    report: Arc<Mutex<Report>>,
) {
    // When the sender is gone, a state that it left is still seen as a change.
    while waiting.changed().await.is_ok() {
        let Some(state) = waiting.borrow_and_update().clone() else {
            continue;
        };
        let path = path.clone();
        let written = tokio::task::spawn_blocking(move || cache::write(&path, &state)).await;
        let mut report = lock(&report);
        report.error = match written {
            Ok(Ok(bytes)) => {
                report.bytes = bytes;
                None
            }
            Ok(Err(error)) => Some(error.to_string()),
            Err(error) => Some(error.to_string()),
        };
        if let Some(error) = &report.error {
            tracing::warn!(%error, "the last known state is not kept");
        }
    }
}

fn lock(report: &Mutex<Report>) -> MutexGuard<'_, Report> {
    report.lock().unwrap_or_else(PoisonError::into_inner)
}
