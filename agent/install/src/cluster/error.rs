//! Why an installation did not come about.
use std::time::Duration;

use crate::chart::{ChartError, ValuesError};

/// Why a verb did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum InstallError {
    /// The values do not fit.
    #[error("{0}")]
    Values(#[from] ValuesError),
    /// The chart does not render.
    #[error("{0}")]
    Chart(#[from] ChartError),
    /// The manifests cannot be printed.
    #[error("cannot write the manifests: {0}; report this as a bug")]
    Print(String),
    /// The cluster does not answer.
    #[error("the API server cannot be reached: {0}; check the kubeconfig and its current context")]
    Unreachable(#[source] kube::Error),
    /// The preflight found problems.
    #[error(
        "{0} problems stand against it, as listed; solve them, or go on regardless with --ignore-problems"
    )]
    Preflight(usize),
    /// A field belongs to somebody else.
    #[error(
        "{object} has fields that somebody else has set: {message}; take them over with --force-conflicts"
    )]
    Conflict {
        /// The object.
        object: String,
        /// What the API server said.
        message: String,
    },
    /// The caller may not.
    #[error(
        "{action} {object} is not allowed: {message}; use an account with the right to do so, such as cluster-admin"
    )]
    Forbidden {
        /// What was tried.
        action: &'static str,
        /// The object.
        object: String,
        /// What the API server said.
        message: String,
    },
    /// The API server refused or failed.
    #[error(
        "cannot {action} {object}: {source}; what was done so far stays, and the same command goes on from there"
    )]
    Request {
        /// What was tried.
        action: &'static str,
        /// The object.
        object: String,
        /// What happened.
        source: kube::Error,
    },
    /// Something does not become ready.
    #[error("{object} is not ready after {} s{reason}; the same command goes on waiting", .after.as_secs())]
    NotReady {
        /// The object.
        object: String,
        /// How long was waited.
        after: Duration,
        /// What its pods say; begins with ": " when there is something.
        reason: String,
    },
    /// Something does not go.
    #[error(
        "{object} is not gone after {} s; see what holds it with `kubectl describe`, then use the same command again",
        .after.as_secs()
    )]
    NotGone {
        /// The object.
        object: String,
        /// How long was waited.
        after: Duration,
    },
    /// There is nothing to upgrade or uninstall.
    #[error(
        "there is no installation in the namespace {0}; name its namespace with --namespace, or use `undermesh install`"
    )]
    NotInstalled(String),
    /// Helm looks after it.
    #[error(
        "the installation in the namespace {0} belongs to Helm; use `helm uninstall`, or `helm upgrade`"
    )]
    Helm(String),
    /// The record of an installation cannot be read.
    #[error(
        "the ConfigMap {0} does not say how undermesh was installed; use `undermesh install` with all values"
    )]
    Record(String),
}

impl InstallError {
    /// Sorts an answer of the API server.
    pub(super) fn request(action: &'static str, object: &str, source: kube::Error) -> Self {
        let object = object.to_owned();
        match source {
            kube::Error::Api(status) if status.code == 409 && action == "apply" => Self::Conflict {
                object,
                message: status.message,
            },
            kube::Error::Api(status) if status.code == 403 => Self::Forbidden {
                action,
                object,
                message: status.message,
            },
            source => Self::Request {
                action,
                object,
                source,
            },
        }
    }
}
