//! Small meshes, requests and a client that keeps what it is told.
use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use prost::Message;
use prost_types::{Struct, Value, value};
use undermesh_model::{
    Delta, Identity, Locality, Policy, Service, ServicePort, TrustDomain, Workload,
    policy::{Action, Enforcement, Rule, Scope},
    service::{AppProtocol, HealthPolicy, IpFamilies, Preference, ServiceEndpoint, Visibility},
    workload::{DEFAULT_CAPACITY, Health, NetworkMode, Tunnel, WorkloadKind},
};

use super::frame::Response;
use crate::wire::{
    ADDRESS_TYPE,
    discovery::{self, DeltaDiscoveryRequest, DeltaDiscoveryResponse},
};

pub(crate) fn pod(name: &str, address: &str, node: &str) -> Workload {
    Workload {
        uid: format!("Kubernetes//Pod/shop/{name}").into(),
        name: name.into(),
        namespace: "shop".into(),
        addresses: vec![address.parse().unwrap()],
        network: "".into(),
        tunnel: Tunnel::Hbone,
        identity: Identity::new(TrustDomain::cluster_local(), "shop", name).unwrap(),
        node: node.into(),
        canonical_name: name.into(),
        canonical_revision: "latest".into(),
        workload_name: name.into(),
        workload_kind: WorkloadKind::Pod,
        locality: Locality::default(),
        health: Health::Healthy,
        cluster: "Kubernetes".into(),
        policies: Vec::new(),
        hostname: "".into(),
        network_mode: NetworkMode::Standard,
        capacity: DEFAULT_CAPACITY,
        waypoint: None,
        network_gateway: None,
        application_tunnel: None,
        native_tunnel: false,
    }
}

pub(crate) fn service(name: &str, address: &str, endpoints: &[&Workload]) -> Service {
    let address: IpAddr = address.parse().unwrap();
    let endpoint = |workload: &&Workload| ServiceEndpoint {
        workload: Arc::clone(&workload.uid),
        ports: Vec::new(),
    };
    Service {
        name: name.into(),
        namespace: "shop".into(),
        hostname: format!("{name}.shop.svc.cluster.local").into(),
        network: "".into(),
        addresses: vec![address.into()],
        ports: vec![ServicePort {
            port: 80,
            target_port: Some(8080),
            name: "http".into(),
            protocol: AppProtocol::Http2,
        }],
        preference: Preference::None,
        health_policy: HealthPolicy::OnlyHealthy,
        subject_alt_names: Vec::new(),
        canonical: true,
        visibility: Visibility::Public,
        ip_families: IpFamilies::Automatic,
        waypoint: None,
        weighted_waypoints: Vec::new(),
        ingress_use_waypoint: false,
        endpoints: endpoints.iter().map(endpoint).collect(),
    }
}

/// An enforced selector-scoped policy with one rule that always matches.
pub(crate) fn policy(name: &str, action: Action) -> Policy {
    Policy {
        name: name.into(),
        namespace: "shop".into(),
        scope: Scope::WorkloadSelector,
        action,
        enforcement: Enforcement::Enforced,
        rules: vec![Rule::default()],
    }
}

pub(crate) fn delta(workloads: &[&Workload], services: &[&Service], policies: &[&Policy]) -> Delta {
    Delta {
        workloads: workloads
            .iter()
            .map(|part| Arc::new((*part).clone()))
            .collect(),
        services: services
            .iter()
            .map(|part| Arc::new((*part).clone()))
            .collect(),
        policies: policies
            .iter()
            .map(|part| Arc::new((*part).clone()))
            .collect(),
        ..Delta::default()
    }
}

/// A node proxy of a pod, on a Kubernetes node.
pub(crate) fn node(namespace: &str, pod: &str, name: &str) -> discovery::Node {
    let mut node = discovery::Node {
        id: format!("ztunnel~10.0.0.1~{pod}.{namespace}~{namespace}.svc.cluster.local"),
        ..discovery::Node::default()
    };
    set_metadata(&mut node, "NODE_NAME", name);
    node
}

pub(crate) fn set_metadata(node: &mut discovery::Node, key: &str, text: &str) {
    let value = Value {
        kind: Some(value::Kind::StringValue(text.to_owned())),
    };
    let metadata = node.metadata.get_or_insert_with(Struct::default);
    metadata.fields.insert(key.to_owned(), value);
}

pub(crate) fn request(
    type_url: &str,
    subscribe: &[&str],
    unsubscribe: &[&str],
) -> DeltaDiscoveryRequest {
    let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    DeltaDiscoveryRequest {
        node: Some(node("istio-system", "ztunnel-1", "n1")),
        type_url: type_url.to_owned(),
        resource_names_subscribe: owned(subscribe),
        resource_names_unsubscribe: owned(unsubscribe),
        ..DeltaDiscoveryRequest::default()
    }
}

/// The first request for workloads and services of a client that asks on demand.
pub(crate) fn on_demand() -> DeltaDiscoveryRequest {
    request(ADDRESS_TYPE, &["*"], &["*"])
}

/// A response as a client reads it.
pub(crate) fn read(response: &Response) -> DeltaDiscoveryResponse {
    DeltaDiscoveryResponse::decode(response.encode_to_vec().as_slice()).unwrap()
}

/// What one client knows of one type: each resource by name.
#[derive(Clone, Debug, Default)]
pub(crate) struct Known(pub(crate) BTreeMap<String, discovery::Resource>);

impl Known {
    pub(crate) fn take(&mut self, response: DeltaDiscoveryResponse) {
        for resource in response.resources {
            self.0.insert(resource.name.clone(), resource);
        }
        for name in response.removed_resources {
            self.0.remove(&name);
        }
    }

    pub(crate) fn versions(&self) -> std::collections::HashMap<String, String> {
        let versions = self.0.iter();
        versions
            .map(|(name, resource)| (name.clone(), resource.version.clone()))
            .collect()
    }

    pub(crate) fn names(&self) -> Vec<&str> {
        self.0.keys().map(String::as_str).collect()
    }
}
