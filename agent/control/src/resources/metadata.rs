//! The metadata that every object has, and where the object was read.
use std::{borrow::Cow, sync::Arc};

use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::{
    Key,
    field::{Fields, Labels, Node, Problem},
    kinds::Kind,
    names::Form,
};
use crate::{diagnostic::Diagnostic, manifest::Document, path::Path};

/// The namespace of objects that name none, as for `kubectl apply`.
const DEFAULT_NAMESPACE: &str = "default";

const FIELDS: &[&str] = &[
    "annotations",
    "creationTimestamp",
    "deletionGracePeriodSeconds",
    "deletionTimestamp",
    "finalizers",
    "generateName",
    "generation",
    "labels",
    "managedFields",
    "name",
    "namespace",
    "ownerReferences",
    "resourceVersion",
    "selfLink",
    "uid",
];

/// Where an object was read.
#[derive(Clone, Debug)]
pub struct Origin {
    /// The document that holds it.
    pub document: Arc<Document>,
    /// Its place in the document: the root, or an item of a List.
    pub place: Path,
}

impl Origin {
    /// A finding about the object that was read here.
    pub fn diagnostic(&self, resource: Option<Key>, problem: Problem) -> Diagnostic {
        Diagnostic {
            severity: problem.severity,
            file: self.document.file.clone(),
            line: self.document.line_of(&self.place.join(&problem.path)),
            resource,
            field: problem.path,
            message: problem.message,
            remedy: problem.remedy,
        }
    }

    /// `file:line` of the object.
    pub fn place(&self) -> String {
        format!(
            "{}:{}",
            self.document.file,
            self.document.line_of(&self.place)
        )
    }
}

/// The controller that made an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Its kind.
    pub kind: String,
    /// Its name.
    pub name: String,
}

/// `metadata` of an object.
#[derive(Clone, Debug)]
pub struct Metadata {
    /// Kind, namespace and name.
    pub key: Key,
    /// Labels.
    pub labels: Labels,
    /// Annotations.
    pub annotations: Labels,
    /// When it was made; manifests seldom say.
    pub created: Option<OffsetDateTime>,
    /// Whether it is being deleted.
    pub deleting: bool,
    /// The owner that is its controller.
    pub controller: Option<Owner>,
    /// Where it was read.
    pub origin: Origin,
}

impl Metadata {
    /// Reads `metadata`; without a proper name there is nothing to know the object by.
    pub fn read(node: &Node<'_>, kind: Kind, origin: &Origin) -> Option<Self> {
        let fields = node.fields(FIELDS);
        let form = match kind {
            Kind::Namespace | Kind::Service => Form::Label,
            _ => Form::Subdomain,
        };
        let name = fields.required("name").and_then(|node| node.name(form));
        let namespace = match fields.get("namespace") {
            Some(node) if kind.is_namespaced() => node.name(Form::Label),
            None if kind.is_namespaced() => Some(Arc::from(DEFAULT_NAMESPACE)),
            _ => Some(Arc::from("")),
        };
        let labels = fields
            .get("labels")
            .map(|node| node.texts())
            .unwrap_or_default();
        let annotations = fields
            .get("annotations")
            .map(|node| node.texts())
            .unwrap_or_default();
        let created = fields
            .get("creationTimestamp")
            .and_then(|node| timestamp(&node));
        Some(Self {
            key: Key {
                kind: Cow::Borrowed(kind.name()),
                namespace: namespace?,
                name: name?,
            },
            labels,
            annotations,
            created,
            deleting: fields.get("deletionTimestamp").is_some(),
            controller: controller(&fields),
            origin: origin.clone(),
        })
    }

    /// The namespace.
    pub fn namespace(&self) -> &Arc<str> {
        &self.key.namespace
    }

    /// The name.
    pub fn name(&self) -> &Arc<str> {
        &self.key.name
    }

    /// Sorts the oldest first; objects of unknown age come last, by namespace and name.
    pub fn age(&self) -> (bool, Option<OffsetDateTime>, &Key) {
        (self.created.is_none(), self.created, &self.key)
    }

    /// A finding about the object.
    pub fn diagnostic(&self, problem: Problem) -> Diagnostic {
        self.origin.diagnostic(Some(self.key.clone()), problem)
    }
}

fn timestamp(node: &Node<'_>) -> Option<OffsetDateTime> {
    let time = OffsetDateTime::parse(node.text()?, &Rfc3339).ok();
    if time.is_none() {
        node.error("is not a time", "write one such as 2026-01-31T12:00:00Z");
    }
    time
}

fn controller(fields: &Fields<'_>) -> Option<Owner> {
    let owners = fields.items("ownerReferences");
    let mut owners = owners.iter().map(Node::any_fields);
    let owner = owners
        .find(|owner| owner.get("controller").and_then(|node| node.boolean()) == Some(true))?;
    let text = |name| {
        owner
            .required(name)
            .and_then(|node| node.filled_text().map(str::to_owned))
    };
    Some(Owner {
        kind: text("kind")?,
        name: text("name")?,
    })
}
