//! A cluster, followed through everything that happens to watches.
use std::{collections::BTreeMap, future::Future, sync::Arc};

use http::StatusCode;
use serde_json::{Value, json};
use tokio::time::timeout;
use undermesh_control::{Diagnostic, resources::Key};
use undermesh_model::{Policy, Service, Workload};

use super::*;
use crate::testing::{ApiServer, Failure, PATIENCE, definition};

fn quick() -> SourceSettings {
    let follow = FollowSettings {
        page: 2,
        first_retry: Duration::from_millis(10),
        longest_retry: Duration::from_millis(50),
        absent_retry: Duration::from_millis(20),
        ..FollowSettings::default()
    };
    SourceSettings {
        follow,
        ..SourceSettings::new(Settings::default())
    }
}

fn pod(name: &str, address: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": "shop",
            "labels": { "app": name },
            "annotations": { "ambient.istio.io/redirection": "enabled" },
        },
        "spec": {
            "nodeName": "n1",
            "serviceAccountName": "web",
            "containers": [{ "name": "c", "image": "i", "env": [{ "name": "LONG", "value": "x" }] }],
        },
        "status": {
            "phase": "Running",
            "podIP": address,
            "podIPs": [{ "ip": address }],
            "conditions": [{ "type": "Ready", "status": "True" }],
        },
    })
}

fn service(name: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "name": name, "namespace": "shop" },
        "spec": {
            "clusterIP": "10.1.0.1",
            "clusterIPs": ["10.1.0.1"],
            "selector": { "app": name },
            "ports": [{ "port": 80, "protocol": "TCP" }],
        },
    })
}

fn policy(name: &str, spec: Value) -> Value {
    json!({
        "apiVersion": "security.istio.io/v1",
        "kind": "AuthorizationPolicy",
        "metadata": { "name": name, "namespace": "shop" },
        "spec": spec,
    })
}

fn deny() -> Value {
    json!({ "action": "DENY", "rules": [{ "from": [{ "source": { "namespaces": ["bad"] } }] }] })
}

/// A server with the namespace `shop`.
async fn server() -> ApiServer {
    let api = ApiServer::start().await;
    api.put_namespace("shop", &[("istio.io/dataplane-mode", "ambient")]);
    api
}

/// The mesh as someone knows it who takes every update.
struct Mesh {
    source: Source,
    workloads: BTreeMap<Arc<str>, Arc<Workload>>,
    services: BTreeMap<Arc<str>, Arc<Service>>,
    policies: BTreeMap<Arc<str>, Arc<Policy>>,
    diagnostics: BTreeMap<Key, Vec<Diagnostic>>,
    counts: BTreeMap<&'static str, usize>,
    updates: usize,
}

impl Mesh {
    fn of(api: &ApiServer) -> Self {
        Self::with(api, quick())
    }

    fn with(api: &ApiServer, settings: SourceSettings) -> Self {
        Self {
            source: Source::start(api.client(), settings),
            workloads: BTreeMap::new(),
            services: BTreeMap::new(),
            policies: BTreeMap::new(),
            diagnostics: BTreeMap::new(),
            counts: BTreeMap::new(),
            updates: 0,
        }
    }

    async fn take(&mut self) {
        let update = bounded(self.source.next()).await.expect("an update");
        let delta = update.delta;
        for workload in delta.workloads {
            self.workloads.insert(workload.uid.clone(), workload);
        }
        for service in delta.services {
            self.services.insert(service.key().into(), service);
        }
        for policy in delta.policies {
            self.policies.insert(policy.key().into(), policy);
        }
        for uid in &delta.removed_workloads {
            self.workloads.remove(uid);
        }
        for key in &delta.removed_services {
            self.services.remove(key);
        }
        for key in &delta.removed_policies {
            self.policies.remove(key);
        }
        self.diagnostics.extend(update.diagnostics);
        self.diagnostics.retain(|_, found| !found.is_empty());
        self.counts = update.counts;
        self.updates += 1;
    }

    /// Takes updates until the pods of the mesh have these names.
    async fn until_pods(&mut self, names: &[&str]) {
        while self.updates == 0 || self.pods() != names {
            self.take().await;
        }
    }

    /// Takes updates until something holds.
    async fn until(&mut self, holds: impl Fn(&Self) -> bool) {
        while self.updates == 0 || !holds(self) {
            self.take().await;
        }
    }

    fn pods(&self) -> Vec<&str> {
        self.workloads.values().map(|it| &*it.name).collect()
    }

    fn has_policy(&self, name: &str) -> bool {
        self.policies.contains_key(&*format!("shop/{name}"))
    }

    async fn until_health(&self, kind: Kind, state: WatchState) -> KindHealth {
        let mut health = self.source.health();
        let reached = health.wait_for(|all| all[&kind].state == state);
        bounded(reached).await.expect("a live source")[&kind].clone()
    }
}

async fn bounded<T>(wait: impl Future<Output = T>) -> T {
    timeout(PATIENCE, wait).await.expect("in time")
}

#[tokio::test]
async fn the_first_update_tells_everything() {
    let api = server().await;
    api.install_istio();
    api.put_all([pod("a", "10.0.0.1"), service("a"), policy("p", deny())]);
    let mut mesh = Mesh::of(&api);
    mesh.take().await;
    assert_eq!(mesh.pods(), ["a"]);
    assert!(mesh.services.contains_key("shop/a.shop.svc.cluster.local"));
    assert!(mesh.has_policy("p"));
    assert_eq!(mesh.counts["Pod"], 1);
}

#[tokio::test]
async fn an_empty_cluster_is_told_too() {
    let api = server().await;
    let mut mesh = Mesh::of(&api);
    mesh.take().await;
    assert!(mesh.workloads.is_empty());
}

#[tokio::test]
async fn changes_follow() {
    let api = server().await;
    let mut mesh = Mesh::of(&api);
    mesh.take().await;
    api.put(pod("a", "10.0.0.1"));
    mesh.until_pods(&["a"]).await;
    api.put(pod("a", "10.0.0.2"));
    let moved = |mesh: &Mesh| {
        let pod = mesh.workloads.values().next();
        pod.is_some_and(|it| it.addresses == ["10.0.0.2".parse::<std::net::IpAddr>().unwrap()])
    };
    mesh.until(moved).await;
    api.delete("Pod", "shop", "a");
    mesh.until_pods(&[]).await;
}

#[tokio::test]
async fn long_lists_come_in_pages() {
    let api = server().await;
    api.put_all(["a", "b", "c", "d", "e"].map(|name| pod(name, "10.0.0.1")));
    let mut mesh = Mesh::of(&api);
    mesh.take().await;
    assert_eq!(mesh.pods(), ["a", "b", "c", "d", "e"]);
    let pages = api.requests("limit=2");
    assert_eq!(
        pages.iter().filter(|line| line.contains("/pods?")).count(),
        3
    );
}

#[tokio::test]
async fn pages_that_expire_are_read_as_one() {
    let api = server().await;
    api.put_all(["a", "b", "c"].map(|name| pod(name, "10.0.0.1")));
    let _fault = api.fault("continue=", Failure::Refuse(StatusCode::GONE));
    let mut mesh = Mesh::of(&api);
    mesh.take().await;
    assert_eq!(mesh.pods(), ["a", "b", "c"]);
}

#[tokio::test]
async fn a_watch_that_breaks_goes_on_where_it_stood() {
    let api = server().await;
    api.put(pod("a", "10.0.0.1"));
    let mut mesh = Mesh::of(&api);
    mesh.until_pods(&["a"]).await;
    api.wait_for_watches("pods", 1).await;
    let lists = api.requests("/pods?").len();
    let fault = api.fault("/pods?", Failure::Reset);
    api.disconnect_watches();
    api.put(pod("b", "10.0.0.2"));
    api.delete("Pod", "shop", "a");
    bounded(fault.met(1)).await;
    drop(fault);
    mesh.until_pods(&["b"]).await;
    let later = &api.requests("/pods?")[lists..];
    assert!(
        later.iter().all(|line| line.contains("watch=true")),
        "{later:?}"
    );
}

#[tokio::test]
async fn bookmarks_move_the_place_where_a_watch_goes_on() {
    let api = server().await;
    let mut settings = quick();
    settings.follow.idle = Duration::from_millis(200);
    let mut mesh = Mesh::with(&api, settings);
    mesh.take().await;
    api.put(pod("a", "10.0.0.1"));
    mesh.until_pods(&["a"]).await;
    let from = format!("resourceVersion={}", api.revision());
    let went_on = || {
        let requests = api.requests("/services?");
        requests.iter().any(|line| line.ends_with(&from))
    };
    // A bookmark between two watches is missed, as it would be in a cluster; the next one is not.
    for _ in 0..5 {
        let count = api.requests("/services?").len();
        api.wait_for_watches("services", 1).await;
        api.send_bookmarks();
        api.wait_for_requests("/services?", count + 1).await;
        if went_on() {
            return;
        }
    }
    panic!("{:?}", api.requests("/services?"));
}

#[tokio::test]
async fn what_vanished_unseen_is_removed_by_a_new_list() {
    let api = server().await;
    api.install_istio();
    api.put_all([
        pod("a", "10.0.0.1"),
        pod("b", "10.0.0.2"),
        policy("p", deny()),
    ]);
    let mut mesh = Mesh::of(&api);
    mesh.until_pods(&["a", "b"]).await;
    api.wait_for_watches("pods", 1).await;
    api.wait_for_watches("authorizationpolicies", 1).await;
    let fault = api.fault(
        "watch=true",
        Failure::Refuse(StatusCode::SERVICE_UNAVAILABLE),
    );
    api.disconnect_watches();
    bounded(fault.met(1)).await;
    api.delete("Pod", "shop", "a");
    api.delete("AuthorizationPolicy", "shop", "p");
    api.put(pod("c", "10.0.0.3"));
    api.compact();
    drop(fault);
    mesh.until(|mesh| mesh.pods() == ["b", "c"] && !mesh.has_policy("p"))
        .await;
    let index = mesh.source.pods();
    assert_eq!(index.len(), 2);
}

#[tokio::test]
async fn a_watch_that_is_gone_at_once_leads_to_a_new_list() {
    let api = server().await;
    api.put(pod("a", "10.0.0.1"));
    let fault = api.fault("/pods?&watch=true", Failure::Refuse(StatusCode::GONE));
    let mut mesh = Mesh::of(&api);
    mesh.take().await;
    bounded(fault.met(3)).await;
    drop(fault);
    api.put(pod("b", "10.0.0.1"));
    mesh.until_pods(&["a", "b"]).await;
    mesh.until_health(Kind::Pod, WatchState::Synced).await;
}

#[tokio::test]
async fn a_slow_server_only_takes_longer() {
    let api = server().await;
    api.put_all(["a", "b", "c"].map(|name| pod(name, "10.0.0.1")));
    let _fault = api.fault("/", Failure::Delay(Duration::from_millis(50)));
    let mut mesh = Mesh::of(&api);
    mesh.take().await;
    assert_eq!(mesh.pods(), ["a", "b", "c"]);
}

#[tokio::test]
async fn a_silent_watch_is_begun_again() {
    let api = server().await;
    let mut settings = quick();
    settings.follow.idle = Duration::from_millis(20);
    let mut mesh = Mesh::with(&api, settings);
    mesh.take().await;
    api.wait_for_requests("/pods?&watch=true", 3).await;
    api.put(pod("a", "10.0.0.1"));
    mesh.until_pods(&["a"]).await;
}

#[tokio::test]
async fn kinds_are_picked_up_when_they_appear_and_dropped_when_they_go() {
    let api = server().await;
    let mut mesh = Mesh::of(&api);
    mesh.take().await;
    mesh.until_health(Kind::AuthorizationPolicy, WatchState::Absent)
        .await;
    api.install_istio();
    api.put(policy("p", deny()));
    mesh.until(|mesh| mesh.has_policy("p")).await;
    mesh.until_health(Kind::AuthorizationPolicy, WatchState::Synced)
        .await;
    api.delete(
        "CustomResourceDefinition",
        "",
        "authorizationpolicies.security.istio.io",
    );
    mesh.until(|mesh| !mesh.has_policy("p")).await;
    mesh.until_health(Kind::AuthorizationPolicy, WatchState::Absent)
        .await;
}

#[tokio::test]
async fn older_clusters_serve_older_versions() {
    let api = server().await;
    let group = "security.istio.io";
    api.put(definition(
        group,
        "AuthorizationPolicy",
        "authorizationpolicies",
        &["v1beta1"],
        "Namespaced",
    ));
    api.put(policy("p", deny()));
    let mut mesh = Mesh::of(&api);
    mesh.take().await;
    assert!(mesh.has_policy("p"));
    assert!(!api.requests("/v1beta1/authorizationpolicies").is_empty());
}

#[tokio::test]
async fn an_error_is_not_taken_for_absence() {
    let api = server().await;
    api.install_istio();
    api.put(policy("p", deny()));
    let mut mesh = Mesh::of(&api);
    mesh.until(|mesh| mesh.has_policy("p")).await;
    api.wait_for_watches("authorizationpolicies", 1).await;
    let objects = api.fault(
        "/authorizationpolicies",
        Failure::Refuse(StatusCode::NOT_FOUND),
    );
    let discovery = api.fault(
        "GET /apis",
        Failure::Refuse(StatusCode::INTERNAL_SERVER_ERROR),
    );
    api.disconnect_watches();
    let health = mesh
        .until_health(Kind::AuthorizationPolicy, WatchState::Stale)
        .await;
    assert!(health.error.is_some());
    bounded(discovery.met(2)).await;
    drop((objects, discovery));
    mesh.until_health(Kind::AuthorizationPolicy, WatchState::Synced)
        .await;
    api.put(pod("a", "10.0.0.1"));
    mesh.until_pods(&["a"]).await;
    assert!(mesh.has_policy("p"));
}

#[tokio::test]
async fn nothing_is_told_while_a_kind_cannot_be_listed() {
    let api = server().await;
    api.install_istio();
    api.put_all([pod("a", "10.0.0.1"), policy("p", deny())]);
    let fault = api.fault(
        "/authorizationpolicies",
        Failure::Refuse(StatusCode::FORBIDDEN),
    );
    let mut mesh = Mesh::of(&api);
    bounded(fault.met(2)).await;
    mesh.until_health(Kind::Pod, WatchState::Synced).await;
    let health = mesh.source.health().borrow()[&Kind::AuthorizationPolicy].clone();
    assert_eq!(health.state, WatchState::Starting);
    assert!(health.error.unwrap().contains("allow us to list"));
    assert!(mesh.source.updates.try_recv().is_err());
    drop(fault);
    mesh.take().await;
    assert!(mesh.has_policy("p"));
}

#[tokio::test]
async fn a_bad_object_is_told_and_a_good_one_takes_its_place() {
    let api = server().await;
    api.install_istio();
    api.put(policy("p", json!({ "rules": [{ "form": [] }] })));
    let mut mesh = Mesh::of(&api);
    mesh.take().await;
    assert_eq!(mesh.diagnostics.len(), 1);
    api.put(policy("p", deny()));
    mesh.until(|mesh| mesh.diagnostics.is_empty()).await;
    assert!(mesh.has_policy("p"));
    api.put(policy("p", json!({ "rules": "none" })));
    mesh.until(|mesh| !mesh.diagnostics.is_empty()).await;
    assert!(mesh.has_policy("p"));
}

#[tokio::test]
async fn one_watch_of_pods_feeds_the_index_too() {
    let api = server().await;
    let mut gone = pod("failed", "10.0.0.9");
    gone["status"]["phase"] = json!("Failed");
    gone["spec"]["nodeName"] = json!("n2");
    api.put_all([pod("a", "10.0.0.1"), gone]);
    let mut mesh = Mesh::of(&api);
    mesh.take().await;
    let index = mesh.source.pods();
    assert!(index.is_complete());
    assert!(index.runs_on("n1", "shop", "web"));
    assert!(!index.runs_on("n2", "shop", "web"));
    let uid = api.get("Pod", "shop", "a").unwrap()["metadata"]["uid"].clone();
    let record = index.pod(uid.as_str().unwrap()).unwrap();
    assert_eq!(record.node.as_deref(), Some("n1"));
    api.wait_for_watches("pods", 1).await;
    api.delete("Pod", "shop", "a");
    mesh.until_pods(&[]).await;
    assert!(!index.runs_on("n1", "shop", "web"));
}

#[tokio::test]
async fn changes_that_nobody_takes_are_merged() {
    let api = server().await;
    let mut mesh = Mesh::of(&api);
    mesh.take().await;
    api.wait_for_watches("pods", 1).await;
    for number in 0..200 {
        api.put(pod(&format!("p{number}"), "10.0.0.1"));
    }
    let mut health = mesh.source.health();
    let all = health.wait_for(|all| all[&Kind::Pod].objects == 200);
    bounded(all).await.unwrap();
    mesh.until(|mesh| mesh.workloads.len() == 200).await;
    assert!(mesh.updates < 10, "{} updates", mesh.updates);
}

#[tokio::test]
async fn a_dropped_source_lets_go_of_its_watches() {
    let api = server().await;
    let mut mesh = Mesh::of(&api);
    mesh.take().await;
    api.wait_for_watches("pods", 1).await;
    drop(mesh);
    api.wait_for_watches("pods", 0).await;
}

#[tokio::test]
async fn a_task_that_ends_ends_the_source() {
    let api = server().await;
    let mut mesh = Mesh::of(&api);
    mesh.take().await;
    mesh.source.tasks.spawn(std::future::ready(()));
    assert!(bounded(mesh.source.next()).await.is_none());
}
