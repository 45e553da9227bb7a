//! Services to services with their endpoints, from EndpointSlices or from selectors.
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::IpAddr,
    sync::Arc,
};

use ipnet::IpNet;
use undermesh_model::{
    Identity, Tunnel, Workload,
    service::{
        self, AppProtocol, HealthPolicy, IpFamilies, Preference, Scope, ServiceEndpoint, Visibility,
    },
    workload::{DEFAULT_CAPACITY, Health, NetworkMode, WorkloadKind},
};

use super::{
    Findings, Inventory, spec,
    workloads::{Body, Member, report_host_network},
};
use crate::{
    diagnostic::Severity,
    path::Path,
    resources::{
        core::{Distribution, Service, ServiceForm, ServicePort, Target},
        discovery::{Endpoint, EndpointSlice},
        field::Labels,
    },
    settings::Settings,
};

/// The domain of the names of Services.
const CLUSTER_DOMAIN: &str = "cluster.local";

/// Services, and the workloads that only exist as their endpoints, by uid.
#[derive(Debug, Default)]
pub(super) struct Parts {
    pub(super) services: Vec<service::Service>,
    pub(super) workloads: BTreeMap<Arc<str>, Workload>,
}

impl Parts {
    pub(super) fn extend(&mut self, other: Self) {
        self.services.extend(other.services);
        self.workloads.extend(other.workloads);
    }
}

/// The workloads, found by namespace, pod name and address.
#[derive(Debug)]
pub(super) struct Roster<'m, 'a> {
    by_namespace: HashMap<&'m str, Vec<&'m Member<'a>>>,
    pods: HashMap<(&'m str, &'m str), &'m Member<'a>>,
    by_address: HashMap<(&'m str, IpAddr), &'m Member<'a>>,
}

impl<'m, 'a> Roster<'m, 'a> {
    pub(super) fn new(members: &'m [Member<'a>]) -> Self {
        let mut roster = Self {
            by_namespace: HashMap::new(),
            pods: HashMap::new(),
            by_address: HashMap::new(),
        };
        for member in members {
            let workload = &member.workload;
            roster
                .by_namespace
                .entry(&workload.namespace)
                .or_default()
                .push(member);
            if let Body::Pod(_) = member.body {
                roster
                    .pods
                    .insert((&workload.namespace, &workload.name), member);
            }
            for address in &workload.addresses {
                // Pods come first in the list of members, and so keep their address.
                roster
                    .by_address
                    .entry((&workload.network, *address))
                    .or_insert(member);
            }
        }
        roster
    }

    /// The workloads of a namespace that have all the labels.
    pub(super) fn selected<'s>(
        &'s self,
        namespace: &str,
        labels: &'s Labels,
    ) -> impl Iterator<Item = &'m Member<'a>> + 's {
        let members = self
            .by_namespace
            .get(namespace)
            .map(Vec::as_slice)
            .unwrap_or_default();
        members
            .iter()
            .copied()
            .filter(move |member| member.labels.include(labels))
    }

    fn endpoint(
        &self,
        endpoint: &Endpoint,
        address: IpAddr,
        network: &str,
    ) -> Option<&'m Member<'a>> {
        let named = endpoint
            .pod
            .as_ref()
            .and_then(|(namespace, name)| self.pods.get(&(&**namespace, &**name)));
        let named = named.filter(|member| member.workload.addresses.contains(&address));
        named
            .or_else(|| self.by_address.get(&(network, address)))
            .copied()
    }
}

/// Translates all Services.
pub(super) fn translate(
    inventory: &Inventory<'_>,
    settings: &Settings,
    roster: &Roster<'_, '_>,
    findings: &mut Findings,
) -> Parts {
    let mut slices: HashMap<(&str, &str), Vec<&EndpointSlice>> = HashMap::new();
    for slice in &inventory.slices {
        if let Some(service) = &slice.service {
            slices
                .entry((slice.metadata.namespace(), service))
                .or_default()
                .push(slice);
        } else {
            let path = Path::root().key("metadata").key("labels");
            let message = "has no label kubernetes.io/service-name and so no effect";
            findings.add(
                &slice.metadata,
                Severity::Warning,
                path,
                message,
                "add the label",
            );
        }
    }
    let mut translator = Translator {
        inventory,
        settings,
        roster,
        findings,
        parts: Parts::default(),
    };
    for service in &inventory.services {
        let key = (&**service.metadata.namespace(), &**service.metadata.name());
        translator.add(service, slices.get(&key).map(Vec::as_slice));
    }
    translator.parts
}

struct Translator<'t, 'm, 'a> {
    inventory: &'t Inventory<'a>,
    settings: &'t Settings,
    roster: &'t Roster<'m, 'a>,
    findings: &'t mut Findings,
    parts: Parts,
}

impl Translator<'_, '_, '_> {
    fn add(&mut self, source: &Service, slices: Option<&[&EndpointSlice]>) {
        let metadata = &source.metadata;
        let addresses: &[IpAddr] = match &source.form {
            ServiceForm::ExternalName => {
                let message = "an alias in DNS; not used by the L4 data plane";
                self.findings
                    .add(metadata, Severity::Info, spec("type"), message, "");
                return;
            }
            ServiceForm::Headless => &[],
            ServiceForm::Virtual(addresses) => addresses,
        };
        if addresses.is_empty() && source.form != ServiceForm::Headless {
            let message = "has no virtual address, so connections cannot be told to be for it";
            self.findings.add(
                metadata,
                Severity::Info,
                spec("clusterIP"),
                message,
                "give it one",
            );
        }
        let endpoints = match slices {
            Some(slices) => self.sliced(source, slices),
            None => self.selected(source),
        };
        self.parts.services.push(service::Service {
            name: metadata.name().clone(),
            namespace: metadata.namespace().clone(),
            hostname: format!(
                "{}.{}.svc.{CLUSTER_DOMAIN}",
                metadata.name(),
                metadata.namespace()
            )
            .into(),
            network: self.settings.network.clone(),
            addresses: addresses.iter().copied().map(IpNet::from).collect(),
            ports: source.ports.iter().map(model_port).collect(),
            preference: preference(source),
            health_policy: if source.publish_not_ready {
                HealthPolicy::AllowAll
            } else {
                HealthPolicy::OnlyHealthy
            },
            subject_alt_names: Vec::new(),
            canonical: true,
            visibility: Visibility::Public,
            ip_families: IpFamilies::Automatic,
            waypoint: None,
            weighted_waypoints: Vec::new(),
            ingress_use_waypoint: false,
            endpoints,
        });
    }

    fn selected(&mut self, source: &Service) -> Vec<ServiceEndpoint> {
        if source.selector.is_empty() {
            return Vec::new();
        }
        let mut endpoints = Vec::new();
        for member in self
            .roster
            .selected(source.metadata.namespace(), &source.selector)
        {
            match member.body {
                Body::Pod(pod) if pod.host_network => {
                    report_host_network(&source.metadata, pod, self.findings);
                }
                _ => endpoints.push(ServiceEndpoint {
                    workload: member.workload.uid.clone(),
                    ports: source
                        .ports
                        .iter()
                        .filter_map(|port| own_port(port, member))
                        .collect(),
                }),
            }
        }
        endpoints
    }

    fn sliced(&mut self, source: &Service, slices: &[&EndpointSlice]) -> Vec<ServiceEndpoint> {
        let mut endpoints: BTreeMap<Arc<str>, Vec<(u16, u16)>> = BTreeMap::new();
        for slice in slices {
            let ports = slice_ports(source, slice);
            for endpoint in &slice.endpoints {
                for address in &endpoint.addresses {
                    if let Some(uid) = self.slice_endpoint(slice, endpoint, *address) {
                        let known = endpoints.entry(uid).or_default();
                        let news: HashSet<u16> = known.iter().map(|(port, _)| *port).collect();
                        known.extend(ports.iter().filter(|(port, _)| !news.contains(port)));
                    }
                }
            }
        }
        endpoints
            .into_iter()
            .map(|(workload, ports)| ServiceEndpoint { workload, ports })
            .collect()
    }

    /// The workload of an address in a slice: a pod or entry that is known, or one made for it.
    fn slice_endpoint(
        &mut self,
        slice: &EndpointSlice,
        endpoint: &Endpoint,
        address: IpAddr,
    ) -> Option<Arc<str>> {
        if let Some(member) = self
            .roster
            .endpoint(endpoint, address, &self.settings.network)
        {
            return endpoint.ready.then(|| member.workload.uid.clone());
        }
        let metadata = &slice.metadata;
        let workload =
            match outside_workload(slice, endpoint, address, self.inventory, self.settings) {
                Ok(workload) => workload,
                Err(error) => {
                    self.findings.add(
                        metadata,
                        Severity::Error,
                        Path::root(),
                        error.to_string(),
                        "",
                    );
                    return None;
                }
            };
        let uid = workload.uid.clone();
        self.parts.workloads.insert(uid.clone(), workload);
        Some(uid)
    }
}

/// The workload of an address that no pod has, such as one of a machine outside the cluster.
fn outside_workload(
    slice: &EndpointSlice,
    endpoint: &Endpoint,
    address: IpAddr,
    inventory: &Inventory<'_>,
    settings: &Settings,
) -> Result<Workload, undermesh_model::IdentityError> {
    let metadata = &slice.metadata;
    let (namespace, name) = (metadata.namespace(), metadata.name());
    let node = endpoint.node.clone().unwrap_or_default();
    let mut locality = inventory.locality_of(&node).unwrap_or_default();
    if let Some(zone) = &endpoint.zone {
        locality.zone = zone.clone();
    }
    Ok(Workload {
        uid: format!(
            "{}/discovery.k8s.io/EndpointSlice/{namespace}/{name}/{address}",
            settings.cluster
        )
        .into(),
        name: name.clone(),
        namespace: namespace.clone(),
        addresses: vec![address],
        network: settings.network.clone(),
        tunnel: Tunnel::None,
        identity: Identity::new(settings.trust_domain.clone(), namespace, "default")?,
        node,
        canonical_name: name.clone(),
        canonical_revision: Arc::from("latest"),
        workload_name: name.clone(),
        workload_kind: WorkloadKind::Pod,
        locality,
        health: if endpoint.ready {
            Health::Healthy
        } else {
            Health::Unhealthy
        },
        cluster: settings.cluster.clone(),
        policies: Vec::new(),
        hostname: Arc::from(""),
        network_mode: NetworkMode::Standard,
        capacity: DEFAULT_CAPACITY,
        waypoint: None,
        network_gateway: None,
        application_tunnel: None,
        native_tunnel: false,
    })
}

fn model_port(port: &ServicePort) -> service::ServicePort {
    service::ServicePort {
        port: port.port,
        target_port: match port.target {
            Target::Number(number) => Some(number),
            Target::Name(_) => None,
        },
        name: port.name.clone(),
        protocol: AppProtocol::Unknown,
    }
}

/// The port of a workload where the Service only names it.
fn own_port(port: &ServicePort, member: &Member<'_>) -> Option<(u16, u16)> {
    let Target::Name(name) = &port.target else {
        return None;
    };
    named_port(name, member).map(|own| (port.port, own))
}

/// The port that a workload has under a name.
pub(super) fn named_port(name: &str, member: &Member<'_>) -> Option<u16> {
    let ports = match member.body {
        Body::Pod(pod) => &pod.ports,
        Body::Entry(entry) => &entry.ports,
    };
    ports
        .iter()
        .find(|(own, _)| &**own == name)
        .map(|(_, port)| *port)
}

/// Service port to target port, matched by name, where a slice says other than the Service.
fn slice_ports(source: &Service, slice: &EndpointSlice) -> Vec<(u16, u16)> {
    let target = |port: &ServicePort| {
        let own = slice.ports.iter().find(|own| own.name == port.name)?.port;
        (port.target != Target::Number(own)).then_some((port.port, own))
    };
    source.ports.iter().filter_map(target).collect()
}

/// Source: istiod's field rules for `load_balancing`.
fn preference(source: &Service) -> Preference {
    if source.local {
        return Preference::Strict(vec![Scope::Node]);
    }
    match source.distribution {
        Distribution::Any => Preference::None,
        Distribution::SameZone => {
            Preference::Failover(vec![Scope::Network, Scope::Region, Scope::Zone])
        }
        Distribution::SameNode => Preference::Failover(vec![
            Scope::Network,
            Scope::Region,
            Scope::Zone,
            Scope::Subzone,
            Scope::Node,
        ]),
    }
}
