//! Pods and WorkloadEntries to workloads.
use std::sync::Arc;

use undermesh_model::{
    Identity, IdentityError, Locality, Tunnel, Workload,
    workload::{DEFAULT_CAPACITY, Health, NetworkMode, WorkloadKind},
};

use super::{findings::Findings, inventory::Inventory, peer_authentication, policies, waypoints};
use crate::{
    diagnostic::{Severity, quote},
    path::Path,
    resources::{
        core::Pod,
        field::Labels,
        metadata::Metadata,
        networking::{Address, Entry, WorkloadEntry},
    },
    settings::Source,
};

/// The label that enrolls a pod or a namespace.
const DATAPLANE_MODE: &str = "istio.io/dataplane-mode";
/// The annotation by which the agent on a node says that it has captured a pod.
const REDIRECTION: &str = "ambient.istio.io/redirection";
/// The label of workloads that speak HBONE by themselves: a list of protocols.
const TUNNEL: &str = "networking.istio.io/tunnel";
/// The annotation of pods that have a sidecar.
const SIDECAR_STATUS: &str = "sidecar.istio.io/status";
/// The label that says which network a pod is on.
const NETWORK: &str = "topology.istio.io/network";
/// The label or annotation that says on which node a WorkloadEntry runs.
const NODE: &str = "undermesh.io/node";
/// Namespaces whose pods are never enrolled, as in Istio's CNI agent.
const EXCLUDED_NAMESPACES: &[&str] = &["kube-system"];

/// The workload of a pod, unless it has ended or has no address.
pub(crate) fn pod(pod: &Pod, inventory: &Inventory, findings: &mut Findings) -> Option<Workload> {
    if pod.terminal {
        return None;
    }
    if pod.addresses.is_empty() {
        let path = Path::root().key("status").key("podIP");
        let message = "the pod is no workload before it has an address";
        findings.add(Severity::Info, path, message, "");
        return None;
    }
    let metadata = &pod.metadata;
    let (namespace, labels) = (metadata.namespace(), &metadata.labels);
    let cluster = &inventory.settings.cluster;
    let uid = format!("{cluster}//Pod/{namespace}/{}", metadata.name());
    let plain = plain(uid, metadata, &pod.service_account, inventory);
    let plain = identified(plain, findings)?;
    let attachment = waypoints::of_workload(namespace, labels, inventory, findings);
    let controller = controller_name(metadata, inventory);
    let node = pod.node.clone().unwrap_or_default();
    let own = locality_labels(labels);
    Some(Workload {
        addresses: pod.addresses.clone(),
        network: labels.get(NETWORK).unwrap_or(&plain.network).clone(),
        tunnel: pod_tunnel(pod, inventory),
        canonical_name: canonical_name(labels, &controller),
        canonical_revision: canonical_revision(labels, inventory),
        workload_name: controller,
        locality: inventory.locality_of(&node).or(own).unwrap_or_default(),
        health: pod_health(pod, inventory),
        node,
        policies: listed(namespace, labels, inventory),
        network_mode: if pod.host_network {
            NetworkMode::HostNetwork
        } else {
            NetworkMode::Standard
        },
        waypoint: attachment.waypoint,
        application_tunnel: attachment.tunnel,
        native_tunnel: speaks_hbone(labels),
        ..plain
    })
}

/// The workload of a WorkloadEntry, unless it has neither an address nor a name to look one up by.
pub(crate) fn entry(
    source: &WorkloadEntry,
    inventory: &Inventory,
    findings: &mut Findings,
) -> Option<Workload> {
    let (metadata, entry) = (&source.metadata, &source.entry);
    let path = Path::root().key("spec");
    let uid = format!(
        "{}/networking.istio.io/WorkloadEntry/{}/{}",
        inventory.settings.cluster,
        metadata.namespace(),
        metadata.name()
    );
    let workload = listed_entry(uid, metadata, entry, &path, inventory, findings)?;
    let node = entry_node(source).cloned().unwrap_or_default();
    let attachment =
        waypoints::of_workload(metadata.namespace(), &entry.labels, inventory, findings);
    Some(Workload {
        tunnel: if is_captured(metadata, &entry.labels, inventory) {
            Tunnel::Hbone
        } else {
            workload.tunnel
        },
        locality: entry
            .locality
            .clone()
            .or_else(|| inventory.locality_of(&node))
            .unwrap_or_default(),
        health: if source.healthy && !metadata.deleting {
            Health::Healthy
        } else {
            Health::Unhealthy
        },
        node,
        policies: listed(metadata.namespace(), &entry.labels, inventory),
        waypoint: attachment.waypoint,
        application_tunnel: attachment.tunnel,
        ..workload
    })
}

/// The workload of an endpoint that is listed at `path`; nothing when it has neither an address nor a name.
pub(super) fn listed_entry(
    uid: String,
    metadata: &Metadata,
    entry: &Entry,
    path: &Path,
    inventory: &Inventory,
    findings: &mut Findings,
) -> Option<Workload> {
    let (addresses, hostname) = match &entry.address {
        Address::Ip(address) => (vec![*address], Arc::default()),
        Address::Other(text) if text.starts_with("unix://") => {
            let message = format!("{} is not an IP address", quote(text));
            let remedy = "write an IP address";
            findings.add(Severity::Error, path.key("address"), message, remedy);
            return None;
        }
        Address::Other(name) => (Vec::new(), name.clone()),
        Address::Network => {
            let message = "an entry without an address is not supported yet";
            let remedy = "add an address";
            findings.add(Severity::Error, path.key("network"), message, remedy);
            return None;
        }
    };
    let plain = plain(uid, metadata, &entry.service_account, inventory);
    let plain = identified(plain, findings)?;
    let native_tunnel = speaks_hbone(&entry.labels);
    Some(Workload {
        addresses,
        hostname,
        network: if entry.network.is_empty() {
            plain.network
        } else {
            entry.network.clone()
        },
        tunnel: if native_tunnel {
            Tunnel::Hbone
        } else {
            Tunnel::None
        },
        canonical_name: canonical_name(&entry.labels, metadata.name()),
        canonical_revision: canonical_revision(&entry.labels, inventory),
        locality: entry.locality.clone().unwrap_or_default(),
        // A weight of 0 is an unset one, as in Istio's API.
        capacity: entry
            .weight
            .filter(|weight| *weight > 0)
            .unwrap_or(DEFAULT_CAPACITY),
        native_tunnel,
        ..plain
    })
}

/// A workload outside the mesh of which nothing but its names is known.
pub(super) fn plain(
    uid: String,
    metadata: &Metadata,
    account: &Arc<str>,
    inventory: &Inventory,
) -> Result<Workload, IdentityError> {
    let settings = &inventory.settings;
    let (namespace, name) = (metadata.namespace(), metadata.name());
    let checked = Identity::new(settings.trust_domain.clone(), namespace, account)?;
    Ok(Workload {
        uid: uid.into(),
        name: name.clone(),
        namespace: namespace.clone(),
        addresses: Vec::new(),
        network: settings.network.clone(),
        tunnel: Tunnel::None,
        // The same texts, shared with the other workloads that have them.
        identity: Identity {
            namespace: namespace.clone(),
            service_account: account.clone(),
            ..checked
        },
        node: Arc::default(),
        canonical_name: name.clone(),
        canonical_revision: inventory.strings.get(LATEST),
        workload_name: name.clone(),
        // Istio's control plane calls every workload a pod, so that proxies agree on the baggage.
        workload_kind: WorkloadKind::Pod,
        locality: Locality::default(),
        health: Health::Healthy,
        cluster: settings.cluster.clone(),
        policies: Vec::new(),
        hostname: Arc::default(),
        network_mode: NetworkMode::Standard,
        capacity: DEFAULT_CAPACITY,
        waypoint: None,
        network_gateway: None,
        application_tunnel: None,
        native_tunnel: false,
    })
}

/// Names are checked when resources are read, so this only fails for one too long for SPIFFE.
pub(super) fn identified(
    workload: Result<Workload, IdentityError>,
    findings: &mut Findings,
) -> Option<Workload> {
    workload
        .inspect_err(|error| findings.add(Severity::Error, Path::root(), error.to_string(), ""))
        .ok()
}

/// The policies that a workload lists: those that select it by labels, then what PeerAuthentication demands.
fn listed(namespace: &str, labels: &Labels, inventory: &Inventory) -> Vec<Arc<str>> {
    let mut keys = policies::selecting(namespace, labels, inventory);
    keys.extend(peer_authentication::demanded(namespace, labels, inventory));
    keys
}

fn pod_health(pod: &Pod, inventory: &Inventory) -> Health {
    let ready = pod
        .ready
        .unwrap_or(inventory.settings.source == Source::Manifests);
    if ready && !pod.metadata.deleting {
        Health::Healthy
    } else {
        Health::Unhealthy
    }
}

fn pod_tunnel(pod: &Pod, inventory: &Inventory) -> Tunnel {
    let metadata = &pod.metadata;
    let is_captured = is_captured(metadata, &metadata.labels, inventory);
    // No pod on its node's network is captured; manifests do not say so by themselves.
    if (is_captured || speaks_hbone(&metadata.labels)) && !pod.host_network {
        Tunnel::Hbone
    } else {
        Tunnel::None
    }
}

/// Whether an agent carries the connections of a workload.
fn is_captured(metadata: &Metadata, labels: &Labels, inventory: &Inventory) -> bool {
    match inventory.settings.source {
        Source::Kubernetes => metadata.annotations.is(REDIRECTION, "enabled"),
        Source::Manifests => {
            metadata.annotations.get(SIDECAR_STATUS).is_none()
                && !EXCLUDED_NAMESPACES.contains(&&**metadata.namespace())
                && is_enrolled(labels, metadata.namespace(), inventory)
        }
    }
}

/// Whether labels enroll a workload: its own, else its namespace's.
fn is_enrolled(labels: &Labels, namespace: &str, inventory: &Inventory) -> bool {
    let namespace = inventory.namespace_labels(namespace);
    labels.is(DATAPLANE_MODE, "ambient")
        || (namespace.is_some_and(|labels| labels.is(DATAPLANE_MODE, "ambient"))
            && !labels.is(DATAPLANE_MODE, "none"))
}

fn speaks_hbone(labels: &Labels) -> bool {
    labels.get(TUNNEL).is_some_and(|protocols| {
        protocols
            .split(',')
            .any(|protocol| protocol.trim() == "http")
    })
}

/// The controller's name as Istio derives it: a Deployment's for the pods of its ReplicaSets, a CronJob's for
/// those of its Jobs.
fn controller_name(metadata: &Metadata, inventory: &Inventory) -> Arc<str> {
    let Some(owner) = &metadata.controller else {
        return metadata.name().clone();
    };
    let (stem, suffix) = owner.name.rsplit_once('-').unwrap_or((&owner.name, ""));
    let is_derived = match &*owner.kind {
        "ReplicaSet" => metadata.labels.is("pod-template-hash", suffix),
        "Job" => {
            (8..=10).contains(&suffix.len()) && suffix.bytes().all(|byte| byte.is_ascii_digit())
        }
        _ => false,
    };
    if is_derived && !stem.is_empty() {
        inventory.strings.get(stem)
    } else {
        owner.name.clone()
    }
}

/// The revision of workloads that name none.
const LATEST: &str = "latest";

fn canonical_name(labels: &Labels, fallback: &Arc<str>) -> Arc<str> {
    let keys = [
        "service.istio.io/canonical-name",
        "app.kubernetes.io/name",
        "app",
    ];
    keys.iter()
        .find_map(|key| labels.get(key))
        .unwrap_or(fallback)
        .clone()
}

fn canonical_revision(labels: &Labels, inventory: &Inventory) -> Arc<str> {
    let keys = [
        "service.istio.io/canonical-revision",
        "app.kubernetes.io/version",
        "version",
    ];
    keys.iter()
        .find_map(|key| labels.get(key))
        .cloned()
        .unwrap_or_else(|| inventory.strings.get(LATEST))
}

/// The locality that the labels of a node or pod tell.
pub(crate) fn locality_labels(labels: &Labels) -> Option<Locality> {
    let get = |key| labels.get(key).cloned();
    let (region, zone) = (
        get("topology.kubernetes.io/region"),
        get("topology.kubernetes.io/zone"),
    );
    let subzone = get("topology.istio.io/subzone");
    (region.is_some() || zone.is_some() || subzone.is_some()).then(|| Locality {
        region: region.unwrap_or_default(),
        zone: zone.unwrap_or_default(),
        subzone: subzone.unwrap_or_default(),
    })
}

/// The node that a WorkloadEntry says it runs on.
pub(crate) fn entry_node(source: &WorkloadEntry) -> Option<&Arc<str>> {
    let labels = &source.entry.labels;
    labels
        .get(NODE)
        .or_else(|| source.metadata.annotations.get(NODE))
}
