//! Addresses and policy routing inside the namespace of a pod or machine.
//!
//! Packets that carry [`INBOUND_MARK`] (replies of the application to connections that the agent made from
//! the client's address) are looked up in a table whose only route delivers everything locally.
use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    address::{AddressAttribute, AddressHeaderFlags, AddressMessage, AddressScope},
    link::{LinkFlags, LinkMessage},
    route::{RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType},
    rule::{RuleAction, RuleAttribute, RuleMessage},
};
use undermesh_abi::{INBOUND_MARK, INBOUND_TABLE, MACHINE_TABLE};

use crate::{enrollment::MachineAddresses, netlink::Netlink};

/// Index of `lo` in every namespace.
const LOOPBACK_INDEX: u32 = 1;
/// The rule's place: just before the main table (32766), after rules of the pod's own.
const RULE_PRIORITY: u32 = 32_764;

/// The addresses of a pod or machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Addresses {
    all: Vec<IpAddr>,
    /// The first of each family; for a machine those by which the mesh knows it.
    ipv4: Option<Ipv4Addr>,
    ipv6: Option<Ipv6Addr>,
}

/// A table of routes that packets marked [`INBOUND_MARK`] are looked up in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Table {
    /// In a pod's namespace, which nobody else routes in.
    Pod,
    /// In a machine's own, where the table must not be one of the administrator's.
    Machine,
}

impl Table {
    fn number(self) -> u32 {
        match self {
            Self::Pod => INBOUND_TABLE,
            Self::Machine => MACHINE_TABLE,
        }
    }
}

impl Addresses {
    /// Every global unicast address on an interface other than `lo`, in the kernel's order.
    pub fn all(&self) -> &[IpAddr] {
        &self.all
    }

    /// The own IPv4 address: a pod's first one, a machine's as it was enrolled.
    pub fn ipv4(&self) -> Option<Ipv4Addr> {
        self.ipv4
    }

    /// The own IPv6 address: a pod's first one, a machine's as it was enrolled.
    pub fn ipv6(&self) -> Option<Ipv6Addr> {
        self.ipv6
    }

    /// The address families that the namespace has.
    pub(crate) fn families(&self) -> impl Iterator<Item = Family> {
        let has = |wanted: fn(&IpAddr) -> bool| self.all.iter().any(wanted);
        let ipv4 = has(IpAddr::is_ipv4).then_some(Family::Ipv4);
        let ipv6 = has(IpAddr::is_ipv6).then_some(Family::Ipv6);
        ipv4.into_iter().chain(ipv6)
    }

    /// The same with those of a machine as its own, and first; or the one that the namespace lacks.
    pub(crate) fn of_machine(mut self, own: &MachineAddresses) -> Result<Self, IpAddr> {
        (self.ipv4, self.ipv6) = (None, None);
        let others: Vec<IpAddr> = self.all.clone();
        self.all.clear();
        for address in own.iter() {
            if !others.contains(&address) {
                return Err(address);
            }
            self.all.push(address);
            match address {
                IpAddr::V4(v4) => self.ipv4 = Some(v4),
                IpAddr::V6(v6) => self.ipv6 = Some(v6),
            }
        }
        let own = self.all.len();
        for address in others {
            if !self.all[..own].contains(&address) {
                self.all.push(address);
            }
        }
        Ok(self)
    }
}

impl FromIterator<IpAddr> for Addresses {
    fn from_iter<I: IntoIterator<Item = IpAddr>>(addresses: I) -> Self {
        let mut found = Self::default();
        for address in addresses {
            match address {
                IpAddr::V4(v4) => found.ipv4 = found.ipv4.or(Some(v4)),
                IpAddr::V6(v6) => found.ipv6 = found.ipv6.or(Some(v6)),
            }
            found.all.push(address);
        }
        found
    }
}

/// One of the two address families.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    Ipv4,
    Ipv6,
}

/// Both families.
pub(crate) const FAMILIES: [Family; 2] = [Family::Ipv4, Family::Ipv6];

impl From<Family> for AddressFamily {
    fn from(family: Family) -> Self {
        match family {
            Family::Ipv4 => Self::Inet,
            Family::Ipv6 => Self::Inet6,
        }
    }
}

/// Lists the addresses of the calling thread's namespace.
pub(crate) fn addresses(netlink: &Netlink) -> io::Result<Addresses> {
    let messages = netlink.list(RouteNetlinkMessage::GetAddress(AddressMessage::default()))?;
    let own = messages.iter().filter_map(|message| match message {
        RouteNetlinkMessage::NewAddress(message) => own_address(message),
        _ => None,
    });
    Ok(own.collect())
}

/// The address of a message, if it is one by which others reach the pod.
fn own_address(message: &AddressMessage) -> Option<IpAddr> {
    let header = &message.header;
    if header.index == LOOPBACK_INDEX
        || header.scope != AddressScope::Universe
        || header.flags.contains(AddressHeaderFlags::Dadfailed)
    {
        return None;
    }
    // On a point-to-point interface `Address` is the other end; `Local`, where present, is ours.
    let local = message
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            AddressAttribute::Local(address) => Some(*address),
            _ => None,
        });
    local.or_else(|| {
        message
            .attributes
            .iter()
            .find_map(|attribute| match attribute {
                AddressAttribute::Address(address) => Some(*address),
                _ => None,
            })
    })
}

/// Brings `lo` up, without which nothing in the pod reaches the agent's listeners.
pub(crate) fn raise_loopback(netlink: &Netlink) -> io::Result<()> {
    let mut message = LinkMessage::default();
    message.header.index = LOOPBACK_INDEX;
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    netlink.change(RouteNetlinkMessage::SetLink(message))
}

/// Makes the rule and the route of one family; what is there already stays.
pub(crate) fn add(netlink: &Netlink, family: Family, table: Table) -> io::Result<()> {
    netlink.ensure(RouteNetlinkMessage::NewRoute(local_default(family, table)))?;
    netlink.ensure(RouteNetlinkMessage::NewRule(mark_rule(family, table)))
}

/// Whether nobody has a route in the table; what an earlier agent left there counts too.
pub(crate) fn is_free(netlink: &Netlink, table: Table) -> io::Result<bool> {
    for family in FAMILIES {
        let mut request = RouteMessage::default();
        request.header.address_family = family.into();
        let routes = netlink.list(RouteNetlinkMessage::GetRoute(request))?;
        if routes.iter().any(|route| is_in(route, table)) {
            return Ok(false);
        }
    }
    Ok(true)
}

fn is_in(route: &RouteNetlinkMessage, table: Table) -> bool {
    let RouteNetlinkMessage::NewRoute(route) = route else {
        return false;
    };
    route
        .attributes
        .contains(&RouteAttribute::Table(table.number()))
}

/// Takes away what [`add`] made.
pub(crate) fn remove(netlink: &Netlink, family: Family, table: Table) -> io::Result<()> {
    netlink.remove(RouteNetlinkMessage::DelRule(mark_rule(family, table)))?;
    netlink.remove(RouteNetlinkMessage::DelRoute(local_default(family, table)))
}

/// `ip rule add fwmark INBOUND_MARK lookup TABLE pref 32764`
fn mark_rule(family: Family, table: Table) -> RuleMessage {
    let mut rule = RuleMessage::default();
    rule.header.family = family.into();
    rule.header.action = RuleAction::ToTable;
    rule.attributes = vec![
        RuleAttribute::Priority(RULE_PRIORITY),
        RuleAttribute::FwMark(INBOUND_MARK),
        RuleAttribute::FwMask(u32::MAX),
        RuleAttribute::Table(table.number()),
    ];
    rule
}

/// `ip route add local default dev lo table TABLE`
fn local_default(family: Family, table: Table) -> RouteMessage {
    let mut route = RouteMessage::default();
    route.header.address_family = family.into();
    route.header.protocol = RouteProtocol::Static;
    route.header.scope = RouteScope::Host;
    route.header.kind = RouteType::Local;
    route.attributes = vec![
        RouteAttribute::Table(table.number()),
        RouteAttribute::Oif(LOOPBACK_INDEX),
    ];
    route
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::enrollment::{Enrollment, Scope};

    fn machine(texts: &[&str]) -> MachineAddresses {
        let addresses = texts.iter().map(|text| text.parse().unwrap());
        let enrollment = Enrollment::machine(addresses, "vms", "db-0", "db").unwrap();
        let Scope::Machine(addresses) = enrollment.scope() else {
            panic!("it is a machine")
        };
        *addresses
    }

    #[test]
    fn a_machines_own_addresses_are_those_of_its_enrollment() {
        let found = ["172.17.0.1", "10.0.0.5", "fd00::5", "fd00::6"];
        let found: Addresses = found.iter().map(|text| text.parse().unwrap()).collect();
        assert_eq!(found.ipv4(), Some(Ipv4Addr::new(172, 17, 0, 1)));
        let addresses = found.clone().of_machine(&machine(&["10.0.0.5"])).unwrap();
        assert_eq!(addresses.ipv4(), Some(Ipv4Addr::new(10, 0, 0, 5)));
        assert_eq!(addresses.ipv6(), None);
        assert_eq!(addresses.families().count(), 2);
        assert_eq!(addresses.all().len(), 4);
        let missing = found.of_machine(&machine(&["10.0.0.9"]));
        assert_eq!(missing, Err("10.0.0.9".parse().unwrap()));
    }
}
