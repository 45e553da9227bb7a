//! Validation of resources, by one judgement in three places: `undermesh analyze`, the admission webhook, and the
//! conditions on the resources themselves.
//!
//! What an object says is read and translated by `undermesh-control`; this crate adds what can only be seen
//! with other objects at hand ([`examine`]), and tells people about it where they look.
#![forbid(unsafe_code)]

pub mod analyze;
mod checks;
pub mod examine;
mod kinds;
mod network;
pub mod status;
pub mod webhook;

pub use analyze::{AnalyzeArgs, AnalyzeError, Summary};
pub use examine::Examination;
