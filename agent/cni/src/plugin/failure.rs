//! Errors in the form of the CNI specification ("Error").
use std::fmt;

use serde::Serialize;

/// Error codes of the CNI specification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// The plugin does not speak the version asked for.
    IncompatibleVersion = 1,
    /// An environment variable is missing or wrong.
    InvalidEnvironment = 4,
    /// Reading or writing failed.
    Io = 5,
    /// The network configuration is not JSON of the right form.
    Undecodable = 6,
    /// The network configuration says something that cannot be.
    InvalidConfig = 7,
    /// It may work later; the runtime should try again.
    TryAgainLater = 11,
}

/// What went wrong, for the container runtime and, through it, the events of the pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The code.
    pub code: Code,
    message: String,
    details: String,
}

impl Failure {
    /// A failure by its short message and its details.
    pub fn new(code: Code, message: impl Into<String>, details: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            details: details.into(),
        }
    }

    /// The form on standard output.
    pub fn to_json(&self, version: &str) -> String {
        #[derive(Serialize)]
        #[serde(rename_all = "camelCase")]
        struct Form<'a> {
            cni_version: &'a str,
            code: u32,
            msg: &'a str,
            details: &'a str,
        }
        let form = Form {
            cni_version: version,
            code: self.code as u32,
            msg: &self.message,
            details: &self.details,
        };
        // Strings and a number always have a JSON form; an empty answer is a failure to the runtime too.
        serde_json::to_string(&form).unwrap_or_default()
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.message, self.details)
    }
}
