//! The bundle on an API server in the process.
use http::StatusCode;
use tokio::task::AbortHandle;
use undermesh_kubernetes::testing::{ApiServer, Failure};

use super::*;
use crate::{fixtures::live_authority, live::Lifetimes};

struct Bench {
    api: ApiServer,
    authority: Arc<LiveAuthority>,
    role: watch::Sender<Role>,
    task: AbortHandle,
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Bench {
    async fn new(role: Role) -> Self {
        let api = ApiServer::start().await;
        api.put_namespace("shop", &[]);
        let authority = live_authority(Lifetimes::default());
        let (role, roles) = watch::channel(role);
        let publish = publish(api.client(), Arc::clone(&authority), roles);
        let bench = Self {
            task: tokio::spawn(publish).abort_handle(),
            api,
            authority,
            role,
        };
        bench.api.wait_for_watches("configmaps", 1).await;
        bench.api.wait_for_watches("namespaces", 1).await;
        bench
    }

    async fn wait_for_bundle(&self, namespace: &str) {
        let bundle = self.authority.roots_pem();
        self.api
            .wait_for("ConfigMap", namespace, CONFIG_MAP, move |map| {
                map["data"][BUNDLE_KEY] == bundle.as_str()
            })
            .await;
    }
}

#[tokio::test]
async fn every_namespace_has_the_bundle() {
    let bench = Bench::new(Role::Leader).await;
    for namespace in ["default", "kube-system", "shop"] {
        bench.wait_for_bundle(namespace).await;
    }
    bench.api.put_namespace("bank", &[]);
    bench.wait_for_bundle("bank").await;
    let map = bench.api.get("ConfigMap", "bank", CONFIG_MAP).unwrap();
    assert_eq!(map["metadata"]["labels"]["istio.io/config"], "true");
}

#[tokio::test]
async fn what_is_edited_or_deleted_is_put_right() {
    let bench = Bench::new(Role::Leader).await;
    bench.wait_for_bundle("shop").await;
    bench.api.put(serde_json::json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": CONFIG_MAP, "namespace": "shop"},
        "data": {BUNDLE_KEY: "forged"},
    }));
    bench.wait_for_bundle("shop").await;
    bench.api.delete("ConfigMap", "shop", CONFIG_MAP);
    bench.wait_for_bundle("shop").await;
}

#[tokio::test]
async fn new_roots_reach_every_namespace() {
    let bench = Bench::new(Role::Leader).await;
    bench.wait_for_bundle("shop").await;
    let next = undermesh_identity::Authority::ephemeral(
        undermesh_model::TrustDomain::cluster_local(),
        Arc::new(undermesh_identity::SystemClock),
    );
    bench.authority.replace(next.unwrap());
    for namespace in ["default", "shop"] {
        bench.wait_for_bundle(namespace).await;
    }
}

#[tokio::test]
async fn a_follower_writes_nothing_until_it_leads() {
    let bench = Bench::new(Role::Follower).await;
    bench.api.put_namespace("bank", &[]);
    assert!(bench.api.requests("PATCH").is_empty());
    bench.role.send_replace(Role::Leader);
    bench.wait_for_bundle("bank").await;
}

#[tokio::test]
async fn a_write_that_failed_is_tried_again_and_holds_up_no_other() {
    let api = ApiServer::start().await;
    api.put_namespace("shop", &[]);
    let fault = api.fault(
        "/namespaces/shop/configmaps",
        Failure::Refuse(StatusCode::INTERNAL_SERVER_ERROR),
    );
    let authority = live_authority(Lifetimes::default());
    let (_role, roles) = watch::channel(Role::Leader);
    let task = tokio::spawn(publish(api.client(), Arc::clone(&authority), roles));
    let bench = Bench {
        task: task.abort_handle(),
        api,
        authority,
        role: watch::Sender::default(),
    };
    bench.wait_for_bundle("default").await;
    fault.met(1).await;
    drop(fault);
    bench.wait_for_bundle("shop").await;
}

#[tokio::test]
async fn what_is_right_is_not_written_again() {
    let bench = Bench::new(Role::Leader).await;
    for namespace in [
        "default",
        "kube-system",
        "kube-public",
        "kube-node-lease",
        "shop",
    ] {
        bench.wait_for_bundle(namespace).await;
    }
    let writes = bench.api.requests("PATCH").len();
    bench.api.disconnect_watches();
    bench.api.wait_for_watches("configmaps", 1).await;
    bench.api.put_namespace("bank", &[]);
    bench.wait_for_bundle("bank").await;
    assert_eq!(bench.api.requests("PATCH").len(), writes + 1);
}

fn names(board: &Board) -> Vec<String> {
    board.wrong(&HashSet::new()).cloned().collect()
}

fn namespace(name: &str, deleted: bool) -> PartialObjectMeta<Namespace> {
    let mut namespace = PartialObjectMeta::<Namespace>::default();
    namespace.metadata.name = Some(name.to_owned());
    if deleted {
        let now = serde_json::from_value(serde_json::json!("2026-01-01T00:00:00Z"));
        namespace.metadata.deletion_timestamp = now.unwrap();
    }
    namespace
}

#[test]
fn namespaces_that_are_going_are_left_alone() {
    let mut board = Board::new("roots".to_owned());
    board.see_namespace(Event::Init);
    board.see_namespace(Event::InitApply(namespace("a", false)));
    assert!(
        !board.has_work(&HashSet::new()),
        "the lists are not complete"
    );
    board.see_namespace(Event::InitDone);
    board.see_config_map(Event::Init);
    board.see_config_map(Event::InitDone);
    assert_eq!(names(&board), ["a"]);
    assert!(board.has_work(&HashSet::new()));
    assert!(!board.has_work(&HashSet::from(["a".to_owned()])));
    board.see_namespace(Event::Apply(namespace("a", true)));
    assert!(names(&board).is_empty());
}
