//! `gateway.networking.k8s.io`: Gateway, GatewayClass; what of them makes a waypoint.
use std::{net::IpAddr, sync::Arc};

use super::{
    field::{Fields, Labels, Node},
    metadata::Metadata,
};

/// A proxy with its listeners.
#[derive(Clone, Debug, PartialEq)]
pub struct Gateway {
    /// Metadata.
    pub metadata: Metadata,
    /// Its GatewayClass.
    pub class: Arc<str>,
    /// What it listens on.
    pub listeners: Vec<Listener>,
    /// Where it is reached (`status.addresses`); empty until it is ready.
    pub addresses: Vec<GatewayAddress>,
}

/// Where a Gateway is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GatewayAddress {
    /// By the name of its Service.
    Hostname(Arc<str>),
    /// By address.
    Ip(IpAddr),
}

/// A port of a Gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// The port.
    pub port: u16,
    /// What is spoken on it, such as `HBONE`.
    pub protocol: Arc<str>,
    /// Whose objects may attach.
    pub admits: Admission,
}

/// Namespaces whose objects may attach (`allowedRoutes.namespaces`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Admission {
    /// The Gateway's own.
    #[default]
    Same,
    /// Any.
    All,
    /// Those with certain labels.
    Selected(Selector),
    /// None.
    Nobody,
}

/// A selector of labels: every requirement must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector {
    labels: Labels,
    requirements: Vec<(Arc<str>, Requirement)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Requirement {
    In(Vec<Arc<str>>),
    NotIn(Vec<Arc<str>>),
    Exists,
    DoesNotExist,
}

impl Selector {
    fn read(node: &Node<'_>) -> Self {
        let fields = node.fields(&["matchExpressions", "matchLabels"]);
        Self {
            labels: fields
                .get("matchLabels")
                .map(|node| node.texts())
                .unwrap_or_default(),
            requirements: fields
                .items("matchExpressions")
                .iter()
                .filter_map(requirement)
                .collect(),
        }
    }

    /// Whether labels fulfil it.
    pub fn matches(&self, labels: &Labels) -> bool {
        let holds = |(key, requirement): &(Arc<str>, Requirement)| match requirement {
            Requirement::In(values) => labels.get(key).is_some_and(|own| values.contains(own)),
            Requirement::NotIn(values) => labels.get(key).is_none_or(|own| !values.contains(own)),
            Requirement::Exists => labels.get(key).is_some(),
            Requirement::DoesNotExist => labels.get(key).is_none(),
        };
        labels.include(&self.labels) && self.requirements.iter().all(holds)
    }
}

fn requirement(node: &Node<'_>) -> Option<(Arc<str>, Requirement)> {
    let fields = node.fields(&["key", "operator", "values"]);
    let values = || {
        let items = fields.items("values");
        items.iter().filter_map(Node::shared_text).collect()
    };
    let key = fields.required("key")?.shared_text()?;
    let operators = ["In", "NotIn", "Exists", "DoesNotExist"];
    let operator = fields
        .required("operator")?
        .choice(&operators.map(|operator| (operator, operator)))?;
    let requirement = match operator {
        "In" => Requirement::In(values()),
        "NotIn" => Requirement::NotIn(values()),
        "Exists" => Requirement::Exists,
        _ => Requirement::DoesNotExist,
    };
    Some((key, requirement))
}

impl Gateway {
    /// Reads `spec` and `status`.
    pub fn read(metadata: Metadata, fields: &Fields<'_>) -> Self {
        let spec = fields.required("spec").map(|node| node.any_fields());
        let status = fields.get("status").map(|node| node.any_fields());
        Self {
            class: spec
                .as_ref()
                .and_then(|spec| spec.required("gatewayClassName"))
                .and_then(|node| node.shared_text())
                .unwrap_or_default(),
            listeners: read_items(spec.as_ref(), "listeners", Listener::read),
            addresses: read_items(status.as_ref(), "addresses", address),
            metadata,
        }
    }
}

fn read_items<T>(
    fields: Option<&Fields<'_>>,
    name: &'static str,
    read: fn(&Fields<'_>) -> Option<T>,
) -> Vec<T> {
    let items = fields.map(|fields| fields.items(name)).unwrap_or_default();
    items
        .iter()
        .filter_map(|node| read(&node.any_fields()))
        .collect()
}

fn address(fields: &Fields<'_>) -> Option<GatewayAddress> {
    let value = fields.required("value")?;
    match fields.get("type").and_then(|node| node.text()) {
        Some("Hostname") => value.shared_text().map(GatewayAddress::Hostname),
        Some("IPAddress") | None => value.address().map(GatewayAddress::Ip),
        // Types of other implementations, which are no address to connect to.
        Some(_) => None,
    }
}

impl Listener {
    fn read(fields: &Fields<'_>) -> Option<Self> {
        let allowed = fields.get("allowedRoutes").map(|node| node.any_fields());
        let namespaces = allowed.and_then(|allowed| allowed.get("namespaces"));
        Some(Self {
            port: fields.required("port")?.port()?,
            protocol: fields.required("protocol")?.shared_text()?,
            admits: namespaces
                .map(|node| admission(&node.any_fields()))
                .unwrap_or_default(),
        })
    }
}

fn admission(namespaces: &Fields<'_>) -> Admission {
    match namespaces.get("from").and_then(|node| node.text()) {
        Some("All") => Admission::All,
        Some("Selector") => namespaces
            .get("selector")
            .map_or(Admission::Nobody, |node| {
                Admission::Selected(Selector::read(&node))
            }),
        Some("Same") | None => Admission::Same,
        Some(_) => Admission::Nobody,
    }
}

/// What Gateways of one class have in common; only its metadata matters.
#[derive(Clone, Debug, PartialEq)]
pub struct GatewayClass {
    /// Metadata.
    pub metadata: Metadata,
}
