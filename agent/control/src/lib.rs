//! Sources of configuration and their translation to the model.
//!
//! A source yields [`resources`], typed and checked; [`translate`] turns them into the parts of a mesh. The
//! source here is a directory of Kubernetes manifests ([`DirectorySource`]). What is wrong with a document is a
//! [`Diagnostic`]; it never stops the other documents.
#![deny(unsafe_code)]

pub mod diagnostic;
pub mod directory;
#[cfg(test)]
mod fixture;
pub mod manifest;
pub mod path;
pub mod resources;
pub mod settings;
mod store;
pub mod translate;
pub mod value;
mod walk;
mod watch;

pub use diagnostic::{Diagnostic, Severity};
pub use directory::{DirectorySource, Snapshot, SourceError};
pub use settings::Settings;
