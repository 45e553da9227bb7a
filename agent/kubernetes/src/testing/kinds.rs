//! Which resources the server knows: Kubernetes's own, and those that CustomResourceDefinitions add.
use serde_json::{Value, json};

use super::status::Status;

/// A resource type, as `kubectl api-resources` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct KindInfo {
    /// Empty for the core group.
    pub group: String,
    /// Served versions, the preferred one first.
    pub versions: Vec<String>,
    pub kind: String,
    pub plural: String,
    pub namespaced: bool,
    /// Whether `status` is a resource of its own, which the main one does not write.
    pub status: bool,
}

impl KindInfo {
    /// `apiVersion` of an object in this version.
    pub fn api_version(&self, version: &str) -> String {
        joined(&self.group, version)
    }

    /// The name in error messages, as `deployments.apps`.
    pub fn qualified(&self) -> String {
        if self.group.is_empty() {
            self.plural.clone()
        } else {
            format!("{}.{}", self.plural, self.group)
        }
    }
}

pub(super) fn joined(group: &str, version: &str) -> String {
    if group.is_empty() {
        version.to_owned()
    } else {
        format!("{group}/{version}")
    }
}

/// Group, kind, plural, whether namespaced, whether `status` is a subresource; all in version v1.
const BUILT_IN: &[(&str, &str, &str, bool, bool)] = &[
    ("", "Namespace", "namespaces", false, true),
    ("", "Node", "nodes", false, true),
    ("", "Pod", "pods", true, true),
    ("", "Service", "services", true, true),
    ("", "ServiceAccount", "serviceaccounts", true, false),
    ("", "ConfigMap", "configmaps", true, false),
    ("", "Secret", "secrets", true, false),
    ("", "Endpoints", "endpoints", true, false),
    ("", "Event", "events", true, false),
    ("", "ResourceQuota", "resourcequotas", true, true),
    ("", "LimitRange", "limitranges", true, false),
    ("apps", "Deployment", "deployments", true, true),
    ("apps", "DaemonSet", "daemonsets", true, true),
    ("apps", "StatefulSet", "statefulsets", true, true),
    ("apps", "ReplicaSet", "replicasets", true, true),
    ("batch", "Job", "jobs", true, true),
    ("batch", "CronJob", "cronjobs", true, true),
    (
        "policy",
        "PodDisruptionBudget",
        "poddisruptionbudgets",
        true,
        true,
    ),
    ("coordination.k8s.io", "Lease", "leases", true, false),
    (
        "discovery.k8s.io",
        "EndpointSlice",
        "endpointslices",
        true,
        false,
    ),
    ("events.k8s.io", "Event", "events", true, false),
    (
        "networking.k8s.io",
        "NetworkPolicy",
        "networkpolicies",
        true,
        false,
    ),
    ("networking.k8s.io", "Ingress", "ingresses", true, true),
    ("rbac.authorization.k8s.io", "Role", "roles", true, false),
    (
        "rbac.authorization.k8s.io",
        "RoleBinding",
        "rolebindings",
        true,
        false,
    ),
    (
        "rbac.authorization.k8s.io",
        "ClusterRole",
        "clusterroles",
        false,
        false,
    ),
    (
        "rbac.authorization.k8s.io",
        "ClusterRoleBinding",
        "clusterrolebindings",
        false,
        false,
    ),
    (
        "scheduling.k8s.io",
        "PriorityClass",
        "priorityclasses",
        false,
        false,
    ),
    (
        "storage.k8s.io",
        "StorageClass",
        "storageclasses",
        false,
        false,
    ),
    (
        "admissionregistration.k8s.io",
        "ValidatingWebhookConfiguration",
        "validatingwebhookconfigurations",
        false,
        false,
    ),
    (
        "admissionregistration.k8s.io",
        "MutatingWebhookConfiguration",
        "mutatingwebhookconfigurations",
        false,
        false,
    ),
    (
        "apiextensions.k8s.io",
        "CustomResourceDefinition",
        CRD_PLURAL,
        false,
        true,
    ),
];

/// Plural of CustomResourceDefinition.
pub(super) const CRD_PLURAL: &str = "customresourcedefinitions";

/// The resources of Kubernetes itself.
pub(super) fn built_in() -> Vec<KindInfo> {
    BUILT_IN
        .iter()
        .map(|(group, kind, plural, namespaced, status)| KindInfo {
            group: (*group).to_owned(),
            versions: vec!["v1".to_owned()],
            kind: (*kind).to_owned(),
            plural: (*plural).to_owned(),
            namespaced: *namespaced,
            status: *status,
        })
        .collect()
}

/// What a CustomResourceDefinition adds.
pub(super) fn defined_by(crd: &Value) -> Result<KindInfo, Status> {
    let spec = &crd["spec"];
    let text = |value: &Value, field: &str| {
        value
            .as_str()
            .map(str::to_owned)
            .ok_or_else(|| Status::invalid(format!("spec.{field}: Required value")))
    };
    let versions = spec["versions"].as_array().cloned().unwrap_or_default();
    let served = versions.iter().filter(|version| version["served"] == true);
    let mut names: Vec<String> = served
        .filter_map(|version| version["name"].as_str())
        .map(str::to_owned)
        .collect();
    // Stable versions are preferred, and of those the highest; the names in use here sort that way by length.
    names.sort_by(|a, b| (a.len(), b).cmp(&(b.len(), a)));
    if names.is_empty() {
        return Err(Status::invalid(
            "spec.versions: no version is served".to_owned(),
        ));
    }
    Ok(KindInfo {
        group: text(&spec["group"], "group")?,
        versions: names,
        kind: text(&spec["names"]["kind"], "names.kind")?,
        plural: text(&spec["names"]["plural"], "names.plural")?,
        namespaced: spec["scope"] == "Namespaced",
        status: versions
            .iter()
            .any(|version| version["subresources"]["status"].is_object()),
    })
}

/// A CustomResourceDefinition that lets everything through.
pub fn definition(group: &str, kind: &str, plural: &str, versions: &[&str], scope: &str) -> Value {
    let versions: Vec<Value> = versions
        .iter()
        .enumerate()
        .map(|(index, name)| {
            json!({
                "name": name,
                "served": true,
                "storage": index == 0,
                "subresources": { "status": {} },
                "schema": { "openAPIV3Schema": {
                    "type": "object",
                    "x-kubernetes-preserve-unknown-fields": true,
                } },
            })
        })
        .collect();
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": { "name": format!("{plural}.{group}") },
        "spec": {
            "group": group,
            "names": { "kind": kind, "plural": plural },
            "scope": scope,
            "versions": versions,
        },
    })
}

const NETWORKING: &[(&str, &str)] = &[
    ("ServiceEntry", "serviceentries"),
    ("WorkloadEntry", "workloadentries"),
    ("WorkloadGroup", "workloadgroups"),
    ("VirtualService", "virtualservices"),
    ("DestinationRule", "destinationrules"),
    ("Gateway", "gateways"),
    ("Sidecar", "sidecars"),
];

const SECURITY: &[(&str, &str)] = &[
    ("PeerAuthentication", "peerauthentications"),
    ("AuthorizationPolicy", "authorizationpolicies"),
    ("RequestAuthentication", "requestauthentications"),
];

const GATEWAY: &[(&str, &str, &str)] = &[
    ("Gateway", "gateways", "Namespaced"),
    ("GatewayClass", "gatewayclasses", "Cluster"),
    ("HTTPRoute", "httproutes", "Namespaced"),
    ("GRPCRoute", "grpcroutes", "Namespaced"),
    ("ReferenceGrant", "referencegrants", "Namespaced"),
];

/// The definitions of Istio's networking and security resources, in all served versions.
pub fn istio_definitions() -> Vec<Value> {
    let versions = |group, table: &[(&str, &str)], versions: &[&str]| -> Vec<Value> {
        table
            .iter()
            .map(|(kind, plural)| definition(group, kind, plural, versions, "Namespaced"))
            .collect()
    };
    let mut definitions = versions(
        "networking.istio.io",
        NETWORKING,
        &["v1", "v1beta1", "v1alpha3"],
    );
    definitions.extend(versions("security.istio.io", SECURITY, &["v1", "v1beta1"]));
    definitions
}

/// The definitions of the Gateway API's standard channel.
pub fn gateway_definitions() -> Vec<Value> {
    GATEWAY
        .iter()
        .map(|(kind, plural, scope)| {
            let versions: &[&str] = if *kind == "ReferenceGrant" {
                &["v1beta1"]
            } else if *kind == "GRPCRoute" {
                &["v1"]
            } else {
                &["v1", "v1beta1"]
            };
            definition("gateway.networking.k8s.io", kind, plural, versions, scope)
        })
        .collect()
}
