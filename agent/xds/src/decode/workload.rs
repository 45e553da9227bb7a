//! `istio.workload.Workload` to [`Workload`] and its part in services.
use std::{collections::HashMap, sync::Arc};

use undermesh_model::{
    Identity, Locality, TrustDomain, Tunnel, Workload,
    workload::{ApplicationTunnel, DEFAULT_CAPACITY, Health, NetworkMode, WorkloadKind},
};

use super::{
    DecodeError, Member, Membership,
    field::{address, gateway, number, port, real_port, required},
    names::Names,
};
use crate::wire::workload as wire;

/// What stands for an empty field, as in ztunnel.
const DEFAULT_SERVICE_ACCOUNT: &str = "default";
const DEFAULT_CLUSTER: &str = "Kubernetes";

/// Reads a workload.
pub(super) fn member(wire: wire::Workload, names: &mut Names) -> Result<Member, DecodeError> {
    let services = memberships(&wire.services, names)?;
    Ok(Member {
        workload: workload(wire, names)?,
        services,
    })
}

fn workload(wire: wire::Workload, names: &mut Names) -> Result<Workload, DecodeError> {
    let addresses = wire.addresses.iter();
    Ok(Workload {
        uid: Arc::from(required(&wire.uid, "uid")?),
        name: Arc::from(required(&wire.name, "name")?),
        namespace: names.get(required(&wire.namespace, "namespace")?),
        addresses: addresses
            .map(|bytes| address(bytes, "addresses"))
            .collect::<Result<_, _>>()?,
        network: names.get(&wire.network),
        tunnel: tunnel(wire.tunnel_protocol)?,
        identity: identity(&wire, names)?,
        node: names.get(&wire.node),
        canonical_name: names.get(&wire.canonical_name),
        canonical_revision: names.get(&wire.canonical_revision),
        workload_name: names.get(&wire.workload_name),
        workload_kind: kind(wire.workload_type()),
        locality: wire
            .locality
            .map(|place| locality(&place, names))
            .unwrap_or_default(),
        health: health(wire.status)?,
        cluster: names.get(or(&wire.cluster_id, DEFAULT_CLUSTER)),
        policies: wire
            .authorization_policies
            .iter()
            .map(|policy| names.get(policy))
            .collect(),
        hostname: names.get(&wire.hostname),
        network_mode: network_mode(wire.network_mode)?,
        capacity: wire.capacity.unwrap_or(DEFAULT_CAPACITY),
        waypoint: wire
            .waypoint
            .map(|waypoint| gateway(waypoint, "waypoint", names))
            .transpose()?,
        network_gateway: wire
            .network_gateway
            .map(|way| gateway(way, "network_gateway", names))
            .transpose()?,
        application_tunnel: wire
            .application_tunnel
            .map(|tunnel| application_tunnel(&tunnel))
            .transpose()?,
        native_tunnel: wire.native_tunnel,
    })
}

fn identity(wire: &wire::Workload, names: &mut Names) -> Result<Identity, DecodeError> {
    let trust_domain: TrustDomain = match wire.trust_domain.as_str() {
        "" => TrustDomain::cluster_local(),
        name => name.parse()?,
    };
    let account = or(&wire.service_account, DEFAULT_SERVICE_ACCOUNT);
    let checked = Identity::new(trust_domain, &wire.namespace, account)?;
    Ok(Identity {
        namespace: names.get(&checked.namespace),
        service_account: names.get(&checked.service_account),
        ..checked
    })
}

fn memberships(
    services: &HashMap<String, wire::PortList>,
    names: &mut Names,
) -> Result<Vec<Membership>, DecodeError> {
    let mut read = services
        .iter()
        .map(|(key, ports)| membership(key, ports, names))
        .collect::<Result<Vec<_>, _>>()?;
    read.sort_by(|one, other| one.service.cmp(&other.service));
    Ok(read)
}

fn membership(
    key: &str,
    list: &wire::PortList,
    names: &mut Names,
) -> Result<Membership, DecodeError> {
    const FIELD: &str = "services";
    match key.split_once('/') {
        Some((namespace, hostname)) if !namespace.is_empty() && !hostname.is_empty() => {}
        _ => return Err(DecodeError::Key(FIELD, key.to_owned())),
    }
    let ports = list.ports.iter().map(|pair| {
        Ok((
            real_port(pair.service_port, FIELD)?,
            port(pair.target_port, FIELD)?,
        ))
    });
    Ok(Membership {
        service: names.get(key),
        ports: ports.collect::<Result<_, DecodeError>>()?,
    })
}

fn tunnel(value: i32) -> Result<Tunnel, DecodeError> {
    match number(value, "tunnel_protocol")? {
        wire::TunnelProtocol::None => Ok(Tunnel::None),
        wire::TunnelProtocol::Hbone => Ok(Tunnel::Hbone),
        wire::TunnelProtocol::LegacyIstioMtls => Err(DecodeError::LegacyTunnel),
    }
}

fn health(value: i32) -> Result<Health, DecodeError> {
    match number(value, "status")? {
        wire::WorkloadStatus::Healthy => Ok(Health::Healthy),
        wire::WorkloadStatus::Unhealthy => Ok(Health::Unhealthy),
    }
}

fn network_mode(value: i32) -> Result<NetworkMode, DecodeError> {
    match number(value, "network_mode")? {
        wire::NetworkMode::Standard => Ok(NetworkMode::Standard),
        wire::NetworkMode::HostNetwork => Ok(NetworkMode::HostNetwork),
    }
}

/// It only chooses a label, so that a kind of a later version is no reason to lose the workload: the wire's
/// default stands for it, as in ztunnel.
fn kind(value: wire::WorkloadType) -> WorkloadKind {
    match value {
        wire::WorkloadType::Deployment => WorkloadKind::Deployment,
        wire::WorkloadType::Cronjob => WorkloadKind::CronJob,
        wire::WorkloadType::Pod => WorkloadKind::Pod,
        wire::WorkloadType::Job => WorkloadKind::Job,
    }
}

fn application_tunnel(wire: &wire::ApplicationTunnel) -> Result<ApplicationTunnel, DecodeError> {
    use wire::application_tunnel::Protocol;

    const FIELD: &str = "application_tunnel";
    Ok(ApplicationTunnel {
        proxy_protocol: number::<Protocol>(wire.protocol, FIELD)? == Protocol::Proxy,
        port: Some(port(wire.port, FIELD)?).filter(|port| *port != 0),
    })
}

fn locality(wire: &wire::Locality, names: &mut Names) -> Locality {
    Locality {
        region: names.get(&wire.region),
        zone: names.get(&wire.zone),
        subzone: names.get(&wire.subzone),
    }
}

fn or<'a>(text: &'a str, default: &'a str) -> &'a str {
    if text.is_empty() { default } else { text }
}
