use proptest::prelude::*;
use serde_json::{Value as Json, json};

use super::*;

fn policy(spec: Json) -> Json {
    json!({
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": {"name": "p", "namespace": "shop", "managedFields": [{"manager": "kubectl"}]},
        "spec": spec,
    })
}

fn request(operation: &str, object: &Json, old: &Json) -> Json {
    let api_version = object["apiVersion"]
        .as_str()
        .unwrap_or("security.istio.io/v1");
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    json!({
        "apiVersion": "admission.k8s.io/v1",
        "kind": "AdmissionReview",
        "request": {
            "uid": "u-1",
            "operation": operation,
            "kind": {"group": group, "version": version, "kind": object["kind"]},
            "object": object,
            "oldObject": old,
        }
    })
}

fn decided(request: &Json) -> Json {
    let request = read(request.to_string().as_bytes()).unwrap();
    serde_json::to_value(decide(request, &Settings::default())).unwrap()
}

fn created(object: &Json) -> Json {
    decided(&request("CREATE", object, &Json::Null))["response"].clone()
}

fn bad() -> Json {
    policy(json!({"rules": [{"form": []}]}))
}

#[test]
fn a_good_object_is_let_through_without_a_word() {
    let answer = decided(&request("CREATE", &policy(json!({})), &Json::Null));
    assert_eq!(
        answer,
        json!({
            "apiVersion": "admission.k8s.io/v1",
            "kind": "AdmissionReview",
            "response": {"uid": "u-1", "allowed": true},
        })
    );
}

#[test]
fn an_unknown_field_of_a_policy_is_refused_by_its_path() {
    let response = created(&bad());
    assert_eq!(response["allowed"], false);
    assert_eq!(response["status"]["code"], 422);
    let message = response["status"]["message"].as_str().unwrap();
    assert!(
        message.contains("AuthorizationPolicy shop/p: spec.rules[0].form"),
        "{message}"
    );
    assert!(message.contains("'from'"), "{message}");
}

#[test]
fn an_unknown_field_of_other_kinds_is_a_warning() {
    let entry = json!({
        "apiVersion": "networking.istio.io/v1",
        "kind": "WorkloadEntry",
        "metadata": {"name": "vm", "namespace": "shop"},
        "spec": {"address": "10.0.0.7", "adress": "10.0.0.8"},
    });
    let response = created(&entry);
    assert_eq!(response["allowed"], true);
    let warning = response["warnings"][0].as_str().unwrap();
    assert!(warning.contains("adress"), "{warning}");
}

#[test]
fn what_needs_a_waypoint_is_a_warning() {
    let response = created(&policy(json!({
        "rules": [{"to": [{"operation": {"methods": ["GET"]}}]}]
    })));
    assert_eq!(response["allowed"], true);
    let warning = response["warnings"][0].as_str().unwrap();
    assert!(warning.contains("needs HTTP"), "{warning}");
    assert!(warning.contains("waypoint"), "{warning}");
}

#[test]
fn deletion_and_status_are_let_through() {
    for operation in ["DELETE", "CONNECT"] {
        assert_eq!(
            decided(&request(operation, &bad(), &bad()))["response"]["allowed"],
            true
        );
    }
    let mut status = request("UPDATE", &bad(), &policy(json!({})));
    status["request"]["subResource"] = json!("status");
    assert_eq!(decided(&status)["response"]["allowed"], true);
}

#[test]
fn a_bad_object_can_still_be_finalized() {
    let mut freed = bad();
    freed["metadata"]["finalizers"] = json!([]);
    assert_eq!(
        decided(&request("UPDATE", &freed, &bad()))["response"]["allowed"],
        true
    );
    let mut leaving = bad();
    leaving["metadata"]["deletionTimestamp"] = json!("2026-01-31T12:00:00Z");
    let update = request("UPDATE", &leaving, &policy(json!({})));
    assert_eq!(decided(&update)["response"]["allowed"], true);
    let worse = request("UPDATE", &bad(), &policy(json!({})));
    assert_eq!(decided(&worse)["response"]["allowed"], false);
}

#[test]
fn kinds_that_are_not_used_are_let_through_with_a_word() {
    for (api_version, kind, word) in [
        ("networking.istio.io/v1", "VirtualService", "not used"),
        (
            "security.istio.io/v1",
            "RequestAuthentication",
            "not enforced",
        ),
    ] {
        let response = created(&json!({
            "apiVersion": api_version,
            "kind": kind,
            "metadata": {"name": "v", "namespace": "shop"},
            "spec": {"anything": 1},
        }));
        assert_eq!(response["allowed"], true);
        let warning = response["warnings"][0].as_str().unwrap();
        assert!(warning.contains(word), "{warning}");
    }
}

#[test]
fn kinds_that_are_not_known_are_let_through() {
    let object = json!({
        "apiVersion": "networking.istio.io/v1",
        "kind": "Novelty",
        "metadata": {"name": "v", "namespace": "shop"},
    });
    assert_eq!(created(&object), json!({"uid": "u-1", "allowed": true}));
}

#[test]
fn a_name_that_is_yet_to_be_made_up_is_no_mistake() {
    let mut policy = policy(json!({}));
    policy["metadata"] = json!({"generateName": "p-", "namespace": "shop"});
    assert_eq!(created(&policy)["allowed"], true);
}

#[test]
fn deep_nesting_is_refused() {
    let deep = (0..100).fold(json!({}), |inner, _| json!({ "a": inner }));
    let response = created(&policy(deep));
    assert_eq!(response["allowed"], false);
}

#[test]
fn other_bodies_are_told_apart() {
    assert!(matches!(read(b"{"), Err(ReviewError::Form(_))));
    let mut other = request("CREATE", &bad(), &Json::Null);
    other["apiVersion"] = json!("admission.k8s.io/v1beta1");
    assert!(matches!(
        read(other.to_string().as_bytes()),
        Err(ReviewError::Version)
    ));
    let empty = json!({"apiVersion": API_VERSION, "kind": KIND});
    assert!(matches!(
        read(empty.to_string().as_bytes()),
        Err(ReviewError::Version)
    ));
}

fn any_json() -> impl Strategy<Value = Json> {
    let leaf = prop_oneof![
        Just(Json::Null),
        any::<bool>().prop_map(Json::from),
        any::<i64>().prop_map(Json::from),
        any::<f64>().prop_map(Json::from),
        ".{0,12}".prop_map(Json::from),
    ];
    let name = prop_oneof![
        prop::sample::select(vec![
            "spec",
            "metadata",
            "name",
            "generateName",
            "namespace",
            "labels",
            "annotations",
            "rules",
            "from",
            "to",
            "when",
            "source",
            "operation",
            "ports",
            "selector",
            "matchLabels",
            "mtls",
            "portLevelMtls",
            "hosts",
            "addresses",
            "endpoints",
            "deletionTimestamp",
            "managedFields",
        ])
        .prop_map(str::to_owned),
        ".{0,8}",
    ];
    leaf.prop_recursive(6, 48, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Json::from),
            prop::collection::hash_map(name.clone(), inner, 0..6)
                .prop_map(|map| Json::Object(map.into_iter().collect())),
        ]
    })
}

fn any_kind() -> impl Strategy<Value = (&'static str, &'static str)> {
    prop::sample::select(vec![
        ("security.istio.io/v1", "AuthorizationPolicy"),
        ("security.istio.io/v1beta1", "PeerAuthentication"),
        ("networking.istio.io/v1", "ServiceEntry"),
        ("networking.istio.io/v1alpha3", "WorkloadEntry"),
        ("gateway.networking.k8s.io/v1", "Gateway"),
        ("v1", "Pod"),
        ("example.com/v1", "Widget"),
    ])
}

proptest! {
    #[test]
    fn any_object_gets_an_answer((api_version, kind) in any_kind(), spec in any_json(), metadata in any_json()) {
        let object = json!({"apiVersion": api_version, "kind": kind, "metadata": metadata, "spec": spec});
        let response = created(&object);
        prop_assert_eq!(&response["uid"], "u-1");
        prop_assert_eq!(response["allowed"] == false, response["status"].is_object());
    }

    #[test]
    fn any_object_at_all_gets_an_answer(object in any_json(), old in any_json()) {
        let mut review = request("UPDATE", &bad(), &old);
        review["request"]["object"] = object;
        prop_assert!(decided(&review)["response"]["allowed"].is_boolean());
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(read(&bytes).is_err());
    }
}
