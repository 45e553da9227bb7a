//! The addresses of one network: which workload or service has one.
use std::{collections::HashMap, net::IpAddr, sync::Arc};

use ipnet::IpNet;

use crate::{
    address::canonical,
    endpoints::{Front, Member},
    workload::{Tunnel, Workload},
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
    /// Adds a workload under its addresses; on a collision the better one stays.
    pub(crate) fn add_member(&mut self, member: &Arc<Member>) {
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

    /// The service that has the address, for a client in `namespace`: an exact address before a range,
    /// then the client's own namespace, then the longest prefix, then the canonical one.
    pub(crate) fn front(&self, address: IpAddr, namespace: &str) -> Option<&Arc<Front>> {
        let address = address.to_canonical();
        if let Some(fronts) = self.fronts.get(&IpNet::from(address)) {
            return own(fronts, namespace).or_else(|| fronts.first());
        }
        let ranges = || self.ranges(address);
        ranges()
            .find_map(|fronts| own(fronts, namespace))
            .or_else(|| ranges().find_map(|fronts| fronts.first()))
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
