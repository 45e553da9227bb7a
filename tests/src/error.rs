//! What the testbed could not do, and why.

use std::fmt::Display;

/// A result of the testbed.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// One failed step, in the words of the step, with its cause.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The run lacks a right that only root has.
    #[error("the testbed makes namespaces and so must run as root; run it with sudo")]
    NotRoot,
    /// A step of the testbed failed.
    #[error("{step}: {cause}")]
    Step {
        /// What was being done.
        step: String,
        /// Why it failed.
        cause: String,
    },
}

impl Error {
    /// The failure of `step` with its `cause`.
    pub fn step(step: impl Display, cause: impl Display) -> Self {
        Self::Step {
            step: step.to_string(),
            cause: cause.to_string(),
        }
    }
}

/// Names the step that failed.
pub trait Context<T> {
    /// Turns the error into an [`Error::Step`] of the step that `step` names.
    ///
    /// # Errors
    /// The error it was called on.
    fn context<S: Display>(self, step: impl FnOnce() -> S) -> Result<T>;
}

impl<T, E: Display> Context<T> for std::result::Result<T, E> {
    fn context<S: Display>(self, step: impl FnOnce() -> S) -> Result<T> {
        self.map_err(|cause| Error::step(step(), cause))
    }
}

impl<T> Context<T> for Option<T> {
    fn context<S: Display>(self, step: impl FnOnce() -> S) -> Result<T> {
        self.ok_or_else(|| Error::step(step(), "there is none"))
    }
}
