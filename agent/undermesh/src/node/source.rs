//! From the configuration's source to the mesh that the data plane reads.
use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use futures::{FutureExt as _, future::BoxFuture};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};
use undermesh_control::{Diagnostic, DirectorySource, Severity, Snapshot};
use undermesh_model::{MeshBuilder, SharedMesh};
use undermesh_telemetry::{Readiness, readiness::ReadyGuard};
use undermesh_xds::client::{Client, Status, Update, Updates};

use super::feed::Follow;
use crate::api::types::{ControlPlane, Finding, Source as SourceView};

/// Most findings that are kept and shown; a manifest may be wrong in many ways.
const MAX_FINDINGS: usize = 1000;
/// Pause after the directory could not be read.
const RETRY: Duration = Duration::from_secs(1);
/// How many times as long as the making of a snapshot took the next one waits: a snapshot costs what the mesh that
/// it holds costs, and a large one that changes all the time must not take a whole core. What comes meanwhile is
/// taken together.
const REST: u32 = 4;

/// The configuration's source and what it said last.
pub struct Source {
    origin: Origin,
    mesh: SharedMesh,
    changed: watch::Sender<u64>,
    state: Mutex<State>,
}

/// Where it is.
enum Origin {
    Directory(PathBuf),
    ControlPlane(Client),
}

#[derive(Default)]
struct State {
    counts: BTreeMap<String, usize>,
    findings: Vec<Finding>,
    error: Option<String>,
}

impl Source {
    /// Puts what is known in force; the future follows the changes for ever. `readiness` waits for a control
    /// plane to have told all that is asked of it as a whole.
    pub fn start(
        follow: Follow,
        mesh: SharedMesh,
        changed: watch::Sender<u64>,
        readiness: &Readiness,
    ) -> (Arc<Self>, BoxFuture<'static, ()>) {
        let new = |origin| {
            Arc::new(Self {
                origin,
                mesh,
                changed,
                state: Mutex::default(),
            })
        };
        match follow {
            Follow::Directory(path, directory, snapshot) => {
                let source = new(Origin::Directory(path));
                source.apply(snapshot);
                let following = Arc::clone(&source).follow_directory(directory);
                (source, following.boxed())
            }
            Follow::ControlPlane(client, updates) => {
                let first = readiness.block("the control plane");
                let source = new(Origin::ControlPlane(client));
                let following = Arc::clone(&source).follow_control_plane(updates, first);
                (source, following.boxed())
            }
        }
    }

    /// The control plane's client, if it is one that is followed.
    pub fn client(&self) -> Option<&Client> {
        match &self.origin {
            Origin::ControlPlane(client) => Some(client),
            Origin::Directory(_) => None,
        }
    }

    /// Keeps what a control plane has told for the next start.
    pub async fn stop(&self) {
        if let Origin::ControlPlane(client) = &self.origin {
            client.stop().await;
        }
    }

    /// Puts what the manifests say in force and tells the data plane.
    fn apply(&self, snapshot: Snapshot) {
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
        let generation = self.put(snapshot.builder);
        tracing::info!(
            generation,
            findings = snapshot.diagnostics.len(),
            "the configuration is in force"
        );
    }

    fn put(&self, builder: MeshBuilder) -> u64 {
        self.mesh.replace(builder.build(&self.mesh.load()));
        let generation = self.mesh.generation();
        self.changed.send_replace(generation);
        generation
    }

    async fn follow_directory(self: Arc<Self>, mut directory: DirectorySource) {
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

    async fn follow_control_plane(self: Arc<Self>, mut updates: Updates, first: ReadyGuard) {
        let Origin::ControlPlane(client) = &self.origin else {
            return;
        };
        let mut first = Some(first);
        let mut ready = pin!(client.ready().fuse());
        let mut rested = Instant::now();
        loop {
            tokio::select! {
                update = next_after(rested, &mut updates) => {
                    let Some(update) = update else { return };
                    if !update.delta.is_empty() {
                        let begun = Instant::now();
                        let generation = self.put(client.builder());
                        rested = Instant::now() + begun.elapsed() * REST;
                        tracing::debug!(generation, "the configuration is in force");
                    }
                }
                () = &mut ready => {
                    tracing::info!("the control plane has told what this node needs");
                    first.take();
                }
            }
        }
    }

    /// What `status` shows.
    pub fn view(&self) -> SourceView {
        let state = self.lock();
        let (directory, control_plane, counts) = match &self.origin {
            Origin::Directory(path) => (Some(path.clone()), None, state.counts.clone()),
            Origin::ControlPlane(client) => {
                let status = client.status();
                (None, Some(control_plane(&status)), counts(&status))
            }
        };
        SourceView {
            directory,
            control_plane,
            generation: self.mesh.generation(),
            counts,
            error: state.error.clone(),
            diagnostics: state.findings.clone(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The next update, not before a time. Cancel safe.
async fn next_after(time: Instant, updates: &mut Updates) -> Option<Update> {
    sleep_until(time).await;
    updates.next().await
}

/// What the control plane has told, by kind.
fn counts(status: &Status) -> BTreeMap<String, usize> {
    let counts = &status.counts;
    [
        ("Workload", counts.workloads),
        ("Service", counts.services),
        ("Authorization", counts.policies),
    ]
    .map(|(kind, count)| (kind.to_owned(), count))
    .into()
}

fn control_plane(status: &Status) -> ControlPlane {
    ControlPlane {
        address: status.address.clone(),
        connected: status.connected,
        complete: status.complete,
        names: status.interests,
        rejected: status.rejected.clone(),
        error: status.last_error.clone().or(status.cache_error.clone()),
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
        let follow = Follow::Directory(directory.path().to_owned(), manifests, snapshot);
        let (source, following) = Source::start(follow, mesh.clone(), changed, &Readiness::new());
        assert!(mesh.load().workload_named("shop", "cart-0").is_none());
        changes.borrow_and_update();

        std::fs::write(directory.path().join("bad.yaml"), "kind: [").unwrap();
        std::fs::write(directory.path().join("pod.yaml"), POD).unwrap();
        let following = tokio::spawn(following);
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
