//! The root bundle in every namespace: the ConfigMap `istio-ca-root-cert`, by which nodes and proxies know the control
//! plane. Only the leader writes; what somebody else edits or deletes is put right again.
use std::{
    collections::{BTreeSet, HashMap, HashSet},
    pin::pin,
    sync::Arc,
    time::Duration,
};

use futures::{Stream, StreamExt};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::{
    Api, Client, ResourceExt,
    api::{PartialObjectMeta, Patch, PatchParams},
    runtime::{
        WatchStreamExt,
        watcher::{self, Event, watcher},
    },
};
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

use crate::{live::LiveAuthority, role::Role};

/// The name of the ConfigMap.
pub const CONFIG_MAP: &str = "istio-ca-root-cert";
/// Its key.
pub const BUNDLE_KEY: &str = "root-cert.pem";
/// Who owns its fields.
pub const FIELD_MANAGER: &str = "undermesh-root-bundle";

/// Namespaces that are written at once.
const MAX_PARALLEL: usize = 8;
/// Namespaces that are written before changes are looked at again.
const MAX_BATCH: usize = 64;
const FIRST_RETRY: Duration = Duration::from_secs(1);
const MAX_RETRY: Duration = Duration::from_secs(60);

/// Keeps the bundle of `authority` in every namespace, until `role` ends.
pub async fn publish(
    client: Client,
    authority: Arc<LiveAuthority>,
    mut role: watch::Receiver<Role>,
) {
    let mut namespaces = pin!(namespaces(&client));
    let mut config_maps = pin!(config_maps(&client));
    let mut changes = authority.subscribe();
    let mut board = Board::new(authority.roots_pem());
    let mut retry = Retry::default();
    loop {
        let ready = *role.borrow_and_update() == Role::Leader && board.has_work(&retry.failed);
        tokio::select! {
            biased;
            Some(event) = namespaces.next() => board.see_namespace(event),
            Some(event) = config_maps.next() => board.see_config_map(event),
            Ok(()) = changes.changed() => board.set_bundle(authority.roots_pem()),
            changed = role.changed() => if changed.is_err() { return },
            () = retry.due() => retry.failed.clear(),
            () = std::future::ready(()), if ready => {
                let failed = write(&client, &mut board, &retry.failed).await;
                retry.note(failed);
            }
        }
    }
}

/// Writes a batch of the namespaces that are wrong; tells which could not be written.
async fn write(client: &Client, board: &mut Board, failed: &HashSet<String>) -> Vec<String> {
    let batch: Vec<String> = board.wrong(failed).take(MAX_BATCH).cloned().collect();
    let bundle = board.bundle.clone();
    let writes = batch.into_iter().map(|namespace| {
        let (client, bundle) = (client.clone(), bundle.as_str());
        async move {
            let outcome = apply(client, &namespace, bundle).await;
            (namespace, outcome)
        }
    });
    let outcomes = futures::stream::iter(writes).buffer_unordered(MAX_PARALLEL);
    let outcomes: Vec<_> = outcomes.collect().await;
    let mut failed = Vec::new();
    for (namespace, outcome) in outcomes {
        match outcome {
            Ok(()) => board.written(namespace),
            Err(error) => {
                tracing::warn!(namespace, %error, "the root bundle cannot be written; trying again");
                failed.push(namespace);
            }
        }
    }
    failed
}

async fn apply(client: Client, namespace: &str, bundle: &str) -> Result<(), kube::Error> {
    let config_map = serde_json::json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": CONFIG_MAP,
            "namespace": namespace,
            "labels": {"istio.io/config": "true"},
        },
        "data": {BUNDLE_KEY: bundle},
    });
    Api::<ConfigMap>::namespaced(client, namespace)
        .patch(
            CONFIG_MAP,
            &PatchParams::apply(FIELD_MANAGER).force(),
            &Patch::Apply(config_map),
        )
        .await
        .map(drop)
}

/// Namespaces that could not be written, and when they are tried again.
#[derive(Default)]
struct Retry {
    failed: HashSet<String>,
    wait: Duration,
    at: Option<Instant>,
}

impl Retry {
    fn note(&mut self, failed: Vec<String>) {
        if failed.is_empty() {
            if self.failed.is_empty() {
                self.wait = Duration::ZERO;
            }
            return;
        }
        self.failed.extend(failed);
        self.wait = (2 * self.wait).clamp(FIRST_RETRY, MAX_RETRY);
        self.at = Some(Instant::now() + self.wait);
    }

    async fn due(&self) {
        match self.at {
            Some(at) if !self.failed.is_empty() => sleep_until(at).await,
            _ => std::future::pending().await,
        }
    }
}

/// Which namespaces there are, and which of them hold the bundle. No I/O.
#[derive(Default)]
struct Board {
    bundle: String,
    /// Counts bundles, so that a namespace is known to hold the present one without keeping a copy of it.
    generation: u64,
    namespaces: Listing<BTreeSet<String>>,
    right: Listing<HashMap<String, u64>>,
}

/// What a watch has shown: complete after its first list.
#[derive(Default)]
struct Listing<T> {
    current: T,
    /// What the list under way has shown so far.
    building: Option<T>,
    complete: bool,
}

impl<T: Default> Listing<T> {
    fn begin(&mut self) {
        self.building = Some(T::default());
    }

    fn target(&mut self) -> &mut T {
        self.building.as_mut().unwrap_or(&mut self.current)
    }

    fn finish(&mut self) {
        if let Some(built) = self.building.take() {
            self.current = built;
            self.complete = true;
        }
    }
}

impl Board {
    fn new(bundle: String) -> Self {
        Self {
            bundle,
            ..Self::default()
        }
    }

    fn set_bundle(&mut self, bundle: String) {
        if bundle != self.bundle {
            self.bundle = bundle;
            self.generation += 1;
        }
    }

    fn see_namespace(&mut self, event: Event<PartialObjectMeta<Namespace>>) {
        match event {
            Event::Init => self.namespaces.begin(),
            Event::InitApply(namespace) => {
                if namespace.metadata.deletion_timestamp.is_none() {
                    self.namespaces.target().insert(namespace.name_any());
                }
            }
            Event::InitDone => self.namespaces.finish(),
            Event::Apply(namespace) if namespace.metadata.deletion_timestamp.is_none() => {
                self.namespaces.current.insert(namespace.name_any());
            }
            Event::Apply(namespace) | Event::Delete(namespace) => {
                self.namespaces.current.remove(&namespace.name_any());
            }
        }
    }

    fn see_config_map(&mut self, event: Event<ConfigMap>) {
        let generation = self.generation;
        match event {
            Event::Init => self.right.begin(),
            Event::InitApply(map) => {
                if self.is_right(&map) {
                    let namespace = map.namespace().unwrap_or_default();
                    self.right.target().insert(namespace, generation);
                }
            }
            Event::InitDone => self.right.finish(),
            Event::Apply(map) if self.is_right(&map) => {
                let namespace = map.namespace().unwrap_or_default();
                self.right.current.insert(namespace, generation);
            }
            Event::Apply(map) | Event::Delete(map) => {
                self.right
                    .current
                    .remove(&map.namespace().unwrap_or_default());
            }
        }
    }

    fn is_right(&self, map: &ConfigMap) -> bool {
        let data = map.data.as_ref().and_then(|data| data.get(BUNDLE_KEY));
        data == Some(&self.bundle)
    }

    fn written(&mut self, namespace: String) {
        self.right.current.insert(namespace, self.generation);
    }

    /// The namespaces without the present bundle, but for those in `except`.
    fn wrong<'a>(&'a self, except: &'a HashSet<String>) -> impl Iterator<Item = &'a String> {
        let right = |namespace: &String| {
            self.right.current.get(namespace).copied() == Some(self.generation)
        };
        let names = self.namespaces.current.iter();
        names.filter(move |name| !right(name) && !except.contains(*name))
    }

    fn has_work(&self, except: &HashSet<String>) -> bool {
        self.namespaces.complete && self.right.complete && self.wrong(except).next().is_some()
    }
}

fn namespaces(client: &Client) -> impl Stream<Item = Event<PartialObjectMeta<Namespace>>> + use<> {
    let api = Api::<PartialObjectMeta<Namespace>>::all(client.clone());
    events(watcher(api, watcher::Config::default()), "namespaces")
}

fn config_maps(client: &Client) -> impl Stream<Item = Event<ConfigMap>> + use<> {
    let named = watcher::Config::default().fields(&format!("metadata.name={CONFIG_MAP}"));
    let api = Api::<ConfigMap>::all(client.clone());
    events(watcher(api, named), "root bundles")
}

/// The events of a watch; its failures are waited out.
fn events<K: kube::Resource + Clone + Send + 'static>(
    stream: impl Stream<Item = watcher::Result<Event<K>>> + Send,
    what: &'static str,
) -> impl Stream<Item = Event<K>> + Send {
    stream.default_backoff().filter_map(move |event| {
        if let Err(error) = &event {
            tracing::warn!(%error, "{what} cannot be watched; trying again");
        }
        std::future::ready(event.ok())
    })
}

#[cfg(test)]
mod tests;
