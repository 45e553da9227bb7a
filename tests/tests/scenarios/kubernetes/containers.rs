//! Pods that a real container runtime starts: the plugin holds them back until the agent has them, whatever becomes
//! of the agent meanwhile.
use std::sync::Arc;
use std::thread;

use serde_json::json;
use undermesh_kubernetes::testing::{ApiServer, Failure};
use undermesh_tests::agent::{Access, poll};
use undermesh_tests::cluster::{Cluster, ClusterPod, namespace};
use undermesh_tests::process::Output;
use undermesh_tests::{Error, Family, Node, PodSpec, Result, Testbed, apps};

use super::containerd::{Containerd, PROGRAMS, plugins};
use super::{MEMBER, SHOP, server};
use crate::Scenario;

pub const SCENARIOS: &[Scenario] = &[
    Scenario::new("kubernetes_no_container_runs_uncaptured", never_uncaptured)
        .needs(PROGRAMS)
        .given(plugins),
    Scenario::new("kubernetes_containers_may_start_without_agent", fail_open)
        .needs(PROGRAMS)
        .given(plugins),
];

/// A cluster with a server on its second node, and a pod for its first one, which calls the server from its start.
struct Dock<'a> {
    cluster: Cluster<'a>,
    api: ApiServer,
    nodes: [Arc<Node>; 2],
    server: ClusterPod,
    containerd: Containerd,
    absent: &'static str,
    caller: PodSpec,
    uid: String,
    _nginx: apps::App,
}

impl<'a> Dock<'a> {
    /// The agent of the first node has put its plugin into the chain already, as on a node in use; `absent` is what
    /// becomes of pods while it is away.
    fn open(bed: &'a Testbed, absent: &'static str) -> Result<Self> {
        let (cluster, api) = server::own_and_its_inside(bed)?;
        cluster.start_controller(&[])?;
        cluster.api().apply(&namespace(SHOP, &[MEMBER]))?;
        let nodes = [cluster.node("n1")?, cluster.node("n2")?];
        cluster.start_agent(&nodes[1], &[])?;
        let server = cluster.pod(&nodes[1], PodSpec::new(SHOP, "server"))?;
        cluster.wait_enrolled(&server)?;
        let nginx = apps::nginx(&server.pod)?;
        let caller = PodSpec::new(SHOP, "caller");
        let script = calling(&server);
        let mut dock = Self {
            uid: cluster.schedule(&nodes[0], &caller)?,
            containerd: Containerd::new(&nodes[0])?,
            absent,
            cluster,
            api,
            nodes,
            server,
            caller,
            _nginx: nginx,
        };
        dock.start_agent()?;
        dock.containerd.start(&script)?;
        Ok(dock)
    }

    /// Starts the agent beside containerd.
    fn start_agent(&self) -> Result<()> {
        let (plugins, networks) = (self.containerd.plugins(), self.containerd.networks());
        let arguments = [
            "--cni",
            "--cni-absent",
            self.absent,
            "--cni-bin-dir",
            &plugins.to_string_lossy(),
            "--cni-conf-dir",
            &networks.to_string_lossy(),
        ];
        self.cluster.start_agent(&self.nodes[0], &arguments)
    }

    /// Runs the pod, and says its address as kubelet does.
    fn run(&self) -> Result<String> {
        let id = self.containerd.run(&self.caller, &self.uid)?;
        let address = self.containerd.pod_address();
        let status = json!({
            "phase": "Running",
            "podIP": address,
            "podIPs": [{ "ip": address }],
            "conditions": [{ "type": "Ready", "status": "True" }],
        });
        let api = self.cluster.api();
        api.patch_status("Pod", SHOP, &self.caller.name, &status)?;
        Ok(id)
    }

    /// The runtime does not run the pod, and nothing of it is left.
    fn assert_held_back(&self) {
        let refused = self.containerd.run(&self.caller, &self.uid).unwrap_err();
        assert!(refused.to_string().contains("does not answer"), "{refused}");
        assert_eq!(self.containerd.process_of(&self.uid), None);
    }

    /// Waits for a call of the pod under its identity.
    fn wait_call(&self, mark: usize) -> Result<()> {
        let identity = self.caller.identity();
        let wanted =
            |access: &Access| self.is_call(access) && access.text("src.identity") == identity;
        let called = self.nodes[1].wait_access(mark, wanted).map(drop);
        called.map_err(|error| {
            let sockets = self.containerd.sockets(&self.uid);
            let sockets = sockets.unwrap_or_else(|error| error.to_string());
            Error::step(
                "wait for a call of the pod",
                format!("{error}; its sockets:\n{sockets}"),
            )
        })
    }

    fn is_call(&self, access: &Access) -> bool {
        let address = format!("{}:", self.containerd.pod_address());
        access.inbound() && access.text("src.addr").starts_with(&address)
    }

    /// Whether a call came to the application's own port, and so in no tunnel.
    fn is_plain_call(&self, access: &Access) -> bool {
        let port = format!(":{}", apps::NGINX_PORT);
        self.is_call(access) && access.text("dst.addr").ends_with(&port)
    }

    /// A program of the pod asks the server, as anything else in it would.
    fn fetch(&self) -> Result<Output> {
        let server = self.server.pod.ip(Family::V4);
        let url = format!("http://{server}:{}/name", apps::NGINX_PORT);
        self.containerd.curl(&self.uid, &url)
    }
}

/// What the pod does, from its first moment on.
fn calling(server: &ClusterPod) -> String {
    let (address, port) = (server.pod.ip(Family::V4), apps::NGINX_PORT);
    format!(
        "while :; do \
           (exec 3<>/dev/tcp/{address}/{port} && printf 'GET /name HTTP/1.0\\r\\n\\r\\n' >&3 && read -r <&3) 2>/dev/null; \
           sleep 0.02; \
         done"
    )
}

fn never_uncaptured(bed: &Testbed) -> Result<()> {
    let dock = Dock::open(bed, "wait")?;
    let [node, other] = &dock.nodes;
    let mark = other.log_mark();

    // The agent is away when the pod starts.
    node.kill_agent()?;
    dock.assert_held_back();

    // It is killed while the runtime waits for its word, which waits for the API server's.
    dock.start_agent()?;
    let hang = dock
        .api
        .fault("/namespaces/shop/pods/caller", Failure::Hang);
    thread::scope(|scope| {
        let held_back = scope.spawn(|| dock.assert_held_back());
        poll("wait until the agent asks for the pod", || {
            Ok(hang.hits() > 0)
        })?;
        node.kill_agent()?;
        held_back.join().unwrap();
        Ok(())
    })?;
    drop(hang);

    // It is back, and the runtime tries again, as kubelet has it.
    dock.start_agent()?;
    let id = dock.run()?;
    dock.wait_call(mark)?;

    // It is killed while the pod runs.
    node.kill_agent()?;
    assert!(
        !dock.fetch()?.status.success(),
        "it must not leave in clear"
    );
    dock.start_agent()?;
    let restarted = other.log_mark();
    dock.wait_call(restarted)?;

    // The machine boots: what was pinned is gone, and the plugin is there before the agent.
    dock.containerd.remove(&id)?;
    node.reboot()?;
    dock.assert_held_back();
    let booted = other.log_mark();
    dock.start_agent()?;
    let id = dock.run()?;
    dock.wait_call(booted)?;
    dock.containerd.remove(&id)?;

    let calls = other.accesses(mark);
    let plain = calls.iter().find(|it| dock.is_plain_call(it));
    assert_eq!(plain, None);
    Ok(())
}

fn fail_open(bed: &Testbed) -> Result<()> {
    let dock = Dock::open(bed, "start")?;
    let [node, other] = &dock.nodes;
    node.kill_agent()?;
    let mark = other.log_mark();
    let id = dock.run()?;
    other.wait_access(mark, |it| dock.is_plain_call(it))?;
    // The pod is taken in as it runs.
    dock.start_agent()?;
    dock.wait_call(mark)?;
    dock.containerd.remove(&id)
}
