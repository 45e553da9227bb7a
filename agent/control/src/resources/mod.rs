//! The resources that are read, typed and checked: what an API server would have admitted.
use std::{borrow::Cow, fmt, sync::Arc};

use serde::Serialize;

pub mod core;
pub mod discovery;
pub mod field;
pub mod kinds;
pub mod metadata;
pub mod names;
pub mod networking;
pub mod security;

use self::{
    field::{Fields, Node, Problem, Report},
    kinds::{Class, Kind},
    metadata::{Metadata, Origin},
};
use crate::{diagnostic::Severity, value::Value};

/// What an object is known by.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct Key {
    /// Its kind.
    pub kind: Cow<'static, str>,
    /// Its namespace; empty for objects of the cluster.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let visible = |text: &str| {
            text.chars()
                .filter(|c| !c.is_control())
                .take(253)
                .collect::<String>()
        };
        write!(f, "{} ", visible(&self.kind))?;
        if !self.namespace.is_empty() {
            write!(f, "{}/", visible(&self.namespace))?;
        }
        f.write_str(&visible(&self.name))
    }
}

/// An object of a kind that the translation uses.
#[derive(Clone, Debug)]
pub enum Resource {
    /// `v1` Namespace.
    Namespace(core::Namespace),
    /// `v1` Node.
    Node(core::Node),
    /// `v1` Pod.
    Pod(core::Pod),
    /// `v1` Service.
    Service(core::Service),
    /// `discovery.k8s.io` EndpointSlice.
    EndpointSlice(discovery::EndpointSlice),
    /// `networking.istio.io` ServiceEntry.
    ServiceEntry(networking::ServiceEntry),
    /// `networking.istio.io` WorkloadEntry.
    WorkloadEntry(networking::WorkloadEntry),
    /// `security.istio.io` PeerAuthentication.
    PeerAuthentication(security::PeerAuthentication),
    /// `security.istio.io` AuthorizationPolicy.
    AuthorizationPolicy(security::AuthorizationPolicy),
}

impl Resource {
    /// Name, namespace, labels, origin.
    pub fn metadata(&self) -> &Metadata {
        match self {
            Self::Namespace(it) => &it.metadata,
            Self::Node(it) => &it.metadata,
            Self::Pod(it) => &it.metadata,
            Self::Service(it) => &it.metadata,
            Self::EndpointSlice(it) => &it.metadata,
            Self::ServiceEntry(it) => &it.metadata,
            Self::WorkloadEntry(it) => &it.metadata,
            Self::PeerAuthentication(it) => &it.metadata,
            Self::AuthorizationPolicy(it) => &it.metadata,
        }
    }
}

/// What became of an object.
#[derive(Debug)]
pub enum Outcome {
    /// It can be used.
    Good(Arc<Resource>),
    /// It cannot be used. For security resources that select something known, what stands in for it: the
    /// strictest resource with the same selection.
    Bad(Option<Arc<Resource>>),
    /// It has no part in the translation.
    Noted,
}

/// An object after reading.
#[derive(Debug)]
pub struct Decoded {
    /// What it is known by, when that could be read.
    pub key: Option<Key>,
    /// What became of it.
    pub outcome: Outcome,
    /// What is wrong with it.
    pub problems: Vec<Problem>,
}

/// Reads one object.
pub fn decode(value: &Value, origin: &Origin) -> Decoded {
    let report = Report::new(Severity::Error);
    if is_foreign(value) {
        let remedy = "move it elsewhere, or add apiVersion, kind and metadata";
        Node::root(value, &report).warn("is no Kubernetes object and has no effect", remedy);
        return Decoded {
            key: None,
            outcome: Outcome::Bad(None),
            problems: report.into_problems(),
        };
    }
    let fields = Node::root(value, &report).any_fields();
    let api_version = fields.required("apiVersion");
    let kind = fields.required("kind");
    let texts = (
        api_version.as_ref().and_then(Node::filled_text),
        kind.as_ref().and_then(Node::filled_text),
    );
    let (Some(api_version), Some(kind)) = texts else {
        return Decoded {
            key: None,
            outcome: Outcome::Bad(None),
            problems: report.into_problems(),
        };
    };
    match kinds::classify(api_version, kind) {
        Class::Used(kind) => decode_kind(kind, value, origin),
        Class::Refused {
            field,
            message,
            remedy,
        } => {
            let path = fields.node().path().key(field);
            report.add(Severity::Error, &path, message, remedy);
            Decoded {
                key: None,
                outcome: Outcome::Bad(None),
                problems: report.into_problems(),
            }
        }
        Class::Noted { severity, message } => {
            report.add(severity, fields.node().path(), message, "");
            let key = Some(raw_key(kind, value));
            Decoded {
                key,
                outcome: Outcome::Noted,
                problems: report.into_problems(),
            }
        }
    }
}

/// Whether a map has nothing that marks an object, as files of other programs in the same directory.
fn is_foreign(value: &Value) -> bool {
    let marks = ["apiVersion", "kind", "metadata", "spec"];
    matches!(value, Value::Map(_)) && marks.iter().all(|mark| value.get(mark).is_none())
}

/// The key of an object whose metadata is not checked.
fn raw_key(kind: &str, value: &Value) -> Key {
    let metadata = value.get("metadata");
    let text = |name| {
        metadata
            .and_then(|it| it.get(name))
            .and_then(Value::as_text)
            .unwrap_or_default()
    };
    Key {
        kind: Cow::Owned(kind.to_owned()),
        namespace: Arc::from(text("namespace")),
        name: Arc::from(text("name")),
    }
}

fn decode_kind(kind: Kind, value: &Value, origin: &Origin) -> Decoded {
    let report = Report::new(kind.unknown_field());
    let fields = Node::root(value, &report).fields(kind.fields());
    let metadata = fields
        .required("metadata")
        .and_then(|node| Metadata::read(&node, kind, origin));
    let Some(metadata) = metadata else {
        return Decoded {
            key: None,
            outcome: Outcome::Bad(None),
            problems: report.into_problems(),
        };
    };
    let key = Some(metadata.key.clone());
    let resource = read_kind(kind, metadata, &fields, &report);
    let outcome = match resource {
        Some(resource) if !report.has_errors() => Outcome::Good(Arc::new(resource)),
        Some(resource) => Outcome::Bad(stand_in(resource, &report).map(Arc::new)),
        None => Outcome::Bad(None),
    };
    Decoded {
        key,
        outcome,
        problems: report.into_problems(),
    }
}

fn read_kind(
    kind: Kind,
    metadata: Metadata,
    fields: &Fields<'_>,
    report: &Report,
) -> Option<Resource> {
    Some(match kind {
        Kind::Namespace => Resource::Namespace(core::Namespace { metadata }),
        Kind::Node => Resource::Node(core::Node { metadata }),
        Kind::Pod => Resource::Pod(core::Pod::read(metadata, fields)),
        Kind::Service => Resource::Service(core::Service::read(metadata, fields)),
        Kind::EndpointSlice => {
            Resource::EndpointSlice(discovery::EndpointSlice::read(metadata, fields)?)
        }
        Kind::ServiceEntry => {
            Resource::ServiceEntry(networking::ServiceEntry::read(metadata, fields)?)
        }
        Kind::WorkloadEntry => {
            Resource::WorkloadEntry(networking::WorkloadEntry::read(metadata, fields)?)
        }
        Kind::PeerAuthentication => Resource::PeerAuthentication(
            security::PeerAuthentication::read(metadata, fields, report),
        ),
        Kind::AuthorizationPolicy => Resource::AuthorizationPolicy(
            security::AuthorizationPolicy::read(metadata, fields, report),
        ),
    })
}

/// The strictest resource that selects what a wrong one selects, so that a mistake closes and never opens.
fn stand_in(resource: Resource, report: &Report) -> Option<Resource> {
    match resource {
        Resource::AuthorizationPolicy(policy) => policy
            .denying_all(report)
            .map(Resource::AuthorizationPolicy),
        Resource::PeerAuthentication(policy) => {
            policy.strict(report).map(Resource::PeerAuthentication)
        }
        _ => None,
    }
}
