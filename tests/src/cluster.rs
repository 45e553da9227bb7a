//! A cluster on a testbed: an API server, the controller beside it, and nodes that take what it serves.

use std::any::Any;
use std::fmt;
use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::agent::{binary, poll};
use crate::api::Api;
use crate::pod::Addresses;
use crate::process::Running;
use crate::{Context, Node, Pod, PodSpec, Result, Testbed};

/// The namespace of the mesh itself.
pub const SYSTEM: &str = "istio-system";
/// The service account of the nodes' agents.
pub const NODE_ACCOUNT: &str = "undermesh-node";
/// A name in the controller's certificate.
pub const CONTROLLER_NAME: &str = "undermesh.istio-system.svc";
/// Where the controller serves nodes.
const DISCOVERY_PORT: u16 = 15_012;
/// How long a program may take to end.
const END_TIMEOUT: Duration = Duration::from_secs(30);
/// How long the tokens of the nodes are valid, in seconds.
const TOKEN_SECONDS: u32 = 3600;

/// A cluster.
pub struct Cluster<'a> {
    bed: &'a Testbed,
    api: Api,
    kubeconfig: PathBuf,
    controller: Mutex<Option<Running>>,
    _server: Box<dyn Any + Send + Sync>,
}

impl fmt::Debug for Cluster<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Cluster")
            .field("api", &self.api)
            .finish_non_exhaustive()
    }
}

impl<'a> Cluster<'a> {
    /// A cluster around an API server that runs, with the mesh's namespace, and no controller yet. `server` ends
    /// with the cluster.
    ///
    /// # Errors
    /// When the server refuses what every cluster has.
    pub fn new(
        bed: &'a Testbed,
        api: Api,
        kubeconfig: &str,
        server: Box<dyn Any + Send + Sync>,
    ) -> Result<Self> {
        let file = api.host.place.folder().join("kubeconfig");
        fs::write(&file, kubeconfig).context(|| "write the kubeconfig")?;
        let cluster = Self {
            bed,
            api,
            kubeconfig: file,
            controller: Mutex::default(),
            _server: server,
        };
        cluster.api.apply(&namespace(SYSTEM, &[]))?;
        cluster.api.apply(&service_account(SYSTEM, NODE_ACCOUNT))?;
        Ok(cluster)
    }

    /// The API.
    pub fn api(&self) -> &Api {
        &self.api
    }

    /// Where nodes are served.
    pub fn discovery_url(&self) -> String {
        format!("https://{}:{DISCOVERY_PORT}", self.api.host.addresses.v4)
    }

    /// The testbed.
    pub fn bed(&self) -> &'a Testbed {
        self.bed
    }

    /// Starts the controller and waits until it serves; `extra` are more arguments of its command line.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start_controller(&self, extra: &[&str]) -> Result<()> {
        let kubeconfig = self.kubeconfig.to_string_lossy();
        let mut arguments = vec![
            "controller",
            "--kubeconfig",
            &kubeconfig,
            "--namespace",
            SYSTEM,
            "--log-format",
            "json",
        ];
        arguments.extend(extra);
        let place = &self.api.host.place;
        let mut controller = place.spawn(&binary()?.to_string_lossy(), arguments)?;
        controller.wait_listening(DISCOVERY_PORT)?;
        *self
            .controller
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(controller);
        Ok(())
    }

    /// Kills the controller, as a lost machine would.
    ///
    /// # Errors
    /// When there is none.
    pub fn kill_controller(&self) -> Result<()> {
        self.end_controller(Signal::SIGKILL)
    }

    /// Asks the controller to end and waits for it.
    ///
    /// # Errors
    /// When there is none, or it goes on.
    pub fn stop_controller(&self) -> Result<()> {
        self.end_controller(Signal::SIGTERM)
    }

    fn end_controller(&self, signal: Signal) -> Result<()> {
        let taken = self
            .controller
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let mut controller = taken.context(|| "end the controller")?;
        controller.signal(signal)?;
        controller.wait(END_TIMEOUT).map(drop)
    }

    /// Adds a node with its agent's pod, as a DaemonSet would; the agent does not run yet.
    ///
    /// # Errors
    /// When it cannot be wired, or the API refuses.
    pub fn node(&self, name: &str) -> Result<Arc<Node>> {
        let node = self.bed.node(name)?;
        let Addresses { v4, v6 } = node.addresses();
        self.api.apply(&json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": { "name": name, "labels": {
                "topology.kubernetes.io/region": "region-1",
                "topology.kubernetes.io/zone": format!("zone-{name}"),
            } },
            "status": { "addresses": [
                { "type": "InternalIP", "address": v4 }, { "type": "InternalIP", "address": v6 },
            ] },
        }))?;
        let agent = agent_name(name);
        self.api.apply(&pod_object(
            SYSTEM,
            &agent,
            NODE_ACCOUNT,
            name,
            json!({ "app": NODE_ACCOUNT }),
            None,
        ))?;
        Ok(node)
    }

    /// Starts the agent of a node with a fresh token of its pod, and waits until it is ready; `extra` are more
    /// arguments of its command line.
    ///
    /// # Errors
    /// When the API refuses, or it does not become ready.
    pub fn start_agent(&self, node: &Node, extra: &[&str]) -> Result<()> {
        self.renew_token(node, TOKEN_SECONDS)?;
        let roots = node.folder().join("roots.pem");
        poll("wait until the controller has written its root", || {
            let bundle = self.api.get("ConfigMap", SYSTEM, "istio-ca-root-cert");
            Ok(bundle.is_ok_and(|it| it["data"]["root-cert.pem"].is_string()))
        })?;
        let bundle = self.api.get("ConfigMap", SYSTEM, "istio-ca-root-cert")?;
        let text = bundle["data"]["root-cert.pem"].as_str().unwrap_or_default();
        fs::write(&roots, text).context(|| "write the roots of a node")?;
        let token = node.folder().join("token");
        let url = self.discovery_url();
        let pod = agent_name(node.name());
        let (roots, token, kubeconfig) = (
            roots.to_string_lossy(),
            token.to_string_lossy(),
            self.kubeconfig.to_string_lossy(),
        );
        let mut arguments = vec![
            "--control-plane",
            &url,
            "--control-plane-name",
            CONTROLLER_NAME,
            "--roots",
            &roots,
            "--token-file",
            &token,
            "--kubeconfig",
            &kubeconfig,
            "--pod-name",
            &pod,
            "--pod-namespace",
            SYSTEM,
        ];
        arguments.extend(extra);
        node.start_driven_agent(&arguments)
    }

    /// Writes a new token for a node's agent, valid for `seconds`.
    ///
    /// # Errors
    /// When the API refuses.
    pub fn renew_token(&self, node: &Node, seconds: u32) -> Result<()> {
        let pod = self.api.get("Pod", SYSTEM, &agent_name(node.name()))?;
        let token = self.api.token(SYSTEM, NODE_ACCOUNT, &pod, seconds)?;
        let (file, staged) = (node.folder().join("token"), node.folder().join("token.new"));
        fs::write(&staged, token)
            .and_then(|()| fs::rename(&staged, &file))
            .context(|| "write the token of a node")
    }

    /// Creates a pod: its object, its place on the node with a process in it, and the status that kubelet would
    /// write. It is in no mesh yet unless its labels or its namespace say so.
    ///
    /// # Errors
    /// When it cannot be wired, or the API refuses.
    pub fn pod(&self, node: &Node, spec: PodSpec) -> Result<ClusterPod> {
        self.create(node, spec, |spec| node.pod(spec))
    }

    /// As [`Self::pod`], with addresses that an earlier pod of the node had.
    ///
    /// # Errors
    /// When it cannot be wired, or the API refuses.
    pub fn pod_at(&self, node: &Node, spec: PodSpec, addresses: Addresses) -> Result<ClusterPod> {
        self.create(node, spec, |spec| node.pod_at(spec, addresses))
    }

    fn create(
        &self,
        node: &Node,
        spec: PodSpec,
        wire: impl FnOnce(PodSpec) -> Result<Pod>,
    ) -> Result<ClusterPod> {
        self.api
            .apply(&service_account(&spec.namespace, &spec.service_account))?;
        let labels = match &spec.service {
            Some(service) => json!({ "app": spec.name, "service": service }),
            None => json!({ "app": spec.name }),
        };
        let (name, account) = (spec.name.clone(), spec.service_account.clone());
        let object = |addresses| {
            pod_object(
                &spec.namespace,
                &name,
                &account,
                node.name(),
                labels.clone(),
                addresses,
            )
        };
        let created = self.api.apply(&object(None))?;
        let uid = created["metadata"]["uid"].as_str();
        let uid = uid
            .context(|| format!("find the uid in {created}"))?
            .to_owned();
        let pod = wire(spec.clone().with_uid(&uid))?;
        let pause = pod.spawn("sleep", ["infinity"])?;
        self.api.apply(&object(Some(pod.addresses())))?;
        Ok(ClusterPod {
            pod,
            uid,
            _pause: pause,
        })
    }

    /// Deletes a pod: its object, and then its place.
    ///
    /// # Errors
    /// When the API refuses.
    pub fn delete_pod(&self, pod: ClusterPod) -> Result<()> {
        let spec = pod.pod.spec();
        self.api.delete("Pod", &spec.namespace, &spec.name)?;
        pod.pod.lose_network()
    }

    /// Waits until the agent has marked a pod as captured.
    ///
    /// # Errors
    /// When that takes too long.
    pub fn wait_enrolled(&self, pod: &ClusterPod) -> Result<()> {
        self.wait_mark(pod, true)
    }

    /// Waits until the mark of a captured pod is gone.
    ///
    /// # Errors
    /// When that takes too long.
    pub fn wait_released(&self, pod: &ClusterPod) -> Result<()> {
        self.wait_mark(pod, false)
    }

    fn wait_mark(&self, pod: &ClusterPod, wanted: bool) -> Result<()> {
        let spec = pod.pod.spec();
        let wait = format!("wait until the mark of {} is {wanted}", spec.name);
        poll(&wait, || {
            let object = self.api.get("Pod", &spec.namespace, &spec.name)?;
            let mark = &object["metadata"]["annotations"]["ambient.istio.io/redirection"];
            Ok((mark == "enabled") == wanted)
        })
    }

    /// Writes a service over the pods whose label `service` is `name`.
    ///
    /// # Errors
    /// When the API refuses.
    pub fn service(
        &self,
        namespace: &str,
        name: &str,
        address: Addresses,
        port: (u16, u16),
    ) -> Result<()> {
        self.api
            .apply(&json!({
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": { "name": name, "namespace": namespace },
                "spec": {
                    "clusterIP": address.v4,
                    "clusterIPs": [address.v4],
                    "selector": { "service": name },
                    "ports": [{ "name": "tcp-main", "port": port.0, "targetPort": port.1, "protocol": "TCP" }],
                },
            }))
            .map(drop)
    }
}

/// A pod of a cluster.
#[derive(Debug)]
pub struct ClusterPod {
    /// Where its programs run.
    pub pod: Pod,
    /// The uid of its object.
    pub uid: String,
    _pause: Running,
}

fn agent_name(node: &str) -> String {
    format!("{NODE_ACCOUNT}-{node}")
}

/// A namespace with labels.
pub fn namespace(name: &str, labels: &[(&str, &str)]) -> Value {
    let labels: serde_json::Map<String, Value> = labels
        .iter()
        .map(|(key, value)| ((*key).to_owned(), json!(value)))
        .collect();
    json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name, "labels": labels } })
}

fn service_account(namespace: &str, name: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "ServiceAccount",
        "metadata": { "name": name, "namespace": namespace },
    })
}

fn pod_object(
    namespace: &str,
    name: &str,
    account: &str,
    node: &str,
    labels: Value,
    addresses: Option<Addresses>,
) -> Value {
    let mut object = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": name, "namespace": namespace, "labels": labels },
        "spec": {
            "nodeName": node,
            "serviceAccountName": account,
            "containers": [{ "name": "app", "image": "app" }],
        },
    });
    if let Some(Addresses { v4, v6 }) = addresses {
        object["status"] = json!({
            "phase": "Running",
            "podIP": v4,
            "podIPs": [{ "ip": v4 }, { "ip": v6 }],
            "conditions": [{ "type": "Ready", "status": "True" }],
        });
    }
    object
}
