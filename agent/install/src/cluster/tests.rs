//! Installing, upgrading and uninstalling against an API server in the process. What a cluster's controllers
//! would do, such as starting pods, the tests do.
use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use serde_json::{Value, json};
use undermesh_kubernetes::testing::{ApiServer, definition};

use super::*;
use crate::{
    args::{ApplyArgs, InstallArgs, Target, UninstallArgs, UpgradeArgs, ValueArgs},
    chart::{Profile, VERSION},
};

const NAMESPACE: &str = "istio-system";

/// Keeps events as lines.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<String>>>);

impl Log {
    fn has(&self, text: &str) -> bool {
        self.0
            .lock()
            .unwrap()
            .iter()
            .any(|line| line.contains(text))
    }

    fn place(&self, text: &str) -> usize {
        let lines = self.0.lock().unwrap();
        lines
            .iter()
            .position(|line| line.contains(text))
            .unwrap_or_else(|| panic!("no {text} in {lines:#?}"))
    }
}

impl Progress for Log {
    fn event(&mut self, event: &Event<'_>) {
        self.0.lock().unwrap().push(event.to_string());
    }
}

fn target() -> Target {
    Target {
        namespace: NAMESPACE.to_owned(),
        timeout: Duration::from_secs(10),
    }
}

fn installing(profile: Profile, set: &[&str]) -> InstallArgs {
    InstallArgs {
        target: target(),
        profile,
        values: values(set),
        apply: ApplyArgs::default(),
    }
}

fn values(set: &[&str]) -> ValueArgs {
    ValueArgs {
        values: Vec::new(),
        set: set.iter().map(|it| (*it).to_owned()).collect(),
    }
}

fn upgrading(set: &[&str]) -> UpgradeArgs {
    UpgradeArgs {
        target: target(),
        profile: None,
        values: values(set),
        apply: ApplyArgs::default(),
    }
}

fn uninstalling(purge: bool) -> UninstallArgs {
    UninstallArgs {
        target: target(),
        dry_run: false,
        purge,
    }
}

/// A cluster with one node, on which pods run as soon as they are wanted.
async fn cluster() -> ApiServer {
    let api = ApiServer::start().await;
    for (kind, plural) in [
        ("ValidatingAdmissionPolicy", "validatingadmissionpolicies"),
        (
            "ValidatingAdmissionPolicyBinding",
            "validatingadmissionpolicybindings",
        ),
    ] {
        api.put(definition(
            "admissionregistration.k8s.io",
            kind,
            plural,
            &["v1"],
            "Cluster",
        ));
    }
    node(&api, "one", "6.1.0-18-amd64");
    api
}

fn node(api: &ApiServer, name: &str, kernel: &str) {
    api.put(json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": name},
        "status": {"nodeInfo": {
            "operatingSystem": "linux", "kernelVersion": kernel, "architecture": "amd64", "bootID": "", "machineID": "",
            "containerRuntimeVersion": "", "kubeProxyVersion": "", "kubeletVersion": "", "osImage": "", "systemUUID": "",
        }},
    }));
}

/// Makes a workload ready, as its controller and the kubelet would. Ends with the test.
fn run_pods(api: &ApiServer) -> tokio::task::JoinHandle<()> {
    let api = api.clone();
    tokio::spawn(async move {
        let controller = async {
            ready(&api, "Deployment", "undermesh-controller", |generation, replicas| {
                json!({"observedGeneration": generation, "replicas": replicas, "updatedReplicas": replicas, "availableReplicas": replicas})
            })
            .await;
        };
        let node = async {
            ready(&api, "DaemonSet", "undermesh-node", |generation, _| {
                json!({"observedGeneration": generation, "desiredNumberScheduled": 1, "updatedNumberScheduled": 1, "numberAvailable": 1,
                       "currentNumberScheduled": 1, "numberMisscheduled": 0, "numberReady": 1})
            })
            .await;
        };
        futures::join!(controller, node);
    })
}

async fn ready(api: &ApiServer, kind: &str, name: &str, status: impl Fn(&Value, &Value) -> Value) {
    let lags = |it: &Value| it["status"]["observedGeneration"] != it["metadata"]["generation"];
    loop {
        let mut object = api.wait_for(kind, NAMESPACE, name, lags).await;
        object["status"] = status(
            &object["metadata"]["generation"],
            &object["spec"]["replicas"],
        );
        api.put(object);
    }
}

/// Installs, with pods that run.
async fn installed(
    api: &ApiServer,
    args: &InstallArgs,
    log: &Log,
) -> Result<Summary, InstallError> {
    let pods = run_pods(api);
    let result = install(args, &api.client(), &mut log.clone()).await;
    pods.abort();
    result
}

#[tokio::test]
async fn an_installation_comes_up_in_order_and_says_so() {
    let api = cluster().await;
    let log = Log::default();
    let summary = installed(&api, &installing(Profile::Default, &[]), &log)
        .await
        .unwrap();
    assert_eq!(
        (summary.updated, summary.unchanged, summary.removed),
        (0, 0, 0)
    );
    assert_eq!(summary.nodes, Some(1));
    assert!(summary.to_string().contains("kubectl label namespace"));
    let controller_ready = log.place("undermesh-controller: ready (2)");
    assert!(log.place("Role istio-system/undermesh-controller: created") < controller_ready);
    assert!(controller_ready < log.place("DaemonSet istio-system/undermesh-node: created"));
    assert!(
        log.place("undermesh-node: ready (1)")
            < log.place("ValidatingWebhookConfiguration undermesh: created")
    );
    assert!(api.get("Namespace", "", NAMESPACE).is_some());
    assert_eq!(api.list("CustomResourceDefinition").len(), 2 + 5);

    let again = installed(&api, &installing(Profile::Default, &[]), &log)
        .await
        .unwrap();
    assert_eq!((again.created, again.updated, again.removed), (0, 0, 0));
    assert_eq!(again.previous.as_deref(), Some(VERSION));
}

#[tokio::test]
async fn definitions_of_others_are_kept() {
    let api = cluster().await;
    api.install_istio();
    let before = api.get(
        "CustomResourceDefinition",
        "",
        "serviceentries.networking.istio.io",
    );
    let summary = installed(&api, &installing(Profile::Default, &[]), &Log::default())
        .await
        .unwrap();
    assert_eq!(summary.kept, 5);
    assert_eq!(
        api.get(
            "CustomResourceDefinition",
            "",
            "serviceentries.networking.istio.io"
        ),
        before
    );
}

#[tokio::test]
async fn problems_stop_an_installation_before_anything_is_changed() {
    let api = cluster().await;
    node(&api, "old", "5.4.0-150-generic");
    api.put_namespace("mesh", &[]);
    api.put_namespace(NAMESPACE, &[]);
    for (namespace, name) in [
        ("kube-system", "ztunnel"),
        ("kube-system", "istio-cni-node"),
    ] {
        api.put(json!({"apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"namespace": namespace, "name": name},
            "spec": {"selector": {}, "template": {}}}));
    }
    api.put(json!({"apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"namespace": NAMESPACE, "name": "istiod", "labels": {"app": "istiod"}}, "spec": {"selector": {}, "template": {}}}));
    api.put(json!({"apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"namespace": "mesh", "name": "undermesh-controller", "labels": {"app.kubernetes.io/part-of": "undermesh"}},
        "spec": {"selector": {}, "template": {}}}));
    api.put(json!({"apiVersion": "v1", "kind": "Service",
        "metadata": {"namespace": NAMESPACE, "name": "istiod", "labels": {"app.kubernetes.io/managed-by": "Helm"}}, "spec": {}}));
    let before = api.revision();
    let log = Log::default();
    let args = installing(
        Profile::Default,
        &["podMonitor.enabled=true", "controller.istiodAlias=true"],
    );
    let error = installed(&api, &args, &log).await.unwrap_err();
    for problem in [
        "error: these nodes run Linux older than 5.15: old (5.4.0-150-generic)",
        "error: DaemonSet kube-system/ztunnel captures the same pods",
        "error: DaemonSet kube-system/istio-cni-node captures the same pods",
        "error: Deployment istio-system/istiod writes the same roots",
        "error: undermesh is installed in the namespace mesh",
        "error: Service istio-system/istiod: exists already and belongs to Helm",
        "error: the cluster has no PodMonitor",
        "warning: the cluster has no Gateway API",
    ] {
        assert!(log.has(problem), "{problem}: {log:?}", log = log.0);
    }
    assert!(
        error.to_string().starts_with("7 problems stand against it"),
        "{error}"
    );
    assert_eq!(api.revision(), before);
}

#[tokio::test]
async fn nodes_alone_need_an_istiod_that_serves_them() {
    let api = cluster().await;
    let log = Log::default();
    let args = installing(Profile::Istiod, &[]);
    installed(&api, &args, &log).await.unwrap_err();
    assert!(log.has("error: there is no istiod in the namespace istio-system"));

    api.put_namespace(NAMESPACE, &[]);
    let mut istiod = json!({"apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"namespace": NAMESPACE, "name": "istiod", "labels": {"app": "istiod"}},
        "spec": {"selector": {}, "template": {"spec": {"containers": [{"name": "discovery"}]}}}});
    api.put(istiod.clone());
    let log = Log::default();
    installed(&api, &args, &log).await.unwrap();
    assert!(log.has("warning: Deployment istio-system/istiod does not serve ambient nodes"));

    istiod["spec"]["template"]["spec"]["containers"][0]["env"] =
        json!([{"name": "PILOT_ENABLE_AMBIENT", "value": "true"}]);
    api.put(istiod);
    let log = Log::default();
    let summary = installed(&api, &args, &log).await.unwrap();
    assert!(!log.has("PILOT_ENABLE_AMBIENT"));
    assert_eq!(summary.nodes, Some(1));
    assert!(
        api.get("Deployment", NAMESPACE, "undermesh-controller")
            .is_none()
    );
}

#[tokio::test]
async fn what_does_not_become_ready_is_named_with_the_reason() {
    let api = cluster().await;
    api.put_namespace(NAMESPACE, &[]);
    api.put(json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": NAMESPACE, "name": "undermesh-controller-x",
            "labels": {"app.kubernetes.io/name": "undermesh", "app.kubernetes.io/component": "controller"}},
        "spec": {"containers": []},
        "status": {"containerStatuses": [{"name": "controller", "image": "", "imageID": "", "ready": false, "restartCount": 0,
            "state": {"waiting": {"reason": "ImagePullBackOff", "message": "not found"}}}]}}));
    let mut args = installing(Profile::Default, &[]);
    args.target.timeout = Duration::from_millis(300);
    let log = Log::default();
    let error = install(&args, &api.client(), &mut log.clone())
        .await
        .unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("Deployment istio-system/undermesh-controller is not ready")
            && text.contains("pod undermesh-controller-x: ImagePullBackOff (not found)"),
        "{text}"
    );
    assert!(log.has("undermesh-controller: 0 of 2 ready"));
    assert!(api.get("DaemonSet", NAMESPACE, "undermesh-node").is_none());
}

#[tokio::test]
async fn fields_of_others_are_taken_over_only_on_demand() {
    let api = cluster().await;
    let mut args = installing(Profile::Default, &[]);
    installed(&api, &args, &Log::default()).await.unwrap();
    let patch = json!({"spec": {"replicas": 5}});
    let deployments: Api<DynamicObject> = Api::namespaced_with(
        api.client(),
        NAMESPACE,
        &crate::kinds::Kind::find("apps/v1", "Deployment")
            .unwrap()
            .1
            .resource(),
    );
    let params = kube::api::PatchParams {
        field_manager: Some("somebody".to_owned()),
        ..Default::default()
    };
    deployments
        .patch(
            "undermesh-controller",
            &params,
            &kube::api::Patch::Merge(patch),
        )
        .await
        .unwrap();
    let error = installed(&api, &args, &Log::default()).await.unwrap_err();
    assert!(matches!(error, InstallError::Conflict { .. }), "{error}");
    assert!(
        error.to_string().contains("somebody") && error.to_string().contains("--force-conflicts"),
        "{error}"
    );

    args.apply.force_conflicts = true;
    installed(&api, &args, &Log::default()).await.unwrap();
    let deployment = api
        .get("Deployment", NAMESPACE, "undermesh-controller")
        .unwrap();
    assert_eq!(deployment["spec"]["replicas"], 2);
}

#[tokio::test]
async fn an_upgrade_keeps_values_and_removes_what_is_no_longer_part_of_it() {
    let api = cluster().await;
    let args = installing(
        Profile::Default,
        &["log.level=debug", "controller.istiodAlias=true"],
    );
    installed(&api, &args, &Log::default()).await.unwrap();
    let client = api.client();
    let mut record = record::Record::load(&client, NAMESPACE)
        .await
        .unwrap()
        .unwrap();
    record.version = "0.0.9".to_owned();
    let manifest = record.manifest(NAMESPACE).unwrap();
    apply::apply(&client, &manifest, &args.apply, &mut Log::default())
        .await
        .unwrap();
    // Of an earlier version, and of somebody else.
    let service = |name: &str, manager: &str| {
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"namespace": NAMESPACE, "name": name,
            "labels": {"app.kubernetes.io/part-of": "undermesh", "app.kubernetes.io/managed-by": manager}}, "spec": {}})
    };
    api.put_all([service("old", "undermesh"), service("theirs", "somebody")]);

    let log = Log::default();
    let pods = run_pods(&api);
    let args = upgrading(&["controller.istiodAlias=false"]);
    let summary = upgrade(&args, &client, &mut log.clone()).await.unwrap();
    pods.abort();
    assert_eq!(summary.previous.as_deref(), Some("0.0.9"));
    assert!(summary.to_string().contains("(before: 0.0.9)"));
    assert_eq!(summary.removed, 2);
    assert!(
        log.has("Service istio-system/old: removed")
            && log.has("Service istio-system/istiod: removed")
    );
    assert!(api.get("Service", NAMESPACE, "theirs").is_some());
    let text = render_upgrade(&upgrading(&[]), &client).await.unwrap();
    assert!(text.contains("debug") && !text.contains("name: istiod\n"));
}

#[tokio::test]
async fn there_is_nothing_to_upgrade_or_uninstall_without_an_installation() {
    let api = cluster().await;
    let client = api.client();
    let mut log = Log::default();
    let error = upgrade(&upgrading(&[]), &client, &mut log)
        .await
        .unwrap_err();
    assert!(matches!(error, InstallError::NotInstalled(_)), "{error}");
    let error = uninstall(&uninstalling(false), &client, &mut log)
        .await
        .unwrap_err();
    assert!(matches!(error, InstallError::NotInstalled(_)), "{error}");
    api.put_namespace(NAMESPACE, &[]);
    api.put(json!({"apiVersion": "v1", "kind": "Service", "metadata": {"namespace": NAMESPACE, "name": "undermesh",
        "labels": {"app.kubernetes.io/part-of": "undermesh", "app.kubernetes.io/managed-by": "Helm"}}, "spec": {}}));
    let error = uninstall(&uninstalling(true), &client, &mut log)
        .await
        .unwrap_err();
    assert!(matches!(error, InstallError::Helm(_)), "{error}");
}

/// What the controller and the nodes make while they run.
fn run_mesh(api: &ApiServer) {
    api.put_namespace("shop", &[("istio.io/dataplane-mode", "ambient")]);
    for (kind, version, namespace, name) in [
        ("ConfigMap", "v1", "shop", "istio-ca-root-cert"),
        ("ConfigMap", "v1", NAMESPACE, "istio-ca-root-cert"),
        ("Secret", "v1", NAMESPACE, "istio-ca-secret"),
        (
            "Lease",
            "coordination.k8s.io/v1",
            NAMESPACE,
            "undermesh-controller",
        ),
    ] {
        api.put(json!({"apiVersion": version, "kind": kind, "metadata": {"namespace": namespace, "name": name}}));
    }
    for (name, mark) in [("cart", "enabled"), ("web", "pending")] {
        api.put(json!({"apiVersion": "v1", "kind": "Pod", "spec": {"containers": []},
            "metadata": {"namespace": "shop", "name": name, "annotations": {"ambient.istio.io/redirection": mark}}}));
    }
}

#[tokio::test]
async fn an_uninstallation_takes_everything_but_what_may_be_wanted_again() {
    let api = cluster().await;
    installed(&api, &installing(Profile::Default, &[]), &Log::default())
        .await
        .unwrap();
    run_mesh(&api);
    let client = api.client();
    let listed = what_goes(&uninstalling(false), &client).await.unwrap();
    assert_eq!(listed[0], "ValidatingWebhookConfiguration undermesh");
    let log = Log::default();
    let removed = uninstall(&uninstalling(false), &client, &mut log.clone())
        .await
        .unwrap();
    assert!(removed.objects.starts_with(&listed));
    assert!(log.has("warning: these namespaces are labelled for the mesh"));
    assert!(
        log.place("DaemonSet istio-system/undermesh-node: removed")
            < log.place("Deployment istio-system/undermesh-controller: removed")
    );
    assert!(
        log.place("Deployment istio-system/undermesh-controller: removed")
            < log.place("ClusterRole undermesh-node: removed")
    );
    for kind in [
        "ClusterRole",
        "ServiceAccount",
        "ConfigMap",
        "Lease",
        "ValidatingWebhookConfiguration",
        "DaemonSet",
    ] {
        assert_eq!(api.list(kind), Vec::<Value>::new(), "{kind}");
    }
    assert_eq!(removed.captured, ["shop/cart"]);
    let text = removed.to_string();
    for left in [
        "Secret istio-system/istio-ca-secret",
        "peerauthentications.security.istio.io",
        "Namespace istio-system",
    ] {
        assert!(text.contains(left), "{text}");
    }
    assert!(api.get("Secret", NAMESPACE, "istio-ca-secret").is_some());
}

#[tokio::test]
async fn a_purge_leaves_nothing_of_ours() {
    let api = cluster().await;
    installed(&api, &installing(Profile::Default, &[]), &Log::default())
        .await
        .unwrap();
    run_mesh(&api);
    uninstall(&uninstalling(true), &api.client(), &mut Log::default())
        .await
        .unwrap();
    assert_eq!(api.list("Secret"), Vec::<Value>::new());
    assert_eq!(api.list("CustomResourceDefinition").len(), 2);
}

#[tokio::test]
async fn istiods_roots_are_left_to_istiod() {
    let api = cluster().await;
    installed(&api, &installing(Profile::Default, &[]), &Log::default())
        .await
        .unwrap();
    run_mesh(&api);
    api.put(json!({"apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"namespace": NAMESPACE, "name": "istiod", "labels": {"app": "istiod"}}, "spec": {"selector": {}, "template": {}}}));
    uninstall(&uninstalling(false), &api.client(), &mut Log::default())
        .await
        .unwrap();
    assert!(api.get("ConfigMap", "shop", "istio-ca-root-cert").is_some());
}

#[test]
fn the_manifests_are_printed_for_other_tools() {
    let mut args = installing(Profile::Demo, &[]);
    let text = render_install(&args).unwrap();
    assert!(text.starts_with("---\napiVersion: v1\nkind: Namespace\n"));
    args.apply.output = crate::args::ManifestForm::Json;
    let list: Value = serde_json::from_str(&render_install(&args).unwrap()).unwrap();
    assert_eq!(list["kind"], "List");
    assert_eq!(
        list["items"].as_array().unwrap().len(),
        text.matches("---\n").count()
    );
}
