//! Where a CONNECT that came to a pod ends there.
//!
//! Source: ztunnel's decision tree for inbound HBONE. The address in a CONNECT is a wish of the peer: whatever
//! it is, the connection ends at the pod's own application, and policy judges that.
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use http::StatusCode;
use undermesh_model::{MESH_PORTS, Mesh, Service, Workload};

use crate::hbone::Authority;

/// The end of a connection inside the pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Arrival {
    /// The pod's address and the application's port, as policy sees it.
    pub application: SocketAddr,
    /// Where the application is connected to.
    pub target: SocketAddr,
    /// For an application that wants the PROXY protocol: the address that the client asked for.
    pub announced: Option<SocketAddr>,
}

/// Why a CONNECT has no end here; says which status answers it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Astray {
    /// The address is not this pod's, nor one that this pod is the waypoint of.
    #[error("{asked} is not an address of this pod ({local}), and it is no waypoint before it")]
    NotHere { asked: SocketAddr, local: IpAddr },
    /// The port is one of the mesh's own.
    #[error("port {0} belongs to the mesh itself; ask for the application's")]
    MeshPort(u16),
    /// No service of that name, or it is not for this pod's namespace.
    #[error("the mesh knows no service {0} for this pod")]
    UnknownHost(String),
    /// The service does not say which port of this pod is meant.
    #[error("service {host} leads to no port of this pod from its port {port}")]
    NoPort { host: String, port: u16 },
    /// The application is to be told an address, and the service has none.
    #[error("service {0} has no address on the pod's network to tell the application")]
    NoAddress(String),
}

impl Astray {
    /// The status that answers the request.
    pub(crate) fn status(&self) -> StatusCode {
        match self {
            Self::NotHere { .. } => StatusCode::BAD_REQUEST,
            Self::MeshPort(_) | Self::UnknownHost(_) | Self::NoPort { .. } | Self::NoAddress(_) => {
                StatusCode::SERVICE_UNAVAILABLE
            }
        }
    }
}

/// Finds the end of a CONNECT that came to `local`, an address of `workload`.
///
/// # Errors
/// When it is not meant for the pod, or does not say what it means.
pub(crate) fn find(
    mesh: &Mesh,
    workload: &Workload,
    local: IpAddr,
    authority: &Authority,
) -> Result<Arrival, Astray> {
    let tunnel = workload.application_tunnel;
    let asked = match authority {
        Authority::Address(asked) => {
            let here = asked.ip() == local
                || tunnel.is_some()
                || mesh.is_waypoint_before(workload, asked.ip());
            if !here {
                let asked = *asked;
                return Err(Astray::NotHere { asked, local });
            }
            asked.port()
        }
        Authority::Host { host, port } => match workload.application_port() {
            Some(own) => own,
            None => endpoint_port(service(mesh, workload, host)?, workload, host, *port)?,
        },
    };
    let port = workload.application_port().unwrap_or(asked);
    // Neither what was asked for nor what the workload says of itself may lead back into the mesh's listeners.
    if let Some(port) = [asked, port]
        .into_iter()
        .find(|port| MESH_PORTS.contains(port))
    {
        return Err(Astray::MeshPort(port));
    }
    let application = SocketAddr::new(local, port);
    if !tunnel.is_some_and(|tunnel| tunnel.proxy_protocol) {
        return Ok(Arrival {
            application,
            target: application,
            announced: None,
        });
    }
    let announced = match authority {
        Authority::Address(asked) => *asked,
        Authority::Host { host, port } => {
            let service = service(mesh, workload, host)?;
            let address = virtual_address(service, workload);
            let address = address.ok_or_else(|| Astray::NoAddress(host.clone()))?;
            SocketAddr::new(address, *port)
        }
    };
    Ok(Arrival {
        application,
        target: SocketAddr::new(loopback(local), port),
        announced: Some(announced),
    })
}

fn service<'a>(mesh: &'a Mesh, workload: &Workload, host: &str) -> Result<&'a Service, Astray> {
    let service = mesh.service_meant(host, &workload.namespace);
    let service = service.ok_or_else(|| Astray::UnknownHost(host.to_owned()))?;
    Ok(service)
}

/// The workload's own port for a port of a service that it is an endpoint of.
fn endpoint_port(
    service: &Service,
    workload: &Workload,
    host: &str,
    port: u16,
) -> Result<u16, Astray> {
    let mut endpoints = service.endpoints.iter();
    let endpoint = endpoints.find(|endpoint| endpoint.workload == workload.uid);
    let target = endpoint
        .zip(service.port(port))
        .and_then(|(endpoint, listed)| endpoint.target(listed));
    target.ok_or_else(|| Astray::NoPort {
        host: host.to_owned(),
        port,
    })
}

/// A single address of the service on the workload's network, IPv4 first.
fn virtual_address(service: &Service, workload: &Workload) -> Option<IpAddr> {
    let addresses = || {
        let nets = service.addresses.iter();
        nets.filter(|net| net.prefix_len() == net.max_prefix_len())
            .map(|net| net.addr().to_canonical())
    };
    addresses()
        .find(IpAddr::is_ipv4)
        .or_else(|| addresses().next())
        .filter(|_| service.network == workload.network)
}

fn loopback(local: IpAddr) -> IpAddr {
    match local {
        IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    }
}

#[cfg(test)]
mod tests;
