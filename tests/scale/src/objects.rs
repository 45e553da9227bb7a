//! The objects of the generated cluster, as a cluster's own components write them.

use std::net::Ipv4Addr;

use serde_json::{Value, json};
use undermesh_tests::cluster::{NODE_ACCOUNT, SYSTEM};

use crate::plan::{Plan, PodName, Slot};

/// The port of every service.
pub const SERVICE_PORT: u16 = 80;
/// The port of every pod.
pub const POD_PORT: u16 = 8080;
/// The region of the generated nodes; the real ones are in another.
const REGION: &str = "region-2";
/// Zones of the generated nodes.
const ZONES: u32 = 3;
/// Who makes the EndpointSlices of Services with a selector.
const SLICE_CONTROLLER: &str = "endpointslice-controller.k8s.io";

/// How far a pod has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// On its node, without an address.
    Scheduled,
    /// With its address, ready, and in the mesh.
    Ready,
}

/// A namespace in the mesh.
pub fn namespace(name: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": { "name": name, "labels": { "istio.io/dataplane-mode": "ambient", "team": name } },
    })
}

/// A policy that lets a namespace's own workloads in.
pub fn policy(namespace: &str) -> Value {
    json!({
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": { "name": "own", "namespace": namespace },
        "spec": { "rules": [{ "from": [{ "source": { "namespaces": [namespace, "real"] } }] }] },
    })
}

/// Mutual TLS for the whole mesh.
pub fn strict() -> Value {
    json!({
        "apiVersion": "security.istio.io/v1",
        "kind": "PeerAuthentication",
        "metadata": { "name": "default", "namespace": SYSTEM },
        "spec": { "mtls": { "mode": "STRICT" } },
    })
}

/// A node.
pub fn node(node: u32) -> Value {
    let name = Plan::node_name(node);
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": { "name": name, "labels": {
            "kubernetes.io/hostname": name,
            "topology.kubernetes.io/region": REGION,
            "topology.kubernetes.io/zone": format!("zone-{}", node % ZONES),
        } },
        "status": { "nodeInfo": { "kubeletVersion": "v1.33.0" } },
    })
}

/// The pod of a node's agent.
pub fn agent(node: u32) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": agent_name(node), "namespace": SYSTEM, "labels": { "app": NODE_ACCOUNT },
        },
        "spec": {
            "nodeName": Plan::node_name(node),
            "serviceAccountName": NODE_ACCOUNT,
            "containers": [{ "name": "agent", "image": "undermesh" }],
        },
    })
}

/// The name of the pod of a node's agent.
pub fn agent_name(node: u32) -> String {
    format!("{NODE_ACCOUNT}-{node}")
}

/// A service of the generated cluster.
pub fn service(plan: &Plan, service: u32) -> Value {
    let name = Plan::service_name(service);
    let address = Plan::service_address(service);
    service_named(
        &plan.namespace_of(service),
        &name,
        address,
        json!({ "app": name }),
    )
}

/// A service over the pods with some labels. What is near is preferred.
pub fn service_named(namespace: &str, name: &str, address: Ipv4Addr, selector: Value) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "name": name, "namespace": namespace, "labels": selector },
        "spec": {
            "clusterIP": address,
            "clusterIPs": [address],
            "selector": selector,
            "trafficDistribution": "PreferClose",
            "ports": [{
                "name": "tcp-main", "port": SERVICE_PORT, "targetPort": POD_PORT, "protocol": "TCP",
            }],
        },
    })
}

/// A pod of the generated cluster.
pub fn pod(plan: &Plan, slot: Slot, pod: &PodName, progress: Progress) -> Value {
    let app = Plan::service_name(plan.service_of(slot));
    let labels = json!({ "app": app, "pod-template-hash": "7d4b9c6f5", "version": "v1" });
    let node = Plan::node_name(plan.node_of(slot));
    pod_named(pod, &app, labels, &node, progress)
}

/// A pod. It has what a pod usually has, most of which the mesh never reads.
pub fn pod_named(pod: &PodName, app: &str, labels: Value, node: &str, progress: Progress) -> Value {
    let mut object = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": pod.name,
            "namespace": pod.namespace,
            "labels": labels,
            "annotations": { "prometheus.io/scrape": "true", "prometheus.io/port": "9090" },
            "ownerReferences": [{
                "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": format!("{app}-7d4b9c6f5"),
                "uid": "6f0c1d4e-6a0b-4c57-9a58-0c1d2e3f4a5b", "controller": true,
                "blockOwnerDeletion": true,
            }],
        },
        "spec": {
            "nodeName": node,
            "serviceAccountName": app,
            "restartPolicy": "Always",
            "terminationGracePeriodSeconds": 30,
            "containers": [{
                "name": "app",
                "image": format!("registry.example/{app}:1.27.4"),
                "ports": [{ "name": "tcp-main", "containerPort": POD_PORT, "protocol": "TCP" }],
                "env": [
                    { "name": "POD_NAME", "valueFrom": { "fieldRef": { "fieldPath": "metadata.name" } } },
                    { "name": "DATABASE", "value": "postgres://db.example:5432/main" },
                ],
                "resources": { "requests": { "cpu": "100m", "memory": "128Mi" }, "limits": { "memory": "256Mi" } },
                "readinessProbe": { "httpGet": { "path": "/ready", "port": POD_PORT }, "periodSeconds": 10 },
                "volumeMounts": [{ "name": "token", "mountPath": "/var/run/secrets", "readOnly": true }],
            }],
            "volumes": [{ "name": "token", "projected": { "sources": [
                { "serviceAccountToken": { "expirationSeconds": 3607, "path": "token" } },
            ] } }],
        },
        "status": { "phase": "Pending" },
    });
    if progress == Progress::Ready {
        object["metadata"]["annotations"]["ambient.istio.io/redirection"] = json!("enabled");
        object["status"] = json!({
            "phase": "Running",
            "podIP": pod.address,
            "podIPs": [{ "ip": pod.address }],
            "conditions": [
                { "type": "Initialized", "status": "True" },
                { "type": "Ready", "status": "True" },
                { "type": "ContainersReady", "status": "True" },
                { "type": "PodScheduled", "status": "True" },
            ],
            "containerStatuses": [{ "name": "app", "ready": true, "restartCount": 0 }],
        });
    }
    object
}

/// The EndpointSlice of a service, as the controller for Services with a selector writes it.
pub fn slice<'a>(
    plan: &Plan,
    service: u32,
    ready: impl Iterator<Item = (&'a PodName, u32)>,
) -> Value {
    let name = Plan::service_name(service);
    let endpoints: Vec<Value> = ready
        .map(|(pod, node)| {
            json!({
                "addresses": [pod.address],
                "conditions": { "ready": true, "serving": true, "terminating": false },
                "nodeName": Plan::node_name(node),
                "targetRef": { "kind": "Pod", "namespace": pod.namespace, "name": pod.name },
            })
        })
        .collect();
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": format!("{name}-x7k2p"),
            "namespace": plan.namespace_of(service),
            "labels": {
                "kubernetes.io/service-name": name,
                "endpointslice.kubernetes.io/managed-by": SLICE_CONTROLLER,
            },
        },
        "addressType": "IPv4",
        "ports": [{ "name": "tcp-main", "port": POD_PORT, "protocol": "TCP" }],
        "endpoints": endpoints,
    })
}
