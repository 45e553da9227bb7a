//! The cluster's manifests: rendered, applied, checked.
//!
//! The Helm chart in `deploy/chart` is the one source: [`chart`] renders it as Helm does, [`cluster`] brings the
//! result into a cluster and out of it again.
#![forbid(unsafe_code)]

pub mod args;
pub mod chart;
pub mod cluster;
mod kinds;

pub use args::{InstallArgs, UninstallArgs, UpgradeArgs};
pub use cluster::{Event, InstallError, Lines, Problem, Progress, Summary};
pub use kinds::{Kind, Scope};
