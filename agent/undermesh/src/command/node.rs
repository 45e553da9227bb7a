//! The options of `undermesh node`.
use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use clap::{Args, ValueEnum};
use undermesh_model::TrustDomain;
use undermesh_telemetry::Format as LogFormat;

use super::{DEFAULT_RUN_DIR, MachineOptions, loopback, workers};
use crate::duration;

/// Options of `undermesh node`.
#[derive(Clone, Debug, Args)]
pub struct NodeOptions {
    /// Take the configuration from a directory of manifests, with no control plane.
    #[arg(
        long,
        requires = "config",
        conflicts_with = "control_plane",
        env = "UNDERMESH_STANDALONE"
    )]
    pub standalone: bool,
    /// Directory of Kubernetes manifests; changes take effect at once.
    #[arg(
        long,
        value_name = "DIR",
        requires = "standalone",
        env = "UNDERMESH_CONFIG"
    )]
    pub config: Option<PathBuf>,
    #[command(flatten)]
    pub control: ControlOptions,
    #[command(flatten)]
    pub cluster: ClusterOptions,
    #[command(flatten)]
    pub machine: MachineOptions,
    /// Name of this node [default: the host's name].
    #[arg(long, value_name = "NAME", env = "NODE_NAME")]
    pub node_name: Option<String>,
    /// Where the certificate authority keeps its root [default: <run-dir>/ca].
    #[arg(long, value_name = "DIR", env = "UNDERMESH_CA_DIR")]
    pub ca_dir: Option<PathBuf>,
    /// Where the agent keeps its socket and state.
    #[arg(long, value_name = "DIR", default_value = DEFAULT_RUN_DIR, env = "UNDERMESH_RUN_DIR")]
    pub run_dir: PathBuf,
    /// A mounted BPF file system.
    #[arg(
        long,
        value_name = "DIR",
        default_value = "/sys/fs/bpf",
        env = "UNDERMESH_BPFFS"
    )]
    pub bpffs: PathBuf,
    /// Control group above the pods [default: kubepods.slice or kubepods under the cgroup v2 mount]; with --join, of
    /// the machine's workload.
    #[arg(long, value_name = "DIR", env = "UNDERMESH_CGROUP")]
    pub cgroup: Option<PathBuf>,
    /// Worker threads [default: one a CPU, at most 4].
    #[arg(long, value_name = "N", value_parser = workers, env = "UNDERMESH_WORKERS")]
    pub workers: Option<usize>,
    /// Where administration is served; a loopback address.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:15000", value_parser = loopback, env = "UNDERMESH_ADMIN_ADDRESS")]
    pub admin_address: SocketAddr,
    /// Where metrics are served.
    #[arg(
        long,
        value_name = "ADDRESS",
        default_value = "127.0.0.1:15020",
        env = "UNDERMESH_STATS_ADDRESS"
    )]
    pub stats_address: SocketAddr,
    /// Where readiness is served.
    #[arg(
        long,
        value_name = "ADDRESS",
        default_value = "127.0.0.1:15021",
        env = "UNDERMESH_READINESS_ADDRESS"
    )]
    pub readiness_address: SocketAddr,
    /// Trust domain of the mesh's identities.
    #[arg(
        long,
        value_name = "NAME",
        default_value = "cluster.local",
        env = "TRUST_DOMAIN"
    )]
    pub trust_domain: TrustDomain,
    /// Name of the cluster.
    #[arg(
        long,
        value_name = "NAME",
        default_value = "Kubernetes",
        env = "ISTIO_META_CLUSTER_ID"
    )]
    pub cluster_id: String,
    /// Network that the pods' addresses belong to.
    #[arg(long, value_name = "NAME", default_value = "", env = "NETWORK")]
    pub network: String,
    /// Lifetime of certificates; they are renewed at half of it.
    #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = duration::parse, env = "UNDERMESH_CERTIFICATE_LIFETIME")]
    pub certificate_lifetime: Duration,
    /// How long connections may take to end when a pod is released or the agent stops.
    #[arg(long, value_name = "DURATION", default_value = "25s", value_parser = duration::parse, env = "UNDERMESH_DRAIN_TIMEOUT")]
    pub drain_timeout: Duration,
    /// Form of the log: text or json.
    #[arg(
        long,
        value_name = "FORMAT",
        default_value = "text",
        env = "UNDERMESH_LOG_FORMAT"
    )]
    pub log_format: LogFormat,
    /// What is logged: a level, or target=level joined by commas.
    #[arg(
        long,
        value_name = "DIRECTIVES",
        default_value = "info",
        env = "UNDERMESH_LOG_LEVEL"
    )]
    pub log_level: String,
}

/// How the control plane is reached. The variables are those of Istio's node proxy.
#[derive(Clone, Debug, Args)]
pub struct ControlOptions {
    /// Take configuration and certificates from a control plane: ours, or istiod.
    #[arg(
        long,
        value_name = "URL",
        required_unless_present_any = ["standalone", "join"],
        env = "XDS_ADDRESS"
    )]
    pub control_plane: Option<String>,
    /// The name that the control plane's certificate must hold [default: the host of its URL].
    #[arg(long, value_name = "NAME", env = "ALT_XDS_HOSTNAME")]
    pub control_plane_name: Option<String>,
    /// Take certificates from another service than the control plane (istio-csr, for example).
    #[arg(long, value_name = "URL", env = "CA_ADDRESS")]
    pub ca: Option<String>,
    /// The name that the certificate service's certificate must hold [default: the host of its URL].
    #[arg(long, value_name = "NAME", env = "ALT_CA_HOSTNAME")]
    pub ca_name: Option<String>,
    /// Take certificates from SPIRE, by its agent's admin socket (Delegated Identity API).
    #[arg(
        long,
        value_name = "PATH",
        conflicts_with = "ca",
        env = "UNDERMESH_SPIRE_SOCKET"
    )]
    pub spire: Option<PathBuf>,
    /// Roots that verify the control plane, as PEM; `SYSTEM` takes those of the system.
    #[arg(
        long,
        value_name = "FILE",
        default_value = "/var/run/secrets/istio/root-cert.pem",
        env = "XDS_ROOT_CA"
    )]
    pub roots: PathBuf,
    /// Roots that verify the certificate service [default: as --roots].
    #[arg(long, value_name = "FILE", env = "CA_ROOT_CA")]
    pub ca_roots: Option<PathBuf>,
    /// The token that proves this agent; read again at every use.
    #[arg(
        long,
        value_name = "FILE",
        default_value = "/var/run/secrets/tokens/istio-token",
        env = "UNDERMESH_TOKEN_FILE"
    )]
    pub token_file: PathBuf,
    /// Name of the pod that this agent runs in.
    #[arg(long, value_name = "NAME", default_value = "", env = "POD_NAME")]
    pub pod_name: String,
    /// Namespace of the pod that this agent runs in.
    #[arg(
        long,
        value_name = "NS",
        default_value = "istio-system",
        env = "POD_NAMESPACE"
    )]
    pub pod_namespace: String,
    /// Address of this node.
    #[arg(long, value_name = "IP", env = "INSTANCE_IP")]
    pub instance_ip: Option<IpAddr>,
    /// What the control plane is asked for.
    #[arg(
        long,
        value_name = "WHAT",
        default_value = "on-demand",
        env = "UNDERMESH_SUBSCRIBE"
    )]
    pub subscribe: Subscribe,
}

/// What the control plane is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Subscribe {
    /// This node's pods, and whatever they talk to.
    OnDemand,
    /// The whole mesh.
    All,
}

/// How the pods of this node are found.
#[derive(Clone, Debug, Args)]
pub struct ClusterOptions {
    /// Follow the pods of this node through the Kubernetes API by this kubeconfig
    /// [default: the cluster that the agent runs in, if any].
    #[arg(long, value_name = "FILE", conflicts_with = "standalone")]
    pub kubeconfig: Option<PathBuf>,
    /// Install the CNI plugin on this node, so that new pods are in the mesh from their first packet.
    #[arg(long, env = "UNDERMESH_CNI")]
    pub cni: bool,
    /// Where the node's CNI plugins are.
    #[arg(
        long,
        value_name = "DIR",
        default_value = "/opt/cni/bin",
        env = "UNDERMESH_CNI_BIN_DIR"
    )]
    pub cni_bin_dir: PathBuf,
    /// Where the node's CNI configurations are.
    #[arg(
        long,
        value_name = "DIR",
        default_value = "/etc/cni/net.d",
        env = "UNDERMESH_CNI_CONF_DIR"
    )]
    pub cni_conf_dir: PathBuf,
    /// What becomes of new pods while this agent is away.
    #[arg(
        long,
        value_name = "WHAT",
        default_value = "wait",
        env = "UNDERMESH_CNI_ABSENT"
    )]
    pub cni_absent: Absent,
    /// The host's process table.
    #[arg(
        long,
        value_name = "DIR",
        default_value = "/proc",
        env = "UNDERMESH_PROC"
    )]
    pub proc: PathBuf,
    /// Control group of kubelet, whose probes reach pods under any policy
    /// [default: system.slice/kubelet.service under the cgroup v2 mount].
    #[arg(long, value_name = "DIR", env = "UNDERMESH_KUBELET_CGROUP")]
    pub kubelet_cgroup: Option<PathBuf>,
    /// Addresses of this node, by which probes are known where kubelet's control group is not found; every other
    /// process of the node passes with them.
    #[arg(
        long = "node-address",
        value_name = "IP",
        value_delimiter = ',',
        env = "HOST_IP"
    )]
    pub node_addresses: Vec<IpAddr>,
}

/// What becomes of new pods while the agent is away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Absent {
    /// They wait for it: none runs uncaptured.
    Wait,
    /// They start, and are captured when it is back.
    Start,
}
