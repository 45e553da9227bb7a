//! Where an outbound connection goes: the decision tree of the node proxy.
use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Instant,
};

use rand::Rng;

use crate::{
    balance::Load,
    endpoints::{Front, Member, Wish},
    identity::Identity,
    mesh::Mesh,
    service::{Preference, Service},
    workload::{Tunnel, Workload},
};

/// Ports of the mesh's own listeners in every pod: captured outbound, captured inbound, HBONE.
pub const MESH_PORTS: [u16; 3] = [15001, 15006, 15008];

/// The answer to «where does a connection from this pod to that address go?».
#[derive(Clone, Debug)]
pub enum Route {
    /// Through HBONE to a mesh workload.
    Hbone(Destination),
    /// Plain TCP to a known workload outside the mesh.
    Plain(Destination),
    /// Plain TCP to the address asked for: nothing in the mesh is known of it, or its service says so.
    Passthrough {
        /// The address asked for.
        address: SocketAddr,
        /// The service that asked for passthrough, if that was the reason.
        service: Option<Arc<Service>>,
    },
}

/// A chosen workload and the way to it.
#[derive(Clone, Debug)]
pub struct Destination {
    /// The chosen workload.
    pub workload: Arc<Workload>,
    /// The service that was asked for, if any.
    pub service: Option<Arc<Service>>,
    /// Address and port of the application in the workload: the CONNECT authority, or the plain target.
    pub address: SocketAddr,
    /// Identities that the peer may prove: the workload's own and its service's extra names.
    pub expected: Arc<[Identity]>,
    /// Open connections and failures of the workload, for whoever connects to report to.
    pub load: Arc<Load>,
}

/// Why there is nowhere to go.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The destination is one of the mesh's own ports.
    #[error("port {0} belongs to the mesh itself; a connection to it would loop")]
    Loop(u16),
    /// The service is known and does not list the port.
    #[error("service {service} has no port {port}")]
    NoPort {
        /// Its hostname.
        service: Arc<str>,
        /// The port asked for.
        port: u16,
    },
    /// The service has no endpoint that may be used: none at all, none healthy, none by its preference,
    /// none on the source's network (the way to another one is a gateway), or all were tried.
    #[error("service {service} has no endpoint to offer on port {port}")]
    NoEndpoint {
        /// Its hostname.
        service: Arc<str>,
        /// The port asked for.
        port: u16,
    },
    /// The workload was asked for by its own address and was tried already.
    #[error("workload {0} was tried and nothing else has its address")]
    Tried(Arc<str>),
}

impl Mesh {
    /// Where a connection of `source` to `target` goes.
    ///
    /// A service's address is looked up before a workload's; a service must list the port; an address
    /// that nothing in the mesh has is passed through. Workloads in `tried` (by uid) are not chosen again.
    ///
    /// # Errors
    /// When the connection would loop, or its service or workload has nothing (more) to offer.
    pub fn route(
        &self,
        source: &Workload,
        target: SocketAddr,
        tried: &[Arc<str>],
        now: Instant,
        rng: &mut impl Rng,
    ) -> Result<Route, Refusal> {
        let target = SocketAddr::new(target.ip().to_canonical(), target.port());
        if MESH_PORTS.contains(&target.port()) && is_self(source, target.ip()) {
            return Err(Refusal::Loop(target.port()));
        }
        if let Some(front) = self.front_at(&source.network, target.ip(), &source.namespace) {
            let wish = Wish {
                source,
                address: target.ip(),
                tried,
                now,
            };
            return to_service(front, target, &wish, rng);
        }
        match self.member_at(&source.network, target.ip()) {
            Some(member) => to_workload(member, target, tried),
            None => Ok(Route::Passthrough {
                address: target,
                service: None,
            }),
        }
    }
}

/// Linux takes the unspecified address for loopback.
fn is_self(source: &Workload, address: IpAddr) -> bool {
    address.is_loopback() || address.is_unspecified() || source.owns(address)
}

fn to_service(
    front: &Front,
    target: SocketAddr,
    wish: &Wish<'_>,
    rng: &mut impl Rng,
) -> Result<Route, Refusal> {
    let service = &front.service;
    let port = target.port();
    if service.preference == Preference::Passthrough {
        return Ok(Route::Passthrough {
            address: target,
            service: Some(Arc::clone(service)),
        });
    }
    if service.port(port).is_none() {
        return Err(Refusal::NoPort {
            service: Arc::clone(&service.hostname),
            port,
        });
    }
    match front.choose(port, wish, rng) {
        Some(destination) => by_tunnel(destination),
        None => Err(Refusal::NoEndpoint {
            service: Arc::clone(&service.hostname),
            port,
        }),
    }
}

fn to_workload(member: &Member, address: SocketAddr, tried: &[Arc<str>]) -> Result<Route, Refusal> {
    let workload = &member.workload;
    if tried.contains(&workload.uid) {
        return Err(Refusal::Tried(Arc::clone(&workload.uid)));
    }
    by_tunnel(Destination {
        workload: Arc::clone(workload),
        service: None,
        address,
        expected: Arc::clone(&member.identity),
        load: Arc::clone(&member.load),
    })
}

fn by_tunnel(destination: Destination) -> Result<Route, Refusal> {
    match destination.workload.tunnel {
        Tunnel::None => Ok(Route::Plain(destination)),
        Tunnel::Hbone if MESH_PORTS.contains(&destination.address.port()) => {
            Err(Refusal::Loop(destination.address.port()))
        }
        Tunnel::Hbone => Ok(Route::Hbone(destination)),
    }
}

#[cfg(test)]
mod tests;
