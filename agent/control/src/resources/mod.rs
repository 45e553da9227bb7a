//! The resources that are read, typed and checked: what an API server would have admitted.
use std::{borrow::Cow, fmt, sync::Arc};

use serde::Serialize;

pub mod core;
pub mod discovery;
pub mod field;
pub mod gateway;
pub mod kinds;
pub mod metadata;
pub mod names;
pub mod networking;
pub mod protocol;
pub mod security;
pub mod strings;

use self::{
    field::{Fields, Node, Problem, Report},
    kinds::{Class, Kind, Writer},
    metadata::{Metadata, Origin},
    strings::Strings,
};
use crate::{
    diagnostic::{Diagnostic, Severity},
    path::Path,
    value::Value,
};

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

impl Key {
    /// The key of an object of a kind that is used.
    pub fn new(kind: Kind, namespace: Arc<str>, name: Arc<str>) -> Self {
        Self {
            kind: Cow::Borrowed(kind.name()),
            namespace,
            name,
        }
    }
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

/// An object of a kind that the translation uses. A clone shares it.
#[derive(Clone, Debug, PartialEq)]
pub enum Resource {
    /// `v1` Namespace.
    Namespace(Arc<core::Namespace>),
    /// `v1` Node.
    Node(Arc<core::Node>),
    /// `v1` Pod.
    Pod(Arc<core::Pod>),
    /// `v1` Service.
    Service(Arc<core::Service>),
    /// `discovery.k8s.io` EndpointSlice.
    EndpointSlice(Arc<discovery::EndpointSlice>),
    /// `networking.istio.io` ServiceEntry.
    ServiceEntry(Arc<networking::ServiceEntry>),
    /// `networking.istio.io` WorkloadEntry.
    WorkloadEntry(Arc<networking::WorkloadEntry>),
    /// `security.istio.io` PeerAuthentication.
    PeerAuthentication(Arc<security::PeerAuthentication>),
    /// `security.istio.io` AuthorizationPolicy.
    AuthorizationPolicy(Arc<security::AuthorizationPolicy>),
    /// `gateway.networking.k8s.io` Gateway.
    Gateway(Arc<gateway::Gateway>),
    /// `gateway.networking.k8s.io` GatewayClass.
    GatewayClass(Arc<gateway::GatewayClass>),
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
            Self::Gateway(it) => &it.metadata,
            Self::GatewayClass(it) => &it.metadata,
        }
    }
}

/// What became of an object.
#[derive(Debug)]
pub enum Outcome {
    /// It can be used.
    Good(Resource),
    /// It cannot be used. For security resources that select something known, what stands in for it: the
    /// strictest resource with the same selection.
    Bad(Option<Resource>),
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
    /// Where it was read.
    pub origin: Origin,
}

impl Decoded {
    /// What is wrong with it, with its place.
    pub fn diagnostics(&self) -> Vec<Diagnostic> {
        let diagnostic =
            |problem: &Problem| self.origin.diagnostic(self.key.clone(), problem.clone());
        self.problems.iter().map(diagnostic).collect()
    }
}

/// Reads one object as a person wrote it.
pub fn decode(value: &Value, origin: &Origin, strings: &Strings) -> Decoded {
    let report = Report::new(Some(Severity::Error), strings);
    let (key, outcome) = match classified(value, &report) {
        Some(Class::Used(kind)) => {
            return Reader {
                kind,
                writer: Writer::Person,
                origin,
                strings,
            }
            .read(value);
        }
        Some(Class::Refused {
            field,
            message,
            remedy,
        }) => {
            report.add(Severity::Error, &Path::root().key(field), message, remedy);
            (None, Outcome::Bad(None))
        }
        Some(Class::Noted { severity, message }) => {
            report.add(severity, &Path::root(), message, "");
            (Some(raw_key(value)), Outcome::Noted)
        }
        None => (None, Outcome::Bad(None)),
    };
    Decoded {
        key,
        outcome,
        problems: report.into_problems(),
        origin: origin.clone(),
    }
}

/// Reads one object as an API server holds it. Its kind is told, as the items of a list do not name theirs.
///
/// Fields that are not known are no mistake here, but for those of a policy: they could have narrowed what it
/// allows. The key is always there.
pub fn decode_json(kind: Kind, json: &serde_json::Value, strings: &Strings) -> Decoded {
    let origin = &Origin::Cluster;
    let reader = Reader {
        kind,
        writer: Writer::Server,
        origin,
        strings,
    };
    let mut decoded = match Value::from_json(json) {
        Ok(value) => reader.read(&value),
        Err(error) => {
            let report = Report::new(None, strings);
            report.add(
                Severity::Error,
                &Path::root(),
                error.to_string(),
                "make the object smaller",
            );
            Decoded {
                key: None,
                outcome: Outcome::Bad(None),
                problems: report.into_problems(),
                origin: origin.clone(),
            }
        }
    };
    let text = |name| json["metadata"][name].as_str().unwrap_or_default();
    decoded
        .key
        .get_or_insert_with(|| Key::new(kind, strings.get(text("namespace")), text("name").into()));
    decoded
}

/// What is done with a document, by its `apiVersion` and `kind`; nothing when it has none.
fn classified(value: &Value, report: &Report) -> Option<Class> {
    let root = Node::root(value, report);
    if is_foreign(value) {
        let remedy = "move it elsewhere, or add apiVersion, kind and metadata";
        root.warn("is no Kubernetes object and has no effect", remedy);
        return None;
    }
    let fields = root.any_fields();
    let api_version = fields.required("apiVersion");
    let kind = fields.required("kind");
    let api_version = api_version.as_ref().and_then(Node::filled_text);
    let kind = kind.as_ref().and_then(Node::filled_text);
    Some(kinds::classify(api_version?, kind?))
}

/// Whether a map has nothing that marks an object, as files of other programs in the same directory.
fn is_foreign(value: &Value) -> bool {
    let marks = ["apiVersion", "kind", "metadata", "spec"];
    matches!(value, Value::Map(_)) && marks.iter().all(|mark| value.get(mark).is_none())
}

/// The key of an object whose metadata is not checked.
fn raw_key(value: &Value) -> Key {
    let text = |map: Option<&Value>, name| {
        map.and_then(|it| it.get(name))
            .and_then(Value::as_text)
            .unwrap_or_default()
            .to_owned()
    };
    let metadata = value.get("metadata");
    Key {
        kind: Cow::Owned(text(Some(value), "kind")),
        namespace: text(metadata, "namespace").into(),
        name: text(metadata, "name").into(),
    }
}

/// Reads objects of one kind.
struct Reader<'a> {
    kind: Kind,
    writer: Writer,
    origin: &'a Origin,
    strings: &'a Strings,
}

impl Reader<'_> {
    fn read(&self, value: &Value) -> Decoded {
        let report = Report::new(self.kind.unknown_field(self.writer), self.strings);
        let (key, outcome) = self.outcome(value, &report);
        Decoded {
            key,
            outcome,
            problems: report.into_problems(),
            origin: self.origin.clone(),
        }
    }

    fn outcome(&self, value: &Value, report: &Report) -> (Option<Key>, Outcome) {
        let fields = Node::root(value, report).fields(self.kind.fields());
        let metadata = fields
            .required("metadata")
            .and_then(|node| Metadata::read(&node, self.kind, self.origin));
        let Some(metadata) = metadata else {
            return (None, Outcome::Bad(None));
        };
        let key = Some(metadata.key.clone());
        let outcome = match read_kind(self.kind, metadata, &fields, report) {
            Some(resource) if !report.has_errors() => Outcome::Good(resource),
            Some(resource) => Outcome::Bad(stand_in(resource, report)),
            None => Outcome::Bad(None),
        };
        (key, outcome)
    }
}

fn read_kind(
    kind: Kind,
    metadata: Metadata,
    fields: &Fields<'_>,
    report: &Report,
) -> Option<Resource> {
    Some(match kind {
        Kind::Namespace => Resource::Namespace(Arc::new(core::Namespace { metadata })),
        Kind::Node => Resource::Node(Arc::new(core::Node { metadata })),
        Kind::Pod => Resource::Pod(Arc::new(core::Pod::read(metadata, fields))),
        Kind::Service => Resource::Service(Arc::new(core::Service::read(metadata, fields))),
        Kind::EndpointSlice => {
            Resource::EndpointSlice(Arc::new(discovery::EndpointSlice::read(metadata, fields)?))
        }
        Kind::ServiceEntry => {
            Resource::ServiceEntry(Arc::new(networking::ServiceEntry::read(metadata, fields)?))
        }
        Kind::WorkloadEntry => {
            Resource::WorkloadEntry(Arc::new(networking::WorkloadEntry::read(metadata, fields)?))
        }
        Kind::PeerAuthentication => Resource::PeerAuthentication(Arc::new(
            security::PeerAuthentication::read(metadata, fields, report),
        )),
        Kind::AuthorizationPolicy => Resource::AuthorizationPolicy(Arc::new(
            security::AuthorizationPolicy::read(metadata, fields, report),
        )),
        Kind::Gateway => Resource::Gateway(Arc::new(gateway::Gateway::read(metadata, fields))),
        Kind::GatewayClass => Resource::GatewayClass(Arc::new(gateway::GatewayClass { metadata })),
    })
}

/// The strictest resource that selects what a wrong one selects, so that a mistake closes and never opens.
fn stand_in(resource: Resource, report: &Report) -> Option<Resource> {
    match resource {
        Resource::AuthorizationPolicy(policy) => Arc::unwrap_or_clone(policy)
            .denying_all(report)
            .map(|policy| Resource::AuthorizationPolicy(Arc::new(policy))),
        Resource::PeerAuthentication(policy) => Arc::unwrap_or_clone(policy)
            .strict(report)
            .map(|policy| Resource::PeerAuthentication(Arc::new(policy))),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
