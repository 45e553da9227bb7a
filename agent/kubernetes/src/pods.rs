//! Which pods run where: what node authorization asks.
use std::{
    collections::HashMap,
    sync::{
        Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
        atomic::{AtomicBool, Ordering},
    },
};

use serde_json::Value;
use undermesh_control::resources::strings::Strings;

/// A pod, as far as authorization cares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodRecord {
    /// `metadata.uid`.
    pub uid: Arc<str>,
    /// `metadata.name`.
    pub name: Arc<str>,
    /// `metadata.namespace`.
    pub namespace: Arc<str>,
    /// `spec.serviceAccountName`.
    pub service_account: Arc<str>,
    /// `spec.nodeName`; `None` until it is scheduled.
    pub node: Option<Arc<str>>,
    /// `status.phase`.
    pub phase: Phase,
}

/// `status.phase` of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Not all containers were started.
    Pending,
    /// Running.
    Running,
    /// All containers ended well.
    Succeeded,
    /// All containers ended, at least one of them badly.
    Failed,
    /// The node does not answer, or the phase is one that is not known here.
    Unknown,
}

impl Phase {
    fn read(text: &str) -> Self {
        match text {
            "Pending" | "" => Self::Pending,
            "Running" => Self::Running,
            "Succeeded" => Self::Succeeded,
            "Failed" => Self::Failed,
            _ => Self::Unknown,
        }
    }
}

/// All pods of the cluster, fed by the source's pod watch. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct PodIndex(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    pods: RwLock<Pods>,
    complete: AtomicBool,
}

/// Node, namespace and service account.
type Place = (Arc<str>, Arc<str>, Arc<str>);

#[derive(Debug, Default)]
struct Pods {
    by_uid: HashMap<Arc<str>, Arc<PodRecord>>,
    /// By namespace and name.
    by_name: HashMap<(Arc<str>, Arc<str>), Arc<PodRecord>>,
    /// How many pods are there that have not failed.
    placed: HashMap<Place, usize>,
}

impl PodIndex {
    /// Whether all pods were seen once. Before that, a pod that is not found may exist.
    pub fn is_complete(&self) -> bool {
        self.0.complete.load(Ordering::Acquire)
    }

    /// The pod with this uid.
    pub fn pod(&self, uid: &str) -> Option<Arc<PodRecord>> {
        self.read().by_uid.get(uid).cloned()
    }

    /// Whether a pod with this service account, which has not failed, is on this node.
    pub fn runs_on(&self, node: &str, namespace: &str, service_account: &str) -> bool {
        let place = (
            Arc::from(node),
            Arc::from(namespace),
            Arc::from(service_account),
        );
        self.read().placed.contains_key(&place)
    }

    /// How many pods are known.
    pub fn len(&self) -> usize {
        self.read().by_uid.len()
    }

    /// Whether no pod is known.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Takes a pod as the API server has it; one without name or uid is passed over.
    pub(crate) fn apply(&self, pod: &Value, strings: &Strings) {
        if let Some(record) = record(pod, strings) {
            self.write().insert(Arc::new(record));
        }
    }

    /// Takes away a pod.
    pub(crate) fn remove(&self, namespace: &str, name: &str) {
        let key = (Arc::from(namespace), Arc::from(name));
        self.write().remove(&key);
    }

    /// Says that all pods are in.
    pub(crate) fn complete(&self) {
        self.0.complete.store(true, Ordering::Release);
    }

    fn read(&self) -> RwLockReadGuard<'_, Pods> {
        self.0.pods.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Pods> {
        self.0.pods.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pods {
    fn insert(&mut self, pod: Arc<PodRecord>) {
        let key = (pod.namespace.clone(), pod.name.clone());
        self.remove(&key);
        if let Some(place) = place(&pod) {
            *self.placed.entry(place).or_default() += 1;
        }
        self.by_uid.insert(pod.uid.clone(), pod.clone());
        self.by_name.insert(key, pod);
    }

    fn remove(&mut self, key: &(Arc<str>, Arc<str>)) {
        let Some(pod) = self.by_name.remove(key) else {
            return;
        };
        self.by_uid.remove(&pod.uid);
        let Some(place) = place(&pod) else {
            return;
        };
        if let Some(count) = self.placed.get_mut(&place) {
            *count -= 1;
            if *count == 0 {
                self.placed.remove(&place);
            }
        }
    }
}

fn place(pod: &PodRecord) -> Option<Place> {
    let node = pod.node.clone()?;
    let counts = pod.phase != Phase::Failed;
    counts.then(|| (node, pod.namespace.clone(), pod.service_account.clone()))
}

fn record(pod: &Value, strings: &Strings) -> Option<PodRecord> {
    let text = |path: &str| {
        pod.pointer(path)
            .and_then(Value::as_str)
            .filter(|it| !it.is_empty())
    };
    let account = text("/spec/serviceAccountName").unwrap_or("default");
    Some(PodRecord {
        uid: Arc::from(text("/metadata/uid")?),
        name: strings.get(text("/metadata/name")?),
        namespace: strings.get(text("/metadata/namespace")?),
        service_account: strings.get(account),
        node: text("/spec/nodeName").map(|it| strings.get(it)),
        phase: Phase::read(text("/status/phase").unwrap_or_default()),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(name: &str, uid: &str, node: &str, phase: &str) -> Value {
        json!({
            "metadata": { "name": name, "namespace": "shop", "uid": uid },
            "spec": { "nodeName": node, "serviceAccountName": "web" },
            "status": { "phase": phase },
        })
    }

    fn index(pods: &[Value]) -> PodIndex {
        let index = PodIndex::default();
        let strings = Strings::default();
        for pod in pods {
            index.apply(pod, &strings);
        }
        index
    }

    #[test]
    fn a_pod_is_found_by_uid_and_by_place() {
        let index = index(&[pod("a", "1", "n1", "Running")]);
        assert_eq!(&*index.pod("1").unwrap().name, "a");
        assert!(index.runs_on("n1", "shop", "web"));
        assert!(!index.runs_on("n2", "shop", "web"));
        assert!(!index.runs_on("n1", "shop", "default"));
        assert!(!index.runs_on("n1", "other", "web"));
    }

    #[test]
    fn the_last_pod_of_a_place_ends_it() {
        let index = index(&[
            pod("a", "1", "n1", "Running"),
            pod("b", "2", "n1", "Pending"),
        ]);
        index.remove("shop", "a");
        assert!(index.runs_on("n1", "shop", "web"));
        index.remove("shop", "b");
        index.remove("shop", "b");
        assert!(!index.runs_on("n1", "shop", "web"));
        assert!(index.is_empty());
    }

    #[test]
    fn a_failed_pod_gives_no_right_to_certificates() {
        let index = index(&[
            pod("a", "1", "n1", "Running"),
            pod("a", "1", "n1", "Failed"),
        ]);
        assert!(!index.runs_on("n1", "shop", "web"));
        assert_eq!(index.pod("1").unwrap().phase, Phase::Failed);
    }

    #[test]
    fn a_pod_of_the_same_name_takes_the_place_of_the_old_one() {
        let index = index(&[
            pod("a", "1", "n1", "Running"),
            pod("a", "2", "n2", "Running"),
        ]);
        assert_eq!(index.pod("1"), None);
        assert!(!index.runs_on("n1", "shop", "web"));
        assert!(index.runs_on("n2", "shop", "web"));
    }

    #[test]
    fn a_pod_that_is_not_scheduled_is_nowhere() {
        let mut waiting = pod("a", "1", "n1", "Pending");
        waiting["spec"]["nodeName"] = Value::Null;
        let index = index(&[waiting]);
        assert!(!index.runs_on("n1", "shop", "web"));
        assert_eq!(index.pod("1").unwrap().node, None);
    }
}
