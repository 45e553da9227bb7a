//! Tests of the translation of pods and WorkloadEntries.
use super::*;

#[test]
fn a_pod_becomes_a_workload_in_full() {
    let workload = workload(
        "apiVersion: v1
kind: Node
metadata:
  name: n1
  labels: {topology.kubernetes.io/region: eu, topology.kubernetes.io/zone: eu-a}
---
apiVersion: v1
kind: Pod
metadata:
  name: web-6d5f-x
  namespace: shop
  labels: {app: web, version: v2, pod-template-hash: 6d5f, istio.io/dataplane-mode: ambient}
  ownerReferences:
  - {apiVersion: apps/v1, kind: ReplicaSet, name: web-6d5f, uid: u, controller: true}
spec: {nodeName: n1, serviceAccountName: web, containers: []}
status:
  phase: Running
  podIP: 10.0.0.1
  podIPs: [{ip: 10.0.0.1}, {ip: 'fd00::1'}]
  conditions: [{type: Ready, status: 'True'}]
",
    );
    assert_eq!(&*workload.uid, "Kubernetes//Pod/shop/web-6d5f-x");
    assert_eq!(
        workload.identity.to_string(),
        "spiffe://cluster.local/ns/shop/sa/web"
    );
    let addresses: Vec<String> = workload.addresses.iter().map(ToString::to_string).collect();
    assert_eq!(addresses, ["10.0.0.1", "fd00::1"]);
    assert_eq!((&*workload.node, &*workload.workload_name), ("n1", "web"));
    assert_eq!(
        (&*workload.canonical_name, &*workload.canonical_revision),
        ("web", "v2")
    );
    assert_eq!(
        (&*workload.locality.region, &*workload.locality.zone),
        ("eu", "eu-a")
    );
    assert_eq!(
        (workload.health, workload.tunnel),
        (Health::Healthy, Tunnel::Hbone)
    );
}

#[test]
fn defaults_are_those_of_kubernetes_and_istio() {
    let workload = workload(&pod("web", "10.0.0.1", ""));
    assert_eq!(&*workload.identity.service_account, "default");
    assert_eq!(
        (&*workload.canonical_name, &*workload.canonical_revision),
        ("web", "latest")
    );
    assert_eq!(
        (workload.health, workload.tunnel),
        (Health::Healthy, Tunnel::None)
    );
}

#[test]
fn health_follows_readiness_and_deletion() {
    let unready = pod("web", "10.0.0.1", "").replace(
        "status: {",
        "status: {conditions: [{type: Ready, status: 'False'}], ",
    );
    assert_eq!(workload(&unready).health, Health::Unhealthy);
    let deleted = pod("web", "10.0.0.1", "").replace(
        "{name: web",
        "{deletionTimestamp: '2026-01-01T00:00:00Z', name: web",
    );
    assert_eq!(workload(&deleted).health, Health::Unhealthy);
}

#[test]
fn ended_pods_and_pods_without_an_address_are_no_workloads() {
    for phase in ["Succeeded", "Failed"] {
        let ended =
            pod("web", "10.0.0.1", "").replace("status: {", &format!("status: {{phase: {phase}, "));
        assert_eq!(builder(&ended).workloads, []);
    }
    assert_eq!(
        findings("apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {}\n"),
        [
            "Info f.yaml:1: Pod default/a: status.podIP: the pod is no workload before it has an address"
        ]
    );
}

#[test]
fn enrollment_follows_labels_network_and_sidecars() {
    let tunnel = |text: String| workload(&text).tunnel;
    let plain = pod("web", "10.0.0.1", "");
    assert_eq!(tunnel(format!("{AMBIENT}{plain}")), Tunnel::Hbone);
    let none = pod("web", "10.0.0.1", "istio.io/dataplane-mode: none");
    assert_eq!(tunnel(format!("{AMBIENT}{none}")), Tunnel::None);
    assert_eq!(
        tunnel(pod("web", "10.0.0.1", "istio.io/dataplane-mode: ambient")),
        Tunnel::Hbone
    );
    assert_eq!(
        tunnel(pod("web", "10.0.0.1", "networking.istio.io/tunnel: http")),
        Tunnel::Hbone
    );
    let sidecar = plain.replace(
        "{name: web",
        "{annotations: {sidecar.istio.io/status: x}, name: web",
    );
    assert_eq!(tunnel(format!("{AMBIENT}{sidecar}")), Tunnel::None);
    let system = plain.replace("namespace: shop", "namespace: kube-system");
    assert_eq!(
        tunnel(format!(
            "{}{system}",
            AMBIENT.replace("shop", "kube-system")
        )),
        Tunnel::None
    );
}

#[test]
fn host_network_pods_share_their_address_and_are_not_in_the_mesh() {
    let host = pod("web", "10.0.0.1", "").replace("spec:\n", "spec:\n  hostNetwork: true\n");
    let workload = workload(&format!("{AMBIENT}{host}"));
    assert_eq!(workload.addresses, ["10.0.0.1".parse::<IpAddr>().unwrap()]);
    assert_eq!(
        (workload.network_mode, workload.tunnel),
        (NetworkMode::HostNetwork, Tunnel::None)
    );
}

#[test]
fn controllers_are_named_as_istio_names_them() {
    for (kind, name, expected) in [
        ("ReplicaSet", "web-abc", "web"),
        ("ReplicaSet", "web-def", "web-def"),
        ("Job", "report-28391040", "report"),
        ("Job", "import-data", "import-data"),
        ("StatefulSet", "db-abc", "db-abc"),
    ] {
        let owner = format!(
            "{{ownerReferences: [{{kind: {kind}, name: {name}, controller: true}}], name: web"
        );
        let text = pod("web", "10.0.0.1", "pod-template-hash: abc").replace("{name: web", &owner);
        assert_eq!(&*workload(&text).workload_name, expected, "{kind} {name}");
    }
}

#[test]
fn a_workload_entry_becomes_a_workload() {
    let workload = workload(&format!(
        "{AMBIENT}---
apiVersion: networking.istio.io/v1beta1
kind: WorkloadEntry
metadata: {{name: vm, namespace: shop, annotations: {{undermesh.io/node: n2}}}}
spec:
  address: 10.9.0.1
  labels: {{app: vm}}
  serviceAccount: vm
  locality: eu/eu-b/rack
  network: far
"
    ));
    assert_eq!(
        &*workload.uid,
        "Kubernetes/networking.istio.io/WorkloadEntry/shop/vm"
    );
    assert_eq!(&*workload.identity.service_account, "vm");
    assert_eq!((&*workload.network, &*workload.node), ("far", "n2"));
    assert_eq!(&*workload.locality.subzone, "rack");
    assert_eq!(workload.tunnel, Tunnel::Hbone);
}

#[test]
fn a_workload_entry_may_have_a_name_and_a_weight() {
    let entry = |spec: &str| {
        format!(
            "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {{name: vm}}\nspec:\n  {spec}\n"
        )
    };
    let named = workload(&entry("{address: vm.example, weight: 5}"));
    assert_eq!((&*named.hostname, named.capacity), ("vm.example", 5));
    assert_eq!(named.addresses, Vec::<IpAddr>::new());
    assert_eq!(
        workload(&entry("{address: 10.0.0.1, weight: 0}")).capacity,
        1
    );
}

#[test]
fn a_workload_entry_that_cannot_be_reached_is_reported() {
    let text = "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: vm}\nspec:\n  network: far\n";
    assert_eq!(
        findings(text),
        [
            "Error f.yaml:5: WorkloadEntry default/vm: spec.network: an entry without an address is not supported yet; add an address"
        ]
    );
    assert_eq!(mesh(text).builder.workloads, []);
}
