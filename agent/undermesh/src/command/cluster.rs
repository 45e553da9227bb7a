//! The options of the verbs that work on a whole cluster.
use std::path::PathBuf;

use clap::{Args, Subcommand};
use undermesh_admission::analyze::AnalyzeArgs;
use undermesh_install::{InstallArgs, UninstallArgs, UpgradeArgs};
use undermesh_kubernetes::connect::Access;

/// Verbs that work on a cluster through its API.
#[derive(Debug, Subcommand)]
pub enum ClusterVerb {
    /// Install the mesh into a cluster, and wait until it is ready.
    Install(WithAccess<InstallArgs>),
    /// Bring an installation to this version, with its values kept unless given anew.
    Upgrade(WithAccess<UpgradeArgs>),
    /// Remove the mesh from a cluster; applications run on without it.
    Uninstall(WithConsent),
    /// Check manifests, or a cluster, for mistakes before they take effect.
    Analyze(WithAccess<AnalyzeArgs>),
}

/// A verb's own arguments, and which cluster.
#[derive(Debug, Args)]
pub struct WithAccess<A: Args> {
    #[command(flatten)]
    pub args: A,
    #[command(flatten)]
    pub cluster: ClusterAccess,
}

/// As [`WithAccess`], for what cannot be taken back.
#[derive(Debug, Args)]
pub struct WithConsent {
    #[command(flatten)]
    pub args: UninstallArgs,
    #[command(flatten)]
    pub cluster: ClusterAccess,
    /// Do not ask.
    #[arg(short, long)]
    pub yes: bool,
}

/// Which cluster.
#[derive(Clone, Debug, Args)]
pub struct ClusterAccess {
    /// The kubeconfig [default: KUBECONFIG, else ~/.kube/config, or the cluster that this runs in].
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// The context of the kubeconfig [default: its current one].
    #[arg(long, value_name = "NAME")]
    pub context: Option<String>,
}

impl ClusterAccess {
    /// How the API is reached.
    pub fn access(&self) -> Access {
        if self.kubeconfig.is_none() && self.context.is_none() {
            return Access::Automatic;
        }
        Access::Kubeconfig {
            path: self.kubeconfig.clone(),
            context: self.context.clone(),
        }
    }
}
