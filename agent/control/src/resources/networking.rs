//! `networking.istio.io`: WorkloadEntry, ServiceEntry.
use std::{net::IpAddr, sync::Arc};

use ipnet::IpNet;
use undermesh_model::{
    Locality,
    service::{AppProtocol, Visibility},
};

use super::{
    core::condition,
    field::{Fields, Labels, Node},
    metadata::Metadata,
    names::Form,
    protocol,
};
use crate::{diagnostic::quote, value::Value};

/// Where a workload outside Kubernetes is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// By address.
    Ip(IpAddr),
    /// By a name of DNS or the path of a unix socket.
    Other(Arc<str>),
    /// Only through the gateway of its network.
    Network,
}

/// What a WorkloadEntry and an endpoint of a ServiceEntry have in common.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// Address.
    pub address: Address,
    /// Port by the name of the service's port.
    pub ports: Vec<(Arc<str>, u16)>,
    /// Labels.
    pub labels: Labels,
    /// Network; empty is the mesh's default.
    pub network: Arc<str>,
    /// Region, zone, subzone.
    pub locality: Option<Locality>,
    /// Share of the traffic; unset is 1.
    pub weight: Option<u32>,
    /// Service account.
    pub service_account: Arc<str>,
}

const ENTRY_FIELDS: &[&str] = &[
    "address",
    "labels",
    "locality",
    "network",
    "ports",
    "serviceAccount",
    "weight",
];

impl Entry {
    fn read(node: &Node<'_>) -> Self {
        let fields = node.fields(ENTRY_FIELDS);
        let text = |name| fields.get(name).and_then(|node| node.shared_text());
        let account = fields
            .get("serviceAccount")
            .filter(|node| node.value().as_text() != Some(""));
        let ports = fields.get("ports").map(|node| node.any_fields());
        let ports = ports
            .iter()
            .flat_map(|ports| ports.each().collect::<Vec<_>>());
        let network = text("network").unwrap_or_default();
        Self {
            address: address(&fields, &network),
            ports: ports
                .filter_map(|(name, node)| Some((Arc::from(name), node.port()?)))
                .collect(),
            labels: fields
                .get("labels")
                .map(|node| node.texts())
                .unwrap_or_default(),
            locality: text("locality").map(|text: Arc<str>| locality(&text)),
            weight: fields.get("weight").and_then(|node| weight(&node)),
            service_account: account
                .and_then(|node| node.shared_name(Form::Subdomain))
                .unwrap_or_else(|| Arc::from("default")),
            network,
        }
    }
}

fn address(fields: &Fields<'_>, network: &str) -> Address {
    let field = fields
        .get("address")
        .filter(|node| node.value().as_text() != Some(""));
    let Some(node) = field else {
        if network.is_empty() {
            fields.required("address");
        }
        return Address::Network;
    };
    let Some(text) = node.text() else {
        return Address::Network;
    };
    if let Ok(address) = text.parse() {
        return Address::Ip(address);
    }
    if !text.starts_with("unix://") && !Form::Subdomain.accepts(&text.to_ascii_lowercase()) {
        let message = format!("{} is neither an IP address nor a host name", quote(text));
        node.error(message, "write an address such as 10.0.0.7");
    } else if looks_like_ipv4(text) {
        node.error(
            format!("{} is not an IP address", quote(text)),
            "write one such as 10.0.0.7",
        );
    }
    Address::Other(Arc::from(text))
}

/// Digits and dots alone are a mistyped address; no top-level domain is a number.
fn looks_like_ipv4(text: &str) -> bool {
    text.bytes()
        .all(|byte| byte.is_ascii_digit() || byte == b'.')
}

/// `region/zone/subzone`, as Istio writes it.
pub fn locality(text: &str) -> Locality {
    let mut parts = text.splitn(3, '/').map(Arc::from);
    let mut next = || parts.next().unwrap_or_else(|| Arc::from(""));
    Locality {
        region: next(),
        zone: next(),
        subzone: next(),
    }
}

fn weight(node: &Node<'_>) -> Option<u32> {
    match node.value() {
        Value::Integer(number) => u32::try_from(*number).ok().or_else(|| {
            node.error(
                format!("{number} is not a weight"),
                "write a number from 0 to 4294967295",
            );
            None
        }),
        other => {
            node.error(format!("is {}", other.describe()), "write a number");
            None
        }
    }
}

/// A workload outside Kubernetes, such as a virtual machine.
#[derive(Clone, Debug, PartialEq)]
pub struct WorkloadEntry {
    /// Metadata.
    pub metadata: Metadata,
    /// What it says; its labels are those of the metadata, overlaid by its own.
    pub entry: Entry,
    /// Condition `Healthy`; unknown counts as healthy, except of a machine that tells how it is.
    pub healthy: bool,
}

/// The annotation of machines that tell how they are.
const HEALTH_CHECKED: &str = "proxy.istio.io/health-checks-enabled";

impl WorkloadEntry {
    /// Reads `spec` and `status`.
    pub fn read(metadata: Metadata, fields: &Fields<'_>) -> Option<Self> {
        let status = fields.get("status").map(|node| node.any_fields());
        let conditions = status.and_then(|status| status.get("conditions"));
        let told = conditions.and_then(|list| condition(&list, "Healthy"));
        let healthy = told.unwrap_or_else(|| !metadata.annotations.is(HEALTH_CHECKED, "true"));
        let mut entry = Entry::read(&fields.required("spec")?);
        entry.labels = metadata.labels.overlaid(&entry.labels);
        Some(Self {
            metadata,
            entry,
            healthy,
        })
    }
}

/// How the endpoints of a ServiceEntry are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resolution {
    /// Clients already know the endpoint's address.
    None,
    /// The endpoints are listed.
    Static,
    /// By DNS.
    Dns,
}

/// A service that is not of this cluster, or of virtual machines.
#[derive(Clone, Debug, PartialEq)]
pub struct ServiceEntry {
    /// Metadata.
    pub metadata: Metadata,
    /// Its names.
    pub hosts: Vec<Arc<str>>,
    /// Its virtual addresses.
    pub addresses: Vec<IpNet>,
    /// Addresses that were assigned to it, with the host they are for (`status.addresses`).
    pub assigned: Vec<(Arc<str>, IpAddr)>,
    /// TCP ports.
    pub ports: Vec<EntryPort>,
    /// How endpoints are found.
    pub resolution: Resolution,
    /// Endpoints that are listed.
    pub endpoints: Vec<Entry>,
    /// Labels of its pods and WorkloadEntries.
    pub selector: Option<Labels>,
    /// Other identities that its endpoints may have.
    pub subject_alt_names: Vec<String>,
    /// Who sees it; `None` is nobody.
    pub visibility: Option<Visibility>,
    /// Whether it names namespaces that may see it.
    pub names_namespaces: bool,
}

/// A TCP port of a ServiceEntry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntryPort {
    /// Name.
    pub name: Arc<str>,
    /// Port that clients ask for.
    pub port: u16,
    /// Port of the endpoints.
    pub target: u16,
    /// What is spoken on it.
    pub protocol: AppProtocol,
}

const SERVICE_ENTRY_FIELDS: &[&str] = &[
    "addresses",
    "endpoints",
    "exportTo",
    "hosts",
    "location",
    "ports",
    "resolution",
    "subjectAltNames",
    "workloadSelector",
];

const RESOLUTIONS: &[(&str, Resolution)] = &[
    ("NONE", Resolution::None),
    ("STATIC", Resolution::Static),
    ("DNS", Resolution::Dns),
    ("DNS_ROUND_ROBIN", Resolution::Dns),
    ("DYNAMIC_DNS", Resolution::Dns),
];

impl ServiceEntry {
    /// Reads `spec` and `status`.
    pub fn read(metadata: Metadata, fields: &Fields<'_>) -> Option<Self> {
        let spec = fields.required("spec")?.fields(SERVICE_ENTRY_FIELDS);
        let hosts = spec
            .required("hosts")
            .map(|list| list.items())
            .unwrap_or_default();
        if let Some(location) = spec.get("location") {
            location.choice(&[("MESH_EXTERNAL", ()), ("MESH_INTERNAL", ())]);
        }
        let selector = spec
            .get("workloadSelector")
            .map(|node| selector_labels(&node));
        let endpoints = spec.items("endpoints");
        if let (Some(first), Some(_)) = (endpoints.first(), &selector) {
            first.error("stands beside workloadSelector", "keep one of the two");
        }
        let names = spec.items("subjectAltNames");
        let export = spec.items("exportTo");
        let export: Vec<Arc<str>> = export.iter().filter_map(Node::shared_text).collect();
        Some(Self {
            hosts: hosts
                .iter()
                .filter_map(|node| node.name(Form::Host))
                .collect(),
            addresses: spec
                .items("addresses")
                .iter()
                .filter_map(Node::network)
                .collect(),
            assigned: assigned(fields),
            ports: spec
                .items("ports")
                .iter()
                .filter_map(EntryPort::read)
                .collect(),
            resolution: spec
                .get("resolution")
                .and_then(|node| node.choice(RESOLUTIONS))
                .unwrap_or(Resolution::None),
            endpoints: endpoints.iter().map(Entry::read).collect(),
            selector,
            subject_alt_names: names
                .iter()
                .filter_map(|node| node.filled_text().map(str::to_owned))
                .collect(),
            visibility: visibility(&export),
            names_namespaces: export.iter().any(|it| !matches!(&**it, "*" | "." | "~")),
            metadata,
        })
    }
}

/// `exportTo`: `.` is the own namespace, `~` nobody, `*` or nothing everybody.
fn visibility(export: &[Arc<str>]) -> Option<Visibility> {
    let all = |sign: &str| !export.is_empty() && export.iter().all(|it| **it == *sign);
    match (all("."), all("~")) {
        (true, _) => Some(Visibility::Namespace),
        (_, true) => None,
        _ => Some(Visibility::Public),
    }
}

fn selector_labels(node: &Node<'_>) -> Labels {
    let fields = node.fields(&["labels"]);
    fields
        .get("labels")
        .map(|node| node.texts())
        .unwrap_or_default()
}

fn assigned(fields: &Fields<'_>) -> Vec<(Arc<str>, IpAddr)> {
    let Some(status) = fields.get("status").map(|node| node.any_fields()) else {
        return Vec::new();
    };
    let read = |node: &Node<'_>| {
        let fields = node.any_fields();
        let host = fields
            .get("host")
            .and_then(|node| node.text())
            .unwrap_or_default();
        Some((Arc::from(host), fields.required("value")?.address()?))
    };
    status.items("addresses").iter().filter_map(read).collect()
}

impl EntryPort {
    fn read(node: &Node<'_>) -> Option<Self> {
        let fields = node.fields(&["name", "number", "protocol", "targetPort"]);
        let name = fields.required("name")?;
        name.filled_text()?;
        let port = fields.required("number")?.port()?;
        let target = fields
            .get("targetPort")
            .map_or(Some(port), |node| node.port())?;
        let spoken = fields
            .get("protocol")
            .and_then(|node| node.text())
            .unwrap_or("TCP");
        (!spoken.eq_ignore_ascii_case("UDP")).then(|| Self {
            name: name.shared_text().unwrap_or_default(),
            port,
            target,
            protocol: protocol::named(spoken),
        })
    }
}
