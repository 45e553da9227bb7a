//! Tests of objects as an API server holds them.
use serde_json::json;

use super::*;

fn read(kind: Kind, json: serde_json::Value) -> Decoded {
    decode_json(kind, &json, &Strings::default())
}

#[test]
fn an_object_of_a_server_needs_no_kind_and_may_have_fields_of_newer_versions() {
    let decoded = read(
        Kind::Service,
        json!({
            "metadata": {"name": "web", "namespace": "shop", "managedFields": [{"manager": "x"}], "newField": 1},
            "spec": {"clusterIP": "10.1.0.1", "ports": [{"port": 80, "newField": 1}], "newField": {}},
            "status": {"loadBalancer": {}},
        }),
    );
    assert_eq!(decoded.problems, []);
    assert!(matches!(decoded.outcome, Outcome::Good(_)));
    assert_eq!(decoded.key.unwrap().to_string(), "Service shop/web");
}

#[test]
fn unknown_conditions_of_a_policy_close_it_all_the_same() {
    let decoded = read(
        Kind::AuthorizationPolicy,
        json!({
            "metadata": {"name": "p", "namespace": "shop", "creationTimestamp": null},
            "spec": {"rules": [{"from": [{"source": {"newCondition": ["x"]}}]}]},
        }),
    );
    assert!(matches!(decoded.outcome, Outcome::Bad(Some(_))));
    assert_eq!(
        decoded.diagnostics()[0].to_string(),
        "AuthorizationPolicy shop/p: spec.rules[0].from[0].source.newCondition: is not a field of this kind; remove it"
    );
}

#[test]
fn an_object_of_a_server_always_has_a_key() {
    for (json, name) in [
        (
            json!({"metadata": {"name": "Bad_Name", "namespace": "shop"}}),
            "Pod shop/Bad_Name",
        ),
        (json!({}), "Pod "),
        (json!("text"), "Pod "),
    ] {
        let decoded = read(Kind::Pod, json);
        assert_eq!(decoded.key.unwrap().to_string(), name);
        assert!(matches!(decoded.outcome, Outcome::Bad(None)));
    }
}

#[test]
fn only_annotations_that_are_read_are_kept() {
    let decoded = read(
        Kind::Pod,
        json!({
            "metadata": {"name": "a", "namespace": "b", "annotations": {"ambient.istio.io/redirection": "enabled", "other": "large"}},
            "spec": {"containers": []},
        }),
    );
    let Outcome::Good(resource) = decoded.outcome else {
        panic!("{decoded:?}");
    };
    let annotations = &resource.metadata().annotations;
    assert!(annotations.is("ambient.istio.io/redirection", "enabled"));
    assert_eq!(annotations.get("other"), None);
}

#[test]
fn every_kind_has_its_place_in_the_api() {
    for kind in Kind::ALL {
        assert!(!kind.versions().is_empty(), "{kind:?}");
        let version = match kind.group() {
            "" => kind.versions()[0].to_owned(),
            group => format!("{group}/{}", kind.versions()[0]),
        };
        assert_eq!(kinds::classify(&version, kind.name()), Class::Used(*kind));
    }
}
