//! Which pod stands where, what each node talks to, and so who must be told of what.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use crate::size::Size;

/// The cluster's name in uids, the controller's default.
const CLUSTER: &str = "Kubernetes";
/// The first address of a pod (10.128.0.0/9); the testbed's own pods have lower ones.
const FIRST_POD: u32 = 0x0a80_0000;
/// The first address of a service (10.96.0.0/13).
const FIRST_SERVICE: u32 = 0x0a60_0000;
/// Spreads the services that a node talks to.
const STEP: u32 = 7;

/// The place of a pod: always the same node and service, whoever stands there.
pub type Slot = u32;

/// A pod of the generated cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodName {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its address; no other pod ever has it.
    pub address: Ipv4Addr,
}

impl PodName {
    /// The uid of its workload (Istio's form).
    pub fn uid(&self) -> String {
        format!("{CLUSTER}//Pod/{}/{}", self.namespace, self.name)
    }
}

/// How many resources a node must know.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Share {
    /// Workloads.
    pub workloads: usize,
    /// Services.
    pub services: usize,
}

/// The generated cluster.
#[derive(Debug)]
pub struct Plan {
    size: Size,
    /// The nodes that must know a service and its endpoints, by service.
    audiences: Vec<Vec<u32>>,
    shares: Vec<Share>,
}

impl Plan {
    /// Spreads pods over nodes and services.
    pub fn new(size: &Size) -> Self {
        let mut plan = Self {
            audiences: vec![Vec::new(); size.services as usize],
            shares: Vec::with_capacity(size.nodes as usize),
            size: size.clone(),
        };
        for node in 0..size.nodes {
            let known = plan.known_to(node);
            for service in &known {
                plan.audiences[*service as usize].push(node);
            }
            let workloads = known.iter().map(|it| plan.slots_of(*it).count()).sum();
            plan.shares.push(Share {
                workloads,
                services: known.len(),
            });
        }
        plan
    }

    /// The sizes.
    pub fn size(&self) -> &Size {
        &self.size
    }

    /// The name of a node.
    pub fn node_name(node: u32) -> String {
        format!("node-{node}")
    }

    /// The name of a namespace.
    pub fn namespace_name(namespace: u32) -> String {
        format!("team-{namespace}")
    }

    /// The namespace of a service and its pods.
    pub fn namespace_of(&self, service: u32) -> String {
        Self::namespace_name(service % self.size.namespaces)
    }

    /// The name of a service.
    pub fn service_name(service: u32) -> String {
        format!("service-{service}")
    }

    /// The address of a service.
    pub fn service_address(service: u32) -> Ipv4Addr {
        Ipv4Addr::from(FIRST_SERVICE + 1 + service)
    }

    /// The node of a slot.
    pub fn node_of(&self, slot: Slot) -> u32 {
        slot % self.size.nodes
    }

    /// The service of a slot.
    pub fn service_of(&self, slot: Slot) -> u32 {
        let service = u64::from(slot) * u64::from(self.size.services) / u64::from(self.size.pods);
        // Smaller than the number of services, since slots are fewer than pods.
        u32::try_from(service).unwrap_or(u32::MAX)
    }

    /// The slots of a service.
    pub fn slots_of(&self, service: u32) -> std::ops::Range<Slot> {
        let (pods, services) = (u64::from(self.size.pods), u64::from(self.size.services));
        let first = |service: u32| {
            let slot = (u64::from(service) * pods).div_ceil(services);
            u32::try_from(slot).unwrap_or(u32::MAX)
        };
        first(service)..first(service + 1)
    }

    /// The pod that stands in a slot after so many others.
    pub fn pod(&self, slot: Slot, predecessors: u32) -> PodName {
        let service = self.service_of(slot);
        let name = Self::service_name(service);
        PodName {
            namespace: self.namespace_of(service),
            name: format!("{name}-7d4b9c6f5-{slot}-{predecessors}"),
            address: Ipv4Addr::from(FIRST_POD + 1 + slot + predecessors * self.size.pods),
        }
    }

    /// The services that a node talks to.
    pub fn talks_of(&self, node: u32) -> impl Iterator<Item = u32> {
        let Size {
            services, talks, ..
        } = self.size;
        let stride = services.checked_div(talks).unwrap_or(1);
        (0..talks).map(move |talk| (node * STEP + talk * stride) % services)
    }

    /// The nodes that must know a service and its endpoints: those that talk to it, and those that run its pods.
    pub fn audience(&self, service: u32) -> &[u32] {
        &self.audiences[service as usize]
    }

    /// What a node must know when nothing changes.
    pub fn share(&self, node: u32) -> Share {
        self.shares[node as usize]
    }

    fn known_to(&self, node: u32) -> BTreeSet<u32> {
        let slots = (node..self.size.pods).step_by(self.size.nodes as usize);
        let own = slots.map(|slot| self.service_of(slot));
        own.chain(self.talks_of(node)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan() -> Plan {
        Plan::new(&Size {
            nodes: 20,
            pods: 505,
            services: 50,
            namespaces: 7,
            talks: 10,
            churn: 10,
            seconds: 1,
        })
    }

    #[test]
    fn every_slot_is_in_the_range_of_its_service() {
        let plan = plan();
        for slot in 0..505 {
            let service = plan.service_of(slot);
            assert!(plan.slots_of(service).contains(&slot), "{slot}");
        }
        assert_eq!(plan.slots_of(49).end, 505);
    }

    #[test]
    fn a_node_talks_to_as_many_services_as_it_was_told() {
        let plan = plan();
        for node in 0..20 {
            let talks: BTreeSet<u32> = plan.talks_of(node).collect();
            assert_eq!(talks.len(), 10);
        }
    }

    #[test]
    fn who_talks_to_a_service_or_runs_its_pods_is_its_audience() {
        let plan = plan();
        for service in 0..50 {
            let audience = plan.audience(service);
            for node in 0..20 {
                let talks = plan.talks_of(node).any(|it| it == service);
                let runs = plan
                    .slots_of(service)
                    .any(|slot| plan.node_of(slot) == node);
                assert_eq!(audience.contains(&node), talks || runs);
            }
        }
    }

    #[test]
    fn no_two_pods_share_a_name_or_an_address() {
        let plan = plan();
        let pods = (0..505).flat_map(|slot| [plan.pod(slot, 0), plan.pod(slot, 1)]);
        let (names, addresses): (BTreeSet<String>, BTreeSet<Ipv4Addr>) =
            pods.map(|pod| (pod.uid(), pod.address)).unzip();
        assert_eq!((names.len(), addresses.len()), (1010, 1010));
    }
}
