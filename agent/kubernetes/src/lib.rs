//! The mesh's side of the Kubernetes API: what is followed, who called, who leads.
#![forbid(unsafe_code)]

pub mod connect;
pub mod lease;
pub mod pods;
pub mod source;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod tokens;

pub use connect::{Access, ConnectError, connect, connect_checked};
pub use lease::{Candidate, Leadership, LeaseSettings};
pub use pods::{PodIndex, PodRecord};
pub use source::{Source, SourceSettings, Update};
pub use tokens::{ReviewSettings, TokenReviewer};
