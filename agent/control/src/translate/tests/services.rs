//! Tests of the translation of Services and EndpointSlices.
use super::*;

fn web(spec: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: web, namespace: shop}}\nspec:\n  clusterIP: 10.1.0.1\n{spec}{}{}",
        pod("a", "10.0.0.1", "app: web"),
        pod("b", "10.0.0.2", "app: other")
    )
}

fn slice(addresses: &str, port: u16) -> String {
    format!(
        "---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: web-1, namespace: shop, labels: {{kubernetes.io/service-name: web}}}}
addressType: IPv4
ports: [{{name: http, port: {port}, protocol: TCP}}]
endpoints:
- addresses: [{addresses}]
  nodeName: n1
  zone: z1
"
    )
}

const PORTS: &str = "  ports: [{name: http, port: 80, targetPort: 8080}]\n";

#[test]
fn a_service_has_its_name_addresses_and_selected_pods() {
    let service = service(&web(&format!(
        "  clusterIPs: [10.1.0.1, 'fd01::1']\n  selector: {{app: web}}\n{PORTS}"
    )));
    assert_eq!(&*service.hostname, "web.shop.svc.cluster.local");
    let addresses: Vec<String> = service.addresses.iter().map(ToString::to_string).collect();
    assert_eq!(addresses, ["10.1.0.1/32", "fd01::1/128"]);
    assert_eq!(
        (service.ports[0].port, service.ports[0].target_port),
        (80, Some(8080))
    );
    assert!(service.canonical);
    let endpoints: Vec<&str> = service.endpoints.iter().map(|it| &*it.workload).collect();
    assert_eq!(endpoints, ["Kubernetes//Pod/shop/a"]);
}

#[test]
fn named_target_ports_are_looked_up_in_each_pod() {
    let service = service(&web(
        "  selector: {app: web}\n  ports: [{port: 80, targetPort: http}, {name: x, port: 81, targetPort: none}]\n",
    ));
    assert_eq!(service.ports[0].target_port, None);
    assert_eq!(service.endpoints[0].ports, [(80, 8080)]);
}

#[test]
fn workload_entries_are_selected_like_pods() {
    let entry = "---\napiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: vm, namespace: shop}\nspec: {address: 10.9.0.1, labels: {app: web}, ports: {http: 9090}}\n";
    let text = format!(
        "{}{entry}",
        web("  selector: {app: web}\n  ports: [{port: 80, targetPort: http}]\n")
    );
    let endpoints = service(&text).endpoints;
    assert_eq!(endpoints.len(), 2);
    assert_eq!(endpoints[1].ports, [(80, 9090)]);
}

#[test]
fn only_tcp_ports_are_taken() {
    let service = service(&web(
        "  ports: [{name: d, port: 53, protocol: UDP}, {name: t, port: 53}]\n",
    ));
    assert_eq!(service.ports.len(), 1);
    assert_eq!(&*service.ports[0].name, "t");
}

#[test]
fn headless_services_have_no_address_and_aliases_are_left_out() {
    let headless = web(PORTS).replace("clusterIP: 10.1.0.1", "clusterIP: None");
    assert_eq!(service(&headless).addresses, []);
    let alias = "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec:\n  type: ExternalName\n  externalName: x.example\n";
    assert_eq!(
        findings(alias),
        [
            "Info f.yaml:5: Service default/a: spec.type: an alias in DNS; not used by the L4 data plane"
        ]
    );
    assert_eq!(mesh(alias).builder.services, []);
}

#[test]
fn a_service_without_an_address_is_noted() {
    let text = "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec:\n  ports: [{port: 80}]\n";
    assert_eq!(
        findings(text),
        [
            "Info f.yaml:4: Service default/a: spec.clusterIP: has no virtual address, so connections cannot be told to be for it; give it one"
        ]
    );
}

#[test]
fn preferences_are_istios() {
    use Place::{Network, Node, Region, Subzone, Zone};
    for (spec, expected) in [
        (
            "  internalTrafficPolicy: Local\n  trafficDistribution: PreferClose\n",
            Preference::Strict(vec![Node]),
        ),
        (
            "  trafficDistribution: PreferClose\n",
            Preference::Failover(vec![Network, Region, Zone]),
        ),
        (
            "  trafficDistribution: PreferSameZone\n",
            Preference::Failover(vec![Network, Region, Zone]),
        ),
        (
            "  trafficDistribution: PreferSameNode\n",
            Preference::Failover(vec![Network, Region, Zone, Subzone, Node]),
        ),
        ("  internalTrafficPolicy: Cluster\n", Preference::None),
    ] {
        assert_eq!(service(&web(spec)).preference, expected, "{spec}");
    }
    assert_eq!(
        service(&web("  publishNotReadyAddresses: true\n")).health_policy,
        HealthPolicy::AllowAll
    );
}

#[test]
fn slices_override_the_selector() {
    let text = format!(
        "{}{}",
        web(&format!("  selector: {{app: web}}\n{PORTS}")),
        slice("10.0.0.2", 9000)
    );
    let service = service(&text);
    assert_eq!(service.endpoints.len(), 1);
    assert_eq!(&*service.endpoints[0].workload, "Kubernetes//Pod/shop/b");
    assert_eq!(service.endpoints[0].ports, [(80, 9000)]);
}

#[test]
fn an_address_in_a_slice_without_a_pod_becomes_a_workload() {
    let builder = builder(&format!("{}{}", web(PORTS), slice("192.0.2.1", 8080)));
    let uid = "Kubernetes/discovery.k8s.io/EndpointSlice/shop/web-1/192.0.2.1";
    assert_eq!(&*builder.services[0].endpoints[0].workload, uid);
    assert_eq!(builder.services[0].endpoints[0].ports, []);
    let made = builder.workloads.iter().find(|it| &*it.uid == uid).unwrap();
    assert_eq!(
        (made.tunnel, &*made.node, &*made.locality.zone),
        (Tunnel::None, "n1", "z1")
    );
}

#[test]
fn unready_endpoints_of_slices_do_not_serve() {
    let unready = |addresses: &str| {
        slice(addresses, 8080).replace("  zone: z1", "  conditions: {ready: false}")
    };
    assert_eq!(
        service(&format!("{}{}", web(PORTS), unready("10.0.0.2"))).endpoints,
        []
    );
    let builder = builder(&format!("{}{}", web(PORTS), unready("192.0.2.1")));
    assert_eq!(builder.workloads.last().unwrap().health, Health::Unhealthy);
}

#[test]
fn host_network_pods_are_endpoints_like_others() {
    let text = web(&format!("  selector: {{app: web}}\n{PORTS}")).replacen(
        "spec:\n  containers",
        "spec:\n  hostNetwork: true\n  containers",
        1,
    );
    assert_eq!(
        &*service(&text).endpoints[0].workload,
        "Kubernetes//Pod/shop/a"
    );
}

#[test]
fn ports_say_what_is_spoken_on_them_and_services_which_addresses_they_offer() {
    let service = service(&web(
        "  ipFamilies: [IPv4]\n  ports: [{name: grpc-x, port: 80}, {name: b, port: 81, appProtocol: http}]\n",
    ));
    let spoken: Vec<AppProtocol> = service.ports.iter().map(|port| port.protocol).collect();
    assert_eq!(spoken, [AppProtocol::Grpc, AppProtocol::Http11]);
    assert_eq!(service.ip_families, IpFamilies::Ipv4Only);
}

#[test]
fn a_namespace_can_set_the_preference_of_its_services() {
    let namespace = "---\napiVersion: v1\nkind: Namespace\nmetadata: {name: shop, annotations: {networking.istio.io/traffic-distribution: PreferClose}}\n";
    let preference = |spec: &str| service(&format!("{}{namespace}", web(spec))).preference;
    let near = Preference::Failover(vec![Place::Network, Place::Region, Place::Zone]);
    assert_eq!(preference(PORTS), near);
    assert_eq!(
        preference("  trafficDistribution: PreferSameNode\n"),
        Preference::Failover(vec![
            Place::Network,
            Place::Region,
            Place::Zone,
            Place::Subzone,
            Place::Node
        ])
    );
}
