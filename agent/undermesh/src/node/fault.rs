//! Why a pod was not taken up or given up, and how the API says it.
use http::StatusCode;
use undermesh_capture::{CaptureError, NetnsError};
use undermesh_model::{Identity, IdentityError};
use undermesh_tunnel::WorkersError;

use crate::api::{Refusal, types::PodKey};

/// Why a pod was not taken up or given up.
#[derive(Debug, thiserror::Error)]
pub enum PodError {
    /// Capture.
    #[error(transparent)]
    Capture(#[from] CaptureError),
    /// The data plane.
    #[error(transparent)]
    Workers(#[from] WorkersError),
    /// The names make no identity.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The first certificate did not come in time.
    #[error("{reason}; check the certificate authority, then enroll the pod again")]
    Certificate {
        /// How the certificate stands.
        reason: String,
    },
    /// The manifests give the pod another identity.
    #[error(
        "{key} runs as {wanted}, but the manifests say {declared}; enroll it with that service account, or correct the manifest"
    )]
    OtherIdentity {
        /// The pod.
        key: PodKey,
        /// What the enrollment asks for.
        wanted: Box<Identity>,
        /// What the manifests say.
        declared: Box<Identity>,
    },
    /// The path of its namespace leads to another one by now.
    #[error(
        "the network namespace of {0} is another one than was meant; the pod has restarted, enroll it again"
    )]
    OtherNamespace(PodKey),
    /// No such pod.
    #[error("{0} is not enrolled; see 'undermesh list'")]
    Unknown(PodKey),
    /// Captured by an earlier agent, and not served by this one.
    #[error(
        "{0} could not be served again after the agent's restart; release it and enroll it anew"
    )]
    Unserved(PodKey),
    /// The system refused.
    #[error("{what} could not be done: {error}; check the limits of the agent's process")]
    System {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        error: std::io::Error,
    },
}

impl From<PodError> for Refusal {
    fn from(error: PodError) -> Self {
        let status = match &error {
            PodError::Capture(error) => capture_status(error),
            PodError::Identity(_) => StatusCode::BAD_REQUEST,
            PodError::OtherIdentity { .. }
            | PodError::OtherNamespace(_)
            | PodError::Unserved(_) => StatusCode::CONFLICT,
            PodError::Unknown(_) => StatusCode::NOT_FOUND,
            PodError::Certificate { .. } => StatusCode::SERVICE_UNAVAILABLE,
            PodError::Workers(_) | PodError::System { .. } => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::from_error(status, &error)
    }
}

fn capture_status(error: &CaptureError) -> StatusCode {
    match error {
        CaptureError::Conflict { .. } | CaptureError::NoAddress(_) => StatusCode::CONFLICT,
        CaptureError::NotEnrolled(_) => StatusCode::NOT_FOUND,
        CaptureError::Full => StatusCode::SERVICE_UNAVAILABLE,
        CaptureError::Netns(
            NetnsError::Open { .. } | NetnsError::NotANamespace(_) | NetnsError::Host(_),
        ) => StatusCode::BAD_REQUEST,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    }
}
