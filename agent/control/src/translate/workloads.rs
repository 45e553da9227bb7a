//! Pods and WorkloadEntries to workloads.
use std::sync::Arc;

use undermesh_model::{
    Identity, Locality, Tunnel, Workload,
    workload::{DEFAULT_CAPACITY, Health, NetworkMode, WorkloadKind},
};

use super::{Findings, Inventory, spec};
use crate::{
    diagnostic::{Severity, quote},
    path::Path,
    resources::{
        core::Pod,
        field::Labels,
        metadata::Metadata,
        networking::{Address, Entry, WorkloadEntry},
    },
    settings::Settings,
};

/// The label that enrolls a pod or a namespace.
const DATAPLANE_MODE: &str = "istio.io/dataplane-mode";
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

/// A workload that selectors choose among.
#[derive(Debug)]
pub(super) struct Member<'a> {
    pub(super) workload: Workload,
    pub(super) labels: Labels,
    pub(super) body: Body<'a>,
}

/// What a workload was made from.
#[derive(Clone, Copy, Debug)]
pub(super) enum Body<'a> {
    Pod(&'a Pod),
    Entry(&'a Entry),
}

/// All pods that run and all WorkloadEntries with an address.
pub(super) fn translate<'a>(
    inventory: &Inventory<'a>,
    settings: &Settings,
    findings: &mut Findings,
) -> Vec<Member<'a>> {
    let mut members = Vec::new();
    for pod in inventory.pods.iter().filter(|pod| !pod.terminal) {
        if pod.addresses.is_empty() {
            let path = Path::root().key("status").key("podIP");
            let message = "the pod is no workload before it has an address";
            findings.add(&pod.metadata, Severity::Info, path, message, "");
            continue;
        }
        members.extend(identified(&pod.metadata, findings, || {
            pod_member(pod, inventory, settings)
        }));
    }
    for entry in &inventory.workload_entries {
        members.extend(identified(&entry.metadata, findings, || {
            entry_member(entry, inventory, settings)
        }));
        report_entry(
            &entry.metadata,
            &entry.entry,
            &Path::root().key("spec"),
            findings,
        );
    }
    members
}

type Identified<T> = Result<T, undermesh_model::IdentityError>;

/// Names are checked when resources are read, so this only fails for one too long for SPIFFE.
fn identified<T>(
    metadata: &Metadata,
    findings: &mut Findings,
    make: impl FnOnce() -> Identified<Option<T>>,
) -> Option<T> {
    make().unwrap_or_else(|error| {
        findings.add(
            metadata,
            Severity::Error,
            Path::root(),
            error.to_string(),
            "",
        );
        None
    })
}

fn pod_member<'a>(
    pod: &'a Pod,
    inventory: &Inventory<'_>,
    settings: &Settings,
) -> Identified<Option<Member<'a>>> {
    let metadata = &pod.metadata;
    let node = pod.node.clone().unwrap_or_default();
    let own = locality_labels(&metadata.labels);
    let workload = Workload {
        uid: format!(
            "{}//Pod/{}/{}",
            settings.cluster,
            metadata.namespace(),
            metadata.name()
        )
        .into(),
        name: metadata.name().clone(),
        namespace: metadata.namespace().clone(),
        // Several host-network pods share their node's address, which is not theirs to answer for.
        addresses: if pod.host_network {
            Vec::new()
        } else {
            pod.addresses.clone()
        },
        network: metadata
            .labels
            .get(NETWORK)
            .unwrap_or(&settings.network)
            .clone(),
        tunnel: pod_tunnel(pod, inventory),
        identity: Identity::new(
            settings.trust_domain.clone(),
            metadata.namespace(),
            &pod.service_account,
        )?,
        canonical_name: canonical_name(&metadata.labels, &controller_name(metadata)),
        canonical_revision: canonical_revision(&metadata.labels),
        workload_name: controller_name(metadata),
        // Istio's control plane calls every pod's workload a pod, so that proxies agree on the baggage.
        workload_kind: WorkloadKind::Pod,
        locality: inventory.locality_of(&node).or(own).unwrap_or_default(),
        health: if pod.ready && !metadata.deleting {
            Health::Healthy
        } else {
            Health::Unhealthy
        },
        cluster: settings.cluster.clone(),
        node,
        policies: Vec::new(),
        hostname: Arc::from(""),
        network_mode: if pod.host_network {
            NetworkMode::HostNetwork
        } else {
            NetworkMode::Standard
        },
        capacity: DEFAULT_CAPACITY,
        waypoint: None,
        network_gateway: None,
        application_tunnel: None,
        native_tunnel: speaks_hbone(&metadata.labels),
    };
    Ok(Some(Member {
        workload,
        labels: metadata.labels.clone(),
        body: Body::Pod(pod),
    }))
}

fn pod_tunnel(pod: &Pod, inventory: &Inventory<'_>) -> Tunnel {
    let metadata = &pod.metadata;
    let captured = !metadata.annotations.0.contains_key(SIDECAR_STATUS)
        && !EXCLUDED_NAMESPACES.contains(&&**metadata.namespace())
        && is_enrolled(&metadata.labels, metadata.namespace(), inventory);
    let hbone = !pod.host_network && (captured || speaks_hbone(&metadata.labels));
    if hbone { Tunnel::Hbone } else { Tunnel::None }
}

/// Whether labels enroll a workload: its own, else its namespace's.
fn is_enrolled(labels: &Labels, namespace: &str, inventory: &Inventory<'_>) -> bool {
    let namespace = inventory
        .namespaces
        .get(namespace)
        .map(|namespace| &namespace.metadata.labels);
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
fn controller_name(metadata: &Metadata) -> Arc<str> {
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
    Arc::from(if is_derived && !stem.is_empty() {
        stem
    } else {
        &owner.name
    })
}

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

fn canonical_revision(labels: &Labels) -> Arc<str> {
    let keys = [
        "service.istio.io/canonical-revision",
        "app.kubernetes.io/version",
        "version",
    ];
    keys.iter()
        .find_map(|key| labels.get(key))
        .cloned()
        .unwrap_or_else(|| Arc::from("latest"))
}

/// The locality that the labels of a node or pod tell.
pub(super) fn locality_labels(labels: &Labels) -> Option<Locality> {
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

fn entry_member<'a>(
    resource: &'a WorkloadEntry,
    inventory: &Inventory<'_>,
    settings: &Settings,
) -> Identified<Option<Member<'a>>> {
    let metadata = &resource.metadata;
    let mut labels = metadata.labels.clone();
    labels.0.extend(resource.entry.labels.0.clone());
    let node = labels
        .get(NODE)
        .or_else(|| metadata.annotations.get(NODE))
        .cloned()
        .unwrap_or_default();
    let place = Place {
        node,
        labels: &labels,
        healthy: resource.healthy && !metadata.deleting,
    };
    let uid = format!(
        "{}/networking.istio.io/WorkloadEntry/{}/{}",
        settings.cluster,
        metadata.namespace(),
        metadata.name()
    );
    let Some(mut workload) =
        entry_workload(uid, metadata, &resource.entry, &place, inventory, settings)?
    else {
        return Ok(None);
    };
    if is_enrolled(&labels, metadata.namespace(), inventory) {
        workload.tunnel = Tunnel::Hbone;
    }
    Ok(Some(Member {
        workload,
        labels,
        body: Body::Entry(&resource.entry),
    }))
}

/// What an entry does not say by itself.
pub(super) struct Place<'a> {
    pub(super) node: Arc<str>,
    pub(super) labels: &'a Labels,
    pub(super) healthy: bool,
}

/// A workload of a WorkloadEntry or of an endpoint of a ServiceEntry; `None` without an address.
pub(super) fn entry_workload(
    uid: String,
    metadata: &Metadata,
    entry: &Entry,
    place: &Place<'_>,
    inventory: &Inventory<'_>,
    settings: &Settings,
) -> Identified<Option<Workload>> {
    let Address::Ip(address) = entry.address else {
        return Ok(None);
    };
    let network = if entry.network.is_empty() {
        &settings.network
    } else {
        &entry.network
    };
    let locality = entry
        .locality
        .clone()
        .or_else(|| inventory.locality_of(&place.node));
    Ok(Some(Workload {
        uid: uid.into(),
        name: metadata.name().clone(),
        namespace: metadata.namespace().clone(),
        addresses: vec![address],
        network: network.clone(),
        tunnel: if speaks_hbone(place.labels) {
            Tunnel::Hbone
        } else {
            Tunnel::None
        },
        identity: Identity::new(
            settings.trust_domain.clone(),
            metadata.namespace(),
            &entry.service_account,
        )?,
        node: place.node.clone(),
        canonical_name: canonical_name(place.labels, metadata.name()),
        canonical_revision: canonical_revision(place.labels),
        workload_name: metadata.name().clone(),
        workload_kind: WorkloadKind::Pod,
        locality: locality.unwrap_or_default(),
        health: if place.healthy {
            Health::Healthy
        } else {
            Health::Unhealthy
        },
        cluster: settings.cluster.clone(),
        policies: Vec::new(),
        hostname: Arc::from(""),
        network_mode: NetworkMode::Standard,
        capacity: DEFAULT_CAPACITY,
        waypoint: None,
        network_gateway: None,
        application_tunnel: None,
        native_tunnel: false,
    }))
}

/// Reports what of an entry has no effect yet; `path` is the entry's.
pub(super) fn report_entry(
    metadata: &Metadata,
    entry: &Entry,
    path: &Path,
    findings: &mut Findings,
) {
    match &entry.address {
        Address::Ip(_) => {}
        Address::Other(text) => {
            let message = format!(
                "{} is not an IP address, and others are not supported yet",
                quote(text)
            );
            findings.add(
                metadata,
                Severity::Error,
                path.key("address"),
                message,
                "write an IP address",
            );
        }
        Address::Network => {
            let message = "an entry without an address is not supported yet";
            findings.add(
                metadata,
                Severity::Error,
                path.key("network"),
                message,
                "add an address",
            );
        }
    }
    if entry.weight.is_some_and(|weight| weight > 1) {
        let message = "weights are not supported yet; all endpoints count the same";
        findings.add(
            metadata,
            Severity::Warning,
            path.key("weight"),
            message,
            "remove it",
        );
    }
}

/// Reports pods on their node's network that a Service selects.
pub(super) fn report_host_network(metadata: &Metadata, pod: &Pod, findings: &mut Findings) {
    let message = format!(
        "selects {}, which is on its node's network and so no endpoint",
        pod.metadata.key
    );
    findings.add(
        metadata,
        Severity::Warning,
        spec("selector"),
        message,
        "give the Service an EndpointSlice",
    );
}
