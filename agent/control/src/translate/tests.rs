//! Tests of the translation, rule by rule.
mod policies;
mod service_entries;
mod services;
mod workloads;

use std::net::IpAddr;

use undermesh_model::{
    Identity, Mesh, MeshBuilder, Policy, Request, Service, Tunnel, Workload,
    policy::{Action, Decision, Enforcement, Scope},
    service::{HealthPolicy, Preference, Scope as Place},
    workload::Health,
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
    builder(text).workloads.remove(0)
}

fn service(text: &str) -> Service {
    builder(text).services.remove(0)
}

/// A pod with an address, and what is put into it.
fn pod(name: &str, address: &str, labels: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop, labels: {{{labels}}}}}\n\
         spec:\n  containers: [{{name: c, ports: [{{name: http, containerPort: 8080}}]}}]\nstatus: {{podIP: {address}}}\n"
    )
}

const AMBIENT: &str = "---\napiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}\n";
