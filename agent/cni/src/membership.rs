//! Which pods are in the mesh: Istio ambient's labels, as a function without side effects.
//!
//! The rules are those of Istio's `cni/pkg/util/podutil.go`: a pod is a member when it or its namespace
//! carries [`MODE_LABEL`]` = ambient`, unless something of [`Outside`] holds. Its own label wins over the namespace's.
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

/// Label of pods and namespaces (Istio API).
pub const MODE_LABEL: &str = "istio.io/dataplane-mode";
/// Value of [`MODE_LABEL`] that takes a pod, or all pods of a namespace, into the mesh.
pub const MODE_AMBIENT: &str = "ambient";
/// Value of [`MODE_LABEL`] that keeps a pod out of the mesh of its namespace.
pub const MODE_NONE: &str = "none";
/// Annotation of pods that Istio's injector gave a sidecar.
pub const SIDECAR_ANNOTATION: &str = "sidecar.istio.io/status";

/// What an administrator says of membership.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Namespaces whose pods are never members.
    pub excluded_namespaces: BTreeSet<String>,
    /// The namespace where meshes run their own node agents.
    pub system_namespace: String,
    /// Labels of node agents in [`Self::system_namespace`]; one that matches is enough.
    pub agents: Vec<(String, String)>,
}

impl Rules {
    /// The rules of a mesh that is installed in `system_namespace`: nothing of `kube-system`, which holds
    /// what a cluster needs to come up, and no node agent, neither ours nor ztunnel.
    pub fn new(system_namespace: impl Into<String>) -> Self {
        let label = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        Self {
            excluded_namespaces: BTreeSet::from(["kube-system".to_owned()]),
            system_namespace: system_namespace.into(),
            agents: vec![
                label("app", "ztunnel"),
                label("app.kubernetes.io/part-of", "undermesh"),
            ],
        }
    }

    /// Whether `pod` is a member, given the labels of its namespace.
    pub fn judge(
        &self,
        pod: &Traits,
        namespace: &str,
        namespace_mode: Option<&str>,
    ) -> Result<(), Outside> {
        if pod.host_network {
            return Err(Outside::HostNetwork);
        }
        if pod.ended {
            return Err(Outside::Ended);
        }
        if self.excluded_namespaces.contains(namespace) {
            return Err(Outside::ExcludedNamespace);
        }
        if namespace == self.system_namespace && self.is_agent(pod) {
            return Err(Outside::Agent);
        }
        if pod.sidecar {
            return Err(Outside::Sidecar);
        }
        match (pod.mode.as_deref(), namespace_mode) {
            (Some(MODE_AMBIENT), _) => Ok(()),
            (Some(MODE_NONE), _) => Err(Outside::OptedOut),
            (_, Some(MODE_AMBIENT)) => Ok(()),
            _ => Err(Outside::Unlabelled),
        }
    }

    fn is_agent(&self, pod: &Traits) -> bool {
        let given = |(key, value): &(String, String)| pod.labels.get(key) == Some(value);
        self.agents.iter().any(given)
    }
}

/// What of a pod decides whether it is a member.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Traits {
    /// It uses the node's own network namespace.
    pub host_network: bool,
    /// Its phase is `Succeeded` or `Failed`: none of its containers runs or will run.
    pub ended: bool,
    /// It has a sidecar.
    pub sidecar: bool,
    /// The value of its own [`MODE_LABEL`].
    pub mode: Option<String>,
    /// Its labels by which a node agent is known.
    pub labels: BTreeMap<String, String>,
}

/// Why a pod is not a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outside {
    /// It uses the node's network namespace, which cannot be captured for one pod.
    HostNetwork,
    /// Its containers have ended.
    Ended,
    /// Its namespace is excluded.
    ExcludedNamespace,
    /// It is a node agent of a mesh.
    Agent,
    /// It has a sidecar, which captures its traffic.
    Sidecar,
    /// Its own label says `none`.
    OptedOut,
    /// Neither it nor its namespace is labelled.
    Unlabelled,
}

impl fmt::Display for Outside {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::HostNetwork => "it uses the host's network",
            Self::Ended => "it has ended",
            Self::ExcludedNamespace => "its namespace is excluded from the mesh",
            Self::Agent => "it is a node agent of a mesh",
            Self::Sidecar => "it has a sidecar",
            Self::OptedOut => "its label istio.io/dataplane-mode says none",
            Self::Unlabelled => {
                "neither it nor its namespace has the label istio.io/dataplane-mode=ambient"
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(mode: Option<&str>) -> Traits {
        Traits {
            mode: mode.map(str::to_owned),
            ..Traits::default()
        }
    }

    #[test]
    fn the_label_of_a_pod_wins_over_that_of_its_namespace() {
        let (ambient, none, other) = (Some("ambient"), Some("none"), Some("sidecar"));
        let (member, unlabelled) = (Ok(()), Err(Outside::Unlabelled));
        let opted_out = Err(Outside::OptedOut);
        for (own, namespace, expected) in [
            (None, None, unlabelled),
            (None, ambient, member),
            (None, none, unlabelled),
            (None, other, unlabelled),
            (ambient, None, member),
            (ambient, none, member),
            (ambient, ambient, member),
            (none, None, opted_out),
            (none, ambient, opted_out),
            (other, None, unlabelled),
            (other, ambient, member),
            (Some("Ambient"), None, unlabelled),
            (None, Some("true"), unlabelled),
        ] {
            let rules = Rules::new("undermesh-system");
            let found = rules.judge(&pod(own), "shop", namespace);
            assert_eq!(found, expected, "pod {own:?}, namespace {namespace:?}");
        }
    }

    #[test]
    fn some_pods_stay_outside_whatever_their_labels_say() {
        let labelled = |change: fn(&mut Traits)| {
            let mut pod = pod(Some("ambient"));
            change(&mut pod);
            pod
        };
        let label = |key: &str, value: &str| {
            let mut pod = pod(Some("ambient"));
            pod.labels.insert(key.to_owned(), value.to_owned());
            pod
        };
        let rules = Rules::new("undermesh-system");
        for (pod, namespace, expected) in [
            (
                labelled(|pod| pod.host_network = true),
                "shop",
                Err(Outside::HostNetwork),
            ),
            (
                labelled(|pod| pod.ended = true),
                "shop",
                Err(Outside::Ended),
            ),
            (
                labelled(|pod| pod.sidecar = true),
                "shop",
                Err(Outside::Sidecar),
            ),
            (
                labelled(|_| {}),
                "kube-system",
                Err(Outside::ExcludedNamespace),
            ),
            (
                label("app", "ztunnel"),
                "undermesh-system",
                Err(Outside::Agent),
            ),
            (
                label("app.kubernetes.io/part-of", "undermesh"),
                "undermesh-system",
                Err(Outside::Agent),
            ),
            (label("app", "ztunnel"), "shop", Ok(())),
            (label("app", "web"), "undermesh-system", Ok(())),
        ] {
            let found = rules.judge(&pod, namespace, Some("ambient"));
            assert_eq!(found, expected, "{pod:?} in {namespace}");
        }
    }
}
