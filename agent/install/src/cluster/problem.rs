//! What stands against an installation, and what to do about it.
use std::fmt;

/// How much a problem matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// The installation would not work, or would break something.
    Error,
    /// The installation works, with a part missing or a surprise.
    Warning,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Error => "error",
            Self::Warning => "warning",
        })
    }
}

/// Something that the preflight found; its text names the remedy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// An old API server.
    #[error(
        "the API server is version {0}; undermesh needs Kubernetes 1.30 or newer: upgrade the cluster"
    )]
    Version(String),
    /// A kind that the cluster does not have.
    #[error("the cluster has no {kind} of {api_version}; {remedy}")]
    Kind {
        /// The kind.
        kind: &'static str,
        /// Its group and version.
        api_version: String,
        /// How to get it or do without.
        remedy: &'static str,
    },
    /// The Gateway API is not installed.
    #[error(
        "the cluster has no Gateway API, so there are no gateways and waypoints; TCP works without. \
         Install the standard channel of a release of kubernetes-sigs/gateway-api"
    )]
    NoGatewayApi,
    /// The caller may not.
    #[error("this account may not {verb} {resource}; use one that may, such as cluster-admin")]
    Permission {
        /// The verb.
        verb: &'static str,
        /// The resource, with its group and namespace.
        resource: String,
    },
    /// Nodes with old kernels.
    #[error(
        "these nodes run Linux older than 5.15: {0}; upgrade their systems or keep the agent away with node.nodeSelector"
    )]
    Kernel(String),
    /// There is nothing to run on.
    #[error("the cluster has no Linux node; add one")]
    NoNode,
    /// Another mesh captures on the nodes.
    #[error(
        "{0} captures the same pods; remove it (its Helm release is usually {1}), \
         or keep the two on different nodes with node.nodeSelector"
    )]
    OtherCapture(String, &'static str),
    /// Another control plane in the namespace.
    #[error(
        "{0} writes the same roots and certificates; install with --profile istiod to run under it, or remove it"
    )]
    OtherController(String),
    /// The control plane of the profile is not there.
    #[error(
        "there is no istiod in the namespace {0}; install Istio's control plane first, or use another profile"
    )]
    NoIstiod(String),
    /// istiod does not serve ambient nodes.
    #[error(
        "{0} does not serve ambient nodes; set PILOT_ENABLE_AMBIENT=true, as Istio's profile ambient does"
    )]
    NotAmbient(String),
    /// Somebody else's objects.
    #[error(
        "{objects}: exists already and belongs to {owner}; remove it there, or take it over with --force-conflicts"
    )]
    Foreign {
        /// The objects.
        objects: String,
        /// Who looks after them.
        owner: String,
    },
    /// An installation in another namespace.
    #[error(
        "undermesh is installed in the namespace {0}; a cluster has one mesh: name that namespace, or uninstall there first"
    )]
    Elsewhere(String),
    /// The namespace is being deleted.
    #[error("the namespace {0} is being deleted; wait until it is gone")]
    Terminating(String),
    /// An older program.
    #[error(
        "version {installed} is installed and this is {own}; use a program of that version or newer"
    )]
    Downgrade {
        /// What runs.
        installed: String,
        /// What this program would install.
        own: &'static str,
    },
    /// Namespaces that join at once.
    #[error(
        "these namespaces are labelled for the mesh, and their pods join as soon as their node is ready: {0}"
    )]
    AlreadyLabelled(String),
    /// Namespaces that leave.
    #[error(
        "these namespaces are labelled for the mesh, and the connections of their pods will be plain: {0}"
    )]
    StillLabelled(String),
}

impl Problem {
    /// How much it matters.
    pub fn severity(&self) -> Severity {
        match self {
            Self::NoGatewayApi
            | Self::AlreadyLabelled(_)
            | Self::StillLabelled(_)
            | Self::NotAmbient(_) => Severity::Warning,
            _ => Severity::Error,
        }
    }
}
