//! What the controller keeps of a pod: a few hundred bytes of an object of many thousands.
use std::net::IpAddr;

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;

use super::PodKey;
use crate::membership::{MODE_LABEL, SIDECAR_ANNOTATION, Traits};

/// Annotation of pods by which the control plane knows that they are captured (Istio API).
pub const REDIRECTION: &str = "ambient.istio.io/redirection";
/// Value of [`REDIRECTION`] once capture stands.
pub const REDIRECTION_ENABLED: &str = "enabled";
/// Annotation of a mirror pod: the uid under which kubelet runs the static pod (Kubernetes API).
const MIRROR: &str = "kubernetes.io/config.mirror";

/// What matters of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodFacts {
    /// The uid that the API server gave it.
    pub uid: String,
    /// The uid under which kubelet runs it: another one for static pods.
    pub kubelet_uid: String,
    /// The node that it runs on.
    pub node: String,
    /// Its service account.
    pub service_account: String,
    /// Its addresses; none before its sandbox is made.
    pub addresses: Vec<IpAddr>,
    /// What decides whether it is a member.
    pub traits: Traits,
    /// Whether its annotation says that it is captured.
    pub marked: bool,
}

impl PodFacts {
    /// The names and facts of a pod; `None` for an object that cannot be one of the API server.
    pub fn of(pod: &Pod) -> Option<(PodKey, Self)> {
        let key = PodKey::new(pod.metadata.namespace.as_deref()?, &pod.name_any()).ok()?;
        let spec = pod.spec.as_ref()?;
        let uid = pod.metadata.uid.clone()?;
        let annotation = |name: &str| pod.annotations().get(name);
        let facts = Self {
            kubelet_uid: annotation(MIRROR).unwrap_or(&uid).clone(),
            uid,
            node: spec.node_name.clone().unwrap_or_default(),
            service_account: spec
                .service_account_name
                .clone()
                .filter(|name| !name.is_empty())
                .unwrap_or_else(|| "default".to_owned()),
            addresses: addresses(pod),
            traits: traits(pod),
            marked: annotation(REDIRECTION).is_some_and(|value| value == REDIRECTION_ENABLED),
        };
        Some((key, facts))
    }
}

fn addresses(pod: &Pod) -> Vec<IpAddr> {
    let Some(status) = &pod.status else {
        return Vec::new();
    };
    let all = status.pod_ips.iter().flatten().map(|entry| &entry.ip);
    let mut addresses: Vec<IpAddr> = all.filter_map(|ip| ip.parse().ok()).collect();
    if addresses.is_empty() {
        addresses.extend(
            status
                .pod_ip
                .as_ref()
                .and_then(|ip| ip.parse::<IpAddr>().ok()),
        );
    }
    addresses
}

fn traits(pod: &Pod) -> Traits {
    let phase = pod
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref());
    let spec = pod.spec.as_ref();
    Traits {
        host_network: spec.and_then(|spec| spec.host_network).unwrap_or(false),
        ended: matches!(phase, Some("Succeeded" | "Failed")),
        sidecar: pod.annotations().contains_key(SIDECAR_ANNOTATION),
        mode: pod.labels().get(MODE_LABEL).cloned(),
        labels: pod.labels().clone(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_matters_of_a_pod_is_kept() {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {
                "namespace": "shop", "name": "web-0", "uid": "u-1",
                "labels": {"istio.io/dataplane-mode": "ambient", "app": "web"},
                "annotations": {"ambient.istio.io/redirection": "enabled", "sidecar.istio.io/status": "{}"},
            },
            "spec": {"nodeName": "n1", "serviceAccountName": "web", "hostNetwork": true, "containers": []},
            "status": {
                "phase": "Succeeded", "podIP": "10.0.0.1",
                "podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}],
            },
        }))
        .unwrap();
        let (key, facts) = PodFacts::of(&pod).unwrap();
        assert_eq!(key.to_string(), "shop/web-0");
        assert_eq!((&*facts.uid, &*facts.kubelet_uid), ("u-1", "u-1"));
        assert_eq!((&*facts.node, &*facts.service_account), ("n1", "web"));
        assert_eq!(facts.addresses.len(), 2);
        assert!(facts.marked && facts.traits.sidecar && facts.traits.host_network);
        assert!(facts.traits.ended);
        assert_eq!(facts.traits.mode.as_deref(), Some("ambient"));
    }

    #[test]
    fn a_pod_that_has_just_been_made_lacks_most() {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {
                "namespace": "shop", "name": "web-0", "uid": "u-1",
                "annotations": {"kubernetes.io/config.mirror": "s-1", "ambient.istio.io/redirection": "pending"},
            },
            "spec": {"containers": []},
        }))
        .unwrap();
        let (_, facts) = PodFacts::of(&pod).unwrap();
        assert_eq!((&*facts.uid, &*facts.kubelet_uid), ("u-1", "s-1"));
        assert_eq!(facts.service_account, "default");
        assert!(facts.addresses.is_empty() && !facts.marked);
        assert_eq!(PodFacts::of(&Pod::default()), None);
    }
}
