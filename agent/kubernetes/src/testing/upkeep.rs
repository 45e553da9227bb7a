//! What the server does to objects that are written: times, what a write leaves alone, what counts as a change.
use serde_json::Value;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::{kinds::KindInfo, record::Part};

/// The time now, as Kubernetes writes it.
pub(super) fn now() -> String {
    written(OffsetDateTime::now_utc())
}

/// A time as Kubernetes writes it, in whole seconds.
pub(super) fn written(time: OffsetDateTime) -> String {
    let time = time.replace_nanosecond(0).unwrap_or(time);
    time.format(&Rfc3339).expect("a time that can be written")
}

pub(super) fn remove_field(object: &mut Value, name: &str) {
    if let Some(fields) = object.as_object_mut() {
        fields.remove(name);
    }
}

pub(super) fn has_finalizers(object: &Value) -> bool {
    object["metadata"]["finalizers"]
        .as_array()
        .is_some_and(|it| !it.is_empty())
}

/// Takes from the old object what this write does not concern.
pub(super) fn keep_parts(kind: &KindInfo, old: &Value, object: &mut Value, part: Part) {
    match part {
        Part::Whole => {}
        Part::Main if !kind.status => {}
        Part::Main => match old.get("status") {
            Some(status) => object["status"] = status.clone(),
            None => remove_field(object, "status"),
        },
        // The status of pods carries their labels and annotations (kubernetes, podStatusStrategy).
        Part::Status if kind.group.is_empty() && kind.plural == "pods" => {
            object["spec"] = old["spec"].clone();
            match old["metadata"].get("ownerReferences") {
                Some(owners) => object["metadata"]["ownerReferences"] = owners.clone(),
                None => remove_field(&mut object["metadata"], "ownerReferences"),
            }
        }
        Part::Status => {
            let status = object["status"].take();
            *object = old.clone();
            object["status"] = status;
        }
    }
}

/// Takes from the old object what never changes by a write.
pub(super) fn keep_identity(old: &Value, object: &mut Value) {
    let fields = [
        "name",
        "namespace",
        "uid",
        "creationTimestamp",
        "generation",
    ];
    let lasting = ["deletionTimestamp", "deletionGracePeriodSeconds"];
    for field in fields.into_iter().chain(lasting) {
        if let Some(value) = old["metadata"].get(field) {
            object["metadata"][field] = value.clone();
        }
    }
}

/// The object without what the server writes by itself.
pub(super) fn without_bookkeeping(object: &Value) -> Value {
    let mut object = object.clone();
    for field in ["apiVersion", "kind"] {
        remove_field(&mut object, field);
    }
    for field in ["resourceVersion", "managedFields"] {
        remove_field(&mut object["metadata"], field);
    }
    object
}

/// What counts as a new generation: all but metadata and status.
pub(super) fn desired(object: &Value) -> Value {
    let mut object = object.clone();
    for field in ["apiVersion", "kind", "metadata", "status"] {
        remove_field(&mut object, field);
    }
    object
}
