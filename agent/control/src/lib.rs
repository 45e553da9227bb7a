//! Sources of configuration and their translation to the model.
//!
//! A source yields [`resources`], typed and checked; the [`Engine`] turns their changes into changes of the
//! parts of a mesh. The source here is a directory of Kubernetes manifests ([`DirectorySource`]); an API server
//! is another one. What is wrong with an object is a [`Diagnostic`]; it never stops the other objects.
#![deny(unsafe_code)]

pub mod diagnostic;
pub mod directory;
pub mod engine;
#[cfg(test)]
mod fixture;
pub mod manifest;
pub mod path;
pub mod resources;
pub mod settings;
mod store;
mod succession;
pub mod translate;
pub mod value;
mod walk;
mod watch;

pub use diagnostic::{Diagnostic, Severity};
pub use directory::{DirectorySource, Snapshot, SourceError};
pub use engine::{Change, Commit, Engine};
pub use settings::{Settings, Source};
