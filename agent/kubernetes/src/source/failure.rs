//! What can go wrong with a list or a watch, and how to go on.
use std::{fmt, time::Duration};

use kube::core::Status;

use crate::connect::chain;

/// How to go on after a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Remedy {
    /// The same again, from where it stood.
    Resume,
    /// The versions are too old; list anew.
    ListAgain,
}

/// Why a list or a watch did not go through.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    message: String,
    /// The status of the API server's answer, when there was one.
    code: Option<u16>,
    pub remedy: Remedy,
    /// Shortest wait that the API server asked for.
    pub retry_after: Duration,
}

/// Longest wait that an API server can ask for.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(60);

impl Failure {
    fn new(message: String) -> Self {
        Self {
            message,
            code: None,
            remedy: Remedy::Resume,
            retry_after: Duration::ZERO,
        }
    }

    /// The API server did not answer in time.
    pub fn silence() -> Self {
        Self::new("the API server does not answer; check that it is reachable".to_owned())
    }

    /// A watch that ended at once and told nothing.
    pub fn short_watch() -> Self {
        Self::new("the API server ended the watch at once".to_owned())
    }

    /// A request that could not be put together.
    pub fn request(error: kube::core::request::Error) -> Self {
        Self::new(format!("cannot make the request: {error}"))
    }

    /// What the API server said.
    pub fn status(status: &Status) -> Self {
        let advice = match status.code {
            401 => "; renew our credentials",
            403 => "; allow us to list and watch them",
            _ => "",
        };
        let asked = status
            .details
            .as_ref()
            .map_or(0, |it| it.retry_after_seconds);
        let remedy = match status.code {
            410 => Remedy::ListAgain,
            _ => Remedy::Resume,
        };
        Self {
            message: format!(
                "{} {}: {}{advice}",
                status.code, status.reason, status.message
            ),
            code: Some(status.code),
            remedy,
            retry_after: Duration::from_secs(asked.into()).min(MAX_RETRY_AFTER),
        }
    }

    /// The same failure of a watch that did not begin: when the API server does not know the kind any more or
    /// cannot make sense of the version, only a list leads on.
    pub fn at_start(self) -> Self {
        let refused = matches!(self.code, Some(400 | 404 | 504));
        Self {
            remedy: if refused {
                Remedy::ListAgain
            } else {
                self.remedy
            },
            ..self
        }
    }

    /// Whether a version is no longer kept: part of the ordinary life of lists and watches.
    pub fn is_expiry(&self) -> bool {
        self.code == Some(410)
    }
}

impl From<kube::Error> for Failure {
    fn from(error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => Self::status(&status),
            // An event was lost; only a list makes up for it.
            error @ kube::Error::SerdeError(_) => Self {
                remedy: Remedy::ListAgain,
                ..Self::new(chain(&error))
            },
            error => Self::new(chain(&error)),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}
