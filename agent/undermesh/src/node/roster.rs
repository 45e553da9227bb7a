//! Which pods of this node are in the mesh, as the cluster says: followed through the Kubernetes API, and asked by the
//! CNI plugin.
use std::{env, io, path::PathBuf, sync::Arc};

use tokio::task::{JoinSet, spawn_blocking};
use undermesh_cni::{
    chain::{ChainError, Installer, Keeper, Settings, State},
    discovery::Discovery,
    membership::Rules,
    node::{Controller, Kubernetes},
    plugin::WhenAway,
    server::{Server, ServerError},
};
use undermesh_kubernetes::connect::{self, Access, ConnectError};

use super::{enroller::Captor, pods::Pods};
use crate::command::{Absent, NodeOptions};

/// The socket on which the CNI plugin asks, in the run directory.
const SOCKET: &str = "cni.sock";
/// Where container runtimes mount the network namespaces of pods.
const NETNS_MOUNTS: [&str; 2] = ["/run/netns", "/var/run/netns"];
/// Set in every pod of a cluster.
const IN_CLUSTER: &str = "KUBERNETES_SERVICE_HOST";

/// Why the cluster is not followed.
#[derive(Debug, thiserror::Error)]
pub enum RosterError {
    /// The API server.
    #[error(transparent)]
    Connect(#[from] ConnectError),
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
    _tasks: JoinSet<()>,
    _keeper: Option<Keeper>,
}

impl Roster {
    /// Begins to follow the cluster, if there is one. Call it once the pods of an earlier agent are served.
    ///
    /// # Errors
    /// When the cluster cannot be reached as told, or the plugin cannot be installed.
    pub async fn start(
        options: &NodeOptions,
        node: &str,
        pods: Arc<Pods>,
    ) -> Result<Option<Self>, RosterError> {
        let Some(access) = access(options) else {
            return if options.cluster.cni {
                Err(RosterError::NoCluster)
            } else {
                Ok(None)
            };
        };
        let cluster = Kubernetes::new(connect::connect(&access).await?, node);
        let changes = cluster.changes();
        let namespaces = Discovery::new(&options.cluster.proc, NETNS_MOUNTS.map(PathBuf::from));
        let rules = Rules::new(&options.control.pod_namespace);
        let controller = Controller::new(Captor(pods), cluster, namespaces, rules);
        let socket = options.run_dir.join(SOCKET);
        let server = Server::bind(&socket)?;
        let mut tasks = JoinSet::new();
        let desk = Arc::new(controller.clone());
        tasks.spawn(async move {
            server.run(desk).await;
        });
        tasks.spawn(async move { controller.run(changes).await });
        let keeper = match options.cluster.cni {
            true => Some(install(options, socket).await?),
            false => None,
        };
        tracing::info!(
            node,
            plugin = options.cluster.cni,
            "the cluster is followed"
        );
        Ok(Some(Self {
            _tasks: tasks,
            _keeper: keeper,
        }))
    }
}

/// Puts the plugin into the node's chain, and keeps it there as long as the agent lives; it stays when the agent
/// goes, so that new pods wait for the next one.
async fn install(options: &NodeOptions, socket: PathBuf) -> Result<Keeper, RosterError> {
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
    let start = move || Keeper::start(Installer::new(settings), tell);
    Ok(spawn_blocking(start).await??)
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
    if options.standalone {
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
