//! Tests of what differs when the resources come from a cluster.
use super::*;
use crate::{
    fixture::admit,
    settings::{Settings, Source},
    store::Store,
    translate::{Translation, translate},
};

fn cluster(text: &str) -> Translation {
    let mut store = Store::default();
    assert_eq!(
        written(&admit(&mut store, &[("f.yaml", text)])),
        Vec::<String>::new()
    );
    let settings = Settings {
        source: Source::Kubernetes,
        ..Settings::default()
    };
    translate(store.resources(), &settings)
}

const READY: &str = "status: {conditions: [{type: Ready, status: 'True'}], ";
const CAPTURED: &str = "{annotations: {ambient.istio.io/redirection: enabled}, name: web";

#[test]
fn only_what_an_agent_has_captured_is_in_the_mesh() {
    let tunnel = |text: String| cluster(&text).builder.workloads[0].tunnel;
    let web = pod("web", "10.0.0.1", "");
    assert_eq!(tunnel(format!("{AMBIENT}{web}")), Tunnel::None);
    let captured = web.replace("{name: web", CAPTURED);
    assert_eq!(tunnel(captured.clone()), Tunnel::Hbone);
    assert_eq!(
        tunnel(captured.replace(": enabled", ": pending")),
        Tunnel::None
    );
    let native = cluster(&pod("web", "10.0.0.1", "networking.istio.io/tunnel: http")).builder;
    assert!(native.workloads[0].native_tunnel);
    assert_eq!(native.workloads[0].tunnel, Tunnel::Hbone);
}

#[test]
fn a_pod_is_healthy_when_it_says_so() {
    let health = |text: &str| cluster(text).builder.workloads[0].health;
    let web = pod("web", "10.0.0.1", "");
    assert_eq!(health(&web), Health::Unhealthy);
    assert_eq!(health(&web.replace("status: {", READY)), Health::Healthy);
}

fn web(selector: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: web, namespace: shop}}\nspec:\n  clusterIP: 10.1.0.1\n{selector}  ports: [{{name: http, port: 80, targetPort: 8080}}]\n{}{}",
        pod("a", "10.0.0.1", "app: web"),
        pod("b", "10.0.0.2", "app: other")
    )
}

const SLICE: &str = "---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-1, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, port: 9000}]
endpoints:
- {addresses: [10.0.0.2], targetRef: {kind: Pod, name: b}}
- {addresses: [192.0.2.1]}
- {addresses: [10.0.0.1]}
";

fn endpoints(text: &str) -> Vec<(String, Vec<(u16, u16)>)> {
    let services = cluster(text).builder.services;
    let endpoints = services[0].endpoints.iter();
    endpoints
        .map(|it| (it.workload.to_string(), it.ports.clone()))
        .collect()
}

#[test]
fn a_selector_says_which_pods_serve_and_slices_add_what_is_no_pod() {
    let outside = "Kubernetes/discovery.k8s.io/EndpointSlice/shop/web-1/";
    assert_eq!(
        endpoints(&format!("{}{SLICE}", web("  selector: {app: web}\n"))),
        [
            ("Kubernetes//Pod/shop/a".to_owned(), vec![]),
            (format!("{outside}10.0.0.1"), vec![(80, 9000)]),
            (format!("{outside}192.0.2.1"), vec![(80, 9000)]),
        ]
    );
}

#[test]
fn the_slices_of_a_service_without_a_selector_say_which_pods_serve() {
    let found = endpoints(&format!("{}{SLICE}", web("")));
    assert_eq!(
        found[0],
        ("Kubernetes//Pod/shop/b".to_owned(), vec![(80, 9000)])
    );
    assert_eq!(found.len(), 3);
}

#[test]
fn an_address_in_a_slice_may_be_that_of_others_too() {
    let workloads = cluster(&format!("{}{SLICE}", web(""))).builder.workloads;
    let made = workloads.iter().filter(|it| !it.is_pod());
    let modes: Vec<NetworkMode> = made.map(|it| it.network_mode).collect();
    assert_eq!(modes, [NetworkMode::HostNetwork, NetworkMode::HostNetwork]);
}

#[test]
fn a_machine_gets_traffic_when_it_has_told_that_it_is_well() {
    let health = |annotations: &str, status: &str| {
        let text = format!(
            "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {{name: vm, annotations: {{{annotations}}}}}\nspec: {{address: 10.9.0.1}}\n{status}"
        );
        cluster(&text).builder.workloads[0].health
    };
    let told =
        |status: &str| format!("status: {{conditions: [{{type: Healthy, status: '{status}'}}]}}\n");
    let checked = "proxy.istio.io/health-checks-enabled: 'true'";
    assert_eq!(health("", ""), Health::Healthy);
    assert_eq!(health(checked, ""), Health::Unhealthy);
    assert_eq!(health(checked, &told("True")), Health::Healthy);
    assert_eq!(health(checked, &told("False")), Health::Unhealthy);
    assert_eq!(health("", &told("False")), Health::Unhealthy);
}
