use serde_json::{Value as Json, json};
use undermesh_control::{
    resources::{decode_json, kinds::Kind, metadata::Origin, strings::Strings},
    value::Value,
};

use super::*;
use crate::examine::Examination;

fn object(kind: Kind, name: &str, labels: Json, spec: Json) -> (Kind, Json) {
    let metadata = json!({"name": name, "namespace": "shop", "labels": labels});
    (kind, json!({"metadata": metadata, "spec": spec}))
}

fn namespace(labels: Json) -> (Kind, Json) {
    (
        Kind::Namespace,
        json!({"metadata": {"name": "shop", "labels": labels}}),
    )
}

fn pod(app: &str, is_captured: bool) -> (Kind, Json) {
    let (kind, mut pod) = object(
        Kind::Pod,
        app,
        json!({ "app": app }),
        json!({"nodeName": "n"}),
    );
    pod["status"] =
        json!({"phase": "Running", "podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}]});
    if is_captured {
        let name = "ambient.istio.io/redirection";
        pod["metadata"]["annotations"] = json!({ name: "enabled" });
    }
    (kind, pod)
}

fn strict(name: &str, app: &str) -> (Kind, Json) {
    let spec = json!({"selector": {"matchLabels": {"app": app}}, "mtls": {"mode": "STRICT"}});
    object(Kind::PeerAuthentication, name, json!({}), spec)
}

fn found(objects: &[(Kind, Json)]) -> Vec<String> {
    found_with(objects, &[])
}

fn found_with(objects: &[(Kind, Json)], network_policies: &[Json]) -> Vec<String> {
    let settings = Settings {
        source: Source::Kubernetes,
        ..Settings::default()
    };
    let mut examination = Examination::new(settings);
    for (kind, json) in objects {
        examination.add(decode_json(*kind, json, &Strings::default()));
    }
    for policy in network_policies {
        let policy = Value::from_json(policy).unwrap();
        examination.add_network_policy(&policy, &Origin::Cluster);
    }
    let findings = examination.finish().findings;
    findings.iter().map(ToString::to_string).collect()
}

#[test]
fn a_selector_that_meets_nothing_is_told() {
    let found = found(&[pod("web", true), strict("p", "wbe")]);
    assert_eq!(
        found,
        [
            "PeerAuthentication shop/p: spec.selector: selects no workload and has no effect; compare the labels with those of the pods"
        ]
    );
}

#[test]
fn a_policy_over_captured_pods_is_in_order() {
    assert_eq!(found(&[pod("web", true), strict("p", "web")]), [""; 0]);
}

#[test]
fn a_policy_over_pods_outside_the_mesh_is_told() {
    let found = found(&[pod("web", false), strict("p", "web")]);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(
        found[0].contains("refuses no plain connection: it selects 1 workload"),
        "{found:?}"
    );
}

#[test]
fn the_younger_of_two_rivals_is_told() {
    let found = found(&[pod("web", true), strict("a", "web"), strict("b", "web")]);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(
        found[0].contains("PeerAuthentication shop/a has the same selector"),
        "{found:?}"
    );
}

#[test]
fn labels_of_namespaces_that_do_not_do_what_they_seem_to_are_told() {
    let found = |labels| found(&[namespace(labels)]);
    assert!(found(json!({DATAPLANE_MODE: "ambeint"}))[0].contains("'ambeint' is no mode"));
    let both = found(json!({DATAPLANE_MODE: "ambient", INJECTION: "enabled"}));
    assert!(both[0].contains("sidecar"), "{both:?}");
    assert_eq!(found(json!({DATAPLANE_MODE: "ambient"})), [""; 0]);
}

#[test]
fn a_service_entry_without_members_is_told() {
    let spec = json!({
        "hosts": ["db.example.com"],
        "addresses": ["10.1.1.1"],
        "resolution": "STATIC",
        "ports": [{"name": "tcp", "number": 5432, "protocol": "TCP"}],
        "workloadSelector": {"labels": {"app": "db"}},
    });
    let entry = object(Kind::ServiceEntry, "db", json!({}), spec);
    let found = found(&[entry]);
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].contains("has no endpoints"), "{found:?}");
}

fn admits(app: &str, ports: &[u16]) -> Json {
    let ports: Vec<Json> = ports.iter().map(|port| json!({ "port": port })).collect();
    json!({
        "metadata": {"name": app, "namespace": "shop"},
        "spec": {"podSelector": {"matchLabels": {"app": app}}, "ingress": [{"ports": ports}]},
    })
}

#[test]
fn a_network_policy_that_keeps_the_mesh_out_is_told() {
    let found = found_with(&[pod("web", true)], &[admits("web", &[8080])]);
    assert_eq!(
        found,
        [
            "NetworkPolicy shop/web: spec.ingress[0].ports: lets nothing of the mesh in to 1 workload: connections \
             come to TCP port 15008 there, and no policy admits that; add the port 15008 with protocol TCP to the rule"
        ]
    );
}

#[test]
fn network_policies_that_let_the_mesh_in_together_are_in_order() {
    let web = [pod("web", true)];
    assert_eq!(found_with(&web, &[admits("web", &[8080, 15008])]), [""; 0]);
    let second = json!({
        "metadata": {"name": "mesh", "namespace": "shop"},
        "spec": {"podSelector": {}, "ingress": [{"ports": [{"port": 15008}]}]},
    });
    assert_eq!(found_with(&web, &[admits("web", &[8080]), second]), [""; 0]);
}

#[test]
fn a_network_policy_for_pods_outside_the_mesh_is_its_own_business() {
    let closed = [admits("web", &[8080])];
    assert_eq!(found_with(&[pod("web", false)], &closed), [""; 0]);
    assert_eq!(found_with(&[pod("db", true)], &closed), [""; 0]);
}
