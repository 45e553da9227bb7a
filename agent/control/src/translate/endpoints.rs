//! The endpoints of services: who is selected, and at which port.
use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use undermesh_model::{
    Workload,
    service::{Preference, Scope as PlaceScope, ServiceEndpoint},
};

use super::{inventory::Inventory, scope::Body};
use crate::resources::{core::Distribution, field::Labels, metadata::Metadata};

/// The members of a namespace that have all the labels.
pub(super) fn selected<'i>(
    inventory: &'i Inventory,
    namespace: &str,
    labels: &'i Labels,
) -> impl Iterator<Item = (&'i Arc<Workload>, Body<'i>)> {
    let members = inventory.scope(namespace).into_iter();
    members
        .flat_map(|scope| scope.endpoints())
        .filter(move |(_, body)| body.labels().include(labels))
}

/// The port that a member has under a name.
pub(super) fn named_port(ports: &[(Arc<str>, u16)], name: &str) -> Option<u16> {
    let found = ports.iter().find(|(own, _)| **own == *name);
    found.map(|(_, port)| *port)
}

/// An endpoint, with the ports that it has of its own.
pub(super) fn endpoint(uid: &Arc<str>, ports: Vec<(u16, u16)>) -> ServiceEndpoint {
    ServiceEndpoint {
        workload: uid.clone(),
        ports,
    }
}

/// The preference of a distribution: what is unset on the object is what its namespace says.
///
/// Source: istiod's field rules for `load_balancing`.
pub(super) fn preference(
    own: Option<Distribution>,
    metadata: &Metadata,
    inventory: &Inventory,
) -> Preference {
    let above = inventory.namespace(metadata.namespace());
    let distribution = own.or_else(|| Distribution::annotated(above?));
    match distribution.unwrap_or_default() {
        Distribution::Any => Preference::None,
        Distribution::SameZone => Preference::Failover(vec![
            PlaceScope::Network,
            PlaceScope::Region,
            PlaceScope::Zone,
        ]),
        Distribution::SameNode => Preference::Failover(vec![
            PlaceScope::Network,
            PlaceScope::Region,
            PlaceScope::Zone,
            PlaceScope::Subzone,
            PlaceScope::Node,
        ]),
    }
}

/// The workloads that only exist as endpoints of one object, by uid.
pub(crate) type Outside = BTreeMap<Arc<str>, Workload>;

/// Adds such a workload.
pub(super) fn add_workload(workloads: &mut Outside, workload: Workload) -> Arc<str> {
    let uid = workload.uid.clone();
    workloads.insert(uid.clone(), workload);
    uid
}

/// The member that a slice means by an address: the pod that it names, if that has it.
pub(super) fn named_pod<'i>(
    inventory: &'i Inventory,
    pod: Option<&(Arc<str>, Arc<str>)>,
    address: IpAddr,
) -> Option<&'i Arc<Workload>> {
    let workload = inventory.pod(pod?)?;
    workload.addresses.contains(&address).then_some(workload)
}
