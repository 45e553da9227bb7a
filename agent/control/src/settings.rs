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
    /// Who wrote the resources.
    pub source: Source,
}

/// Who wrote the resources, and so what can be taken from them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Source {
    /// A person, in files. Labels say which pods are in the mesh, and the slices of a Service are all of its
    /// endpoints.
    #[default]
    Manifests,
    /// A cluster, in which an agent on the node notes on a pod when it has captured it, and pods say whether
    /// they are ready. As in istiod, a Service's pods are those that its selector selects; EndpointSlices only
    /// add what is no pod, and the pods of a Service without a selector.
    Kubernetes,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            trust_domain: TrustDomain::cluster_local(),
            cluster: Arc::from("Kubernetes"),
            network: Arc::from(""),
            root_namespace: Arc::from("istio-system"),
            source: Source::default(),
        }
    }
}
