//! Tests of the engine: the same parts whatever the order and the commits, and no more work than is needed.
use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::{Value as Json, json};
use undermesh_model::{Policy, Service, Workload};

use super::*;
use crate::{
    resources::{decode_json, strings::Strings},
    settings::Source,
    translate::translate,
};

fn settings(source: Source) -> Settings {
    Settings {
        source,
        ..Settings::default()
    }
}

fn applied(kind: Kind, json: &Json) -> Change {
    Change::Applied(decode_json(kind, json, &Strings::default()))
}

fn removed(kind: Kind, namespace: &str, name: &str) -> Change {
    Change::Removed(Key::new(kind, namespace.into(), name.into()))
}

fn pod(namespace: &str, name: &str, address: &str, labels: Json) -> Json {
    json!({
        "metadata": {"name": name, "namespace": namespace, "labels": labels,
            "annotations": {"ambient.istio.io/redirection": "enabled"}},
        "spec": {"nodeName": "n1", "serviceAccountName": "sa", "containers": []},
        "status": {"podIP": address, "conditions": [{"type": "Ready", "status": "True"}]},
    })
}

fn service(namespace: &str, name: &str, selector: Json) -> Json {
    json!({
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"clusterIP": "10.1.0.1", "selector": selector, "ports": [{"port": 80}]},
    })
}

fn policy(namespace: &str, spec: Json) -> Json {
    json!({"metadata": {"name": "p", "namespace": namespace}, "spec": spec})
}

/// The parts as someone holds them who has followed every commit.
#[derive(Debug, Default, PartialEq)]
struct Follower {
    workloads: BTreeMap<Arc<str>, Arc<Workload>>,
    services: BTreeMap<Arc<str>, Arc<Service>>,
    policies: BTreeMap<Arc<str>, Arc<Policy>>,
    diagnostics: BTreeMap<Key, Vec<Diagnostic>>,
}

impl Follower {
    fn follow(&mut self, commit: Commit) {
        let delta = commit.delta;
        for part in delta.workloads {
            self.workloads.insert(part.uid.clone(), part);
        }
        for part in delta.services {
            self.services.insert(part.key().into(), part);
        }
        for part in delta.policies {
            self.policies.insert(part.key().into(), part);
        }
        for key in delta.removed_workloads {
            assert!(self.workloads.remove(&key).is_some(), "{key}");
        }
        for key in delta.removed_services {
            assert!(self.services.remove(&key).is_some(), "{key}");
        }
        for key in delta.removed_policies {
            assert!(self.policies.remove(&key).is_some(), "{key}");
        }
        for (key, diagnostics) in commit.diagnostics {
            if diagnostics.is_empty() {
                self.diagnostics.remove(&key);
            } else {
                self.diagnostics.insert(key, diagnostics);
            }
        }
    }
}

#[test]
fn a_change_of_readiness_changes_the_workload_alone() {
    let mut engine = Engine::new(settings(Source::Kubernetes));
    let web = pod("shop", "web", "10.0.0.1", json!({"app": "web"}));
    engine.apply(applied(Kind::Pod, &web));
    engine.apply(applied(Kind::Pod, &pod("shop", "b", "10.0.0.2", json!({}))));
    let selecting = service("shop", "web", json!({"app": "web"}));
    engine.apply(applied(Kind::Service, &selecting));
    assert_eq!(engine.commit().delta.services[0].endpoints.len(), 1);

    let mut unready = web.clone();
    unready["status"]["conditions"][0]["status"] = json!("False");
    engine.apply(applied(Kind::Pod, &unready));
    let delta = engine.commit().delta;
    assert_eq!(delta.workloads.len(), 1);
    assert_eq!(delta.services, []);

    engine.apply(removed(Kind::Pod, "shop", "web"));
    let delta = engine.commit().delta;
    assert_eq!(delta.removed_workloads, ["Kubernetes//Pod/shop/web".into()]);
    assert_eq!(delta.services[0].endpoints, []);
}

#[test]
fn what_says_the_same_changes_nothing() {
    let mut engine = Engine::new(settings(Source::Kubernetes));
    let web = pod("shop", "web", "10.0.0.1", json!({}));
    engine.apply(applied(Kind::Pod, &web));
    engine.commit();
    let mut heartbeat = web.clone();
    heartbeat["metadata"]["resourceVersion"] = json!("7");
    heartbeat["status"]["conditions"][0]["lastProbeTime"] = json!("now");
    engine.apply(applied(Kind::Pod, &heartbeat));
    let node = json!({"metadata": {"name": "n1", "labels": {"x": "y"}}});
    engine.apply(applied(Kind::Node, &node));
    let commit = engine.commit();
    assert!(commit.delta.is_empty());
    assert_eq!(commit.diagnostics, BTreeMap::new());
}

#[test]
fn a_node_that_moves_takes_its_pods_and_the_addresses_on_it_along() {
    let mut engine = Engine::new(settings(Source::Kubernetes));
    let slice = json!({
        "metadata": {"name": "db-1", "namespace": "bank", "labels": {"kubernetes.io/service-name": "db"}},
        "addressType": "IPv4",
        "endpoints": [{"addresses": ["192.0.2.1"], "nodeName": "n1"}],
    });
    engine.apply(applied(Kind::EndpointSlice, &slice));
    engine.apply(applied(Kind::Service, &service("bank", "db", json!({}))));
    engine.apply(applied(
        Kind::Pod,
        &pod("shop", "web", "10.0.0.1", json!({})),
    ));
    engine.commit();
    let node = json!({"metadata": {"name": "n1", "labels": {"topology.kubernetes.io/zone": "z1"}}});
    engine.apply(applied(Kind::Node, &node));
    let workloads = engine.commit().delta.workloads;
    let zones: Vec<&str> = workloads.iter().map(|it| &*it.locality.zone).collect();
    assert_eq!(zones, ["z1", "z1"]);
}

#[test]
fn a_policy_that_goes_bad_stays_as_it_was_and_one_that_never_was_good_denies() {
    let mut engine = Engine::new(settings(Source::Kubernetes));
    let good = policy("shop", json!({"rules": [{}]}));
    let bad = policy(
        "shop",
        json!({"rules": [{"from": [{"source": {"x": []}}]}]}),
    );
    engine.apply(applied(Kind::AuthorizationPolicy, &good));
    engine.commit();
    engine.apply(applied(Kind::AuthorizationPolicy, &bad));
    let commit = engine.commit();
    assert!(commit.delta.is_empty());
    let (key, diagnostics) = commit.diagnostics.first_key_value().unwrap();
    assert_eq!(key.to_string(), "AuthorizationPolicy shop/p");
    assert_eq!(
        diagnostics[1].to_string(),
        "AuthorizationPolicy shop/p: its last good version stays in force; correct the errors above"
    );

    engine.apply(removed(Kind::AuthorizationPolicy, "shop", "p"));
    let commit = engine.commit();
    assert_eq!(commit.delta.removed_policies, ["shop/p".into()]);
    assert_eq!(commit.diagnostics[&key.clone()], []);

    for _ in 0..2 {
        engine.apply(applied(Kind::AuthorizationPolicy, &bad));
        engine.commit();
        let policies = engine.parts().policies;
        assert_eq!(
            policies[0].rules,
            [undermesh_model::policy::Rule::default()]
        );
    }
    assert_eq!(engine.diagnostics().count(), 2);
    engine.apply(applied(Kind::AuthorizationPolicy, &good));
    engine.commit();
    assert_eq!(engine.diagnostics().count(), 0);
}

#[test]
fn the_mode_of_the_mesh_reaches_every_workload() {
    let mut engine = Engine::new(settings(Source::Kubernetes));
    engine.apply(applied(
        Kind::Pod,
        &pod("shop", "web", "10.0.0.1", json!({})),
    ));
    engine.commit();
    let strict = policy("istio-system", json!({"mtls": {"mode": "STRICT"}}));
    engine.apply(applied(Kind::PeerAuthentication, &strict));
    let delta = engine.commit().delta;
    let key = "istio-system/istio_converted_static_strict";
    assert_eq!(delta.workloads[0].policies, [key.into()]);
    assert_eq!(delta.policies[0].key(), key);
    engine.apply(removed(Kind::PeerAuthentication, "istio-system", "p"));
    let delta = engine.commit().delta;
    assert_eq!(delta.workloads[0].policies, []);
    assert_eq!(delta.removed_policies, [key.into()]);
}

#[test]
fn counts_are_of_what_is_in_force() {
    let mut engine = Engine::new(settings(Source::Kubernetes));
    let web = service("shop", "web", json!({}));
    engine.apply(applied(Kind::Service, &web));
    engine.apply(applied(Kind::Service, &web));
    assert_eq!(engine.counts().collect::<Vec<_>>(), [("Service", 1)]);
    engine.apply(removed(Kind::Service, "shop", "web"));
    assert_eq!(engine.counts().count(), 0);
    engine.commit();
    assert!(engine.inventory.scopes.is_empty());
}

/// A few names, so that random resources meet.
const NAMESPACES: [&str; 3] = ["shop", "bank", "istio-system"];

fn one_of(texts: &'static [&'static str]) -> impl Strategy<Value = &'static str> + Clone {
    prop::sample::select(texts)
}

fn labels() -> impl Strategy<Value = Json> + Clone {
    prop::sample::select(vec![
        json!({}),
        json!({"app": "a"}),
        json!({"app": "b", "istio.io/dataplane-mode": "ambient"}),
        json!({"app": "a", "istio.io/use-waypoint": "a"}),
        json!({"istio.io/use-waypoint": "b", "istio.io/use-waypoint-namespace": "bank"}),
        json!({"istio.io/use-waypoint": "a", "istio.io/use-waypoint-canary": "b"}),
        json!({"gateway.networking.k8s.io/gateway-name": "a"}),
        json!({"topology.kubernetes.io/zone": "z1"}),
        json!({"topology.kubernetes.io/zone": "z2"}),
        json!({"istio.io/waypoint-for": "all"}),
    ])
}

fn selector() -> impl Strategy<Value = Json> + Clone {
    prop::sample::select(vec![json!({}), json!({"app": "a"}), json!({"app": "b"})])
}

fn address() -> impl Strategy<Value = &'static str> + Clone {
    one_of(&["10.0.0.1", "10.0.0.2", "10.0.0.3"])
}

/// What a kind has beside its metadata.
fn body(kind: Kind) -> BoxedStrategy<Json> {
    let mode = || one_of(&["STRICT", "PERMISSIVE", "UNSET"]);
    match kind {
        Kind::Namespace | Kind::Node | Kind::GatewayClass => Just(json!({})).boxed(),
        Kind::Pod => (address(), one_of(&["Running", "Failed"]), one_of(&["n1", "n2"]), any::<bool>(), 0u16..3)
            .prop_map(|(address, phase, node, ready, port)| json!({
                "spec": {"nodeName": node, "containers": [{"name": "c", "ports": [{"name": "http", "containerPort": 8080 + port}]}]},
                "status": {"podIP": if port == 2 { "" } else { address }, "phase": phase,
                    "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}]},
            }))
            .boxed(),
        Kind::Service => (selector(), any::<bool>())
            .prop_map(|(selector, named)| json!({
                "spec": {"clusterIP": "10.1.0.1", "selector": selector,
                    "ports": [{"name": "http", "port": 80, "targetPort": if named { json!("http") } else { json!(8080) }}]},
            }))
            .boxed(),
        Kind::EndpointSlice => (address(), address(), one_of(&["a", "b"]), one_of(&["n1", "n2"]))
            .prop_map(|(first, second, pod, node)| json!({
                "addressType": "IPv4", "ports": [{"name": "http", "port": 9000}],
                "endpoints": [
                    {"addresses": [first], "targetRef": {"kind": "Pod", "name": pod}},
                    {"addresses": [second], "nodeName": node},
                ],
            }))
            .boxed(),
        Kind::ServiceEntry => (
            prop::sample::subsequence(vec!["x.example", "y.example", "a.shop.svc.cluster.local"], 1..3),
            one_of(&["NONE", "STATIC", "DNS"]),
            one_of(&["*", ".", "~"]),
            selector(),
            labels(),
        )
            .prop_map(|(hosts, resolution, export, selector, labels)| {
                let mut spec = json!({"hosts": hosts, "resolution": resolution, "exportTo": [export],
                    "addresses": ["10.2.0.1"], "ports": [{"number": 80, "name": "http", "protocol": "HTTP"}]});
                if selector == json!({}) {
                    spec["endpoints"] = json!([{"address": "10.0.0.9", "labels": labels}]);
                } else {
                    spec["workloadSelector"] = json!({"labels": selector});
                }
                json!({"spec": spec})
            })
            .boxed(),
        Kind::WorkloadEntry => (address(), selector(), one_of(&["a", "b"]))
            .prop_map(|(address, labels, account)| json!({
                "spec": {"address": address, "labels": labels, "serviceAccount": account, "ports": {"http": 9090}},
            }))
            .boxed(),
        Kind::PeerAuthentication => (mode(), mode(), selector())
            .prop_map(|(mode, port, selector)| {
                let mut spec = json!({"mtls": {"mode": mode}});
                if selector != json!({}) {
                    spec["selector"] = json!({"matchLabels": selector});
                    spec["portLevelMtls"] = json!({"81": {"mode": port}});
                }
                json!({"spec": spec})
            })
            .boxed(),
        Kind::AuthorizationPolicy => (one_of(&["ALLOW", "DENY", "AUDIT", "BAD"]), selector())
            .prop_map(|(action, selector)| json!({
                "spec": {"action": action, "selector": {"matchLabels": selector}, "rules": [{}]},
            }))
            .boxed(),
        Kind::Gateway => (any::<bool>(), one_of(&["Same", "All", "Selector"]))
            .prop_map(|(ready, from)| json!({
                "spec": {"gatewayClassName": "a", "listeners": [{"name": "m", "port": 15008, "protocol": "HBONE",
                    "allowedRoutes": {"namespaces": {"from": from, "selector": {"matchLabels": {"app": "a"}}}}}]},
                "status": {"addresses": if ready { json!([{"value": "10.3.0.1"}]) } else { json!([]) }},
            }))
            .boxed(),
    }
}

#[derive(Clone, Debug)]
enum Step {
    Apply(Kind, Json),
    Remove(Kind, &'static str, &'static str),
    Commit,
}

fn step() -> impl Strategy<Value = Step> {
    // Those that depend on one another most come more often.
    let frequent = [Kind::Pod, Kind::Pod, Kind::EndpointSlice, Kind::Service];
    let kinds: Vec<Kind> = Kind::ALL.iter().chain(&frequent).copied().collect();
    let kind = move || prop::sample::select(kinds.clone());
    let name = || one_of(&["a", "b"]);
    let namespaces = || one_of(&NAMESPACES);
    let age = one_of(&["2020-01-01T00:00:00Z", "2021-01-01T00:00:00Z"]);
    let apply = (kind(), namespaces(), name(), labels(), age).prop_flat_map(
        |(kind, namespace, name, labels, age)| {
            body(kind).prop_map(move |mut json| {
                let name = if kind == Kind::Namespace { namespace } else { name };
                let name = if kind == Kind::Node && name == "a" { "n1" } else { name };
                let labels = if kind == Kind::EndpointSlice && labels != json!({}) {
                    json!({"kubernetes.io/service-name": name})
                } else {
                    labels.clone()
                };
                json["metadata"] = json!({"name": name, "namespace": namespace, "labels": labels,
                    "creationTimestamp": age,
                    "annotations": {"ambient.istio.io/redirection": "enabled", "istio.io/use-waypoint-canary-weight": "10"}});
                Step::Apply(kind, json)
            })
        },
    );
    let remove = (kind(), namespaces(), name())
        .prop_map(|(kind, namespace, name)| Step::Remove(kind, namespace, name));
    prop_oneof![6 => apply, 2 => remove, 2 => Just(Step::Commit)]
}

fn removal(kind: Kind, namespace: &'static str, name: &'static str) -> Key {
    let name = match kind {
        Kind::Namespace => namespace,
        Kind::Node if name == "a" => "n1",
        _ => name,
    };
    let namespace = if kind.is_namespaced() { namespace } else { "" };
    Key::new(kind, namespace.into(), name.into())
}

/// Goes through the steps, and compares with a translation of what is in force in the end.
fn check(steps: Vec<Step>, source: Source) -> Result<(), TestCaseError> {
    let settings = settings(source);
    let mut engine = Engine::new(settings.clone());
    let mut follower = Follower::default();
    let mut known: BTreeMap<Key, ()> = BTreeMap::new();
    for step in steps {
        match step {
            Step::Apply(kind, json) => {
                let decoded = decode_json(kind, &json, &Strings::default());
                known.extend(decoded.key.clone().map(|key| (key, ())));
                engine.apply(Change::Applied(decoded));
            }
            Step::Remove(kind, namespace, name) => {
                let key = removal(kind, namespace, name);
                known.remove(&key);
                engine.apply(Change::Removed(key));
            }
            Step::Commit => follower.follow(engine.commit()),
        }
    }
    follower.follow(engine.commit());

    let parts = engine.parts();
    let held: Vec<Resource> = known
        .keys()
        .filter_map(|key| engine.inventory.get(&Id::of(key)?))
        .collect();
    let fresh = translate(&held, &settings);
    prop_assert_eq!(&fresh.builder.workloads, &parts.workloads);
    prop_assert_eq!(&fresh.builder.services, &parts.services);
    prop_assert_eq!(&fresh.builder.policies, &parts.policies);
    let of_translation: Vec<&Diagnostic> = engine.ledger.translated().collect();
    prop_assert_eq!(fresh.diagnostics.iter().collect::<Vec<_>>(), of_translation);

    prop_assert!(follower.workloads.into_values().eq(parts.workloads));
    let mut services: Vec<_> = follower.services.into_values().collect();
    services.sort_by_cached_key(|service| service.key());
    prop_assert_eq!(services, parts.services);
    prop_assert!(follower.policies.into_values().eq(parts.policies));
    let diagnostics = follower.diagnostics.into_values().flatten();
    prop_assert!(diagnostics.eq(engine.diagnostics().cloned()));
    let counted: usize = engine.counts().map(|(_, count)| count).sum();
    prop_assert_eq!(counted, held.len());
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happened_the_parts_are_those_of_what_is_there_now(
        steps in prop::collection::vec(step(), 1..60),
    ) {
        check(steps.clone(), Source::Kubernetes)?;
        check(steps, Source::Manifests)?;
    }
}
