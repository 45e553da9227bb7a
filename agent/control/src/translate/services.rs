//! Services to services with their endpoints, from selectors and EndpointSlices.
use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use ipnet::IpNet;
use undermesh_model::{
    Service as ModelService, Workload,
    service::{self, HealthPolicy, Preference, Scope as PlaceScope, ServiceEndpoint, Visibility},
    workload::{Health, NetworkMode},
};

use super::{
    endpoints::{Outside, add_workload, endpoint, named_pod, named_port, preference, selected},
    findings::{Findings, spec},
    inventory::Inventory,
    scope::Body,
    waypoints,
    workloads::{identified, plain},
};
use crate::{
    diagnostic::Severity,
    path::Path,
    resources::{
        core::{Service, ServiceForm, ServicePort, Target},
        discovery::{Endpoint, EndpointSlice},
    },
    settings::Source,
};

/// The domain of the names of Services.
const CLUSTER_DOMAIN: &str = "cluster.local";
/// The service account of workloads that name none.
const DEFAULT_ACCOUNT: &str = "default";

/// What is made from a Service or ServiceEntry.
#[derive(Debug, Default)]
pub(crate) struct Parts {
    pub(crate) services: Vec<ModelService>,
    /// The workloads that only exist as its endpoints.
    pub(crate) workloads: Outside,
}

/// Service port to the port of an endpoint.
type PortMap = Vec<(u16, u16)>;

/// The name of a Service in DNS.
pub(crate) fn hostname(namespace: &str, name: &str) -> String {
    format!("{name}.{namespace}.svc.{CLUSTER_DOMAIN}")
}

/// The Service that has a name in DNS, if its form is that of one: its namespace and name.
pub(super) fn named_by(hostname: &str) -> Option<(&str, &str)> {
    let stem = hostname
        .strip_suffix(CLUSTER_DOMAIN)?
        .strip_suffix(".svc.")?;
    let (name, namespace) = stem.split_once('.')?;
    (!namespace.contains('.')).then_some((namespace, name))
}

/// Translates a Service.
pub(crate) fn service(source: &Service, inventory: &Inventory, findings: &mut Findings) -> Parts {
    let metadata = &source.metadata;
    let mut parts = Parts::default();
    let addresses: &[IpAddr] = match &source.form {
        ServiceForm::ExternalName => {
            let message = "an alias in DNS; not used by the L4 data plane";
            findings.add(Severity::Info, spec("type"), message, "");
            return parts;
        }
        ServiceForm::Headless => &[],
        ServiceForm::Virtual(addresses) => addresses,
    };
    if addresses.is_empty() && source.form != ServiceForm::Headless {
        let message = "has no virtual address, so connections cannot be told to be for it";
        findings.add(Severity::Info, spec("clusterIP"), message, "give it one");
    }
    let binding = waypoints::of_service(metadata, inventory, findings);
    let endpoints = endpoints(source, inventory, findings, &mut parts.workloads);
    parts.services.push(ModelService {
        name: metadata.name().clone(),
        namespace: metadata.namespace().clone(),
        hostname: hostname(metadata.namespace(), metadata.name()).into(),
        network: inventory.settings.network.clone(),
        addresses: addresses.iter().copied().map(IpNet::from).collect(),
        ports: source.ports.iter().map(model_port).collect(),
        preference: if source.local {
            Preference::Strict(vec![PlaceScope::Node])
        } else {
            preference(source.distribution, metadata, inventory)
        },
        health_policy: if source.publish_not_ready {
            HealthPolicy::AllowAll
        } else {
            HealthPolicy::OnlyHealthy
        },
        subject_alt_names: Vec::new(),
        canonical: true,
        visibility: Visibility::Public,
        ip_families: source.families,
        waypoint: binding.waypoint,
        weighted_waypoints: binding.weighted,
        ingress_use_waypoint: binding.ingress,
        endpoints,
    });
    parts
}

fn endpoints(
    source: &Service,
    inventory: &Inventory,
    findings: &mut Findings,
    outside: &mut Outside,
) -> Vec<ServiceEndpoint> {
    let metadata = &source.metadata;
    let scope = inventory.scope(metadata.namespace());
    let slices = || {
        scope
            .into_iter()
            .flat_map(|it| it.slices_of(metadata.name()))
    };
    let is_sliced = slices().next().is_some();
    let overridden = inventory.settings.source == Source::Manifests && is_sliced;
    let mut found: BTreeMap<Arc<str>, PortMap> = BTreeMap::new();
    if !source.selector.is_empty() && !overridden {
        found = by_selector(source, inventory);
    }
    let mut sliced = Sliced {
        source,
        inventory,
        findings,
        outside,
    };
    for slice in slices() {
        let ports = slice_ports(source, slice);
        for item in &slice.endpoints {
            for address in &item.addresses {
                let Some(uid) = sliced.workload(slice, item, *address) else {
                    continue;
                };
                let known = found.entry(uid).or_default();
                let news: Vec<_> = ports
                    .iter()
                    .filter(|(port, _)| known.iter().all(|(own, _)| own != port))
                    .copied()
                    .collect();
                known.extend(news);
            }
        }
    }
    found
        .into_iter()
        .map(|(uid, ports)| endpoint(&uid, ports))
        .collect()
}

fn by_selector(source: &Service, inventory: &Inventory) -> BTreeMap<Arc<str>, PortMap> {
    let members = selected(inventory, source.metadata.namespace(), &source.selector);
    let endpoint = |(workload, body): (&Arc<Workload>, Body<'_>)| {
        let own = |port: &ServicePort| Some((port.port, own_port(port, body)?));
        let ports = source.ports.iter().filter_map(own).collect();
        (workload.uid.clone(), ports)
    };
    members.map(endpoint).collect()
}

/// The port of a member where it is not the Service's own target: it is named, or a WorkloadEntry says otherwise.
fn own_port(port: &ServicePort, body: Body<'_>) -> Option<u16> {
    match (&port.target, body) {
        (Target::Name(name), _) => named_port(body.ports(), name),
        (Target::Number(number), Body::Entry(_)) => {
            named_port(body.ports(), &port.name).filter(|own| own != number)
        }
        (Target::Number(_), Body::Pod(_)) => None,
    }
}

/// Finds the workloads of slices.
struct Sliced<'t> {
    source: &'t Service,
    inventory: &'t Inventory,
    findings: &'t mut Findings,
    outside: &'t mut Outside,
}

impl Sliced<'_> {
    /// The workload of an address in a slice: one that is known, or one made for it.
    fn workload(
        &mut self,
        slice: &EndpointSlice,
        item: &Endpoint,
        address: IpAddr,
    ) -> Option<Arc<str>> {
        let named = named_pod(self.inventory, item.pod.as_ref(), address);
        match self.inventory.settings.source {
            Source::Manifests => {
                let network = &self.inventory.settings.network;
                let known = named.or_else(|| self.inventory.holder(network, address));
                match known {
                    Some(workload) => item.ready.then(|| workload.uid.clone()),
                    None => self.made(slice, item, address, NetworkMode::Standard),
                }
            }
            // A pod is an endpoint by the Service's selector, if it has one, and ready if it says so itself.
            Source::Kubernetes if item.pod.is_some() => {
                let by_slice = self.source.selector.is_empty();
                let workload = named.filter(|_| by_slice)?;
                Some(workload.uid.clone())
            }
            // Anybody's address, perhaps one that others have too.
            Source::Kubernetes => self.made(slice, item, address, NetworkMode::HostNetwork),
        }
    }

    /// The workload of an address that no pod has, such as one of a machine outside the cluster.
    fn made(
        &mut self,
        slice: &EndpointSlice,
        item: &Endpoint,
        address: IpAddr,
        network_mode: NetworkMode,
    ) -> Option<Arc<str>> {
        let metadata = &slice.metadata;
        let uid = format!(
            "{}/discovery.k8s.io/EndpointSlice/{}/{}/{address}",
            self.inventory.settings.cluster,
            metadata.namespace(),
            metadata.name()
        );
        let node = item.node.clone().unwrap_or_default();
        let mut locality = self.inventory.locality_of(&node).unwrap_or_default();
        if let Some(zone) = &item.zone {
            locality.zone = zone.clone();
        }
        let account = self.inventory.strings.get(DEFAULT_ACCOUNT);
        let plain = plain(uid, metadata, &account, self.inventory);
        let workload = Workload {
            addresses: vec![address],
            node,
            locality,
            network_mode,
            health: if item.ready {
                Health::Healthy
            } else {
                Health::Unhealthy
            },
            ..identified(plain, self.findings)?
        };
        Some(add_workload(self.outside, workload))
    }
}

/// Reports a slice that belongs to no Service.
pub(crate) fn check_slice(slice: &EndpointSlice, findings: &mut Findings) {
    if slice.service.is_none() {
        let path = Path::root().key("metadata").key("labels");
        let message = "has no label kubernetes.io/service-name and so no effect";
        findings.add(Severity::Warning, path, message, "add the label");
    }
}

fn model_port(port: &ServicePort) -> service::ServicePort {
    service::ServicePort {
        port: port.port,
        target_port: match port.target {
            Target::Number(number) => Some(number),
            Target::Name(_) => None,
        },
        name: port.name.clone(),
        protocol: port.protocol,
    }
}

/// Service port to target port, matched by name, where a slice says other than the Service.
fn slice_ports(source: &Service, slice: &EndpointSlice) -> Vec<(u16, u16)> {
    let target = |port: &ServicePort| {
        let own = slice.ports.iter().find(|own| own.name == port.name)?.port;
        (port.target != Target::Number(own)).then_some((port.port, own))
    };
    source.ports.iter().filter_map(target).collect()
}
