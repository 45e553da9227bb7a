//! The enrollment controller against an API server in the test process: lists, watches, patches, and faults.
#![allow(clippy::unwrap_used, missing_docs, reason = "a test fails by a panic")]

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    net::IpAddr,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{sync::watch, task::JoinHandle, time::timeout};
use undermesh_cni::{
    discovery::{DiscoveryError, Found},
    membership::Rules,
    netns::NetnsId,
    node::{
        Controller, EnrollError, Enroller, Held, Kubernetes, Namespaces, PodKey, REDIRECTION,
        Release, Target,
    },
    server::Desk as _,
    wire::{Answer, Sandbox, Verb},
};
use undermesh_kubernetes::testing::{ApiServer, Failure};

const NODE: &str = "node-1";
/// How long something may take before a test fails.
const PATIENCE: Duration = Duration::from_secs(20);

/// Records what it is asked for.
struct Recorder {
    log: watch::Sender<Vec<String>>,
    held: Mutex<BTreeMap<PodKey, Held>>,
}

impl Recorder {
    fn write(&self, line: String) {
        self.log.send_modify(|log| log.push(line));
    }

    /// Waits for the next lines.
    async fn expect(&self, lines: &[&str]) {
        let mut log = self.log.subscribe();
        let complete = log.wait_for(|log| log.len() >= lines.len());
        let arrived = timeout(PATIENCE, complete).await.is_ok();
        assert_eq!(*self.log.borrow(), lines, "complete: {arrived}");
        self.log.send_modify(Vec::clear);
    }
}

impl Enroller for Recorder {
    async fn enroll(&self, target: Target) -> Result<(), EnrollError> {
        let held = Held {
            pod: target.pod.clone(),
            service_account: target.service_account.clone(),
            netns: target.netns_id,
        };
        let before = self.held.lock().unwrap().insert(target.pod.clone(), held);
        let again = if before.is_some() { " again" } else { "" };
        self.write(format!(
            "enroll {} {} as {}{again}",
            target.pod, target.uid, target.service_account
        ));
        Ok(())
    }

    async fn release(&self, pod: &PodKey, why: Release) -> Result<(), EnrollError> {
        self.held.lock().unwrap().remove(pod);
        self.write(format!("release {pod} {why:?}"));
        Ok(())
    }

    fn enrolled(&self) -> Vec<Held> {
        self.held.lock().unwrap().values().cloned().collect()
    }
}

/// Files stand for namespaces: each has an identity of its own, and the uid of its pod for a name.
struct Files(TempDir);

impl Files {
    fn add(&self, uid: &str) {
        fs::write(self.0.path().join(uid), "").unwrap();
    }
}

impl Namespaces for Files {
    fn of_pod(&self, uid: &str, _: &[IpAddr]) -> Result<Found, DiscoveryError> {
        self.at(&self.0.path().join(uid), uid, &[])
    }

    fn at(&self, path: &Path, uid: &str, _: &[IpAddr]) -> Result<Found, DiscoveryError> {
        let file = File::open(path).map_err(|_| DiscoveryError::NoProcess {
            uid: uid.to_owned(),
            proc: "/proc".into(),
        })?;
        Ok(Found {
            id: NetnsId::of(&file).unwrap(),
            netns: file.into(),
            path: path.to_owned(),
        })
    }

    fn identify(&self, path: &Path) -> io::Result<NetnsId> {
        NetnsId::of(File::open(path)?)
    }
}

type Node = Controller<Arc<Recorder>, Kubernetes, Files>;

struct Bed {
    api: ApiServer,
    recorder: Arc<Recorder>,
    files: Arc<Files>,
    controller: Node,
    task: JoinHandle<()>,
}

impl Bed {
    async fn new() -> Self {
        let api = ApiServer::start().await;
        api.put_namespace("shop", &[]);
        let recorder = Arc::new(Recorder {
            log: watch::channel(Vec::new()).0,
            held: Mutex::default(),
        });
        let files = Arc::new(Files(tempfile::tempdir().unwrap()));
        let (controller, task) = start(&api, &recorder, &files);
        let bed = Self {
            api,
            recorder,
            files,
            controller,
            task,
        };
        bed.watched().await;
        bed
    }

    async fn watched(&self) {
        self.api.wait_for_watches("pods", 1).await;
        self.api.wait_for_watches("namespaces", 1).await;
    }

    /// The agent is started again; what was captured stays so.
    async fn restart(&mut self, meanwhile: impl FnOnce(&Self)) {
        self.task.abort();
        assert!((&mut self.task).await.unwrap_err().is_cancelled());
        meanwhile(self);
        (self.controller, self.task) = start(&self.api, &self.recorder, &self.files);
    }

    fn pod(&self, name: &str, uid: &str, change: impl FnOnce(&mut Value)) {
        self.files.add(uid);
        let mut pod = json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"namespace": "shop", "name": name, "uid": uid},
            "spec": {"nodeName": NODE, "serviceAccountName": format!("{name}-account"), "containers": []},
            "status": {"phase": "Running", "podIP": "10.0.0.1", "podIPs": [{"ip": "10.0.0.1"}]},
        });
        change(&mut pod);
        self.api.put(pod);
    }

    fn sandbox(&self, name: &str, uid: &str) -> Sandbox {
        self.files.add(uid);
        Sandbox {
            namespace: "shop".to_owned(),
            name: name.to_owned(),
            uid: Some(uid.to_owned()),
            netns: Some(self.files.0.path().join(uid)),
            addresses: vec!["10.0.0.1".parse().unwrap()],
        }
    }

    async fn marked(&self, name: &str, marked: bool) {
        let is = |pod: &Value| pod["metadata"]["annotations"][REDIRECTION] == "enabled";
        self.api
            .wait_for("Pod", "shop", name, |pod| is(pod) == marked)
            .await;
    }
}

fn start(api: &ApiServer, recorder: &Arc<Recorder>, files: &Arc<Files>) -> (Node, JoinHandle<()>) {
    let kubernetes = Kubernetes::new(api.client(), NODE);
    let controller = Controller::new(
        Arc::clone(recorder),
        kubernetes.clone(),
        Arc::clone(files),
        Rules::new("undermesh-system"),
    );
    let running = controller.clone();
    let task = tokio::spawn(async move { running.run(kubernetes.changes()).await });
    (controller, task)
}

const AMBIENT: [(&str, &str); 1] = [("istio.io/dataplane-mode", "ambient")];

#[tokio::test]
async fn a_label_takes_running_pods_in_and_its_removal_out() {
    let bed = Bed::new().await;
    bed.pod("web", "u-1", |_| {});
    bed.pod("elsewhere", "u-2", |pod| {
        pod["spec"]["nodeName"] = "node-2".into()
    });
    bed.pod("host", "u-3", |pod| {
        pod["spec"]["hostNetwork"] = true.into()
    });
    bed.api.put_namespace("shop", &AMBIENT);
    bed.recorder
        .expect(&["enroll shop/web u-1 as web-account"])
        .await;
    bed.marked("web", true).await;
    bed.api.put_namespace("shop", &[]);
    // Peers hear of it before the tunnel's end goes.
    bed.marked("web", false).await;
    bed.recorder.expect(&["release shop/web Left"]).await;
}

#[tokio::test]
async fn new_pods_are_captured_before_the_plugin_hears_of_it() {
    let bed = Bed::new().await;
    bed.api.put_namespace("shop", &AMBIENT);
    bed.pod("web", "u-1", |pod| {
        pod["status"] = json!({"phase": "Pending"})
    });
    let sandbox = bed.sandbox("web", "u-1");
    let answer = bed.controller.handle(Verb::Add, sandbox.clone()).await;
    assert_eq!(answer, Ok(Answer::Enrolled));
    bed.recorder
        .expect(&["enroll shop/web u-1 as web-account"])
        .await;
    bed.marked("web", true).await;
    let answer = bed.controller.handle(Verb::Check, sandbox.clone()).await;
    assert_eq!(answer, Ok(Answer::Enrolled));
    bed.api.delete("Pod", "shop", "web");
    let answer = bed.controller.handle(Verb::Del, sandbox).await;
    assert_eq!(answer, Ok(Answer::Released));
    bed.recorder.expect(&["release shop/web Ended"]).await;
}

#[tokio::test]
async fn sandboxes_that_are_not_certain_are_refused() {
    let bed = Bed::new().await;
    bed.api.put_namespace("shop", &AMBIENT);
    bed.pod("web", "u-1", |pod| pod["status"] = json!({}));
    bed.pod("elsewhere", "u-2", |pod| {
        pod["spec"]["nodeName"] = "node-2".into()
    });
    bed.pod("opted-out", "u-3", |pod| {
        pod["metadata"]["labels"] = json!({"istio.io/dataplane-mode": "none"});
    });
    let add = |sandbox| bed.controller.handle(Verb::Add, sandbox);
    let refused = |answer: Result<Answer, undermesh_cni::wire::Failure>| answer.unwrap_err().error;
    assert!(refused(add(bed.sandbox("gone", "u-9")).await).contains("knows no pod"));
    assert!(refused(add(bed.sandbox("elsewhere", "u-2")).await).contains("knows no pod"));
    assert!(refused(add(bed.sandbox("web", "u-0")).await).contains("was replaced"));
    assert!(refused(add(bed.sandbox("../web", "u-1")).await).contains("not valid"));
    let mut bare = bed.sandbox("web", "u-1");
    bare.addresses.clear();
    assert!(refused(add(bare).await).contains("no address"));
    let answer = add(bed.sandbox("opted-out", "u-3")).await;
    assert!(matches!(answer, Ok(Answer::NotMember { .. })), "{answer:?}");
    // A runtime that does not tell the uid: the sandbox's process does, or nobody.
    let mut nameless = bed.sandbox("web", "u-1");
    nameless.uid = None;
    assert_eq!(add(nameless).await, Ok(Answer::Enrolled));
    let mut nameless = bed.sandbox("web", "u-7");
    nameless.uid = None;
    assert!(refused(add(nameless).await).contains("does not say which"));
    let _fault = bed.api.fault("/pods/web", Failure::Reset);
    assert!(refused(add(bed.sandbox("web", "u-1")).await).contains("cannot be asked"));
    bed.recorder
        .expect(&["enroll shop/web u-1 as web-account"])
        .await;
}

#[tokio::test]
async fn a_pod_replaced_under_its_name_is_never_taken_for_the_old_one() {
    let bed = Bed::new().await;
    bed.api.put_namespace("shop", &AMBIENT);
    bed.pod("web", "u-1", |_| {});
    bed.recorder
        .expect(&["enroll shop/web u-1 as web-account"])
        .await;
    bed.api.delete("Pod", "shop", "web");
    bed.pod("web", "u-2", |pod| {
        pod["spec"]["serviceAccountName"] = "other".into()
    });
    bed.recorder
        .expect(&["release shop/web Ended", "enroll shop/web u-2 as other"])
        .await;
    bed.marked("web", true).await;
}

#[tokio::test]
async fn an_outage_and_a_lost_history_release_nothing() {
    let bed = Bed::new().await;
    bed.api.put_namespace("shop", &AMBIENT);
    bed.pod("web", "u-1", |_| {});
    bed.recorder
        .expect(&["enroll shop/web u-1 as web-account"])
        .await;
    bed.marked("web", true).await;
    let fault = bed.api.fault("watch=true", Failure::Reset);
    bed.api.disconnect_watches();
    fault.met(2).await;
    bed.pod("db", "u-2", |_| {});
    bed.api.compact();
    drop(fault);
    bed.recorder
        .expect(&["enroll shop/db u-2 as db-account"])
        .await;
}

#[tokio::test]
async fn a_new_agent_makes_sure_of_what_an_earlier_one_captured() {
    let mut bed = Bed::new().await;
    bed.api.put_namespace("shop", &AMBIENT);
    for (name, uid) in [("web", "u-1"), ("db", "u-2"), ("gone", "u-3")] {
        bed.pod(name, uid, |_| {});
        let line = format!("enroll shop/{name} {uid} as {name}-account");
        bed.recorder.expect(&[&line]).await;
        bed.marked(name, true).await;
    }
    bed.restart(|bed| {
        bed.api.delete("Pod", "shop", "gone");
        bed.api.delete("Pod", "shop", "db");
        bed.pod("db", "u-4", |_| {});
    })
    .await;
    bed.marked("db", true).await;
    let mut log = bed.recorder.log.subscribe();
    let complete = log.wait_for(|log| log.len() >= 4);
    timeout(PATIENCE, complete).await.unwrap().unwrap();
    let mut lines = bed.recorder.log.borrow().clone();
    lines.sort();
    assert_eq!(
        lines,
        [
            "enroll shop/db u-4 as db-account",
            "enroll shop/web u-1 as web-account again",
            "release shop/db Ended",
            "release shop/gone Ended",
        ]
    );
}
