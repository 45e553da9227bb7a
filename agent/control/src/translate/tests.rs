//! Tests of the translation, rule by rule.
mod kubernetes;
mod policies;
mod service_entries;
mod services;
mod waypoints;
mod workloads;

use std::{net::IpAddr, sync::Arc};

use undermesh_model::{
    Identity, Mesh, MeshBuilder, Policy, Request, Service, Tunnel, Workload,
    policy::{Action, Decision, Enforcement, Scope},
    service::{AppProtocol, HealthPolicy, IpFamilies, Preference, Scope as Place, Visibility},
    workload::{Health, NetworkMode},
};

use crate::fixture::{mesh, written};

fn builder(text: &str) -> MeshBuilder {
    let translation = mesh(text);
    assert_eq!(written(&translation.diagnostics), Vec::<String>::new());
    translation.builder
}

fn findings(text: &str) -> Vec<String> {
    written(&mesh(text).diagnostics)
}

fn workload(text: &str) -> Workload {
    Arc::unwrap_or_clone(builder(text).workloads.remove(0))
}

fn service(text: &str) -> Service {
    Arc::unwrap_or_clone(builder(text).services.remove(0))
}

/// A pod with an address, and what is put into it.
fn pod(name: &str, address: &str, labels: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop, labels: {{{labels}}}}}\n\
         spec:\n  containers: [{{name: c, ports: [{{name: http, containerPort: 8080}}]}}]\nstatus: {{podIP: {address}}}\n"
    )
}

const AMBIENT: &str = "---\napiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}\n";
