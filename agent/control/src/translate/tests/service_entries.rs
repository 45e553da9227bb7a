//! Tests of the translation of ServiceEntries.
use super::*;

fn entry(spec: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1alpha3\nkind: ServiceEntry\nmetadata: {{name: db, namespace: shop}}\nspec:\n  hosts: [db.example]\n  addresses: [10.2.0.0/24]\n  ports: [{{number: 5432, name: tcp, protocol: TCP, targetPort: 15432}}]\n{spec}"
    )
}

#[test]
fn listed_endpoints_become_workloads() {
    let builder = builder(&entry(
        "  resolution: STATIC\n  endpoints:\n  - {address: 192.0.2.7, ports: {tcp: 7000}}\n  - {address: 192.0.2.8, labels: {networking.istio.io/tunnel: http}}\n",
    ));
    let service = &builder.services[0];
    assert_eq!(
        (&*service.hostname, service.addresses[0].to_string()),
        ("db.example", "10.2.0.0/24".to_owned())
    );
    assert_eq!(service.ports[0].target_port, Some(15432));
    assert_eq!(
        &*service.endpoints[0].workload,
        "Kubernetes/networking.istio.io/ServiceEntry/shop/db/192.0.2.7"
    );
    assert_eq!(service.endpoints[0].ports, [(5432, 7000)]);
    assert_eq!(service.endpoints[1].ports, []);
    let tunnels: Vec<Tunnel> = builder.workloads.iter().map(|it| it.tunnel).collect();
    assert_eq!(tunnels, [Tunnel::None, Tunnel::Hbone]);
}

#[test]
fn selected_workloads_match_ports_by_name() {
    let text = entry("  resolution: STATIC\n  workloadSelector: {labels: {app: db}}\n")
        .replace("name: tcp", "name: http");
    let service = service(&format!(
        "{text}{}{}",
        pod("a", "10.0.0.1", "app: db"),
        pod("b", "10.0.0.2", "app: x")
    ));
    assert_eq!(service.endpoints.len(), 1);
    assert_eq!(service.endpoints[0].ports, [(5432, 8080)]);
}

#[test]
fn without_resolution_connections_pass_through() {
    let service = service(&entry("  resolution: NONE\n"));
    assert_eq!(
        (service.preference, service.health_policy),
        (Preference::Passthrough, HealthPolicy::AllowAll)
    );
}

#[test]
fn dns_is_reported_and_has_no_endpoints() {
    let text = entry("  resolution: DNS\n  endpoints: [{address: 192.0.2.7}]\n");
    assert_eq!(
        findings(&text),
        [
            "Error f.yaml:8: ServiceEntry shop/db: spec.resolution: endpoints by DNS are not supported yet; connections to its addresses are refused; use STATIC with endpoints, or NONE"
        ]
    );
    let service = &mesh(&text).builder.services[0];
    assert_eq!((service.endpoints.len(), service.addresses.len()), (0, 1));
    assert_eq!(service.preference, Preference::None);
}

#[test]
fn the_oldest_owner_of_a_host_is_canonical() {
    let other = entry("  resolution: NONE\n").replace(
        "namespace: shop",
        "namespace: old, creationTimestamp: '2020-01-01T00:00:00Z'",
    );
    let services = builder(&format!("{}---\n{other}", entry("  resolution: NONE\n"))).services;
    let canonical: Vec<&str> = services
        .iter()
        .filter(|it| it.canonical)
        .map(|it| &*it.namespace)
        .collect();
    assert_eq!(canonical, ["old"]);
}

#[test]
fn alternative_identities_are_spiffe_ids() {
    let text =
        entry("  resolution: NONE\n  subjectAltNames: ['spiffe://td/ns/a/sa/b', db.example]\n");
    assert_eq!(mesh(&text).builder.services[0].subject_alt_names.len(), 1);
    assert_eq!(findings(&text).len(), 1);
}
