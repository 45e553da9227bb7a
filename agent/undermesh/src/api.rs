//! The local API: HTTP/1.1 and JSON on a unix socket that only root may open.
pub mod client;
pub mod server;
pub mod socket;
pub mod types;

use std::time::Duration;

use futures::future::BoxFuture;
use http::StatusCode;
use undermesh_capture::Enrollment;
use undermesh_identity::CertificateReport;
use undermesh_telemetry::ConnectionView;

use types::{Pod, PodKey, Status};

/// What the API asks of the node.
pub trait Node: Send + Sync + 'static {
    /// Takes a pod into the mesh; the same pod again is no error.
    fn enroll(&self, enrollment: Enrollment) -> BoxFuture<'_, Result<Pod, Refusal>>;
    /// Takes a pod out of the mesh once its connections ended, or after `drain` (`None`: the node's own).
    fn release(&self, pod: PodKey, drain: Option<Duration>) -> BoxFuture<'_, Result<Pod, Refusal>>;
    /// The enrolled pods, in the order of their names.
    fn pods(&self) -> Vec<Pod>;
    /// How the node is doing.
    fn status(&self) -> Status;
    /// The open connections, oldest first.
    fn connections(&self) -> Vec<ConnectionView>;
    /// The certificates of the identities in use.
    fn certificates(&self) -> Vec<CertificateReport>;
    /// The configuration in force, as JSON.
    fn config(&self) -> Result<String, Refusal>;
    /// The log's directives.
    fn log_level(&self) -> String;
    /// Replaces the log's directives.
    fn set_log_level(&self, directives: &str) -> Result<(), Refusal>;
}

/// A request that the node did not do, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{error}; {remedy}")]
pub struct Refusal {
    /// 4xx when the request is at fault, 5xx when the node is.
    pub status: StatusCode,
    /// What is wrong.
    pub error: String,
    /// What to do.
    pub remedy: String,
}

impl Refusal {
    /// A refusal in words.
    pub fn new(status: StatusCode, error: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            status,
            error: error.into(),
            remedy: remedy.into(),
        }
    }

    /// A refusal by an error that already says `what; remedy`.
    pub fn from_error(status: StatusCode, error: &dyn std::error::Error) -> Self {
        let text = error.to_string();
        let (error, remedy) = text
            .rsplit_once("; ")
            .unwrap_or((&text, "see the agent's log"));
        Self::new(status, error, remedy)
    }
}

#[cfg(test)]
pub(crate) mod tests;
