//! From the manifests to the mesh that the data plane reads.
use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::watch;
use undermesh_control::{Diagnostic, DirectorySource, Severity, Snapshot};
use undermesh_model::SharedMesh;

use crate::api::types::{Finding, Source as SourceView};

/// Most findings that are kept and shown; a manifest may be wrong in many ways.
const MAX_FINDINGS: usize = 1000;
/// Pause after the directory could not be read.
const RETRY: Duration = Duration::from_secs(1);

/// The configuration's source and what it said last.
pub struct Source {
    directory: PathBuf,
    mesh: SharedMesh,
    changed: watch::Sender<u64>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    counts: BTreeMap<String, usize>,
    findings: Vec<Finding>,
    error: Option<String>,
}

impl Source {
    /// A source that has said nothing yet.
    pub fn new(directory: PathBuf, mesh: SharedMesh, changed: watch::Sender<u64>) -> Self {
        Self {
            directory,
            mesh,
            changed,
            state: Mutex::default(),
        }
    }

    /// Puts what the manifests say in force and tells the data plane.
    pub fn apply(&self, snapshot: Snapshot) {
        let mesh = snapshot.builder.build(&self.mesh.load());
        self.mesh.replace(mesh);
        let findings: Vec<Finding> = snapshot
            .diagnostics
            .iter()
            .take(MAX_FINDINGS)
            .map(finding)
            .collect();
        let previous = {
            let mut state = self.lock();
            state.counts = snapshot.counts;
            state.error = None;
            std::mem::replace(&mut state.findings, findings)
        };
        report(&snapshot.diagnostics, &previous);
        let generation = self.mesh.generation();
        tracing::info!(
            generation,
            findings = snapshot.diagnostics.len(),
            "the configuration is in force"
        );
        self.changed.send_replace(generation);
    }

    /// Follows the directory for ever.
    pub async fn follow(self: Arc<Self>, mut directory: DirectorySource) {
        loop {
            match directory.next().await {
                Ok(snapshot) => self.apply(snapshot),
                Err(error) => {
                    tracing::error!(%error, "the configuration stays as it is");
                    self.lock().error = Some(error.to_string());
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    /// What `status` shows.
    pub fn view(&self) -> SourceView {
        let state = self.lock();
        SourceView {
            directory: self.directory.clone(),
            generation: self.mesh.generation(),
            counts: state.counts.clone(),
            error: state.error.clone(),
            diagnostics: state.findings.clone(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn finding(diagnostic: &Diagnostic) -> Finding {
    let severity = match diagnostic.severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
        Severity::Info => "info",
    };
    Finding {
        severity: severity.to_owned(),
        file: diagnostic.file.to_string(),
        line: diagnostic.line,
        text: diagnostic.to_string(),
    }
}

/// Logs what was not found before.
fn report(diagnostics: &[Diagnostic], previous: &[Finding]) {
    let known: BTreeSet<&str> = previous
        .iter()
        .map(|finding| finding.text.as_str())
        .collect();
    for diagnostic in diagnostics.iter().take(MAX_FINDINGS) {
        let text = diagnostic.to_string();
        if known.contains(text.as_str()) {
            continue;
        }
        match diagnostic.severity {
            Severity::Error => tracing::error!("{text}"),
            Severity::Warning => tracing::warn!("{text}"),
            Severity::Info => tracing::info!("{text}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use undermesh_control::Settings;
    use undermesh_model::Mesh;

    use super::*;

    const POD: &str = "apiVersion: v1\nkind: Pod\nmetadata: {name: cart-0, namespace: shop}\nspec: {serviceAccountName: cart, nodeName: n1}\nstatus: {podIP: 10.0.0.1}\n";

    #[tokio::test]
    async fn a_changed_manifest_is_in_force_and_a_bad_one_is_shown() {
        let directory = tempfile::tempdir().unwrap();
        let (manifests, snapshot) =
            DirectorySource::open(directory.path(), Settings::default()).unwrap();
        let mesh = SharedMesh::new(Mesh::empty());
        let (changed, mut changes) = watch::channel(0);
        let source = Arc::new(Source::new(
            directory.path().to_owned(),
            mesh.clone(),
            changed,
        ));
        source.apply(snapshot);
        assert!(mesh.load().workload_named("shop", "cart-0").is_none());
        changes.borrow_and_update();

        std::fs::write(directory.path().join("bad.yaml"), "kind: [").unwrap();
        std::fs::write(directory.path().join("pod.yaml"), POD).unwrap();
        let following = tokio::spawn(Arc::clone(&source).follow(manifests));
        let seen = async {
            while mesh.load().workload_named("shop", "cart-0").is_none() {
                changes.changed().await.unwrap();
            }
        };
        tokio::time::timeout(Duration::from_secs(10), seen)
            .await
            .unwrap();
        following.abort();
        let view = source.view();
        assert!(view.generation >= 2);
        assert_eq!(view.counts.get("Pod"), Some(&1));
        assert!(
            view.diagnostics
                .iter()
                .any(|finding| finding.file == "bad.yaml"),
            "{view:?}"
        );
    }
}
