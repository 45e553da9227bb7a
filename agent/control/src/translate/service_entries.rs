//! ServiceEntries to services with their endpoints.
use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use ipnet::IpNet;
use undermesh_model::{
    Identity,
    service::{
        AppProtocol, HealthPolicy, IpFamilies, Preference, Service, ServiceEndpoint, ServicePort,
        Visibility,
    },
};

use super::{
    Findings, Inventory,
    services::{Parts, Roster, named_port},
    spec,
    workloads::{Place, entry_workload, report_entry},
};
use crate::{
    diagnostic::{Severity, quote},
    path::Path,
    resources::{
        metadata::Metadata,
        networking::{Address, Entry, EntryPort, Resolution, ServiceEntry},
    },
    settings::Settings,
};

/// Translates all ServiceEntries: one service for each host.
pub(super) fn translate(
    inventory: &Inventory<'_>,
    settings: &Settings,
    roster: &Roster<'_, '_>,
    findings: &mut Findings,
) -> Parts {
    let mut sources = inventory.service_entries.clone();
    sources.sort_by_key(|source| source.metadata.age());
    let mut translator = Translator {
        inventory,
        settings,
        roster,
        findings,
        parts: Parts::default(),
        first: HashMap::new(),
    };
    for source in sources {
        translator.add(source);
    }
    translator.parts
}

struct Translator<'t, 'm, 'a> {
    inventory: &'t Inventory<'a>,
    settings: &'t Settings,
    roster: &'t Roster<'m, 'a>,
    findings: &'t mut Findings,
    parts: Parts,
    /// The oldest ServiceEntry of each host and namespace.
    first: HashMap<Arc<str>, HashMap<Arc<str>, &'a Metadata>>,
}

impl<'a> Translator<'_, '_, 'a> {
    fn add(&mut self, source: &'a ServiceEntry) {
        self.report(source);
        let endpoints = self.endpoints(source);
        let subject_alt_names = self.identities(source);
        for (position, host) in source.hosts.iter().enumerate() {
            let owners = self.first.entry(host.clone()).or_default();
            let is_oldest = owners.is_empty();
            if let Some(first) = owners.get(source.metadata.namespace()) {
                let message = format!("is also in {}, which wins", first.key);
                let path = spec("hosts").index(position);
                self.findings.add(
                    &source.metadata,
                    Severity::Error,
                    path,
                    message,
                    "remove it from one of the two",
                );
                continue;
            }
            owners.insert(source.metadata.namespace().clone(), &source.metadata);
            self.parts.services.push(Service {
                name: source.metadata.name().clone(),
                namespace: source.metadata.namespace().clone(),
                hostname: host.clone(),
                network: self.settings.network.clone(),
                addresses: addresses(source, host),
                ports: source.ports.iter().map(model_port).collect(),
                preference: match source.resolution {
                    Resolution::None => Preference::Passthrough,
                    Resolution::Static | Resolution::Dns => Preference::None,
                },
                health_policy: match source.resolution {
                    Resolution::None => HealthPolicy::AllowAll,
                    Resolution::Static | Resolution::Dns => HealthPolicy::OnlyHealthy,
                },
                subject_alt_names: subject_alt_names.clone(),
                canonical: is_oldest,
                visibility: Visibility::Public,
                ip_families: IpFamilies::Automatic,
                waypoint: None,
                weighted_waypoints: Vec::new(),
                ingress_use_waypoint: false,
                endpoints: endpoints.clone(),
            });
        }
    }

    fn report(&mut self, source: &ServiceEntry) {
        let metadata = &source.metadata;
        if source.resolution == Resolution::Dns {
            let message =
                "endpoints by DNS are not supported yet; connections to its addresses are refused";
            let remedy = "use STATIC with endpoints, or NONE";
            self.findings.add(
                metadata,
                Severity::Error,
                spec("resolution"),
                message,
                remedy,
            );
        }
        if source.addresses.is_empty() && source.assigned.is_empty() {
            let message = "has no virtual address, so connections cannot be told to be for it";
            self.findings.add(
                metadata,
                Severity::Info,
                spec("addresses"),
                message,
                "give it one",
            );
        }
        if source.has_export_to {
            let message = "has no effect at L4: every namespace sees the service";
            self.findings
                .add(metadata, Severity::Info, spec("exportTo"), message, "");
        }
    }

    fn endpoints(&mut self, source: &ServiceEntry) -> Vec<ServiceEndpoint> {
        if source.resolution != Resolution::Static {
            return Vec::new();
        }
        match &source.selector {
            Some(labels) if labels.is_empty() => Vec::new(),
            Some(labels) => {
                let selected = self.roster.selected(source.metadata.namespace(), labels);
                let reachable = selected.filter(|member| !member.workload.addresses.is_empty());
                let endpoint = reachable.map(|member| ServiceEndpoint {
                    workload: member.workload.uid.clone(),
                    ports: own_ports(source, |name| named_port(name, member)),
                });
                endpoint.collect()
            }
            None => self.listed_endpoints(source),
        }
    }

    fn listed_endpoints(&mut self, source: &ServiceEntry) -> Vec<ServiceEndpoint> {
        let mut endpoints = Vec::new();
        let mut known = HashSet::new();
        for (position, entry) in source.endpoints.iter().enumerate() {
            report_entry(
                &source.metadata,
                entry,
                &spec("endpoints").index(position),
                self.findings,
            );
            let Some(uid) = self.listed_workload(source, entry) else {
                continue;
            };
            if known.insert(uid.clone()) {
                let own = |name: &str| {
                    entry
                        .ports
                        .iter()
                        .find(|(own, _)| &**own == name)
                        .map(|(_, port)| *port)
                };
                endpoints.push(ServiceEndpoint {
                    workload: uid,
                    ports: own_ports(source, own),
                });
            }
        }
        endpoints
    }

    /// Makes the workload of a listed endpoint; its uid, when it has an address.
    fn listed_workload(&mut self, source: &ServiceEntry, entry: &Entry) -> Option<Arc<str>> {
        let metadata = &source.metadata;
        let Address::Ip(address) = entry.address else {
            return None;
        };
        let (namespace, name) = (metadata.namespace(), metadata.name());
        let uid = format!(
            "{}/networking.istio.io/ServiceEntry/{namespace}/{name}/{address}",
            self.settings.cluster
        );
        let place = Place {
            node: Arc::default(),
            labels: &entry.labels,
            healthy: true,
        };
        let made = entry_workload(uid, metadata, entry, &place, self.inventory, self.settings);
        let workload = made.unwrap_or_else(|error| {
            self.findings.add(
                metadata,
                Severity::Error,
                Path::root(),
                error.to_string(),
                "",
            );
            None
        })?;
        let uid = workload.uid.clone();
        self.parts.workloads.insert(uid.clone(), workload);
        Some(uid)
    }

    fn identities(&mut self, source: &ServiceEntry) -> Vec<Identity> {
        let mut identities = Vec::new();
        for (position, name) in source.subject_alt_names.iter().enumerate() {
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
                    self.findings
                        .add(&source.metadata, Severity::Warning, path, message, remedy);
                }
            }
        }
        identities
    }
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
        protocol: AppProtocol::Unknown,
    }
}

/// The ports that an endpoint has of its own, by the names of the ServiceEntry's ports.
fn own_ports(source: &ServiceEntry, own: impl Fn(&str) -> Option<u16>) -> Vec<(u16, u16)> {
    let differing = |port: &EntryPort| {
        Some((port.port, own(&port.name)?)).filter(|(_, own)| *own != port.target)
    };
    source.ports.iter().filter_map(differing).collect()
}
