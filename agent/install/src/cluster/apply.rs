//! Server-side apply, object by object.
use std::fmt;

use kube::{
    Client,
    api::{Patch, PatchParams},
};

use super::{Event, FIELD_MANAGER, InstallError, Progress, api, labels};
use crate::{args::ApplyArgs, chart::Manifest};

/// What applying an object took.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It was made.
    Created,
    /// It was changed.
    Updated,
    /// It was as it should be.
    Unchanged,
    /// It belongs to somebody else and stays as it is.
    Kept,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Created => "created",
            Self::Updated => "updated",
            Self::Unchanged => "unchanged",
            Self::Kept => "kept as it is",
        })
    }
}

/// Makes the object what the manifest says.
///
/// # Errors
/// When the API server refuses, and when a field belongs to somebody else unless that is to be overruled.
pub(super) async fn apply(
    client: &Client,
    manifest: &Manifest,
    args: &ApplyArgs,
    progress: &mut dyn Progress,
) -> Result<Change, InstallError> {
    let object = manifest.to_string();
    let error = |source| InstallError::request("apply", &object, source);
    let api = api(
        client,
        manifest.kind(),
        manifest.namespace().unwrap_or_default(),
    );
    let before = api.get_opt(manifest.name()).await.map_err(error)?;
    let change = match before {
        Some(before) if is_definition(manifest) && !labels::is_mesh(&before.metadata) => {
            Change::Kept
        }
        before => {
            let params = PatchParams {
                force: args.force_conflicts,
                ..PatchParams::apply(FIELD_MANAGER)
            };
            let after = api
                .patch(manifest.name(), &params, &Patch::Apply(manifest.object()))
                .await
                .map_err(error)?;
            match before {
                None => Change::Created,
                Some(before)
                    if before.metadata.resource_version == after.metadata.resource_version =>
                {
                    Change::Unchanged
                }
                Some(_) => Change::Updated,
            }
        }
    };
    progress.event(&Event::Applied {
        object: &object,
        change,
    });
    Ok(change)
}

/// Istio's definitions are not ours to replace.
fn is_definition(manifest: &Manifest) -> bool {
    manifest.kind().kind == "CustomResourceDefinition"
}
