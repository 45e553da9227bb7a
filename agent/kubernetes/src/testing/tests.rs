//! The server, seen by a client.
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use http::StatusCode;
use k8s_openapi::api::{
    authentication::v1::{TokenRequest, TokenRequestSpec, TokenReview, TokenReviewSpec},
    coordination::v1::Lease,
    core::v1::{ConfigMap, Namespace, Pod, ServiceAccount},
};
use kube::{
    Api, Error,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams},
};
use serde_json::json;

use super::*;

fn pod(name: &str, app: &str, node: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": name, "namespace": "default", "labels": { "app": app } },
        "spec": { "nodeName": node, "containers": [{ "name": "c", "image": "i" }] },
        "status": { "phase": "Running" },
    })
}

fn config_map(name: &str, data: Value) -> ConfigMap {
    serde_json::from_value(json!({ "metadata": { "name": name }, "data": data })).unwrap()
}

fn code(error: Error) -> u16 {
    match error {
        Error::Api(status) => status.code,
        other => panic!("{other:?}"),
    }
}

/// Type and name of the next events.
async fn events(
    stream: &mut (impl StreamExt<Item = kube::Result<WatchEvent<Pod>>> + Unpin),
    count: usize,
) -> Vec<String> {
    let mut seen = Vec::new();
    while seen.len() < count {
        let next = timeout(PATIENCE, stream.next()).await.expect("an event");
        let name = |pod: Pod| pod.metadata.name.unwrap_or_default();
        seen.push(match next.expect("a stream that goes on") {
            Ok(WatchEvent::Added(it)) => format!("+{}", name(it)),
            Ok(WatchEvent::Modified(it)) => format!("~{}", name(it)),
            Ok(WatchEvent::Deleted(it)) => format!("-{}", name(it)),
            Ok(WatchEvent::Bookmark(it)) => format!("@{}", it.metadata.resource_version),
            Ok(WatchEvent::Error(it)) => format!("!{}", it.code),
            Err(error) => panic!("{error}"),
        });
    }
    seen
}

#[tokio::test]
async fn objects_are_made_read_changed_and_deleted() {
    let api = ApiServer::start().await;
    let maps: Api<ConfigMap> = Api::default_namespaced(api.client());
    let post = PostParams::default();
    let made = maps
        .create(&post, &config_map("a", json!({"k": "1"})))
        .await
        .unwrap();
    assert!(made.metadata.uid.is_some() && made.metadata.creation_timestamp.is_some());
    let again = maps.create(&post, &config_map("a", json!({}))).await;
    assert_eq!(code(again.unwrap_err()), 409);
    let mut newer = made.clone();
    newer.data = Some([("k".to_owned(), "2".to_owned())].into());
    let newer = maps.replace("a", &post, &newer).await.unwrap();
    assert_ne!(
        newer.metadata.resource_version,
        made.metadata.resource_version
    );
    let stale = maps.replace("a", &post, &made).await;
    assert_eq!(code(stale.unwrap_err()), 409);
    maps.delete("a", &DeleteParams::default()).await.unwrap();
    assert_eq!(code(maps.get("a").await.unwrap_err()), 404);
    let elsewhere: Api<ConfigMap> = Api::namespaced(api.client(), "nowhere");
    let refused = elsewhere.create(&post, &config_map("a", json!({}))).await;
    assert_eq!(code(refused.unwrap_err()), 404);
}

#[tokio::test]
async fn a_write_that_changes_nothing_makes_no_version() {
    let api = ApiServer::start().await;
    let first = api.put(pod("a", "web", "n1"));
    let revision = api.revision();
    assert_eq!(api.put(pod("a", "web", "n1")), first);
    assert_eq!(api.revision(), revision);
}

#[tokio::test]
async fn lists_come_in_pages_of_one_moment() {
    let api = ApiServer::start().await;
    api.put_all(["a", "b", "c"].map(|name| pod(name, "web", "n1")));
    let pods: Api<Pod> = Api::all(api.client());
    let first = pods.list(&ListParams::default().limit(2)).await.unwrap();
    assert_eq!(first.items.len(), 2);
    api.delete("Pod", "default", "c");
    let token = first.metadata.continue_.unwrap();
    let more = ListParams::default().limit(2).continue_token(&token);
    let second = pods.list(&more).await.unwrap();
    assert_eq!(second.items[0].metadata.name.as_deref(), Some("c"));
    assert_eq!(
        second.metadata.resource_version,
        first.metadata.resource_version
    );
    api.compact();
    assert_eq!(code(pods.list(&more).await.unwrap_err()), 410);
}

#[tokio::test]
async fn selectors_narrow_lists_and_metadata_can_stand_alone() {
    let api = ApiServer::start().await;
    api.put_all([
        pod("a", "web", "n1"),
        pod("b", "db", "n1"),
        pod("c", "web", "n2"),
    ]);
    let pods: Api<Pod> = Api::all(api.client());
    let selected = ListParams::default()
        .labels("app=web")
        .fields("spec.nodeName=n1");
    let listed = pods.list(&selected).await.unwrap();
    assert_eq!(listed.items.len(), 1);
    let bare = pods.list_metadata(&selected).await.unwrap();
    assert_eq!(bare.items[0].metadata.name.as_deref(), Some("a"));
}

#[tokio::test]
async fn a_watch_tells_changes_from_its_version_on() {
    let api = ApiServer::start().await;
    api.put(pod("a", "web", "n1"));
    let from = api.revision().to_string();
    let pods: Api<Pod> = Api::all(api.client());
    let selected = WatchParams::default().labels("app=web");
    let mut stream = Box::pin(pods.watch(&selected, &from).await.unwrap());
    api.put(pod("b", "web", "n1"));
    api.put(pod("x", "db", "n1"));
    api.put(pod("a", "web", "n2"));
    api.put(pod("b", "db", "n1"));
    api.delete("Pod", "default", "a");
    assert_eq!(events(&mut stream, 4).await, ["+b", "~a", "-b", "-a"]);
    api.send_bookmarks();
    assert_eq!(
        events(&mut stream, 1).await,
        [format!("@{}", api.revision())]
    );
}

#[tokio::test]
async fn a_watch_from_before_a_compaction_is_gone_and_an_open_one_goes_on() {
    let api = ApiServer::start().await;
    let from = api.revision().to_string();
    let pods: Api<Pod> = Api::all(api.client());
    let params = WatchParams::default();
    let mut open = Box::pin(pods.watch(&params, &from).await.unwrap());
    api.put(pod("a", "web", "n1"));
    assert_eq!(events(&mut open, 1).await, ["+a"]);
    api.compact();
    let mut late = Box::pin(pods.watch(&params, &from).await.unwrap());
    assert_eq!(events(&mut late, 1).await, ["!410"]);
    assert!(late.next().await.is_none());
    api.put(pod("b", "web", "n1"));
    assert_eq!(events(&mut open, 1).await, ["+b"]);
    assert_eq!(api.watches("pods"), 1);
}

#[tokio::test]
async fn a_watch_begins_with_everything_when_asked_to() {
    let api = ApiServer::start().await;
    api.put(pod("a", "web", "n1"));
    let pods: Api<Pod> = Api::all(api.client());
    let params = WatchParams::default().initial_events();
    let mut stream = Box::pin(pods.watch(&params, "0").await.unwrap());
    let bookmark = format!("@{}", api.revision());
    assert_eq!(events(&mut stream, 2).await, ["+a".to_owned(), bookmark]);
}

#[tokio::test]
async fn watches_end_by_their_timeout_and_break_on_demand() {
    let api = ApiServer::start().await;
    let from = api.revision().to_string();
    let pods: Api<Pod> = Api::all(api.client());
    let short = WatchParams::default().timeout(1);
    let stream = pods.watch(&short, &from).await.unwrap();
    let rest: Vec<_> = timeout(PATIENCE, stream.try_collect())
        .await
        .unwrap()
        .unwrap();
    assert!(matches!(rest.as_slice(), [WatchEvent::Bookmark(_)]));
    let mut stream = Box::pin(pods.watch(&WatchParams::default(), &from).await.unwrap());
    api.disconnect_watches();
    let end = timeout(PATIENCE, stream.next()).await.unwrap();
    assert!(!matches!(end, Some(Ok(_))), "{end:?}");
    api.wait_for_watches("pods", 0).await;
}

#[tokio::test]
async fn kinds_come_and_go_with_their_definitions() {
    let api = ApiServer::start().await;
    let client = api.client();
    let list = |version: &str| {
        http::Request::get(format!(
            "/apis/security.istio.io/{version}/authorizationpolicies"
        ))
        .body(Vec::new())
        .unwrap()
    };
    let missing = client.request::<Value>(list("v1")).await;
    assert_eq!(code(missing.unwrap_err()), 404);
    api.install_istio();
    api.put(json!({
        "apiVersion": "security.istio.io/v1beta1",
        "kind": "AuthorizationPolicy",
        "metadata": { "name": "p", "namespace": "default" },
        "spec": {},
    }));
    let listed: Value = client.request(list("v1")).await.unwrap();
    assert_eq!(listed["items"][0]["apiVersion"], "security.istio.io/v1");
    let groups = client.list_api_groups().await.unwrap();
    let security = groups
        .groups
        .iter()
        .find(|it| it.name == "security.istio.io")
        .unwrap();
    assert_eq!(security.preferred_version.as_ref().unwrap().version, "v1");
    let name = "authorizationpolicies.security.istio.io";
    assert!(api.delete("CustomResourceDefinition", "", name));
    let gone = client.request::<Value>(list("v1")).await;
    assert_eq!(code(gone.unwrap_err()), 404);
}

#[tokio::test]
async fn apply_makes_merges_and_gives_up_fields() {
    let api = ApiServer::start().await;
    let maps: Api<ConfigMap> = Api::default_namespaced(api.client());
    let apply = |manager: &'static str, data: Value| {
        let object = json!({
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "a" }, "data": data,
        });
        let maps = maps.clone();
        async move {
            let params = PatchParams::apply(manager);
            maps.patch("a", &params, &Patch::Apply(object)).await
        }
    };
    apply("x", json!({"a": "1", "b": "2"})).await.unwrap();
    let merged = apply("y", json!({"c": "3"})).await.unwrap();
    assert_eq!(merged.data.unwrap().len(), 3);
    assert_eq!(code(apply("y", json!({"a": "9"})).await.unwrap_err()), 409);
    let less = apply("x", json!({"a": "1"})).await.unwrap();
    let data = less.data.unwrap();
    assert_eq!(data.keys().collect::<Vec<_>>(), ["a", "c"]);
    assert_eq!(less.metadata.managed_fields.unwrap().len(), 2);
    let patch = Patch::Merge(json!({"data": {"c": null}}));
    let patched = maps
        .patch("a", &PatchParams::default(), &patch)
        .await
        .unwrap();
    assert_eq!(patched.data.unwrap().len(), 1);
}

#[tokio::test]
async fn status_is_written_on_its_own() {
    let api = ApiServer::start().await;
    api.put(pod("a", "web", "n1"));
    let pods: Api<Pod> = Api::default_namespaced(api.client());
    let patch = |phase: &str| Patch::Merge(json!({ "status": { "phase": phase } }));
    let params = PatchParams::default();
    let same = pods.patch("a", &params, &patch("Failed")).await.unwrap();
    assert_eq!(same.status.unwrap().phase.as_deref(), Some("Running"));
    let done = pods
        .patch_status("a", &params, &patch("Failed"))
        .await
        .unwrap();
    assert_eq!(done.status.unwrap().phase.as_deref(), Some("Failed"));
    assert_eq!(done.metadata.generation, Some(1));
}

#[tokio::test]
async fn finalizers_hold_what_is_deleted() {
    let api = ApiServer::start().await;
    let mut held = pod("a", "web", "n1");
    held["metadata"]["finalizers"] = json!(["example.com/hold"]);
    api.put(held);
    let pods: Api<Pod> = Api::default_namespaced(api.client());
    pods.delete("a", &DeleteParams::default()).await.unwrap();
    let marked = |it: &Value| it["metadata"]["deletionTimestamp"].is_string();
    api.wait_for("Pod", "default", "a", marked).await;
    let release = Patch::Merge(json!({ "metadata": { "finalizers": null } }));
    pods.patch("a", &PatchParams::default(), &release)
        .await
        .unwrap();
    api.wait_gone("Pod", "default", "a").await;
}

#[tokio::test]
async fn a_deleted_namespace_takes_its_objects_along() {
    let api = ApiServer::start().await;
    api.put(pod("a", "web", "n1"));
    let namespaces: Api<Namespace> = Api::all(api.client());
    namespaces
        .delete("default", &DeleteParams::default())
        .await
        .unwrap();
    assert_eq!(api.get("Pod", "default", "a"), None);
}

#[tokio::test]
async fn tokens_are_granted_and_reviewed() {
    let api = ApiServer::start().await;
    api.put(pod("a", "web", "n1"));
    api.put(json!({
        "apiVersion": "v1", "kind": "ServiceAccount",
        "metadata": { "name": "web", "namespace": "default" },
    }));
    let accounts: Api<ServiceAccount> = Api::default_namespaced(api.client());
    let spec: TokenRequestSpec = serde_json::from_value(json!({
        "audiences": ["istio-ca"],
        "boundObjectRef": { "kind": "Pod", "name": "a" },
    }))
    .unwrap();
    let request = TokenRequest {
        spec,
        ..TokenRequest::default()
    };
    let post = PostParams::default();
    let granted = accounts
        .create_token_request("web", &post, &request)
        .await
        .unwrap();
    let token = granted.status.unwrap().token;
    let reviews: Api<TokenReview> = Api::all(api.client());
    let review = |token: &str, audience: &str| {
        let spec = TokenReviewSpec {
            token: Some(token.to_owned()),
            audiences: Some(vec![audience.to_owned()]),
        };
        let review = TokenReview {
            spec,
            ..TokenReview::default()
        };
        let reviews = reviews.clone();
        async move {
            let made = reviews
                .create(&PostParams::default(), &review)
                .await
                .unwrap();
            made.status.unwrap()
        }
    };
    let good = review(&token, "istio-ca").await;
    let user = good.user.unwrap();
    assert_eq!(
        user.username.as_deref(),
        Some("system:serviceaccount:default:web")
    );
    let extra = user.extra.unwrap();
    assert_eq!(extra["authentication.kubernetes.io/pod-name"], ["a"]);
    assert_eq!(review(&token, "vault").await.authenticated, Some(false));
    api.revoke_token(&token);
    assert_eq!(review(&token, "istio-ca").await.authenticated, Some(false));
}

#[tokio::test]
async fn leases_are_ordinary_objects() {
    let api = ApiServer::start().await;
    let leases: Api<Lease> = Api::namespaced(api.client(), "kube-system");
    let lease: Lease = serde_json::from_value(json!({
        "metadata": { "name": "l" }, "spec": { "holderIdentity": "a" },
    }))
    .unwrap();
    leases.create(&PostParams::default(), &lease).await.unwrap();
    let held = |it: &Value| it["spec"]["holderIdentity"] == "a";
    api.wait_for("Lease", "kube-system", "l", held).await;
}

#[tokio::test]
async fn faults_refuse_delay_and_cut_until_they_are_dropped() {
    let api = ApiServer::start().await;
    let pods: Api<Pod> = Api::all(api.client());
    let list = ListParams::default();
    let fault = api.fault("/pods", Failure::Refuse(StatusCode::TOO_MANY_REQUESTS));
    assert_eq!(code(pods.list(&list).await.unwrap_err()), 429);
    assert_eq!(fault.hits(), 1);
    drop(fault);
    pods.list(&list).await.unwrap();
    let fault = api.fault("/pods", Failure::Reset);
    assert!(pods.list(&list).await.is_err());
    drop(fault);
    let fault = api.fault("/pods", Failure::Hang);
    let hung = tokio::spawn({
        let pods = pods.clone();
        async move { pods.list(&ListParams::default()).await }
    });
    timeout(PATIENCE, fault.met(1)).await.unwrap();
    assert!(!hung.is_finished());
    hung.abort();
    drop(fault);
    let _slow = api.fault("/nodes", Failure::Delay(Duration::from_millis(1)));
    pods.list(&list).await.unwrap();
}
