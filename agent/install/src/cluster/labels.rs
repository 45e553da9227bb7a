//! Labels by which an installation knows its objects.
use kube::core::ObjectMeta;

/// Recommended label: who looks after the object (Kubernetes documentation, "Recommended Labels").
pub(super) const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// Recommended label: the application that the object belongs to.
pub(super) const PART_OF: &str = "app.kubernetes.io/part-of";
/// The value of [`PART_OF`].
pub(super) const MESH: &str = "undermesh";
/// Selects all objects of all installers.
pub(super) const SELECTOR: &str = "app.kubernetes.io/part-of=undermesh";

/// A label's value.
pub(super) fn label<'a>(metadata: &'a ObjectMeta, name: &str) -> Option<&'a str> {
    metadata.labels.as_ref()?.get(name).map(String::as_str)
}

/// Whether the object belongs to an undermesh, whoever installed it.
pub(super) fn is_mesh(metadata: &ObjectMeta) -> bool {
    label(metadata, PART_OF) == Some(MESH)
}

/// Whether this installer looks after the object.
pub(super) fn is_ours(metadata: &ObjectMeta) -> bool {
    is_mesh(metadata) && label(metadata, MANAGED_BY) == Some(crate::chart::MANAGED_BY)
}

/// Who looks after an object, as far as it says so.
pub(super) fn owner(metadata: &ObjectMeta) -> String {
    if let Some(name) = label(metadata, MANAGED_BY) {
        return name.to_owned();
    }
    let managers = metadata.managed_fields.iter().flatten();
    managers
        .filter_map(|entry| entry.manager.clone())
        .next()
        .unwrap_or_else(|| "somebody else".to_owned())
}
