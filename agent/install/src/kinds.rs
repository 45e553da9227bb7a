//! The kinds of objects that an installation is made of, in the order in which they are applied.
use kube::core::{ApiResource, GroupVersionKind};

/// One kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    /// API group; empty for the core group.
    pub group: &'static str,
    /// The version that the chart writes.
    pub version: &'static str,
    /// Its name in manifests.
    pub kind: &'static str,
    /// Its name in URLs and RBAC rules.
    pub plural: &'static str,
    /// Where its objects live.
    pub scope: Scope,
}

/// Where objects of a kind live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// In the cluster.
    Cluster,
    /// In a namespace.
    Namespaced,
}

const RBAC: &str = "rbac.authorization.k8s.io";
const ADMISSION: &str = "admissionregistration.k8s.io";

/// All kinds. Accounts and their rights come before what runs with them, the controller before the nodes that
/// ask it, and the webhook last: it refuses what nobody answers for.
pub const ALL: &[Kind] = &[
    cluster("", "Namespace", "namespaces"),
    cluster(
        "apiextensions.k8s.io",
        "CustomResourceDefinition",
        "customresourcedefinitions",
    ),
    namespaced("", "ResourceQuota", "resourcequotas"),
    namespaced("", "ServiceAccount", "serviceaccounts"),
    cluster(RBAC, "ClusterRole", "clusterroles"),
    cluster(RBAC, "ClusterRoleBinding", "clusterrolebindings"),
    namespaced(RBAC, "Role", "roles"),
    namespaced(RBAC, "RoleBinding", "rolebindings"),
    cluster(
        ADMISSION,
        "ValidatingAdmissionPolicy",
        "validatingadmissionpolicies",
    ),
    cluster(
        ADMISSION,
        "ValidatingAdmissionPolicyBinding",
        "validatingadmissionpolicybindings",
    ),
    namespaced("", "ConfigMap", "configmaps"),
    namespaced("", "Service", "services"),
    namespaced("policy", "PodDisruptionBudget", "poddisruptionbudgets"),
    namespaced("apps", "Deployment", "deployments"),
    namespaced("apps", "DaemonSet", "daemonsets"),
    namespaced("monitoring.coreos.com", "PodMonitor", "podmonitors"),
    cluster(
        ADMISSION,
        "ValidatingWebhookConfiguration",
        "validatingwebhookconfigurations",
    ),
];

const fn cluster(group: &'static str, kind: &'static str, plural: &'static str) -> Kind {
    Kind {
        group,
        version: "v1",
        kind,
        plural,
        scope: Scope::Cluster,
    }
}

const fn namespaced(group: &'static str, kind: &'static str, plural: &'static str) -> Kind {
    Kind {
        scope: Scope::Namespaced,
        ..cluster(group, kind, plural)
    }
}

impl Kind {
    /// Its place in [`ALL`].
    pub(crate) fn find(api_version: &str, kind: &str) -> Option<(usize, &'static Self)> {
        ALL.iter()
            .enumerate()
            .find(|(_, known)| known.kind == kind && known.api_version() == api_version)
    }

    /// `apiVersion` in manifests.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.to_owned()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    /// What the client makes URLs of.
    pub(crate) fn resource(&self) -> ApiResource {
        let kind = GroupVersionKind::gvk(self.group, self.version, self.kind);
        ApiResource::from_gvk_with_plural(&kind, self.plural)
    }
}
