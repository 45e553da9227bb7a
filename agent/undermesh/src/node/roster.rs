//! Which pods of this node are in the mesh, as the cluster says: followed through the Kubernetes API, and asked by the
//! CNI plugin.
use std::{env, io, path::PathBuf, sync::Arc, time::Duration};

use k8s_openapi::api::apps::v1::DaemonSet;
use kube::{Api, Client};
use tokio::{
    task::{JoinSet, spawn_blocking},
    time::timeout,
};
use undermesh_capture::{CaptureError, Probes};
use undermesh_cni::{
    chain::{ChainError, Installer, Keeper, Settings, State},
    discovery::Discovery,
    membership::Rules,
    node::{Controller, Kubernetes},
    plugin::WhenAway,
    server::{Server, ServerError},
};
use undermesh_kubernetes::connect::{self, Access, ConnectError};
use undermesh_telemetry::{Readiness, ReadyGuard};

use super::{enroller::Captor, place, pods::Pods};
use crate::command::{Absent, NodeOptions};

/// The socket on which the CNI plugin asks, in the run directory.
const SOCKET: &str = "cni.sock";
/// Where container runtimes mount the network namespaces of pods.
const NETNS_MOUNTS: [&str; 2] = ["/run/netns", "/var/run/netns"];
/// The DaemonSet of the agents.
const DAEMON_SET: &str = "undermesh-node";
/// How long the API server may take to say whether it is still there.
const UNINSTALL_TIMEOUT: Duration = Duration::from_secs(5);
/// Set in every pod of a cluster.
const IN_CLUSTER: &str = "KUBERNETES_SERVICE_HOST";

/// Why the cluster is not followed.
#[derive(Debug, thiserror::Error)]
pub enum RosterError {
    /// The API server.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// Kubelet's probes.
    #[error(transparent)]
    Capture(#[from] CaptureError),
    /// The plugin's socket.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// The plugin's installation.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// This program's own file.
    #[error("the agent's own program cannot be found ({0}); start it by its path")]
    Program(io::Error),
    /// A task of the start panicked.
    #[error("a step of the start broke off: {0}; see the log")]
    Broken(#[from] tokio::task::JoinError),
    /// The plugin without a cluster to ask.
    #[error(
        "--cni needs the Kubernetes API; give --kubeconfig FILE, or run the agent in the cluster"
    )]
    NoCluster,
}

/// What follows the cluster, until it is dropped.
pub struct Roster {
    client: Client,
    namespace: String,
    pods: Arc<Pods>,
    plugin: Option<Plugin>,
    _tasks: JoinSet<()>,
}

/// The plugin on this node.
struct Plugin {
    installer: Installer,
    _keeper: Keeper,
}

impl Roster {
    /// Begins to follow the cluster, if there is one. Call it once the pods of an earlier agent are served.
    ///
    /// With the plugin, `readiness` waits until that is in the chain: a pod that starts on a ready node is captured from
    /// its first packet.
    ///
    /// # Errors
    /// When the cluster cannot be reached as told, or the plugin cannot be installed.
    pub async fn start(
        options: &NodeOptions,
        node: &str,
        pods: Arc<Pods>,
        readiness: &Readiness,
    ) -> Result<Option<Self>, RosterError> {
        let Some(access) = access(options) else {
            return if options.cluster.cni {
                Err(RosterError::NoCluster)
            } else {
                Ok(None)
            };
        };
        pass_probes(options, &pods).await?;
        let client = connect::connect(&access).await?;
        let cluster = Kubernetes::new(client.clone(), node);
        let changes = cluster.changes();
        let namespaces = Discovery::new(&options.cluster.proc, NETNS_MOUNTS.map(PathBuf::from));
        let rules = Rules::new(&options.control.pod_namespace);
        let controller = Controller::new(Captor(Arc::clone(&pods)), cluster, namespaces, rules);
        let socket = options.run_dir.join(SOCKET);
        let server = Server::bind(&socket)?;
        let mut tasks = JoinSet::new();
        let desk = Arc::new(controller.clone());
        tasks.spawn(async move {
            server.run(desk).await;
        });
        tasks.spawn(async move { controller.run(changes).await });
        let plugin = match options.cluster.cni {
            true => {
                let first = readiness.block("the CNI plugin in the node's chain");
                Some(install(options, socket, first).await?)
            }
            false => None,
        };
        tracing::info!(
            node,
            plugin = options.cluster.cni,
            "the cluster is followed"
        );
        Ok(Some(Self {
            client,
            namespace: options.control.pod_namespace.clone(),
            pods,
            plugin,
            _tasks: tasks,
        }))
    }

    /// Ends with the agent. When the mesh is being uninstalled, for its DaemonSet is gone or going, the pods are let
    /// go and the plugin is removed; else both stay for the next agent.
    pub async fn end(mut self) {
        if !self.is_uninstalled().await {
            return;
        }
        tracing::info!("the mesh is being uninstalled; pods are released");
        self._tasks.shutdown().await;
        self.pods.release_all().await;
        let Some(Plugin { installer, _keeper }) = self.plugin else {
            return;
        };
        drop(_keeper);
        match spawn_blocking(move || installer.remove()).await {
            Ok(Ok(())) => tracing::info!("the CNI plugin is removed"),
            Ok(Err(error)) => tracing::error!(%error, "the CNI plugin is still in the chain"),
            Err(error) => tracing::error!(%error, "the CNI plugin is still in the chain"),
        }
    }

    async fn is_uninstalled(&self) -> bool {
        let sets: Api<DaemonSet> = Api::namespaced(self.client.clone(), &self.namespace);
        match timeout(UNINSTALL_TIMEOUT, sets.get_metadata_opt(DAEMON_SET)).await {
            Ok(Ok(found)) => found.is_none_or(|set| set.metadata.deletion_timestamp.is_some()),
            // Nobody says so: pods stay captured.
            Ok(Err(_)) | Err(_) => false,
        }
    }
}

/// Lets kubelet's probes through, as far as kubelet is known.
async fn pass_probes(options: &NodeOptions, pods: &Pods) -> Result<(), RosterError> {
    let probes = place::probes(options);
    match &probes {
        Probes::Judged => tracing::warn!(
            "kubelet's control group is not found; its probes are judged like plain clients; give --kubelet-cgroup"
        ),
        Probes::Kubelet(group) => tracing::info!(group = %group.display(), "kubelet's probes pass"),
        Probes::From(addresses) => {
            tracing::info!(
                ?addresses,
                "connections from the node itself pass, as probes"
            );
        }
    }
    let capture = Arc::clone(&pods.capture);
    Ok(spawn_blocking(move || capture.pass_probes(&probes)).await??)
}

/// Puts the plugin into the node's chain, and keeps it there as long as the agent lives; it stays when the agent
/// goes, so that new pods wait for the next one. `first` is done when it is there for the first time.
async fn install(
    options: &NodeOptions,
    socket: PathBuf,
    first: ReadyGuard,
) -> Result<Plugin, RosterError> {
    let program = env::current_exe().map_err(RosterError::Program)?;
    let cluster = &options.cluster;
    let settings = Settings {
        bin_dir: cluster.cni_bin_dir.clone(),
        conf_dir: cluster.cni_conf_dir.clone(),
        when_agent_is_away: match cluster.cni_absent {
            Absent::Wait => WhenAway::Refuse,
            Absent::Start => WhenAway::Admit,
        },
        ..Settings::new(program, socket, &options.control.pod_namespace)
    };
    let installer = Installer::new(settings);
    let kept = installer.clone();
    let mut first = Some(first);
    let told = move |state| {
        if matches!(state, Ok(State::Chained(_))) {
            drop(first.take());
        }
        tell(state);
    };
    let keeper = spawn_blocking(move || Keeper::start(kept, told)).await??;
    Ok(Plugin {
        installer,
        _keeper: keeper,
    })
}

fn tell(state: Result<State, ChainError>) {
    match state {
        Ok(State::Chained(path)) => {
            tracing::info!(path = %path.display(), "the CNI plugin is in the chain");
        }
        Ok(State::NoNetwork) => tracing::warn!("the node has no CNI configuration yet"),
        Err(error) => tracing::error!(%error, "the CNI plugin is not in the chain"),
    }
}

fn access(options: &NodeOptions) -> Option<Access> {
    if options.standalone || options.machine.join.is_some() {
        return None;
    }
    match &options.cluster.kubeconfig {
        Some(path) => Some(Access::Kubeconfig {
            path: Some(path.clone()),
            context: None,
        }),
        None => env::var_os(IN_CLUSTER).map(|_| Access::InCluster),
    }
}
