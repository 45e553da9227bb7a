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
fn endpoints_by_name_are_looked_up_where_they_are_used() {
    let listed = builder(&entry(
        "  resolution: DNS\n  endpoints: [{address: 192.0.2.7}, {address: db-1.example}]\n",
    ));
    let names: Vec<&str> = listed.workloads.iter().map(|it| &*it.hostname).collect();
    assert_eq!(names, ["", "db-1.example"]);
    assert_eq!(listed.services[0].endpoints.len(), 2);
    let implied = builder(
        &entry("  resolution: DNS\n").replace("[db.example]", "[db.example, other.example]"),
    );
    for service in &implied.services {
        let [endpoint] = &service.endpoints[..] else {
            panic!("{service:?}");
        };
        let workload = implied
            .workloads
            .iter()
            .find(|it| it.uid == endpoint.workload)
            .unwrap();
        assert_eq!(workload.hostname, service.hostname);
    }
}

#[test]
fn a_service_entry_may_be_for_its_own_namespace_or_for_nobody() {
    let exported =
        |to: &str| mesh(&entry(&format!("  resolution: NONE\n  exportTo: [{to}]\n"))).builder;
    assert_eq!(
        exported("'.'").services[0].visibility,
        Visibility::Namespace
    );
    assert!(!exported("'.'").services[0].canonical);
    assert_eq!(exported("'*'").services[0].visibility, Visibility::Public);
    assert_eq!(exported("'~'").services, []);
}

#[test]
fn a_service_has_its_name_against_service_entries() {
    let service = "---\napiVersion: v1\nkind: Service\nmetadata: {name: db, namespace: shop}\nspec: {clusterIP: 10.1.0.1}\n";
    let host = "db.shop.svc.cluster.local";
    let same = entry("  resolution: NONE\n").replace("db.example", host);
    let other = same.replace("namespace: shop", "namespace: bank");
    let text = format!("{same}---\n{other}{service}");
    assert_eq!(
        findings(&text),
        [
            "Error f.yaml:5: ServiceEntry shop/db: spec.hosts[0]: is also in Service shop/db, which wins; remove it from one of the two"
        ]
    );
    let services = mesh(&text).builder.services;
    let canonical: Vec<(String, bool)> =
        services.iter().map(|it| (it.key(), it.canonical)).collect();
    assert_eq!(
        canonical,
        [
            (format!("bank/{host}"), false),
            (format!("shop/{host}"), true)
        ]
    );
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
