//! The options of a machine outside Kubernetes, and of the verb that lets one join.
use std::{net::IpAddr, path::PathBuf, time::Duration};

use clap::{Args, Subcommand, ValueEnum};
use undermesh_model::TrustDomain;

use super::WithAccess;
use crate::duration;

/// How `undermesh node` runs on a machine.
#[derive(Clone, Debug, Args)]
pub struct MachineOptions {
    /// Join a cluster from outside with the join token in this file, or on standard input (-); the processes of
    /// --cgroup are the machine's workload.
    #[arg(
        long,
        value_name = "FILE",
        requires = "cgroup",
        conflicts_with_all = ["standalone", "control_plane", "ca", "spire", "kubeconfig", "cni"],
        env = "UNDERMESH_JOIN"
    )]
    pub join: Option<PathBuf>,
    /// The address by which the cluster reaches this machine [default: the one that its packets to the controller have].
    #[arg(long, value_name = "IP", requires = "join", env = "UNDERMESH_ADDRESS")]
    pub address: Option<IpAddr>,
    /// What becomes of the machine's processes when the agent stops in order.
    #[arg(
        long,
        value_name = "WHAT",
        default_value = "release",
        env = "UNDERMESH_AT_STOP"
    )]
    pub at_stop: AtStop,
}

/// What becomes of a machine's processes when its agent stops in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum AtStop {
    /// They leave the mesh, and talk as they did before it.
    Release,
    /// They stay captured: their connections are refused until an agent is back, as after a crash.
    Keep,
}

/// Verbs of `undermesh token`.
#[derive(Debug, Subcommand)]
pub enum TokenVerb {
    /// Make a join token of a WorkloadGroup and print it. It is a secret: who has it can be a machine of the group.
    Create(WithAccess<TokenArgs>),
}

/// Arguments of `undermesh token create`.
#[derive(Debug, Args)]
pub struct TokenArgs {
    /// The WorkloadGroup.
    #[arg(value_name = "GROUP")]
    pub group: String,
    /// Its namespace.
    #[arg(short, long, value_name = "NS", default_value = "default")]
    pub namespace: String,
    /// How long the token may be used to join; at least 10m.
    #[arg(long, value_name = "DURATION", default_value = "1h", value_parser = duration::parse)]
    pub ttl: Duration,
    /// Where machines reach the controller [default: its load balancer].
    #[arg(long, value_name = "URL")]
    pub controller: Option<String>,
    /// Namespace of the controller.
    #[arg(long, value_name = "NS", default_value = "istio-system")]
    pub system_namespace: String,
    /// Trust domain of the mesh.
    #[arg(long, value_name = "NAME", default_value = "cluster.local")]
    pub trust_domain: TrustDomain,
    /// Name of the cluster.
    #[arg(long, value_name = "NAME", default_value = "Kubernetes")]
    pub cluster_id: String,
    /// Form of the answer.
    #[arg(short, long, value_name = "FORM", default_value = "text")]
    pub output: TokenForm,
}

/// Form of a join token on the terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TokenForm {
    /// The token alone.
    Text,
    /// The token, and what it is for.
    Json,
}
