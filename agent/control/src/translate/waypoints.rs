//! Which waypoint stands before a workload or a service, as istiod attaches them.
use std::sync::Arc;

use undermesh_model::{
    Gateway as ModelGateway, GatewayDestination, WeightedWaypoint, workload::ApplicationTunnel,
};

use super::{
    findings::{Findings, label},
    inventory::{Inventory, Place},
};
use crate::{
    diagnostic::{Severity, quote},
    path::Path,
    resources::{
        core::Namespace,
        field::Labels,
        gateway::{Admission, Gateway, GatewayAddress},
        metadata::Metadata,
    },
};

/// The label that attaches an object to a waypoint.
const USE_WAYPOINT: &str = "istio.io/use-waypoint";
/// The label that says in which namespace that waypoint is.
const USE_WAYPOINT_NAMESPACE: &str = "istio.io/use-waypoint-namespace";
/// The label that attaches a service to a second waypoint.
const CANARY: &str = "istio.io/use-waypoint-canary";
/// The label that says in which namespace the second waypoint is.
const CANARY_NAMESPACE: &str = "istio.io/use-waypoint-canary-namespace";
/// The annotation that says which share of the connections the second waypoint gets, in percent.
const CANARY_WEIGHT: &str = "istio.io/use-waypoint-canary-weight";
/// The label that sends ingress gateways through the waypoint too.
const INGRESS_USE_WAYPOINT: &str = "istio.io/ingress-use-waypoint";
/// The label of a Gateway or its class that says which destinations go through it.
const WAYPOINT_FOR: &str = "istio.io/waypoint-for";
/// The label of the instances of a Gateway.
const GATEWAY_NAME: &str = "gateway.networking.k8s.io/gateway-name";
/// The label of what the control plane made for a Gateway.
const MANAGED: &str = "gateway.istio.io/managed";
/// The annotation of a Gateway or its class that says how its instances take connections.
const INBOUND_BINDING: &str = "ambient.istio.io/waypoint-inbound-binding";
/// The port on which waypoints take HBONE.
const HBONE_PORT: u16 = 15008;

/// What is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    Service,
    Workload,
}

/// What waypoints mean for a workload.
#[derive(Debug, Default)]
pub(super) struct Attachment {
    /// The waypoint before it.
    pub(super) waypoint: Option<ModelGateway>,
    /// How it takes connections, being an instance of a waypoint.
    pub(super) tunnel: Option<ApplicationTunnel>,
}

/// What waypoints mean for a service.
#[derive(Debug, Default)]
pub(super) struct Binding {
    pub(super) waypoint: Option<ModelGateway>,
    pub(super) weighted: Vec<WeightedWaypoint>,
    pub(super) ingress: bool,
}

/// The waypoint that labels name, in their own namespace unless they say otherwise.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Choice {
    Unset,
    None,
    Named(Place),
}

fn choice(labels: &Labels, own_namespace: &Arc<str>) -> Choice {
    match labels.get(USE_WAYPOINT) {
        None => Choice::Unset,
        Some(name) if &**name == "none" => Choice::None,
        Some(name) => {
            let namespace = labels.get(USE_WAYPOINT_NAMESPACE).unwrap_or(own_namespace);
            Choice::Named((namespace.clone(), name.clone()))
        }
    }
}

fn canary(labels: &Labels, own_namespace: &Arc<str>) -> Option<Place> {
    let name = labels
        .get(CANARY)
        .filter(|name| !matches!(&***name, "" | "none"))?;
    let namespace = labels.get(CANARY_NAMESPACE).unwrap_or(own_namespace);
    Some((namespace.clone(), name.clone()))
}

/// The Gateways that labels of an object or namespace name: as its waypoints, or as what it is an instance of.
pub(crate) fn named<'a>(
    labels: &'a Labels,
    own_namespace: &'a Arc<str>,
) -> impl Iterator<Item = Place> + 'a {
    let primary = match choice(labels, own_namespace) {
        Choice::Named(place) => Some(place),
        Choice::Unset | Choice::None => None,
    };
    let instance = labels.get(GATEWAY_NAME);
    let instance = instance.map(|name| (own_namespace.clone(), name.clone()));
    let places = [primary, canary(labels, own_namespace), instance];
    places.into_iter().flatten()
}

/// Why an object goes without the waypoint that it names.
enum Refusal {
    NotReady(Place),
    NotAdmitted(Place),
    WrongTraffic(Place, Target),
}

impl Refusal {
    fn report(self, path: Path, findings: &mut Findings) {
        let (message, remedy) = match self {
            Self::NotReady((namespace, name)) => (
                format!(
                    "connections go without Gateway {namespace}/{name}, which is not there or has no address"
                ),
                "create it, or wait until it is ready",
            ),
            Self::NotAdmitted((namespace, name)) => (
                format!(
                    "connections go without Gateway {namespace}/{name}, whose listener does not admit this namespace"
                ),
                "name the namespace in its allowedRoutes",
            ),
            Self::WrongTraffic((namespace, name), target) => {
                let target = match target {
                    Target::Service => "services",
                    Target::Workload => "workloads",
                };
                (
                    format!(
                        "connections go without Gateway {namespace}/{name}, which is not for {target}"
                    ),
                    "set the label istio.io/waypoint-for of the Gateway",
                )
            }
        };
        findings.add(Severity::Warning, path, message, remedy);
    }
}

/// A Gateway that is ready to be a waypoint.
struct Waypoint<'a> {
    gateway: &'a Gateway,
    class: Option<&'a Metadata>,
    address: ModelGateway,
}

impl<'a> Waypoint<'a> {
    fn find(place: &Place, inventory: &'a Inventory) -> Option<Self> {
        let gateway = inventory.gateway(&place.0, &place.1)?;
        let class = inventory.class(&gateway.class);
        Some(Self {
            gateway,
            class: class.map(|class| &class.metadata),
            address: address(gateway, inventory)?,
        })
    }

    fn serves(&self, target: Target) -> bool {
        let own = self.gateway.metadata.labels.get(WAYPOINT_FOR);
        let said = own.or_else(|| self.class?.labels.get(WAYPOINT_FOR));
        match said.map_or("service", |said| &**said) {
            "all" => true,
            "service" => target == Target::Service,
            "workload" => target == Target::Workload,
            _ => false,
        }
    }

    /// How its instances take connections: `PROXY`, `NONE`, either followed by `/<port>`.
    fn binding(&self) -> Option<ApplicationTunnel> {
        let own = self.gateway.metadata.annotations.get(INBOUND_BINDING);
        let text = own.or_else(|| self.class?.annotations.get(INBOUND_BINDING))?;
        let (protocol, port) = match text.split_once('/') {
            Some((protocol, port)) => (protocol, Some(port.parse().ok()?)),
            None => (&**text, None),
        };
        let proxy_protocol = match protocol {
            "PROXY" => true,
            "NONE" => false,
            _ => return None,
        };
        Some(ApplicationTunnel {
            proxy_protocol,
            port: port.filter(|port| *port > 0),
        })
    }

    /// Whether objects of a namespace may attach: as its listener says, the one of its binding or the HBONE one.
    fn admits(&self, namespace: &Arc<str>, inventory: &Inventory) -> bool {
        let binding = self.binding();
        let bound = self.gateway.listeners.iter().find(|listener| {
            binding.is_some_and(|binding| match binding.port {
                Some(port) => listener.port == port,
                None => binding.proxy_protocol && &*listener.protocol == "istio.io/PROXY",
            })
        });
        let mut listeners = self.gateway.listeners.iter();
        let listener = bound
            .or_else(|| listeners.find(|it| &*it.protocol == "HBONE" && it.port == HBONE_PORT));
        match listener.map(|listener| &listener.admits) {
            Some(Admission::All) => true,
            Some(Admission::Nobody) => false,
            Some(Admission::Selected(selector)) => inventory
                .namespace_labels(namespace)
                .is_some_and(|labels| selector.matches(labels)),
            Some(Admission::Same) | None => self.gateway.metadata.namespace() == namespace,
        }
    }
}

/// A name before an address: addresses are given to others in time.
fn address(gateway: &Gateway, inventory: &Inventory) -> Option<ModelGateway> {
    let name = gateway.addresses.iter().find_map(|address| match address {
        GatewayAddress::Hostname(hostname) => Some(GatewayDestination::Hostname {
            namespace: gateway.metadata.namespace().clone(),
            hostname: hostname.clone(),
        }),
        GatewayAddress::Ip(_) => None,
    });
    let address = || {
        gateway.addresses.iter().find_map(|address| match address {
            GatewayAddress::Ip(address) => Some(GatewayDestination::Address {
                network: inventory.settings.network.clone(),
                address: *address,
            }),
            GatewayAddress::Hostname(_) => None,
        })
    };
    Some(ModelGateway {
        destination: name.or_else(address)?,
        port: HBONE_PORT,
    })
}

fn attach<'a>(
    place: &Place,
    namespace: &Arc<str>,
    target: Target,
    inventory: &'a Inventory,
) -> Result<Waypoint<'a>, Refusal> {
    let waypoint =
        Waypoint::find(place, inventory).ok_or_else(|| Refusal::NotReady(place.clone()))?;
    if !waypoint.admits(namespace, inventory) {
        return Err(Refusal::NotAdmitted(place.clone()));
    }
    if !waypoint.serves(target) {
        return Err(Refusal::WrongTraffic(place.clone(), target));
    }
    Ok(waypoint)
}

/// The waypoint of an object: what its labels say, else its namespace's. What is wrong with the namespace's choice
/// is reported there, see [`check_namespace`].
fn chosen<'a>(
    namespace: &Arc<str>,
    labels: &Labels,
    target: Target,
    inventory: &'a Inventory,
    findings: &mut Findings,
) -> Option<(Place, Waypoint<'a>)> {
    let own = choice(labels, namespace);
    let is_own = own != Choice::Unset;
    let inherited = || {
        let labels = inventory.namespace_labels(namespace);
        labels.map_or(Choice::Unset, |labels| choice(labels, namespace))
    };
    let Choice::Named(place) = (if is_own { own } else { inherited() }) else {
        return None;
    };
    match attach(&place, namespace, target, inventory) {
        Ok(waypoint) => Some((place, waypoint)),
        Err(refusal) => {
            if is_own {
                refusal.report(label(USE_WAYPOINT), findings);
            }
            None
        }
    }
}

/// What stands before a workload, unless it is itself an instance of a waypoint.
pub(super) fn of_workload(
    namespace: &Arc<str>,
    labels: &Labels,
    inventory: &Inventory,
    findings: &mut Findings,
) -> Attachment {
    let instance = labels.get(GATEWAY_NAME).and_then(|name| {
        let place = (namespace.clone(), name.clone());
        Waypoint::find(&place, inventory)
    });
    if let Some(instance) = instance {
        return Attachment {
            waypoint: None,
            tunnel: instance.binding(),
        };
    }
    let chosen = chosen(namespace, labels, Target::Workload, inventory, findings);
    Attachment {
        waypoint: chosen.map(|(_, waypoint)| waypoint.address),
        tunnel: None,
    }
}

/// What stands before a service. The services of waypoints themselves have none.
pub(super) fn of_service(
    metadata: &Metadata,
    inventory: &Inventory,
    findings: &mut Findings,
) -> Binding {
    let (namespace, labels) = (metadata.namespace(), &metadata.labels);
    if labels.get(MANAGED).is_some_and(|by| is_mesh_controller(by)) {
        return Binding::default();
    }
    let Some((place, primary)) = chosen(namespace, labels, Target::Service, inventory, findings)
    else {
        return Binding::default();
    };
    let weighted = weighted(metadata, &place, &primary, inventory, findings);
    let above = inventory.namespace_labels(namespace);
    let ingress = labels.get(INGRESS_USE_WAYPOINT);
    let ingress = ingress.or_else(|| above?.get(INGRESS_USE_WAYPOINT));
    Binding {
        waypoint: Some(primary.address),
        weighted,
        ingress: ingress.is_some_and(|text| is_true(text)),
    }
}

fn is_mesh_controller(by: &str) -> bool {
    matches!(
        by,
        "istio.io-mesh-controller" | "istio.io-eastwest-controller"
    )
}

/// As Go reads truth values.
fn is_true(text: &str) -> bool {
    matches!(text, "1" | "t" | "T" | "true" | "TRUE" | "True")
}

/// The shares of two waypoints. The second one is named where the first one is: by the service or its namespace.
fn weighted(
    metadata: &Metadata,
    place: &Place,
    primary: &Waypoint<'_>,
    inventory: &Inventory,
    findings: &mut Findings,
) -> Vec<WeightedWaypoint> {
    let namespace = metadata.namespace();
    let inherits = choice(&metadata.labels, namespace) == Choice::Unset;
    let above = inventory.namespace(namespace).filter(|_| inherits);
    let own = canary(&metadata.labels, namespace);
    let Some(second) = own.or_else(|| canary(&above?.labels, namespace)) else {
        return Vec::new();
    };
    if second == *place {
        let message = "the second waypoint is the first one";
        findings.add(Severity::Warning, label(CANARY), message, "name another");
        return Vec::new();
    }
    let weight = metadata.annotations.get(CANARY_WEIGHT);
    let weight = weight.or_else(|| above?.annotations.get(CANARY_WEIGHT));
    let share = weight.map_or(Some(0), |text| text.parse().ok().filter(|it| *it <= 100u32));
    let Some(share) = share else {
        let path = Path::root()
            .key("metadata")
            .key("annotations")
            .key(CANARY_WEIGHT);
        let text = weight.map_or_else(String::new, |text| quote(text));
        let message = format!("{text} is no share; the second waypoint gets nothing");
        findings.add(Severity::Warning, path, message, "write 0 to 100");
        return Vec::new();
    };
    match attach(&second, namespace, Target::Service, inventory) {
        Ok(second) => vec![
            WeightedWaypoint {
                gateway: primary.address.clone(),
                weight: 100 - share,
            },
            WeightedWaypoint {
                gateway: second.address,
                weight: share,
            },
        ],
        Err(refusal) => {
            refusal.report(label(CANARY), findings);
            Vec::new()
        }
    }
}

/// Reports what is wrong with the waypoint that a namespace names for all of its objects.
pub(crate) fn check_namespace(
    namespace: &Namespace,
    inventory: &Inventory,
    findings: &mut Findings,
) {
    let name = namespace.metadata.name();
    if let Choice::Named(place) = choice(&namespace.metadata.labels, name) {
        let attached = [Target::Service, Target::Workload]
            .map(|target| attach(&place, name, target, inventory));
        if let [Err(refusal), Err(_)] = attached {
            refusal.report(label(USE_WAYPOINT), findings);
        }
    }
}
