//! The addresses of one network: which workload or service has one.
use std::{collections::HashMap, net::IpAddr, sync::Arc};

use ipnet::IpNet;

use crate::{
    address::canonical,
    endpoints::{Front, Member},
    workload::{NetworkMode, Tunnel, Workload},
};

/// Workloads and services by address.
#[derive(Default)]
pub(crate) struct Network {
    members: HashMap<IpAddr, Arc<Member>>,
    fronts: HashMap<IpNet, Vec<Arc<Front>>>,
    /// The prefix lengths in `fronts`, longest first: one lookup each.
    lengths: Vec<u8>,
}

impl Network {
    /// Adds a workload under its addresses; on a collision the better one stays. The addresses of a host
    /// stand for none of the workloads that share them.
    pub(crate) fn add_member(&mut self, member: &Arc<Member>) {
        if member.workload.network_mode == NetworkMode::HostNetwork {
            return;
        }
        for address in &member.workload.addresses {
            let holder = self
                .members
                .entry(address.to_canonical())
                .or_insert_with(|| Arc::clone(member));
            if standing(&member.workload) > standing(&holder.workload) {
                *holder = Arc::clone(member);
            }
        }
    }

    /// Adds a service under one of its addresses. Of services that share it, the one added first is preferred.
    pub(crate) fn add_front(&mut self, address: IpNet, front: &Arc<Front>) {
        let net = canonical(address).trunc();
        self.fronts.entry(net).or_default().push(Arc::clone(front));
        if let Err(place) = self
            .lengths
            .binary_search_by(|length| net.prefix_len().cmp(length))
        {
            self.lengths.insert(place, net.prefix_len());
        }
    }

    pub(crate) fn member(&self, address: IpAddr) -> Option<&Arc<Member>> {
        self.members.get(&address.to_canonical())
    }

    /// The service that has the address, of those that a client in `namespace` sees: an exact address before
    /// a range, then the client's own namespace, then the longest prefix, then the canonical one.
    pub(crate) fn front(&self, address: IpAddr, namespace: &str) -> Option<&Arc<Front>> {
        let address = address.to_canonical();
        if let Some(fronts) = self.fronts.get(&IpNet::from(address))
            && let Some(front) = own(fronts, namespace).or_else(|| visible(fronts, namespace))
        {
            return Some(front);
        }
        let ranges = || self.ranges(address);
        ranges()
            .find_map(|fronts| own(fronts, namespace))
            .or_else(|| ranges().find_map(|fronts| visible(fronts, namespace)))
    }

    fn ranges(&self, address: IpAddr) -> impl Iterator<Item = &Vec<Arc<Front>>> {
        let nets = self
            .lengths
            .iter()
            .filter_map(move |length| IpNet::new(address, *length).ok());
        nets.filter_map(|net| self.fronts.get(&net.trunc()))
    }
}

/// What makes a workload the holder of a name or an address that another one has too: being a pod, then
/// being in the mesh.
pub(crate) fn standing(workload: &Workload) -> (bool, bool) {
    (workload.is_pod(), workload.tunnel == Tunnel::Hbone)
}

fn own<'a>(fronts: &'a [Arc<Front>], namespace: &str) -> Option<&'a Arc<Front>> {
    fronts
        .iter()
        .find(|front| &*front.service.namespace == namespace)
}

fn visible<'a>(fronts: &'a [Arc<Front>], namespace: &str) -> Option<&'a Arc<Front>> {
    fronts
        .iter()
        .find(|front| front.service.is_visible_to(namespace))
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*, sample::select};

    use crate::{
        fixture::{mesh, pod, service},
        service::{Service, Visibility},
        workload::{NetworkMode, Workload},
    };

    #[test]
    fn the_addresses_of_a_host_stand_for_none_of_its_workloads() {
        let host = Workload {
            network_mode: NetworkMode::HostNetwork,
            ..pod("agent", &["192.0.2.1"])
        };
        let mesh = mesh(&[&host], &[]);
        assert_eq!(mesh.workload_at("", "192.0.2.1".parse().unwrap()), None);
        assert!(mesh.workload_named("shop", "agent").is_some());
    }

    fn services() -> impl Strategy<Value = Vec<Service>> {
        let nets = vec!["10.96.0.1", "10.96.0.0/16", "10.0.0.0/8"];
        let parts = (
            select(vec!["a", "b", "c"]),
            select(nets),
            any::<bool>(),
            any::<bool>(),
        );
        let made = |(index, (namespace, net, hidden, canonical)): (usize, (_, _, _, _))| {
            let mut made = service(&format!("s{index}"), &[net], &[]);
            made.namespace = <&str>::into(namespace);
            made.canonical = canonical;
            if hidden {
                made.visibility = Visibility::Namespace;
            }
            made
        };
        vec(parts, 0..8).prop_map(move |all| all.into_iter().enumerate().map(made).collect())
    }

    proptest! {
        #[test]
        fn an_address_leads_to_the_best_service_of_those_that_the_client_sees(
            services in services(),
            client in select(vec!["a", "b", "c", "d"]),
        ) {
            let mesh = mesh(&[], &services.iter().collect::<Vec<_>>());
            let rank = |service: &Service| {
                let length = service.addresses[0].prefix_len();
                let own = &*service.namespace == client;
                (length == 32, own, length, service.canonical)
            };
            let best = services.iter().filter(|service| service.is_visible_to(client)).map(rank).max();
            let found = mesh.service_at("", "10.96.0.1".parse().unwrap(), client);
            // Of the client's own services with one address the canonical one is as good as another.
            prop_assert_eq!(found.map(|service| rank(service)), best);
        }
    }
}
