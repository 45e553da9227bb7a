//! From what the cluster says to what the nodes are told.
use std::sync::Arc;

use undermesh_admission::status::Reports;
use undermesh_control::{Diagnostic, Severity};
use undermesh_kubernetes::source::Source;
use undermesh_telemetry::readiness::ReadyGuard;
use undermesh_xds::server::Hub;

/// Publishes every change, for ever; `first` waits for the first.
pub async fn follow(mut source: Source, hub: Arc<Hub>, reports: Reports, first: ReadyGuard) {
    let mut first = Some(first);
    while let Some(update) = source.next().await {
        hub.publish(&update.delta);
        update.diagnostics.values().flatten().for_each(tell);
        reports.record(update.diagnostics);
        if let Some(first) = first.take() {
            tracing::info!(objects = ?update.counts, "the cluster is listed");
            first.done();
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
