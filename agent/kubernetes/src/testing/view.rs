//! How objects are shown: in the version of the request, whole or their metadata alone.
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

    pub fn object(&self, object: &Value) -> Value {
        if self.metadata_only {
            return json!({
                "kind": "PartialObjectMetadata",
                "apiVersion": "meta.k8s.io/v1",
                "metadata": object["metadata"],
            });
        }
        let mut object = object.clone();
        object["apiVersion"] = json!(self.api_version);
        object
    }

    /// An object of this kind without any content, as in bookmarks.
    pub fn stamped(&self, kind: &KindInfo, mut object: Value) -> Value {
        object["kind"] = json!(kind.kind);
        self.object(&object)
    }

    pub fn list(&self, kind: &KindInfo, metadata: Value, items: Vec<Value>) -> Value {
        let (name, api_version) = if self.metadata_only {
            ("PartialObjectMetadataList".to_owned(), "meta.k8s.io/v1")
        } else {
            (format!("{}List", kind.kind), self.api_version.as_str())
        };
        json!({ "kind": name, "apiVersion": api_version, "metadata": metadata, "items": items })
    }
}
