//! The API server, as far as the controller asks it for one pod.
use std::{future::Future, time::Duration};

use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::{
    Api, Client, ResourceExt as _,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};
use tokio::time::timeout;

use super::{PodFacts, PodKey, REDIRECTION, REDIRECTION_ENABLED};
use crate::membership::MODE_LABEL;

/// How long one request may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Statuses that say that the pod that is meant is gone: not found, or its uid is another's.
const GONE: [u16; 2] = [404, 409];

/// What the API server says of a pod's names just now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// The pod, if it is there and on this node.
    pub pod: Option<PodFacts>,
    /// The mode label of its namespace.
    pub mode: Option<String>,
}

/// Why the API server gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// It refused, or could not be reached.
    #[error(
        "the API server cannot be asked for {pod}: {source}; check that it can be reached and that the agent's \
         service account may get pods and namespaces and patch pods/status"
    )]
    Api {
        /// The pod.
        pod: PodKey,
        /// What the client said.
        source: Box<kube::Error>,
    },
    /// It took too long.
    #[error("the API server did not answer for {0} in time; check its load and the network to it")]
    Timeout(PodKey),
}

/// Where pods are looked up and marked.
pub trait Cluster: Send + Sync + 'static {
    /// Asks for a pod and its namespace, past all caches.
    fn look(&self, key: &PodKey) -> impl Future<Output = Result<View, ClusterError>> + Send;

    /// Sets or removes the annotation [`REDIRECTION`] of the pod with this uid; `false` when it is gone.
    fn mark(
        &self,
        key: &PodKey,
        uid: &str,
        marked: bool,
    ) -> impl Future<Output = Result<bool, ClusterError>> + Send;
}

/// The API server, for the pods of one node.
#[derive(Clone)]
pub struct Kubernetes {
    pub(super) client: Client,
    pub(super) node: String,
}

impl Kubernetes {
    /// Asks by `client` for the pods of the node with this name.
    pub fn new(client: Client, node: impl Into<String>) -> Self {
        let node = node.into();
        Self { client, node }
    }

    fn pods(&self, key: &PodKey) -> Api<Pod> {
        Api::namespaced(self.client.clone(), key.namespace())
    }
}

impl Cluster for Kubernetes {
    async fn look(&self, key: &PodKey) -> Result<View, ClusterError> {
        let (pods, namespaces) = (self.pods(key), Api::<Namespace>::all(self.client.clone()));
        let asked = async {
            futures::try_join!(
                pods.get_opt(key.name()),
                namespaces.get_metadata_opt(key.namespace()),
            )
        };
        let (pod, namespace) = bounded(key, asked).await?;
        let facts = pod.as_ref().and_then(PodFacts::of);
        Ok(View {
            pod: facts
                .map(|(_, facts)| facts)
                .filter(|facts| facts.node == self.node),
            mode: namespace.and_then(|namespace| namespace.labels().get(MODE_LABEL).cloned()),
        })
    }

    async fn mark(&self, key: &PodKey, uid: &str, marked: bool) -> Result<bool, ClusterError> {
        let value = if marked {
            Value::from(REDIRECTION_ENABLED)
        } else {
            Value::Null
        };
        // The uid makes the API server refuse the patch where another pod has the name by now.
        let patch = json!({"metadata": {"uid": uid, "annotations": {REDIRECTION: value}}});
        let pods = self.pods(key);
        let parameters = PatchParams::default();
        let patch = Patch::Merge(&patch);
        let patched = pods.patch_status(key.name(), &parameters, &patch);
        match bounded(key, patched).await {
            Ok(_) => Ok(true),
            Err(ClusterError::Api { source, .. }) if is_gone(&source) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

fn is_gone(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if GONE.contains(&status.code))
}

async fn bounded<T>(
    key: &PodKey,
    request: impl Future<Output = kube::Result<T>>,
) -> Result<T, ClusterError> {
    match timeout(PATIENCE, request).await {
        Ok(result) => result.map_err(|source| ClusterError::Api {
            pod: key.clone(),
            source: Box::new(source),
        }),
        Err(_) => Err(ClusterError::Timeout(key.clone())),
    }
}
