//! Machines outside the cluster: how they join, how the controller registers them, and how their applications are
//! checked. Istio's conventions hold: WorkloadGroup, automatic WorkloadEntries, their annotations and conditions.
//!
//! An operator makes a join token of a WorkloadGroup ([`issue`]). The machine's agent proves itself with it until it
//! has a certificate ([`credentials`]), registers on its stream of discovery ([`registrar`], whose rules are in
//! [`ledger`]), and reports what its probe finds ([`prober`], whose rules are in [`monitor`]).
#![forbid(unsafe_code)]

pub mod address;
pub mod cluster;
pub mod credentials;
pub mod entry;
pub mod group;
pub mod issue;
pub mod join;
pub mod ledger;
pub mod monitor;
mod names;
pub mod probe;
pub mod prober;
pub mod registrar;

pub use credentials::JoinCredentials;
pub use group::WorkloadGroup;
pub use join::JoinToken;
pub use probe::Probe;
pub use registrar::Registrar;
