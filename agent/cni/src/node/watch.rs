//! What changes in the cluster, as far as it concerns the pods of one node.
use std::collections::BTreeMap;

use futures::{Stream, StreamExt as _, stream};
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::{
    Api, ResourceExt as _,
    core::PartialObjectMeta,
    runtime::{
        WatchStreamExt as _,
        watcher::{self, Event, watcher},
    },
};

use super::{Kubernetes, PodFacts, PodKey};
use crate::membership::MODE_LABEL;

/// A change in the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// These are all pods of the node.
    Pods(BTreeMap<PodKey, PodFacts>),
    /// A pod is there, or has changed.
    Pod(PodKey, Box<PodFacts>),
    /// The pod with this uid is gone.
    PodGone(PodKey, String),
    /// These are all namespaces that have a mode label.
    Namespaces(BTreeMap<String, String>),
    /// A namespace has this mode label, or none.
    Namespace(String, Option<String>),
}

impl Kubernetes {
    /// All that changes from now on, lists first. It does not end: what breaks off is begun again, ever later.
    pub fn changes(&self) -> impl Stream<Item = Change> + Send + use<> {
        let fields = format!("spec.nodeName={}", self.node);
        let pods = Api::<Pod>::all(self.client.clone());
        let pods = watcher(pods, watcher::Config::default().fields(&fields)).default_backoff();
        let namespaces = Api::<PartialObjectMeta<Namespace>>::all(self.client.clone());
        let namespaces = watcher(namespaces, watcher::Config::default()).default_backoff();
        stream::select(
            collect(pods, "pods", Pods::default()),
            collect(namespaces, "namespaces", Namespaces::default()),
        )
    }
}

/// Turns the events of one kind of objects into changes.
trait Collect<K> {
    /// The listing begins.
    fn begin(&mut self);
    /// One object of the listing.
    fn listed(&mut self, object: K);
    /// The listing is complete.
    fn end(&mut self) -> Change;
    /// An object is there.
    fn applied(&self, object: K) -> Option<Change>;
    /// An object is gone.
    fn deleted(&self, object: K) -> Option<Change>;

    fn take(&mut self, event: Event<K>) -> Option<Change> {
        match event {
            Event::Init => {
                self.begin();
                None
            }
            Event::InitApply(object) => {
                self.listed(object);
                None
            }
            Event::InitDone => Some(self.end()),
            Event::Apply(object) => self.applied(object),
            Event::Delete(object) => self.deleted(object),
        }
    }
}

fn collect<K, C: Collect<K>>(
    events: impl Stream<Item = watcher::Result<Event<K>>>,
    what: &'static str,
    mut collector: C,
) -> impl Stream<Item = Change> {
    let changes = events.map(move |event| match event {
        Ok(event) => collector.take(event),
        Err(error) => {
            tracing::warn!(%error, "{what} cannot be watched; what is known stays in force meanwhile");
            None
        }
    });
    changes.filter_map(std::future::ready)
}

#[derive(Default)]
struct Pods(BTreeMap<PodKey, PodFacts>);

impl Collect<Pod> for Pods {
    fn begin(&mut self) {
        self.0.clear();
    }

    fn listed(&mut self, pod: Pod) {
        self.0.extend(PodFacts::of(&pod));
    }

    fn end(&mut self) -> Change {
        Change::Pods(std::mem::take(&mut self.0))
    }

    fn applied(&self, pod: Pod) -> Option<Change> {
        PodFacts::of(&pod).map(|(key, facts)| Change::Pod(key, Box::new(facts)))
    }

    fn deleted(&self, pod: Pod) -> Option<Change> {
        PodFacts::of(&pod).map(|(key, facts)| Change::PodGone(key, facts.uid))
    }
}

#[derive(Default)]
struct Namespaces(BTreeMap<String, String>);

impl Collect<PartialObjectMeta<Namespace>> for Namespaces {
    fn begin(&mut self) {
        self.0.clear();
    }

    fn listed(&mut self, namespace: PartialObjectMeta<Namespace>) {
        let mode = namespace.labels().get(MODE_LABEL).cloned();
        self.0.extend(mode.map(|mode| (namespace.name_any(), mode)));
    }

    fn end(&mut self) -> Change {
        Change::Namespaces(std::mem::take(&mut self.0))
    }

    fn applied(&self, namespace: PartialObjectMeta<Namespace>) -> Option<Change> {
        let mode = namespace.labels().get(MODE_LABEL).cloned();
        Some(Change::Namespace(namespace.name_any(), mode))
    }

    fn deleted(&self, namespace: PartialObjectMeta<Namespace>) -> Option<Change> {
        Some(Change::Namespace(namespace.name_any(), None))
    }
}
