//! From the model to the wire, the field rules those of istiod.
//!
//! What a workload is for services is kept in the services by the model and in the workloads by the wire, so
//! [`workload`] leaves its services out and [`membership`] makes each of them.
use std::net::IpAddr;

use bytes::Bytes;
use ipnet::{IpNet, Ipv4Net};
use undermesh_model::{
    Gateway, GatewayDestination, Locality, Service, ServicePort, TrustDomain, WeightedWaypoint,
    Workload,
    service::{
        AppProtocol, HealthPolicy, IpFamilies, Preference, Scope, ServiceEndpoint, Visibility,
    },
    workload::{ApplicationTunnel, DEFAULT_CAPACITY, Health, NetworkMode, Tunnel, WorkloadKind},
};

use crate::wire::workload as wire;

mod policy;
#[cfg(test)]
mod tests;

pub use policy::{policy, refusal};

/// Bits of `::ffff:0:0/96`, in front of an IPv4 address that is mapped into IPv6 (RFC 4291, section 2.5.5.2).
const MAPPED_BITS: u8 = 96;

/// A workload without its services.
///
/// The wire has one namespace for the workload and for its identity, where the model has two that agree.
pub fn workload(workload: &Workload) -> wire::Workload {
    wire::Workload {
        uid: workload.uid.to_string(),
        name: workload.name.to_string(),
        namespace: workload.namespace.to_string(),
        addresses: workload.addresses.iter().copied().map(octets).collect(),
        hostname: workload.hostname.to_string(),
        network: workload.network.to_string(),
        tunnel_protocol: tunnel(workload.tunnel).into(),
        trust_domain: trust_domain(&workload.identity.trust_domain),
        service_account: workload.identity.service_account.to_string(),
        waypoint: workload.waypoint.as_ref().map(gateway),
        network_gateway: workload.network_gateway.as_ref().map(gateway),
        node: workload.node.to_string(),
        canonical_name: workload.canonical_name.to_string(),
        canonical_revision: workload.canonical_revision.to_string(),
        workload_type: kind(workload.workload_kind).into(),
        workload_name: workload.workload_name.to_string(),
        native_tunnel: workload.native_tunnel,
        application_tunnel: workload.application_tunnel.map(application_tunnel),
        authorization_policies: workload.policies.iter().map(ToString::to_string).collect(),
        status: health(workload.health).into(),
        cluster_id: workload.cluster.to_string(),
        locality: locality(&workload.locality),
        network_mode: network_mode(workload.network_mode).into(),
        capacity: (workload.capacity != DEFAULT_CAPACITY).then_some(workload.capacity),
        services: Default::default(),
        extensions: Vec::new(),
    }
}

/// A workload's part in a service: every port of the service with the workload's own port for it. A named port
/// that the workload does not know is left out. What is spoken on a port is said by the service alone.
pub fn membership(service: &Service, endpoint: &ServiceEndpoint) -> wire::PortList {
    let resolved = listed(service).filter_map(|port| {
        Some(wire::Port {
            service_port: port.port.into(),
            target_port: endpoint.target(port)?.into(),
            app_protocol: wire::AppProtocol::Unknown.into(),
        })
    });
    wire::PortList {
        ports: resolved.collect(),
    }
}

/// A service.
pub fn service(service: &Service) -> wire::Service {
    let ports = listed(service).map(|port| wire::Port {
        service_port: port.port.into(),
        // 0 is a named port (section "Port" of `istio.workload`).
        target_port: port.target_port.unwrap_or_default().into(),
        app_protocol: protocol(port.protocol).into(),
    });
    wire::Service {
        name: service.name.to_string(),
        namespace: service.namespace.to_string(),
        hostname: service.hostname.to_string(),
        addresses: service
            .addresses
            .iter()
            .map(|net| virtual_address(&service.network, *net))
            .collect(),
        ports: ports.collect(),
        subject_alt_names: service
            .subject_alt_names
            .iter()
            .map(ToString::to_string)
            .collect(),
        waypoint: service.waypoint.as_ref().map(gateway),
        load_balancing: load_balancing(&service.preference, service.health_policy),
        ip_families: ip_families(service.ip_families).into(),
        extensions: Vec::new(),
        canonical: service.canonical,
        ingress_use_waypoint: service.ingress_use_waypoint,
        weighted_waypoints: service.weighted_waypoints.iter().map(weighted).collect(),
        visibility: visibility(service.visibility).into(),
    }
}

/// The ports of a service; of two entries for one port the first counts, as in [`Service::port`].
fn listed(service: &Service) -> impl Iterator<Item = &ServicePort> {
    let first = |port: &&ServicePort| {
        service
            .port(port.port)
            .is_some_and(|first| std::ptr::eq(first, *port))
    };
    service.ports.iter().filter(first)
}

/// A network in its own family: one that is mapped into IPv6 becomes IPv4, which is what peers compare with.
pub(crate) fn canonical(net: IpNet) -> IpNet {
    let (IpAddr::V4(address), IpNet::V6(_), Some(bits)) = (
        net.addr().to_canonical(),
        net,
        net.prefix_len().checked_sub(MAPPED_BITS),
    ) else {
        return net;
    };
    Ipv4Net::new(address, bits).map_or(net, IpNet::V4)
}

/// An address as raw bytes, 4 or 16.
pub(crate) fn octets(address: IpAddr) -> Bytes {
    match address.to_canonical() {
        IpAddr::V4(address) => Bytes::copy_from_slice(&address.octets()),
        IpAddr::V6(address) => Bytes::copy_from_slice(&address.octets()),
    }
}

fn virtual_address(network: &str, net: IpNet) -> wire::NetworkAddress {
    let net = canonical(net);
    wire::NetworkAddress {
        network: network.to_owned(),
        address: octets(net.addr()),
        length: (net.prefix_len() != net.max_prefix_len()).then_some(net.prefix_len().into()),
    }
}

fn gateway(gateway: &Gateway) -> wire::GatewayAddress {
    use wire::gateway_address::Destination;

    let destination = match &gateway.destination {
        GatewayDestination::Hostname {
            namespace,
            hostname,
        } => Destination::Hostname(wire::NamespacedHostname {
            namespace: namespace.to_string(),
            hostname: hostname.to_string(),
        }),
        GatewayDestination::Address { network, address } => {
            Destination::Address(virtual_address(network, IpNet::from(*address)))
        }
    };
    wire::GatewayAddress {
        destination: Some(destination),
        hbone_mtls_port: gateway.port.into(),
    }
}

fn weighted(waypoint: &WeightedWaypoint) -> wire::WeightedWaypoint {
    wire::WeightedWaypoint {
        destination: Some(gateway(&waypoint.gateway)),
        weight: waypoint.weight,
    }
}

/// Empty stands for the default, as istiod sends it.
fn trust_domain(domain: &TrustDomain) -> String {
    if *domain == TrustDomain::cluster_local() {
        return String::new();
    }
    domain.to_string()
}

fn locality(locality: &Locality) -> Option<wire::Locality> {
    (*locality != Locality::default()).then(|| wire::Locality {
        region: locality.region.to_string(),
        zone: locality.zone.to_string(),
        subzone: locality.subzone.to_string(),
    })
}

fn application_tunnel(tunnel: ApplicationTunnel) -> wire::ApplicationTunnel {
    use wire::application_tunnel::Protocol;

    let protocol = match tunnel.proxy_protocol {
        true => Protocol::Proxy,
        false => Protocol::None,
    };
    wire::ApplicationTunnel {
        protocol: protocol.into(),
        port: tunnel.port.unwrap_or_default().into(),
    }
}

fn load_balancing(preference: &Preference, health: HealthPolicy) -> Option<wire::LoadBalancing> {
    use wire::load_balancing::{HealthPolicy as WireHealth, Mode};

    let (mode, scopes): (_, &[Scope]) = match preference {
        Preference::None => (Mode::UnspecifiedMode, &[]),
        Preference::Strict(scopes) => (Mode::Strict, scopes),
        Preference::Failover(scopes) => (Mode::Failover, scopes),
        Preference::Passthrough => (Mode::Passthrough, &[]),
    };
    let health_policy = match health {
        HealthPolicy::OnlyHealthy => WireHealth::OnlyHealthy,
        HealthPolicy::AllowAll => WireHealth::AllowAll,
    };
    let balancing = wire::LoadBalancing {
        routing_preference: scopes
            .iter()
            .map(|scope| self::scope(*scope).into())
            .collect(),
        mode: mode.into(),
        health_policy: health_policy.into(),
    };
    (balancing != wire::LoadBalancing::default()).then_some(balancing)
}

fn scope(scope: Scope) -> wire::load_balancing::Scope {
    use wire::load_balancing::Scope as Wire;

    match scope {
        Scope::Network => Wire::Network,
        Scope::Region => Wire::Region,
        Scope::Zone => Wire::Zone,
        Scope::Subzone => Wire::Subzone,
        Scope::Node => Wire::Node,
        Scope::Cluster => Wire::Cluster,
    }
}

fn tunnel(tunnel: Tunnel) -> wire::TunnelProtocol {
    match tunnel {
        Tunnel::None => wire::TunnelProtocol::None,
        Tunnel::Hbone => wire::TunnelProtocol::Hbone,
    }
}

fn kind(kind: WorkloadKind) -> wire::WorkloadType {
    match kind {
        WorkloadKind::Deployment => wire::WorkloadType::Deployment,
        WorkloadKind::CronJob => wire::WorkloadType::Cronjob,
        WorkloadKind::Pod => wire::WorkloadType::Pod,
        WorkloadKind::Job => wire::WorkloadType::Job,
    }
}

fn health(health: Health) -> wire::WorkloadStatus {
    match health {
        Health::Healthy => wire::WorkloadStatus::Healthy,
        Health::Unhealthy => wire::WorkloadStatus::Unhealthy,
    }
}

fn network_mode(mode: NetworkMode) -> wire::NetworkMode {
    match mode {
        NetworkMode::Standard => wire::NetworkMode::Standard,
        NetworkMode::HostNetwork => wire::NetworkMode::HostNetwork,
    }
}

fn protocol(protocol: AppProtocol) -> wire::AppProtocol {
    match protocol {
        AppProtocol::Unknown => wire::AppProtocol::Unknown,
        AppProtocol::Http11 => wire::AppProtocol::Http11,
        AppProtocol::Http2 => wire::AppProtocol::Http2,
        AppProtocol::Grpc => wire::AppProtocol::Grpc,
        AppProtocol::Tcp => wire::AppProtocol::Tcp,
        AppProtocol::Tls => wire::AppProtocol::Tls,
    }
}

fn ip_families(families: IpFamilies) -> wire::IpFamilies {
    match families {
        IpFamilies::Automatic => wire::IpFamilies::Automatic,
        IpFamilies::Ipv4Only => wire::IpFamilies::Ipv4Only,
        IpFamilies::Ipv6Only => wire::IpFamilies::Ipv6Only,
        IpFamilies::Dual => wire::IpFamilies::Dual,
    }
}

fn visibility(visibility: Visibility) -> wire::service::Visibility {
    match visibility {
        Visibility::Public => wire::service::Visibility::Public,
        Visibility::Namespace => wire::service::Visibility::Namespace,
    }
}
