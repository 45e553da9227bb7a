//! What the translation must know of the mesh beside its resources.
use std::sync::Arc;

use undermesh_model::TrustDomain;

/// Names that are set once for a mesh; the defaults are Istio's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Trust domain of every identity of this mesh.
    pub trust_domain: TrustDomain,
    /// Name of the cluster, the first part of a workload's uid.
    pub cluster: Arc<str>,
    /// Network of workloads that name none; empty is the default network.
    pub network: Arc<str>,
    /// Namespace whose policies govern the whole mesh.
    pub root_namespace: Arc<str>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            trust_domain: TrustDomain::cluster_local(),
            cluster: Arc::from("Kubernetes"),
            network: Arc::from(""),
            root_namespace: Arc::from("istio-system"),
        }
    }
}
