//! A cluster on a testbed: an API server, the controller beside it, and nodes that take what it serves.

use std::any::Any;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Value, json};

use crate::agent::{binary, poll};
use crate::api::Api;
use crate::controller::{self, Controller, DISCOVERY_PORT};
use crate::pod::Addresses;
use crate::process::Running;
use crate::tcp::Server;
use crate::{Context, Node, Pod, PodSpec, Result, Testbed};

/// The namespace of the mesh itself.
pub const SYSTEM: &str = "istio-system";
/// The service account of the nodes' agents.
pub const NODE_ACCOUNT: &str = "undermesh-node";
/// A name in the controller's certificate.
pub const CONTROLLER_NAME: &str = "undermesh.istio-system.svc";
/// How long the tokens of the nodes are valid, in seconds.
const TOKEN_SECONDS: u32 = 3600;

/// A cluster.
pub struct Cluster<'a> {
    bed: &'a Testbed,
    api: Api,
    kubeconfig: PathBuf,
    controller: Controller,
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
            controller: Controller::new(api.host.clone()),
            api,
            kubeconfig: file,
            _server: server,
        };
        cluster.api.apply(&namespace(SYSTEM, &[]))?;
        cluster.api.apply(&service_account(SYSTEM, NODE_ACCOUNT))?;
        cluster.api.apply(&daemon_set())?;
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

    /// The controller beside the API server.
    pub fn controller(&self) -> &Controller {
        &self.controller
    }

    /// Starts the controller beside the API server and waits until it serves; `extra` are more arguments of its
    /// command line.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start_controller(&self, extra: &[&str]) -> Result<()> {
        self.start_replica(&self.controller, extra)
    }

    /// Kills that controller, as a lost machine would.
    ///
    /// # Errors
    /// When there is none.
    pub fn kill_controller(&self) -> Result<()> {
        self.controller.kill()
    }

    /// Asks that controller to end and waits for it.
    ///
    /// # Errors
    /// When there is none, or it goes on.
    pub fn stop_controller(&self) -> Result<()> {
        self.controller.stop()
    }

    /// Starts a replica, or starts it again.
    ///
    /// # Errors
    /// When it does not start.
    pub fn start_replica(&self, replica: &Controller, extra: &[&str]) -> Result<()> {
        replica.start(&self.kubeconfig, extra)
    }

    /// Starts replicas on hosts of their own, and the Service through which nodes reach them, in the place of the
    /// controller beside the API server.
    ///
    /// # Errors
    /// When one does not start.
    pub fn start_replicas<const COUNT: usize>(
        &self,
        names: [&str; COUNT],
    ) -> Result<([Controller; COUNT], Server)> {
        let hosts = names.map(|name| self.bed.outside(name));
        let mut replicas = Vec::new();
        for host in hosts {
            let replica = Controller::new(host?);
            self.start_replica(&replica, &[])?;
            replicas.push(replica);
        }
        let addresses = replicas.iter().map(Controller::address).collect();
        let service = controller::service(&self.api.host, addresses)?;
        let replicas = replicas.try_into();
        Ok((replicas.ok().context(|| "count the replicas")?, service))
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
        poll("wait until the controller has written its root", || {
            Ok(self.root_bundle(SYSTEM).is_ok())
        })?;
        self.mount_roots(node)?;
        let (roots, token) = (self.roots_file(node), self.token_file(node));
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

    /// The roots that the controller has written for a namespace, as PEM.
    ///
    /// # Errors
    /// When there are none yet.
    pub fn root_bundle(&self, namespace: &str) -> Result<String> {
        let map = self.api.get("ConfigMap", namespace, "istio-ca-root-cert")?;
        let text = map["data"]["root-cert.pem"].as_str();
        text.map(str::to_owned)
            .context(|| format!("find the roots in {map}"))
    }

    /// Where a node's agent finds the roots that vouch for the control plane.
    pub fn roots_file(&self, node: &Node) -> PathBuf {
        node.folder().join("roots.pem")
    }

    /// Where a node's agent finds its token.
    pub fn token_file(&self, node: &Node) -> PathBuf {
        node.folder().join("token")
    }

    /// The token that a node's agent has.
    ///
    /// # Errors
    /// When it has none yet.
    pub fn token(&self, node: &Node) -> Result<String> {
        fs::read_to_string(self.token_file(node)).context(|| "read the token of a node")
    }

    /// Gives a node's agent the roots of its ConfigMap, as kubelet does with a mounted one when it changes.
    ///
    /// # Errors
    /// When there are none, or they cannot be written.
    pub fn mount_roots(&self, node: &Node) -> Result<()> {
        replace(&self.roots_file(node), &self.root_bundle(SYSTEM)?)
    }

    /// Writes a new token for a node's agent, valid for `seconds`.
    ///
    /// # Errors
    /// When the API refuses.
    pub fn renew_token(&self, node: &Node, seconds: u32) -> Result<()> {
        let pod = self.api.get("Pod", SYSTEM, &agent_name(node.name()))?;
        let token = self.api.token(SYSTEM, NODE_ACCOUNT, &pod, seconds)?;
        replace(&self.token_file(node), &token)
    }

    /// A token with which machines of a WorkloadGroup join, as an operator makes it.
    ///
    /// # Errors
    /// When the command fails.
    pub fn join_token(&self, namespace: &str, group: &str) -> Result<String> {
        poll("wait until the controller has written its root", || {
            Ok(self.root_bundle(namespace).is_ok())
        })?;
        let (kubeconfig, url) = (self.kubeconfig.to_string_lossy(), self.discovery_url());
        let arguments = [
            "token",
            "create",
            group,
            "--namespace",
            namespace,
            "--kubeconfig",
            &kubeconfig,
            "--controller",
            &url,
            "--system-namespace",
            SYSTEM,
        ];
        let place = &self.api.host.place;
        place
            .output(&binary()?.to_string_lossy(), arguments)?
            .success()
    }

    /// Creates a service account.
    ///
    /// # Errors
    /// When the API refuses.
    pub fn service_account(&self, namespace: &str, name: &str) -> Result<()> {
        self.api.apply(&service_account(namespace, name)).map(drop)
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

    /// Binds a pod to a node, as the scheduler does, and returns its uid; nothing of it runs yet.
    ///
    /// # Errors
    /// When the API refuses.
    pub fn schedule(&self, node: &Node, spec: &PodSpec) -> Result<String> {
        self.api
            .apply(&service_account(&spec.namespace, &spec.service_account))?;
        let created = self.api.apply(&object_of(node, spec, None))?;
        let uid = created["metadata"]["uid"].as_str();
        uid.map(str::to_owned)
            .context(|| format!("find the uid in {created}"))
    }

    fn create(
        &self,
        node: &Node,
        spec: PodSpec,
        wire: impl FnOnce(PodSpec) -> Result<Pod>,
    ) -> Result<ClusterPod> {
        let uid = self.schedule(node, &spec)?;
        let pod = wire(spec.clone().with_uid(&uid))?;
        let pause = pod.spawn("sleep", ["infinity"])?;
        self.api
            .apply(&object_of(node, &spec, Some(pod.addresses())))?;
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

/// Exchanges a file as a whole, as kubelet does: nobody reads half of it.
fn replace(file: &Path, content: &str) -> Result<()> {
    let staged = file.with_extension("new");
    fs::write(&staged, content)
        .and_then(|()| fs::rename(&staged, file))
        .context(|| format!("write {}", file.display()))
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

/// What the agents' pods come from. An agent that ends while it is not there takes the mesh for uninstalled.
fn daemon_set() -> Value {
    json!({
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": { "name": NODE_ACCOUNT, "namespace": SYSTEM },
        "spec": {
            "selector": { "matchLabels": { "app": NODE_ACCOUNT } },
            "template": {
                "metadata": { "labels": { "app": NODE_ACCOUNT } },
                "spec": { "containers": [{ "name": "node", "image": "node" }] },
            },
        },
    })
}

fn object_of(node: &Node, spec: &PodSpec, addresses: Option<Addresses>) -> Value {
    let labels = match &spec.service {
        Some(service) => json!({ "app": spec.name, "service": service }),
        None => json!({ "app": spec.name }),
    };
    pod_object(
        &spec.namespace,
        &spec.name,
        &spec.service_account,
        node.name(),
        labels,
        addresses,
    )
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
