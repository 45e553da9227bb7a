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
    gateway::Gateway,
    identity::Identity,
    mesh::Mesh,
    service::{IpFamilies, Preference, Service},
    waypoint::{self, Waypoint},
    workload::{Tunnel, Workload},
};

/// The port on which every pod of the mesh takes HBONE.
pub const HBONE_PORT: u16 = 15008;

/// Ports of the mesh's own listeners in every pod: captured outbound, captured inbound, HBONE.
pub const MESH_PORTS: [u16; 3] = [15001, 15006, HBONE_PORT];

/// The answer to «where does a connection from this pod to that address go?».
#[derive(Clone, Debug)]
pub enum Route {
    /// Through HBONE to a mesh workload, or to the waypoint before the destination.
    Hbone {
        /// Who takes the tunnel, and where.
        destination: Destination,
        /// What the CONNECT asks for: the application's address, or through a waypoint the very address that
        /// the client asked for.
        authority: SocketAddr,
    },
    /// Plain TCP to a known workload outside the mesh.
    Plain(Destination),
    /// To a known workload whose address only its name tells.
    Named(Named),
    /// Plain TCP to the address asked for: nothing in the mesh is known of it, or its service says so.
    Passthrough {
        /// The address asked for.
        address: SocketAddr,
        /// The service that asked for passthrough, if that was the reason.
        service: Option<Arc<Service>>,
    },
}

impl Route {
    /// The workload that was chosen, with its load for whoever connects to report to; `None` where nothing was.
    pub fn chosen(&self) -> Option<(&Arc<Workload>, &Arc<Load>)> {
        match self {
            Self::Hbone { destination, .. } | Self::Plain(destination) => {
                Some((&destination.workload, &destination.load))
            }
            Self::Named(named) => Some((&named.choice.member.workload, &named.choice.member.load)),
            Self::Passthrough { .. } => None,
        }
    }
}

/// A chosen workload and the way to it.
#[derive(Clone, Debug)]
pub struct Destination {
    /// The chosen workload: the application's own, or an instance of the waypoint before it.
    pub workload: Arc<Workload>,
    /// The service that was asked for, if any; never the waypoint's.
    pub service: Option<Arc<Service>>,
    /// Where TCP connects to: the HBONE port, or the application's where it is reached plainly.
    pub target: SocketAddr,
    /// Identities that the peer may prove: the workload's own and the extra names of the service it was chosen for.
    pub expected: Arc<[Identity]>,
    /// Open connections and failures of the workload, for whoever connects to report to.
    pub load: Arc<Load>,
}

/// A chosen workload whose address is still to be resolved.
#[derive(Clone, Debug)]
pub struct Named {
    choice: Choice,
    families: IpFamilies,
}

impl Named {
    /// The name to resolve.
    pub fn host(&self) -> &Arc<str> {
        &self.choice.member.workload.hostname
    }

    /// Which of its addresses may be used.
    pub fn families(&self) -> IpFamilies {
        self.families
    }

    /// The chosen workload.
    pub fn workload(&self) -> &Arc<Workload> {
        &self.choice.member.workload
    }

    /// The service that was asked for, if any.
    pub fn service(&self) -> Option<&Arc<Service>> {
        self.choice.service.as_ref()
    }

    /// The route, now that an address is known.
    ///
    /// # Errors
    /// When the connection would loop.
    pub fn at(self, address: IpAddr) -> Result<Route, Refusal> {
        self.choice.at(address.to_canonical())
    }
}

/// A chosen workload, and what it is to do with the connection.
#[derive(Clone, Debug)]
struct Choice {
    member: Arc<Member>,
    service: Option<Arc<Service>>,
    expected: Arc<[Identity]>,
    part: Part,
}

/// The part that a chosen workload plays.
#[derive(Clone, Copy, Debug)]
enum Part {
    /// Its application takes the connection on this port.
    Application(u16),
    /// It takes HBONE on a port, and passes the connection on.
    Waypoint { port: u16, destination: SocketAddr },
}

impl Choice {
    /// The route to one of the workload's own addresses, or to what its name tells.
    fn route(self, wanted: IpAddr, families: IpFamilies) -> Result<Route, Refusal> {
        match self.member.workload.address_for(wanted, families) {
            Some(address) => self.at(address),
            None if self.member.workload.is_named() => Ok(Route::Named(Named {
                choice: self,
                families,
            })),
            None => Err(Refusal::NoAddress(Arc::clone(&self.member.workload.uid))),
        }
    }

    fn at(self, address: IpAddr) -> Result<Route, Refusal> {
        let tunnel = self.member.workload.tunnel;
        match self.part {
            Part::Waypoint { port, destination } => Ok(Route::Hbone {
                destination: self.destination(SocketAddr::new(address, port)),
                authority: destination,
            }),
            Part::Application(port) if tunnel == Tunnel::None => Ok(Route::Plain(
                self.destination(SocketAddr::new(address, port)),
            )),
            Part::Application(port) if MESH_PORTS.contains(&port) => Err(Refusal::Loop(port)),
            Part::Application(port) => Ok(Route::Hbone {
                destination: self.destination(SocketAddr::new(address, HBONE_PORT)),
                authority: SocketAddr::new(address, port),
            }),
        }
    }

    fn destination(self, target: SocketAddr) -> Destination {
        Destination {
            workload: Arc::clone(&self.member.workload),
            service: self.service,
            target,
            expected: self.expected,
            load: Arc::clone(&self.member.load),
        }
    }
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
    /// or all were tried.
    #[error("service {service} has no endpoint to offer on port {port}")]
    NoEndpoint {
        /// Its hostname.
        service: Arc<str>,
        /// The port asked for.
        port: u16,
    },
    /// All endpoints that remain are on another network, and the way there is a gateway.
    #[error(
        "service {service} is served on network {network}, behind its gateway; gateways between networks are \
         not supported, so give it an endpoint on this network"
    )]
    OtherNetwork {
        /// Its hostname.
        service: Arc<str>,
        /// The network.
        network: Arc<str>,
    },
    /// The workload has no address that may be used.
    #[error("workload {0} has no address to connect to")]
    NoAddress(Arc<str>),
    /// The workload was asked for by its own address and was tried already.
    #[error("workload {0} was tried and nothing else has its address")]
    Tried(Arc<str>),
    /// The destination's waypoint is not known. Connections do not go past it: policy may live there alone.
    #[error(
        "waypoint {waypoint} of {destination} is not known, and connections do not go past it; wait until its \
         Gateway is programmed, or take the label istio.io/use-waypoint off"
    )]
    UnknownWaypoint {
        /// Hostname of the service, or uid of the workload.
        destination: Arc<str>,
        /// What is known of the waypoint.
        waypoint: Gateway,
    },
    /// The destination's waypoint is known and cannot take the connection.
    #[error("waypoint {waypoint} of {destination} takes no connection: {reason}")]
    Waypoint {
        /// Hostname of the service, or uid of the workload.
        destination: Arc<str>,
        /// The waypoint.
        waypoint: Gateway,
        /// The cause.
        reason: Box<Refusal>,
    },
}

impl Mesh {
    /// Where a connection of `source` to `target` goes.
    ///
    /// A service's address is looked up before a workload's; a service must list the port; what has a
    /// waypoint is reached through it alone, but by the waypoint itself; an address that nothing in the mesh
    /// has is passed through. Workloads in `tried` (by uid) are not chosen again.
    ///
    /// # Errors
    /// When the connection would loop, or its service, workload or waypoint has nothing (more) to offer.
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
        let wish = Wish {
            source,
            address: target.ip(),
            tried,
            now,
        };
        if let Some(front) = self.front_at(&source.network, target.ip(), &source.namespace) {
            return self.to_service(front, target, &wish, rng);
        }
        match self.member_at(&source.network, target.ip()) {
            Some(member) => self.to_workload(member, target, &wish, rng),
            None => Ok(Route::Passthrough {
                address: target,
                service: None,
            }),
        }
    }

    fn to_service(
        &self,
        front: &Front,
        target: SocketAddr,
        wish: &Wish<'_>,
        rng: &mut impl Rng,
    ) -> Result<Route, Refusal> {
        let service = &front.service;
        let port = target.port();
        let passes = service.preference == Preference::Passthrough;
        if !passes && service.port(port).is_none() {
            return Err(Refusal::NoPort {
                service: Arc::clone(&service.hostname),
                port,
            });
        }
        if let Some((gateway, waypoint)) = self.waypoint_before(
            &service.hostname,
            waypoint::drawn(service, rng),
            wish.source,
        )? {
            let before = Before {
                name: &service.hostname,
                service: Some(service),
                gateway,
                target,
            };
            return before.through(&waypoint, wish, rng);
        }
        if passes {
            return Ok(Route::Passthrough {
                address: target,
                service: Some(Arc::clone(service)),
            });
        }
        let candidate = front.choose(port, wish, rng)?;
        let choice = Choice {
            member: Arc::clone(&candidate.member),
            service: Some(Arc::clone(service)),
            expected: Arc::clone(&candidate.expected),
            part: Part::Application(candidate.port),
        };
        choice.route(target.ip(), service.ip_families)
    }

    fn to_workload(
        &self,
        member: &Arc<Member>,
        target: SocketAddr,
        wish: &Wish<'_>,
        rng: &mut impl Rng,
    ) -> Result<Route, Refusal> {
        let workload = &member.workload;
        if let Some((gateway, waypoint)) =
            self.waypoint_before(&workload.uid, workload.waypoint.as_ref(), wish.source)?
        {
            let before = Before {
                name: &workload.uid,
                service: None,
                gateway,
                target,
            };
            return before.through(&waypoint, wish, rng);
        }
        if wish.tried.contains(&workload.uid) {
            return Err(Refusal::Tried(Arc::clone(&workload.uid)));
        }
        let choice = Choice {
            member: Arc::clone(member),
            service: None,
            expected: Arc::clone(&member.identity),
            part: Part::Application(target.port()),
        };
        choice.route(target.ip(), IpFamilies::Automatic)
    }

    /// The waypoint that a connection of `source` goes through; `None` when there is none, or the source is it.
    fn waypoint_before<'a>(
        &'a self,
        destination: &Arc<str>,
        gateway: Option<&'a Gateway>,
        source: &Workload,
    ) -> Result<Option<(&'a Gateway, Waypoint<'a>)>, Refusal> {
        let Some(gateway) = gateway else {
            return Ok(None);
        };
        match self.waypoint(gateway, source) {
            None => Err(Refusal::UnknownWaypoint {
                destination: Arc::clone(destination),
                waypoint: gateway.clone(),
            }),
            Some(waypoint) => Ok((!waypoint.is(source)).then_some((gateway, waypoint))),
        }
    }
}

/// A destination that a waypoint stands before.
struct Before<'a> {
    /// Hostname of the service, or uid of the workload.
    name: &'a Arc<str>,
    service: Option<&'a Arc<Service>>,
    gateway: &'a Gateway,
    target: SocketAddr,
}

impl Before<'_> {
    fn through(
        &self,
        waypoint: &Waypoint<'_>,
        wish: &Wish<'_>,
        rng: &mut impl Rng,
    ) -> Result<Route, Refusal> {
        let chosen = waypoint.choose(self.gateway.port, wish, rng);
        let route = chosen.and_then(|instance| {
            let families = instance
                .service
                .map_or(IpFamilies::Automatic, |service| service.ip_families);
            let choice = Choice {
                member: instance.member,
                service: self.service.cloned(),
                expected: instance.expected,
                part: Part::Waypoint {
                    port: instance.port,
                    destination: self.target,
                },
            };
            choice.route(wish.address, families)
        });
        route.map_err(|reason| Refusal::Waypoint {
            destination: Arc::clone(self.name),
            waypoint: self.gateway.clone(),
            reason: Box::new(reason),
        })
    }
}

/// Linux takes the unspecified address for loopback.
fn is_self(source: &Workload, address: IpAddr) -> bool {
    address.is_loopback() || address.is_unspecified() || source.owns(address)
}

#[cfg(test)]
mod tests;
