//! ServiceEntries to services with their endpoints.
use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

use ipnet::IpNet;
use undermesh_model::{
    Identity, Service as ModelService, Workload,
    service::{HealthPolicy, IpFamilies, Preference, ServiceEndpoint, ServicePort, Visibility},
};

use super::{
    endpoints::{Outside, add_workload, endpoint, named_port, preference, selected},
    findings::{Findings, spec},
    inventory::Inventory,
    services::{Parts, named_by},
    waypoints::{self, Binding},
    workloads::{identified, listed_entry, plain},
};
use crate::{
    diagnostic::{Severity, quote},
    resources::{
        Key,
        core::Distribution,
        kinds::Kind,
        networking::{Address, Entry, EntryPort, Resolution, ServiceEntry},
    },
};

/// Translates a ServiceEntry: one service for each host that no other object of its namespace has before it.
pub(crate) fn service_entry(
    source: &ServiceEntry,
    inventory: &Inventory,
    findings: &mut Findings,
) -> Parts {
    let mut parts = Parts::default();
    report(source, findings);
    let Some(visibility) = source.visibility else {
        return parts;
    };
    let hosts = own_hosts(source, inventory, findings);
    if hosts.is_empty() {
        return parts;
    }
    let mut translator = Translator {
        source,
        inventory,
        findings,
        workloads: Outside::new(),
    };
    let endpoints = translator.endpoints();
    let subject_alt_names = translator.identities();
    let binding = waypoints::of_service(&source.metadata, inventory, translator.findings);
    for host in hosts {
        let endpoints = match &endpoints {
            Some(endpoints) => endpoints.clone(),
            None => translator.looked_up(host),
        };
        parts.services.push(ModelService {
            subject_alt_names: subject_alt_names.clone(),
            visibility,
            endpoints,
            ..service(source, host, &binding, inventory)
        });
    }
    parts.workloads = translator.workloads;
    parts
}

fn report(source: &ServiceEntry, findings: &mut Findings) {
    if source.addresses.is_empty() && source.assigned.is_empty() {
        let message = "has no virtual address, so connections cannot be told to be for it";
        findings.add(Severity::Info, spec("addresses"), message, "give it one");
    }
    if source.visibility.is_none() {
        let message = "is exported to nobody and has no effect";
        findings.add(Severity::Info, spec("exportTo"), message, "");
    } else if source.names_namespaces {
        let message = "single namespaces have no effect at L4: every namespace sees the service";
        findings.add(Severity::Info, spec("exportTo"), message, "");
    }
}

/// The hosts that are this one's: those that no Service and no older ServiceEntry of its namespace has.
fn own_hosts<'a>(
    source: &'a ServiceEntry,
    inventory: &Inventory,
    findings: &mut Findings,
) -> Vec<&'a Arc<str>> {
    let namespace = source.metadata.namespace();
    let mut own: Vec<&Arc<str>> = Vec::new();
    for (position, host) in source.hosts.iter().enumerate() {
        let service = named_by(host)
            .filter(|(home, name)| **home == **namespace && inventory.has_service(home, name))
            .map(|(home, name)| Key::new(Kind::Service, home.into(), name.into()));
        let rivals = inventory.claimants(host);
        let first = rivals
            .filter(|rival| rival.metadata.namespace() == namespace && rival.visibility.is_some())
            .min_by_key(|rival| rival.metadata.age())
            .map(|rival| rival.metadata.key.clone())
            .filter(|first| *first != source.metadata.key || own.contains(&host));
        match service.or(first) {
            Some(winner) => {
                let message = format!("is also in {winner}, which wins");
                let path = spec("hosts").index(position);
                let remedy = "remove it from one of the two";
                findings.add(Severity::Error, path, message, remedy);
            }
            None => own.push(host),
        }
    }
    own
}

/// Whether this is what clients of other namespaces mean by a host: the oldest public one, where no Service has it.
fn is_canonical(source: &ServiceEntry, host: &str, inventory: &Inventory) -> bool {
    if named_by(host).is_some_and(|(home, name)| inventory.has_service(home, name)) {
        return false;
    }
    // Of each namespace only the oldest counts.
    let mut best: BTreeMap<&Arc<str>, &ServiceEntry> = BTreeMap::new();
    let visible = |it: &&Arc<ServiceEntry>| it.visibility.is_some();
    for rival in inventory.claimants(host).filter(visible) {
        let held = best.entry(rival.metadata.namespace()).or_insert(rival);
        if rival.metadata.age() < held.metadata.age() {
            *held = rival;
        }
    }
    let public = best
        .into_values()
        .filter(|rival| rival.visibility == Some(Visibility::Public));
    let oldest = public.min_by_key(|rival| rival.metadata.age());
    oldest.is_some_and(|oldest| oldest.metadata.key == source.metadata.key)
}

fn service(
    source: &ServiceEntry,
    host: &Arc<str>,
    binding: &Binding,
    inventory: &Inventory,
) -> ModelService {
    let metadata = &source.metadata;
    ModelService {
        name: metadata.name().clone(),
        namespace: metadata.namespace().clone(),
        hostname: host.clone(),
        network: inventory.settings.network.clone(),
        addresses: addresses(source, host),
        ports: source.ports.iter().map(model_port).collect(),
        preference: match source.resolution {
            Resolution::None => Preference::Passthrough,
            Resolution::Static | Resolution::Dns => {
                preference(Distribution::annotated(metadata), metadata, inventory)
            }
        },
        health_policy: match source.resolution {
            Resolution::None => HealthPolicy::AllowAll,
            Resolution::Static | Resolution::Dns => HealthPolicy::OnlyHealthy,
        },
        subject_alt_names: Vec::new(),
        canonical: is_canonical(source, host, inventory),
        visibility: Visibility::Public,
        ip_families: IpFamilies::Automatic,
        waypoint: binding.waypoint.clone(),
        weighted_waypoints: binding.weighted.clone(),
        ingress_use_waypoint: binding.ingress,
        endpoints: Vec::new(),
    }
}

struct Translator<'t> {
    source: &'t ServiceEntry,
    inventory: &'t Inventory,
    findings: &'t mut Findings,
    workloads: Outside,
}

impl Translator<'_> {
    /// The endpoints of every host; `None` when each host is looked up by its own name.
    fn endpoints(&mut self) -> Option<Vec<ServiceEndpoint>> {
        let source = self.source;
        match &source.selector {
            _ if source.resolution == Resolution::None => Some(Vec::new()),
            Some(labels) if labels.is_empty() => Some(Vec::new()),
            Some(labels) => {
                let selected = selected(self.inventory, source.metadata.namespace(), labels);
                let reachable = selected.filter(|(workload, _)| is_reachable(workload));
                let endpoint = reachable.map(|(workload, body)| {
                    let own = own_ports(source, |name| named_port(body.ports(), name));
                    endpoint(&workload.uid, own)
                });
                Some(endpoint.collect())
            }
            None if source.endpoints.is_empty() && source.resolution == Resolution::Dns => None,
            None => Some(self.listed()),
        }
    }

    fn listed(&mut self) -> Vec<ServiceEndpoint> {
        let source = self.source;
        let mut endpoints = Vec::new();
        let mut known = HashSet::new();
        for (position, entry) in source.endpoints.iter().enumerate() {
            let Some(uid) = self.listed_workload(position, entry) else {
                continue;
            };
            if known.insert(uid.clone()) {
                let own = own_ports(source, |name| named_port(&entry.ports, name));
                endpoints.push(endpoint(&uid, own));
            }
        }
        endpoints
    }

    /// Makes the workload of a listed endpoint; its uid, when it has an address or a name.
    fn listed_workload(&mut self, position: usize, entry: &Entry) -> Option<Arc<str>> {
        let metadata = &self.source.metadata;
        let path = spec("endpoints").index(position);
        let uid = self.uid(&match &entry.address {
            Address::Ip(address) => address.to_string(),
            Address::Other(text) => text.to_string(),
            Address::Network => String::new(),
        });
        let workload = listed_entry(uid, metadata, entry, &path, self.inventory, self.findings)?;
        let namespace = metadata.namespace();
        let attachment =
            waypoints::of_workload(namespace, &entry.labels, self.inventory, self.findings);
        let workload = Workload {
            waypoint: attachment.waypoint,
            application_tunnel: attachment.tunnel,
            ..workload
        };
        Some(add_workload(&mut self.workloads, workload))
    }

    /// The endpoint of a host that is to be looked up by its own name.
    fn looked_up(&mut self, host: &Arc<str>) -> Vec<ServiceEndpoint> {
        let account = self.inventory.strings.get("default");
        let uid = self.uid(host);
        let plain = plain(uid, &self.source.metadata, &account, self.inventory);
        let Some(plain) = identified(plain, self.findings) else {
            return Vec::new();
        };
        let workload = Workload {
            hostname: host.clone(),
            ..plain
        };
        let uid = add_workload(&mut self.workloads, workload);
        vec![endpoint(&uid, Vec::new())]
    }

    fn uid(&self, address: &str) -> String {
        let metadata = &self.source.metadata;
        format!(
            "{}/networking.istio.io/ServiceEntry/{}/{}/{address}",
            self.inventory.settings.cluster,
            metadata.namespace(),
            metadata.name()
        )
    }

    fn identities(&mut self) -> Vec<Identity> {
        let mut identities = Vec::new();
        for (position, name) in self.source.subject_alt_names.iter().enumerate() {
            match name.parse() {
                Ok(identity) => identities.push(identity),
                Err(_) => {
                    let path = spec("subjectAltNames").index(position);
                    let message = format!(
                        "{} is no identity of a mesh and admits no endpoint",
                        quote(name)
                    );
                    let remedy =
                        "write spiffe://<trust domain>/ns/<namespace>/sa/<service account>";
                    self.findings.add(Severity::Warning, path, message, remedy);
                }
            }
        }
        identities
    }
}

fn is_reachable(workload: &Workload) -> bool {
    !workload.addresses.is_empty() || !workload.hostname.is_empty()
}

fn addresses(source: &ServiceEntry, host: &str) -> Vec<IpNet> {
    if !source.addresses.is_empty() {
        return source.addresses.clone();
    }
    let for_host = source
        .assigned
        .iter()
        .filter(|(assigned, _)| assigned.is_empty() || **assigned == *host);
    for_host.map(|(_, address)| IpNet::from(*address)).collect()
}

fn model_port(port: &EntryPort) -> ServicePort {
    ServicePort {
        port: port.port,
        target_port: Some(port.target),
        name: port.name.clone(),
        protocol: port.protocol,
    }
}

/// The ports that an endpoint has of its own, by the names of the ServiceEntry's ports.
fn own_ports(source: &ServiceEntry, own: impl Fn(&str) -> Option<u16>) -> Vec<(u16, u16)> {
    let differing = |port: &EntryPort| {
        Some((port.port, own(&port.name)?)).filter(|(_, own)| *own != port.target)
    };
    source.ports.iter().filter_map(differing).collect()
}
