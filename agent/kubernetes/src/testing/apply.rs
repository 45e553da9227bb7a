//! How patches change an object: JSON merge patch (RFC 7386) and server-side apply with owned fields.
//!
//! Lists are atomic, except those of [`MERGED_LISTS`], whose items are told apart by a key.
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use serde_json::{Map, Value, json};

use super::status::Status;

/// Lists that are merged item by item, and the field that tells the items apart.
const MERGED_LISTS: &[(&str, &str)] = &[
    ("conditions", "type"),
    ("containers", "name"),
    ("env", "name"),
    ("initContainers", "name"),
    ("ownerReferences", "uid"),
    ("volumes", "name"),
];

/// Metadata that the server alone writes, or that names the object.
const SYSTEM_METADATA: &[&str] = &[
    "creationTimestamp",
    "deletionTimestamp",
    "generation",
    "managedFields",
    "name",
    "namespace",
    "resourceVersion",
    "uid",
];

/// A step from a value to one inside it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    /// A field of a map.
    Field(String),
    /// The item of a merged list whose key field has this text.
    Item(String, String),
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Field(name) => write!(f, "f:{name}"),
            Self::Item(key, value) => write!(f, "k:{}", json!({ key: value })),
        }
    }
}

type Path = Vec<Step>;

/// Who writes: name of the manager, how, and to which subresource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Writer {
    pub manager: String,
    /// `Apply` or `Update`.
    pub operation: &'static str,
    /// Empty for the main resource.
    pub subresource: &'static str,
}

/// What a writer owns of an object.
#[derive(Clone, Debug)]
pub(super) struct Owner {
    writer: Writer,
    paths: BTreeSet<Path>,
}

impl Owner {
    /// The entry of `metadata.managedFields`.
    pub fn to_json(&self, api_version: &str, time: &str) -> Value {
        let mut fields = Value::Object(Map::new());
        for path in &self.paths {
            let mut at = &mut fields;
            for step in path {
                at = &mut at[step.to_string()];
                if at.is_null() {
                    *at = Value::Object(Map::new());
                }
            }
        }
        let mut entry = json!({
            "manager": self.writer.manager,
            "operation": self.writer.operation,
            "apiVersion": api_version,
            "time": time,
            "fieldsType": "FieldsV1",
            "fieldsV1": fields,
        });
        if !self.writer.subresource.is_empty() {
            entry["subresource"] = json!(self.writer.subresource);
        }
        entry
    }
}

/// Changes `target` by a merge patch.
pub(super) fn merge(target: &mut Value, patch: Value) {
    let Value::Object(patch) = patch else {
        *target = patch;
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    for (name, value) in patch {
        if value.is_null() {
            if let Some(fields) = target.as_object_mut() {
                fields.remove(&name);
            }
        } else {
            merge(&mut target[name], value);
        }
    }
}

/// Changes `live` so that it holds what is applied and nothing that the writer applied before and left out now.
pub(super) fn apply(
    live: &mut Value,
    owners: &mut Vec<Owner>,
    applied: &Value,
    writer: &Writer,
    force: bool,
) -> Result<(), Status> {
    let wanted = leaves(applied);
    refuse_or_take(live, owners, &wanted, writer, force)?;
    let paths: BTreeSet<Path> = wanted.keys().cloned().collect();
    let before = owners
        .iter()
        .position(|owner| owner.writer == *writer)
        .map(|index| owners.remove(index).paths)
        .unwrap_or_default();
    for path in before.difference(&paths) {
        if !owners.iter().any(|owner| owner.paths.contains(path)) {
            remove(live, path);
        }
    }
    for (path, value) in wanted {
        set(live, &path, value);
    }
    owners.push(Owner {
        writer: writer.clone(),
        paths,
    });
    Ok(())
}

/// Fields that others own with another value are a conflict, or are taken from them.
fn refuse_or_take(
    live: &Value,
    owners: &mut Vec<Owner>,
    wanted: &BTreeMap<Path, Value>,
    writer: &Writer,
    force: bool,
) -> Result<(), Status> {
    for owner in owners.iter_mut().filter(|owner| owner.writer != *writer) {
        let disputed: Vec<Path> = owner
            .paths
            .iter()
            .filter(|path| wanted.contains_key(*path) && get(live, path) != wanted.get(*path))
            .cloned()
            .collect();
        if disputed.is_empty() {
            continue;
        }
        if !force {
            let fields: Vec<String> = disputed.iter().map(written).collect();
            return Err(Status::owned(&owner.writer.manager, &fields));
        }
        for path in &disputed {
            owner.paths.remove(path);
        }
    }
    owners.retain(|owner| !owner.paths.is_empty());
    Ok(())
}

/// Gives the writer of an update what it changed.
pub(super) fn updated(owners: &mut Vec<Owner>, before: &Value, after: &Value, writer: &Writer) {
    let old = leaves(before);
    let new = leaves(after);
    let changed: BTreeSet<Path> = new
        .iter()
        .filter(|(path, value)| old.get(*path) != Some(*value))
        .map(|(path, _)| path.clone())
        .collect();
    for owner in owners.iter_mut() {
        owner
            .paths
            .retain(|path| new.contains_key(path) && !changed.contains(path));
    }
    match owners.iter_mut().find(|owner| owner.writer == *writer) {
        Some(owner) => owner.paths.extend(changed),
        None => owners.push(Owner {
            writer: writer.clone(),
            paths: changed,
        }),
    }
    owners.retain(|owner| !owner.paths.is_empty());
}

fn written(path: &Path) -> String {
    path.iter()
        .map(|step| match step {
            Step::Field(name) => format!(".{name}"),
            Step::Item(key, value) => format!("[{key}={value:?}]"),
        })
        .collect()
}

/// The smallest parts that can be owned, without what names the object.
fn leaves(object: &Value) -> BTreeMap<Path, Value> {
    let mut found = BTreeMap::new();
    collect(object, &mut Vec::new(), &mut found);
    found.retain(|path, _| match path.as_slice() {
        [] => false,
        [Step::Field(top), Step::Field(name), ..] if top == "metadata" => {
            !SYSTEM_METADATA.contains(&name.as_str())
        }
        [Step::Field(top)] => !matches!(top.as_str(), "apiVersion" | "kind" | "metadata"),
        _ => true,
    });
    found
}

fn collect(value: &Value, path: &mut Path, found: &mut BTreeMap<Path, Value>) {
    match value {
        Value::Null => {}
        Value::Object(fields) if !fields.is_empty() => {
            for (name, value) in fields {
                path.push(Step::Field(name.clone()));
                collect(value, path, found);
                path.pop();
            }
        }
        Value::Array(items) => match keyed(path, items) {
            Some(keys) => {
                for (step, item) in keys.into_iter().zip(items) {
                    path.push(step);
                    collect(item, path, found);
                    path.pop();
                }
            }
            None => {
                found.insert(path.clone(), value.clone());
            }
        },
        _ => {
            found.insert(path.clone(), value.clone());
        }
    }
}

/// The steps to the items of a merged list.
fn keyed(path: &Path, items: &[Value]) -> Option<Vec<Step>> {
    let Some(Step::Field(list)) = path.last() else {
        return None;
    };
    let (_, key) = MERGED_LISTS.iter().find(|(name, _)| name == list)?;
    if items.is_empty() {
        return None;
    }
    items
        .iter()
        .map(|item| {
            Some(Step::Item(
                (*key).to_owned(),
                item[*key].as_str()?.to_owned(),
            ))
        })
        .collect()
}

fn get<'a>(value: &'a Value, path: &Path) -> Option<&'a Value> {
    path.iter().try_fold(value, |at, step| match step {
        Step::Field(name) => at.get(name),
        Step::Item(key, text) => at.as_array()?.iter().find(|item| item[key] == **text),
    })
}

fn set(value: &mut Value, path: &Path, leaf: Value) {
    let mut at = value;
    for step in path {
        at = match step {
            Step::Field(name) => {
                if !at.is_object() {
                    *at = Value::Object(Map::new());
                }
                &mut at[name]
            }
            Step::Item(key, text) => {
                if !at.is_array() {
                    *at = Value::Array(Vec::new());
                }
                item(at, key, text)
            }
        };
    }
    *at = leaf;
}

/// The item with this key, made when it is missing.
fn item<'a>(list: &'a mut Value, key: &str, text: &str) -> &'a mut Value {
    let found = list
        .as_array()
        .and_then(|items| items.iter().position(|item| item[key] == *text));
    let index = found.unwrap_or_else(|| {
        let items = list.as_array_mut().map(|items| {
            items.push(json!({ key: text }));
            items.len() - 1
        });
        items.unwrap_or_default()
    });
    &mut list[index]
}

/// Removes the part, and what is left empty around it.
fn remove(value: &mut Value, path: &[Step]) {
    let Some((step, rest)) = path.split_first() else {
        return;
    };
    match step {
        Step::Field(name) => {
            let Some(fields) = value.as_object_mut() else {
                return;
            };
            if let Some(inner) = fields.get_mut(name) {
                remove(inner, rest);
                if rest.is_empty() || is_empty(inner) {
                    fields.remove(name);
                }
            }
        }
        Step::Item(key, text) => {
            let Some(items) = value.as_array_mut() else {
                return;
            };
            let Some(index) = items.iter().position(|item| item[key] == **text) else {
                return;
            };
            remove(&mut items[index], rest);
            let bare = items[index]
                .as_object()
                .is_some_and(|fields| fields.len() <= 1);
            if rest.is_empty() || bare {
                items.remove(index);
            }
        }
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Object(fields) => fields.is_empty(),
        Value::Array(items) => items.is_empty(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn writer(manager: &str) -> Writer {
        Writer {
            manager: manager.to_owned(),
            operation: "Apply",
            subresource: "",
        }
    }

    #[test]
    fn a_merge_patch_sets_and_removes() {
        let mut object = json!({"a": {"b": 1, "c": 2}, "d": [1]});
        merge(&mut object, json!({"a": {"b": null, "e": 3}, "d": [2]}));
        assert_eq!(object, json!({"a": {"c": 2, "e": 3}, "d": [2]}));
    }

    #[test]
    fn applying_again_without_a_field_removes_it() {
        let mut live = json!({"data": {"z": "kept"}});
        let mut owners = Vec::new();
        let first = json!({"data": {"a": "1", "b": "2"}});
        apply(&mut live, &mut owners, &first, &writer("x"), false).unwrap();
        let second = json!({"data": {"a": "1"}});
        apply(&mut live, &mut owners, &second, &writer("x"), false).unwrap();
        assert_eq!(live, json!({"data": {"a": "1", "z": "kept"}}));
    }

    #[test]
    fn a_field_of_another_manager_is_a_conflict_unless_forced() {
        let mut live = json!({});
        let mut owners = Vec::new();
        let ours = json!({"spec": {"a": 1}});
        let theirs = json!({"spec": {"a": 2}});
        apply(&mut live, &mut owners, &ours, &writer("x"), false).unwrap();
        assert!(apply(&mut live, &mut owners, &theirs, &writer("y"), false).is_err());
        apply(&mut live, &mut owners, &theirs, &writer("y"), true).unwrap();
        assert_eq!(live["spec"]["a"], 2);
        assert!(apply(&mut live, &mut owners, &ours, &writer("x"), false).is_err());
    }

    #[test]
    fn conditions_of_two_managers_stand_side_by_side() {
        let mut live = json!({});
        let mut owners = Vec::new();
        let condition =
            |kind: &str| json!({"status": {"conditions": [{"type": kind, "status": "True"}]}});
        apply(&mut live, &mut owners, &condition("A"), &writer("x"), false).unwrap();
        apply(&mut live, &mut owners, &condition("B"), &writer("y"), false).unwrap();
        assert_eq!(live["status"]["conditions"].as_array().unwrap().len(), 2);
        apply(&mut live, &mut owners, &json!({}), &writer("x"), false).unwrap();
        assert_eq!(
            live["status"]["conditions"],
            json!([{"type": "B", "status": "True"}])
        );
    }
}
