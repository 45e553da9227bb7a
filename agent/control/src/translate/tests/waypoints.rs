//! Tests of what stands before workloads and services.
use undermesh_model::{Gateway, GatewayDestination, workload::ApplicationTunnel};

use super::*;

/// A Gateway with what is put into its metadata, its listener and its status.
fn gateway(namespace: &str, name: &str, metadata: &str, from: &str, addresses: &str) -> String {
    format!(
        "---\napiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: {name}, namespace: {namespace}, {metadata}}}\n\
         spec:\n  gatewayClassName: istio-waypoint\n  listeners: [{{name: mesh, port: 15008, protocol: HBONE, allowedRoutes: {{namespaces: {{{from}}}}}}}]\n\
         status: {{addresses: [{addresses}]}}\n"
    )
}

fn ready(name: &str, metadata: &str) -> String {
    let address = format!("{{type: Hostname, value: {name}.shop.svc.cluster.local}}");
    gateway("shop", name, metadata, "from: Same", &address)
}

fn at(name: &str) -> Option<Gateway> {
    Some(Gateway {
        destination: GatewayDestination::Hostname {
            namespace: "shop".into(),
            hostname: format!("{name}.shop.svc.cluster.local").into(),
        },
        port: 15008,
    })
}

fn web(metadata: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: web, namespace: shop, {metadata}}}\nspec: {{clusterIP: 10.1.0.1}}\n"
    )
}

fn namespace(labels: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Namespace\nmetadata: {{name: shop, labels: {{{labels}}}}}\n"
    )
}

const USED: &str = "labels: {istio.io/use-waypoint: wp}";

#[test]
fn a_label_attaches_a_service_and_a_namespace_all_of_its_own() {
    let wp = ready("wp", "");
    let waypoint = |text: &str| service(&format!("{wp}{text}")).waypoint.clone();
    assert_eq!(waypoint(&web(USED)), at("wp"));
    let shop = namespace("istio.io/use-waypoint: wp");
    assert_eq!(waypoint(&format!("{shop}{}", web(""))), at("wp"));
    let none = web("labels: {istio.io/use-waypoint: none}");
    assert_eq!(waypoint(&format!("{shop}{none}")), None);
    let managed = web("labels: {gateway.istio.io/managed: istio.io-mesh-controller}");
    assert_eq!(waypoint(&format!("{shop}{managed}")), None);
}

#[test]
fn a_waypoint_is_for_services_unless_it_says_otherwise() {
    let pod = pod("web", "10.0.0.1", "istio.io/use-waypoint: wp");
    let class = "---\napiVersion: gateway.networking.k8s.io/v1\nkind: GatewayClass\nmetadata: {name: istio-waypoint, labels: {istio.io/waypoint-for: workload}}\nspec: {controllerName: x}\n";
    for (label, class, for_service, for_workload) in [
        ("", "", true, false),
        ("labels: {istio.io/waypoint-for: all}", "", true, true),
        ("labels: {istio.io/waypoint-for: workload}", "", false, true),
        ("labels: {istio.io/waypoint-for: none}", "", false, false),
        ("", class, false, true),
        (
            "labels: {istio.io/waypoint-for: service}",
            class,
            true,
            false,
        ),
    ] {
        let text = format!("{}{class}{}{pod}", ready("wp", label), web(USED));
        let builder = mesh(&text).builder;
        let found = (
            builder.services[0].waypoint.is_some(),
            builder.workloads[0].waypoint.is_some(),
        );
        assert_eq!(found, (for_service, for_workload), "{label} {class}");
    }
}

#[test]
fn a_waypoint_of_another_namespace_must_admit() {
    let text = "labels: {istio.io/use-waypoint: wp, istio.io/use-waypoint-namespace: infra}";
    let labelled = namespace("team: a");
    for (from, admitted) in [
        ("from: Same", false),
        ("from: All", true),
        ("from: Selector, selector: {matchLabels: {team: a}}", true),
        (
            "from: Selector, selector: {matchExpressions: [{key: team, operator: NotIn, values: [a]}]}",
            false,
        ),
        ("from: None", false),
    ] {
        let address = "{type: IPAddress, value: 10.3.0.1}";
        let wp = gateway("infra", "wp", "", from, address);
        let translation = mesh(&format!("{wp}{labelled}{}", web(text)));
        let waypoint = &translation.builder.services[0].waypoint;
        assert_eq!(waypoint.is_some(), admitted, "{from}");
        assert_eq!(translation.diagnostics.is_empty(), admitted, "{from}");
    }
}

#[test]
fn a_waypoint_that_is_not_ready_is_told_where_it_is_named() {
    let absent = "connections go without Gateway shop/wp, which is not there or has no address; create it, or wait until it is ready";
    assert_eq!(
        findings(&web(USED)),
        [format!(
            "Warning f.yaml:4: Service shop/web: metadata.labels['istio.io/use-waypoint']: {absent}"
        )]
    );
    let shop = namespace("istio.io/use-waypoint: wp");
    let unready = gateway("shop", "wp", "", "from: Same", "");
    assert_eq!(
        findings(&format!("{shop}{}{unready}", web(""))),
        [format!(
            "Warning f.yaml:4: Namespace shop: metadata.labels['istio.io/use-waypoint']: {absent}"
        )]
    );
}

#[test]
fn connections_are_shared_with_a_second_waypoint() {
    let both = format!("{}{}", ready("wp", ""), ready("new", ""));
    let canary = |weight: &str| {
        web(&format!(
            "annotations: {{istio.io/use-waypoint-canary-weight: '{weight}'}}, labels: {{istio.io/use-waypoint: wp, istio.io/use-waypoint-canary: new}}"
        ))
    };
    let weights = |weight: &str| {
        let service = mesh(&format!("{both}{}", canary(weight)))
            .builder
            .services
            .remove(0);
        let weighted = service.weighted_waypoints.iter();
        weighted
            .map(|it| (Some(it.gateway.clone()), it.weight))
            .collect::<Vec<_>>()
    };
    assert_eq!(weights("30"), [(at("wp"), 70), (at("new"), 30)]);
    assert_eq!(weights("101"), []);
    assert_eq!(findings(&format!("{both}{}", canary("x"))).len(), 1);
}

#[test]
fn ingress_follows_the_service_and_then_the_namespace() {
    let wp = ready("wp", "");
    let shop = namespace("istio.io/use-waypoint: wp, istio.io/ingress-use-waypoint: 'true'");
    let ingress =
        |metadata: &str| service(&format!("{wp}{shop}{}", web(metadata))).ingress_use_waypoint;
    assert!(ingress(""));
    assert!(!ingress("labels: {istio.io/ingress-use-waypoint: 'false'}"));
}

#[test]
fn instances_of_a_waypoint_have_none_and_may_take_the_proxy_protocol() {
    let instance = pod(
        "wp-1",
        "10.0.0.9",
        "gateway.networking.k8s.io/gateway-name: wp",
    );
    let shop = namespace("istio.io/use-waypoint: wp");
    let tunnel = |binding: &str| {
        let wp = ready(
            "wp",
            &format!(
                "labels: {{istio.io/waypoint-for: all}}, annotations: {{ambient.istio.io/waypoint-inbound-binding: {binding}}}"
            ),
        );
        let workload = workload(&format!("{wp}{shop}{instance}"));
        assert_eq!(workload.waypoint, None);
        workload.application_tunnel
    };
    let proxied = |proxy_protocol, port| {
        Some(ApplicationTunnel {
            proxy_protocol,
            port,
        })
    };
    assert_eq!(tunnel("PROXY/15088"), proxied(true, Some(15088)));
    assert_eq!(tunnel("NONE"), proxied(false, None));
    assert_eq!(tunnel("NONE/15009"), proxied(false, Some(15009)));
    assert_eq!(tunnel("OTHER"), None);
}
