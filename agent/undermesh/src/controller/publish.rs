//! From what the cluster says to what the nodes are told.
use std::sync::Arc;

use tokio::sync::watch;
use undermesh_admission::status::Reports;
use undermesh_control::{Diagnostic, Severity};
use undermesh_kubernetes::source::Source;
use undermesh_machine::Registrar;
use undermesh_telemetry::readiness::ReadyGuard;
use undermesh_xds::server::Hub;

use super::machines;

/// Where each change goes.
pub struct Publisher {
    /// To the nodes.
    pub hub: Arc<Hub>,
    /// To the conditions on resources.
    pub reports: Reports,
    /// To the machines that are registered.
    pub registrar: Arc<Registrar>,
    /// Whether the cluster was listed once.
    pub listed: watch::Sender<bool>,
}

impl Publisher {
    /// Publishes every change, for ever; `first` waits for the first.
    pub async fn follow(self, mut source: Source, first: ReadyGuard) {
        let mut first = Some(first);
        while let Some(update) = source.next().await {
            self.hub.publish(&update.delta);
            machines::note_removals(&self.registrar, &update.delta);
            update.diagnostics.values().flatten().for_each(tell);
            self.reports.record(update.diagnostics);
            if let Some(first) = first.take() {
                tracing::info!(objects = ?update.counts, "the cluster is listed");
                self.listed.send_replace(true);
                first.done();
            }
        }
    }
}

fn tell(diagnostic: &Diagnostic) {
    match diagnostic.severity {
        Severity::Error => tracing::error!("{diagnostic}"),
        Severity::Warning => tracing::warn!("{diagnostic}"),
        Severity::Info => tracing::info!("{diagnostic}"),
    }
}
