//! `v1`: Namespace, Node, Pod, Service.
use std::{net::IpAddr, sync::Arc};

use undermesh_model::service::{AppProtocol, IpFamilies};

use super::{
    field::{Fields, Labels, Node as Field},
    metadata::Metadata,
    names::{self, Form},
    protocol,
};
use crate::value::Value;

/// A namespace; only its labels matter.
#[derive(Clone, Debug, PartialEq)]
pub struct Namespace {
    /// Metadata.
    pub metadata: Metadata,
}

/// A node; only its labels matter.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Metadata.
    pub metadata: Metadata,
}

/// A pod.
#[derive(Clone, Debug, PartialEq)]
pub struct Pod {
    /// Metadata.
    pub metadata: Metadata,
    /// Service account.
    pub service_account: Arc<str>,
    /// Node, when scheduled.
    pub node: Option<Arc<str>>,
    /// Whether it lives in the node's network namespace.
    pub host_network: bool,
    /// Named TCP ports of its containers.
    pub ports: Vec<(Arc<str>, u16)>,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Whether it has ended.
    pub terminal: bool,
    /// Condition `Ready`, when it is listed.
    pub ready: Option<bool>,
}

const POD_FIELDS: &[&str] = &[
    "activeDeadlineSeconds",
    "affinity",
    "automountServiceAccountToken",
    "containers",
    "dnsConfig",
    "dnsPolicy",
    "enableServiceLinks",
    "ephemeralContainers",
    "hostAliases",
    "hostIPC",
    "hostNetwork",
    "hostPID",
    "hostUsers",
    "hostname",
    "hostnameOverride",
    "imagePullSecrets",
    "initContainers",
    "nodeName",
    "nodeSelector",
    "os",
    "overhead",
    "preemptionPolicy",
    "priority",
    "priorityClassName",
    "readinessGates",
    "resourceClaims",
    "resources",
    "restartPolicy",
    "runtimeClassName",
    "schedulerName",
    "schedulingGates",
    "securityContext",
    "serviceAccount",
    "serviceAccountName",
    "setHostnameAsFQDN",
    "shareProcessNamespace",
    "subdomain",
    "terminationGracePeriodSeconds",
    "tolerations",
    "topologySpreadConstraints",
    "volumes",
];

impl Pod {
    /// Reads `spec` and `status`.
    pub fn read(metadata: Metadata, fields: &Fields<'_>) -> Self {
        let spec = fields.required("spec").map(|node| node.fields(POD_FIELDS));
        let status = fields.get("status").map(|node| node.any_fields());
        let in_spec = |name| spec.as_ref().and_then(|spec| spec.get(name));
        let in_status = |name| status.as_ref().and_then(|status| status.get(name));
        let account = in_spec("serviceAccountName").or_else(|| in_spec("serviceAccount"));
        let account = account.filter(|node| node.value().as_text() != Some(""));
        let containers = ["initContainers", "containers"]
            .into_iter()
            .filter_map(in_spec);
        let phase = in_status("phase").and_then(|node| node.text());
        Self {
            service_account: account
                .and_then(|node| node.shared_name(Form::Subdomain))
                .unwrap_or_else(|| Arc::from("default")),
            node: in_spec("nodeName").and_then(|node| node.shared_name(Form::Subdomain)),
            host_network: in_spec("hostNetwork").and_then(|node| node.boolean()) == Some(true),
            ports: containers
                .flat_map(|list| list.items())
                .flat_map(|node| container_ports(&node))
                .collect(),
            addresses: status.as_ref().map(pod_addresses).unwrap_or_default(),
            terminal: matches!(phase, Some("Succeeded" | "Failed")),
            ready: in_status("conditions").and_then(|list| condition(&list, "Ready")),
            metadata,
        }
    }
}

fn container_ports(container: &Field<'_>) -> Vec<(Arc<str>, u16)> {
    let fields = container.any_fields();
    let named = |port: &Field<'_>| {
        let fields = port.fields(&["containerPort", "hostIP", "hostPort", "name", "protocol"]);
        let number = fields.required("containerPort")?.port()?;
        let protocol = fields
            .get("protocol")
            .and_then(|node| node.text())
            .unwrap_or("TCP");
        let name = fields.get("name")?;
        name.filled_text()?;
        let name = name.shared_text()?;
        (protocol == "TCP").then_some((name, number))
    };
    fields.items("ports").iter().filter_map(named).collect()
}

fn pod_addresses(status: &Fields<'_>) -> Vec<IpAddr> {
    let first = status
        .get("podIP")
        .filter(|node| node.value().as_text() != Some(""));
    let mut addresses: Vec<IpAddr> = first.and_then(|node| node.address()).into_iter().collect();
    for item in status.items("podIPs") {
        let address = item
            .fields(&["ip"])
            .required("ip")
            .and_then(|node| node.address());
        addresses.extend(address.filter(|address| !addresses.contains(address)));
    }
    addresses
}

/// The status of the condition of that type, when it is listed: anything but `True` is false.
pub(super) fn condition(list: &Field<'_>, kind: &str) -> Option<bool> {
    let conditions: Vec<Fields<'_>> = list.items().iter().map(Field::any_fields).collect();
    let text = |fields: &Fields<'_>, name| {
        fields
            .get(name)
            .and_then(|node| node.text().map(str::to_owned))
    };
    let found = conditions
        .iter()
        .find(|fields| text(fields, "type").as_deref() == Some(kind))?;
    Some(text(found, "status").as_deref() == Some("True"))
}

/// A Service.
#[derive(Clone, Debug, PartialEq)]
pub struct Service {
    /// Metadata.
    pub metadata: Metadata,
    /// Where its traffic goes.
    pub form: ServiceForm,
    /// TCP ports.
    pub ports: Vec<ServicePort>,
    /// Labels of its pods; empty selects none.
    pub selector: Labels,
    /// Whether only endpoints on the client's node serve.
    pub local: bool,
    /// Which endpoints are preferred; unset is what the namespace says.
    pub distribution: Option<Distribution>,
    /// The address families that it offers.
    pub families: IpFamilies,
    /// Whether unready endpoints serve.
    pub publish_not_ready: bool,
}

/// What kind of Service it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ServiceForm {
    /// It has virtual addresses; none when nothing has assigned them.
    Virtual(Vec<IpAddr>),
    /// Clients are given the pods' addresses.
    Headless,
    /// An alias in DNS.
    ExternalName,
}

/// `trafficDistribution`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Distribution {
    /// All endpoints are equal.
    #[default]
    Any,
    /// The same zone first.
    SameZone,
    /// The same node first.
    SameNode,
}

/// A TCP port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Name; may be empty.
    pub name: Arc<str>,
    /// Port that clients ask for.
    pub port: u16,
    /// Port of the endpoints.
    pub target: Target,
    /// What is spoken on it, as far as it says.
    pub protocol: AppProtocol,
}

/// Port of endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// The same on all.
    Number(u16),
    /// Looked up in each pod's containers.
    Name(Arc<str>),
}

const SERVICE_FIELDS: &[&str] = &[
    "allocateLoadBalancerNodePorts",
    "clusterIP",
    "clusterIPs",
    "externalIPs",
    "externalName",
    "externalTrafficPolicy",
    "healthCheckNodePort",
    "internalTrafficPolicy",
    "ipFamilies",
    "ipFamilyPolicy",
    "loadBalancerClass",
    "loadBalancerIP",
    "loadBalancerSourceRanges",
    "ports",
    "publishNotReadyAddresses",
    "selector",
    "sessionAffinity",
    "sessionAffinityConfig",
    "topologyKeys",
    "trafficDistribution",
    "type",
];

/// Istio's annotation for what `spec.trafficDistribution` says, on Services, ServiceEntries and namespaces.
const DISTRIBUTION_ANNOTATION: &str = "networking.istio.io/traffic-distribution";

impl Service {
    /// Reads `spec`.
    pub fn read(metadata: Metadata, fields: &Fields<'_>) -> Self {
        let spec = fields
            .required("spec")
            .map(|node| node.fields(SERVICE_FIELDS));
        let get = |name| spec.as_ref().and_then(|spec| spec.get(name));
        Self {
            form: spec.as_ref().map_or(ServiceForm::Headless, service_form),
            ports: spec
                .as_ref()
                .map(|spec| {
                    spec.items("ports")
                        .iter()
                        .filter_map(ServicePort::read)
                        .collect()
                })
                .unwrap_or_default(),
            selector: get("selector").map(|node| node.texts()).unwrap_or_default(),
            local: get("internalTrafficPolicy")
                .and_then(|node| node.choice(&[("Local", true), ("Cluster", false)]))
                .unwrap_or(false),
            distribution: get("trafficDistribution")
                .map(|node| distribution_field(&node))
                .or_else(|| Distribution::annotated(&metadata)),
            families: spec.as_ref().map(families).unwrap_or_default(),
            publish_not_ready: get("publishNotReadyAddresses")
                .and_then(|node| node.boolean())
                .unwrap_or(false),
            metadata,
        }
    }
}

fn service_form(spec: &Fields<'_>) -> ServiceForm {
    let kind = spec.get("type").and_then(|node| {
        let kinds = ["ClusterIP", "NodePort", "LoadBalancer", "ExternalName"];
        node.choice(&kinds.map(|kind| (kind, kind)))
    });
    if kind == Some("ExternalName") {
        return ServiceForm::ExternalName;
    }
    let written: Vec<Field<'_>> = spec
        .get("clusterIP")
        .into_iter()
        .chain(spec.items("clusterIPs"))
        .collect();
    if written
        .iter()
        .any(|node| node.value() == &Value::Text("None".to_owned()))
    {
        return ServiceForm::Headless;
    }
    let mut addresses = Vec::new();
    for node in written
        .iter()
        .filter(|node| node.value().as_text() != Some(""))
    {
        addresses.extend(
            node.address()
                .filter(|address| !addresses.contains(address)),
        );
    }
    ServiceForm::Virtual(addresses)
}

fn families(spec: &Fields<'_>) -> IpFamilies {
    let listed = spec.items("ipFamilies");
    let choices = [
        ("IPv4", IpFamilies::Ipv4Only),
        ("IPv6", IpFamilies::Ipv6Only),
    ];
    match &listed[..] {
        [] => IpFamilies::Automatic,
        [one] => one.choice(&choices).unwrap_or_default(),
        _ => IpFamilies::Dual,
    }
}

impl Distribution {
    /// What an annotation says.
    pub fn annotated(metadata: &Metadata) -> Option<Self> {
        let text = metadata.annotations.get(DISTRIBUTION_ANNOTATION)?;
        distribution(text)
    }
}

fn distribution(text: &str) -> Option<Distribution> {
    match text {
        "PreferClose" | "PreferSameZone" => Some(Distribution::SameZone),
        "PreferSameNode" => Some(Distribution::SameNode),
        "" | "Any" => Some(Distribution::Any),
        _ => None,
    }
}

fn distribution_field(node: &Field<'_>) -> Distribution {
    let Some(text) = node.text() else {
        return Distribution::Any;
    };
    distribution(text).unwrap_or_else(|| {
        // Kubernetes defines unknown values as "no preference", so that new ones can be added.
        node.warn(
            "is not a known preference",
            "write PreferSameZone, PreferSameNode or PreferClose",
        );
        Distribution::Any
    })
}

impl ServicePort {
    fn read(node: &Field<'_>) -> Option<Self> {
        let fields = node.fields(&[
            "appProtocol",
            "name",
            "nodePort",
            "port",
            "protocol",
            "targetPort",
        ]);
        let protocols = [("TCP", true), ("UDP", false), ("SCTP", false)];
        let protocol = fields.get("protocol").map(|node| node.choice(&protocols));
        let port = fields.required("port")?.port()?;
        let target = match fields.get("targetPort") {
            Some(target) => Target::read(&target, port)?,
            None => Target::Number(port),
        };
        let text = |name| fields.get(name).and_then(|node| node.shared_text());
        let name = text("name").unwrap_or_default();
        let spoken = protocol::of_service_port(port, &name, text("appProtocol").as_deref());
        protocol.unwrap_or(Some(true))?.then_some(Self {
            name,
            port,
            target,
            protocol: spoken,
        })
    }
}

impl Target {
    fn read(node: &Field<'_>, port: u16) -> Option<Self> {
        match node.value() {
            // What the API server stores for "same as the port".
            Value::Integer(0) => Some(Self::Number(port)),
            Value::Text(text) if names::port(text).is_some() => names::port(text).map(Self::Number),
            Value::Text(_) => node.shared_name(Form::Label).map(Self::Name),
            _ => node.port().map(Self::Number),
        }
    }
}
