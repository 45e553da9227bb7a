//! Small workloads, services and policies for tests.
use std::{net::IpAddr, sync::Arc};

use crate::{
    identity::{Identity, TrustDomain},
    locality::Locality,
    mesh::{Mesh, MeshBuilder},
    policy::{Action, Clause, Enforcement, Match, Policy, Rule, Scope},
    service::{
        AppProtocol, HealthPolicy, IpFamilies, Preference, Service, ServiceEndpoint, ServicePort,
        Visibility,
    },
    workload::{DEFAULT_CAPACITY, Health, NetworkMode, Tunnel, Workload, WorkloadKind},
};

/// `spiffe://cluster.local/ns/<namespace>/sa/<account>`.
pub(crate) fn identity(namespace: &str, account: &str) -> Identity {
    Identity::new(TrustDomain::cluster_local(), namespace, account).unwrap()
}

/// A healthy pod of the mesh in namespace `shop`; its uid is `c//Pod/shop/<name>`.
pub(crate) fn pod(name: &str, addresses: &[&str]) -> Workload {
    Workload {
        uid: format!("c//Pod/shop/{name}").into(),
        name: name.into(),
        namespace: "shop".into(),
        addresses: addresses
            .iter()
            .map(|text| text.parse::<IpAddr>().unwrap())
            .collect(),
        network: "".into(),
        tunnel: Tunnel::Hbone,
        identity: identity("shop", name),
        node: "n1".into(),
        canonical_name: name.into(),
        canonical_revision: "latest".into(),
        workload_name: name.into(),
        workload_kind: WorkloadKind::Deployment,
        locality: Locality::default(),
        health: Health::Healthy,
        cluster: "Kubernetes".into(),
        policies: Vec::new(),
        hostname: Arc::from(""),
        network_mode: NetworkMode::Standard,
        capacity: DEFAULT_CAPACITY,
        waypoint: None,
        network_gateway: None,
        application_tunnel: None,
        native_tunnel: false,
    }
}

/// A Kubernetes Service in namespace `shop` with port 80, target 8080.
pub(crate) fn service(name: &str, addresses: &[&str], endpoints: &[&Workload]) -> Service {
    let endpoint = |workload: &&Workload| ServiceEndpoint {
        workload: Arc::clone(&workload.uid),
        ports: Vec::new(),
    };
    Service {
        name: name.into(),
        namespace: "shop".into(),
        hostname: format!("{name}.shop.svc.cluster.local").into(),
        network: "".into(),
        addresses: addresses.iter().map(|text| net(text)).collect(),
        ports: vec![ServicePort {
            port: 80,
            target_port: Some(8080),
            name: "http".into(),
            protocol: AppProtocol::Unknown,
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

fn net(text: &str) -> ipnet::IpNet {
    text.parse()
        .unwrap_or_else(|_| text.parse::<IpAddr>().unwrap().into())
}

/// An enforced policy in namespace `shop` with one rule of one match.
pub(crate) fn policy(name: &str, scope: Scope, action: Action, wanted: Match) -> Policy {
    Policy {
        name: name.into(),
        namespace: "shop".into(),
        scope,
        action,
        enforcement: Enforcement::Enforced,
        rules: vec![Rule {
            clauses: vec![Clause {
                matches: vec![wanted],
            }],
        }],
    }
}

/// A mesh of workloads and services.
pub(crate) fn mesh(workloads: &[&Workload], services: &[&Service]) -> Mesh {
    let builder = MeshBuilder {
        workloads: shared(workloads),
        services: shared(services),
        policies: Vec::new(),
    };
    builder.build(&Mesh::empty())
}

fn shared<T: Clone>(parts: &[&T]) -> Vec<Arc<T>> {
    let parts = parts.iter().copied().cloned();
    parts.map(Arc::new).collect()
}
