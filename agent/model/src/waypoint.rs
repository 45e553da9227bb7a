//! Waypoints: which one stands before a destination, and which of its instances takes a connection.
use std::{net::IpAddr, sync::Arc};

use rand::{Rng, RngExt as _};

use crate::{
    endpoints::{Front, Member, Wish},
    gateway::{Gateway, GatewayDestination},
    identity::Identity,
    mesh::Mesh,
    route::Refusal,
    service::Service,
    workload::Workload,
};

/// A waypoint that the mesh knows.
pub(crate) enum Waypoint<'a> {
    /// The service of its instances.
    Service(&'a Front),
    /// A single instance.
    Instance(&'a Arc<Member>),
}

/// The instance of a waypoint that takes a connection.
pub(crate) struct Instance {
    pub(crate) member: Arc<Member>,
    /// The port on which it takes HBONE.
    pub(crate) port: u16,
    pub(crate) expected: Arc<[Identity]>,
    /// The waypoint's own service, where it has one.
    pub(crate) service: Option<Arc<Service>>,
}

impl Waypoint<'_> {
    /// Whether a workload is the waypoint: what it sends does not go through the waypoint again.
    pub(crate) fn is(&self, workload: &Workload) -> bool {
        match self {
            Self::Service(front) => front.holds(&workload.uid),
            Self::Instance(member) => member.workload.uid == workload.uid,
        }
    }

    /// Chooses an instance by the rules for endpoints of any service.
    pub(crate) fn choose(
        &self,
        port: u16,
        wish: &Wish<'_>,
        rng: &mut impl Rng,
    ) -> Result<Instance, Refusal> {
        match self {
            Self::Service(front) => {
                let candidate = front.choose(port, wish, rng)?;
                Ok(Instance {
                    member: Arc::clone(&candidate.member),
                    port: candidate.port,
                    expected: Arc::clone(&candidate.expected),
                    service: Some(Arc::clone(&front.service)),
                })
            }
            Self::Instance(member) if wish.tried.contains(&member.workload.uid) => {
                Err(Refusal::Tried(Arc::clone(&member.workload.uid)))
            }
            Self::Instance(member) => Ok(Instance {
                member: Arc::clone(member),
                port,
                expected: Arc::clone(&member.identity),
                service: None,
            }),
        }
    }
}

/// The waypoint for a new connection to a service: one of the weighted ones by weight, else the only one.
pub(crate) fn drawn<'a>(service: &'a Service, rng: &mut impl Rng) -> Option<&'a Gateway> {
    let weighted = || service.weighted_waypoints.iter();
    let total: u64 = weighted().map(|one| u64::from(one.weight)).sum();
    if total == 0 {
        return service.waypoint.as_ref();
    }
    let mut lot = rng.random_range(0..total);
    let drawn = weighted().find(|one| {
        let weight = u64::from(one.weight);
        let hit = lot < weight;
        lot = lot.saturating_sub(weight);
        hit
    });
    drawn.map(|one| &one.gateway)
}

impl Mesh {
    /// The waypoint that a gateway means, as `source` sees it.
    pub(crate) fn waypoint(&self, gateway: &Gateway, source: &Workload) -> Option<Waypoint<'_>> {
        match &gateway.destination {
            GatewayDestination::Hostname {
                namespace,
                hostname,
            } => self
                .front_named(namespace, hostname)
                .map(|front| Waypoint::Service(front)),
            GatewayDestination::Address { network, address } => {
                let front = self.front_at(network, *address, &source.namespace);
                let member = || self.member_at(network, *address).map(Waypoint::Instance);
                front.map(|front| Waypoint::Service(front)).or_else(member)
            }
        }
    }

    /// Whether `workload` is a waypoint before what has this address on its network, so that connections
    /// to there may come to it instead.
    pub fn is_waypoint_before(&self, workload: &Workload, address: IpAddr) -> bool {
        let is = |gateway: &Gateway| {
            self.waypoint(gateway, workload)
                .is_some_and(|waypoint| waypoint.is(workload))
        };
        if let Some(service) = self.service_at(&workload.network, address, &workload.namespace) {
            let weighted = service.weighted_waypoints.iter().map(|one| &one.gateway);
            return weighted.chain(&service.waypoint).any(is);
        }
        let asked = self.workload_at(&workload.network, address);
        asked.is_some_and(|asked| asked.waypoint.iter().any(is))
    }
}

#[cfg(test)]
mod tests;
