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

/// The annotations that the translation reads; others can be large and are dropped.
const KEPT_ANNOTATIONS: &[&str] = &[
    "ambient.istio.io/redirection",
    "ambient.istio.io/waypoint-inbound-binding",
    "istio.io/dry-run",
    "istio.io/use-waypoint-canary-weight",
    "networking.istio.io/traffic-distribution",
    "proxy.istio.io/health-checks-enabled",
    "sidecar.istio.io/status",
    "undermesh.io/node",
];

/// Where an object was read.
#[derive(Clone, Debug)]
pub enum Origin {
    /// In a file.
    Document {
        /// The document that holds it.
        document: Arc<Document>,
        /// Its place in the document: the root, or an item of a List.
        place: Path,
    },
    /// From an API server: its key says all.
    Cluster,
}

impl PartialEq for Origin {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Cluster, Self::Cluster) => true,
            (
                Self::Document { document, place },
                Self::Document {
                    document: other,
                    place: other_place,
                },
            ) => Arc::ptr_eq(document, other) && place == other_place,
            _ => false,
        }
    }
}

impl Origin {
    /// A finding about the object that was read here.
    pub fn diagnostic(&self, resource: Option<Key>, problem: Problem) -> Diagnostic {
        let (file, line) = match self {
            Self::Document { document, place } => (
                document.file.clone(),
                document.line_of(&place.join(&problem.path)),
            ),
            Self::Cluster => (Arc::default(), 0),
        };
        Diagnostic {
            severity: problem.severity,
            file,
            line,
            resource,
            field: problem.path,
            message: problem.message,
            remedy: problem.remedy,
        }
    }

    /// `file:line` of the object.
    pub fn place(&self) -> String {
        match self {
            Self::Document { document, place } => {
                format!("{}:{}", document.file, document.line_of(place))
            }
            Self::Cluster => "the cluster".to_owned(),
        }
    }

    /// The file that it was read from.
    pub fn file(&self) -> Option<&Arc<str>> {
        match self {
            Self::Document { document, .. } => Some(&document.file),
            Self::Cluster => None,
        }
    }
}

/// The controller that made an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Its kind.
    pub kind: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
}

/// `metadata` of an object.
#[derive(Clone, Debug, PartialEq)]
pub struct Metadata {
    /// Kind, namespace and name.
    pub key: Key,
    /// Labels.
    pub labels: Labels,
    /// The annotations that the translation reads.
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
            Some(node) if kind.is_namespaced() => node.shared_name(Form::Label),
            None if kind.is_namespaced() => Some(Arc::from(DEFAULT_NAMESPACE)),
            _ => Some(Arc::default()),
        };
        let labels = fields
            .get("labels")
            .map(|node| node.texts())
            .unwrap_or_default();
        let annotations = fields
            .get("annotations")
            .map(|node| node.texts_of(|key| KEPT_ANNOTATIONS.contains(&key)))
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
        let node = owner.required(name)?;
        node.filled_text()?;
        node.shared_text()
    };
    Some(Owner {
        kind: text("kind")?,
        name: text("name")?,
    })
}
