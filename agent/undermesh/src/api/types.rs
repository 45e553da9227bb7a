//! What goes over the API.
use std::{collections::BTreeMap, fmt, net::IpAddr, path::PathBuf, sync::Arc};

use serde::{Deserialize, Serialize};
use undermesh_capture::Enrollment;

/// Which pod.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PodKey {
    /// Its Kubernetes namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
}

impl PodKey {
    /// The key of an enrollment.
    pub fn of(enrollment: &Enrollment) -> Self {
        Self {
            namespace: enrollment.namespace().into(),
            name: enrollment.name().into(),
        }
    }
}

impl fmt::Display for PodKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// The body of POST /v1/pods.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EnrollRequest {
    /// Path of the pod's network namespace.
    pub netns: PathBuf,
    /// The pod's Kubernetes namespace.
    pub namespace: String,
    /// The pod's name.
    pub name: String,
    /// The pod's service account.
    pub service_account: String,
}

/// How far a pod is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PodState {
    /// Served.
    Active,
    /// Being released: open connections may end, new ones are refused.
    Draining,
    /// Captured, and not in the manifests yet: its connections are refused.
    Pending,
}

impl PodState {
    /// The word that tables show.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Draining => "draining",
            Self::Pending => "pending",
        }
    }
}

/// An enrolled pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pod {
    /// Its Kubernetes namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its service account.
    pub service_account: String,
    /// The identity that it runs under.
    pub identity: String,
    /// Path of its network namespace.
    pub netns: PathBuf,
    /// The kernel's name of that namespace.
    pub netns_cookie: u64,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// How far it is.
    pub state: PodState,
    /// Connections open now.
    pub connections: usize,
}

/// How the node is doing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// The agent's version.
    pub version: String,
    /// The node's name.
    pub node: String,
    /// The running kernel.
    pub kernel: Kernel,
    /// Milliseconds since the start.
    pub uptime_ms: u64,
    /// What readiness waits for; empty when ready.
    pub waiting_for: Vec<String>,
    /// Where the configuration comes from.
    pub source: Source,
    /// Pods by state.
    pub pods: PodCounts,
    /// Open connections.
    pub connections: usize,
    /// Certificates by state.
    pub certificates: BTreeMap<String, usize>,
    /// What capture has counted, by name.
    pub capture: BTreeMap<String, u64>,
}

/// The kernel, as far as capture depends on it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Kernel {
    /// Its release (uname(2)).
    pub release: String,
    /// The hooks that capture holds in it.
    pub hooks: Vec<String>,
}

/// The configuration's source.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Source {
    /// The directory, if it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub directory: Option<PathBuf>,
    /// The control plane, if it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub control_plane: Option<ControlPlane>,
    /// How often the configuration was replaced since the start.
    pub generation: u64,
    /// Objects in force, by kind.
    pub counts: BTreeMap<String, usize>,
    /// Why the directory could not be read last time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// What is wrong with the manifests.
    pub diagnostics: Vec<Finding>,
}

/// A control plane and how the node stands with it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ControlPlane {
    /// Where it is.
    pub address: String,
    /// Whether it is connected.
    pub connected: bool,
    /// Whether it has told all that is asked of it as a whole.
    pub complete: bool,
    /// Names that are asked for on demand.
    pub names: usize,
    /// Resources that could not be taken, each with its reason; their former versions stay in force.
    pub rejected: Vec<String>,
    /// What ended the last connection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// One thing that is wrong with a manifest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// `error`, `warning` or `info`.
    pub severity: String,
    /// The file, in the directory.
    pub file: String,
    /// The line, from 1; 0 is the whole file.
    pub line: usize,
    /// The whole finding on one line, with file, line, field and remedy.
    pub text: String,
}

/// Pods by state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodCounts {
    /// Served.
    pub active: usize,
    /// Waiting for their manifest.
    pub pending: usize,
    /// Being released.
    pub draining: usize,
}

/// The log's directives.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLevel {
    /// For example `info,undermesh_tunnel=debug`.
    pub level: String,
}

/// The body of an answer with status 4xx or 5xx.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// What is wrong.
    pub error: String,
    /// What to do.
    #[serde(default)]
    pub remedy: String,
}

/// A certificate, as far as tables show it (the whole is [`undermesh_identity::CertificateReport`]).
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CertificateRow {
    /// Whose.
    pub identity: String,
    /// How it stands.
    pub state: String,
    /// Its serial number.
    pub serial: Option<String>,
    /// RFC 3339.
    pub not_after: Option<String>,
    /// RFC 3339.
    pub renewal: Option<String>,
    /// Why the last attempt failed.
    pub last_error: Option<String>,
}
