//! How objects are shown: in the version of the request, whole or their metadata alone.
use std::borrow::Cow;

use serde::Serialize;
use serde_json::{Value, json};

use super::kinds::KindInfo;

/// What a client asked to see.
#[derive(Clone, Debug)]
pub(super) struct View {
    api_version: String,
    metadata_only: bool,
}

impl View {
    /// Reads the header `Accept`.
    pub fn new(kind: &KindInfo, version: &str, accept: &str) -> Self {
        Self {
            api_version: kind.api_version(version),
            metadata_only: accept.contains("as=PartialObjectMetadata"),
        }
    }

    /// An object as it is shown; in the version that it is kept in, that is the object itself.
    pub fn object<'o>(&self, object: &'o Value) -> Cow<'o, Value> {
        if self.metadata_only {
            return Cow::Owned(json!({
                "kind": "PartialObjectMetadata",
                "apiVersion": "meta.k8s.io/v1",
                "metadata": object["metadata"],
            }));
        }
        if object["apiVersion"] == *self.api_version {
            return Cow::Borrowed(object);
        }
        let mut object = object.clone();
        object["apiVersion"] = json!(self.api_version);
        Cow::Owned(object)
    }

    /// An object of this kind without any content, as in bookmarks.
    pub fn stamped(&self, kind: &KindInfo, mut object: Value) -> Value {
        object["kind"] = json!(kind.kind);
        self.object(&object).into_owned()
    }

    pub fn list<'o>(
        &self,
        kind: &KindInfo,
        metadata: Value,
        items: impl Iterator<Item = &'o Value>,
    ) -> List<'o> {
        let (kind, api_version) = if self.metadata_only {
            (
                "PartialObjectMetadataList".to_owned(),
                "meta.k8s.io/v1".to_owned(),
            )
        } else {
            (format!("{}List", kind.kind), self.api_version.clone())
        };
        List {
            kind,
            api_version,
            metadata,
            items: items.map(|object| self.object(object)).collect(),
        }
    }
}

/// A page of a list as it is shown.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct List<'o> {
    kind: String,
    api_version: String,
    metadata: Value,
    items: Vec<Cow<'o, Value>>,
}
