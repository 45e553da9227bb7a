//! `discovery.k8s.io/v1`: EndpointSlice.
use std::{net::IpAddr, sync::Arc};

use super::{
    field::{Fields, Node},
    metadata::Metadata,
    names::Form,
};

/// The label that names the Service of a slice.
const SERVICE_LABEL: &str = "kubernetes.io/service-name";

const ENDPOINT_FIELDS: &[&str] = &[
    "addresses",
    "conditions",
    "deprecatedTopology",
    "hints",
    "hostname",
    "nodeName",
    "targetRef",
    "zone",
];

/// A part of the endpoints of a Service.
#[derive(Clone, Debug, PartialEq)]
pub struct EndpointSlice {
    /// Metadata.
    pub metadata: Metadata,
    /// The Service that it belongs to.
    pub service: Option<Arc<str>>,
    /// Its endpoints.
    pub endpoints: Vec<Endpoint>,
    /// The ports of every endpoint in it.
    pub ports: Vec<EndpointPort>,
}

/// Addresses of one backend.
#[derive(Clone, Debug, PartialEq)]
pub struct Endpoint {
    /// Interchangeable addresses.
    pub addresses: Vec<IpAddr>,
    /// `conditions.ready`; unknown counts as ready.
    pub ready: bool,
    /// Node.
    pub node: Option<Arc<str>>,
    /// Zone.
    pub zone: Option<Arc<str>>,
    /// Namespace and name of the pod it stands for.
    pub pod: Option<(Arc<str>, Arc<str>)>,
}

/// A port, matched with the Service's by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointPort {
    /// Name of the Service's port; empty when it has one port only.
    pub name: Arc<str>,
    /// Port of the backend.
    pub port: u16,
}

impl EndpointSlice {
    /// Reads the fields beside `metadata`; `None` when the slice holds no addresses that can be read.
    pub fn read(metadata: Metadata, fields: &Fields<'_>) -> Option<Self> {
        let family = fields.required("addressType")?;
        if family.text() == Some("FQDN") {
            family.error(
                "host names as endpoints are not supported",
                "list IP addresses",
            );
            return None;
        }
        family.choice(&[("IPv4", ()), ("IPv6", ())])?;
        let namespace = metadata.namespace().clone();
        let endpoints = fields.items("endpoints");
        let ports = fields.items("ports");
        Some(Self {
            service: metadata.labels.get(SERVICE_LABEL).cloned(),
            endpoints: endpoints
                .iter()
                .map(|node| Endpoint::read(node, &namespace))
                .collect(),
            ports: ports.iter().filter_map(EndpointPort::read).collect(),
            metadata,
        })
    }
}

impl Endpoint {
    fn read(node: &Node<'_>, namespace: &Arc<str>) -> Self {
        let fields = node.fields(ENDPOINT_FIELDS);
        let addresses = fields
            .required("addresses")
            .map(|list| list.items())
            .unwrap_or_default();
        let conditions = fields.get("conditions").map(|node| node.any_fields());
        let ready = conditions
            .and_then(|it| it.get("ready"))
            .and_then(|node| node.boolean());
        let text = |name| fields.get(name).and_then(|node| node.shared_text());
        Self {
            addresses: addresses.iter().filter_map(Node::address).collect(),
            ready: ready.unwrap_or(true),
            node: text("nodeName"),
            zone: text("zone"),
            pod: fields
                .get("targetRef")
                .and_then(|target| pod_reference(&target, namespace)),
        }
    }
}

fn pod_reference(node: &Node<'_>, namespace: &Arc<str>) -> Option<(Arc<str>, Arc<str>)> {
    let fields = node.any_fields();
    if fields.get("kind")?.text()? != "Pod" {
        return None;
    }
    let name = fields.required("name")?.name(Form::Subdomain)?;
    let namespace = match fields.get("namespace") {
        Some(node) => node.shared_name(Form::Label)?,
        None => namespace.clone(),
    };
    Some((namespace, name))
}

impl EndpointPort {
    fn read(node: &Node<'_>) -> Option<Self> {
        let fields = node.fields(&["appProtocol", "name", "port", "protocol"]);
        let protocol = fields
            .get("protocol")
            .and_then(|node| node.text())
            .unwrap_or("TCP");
        let port = fields.get("port")?.port()?;
        let name = fields
            .get("name")
            .and_then(|node| node.shared_text())
            .unwrap_or_default();
        (protocol == "TCP").then_some(Self { name, port })
    }
}
