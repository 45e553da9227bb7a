//! `istio.workload.Service` to [`Service`].
use std::{str::FromStr, sync::Arc};

use ipnet::IpNet;
use undermesh_model::{
    Identity, Service, ServicePort, WeightedWaypoint,
    service::{AppProtocol, HealthPolicy, IpFamilies, Preference, Scope, Visibility},
};

use super::{
    DecodeError,
    field::{gateway, number, port, range, real_port, required},
    names::Names,
};
use crate::wire::workload as wire;

/// Reads a service for a node on the network `home`.
pub(super) fn service(
    wire: wire::Service,
    home: &Arc<str>,
    names: &mut Names,
) -> Result<Service, DecodeError> {
    let (network, addresses) = addresses(&wire.addresses, home, names)?;
    let (preference, health_policy) = balancing(wire.load_balancing.unwrap_or_default())?;
    Ok(Service {
        name: names.get(required(&wire.name, "name")?),
        namespace: names.get(required(&wire.namespace, "namespace")?),
        hostname: names.get(required(&wire.hostname, "hostname")?),
        network,
        addresses,
        ports: wire
            .ports
            .iter()
            .map(|port| service_port(port, names))
            .collect::<Result<_, _>>()?,
        preference,
        health_policy,
        // Names of other kinds are not for the mesh's peers; ztunnel leaves them out too. Each one less is one
        // less that a peer may prove.
        subject_alt_names: wire
            .subject_alt_names
            .iter()
            .filter_map(|name| Identity::from_str(name).ok())
            .collect(),
        canonical: wire.canonical,
        visibility: visibility(wire.visibility),
        ip_families: ip_families(wire.ip_families)?,
        waypoint: wire
            .waypoint
            .map(|waypoint| gateway(waypoint, "waypoint", names))
            .transpose()?,
        weighted_waypoints: wire
            .weighted_waypoints
            .into_iter()
            .map(|waypoint| weighted(waypoint, names))
            .collect::<Result<_, _>>()?,
        ingress_use_waypoint: wire.ingress_use_waypoint,
        endpoints: Vec::new(),
    })
}

/// All addresses are checked. Those on the node's own network are what its pods can ask for; a service that has
/// none there keeps those of the first network that it names.
fn addresses(
    wire: &[wire::NetworkAddress],
    home: &Arc<str>,
    names: &mut Names,
) -> Result<(Arc<str>, Vec<IpNet>), DecodeError> {
    let read = wire
        .iter()
        .map(|place| {
            Ok((
                place.network.as_str(),
                range(&place.address, place.length, "addresses")?,
            ))
        })
        .collect::<Result<Vec<_>, DecodeError>>()?;
    let at_home = read.iter().any(|(network, _)| *network == &**home);
    let network = match read.first() {
        Some((network, _)) if !at_home => names.get(network),
        _ => Arc::clone(home),
    };
    let addresses = read
        .into_iter()
        .filter(|(other, _)| *other == &*network)
        .map(|(_, range)| range)
        .collect();
    Ok((network, addresses))
}

fn service_port(wire: &wire::Port, names: &mut Names) -> Result<ServicePort, DecodeError> {
    const FIELD: &str = "ports";
    Ok(ServicePort {
        port: real_port(wire.service_port, FIELD)?,
        target_port: Some(port(wire.target_port, FIELD)?).filter(|port| *port != 0),
        name: names.get(""),
        protocol: protocol(wire.app_protocol()),
    })
}

/// It is a hint that decides nothing on L4: one of a later version counts as not said.
fn protocol(value: wire::AppProtocol) -> AppProtocol {
    match value {
        wire::AppProtocol::Unknown => AppProtocol::Unknown,
        wire::AppProtocol::Http11 => AppProtocol::Http11,
        wire::AppProtocol::Http2 => AppProtocol::Http2,
        wire::AppProtocol::Grpc => AppProtocol::Grpc,
        wire::AppProtocol::Tcp => AppProtocol::Tcp,
        wire::AppProtocol::Tls => AppProtocol::Tls,
    }
}

fn balancing(wire: wire::LoadBalancing) -> Result<(Preference, HealthPolicy), DecodeError> {
    use wire::load_balancing::{HealthPolicy as WireHealth, Mode};

    let scopes = || {
        let listed = wire.routing_preference.iter();
        listed.map(|value| scope(*value)).collect::<Result<_, _>>()
    };
    let preference = match number(wire.mode, "load_balancing.mode")? {
        Mode::UnspecifiedMode => Preference::None,
        Mode::Strict => Preference::Strict(scopes()?),
        Mode::Failover => Preference::Failover(scopes()?),
        Mode::Passthrough => Preference::Passthrough,
    };
    let health = match number(wire.health_policy, "load_balancing.health_policy")? {
        WireHealth::OnlyHealthy => HealthPolicy::OnlyHealthy,
        WireHealth::AllowAll => HealthPolicy::AllowAll,
    };
    Ok((preference, health))
}

fn scope(value: i32) -> Result<Scope, DecodeError> {
    use wire::load_balancing::Scope as Wire;

    const FIELD: &str = "load_balancing.routing_preference";
    match number(value, FIELD)? {
        Wire::UnspecifiedScope => Err(DecodeError::Number(FIELD, value)),
        Wire::Region => Ok(Scope::Region),
        Wire::Zone => Ok(Scope::Zone),
        Wire::Subzone => Ok(Scope::Subzone),
        Wire::Node => Ok(Scope::Node),
        Wire::Cluster => Ok(Scope::Cluster),
        Wire::Network => Ok(Scope::Network),
    }
}

fn ip_families(value: i32) -> Result<IpFamilies, DecodeError> {
    match number(value, "ip_families")? {
        wire::IpFamilies::Automatic => Ok(IpFamilies::Automatic),
        wire::IpFamilies::Ipv4Only => Ok(IpFamilies::Ipv4Only),
        wire::IpFamilies::Ipv6Only => Ok(IpFamilies::Ipv6Only),
        wire::IpFamilies::Dual => Ok(IpFamilies::Dual),
    }
}

/// The one enum whose unknown values have a meaning on the wire: everybody.
fn visibility(value: i32) -> Visibility {
    match wire::service::Visibility::try_from(value) {
        Ok(wire::service::Visibility::Namespace) => Visibility::Namespace,
        Ok(wire::service::Visibility::Public) | Err(_) => Visibility::Public,
    }
}

fn weighted(
    wire: wire::WeightedWaypoint,
    names: &mut Names,
) -> Result<WeightedWaypoint, DecodeError> {
    const FIELD: &str = "weighted_waypoints";
    let destination = wire.destination.ok_or(DecodeError::Missing(FIELD))?;
    Ok(WeightedWaypoint {
        gateway: gateway(destination, FIELD, names)?,
        weight: wire.weight,
    })
}
