//! The options of `undermesh controller`.
use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::Args;
use undermesh_ca::access::NodeAccount;
use undermesh_model::TrustDomain;
use undermesh_telemetry::Format as LogFormat;

use crate::duration;

/// Options of `undermesh controller`.
#[derive(Clone, Debug, Args)]
pub struct ControllerOptions {
    /// Reach the Kubernetes API by this kubeconfig [default: the cluster that the controller runs in].
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Namespace of the controller; its policies govern the whole mesh.
    #[arg(
        long,
        value_name = "NS",
        default_value = "istio-system",
        env = "POD_NAMESPACE"
    )]
    pub namespace: String,
    /// Name of this replica, unique among them [default: the host's name].
    #[arg(long, value_name = "NAME", env = "POD_NAME")]
    pub name: Option<String>,
    /// Service accounts of node agents (NAMESPACE/NAME), which may ask for the identities of their nodes' pods;
    /// may be given more than once [default: undermesh-node and ztunnel in the controller's namespace].
    #[arg(
        long = "node-account",
        value_name = "NS/NAME",
        value_delimiter = ',',
        env = "CA_TRUSTED_NODE_ACCOUNTS"
    )]
    pub node_accounts: Vec<NodeAccount>,
    /// Where nodes are served with configuration and certificates.
    #[arg(
        long,
        value_name = "ADDRESS",
        default_value = "[::]:15012",
        env = "UNDERMESH_DISCOVERY_ADDRESS"
    )]
    pub discovery_address: SocketAddr,
    /// Where the API server has resources checked.
    #[arg(
        long,
        value_name = "ADDRESS",
        default_value = "[::]:15017",
        env = "UNDERMESH_WEBHOOK_ADDRESS"
    )]
    pub webhook_address: SocketAddr,
    /// Where metrics are served.
    #[arg(
        long,
        value_name = "ADDRESS",
        default_value = "[::]:15014",
        env = "UNDERMESH_STATS_ADDRESS"
    )]
    pub stats_address: SocketAddr,
    /// Where readiness is served.
    #[arg(
        long,
        value_name = "ADDRESS",
        default_value = "[::]:15021",
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
        env = "CLUSTER_ID"
    )]
    pub cluster_id: String,
    /// Network that the pods' addresses belong to.
    #[arg(long, value_name = "NAME", default_value = "", env = "NETWORK")]
    pub network: String,
    /// Lifetime of certificates for those who ask for none.
    #[arg(long, value_name = "DURATION", default_value = "24h", value_parser = duration::parse, env = "UNDERMESH_CERTIFICATE_LIFETIME")]
    pub certificate_lifetime: Duration,
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
