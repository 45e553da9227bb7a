//! Turns resources into the parts of a mesh, one by one, whatever source they come from.
//!
//! Each function takes one resource and looks at others only through the `inventory`: what it looks at is what
//! the engine must mark to be translated again when that changes.
use undermesh_model::MeshBuilder;

use crate::{diagnostic::Diagnostic, engine::Engine, resources::Resource, settings::Settings};

mod endpoints;
pub(crate) mod findings;
pub(crate) mod inventory;
pub(crate) mod peer_authentication;
pub(crate) mod policies;
pub(crate) mod scope;
pub(crate) mod service_entries;
pub(crate) mod services;
pub(crate) mod waypoints;
pub(crate) mod workloads;

#[cfg(test)]
mod tests;

/// The parts of a mesh, and what of the resources is not in them.
#[derive(Debug, Default)]
pub struct Translation {
    /// Workloads, services, policies.
    pub builder: MeshBuilder,
    /// Resources that are not in force as written.
    pub diagnostics: Vec<Diagnostic>,
}

/// Translates the resources of one moment. The outcome does not depend on their order.
pub fn translate<'a>(
    resources: impl IntoIterator<Item = &'a Resource>,
    settings: &Settings,
) -> Translation {
    let mut engine = Engine::new(settings.clone());
    for resource in resources {
        engine.put(resource.clone());
    }
    engine.commit();
    Translation {
        builder: engine.builder(),
        diagnostics: engine.diagnostics().cloned().collect(),
    }
}
